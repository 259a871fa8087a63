"""The share of inputs for which a network gives the float network's class."""

import math
from typing import TYPE_CHECKING

from haq.metrics.metric import Share

if TYPE_CHECKING:
    from torch import Tensor


class Agreement(Share):
    """Agreement with the float network: no labels.

    Answers that are no logits (N, classes) have 1 minus the squared error as a share of the
    reference's variance, over all their numbers.
    """

    name, said, word, needs = "agreement", "agreement", "agreement", "reference"

    def sums(
        self, answer: "Tensor", labels: "Tensor", reference: "Tensor | None", mask: "Tensor | None"
    ) -> "Tensor":
        """Return equal classes and inputs, or what variance needs: error, sum, squares, numbers."""
        assert reference is not None
        if answer.dim() == 2 and answer.shape[1] > 1:
            equal = answer.argmax(1) == reference.argmax(1)
            return answer.new_tensor([float(equal.sum()), len(equal), 0, 0]).double()
        wide = reference.double()
        error = float((answer.double() - wide).square().sum())
        numbers = [error, float(wide.sum()), float(wide.square().sum()), wide.numel()]
        return answer.new_tensor(numbers, dtype=wide.dtype)

    def value(self, sums: "Tensor") -> float:
        """Return the share, at most 1."""
        first, second, squares, numbers = sums.tolist()
        if not numbers:
            return float(first / second) if second else math.nan
        spread = squares / numbers - (second / numbers) ** 2
        return float(1 - first / numbers / max(spread, 1e-30))

    def check(self, answer: "Tensor", labels: "Tensor | None") -> None:
        """Take any answer: all can be compared."""
