"""PyTorch's plain modules for the operations that need one: layers, BatchNorms, dropout."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from haq.network.modules import LayerModule

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
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
) -> nn.Conv2d:
    return nn.Conv2d(
        weight.shape[1] * groups, weight.shape[0], (weight.shape[2], weight.shape[3]),
        tuple(stride),
        padding if isinstance(padding, str) else tuple(padding), tuple(dilation), groups,
        bias=False, device="meta",
    )  # fmt: skip


def _linear(weight: Tensor) -> nn.Linear:
    return nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")


def _embedding(weight: Tensor) -> nn.Embedding:
    return nn.Embedding(weight.shape[0], weight.shape[1], device="meta")


# From the weight and what follows the bias to a layer without parameters.
BUILDERS: Mapping[Any, Callable[..., LayerModule]] = {
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
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
