"""The template of a network that comes from an ONNX file: that file, with markers in it.

Its inputs, outputs and nodes keep their names, its free axes stay free, and what stays float stays
as it was. Tensors of the file are told in the captured graph by their names, see
``haq.network.naming``.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx

from haq.allocation.policy import FLOAT
from haq.errors import ModelError
from haq.formats.onnx.layout import KEY, text_of
from haq.models.onnx.branches import drop_unused
from haq.models.onnx.network import Origin
from haq.models.onnx.operators.recurrent import GATES
from haq.network.naming import TENSORS
from haq.network.operators import first_input
from haq.quantization.exact import computed_exactly, grid_of
from haq.quantization.fake_quant import Rounding

WIDE = {
    "LayerNormalization": 3, "Softmax": 1, "ReduceMean": 1, "ReduceSum": 1, "MatMul": 2,
    "Einsum": 2, "Sigmoid": 1, "Tanh": 1, "Exp": 1, "GroupNormalization": 3,
}  # fmt: skip
"""Operators that ONNX Runtime has in float64 too, and how many of their inputs are floats."""


class Marked(NamedTuple):
    """A file with markers.

    Attributes:
        model: The file.
        states: Constant of the file to the parameter of the network whose values it has.
        unnamed: Parameters and buffers whose values are in the file in another form.
    """

    model: onnx.ModelProto
    states: Mapping[str, str]
    unnamed: Mapping[str, Tensor]


def from_original(
    origin: Origin, network: fx.GraphModule, layers: Sequence[str], norms: Mapping[str, str],
    domain: str,
) -> Marked:  # fmt: skip
    """Return the file that the float network of a quantized one comes from, with markers.

    Args:
        origin: The file.
        network: From ``haq.quantization.fake_quant.quantize``.
        layers: Names of its layers.
        norms: Layer to the BatchNorm that folds into it.
        domain: Of the markers.

    Raises:
        ModelError: A layer is not one node of the file.
    """
    model = origin.model()
    _store_constants(model.graph, origin)
    rewritten = _Rewritten(model.graph, network, layers, norms, origin, domain).nodes()
    del model.graph.node[:]
    model.graph.node.extend(rewritten)
    drop_unused(model.graph)
    del model.graph.value_info[:]
    model.graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * len(shape))
        for name, shape in origin.shapes.items()
    )
    model.metadata_props.append(onnx.StringStringEntryProto(key=KEY, value=text_of(origin)))
    states = {tensor: path for path, tensor in origin.stored.items()}
    return Marked(model, states, _unnamed(network, layers, norms, origin))


def _store_constants(graph: onnx.GraphProto, origin: Origin) -> None:
    """Make initializers of all constants, those included that ONNX Runtime worked out."""
    known = {tensor.name for tensor in graph.initializer}
    worked_out = {
        tensor: value for tensor, value in origin.worked_out.items() if tensor not in known
    }
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = TensorProto()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
        elif not worked_out.keys() & set(node.output):
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    for name, value in worked_out.items():
        graph.initializer.append(numpy_helper.from_array(value, name))
    del graph.node[:]
    graph.node.extend(nodes)


def _unnamed(
    network: fx.GraphModule, layers: Sequence[str], norms: Mapping[str, str], origin: Origin
) -> dict[str, Tensor]:
    """Return the parameters that stay float and are no constants of the file as they are."""
    recurrent = {
        origin.modules[n.output[0]]
        for n in origin.model().graph.node
        if n.op_type in GATES and n.output[0] in origin.modules
    }
    written = tuple(f"{name}." for name in (*layers, *norms.values(), *recurrent))
    roundings = {name for name, module in network.named_modules() if isinstance(module, Rounding)}
    return {
        path: value.clone() for path, value in network.state_dict().items()
        if path not in origin.stored and not path.startswith(written)
        and path.rpartition(".")[0] not in roundings and not path.endswith("num_batches_tracked")
    }  # fmt: skip


class _Rewritten:
    """The nodes of a file with markers, while they are written."""

    def __init__(
        self, graph: onnx.GraphProto, network: fx.GraphModule, layers: Sequence[str],
        norms: Mapping[str, str], origin: Origin, domain: str,
    ):  # fmt: skip
        self._graph, self._network = graph, network
        self._origin, self._domain = origin, domain
        self._weights: dict[str, str] = {}  # parameter to the tensor that holds it
        self._layers, self._norms = set(layers), set(norms.values())
        self._state = network.state_dict()
        by_name = {node.name: node for node in network.graph.nodes}
        tensors: Mapping[str, str] = network.meta[TENSORS]
        self._values = {name: by_name[node] for name, node in tensors.items() if node in by_name}
        self._holders = set(self._values.values())
        self._makers = {name: node for node in graph.node for name in node.output if name}
        self._edges: dict[tuple[int, int], fx.Node] = {}
        self._result: list[onnx.NodeProto] = []
        roundings = filter(self._is_rounding, network.graph.nodes)
        widths = [network.get_submodule(str(node.target)).bits for node in roundings]
        self._exact = any(bits != FLOAT for bits in widths)
        self._holding: dict[fx.Node, str] = {}  # what is written so far, by the tensor that has it

    def nodes(self) -> list[onnx.NodeProto]:
        """Return the file's nodes, with markers for layers and quantizers."""
        self._check_outputs()
        for node in self._graph.node:
            self._find_edges(node)
        for value in (*self._graph.input, *list(self._graph.initializer)):
            self._hold(value.name)
        for node in self._graph.node:
            self._write(node)
        self._check_complete()
        return self._result

    def _check_complete(self) -> None:
        markers = [node for node in self._result if node.domain == self._domain]
        written = {self._name(node) for node in markers}
        missing = sorted(self._layers - written)
        if missing:
            raise ModelError(
                f"layer {missing[0]!r} is no node of the ONNX file that the network comes from"
            )
        for node in self._network.graph.nodes:
            if self._is_rounding(node) and str(node.target) not in written:
                raise ModelError(
                    f"a tensor within an operator of the ONNX file would be rounded ({node.target})"
                )

    def _name(self, marker: onnx.NodeProto) -> str:
        return str(helper.get_node_attr_value(marker, "name").decode())

    def _check_outputs(self) -> None:
        for result in self._network.graph.output_node().all_input_nodes:
            if self._is_rounding(result):
                raise ModelError("an output of the ONNX file would be rounded")

    def _is_rounding(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(
            self._network.get_submodule(str(node.target)), Rounding
        )

    def _source(self, node: fx.Node) -> fx.Node:
        """Return the tensor that a node reads, before it is rounded."""
        while self._is_rounding(node):
            node = node.all_input_nodes[0]
        return node

    def _find_edges(self, node: onnx.NodeProto) -> None:
        """Note what a node reads in the network: a tensor of the file, or a rounding of it."""
        own = [self._values[name] for name in node.output if name in self._values]
        reads: dict[fx.Node, fx.Node] = {}
        waiting, seen = list(own), set(own)
        while waiting:
            for operand in waiting.pop().all_input_nodes:
                source = self._source(operand)
                if source in self._holders and source not in own:
                    reads.setdefault(source, operand)
                elif source not in seen:
                    seen.add(source)
                    waiting.append(source)
        for part in self._group(node):
            for place, name in enumerate(part.input):
                value = self._values.get(name)
                if value in reads:
                    self._edges.setdefault((id(part), place), reads[value])

    def _group(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """Yield a node and those before it whose results the network does not have."""
        waiting, seen = [node], {id(node)}
        while waiting:
            part = waiting.pop()
            yield part
            for name in part.input:
                maker = self._makers.get(name)
                if maker is None or name in self._values or id(maker) in seen:
                    continue
                if not any(output in self._values for output in maker.output):
                    seen.add(id(maker))
                    waiting.append(maker)

    def _write(self, node: onnx.NodeProto) -> None:
        call = self._values.get(node.output[0])
        layer = None if call is None else self._layer(call)
        if layer is not None and call is not None:
            self._write_layer(node, layer, call)
        else:
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            for place, name in enumerate(node.input):
                copy.input[place] = self._read(node, place, name)
            if node.op_type in GATES and node.output[0] in self._origin.modules:
                self._put_weights(copy, self._origin.modules[node.output[0]])
            self._result += _wide(copy) if self._is_wide(node, call) else [copy]
        for name in node.output:
            self._hold(name)

    def _is_wide(self, node: onnx.NodeProto, call: fx.Node | None) -> bool:
        """Return whether the network computes a node in float64, as ``quantization.exact`` says."""
        if call is None or node.op_type not in WIDE or not self._exact:
            return False
        pools = node.op_type == "ReduceMean" and grid_of(first_input(call)) is not None
        return computed_exactly(call) and not pools  # of codes, which is done in integers

    def _put_weights(self, node: onnx.NodeProto, path: str) -> None:
        """Let an LSTM or GRU read its weights and biases from those of the network."""
        for place, kinds in ((1, ["weight_ih"]), (2, ["weight_hh"]), (3, ["bias_ih", "bias_hh"])):
            directions = []
            for ending in ("_l0", "_l0_reverse"):
                names = [f"{path}.{kind}{ending}" for kind in kinds]
                parts = [self._parameter(n, node.op_type) for n in names if self._has(n)]
                if len(parts) > 1:
                    parts = [self._add("Concat", parts, f"{names[0]}.both", axis=0)]
                directions += parts
            if directions:
                first = self._constant([0])
                ends = [self._add("Unsqueeze", [d, first], f"{d}.row") for d in directions]
                whole = f"{node.output[0]}/{kinds[0]}"
                node.input[place] = self._add("Concat", ends, whole, axis=0)

    def _has(self, name: str) -> bool:
        return f"{name}.weight" in self._state or name in self._state

    def _parameter(self, name: str, kind: str) -> str:
        """Return the tensor that holds a parameter, its gates in ONNX's order."""
        if name in self._weights:
            return self._weights[name]
        if name in self._layers:
            tensor = f"{name}.matrix"
            self._mark("weight", None, tensor, name, "")
            value = self._state[f"{name}.weight"]
        else:
            key = name if name in self._state else f"{name}.weight"
            tensor, value = key, self._state[key]
            self._graph.initializer.append(numpy_helper.from_array(value.numpy(), key))
        rows = np.arange(len(value)).reshape(len(GATES[kind]), -1)
        order = rows[np.argsort(GATES[kind])].reshape(-1)
        self._weights[name] = self._add(
            "Gather", [tensor, self._constant(order.tolist())], f"{name}.gates", axis=0
        )
        return self._weights[name]

    def _constant(self, values: list[int]) -> str:
        name = f"haq/constant{len(self._graph.initializer)}"
        self._graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._result.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def _layer(self, call: fx.Node) -> fx.Node | None:
        """Return the call of the layer whose result a node gives, with its BatchNorm or padding."""
        while (call.op == "call_module" and str(call.target) in self._norms) or _is_pad(call):
            if call.all_input_nodes[0] in self._holders and _is_pad(call):
                return None
            call = call.all_input_nodes[0]
        is_layer = call.op == "call_module" and str(call.target) in self._layers
        return call if is_layer else None

    def _write_layer(self, node: onnx.NodeProto, layer: fx.Node, end: fx.Node) -> None:
        if any(str(user.target) in self._norms for user in layer.users) and end is layer:
            return  # written with its BatchNorm
        operand = layer.all_input_nodes[0]
        is_table = node.op_type == "Gather"  # whose indices, as all integers, have no name
        tensor = node.input[1] if is_table else self._padded(operand, node.output[0])
        tail = end
        while tail.op == "call_module" and str(tail.target) in self._norms:
            tail = tail.all_input_nodes[0]
        output = node.output[0] if tail is layer else f"{node.output[0]}/uncut"
        self._mark("layer", tensor, output, str(layer.target), node.output[0])
        if tail is not layer:
            self._add_pad(tail, output, node.output[0])

    def _padded(self, operand: fx.Node, label: str) -> str:
        """Return the tensor that a layer reads, padded before it where the two sides differ."""
        if _is_pad(operand) and operand not in self._holders:
            inner = self._padded(operand.all_input_nodes[0], label)
            return self._add_pad(operand, inner, f"{label}/padded")
        if operand not in self._holding:
            raise ModelError(f"what layer {label!r} reads is no tensor of the ONNX file")
        return self._holding[operand]

    def _add_pad(self, pad: fx.Node, tensor: str, output: str) -> str:
        sizes: Any = pad.args[1]
        rank = 2 + len(sizes) // 2  # of a convolution: all but batch and channels are padded
        ends = [(0, 0)] * rank
        for axis, pair in enumerate(zip(sizes[::2], sizes[1::2], strict=True)):
            ends[rank - 1 - axis] = pair
        flat = np.array([*(a for a, _ in ends), *(b for _, b in ends)], np.int64)
        name = f"{output}/pads"
        self._graph.initializer.append(numpy_helper.from_array(flat, name))
        self._result.append(helper.make_node("Pad", [tensor, name], [output], f"{output}/pad"))
        return output

    def _read(self, node: onnx.NodeProto, place: int, name: str) -> str:
        value = self._values.get(name)
        if value is None:
            return name
        edge = self._edges.get((id(node), place))
        if edge is not None:
            return self._holding.get(edge, name) if self._is_rounding(edge) else name
        if node.op_type in ("Shape", "Size"):
            # A second reader of the float would keep ONNX Runtime from its integer kernel.
            users = [user for user in value.users if self._is_rounding(user)]
            return self._holding[users[0]] if users else name
        return name

    def _hold(self, name: str) -> None:
        """Write the quantizers of a tensor behind what gives it."""
        value = self._values.get(name)
        if value is None or value in self._holding:
            return
        self._holding[value] = name
        waiting = [value]
        while waiting:
            source = waiting.pop(0)
            for user in source.users:
                if self._is_rounding(user) and user not in self._holding:
                    output = f"{user.target}/rounded"
                    self._mark("round", self._holding[source], output, str(user.target), name)
                    self._holding[user] = output
                    waiting.append(user)

    def _mark(self, kind: str, tensor: str | None, output: str, name: str, like: str) -> None:
        marker = helper.make_node(
            kind, [tensor] if tensor else [], [output], f"{output}/{kind}", domain=self._domain
        )
        shape = list(self._origin.shapes.get(like, []))
        marker.attribute.append(helper.make_attribute("name", name))
        marker.attribute.append(
            helper.make_attribute("shape", shape, attr_type=onnx.AttributeProto.INTS)
        )
        self._result.append(marker)


def _wide(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return a node that computes in float64, what it reads and gives being float32."""
    nodes = []
    for place in range(WIDE[node.op_type]):
        if place < len(node.input) and node.input[place]:
            name = f"{node.output[0]}/wide{place}"
            nodes.append(_cast(node.input[place], name, TensorProto.DOUBLE))
            node.input[place] = name
    result = node.output[0]
    node.output[0] = f"{result}/wide"
    return [*nodes, node, _cast(node.output[0], result, TensorProto.FLOAT)]


def _cast(tensor: str, result: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [tensor], [result], f"{result}/cast", to=kind)


def _is_pad(node: fx.Node) -> bool:
    return "pad" in getattr(node.target, "__name__", "") and node.op == "call_function"
