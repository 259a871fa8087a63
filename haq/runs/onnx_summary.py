"""What a run's ONNX file is worth where it is run: accuracy, agreement, latency."""

import copy
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from safetensors.torch import load_file
from torch import Tensor, fx, nn

from haq.allocation.policy import FLOAT
from haq.allocation.trials import Score
from haq.datasets import DATASETS, Data, load
from haq.formats.onnx.layout import Layout, layout_in, with_sizes
from haq.formats.onnx.lower import lower
from haq.formats.onnx.runtime import answered, fed
from haq.formats.onnx.saturation import exact_but_slower, saturating
from haq.formats.onnx.template import template
from haq.formats.onnx.values import Array
from haq.hw_profiles.measure import onnx_runtime, timing
from haq.hw_profiles.measure.timing import Timing
from haq.metrics import METRICS, Metric, metric_of
from haq.models.onnx.runtime import plain
from haq.models.weights import load_weights
from haq.network.graph import trace
from haq.network.inputs import Inputs, random_inputs, tensors_of
from haq.quantization.fake_quant import Quantized, Rounding, set_plain
from haq.runs import folder as folders
from haq.runs.api import Run
from haq.runs.export import FORMAT
from haq.runs.handover import SETUP, check_kernels
from haq.runs.named import reading_of, rebuilt
from haq.runs.progress import OnProgress, Progress, silent
from haq.runs.restored import Restored, restored
from haq.runs.samples import Part, Shown
from haq.training.scoring import Reference, logits, score, score_answers
from haq.training.teacher import teacher_from

AGREEING = 2000
"""Test images on which the file's answers are compared with those of the PyTorch network."""

_BATCH = 100
_CALIBRATION_IMAGES = 128
_TOGETHER = 16


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
    finished = restored(run, model)
    data = _data(finished)
    summary: dict[str, Any] = {
        "format": FORMAT,
        "bytes": file.ByteSize(),
        "kernels": dict(check_kernels(file, finished.policy)),
        "exact_but_slower": exact_but_slower(file),
        "vnni_only": [one.layer for one in saturating(file)],
    }
    if data is not None:
        metric = metric_of(finished.summary)
        before = _float_network(run, finished, model) if metric.needs == "reference" else None
        summary |= answers(file, finished.network, data, on_progress, metric, before)
    floats = _float_file(run, finished, model)
    summary |= {"latency": _latencies(file, floats, data, finished.sample, on_progress)}
    summary["provenance"] = folders.provenance(["haq", "export"])
    folder = run.folder if isinstance(run, Run) else folders.find_folder(os.fspath(run))
    folders.write_json(folder / "onnx.json", summary)
    return summary


def _data(finished: Restored) -> Data | None:
    """Return the data of a run that named them; a run with tensors of its caller's has none."""
    name = finished.job.data
    if name.partition(":")[0] not in DATASETS and ":" not in name:
        return None
    return load(name, finished.job.seed, finished.job.size, reading_of(finished.job))


def answers(
    file: onnx.ModelProto,
    network: nn.Module,
    data: Data,
    on_progress: OnProgress = silent,
    metric: Metric = METRICS["top1"],
    floats: nn.Module | None = None,
) -> dict[str, Any]:
    """Return the metric and the agreement of a file and its PyTorch network on all test inputs.

    Args:
        file: The network's.
        network: In PyTorch.
        data: Takes their test inputs.
        on_progress: Called often.
        metric: What counts.
        floats: The float network, where the metric needs it.

    Returns:
        What ``onnx.json`` holds of answers: of logits the share of equal classes, of others the
        cosine between both answers.
    """
    reference = None if floats is None else teacher_from(floats)
    own = score(network, data.test, _BATCH, reference=reference, metric=metric)
    some = Part(data.test, torch.arange(min(AGREEING, len(data.test))))
    first = logits(network, data.test.batch(torch.zeros(1, dtype=torch.int64))[0])
    alike = METRICS["agreement" if first.dim() == 2 and data.classes else "cosine"]
    answer = _answer_of(file)
    both = score_answers(answer, some, _BATCH, reference=teacher_of(network), metric=alike)
    return {
        "test_images": len(data.test), "metric": metric.name,
        metric.key("onnxruntime_test"): metric.of_score(
            tested(file, data, metric, on_progress, reference).accuracy
        ),
        metric.key("torch_test"): metric.of_score(own.accuracy),
        "compared_images": len(some),
        "top1_agreement" if alike.name == "agreement" else "cosine_to_torch": both.accuracy,
    }  # fmt: skip


def tested(
    file: onnx.ModelProto,
    data: Data,
    metric: Metric,
    on_progress: OnProgress,
    reference: Reference | None = None,
) -> Score:
    """Return the score of a file's answers in ONNX Runtime on all test inputs."""
    count = len(data.test)
    shown = Shown(data.test, lambda done: on_progress(Progress("test", done, count)))
    return score_answers(_answer_of(file), shown, _BATCH, reference=reference, metric=metric)


def _answer_of(file: onnx.ModelProto) -> Callable[[Inputs], Tensor]:
    session = onnx_runtime.session(file.SerializeToString(), SETUP)

    def answer(inputs: Inputs) -> Tensor:
        return torch.from_numpy(answered(session, inputs))

    return answer


def teacher_of(network: nn.Module) -> Reference:
    """Return what gives a network's own answers, computed in float32."""
    return lambda index, inputs: logits(network, inputs)


def _float_network(
    run: Run | str | os.PathLike[str], finished: Restored, model: nn.Module | None
) -> nn.Module:
    folder = run.folder if isinstance(run, Run) else folders.find_folder(os.fspath(run))
    floats = rebuilt(finished.job, finished.summary["images"]) if model is None else model
    floats = copy.deepcopy(floats)
    load_weights(floats, folder / "float.safetensors")
    return floats.eval()


def _float_file(
    run: Run | str | os.PathLike[str], finished: Restored, model: nn.Module | None
) -> onnx.ModelProto:
    """Return the float network that a run began with, in the form in which files are written."""
    folder = run.folder if isinstance(run, Run) else folders.find_folder(os.fspath(run))
    network = copy.deepcopy(finished.network)
    for module in network.modules():
        if isinstance(module, Rounding):
            module.bits = FLOAT
        elif isinstance(module, Quantized):
            set_plain(module)
    state, own = load_file(folder / "float.safetensors"), network.state_dict()
    if any(name in own and own[name].shape != value.shape for name, value in state.items()):
        # Weights that a network stores transposed are those of layers in its graph.
        state = trace(_float_network(run, finished, model), finished.sample).traced.state_dict()
    network.load_state_dict(state, strict=False)
    assert isinstance(network, fx.GraphModule)
    return lower(template(network, finished.sample), network)


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(
        self, data: Data | None, shape: tuple[int, ...], name: str, rows: Inputs | None,
        layout: Layout | None = None,
    ):  # fmt: skip
        count, self._name, self._layout = _CALIBRATION_IMAGES, name, layout
        images = random_inputs(shape, count) if rows is None or not _has_tokens(rows) else rows
        if data is not None:
            images, _ = data.train.batch(torch.arange(min(count, len(data.train))))
        each = _TOGETHER if layout is None else layout.inputs[0].rows or SETUP.batch
        self._left = iter(images.split(each))

    def get_next(self) -> dict[str, Array] | None:
        """Return the next images, None after the last."""
        batch = next(self._left, None)
        if batch is None:
            return None
        if self._layout is not None:
            fed = self._layout.feed(self._layout.rows_of(batch))
            return {one.name: fed[one.name] for one in self._layout.inputs}
        if isinstance(batch, Tensor):
            return {self._name: batch.numpy()}
        return {name: one.numpy() for name, one in zip(batch.names, batch.tensors, strict=True)}


def _has_tokens(rows: Inputs) -> bool:
    return any(not tensor.is_floating_point() for tensor in tensors_of(rows))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ONNX Runtime's quantizer from warning of every norm, and numpy of infinite masks."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        logging.disable(before)


def static(floats: onnx.ModelProto, data: Data | None, rows: Inputs | None = None) -> bytes:
    """Return what ONNX Runtime's own quantizer makes of a float network: 8 bits everywhere.

    Args:
        floats: The network's file.
        data: Calibrates on its training inputs.
        rows: Inputs to calibrate on where there are no data and they are tokens.
    """
    first, layout = floats.graph.input[0], layout_in(floats)
    sizes = tuple(size.dim_value for size in first.type.tensor_type.shape.dim[1:])
    if layout is not None:
        floats = with_sizes(floats, SETUP.batch)
        one = layout.inputs[0]
        sizes = (*one.shape[: one.axis], *one.shape[one.axis + 1 :])
    reader = _Images(data, sizes, first.name, rows, layout)
    with tempfile.TemporaryDirectory() as folder:
        source, ready, out = (
            Path(folder) / f"{name}.onnx" for name in ("float", "ready", "static")
        )
        onnx.save(floats, source)
        quant_pre_process(source, ready, skip_symbolic_shape=True)
        with _quiet():
            quantize_static(
                ready, out, reader, quant_format=QuantFormat.QDQ, per_channel=True,
                weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
            )  # fmt: skip
        return out.read_bytes()


def _latencies(
    file: onnx.ModelProto,
    floats: onnx.ModelProto,
    data: Data | None,
    rows: Inputs,
    on_progress: OnProgress,
) -> dict[str, Any]:
    models = {"this": file.SerializeToString(), "fp32": floats.SerializeToString()}
    missing = {}
    try:
        quantized = static(floats, data, rows)
        tried = onnx_runtime.session(quantized, SETUP)
        tried.run(None, fed(tried, rows[: SETUP.batch]))
        models["quantize_static"] = quantized
    except Exception as error:  # of its own, for networks that it cannot take
        missing["without_quantize_static"] = plain(str(error).splitlines()[0])[:200]
    models = {
        name: with_sizes(onnx.load_from_string(model), SETUP.batch).SerializeToString()
        for name, model in models.items()
    }
    sessions = {name: onnx_runtime.session(model, SETUP) for name, model in models.items()}

    def on_round(done: int, most: int) -> None:
        on_progress(Progress("measure", done, most))

    own = _has_tokens(rows) and layout_in(file) is None
    given = fed(sessions["this"], rows[: SETUP.batch]) if own else None
    times = onnx_runtime.measure(sessions, SETUP, on_round=on_round, given=given)
    return {
        "unit": "us", "batch": SETUP.batch, "threads": SETUP.threads, "clock": SETUP.clock,
        "statistic": f"p{timing.QUANTILE}", **{n: _interval(t) for n, t in times.items()},
        **missing,
    }  # fmt: skip


def _interval(timing: Timing) -> dict[str, float]:
    return {"value": timing.us, "low": timing.low, "high": timing.high}
