"""The ONNX graph that is being written, and what is known of the values in it."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx

TYPES = {
    torch.float32: TensorProto.FLOAT, torch.float64: TensorProto.DOUBLE,
    torch.int64: TensorProto.INT64, torch.int32: TensorProto.INT32, torch.bool: TensorProto.BOOL,
    torch.int8: TensorProto.INT8, torch.uint8: TensorProto.UINT8, torch.int16: TensorProto.INT16,
}  # fmt: skip
"""ONNX's types of torch's."""

LAST = 2**63 - 1
"""Where a slice ends that has no end."""


class UntranslatedError(Exception):
    """An operation has no rule; the message is its name."""


class Known:
    """What is known of a tensor: its shape, with None where it varies, and its type."""

    def __init__(self, shape: Sequence[int | None], dtype: torch.dtype):
        self.shape, self.dtype = tuple(shape), dtype

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)


class Draft:
    """An ONNX graph so far.

    Attributes:
        known: Node of the captured graph to what is known of its value; nodes that give sizes or
            several tensors are not in it.
        names: Node to the name of its value, or to the names of its values.
        nodes: Written so far.
        constants: By name.
        state: Parameters and buffers that are read, by name.
    """

    def __init__(self, known: Mapping[fx.Node, Any]):
        self.known = known
        self.names: dict[fx.Node, Any] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.state: dict[str, Tensor] = {}
        self.shares: dict[fx.Node, str] = {}  # softmax to the codes of its shares
        self.exactly = False  # whether floats are computed as haq.quantization.exact says
        self.at = ""  # name of the node that is being written

    def emit(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **more: Any) -> Any:
        """Write an operator; return the name of its output, or of its several outputs."""
        names = [f"{self.at}.{len(self.nodes)}.{number}" for number in range(outputs)]
        node = helper.make_node(kind, inputs, names, domain=domain)
        given = {name: value for name, value in more.items() if value is not None}
        node.attribute.extend(helper.make_attribute(name, value) for name, value in given.items())
        self.nodes.append(node)
        return names[0] if outputs == 1 else names

    def called(self, result: Any, name: str) -> Any:
        """Give the last operator's output a name where it is a result; return the results."""
        if not self.nodes or result != self.nodes[-1].output[0]:
            return result
        self.nodes[-1].output[0] = name
        return name

    def constant(self, values: Any, dtype: torch.dtype = torch.int64) -> str:
        """Return the name of a constant."""
        kind = helper.tensor_dtype_to_np_dtype(TYPES[dtype])
        array = np.asarray(values, kind)
        name = f"constant.{dtype}.{array.shape}.{array.tolist()}".replace("torch.", "")
        if array.size > 8:
            name = f"constant.{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def initializer(self, name: str, value: Tensor) -> str:
        """Return the name of a parameter or buffer."""
        self.state[name] = value
        return name

    def of(self, value: Any) -> Known:
        """Return what is known of the value of a node, or of a number."""
        if isinstance(value, fx.Node):
            known = self.known[value]
            if isinstance(known, Known):
                return known
            return Known((), torch.int64)
        kind = {bool: torch.bool, int: torch.int64, float: torch.float32}
        return Known((), kind[type(value)])

    def tensor(self, value: Any, dtype: torch.dtype | None = None) -> str:
        """Return the name of a value: a node's, or that of a number; brought to a type."""
        if not isinstance(value, fx.Node):
            return self.constant(value, dtype or self.of(value).dtype)
        name: str = self.names[value]
        known = self.known[value]
        if not isinstance(known, Known):  # a size, which is a tensor of one axis here
            name = self.emit("Reshape", name, self.constant([]))
        if dtype is not None and self.of(value).dtype != dtype:
            return self.cast(name, dtype)
        return name

    def cast(self, name: str, dtype: torch.dtype) -> str:
        """Return a tensor in another type."""
        result: str = self.emit("Cast", name, to=TYPES[dtype])
        return result

    def sizes(self, values: Sequence[Any]) -> str:
        """Return the name of a tensor (n,) of sizes, of which some are nodes."""
        if not any(isinstance(value, fx.Node) for value in values):
            return self.constant([int(value) for value in values])
        parts = [
            self.size(value) if isinstance(value, fx.Node) else self.constant([int(value)])
            for value in values
        ]
        result: str = parts[0] if len(parts) == 1 else self.emit("Concat", *parts, axis=0)
        return result

    def size(self, value: Any) -> str:
        """Return the name of a tensor (1,) of a size or an index."""
        if not isinstance(value, fx.Node):
            return self.constant([int(value)])
        if isinstance(self.known[value], Known):
            return str(self.emit("Reshape", self.names[value], self.constant([1])))
        return str(self.names[value])


def as_constant(name: str, value: Tensor) -> onnx.TensorProto:
    """Return a tensor as a constant of a file."""
    return numpy_helper.from_array(value.detach().cpu().contiguous().numpy(), name)


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return all arguments of a node by name, those that are not given with their defaults."""
    target = getattr(node.target, "computes", node.target)
    if isinstance(target, torch._ops.OpOverload):
        schema = target._schema.arguments
        given = dict(zip([one.name for one in schema], node.args, strict=False))
        defaults = {one.name: one.default_value for one in schema if one.has_default_value()}
        return {**defaults, **given, **node.kwargs}
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return dict(zip("abcdef", node.args, strict=False))
    bound.apply_defaults()
    return dict(bound.arguments)


def axis_of(axis: int, rank: int) -> int:
    """Return an axis counted from the front."""
    return axis + rank if axis < 0 else axis


def read_nodes(nodes: Sequence[onnx.NodeProto], results: Collection[str]) -> list[onnx.NodeProto]:
    """Return the nodes whose outputs are read by others, or are results, in their order."""
    used, kept = set(results), []
    for node in reversed(nodes):
        if not used.isdisjoint(node.output):
            kept.append(node)
            used.update(node.input)
            used.update(read_inside(node))
    return kept[::-1]


def read_inside(node: onnx.NodeProto) -> set[str]:
    """Return the tensors that the graphs inside a node read."""
    inner = [one for held in node.attribute for one in (held.g, *held.graphs)]
    return {
        tensor for graph in inner for one in graph.node
        for tensor in (*one.input, *read_inside(one))
    } | {value.name for graph in inner for value in graph.output}  # fmt: skip
