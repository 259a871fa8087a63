"""From a model to the graph of one forward, and the shapes of its tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from haq.errors import ModelError
from haq.network.operators import LAYERS, LayerModule, first_input

Sample = Tensor | tuple[Tensor, ...]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in LAYERS or super().is_leaf_module(m, module_qualified_name)


def symbolic_graph(model: nn.Module) -> fx.GraphModule:
    """Return the graph of a model's forward in evaluation mode."""
    try:
        with evaluating(model):
            traced = fx.GraphModule(model, _Tracer().trace(model))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"the forward of {type(model).__name__} cannot be traced: {reason}; "
            "it must not branch on the values it computes (torch.fx.symbolic_trace)"
        ) from error
    _follow_changes(traced)
    return traced


def _follow_changes(traced: fx.GraphModule) -> None:
    """Let whoever reads a tensor after an operation in place read that operation's result."""
    nodes = list(traced.graph.nodes)
    for place, node in enumerate(nodes):
        if _changes_input(node):
            first_input(node).replace_all_uses_with(node, set(nodes[place + 1 :]).__contains__)
    traced.recompile()


def _changes_input(node: fx.Node) -> bool:
    if node.op == "call_module":
        owner = node.graph.owning_module
        assert owner is not None
        return getattr(owner.get_submodule(str(node.target)), "inplace", False) is True
    if node.op == "call_method":
        return str(node.target).endswith("_")
    return node.kwargs.get("inplace") is True


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put all parts of a module into evaluation mode; each has its own mode back afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


class _Shapes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.extra_traceback = False  # takes seconds, and is not shown
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.is_floating_point():
            self.shapes[n] = result.shape
        return result


def shapes_of(traced: fx.GraphModule, inputs: tuple[Tensor, ...]) -> dict[fx.Node, torch.Size]:
    """Return the shape of every floating-point tensor, in order of execution."""
    interpreter = _Shapes(traced)
    try:
        with torch.no_grad(), evaluating(traced):
            interpreter.run(*inputs)
    except Exception as error:
        shapes = ", ".join("x".join(map(str, value.shape)) for value in inputs)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"the model does not run on a sample of {shapes}: {reason}") from error
    return interpreter.shapes


def layer_calls(traced: fx.GraphModule) -> dict[str, list[fx.Node]]:
    """Return the calls of every layer, in order of execution."""
    calls: dict[str, list[fx.Node]] = {}
    names = {id(module): name for name, module in traced.named_modules()}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            module = traced.get_submodule(node.target)
            if type(module) in LAYERS:
                calls.setdefault(names[id(module)], []).append(node)
    if not calls:
        raise ModelError("the model contains no Conv2d and no Linear that its forward calls")
    return calls


def check_reached(
    model: nn.Module, traced: fx.GraphModule, calls: dict[str, list[fx.Node]]
) -> None:
    """Refuse a model with a layer that the captured graph does not call."""
    called = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
    for name, module in model.named_modules():
        if not isinstance(module, LayerModule) or name in calls:
            continue
        owner = next((path for path in called if name.startswith(f"{path}.")), None)
        if owner is not None and type(module) not in LAYERS:
            continue  # such as the projection of an attention: a part of a module that stays float
        if owner is not None:
            kind = type(model.get_submodule(owner)).__name__
            raise ModelError(
                f"layer {name!r} cannot be quantized: {owner!r} is a {kind}, whose forward "
                "cannot be traced; write it with plain modules"
            )
        if type(module) not in LAYERS:
            raise ModelError(
                f"layer {name!r} is a {type(module).__name__} with a forward of its own; "
                "only plain Conv2d and Linear modules can be quantized"
            )
        raise ModelError(
            f"layer {name!r} is never reached by the forward; remove it from the model or call it"
        )
