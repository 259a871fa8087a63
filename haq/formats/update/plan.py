"""Which mode each unit of a network is coded in, and the tables that all of them share."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haq.errors import UpdateError
from haq.formats.update import order, quantizer, tables
from haq.formats.update.coefficients import Fit, Key
from haq.formats.update.contexts import UNIT, Ints
from haq.formats.update.network import Network, floats
from haq.formats.update.units import (
    Base,
    Part,
    Unit,
    alike,
    code_part,
    contexts_of,
    differences,
    keys_of,
    predicted,
    same,
    symbols_of,
    units,
)


class Lossy(NamedTuple):
    """How a tensor is rounded: its codes' bits, and the step they count in."""

    bits: int
    step: np.float32


class Coded(NamedTuple):
    """A unit in a mode.

    Attributes:
        unit: The unit.
        mode: One of ``units.MODES``.
        parts: Its symbols.
        lossy: Its rounding; None where it is exact.
    """

    unit: Unit
    mode: str
    parts: tuple[Part, ...]
    lossy: Lossy | None = None


class Tables(NamedTuple):
    """The tables of a set.

    Attributes:
        context: Context to the number of its table, uint8.
        levels: (tables, symbols), uint8.
    """

    context: NDArray[np.uint8]
    levels: NDArray[np.uint8]


@dataclass(frozen=True)
class Plan:
    """Some networks, each unit in the mode that is smallest.

    Attributes:
        members: For each network, its units in order.
        sets: The tables of each set that is coded; the bytes of others are sent as they are.
        coefficients: For each kernel and kind.
    """

    members: Sequence[Sequence[Coded]]
    sets: Mapping[str, Tables]
    coefficients: Mapping[Key, Sequence[int]] = field(default_factory=dict)


class _Whole(NamedTuple):
    """A unit in a mode of codes, before it is cut into symbols."""

    unit: Unit
    mode: str
    codes: Ints
    base: Base | None = None
    lossy: Lossy | None = None


def plan(pairs: Sequence[tuple[Network, Network | None]], bits: int | None = None) -> Plan:
    """Return how some networks are sent in as few bytes as may be.

    Args:
        pairs: Each network with the one it is predicted from, as the receiver has it.
        bits: For a lossy packet, the bits of the weights of float32 tensors; None to be exact.
    """
    fit = Fit()
    wholes = [[_wholes(unit, *pair, bits) for unit in units(pair[0].outline)] for pair in pairs]
    for whole in (whole for member in wholes for options in member for whole in options):
        if isinstance(whole, _Whole):
            fit.add(_u(whole), whole.unit.shape, _kind(whole.mode))
    coefficients = fit.solved()
    options = [[[_coded(one, coefficients) for one in unit] for unit in m] for m in wholes]
    first = _sets([coded for member in options for unit in member for coded in unit])
    chosen = [[min(unit, key=lambda one: _bits(one, first)) for unit in m] for m in options]
    return smaller([chosen, [[unit[0] for unit in m] for m in options]], coefficients)


def smaller(
    ways: Sequence[Sequence[Sequence[Coded]]], coefficients: Mapping[Key, Sequence[int]]
) -> Plan:
    """Return the plan of the way that takes the fewest bits with tables of its own."""
    plans: list[tuple[float, int, Plan]] = []
    for members in ways:
        every = [coded for member in members for coded in member]
        sets = _sets(every)
        used = {(one.unit.shape[2:], _kind(one.mode)) for one in every if one.parts}
        near = {key: row for key, row in coefficients.items() if key in used}
        bits = sum(_bits(one, sets) for one in every)
        bits += sum(tables.BYTES_OF_SYMBOL * 8 * (one.levels > 0).sum() for one in sets.values())
        plans.append((bits, len(plans), Plan(members, sets, near)))
    return min(plans)[2]


def _kind(mode: str) -> str:
    return "v" if mode == "r" else mode


def _u(whole: _Whole) -> Ints:
    u = order.to_planes(whole.codes, whole.unit.shape).astype(np.int32) * UNIT
    return u if whole.base is None else u - whole.base.sixteenths


def _wholes(
    unit: Unit, network: Network, base: Network | None, bits: int | None
) -> list[_Whole | Coded]:
    """Return the modes a unit may be coded in, directly first but for what the base has too."""
    if same(unit, network, base):
        return [Coded(unit, "s", ())]
    if unit.bits:
        return list(_of_layer(unit, network, base))
    if bits is not None and is_lossy(unit):
        return list(_of_weights(unit, network, base, bits))
    data = network.tensors[unit.name].data
    options: list[_Whole | Coded] = [Coded(unit, "d", _byte_parts(unit, "d", data))]
    if base is not None and alike(unit, base):
        apart = differences(unit, data, base.tensors[unit.name].data)
        options.append(Coded(unit, "v", _byte_parts(unit, "v", apart)))
    return options


def is_lossy(unit: Unit) -> bool:
    """Return whether a lossy packet rounds a unit: float32, with at least two dimensions."""
    return not unit.bits and unit.dtype == "F32" and len(unit.shape) > 1


def _of_layer(unit: Unit, network: Network, base: Network | None) -> list[_Whole]:
    codes = network.codes(unit.name).ravel().astype(np.int32)
    options = [_Whole(unit, "d", codes)]
    for mode in "vr" if base is not None else "":
        assert base is not None
        try:
            prediction = predicted(network.steps(unit.name), unit, base, mode)
        except UpdateError:  # the base has no such layer
            continue
        options.append(_Whole(unit, mode, codes, prediction))
    return options


def _of_weights(unit: Unit, network: Network, base: Network | None, bits: int) -> list[_Whole]:
    values = floats(network.tensors[unit.name].data)
    if not np.isfinite(values).all():
        raise UpdateError(f"tensor {unit.name!r} has values that are not finite; send it exactly")
    lossy = Lossy(bits, quantizer.step_of(values, bits))
    top = 2 ** (bits - 1) - 1
    options = []
    if base is not None and alike(unit, base):
        apart = values - floats(base.tensors[unit.name].data)
        z = _rounded(apart, lossy, None)
        if np.abs(z).max(initial=0) <= top:
            options.append(_Whole(unit, "l", z, None, lossy))
    return [_Whole(unit, "q", _rounded(values, lossy, top), None, lossy), *options]


def _rounded(values: NDArray[np.float32], lossy: Lossy, most: int | None) -> Ints:
    step = float(lossy.step)
    offset = quantizer.offset_for(values, step, lossy.bits)
    return quantizer.quantize(values, step, offset, most)


def _byte_parts(unit: Unit, mode: str, data: NDArray[np.uint8]) -> tuple[Part, ...]:
    keys = keys_of(unit, mode)
    planes = data.reshape(-1, len(keys)).T
    zeros = np.zeros(planes.shape[1], np.uint16)
    return tuple(
        Part(key, np.ascontiguousarray(plane), zeros)
        for key, plane in zip(keys, planes, strict=True)
    )


def _coded(whole: _Whole | Coded, coefficients: Mapping[Key, Sequence[int]]) -> Coded:
    if isinstance(whole, Coded):
        return whole
    unit, mode, codes, base, lossy = whole
    near = coefficients.get((unit.shape[2:], _kind(mode)), ())
    (key,) = keys_of(unit, mode, lossy.bits if lossy else 0)
    return Coded(unit, mode, (code_part(key, codes, unit.shape, near, base),), lossy)


def _sets(every: Sequence[Coded]) -> dict[str, Tables]:
    """Return the tables of each set that is worth them."""
    counts: dict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros((1, 1), np.int64))
    for part in (part for coded in every for part in coded.parts):
        size = symbols_of(part.key)
        at = part.contexts.astype(np.int64) * size + part.symbols
        flat = np.bincount(at, minlength=contexts_of(part.key) * size)
        counts[part.key] = counts[part.key] + flat.reshape(-1, size)
    sets = {}
    for key, table in sorted(counts.items()):
        known = _tables(table)
        if not _is_worse_than_bytes(key, table, known):
            sets[key] = known
    return sets


def _is_worse_than_bytes(key: str, counts: NDArray[np.int64], known: Tables) -> bool:
    if key[0] == "c":
        return False
    own = tables.bits_of(counts).sum() / 8 + tables.BYTES_OF_SYMBOL * (known.levels > 0).sum()
    return bool(own > 0.98 * counts.sum())


def _tables(counts: NDArray[np.int64]) -> Tables:
    context = tables.merge(counts)
    used: NDArray[np.bool_] = np.asarray(counts.any(1))
    # What does not occur is like what stands before it, which compresses best.
    last = np.maximum.accumulate(np.where(used, np.arange(len(used)), -1))
    first = int(used.argmax()) if used.any() else 0
    context = context[np.where(last < 0, first, last)]
    sums = np.stack([counts[context == number].sum(0) for number in range(int(context.max()) + 1)])
    return Tables(context, tables.levels_of(sums))


def _bits(coded: Coded, sets: Mapping[str, Tables]) -> float:
    """Return how many bits a unit takes with these tables."""
    return sum(bits_of_part(part, sets) for part in coded.parts)


def bits_of_part(part: Part, sets: Mapping[str, Tables]) -> float:
    """Return how many bits some symbols take with these tables: 8 each without one."""
    if part.key not in sets:
        return 8.0 * len(part.symbols)
    known = sets[part.key]
    shares = np.stack([tables.frequencies(row) for row in known.levels])
    bits = tables.PRECISION - np.log2(np.maximum(shares, 0.5))
    return float(bits[known.context[part.contexts], part.symbols].sum())
