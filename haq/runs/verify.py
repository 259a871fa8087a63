"""What can be found out about an ONNX file from the file and some data alone."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from haq.allocation.policy import Bits, Policy
from haq.datasets import Data, Reading
from haq.errors import DataError, HaqError, ModelError
from haq.formats.onnx.comparison import Comparison, compare
from haq.formats.onnx.saturation import EXACT_KERNELS, saturating
from haq.formats.onnx.values import Array, Feeds
from haq.metrics import metric_of
from haq.network.inputs import Inputs, like_record
from haq.runs.export import FORMAT
from haq.runs.handover import check_kernels
from haq.runs.named import LENGTH
from haq.runs.onnx_summary import tested
from haq.runs.progress import OnProgress, silent

SIMULATED = 100
"""Images that are computed in numpy, integer for integer."""


def read(path: str | os.PathLike[str]) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Return a file that ``export_onnx`` wrote, and its metadata.

    Raises:
        HaqError: It is missing, is no ONNX file, or is not one of ours.
    """
    try:
        file = onnx.load(os.fspath(path))
    except OSError as error:
        raise HaqError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # protobuf's own
        reason = str(error).partition("\n")[0]
        raise HaqError(f"{path} is not an ONNX file: {reason}") from error
    entries = {entry.key: entry.value for entry in file.metadata_props}
    try:
        metadata = json.loads(entries["haq"])
        assert metadata["format"] == FORMAT
        metadata["policy"] = {name: Bits(*bits) for name, bits in metadata["policy"].items()}
    except (KeyError, ValueError, TypeError, AssertionError, AttributeError) as error:
        raise HaqError(
            f"{path} was not written by haq export: its metadata has no entry of {FORMAT}"
        ) from error
    return file, metadata


def verify(
    path: str | os.PathLike[str], data: Data | None = None, on_progress: OnProgress = silent
) -> dict[str, Any]:
    """Return what can be found out about a file from the file and some data alone.

    It must be valid ONNX that stock ONNX Runtime loads, with every layer in the kernel that its
    bits claim, and right on the CPUs it is said to be for; what ONNX Runtime computes here must be
    what the file's integers say, worked out in numpy; and with data its accuracy on all test images
    is measured.

    Args:
        path: A file that ``export_onnx`` wrote.
        data: Takes its test images; without any, random numbers go through the integers.
        on_progress: Called often.

    Raises:
        HaqError: The file is damaged, something of the above is not so, or the data do not fit.
    """
    file, metadata = read(path)
    policy: Mapping[str, Bits] = metadata["policy"]
    result: dict[str, Any] = {"bytes": Path(path).stat().st_size, "kernels": _kernels(file, policy)}
    unsafe = [one.layer for one in saturating(file)]
    if unsafe and metadata.get("cpu") == "any":
        raise ModelError(
            f"{path}: said to be right on every CPU, but the sums of layer {unsafe[0]!r} leave "
            "16 bits on those without VNNI; export it again"
        )
    comparison = compare(file, _some_images(data, metadata))
    check_comparison(path, comparison, unsafe)
    result |= {
        "simulated_images": comparison.images, "all_integer": comparison.exact,
        "equal_images": comparison.equal, "largest_difference": comparison.largest,
        "vnni_only": unsafe,
    }  # fmt: skip
    if data is not None:
        metric = metric_of(metadata)
        result |= {"test_images": len(data.test), "metric": metric.name}
        if metric.needs != "labels":
            return result  # the float network, which it is compared with, is not in the file
        value = metric.of_score(tested(file, data, metric, on_progress).accuracy)
        result[metric.key("test")] = value
        result[metric.key("promised_test")] = metadata["accuracy"].get(metric.key("final_test"))
    return result


def reading_for(
    path: str | os.PathLike[str], tokenizer: Path | None, length: int | None
) -> Reading:
    """Return how data are read for a file: at its size, with the mean and std that it says.

    Args:
        path: A file that ``export_onnx`` wrote.
        tokenizer: Folder; None: that of the model's folder, if the file names one.
        length: Most tokens of an input; None: as many as the file takes.

    Raises:
        HaqError: As ``read``.
    """
    _, metadata = read(path)
    shape, model = metadata["shape"], metadata.get("model", "")
    prefix, _, rest = model.partition(":")
    folder = rest if prefix == "hf" else None
    return Reading(
        size=shape[-1] if len(shape) == 3 else None,
        mean=tuple(metadata.get("mean", ())),
        std=tuple(metadata.get("std", ())),
        tokenizer=folder if tokenizer is None else str(tokenizer),
        length=length or (shape[0] if len(shape) == 1 else LENGTH),
        next_token=metadata.get("metric") == "perplexity",
    )


def check_comparison(
    path: str | os.PathLike[str], comparison: Comparison, unsafe: list[str]
) -> None:
    """Say so if ONNX Runtime does not compute what a file says, and what can be done.

    Raises:
        ModelError: It does not.
    """
    if comparison.right:
        return
    where = ", ".join(comparison.wrong) or "some layer"
    way = "report it with the file"
    if unsafe:
        way = (
            "its 8-bit kernels saturate on this CPU: export the run again with cpu any, or run the "
            f"file with the session option {EXACT_KERNELS} set to 1"
        )
    raise ModelError(
        f"{path}: ONNX Runtime does not compute what the file's integers say for "
        f"{comparison.images - comparison.equal} of {comparison.images} images (largest difference "
        f"{comparison.largest:.3g}, in {where}); {way}"
    )


def _kernels(file: onnx.ModelProto, policy: Policy) -> dict[str, int]:
    try:
        return dict(check_kernels(file, policy))
    except (KeyError, IndexError) as error:
        raise ModelError(f"the file's policy does not fit its layers: {error}") from error


def _some_images(data: Data | None, metadata: Mapping[str, Any]) -> Feeds:
    shape = tuple(metadata["shape"])
    if data is None:
        return _feeds(like_record(metadata, SIMULATED))
    if tuple(data.shape) != shape:
        wanted, given = ("x".join(map(str, sizes)) for sizes in (shape, data.shape))
        raise DataError(f"the file takes images of {wanted}; {data.name} has {given}")
    images, _ = data.test.batch(torch.arange(min(SIMULATED, len(data.test))))
    return _feeds(images)


def _feeds(inputs: Inputs) -> Feeds:
    if isinstance(inputs, Tensor):
        images: Array = inputs.numpy()
        return images
    return {name: value.numpy() for name, value in zip(inputs.names, inputs.tensors, strict=True)}
