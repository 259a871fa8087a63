"""The integer form of the layers of a quantized network: what a runtime multiplies and adds.

BatchNorm folds into the layer before it. The codes of the weights stay as they are, up to the sign;
only the scales change. Biases are whole numbers in steps of (scale of the input) x (scale of the
weights), which is coarse where both have few bits. So narrow codes are multiplied by a whole number
and their scale is divided by it, as far as 8-bit kernels have room for it.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from haq.allocation.policy import FLOAT
from haq.errors import ConversionError
from haq.network.capture import Sample, evaluating
from haq.network.inputs import Inputs, as_inputs, call
from haq.network.modules import (
    LayerModule,
    Product,
    Transposed,
    along_weight,
    outputs_first,
    outputs_of,
)
from haq.network.operators import values_of
from haq.quantization.bn_folding import Norm, affine, fold_norms, norms_of
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

WORSE = 1.05
"""By how much the error of the answers may grow where a network is converted."""

NOISE = 2e-3
"""Of the spread of the answers: activations that floats round to the other of two levels."""


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


class Conversion(NamedTuple):
    """What conversion did to a network's answers.

    Attributes:
        before: Error of the answers before it: the norm of the difference from the float network's
            answers, as a share of the norm of their differences from their mean.
        after: The same of the converted network.
    """

    before: float
    after: float


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


def convert_to_integers(network: fx.GraphModule) -> None:
    """Give a network, in place, the form in which integer kernels compute it.

    It is the last step after fine-tuning, so that the network computes what its file will:
    BatchNorms are folded, and biases are rounded to the whole numbers that are added. What is left
    of a BatchNorm is its bias.
    """
    fold_norms(network)
    round_biases(network)


def convert_and_check(
    network: fx.GraphModule, floats: nn.Module, images: Sample, batch: int = 16
) -> Conversion:
    """Convert a network as ``convert_to_integers`` does, and see that it is the same network.

    Its error may grow to 1.05 of what it was, or of what it is when nothing is done but to round
    the biases.

    Args:
        network: From ``quantize``, trained or not; changed in place.
        floats: The float network.
        images: What the networks take, (N, ...); some dozens.
        batch: Images of one forward.

    Returns:
        The error of the answers before and after.

    Raises:
        ConversionError: The answers changed by more; that is a fault of ours.
    """
    inputs = as_inputs(images)
    truth = _answers(floats, inputs, batch)
    before = _error(_answers(network, inputs, batch), truth)
    rounded = copy.deepcopy(network)
    convert_to_integers(network)
    after = _error(_answers(network, inputs, batch), truth)
    if not after <= WORSE * before + NOISE:
        round_biases(rounded)
        check_errors(before, after, _error(_answers(rounded, inputs, batch), truth))
    return Conversion(before, after)


def check_errors(before: float, after: float, explained: float) -> None:
    """Raise ``ConversionError`` where an error grew by more than rounding the biases explains."""
    if not after <= WORSE * max(before, explained) + NOISE:
        raise ConversionError(
            f"converting the network to integers changed its answers: their error was {before:.3g} "
            f"before and is {after:.3g}, and rounding the biases explains {explained:.3g}; please "
            "report it with the model"
        )


def _answers(network: nn.Module, inputs: Inputs, batch: int) -> Tensor:
    """Return all floats that a network gives for each input, (N, values)."""
    parts = []
    with torch.no_grad(), evaluating(network):
        for rows in inputs.split(batch):
            count, leaves = len(rows), pytree.tree_leaves(call(network, rows))
            answers = [leaf for leaf in leaves if _is_answer(leaf, count)]
            # Sequences may have the batch in their second axis.
            values = [x.movedim(x.shape.index(count), 0).reshape(count, -1) for x in answers]
            parts.append(torch.cat([torch.empty(count, 0), *values], 1).double())
    return torch.cat(parts)


def _is_answer(leaf: object, count: int) -> bool:
    """Return whether a part of an output has floats for each input: others do not tell an error."""
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return False
    return count in leaf.shape[:2]


def _error(answers: Tensor, truth: Tensor) -> float:
    spread = (truth - truth.mean(0)).norm()
    return float((answers - truth).norm() / spread.clamp_min(1e-12))


def round_biases(network: fx.GraphModule) -> None:
    """Round the biases of layers that compute with integers to whole numbers, in place."""
    norms = norms_of(network)
    for name, grid in _input_grids(network).items():
        layer = network.get_submodule(name)
        norm = network.get_submodule(norms[name]) if name in norms else None
        assert isinstance(layer, Product) and isinstance(layer, Quantized)
        assert norm is None or isinstance(norm, Norm)
        folded = fold(layer, norm, grid)
        if folded.bias is not None:
            assert folded.scale is not None
            with torch.no_grad():
                empty = (folded.weight == 0).flatten(1).all(1)
                layer.weight.masked_fill_(along_weight(empty, layer), 0)
            unit = (folded.scale * grid.step).double()
            _move_bias(layer, norm, (folded.bias / unit).round() * unit - folded.bias)


def _input_grids(network: fx.GraphModule) -> dict[str, InputGrid]:
    """Return the grid of the input of the layers that compute with integers."""
    grids: dict[str, set[tuple[float, int]]] = {}
    for node in network.graph.nodes:
        if node.op != "call_module":
            continue
        layer = network.get_submodule(str(node.target))
        if isinstance(layer, Quantized) and has_integer_kernel(layer):
            source = values_of(node.all_input_nodes[0])
            module = source.op == "call_module" and network.get_submodule(str(source.target))
            if isinstance(module, Rounding) and module.bits != FLOAT:
                grids.setdefault(str(node.target), set()).add((float(module.step), module.top))
    # A layer that reads tensors on several grids has no one unit for its bias.
    one = {name: several.pop() for name, several in grids.items() if len(several) == 1}
    return {name: InputGrid(torch.tensor(size), top) for name, (size, top) in one.items()}


def has_integer_kernel(layer: nn.Module) -> bool:
    """Return whether a runtime multiplies such a layer in integers: ONNX Runtime those."""
    return isinstance(layer, Product) and not isinstance(layer, Transposed)


def _move_bias(layer: Product, norm: Norm | None, difference: Tensor) -> None:
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
