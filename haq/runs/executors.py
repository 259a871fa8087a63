"""Who evaluates policies: this process, a pool of processes beside it, or a Ray cluster.

All are asked in one way and give the same answers: an evaluation depends on the policy, the seed
and the number of threads alone. Model and data travel once; policies are small messages.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import cache, partial
from importlib.util import find_spec
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple, Protocol

import cloudpickle
import torch
from torch import nn

from haq.allocation.policy import Policy
from haq.allocation.trials import Score
from haq.errors import DivergedError, HaqError, RunError
from haq.models.weights import packed
from haq.network.graph import trace
from haq.runs.job import Job
from haq.runs.scoring import Basis, Means, means, merit

TRIES = 3
"""How often an evaluation is begun whose worker dies."""


class Request(NamedTuple):
    """What is to be evaluated.

    Attributes:
        policy: The bits of every layer.
        stage: "episode", or "tuned" for the network after the paper's one epoch.
        beat: An accuracy; an evaluation that cannot reach it may stop early.
        least: The score from which on the network's weights are wanted; None for any.
    """

    policy: Policy
    stage: Literal["episode", "tuned"] = "episode"
    beat: float | None = None
    least: Score | None = None


class Found(NamedTuple):
    """What came of it.

    Attributes:
        score: None where the training diverged.
        seconds: What it took.
        weights: The network's, as safetensors, where they are wanted.
    """

    score: Score | None
    seconds: float
    weights: bytes | None


Answer = Callable[[], Found]
"""Waits for what was found, or raises what went wrong; may be called again."""

Evaluate = Callable[[Request], Found]


def window(workers: int) -> int:
    """Return how many evaluations may be ahead of the agent's knowledge.

    Results count in the order of the episodes, so that a slow one holds up those behind it; with as
    many again waiting (from 16 workers on, twice as many) the workers stay busy meanwhile.

    >>> [window(workers) for workers in (1, 2, 15, 16, 64)]
    [1, 4, 30, 48, 192]
    """
    return 1 if workers == 1 else workers * (2 if workers < 16 else 3)


def evaluated(how: Means, reward: str, request: Request) -> Found:
    """Evaluate a policy here and now."""
    network = how.network if request.stage == "episode" else how.tuned
    assert network is not None
    started = time.perf_counter()
    try:
        model = network(request.policy)
        score = how.score(model, request.beat)
    except DivergedError:
        return Found(None, time.perf_counter() - started, None)
    seconds = time.perf_counter() - started
    least = request.least
    wanted = least is None or merit(score, reward) >= merit(least, reward)
    return Found(score, seconds, packed(model) if wanted and not score.stopped else None)


class Crew(Protocol):
    """Who evaluates, until closed."""

    def ask(self, request: Request) -> Answer:
        """Return the answer to come."""
        ...

    def close(self) -> None:
        """Give up what is not answered, and end all processes."""
        ...


class Here:
    """This process, which evaluates when it is asked for the answer."""

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate

    def ask(self, request: Request) -> Answer:
        """Return the answer to come."""
        return cache(partial(self._evaluate, request))

    def close(self) -> None:
        """Do nothing."""


def hire(how: Means, model: nn.Module, shape: Sequence[int], basis: Basis) -> Crew:
    """Return whom the job wants to evaluate.

    Args:
        how: To evaluate in this process.
        model: What the graph was traced from; other processes trace it again.
        shape: Of one image.
        basis: With the job.

    Raises:
        HaqError: The model, its data or the caller's score cannot be sent, or there is no Ray
            cluster.
    """
    job = basis.job
    if job.ray is not None:
        return Cluster(job.ray, shipment(model, shape, basis), job.workers, job.threads or 1)
    if job.workers > 1:
        return Pool(shipment(model, shape, basis), job.workers)
    return Here(partial(evaluated, how, job.reward))


def shipment(model: nn.Module, shape: Sequence[int], basis: Basis) -> bytes:
    """Return all that another process needs to evaluate policies, pickled.

    Raises:
        HaqError: Something cannot be pickled.
    """
    if basis.evaluator is not None:
        job = basis.job
        basis.evaluator.prepare(tuning=job.evaluation == "finetune" or job.finalists > 0)
    check_sendable(model, basis.own)
    return _sent("the data", (model, tuple(shape), basis))


def check_ray(job: Job) -> None:
    """Say so if the job wants a Ray cluster and Ray is not installed.

    Raises:
        HaqError: It is not.
    """
    if job.ray is not None and find_spec("ray") is None:
        raise HaqError("--ray needs Ray: pip install 'haq[ray]'")


def check_sendable(model: nn.Module, own: Callable[[nn.Module], float] | None) -> None:
    """Say so if other processes cannot get the model, or the caller's own score.

    Raises:
        HaqError: One of them cannot be pickled.
    """
    _sent("the model", model)
    _sent("evaluate=", own)


def _sent(what: str, part: object) -> bytes:
    try:
        return _pickled(part)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HaqError(
            f"{what} cannot be sent to other processes ({reason}): leave workers at 1, or take out "
            "what cannot be pickled"
        ) from error


def _pickled(what: object) -> bytes:
    """Return a pickle that also holds what the caller's script or notebook defines."""
    return cloudpickle.dumps(what)  # type: ignore[no-any-return]


def _unpacked(shipped: bytes) -> Evaluate:
    try:
        model, shape, basis = pickle.loads(shipped)
    except Exception as error:
        raise HaqError(
            f"a worker cannot load the model and the data ({type(error).__name__}: {error}): what "
            "they are made of must be importable there"
        ) from error
    if basis.job.threads:
        torch.set_num_threads(basis.job.threads)
    graph = trace(model, torch.zeros(1, *shape))
    if basis.evaluator is not None:
        basis.evaluator.graph = graph
    return partial(evaluated, means(graph, basis), basis.job.reward)


def _attempt(evaluate: Callable[[], Found]) -> bytes:
    """Return what an evaluation found or raised, pickled."""
    try:
        return _pickled(evaluate())
    except Exception as error:
        error.add_note(f"in a worker:\n{traceback.format_exc()}")
        try:
            told = _pickled(error)
            pickle.loads(told)
        except Exception:  # many an error cannot be made again from its arguments
            told = _pickled(RuntimeError(str(error)))
        return told


def _opened(told: bytes) -> Found:
    found = pickle.loads(told)
    if isinstance(found, Exception):
        raise found
    assert isinstance(found, Found)
    return found


class Pool:
    """Processes on this machine, each started when there is something for it to do.

    They do not run the caller's script again. One that dies is replaced, and what it did is done
    again. All end when this process does, however that ends.
    """

    def __init__(self, shipped: bytes, count: int) -> None:
        self._shipped = shipped
        self._own = threading.local()
        self._lock = threading.Lock()
        self._processes: list[_Process] = []
        self._closed = False
        self._threads = ThreadPoolExecutor(count)  # one looks after each process

    @property
    def pids(self) -> list[int]:
        """The numbers of the processes that are there."""
        with self._lock:
            return [process.pid for process in self._processes]

    def ask(self, request: Request) -> Answer:
        """Return the answer to come."""
        return self._threads.submit(self._evaluate, request).result

    def close(self) -> None:
        """Kill the processes."""
        with self._lock:
            self._closed = True
            for process in self._processes:
                process.kill()
        self._threads.shutdown(cancel_futures=True)

    def _evaluate(self, request: Request) -> Found:
        for _ in range(TRIES):
            process = self._process()
            try:
                told = process.answer(request)
            except (EOFError, OSError):
                how = process.end()
                with self._lock:
                    self._processes.remove(process)
                    self._own.process = None
            else:
                return _opened(told)
        raise RunError(
            f"a worker died {TRIES} times in the same evaluation ({how}); the run goes on with "
            "--resume: give it more memory, or start a new one with fewer workers"
        )

    def _process(self) -> "_Process":
        with self._lock:
            if self._closed:
                raise CancelledError
            if getattr(self._own, "process", None) is None:
                self._own.process = _Process()
                self._processes.append(self._own.process)
        process: _Process = self._own.process
        process.begin(self._shipped)
        return process


class _Process:
    """A process that evaluates one policy after the other."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        number = theirs.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from haq.runs.executors import serve; serve({number})"],
            stdin=subprocess.DEVNULL,
            pass_fds=(number,),
            process_group=0,  # Ctrl-C in a terminal is for this process alone
            env=_environment(),
        )
        theirs.close()
        self._begun = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, shipped: bytes) -> None:
        """Send it the model and data, once; that it died meanwhile shows in the answer."""
        if not self._begun:
            self._begun = True
            try:
                self._pipe.send_bytes(shipped)
            except OSError:
                pass

    def answer(self, request: Request) -> bytes:
        """Return what ``_attempt`` gives there; EOFError or OSError where it dies over it."""
        self._pipe.send_bytes(_pickled(request))
        return self._pipe.recv_bytes()

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> str:
        """Return how it died."""
        self._pipe.close()
        code = self._process.wait()
        if code < 0:
            by = signal.Signals(-code).name
            return f"by {by}" + (", as where memory runs out" if by == "SIGKILL" else "")
        return f"with exit code {code}"


def _environment() -> Mapping[str, str]:
    """Return that of this process, with what it can import."""
    path = {"PYTHONPATH": os.pathsep.join(_path())}
    return {"OMP_WAIT_POLICY": "passive"} | os.environ | path


def _path() -> list[str]:
    return [place or os.getcwd() for place in sys.path]


def serve(number: int) -> None:
    """Be a worker at the other end of a pipe until that is closed, as it is when its owner dies."""
    pipe, asked = Connection(number), SimpleQueue[bytes]()
    shipped = pipe.recv_bytes()

    def listen() -> None:
        try:
            while True:
                asked.put(pipe.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)  # in the middle of an evaluation too

    threading.Thread(target=listen, daemon=True).start()
    unpack = cache(_unpacked)
    while True:
        request = pickle.loads(asked.get())
        told = _attempt(lambda request=request: unpack(shipped)(request))  # type: ignore[misc]
        pipe.send_bytes(told)


class Cluster:
    """Workers of a Ray cluster, which starts them where there are free cores and replaces them."""

    def __init__(self, address: str, shipped: bytes, count: int, threads: int) -> None:
        import numpy as np
        import ray

        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                ray.init(address, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise HaqError(
                    f"no Ray cluster at {address!r} ({error}); start one with ray start --head, or "
                    "give local"
                ) from error
        # As an array it is shared by the workers of a machine, not copied for each task.
        self._shipped = ray.put(np.frombuffer(shipped, np.uint8))
        self._task = ray.remote(num_cpus=threads, max_retries=TRIES - 1)(_in_cluster)
        self._threads = ThreadPoolExecutor(count)

    def ask(self, request: Request) -> Answer:
        """Return the answer to come."""
        return self._threads.submit(self._evaluate, request).result

    def close(self) -> None:
        """Leave the cluster, which ends what is not answered."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._ours:
            self._ray.shutdown()

    def _evaluate(self, request: Request) -> Found:
        run, path = self._shipped.hex(), _path()
        told = self._task.remote(self._shipped, run, path, _pickled(request))
        try:
            return _opened(self._ray.get(told))
        except self._ray.exceptions.RayError as error:
            reason = str(error).splitlines()[0]
            raise RunError(
                f"an evaluation in the Ray cluster failed {TRIES} times ({reason}); the run goes "
                "on with --resume"
            ) from error


_KEPT: dict[str, Evaluate] = {}  # of the run that this process of the cluster last worked for


def _in_cluster(shipped: Any, run: str, path: Sequence[str], request: bytes) -> bytes:
    def evaluate() -> Found:
        if run not in _KEPT:
            _KEPT.clear()
            sys.path.extend(place for place in path if place not in sys.path)
            _KEPT[run] = _unpacked(shipped.tobytes())
        return _KEPT[run](pickle.loads(request))

    return _attempt(evaluate)
