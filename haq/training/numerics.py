"""In which number format and memory layout networks compute on this CPU."""

from functools import cache
from typing import TypeVar, overload

import torch
from torch import Tensor, nn

from haq.network.inputs import Batch, Inputs

Model = TypeVar("Model", bound=nn.Module)


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


def in_channels_last(model: Model) -> Model:
    """Bring the weights of 2-D convolutions to that layout, in place, and return the model."""
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.dim() == 4:  # Module.to(memory_format=...) fails at five axes
                # Not contiguous(), which keeps the strides of what is contiguous in both layouts.
                value.data = value.data.clone(memory_format=torch.channels_last)
    return model


@cache
def has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 natively (AMX or AVX512-BF16)."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
