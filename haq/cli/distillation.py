"""Train a student on a data set with a teacher, and write its weights."""

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from haq.cli.training import check_out
from haq.datasets import Data, Outline, load, outline
from haq.distillation.settings import distillation_of
from haq.errors import HaqError
from haq.models.weights import load_weights, save_weights
from haq.network.graph import trace
from haq.runs.float_network import example, fresh_model
from haq.runs.folder import provenance, write_json
from haq.runs.job import Job
from haq.runs.progress import OnProgress, Progress
from haq.runs.pruning import take_over
from haq.training.distilling import check_distilling, distilling
from haq.training.scoring import score
from haq.training.train import Step, train


class Networks(NamedTuple):
    """The teacher, and what both networks start from.

    Attributes:
        teacher: Name of a model, or package.module:factory.
        width: Of the teacher.
        weights: Of the teacher.
        start: Weights of the student; None for those drawn from the seed.
    """

    teacher: str
    width: float
    weights: Path
    start: Path | None


def run_distillation(
    job: Job, networks: Networks, out: Path, epochs: int, lr: float, on_progress: OnProgress
) -> dict[str, Any]:
    """Train the model of a job as a student and return the accuracies.

    Interrupted and asked for again in the same words, it goes on from the last whole epoch. The
    weights go to ``out``, what made them to ``out`` with the suffix ``.json``.

    Raises:
        HaqError: A name is unknown, the networks do not go together, or ``out`` cannot be written;
            all of that before the images are read where they tell their shape.
    """
    if not job.distill:
        raise HaqError("--distill none: without a teacher that is haq train")
    check_out(out)
    torch.set_num_threads(job.threads or torch.get_num_threads())
    about: Data | Outline | None = outline(job.data, job.size)
    images = load(job.data, seed=job.seed, size=job.size) if about is None else None
    given = images or about
    assert given is not None
    teacher = fresh_model(networks.teacher, given, networks.width, job.seed)
    load_weights(teacher, networks.weights)
    student = fresh_model(job.model, given, job.width, job.seed)
    if networks.start is not None:
        load_weights(student, networks.start)
    sample, settings = example(given), distillation_of(job.distill)
    taught, own = trace(teacher, sample), trace(student, sample)
    check_distilling(settings, taught.traced, sample, epochs, own.traced)
    images = images or load(job.data, seed=job.seed, size=job.size)
    objective = distilling(taught.traced, settings, student=own.traced)
    started = time.perf_counter()

    def on_step(step: Step) -> None:
        on_progress(Progress("distill", step.done, step.total, str(step)))

    train(own.traced, images.train, epochs=epochs, lr=lr, seed=job.seed, objective=objective,
          on_step=on_step, keep=out.with_suffix(".part"))  # fmt: skip
    take_over(student, own.traced)
    save_weights(student, out)
    out.with_suffix(".part").unlink(missing_ok=True)
    summary = {
        "model": job.model, "teacher": networks.teacher, "data": images.name, "epochs": epochs,
        "lr": lr, "seed": job.seed, "distill": job.distill,
        "val_accuracy": score(student, images.val).accuracy,
        "test_accuracy": score(student, images.test).accuracy,
        "teacher_test_accuracy": score(teacher, images.test).accuracy,
        "seconds": round(time.perf_counter() - started, 1),
        **provenance(sys.argv),
    }  # fmt: skip
    write_json(out.with_suffix(".json"), summary)
    return summary
