"""Bit-serial matrix-multiply overlays (BISMO): cycles and energy of a layer, in closed form.

Such an array multiplies one bit of each weight with one bit of each activation at a time, so a
layer never takes less than (weight bits x activation bits) passes. What it often waits for is the
memory: then the bits of one operand alone decide. Cycles are whole numbers and exact.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import ClassVar, Literal, NamedTuple, Self

from pydantic import model_validator

from haq.allocation.policy import Bits
from haq.hw_profiles.formula import Ceilings, Constants, check_counts, summed
from haq.hw_profiles.planes import as_products
from haq.network.layers import Layer


@dataclass(frozen=True)
class Overlay:
    """The sizes of the array and of its memories.

    Attributes:
        rows: Rows of the weight matrix worked on at once.
        columns: Columns of the activation matrix worked on at once.
        word_bits: Length of one binary dot product, done in one cycle.
        port_bits: Bits that each operand's memory channel delivers in one cycle.
        buffer_words: Dot-product words that one bank on the chip holds.
        depthwise_channels: Channels of a depthwise convolution computed together, as if dense.
    """

    rows: int
    columns: int
    word_bits: int
    port_bits: int
    buffer_words: int
    depthwise_channels: int


@dataclass(frozen=True)
class Power:
    """What the overlay draws: at rest, per binary operation, per bit fetched from memory."""

    static_w: float
    pj_per_binop: float
    pj_per_dram_bit: float


class Work(NamedTuple):
    """One matrix product on the overlay.

    Attributes:
        cycles: From first to last, fetching and computing overlapped where they can be.
        busy: Cycles in which the array computes; never more than ``cycles``.
        fetched: Bits read from memory, refetches and padding included.
    """

    cycles: int
    busy: int
    fetched: int


class Product(NamedTuple):
    """A (rows x depth) by (depth x columns) product done ``times`` times in a row."""

    rows: int
    depth: int
    columns: int
    times: int


class _Operand(NamedTuple):
    size: int  # rows of weights, or columns of activations
    bits: int
    lanes: int  # how many the array takes at once


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _hold(overlay: Overlay, depth: int, held: _Operand, streamed: _Operand) -> Work:
    words = _ceil_div(depth, overlay.word_bits)
    beats = _ceil_div(depth, overlay.port_bits)
    held_tiles = _ceil_div(held.size, held.lanes)
    tiles = _ceil_div(streamed.size, streamed.lanes)
    last_held = held.size - (held_tiles - 1) * held.lanes
    last = streamed.size - (tiles - 1) * streamed.lanes

    fill = held.size * beats * held.bits
    stream = streamed.size * beats * streamed.bits
    busy = held_tiles * tiles * words * held.bits * streamed.bits
    held_chunks = _ceil_div(held_tiles * words * held.bits, overlay.buffer_words)
    chunks = _ceil_div(tiles * words * streamed.bits, overlay.buffer_words)

    # Waiting for the held operand: what remains to be done when its last bit has come.
    tail = streamed.bits * (words * (tiles - 1) + 1) - 1
    if held_tiles > 1 and last_held < held.lanes:
        tail += max(0, tiles * streamed.bits * words - last_held * beats)
    fetch_bound = fill + held.bits * held_chunks * tail

    # Computing: the streamed operand comes once per chunk, hidden only behind its own tiles.
    pass_words = held.bits * words
    hidden = (tiles - 1) * min(pass_words, streamed.lanes * beats) + min(pass_words, last * beats)
    overlap = streamed.bits * hidden - chunks * (held.bits - 1)
    compute_bound = busy + held_chunks * (stream - overlap)

    fetched = overlay.port_bits * (fill + held_chunks * stream)
    return Work(max(fetch_bound, compute_bound), busy, fetched)


def ways(overlay: Overlay, rows: int, depth: int, columns: int, bits: Bits) -> tuple[Work, Work]:
    """Return the work of a product with the activations held on the chip, and with the weights.

    The other operand streams past the held one, once for every part of it that fits the buffer.
    The arguments are those of ``matmul``.
    """
    weights = _Operand(rows, bits.weight, overlay.rows)
    acts = _Operand(columns, bits.act, overlay.columns)
    return _hold(overlay, depth, acts, weights), _hold(overlay, depth, weights, acts)


def matmul(overlay: Overlay, rows: int, depth: int, columns: int, bits: Bits) -> Work:
    """Return the work of one (rows x depth) by (depth x columns) product of weights by activations.

    It is the way that takes fewer cycles, and of two equal ones the one that fetches less.

    Args:
        overlay: Where it runs.
        rows: Rows of the weight matrix, such as output channels.
        depth: Length of the dot products, such as input channels times kernel height and width.
        columns: Columns of the activation matrix, such as pixels of one output image.
        bits: Of the weights and of the activations.

    Source: the organisation is that of BISMO, Umuroglu et al., arXiv:1806.08862; the formula is a
    reconstruction, see the README of this room.

    >>> cloud = Overlay(16, 16, 256, 256, 1024, 16)
    >>> matmul(cloud, rows=96, depth=16, columns=12544, bits=Bits(8, 1)).cycles
    38352
    """
    both = ways(overlay, rows, depth, columns, bits)
    return min(both, key=lambda work: (work.cycles, work.fetched))


def product(overlay: Overlay, layer: Layer, batch: int) -> Product:
    """Return the matrix product that a layer of one size becomes, and how often a batch needs it.

    A convolution is done image by image. A linear layer takes the whole batch as columns, so its
    cost rises in steps. Depthwise channels are packed into dense blocks; a depthwise convolution
    with several outputs per channel is a grouped one.
    """
    layer = as_products(layer)
    pixels, taps = prod(layer.out_size), prod(layer.kernel)
    if layer.kind == "linear":
        positions = layer.in_size[0] * layer.in_size[1]
        return Product(layer.c_out, layer.c_in, batch * positions, layer.calls)
    if layer.kind == "depthwise":
        block = overlay.depthwise_channels
        blocks = _ceil_div(layer.c_out, block)
        return Product(block, block * taps, pixels, layer.calls * batch * blocks)
    rows, depth = layer.c_out // layer.groups, layer.c_in // layer.groups * taps
    return Product(rows, depth, pixels, layer.calls * batch * layer.groups)


@dataclass(frozen=True)
class BitserialFormula:
    """What layers cost on an overlay at one clock and batch size.

    Attributes:
        overlay: The sizes behind the cycles.
        power: The constants behind the energy.
        clock_hz: Cycles per second.
        batch: Images computed together; every cost is that of the whole batch.
    """

    overlay: Overlay
    power: Power
    clock_hz: float
    batch: int

    def cost(self, layer: Layer, bits: Bits) -> dict[str, float]:
        """Return the latency in cycles, a whole number, and the energy in nJ.

        Both are of all calls of the layer, for the whole batch. The energy is::

            static_w * seconds + pj_per_binop * binary operations + pj_per_dram_bit * bits fetched

        where a busy cycle counts as 2 * rows * columns * word_bits operations: idle lanes toggle.
        """
        return summed(self._of_size(part, bits) for part in layer.by_size())

    def _of_size(self, layer: Layer, bits: Bits) -> dict[str, float]:
        rows, depth, columns, times = product(self.overlay, layer, self.batch)
        work = matmul(self.overlay, rows, depth, columns, bits)
        return {"latency": times * work.cycles, "energy": times * self._energy_nj(work)}

    def _energy_nj(self, work: Work) -> float:
        array = self.overlay
        binops = 2 * array.rows * array.columns * array.word_bits * work.busy
        static_nj = self.power.static_w * work.cycles / self.clock_hz * 1e9
        dynamic_pj = self.power.pj_per_binop * binops + self.power.pj_per_dram_bit * work.fetched
        return static_nj + dynamic_pj / 1000

    def ceilings(self, bits: Bits, clock_hz: float) -> Ceilings:
        """Return the rate of all binary lanes, and both memory channels together."""
        lanes = self.overlay.rows * self.overlay.columns * self.overlay.word_bits
        macs = lanes * clock_hz / (bits.weight * bits.act)
        return Ceilings(macs, 2 * self.overlay.port_bits / 8 * clock_hz)


class Bitserial(Constants):
    """Constants of a bit-serial overlay."""

    gives: ClassVar[Mapping[str, str]] = {"latency": "cycles", "energy": "nJ"}

    type: Literal["bitserial"]
    overlay: Overlay
    power: Power

    @model_validator(mode="after")
    def _possible(self) -> Self:
        check_counts("overlay", asdict(self.overlay))
        return self

    def formula(self, clock_hz: float, batch: int) -> BitserialFormula:
        """Return the formula for a batch of images at the overlay's clock."""
        return BitserialFormula(self.overlay, self.power, clock_hz, batch)
