"""An exported file executed in numpy, from the file alone, integer for integer.

It says what an integer runtime must compute, independently of torch and of ONNX Runtime: codes are
multiplied and added exactly; only rescaling to the next tensor's codes is done in float32.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from haq.formats.onnx.contrib import CONTRIB_RULES
from haq.formats.onnx.products import convolved, product, spread
from haq.formats.onnx.values import (
    Added,
    Array,
    Codes,
    Feeds,
    Mean,
    Single,
    Sums,
    Value,
    count,
    named,
    real,
    rounded,
    some,
)


class Difference(NamedTuple):
    """How far a tensor of codes is from the one given.

    Attributes:
        tensor: Its name.
        exact: Whether nothing was computed in float since the codes before it.
        largest: The largest difference of two codes.
    """

    tensor: str
    exact: bool
    largest: int


class Simulated(NamedTuple):
    """What an exported file gives.

    Attributes:
        logits: Its first output (N, ...), float32.
        exact: Whether all that was computed in float is what a runtime computes to the last bit:
            nothing but rescaling.
    """

    logits: Array
    exact: bool


def simulate(model: onnx.ModelProto, images: Feeds, batch: int = 50) -> Simulated:
    """Work out an exported file for images.

    Layers with quantized input and weights are computed in integers. Operators between tensors that
    are not quantized are computed in float32 and can differ from a runtime in the last digits.

    Args:
        model: As ``haq.formats.onnx.lower.lower`` makes it.
        images: (N, ...), what the file's input takes, or its inputs by name.
        batch: Images computed at once.
    """
    starts = range(0, count(images), batch)
    parts = [simulate_from(model, some(images, at, at + batch), {})[0] for at in starts]
    logits = np.concatenate([part.logits for part in parts])
    return Simulated(logits, all(part.exact for part in parts))


def simulate_from(
    model: onnx.ModelProto, images: Feeds, given: Mapping[str, Array]
) -> tuple[Simulated, list[Difference]]:
    """Work out a file, going on with tensors of codes that somebody else computed.

    So a difference in the last digits of what is computed in float does not grow from layer to
    layer, and what remains is each layer's own.

    Args:
        model: As for ``simulate``.
        images: As for ``simulate``; all are computed at once.
        given: Names of tensors of codes to their values.

    Returns:
        What the file gives, and the tensors among the given ones that are not as worked out.
    """
    values: dict[str, Value] = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    for name, feed in named(images, model.graph.input[0].name).items():
        values[name] = feed.astype(Single) if feed.dtype.kind == "f" else feed
    loose: set[str] = set()  # tensors whose last digits are a matter of the order of sums
    differences = []
    for node in model.graph.node:
        operands = [values[name] if name else None for name in node.input]
        rule = _RULES.get(node.op_type)
        result = rule(node, operands) if rule else None
        results = _in_float(model, node, operands) if result is None else [result]
        values |= dict(zip(node.output, results, strict=True))
        if not loose.isdisjoint(node.input) or _is_loose(node, operands, results):
            loose.update(node.output)
        if node.output[0] in given:
            name, codes = node.output[0], given[node.output[0]]
            apart = np.abs(cast(Array, results[0]).astype(np.int16) - codes)
            if apart.any():
                differences.append(Difference(name, name not in loose, int(apart.max())))
            values[name] = codes
            loose.discard(name)
    output = model.graph.output[0].name
    return Simulated(real(values[output]), output not in loose), differences


def _is_loose(
    node: onnx.NodeProto, operands: Sequence[Value | None], results: Sequence[Value]
) -> bool:
    """Return whether a node computes in float what a runtime may compute in another order."""
    floats = any(isinstance(r, np.ndarray) and r.dtype.kind == "f" for r in results)
    if not floats or node.op_type in ("Identity", "Concat", "AveragePool", *_MOVES):
        return False
    plain = all(operand is None or isinstance(operand, np.ndarray) for operand in operands)
    return node.op_type != "Max" and not (plain and node.op_type in _ELEMENTWISE)


_ELEMENTWISE = ("Abs", "Add", "Cast", "Clip", "Max", "Min", "Mul", "Neg", "Relu", "Sub")
"""Operators of one operation for each value, which is rounded the same everywhere."""


def _in_float(
    model: onnx.ModelProto, node: onnx.NodeProto, operands: Sequence[Value | None]
) -> list[Array]:
    """Return what ONNX's own reference implementation makes of a node."""
    given = {
        name: real(value)
        for name, value in zip(node.input, operands, strict=True) if value is not None
    }  # fmt: skip
    inputs = [helper.make_tensor_value_info(name, 0, None) for name in given]
    outputs = [helper.make_tensor_value_info(name, 0, None) for name in node.output]
    graph = helper.make_graph([node], "one", inputs, outputs)
    alone = helper.make_model(graph, opset_imports=model.opset_import)
    return cast(list[Array], ReferenceEvaluator(alone).run(None, given))


Operands = Sequence[Any]
Rule = Callable[[onnx.NodeProto, Operands], Value | None]


def _attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _quantize(node: onnx.NodeProto, operands: Operands) -> Value:
    value, scale, zero = operands
    if isinstance(value, Sums | Added | Mean):
        return value.codes(scale, zero)
    return rounded(real(value) / scale, zero)


def _dequantize(node: onnx.NodeProto, operands: Operands) -> Value:
    values, scale, zero = operands
    return Codes(values, scale, zero, _attribute(node, "axis", 1))


def _relu(node: onnx.NodeProto, operands: Operands) -> Value:
    (value,) = operands
    if isinstance(value, Sums):
        return replace(value, values=np.maximum(value.values, 0))
    if isinstance(value, Added):
        return replace(value, cut=True)
    return np.maximum(real(value), Single(0))


def _add(node: onnx.NodeProto, operands: Operands) -> Value | None:
    left, right = operands
    if isinstance(left, Codes) and isinstance(right, Codes):
        return Added(left, right)
    return None


def _mean(node: onnx.NodeProto, operands: Operands) -> Value | None:
    (value,) = operands
    if not isinstance(value, Codes):
        return None
    whole = value.whole().astype(np.int64)
    sums = whole.sum(axis=tuple(range(2, whole.ndim)), keepdims=True)
    return Mean(sums, math.prod(whole.shape[2:]), value.scale)


def _average(node: onnx.NodeProto, operands: Operands) -> Value | None:
    """Average windows of codes as QLinearAveragePool does: a sum in float, row after row."""
    (value,) = operands
    pads = _attribute(node, "pads", [0, 0, 0, 0])
    plain = not _attribute(node, "ceil_mode", 0) and _attribute(node, "dilations", [1, 1]) == [1, 1]
    if not isinstance(value, Codes) or len(pads) != 4 or not plain:
        return None
    around = ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3]))
    kernel, strides = _attribute(node, "kernel_shape"), _attribute(node, "strides", [1, 1])
    windows = sliding_window_view(np.pad(value.real(), around), kernel, axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1]]
    sums = np.zeros(windows.shape[:4], Single)
    for row, column in np.ndindex(*kernel):
        sums += windows[..., row, column]
    if _attribute(node, "count_include_pad", 0):
        return sums / Single(kernel[0] * kernel[1])
    inside = np.pad(np.ones(value.values.shape[2:], Single), around[2:])
    counts = sliding_window_view(inside, kernel)[:: strides[0], :: strides[1]].sum((2, 3))
    result: Array = sums / counts.astype(Single)
    return result


def _moved(node: onnx.NodeProto, operands: Operands) -> Value | None:
    """Move what is not yet a float as its values would be moved; what is added is zero."""
    value, *rest = operands
    padded = node.op_type == "Pad" and len(rest) > 1 and rest[1] is not None and np.any(rest[1])
    if isinstance(value, np.ndarray) or padded:
        return None
    if node.op_type in ("MaxPool", "Pad") and not isinstance(value, Codes):
        return None
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(helper.make_graph([], "none", [], []), opset_imports=opset)
    result: Value = value.moved(lambda values: _in_float(model, node, [values, *rest])[0])
    return result


def _conv(node: onnx.NodeProto, operands: Operands) -> Value | None:
    x, weight, *bias = operands
    kernel = _attribute(node, "kernel_shape", ())
    if not kernel or len(_attribute(node, "pads", ())) != 2 * len(kernel):
        return None  # not a layer of ours
    column = (1, -1, *(1,) * len(kernel))
    if isinstance(x, Codes) and isinstance(weight, Codes):
        sums = _convolved(node, x.whole(), weight.whole())
        return _with_bias(sums, x, weight, bias, column)
    result = _convolved(node, real(x), real(weight))
    return result + real(bias[0]).reshape(column) if bias else result


def _conv_transposed(node: onnx.NodeProto, operands: Operands) -> Value:
    x, weight, *bias = (real(operand) for operand in operands)
    pads = _attribute(node, "pads")
    axes = len(pads) // 2
    strides, dilations = (_attribute(node, name, [1] * axes) for name in ("strides", "dilations"))
    added = _attribute(node, "output_padding", [0] * axes)
    whole = spread(x, weight, strides, dilations, added, _attribute(node, "group", 1))
    cut = tuple(slice(a, -b or None) for a, b in zip(pads[:axes], pads[axes:], strict=True))
    result: Array = whole[:, :, *cut]
    return result + bias[0].reshape(1, -1, *(1,) * axes) if bias else result


def _conv_integer(node: onnx.NodeProto, operands: Operands) -> Value:
    x, weight, x_zero, weight_zero = operands
    whole = x.astype(np.int32) - np.int32(x_zero)
    return _convolved(node, whole, weight.astype(np.int32) - np.int32(weight_zero)).astype(np.int32)


def _convolved(node: onnx.NodeProto, x: Array, weight: Array) -> Array:
    pads = _attribute(node, "pads")
    axes = len(pads) // 2
    padded = np.pad(x, ((0, 0), (0, 0), *zip(pads[:axes], pads[axes:], strict=True)))
    strides, dilations = (_attribute(node, name, [1] * axes) for name in ("strides", "dilations"))
    return convolved(padded, weight, strides, dilations, _attribute(node, "group", 1))


def _with_bias(
    sums: Array, x: Codes, weight: Codes, bias: Sequence[Codes], shape: tuple[int, ...]
) -> Sums:
    if bias:
        sums = sums + bias[0].values.astype(np.int64).reshape(shape)
    return Sums(sums, (x.scale * weight.scale).reshape(shape))


def _gemm(node: onnx.NodeProto, operands: Operands) -> Value | None:
    x, weight, *bias = operands
    if not isinstance(x, Codes) or not isinstance(weight, Codes):
        return None
    return _with_bias(product(x.whole(), weight.whole().T), x, weight, bias, (1, -1))


def _same(node: onnx.NodeProto, operands: Operands) -> Value:
    return operands[0]  # type: ignore[no-any-return]


def _of_onnx_runtime(node: onnx.NodeProto, operands: Operands) -> Value:
    given = [None if operand is None else real(operand) for operand in operands]
    return CONTRIB_RULES[node.op_type](
        {a.name: helper.get_attribute_value(a) for a in node.attribute}, given
    )


_MOVES = (
    "Flatten", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators whose results are among the values they read, or zero."""

_RULES: Mapping[str, Rule] = {
    "Add": _add,
    "AveragePool": _average,
    "Conv": _conv,
    "ConvInteger": _conv_integer,
    "ConvTranspose": _conv_transposed,
    "DequantizeLinear": _dequantize,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean,
    "Identity": _same,
    "Max": lambda node, operands: real(operands[0]) if len(operands) == 1 else None,
    "QuantizeLinear": _quantize,
    "Relu": _relu,
    **dict.fromkeys(_MOVES, _moved),
    **{name: _of_onnx_runtime for name in CONTRIB_RULES},
}
