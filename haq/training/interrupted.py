"""The state of a training in a file, from which it goes on to the same weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from haq.errors import HaqError
from haq.files import write_bytes


class State(NamedTuple):
    """All that a training changes.

    Attributes:
        model: Its parameters and buffers.
        extra: What is trained beside it, such as regressors.
        optimizer: SGD with momentum.
        schedule: Of the learning rate.
        generator: Of order and augmentation.
        settings: What the training was asked to do; another one does not go on from its file.
    """

    model: nn.Module
    extra: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    generator: torch.Generator
    settings: str


def write_state(state: State, path: Path, epochs: int) -> None:
    """Write the state after some epochs, atomically."""
    tensors = {f"model/{name}": value for name, value in state.model.state_dict().items()}
    tensors |= {f"extra/{name}": value for name, value in state.extra.state_dict().items()}
    for number, values in state.optimizer.state_dict()["state"].items():
        tensors[f"momentum/{number}"] = values["momentum_buffer"]
    tensors["generator"] = state.generator.get_state()
    tensors["dropout"] = torch.get_rng_state()
    steps = str(state.schedule.last_epoch)
    metadata = {"epochs": str(epochs), "steps": steps, "asked": state.settings}
    # Copies, because tied weights share their memory, which safetensors refuses.
    write_bytes(path, save({name: t.clone().contiguous() for name, t in tensors.items()}, metadata))


def read_state(state: State, path: Path) -> int:
    """Put back what ``write_state`` wrote, if there is any, and return how many epochs are done.

    Raises:
        HaqError: The file is damaged or of another training.
    """
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise HaqError(f"{path} cannot be read ({error}); take it away to start anew") from error
    if metadata.get("asked") != state.settings:
        raise HaqError(f"{path} was left by another training; take it away to start anew")
    state.model.load_state_dict(_below(tensors, "model/"))
    state.extra.load_state_dict(_below(tensors, "extra/"))
    momenta = {
        int(number): {"momentum_buffer": value}
        for number, value in _below(tensors, "momentum/").items()
    }
    state.optimizer.load_state_dict(state.optimizer.state_dict() | {"state": momenta})
    state.schedule.last_epoch = int(metadata["steps"])
    for group, share in zip(state.optimizer.param_groups, state.schedule.lr_lambdas, strict=True):
        group["lr"] = group["initial_lr"] * share(state.schedule.last_epoch)
    state.generator.set_state(tensors["generator"])
    torch.set_rng_state(tensors["dropout"])
    return int(metadata["epochs"])


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
