"""A measured runtime as a target: rows for the kernels, and what a change of precision costs.

The latency of a network is predicted as::

    sum over layers of row(layer, kernel)
      + to_quantized * values that pass from a float layer to a quantized one
      + to_float * values that pass from a quantized layer to a float one

where the prices of a value may be those of its tensor.

A layer has three kernels: float, integer, and integer with a Clip where activations have fewer than
8 bits. Weights of fewer bits run in the kernel of 8: the runtime gains nothing from them, so
neither does the prediction. Linear layers may have more: products with weights in groups, whose
kernels take codes of 2, 4 or 8 bits, and integer products of activations that are rounded as they
run. What such a layer reads and gives out is float.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from haq.allocation.policy import CODEBOOK, FLOAT, Bits, Policy
from haq.hw_profiles.schema import Name, NotNegative, Positive, Strict, Whole
from haq.network.layers import Kind

FLOATS = Bits(FLOAT, FLOAT)

INTEGERS = Bits(8, 8)

CLIPPED = Bits(8, 7)
"""Stands for all activations of fewer than 8 bits: their codes have 8 bits, and are clipped."""

STANDARD = Bits(7, 8)
"""The pair of most bits whose integer kernel is exact on every x86 CPU: it stands for the kernel
where one is measured."""

GROUP_CODES = (2, 4, 8)
"""Bits of a code in the kernels of weights in groups."""

SIZE_NOT_TIME = "fewer than 8 bits of weights run in the kernels of 8: they gain size, not time"
"""What is true of integer kernels in ONNX Runtime and TensorRT; weights in groups have others."""

_ADDS_IN_16_BITS = 15
"""Most weight and activation bits in sum whose products no x86 kernel saturates: those without VNNI
add two neighbouring products in 16 bits, and 2 * 255 * 63 and 2 * 127 * 127 are below 2**15."""


def kernel(bits: Bits) -> Bits:
    """Return the kernel that runs a layer at these bits.

    >>> kernel(Bits(4, 8)), kernel(Bits(4, 3))
    (Bits(weight=8, act=8), Bits(weight=8, act=7))
    >>> print(kernel(Bits(3, 32, 32)), kernel(Bits(5, 32, 64, "token")))
    w4g32 w8g64t8
    >>> print(kernel(Bits(6, 32, 0, "token")))
    w8t8

    A codebook's values are floats once the file is loaded.

    >>> print(kernel(Bits(4, 32, CODEBOOK)))
    fp32
    """
    if bits.block == CODEBOOK:
        return FLOATS
    if bits.block:
        width = next(width for width in GROUP_CODES if width >= bits.weight)
        return Bits(width, FLOAT, bits.block, bits.dynamic)
    if bits.dynamic:
        return Bits(INTEGERS.weight, FLOAT, 0, bits.dynamic)
    return FLOATS if bits.floats else INTEGERS if bits.act == INTEGERS.act else CLIPPED


def measured_as(ran: Bits) -> Bits:
    """Return the bits at which a kernel is measured, which are exact on every x86 CPU.

    >>> print(measured_as(INTEGERS), measured_as(Bits(8, 32, 0, "token")), measured_as(FLOATS))
    w7a8 w7t8 fp32
    """
    if ran.dynamic and not ran.block:
        return Bits(STANDARD.weight, FLOAT, 0, ran.dynamic)
    return STANDARD if ran == INTEGERS else ran


def exact_everywhere(kind: Kind, bits: Bits) -> bool:
    """Return whether the integer kernel of such a layer gives the exact sums on every x86 CPU.

    Depthwise convolutions have a kernel that adds in 32 bits.

    >>> exact_everywhere("conv", Bits(8, 8)), exact_everywhere("conv", Bits(7, 8))
    (False, True)
    """
    return (
        bool(bits.block)  # signed codes: 2 * 127 * 128 is below 2**15
        or FLOAT in (bits.weight, bits.multiplied)
        or kind == "depthwise"
        or bits.weight + bits.multiplied <= _ADDS_IN_16_BITS
    )


class Validation(Strict):
    """How well predictions of policies not used for the fit came out, measured end to end."""

    policies: Whole
    mean_error: NotNegative  # mean of |predicted / measured - 1|
    worst_error: NotNegative
    rank_correlation: Annotated[float, Field(ge=-1, le=1)]  # Spearman's


class Passing(Strict):
    """A tensor that the kernel of one layer hands to that of another."""

    producer: Name
    consumer: Name
    values: Whole  # of one image


class Interval(Strict):
    """A latency of a whole network: the 10th percentile and its 95 % bootstrap interval."""

    value: Positive
    low: Positive
    high: Positive
    samples: Whole
    contended: Annotated[float, Field(ge=0, le=1)]  # share of the samples that were interrupted


class Changes(Strict):
    """What a change of precision costs between two layers."""

    to_quantized: NotNegative  # cost of one element on an edge from float to quantized
    to_float: NotNegative  # and from quantized to float
    of_tensors: tuple[tuple[NotNegative, NotNegative], ...] = ()  # the same two of each edge

    def prices(self, place: int) -> tuple[float, float]:
        """Return what one element of an edge costs when it becomes quantized, and float."""
        return self.of_tensors[place] if self.of_tensors else (self.to_quantized, self.to_float)


class Between(Changes):
    """What rows of a table cannot say: the costs between layers, and the check."""

    tensors: tuple[Passing, ...] = ()  # the edges
    fitted_on: Whole | None = None  # mixed policies behind the two costs of an element
    validation: Validation


class MeasuredEnergy(Changes):
    """What rows cannot say of energy: the costs between layers, the networks, and the check."""

    networks: Mapping[str, Positive]  # of one precision
    idle_watts: NotNegative  # taken off; the mean
    spread: NotNegative  # largest less smallest window of a network, as a share; the worst
    fitted_on: Whole
    validation: Validation


class Measured(Between):
    """A runtime on this machine: its kernels are rows of the profile's table, by name and shape."""

    type: Literal["measured"]
    networks: Mapping[str, Interval] = {}  # of one precision, as they were measured
    energy: MeasuredEnergy | None = None


class OwnDevice(Between):
    """A device of the user's, whose layers are rows at each of their bits, by shape."""

    type: Literal["own-device"]


class Crossings(NamedTuple):
    """How many values pass from float to quantized layers of a network, and the other way."""

    to_quantized: int
    to_float: int


def crossings(tensors: Sequence[Passing], policy: Policy) -> Crossings:
    """Return the values of one image that change their precision under a policy."""
    into = back = 0
    for tensor in tensors:
        before, after = (policy[name].floats for name in (tensor.producer, tensor.consumer))
        into += tensor.values * (before and not after)
        back += tensor.values * (after and not before)
    return Crossings(into, back)
