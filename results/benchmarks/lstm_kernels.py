"""LSTMs in ONNX Runtime: float, our packed weights in the float kernel, and DynamicQuantizeLSTM.

python results/benchmarks/lstm_kernels.py

Two layers, random weights as torch draws them, sequences of 32 steps; latencies at one thread, the
files in turn. DynamicQuantizeLSTM (of ``onnxruntime.quantization.quantize_dynamic``) multiplies
8-bit weights with inputs and states that it rounds to 8 bits as it runs. The error is that of the
outputs, as a share of their spread. Writes results/reference/lstm-kernels.json.
"""

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

from haq.allocation.policy import FLOAT, Bits
from haq.formats.onnx.lower import lower
from haq.formats.onnx.runtime import opened
from haq.formats.onnx.template import template
from haq.hw_profiles.measure.onnx_runtime import machine
from haq.network.graph import trace
from haq.quantization.calibration import calibrate
from haq.quantization.fake_quant import quantize
from haq.reports.reference.publish import REFERENCE, script_provenance
from haq.runs.folder import write_json

SIZES, BATCHES, STEPS, ROUNDS = ((64, 128), (128, 512)), (1, 8), 32, 60


class Outputs(nn.Module):
    """Gives all outputs of an LSTM of two layers."""

    def __init__(self, features: int, hidden: int):
        super().__init__()
        self.cells = nn.LSTM(features, hidden, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, steps, hidden)."""
        result: torch.Tensor = self.cells(x)[0]
        return result


def files(model: nn.Module, x: torch.Tensor, folder: Path) -> dict[str, bytes]:
    """Return the three files of a network."""
    graph = trace(model, x)
    clips, written = calibrate(graph, [x]), {}
    for name, bits in {"float": FLOAT, "packed 8 bits": 8, "packed 4 bits": 4}.items():
        network = quantize(graph, {one.name: Bits(bits, FLOAT) for one in graph.layers}, clips)
        written[name] = lower(template(network, x), network).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "float.onnx")  # with plain weights
    onnxruntime.InferenceSession(written["float"], options, ["CPUExecutionProvider"])
    quantize_dynamic(
        folder / "float.onnx", folder / "dynamic.onnx", op_types_to_quantize=["LSTM"],
        per_channel=True, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return {**written, "DynamicQuantizeLSTM": (folder / "dynamic.onnx").read_bytes()}


def measured(features: int, hidden: int, batch: int) -> list[dict[str, Any]]:
    """Return a row a file."""
    torch.manual_seed(0)
    model = Outputs(features, hidden).eval()
    x = torch.randn(8, STEPS, features)
    with tempfile.TemporaryDirectory() as folder:
        written = files(model, x, Path(folder))
    sessions = {name: opened(data) for name, data in written.items()}
    kinds = {
        name: {node.op_type for node in onnx.load_from_string(data).graph.node} & {"LSTM", name}
        for name, data in written.items()
    }
    given = {"images": x[:batch].numpy()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(ROUNDS):
        for name, one in sessions.items():
            started = time.perf_counter()
            one.run(None, given)
            times[name].append(time.perf_counter() - started)
    with torch.no_grad():
        wanted: NDArray[np.float32] = model(x[:batch]).numpy()
    return [
        {
            "features": features, "hidden": hidden, "batch": batch, "file": name,
            "operators": sorted(kinds[name]), "bytes": len(written[name]),
            "latency_us": round(median(times[name]) * 1e6, 1),
            "of_float": round(median(times[name]) / median(times["float"]), 3),
            "error": float(f"{np.std(one.run(None, given)[0] - wanted) / np.std(wanted):.3g}"),
        }
        for name, one in sessions.items()
    ]  # fmt: skip


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    provenance = script_provenance()
    rows = []
    for features, hidden in SIZES:
        for batch in BATCHES:
            rows += measured(features, hidden, batch)
            for one in rows[-4:]:
                print(one, flush=True)
            record = {"what": "LSTMs of two layers in ONNX Runtime, 32 steps.", "rows": rows}
            write_json(REFERENCE / "lstm-kernels.json", {**record, "cpu": machine(), **provenance})


if __name__ == "__main__":
    main()
