"""In which number format and memory layout networks compute on this CPU."""

from functools import cache
from typing import overload

import torch
from torch import Tensor

from haq.network.inputs import Batch, Inputs


@overload
def channels_last(images: Tensor) -> Tensor: ...


@overload
def channels_last(images: Inputs) -> Inputs: ...


def channels_last(images: Inputs) -> Inputs:
    """Return images (N, C, H, W) in the layout that convolutions are fastest in, else the same."""
    if isinstance(images, Batch):
        return images.map(channels_last)
    image = images.dim() == 4
    return images.contiguous(memory_format=torch.channels_last) if image else images


@cache
def has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 natively (AMX or AVX512-BF16)."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
