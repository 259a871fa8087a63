"""Bags of rows of a table, all of one size, become a look-up and a sum, a mean or a maximum of it.

So the table is an Embedding, which has bits and codes in files; ONNX has no bags.
"""

import math
import operator
from typing import Any

import torch
from torch import fx

from haq.network.lifting.nodes import name_of

aten = torch.ops.aten

_SUM, _MEAN, _MAXIMUM = range(3)


def open_bags(graph: fx.Graph) -> None:
    """Write the bags of a program as those operations, in place, where they have one size."""
    for node in list(graph.nodes):
        size = _size(node) if name_of(node) in ("embedding_bag", "_embedding_bag") else None
        if size is None:
            continue
        with graph.inserting_before(node):
            result = _opened(graph, node, size)
        for user in list(node.users):
            user.replace_all_uses_with(result)
            graph.erase_node(user)
        graph.erase_node(node)


def _size(node: fx.Node) -> int | None:
    """Return how many rows are in each bag; None where that is not said by a step of arange."""
    given = _arguments(node)
    offsets = given["offsets"]
    if name_of(offsets) != "arange" or given["include_last_offset"] or len(offsets.args) != 3:
        return None
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
        return None
    start, _, step = offsets.args
    return step if start == 0 and isinstance(step, int) else None


def _arguments(node: fx.Node) -> dict[str, Any]:
    target: Any = node.target
    schema = target._schema.arguments
    defaults = {one.name: one.default_value for one in schema if one.has_default_value()}
    return {**defaults, **dict(zip((one.name for one in schema), node.args, strict=False)),
            **node.kwargs}  # fmt: skip


def _opened(graph: fx.Graph, node: fx.Node, size: int) -> fx.Node:
    given, stack = _arguments(node), node.meta.get("nn_module_stack")

    def write(target: Any, *args: Any) -> fx.Node:
        one = graph.call_function(target, args)
        one.meta["nn_module_stack"] = stack
        return one

    rows = write(aten.reshape.default, given["indices"], [-1, size])
    values = write(aten.embedding.default, given["weight"], rows)
    if given["per_sample_weights"] is not None:
        factors = write(aten.reshape.default, given["per_sample_weights"], [-1, size, 1])
        values = write(aten.mul.Tensor, values, factors)
    padding, mode = given["padding_idx"], given["mode"]
    if padding is None or padding < 0:
        reduce = {_SUM: aten.sum.dim_IntList, _MEAN: aten.mean.dim, _MAXIMUM: aten.amax.default}
        return write(reduce[mode], values, [1])
    left = write(aten.unsqueeze.default, write(aten.ne.Scalar, rows, padding), -1)
    if mode == _MAXIMUM:  # zero of a bag of padding alone
        shut = write(aten.logical_not.default, left)
        largest = write(
            aten.amax.default, write(aten.masked_fill.Scalar, values, shut, -math.inf), [1]
        )
        empty = write(aten.eq.Scalar, largest, -math.inf)
        return write(aten.masked_fill.Scalar, largest, empty, 0.0)
    kept = write(aten.mul.Tensor, values, write(aten.type_as.default, left, values))
    total = write(aten.sum.dim_IntList, kept, [1])
    if mode == _SUM:
        return total
    count = write(aten.clamp.default, write(aten.sum.dim_IntList, left, [1]), 1)
    return write(aten.div.Tensor, total, count)
