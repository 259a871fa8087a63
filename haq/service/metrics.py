"""Figures for Prometheus."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from sqlalchemy import Engine

from haq.service import store
from haq.service.feed import Feed


class Metrics:
    """The registry of one server; what concerns runs is counted when it is asked for."""

    def __init__(self, engine: Engine, feed: Feed) -> None:
        self._engine, self._feed = engine, feed
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the runs by state, how long the oldest one waits, and the readers of events."""
        runs = GaugeMetricFamily("haq_runs", "Runs by state.", labels=["state"])
        for state, count in store.counts(self._engine).items():
            runs.add_metric([state], count)
        yield runs
        yield GaugeMetricFamily(
            "haq_oldest_queued_seconds", "How long the first in the queue has waited.",
            value=store.longest_wait(self._engine),
        )  # fmt: skip
        yield GaugeMetricFamily(
            "haq_event_readers", "Open streams of events.", value=self._feed.readers
        )

    def describe(self) -> list[GaugeMetricFamily]:
        """Return nothing: so that registering does not ask the database."""
        return []

    def text(self) -> bytes:
        """Return all figures as Prometheus reads them."""
        return generate_latest(self.registry)
