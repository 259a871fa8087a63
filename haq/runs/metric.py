"""Which metric a job is scored by."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from haq.errors import HaqError
from haq.metrics import METRICS, OWN, Metric, named
from haq.runs.job import Job

if TYPE_CHECKING:
    from haq.datasets import Data, Outline

BY_LABELS: Mapping[str, str] = {
    "classes": "top1", "tokens": "perplexity", "pixels": "miou", "none": "agreement",
}  # fmt: skip
"""What labels are of, or "none", to the metric where none is asked for."""


def labels_of(images: Mapping[str, Any]) -> str:
    """Return what labels are of by the record of a data set: a key of ``BY_LABELS``."""
    return str(images.get("labels", "classes" if "classes" in images else "none"))


def metric_by_labels(job: Job, data: "Data | Outline") -> Metric:
    """Return what a network is scored by that learns from labels.

    Raises:
        HaqError: There are none, or the metric counts none.
    """
    if data.labels == "none":
        raise HaqError(
            f"data {job.data} have no labels, and there is nothing else to train and to score by"
        )
    metric = metric_of_job(job, {"labels": data.labels})
    if metric.needs != "labels":
        raise HaqError(
            f"metric {metric.name} compares with a float network, and here it is changed: choose "
            "one that counts labels, or leave it out"
        )
    return metric


def metric_of_job(job: Job, images: Mapping[str, Any], own: bool = False) -> Metric:
    """Return what a job is scored by: the metric it asks for, or the one that suits its data.

    Args:
        job: As the user gave it.
        images: On record of the data.
        own: Whether the caller scores networks.

    Raises:
        HaqError: The metric is unknown, or needs labels and there are none.
    """
    if own:
        if job.metric not in (None, OWN.name):
            raise HaqError(
                f"metric {job.metric}: evaluate= scores the networks; leave one of them out"
            )
        return OWN
    labels = labels_of(images)
    metric = METRICS[BY_LABELS[labels]] if job.metric is None else named(job.metric)
    if metric.needs == "labels" and labels == "none":
        raise HaqError(
            f"metric {metric.name} needs labels, and the data have none; choose cosine or agreement"
        )
    if job.max_drop is not None and metric.name != "top1":
        raise HaqError(
            f"max drop {job.max_drop:g} is of accuracy, and the metric is {metric.name}; leave one "
            "of them out"
        )
    return metric
