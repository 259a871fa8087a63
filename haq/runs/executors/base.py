"""What every executor has in common: requests, results, and what travels to other processes."""

import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, Protocol

import cloudpickle
import torch
from torch import nn

from haq.allocation.policy import Policy
from haq.allocation.trials import Score
from haq.errors import DivergedError, HaqError
from haq.models.weights import packed
from haq.network.graph import trace
from haq.network.inputs import Inputs
from haq.runs.scoring import Scorer, ScoringData, score_key, scorer_for

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


class Result(NamedTuple):
    """What an evaluation gives.

    Attributes:
        score: None where the training diverged.
        seconds: What it took.
        weights: The network's, as safetensors, where they are wanted.
    """

    score: Score | None
    seconds: float
    weights: bytes | None


Pending = Callable[[], Result]
"""Waits for a result, or raises what went wrong; may be called again."""

Evaluate = Callable[[Request], Result]


class Executor(Protocol):
    """Evaluates policies until it is closed."""

    def submit(self, request: Request) -> Pending:
        """Return the result to come."""
        ...

    def close(self) -> None:
        """Give up what is not evaluated yet, and end all processes."""
        ...


def window(workers: int) -> int:
    """Return how many evaluations may be ahead of the agent's knowledge.

    Results count in the order of the episodes, so that a slow one holds up those behind it; with as
    many again waiting (from 16 workers on, twice as many) the workers stay busy meanwhile.

    >>> [window(workers) for workers in (1, 2, 15, 16, 64)]
    [1, 4, 30, 48, 192]
    """
    return 1 if workers == 1 else workers * (2 if workers < 16 else 3)


def evaluate_request(scorer: Scorer, reward: str, request: Request) -> Result:
    """Evaluate a policy in this process."""
    network = scorer.network if request.stage == "episode" else scorer.tuned
    assert network is not None
    started = time.perf_counter()
    try:
        model = network(request.policy)
        score = scorer.score(model, request.beat)
    except DivergedError:
        return Result(None, time.perf_counter() - started, None)
    seconds = time.perf_counter() - started
    least = request.least
    by = reward if request.stage == "episode" else "metric"  # finalists compare by the metric
    wanted = least is None or score_key(score, by) >= score_key(least, by)
    return Result(score, seconds, packed(model) if wanted and not score.stopped else None)


def payload(model: nn.Module, sample: Inputs, data: ScoringData) -> bytes:
    """Return all that another process needs to evaluate policies, pickled.

    Raises:
        HaqError: Something cannot be pickled.
    """
    if data.evaluator is not None:
        job = data.job
        data.evaluator.prepare(tuning=job.fine_tunes)
    check_sendable(model, data.own)
    return _pickled_part("the data", (model, sample, data))


def unpack(sent: bytes) -> Evaluate:
    """Return the evaluation that ``payload`` packed.

    Raises:
        HaqError: What it is made of cannot be imported here.
    """
    try:
        model, sample, data = pickle.loads(sent)
    except Exception as error:
        raise HaqError(
            f"a worker cannot load the model and the data ({type(error).__name__}: {error}): what "
            "they are made of must be importable there"
        ) from error
    if data.job.threads:
        torch.set_num_threads(data.job.threads)
    graph = trace(model, sample)
    if data.evaluator is not None:
        data.evaluator.graph = graph
    return partial(evaluate_request, scorer_for(graph, data), data.job.reward)


def check_sendable(model: nn.Module, own: Callable[[nn.Module], float] | None) -> None:
    """Say so if other processes cannot get the model, or the caller's own score.

    Raises:
        HaqError: One of them cannot be pickled.
    """
    _pickled_part("the model", model)
    _pickled_part("evaluate=", own)


def _pickled_part(what: str, part: object) -> bytes:
    try:
        return pickled(part)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HaqError(
            f"{what} cannot be sent to other processes ({reason}): leave workers at 1, or take out "
            "what cannot be pickled"
        ) from error


def pickled(what: object) -> bytes:
    """Return a pickle that also holds what the caller's script or notebook defines."""
    return cloudpickle.dumps(what)  # type: ignore[no-any-return]


def reply(evaluate: Callable[[], Result]) -> bytes:
    """Return what an evaluation gives or raises, pickled."""
    try:
        return pickled(evaluate())
    except Exception as error:
        error.add_note(f"in a worker:\n{traceback.format_exc()}")
        try:
            message = pickled(error)
            pickle.loads(message)
        except Exception:  # many an error cannot be made again from its arguments
            message = pickled(RuntimeError(str(error)))
        return message


def read_reply(message: bytes) -> Result:
    """Return the result in a reply, or raise the error in it."""
    result = pickle.loads(message)
    if isinstance(result, Exception):
        raise result
    assert isinstance(result, Result)
    return result


def import_path() -> list[str]:
    """Return where this process imports from, for others."""
    return [place or os.getcwd() for place in sys.path]
