"""What a metric is: how a network's answers are counted, and how its value is told to people."""

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from haq.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

Interval = tuple[float, float]
"""Low and high end of the 95 % confidence interval of a value."""


class Metric(ABC):
    """How good the answers of a network are, in one number.

    A value is in the metric's own unit. A score is the same in a form in which higher is better and
    differences count, as rewards need it: the value itself, unless the metric says otherwise.

    Attributes:
        name: What it is asked for by.
        said: What its values are called in sentences, such as "accuracy".
        word: The same in names of fields, such as "final_test_accuracy".
        higher: Whether higher values are better.
        unit: Of its values as they are shown; empty for plain numbers.
        format: Of values on the axes of charts and beside points, as d3 and Python both write it.
        needs: What it counts: "labels", "reference" (the float network's answers), or nothing.
    """

    name: ClassVar[str]
    said: ClassVar[str]
    word: ClassVar[str]
    higher: ClassVar[bool] = True
    unit: ClassVar[str] = ""
    format: ClassVar[str] = ".4g"
    needs: ClassVar[str] = "labels"

    def key(self, stage: str) -> str:
        """Return the name of a figure in summaries.

        >>> from haq.metrics import METRICS
        >>> METRICS["top1"].key("final_test"), METRICS["miou"].key("float_val")
        ('final_test_accuracy', 'float_val_mean_iou')
        """
        return f"{stage}_{self.word}"

    @abstractmethod
    def sums(
        self, answer: "Tensor", labels: "Tensor", reference: "Tensor | None", mask: "Tensor | None"
    ) -> "Tensor":
        """Return what a batch adds: numbers whose sums over all batches ``value`` needs.

        Args:
            answer: Of metrics with labels (M, classes), a row for each label; else as the network
                gives it, (N, ...). Floats.
            labels: (M,), from 0 up; what counts no label is left out before.
            reference: The float network's answer in the same form, where the metric needs it.
            mask: (N, T), not 0 where a token counts, where the inputs have one.

        Returns:
            A tensor of one axis, float64.
        """

    @abstractmethod
    def value(self, sums: "Tensor") -> float:
        """Return the value by the sums over all batches."""

    @abstractmethod
    def text(self, value: float) -> str:
        """Return a value as people read it, with its unit."""

    @abstractmethod
    def difference(self, own: float, other: float) -> str:
        """Return how a value differs from another one, with a sign and a unit."""

    def score(self, value: float) -> float:
        """Return the score of a value."""
        return value

    def of_score(self, score: float) -> float:
        """Return the value of a score."""
        return score

    def interval(self, value: float, count: int) -> Interval | None:
        """Return the confidence interval of a value on ``count`` inputs; None where it has none."""
        return None

    @abstractmethod
    def check(self, answer: "Tensor", labels: "Tensor | None") -> None:
        """Refuse a network whose answers the metric cannot count.

        Args:
            answer: As for ``sums``, or as the network gives it where labels do not fit it.
            labels: As the data have them, (N, ...); None where there are none.

        Raises:
            ModelError: It says what the metric needs, and what the network gives.
        """

    def _refuse(self, needed: str, answer: "Tensor") -> None:
        shape = "x".join(map(str, answer.shape))
        raise ModelError(
            f"metric {self.name} needs {needed}, and the network gives a tensor of {shape}; choose "
            "a metric that suits it, such as cosine, or score it yourself with evaluate="
        )


class Share(Metric):
    """A metric that is the share of answers which are right."""

    unit = "%"
    format = ".2%"

    def value(self, sums: "Tensor") -> float:
        """Return right answers as a share of all, in [0, 1]."""
        right, count = sums.tolist()
        return float(right / count) if count else math.nan

    def text(self, value: float) -> str:
        """Return the share in percent."""
        return f"{value:.2%}"

    def difference(self, own: float, other: float) -> str:
        """Return the difference in percentage points."""
        return f"{signed(100 * (own - other), 2)} points"

    def interval(self, value: float, count: int) -> Interval | None:
        """Return the interval of a share.

        Source: Wilson, "Probable inference, the law of succession, and statistical inference",
        J. Amer. Statist. Assoc. 22 (1927), with z = 1.96.

        >>> from haq.metrics import METRICS
        >>> [round(end, 4) for end in METRICS["top1"].interval(0.5, 100)]
        [0.4038, 0.5962]
        """
        if count < 1 or not 0 <= value <= 1:
            return None
        z2 = 1.959964**2
        middle, spread = value + z2 / (2 * count), value * (1 - value) / count
        half = math.sqrt(z2 * (spread + z2 / (4 * count * count)))
        whole = 1 + z2 / count
        return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


def signed(value: float, digits: int) -> str:
    """Return a number with its sign, and without one where it rounds to zero.

    >>> signed(0.123, 2), signed(-0.001, 2)
    ('+0.12', '0.00')
    """
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text
