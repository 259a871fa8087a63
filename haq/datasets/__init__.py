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
from typing import Any

import torch
from torch import Tensor

from haq.datasets import cifar10, digits, folder
from haq.datasets.tensors import Data, Split, TensorSplit
from haq.errors import DataError, look_up

__all__ = ["DATASETS", "Data", "Split", "TensorSplit", "check_fits", "from_splits", "load"]

DATASETS: Mapping[str, Callable[[str, int, int | None], Data]] = {
    "cifar10": cifar10.load,
    "digits": digits.load,
    "folder": folder.load,
}
"""Name to a function of what follows the colon, the seed of splits, and the image size."""


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
    if name not in DATASETS and rest and _is_module(name):
        data = from_splits(_factory(name, rest)(), spec)
    else:
        data = look_up(DATASETS, "data", name)(rest, seed, size)
    if size is not None and data.shape[1:] != (size, size):
        raise DataError(
            f"{data.name} gives {_times(data.shape)} images, not {size}x{size}; "
            "only folder:DIR brings images to another size"
        )
    return data


def check_fits(data: Data, model: str, shape: Sequence[int] | None) -> None:
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


def from_splits(splits: Any, name: str = "data") -> Data:
    """Return a user's own three splits as ``Data``; nothing is augmented that was not before.

    Args:
        splits: Train, val and test. Each is a ``Split``; or a pair of images (N, C, H, W), uint8
            or normalised already in a floating dtype, and labels (N,); or a map-style data set
            of (image (C, H, W), label), which is stacked in memory.
        name: For messages, and on record.

    Returns:
        The data, its classes named after the labels 0, 1, … of train. On record are the mean and
        std of a ``TensorSplit``, else 0 and 1: bytes are divided by 255, floats are left alone.

    Raises:
        DataError: A split is missing, empty, of another shape or holds NaN, or labels do not
            count from 0 without a gap in train, or train does not have one of val or test.
    """
    if not isinstance(splits, Sequence) or len(splits) != 3:
        got = len(splits) if isinstance(splits, Sequence) else type(splits).__name__
        raise DataError(f"{name} must return three splits (train, val, test), got {got}")
    whats = [f"the {part} split of {name}" for part in ("train", "val", "test")]
    made = [_as_split(s, what) for s, what in zip(splits, whats, strict=True)]
    shapes = [_shape(s, what) for s, what in zip(made, whats, strict=True)]
    classes = _classes(made[0].labels, whats[0])
    for split, shape, what in zip(made, shapes, whats, strict=True):
        if shape != shapes[0]:
            raise DataError(f"{what} has {_times(shape)} images, {whats[0]} {_times(shapes[0])}")
        _check_labels(split.labels, len(classes), what)
    channels = shapes[0][0]
    known = made[0] if isinstance(made[0], TensorSplit) else None
    mean = known.mean if known else (0.0,) * channels
    std = known.std if known else (1.0,) * channels
    return Data(name, classes, shapes[0], mean, std, *made)


def _as_split(split: Any, what: str) -> Split:
    if callable(getattr(split, "batch", None)):
        made: Split = split
        if not len(made):
            raise DataError(f"{what} is empty")
        _integers(made.labels, what)
        return made
    is_pair = isinstance(split, Sequence) and len(split) == 2 and hasattr(split[0], "ndim")
    images, labels = split if is_pair else _stacked(split, what)
    images, labels = torch.as_tensor(images), _integers(labels, what)
    if not len(images):
        raise DataError(f"{what} is empty")
    if images.ndim != 4:
        raise DataError(f"{what} has images of shape {_times(images.shape)}, not NxCxHxW")
    if len(images) != len(labels):
        raise DataError(f"{what} has {len(images)} images and {len(labels)} labels")
    channels = images.shape[1]
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
        made = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what} has labels that are not integers: {error}") from error
    if made.ndim != 1:
        raise DataError(f"{what} has labels of shape {_times(made.shape)}; one integer an image")
    if made.is_floating_point() or made.is_complex():
        odd = made[made != made.round()] if made.is_floating_point() else made
        first = (odd if len(odd) else made)[0].item() if len(made) else made.dtype
        raise DataError(f"{what} has label {first}; labels are integers counting from 0")
    return made.long()


def _shape(split: Split, what: str) -> tuple[int, int, int]:
    if isinstance(split, TensorSplit):
        images = split.images
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise DataError(f"{what} has {images.dtype} images; give uint8 or a floating dtype")
    else:
        images, _ = split.batch(torch.tensor([0]))
    broken = (~torch.isfinite(images).flatten(1).all(1)).nonzero()
    if len(broken):
        raise DataError(f"image {broken[0].item()} of {what} holds NaN or infinity")
    channels, height, width = images.shape[1:]
    return channels, height, width


def _classes(labels: Tensor, what: str) -> tuple[str, ...]:
    present = torch.unique(labels).tolist()
    gap = next((i for i, label in enumerate(present) if i != label), None)
    if present[0] >= 0 and gap is not None:
        raise DataError(f"class {gap} is empty: {what} has no image of it, but of {present[-1]}")
    return tuple(map(str, present))


def _check_labels(labels: Tensor, classes: int, what: str) -> None:
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        at = int(wrong[0])
        raise DataError(f"label {labels[at]} of image {at} in {what} is not in 0..{classes - 1}")


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
        found = importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"data {module}:{name} cannot be imported: {error}") from error
    factory = getattr(found, name, None)
    if not callable(factory):
        close = get_close_matches(name, vars(found), n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise DataError(f"module {module} has no function {name!r}{meant}")
    made: Callable[[], Any] = factory
    return made
