"""Integer codes at their own bit-width, without a gap, and back."""

import numpy as np
from numpy.typing import NDArray


def pack(values: NDArray[np.integer], bits: int) -> bytes:
    """Return codes as ``bits`` bits each, without a gap; the last byte is filled up with zeros.

    Args:
        values: int8, of any shape, each of so many bits.
        bits: From 2 to 8.

    >>> pack(np.array([-3, 0, 1, 2, 3], np.int8), 3).hex()  # 5 + 1<<6 + 2<<9 + 3<<12
    '4534'
    """
    column = np.asarray(values, np.int8).reshape(-1, 1).view(np.uint8)
    digits = np.unpackbits(column, axis=1, count=bits, bitorder="little")  # (values, bits)
    return np.packbits(digits, bitorder="little").tobytes()


def unpack(data: bytes, bits: int, count: int, lowest: int | None = None) -> NDArray[np.int8]:
    """Return the codes (count,), int8, that ``pack`` packed.

    Args:
        data: As long as ``packed_size`` says.
        bits: From 2 to 8.
        count: Of codes.
        lowest: The lowest code that is taken; -(2**(bits - 1) - 1), the mirror image of the
            highest, if None.

    Raises:
        ValueError: The data has another length than ``count`` codes take, or does not end with
            zeros, or holds a lower code.
    """
    if len(data) != packed_size(count, bits):
        raise ValueError(f"{count} codes of {bits} bits are not {len(data)} bytes")
    if count * bits % 8 and data[-1] >> count * bits % 8:
        raise ValueError("the last byte is not filled up with zeros")
    groups = np.zeros((-(-count // 8), 8), np.uint8)  # 8 codes are as many bytes as one has bits
    filled = data + bytes(-len(data) % bits)
    groups[:, :bits] = np.frombuffer(filled, np.uint8).reshape(-1, bits)
    digits = groups.view("<u8") >> np.arange(0, 8 * bits, bits, dtype=np.uint64)
    high = (digits.astype(np.uint8) << np.uint8(8 - bits)).view(np.int8).ravel()[:count]
    values = high >> np.int8(8 - bits)
    lowest = 1 - 2 ** (bits - 1) if lowest is None else lowest
    if count and values.min() < lowest:
        raise ValueError(f"a code is {values.min()}, the lowest of {bits} bits is {lowest}")
    return values


def packed_size(count: int, bits: int) -> int:
    """Return how many bytes ``pack`` makes of so many codes."""
    return -(-count * bits // 8)
