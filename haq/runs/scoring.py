"""What the score of a policy depends on, in a form that can be sent to another process."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import fx, nn

from haq.allocation.policy import Policy
from haq.allocation.trials import Score
from haq.errors import HaqError
from haq.metrics import METRICS, Metric
from haq.network.capture import evaluating
from haq.network.graph import Graph
from haq.network.inputs import Inputs
from haq.quantization.calibration import Clips
from haq.quantization.fake_quant import quantize
from haq.runs.evaluator import Evaluator, compared, corrected
from haq.runs.job import Job
from haq.runs.places import Narrowing, Places


class Scoring(Protocol):
    """From a network to its score; with ``beat`` it may stop where that is out of reach."""

    def __call__(self, model: nn.Module, beat: float | None = None) -> Score:
        """Return the score."""
        ...


@dataclass(frozen=True)
class ScoringData:
    """What ``scorer_for`` needs beside the graph; all of it can be pickled.

    Attributes:
        job: Its evaluation, episodes and reward count.
        clips: Of the graph.
        plain: Images (N, ...) on which statistics are corrected, for the cheap evaluation alone.
        evaluator: On labelled images, if there are some.
        inputs: (N, ...) that are compared with the float network, if nothing else scores.
        own: The caller's own score of a network.
        metric: What scores a network, if nothing else does.
        narrowing: Where channels are chosen.
    """

    job: Job
    clips: Clips
    plain: Inputs | None = None
    evaluator: Evaluator | None = None
    inputs: Inputs | None = None
    own: Callable[[nn.Module], float] | None = None
    metric: Metric = METRICS["top1"]
    narrowing: Narrowing | None = None


class Scorer(NamedTuple):
    """How policies are scored.

    Attributes:
        network: From a policy to the network that is scored in its episode.
        score: Of a network.
        tuned: From a policy to its network after the paper's one epoch; None where that is what
            episodes score, or nothing can be fine-tuned.
        places: The float networks that policies are put into.
    """

    network: Callable[[Policy], fx.GraphModule]
    score: Scoring
    tuned: Callable[[Policy], fx.GraphModule] | None
    places: Places


def scorer_for(graph: Graph, data: ScoringData) -> Scorer:
    """Return how policies are scored: the same in every process with the same threads."""
    evaluator, places = data.evaluator, Places(graph, data.clips, data.narrowing)
    network: Callable[[Policy], fx.GraphModule] = partial(_quantized, places)
    if evaluator is not None:
        evaluator.places = places
        network = evaluator.tuned
    tuned = evaluator.tuned if evaluator and data.plain is not None else None
    if data.plain is not None:
        network = corrected(places, data.plain)
    return Scorer(network, _score(graph, data), tuned, places)


def _score(graph: Graph, data: ScoringData) -> Scoring:
    if data.own is not None:
        return partial(_own_score, data.own)
    if data.evaluator is None:
        assert data.inputs is not None
        return compared(graph.traced, data.inputs, data.metric)
    if data.plain is not None:
        return data.evaluator.integer_score
    return data.evaluator.score


def _own_score(
    own: Callable[[nn.Module], float], model: nn.Module, beat: float | None = None
) -> Score:
    with torch.no_grad(), evaluating(model):
        given = own(model)
    try:
        return Score(float(given))
    except (TypeError, ValueError) as error:
        raise HaqError(f"evaluate= gives {given!r}; it must give a number") from error


def _quantized(places: Places, policy: Policy) -> fx.GraphModule:
    place = places(policy)
    return quantize(place.graph, policy, place.clips)


def score_key(score: Score, reward: str) -> tuple[float, float]:
    """Return what scores are compared by under a job's reward: higher is better."""
    both = (score.accuracy, -score.loss)
    return both if reward in ("metric", "accuracy") else (both[1], both[0])
