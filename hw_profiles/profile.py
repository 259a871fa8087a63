"""A profile: all that is known of one target, and how far it can be trusted.

It has a formula with its constants (``model``), rows of costs (``table``), or both. Its version is
a hash of its content, so two profiles of one version are the same. The README of this room has the
fields as a table.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from itertools import permutations
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from haq.allocation.policy import Bits
from haq.errors import HaqError, look_up
from haq.hw_profiles.bitfusion import BitFusion
from haq.hw_profiles.bitserial import Bitserial
from haq.hw_profiles.ethos_u import EthosU
from haq.hw_profiles.formula import Constants
from haq.hw_profiles.measured import Between, Measured, OwnDevice
from haq.hw_profiles.ne16 import Ne16
from haq.hw_profiles.rates import Rates
from haq.hw_profiles.roofline import Roofline
from haq.hw_profiles.rows import Cells, Key, Row, Table
from haq.hw_profiles.schema import (
    ENERGIES,
    TIMES,
    Batch,
    BitRule,
    Name,
    Positive,
    Quantity,
    Runtime,
    Strict,
    check_unit,
)

FORMAT: Literal["haq-profile/1"] = "haq-profile/1"
"""What the "format" field of a profile says."""

Model = Annotated[
    Bitserial | BitFusion | Roofline | Ne16 | Rates | EthosU | Measured | OwnDevice,
    Field(discriminator="type"),
]
"""The formulas, told apart by "type"; a new one is a module and a name here."""


class Profile(Strict):
    """All that is known of one target, as it stands in a JSON file."""

    format: Literal["haq-profile/1"]
    name: Name
    title: Name
    device: Name
    runtime: Runtime
    quantities: Annotated[Mapping[str, Quantity], Field(min_length=1)]
    clock_hz: Positive | None = None
    batch: Batch
    bits: BitRule = BitRule()
    zero_cost: tuple[Name, ...] = ()  # what the costs leave out or count as nothing
    totals_leave_out: tuple[Literal["first", "last"], ...] = ()  # layers that sources do not count
    model: Model | None = None
    table: Table | None = None

    @cached_property
    def version(self) -> str:
        """The sha256 of the content: of the canonical JSON without what is left at its default.

        Neither spaces nor the order of the fields change it.
        """
        content = self.model_dump(mode="json", exclude_defaults=True)
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def units(self) -> dict[str, str]:
        """Quantity to its unit."""
        return {name: quantity.unit for name, quantity in self.quantities.items()}

    @cached_property
    def si(self) -> dict[str, float]:
        """Quantity to its unit in seconds or joules, where it is one of time or energy."""
        factors = {**TIMES, **ENERGIES}
        if self.clock_hz:
            factors["cycles"] = 1 / self.clock_hz
        return {name: factors[unit] for name, unit in self.units.items() if unit in factors}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, quantity in self.quantities.items():
            check_unit(name, quantity.unit)
        if self.model is None and self.table is None:
            raise ValueError("it needs a model, a table or both")
        if self.table is None and "table" in (self.batch.rule, *self.batch.kinds.values()):
            raise ValueError("batch goes by the table, but there is none")
        if isinstance(self.model, Constants):
            check_formula(self, self.model)
        if isinstance(self.model, Between) and self.table is None:
            raise ValueError("a measured model needs a table of the layers' costs")
        if self.table is not None:
            check_rows(self)
        return self


def cells(profile: Profile) -> dict[Key, dict[int, dict[Bits, Row]]]:
    """Return the rows of a profile by layer (its name, or else its shape), batch and bits."""
    by_layer: dict[Key, dict[int, dict[Bits, Row]]] = {}
    for row in profile.table.rows if profile.table else ():
        batches = by_layer.setdefault(row.key, {})
        of_batch = batches.setdefault(row.batch or profile.batch.reference, {})
        of_batch[row.bits] = row
    return by_layer


def check_formula(profile: Profile, model: Constants) -> None:
    """Say so if the formula of a profile cannot give what the profile says.

    Raises:
        ValueError: The sentence for the user.
    """
    kind = profile.model.type if profile.model else ""
    counts_cycles = "cycles" in model.gives.values()
    if (counts_cycles and not profile.clock_hz) or not profile.bits.choices:
        clock = "clock_hz, and " if counts_cycles else ""
        raise ValueError(f"a {kind} model needs {clock}bits that say what it runs")
    for name, unit in profile.units.items():
        if model.gives.get(name) != unit:
            gives = " and ".join(f"{known} in {its}" for known, its in model.gives.items())
            raise ValueError(f"a {kind} model gives {gives}, not {name} in {unit}")
    rules = (profile.bits, *profile.bits.kinds.values())
    model.check(profile.units, {bits for rule in rules for bits in rule.choices})


def check_rows(profile: Profile) -> None:
    """Say so if rows of the table are twice there, incomplete or not as the profile says.

    Raises:
        ValueError: The sentence for the user; it names the row.
    """
    rows = profile.table.rows if profile.table else ()
    seen: dict[object, int] = {}
    for number, row in enumerate(rows, start=1):
        where = f"row {number} of the table ({row})"
        batch = row.batch or profile.batch.reference
        first = seen.setdefault((row.key, *row.bits.row(), batch), number)
        if first != number:
            raise ValueError(f"{where} is for the same layer, bits and batch as row {first}")
        for quantity in profile.quantities:
            if quantity not in row.cost:
                raise ValueError(f"{where} has no {quantity}")
        for quantity in row.cost:
            try:
                look_up(profile.quantities, "quantity", quantity)
            except HaqError as error:
                raise ValueError(f"{where}: {error}") from None
    for batches in cells(profile).values():
        for of_batch in batches.values():
            _check_monotone(profile, of_batch)


def _check_monotone(profile: Profile, of_batch: Cells) -> None:
    declared = [name for name, quantity in profile.quantities.items() if quantity.monotone]
    for quantity in declared:
        for less, more in permutations(of_batch, 2):
            alike = less.scheme[1:] == more.scheme[1:]
            wider = alike and less.weight <= more.weight and less.act <= more.act
            one, other = of_batch[less], of_batch[more]
            if wider and one.cost[quantity].value > other.cost[quantity].value:
                raise ValueError(
                    f"{one} has more {quantity} than {other}, but {quantity} is declared monotone"
                )
