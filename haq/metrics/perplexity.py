"""Perplexity: how surprised a language model is by the next token."""

import math
from typing import TYPE_CHECKING

from haq.metrics.metric import Metric, signed

if TYPE_CHECKING:
    from torch import Tensor


class Perplexity(Metric):
    """exp of the mean cross-entropy of the tokens, in nats; its score is minus that mean."""

    name, said, word, higher = "perplexity", "perplexity", "perplexity", False

    def sums(
        self, answer: "Tensor", labels: "Tensor", reference: "Tensor | None", mask: "Tensor | None"
    ) -> "Tensor":
        """Return the sum of the cross-entropies, and how many tokens there are."""
        chosen = answer.double().log_softmax(1).gather(1, labels[:, None])
        return answer.new_tensor([-float(chosen.sum()), len(labels)]).double()

    def value(self, sums: "Tensor") -> float:
        """Return the perplexity, 1 or more."""
        total, count = sums.tolist()
        return self.of_score(-total / count) if count else math.nan

    def text(self, value: float) -> str:
        """Return the perplexity with four digits."""
        return f"{value:.4g}" if value < 1e4 else f"{value:,.0f}"

    def difference(self, own: float, other: float) -> str:
        """Return the difference with three decimals."""
        return signed(own - other, 3)

    def score(self, value: float) -> float:
        """Return minus the mean cross-entropy."""
        return -math.log(value) if value > 0 else math.nan

    def of_score(self, score: float) -> float:
        """Return the perplexity of a mean cross-entropy; infinite beyond what a float holds."""
        return math.exp(-score) if -score < 700 else math.inf

    def check(self, answer: "Tensor", labels: "Tensor | None") -> None:
        """Refuse answers that are no logits for tokens."""
        if labels is None or labels.dim() != 2 or answer.dim() != 2 or answer.shape[1] < 2:
            self._refuse("logits for the next token at every place (N, T, tokens)", answer)
