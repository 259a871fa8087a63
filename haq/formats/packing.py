"""Integer codes at their own bit-width, without a gap, and back."""

import numpy as np
import torch
from torch import Tensor

from haq.quantization.quantizer import levels


def pack(values: Tensor, bits: int) -> bytes:
    """Return codes as ``bits`` bits each, without a gap; the last byte is filled up with zeros.

    Args:
        values: int8, of any shape, each of so many bits.
        bits: From 2 to 8.

    >>> pack(torch.tensor([-3, 0, 1, 2, 3], dtype=torch.int8), 3).hex()  # 5 + 1<<6 + 2<<9 + 3<<12
    '4534'
    """
    column = values.contiguous().flatten().numpy().view(np.uint8)[:, None]
    digits = np.unpackbits(column, axis=1, count=bits, bitorder="little")  # (values, bits)
    return np.packbits(digits, bitorder="little").tobytes()


def unpack(data: bytes, bits: int, count: int, lowest: int | None = None) -> Tensor:
    """Return the codes (count,), int8, that ``pack`` packed.

    Raises:
        ValueError: The data has another length than ``count`` codes take, or does not end with
            zeros, or holds the code that ``levels`` leaves out.
    """
    if len(data) != packed_size(count, bits):
        raise ValueError(f"{count} codes of {bits} bits are not {len(data)} bytes")
    stream = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if stream[count * bits :].any():
        raise ValueError("the last byte is not filled up with zeros")
    digits = stream[: count * bits].reshape(count, bits)
    sign = np.repeat(digits[:, -1:], 8 - bits, axis=1)
    filled = np.concatenate([digits, sign], axis=1)  # (count, 8)
    values = np.packbits(filled, axis=1, bitorder="little").view(np.int8)[:, 0]
    lowest = levels(bits, signed=True)[0] if lowest is None else lowest
    if count and values.min() < lowest:
        raise ValueError(f"a code is {values.min()}, the lowest of {bits} bits is {lowest}")
    return torch.from_numpy(values)


def packed_size(count: int, bits: int) -> int:
    """Return how many bytes ``pack`` makes of so many codes."""
    return -(-count * bits // 8)
