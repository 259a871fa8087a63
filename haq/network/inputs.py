"""Inputs to try a network on, where no data are at hand."""

from collections.abc import Sequence

import torch
from torch import Tensor


def random_inputs(shape: Sequence[int], count: int = 1, tokens: int | None = None) -> Tensor:
    """Return ``count`` inputs of a shape, the same every time.

    Args:
        shape: Of one input.
        count: How many.
        tokens: How many values an input of tokens may have, from 0 up; None for inputs of floats.

    Returns:
        Normal random numbers, or int64, (count, ...).

    >>> random_inputs((3,), tokens=1)
    tensor([[0, 0, 0]])
    """
    generator = torch.Generator().manual_seed(0)
    if tokens is not None:
        return torch.randint(tokens, (count, *shape), generator=generator)
    return torch.randn(count, *shape, generator=generator)


def blank_input(shape: Sequence[int], tokens: int | None = None) -> Tensor:
    """Return an input of zeros (1, ...), which every network takes; ``tokens`` as above."""
    return torch.zeros(1, *shape, dtype=torch.float32 if tokens is None else torch.int64)
