"""Models by name that bring their weights, for data of the caller's own."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from haq.datasets import Data
from haq.errors import HaqError
from haq.models import build
from haq.models.onnx.load import load_onnx
from haq.models.sources import about
from haq.models.sources.onnx_file import taken_apart, written
from haq.network.inputs import Batch, tensors_of
from haq.runs.float_network import example

PREFIX = "onnx:"


def named_for(model: str, data: object, metric: str | None) -> tuple[str, nn.Module]:
    """Return a network by its name, and the name under which it is built again.

    Args:
        model: Such as "hf:DIR" or "onnx:net.onnx".
        data: As for ``haq.search``, but no name.
        metric: What it will be scored by.

    Raises:
        HaqError: There is no such model, its weights do not come with it, or it does not take such
            data.
    """
    if model.startswith(PREFIX):
        return onnx_for(model, data)
    card = about(model) if ":" in model else None
    if card is None or not card.weights:
        raise HaqError(
            f"model {model!r} is a name, and its weights do not come with it: give a name for the "
            "data too, and weights= or float_epochs=, or give the network itself"
        )
    return model, build(model, metric=metric)


def onnx_for(model: str, data: object) -> tuple[str, nn.Module]:
    """Return a whole name of an ONNX file's network, with all shapes, and the network.

    Args:
        model: Such as "onnx:net.onnx".
        data: As for ``haq.search``, but no name.

    Raises:
        HaqError: The file cannot be read, or does not take such data.
    """
    asked = taken_apart(model.removeprefix(PREFIX))
    network = load_onnx(asked.path, asked.shapes, asked.values, _sample(data))
    shapes: dict[str, Sequence[int]] = {one.name: one.shape for one in network.origin.inputs}
    return PREFIX + written(asked._replace(shapes=shapes)), network


def _sample(data: Any) -> Tensor | Sequence[Tensor] | Mapping[str, Tensor] | None:
    """Return the first rows of data; None where they are of a kind that is looked at later."""
    if isinstance(data, Data):
        data = example(data)
    if isinstance(data, Batch):
        data = dict(zip(data.names, data.tensors, strict=True)) if data.names else tensors_of(data)
    if isinstance(data, Mapping):
        return {str(name): rows[:2] for name, rows in data.items()}
    if isinstance(data, Tensor):
        return data[:2]
    if isinstance(data, tuple) and all(isinstance(one, Tensor) for one in data):
        return tuple(rows[:2] for rows in data)
    if isinstance(data, Sequence) and len(data) == 3:  # splits
        first = data[0]
        is_pair = isinstance(first, Sequence) and len(first) == 2 and isinstance(first[0], Tensor)
        return first[0][:2] if is_pair else None
    return None
