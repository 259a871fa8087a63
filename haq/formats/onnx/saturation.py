"""Which layers of a file can give wrong sums on x86 CPUs without VNNI, told from its codes alone.

The 8-bit kernels of such CPUs multiply uint8 activations by int8 weights and add two neighbouring
products in 16 bits (``vpmaddubsw``), where larger sums become 32 767 or -32 768. So a layer is
right on every CPU if ::

    2 * (highest code of the activations) * (highest |code| of the weights) <= 32 767

Depthwise convolutions have kernels that add in 32 bits, and so have weights in uint8, which take
longer than int8 on CPUs with VNNI.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

LARGEST_PAIR = 32_767
"""The highest sum of two products that 16 bits hold."""

EXACT_KERNELS = "session.x64quantprecision"
"""The option of an ONNX Runtime session that, set to "1", makes all kernels exact, and slower."""


class Saturating(NamedTuple):
    """A layer whose sums can leave 16 bits.

    Attributes:
        layer: Name of its node.
        top: The highest code of the activations it reads.
        largest: The highest absolute code of its weights.
    """

    layer: str
    top: int
    largest: int


def can_saturate(top: int, largest: int, depthwise: bool = False) -> bool:
    """Return whether the sum of two products can leave 16 bits.

    Args:
        top: The highest code of the activations, as uint8.
        largest: The highest absolute code of the weights, as int8.
        depthwise: Whether every input channel has one filter of its own.

    >>> can_saturate(255, 64), can_saturate(255, 65), can_saturate(129, 127)
    (False, True, False)
    """
    return not depthwise and 2 * top * largest > LARGEST_PAIR


def saturating(file: onnx.ModelProto) -> list[Saturating]:
    """Return the layers of a file that are not exact on every x86 CPU.

    Args:
        file: With QuantizeLinear and DequantizeLinear around its operators, or ConvInteger.
    """
    codes = _Codes(file.graph)
    layers = []
    for node in codes.products():
        top, weight = codes.top(node.input[0]), codes.constant(node.input[1])
        if top is None or weight is None or weight.dtype != np.int8:
            continue
        largest = int(np.abs(weight.astype(np.int16)).max(initial=0))
        if can_saturate(top, largest, is_depthwise(node, weight)):
            layers.append(Saturating(node.name, top, largest))
    return layers


def exact_but_slower(file: onnx.ModelProto) -> list[str]:
    """Return the layers of a file whose weights are uint8, so that they are exact everywhere."""
    codes = _Codes(file.graph)
    weights = ((node.name, codes.constant(node.input[1])) for node in codes.products())
    return [name for name, weight in weights if weight is not None and weight.dtype == np.uint8]


def is_depthwise(node: onnx.NodeProto, weight: NDArray[Any]) -> bool:
    """Return whether ONNX Runtime takes its depthwise kernel for a convolution."""
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    plane = node.op_type == "Conv" and weight.ndim == 4
    return plane and groups > 1 and weight.shape[:2] == (groups, 1)


_PRODUCTS = ("Conv", "Gemm", "MatMul", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat")

_MOVES = (
    "Clip", "DequantizeLinear", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape",
    "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip


class _Codes:
    """The integers of a graph, as far as they are known without running it."""

    def __init__(self, graph: onnx.GraphProto):
        self.graph = graph
        self.makers = {tensor: node for node in graph.node for tensor in node.output}
        self.initializers: Mapping[str, onnx.TensorProto] = {t.name: t for t in graph.initializer}

    def products(self) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if node.op_type in _PRODUCTS]

    def top(self, tensor: str) -> int | None:
        """Return the highest code of a tensor, counted from 0; None if it is float."""
        node = self.makers.get(tensor)
        if node is None:
            return None
        if node.op_type == "DynamicQuantizeLinear":
            return 255
        if node.op_type == "QuantizeLinear":
            zero = self.initializers[node.input[2]] if len(node.input) > 2 else None
            signed = zero is not None and zero.data_type == TensorProto.INT8
            return 255 if signed or zero is None or zero.data_type == TensorProto.UINT8 else None
        if node.op_type not in _MOVES:
            return None
        below = self.top(node.input[0])
        if node.op_type == "Clip" and below is not None and len(node.input) > 2:
            end = self.constant(node.input[2])
            if end is not None and end.dtype == np.uint8:
                return min(below, int(end))
        return below

    def constant(self, tensor: str) -> NDArray[Any] | None:
        """Return the integers that a tensor of weights has, or stands for."""
        if tensor in self.initializers:
            return numpy_helper.to_array(self.initializers[tensor])
        node = self.makers.get(tensor)
        if node is None:
            return None
        if node.op_type in ("DequantizeLinear", "Transpose"):
            return self.constant(node.input[0])
        if node.op_type not in ("Cast", "Mul"):
            return None
        parts = [self.constant(name) for name in node.input]
        if node.op_type == "Cast" and parts[0] is not None:
            kind = helper.get_node_attr_value(node, "to")
            return parts[0].astype(helper.tensor_dtype_to_np_dtype(kind))
        if node.op_type == "Mul" and parts[0] is not None and parts[1] is not None:
            return np.asarray(parts[0] * parts[1])
        return None
