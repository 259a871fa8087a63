"""Run a job: the one place where model, target, environment and agent meet."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from haq.agents import AGENTS, Episode
from haq.app import results
from haq.app.job import Job
from haq.budgets import Budget, fit, parse_budget
from haq.calibrate import CLIPPING
from haq.costs import CostTable, Target, permitted, reference, tabulate, total
from haq.datasets import Data, check_fits, load
from haq.envs.quantization import QuantizationEnv
from haq.errors import (
    DivergedError,
    HaqError,
    ModelError,
    PolicyError,
    RunError,
    TargetError,
    look_up,
)
from haq.evaluate import Evaluator, Recipe, finish
from haq.graph import Graph, trace
from haq.hw_profiles import load as load_target
from haq.models import build, input_shape
from haq.models.weights import load_weights, save_weights
from haq.policy import Bits, Policy, read_policy, write_policy
from haq.quantize import Clips, calibrate, load_clips, save_clips
from haq.train import Step, score, train
from haq.trials import Score, Trial, best

Key = tuple[tuple[str, Bits], ...]


class Progress(NamedTuple):
    """Where a run stands: what it does, how far it is, what to say beside it."""

    stage: str
    done: int
    total: int
    note: str = ""


OnProgress = Callable[[Progress], None]


def _silent(_: Progress) -> None:
    pass


@dataclass(frozen=True)
class Plan:
    """What is known before any image is looked at: layers, costs, budgets."""

    graph: Graph
    target: Target | None
    table: CostTable
    budgets: tuple[Budget, ...]
    texts: tuple[str, ...]
    images: Mapping[str, Any]


def plan(job: Job, model: nn.Module, images: Mapping[str, Any]) -> Plan:
    """Return the layers of a model, what their bits cost and the budgets of the job.

    Args:
        job: Its budgets, target, pins and bits count here.
        model: Left as it is.
        images: At least the "shape" of one; kept with the run.

    Raises:
        HaqError: The model cannot be traced, a name is unknown, or no policy meets the budgets.
    """
    look_up(AGENTS, "agent", job.agent)
    look_up(CLIPPING, "clipping", job.clipping)
    graph = trace(model, torch.zeros(1, *images["shape"]))
    target = load_target(job.target, job.batch) if job.target else None
    pins = job.pins
    if pins is None:
        pins = {graph.layers[0].name: 8, graph.layers[-1].name: 8}
    choices = permitted(graph.layers, target, job.weight_bits, job.fixed_act_bits, pins)
    table = tabulate(graph.layers, choices, target)
    budgets = tuple(parse_budget(text, graph.layers, target) for text in job.budgets)
    dearest = {name: pairs[-1] for name, pairs in table.choices.items()}
    fit(dearest, table, budgets)  # says now, not after an hour, that nothing fits
    return Plan(graph, target, table, budgets, job.budgets, images)


def run(job: Job, folder: Path, on_progress: OnProgress = _silent) -> dict[str, Any]:
    """Run a job in its folder, or go on where it stopped, and return its summary.

    Args:
        job: As in ``job.json``, if the folder has one.
        folder: Made by ``results.new_folder``, or a run to go on with.
        on_progress: Called often.

    Returns:
        What ``summary.json`` holds. After Ctrl-C that is the state reached, "interrupted".

    Raises:
        HaqError: The job cannot be done; a folder in which nothing was begun is taken away again.
    """
    new = not (folder / "job.json").exists()
    if job.threads:
        torch.set_num_threads(job.threads)
    try:
        data = load(job.data, seed=job.seed, size=job.size)
        model = fresh_model(job.model, data, job.width, job.seed)
        planned = plan(job, model, images_of(data))
        _float_network(job, folder, model, data, on_progress)
    except BaseException:
        if new:
            remove_unused(folder)
        raise
    batches = calibration_batches(data, job.calibration_images, job.seed)
    clips = kept_clips(job, folder, planned.graph, batches, on_progress)
    evaluation = fine_tuned(job, planned.graph, clips, data, on_progress)
    return play(job, folder, planned, evaluation, on_progress)


def images_of(data: Data) -> dict[str, Any]:
    """Return what must be known of a data set's images to feed the network later."""
    return {
        "data": data.name, "shape": list(data.shape), "mean": list(data.mean),
        "std": list(data.std), "classes": list(data.classes),
    }  # fmt: skip


def remove_unused(folder: Path) -> None:
    """Take away the folder of a run in which nothing was begun."""
    started = any((folder / name).exists() for name in ("float.part", "float.safetensors"))
    if not started:
        (folder / "job.json").unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def fresh_model(name: str, data: Data, width: float, seed: int) -> nn.Module:
    """Return a model for the images and classes of a data set, its weights drawn from the seed.

    Raises:
        HaqError: There is no such model, or the images do not fit it.
    """
    torch.manual_seed(seed)
    own = input_shape(name)
    size = data.shape[-1] if own else None
    check_fits(data, name, input_shape(name, size) if own and own[0] == data.shape[0] else own)
    model = build(name, classes=len(data.classes), width=width, size=size)
    _check_outputs(name, model, data)
    # The layout decides in which order sums are taken: the same for every start of a run.
    return model.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def _check_outputs(name: str, model: nn.Module, data: Data) -> None:
    images, _ = data.train.batch(torch.zeros(1, dtype=torch.int64))
    try:
        with torch.no_grad():
            output = model.eval()(images)
    except Exception as error:
        shape = "x".join(map(str, data.shape))
        raise ModelError(f"model {name} does not run on images of {shape}: {error}") from error
    if not isinstance(output, torch.Tensor) or output.shape != (1, len(data.classes)):
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ModelError(
            f"model {name} gives {got} for one image; {data.name} has {len(data.classes)} classes, "
            f"so it must be (1, {len(data.classes)})"
        )


def _float_network(
    job: Job, folder: Path, model: nn.Module, data: Data, on_progress: OnProgress
) -> None:
    kept = folder / "float.safetensors"
    if kept.exists():
        return load_weights(model, kept)
    results.write_job(folder, job)
    if job.weights is not None:
        load_weights(model, job.weights)
    else:
        train_float(model, data, _float_epochs(job), job.seed, folder / "float.part", on_progress)
    save_weights(model, kept)
    (folder / "float.part").unlink(missing_ok=True)


def _float_epochs(job: Job) -> int:
    if job.float_epochs is None and job.data != "digits":
        raise HaqError(
            f"model {job.model} needs weights: give --weights FILE (haq train makes one), "
            "or --float-epochs N to train it within the run"
        )
    return 60 if job.float_epochs is None else job.float_epochs


def train_float(
    model: nn.Module,
    data: Data,
    epochs: int,
    seed: int,
    keep: Path,
    on_progress: OnProgress,
    lr: float = 0.1,
) -> None:
    """Train a float network in place on the training images; ``keep`` as in ``haq.train.train``."""

    def on_step(step: Step) -> None:
        on_progress(Progress("train", step.done, step.total, f"loss {step.loss:.3f}"))

    train(model, data.train, epochs=epochs, lr=lr, seed=seed, on_step=on_step, keep=keep)


class Evaluation(NamedTuple):
    """The functions that say what a policy is worth, and what happens to the one chosen."""

    tuned: Callable[[Policy], nn.Module]
    score: Callable[[nn.Module], Score]
    float_score: Score
    finish: Callable[[nn.Module], None]
    test: Callable[[nn.Module], Score] | None


@dataclass
class _Memory:
    """Every policy met, and what the last evaluation took."""

    scores: dict[Key, Score] = field(default_factory=dict)
    seconds: float = 0.0
    cached: bool = False
    model: nn.Module | None = None


def play(
    job: Job, folder: Path, planned: Plan, evaluation: Evaluation, on_progress: OnProgress = _silent
) -> dict[str, Any]:
    """Play the episodes left, finish the best policy and return the summary; see ``run``."""
    results.drop_torn_line(folder)
    trials = results.read_trials(folder)
    if len(trials) == job.episodes and (folder / "summary.json").exists():
        summary = results.read_json(folder / "summary.json")
        if summary["state"] == "finished":
            return summary
    _repair(folder, evaluation, trials)
    try:
        for _ in _episodes(job, folder, planned, evaluation, trials, on_progress):
            _write_summary(folder, "running", planned, evaluation, trials, {})
        found = _finish(folder, planned, evaluation, trials)
        return _write_summary(folder, "finished", planned, evaluation, trials, found)
    except KeyboardInterrupt:
        if not trials:
            raise
        return _write_summary(folder, "interrupted", planned, evaluation, trials, {})


def _repair(folder: Path, evaluation: Evaluation, trials: Sequence[Trial]) -> None:
    """Make up for a run killed between the line of its best trial and that trial's network."""
    if trials and _kept_policy(folder) != best(trials).policy:
        _keep(folder, best(trials).policy, evaluation.tuned(best(trials).policy))


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


def kept_clips(
    job: Job, folder: Path, graph: Graph, batches: Iterable[torch.Tensor], on_progress: OnProgress
) -> Clips:
    """Return the clips of a run: those in its folder, or new ones, which are put there."""
    kept = folder / "clips.safetensors"
    if kept.exists():
        return load_clips(kept)

    def on_tensor(done: int, count: int) -> None:
        on_progress(Progress("calibrate", done, count))

    clips = calibrate(graph, batches, job.clipping, job.per_channel, on_tensor)
    save_clips(clips, kept)
    return clips


def calibration_batches(data: Data, images: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield randomly chosen training images, not augmented, in batches."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(data.train), generator=generator)[:images]
    return (data.train.batch(index)[0] for index in chosen.split(128))


def fine_tuned(
    job: Job, graph: Graph, clips: Clips, data: Data, on_progress: OnProgress
) -> Evaluation:
    """Return the evaluation of the paper: one epoch of fine-tuning, then validation accuracy."""
    recipe = Recipe(job.train_images, job.val_images, job.lr, job.distill)
    evaluator = Evaluator(graph, clips, data, recipe, job.seed)

    def on_step(step: Step) -> None:
        on_progress(Progress("fine-tune", step.done, step.total, f"loss {step.loss:.3f}"))

    def last_epochs(model: nn.Module) -> None:
        finish(
            model, graph, data,
            epochs=job.last_epochs, recipe=recipe, seed=job.seed, on_step=on_step,
        )  # fmt: skip

    return Evaluation(
        tuned=evaluator.tuned,
        score=evaluator.score,
        float_score=evaluator.score(graph.traced),
        finish=last_epochs,
        test=lambda model: score(model, data.test),
    )


def _episodes(
    job: Job,
    folder: Path,
    planned: Plan,
    evaluation: Evaluation,
    trials: list[Trial],
    on_progress: OnProgress,
) -> Iterator[Trial]:
    """Play the episodes, those of an earlier start from memory, and yield the new trials."""
    memory = _Memory({_key(t.policy): Score(t.accuracy, t.loss) for t in trials})

    def evaluate(policy: Policy) -> Score:
        key = _key(policy)
        memory.cached, memory.seconds, memory.model = key in memory.scores, 0.0, None
        if not memory.cached:
            started = time.perf_counter()
            try:
                memory.model = evaluation.tuned(policy)
                memory.scores[key] = evaluation.score(memory.model)
            except DivergedError:
                memory.scores[key] = Score(0.0)
            memory.seconds = time.perf_counter() - started
        return memory.scores[key]

    env = QuantizationEnv(planned.table, evaluate, planned.budgets, evaluation.float_score.accuracy)
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
        round(memory.seconds, 3), memory.cached,
    )  # fmt: skip


def _keep_best(folder: Path, trials: Sequence[Trial], model: nn.Module | None) -> None:
    top = best(trials)
    if top is trials[-1] and model is not None:
        _keep(folder, top.policy, model)


def _finish(
    folder: Path, planned: Plan, evaluation: Evaluation, trials: Sequence[Trial]
) -> dict[str, Any]:
    """Fine-tune the best policy, keep its network and score it on the test images."""
    started = time.perf_counter()
    policy = best(trials).policy
    model = evaluation.tuned(policy)
    found: dict[str, Any] = {}
    if evaluation.test:
        found["float_test_accuracy"] = evaluation.test(planned.graph.traced).accuracy
        found["episode_test_accuracy"] = evaluation.test(model).accuracy
    evaluation.finish(model)
    found["final_val_accuracy"] = evaluation.score(model).accuracy
    if evaluation.test:
        found["final_test_accuracy"] = evaluation.test(model).accuracy
    _keep(folder, policy, model)
    return found | {"finish_seconds": round(time.perf_counter() - started, 1)}


def _write_summary(
    folder: Path,
    state: str,
    planned: Plan,
    evaluation: Evaluation,
    trials: Sequence[Trial],
    found: Mapping[str, Any],
) -> dict[str, Any]:
    top = best(trials)
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
