"""Metrics by name: what a search rewards, and what its summary and reports speak of.

A new one is a file with a ``Metric`` and a line in ``METRICS``. torch is not imported here.
"""

from collections.abc import Mapping
from typing import Any

from haq.errors import look_up
from haq.metrics.agreement import Agreement
from haq.metrics.cosine import Cosine
from haq.metrics.metric import Metric
from haq.metrics.miou import MeanIou
from haq.metrics.own import OwnScore
from haq.metrics.perplexity import Perplexity
from haq.metrics.top import Top1, Top5

__all__ = ["METRICS", "OWN", "Metric", "metric_of", "named"]

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (Top1(), Top5(), Cosine(), Perplexity(), MeanIou(), Agreement())
}
"""Name to metric."""

OWN = OwnScore()
"""What stands in the place of a metric where the caller scores networks."""


def named(name: str) -> Metric:
    """Return the metric of a name; that of ``evaluate=`` has one too.

    Raises:
        HaqError: There is none.
    """
    return OWN if name == OWN.name else look_up(METRICS, "metric", name)


def metric_of(summary: Mapping[str, Any]) -> Metric:
    """Return the metric that a run's summary speaks of; older runs speak of accuracy."""
    return named(str(summary.get("metric", "top1")))
