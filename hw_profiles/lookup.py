"""The target of a profile: what a layer costs, and how that is known.

A cost is looked for in this order: a row of the table; a row for another batch; rows for other
bits; rows for another shape; the model. The README of this room says what each of them may do and
what it makes of the provenance.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from itertools import product
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

from haq.allocation.policy import FLOAT, Bits
from haq.errors import TargetError
from haq.hw_profiles import bitserial
from haq.hw_profiles.document import (
    Cells,
    Profile,
    Provenance,
    Row,
    Shape,
    Tiles,
    cells,
    shape_of,
    weakest,
)
from haq.network.layers import Layer

Method = Literal["exact", "batch", "rounded up", "interpolated", "shape", "model"]
"""How an answer was found, from the row itself to the least like it."""

METHODS: Sequence[Method] = get_args(Method)

_AT_BEST: Mapping[Method, Provenance] = {
    "exact": "measured",
    "batch": "modelled",
    "rounded up": "measured",
    "interpolated": "modelled",
    "shape": "inferred",
    "model": "modelled",
}


class Answer(NamedTuple):
    """A cost, how it was found and how far it can be trusted."""

    value: float
    method: Method
    provenance: Provenance


class Formula(Protocol):
    """A model of the hardware: costs of all calls of a layer for the batch it was made for."""

    def cost(self, layer: Layer, bits: Bits) -> Mapping[str, float]:
        """Return the cost per quantity, in the profile's units."""
        ...


@runtime_checkable
class Explained(Protocol):
    """A target that can say where its costs come from."""

    profile: Profile

    def how(self, layer: Layer, bits: Bits) -> Mapping[str, Answer]:
        """Return, per quantity, what ``cost`` returns and how it is known."""
        ...


class Found(NamedTuple):
    """Costs per quantity, and how they were found."""

    cost: Mapping[str, float]
    method: Method


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
    _offered: dict[Layer, tuple[Bits, ...]] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.name, self.units, self.si = self.profile.name, self.profile.units, self.profile.si
        self._check_batch()
        self._check_declared()

    @cached_property
    def _cells(self) -> dict[str | Shape, dict[int, dict[Bits, Row]]]:
        return cells(self.profile)

    def _check_batch(self) -> None:
        profile, batch = self.profile, self.batch
        if batch < 1:
            raise TargetError(f"{self.name} needs a batch of at least 1 image, not {batch}")
        if batch == profile.batch.reference:
            return
        if profile.batch.rule == "none":
            only = profile.batch.reference
            raise TargetError(f"{self.name} is for a batch of {only}; it knows nothing of {batch}")
        known = sorted({size for batches in self._cells.values() for size in batches})
        if profile.batch.rule == "table" and batch not in known:
            sizes = ", ".join(map(str, known))
            raise TargetError(f"{self.name} has no rows for a batch of {batch}, only for {sizes}")

    def _check_declared(self) -> None:
        """Refuse a table that has no answer for bits that the profile declares."""
        if self.formula is not None:
            return
        for batches in self._cells.values():
            for size, of_batch in batches.items():
                some = next(iter(of_batch.values()))
                bits = self.profile.bits
                pairs = bits.choices_of(some.shape.kind) if some.shape else bits.choices
                for pair in pairs:
                    if self._by_bits(of_batch, pair) is None:
                        raise TargetError(
                            f"profile {self.name}: layer {some.about} has no row for {pair} at "
                            f"batch {size}, nor rows to find it from; give one, or take {pair} out "
                            'of "bits"'
                        )

    def choices(self, layer: Layer) -> tuple[Bits, ...]:
        """Return every pair of bits that has a cost, by weights, then by activations.

        Those the profile declares or, where it declares none, those its table answers.

        Raises:
            TargetError: The profile says nothing of such a layer.
        """
        if layer not in self._offered:
            self._offered[layer] = self._choices(layer)
        return self._offered[layer]

    def _choices(self, layer: Layer) -> tuple[Bits, ...]:
        groups = self._answering(layer)
        if self.formula is None and not groups:
            raise TargetError(self._unknown(layer))
        declared = self.profile.bits.choices_of(layer.kind)
        if declared:
            return declared
        return self._answered(groups)

    def _answered(self, groups: Sequence[Cells]) -> tuple[Bits, ...]:
        widths = (*range(1, 9), FLOAT)
        asked = {Bits(*pair) for pair in product(widths, widths)}.union(*groups)
        return tuple(sorted(b for b in asked if any(self._by_bits(of, b) for of in groups)))

    @property
    def pairs(self) -> tuple[Bits, ...]:
        """Every pair of bits that some layer may have, by weights, then by activations."""
        bits = self.profile.bits
        declared = {pair for widths in (bits, *bits.kinds.values()) for pair in widths.choices}
        groups = [of for batches in self._cells.values() for of in batches.values()]
        return tuple(sorted(declared)) or self._answered(groups)

    def cost(self, layer: Layer, bits: Bits) -> dict[str, float]:
        """Return the cost of all calls of the layer, per quantity, for the whole batch.

        Raises:
            TargetError: The profile has no cost for the layer at these bits.
        """
        return {quantity: answer.value for quantity, answer in self.how(layer, bits).items()}

    def how(self, layer: Layer, bits: Bits) -> dict[str, Answer]:
        """Return the cost as ``cost`` does, and for each quantity how it was found.

        Raises:
            TargetError: As ``cost``.
        """
        if bits not in self.choices(layer):
            raise TargetError(
                f"{self.name} cannot run layer {layer.name!r} at {bits}; "
                f"it can at {listed(self.choices(layer))}"
            )
        found = self._own(layer, bits) or self._nearest(layer, bits) or self._modelled(layer, bits)
        if found is None:
            raise TargetError(self._unknown(layer))
        answers = {}
        for name, quantity in self.profile.quantities.items():
            value = found.cost[name]
            if quantity.per_call:  # else whole numbers stay whole
                value += layer.calls * quantity.per_call
            answers[name] = Answer(value, found.method, self._trust(name, found.method))
        return answers

    def _trust(self, quantity: str, method: Method) -> Provenance:
        own = self.profile.quantities[quantity].provenance
        if method == "model" and self.profile.table is None:
            return own
        return weakest([own, _AT_BEST[method]])

    # The table: rows for the layer itself.

    def _own(self, layer: Layer, bits: Bits) -> Found | None:
        of_batch, calls = self._rows(layer)
        return self._scaled(layer, of_batch, bits, calls)

    def _rows(self, layer: Layer) -> tuple[dict[int, dict[Bits, Row]], int]:
        """Return the rows of the layer by batch, and for how many calls each must be counted."""
        shape = shape_of(layer)
        named = self._cells.get(layer.name, {})
        rows = {size: _of_shape(of_batch, shape) for size, of_batch in named.items()}
        rows = {size: of_batch for size, of_batch in rows.items() if of_batch}
        return (rows, 1) if rows else (self._cells.get(shape, {}), layer.calls)

    def _scaled(
        self, layer: Layer, batches: Mapping[int, Cells], bits: Bits, calls: int
    ) -> Found | None:
        found = self._by_bits(batches.get(self.batch, {}), bits)
        factor = float(calls)
        reference = self.profile.batch.reference
        if found is None and self.profile.batch.rule_of(layer.kind) == "linear":
            found = self._by_bits(batches.get(reference, {}), bits)
            factor *= self.batch / reference
        if found is None:
            return None
        scaled = self.batch not in batches
        method: Method = max(found.method, "batch" if scaled else "exact", key=METHODS.index)
        return Found(_times(found.cost, factor), method)

    def _by_bits(self, of_batch: Cells, bits: Bits) -> Found | None:
        if bits in of_batch:
            return Found(_values(of_batch[bits]), "exact")
        if self.profile.bits.between == "round-up":
            first = next(iter(self.profile.quantities))
            wide = [_values(row) for has, row in of_batch.items() if _holds(has, bits)]
            cheapest = min(wide, key=lambda cost: cost[first], default=None)
            return None if cheapest is None else Found(cheapest, "rounded up")
        if self.profile.bits.between == "interpolate":
            cost = _interpolated(of_batch, bits)
            return None if cost is None else Found(cost, "interpolated")
        return None

    # The table: rows for other shapes.

    def _nearest(self, layer: Layer, bits: Bits) -> Found | None:
        tiles = self.profile.table.nearest if self.profile.table else None
        if tiles is None:
            return None
        here = roofline(tiles, layer, self.batch, bits)
        for shape in self._neighbours(layer):
            other = Layer(layer.name, **shape.model_dump())
            found = self._scaled(other, self._cells[shape], bits, 1)
            if found is not None:
                ratio = layer.calls * here / roofline(tiles, other, self.batch, bits)
                return Found(_times(found.cost, ratio), "shape")
        return None

    def _neighbours(self, layer: Layer) -> list[Shape]:
        place = _place(shape_of(layer))
        alike = [s for s in self._cells if isinstance(s, Shape) and s.kind == layer.kind]
        return sorted(alike, key=lambda shape: math.dist(place, _place(shape)))

    def _modelled(self, layer: Layer, bits: Bits) -> Found | None:
        return None if self.formula is None else Found(self.formula.cost(layer, bits), "model")

    # What it cannot say.

    def _answering(self, layer: Layer) -> list[Cells]:
        """Return the groups of rows, for one batch each, that may answer for the layer."""
        rows, _ = self._rows(layer)
        table = self.profile.table
        groups = [rows]
        if not rows and table is not None and table.nearest is not None:
            groups = [self._cells[shape] for shape in self._neighbours(layer)]
        linear = self.profile.batch.rule_of(layer.kind) == "linear"
        sizes = {self.batch, self.profile.batch.reference} if linear else {self.batch}
        return [group[size] for group in groups for size in sizes if size in group]

    def _unknown(self, layer: Layer) -> str:
        what = f"{self.name} has no row for layer {layer.name!r}"
        if layer.name in self._cells and not self._rows(layer)[0]:
            return f"{what} as it is here: its rows of that name are for another shape"
        if self._rows(layer)[0]:
            return f"{what} at a batch of {self.batch}, nor a rule to find it from"
        names = [key for key in self._cells if isinstance(key, str)]
        close = get_close_matches(layer.name, names, n=1)
        meant = f"; did you mean {close[0]!r} there?" if close else ""
        return f"{what} ({layer.kind}, {layer.c_in} to {layer.c_out}){meant}"


def _of_shape(of_batch: Cells, shape: Shape) -> dict[Bits, Row]:
    return {bits: row for bits, row in of_batch.items() if row.shape in (None, shape)}


def _values(row: Row) -> dict[str, float]:
    return {quantity: cost.value for quantity, cost in row.cost.items()}


def _times(cost: Mapping[str, float], factor: float) -> dict[str, float]:
    return {quantity: value * factor for quantity, value in cost.items()}


def listed(choices: Collection[Bits]) -> str:
    """Return the pairs as text; many that fill a rectangle are one, also where a few are missing.

    >>> listed([Bits(weight, act) for weight in (2, 4, 8) for act in (6, 7, 8)])
    'w2,4,8 a6..8'
    >>> widths = range(2, 9)
    >>> listed([Bits(weight, act) for weight in widths for act in widths if weight + act < 16])
    'w2..8 a2..8 without w8a8'
    >>> listed([Bits(4, 8), Bits(8, 8), Bits(32, 32)])
    'w4a8, w8a8, fp32'
    """
    inner = {bits for bits in choices if FLOAT not in bits}
    sides = [sorted({bits[side] for bits in inner}) for side in (0, 1)]
    whole = {Bits(weight, act) for weight in sides[0] for act in sides[1]}
    missing = sorted(whole - inner)
    if len(inner) > max(4, 8 * len(missing)):
        grid = ["w{} a{}".format(*map(_widths, sides))]
        if missing:
            grid[0] += f" without {' and '.join(map(str, missing))}"
    else:
        grid = list(map(str, sorted(inner)))
    return ", ".join([*grid, *map(str, sorted(set(choices) - inner))])


def _widths(widths: Sequence[int]) -> str:
    if len(widths) > 2 and widths[-1] - widths[0] == len(widths) - 1:
        return f"{widths[0]}..{widths[-1]}"
    return ",".join(map(str, widths))


def _holds(wide: Bits, bits: Bits) -> bool:
    """Return whether operands of ``bits`` can be kept in wider ones; float holds only float."""
    return all(
        has >= asked and (has == FLOAT) == (asked == FLOAT)
        for has, asked in zip(wide, bits, strict=True)
    )


def _interpolated(of_batch: Cells, bits: Bits) -> dict[str, float] | None:
    """Return the bilinear mean of the four rows around ``bits``; nothing outside the grid."""
    sides = [_bracket({has[side] for has in of_batch}, bits[side]) for side in (0, 1)]
    if None in sides:
        return None
    weights, acts = (side for side in sides if side is not None)
    corners = {
        Bits(weight, act): share * other
        for weight, share in weights.items()
        for act, other in acts.items()
    }
    if not corners.keys() <= of_batch.keys():
        return None
    costs = [(share, _values(of_batch[corner])) for corner, share in corners.items()]
    return {
        quantity: math.fsum(share * cost[quantity] for share, cost in costs)
        for quantity in costs[0][1]
    }


def _bracket(widths: set[int], width: int) -> dict[int, float] | None:
    """Return the widths on both sides of one with their shares, or itself alone."""
    if width in widths:
        return {width: 1.0}
    below = [other for other in widths if other < width]
    above = [other for other in widths - {FLOAT} if other > width]
    if not below or not above:
        return None
    low, high = max(below), min(above)
    return {low: (high - width) / (high - low), high: (width - low) / (high - low)}


def _place(shape: Shape) -> tuple[float, ...]:
    sizes = (
        shape.c_in, shape.c_out, shape.groups, math.prod(shape.kernel),
        math.prod(shape.in_size), math.prod(shape.out_size),
    )  # fmt: skip
    return tuple(map(math.log, sizes))


def roofline(tiles: Tiles, layer: Layer, batch: int, bits: Bits) -> float:
    """Return how long a layer takes at least, in cycles of an array with such tiles."""
    overlay = bitserial.Overlay(**tiles.model_dump(), buffer_words=1)
    rows, depth, columns, times = bitserial.product(overlay, layer, batch)
    passes = -(-rows // tiles.rows) * -(-columns // tiles.columns) * -(-depth // tiles.word_bits)
    beats = -(-depth // tiles.port_bits)
    fetching = max(rows * beats * bits.weight, columns * beats * bits.act)
    return float(times * max(passes * bits.weight * bits.act, fetching))
