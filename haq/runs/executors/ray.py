"""Evaluation in a Ray cluster."""

import pickle
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

from haq.errors import RunError
from haq.runs.clusters import check_cluster, join
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


def check_ray(job: Job) -> None:
    """Say so if the job wants a Ray cluster that cannot be joined; see ``check_cluster``.

    Raises:
        HaqError: That is so.
    """
    if job.ray is not None:
        check_cluster(job.ray)


class RayExecutor:
    """Workers of a Ray cluster, which starts them where there are free cores and replaces them."""

    def __init__(self, address: str, sent: bytes, count: int, threads: int) -> None:
        import numpy as np
        import ray

        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            join(address)
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
