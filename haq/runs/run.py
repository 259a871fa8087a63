"""Run a job: the one place where model, target, environment and agent meet."""

from pathlib import Path
from typing import Any

import torch

from haq.datasets import load
from haq.runs.evaluation import labeled
from haq.runs.executors.ray import check_ray
from haq.runs.float_network import float_network, fresh_model
from haq.runs.job import Job
from haq.runs.plan import images_of, plan
from haq.runs.play import play
from haq.runs.progress import OnProgress, silent


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
