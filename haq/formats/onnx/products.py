"""Convolutions and matrix products of integers, exact."""

import math
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
    """Return the convolution of padded images (N, C, ...) with (out, C / groups, ...).

    Behind the channels there may be any number of axes. That of integers is exact and int64, that
    of floats has their type.
    """
    (out, depth), kernel = weight.shape[:2], weight.shape[2:]
    axes = len(kernel)
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    steps = tuple(slice(None, None, step) for step in (*strides, *dilations))
    windows = sliding_window_view(x, spans, axis=tuple(range(2, 2 + axes)))[:, :, *steps]
    images, places = windows.shape[0], windows.shape[2 : 2 + axes]
    parts = windows.reshape(images, groups, depth, *places, *kernel)
    front = (1, 0, *range(3, 3 + axes), 2, *range(3 + axes, 3 + 2 * axes))
    taps: Array = parts.transpose(front).reshape(groups, -1, depth * math.prod(kernel))
    sums = product(taps, weight.reshape(groups, out // groups, -1).transpose(0, 2, 1))
    sums = sums.reshape(groups, images, *places, out // groups)
    back = (1, 0, axes + 2, *range(2, 2 + axes))
    result: Array = sums.transpose(back).reshape(images, out, *places)
    return result


def spread(
    x: Array,
    weight: Array,
    strides: Sequence[int],
    dilations: Sequence[int],
    added: Sequence[int],
    groups: int,
) -> Array:
    """Return the transposed convolution of (N, C, ...) with (C, out / groups, ...), not cut.

    Args:
        x: Floats.
        weight: Floats.
        strides: One an axis.
        dilations: Likewise.
        added: Zeros behind each axis.
        groups: Of channels.
    """
    images, sizes, kernel = len(x), x.shape[2:], weight.shape[2:]
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    whole = [
        (size - 1) * step + span + more
        for size, step, span, more in zip(sizes, strides, spans, added, strict=True)
    ]
    result = np.zeros((images, groups * weight.shape[1], *whole), x.dtype)
    values = x.reshape(images, groups, -1, math.prod(sizes))
    for tap in np.ndindex(*kernel):
        filters = weight[:, :, *tap].reshape(groups, -1, weight.shape[1]).transpose(0, 2, 1)
        places = tuple(
            slice(at * d, at * d + (size - 1) * step + 1, step)
            for at, d, size, step in zip(tap, dilations, sizes, strides, strict=True)
        )
        result[:, :, *places] += (filters @ values).reshape(images, -1, *sizes)
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
