"""A converted network computes as its file does, to the last bit.

ONNX Runtime's kernels add products of codes exactly and rescale the sums to the codes of the next
tensor in one multiplication; it adds two tensors of codes by fused multiplications. Here the same
is done in floats that hold these whole numbers, in the same order of roundings, so that what is
close to the border of two codes falls on the same side. ``haq.formats.onnx.reference`` says the
same of a file, in numpy.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from haq.allocation.policy import FLOAT
from haq.network.modules import Product, Transposed, along_weight, outputs_first
from haq.network.operators import (
    first_input,
    is_relu,
    is_sum,
    kind_of,
    only_user,
    values_of,
)
from haq.quantization.bn_folding import Norm, affine, norms_of
from haq.quantization.exact import aten, make_exact
from haq.quantization.fake_quant import Quantized, Rounding
from haq.quantization.folding import InputGrid, fold, grids_of_calls
from haq.quantization.kernel import Kernel
from haq.quantization.quantizer import codes

EXACT = 2**24
"""Up to here float32 holds all whole numbers."""


class _ExactNorm(nn.Module):
    """A BatchNorm that folds into no layer: a multiplication and an addition."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised tensor (N, channels, ...)."""
        shape = (-1, *[1] * (input.dim() - 2))
        multiplier, offset = affine(self)  # type: ignore[arg-type]
        return input * multiplier.view(shape) + offset.view(shape)


class _ExactNorm1d(_ExactNorm, nn.BatchNorm1d):
    pass


class _ExactNorm2d(_ExactNorm, nn.BatchNorm2d):
    pass


class _ExactNorm3d(_ExactNorm, nn.BatchNorm3d):
    pass


EXACT_NORMS: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: _ExactNorm1d,
    nn.BatchNorm2d: _ExactNorm2d,
    nn.BatchNorm3d: _ExactNorm3d,
}
"""Kind of a BatchNorm to the one that stands for it."""


def is_exact(network: nn.Module) -> bool:
    """Return whether a network computes with the integers of its kernels."""
    return any(isinstance(m, Quantized) and m.kernels for m in network.modules())


def compute_exactly(network: fx.GraphModule) -> None:
    """Let a network that ``convert_to_integers`` converted compute as its file does, in place.

    It changes no parameters; whatever changes them later must call it again. A network none of
    whose layers reads codes stays as it is.
    """
    if not grids_of_calls(network):
        return
    make_exact(network)
    norms = norms_of(network)
    for module in network.modules():
        if isinstance(module, Rounding):
            module.unit = None
    for name, calls in grids_of_calls(network).items():
        layer = network.get_submodule(name)
        norm = network.get_submodule(norms[name]) if name in norms else None
        assert isinstance(layer, Product) and isinstance(layer, Quantized)
        assert norm is None or isinstance(norm, Norm)
        alone = norm is None or bool((affine(norm)[0] == 1).all())  # its bias is all there is left
        _give_kernels(layer, calls, partial(_kernel, norm=norm) if alone else _no_kernel)
    for name, calls in grids_of_calls(network, lambda one: isinstance(one, Transposed)).items():
        layer = network.get_submodule(name)
        assert isinstance(layer, Transposed) and isinstance(layer, Quantized)
        _give_kernels(layer, calls, _float_kernel)
    folded = {id(network.get_submodule(name)) for name in norms.values()}
    for module in network.modules():
        if type(module) in EXACT_NORMS and id(module) not in folded:
            module.__class__ = EXACT_NORMS[type(module)]
    for node in network.graph.nodes:
        if node.op == "call_module" and kind_of(node) is Rounding:
            _rescale(network, node)
    network.recompile()


def _give_kernels(
    layer: Quantized, calls: Mapping[fx.Node, InputGrid], make: Callable[[Any, InputGrid], Any]
) -> None:
    """Give a layer a kernel for each grid that its calls read; none if one cannot be exact."""
    places: dict[tuple[float, int], int] = {}
    kernels = []
    for node, grid in calls.items():
        key = float(grid.step), grid.top
        if key not in places:
            places[key] = len(places)
            kernels.append(make(layer, grid))
        node.kwargs = {"grid": places[key]} if places[key] else {}
    layer.kernels = () if None in kernels else tuple(kernels)


def _no_kernel(layer: Any, grid: InputGrid) -> None:
    return None


def _kernel(layer: Any, grid: InputGrid, norm: Norm | None) -> Kernel:
    folded = fold(layer, norm, grid)
    assert folded.scale is not None
    unit = folded.scale.expand(len(layer.weight)) * grid.step
    clip = along_weight(layer.weight_clip, layer)
    sums = codes(layer.weight.detach(), layer.weight_bits, clip).abs().flatten(1).double().sum(1)
    wide = float(sums.max()) * grid.top >= EXACT
    return Kernel(float(grid.step), folded.factor, unit, wide)


def _float_kernel(layer: Any, grid: InputGrid) -> Kernel | None:
    """Return how a kernel of floats computes a layer from codes; None where it is not exact."""
    rows = codes(layer.weight.detach(), layer.weight_bits, along_weight(layer.weight_clip, layer))
    sums = outputs_first(rows, layer).abs().double().sum(1)  # (out, kernel, ...)
    for axis, (step, apart) in enumerate(zip(layer.stride, layer.dilation, strict=True), start=1):
        # Only taps that lie a multiple of the stride apart meet in one place.
        phases = torch.arange(sums.shape[axis]) * apart % step
        sums = sums.new_zeros(*sums.shape[:axis], step, *sums.shape[axis + 1 :]).index_add(
            axis, phases, sums
        )
    if float(sums.max()) * grid.top >= EXACT:
        return None
    scale = fold(layer, None, rescaled=False).scale
    assert scale is not None
    return Kernel(float(grid.step), 1, scale.expand(len(sums)) * grid.step, False)


def _rescale(network: fx.GraphModule, node: fx.Node) -> None:
    """Let a quantizer right behind a layer or a sum round as the kernel before it does."""
    rounding = network.get_submodule(str(node.target))
    assert isinstance(rounding, Rounding)
    if rounding.bits == FLOAT:
        return
    source = first_input(node)
    if is_relu(source) and only_user(source) is node:
        source = first_input(source)
    if len(source.users) > 1:
        return
    if is_sum(source):
        _add_codes(network, source, rounding)
        return
    norm = _module(network, source)
    if isinstance(norm, Norm) and not isinstance(norm, _ExactNorm):
        source = first_input(source)
    layer = _module(network, source)
    if not isinstance(layer, Quantized) or isinstance(layer, Transposed):
        return
    if layer.kernels and len(source.users) == 1:
        after = () if isinstance(layer, nn.Linear) else (1,) * (layer.weight.dim() - 2)
        place: Any = source.kwargs.get("grid", 0)
        rounding.unit = layer.kernels[place].unit.view(-1, *after)


def _module(network: nn.Module, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _add_codes(network: nn.Module, node: fx.Node, rounding: Rounding) -> None:
    """Let the sum of two tensors of codes be computed from these."""
    grids = []
    for operand in node.all_input_nodes:
        source = _module(network, values_of(operand))
        if not isinstance(source, Rounding) or source.bits == FLOAT:
            return
        grids += [float(source.step), source.zero_point]
    if len(node.all_input_nodes) == 2 and node.kwargs.get("alpha", 1) == 1 and len(node.args) == 2:
        node.target = added
        node.kwargs = {"grids": (*grids, float(rounding.step), rounding.zero_point)}


def added(left: Tensor, right: Tensor, *, grids: tuple[float, ...]) -> Tensor:
    """Return the sum of two tensors of codes on the grid that it is rounded to.

    Args:
        left: On a grid.
        right: On another.
        grids: Step and zero point of both, and of the sum.
    """
    steps = [torch.tensor(grids[place]) for place in (0, 2, 4)]
    zeros = [torch.tensor(float(grids[place])) for place in (1, 3, 5)]
    one, other = steps[0] / steps[2], steps[1] / steps[2]
    rest = zeros[2] - (one * zeros[0] + other * zeros[1])
    first, second = (
        (x / size).round() + zero
        for x, size, zero in zip((left, right), steps[:2], zeros[:2], strict=True)
    )
    total = _fused(first, one, _fused(second, other, rest))
    code = total.round().clamp(0, 255)
    return ((code - zeros[2]) * steps[2]).to(left.dtype)


added.computes = aten.add.Tensor  # type: ignore[attr-defined]


def _fused(values: Tensor, factor: Tensor, rest: Tensor) -> Tensor:
    """Return values * factor + rest, rounded once to float32."""
    return (values.double() * factor.double() + rest.double()).float()
