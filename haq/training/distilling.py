"""A student that learns from a teacher: what is compared in a step, in which phase."""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from haq.distillation.input_gradient import input_gradient
from haq.distillation.joint import imitation_loss
from haq.distillation.kd import wide
from haq.distillation.losses import LOSSES, Compared
from haq.distillation.regressor import regressor, shape_text
from haq.distillation.route import anchor_at, files_of
from haq.distillation.settings import Distillation, as_mapping
from haq.distillation.taps import Tap, find_taps, quantizer_of, tapped
from haq.errors import HaqError
from haq.models.weights import load_weights
from haq.network.capture import evaluating
from haq.network.inputs import Inputs
from haq.network.outputs import main_tensor
from haq.training.aligned import rows_of
from haq.training.objective import (
    Batch,
    Minimized,
    Moment,
    Objective,
    Terms,
    cross_entropy,
    forward,
)
from haq.training.teacher import Teacher


class Seen(NamedTuple):
    """What of a network is compared.

    Attributes:
        logits: (N, classes).
        taps: The features of each tap.
        gradient: Of the cross-entropy with respect to the images, where it is compared.
    """

    logits: Tensor
    taps: Sequence[Tensor] = ()
    gradient: Tensor | None = None


def distilling(
    teacher: nn.Module,
    settings: Distillation,
    *,
    answers: Teacher | None = None,
    student: fx.GraphModule | None = None,
) -> Objective:
    """Return the objective of a student that learns from ``teacher``, which stays as it is.

    Args:
        teacher: Gives logits (N, classes); a captured network where features are compared or a
            copy of it is trained.
        settings: The losses, their weights and the rest.
        answers: The teacher's logits where they are known already; used where nothing else counts.
        student: The student before it was quantized, captured, where it is not a copy of the
            teacher; taps are found in it.

    Raises:
        HaqError: When the objective is made: taps do not fit, a file of the route cannot be used,
            or it has more states than the training has epochs.
    """

    def minimized(model: nn.Module, images: Callable[[], Inputs], epochs: int) -> Minimized:
        taps = checked_taps(settings, teacher, student, images)
        states = _states(teacher, settings, epochs)
        step = _Step(model, teacher, settings, taps, states, answers)
        return Minimized(step.terms, step.extra, as_mapping(settings))

    return minimized


def check_distilling(
    settings: Distillation,
    teacher: fx.GraphModule,
    images: Inputs,
    epochs: int,
    student: fx.GraphModule | None = None,
) -> None:
    """Say so, before anything is trained, if a network cannot be taught by another one.

    Args:
        settings: The losses, their weights and the rest.
        teacher: Captured.
        images: Some (N, ...).
        epochs: Of the training.
        student: Captured; None for a copy of the teacher.

    Raises:
        HaqError: As ``distilling``.
    """
    checked_taps(settings, teacher, student, lambda: images)
    _states(teacher, settings, epochs)


def checked_taps(
    settings: Distillation,
    teacher: nn.Module,
    student: nn.Module | None,
    images: Callable[[], Inputs],
) -> tuple[Tap, ...]:
    """Return where student and teacher are compared; nowhere if no loss compares features.

    Args:
        settings: The losses and the taps asked for.
        teacher: Captured, where features are compared.
        student: Captured; None for a copy of the teacher.
        images: Gives some (N, ...).

    Raises:
        HaqError: Their features do not fit the losses.
    """
    losses = {name: LOSSES[name] for name in settings.names}
    if "gradient" in losses and not _has_gradient(images()):
        raise HaqError("distill gradient: the inputs are tokens, which have no gradient")
    if {loss.compared for loss in losses.values()} <= {"logits", "input gradient"}:
        return ()
    if not isinstance(teacher, fx.GraphModule) or not isinstance(student, fx.GraphModule | None):
        raise ValueError("features are compared in captured networks alone")
    taps = find_taps(student or teacher, teacher, images()[:2], settings.taps)
    for name, loss in losses.items():
        for tap in taps:
            if loss.maps and min(map(len, tap.shapes)) < 3:
                raise HaqError(
                    f"distill {name}: it compares maps (N, C, H, W), and tap {tap.name!r} gives "
                    f"(N, {shape_text(tap.shapes[0])}); name other taps or another loss"
                )
            if loss.same_shape and len({shape[1:] for shape in tap.shapes}) > 1:
                _check_regressor(settings, name, tap)
    return taps


def _has_gradient(images: Inputs) -> bool:
    return isinstance(images, Tensor) and images.is_floating_point()


def _check_regressor(settings: Distillation, name: str, tap: Tap) -> None:
    if not settings.regressor:
        mine, its = map(shape_text, tap.shapes)
        raise HaqError(
            f"distill {name}: tap {tap.name!r} has {mine} in the student and {its} in the teacher; "
            "add regressor for a convolution between them, or name other taps"
        )
    regressor(tap.name, *tap.shapes)


def _states(teacher: nn.Module, settings: Distillation, epochs: int) -> list[nn.Module]:
    """Return the teacher at each place of its route, itself at the end."""
    states: list[nn.Module] = []
    files = [*files_of(settings.route)]
    if files and 1 < epochs <= len(files):
        raise HaqError(
            f"distill route: {len(files)} states and the teacher do not go into {epochs} epochs; "
            "give fewer states, or more epochs"
        )
    for file in files:
        states.append(copy.deepcopy(teacher))
        load_weights(states[-1], file)
    return [*states, teacher]


class _Extra(nn.Module):
    """What is trained beside the student: regressors, and in co-study a copy of the teacher."""

    def __init__(self, taps: Sequence[Tap]):
        super().__init__()
        self.regressors = nn.ModuleList(_regressor(tap) for tap in taps)
        self.teacher: nn.Module | None = None


class _Step:
    """Computes the terms of a step."""

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        settings: Distillation,
        taps: Sequence[Tap],
        states: Sequence[nn.Module],
        answers: Teacher | None,
    ):
        self.settings, self.names = settings, [tap.name for tap in taps]
        compared: set[Compared] = {LOSSES[name].compared for name in settings.names}
        self.gradients = "input gradient" in compared
        whole = bool(taps) or self.gradients or settings.co_study > 0 or len(states) > 1
        self.answers = None if whole else answers
        self.model, self.states = model, list(states)
        self.roundings: list[nn.Module] = [nn.Identity() for _ in taps]
        self.extra = _Extra(taps if settings.regressor else ())
        if taps:
            assert isinstance(model, fx.GraphModule)
            own = [tap.student for tap in taps]
            self.model = tapped(model, own, rounded=True)
            if settings.through_quantizer:
                self.roundings = [_rounding(model, tap) for tap in taps]
            its = [tap.teacher for tap in taps]
            self.states = [tapped(state, its, False) for state in states]  # type: ignore[arg-type]
        if settings.co_study:
            self.extra.teacher = copy.deepcopy(self.states[-1]).requires_grad_(True)

    def terms(self, batch: Batch, moment: Moment) -> Terms:
        """Return the terms of the loss, each times its weight; those of weight 0 are left out."""
        settings, share = self.settings, moment.share
        if share < settings.self_study:
            logits = self._seen(self.model, batch, gradient=False).logits
            return {"labels": cross_entropy(logits, batch.labels)}
        weights = {name: settings.weights[name].at(share) for name in settings.names}
        losses = [name for name, weight in weights.items() if weight > 0]
        labels = settings.labels.at(share)
        mine = self._seen(self.model, batch, self.gradients and "gradient" in losses)
        together = share < settings.self_study + settings.co_study
        its = self._taught(batch, moment, together, losses) if losses else None
        terms: Terms = {}
        if labels > 0:
            terms["labels"] = labels * cross_entropy(mine.logits, batch.labels)
        for name in losses:
            assert its is not None
            terms[name] = weights[name] * self._loss(name, mine, its, together)
        if together and its is not None:
            terms["teacher"] = cross_entropy(its.logits, batch.labels)
        return terms

    def _taught(self, batch: Batch, moment: Moment, together: bool, losses: list[str]) -> Seen:
        """Return what the teacher of this moment sees in a batch."""
        if self.answers is not None:
            answers = self.answers(batch.places, batch.images)
            return Seen(answers.to(batch.labels.device))
        gradient = "gradient" in losses
        if together:
            assert self.extra.teacher is not None
            return self._seen(self.extra.teacher, batch, gradient)
        teacher = self.extra.teacher
        if teacher is None:
            teacher = self.states[self._anchor(moment)]
        with evaluating(teacher), torch.set_grad_enabled(gradient):
            return self._seen(teacher, batch, gradient)

    def _anchor(self, moment: Moment) -> int:
        """Return which state teaches; those of an episode's one epoch share its steps."""
        done, total = moment.epoch, moment.epochs
        if total < len(self.states):
            done, total = moment.done, moment.total
        count = min(len(self.states), total)
        return len(self.states) - count + anchor_at(done, total, count)

    def _seen(self, network: nn.Module, batch: Batch, gradient: bool) -> Seen:
        images = batch.images
        if gradient:
            assert isinstance(images, Tensor)  # see checked_taps
            images = images.detach().requires_grad_()
        output = forward(network, images)
        whole, features = output if self.names and isinstance(output, tuple) else (output, ())
        logits = main_tensor(whole)
        if not gradient:
            return Seen(logits, features)
        assert isinstance(images, Tensor)
        create = network is self.model
        return Seen(logits, features, input_gradient(logits, batch.labels, images, create))

    def _loss(self, name: str, mine: Seen, its: Seen, together: bool) -> Tensor:
        settings, loss = self.settings, LOSSES[name]
        if loss.compared == "logits":
            if together:
                return imitation_loss(
                    mine.logits, its.logits, settings.temperature, settings.feedback
                )
            pair = rows_of(mine.logits), rows_of(its.logits)
            return loss.function(*pair, settings.temperature)
        if loss.compared == "input gradient":
            return loss.function(mine.gradient, its.gradient)
        own = [_channels_second(features) for features in mine.taps]
        others = [
            _channels_second(rounding(features.detach()))
            for rounding, features in zip(self.roundings, its.taps, strict=True)
        ]
        if loss.compared == "embedding":
            return loss.function(_embedding(own[-1]), _embedding(others[-1]))
        if loss.compared == "last tap":
            return loss.function(own[-1], others[-1])
        if loss.same_shape and settings.regressor:
            own = [one(wide(x)) for one, x in zip(self.extra.regressors, own, strict=True)]
        return torch.stack([loss.function(*pair) for pair in zip(own, others, strict=True)]).sum()


def _regressor(tap: Tap) -> nn.Module:
    mine, its = tap.shapes
    return nn.Identity() if mine[1:] == its[1:] else regressor(tap.name, mine, its)


def _rounding(model: fx.GraphModule, tap: Tap) -> nn.Module:
    name = quantizer_of(model, tap.student)
    if name is None:
        raise HaqError(
            f"distill through_quantizer: nothing rounds tap {tap.name!r} in the student; leave it "
            "out, or name other taps"
        )
    return model.get_submodule(name)


def _channels_second(features: Tensor) -> Tensor:
    """Return tokens (N, T, C) as (N, C, T), everything else as it is."""
    return features.transpose(1, 2) if features.dim() == 3 else features


def _embedding(features: Tensor) -> Tensor:
    """Return the mean of features (N, C, ...) over their positions, (N, C)."""
    return wide(features).flatten(2).mean(2) if features.dim() > 2 else features
