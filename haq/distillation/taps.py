"""Where the features of two networks are compared, and how they get out of a forward."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import fx

from haq.errors import HaqError, look_up
from haq.network.capture import Sample, shapes_of
from haq.network.inputs import as_inputs
from haq.network.operators import is_product, is_sum
from haq.network.sites import leaves, module_name


class Tap(NamedTuple):
    """A tensor of the student and one of the teacher that are compared.

    Attributes:
        name: For people: the module asked for, or the resolution.
        student: Name of the student's node.
        teacher: Name of the teacher's node.
        shapes: Of both for one batch.
    """

    name: str
    student: str
    teacher: str
    shapes: tuple[torch.Size, torch.Size]


def find_taps(
    student: fx.GraphModule, teacher: fx.GraphModule, sample: Sample, asked: Sequence[str] = ()
) -> tuple[Tap, ...]:
    """Return where two captured networks are compared, in order of execution.

    Args:
        student: Before it is quantized, or the teacher itself where the student is a copy of it.
        teacher: From ``haq.network.graph.trace``.
        sample: What one forward of either takes.
        asked: Names of modules, as NAME or STUDENT=TEACHER; empty for the last output of each
            resolution that both have.

    Raises:
        HaqError: There is no such module, or no resolution is in both.
    """
    inputs = as_inputs(sample)
    mine, its = shapes_of(student, inputs), shapes_of(teacher, inputs)
    if asked:
        pairs = {}
        for text in asked:
            name, _, other = text.partition("=")
            pairs[text] = _output_of(name, mine), _output_of(other or name, its)
    else:
        own, others = _by_resolution(mine), _by_resolution(its)
        pairs = {name: (own[name], others[name]) for name in own if name in others}
    if not pairs:
        raise HaqError(
            f"distill: student and teacher have no resolution in common ({', '.join(own)} and "
            f"{', '.join(others)}); name taps as STUDENT=TEACHER"
        )
    return tuple(
        Tap(name, one.name, other.name, (mine[one], its[other]))
        for name, (one, other) in pairs.items()
    )


def _output_of(name: str, shapes: Mapping[fx.Node, torch.Size]) -> fx.Node:
    """Return the node that ends the forward of a module."""
    ends: dict[str, fx.Node] = {}
    for node in shapes:
        ends |= dict.fromkeys(filter(None, node.meta.get("modules", ())), node)
        if node.op == "call_module":
            ends[str(node.target)] = node
    return look_up(ends, "tap", name)


def _by_resolution(shapes: Mapping[fx.Node, torch.Size]) -> dict[str, fx.Node]:
    """Return the last output of a layer or an addition at each resolution.

    A network without positions has one: what its last layer reads.
    """
    found: dict[str, fx.Node] = {}
    for node in shapes:
        if is_product(node) or is_sum(node):
            end = leaves(node)
            size = "x".join(map(str, positions(shapes[end])))
            if size and end in shapes:
                found.pop(size, None)
                found[size] = end
    found = {size: end for size, end in found.items() if size != "1x1"} or found
    if found:
        return found
    last = [node for node in shapes if is_product(node)][-1]
    return {"last": last.all_input_nodes[0]}


def positions(shape: torch.Size) -> tuple[int, ...]:
    """Return the extents of the positions of features: H and W of (N, C, H, W), T of (N, T, C)."""
    return tuple(shape[2:]) if len(shape) != 3 else (shape[1],)


def tapped(network: fx.GraphModule, names: Iterable[str], rounded: bool) -> fx.GraphModule:
    """Return a network that gives its output and a list of the named tensors.

    It has the parameters and modules of ``network``, which stays as it is.

    Args:
        network: Captured, quantized or not.
        names: Of nodes.
        rounded: Whether to give a tensor as its quantizer leaves it, where there is one.
    """
    graph = fx.Graph()
    places: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(network.graph, places)
    nodes = {node.name: node for node in network.graph.nodes}
    ends = [places[_quantized(nodes, name) if rounded else nodes[name]] for name in names]
    graph.output((output, ends))
    return fx.GraphModule(network, graph)


def quantizer_of(network: fx.GraphModule, name: str) -> str | None:
    """Return the module that rounds a tensor of a quantized network; None where there is none."""
    nodes = {node.name: node for node in network.graph.nodes}
    node = _quantized(nodes, name)
    return None if node is nodes[name] else str(node.target)


def _quantized(nodes: Mapping[str, fx.Node], name: str) -> fx.Node:
    # What layers read comes before what everything else reads.
    targets = [module_name(name, layers) for layers in ((name,), ())]
    behind = {str(node.target): node for node in nodes.values() if node.op == "call_module"}
    return next((behind[target] for target in targets if target in behind), nodes[name])
