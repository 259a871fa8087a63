"""What is known of a tensor, while its codes become known pass by pass.

Sums are taken in float64 by matrix products, which are fast, of whole numbers so small that every
sum is one exactly: every machine has the same ones.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from haq.formats.update.contexts import (
    AROUND,
    HALF,
    LARGE_CLASSES,
    LARGEST,
    ONE,
    SMALL,
    SMALL_CLASSES,
    UNIT,
    Ints,
    Step,
    step_of,
)
from haq.formats.update.order import Pass, passes, planes

Exact = NDArray[np.float64]
"""Whole numbers, of magnitudes below 2**53."""


class Field:
    """What is known of a tensor.

    Args:
        shape: Of the tensor.
        bits: Of its codes.
        coefficients: As many as ``order.coefficients_of`` says, in 1/256; none for zeros.
        base: What the base predicts, in sixteenths of a step (K, out, in); None without one.
        zero: Where the base is exactly zero (K, out, in).
    """

    def __init__(
        self,
        shape: Sequence[int],
        bits: int,
        coefficients: Sequence[int] = (),
        base: Ints | None = None,
        zero: NDArray[np.bool_] | None = None,
    ) -> None:
        self.passes = passes(tuple(shape))
        self.bits, self.base, self.zero = bits, base, zero
        self.classes = SMALL_CLASSES if bits <= SMALL else LARGE_CLASSES
        size = planes(shape)
        self.near, around = _matrices(self.passes, size[0], coefficients, base is not None)
        self.u: Exact = np.zeros((size[0], size[1] * size[2]))
        self.prior = None if base is None else _prior(around, base)
        self.sizes = _Sizes(size, base)
        self.p: Ints = np.zeros((0, 0), np.int32)

    def step(self, one: Pass) -> Step:
        """Return how the codes of the next pass are coded."""
        e = self.sizes.around(one)
        shape = self.sizes.own[one.rows, one.columns].shape
        self.p = self._predicted(one, shape)
        context = self.classes.of_size[e] * np.int32(self.classes.steps)
        if self.zero is not None:
            context += self.zero[one.part] * np.int32(HALF)
        return step_of(self.p, context, self.bits)

    def _predicted(self, one: Pass, shape: tuple[int, ...]) -> Ints:
        sums: Exact | None = None
        if one.near:
            sums = (self.near[one.plane] @ self.u).reshape(shape)
        if self.prior is not None:
            prior = self.prior[one.part]
            sums = prior if sums is None else sums + prior
        if sums is None:
            return np.zeros(shape, np.int32)
        p: Ints = sums.astype(np.int32) >> ONE
        return p

    def learn(self, one: Pass, codes: Ints) -> None:
        """Take in the codes of the pass that ``step`` was asked for."""
        whole = codes * np.int32(UNIT)
        if one.stride == 1:  # others predict nothing
            u = whole if self.base is None else whole - self.base[one.part]
            self.u[one.plane] = u.ravel()
        self.sizes.add(one, np.abs(whole - self.p).astype(np.float64))


def _matrices(
    every: Sequence[Pass], places: int, coefficients: Sequence[int], based: bool
) -> tuple[Exact, Exact]:
    """Return with what each plane (rows) is predicted from planes known, and from the base's."""
    near, around = np.zeros((places, places)), np.zeros((places, places))
    taken = 0
    for one in every:
        if one.stride > 1:
            taken = 0  # passes over one plane share their coefficients
        for matrix, planes_ in ((near, one.near), (around, one.around if based else ())):
            some = coefficients[taken : taken + len(planes_)]
            matrix[one.plane, list(planes_[: len(some)])] = some
            taken += len(planes_)
    return near, around


def _prior(around: Exact, base: Ints) -> Exact:
    """Return what the base says of each code, in 1/256 of a sixteenth."""
    flat = base.reshape(len(base), -1).astype(np.float64)
    if around.any():
        flat = around @ flat + flat * 2**ONE
    else:
        flat *= 2**ONE
    return flat.reshape(base.shape)


class _Sizes:
    """How far codes that are known are from their predictions, in rows, columns and kernels."""

    def __init__(self, size: tuple[int, int, int], base: Ints | None) -> None:
        _, rows, columns = size
        self.base = base
        self.own: Exact = np.zeros((rows, columns))
        self.of_row, self.of_column = np.zeros(rows), np.zeros(columns)
        self.in_row, self.in_column = np.zeros(rows, np.int64), np.zeros(columns, np.int64)
        self.total = self.count = self.known = 0  # of the tensor; and planes

    def around(self, one: Pass) -> NDArray[np.int64]:
        """Return the size e, at most ``LARGEST``, for each code of a pass."""
        if self.count:
            mean = self.total // self.count
            row = _mean(self.of_row[one.rows], self.in_row[one.rows], mean)
            column = _mean(self.of_column[one.columns], self.in_column[one.columns], mean)
            e = AROUND * (row[:, None] * column // max(mean, 1))
            e += self.own[one.rows, one.columns].astype(np.int64)
            e //= self.known + AROUND
        elif self.base is not None:
            e = _expected(self.base)[one.rows, one.columns]
        else:
            e = np.full(self.own[one.rows, one.columns].shape, LARGEST)
        most: NDArray[np.int64] = np.minimum(e, LARGEST)
        return most

    def add(self, one: Pass, size: Exact) -> None:
        """Take in how far the codes of a pass are from their predictions."""
        of_row = size @ np.ones(size.shape[1])
        self.of_row[one.rows] += of_row
        self.of_column[one.columns] += np.ones(size.shape[0]) @ size
        self.in_row[one.rows] += size.shape[1]
        self.in_column[one.columns] += size.shape[0]
        self.total += int(of_row.sum())
        self.count += size.size
        if one.stride == 1:
            self.own += size
            self.known += 1


def _mean(total: Exact, count: NDArray[np.int64], otherwise: int) -> NDArray[np.int64]:
    means = total.astype(np.int64) // np.maximum(count, 1)
    return np.where(count > 0, means, otherwise)


def _expected(base: Ints) -> NDArray[np.int64]:
    """Return what the base's sizes say of how far codes are from their predictions."""
    places, rows, columns = base.shape
    size = np.abs(base).sum(0, dtype=np.int64)
    of_row = size.sum(1, keepdims=True) // (places * columns)
    of_column = size.sum(0, keepdims=True) // (places * rows)
    return np.asarray((3 * (size // places) + of_row + of_column) >> 4)
