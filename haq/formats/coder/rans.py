"""Interleaved static rANS, in integers: many lanes advance together, a symbol each.

A lane's state is 32 bits and at least 2**16 between symbols; where it would fall below, the next
16-bit word of the one stream that all lanes share is taken in. A run of symbols that are coded
together (a pass of a tensor) is cut into steps of as many symbols as there are lanes; the last step
of a run uses the first lanes only. In a step, words go to the lanes that need one, in order.

The lanes begin, in the encoder, with 16 bits each of something else, which the decoder has in its
hands at the end: so they cost nothing where there is something else to send.

Source: Duda, "Asymmetric numeral systems", arXiv:1311.2540; interleaving as in Giesen, "Interleaved
entropy coders", arXiv:1402.3392.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from haq.errors import UpdateError
from haq.formats.coder.tables import PRECISION, TOTAL

LOW = 1 << 16
"""No state is below it between symbols."""

_LOW, _SLOT, _BITS = np.uint32(LOW), np.uint32(TOTAL - 1), np.uint32(PRECISION)
_SHARE, _PLACE, _ONE, _WORD = np.uint32(20), np.uint32(8), np.uint32(1), np.uint32(16)

Run = tuple[NDArray[np.integer], NDArray[np.integer]]
"""Symbols, and the number of the table of each."""


def encode(
    runs: Sequence[Run], tables: Sequence[NDArray[np.int64]], lanes: int, stash: bytes = b""
) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Return the states (lanes,) with which a decoder begins, and the words it takes in.

    Args:
        runs: In the order of decoding.
        tables: Frequencies of each; every symbol that occurs has one above 0.
        lanes: From 1 up.
        stash: Up to 2 bytes a lane that the lanes begin with; the rest is zeros.
    """
    width = max(map(len, tables), default=1)
    share = np.zeros((len(tables), width), np.uint64)
    for number, row in enumerate(tables):
        share[number, : len(row)] = row
    begin = np.cumsum(share, 1) - share
    padded = np.frombuffer(stash.ljust(2 * lanes, b"\0"), "<u2")
    x = padded.astype(np.uint64) + LOW
    words: list[NDArray[np.uint16]] = []
    for symbols, numbers in reversed(runs):
        for start in range((len(symbols) - 1) // lanes * lanes, -1, -lanes):
            at = numbers[start : start + lanes], symbols[start : start + lanes]
            f, c = share[at], begin[at]
            part = x[: len(f)]
            full = part >= f << np.uint64(32 - PRECISION)
            words.append(part[full].astype(np.uint16))  # the low 16 bits
            part = np.where(full, part >> np.uint64(16), part)
            x[: len(f)] = (part // f << np.uint64(PRECISION)) + part % f + c
    stream = np.concatenate(words[::-1]) if words else np.zeros(0, np.uint16)
    return x.astype(np.uint32), stream


class Decoder:
    """The other side of ``encode``: symbols of one run after the other.

    Args:
        states: (lanes,).
        words: All of them.

    Raises:
        UpdateError: A state is below ``LOW``; and in ``run``, words are missing.
    """

    def __init__(self, states: NDArray[np.uint32], words: NDArray[np.uint16]) -> None:
        if len(states) and int(states.min()) < LOW:
            raise UpdateError("a lane of the coder begins below 2**16")
        self.states = states.copy()
        self.words = words.astype(np.uint32)
        self.taken = 0

    def run(self, numbers: NDArray[np.integer], table: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """Return the symbols of the next run.

        Args:
            numbers: Of the table of each symbol.
            table: Of ``tables.expanded``, which has the tables that are counted here.
        """
        lanes = len(self.states)
        if len(numbers) and not lanes:
            raise UpdateError("the coder has no lanes, and symbols to decode")
        slots = numbers.astype(np.uint32) << np.uint32(PRECISION)
        entries = np.empty(len(slots), np.uint32)
        for start in range(0, len(slots), max(lanes, 1)):
            part = slots[start : start + lanes]
            x = self.states[: len(part)]
            entry = table.take(part | (x & _SLOT))
            entries[start : start + lanes] = entry
            x >>= _BITS
            x *= (entry >> _SHARE) + _ONE
            x += (entry >> _PLACE) & _SLOT
            self._refill(x)
        return entries.astype(np.uint8)  # the low 8 bits

    def _refill(self, x: NDArray[np.uint32]) -> None:
        hungry = (x < _LOW).nonzero()[0]
        if not len(hungry):
            return
        end = self.taken + len(hungry)
        if end > len(self.words):
            raise UpdateError("the coder's words end too early")
        x[hungry] = x[hungry] << _WORD | self.words[self.taken : end]
        self.taken = end

    def end(self) -> bytes:
        """Return the 2 bytes a lane that the encoder began with.

        Raises:
            UpdateError: Words are left, or a state is none that an encoder begins with.
        """
        if self.taken != len(self.words):
            raise UpdateError(f"{len(self.words) - self.taken} words of the coder are left over")
        if len(self.states) and int(self.states.max()) >= 2 * LOW:
            raise UpdateError("a lane of the coder does not end where encoders begin")
        return (self.states - np.uint32(LOW)).astype("<u2").tobytes()
