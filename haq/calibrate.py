"""Where to clip: for every bit-width the bound beyond which a tensor's values are cut off.

Clipping is chosen by the Kullback-Leibler divergence between the original distribution and the
quantized one. Taken literally, between histograms, that fails on weights: a channel of a few
hundred values leaves most bins empty, and rounding only moves values within their own bin, so
that nearly every clip looks perfect. Both distributions are therefore smoothed by the same
Gaussian, half as wide as the step of a good quantizer of as many bits, and nothing is left out:
what lies beyond the clip counts at the clip.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from haq.errors import look_up
from haq.quantizers import levels

BINS = 2048
CANDIDATES = 40
SMALLEST = 0.5
"""The lowest clip tried, in standard deviations."""
FARTHEST = 32.0
"""Standard deviations beyond which a value is an outlier: it counts as if it were there."""
PERCENTILE = 0.999
NOTHING = 1e-30
"""Magnitudes up to here count as zero: float32 has no steps for them."""

STEPS = {1: 1.224, 3: 0.6508, 7: 0.3534, 15: 0.19, 31: 0.1031, 63: 0.0555, 127: 0.0297, 255: 0.0158}
"""Levels on each side of zero to the step, in standard deviations, of the uniform quantizer that
suits a normal distribution best: Max, "Quantizing for minimum distortion", 1960, doi
10.1109/TIT.1960.1057548."""

Method = Callable[[Tensor, Sequence[int]], Tensor]
"""From magnitudes (rows, values) and the levels on each side of zero, one number per bit-width, to
the clips (bit-widths, rows), at most each row's largest magnitude."""


def weight_clips(
    weight: Tensor, bits: Sequence[int], method: str = "kl", per_channel: bool = True
) -> dict[int, Tensor]:
    """Return where to clip the weights at each bit-width.

    Args:
        weight: (out, ...), finite.
        bits: Widths from 2 to 8.
        method: A name in ``CLIPPING``.
        per_channel: One clip per output channel, or one for the tensor.

    Returns:
        Bits to clips, (out,) or (1,), at most the largest magnitude; 1.0 where all are zero.

    Raises:
        ValueError: The tensor is empty or holds a value that is not a finite number.
        HaqError: There is no such method.
    """
    return _clips(weight.flatten(1) if per_channel else weight.reshape(1, -1), bits, True, method)


def activation_clips(
    values: Tensor, bits: Sequence[int], signed: bool, method: str = "kl"
) -> dict[int, float]:
    """Return where to clip a tensor of activations at each bit-width.

    Args:
        values: A sample (N,), finite.
        bits: Widths from 2 to 8.
        signed: Whether the tensor can be negative.
        method: A name in ``CLIPPING``.

    Returns:
        Bits to clip; 1.0 where all values are zero.

    Raises:
        ValueError: The sample is empty, holds a value that is not a finite number, or a negative
            one although it is not signed.
        HaqError: There is no such method.
    """
    if not signed and values.numel() and bool((values < 0).any()):
        raise ValueError(f"an unsigned tensor has a value of {float(values.min()):g}")
    clips = _clips(values.reshape(1, -1), bits, signed, method)
    return {width: float(clip) for width, clip in clips.items()}


def _clips(rows: Tensor, bits: Sequence[int], signed: bool, method: str) -> dict[int, Tensor]:
    choose = look_up(CLIPPING, "clipping", method)
    if rows.numel() == 0:
        raise ValueError("there is nothing to calibrate on: the tensor is empty")
    bad = int((~torch.isfinite(rows)).sum())
    if bad:
        raise ValueError(f"{bad} of {rows.numel()} values are not finite numbers")
    magnitudes = rows.detach().float().abs()
    highest = magnitudes.amax(1)  # (rows,)
    # A row's own scale: powers of two change nothing, and nothing under- or overflows.
    scale = torch.where(highest > NOTHING, torch.exp2(torch.floor(torch.log2(highest))), 1.0)
    tops = [levels(width, signed)[1] for width in bits]
    clips = choose(magnitudes / scale[:, None], tops) * scale
    clips = torch.where(highest > NOTHING, clips, 1.0)
    return dict(zip(bits, clips, strict=True))


def _maximum(magnitudes: Tensor, tops: Sequence[int]) -> Tensor:
    return magnitudes.amax(1).expand(len(tops), -1)


def _percentile(magnitudes: Tensor, tops: Sequence[int]) -> Tensor:
    place = max(1, math.ceil(PERCENTILE * magnitudes.shape[1]))
    clip = magnitudes.kthvalue(place, dim=1).values
    return torch.where(clip > 0, clip, magnitudes.amax(1)).expand(len(tops), -1)


def _mean_squared_error(magnitudes: Tensor, tops: Sequence[int]) -> Tensor:
    return _searched(magnitudes, tops, _squared_errors)


def _divergence(magnitudes: Tensor, tops: Sequence[int]) -> Tensor:
    return _searched(magnitudes, tops, _divergences)


CLIPPING: Mapping[str, Method] = {
    "kl": _divergence,
    "mse": _mean_squared_error,
    "percentile": _percentile,
    "max": _maximum,
}

Loss = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""From shares (rows, BINS + 1) of the values at places (BINS + 1,), the clips tried and the levels
on each side of zero, to what each clip loses, (rows, clips). Unit: standard deviations."""


def _searched(magnitudes: Tensor, tops: Sequence[int], loss: Loss) -> Tensor:
    """Return for each number of levels and each row the clip that loses least."""
    parts = [_searched_part(part, tops, loss) for part in torch.split(magnitudes, 256)]
    return torch.cat(parts, 1)


def _searched_part(magnitudes: Tensor, tops: Sequence[int], loss: Loss) -> Tensor:
    deviation = _deviations(magnitudes)  # (rows,)
    scaled = (magnitudes / deviation[:, None]).clamp_max(FARTHEST)
    highest = scaled.amax(1)
    reach = max(float(highest.max()), SMALLEST * 1.01)
    places = torch.linspace(0, reach, BINS + 1)
    shares = _shares(scaled, reach)
    tried = torch.logspace(math.log2(reach), math.log2(SMALLEST), CANDIDATES, base=2.0)
    # Of the clips above a row's highest value only the next one is worth trying.
    ratio = tried[0] / tried[1] * 1.0001
    useless = tried[None, :] > highest[:, None] * ratio
    chosen = []
    for top in tops:
        lost = loss(shares, places, tried, top).masked_fill(useless, math.inf)
        clip = torch.minimum(tried[lost.argmin(1)], highest)
        chosen.append(clip * deviation)
    return torch.stack(chosen)


def _deviations(magnitudes: Tensor) -> Tensor:
    """Return each row's root mean square without its zeros, little moved by outliers."""
    ordered = magnitudes.sort(1).values
    count = (ordered > 0).sum(1, keepdim=True)
    middle = ordered.shape[1] - count + count // 2
    median = ordered.gather(1, middle.clamp_max(ordered.shape[1] - 1))
    squares = torch.minimum(ordered, 16 * median).double().square().sum(1, keepdim=True)
    deviation = (squares / count.clamp_min(1)).sqrt().float()[:, 0]
    return torch.where(deviation > 0, deviation, 1.0)


def _shares(scaled: Tensor, reach: float) -> Tensor:
    """Return the share of each row's values in each bin, without the zeros: they stay zeros."""
    rows = torch.arange(len(scaled))[:, None] * (BINS + 1)
    bins = (scaled / reach * BINS).round().long() + rows
    counts = torch.bincount(bins.flatten(), minlength=len(scaled) * (BINS + 1))
    counts = counts.view(len(scaled), BINS + 1).float()
    counts[:, 0] -= (scaled == 0).sum(1)
    return counts / counts.sum(1, keepdim=True).clamp_min(1)


def _squared_errors(shares: Tensor, places: Tensor, tried: Tensor, top: int) -> Tensor:
    step = tried[:, None] / top  # (clips, 1)
    rounded = step * (places / step).round().clamp_max(top)  # (clips, bins)
    return shares @ (rounded - places).square().T


def _divergences(shares: Tensor, places: Tensor, tried: Tensor, top: int) -> Tensor:
    width = max(0.5 * STEPS[top], float(places[-1]) / 128)
    seen = torch.arange(0, float(places[-1]) + 4 * width, width / 2)  # (seen,)
    original = shares @ _blurred(places, seen, width)  # (rows, seen)
    step = tried[:, None] / top  # (clips, 1)
    grid = step * torch.arange(top + 1)  # (clips, levels)
    edges = torch.cat([grid[:, 1:] - step / 2, torch.full_like(step, math.inf)], 1)
    below = torch.cat([torch.zeros(len(shares), 1), shares.cumsum(1)], 1)
    ends = torch.searchsorted(places, edges.contiguous())  # (clips, levels)
    ends = torch.cat([torch.zeros_like(ends[:, :1]), ends], 1)
    masses = below[:, ends].diff(dim=2).transpose(0, 1)  # (clips, rows, levels)
    quantized = torch.bmm(masses.contiguous(), _blurred(grid, seen, width))  # (clips, rows, seen)
    tiny = 1e-30
    surprise = (original + tiny).log() - (quantized + tiny).log()
    return (original * surprise).sum(2).T


def _blurred(places: Tensor, seen: Tensor, width: float) -> Tensor:
    """Return what a value at each place becomes: a Gaussian, mirrored at zero, of total one."""
    near = (seen - places[..., None]) / width
    mirrored = (seen + places[..., None]) / width
    density = (-near.square() / 2).exp() + (-mirrored.square() / 2).exp()
    return density / density.sum(-1, keepdim=True)
