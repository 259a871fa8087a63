"""Frequency tables of the coder: integers that sum to 4096, written in a byte a symbol.

A byte is the level of a symbol's weight: 0 for a symbol that does not occur, 1 for one that occurs
and has no weight, then 1, 2, 3, …, 7 and from 8 on four steps an octave (8, 10, 12, 14, 16, 20, …).
Weights become frequencies by integer arithmetic alone, so that every decoder has the same ones.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from haq.errors import UpdateError

PRECISION = 12
"""Bits of a frequency: those of a table sum to 2**12."""

TOTAL = 1 << PRECISION

_LEVELS = np.array([0, *(k if k < 8 else (4 + k % 4) << (k // 4 - 1) for k in range(45))], np.int64)
"""Level to weight; the last is 4096."""

MOST_TABLES = 128
"""Tables of one set at most: what they take in memory stays small."""

BYTES_OF_SYMBOL = 0.6
"""About what a symbol of a table takes in a packet, compressed."""


def weights_of(levels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the weights of levels.

    Raises:
        UpdateError: A level is above the highest.
    """
    if levels.size and int(levels.max()) >= len(_LEVELS):
        raise UpdateError(
            f"a table has level {int(levels.max())}, and the highest is {len(_LEVELS) - 1}"
        )
    return _LEVELS[levels]


def frequencies(levels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the frequencies of a table: at least 1 where a symbol occurs, ``TOTAL`` in sum.

    Every symbol that occurs has 1; the rest is shared by weight. With R that rest, W the sum of all
    weights and C of those up to and with a symbol, it ends at floor(C R / W).

    Raises:
        UpdateError: No symbol has a weight, or a level is too high.

    >>> frequencies(np.array([0, 3, 2], np.uint8)).tolist()
    [0, 2730, 1366]
    """
    weights, occurs = weights_of(levels), levels > 0
    whole = int(weights.sum())
    if not whole:
        raise UpdateError("a table has no symbol with a weight")
    ends = np.cumsum(weights) * (TOTAL - int(occurs.sum())) // whole
    shares: NDArray[np.int64] = np.diff(ends, prepend=0) + occurs
    return shares


def levels_of(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the levels that come closest to how often each symbol occurs (…, symbols)."""
    whole = np.maximum(counts.sum(-1, keepdims=True), 1)
    wanted = np.maximum(counts * TOTAL / whole - 1, 0)  # which all that occur have anyway
    middle = [0.5, *np.sqrt(_LEVELS[2:-1] * _LEVELS[3:])]
    levels = np.searchsorted(middle, wanted) + 1
    return np.where(counts > 0, levels, 0).astype(np.uint8)


def bits_of(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how many bits symbols that occur so often (…, symbols) take at best."""
    whole = counts.sum(-1)
    own = np.where(counts > 0, counts * np.log2(np.maximum(counts, 1)), 0.0).sum(-1)
    return np.asarray(whole * np.log2(np.maximum(whole, 1)) - own)


def merge(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return for each context (contexts, symbols) the table it shares, in as few bits as may be.

    Contexts are put together, the pair first that loses least, while the tables that are saved are
    worth more than the bits lost.
    """
    group, sums = _neighbours(counts)
    bits = bits_of(sums) + _table_bits(sums)
    alive = np.ones(len(sums), bool)
    loss = np.full((len(sums), len(sums)), np.inf)

    def losses(one: int) -> NDArray[np.float64]:
        both = sums + sums[one]
        lost = bits_of(both) + _table_bits(both) - bits - bits[one]
        return np.where(alive & (np.arange(len(sums)) != one), lost, np.inf)

    for one in range(len(sums)):
        loss[one] = losses(one)
    left = len(sums)
    while left > 1:
        one, other = divmod(int(loss.argmin()), len(sums))
        if loss[one, other] >= 0 and left <= MOST_TABLES:
            break
        sums[one] += sums[other]
        bits[one] = bits_of(sums[one]) + _table_bits(sums[one])
        group[group == other] = one
        alive[other] = False
        loss[other, :] = loss[:, other] = np.inf
        loss[one] = losses(one)
        loss[:, one] = loss[one]
        left -= 1
    _, numbers = np.unique(group, return_inverse=True)
    return numbers.astype(np.uint8)


def _table_bits(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(8 * BYTES_OF_SYMBOL * (counts > 0).sum(-1))


def _neighbours(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Put contexts that occur too rarely to the ones before them: pairs are tried of few."""
    enough = max(256, int(counts.sum()) // 256)
    group = np.zeros(len(counts), np.int64)
    sums: list[NDArray[np.int64]] = []
    for place in np.flatnonzero(counts.any(1)):
        if not sums or sums[-1].sum() >= enough:
            sums.append(np.zeros(counts.shape[1], np.int64))
        sums[-1] += counts[place]
        group[place] = len(sums) - 1
    return group, np.array(sums)


def expanded(tables: Sequence[NDArray[np.int64]]) -> NDArray[np.uint32]:
    """Return what a decoder looks up: for each table and slot, frequency, offset and symbol.

    An entry has frequency - 1 in its highest 12 bits, then the slot's place within its symbol in
    12 bits, then the symbol in 8.
    """
    rows = []
    for shares in tables:
        symbol = np.repeat(np.arange(len(shares)), shares)
        begin = (np.cumsum(shares) - shares)[symbol]
        rows.append((shares[symbol] - 1) << 20 | (np.arange(TOTAL) - begin) << 8 | symbol)
    return np.concatenate(rows).astype(np.uint32)
