"""CIFAR-10 from a directory: the Hugging Face parquet layout, or the binary batches.

The last tenth of the training rows, 5000 of 50000, is the validation split, in the order of the
files: it is the same in every run. The test split is read at its first use.
"""

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haq.datasets.tensors import (
    AS_IT_IS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Data,
    LazySplit,
    Outline,
    Reading,
    TensorSplit,
    decode,
    flip,
    shift,
)
from haq.errors import DataError
from haq.extras import library

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
TRAIN_BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)]
LAYOUT = (
    "train-*.parquet and test-*.parquet, or data_batch_1.bin to data_batch_5.bin and test_batch.bin"
)

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images (N, 3, 32, 32) and labels (N,)."""


def load(where: str, seed: int = 0, size: int | None = None, reading: Reading = AS_IT_IS) -> Data:
    """Return CIFAR-10, 45000 / 5000 / 10000 images; training images move by 4 pixels and flip.

    Args:
        where: A directory with ``train-*.parquet`` and ``test-*.parquet`` (columns ``img`` or
            ``image`` = {bytes, path}, and ``label``), itself or in ``plain_text`` or ``data``; or
            with ``data_batch_1.bin`` … ``test_batch.bin``, itself or in ``cifar-10-batches-bin``.
        seed: Not used: the splits are fixed.
        size: Not used: the images are 32 x 32.
        reading: Not used.

    Raises:
        DataError: Something in the directory is missing or damaged.

    Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
    """
    train, test = _files(where)
    images, labels = read(train)
    val = len(labels) // 10
    if val == 0:
        raise DataError(
            f"{train[0].parent} has {len(labels)} training images; at least 10 are needed, "
            "as the last tenth is the validation split"
        )
    return Data(
        "cifar10",
        CLASSES,
        SHAPE,
        IMAGENET_MEAN,
        IMAGENET_STD,
        train=split(images[:-val], labels[:-val]),
        val=split(images[-val:], labels[-val:]),
        test=LazySplit(lambda: split(*read(test))),
    )


def outline(where: str, size: int | None = None, reading: Reading = AS_IT_IS) -> Outline:
    """Return shape and classes of CIFAR-10, once its files are there; none is read.

    Raises:
        DataError: Something in the directory is missing.
    """
    _files(where)
    return Outline("cifar10", CLASSES, SHAPE, IMAGENET_MEAN, IMAGENET_STD)


def _files(where: str) -> tuple[list[Path], list[Path]]:
    if not where:
        raise DataError(f"cifar10 needs a directory: cifar10:DIR, where DIR holds {LAYOUT}")
    return find(Path(where).expanduser())


def split(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> TensorSplit:
    """Return a split of images (N, 3, 32, 32) and labels (N,), normalised as ImageNet is."""
    return TensorSplit(
        torch.from_numpy(images), torch.from_numpy(labels), IMAGENET_MEAN, IMAGENET_STD, augment
    )


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images moved by up to 4 pixels (black comes in) and half of them mirrored."""
    return flip(shift(images, generator, pixels=4), generator)


def find(directory: Path) -> tuple[list[Path], list[Path]]:
    """Return the training files and the test files, in order.

    Raises:
        DataError: There is no such directory, or a file is missing in it.
    """
    if not directory.is_dir():
        raise DataError(f"cifar10: no such directory: {directory}")
    for place in (directory, directory / "plain_text", directory / "data"):
        if any(place.glob("train-*.parquet")):
            return _shards(place, "train"), _shards(place, "test")
    for place in (directory, directory / "cifar-10-batches-bin"):
        if any(place.glob("data_batch_*.bin")):
            return _batches(place, TRAIN_BATCHES), _batches(place, ["test_batch.bin"])
    raise DataError(
        f"cifar10: nothing found in {directory}: looked for {LAYOUT}, there and in the folders "
        "plain_text, data and cifar-10-batches-bin"
    )


def _shards(place: Path, part: str) -> list[Path]:
    files = sorted(place.glob(f"{part}-*.parquet"))
    if not files:
        raise DataError(f"cifar10: {place} has no {part}-*.parquet; copy it there")
    total = re.search(r"-of-(\d+)", files[0].name)
    if total and len(files) != int(total[1]):
        raise DataError(
            f"cifar10: {place} has {len(files)} of {int(total[1])} {part}-*.parquet files; "
            "copy all of one download there, and no others"
        )
    return files


def _batches(place: Path, names: list[str]) -> list[Path]:
    missing = [name for name in names if not (place / name).is_file()]
    if missing:
        raise DataError(f"cifar10: {place} has no {missing[0]}; copy it there")
    return [place / name for name in names]


def read(paths: list[Path]) -> Arrays:
    """Return all images, uint8 (N, 3, 32, 32), and labels, int64 (N,), of the files in order.

    Raises:
        DataError: A file is damaged, or holds something else than CIFAR-10.
    """
    parts = [_read_parquet(p) if p.suffix == ".parquet" else _read_binary(p) for p in paths]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if not len(labels):
        raise DataError(f"{paths[0]} holds no images")
    return images, labels


def _read_binary(path: Path) -> Arrays:
    data = np.fromfile(path, dtype=np.uint8)
    if data.size % RECORD:
        raise DataError(
            f"{path} is truncated: {data.size} bytes are no multiple of {RECORD}, the size of a "
            "label with its image; copy it again"
        )
    records = data.reshape(data.size // RECORD, RECORD)
    return records[:, 1:].reshape(-1, *SHAPE), _checked(records[:, 0].astype(np.int64), path)


def _read_parquet(path: Path) -> Arrays:
    pictures, labels = _columns(path)

    images = np.empty((len(labels), 32, 32, 3), dtype=np.uint8)
    # One thread: an image decodes in 70 microseconds, and handing it to another costs as much.
    for row, picture in enumerate(pictures):
        what = f"the image in row {row} of {path}"
        if picture is None:
            raise DataError(f"{what} has no bytes; the images must lie in the parquet file itself")
        image = decode(picture, what)
        if image.size != (32, 32):
            raise DataError(f"{what} is {image.width}x{image.height}, not 32x32")
        images[row] = np.asarray(image)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels


def _columns(path: Path) -> tuple[list[Any], NDArray[np.int64]]:
    pa, pq = _arrow(), _arrow("pyarrow.parquet")
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as parquet: {reason}; copy it again") from error
    columns = ", ".join(table.column_names)
    name = "img" if "img" in table.column_names else "image"
    if not _holds_bytes(table.schema, name):
        raise DataError(f"{path} has no column img or image of {{bytes, path}}, but {columns}")
    if "label" not in table.column_names or not pa.types.is_integer(table["label"].type):
        raise DataError(f"{path} has no column label of integers, but {columns}")
    if table["label"].null_count:
        raise DataError(f"{path} has {table['label'].null_count} images without a label")
    pictures = [row and row["bytes"] for row in table[name].to_pylist()]
    return pictures, _checked(table["label"].to_numpy().astype(np.int64), path)


def _holds_bytes(schema: Any, name: str) -> bool:
    pa = _arrow()
    if name not in schema.names or not pa.types.is_struct(schema.field(name).type):
        return False
    kind = schema.field(name).type
    return bool(kind.get_field_index("bytes") >= 0 and pa.types.is_binary(kind.field("bytes").type))


def _checked(labels: NDArray[np.int64], path: Path) -> NDArray[np.int64]:
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if wrong.size:
        raise DataError(f"label {labels[wrong[0]]} in row {wrong[0]} of {path} is not in 0..9")
    return labels


def _arrow(module: str = "pyarrow") -> ModuleType:
    return library(module, "data", "cifar10 as parquet", DataError)
