"""Why each layer has its bits: what one step down would save and cost, in one sentence."""

import math
from collections.abc import Sequence

from haq.allocation.budgets import Budget
from haq.allocation.costs import CODED, CostTable, total
from haq.allocation.policy import FLOAT, Bits, Policy, readers
from haq.allocation.sensitivities import Sensitivity
from haq.reports.charts.sensitivity import measure_name
from haq.reports.charts.theme import amount, spoken
from haq.reports.record import RunRecord
from haq.runs.coded_cost import clips_of_weights, with_coded_size
from haq.runs.job import Job
from haq.runs.plan import Plan, every_choice


def reasons(
    table: CostTable,
    every: CostTable,
    policy: Policy,
    budgets: Sequence[Budget],
    sensitivity: Sensitivity | None = None,
) -> dict[str, str]:
    """Return a sentence for each layer: what its next lower bit-widths would save and cost.

    Savings are of the first budget's quantity, costs the sensitivity of the layer alone.

    Args:
        table: What the bits cost that the job leaves open.
        every: What all bits cost that the target runs, for layers that the job fixes.
        policy: The bits chosen, among the choices of the table.
        budgets: At least one.
        sensitivity: Of the layers alone, where it was measured.
    """
    groups = readers(table.layers)
    sentences = {}
    for layer in table.layers:
        name = layer.name
        fixed = len(table.choices[name]) == 1
        costs = every if fixed else table
        parts = [f"fixed by the job at {policy[name]}"] if fixed else []
        parts.append(_channels_part(table, policy, budgets, sensitivity, name))
        parts += [
            _float_part(costs, policy, budgets, groups[name]),
            _part(costs, policy, budgets, sensitivity, (name,), of_weights=True),
            _part(costs, policy, budgets, sensitivity, groups[name], of_weights=False),
        ]
        text = "; ".join(part for part in parts if part)
        sentences[name] = text[:1].upper() + text[1:] + "."
    return sentences


def _part(
    table: CostTable,
    policy: Policy,
    budgets: Sequence[Budget],
    sensitivity: Sensitivity | None,
    group: tuple[str, ...],
    *,
    of_weights: bool,
) -> str:
    """Say it of the weights of one layer, or of the activations of all that read one tensor."""
    name = group[0]
    now = policy[name].weight if of_weights else policy[name].act
    what = "weights" if of_weights else "activations"
    moves = {bits: to for bits in range(1, 33)
             if (to := moved(table, policy, group, bits, of_weights))}  # fmt: skip
    lower = max((bits for bits in moves if bits < now), default=None)
    upper = min((bits for bits in moves if bits > now), default=None)
    if lower is None and upper is None:
        return ""
    shared = f" (shared by {' and '.join(group)})" if len(group) > 1 else ""
    head = f"{what}{shared} at {now} bits: "
    if lower is None:
        assert upper is not None
        text = f"there are no fewer to choose, and {upper} would " + _change(
            table, policy, moves[upper], budgets
        )
        return head + text + _harm(sensitivity, what, group, now, upper)
    text = f"{lower} would " + _change(table, policy, moves[lower], budgets)
    text += _harm(sensitivity, what, group, now, lower)
    if upper is not None and not fits(table, moves[upper], budgets):
        text += f", and {upper} would not fit the budget"
    return head + text


def _channels_part(
    table: CostTable,
    policy: Policy,
    budgets: Sequence[Budget],
    sensitivity: Sensitivity | None,
    name: str,
) -> str:
    """Say it of the channels of the layers that lose them together; nothing of others."""
    group = table.groups[name]
    shares = sorted({bits.keep for bits in table.choices[name]})
    if len(shares) == 1:
        return ""
    now, first = policy[name].keep, group[0]
    shared = f" (shared by {' and '.join(group)})" if len(group) > 1 else ""
    head = f"channels{shared} at {now:.4g} of all: "
    moves = {
        share: {**policy, **{one: policy[one].with_keep(share) for one in group}}
        for share in shares
    }
    parts = []
    for share in (
        max((s for s in shares if s < now), default=None),
        min((s for s in shares if s > now), default=None),
    ):
        if share is not None:
            text = f"{share:.4g} would " + _change(table, policy, moves[share], budgets)
            text += _harm_of_channels(sensitivity, first, now, share)
            fitting = share < now or fits(table, moves[share], budgets)
            parts.append(text if fitting else f"{text}, which does not fit the budget")
    return head + " and ".join(parts)


def _harm_of_channels(sensitivity: Sensitivity | None, first: str, now: float, then: float) -> str:
    row = sensitivity.channels.get(first, {}) if sensitivity else {}
    if now not in row or then not in row or sensitivity is None:
        return ""
    verb = "raise" if row[then] > row[now] else "lower"
    name = measure_name(sensitivity)
    return f", and {verb} the {name} from {row[now]:.2g} to {row[then]:.2g}"


def _float_part(
    table: CostTable, policy: Policy, budgets: Sequence[Budget], group: tuple[str, ...]
) -> str:
    """Say it of a layer that stays float: weights and activations can only change together."""
    name = group[0]
    if policy[name] != (FLOAT, FLOAT):
        return ""
    together = set.intersection(*(set(table.choices[reader]) for reader in group))
    bits = max(together - {policy[name]}, default=None)
    if bits is None:
        return "float"
    to = {**policy, **dict.fromkeys(group, bits)}
    return f"float: {bits} would " + _change(table, policy, to, budgets)


def _with_weight(bits: Bits, weight: int) -> Bits:
    return Bits(weight, bits.act, bits.block, bits.dynamic, bits.keep)


def moved(
    table: CostTable, policy: Policy, group: tuple[str, ...], bits: int, of_weights: bool
) -> dict[str, Bits] | None:
    """Return the policy with other bits for the group, or None where some layer cannot follow.

    Args:
        table: Its choices count.
        policy: Of all layers.
        group: A layer, or all that read one tensor.
        bits: Of the weights or of the activations.
        of_weights: Which of them.
    """
    now = policy[group[0]].weight if of_weights else policy[group[0]].act
    if bits == now:
        return None
    moves = {
        name: _with_weight(policy[name], bits) if of_weights else policy[name].with_act(bits)
        for name in group
    }
    able = all(pair in table.positions[name] for name, pair in moves.items())
    return {**policy, **moves} if able else None


def fits(table: CostTable, policy: Policy, budgets: Sequence[Budget]) -> bool:
    """Return whether a policy keeps the budgets."""
    return all(total(table, policy, b.quantity) <= b.limit * (1 + 1e-9) for b in budgets)


def _change(table: CostTable, policy: Policy, to: Policy, budgets: Sequence[Budget]) -> str:
    quantity = budgets[0].quantity
    before, after = total(table, policy, quantity), total(table, to, quantity)
    if math.isclose(before, after, rel_tol=1e-9):
        return f"change nothing in {spoken(quantity)}"
    verb = "save" if after < before else "cost"
    unit = table.units[quantity]
    share = abs(after - before) / before
    part = f"{share:.1%}" if share >= 0.001 else "less than 0.1%"
    return f"{verb} {amount(abs(after - before), unit)} ({part} of the {spoken(quantity)})"


def _harm(
    sensitivity: Sensitivity | None, what: str, group: tuple[str, ...], now: int, then: int
) -> str:
    if sensitivity is None:
        return ""
    # Layers that read the same tensor have the same values.
    known = sensitivity.weights if what == "weights" else sensitivity.activations
    row = known.get(group[0], {})
    if now not in row or then not in row:
        return ""
    before, after = row[now], row[then]
    name = measure_name(sensitivity)
    if f"{before:.1g}" == f"{after:.1g}":
        return f" and leave the {name} at {after:.1g}"
    if after < before:
        return f" and lower the {name} from {before:.2g} to {after:.2g}"
    times = f" {after / before:.2g} times," if before > 0 else ""
    return f" and raise the {name}{times} to {after:.2g}"


def why_channels(record: RunRecord) -> dict[str, str]:
    """Return why layers have the channels that they have; none where the choices are not known."""
    planned = record.planned
    if planned is None or planned.widths is None or not record.policy:
        return {}
    parts = {
        name: _channels_part(
            planned.table, record.policy, limits_of(record), record.sensitivity, name
        )
        for name in record.policy
    }
    along = {
        name: f"Has the channels of {group.name}."
        for group in planned.widths.groups for name in group.depthwise
    }  # fmt: skip
    return along | {n: f"{text[:1].upper()}{text[1:]}." for n, text in parts.items() if text}


def limits_of(record: RunRecord) -> Sequence[Budget]:
    """Return what costs of layers count for: the budgets, else what an accuracy target saves."""
    if record.planned is None or record.planned.budgets:
        return record.planned.budgets if record.planned else ()
    return (Budget(record.job.minimise or "size", math.inf),)


def why(record: RunRecord) -> dict[str, str]:
    """Return a sentence for each layer; none where its choices are not known."""
    planned = record.planned
    if planned is None or not record.policy:
        return {}
    every = all_costs(planned, record.job)
    return reasons(planned.table, every, record.policy, limits_of(record), record.sensitivity)


def all_costs(planned: Plan, job: Job) -> CostTable:
    """Return what all bits cost that the target runs, coded bytes with them where they count."""
    every = every_choice(planned)
    if CODED not in planned.table.rows:
        return every
    clips = clips_of_weights(planned.graph, job, every)
    return with_coded_size(every, planned.graph, clips)
