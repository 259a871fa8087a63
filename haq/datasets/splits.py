"""A user's own splits as they come: tensors, columns, data sets of items, loaders of batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from haq.datasets.tensors import Data, Labels, Split, TensorSplit
from haq.errors import DataError
from haq.network.inputs import Batch, Inputs, as_inputs, joined, kind_of, tensors_of

LABELS = ("labels", "label")
"""Names of the column that holds labels, where a batch or an item is a dict."""

MOST_CLASSES = 100_000
"""Beyond this a label is a mistake, such as an identifier."""

IGNORED = -100
"""The label of what does not count."""

_VOID = 255
"""Stands for it in masks, where it is no class."""

_TOKENS = (torch.int32, torch.int64)


Outputs = Callable[[Inputs, Labels], int]
"""From inputs, and what has a label, to how many numbers a network gives for a label."""


class Columns(NamedTuple):
    """Inputs of a split and their labels, None where there are none."""

    inputs: Inputs
    labels: Tensor | None


def from_splits(splits: Any, name: str = "data", outputs: Outputs | None = None) -> Data:
    """Return a user's own three splits as ``Data``; nothing is augmented that was not before.

    Args:
        splits: Train, val and test. Each is a ``Split``; or a pair of inputs and labels; or a dict
            of tensors, as a network takes them, with "labels" among them or without; or a map-style
            data set of such pairs or dicts; or a loader of batches of either kind. The last two are
            stacked in memory. Inputs are images (N, C, H, W) or anything else (N, ...): uint8,
            normalised already in a floating dtype, or integers such as tokens. Labels are (N,), or
            one for each token (N, T) or pixel (N, H, W), where negative ones do not count; nor does
            255 of a pixel, where no label is higher and no network given has so many classes.
        name: For messages, and on record.
        outputs: From one input (1, ...), and what has a label, to how many classes there are: how
            many numbers the network gives for a label. Without it, as many as the highest label of
            train says. A class may have no image.

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
    kinds = [part.kind for part in parts]
    if len(set(kinds)) > 1:
        raise DataError(f"the splits of {name} have labels of {', '.join(kinds)}; give all alike")
    train, val, test = _without_void([part.split for part in parts], kinds[0], outputs)
    shapes = [_shapes(s, what) for s, what in zip((train, val, test), whats, strict=True)]
    for given, what in zip(shapes, whats, strict=True):
        if given != shapes[0]:
            raise DataError(f"{what} has {_said(given)} images, {whats[0]} {_said(shapes[0])}")
    first, _ = train.batch(torch.zeros(1, dtype=torch.int64))
    classes = _classes(train, first, kinds[0], whats[0], outputs)
    if classes is not None:
        for split, what in zip((train, val, test), whats, strict=True):
            _check_labels(split.labels, classes, what, kinds[0], given=outputs is not None)
    shape = shapes[0][0]
    channels = shape[0] if len(shape) == 3 and isinstance(first, Tensor) else 0
    known = train if isinstance(train, TensorSplit) else None
    mean = known.mean if known else (0.0,) * channels
    std = known.std if known else (1.0,) * channels
    names = tuple(map(str, range(classes or 0))) if kinds[0] != "tokens" else ()
    return Data(
        name, names, shape, mean, std, train, val, test, kinds[0], kind_of(first),
        _tokens(first, (train, val, test)),
    )  # fmt: skip


def _tokens(first: Inputs, splits: Sequence[Split]) -> int | None:
    """Return how many values tokens have, at least; None where inputs are no single such tensor."""
    if not isinstance(first, Tensor) or first.is_floating_point():
        return None
    whole = [split.images for split in splits if isinstance(split, TensorSplit)]
    return max(int(one.max()) for one in (*whole, first) if isinstance(one, Tensor)) + 1


def _without_void(
    splits: Sequence[Split], kind: Labels, outputs: Outputs | None
) -> Sequence[Split]:
    """Return splits whose masks do not count where they are 255, unless that is a class."""
    if kind != "pixels" or max(int(split.labels.max()) for split in splits) != _VOID:
        return splits
    first, _ = splits[0].batch(torch.zeros(1, dtype=torch.int64))
    if outputs is not None and outputs(first, kind) > _VOID:
        return splits
    return [
        replace(split, labels=split.labels.masked_fill(split.labels == _VOID, IGNORED))
        if isinstance(split, TensorSplit) else split
        for split in splits
    ]  # fmt: skip


class _Part(NamedTuple):
    split: Split
    kind: Labels


def _as_split(split: Any, what: str) -> _Part:
    if callable(getattr(split, "batch", None)):
        own: Split = split
        if not len(own):
            raise DataError(f"{what} is empty")
        return _Part(own, _kind(_integers(own.labels, what)))
    columns = columns_of(split, what)
    inputs, labels = columns.inputs, columns.labels
    if not len(inputs):
        raise DataError(f"{what} is empty")
    for tensor in tensors_of(inputs):
        if isinstance(inputs, Tensor) and tensor.ndim < 2:
            shape = _times(tensor.shape)
            raise DataError(f"{what} has inputs of shape {shape}; give (N, C, H, W) or (N, ...)")
        if len(tensor) != len(inputs):
            raise DataError(f"{what} has inputs of {len(inputs)} and of {len(tensor)} rows")
    if labels is None:
        zeros = torch.zeros(len(inputs), dtype=torch.int64)
        return _Part(TensorSplit(inputs, zeros, (), ()), "none")
    if len(inputs) != len(labels):
        raise DataError(f"{what} has {len(inputs)} images and {len(labels)} labels")
    places = tensors_of(inputs)[0].shape[: labels.ndim]
    if labels.ndim == 2 and labels.shape != places:
        raise DataError(
            f"{what} has labels of shape {_times(labels.shape)}; one integer an image, or one for "
            f"each token of inputs of {_times(places)}"
        )
    channels = inputs.shape[1] if isinstance(inputs, Tensor) and inputs.ndim == 4 else 0
    split = TensorSplit(inputs, labels, (0.0,) * channels, (1.0,) * channels)
    return _Part(split, _kind(labels))


def columns_of(split: Any, what: str) -> Columns:
    """Return the inputs and the labels of a split, stacked in memory.

    Args:
        split: A pair, a dict, a tensor, a data set of items or a loader of batches.
        what: Names it in messages.

    Raises:
        DataError: It is none of these, or its items do not fit together.
    """
    if isinstance(split, Columns):
        return split
    if isinstance(split, Tensor | Batch):
        return Columns(split, None)
    if isinstance(split, Mapping):
        return _of_mapping(split, what)
    if _is_pair(split):
        return Columns(_inputs(split[0], what), _integers(split[1], what))
    if hasattr(split, "__len__") and hasattr(split, "__getitem__"):
        items = [_item(split[i], i, what) for i in range(len(split))]
        return _stacked(items, what)
    if hasattr(split, "__iter__"):
        return _joined([_batch(batch, i, what) for i, batch in enumerate(split)], what)
    raise DataError(
        f"{what} is a {type(split).__name__}; give a Split, a pair (images, labels), a dict of "
        "tensors, a data set with a length and items (image, label), or a loader of batches"
    )


def _is_pair(value: Any) -> bool:
    if not isinstance(value, Sequence) or len(value) != 2 or isinstance(value, str):
        return False
    return hasattr(value[0], "ndim") or isinstance(value[0], Mapping | Batch)


def _inputs(value: Any, what: str) -> Inputs:
    if isinstance(value, Mapping):
        return as_inputs({name: _tensor(part, f"{name} of {what}") for name, part in value.items()})
    if isinstance(value, Batch):
        return value
    return _tensor(value, what)


def _tensor(value: Any, what: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what} cannot be read as a tensor: {error}") from error


def _of_mapping(columns: Mapping[str, Any], what: str) -> Columns:
    rest = {name: value for name, value in columns.items() if name not in LABELS}
    if not rest:
        raise DataError(f"{what} has no inputs beside its labels")
    inputs = _inputs(rest, what)
    given = [columns[name] for name in LABELS if name in columns]
    labels = _integers(given[0], what) if given else None
    return Columns(inputs, None if labels is None else shifted(labels, inputs))


def shifted(labels: Tensor, inputs: Inputs) -> Tensor:
    """Return labels so that each place has that of the token to come, as its logits are meant.

    Labels that repeat the tokens, as transformers take them for language models, are shifted here;
    all others are left alone.
    """
    tokens = inputs.get("input_ids") if isinstance(inputs, Batch) else None
    if tokens is None or labels.shape != tokens.shape or labels.dim() != 2:
        return labels
    counted = labels >= 0
    if not bool(counted.any()) or not torch.equal(labels[counted], tokens[counted].long()):
        return labels
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], 1)


def _item(item: Any, number: int, what: str) -> Columns:
    if isinstance(item, Mapping):
        rows = {name: _tensor(value, f"{name} of item {number}")[None]
                for name, value in item.items()}  # fmt: skip
        return _of_mapping(rows, what)
    if not (isinstance(item, tuple | list) and len(item) == 2 and torch.is_tensor(item[0])):
        raise DataError(f"item {number} of {what} is not a pair (image tensor, label)")
    return Columns(item[0][None], _integers(_tensor(item[1], what)[None], what))


def _batch(batch: Any, number: int, what: str) -> Columns:
    if isinstance(batch, list | tuple) and len(batch) == 1:
        batch = batch[0]
    if isinstance(batch, Tensor | Batch | Mapping) or _is_pair(batch):
        return columns_of(batch, what)
    raise DataError(
        f"batch {number} of {what} is a {type(batch).__name__}; a loader gives inputs, pairs of "
        "inputs and labels, or dicts of tensors"
    )


def _stacked(items: list[Columns], what: str) -> Columns:
    if not items:
        raise DataError(f"{what} is empty")
    shape = _said_inputs(items[0].inputs)
    for number, item in enumerate(items):
        if _said_inputs(item.inputs) != shape:
            raise DataError(
                f"image {number} of {what} is {_said_inputs(item.inputs)}, image 0 {shape}; "
                "bring all to one size"
            )
    return _joined(items, what)


def _joined(parts: list[Columns], what: str) -> Columns:
    if not parts:
        raise DataError(f"{what} is empty")
    labels = [part.labels for part in parts if part.labels is not None]
    try:
        inputs = joined([part.inputs for part in parts])
        return Columns(inputs, torch.cat(labels) if len(labels) == len(parts) else None)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"the batches of {what} do not fit together: {reason}") from error


def _integers(labels: Any, what: str) -> Tensor:
    try:
        numbers = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what} has labels that are not integers: {error}") from error
    if not 1 <= numbers.ndim <= (1 if numbers.is_floating_point() else 3):
        raise DataError(
            f"{what} has labels of shape {_times(numbers.shape)}; one integer an image (N,), a "
            "token (N, T) or a pixel (N, H, W)"
        )
    if numbers.is_floating_point() or numbers.is_complex():
        odd = numbers[numbers != numbers.round()] if numbers.is_floating_point() else numbers
        some = (odd if len(odd) else numbers).flatten()
        first = some[0].item() if len(some) else numbers.dtype
        raise DataError(f"{what} has label {first}; labels are integers counting from 0")
    return numbers.long()


def _kind(labels: Tensor) -> Labels:
    kinds: dict[int, Labels] = {1: "classes", 2: "tokens", 3: "pixels"}
    return kinds[labels.dim()]


def _classes(
    train: Split, first: Inputs, kind: Labels, what: str, outputs: Outputs | None
) -> int | None:
    """Return how many classes labels may be of; None where there are none."""
    if kind == "none":
        return None
    count = outputs(first, kind) if outputs else max(int(train.labels.max()) + 1, 1)
    if count > MOST_CLASSES and kind != "tokens":
        raise DataError(f"{what} has label {count - 1}; labels count the classes from 0")
    return count


def _shapes(split: Split, what: str) -> tuple[tuple[int, ...], ...]:
    """Return the shape of each tensor of an input, after a look at their values."""
    whole = split.images if isinstance(split, TensorSplit) else None
    inputs = split.batch(torch.tensor([0]))[0] if whole is None else whole
    for tensor in tensors_of(inputs):
        if tensor.dtype not in (torch.uint8, *_TOKENS, torch.bool) and (
            not tensor.is_floating_point()
        ):
            raise DataError(
                f"{what} has {tensor.dtype} inputs; give uint8, floats, or int64 for tokens"
            )
        broken = (~torch.isfinite(tensor).reshape(len(tensor), -1).all(1)).nonzero()
        if len(broken):
            raise DataError(f"image {broken[0].item()} of {what} holds NaN or infinity")
    return tuple(tuple(tensor.shape[1:]) for tensor in tensors_of(inputs))


def _check_labels(labels: Tensor, classes: int, what: str, kind: Labels, given: bool) -> None:
    least = 0 if kind == "classes" else IGNORED
    wrong = ((labels < least) | (labels >= classes)).nonzero()
    if len(wrong):
        at = tuple(wrong[0].tolist())
        why = f": the network gives {classes} outputs" if given else ""
        raise DataError(
            f"label {labels[at]} of image {at[0]} in {what} is not in 0..{classes - 1}{why}"
        )


def _said(shapes: Sequence[Sequence[int]]) -> str:
    return " and ".join(map(_times, shapes))


def _said_inputs(inputs: Inputs) -> str:
    return _said([tensor.shape[1:] for tensor in tensors_of(inputs)])


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def parts_of(rows: Any) -> Iterator[Any]:
    """Yield the three parts of rows in order: 80, 10 and 10 %, one row each at least."""
    tenth = max(1, len(rows) // 10)
    yield from (rows[: -2 * tenth], rows[-2 * tenth : -tenth], rows[-tenth:])
