"""Hints: the student's features should be the teacher's."""

from torch import Tensor
from torch.nn import functional

from haq.distillation.kd import wide


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of two feature tensors.

    Args:
        student: Features of any shape, behind a regressor where the student's own are of another
            one.
        teacher: Of the same shape; no gradient reaches them.

    Returns:
        A scalar.

    Source: Romero et al., "FitNets: Hints for thin deep nets", arXiv:1412.6550, section 2.2, as a
    mean over all elements instead of half a sum.
    """
    return functional.mse_loss(wide(student), wide(teacher.detach()))
