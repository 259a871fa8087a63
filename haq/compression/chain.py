"""The chain of transforms that a network went through before it got its bits.

A transform is kept as a record, plain values that JSON can hold: with the records the network's
structure is made again from the model it began as, and its weights come from a file.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from haq.compression.filters import remove
from haq.compression.low_rank import layers_for, plan_for
from haq.errors import HaqError, ModelError, look_up
from haq.models.weights import read_metadata
from haq.network.capture import Sample
from haq.network.graph import trace

Record = dict[str, Any]
"""A transform by its name, under "transform", and what it did."""

METADATA = "haq_transforms"
"""The entry of a weights file that holds the records."""


def _filters(traced: fx.GraphModule, sample: Sample, record: Record) -> nn.Module:
    keep = record.get("keep")
    if not isinstance(keep, dict) or not all(isinstance(places, list) for places in keep.values()):
        raise ModelError('a transform "filters" names the channels that stay: {"keep": {…}}')
    return remove(traced, sample, keep)


def _factorised(traced: fx.GraphModule, sample: Sample, record: Record) -> nn.Module:
    layers = record.get("layers")
    if not isinstance(layers, dict):
        raise ModelError('a transform "factorised" names layers: {"layers": {…}}')
    for name, entry in layers.items():
        kind, ranks = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if not isinstance(kind, str) or not isinstance(ranks, list):
            raise ModelError(f"layer {name!r} of a transform is [kind, ranks], not {entry!r}")
        module = factorisable(traced, name)
        plan = plan_for(name, module, kind, ranks)
        with torch.device(module.weight.device):
            traced.set_submodule(name, layers_for(module, plan))
    return traced


def _sparsity(traced: fx.GraphModule, sample: Sample, record: Record) -> nn.Module:
    layers = record.get("layers")
    if not isinstance(layers, dict):
        raise ModelError('a transform "sparsity" names layers: {"layers": {…}}')
    known = dict(traced.named_modules())
    for name, share in layers.items():
        look_up(known, "layer", name)
        if not isinstance(share, int | float) or not 0 <= share < 1:
            raise ModelError(f"layer {name!r} of a transform has a sparsity of {share!r}")
    return traced


TRANSFORMS: Mapping[str, Callable[[fx.GraphModule, Sample, Record], nn.Module]] = {
    "filters": _filters,
    "factorised": _factorised,
    "sparsity": _sparsity,
}
"""Name to a function that makes the structure of a network again, in place or as a copy."""


def factorisable(traced: fx.GraphModule, name: str) -> nn.Conv2d | nn.Linear:
    """Return a layer of a captured network by its name.

    Raises:
        HaqError: There is no such layer.
    """
    known = {name: part for name, part in traced.named_modules()
             if isinstance(part, nn.Conv2d | nn.Linear)}  # fmt: skip
    return look_up(known, "layer", name)


def replayed(model: nn.Module, sample: Sample, chain: Sequence[Record]) -> nn.Module:
    """Return a network with the structure that a chain of transforms gave it.

    Args:
        model: What the chain began with, which may be changed; its weights do not matter.
        sample: What one forward takes.
        chain: In the order of the transforms.

    Returns:
        The model itself where the chain is empty.

    Raises:
        HaqError: A record is unknown, or does not suit the network.
    """
    with torch.random.fork_rng(devices=[]):
        for record in chain:
            if not isinstance(record, dict) or not isinstance(record.get("transform"), str):
                raise ModelError(f"a transform is an object with a name, not {record!r}")
            replay = look_up(TRANSFORMS, "transform", record["transform"])
            model = replay(trace(model, sample).traced, sample, record)
    return model


def as_in_file(model: nn.Module, sample: Sample, file: str | os.PathLike[str]) -> nn.Module:
    """Return a network with the structure that the weights in a file are of.

    Args:
        model: What the file's chain of transforms began with, which may be changed.
        sample: What one forward takes.
        file: Of weights, such as ``haq prune`` writes.

    Raises:
        ModelError: The file is missing or damaged, or its transforms do not suit the network.
    """
    try:
        return replayed(model, sample, read_chain(read_metadata(file)))
    except HaqError as error:
        raise ModelError(f"{os.fspath(file)}: {error}") from error


def sparse_layers(chain: Sequence[Record]) -> tuple[str, ...]:
    """Return the layers whose zeros have to stay zeros.

    >>> sparse_layers([{"transform": "sparsity", "layers": {"conv2": 0.8}}])
    ('conv2',)
    """
    sparse = (record["layers"] for record in chain if record["transform"] == "sparsity")
    return tuple(dict.fromkeys(name for layers in sparse for name in layers))


def chain_text(chain: Sequence[Record]) -> dict[str, str]:
    """Return the metadata of a weights file for a chain; none for an empty one."""
    return {METADATA: json.dumps(chain)} if chain else {}


def read_chain(metadata: Mapping[str, str]) -> tuple[Record, ...]:
    """Return the chain in the metadata of a weights file.

    Raises:
        ModelError: It is damaged.
    """
    try:
        chain = json.loads(metadata.get(METADATA, "[]"))
    except ValueError as error:
        raise ModelError(f"its transforms are not JSON ({error})") from error
    if not isinstance(chain, list) or not all(isinstance(record, dict) for record in chain):
        raise ModelError("its transforms are not a list of objects")
    return tuple(chain)
