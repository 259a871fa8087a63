"""The cosine between a network's answers and the float network's: no labels."""

import math
from typing import TYPE_CHECKING

from haq.metrics.metric import Metric, signed

if TYPE_CHECKING:
    from torch import Tensor


class Cosine(Metric):
    """Mean over the inputs of the cosine between the answers of both networks.

    An answer is one vector for each input, of all its numbers. Answers for tokens (N, T, D) with a
    mask are averaged over the tokens that count before, as embeddings of sentences are.
    """

    name, said, word = "cosine", "cosine to the float network", "cosine"
    needs, format = "reference", ".4f"

    def sums(
        self, answer: "Tensor", labels: "Tensor", reference: "Tensor | None", mask: "Tensor | None"
    ) -> "Tensor":
        """Return the sum of the cosines, and how many there are."""
        assert reference is not None
        own, other = _vectors(answer, mask), _vectors(reference, mask)
        lengths = own.norm(dim=1) * other.norm(dim=1)
        same = (own == other).all(1)  # also where both are zero
        cosines = ((own * other).sum(1) / lengths.clamp_min(1e-30)).where(~same, 1.0)
        return own.new_tensor([float(cosines.sum()), len(cosines)])

    def value(self, sums: "Tensor") -> float:
        """Return the mean cosine, in [-1, 1]."""
        total, count = sums.tolist()
        return float(total / count) if count else math.nan

    def text(self, value: float) -> str:
        """Return the cosine with four decimals."""
        return f"{value:.4f}"

    def difference(self, own: float, other: float) -> str:
        """Return the difference with four decimals."""
        return signed(own - other, 4)

    def check(self, answer: "Tensor", labels: "Tensor | None") -> None:
        """Refuse a single number for each input: its cosine is 1 or -1."""
        if answer[:1].numel() < 2:
            self._refuse("two or more numbers for each input", answer)


def _vectors(answer: "Tensor", mask: "Tensor | None") -> "Tensor":
    """Return one vector for each input, float64."""
    wide = answer.double()
    if mask is not None and wide.dim() == 3 and mask.shape == wide.shape[:2]:
        counts = (mask != 0).to(wide.dtype)[:, :, None]
        wide = (wide * counts).sum(1) / counts.sum(1).clamp_min(1)
    return wide.flatten(1)
