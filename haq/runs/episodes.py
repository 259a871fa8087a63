"""The episodes of a search: each policy is scored once, every trial is written as it ends."""

import math
from collections.abc import Iterator
from typing import Any, Literal

from haq.agents import Episode, find
from haq.agents import play as play_agent
from haq.allocation.policy import Policy
from haq.allocation.trials import Score, Trial, best
from haq.errors import RunError
from haq.runs.environment import environment
from haq.runs.executors import Request, Result, window
from haq.runs.executors.base import Pending
from haq.runs.folder import append_trial
from haq.runs.progress import Progress
from haq.runs.saved_agent import save_agent
from haq.runs.scores import usable
from haq.runs.state import Key, Search, policy_key, save_network


def episodes(search: Search) -> Iterator[Trial]:
    """Play the episodes, those of an earlier start from memory, and yield the new trials."""
    job, trials, evaluation = search.job, search.trials, search.evaluation
    requests, count = _Requests(search), job.episodes
    assert count is not None  # see haq.runs.pace
    floats = evaluation.float_score
    reward: Literal["accuracy", "loss"] = "accuracy" if job.by_metric else "loss"
    env = environment(search.planned, evaluation, reward, requests.score)
    metric = evaluation.metric

    def shown(score: float) -> str:
        return metric.text(metric.of_score(score))

    options: dict[str, Any] = {"paper": True} if job.paper else {}
    agent = find(job.agent)(env, count, job.seed, **options)
    played = play_agent(agent, env, count, window=requests.window, ahead=requests.ahead)
    for number, episode in enumerate(played):
        if number >= requests.replayed:
            trial = _trial(number, episode, requests.result)
            append_trial(search.folder, trial, evaluation.metric)
            trials.append(trial)
            _keep_best(search, requests.result)
            yield trial
        top = best(trials[: number + 1])
        note = f"best {shown(top.accuracy)} (float {shown(floats.accuracy)})"
        search.on_progress(Progress("search", number + 1, count, note))
    save_agent(search.folder, agent)


class _Requests:
    """The policies that are evaluated or will be, each once, however often it is met.

    Attributes:
        window: How many episodes the agent may be ahead of their scores.
        replayed: Episodes of an earlier start, whose scores are known.
        result: Of the last episode's evaluation; None where there was none.
    """

    def __init__(self, search: Search) -> None:
        self.window, self.replayed = window(search.job.workers), len(search.trials)
        self.result: Result | None = None
        self._search = search
        self._first: dict[Key, int] = {}
        self._pending: dict[int, Pending] = {}
        self._scores: dict[int, Score] = {}

    def ahead(self, number: int, policy: Policy) -> None:
        """Have the policy of an episode evaluated, unless it was met before."""
        trials = self._search.trials
        if number < self.replayed:
            _check_replayed(trials[number], policy)
        if self._first.setdefault(policy_key(policy), number) != number:
            return
        if number < self.replayed:
            trial = trials[number]
            self._scores[number] = Score(trial.accuracy, trial.loss, trial.stopped)
        else:
            self._pending[number] = self._search.executor.submit(self._request(number, policy))

    def _request(self, number: int, policy: Policy) -> Request:
        # Also where more is known by now: what is stopped depends on scores, never on the clock.
        known = self._search.trials[: max(0, number + 1 - self.window)]
        whole = [trial for trial in known if not trial.stopped]
        if not whole:
            return Request(policy)
        # The known answers that an agent begins with are compared with, so they are never stopped.
        known_answer = number < find(self._search.job.agent).references
        impatient, top = self._search.evaluation.impatient and not known_answer, best(whole)
        beat = top.accuracy if impatient else None
        return Request(policy, beat=beat, least=Score(top.accuracy, top.loss))

    def score(self, policy: Policy) -> Score:
        """Return the score of a policy that was announced, which may have to be waited for."""
        number = self._first[policy_key(policy)]
        self.result = None
        if number in self._pending:
            self.result = self._pending.pop(number)()
            known = [Score(trial.accuracy, trial.loss) for trial in self._search.trials]
            known.append(self._search.evaluation.float_score)
            images = self._search.planned.images
            self._scores[number] = usable(self.result.score, images, known)
        return self._scores[number]


def _check_replayed(trial: Trial, policy: Policy) -> None:
    if policy_key(trial.policy) != policy_key(policy):
        raise RunError(
            f"episode {trial.episode} does not repeat: the run was made with other versions or "
            "other settings; start a new one"
        )


def _trial(number: int, episode: Episode, result: Result | None) -> Trial:
    info = episode.info
    return Trial(
        number, info["policy"], info["cost"], info["accuracy"], info["loss"], episode.reward,
        round(result.seconds, 3) if result else 0.0, result is None, info["stopped"],
        {name: value for name, value in episode.notes.items() if math.isfinite(value)},
    )  # fmt: skip


def _keep_best(search: Search, result: Result | None) -> None:
    top = best(search.trials)
    if top is search.trials[-1] and result is not None and result.weights is not None:
        chain = search.evaluation.places.chain(top.policy)
        save_network(search.folder, top.policy, result.weights, chain)
