"""Who evaluates policies: this process, a pool of processes beside it, or a Ray cluster.

All are asked in one way and give the same results: an evaluation depends on the policy, the seed
and the number of threads alone. Model and data travel once; policies are small messages.
"""

from functools import partial

from torch import nn

from haq.network.inputs import Inputs
from haq.runs.executors.base import Executor, Request, Result, evaluate_request, payload, window
from haq.runs.executors.pool import PoolExecutor
from haq.runs.executors.ray import RayExecutor
from haq.runs.executors.serial import SerialExecutor
from haq.runs.scoring import Scorer, ScoringData

__all__ = [
    "Executor",
    "PoolExecutor",
    "RayExecutor",
    "Request",
    "Result",
    "SerialExecutor",
    "executor_for",
    "window",
]


def executor_for(scorer: Scorer, model: nn.Module, sample: Inputs, data: ScoringData) -> Executor:
    """Return the executor that the job asks for.

    Args:
        scorer: To evaluate in this process.
        model: What the graph was traced from; other processes trace it again.
        sample: What the graph was traced with.
        data: With the job.

    Raises:
        HaqError: The model, its data or the caller's score cannot be sent, or there is no Ray
            cluster.
    """
    job = data.job
    if job.ray is not None:
        return RayExecutor(job.ray, payload(model, sample, data), job.workers, job.threads or 1)
    if job.workers > 1:
        return PoolExecutor(payload(model, sample, data), job.workers)
    return SerialExecutor(partial(evaluate_request, scorer, job.reward))
