"""A folder of photographs: one folder of images per class, decoded as they are needed.

Either ``DIR/train/CLASS``, ``DIR/val/CLASS`` and ``DIR/test/CLASS``, or ``DIR/CLASS``, which is
split 70 : 15 : 15 from a seed, stratified by class.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from haq.datasets.tensors import (
    AS_IT_IS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    UNDECODABLE,
    Data,
    Outline,
    Reading,
    decode,
    flip,
    normalise,
    stratify,
)
from haq.errors import DataError

PARTS = ("train", "val", "test")
THREADS = min(4, os.cpu_count() or 1)
AREA = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge, in pixels."""


@dataclass(frozen=True, eq=False, repr=False)
class FolderSplit:
    """A split whose images lie in files.

    Attributes:
        paths: The file of every image, or what it holds.
        labels: (N,) int64.
        size: Height and width that the images are brought to.
        mean: Subtracted from x / 255.
        std: Divided by afterwards.
    """

    paths: tuple[Path | bytes, ...]
    labels: Tensor
    size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __len__(self) -> int:
        return len(self.paths)

    def batch(
        self, index: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the images (B, 3, size, size) and labels (B,) at ``index``, see ``Split``.

        Without a generator the middle of the image; with one a random part of it, of 8 to 100 %
        of its area and 3:4 to 4:3 in shape, mirrored with probability 1/2.

        Raises:
            DataError: A file is not a whole image.
        """
        chosen = [self.paths[i] for i in index.tolist()]
        draws = None if generator is None else torch.rand(len(chosen), 4, generator=generator)
        with ThreadPoolExecutor(THREADS) as pool:
            pixels = list(
                pool.map(
                    lambda path, draw: _pixels(path, self.size, draw),
                    chosen,
                    [None] * len(chosen) if draws is None else draws.tolist(),
                )
            )
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)  # (B, 3, size, size)
        if generator is not None:
            images = flip(images, generator)
        return normalise(images, self.mean, self.std), self.labels[index]


def _pixels(path: Path | bytes, size: int, draw: Sequence[float] | None) -> NDArray[np.uint8]:
    image = decode(path, f"image {path}" if isinstance(path, Path) else "an image")
    box = middle(*image.size, size) if draw is None else part(*image.size, draw)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def middle(width: int, height: int, size: int) -> Box:
    """Return the square in the middle of an image that becomes ``size`` x ``size``.

    Up to 64 pixels its side is the image's shorter side; above, 224/256 of it, as is usual.

    >>> middle(512, 256, 224)
    (144.0, 16.0, 368.0, 240.0)
    """
    side = min(width, height) * (1 if size <= 64 else 224 / 256)
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def part(width: int, height: int, draw: Sequence[float]) -> Box:
    """Return the part of an image that four numbers in [0, 1) choose.

    Where its shape does not fit into the image it is cut to the image's width or height.

    Args:
        width: Of the image.
        height: Of the image.
        draw: For area, shape (evenly in the logarithm), place across and place down.

    Source: Szegedy et al., "Going deeper with convolutions", arXiv:1409.4842, section 6.

    >>> part(100, 50, [1.0, 0.5, 0.0, 0.0])
    (0.0, 0.0, 70.71067811865476, 50.0)
    """
    area, shape, across, down = draw
    pixels = width * height * (AREA[0] + area * (AREA[1] - AREA[0]))
    ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** shape
    wide, high = min(width, math.sqrt(pixels * ratio)), min(height, math.sqrt(pixels / ratio))
    left, upper = across * (width - wide), down * (height - high)
    return left, upper, left + wide, upper + high


def load(where: str, seed: int = 0, size: int | None = None, reading: Reading = AS_IT_IS) -> Data:
    """Return the images in the folder ``where``, brought to ``size`` x ``size``, in RGB.

    Args:
        where: A directory with ``train``, ``val`` and ``test`` holding a folder per class each, or
            with a folder per class.
        seed: Splits the images of the second kind: 70 : 15 : 15 in every class, one at least.
        size: Height and width; those of the reading unless given, or 224.
        reading: Size, mean and std that a model asks for; ImageNet's mean and std without them.

    Raises:
        DataError: A folder is missing or empty, a class is known to one split only, or a file is
            not an image.
    """
    root, size = _root(where), _side(reading.size if size is None else size)
    classes, parts = _presplit(root) if _is_presplit(root) else _split(root, seed)
    mean, std = reading.mean or IMAGENET_MEAN, reading.std or IMAGENET_STD
    train, val, test = (FolderSplit(paths, torch.tensor(y), size, mean, std) for paths, y in parts)
    return Data("folder", classes, (3, size, size), mean, std, train, val, test)


def outline(where: str, size: int | None = None, reading: Reading = AS_IT_IS) -> Outline:
    """Return shape and classes of the images in a folder, of which none is opened.

    Args:
        where: As for ``load``.
        size: As for ``load``.
        reading: As for ``load``.

    Raises:
        DataError: The folder is missing, or has no classes.
    """
    root, size = _root(where), _side(reading.size if size is None else size)
    folders = _class_folders(root / "train" if _is_presplit(root) else root)
    classes = tuple(folder.name for folder in folders)
    mean, std = reading.mean or IMAGENET_MEAN, reading.std or IMAGENET_STD
    return Outline("folder", classes, (3, size, size), mean, std)


def _root(where: str) -> Path:
    if not where:
        raise DataError("folder needs a directory: folder:DIR, where DIR holds a folder per class")
    root = Path(where).expanduser()
    if not root.is_dir():
        raise DataError(f"folder: no such directory: {root}")
    return root


def _side(size: int | None) -> int:
    size = 224 if size is None else size
    if size < 1:
        raise DataError(f"folder: size {size} is not positive")
    return size


def _is_presplit(root: Path) -> bool:
    return any((root / part).is_dir() for part in PARTS)


Parts = tuple[tuple[str, ...], list[tuple[tuple[Path, ...], list[int]]]]
"""The classes, and for train, val and test the files and their labels."""


def _presplit(root: Path) -> Parts:
    missing = [p for p in PARTS if not (root / p).is_dir()]
    if missing:
        raise DataError(
            f"{root} has no folder {missing[0]}; give train, val and test, or a folder per class"
        )
    trees = [_classes(root / p) for p in PARTS]
    classes = tuple(trees[0])
    for p, tree in zip(PARTS, trees, strict=True):
        unknown = sorted(set(tree) - set(classes))
        if unknown:
            raise DataError(
                f"class {unknown[0]!r} in {root / p} is unknown to train (known: "
                f"{', '.join(classes)}); add it there or remove it"
            )
    return classes, [_listed(tree, classes) for tree in trees]


def _split(root: Path, seed: int) -> Parts:
    tree = _classes(root)
    classes = tuple(tree)
    paths, labels = _listed(tree, classes)
    rows = stratify(np.array(labels), seed, val_share=0.15, test_share=0.15)
    if not len(rows[2]):
        raise DataError(f"no class in {root} has three images, one each for train, val and test")
    return classes, [(tuple(paths[i] for i in r), [labels[i] for i in r]) for r in rows]


def _listed(
    tree: dict[str, list[Path]], classes: Sequence[str]
) -> tuple[tuple[Path, ...], list[int]]:
    pairs = [(path, label) for label, name in enumerate(classes) for path in tree.get(name, [])]
    return tuple(path for path, _ in pairs), [label for _, label in pairs]


def _classes(place: Path) -> dict[str, list[Path]]:
    return {folder.name: _images(folder) for folder in _class_folders(place)}


def _class_folders(place: Path) -> list[Path]:
    if not place.is_dir():
        raise DataError(f"folder: no such directory: {place}")
    folders = sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DataError(f"{place} has no class folders; give each class a folder of images")
    return folders


def _images(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    if not files:
        raise DataError(f"class {folder.name!r} has no images in {folder}; add some or remove it")
    with ThreadPoolExecutor(THREADS) as pool:
        for path, is_image in zip(files, pool.map(_is_image, files), strict=True):
            if not is_image:
                raise DataError(f"{path} is not an image; remove it from the class folder")
    return files


def _is_image(path: Path) -> bool:
    try:
        with Image.open(path):  # reads the header only
            return True
    except UNDECODABLE:
        return False
