"""Codes of a layer most of which are zero, in the fewest bytes: the cheapest format is taken.

- "dense": all codes, as ``packing`` has them.
- "bitmask": a bit for each code, then the codes that are not zero.
- "coded mask": the same bits through an entropy coder (rANS), then the codes that are not zero.
- "relative index": for each code that is not zero how many zeros stand before it, in k bits, and
  the code; a longer gap is broken by a zero that is written.
"""

import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haq.allocation.sparse import INDEX_BITS
from haq.errors import UpdateError
from haq.formats.coder import rans
from haq.formats.coder.tables import TOTAL, expanded
from haq.formats.packing import pack, packed_size, unpack

Codes = NDArray[np.int8]


def encode(codes: Codes, bits: int) -> tuple[str, bytes]:
    """Return the cheapest format of some codes, and the codes in it.

    Args:
        codes: int8, of any shape, as for ``packing.pack``.
        bits: From 2 to 8.
    """
    flat = codes.ravel()
    written = {name: one.write(flat, bits) for name, one in FORMATS.items()}
    name = min(written, key=lambda name: len(written[name]))
    return name, written[name]


def decode(name: str, data: bytes, bits: int, count: int) -> Codes:
    """Return the codes (count,), int8, that ``encode`` wrote.

    Raises:
        ValueError: There is no such format, or the data are not those of ``count`` codes.
    """
    if name not in FORMATS:
        raise ValueError(f"there is no format {name[:80]!r} (known: {', '.join(FORMATS)})")
    try:
        return FORMATS[name].read(data, bits, count)
    except (UpdateError, struct.error) as error:
        raise ValueError(f"{name}: {error}") from error


def _others(codes: Codes, bits: int) -> bytes:
    return pack(codes[codes != 0], bits)


def _filled(mask: NDArray[np.bool_], data: bytes, bits: int) -> Codes:
    codes = np.zeros(len(mask), np.int8)
    values = unpack(data, bits, int(mask.sum()))
    if (values == 0).any():
        raise ValueError("a code that is said not to be zero is zero")
    codes[mask] = values
    return codes


def _write_bitmask(codes: Codes, bits: int) -> bytes:
    return np.packbits(codes != 0, bitorder="little").tobytes() + _others(codes, bits)


def _read_bitmask(data: bytes, bits: int, count: int) -> Codes:
    size = packed_size(count, 1)
    stream = np.unpackbits(np.frombuffer(data[:size], np.uint8), bitorder="little")
    if len(stream) < count or stream[count:].any():
        raise ValueError("the mask does not fit")
    return _filled(stream[:count].astype(bool), data[size:], bits)


_MASK = struct.Struct("<HBI")
"""Frequency of a zero of 4096, lanes, words of the coder."""


def _lanes(count: int) -> int:
    """Return how many symbols are coded at once: a lane costs 4 bytes."""
    return max(1, min(32, count // 4096))


def _write_coded(codes: Codes, bits: int) -> bytes:
    mask = (codes != 0).astype(np.uint8)
    zeros = len(mask) - int(mask.sum())
    share = min(max(round(TOTAL * zeros / max(len(mask), 1)), 1), TOTAL - 1)
    tables = [np.array([share, TOTAL - share], np.int64)]
    runs = [(mask, np.zeros(len(mask), np.int64))]
    lanes = _lanes(len(mask))
    states, words = rans.encode(runs, tables, lanes)
    head = _MASK.pack(share, lanes, len(words))
    return (
        head + states.astype("<u4").tobytes() + words.astype("<u2").tobytes() + _others(codes, bits)
    )


def _read_coded(data: bytes, bits: int, count: int) -> Codes:
    share, lanes, length = _MASK.unpack_from(data)
    begin = _MASK.size + 4 * lanes
    end = begin + 2 * length
    if not 0 < share < TOTAL or lanes != _lanes(count) or end > len(data):
        raise ValueError("the head of the mask does not fit")
    states = np.frombuffer(data[_MASK.size : begin], "<u4").astype(np.uint32)
    words = np.frombuffer(data[begin:end], "<u2").astype(np.uint16)
    decoder = rans.Decoder(states, words)
    table = expanded([np.array([share, TOTAL - share], np.int64)])
    mask = decoder.run(np.zeros(count, np.int64), table)
    if decoder.end().strip(b"\0"):
        raise ValueError("the mask does not end where it began")
    return _filled(mask.astype(bool), data[end:], bits)


_INDEX = struct.Struct("<BI")
"""Bits of an index, entries."""


def _write_index(codes: Codes, bits: int) -> bytes:
    written = (_indexed(codes, bits, width) for width in INDEX_BITS)
    return min(written, key=len)


def _indexed(codes: Codes, bits: int, width: int) -> bytes:
    places = np.flatnonzero(codes)
    gaps = np.diff(places, prepend=-1) - 1  # zeros before each code
    fillers, rest = np.divmod(gaps, 2**width)
    ends = np.cumsum(fillers + 1) - 1  # the entry of each code
    entries = int(ends[-1]) + 1 if len(ends) else 0
    indices = np.full(entries, 2**width - 1, np.uint8)
    values = np.zeros(entries, np.int8)
    indices[ends], values[ends] = rest, codes[places]
    head = _INDEX.pack(width, entries)
    return head + _pack_unsigned(indices, width) + pack(values, bits)


def _read_index(data: bytes, bits: int, count: int) -> Codes:
    width, entries = _INDEX.unpack_from(data)
    size = packed_size(entries, width)
    if width not in INDEX_BITS or entries > count or len(data) < _INDEX.size + size:
        raise ValueError("the head of the index does not fit")
    begin = _INDEX.size
    gaps = _unpack_unsigned(data[begin : begin + size], width, entries)
    values = unpack(data[begin + size :], bits, entries)
    places = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if entries and places[-1] >= count:
        raise ValueError("an index leads beyond the last code")
    codes = np.zeros(count, np.int8)
    codes[places] = values
    return codes


def _pack_unsigned(values: NDArray[np.uint8], width: int) -> bytes:
    digits = np.unpackbits(values[:, None], axis=1, count=width, bitorder="little")
    return np.packbits(digits, bitorder="little").tobytes()


def _unpack_unsigned(data: bytes, width: int, count: int) -> NDArray[np.uint8]:
    stream = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: count * width]
    return np.packbits(stream.reshape(count, width), axis=1, bitorder="little")[:, 0]


class Format(NamedTuple):
    """How codes are written and read.

    Attributes:
        write: From codes and their bits to bytes.
        read: From bytes, bits and the number of codes to the codes.
    """

    write: Callable[[Codes, int], bytes]
    read: Callable[[bytes, int, int], Codes]


FORMATS: Mapping[str, Format] = {
    "dense": Format(pack, unpack),
    "bitmask": Format(_write_bitmask, _read_bitmask),
    "coded mask": Format(_write_coded, _read_coded),
    "relative index": Format(_write_index, _read_index),
}
