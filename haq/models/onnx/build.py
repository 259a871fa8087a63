"""From a file without branches to its network."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from haq.errors import ModelError
from haq.models.onnx.document import LARGEST, label
from haq.models.onnx.inputs import Inputs, with_fixed_inputs
from haq.models.onnx.network import Builder, OnnxNetwork, Origin, constants_of
from haq.models.onnx.operators.recurrent import GATES
from haq.models.onnx.runtime import normalized


def built(flat: onnx.ModelProto, inputs: Inputs) -> OnnxNetwork:
    """Return the network of a file without branches."""
    free = flat if inputs.given[0].rows is None else _freed(flat, inputs)
    two, three = (_fixed(free, inputs, rows) for rows in (2, 3))
    return network_of(flat, inputs, two, three)


def network_of(
    flat: onnx.ModelProto, inputs: Inputs, two: onnx.ModelProto, three: onnx.ModelProto
) -> OnnxNetwork:
    """Return the network of a file.

    Args:
        flat: The file without branches.
        inputs: The file's.
        two: What the file is for two rows: all shapes are fixed, and what they decide is constant.
        three: The same for three rows.

    Raises:
        ModelError: It has an operator that the table has not, or the two differ in another way.
    """
    same = [(n.op_type, *n.input, *n.output) for n in two.graph.node] == [
        (n.op_type, *n.input, *n.output) for n in three.graph.node
    ]
    if not same:
        raise ModelError("it computes otherwise for two inputs than for three")
    try:
        constants = constants_of(two.graph, three.graph)
    except (ValueError, KeyError) as error:
        raise ModelError(f"{error}") from error
    shaped, larger = (onnx.shape_inference.infer_shapes(one).graph for one in (two, three))
    _check_sizes(shaped)
    _check_sequences(shaped, larger)
    weights = _weights(flat)
    builder = Builder(shaped, constants, weights)
    for node in with_biases(two.graph, constants):
        builder.add(node)
    outputs = tuple(
        (out.name, _batch_axis(out, other))
        for out, other in zip(shaped.output, larger.output, strict=True)
    )
    worked_out = {name: constants[name] for name in builder.stored.values() if weights[name]}
    origin = Origin(
        flat.SerializeToString(), inputs.given, outputs, inputs.fixed, inputs.axes, builder.modules,
        _shapes(flat, shaped), builder.stored, worked_out,
    )  # fmt: skip
    return builder.network(origin)


def _weights(model: onnx.ModelProto) -> dict[str, bool]:
    """Return the tensors that depend on constants alone: whether they are computed."""
    weights = {tensor.name: False for tensor in model.graph.initializer}
    for node in model.graph.node:
        names = [name for name in node.input if name]
        if node.op_type == "Constant" or (names and all(name in weights for name in names)):
            weights |= dict.fromkeys(node.output, node.op_type != "Constant")
    return weights


def _shapes(flat: onnx.ModelProto, shaped: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors in a file, -1 for sizes that are free."""
    free = onnx.shape_inference.infer_shapes(flat).graph
    known = {
        value.name: tuple(
            dim.dim_value if dim.dim_value > 0 else -1 for dim in value.type.tensor_type.shape.dim
        )
        for value in (*free.value_info, *free.input, *free.output)
        if value.type.tensor_type.HasField("shape")
    }
    shapes = {}
    for value in (*shaped.value_info, *shaped.input, *shaped.output):
        rank = len(value.type.tensor_type.shape.dim)
        own = known.get(value.name, ())
        shapes[value.name] = own if len(own) == rank else (-1,) * rank
    return shapes


def _fixed(model: onnx.ModelProto, inputs: Inputs, rows: int) -> onnx.ModelProto:
    try:
        return normalized(with_fixed_inputs(model, inputs, rows))
    except ModelError as error:
        count = inputs.given[0].rows
        if count is None:
            raise
        raise ModelError(
            f"it is made for {count} inputs at a time alone, and a search needs any number: export "
            f"it with a batch axis that is free ({error})"
        ) from error


def _batch_axis(two: onnx.ValueInfoProto, three: onnx.ValueInfoProto) -> int | None:
    sizes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (two, three)]
    return next((axis for axis, (a, b) in enumerate(zip(*sizes, strict=True)) if a != b), None)


def _check_sizes(graph: onnx.GraphProto) -> None:
    for value in (*graph.value_info, *graph.output):
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if np.prod(sizes, dtype=float) > LARGEST:
            raise ModelError(f"tensor {value.name!r} of {'x'.join(map(str, sizes))} is too large")


def _check_sequences(two: onnx.GraphProto, three: onnx.GraphProto) -> None:
    """Refuse an LSTM or GRU that takes the rows as the steps of one sequence."""
    shapes = [
        {v.name: v.type.tensor_type.shape.dim for v in (*graph.value_info, *graph.input)}
        for graph in (two, three)
    ]
    for node in two.node:
        if node.op_type in GATES:
            steps = [
                known[node.input[0]][0].dim_value for known in shapes if known.get(node.input[0])
            ]
            if len(set(steps)) > 1:
                raise ModelError(
                    f"operator {node.op_type} in node {label(node)!r} takes the rows as the steps "
                    "of one sequence, so there is no batch; give a file with a batch axis too"
                )


def _freed(model: onnx.ModelProto, inputs: Inputs) -> onnx.ModelProto:
    """Return a copy in which reshapes take the number of rows from what they reshape."""
    rows = inputs.given[0].rows
    assert rows is not None
    shaped = onnx.shape_inference.infer_shapes(with_fixed_inputs(model, inputs, rows)).graph
    firsts = {
        value.name: value.type.tensor_type.shape.dim[0].dim_value
        for value in (*shaped.value_info, *shaped.input) if value.type.tensor_type.shape.dim
    }  # fmt: skip
    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in freed.graph.initializer}
    for node in freed.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    for node in freed.graph.node:
        if node.op_type != "Reshape" or firsts.get(node.input[0]) != rows:
            continue
        target = constants.get(node.input[1])
        if target is not None and target.size and target[0] == rows:
            target = target.copy()
            target[0] = 0  # as many as there are
            name = f"{node.output[0]}/free"
            freed.graph.initializer.append(numpy_helper.from_array(target, name))
            node.input[1] = name
    return freed


def with_biases(graph: onnx.GraphProto, constants: Mapping[str, Any]) -> list[onnx.NodeProto]:
    """Return the nodes of a graph; what is added to each channel of a product is its bias."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {out.name for out in graph.output}
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    nodes, merged = [], set[str]()
    for node in graph.node:
        if node.output[0] in merged:
            continue
        users = readers.get(node.output[0], [])
        bias = None
        if len(users) == 1 and node.output[0] not in outputs and users[0].op_type == "Add":
            bias = _bias(node, users[0], weights, constants)
        if bias is not None:
            merged.add(users[0].output[0])
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            inputs = [*node.input[:2], bias]
            node = helper.make_node(
                node.op_type, inputs, users[0].output[:1], label(node), **attributes
            )
        nodes.append(node)
    return nodes


def _bias(
    product: onnx.NodeProto, add: onnx.NodeProto, weights: Mapping[str, list[int]],
    constants: Mapping[str, Any],
) -> str | None:  # fmt: skip
    """Return the constant that is added to each output channel of a product, if one is."""
    if product.op_type not in ("Conv", "ConvTranspose", "MatMul") or len(product.input) > 2:
        return None
    shape = weights.get(product.input[1])
    name = next((n for n in add.input if n != product.output[0]), "")
    values = constants.get(name)
    if shape is None or not isinstance(values, np.ndarray):
        return None
    if product.op_type == "MatMul":
        wanted = [shape[1]] if len(shape) == 2 else None
    else:
        group = next((a.i for a in product.attribute if a.name == "group"), 1)
        channels = shape[0] if product.op_type == "Conv" else shape[1] * group
        wanted = [channels, *[1] * (len(shape) - 2)]
    own = list(values.shape)
    if wanted is None or own[-len(wanted) :] != wanted or any(n != 1 for n in own[: -len(wanted)]):
        return None
    return name if len(own) <= max(len(shape), len(wanted)) else None
