"""What one step of a layer's bits would change, in numbers and a few words: columns of a table."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from haq.allocation.budgets import Budget
from haq.allocation.costs import CostTable, total
from haq.allocation.policy import FLOAT, Policy, readers
from haq.allocation.sensitivities import Sensitivity
from haq.reports.reasons import all_costs, fits, limits_of, moved
from haq.reports.record import RunRecord

REASONS: Mapping[str, str] = {
    "pinned": "fixed by the job or the target",
    "budget": "one step up exceeds it",
    "fewest bits": "there are no fewer to choose",
    "most bits": "there are no more to choose",
    "no choice": "neither more nor fewer can be chosen alone",
    "float": "not quantized",
}
"""What can hold a layer at its bits, in a word and in a few more."""


class Step(NamedTuple):
    """What the next fewer bits of a layer would do, all else left as it is.

    Attributes:
        what: "weights", or "activations" where only these could have fewer.
        lower: The next fewer bits; None where there are none to choose.
        saves: Of the first budget's quantity, as a share of all of it; negative where they cost.
        times: How many times the divergence of the layer alone would be; None where not known.
        reason: What holds the bits where they are, one of ``REASONS``; empty where nothing does
            but what the search found better.
    """

    what: str
    lower: int | None
    saves: float | None
    times: float | None
    reason: str


def steps_of(record: RunRecord) -> dict[str, Step]:
    """Return the next step of each layer of a run; none where the choices are not known."""
    planned = record.planned
    if planned is None or not record.policy:
        return {}
    every = all_costs(planned, record.job)
    return steps(planned.table, every, record.policy, limits_of(record), record.sensitivity)


def steps(
    table: CostTable,
    every: CostTable,
    policy: Policy,
    budgets: Sequence[Budget],
    sensitivity: Sensitivity | None = None,
) -> dict[str, Step]:
    """Return the next step of each layer; the arguments are those of ``reasons``."""
    groups = readers(table.layers)
    rows: dict[str, Step] = {}
    for layer in table.layers:
        name = layer.name
        if policy[name] == (FLOAT, FLOAT):
            rows[name] = Step("weights", None, None, None, "float")
            continue
        fixed = len(table.choices[name]) == 1
        costs = every if fixed else table
        of_weights = _next(costs, policy, (name,), True), (name,), True
        of_inputs = _next(costs, policy, groups[name], False), groups[name], False
        usable = of_inputs if of_weights[0][0] is None and of_inputs[0][0] else of_weights
        rows[name] = _step(costs, policy, budgets, sensitivity, *usable, fixed)
    return rows


def _next(
    table: CostTable, policy: Policy, group: tuple[str, ...], of_weights: bool
) -> tuple[int | None, int | None]:
    """Return the next fewer and the next more bits that can be chosen."""
    now = policy[group[0]].weight if of_weights else policy[group[0]].act
    able = [bits for bits in range(1, FLOAT + 1) if moved(table, policy, group, bits, of_weights)]
    return (
        max((bits for bits in able if bits < now), default=None),
        min((bits for bits in able if bits > now), default=None),
    )


def _step(
    table: CostTable, policy: Policy, budgets: Sequence[Budget], sensitivity: Sensitivity | None,
    bits: tuple[int | None, int | None], group: tuple[str, ...], of_weights: bool, fixed: bool,
) -> Step:  # fmt: skip
    lower, upper = bits
    what = "weights" if of_weights else "activations"
    reason = "pinned" if fixed else _reason(
        table, policy, budgets, group, of_weights, lower, upper)  # fmt: skip
    if lower is None or not budgets:
        return Step(what, lower, None, None, reason)
    to = moved(table, policy, group, lower, of_weights)
    assert to is not None  # it is able to
    before = total(table, policy, budgets[0].quantity)
    saves = 1 - total(table, to, budgets[0].quantity) / before if before else None
    now = policy[group[0]].weight if of_weights else policy[group[0]].act
    return Step(what, lower, saves, _times(sensitivity, what, group[0], now, lower), reason)


def _reason(
    table: CostTable, policy: Policy, budgets: Sequence[Budget], group: tuple[str, ...],
    of_weights: bool, lower: int | None, upper: int | None,
) -> str:  # fmt: skip
    if lower is None and upper is None:
        return "no choice"
    if upper is None:
        return "most bits"
    to = moved(table, policy, group, upper, of_weights)
    if to is not None and not fits(table, to, budgets):
        return "budget"
    return "fewest bits" if lower is None else ""


def _times(
    sensitivity: Sensitivity | None, what: str, name: str, now: int, then: int
) -> float | None:
    if sensitivity is None:
        return None
    known = sensitivity.weights if what == "weights" else sensitivity.activations
    row = known.get(name, {})
    if not row.get(now) or then not in row or not math.isfinite(row[then]):
        return None
    return row[then] / row[now]
