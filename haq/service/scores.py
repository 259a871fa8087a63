"""The metric of a run, and its scores as people read them."""

import math

from haq.metrics import Metric, named
from haq.runs.job import Job


def metric_of_run(job: Job) -> Metric:
    """Return what a run that was checked is scored by: accuracy, unless its job says otherwise."""
    return named(job.metric or "top1")


def value_of(metric: Metric, score: float | None) -> float | None:
    """Return the value of a score in the metric's own unit; None where no float holds it."""
    value = math.nan if score is None else metric.of_score(score)
    return value if math.isfinite(value) else None


def text_of(metric: Metric, score: float | None) -> str:
    """Return a score as people read it.

    >>> from haq.metrics import METRICS
    >>> text_of(METRICS["perplexity"], -1.0), text_of(METRICS["top1"], 0.5)
    ('2.718', '50.00%')
    """
    return "\u2013" if score is None else metric.text(metric.of_score(score))
