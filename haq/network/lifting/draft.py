"""The graph that is being written, and the operations and parameters that stay as they are."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from haq.network.lifting.modules import Constant
from haq.network.lifting.names import Names
from haq.network.lifting.nodes import changes_nothing, name_of
from haq.network.lifting.tree import ModuleTree
from haq.network.lifting.weights import Weight, copied
from haq.network.program import Program

aten = torch.ops.aten


def _bilinear(first: Tensor, second: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``functional.bilinear``, which autocast leaves out."""
    kind = weight.dtype
    return functional.bilinear(first.to(kind), second.to(kind), weight, bias)


_bilinear.computes = aten.bilinear.default  # type: ignore[attr-defined]

# The first two depend on how the values lie in memory, which may differ from the sample's.
_REPLACED = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
    aten.bilinear.default: _bilinear,
}


class Draft:
    """A network's graph and modules, as far as they are written.

    Attributes:
        values: Node of the program to the node that holds its value here.
        weights: Node of the program to its value, for what depends on parameters alone.
        owners: Parameter, by id, to the layer whose weight it is.
        reads: Key of a weight to the node that gives it to what is no layer.
        used: The parameters and buffers, by id, that the graph depends on.
        named: Tensors to which the forward gave names, see ``haq.network.naming``.
        named_weights: The same of weights: their keys in ``reads``.
        computed: The layers whose weights are computed from other parameters.
        tied: Two names that shared a parameter, of which the second has a copy.
        shared: Table whose rows are looked up to the layer that multiplies with its weight.
    """

    def __init__(self, model: nn.Module, program: Program):
        self.model, self.state = model, program.state
        self.names = Names(model)
        self.graph, self.modules = fx.Graph(), ModuleTree()
        self.values: dict[fx.Node, Any] = {}
        self.weights: dict[fx.Node, Weight] = {}
        self.owners: dict[int, str] = {}
        self.reads: dict[Hashable, fx.Node] = {}
        self.used: set[int] = set()
        self.named: dict[str, fx.Node] = {}
        self.named_weights: dict[str, Hashable] = {}
        self.computed: list[str] = []
        self.tied: list[tuple[str, str]] = []
        self.shared: dict[str, str] = {}
        self._passing = _passing(model)

    def module(self, name: str) -> nn.Module:
        """Return a module that is written already."""
        return self.modules.root.get_submodule(name)

    def value(self, node: Any) -> Any:
        """Return the node that holds the value of a node of the program."""
        if node not in self.values and node in self.weights:
            weight = self.weights[node]
            read = self.reads.get(weight.key)
            if read is None:
                read = self.reads[weight.key] = self._read(node, weight)
            self.used |= weight.sources.keys()
            return read
        return self.values[node]

    def call(self, name: str, values: Any) -> fx.Node:
        """Write the call of a module on the value of a node of the program."""
        return self.graph.call_module(name, (self.value(values),))

    def write(self, node: fx.Node) -> fx.Node:
        """Write a node of the program as the operation that it is."""
        arguments: Any = (node.args, node.kwargs)
        args, kwargs = fx.map_arg(arguments, self.value)
        target: Any = node.target
        target = _REPLACED.get(target, target)
        return self.graph.create_node("call_function", target, args, kwargs, name_of(node))

    def _read(self, node: fx.Node, weight: Weight) -> fx.Node:
        if node.op != "placeholder":
            value: fx.Node
            value = self.value(node.args[0]) if changes_nothing(node) else self.write(node)
            return value
        if not weight.name or id(weight.value) in self._passing:
            return self._constant(weight)
        return self.graph.create_node("get_attr", self._home(weight))

    def _constant(self, weight: Weight) -> fx.Node:
        number = sum(name.startswith("constants.") for name in self.modules.keys)
        self.modules.install(f"constants.{number}", Constant(weight.value), weight.key)
        return self.graph.call_module(f"constants.{number}")

    def _home(self, weight: Weight) -> str:
        """Return the name that a parameter or buffer is read under, and put it there."""
        owner = self.owners.get(id(weight.value))
        if owner is not None and weight.name in (owner, f"{owner}.weight"):
            return f"{owner}.weight"
        if owner is not None:
            self.modules.root.get_submodule(owner).weight = copied(weight.value)
            self.tied.append((weight.name.rpartition(".")[0] or weight.name, owner))
        self.modules.register(weight.name, weight.value)
        return weight.name


def _passing(model: nn.Module) -> set[int]:
    """Return the buffers that are no part of a model's state."""
    return {
        id(module._buffers[name]) for module in model.modules()
        for name in module._non_persistent_buffers_set
    }  # fmt: skip
