"""Networks of a search beside the float network, image by image."""

import time
from functools import cached_property, partial

from torch import Tensor, nn

from haq.datasets import Split
from haq.runs.evaluator import Evaluator
from haq.training.paired import Paired, correct_answers, paired
from haq.training.scoring import logits


class Pairs:
    """Compares networks with the float network on two sets of images.

    Those of ``choice`` are the evaluator's: policies are chosen by them. Those of ``verification``
    are for the networks that are handed over.
    """

    clock = staticmethod(time.perf_counter)

    def __init__(self, evaluator: Evaluator, verification: Split) -> None:
        self._evaluator, self._verification = evaluator, verification

    @property
    def images(self) -> int:
        """Images of the verification."""
        return len(self._verification)

    @property
    def right(self) -> float:
        """Share of them that the float network gets right."""
        return float(self._before[1].float().mean())

    def optimism(self, most: float) -> float:
        """Return by how much more is lost on the images of the verification than of the choice.

        That is about the ratio of the float network's errors, since what it is unsure of is lost
        first: it may have been trained on the images of the choice.
        """
        choice, verification = (1 - float(right.float().mean()) for right in self._before)
        return min(max(verification / max(choice, 1e-9), 1.0), most)

    def choice(self, model: nn.Module) -> Paired:
        """Return how a network does beside the float network where policies are chosen."""
        return paired(self._before[0], self._right(model, self._evaluator.validation))

    def right_of(self, model: nn.Module) -> Tensor:
        """Return which images of the verification a network gets right, (N,)."""
        return self._right(model, self._verification)

    def verification(self, model: nn.Module) -> Paired:
        """Return the same on the other images; of a quantized network, that of its file."""
        return paired(self._before[1], self.right_of(model))

    @cached_property
    def _before(self) -> tuple[Tensor, Tensor]:
        floats = self._evaluator.graph.traced
        return (
            self._right(floats, self._evaluator.validation),
            self._right(floats, self._verification),
        )

    def _right(self, model: nn.Module, split: Split) -> Tensor:
        answer = self._evaluator.integer_answer(model) or partial(logits, model)
        return correct_answers(answer, split)
