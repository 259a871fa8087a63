"""How many bits the weights of a pruned layer take, in each of the ways of writing them."""

import math
from collections.abc import Mapping

INDEX_BITS = range(2, 9)
"""Widths of a relative index."""


def sparse_bits(weights: int, zeros: int, bits: int) -> Mapping[str, float]:
    """Return how many bits the codes of a layer take in each format, without headers.

    With N weights of b bits of which a share s is zero, and H2 the entropy of a mask::

        dense           N b
        bitmask         N + N (1 - s) b
        coded mask      N H2(s) + N (1 - s) b
        relative index  N (1 - s) (b + k) / (1 - s ** 2**k), for the best k bits of an index

    The last counts the zeros that are written where an index is too short for a gap, as they are
    expected of zeros that stand anywhere.

    Args:
        weights: N.
        zeros: Of them.
        bits: b, of a code.

    >>> {name: round(value / 1e6, 3) for name, value in sparse_bits(10**6, 9 * 10**5, 4).items()}
    {'dense': 4.0, 'bitmask': 1.4, 'coded mask': 0.869, 'relative index': 0.932}
    """
    share, others = zeros / max(weights, 1), weights - zeros
    index = (others * (bits + k) / (1 - share ** (2**k)) if others else 0.0 for k in INDEX_BITS)
    return {
        "dense": float(weights * bits),
        "bitmask": float(weights + others * bits),
        "coded mask": weights * _entropy(share) + others * bits,
        "relative index": min(index),
    }


def sparse_bytes(weights: int, zeros: int, bits: int) -> int:
    """Return the bytes of the cheapest format."""
    return math.ceil(min(sparse_bits(weights, zeros, bits).values()) / 8)


def _entropy(share: float) -> float:
    return -sum(p * math.log2(p) for p in (share, 1 - share) if p)
