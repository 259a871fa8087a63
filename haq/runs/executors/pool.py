"""Evaluation in processes on this machine.

Owner and worker talk over the worker's standard input and output, which exist on every platform:
when the owner ends, however that happens, its end of the pipe closes and the worker ends too.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

from haq.errors import RunError
from haq.runs.executors.base import (
    TRIES,
    Pending,
    Request,
    Result,
    import_path,
    pickled,
    read_reply,
)
from haq.runs.executors.messages import receive, send


class PoolExecutor:
    """Processes on this machine, each started when there is something for it to do.

    They do not run the caller's script again. One that dies is replaced, and what it did is done
    again. All end when this process does, however that ends.
    """

    def __init__(self, sent: bytes, count: int) -> None:
        self._sent = sent
        self._own = threading.local()
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._closed = False
        self._threads = ThreadPoolExecutor(count)  # one looks after each process

    @property
    def pids(self) -> list[int]:
        """The numbers of the processes that are there."""
        with self._lock:
            return [worker.pid for worker in self._workers]

    def submit(self, request: Request) -> Pending:
        """Return the result to come."""
        return self._threads.submit(self._evaluate, request).result

    def close(self) -> None:
        """Kill the processes."""
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.kill()
        self._threads.shutdown(cancel_futures=True)

    def _evaluate(self, request: Request) -> Result:
        for _ in range(TRIES):
            worker = self._worker()
            try:
                message = worker.evaluate(request)
            except (EOFError, OSError):
                cause = worker.end()
                with self._lock:
                    self._workers.remove(worker)
                    self._own.worker = None
            else:
                return read_reply(message)
        raise RunError(
            f"a worker died {TRIES} times in the same evaluation ({cause}); the run goes on with "
            "--resume: give it more memory, or start a new one with fewer workers"
        )

    def _worker(self) -> "_Worker":
        with self._lock:
            if self._closed:
                raise CancelledError
            if getattr(self._own, "worker", None) is None:
                self._own.worker = _Worker()
                self._workers.append(self._own.worker)
        worker: _Worker = self._own.worker
        worker.begin(self._sent)
        return worker


# Ctrl-C in a terminal is for the owner alone, from the worker's first moment on.
_COMMAND = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from haq.runs.executors.worker import serve; serve()"
)
_DETACHED: Mapping[str, Any] = (
    {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    if sys.platform == "win32"
    else {"start_new_session": True}
)


class _Worker:
    """A process that evaluates one policy after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_environment(),
            bufsize=0,
            **_DETACHED,
        )
        self._begun = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, sent: bytes) -> None:
        """Send it the model and data, once; that it died meanwhile shows in the reply."""
        if not self._begun:
            self._begun = True
            try:
                send(self._process.stdin, sent)
            except OSError:
                pass

    def evaluate(self, request: Request) -> bytes:
        """Return the worker's reply; EOFError or OSError where it dies over it."""
        send(self._process.stdin, pickled(request))
        return receive(self._process.stdout)

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> str:
        """Return how it died."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        code = self._process.wait()
        if code < 0:
            by = signal.Signals(-code).name
            return f"by {by}" + (", as where memory runs out" if by == "SIGKILL" else "")
        return f"with exit code {code}"


def _environment() -> Mapping[str, str]:
    """Return that of this process, with what it can import."""
    path = {"PYTHONPATH": os.pathsep.join(import_path())}
    return {"OMP_WAIT_POLICY": "passive"} | os.environ | path
