"""What can be the weight of a layer: parameters, and what is computed from them alone."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from haq.network.lifting.nodes import is_random


class Weight(NamedTuple):
    """What depends on parameters, buffers and constants alone.

    Attributes:
        value: As it is now, mostly a tensor.
        key: Equal where the same is computed from the same parameters.
        name: Of the parameter or buffer; empty for what is computed.
        sources: The parameters and buffers, by id, to their names.
        turned: Whether it is a parameter with its axes exchanged.
    """

    value: Any
    key: Any
    name: str
    sources: Mapping[int, str]
    turned: bool = False


def of_state(tensor: Tensor, name: str) -> Weight:
    """Return a parameter or buffer, or a constant, which has no name."""
    return Weight(tensor, id(tensor), name, {id(tensor): name} if name else {})


def transposed(weight: Weight) -> Weight:
    """Return a matrix with its axes exchanged."""
    key = f"transposed({weight.key})"
    return Weight(weight.value.t(), key, "", weight.sources, turned=bool(weight.name))


def computed(node: fx.Node, weights: Mapping[fx.Node, Weight]) -> Weight | None:
    """Return what an operation on weights alone gives, and None for any other operation."""
    operands = node.all_input_nodes
    if not operands or not all(operand in weights for operand in operands):
        return None
    if is_random(node):
        return None
    arguments: Any = (node.args, node.kwargs)
    args, kwargs = fx.map_arg(arguments, lambda n: weights[n].value)
    keys = fx.map_arg(arguments, lambda n: weights[n].key)
    sources = {i: name for operand in operands for i, name in weights[operand].sources.items()}
    with torch.no_grad():
        value = node.target(*args, **kwargs)  # type: ignore[operator]
    return Weight(value, f"{node.target}{keys}", "", sources)


def parameter(weight: Weight, state: Mapping[str, Tensor]) -> nn.Parameter:
    """Return a weight as a parameter, which is trained if one that it is computed from is."""
    if isinstance(weight.value, nn.Parameter):
        return weight.value
    trained = any(
        isinstance(value, nn.Parameter) and value.requires_grad
        for value in state.values() if id(value) in weight.sources
    )  # fmt: skip
    return nn.Parameter(weight.value.detach().contiguous(), requires_grad=trained)


def copied(value: Tensor) -> nn.Parameter:
    """Return a parameter of the same values that is trained on its own."""
    return nn.Parameter(value.detach().clone(), requires_grad=value.requires_grad)
