"""What the nodes of a captured graph compute, by the names that ATen gives operations."""

import math
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from haq.network.modules import LOOKUPS, PRODUCTS

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_DROPOUTS = {
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
}  # fmt: skip

# Move or drop values without changing any: rounding commutes with them.
SHAPES = _DROPOUTS | {
    "detach", "flatten", "movedim", "permute", "reshape", "squeeze", "swapaxes", "t", "transpose",
    "unflatten", "unsqueeze", "view",
}  # fmt: skip

# Give values that were there before, or zeros: what was on a grid with a zero stays on it.
_SELECTIONS = SHAPES | {
    operator.getitem, "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "channel_shuffle", "chunk",
    "constant_pad_nd", "expand", "flip", "gather", "index", "index_select", "max_pool1d",
    "max_pool1d_with_indices", "max_pool2d", "max_pool2d_with_indices", "max_pool3d",
    "max_pool3d_with_indices", "narrow", "pad", "pixel_shuffle", "pixel_unshuffle", "repeat",
    "roll", "select", "slice", "split", "split_with_sizes", "unbind", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d",
}  # fmt: skip

# Ask what a tensor is, not for its values.
SIZES = {"sym_size", "sym_numel"}

_RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}

RECURRENT = _RECURRENT | {"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"}
"""Operations with several matrices; a cell takes one step."""

NON_NEGATIVE = {
    "abs", "exp", "hardsigmoid", "relu", "relu6", "sigmoid", "softmax", "softplus", "square",
}  # fmt: skip

SCALABLE = {"add", "div", "mul"}

# Non-negative where all their operands are.
SIGN_KEEPING = SCALABLE | {
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "avg_pool1d", "avg_pool2d",
    "avg_pool3d", "cat", "max", "maximum", "mean", "stack", "sum", "upsample_bilinear2d",
    "upsample_linear1d", "upsample_trilinear3d",
}  # fmt: skip


def kind_of(node: fx.Node) -> Any:
    """Return what the tables above list: a module's type, or the name of an operation."""
    if node.op == "call_module":
        owner = node.graph.owning_module
        assert owner is not None
        return type(owner.get_submodule(str(node.target)))
    target = getattr(node.target, "computes", node.target)  # of the functions of quantization.exact
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.rpartition("::")[2]
    return target if node.op == "call_function" else node.op


def is_relu(node: fx.Node) -> bool:
    """Return whether a node is a ReLU, or one that is limited above, as ReLU6 is."""
    kind = kind_of(node)
    if kind in ("clamp", "clamp_min", "hardtanh"):
        return bool(len(node.args) > 1 and node.args[1] == 0)
    return kind in ("relu", "relu6")


def is_product(node: fx.Node) -> bool:
    """Return whether a node calls a layer that multiplies what it reads with its weights."""
    return kind_of(node) in PRODUCTS


def is_lookup(node: fx.Node) -> bool:
    """Return whether a node reads rows of a table: of an embedding, or of a layer's weights."""
    return kind_of(node) in (*LOOKUPS, "embedding")


def recurrent_steps(node: fx.Node, shapes: Mapping[fx.Node, torch.Size]) -> int:
    """Return how many steps an LSTM and its like takes, 1 of a cell, 0 of any other operation."""
    if kind_of(node) not in _RECURRENT:
        return int(kind_of(node) in RECURRENT)
    sizes, batch_first = shapes[first_input(node)], node.args[-1]
    return sizes[1 if batch_first is True and len(sizes) == 3 else 0]


def is_weight(node: fx.Node) -> bool:
    """Return whether a node gives a parameter, a constant or the weights of a layer."""
    return not node.all_input_nodes and node.op != "placeholder"


def macs_of_activations(node: fx.Node, shapes: Mapping[fx.Node, torch.Size]) -> int:
    """Return the multiply-accumulates of a product of two activations; 0 of anything else."""
    return 0 if any(map(is_weight, node.all_input_nodes)) else macs_of_product(node, shapes)


def macs_of_product(node: fx.Node, shapes: Mapping[fx.Node, torch.Size]) -> int:
    """Return the multiply-accumulates of a product, whatever it is of; 0 of anything else."""
    kind = kind_of(node)
    # Not all_input_nodes, which has an operand once that is read twice.
    leaves = tree_leaves((node.args, node.kwargs))
    operands = [leaf for leaf in leaves if isinstance(leaf, fx.Node) and leaf in shapes]
    if kind == "bilinear":
        return int(math.prod(shapes[node]) * math.prod(shapes[operands[2]][1:]))
    if kind == "scaled_dot_product_attention":
        query, key, value = (shapes[operand] for operand in operands[:3])
        pairs = math.prod(query[:-1]) * key[-2]
        return int(pairs * (query[-1] + value[-1]))
    if kind == "baddbmm":
        operands = operands[1:]
    if kind not in ("matmul", "bmm", "baddbmm", "einsum") or len(operands) != 2:
        return 0
    left, right = (shapes[operand] for operand in operands)
    if kind == "einsum":
        return _macs_of_einsum(str(node.args[0]), left, right)
    return int(math.prod(shapes[node]) * left[-1])


def _macs_of_einsum(equation: str, *sizes: torch.Size) -> int:
    """Return the product of all axes that an equation names."""
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    axes = {name: size for term, shape in zip(terms, sizes, strict=True)
            for name, size in zip(term, shape, strict=False)}  # fmt: skip
    return math.prod(axes.values()) if "." not in equation else 0


def projects(node: fx.Node) -> bool:
    """Return whether a node is an LSTM that projects its hidden state."""
    if kind_of(node) != "lstm":
        return False
    weights, (biases, layers, _, _, both_ways, _) = node.args[2], node.args[3:9]
    each = len(weights) / (int(layers) * (2 if both_ways else 1))  # type: ignore[arg-type]
    return each > (4 if biases else 2)


def first_input(node: fx.Node) -> fx.Node:
    """Return the first tensor that a node reads."""
    return node.all_input_nodes[0]


def reshapes(node: fx.Node) -> bool:
    """Return whether a node moves, drops or repeats values, or puts zeros around them."""
    kind = kind_of(node)
    return kind in SHAPES or (kind in ("pad", "constant_pad_nd") and selects(node))


def tensor_of(node: fx.Node) -> fx.Node:
    """Return the node that computed the values ``node`` holds, before any change of shape."""
    while reshapes(node) and only_user(node):
        node = first_input(node)
    return node


def selects(node: fx.Node) -> bool:
    """Return whether all values of ``node`` are values of what it reads, or zero."""
    kind = kind_of(node)
    if kind in ("pad", "constant_pad_nd"):
        filling = node.args[3 if kind == "pad" else 2 :]
        return filling in ((), (None,), (0,))
    return kind in _SELECTIONS


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
    while reshapes(node):
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
    return kind_of(node) == "add" and sum(isinstance(value, fx.Node) for value in operands) == 2


# Between the scores of attention and their softmax.
_OF_SCORES = SHAPES | {
    "_to_copy", "add", "clamp", "clone", "contiguous", "div", "expand", "masked_fill", "mul",
    "repeat", "slice", "sub", "to", "where",
}  # fmt: skip

MASKING = 50.0
"""Numbers at least that large, below zero or as a factor, shut out the places they stand at."""

_FILLS = {"fill", "full", "full_like", "masked_fill", "new_full", "scalar_tensor", "where"}


def are_scores(node: fx.Node) -> bool:
    """Return whether all that comes of a node's value is put into a softmax."""
    users = _users(node)
    return bool(users) and all(
        kind_of(user) in ("softmax", "_softmax")
        or (kind_of(user) in _OF_SCORES and are_scores(user))
        for user in users
    )


def masks(node: fx.Node) -> bool:
    """Return whether a node gives a mask: numbers such as -10 000 or -inf where places are shut.

    They are constants, or made of these and of the network's inputs, as ``(1 - mask) * -1e4``.
    """
    before, waiting = {node}, [node]
    while waiting:
        one = waiting.pop()
        if is_product(one) or is_lookup(one) or isinstance(_held(one), nn.Parameter):
            return False
        fresh = [operand for operand in one.all_input_nodes if operand not in before]
        before.update(fresh)
        waiting += fresh
    return any(map(_shuts, before))


def _shuts(node: fx.Node) -> bool:
    """Return whether there is a number that shuts places out among what a node computes with."""
    kind, held = kind_of(node), _held(node)
    leaves = tree_leaves((node.args, node.kwargs)) if kind == "mul" or kind in _FILLS else ()
    numbers = [float(value) for value in leaves if type(value) in (int, float)]
    if held is not None and held.is_floating_point() and held.numel() and not held.is_meta:
        numbers.append(float(held.min()))
    return any(-value >= MASKING or (kind == "mul" and value >= MASKING) for value in numbers)


def _held(node: fx.Node) -> Tensor | None:
    """Return the tensor that a node reads from the network, if it does nothing else."""
    owner = node.graph.owning_module
    if owner is None or node.op not in ("get_attr", "call_module") or node.args:
        return None
    path, _, leaf = str(node.target).rpartition(".")
    if node.op == "call_module":  # a constant of the forward
        return getattr(owner.get_submodule(str(node.target)), "value", None)
    held: Tensor = getattr(owner.get_submodule(path), leaf)
    return held


def origin_of(node: fx.Node) -> fx.Node:
    """Return the node whose values ``node`` holds, or a selection of them."""
    while selects(node):
        node = first_input(node)
    return node
