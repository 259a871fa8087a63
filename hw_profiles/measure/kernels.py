"""Which kernel runs a layer: reading the graph that ONNX Runtime makes of a model.

ONNX Runtime fuses, renames and adds nodes. A node that multiplies weights is traced back to the
layer by its name, which is that of the last node fused into it; every other node belongs to the
layer whose result it works on.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx

from haq.allocation.policy import FLOAT, Bits, Policy
from haq.errors import TargetError

INTEGER = {"QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat"}
"""Operators of the optimised graph that multiply integers."""

_GROUPED = {"MatMulNBits"}
"""Operators that multiply weights in groups."""

NARROW = 4
"""Bits of weights in groups up to which they are multiplied as they are; wider ones become floats
when a file is loaded, unless activations are rounded to multiply integers."""

_DYNAMIC = {"DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat"}
"""Operators that multiply integers which are rounded as they run."""

_PRODUCTS = {*INTEGER, *_GROUPED, *_DYNAMIC}

_FLOAT = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
_DEQUANTIZED = "dequantized"
_LOOKUPS = ("Gather", "GatherBlockQuantized")
_ALONE = {*_LOOKUPS, "ConvTranspose", _DEQUANTIZED}
"""Operators of layers for which there is no kernel of integers: right whatever the bits."""
_SUFFIX = re.compile(r"(_token_\d+|_nchwc|_out0|/duplicated)+$")  # what ONNX Runtime adds to names


class Origins:
    """The nodes of an optimised graph, by the layers of the exported one that they come from.

    Attributes:
        layers: Node to the layer to which its time belongs; nodes before the first layer belong to
            that one.
        kernels: Layer to the operators that multiply its weights or look them up; one, unless it
            is called twice.

    Raises:
        TargetError: A kernel cannot be traced back to the exported graph.
    """

    def __init__(self, exported: onnx.GraphProto, run: onnx.GraphProto, layers: Sequence[str]):
        self._known = {name: place for place, name in enumerate(layers)}
        self._stations: dict[str, str] = {}  # node or tensor to the product whose result it is
        self._orders: dict[str, int] = {}
        lookups = set()
        for node in exported.node:
            self._read(node)
            if node.op_type in _LOOKUPS and node.name.partition("/")[0] in self._known:
                lookups.add(node.name.partition("/")[0])
        self.layers: dict[str, str] = {}
        self.kernels: dict[str, list[str]] = {name: [] for name in layers}
        owners: dict[str, str] = {}
        for node in run.node:
            owner = self._owner(node, owners)
            owners |= dict.fromkeys(filter(None, node.output), owner)
            self.layers[node.name] = owner or layers[0]
        read = {tensor.name.rpartition(".")[0] for tensor in exported.initializer}
        named = {self._layer(node.name) for node in exported.node}
        for name in (self._known.keys() & read) - named:  # a matrix of an LSTM has no node
            self.kernels[name].append(_DEQUANTIZED)
        for name in lookups:  # one of constant rows is carried out when the file is loaded
            self.kernels[name] = self.kernels[name] or ["Gather"]

    def _read(self, node: onnx.NodeProto) -> None:
        layer = self._layer(node.name)
        if layer:
            station = layer
        elif node.op_type in _FLOAT:
            station = node.name
        else:
            station = self._latest(self._stations, node.input)
        if station:
            self._orders.setdefault(station, len(self._orders))
        self._stations |= dict.fromkeys((node.name, *node.output), station)

    def _layer(self, name: str) -> str:
        """Return the layer that a node is called after: its own name, or what stands before a /."""
        while name and name not in self._known:
            name = name.rpartition("/")[0]
        return name

    def _latest(self, table: Mapping[str, str], tensors: Iterable[str]) -> str:
        orders = [table[tensor] for tensor in tensors if table.get(tensor)]
        return max(orders, key=self._orders.__getitem__, default="")

    def _owner(self, node: onnx.NodeProto, owners: Mapping[str, str]) -> str:
        before = self._latest(owners, node.input)
        if node.op_type in _ALONE and node.name.partition("/")[0] in self._known:
            layer = str(node.name.partition("/")[0])
            self.kernels[layer].append(node.op_type)
            return layer
        if node.op_type not in _PRODUCTS | _FLOAT:
            return before
        station = self._station(node)
        if station not in self._known:  # such as the product of two activations
            return before
        self.kernels[station].append(node.op_type)
        return station

    def _station(self, node: onnx.NodeProto) -> str:
        name: str
        for name in (node.name, *node.output):
            station = self._stations.get(_SUFFIX.sub("", name))
            if station:
                return station
        tensor: str
        for tensor in node.input:  # weights, scales and biases are called after their layer
            layer, dot, _ = tensor.rpartition(".")
            if dot and layer in self._known:
                return layer
        raise TargetError(
            f"ONNX Runtime's kernel {node.name!r} ({node.op_type}) cannot be traced to a layer"
        )


def _claimed(bits: Bits) -> tuple[str, set[str]]:
    """Return what the kernel of a layer is called, and the operators that are one."""
    if bits.is_book:
        return "a float", _FLOAT
    if bits.block and not bits.dynamic and bits.weight > NARROW:
        return "a float", _FLOAT
    if bits.block:
        return "a grouped", _GROUPED
    if bits.dynamic:
        return "a dynamic integer", _DYNAMIC
    if bits.floats:
        # Weights alone may be brought to groups by ONNX Runtime itself.
        return "a float", _FLOAT | _GROUPED if bits.weight != FLOAT else _FLOAT
    return "an integer", INTEGER


def misplaced(kernels: Mapping[str, Sequence[str]], policy: Policy) -> Iterator[tuple[str, str]]:
    """Yield the layers that do not run as the policy says, each with the operators that run it."""
    for name, operators in kernels.items():
        right = _claimed(policy[name])[1]
        if not operators or not (right | _ALONE).issuperset(operators):
            yield name, " and ".join(operators) or "no kernel of its own"


def check_kernels(kernels: Mapping[str, Sequence[str]], policy: Policy) -> None:
    """Say so if a layer does not run in the kernel that its bits claim.

    Args:
        kernels: As in ``Origins``.
        policy: Bits of every layer.

    Raises:
        TargetError: Some layer runs in another kernel; the message names it.
    """
    for name, operators in misplaced(kernels, policy):
        claimed = _claimed(policy[name])[0]
        raise TargetError(
            f"layer {name!r} at {policy[name]} should run in {claimed} kernel, but ONNX Runtime "
            f"runs it in {operators}; its latency would be that of something else"
        )
