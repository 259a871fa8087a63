"""The 1797 handwritten digits of UCI, as scikit-learn has them: 8 x 8 pixels, in the package."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haq.datasets.tensors import AS_IT_IS, Data, Outline, Reading, TensorSplit, shift, stratify
from haq.errors import DataError

FILE = Path(__file__).with_name("digits.npz")
"""Pixels (1797, 8, 8) from 0 to 16 and labels (1797,), bytes."""

CLASSES = tuple("0123456789")
SHAPE = (1, 8, 8)
MEAN = (0.288,)
STD = (0.354,)
SEED = 0  # of the splits, which are the same in every run


def load(
    where: str = "", seed: int = 0, size: int | None = None, reading: Reading = AS_IT_IS
) -> Data:
    """Return the digits in three fixed splits, about 60 : 20 : 20, stratified by class.

    Pixels count from 0 to 16 in the source; here they are bytes, ``15 * value``. Training images
    move by up to one pixel and are never mirrored.

    Args:
        where: Must be empty.
        seed: Not used: the splits are fixed.
        size: Not used: the images are 8 x 8.
        reading: Not used.

    Raises:
        DataError: ``where`` is not empty.

    Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI, 1998, CC BY 4.0;
    these are its 1797 test images.
    """
    outline(where)
    with np.load(FILE) as source:
        images = torch.from_numpy(15 * source["images"]).unsqueeze(1)  # (1797, 1, 8, 8)
        labels = source["labels"].astype(np.int64)

    def split(rows: NDArray[np.int64]) -> TensorSplit:
        return TensorSplit(images[rows], torch.from_numpy(labels[rows]), MEAN, STD, augment)

    train, val, test = (split(r) for r in stratify(labels, SEED, val_share=0.2, test_share=0.2))
    return Data("digits", CLASSES, SHAPE, MEAN, STD, train, val, test)


def outline(where: str = "", size: int | None = None, reading: Reading = AS_IT_IS) -> Outline:
    """Return shape and classes of the digits.

    Raises:
        DataError: ``where`` is not empty.
    """
    if where:
        raise DataError(f"digits are embedded: give 'digits', not 'digits:{where}'")
    return Outline("digits", CLASSES, SHAPE, MEAN, STD)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images (B, 1, 8, 8) moved by up to one pixel; background comes in."""
    return shift(images, generator, pixels=1)
