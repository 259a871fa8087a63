"""The winner of a search on a measured target: the clock has the last word before it is one."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from haq.allocation.costs import total
from haq.allocation.policy import Policy
from haq.allocation.trials import Score, Trial, rank
from haq.errors import TargetError
from haq.hw_profiles.measured import MeasuredTarget
from haq.quantization.calibration import load_clips
from haq.runs.measured import Confirmed, confirm, measure_candidates, setup_of, summary_fields
from haq.runs.plan import Plan
from haq.runs.profile import Subject, lowering
from haq.runs.progress import OnProgress


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
    the best one that keeps the budget by the clock; else it is ``top``.

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
    clips = load_clips(folder / "clips.safetensors")
    sample = torch.zeros(1, *planned.images["shape"])
    lowered = lowering(Subject("candidates", planned.graph, clips, sample))
    measure = partial(
        measure_candidates, lowered, table=table, profile=profile, on_progress=on_progress
    )
    ranked = [top, *sorted(trials, key=rank)]
    policies = [trial.policy for trial in ranked if not trial.stopped]
    confirmed = confirm(policies, table, planned.budgets, measure, evaluate)
    found = {"measured_latency": summary_fields(confirmed, min(limits))}
    return _trial_of(confirmed, ranked, planned), found


def _trial_of(confirmed: Confirmed, ranked: Sequence[Trial], planned: Plan) -> Trial:
    for trial in ranked:
        if trial.policy == confirmed.policy:
            return trial
    assert confirmed.score is not None
    return replace(
        ranked[0], policy=confirmed.policy, accuracy=confirmed.score.accuracy,
        loss=confirmed.score.loss,
        cost={q: total(planned.table, confirmed.policy, q) for q in planned.table.rows},
    )  # fmt: skip
