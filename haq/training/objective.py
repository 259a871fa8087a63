"""What a training minimizes: the terms of a loss, each by its name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from haq.distillation.kd import wide
from haq.network.inputs import Inputs, call
from haq.network.outputs import main_tensor
from haq.training.aligned import aligned
from haq.training.numerics import has_bfloat16

Terms = dict[str, Tensor]
"""Name of a term to its share of the loss, a scalar with its weight in it."""


class Batch(NamedTuple):
    """The images of one step.

    Attributes:
        places: Of them in the split, (N,).
        images: (N, ...), augmented.
        labels: Class indices (N,), or of tokens or pixels (N, ...).
    """

    places: Tensor
    images: Inputs
    labels: Tensor


class Moment(NamedTuple):
    """Where a training stands at the beginning of a step.

    Attributes:
        done: Steps that are over.
        total: All of them.
        epoch: Epochs that are over.
        epochs: All of them.
    """

    done: int
    total: int
    epoch: int
    epochs: int

    @property
    def share(self) -> float:
        """The share of the training that is over; 1 at the last step."""
        return self.done / max(1, self.total - 1)


@dataclass(frozen=True)
class Minimized:
    """The terms for one model.

    Attributes:
        terms: Of a batch, at a moment.
        extra: What is trained beside the model, and thrown away.
        settings: What tells one objective from another, as plain values.
    """

    terms: Callable[[Batch, Moment], Terms]
    extra: nn.Module = field(default_factory=nn.Module)
    settings: object = None


Objective = Callable[[nn.Module, Callable[[], Inputs], int], Minimized]
"""From a model, a function that gives some images (N, ...), and the number of epochs to what is
minimized."""


def forward(model: nn.Module, images: Inputs) -> object:
    """Return what a model gives, computed in bfloat16 where the CPU has it."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bfloat16()):
        return call(model, images)


def labels_alone(model: nn.Module, images: Callable[[], Inputs], epochs: int) -> Minimized:
    """Minimize the cross-entropy with the labels."""

    def terms(batch: Batch, moment: Moment) -> Terms:
        logits = main_tensor(forward(model, batch.images))
        return {"labels": cross_entropy(logits, batch.labels)}

    return Minimized(terms)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy with the labels that count, 0 without any; see ``aligned``."""
    rows, counted = aligned(logits, labels.to(logits.device))
    return functional.cross_entropy(wide(rows), counted) if len(counted) else rows.sum()
