"""What a forward gives: one tensor, or tensors in tuples, lists, dicts and dataclasses."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

from torch import Tensor, fx

from haq.errors import ModelError

_PLAIN = (type(None), bool, int, float, str)


class Place(NamedTuple):
    """Stands in a structure for the tensor of that number."""

    number: int


class Container(NamedTuple):
    """Stands for a tuple, list, dict or dataclass: its type, and its parts by key or place."""

    kind: type
    parts: dict[Any, Any]


Structure = Any
"""A ``Place``, a ``Container`` of structures, or a value that is no tensor."""


def taken_apart(value: object) -> tuple[Structure, list[Tensor]]:
    """Return what a forward gave as a structure and the tensors whose places it has.

    Raises:
        ModelError: There is something else in it than tensors and plain values.
    """
    tensors: list[Tensor] = []

    def place(part: Any) -> Structure:
        if isinstance(part, Tensor):
            tensors.append(part)
            return Place(len(tensors) - 1)
        if type(part) in _PLAIN:
            return part
        return Container(type(part), {key: place(own) for key, own in _parts(part).items()})

    return place(value), tensors


def _parts(value: Any) -> dict[Any, Any]:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | list):
        names = getattr(value, "_fields", range(len(value)))
        return dict(zip(names, value, strict=True))
    raise ModelError(
        f"the forward gives a {type(value).__name__}; it must give tensors, alone or in tuples, "
        "lists, dicts or dataclasses"
    )


def float_tensors(value: object) -> list[Tensor]:
    """Return the tensors of floats in what a forward gave.

    Raises:
        ModelError: There are none.
    """
    tensors = [tensor for tensor in taken_apart(value)[1] if tensor.is_floating_point()]
    if not tensors:
        raise ModelError("the network gives no tensor of floats, so its answers cannot be compared")
    return tensors


MAIN = ("logits", "out", "output", "last_hidden_state", "prediction_logits", "reconstruction")
"""Names of the part of an output that a network is there for, the first that is there counts."""


def main_tensor(value: object) -> Tensor:
    """Return the tensor of floats that a network is there for, such as its logits.

    Of several that is the one with the first name in ``MAIN`` that is there.

    Raises:
        ModelError: There is none, or several without such a name.
    """
    if isinstance(value, Tensor) and value.is_floating_point():
        return value
    parts = _parts(value) if not isinstance(value, Tensor) else {}
    for name in MAIN:
        part = parts.get(name)
        if isinstance(part, Tensor) and part.is_floating_point():
            return part
    tensors = float_tensors(value)
    if len(tensors) > 1:
        names = f" ({', '.join(map(str, parts))})" if parts else ""
        raise ModelError(
            f"the network gives a {type(value).__name__} of {len(tensors)} tensors{names}, none of "
            f"them called {' or '.join(MAIN[:3])}: wrap it in a module that returns the one that "
            "counts, or give evaluate="
        )
    return tensors[0]


def put_together(structure: Structure, nodes: list[fx.Node], graph: fx.Graph) -> Any:
    """Return what the output node of ``graph`` takes, so that the graph gives the structure."""
    if isinstance(structure, Place):
        return nodes[structure.number]
    if not isinstance(structure, Container):
        return structure
    kind = structure.kind
    parts = {key: put_together(part, nodes, graph) for key, part in structure.parts.items()}
    if kind is dict:
        return parts
    if kind in (tuple, list):
        return kind(parts.values())
    if is_dataclass(kind):
        return graph.call_function(kind, (), parts)
    if hasattr(kind, "_fields"):
        return graph.call_function(kind, tuple(parts.values()))
    return graph.call_function(kind, (parts if issubclass(kind, Mapping) else [*parts.values()],))


def tensors_given(traced: fx.GraphModule) -> dict[str, fx.Node]:
    """Return the nodes of the tensors that a captured network gives, by their names.

    A single tensor is called "logits". Others have the keys and fields that lead to them, joined by
    dots; what has only a place is called output0, output1, ….
    """
    (value,) = traced.graph.output_node().args
    if isinstance(value, fx.Node) and not isinstance(value.target, type):
        return {"logits": value}
    leaves = dict(_leaves(value, ""))
    return {name if name[0].isalpha() else f"output{name}": node for name, node in leaves.items()}


def _leaves(value: Any, name: str) -> Iterator[tuple[str, fx.Node]]:
    if isinstance(value, fx.Node) and not isinstance(value.target, type):
        yield name, value
        return
    if isinstance(value, fx.Node):
        fields = getattr(value.target, "_fields", None)
        named = dict(zip(fields, value.args, strict=True)) if fields else value.kwargs
        parts = named or value.args[0]
    else:
        parts = value
    if isinstance(parts, tuple | list):
        parts = dict(enumerate(parts))
    if isinstance(parts, Mapping):
        for key, part in parts.items():
            yield from _leaves(part, f"{name}.{key}" if name else str(key))
