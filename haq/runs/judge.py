"""Which of several finished networks is the best, on images that no policy was chosen by.

Accuracies of policies of equal cost lie within a standard error of each other, so that the most
accurate one on the images of the search is mostly the luckiest. Accuracy decides where it differs
by more than its own error, in pairs; else the divergence from the float network, which tells more.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from haq.datasets import Split
from haq.distillation.kd import divergence
from haq.runs.evaluator import Evaluator
from haq.training.paired import paired
from haq.training.scoring import logits

BEYOND = 1.96
"""Standard errors by which an accuracy must be higher to decide."""


class Judged(NamedTuple):
    """What a network does with the images.

    Attributes:
        right: Whether it gives each its label, (N,).
        divergence: From the float network, in nats an image.
    """

    right: Tensor
    divergence: float

    @property
    def accuracy(self) -> float:
        """The share of labels it gives."""
        return float(self.right.float().mean())


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
            self._floats, _ = self._answers(self._evaluator.graph.traced)
        answers, labels = self._answers(model)
        away = divergence(answers.double(), self._floats.double())
        return Judged(answers.argmax(1) == labels, float(away))

    def _answers(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        answer = self._evaluator.integer_answer(model) or partial(logits, model, quick=True)
        answers, labels = [], []
        for index in torch.arange(len(self.images)).split(125):
            pictures, right = self.images.batch(index)
            answers.append(answer(pictures))
            labels.append(right)
        return torch.cat(answers), torch.cat(labels)


def winner(judged: Sequence[Judged]) -> int:
    """Return the number of the best network: of equals the first.

    The one of the least divergence, unless another is more accurate by more than chance explains.

    >>> right = torch.tensor([True] * 90 + [False] * 10)
    >>> winner([Judged(right, 0.3), Judged(right, 0.2), Judged(~right, 0.1)])
    1
    """
    order = sorted(range(len(judged)), key=lambda at: judged[at].divergence)
    best = order[0]
    for other in order[1:]:
        pairs = paired(judged[best].right, judged[other].right)
        if -pairs.drop > BEYOND * pairs.error:
            best = other
    return best
