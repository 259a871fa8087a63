"""What stands for a tensor while a file is worked out: floats, codes, or sums not yet rescaled.

Layers give sums, which are exact; they are rescaled to the codes of the next tensor in float32, in
the order in which ONNX Runtime's kernels do it, and rounded halves to even.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Single = np.float32
Feeds = Array | Mapping[str, Array]
"""What a file with one input takes, or one with several by their names: (N, ...) each."""
Move = Callable[[Array], Array]


@dataclass(frozen=True)
class Codes:
    """A tensor of integers; ``(values - zero) * scale`` is what they stand for."""

    values: Array
    scale: Array  # scalar, or one for each place of ``axis``
    zero: Array
    axis: int = 0

    def whole(self) -> Array:
        """Return the integers, counted from zero, in int32."""
        return self.values.astype(np.int32) - _along(self.zero, self).astype(np.int32)

    def real(self) -> Array:
        """Return what the codes stand for, in float32."""
        result: Array = self.whole().astype(Single) * _along(self.scale, self)
        return result

    def moved(self, move: Move) -> "Codes":
        """Return the codes in other places; what is added stands for zero."""
        values = move(self.values.astype(Single) - Single(self.zero)) + Single(self.zero)
        return replace(self, values=values.astype(self.values.dtype))


def _along(values: Array, codes: Codes) -> Array:
    """Return a scalar as it is, and one value for each place of the codes' axis so shaped."""
    shape = [1] * codes.values.ndim
    if values.ndim:
        shape[codes.axis] = -1
    return values.reshape(shape)


@dataclass(frozen=True)
class Sums:
    """Exact sums of products, each worth ``scale``: what a layer has before it is rescaled."""

    values: Array  # int64
    scale: Array  # float32, broadcasts against the values

    def real(self) -> Array:
        """Return what the sums stand for, in float32."""
        return self.values.astype(Single) * self.scale

    def codes(self, scale: Array, zero: Array) -> Array:
        """Return the sums as codes of another tensor."""
        return rounded(self.values.astype(Single) * (self.scale / scale), zero)

    def moved(self, move: Move) -> "Sums":
        """Return the sums in other places."""
        scales = np.broadcast_to(self.scale, self.values.shape)
        return Sums(move(self.values.astype(np.float64)).astype(np.int64), move(scales))


@dataclass(frozen=True)
class Added:
    """Two tensors of codes that are to be added."""

    left: Codes
    right: Codes
    cut: bool = False  # negative sums are zero

    def real(self) -> Array:
        """Return the sum in float32."""
        result: Array = self.left.real() + self.right.real()
        if self.cut:
            np.maximum(result, Single(0), out=result)
        return result

    def codes(self, scale: Array, zero: Array) -> Array:
        """Return the sum as codes of another tensor."""
        total = _added(self.left, self.right, scale, zero)
        return np.maximum(total, zero) if self.cut else total

    def moved(self, move: Move) -> "Added":
        """Return the sum in other places."""
        left, right = np.broadcast_arrays(self.left.values, self.right.values)
        return Added(
            replace(self.left, values=left).moved(move),
            replace(self.right, values=right).moved(move),
            self.cut,
        )


@dataclass(frozen=True)
class Mean:
    """The mean of each channel of a tensor of codes, as sums over so many pixels."""

    sums: Array  # int64
    pixels: int
    scale: Array

    def real(self) -> Array:
        """Return the means in float32."""
        result: Array = self.sums.astype(Single) * self.scale / Single(self.pixels)
        return result

    def codes(self, scale: Array, zero: Array) -> Array:
        """Return the means as codes of another tensor."""
        unit = self.scale / (scale * Single(self.pixels))
        return rounded(self.sums.astype(Single) * unit, zero)

    def moved(self, move: Move) -> "Mean":
        """Return the means in other places."""
        return replace(self, sums=move(self.sums.astype(np.float64)).astype(np.int64))


Lazy = Codes | Sums | Added | Mean
Value = Array | Lazy


def named(feeds: Feeds, name: str) -> dict[str, Array]:
    """Return what a file takes by the names of its inputs; ``name`` is that of a single one."""
    return {name: feeds} if isinstance(feeds, np.ndarray) else dict(feeds)


def count(feeds: Feeds) -> int:
    """Return how many inputs these are."""
    return len(next(iter(named(feeds, "").values())))


def some(feeds: Feeds, start: int, stop: int) -> Feeds:
    """Return inputs from one number to before another."""
    if isinstance(feeds, np.ndarray):
        return feeds[start:stop]
    return {name: values[start:stop] for name, values in feeds.items()}


def real(value: Value) -> Array:
    """Return what a value stands for, in float32 where it is no plain array."""
    return value if isinstance(value, np.ndarray) else value.real()


def rounded(values: Array, zero: Array) -> Array:
    """Return floats as the codes next to them, halves to even, within the type of ``zero``."""
    ends = np.iinfo(zero.dtype)
    offset = Single(zero)
    inside = np.clip(values, Single(ends.min) - offset, Single(ends.max) - offset)
    result: Array = (np.rint(inside) + offset).astype(zero.dtype)
    return result


def _added(left: Codes, right: Codes, scale: Array, zero: Array) -> Array:
    one, other = left.scale / scale, right.scale / scale
    rest = Single(zero) - (one * Single(left.zero) + other * Single(right.zero))
    total = _fused(left.values, one, _fused(right.values, other, rest))
    ends = np.iinfo(zero.dtype)
    return np.clip(np.rint(total), ends.min, ends.max).astype(zero.dtype)


def _fused(values: Array, factor: Array, rest: Array) -> Array:
    """Return values * factor + rest with one rounding to float32 at the end."""
    total = values.astype(np.float64) * np.float64(factor) + rest.astype(np.float64)
    return total.astype(Single)
