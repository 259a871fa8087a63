"""The first inputs of a run, kept in its folder: its network is captured again with real ones."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from haq.errors import RunError
from haq.files import write_bytes
from haq.network.inputs import Batch, Inputs, blank_input, like_record, tensors_of

ROWS = 16
"""Inputs of tokens that are kept; of others, which take more room, two."""


def save_sample(folder: Path, inputs: Inputs) -> None:
    """Write some inputs into a run's folder, unless there are some already."""
    file = folder / "sample.safetensors"
    if file.exists():
        return
    floats = any(tensor.is_floating_point() for tensor in tensors_of(inputs))
    kept = tensors_of(inputs[: 2 if floats else ROWS])
    names = [] if isinstance(inputs, Tensor) else list(inputs.names)
    tensors = {str(place): tensor.contiguous().clone() for place, tensor in enumerate(kept)}
    asked = {"names": json.dumps(names), "several": json.dumps(isinstance(inputs, Batch))}
    write_bytes(file, save(tensors, asked))


def load_sample(folder: Path) -> Inputs | None:
    """Return the inputs that a run kept; None of a run that kept none.

    Raises:
        RunError: The file is damaged.
    """
    file = folder / "sample.safetensors"
    if not file.exists():
        return None
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
            tensors = tuple(opened.get_tensor(str(n)) for n in range(len(list(opened.keys()))))
        names, several = (json.loads(metadata[name]) for name in ("names", "several"))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} cannot be read ({error}); take it away") from error
    return Batch(tensors, tuple(names)) if several else tensors[0]


def sample_of(folder: Path, images: Mapping[str, Any]) -> Inputs:
    """Return the inputs that a run kept, or made-up ones of the kind on record of its data."""
    kept = load_sample(folder)
    if kept is not None:
        return kept
    if "inputs" in images:
        return like_record(images)
    return blank_input(images["shape"], images.get("tokens"))
