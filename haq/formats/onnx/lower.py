"""A quantized network as an ONNX file that stock ONNX Runtime executes with integer kernels.

``template`` lets torch export the network once, with a marker where a tensor is rounded and one for
every layer; ``lower`` replaces the markers by QuantizeLinear, Clip, DequantizeLinear and the layer
with its packed integer weights. So the quantizers of the file are those of the network, where the
network has them, and a variant of the network costs milliseconds:

- A layer is written as ``haq.quantization.convert`` has it, with its BatchNorm folded in. Where its
  result is not quantized a convolution is written as ConvInteger, so that it stays one of integers.
- A tensor has uint8 codes, around the middle of as many as its bits have where it can be negative,
  and a Clip where its levels are fewer than those of uint8.
- Weights of 2 bits are stored as INT2, of 3 and 4 as INT4, of more as INT8. ONNX Runtime widens
  them to INT8 when it loads the file, and takes the same kernels.
- Weights in groups, and layers that round what they read as they run: see ``groups``.
- Weights whose sums could leave 16 bits in kernels of x86 CPUs without VNNI (see ``saturation``)
  are stored as UINT8, whose kernels are exact.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib.metadata import version
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx

from haq.errors import ModelError
from haq.formats.onnx.groups import CONTRIB
from haq.formats.onnx.layers import lower_layer, lower_matrix
from haq.formats.onnx.norms import lower_layer_norm, lower_norm
from haq.formats.onnx.operators import (
    lower_operator,
    lower_rounding,
    lower_table,
    lower_unit,
    lower_whole,
)
from haq.formats.onnx.rows import lower_shared_rows, write_shared_rows
from haq.formats.onnx.template import DOMAIN, OPSET, Template
from haq.formats.onnx.translation.draft import read_nodes
from haq.formats.onnx.writer import Cpu, Writer

FLOAT32 = "haq.float32"
"""Key in a file's metadata of what is computed in float32 where other files take float64."""

OPSET_INT2 = 25
"""ONNX opset of files with weights of 2 bits: the first with INT2 and UINT2."""


def lower(
    template: Template,
    network: fx.GraphModule,
    metadata: Mapping[str, Any] | None = None,
    cpu: Cpu = "any",
    floats: Collection[str] = (),
    symmetric: bool = False,
) -> onnx.ModelProto:
    """Return the ONNX file of a network: stock operators only, quantized as the network is.

    The input is named "images" (float32, the batch free) and the output "logits". The node of a
    layer bears the layer's name.

    Args:
        template: Of this network, or of one from the same graph.
        network: Gives bits, clips, weights, BatchNorms and all that stays float; in a file they are
            constants.
        metadata: Kept in the file's metadata; what is not a text is written as JSON.
        cpu: "vnni" keeps all weights int8, which is faster and right on CPUs with VNNI only.
        floats: Names of layers that compute in float although integers reach them.
        symmetric: Write int8 codes around zero between quantizers, unpacked, as TensorRT reads
            them. Tensors whose grid reaches above code 127, which those without negative values do
            at 8 bits, then have half as many steps.

    Raises:
        ModelError: The template holds a constant that this network has otherwise.

    Source: the pattern (QuantizeLinear and DequantizeLinear around every operator) is described in
    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.
    """
    file = Writer(template, network, cpu, floats, symmetric)
    state = network.state_dict()
    for name, value in template.folded.items():
        if not torch.equal(state[name], value):
            raise ModelError(f"{name} has changed since the network was exported to ONNX")
    for tensor in template.model.graph.initializer:
        now = state.get(template.states.get(tensor.name, tensor.name))
        if now is not None and tuple(tensor.dims) == tuple(now.shape):
            # The template may be that of other weights.
            tensor = numpy_helper.from_array(now.cpu().numpy(), tensor.name)
        file.constants[tensor.name] = tensor
    for node in template.model.graph.node:
        write = _MARKERS[node.op_type] if node.domain == DOMAIN else lower_operator
        write(file, node)
    write_shared_rows(file)
    for value in template.model.graph.output:
        if file.now(value.name) != value.name:
            file.add("Identity", [file.now(value.name)], value.name)
    floats_note = {FLOAT32: template.float32} if template.float32 else {}
    return _model(file, template.model, {**(metadata or {}), **floats_note})


def _leave_out(file: Writer, node: onnx.NodeProto) -> None:
    file.rename(node.output[0], file.now(node.input[0]))


_MARKERS: Mapping[str, Callable[[Writer, onnx.NodeProto], None]] = {
    "round": lower_rounding,
    "layer": lower_layer,
    "rows": lower_shared_rows,
    "weight": lower_matrix,
    "apart": _leave_out,
    "whole": lower_whole,
    "unit": lower_unit,
    "table": lower_table,
    "norm": lower_norm,
    "layer_norm": lower_layer_norm,
}
"""Kind of a marker in a template to the function that writes what it stands for."""


def _model(file: Writer, source: onnx.ModelProto, metadata: Mapping[str, Any]) -> onnx.ModelProto:
    # ONNX Runtime carries out what nobody reads: floats of codes, where the codes alone are read.
    nodes = read_nodes([*file.first, *file.nodes], {value.name for value in source.graph.output})
    used = {tensor for node in nodes for tensor in node.input}
    constants = [tensor for name, tensor in file.constants.items() if name in used]
    graph = helper.make_graph(
        nodes, source.graph.name if file.original else "network",
        _plain_values(source.graph.input),
        _plain_values(source.graph.output), constants,
    )  # fmt: skip
    packed = any(tensor.data_type in (TensorProto.INT2, TensorProto.UINT2) for tensor in constants)
    own = next(entry.version for entry in source.opset_import if entry.domain in ("", "ai.onnx"))
    opsets = [helper.make_opsetid("", max(own, OPSET_INT2 if packed else OPSET))]
    if any(node.domain == CONTRIB for node in nodes):
        opsets.append(helper.make_opsetid(CONTRIB, 1))
    model = helper.make_model(
        graph,
        producer_name="haq",
        producer_version=version("haq"),
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets[:1]),
    )
    if file.original:
        model.doc_string = source.doc_string
        model.metadata_props.extend(e for e in source.metadata_props if e.key not in metadata)
    for key, value in metadata.items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.append(onnx.StringStringEntryProto(key=key, value=text))
    return model


def _plain_values(values: Iterable[onnx.ValueInfoProto]) -> list[onnx.ValueInfoProto]:
    plain = []
    for value in values:
        copy = onnx.ValueInfoProto()
        copy.CopyFrom(value)
        copy.ClearField("metadata_props")
        copy.ClearField("doc_string")
        plain.append(copy)
    return plain
