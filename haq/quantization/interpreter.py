"""Run a captured graph node by node, with the values of nodes kept as they were computed."""

import operator
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from haq.network.inputs import Batch, Inputs, arguments, beside

_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv}

Values = dict[fx.Node, Any]
"""What nodes gave."""


class CopyingInterpreter(fx.Interpreter):
    """Runs a graph; what works in place works on a copy, since the value may be needed again."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.extra_traceback = False  # takes seconds, and is not shown

    def run(self, *args: Any, **options: Any) -> Any:
        """Return what the graph gives for inputs, one tensor or several."""
        if len(args) == 1 and isinstance(args[0], Tensor | Batch):
            args = arguments(self.graph, beside(self.module, args[0]))
        return super().run(*args, **options)

    def run_node(self, n: fx.Node) -> Any:
        """Return the value of a node, from those of ``env``."""
        if not works_in_place(n, self.submodules):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return getattr(self, n.op)(n.target, (args[0].clone(), *args[1:]), kwargs)


def works_in_place(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Return whether a node changes the tensor that it reads first."""
    if node.op == "call_module":
        return getattr(modules[str(node.target)], "inplace", False) is True
    if node.op == "call_method":
        return _ends_so(str(node.target))
    if node.op != "call_function":
        return False
    named = _ends_so(getattr(node.target, "__name__", ""))
    return named or node.target in _IN_PLACE or node.kwargs.get("inplace") is True


def _ends_so(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


class PartialRun:
    """Runs a graph from any node to any other; values that no later node reads are forgotten.

    Attributes:
        module: Whose graph it is.
        nodes: In order of execution.
        place: Name of a node to its number.
    """

    def __init__(self, module: fx.GraphModule):
        self.module = module
        self.nodes: list[fx.Node] = list(module.graph.nodes)
        self.place = {node.name: number for number, node in enumerate(self.nodes)}
        self._interpreter = CopyingInterpreter(module)
        self._last = {
            node: max((self.place[user.name] for user in node.users), default=number)
            for number, node in enumerate(self.nodes)
        }

    def begin(self, images: Inputs) -> Values:
        """Return the values before the first node: the inputs, and defaults of those not given."""
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        given = arguments(self.module.graph, beside(self.module, images))
        defaults = {node: node.args[0] for node in inputs[len(given) :] if node.args}
        return {**dict(zip(inputs, given, strict=False)), **defaults}

    def advance(self, values: Values, start: int, stop: int) -> None:
        """Run the nodes from ``start`` to before ``stop`` on the values, in place."""
        self._interpreter.env = values
        for number in range(start, stop):
            node = self.nodes[number]
            if node.op not in ("placeholder", "output"):
                values[node] = self._interpreter.run_node(node)
            for read in node.all_input_nodes:
                if self._last[read] <= number:
                    values.pop(read, None)

    def sizes(self, images: Inputs) -> dict[fx.Node, int]:
        """Return how many values of one image each node gives."""
        values, sizes = self.begin(images), {}
        for number, node in enumerate(self.nodes):
            self.advance(values, number, number + 1)
            if node.op != "get_attr":
                tensors = [x for x in pytree.tree_leaves(values.get(node)) if isinstance(x, Tensor)]
                sizes[node] = sum(tensor.numel() for tensor in tensors) // len(images)
        return sizes

    def alive(self, images: Inputs) -> list[int]:
        """Return how many values of one image are still needed before each node, and at the end."""
        changes = [0] * (len(self.nodes) + 2)
        for node, size in self.sizes(images).items():
            changes[self.place[node.name] + 1] += size
            changes[self._last[node] + 1] -= size
        totals, total = [], 0
        for change in changes[:-1]:
            total += change
            totals.append(total)
        return totals
