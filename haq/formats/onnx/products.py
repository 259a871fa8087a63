"""Convolutions and matrix products of integers, exact."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[Any]

_EXACT = 2**24
"""Up to here float32 counts without a gap."""


def convolved(
    x: Array, weight: Array, strides: Sequence[int], dilations: Sequence[int], groups: int
) -> Array:
    """Return the convolution of padded images (N, C, H, W) with (out, C / groups, h, w).

    That of integers is exact and int64, that of floats has their type.
    """
    out, depth, height, width = weight.shape
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, (height, width), strict=True)]
    windows = sliding_window_view(x, spans, axis=(2, 3))[
        :, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]
    ]  # (N, C, rows, columns, h, w)
    images, _, rows, columns = windows.shape[:4]
    each = (groups, images * rows * columns, depth * height * width)
    parts = windows.reshape(images, groups, depth, rows, columns, height, width)
    taps: Array = parts.transpose(1, 0, 3, 4, 2, 5, 6).reshape(each)
    sums = product(taps, weight.reshape(groups, out // groups, -1).transpose(0, 2, 1))
    sums = sums.reshape(groups, images, rows, columns, out // groups)
    result: Array = sums.transpose(1, 0, 4, 2, 3).reshape(images, out, rows, columns)
    return result


def product(left: Array, right: Array) -> Array:
    """Return the matrix product; that of integers is exact and int64."""
    if left.dtype.kind == "f":
        result: Array = left @ right
        return result
    kind = _counting(left, right)
    sums: Array = left.astype(kind) @ right.astype(kind)
    return sums.astype(np.int64)


def _counting(left: Array, right: Array) -> type:
    """Return a type of float in which no sum of the products loses a digit."""
    highest = int(np.abs(left).max(initial=0)) * int(np.abs(right).max(initial=0))
    return np.float32 if highest * left.shape[-1] < _EXACT else np.float64
