"""What a network is worth by a metric, and its loss, on the inputs of a split."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from haq.allocation.trials import Score
from haq.datasets import Split
from haq.distillation.kd import divergence
from haq.errors import DivergedError, ModelError
from haq.metrics import METRICS, Metric
from haq.metrics.top import Top
from haq.network.capture import evaluating
from haq.network.inputs import Inputs, call, mask_of
from haq.network.outputs import float_tensors, main_tensor
from haq.training.aligned import aligned
from haq.training.numerics import channels_last, has_bfloat16

TEMPERATURE = 2.0
"""Of the divergence that scores. Softened, it is told by more images than those that a network is
about to get wrong: 1 000 rank policies near the optimum as well as 2 500 at a temperature of 1, by
the divergence at 1 on other images. At 4 even fewer do, but not quite of the same thing: see
results/reference/images-needed.json."""

Reference = Callable[[Tensor, Inputs], Tensor]
"""From indices (N,) and the inputs at these to the answers of another network, float32."""


@torch.inference_mode()
def logits(model: nn.Module, images: Inputs, quick: bool = False) -> Tensor:
    """Return the logits (N, classes) of images (N, C, H, W), in evaluation mode, as float32.

    Of a network that gives several tensors that is the one of ``main_tensor``. They are computed in
    float32, or quickly, in bfloat16 where the CPU has it.
    """
    quickly = torch.autocast("cpu", dtype=torch.bfloat16, enabled=quick and has_bfloat16())
    with evaluating(model), quickly:
        output = main_tensor(call(model, channels_last(images)))
    return output.float()


@torch.inference_mode()
def answers(model: nn.Module, images: Inputs) -> list[Tensor]:
    """Return the tensors of floats that a network gives, quickly and in evaluation mode."""
    quickly = torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bfloat16())
    with evaluating(model), quickly:
        output = call(model, channels_last(images))
    return [tensor.float() for tensor in float_tensors(output)]


def score(
    model: nn.Module,
    split: Split,
    batch: int = 125,
    quick: bool = False,
    beat: float | None = None,
    reference: Tensor | Reference | None = None,
    metric: Metric = METRICS["top1"],
    rights: list[Tensor] | None = None,
) -> Score:
    """Return the score and the loss of ``model`` on the inputs of a split.

    Args:
        model: Gives logits (N, classes), or what the metric counts.
        split: As for ``score_answers``, as are the rest.
        batch: Images a forward; with many, memory is waited for.
        quick: Compute as in training, in bfloat16 where the CPU has it: nearly the same figures in
            half the time.
        beat: Where to stop early.
        reference: Answers to agree with.
        metric: What counts.
        rights: Gets what is right.
    """
    answer = partial(logits, model, quick=quick)
    return score_answers(answer, split, batch, beat, reference, metric, rights)


def score_answers(
    answer: Callable[[Inputs], Tensor],
    split: Split,
    batch: int = 125,
    beat: float | None = None,
    reference: Tensor | Reference | None = None,
    metric: Metric = METRICS["top1"],
    rights: list[Tensor] | None = None,
) -> Score:
    """Return how good some answers to the inputs of a split are.

    Args:
        answer: From inputs (N, ...) to logits (N, classes), or what the metric counts, float32.
        split: Scored without augmentation, in its own order.
        batch: Inputs at once.
        beat: An accuracy; when after some batch the answers lie so far below it that chance does
            not explain it, the rest is left out. The images must stand in random order for that.
            Metrics that are no accuracy do not stop early.
        reference: Answers of another network (N, ...), or what gives them, whose class
            distributions the loss then takes for the truth, not the labels.
        metric: What counts.
        rights: Gets for each batch which of its labels the answers have right, (M,) truth values,
            of metrics that are an accuracy.

    Returns:
        The score, for accuracies a share in [0, 1]; mean cross-entropy, or divergence from the
        reference at ``TEMPERATURE``, in nats.

    Raises:
        DivergedError: An answer is not a number.
        ModelError: The answers do not fit the labels.
    """
    seen, losses, sums = 0, [0.0, 0], None
    for index in torch.arange(len(split)).split(batch):
        inputs, labels = split.batch(index)
        output = answer(inputs).cpu()
        if bool(output.isnan().any()):
            raise DivergedError("the network gives answers that are not numbers: no score")
        truth = reference[index] if isinstance(reference, Tensor) else None
        if callable(reference) and truth is None:
            truth = reference(index, inputs).cpu()
        part = _sums(metric, output, labels, truth, inputs)
        if rights is not None and isinstance(metric, Top):
            rights.append(metric.right(*aligned(output, labels)))
        sums = part if sums is None else sums + part
        loss, count = _loss(metric, output, labels, truth)
        losses = [losses[0] + loss, losses[1] + count]
        seen += len(index)
        if beat is not None and seen < len(split) and isinstance(metric, Top):
            right, counted = sums.tolist()
            if _hopeless(right, counted, beat):
                return Score(right / counted, losses[0] / losses[1], stopped=True)
    assert sums is not None
    return Score(metric.score(metric.value(sums)), losses[0] / max(losses[1], 1))


def _sums(
    metric: Metric, output: Tensor, labels: Tensor, truth: Tensor | None, inputs: Inputs
) -> Tensor:
    if metric.needs == "labels":
        output, labels = aligned(output, labels)
        return metric.sums(output, labels, None, None)
    mask = mask_of(inputs)
    return metric.sums(output, labels, truth, mask)


def _loss(
    metric: Metric, output: Tensor, labels: Tensor, truth: Tensor | None
) -> tuple[float, int]:
    """Return the sum of the losses of a batch, and of how many: from the reference if there is."""
    if truth is not None:
        apart = divergence(output.double(), truth.double(), TEMPERATURE)
        return len(output) * float(apart), len(output)
    if metric.needs != "labels":
        return math.nan, len(output)
    output, labels = aligned(output, labels)
    return float(functional.cross_entropy(output.double(), labels, reduction="sum")), len(labels)


def _hopeless(right: float, seen: float, beat: float) -> bool:
    """Return whether the accuracy is more than four standard errors below ``beat``."""
    share = right / seen
    return share + 4 * math.sqrt(beat * (1 - beat) / seen) < beat


def check_metric(metric: Metric, answer: Tensor, labels: Tensor | None) -> None:
    """Refuse a metric that cannot count what a network gives.

    Args:
        metric: Asked for.
        answer: To some inputs.
        labels: Of these; None where there are none.

    Raises:
        ModelError: It does not fit.
    """
    if metric.needs == "labels" and labels is not None:
        try:
            answer, _ = aligned(answer, labels)
        except ModelError:
            pass  # the metric says what it needs
    metric.check(answer, labels)
