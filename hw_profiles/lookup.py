"""Costs from the table of a profile.

They are looked for in this order: a row for the layer; one for another batch; rows for other bits;
rows for another shape. The README of this room says what each of them may do and what it makes of
the provenance.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property

from haq.allocation.policy import Bits
from haq.hw_profiles import bitserial
from haq.hw_profiles.answers import Costs, least_like
from haq.hw_profiles.between import ByBits
from haq.hw_profiles.profile import Profile, cells
from haq.hw_profiles.rows import Cells, Key, Row, Shape, Tiles, shape_of
from haq.network.layers import Layer

ByBatch = Mapping[int, Cells]
"""Batch size to what is known of one layer at that size."""


@dataclass(frozen=True)
class TableLookup:
    """Finds costs among the rows of a profile, for one batch size.

    Attributes:
        profile: Its table may be missing; then nothing is found.
        batch: Images computed together.
        by_bits: What a pair costs by the rows of one layer for one batch.
    """

    profile: Profile
    batch: int
    by_bits: ByBits

    @cached_property
    def cells(self) -> Mapping[Key, Mapping[int, dict[Bits, Row]]]:
        """The rows by layer, batch and bits."""
        return cells(self.profile)

    @property
    def batches(self) -> list[int]:
        """The batch sizes that some row is for, in rising order."""
        return sorted({size for of_layer in self.cells.values() for size in of_layer})

    def parts(self, layer: Layer) -> tuple[Layer, ...]:
        """Return the layers to look up: the whole one where rows have its name, else by size."""
        return (layer,) if self._named(layer) else layer.by_size()

    def costs(self, layer: Layer, bits: Bits) -> Costs | None:
        """Return the costs of all calls of one of the ``parts``; None where no row answers."""
        return self._own(layer, bits) or self._nearest(layer, bits)

    def _own(self, layer: Layer, bits: Bits) -> Costs | None:
        named = self._named(layer)
        if named:
            return self._at(layer, named, bits)
        one_call = self._at(layer, self.cells.get(shape_of(layer), {}), bits)
        return one_call and one_call.times(layer.calls)

    def _named(self, layer: Layer) -> dict[int, dict[Bits, Row]]:
        """Return the rows for the layer of that name, as long as it has the shape they say."""
        shape = shape_of(layer)
        rows = {
            size: {bits: row for bits, row in some.items() if row.shape in (None, shape)}
            for size, some in self.cells.get(layer.name, {}).items()
        }
        return {size: some for size, some in rows.items() if some}

    def _at(self, layer: Layer, batches: ByBatch, bits: Bits) -> Costs | None:
        """Return the costs for the batch, or those of the reference batch times their ratio."""
        costs = self.by_bits(batches.get(self.batch, {}), bits)
        if costs is not None or self.profile.batch.rule_of(layer.kind) != "linear":
            return costs
        reference = self.profile.batch.reference
        costs = self.by_bits(batches.get(reference, {}), bits)
        if costs is None:
            return None
        method = least_like([costs.method, "batch"])
        return costs.times(self.batch / reference)._replace(method=method)

    def _nearest(self, layer: Layer, bits: Bits) -> Costs | None:
        """Return the costs of the nearest shape that has any, times the ratio of the rooflines."""
        tiles = self.profile.table.nearest if self.profile.table else None
        if tiles is None:
            return None
        for shape in self._neighbours(layer):
            other = Layer(layer.name, **shape.model_dump())
            costs = self._at(other, self.cells[shape], bits)
            if costs is not None:
                one_call = replace(layer, calls=1)
                there = roofline(tiles, other, self.batch, bits)
                ratio = layer.calls * roofline(tiles, one_call, self.batch, bits) / there
                return costs.times(ratio)._replace(method="shape")
        return None

    def _neighbours(self, layer: Layer) -> list[Shape]:
        place = _place(shape_of(layer))
        alike = [key for key in self.cells if isinstance(key, Shape) and key.kind == layer.kind]
        return sorted(alike, key=lambda shape: math.dist(place, _place(shape)))

    def groups(self, layer: Layer) -> list[Cells]:
        """Return the groups of rows, for one batch each, that may answer for one of ``parts``."""
        rows = self._of(layer)
        table = self.profile.table
        some = [rows] if rows or table is None or table.nearest is None else [
            self.cells[shape] for shape in self._neighbours(layer)
        ]  # fmt: skip
        linear = self.profile.batch.rule_of(layer.kind) == "linear"
        sizes = {self.batch, self.profile.batch.reference} if linear else {self.batch}
        return [group[size] for group in some for size in sizes if size in group]

    def _of(self, layer: Layer) -> ByBatch:
        return self._named(layer) or self.cells.get(shape_of(layer), {})

    def unknown(self, layer: Layer) -> str:
        """Return the sentence that says what is missing for a layer."""
        what = f"{self.profile.name} has no row for layer {layer.name!r}"
        if layer.name in self.cells and not self._of(layer):
            return f"{what} as it is here: its rows of that name are for another shape"
        if self._of(layer):
            return f"{what} at a batch of {self.batch}, nor a rule to find it from"
        names = [key for key in self.cells if isinstance(key, str)]
        close = get_close_matches(layer.name, names, n=1)
        meant = f"; did you mean {close[0]!r} there?" if close else ""
        return f"{what} ({layer.kind}, {layer.c_in} to {layer.c_out}){meant}"


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
