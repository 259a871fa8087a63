"""Follow one search from its start to its end, and renew the lease of its run meanwhile."""

import logging
import threading
import time
from typing import Protocol

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from haq.errors import RunError
from haq.service import store
from haq.service.searching import Message
from haq.service.settings import Settings
from haq.service.tail import Pace, Tail

LOG = logging.getLogger("haq.service.worker")


class Process(Protocol):
    """A search that is under way; see ``SearchProcess``."""

    def message(self, seconds: float) -> Message | None:
        """Return its next message, if one comes within so many seconds."""

    def extend(self, deadline: float) -> None:
        """Let it go on until ``deadline``."""

    def end(self, seconds: float) -> None:
        """End it."""


class Watch:
    """The watch over one run; made before its search is started."""

    def __init__(
        self, engine: Engine, settings: Settings, run: store.Run, stop: threading.Event
    ) -> None:
        self._engine, self._settings, self._stop = engine, settings, stop
        self.lease = store.Lease(run.id, run.fence)
        self._renewed = time.monotonic()
        # Reckoned from before the lease was taken, so that the search ends before it does.
        self.deadline = self._renewed + 0.8 * settings.lease_s - 0.1
        self._tail = Tail(settings.run_folder(run.id))
        self._progress = store.Progress()
        self._pace = Pace(run.episodes)
        self._busy_s = run.busy_s  # up to the last renewal that was written
        self._written = self._renewed

    def follow(self, process: Process) -> Message:
        """Return how the search ended, or why it must: "stopped", "cancelled", "lost", "late"."""
        try:
            while True:
                message = process.message(self._settings.poll_s)
                if message is not None and message.kind == "progress":
                    stage, done, total, note, *_ = message.value
                    self._progress = store.Progress(stage, done, total, note, self._pace.episode_s)
                elif message is not None:
                    return message
                if self._stop.is_set():
                    return Message("stopped")
                if time.monotonic() > self.deadline:
                    return Message("lost")
                if self._due() and self._renew(process):
                    return Message("cancelled")
                if self._busy_s > self._settings.limits.run_s:
                    return Message("late")
        except store.LeaseLost:
            return Message("lost")

    def _due(self) -> bool:
        waited = time.monotonic() - self._renewed
        return waited > self._settings.lease_s / 4 or waited > 2 * self._settings.poll_s

    def _renew(self, process: Process) -> bool:
        """Renew the lease and return whether the run is to be cancelled."""
        self._renewed = time.monotonic()
        busy_s = self._renewed - self._written
        lease_s = self._settings.lease_s
        try:
            trials = self._tail.read()
            self._pace.finished(self._tail.count)
            cancelled = store.report(
                self._engine, self.lease, lease_s, self._progress, trials, busy_s
            )
        except (SQLAlchemyError, OSError, RunError) as error:
            # The search goes on until the lease is over: the database may be back by then.
            LOG.warning("no renewal: %s", type(error).__name__, extra={"run": self.lease.run_id})
            self._tail.rewind()
            return False
        self._written, self._busy_s = self._renewed, self._busy_s + busy_s
        self.deadline = self._renewed + 0.8 * lease_s - 0.1
        process.extend(self.deadline)
        return cancelled
