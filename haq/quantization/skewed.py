"""Grids of activations that are hardly ever negative, as after SiLU, GELU and Hardswish.

A grid that is symmetric would spend half of its codes on values that do not occur. This one has as
many negative codes as the values want: the zero point. Zero stays a level.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from haq.errors import look_up
from haq.quantization.clipping import CLIPPING, FINE, PERCENTILE, SMALLEST, TINY

SHORT = 0.5
"""The shorter side of zero is at most so long, as a share of the longer one, where a grid that is
not symmetric pays."""

BINS = 2048
"""Of the histogram that squared errors are worked out on."""

LOWS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the shorter side that are tried."""


class SkewedGrid(NamedTuple):
    """A grid that is not symmetric.

    Attributes:
        clip: The highest value.
        skew: How many codes are negative.
    """

    clip: float
    skew: int


def is_skewed(values: Tensor) -> bool:
    """Return whether values reach much further on one side of zero than on the other."""
    low, high = (float(end) for end in values.aminmax())
    short, long = sorted((max(-low, 0.0), max(high, 0.0)))
    return long >= TINY and short <= SHORT * long


def skewed_grids(values: Tensor, bits: Sequence[int], method: str) -> dict[int, SkewedGrid]:
    """Return the grids of a tensor of activations that ``is_skewed``.

    "max" takes in all values, "percentile" all but a thousandth; the others have the least squared
    error. (The divergence is one of magnitudes, which such a tensor's sides do not share.)

    Args:
        values: A sample (N,), finite.
        bits: Widths from 2 to 8.
        method: A name in ``haq.quantization.clipping.CLIPPING``.

    Raises:
        HaqError: There is no such method.
    """
    look_up(CLIPPING, "clipping", method)
    values = values.detach().float().flatten().cpu()
    mirrored = bool(-values.min() > values.max())
    if mirrored:
        values = -values
    grids = {}
    for width in bits:
        size, short = _step_and_skew(values, 2**width - 1, method, least=int(mirrored))
        skew = 2**width - 1 - short if mirrored else short
        grids[width] = SkewedGrid(rounded_step(size) * (2**width - 1 - skew), skew)
    return grids


def rounded_step(size: float) -> float:
    """Return a step of 16 binary digits: its multiples, and they divided again, are exact."""
    digits, exponent = math.frexp(size)
    return math.ldexp(round(math.ldexp(digits, 16)), exponent - 16)


def _step_and_skew(values: Tensor, top: int, method: str, least: int) -> tuple[float, int]:
    """Return the step and the number of codes on the shorter side, for values mostly positive."""
    if method in ("max", "percentile"):
        low, high = _ends(values, method)
        skew = max(least, round(top * low / (low + high)))
        # So far that both ends are on the grid, zero among its levels.
        return max(high / (top - skew), low / skew if skew else 0.0), skew
    steps, skews = _candidates(values, top, least)
    errors = _squared_errors(values, steps, skews, top)
    best = int(errors.argmin())
    return float(steps[best]), int(skews[best])


def _ends(values: Tensor, method: str) -> tuple[float, float]:
    """Return how far values go below and above zero, or all but the rarest of them."""
    if method == "max":
        return max(0.0, -float(values.min())), float(values.max())
    ordered = values.sort().values
    out = int((1 - PERCENTILE) / 2 * len(ordered))
    return max(0.0, -float(ordered[out])), max(TINY, float(ordered[-1 - out]))


def _candidates(values: Tensor, top: int, least: int) -> tuple[Tensor, Tensor]:
    """Return steps and numbers of negative codes worth a try, (candidates,) each."""
    low, high = _ends(values, "max")
    lowest = SMALLEST * float(values.square().mean().sqrt())
    count = max(1, 1 + int(math.log(high / lowest) / math.log(FINE)))
    highs = high * FINE ** -torch.arange(count, dtype=torch.float64)  # from the maximum down
    wanted = low * torch.tensor(LOWS, dtype=torch.float64)
    skews = (top * wanted / (wanted + highs[:, None])).round().clamp(least, top // 2)
    steps = highs[:, None] / (top - skews)
    return steps.flatten(), skews.flatten()


def _squared_errors(values: Tensor, steps: Tensor, skews: Tensor, top: int) -> Tensor:
    low, high = float(values.min()), float(values.max())
    counts = torch.histc(values, BINS, low, high).double()
    width = (high - low) / BINS
    centres = low + width * (torch.arange(BINS, dtype=torch.float64) + 0.5)
    codes = (centres / steps[:, None]).round()  # (candidates, bins)
    codes = codes.clamp_(-skews[:, None], (top - skews)[:, None])
    return (codes * steps[:, None] - centres).square_() @ counts
