"""The fields that profiles of every kind share: units, provenance, quantities, batches and bits."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from haq.allocation.costs import UNITS as COUNTED
from haq.allocation.policy import Bits
from haq.errors import HaqError, look_up
from haq.network.layers import Kind

Provenance = Literal[
    "measured", "published", "reconstructed", "calibrated", "modelled", "inferred", "user"
]
"""Where a number comes from, from strong to weak; the README says what each of them means."""

STRENGTH: Sequence[Provenance] = get_args(Provenance)

TIMES: Mapping[str, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
"""Units of time, in seconds; "cycles" is one more, which ``clock_hz`` turns into seconds."""

ENERGIES: Mapping[str, float] = {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "nJ": 1e-9, "pJ": 1e-12}
"""Units of energy, in joules."""

AMOUNTS = ("bits", "bytes", "count")
"""Units of every other quantity, such as memory traffic."""

Positive = Annotated[float, Field(gt=0)]

NotNegative = Annotated[float, Field(ge=0)]

Whole = Annotated[int, Field(ge=1)]

Width = Annotated[int, Field(ge=1, le=32)]

Pair = tuple[Width, Width]

Extent = tuple[Whole, Whole] | tuple[Whole, Whole, Whole]

Name = Annotated[str, Field(pattern=r"\S")]


def weakest(classes: Iterable[Provenance]) -> Provenance:
    """Return the class that can be trusted least: a sum is as weak as its weakest term.

    >>> weakest(["measured", "modelled", "reconstructed"])
    'modelled'
    """
    return max(classes, key=STRENGTH.index)


class Strict(BaseModel):
    """What all parts of a profile share: no unknown fields, no NaN, no change afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Runtime(Strict):
    """What runs the layers: a simulator, or an inference engine with its version and options."""

    name: Name
    version: str | None = None
    options: Mapping[str, str | int | float | bool] = {}


class Quantity(Strict):
    """A kind of cost: its unit, and where its numbers come from."""

    unit: str
    provenance: Provenance
    source: Name
    error: NotNegative | None = None  # largest relative error of a network's total; null: unknown
    monotone: bool = False  # more bits never cost less
    per_call: NotNegative = 0.0  # added to every call of a layer, in the unit


BatchRule = Literal["linear", "columns", "table", "none"]


class Batch(Strict):
    """For how many images the costs are, and what becomes of them for another number."""

    reference: Whole
    rule: BatchRule
    kinds: Mapping[Kind, BatchRule] = {}  # other rules for some kinds of layers

    def rule_of(self, kind: Kind) -> BatchRule:
        """Return the rule for layers of a kind."""
        return self.kinds.get(kind, self.rule)


class Widths(Strict):
    """Pairs of bit-widths: every weight width with every act width, and ``pairs`` besides."""

    weight: tuple[Width, ...] = ()
    act: tuple[Width, ...] = ()
    pairs: tuple[Pair, ...] = ()  # (weight, act); 32 is float

    @cached_property
    def choices(self) -> tuple[Bits, ...]:
        """Every pair once, by weights, then by activations."""
        product = {Bits(weight, act) for weight in self.weight for act in self.act}
        return tuple(sorted(product | {Bits(*pair) for pair in self.pairs}))


class BitRule(Widths):
    """Which pairs the hardware runs, and what those cost that the table has no row for."""

    between: Literal["interpolate", "round-up", "none"] = "none"
    kinds: Mapping[Kind, Widths] = {}  # other pairs for some kinds of layers

    def choices_of(self, kind: Kind) -> tuple[Bits, ...]:
        """Return the pairs declared for a kind of layer; none where none are declared."""
        return self.kinds.get(kind, self).choices


def check_unit(quantity: str, unit: str) -> None:
    """Say so if a quantity cannot have that name or that unit.

    Raises:
        ValueError: The sentence for the user.
    """
    if not quantity.isidentifier() or quantity in COUNTED:
        raise ValueError(f"{quantity!r} cannot be the name of a quantity of a target")
    known: Iterable[str] = AMOUNTS
    if quantity == "latency":
        known = (*TIMES, "cycles")
    elif quantity == "energy":
        known = ENERGIES
    try:
        look_up(dict.fromkeys(known), f"unit of {quantity}", unit)
    except HaqError as error:
        raise ValueError(str(error)) from None
