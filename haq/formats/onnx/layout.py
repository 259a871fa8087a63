"""How a file takes its rows and gives its answers, where that is not along the first axis.

Files of haq's own templates have their rows first. A file that comes from another ONNX file has its
inputs as they were there: along another axis, in another type, one row at a time, or beside inputs
that always have the same value. Its metadata say so, for whoever runs it with rows of a network.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from haq.models.onnx.inputs import Input, Inputs, with_fixed_inputs
from haq.models.onnx.network import Origin
from haq.network.inputs import Batch, tensors_of
from haq.network.inputs import Inputs as Rows

Array = NDArray[Any]

KEY = "haq_layout"
"""Entry of a file's metadata."""


class Layout(NamedTuple):
    """How a file takes rows.

    Attributes:
        inputs: What is given, in order.
        fixed: Inputs that always have the same value, with one row where they have rows.
        axes: The axis of rows of the fixed inputs that have one.
        output_axis: The axis of rows of the first output; None where it has none.
    """

    inputs: tuple[Input, ...]
    fixed: Mapping[str, Array]
    axes: Mapping[str, int]
    output_axis: int | None

    def rows_of(self, inputs: Rows) -> list[Array]:
        """Return what a network is given in the order of the file's inputs."""
        if isinstance(inputs, Batch) and inputs.names:
            named = dict(zip(inputs.names, inputs.tensors, strict=True))
            return [named[one.name].numpy() for one in self.inputs]
        return [tensor.numpy() for tensor in tensors_of(inputs)]

    def feed(self, rows: Sequence[Array]) -> dict[str, Array]:
        """Return what a file is given for rows, in the order of its inputs."""
        given = {one.name: one.fed(v) for one, v in zip(self.inputs, rows, strict=True)}
        count = len(rows[0])
        fixed = {
            name: np.repeat(value, count, self.axes[name]) if name in self.axes else value
            for name, value in self.fixed.items()
        }
        return {**given, **fixed}

    def parts(self, feed: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
        """Yield a feed in parts of as many rows as the file takes, the last one filled up."""
        axes = {**{one.name: one.axis for one in self.inputs}, **self.axes}
        count, each = self._rows_in(feed), self.inputs[0].rows or 1
        for start in range(0, count, each):
            places = np.minimum(np.arange(start, start + each), count - 1)
            yield {
                name: value.take(places, axes[name]) if name in axes else value
                for name, value in feed.items()
            }

    def _rows_in(self, feed: Mapping[str, Array]) -> int:
        return int(feed[self.inputs[0].name].shape[self.inputs[0].axis])

    def joined(self, parts: Sequence[Array], feed: Mapping[str, Array]) -> Array:
        """Return an output of all parts of a feed as one."""
        count, each = self._rows_in(feed), self.inputs[0].rows or 1
        axis = next((a for a, size in enumerate(parts[0].shape) if size == each), None)
        if axis is None:
            return parts[0]
        return np.ascontiguousarray(np.concatenate(parts, axis).take(range(count), axis))


def text_of(origin: Origin) -> str:
    """Return the layout of the file that a network comes from, as its metadata have it."""
    fixed = {
        name: {"dtype": str(value.dtype), "values": value.tolist()}
        for name, value in origin.fixed.items()
    }
    inputs = [{**asdict(one), "dtype": str(one.dtype)} for one in origin.inputs]
    axis = origin.outputs[0][1]
    return json.dumps({"inputs": inputs, "fixed": fixed, "axes": origin.axes, "output_axis": axis})


def layout_of(text: str) -> Layout:
    """Return the layout that metadata describe."""
    content = json.loads(text)
    inputs = tuple(
        Input(one["name"], np.dtype(one["dtype"]), tuple(one["shape"]), one["axis"], one["rows"])
        for one in content["inputs"]
    )
    fixed = {name: np.array(one["values"], one["dtype"]) for name, one in content["fixed"].items()}
    return Layout(inputs, fixed, content["axes"], content["output_axis"])


def with_sizes(model: onnx.ModelProto, rows: int) -> onnx.ModelProto:
    """Return a copy of a file for so many rows, if the file takes any number, of fixed shapes.

    Inputs that always have the same value are constants in it. A file without a layout is returned
    as it is.
    """
    layout = layout_in(model)
    if layout is None:
        return model
    count = layout.inputs[0].rows or rows
    return with_fixed_inputs(model, Inputs(layout.inputs, layout.fixed, layout.axes), count)


def layout_in(model: onnx.ModelProto) -> Layout | None:
    """Return the layout of a file; None where it has its rows first, in one input or several."""
    entries = {entry.key: entry.value for entry in model.metadata_props}
    return layout_of(entries[KEY]) if KEY in entries else None
