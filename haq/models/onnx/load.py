"""From an ONNX file to a network that answers as ONNX Runtime does, or a sentence that says why not."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from haq.errors import ModelError
from haq.models.onnx.branches import without_branches
from haq.models.onnx.document import LARGEST, brought_to_opset, label, read
from haq.models.onnx.inputs import Array, Inputs, inputs_of, with_fixed_inputs
from haq.models.onnx.network import Builder, OnnxNetwork, Origin, constants_of
from haq.models.onnx.runtime import answers, normalized

TOLERANCE = 1e-4
"""Of the largest value of a tensor: how far the network's may be from ONNX Runtime's."""

SMALLEST = 1e-6
"""A difference that says nothing: ONNX Runtime's sigmoid is right to some 1e-7 of 1."""

_ROWS = 3


def load_onnx(
    path: str | os.PathLike[str],
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, Any] | None = None,
    sample: Tensor | Sequence[Tensor] | None = None,
) -> OnnxNetwork:
    """Return the network of a float ONNX file, with its answers.

    ONNX Runtime works out what the shapes decide, in a process of its own; the operators that are
    left become PyTorch's, layers under the names of their nodes. The network is compared with ONNX
    Runtime on the sample, or on random inputs.

    Args:
        path: The file.
        shapes: Name of an input to its shape, batch axis included: where the file leaves sizes open
            that are no batch.
        values: Name of an input to what it always has, an array or a number that fills it: for
            inputs without a batch axis, and those on which a branch depends.
        sample: Inputs (N, ...) in the file's order, without those in ``values``; their shapes
            stand for ``shapes`` that are not given.

    Returns:
        The network in evaluation mode. All its inputs have their rows along axis 0, also where the
        file has them along another one; so have its outputs, a tensor or a tuple of them.

    Raises:
        ModelError: In one sentence: the file is missing, damaged, of another kind, quantized
            already, has an operator that is not known, or answers otherwise in PyTorch.
    """
    file = Path(path).name
    model = read(path)
    given = None if sample is None else (sample,) if isinstance(sample, Tensor) else tuple(sample)
    shapes = dict(shapes or {})
    if given is not None:
        shapes = {**_shapes_of(file, model, given, values or {}), **shapes}
    inputs = inputs_of(file, model, shapes, values or {})
    try:
        flat = brought_to_opset(without_branches(file, model, inputs))
        network = _built(flat, inputs)
    except ModelError as error:
        text = str(error)
        raise ModelError(text if text.startswith(file) else f"{file}: {text}") from error
    _check_same(file, network, flat, inputs, given)
    return network


def _shapes_of(
    file: str, model: onnx.ModelProto, given: tuple[Tensor, ...], values: Mapping[str, Any]
) -> dict[str, list[int]]:
    """Return the shapes in the file of the caller's inputs, where their axes are the same."""
    stored = {tensor.name for tensor in model.graph.initializer}
    free = [v for v in model.graph.input if v.name not in stored and v.name not in values]
    if len(free) != len(given):
        names = ", ".join(value.name for value in free)
        raise ModelError(f"{file} takes {len(free)} inputs ({names}); {len(given)} are given")
    return {
        value.name: list(rows.shape) for value, rows in zip(free, given, strict=True)
        if any(not d.dim_value for d in value.type.tensor_type.shape.dim[1:])
    }  # fmt: skip


def _built(flat: onnx.ModelProto, inputs: Inputs) -> OnnxNetwork:
    """Return the network of a file without branches."""
    free = flat if inputs.given[0].rows is None else _freed(flat, inputs)
    two, three = (_fixed(free, inputs, rows) for rows in (2, 3))
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
        flat.SerializeToString(), inputs.given, outputs, _shapes(flat, shaped), builder.stored,
        worked_out,
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


def _shapes(
    flat: onnx.ModelProto, shaped: onnx.GraphProto
) -> dict[str, tuple[int, ...]]:
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
    sizes = [
        [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (two, three)
    ]
    return next((axis for axis, (a, b) in enumerate(zip(*sizes, strict=True)) if a != b), None)


def _check_sizes(graph: onnx.GraphProto) -> None:
    for value in (*graph.value_info, *graph.output):
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if np.prod(sizes, dtype=float) > LARGEST:
            raise ModelError(f"tensor {value.name!r} of {'x'.join(map(str, sizes))} is too large")


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


def _check_same(
    file: str, network: OnnxNetwork, flat: onnx.ModelProto, inputs: Inputs,
    given: tuple[Tensor, ...] | None,
) -> None:  # fmt: skip
    """Compare a network with ONNX Runtime, tensor by tensor where an answer differs.

    Raises:
        ModelError: They differ; the message names the first node that does.
    """
    names = [name for name, _ in network.origin.outputs]
    rows, reference = _answered(flat, inputs, given, names)
    tensors = [torch.from_numpy(value) for value in rows]
    try:
        with torch.no_grad():
            own = {name: value.numpy() for name, value in network.tensors(tensors).items()}
    except Exception as error:
        raise ModelError(f"{file} cannot be computed in PyTorch: {error}") from error
    if all(map(_close, (own[name] for name in names), reference)):
        return
    made = [name for node in flat.graph.node for name in node.output if name in own]
    for name, value in zip(made, _reference(flat, inputs, rows, made), strict=True):
        if not _close(own[name], value):
            node = next(node for node in flat.graph.node if name in node.output)
            raise ModelError(
                f"{file} gives other answers in PyTorch than in ONNX Runtime, first at operator "
                f"{node.op_type} in node {label(node)!r}: {_difference(own[name], value)}"
            )
    raise ModelError(f"{file} gives other answers in PyTorch than in ONNX Runtime")


def _answered(
    flat: onnx.ModelProto, inputs: Inputs, given: tuple[Tensor, ...] | None, names: Sequence[str]
) -> tuple[list[Array], list[Array]]:
    """Return rows of every input and ONNX Runtime's answers to them.

    Random whole numbers are as large as the file takes them: places in a table have an end.
    """
    whole = given is None and any(one.dtype.kind != "f" for one in inputs.given)
    for highest in _WHOLE if whole else (1,):
        rows = _rows(inputs, given, highest)
        try:
            return rows, _reference(flat, inputs, rows, names)
        except ModelError:
            if highest == 1:
                raise
    raise AssertionError


_WHOLE = (256, 16, 2, 1)


def _rows(inputs: Inputs, given: tuple[Tensor, ...] | None, highest: int) -> list[Array]:
    """Return rows (N, ...) of every input: the caller's, or random ones."""
    generator = np.random.default_rng(0)
    result = []
    for place, one in enumerate(inputs.given):
        shape = (_ROWS, *np.delete(one.shape, one.axis).tolist())
        if given is not None:
            index = np.arange(_ROWS) % len(given[place])
            own: Array = given[place].detach().cpu().numpy()[index]
            result.append(own if own.dtype.kind != "f" else own.astype(np.float32))
        elif one.dtype.kind == "f":
            result.append(generator.normal(size=shape).astype(np.float32))
        else:
            result.append(generator.integers(0, highest, shape))
    return result


def _reference(
    flat: onnx.ModelProto, inputs: Inputs, rows: Sequence[Array], names: Sequence[str]
) -> list[Array]:
    """Return tensors of a file in ONNX Runtime, one row at a time where the file takes no more."""
    count = inputs.given[0].rows
    if count is None:
        feeds = {one.name: one.fed(v) for one, v in zip(inputs.given, rows, strict=True)}
        return answers(with_fixed_inputs(flat, inputs, _ROWS), feeds, names)
    parts = []
    for row in range(_ROWS):
        feeds = {
            one.name: one.fed(np.repeat(v[row : row + 1], count, 0))
            for one, v in zip(inputs.given, rows, strict=True)
        }
        parts.append(answers(with_fixed_inputs(flat, inputs, count), feeds, names))
    return [_joined(each, count) for each in zip(*parts, strict=True)]


def _joined(parts: Sequence[Array], count: int) -> Array:
    """Return the answers to several rows as one: along the axis that is as long as the batch."""
    axis = next((a for a, size in enumerate(parts[0].shape) if size == count), None)
    if axis is None:
        return parts[0]
    return np.concatenate([part.take([0], axis) for part in parts], axis)


def _close(own: Array, reference: Array) -> bool:
    if own.shape != reference.shape:
        return False
    if reference.dtype.kind != "f":
        return bool(np.array_equal(own, reference))
    finite = np.isfinite(reference)
    if not np.array_equal(own[~finite], reference[~finite], equal_nan=True):
        return False
    if not finite.any():
        return True
    apart = np.abs(own[finite] - reference[finite]).max()
    return bool(apart <= max(TOLERANCE * np.abs(reference[finite]).max(), SMALLEST))


def _difference(own: Array, reference: Array) -> str:
    if own.shape != reference.shape:
        return f"shape {'x'.join(map(str, own.shape))}, not {'x'.join(map(str, reference.shape))}"
    apart = np.abs(own.astype(np.float64) - reference.astype(np.float64)).max()
    return f"up to {apart:.3g} apart where values are up to {np.abs(reference).max():.3g}"
