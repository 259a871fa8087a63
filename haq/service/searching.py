"""The process in which one search runs.

It ends by itself when its worker dies or its lease runs out, and holds a lock on the run's folder
that ends with it: so no two processes ever write one run, whatever the clocks,
the network or the database do.
"""

import errno
import logging
import multiprocessing
import os
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from haq.errors import HaqError
from haq.runs.folder import read_json
from haq.runs.job import Job
from haq.service import log

LOG = logging.getLogger("haq.search")

Execute = Callable[[Job, Path, Callable[[Any], None]], dict[str, Any]]
"""As ``haq.runs.run.run``: it is imported in the process by its name."""

_MACHINE = {
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV, errno.ENFILE,
    errno.EMFILE, errno.ENOMEM, errno.ENOTCONN,
}  # fmt: skip
"""Errors for which not the run is at fault but the machine."""

_LEASE_OVER = 86  # the exit code of a search that ended itself with its lease

_PROGRESS_S = 0.2  # between two messages about progress


class Message(NamedTuple):
    """What a search's process tells its worker.

    Attributes:
        kind: "progress", or how it ended: "finished", "stopped", "refused" (the job cannot be
            done), "machine" (it could, elsewhere or later), "locked" (another process does it) or
            "broken".
        value: The progress, or one sentence.
        traceback: For the operator.
    """

    kind: str
    value: Any = None
    traceback: str | None = None


def search(job: Job, folder: Path, on_progress: Callable[[Any], None]) -> dict[str, Any]:
    """Run a job; see ``haq.runs.run.run``, which is imported here because it brings torch."""
    from haq.runs.run import run

    return run(job, folder, on_progress)


class SearchProcess:
    """A search in a process of its own, from its start to its end."""

    def __init__(self, job: Job, folder: Path, execute: Execute, deadline: float) -> None:
        """Start it; ``deadline`` is a moment of ``time.monotonic`` at which it ends itself."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_main, args=(theirs, job, folder, execute, deadline), daemon=False
        )
        self._over = False
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid or 0

    def message(self, seconds: float) -> Message | None:
        """Return what it says within so many seconds, if anything; "died" once it is dead.

        Where it ended itself because its lease was over, it is "lost": nothing of it is at fault.
        """
        try:
            if self._pipe.poll(seconds):
                message: Message = self._pipe.recv()
                self._over = message.kind != "progress"
                return message
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            return Message("lost") if code == _LEASE_OVER else Message("died", code)
        return None

    def extend(self, deadline: float) -> None:
        """Let it go on until ``deadline``."""
        try:
            self._pipe.send(deadline)
        except OSError:
            pass  # it is dead: message() says so

    def end(self, seconds: float) -> None:
        """Ask it to end, and kill it if it has not after so many seconds."""
        if not self._over:
            self._process.terminate()
        self._process.join(seconds)
        self._process.kill()
        self._process.join()


def _main(pipe: Connection, job: Job, folder: Path, execute: Execute, deadline: float) -> None:
    sys.argv = ["haq", "search"]  # what a run puts on record must not hold the operator's options
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()  # Ctrl-C in a terminal is for the worker alone
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    threading.Thread(target=_guard, args=(pipe, deadline), daemon=True).start()
    send = _Sender(pipe)
    try:
        send(_ended(job, folder, execute, send.progress))
    except KeyboardInterrupt:
        send(Message("stopped"))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _interrupt(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _guard(pipe: Connection, deadline: float) -> None:
    """End the process when its worker is gone, or has not renewed the lease in time."""
    try:
        while pipe.poll(max(0.0, deadline - time.monotonic())):
            deadline = pipe.recv()
    except (EOFError, OSError):
        pass
    os._exit(_LEASE_OVER)


class _Sender:
    """Sends messages to the worker, those about progress not too often."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._last = pipe, 0.0

    def __call__(self, message: Message) -> None:
        self._pipe.send(message)

    def progress(self, where: Any) -> None:
        moment = time.monotonic()
        if moment - self._last >= _PROGRESS_S or where.done == where.total:
            self._last = moment
            self(Message("progress", tuple(where)))


def _ended(job: Job, folder: Path, execute: Execute, on_progress: Callable[[Any], None]) -> Message:
    try:
        with alone(folder):
            if _is_finished(folder):  # by a worker that could not write so in time
                return Message("finished")
            with log.written(folder, on_progress) as told:
                summary = _logged(job, folder, execute, told)
    except BlockingIOError:
        return Message("locked")
    except Exception as error:
        return _wrong(error)
    return Message("finished" if summary.get("state") == "finished" else "stopped")


def _logged(
    job: Job, folder: Path, execute: Execute, on_progress: Callable[[Any], None]
) -> dict[str, Any]:
    LOG.info("the search begins: %s on %s, %s", job.model, job.data, ", ".join(job.budgets))
    try:
        summary = execute(job, folder, on_progress)
    except KeyboardInterrupt:
        LOG.info("the search is handed back or cancelled")
        raise
    except HaqError as error:
        LOG.error("%s", error)
        raise
    except Exception as error:
        LOG.error("an internal error (%s)", type(error).__name__)
        raise
    for note in summary.get("notes", []):
        LOG.info("%s", note)
    LOG.info("the search is %s", summary.get("state", "over"))
    return summary


def _is_finished(folder: Path) -> bool:
    summary = folder / "summary.json"
    return summary.exists() and read_json(summary).get("state") == "finished"


def _wrong(error: Exception) -> Message:
    trace = traceback.format_exc()
    fault = machine_fault(error)
    if fault:
        return Message("machine", fault, trace)
    if isinstance(error, HaqError):
        return Message("refused", str(error), trace)
    return Message("broken", f"an internal error ({type(error).__name__})", trace)


def machine_fault(error: BaseException | None) -> str | None:
    """Return what is wrong with the machine, if that is behind an error.

    >>> machine_fault(OSError(28, "No space left on device"))
    'no space left on device'
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _MACHINE:
            return (error.strerror or str(error)).lower()
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is made where it is missing.

    Raises:
        BlockingIOError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Beside the folder: a folder in which nothing was begun is taken away. SQLite locks files on
    # every platform, and the lock ends with the process.
    path = folder.with_name(f".{folder.name}.lock")
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as lock:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise BlockingIOError(errno.EAGAIN, f"{path.name} is locked") from None
            raise OSError(errno.EIO, f"{path.name} cannot be locked: {error}") from error
        yield
