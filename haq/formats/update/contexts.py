"""What the codes that are known say of the next ones: how they are coded, and with which table.

All numbers here are integers, so that every machine finds the same ones. ``u`` is a code less what
the base predicts for it, in sixteenths of a step. Of each pass of a tensor are computed::

    p  the prediction in sixteenths: the base's, plus u of nearby places of the kernel by
       coefficients in 1/64
    e  how large u is around: its mean size at the known places of the same kernel, in the same
       row and in the same column, in sixteenths

Up to 4 bits the code itself is the symbol and p belongs to the context; from 5 bits on the symbol
is the code less the rounded p, and what was rounded away belongs to the context. In both cases a
context stands for its mirror image too: where p (or what was rounded away) is negative, the symbol
is negated.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haq.formats.update.order import Pass, passes, planes

Ints = NDArray[np.int32]

UNIT = 16
"""Parts of a step in which predictions are counted."""

ONE = 6
"""Bits behind the point of a coefficient."""

SMALL = 4
"""Up to so many bits the code itself is coded, with its prediction as context."""

STEPS = 32
"""Classes of a prediction in a context: quarters of a step from 0 up."""

_SIZES = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1024, 1448)
SIZES = len(_SIZES) + 2
"""Classes of the size e in a context; the last is that of passes before which nothing is known."""

CONTEXTS = 2 * SIZES * STEPS

_CLASS = np.searchsorted(np.array(_SIZES), np.arange(2049), side="right").astype(np.int32)


class Step(NamedTuple):
    """How the codes of one pass are coded, each array (rows, columns) of the pass.

    Attributes:
        context: From 0 up to ``CONTEXTS``.
        sign: 1 or -1.
        shift: What is taken from the code before it is a symbol.
    """

    context: Ints
    sign: Ints
    shift: Ints


class Field:
    """What is known of a tensor, while its codes become known pass by pass.

    Args:
        shape: Of the tensor.
        bits: Of its codes.
        coefficients: As many as ``order.coefficients_of`` says, in 1/64.
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
        self.size = planes(shape)
        self.passes = passes(tuple(shape))
        self.top = 2 ** (bits - 1) - 1
        self.small = bits <= SMALL
        self.coefficients = iter(coefficients)
        self.base, self.zero = base, zero
        self.u = np.zeros(self.size, np.int32)
        _, rows, columns = self.size
        self.own = np.zeros((rows, columns), np.int32)
        self.of_row = np.zeros((rows, 1), np.int64)
        self.of_column = np.zeros((1, columns), np.int64)
        self.in_row = np.zeros((rows, 1), np.int64)
        self.in_column = np.zeros((1, columns), np.int64)
        self.total = self.count = 0  # of u, and of codes that are known
        self.known = 0  # planes

    def step(self, one: Pass) -> Step:
        """Return how the codes of the next pass are coded."""
        p = self.predicted(one)
        if self.base is not None:
            p = p + self.base[one.part]
        context = self._sizes(one) * STEPS
        if self.zero is not None:
            context += self.zero[one.part] * np.int32(SIZES * STEPS)
        if self.small:
            sign = 1 - 2 * (p < 0).astype(np.int32)
            context += np.minimum((np.abs(p) + 2) >> 2, STEPS - 1)
            return Step(context, sign, np.zeros_like(p))
        shift = _clipped((p + UNIT // 2) >> 4, self.top)
        rest = _clipped(p - UNIT * shift, UNIT // 2)
        sign = 1 - 2 * (rest < 0).astype(np.int32)
        return Step(context + (np.abs(rest) >> 1), sign, shift)

    def predicted(self, one: Pass) -> Ints:
        """Return what the known places of the kernel say of u."""
        p = np.zeros(self.own[one.rows, one.columns].shape, np.int32)
        for plane in one.near:
            coefficient = next(self.coefficients, 0)
            if coefficient:
                p += self.u[plane] * np.int32(coefficient)
        return p >> ONE if one.near else p

    def _sizes(self, one: Pass) -> Ints:
        own = self.own[one.rows, one.columns]
        if not self.count:
            return np.full(own.shape, SIZES - 1, np.int32)
        mean = self.total // self.count
        row = _mean(self.of_row, self.in_row, mean)[one.rows]
        column = _mean(self.of_column, self.in_column, mean)[:, one.columns]
        e = (2 * (row + column) + own) // (self.known + 4)
        sizes: Ints = _CLASS[np.minimum(e, len(_CLASS) - 1)]
        return sizes

    def learn(self, one: Pass, codes: Ints) -> None:
        """Take in the codes of the pass that ``step`` was asked for."""
        u = codes * np.int32(UNIT)
        if self.base is not None:
            u -= self.base[one.part]
        self.u[one.part] = u
        size = np.abs(u)
        of_row = size.sum(1, dtype=np.int64)
        self.of_row[one.rows, 0] += of_row
        self.of_column[0, one.columns] += size.sum(0, dtype=np.int64)
        self.in_row[one.rows] += size.shape[1]
        self.in_column[:, one.columns] += size.shape[0]
        self.total += int(of_row.sum())
        self.count += size.size
        if one.stride == 1:
            self.own += size
            self.known += 1


def _clipped(values: Ints, most: int) -> Ints:
    # Much faster than np.clip, which looks up limits at every call.
    clipped: Ints = np.minimum(np.maximum(values, -most), most)
    return clipped


def _mean(total: NDArray[np.int64], count: NDArray[np.int64], otherwise: int) -> Ints:
    means = np.where(count > 0, total // np.maximum(count, 1), otherwise)
    return means.astype(np.int32)


def symbols(step: Step, codes: Ints, top: int) -> Ints:
    """Return the symbols, from 0 to 2 * top + 1, of codes, the lowest of which is -top - 1."""
    return (step.sign * (codes - step.shift) + (top + 1)) & (2 * top + 1)


def codes(step: Step, values: Ints, top: int) -> Ints:
    """Return the codes of symbols: ``symbols`` backwards."""
    half = top + 1
    return ((step.sign * (values - half) + step.shift + half) & (2 * top + 1)) - half
