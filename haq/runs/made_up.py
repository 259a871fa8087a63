"""Inputs made up for networks of which only shapes count: what layers cost, and kernels timed."""

import torch
from torch import Tensor, nn

from haq.errors import HaqError
from haq.models import input_shape
from haq.models.onnx.inputs import Input
from haq.models.onnx.network import Origin
from haq.models.sources import about
from haq.network.inputs import Batch, Inputs, random_inputs
from haq.runs.named import LENGTH


def made_up(
    model: str, network: nn.Module, size: int | None, channels: int, length: int | None = None
) -> Inputs:
    """Return one input as a network takes it, by what its file, its config or its name says.

    Args:
        model: Its name.
        network: The same, built.
        size: Height and width of an image, where its name does not say them.
        channels: Of such an image.
        length: Most tokens of an input.

    Raises:
        HaqError: Nothing says what it takes.
    """
    shape = input_shape(model, size)
    if shape is not None or size is not None:
        return torch.zeros(1, *(shape or (channels, size or 1, size or 1)))
    origin, card = getattr(network, "origin", None), about(model) if ":" in model else None
    if isinstance(origin, Origin):
        tensors = tuple(_of_file(one) for one in origin.inputs)
        names = tuple(one.name for one in origin.inputs)
        return tensors[0] if len(tensors) == 1 else Batch(tensors, names)
    if card is None or card.tokens is None:
        raise HaqError(f"model {model}: give --size, the height and width of its images")
    count = min(length or LENGTH, card.facts.get("positions") or LENGTH)
    ids = random_inputs((count,), tokens=card.tokens)
    return Batch((ids, torch.ones_like(ids)), card.inputs) if card.inputs else ids


def _of_file(one: Input) -> Tensor:
    shape = (*one.shape[: one.axis], *one.shape[one.axis + 1 :])
    values = random_inputs(shape, tokens=None if one.dtype.kind == "f" else 2)
    return values.bool() if one.dtype.kind == "b" else values
