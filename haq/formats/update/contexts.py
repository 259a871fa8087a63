"""What the codes that are known say of the next ones: how they are coded, and with which table.

All numbers here are integers, so that every machine finds the same ones. ``b`` is what the base
predicts for a code, ``u`` the code less b, both in sixteenths of a step. Of each pass of a tensor
are computed::

    p  the prediction in sixteenths: b, plus u and b of nearby places of the kernel by coefficients
       in 1/256
    e  how far codes are from their p around: the mean distance in the same row times that in the
       same column over that of the tensor, and a little of that at the same kernel's known places;
       in the first pass over a tensor, what the sizes of b let expect

Up to 4 bits the code itself is the symbol and p belongs to the context; from 5 bits on the symbol
is the code less the rounded p, and what was rounded away belongs to the context. In both cases a
context stands for its mirror image too: where p (or what was rounded away) is negative, the symbol
is negated.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]

UNIT = 16
"""Parts of a step in which predictions are counted."""

ONE = 8
"""Bits behind the point of a coefficient."""

SMALL = 4
"""Up to so many bits the code itself is coded, with its prediction as context."""

AROUND = 24
"""What row and column weigh in e, where a place of the same kernel weighs 1."""

LARGEST = 2048
"""Sizes e from here on are in one class, as those are of which nothing is known."""


class Classes(NamedTuple):
    """How a context is counted: ``steps * class of e + class of p``.

    Attributes:
        of_size: Class of each size e from 0 to ``LARGEST``.
        steps: Classes of a prediction, or of what was rounded away of it.
    """

    of_size: Ints
    steps: int


HALF = 736
"""Contexts where the base is not exactly zero, and as many where it is."""

CONTEXTS = 2 * HALF


def _classes(ends: Sequence[int], steps: int) -> Classes:
    of_size = np.searchsorted(np.array(ends), np.arange(LARGEST + 1), side="right")
    return Classes(of_size.astype(np.int32), steps)


_FEW = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1024, 1448)
_MANY = (
    1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16, 19, 23, 27, 32, 38, 45, 54, 64, 76, 91, 108, 128, 152,
    181, 215, 256, 304, 362, 431, 512, 609, 724, 861, 1024, 1218, 1448, 1722,
)  # fmt: skip

SMALL_CLASSES, LARGE_CLASSES = _classes(_FEW, 32), _classes(_MANY, 16)
"""Up to ``SMALL`` bits, where predictions count in quarters of a step; and above, where what was
rounded away counts in eighths."""


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


def step_of(p: Ints, context: Ints, bits: int) -> Step:
    """Return how codes are coded whose predictions, and the rest of their contexts, are known.

    Args:
        p: In sixteenths.
        context: What sizes and zeros of the base say.
        bits: Of the codes.
    """
    top = 2 ** (bits - 1) - 1
    if bits <= SMALL:
        sign = 1 - 2 * (p < 0).astype(np.int32)
        context += np.minimum((np.abs(p) + 2) >> 2, SMALL_CLASSES.steps - 1)
        return Step(context, sign, np.zeros_like(p))
    shift = _clipped((p + UNIT // 2) >> 4, top)
    rest = _clipped(p - UNIT * shift, UNIT // 2)
    sign = 1 - 2 * (rest < 0).astype(np.int32)
    return Step(context + (np.abs(rest) >> 1), sign, shift)


def _clipped(values: Ints, most: int) -> Ints:
    # Much faster than np.clip, which looks up limits at every call.
    clipped: Ints = np.minimum(np.maximum(values, -most), most)
    return clipped


def symbols(step: Step, codes: Ints, bits: int, apart: bool) -> Ints:
    """Return the symbols, from 0 up to below 2**bits, of codes of so many bits.

    Args:
        step: How they are coded.
        codes: Of one pass.
        bits: Of them.
        apart: Whether zero has a symbol of its own, 0, and what would have it has that of zero.
    """
    half = 2 ** (bits - 1)
    values = (step.sign * (codes - step.shift) + half) & (2 * half - 1)
    return _swapped(values, step, half) if apart else values


def codes(step: Step, values: Ints, bits: int, apart: bool) -> Ints:
    """Return the codes of symbols: ``symbols`` backwards."""
    half = 2 ** (bits - 1)
    whole = _swapped(values, step, half) if apart else values
    codes: Ints = ((step.sign * (whole - half) + step.shift + half) & (2 * half - 1)) - half
    return codes


def _swapped(values: Ints, step: Step, half: int) -> Ints:
    """Return symbols with that of the code zero and 0 in each other's place."""
    zero = (half - step.sign * step.shift) & (2 * half - 1)
    swapped: Ints = np.where(values == zero, 0, np.where(values == 0, zero, values))
    return swapped
