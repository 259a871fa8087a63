"""Distillation: what the float network knows beyond the labels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Return how far the student's softened class distribution is from the teacher's.

    That is::

        T**2 * mean over images of KL(softmax(teacher / T) || softmax(student / T))

    The factor T**2 keeps the gradient's size independent of the temperature.

    Args:
        student: Logits (N, classes), any float dtype; the loss is computed in float32 at least.
        teacher: Logits (N, classes); no gradient reaches them.
        temperature: Positive.

    Returns:
        A scalar.

    Source: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network",
    arXiv:1503.02531, section 2.
    """
    student, teacher = wide(student), wide(teacher.detach())
    log_q = functional.log_softmax(student / temperature, 1)
    log_p = functional.log_softmax(teacher / temperature, 1)
    divergence = functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def divergence(answer: Tensor, reference: Tensor, temperature: float = 1.0) -> Tensor:
    """Return how far an answer is from the reference's, whatever kind of network gave it.

    For logits (N, classes) that is ``distillation_loss``; for a tensor of another shape the squared
    error as a share of the reference's variance.

    Args:
        answer: Of any float dtype.
        reference: Of the same shape; no gradient reaches it.
        temperature: Of the logits, positive.

    Returns:
        A scalar, 0 where both are equal.

    >>> float(divergence(torch.zeros(1, 2, 2), torch.tensor([[[0.0, 2.0], [0.0, 2.0]]])))
    2.0
    """
    if answer.dim() == 2 and answer.shape[1] > 1:
        return distillation_loss(answer, reference, temperature)
    reference = wide(reference.detach())
    spread = (reference - reference.mean()).square().mean().clamp_min(1e-30)
    return (wide(answer) - reference).square().mean() / spread


def divergences(answer: Tensor, reference: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the terms that ``divergence`` is the mean of, (N,).

    >>> divergences(torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [9.0, 9.0]])).tolist()
    [0.0, 0.0]
    """
    if answer.dim() == 2 and answer.shape[1] > 1:
        both = (wide(answer), wide(reference.detach()))
        log_q, log_p = (functional.log_softmax(logits / temperature, 1) for logits in both)
        apart = functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
        return apart * temperature**2
    reference = wide(reference.detach())
    spread = (reference - reference.mean()).square().mean().clamp_min(1e-30)
    return (wide(answer) - reference).square().reshape(len(answer), -1).mean(1) / spread


def total_divergence(
    answers: Sequence[Tensor], references: Sequence[Tensor], temperature: float = 1.0
) -> Tensor:
    """Return the sum of the divergences of several answers, each from its reference.

    >>> one, two = torch.zeros(1, 2), torch.ones(1)
    >>> float(total_divergence([one, two], [one, two]))
    0.0
    """
    pairs = zip(answers, references, strict=True)
    return torch.stack([divergence(*pair, temperature) for pair in pairs]).sum()


def signs_of_curvature(answer: Tensor, generator: torch.Generator) -> Tensor:
    """Return A r for random signs r, where A A' is the curvature of ``divergence`` by the answer.

    Args:
        answer: As ``divergence`` takes it.
        generator: Draws the signs.
    """
    answer = answer.float()
    signs = torch.randint(0, 2, answer.shape, generator=generator).float() * 2 - 1
    signs = signs.to(answer.device)
    if answer.dim() == 2 and answer.shape[1] > 1:
        p = answer.softmax(1)
        weighted = p.sqrt() * signs
        return weighted - p * weighted.sum(1, keepdim=True)
    spread = (answer - answer.mean()).square().mean().clamp_min(1e-30)
    return signs * (2 * len(answer) / (answer.numel() * spread)).sqrt()


def wide(logits: Tensor) -> Tensor:
    """Return logits in float32 at least."""
    return logits if logits.dtype == torch.float64 else logits.float()
