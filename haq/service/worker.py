"""Takes runs from the store, one at a time, and does each in a process of its own.

A worker may die at any moment: its search process then ends itself, the lease runs out, and
whoever takes the run next goes on after the last episode in its folder.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from haq.errors import HaqError
from haq.runs.job import Job
from haq.service import place, store
from haq.service.database import check_current
from haq.service.outcome import PATIENCE_S, conclude
from haq.service.retention import Retention
from haq.service.searching import Execute, Message, SearchProcess, machine_fault, search
from haq.service.settings import Settings
from haq.service.watch import Process, Watch

LOG = logging.getLogger("haq.service.worker")

Start = Callable[[Job, Path, float], Process]
"""Starts the search of a job in a folder, until a deadline."""

_SEEN_S = 20.0  # between two signs of life of a worker that has nothing to do

_UNDER_WAY = ("stopped", "cancelled", "lost", "late")  # the search has not ended by itself


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
    seen = -_SEEN_S
    retention = Retention(engine, settings)
    turns = store.Turns(settings.order == "fair", settings.limits.running)
    while not stop.is_set():
        try:
            run = None
            if time.monotonic() - seen >= _SEEN_S:
                store.sign_of_life(engine, name)
                seen = time.monotonic()
            fault = place.missing(settings, store_name)
            if fault:
                LOG.error("waiting: %s", fault)
            else:
                run = store.claim(engine, name, settings.lease_s, settings.tries, turns)
        except SQLAlchemyError as error:
            LOG.error("the database does not answer: %s", type(error).__name__)
            stop.wait(PATIENCE_S)
            continue
        if run is None:
            if not fault:  # where the files are not mounted, none of them are gone
                retention.look()
            idle()
            stop.wait(settings.poll_s)
            continue
        LOG.info("run taken", extra={"run": run.id, "attempt": run.attempts})
        _do(engine, settings, run, store_name, stop, start or in_process())
        retention.look()
    with suppress(SQLAlchemyError):
        store.leave(engine, name)


def _do(
    engine: Engine,
    settings: Settings,
    run: store.Run,
    store_name: str,
    stop: threading.Event,
    start: Start,
) -> None:
    """Do a run, whatever comes."""
    watch = Watch(engine, settings, run, stop)
    process = None
    try:
        job = place.with_paths(run.job, settings)
        process = start(job, settings.run_folder(run.id), watch.deadline)
        message = watch.follow(process)
    except HaqError as error:
        message = Message("refused", str(error))
    except OSError as error:
        message = Message("machine", machine_fault(error) or str(error.strerror or error).lower())
    try:
        if process is not None and message.kind in _UNDER_WAY:
            process.end(settings.stop_s)  # so that the next worker does not find it at work
        conclude(engine, settings, watch.lease, store_name, message, stop)
        _weigh(engine, settings, run.id)
    finally:
        if process is not None:
            process.end(settings.stop_s)


def _weigh(engine: Engine, settings: Settings, run_id: str) -> None:
    try:
        store.weigh(engine, run_id, place.size_of(settings.run_folder(run_id)))
    except SQLAlchemyError as error:
        LOG.warning("what a run takes is not noted: %s", type(error).__name__)
