"""Run a job: the one place where model, target, environment and agent meet."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from haq.agents import INFORMED
from haq.datasets import Data, Split, load
from haq.quantization.adaround import adaround
from haq.quantization.sensitivity import IMAGES, objective
from haq.runs.episodes import Evaluation, play
from haq.runs.evaluation import (
    CORRECTED_ON,
    Evaluator,
    Frozen,
    Part,
    Recipe,
    finish,
)
from haq.runs.executors import check_ray
from haq.runs.job import Job
from haq.runs.plan import (
    OnProgress,
    Plan,
    Progress,
    calibration_batches,
    float_network,
    fresh_model,
    images_of,
    kept_clips,
    kept_sensitivity,
    plan,
    sensitivity_images,
    silent,
    train_float,
)
from haq.runs.scoring import Basis, means
from haq.training.scoring import score
from haq.training.train import Step

__all__ = [
    "Evaluation",
    "OnProgress",
    "Plan",
    "Progress",
    "calibration_batches",
    "fresh_model",
    "images_of",
    "kept_clips",
    "labeled",
    "plan",
    "play",
    "remove_unused",
    "run",
    "silent",
    "train_float",
    "unlabeled",
]  # fmt: skip

ROUNDED_ON = 1024
"""Training images from which the rounding is learned, without their labels."""


def run(job: Job, folder: Path, on_progress: OnProgress = silent) -> dict[str, Any]:
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
        check_ray(job)
        data = load(job.data, seed=job.seed, size=job.size)
        model = fresh_model(job.model, data, job.width, job.seed)
        planned = plan(job, model, images_of(data))
        float_network(job, folder, model, data, on_progress)
    except BaseException:
        if new:
            remove_unused(folder)
        raise
    return play(job, folder, planned, labeled(job, folder, planned, data, on_progress), on_progress)


def remove_unused(folder: Path) -> None:
    """Take away the folder of a run in which nothing was begun."""
    started = any((folder / name).exists() for name in ("float.part", "float.safetensors"))
    if not started:
        (folder / "job.json").unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def labeled(
    job: Job,
    folder: Path,
    planned: Plan,
    data: Data,
    on_progress: OnProgress,
    own: Callable[[nn.Module], float] | None = None,
) -> Evaluation:
    """Return the evaluation on a data set: validation accuracy of what the job asks for.

    That is the network after one epoch of fine-tuning, as in the paper, or the one with corrected
    statistics; the sensitivities are measured for the agents that want to know them. With ``own``
    that is the score of a network, and nothing is tested.
    """
    graph, images = planned.graph, job.calibration_images
    clips = kept_clips(job, folder, graph, calibration_batches(data, images, job.seed), on_progress)
    recipe = Recipe(
        job.train_images, job.val_images, job.lr, job.distill, agreement=job.reward == "agreement"
    )
    evaluator = Evaluator(graph, clips, data, recipe, job.seed)
    plain = None
    if job.evaluation == "cheap":
        plain = torch.cat(list(calibration_batches(data, CORRECTED_ON, job.seed)))
    basis = Basis(job, clips, plain, evaluator, own=own)
    network, scoring, tuned = means(graph, basis)
    known = None
    if job.agent in INFORMED:
        augmented = sensitivity_images(data, job.seed)
        known = objective(
            kept_sensitivity(folder, planned, clips, augmented, on_progress), planned.table
        )

    def on_step(step: Step) -> None:
        on_progress(Progress("fine-tune", step.done, step.total, f"loss {step.loss:.3f}"))

    def make_the_most(model: nn.Module, tuned: bool) -> None:
        generator = torch.Generator().manual_seed(job.seed)
        chosen = torch.randperm(len(data.train), generator=generator)[:ROUNDED_ON]
        if not tuned:
            _round(job, planned, model, Part(data.train, chosen), on_progress)
        finish(
            model, graph, data,
            epochs=job.last_epochs(tuned), recipe=recipe, seed=job.seed, on_step=on_step,
        )  # fmt: skip

    return Evaluation(
        network=network,
        score=scoring,
        float_score=(scoring if own else evaluator.score)(graph.traced),
        finish=make_the_most,
        basis=basis,
        test=None if own else lambda model: score(model, data.test),
        tuned=tuned,
        sensitivity=known,
        impatient=job.evaluation == "cheap",
    )


def unlabeled(
    job: Job,
    folder: Path,
    planned: Plan,
    inputs: Tensor,
    on_progress: OnProgress,
    own: Callable[[nn.Module], float] | None = None,
) -> Evaluation:
    """Return the evaluation on inputs alone: agreement with the float network, or what is given.

    Nothing is fine-tuned. Statistics are corrected and the rounding is learned where the evaluation
    is the cheap one.
    """
    graph = planned.graph
    batches = iter(inputs[: job.calibration_images].split(128))
    clips = kept_clips(job, folder, graph, batches, on_progress)
    known = None
    if job.agent in INFORMED:
        measured = kept_sensitivity(folder, planned, clips, inputs[:IMAGES], on_progress)
        known = objective(measured, planned.table)
    plain = inputs[:CORRECTED_ON] if job.evaluation == "cheap" else None
    basis = Basis(job, clips, plain, inputs=None if own else inputs, own=own)
    network, scoring, _ = means(graph, basis)

    def make_the_most(model: nn.Module, tuned: bool) -> None:
        some = inputs[:ROUNDED_ON]
        split = Frozen(some, torch.zeros(len(some), dtype=torch.int64))
        _round(job, planned, model, split, on_progress)

    of_float = scoring(graph.traced)
    return Evaluation(network, scoring, of_float, make_the_most, basis, sensitivity=known)


def _round(
    job: Job, planned: Plan, model: nn.Module, split: Split, on_progress: OnProgress
) -> None:
    def on_step(step: Step) -> None:
        on_progress(Progress("round", step.done, step.total, f"loss {step.loss:.3f}"))

    steps = job.last_steps
    adaround(model, planned.graph, split, steps=steps, seed=job.seed, on_step=on_step)
