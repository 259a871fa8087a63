"""Accuracy and loss of a network on the images of a split."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from haq.allocation.trials import Score
from haq.datasets import Split
from haq.distillation.kd import divergence
from haq.errors import DivergedError
from haq.network.capture import evaluating
from haq.network.outputs import float_tensors
from haq.training.numerics import channels_last, has_bfloat16


@torch.inference_mode()
def logits(model: nn.Module, images: Tensor, quick: bool = False) -> Tensor:
    """Return the logits (N, classes) of images (N, C, H, W), in evaluation mode, as float32.

    They are computed in float32, or quickly, in bfloat16 where the CPU has it.
    """
    quickly = torch.autocast("cpu", dtype=torch.bfloat16, enabled=quick and has_bfloat16())
    with evaluating(model), quickly:
        output: Tensor = model(channels_last(images))
    return output.float()


@torch.inference_mode()
def answers(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the tensors of floats that a network gives, quickly and in evaluation mode."""
    quickly = torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bfloat16())
    with evaluating(model), quickly:
        output = model(channels_last(images))
    return [tensor.float() for tensor in float_tensors(output)]


def score(
    model: nn.Module,
    split: Split,
    batch: int = 125,
    quick: bool = False,
    beat: float | None = None,
    reference: Tensor | None = None,
) -> Score:
    """Return the accuracy and the cross-entropy of ``model`` on the images of a split.

    Args:
        model: Gives logits (N, classes).
        split: As for ``score_answers``, as are the rest.
        batch: Images a forward; with many, memory is waited for.
        quick: Compute as in training, in bfloat16 where the CPU has it: nearly the same figures in
            half the time.
        beat: Where to stop early.
        reference: Logits to agree with.
    """
    return score_answers(partial(logits, model, quick=quick), split, batch, beat, reference)


def score_answers(
    answer: Callable[[Tensor], Tensor],
    split: Split,
    batch: int = 125,
    beat: float | None = None,
    reference: Tensor | None = None,
) -> Score:
    """Return how good some answers to the images of a split are.

    Args:
        answer: From images (N, C, H, W) to logits (N, classes), float32.
        split: Scored without augmentation, in its own order.
        batch: Images at once.
        beat: An accuracy; when after some batch the answers lie so far below it that chance does
            not explain it, the rest is left out. The images must stand in random order for that.
        reference: Logits (N, classes) of another network, whose class distributions the loss then
            takes for the truth, not the labels.

    Returns:
        Accuracy as a share in [0, 1]; mean cross-entropy, or divergence from the reference, in
        nats.

    Raises:
        DivergedError: An answer is not a number.
    """
    right, loss, seen = 0, 0.0, 0
    for index in torch.arange(len(split)).split(batch):
        pictures, labels = split.batch(index)
        output = answer(pictures)
        if bool(output.isnan().any()):
            raise DivergedError("the network gives answers that are not numbers: no score")
        right += int((output.argmax(1) == labels).sum())
        if reference is None:
            loss += float(functional.cross_entropy(output.double(), labels, reduction="sum"))
        else:
            loss += len(index) * float(divergence(output.double(), reference[index].double()))
        seen += len(index)
        if beat is not None and seen < len(split) and _hopeless(right, seen, beat):
            return Score(right / seen, loss / seen, stopped=True)
    return Score(right / len(split), loss / len(split))


def _hopeless(right: int, seen: int, beat: float) -> bool:
    """Return whether the accuracy is more than four standard errors below ``beat``."""
    share = right / seen
    return share + 4 * math.sqrt(beat * (1 - beat) / seen) < beat
