"""Chosen images of a split: read as they are needed, or once for all."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from haq.datasets import Split
from haq.network.inputs import Inputs, joined, tensors_of
from haq.training.numerics import channels_last

FREEZABLE = 2**28
"""Values (of 4 bytes) of images that are kept ready in memory."""


@dataclass(frozen=True)
class Frozen:
    """Images or other inputs, augmented once, as a split that ignores further augmentation."""

    images: Inputs
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(
        self, index: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Inputs, Tensor]:
        """Return the images and labels at ``index``."""
        return self.images[index], self.labels[index]


@dataclass(frozen=True)
class Part:
    """Some images of a split."""

    split: Split
    chosen: Tensor

    @property
    def labels(self) -> Tensor:
        """Class indices (N, ...)."""
        return self.split.labels[self.chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(
        self, index: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Inputs, Tensor]:
        """Return what the split gives for its images at ``chosen[index]``."""
        return self.split.batch(self.chosen[index], generator)


def freeze(part: Part, generator: torch.Generator | None = None) -> Part | Frozen:
    """Return the images of a part, read (and augmented by the generator) once for all.

    A part of more than ``FREEZABLE`` values stays as it is: it would not fit into memory.
    """
    first, _ = part.batch(torch.zeros(1, dtype=torch.int64))
    if sum(tensor.numel() for tensor in tensors_of(first)) * len(part) > FREEZABLE:
        return part
    batches = [part.batch(index, generator) for index in torch.arange(len(part)).split(500)]
    pictures = joined([pictures for pictures, _ in batches])
    return Frozen(channels_last(pictures), torch.cat([labels for _, labels in batches]))


@dataclass(frozen=True)
class Shown:
    """A split that tells how many of its images were read, for whoever shows progress."""

    split: Split
    on_images: Callable[[int], None]

    @property
    def labels(self) -> Tensor:
        """Class indices (N, ...)."""
        return self.split.labels

    def __len__(self) -> int:
        return len(self.split)

    def batch(
        self, index: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Inputs, Tensor]:
        """Return what the split gives, and tell that all before the last of ``index`` are read."""
        self.on_images(int(index[-1]) + 1)
        return self.split.batch(index, generator)
