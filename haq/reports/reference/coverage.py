"""The table of what becomes of networks, from the records coverage.json and float_islands.json."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from haq.reports.reference.markdown import markdown

Row = Mapping[str, Any]

POLICIES = ("w7a8", "w4a8", "w4a4")
STAGES = ("calibration", "sensitivities", "export")

LARGE_SHARE, EQUAL = 0.98, 0.995
"""What is remarked upon below: the share of the weights in layers, and of equal answers."""


def coverage_tables(record: Mapping[str, Any], islands: Mapping[str, Any] | None) -> str:
    """Return a row for each library, and sentences on the networks that stand out."""
    rows: Mapping[str, Row] = record["rows"]
    libraries = dict.fromkeys(name.partition(":")[0] for name in rows)
    head = [
        "networks", "captured", "98 % of the weights in layers", *POLICIES, "CPU s, median (most)",
    ]  # fmt: skip
    table = [
        [f"{library} ({len(some)})", *_figures(some)]
        for library in libraries
        if (some := [row for name, row in rows.items() if name.startswith(f"{library}:")])
    ]
    parts = [markdown(_lead(record), head, table), *_remarks(rows), *_islands(islands)]
    return "\n\n".join(part for part in parts if part)


def _lead(record: Mapping[str, Any]) -> str:
    return (
        "Random weights, small inputs, 32 of them for calibration and 32 others compared: the "
        "least share of equal answers of PyTorch and the file in ONNX Runtime, and of how many "
        "networks every file is equal to the last bit. CPU seconds are those of calibration, "
        f"sensitivities and export. (`{record['command']}`, {record['machine']['cpu']})"
    )


def _figures(rows: list[Row]) -> list[str]:
    captured = [row for row in rows if row.get("captured")]
    compared = [row for row in captured if row.get("agreement")]
    seconds = [sum(row["stages"][stage]["cpu_s"] for stage in STAGES) for row in compared]
    return [
        str(len(captured)),
        str(sum(row["share_of_weights"] >= LARGE_SHARE for row in captured)),
        *(_agreement(compared, policy) for policy in POLICIES),
        f"{median(seconds):.0f} ({max(seconds):.0f})" if seconds else "",
    ]


def _agreement(rows: list[Row], policy: str) -> str:
    each = [row["agreement"][policy] for row in rows]
    least = min((one["equal_answers"] for one in each), default=0)
    equal = sum(one["outputs_bit_equal"] for one in each)
    return f"{least:.1%}, {equal} of {len(each)}"


def _remarks(rows: Mapping[str, Row]) -> list[str]:
    shares = [
        f"{name} {row['share_of_weights']:.1%}"
        for name, row in rows.items()
        if row.get("captured") and row["share_of_weights"] < LARGE_SHARE
    ]
    apart = [
        f"{name} ({policy}) {one['equal_answers']:.1%}"
        for name, row in rows.items()
        for policy, one in row.get("agreement", {}).items()
        if one["equal_answers"] < EQUAL
    ]
    refused = [
        f"{name}: {row[kind]['why']}"
        for name, row in rows.items()
        for kind in ("refused", "failed")
        if kind in row
    ]
    return [
        f"Less than 98 % of the weights are in layers of: {'; '.join(shares)}." if shares else "",
        f"Fewer answers are equal of: {'; '.join(apart)}." if apart else "",
        "\n".join(["Not searched:", "", *(f"- {one}" for one in refused)]) if refused else "",
    ]


def _islands(record: Mapping[str, Any] | None) -> list[str]:
    if record is None:
        return []
    said = "; ".join(
        f"{name}: {times['exact']:.1f} ms, {times['float32']:.1f} with ONNX Runtime's softmax and "
        f"LayerNormalization, {times['plain']:.1f} where products of attention are float32 too"
        for name, row in record["rows"].items()
        for times in (row["median_ms"],)
    )
    return [
        "What is float between layers is computed so that PyTorch and the file give the same to "
        f"the last bit. That costs latency in ONNX Runtime, at one thread. {said}. "
        f"(`{record['command']}`)"
    ]
