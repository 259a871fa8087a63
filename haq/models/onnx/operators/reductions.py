"""Operators over whole axes: sums, means, largest values, softmax, norms."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from haq.models.onnx.node import Node, Run


def _reduction(reduce: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[[Node], Run]:
    def build(node: Node) -> Run:
        axes = node.ints(1) if node.has(1) else node.get("axes")
        keep = bool(node.get("keepdims", 1))
        if not axes and node.get("noop_with_empty_axes", 0):
            return lambda x, *_: reduce(x.unsqueeze(-1), [-1], False)  # each value for itself
        chosen = axes or list(range(node.rank()))
        return lambda x, *_: reduce(x, chosen, keep)

    return build


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _extreme(largest: bool) -> Callable[[Node], Run]:
    def build(node: Node) -> Run:
        axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
        if node.get("select_last_index", 0):
            raise node.refused("select_last_index=1")
        choose = torch.argmax if largest else torch.argmin
        return lambda x: choose(x, axis, keepdim=keep)

    return build


def _softmax(node: Node) -> Run:
    return partial(functional.softmax, dim=node.get("axis", -1))


def _log_softmax(node: Node) -> Run:
    return partial(functional.log_softmax, dim=node.get("axis", -1))


def _cumulated(node: Node) -> Run:
    axis = node.number(1)
    assert axis is not None
    if node.get("exclusive", 0) or node.get("reverse", 0):
        raise node.refused("exclusive or reverse")
    return lambda x, *_: torch.cumsum(x, int(axis))


def _layer_norm(node: Node) -> Run:
    axis, eps = node.get("axis", -1) % node.rank(), node.get("epsilon", 1e-5)
    if len([name for name in node.outputs if name]) > 1:
        raise node.refused("it gives mean or deviation too")
    shape = node.shape()[axis:]

    def run(x: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
        full = weight.expand(shape)
        return functional.layer_norm(
            x, shape, full, None if bias is None else bias.expand(shape), eps
        )

    return run


def _instance_norm(node: Node) -> Run:
    eps = node.get("epsilon", 1e-5)
    return lambda x, weight, bias: functional.instance_norm(
        x, weight=weight, bias=bias, use_input_stats=True, eps=eps
    )


def _group_norm(node: Node) -> Run:
    groups, eps = node.get("num_groups"), node.get("epsilon", 1e-5)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        each = x.shape[1] // weight.shape[0]  # one for a channel since opset 21, before for a group
        weight, bias = (part.repeat_interleave(each) for part in (weight, bias))
        return functional.group_norm(x, groups, weight, bias, eps)

    return run


def _lp_norm(node: Node) -> Run:
    return lambda x: x / x.norm(node.get("p", 2), node.get("axis", -1), keepdim=True)


OPERATORS: Mapping[str, Callable[[Node], Run]] = {
    "ArgMax": _extreme(largest=True),
    "ArgMin": _extreme(largest=False),
    "CumSum": _cumulated,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _log_softmax,
    "LpNormalization": _lp_norm,
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "ReduceLogSumExp": _reduction(lambda x, axes, keep: torch.logsumexp(x, axes, keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keep)),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keep)),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keep)),
    "Softmax": _softmax,
}
