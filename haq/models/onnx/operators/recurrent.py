"""LSTM and GRU."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from haq.models.onnx.node import Module, Node

GATES: Mapping[str, tuple[int, ...]] = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}
"""Of an operator, the gates in PyTorch's order by their places in ONNX's: iofc and zrh there."""


def _lstm(node: Node) -> Module:
    return _recurrent(node, nn.LSTM, GATES["LSTM"], 2)


def _gru(node: Node) -> Module:
    if not node.get("linear_before_reset", 0):
        raise node.refused("linear_before_reset=0, which PyTorch's GRU does not compute")
    return _recurrent(node, nn.GRU, GATES["GRU"], 1)


def _recurrent(node: Node, kind: Any, gates: tuple[int, ...], states: int) -> Module:
    """Return an LSTM or a GRU of one layer, in one or two directions."""
    _check(node, states)
    weight, recurrence, bias = node.constant(1), node.constant(2), node.constant(3)
    assert weight is not None and recurrence is not None
    directions, rows, features = weight.shape
    hidden = rows // len(gates)
    module = kind(
        features, hidden, bias=bias is not None, bidirectional=directions == 2, device="meta"
    )
    weights: dict[str, Any] = {}
    for place, ending in zip(range(directions), ("", "_reverse"), strict=False):
        parts = [("weight_ih_l0", weight, 1), ("weight_hh_l0", recurrence, 2)]
        if bias is not None:
            first, second = np.split(bias, 2, axis=1)
            parts += [("bias_ih_l0", first, 3), ("bias_hh_l0", second, 3)]
        for name, values, source in parts:
            blocks = np.split(values[place], len(gates))
            ordered = np.concatenate([blocks[gate] for gate in gates])
            weights[name + ending] = (ordered, (node.inputs[source],))
    backwards = node.get("direction", "forward") == "reverse"

    def run(module: nn.Module, x: Tensor, *rest: Any) -> Any:
        start = [state for state in rest[4 : 4 + states] if state is not None]
        x = x.flip(0) if backwards else x
        if start and states == 2:
            output, last = module(x, tuple(start))
        else:
            output, last = module(x, *start)
        output = output.flip(0) if backwards else output
        output = output.unflatten(2, (directions, hidden)).permute(0, 2, 1, 3)
        return (output, *(last if states == 2 else (last,)))

    return Module(module, weights, run)


def _check(node: Node, states: int) -> None:
    """Refuse what PyTorch's modules do not compute."""
    usual = ["Sigmoid", "Tanh", "Tanh"] if states == 2 else ["Sigmoid", "Tanh"]
    given = [text.decode() for text in node.get("activations") or []]
    if given not in ([], usual, usual * 2) or node.get("clip") or node.get("input_forget", 0):
        raise node.refused("activations, clip or input_forget are not PyTorch's")
    node.only(layout=0)
    if node.has(4):
        lengths = node.ints(4)
        if set(lengths or []) != {node.shape()[0]}:
            raise node.refused("sequences of several lengths")
    if node.has(7):
        raise node.refused("peepholes")
    if states == 2 and node.has(5) != node.has(6):
        raise node.refused("one initial state of two")


OPERATORS: Mapping[str, Callable[[Node], Module]] = {"GRU": _gru, "LSTM": _lstm}
