"""NE16, the convolution engine of GreenWaves' GAP9: cycles in closed form.

The engine computes a tile of outputs, a few rows and columns by some channels, from all input
channels, a few at a time, and takes weights bit by bit: 3x3 layers gain from fewer weight bits, 1x1
layers do not, as their weights stream through whatever they hold. Activations have 8 bits.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from haq.allocation.policy import Bits
from haq.hw_profiles.formula import Ceilings, Constants, check_counts, summed
from haq.hw_profiles.planes import pair, planes
from haq.network.layers import Layer


@dataclass(frozen=True)
class Engine:
    """The sizes of the engine, and the cycles of what it does for one tile.

    Attributes:
        rows: Rows of outputs in a tile.
        columns: Columns of outputs in a tile.
        channels: Output channels of a tile.
        depthwise_channels: The same, of a depthwise convolution.
        depth: Input channels read at once.
        port_bits: Bits read from the memory in a cycle.
        load_1x1: Cycles of reading the inputs of a tile of a 1x1 convolution.
        load_3x3: The same for a 3x3 convolution.
        start: Cycles until a unit has its first operand.
        step: Cycles of moving on to the next input channels.
        quantize: Cycles of rounding a tile, beside one for each channel.
        write: Cycles of writing a tile.
    """

    rows: int
    columns: int
    channels: int
    depthwise_channels: int
    depth: int
    port_bits: int
    load_1x1: int
    load_3x3: int
    start: int
    step: int
    quantize: int
    write: int

    def dense_tile(self, c_in: int, channels: int, weight_bits: int, taps: int) -> int:
        """Return the cycles of one tile of a 1x1 or 3x3 convolution that reads all channels."""
        load = self.load_1x1 if taps == 1 else self.load_3x3
        multiply = self.start + (channels if taps == 1 else channels * weight_bits)
        passes = -(-c_in // self.depth)
        return passes * (load + self.start + multiply + self.step) + self._finish(channels)

    def depthwise_tile(self, channels: int, weight_bits: int) -> int:
        """Return the cycles of one tile of a 3x3 depthwise convolution."""
        offset, multiply = self.start + channels, self.start + channels * weight_bits
        return self.load_3x3 + offset + multiply + self.step + self._finish(channels)

    def _finish(self, channels: int) -> int:
        return self.quantize + channels + self.write


@dataclass(frozen=True)
class Ne16Formula:
    """What layers cost on the engine; images are computed one by one."""

    engine: Engine
    batch: int

    def cost(self, layer: Layer, bits: Bits) -> dict[str, float]:
        """Return the latency in cycles, a whole number, of all calls of the layer for the batch.

        Output channels are taken a tile's at a time, the rest of them in a smaller tile::

            ceil(height / rows) * ceil(width / columns) * (full tiles + the smaller one)

        A linear layer is a 1x1 convolution of one pixel for each position. Other kernels are cut
        into 3x3 and 1x1 ones, each done as a layer of its own; those of depthwise convolutions,
        which the engine has at 3x3 only, into as many 3x3 ones as cover them.

        Source: the performance model of the engine by the University of Bologna, as restated in
        PLiNIO (github.com/eml-eda/plinio, plinio/cost/ne16_latency.py).
        """
        return summed(self._of_size(part, bits) for part in planes(layer))

    def _of_size(self, layer: Layer, bits: Bits) -> dict[str, float]:
        height, width = layer.out_size
        places = -(-height // self.engine.rows) * -(-width // self.engine.columns)
        cycles = places * (self._depthwise if layer.kind == "depthwise" else self._dense)(
            layer, bits.weight
        )
        return {"latency": self.batch * layer.calls * cycles}

    def _dense(self, layer: Layer, weight_bits: int) -> int:
        c_in, c_out = layer.c_in // layer.groups, layer.c_out // layer.groups
        full, rest = divmod(c_out, self.engine.channels)
        cycles = 0
        for taps, passes in zip((9, 1), parts(pair(layer.kernel)), strict=True):
            tile = self.engine.dense_tile(c_in, self.engine.channels, weight_bits, taps)
            smaller = self.engine.dense_tile(c_in, rest, weight_bits, taps) if rest else 0
            cycles += passes * (full * tile + smaller)
        return layer.groups * cycles

    def _depthwise(self, layer: Layer, weight_bits: int) -> int:
        full, rest = divmod(layer.c_out, self.engine.depthwise_channels)
        tile = self.engine.depthwise_tile(self.engine.depthwise_channels, weight_bits)
        smaller = self.engine.depthwise_tile(rest, weight_bits) if rest else 0
        passes = -(-layer.kernel[0] // 3) * -(-layer.kernel[1] // 3)
        return passes * (full * tile + smaller)

    def ceilings(self, bits: Bits, clock_hz: float) -> Ceilings:
        """Return the rate of 3x3 convolutions while all units multiply, and that of the memory."""
        engine = self.engine
        macs = engine.rows * engine.columns * 9 * engine.depth / bits.weight * clock_hz
        return Ceilings(macs, engine.port_bits / 8 * clock_hz)


def parts(kernel: tuple[int, int]) -> tuple[int, int]:
    """Return into how many 3x3 and into how many 1x1 kernels a kernel is cut.

    >>> parts((3, 3)), parts((1, 1)), parts((5, 5)), parts((7, 1))
    ((1, 0), (0, 1), (1, 16), (0, 7))
    """
    (height, width), (down, across) = kernel, (kernel[0] % 3, kernel[1] % 3)
    return (height // 3) * (width // 3), down * width + across * height - down * across


class Ne16(Constants):
    """Constants of the engine."""

    gives: ClassVar[Mapping[str, str]] = {"latency": "cycles"}

    type: Literal["ne16"]
    engine: Engine

    @model_validator(mode="after")
    def _possible(self) -> Self:
        check_counts("engine", asdict(self.engine))
        return self

    def formula(self, clock_hz: float, batch: int) -> Ne16Formula:
        """Return the formula for a batch of images; its costs are cycles, whatever the clock."""
        return Ne16Formula(self.engine, batch)
