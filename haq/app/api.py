"""HAQ from Python: the same search, for models and data that have no name on the command line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from haq.app import results
from haq.app.job import Job, parse_job
from haq.app.search import (
    Evaluation,
    OnProgress,
    calibration_batches,
    fine_tuned,
    images_of,
    kept_clips,
    plan,
    play,
    remove_unused,
    run,
)
from haq.datasets import Data, from_splits, load
from haq.errors import DataError, HaqError, RunError
from haq.graph import Graph, evaluating
from haq.models.weights import load_weights, save_weights
from haq.policy import Bits, read_policy
from haq.quantize import Clips, load_clips, quantize
from haq.trials import Score, Trial


@dataclass(frozen=True)
class Run:
    """What a search found.

    Attributes:
        folder: Where it lies.
        summary: As in ``summary.json``: budgets, accuracies, the per-layer table.
        policy: The bits of every layer.
        trials: One an episode.
        model: The quantized network, fine-tuned, in evaluation mode; None for a search by name.
    """

    folder: Path
    summary: dict[str, Any]
    policy: dict[str, Bits]
    trials: list[Trial]
    model: nn.Module | None


def search(
    model: nn.Module | str = "digits_cnn",
    data: Data | Tensor | Sequence[Any] | str = "digits",
    *,
    evaluate: Callable[[nn.Module], float] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    on_progress: OnProgress | None = None,
    **fields: Any,
) -> Run:
    """Find the bits of every layer under the budgets, fine-tune the network and return the run.

    Args:
        model: A trained classifier or, with ``evaluate``, any network that takes one tensor and
            whose forward torch.fx can trace; it is left as it is. Or a name.
        data: A data set by name, as ``haq.datasets.Data``, or as its three splits, each a pair of
            images (N, C, H, W) and labels (N,). With ``evaluate`` also just a tensor (N, ...) of
            inputs to calibrate on; then nothing is fine-tuned.
        evaluate: From a quantized network, in evaluation mode, to a score where higher is better;
            validation accuracy without it. Rewards take it as a share, so one in [0, 1] suits best.
        out: Name or folder of the run; named after the job without it.
        resume: Go on with the run in ``out``, which must have been asked for in the same words.
        on_progress: Called with a ``haq.app.search.Progress``.
        **fields: The other fields of a ``haq.app.job.Job``: budgets, target, agent, episodes, seed,
            act_bits, pins, final_epochs, ….

    Returns:
        The run.

    Raises:
        HaqError: As on the command line.
    """
    say = on_progress or (lambda _: None)
    if isinstance(model, str):
        if not isinstance(data, str) or evaluate is not None:
            raise HaqError(f"model {model!r} is a name: give a name for the data, and no evaluate")
        job = parse_job(model=model, data=data, **fields)
        folder = _folder(job, out, resume)
        run(job, folder, say)
        return _found(folder, None)
    inputs = data if isinstance(data, Tensor) else None
    if inputs is not None and evaluate is None:
        raise DataError("inputs alone have no labels: give evaluate=, or the three splits")
    images = None if isinstance(data, Tensor) else _images(data, fields.get("seed", 0))
    named = {"weights", "float_epochs", "width", "size"} & fields.keys()
    if named:
        raise HaqError(f"{', '.join(sorted(named))}: only for a model given by its name")
    job = parse_job(model=type(model).__name__, data=images.name if images else "inputs", **fields)
    folder = _folder(job, out, resume)
    sample = inputs if inputs is not None else torch.zeros(1, *(images.shape if images else ()))
    try:
        planned = plan(
            job, model, images_of(images) if images else {"shape": list(sample.shape[1:])}
        )
    except HaqError:
        remove_unused(folder)
        raise
    results.write_job(folder, job)
    _keep_float(model, folder / "float.safetensors")
    if inputs is not None:
        batches = iter(inputs[: job.calibration_images].split(128))
    else:
        assert images is not None
        batches = calibration_batches(images, job.calibration_images, job.seed)
    clips = kept_clips(job, folder, planned.graph, batches, say)
    if images is not None:
        evaluation = fine_tuned(job, planned.graph, clips, images, say)
    else:
        evaluation = _not_tuned(planned.graph, clips)
    if evaluate is not None:
        evaluation = _scored_by(evaluation, evaluate, planned.graph)
    play(job, folder, planned, evaluation, say)
    return _found(folder, planned.graph)


def _images(data: Data | Sequence[Any] | str, seed: int) -> Data:
    if isinstance(data, str):
        return load(data, seed=seed)
    return data if isinstance(data, Data) else from_splits(data)


def _folder(job: Job, out: str | Path | None, resume: bool) -> Path:
    if not resume:
        return results.new_folder(job, str(out) if out is not None else None)
    if out is None:
        raise RunError("resume=True goes on with the run in out=, which is not given")
    folder = results.find_folder(str(out))
    before = results.read_job(folder)
    if before != job:
        changed = [name for name in Job.model_fields if getattr(before, name) != getattr(job, name)]
        raise RunError(f"run {folder} was asked for with another {', '.join(changed)}")
    return folder


def _keep_float(model: nn.Module, kept: Path) -> None:
    if not kept.exists():
        save_weights(model, kept)
        return
    before, now = load_file(kept), model.state_dict()
    same = before.keys() == now.keys() and all(torch.equal(before[k], now[k]) for k in before)
    if not same:
        raise RunError(f"the model's weights are not those that the run started from ({kept})")


def _not_tuned(graph: Graph, clips: Clips) -> Evaluation:
    return Evaluation(
        tuned=lambda policy: quantize(graph, policy, clips),
        score=lambda model: Score(float("nan")),
        float_score=Score(float("nan")),
        finish=lambda model: None,
        test=None,
    )


def _scored_by(
    evaluation: Evaluation, evaluate: Callable[[nn.Module], float], graph: Graph
) -> Evaluation:
    def score(model: nn.Module) -> Score:
        with torch.no_grad(), evaluating(model):
            return Score(float(evaluate(model)))

    return evaluation._replace(score=score, float_score=score(graph.traced), test=None)


def _found(folder: Path, graph: Graph | None) -> Run:
    policy = read_policy(folder / "policy.json")
    network = None
    if graph is not None:
        network = quantize(graph, policy, load_clips(folder / "clips.safetensors"))
        load_weights(network, folder / "weights.safetensors")
        network.eval()
    return Run(
        folder,
        results.read_json(folder / "summary.json"),
        policy,
        results.read_trials(folder),
        network,
    )
