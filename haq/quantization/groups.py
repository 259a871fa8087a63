"""Weights in groups: so many of a row share one scale, the last group of a row perhaps fewer.

The codes are all that their bits have, from ``-2**(bits - 1)`` to ``2**(bits - 1) - 1``, and a
scale may be negative: its sign says on which side of zero the code that the other side lacks lies.
Scales are numbers of float16, as they are stored: codes and scales give the weights exactly.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST = 2.0**-24
"""The smallest scale: that of float16."""

LARGEST = 65504.0
"""The largest one."""

TRIED = 20
"""Scales of each sign that are tried for a group."""

NARROWEST = {2: 0.55, 3: 0.55, 4: 0.6, 5: 0.7, 6: 0.8, 7: 0.85, 8: 0.9}
"""Bits to the smallest range that is tried, as a share of a group's largest magnitude."""

PART = 2**17
"""Weights whose scales are searched for at once: what a core's cache holds."""


def ends(bits: int) -> tuple[int, int]:
    """Return the lowest and the highest code.

    >>> ends(2), ends(8)
    ((-2, 1), (-128, 127))
    """
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def in_blocks(rows: Tensor, block: int) -> Tensor:
    """Return rows (rows, columns) as groups (rows, groups, block), the last ones filled with 0."""
    missing = -rows.shape[-1] % block
    parts: Tensor = functional.pad(rows, (0, missing)).unflatten(-1, (-1, block))
    return parts


def along_columns(scales: Tensor, block: int, columns: int) -> Tensor:
    """Return scales (rows, groups) for each weight: (rows, columns)."""
    return scales.repeat_interleave(block, -1)[..., :columns]


def group_scales(weight: Tensor, bits: int, block: int, importance: Tensor | None = None) -> Tensor:
    """Return the scales with the least squared error, (rows, groups), of float16's numbers.

    Args:
        weight: (rows, columns), finite.
        bits: From 2 to 8.
        block: Weights of a group.
        importance: (columns,): weights of the squared errors; all equal if None.
    """
    weight = weight.detach().float()
    if importance is None:
        importance = torch.ones(weight.shape[1])
    weights = in_blocks(importance[None].float(), block)[0]  # (groups, block)
    parts = weight.split(max(1, PART // max(weight.shape[1], 1)))
    return torch.cat([_scales(in_blocks(part, block), bits, weights) for part in parts])


def _scales(groups: Tensor, bits: int, importance: Tensor) -> Tensor:
    place = groups.abs().argmax(-1, keepdim=True)
    farthest = groups.gather(-1, place)  # (rows, groups, 1), with its sign
    least = torch.full_like(farthest, torch.inf)
    best = torch.ones_like(farthest)
    for scale in _candidates(farthest, bits):
        error = (rounded_codes(groups, scale, bits) * scale).sub_(groups).square_()
        lost = (error * importance).sum(-1, keepdim=True)
        better = lost < least
        least, best = torch.where(better, lost, least), torch.where(better, scale, best)
    # Where all weights are zero any scale will do.
    return torch.where(farthest == 0, 1.0, best)[..., 0]


def _candidates(farthest: Tensor, bits: int) -> Iterator[Tensor]:
    """Yield scales that put a share of the farthest weight on the lowest or the highest code."""
    low, high = ends(bits)
    for share in (1.0, *torch.linspace(1.05, NARROWEST[bits], TRIED).tolist()):
        for size in (farthest / low, farthest / high):
            yield stored(size * share)


def stored(scales: Tensor) -> Tensor:
    """Return the nearest numbers of float16 that are not zero, as float32."""
    size = scales.abs().clamp(SMALLEST, LARGEST).half().float()
    return torch.where(scales < 0, -size, size)


def rounded_codes(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the nearest codes as floats, halves to even; the scale broadcasts."""
    return torch.div(weight, scale).round_().clamp_(*ends(bits))


def group_codes(weight: Tensor, scales: Tensor, bits: int, block: int) -> Tensor:
    """Return the codes of weights (rows, columns), int8."""
    each = along_columns(scales, block, weight.shape[-1])
    return rounded_codes(weight.detach(), each, bits).to(torch.int8)


def round_groups(weight: Tensor, scales: Tensor, bits: int, block: int) -> Tensor:
    """Return weights (rows, columns) on their grid; gradients pass within it."""
    result: Tensor = _Round.apply(weight, along_columns(scales, block, weight.shape[-1]), bits)
    return result


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.bits = bits
        return rounded_codes(weight, scale, bits).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, scale = ctx.saved_tensors
        low, high = ends(ctx.bits)
        places = weight / scale
        return grads[0] * ((places >= low - 0.5) & (places <= high + 0.5)), None, None
