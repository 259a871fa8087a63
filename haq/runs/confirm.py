"""Which policy a search hands on: confirmed on images that no episode scored.

Policies near the optimum differ by less than the images of an episode tell, so the best of many
scores is mostly the luckiest. The best few are compared again, with the known answers that the
agent began with, on training images; the best of them then has to be nearer to the float network
than those answers, on images again others and beyond what chance explains. Else the best known
answer is handed on.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from haq.agents import find
from haq.allocation.trials import Trial, rank
from haq.distillation.kd import divergences
from haq.runs.evaluator import LEAST_UNSEEN, Evaluator
from haq.runs.judge import BEYOND, answers_of, errors_nearer
from haq.runs.progress import Progress
from haq.runs.samples import FREEZABLE, Part
from haq.runs.state import Search, policy_key
from haq.training.scoring import TEMPERATURE

SURE = 1.64
"""Standard errors by which a policy must be nearer than a known answer: 95 %, one-sided."""

FEW, EPISODES_EACH = 8, 8
"""Policies that are compared again, at most, and one for so many episodes."""

TIMES = 4
"""Images of the last comparison, as a multiple of those of an episode."""

KEPT = FREEZABLE // 4
"""Values of a network's answers that are kept at a time; comparing takes ten times as much."""


class Apart(NamedTuple):
    """How far a network is from the float network in each of some images, in nats.

    Attributes:
        plain: The divergence, (N,).
        softened: At ``haq.training.scoring.TEMPERATURE``, as episodes score, (N,).
    """

    plain: Tensor
    softened: Tensor


class Confirmed(NamedTuple):
    """The trial that is handed on, and what a summary says of how that was decided."""

    trial: Trial
    summary: dict[str, Any]


def confirmed(search: Search) -> Confirmed | None:
    """Return which trial to hand on; None where nothing can be or need be confirmed.

    That is where policies are not scored by their divergence on labelled data, where the agent
    begins with no known answer or nothing scored higher than these, or where images are too few.
    """
    evaluator = search.evaluation.scoring.evaluator
    if evaluator is None or not evaluator.recipe.agreement or search.job.evaluation != "cheap":
        return None
    known, challengers = entrants(search.trials, find(search.job.agent).references)
    sizes = images_of(len(search.trials), len(evaluator.validation), _there(evaluator))
    if not challengers or sizes is None:
        return None
    return _Comparison(search, evaluator, sizes).decided(known, challengers)


def _there(evaluator: Evaluator) -> int:
    """Return how many training images there are, or of how many the answers can be kept."""
    kept = evaluator.answers
    return 0 if kept is None else min(len(evaluator.others), KEPT // kept[0].numel())


def entrants(trials: Sequence[Trial], references: int) -> tuple[list[Trial], list[Trial]]:
    """Return the known answers, and the best of the policies that scored higher than all of them.

    Args:
        trials: Of a search, in order.
        references: How many of the first ones are known answers.
    """
    known = _distinct([trial for trial in trials[:references] if not trial.stopped])
    if not known:
        return [], []
    start = min(known, key=rank)
    others = [trial for trial in _distinct(sorted(trials, key=rank)) if rank(trial) < rank(start)]
    higher = [trial for trial in others if trial.reward > start.reward]
    return known, higher[: max(1, min(FEW, len(trials) // EPISODES_EACH))]


def _distinct(trials: Sequence[Trial]) -> list[Trial]:
    return list({policy_key(trial.policy): trial for trial in reversed(trials)}.values())[::-1]


def images_of(episodes: int, scored: int, there: int) -> tuple[int, int] | None:
    """Return how many images compare the best few, and how many then decide.

    All of it takes about a quarter of the time of the episodes.

    Args:
        episodes: That were played.
        scored: Images of one.
        there: Images that none of them scored.

    Returns:
        None where they are too few.

    >>> images_of(60, 2500, 45_000), images_of(4, 2500, 45_000), images_of(60, 2500, 1000)
    ((2500, 10000), (2500, 2500), (200, 800))
    >>> images_of(60, 100, 300) is None
    True
    """
    first = min(scored, there // 5)
    last = min(TIMES * scored, max(scored, episodes * scored // 4), there - first)
    return (first, last) if last >= LEAST_UNSEEN else None


def nearer(start: Apart, other: Apart) -> bool:
    """Return whether a network is nearer than another one, beyond what chance explains.

    By the softened divergence, which tells most; by the plain one it must not be farther.
    """
    closer = float(other.plain.double().mean()) <= float(start.plain.double().mean())
    return closer and errors_nearer(start.softened, other.softened) > SURE


class _Comparison:
    """Compares policies on two sets of images, each network built anew for either."""

    def __init__(self, search: Search, evaluator: Evaluator, sizes: tuple[int, int]) -> None:
        self.search, self.evaluator = search, evaluator
        others, (first, last) = evaluator.others, sizes
        self.first = Part(others.split, others.chosen[:first])
        self.last = Part(others.split, others.chosen[first : first + last])

    def decided(self, known: Sequence[Trial], challengers: Sequence[Trial]) -> Confirmed:
        """Return the best challenger where it is nearer than each known answer, else the best."""
        rows: dict[int, dict[str, Any]] = {}
        if len(challengers) > 1:
            few = self._apart([*known, *challengers], self.first, rows, "compared")
            best = min(challengers, key=lambda trial: self._both(trial, few[trial.episode]))
            nearest = min(known, key=lambda trial: _mean(few[trial.episode]))
            known = [
                trial for trial in known
                if trial is nearest
                or errors_nearer(few[trial.episode].softened, few[nearest.episode].softened)
                <= BEYOND
            ]  # fmt: skip
        else:
            (best,) = challengers
        last = self._apart([*known, best], self.last, rows, "decided")
        accepted = all(nearer(last[trial.episode], last[best.episode]) for trial in known)
        start = min(known, key=lambda trial: _mean(last[trial.episode]))
        chosen = best if accepted else start
        summary = {
            "episode": chosen.episode, "start": start.episode, "challenger": best.episode,
            "accepted": accepted, "images": [len(self.first), len(self.last)],
            "errors_nearer": errors_nearer(
                last[start.episode].softened, last[best.episode].softened
            ),
            "rows": [{"episode": episode, **row} for episode, row in sorted(rows.items())],
        }  # fmt: skip
        return Confirmed(chosen, summary)

    def _both(self, trial: Trial, few: Apart) -> float:
        """Return the mean divergence over the images that scored the episode and those here."""
        scored, here = len(self.evaluator.validation), len(self.first)
        return (scored * trial.loss + here * _mean(few)) / (scored + here)

    def _apart(
        self, trials: Sequence[Trial], images: Part, rows: dict[int, dict[str, Any]], what: str
    ) -> Mapping[int, Apart]:
        apart = {}
        floats, _ = answers_of(self.evaluator, self.evaluator.graph.traced, images)
        for at, trial in enumerate(trials):
            model = self.search.evaluation.network(trial.policy)
            answers, _ = answers_of(self.evaluator, model, images)
            both = (answers.double(), floats.double())
            apart[trial.episode] = Apart(divergences(*both), divergences(*both, TEMPERATURE))
            rows.setdefault(trial.episode, {})[what] = _mean(apart[trial.episode])
            self.search.on_progress(Progress("confirm", at + 1, len(trials), what))
        return apart


def _mean(apart: Apart) -> float:
    return float(apart.softened.double().mean())
