"""From an ONNX file to a network that answers as ONNX Runtime does."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor

from haq.errors import ModelError
from haq.models.onnx.branches import without_branches
from haq.models.onnx.build import built
from haq.models.onnx.compare import check_same
from haq.models.onnx.document import brought_to_opset, read
from haq.models.onnx.inputs import inputs_of
from haq.models.onnx.network import OnnxNetwork


def load_onnx(
    path: str | os.PathLike[str],
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, Any] | None = None,
    sample: Tensor | Sequence[Tensor] | Mapping[str, Tensor] | None = None,
) -> OnnxNetwork:
    """Return the network of a float ONNX file, with its answers.

    ONNX Runtime works out what the shapes decide, in a process of its own; the operators that are
    left become PyTorch's, layers under the names of their nodes. The network is compared with ONNX
    Runtime on the sample, or on random inputs.

    Args:
        path: The file.
        shapes: Name of an input to its shape, batch axis included: where the file leaves sizes open
            that are no batch. Under "" that of the first input, without its batch axis.
        values: Name of an input to what it always has, an array or a number that fills it: for
            inputs without a batch axis, and those on which a branch depends.
        sample: Inputs (N, ...) in the file's order or by name, without those in ``values``; their
            shapes stand for ``shapes`` that are not given.

    Returns:
        The network in evaluation mode. All its inputs have their rows along axis 0, also where the
        file has them along another one; so have its outputs, a tensor or a dict of them.

    Raises:
        ModelError: In one sentence: the file is missing, damaged, of another kind, quantized
            already, has an operator that is not known, or answers otherwise in PyTorch.
    """
    file = Path(path).name
    model = read(path)
    given = None if sample is None else _in_order(file, model, sample, values or {})
    shapes = dict(shapes or {})
    if given is not None:
        shapes = {**_shapes_of(file, model, given, values or {}), **shapes}
    inputs = inputs_of(file, model, shapes, values or {})
    try:
        flat = brought_to_opset(without_branches(file, model, inputs))
        network = built(flat, inputs)
    except ModelError as error:
        text = str(error)
        raise ModelError(text if text.startswith(file) else f"{file}: {text}") from error
    check_same(file, network, flat, inputs, given)
    return network


def _in_order(
    file: str, model: onnx.ModelProto, sample: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    values: Mapping[str, Any],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return a sample in the order of the file's inputs."""
    if isinstance(sample, Tensor):
        return (sample,)
    if not isinstance(sample, Mapping):
        return tuple(sample)
    stored = {tensor.name for tensor in model.graph.initializer}
    names = [v.name for v in model.graph.input if v.name not in stored and v.name not in values]
    if set(names) != set(sample):
        raise ModelError(f"{file} takes {', '.join(names)}, and the data have {', '.join(sample)}")
    return tuple(sample[name] for name in names)


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
