"""Train a float network and write its weights, with what made them beside them."""

import sys
import time
from pathlib import Path
from typing import Any

import torch

from haq.datasets import load, outline
from haq.errors import ModelError
from haq.models.weights import save_weights
from haq.runs.float_network import fresh_model, train_float
from haq.runs.folder import provenance, write_json
from haq.runs.job import Job
from haq.runs.metric import metric_of_job
from haq.runs.named import reading_of
from haq.runs.plan import images_of
from haq.runs.progress import OnProgress
from haq.runs.run import suited
from haq.training.scoring import score


def check_out(out: Path) -> None:
    """Refuse a file that weights cannot be written to.

    Raises:
        ModelError: It has another suffix, or there is no such folder.
    """
    if out.suffix != ".safetensors":
        raise ModelError(f"out {out}: the weights are written as safetensors; name it so")
    if not out.parent.is_dir():
        raise ModelError(f"out {out}: there is no folder {out.parent}")


def check_states(states: Path, out: Path) -> None:
    """Refuse a folder that the states of a training cannot go to, or that holds others.

    Raises:
        ModelError: It is a file, its parent is missing, or it holds weights and ``out`` has no
            interrupted training that they could be of.
    """
    if states.exists() and not states.is_dir():
        raise ModelError(f"keep-states {states}: it is a file; name a folder")
    if not states.parent.is_dir():
        raise ModelError(f"keep-states {states}: there is no folder {states.parent}")
    if [*states.glob("*.safetensors")] and not out.with_suffix(".part").exists():
        raise ModelError(f"keep-states {states}: it holds other weights; name an empty folder")


def run_training(
    job: Job,
    out: Path,
    epochs: int,
    lr: float,
    on_progress: OnProgress,
    states: Path | None = None,
) -> dict[str, Any]:
    """Train the model of a job on its training images and return the accuracies.

    Interrupted and asked for again in the same words, it goes on from the last whole epoch.

    The weights go to ``out``, the accuracies and their provenance to ``out`` with the suffix
    ``.json``; the weights after every epoch but the last go to the folder ``states``, if given.

    Raises:
        HaqError: A name is unknown, the images do not fit the model, or ``out`` cannot be written.
    """
    check_out(out)
    if states:
        check_states(states, out)
        if epochs == 1:
            raise ModelError(
                f"keep-states {states}: the weights after every epoch but the last go there, and "
                "--epochs 1 has no other; leave it out, or give more epochs"
            )
    torch.set_num_threads(job.threads or torch.get_num_threads())
    reading = reading_of(job)
    about = outline(job.data, job.size, reading)
    if about is not None:  # says now that the network does not suit the images
        fresh_model(job.model, about, job.width, job.seed, metric_of_job(job, images_of(about)))
    images = load(job.data, job.seed, job.size, reading)
    suited(job.model_copy(update={"float_epochs": epochs}), images)
    metric = metric_of_job(job, images_of(images))
    network = fresh_model(job.model, images, job.width, job.seed, metric)
    started = time.perf_counter()
    part = out.with_suffix(".part")
    train_float(network, images, epochs, job.seed, part, on_progress, lr, states)
    save_weights(network, out)
    part.unlink(missing_ok=True)
    summary = {
        "model": job.model, "data": images.name, "epochs": epochs, "lr": lr, "seed": job.seed,
        "metric": metric.name, **{
            metric.key(part): metric.of_score(score(network, split, metric=metric).accuracy)
            for part, split in (("val", images.val), ("test", images.test))
        },
        "seconds": round(time.perf_counter() - started, 1),
        **provenance(sys.argv),
    }  # fmt: skip
    write_json(out.with_suffix(".json"), summary)
    return summary
