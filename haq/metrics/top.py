"""The share of labels that are among the network's first answers."""

from typing import TYPE_CHECKING

from haq.metrics.metric import Share

if TYPE_CHECKING:
    from torch import Tensor


class Top(Share):
    """The share of labels among the classes with the highest logits.

    Attributes:
        first: How many classes count.
    """

    first: int

    def sums(
        self, answer: "Tensor", labels: "Tensor", reference: "Tensor | None", mask: "Tensor | None"
    ) -> "Tensor":
        """Return how many labels are among the first classes, and how many there are."""
        right = self.right(answer, labels)
        return answer.new_tensor([float(right.sum()), len(labels)]).double()

    def right(self, answer: "Tensor", labels: "Tensor") -> "Tensor":
        """Return of each label whether it is among the first classes, (M,)."""
        if self.first == 1:
            return answer.argmax(1) == labels
        return (answer.topk(self.first, 1).indices == labels[:, None]).any(1)

    def check(self, answer: "Tensor", labels: "Tensor | None") -> None:
        """Refuse answers that are no logits of more classes than count."""
        if labels is None or answer.dim() != 2 or answer.shape[1] <= self.first:
            more = f"more than {self.first}" if self.first > 1 else "two or more"
            self._refuse(f"logits of {more} classes for every label (N, classes)", answer)


class Top1(Top):
    """Accuracy."""

    name, said, word, first = "top1", "accuracy", "accuracy", 1


class Top5(Top):
    """Top-5 accuracy."""

    name, said, word, first = "top5", "top-5 accuracy", "top5_accuracy", 5
