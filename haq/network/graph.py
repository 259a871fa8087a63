"""A captured model: its layers, and the tensors between them that are quantized."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from haq.network.capture import Sample, capture, layer_calls, product_calls, shapes_of
from haq.network.inputs import as_inputs
from haq.network.layers import SPARSE, CallShape, Kind, Layer, Sizes
from haq.network.modules import (
    LOOKUPS,
    Convolution,
    LayerModule,
    Matrix,
    Transposed,
    bias_of,
    inputs_of,
    outputs_of,
)
from haq.network.operators import (
    RECURRENT,
    first_input,
    folding_norms,
    is_product,
    kind_of,
    macs_of_activations,
    macs_of_product,
    origin_of,
    recurrent_steps,
    tensor_of,
)
from haq.network.signs import signs_of
from haq.network.sites import Point, points_of, sources_of, tensors_read


@dataclass(frozen=True)
class Graph:
    """What a forward of a model consists of.

    Attributes:
        layers: Every layer in order of execution.
        points: The tensors that are quantized.
        floats: Names of modules and parameters with weights that stay float and do not fold into
            a layer.
        traced: The forward in evaluation mode as operations on the model's own parameters; layers,
            BatchNorms and dropout are PyTorch's modules under the names of their weights' owners.
        float_parameters: Name of each in ``floats`` to the number of its values of 32 bits that are
            stored, parameters and buffers together; what several share is counted once.
        float_macs: Multiply-accumulates for one image of products of two activations, such as those
            of attention, which stay float.
        notes: What differs from the model, in whole sentences.
    """

    layers: tuple[Layer, ...]
    points: tuple[Point, ...]
    floats: tuple[str, ...]
    traced: fx.GraphModule
    float_parameters: Mapping[str, int] = field(default_factory=dict)
    float_macs: int = 0
    notes: tuple[str, ...] = ()


def trace(model: nn.Module, sample: Sample) -> Graph:
    """Return the layers and quantized tensors of ``model``, from one forward of ``sample``.

    Args:
        model: Left as it is. Its forward must not branch on the values it computes.
        sample: What one forward takes, with a leading batch axis; costs are per image.

    Returns:
        The graph; layers in order of execution, each once.

    Raises:
        ModelError: The model fails on the sample, its forward cannot be captured, the graph does
            not give the model's answers, or there is no layer to quantize.
    """
    captured = capture(model, sample)
    traced, shapes = captured.traced, captured.shapes
    calls = layer_calls(traced)
    signs = signs_of(traced)
    products = product_calls(traced)
    tensors = tensors_read(products)
    first = _first_readers(products, tensors)
    layers = []
    for name, nodes in calls.items():
        module = traced.get_submodule(name)
        assert isinstance(module, LayerModule)
        layer = _layer(name, module, nodes, shapes, captured.rows)
        if name in products:
            read = [tensors[node] for node in nodes]
            layer = replace(
                layer,
                signed=any(signs[tensor] for tensor in read),
                reads=first[name],
                reads_input=any(origin_of(tensor).op == "placeholder" for tensor in read),
            )
        layers.append(layer)
    points = points_of(shapes, tensors, signs)
    counts = _float_parameters(traced, calls)
    macs = sum(macs_of_activations(node, shapes) for node in shapes) // captured.rows
    return Graph(tuple(layers), points, tuple(counts), traced, counts, macs, captured.notes)


def inventory(model: nn.Module, sample: Sample) -> tuple[Layer, ...]:
    """Return every layer of ``model`` in order of execution; see ``trace``."""
    return trace(model, sample).layers


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
    module: LayerModule,
    nodes: list[fx.Node],
    shapes: dict[fx.Node, torch.Size],
    images: int,
) -> Layer:
    sizes = [_sizes(module, node, shapes, images) for node in nodes]
    with_bias = bias_of(module) is not None or folding_norms(nodes)
    layer = Layer(
        name=name,
        kind=_layer_kind(module, nodes),
        c_in=inputs_of(module),
        c_out=outputs_of(module),
        in_size=sizes[0].in_size,
        out_size=sizes[0].out_size,
        weights=module.weight.numel(),
        biases=outputs_of(module) if with_bias else 0,
        macs=sum(size.macs for size in sizes),
        calls=len(nodes),
        signed=True,
        reads=name,
        shapes=_differing(sizes),
        zeros=_zeros(module.weight),
    )
    if not isinstance(module, Convolution | Transposed):
        return layer
    return replace(
        layer,
        kernel=_sides(module.kernel_size, 1),
        stride=_sides(module.stride, 1),
        padding=_padding(module),
        groups=module.groups,
    )


def _zeros(weight: Tensor) -> int:
    """Return how many weights pruning made zero."""
    if weight.is_meta:
        return 0
    zeros = weight.numel() - int(torch.count_nonzero(weight.detach()))
    return zeros if SPARSE * weight.numel() <= zeros < weight.numel() else 0


def _sizes(
    module: LayerModule, node: fx.Node, shapes: dict[fx.Node, torch.Size], images: int
) -> CallShape:
    if isinstance(module, Matrix):
        steps = sum(recurrent_steps(user, shapes) for user in node.users)
        if steps:
            return CallShape((steps, 1), (steps, 1), module.weight.numel() * steps, 1)
        macs = sum(macs_of_product(user, shapes) for user in node.users) // images
        return CallShape((1, 1), (1, 1), macs, 1)
    positions = _positions(module, shapes[node], images)
    macs = 0 if isinstance(module, LOOKUPS) else module.weight.numel() * positions
    if not isinstance(module, Convolution | Transposed):
        return CallShape((positions, 1), (positions, 1), macs, 1)
    axes = len(module.kernel_size)
    before, after = (_sides(shapes[n][-axes:], 1) for n in (first_input(node), node))
    if isinstance(module, Transposed):
        # Every input is multiplied with every weight of its channel.
        macs = (
            module.weight.numel()
            * shapes[first_input(node)].numel()
            // (images * module.in_channels)
        )
    return CallShape(before, after, macs, 1)


def _differing(sizes: list[CallShape]) -> tuple[CallShape, ...]:
    counts = Counter(sizes)
    if len(counts) == 1:
        return ()
    return tuple(size._replace(calls=count) for size, count in counts.items())


def _sides(values: Iterable[int], missing: int) -> Sizes:
    """Return height and width, or depth, height and width; ``missing`` is the height of a row."""
    sides = tuple(map(int, values))
    return sides if len(sides) > 1 else (missing, *sides)


def _padding(module: Convolution | Transposed) -> Sizes:
    if not isinstance(module.padding, str):
        return _sides(module.padding, 0)
    if module.padding == "valid":
        return _sides([0] * len(module.kernel_size), 0)
    spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return _sides((-(-span // 2) for span in spans), 0)


def _layer_kind(module: LayerModule, nodes: list[fx.Node]) -> Kind:
    if isinstance(module, LOOKUPS):
        return "embedding"
    if isinstance(module, Matrix):
        together = {kind_of(user) for node in nodes for user in node.users}
        return "recurrent" if together <= RECURRENT else "matrix"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, Transposed):
        return "transposed"
    if module.groups > 1:
        dense = module.groups == module.in_channels == module.out_channels
        return "depthwise" if dense else "grouped"
    return "pointwise" if set(module.kernel_size) == {1} else "conv"


def _positions(module: LayerModule, shape: torch.Size, images: int) -> int:
    # Not a product of axes: windows of an image can stand in the batch axis.
    return max(1, shape.numel() // (outputs_of(module) * images))


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
    inputs = as_inputs(sample)
    images = len(inputs)
    shapes = shapes_of(graph.traced, inputs)
    sources = sources_of(shapes)
    found: dict[tuple[fx.Node, str], Handover] = {}
    for node in shapes:
        operands = [operand for operand in node.all_input_nodes if operand in shapes]
        if is_product(node):
            operands = [tensor_of(operand) for operand in operands]
        elif len(operands) < 2:
            continue
        for operand in operands:
            producer, consumer = sources[operand], sources[node]
            key = operand, "" if is_product(node) else consumer
            if producer and producer != consumer and key not in found:
                found[key] = Handover(producer, consumer, shapes[operand].numel() // images)
    return tuple(found.values())


def _float_parameters(traced: fx.GraphModule, calls: Mapping[str, list[fx.Node]]) -> dict[str, int]:
    """Return how many values each part stores that is neither a layer nor folds into one."""
    folding = {norm for nodes in calls.values() for norm in folding_norms(nodes)}
    counted = {id(value) for name in calls for value in traced.get_submodule(name).parameters()}
    counts: dict[str, int] = {}
    for node in traced.graph.nodes:
        if node in folding or node.target in calls:
            continue
        for name, value in _stored(traced, node):
            if id(value) not in counted:
                counted.add(id(value))
                words = -(-value.numel() * value.element_size() // 4)
                counts[name] = counts.get(name, 0) + words
    return counts


def _stored(traced: fx.GraphModule, node: fx.Node) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers that a node reads, with the name of what has them."""
    target = str(node.target)
    if node.op == "get_attr":
        owner, _, leaf = target.rpartition(".")
        yield owner or leaf, getattr(traced.get_submodule(owner), leaf)
    elif node.op == "call_module":
        module = traced.get_submodule(target)
        for name, value in module.state_dict(keep_vars=True).items():
            if name != "num_batches_tracked":
                yield target, value


def resized(graph: Graph, traced: fx.GraphModule) -> Graph:
    """Return the graph of a network whose layers have fewer channels than they had.

    Args:
        graph: Of the whole network; left as it is.
        traced: What ``haq.compression.filters.remove`` made of its forward.
    """
    layers = tuple(_resized(layer, traced.get_submodule(layer.name)) for layer in graph.layers)
    counts = _float_parameters(traced, layer_calls(traced))
    return replace(graph, layers=layers, traced=traced, float_parameters=counts)


def _resized(layer: Layer, module: nn.Module) -> Layer:
    assert isinstance(module, LayerModule)
    outputs, weights = outputs_of(module), module.weight.numel()
    if (outputs, weights) == (layer.c_out, layer.weights):
        return layer
    part = weights / layer.weights
    return replace(
        layer,
        c_in=inputs_of(module),
        c_out=outputs,
        groups=module.groups if isinstance(module, Convolution | Transposed) else 1,
        weights=weights,
        biases=outputs if layer.biases else 0,
        macs=round(layer.macs * part),
        zeros=int((module.weight == 0).sum()) if layer.zeros else 0,
        shapes=tuple(shape._replace(macs=round(shape.macs * part)) for shape in layer.shapes),
    )
