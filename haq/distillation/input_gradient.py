"""Attention transfer by gradient: to which pixels the answers are sensitive."""

import torch
from torch import Tensor
from torch.nn import functional

from haq.distillation.kd import wide


def input_gradient(logits: Tensor, labels: Tensor, images: Tensor, create_graph: bool) -> Tensor:
    """Return the gradient of every image's own cross-entropy with respect to it.

    Args:
        logits: (N, classes), computed from ``images``, which take gradients.
        labels: Class indices (N,).
        images: (N, ...).
        create_graph: Whether the result can be differentiated again.

    Returns:
        Of the shape of ``images``, in float32 at least.
    """
    loss = functional.cross_entropy(wide(logits), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images, create_graph=create_graph)
    return wide(gradient)


def input_gradient_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return half the squared distance of two networks' input gradients, as a mean over images.

    It takes a second backward pass: about three times as long as the other losses.

    Args:
        student: Input gradients (N, ...), which can be differentiated.
        teacher: Of the same shape; no gradient reaches them.

    Returns:
        A scalar.

    Source: Zagoruyko and Komodakis, "Paying more attention to attention", arXiv:1612.03928,
    section 3.2.
    """
    return (student - teacher.detach()).square().sum() / (2 * len(student))
