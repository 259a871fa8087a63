"""Budgets on coded bytes, from the plan to the packet of the network that is handed over.

What is handed over was fine-tuned or rounded otherwise than what its costs were measured on. So its
packet is measured too: it keeps the budget, or the policy is lowered until it does.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import fx

from haq.allocation.budgets import Budget, fit, most_bits
from haq.allocation.costs import CODED, total
from haq.allocation.policy import Policy
from haq.allocation.trials import Trial
from haq.errors import BudgetError, CheckpointError
from haq.formats import checkpoint
from haq.formats.update import packet
from haq.formats.update.network import parse
from haq.formats.update.packet import Sent
from haq.quantization.calibration import Clips
from haq.runs.coded_cost import budgets_of, is_asked, with_coded_size
from haq.runs.job import Job
from haq.runs.origin import origin_of
from haq.runs.plan import Plan
from haq.runs.state import Search

LOWERINGS = 4
"""How often a policy is lowered before its packet is taken as it is."""

_MARGIN = 0.998

_SHARES = ("float_val", "episode_val", "float_test", "final_val", "final_test")


def replanned(job: Job, planned: Plan, clips: Clips) -> Plan:
    """Return a plan with the coded bytes of the network that is searched, trained by now.

    Raises:
        BudgetError: No policy keeps the budgets.
    """
    if not is_asked(job):
        return planned
    table = with_coded_size(planned.table, planned.graph, clips.weights)
    budgets = budgets_of(job, planned.graph, planned.target)
    fit(most_bits(table), table, budgets)
    return replace(planned, table=table, budgets=budgets)


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
    """Return a trial and its network, lowered where its packet would be over the budget.

    Args:
        search: Its budgets, and how a lowered policy is scored.
        top: The trial that would be handed over.
        model: Its network.
        network: From a policy to its network.
    """
    limits = [budget.limit for budget in search.planned.budgets if budget.quantity == CODED]
    if not limits:
        return top, model
    limit, table = min(limits), search.planned.table
    others = [budget for budget in search.planned.budgets if budget.quantity != CODED]
    for _ in range(LOWERINGS):
        size = packet_bytes(search, top.policy, model)
        if size is None or size <= limit:
            break
        tight = Budget(CODED, _MARGIN * limit * total(table, top.policy, CODED) / size)
        try:
            policy = fit(top.policy, table, [*others, tight])
        except BudgetError:
            break
        model = network(policy)
        score = search.evaluation.score(model)
        costs = {quantity: total(table, policy, quantity) for quantity in table.rows}
        top = replace(top, policy=policy, accuracy=score.accuracy, loss=score.loss, cost=costs)
    return top, model


def summary_fields(search: Search, top: Trial, model: fx.GraphModule) -> dict[str, Any]:
    """Return what a run's summary says of coded bytes: predicted, and of the packet."""
    if not is_asked(search.job):
        return {}
    limits = [budget.limit for budget in search.planned.budgets if budget.quantity == CODED]
    predicted = total(search.planned.table, top.policy, CODED)
    size = packet_bytes(search, top.policy, model)
    return {
        CODED: {"predicted": predicted, "packet": size, "budget": min(limits) if limits else None}
    }
