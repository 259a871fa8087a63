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

from haq.models.onnx.inputs import Input
from haq.models.onnx.network import Origin
from haq.network.inputs import Batch, Inputs, tensors_of

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

    def rows_of(self, inputs: Inputs) -> list[Array]:
        """Return what a network is given in the order of the file's inputs."""
        if isinstance(inputs, Batch) and inputs.names:
            named = dict(zip(inputs.names, inputs.tensors, strict=True))
            return [named[one.name].numpy() for one in self.inputs]
        return [tensor.numpy() for tensor in tensors_of(inputs)]

    def feeds(self, rows: Sequence[Array]) -> Iterator[dict[str, Array]]:
        """Yield what a file is given for rows: all at once, or as many as it takes."""
        count = len(rows[0])
        each = self.inputs[0].rows or max(count, 1)
        for start in range(0, count, each):
            places = np.minimum(np.arange(start, start + each), count - 1)
            given = {
                one.name: one.fed(values[places])
                for one, values in zip(self.inputs, rows, strict=True)
            }
            fixed = {
                name: np.repeat(value, len(places), self.axes[name]) if name in self.axes else value
                for name, value in self.fixed.items()
            }
            yield {**given, **fixed}

    def joined(self, parts: Sequence[Array], count: int) -> Array:
        """Return the first outputs of ``feeds`` as one, the rows along its first axis."""
        if self.output_axis is None:
            return parts[0]
        moved = [np.moveaxis(part, self.output_axis, 0) for part in parts]
        return np.ascontiguousarray(np.concatenate(moved)[:count])


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


def layout_in(model: onnx.ModelProto) -> Layout | None:
    """Return the layout of a file; None where it has its rows first, in one input or several."""
    entries = {entry.key: entry.value for entry in model.metadata_props}
    return layout_of(entries[KEY]) if KEY in entries else None
