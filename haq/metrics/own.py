"""What the caller's own function says of a network."""

from typing import TYPE_CHECKING

from haq.metrics.metric import Metric, signed

if TYPE_CHECKING:
    from torch import Tensor


class OwnScore(Metric):
    """The number that ``evaluate=`` gives; higher is better."""

    name, said, word, needs = "evaluate", "score", "score", ""

    def sums(
        self, answer: "Tensor", labels: "Tensor", reference: "Tensor | None", mask: "Tensor | None"
    ) -> "Tensor":
        """Not called: the caller's function counts by itself."""
        raise NotImplementedError

    def value(self, sums: "Tensor") -> float:
        """Not called, as above."""
        raise NotImplementedError

    def text(self, value: float) -> str:
        """Return the number with up to six digits."""
        return f"{value:,.6g}"

    def difference(self, own: float, other: float) -> str:
        """Return the difference with a sign."""
        return signed(own - other, 4)

    def check(self, answer: "Tensor", labels: "Tensor | None") -> None:
        """Take any answer: the caller knows what to make of it."""
