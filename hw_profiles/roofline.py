"""Rooflines: a layer takes as long as its arithmetic or its traffic, whichever takes longer.

Nothing is tiled, padded or moved twice, so a real machine of the same sizes is slower. It is the
model to take where nothing but the peak rate and the bandwidth of a machine is known.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from haq.allocation.policy import Bits
from haq.hw_profiles.formula import Ceilings, Constants, check_not_negative, summed
from haq.hw_profiles.planes import products
from haq.network.layers import Layer


@dataclass(frozen=True)
class Machine:
    """The limits of a machine, and the energy of what it does.

    Attributes:
        macs_per_second: Multiply-accumulates of 8 by 8 bits at full use.
        bytes_per_second: To and from memory together.
        out_bits: Of an output in memory, whatever its reader then reads.
        mac_pj: The product of 8 by 8 bits.
        add_pj: Adding it to the sum.
        weight_pj: Reading one bit of a weight from the chip's memory for one product.
        act_pj: The same for an activation.
        dram_pj: Moving one bit to or from memory.
    """

    macs_per_second: float
    bytes_per_second: float
    out_bits: int
    mac_pj: float
    add_pj: float
    weight_pj: float
    act_pj: float
    dram_pj: float

    def peak(self, bits: Bits) -> float:
        """Return the multiply-accumulates a second at such bits: half the bits, twice the rate."""
        return self.macs_per_second / share(bits)


def share(bits: Bits) -> float:
    """Return the work of one product as a part of one of 8 by 8 bits.

    >>> share(Bits(4, 8))
    0.5
    """
    return bits.weight * bits.act / 64


@dataclass(frozen=True)
class RooflineFormula:
    """What layers cost on a machine for a batch of images."""

    machine: Machine
    batch: int

    def cost(self, layer: Layer, bits: Bits) -> dict[str, float]:
        """Return the latency in ns and the energy in nJ, of all calls of the layer for the batch.

        With one product for each multiply-accumulate, and bits moved those of every weight once,
        every input once and every output once::

            latency = max(products / peak(bits), bits moved / (8 * bytes_per_second))
            energy = products * (mac_pj * weight bits * act bits / 64 + add_pj
                                 + weight_pj * weight bits + act_pj * act bits)
                     + dram_pj * bits moved

        Source: Williams et al., "Roofline", CACM 52(4), 2009, for the latency.
        """
        return summed(self._of_size(part, bits) for part in layer.by_size())

    def _of_size(self, layer: Layer, bits: Bits) -> dict[str, float]:
        machine = self.machine
        taps = layer.c_in // layer.groups * prod(layer.kernel)
        outputs = self.batch * layer.c_out * prod(layer.out_size)
        inputs = self.batch * layer.c_in * prod(layer.in_size)
        multiplied = self.batch * products(layer)
        moved = layer.calls * (
            layer.c_out * taps * bits.weight + inputs * bits.act + outputs * machine.out_bits
        )
        seconds = max(multiplied / machine.peak(bits), moved / (8 * machine.bytes_per_second))
        product_pj = machine.mac_pj * share(bits) + machine.add_pj
        product_pj += machine.weight_pj * bits.weight + machine.act_pj * bits.act
        picojoules = multiplied * product_pj + machine.dram_pj * moved
        return {"latency": seconds * 1e9, "energy": picojoules / 1000}

    def ceilings(self, bits: Bits, clock_hz: float) -> Ceilings:
        """Return the two limits of the machine, whatever its clock."""
        return Ceilings(self.machine.peak(bits), self.machine.bytes_per_second)


class Roofline(Constants):
    """Constants of a roofline."""

    gives: ClassVar[Mapping[str, str]] = {"latency": "ns", "energy": "nJ"}

    type: Literal["roofline"]
    machine: Machine

    @model_validator(mode="after")
    def _possible(self) -> Self:
        limits = asdict(self.machine)
        for field in ("macs_per_second", "bytes_per_second"):
            if not limits[field] > 0:
                raise ValueError(f"machine.{field} must be more than 0, not {limits[field]}")
        check_not_negative("machine", limits)
        return self

    def formula(self, clock_hz: float, batch: int) -> RooflineFormula:
        """Return the formula for a batch of images; its costs are times, whatever the clock."""
        return RooflineFormula(self.machine, batch)
