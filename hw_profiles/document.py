"""Profiles: the one JSON schema behind every target, and reading a file of it.

A profile says what is known of a piece of hardware and how far it can be trusted: a formula with
its constants (``model``), rows of costs (``table``), or both. Its version is a hash of its content,
so two profiles of one version are the same. The README of this room has the fields as a table.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from haq.allocation.costs import UNITS as COUNTED
from haq.allocation.policy import Bits
from haq.errors import HaqError, TargetError, look_up
from haq.hw_profiles.bitserial import Overlay, Power
from haq.hw_profiles.roofline import Machine
from haq.hw_profiles.tiling import Array, Energy
from haq.network.layers import Kind, Layer

FORMAT: Literal["haq-profile/1"] = "haq-profile/1"
"""What the "format" field of a profile says."""

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
Extent = tuple[Whole, Whole]
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


# Who and what.


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


# The formulas: a class each, told apart by "type".


class Bitserial(Strict):
    """Constants of ``bitserial.py``."""

    type: Literal["bitserial"]
    overlay: Overlay
    power: Power

    @model_validator(mode="after")
    def _positive(self) -> Self:
        for field, value in asdict(self.overlay).items():
            if value < 1:
                raise ValueError(f"overlay.{field} must be at least 1, not {value}")
        return self


class BitFusion(Strict):
    """Constants of ``bitfusion.py``."""

    type: Literal["bitfusion"]
    array: Array
    energy: Energy

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for field, value in asdict(self.array).items():
            if value < 1:
                raise ValueError(f"array.{field} must be at least 1, not {value}")
        if self.array.fewest_bits > self.array.most_bits:
            raise ValueError("array.fewest_bits must not be more than array.most_bits")
        _check_not_negative("energy", asdict(self.energy))
        return self


class Roofline(Strict):
    """Constants of ``roofline.py``."""

    type: Literal["roofline"]
    machine: Machine

    @model_validator(mode="after")
    def _possible(self) -> Self:
        limits = asdict(self.machine)
        for field in ("macs_per_second", "bytes_per_second"):
            if not limits[field] > 0:
                raise ValueError(f"machine.{field} must be more than 0, not {limits[field]}")
        _check_not_negative("machine", limits)
        return self


def _check_not_negative(what: str, constants: Mapping[str, float]) -> None:
    for field, value in constants.items():
        if value < 0:
            raise ValueError(f"{what}.{field} must not be negative, and is {value}")


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


class Measured(Strict):
    """What rows of a table cannot say of a runtime: the costs between layers, and the check.

    The kernels of the layers are rows of the profile's table, by name and shape.
    """

    type: Literal["measured"]
    to_quantized: NotNegative  # latency of one element on an edge from float to quantized
    to_float: NotNegative  # and from quantized to float
    tensors: tuple[Passing, ...] = ()  # the edges
    networks: Mapping[str, Interval] = {}  # of one precision, as they were measured
    fitted_on: Whole | None = None  # mixed policies behind the two costs of an element
    validation: Validation


Model = Annotated[Bitserial | BitFusion | Roofline | Measured, Field(discriminator="type")]

GIVES: Mapping[str, Mapping[str, str]] = {
    "bitserial": {"latency": "cycles", "energy": "nJ"},
    "bitfusion": {"latency": "cycles", "energy": "nJ"},
    "roofline": {"latency": "ns", "energy": "nJ"},
}
"""The "type" of a formula to the quantities it gives, and their units."""


# The table.


class Shape(Strict):
    """A layer by what it is, whatever its name: the fields of ``haq.network.layers.Layer``."""

    kind: Kind
    c_in: Whole
    c_out: Whole
    kernel: Extent = (1, 1)
    stride: Extent = (1, 1)
    padding: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = (0, 0)
    groups: Whole = 1
    in_size: Extent = (1, 1)
    out_size: Extent = (1, 1)


def shape_of(layer: Layer) -> Shape:
    """Return what a layer is, without its name and how often it is called."""
    return Shape(**{field: getattr(layer, field) for field in Shape.model_fields})


class Cost(Strict):
    """One cost: the value to count with and, where it was measured, the runs behind it."""

    value: NotNegative
    n: Whole | None = None
    p10: NotNegative | None = None
    p50: NotNegative | None = None
    p90: NotNegative | None = None


def _bare(cost: object) -> object:
    return {"value": cost} if isinstance(cost, int | float) else cost


class Row(Strict):
    """What a layer costs at one pair of bits: all its calls by ``layer``, one by ``shape``.

    A row with both is for the layer of that name, as long as it has that shape.
    """

    layer: Name | None = None
    shape: Shape | None = None
    weight: Width
    act: Width
    batch: Whole | None = None  # the profile's reference where it is not given
    cost: Mapping[str, Annotated[Cost, BeforeValidator(_bare)]]

    @property
    def key(self) -> "Key":
        """The layer it is for: its name, or else its shape."""
        key = self.layer or self.shape
        assert key is not None
        return key

    @model_validator(mode="after")
    def _about_a_layer(self) -> Self:
        if self.layer is None and self.shape is None:
            raise ValueError("it needs a layer, a shape or both")
        return self

    @property
    def about(self) -> str:
        """Which layer it is for, in words: "conv1", or "conv 3->16"."""
        shape = self.shape
        return self.layer or (f"{shape.kind} {shape.c_in}->{shape.c_out}" if shape else "")

    def __str__(self) -> str:
        """Return "conv1 w8a8"."""
        return f"{self.about} {Bits(self.weight, self.act)}"


class Tiles(Strict):
    """How work is rounded up on the hardware: the roofline that carries a cost to another shape.

    A layer is a (rows x depth) by (depth x columns) product. It computes in tiles of ``rows`` by
    ``columns`` and words of ``word_bits`` along the depth, and fetches ``port_bits`` of the depth
    at a time; it takes as long as the slowest of computing, fetching weights and fetching
    activations.
    """

    rows: Whole = 1
    columns: Whole = 1
    word_bits: Whole = 1
    port_bits: Whole = 1
    depthwise_channels: Whole = 1


class Table(Strict):
    """Costs by layer and bits, and what they say of shapes that are not among them."""

    rows: tuple[Row, ...] = Field(min_length=1)
    nearest: Tiles | None = None  # without it, a shape that is not there has no cost


# The whole.


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
        if self.model is not None and self.model.type in GIVES:
            check_formula(self)
        if isinstance(self.model, Measured) and self.table is None:
            raise ValueError("a measured model needs a table of the layers' costs")
        if self.table is not None:
            check_rows(self)
        return self


Cells = Mapping[Bits, Row]
"""What is known of one layer for one batch, by bits."""

Key = str | Shape


def cells(profile: Profile) -> dict[Key, dict[int, dict[Bits, Row]]]:
    """Return the rows of a profile by layer (its name, or else its shape), batch and bits."""
    found: dict[Key, dict[int, dict[Bits, Row]]] = {}
    for row in profile.table.rows if profile.table else ():
        batches = found.setdefault(row.key, {})
        of_batch = batches.setdefault(row.batch or profile.batch.reference, {})
        of_batch[Bits(row.weight, row.act)] = row
    return found


def check_formula(profile: Profile) -> None:
    """Say so if the formula of a profile cannot give what the profile says.

    Raises:
        ValueError: The sentence for the user.
    """
    assert profile.model is not None
    kind = profile.model.type
    gives = GIVES[kind]
    clock_missing = "cycles" in gives.values() and not profile.clock_hz
    if clock_missing or not profile.bits.choices:
        clock = "clock_hz, and " if "cycles" in gives.values() else ""
        raise ValueError(f"a {kind} model needs {clock}bits that say what it runs")
    for name, unit in profile.units.items():
        if gives.get(name) != unit:
            said = " and ".join(f"{known} in {its}" for known, its in gives.items())
            raise ValueError(f"a {kind} model gives {said}, not {name} in {unit}")
    if isinstance(profile.model, BitFusion):
        grids = (profile.bits, *profile.bits.kinds.values())
        widest = max(width for grid in grids for bits in grid.choices for width in bits)
        if widest > profile.model.array.most_bits:
            most = profile.model.array.most_bits
            raise ValueError(f"array.most_bits is {most}, so {widest} must not be among the bits")


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
        first = seen.setdefault((row.key, row.weight, row.act, batch), number)
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
            wider = less.weight <= more.weight and less.act <= more.act
            one, other = of_batch[less], of_batch[more]
            if wider and one.cost[quantity].value > other.cost[quantity].value:
                raise ValueError(
                    f"{one} has more {quantity} than {other}, but {quantity} is declared monotone"
                )


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


def read(path: str | Path) -> Profile:
    """Return the profile in a JSON file.

    Raises:
        TargetError: The file cannot be read, or is not a profile; the sentence names the field, or
            the row of the table, that is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise TargetError(f"profile {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise TargetError(f"profile {path}: not UTF-8 text ({error})") from error
    return parse(text, f"profile {path}")


def parse(text: str, origin: str) -> Profile:
    """Return the profile in a text.

    Args:
        text: JSON.
        origin: Where it is from, for messages.

    Raises:
        TargetError: As ``read``.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TargetError(f"{origin}: not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TargetError(f'{origin}: not a profile; it must say "format": "{FORMAT}"')
    try:
        return Profile.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise TargetError(f"{origin}: {_sentence(content, error)}") from error


def _sentence(content: Mapping[str, Any], error: ValidationError) -> str:
    place = error.errors()[0]["loc"]
    if place[:2] != ("table", "rows") or len(place) < 3:
        return explain(error)
    number = int(place[2])
    row = content["table"]["rows"][number]
    named = isinstance(row, dict) and {"weight", "act"} <= row.keys()
    what = f" ({row.get('layer', 'by shape')} w{row['weight']}a{row['act']})" if named else ""
    return f"row {number + 1} of the table{what}: {explain(error, skip=3)}"


def explain(error: ValidationError, skip: int = 0) -> str:
    """Return the first mistake that pydantic found as a sentence.

    Args:
        error: What it raised.
        skip: Parts of the field's path to leave out.
    """
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"][skip:]))
    given = ""
    if first["type"] not in ("value_error", "missing"):
        given = f", not {json.dumps(first['input'], default=str)[:60]}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{field}{': ' if field else ''}{message}{given}"


def write_json(profile: Profile) -> str:
    """Return the text of a profile's file, without what is left at its default."""
    content = profile.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
