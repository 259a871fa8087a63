"""What a run must beat: uniform bits within its budgets, treated as the policy it hands over.

Uniform bits are what anybody would try first. Two of them are compared with: the most bits that
keep the budgets, and the next more, lowered in some layers until they do; the better one counts.
Whatever the agent played, both stand in every finished run: networks that were not fine-tuned by
the search are compared as they are in episodes, on validation images that no policy was chosen by
where there are enough of them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from haq.allocation.budgets import Budget, uniform_references, uniform_within
from haq.allocation.costs import CostTable, total
from haq.allocation.policy import Bits, Policy
from haq.errors import BudgetError, DivergedError
from haq.runs.evaluation import Evaluation
from haq.runs.job import Job
from haq.runs.judge import Judged
from haq.runs.plan import Plan
from haq.runs.progress import OnProgress, Progress
from haq.runs.state import Key, policy_key
from haq.training.paired import drop_interval, paired


class _Worth(NamedTuple):
    """What a network is worth on the images of the comparison."""

    value: float
    right: Tensor | None = None


def uniform_reference(
    job: Job, planned: Plan, evaluation: Evaluation, policy: Policy,
    tuned: Mapping[Key, Judged], on_progress: OnProgress,
) -> dict[str, Any] | None:  # fmt: skip
    """Return how the policy chosen stands against the better of two uniform ones.

    Args:
        job: Of the run.
        planned: Its budgets count; under an accuracy target what the policy chosen costs.
        evaluation: Makes and scores networks.
        policy: The one chosen.
        tuned: What fine-tuned networks do with the judge's images, by policy.
        on_progress: Called after each network.

    Returns:
        None where no uniform bits can keep the budgets or be evaluated. Else ``{"weight_bits",
        "act_bits", "lowered", "cost", "same", "images", "apart", "tuned", "own", "uniform",
        "interval"}``: means over the free layers, how many of them were lowered, the costs, whether
        both are one policy, on how many images they are compared and whether no policy was chosen
        by these, whether both are fine-tuned, the metric's values, and the 95 % confidence interval
        of own less uniform, None where the metric has none.
    """
    table, budgets = planned.table, _budgets(job, planned, policy)
    try:
        references = uniform_references(table, budgets)
    except BudgetError:
        return None
    policies = [policy, *(other for other in references if other != policy)]
    fine_tuned = all(policy_key(each) in tuned for each in policies)
    known = tuned if fine_tuned else {}
    worth = []
    try:
        for number, each in enumerate(policies, 1):
            worth.append(_worth(evaluation, each, known.get(policy_key(each))))
            if not math.isfinite(worth[-1].value):
                return None
            on_progress(Progress("uniform", number, len(policies)))
    except DivergedError:
        return None
    score = evaluation.metric.score
    others = range(1, len(policies)) if len(policies) > 1 else (0,)
    best = max(others, key=lambda at: score(worth[at].value))
    if policy in references and score(worth[best].value) <= score(worth[0].value):
        best = 0
    own, other = worth[0], worth[best]
    interval = None
    if own.right is not None and other.right is not None:
        low, high = drop_interval(paired(other.right, own.right))
        interval = [-high, -low]
    return {
        **_described(table, budgets, policies[best]),
        "same": best == 0, **_images(evaluation, own), "tuned": fine_tuned,
        "own": own.value, "uniform": other.value, "interval": interval,
    }  # fmt: skip


def _budgets(job: Job, planned: Plan, policy: Policy) -> list[Budget]:
    """Return what uniform bits must keep: of an accuracy target, the cost of what came of it."""
    if job.max_drop is None or job.minimise is None:
        return list(planned.budgets)
    return [*planned.budgets, Budget(job.minimise, total(planned.table, policy, job.minimise))]


def _worth(evaluation: Evaluation, policy: Policy, known: Judged | None) -> _Worth:
    if known is not None:
        return _Worth(known.accuracy, known.right)
    network = evaluation.network(policy)
    if evaluation.pairs is not None:
        right = evaluation.pairs.right_of(network)
        return _Worth(float(right.float().mean()), right)
    if evaluation.judge is not None:
        judged = evaluation.judge.judged(network)
        return _Worth(judged.accuracy, judged.right)
    return _Worth(evaluation.metric.of_score(evaluation.score(network).accuracy))


def _images(evaluation: Evaluation, own: _Worth) -> dict[str, Any]:
    judge = evaluation.judge
    apart = evaluation.pairs is not None or (judge is not None and judge.apart)
    return {"images": None if own.right is None else len(own.right), "apart": apart}


def _described(table: CostTable, budgets: Sequence[Budget], policy: Policy) -> dict[str, Any]:
    """Return the bits of a uniform policy, in how many layers they were lowered, and its costs."""
    free = [name for name in policy if len(table.choices[name]) > 1] or [*policy]
    bits = [policy[name] for name in free]
    widths = [_widths(pair) for pair in bits]
    usual = max(set(widths), key=lambda pair: (widths.count(pair), pair))
    uniform = policy == uniform_within(table, budgets)
    return {
        "weight_bits": usual[0], "act_bits": usual[1],
        "lowered": 0 if uniform else sum(pair != usual for pair in widths),
        "cost": {quantity: total(table, policy, quantity) for quantity in table.units},
    }  # fmt: skip


def _widths(bits: Bits) -> tuple[int, int]:
    return bits.weight, bits.act


def said(reference: Mapping[str, Any]) -> str:
    """Return what the uniform bits of a comparison are called.

    >>> said({"weight_bits": 3, "act_bits": 8, "lowered": 0})
    '3-bit weights, 8-bit activations'
    >>> said({"weight_bits": 3, "act_bits": 8, "lowered": 2})
    '3-bit weights, 8-bit activations, lowered in 2 layers'
    """
    text = f"{reference['weight_bits']:g}-bit weights, {reference['act_bits']:g}-bit activations"
    lowered = reference["lowered"]
    return text + (f", lowered in {lowered} layer{'s' * (lowered != 1)}" if lowered else "")
