"""The target of a profile: what a layer costs, and how that is known.

A cost comes from the table where some row answers, else from the formula.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import ClassVar, Self

from haq.allocation.policy import FLOAT, Bits
from haq.errors import TargetError
from haq.hw_profiles.answers import AT_BEST, CostAnswer, Costs, Method, total
from haq.hw_profiles.between import ByBits, costs_by_bits
from haq.hw_profiles.formula import CodesOf, Encoding, Formula
from haq.hw_profiles.lookup import TableLookup
from haq.hw_profiles.pairs import listed
from haq.hw_profiles.profile import Profile
from haq.hw_profiles.rows import Cells
from haq.hw_profiles.schema import Provenance, weakest
from haq.network.layers import Kind, Layer


@dataclass  # not frozen: the attributes of the Target protocol can be set
class ProfileTarget:
    """A profile at one batch size, as a target of the search.

    Attributes:
        profile: What is known.
        batch: Images computed together; every cost is that of the whole batch.
        formula: The profile's model for this batch; None where it has only a table.
        name: The profile's.
        units: Quantity to the unit of ``cost``.
        si: Quantity to the factor that turns ``cost`` into seconds or joules.
    """

    profile: Profile
    batch: int
    formula: Formula | None = None
    name: str = field(init=False)
    units: Mapping[str, str] = field(init=False)
    si: Mapping[str, float] = field(init=False)
    counts_floats: ClassVar[bool] = False
    """Whether what stays float around the layers is in the costs of the layers."""
    _offered: dict[Layer, tuple[Bits, ...]] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.name, self.units, self.si = self.profile.name, self.profile.units, self.profile.si
        check_batch(self._table)
        if self.formula is None:
            check_declared(self._table)

    @cached_property
    def _table(self) -> TableLookup:
        return TableLookup(self.profile, self.batch, self.by_bits())

    @property
    def encodes(self) -> bool:
        """Whether costs depend on the values of the weights: see ``of_network``."""
        return isinstance(self.formula, Encoding)

    def of_network(self, codes: CodesOf) -> Self:
        """Return the target for a network's own weights; itself where these do not matter."""
        if not isinstance(self.formula, Encoding):
            return self
        return replace(self, formula=self.formula.of_network(codes))

    def by_bits(self) -> ByBits:
        """Return what a pair costs by the rows of one layer."""
        return costs_by_bits(self.profile)

    def offers(self, kind: Kind, bits: Bits) -> bool:
        """Return whether layers of a kind may have a pair that has a cost."""
        return True

    def choices(self, layer: Layer) -> tuple[Bits, ...]:
        """Return every pair of bits that has a cost, by weights, then by activations.

        Those the profile declares or, where it declares none, those its table answers. A layer with
        bits of weights alone, such as an embedding, may have those of any pair.

        Raises:
            TargetError: The profile says nothing of such a layer.
        """
        if layer.weights_alone:
            return tuple(Bits(weight, FLOAT) for weight in sorted({w for w, _ in self.pairs}))
        if layer not in self._offered:
            self._offered[layer] = self._choices(layer)
        return self._offered[layer]

    def _choices(self, layer: Layer) -> tuple[Bits, ...]:
        groups = {part: self._table.groups(part) for part in self._table.parts(layer)}
        for part, some in groups.items():
            if self.formula is None and not some:
                raise TargetError(self._table.unknown(part))
        pairs = self.profile.bits.choices_of(layer.kind)
        if not pairs:
            of_parts = [set(self._answered(some)) for some in groups.values()]
            pairs = tuple(sorted(set.intersection(*of_parts)))
        return tuple(bits for bits in pairs if self.offers(layer.kind, bits))

    def _answered(self, groups: Sequence[Cells]) -> tuple[Bits, ...]:
        widths = (*range(1, 9), FLOAT)
        asked = {Bits(*pair) for pair in product(widths, widths)}.union(*groups)
        by_bits = self._table.by_bits
        return tuple(sorted(b for b in asked if any(by_bits(rows, b) for rows in groups)))

    @property
    def pairs(self) -> tuple[Bits, ...]:
        """Every pair of bits that some layer may have, by weights, then by activations."""
        bits = self.profile.bits
        declared = {pair for widths in (bits, *bits.kinds.values()) for pair in widths.choices}
        groups = [rows for batches in self._table.cells.values() for rows in batches.values()]
        every = tuple(sorted(declared)) or self._answered(groups)
        return tuple(pair for pair in every if self._some_kind_offers(pair))

    def _some_kind_offers(self, pair: Bits) -> bool:
        rows = self.profile.table.rows if self.profile.table else ()
        kinds: set[Kind] = {row.shape.kind if row.shape else "conv" for row in rows}
        return any(self.offers(kind, pair) for kind in kinds or {"conv"})

    def cost(self, layer: Layer, bits: Bits) -> dict[str, float]:
        """Return the cost of all calls of the layer, per quantity, for the whole batch.

        Raises:
            TargetError: The profile has no cost for the layer at these bits.
        """
        return {quantity: answer.value for quantity, answer in self.how(layer, bits).items()}

    def how(self, layer: Layer, bits: Bits) -> dict[str, CostAnswer]:
        """Return the cost as ``cost`` does, and for each quantity how it was found.

        Raises:
            TargetError: As ``cost``.
        """
        asked = Bits(*bits) if layer.weights_alone else bits
        if asked not in self.choices(layer):
            raise TargetError(
                f"{self.name} cannot run layer {layer.name!r} at {bits}; "
                f"it can at {listed(self.choices(layer))}"
            )
        if layer.weights_alone:  # looked up or computed in float, beside the hardware
            return {name: CostAnswer(0.0, "model", "modelled") for name in self.profile.quantities}
        # A formula looks at all sizes of a layer's calls itself: its weights are there once.
        parts = self._table.parts(layer) if self.profile.table else (layer,)
        costs = total([self._costs(part, bits) for part in parts])
        return {name: self._answer(layer, name, costs) for name in self.profile.quantities}

    def _costs(self, layer: Layer, bits: Bits) -> Costs:
        costs = self._table.costs(layer, bits)
        if costs is None and self.formula is not None:
            costs = Costs(self.formula.cost(layer, bits), "model")
        if costs is None:
            raise TargetError(self._table.unknown(layer))
        return costs

    def _answer(self, layer: Layer, quantity: str, costs: Costs) -> CostAnswer:
        value, per_call = costs.by_quantity[quantity], self.profile.quantities[quantity].per_call
        if per_call:  # else whole numbers stay whole
            value += layer.calls * per_call
        return CostAnswer(value, costs.method, self._trust(quantity, costs.method))

    def _trust(self, quantity: str, method: Method) -> Provenance:
        own = self.profile.quantities[quantity].provenance
        if method == "model" and self.profile.table is None:
            return own
        return weakest([own, AT_BEST[method]])


def check_batch(table: TableLookup) -> None:
    """Say so if a profile does not say what such a batch costs.

    Raises:
        TargetError: The sentence for the user.
    """
    name, batch, rule = table.profile.name, table.batch, table.profile.batch
    if batch < 1:
        raise TargetError(f"{name} needs a batch of at least 1 image, not {batch}")
    if batch == rule.reference:
        return
    if rule.rule == "none":
        raise TargetError(f"{name} is for a batch of {rule.reference}; it knows nothing of {batch}")
    if rule.rule == "table" and batch not in table.batches:
        sizes = ", ".join(map(str, table.batches))
        raise TargetError(f"{name} has no rows for a batch of {batch}, only for {sizes}")


def check_declared(table: TableLookup) -> None:
    """Say so if a table has no answer for bits that its profile declares.

    Raises:
        TargetError: The sentence for the user.
    """
    bits = table.profile.bits
    for batches in table.cells.values():
        for size, rows in batches.items():
            some = next(iter(rows.values()))
            pairs = bits.choices_of(some.shape.kind) if some.shape else bits.choices
            missing = next((pair for pair in pairs if table.by_bits(rows, pair) is None), None)
            if missing:
                raise TargetError(
                    f"profile {table.profile.name}: layer {some.about} has no row for {missing} at "
                    f"batch {size}, nor rows to find it from; give one, or take {missing} out of "
                    '"bits"'
                )
