"""Which tensors of a captured graph can be negative, from what computes them and not from data."""

from torch import fx

from haq.network.operators import (
    NON_NEGATIVE,
    SCALABLE,
    SIGN_KEEPING,
    SIZES,
    first_input,
    is_relu,
    kind_of,
    selects,
)


def signs_of(traced: fx.GraphModule) -> dict[fx.Node, bool]:
    """Return for every node whether it can be negative, from what it computes and not from data."""
    signed: dict[fx.Node, bool] = {}
    for node in traced.graph.nodes:
        kind = kind_of(node)
        if is_relu(node) or kind in NON_NEGATIVE or kind in SIZES:
            signed[node] = False
        elif selects(node):
            signed[node] = signed[first_input(node)]
        elif kind in SIGN_KEEPING and not _has_negative(node):
            signed[node] = any(signed[operand] for operand in node.all_input_nodes)
        else:
            signed[node] = True
    return signed


def _has_negative(node: fx.Node) -> bool:
    """Return whether a sum or a product has a negative number among its operands."""
    if kind_of(node) not in SCALABLE:
        return False
    values = (*node.args, *node.kwargs.values())
    return any(isinstance(value, int | float) and value < 0 for value in values)
