"""How many bits codes need, and how far two networks lie apart, as numbers for reports."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

BINS = 256


def order0(codes: NDArray[np.integer]) -> float:
    """Return the order-0 entropy of codes, in bits for all of them.

    >>> order0(np.array([0, 0, 1, 1]))
    4.0
    """
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum()) if codes.size else 0.0


def laplace_entropy(ratio: float, offset: float) -> float:
    """Return the bits a code of a Laplacian has when its steps are ``ratio`` mean magnitudes wide.

    H = h(p0) + (1 - p0)(1 + h(q) / (1 - q)) with p0 = 1 - exp(-ratio (1 - offset)) the share of
    zeros, q = exp(-ratio) and h the entropy of a coin.

    >>> round(laplace_entropy(1.0, 0.5), 5)
    2.48414
    """
    zeros, q = -np.expm1(-ratio * (1 - offset)), np.exp(-ratio)
    return float(_coin(zeros) + (1 - zeros) * (1 + _coin(q) / (1 - q)))


def _coin(p: float) -> float:
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p))) if 0 < p < 1 else 0.0


def laplace_divergence(mean: float, size: float, other_mean: float, other_size: float) -> float:
    """Return the relative entropy of one Laplacian to another one, in nats.

    Args:
        mean: Of the first.
        size: Its mean distance from its mean, above 0.
        other_mean: Of the other.
        other_size: As ``size``.

    >>> round(laplace_divergence(0, 1, 0, 2), 6)
    0.193147
    """
    apart = abs(mean - other_mean)
    within = size / other_size * np.exp(-apart / size)
    return float(np.log(other_size / size) + apart / other_size + within - 1)


def histogram_divergence(values: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Return the relative entropy of the values of two tensors, in nats.

    Both are counted in 256 bins over the range that they have together; each bin has a millionth
    of the counts more, so that none is empty.
    """
    low = min(float(values.min()), float(other.min()))
    high = max(float(values.max()), float(other.max()))
    if not low < high:
        return 0.0
    shares = [
        np.histogram(each, BINS, (low, high))[0] / each.size + 1e-6 for each in (values, other)
    ]
    p, q = (share / share.sum() for share in shares)
    return float((p * np.log(p / q)).sum())


def divergence(
    one: Mapping[str, NDArray[np.floating]], other: Mapping[str, NDArray[np.floating]]
) -> float:
    """Return the relative entropy of a network to another one, in nats.

    That of the tensors both have in the same shape, weighted by their sizes.
    """
    both = [
        name for name in one
        if name in other and one[name].shape == other[name].shape and one[name].size
    ]  # fmt: skip
    whole = sum(one[name].size for name in both)
    parts = (one[name].size * histogram_divergence(one[name], other[name]) for name in both)
    return sum(parts) / whole if whole else 0.0


def shared(
    one: Mapping[str, NDArray[np.floating]], other: Mapping[str, NDArray[np.floating]]
) -> int:
    """Return how many values lie in tensors that both networks have in the same shape."""
    return sum(
        values.size for name, values in one.items()
        if name in other and other[name].shape == values.shape
    )  # fmt: skip
