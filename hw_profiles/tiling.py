"""The search for the tiling of a convolution on a spatial array that multiplies narrow numbers.

An array of fusion units keeps tiles of weights, activations and partial sums in three double
buffers. ``search`` tries every tiling and every order of the loops over the tiles and takes the one
with the fewest cycles and, of equal ones, the least energy. Counts are whole numbers and exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haq.allocation.policy import Bits

VERSION = 1
"""Of the algorithm: raise it when a count changes, and results kept on disk are found again."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Array:
    """The sizes of the array and of its memories.

    Attributes:
        rows: Fusion units along the input channels.
        columns: Fusion units along the output channels.
        most_bits: The widest operand of a fusion unit, which then does one product in a cycle.
        fewest_bits: Narrower operands take as much of a unit as these.
        sum_bits: Of a partial sum, in its buffer and on the way to memory and back.
        weight_bytes: On-chip memory of the weights; half of it holds the tile being worked on.
        act_bytes: The same for the activations.
        sum_bytes: The same for the partial sums.
        dram_bits: Bits moved to or from memory in one cycle.
    """

    rows: int
    columns: int
    most_bits: int
    fewest_bits: int
    sum_bits: int
    weight_bytes: int
    act_bytes: int
    sum_bytes: int
    dram_bits: int

    def products(self, bits: Bits) -> int:
        """Return how many products of such operands a fusion unit does in one cycle.

        >>> Array(16, 32, 8, 2, 32, 65536, 32768, 16384, 192).products(Bits(weight=4, act=2))
        8
        """
        each = (self.most_bits // max(width, self.fewest_bits) for width in bits)
        return next(each) * next(each)


@dataclass(frozen=True)
class Energy:
    """What a busy cycle takes, and a bit read from or written to each memory, in pJ."""

    cycle_pj: float
    weight_read_pj: float
    weight_write_pj: float
    act_read_pj: float
    act_write_pj: float
    sum_read_pj: float
    sum_write_pj: float
    dram_pj: float

    @property
    def pj(self) -> NDArray[np.float64]:
        """The energy of one of each of the counts of a ``Work``, in its order, in pJ."""
        return np.array(
            [self.cycle_pj, 0.0, self.weight_read_pj, self.weight_write_pj, self.act_read_pj,
             self.act_write_pj, self.sum_read_pj, self.sum_write_pj, self.dram_pj, self.dram_pj]
        )  # fmt: skip


class Conv(NamedTuple):
    """A convolution without groups over a batch; a linear layer is one of a single pixel.

    Attributes:
        batch: Images.
        c_in: Input channels.
        c_out: Output channels.
        kernel: Height and width.
        stride: Down and across.
        out_size: Height and width of the output.
        unrolled: Whether the patches under the kernel are laid out as rows first (im2col).
    """

    batch: int
    c_in: int
    c_out: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    out_size: tuple[int, int]
    unrolled: bool


class Work(NamedTuple):
    """What a layer takes: cycles, and bits moved.

    Attributes:
        busy: Cycles in which the array computes.
        stalled: Cycles in which it waits for the memory.
        weights_read: Bits read from the buffer of the weights.
        weights_written: Bits written to it.
        acts_read: Bits read from the buffer of the activations.
        acts_written: Bits written to it.
        sums_read: Bits read from the buffer of the partial sums.
        sums_written: Bits written to it.
        dram_read: Bits that come from memory.
        dram_written: Bits that go there.
    """

    busy: int
    stalled: int
    weights_read: int
    weights_written: int
    acts_read: int
    acts_written: int
    sums_read: int
    sums_written: int
    dram_read: int
    dram_written: int

    @property
    def cycles(self) -> int:
        """From first to last."""
        return self.busy + self.stalled


class _Tiles(NamedTuple):
    """Candidate tilings, one an entry: sizes of a tile, and how many there are in each loop."""

    batch: Ints
    height: Ints
    width: Ints
    c_in: Ints
    c_out: Ints
    counts: Ints  # (5 loops, tilings): batch, across, down, input channels, output channels


class _Candidates(NamedTuple):
    """Pairs of bits with tilings that fit the buffers, one an entry of each array."""

    pair: Ints  # (candidates,) which pair of bits it is of
    counts: Ints  # (5 loops, candidates)
    busy: Ints  # (candidates,) like all below
    weights: Ints  # bits of one tile
    acts: Ints
    sums: Ints
    weights_read: Ints  # bits read from the buffers, all tiles together
    acts_read: Ints
    sums_moved: Ints  # read from the buffer while computing, and written to it

    def take(self, which: Ints | NDArray[np.bool_]) -> "_Candidates":
        return _Candidates(*(column[..., which] for column in self))


_LOOPS = range(5)  # batch, across, down, input channels, output channels
_OF_WEIGHTS, _OF_ACTS, _OF_SUMS = (3, 4), (0, 1, 2, 3), (0, 1, 2, 4)  # loops that change the tile


def search(array: Array, energy: Energy, conv: Conv, pairs: Sequence[Bits]) -> list[Work]:
    """Return the work of the best tiling of a convolution, for each pair of bits.

    Tiles halve the batch, the channels and the longer side of the output again and again; each of
    them must fit half of its buffer. Computing and moving tiles overlap, but for the first filling
    of the buffers and the last emptying::

        cycles = max(busy, ceil(bits moved in between / dram_bits)) + filling + emptying

    Args:
        array: Where it runs.
        energy: Decides between tilings of equal cycles.
        conv: The shape; padding is computed like any other pixel.
        pairs: Each of them is searched by itself.

    Raises:
        ValueError: Not even the smallest tile fits the buffers.

    Source: the rules of the simulator that comes with Sharma et al., "Bit Fusion", ISCA 2018,
    arXiv:1712.01507; the README of this room has what was compared with it.

    >>> eyeriss = Array(16, 32, 8, 2, 32, 65536, 32768, 16384, 192)
    >>> fc = Conv(16, 1280, 1000, (1, 1), (1, 1), (1, 1), unrolled=False)
    >>> energy = Energy(235, 0.02, 0.03, 0.06, 0.11, 0.03, 0.07, 15)
    >>> [work.cycles for work in search(eyeriss, energy, fc, [Bits(8, 8), Bits(4, 4)])]
    [66903, 33195]
    """
    candidates = _fitting(array, conv, _tiles(array, conv), pairs)
    if len(np.unique(candidates.pair)) < len(pairs):
        raise ValueError(f"no tile of {conv} fits the buffers")
    square = conv.out_size[0] == conv.out_size[1]
    best = _best_of_all(array, energy, candidates, len(pairs), square)
    return [Work(*map(int, row)) for row in best]


_FIRST = 8  # tilings of each pair of bits that are tried before any is left out
_CHUNK = 2048  # candidates worked on together: they and their orders stay in the cache


def _best_of_all(
    array: Array, energy: Energy, candidates: _Candidates, pairs: int, square: bool
) -> Ints:
    """Return the best order of the best tiling for each pair of bits: (pairs, counts)."""
    # No order of the loops takes fewer cycles than this. So first come, for each pair of bits, the
    # few tilings that may be best, then those that could still be as good as the best of these.
    least, pair = _least_cycles(array, candidates), candidates.pair
    order = np.lexsort((least, pair))
    rank = np.arange(len(order)) - np.searchsorted(pair[order], pair[order])
    best = _best(array, energy, candidates.take(order[rank < _FIRST]), pairs, square)
    cycles = best[:, 0] + best[:, 1]
    later = order[rank >= _FIRST]
    later = later[least[later] <= cycles[pair[later]]]
    for start in range(0, len(later), _CHUNK):
        chunk = candidates.take(later[start : start + _CHUNK])
        best = _better(energy, best, _best(array, energy, chunk, pairs, square))
    return best


def _tiles(array: Array, conv: Conv) -> _Tiles:
    height, width = conv.out_size
    sides = _doublings(max(height, width))
    outs = _doublings(conv.c_out) if conv.unrolled else _doublings(conv.c_out, array.columns)
    sizes = product(_doublings(conv.batch), sides, _doublings(conv.c_in), outs)
    batch, side, c_in, c_out = np.array(list(sizes), dtype=np.int64).T
    across, down = np.minimum(side, width), np.minimum(side, height)
    whole = (conv.batch, width, height, conv.c_in, conv.c_out)
    parts = (batch, across, down, c_in, c_out)
    counts = np.array([_ceil_div(n, part) for n, part in zip(whole, parts, strict=True)])
    return _Tiles(batch, down, across, c_in, c_out, counts)


def _doublings(size: int, start: int = 1) -> list[int]:
    """Return start, 2 start, 4 start, … below ``size``, and ``size``."""
    steps = []
    while start < size:
        steps.append(start)
        start *= 2
    return [*steps, size]


def _fitting(array: Array, conv: Conv, tiles: _Tiles, pairs: Sequence[Bits]) -> _Candidates:
    weight, act = np.array(pairs).T[..., None]  # (pairs, 1)
    lanes = array.rows * np.array([[array.products(bits)] for bits in pairs])  # (pairs, 1)
    (down, across), taps = conv.stride, conv.kernel[0] * conv.kernel[1]
    pixels = tiles.batch * tiles.height * tiles.width  # (tilings,)
    columns = _ceil_div(tiles.c_out, array.columns) * array.columns
    padded = _ceil_div(taps * tiles.c_in, lanes) * lanes  # (pairs, tilings)
    if conv.unrolled:
        depth, seen = padded, tiles.height * tiles.width * taps
    else:
        depth = taps * _ceil_div(tiles.c_in, lanes) * lanes
        rows = conv.kernel[0] + (tiles.height - 1) * down
        seen = rows * (conv.kernel[1] + (tiles.width - 1) * across)
    weights = padded * tiles.c_out * weight
    acts = seen * tiles.c_in * tiles.batch * act
    sums = pixels * columns * array.sum_bits
    fits = (
        (weights <= _room(array.weight_bytes))
        & (acts <= _room(array.act_bytes))
        & (sums <= _room(array.sum_bytes))
    )
    pair, tile = np.nonzero(fits)
    count = tiles.counts.prod(axis=0)
    busy = count * pixels * (columns // array.columns) * (depth // lanes)
    stays = _stationary(array, depth, columns, pixels, weight, act)
    macs = taps * tiles.c_in * tiles.c_out * pixels
    weights_read = np.where(stays == 2, macs // pixels, macs) * weight
    acts_read = np.where(stays == 0, macs // tiles.c_out, macs) * act
    sums_moved = np.where(stays == 1, tiles.c_out * pixels, macs) * array.sum_bits
    return _Candidates(
        pair, tiles.counts[:, tile], busy[fits], weights[fits], acts[fits], sums[tile],
        (count * weights_read)[fits], (count * acts_read)[fits], (count * sums_moved)[fits],
    )  # fmt: skip


def _stationary(
    array: Array, depth: Ints, columns: Ints, pixels: Ints, weight: Ints, act: Ints
) -> Ints:
    """Return which operand stays in the units inside a tile: (pairs, tilings).

    That which takes the least traffic of padded loops: 0 is the activations, 1 the sums, 2 the
    weights; of equal ones the first.
    """
    traffic = (
        depth * pixels * (act + columns * (weight + array.sum_bits)),
        columns * pixels * (array.sum_bits + depth * (weight + act)),
        depth * columns * (weight + pixels * (act + array.sum_bits)),
    )
    stays: Ints = np.argmin(traffic, axis=0)
    return stays


def _room(size_bytes: int) -> int:
    return size_bytes * 8 // 2  # the other half is being filled


def _least_cycles(array: Array, candidates: _Candidates) -> Ints:
    once = candidates.weights + candidates.acts + candidates.sums
    computing = candidates.busy + _ceil_div(once, array.dram_bits)
    computing += _ceil_div(candidates.sums, array.dram_bits)
    moved = (
        candidates.weights * candidates.counts[list(_OF_WEIGHTS)].prod(axis=0)
        + candidates.acts * candidates.counts[list(_OF_ACTS)].prod(axis=0)
        + candidates.sums * candidates.counts[list(_OF_SUMS)].prod(axis=0) * 2
    )
    least: Ints = np.maximum(computing, _ceil_div(moved, array.dram_bits))
    return least


def _best(array: Array, energy: Energy, candidates: _Candidates, pairs: int, square: bool) -> Ints:
    """Return the best order of the best of these tilings for each pair of bits: (pairs, counts)."""
    orders = _orders(square)
    weights, held_weights = _moved(
        candidates.weights, candidates.counts, orders, _OF_WEIGHTS, array.weight_bytes
    )
    acts, held_acts = _moved(candidates.acts, candidates.counts, orders, _OF_ACTS, array.act_bytes)
    sums, held_sums = _moved(candidates.sums, candidates.counts, orders, _OF_SUMS, array.sum_bytes)
    # Filling the buffers for the first time and emptying them the last time hide behind nothing.
    exposed = _ceil_div(held_weights + held_acts + held_sums, array.dram_bits)
    exposed += _ceil_div(held_sums, array.dram_bits)
    rest = weights + acts + 2 * sums - (held_weights + held_acts + 2 * held_sums)
    stalled = np.maximum(0, _ceil_div(rest, array.dram_bits) - candidates.busy) + exposed
    read = weights + acts + sums
    shape = stalled.shape
    counts = np.stack(
        [np.broadcast_to(column, shape) for column in (
            candidates.busy, stalled,
            candidates.weights_read, weights,
            candidates.acts_read, acts,
            sums + candidates.sums_moved, sums + candidates.sums_moved,
            read, sums,
        )], axis=-1,
    )  # fmt: skip
    best: Ints = np.full((pairs, counts.shape[-1]), _NEVER)
    pair = np.broadcast_to(candidates.pair, shape).ravel()
    counts = counts.reshape(-1, counts.shape[-1])
    order = np.lexsort((counts @ energy.pj, counts[:, 0] + counts[:, 1], pair))
    present, first = np.unique(pair[order], return_index=True)
    best[present] = counts[order[first]]
    return best


_NEVER = 2**60  # cycles of a pair of bits that has no candidate among these


def _better(energy: Energy, one: Ints, other: Ints) -> Ints:
    cycles = [counts[:, 0] + counts[:, 1] for counts in (one, other)]
    pj = [counts @ energy.pj for counts in (one, other)]
    wins = (cycles[1] < cycles[0]) | ((cycles[1] == cycles[0]) & (pj[1] < pj[0]))
    return np.where(wins[:, None], other, one)


@cache
def _orders(square: bool) -> Ints:
    """Return every order of the loops, innermost first: (orders, 5).

    On a square output the loops down and across are the same, so half of the orders will do.
    """
    orders = [o for o in permutations(_LOOPS) if not square or o.index(1) < o.index(2)]
    return np.array(orders)


def _moved(
    tile: Ints, counts: Ints, orders: Ints, changes: tuple[int, ...], size_bytes: int
) -> tuple[Ints, Ints]:
    """Return the bits of one operand moved in all, and those the buffer holds: (orders, tilings).

    From the innermost loop outwards, the operand is kept as long as all its tiles seen so far fit
    the buffer. From there on every loop moves it again, also those that do not change the tile.
    """
    moved = np.broadcast_to(tile, (len(orders), len(tile))).copy()
    held = moved.copy()
    holds = np.ones(moved.shape, dtype=bool)
    for place in _LOOPS:
        loop = orders[:, place]
        changing = np.isin(loop, changes)[:, None]
        grown = moved * counts[loop]
        moved = np.where(holds & ~changing, moved, grown)
        fits = grown <= _room(size_bytes)
        held = np.where(holds & changing & fits, grown, held)
        holds &= ~changing | fits
    return moved, held


def _ceil_div(a: Ints | int, b: Ints | int) -> Ints:
    return np.asarray(-(-np.asarray(a) // b), dtype=np.int64)
