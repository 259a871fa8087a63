"""How many episodes a search plays where its user does not say."""

import time
from pathlib import Path

from haq.agents import find
from haq.allocation.budgets import most_bits
from haq.errors import DivergedError
from haq.metrics import METRICS
from haq.runs.evaluation import Evaluation, recipe_of
from haq.runs.folder import read_job, write_job
from haq.runs.job import Job
from haq.runs.plan import Plan
from haq.runs.rounding import EPOCH_FROM, ROUNDING_BATCH, steps_on

TYPICAL_EPISODES = 60

IMAGE_S = 15.0 / 5000
"""Of an epoch, in the unit of ``stage_weights``."""

ROUNDED_IMAGE_S = 0.17 / 64
"""Of learned rounding, which sees images of the teacher anew."""

SHORT_S = 30.0
"""Evaluations that take less are timed twice: the first one also prepares those after it."""


def stage_weights(job: Job, trained: bool) -> dict[str, float]:
    """Return about what each stage of a run takes, for an estimate of the time that is left.

    The unit is a second of ResNet-20 on one core; only the ratios count.

    Args:
        job: Of the run.
        trained: Whether its float network is read, not trained.
    """
    cheap, informed = job.evaluation == "cheap", find(job.agent).informed
    episode = 6.0 if cheap else 15.0
    finalist = _finalist(job)
    weights = {
        "train": 0.0 if trained else 100.0,
        "calibrate": 5.0,
        "sensitivity": 7.0 if informed else 0.0,
        "search": episode * (job.episodes or TYPICAL_EPISODES) + finalist * job.finalists,
        "test float": 7.0,
        "test episode": 0.0 if cheap else 7.0,
        # Finalists were fine-tuned before.
        "round": 0.0 if job.finalists else 0.17 * job.last_steps,
        "fine-tune": 100.0 * job.last_epochs,
        "uniform": 2 * episode,
        "test": 3.0,
    }
    return {stage: weight for stage, weight in weights.items() if weight}


def _finalist(job: Job) -> float:
    """Return what one finalist takes: learned rounding, an epoch, or both."""
    steps = recipe_of(job, METRICS["top1"]).rounding_steps
    epoch = IMAGE_S * job.train_images
    if not steps:
        return epoch
    rounding = ROUNDED_IMAGE_S * ROUNDING_BATCH * steps_on(job.train_images, steps)
    return rounding + (epoch if job.train_images >= EPOCH_FROM else 0.0)


def with_episodes(job: Job, folder: Path, planned: Plan, evaluation: Evaluation) -> Job:
    """Return the job with a number of episodes that suits the time of one evaluation.

    The number goes into ``job.json`` before the first episode, and where it stands there it counts:
    a resumed run plays as many, however long an evaluation takes now.
    """
    if job.episodes is not None:
        return job
    known = read_job(folder).episodes if (folder / "job.json").exists() else None
    if known is None:
        seconds = _evaluation_seconds(planned, evaluation) / job.workers
        known = find(job.agent).episodes_for(seconds, len(planned.table.layers))
    job = job.model_copy(update={"episodes": known})
    write_job(folder, job)
    return job


def _evaluation_seconds(planned: Plan, evaluation: Evaluation) -> float:
    """Return what the evaluation of the policy with the most bits takes."""
    policy = most_bits(planned.table)
    seconds: list[float] = []
    while len(seconds) < 2 and sum(seconds) < SHORT_S:
        started = time.perf_counter()
        try:
            evaluation.score(evaluation.network(policy))
        except DivergedError:
            pass
        seconds.append(time.perf_counter() - started)
    return min(seconds)
