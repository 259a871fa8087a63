"""Two networks on the same images: what only one gets right, and how sure a difference is."""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from haq.datasets import Split
from haq.network.inputs import Inputs


class Paired(NamedTuple):
    """How two networks do on the same images.

    Attributes:
        images: How many.
        right: Which share of them the first network gets right.
        lost: Images that the first network gets right and the second does not.
        gained: The other way round.
    """

    images: int
    right: float
    lost: float
    gained: float

    @property
    def drop(self) -> float:
        """By how much the second network's accuracy is lower, a share."""
        return (self.lost - self.gained) / self.images

    @property
    def error(self) -> float:
        """The standard error of the drop (McNemar)."""
        difference = self.lost + self.gained - (self.lost - self.gained) ** 2 / self.images
        return math.sqrt(max(difference, 0.0)) / self.images


def correct_answers(answer: Callable[[Inputs], Tensor], split: Split, batch: int = 125) -> Tensor:
    """Return for every image of a split whether the answer's class is its label, (N,)."""
    parts = []
    for index in torch.arange(len(split)).split(batch):
        pictures, labels = split.batch(index)
        parts.append(answer(pictures).argmax(1).cpu() == labels)
    return torch.cat(parts)


def paired(first: Tensor, second: Tensor) -> Paired:
    """Return how two networks do, from what each gets right, (N,) truth values."""
    lost, gained = int((first & ~second).sum()), int((second & ~first).sum())
    return Paired(len(first), float(first.float().mean()), lost, gained)


def largest_drop(pairs: Paired, risk: float) -> float:
    """Return a drop that the true one exceeds with a probability of about ``risk`` at most.

    It is the largest drop that a one-sided test does not refuse: Tango's score test for the
    difference of two shares in pairs, which is McNemar's for a drop of 0::

        z = (n d - lost + gained) / sqrt(n (2 q + d (1 - d)))     q: share gained, by d and pairs

    Unlike an interval by the standard error it holds where nothing is lost: z**2 / (n + z**2).

    Args:
        pairs: At least one image.
        risk: From 0 to 1/2.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design", Statistics in Medicine 17 (1998).

    >>> round(largest_drop(Paired(100, 1.0, 0, 0), 0.05), 4)
    0.0263
    """
    limit = NormalDist().inv_cdf(1 - risk)
    low, high = max(pairs.drop, -1.0), 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(pairs, middle) < limit else (low, middle)
    return high


def drop_interval(pairs: Paired, confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of the drop: Tango's, see ``largest_drop``.

    >>> [round(end, 3) for end in drop_interval(Paired(100, 0.9, 10, 10))]
    [-0.092, 0.092]
    """
    risk = (1 - confidence) / 2
    turned = Paired(pairs.images, pairs.right - pairs.drop, pairs.gained, pairs.lost)
    return -largest_drop(turned, risk), largest_drop(pairs, risk)


def _score(pairs: Paired, drop: float) -> float:
    """Return by how many standard errors the pairs lie below a drop."""
    n, lost, gained = pairs.images, pairs.lost, pairs.gained
    a, b, c = 2 * n, -lost - gained + (2 * n - lost + gained) * drop, -gained * drop * (1 - drop)
    share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * share + drop * (1 - drop))
    away = n * drop - (lost - gained)
    return away / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, away)
