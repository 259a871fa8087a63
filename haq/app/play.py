"""Play the episodes of a search, write down every trial, and finish the best policy."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import fx, nn

from haq.agents import AGENTS, INFORMED, Episode
from haq.app import results
from haq.app.job import Job
from haq.app.prepare import OnProgress, Plan, Progress, silent
from haq.app.provenance import cost_origin
from haq.app.scoring import Basis, Scoring
from haq.app.winner import measured_winner
from haq.costs import Target, reference, total
from haq.envs.quantization import QuantizationEnv
from haq.errors import DivergedError, PolicyError, RunError, TargetError
from haq.hw_profiles import Explained
from haq.integers import settle
from haq.models.weights import save_weights
from haq.policy import Bits, Policy, read_policy, write_policy
from haq.trials import Score, Trial, best, rank

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


@dataclass
class _Memory:
    """Every policy met, and what the last evaluation took."""

    scores: dict[Key, Score] = field(default_factory=dict)
    seconds: float = 0.0
    cached: bool = False
    model: nn.Module | None = None

    @property
    def top(self) -> float | None:
        """The best accuracy of an evaluation that was not stopped."""
        return max((s.accuracy for s in self.scores.values() if not s.stopped), default=None)


def play(
    job: Job, folder: Path, planned: Plan, evaluation: Evaluation, on_progress: OnProgress = silent
) -> dict[str, Any]:
    """Play the episodes left, finish the best policy and return the summary; see ``run``."""
    results.drop_torn_line(folder)
    trials = results.read_trials(folder)
    _check_target(folder, planned)
    if len(trials) == job.episodes and (folder / "summary.json").exists():
        summary = results.read_json(folder / "summary.json")
        if summary["state"] == "finished":
            return summary
    _repair(folder, evaluation, trials)
    try:
        for _ in _episodes(job, folder, planned, evaluation, trials, on_progress):
            _write_summary(folder, "running", planned, evaluation, trials, best(trials), {})
        top, found = _finish(job, folder, planned, evaluation, trials, on_progress)
        return _write_summary(folder, "finished", planned, evaluation, trials, top, found)
    except KeyboardInterrupt:
        if not trials:
            raise
        return _write_summary(folder, "interrupted", planned, evaluation, trials, best(trials), {})


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
    """Make up for a run killed between the line of its best trial and that trial's network."""
    if trials and _kept_policy(folder) != best(trials).policy:
        _keep(folder, best(trials).policy, evaluation.network(best(trials).policy))


def _kept_policy(folder: Path) -> Policy | None:
    try:
        return read_policy(folder / "policy.json")
    except PolicyError:
        return None


def _keep(folder: Path, policy: Policy, model: nn.Module) -> None:
    # The policy comes last: where it stands, its network does.
    (folder / "policy.json").unlink(missing_ok=True)
    save_weights(model, folder / "weights.safetensors")
    write_policy(folder / "policy.json", policy)


def _episodes(
    job: Job,
    folder: Path,
    planned: Plan,
    evaluation: Evaluation,
    trials: list[Trial],
    on_progress: OnProgress,
) -> Iterator[Trial]:
    """Play the episodes, those of an earlier start from memory, and yield the new trials."""
    memory = _Memory({_key(t.policy): Score(t.accuracy, t.loss, t.stopped) for t in trials})

    def evaluate(policy: Policy) -> Score:
        key = _key(policy)
        memory.cached, memory.seconds, memory.model = key in memory.scores, 0.0, None
        if not memory.cached:
            started = time.perf_counter()
            try:
                memory.model = evaluation.network(policy)
                beat = memory.top if evaluation.impatient else None
                memory.scores[key] = evaluation.score(memory.model, beat)
            except DivergedError:
                memory.scores[key] = Score(0.0)
            memory.seconds = time.perf_counter() - started
        return memory.scores[key]

    floats = evaluation.float_score
    env = QuantizationEnv(
        planned.table, evaluate, planned.budgets, floats.accuracy, float_loss=floats.loss,
        reward="accuracy" if job.reward == "accuracy" else "loss",
        sensitivity=evaluation.sensitivity,
    )  # fmt: skip
    options = {"paper": True} if job.paper else {}
    play = AGENTS[job.agent](env, job.episodes, job.seed, **options)
    for number, episode in enumerate(play):
        if number < len(trials):
            _check_replayed(trials[number], episode)
        else:
            trial = _trial(number, episode, memory)
            results.append_trial(folder, trial)
            trials.append(trial)
            _keep_best(folder, trials, memory.model)
            yield trial
        top = best(trials[: number + 1])
        note = f"best {top.accuracy:.2%} (float {evaluation.float_score.accuracy:.2%})"
        on_progress(Progress("search", number + 1, job.episodes, note))


def _key(policy: Policy) -> Key:
    return tuple(sorted(policy.items()))


def _check_replayed(trial: Trial, episode: Episode) -> None:
    if _key(trial.policy) != _key(episode.info["policy"]):
        raise RunError(
            f"episode {trial.episode} does not repeat: the run was made with other versions or "
            "other settings; start a new one"
        )


def _trial(number: int, episode: Episode, memory: _Memory) -> Trial:
    info = episode.info
    return Trial(
        number, info["policy"], info["cost"], info["accuracy"], info["loss"], episode.reward,
        round(memory.seconds, 3), memory.cached, info["stopped"],
    )  # fmt: skip


def _keep_best(folder: Path, trials: Sequence[Trial], model: nn.Module | None) -> None:
    top = best(trials)
    if top is trials[-1] and model is not None:
        _keep(folder, top.policy, model)


def _finish(
    job: Job,
    folder: Path,
    planned: Plan,
    evaluation: Evaluation,
    trials: Sequence[Trial],
    on_progress: OnProgress,
) -> tuple[Trial, dict[str, Any]]:
    """Choose a trial, make the most of its network, keep that and score it on the test images."""
    started = time.perf_counter()
    found: dict[str, Any] = {}
    top, model, tuned = best(trials), None, evaluation.tuned is None
    if evaluation.tuned is not None and job.finalists:
        top, model, found["finalists"] = _play_off(job, evaluation.tuned, evaluation.score, trials)
        tuned = model is not None
    network = evaluation.tuned if evaluation.tuned and tuned else evaluation.network

    def evaluate(policy: Policy) -> Score:
        return evaluation.score(network(policy))

    before = top
    top, latency = measured_winner(folder, planned, trials, top, evaluate, on_progress)
    found |= latency
    if model is None or top is not before:
        model = network(top.policy)
    if evaluation.test:
        found["float_test_accuracy"] = evaluation.test(planned.graph.traced).accuracy
        found["episode_test_accuracy"] = evaluation.test(model).accuracy
    evaluation.finish(model, tuned)
    assert isinstance(model, fx.GraphModule)
    settle(model)
    found["final_val_accuracy"] = evaluation.score(model).accuracy
    if evaluation.test:
        found["final_test_accuracy"] = evaluation.test(model).accuracy
    _keep(folder, top.policy, model)
    return top, found | {"finish_seconds": round(time.perf_counter() - started, 1)}


def _play_off(
    job: Job, tuned: Callable[[Policy], nn.Module], score: Scoring, trials: Sequence[Trial]
) -> tuple[Trial, nn.Module | None, list[dict[str, Any]]]:
    """Give the best trials the paper's epoch; return the best of them, its network, and all scores.

    The network is None where no epoch made any of them better than the best trial was without. Of
    agents that begin with the optimum of the sensitivities, that one always takes part.
    """
    ranked = {_key(trial.policy): trial for trial in sorted(trials, key=rank, reverse=True)}
    several = sorted(ranked.values(), key=rank)[: job.finalists]
    if job.agent in INFORMED and not any(trial.policy == trials[0].policy for trial in several):
        several.append(trials[0])
    top, rows = best(trials), []
    reached, network = Score(top.accuracy, top.loss), None

    def merit(found: Score) -> tuple[float, float]:
        rewarded = (found.accuracy, -found.loss)
        return rewarded if job.reward == "accuracy" else (-found.loss, found.accuracy)

    for trial in several:
        try:
            model = tuned(trial.policy)
        except DivergedError:
            continue
        found = score(model)
        rows.append(
            {
                "episode": trial.episode, "val_accuracy": trial.accuracy,
                "tuned_val_accuracy": found.accuracy, "tuned_val_loss": found.loss,
            }
        )  # fmt: skip
        if merit(found) > merit(reached):
            reached, network, top = found, model, trial
    return top, network, rows


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
