"""Networks in ONNX files: ``onnx:FILE``, with shapes and values of inputs behind commas."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from haq.errors import ModelError
from haq.models.onnx.document import read
from haq.models.onnx.inputs import dims_of_first
from haq.models.onnx.load import load_onnx
from haq.models.sources.source import Card, Wanted


class Asked(NamedTuple):
    """What follows the prefix, taken apart.

    Attributes:
        path: Of the file.
        shapes: Name of an input to its shape, with the batch axis.
        values: Name of an input to the number that it always has.
    """

    path: str
    shapes: dict[str, Sequence[int]]
    values: dict[str, float]


def taken_apart(rest: str) -> Asked:
    """Return the file that a name says, and what it says of the file's inputs.

    Raises:
        ModelError: A part is no shape and no number.

    >>> taken_apart("net.onnx,x=1x3x48x320,sr=16000")
    Asked(path='net.onnx', shapes={'x': [1, 3, 48, 320]}, values={'sr': 16000})
    """
    path, *parts = rest.split(",")
    shapes: dict[str, Sequence[int]] = {}
    values: dict[str, float] = {}
    for part in parts:
        name, equals, text = part.rpartition("=")
        sizes = text.split("x")
        if equals and name and len(sizes) > 1 and all(size.isdecimal() for size in sizes):
            shapes[name] = [int(size) for size in sizes]
        elif equals and name and (number := _number(text)) is not None:
            values[name] = number
        else:
            raise ModelError(
                f"onnx:{rest}: {part!r} cannot be read; write NAME=1x3x224x224 for the shape of an "
                "input or NAME=16000 for its value"
            )
    return Asked(path, shapes, values)


def written(asked: Asked) -> str:
    """Return what follows the prefix; the reverse of ``taken_apart``.

    >>> written(Asked("net.onnx", {"x": [1, 3]}, {"sr": 16000}))
    'net.onnx,x=1x3,sr=16000'
    """
    shapes = [f"{name}={'x'.join(map(str, sizes))}" for name, sizes in asked.shapes.items()]
    return ",".join([asked.path, *shapes, *(f"{name}={v}" for name, v in asked.values.items())])


def _number(text: str) -> float | None:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return None


def card(rest: str) -> Card:
    """Return what a file says of its first input and its first output."""
    asked = taken_apart(rest)
    model = read(asked.path)
    sizes = dims_of_first(model, asked.shapes, asked.values)
    shape = tuple(size for size in sizes[1:] if isinstance(size, int))
    images = len(sizes) == 4 and isinstance(sizes[1], int)
    output: Any = [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim]
    return Card(
        shape=shape if images and len(shape) == 3 else None,
        classes=output[1] if len(output) == 2 and output[1] > 1 else None,
        sizes=images and len(shape) < 3,
        weights=True,
        facts={"opset": max(entry.version for entry in model.opset_import)},
    )


def located(rest: str) -> str:
    """Return the whole path of a file, with what follows it."""
    asked = taken_apart(rest)
    return written(asked._replace(path=str(Path(asked.path).expanduser().absolute())))


def build(rest: str, wanted: Wanted) -> nn.Module:
    """Return the network of a file, which has its weights."""
    asked = taken_apart(rest)
    shapes = dict(asked.shapes)
    sizes = dims_of_first(read(asked.path), asked.shapes, asked.values)
    is_open = len(sizes) == 4 and not all(isinstance(size, int) for size in sizes[2:])
    if wanted.size is not None and is_open and isinstance(sizes[1], int):
        shapes.setdefault("", [sizes[1], wanted.size, wanted.size])
    return load_onnx(asked.path, shapes, asked.values)


def files(rest: str) -> Sequence[Path]:
    """Return the file itself."""
    return [Path(taken_apart(rest).path)]
