"""A network beside the ONNX file that it comes from, in ONNX Runtime: tensor by tensor."""

from collections.abc import Sequence

import numpy as np
import onnx
import torch
from torch import Tensor

from haq.errors import ModelError
from haq.models.onnx.document import label
from haq.models.onnx.inputs import Array, Inputs, with_fixed_inputs
from haq.models.onnx.network import OnnxNetwork
from haq.models.onnx.runtime import answers

TOLERANCE = 1e-4
"""Of the largest value of a tensor: how far the network's may be from ONNX Runtime's."""

SMALLEST = 1e-6
"""A difference that says nothing: ONNX Runtime's sigmoid is right to some 1e-7 of 1."""

_ROWS = 3


def check_same(
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
    if all(map(close, (own[name] for name in names), reference)):
        return
    made = [name for node in flat.graph.node for name in node.output if name in own]
    for name, value in zip(made, _reference(flat, inputs, rows, made), strict=True):
        if not close(own[name], value):
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


def close(own: Array, reference: Array) -> bool:
    """Return whether two tensors have equal shapes and values, as far as floats are equal."""
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
