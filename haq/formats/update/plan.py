"""Which mode each unit of a network is coded in, and the tables that all of them share."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from haq.formats.coder import tables
from haq.formats.update.coefficients import Key
from haq.formats.update.network import Network
from haq.formats.update.options import Coded, Whole, coded, fitted, ways_of
from haq.formats.update.units import Part, contexts_of, symbols_of

FEW = 2**17
"""Up to so many values, a network is tried without coefficients too."""

BITS_OF_COEFFICIENT = 14
"""About what a coefficient takes in a packet, compressed."""


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


def plan(pairs: Sequence[tuple[Network, Network | None]], bits: int | None = None) -> Plan:
    """Return how some networks are sent in as few bytes as may be.

    Args:
        pairs: Each network with the one it is predicted from, as the receiver has it.
        bits: For a lossy packet, the bits of the weights of float32 tensors; None to be exact.
    """
    return best([ways_of(network, base, bits) for network, base in pairs])


def best(wholes: Sequence[Sequence[Sequence[Whole | Coded]]]) -> Plan:
    """Return the plan with the fewest bytes, given for each network the ways of each unit."""
    every = [whole for member in wholes for ways in member for whole in ways]
    plans = [_plan(wholes, fitted(every, True))]
    if any(isinstance(one, Whole) and one.base for one in every):
        # Few wide steps are told better by the base alone.
        plans.append(_plan(wholes, fitted(every, False)))
    if sum(ways[0].unit.values for member in wholes for ways in member) < FEW:
        plans.append(_plan(wholes, {}))  # coefficients cost more than they save, perhaps
    return min(plans, key=lambda one: one[0])[1]


def _plan(
    wholes: Sequence[Sequence[Sequence[Whole | Coded]]], coefficients: Mapping[Key, Sequence[int]]
) -> tuple[float, Plan]:
    """Return the bits of the best plan with these coefficients, and the plan."""
    options = [[[coded(one, coefficients) for one in unit] for unit in m] for m in wholes]
    first = sets_of([way for member in options for unit in member for way in unit])
    chosen = [[min(unit, key=lambda one: _bits(one, first)) for unit in m] for m in options]
    return smaller([chosen, [[unit[0] for unit in m] for m in options]], coefficients)


def smaller(
    ways: Sequence[Sequence[Sequence[Coded]]], coefficients: Mapping[Key, Sequence[int]]
) -> tuple[float, Plan]:
    """Return the fewest bits that a way takes with tables of its own, and its plan."""
    plans: list[tuple[float, int, Plan]] = []
    for members in ways:
        every = [way for member in members for way in member]
        sets = sets_of(every)
        used = {(one.unit.shape[2:], one.mode.lower()) for one in every if one.parts}
        near = {key: row for key, row in coefficients.items() if key in used}
        bits = sum(_bits(one, sets) for one in every)
        bits += 8 * bytes_of_tables(sets)
        bits += BITS_OF_COEFFICIENT * sum(map(len, near.values()))
        plans.append((bits, len(plans), Plan(members, sets, near)))
    bits, _, best = min(plans)
    return bits, best


def bytes_of_tables(sets: Mapping[str, Tables]) -> float:
    """Return about how many bytes the tables of all sets take in a packet."""
    return float(tables.BYTES_OF_SYMBOL * sum((one.levels > 0).sum() for one in sets.values()))


def sets_of(every: Sequence[Coded]) -> dict[str, Tables]:
    """Return the tables of each set that is worth them."""
    counts: dict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros((1, 1), np.int64))
    for part in (part for way in every for part in way.parts):
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
