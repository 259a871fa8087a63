"""An ONNX file whose floats are float16, for runtimes that compute in the types of the file."""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SMALLEST = 2.0**-24
"""Above zero, in float16: scales below it would become zero."""

_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a file that computes in float16 what another one computes in float32.

    Codes, and what is in other types, stay as they are; so do the inputs and the outputs of the
    file, which are converted at its ends.

    Args:
        model: Left as it is. Its operators must take float16, as those of QuantizeLinear and
            DequantizeLinear do from opset 19 on.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    for tensor in graph.initializer:
        if tensor.data_type == _FLOAT:
            tensor.CopyFrom(_halved(tensor))
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == _FLOAT:
                attribute.i = _HALF
            elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == _FLOAT:
                attribute.t.CopyFrom(_halved(attribute.t))
    for value in graph.value_info:
        if value.type.tensor_type.elem_type == _FLOAT:
            value.type.tensor_type.elem_type = _HALF
    before = [_renamed(graph.node, value.name, _FLOAT_ENDS[0]) for value in _floats(graph.input)]
    after = [_renamed(graph.node, value.name, _FLOAT_ENDS[1]) for value in _floats(graph.output)]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    return half


_FLOAT_ENDS = ("in", "out")


def _floats(values: Iterable[onnx.ValueInfoProto]) -> list[onnx.ValueInfoProto]:
    return [value for value in values if value.type.tensor_type.elem_type == _FLOAT]


def _halved(tensor: onnx.TensorProto) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    largest = float(np.finfo(np.float16).max)
    small = np.where(np.abs(values) < SMALLEST, np.sign(values) * SMALLEST, values)
    return numpy_helper.from_array(
        np.clip(small, -largest, largest).astype(np.float16).reshape(values.shape), tensor.name
    )


def _renamed(nodes: Iterable[onnx.NodeProto], name: str, end: str) -> onnx.NodeProto:
    """Let the nodes have a tensor of float16 for an input or an output of the file."""
    half = f"{name}.half"
    for node in nodes:
        for names in (node.input, node.output):
            for place, tensor in enumerate(names):
                if tensor == name:
                    names[place] = half
    ends = (name, half, _HALF) if end == "in" else (half, name, _FLOAT)
    return helper.make_node("Cast", [ends[0]], [ends[1]], f"{name}/cast", to=ends[2])
