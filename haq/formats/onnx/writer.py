"""The nodes and constants of a file while it is made from a template."""

from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import fx

from haq.allocation.policy import FLOAT
from haq.formats.onnx.template import DOMAIN, Template
from haq.quantization.fake_quant import Rounding

Array = NDArray[Any]

Cpu = Literal["any", "vnni"]
"""For which x86 CPUs a file is written: all, or those with VNNI."""


INT8 = (-128, 127)
"""The codes of int8."""


class Grid(NamedTuple):
    """The codes of a dequantized tensor.

    Attributes:
        scale: What a code is worth.
        zero: The code of zero.
        top: The highest code.
        code: The tensor of codes.
        label: Begins the names of the constants of scale and zero point.
    """

    scale: np.float32
    zero: int
    top: int
    code: str = ""
    label: str = ""


class Codes(NamedTuple):
    """The weights of a layer that is written.

    Attributes:
        tensor: Of codes, int8 or uint8.
        zero: The code of zero.
        scale: What a code is worth (scales,).
    """

    tensor: str
    zero: np.int8 | np.uint8
    scale: Array


class Writer:
    """A file in the making.

    Attributes:
        network: Gives bits, clips, weights and BatchNorms.
        original: Whether the nodes and the file keep the names that they have in the template.
        cpu: For which CPUs the file is.
        floats: Names of layers that compute in float whatever they read.
        symmetric: Whether codes are int8 around zero, as TensorRT has them.
        nodes: So far.
        first: Nodes that go before all others.
        constants: By name.
        grids: Of the tensors that a DequantizeLinear gives.
    """

    def __init__(
        self,
        template: Template,
        network: fx.GraphModule,
        cpu: Cpu,
        floats: Collection[str],
        symmetric: bool = False,
    ):
        self.network, self.norms = network, template.norms
        self.original = template.original
        self.cpu, self.floats, self.symmetric = cpu, floats, symmetric
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.grids: dict[str, Grid] = {}
        self.ends: dict[str, tuple[int, int]] = {}  # of the codes of each quantized tensor
        self.written: set[str] = set()  # names of layers that have a node
        self.first: list[onnx.NodeProto] = []  # of constants alone: carried out at loading
        self.codes: dict[str, Codes] = {}  # of layers that are written
        self.grouped: set[str] = set()  # names of layers whose codes in groups are written
        self.rounded: dict[
            tuple[str, str], tuple[str, str, str]
        ] = {}  # see haq.formats.onnx.groups
        self.shared_rows: list[tuple[int, onnx.NodeProto]] = []  # see haq.formats.onnx.rows
        self._renamed: dict[str, str] = {}  # a tensor of the template to the one that holds it now
        graph = template.model.graph
        self._names = {node.name for node in graph.node}
        self._outputs = {value.name for value in graph.output}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        self._ranks = {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in (*graph.value_info, *graph.input)
        }
        for node in graph.node:
            if node.domain == DOMAIN and _has_shape(node):
                self._ranks[node.output[0]] = len(shape_of(node))
            for tensor in node.input:
                self._users.setdefault(tensor, []).append(node)

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node that is called after its output, or nearly so; return its output."""
        name = f"{output}/{kind}" if output in self._names else output
        self.nodes.append(helper.make_node(kind, inputs, [output], name, **attributes))
        return output

    def constant(self, name: str, values: Array) -> str:
        """Add a constant; return its name."""
        self.constants[name] = numpy_helper.from_array(values, name)
        return name

    def rename(self, tensor: str, holder: str) -> None:
        """Let a tensor of the file stand for one of the template."""
        self._renamed[tensor] = holder

    def now(self, tensor: str) -> str:
        """Return the tensor of the file that holds what a tensor of the template held."""
        while tensor in self._renamed:
            tensor = self._renamed[tensor]
        return tensor

    def rank(self, tensor: str) -> int | None:
        """Return the number of axes of a tensor of the template."""
        return self._ranks.get(tensor)

    def scalar(self, tensor: str) -> float | None:
        """Return the one value of a constant."""
        known = self.constants.get(tensor)
        return None if known is None else float(numpy_helper.to_array(known).item())

    def rounding(self, node: onnx.NodeProto) -> Rounding | None:
        """Return the quantizer that a node of the template stands for."""
        if node.domain != DOMAIN or node.op_type != "round":
            return None
        module = self.network.get_submodule(name_of(node))
        assert isinstance(module, Rounding)
        return module

    def readers(self, tensor: str) -> list[onnx.NodeProto | None]:
        """Return the nodes of the template that read a tensor; None for the network's result.

        A quantizer or an Identity that leaves its tensor as it is counts as its own readers.
        """
        readers: list[onnx.NodeProto | None] = [None] if tensor in self._outputs else []
        for node in self._users.get(tensor, []):
            module = self.rounding(node)
            left = module is not None and module.bits == FLOAT
            if left or (node.op_type == "Identity" and not node.domain):
                readers += self.readers(node.output[0])
            else:
                readers.append(node)
        return readers

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """Return the node of the file that computes a tensor."""
        return next((node for node in reversed(self.nodes) if tensor in node.output), None)

    def holds(self, tensor: str, grid: Grid, ends: tuple[int, int]) -> bool:
        """Return whether a tensor is one of codes of such a grid, between such ends."""
        known = self.grids.get(tensor)
        return (
            known is not None
            and (known.scale, known.zero, known.top) == (grid.scale, grid.zero, grid.top)
            and self.ends.get(known.code) == ends
        )

    def quantized(self, tensor: str, grid: Grid, label: str, ends: tuple[int, int]) -> Grid:
        """Round a tensor to the codes of a grid between two ends; return the grid with its code."""
        if self.symmetric:
            return self._around_zero(tensor, grid, label, ends)
        scale = self.constant(f"{label}.scale", np.array(grid.scale))
        zero = self.constant(f"{label}.zero_point", np.array(grid.zero, np.uint8))
        code = self.add("QuantizeLinear", [tensor, scale, zero], f"{label}.quantized")
        if ends != (0, 255):
            names = [
                self.constant(f"{label}.{which}", np.array(value, np.uint8))
                for which, value in zip(("lowest", "highest"), ends, strict=True)
            ]
            code = self.add("Clip", [code, *names], f"{label}.clipped")
        self.ends[code] = ends
        return grid._replace(code=code, label=label)

    def _around_zero(self, tensor: str, grid: Grid, label: str, ends: tuple[int, int]) -> Grid:
        """Round a tensor to int8 codes around zero, clipped before where they are fewer.

        A grid that reaches above code 127 has half as many steps: TensorRT has no unsigned codes.
        """
        lowest, highest = (end - grid.zero for end in ends)
        coarser = 2 if highest > INT8[1] else 1
        size = np.float32(grid.scale * coarser)
        scale = self.constant(f"{label}.scale", np.array(size))
        zero = self.constant(f"{label}.zero_point", np.array(0, np.int8))
        lowest, highest = lowest // coarser, highest // coarser
        # Between 0 and 127 it is the rectifier before that clips, or int8 itself.
        if highest < INT8[1] or INT8[0] < lowest < 0:
            values = [
                self.constant(f"{label}.{which}", np.array(end * size, np.float32))
                for which, end in (("lowest", lowest), ("highest", highest))
            ]
            tensor = self.add("Clip", [tensor, *values], f"{label}.clipped")
        code = self.add("QuantizeLinear", [tensor, scale, zero], f"{label}.quantized")
        self.ends[code] = ends
        return Grid(size, 0, grid.top, code, label)

    def dequantized(self, grid: Grid, output: str) -> str:
        """Add the floats that a tensor of codes stands for."""
        zero = f"{grid.label}.zero_point"
        self.add("DequantizeLinear", [grid.code, f"{grid.label}.scale", zero], output)
        self.grids[output] = grid
        return output


_STORED = {2: ml_dtypes.int2, 4: ml_dtypes.int4}


def narrow_codes(file: Writer, label: str, codes: Array) -> str | None:
    """Write the packed codes of a layer if they are few, and return them widened to int8.

    ONNX Runtime widens them when it loads the file; a DequantizeLinear of 4 bits it would carry out
    in every run, and then compute in float.
    """
    for bits, kind in _STORED.items():
        if np.abs(codes).max(initial=0) < 2 ** (bits - 1):
            packed = file.constant(f"{label}.weight_codes", codes.astype(kind))
            wide = f"{label}.weight_int8"
            file.first.append(helper.make_node("Cast", [packed], [wide], wide, to=TensorProto.INT8))
            return wide
    return None


def name_of(node: onnx.NodeProto) -> str:
    """Return the name of the module that a marker stands for."""
    name: str = helper.get_node_attr_value(node, "name").decode()
    return name


def _has_shape(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "shape" for attribute in node.attribute)


def shape_of(node: onnx.NodeProto) -> list[int]:
    """Return the shape of a marker's result, -1 where it varies."""
    return list(helper.get_node_attr_value(node, "shape"))
