"""One traced forward: the inventory of the layers, and the tensors between them that are quantized.

The quantized network must be the network that an integer runtime executes, so it is not only the
inputs of the layers that are rounded:

- A tensor that layers read has their activation bit-width; all that read it share one.
- What leaves a layer (after its BatchNorm and ReLU) or an addition and is read by anything that is
  not a layer (the other side of an addition, a pooling) has 8 bits there.
- Both operands of an addition have 8 bits; the network's input has 8 bits, its output none.
"""

import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from haq.errors import ModelError
from haq.network.layers import Kind, Layer

Sample = Tensor | tuple[Tensor, ...]
LayerModule = nn.Conv2d | nn.Linear
LAYERS = (nn.Conv2d, nn.Linear)  # to the letter: a subclass may compute something else

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_RELUS = {nn.ReLU, nn.ReLU6, torch.relu, functional.relu, functional.relu6, "relu", "relu_"}
_ADDS = {operator.add, operator.iadd, torch.add, "add", "add_"}
# Move or drop values without changing any: rounding commutes with them.
_SHAPES = {
    nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Unflatten, torch.flatten, torch.reshape,
    torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, functional.dropout, "flatten",
    "view", "reshape", "permute", "transpose", "contiguous", "squeeze", "unsqueeze",
}  # fmt: skip
# Give values that were there before, or zeros: what was on a grid with a zero stays on it.
_SELECTIONS = _SHAPES | {
    operator.getitem, functional.pad, functional.max_pool2d, nn.MaxPool2d, nn.AdaptiveMaxPool2d,
    nn.ZeroPad2d, torch.chunk, torch.split, "chunk", "split",
}  # fmt: skip
# Ask what a tensor is, not for its values.
_SIZES = {".shape", ".ndim", ".dtype", ".device", "size", "dim", "numel"}
_NON_NEGATIVE = _RELUS | {
    nn.Sigmoid, nn.Softmax, nn.Hardsigmoid, nn.Softplus, torch.sigmoid, torch.softmax, torch.abs,
    torch.square, functional.sigmoid, functional.softmax, functional.hardsigmoid, "sigmoid",
    "softmax", "abs", "square",
}  # fmt: skip
_SCALABLE = _ADDS | {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
# Non-negative where all their operands are.
_SIGN_KEEPING = _SCALABLE | {
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d,
    torch.cat, torch.mean, "mean", "sum",
}  # fmt: skip


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


@dataclass(frozen=True)
class Graph:
    """What a forward of a model consists of.

    Attributes:
        layers: Every Conv2d and Linear in order of execution.
        points: The tensors that are quantized.
        floats: Names of modules and parameters with weights that stay float and do not fold into
            a layer.
        traced: The model's own modules under a graph of its forward in evaluation mode.
    """

    layers: tuple[Layer, ...]
    points: tuple[Point, ...]
    floats: tuple[str, ...]
    traced: fx.GraphModule


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in LAYERS or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, sample: Sample) -> Graph:
    """Return the layers and quantized tensors of ``model``, from one forward of ``sample``.

    Args:
        model: Left as it is. Its forward must not depend on the values it computes.
        sample: What one forward takes, with a leading batch axis; costs are per image.

    Returns:
        The graph; layers in order of execution, each once.

    Raises:
        ModelError: The forward cannot be traced or fails on the sample, there is no layer to
            quantize, or a layer is never reached.
    """
    inputs = sample if isinstance(sample, tuple) else (sample,)
    traced = _traced(model)
    calls = _layer_calls(traced)
    _check_reached(model, traced, calls)
    shapes = _shapes(traced, inputs)
    images = len(inputs[0])
    signs = _signs(traced)
    tensors = _inputs(calls)
    first = _first_readers(calls, tensors)
    layers = tuple(
        _layer(name, nodes, traced, shapes, signs, tensors, first[name], images)
        for name, nodes in calls.items()
    )
    points = _points(shapes, tensors, signs)
    return Graph(layers, points, _floats(model, traced, calls), traced)


def inventory(model: nn.Module, sample: Sample) -> tuple[Layer, ...]:
    """Return every Conv2d and Linear of ``model`` in order of execution; see ``trace``."""
    return trace(model, sample).layers


def _traced(model: nn.Module) -> fx.GraphModule:
    try:
        with evaluating(model):
            traced = fx.GraphModule(model, _Tracer().trace(model))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"the forward of {type(model).__name__} cannot be traced: {reason}; "
            "it must not branch on the values it computes (torch.fx.symbolic_trace)"
        ) from error
    _follow_changes(traced)
    return traced


def _follow_changes(traced: fx.GraphModule) -> None:
    """Let whoever reads a tensor after an operation in place read that operation's result."""
    nodes = list(traced.graph.nodes)
    for place, node in enumerate(nodes):
        if _changes_input(node):
            _input(node).replace_all_uses_with(node, set(nodes[place + 1 :]).__contains__)
    traced.recompile()


def _changes_input(node: fx.Node) -> bool:
    if node.op == "call_module":
        owner = node.graph.owning_module
        assert owner is not None
        return getattr(owner.get_submodule(str(node.target)), "inplace", False) is True
    if node.op == "call_method":
        return str(node.target).endswith("_")
    return node.kwargs.get("inplace") is True


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put all parts of a module into evaluation mode; each has its own mode back afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


class _Shapes(fx.Interpreter):
    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.extra_traceback = False  # takes seconds, and is not shown
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.is_floating_point():
            self.shapes[n] = result.shape
        return result


def _shapes(traced: fx.GraphModule, inputs: tuple[Tensor, ...]) -> dict[fx.Node, torch.Size]:
    """Return the shape of every floating-point tensor, in order of execution."""
    interpreter = _Shapes(traced)
    try:
        with torch.no_grad(), evaluating(traced):
            interpreter.run(*inputs)
    except Exception as error:
        shapes = ", ".join("x".join(map(str, value.shape)) for value in inputs)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"the model does not run on a sample of {shapes}: {reason}") from error
    return interpreter.shapes


def _layer_calls(traced: fx.GraphModule) -> dict[str, list[fx.Node]]:
    calls: dict[str, list[fx.Node]] = {}
    names = {id(module): name for name, module in traced.named_modules()}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            module = traced.get_submodule(node.target)
            if type(module) in LAYERS:
                calls.setdefault(names[id(module)], []).append(node)
    if not calls:
        raise ModelError("the model contains no Conv2d and no Linear that its forward calls")
    return calls


def _check_reached(
    model: nn.Module, traced: fx.GraphModule, calls: dict[str, list[fx.Node]]
) -> None:
    called = {str(node.target) for node in traced.graph.nodes if node.op == "call_module"}
    for name, module in model.named_modules():
        if not isinstance(module, LayerModule) or name in calls:
            continue
        owner = next((path for path in called if name.startswith(f"{path}.")), None)
        if owner is not None and type(module) not in LAYERS:
            continue  # such as the projection of an attention: a part of a module that stays float
        if owner is not None:
            kind = type(model.get_submodule(owner)).__name__
            raise ModelError(
                f"layer {name!r} cannot be quantized: {owner!r} is a {kind}, whose forward "
                "cannot be traced; write it with plain modules"
            )
        if type(module) not in LAYERS:
            raise ModelError(
                f"layer {name!r} is a {type(module).__name__} with a forward of its own; "
                "only plain Conv2d and Linear modules can be quantized"
            )
        raise ModelError(
            f"layer {name!r} is never reached by the forward; remove it from the model or call it"
        )


def _kind(node: fx.Node) -> Any:
    """Return what the tables above list: a module's type, a function, a method or ".attribute"."""
    if node.op == "call_module":
        owner = node.graph.owning_module
        assert owner is not None
        return type(owner.get_submodule(str(node.target)))
    if node.target is getattr:
        return f".{node.args[1]}"
    return node.target if node.op in ("call_function", "call_method") else node.op


def _is_layer(node: fx.Node) -> bool:
    return _kind(node) in LAYERS


def _input(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


def _inputs(calls: dict[str, list[fx.Node]]) -> dict[fx.Node, fx.Node]:
    """Return for every call of a layer the tensor it reads."""
    return {node: _tensor(_input(node)) for nodes in calls.values() for node in nodes}


def _tensor(node: fx.Node) -> fx.Node:
    """Return the node that computed the values ``node`` holds, before any change of shape."""
    while _kind(node) in _SHAPES and _only_user(node):
        node = _input(node)
    return node


def _signs(traced: fx.GraphModule) -> dict[fx.Node, bool]:
    """Return for every node whether it can be negative, from what it computes and not from data."""
    signed: dict[fx.Node, bool] = {}
    for node in traced.graph.nodes:
        kind = _kind(node)
        if kind in _NON_NEGATIVE or kind in _SIZES:
            signed[node] = False
        elif _selects(node):
            signed[node] = signed[_input(node)]
        elif kind in _SIGN_KEEPING and not _has_negative(node):
            signed[node] = any(signed[operand] for operand in node.all_input_nodes)
        else:
            signed[node] = True
    return signed


def _selects(node: fx.Node) -> bool:
    """Return whether all values of ``node`` are values of what it reads, or zero."""
    if node.target is functional.pad:
        value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
        return value in (None, 0)
    return _kind(node) in _SELECTIONS


def _has_negative(node: fx.Node) -> bool:
    """Return whether a sum or a product has a negative number among its operands."""
    if _kind(node) not in _SCALABLE:
        return False
    values = (*node.args, *node.kwargs.values())
    return any(isinstance(value, int | float) and value < 0 for value in values)


def _first_readers(
    calls: dict[str, list[fx.Node]], tensors: dict[fx.Node, fx.Node]
) -> dict[str, str]:
    """Return for every layer the first one with which it shares a tensor, directly or not."""
    parent = {name: name for name in calls}

    def root(name: str) -> str:
        return name if parent[name] == name else root(parent[name])

    readers: dict[fx.Node, str] = {}
    order = {name: position for position, name in enumerate(calls)}
    for name, nodes in calls.items():
        for node in nodes:
            one, other = root(readers.setdefault(tensors[node], name)), root(name)
            early, late = sorted((one, other), key=order.__getitem__)
            parent[late] = early
    return {name: root(name) for name in calls}


def _layer(
    name: str,
    nodes: list[fx.Node],
    traced: fx.GraphModule,
    shapes: dict[fx.Node, torch.Size],
    signs: dict[fx.Node, bool],
    tensors: dict[fx.Node, fx.Node],
    reads: str,
    images: int,
) -> Layer:
    module = traced.get_submodule(name)
    assert isinstance(module, LayerModule)
    sources = [tensors[node] for node in nodes]
    positions = [_positions(module, shapes[node], images) for node in nodes]
    layer = Layer(
        name=name,
        kind=_layer_kind(module),
        c_in=module.weight.shape[1],
        c_out=module.weight.shape[0],
        weights=module.weight.numel(),
        biases=module.weight.shape[0] if module.bias is not None or _folding(nodes) else 0,
        macs=sum(module.weight.numel() * count for count in positions),
        calls=len(nodes),
        signed=any(signs[source] for source in sources),
        reads=reads,
        reads_input=any(_origin(source).op == "placeholder" for source in sources),
    )
    if isinstance(module, nn.Linear):
        return replace(layer, in_size=(positions[0], 1), out_size=(positions[0], 1))
    return replace(
        layer,
        c_in=module.in_channels,
        kernel=_pair(module.kernel_size),
        stride=_pair(module.stride),
        padding=_padding(module),
        groups=module.groups,
        in_size=_pair(shapes[_input(nodes[0])][-2:]),
        out_size=_pair(shapes[nodes[0]][-2:]),
    )


def _pair(values: Iterable[int]) -> tuple[int, int]:
    height, width = values
    return int(height), int(width)


def _padding(module: nn.Conv2d) -> tuple[int, int]:
    if not isinstance(module.padding, str):
        return _pair(module.padding)
    if module.padding == "valid":
        return 0, 0
    spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return _pair(-(-span // 2) for span in spans)


def _layer_kind(module: LayerModule) -> Kind:
    if isinstance(module, nn.Linear):
        return "linear"
    if module.groups > 1:
        dense = module.groups == module.in_channels == module.out_channels
        return "depthwise" if dense else "grouped"
    return "pointwise" if tuple(module.kernel_size) == (1, 1) else "conv"


def _positions(module: LayerModule, shape: torch.Size, images: int) -> int:
    # Not a product of axes: windows of an image can stand in the batch axis.
    return shape.numel() // (module.weight.shape[0] * images)


def _users(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that read the values of ``node``."""
    return [user for user in node.users if _kind(user) not in _SIZES]


def _only_user(node: fx.Node) -> fx.Node | None:
    users = _users(node)
    return users[0] if len(users) == 1 else None


def _norm(node: fx.Node) -> fx.Node | None:
    """Return the BatchNorm that follows the layer called at ``node``, if one does."""
    user = _only_user(node)
    return user if user is not None and _kind(user) in _BATCH_NORMS else None


def _folding(nodes: list[fx.Node]) -> list[fx.Node]:
    """Return the calls of the BatchNorm that folds into the layer called at ``nodes``."""
    norms = [norm for node in nodes if (norm := _norm(node))]
    one = len(norms) == len(nodes) and len({norm.target for norm in norms}) == 1
    return norms if one else []


def values_of(node: fx.Node) -> fx.Node:
    """Return the node that computed the values ``node`` holds, before all changes of shape."""
    while _kind(node) in _SHAPES:
        node = _input(node)
    return node


def folded_norms(network: fx.GraphModule, layers: Iterable[str]) -> dict[str, str]:
    """Return for each of the layers into which a BatchNorm folds that norm's name."""
    calls: dict[str, list[fx.Node]] = {name: [] for name in layers}
    for node in network.graph.nodes:
        if node.op == "call_module" and node.target in calls:
            calls[node.target].append(node)
    folding = {name: _folding(nodes) for name, nodes in calls.items()}
    return {name: str(norms[0].target) for name, norms in folding.items() if norms}


def _leaves(node: fx.Node) -> fx.Node:
    """Return what leaves a layer or an addition: its value after BatchNorm and ReLU."""
    if _is_layer(node):
        node = _norm(node) or node
    user = _only_user(node)
    return user if user is not None and _kind(user) in _RELUS else node


def _points(
    shapes: dict[fx.Node, torch.Size], tensors: dict[fx.Node, fx.Node], signs: dict[fx.Node, bool]
) -> tuple[Point, ...]:
    readers: dict[fx.Node, list[str]] = {}
    for node, tensor in tensors.items():
        readers.setdefault(tensor, []).append(str(node.target))
    ends = {_leaves(node) for node in shapes if _is_layer(node) or _is_sum(node)}
    rounded = {end for end in ends if any(_use(u, end, tensors) == "other" for u in end.users)}
    for node in filter(_is_sum, shapes):
        rounded |= {operand for operand in node.all_input_nodes if _origin(operand) not in ends}
    sources = _sources(shapes)
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


def _sources(shapes: Iterable[fx.Node]) -> dict[fx.Node, str]:
    """Return for every tensor, in order of execution, the layer that was the last to add to it."""
    places: dict[str, int] = {}
    sources: dict[fx.Node, str] = {}
    for node in shapes:
        if _is_layer(node):
            places.setdefault(str(node.target), len(places))
            sources[node] = str(node.target)
            continue
        before = [sources[operand] for operand in node.all_input_nodes if sources.get(operand)]
        sources[node] = max(before, key=places.__getitem__, default="")
    return sources


def _joins(node: fx.Node, sources: dict[fx.Node, str]) -> Iterator[str]:
    """Yield the source of everything in which the values of ``node`` meet those of others."""
    for user in node.users:
        if user not in sources or _is_layer(user):
            continue
        if len(user.all_input_nodes) > 1:
            yield sources[user]
        else:
            yield from _joins(user, sources)


class Handover(NamedTuple):
    """A tensor that passes from the kernel of one layer to that of another.

    Attributes:
        producer: Name of the layer whose kernel decides whether it comes as integers.
        consumer: Name of the layer whose kernel decides whether integers are read.
        values: Values of one image.
    """

    producer: str
    consumer: str
    values: int


def handovers(graph: Graph, sample: Sample) -> tuple[Handover, ...]:
    """Return the tensors that layers and additions read, as far as layers produce them.

    An addition runs with its latest operand's layer, so it takes over the other operands. A tensor
    that several layers read is given once, with the first: they share one precision.

    Args:
        graph: From ``trace``.
        sample: As for ``trace``.
    """
    inputs = sample if isinstance(sample, tuple) else (sample,)
    images = len(inputs[0])
    shapes = _shapes(graph.traced, inputs)
    sources = _sources(shapes)
    found: dict[tuple[fx.Node, str], Handover] = {}
    for node in shapes:
        operands = [operand for operand in node.all_input_nodes if operand in shapes]
        if _is_layer(node):
            operands = [_tensor(operand) for operand in operands]
        elif len(operands) < 2:
            continue
        for operand in operands:
            producer, consumer = sources[operand], sources[node]
            key = operand, "" if _is_layer(node) else consumer
            if producer and producer != consumer and key not in found:
                found[key] = Handover(producer, consumer, shapes[operand].numel() // images)
    return tuple(found.values())


def _is_sum(node: fx.Node) -> bool:
    operands = (*node.args, *node.kwargs.values())
    return _kind(node) in _ADDS and sum(isinstance(value, fx.Node) for value in operands) == 2


def _origin(node: fx.Node) -> fx.Node:
    while _selects(node):
        node = _input(node)
    return node


def _use(user: fx.Node, tensor: fx.Node, tensors: dict[fx.Node, fx.Node]) -> str:
    """Return what reads ``tensor`` at ``user``, or behind it where ``user`` only changes shape."""
    while user not in tensors and _kind(user) in _SHAPES and (behind := _only_user(user)):
        user = behind
    if tensors.get(user) is tensor:
        return "layer"
    return "none" if user.op == "output" or _kind(user) in _SIZES else "other"


def insert(
    traced: fx.GraphModule, points: Iterable[Point], make: Callable[[Point], nn.Module]
) -> fx.GraphModule:
    """Put a module behind every quantized tensor, in place, and return the graph's module.

    The module of a point with layers is what those layers read; the other kind is what everything
    else reads, the layers' own module included.
    """
    nodes = {node.name: node for node in traced.graph.nodes}
    tensors = _inputs(_layer_calls(traced))
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


def _floats(
    model: nn.Module, traced: fx.GraphModule, calls: dict[str, list[fx.Node]]
) -> tuple[str, ...]:
    folding = {norm for nodes in calls.values() for norm in _folding(nodes)}
    alone = {node.target for node in traced.graph.nodes if node not in folding}
    inside = {*calls} | {norm.target for norm in folding} - alone
    return tuple(
        name or type(model).__name__
        for name, module in model.named_modules()
        if name not in inside and any(True for _ in module.parameters(recurse=False))
    )
