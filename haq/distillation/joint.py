"""Joint training: teacher and student learn together, the teacher from the student too."""

from torch import Tensor
from torch.nn import functional

from haq.distillation.kd import wide


def imitation_loss(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, feedback: float = 0.0
) -> Tensor:
    """Return the cross-entropy of the student's class distribution with the teacher's.

    Beside ``kd.distillation_loss`` it has the teacher's entropy in it: the student's gradient is
    the same, but not that of a teacher who learns as well. Of that gradient the teacher gets the
    share ``feedback``.

    Args:
        student: Logits (N, classes).
        teacher: Logits (N, classes).
        temperature: Positive; the loss is multiplied by its square.
        feedback: In [0, 1]; 0 lets the teacher alone.

    Returns:
        A scalar.
    """
    student, teacher = wide(student), wide(teacher)
    heard = feedback * teacher + (1 - feedback) * teacher.detach()
    log_q = functional.log_softmax(student / temperature, 1)
    target = functional.softmax(heard / temperature, 1)
    return -(target * log_q).sum(1).mean() * temperature**2


def joint_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    shares: tuple[float, float, float] = (1.0, 0.5, 0.5),
    temperature: float = 1.0,
    feedback: float = 0.0,
) -> Tensor:
    """Return the three-term loss of a teacher and a student that are trained together.

    Args:
        student: Logits (N, classes).
        teacher: Logits (N, classes).
        labels: Class indices (N,).
        shares: Of the teacher's cross-entropy with the labels, the student's, and of
            ``imitation_loss``.
        temperature: As for ``imitation_loss``.
        feedback: As for ``imitation_loss``.

    Returns:
        A scalar.

    Source: Mishra and Marr, "Apprentice", arXiv:1711.05852, scheme A.
    """
    taught, own, copied = shares
    return (
        taught * functional.cross_entropy(wide(teacher), labels)
        + own * functional.cross_entropy(wide(student), labels)
        + copied * imitation_loss(student, teacher, temperature, feedback)
    )
