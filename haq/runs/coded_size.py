"""Budgets on bytes of codes, from the plan to what the network that is handed over takes.

What is handed over was fine-tuned or rounded otherwise than what its costs were measured on. So its
packet, or its weights as the target encodes them, are measured too: they keep the budget, or the
policy is lowered until they do.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import fx

from haq.allocation.budgets import Budget, fit, most_bits
from haq.allocation.costs import CODED, tabulate, total
from haq.allocation.policy import Policy
from haq.allocation.trials import Trial
from haq.errors import BudgetError, CheckpointError
from haq.formats import checkpoint
from haq.formats.update import packet
from haq.formats.update.network import parse
from haq.formats.update.packet import Sent
from haq.quantization.calibration import Clips
from haq.runs.coded_cost import budgets_of, is_asked, with_coded_size
from haq.runs.encoded_cost import costs_of, encodes, on_weights
from haq.runs.job import Job
from haq.runs.origin import origin_of
from haq.runs.plan import Plan
from haq.runs.state import Search

LOWERINGS = 4
"""How often a policy is lowered before its codes are taken as they are."""

_MARGIN = 0.998

_SHARES = ("float_val", "episode_val", "float_test", "final_val", "final_test")


def replanned(job: Job, planned: Plan, clips: Clips) -> Plan:
    """Return a plan with the bytes of codes of the network that is searched, trained by now.

    Raises:
        BudgetError: No policy keeps the budgets.
    """
    target = on_weights(planned.target, planned.graph.traced, lambda name: clips.weights[name])
    if not is_asked(job) and not encodes(target):
        return planned
    table = planned.table
    if encodes(target):
        floats = sum(planned.graph.float_parameters.values())
        table = tabulate(table.layers, table.choices, target, floats)
    if is_asked(job):
        table = with_coded_size(table, planned.graph, clips.weights)
    budgets = budgets_of(job, planned.graph, target)
    fit(most_bits(table), table, budgets)
    return replace(planned, target=target, table=table, budgets=budgets)


def packet_bytes(search: Search, policy: Policy, model: fx.GraphModule) -> int | None:
    """Return the bytes of a network's packet; None where it has no checkpoint."""
    shares = {f"{share}_accuracy": 0.8765 for share in _SHARES}  # as long as real ones
    versions = {"haq": "0.0.0", "torch": "0.00.0", "python": "0.00.0"}
    job, images = search.job, search.planned.images
    origin = origin_of(job, images, job.transforms, shares, versions)
    try:
        data = checkpoint.encode(model, policy, origin)[1]
    except CheckpointError:
        return None
    return len(packet.write([Sent("network", parse(data))]))


def kept(
    search: Search, top: Trial, model: fx.GraphModule, network: Callable[[Policy], fx.GraphModule]
) -> tuple[Trial, fx.GraphModule]:
    """Return a trial and its network, lowered where its own codes would be over a budget.

    Args:
        search: Its budgets, and how a lowered policy is scored.
        top: The trial that would be handed over.
        model: Its network.
        network: From a policy to its network.
    """
    table = search.planned.table
    for _ in range(LOWERINGS):
        over = _over(search, top.policy, model)
        if not over:
            break
        others = [b for b in search.planned.budgets if b.quantity not in over]
        tight = [
            Budget(name, _MARGIN * share * total(table, top.policy, name))
            for name, share in over.items()
        ]
        try:
            policy = fit(top.policy, table, [*others, *tight])
        except BudgetError:
            break
        model = network(policy)
        score = search.evaluation.score(model)
        costs = {quantity: total(table, policy, quantity) for quantity in table.rows}
        top = replace(top, policy=policy, accuracy=score.accuracy, loss=score.loss, cost=costs)
    return top, model


def _over(search: Search, policy: Policy, model: fx.GraphModule) -> dict[str, float]:
    """Return the quantities of which a network's own codes take more than the budget.

    Beside each stands the budget as a share of what they take.
    """
    limits: dict[str, float] = {}
    for budget in search.planned.budgets:
        limits[budget.quantity] = min(budget.limit, limits.get(budget.quantity, budget.limit))
    sizes: dict[str, float | None] = dict(_encoded(search, policy, model)) if limits else {}
    if CODED in limits:
        sizes[CODED] = packet_bytes(search, policy, model)
    return {
        name: limit / size
        for name, limit in limits.items()
        if (size := sizes.get(name)) is not None and size > limit
    }


def summary_fields(search: Search, top: Trial, model: fx.GraphModule) -> dict[str, Any]:
    """Return what a run's summary says of bytes of codes: predicted, and of this network."""
    encoded = _encoded_fields(search, top, model)
    if not is_asked(search.job):
        return encoded
    limits = [budget.limit for budget in search.planned.budgets if budget.quantity == CODED]
    predicted = total(search.planned.table, top.policy, CODED)
    size = packet_bytes(search, top.policy, model)
    return encoded | {
        CODED: {"predicted": predicted, "packet": size, "budget": min(limits) if limits else None}
    }


def _encoded_fields(search: Search, top: Trial, model: fx.GraphModule) -> dict[str, Any]:
    """Return what a run's summary says of the codes that are handed over, beside what was planned.

    ``{"encoded": {"flash": {"predicted": …, "encoded": …, "unit": "bytes", "budget": …}}}``
    """
    fields = {}
    for quantity, value in _encoded(search, top.policy, model).items():
        limits = [b.limit for b in search.planned.budgets if b.quantity == quantity]
        fields[quantity] = {
            "predicted": total(search.planned.table, top.policy, quantity),
            "encoded": value,
            "unit": search.planned.table.units[quantity],
            "budget": min(limits) if limits else None,
        }
    return {"encoded": fields} if fields else {}


def _encoded(search: Search, policy: Policy, model: fx.GraphModule) -> dict[str, float]:
    return costs_of(search.planned.target, search.planned.graph.layers, policy, model)
