"""The models that can be asked for by name; any other is a ``package.module:factory``.

A new model is a function and a line in ``MODELS``. Names with a prefix, such as
"torchvision:resnet50", are those of other libraries: see ``haq.models.sources``.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from haq.errors import ModelError, look_up, meant
from haq.models.mobilenet import mobilenet_v1, mobilenet_v2
from haq.models.resnet import resnet18, resnet50
from haq.models.resnet_cifar import resnet_cifar
from haq.models.small import digits_cnn, digits_mlp
from haq.models.sources import Wanted, about, named

CLASSES = range(2, 100_001)
"""How many classes a model may tell apart."""

MIN_WIDTH, MAX_WIDTH = 0.1, 4.0
"""Bounds of the width multiplier, both included."""


@dataclass(frozen=True)
class ModelSpec:
    """What ``build`` needs to know about a model.

    Attributes:
        make: Called with the number of classes, the width multiplier and the size of the images.
        classes: Outputs where nothing else is asked for.
        channels: Of the images: 3, or 1 for grey ones.
        size: Height and width of the images where nothing else is asked for, in pixels.
        sizes: Every size the model takes.
        has_width: Whether the family has a width multiplier.
    """

    make: Callable[[int, float, int], nn.Module]
    classes: int
    channels: int
    size: int
    sizes: Sequence[int]
    has_width: bool = False


def _cifar(depth: int) -> ModelSpec:
    def make(classes: int, width: float, size: int) -> nn.Module:
        return resnet_cifar(depth, classes)

    return ModelSpec(make, classes=10, channels=3, size=32, sizes=range(8, 257))


def _resnet(factory: Callable[[int], nn.Module]) -> ModelSpec:
    def make(classes: int, width: float, size: int) -> nn.Module:
        return factory(classes)

    return ModelSpec(make, classes=1000, channels=3, size=224, sizes=range(32, 1025))


def _mobilenet(factory: Callable[[int, float, int], nn.Module]) -> ModelSpec:
    return ModelSpec(factory, 1000, channels=3, size=224, sizes=(32, 224), has_width=True)


def _digits(factory: Callable[[int], nn.Module]) -> ModelSpec:
    def make(classes: int, width: float, size: int) -> nn.Module:
        return factory(classes)

    return ModelSpec(make, classes=10, channels=1, size=8, sizes=(8,))


MODELS = {
    "resnet20": _cifar(20),
    "resnet32": _cifar(32),
    "resnet44": _cifar(44),
    "resnet56": _cifar(56),
    "mobilenet_v1": _mobilenet(mobilenet_v1),
    "mobilenet_v2": _mobilenet(mobilenet_v2),
    "resnet18": _resnet(resnet18),
    "resnet50": _resnet(resnet50),
    "digits_cnn": _digits(digits_cnn),
    "digits_mlp": _digits(digits_mlp),
}


def build(
    name: str,
    classes: int | None = None,
    width: float = 1.0,
    size: int | None = None,
    metric: str | None = None,
) -> nn.Module:
    """Return a freshly initialised model; its weights come from torch's current random state.

    Args:
        name: One of ``MODELS``, or a name with a prefix of ``haq.models.sources.SOURCES``, whose
            weights may come with it, or "package.module:factory", a function that returns an
            ``nn.Module``; it is imported with the current folder on the path and called without
            arguments, or with ``classes=`` where it has such a parameter and ``classes`` is given.
        classes: Outputs of the model; the model's own default where it is None.
        width: Multiplies the channels of the MobileNets, from 0.1 to 4.
        size: Height and width of the images in pixels; the model's own default where it is None.
            A factory does not see it.
        metric: Name of what it will be scored by, which decides where a folder does not say what
            it is for.

    Raises:
        HaqError: No model has this name.
        ModelError: The model cannot be had with this number of classes, width or size, or the
            factory cannot be found, cannot be called or does not return an ``nn.Module``.
    """
    if classes is not None and (isinstance(classes, bool) or classes not in CLASSES):
        raise ModelError(
            f"a model cannot have {classes} classes; give {CLASSES[0]} to {CLASSES[-1]}"
        )
    if ":" in name:
        _check_width(name, width, has_width=False)
        other = named(name)
        if other is None:
            return _from_factory(name, classes)
        return other.source.build(other.rest, Wanted(classes, size, metric))
    spec = look_up(MODELS, "model", name)
    _check_width(name, width, spec.has_width)
    return spec.make(spec.classes if classes is None else classes, width, _size(name, size))


def check_known(name: str) -> None:
    """Refuse a name that no model has, before anything is built.

    Raises:
        HaqError: There is no such model; or the module of a factory cannot be imported, or does not
            have it.
    """
    if ":" not in name:
        look_up(MODELS, "model", name)
    elif named(name) is None:
        _factory(name)


def input_shape(name: str, size: int | None = None) -> tuple[int, ...] | None:
    """Return channels, height and width of the images a model takes; None where nobody knows.

    That is the case for a factory, and for networks that take something else than images.

    Args:
        name: As for ``build``.
        size: As for ``build``.

    Raises:
        HaqError: No model has this name.
        ModelError: The model does not take images of this size.

    >>> input_shape("resnet20")
    (3, 32, 32)
    """
    if ":" in name:
        card = about(name)
        shape = card.shape if card else None
        return shape if shape is None or size is None else (*shape[:-2], size, size)
    pixels = _size(name, size)
    return look_up(MODELS, "model", name).channels, pixels, pixels


def _size(name: str, size: int | None) -> int:
    spec = look_up(MODELS, "model", name)
    if size is None:
        return spec.size
    if size not in spec.sizes:
        if isinstance(spec.sizes, range):
            known = f"{spec.sizes[0]} to {spec.sizes[-1]}"
        else:
            known = " or ".join(str(s) for s in spec.sizes)
        raise ModelError(f"{name} does not take images of size {size}; give {known}")
    return size


def _check_width(name: str, width: float, has_width: bool) -> None:
    if not has_width and width != 1:
        known = ", ".join(sorted(name for name, spec in MODELS.items() if spec.has_width))
        raise ModelError(f"{name} has no width {width:g}: only {known} have a width multiplier")
    if not MIN_WIDTH <= width <= MAX_WIDTH:
        raise ModelError(f"width {width:g} is out of range; give {MIN_WIDTH:g} to {MAX_WIDTH:g}")


def _from_factory(name: str, classes: int | None) -> nn.Module:
    factory = _factory(name)
    takes_classes = "classes" in _parameters(factory)
    given = {"classes": classes} if takes_classes and classes is not None else {}
    needed = [
        parameter.name
        for parameter in _parameters(factory).values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and parameter.name not in given
    ]
    if needed:
        raise ModelError(
            f"{name} cannot be called without {', '.join(needed)}: give each parameter a default"
            + (", or the number of classes" if needed == ["classes"] else "")
        )
    model = factory(**given)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except ValueError:  # some built-in functions have no signature
        return {}


def _factory(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise ModelError(f"model {name!r} cannot be read; write package.module:factory")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that is there but imports something missing is the user's own bug: let it show.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ModelError(
            f"no module {error.name!r} for model {name!r}: install it, or start where it can be "
            "imported"
        ) from error
    try:
        factory: Callable[..., Any] = getattr(module, attribute)
    except AttributeError as error:
        raise ModelError(
            f"module {module_name!r} has no {attribute!r}{meant(attribute, dir(module))}"
        ) from error
    if not callable(factory):
        raise ModelError(
            f"{name} is of type {type(factory).__name__} and cannot be called; name a function "
            "that returns a torch.nn.Module"
        )
    return factory
