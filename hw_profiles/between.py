"""What pairs of bits cost that a table has no row for: the three rules of ``bits.between``."""

import math
from collections.abc import Callable, Mapping

from haq.allocation.policy import FLOAT, Bits
from haq.hw_profiles.answers import Costs
from haq.hw_profiles.profile import Profile
from haq.hw_profiles.rows import Cells, Row

ByBits = Callable[[Cells, Bits], Costs | None]
"""From the rows of one layer for one batch, and a pair, to its costs; None without an answer."""


def costs_by_bits(profile: Profile) -> ByBits:
    """Return what finds the costs of a pair among rows, by the rule of the profile."""
    rule, first = profile.bits.between, next(iter(profile.quantities))

    def by_bits(rows: Cells, bits: Bits) -> Costs | None:
        if bits in rows:
            return Costs(values(rows[bits]), "exact")
        alike = {has: row for has, row in rows.items() if has.scheme[1:] == bits.scheme[1:]}
        if rule == "round-up":
            return _rounded_up(alike, bits, first)
        return _interpolated(alike, bits) if rule == "interpolate" else None

    return by_bits


def values(row: Row) -> dict[str, float]:
    """Return quantity to the cost in a row."""
    return {quantity: cost.value for quantity, cost in row.cost.items()}


def _rounded_up(rows: Cells, bits: Bits, first: str) -> Costs | None:
    wider = [values(row) for has, row in rows.items() if _holds(has, bits)]
    cheapest = min(wider, key=lambda cost: cost[first], default=None)
    return None if cheapest is None else Costs(cheapest, "rounded up")


def _holds(wide: Bits, bits: Bits) -> bool:
    """Return whether operands of ``bits`` can be kept in wider ones; float holds only float."""
    return all(
        has >= asked and (has == FLOAT) == (asked == FLOAT)
        for has, asked in zip(wide, bits, strict=True)
    )


def _interpolated(rows: Cells, bits: Bits) -> Costs | None:
    """Return the bilinear mean of the four rows around ``bits``; nothing outside the grid."""
    weights = _bracket({has.weight for has in rows}, bits.weight)
    acts = _bracket({has.act for has in rows}, bits.act)
    corners = {
        Bits(weight, act): share * other
        for weight, share in weights.items()
        for act, other in acts.items()
    }
    if not corners or not corners.keys() <= rows.keys():
        return None
    return Costs(_mean(rows, corners), "interpolated")


def _mean(rows: Cells, shares: Mapping[Bits, float]) -> dict[str, float]:
    costs = [(share, values(rows[corner])) for corner, share in shares.items()]
    return {
        quantity: math.fsum(share * cost[quantity] for share, cost in costs)
        for quantity in costs[0][1]
    }


def _bracket(widths: set[int], width: int) -> dict[int, float]:
    """Return the widths on both sides of one with their shares, or itself alone."""
    if width in widths:
        return {width: 1.0}
    below = [other for other in widths if other < width]
    above = [other for other in widths - {FLOAT} if other > width]
    if not below or not above:
        return {}
    low, high = max(below), min(above)
    return {low: (high - width) / (high - low), high: (width - low) / (high - low)}
