"""Train a float network, or fine-tune a quantized one, on a CPU.

Convolutions run in bfloat16 autocast and channels-last memory where the CPU multiplies bfloat16
natively, in float32 elsewhere.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from haq.datasets import Split
from haq.distillation.hard_and_soft import hard_and_soft_loss
from haq.errors import DivergedError
from haq.training.interrupted import State, read_state, write_state
from haq.training.numerics import channels_last, has_bfloat16
from haq.training.teacher import Teacher

Decay = Literal["all", "weights"]
"""What weight decay is of: all parameters, or the weights of layers alone: no BatchNorm, no bias
and no step of a quantizer."""


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
    decay: Decay = "all",
    batch: int = 128,
    teacher: Teacher | None = None,
    temperature: float = 4.0,
    label_share: float = 0.1,
    on_step: Callable[[Step], None] | None = None,
    keep: Path | None = None,
) -> None:
    """Train ``model`` in place by SGD with Nesterov momentum under a one-cycle learning rate.

    The last, smaller batch of an epoch is used unless it is a single image, which has no batch
    statistics. Parameters that take no gradient stay as they are.

    Args:
        model: Takes (N, C, H, W), gives logits (N, classes).
        split: The training images; every image is seen once an epoch, augmented.
        epochs: How often.
        lr: Highest learning rate, reached after a tenth of the steps; falls to zero at the end.
        seed: Decides order, augmentation and dropout; torch's own random state stays as it is.
        weight_decay: Of the parameters that ``decay`` names.
        decay: "all" for a float network, "weights" for a quantized one.
        batch: Images a step.
        teacher: Logits to learn from as well; see ``hard_and_soft_loss``, as for the next two.
        temperature: Of the softened distributions.
        label_share: Of the cross-entropy with the labels in the loss, where there is a teacher.
        on_step: Called after every step.
        keep: A file that holds the state after every epoch, from which the same training goes on
            to the same weights after an interruption; for the caller to take away at the end.

    Raises:
        DivergedError: The learning rate, the loss or a weight is not a finite number.
        HaqError: ``keep`` is damaged or of another training.
    """
    if not abs(lr) <= torch.finfo(torch.float32).max:
        raise DivergedError(f"learning rate {lr} is not a finite float32; give one such as 0.005")
    batches = _batches(len(split), batch)
    total = epochs * len(batches)
    if total == 0:
        return
    model.train().to(memory_format=torch.channels_last)
    loss = partial(hard_and_soft_loss, temperature=temperature, label_share=label_share)
    settings = [epochs, lr, seed, weight_decay, decay, batch, temperature, label_share]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = _begin(model, total, lr, seed, _groups(model, weight_decay, decay),
                       json.dumps([*settings, *_sizes(model, split)]))  # fmt: skip
        done = read_state(state, keep) if keep else 0
        for epoch in range(done, epochs):
            order = torch.randperm(len(split), generator=state.generator)
            for number, place in enumerate(batches, epoch * len(batches) + 1):
                value = _step(state, split, order[place], teacher, loss)
                if on_step:
                    on_step(Step(number, total, value))
            if keep:
                write_state(state, keep, epoch + 1)
    _check_weights(model)
    model.eval()


def _batches(images: int, batch: int) -> list[slice]:
    starts = range(0, images, batch)
    starts = starts[:-1] if len(starts) > 1 and images % batch == 1 else starts
    return [slice(start, start + batch) for start in starts]


def _groups(model: nn.Module, weight_decay: float, decay: Decay) -> list[dict[str, Any]]:
    """Return the parameters to train, with their weight decay, for an optimizer."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if decay == "all":
        return [{"params": trained, "weight_decay": weight_decay}]
    weights = [parameter for parameter in trained if parameter.dim() > 1]
    others = [parameter for parameter in trained if parameter.dim() <= 1]
    groups = [
        {"params": weights, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _sizes(model: nn.Module, split: Split) -> tuple[list[int], list[list[int]]]:
    """Return what tells one training from another: sums of its labels, and its tensors' shapes."""
    labels = int((split.labels * torch.arange(1, len(split) + 1)).sum())
    return [len(split), labels], [list(value.shape) for value in model.state_dict().values()]


def _begin(
    model: nn.Module, total: int, lr: float, seed: int, groups: list[dict[str, Any]], settings: str
) -> State:
    optimizer = torch.optim.SGD(groups, lr, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(seed)
    return State(model, optimizer, _one_cycle(optimizer, total), generator, settings)


def _one_cycle(optimizer: torch.optim.Optimizer, total: int) -> LambdaLR:
    rise = max(1, total // 10)

    def share(step: int) -> float:
        return min((step + 1) / rise, (total - step) / max(1, total - rise))

    return LambdaLR(optimizer, share)


Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""From logits, labels and the teacher's logits to a scalar."""


def _step(state: State, split: Split, index: Tensor, teacher: Teacher | None, loss: Loss) -> float:
    """Take one step on the images at ``index`` and return the loss before it."""
    images, labels = split.batch(index, state.generator)
    images = channels_last(images)
    state.optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bfloat16()):
        logits = state.model(images)
    difference = loss(logits, labels, teacher(index, images) if teacher else None)
    value = float(difference.detach())
    if not math.isfinite(value):
        raise DivergedError(f"training diverged: the loss is {value}; lower the learning rate")
    difference.backward()
    state.optimizer.step()
    state.schedule.step()
    return value


def _check_weights(model: nn.Module) -> None:
    """Refuse what the last step left, whose loss nobody saw."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise DivergedError(
                f"training diverged: {name} is not a finite number; lower the learning rate"
            )
