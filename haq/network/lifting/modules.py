"""PyTorch's plain modules for the operations that need one: layers, BatchNorms, dropout."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from haq.network.modules import CONVOLUTIONS, TRANSPOSED, Convolution, LayerModule, Transposed

aten = torch.ops.aten

DROPOUTS = {
    aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
}  # fmt: skip

DROPOUT_MODULES = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip


class Constant(nn.Module):
    """Gives a tensor that a forward makes of nothing; it is no part of the network's state."""

    value: Tensor

    def __init__(self, value: Tensor):
        super().__init__()
        self.register_buffer("value", value, persistent=False)

    def forward(self) -> Tensor:
        """Return the tensor."""
        return self.value


def _convolution(
    weight: Tensor,
    stride: Any = (1,),
    padding: Any = (0,),
    dilation: Any = (1,),
    groups: int = 1,
) -> Convolution:
    kernel: Any = tuple(weight.shape[2:])
    kind = CONVOLUTIONS[len(kernel) - 1]
    return kind(
        weight.shape[1] * groups, weight.shape[0], kernel, _each(stride, kernel),
        padding if isinstance(padding, str) else _each(padding, kernel), _each(dilation, kernel),
        groups, bias=False, device="meta",
    )  # fmt: skip


def _transposed(
    weight: Tensor,
    stride: Any = (1,),
    padding: Any = (0,),
    output_padding: Any = (0,),
    groups: int = 1,
    dilation: Any = (1,),
) -> Transposed:
    kernel: Any = tuple(weight.shape[2:])
    kind = TRANSPOSED[len(kernel) - 1]
    return kind(
        weight.shape[0], weight.shape[1] * groups, kernel, _each(stride, kernel),
        _each(padding, kernel), _each(output_padding, kernel), groups, bias=False,
        dilation=_each(dilation, kernel), device="meta",
    )  # fmt: skip


def _each(values: Any, kernel: Sequence[int]) -> Any:
    """Return a value for every side of a kernel."""
    sides = tuple(values)
    return sides * len(kernel) if len(sides) == 1 else sides


def _linear(weight: Tensor) -> nn.Linear:
    return nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")


def _embedding(weight: Tensor) -> nn.Embedding:
    return nn.Embedding(weight.shape[0], weight.shape[1], device="meta")


# From the weight and what follows the bias to a layer without parameters.
BUILDERS: Mapping[Any, Callable[..., LayerModule]] = {
    aten.conv1d.default: _convolution,
    aten.conv1d.padding: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten.conv3d.default: _convolution,
    aten.conv3d.padding: _convolution,
    aten.conv_transpose1d.default: _transposed,
    aten.conv_transpose2d.input: _transposed,
    aten.conv_transpose3d.input: _transposed,
    aten.linear.default: _linear,
    aten.embedding.default: _embedding,
}


def plain_norm(own: _BatchNorm, axes: int, eps: float) -> nn.Module:
    """Return PyTorch's plain BatchNorm with the parameters and statistics of another."""
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[axes]
    norm = kind(own.num_features, eps, own.momentum, False, own.running_mean is not None, "meta")
    for name, value in own.named_buffers(recurse=False):
        if name in norm._buffers:
            norm._buffers[name] = value
    norm.weight, norm.bias = own.weight, own.bias
    norm.affine = own.weight is not None
    if norm.affine and norm.bias is None:
        norm.bias = nn.Parameter(torch.zeros_like(own.weight), requires_grad=False)
    return norm


def parts_of(norm: _BatchNorm) -> list[int]:
    """Return by id what a BatchNorm computes with: weight, bias, mean and variance."""
    return [id(part) for part in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
