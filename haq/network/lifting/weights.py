"""What can be the weight of a layer: parameters, and what is computed from them alone."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from haq.network.lifting.nodes import is_random, name_of


class Weight(NamedTuple):
    """What depends on parameters, buffers and constants alone.

    Attributes:
        value: As it is now, mostly a tensor.
        key: Equal where the same is computed from the same parameters.
        name: Of the parameter or buffer; empty for what is computed.
        sources: The parameters and buffers, by id, to their names.
        original: The parameter, where this is one with its axes exchanged.
    """

    value: Any
    key: Any
    name: str
    sources: Mapping[int, str]
    original: "Weight | None" = None


def of_state(tensor: Tensor, name: str) -> Weight:
    """Return a parameter or buffer, or a constant, which has no name."""
    return Weight(tensor, id(tensor), name, {id(tensor): name} if name else {})


def transposed(weight: Weight) -> Weight:
    """Return a matrix with its axes exchanged."""
    if weight.original is not None:
        return weight.original
    key = f"transposed({weight.key})"
    original = weight if weight.name else None
    return Weight(weight.value.t(), key, "", weight.sources, original)


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
    if _exchanges_axes(node, operands):
        return transposed(weights[operands[0]])
    with torch.no_grad():
        value = node.target(*args, **kwargs)  # type: ignore[operator]
    return Weight(value, f"{node.target}{keys}", "", sources)


def _exchanges_axes(node: fx.Node, operands: Sequence[fx.Node]) -> bool:
    """Return whether a node exchanges the two axes of a matrix."""
    name = name_of(node)
    if name not in ("t", "transpose", "permute", "numpy_T") or len(operands) > 1:
        return False
    if operands[0].meta["val"].dim() != 2:
        return False
    axes = node.args[1] if name == "permute" else node.args[1:]
    places = [axis % 2 for axis in axes]  # type: ignore[union-attr,operator]
    return not places or places == [1, 0] or (name == "transpose" and places == [0, 1])


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
