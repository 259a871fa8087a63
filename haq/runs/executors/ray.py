"""Evaluation in a Ray cluster."""

import logging
import pickle
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
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


def check_ray(job: Job) -> None:
    """Say so if the job wants a Ray cluster and Ray is not installed.

    Raises:
        HaqError: It is not.
    """
    if job.ray is not None and find_spec("ray") is None:
        raise HaqError(f"--ray {job.ray} needs Ray: pip install 'haq[ray]'")


class RayExecutor:
    """Workers of a Ray cluster, which starts them where there are free cores and replaces them."""

    def __init__(self, address: str, sent: bytes, count: int, threads: int) -> None:
        import numpy as np
        import ray

        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise HaqError(
                    f"no Ray cluster at {address!r} ({error}); start one with ray start --head, or "
                    "give local"
                ) from error
        # As an array it is shared by the workers of a machine, not copied for each task.
        self._sent = ray.put(np.frombuffer(sent, np.uint8))
        self._task = ray.remote(num_cpus=threads, max_retries=TRIES - 1)(_in_cluster)
        self._threads = ThreadPoolExecutor(count)

    def submit(self, request: Request) -> Pending:
        """Return the result to come."""
        return self._threads.submit(self._evaluate, request).result

    def close(self) -> None:
        """Leave the cluster, which ends what is not evaluated yet."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._ours:
            self._ray.shutdown()

    def _evaluate(self, request: Request) -> Result:
        run, path = self._sent.hex(), import_path()
        message = self._task.remote(self._sent, run, path, pickled(request))
        try:
            return read_reply(self._ray.get(message))
        except self._ray.exceptions.RayError as error:
            reason = str(error).splitlines()[0]
            raise RunError(
                f"an evaluation in the Ray cluster failed {TRIES} times ({reason}); the run goes "
                "on with --resume"
            ) from error


_EVALUATIONS: dict[str, Evaluate] = {}  # of the run that this process last worked for


def _in_cluster(sent: Any, run: str, path: Sequence[str], request: bytes) -> bytes:
    def evaluate() -> Result:
        if run not in _EVALUATIONS:
            _EVALUATIONS.clear()
            sys.path.extend(place for place in path if place not in sys.path)
            _EVALUATIONS[run] = unpack(sent.tobytes())
        return _EVALUATIONS[run](pickle.loads(request))

    return reply(evaluate)
