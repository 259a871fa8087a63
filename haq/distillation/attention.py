"""Attention transfer: where in the image the student's features are strong."""

from torch import Tensor
from torch.nn import functional

from haq.distillation.kd import wide


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of two networks' attention maps.

    The map of an image is the mean of its squared features over the channels, divided by its own
    length. This is the form of the authors' code; the paper writes the length of the difference, so
    that its weights are other ones. Channels may differ; of two sizes the larger is pooled to the
    smaller.

    Args:
        student: Features (N, C, H, W), or (N, C, ...).
        teacher: Features (N, C', H', W'); no gradient reaches them.

    Returns:
        A scalar; 0 with a finite gradient where all features are zero.

    Source: Zagoruyko and Komodakis, "Paying more attention to attention", arXiv:1612.03928,
    section 3.1.
    """
    return functional.mse_loss(*_maps(student, teacher))


def _maps(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student, teacher = wide(student), wide(teacher.detach())
    if student.dim() == 4 and student.shape[2:] != teacher.shape[2:]:
        height, width = map(min, zip(student.shape[2:], teacher.shape[2:], strict=True))
        student = functional.adaptive_avg_pool2d(student, (height, width))
        teacher = functional.adaptive_avg_pool2d(teacher, (height, width))
    return _map(student), _map(teacher)


def _map(features: Tensor) -> Tensor:
    return functional.normalize(features.square().mean(1).flatten(1))  # (N, H * W)
