"""HAQ from Python: the same search, for models and data that have no name on the command line."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from haq.allocation.policy import Bits, read_policy
from haq.allocation.schemes import Scheme
from haq.allocation.trials import Trial
from haq.datasets import Data
from haq.errors import HaqError, RunError
from haq.models.weights import load_weights, save_weights
from haq.network.graph import Graph
from haq.quantization.calibration import load_clips
from haq.quantization.fake_quant import quantize
from haq.quantization.integer_forward import compute_exactly
from haq.runs.accuracy_target import check_resolution
from haq.runs.devices import check_device, moved
from haq.runs.evaluation import Evaluation, labeled, unlabeled
from haq.runs.executors.base import check_sendable
from haq.runs.executors.ray import check_ray
from haq.runs.folder import find_folder, new_folder, read_job, read_json, read_trials, write_job
from haq.runs.handover import tried
from haq.runs.in_notebook import html_of
from haq.runs.job import Job, check_threads, parse_job
from haq.runs.named import write_files_of_model
from haq.runs.named_model import named_for
from haq.runs.own import Own, OwnTask, own_task
from haq.runs.pace import stage_weights
from haq.runs.places import read_chain, replaced
from haq.runs.plan import Plan, plan
from haq.runs.play import play
from haq.runs.progress import OnProgress, Progress, silent, with_share
from haq.runs.run import remove_unused, run
from haq.runs.sample import sample_of
from haq.runs.tracking import Tracker, following, tracker

_APART = {"model", "data"}


@dataclass(frozen=True)
class Run:
    """A finished search.

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

    def _repr_html_(self) -> str:
        """Return what a notebook shows in the place of the run."""
        return html_of(self.summary, self.folder.name)


def search(  # noqa: PLR0913 - one keyword a field of the job
    model: nn.Module | str = "digits_cnn",
    data: Data | Tensor | Mapping[str, Tensor] | Iterable[Any] | str = "digits",
    *,
    evaluate: Own | None = None,
    metric: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    on_progress: OnProgress | None = None,
    on_trial: Callable[[Trial], None] | None = None,
    track: Sequence[str] = (),
    budgets: Sequence[str] | None = None,
    max_drop: float | None = None,
    minimise: str | None = None,
    target: str | None = None,
    batch: int | None = None,
    weight_bits: tuple[int, int] = (2, 8),
    act_bits: int | Literal["search"] | None = None,
    schemes: Sequence[Scheme] = ("static",),
    groups: Sequence[int] = (),
    widths: Sequence[float] = (),
    channel_multiple: int = 1,
    pins: Mapping[str, int] | None = None,
    agent: str = "guided",
    paper: bool = False,
    episodes: int | None = None,
    evaluation: Literal["finetune", "cheap"] | None = None,
    reward: Literal["metric", "accuracy", "loss", "agreement"] | None = None,
    finalists: int | None = None,
    seed: int = 0,
    clipping: str = "kl",
    per_channel: bool = True,
    calibration_images: int = 512,
    train_images: int = 5000,
    val_images: int = 2500,
    lr: float | None = None,
    distill: bool | str | Mapping[str, Any] | None = None,
    final_epochs: int | None = None,
    rounding_steps: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    workers: int = 1,
    ray: str | None = None,
    width: float | None = None,
    size: int | None = None,
    tokenizer: str | Path | None = None,
    length: int | None = None,
    weights: str | Path | None = None,
    float_epochs: int | None = None,
) -> Run:
    """Find the bits of every layer under the budgets, fine-tune the network and return the run.

    Args:
        model: A trained classifier or, with ``evaluate``, any network that takes one tensor and
            gives one of floats; it is left as it is. (Where no agent compares answers and nothing
            is trained, as with ``agent="random"`` and inputs alone, it may give anything.) Or a
            name, as on the command line.
        data: A data set by name, as ``haq.datasets.Data``, or as its three splits (train, val,
            test), each a pair of inputs (N, C, H, W) or (N, ...) and labels (N,). With ``evaluate``
            also just a tensor (N, ...) of inputs to calibrate on; then nothing is fine-tuned.
            Without ``evaluate`` such inputs do for the cheap evaluation: agreement with the float
            network.
        evaluate: From a quantized network, in evaluation mode, to a score where higher is better;
            without it validation accuracy. Rewards take it as a share, so one in [0, 1] suits best.
        metric: What networks are scored by: "top1", "top5", "miou" or "perplexity" by labels,
            "cosine" or "agreement" with the float network without any. None: as suits the labels.
        out: Name of the run below ``results``, or a path; named after the job without it.
        resume: Go on with the run in ``out``, which must have been asked for in the same words.
        on_progress: Called with a ``haq.runs.progress.Progress``.
        on_trial: Called with each episode that ends, not with those before a resumption. A
            KeyboardInterrupt from it ends the search as Ctrl-C does; any other exception comes out.
        track: Where to follow the run: "tensorboard:FOLDER", "mlflow:URI" or "wandb:PROJECT".
        budgets: Limits that every policy keeps: "avg_weight_bits=3", "size=90kB",
            "latency=50%w8a8", …. None: "avg_weight_bits=3"; with ``max_drop`` what 8 bits cost.
        max_drop: Percentage points of accuracy that may be lost: the search is for the least cost
            then, and the drop is verified on validation images with 95 % confidence.
        minimise: What is to cost the least then. None: "latency" with a target, else "size".
        target: The hardware that costs are counted for: a name that ``haq targets`` lists, a
            profile's file, or "table:FILE.csv". None: size and operations only.
        batch: Inputs that the target computes at once; None: the target's own.
        weight_bits: Fewest and most bits of weights, within 2 to 8.
        act_bits: Bits of all activations, 2 to 8, or "search". None: searched for budgets on
            latency, energy or bops, else 8.
        schemes: What becomes of activations, one or several of "static" (rounded once for all
            readers), "weight-only" (float), "dynamic" (rounded to 8 bits as a linear layer runs,
            with a scale for each token), "dynamic-tensor" (with one for each call) and "codebook"
            (float, the weights of a layer share 2**bits values).
        groups: Sizes of groups of weights of linear layers and embeddings that share a scale: 32,
            64, 128, or 0 for one scale a channel. They go with "weight-only" and "dynamic".
        widths: Shares of a layer's channels that may stay, such as (1, 0.75, 0.5, 0.25): the search
            chooses them together with the bits, and removes the other channels. Layers that share
            channels keep the same share. Budgets are on size, bops or what the target knows then.
        channel_multiple: With ``widths``: of which the number of channels that stay is a multiple.
            ONNX Runtime is faster where it is 16.
        pins: Layer to the bits of its weights and activations. None: 8 in the first and the last,
            if they hold no more than a tenth of the weights.
        agent: "guided", "trust", "ilp" (one policy, at once), "ddpg", "random", "uniform".
        paper: Run ``agent="ddpg"`` as the paper describes it.
        episodes: Policies to try. None: as many as suit the time of one evaluation; 1 for ilp.
        evaluation: What scores a policy: "finetune", after an epoch, or "cheap", after correcting
            statistics. None: as suits the agent.
        reward: "metric" ("accuracy" says the same of top1), "loss", or "agreement" with the float
            network. None: as suits the agent, and the metric where one is given.
        finalists: How many of the best policies of a cheap evaluation are fine-tuned. None: as
            suits the agent.
        seed: Decides everything random.
        clipping: How clips are chosen: "kl", "mse", "percentile" or "max".
        per_channel: One scale for each output channel of a layer, not one for the layer.
        calibration_images: Training inputs that clips are chosen on.
        train_images: Training inputs of an episode's epoch.
        val_images: Validation inputs that score an episode.
        lr: Highest learning rate of fine-tuning. None: the default of ``haq search``.
        distill: How to learn from the float network: losses with their weights, such as
            {"kd": 0.9, "hint": 1} or "kd:0.9+hint:1", and what ``haq.distillation.settings``
            describes beside them. None: {"kd": 0.9}, with ``paper`` labels alone; False: labels
            alone.
        final_epochs: Epochs of fine-tuning for the policy chosen. None: 1 where its network was
            fine-tuned already (30 for "digits"), else 0. Inputs alone are learned from without
            labels.
        rounding_steps: Steps of 64 images in which the policy chosen and finalists learn their
            rounding (AdaRound). None: 300 for the cheap evaluation, else 0.
        threads: CPU threads of a process. None: torch's own, shared by workers.
        device: Where networks are trained, calibrated and scored: "cpu", "cuda" or "cuda:N". What
            is handed over is converted to integers, and tested, on the CPU.
        workers: Policies evaluated at once, each in a process. ``model``, ``data`` and ``evaluate``
            are pickled then, and a score must not depend on what was scored before.
        ray: Address of a Ray cluster for the workers.
        width: Width multiplier; for a model given by its name, as are the next five.
        size: Height and width of a folder's images. None: the model's own.
        tokenizer: Folder of the tokenizer that reads text. None: the model's own folder.
        length: Tokens of one input of text. None: 128, or as many as the model takes.
        weights: File of float weights.
        float_epochs: Epochs in which the float network is trained first.

    Returns:
        The run.

    Raises:
        HaqError: As on the command line.
    """
    given = locals()
    fields = {
        name: given[name] for name in Job.model_fields if name in given and name not in _APART
    }
    if agent == "guided" and (paper or max_drop is not None):
        fields["agent"] = None  # paper alone means ddpg, an accuracy target ilp
    say, trackers = on_progress or silent, [tracker(text) for text in track]
    name = None
    if isinstance(model, str) and not isinstance(data, str):
        name, model = named_for(model, data, metric)
    if isinstance(model, str):
        if evaluate is not None:
            raise HaqError(f"model {model!r} and data {data!r} are names: leave evaluate out")
        job = parse_job(model=model, data=data, **fields)
        folder = _folder(job, out, resume)
        with following(folder, say, trackers, on_trial=on_trial) as followed:
            run(job, folder, followed)
        return _run(folder, None)
    if max_drop is not None and (evaluate is not None or isinstance(data, Tensor)):
        raise HaqError(
            f"max_drop={max_drop:g} counts labelled images: give data as three splits, and no "
            "evaluate="
        )
    task = own_task(model, data, evaluate, fields)
    if name is not None:
        task = task._replace(job=task.job.model_copy(update={"model": name}))
    return _search(task, evaluate, out, resume, say, (trackers, on_trial))


def _search(
    task: OwnTask,
    evaluate: Own | None,
    out: str | Path | None,
    resume: bool,
    say: OnProgress,
    followed_by: tuple[Sequence[Tracker], Callable[[Trial], None] | None],
) -> Run:
    job = task.job
    check_ray(job)
    if task.data is not None:
        check_resolution(job, len(task.data.val))
    if not resume:
        check_threads(job)
    check_device(job)
    if job.threads:
        torch.set_num_threads(job.threads)
    if job.workers > 1 or job.ray is not None:
        check_sendable(task.model, evaluate)
    if job.device != "cpu":  # the caller's stays where it is
        task = task._replace(model=copy.deepcopy(task.model))
    folder = _folder(job, out, resume)
    try:
        planned = tried(plan(job, task.model, task.images, task.sample, task.notes))
    except BaseException:
        remove_unused(folder)
        raise
    say = with_share(say, stage_weights(job, trained=True))
    if planned.notes:
        say(Progress("plan", 1, 1, "; ".join(planned.notes)))
    job = read_job(folder) if resume else job  # which has a number of episodes
    write_job(folder, job)
    write_files_of_model(folder, job)
    _keep_float(task.model, folder / "float.safetensors")
    moved(planned, job.device)
    try:
        evaluation = own_evaluation(task, job, folder, planned, say, evaluate)
    except Exception:
        if not resume:
            _remove_prepared(folder)
        raise
    trackers, on_trial = followed_by
    with following(folder, say, trackers, on_trial=on_trial) as followed:
        play(job, folder, planned, evaluation, followed)
    moved(planned, "cpu")
    return _run(folder, planned.graph)


def _remove_prepared(folder: Path) -> None:
    """Take away the folder of a search that came to no episode."""
    for name in ("float.safetensors", "model.json", "clips.safetensors", "sensitivity.json"):
        (folder / name).unlink(missing_ok=True)
    remove_unused(folder)


def own_evaluation(
    task: OwnTask, job: Job, folder: Path, planned: Plan, say: OnProgress, evaluate: Own | None
) -> Evaluation:
    """Return the evaluation of a task, by labels or without."""
    if task.data is not None:
        return labeled(job, folder, planned, task.data, say, evaluate)
    assert task.inputs is not None
    return unlabeled(job, folder, planned, task.inputs, say, evaluate)


def _folder(job: Job, out: str | Path | None, resume: bool) -> Path:
    if not resume:
        return new_folder(job, out)
    if out is None:
        raise RunError("resume=True goes on with the run in out=, which is not given")
    folder = find_folder(out)
    before = read_job(folder)
    if job.episodes is None:
        job = job.model_copy(update={"episodes": before.episodes})
    if not job.transforms:  # of a file of weights, as it was then
        job = job.model_copy(update={"transforms": before.transforms})
    if before != job:
        changed = [name for name in Job.model_fields if getattr(before, name) != getattr(job, name)]
        raise RunError(f"run {folder} was asked for with another {', '.join(changed)}")
    return folder


def _keep_float(model: nn.Module, file: Path) -> None:
    if not file.exists():
        save_weights(model, file)
        return
    before, now = load_file(file), model.state_dict()
    same = before.keys() == now.keys() and all(torch.equal(before[k], now[k]) for k in before)
    if not same:
        raise RunError(f"the model's weights are not those that the run started from ({file})")


def _run(folder: Path, graph: Graph | None) -> Run:
    policy = read_policy(folder / "policy.json")
    network = None
    if graph is not None:
        sample = sample_of(folder, read_json(folder / "summary.json")["images"])
        clips = load_clips(folder / "clips.safetensors")
        place = replaced(graph, clips, sample, read_chain(folder))
        network = quantize(place.graph, policy, place.clips)
        load_weights(network, folder / "weights.safetensors")
        network.eval()
    summary, trials = read_json(folder / "summary.json"), read_trials(folder)
    if network is not None and summary["state"] == "finished":
        compute_exactly(network)
    return Run(folder, summary, policy, trials, network)
