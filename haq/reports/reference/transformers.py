"""Markdown of the studies of transformers: the tables of docs/networks.md."""

from collections.abc import Mapping
from typing import Any

from haq.reports.reference.markdown import markdown

Record = Mapping[str, Any]

_NAMES = {
    "float32": "float32", "int8 dynamic": "int8 dynamic per channel, right with VNNI",
    "int8 dynamic, codes to 63": "the same, codes to 63: right on every CPU",
    "dynamic 7, tensor": "7 bits, dynamic, a scale a call (HAQ), right on every CPU",
    "dynamic 7, token": "7 bits, dynamic, a scale a token (HAQ), right on every CPU",
    "uniform int4": "4 bits everywhere, groups of 32",
    "plain dealing": "2, 4 and 8 bits dealt plainly",
}  # fmt: skip


def transformers_tables(minilm: Record | None, gpt2: Record | None) -> str:
    """Return the tables of those of the two studies that there are."""
    parts = [_minilm(minilm)] if minilm else []
    return "\n\n".join([*parts, *([_gpt2(gpt2)] if gpt2 else [])])


def _minilm(record: Record) -> str:
    counts = sorted({row["sentences"] for row in record["rows"].values()})
    said = " or ".join(map(str, counts))
    lead = (
        f"MiniLM (22.7 million weights, embeddings included) with weights alone quantized, "
        f"searched on {said} sentences without labels; the cosine of the file's "
        "answers in ONNX Runtime to float, mean and least of 48 other sentences; bits for each "
        "weight of the codes alone, and of codes and scales; latency of one thread as a share of "
        f"float32's, interleaved, on {record['machine']['cpu']}, at sentences x tokens; CPU "
        "seconds from loaded weights to the file (results/benchmarks/minilm.py):"
    )
    times = record.get("latency", {})
    head = ["", "bits", "with scales", "cosine", "least", "file", *times, "CPU s"]
    order = sorted(record["rows"], key=lambda name: list(_NAMES).index(name) if name in _NAMES
                   else len(_NAMES) + _bits(name))  # fmt: skip
    rows = [_minilm_row(name, record["rows"][name], times) for name in order]
    table = markdown(lead, head, rows)
    return "\n\n".join([table, *filter(None, [record.get("latency_note")])])


def _bits(name: str) -> float:
    """Return the bits in the name of a searched row; those of all bytes come last."""
    return float(name.split()[1]) + {"whole": 100, "dynamic": 0.1}.get(name.split()[-1], 0)


def _minilm_row(name: str, row: Mapping[str, Any], times: Mapping[str, Any]) -> list[str]:
    said = _NAMES.get(name) or f"searched, {name.split()[1]} bits"
    said += " of all bytes" if name.endswith("whole") else ""
    said += ", products in 8 bits" if name.endswith("dynamic") and name not in _NAMES else ""
    bits, whole = row.get("avg_weight_bits"), row.get("bits_of_all_bytes")
    ratios = [
        f"{of[name]['us'] / of['float32']['us']:.2f}" if name in of else "" for of in times.values()
    ]
    return [
        said, "" if bits is None else f"{bits:.2f}", "" if whole is None else f"{whole:.2f}",
        f"{row['cosine_mean']:.4f}", f"{row['cosine_least']:.4f}",
        f"{row['file_bytes'] / 1e6:.1f} MB", *ratios,
        f"{row['cpu_s']:.0f}" if "cpu_s" in row else "",
    ]  # fmt: skip


def _gpt2(record: Record) -> str:
    lead = (
        f"A decoder like GPT-2 of {record['parameters']:,} weights, trained for "
        f"{record['training_cpu_s']:.0f} CPU seconds on a text made from a seed, float perplexity "
        f"{record['float']['perplexity']:.3f}; weights in groups of 32, the tied head included; "
        "tokens that the file in ONNX Runtime and PyTorch continue eight prompts with "
        "(results/benchmarks/gpt2.py):"
    )
    head = ["budget", "bits", "perplexity", "file", "equal tokens", "equal to float", "CPU s"]
    rows = [
        [
            f"{budget} bits", f"{row['avg_weight_bits']:.2f}", f"{row['perplexity']:.3f}",
            f"{row['file_bytes'] / 1e3:.0f} kB",
            f"{row['equal_in_onnx_runtime']} of {row['tokens']}",
            f"{row['equal_to_float']}", f"{row['cpu_s']:.0f}",
        ]
        for budget, row in record["rows"].items()
    ]  # fmt: skip
    return markdown(lead, head, rows)
