"""The convolution that brings a student's features to the shape of its teacher's."""

import torch
from torch import nn

from haq.errors import HaqError


def regressor(name: str, student: torch.Size, teacher: torch.Size) -> nn.Module:
    """Return a convolution, BatchNorm and ReLU from one shape of features to another.

    Args:
        name: Of the tap, for the message.
        student: (N, C, H, W), or (N, C).
        teacher: Of as many dimensions.

    Raises:
        HaqError: No convolution leads from one to the other.

    Source: Romero et al., "FitNets: Hints for thin deep nets", arXiv:1412.6550, section 2.2; the
    kernels are those of RepDistiller.
    """
    if len(student) == len(teacher) == 2:
        layer: nn.Module = nn.Linear(student[1], teacher[1])
        return nn.Sequential(layer, nn.BatchNorm1d(teacher[1]), nn.ReLU())
    if not len(student) == len(teacher) == 4:
        raise _unfit(name, student, teacher)
    (height, width), (target, across) = student[2:], teacher[2:]
    channels = student[1], teacher[1]
    if (height, width) == (2 * target, 2 * across):
        layer = nn.Conv2d(*channels, 3, stride=2, padding=1)
    elif (2 * height, 2 * width) == (target, across):
        layer = nn.ConvTranspose2d(*channels, 4, stride=2, padding=1)
    elif height >= target and width >= across:
        layer = nn.Conv2d(*channels, (1 + height - target, 1 + width - across))
    else:
        raise _unfit(name, student, teacher)
    return nn.Sequential(layer, nn.BatchNorm2d(teacher[1]), nn.ReLU())


def _unfit(name: str, student: torch.Size, teacher: torch.Size) -> HaqError:
    return HaqError(
        f"distill: no regressor leads from {shape_text(student)} of the student to "
        f"{shape_text(teacher)} of the teacher at tap {name!r}; name another pair of taps"
    )


def shape_text(shape: torch.Size) -> str:
    """Return the shape of features without the batch, as people write it.

    >>> shape_text(torch.Size([2, 16, 8, 8]))
    '16x8x8'
    """
    return "x".join(map(str, shape[1:]))
