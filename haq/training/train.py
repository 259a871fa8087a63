"""Train, fine-tune and score a network on a CPU.

Convolutions run in bfloat16 autocast and channels-last memory where the CPU multiplies bfloat16
natively, in float32 elsewhere. Scores are computed in float32 unless a quick one is asked for.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from haq.datasets import Split
from haq.distillation.kd import hard_and_soft_loss
from haq.errors import DivergedError, HaqError
from haq.files import write_bytes
from haq.training.numerics import channels_last, has_bfloat16
from haq.training.teacher import Teacher


class Step(NamedTuple):
    """Where a training run stands, for a progress bar."""

    done: int
    total: int
    loss: float


def train(  # noqa: PLR0913 - all but two by keyword
    model: nn.Module,
    split: Split,
    *,
    epochs: int,
    lr: float,
    seed: int,
    weight_decay: float = 5e-4,
    batch: int = 128,
    teacher: Teacher | None = None,
    on_step: Callable[[Step], None] | None = None,
    keep: Path | None = None,
) -> None:
    """Train ``model`` in place by SGD with momentum under a one-cycle learning rate.

    The last, smaller batch of an epoch is used unless it is a single image, which has no batch
    statistics.

    Args:
        model: Takes (N, C, H, W), gives logits (N, classes).
        split: The training images; every image is seen once an epoch, augmented.
        epochs: How often.
        lr: Highest learning rate, reached after a tenth of the steps; falls to zero at the end.
        seed: Decides order, augmentation and dropout; torch's own random state stays as it is.
        weight_decay: Of all parameters.
        batch: Images a step.
        teacher: Logits to learn from as well; see ``hard_and_soft_loss``.
        on_step: Called after every step.
        keep: A file that holds the state after every epoch, from which the same training goes on
            to the same weights after an interruption; for the caller to take away at the end.

    Raises:
        DivergedError: The loss is no longer finite.
        HaqError: ``keep`` is damaged or of another training.
    """
    starts = range(0, len(split), batch)
    starts = starts[:-1] if len(starts) > 1 and len(split) % batch == 1 else starts
    total = epochs * len(starts)
    if total == 0:
        return
    model.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr, momentum=0.9, nesterov=True, weight_decay=weight_decay,
    )  # fmt: skip
    sizes = [list(value.shape) for value in model.state_dict().values()]
    images = [len(split), int((split.labels * torch.arange(1, len(split) + 1)).sum())]
    asked = json.dumps([epochs, lr, seed, weight_decay, batch, images, sizes])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = _State(model, optimizer, _one_cycle(optimizer, total), torch.Generator(), asked)
        state.generator.manual_seed(seed)
        for epoch in range(_restored(state, keep) if keep else 0, epochs):
            done = epoch * len(starts)
            order = torch.randperm(len(split), generator=state.generator)
            for start in starts:
                optimizer.zero_grad()
                loss = _step(model, split, order[start : start + batch], state.generator, teacher)
                optimizer.step()
                state.schedule.step()
                done += 1
                if on_step:
                    on_step(Step(done, total, loss))
            if keep:
                _keep(state, keep, epoch + 1)
    model.eval()


class _State(NamedTuple):
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    generator: torch.Generator
    asked: str


def _keep(state: _State, path: Path, epochs: int) -> None:
    tensors = {f"model/{name}": value for name, value in state.model.state_dict().items()}
    for number, values in state.optimizer.state_dict()["state"].items():
        tensors[f"momentum/{number}"] = values["momentum_buffer"]
    tensors["generator"] = state.generator.get_state()
    tensors["dropout"] = torch.get_rng_state()
    steps = str(state.schedule.last_epoch)
    metadata = {"epochs": str(epochs), "steps": steps, "asked": state.asked}
    # Copies, because tied weights share their memory, which safetensors refuses.
    write_bytes(path, save({name: t.clone().contiguous() for name, t in tensors.items()}, metadata))


def _restored(state: _State, path: Path) -> int:
    """Put back what ``_keep`` wrote, if there is any, and return how many epochs are done."""
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise HaqError(f"{path} cannot be read ({error}); take it away to start anew") from error
    if metadata.get("asked") != state.asked:
        raise HaqError(f"{path} was left by another training; take it away to start anew")
    state.model.load_state_dict(_below(tensors, "model/"))
    momenta = _below(tensors, "momentum/")
    kept = {int(number): {"momentum_buffer": value} for number, value in momenta.items()}
    state.optimizer.load_state_dict(state.optimizer.state_dict() | {"state": kept})
    state.schedule.last_epoch = int(metadata["steps"])
    for group, share in zip(state.optimizer.param_groups, state.schedule.lr_lambdas, strict=True):
        group["lr"] = group["initial_lr"] * share(state.schedule.last_epoch)
    state.generator.set_state(tensors["generator"])
    torch.set_rng_state(tensors["dropout"])
    return int(metadata["epochs"])


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _one_cycle(optimizer: torch.optim.Optimizer, total: int) -> torch.optim.lr_scheduler.LambdaLR:
    rise = max(1, total // 10)

    def share(step: int) -> float:
        return min((step + 1) / rise, (total - step) / max(1, total - rise))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def _step(
    model: nn.Module,
    split: Split,
    index: Tensor,
    generator: torch.Generator,
    teacher: Teacher | None,
) -> float:
    images, labels = split.batch(index, generator)
    images = channels_last(images)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bfloat16()):
        logits = model(images)
    target = teacher(index, images) if teacher else None
    loss = hard_and_soft_loss(logits, labels, target)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise DivergedError(f"training diverged: the loss is {value}; lower the learning rate")
    loss.backward()
    return value
