"""Play the episodes of a search, write down every trial, and finish the best policy."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from safetensors.torch import load
from torch import fx, nn

from haq.agents import AGENTS, INFORMED, Episode
from haq.allocation.costs import Target, reference, total
from haq.allocation.policy import Bits, Policy, read_policy, write_policy
from haq.allocation.trials import Score, Trial, best, rank
from haq.envs.quantization import QuantizationEnv
from haq.errors import DivergedError, PolicyError, RunError, TargetError
from haq.files import write_bytes
from haq.hw_profiles import Explained
from haq.models.weights import packed
from haq.quantization.convert import convert_to_integers
from haq.quantization.fake_quant import quantize
from haq.runs import folder as results
from haq.runs.executors import Answer, Crew, Found, Request, hire, window
from haq.runs.job import Job
from haq.runs.plan import OnProgress, Plan, Progress, silent
from haq.runs.provenance import cost_origin
from haq.runs.scoring import Basis, Means, Scoring, merit
from haq.runs.winner import measured_winner

Key = tuple[tuple[str, Bits], ...]


class Evaluation(NamedTuple):
    """The functions that say what a policy is worth, and what happens to the one chosen.

    Attributes:
        network: From a policy to the network that is scored in its episode.
        score: Of a network, on validation images.
        float_score: Of the network before quantization.
        finish: Makes the most of the network chosen, in place; it is told whether that network is
            fine-tuned already.
        basis: What scores depend on, for other processes.
        test: Of a network, on test images; None where there are none.
        tuned: From a policy to its network after the paper's one epoch, for the finalists of a
            search whose episodes do without; None where that is what episodes score.
        sensitivity: What each choice of each layer does, for the agents that want to know.
        impatient: Whether hopeless evaluations are stopped early.
    """

    network: Callable[[Policy], fx.GraphModule]
    score: Scoring
    float_score: Score
    finish: Callable[[nn.Module, bool], None]
    basis: Basis
    test: Callable[[nn.Module], Score] | None = None
    tuned: Callable[[Policy], fx.GraphModule] | None = None
    sensitivity: Mapping[str, NDArray[Any]] | None = None
    impatient: bool = False


def play(
    job: Job,
    folder: Path,
    planned: Plan,
    evaluation: Evaluation,
    on_progress: OnProgress = silent,
    crew: Crew | None = None,
) -> dict[str, Any]:
    """Play the episodes left, finish the best policy and return the summary; see ``run``.

    Who evaluates is as the job says, unless a ``crew`` is given; it is closed at the end.
    """
    results.drop_torn_line(folder)
    trials = results.read_trials(folder)
    _check_target(folder, planned)
    if len(trials) == job.episodes and (folder / "summary.json").exists():
        summary = results.read_json(folder / "summary.json")
        if summary["state"] == "finished":
            return summary
    _repair(folder, evaluation, trials)
    try:
        with closing(crew or _hired(planned, evaluation)) as crew:
            search = _Search(job, folder, planned, evaluation, crew, trials, on_progress)
            for _ in _episodes(search):
                _write_summary(folder, "running", planned, evaluation, trials, best(trials), {})
            top, found = _finish(search)
        return _write_summary(folder, "finished", planned, evaluation, trials, top, found)
    except KeyboardInterrupt:
        if not trials:
            raise
        _repair(folder, evaluation, trials)
        return _write_summary(folder, "interrupted", planned, evaluation, trials, best(trials), {})


def _hired(planned: Plan, evaluation: Evaluation) -> Crew:
    how = Means(evaluation.network, evaluation.score, evaluation.tuned)
    return hire(how, planned.model, planned.images["shape"], evaluation.basis)


class _Search(NamedTuple):
    """All that the parts of a search share."""

    job: Job
    folder: Path
    planned: Plan
    evaluation: Evaluation
    crew: Crew
    trials: list[Trial]
    on_progress: OnProgress


def _check_target(folder: Path, planned: Plan) -> None:
    """Refuse to go on with costs that changed since: a target can be a file."""
    if not (folder / "summary.json").exists() or not isinstance(planned.target, Explained):
        return
    before = results.read_json(folder / "summary.json").get("cost_origin")
    if before and before["version"] != planned.target.profile.version:
        raise RunError(
            f"target {planned.target.name} is another one than when run {folder} began "
            f"({before['version'][:12]}, now {planned.target.profile.version[:12]}): put the old "
            "file back, or start a new run"
        )


def _repair(folder: Path, evaluation: Evaluation, trials: Sequence[Trial]) -> None:
    """Make up for a stop between the line of the best trial and that trial's network."""
    if trials and _kept_policy(folder) != best(trials).policy:
        policy = best(trials).policy
        try:
            network = evaluation.network(policy)
        except DivergedError:  # as in its trial
            return
        _keep(folder, policy, packed(network))


def _kept_policy(folder: Path) -> Policy | None:
    try:
        return read_policy(folder / "policy.json")
    except PolicyError:
        return None


def _keep(folder: Path, policy: Policy, weights: bytes) -> None:
    # The policy comes last: where it stands, its network does.
    (folder / "policy.json").unlink(missing_ok=True)
    write_bytes(folder / "weights.safetensors", weights)
    write_policy(folder / "policy.json", policy)


def _episodes(search: _Search) -> Iterator[Trial]:
    """Play the episodes, those of an earlier start from memory, and yield the new trials."""
    job, trials, evaluation = search.job, search.trials, search.evaluation
    asked = _Asked(search)
    floats = evaluation.float_score
    env = QuantizationEnv(
        search.planned.table, asked.score, search.planned.budgets, floats.accuracy,
        float_loss=floats.loss, reward="accuracy" if job.reward == "accuracy" else "loss",
        sensitivity=evaluation.sensitivity,
    )  # fmt: skip
    options = {"paper": True} if job.paper else {}
    play = AGENTS[job.agent](
        env, job.episodes, job.seed, window=asked.window, ahead=asked.ahead, **options
    )
    for number, episode in enumerate(play):
        if number >= asked.replayed:
            trial = _trial(number, episode, asked.found)
            results.append_trial(search.folder, trial)
            trials.append(trial)
            _keep_best(search.folder, trials, asked.found)
            yield trial
        top = best(trials[: number + 1])
        note = f"best {top.accuracy:.2%} (float {floats.accuracy:.2%})"
        search.on_progress(Progress("search", number + 1, job.episodes, note))


class _Asked:
    """The policies that are evaluated or will be, each once, however often it is met.

    Attributes:
        window: How many episodes the agent may be ahead of their scores.
        replayed: Episodes of an earlier start, whose scores are known.
        found: What the evaluation of the last episode gave; None where there was none.
    """

    def __init__(self, search: _Search) -> None:
        self.window, self.replayed = window(search.job.workers), len(search.trials)
        self.found: Found | None = None
        self._search = search
        self._first: dict[Key, int] = {}
        self._answers: dict[int, Answer] = {}
        self._scores: dict[int, Score] = {}

    def ahead(self, number: int, policy: Policy) -> None:
        """Have the policy of an episode evaluated, unless it was met before."""
        trials = self._search.trials
        if number < self.replayed:
            _check_replayed(trials[number], policy)
        if self._first.setdefault(_key(policy), number) != number:
            return
        if number < self.replayed:
            trial = trials[number]
            self._scores[number] = Score(trial.accuracy, trial.loss, trial.stopped)
        else:
            self._answers[number] = self._search.crew.ask(self._request(number, policy))

    def _request(self, number: int, policy: Policy) -> Request:
        # Also where more is known by now: what is stopped depends on scores, never on the clock.
        known = self._search.trials[: max(0, number + 1 - self.window)]
        whole = [trial for trial in known if not trial.stopped]
        if not whole:
            return Request(policy)
        impatient, top = self._search.evaluation.impatient, best(whole)
        beat = top.accuracy if impatient else None
        return Request(policy, beat=beat, least=Score(top.accuracy, top.loss))

    def score(self, policy: Policy) -> Score:
        """Return the score of a policy that was announced, which may have to be waited for."""
        number = self._first[_key(policy)]
        self.found = None
        if number in self._answers:
            self.found = self._answers.pop(number)()
            self._scores[number] = self.found.score or self._lost()
        return self._scores[number]

    def _lost(self) -> Score:
        """Return the score of a network that diverged: that of one that knows nothing."""
        classes = self._search.planned.images.get("classes", ())
        return Score(0.0, math.log(len(classes)) if len(classes) > 1 else math.nan)


def _key(policy: Policy) -> Key:
    return tuple(sorted(policy.items()))


def _check_replayed(trial: Trial, policy: Policy) -> None:
    if _key(trial.policy) != _key(policy):
        raise RunError(
            f"episode {trial.episode} does not repeat: the run was made with other versions or "
            "other settings; start a new one"
        )


def _trial(number: int, episode: Episode, found: Found | None) -> Trial:
    info = episode.info
    return Trial(
        number, info["policy"], info["cost"], info["accuracy"], info["loss"], episode.reward,
        round(found.seconds, 3) if found else 0.0, found is None, info["stopped"],
    )  # fmt: skip


def _keep_best(folder: Path, trials: Sequence[Trial], found: Found | None) -> None:
    top = best(trials)
    if top is trials[-1] and found is not None and found.weights is not None:
        _keep(folder, top.policy, found.weights)


def _finish(search: _Search) -> tuple[Trial, dict[str, Any]]:
    """Choose a trial, make the most of its network, keep that and score it on the test images."""
    started = time.perf_counter()
    job, planned, evaluation, trials = (
        search.job, search.planned, search.evaluation, search.trials,
    )  # fmt: skip
    found: dict[str, Any] = {}
    top, weights, tuned = best(trials), None, evaluation.tuned is None
    if evaluation.tuned is not None and job.finalists:
        top, weights, found["finalists"] = _play_off(search)
        tuned = weights is not None
    network = evaluation.tuned if evaluation.tuned and tuned else evaluation.network

    def evaluate(policy: Policy) -> Score:
        return evaluation.score(network(policy))

    before = top
    top, latency = measured_winner(
        search.folder, planned, trials, top, evaluate, search.on_progress
    )  # fmt: skip
    found |= latency
    if weights is None or top is not before:
        model = network(top.policy)
    else:
        model = _restored(planned, evaluation, top.policy, weights)
    if evaluation.test:
        found["float_test_accuracy"] = evaluation.test(planned.graph.traced).accuracy
        found["episode_test_accuracy"] = evaluation.test(model).accuracy
    evaluation.finish(model, tuned)
    convert_to_integers(model)
    found["final_val_accuracy"] = evaluation.score(model).accuracy
    if evaluation.test:
        found["final_test_accuracy"] = evaluation.test(model).accuracy
    _keep(search.folder, top.policy, packed(model))
    return top, found | {"finish_seconds": round(time.perf_counter() - started, 1)}


def _restored(
    planned: Plan, evaluation: Evaluation, policy: Policy, weights: bytes
) -> fx.GraphModule:
    model = quantize(planned.graph, policy, evaluation.basis.clips)
    model.load_state_dict(load(weights))
    # As training left it: the layout decides in which order sums are taken.
    return model.to(memory_format=torch.channels_last)


def _play_off(search: _Search) -> tuple[Trial, bytes | None, list[dict[str, Any]]]:
    """Give the best trials the paper's epoch; return the best of them, its weights, and all scores.

    There are no weights where no epoch made any of them better than the best trial was without. Of
    agents that begin with the optimum of the sensitivities, that one always takes part.
    """
    job, trials = search.job, search.trials
    ranked = {_key(trial.policy): trial for trial in sorted(trials, key=rank, reverse=True)}
    several = sorted(ranked.values(), key=rank)[: job.finalists]
    if job.agent in INFORMED and not any(trial.policy == trials[0].policy for trial in several):
        several.append(trials[0])
    top, rows, weights = best(trials), [], None
    reached = Score(top.accuracy, top.loss)
    answers = [search.crew.ask(Request(t.policy, "tuned", least=reached)) for t in several]
    for trial, answer in zip(several, answers, strict=True):
        found = answer()
        if found.score is None:
            continue
        rows.append(
            {
                "episode": trial.episode, "val_accuracy": trial.accuracy,
                "tuned_val_accuracy": found.score.accuracy, "tuned_val_loss": found.score.loss,
            }
        )  # fmt: skip
        if merit(found.score, job.reward) > merit(reached, job.reward):
            reached, weights, top = found.score, found.weights, trial
    return top, weights, rows


def _write_summary(
    folder: Path,
    state: str,
    planned: Plan,
    evaluation: Evaluation,
    trials: Sequence[Trial],
    top: Trial,
    found: Mapping[str, Any],
) -> dict[str, Any]:
    evaluated = [trial for trial in trials if not trial.cached]
    table = planned.table
    summary = {
        "format": "haq-run/1",
        "state": state,
        "float_val_accuracy": evaluation.float_score.accuracy,
        "best_episode": top.episode,
        "episode_val_accuracy": top.accuracy,
        **found,
        "episodes": len(trials),
        "evaluations": len(evaluated),
        "evaluation_seconds": round(sum(t.seconds for t in evaluated), 1),
        "seconds_per_evaluation": round(sum(t.seconds for t in evaluated) / len(evaluated), 3),
        "budgets": [
            {
                "asked": text, "quantity": budget.quantity, "limit": budget.limit,
                "unit": table.units[budget.quantity],
                "achieved": total(table, top.policy, budget.quantity),
            }
            for text, budget in zip(planned.texts, planned.budgets, strict=True)
        ],
        "cost": {quantity: total(table, top.policy, quantity) for quantity in table.units},
        "units": dict(table.units),
        "cost_origin": cost_origin(planned.target, table, top.policy),
        "layers": layer_rows(planned, top.policy),
        "floats": list(planned.graph.floats),
        "images": dict(planned.images),
        "threads": torch.get_num_threads(),
        "provenance": results.provenance(sys.argv),
    }  # fmt: skip
    results.write_json(folder / "summary.json", summary)
    return summary


def layer_rows(planned: Plan, policy: Policy) -> list[dict[str, Any]]:
    """Return the per-layer table: what a layer is, its bits, its costs with them and at 8 bits."""
    table, eight = planned.table, Bits(8, 8)
    rows = []
    for layer in table.layers:
        bits = policy[layer.name]
        place = table.positions[layer.name][bits]
        alone = [replace(layer, reads=layer.name)]
        rows.append(
            {
                "name": layer.name, "kind": layer.kind, "params": layer.weights + layer.biases,
                "macs": layer.macs, "weight_bits": bits.weight, "act_bits": bits.act,
                "cost": {q: float(row[layer.name][place]) for q, row in table.rows.items()},
                "cost_w8a8": {
                    q: _reference(alone, planned.target, q, eight)
                    for q in table.units if q != "avg_weight_bits"
                },
            }
        )  # fmt: skip
    return rows


def _reference(
    layers: Sequence[Any], target: Target | None, quantity: str, bits: Bits
) -> float | None:
    try:
        return reference(layers, target, quantity, bits)
    except TargetError:
        return None
