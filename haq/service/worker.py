"""Takes runs from the store, one at a time, and watches over the process of each.

A worker may die at any moment: its search process then ends itself, the lease runs out, and
whoever takes the run next goes on after the last episode in its folder.
"""

import logging
import math
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from haq.allocation.trials import Trial, best
from haq.errors import HaqError, RunError
from haq.runs.job import Job
from haq.service import place, store
from haq.service.database import check_current
from haq.service.searching import Execute, Said, SearchProcess, machine_fault, search
from haq.service.settings import Settings

LOG = logging.getLogger("haq.service.worker")

_PATIENCE_S = 1.0  # between two attempts to reach a database


class Process(Protocol):
    """A search that is under way; see ``SearchProcess``."""

    def said(self, seconds: float) -> Said | None:
        """Return its next word."""

    def extend(self, deadline: float) -> None:
        """Let it go on until ``deadline``."""

    def end(self, seconds: float) -> None:
        """End it."""


Start = Callable[[Job, Path, float], Process]
"""Starts the search of a job in a folder, until a deadline."""


def in_process(execute: Execute = search) -> Start:
    """Return what starts searches in processes of their own."""
    return lambda job, folder, deadline: SearchProcess(job, folder, execute, deadline)


def work(
    engine: Engine,
    settings: Settings,
    stop: threading.Event,
    start: Start | None = None,
    idle: Callable[[], None] = lambda: None,
) -> None:
    """Do runs until ``stop`` is set; the one under way is then handed back.

    Args:
        engine: The database, its tables up to date.
        settings: As of the server.
        stop: Set it to end.
        start: How a search is started.
        idle: Called whenever there is nothing to do.
    """
    name = f"{socket.gethostname()}:{os.getpid()}"
    store_name = check_current(engine)
    while not stop.is_set():
        try:
            run = None
            fault = place.missing(settings, store_name)
            if fault:
                LOG.error("waiting: %s", fault)
            else:
                run = store.claim(engine, name, settings.lease_s, settings.tries)
        except SQLAlchemyError as error:
            LOG.error("the database does not answer: %s", type(error).__name__)
            stop.wait(_PATIENCE_S)
            continue
        if run is None:
            if not fault:  # where the files are not mounted, none of them are gone
                sweep(engine, settings)
            idle()
            stop.wait(settings.poll_s)
            continue
        LOG.info("run taken", extra={"run": run.id, "attempt": run.attempts})
        _Watch(engine, settings, run, store_name, stop).over(start or in_process())


def sweep(engine: Engine, settings: Settings) -> None:
    """Take away the files of deleted runs."""
    try:
        for run_id in store.hidden(engine):
            folder = settings.run_folder(run_id)
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                folder.with_name(f".{run_id}.lock").unlink(missing_ok=True)
                store.forget(engine, run_id)
    except (SQLAlchemyError, OSError) as error:
        LOG.warning("deleted runs are not taken away yet: %s", type(error).__name__)


class _Watch:
    """From the moment a run is taken to the moment it is given up."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        run: store.Run,
        store_name: str,
        stop: threading.Event,
    ) -> None:
        self.engine, self.settings, self.run, self.stop = engine, settings, run, stop
        self.store_name = store_name
        self.lease = store.Lease(run.id, run.fence)
        # Reckoned from before the lease was taken, so that the search ends before it does.
        self.deadline = time.monotonic() + 0.8 * settings.lease_s - 0.1
        self.renewed = time.monotonic()
        self.tail = Tail(settings.run_folder(run.id))
        self.progress = store.Progress()
        self.pace = _Pace(run.episodes)

    def over(self, start: Start) -> None:
        """Do the run, whatever comes."""
        process = None
        try:
            job = place.with_paths(self.run.job, self.settings)
            process = start(job, self.settings.run_folder(self.run.id), self.deadline)
            said = self._listen(process)
        except HaqError as error:
            said = Said("refused", str(error))
        except OSError as error:
            said = Said("machine", machine_fault(error) or str(error.strerror or error).lower())
        except store.LeaseLost:
            said = Said("lost")
        finally:
            if process is not None:
                process.end(self.settings.stop_s)
        self._conclude(said)

    def _listen(self, process: Process) -> Said:
        """Follow the search to its end, renewing the lease."""
        while True:
            said = process.said(self.settings.poll_s)
            if said is not None and said.what == "progress":
                stage, done, total, note = said.value
                self.progress = store.Progress(stage, done, total, note, self.pace.episode_s)
            elif said is not None:
                return said
            if self.stop.is_set():
                return Said("stopped")
            if time.monotonic() > self.deadline:
                return Said("lost")
            if self._due() and self._renew(process):
                return Said("cancelled")

    def _due(self) -> bool:
        waited = time.monotonic() - self.renewed
        return waited > self.settings.lease_s / 4 or waited > 2 * self.settings.poll_s

    def _renew(self, process: Process) -> bool:
        """Renew the lease and return whether the run is to be cancelled."""
        self.renewed = time.monotonic()
        try:
            trials = self.tail.read()
            self.pace.finished(self.tail.count)
            cancelled = store.report(
                self.engine, self.lease, self.settings.lease_s, self.progress, trials
            )
        except (SQLAlchemyError, OSError, RunError) as error:
            # The search goes on until the lease is over: the database may be back by then.
            LOG.warning("no renewal: %s", type(error).__name__, extra={"run": self.run.id})
            self.tail.rewind()
            return False
        self.deadline = self.renewed + 0.8 * self.settings.lease_s - 0.1
        process.extend(self.deadline)
        return cancelled

    def _conclude(self, said: Said) -> None:
        """Write down how it ended, for as long as the lease may hold."""
        LOG.info("run left: %s", said.what, extra={"run": self.run.id})
        until = time.monotonic() + self.settings.lease_s
        while said.what != "lost":
            try:
                return self._write(self._judged(said))
            except store.LeaseLost:
                LOG.warning("the lease was lost", extra={"run": self.run.id})
                return None
            except SQLAlchemyError as error:
                LOG.error("the database does not answer: %s", type(error).__name__)
                if time.monotonic() > until:
                    return None
                time.sleep(min(_PATIENCE_S, self.settings.lease_s / 10))
            except OSError as error:
                said = Said("machine", f"its files cannot be read: {error.strerror}")
            except HaqError as error:
                said = Said("refused", str(error))

    def _judged(self, said: Said) -> Said:
        fault = place.missing(self.settings, self.store_name)
        return Said("machine", fault, said.traceback) if fault else said

    def _write(self, said: Said) -> None:
        engine, lease, settings = self.engine, self.lease, self.settings
        sentence = place.without_paths(str(said.value or ""), settings)
        match said.what:
            case "finished":
                self.tail.rewind()
                store.finish(engine, lease, self.tail.read())
            case "cancelled":
                store.stop(engine, lease)
            case "refused":
                store.fail(engine, lease, sentence, said.traceback)
            case "machine":
                LOG.error("paused: %s", said.value, extra={"run": lease.run_id})
                store.hand_back(
                    engine, lease, settings.pause_s, f"paused: {sentence}; it goes on by itself"
                )
            case "locked":
                store.hand_back(engine, lease, settings.poll_s)
            case "stopped":
                store.hand_back(engine, lease)
            case _:
                why = sentence if said.what == "broken" else _death(said.value)
                LOG.error("broken: %s", why, extra={"run": lease.run_id})
                store.try_again(
                    engine, lease, settings.tries, settings.poll_s, why, said.traceback or why
                )


def _death(code: Any) -> str:
    if code == -9:
        return "the process of its search was killed, perhaps for lack of memory"
    return f"the process of its search ended by itself (code {code})"


class Tail:
    """Reads the trials of a run as they are written, each once."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "trials.jsonl"
        self.rewind()

    @property
    def count(self) -> int:
        """How many have been read."""
        return len(self._trials)

    def rewind(self) -> None:
        """Begin again with the first one."""
        self._place, self._trials = 0, list[Trial]()

    def read(self) -> list[dict[str, Any]]:
        """Return those that are new, as the events have them; a line cut short is left for later.

        Raises:
            RunError: A line is damaged.
        """
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._place)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._place += len(whole)
        found = []
        for line in whole.splitlines():
            self._trials.append(Trial.from_line(line.decode(errors="replace")))
            found.append(_as_event(self._trials))
        return found


def _as_event(trials: list[Trial]) -> dict[str, Any]:
    trial = trials[-1]
    return {
        "episode": trial.episode, "accuracy": trial.accuracy,
        "loss": None if math.isnan(trial.loss) else trial.loss, "reward": trial.reward,
        "cost": dict(trial.cost), "seconds": trial.seconds, "cached": trial.cached,
        "best_accuracy": best(trials).accuracy,
    }  # fmt: skip


class _Pace:
    """What an episode takes, by the wall clock of this attempt."""

    def __init__(self, known: int) -> None:
        self._known, self._count, self._since = known, known, time.monotonic()
        self.episode_s: float | None = None

    def finished(self, count: int) -> None:
        if count <= self._count:
            return
        if self._count == self._known and self.episode_s is None:
            self._known, self._since = count, time.monotonic()  # the first one had a long start
        elif count > self._known:
            self.episode_s = (time.monotonic() - self._since) / (count - self._known)
        self._count = count
