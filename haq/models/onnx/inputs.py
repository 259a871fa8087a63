"""The inputs of an ONNX file: which are fixed, which have a batch axis, how large the rest is."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from haq.errors import ModelError

Array = NDArray[Any]

_TAKEN = {
    TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.INT8, TensorProto.UINT8,
    TensorProto.INT16, TensorProto.BOOL,
}  # fmt: skip

_LARGEST = 2**31


@dataclass(frozen=True)
class Input:
    """An input of a file that a network is given.

    Attributes:
        name: In the file.
        dtype: In the file.
        shape: In the file, for one row.
        axis: Along which the rows lie.
        rows: How many there must be; None where any number may be.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    axis: int
    rows: int | None = None

    def of(self, rows: int) -> tuple[int, ...]:
        """Return the shape in the file for so many rows."""
        return (*self.shape[: self.axis], rows, *self.shape[self.axis + 1 :])

    def fed(self, values: Array) -> Array:
        """Return what a network takes, (N, ...), as the file takes it."""
        return np.ascontiguousarray(np.moveaxis(values, 0, self.axis).astype(self.dtype))


@dataclass(frozen=True)
class Inputs:
    """All inputs of a file.

    Attributes:
        given: To the network, in the file's order.
        fixed: Name to value; along the batch axis, where there is one, it has one row.
        axes: The batch axis of fixed inputs that have one.
    """

    given: tuple[Input, ...]
    fixed: Mapping[str, Array]
    axes: Mapping[str, int]

    def values(self, rows: int) -> dict[str, Array]:
        """Return the fixed inputs for so many rows."""
        return {
            name: np.repeat(value, rows, self.axes[name]) if name in self.axes else value
            for name, value in self.fixed.items()
        }


def inputs_of(
    file: str,
    model: onnx.ModelProto,
    shapes: Mapping[str, Sequence[int]],
    values: Mapping[str, Any],
) -> Inputs:
    """Return the inputs of a model.

    Args:
        file: What messages call it.
        model: From ``haq.models.onnx.document.read``.
        shapes: Name of an input to its shape, batch axis included; needed where the file leaves
            sizes open that are no batch. Under "" that of the first input, without its batch axis.
        values: Name of an input to what it always has; a number fills it.

    Raises:
        ModelError: A name, a shape or a value does not go with the file.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    every = [value for value in model.graph.input if value.name not in stored]
    names = [value.name for value in every]
    for name in (*shapes, *values):
        if name and name not in names:
            raise ModelError(f"{file} has no input {name!r}; its inputs: {', '.join(names)}")
    kinds = {v.name: _kind(file, v) for v in every}
    free = [value for value in every if value.name not in values]
    if not free:
        raise ModelError(f"{file}: all its inputs are fixed ({', '.join(names)}); leave one free")
    batch = _batch(_dims(free[0]))
    known_axes = {value.name: _batch_axis(_dims(value), batch) for value in every}
    axes = {name: axis for name, axis in known_axes.items() if axis is not None}
    if free[0].name not in axes:
        raise ModelError(f"{file}: its input {free[0].name!r} has no axes, so it has no batch")
    missing = [value.name for value in free if value.name not in axes]
    if missing:
        raise ModelError(
            f"{file}: its input {missing[0]!r} has no axis for the batch; fix its value, as in "
            f"{missing[0]}=0 after the file's name, or in values="
        )
    rows = batch if isinstance(batch, int) else None
    given = []
    for value in free:
        shape = shapes.get(value.name)
        if shape is None and value is free[0] and "" in shapes:
            shape = [1, *shapes[""]]
        sizes = _sizes(file, value, axes[value.name], shape)
        given.append(Input(value.name, kinds[value.name], sizes, axes[value.name], rows))
    by_name = {value.name: value for value in every}
    fixed = {
        name: _value(file, by_name[name], kinds[name], axes.get(name), shapes.get(name), value)
        for name, value in values.items()
    }
    return Inputs(tuple(given), fixed, {name: axes[name] for name in values if name in axes})


Dim = int | str
"""A fixed size, or the name of one that is free; "" for one without a name."""


def dims_of_first(
    model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]], values: Mapping[str, Any]
) -> Sequence[Dim]:
    """Return the sizes of the first input that is not fixed, free ones by name."""
    stored = {tensor.name for tensor in model.graph.initializer}
    free = (v for v in model.graph.input if v.name not in stored and v.name not in values)
    first = next(free, None)
    if first is None:
        return ()
    return list(shapes[first.name]) if first.name in shapes else _dims(first)


def _dims(value: onnx.ValueInfoProto) -> list[Dim]:
    return [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param
        for dim in value.type.tensor_type.shape.dim
    ]


def _kind(file: str, value: onnx.ValueInfoProto) -> np.dtype[Any]:
    kind = value.type.tensor_type.elem_type
    if not value.type.HasField("tensor_type") or kind not in _TAKEN:
        named = TensorProto.DataType.Name(kind).lower() if kind else "no tensor"
        raise ModelError(
            f"{file}: its input {value.name!r} is of {named}; networks take float32 and whole "
            "numbers"
        )
    if not value.type.tensor_type.HasField("shape"):
        raise ModelError(f"{file} does not say how many axes its input {value.name!r} has")
    return np.dtype(helper.tensor_dtype_to_np_dtype(kind))


def _batch(dims: Sequence[Dim]) -> Dim | None:
    """Return the size of the first input that counts its rows: one called so, or the first."""
    called = (dim for dim in dims if type(dim) is str and _BATCH.match(dim.lower()))
    return next(called, dims[0] if dims else None)


_BATCH = re.compile(r"(batch|bs$|n$)")


def _batch_axis(dims: Sequence[Dim], batch: Dim | None) -> int | None:
    """Return the axis that is as long as the first one of the first input."""
    if isinstance(batch, int):
        return next((axis for axis, dim in enumerate(dims) if dim == batch), None)
    if batch and batch in dims:
        return dims.index(batch)
    return next((axis for axis, dim in enumerate(dims) if isinstance(dim, str)), None)


def _sizes(
    file: str, value: onnx.ValueInfoProto, axis: int, shape: Sequence[int] | None
) -> tuple[int, ...]:
    """Return the shape of an input for one row."""
    dims = _dims(value)
    if shape is None:
        open_ = [str(d) or f"axis {a}" for a, d in enumerate(dims) if a != axis and type(d) is str]
        if open_:
            example = "x".join(str(d) if type(d) is int else "N" for d in [1, *dims[1:]])
            raise ModelError(
                f"{file}: its input {value.name!r} has sizes that are open ({', '.join(open_)}); "
                f"give them, as in {value.name}={example} after the file's name, or in shapes="
            )
        shape = [dim if isinstance(dim, int) else 1 for dim in dims]
    fits = len(shape) == len(dims) and all(
        a == axis or type(dim) is str or dim == size
        for a, (dim, size) in enumerate(zip(dims, shape, strict=False))
    )
    if not fits:
        raise ModelError(
            f"{file}: its input {value.name!r} takes {_written(dims)}, not {_written(shape)}"
        )
    sizes = tuple(1 if a == axis else int(size) for a, size in enumerate(shape))
    if min(sizes, default=1) < 1 or math.prod(sizes) > _LARGEST:
        raise ModelError(f"{file}: an input {value.name!r} of {_written(sizes)} cannot be given")
    return sizes


def _value(
    file: str, value: onnx.ValueInfoProto, kind: np.dtype[Any], axis: int | None,
    shape: Sequence[int] | None, given: Any,
) -> Array:  # fmt: skip
    """Return what an input always has, with one row where it has a batch axis."""
    array = np.asarray(given)
    if array.dtype.kind not in "fiub" or (array.dtype.kind == "f" and kind.kind != "f"):
        raise ModelError(f"{file}: its input {value.name!r} takes {kind}, not {given!r}")
    sizes = _sizes(file, value, -1 if axis is None else axis, array.shape if array.ndim else shape)
    if axis is None and len(sizes) != len(_dims(value)):
        raise ModelError(f"{file}: its input {value.name!r} takes {_written(_dims(value))}")
    if array.ndim and axis is not None:
        array = array.take([0], axis)
    return np.ascontiguousarray(np.broadcast_to(array, sizes).astype(kind))


def _written(sizes: Sequence[Dim]) -> str:
    return "x".join(str(size) or "?" for size in sizes) or "a single number"


def with_fixed_inputs(model: onnx.ModelProto, inputs: Inputs, rows: int) -> onnx.ModelProto:
    """Return a copy of a model for so many rows, its fixed inputs constants."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    graph = fixed.graph
    values = inputs.values(rows)
    sizes = {one.name: one.of(rows) for one in inputs.given}
    kept = []
    for value in graph.input:
        if value.name in sizes:
            kind = value.type.tensor_type.elem_type
            kept.append(helper.make_tensor_value_info(value.name, kind, sizes[value.name]))
    del graph.input[:]
    graph.input.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in values.items())
    del graph.value_info[:]
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    return fixed
