"""Activations that a layer rounds to 8 bits by itself, as it runs.

The scales follow from the values, so that nothing is calibrated:

- ``round_tokens``: each row by itself (with groups each block of a row), symmetric, codes to 127.
- ``round_tensor``: all values of a call together, with a zero point, codes from 0 to 255, as ONNX's
  DynamicQuantizeLinear does. What else is in a batch then changes an answer.
"""

import torch
from torch import Tensor

from haq.quantization.groups import in_blocks

TOP = 127
"""The highest code of a row, counted from zero."""

TINY = 1e-30
"""What a row's largest magnitude is at least taken for, so that a row of zeros has a scale."""


def round_tokens(x: Tensor, block: int = 0) -> Tensor:
    """Return each row (..., columns) on its grid; gradients pass straight through.

    Args:
        x: Floats.
        block: Values with a scale of their own; 0: a whole row.
    """
    with torch.no_grad():
        on_grid = _blocks(x, block) if block else _rows(x)
    return x + (on_grid - x.detach()) if x.requires_grad else on_grid


def _rows(x: Tensor) -> Tensor:
    scale = token_scales(x)
    return torch.div(x, scale).round_().mul_(scale)


def token_scales(x: Tensor) -> Tensor:
    """Return what a code of each row is worth, (..., 1)."""
    return x.abs().amax(-1, keepdim=True).clamp_min(TINY) / TOP


def _blocks(x: Tensor, block: int) -> Tensor:
    # As the kernel of MatMulNBits does: it multiplies by the reciprocal.
    parts = in_blocks(x, block)
    scale = parts.abs().amax(-1, keepdim=True) / TOP
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    return (parts * inverse).round_().mul_(scale).flatten(-2)[..., : x.shape[-1]]


def round_tensor(x: Tensor) -> Tensor:
    """Return all values on one grid; gradients pass straight through."""
    with torch.no_grad():
        low, high = x.amin().clamp_max(0), x.amax().clamp_min(0)
        scale = (high - low) / 255
        scale = torch.where(scale > 0, scale, 1.0)
        zero = (-low / scale).round_().clamp_(0, 255)
        codes = (torch.div(x, scale).round_() + zero).clamp_(0, 255)
        on_grid = (codes - zero) * scale
    return x + (on_grid - x.detach()) if x.requires_grad else on_grid
