"""What every formula of costs has: constants in a profile, costs of a layer, and its ceilings."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from haq.allocation.policy import Bits
from haq.hw_profiles.schema import Strict
from haq.network.layers import Layer


class Ceilings(NamedTuple):
    """The two lines of a roofline: what the hardware could do at most.

    Attributes:
        macs_per_second: With every unit of the array busy, at some bits.
        bytes_per_second: Of all channels to the memory together.
    """

    macs_per_second: float
    bytes_per_second: float


class Formula(Protocol):
    """A model of the hardware for one batch size."""

    def cost(self, layer: Layer, bits: Bits) -> Mapping[str, float]:
        """Return the cost of all calls of the layer per quantity, in the profile's units."""
        ...

    def ceilings(self, bits: Bits, clock_hz: float) -> Ceilings | None:
        """Return the most multiply-accumulates and bytes a second; a clock in ns has no need.

        None where it is not known.
        """
        ...


CodesOf = Callable[[Layer, int], NDArray[np.int8]]
"""Codes of a layer's weights at a number of bits: (out, in of a group, …), whatever its kind."""


@runtime_checkable
class Encoding(Protocol):
    """A formula whose costs depend on the weights, as the hardware stores them encoded."""

    def of_network(self, codes: CodesOf) -> Formula:
        """Return the formula for a network's own weights."""
        ...


def summed(costs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the sums per quantity: whole numbers stay whole.

    >>> summed([{"latency": 3, "energy": 0.5}, {"latency": 4, "energy": 1.0}])
    {'latency': 7, 'energy': 1.5}
    """
    parts = list(costs)
    return {quantity: sum(part[quantity] for part in parts) for quantity in parts[0]}


class Constants(Strict):
    """The constants of a formula, as they stand in a profile under "model"."""

    gives: ClassVar[Mapping[str, str]]
    """The quantities that the formula knows, and their units."""

    def formula(self, clock_hz: float, batch: int) -> Formula:
        """Return the formula for a batch of images; a clock of 0 where none is declared."""
        raise NotImplementedError

    def check(self, quantities: Collection[str], pairs: Collection[Bits]) -> None:
        """Say so if a declared quantity or one of the declared pairs of bits has no cost.

        Raises:
            ValueError: The sentence for the user.
        """


def check_not_negative(what: str, constants: Mapping[str, float]) -> None:
    """Say so if one of the constants is negative.

    Raises:
        ValueError: The sentence for the user.
    """
    for field, value in constants.items():
        if value < 0:
            raise ValueError(f"{what}.{field} must not be negative, and is {value}")


def check_counts(what: str, constants: Mapping[str, int]) -> None:
    """Say so if one of the constants is less than 1.

    Raises:
        ValueError: The sentence for the user.
    """
    for field, value in constants.items():
        if value < 1:
            raise ValueError(f"{what}.{field} must be at least 1, not {value}")
