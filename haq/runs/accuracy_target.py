"""The cheapest policy that loses no more accuracy than asked for: predict, verify, repair.

A policy is looked for by bisection: of all whose sensitivities add up to a limit at most, the
cheapest one is tried on training images, and the limit raised or lowered. Its network is made the
most of, and verified on the validation images, which nothing was chosen by: a one-sided confidence
bound of the drop must keep what was asked for. Where it does not, a policy of less damage is
verified, three in all; that they share the images is paid for by the risk of each.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from torch import fx

from haq.allocation.budgets import least_cost, solve
from haq.allocation.costs import total
from haq.allocation.policy import Bits, Policy
from haq.allocation.trials import Trial
from haq.errors import HaqError
from haq.quantization.convert import convert_and_check
from haq.runs.folder import append_trial
from haq.runs.job import Job
from haq.runs.progress import Progress
from haq.runs.state import Search, policy_key
from haq.training.paired import Paired, largest_drop

RISKS = (0.03, 0.01, 0.01)
"""Of each verification that its bound is wrong; of all together the sum."""

CONFIDENCE = 1 - sum(RISKS)

MARGIN = 2.0
"""By how much less damage the first policy that is verified has than the last that was predicted to
do: the drop is predicted on other images, and from few that are lost."""

REPAIR = 4.0
"""By how much less damage the next one has: about one bit everywhere."""

SPARE = 2
"""Lost images that a bound should bear: where it bears fewer, the first policy is safer still."""

MOST_OPTIMISTIC = 4.0
"""By how much more is lost on validation than on training images, at most."""


def check_resolution(job: Job, images: int) -> None:
    """Refuse an accuracy target that so many validation images cannot verify.

    Raises:
        HaqError: Even where nothing is lost the bound is above what is asked for.
    """
    if job.max_drop is None:
        return
    least = largest_drop(Paired(images, 1.0, 0, 0), RISKS[0])
    if least > job.max_drop / 100:
        needed = next(
            n for n in (math.ceil(images * 1.1**k) for k in range(200))
            if largest_drop(Paired(n, 1.0, 0, 0), RISKS[0]) <= job.max_drop / 100
        )  # fmt: skip
        raise HaqError(
            f"--max-drop {job.max_drop:g}: {images} validation images show a drop of "
            f"{100 * least:.2g} points at best; give about {needed} of them or more, or allow more"
        )


class _Front:
    """The cheapest policies by how much their sensitivities add up to."""

    def __init__(self, search: Search) -> None:
        job, planned = search.job, search.planned
        assert search.evaluation.sensitivity is not None and job.minimise is not None
        self.table, self.budgets, self.quantity = planned.table, planned.budgets, job.minimise
        self.damage = search.evaluation.sensitivity
        best = solve(self.damage, self.table, self.budgets)
        assert best is not None  # see haq.runs.plan
        self.best = best
        self.least = self.damage_of(best)

    def damage_of(self, policy: Policy) -> float:
        positions = self.table.positions
        return sum(float(self.damage[n][positions[n][bits]]) for n, bits in policy.items())

    def policy(self, limit: float) -> dict[str, Bits]:
        """Return the cheapest policy of so much damage; the best one where there is none."""
        most = max(limit, self.least * (1 + 1e-6), 1e-12)
        return least_cost(self.quantity, self.damage, most, self.table, self.budgets) or self.best

    def most(self) -> float:
        """Return the damage of the cheapest policy of all."""
        return self.damage_of(self.policy(1e6))


class Predicted(NamedTuple):
    """A policy that was tried: what it loses on the training images, and its limit of damage."""

    limit: float
    trial: Trial
    keeps: bool


def tried(search: Search) -> Iterator[Trial]:
    """Try policies, writing the new trials down; which of them do is for ``reach`` to say."""
    known = len(search.trials)
    for number, one in enumerate(_bisected(search)):
        if number >= known:
            append_trial(search.folder, one.trial)
            search.trials.append(one.trial)
            yield one.trial


def _bisected(search: Search) -> Iterator[Predicted]:
    job, front = search.job, _Front(search)
    assert job.episodes is not None and job.max_drop is not None
    low, high = max(front.least, 1e-9), max(front.most(), 2e-9)
    for number in range(job.episodes):
        limit = math.sqrt(low * high)
        policy = front.policy(limit)
        trial, bound = _trial(search, number, policy)
        keeps = bound <= job.max_drop / 100
        low, high = (limit, high) if keeps else (low, limit)
        note = f"{job.minimise} {trial.cost[front.quantity]:,.6g}, drop {_drop(search, trial):.2%}"
        search.on_progress(Progress("search", number + 1, job.episodes, note))
        yield Predicted(limit, trial, keeps)


def _drop(search: Search, trial: Trial) -> float:
    return search.evaluation.float_score.accuracy - trial.accuracy


def _trial(search: Search, number: int, policy: Policy) -> tuple[Trial, float]:
    """Return the trial of a policy, and the bound that verification is expected to give."""
    pairs = search.evaluation.pairs
    assert pairs is not None
    if number < len(search.trials):
        _check_replayed(search.trials[number], policy)
    started = pairs.clock()
    seen = pairs.choice(search.evaluation.network(policy))
    more = pairs.optimism(MOST_OPTIMISTIC) * pairs.images / seen.images
    expected = Paired(pairs.images, seen.right, more * seen.lost, more * seen.gained)
    table = search.planned.table
    trial = Trial(
        number, policy, {q: total(table, policy, q) for q in table.rows}, seen.right - seen.drop,
        math.nan, -10 * seen.drop, round(pairs.clock() - started, 3),
    )  # fmt: skip
    return trial, largest_drop(expected, RISKS[0])


def _check_replayed(trial: Trial, policy: Policy) -> None:
    if policy_key(trial.policy) != policy_key(policy):
        raise HaqError(
            f"episode {trial.episode} does not repeat: the run was made with other versions or "
            "other settings; start a new one"
        )


def reach(search: Search) -> tuple[Trial, fx.GraphModule, dict[str, Any]]:
    """Return the trial to hand over, its finished network, and what the summary says of it.

    The first network whose bound keeps what was asked for; where none does, the one of the least
    bound, and the summary says that the target was not met.
    """
    pairs, job = search.evaluation.pairs, search.job
    assert pairs is not None and job.max_drop is not None
    front, rows = _Front(search), list[dict[str, Any]]()
    candidates: list[tuple[float, Trial, fx.GraphModule]] = []
    risks = [risk for risk in RISKS if _borne(search, risk) >= 0]
    for risk, (trial, model) in zip(risks, _candidates(search, front), strict=False):
        seen = pairs.verification(model)
        bound = largest_drop(seen, risk)
        rows.append({
            "cost": trial.cost[front.quantity], "drop": seen.drop, "lost": seen.lost,
            "gained": seen.gained, "bound": bound, "risk": risk,
        })  # fmt: skip
        candidates.append((bound, trial, model))
        search.on_progress(
            Progress("verify", len(rows), len(RISKS), f"drop {seen.drop:.2%}, at most {bound:.2%}")
        )
        if bound <= job.max_drop / 100:
            break
    place = min(range(len(rows)), key=lambda at: (rows[at]["bound"], at))
    _, trial, model = candidates[place]
    return trial, model, _summary(search, rows, place)


def _candidates(search: Search, front: _Front) -> Iterator[tuple[Trial, fx.GraphModule]]:
    """Yield finished networks to verify, each of less damage than the one before."""
    played = list(_bisected(search))
    keeping = [one.limit for one in played if one.keeps]
    limit = max(keeping) / _margin(search) if keeping else front.least
    policies = [front.policy(limit / REPAIR**step) for step in range(len(RISKS))]
    different = [b for a, b in pairwise([{}, *policies]) if a != b]
    for policy in different:
        trial = next((one.trial for one in played if one.trial.policy == policy), None)
        model = search.evaluation.network(policy)
        search.evaluation.finish(policy, model, False)
        model.cpu()
        convert_and_check(model, search.planned.graph.traced, search.evaluation.images)
        yield trial or _trial(search, len(search.trials), policy)[0], model


def _margin(search: Search) -> float:
    return MARGIN * REPAIR ** (SPARE - min(_borne(search, RISKS[0]), SPARE))


def _borne(search: Search, risk: float) -> int:
    """Return how many images may be lost and none gained; -1 where the bound bears none."""
    pairs, most = search.evaluation.pairs, search.job.max_drop
    assert pairs is not None and most is not None
    lost = 0
    while lost <= SPARE and largest_drop(Paired(pairs.images, 1.0, lost, 0), risk) <= most / 100:
        lost += 1
    return lost - 1


def _summary(search: Search, rows: list[dict[str, Any]], place: int) -> dict[str, Any]:
    job, pairs = search.job, search.evaluation.pairs
    assert pairs is not None and job.max_drop is not None
    row = rows[place]
    target = {
        "max_drop": job.max_drop / 100, "minimise": job.minimise,
        "met": row["bound"] <= job.max_drop / 100, "drop": row["drop"], "bound": row["bound"],
        "confidence": CONFIDENCE, "images": pairs.images, "verifications": rows,
    }  # fmt: skip
    return {
        "accuracy_target": target, "float_val_accuracy": pairs.right,
        "final_val_accuracy": pairs.right - row["drop"],
    }  # fmt: skip
