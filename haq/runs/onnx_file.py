"""A run's network as an ONNX file, and what such a file is worth where it is run."""

import copy
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from safetensors.torch import load_file
from torch import Tensor, fx, nn

from haq.allocation.policy import FLOAT, Bits, Policy
from haq.datasets import DATASETS, Data, load
from haq.errors import DataError, HaqError, ModelError
from haq.files import write_bytes
from haq.formats.onnx.lower import lower
from haq.formats.onnx.reference import simulate
from haq.formats.onnx.template import template
from haq.hw_profiles.measure import kernels, onnx_runtime, timing
from haq.hw_profiles.measure.onnx_runtime import Setup
from haq.hw_profiles.measure.timing import Timing
from haq.quantization.fake_quant import QuantConv2d, QuantLinear, Rounding
from haq.runs import folder as results
from haq.runs.api import Run
from haq.runs.progress import OnProgress, Progress, silent
from haq.runs.restored import Restored, origin, restored

AGREEING = 2000
"""Test images on which the file's answers are compared with those of the PyTorch network."""

SIMULATED = 100
"""Images that are computed in numpy, integer for integer."""

SETUP = Setup()
"""How files are run here: on the CPU, one image at a time, in one thread."""

FORMAT = "haq-onnx/1"
"""What the metadata entry "haq" of a file says in its field "format"."""

_BATCH = 100
_CALIBRATION_IMAGES = 128

Array = NDArray[Any]


def export_onnx(
    run: Run | str | os.PathLike[str], out: str | os.PathLike[str], model: nn.Module | None = None
) -> onnx.ModelProto:
    """Write the network of a run as a file for ONNX Runtime, and return it.

    The input "images" takes normalised images (N, C, H, W); the metadata entry "haq" says how they
    are normalised, and holds the policy and where the network comes from.

    Args:
        run: Its folder or name, or what ``haq.search`` returned.
        out: Ends in .onnx; folders that are missing are made, an old file is replaced.
        model: As for ``haq.export_checkpoint``.

    Raises:
        HaqError: As ``restored``; the network cannot be exported; or ONNX Runtime would run a layer
            in another kernel than its bits claim.
    """
    path = Path(out)
    if path.suffix != ".onnx":
        raise HaqError(f"{path}: the name of an ONNX file ends in .onnx")
    if path.is_dir():
        raise HaqError(f"{path} is a folder; give the name of a file")
    found = restored(run, model)
    file = lower(template(found.network, _sample(found)), found.network, _metadata(found))
    check(file, found.policy)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, file.SerializeToString())
    return file


def _sample(found: Restored) -> Tensor:
    return torch.zeros(1, *found.summary["images"]["shape"])


def _metadata(found: Restored) -> dict[str, Any]:
    layers = {name: list(bits) for name, bits in found.policy.items()}
    source = origin(found).model_dump(mode="json")
    classes = found.summary["images"].get("classes")
    return {"haq": {"format": FORMAT, "policy": layers, "class_names": classes, **source}}


def check(file: onnx.ModelProto, policy: Policy) -> Counter[str]:
    """Return how often ONNX Runtime uses which kernel for the layers of a file.

    Raises:
        HaqError: The file is not valid ONNX, does not load, or a layer runs in another kernel than
            its bits claim.
    """
    try:
        onnx.checker.check_model(file, full_check=True)
    except Exception as error:  # of several kinds without a base of their own
        raise ModelError(f"the file is not valid ONNX: {error}") from error
    run = onnx_runtime.opened(file.SerializeToString(), SETUP).graph
    origins = kernels.Origins(file.graph, run, list(policy))
    kernels.check_kernels(origins.kernels, policy)
    return Counter(operator for operators in origins.kernels.values() for operator in operators)


def summarise(
    run: Run | str | os.PathLike[str],
    file: onnx.ModelProto,
    model: nn.Module | None = None,
    on_progress: OnProgress = silent,
) -> dict[str, Any]:
    """Return what a run's file is worth in ONNX Runtime, and keep it in the run as ``onnx.json``.

    That is: accuracy on all test images there and in PyTorch, how often both give the same answer,
    and the latency of one image beside that of the float network and of what ONNX Runtime's own
    ``quantize_static`` makes of it (8 bits, per channel), measured in one interleaved run.

    Raises:
        HaqError: As ``restored``.
    """
    found = restored(run, model)
    data = _data(found)
    policy = found.policy
    summary: dict[str, Any] = {
        "format": FORMAT, "bytes": file.ByteSize(), "kernels": dict(check(file, policy)),
    }  # fmt: skip
    if data is not None:
        summary |= answers(file, found.network, data, on_progress)
    floats = _float_file(run, found)
    summary |= {"latency": _latencies(file, floats, data, on_progress)}
    summary["provenance"] = results.provenance(["haq", "export"])
    folder = run.folder if isinstance(run, Run) else results.find_folder(os.fspath(run))
    results.write_json(folder / "onnx.json", summary)
    return summary


def _data(found: Restored) -> Data | None:
    """Return the data of a run that named them; a run with tensors of its caller's has none."""
    name = found.job.data
    if name.partition(":")[0] not in DATASETS and ":" not in name:
        return None
    return load(name, seed=found.job.seed, size=found.job.size)


def answers(
    file: onnx.ModelProto, network: nn.Module, data: Data, on_progress: OnProgress = silent
) -> dict[str, Any]:
    """Return accuracy and agreement of a file and its PyTorch network on all test images."""
    session = onnx_runtime.session(file.SerializeToString(), SETUP)
    right = agree = compared = own = 0
    for images, labels in _batches(data.test, on_progress):
        found = onnx_runtime.answers(session, images.numpy()).argmax(1)
        right += int((found == labels.numpy()).sum())
        with torch.no_grad():
            expected = network(images).argmax(1).numpy()
        own += int((expected == labels.numpy()).sum())
        if compared < AGREEING:
            agree += int((found == expected).sum())
            compared += len(images)
    count = len(data.test)
    return {
        "test_images": count, "onnxruntime_test_accuracy": right / count,
        "torch_test_accuracy": own / count,
        "compared_images": compared, "top1_agreement": agree / compared,
    }  # fmt: skip


def _batches(split: Any, on_progress: OnProgress) -> Iterator[tuple[Tensor, Tensor]]:
    for index in torch.arange(len(split)).split(_BATCH):
        yield split.batch(index)
        on_progress(Progress("test", int(index[-1]) + 1, len(split)))


def _float_file(run: Run | str | os.PathLike[str], found: Restored) -> onnx.ModelProto:
    """Return the float network that a run began with, in the form in which files are written."""
    folder = run.folder if isinstance(run, Run) else results.find_folder(os.fspath(run))
    network = copy.deepcopy(found.network)
    for module in network.modules():
        if isinstance(module, Rounding):
            module.bits = FLOAT
        elif isinstance(module, QuantConv2d | QuantLinear):
            module.__class__ = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear  # type: ignore[assignment]
    network.load_state_dict(load_file(folder / "float.safetensors"), strict=False)
    assert isinstance(network, fx.GraphModule)
    return lower(template(network, _sample(found)), network)


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, data: Data | None, shape: tuple[int, ...]):
        count = _CALIBRATION_IMAGES
        if data is None:
            images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
        else:
            images, _ = data.train.batch(torch.arange(min(count, len(data.train))))
        self._left = iter(images.split(16))

    def get_next(self) -> dict[str, Array] | None:
        """Return the next images, None after the last."""
        batch = next(self._left, None)
        return None if batch is None else {"images": batch.numpy()}


def static(floats: onnx.ModelProto, data: Data | None) -> bytes:
    """Return what ONNX Runtime's own quantizer makes of a float network: 8 bits everywhere."""
    sizes = floats.graph.input[0].type.tensor_type.shape.dim[1:]
    reader = _Images(data, tuple(size.dim_value for size in sizes))
    with tempfile.TemporaryDirectory() as folder:
        source, ready, out = (
            Path(folder) / f"{name}.onnx" for name in ("float", "ready", "static")
        )
        onnx.save(floats, source)
        quant_pre_process(source, ready, skip_symbolic_shape=True)
        quantize_static(
            ready, out, reader, quant_format=QuantFormat.QDQ, per_channel=True,
            weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
        )  # fmt: skip
        return out.read_bytes()


def _latencies(
    file: onnx.ModelProto, floats: onnx.ModelProto, data: Data | None, on_progress: OnProgress
) -> dict[str, Any]:
    models = {
        "this": file.SerializeToString(), "fp32": floats.SerializeToString(),
        "quantize_static": static(floats, data),
    }  # fmt: skip
    sessions = {name: onnx_runtime.session(model, SETUP) for name, model in models.items()}

    def on_round(done: int, most: int) -> None:
        on_progress(Progress("measure", done, most))

    times = onnx_runtime.measure(sessions, SETUP, on_round=on_round)
    return {
        "unit": "us", "batch": SETUP.batch, "threads": SETUP.threads, "clock": SETUP.clock,
        "statistic": f"p{timing.QUANTILE}", **{n: _interval(t) for n, t in times.items()},
    }  # fmt: skip


def _interval(timing: Timing) -> dict[str, float]:
    return {"value": timing.us, "low": timing.low, "high": timing.high}


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
        raise HaqError(f"{path} is not an ONNX file: {error}") from error
    kept = {entry.key: entry.value for entry in file.metadata_props}
    try:
        metadata = json.loads(kept["haq"])
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
    bits claim; what ONNX Runtime computes is compared with the file's integers worked out in numpy;
    and with data its accuracy on all test images is measured.

    Args:
        path: A file that ``export_onnx`` wrote.
        data: Takes its test images; without any, random numbers go through the integers.
        on_progress: Called often.

    Raises:
        HaqError: The file is damaged, something of the above is not so, or the data do not fit.
    """
    file, metadata = read(path)
    policy: Mapping[str, Bits] = metadata["policy"]
    found: dict[str, Any] = {"bytes": Path(path).stat().st_size, "kernels": _kernels(file, policy)}
    session = onnx_runtime.session(file.SerializeToString(), SETUP)
    images = _some_images(data, metadata)
    expected = onnx_runtime.answers(session, images)
    worked_out, exact = simulate(file, images)
    found |= {
        "simulated_images": len(images), "all_integer": exact,
        "equal_images": int((worked_out == expected).all(1).sum()),
        "largest_difference": float(np.abs(worked_out - expected).max()),
    }  # fmt: skip
    if exact and found["equal_images"] != len(images):
        raise ModelError(
            f"{path}: ONNX Runtime does not compute what the file's integers say for "
            f"{len(images) - found['equal_images']} of {len(images)} images (largest difference "
            f"{found['largest_difference']:.3g}); its kernels may saturate on this processor"
        )
    if data is not None:
        right = sum(
            int((onnx_runtime.answers(session, batch.numpy()).argmax(1) == labels.numpy()).sum())
            for batch, labels in _batches(data.test, on_progress)
        )
        found |= {"test_images": len(data.test), "test_accuracy": right / len(data.test)}
        found["promised_test_accuracy"] = metadata["accuracy"].get("final_test_accuracy")
    return found


def _kernels(file: onnx.ModelProto, policy: Policy) -> dict[str, int]:
    try:
        return dict(check(file, policy))
    except (KeyError, IndexError) as error:
        raise ModelError(f"the file's policy does not fit its layers: {error}") from error


def _some_images(data: Data | None, metadata: Mapping[str, Any]) -> Array:
    shape = tuple(metadata["shape"])
    if data is None:
        generator = np.random.default_rng(0)
        return generator.standard_normal((SIMULATED, *shape)).astype(np.float32)
    if tuple(data.shape) != shape:
        wanted, given = ("x".join(map(str, sizes)) for sizes in (shape, data.shape))
        raise DataError(f"the file takes images of {wanted}; {data.name} has {given}")
    images, _ = data.test.batch(torch.arange(min(SIMULATED, len(data.test))))
    result: Array = images.numpy()
    return result
