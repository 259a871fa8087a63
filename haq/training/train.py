"""Train a float network, or fine-tune a quantized one, on a CPU.

Convolutions run in bfloat16 autocast and channels-last memory where the CPU multiplies bfloat16
natively, in float32 elsewhere.
"""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from haq.datasets import Split
from haq.errors import DivergedError
from haq.network.constants import constants, count_broken
from haq.network.inputs import Inputs, beside, device_of
from haq.training.constraints import Constraint
from haq.training.interrupted import State, read_state, write_state
from haq.training.numerics import channels_last, in_channels_last
from haq.training.objective import Batch, Minimized, Moment, Objective, labels_alone

Decay = Literal["all", "weights"]
"""What weight decay is of: all parameters, or the weights of layers alone: no BatchNorm, no bias
and no step of a quantizer."""


class Step(NamedTuple):
    """Where a training run stands, for a progress bar.

    Attributes:
        done: Steps.
        total: All of them.
        loss: Before the last step.
        terms: What it is the sum of, by name.
    """

    done: int
    total: int
    loss: float
    terms: Mapping[str, float] = MappingProxyType({})

    def __str__(self) -> str:
        """Return the loss, and its terms where it has several."""
        parts = ", ".join(f"{name} {value:.3f}" for name, value in self.terms.items())
        return f"loss {self.loss:.3f}" + (f" ({parts})" if len(self.terms) > 1 else "")


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
    objective: Objective = labels_alone,
    constraint: Constraint | None = None,
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
        objective: What is minimized; see ``haq.training.distilling`` for a teacher.
        constraint: What holds of the weights at every step.
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
    in_channels_last(model.train())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        minimized = objective(model, partial(_first, split), epochs)
        minimized.extra.to(device_of(model)).train()
        settings = [epochs, lr, seed, weight_decay, decay, batch, minimized.settings]
        groups = _groups(nn.ModuleList([model, minimized.extra]), weight_decay, decay)
        asked = json.dumps([*settings, *_sizes(model, split)])
        state = _begin(model, minimized.extra, total, lr, seed, groups, asked)
        done = read_state(state, keep) if keep else 0
        if constraint is not None and done:
            constraint.resume()
        for epoch in range(done, epochs):
            order = torch.randperm(len(split), generator=state.generator)
            for number, place in enumerate(batches, epoch * len(batches) + 1):
                moment = Moment(number - 1, total, epoch, epochs)
                step = _step(state, split, order[place], minimized, moment, constraint)
                if on_step:
                    on_step(step)
            if keep:
                write_state(state, keep, epoch + 1)
    _check_weights(model)
    model.eval()


def _first(split: Split) -> Inputs:
    """Return the first images of a split, not augmented."""
    return split.batch(torch.arange(min(2, len(split))))[0]


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
    every = split.labels.flatten()
    labels = int((every * torch.arange(1, len(every) + 1)).sum())
    return [len(split), labels], [list(value.shape) for value in model.state_dict().values()]


def _begin(
    model: nn.Module,
    extra: nn.Module,
    total: int,
    lr: float,
    seed: int,
    groups: list[dict[str, Any]],
    settings: str,
) -> State:
    optimizer = torch.optim.SGD(groups, lr, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(seed)
    return State(model, extra, optimizer, _one_cycle(optimizer, total), generator, settings)


def _one_cycle(optimizer: torch.optim.Optimizer, total: int) -> LambdaLR:
    rise = max(1, total // 10)

    def share(step: int) -> float:
        return min((step + 1) / rise, (total - step) / max(1, total - rise))

    return LambdaLR(optimizer, share)


def _step(
    state: State,
    split: Split,
    index: Tensor,
    minimized: Minimized,
    moment: Moment,
    constraint: Constraint | None = None,
) -> Step:
    """Take one step on the images at ``index`` and return the loss before it."""
    images, labels = split.batch(index, state.generator)
    images, labels = beside(state.model, images), labels.to(device_of(state.model))
    state.optimizer.zero_grad()
    if constraint is not None:
        constraint.before_step(moment.done)
    terms = minimized.terms(Batch(index, channels_last(images), labels), moment)
    difference = torch.stack([*terms.values()]).sum()
    value = float(difference.detach())
    if not math.isfinite(value):
        raise DivergedError(f"training diverged: the loss is {value}; lower the learning rate")
    difference.backward()
    if constraint is not None:
        constraint.before_update()
    state.optimizer.step()
    if constraint is not None:
        constraint.apply()
    state.schedule.step()
    shown = {name: float(term.detach()) for name, term in terms.items()}
    return Step(moment.done + 1, moment.total, value, shown)


def _check_weights(model: nn.Module) -> None:
    """Refuse what the last step left, whose loss nobody saw."""
    constant = constants(model)
    for name, value in model.state_dict().items():
        if count_broken(name, value, constant):
            raise DivergedError(
                f"training diverged: {name} is not a finite number; lower the learning rate"
            )
