"""Similarity-preserving distillation: which images of a batch are alike."""

from torch import Tensor
from torch.nn import functional

from haq.distillation.kd import wide


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of two networks' similarities between images.

    With features F of shape (N, ...) flattened to rows, the similarities are the rows of F F^T,
    each divided by its length.

    Args:
        student: Features (N, ...).
        teacher: Features (N, ...) of any other shape; no gradient reaches them.

    Returns:
        A scalar.

    Source: Tung and Mori, "Similarity-preserving knowledge distillation", arXiv:1907.09682,
    section 3.
    """
    return functional.mse_loss(_similarities(student), _similarities(teacher.detach()))


def _similarities(features: Tensor) -> Tensor:
    rows = wide(features).flatten(1)
    return functional.normalize(rows @ rows.T)  # (N, N)
