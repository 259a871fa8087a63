"""The winner of a search on a measured target: it is measured before it is handed over.

A prediction ranks policies; whether a policy keeps its budget is measured. ``confirm`` takes the
best policy that measures within the budget and, where none does, lowers the best one until it does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from haq.allocation.budgets import Budget, fit
from haq.allocation.costs import CostTable, total
from haq.allocation.policy import Policy
from haq.allocation.trials import Score, Trial, rank
from haq.errors import BudgetError, TargetError
from haq.hw_profiles.measured_target import MeasuredTarget
from haq.quantization.calibration import load_clips
from haq.runs.candidates import Measurement, cpu_of, measure_candidates, setup_of
from haq.runs.plan import Plan
from haq.runs.profiling.subject import Subject, lowering
from haq.runs.progress import OnProgress

FIRST = 5
"""How many candidates are measured together."""

MOST = 20
"""How many trials are measured before the best one is lowered instead."""

LOWERINGS = 4
"""How often a policy is lowered further before the budget is given up."""

_MARGIN = 0.995

Measure = Callable[[Sequence[Policy]], Sequence[Measurement]]
How = Literal["best", "next best", "lowered"]


@dataclass(frozen=True)
class Confirmed:
    """The policy that is handed over.

    Attributes:
        policy: It measures within the budget.
        measurement: Of this policy.
        how: "best" where it is the best trial's, "next best" where better ones measured over the
            budget, "lowered" where all did.
        score: What a lowered policy is worth; None for a trial's, which has its score.
        measured: All that were measured, in that order.
    """

    policy: Policy
    measurement: Measurement
    how: How
    score: Score | None
    measured: tuple[Measurement, ...]


def confirm(
    ranked: Sequence[Policy],
    table: CostTable,
    budgets: Sequence[Budget],
    measure: Measure,
    evaluate: Callable[[Policy], Score],
) -> Confirmed:
    """Return the best policy that measures within the latency budget.

    The trials are measured in groups of ``FIRST``, the best ones first, until one is within the
    budget. Where none of the first ``MOST`` is, the best one is lowered by ``budgets.fit`` to a
    limit that is tightened by as much as was measured more than predicted, and evaluated.

    Args:
        ranked: The policies of the trials, the best one first; at least one.
        table: Of the target.
        budgets: All of the job's; one of them on "latency".
        measure: As ``measure_candidates`` does.
        evaluate: What a policy is worth that was not tried yet.

    Raises:
        BudgetError: No policy was found that measures within the budget.
    """
    limit = min(budget.limit for budget in budgets if budget.quantity == "latency")
    measured = _measured(ranked, limit, measure)
    winner = within(measured, limit)
    if winner is not None:
        how: How = "best" if winner is measured[0] else "next best"
        return Confirmed(winner.policy, winner, how, None, tuple(measured))
    lowered = _lowered(measured[0], table, budgets, limit, measure)
    measured += lowered
    if lowered and lowered[-1].us <= limit:
        policy = lowered[-1].policy
        return Confirmed(policy, lowered[-1], "lowered", evaluate(policy), tuple(measured))
    least = min(measured, key=lambda one: one.us)
    raise BudgetError(
        f"no policy was found that measures within latency <= {limit:.6g} us: the best trials and "
        f"{len(lowered)} lowered ones take {least.us:.6g} us or more; raise the budget, or profile "
        "this machine again"
    )


def _measured(ranked: Sequence[Policy], limit: float, measure: Measure) -> list[Measurement]:
    """Return what the first policies measure, group by group, until one is within the limit."""
    different = list({tuple(sorted(policy.items())): policy for policy in ranked}.values())[:MOST]
    measured: list[Measurement] = []
    for start in range(0, len(different), FIRST):
        measured += measure(different[start : start + FIRST])
        if within(measured, limit):
            break
    return measured


def _lowered(
    best: Measurement, table: CostTable, budgets: Sequence[Budget], limit: float, measure: Measure
) -> list[Measurement]:
    """Return what the best policy measures as it is lowered; the last one keeps the limit, or none.

    Each of them is fitted to a limit that is tightened by what the one before it was over.
    """
    others = [budget for budget in budgets if budget.quantity != "latency"]
    last, lowered = best, list[Measurement]()
    for _ in range(LOWERINGS):
        tight = Budget("latency", tightened(limit, last))
        try:
            (last,) = measure([fit(best.policy, table, [*others, tight])])
        except BudgetError:
            break
        lowered.append(last)
        if last.us <= limit:
            break
    return lowered


def within(measured: Sequence[Measurement], limit: float) -> Measurement | None:
    """Return the first measurement that is not over the limit."""
    return next((one for one in measured if one.us <= limit), None)


def tightened(limit: float, over: Measurement) -> float:
    """Return the limit for predictions under which ``limit`` should be kept when measured.

    It is lower by as much as a policy over the limit measured more than predicted, and a little
    more; so it is below what that policy was predicted to take.
    """
    return _MARGIN * limit * over.predicted / over.us


def summary_fields(confirmed: Confirmed, limit: float) -> dict[str, Any]:
    """Return what a run's summary says of the measured latency, in microseconds."""
    winner = confirmed.measurement
    return {
        "unit": "us", "value": winner.us, "low": winner.low, "high": winner.high,
        "predicted": winner.predicted, "budget": limit, "how": confirmed.how,
        "candidates": len(confirmed.measured), "samples": winner.samples,
        "contended": winner.contended, "drift": winner.drift,
    }  # fmt: skip


def measured_winner(
    folder: Path,
    planned: Plan,
    trials: Sequence[Trial],
    top: Trial,
    evaluate: Callable[[Policy], Score],
    on_progress: OnProgress,
) -> tuple[Trial, dict[str, Any]]:
    """Return the trial to hand over, and what the summary says of its latency.

    On a target that ``haq profile`` measured on this machine, and with a budget on latency, it is
    the best one that measures within the budget; else it is ``top``.

    Args:
        folder: Of the run, for its clips.
        planned: Target, costs and budgets.
        trials: All of them.
        top: The one that would be handed over.
        evaluate: What a policy is worth that was not tried yet.
        on_progress: Called while candidates are measured.

    Raises:
        BudgetError: No policy was found that measures within the budget.
    """
    limits = [budget.limit for budget in planned.budgets if budget.quantity == "latency"]
    if not limits or not isinstance(planned.target, MeasuredTarget):
        return top, {}
    profile, table = planned.target.profile, planned.table
    try:
        setup_of(profile)
    except TargetError as error:
        return top, {"measured_latency": {"missing": str(error)}}
    lowered = lowering(_candidates(folder, planned), cpu_of(profile), setup_of(profile))
    measure = partial(
        measure_candidates, lowered, table=table, profile=profile, on_progress=on_progress
    )
    ranked = [top, *sorted(trials, key=rank)]
    policies = [trial.policy for trial in ranked if not trial.stopped]
    confirmed = confirm(policies, table, planned.budgets, measure, evaluate)
    fields = {"measured_latency": summary_fields(confirmed, min(limits))}
    return _trial_of(confirmed, ranked, planned), fields


def _candidates(folder: Path, planned: Plan) -> Subject:
    clips = load_clips(folder / "clips.safetensors")
    return Subject("candidates", planned.graph, clips, planned.sample[:1])


def _trial_of(confirmed: Confirmed, ranked: Sequence[Trial], planned: Plan) -> Trial:
    for trial in ranked:
        if trial.policy == confirmed.policy and not trial.stopped:
            return trial
    assert confirmed.score is not None
    return replace(
        ranked[0], policy=confirmed.policy, accuracy=confirmed.score.accuracy,
        loss=confirmed.score.loss,
        cost={q: total(planned.table, confirmed.policy, q) for q in planned.table.rows},
    )  # fmt: skip
