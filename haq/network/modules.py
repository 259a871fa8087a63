"""PyTorch's plain modules that are layers, and how their weights lie."""

from typing import Any

from torch import Tensor, nn

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
"""Weights (in, out / groups, ...): those of an output do not lie along the first axis."""

Product = Convolution | Transposed | nn.Linear
"""Multiplies what it reads with its weights."""

Lookup = nn.Embedding
"""Reads rows of its weights: no products, and no activations to quantize."""


class Matrix(nn.Module):
    """Gives its weights to an operation that has several, such as an LSTM."""

    weight: nn.Parameter

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self) -> Tensor:
        """Return the weights (outputs, ...)."""
        return self.weight


LayerModule = Product | Lookup | Matrix

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

PRODUCTS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)

LOOKUPS = (nn.Embedding,)

LAYERS = (*PRODUCTS, *LOOKUPS, Matrix)


def plain(module: nn.Module) -> type[nn.Module]:
    """Return the type in the tables above that a layer has, quantized or not."""
    return next(kind for kind in LAYERS if isinstance(module, kind))


def bias_of(module: nn.Module) -> Tensor | None:
    """Return the bias of a layer, if it has one."""
    bias: Tensor | None = getattr(module, "bias", None)
    return bias


def inputs_of(module: LayerModule) -> int:
    """Return the channels or features that a layer reads; of a lookup the rows it has."""
    if isinstance(module, Convolution | Transposed):
        return module.in_channels
    if isinstance(module, Matrix):
        return module.weight.shape[1]
    return module.in_features if isinstance(module, nn.Linear) else module.num_embeddings


def outputs_of(module: LayerModule) -> int:
    """Return the channels or features that a layer gives."""
    if isinstance(module, Convolution | Transposed):
        return module.out_channels
    if isinstance(module, Matrix):
        return module.weight.shape[0]
    return module.out_features if isinstance(module, nn.Linear) else module.embedding_dim


def along_weight(values: Tensor, module: nn.Module) -> Tensor:
    """Return one value for each scale of a layer's weights so that it broadcasts against them.

    Args:
        values: (scales,), or (1,) for all.
        module: The layer.
    """
    weight: Any = module.weight
    ones = (1,) * (weight.dim() - 1)
    if len(values) == 1 or not isinstance(module, Transposed):
        return values.view(-1, *ones)  # (out or 1, 1, ...)
    deep = module.in_channels // module.groups
    each = values.view(module.groups, 1, -1).expand(-1, deep, -1)  # (groups, in, out of each)
    return each.reshape(*weight.shape[:2], *ones[1:])


def outputs_first(weight: Tensor, module: nn.Module) -> Tensor:
    """Return the weights of a layer with one output, or one row, along the first axis."""
    if not isinstance(module, Transposed):
        return weight
    sizes, groups = weight.shape, module.groups
    parts = weight.view(groups, -1, *sizes[1:]).transpose(1, 2)  # (groups, out, in of each, ...)
    return parts.reshape(groups * sizes[1], -1, *sizes[2:])


def as_weight(values: Tensor, module: nn.Module) -> Tensor:
    """Return values that lie as ``outputs_first`` gives them as the layer has its weights."""
    if not isinstance(module, Transposed):
        return values
    sizes, groups = values.shape, module.groups
    parts = values.view(groups, -1, *sizes[1:]).transpose(1, 2)
    return parts.reshape(groups * sizes[1], -1, *sizes[2:])
