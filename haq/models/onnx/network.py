"""The network of a normalised ONNX file in PyTorch: its operators, one after the other."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, fx, nn

from haq.models.onnx.inputs import Array, Input
from haq.models.onnx.node import Linear, Module, Node, Run, Sized
from haq.models.onnx.operators import OPERATORS
from haq.models.onnx.operators.elementwise import SCALARS, TYPES
from haq.network.naming import named


class Growing(NamedTuple):
    """A constant that is the same for every row along some axes.

    Attributes:
        values: With one row along these axes.
        axes: Along them it is as long as there are rows.
    """

    values: Array
    axes: tuple[int, ...]


Constants = Mapping[str, Any]
"""Name to an array, a ``Growing`` one, or whole numbers of which some are ``Linear``."""


class Value(NamedTuple):
    """An operand that an operator or the caller computed."""

    name: str


class Stored(NamedTuple):
    """An operand that is a parameter or buffer of the network; along some axes it grows."""

    path: str
    name: str
    axes: tuple[int, ...] = ()


Operand = Value | Stored | float | int | bool | None


class Step(NamedTuple):
    """An operator: what computes it from which operands, and what it gives."""

    run: Run
    operands: Sequence[Operand]
    outputs: Sequence[str]
    module: str = ""
    sized: Sized | None = None


@dataclass(frozen=True)
class Origin:
    """Where a network of an ONNX file comes from.

    Attributes:
        file: The file without branches, its operators in the form of opset 21 or later.
        inputs: What the network is given, in order.
        outputs: Name of each output in the file, and the axis along which its rows lie.
        fixed: Inputs of the file that always have the same value, one row of it.
        axes: The axis of rows of those among them that have one.
        modules: The first output of a node of the file to the path of the module that computes it.
        shapes: Of the file's float tensors, -1 where a size is free.
        stored: Path of each parameter and buffer to the file's tensor whose values it has.
        worked_out: The tensors among these that the file computes from its constants.
    """

    file: bytes
    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, int | None], ...]
    fixed: Mapping[str, Array]
    axes: Mapping[str, int]
    modules: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    stored: Mapping[str, str]
    worked_out: Mapping[str, Array]

    def model(self) -> onnx.ModelProto:
        """Return the file."""
        model: onnx.ModelProto = onnx.ModelProto.FromString(self.file)
        return model


class OnnxNetwork(nn.Module):
    """The network of an ONNX file; all its inputs and outputs have their rows along axis 0.

    Attributes:
        origin: What files of its quantized networks are made of.
    """

    origin: Origin

    def __init__(self, origin: Origin, steps: Sequence[Step], kinds: Mapping[str, torch.dtype]):
        super().__init__()
        self.origin = origin
        self._steps = tuple(steps)
        self._kinds = dict(kinds)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        """Return the file's outputs: one tensor, or a dict of them by name.

        Args:
            inputs: In the file's order, the rows first; without those that are fixed.
            named: The same by their names in the file, in place of ``inputs``.
        """
        if named:
            names = [one.name for one in self.origin.inputs]
            if inputs or set(names) != set(named):
                raise TypeError(f"the inputs are {', '.join(names)}, not {', '.join(named)}")
            inputs = tuple(named[name] for name in names)
        values = self.tensors(inputs)
        results = {
            name: values[name] if axis in (None, 0) else values[name].movedim(axis, 0)
            for name, axis in self.origin.outputs
        }
        return next(iter(results.values())) if len(results) == 1 else results

    def tensors(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return every tensor of the file by name."""
        rows = inputs[0].shape[0]
        values: dict[str, Tensor] = {}
        for one, given in zip(self.origin.inputs, inputs, strict=True):
            x = given.movedim(0, one.axis) if one.axis else given
            values[one.name] = _tagged(x.to(self._kinds[one.name]), one.name)
        for step in self._steps:
            operands = [self._operand(operand, values, rows) for operand in step.operands]
            if step.module:
                operands.insert(0, self.get_submodule(step.module))
            if step.sized is not None:
                operands.insert(0, step.sized.now(rows))
            result = step.run(*operands)
            results = result if isinstance(result, tuple | list) else (result,)
            for name, each in zip(step.outputs, results, strict=False):
                if name:
                    values[name] = _tagged(each, name)
        return values

    def _operand(self, operand: Operand, values: Mapping[str, Tensor], rows: Any) -> Any:
        if isinstance(operand, Value):
            return values[operand.name]
        if not isinstance(operand, Stored):
            return operand
        owner, _, leaf = operand.path.rpartition(".")
        stored: Tensor = getattr(self.get_submodule(owner), leaf)
        if operand.axes:
            sizes = [rows if axis in operand.axes else s for axis, s in enumerate(stored.shape)]
            stored = stored.expand(sizes)
        return _tagged(stored, operand.name)


def _tagged(values: Tensor, name: str) -> Tensor:
    return named(values, name) if values.is_floating_point() else values


class Builder:
    """A network in the making.

    Attributes:
        steps: So far.
        stored: See ``Origin``.
        modules: See ``Origin``.
    """

    def __init__(self, graph: onnx.GraphProto, constants: Constants, weights: Collection[str]):
        self.steps: list[Step] = []
        self.stored: dict[str, str] = {}
        self.modules: dict[str, str] = {}
        self._weights = weights
        self._root = nn.Module()
        self._constants = constants
        values = (*graph.value_info, *graph.input, *graph.output)
        self._shapes = {
            v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in values if v.type.tensor_type.HasField("shape")
        }  # fmt: skip
        self._kinds = {value.name: value.type.tensor_type.elem_type for value in values}
        for tensor in graph.initializer:
            self._shapes[tensor.name] = list(tensor.dims)
            self._kinds[tensor.name] = tensor.data_type
        self._stored: dict[str, Stored] = {}
        self._modules: dict[Any, str] = {}

    def add(self, proto: onnx.NodeProto) -> None:
        """Add an operator.

        Raises:
            ModelError: The table does not have it, or not with its attributes.
        """
        node = Node(proto, self._constants, self._shapes, self._kinds)
        if node.kind not in OPERATORS:
            raise node.refused("the table of operators does not have it")
        read = OPERATORS[node.kind](node)
        module, sized = "", None
        if isinstance(read, Module):
            module = self.modules[node.outputs[0]] = self._install(node, read)
        elif isinstance(read, Sized):
            sized = read
        run = read if not isinstance(read, Module | Sized) else read.run
        self.steps.append(Step(run, self._operands(node), node.outputs, module, sized))

    def _operands(self, node: Node) -> list[Operand]:
        return [
            None if place in node.baked or not name else self._operand(node, place, name)
            for place, name in enumerate(node.inputs)
        ]

    def _operand(self, node: Node, place: int, name: str) -> Operand:
        if name not in self._constants:
            return Value(name)
        constant = self._constants[name]
        scalar = isinstance(constant, np.ndarray) and constant.size == 1 and node.kind in SCALARS
        if scalar and any(
            not node.is_constant(other) and node.rank(other) >= constant.ndim
            for other in range(len(node.inputs)) if other != place
        ):  # fmt: skip
            number: float = constant.item()
            return number
        return self._store(node, name, constant)

    def _store(self, node: Node, name: str, constant: Any) -> Stored:
        if name not in self._stored:
            if isinstance(constant, list):
                raise node.refused(f"its input {name!r} depends on the number of rows")
            values, axes = constant if isinstance(constant, Growing) else (constant, ())
            tensor = torch.from_numpy(np.array(values, order="C"))
            path = self._free(name)
            owner, _, leaf = path.rpartition(".")
            holder = _holder(self._root, owner)
            if tensor.is_floating_point() and name in self._weights and not axes:
                holder.register_parameter(leaf, nn.Parameter(tensor))
                self.stored[path] = name
            else:
                holder.register_buffer(leaf, tensor, persistent=False)
            self._stored[name] = Stored(path, name, axes)
        return self._stored[name]

    def _install(self, node: Node, read: Module) -> str:
        """Return the path of a module; nodes that compute the same with equal weights share it."""
        sources = tuple(names for _, names in read.weights.values())
        key = (node.kind, repr(read.module), sources)
        if key in self._modules:
            return self._modules[key]
        path = self._free(node.label)
        for name, (values, source) in read.weights.items():
            tensor = torch.from_numpy(np.array(values, np.float32, order="C"))
            if values is self._constants[source[0]]:
                self.stored[f"{path}.{name}"] = source[0]
            if name in read.module._buffers:
                read.module._buffers[name] = tensor
            else:
                setattr(read.module, name, nn.Parameter(tensor))
        if "num_batches_tracked" in read.module._buffers:
            read.module._buffers["num_batches_tracked"] = torch.tensor(0)
        owner, _, leaf = path.rpartition(".")
        _holder(self._root, owner).add_module(leaf, read.module)
        self._modules[key] = path
        return path

    def _free(self, name: str) -> str:
        """Return a name as a path at which nothing lies yet."""
        parts = [part or "_" for part in name.split(".")]
        here: nn.Module | None = self._root
        for place, part in enumerate(parts):
            last = place == len(parts) - 1
            while _is_taken(here, part, last):
                part += "_"
            parts[place] = part
            here = None if here is None else here._modules.get(part)
        return ".".join(parts)

    def network(self, origin: Origin) -> OnnxNetwork:
        """Return the network, in evaluation mode."""
        kinds = {one.name: TYPES[self._kinds[one.name]] for one in origin.inputs}
        network = OnnxNetwork(origin, self.steps, kinds)
        for name, module in self._root.named_children():
            network.add_module(name, module)
        for name, parameter in self._root.named_parameters(recurse=False):
            network.register_parameter(name, parameter)
        for name, buffer in self._root.named_buffers(recurse=False):
            network.register_buffer(name, buffer, persistent=False)
        return network.eval()


_NAMES = {*dir(nn.Module()), *dir(OnnxNetwork), *dir(fx.GraphModule), "origin", "meta", "_steps"}


def _is_taken(holder: nn.Module | None, name: str, last: bool) -> bool:
    """Return whether nothing can be put under a name, or nothing below it."""
    if name in _NAMES:
        return True
    if holder is None:
        return False
    inside = holder._modules.get(name)
    if inside is not None:
        return last or type(inside) is not nn.Module
    return hasattr(holder, name)


def _holder(root: nn.Module, path: str) -> nn.Module:
    for leaf in path.split(".") if path else ():
        if leaf not in root._modules:
            root.add_module(leaf, nn.Module())
        root = root.get_submodule(leaf)
    return root


def constants_of(two: onnx.GraphProto, three: onnx.GraphProto) -> dict[str, Any]:
    """Return the constants of a graph, from what it is for two rows and for three.

    Raises:
        ValueError: One differs in another way than by the number of rows.
    """
    others = {tensor.name: numpy_helper.to_array(tensor) for tensor in three.initializer}
    result: dict[str, Any] = {}
    for tensor in two.initializer:
        values, other = numpy_helper.to_array(tensor), others[tensor.name]
        same = values.shape == other.shape and np.array_equal(
            values, other, values.dtype.kind == "f"
        )
        result[tensor.name] = values if same else _growing(tensor.name, values, other)
    return result


def _growing(name: str, two: Array, three: Array) -> Any:
    if two.shape == three.shape and two.dtype.kind == "i" and two.ndim <= 1:
        slopes = (three - two).reshape(-1)
        return [
            Linear(int(v - 2 * slope), int(slope)) if slope else int(v)
            for v, slope in zip(two.reshape(-1), slopes, strict=True)
        ]
    if two.ndim == three.ndim:
        pairs = enumerate(zip(two.shape, three.shape, strict=True))
        axes = tuple(axis for axis, sizes in pairs if sizes == (2, 3))
        first = two[tuple(slice(0, 1) if a in axes else slice(None) for a in range(two.ndim))]
        if np.array_equal(np.broadcast_to(first, two.shape), two) and np.array_equal(
            np.broadcast_to(first, three.shape), three
        ):
            return Growing(first, axes)
    raise ValueError(f"constant {name!r} differs for two and for three inputs")
