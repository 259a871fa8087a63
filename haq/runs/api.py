"""HAQ from Python: the same search, for models and data that have no name on the command line."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from haq.allocation.policy import Bits, read_policy
from haq.allocation.trials import Trial, best
from haq.datasets import Data, from_splits, load
from haq.errors import DataError, HaqError, RunError
from haq.models.weights import load_weights, save_weights
from haq.network.graph import Graph
from haq.quantization.calibration import load_clips
from haq.quantization.fake_quant import quantize
from haq.runs.evaluation import labeled, unlabeled
from haq.runs.executors.base import check_sendable
from haq.runs.executors.ray import check_ray
from haq.runs.folder import find_folder, new_folder, read_job, read_json, read_trials, write_job
from haq.runs.job import Job, parse_job
from haq.runs.plan import images_of, plan
from haq.runs.play import play
from haq.runs.progress import OnProgress
from haq.runs.run import remove_unused, run

if TYPE_CHECKING:
    from pandas import DataFrame


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
            inputs to calibrate on; then nothing is fine-tuned. Without ``evaluate`` such inputs do
            for the cheap evaluation, as of ``agent="ilp"``: agreement with the float network.
        evaluate: From a quantized network, in evaluation mode, to a score where higher is better;
            without it validation accuracy. Rewards take it as a share, so one in [0, 1] suits best.
        out: Name or folder of the run; named after the job without it.
        resume: Go on with the run in ``out``, which must have been asked for in the same words.
        on_progress: Called with a ``haq.runs.run.Progress``.
        **fields: Other fields of a ``haq.runs.job.Job``: budgets, target, agent, episodes, seed,
            act_bits, pins, final_epochs, workers, …. With workers, ``model``, ``data`` and
            ``evaluate`` are pickled, and a score must not depend on what was scored before.

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
    images = None if isinstance(data, Tensor) else _images(data, fields.get("seed", 0))
    job = _job(model, images, evaluate, fields)
    if job.threads:
        torch.set_num_threads(job.threads)
    check_ray(job)
    if job.workers > 1 or job.ray is not None:
        check_sendable(model, evaluate)
    folder = _folder(job, out, resume)
    sample = inputs if inputs is not None else torch.zeros(1, *(images.shape if images else ()))
    try:
        planned = plan(
            job, model, images_of(images) if images else {"shape": list(sample.shape[1:])}
        )
    except HaqError:
        remove_unused(folder)
        raise
    write_job(folder, job)
    _keep_float(model, folder / "float.safetensors")
    if inputs is not None:
        evaluation = unlabeled(job, folder, planned, inputs, say, evaluate)
    else:
        assert images is not None
        evaluation = labeled(job, folder, planned, images, say, evaluate)
    play(job, folder, planned, evaluation, say)
    return _found(folder, planned.graph)


def _job(
    model: nn.Module,
    images: Data | None,
    evaluate: Callable[[nn.Module], float] | None,
    fields: dict[str, Any],
) -> Job:
    """Return the job for a model of the caller's own; ``images`` is None for inputs alone."""
    named = {"weights", "float_epochs", "width", "size"} & fields.keys()
    if named:
        raise HaqError(f"{', '.join(sorted(named))}: only for a model given by its name")
    fields = ({} if images else {"finalists": 0}) | fields  # those would be fine-tuned
    fields = ({"reward": "accuracy"} if evaluate else {}) | fields
    job = parse_job(model=type(model).__name__, data=images.name if images else "inputs", **fields)
    if evaluate and job.reward != "accuracy":
        raise HaqError(f"reward {job.reward}: evaluate= gives one number; leave the reward out")
    if images is None and evaluate is None and job.evaluation != "cheap":
        raise DataError(
            "inputs alone have no labels: give evaluate=, or the three splits, or take an agent or "
            'an evaluation that needs none, such as agent="ilp"'
        )
    return job


def _images(data: Data | Sequence[Any] | str, seed: int) -> Data:
    if isinstance(data, str):
        return load(data, seed=seed)
    return data if isinstance(data, Data) else from_splits(data)


def _folder(job: Job, out: str | Path | None, resume: bool) -> Path:
    if not resume:
        return new_folder(job, str(out) if out is not None else None)
    if out is None:
        raise RunError("resume=True goes on with the run in out=, which is not given")
    folder = find_folder(str(out))
    before = read_job(folder)
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


def _found(folder: Path, graph: Graph | None) -> Run:
    policy = read_policy(folder / "policy.json")
    network = None
    if graph is not None:
        network = quantize(graph, policy, load_clips(folder / "clips.safetensors"))
        load_weights(network, folder / "weights.safetensors")
        network.eval()
    return Run(
        folder,
        read_json(folder / "summary.json"),
        policy,
        read_trials(folder),
        network,
    )


@dataclass(frozen=True)
class Tables:
    """A run read back from its folder, with its numbers as pandas frames.

    Attributes:
        folder: Where it lies.
        job: What was asked for.
        summary: As in ``summary.json``; empty before the first episode.
        policy: Of the best trial.
        trials: A row an episode: accuracy, loss, reward, seconds, cached, a column for each cost
            under its quantity's name, and the policy.
        layers: A row a layer: kind, params, macs, weight_bits, act_bits, and for each quantity its
            cost and, as quantity_w8a8, the one at 8 bits. The units of both frames are in their
            ``attrs["units"]``.
    """

    folder: Path
    job: Job
    summary: dict[str, Any]
    policy: dict[str, Bits]
    trials: "DataFrame"
    layers: "DataFrame"


def load_run(path: str | Path) -> Tables:
    """Return a run, finished or not, as tables.

    Args:
        path: Its name or folder.

    Raises:
        RunError: There is no run, or it is damaged.

    >>> run = load_run("mine")  # doctest: +SKIP
    >>> run.trials.plot.scatter("avg_weight_bits", "accuracy")  # doctest: +SKIP
    """
    from pandas import DataFrame

    folder = find_folder(str(path))
    kept = folder / "summary.json"
    summary = read_json(kept) if kept.exists() else {}
    found = read_trials(folder)
    trials = DataFrame([_flat(vars(trial), "cost", "") for trial in found])
    rows = [_flat(row, "cost", "") for row in summary.get("layers", [])]
    layers = DataFrame([_flat(row, "cost_w8a8", "_w8a8") for row in rows])
    trials = trials.set_index("episode") if found else trials
    layers = layers.set_index("name") if rows else layers
    trials.attrs["units"] = layers.attrs["units"] = summary.get("units", {})
    policy = dict(best(found).policy) if found else {}
    return Tables(folder, read_job(folder), summary, policy, trials, layers)


def _flat(row: Mapping[str, Any], field: str, suffix: str) -> dict[str, Any]:
    """Return a row with the entries of one of its fields as columns of their own."""
    columns = {f"{name}{suffix}": value for name, value in row[field].items()}
    return {name: value for name, value in row.items() if name != field} | columns
