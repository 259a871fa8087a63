"""A quantized network as an ONNX file that stock ONNX Runtime executes with integer kernels.

``template`` lets torch export the network once, with a marker where a tensor is rounded and one for
every layer; ``lower`` replaces the markers by QuantizeLinear, Clip, DequantizeLinear and the layer
with its packed integer weights. So the quantizers of the file are those of the network, where the
network has them, and a variant of the network costs milliseconds:

- A layer is written as ``haq.quantization.convert`` has it, with its BatchNorm folded in.
- A tensor has uint8 codes, around the middle of as many as its bits have where it can be negative,
  and a Clip where its levels are fewer than those of uint8.
- Weights of 2 bits are stored as INT2, of 3 and 4 as INT4, of more as INT8. ONNX Runtime widens
  them to INT8 when it loads the file, and takes the same kernels.
"""

import copy
import io
import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from haq.allocation.policy import FLOAT
from haq.errors import ModelError
from haq.network.capture import Sample
from haq.network.operators import LayerModule
from haq.quantization.bn_folding import Norm, norms_of
from haq.quantization.convert import Folded, InputGrid, fold, layers
from haq.quantization.fake_quant import QuantConv2d, QuantLinear, Rounding
from haq.quantization.quantizer import levels, step

OPSET = 21
"""ONNX opset of the files: the first with INT4."""

OPSET_INT2 = 25
"""ONNX opset of files with weights of 2 bits: the first with INT2."""

DOMAIN = "haq"
"""Of the markers in a template."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Template:
    """A network in ONNX, its layers and quantizers still markers.

    Attributes:
        model: With nodes ``haq.layer`` and ``haq.round`` that name the network's modules.
        norms: Layer to the BatchNorm that folds into it.
    """

    model: onnx.ModelProto
    norms: Mapping[str, str]


class _Round(nn.Module):
    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` behind a marker."""
        return _marker("round", x, self.name, x.shape)


class _Layer(nn.Module):
    def __init__(self, name: str, module: nn.Module):
        super().__init__()
        self.name, self.module = name, module

    def forward(self, x: Tensor) -> Tensor:
        """Return a marker in the place of the module."""
        return _marker("layer", x, self.name, self.module(x).shape)


def _marker(kind: str, x: Tensor, name: str, shape: torch.Size) -> Tensor:
    known = [size if type(size) is int else -1 for size in shape]
    result: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{kind}", (x,), {"name": name, "shape": known},
        dtype=x.dtype, shape=shape, version=1,
    )  # fmt: skip
    return result


def template(network: fx.GraphModule, sample: Sample) -> Template:
    """Return the ONNX form of a network that ``haq.quantization.fake_quant.quantize`` made.

    It serves every network from the same graph whose parts that stay float have the same values.

    Args:
        network: Left as it is.
        sample: What one forward takes; the first axis is the batch, and free in the file.

    Raises:
        ModelError: torch cannot export the network.
    """
    inputs = sample if isinstance(sample, tuple) else (sample,)
    names = layers(network)
    marked = copy.deepcopy(network).eval()
    for name, module in network.named_modules():
        if isinstance(module, Rounding):
            _replace(marked, name, _Round(name))
    for name in names:
        _replace(marked, name, _Layer(name, _plain(marked.get_submodule(name))))
    norms = norms_of(network)
    for norm in norms.values():
        _replace(marked, norm, nn.Identity())
    return Template(_exported(marked, inputs), norms)


def _plain(module: nn.Module) -> nn.Module:
    """Let a copy of a layer be exported without its rounding: only its shapes count."""
    module.__class__ = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
    return module


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)


def _exported(marked: nn.Module, inputs: Sequence[Tensor]) -> onnx.ModelProto:
    # Two images: torch takes an axis of one for a constant.
    pairs = tuple(torch.zeros(2, *value.shape[1:], dtype=value.dtype) for value in inputs)
    batch = torch.export.Dim("batch")
    names = ["images"] if len(pairs) == 1 else [f"input{place}" for place in range(len(pairs))]
    try:
        with warnings.catch_warnings(), _quiet(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                marked, pairs, dynamo=True, opset_version=OPSET, verbose=False,
                dynamic_shapes=tuple({0: batch} for _ in pairs),
                input_names=names, output_names=["logits"],
            )  # fmt: skip
    except Exception as error:
        raise ModelError(f"the network cannot be exported to ONNX: {_reason(error)}") from error
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch says of packages that it misses."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _reason(error: Exception) -> str:
    text = str(error.__cause__ or error).strip()
    return text.splitlines()[0] if text else type(error).__name__


class _Grid(NamedTuple):
    """The codes of a tensor: uint8 around ``zero`` up to ``top``, ``scale`` apart."""

    scale: np.float32
    zero: int
    top: int


class _File:
    """The nodes and constants of the file while they are made."""

    def __init__(self, network: fx.GraphModule, made: Template):
        self.network, self.norms = network, made.norms
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.renamed: dict[str, str] = {}  # a tensor of the template to the one that holds it now
        self.grids: dict[str, _Grid] = {}  # of tensors that are dequantized, reshaped or not
        self.written: set[str] = set()  # names of layers that have a node
        self.users: dict[str, list[onnx.NodeProto]] = {}
        self.ranks = {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in (*made.model.graph.value_info, *made.model.graph.input)
        }
        for node in made.model.graph.node:
            if node.domain == DOMAIN:
                shape = helper.get_node_attr_value(node, "shape")
                self.ranks[node.output[0]] = len(shape)
            for tensor in node.input:
                self.users.setdefault(tensor, []).append(node)

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def constant(self, name: str, values: Array) -> str:
        self.constants[name] = numpy_helper.from_array(values, name)
        return name

    def now(self, tensor: str) -> str:
        while tensor in self.renamed:
            tensor = self.renamed[tensor]
        return tensor


def lower(
    made: Template, network: fx.GraphModule, metadata: Mapping[str, Any] | None = None
) -> onnx.ModelProto:
    """Return the ONNX file of a network: stock operators only, quantized as the network is.

    The input is named "images" (float32, the batch free) and the output "logits". The node of a
    layer bears the layer's name.

    Args:
        made: The ``template`` of this network, or of one from the same graph.
        network: Gives bits, clips, weights and BatchNorm; in a file they are constants.
        metadata: Kept in the file's metadata; what is not a text is written as JSON.

    Source: the pattern (QuantizeLinear and DequantizeLinear around every operator) is described in
    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.
    """
    file = _File(network, made)
    for tensor in made.model.graph.initializer:
        file.constants[tensor.name] = tensor
    for node in made.model.graph.node:
        _lower_node(file, node)
    for value in made.model.graph.output:
        if file.now(value.name) != value.name:
            file.add("Identity", [file.now(value.name)], value.name)
    return _model(file, made.model, metadata or {})


def _lower_node(file: _File, node: onnx.NodeProto) -> None:
    if node.domain == DOMAIN:
        name = helper.get_node_attr_value(node, "name").decode()
        if node.op_type == "round":
            _lower_round(file, node, name)
        else:
            _lower_layer(file, node, name)
        return
    kept = onnx.NodeProto()
    kept.CopyFrom(node)
    kept.ClearField("metadata_props")
    kept.ClearField("doc_string")
    kept.name = f"op/{node.output[0]}"
    for place, tensor in enumerate(node.input):
        kept.input[place] = file.now(tensor)
    if _moves(file, node) and kept.input[0] in file.grids:
        file.grids[node.output[0]] = file.grids[kept.input[0]]
    if node.op_type == "Add":
        kept.input[:] = [_requantized(file, tensor) for tensor in kept.input]
    if node.op_type == "Clip" and _is_relu(file, node):
        kept = helper.make_node("Relu", kept.input[:1], node.output, node.output[0])
    if node.op_type == "ReduceMean" and _is_global_pool(file, node):
        kept = helper.make_node("GlobalAveragePool", kept.input[:1], node.output, node.output[0])
    file.nodes.append(kept)
    if node.op_type == "MaxPool" and node.output[0] in file.grids:
        file.renamed[node.output[0]] = _requantized(file, node.output[0])


_MOVES = {
    "Flatten", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose",
    "Unsqueeze",
}  # fmt: skip
"""Operators whose results are among the values they read, or zero."""


def _moves(file: _File, node: onnx.NodeProto) -> bool:
    padded = node.op_type == "Pad" and len(node.input) > 2 and node.input[2]
    return node.op_type in _MOVES and (not padded or _scalar(file, node.input[2]) == 0)


def _requantized(file: _File, tensor: str) -> str:
    """Return an operand of an addition with a DequantizeLinear right before it, if it has a grid.

    Rounding a second time to the grid that values are on changes none of them, and lets ONNX
    Runtime add integers.
    """
    grid = file.grids.get(tensor)
    source = next((node for node in reversed(file.nodes) if tensor in node.output), None)
    if grid is None or source is None or source.op_type == "DequantizeLinear":
        return tensor
    scale = file.constant(f"{tensor}.scale", np.array(grid.scale))
    zero = file.constant(f"{tensor}.zero_point", np.array(grid.zero, np.uint8))
    code = file.add("QuantizeLinear", [tensor, scale, zero], f"{tensor}.quantized")
    result = file.add("DequantizeLinear", [code, scale, zero], f"{tensor}.dequantized")
    file.grids[result] = grid
    return result


def _is_relu(file: _File, node: onnx.NodeProto) -> bool:
    """Return whether the quantizers behind a ReLU6 clip for it: then integer kernels take it in."""
    ends = [_scalar(file, tensor) for tensor in node.input[1:]]
    if len(ends) != 2 or ends[0] != 0 or ends[1] is None:
        return False
    roundings = [_rounding(file, user) for user in file.users.get(node.output[0], [])]
    return bool(roundings) and all(
        r is not None and r.bits != FLOAT and float(r.clip) <= ends[1] for r in roundings
    )


def _scalar(file: _File, tensor: str) -> float | None:
    known = file.constants.get(tensor)
    return None if known is None else float(numpy_helper.to_array(known))


def _rounding(file: _File, node: onnx.NodeProto) -> Rounding | None:
    if node.domain != DOMAIN or node.op_type != "round":
        return None
    module = file.network.get_submodule(helper.get_node_attr_value(node, "name").decode())
    assert isinstance(module, Rounding)
    return module


def _is_global_pool(file: _File, node: onnx.NodeProto) -> bool:
    axes = file.constants.get(node.input[1]) if len(node.input) > 1 else None
    keeps = all(a.i == 1 for a in node.attribute if a.name == "keepdims")
    if axes is None or not keeps or file.ranks.get(node.input[0]) != 4:
        return False
    return sorted(numpy_helper.to_array(axes).tolist()) in ([2, 3], [-2, -1])


def _lower_round(file: _File, node: onnx.NodeProto, name: str) -> None:
    module = _rounding(file, node)
    assert module is not None
    tensor, output = file.now(node.input[0]), node.output[0]
    if module.bits == FLOAT:
        file.renamed[output] = tensor
        return
    lo, hi = levels(module.bits, module.signed)
    zero = module.zero_point
    grid = _Grid(np.float32(step(module.bits, module.clip, module.signed).item()), zero, hi + zero)
    label = name.removeprefix("quantizers.")
    scale = file.constant(f"{label}.scale", np.array(grid.scale))
    offset = file.constant(f"{label}.zero_point", np.array(zero, np.uint8))
    code = file.add("QuantizeLinear", [tensor, scale, offset], f"{label}.quantized")
    if (lo + zero, hi + zero) != (0, 255):
        ends = [
            file.constant(f"{label}.{which}", np.array(value + zero, np.uint8))
            for which, value in (("lowest", lo), ("highest", hi))
        ]
        code = file.add("Clip", [code, *ends], f"{label}.clipped")
    result = file.add("DequantizeLinear", [code, scale, offset], f"{label}.dequantized")
    file.renamed[output] = result
    file.grids[result] = grid


def _lower_layer(file: _File, node: onnx.NodeProto, name: str) -> None:
    module = file.network.get_submodule(name)
    norm = file.network.get_submodule(file.norms[name]) if name in file.norms else None
    assert isinstance(module, LayerModule) and (norm is None or isinstance(norm, Norm))
    tensor, output = file.now(node.input[0]), node.output[0]
    grid = file.grids.get(tensor)
    known = None if grid is None else InputGrid(torch.tensor(grid.scale), grid.top)
    folded = fold(module, norm, known)
    # A module that is called twice has two nodes; the first bears its name.
    label = f"{name}/{output}" if name in file.written else name
    file.written.add(name)
    if folded.scale is None and tensor in file.grids:
        # Otherwise ONNX Runtime quantizes the weights of a float layer between integer ones.
        tensor = file.add("Max", [tensor], f"{label}.float_input")
    operands = [tensor, _weight(file, label, module, folded)]
    if folded.bias is not None:
        operands.append(_bias(file, label, folded, grid))
    if isinstance(module, nn.Conv2d):
        attributes = _geometry(name, module)
        file.nodes.append(helper.make_node("Conv", operands, [output], label, **attributes))
        return
    shape = helper.get_node_attr_value(node, "shape")
    _gemm(file, operands, output, label, shape, module.in_features)


def _gemm(
    file: _File, operands: list[str], output: str, label: str, shape: Sequence[int], features: int
) -> None:
    """Add a matrix product; rows that stand in several axes are put into one for it."""
    if len(shape) == 2:
        file.nodes.append(helper.make_node("Gemm", operands, [output], label, transB=1))
        return
    flat = file.constant(f"{label}.rows", np.array([-1, features], np.int64))
    back = file.constant(f"{label}.shape", np.array(shape, np.int64))
    operands[0] = file.add("Reshape", [operands[0], flat], f"{label}.input")
    rows = f"{label}.product"
    file.nodes.append(helper.make_node("Gemm", operands, [rows], label, transB=1))
    file.add("Reshape", [rows, back], output)


def _geometry(name: str, module: nn.Conv2d) -> dict[str, Any]:
    if module.padding_mode != "zeros":
        raise ModelError(
            f"layer {name!r} pads with {module.padding_mode!r}; only zeros can be exported: "
            "put an nn.Module that pads in front of it"
        )
    return {
        "dilations": list(module.dilation), "group": module.groups,
        "kernel_shape": list(module.kernel_size), "pads": _pads(module),
        "strides": list(module.stride),
    }  # fmt: skip


def _pads(module: nn.Conv2d) -> list[int]:
    """Return how much is added at the top, the left, the bottom and the right."""
    if module.padding == "valid":
        return [0, 0, 0, 0]
    if module.padding == "same":
        spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [span // 2 for span in spans] + [span - span // 2 for span in spans]
    return [int(size) for size in module.padding] * 2


_STORED = {2: ml_dtypes.int2, 3: ml_dtypes.int4, 4: ml_dtypes.int4}


def _weight(file: _File, label: str, module: LayerModule, folded: Folded) -> str:
    values = folded.weight.numpy()
    if folded.scale is None:
        return file.constant(f"{label}.weight_values", values)
    assert isinstance(module, QuantConv2d | QuantLinear)
    stored = _STORED.get(module.weight_bits)
    if stored is None:
        code = file.constant(f"{label}.weight_codes", values)
    else:
        # ONNX Runtime carries this out when it loads the file; a DequantizeLinear of 4 bits it
        # would carry out in every run, and then compute in float.
        packed = file.constant(f"{label}.weight_codes", (values // folded.factor).astype(stored))
        wide = file.add("Cast", [packed], f"{label}.weight_int8", to=TensorProto.INT8)
        factor = file.constant(f"factor_{folded.factor}", np.array(folded.factor, np.int8))
        code = file.add("Mul", [wide, factor], f"{label}.weight_rescaled")
    scale = folded.scale.numpy()
    if len(scale) == 1:
        scale = np.full(len(values), scale[0])
    scales = file.constant(f"{label}.weight_scale", scale)
    zeros = file.constant(f"{label}.weight_zero_point", np.zeros(scale.shape, np.int8))
    return file.add(
        "DequantizeLinear", [code, scales, zeros], f"{label}.weight_dequantized", axis=0
    )


def _bias(file: _File, label: str, folded: Folded, grid: _Grid | None) -> str:
    assert folded.bias is not None
    if folded.scale is None or grid is None:
        return file.constant(f"{label}.bias_values", folded.bias.float().numpy())
    # float32, as ONNX Runtime multiplies them
    unit = np.broadcast_to(folded.scale.numpy() * grid.scale, (len(folded.bias),))
    code = np.rint(folded.bias.numpy() / unit).astype(np.int32)
    return file.add(
        "DequantizeLinear",
        [
            file.constant(f"{label}.bias_codes", code),
            file.constant(f"{label}.bias_scale", np.ascontiguousarray(unit)),
            file.constant(f"{label}.bias_zero_point", np.zeros(unit.shape, np.int32)),
        ],
        f"{label}.bias_dequantized", axis=0,
    )  # fmt: skip


def _model(file: _File, source: onnx.ModelProto, metadata: Mapping[str, Any]) -> onnx.ModelProto:
    used = {tensor for node in file.nodes for tensor in node.input}
    constants = [tensor for name, tensor in file.constants.items() if name in used]
    graph = helper.make_graph(
        file.nodes, "network", _plain_values(source.graph.input),
        _plain_values(source.graph.output), constants,
    )  # fmt: skip
    packed = any(tensor.data_type == TensorProto.INT2 for tensor in constants)
    opset = helper.make_opsetid("", OPSET_INT2 if packed else OPSET)
    model = helper.make_model(
        graph,
        producer_name="haq",
        producer_version=version("haq"),
        opset_imports=[opset],
        ir_version=helper.find_min_ir_version_for([opset]),
    )
    for key, value in metadata.items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.append(onnx.StringStringEntryProto(key=key, value=text))
    return model


def _plain_values(values: Iterable[onnx.ValueInfoProto]) -> list[onnx.ValueInfoProto]:
    plain = []
    for value in values:
        kept = onnx.ValueInfoProto()
        kept.CopyFrom(value)
        kept.ClearField("metadata_props")
        kept.ClearField("doc_string")
        plain.append(kept)
    return plain
