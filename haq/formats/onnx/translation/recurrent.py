"""LSTM, GRU, RNN and their cells: ONNX's operators of these names, which compute in float32.

ONNX has gates in another order than torch, a matrix for each direction of a layer in one tensor,
and all biases of a layer in one. All that is made of constants, so a runtime carries it out when it
loads the file.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from haq.formats.onnx.translation.draft import Draft, arguments
from haq.formats.onnx.translation.elementwise import Rule


class _Kind(NamedTuple):
    """A recurrent operator.

    Attributes:
        name: ONNX's.
        gates: Places in torch's order of the gates in ONNX's.
        attributes: Of the operator, for one direction.
    """

    name: str
    gates: tuple[int, ...]
    attributes: Mapping[str, Any]


_KINDS = {
    "lstm": _Kind("LSTM", (0, 3, 1, 2), {}),
    "gru": _Kind("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    "rnn_tanh": _Kind("RNN", (0,), {"activations": ["Tanh"]}),
    "rnn_relu": _Kind("RNN", (0,), {"activations": ["Relu"]}),
}


class _Weights(NamedTuple):
    """What one direction of a layer multiplies with and adds; names of tensors.

    Attributes:
        read: For what is read, (gates * hidden, features).
        state: For the state before, (gates * hidden, states).
        biases: None or two, (gates * hidden,).
        projection: Of an LSTM that projects its state, (states, hidden); "" if not.
        sizes: Hidden values and states.
    """

    read: str
    state: str
    biases: tuple[str, ...]
    projection: str
    sizes: tuple[int, int]


def _in_order(draft: Draft, tensor: str, kind: _Kind) -> str:
    """Write a tensor whose gates stand as ONNX wants them."""
    if len(kind.gates) == 1:
        return tensor
    count = len(kind.gates)
    parts = draft.emit("Split", tensor, outputs=count, axis=0, num_outputs=count)
    return str(draft.emit("Concat", *(parts[place] for place in kind.gates), axis=0))


def _one_tensor(draft: Draft, tensors: Sequence[str]) -> str:
    """Write tensors, one a direction, along a new first axis."""
    first = draft.constant([0])
    parts = [draft.emit("Unsqueeze", tensor, first) for tensor in tensors]
    return str(parts[0] if len(parts) == 1 else draft.emit("Concat", *parts, axis=0))


def _layer(
    draft: Draft, kind: _Kind, x: str, states: Sequence[str], weights: Sequence[_Weights]
) -> list[str]:
    """Write one layer.

    Args:
        draft: What is written to.
        kind: Of which kind.
        x: (steps, N, features).
        states: Before the first step, (directions, N, hidden): one, two of an LSTM.
        weights: One a direction.

    Returns:
        (steps, directions, N, hidden), and each state after the last step.
    """
    way = {1: "forward", 2: "bidirectional"}[len(weights)]
    more = dict(kind.attributes)
    if "activations" in more:
        more["activations"] = more["activations"] * len(weights)
    read = _one_tensor(draft, [_in_order(draft, one.read, kind) for one in weights])
    state = _one_tensor(draft, [_in_order(draft, one.state, kind) for one in weights])
    biases = ""
    if weights[0].biases:
        both = [
            draft.emit("Concat", *(_in_order(draft, part, kind) for part in one.biases), axis=0)
            for one in weights
        ]
        biases = _one_tensor(draft, both)
    return list(draft.emit(
        kind.name, x, read, state, biases, "", *states, outputs=1 + len(states), direction=way,
        hidden_size=weights[0].sizes[0], **more,
    ))  # fmt: skip


def _projecting_layer(
    draft: Draft, kind: _Kind, x: str, states: Sequence[str], weights: Sequence[_Weights]
) -> list[str]:
    """Write a layer of an LSTM that projects its state, which ONNX has not.

    ``state @ (projection @ hidden)`` is ``(state @ projection) @ hidden``, so it is one of a wider
    state whose results are projected. The state before the first step, which no hidden values
    belong to, is read beside the first input.
    """
    wide = [
        one._replace(read=draft.emit("Concat", one.read, one.state, axis=1),
                     state=draft.emit("MatMul", one.state, one.projection))
        for one in weights
    ]  # fmt: skip
    results: list[list[str]] = []
    for place, one in enumerate(wide):
        at = draft.constant([place])
        before, cell = (draft.emit("Gather", state, at, axis=0) for state in states)
        steps = draft.emit("Sub", draft.emit("Shape", x, start=0, end=1), draft.constant([1]))
        none = draft.constant([0, 0, 0])
        after = draft.emit("Concat", steps, draft.constant([0, 0]), axis=0)
        ends = (none, after) if place == 0 else (after, none)
        beside = draft.emit("Pad", before, draft.emit("Concat", *ends, axis=0))
        given = draft.emit("Concat", x, beside, axis=2)
        zero = draft.emit("Expand", draft.constant(0.0, torch.float32), draft.emit("Shape", cell))
        if place:  # backwards, as one that runs forwards
            given = _backwards(draft, given)
        y, _, last = _layer(draft, kind, given, [zero, cell], [one])
        y = draft.emit("Squeeze", y, draft.constant([1]))
        turned = draft.emit("Transpose", one.projection, perm=[1, 0])
        y = draft.emit("MatMul", y, turned)
        ended = draft.emit("Slice", y, draft.constant([-1]), draft.constant([2**63 - 1]),
                           draft.constant([0]))  # fmt: skip
        results.append([_backwards(draft, y) if place else y, ended, last])
    both = [_joined(draft, [one[part] for one in results]) for part in (1, 2)]
    apart = draft.constant([1])
    each = [draft.emit("Unsqueeze", one[0], apart) for one in results]
    return [_joined(draft, each, axis=1), *both]


def _backwards(draft: Draft, x: str) -> str:
    ends = ([-1], [-(2**63 - 1)], [0], [-1])
    return str(draft.emit("Slice", x, *map(draft.constant, ends)))


def _joined(draft: Draft, tensors: Sequence[str], axis: int = 0) -> str:
    return tensors[0] if len(tensors) == 1 else str(draft.emit("Concat", *tensors, axis=axis))


def _weights(draft: Draft, parts: Sequence[fx.Node], biased: bool) -> _Weights:
    names = [draft.tensor(part) for part in parts]
    biases = tuple(names[2:4]) if biased else ()
    rest = parts[4 if biased else 2 :]
    width = draft.of(parts[1]).shape[1] or 0
    hidden = (draft.of(rest[0]).shape[1] or 0) if rest else width
    projection = draft.tensor(rest[0]) if rest else ""
    return _Weights(names[0], names[1], biases, projection, (hidden, width))


def _recurrent(name: str) -> Rule:
    def rule(draft: Draft, node: fx.Node) -> Any:
        given, kind = arguments(node), _KINDS[name]
        if "batch_sizes" in given or draft.of(given["input"]).rank != 3:
            return None  # rows of a packed sequence
        x = draft.tensor(given["input"])
        if given["batch_first"]:
            x = draft.emit("Transpose", x, perm=[1, 0, 2])
        before = given["hx"] if isinstance(given["hx"], Sequence) else [given["hx"]]
        states, ways = [draft.tensor(one) for one in before], 2 if given["bidirectional"] else 1
        params, biased = given["params"], given["has_biases"]
        each = len(params) // (given["num_layers"] * ways)
        sets = [
            _weights(draft, params[at : at + each], biased) for at in range(0, len(params), each)
        ]
        ends: list[list[str]] = []
        for layer in range(given["num_layers"]):
            first, last = layer * ways, (layer + 1) * ways
            own = sets[first:last]
            begun = [_rows(draft, state, first, last, len(sets)) for state in states]
            write = _projecting_layer if own[0].projection else _layer
            y, *after = write(draft, kind, x, begun, own)
            ends.append(after)
            x = _features(draft, y, ways, batch_first=False)
        result = _features(draft, y, ways, given["batch_first"])
        return [result, *(_joined(draft, parts) for parts in zip(*ends, strict=True))]

    return rule


def _rows(draft: Draft, state: str, first: int, last: int, count: int) -> str:
    """Write the part of a state that belongs to a layer: some of so many rows."""
    if last - first == count:
        return state
    ends = draft.constant([first]), draft.constant([last])
    return str(draft.emit("Slice", state, *ends, draft.constant([0])))


def _features(draft: Draft, y: str, ways: int, batch_first: bool) -> str:
    """Write (steps, directions, N, hidden) as (steps, N, features), or with N first."""
    if ways == 1 and not batch_first:
        return str(draft.emit("Squeeze", y, draft.constant([1])))
    order = [2, 0, 1, 3] if batch_first else [0, 2, 1, 3]
    y = draft.emit("Transpose", y, perm=order)
    return str(draft.emit("Reshape", y, draft.constant([0, 0, -1])))


def _cell(name: str) -> Rule:
    """Write a cell as a layer of one step."""

    def rule(draft: Draft, node: fx.Node) -> Any:
        given = arguments(node)
        names = ("w_ih", "w_hh", "b_ih", "b_hh")
        parts = [given[part] for part in names if given[part] is not None]
        first = draft.constant([0])
        before = given["hx"] if isinstance(given["hx"], Sequence) else [given["hx"]]
        states = [draft.emit("Unsqueeze", draft.tensor(one), first) for one in before]
        x = draft.emit("Unsqueeze", draft.tensor(given["input"]), first)
        own = _weights(draft, parts, len(parts) == 4)
        _, *after = _layer(draft, _KINDS[name], x, states, [own])
        ended = [str(draft.emit("Squeeze", state, first)) for state in after]
        return ended if name == "lstm" else ended[0]

    return rule


RULES: Mapping[Any, Rule] = {
    **{name: _recurrent(name) for name in _KINDS},
    **{f"{name}_cell": _cell(name) for name in _KINDS},
}
"""As in ``elementwise``."""
