"""Workers as processes: one by itself, or several beside a server that looks after them."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from haq.errors import HaqError
from haq.service import place
from haq.service.database import check_current, connect
from haq.service.logs import to_standard_error
from haq.service.place import PRIVATE
from haq.service.settings import Settings
from haq.service.worker import work

LOG = logging.getLogger("haq.service.processes")

_AGAIN_S = 2.0  # before a worker that died is replaced


def run_worker(settings: Settings) -> None:
    """Be a worker until a signal comes; the run under way is then handed back.

    Raises:
        HaqError: The database is of another version, or the files belong to another one.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    _worker(settings, stop)


def _worker(settings: Settings, stop: threading.Event) -> None:
    engine = connect(settings.url)
    fault = place.missing(settings, check_current(engine))
    if fault:  # it is not made here: where a mount is missing it would be another one
        raise HaqError(f"{settings.files}: {fault}")
    LOG.info("worker started")
    work(engine, settings, stop)
    LOG.info("worker ended")


class Workers:
    """Processes that do runs for a server: replaced when they die, and ended with it."""

    def __init__(self, target: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
        """Start them.

        Args:
            target: What each process does: called with a pipe, that the server closes when it is to
                end, and with the arguments.
            arguments: For the target.
            count: How many processes.
        """
        self._target, self._arguments = target, arguments
        self._stop = threading.Event()
        self._keepers = [threading.Thread(target=self._keep, daemon=True) for _ in range(count)]
        for keeper in self._keepers:
            keeper.start()

    def end(self) -> None:
        """Let each hand back what it does, and wait for it."""
        self._stop.set()
        for keeper in self._keepers:
            keeper.join()

    def _keep(self) -> None:
        context = multiprocessing.get_context("spawn")
        while not self._stop.is_set():
            try:
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=self._target, args=(theirs, *self._arguments), daemon=False
                )
                process.start()
            except OSError as error:  # too many files or processes just now
                LOG.error("no worker can be started: %s", error.strerror)
                self._stop.wait(_AGAIN_S)
                continue
            theirs.close()
            self._wait(process)
            ours.close()  # which tells it to end
            process.join()
            if not self._stop.wait(_AGAIN_S):
                LOG.error("a worker ended (code %s); another one starts", process.exitcode)

    def _wait(self, process: SpawnProcess) -> None:
        while process.is_alive() and not self._stop.wait(0.2):
            pass


def beside(settings: Settings, count: int) -> Workers:
    """Return so many workers, each a process of this machine."""
    return Workers(_beside, (settings,), count)


def _beside(pipe: Connection, settings: Settings) -> None:
    """Be a worker until the server closes its end of the pipe, or is dead."""
    until_closed(pipe, lambda stop: _worker(settings, stop))


def until_closed(pipe: Connection, do: Callable[[threading.Event], None]) -> None:
    """Do something, in a process of a server, that ends when the server's end of a pipe is closed.

    Args:
        pipe: This end of it.
        do: Called with the event that says so. What it raises of ``HaqError``, such as a database
            that is away, is logged; the server tries again.
    """
    to_standard_error()
    os.umask(PRIVATE)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _nothing)  # Ctrl-C is for the server, which ends its workers

    def watch() -> None:
        try:
            pipe.recv()
        except (EOFError, OSError):
            stop.set()

    threading.Thread(target=watch, daemon=True).start()
    try:
        do(stop)
    except HaqError as error:
        LOG.error("no worker: %s", error)
        sys.exit(1)


def _nothing(number: int, frame: Any) -> None:
    pass
