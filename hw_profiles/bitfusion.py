"""BitFusion: an array whose units split into more and narrower multipliers, and waits for memory.

Cycles, traffic and energy of a layer are those of the best of all tilings (``tiling.py``), searched
once for each shape and then kept in memory and on disk. Fewer bits can take more cycles there,
since narrow weights are padded to fill the wider array; as narrow numbers may always be stored in
wider words, the cost of a layer is that of the cheapest pair at least as wide.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from typing import ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from haq.allocation.policy import Bits
from haq.errors import TargetError
from haq.hw_profiles import cache, tiling
from haq.hw_profiles.formula import (
    Ceilings,
    Constants,
    check_counts,
    check_not_negative,
    summed,
)
from haq.hw_profiles.planes import pair, planes
from haq.hw_profiles.tiling import Array, Conv, Energy, Work
from haq.network.layers import Layer

Costs = Mapping[str, NDArray[np.float64]]
"""Quantity to its value at each pair of bits: (weight - 1, activation - 1)."""


class Depthwise(NamedTuple):
    """A depthwise convolution over a batch, all its channels."""

    batch: int
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    out_size: tuple[int, int]


def shape(layer: Layer, batch: int) -> tuple[Conv | Depthwise, int]:
    """Return what one call of a layer becomes, and how often it is done for all its groups.

    A linear layer is a convolution of one pixel, its positions so many more images. The patches of
    a convolution that reads the network's input are laid out as rows first. Groups are done one
    after the other, but those of a depthwise convolution together.
    """
    if layer.kind == "linear":
        images = batch * layer.in_size[0] * layer.in_size[1]
        return Conv(images, layer.c_in, layer.c_out, (1, 1), (1, 1), (1, 1), False), 1
    place = (pair(layer.kernel), pair(layer.stride), pair(layer.out_size))
    if layer.kind == "depthwise":
        return Depthwise(batch, layer.c_out, *place), 1
    c_in, c_out = layer.c_in // layer.groups, layer.c_out // layer.groups
    return Conv(batch, c_in, c_out, *place, layer.reads_input), layer.groups


def depthwise(array: Array, layer: Depthwise, bits: Bits) -> Work:
    """Return the work of a depthwise convolution: channels along the columns, taps along the rows.

    Everything is moved once, behind the computing as far as that takes::

        busy = batch * ceil(channels / columns) * pixels * ceil(taps / (rows * products))

    Source: the original simulator has no depthwise convolutions; see the README of this room.
    """
    (height, width), (down, across) = layer.out_size, layer.stride
    taps, pixels = layer.kernel[0] * layer.kernel[1], layer.batch * height * width
    passes = _ceil_div(layer.channels, array.columns)
    busy = passes * pixels * _ceil_div(taps, array.rows * array.products(bits))

    seen = (layer.kernel[0] + (height - 1) * down) * (layer.kernel[1] + (width - 1) * across)
    acts = layer.batch * layer.channels * seen * bits.act
    weights = taps * layer.channels * bits.weight
    sums = pixels * passes * array.columns * array.sum_bits
    macs = taps * layer.channels * pixels
    outputs = sums + layer.channels * pixels * array.sum_bits
    return Work(
        busy=busy,
        stalled=max(0, _ceil_div(acts + weights + 2 * sums, array.dram_bits) - busy),
        weights_read=macs * bits.weight,
        weights_written=weights,
        acts_read=macs * bits.act,
        acts_written=acts,
        sums_read=outputs,
        sums_written=outputs,
        dram_read=acts + weights + sums,
        dram_written=sums,
    )


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@lru_cache(maxsize=4096)
def works(array: Array, energy: Energy, layer: Conv | Depthwise) -> Mapping[Bits, Work]:
    """Return the work of one layer at every pair of bits, from one bit to the widest.

    Convolutions come from the cache on disk if they were searched before.

    Raises:
        ValueError: Not even the smallest tile fits the buffers.
    """
    widths = range(1, array.most_bits + 1)
    pairs = [Bits(weight, act) for weight, act in product(widths, widths)]
    if isinstance(layer, Depthwise):
        return {bits: depthwise(array, layer, bits) for bits in pairs}

    def search() -> list[list[int]]:
        return [list(work) for work in tiling.search(array, energy, layer, pairs)]

    key = ["bitfusion", tiling.VERSION, array, energy, layer]
    rows = cache.computed_once(key, (len(pairs), len(Work._fields)), search)
    return {bits: Work(*row) for bits, row in zip(pairs, rows, strict=True)}


def envelope(costs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the least cost at the same or more bits of both operands.

    Args:
        costs: (weight - 1, activation - 1).

    >>> envelope(np.array([[4.0, 3.0], [2.0, 5.0]])).tolist()
    [[2.0, 3.0], [2.0, 5.0]]
    """
    least = np.minimum.accumulate(costs[::-1, ::-1], axis=0)
    return np.minimum.accumulate(least, axis=1)[::-1, ::-1]


@lru_cache(maxsize=4096)
def _costs(array: Array, energy: Energy, layer: Conv | Depthwise) -> tuple[Costs, Costs]:
    """Return the costs of one layer as simulated, and their envelopes."""
    side = (array.most_bits, array.most_bits)
    every = works(array, energy, layer).values()
    nanojoules = np.array(list(every)) @ energy.pj / 1000
    raw = {
        "latency": np.array([float(work.cycles) for work in every]).reshape(side),
        "energy": nanojoules.reshape(side),
    }
    return raw, {quantity: envelope(costs) for quantity, costs in raw.items()}


@dataclass(frozen=True)
class BitFusionFormula:
    """What layers cost on an array of fusion units.

    Attributes:
        array: The sizes behind the cycles.
        energy: The constants behind the energy.
        batch: Images computed together; every cost is that of the whole batch.
    """

    array: Array
    energy: Energy
    batch: int

    def cost(self, layer: Layer, bits: Bits) -> dict[str, float]:
        """Return the latency in cycles, a whole number, and the energy in nJ.

        Both are of all calls of the layer, for the whole batch, and never fall when bits rise: each
        is the least of ``raw`` over all pairs at least as wide, found for each quantity by itself.

        Raises:
            TargetError: The layer cannot be tiled.
        """
        return self._at(layer, bits, 1)

    def raw(self, layer: Layer, bits: Bits) -> dict[str, float]:
        """Return what the simulator says of exactly these bits, like ``cost``."""
        return self._at(layer, bits, 0)

    def work(self, layer: Layer, bits: Bits) -> Work:
        """Return cycles and traffic behind ``raw``, of all calls of the layer for the batch."""
        parts = [self._work(part, bits) for part in planes(layer)]
        return Work(*map(sum, zip(*parts, strict=True)))

    def _work(self, layer: Layer, bits: Bits) -> Work:
        one, groups = shape(layer, self.batch)
        times = groups * layer.calls
        with _naming(layer):
            counts = works(self.array, self.energy, one)[bits]
        return Work(*(times * count for count in counts))

    def ceilings(self, bits: Bits, clock_hz: float) -> Ceilings:
        """Return the rate of all fusion units, and that of the memory."""
        macs = self.array.rows * self.array.columns * self.array.products(bits) * clock_hz
        return Ceilings(macs, self.array.dram_bits / 8 * clock_hz)

    def _at(self, layer: Layer, bits: Bits, which: int) -> dict[str, float]:
        return summed(self._of_size(part, bits, which) for part in planes(layer))

    def _of_size(self, layer: Layer, bits: Bits, which: int) -> dict[str, float]:
        one, groups = shape(layer, self.batch)
        times, place = groups * layer.calls, (bits.weight - 1, bits.act - 1)
        with _naming(layer):
            costs = _costs(self.array, self.energy, one)[which]
        latency, energy = (float(costs[quantity][place]) for quantity in ("latency", "energy"))
        return {"latency": times * int(latency), "energy": times * energy}


@contextmanager
def _naming(layer: Layer) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        kernel = " x ".join(map(str, layer.kernel))
        raise TargetError(
            f"layer {layer.name!r}: the buffers of the array do not hold what one output needs "
            f"under its kernel of {kernel}; take a target with larger ones"
        ) from error


class BitFusion(Constants):
    """Constants of an array of fusion units."""

    gives: ClassVar[Mapping[str, str]] = {"latency": "cycles", "energy": "nJ"}

    type: Literal["bitfusion"]
    array: Array
    energy: Energy

    @model_validator(mode="after")
    def _possible(self) -> Self:
        check_counts("array", asdict(self.array))
        if self.array.fewest_bits > self.array.most_bits:
            raise ValueError("array.fewest_bits must not be more than array.most_bits")
        check_not_negative("energy", asdict(self.energy))
        return self

    def check(self, quantities: Collection[str], pairs: Collection[Bits]) -> None:
        """Say so if a fusion unit is narrower than the widest operand declared."""
        most, widest = self.array.most_bits, max(width for bits in pairs for width in bits)
        if widest > most:
            raise ValueError(f"array.most_bits is {most}, so {widest} must not be among the bits")

    def formula(self, clock_hz: float, batch: int) -> BitFusionFormula:
        """Return the formula for a batch of images; its costs are cycles, whatever the clock."""
        return BitFusionFormula(self.array, self.energy, batch)
