"""Lossy differences: weights rounded to whole steps, with the sign apart and a rounding offset."""

import numpy as np
from numpy.typing import NDArray

from haq.errors import UpdateError

HALF_FROM = 5
"""From so many bits on, weights are rounded to the nearest step."""


def quantize(
    weights: NDArray[np.float32], step: float, offset: float, most: int | None = None
) -> NDArray[np.int32]:
    """Return whole steps: z = sign(w) * floor(abs(w) / step + offset).

    Zero and its neighbourhood are treated alike on both sides, so that nothing drifts; an offset
    below a half widens the zero bin and shrinks every other one towards zero.

    Args:
        weights: Of any shape, finite.
        step: Above 0, in the unit of the weights.
        offset: From 0 up to below 1; a half is rounding to the nearest.
        most: The largest step on both sides; None for no limit.

    Raises:
        UpdateError: The step or the offset is out of range.

    Source: the rounding offset of H.264's reference encoder.

    >>> quantize(np.array([-1, -0.66, -0.14, 0.14, 0.39, 0.61], np.float32), 0.25, 0.4).tolist()
    [-4, -3, 0, 0, 1, 2]
    """
    if not (step > 0 and np.isfinite(step)):
        raise UpdateError(f"a step of {step:g}: steps are positive and finite")
    if not 0 <= offset < 1:
        raise UpdateError(f"a rounding offset of {offset:g}: give 0 or more, and less than 1")
    size = np.floor(np.abs(weights, dtype=np.float64) / step + offset)
    if most is not None:
        size = np.minimum(size, most)
    return (np.sign(weights) * size).astype(np.int32)


def step_of(weights: NDArray[np.float32], bits: int) -> np.float32:
    """Return the step with which the largest weight is the largest code of so many bits."""
    top = float(np.abs(weights).max(initial=0.0))
    return np.float32(top / (2 ** (bits - 1) - 1)) if top else np.float32(1.0)


def centroid_offset(ratio: float) -> float:
    """Return the offset for which the levels of a Laplacian are the means of their bins.

    Args:
        ratio: Of the step to the mean magnitude, above 0.

    >>> round(centroid_offset(1.22993), 4)
    0.4
    """
    if ratio < 1e-3:
        return 0.5 - ratio / 12
    return float(1 / ratio - 1 / np.expm1(ratio))


def magnitude_offset(ratio: float) -> float:
    """Return the offset for which a Laplacian keeps its mean magnitude, the zero bin included.

    >>> round(magnitude_offset(1.0), 6)
    0.541325
    """
    return float(np.log(np.expm1(ratio) / ratio) / ratio)


def offset_for(weights: NDArray[np.float32], step: float, bits: int) -> float:
    """Return the offset that is used: a half from 5 bits on, below that the means of the bins."""
    mean = float(np.abs(weights, dtype=np.float64).mean()) if weights.size else 0.0
    if bits >= HALF_FROM or not mean:
        return 0.5
    return float(np.clip(centroid_offset(step / mean), 0.25, 0.5))
