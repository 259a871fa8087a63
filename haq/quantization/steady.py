"""Steps of activations for which no library's GELU falls on the other side of a border.

GELU, SiLU and their like are read from codes, so that there are as many values as codes. Libraries
give these values with last digits that differ. Where one of them lies that close to the border of
two codes of the tensor behind, every place with that code would be rounded up by one library and
down by the other. So the step of that tensor is changed by a thousandth or a few, until none does.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn

from haq.allocation.policy import FLOAT
from haq.network.operators import SIZES, first_input, kind_of, reshapes
from haq.quantization.fake_quant import Rounding
from haq.quantization.skewed import rounded_step

CLOSE = 5e-4
"""Of a code: nearer to a border than that, last digits can decide."""

TRIES = 24
"""How often a step is changed before it stays as it was."""

_EACH = {
    "add", "div", "elu", "erf", "exp", "gelu", "hardsigmoid", "hardswish", "leaky_relu", "mish",
    "mul", "pow", "rsub", "sigmoid", "silu", "softplus", "square", "sub", "tanh",
}  # fmt: skip


def keep_off_borders(network: fx.GraphModule) -> None:
    """Change steps of a quantized network as above, in place.

    Args:
        network: Before it is converted: biases are counted in these steps.
    """
    for node in network.graph.nodes:
        module = _rounding(network, node)
        source = None if module is None else _source(first_input(node))
        before = None if source is None else _rounding(network, source)
        if module is None or source is None or before is None or source is first_input(node):
            continue
        lowest, highest = before.levels
        codes = torch.arange(lowest, highest + 1, dtype=torch.float64)
        _settle(module, _values(first_input(node), source, codes * before.step.double()))


def is_settled(node: fx.Node) -> bool:
    """Return whether a node's values depend on codes alone, each on one, until they are rounded.

    Then steps are chosen for them as above. Where they meet other values before that, as those of
    a gate do, or are part of an output, there are too many values for it.
    """
    source = _source(node)
    if source is None or kind_of(source) is not Rounding:
        return False
    return all(
        kind_of(user) in SIZES or kind_of(user) is Rounding
        or (_source(user) is source and is_settled(user))
        for user in node.users
    )  # fmt: skip


def _rounding(network: nn.Module, node: fx.Node) -> Rounding | None:
    module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, Rounding) and module.bits != FLOAT else None


def _source(node: fx.Node) -> fx.Node | None:
    """Return the one node that decides a node's values, each for itself; None if there is none."""
    if node.op == "call_module":
        return node
    if node.op != "call_function" or not (kind_of(node) in _EACH or reshapes(node)):
        return None
    sources = {_source(operand) for operand in node.all_input_nodes}
    return sources.pop() if len(sources) == 1 else None


def _values(node: fx.Node, source: fx.Node, values: Tensor) -> Tensor:
    """Return what a node gives for each value of its source."""
    if node is source:
        return values
    if reshapes(node):
        return _values(first_input(node), source, values)
    arguments: Any = (node.args, node.kwargs)
    args, kwargs = fx.map_arg(arguments, lambda operand: _values(operand, source, values))
    result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    return result


def _settle(module: Rounding, values: Tensor) -> None:
    size, highest = float(module.step), module.levels[1]
    for number in range(TRIES):
        # Up and down in turn, a thousandth more each time.
        share = (number + 1) // 2 / 1000 * (-1) ** number
        step = size if number == 0 else rounded_step(size * (1 + share))
        places = (values / step).clamp(*module.levels)
        away = (places - places.floor() - 0.5).abs()
        if float(away.min()) > CLOSE:
            if number:
                module.clip = torch.full_like(module.clip, step * highest)
            return
