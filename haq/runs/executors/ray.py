"""Evaluation in a Ray cluster."""

import logging
import os
import pickle
import socket
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from importlib.util import find_spec
from queue import Empty, SimpleQueue
from typing import Any

from haq.errors import HaqError, RunError
from haq.runs.executors.base import (
    TRIES,
    Evaluate,
    Pending,
    Request,
    Result,
    import_path,
    pickled,
    read_reply,
    reply,
    unpack,
)
from haq.runs.job import Job

ANSWER_S = 4.0
"""What an address is given to take a connection, and again to answer on it."""

# What a client of HTTP/2, and so of gRPC, says first: a fixed text, and a frame of settings (its
# length in three bytes, its type, 4, flags, stream). The other side replies with its own settings.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_FRAME_HEAD, _TYPE, _SETTINGS = 9, 3, 4


def check_ray(job: Job) -> None:
    """Say so if the job wants a Ray cluster and Ray does not work here, or nobody is there.

    Ray itself takes a minute for the latter, and ends the process then.

    Raises:
        HaqError: That is so.
    """
    if job.ray is None:
        return
    if find_spec("ray") is None:
        raise HaqError(f"--ray {job.ray} needs Ray: pip install 'haq[ray]'")
    try:
        import ray  # noqa: F401
    except Exception as error:  # of whatever it looks for accelerators with
        raise HaqError(
            f"--ray {job.ray}: Ray cannot be imported here ({type(error).__name__}: {error}); if "
            "that is the library of AMD's GPUs, which haq[energy] brings, pip uninstall amdsmi"
        ) from error
    asked = os.environ.get("RAY_ADDRESS", job.ray) if job.ray == "auto" else job.ray
    if asked not in ("auto", "local"):
        check_address(asked)


def check_address(address: str, patience_s: float = ANSWER_S) -> None:
    """Say so if no cluster answers at an address.

    Args:
        address: HOST:PORT, or ray://HOST:PORT.
        patience_s: For the connection, and again for the answer.

    Raises:
        HaqError: It is written in another way, nobody takes a connection there, or whoever does
            is no Ray cluster.
    """
    host, port = _host_and_port(address)
    answers = SimpleQueue[bytes | OSError]()

    def ask() -> None:
        try:
            answers.put(_hello(host, port, patience_s))
        except OSError as error:
            answers.put(error)

    # A thread, since a name server may take longer than any connection.
    threading.Thread(target=ask, daemon=True).start()
    try:
        head: bytes | OSError = answers.get(timeout=2 * patience_s)
    except Empty:
        head = TimeoutError()
    if isinstance(head, TimeoutError):
        raise _no_cluster(address, "nobody answers there")
    if isinstance(head, OSError):
        raise _no_cluster(address, head.strerror or head)
    if len(head) < _FRAME_HEAD or head[_TYPE] != _SETTINGS:
        raise _no_cluster(address, "what answers there is something else")


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        raise HaqError(
            f"--ray {address}: write HOST:PORT, such as 127.0.0.1:6379, or auto for the cluster "
            "that runs on this machine, or local for one that lasts as long as the run"
        )
    return host.strip("[]"), int(port)


def _hello(host: str, port: int, patience_s: float) -> bytes:
    """Return what comes first from a server that is greeted in HTTP/2."""
    with socket.create_connection((host, port), patience_s) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0])  # its answers are encrypted
        connection.sendall(_HELLO)
        head = b""
        while len(head) < _FRAME_HEAD and (more := connection.recv(_FRAME_HEAD - len(head))):
            head += more
        return head


def _no_cluster(address: str, reason: object) -> HaqError:
    return HaqError(
        f"no Ray cluster at {address!r} ({reason}); start one with ray start --head, or give local"
    )


class RayExecutor:
    """Workers of a Ray cluster, which starts them where there are free cores and replaces them."""

    def __init__(self, address: str, sent: bytes, count: int, threads: int) -> None:
        import numpy as np
        import ray

        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            ours: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **ours)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise _no_cluster(address, error) from error
        # As an array it is shared by the workers of a machine, not copied for each task.
        self._sent = ray.put(np.frombuffer(sent, np.uint8))
        self._task = ray.remote(num_cpus=threads, max_retries=TRIES - 1)(_in_cluster)
        self._threads = ThreadPoolExecutor(count)
        self._tasks = set[Any]()  # that have not ended
        self._lock, self._closed = threading.Lock(), False

    def submit(self, request: Request) -> Pending:
        """Return the result to come."""
        return self._threads.submit(self._evaluate, request).result

    def close(self) -> None:
        """End what is not evaluated yet, and leave the cluster unless the caller had joined it."""
        with self._lock:
            self._closed = True
            begun = list(self._tasks)
        self._threads.shutdown(wait=False, cancel_futures=True)
        for task in begun:
            self._ray.cancel(task, force=True)
        if self._ours:
            self._ray.shutdown()

    def _evaluate(self, request: Request) -> Result:
        message = self._begun(request)
        try:
            return read_reply(self._ray.get(message))
        except self._ray.exceptions.RayError as error:
            reason = str(error).splitlines()[0]
            raise RunError(
                f"an evaluation in the Ray cluster failed {TRIES} times ({reason}); the run goes "
                "on with --resume"
            ) from error
        finally:
            with self._lock:
                self._tasks.discard(message)

    def _begun(self, request: Request) -> Any:
        """Return the task of an evaluation; none begins once this is closed."""
        run, path = self._sent.hex(), import_path()
        with self._lock:
            if self._closed:
                raise CancelledError
            task = self._task.remote(self._sent, run, path, pickled(request))
            self._tasks.add(task)
            return task


_EVALUATIONS: dict[str, Evaluate] = {}  # of the run that this process last worked for


def _in_cluster(sent: Any, run: str, path: Sequence[str], request: bytes) -> bytes:
    def evaluate() -> Result:
        if run not in _EVALUATIONS:
            _EVALUATIONS.clear()
            sys.path.extend(place for place in path if place not in sys.path)
            _EVALUATIONS[run] = unpack(sent.tobytes())
        return _EVALUATIONS[run](pickle.loads(request))

    return reply(evaluate)
