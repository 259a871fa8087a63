"""Run a job: the one place where model, target, environment and agent meet."""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from haq.datasets import Data, Outline, load, outline
from haq.errors import DataError
from haq.models import check_known
from haq.runs.accuracy_target import check_resolution
from haq.runs.devices import check_device, moved
from haq.runs.evaluation import labeled
from haq.runs.executors.ray import check_ray
from haq.runs.float_network import check_float, example, float_network, read_float
from haq.runs.folder import HOME
from haq.runs.handover import tried
from haq.runs.job import Job, check_threads
from haq.runs.named import (
    brings_weights,
    check_files_of_model,
    reading_of,
    write_files_of_model,
)
from haq.runs.pace import stage_weights
from haq.runs.plan import Plan, check_names, images_of, plan
from haq.runs.play import play
from haq.runs.progress import OnProgress, Progress, silent, with_share
from haq.runs.transforms import network_of, with_transforms


def run(job: Job, folder: Path, on_progress: OnProgress = silent) -> dict[str, Any]:
    """Run a job in its folder, or go on where it stopped, and return its summary.

    Args:
        job: As in ``job.json``, if the folder has one.
        folder: Made by ``haq.runs.folder.new_folder``, or a run to go on with.
        on_progress: Called often.

    Returns:
        What ``summary.json`` holds. After Ctrl-C that is the state reached, "interrupted".

    Raises:
        HaqError: The job cannot be done; a folder in which nothing was begun is taken away again.
    """
    new = not (folder / "job.json").exists()
    trained = job.weights is not None or (folder / "float.safetensors").exists()
    try:
        if new:
            check_threads(job)
        check_device(job)
        check_names(job)
        job = with_transforms(job)
        on_progress = with_share(on_progress, stage_weights(job, trained))
        start = prepare(job, folder, on_progress)
    except BaseException:
        if new:
            remove_unused(folder)
        raise
    job = start.job
    evaluation = labeled(job, folder, start.planned, start.data, on_progress)
    return play(job, folder, start.planned, evaluation, on_progress)


class Start(NamedTuple):
    """What a run by names begins with: its plan, on a trained float network, and its data."""

    job: Job
    planned: Plan
    data: Data


def prepare(job: Job, folder: Path, on_progress: OnProgress) -> Start:
    """Return what the job begins with; whatever can be refused is refused before data are read.

    Names come first, then files and their headers, then the network and its budgets, then data.

    Args:
        job: As for ``run``.
        folder: As for ``run``: gets ``job.json`` and the float network.
        on_progress: As for ``run``.

    Raises:
        HaqError: As ``run``.
    """
    check_ray(job)
    check_names(job)
    check_known(job.model)
    if job.threads:
        torch.set_num_threads(job.threads)
    reading = reading_of(job)
    about: Data | Outline | None = outline(job.data, job.size, reading)
    check_float(job)
    check_files_of_model(folder, job, weights=True)
    if about is None:  # what a function of the user's own gives is known once it was called
        about = load(job.data, job.seed, job.size, reading)
    job = suited(job, about)
    model = network_of(job, about)
    read_float(job, folder, model)
    trained = (
        job.weights is not None or (folder / "float.safetensors").exists() or brings_weights(job)
    )
    planned = tried(plan(job, model, images_of(about), example(about), trained=trained))
    moved(planned, job.device)
    if planned.notes:
        on_progress(Progress("plan", 1, 1, "; ".join(planned.notes)))
    data = about if isinstance(about, Data) else load(job.data, job.seed, job.size, reading)
    check_resolution(job, len(data.val))
    float_network(job, folder, model, data, on_progress)
    write_files_of_model(folder, job)
    return Start(job, planned, data)


def suited(job: Job, about: Data | Outline) -> Job:
    """Return the job as its data allow: without labels nothing is fine-tuned.

    Raises:
        DataError: It fine-tunes in every episode, or trains the float network.
    """
    if about.labels != "none":
        return job
    if job.evaluation == "finetune" or job.final_epochs or job.float_epochs:
        raise DataError(
            f"data {job.data} have no labels, so nothing can be trained on them: leave epochs out "
            "and give --evaluation cheap"
        )
    return job.model_copy(update={"finalists": 0})


def remove_unused(folder: Path) -> None:
    """Take away the folder of a run in which nothing was begun."""
    started = any((folder / name).exists() for name in ("float.part", "float.safetensors"))
    if not started:
        (folder / "job.json").unlink(missing_ok=True)
        for empty in (folder, *([HOME] if folder.parent == HOME else ())):
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()
