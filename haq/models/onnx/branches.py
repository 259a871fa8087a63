"""Models without branches: of every If the branch that is taken, where no input's values decide."""

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import AttributeProto, helper

from haq.errors import ModelError
from haq.models.onnx.document import label
from haq.models.onnx.inputs import Inputs, with_fixed_inputs
from haq.models.onnx.runtime import answers

_SIZES = ("Shape", "Size")


def without_branches(file: str, model: onnx.ModelProto, inputs: Inputs) -> onnx.ModelProto:
    """Return a model in which the operators of the branches taken stand in the place of the Ifs.

    Names stay, but for those that two branches have in common.

    Raises:
        ModelError: The values of an input decide which branch is taken.
    """
    flat = onnx.ModelProto()
    flat.CopyFrom(model)
    while any(node.op_type == "If" for node in flat.graph.node):
        _take_branches(file, flat, inputs)
        drop_unused(flat.graph)
    return flat


def _take_branches(file: str, model: onnx.ModelProto, inputs: Inputs) -> None:
    """Put in what the Ifs decide that do not wait for other Ifs."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    ready = []
    for node in graph.node:
        if node.op_type == "If":
            before = list(_ancestors(node.input[0], makers))
            if not any(other.op_type == "If" for other in before):
                _check_decided(file, node, before, inputs)
                ready.append(node)
    taken = _decided(model, ready, inputs)
    used = _names(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.output[0] in taken:
            nodes += _branch(graph, node, taken[node.output[0]], used)
        else:
            nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the tensors that a node reads, those of the graphs in it included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            own = _names(attribute.g)
            for inner in attribute.g.node:
                yield from (name for name in reads(inner) if name not in own)
            yield from (out.name for out in attribute.g.output if out.name not in own)


def _names(graph: onnx.GraphProto) -> set[str]:
    """Return the tensors that a graph itself has."""
    return {
        *(value.name for value in graph.input), *(value.name for value in graph.initializer),
        *(name for node in graph.node for name in node.output),
    }  # fmt: skip


def _ancestors(tensor: str, makers: dict[str, onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that a tensor depends on, one after the other."""
    waiting, seen = [tensor], {tensor}
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None:
            yield node
            new = [name for name in reads(node) if name not in seen]
            seen.update(new)
            waiting += new


def _check_decided(
    file: str, node: onnx.NodeProto, before: Iterable[onnx.NodeProto], inputs: Inputs
) -> None:
    given = {one.name for one in inputs.given}
    makers = {n: b for b in before if b.op_type not in _SIZES for n in b.output}
    waiting, seen = [node.input[0]], set[str]()
    while waiting:
        name = waiting.pop()
        if name in given:
            raise ModelError(
                f"{file} branches on values that it is given: the If in node {label(node)!r} "
                f"depends on input {name!r}; fix that input's value, if it is always the same"
            )
        if name not in seen and name in makers:
            waiting += reads(makers[name])
        seen.add(name)


def _decided(
    model: onnx.ModelProto, ready: list[onnx.NodeProto], inputs: Inputs
) -> dict[str, onnx.GraphProto]:
    """Return the branch that is taken, by the first output of the If."""
    rows = inputs.given[0].rows or 2
    part = with_fixed_inputs(model, inputs, rows)
    wanted = list(dict.fromkeys(node.input[0] for node in ready))
    makers = {name: node for node in part.graph.node for name in node.output}
    needed = {id(one) for name in wanted for one in _ancestors(name, makers)}
    nodes = [node for node in part.graph.node if id(node) in needed]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del part.graph.node[:], part.graph.output[:]
    part.graph.node.extend(copies)
    feeds = {one.name: np.zeros(one.of(rows), one.dtype) for one in inputs.given}
    for name in wanted:
        part.graph.node.append(helper.make_node("Identity", [name], [f"{name}/decided"]))
    results = answers(part, feeds, [f"{name}/decided" for name in wanted])
    values = {name: bool(value.item()) for name, value in zip(wanted, results, strict=True)}
    return {
        node.output[0]: helper.get_node_attr_value(
            node, "then_branch" if values[node.input[0]] else "else_branch"
        )
        for node in ready
    }


def _branch(
    graph: onnx.GraphProto, node: onnx.NodeProto, branch: onnx.GraphProto, used: set[str]
) -> list[onnx.NodeProto]:
    """Return the nodes of a branch, and put its constants into the graph around it."""
    own = _names(branch)
    renamed = {name: f"{label(node)}/{name}" for name in own if name in used}
    ends = [out.name for out in branch.output]
    made = {name for inner in branch.node for name in inner.output}
    direct = {
        end: name for end, name in zip(ends, node.output, strict=True)
        if end in made and ends.count(end) == 1
    }  # fmt: skip
    renamed |= direct
    nodes = [onnx.NodeProto.FromString(inner.SerializeToString()) for inner in branch.node]
    for inner in nodes:
        _rename(inner, renamed)
    for tensor in branch.initializer:
        stored = onnx.TensorProto()
        stored.CopyFrom(tensor)
        stored.name = renamed.get(tensor.name, tensor.name)
        graph.initializer.append(stored)
    for end, name in zip(ends, node.output, strict=True):
        if end not in direct:
            nodes.append(helper.make_node("Identity", [renamed.get(end, end)], [name]))
    used |= {renamed.get(name, name) for name in own}
    return nodes


def _rename(node: onnx.NodeProto, renamed: dict[str, str]) -> None:
    for names in (node.input, node.output):
        for place, name in enumerate(names):
            names[place] = renamed.get(name, name)
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            inner = attribute.g
            outer = {old: new for old, new in renamed.items() if old not in _names(inner)}
            for each in inner.node:
                _rename(each, outer)
            for out in inner.output:
                out.name = outer.get(out.name, out.name)


def drop_unused(graph: onnx.GraphProto) -> None:
    """Leave out the nodes and constants on which no output depends."""
    makers = {name: node for node in graph.node for name in node.output}
    needed: set[int] = set()
    used = {out.name for out in graph.output}
    for out in graph.output:
        for node in _ancestors(out.name, makers):
            needed.add(id(node))
            used.update(reads(node))
    nodes = [
        onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node if id(n) in needed
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    constants = [tensor for tensor in graph.initializer if tensor.name in used]
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in constants]
    del graph.initializer[:]
    graph.initializer.extend(kept)
