"""PyTorch's plain modules that are layers, and how their weights lie."""

from torch import Tensor, nn

Product = nn.Conv2d | nn.Linear
"""Multiplies what it reads with its weights."""

Lookup = nn.Embedding
"""Reads rows of its weights: no products, and no activations to quantize."""

LayerModule = Product | Lookup

PRODUCTS = (nn.Conv2d, nn.Linear)

LOOKUPS = (nn.Embedding,)

LAYERS = PRODUCTS + LOOKUPS


def bias_of(module: nn.Module) -> Tensor | None:
    """Return the bias of a layer, if it has one."""
    bias: Tensor | None = getattr(module, "bias", None)
    return bias


def along_weight(values: Tensor, weight: Tensor) -> Tensor:
    """Return one value for each scale, or one for all, in a shape that broadcasts.

    Args:
        values: (scales,) or (1,).
        weight: Of a layer, its scales along the first axis.
    """
    return values.view(-1, *(1,) * (weight.dim() - 1))  # (scales or 1, 1, ...)


def plain(module: nn.Module) -> type[nn.Module]:
    """Return the type in the tables above that a layer has, quantized or not."""
    return next(kind for kind in LAYERS if isinstance(module, kind))


def inputs_of(module: LayerModule) -> int:
    """Return the channels or features that a layer reads; of a lookup the rows it has."""
    if isinstance(module, nn.Conv2d):
        return module.in_channels
    return module.in_features if isinstance(module, nn.Linear) else module.num_embeddings


def outputs_of(module: LayerModule) -> int:
    """Return the channels or features that a layer gives."""
    if isinstance(module, nn.Conv2d):
        return module.out_channels
    return module.out_features if isinstance(module, nn.Linear) else module.embedding_dim
