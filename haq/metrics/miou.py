"""Mean intersection over union of segmentations."""

import math
from typing import TYPE_CHECKING

from haq.metrics.metric import Share

if TYPE_CHECKING:
    from torch import Tensor


class MeanIou(Share):
    """Mean over the classes of pixels both say, as a share of pixels at least one says.

    Classes that neither the labels nor the network name anywhere do not count.

    Source: Everingham et al., "The Pascal visual object classes challenge: a retrospective",
    IJCV 111 (2015), section 4.3.
    """

    name, said, word = "miou", "mean IoU", "mean_iou"

    def sums(
        self, answer: "Tensor", labels: "Tensor", reference: "Tensor | None", mask: "Tensor | None"
    ) -> "Tensor":
        """Return how many pixels of each class (rows) were given each class (columns), flat."""
        classes = answer.shape[1]
        pairs = labels * classes + answer.argmax(1)
        return pairs.bincount(minlength=classes * classes).double()

    def value(self, sums: "Tensor") -> float:
        """Return the mean over the classes, in [0, 1]."""
        counts = sums.view(math.isqrt(len(sums)), -1)
        union = counts.sum(0) + counts.sum(1) - counts.diag()
        there = union > 0
        return (
            float((counts.diag()[there] / union[there]).mean()) if bool(there.any()) else math.nan
        )

    def interval(self, value: float, count: int) -> None:
        """Return None: pixels of an image are not independent."""

    def check(self, answer: "Tensor", labels: "Tensor | None") -> None:
        """Refuse answers that are no logits for pixels."""
        if labels is None or labels.dim() < 3 or answer.dim() != 2 or answer.shape[1] < 2:
            self._refuse("logits of every class for every pixel (N, classes, H, W)", answer)
