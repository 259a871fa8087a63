"""What a user asks of a distillation: weights of losses, and how the teacher is used.

It is one mapping in Python and in a job, and one text on the command line, in which the entries
stand behind each other: ``kd:0.9+hint:1+temperature:2``. No torch is needed to read it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from haq.errors import HaqError, meant

DEFAULT: Mapping[str, Any] = {"kd": 0.9}
"""What fine-tuning does unless it is told otherwise."""

PAPERS: Mapping[str, float] = {
    "kd": 0.9, "hint": 1.0, "attention": 1000.0, "gradient": 1.0, "similarity": 3000.0,
    "distance": 25.0, "angle": 50.0,
}  # fmt: skip
"""Weights that losses have where none is given: those of the papers."""

NAMES = tuple(PAPERS)
"""Of the losses, as in ``haq.distillation.losses.LOSSES``."""


OF_FEATURES = ("hint", "attention", "similarity", "distance", "angle")
"""Those that compare features, which taps give."""


class Weight(NamedTuple):
    """Of a term of the loss: at the first step and at the last, linear between them."""

    first: float
    last: float

    def at(self, share: float) -> float:
        """Return the weight when a share in [0, 1] of the training is over."""
        return self.first + (self.last - self.first) * share


@dataclass(frozen=True)
class Distillation:
    """How a student learns from its teacher.

    The loss is the sum of the terms times their weights. A term whose weight is 0 is not computed.

    Attributes:
        weights: Of each loss, by name.
        labels: Of the cross-entropy with the labels; 0 needs none. Unless it is given, it is what
            the weight of kd leaves to 1.
        temperature: Of kd's softened distributions.
        taps: Modules whose outputs are compared, as NAME or STUDENT=TEACHER; empty for the last
            output of each resolution.
        regressor: Whether a convolution brings the student's features to the teacher's shape where
            they differ; it is thrown away afterwards.
        through_quantizer: Whether the teacher's features are rounded as the student's are before
            they are compared.
        self_study: Share of the training, at its start, in which the labels alone count.
        co_study: Share of the training, behind self-study, in which a copy of the teacher is
            trained too; that copy teaches in the rest.
        feedback: In co-study, how much of the student's answers reaches that copy, in [0, 1].
        route: Files with the weights of the teacher on its way, from easy to hard, which teach one
            after the other before the teacher does; or a folder of such files.
    """

    weights: Mapping[str, Weight]
    labels: Weight
    temperature: float = 4.0
    taps: tuple[str, ...] = ()
    regressor: bool = False
    through_quantizer: bool = False
    self_study: float = 0.0
    co_study: float = 0.0
    feedback: float = 0.0
    route: tuple[str, ...] = field(default=())

    @property
    def names(self) -> tuple[str, ...]:
        """The losses that are computed at some time."""
        return tuple(name for name, weight in self.weights.items() if any(weight))


_OPTIONS = tuple(Distillation.__dataclass_fields__)[2:]
_SHARES = ("self_study", "co_study", "feedback")
_LISTS = ("taps", "route")
_FLAGS = ("regressor", "through_quantizer")


def read_distillation(asked: bool | str | Mapping[str, Any]) -> dict[str, Any]:
    """Return what is asked for as a mapping that JSON can hold; empty where there is no teacher.

    Args:
        asked: True for ``DEFAULT``, False for no teacher, a mapping, or a text.

    Raises:
        HaqError: Something in it is unknown or out of range.

    >>> read_distillation("kd:0.9..0.3+hint+taps:layer1,layer2")
    {'kd': [0.9, 0.3], 'hint': 1.0, 'taps': ['layer1', 'layer2']}
    """
    if isinstance(asked, bool):
        return dict(DEFAULT) if asked else {}
    entries = _entries(asked) if isinstance(asked, str) else dict(asked)
    if entries:
        distillation_of(entries)
    return {name: _plain(value) for name, value in entries.items()}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _entries(text: str) -> dict[str, Any]:
    if text.strip() == "none":
        return {}
    entries: dict[str, Any] = {}
    for part in text.split("+"):
        name, colon, value = (piece.strip() for piece in part.partition(":"))
        name = name.replace("-", "_")
        _check_name(name)
        if name in entries:
            raise HaqError(f"distill {text!r}: {name} stands there twice; give it once")
        entries[name] = _value(name, value) if colon else _bare(name)
    return entries


def _bare(name: str) -> Any:
    if name in _FLAGS:
        return True
    if name in NAMES:
        return PAPERS[name]
    raise HaqError(f"distill {name}: write {name}:VALUE")


def _value(name: str, text: str) -> Any:
    if name in _LISTS:
        return [piece.strip() for piece in text.split(",")]
    if name in _FLAGS:
        raise HaqError(f"distill {name}:{text}: {name} stands alone; leave :{text} out")
    try:
        first, dots, last = text.partition("..")
        return [float(first), float(last)] if dots else float(text)
    except ValueError:
        raise HaqError(
            f"distill {name}:{text}: write a number, or FIRST..LAST for one that changes"
        ) from None


def distillation_of(entries: Mapping[str, Any]) -> Distillation:
    """Return the settings that a mapping stands for.

    Raises:
        HaqError: Something in it is unknown or out of range, or it has no loss.
    """
    for name in entries:
        _check_name(name)
    weights = {name: _weight(name, entries[name]) for name in NAMES if name in entries}
    if not any(any(weight) for weight in weights.values()):
        raise HaqError(
            f"distill {_shown(entries)}: no loss has a weight; give one such as kd:0.9, or none "
            "for labels alone"
        )
    options = {name: _option(name, entries[name]) for name in _OPTIONS if name in entries}
    kd = weights.get("kd", Weight(0, 0))
    labels = Weight(*(max(0.0, 1 - value) for value in kd))
    if "labels" in entries:
        labels = _weight("labels", entries["labels"])
    settings = Distillation(weights, labels, **options)
    _check_used(entries, settings)
    _check_together(settings)
    return settings


def _check_name(name: str) -> None:
    known = (*NAMES, "labels", *_OPTIONS)
    if name not in known:
        raise HaqError(
            f"unknown distillation {name!r}{meant(name, known)} (losses: {', '.join(NAMES)}; "
            f"beside them: {', '.join(('labels', *_OPTIONS))})"
        )


def _weight(name: str, value: Any) -> Weight:
    pair = value if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    numbers = [_number(part) for part in pair]
    if len(numbers) != 2 or not all(0 <= number < math.inf for number in numbers):
        raise HaqError(
            f"distill {name}:{_text(value)}: a weight is a finite number, 0 or more, or two: the "
            "first and the last"
        )
    return Weight(*numbers)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else -1.0


def _option(name: str, value: Any) -> Any:
    if name in _FLAGS:
        if not isinstance(value, bool):
            raise HaqError(f"distill {name}:{_text(value)}: give true or false")
        return value
    if name in _LISTS:
        names = [value] if isinstance(value, str) else list(value)
        if not names or not all(isinstance(part, str) and part for part in names):
            raise HaqError(f"distill {name}:{_text(value)}: give names, with commas between them")
        return tuple(names)
    number = _number(value)
    if name in _SHARES and not 0 <= number <= 1:
        raise HaqError(f"distill {name}:{_text(value)}: it is a share, from 0 to 1")
    if name == "temperature" and not 0 < number < math.inf:
        raise HaqError(f"distill {name}:{_text(value)}: a temperature is a finite number above 0")
    return number


def _check_used(entries: Mapping[str, Any], settings: Distillation) -> None:
    """Refuse what would change nothing."""
    if "temperature" in entries and "kd" not in settings.names:
        raise HaqError("distill temperature: it softens the answers of kd; give kd too")
    if not set(settings.names) & set(OF_FEATURES):
        for name in ("taps", "regressor", "through_quantizer"):
            if entries.get(name):
                raise HaqError(
                    f"distill {name}: it is of features; give a loss of them ("
                    f"{', '.join(OF_FEATURES)}) too, or leave it out"
                )
    for tap in settings.taps:
        if settings.taps.count(tap) > 1:
            raise HaqError(f"distill taps: {tap} stands there twice; give it once")


def _check_together(settings: Distillation) -> None:
    if settings.self_study + settings.co_study > 1:
        raise HaqError(
            f"distill self_study:{settings.self_study:g} and co_study:{settings.co_study:g} are "
            "more than the whole training; their sum is at most 1"
        )
    studies = settings.self_study > 0 or settings.co_study > 0
    if studies and not any(settings.labels):
        raise HaqError("distill: without labels nothing can be studied alone; give labels a weight")
    if settings.co_study and "kd" not in settings.names:
        raise HaqError("distill co_study: teacher and student meet in their answers; give kd too")
    if settings.feedback and not settings.co_study:
        raise HaqError("distill feedback: it reaches a teacher in co-study; give co_study too")
    if settings.route and settings.co_study:
        raise HaqError("distill route: its teachers are not trained; leave co_study or route out")


def _shown(entries: Mapping[str, Any]) -> str:
    return "+".join(f"{name}:{_text(value)}" for name, value in entries.items()) or "''"


def _text(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "..".join(map(str, value))
    return str(value)


def as_mapping(settings: Distillation) -> dict[str, Any]:
    """Return settings as plain values, for what has to tell one training from another."""
    return asdict(settings)
