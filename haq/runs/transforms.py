"""The network of a job: a model by name, with the transforms that its weights went through."""

import torch
from torch import nn

from haq.compression.chain import read_chain, replayed
from haq.datasets import Data, Outline
from haq.errors import HaqError, ModelError
from haq.models.weights import read_metadata
from haq.runs.float_network import example, fresh_model
from haq.runs.job import Job
from haq.runs.metric import metric_of_job
from haq.runs.plan import images_of


def with_transforms(job: Job) -> Job:
    """Return a job that knows the transforms its weights went through, as their file has them.

    Raises:
        ModelError: The file is missing or damaged, or its transforms are.
    """
    if job.transforms or job.weights is None:
        return job
    try:
        chain = read_chain(read_metadata(job.weights))
    except ModelError as error:
        named = str(job.weights) in str(error)
        raise ModelError(str(error) if named else f"{job.weights}: {error}") from error
    return job.model_copy(update={"transforms": chain})


def network_of(job: Job, data: Data | Outline) -> nn.Module:
    """Return the network of a job for the images and classes of a data set, freshly drawn.

    Raises:
        HaqError: There is no such model, the images do not fit it, or a transform does not.
    """
    metric = metric_of_job(job, images_of(data))
    model = fresh_model(job.model, data, job.width, job.seed, metric)
    if not job.transforms:
        return model
    try:
        model = replayed(model, example(data), job.transforms)
    except HaqError as error:
        raise ModelError(f"the transforms of {job.weights or 'the job'}: {error}") from error
    # The layout decides in which order sums are taken: the same for every start of a run.
    return model.to(memory_format=torch.channels_last)
