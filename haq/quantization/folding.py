"""A layer and the BatchNorm behind it as the integers that a kernel multiplies and adds.

BatchNorm folds into the layer before it. The codes of the weights stay as they are, up to the sign;
only the scales change. Biases are whole numbers in steps of (scale of the input) x (scale of the
weights), which is coarse where both have few bits. So narrow codes are multiplied by a whole number
and their scale is divided by it, as far as 8-bit kernels have room for it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from haq.allocation.policy import FLOAT
from haq.network.modules import LayerModule, Product, Transposed, outputs_first, outputs_of
from haq.network.operators import values_of
from haq.quantization.bn_folding import Norm, affine
from haq.quantization.fake_quant import Quantized, Rounding
from haq.quantization.quantizer import codes, levels, step

LARGEST_CODE = 127
"""Of a weight in an 8-bit kernel."""

LARGEST_PAIR = 32_767
"""Of the sum of two products of codes: x86 kernels without VNNI add two in 16 bits."""

LARGEST_BIAS = 2**30
"""Of a bias in whole numbers: the sums of products need the rest of 32 bits."""

BIAS_DIGITS = 20
"""Binary digits of the bias of a channel whose codes are all zero, so that any scale will do."""

SMALLEST_UNIT = 2.0**-120
"""Of a bias: float32 has no room for smaller ones."""


class InputGrid(NamedTuple):
    """The codes of the tensor that a layer reads.

    Attributes:
        step: What a code is worth, a float32 scalar.
        top: The highest code, counted from 0 as uint8 are.
    """

    step: Tensor
    top: int


class Folded(NamedTuple):
    """A layer after folding.

    Attributes:
        weight: (out, in, ...), also of a transposed convolution: int8 codes, or float32 where there
            is no scale.
        scale: (out,) float32: what a code is worth.
        bias: (out,) float64.
        factor: What the codes of the quantizer were multiplied by.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None
    factor: int = 1


def layers(network: fx.GraphModule) -> list[str]:
    """Return the names of the layers that a quantized network calls."""
    called = {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
    return [
        name for name, module in network.named_modules()
        if name in called and isinstance(module, LayerModule)
    ]  # fmt: skip


def rescale_to_kernel_range(bits: int, top: int) -> int:
    """Return the largest factor of weight codes for which no 8-bit kernel overflows.

    A kernel takes int8 codes and adds two products in 16 bits on x86 CPUs without VNNI::

        factor * code <= 127    and    2 * top * factor * code <= 32767

    It is 1 where the codes are too large already.

    Args:
        bits: Of the weights.
        top: The highest code of the activations.

    >>> [rescale_to_kernel_range(bits, top=255) for bits in (2, 3, 4, 8)]
    [64, 21, 9, 1]
    """
    room = min(LARGEST_CODE, LARGEST_PAIR // (2 * top))
    return max(1, room // levels(bits, signed=True)[1])


def fold(
    layer: Product, norm: Norm | None, grid: InputGrid | None = None, rescaled: bool = True
) -> Folded:
    """Return a layer with the BatchNorm behind it as one, its codes in the range of 8-bit kernels.

    A channel whose codes are all zero has a scale with which its bias is exact to some 20 binary
    digits. So has one whose bias would not fit into 32 bits, because its products are worth next to
    nothing; its codes become zero.

    Args:
        layer: Of a quantized network, or a float one.
        norm: The BatchNorm behind it.
        grid: Of its input; None where the input has no codes.
        rescaled: Whether its kernel is one of integers, which has room for larger codes.
    """
    weight = outputs_first(layer.weight.detach(), layer)
    column = (-1, *(1,) * (weight.dim() - 1))
    multiplier, bias = _affine(layer, norm)
    if not isinstance(layer, Quantized):
        return Folded((weight.double() * multiplier.view(column)).float(), None, bias)
    bits, clip = layer.weight_bits, layer.weight_clip.view(column)
    code = codes(weight, bits, clip) * multiplier.sign().to(torch.int8).view(column)
    factor = rescale_to_kernel_range(bits, grid.top if grid else 255) if rescaled else 1
    scale = step(bits, clip, signed=True).flatten().double() * multiplier.abs() / factor
    empty = (code == 0).flatten(1).all(1) | (scale < torch.finfo(torch.float32).tiny)
    own = torch.ones_like(scale)
    if rescaled and grid is not None and bias is not None:
        unit = grid.step.double()
        empty |= scale < bias.abs() / (LARGEST_BIAS * unit)
        own = _scale_of_bias(bias, unit)
    code[empty] = 0
    return Folded(code * factor, torch.where(empty, own, scale).float(), bias, factor)


def _scale_of_bias(bias: Tensor, unit: Tensor) -> Tensor:
    """Return powers of two in which a bias has ``BIAS_DIGITS`` binary digits.

    A bias that was rounded to them gets the same ones again.
    """
    exponent = torch.frexp(bias.abs() / unit).exponent - BIAS_DIGITS
    scale = torch.ldexp(torch.ones_like(bias), exponent).clamp_min(SMALLEST_UNIT / unit)
    return torch.where(bias == 0, 1.0, scale)


def _affine(layer: Product, norm: Norm | None) -> tuple[Tensor, Tensor | None]:
    """Return what the products of a channel are multiplied by, and what is added: float64."""
    bias = None if layer.bias is None else layer.bias.detach().double()
    if norm is None:
        return torch.ones(outputs_of(layer), dtype=torch.float64), bias
    multiplier, offset = (part.double() for part in affine(norm))
    return multiplier, offset if bias is None else offset + multiplier * bias


def has_integer_kernel(layer: nn.Module) -> bool:
    """Return whether a runtime multiplies such a layer in integers: ONNX Runtime those."""
    return isinstance(layer, Product) and not isinstance(layer, Transposed)


def input_grids(
    network: fx.GraphModule, of: Callable[[nn.Module], bool] = has_integer_kernel
) -> dict[str, InputGrid]:
    """Return the grid of the input of layers that read codes: of those with integer kernels.

    A layer whose calls read tensors on several grids has no one unit for its bias, and is left out.
    """
    grids = {name: [*calls.values()] for name, calls in grids_of_calls(network, of).items()}
    return {name: each[0] for name, each in grids.items() if len({*map(_key, each)}) == 1}


def grids_of_calls(
    network: fx.GraphModule, of: Callable[[nn.Module], bool] = has_integer_kernel
) -> dict[str, dict[fx.Node, InputGrid]]:
    """Return the same of each call of each layer, all of whose calls read codes."""
    grids: dict[str, dict[fx.Node, InputGrid]] = {}
    floats: set[str] = set()
    for node in network.graph.nodes:
        layer = node.op == "call_module" and network.get_submodule(str(node.target))
        if not isinstance(layer, Quantized) or not of(layer):
            continue
        source = values_of(node.all_input_nodes[0])
        module = source.op == "call_module" and network.get_submodule(str(source.target))
        if isinstance(module, Rounding) and module.bits != FLOAT:
            size = torch.tensor(float(module.step))
            grids.setdefault(str(node.target), {})[node] = InputGrid(size, module.top)
        else:
            floats.add(str(node.target))
    return {name: calls for name, calls in grids.items() if name not in floats}


def _key(grid: InputGrid) -> tuple[float, int]:
    return float(grid.step), grid.top
