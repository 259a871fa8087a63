"""The integer form of the layers of a quantized network: what a runtime multiplies and adds.

BatchNorm folds into the layer before it. The codes of the weights stay as they are, up to the sign;
only the scales change. Biases are whole numbers in steps of (scale of the input) x (scale of the
weights), which is coarse where both have few bits. So narrow codes are multiplied by a power of two
and their scale is divided by it; no code of up to 7 bits grows beyond 64, with which no 8-bit
kernel overflows.
"""

from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from haq.allocation.policy import FLOAT
from haq.network.operators import LayerModule, values_of
from haq.quantization.bn_folding import Norm, affine, fold_norms, norms_of
from haq.quantization.fake_quant import QuantConv2d, QuantLinear, Rounding
from haq.quantization.quantizer import codes, step


class Folded(NamedTuple):
    """A layer after folding.

    Attributes:
        weight: (out, in, ...): int8 codes, or float32 where there is no scale.
        scale: (out,) float32: what a code is worth.
        bias: (out,) float64.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None


def layers(network: fx.GraphModule) -> list[str]:
    """Return the names of the convolutions and linear layers that a quantized network calls."""
    called = {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
    return [
        name for name, module in network.named_modules()
        if name in called and type(module) in (nn.Conv2d, nn.Linear, QuantConv2d, QuantLinear)
    ]  # fmt: skip


def stretch(bits: int) -> int:
    """Return by how much the codes of weights are multiplied."""
    return int(2 ** max(0, 7 - bits))


_LARGEST = 2**30
"""Of a bias in whole numbers: the sums of products need the rest of 32 bits."""


def fold(layer: LayerModule, norm: Norm | None, unit: Tensor | None = None) -> Folded:
    """Return a layer with the BatchNorm behind it as one; codes are multiplied by ``stretch``.

    A channel whose bias would not fit into 32 bits, because its products are worth next to nothing,
    has codes of zero and a scale with which the bias fits.

    Args:
        layer: Of a quantized network, or a float one.
        norm: The BatchNorm behind it.
        unit: What a code of its input is worth; None where the input has no codes.
    """
    weight = layer.weight.detach()
    column = (-1, *(1,) * (weight.dim() - 1))
    factor, bias = _affine(layer, norm)
    if not isinstance(layer, QuantConv2d | QuantLinear):
        return Folded((weight.double() * factor.view(column)).float(), None, bias)
    clip = layer.weight_clip.view(column)
    code = codes(weight, layer.weight_bits, clip) * factor.sign().to(torch.int8).view(column)
    times = stretch(layer.weight_bits)
    scale = step(layer.weight_bits, clip, signed=True).flatten().double() * factor.abs() / times
    # A channel that BatchNorm switches off: its codes are zero, and any scale will do.
    dead = scale < torch.finfo(torch.float32).tiny
    scale = torch.where(dead, 1.0, scale)
    if unit is not None and bias is not None:
        least = bias.abs() / (_LARGEST * unit.double())
        dead = dead | (scale < least)
        scale = torch.maximum(scale, least)
    code[dead.expand(len(code))] = 0
    return Folded(code * times, scale.float(), bias)


def _affine(layer: LayerModule, norm: Norm | None) -> tuple[Tensor, Tensor | None]:
    """Return what the products of a channel are multiplied by, and what is added: float64."""
    bias = None if layer.bias is None else layer.bias.detach().double()
    if norm is None:
        return torch.ones(len(layer.weight), dtype=torch.float64), bias
    multiplier, offset = (part.double() for part in affine(norm))
    return multiplier, offset if bias is None else offset + multiplier * bias


def convert_to_integers(network: fx.GraphModule) -> None:
    """Give a network, in place, the form in which integer kernels compute it.

    It is the last step after fine-tuning, so that the network computes what its file will:
    BatchNorms are folded, and biases are rounded to the whole numbers that are added. What is left
    of a BatchNorm is its bias.
    """
    fold_norms(network)
    norms = norms_of(network)
    for name, scale in _input_scales(network).items():
        layer = network.get_submodule(name)
        norm = network.get_submodule(norms[name]) if name in norms else None
        assert isinstance(layer, QuantConv2d | QuantLinear)
        assert norm is None or isinstance(norm, Norm)
        folded = fold(layer, norm, scale)
        if folded.bias is not None:
            assert folded.scale is not None
            with torch.no_grad():
                layer.weight[(folded.weight == 0).flatten(1).all(1)] = 0
            unit = (folded.scale * scale).double()
            _move_bias(layer, norm, (folded.bias / unit).round() * unit - folded.bias)


def _input_scales(network: fx.GraphModule) -> dict[str, Tensor]:
    """Return what a code of the input is worth, for the layers that compute with integers."""
    found: dict[str, set[float]] = {}
    for node in network.graph.nodes:
        if node.op != "call_module":
            continue
        if isinstance(network.get_submodule(str(node.target)), QuantConv2d | QuantLinear):
            source = values_of(node.all_input_nodes[0])
            module = source.op == "call_module" and network.get_submodule(str(source.target))
            if isinstance(module, Rounding) and module.bits != FLOAT:
                size = step(module.bits, module.clip, module.signed)
                found.setdefault(str(node.target), set()).add(float(size))
    # A layer that reads tensors on several grids has no one unit for its bias.
    return {name: torch.tensor(sizes.pop()) for name, sizes in found.items() if len(sizes) == 1}


def _move_bias(layer: LayerModule, norm: Norm | None, difference: Tensor) -> None:
    with torch.no_grad():
        if norm is None:
            assert layer.bias is not None
            layer.bias.copy_(layer.bias.double() + difference)
        elif norm.affine:
            norm.bias.copy_(norm.bias.double() + difference)
        else:
            assert norm.running_mean is not None
            multiplier, _ = affine(norm)
            norm.running_mean.copy_(norm.running_mean.double() - difference / multiplier)
