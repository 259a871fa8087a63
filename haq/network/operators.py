"""What the nodes of a captured graph compute, read off their spelling."""

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

LayerModule = nn.Conv2d | nn.Linear

LAYERS = (nn.Conv2d, nn.Linear)  # to the letter: a subclass may compute something else

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)

RELUS = {nn.ReLU, nn.ReLU6, torch.relu, functional.relu, functional.relu6, "relu", "relu_"}

_ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}

# Move or drop values without changing any: rounding commutes with them.
SHAPES = {
    nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Unflatten, torch.flatten, torch.reshape,
    torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, functional.dropout, "flatten",
    "view", "reshape", "permute", "transpose", "contiguous", "squeeze", "unsqueeze",
}  # fmt: skip

# Give values that were there before, or zeros: what was on a grid with a zero stays on it.
_SELECTIONS = SHAPES | {
    operator.getitem, functional.pad, functional.max_pool2d, nn.MaxPool2d, nn.AdaptiveMaxPool2d,
    nn.ZeroPad2d, torch.chunk, torch.split, "chunk", "split",
}  # fmt: skip

# Ask what a tensor is, not for its values.
SIZES = {".shape", ".ndim", ".dtype", ".device", "size", "dim", "numel"}

NON_NEGATIVE = RELUS | {
    nn.Sigmoid, nn.Softmax, nn.Hardsigmoid, nn.Softplus, torch.sigmoid, torch.softmax, torch.abs,
    torch.square, functional.sigmoid, functional.softmax, functional.hardsigmoid, "sigmoid",
    "softmax", "abs", "square",
}  # fmt: skip

SCALABLE = _ADDS | {operator.mul, operator.imul, torch.mul, "mul", "mul_"}

# Non-negative where all their operands are.
SIGN_KEEPING = SCALABLE | {
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d,
    torch.cat, torch.mean, "mean", "sum",
}  # fmt: skip


def kind_of(node: fx.Node) -> Any:
    """Return what the tables above list: a module's type, a function, a method or ".attribute"."""
    if node.op == "call_module":
        owner = node.graph.owning_module
        assert owner is not None
        return type(owner.get_submodule(str(node.target)))
    if node.target is getattr:
        return f".{node.args[1]}"
    return node.target if node.op in ("call_function", "call_method") else node.op


def is_layer(node: fx.Node) -> bool:
    """Return whether a node calls a layer."""
    return kind_of(node) in LAYERS


def first_input(node: fx.Node) -> fx.Node:
    """Return the first tensor that a node reads."""
    return node.all_input_nodes[0]


def tensor_of(node: fx.Node) -> fx.Node:
    """Return the node that computed the values ``node`` holds, before any change of shape."""
    while kind_of(node) in SHAPES and only_user(node):
        node = first_input(node)
    return node


def selects(node: fx.Node) -> bool:
    """Return whether all values of ``node`` are values of what it reads, or zero."""
    if node.target is functional.pad:
        value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
        return value in (None, 0)
    return kind_of(node) in _SELECTIONS


def _users(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that read the values of ``node``."""
    return [user for user in node.users if kind_of(user) not in SIZES]


def only_user(node: fx.Node) -> fx.Node | None:
    """Return the node that reads the values of ``node``, if there is one alone."""
    users = _users(node)
    return users[0] if len(users) == 1 else None


def norm_behind(node: fx.Node) -> fx.Node | None:
    """Return the BatchNorm that follows the layer called at ``node``, if one does."""
    user = only_user(node)
    return user if user is not None and kind_of(user) in _BATCH_NORMS else None


def folding_norms(nodes: list[fx.Node]) -> list[fx.Node]:
    """Return the calls of the BatchNorm that folds into the layer called at ``nodes``."""
    norms = [norm for node in nodes if (norm := norm_behind(node))]
    one = len(norms) == len(nodes) and len({norm.target for norm in norms}) == 1
    return norms if one else []


def values_of(node: fx.Node) -> fx.Node:
    """Return the node that computed the values ``node`` holds, before all changes of shape."""
    while kind_of(node) in SHAPES:
        node = first_input(node)
    return node


def folded_norms(network: fx.GraphModule, layers: Iterable[str]) -> dict[str, str]:
    """Return for each of the layers into which a BatchNorm folds that norm's name."""
    calls: dict[str, list[fx.Node]] = {name: [] for name in layers}
    for node in network.graph.nodes:
        if node.op == "call_module" and node.target in calls:
            calls[node.target].append(node)
    folding = {name: folding_norms(nodes) for name, nodes in calls.items()}
    return {name: str(norms[0].target) for name, norms in folding.items() if norms}


def is_sum(node: fx.Node) -> bool:
    """Return whether a node adds two tensors."""
    operands = (*node.args, *node.kwargs.values())
    return kind_of(node) in _ADDS and sum(isinstance(value, fx.Node) for value in operands) == 2


def origin_of(node: fx.Node) -> fx.Node:
    """Return the node whose values ``node`` holds, or a selection of them."""
    while selects(node):
        node = first_input(node)
    return node
