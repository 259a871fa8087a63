"""Data sets by name, each in three fixed and disjoint splits: train, val and test.

``load("cifar10:DIR")`` looks the name up in ``DATASETS``; ``load("package.module:factory")`` calls
a function of the user's own that returns the three splits.
"""

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor

from haq.datasets import cifar10, digits, folder
from haq.datasets.tensors import Data, Outline, Split, TensorSplit
from haq.errors import DataError, look_up

__all__ = [
    "DATASETS",
    "OUTLINES",
    "Data",
    "Outline",
    "Split",
    "TensorSplit",
    "check_fits",
    "from_splits",
    "load",
    "outline",
]

DATASETS: Mapping[str, Callable[[str, int, int | None], Data]] = {
    "cifar10": cifar10.load,
    "digits": digits.load,
    "folder": folder.load,
}
"""Name to a function of what follows the colon, the seed of splits, and the image size."""

OUTLINES: Mapping[str, Callable[[str, int | None], Outline]] = {
    "cifar10": cifar10.outline,
    "digits": digits.outline,
    "folder": folder.outline,
}
"""Name to a function of what follows the colon and the image size, which reads no image."""


def load(spec: str, seed: int = 0, size: int | None = None) -> Data:
    """Return the data that ``spec`` names.

    Args:
        spec: "digits", "cifar10:DIR", "folder:DIR", or "package.module:factory": a function
            without arguments that returns train, val and test, see ``from_splits``; it is
            imported with the current folder on the path.
        seed: Splits a folder that is not split yet; the splits of the others are fixed.
        size: Height and width of an image; only a folder's images are brought to it.

    Raises:
        HaqError: The name is unknown.
        DataError: What it names is missing or damaged, or its images have another size.
    """
    name, _, rest = spec.partition(":")
    if _is_factory(name, rest):
        data = from_splits(_factory(name, rest)(), spec)
    else:
        data = look_up(DATASETS, "data", name)(rest, seed, size)
    _check_size(data, size)
    return data


def outline(spec: str, size: int | None = None) -> Outline | None:
    """Return shape and classes of the data that ``spec`` names, before they are read.

    Args:
        spec: As for ``load``.
        size: As for ``load``.

    Returns:
        None for a function of the user's own, which has to be called.

    Raises:
        HaqError: The name is unknown.
        DataError: What it names is missing, or its images have another size.
    """
    name, _, rest = spec.partition(":")
    if _is_factory(name, rest):
        _factory(name, rest)
        return None
    about = look_up(OUTLINES, "data", name)(rest, size)
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


def from_splits(
    splits: Any, name: str = "data", outputs: Callable[[Tensor], int] | None = None
) -> Data:
    """Return a user's own three splits as ``Data``; nothing is augmented that was not before.

    Args:
        splits: Train, val and test. Each is a ``Split``; or a pair of inputs and labels (N,); or a
            map-style data set of (input, label), which is stacked in memory. Inputs are images
            (N, C, H, W) or anything else (N, ...): uint8, normalised already in a floating dtype,
            or integers such as tokens.
        name: For messages, and on record.
        outputs: From one input (1, ...) to how many classes there are: how many numbers the network
            gives for it. Without it, as many as the highest label of train says. A class may have
            no image.

    Returns:
        The data, its classes named 0, 1, …. On record are the mean and std of a ``TensorSplit``,
        else 0 and 1: bytes are divided by 255, floats are left alone.

    Raises:
        DataError: A split is missing, empty, of another shape or holds NaN, or a label is not that
            of a class.
    """
    if not isinstance(splits, Sequence) or len(splits) != 3:
        got = len(splits) if isinstance(splits, Sequence) else type(splits).__name__
        raise DataError(f"{name} must return three splits (train, val, test), got {got}")
    whats = [f"the {part} split of {name}" for part in ("train", "val", "test")]
    parts = [_as_split(s, what) for s, what in zip(splits, whats, strict=True)]
    shapes = [_shape(s, what) for s, what in zip(parts, whats, strict=True)]
    first, _ = parts[0].batch(torch.zeros(1, dtype=torch.int64))
    count = outputs(first) if outputs else max(int(parts[0].labels.max()) + 1, 1)
    if count > MOST_CLASSES:
        raise DataError(f"{whats[0]} has label {count - 1}; labels count the classes from 0")
    for split, shape, what in zip(parts, shapes, whats, strict=True):
        if shape != shapes[0]:
            raise DataError(f"{what} has {_times(shape)} images, {whats[0]} {_times(shapes[0])}")
        _check_labels(split.labels, count, what, given=outputs is not None)
    channels = shapes[0][0] if len(shapes[0]) == 3 else 0
    known = parts[0] if isinstance(parts[0], TensorSplit) else None
    mean = known.mean if known else (0.0,) * channels
    std = known.std if known else (1.0,) * channels
    return Data(name, tuple(map(str, range(count))), shapes[0], mean, std, *parts)


def _as_split(split: Any, what: str) -> Split:
    if callable(getattr(split, "batch", None)):
        own: Split = split
        if not len(own):
            raise DataError(f"{what} is empty")
        _integers(own.labels, what)
        return own
    is_pair = isinstance(split, Sequence) and len(split) == 2 and hasattr(split[0], "ndim")
    images, labels = split if is_pair else _stacked(split, what)
    images, labels = torch.as_tensor(images), _integers(labels, what)
    if not len(images):
        raise DataError(f"{what} is empty")
    if images.ndim < 2:
        raise DataError(
            f"{what} has inputs of shape {_times(images.shape)}; give (N, C, H, W) or (N, ...)"
        )
    if len(images) != len(labels):
        raise DataError(f"{what} has {len(images)} images and {len(labels)} labels")
    channels = images.shape[1] if images.ndim == 4 else 0
    return TensorSplit(images, labels, (0.0,) * channels, (1.0,) * channels)


def _stacked(split: Any, what: str) -> tuple[Tensor, list[Any]]:
    if not (hasattr(split, "__len__") and hasattr(split, "__getitem__")):
        raise DataError(
            f"{what} is a {type(split).__name__}; give a Split, a pair (images, labels), or a "
            "data set with a length and items (image, label)"
        )
    images: list[Tensor] = []
    labels: list[Any] = []
    for i in range(len(split)):
        item = split[i]
        if not (isinstance(item, tuple | list) and len(item) == 2 and torch.is_tensor(item[0])):
            raise DataError(f"item {i} of {what} is not a pair (image tensor, label)")
        image, label = item
        if images and image.shape != images[0].shape:
            raise DataError(
                f"image {i} of {what} is {_times(image.shape)}, image 0 {_times(images[0].shape)}; "
                "bring all to one size"
            )
        images.append(image)
        labels.append(label)
    if not images:
        raise DataError(f"{what} is empty")
    return torch.stack(images), labels


def _integers(labels: Any, what: str) -> Tensor:
    try:
        numbers = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what} has labels that are not integers: {error}") from error
    if numbers.ndim != 1:
        raise DataError(f"{what} has labels of shape {_times(numbers.shape)}; one integer an image")
    if numbers.is_floating_point() or numbers.is_complex():
        odd = numbers[numbers != numbers.round()] if numbers.is_floating_point() else numbers
        first = (odd if len(odd) else numbers)[0].item() if len(numbers) else numbers.dtype
        raise DataError(f"{what} has label {first}; labels are integers counting from 0")
    return numbers.long()


MOST_CLASSES = 100_000
"""Beyond this a label is a mistake, such as an identifier."""

_TOKENS = (torch.int32, torch.int64)


def _shape(split: Split, what: str) -> tuple[int, ...]:
    if isinstance(split, TensorSplit):
        images = split.images
        if images.dtype not in (torch.uint8, *_TOKENS) and not images.is_floating_point():
            raise DataError(
                f"{what} has {images.dtype} inputs; give uint8, floats, or int64 for tokens"
            )
    else:
        images, _ = split.batch(torch.tensor([0]))
    broken = (~torch.isfinite(images).flatten(1).all(1)).nonzero()
    if len(broken):
        raise DataError(f"image {broken[0].item()} of {what} holds NaN or infinity")
    return tuple(images.shape[1:])


def _check_labels(labels: Tensor, classes: int, what: str, given: bool) -> None:
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        at = int(wrong[0])
        why = f": the network gives {classes} outputs" if given else ""
        raise DataError(
            f"label {labels[at]} of image {at} in {what} is not in 0..{classes - 1}{why}"
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
        close = get_close_matches(name, vars(imported), n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise DataError(f"module {module} has no function {name!r}{meant}")
    return cast(Callable[[], Any], factory)
