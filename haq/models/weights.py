"""Weights in files: read from safetensors and PyTorch checkpoints, written as safetensors.

A file fits the model or is refused as a whole: nothing is loaded in part, and nothing in the file
is ignored.
"""

import os
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from haq.errors import ModelError
from haq.files import write_bytes
from haq.network.constants import constants, count_broken

PICKLED = (".pt", ".pth", ".th")
WRAPPERS = ("state_dict", "model", "net")
"""Keys under which training scripts put the weights among other things."""


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Put the weights of a file into ``model``, or leave it untouched and say what is wrong.

    The state_dict may lie in the file under "state_dict", "model" or "net". What ``torch.compile``
    and ``DataParallel`` add to the names, ``_orig_mod.`` and ``module.``, is taken off. ``fc.`` and
    ``linear.`` stand for each other where the model has the one and the file the other. float16,
    bfloat16 and float64 become the model's own dtype.
    Only ``num_batches_tracked`` of a BatchNorm may be missing.

    Args:
        model: Its parameters and buffers are overwritten in place.
        path: A .safetensors file, or a .pt, .pth or .th file, read with ``weights_only=True``.

    Raises:
        ModelError: The file is missing, damaged or of another kind, holds more than weights, holds
            NaN or, but for constants such as a mask, infinity, or does not fit the model.
    """
    file = Path(path)
    own = model.state_dict()
    weights = _renamed(_read(file), own)
    _check_names(file, weights, own)
    _check_values(file, weights, own, constants(model))
    model.load_state_dict(weights, strict=False)


def save_weights(
    model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write the model's parameters and buffers to ``path``, which is never seen half-written.

    Args:
        model: Left as it is, on whatever device.
        path: Ends in .safetensors; folders that are missing are made, an old file is replaced.
        metadata: Texts that the file holds as well, by name; see ``read_metadata``.

    Raises:
        ModelError: Another suffix, or the file cannot be written.
    """
    file = Path(path)
    if file.suffix != ".safetensors":
        raise ModelError(f"cannot write weights to {file}: the name must end in .safetensors")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, packed(model, metadata))
    except OSError as error:
        raise ModelError(f"cannot write weights to {file}: {_reason(error)}") from error


def packed(model: nn.Module, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return what ``save_weights`` writes: the model's parameters and buffers as safetensors."""
    # Cloned because tied weights share memory, which the format refuses.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    return save(tensors, dict(metadata or {}) or None)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the texts that a file of weights holds beside them; none of another kind of file.

    Raises:
        ModelError: The file is missing or damaged.
    """
    file = Path(path)
    if file.suffix != ".safetensors":
        return {}
    try:
        with file.open("rb"):
            pass
        with safe_open(file, "pt") as content:
            return dict(content.metadata() or {})
    except SafetensorError as error:
        raise ModelError(f"{file} is truncated or not a safetensors file ({error})") from error
    except OSError as error:
        raise ModelError(f"cannot read weights from {file}: {_reason(error)}") from error


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix not in (".safetensors", *PICKLED):
        known = ", ".join((".safetensors", *PICKLED))
        raise ModelError(f"{file}: weights are read from {known}, not from {file.suffix!r}")
    try:
        # Opened here because the readers below report a missing file each in its own way.
        with file.open("rb"):
            pass
    except OSError as error:
        raise ModelError(f"cannot read weights from {file}: {_reason(error)}") from error
    return _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is truncated or not a safetensors file ({error})") from error


def _pickled(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # Bytes that are no checkpoint make the unpickler raise almost anything.
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, UnpicklingError) and foreign:
            raise ModelError(
                f"{file} holds more than weights ({foreign[1]}) and is not loaded, as such a file "
                "can run code: save model.state_dict() alone"
            ) from error
        raise ModelError(f"{file} is truncated or not a PyTorch checkpoint") from error
    return _state_dict(file, content)


def _state_dict(file: Path, content: Any) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                return _state_dict(file, content[wrapper])
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"{file} holds no weights: save model.state_dict()")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ModelError(
                f"{file} holds no weights but {type(value).__name__} as {name!r}: "
                "save model.state_dict()"
            )
    return dict(content)


def _renamed(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights = _unwrapped(weights, own)
    for theirs, ours in (("fc.", "linear."), ("linear.", "fc.")):
        wanted = _any_starts(own, ours) and not _any_starts(own, theirs)
        if wanted and not _any_starts(weights, ours):
            weights = {
                ours + name.removeprefix(theirs) if name.startswith(theirs) else name: tensor
                for name, tensor in weights.items()
            }
    return dict(weights)


def _unwrapped(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the weights under the names they have without torch.compile and DataParallel."""
    if not any("_orig_mod" in name.split(".") for name in own):
        parts = {
            name: [part for part in name.split(".") if part != "_orig_mod"] for name in weights
        }
        weights = {".".join(parts[name]): tensor for name, tensor in weights.items()}
    prefix = "module."
    if all(name.startswith(prefix) for name in weights) and not _any_starts(own, prefix):
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _any_starts(names: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _check_names(file: Path, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    missing = [name for name in own if name not in weights and not _is_count(name)]
    unexpected = [name for name in weights if name not in own]
    differences = [
        f"{len(names)} {what} ({_first(names)})"
        for what, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if differences:
        raise ModelError(
            f"{file} does not fit the model: keys {' and '.join(differences)}; "
            "choose the architecture that wrote it"
        )


def _check_values(
    file: Path, weights: Mapping[str, Tensor], own: Mapping[str, Tensor], constant: Container[str]
) -> None:
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            raise ModelError(
                f"{file} does not fit the model: {name} is {tuple(tensor.shape)} in the file and "
                f"{tuple(own[name].shape)} in the model; choose the architecture, the width and "
                "the number of classes that it was trained with"
            )
        if tensor.is_floating_point() != own[name].is_floating_point():
            raise ModelError(
                f"{file}: {name} is {_kind(tensor)} in the file and {_kind(own[name])} in the "
                "model; save the float weights"
            )
        bad = count_broken(name, tensor.to(own[name].dtype), constant)
        if bad:
            raise ModelError(
                f"{file}: {name} has {bad} of {tensor.numel()} values that are NaN or infinite; "
                "take an earlier checkpoint"
            )


def _is_count(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _first(names: Sequence[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (", …" if len(names) > shown else "")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
