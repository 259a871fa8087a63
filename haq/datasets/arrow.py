"""Folders of Hugging Face's ``datasets``, read with pyarrow: save_to_disk, parquet, arrow files.

Columns decide what they are: tokens as the network takes them, text to be tokenized, or images;
with labels or without.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from haq.datasets.folder import FolderSplit
from haq.datasets.splits import Columns, from_splits, parts_of
from haq.datasets.tensors import (
    AS_IT_IS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Data,
    Reading,
    Split,
    stratify,
)
from haq.datasets.tokenizer import blocks, read_tokenizer
from haq.errors import DataError
from haq.extras import library
from haq.network.inputs import Batch

SPLITS = {
    "train": "train", "training": "train", "validation": "val", "valid": "val", "val": "val",
    "dev": "val", "test": "test",
}  # fmt: skip
"""Name of a split, or how its file's name begins, to ours."""

TOKENS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
TEXT = ("text", "sentence", "content")
IMAGES = ("image", "img")
LABELS = ("labels", "label", "coarse_label", "fine_label")


class _Part(NamedTuple):
    """A split's table."""

    where: str
    table: Any  # pyarrow.Table


def load(where: str, seed: int = 0, size: int | None = None, reading: Reading = AS_IT_IS) -> Data:
    """Return the data in a folder that ``datasets`` wrote, or of parquet or arrow files.

    Args:
        where: The folder.
        seed: Divides a table that is not divided yet.
        size: Height and width of images; those of the reading without it, or 224.
        reading: What the model asks for.

    Raises:
        DataError: The folder is missing or damaged, or no column is one that is known.
    """
    tables = _tables(_root(where))
    parts = _divided(tables, where, seed)
    columns = parts[0].table.column_names
    if any(name in columns for name in IMAGES) and "pixel_values" not in columns:
        return _images(parts, reading.size if size is None else size, reading)
    if any(name in columns for name in TEXT) and "input_ids" not in columns:
        return _texts(parts, reading)
    known = [name for name in (*TOKENS, "pixel_values") if name in columns]
    if not known:
        raise DataError(
            f"dataset:{where} has the columns {', '.join(columns)}, and none of pixel_values, "
            f"{', '.join((*TOKENS, *TEXT, *IMAGES))}: rename one, or give the data from Python"
        )
    return from_splits([_tensors(part, known) for part in parts], "dataset")


def _root(where: str) -> Path:
    root = Path(where).expanduser()
    if not where or not root.is_dir():
        raise DataError(
            f"dataset:{where} is no folder; give one that datasets wrote, or of parquet"
        )
    return root


def _tables(root: Path) -> dict[str, _Part]:
    """Return the table of each split; of one that has no name, under ""."""
    if (root / "dataset_dict.json").is_file():
        names = _json(root / "dataset_dict.json").get("splits", [])
        return {SPLITS.get(name, name): _saved(root / name) for name in names}
    if (root / "state.json").is_file():
        return {"": _saved(root)}
    files: dict[str, list[Path]] = {}
    for path in sorted([*root.rglob("*.parquet"), *root.rglob("*.arrow")]):
        names = (path.name.split("-")[0].split(".")[0], path.parent.name)
        split = next((SPLITS[name] for name in names if name in SPLITS), "")
        files.setdefault(split, []).append(path)
    if not files:
        raise DataError(
            f"dataset:{root} holds no dataset: no state.json, no parquet and no arrow files"
        )
    return {name: _Part(str(paths[0]), _joined(paths)) for name, paths in files.items()}


def _saved(folder: Path) -> _Part:
    """Return the table of a folder that ``Dataset.save_to_disk`` wrote."""
    state = _json(folder / "state.json")
    try:
        paths = [folder / entry["filename"] for entry in state["_data_files"]]
        chosen = [folder / entry["filename"] for entry in state.get("_indices_data_files") or ()]
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / 'state.json'} is damaged: no {error}") from error
    table = _joined(paths)
    if chosen:
        table = table.take(_joined(chosen).column("indices").combine_chunks())
    return _Part(str(folder), table)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a JSON object")
    return content


def _joined(paths: Sequence[Path]) -> Any:
    pa = _arrow()
    try:
        return pa.concat_tables([_read(path) for path in paths])
    except (pa.ArrowException, OSError, IndexError) as error:
        reason = (str(error).splitlines() or ["nothing in it"])[0]
        where = paths[0] if paths else "the dataset"
        raise DataError(f"{where} cannot be read: {reason}; copy it again") from error


def _read(path: Path) -> Any:
    pa, pq = _arrow(), _arrow("pyarrow.parquet")
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            return file.read()
    with pa.OSFile(str(path), "rb") as source:
        try:
            return pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:  # the other format of arrow files
            source.seek(0)
            return pa.ipc.open_file(source).read_all()


def _divided(tables: dict[str, _Part], where: str, seed: int) -> tuple[_Part, _Part, _Part]:
    """Return train, val and test: as they are, or divided where one or two are missing."""
    if all(name in tables for name in ("train", "val", "test")):
        return tables["train"], tables["val"], tables["test"]
    first = tables.get("train") or tables.get("") or next(iter(tables.values()))
    rows = first.table.num_rows
    if rows < 10:
        raise DataError(f"{first.where} has {rows} rows; give 10 or more to divide")
    if "test" in tables or "val" in tables:
        other = tables.get("test") or tables["val"]
        order = np.random.RandomState(seed % 2**32).permutation(rows)
        tenth = max(1, rows // 10)
        train, val = (_taken(first, np.sort(part)) for part in (order[tenth:], order[:tenth]))
        return (train, val, other) if "test" in tables else (train, other, val)
    train_rows, val_rows, test_rows = _stratified(first.table, seed)
    return _taken(first, train_rows), _taken(first, val_rows), _taken(first, test_rows)


def _stratified(table: Any, seed: int) -> Sequence[Any]:
    pa = _arrow()
    name = next((one for one in LABELS if one in table.column_names), None)
    whole = name is not None and pa.types.is_integer(table[name].type)
    if whole and not table[name].null_count:
        return stratify(table[name].to_numpy().astype(np.int64), seed, 0.1, 0.1)
    order = np.random.RandomState(seed % 2**32).permutation(table.num_rows)
    return [np.sort(part) for part in parts_of(order)]


def _taken(part: _Part, rows: Any) -> _Part:
    return _Part(part.where, part.table.take(rows))


def _tensors(part: _Part, known: Sequence[str]) -> dict[str, Tensor]:
    """Return columns of lists of numbers as tensors, as a network takes them."""
    labels = next((name for name in LABELS if name in part.table.column_names), None)
    columns = {}
    for name in (*known, *([labels] if labels else [])):
        values = part.table[name].to_pylist()
        lengths = {len(row) for row in values if isinstance(row, list)}
        if len(lengths) > 1:
            raise DataError(
                f"column {name!r} of {part.where} has rows of {min(lengths)} to {max(lengths)} "
                "numbers; pad them to one length"
            )
        try:
            columns["labels" if name == labels else name] = torch.tensor(values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                f"column {name!r} of {part.where} is not of numbers: {error}"
            ) from error
    return columns


def _texts(parts: Sequence[_Part], reading: Reading) -> Data:
    name = next(one for one in TEXT if one in parts[0].table.column_names)
    tokenizer = read_tokenizer(reading.tokenizer, f"dataset:{parts[0].where}", reading.tokens)
    splits: list[Any] = []
    for part in parts:
        texts = [text or "" for text in part.table[name].to_pylist()]
        if reading.next_token:
            (ids,) = tokenizer.ids(["\n".join(texts)], special=False)
            splits.append(blocks(ids, reading.length))
            continue
        rows = tokenizer.ids(texts, special=True)
        if [] in rows:
            raise DataError(
                f"row {rows.index([])} of {part.where} has no token in column {name!r}: take rows "
                "without text out"
            )
        inputs = tokenizer.padded(rows, reading.length)
        label = next((one for one in LABELS if one in part.table.column_names), None)
        splits.append(Columns(inputs, None if label is None else _whole(part, label)))
    if not reading.next_token:
        splits = _of_one_length(splits)
    return from_splits(splits, "dataset")


def _whole(part: _Part, label: str) -> Tensor:
    """Return a column of labels.

    Raises:
        DataError: A value is no whole number.
    """
    values = part.table[label].to_pylist()
    wrong = next((one for one in values if type(one) is not int and not isinstance(one, list)), 0)
    try:
        if type(wrong) is int:
            return torch.tensor(values)
    except (TypeError, ValueError, RuntimeError):
        wrong = "lists that do not fit together"
    raise DataError(
        f"column {label!r} of {part.where} holds {wrong!r}; labels are whole numbers counting from "
        "0, one a row or a token"
    )


def _of_one_length(splits: Sequence[Columns]) -> list[Any]:
    """Return splits of tokens padded to the longest of them."""
    width = max(split.inputs.tensors[0].shape[1] for split in splits
                if isinstance(split.inputs, Batch))  # fmt: skip

    def wider(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (0, width - values.shape[1]))

    result: list[Any] = []
    for split in splits:
        assert isinstance(split.inputs, Batch)
        inputs = split.inputs.map(wider)
        result.append(inputs if split.labels is None else (inputs, split.labels))
    return result


def _images(parts: Sequence[_Part], size: int | None, reading: Reading) -> Data:
    side = 224 if size is None else size
    mean, std = reading.mean or IMAGENET_MEAN, reading.std or IMAGENET_STD
    name = next(one for one in IMAGES if one in parts[0].table.column_names)
    label = next((one for one in LABELS if one in parts[0].table.column_names), None)
    splits: list[Split] = []
    for part in parts:
        pictures = [_bytes(row, part.where) for row in part.table[name].to_pylist()]
        count = len(pictures)
        values = torch.zeros(count, dtype=torch.int64) if label is None else _whole(part, label)
        if values.dim() != 1:
            raise DataError(f"column {label!r} of {part.where} has lists; give a number an image")
        splits.append(FolderSplit(tuple(pictures), values, side, mean, std))
    classes = _classes(parts[0], label, splits) if label else ()
    train, val, test = splits
    kind = "classes" if label else "none"
    return Data("dataset", classes, (3, side, side), mean, std, train, val, test, kind)  # type: ignore[arg-type]


def _bytes(row: Any, where: str) -> bytes:
    content = row.get("bytes") if isinstance(row, dict) else row
    if not isinstance(content, bytes):
        raise DataError(
            f"an image of {where} has no bytes; the images must lie in the table itself"
        )
    return content


def _classes(part: _Part, label: str, splits: Sequence[Split]) -> tuple[str, ...]:
    """Return the names of the classes, as the table's metadata has them, or their numbers."""
    count = max(int(split.labels.max()) for split in splits) + 1
    metadata = part.table.schema.metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = tuple(map(str, features[label]["names"]))
    except (KeyError, ValueError, TypeError):
        names = ()
    return names if len(names) >= count else tuple(map(str, range(count)))


def _arrow(module: str = "pyarrow") -> ModuleType:
    return library(module, "data", "dataset:DIR", DataError)
