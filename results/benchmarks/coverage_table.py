"""One row of the coverage table: how far a network gets, and what that takes."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from haq.allocation.policy import FLOAT, Bits
from haq.errors import HaqError
from haq.formats import checkpoint
from haq.formats.onnx.lower import lower
from haq.formats.onnx.runtime import opened
from haq.formats.onnx.template import template
from haq.hw_profiles.measure.kernels import INTEGER
from haq.network.graph import Graph, trace
from haq.network.inputs import Inputs, as_inputs, kind_of
from haq.network.lifting.names import input_names
from haq.network.outputs import float_tensors
from haq.quantization.calibration import Clips, calibrate
from haq.quantization.convert import convert_to_integers
from haq.quantization.fake_quant import quantize
from haq.quantization.quantizer import BITS
from haq.quantization.second_order import second_order
from haq.quantization.statistics import correct, statistics
from haq.runs.handover import check_kernels

CALIBRATED_ON, COMPARED_ON = 32, 32


class Stages:
    """CPU seconds and the peak of memory of each stage.

    Attributes:
        rows: Stage to its figures.
    """

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what happens while this is open."""
        before, started = _reset_peak(), time.process_time()
        try:
            yield
        finally:
            row = {"cpu_s": round(time.process_time() - started, 2)}
            peak = _peak_mb()
            if peak is not None and before is not None:
                row |= {"peak_mb": round(peak), "more_mb": round(peak - before)}
            self.rows[name] = row


def _status(field: str) -> float | None:
    """Return a figure of this process in MB, where the system tells (Linux)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def _reset_peak() -> float | None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return _status("VmRSS")


def _peak_mb() -> float | None:
    return _status("VmHWM")


def coverage(model: nn.Module, inputs: Any, count: int = COMPARED_ON) -> dict[str, Any]:
    """Return the row of a network: how far it gets, and what that takes.

    Args:
        model: With the weights it has.
        inputs: From a number of inputs and a seed to the inputs.
        count: Inputs of agreement.
    """
    row: dict[str, Any] = {}
    stages = Stages()
    row["stages"] = stages.rows
    try:
        _fill(row, stages, model.eval(), inputs, count)
    except Exception as error:
        known = isinstance(error, HaqError)
        stage = next(reversed(stages.rows), "")
        row["refused" if known else "failed"] = {
            "at": stage, "why": str(error) if known else f"{type(error).__name__}: {error}"[:400]
        }  # fmt: skip
    return row


def _fill(row: dict[str, Any], stages: Stages, model: nn.Module, inputs: Any, count: int) -> None:
    row["weights_mb"] = round(sum(p.nbytes for p in model.parameters()) / 2**20, 1)
    calibration, others = inputs(CALIBRATED_ON, 1), inputs(count, 2)
    few = tuple(value[:2] for value in calibration)
    _normalise(model, calibration)
    with stages.stage("capture"):
        graph = trace(model, _given(model, few))
    row["captured"] = True
    row["notes"] = list(graph.notes)
    weights, floats = sum(one.weights for one in graph.layers), sum(graph.float_parameters.values())
    row["layers"] = len(graph.layers)
    row["share_of_weights"] = round(weights / (weights + floats), 4)
    row["share_of_macs"] = _share_of_macs(model, few, sum(one.macs for one in graph.layers))
    row["left_float"] = sorted(graph.float_parameters)[:5]
    with stages.stage("calibration"):
        clips = calibrate(graph, [_given(model, calibration)])
    _corrections(stages, graph, clips, _given(model, calibration))
    policy = _policy(graph, 4, 8)
    with stages.stage("export"):
        stand_in = quantize(graph, policy, clips)
        exported = template(stand_in, _given(model, few))
    row["untranslated"] = exported.untranslated
    row["agreement"] = {}
    for name, pair in {"w7a8": (7, 8), "w4a8": (4, 8), "w4a4": (4, 4)}.items():
        policy = _policy(graph, *pair)
        network = quantize(graph, policy, clips)
        with stages.stage(f"conversion {name}"):
            convert_to_integers(network)
        with stages.stage(f"lowering {name}"):
            file = lower(exported, network)
        if name == "w7a8":
            try:
                kernels = check_kernels(file, policy)
                row["kernels"] = dict(kernels)
                row["integer_layers"] = sum(kernels[kind] for kind in INTEGER)
            except HaqError as error:
                row["kernels_refused"] = str(error)
        row["agreement"][name] = _agreement(network, file, others)
        if name == "w4a8":
            with stages.stage("checkpoint"):
                row["checkpoint_equal"] = _checkpoint(model, network, policy, others)
    row["file_mb"] = round(file.ByteSize() / 2**20, 2)


def _normalise(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Give BatchNorms the statistics of some inputs: with others random weights answer alike."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        model(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def _corrections(stages: Stages, graph: Graph, clips: Clips, images: Inputs) -> None:
    with stages.stage("sensitivities"):
        weights = {layer.name: BITS for layer in graph.layers}
        acts = {layer.name: BITS for layer in graph.layers if not layer.weights_alone}
        second_order(graph, clips, images, {"weights": weights, "activations": acts})
    with stages.stage("statistics"):
        known = statistics(graph, images, clips)
        correct(quantize(graph, _policy(graph, 4, 8), clips), graph, known, images)


def _policy(graph: Graph, weight: int, act: int) -> dict[str, Bits]:
    return {
        one.name: Bits(weight, FLOAT if one.weights_alone else 8 if one.reads_input else act)
        for one in graph.layers
    }


def _given(model: nn.Module, tensors: tuple[Tensor, ...]) -> Inputs:
    if len(tensors) == 1:
        return tensors[0]
    return as_inputs(dict(zip(input_names(model), tensors, strict=False)))


def _share_of_macs(model: nn.Module, few: tuple[Tensor, ...], macs: int) -> float | None:
    from torch.utils.flop_counter import FlopCounterMode

    model.requires_grad_(False)  # the counter fails on some views of parameters that have gradients
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*few)
    model.requires_grad_(True)
    every = counter.get_total_flops() / 2 / len(few[0])
    return round(min(1.0, macs / every), 4) if every else None


def _agreement(network: nn.Module, file: Any, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    session = opened(file.SerializeToString())
    names = [value.name for value in session.get_inputs()]
    answers, expected = [], []
    for part in zip(*(value.split(8) for value in inputs), strict=True):
        given = {name: value.numpy() for name, value in zip(names, part, strict=True)}
        outputs = [torch.from_numpy(value) for value in session.run(None, given)]
        answers.append([value for value in outputs if value.is_floating_point()])
        with torch.no_grad():
            expected.append(float_tensors(network(*part)))
    pairs = list(zip(_joined(answers), _joined(expected), strict=True))
    return _compared(*pairs[0]) | {"outputs_bit_equal": all(torch.equal(*pair) for pair in pairs)}


def _joined(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.cat(values) for values in zip(*parts, strict=True)]


def _compared(answers: Tensor, expected: Tensor) -> dict[str, Any]:
    axis = 1 if expected.dim() in (2, 4, 5) else -1
    same = answers.argmax(axis) == expected.argmax(axis)
    bits = (answers == expected).flatten(1).all(1)
    apart = (answers - expected).abs().flatten(1).amax(1)
    spread = float(expected.max() - expected.min()) or 1.0
    return {
        "equal_answers": round(float(same.float().mean()), 4),
        "bit_equal": round(float(bits.float().mean()), 4),
        "largest_of_range": float(f"{float(apart.max()) / spread:.2g}"),
        "different_answers": len(answers.argmax(axis).unique()),
    }


def _tokens(value: Tensor) -> int | None:
    return None if value.is_floating_point() else int(value.max()) + 1


def _checkpoint(model: nn.Module, network: Any, policy: Any, inputs: tuple[Tensor, ...]) -> bool:
    several = kind_of(_given(model, inputs))
    shape, tokens = tuple(inputs[0].shape[1:]), _tokens(inputs[0])
    origin = checkpoint.Origin(model="own", shape=shape, tokens=tokens, inputs=several)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        checkpoint.save(path, network, policy, origin)
        loaded = checkpoint.load(path, model)
    with torch.no_grad():
        part = tuple(value[:4] for value in inputs)
        pairs = zip(float_tensors(loaded(*part)), float_tensors(network(*part)), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)
