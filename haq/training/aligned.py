"""Logits and labels brought to one form: a row of logits for each label that counts."""

from torch import Tensor
from torch.nn import functional

from haq.errors import ModelError


def aligned(answer: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits and the labels that count, a row for each.

    Args:
        answer: Logits (N, classes); of tokens (N, T, classes); of pixels (N, classes, H, W), which
            are brought to the labels' size where that is another one.
        labels: (N,), (N, T) or (N, H, W); negative ones do not count.

    Returns:
        Logits (M, classes) and labels (M,).

    Raises:
        ModelError: The shapes do not fit.

    >>> import torch
    >>> logits, labels = aligned(torch.zeros(2, 3, 5), torch.tensor([[1, 2, -100], [0, 0, 0]]))
    >>> logits.shape, labels.tolist()
    (torch.Size([5, 5]), [1, 2, 0, 0, 0])
    """
    if answer.dim() == 4 and labels.dim() == 3 and answer.shape[2:] != labels.shape[1:]:
        answer = functional.interpolate(answer, labels.shape[1:], mode="bilinear")
    if answer.dim() == labels.dim() + 1:
        if answer.dim() > 3 or answer.shape[:-1] != labels.shape:
            answer = answer.movedim(1, -1)
        if answer.shape[:-1] == labels.shape:
            counted = (labels >= 0).flatten()
            rows = answer.flatten(0, -2)
            every = bool(counted.all())
            return (rows, labels.flatten()) if every else (rows[counted], labels.flatten()[counted])
    wanted, given = ("x".join(map(str, tensor.shape)) for tensor in (labels, answer))
    raise ModelError(
        f"the network gives a tensor of {given} and the labels are {wanted}: labels need logits "
        "(N, classes), of tokens (N, T, classes) or of pixels (N, classes, H, W)"
    )


def rows_of(logits: Tensor) -> Tensor:
    """Return logits as rows (M, classes): of inputs as they are, of tokens and of pixels one each.

    Args:
        logits: (N, classes), (N, T, classes) or (N, classes, H, W).
    """
    return (logits if logits.dim() <= 3 else logits.movedim(1, -1)).flatten(0, -2)
