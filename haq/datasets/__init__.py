"""Data sets by name, each in three fixed and disjoint splits: train, val and test.

``load("cifar10:DIR")`` looks the name up in ``DATASETS``; ``load("package.module:factory")`` calls
a function of the user's own that returns the three splits.
"""

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, cast

from haq.datasets import arrow, cifar10, digits, folder, text
from haq.datasets.splits import from_splits
from haq.datasets.tensors import AS_IT_IS, Data, Outline, Reading, Split, TensorSplit
from haq.errors import DataError, look_up, meant

__all__ = [
    "DATASETS",
    "OUTLINES",
    "Data",
    "Outline",
    "Reading",
    "Split",
    "TensorSplit",
    "check_fits",
    "from_splits",
    "load",
    "outline",
]

DATASETS: Mapping[str, Callable[[str, int, int | None, Reading], Data]] = {
    "cifar10": cifar10.load,
    "dataset": arrow.load,
    "digits": digits.load,
    "folder": folder.load,
    "text": text.load,
}
"""Name to a function of what follows the colon, the seed of splits, the image size and what the
model asks for."""

OUTLINES: Mapping[str, Callable[[str, int | None, Reading], Outline]] = {
    "cifar10": cifar10.outline,
    "digits": digits.outline,
    "folder": folder.outline,
}
"""Name to a function of what follows the colon, the image size and what the model asks for, which
reads no image; data without such a function are read."""


def load(spec: str, seed: int = 0, size: int | None = None, reading: Reading = AS_IT_IS) -> Data:
    """Return the data that ``spec`` names.

    Args:
        spec: "digits", "cifar10:DIR", "folder:DIR", "dataset:DIR", "text:FILE", or
            "package.module:factory": a function without arguments that returns train, val and test,
            see ``from_splits``; it is imported with the current folder on the path.
        seed: Splits a folder that is not split yet; the splits of the others are fixed.
        size: Height and width of an image; only images from files are brought to it.
        reading: What the model asks for: size, mean and std of images from files, tokenizer and
            length of text.

    Raises:
        HaqError: The name is unknown.
        DataError: What it names is missing or damaged, or its images have another size.
    """
    name, _, rest = spec.partition(":")
    if _is_factory(name, rest):
        data = from_splits(_factory(name, rest)(), spec)
    else:
        data = look_up(DATASETS, "data", name)(rest, seed, size, reading)
    _check_size(data, size)
    return data


def outline(spec: str, size: int | None = None, reading: Reading = AS_IT_IS) -> Outline | None:
    """Return shape and classes of the data that ``spec`` names, before they are read.

    Args:
        spec: As for ``load``.
        size: As for ``load``.
        reading: As for ``load``.

    Returns:
        None for a function of the user's own, which has to be called, and for text and tables,
        which have to be read.

    Raises:
        HaqError: The name is unknown.
        DataError: What it names is missing, or its images have another size.
    """
    name, _, rest = spec.partition(":")
    if _is_factory(name, rest):
        _factory(name, rest)
        return None
    look_up(DATASETS, "data", name)
    if name not in OUTLINES:
        return None
    about = OUTLINES[name](rest, size, reading)
    _check_size(about, size)
    return about


def _check_size(data: Data | Outline, size: int | None) -> None:
    if size is not None and data.shape[1:] != (size, size):
        raise DataError(
            f"{data.name} gives {_times(data.shape)} images, not {size}x{size}; "
            "only folder:DIR brings images to another size"
        )


def _is_factory(name: str, rest: str) -> bool:
    return name not in DATASETS and bool(rest) and _is_module(name)


def check_fits(data: Data | Outline, model: str, shape: Sequence[int] | None) -> None:
    """Check that the images have the shape that a model takes.

    Args:
        data: The images.
        model: Name of the model, for the message.
        shape: Channels, height and width that it takes; None where nobody knows.

    Raises:
        DataError: They have another one.
    """
    if shape is not None and tuple(shape) != data.shape:
        raise DataError(
            f"model {model} takes {_times(shape)} images, {data.name} gives {_times(data.shape)}"
        )


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _is_module(name: str) -> bool:
    if not all(part.isidentifier() for part in name.split(".")):
        return False
    if os.getcwd() not in sys.path:  # as with python -m: the user's own module lies here
        sys.path.insert(0, os.getcwd())
    return "." in name or find_spec(name) is not None


def _factory(module: str, name: str) -> Callable[[], Any]:
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"data {module}:{name} cannot be imported: {error}") from error
    factory = getattr(imported, name, None)
    if not callable(factory):
        raise DataError(f"module {module} has no function {name!r}{meant(name, vars(imported))}")
    return cast(Callable[[], Any], factory)
