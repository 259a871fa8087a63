"""Which of several finished networks is the best, on images that no policy was chosen by.

Accuracies of policies of equal cost lie within a standard error of each other, so that the most
accurate one on the images of the search is mostly the luckiest. Accuracy decides where it differs
by more than its own error, in pairs; else the divergence from the float network, which tells more.

A network that was trained to be near the float network is nearer than the one it was before even
where it got worse at the task. So training must not have cost accuracy either: see ``better``.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from haq.datasets import Split
from haq.distillation.kd import divergences
from haq.runs.evaluator import Evaluator
from haq.training.aligned import aligned
from haq.training.paired import paired
from haq.training.scoring import logits

BEYOND = 1.96
"""Standard errors from which on a difference is more than chance: 95 %, of two sides."""


class Judged(NamedTuple):
    """What a network does with the images.

    Attributes:
        right: Whether it gives each its label, (N,); of tokens or pixels, each one's.
        away: Its divergence from the float network in each, in nats, (N,).
    """

    right: Tensor
    away: Tensor

    @property
    def accuracy(self) -> float:
        """The share of labels it gives."""
        return float(self.right.float().mean())

    @property
    def divergence(self) -> float:
        """The mean divergence from the float network, in nats an image."""
        return float(self.away.double().mean())


class Judge:
    """Judges networks on the evaluator's images for that: those it does not score by, if any."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self.images: Split = evaluator.unseen or evaluator.validation
        self._floats: Tensor | None = None

    @property
    def apart(self) -> bool:
        """Whether no policy was chosen by the images."""
        return self._evaluator.unseen is not None

    def judged(self, model: nn.Module) -> Judged:
        """Return what a network does; of a quantized one, what its file does."""
        if self._floats is None:
            self._floats, _ = answers_of(self._evaluator, self._evaluator.graph.traced, self.images)
        answers, labels = answers_of(self._evaluator, model, self.images)
        away = divergences(answers.double(), self._floats.double())
        rows, counted = aligned(answers, labels)
        return Judged(rows.argmax(1) == counted, away)


def answers_of(evaluator: Evaluator, model: nn.Module, images: Split) -> tuple[Tensor, Tensor]:
    """Return what a network answers to images, (N, ...), and their labels.

    Of a quantized network that is what its file answers, where that is exact here.
    """
    answer = evaluator.integer_answer(model) or partial(logits, model, quick=True)
    answers, labels = [], []
    for index in torch.arange(len(images)).split(125):
        pictures, right = images.batch(index)
        answers.append(answer(pictures).cpu())
        labels.append(right)
    return torch.cat(answers), torch.cat(labels)


def errors_nearer(one: Tensor, other: Tensor) -> float:
    """Return by how many standard errors the other network is nearer, image by image."""
    gain = (one - other).double()
    return _errors(float(gain.mean()), float(gain.std()) / math.sqrt(len(gain)))


def winner(judged: Sequence[Judged]) -> int:
    """Return the number of the best of several networks trained alike: of equals the first.

    The one of the least divergence, unless another is more accurate by more than chance explains.

    >>> right, away = torch.tensor([True] * 90 + [False] * 10), torch.ones(100)
    >>> winner([Judged(right, 0.3 * away), Judged(right, 0.2 * away), Judged(~right, 0.1 * away)])
    1
    """
    order = sorted(range(len(judged)), key=lambda at: judged[at].divergence)
    best = order[0]
    for other in order[1:]:
        if _lead(judged[best], judged[other]) > BEYOND:
            best = other
    return best


def better(trained: Judged, before: Judged) -> bool:
    """Return whether training did a network good, beyond what chance explains.

    Either it is more accurate by more than chance explains; or it is nearer to the float network by
    more than that, and not less accurate.

    >>> right, away = torch.tensor([True] * 90 + [False] * 10), torch.ones(100)
    >>> one_less = right & (torch.arange(100) > 0)
    >>> [better(Judged(now, 0.2 * away), Judged(right, 0.3 * away)) for now in (right, one_less)]
    [True, False]
    """
    lead = _lead(before, trained)
    return lead > BEYOND or (lead >= 0 and errors_nearer(before.away, trained.away) > BEYOND)


def best_tuned(judged: Sequence[Judged]) -> int:
    """Return the number of the best fine-tuned network; 0 where training did none of them good.

    Args:
        judged: The best network without fine-tuning, then those that were fine-tuned, if any.
    """
    if len(judged) == 1:
        return 0
    best_one = 1 + winner(judged[1:])
    return best_one if better(judged[best_one], judged[0]) else 0


def kept_if_better(
    judged: Callable[[nn.Module], Judged], model: nn.Module, train: Callable[[], None]
) -> dict[str, Any]:
    """Train a network in place, and take that back where it did the network no good.

    Args:
        judged: What a network does; ``better`` says the rest.
        model: The network.
        train: Changes its parameters and buffers.

    Returns:
        Accuracy and divergence before and after the training, and whether it was "kept".
    """
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = judged(model)
    train()
    after = judged(model)
    kept = better(after, before)
    if not kept:
        model.load_state_dict(state)
    return {
        "kept": kept, "accuracy": [before.accuracy, after.accuracy],
        "divergence": [before.divergence, after.divergence],
    }  # fmt: skip


def _lead(one: Judged, other: Judged) -> float:
    """Return by how many standard errors the other network is more accurate."""
    pairs = paired(one.right, other.right)
    return _errors(-pairs.drop, pairs.error)


def _errors(mean: float, error: float) -> float:
    """Return a mean in standard errors; without an error, how it compares with 0."""
    if error > 0:
        return mean / error
    return math.copysign(math.inf, mean) if mean else 0.0
