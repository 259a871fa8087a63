"""Images as tensors: what a split is, one that lies in memory, and its augmentation.

Every split speaks the same formula: pixels are bytes, and a batch is ``(x / 255 - mean) / std``.
Augmentation draws all its numbers from the generator that ``batch`` is given, so the same
generator gives the same batch; without a generator nothing is augmented.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from haq.errors import DataError
from haq.network.inputs import Batch, Inputs, InputShape

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

UNDECODABLE = (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError)
"""What Pillow raises for damaged images."""

Labels = Literal["classes", "tokens", "pixels", "none"]
"""What has a label: an input as a whole, each token, each pixel, or nothing."""

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Images (B, C, H, W), any dtype, to changed images of the same shape and dtype."""


class Reading(NamedTuple):
    """How data are brought to what a model takes; what is None or empty is as the data have it.

    Attributes:
        size: Height and width of images that have none of their own.
        mean: Subtracted from x / 255 of images from files, per channel.
        std: Divided by afterwards.
        tokenizer: Folder of the tokenizer that reads text.
        length: Most tokens of one input.
        tokens: How many tokens the model knows.
        next_token: Whether text is to be foretold, token by token.
    """

    size: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    tokenizer: str | None = None
    length: int = 128
    tokens: int | None = None
    next_token: bool = False


AS_IT_IS = Reading()
"""For models that say nothing of their data."""


class Split(Protocol):
    """Labelled images of one part of a data set: train, val or test."""

    @property
    def labels(self) -> Tensor:
        """The class of every image (N,), or of every token or pixel (N, ...), int64."""
        ...

    def __len__(self) -> int: ...

    def batch(
        self, index: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Inputs, Tensor]:
        """Return the images and labels at ``index``, normalised.

        Args:
            index: Positions in the split, (B,) int64.
            generator: Draws the augmentation; None for the images as they are.

        Returns:
            float32 images (B, C, H, W) and int64 labels (B, ...). Inputs that are no images have
            the shape (B, ...), and integers other than bytes, such as tokens, stay integers.
            Several inputs are a ``Batch``. Without labels there are zeros in their place.
        """
        ...


@dataclass(frozen=True)
class Data:
    """A data set: three disjoint splits and how their pixels were normalised.

    Attributes:
        name: As it was asked for, without the directory: "digits", "cifar10", ….
        classes: Names of the classes, in the order of the labels.
        shape: Of one input without the batch axis; channels, height and width of an image.
        mean: What was subtracted from each channel of x / 255; empty where inputs are no images.
        std: What each channel was divided by afterwards; likewise.
        train: For gradients, calibration and BatchNorm statistics; augmented on request.
        val: For every choice.
        test: For what was chosen and frozen.
        labels: What has a label. Without labels the splits give zeros in their place.
        inputs: Name of each tensor that the network gets to its shape, where they have names.
        tokens: How many values an input may have at least, where it is one tensor of tokens.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    val: Split
    test: Split
    labels: Labels = "classes"
    inputs: Mapping[str, InputShape] = field(default_factory=dict)
    tokens: int | None = None


class Outline(NamedTuple):
    """What is known of a data set before it is read.

    Attributes:
        name: As that of the data, as are the rest.
        classes: As above.
        shape: As above.
        mean: As above.
        std: As above.
        labels: As above.
        inputs: As above.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: Labels = "classes"
    inputs: Mapping[str, InputShape] = {}


@dataclass(frozen=True, eq=False, repr=False)
class TensorSplit:
    """A split that lies in memory.

    Attributes:
        images: (N, C, H, W) or (N, ...): uint8, a floating dtype for what is normalised already, or
            another integer dtype for tokens, which become int64; or several tensors.
        labels: (N,) int64, or one for each token or pixel; zeros where there are none.
        mean: Per channel, in the unit of x / 255.
        std: Per channel, likewise.
        augment: Changes the pixels of a batch before they are normalised.
    """

    images: Inputs
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def batch(
        self, index: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Inputs, Tensor]:
        """Return the images (B, C, H, W) and labels (B,) at ``index``, see ``Split``."""
        images = self.images[index]
        if isinstance(images, Batch):
            return images.map(_as_taken), self.labels[index]
        if generator is not None and self.augment is not None:
            images = self.augment(images, generator)
        return normalise(images, self.mean, self.std), self.labels[index]


def _as_taken(values: Tensor) -> Tensor:
    """Return one of several tensors as networks take it."""
    return normalise(values, (), ()) if values.dtype != torch.bool else values


class LazySplit:
    """A split that is read when it is first used, labels and length included."""

    def __init__(self, read: Callable[[], Split]) -> None:
        self._read = read

    @cached_property
    def _split(self) -> Split:
        return self._read()

    @property
    def labels(self) -> Tensor:
        """The class of every image, (N,) int64."""
        return self._split.labels

    def __len__(self) -> int:
        return len(self._split)

    def batch(
        self, index: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Inputs, Tensor]:
        """Return the images (B, C, H, W) and labels (B,) at ``index``, see ``Split``."""
        return self._split.batch(index, generator)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return ``(x / 255 - mean) / std`` as float32; floating images are not divided by 255.

    Args:
        images: (B, C, H, W), or any other inputs (B, ...), of which only bytes are changed.
        mean: One per channel; none for inputs that are no images.
        std: Likewise.
    """
    if not images.is_floating_point() and images.dtype != torch.uint8:
        return images.long()
    scale = 1.0 if images.is_floating_point() else 255.0
    x = images.float() / scale  # a new tensor: what lies in memory is never written to
    if images.dim() != 4 or not len(mean):
        return x
    return x.sub_(torch.tensor(mean)[:, None, None]).div_(torch.tensor(std)[:, None, None])


def shift(images: Tensor, generator: torch.Generator, pixels: int) -> Tensor:
    """Return every image moved by up to ``pixels`` each way, as a crop after padding.

    What comes in at the border is zero: black, for bytes that are not normalised yet.

    Args:
        images: (B, C, H, W).
        generator: Draws one move per image, all equally likely.
        pixels: The largest move down, up, right and left.
    """
    count, _, height, width = images.shape
    windows = pad(images, [pixels] * 4).unfold(2, height, 1).unfold(3, width, 1)
    down, right = torch.randint(2 * pixels + 1, (2, count), generator=generator)
    moved: Tensor = windows[torch.arange(count), :, down, right]  # (B, C, H, W)
    return moved


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images (B, C, H, W), each mirrored left to right with probability 1/2."""
    mirrored = torch.randint(2, (len(images), 1, 1, 1), generator=generator).bool()
    return torch.where(mirrored, images.flip(3), images)


def decode(source: bytes | Path, what: str) -> Image.Image:
    """Return the RGB image in ``source``, decoded to the last pixel.

    Args:
        source: The bytes of a PNG, JPEG, …, or a file of them.
        what: Names the image in the message.

    Raises:
        DataError: It is not an image, or not a whole one.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return image.convert("RGB")
    except UNDECODABLE as error:
        raise DataError(f"{what} cannot be decoded: {error}; replace or remove it") from error


def stratify(
    labels: NDArray[np.int64], seed: int, val_share: float, test_share: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return sorted positions for train, val and test: disjoint, and alike in every class.

    A class with at least three images is in each split; of two, one goes to train and one to val.

    Args:
        labels: (N,).
        seed: Any integer; the same seed always gives the same splits.
        val_share: Of the images of each class, in (0, 1).
        test_share: Likewise.
    """
    # RandomState, because numpy promises that its streams never change.
    random = np.random.RandomState(seed % 2**32)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        val = max(1, round(val_share * len(rows))) if len(rows) > 1 else 0
        test = max(1, round(test_share * len(rows))) if len(rows) > 2 else 0
        parts[1].extend(rows[:val])
        parts[2].extend(rows[val : val + test])
        parts[0].extend(rows[val + test :])
    train, val_rows, test_rows = (np.sort(np.array(part, dtype=np.int64)) for part in parts)
    return train, val_rows, test_rows
