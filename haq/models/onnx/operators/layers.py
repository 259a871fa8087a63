"""Products with weights, which become PyTorch's layers, BatchNorms, and pools."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from haq.models.onnx.node import Module, Node, Run

_CONVOLUTIONS: Mapping[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: Mapping[int, Callable[..., nn.Module]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
_AVERAGES = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_NORMS: Mapping[int, Any] = {
    2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d,
}  # fmt: skip


def window(node: Node, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return strides, dilations, and what is added before and behind each axis."""
    axes = len(kernel)
    strides = node.get("strides") or [1] * axes
    dilations = node.get("dilations") or [1] * axes
    auto = node.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", "", "VALID"):
        pads = node.get("pads") or [0] * (2 * axes)
        pads = [0] * (2 * axes) if auto == "VALID" else pads
        return strides, dilations, list(pads[:axes]), list(pads[axes:])
    if any(d > 1 for d in dilations):  # ONNX Runtime refuses it or leaves dilations out of account
        raise node.refused(f"auto_pad={auto} with dilations")
    before, behind = [], []
    for size, k, s, d in zip(node.shape()[2:], kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
        less, more = total // 2, total - total // 2
        before.append(less if auto == "SAME_UPPER" else more)
        behind.append(more if auto == "SAME_UPPER" else less)
    return strides, dilations, before, behind


def flat(before: Sequence[int], behind: Sequence[int]) -> list[int]:
    """Return paddings in the order in which torch wants them: the last axis first."""
    return [size for pair in zip(reversed(before), reversed(behind), strict=True) for size in pair]


def _convolution(node: Node) -> Module | Run:
    if not node.is_constant(1):
        return _computed_convolution(node)
    weight = node.constant(1)
    assert weight is not None
    axes = weight.ndim - 2
    if axes not in _CONVOLUTIONS:
        raise node.refused(f"it has {axes} axes")
    strides, dilations, before, behind = window(node, weight.shape[2:])
    even = before == behind
    groups = node.get("group", 1)
    module = _CONVOLUTIONS[axes](
        weight.shape[1] * groups, weight.shape[0], weight.shape[2:], tuple(strides),
        tuple(before) if even else 0, tuple(dilations), groups, node.has(2), device="meta",
    )  # fmt: skip
    pads = flat(before, behind)

    def run(module: nn.Module, x: Tensor, *_: Any) -> Any:
        return module(x if even else functional.pad(x, pads))

    return Module(module, _weights(node, weight), run)


def _weights(node: Node, weight: Any) -> dict[str, Any]:
    weights = {"weight": (weight, (node.inputs[1],))}
    bias = node.constant(2)
    if bias is not None:
        weights["bias"] = (bias.reshape(-1), (node.inputs[2],))
    return weights


def _computed_convolution(node: Node) -> Run:
    strides, dilations, before, behind = window(node, node.shape(1)[2:])
    pads, groups = flat(before, behind), node.get("group", 1)
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[node.rank() - 2]

    def run(x: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
        return convolve(functional.pad(x, pads), weight, bias, strides, 0, dilations, groups)

    return run


def _transposed(node: Node) -> Module:
    weight = node.constant(1)
    assert weight is not None
    axes = weight.ndim - 2
    node.only(auto_pad=("NOTSET", ""))
    if axes not in _TRANSPOSED or node.get("output_shape"):
        raise node.refused("output_shape" if node.get("output_shape") else f"it has {axes} axes")
    strides, dilations, before, behind = window(node, weight.shape[2:])
    more = node.get("output_padding") or [0] * axes
    even = before == behind
    groups = node.get("group", 1)
    module = _TRANSPOSED[axes](
        weight.shape[0], weight.shape[1] * groups, weight.shape[2:], tuple(strides),
        tuple(before) if even else 0, tuple(more) if even else 0, groups, node.has(2),
        tuple(dilations), device="meta",
    )  # fmt: skip
    cut = flat([-size for size in before], [m - size for m, size in zip(more, behind, strict=True)])

    def run(module: nn.Module, x: Tensor, *_: Any) -> Any:
        return module(x) if even else functional.pad(module(x), cut)

    return Module(module, _weights(node, weight), run)


def _gemm(node: Node) -> Module | Run:
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    turned, other = node.get("transA", 0), node.get("transB", 0)
    bias_fits = not node.has(2) or (node.is_constant(2) and _is_row(node, 2))
    if node.is_constant(1) and not turned and bias_fits:
        weight = node.constant(1)
        assert weight is not None
        weight = (weight if other else weight.T) * np.float32(alpha)
        return _linear(node, weight, 2, beta)

    def run(left: Tensor, right: Tensor, bias: Any = None) -> Tensor:
        left, right = left.t() if turned else left, right.t() if other else right
        product = left @ right if alpha == 1 else (left @ right) * alpha
        return product if bias is None else product + (bias if beta == 1 else bias * beta)

    return run


def _is_row(node: Node, place: int) -> bool:
    """Return whether a constant has a value for each output, or one for all."""
    return all(size == 1 for size in node.shape(place)[:-1])


def _matmul(node: Node) -> Module | Run:
    if node.is_constant(1) and node.rank(1) == 2 and not node.is_constant(0) and node.rank(0) > 1:
        weight = node.constant(1)
        assert weight is not None
        return _linear(node, weight.T, 2)
    return torch.matmul


def _linear(node: Node, weight: Any, place: int, beta: float = 1.0) -> Module:
    """Return a product with (out, in) weights, and the bias that is the input in a place."""
    outputs, features = weight.shape
    weights = {"weight": (weight, (node.inputs[1],))}
    if node.has(place):
        bias = node.constant(place)
        assert bias is not None
        values = np.broadcast_to(bias.reshape(-1), (outputs,)) * np.float32(beta)
        weights["bias"] = (values, (node.inputs[place],))
    module = nn.Linear(features, outputs, node.has(place), device="meta")

    def run(module: nn.Module, x: Tensor, *_: Any) -> Any:
        return module(x)

    return Module(module, weights, run)


def _batch_norm(node: Node) -> Module | Run:
    node.only(training_mode=0, spatial=1)
    eps, momentum = node.get("epsilon", 1e-5), node.get("momentum", 0.9)
    if not all(node.is_constant(place) for place in (1, 2, 3, 4)):
        raise node.refused("its scale, bias, mean or variance is computed")
    names = ("weight", "bias", "running_mean", "running_var")
    weights = {}
    for place, name in enumerate(names, 1):
        values = node.constant(place)
        assert values is not None
        weights[name] = (values, (node.inputs[place],))
    count = len(weights["weight"][0])
    module = _NORMS[node.rank()](count, eps, 1 - momentum, device="meta")

    def run(module: nn.Module, x: Tensor, *_: Any) -> Any:
        return module(x)

    return Module(module, weights, run)


def _max_pool(node: Node) -> Run:
    kernel = node.get("kernel_shape")
    node.only(storage_order=0)
    if len([name for name in node.outputs if name]) > 1:
        raise node.refused("it gives places too")
    strides, dilations, before, behind = window(node, kernel)
    ceil = bool(node.get("ceil_mode", 0))
    pool = [functional.max_pool1d, functional.max_pool2d, functional.max_pool3d][len(kernel) - 1]
    small = before == behind and all(2 * p <= k for p, k in zip(before, kernel, strict=True))
    pads = flat(before, behind)

    def run(x: Tensor) -> Tensor:
        if small:
            return pool(x, kernel, strides, before, dilations, ceil)
        x = functional.pad(x, pads, value=float("-inf"))
        return pool(x, kernel, strides, 0, dilations, ceil)

    return run


def _average_pool(node: Node) -> Run:
    kernel = node.get("kernel_shape")
    node.only(dilations=([1] * len(kernel),))
    strides, _, before, behind = window(node, kernel)
    ceil, count = bool(node.get("ceil_mode", 0)), bool(node.get("count_include_pad", 0))
    pool: Any = [functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d][
        len(kernel) - 1
    ]
    small = before == behind and all(2 * p <= k for p, k in zip(before, kernel, strict=True))
    if not small and (ceil or not count):
        raise node.refused("uneven pads that are not counted")
    pads = flat(before, behind)

    def run(x: Tensor) -> Any:
        if small:
            return pool(x, kernel, strides, before, ceil, count)
        return pool(functional.pad(x, pads), kernel, strides)

    return run


def _global_average(node: Node) -> Run:
    axes = list(range(2, node.rank()))
    if len(axes) == 2:
        return lambda x: functional.adaptive_avg_pool2d(x, 1)
    return lambda x: x.mean(axes, True)


def _global_max(node: Node) -> Run:
    axes = list(range(2, node.rank()))
    return lambda x: x.amax(axes, True)


def _einsum(node: Node) -> Run:
    equation = node.get("equation")
    return lambda *operands: torch.einsum(equation, *operands)


OPERATORS: Mapping[str, Callable[[Node], Run | Module]] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
}
