"""The tensors of a captured graph that are quantized.

The quantized network must be the network that an integer runtime executes, so it is not only the
inputs of the layers that are rounded:

- A tensor that layers read has their activation bit-width; all that read it share one.
- What leaves a layer (after its BatchNorm and ReLU) or an addition and is read by anything that is
  not a layer (the other side of an addition, a pooling) has 8 bits there.
- Both operands of an addition have 8 bits; the network's input has 8 bits, its output none. What
  is added to scores before a softmax, and masks (-100, -10 000, -inf), share no grid with what they
  are added to: such sums stay float.
- Rows of embeddings, and sums of them, stay float where no layer reads them: their codes are those
  of the weights.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

from haq.network.capture import product_calls
from haq.network.operators import (
    SIZES,
    are_scores,
    first_input,
    is_lookup,
    is_product,
    is_relu,
    is_sum,
    kind_of,
    masks,
    norm_behind,
    only_user,
    origin_of,
    reshapes,
    tensor_of,
)


@dataclass(frozen=True)
class Point:
    """A tensor that is quantized.

    Attributes:
        tensor: Name of the graph's node that computes it.
        layers: The layers that read it, for which it has their activation bits; empty for the
            8-bit copy that everything else reads.
        signed: Whether it can be negative.
        source: The layer whose kernel decides whether it comes as integers: of those whose results
            are in it, the last to be computed; empty for the network's input.
        joins: For the 8-bit copy, the sources of what it is added to or put together with.
    """

    tensor: str
    layers: tuple[str, ...]
    signed: bool
    source: str = ""
    joins: tuple[str, ...] = ()


def tensors_read(calls: dict[str, list[fx.Node]]) -> dict[fx.Node, fx.Node]:
    """Return for every call of a layer the tensor it reads."""
    return {node: tensor_of(first_input(node)) for nodes in calls.values() for node in nodes}


def leaves(node: fx.Node) -> fx.Node:
    """Return what leaves a layer or an addition: its value after BatchNorm and ReLU."""
    if is_product(node):
        node = norm_behind(node) or node
    user = only_user(node)
    return user if user is not None and is_relu(user) else node


def points_of(
    shapes: dict[fx.Node, torch.Size], tensors: dict[fx.Node, fx.Node], signs: dict[fx.Node, bool]
) -> tuple[Point, ...]:
    """Return the tensors that are quantized, in order of execution."""
    readers: dict[fx.Node, list[str]] = {}
    for node, tensor in tensors.items():
        readers.setdefault(tensor, []).append(str(node.target))
    sums = [node for node in _computed(shapes) if is_sum(node) and not _is_masked(node)]
    ends = {leaves(node) for node in (*filter(is_product, shapes), *sums)}
    rounded = {end for end in ends if any(_use(u, end, tensors) == "other" for u in end.users)}
    for node in sums:
        rounded |= {operand for operand in node.all_input_nodes if origin_of(operand) not in ends}
    sources = sources_of(shapes)
    points: list[Point] = []
    for node in shapes:
        source = sources[node]
        if node in rounded:
            joins = tuple(dict.fromkeys(_joins(node, sources)))
            points.append(Point(node.name, (), signs[node], source, joins))
        if node in readers:
            together = tuple(dict.fromkeys(readers[node]))
            points.append(Point(node.name, together, signs[node], source))
    return tuple(points)


def _is_masked(node: fx.Node) -> bool:
    """Return whether a sum is one of scores, or of a tensor and its mask."""
    return are_scores(node) or any(map(masks, node.all_input_nodes))


def _computed(shapes: Iterable[fx.Node]) -> list[fx.Node]:
    """Return the tensors in which there is more than rows of tables and parameters."""
    nodes = list(shapes)
    plain: set[fx.Node] = set()
    for node in nodes:
        floats = [operand for operand in node.all_input_nodes if operand in shapes]
        constant = not node.all_input_nodes and node.op != "placeholder"
        if constant or is_lookup(node) or (floats and plain.issuperset(floats)):
            plain.add(node)
    return [node for node in nodes if node not in plain]


def sources_of(shapes: Iterable[fx.Node]) -> dict[fx.Node, str]:
    """Return for every tensor, in order of execution, the layer that was the last to add to it."""
    places: dict[str, int] = {}
    sources: dict[fx.Node, str] = {}
    for node in shapes:
        if is_product(node):
            places.setdefault(str(node.target), len(places))
            sources[node] = str(node.target)
            continue
        before = [sources[operand] for operand in node.all_input_nodes if sources.get(operand)]
        sources[node] = max(before, key=places.__getitem__, default="")
    return sources


def _joins(node: fx.Node, sources: dict[fx.Node, str]) -> Iterator[str]:
    """Yield the source of everything in which the values of ``node`` meet those of others."""
    for user in node.users:
        if user not in sources or is_product(user):
            continue
        if len(user.all_input_nodes) > 1:
            yield sources[user]
        else:
            yield from _joins(user, sources)


def _use(user: fx.Node, tensor: fx.Node, tensors: dict[fx.Node, fx.Node]) -> str:
    """Return what reads ``tensor`` at ``user``, or behind it where ``user`` only changes shape."""
    while user not in tensors and reshapes(user) and (behind := only_user(user)):
        user = behind
    if tensors.get(user) is tensor:
        return "layer"
    ends = user.op == "output" or isinstance(user.target, type)  # or puts the output together
    return "none" if ends or kind_of(user) in SIZES else "other"


def insert(
    traced: fx.GraphModule, points: Iterable[Point], make: Callable[[Point], nn.Module]
) -> fx.GraphModule:
    """Put a module behind every quantized tensor, in place, and return the graph's module.

    The module of a point with layers is what those layers read; the other kind is what everything
    else reads, the layers' own module included.
    """
    nodes = {node.name: node for node in traced.graph.nodes}
    tensors = tensors_read(product_calls(traced))
    for point in points:
        tensor = nodes[point.tensor]
        source = next(
            (u for u in tensor.users if u.target == module_name(point.tensor, ())), tensor
        )
        use = "layer" if point.layers else "other"
        chosen = [user for user in tensor.users if _use(user, tensor, tensors) == use]
        name = module_name(point.tensor, point.layers)
        traced.add_submodule(name, make(point))
        with traced.graph.inserting_after(source):
            rounding = traced.graph.call_module(name, (source,))
        for user in chosen:
            user.replace_input_with(tensor, rounding)
    traced.graph.lint()
    traced.recompile()
    return traced


def module_name(tensor: str, layers: tuple[str, ...]) -> str:
    """Return the name of the quantizer of a point in the quantized network."""
    return f"quantizers.{tensor}_{'read' if layers else 'kept'}"
