"""An exported file executed in numpy, from the file alone, integer for integer.

It says what an integer runtime must compute, independently of torch and of ONNX Runtime: codes are
multiplied and added exactly; only rescaling to the next tensor's codes is done in float32, in the
order in which ONNX Runtime's kernels do it, and rounds halves to even.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = NDArray[Any]
Single = np.float32

_EXACT = 2**24
"""Up to here float32 counts without a gap."""


@dataclass(frozen=True)
class Codes:
    """A tensor of integers; ``(values - zero) * scale`` is what they stand for."""

    values: Array
    scale: Array  # scalar, or one for each place of ``axis``
    zero: Array
    axis: int = 0

    def real(self) -> Array:
        """Return what the codes stand for, in float32."""
        shape = [1] * self.values.ndim
        if self.scale.ndim:
            shape[self.axis] = -1
        whole = self.values.astype(np.int32) - self.zero.astype(np.int32).reshape(shape)
        result: Array = whole.astype(Single) * self.scale.reshape(shape)
        return result


@dataclass(frozen=True)
class Sums:
    """Exact sums of products, each worth ``scale``: what a layer has before it is rescaled."""

    values: Array  # int64
    scale: Array  # float32, broadcasts against the values

    def real(self) -> Array:
        """Return what the sums stand for, in float32."""
        return self.values.astype(Single) * self.scale

    def codes(self, scale: Array, zero: Array) -> Array:
        """Return the sums as codes of another tensor."""
        return _rounded(self.values.astype(Single) * (self.scale / scale), zero)


@dataclass(frozen=True)
class Added:
    """Two tensors of codes that are to be added."""

    left: Codes
    right: Codes
    cut: bool = False  # negative sums are zero

    def real(self) -> Array:
        """Return the sum in float32."""
        result: Array = self.left.real() + self.right.real()
        if self.cut:
            np.maximum(result, Single(0), out=result)
        return result

    def codes(self, scale: Array, zero: Array) -> Array:
        """Return the sum as codes of another tensor."""
        found = _added(self.left, self.right, scale, zero)
        return np.maximum(found, zero) if self.cut else found


@dataclass(frozen=True)
class Mean:
    """The mean of each channel of a tensor of codes."""

    of: Codes

    def real(self) -> Array:
        """Return the means in float32."""
        result: Array = self.of.real().mean(axis=(2, 3), keepdims=True, dtype=Single)
        return result

    def codes(self, scale: Array, zero: Array) -> Array:
        """Return the means as codes of another tensor."""
        whole = self.of.values.astype(np.int64) - int(self.of.zero)
        pixels = Single(whole.shape[2] * whole.shape[3])
        sums = whole.sum(axis=(2, 3), keepdims=True)
        return _rounded(sums.astype(Single) * (self.of.scale / (scale * pixels)), zero)


Value = Array | Codes | Sums | Added | Mean


def _rounded(values: Array, zero: Array) -> Array:
    ends = np.iinfo(zero.dtype)
    offset = Single(zero)
    inside = np.clip(values, Single(ends.min) - offset, Single(ends.max) - offset)
    result: Array = (np.rint(inside) + offset).astype(zero.dtype)
    return result


def _added(left: Codes, right: Codes, scale: Array, zero: Array) -> Array:
    one, other = left.scale / scale, right.scale / scale
    rest = Single(zero) - (one * Single(left.zero) + other * Single(right.zero))
    total = _fused(left.values, one, _fused(right.values, other, rest))
    ends = np.iinfo(zero.dtype)
    return np.clip(np.rint(total), ends.min, ends.max).astype(zero.dtype)


def _fused(values: Array, factor: Array, rest: Array) -> Array:
    """Return values * factor + rest with one rounding to float32 at the end."""
    total = values.astype(np.float64) * np.float64(factor) + rest.astype(np.float64)
    return total.astype(Single)


class Simulated(NamedTuple):
    """What an exported file gives.

    Attributes:
        logits: Its first output (N, ...), float32.
        exact: Whether all that was computed in float is what a runtime computes to the last bit:
            nothing but rescaling.
    """

    logits: Array
    exact: bool


def simulate(model: onnx.ModelProto, images: Array, batch: int = 50) -> Simulated:
    """Work out an exported file for images.

    Layers with quantized input and weights are computed in integers. Operators between tensors that
    are not quantized are computed in float32 and can differ from a runtime in the last digits.

    Args:
        model: As ``haq.formats.onnx.export.lower`` makes it, with one input.
        images: (N, C, H, W), what the file's input takes.
        batch: Images computed at once.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    parts = [
        _simulate(model, constants, images[start : start + batch])
        for start in range(0, len(images), batch)
    ]
    logits = np.concatenate([part.logits for part in parts])
    return Simulated(logits, all(part.exact for part in parts))


def _simulate(model: onnx.ModelProto, constants: Mapping[str, Array], images: Array) -> Simulated:
    values: dict[str, Value] = {**constants, model.graph.input[0].name: images.astype(Single)}
    loose: set[str] = set()  # tensors whose last digits are a matter of the order of sums
    for node in model.graph.node:
        operands = [values[name] if name else None for name in node.input]
        rule = _RULES.get(node.op_type)
        result = rule(node, operands) if rule else None
        found = _in_float(model, node, operands) if result is None else [result]
        values |= dict(zip(node.output, found, strict=True))
        if not loose.isdisjoint(node.input) or any(map(_is_loose, [node] * len(found), found)):
            loose.update(node.output)
    output = model.graph.output[0].name
    return Simulated(_real(values[output]), output not in loose)


def _is_loose(node: onnx.NodeProto, result: Value) -> bool:
    """Return whether a node computed in float, and did not only copy."""
    copies = node.op_type in ("Identity", "Max", *_MOVES)
    return isinstance(result, np.ndarray) and result.dtype.kind == "f" and not copies


def _real(value: Value) -> Array:
    return value if isinstance(value, np.ndarray) else value.real()


def _in_float(
    model: onnx.ModelProto, node: onnx.NodeProto, operands: Sequence[Value | None]
) -> list[Array]:
    """Return what ONNX's own reference implementation makes of a node."""
    given = {
        name: _real(value)
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
    return _rounded(_real(value) / scale, zero)


def _dequantize(node: onnx.NodeProto, operands: Operands) -> Value:
    values, scale, zero = operands
    return Codes(values, scale, zero, _attribute(node, "axis", 1))


def _relu(node: onnx.NodeProto, operands: Operands) -> Value:
    (value,) = operands
    if isinstance(value, Sums):
        return replace(value, values=np.maximum(value.values, 0))
    if isinstance(value, Added):
        return replace(value, cut=True)
    return np.maximum(_real(value), Single(0))


def _add(node: onnx.NodeProto, operands: Operands) -> Value:
    left, right = operands
    if isinstance(left, Codes) and isinstance(right, Codes):
        return Added(left, right)
    return _real(left) + _real(right)


def _mean(node: onnx.NodeProto, operands: Operands) -> Value | None:
    (value,) = operands
    return Mean(value) if isinstance(value, Codes) else None


def _moved(node: onnx.NodeProto, operands: Operands) -> Value | None:
    """Move codes as their values would be moved; what is added stands for zero."""
    value, *rest = operands
    padded = node.op_type == "Pad" and len(rest) > 1 and rest[1] is not None and np.any(rest[1])
    if not isinstance(value, Codes) or padded:
        return None
    kept = np.asarray(value.values.astype(Single) - Single(value.zero))
    model = helper.make_model(
        helper.make_graph([], "none", [], []), opset_imports=[helper.make_opsetid("", 21)]
    )
    moved = _in_float(model, node, [kept, *rest])[0] + Single(value.zero)
    return replace(value, values=moved.astype(value.values.dtype))


def _conv(node: onnx.NodeProto, operands: Operands) -> Value | None:
    x, weight, *bias = operands
    if _attribute(node, "pads") is None or len(_attribute(node, "pads")) != 4:
        return None  # not a layer of ours
    top, left, bottom, right = _attribute(node, "pads")
    pads = ((0, 0), (0, 0), (top, bottom), (left, right))
    strides = _attribute(node, "strides", [1, 1])
    geometry = strides, _attribute(node, "dilations", [1, 1]), _attribute(node, "group", 1)
    if isinstance(x, Codes) and isinstance(weight, Codes):
        whole = np.pad(x.values.astype(np.int16) - np.int16(x.zero), pads)
        sums = _convolved(whole, weight.values, *geometry, exact=True)
        return _with_bias(sums.astype(np.int64), x, weight, bias, (1, -1, 1, 1))
    result = _convolved(np.pad(_real(x), pads), _real(weight), *geometry, exact=False)
    return result + _real(bias[0]).reshape(1, -1, 1, 1) if bias else result


def _with_bias(
    sums: Array, x: Codes, weight: Codes, bias: Sequence[Codes], shape: tuple[int, ...]
) -> Sums:
    if bias:
        sums = sums + bias[0].values.astype(np.int64).reshape(shape)
    return Sums(sums, (x.scale * weight.scale).reshape(shape))


def _convolved(
    x: Array, weight: Array, strides: Sequence[int], dilations: Sequence[int], groups: int,
    exact: bool,
) -> Array:  # fmt: skip
    """Return the convolution of padded images (N, C, H, W) with (out, C / groups, h, w)."""
    out, depth, height, width = weight.shape
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, (height, width), strict=True)]
    windows = sliding_window_view(x, spans, axis=(2, 3))[
        :, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]
    ]  # (N, C, rows, columns, h, w)
    images, _, rows, columns = windows.shape[:4]
    kind = _counting(x, weight) if exact else Single
    each = (groups, images * rows * columns, depth * height * width)
    parts = windows.reshape(images, groups, depth, rows, columns, height, width)
    taps: Array = parts.transpose(1, 0, 3, 4, 2, 5, 6).reshape(each).astype(kind)
    found = taps @ weight.reshape(groups, out // groups, -1).astype(kind).transpose(0, 2, 1)
    found = found.reshape(groups, images, rows, columns, out // groups)
    result: Array = found.transpose(1, 0, 4, 2, 3).reshape(images, out, rows, columns)
    return result


def _counting(x: Array, weight: Array) -> type:
    """Return a type of float in which no sum of the products loses a digit."""
    taps = weight[0].size
    highest = int(np.abs(x.astype(np.int64)).max()) * int(np.abs(weight.astype(np.int64)).max())
    return Single if highest * taps < _EXACT else np.float64


def _gemm(node: onnx.NodeProto, operands: Operands) -> Value | None:
    x, weight, *bias = operands
    if not isinstance(x, Codes) or not isinstance(weight, Codes):
        return None
    whole = x.values.astype(np.int64) - int(x.zero)
    kind = _counting(whole, weight.values)
    sums: Array = whole.astype(kind) @ weight.values.astype(kind).T
    return _with_bias(sums.astype(np.int64), x, weight, bias, (1, -1))


def _same(node: onnx.NodeProto, operands: Operands) -> Value:
    return operands[0]  # type: ignore[no-any-return]


_MOVES = (
    "Flatten", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators whose results are among the values they read, or zero."""

_RULES: Mapping[str, Rule] = {
    "Add": _add,
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Gemm": _gemm,
    "GlobalAveragePool": _mean,
    "Identity": _same,
    "Max": lambda node, operands: _real(operands[0]) if len(operands) == 1 else None,
    "QuantizeLinear": _quantize,
    "Relu": _relu,
    **dict.fromkeys(_MOVES, _moved),
}
