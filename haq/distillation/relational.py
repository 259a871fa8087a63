"""Relational distillation: distances and angles between the images of a batch."""

from torch import Tensor
from torch.nn import functional

from haq.distillation.kd import wide

_LEAST = 1e-12
"""Of a squared distance: below it the square root has no gradient."""


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return how far the student's distances between embeddings are from the teacher's.

    Each network's distances are divided by their mean over all pairs; the difference is Huber's,
    averaged over all N * N pairs, the diagonal included.

    Args:
        student: Embeddings (N, D).
        teacher: Embeddings (N, D'); no gradient reaches them.

    Returns:
        A scalar; 0 where all embeddings of a network are one point.

    Source: Park et al., "Relational knowledge distillation", arXiv:1904.05068, section 3.2.1.
    """
    mine, its = _distances(wide(student)), _distances(wide(teacher.detach()))
    return functional.smooth_l1_loss(mine, its)


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return how far the cosines of the student's angles between embeddings are from the teacher's.

    The difference is Huber's, averaged over all N ** 3 triples.

    Args:
        student: Embeddings (N, D).
        teacher: Embeddings (N, D'); no gradient reaches them.

    Returns:
        A scalar.

    Source: Park et al., "Relational knowledge distillation", arXiv:1904.05068, section 3.2.2.
    """
    return functional.smooth_l1_loss(_cosines(wide(student)), _cosines(wide(teacher.detach())))


def _distances(points: Tensor) -> Tensor:
    squared = (points[:, None] - points[None]).square().sum(2)  # (N, N)
    # A square root at zero has an infinite gradient, which masking alone does not take away.
    apart = squared > _LEAST
    distances = squared.clamp_min(_LEAST).sqrt() * apart
    count = int(apart.sum())
    return distances / (distances.sum() / count) if count else distances * 0


def _cosines(points: Tensor) -> Tensor:
    edges = points[None] - points[:, None]  # (N, N, D): from i to j
    units = functional.normalize(edges, dim=2)
    return units @ units.transpose(1, 2)  # (N, N, N): at i between j and k
