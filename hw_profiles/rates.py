"""Processors known by their rates: multiply-accumulates a cycle at each pair of bit-widths.

It is the model of a core with packed operands, whose inner loop decides what a layer takes: how
many operands stand in a word, and what unpacking them costs. Nothing else is counted.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from haq.allocation.policy import Bits
from haq.hw_profiles.formula import Ceilings, Constants
from haq.hw_profiles.planes import products
from haq.hw_profiles.schema import Positive, Strict, Width
from haq.network.layers import Layer


class Rate(Strict):
    """How many multiply-accumulates a cycle there are at one pair of bit-widths."""

    weight: Width
    act: Width
    macs_per_cycle: Positive


@dataclass(frozen=True)
class RatesFormula:
    """What layers cost on a processor for a batch of images."""

    rates: Mapping[Bits, float]
    joules_per_cycle: float | None
    batch: int

    def cost(self, layer: Layer, bits: Bits) -> dict[str, float]:
        """Return the latency in cycles and, with a power, the energy in nJ, for the batch.

        Both are of all calls of the layer::

            latency = batch * MACs / MACs a cycle at these bits
            energy = latency * watts / clock
        """
        cycles = self.batch * products(layer) / self.rates[bits]
        costs = {"latency": cycles}
        if self.joules_per_cycle is not None:
            costs["energy"] = cycles * self.joules_per_cycle * 1e9
        return costs

    def ceilings(self, bits: Bits, clock_hz: float) -> Ceilings | None:
        """Return None: the rates say nothing of the memory."""
        return None


class Rates(Constants):
    """The rates of a processor, and the power that it takes."""

    gives: ClassVar[Mapping[str, str]] = {"latency": "cycles", "energy": "nJ"}

    type: Literal["rates"]
    rates: Annotated[tuple[Rate, ...], Field(min_length=1)]
    watts: Positive | None = None

    @model_validator(mode="after")
    def _each_pair_once(self) -> Self:
        pairs = [(rate.weight, rate.act) for rate in self.rates]
        for weight, act in pairs:
            if pairs.count((weight, act)) > 1:
                raise ValueError(f"rates: w{weight}a{act} stands there twice")
        return self

    def check(self, quantities: Collection[str], pairs: Collection[Bits]) -> None:
        """Say so if a declared pair has no rate, or energy is declared without a power."""
        known = {Bits(rate.weight, rate.act) for rate in self.rates}
        for bits in sorted({*pairs} - known):
            raise ValueError(f"rates: there is none for {bits}, which the bits declare")
        if "energy" in quantities and self.watts is None:
            raise ValueError("energy needs watts, the power of the processor")

    def formula(self, clock_hz: float, batch: int) -> RatesFormula:
        """Return the formula for a batch of images."""
        rates = {Bits(rate.weight, rate.act): rate.macs_per_cycle for rate in self.rates}
        joules = None if self.watts is None else self.watts / clock_hz
        return RatesFormula(rates, joules, batch)
