"""The table of a profile: rows of costs by layer and bits."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from haq.allocation.policy import Bits, Dynamic
from haq.hw_profiles.schema import Extent, Name, NotNegative, Strict, Whole, Width
from haq.network.layers import Kind, Layer

_Pad = Annotated[int, Field(ge=0)]


class Shape(Strict):
    """A layer by what it is, whatever its name: the fields of ``haq.network.layers.Layer``."""

    kind: Kind
    c_in: Whole
    c_out: Whole
    kernel: Extent = (1, 1)
    stride: Extent = (1, 1)
    padding: tuple[_Pad, _Pad] | tuple[_Pad, _Pad, _Pad] = (0, 0)
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

    A row with both is for the layer of that name, as long as it has that shape. With ``block`` or
    ``dynamic`` it is for that number format, as in ``haq.allocation.policy.Bits``.
    """

    layer: Name | None = None
    shape: Shape | None = None
    weight: Width
    act: Width
    block: int = Field(default=0, ge=0)
    dynamic: Dynamic = ""
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
    def bits(self) -> Bits:
        """What it is for."""
        return Bits(self.weight, self.act, self.block, self.dynamic)

    @property
    def about(self) -> str:
        """Which layer it is for, in words: "conv1", or "conv 3->16"."""
        shape = self.shape
        return self.layer or (f"{shape.kind} {shape.c_in}->{shape.c_out}" if shape else "")

    def __str__(self) -> str:
        """Return "conv1 w8a8"."""
        return f"{self.about} {self.bits}"


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


Cells = Mapping[Bits, Row]
"""What is known of one layer for one batch, by bits."""

Key = str | Shape
