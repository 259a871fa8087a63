"""Operators of ONNX Runtime's own domain in numpy, as far as exported files hold them.

Products of integers are exact; what is multiplied as floats has the last digits of another order of
sums. Source: ContribOperators.md of ONNX Runtime.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from haq.formats.onnx.groups import INTEGER_LEVEL
from haq.formats.onnx.values import Array, Single

Attributes = Mapping[str, Any]
Given = Sequence[Array | None]


def unpacked(packed: Array, bits: int) -> Array:
    """Return the codes in bytes (..., bytes), the first of each in the lowest bits.

    >>> unpacked(np.array([33, 15], np.uint8), 4).tolist()
    [1, 2, 15, 0]
    """
    shifts = (bits * np.arange(8 // bits)).astype(np.uint8)
    parts = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return parts.reshape(*packed.shape[:-1], -1)


def _floats(codes: Array, scales: Array, bits: int, block: int) -> Array:
    """Return what codes (rows, columns) stand for, with scales for blocks of columns."""
    whole = codes.astype(Single) - Single(2 ** (bits - 1))
    rows = scales.reshape(len(codes), -1).astype(Single)
    result: Array = whole * rows.repeat(block, axis=1)[:, : codes.shape[1]]
    return result


def _product_of_groups(about: Attributes, given: Given) -> Array:
    """Multiply (..., K) by N rows of K weights whose blocks have scales: MatMulNBits."""
    x, packed, scales, *rest = given
    assert x is not None and packed is not None and scales is not None
    bits, block, columns = about["bits"], about["block_size"], about["K"]
    codes = unpacked(packed, bits).reshape(about["N"], -1)
    weight = _floats(codes, scales, bits, block)[:, :columns]
    if about.get("accuracy_level") == INTEGER_LEVEL:
        x = _rounded_blocks(x, block)
    result: Array = x.astype(Single) @ weight.T
    bias = rest[2] if len(rest) > 2 else None
    return result if bias is None else result + bias


def _rounded_blocks(x: Array, block: int) -> Array:
    """Return (..., K) rounded to 255 levels around zero, each block of the last axis by its own."""
    missing = -x.shape[-1] % block
    parts = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]).reshape(*x.shape[:-1], -1, block)
    scale = np.abs(parts).max(-1, keepdims=True) / Single(127)
    rounded = np.rint(parts / np.where(scale > 0, scale, Single(1))) * scale
    result: Array = rounded.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
    return result


def _rows_of_groups(about: Attributes, given: Given) -> Array:
    """Return rows of a table whose blocks have scales: GatherBlockQuantized."""
    packed, places, scales, *_ = given
    assert packed is not None and places is not None and scales is not None
    bits = about["bits"]
    table = _floats(unpacked(packed, bits), scales, bits, about["block_size"])
    result: Array = table[places]
    return result


def _product_to_floats(about: Attributes, given: Given) -> Array:
    """Multiply codes by codes exactly, then by both scales: MatMulIntegerToFloat."""
    x, weight, scale, scales, zero, zeros, *bias = given
    assert x is not None and weight is not None and scale is not None and scales is not None
    assert zero is not None and zeros is not None
    sums = (x.astype(np.int64) - np.int64(zero)) @ (weight.astype(np.int64) - np.int64(zeros))
    result: Array = sums.astype(Single) * (scale * scales)
    return result + bias[0] if bias and bias[0] is not None else result


CONTRIB_RULES: Mapping[str, Callable[[Attributes, Given], Array]] = {
    "GatherBlockQuantized": _rows_of_groups,
    "MatMulIntegerToFloat": _product_to_floats,
    "MatMulNBits": _product_of_groups,
}
