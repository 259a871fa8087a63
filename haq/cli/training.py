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


def run_training(
    job: Job, out: Path, epochs: int, lr: float, on_progress: OnProgress
) -> dict[str, Any]:
    """Train the model of a job on its training images and return the accuracies.

    Interrupted and asked for again in the same words, it goes on from the last whole epoch.

    The weights go to ``out``, the accuracies and their provenance to ``out`` with the suffix
    ``.json``.

    Raises:
        HaqError: A name is unknown, the images do not fit the model, or ``out`` cannot be written.
    """
    check_out(out)
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
    train_float(network, images, epochs, job.seed, out.with_suffix(".part"), on_progress, lr)
    save_weights(network, out)
    out.with_suffix(".part").unlink(missing_ok=True)
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
