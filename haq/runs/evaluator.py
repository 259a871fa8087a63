"""What one policy is worth: quantize, then fine-tune for one epoch or correct statistics; validate.

Everything that does not depend on the policy (augmented training images, what the float network
answers to them) is computed once, so that an episode is little more than the network's own forward
and backward passes.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from haq.allocation.policy import Policy
from haq.allocation.trials import Score
from haq.datasets import Data, Split
from haq.datasets.tensors import TensorSplit
from haq.distillation.settings import DEFAULT, Distillation, distillation_of
from haq.formats.onnx.runtime import (
    Answer,
    all_integer,
    exact_kernels,
    integer_answer,
    prepared,
)
from haq.formats.onnx.template import Template
from haq.formats.stand_in import stand_in
from haq.metrics import METRICS, Metric
from haq.network.graph import Graph
from haq.network.inputs import Inputs, device_of, joined
from haq.quantization.calibration import Clips
from haq.quantization.fake_quant import quantize
from haq.quantization.learned_steps import learned_steps
from haq.quantization.statistics import correct, statistics
from haq.runs.calibration import calibration_batches
from haq.runs.places import Places, sizes
from haq.runs.rounding import held_zeros, learn_rounding, suffices
from haq.runs.samples import FREEZABLE, Frozen, Part, freeze
from haq.training.constraints import together
from haq.training.distilling import distilling
from haq.training.norms import measure_norms
from haq.training.numerics import channels_last
from haq.training.objective import Objective, labels_alone
from haq.training.scoring import Reference, score, score_answers
from haq.training.teacher import Teacher, teacher_from
from haq.training.train import Step, train

OnStep = Callable[[Step], None]

CORRECTED_ON = 256
"""Images on which statistics are corrected; more hardly change a score."""

LEAST_UNSEEN = 250
"""Validation images that are worth judging by, beside those that score."""


KD = distillation_of(DEFAULT)


@dataclass(frozen=True)
class Recipe:
    """How a quantized network is fine-tuned and scored in an episode.

    The defaults of fine-tuning are the best for ResNet-20 on CIFAR-10 at 2.25 bits with 4-bit
    activations: rates of 0.0025, 0.005, 0.01 and 0.02 give 84.4, 85.5, 85.6 and 84.6 %, weight
    decays of 5e-4, 1e-4 and 0 give 84.8, 85.5 and 85.2 %.

    Attributes:
        train_images: Training images of the one epoch.
        val_images: Validation images that give the score.
        lr: Highest learning rate of the one cycle.
        weight_decay: Of the weights of layers.
        distill: How the float network teaches; None for labels alone. The default is the best of
            its kind there: kd at temperatures of 1, 2, 4 and 8 gives 82.6, 83.9, 85.5 and 85.3 %,
            without labels 85.3 %.
        batch: Images a step.
        agreement: Whether the loss of a score is the divergence from the float network, instead of
            the cross-entropy with the labels.
        rounding_steps: In which the rounding is learned, without labels and with the scales and
            biases of BatchNorm and the clips of activations; each of ``ROUNDING_BATCH`` images. The
            epoch comes after it where there are ``EPOCH_FROM`` images, instead of it otherwise.
        learned_steps: Whether the steps of quantizers are learned too; nothing gained in an epoch
            of 5 000 images.
        norms_images: Training images on which statistics of BatchNorm are measured afresh after
            the epoch; 0 leaves those of training.
        metric: What scores a network.
    """

    train_images: int = 5000
    val_images: int = 2500
    lr: float = 0.005
    distill: Distillation | None = KD
    batch: int = 64
    agreement: bool = False
    weight_decay: float = 1e-4
    rounding_steps: int = 0
    learned_steps: bool = False
    norms_images: int = 2000
    metric: Metric = METRICS["top1"]


class Evaluator:
    """From a policy to its score, the same for the same policy and seed, in any order.

    Every evaluation starts from the float weights of the graph's model.
    """

    def __init__(
        self,
        graph: Graph,
        clips: Clips,
        data: Data,
        recipe: Recipe,
        seed: int,
        template: Template | None = None,
    ):
        """Choose the images.

        Args:
            graph: Of the float network.
            clips: From ``calibrate`` on the same graph.
            data: Its train and val splits.
            recipe: How to fine-tune and score.
            seed: Decides everything random.
            template: What ONNX files of the networks are made of, if it is there already.
        """
        self._template = template
        self.places = Places(graph, clips)
        self._narrower: dict[Any, Template | None] = {}
        self.graph, self.clips, self.data, self.recipe, self.seed = graph, clips, data, recipe, seed
        generator = torch.Generator().manual_seed(seed)
        # At random: in a folder the images of a class stand together.
        chosen = torch.randperm(len(data.train), generator=generator)[: recipe.train_images]
        order = torch.randperm(len(data.val), generator=generator)
        picked, rest = order[: recipe.val_images], order[recipe.val_images :][: recipe.val_images]
        self._generator, self._chosen = generator, chosen
        self.validation = freeze(Part(data.val, picked))
        self.unseen = Part(data.val, rest) if len(rest) >= LEAST_UNSEEN else None

    @cached_property
    def images(self) -> Part | Frozen:
        """The training images of the one epoch, augmented."""
        return freeze(Part(self.data.train, self._chosen), self._generator)

    @cached_property
    def views(self) -> Split:
        """The training images, augmented anew each time, where they lie in memory; else once."""
        train = self.data.train
        if not isinstance(train, TensorSplit):
            return self.images
        return replace(train, images=train.images[self._chosen], labels=train.labels[self._chosen])

    @cached_property
    def others(self) -> Part:
        """Training images in random order, not augmented: no episode is scored on them."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return Part(self.data.train, torch.randperm(len(self.data.train), generator=generator))

    @cached_property
    def teacher(self) -> Teacher | None:
        """What the float network answers to them, if only its answers are learned from."""
        if not _answers_suffice(self.recipe):
            return None
        answers = self.teacher_logits
        if answers is None:
            return teacher_from(self.graph.traced)
        return lambda index, images: answers[index]

    @cached_property
    def teacher_logits(self) -> Tensor | None:
        """Its answers to all of them, where they are kept in memory and it teaches."""
        if not _answers_suffice(self.recipe) or not isinstance(self.images, Frozen):
            return None
        return _kept_answers(self.graph.traced, self.images)

    @cached_property
    def plain(self) -> Inputs:
        """Training images, not augmented, on which statistics are corrected."""
        return joined(list(calibration_batches(self.data, CORRECTED_ON, self.seed)))

    @cached_property
    def _corrected(self) -> Callable[[Policy], fx.GraphModule]:
        return corrected(self.places, self.plain)

    def prepare(self, tuning: bool) -> None:
        """Work out what ``score`` needs, and ``tuned`` if asked for, so that it is pickled too."""
        names = ["answers", *(("images", "teacher_logits", "plain") if tuning else ())]
        if tuning and self.recipe.rounding_steps:
            names.append("views")
        for name in names:
            getattr(self, name)

    def __getstate__(self) -> dict[str, Any]:
        # Whoever unpickles it gives it its graph, which does not come out of a pickle as it was.
        left_out = {
            "graph",
            "data",
            "unseen",
            "others",
            "places",
            "teacher",
            "_corrected",
            "_lowering",
            "_template",
            "_generator",
            "_chosen",
        }
        kept = {name: value for name, value in vars(self).items() if name not in left_out}
        return kept | {"_narrower": {}}

    def tuned(self, policy: Policy) -> fx.GraphModule:
        """Return the quantized network after its one epoch.

        Where the recipe asks for it, it begins with learned rounding; with few images that is all,
        where it is of all layers.
        """
        place = self.places(policy)
        steps = self.recipe.rounding_steps
        if steps:
            model = self._corrected(policy)
            learn_rounding(model, place.graph, self.views, steps, self.seed)
            if suffices(model, policy, len(self.images)):
                return model
        else:
            model = quantize(place.graph, policy, place.clips)
        seed = policy_seed(self.seed, policy)
        lesson = _Lesson(self.graph, place.graph, self.teacher)
        _train(model, self.images, self.recipe, lesson, epochs=1, seed=seed)
        return model

    def score(self, model: nn.Module, beat: float | None = None) -> Score:
        """Return the score of a network on the validation images; see ``training.scoring``."""
        return score(
            model, self.validation, quick=True, beat=beat, reference=self.reference,
            metric=self.recipe.metric,
        )  # fmt: skip

    def integer_score(self, model: nn.Module, beat: float | None = None) -> Score:
        """Return the score of a quantized network's file; in floating point where that is better.

        See ``haq.formats.onnx.runtime``. The first one takes some seconds more.
        """
        answer = self.integer_answer(model)
        if answer is None:
            return self.score(model, beat)
        return score_answers(
            answer, self.validation, beat=beat, reference=self.reference, metric=self.recipe.metric
        )

    def integer_answer(self, model: nn.Module) -> Answer | None:
        """Return what the file of a quantized network answers; None where that is not exact here.

        A float network has none, nor one that is scored on a GPU.
        """
        if device_of(model).type != "cpu" or not all_integer(model) or self._lowering is None:
            return None
        lowering = self._lowering_of(model)
        return None if lowering is None else integer_answer(lowering, model)

    def _lowering_of(self, model: nn.Module) -> Template | None:
        """Return what the file of a network is made of: a narrower one has its own."""
        if self.places.narrowing is None or not isinstance(model, fx.GraphModule):
            return self._lowering
        key = sizes(model, self.graph)
        if key == sizes(self.graph.traced, self.graph):
            return self._lowering
        if key not in self._narrower:
            self._narrower.clear()  # one policy is scored after the other
            images, _ = self.validation.batch(torch.zeros(1, dtype=torch.int64))
            self._narrower[key] = prepared(model, images)
        return self._narrower[key]

    @cached_property
    def _lowering(self) -> Template | None:
        if getattr(self, "_template", None) is not None and exact_kernels():
            return self._template
        images, _ = self.validation.batch(torch.zeros(1, dtype=torch.int64))
        return prepared(stand_in(self.graph)[0], images)

    @property
    def reference(self) -> Reference | None:
        """What gives the float network's answers to the validation images, if they count."""
        kept = self.answers
        if kept is not None:
            return lambda index, inputs: kept[index]
        return teacher_from(self.graph.traced) if self._compares else None

    @property
    def _compares(self) -> bool:
        return self.recipe.agreement or self.recipe.metric.needs == "reference"

    @cached_property
    def answers(self) -> Tensor | None:
        """The float network's answers to the validation images, if they count and fit in memory."""
        return _kept_answers(self.graph.traced, self.validation) if self._compares else None


def _kept_answers(model: nn.Module, split: Split) -> Tensor | None:
    """Return what a network answers to a split; None where that is too much to keep in memory."""
    answer = teacher_from(model)
    first = answer(torch.zeros(1), split.batch(torch.zeros(1, dtype=torch.int64))[0])
    if first.numel() * len(split) > FREEZABLE:
        return None
    parts = torch.arange(len(split)).split(125)
    return torch.cat([answer(index, split.batch(index)[0]).cpu() for index in parts])


def corrected(places: Places, images: Inputs) -> Callable[[Policy], fx.GraphModule]:
    """Return a function from a policy to its network with corrected statistics, not fine-tuned.

    Args:
        places: The float networks that policies are put into.
        images: Unlabeled, not augmented, (N, ...); see ``haq.quantization.statistics.correct``.
    """
    images = channels_last(images)
    whole = statistics(places.whole.graph, images, places.whole.clips)

    def network(policy: Policy) -> fx.GraphModule:
        place = places(policy)
        floats = whole if place is places.whole else statistics(place.graph, images, place.clips)
        model = quantize(place.graph, policy, place.clips)
        correct(model, place.graph, floats, images)
        return model

    return network


def compared(reference: nn.Module, inputs: Inputs, metric: Metric) -> Callable[..., Score]:
    """Return a function from a network to how it compares with the reference on some inputs.

    Args:
        reference: The float network.
        inputs: (N, ...), without labels.
        metric: One that needs a reference; the loss is the divergence (``kd.divergence``).
    """
    split = Frozen(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    kept = _kept_answers(reference, split)
    truth = teacher_from(reference) if kept is None else kept

    def compare(model: nn.Module, beat: float | None = None) -> Score:
        return score(model, split, quick=True, reference=truth, metric=metric)

    return compare


def fine_tune(
    model: nn.Module, graph: Graph, split: Split, *, epochs: int, recipe: Recipe, seed: int,
    on_step: OnStep | None = None, own: Graph | None = None,
) -> None:  # fmt: skip
    """Fine-tune a quantized network in place on all images of a split, augmented anew.

    Its teacher is the float network of ``graph``; ``own`` is the one it was quantized from, if that
    is another.
    """
    lesson = _Lesson(graph, own or graph, teacher_from(graph.traced))
    _train(model, split, recipe, lesson, epochs=epochs, seed=seed, on_step=on_step)


class _Lesson(NamedTuple):
    """Who teaches a network: the float network, whose answers may be known already.

    Its own graph is that of the network it was quantized from: narrower, where channels are gone.
    """

    teacher: Graph
    own: Graph
    answers: Teacher | None


def _answers_suffice(recipe: Recipe) -> bool:
    """Return whether a teacher teaches by its answers alone, which may be known already."""
    settings = recipe.distill
    if settings is None:
        return False
    return settings.names == ("kd",) and not settings.co_study and not settings.route


def _train(
    model: nn.Module, split: Split, recipe: Recipe, lesson: _Lesson, *, epochs: int, seed: int,
    on_step: OnStep | None = None,
) -> None:  # fmt: skip
    objective: Objective = labels_alone
    if recipe.distill is not None:
        teacher, own = lesson.teacher, lesson.own
        student = None if own is teacher else own.traced
        objective = distilling(
            teacher.traced, recipe.distill, answers=lesson.answers, student=student
        )
    with learned_steps(model) if recipe.learned_steps else nullcontext() as learned:
        train(
            model,
            split,
            epochs=epochs,
            lr=recipe.lr,
            seed=seed,
            weight_decay=recipe.weight_decay,
            decay="weights",
            batch=recipe.batch,
            objective=objective,
            constraint=together(held_zeros(model, lesson.own), learned),
            on_step=on_step,
        )
    if recipe.norms_images and epochs:
        measure_norms(model, split, recipe.norms_images, seed)


def policy_seed(seed: int, policy: Policy) -> int:
    """Return the seed of the evaluation of a policy in a run with ``seed``."""
    text = json.dumps([seed, sorted((name, *bits.row()) for name, bits in policy.items())])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
