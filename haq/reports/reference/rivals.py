"""The tables of the first page: HAQ beside other tools at the same task."""

from collections.abc import Mapping
from typing import Any

from haq.reports.reference.markdown import TITLES, markdown

Record = Mapping[str, Any]

MINILM = {
    "int8 dynamic": "ONNX Runtime, `quantize_dynamic` per channel, right with VNNI",
    "int8 dynamic, codes to 63": "the same, right on every x86 CPU",
    "dynamic 7, tensor": "HAQ, 7 bits, right on every x86 CPU",
    "dynamic 7, token": "HAQ, 7 bits with a scale for each token",
    "searched 4 dynamic": "HAQ, searched, 4 bits on average",
    "searched 6 dynamic": "HAQ, searched, 6 bits on average",
}
"""Rows of minilm.json that are shown."""

LENGTH = "1x128"
"""Sentences and tokens of the latency that is shown."""

TOOLS = {
    "model-compression-toolkit": "Sony model-compression-toolkit",
    "nvidia-modelopt": "NVIDIA Model-Optimizer",
}
"""Packages, as they are called in the table."""

METHODS = {"corrected": "statistics corrected", "learned": "rounding learned"}
"""Rows of ptq.json that are shown."""

BITS = (4, 3)


def minilm_table(record: Record) -> str:
    """Return transformers in few bits: what ONNX Runtime's own quantizer gives, and HAQ."""
    times = record["latency"][LENGTH]
    lead = (
        "MiniLM, a sentence encoder of 22.7 million weights (90.3 MB), without labels: mean cosine "
        "of the file's answers to those in float on 48 sentences that nothing was chosen by; "
        f"latency of {LENGTH.split('x')[1]} tokens in ONNX Runtime as a share of float32's, one "
        f"thread, {record['machine']['cpu']} (`python results/benchmarks/minilm.py`):"
    )
    rows = [
        [
            name, f"{row['cosine_mean']:.4f}", f"{row['file_bytes'] / 1e6:.1f} MB",
            f"{times[key]['us'] / times['float32']['us']:.2f}", f"{row['cpu_s']:.0f}",
        ]
        for key, name in MINILM.items() for row in [record["rows"][key]]
    ]  # fmt: skip
    return markdown(lead, ["tool", "cosine", "file", "latency", "CPU s"], rows)


def rounding_table(ptq: Record, rivals: Record) -> str:
    """Return weights in few bits without labels and without fine-tuning, of HAQ and other tools."""
    rows = [row for row in ptq["rows"] if row["network"] == "as it is"]
    (float_row,) = (row for row in rows if row["method"] == "float")
    lead = (
        f"{ptq['model']} on {TITLES[ptq['data']]}, weights in {BITS[0]} and {BITS[1]} bits on "
        "average, activations in float, without labels and without fine-tuning; each tool chooses "
        "the bits of layers itself: HAQ among 2 to 8, Model-Optimizer among 2, 3, 4 and 8, Sony's "
        "tool among 2, 4 and 8, whose GPTQ was not run. Test accuracy "
        f"(float {float_row['test_accuracy']:.2%}), and CPU seconds of one "
        "thread (`python results/benchmarks/ptq.py` and `rivals.py`):"
    )
    cells: dict[str, dict[float, Record]] = {}
    for row in rows:
        if row["method"] in METHODS:
            name = f"HAQ, {METHODS[row['method']]}"
            cells.setdefault(name, {})[row["avg_weight_bits"]] = row
    for row in rivals["rows"]:
        name = f"{TOOLS[row['tool']]} {row['version']}, {row['method']}"
        cells.setdefault(name, {})[row["avg_weight_bits"]] = row
    head = ["tool", *(text for bits in BITS for text in (f"{bits} bits", "CPU s"))]
    table = [
        [name, *(text for bits in BITS for text in _cells(by_bits.get(bits)))]
        for name, by_bits in cells.items()
    ]
    return markdown(lead, head, table)


def _cells(row: Record | None) -> tuple[str, str]:
    if row is None:
        return "-", "-"
    return f"{row['test_accuracy']:.2%}", f"{row['cpu_seconds']:.0f}"
