"""What a target answers: a cost, how it was found and how far it can be trusted."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

from haq.allocation.policy import Bits
from haq.hw_profiles.formula import summed
from haq.hw_profiles.profile import Profile
from haq.hw_profiles.schema import Provenance
from haq.network.layers import Layer

Method = Literal["exact", "batch", "rounded up", "interpolated", "shape", "model"]
"""How an answer was found, from the row itself to the least like it."""

METHODS: Sequence[Method] = get_args(Method)

AT_BEST: Mapping[Method, Provenance] = {
    "exact": "measured",
    "batch": "modelled",
    "rounded up": "measured",
    "interpolated": "modelled",
    "shape": "inferred",
    "model": "modelled",
}
"""How far an answer can be trusted at best, beside a table."""


class CostAnswer(NamedTuple):
    """A cost, how it was found and how far it can be trusted."""

    value: float
    method: Method
    provenance: Provenance


@runtime_checkable
class Explained(Protocol):
    """A target that can say where its costs come from."""

    profile: Profile

    def how(self, layer: Layer, bits: Bits) -> Mapping[str, CostAnswer]:
        """Return, per quantity, what ``cost`` returns and how it is known."""
        ...


class Costs(NamedTuple):
    """Costs per quantity, and how they were found."""

    by_quantity: Mapping[str, float]
    method: Method

    def times(self, factor: float) -> "Costs":
        """Return the costs of so many times the work."""
        scaled = {quantity: value * factor for quantity, value in self.by_quantity.items()}
        return Costs(scaled, self.method)


def total(parts: Sequence[Costs]) -> Costs:
    """Return the sum of some costs, found as the one that is least like its row."""
    by_quantity = summed(part.by_quantity for part in parts)
    return Costs(by_quantity, least_like(part.method for part in parts))


def least_like(methods: Iterable[Method]) -> Method:
    """Return the method that says least of the row itself.

    >>> least_like(["exact", "shape", "batch"])
    'shape'
    """
    return max(methods, key=METHODS.index)
