"""Where to clip: for every bit-width the bound beyond which a tensor's values are cut off.

Clipping is chosen by the Kullback-Leibler divergence between the original distribution and the
quantized one. Taken literally, between histograms, that fails on weights: a channel of a few
hundred values leaves most bins empty, and spreading a level's values over the occupied bins only
gives the original back, so that nearly every clip looks perfect but for what it cuts off. Here
the quantized distribution is what it is, a few levels, with all that lies beyond the clip on the
last one; and both distributions are blurred by the same Gaussian, half as wide as the step of a
good quantizer of as many bits.

Exact zeros stay zeros whatever the clip is, so that they have no say in where to clip.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from haq.errors import look_up
from haq.quantization.quantizer import levels

BINS = 2048
"""Bins from zero to a row's largest magnitude."""
FINE, COARSE = 1.02, 1.07
"""From one clip tried to the next: a divergence changes slowly, and takes longer to work out."""
SMALLEST = 0.5
"""The lowest clip tried, in root mean squares of the row."""
RARE, FAR = 10_000, 4.0
"""At most one value in ``RARE`` is an accident, where it is more than ``FAR`` times as large as all
others: it counts as if it were ``FAR`` times as large."""
PERCENTILE = 0.999
"""Share of the values other than zero within the clip: all of them, where there are under 1000."""
BLUR = 0.5
"""Width of the Gaussian, in steps of the quantizer that suits a normal distribution best."""
FINEST = 0.15
"""The least width, in root mean squares, times the fifth root of the number of values: of a finer
structure than that a sample knows nothing."""
GAPLESS = 1.0
"""Steps up to so many widths of the Gaussian leave no gaps: the sum of Gaussians so far apart is
level to one in 10**8."""
NOTHING = 1e-30
"""What is left of a Gaussian some 12 widths away; added so that no logarithm is infinite."""
AT_ONCE = 2**23
"""Values that are copied to work out their clips."""
TINY = 2.0**-100
"""Below this everything is zero: the step would leave float32's normal range."""

STEPS = {1: 1.224, 3: 0.6508, 7: 0.3534, 15: 0.19, 31: 0.1031, 63: 0.0555, 127: 0.0297, 255: 0.0158}
"""Levels on each side of zero to the step, in standard deviations, of the uniform quantizer that
suits a normal distribution best: Max, "Quantizing for minimum distortion", 1960, doi
10.1109/TIT.1960.1057548, and by the same equations for the number of levels used here."""

Method = Callable[[Tensor, Sequence[int]], Tensor]
"""From magnitudes (rows, values), not all zero in any row, and the levels on each side of zero, one
number per bit-width, to the clips (bit-widths, rows), at most each row's largest magnitude."""


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
        Bits to clips, (out,) or (1,), float32, at most the largest magnitude; 1.0 where all weights
        are zero (or below 1e-30, where float32 has no room for a step).

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
        Bits to clip, at most the largest magnitude; 1.0 where all values are zero.

    Raises:
        ValueError: The sample is empty, holds a value that is not a finite number, or a negative
            one although it is not signed.
        HaqError: There is no such method.
    """
    negative = 0 if signed else int((values < 0).sum())
    if negative:
        raise ValueError(
            f"{negative} of {values.numel()} values of an unsigned tensor are negative,"
            f" down to {float(values.min()):g}"
        )
    clips = _clips(values.reshape(1, -1), bits, signed, method)
    return {width: float(clip) for width, clip in clips.items()}


def _clips(rows: Tensor, bits: Sequence[int], signed: bool, method: str) -> dict[int, Tensor]:
    choose = look_up(CLIPPING, "clipping", method)
    tops = [levels(width, signed)[1] for width in bits]
    if rows.numel() == 0:
        raise ValueError("there is nothing to calibrate on: the tensor is empty")
    parts = rows.split(max(1, AT_ONCE // rows.shape[1]))
    bad = sum(int((~torch.isfinite(part)).sum()) for part in parts)
    if bad:
        raise ValueError(f"{bad} of {rows.numel()} values are not finite numbers")
    clips = torch.cat([_clips_of(part, tops, choose) for part in parts], 1)
    return dict(zip(bits, clips.to(rows.device), strict=True))


def _clips_of(rows: Tensor, tops: Sequence[int], choose: Method) -> Tensor:
    """Return clips (bit-widths, rows) of some rows, whose magnitudes are copied for it."""
    magnitudes = rows.detach().float().abs().cpu()
    alive = magnitudes.amax(1) >= TINY  # (rows,)
    clips = torch.ones(len(tops), len(rows))
    if bool(alive.any()):
        clips[:, alive] = choose(magnitudes[alive], tops)
    return clips


def _maximum(magnitudes: Tensor, tops: Sequence[int]) -> Tensor:
    return magnitudes.amax(1).expand(len(tops), -1)


def _percentile(magnitudes: Tensor, tops: Sequence[int]) -> Tensor:
    ordered = magnitudes.sort(1).values
    count = (ordered > 0).sum(1, keepdim=True)
    above = count - (PERCENTILE * count).ceil().long()  # values beyond the clip, (rows, 1)
    return ordered.gather(1, magnitudes.shape[1] - 1 - above)[:, 0].expand(len(tops), -1)


def _mean_squared_error(magnitudes: Tensor, tops: Sequence[int]) -> Tensor:
    return _searched(magnitudes, tops, _squared_errors, FINE)


def _divergence(magnitudes: Tensor, tops: Sequence[int]) -> Tensor:
    return _searched(magnitudes, tops, _divergences, COARSE)


CLIPPING: Mapping[str, Method] = {
    "kl": _divergence,
    "mse": _mean_squared_error,
    "percentile": _percentile,
    "max": _maximum,
}

Loss = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""From counts (rows, BINS + 1) of values at 0, 1 / BINS, ... 1, their root mean squares (rows,),
the clips tried and the levels on each side of zero, to what each clip loses, (rows, clips). The
unit is each row's largest magnitude."""


def _searched(magnitudes: Tensor, tops: Sequence[int], loss: Loss, ratio: float) -> Tensor:
    """Return for each number of levels and each row the clip that loses least."""
    parts = [_searched_part(part, tops, loss, ratio) for part in torch.split(magnitudes, 512)]
    return torch.cat(parts, 1)


def _searched_part(magnitudes: Tensor, tops: Sequence[int], loss: Loss, ratio: float) -> Tensor:
    highest = _highest(magnitudes)  # (rows,)
    counts = _counts((magnitudes / highest[:, None]).clamp_max(1))
    energy = counts.double() @ _places().double().square() / counts.double().sum(1)
    spread = energy.sqrt().float()  # (rows,)
    lowest = SMALLEST * spread
    tries = math.ceil(-math.log(float(lowest.min())) / math.log(ratio)) + 1
    tried = ratio ** -torch.arange(tries, dtype=torch.float32)  # from 1 down, (clips,)
    too_low = tried[None, :] < lowest[:, None]
    chosen = []
    for top in tops:
        lost = loss(counts, spread, tried, top).masked_fill(too_low, math.inf)
        chosen.append(tried[lost.argmin(1)] * highest)
    return torch.stack(chosen)


def _highest(magnitudes: Tensor) -> Tensor:
    """Return each row's largest magnitude, or what to take for it where that is an accident."""
    accidents = magnitudes.shape[1] // RARE
    if accidents == 0:
        return magnitudes.amax(1)
    largest = magnitudes.topk(accidents + 1, dim=1).values
    # Where there is little else than zeros, the few values that are not are no accident.
    usual = torch.where(largest[:, -1] > 0, FAR * largest[:, -1], largest[:, 0])
    return torch.minimum(largest[:, 0], usual)


def _places() -> Tensor:
    return torch.arange(BINS + 1) / BINS


def _counts(scaled: Tensor) -> Tensor:
    """Return how many of each row's values lie in each bin, without the zeros."""
    rows = torch.arange(len(scaled))[:, None] * (BINS + 1)
    bins = (scaled * BINS).round().long() + rows
    counts = torch.bincount(bins.flatten(), minlength=len(scaled) * (BINS + 1))
    counts = counts.view(len(scaled), BINS + 1)
    counts[:, 0] -= (scaled == 0).sum(1)
    return counts.float()


def _squared_errors(counts: Tensor, spread: Tensor, tried: Tensor, top: int) -> Tensor:
    step = tried[:, None] / top  # (clips, 1)
    rounded = step * (_places() / step).round().clamp_max(top)  # (clips, bins)
    return counts @ (rounded - _places()).square().T


def _divergences(counts: Tensor, spread: Tensor, tried: Tensor, top: int) -> Tensor:
    total = counts.sum(1)
    width = spread * torch.maximum(torch.tensor(BLUR * STEPS[top]), FINEST * total**-0.2)
    # Rows of about the same width share their tables.
    kinds = (width.log() / math.log(1.2)).round()  # (rows,)
    # Levels so close that blurring leaves no gap between them give the original, but for what is
    # cut off: nothing is gained by a lower clip, and these take longest to work out.
    fine = 1 / top <= GAPLESS * width
    lost = torch.arange(len(tried), dtype=torch.float32).repeat(len(counts), 1)
    for kind in kinds[~fine].unique():
        members = (kinds == kind) & ~fine
        shares = counts[members] / total[members, None]
        lost[members] = _blurred_divergences(shares, 1.2 ** float(kind), tried, top)
    return lost


def _blurred_divergences(shares: Tensor, width: float, tried: Tensor, top: int) -> Tensor:
    blurred = _blurred(max(width, 2 / BINS))  # (bins, seen)
    original = shares @ blurred  # (rows, seen)
    step = tried[:, None] / top  # (clips, 1)
    grid = step * torch.arange(top + 1)  # (clips, levels)
    nearest = (grid * BINS).round().long()
    quantized = torch.bmm(_masses(shares, grid, step), blurred[nearest])  # (clips, rows, seen)
    surprise = (original + NOTHING).log() - quantized.add_(NOTHING).log_()
    return torch.einsum("rs,crs->rc", original, surprise)


def _masses(shares: Tensor, grid: Tensor, step: Tensor) -> Tensor:
    """Return the share of each row's values that each clip sends to each level."""
    below = torch.cat([torch.zeros(len(shares), 1), shares.cumsum(1)], 1)  # (rows, bins + 1)
    inner = torch.searchsorted(_places(), grid[:, 1:] - step / 2)  # (clips, levels - 1)
    first, last = torch.zeros_like(inner[:, :1]), torch.full_like(inner[:, :1], BINS + 1)
    ends = torch.cat([first, inner, last], 1)
    return below[:, ends].diff(dim=2).transpose(0, 1).contiguous()  # (clips, rows, levels)


def _blurred(width: float) -> Tensor:
    """Return what a value at each place becomes: a Gaussian, mirrored at zero, of total one."""
    seen = torch.arange(0, 1 + 4 * width, width)
    places = _places()[:, None]
    near, mirrored = (seen - places) / width, (seen + places) / width
    density = _gaussian(near) + _gaussian(mirrored)
    return density / density.sum(1, keepdim=True)


def _gaussian(distance: Tensor) -> Tensor:
    # Cut off where float32 would turn to subnormal numbers, which are many times as slow.
    return (distance.square() / -2).clamp_min_(-70).exp_()
