"""In which order the codes of a tensor are coded: in passes, from which later ones learn.

A tensor (out, in, *kernel) is seen as planes (K, out, in), one a place of the kernel. Each plane is
a pass, the middle of the kernel first. Where there is one plane only, every third row and every
third column of it are a pass, nine in all.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 8
"""From how many other places of the kernel, at most, one is predicted."""

KERNEL = 256
"""Places of a kernel at most; the dimensions of larger ones count as columns."""

STRIDE = 3
"""Rows and columns between those of one pass, where there is one plane."""


class Pass(NamedTuple):
    """Some codes of a tensor: a plane, and of it the rows and columns from here on by a stride.

    Attributes:
        plane: The place of the kernel.
        row: The first row.
        column: The first column.
        stride: Between rows, and between columns.
        near: Planes that are known and that this one is predicted from, the nearest first.
        around: Planes of the base that it is predicted from: its own, then the nearest ones.
    """

    plane: int
    row: int = 0
    column: int = 0
    stride: int = 1
    near: tuple[int, ...] = ()
    around: tuple[int, ...] = (0,)

    @property
    def rows(self) -> slice:
        """Its rows."""
        return slice(self.row, None, self.stride)

    @property
    def columns(self) -> slice:
        """Its columns."""
        return slice(self.column, None, self.stride)

    @property
    def part(self) -> tuple[int, slice, slice]:
        """Where its codes lie in (K, out, in)."""
        return self.plane, self.rows, self.columns


def planes(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return (K, out, in) for the shape of a tensor.

    >>> planes((64, 32, 3, 3)), planes((10, 64)), planes((5,)), planes(())
    ((9, 64, 32), (1, 10, 64), (1, 1, 5), (1, 1, 1))
    """
    if len(shape) < 2:
        return 1, 1, math.prod(shape)
    places = math.prod(shape[2:])
    if places > KERNEL:
        return 1, shape[0], shape[1] * places
    return places, shape[0], shape[1]


def to_planes(values: NDArray[np.generic], shape: Sequence[int]) -> NDArray[np.generic]:
    """Return values (n,) in the order of the tensor as (K, out, in)."""
    places, rows, columns = planes(shape)
    return np.ascontiguousarray(values.reshape(rows, columns, places).transpose(2, 0, 1))


def from_planes(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return values (K, out, in) as (n,) in the order of the tensor."""
    return np.ascontiguousarray(values.transpose(1, 2, 0)).ravel()


@lru_cache(maxsize=256)
def passes(shape: tuple[int, ...]) -> tuple[Pass, ...]:
    """Return the passes of a tensor, in order.

    >>> [one.plane for one in passes((8, 8, 3, 3))]
    [4, 1, 3, 5, 7, 0, 2, 6, 8]
    """
    places, rows, columns = planes(shape)
    if places == 1:
        return tuple(
            Pass(0, row, column, STRIDE)
            for row in range(min(STRIDE, rows))
            for column in range(min(STRIDE, columns))
        )
    kernel = shape[2:]
    # Twice the distance from the middle, so that it is whole.
    where = 2 * np.indices(kernel).reshape(len(kernel), -1).T - (np.array(kernel) - 1)
    order = np.argsort((where**2).sum(1), kind="stable").tolist()
    return tuple(
        Pass(
            plane,
            near=_nearest(where, plane, order[:at], NEIGHBOURS),
            around=_nearest(where, plane, order, NEIGHBOURS + 1),
        )
        for at, plane in enumerate(order)
    )


def _nearest(
    where: NDArray[np.int64], plane: int, known: Sequence[int], most: int
) -> tuple[int, ...]:
    far = ((where[list(known)] - where[plane]) ** 2).sum(1)
    return tuple(known[place] for place in np.argsort(far, kind="stable")[:most])


def coefficients_of(kernel: Sequence[int], based: bool) -> int:
    """Return how many coefficients predict the planes of tensors with a kernel.

    Args:
        kernel: Its shape.
        based: Whether they are predicted from a base, too.

    >>> coefficients_of((3, 3), False), coefficients_of((3, 3), True), coefficients_of((), False)
    (36, 117, 0)
    """
    every = passes((1, 1, *kernel))  # passes over one plane share their coefficients
    return sum(len(one.near) + based * len(one.around) for one in every)
