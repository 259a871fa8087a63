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
from haq.runs.metric import metric_by_labels
from haq.runs.named import brings_weights, reading_of
from haq.runs.progress import OnProgress, Progress
from haq.runs.pruning import exchanged, take_over
from haq.training.distilling import check_distilling, distilling
from haq.training.scoring import score
from haq.training.train import Step, train


class Networks(NamedTuple):
    """The teacher, and what both networks start from.

    Attributes:
        teacher: Name of a model, or package.module:factory.
        width: Of the teacher.
        weights: Of the teacher; None where they come with it.
        start: Weights of the student; None for its own, or those drawn from the seed.
    """

    teacher: str
    width: float
    weights: Path | None
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
    reading = reading_of(job)
    about: Data | Outline | None = outline(job.data, job.size, reading)
    images = load(job.data, job.seed, job.size, reading) if about is None else None
    given = images or about
    assert given is not None
    metric = metric_by_labels(job, given)
    teacher = fresh_model(networks.teacher, given, networks.width, job.seed, metric)
    if networks.weights is not None:
        load_weights(teacher, networks.weights)
    elif not brings_weights(job.model_copy(update={"model": networks.teacher})):
        raise HaqError(f"--teacher-weights: {networks.teacher} comes without weights; give a file")
    student = fresh_model(job.model, given, job.width, job.seed, metric)
    if networks.start is not None:
        load_weights(student, networks.start)
    sample, settings = example(given), distillation_of(job.distill)
    taught, own = trace(teacher, sample), trace(student, sample)
    check_distilling(settings, taught.traced, sample, epochs, own.traced)
    turned = exchanged(student, own.traced)
    images = images or load(job.data, job.seed, job.size, reading)
    objective = distilling(taught.traced, settings, student=own.traced)
    started = time.perf_counter()

    def on_step(step: Step) -> None:
        on_progress(Progress("distill", step.done, step.total, str(step)))

    train(own.traced, images.train, epochs=epochs, lr=lr, seed=job.seed, objective=objective,
          on_step=on_step, keep=out.with_suffix(".part"))  # fmt: skip
    take_over(student, own.traced, turned)
    save_weights(student, out)
    out.with_suffix(".part").unlink(missing_ok=True)
    summary = {
        "model": job.model, "teacher": networks.teacher, "data": images.name, "epochs": epochs,
        "lr": lr, "seed": job.seed, "distill": job.distill, "metric": metric.name,
        **{
            metric.key(part): metric.of_score(score(network, split, metric=metric).accuracy)
            for part, network, split in (
                ("val", student, images.val), ("test", student, images.test),
                ("teacher_test", teacher, images.test),
            )
        },
        "seconds": round(time.perf_counter() - started, 1),
        **provenance(sys.argv),
    }  # fmt: skip
    write_json(out.with_suffix(".json"), summary)
    return summary
