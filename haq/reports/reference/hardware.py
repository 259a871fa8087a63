"""Markdown of what knowing the hardware is worth."""

from typing import Any

from haq.reports.reference.markdown import markdown

_KINDS = ("depthwise", "pointwise")


def ne16_table(records: list[dict[str, Any]]) -> str:
    """Return policies for NE16 beside uniform widths of the same cycles."""
    (record,) = records
    lead = (
        f"{record['model']} (width {record['width']}) on `{record['target']}` (modelled): the "
        "policy of the least sum of sensitivities within the cycles of each uniform width, both "
        f"with corrected statistics, nothing trained; {record['test_images']:,} test images "
        f"(float {record['float_test_accuracy']:.2%}), gains in points with the standard error of "
        "paired answers. A 1x1 layer takes as long at 2 bits as at 8, so pointwise layers keep 8:"
    )
    rows = [
        [
            str(row["weight_bits"]), f"{row['uniform']['cycles']:,.0f}",
            f"{row['uniform']['test_accuracy']:.2%}", f"{row['ours']['test_accuracy']:.2%}",
            f"{row['gain']['points'] or 0.0:+.2f} ± {row['gain']['standard_error']:.2f}",
            *(f"{row['ours']['mean_weight_bits'][kind]:.1f}" for kind in _KINDS),
        ]
        for row in record["rows"]
    ]  # fmt: skip
    head = ["uniform bits", "cycles", "uniform", "ours", "gain", "depthwise bits", "pointwise bits"]
    return markdown(lead, head, rows)


def ethos_u_table(records: list[dict[str, Any]]) -> str:
    """Return policies for an Ethos-U beside uniform widths of the same bytes in flash."""
    (record,) = records
    lead = (
        f"{record['model']} on `{record['target']}`: the policy of the least sum of sensitivities "
        "within the bytes in flash of each uniform width, as Arm's encoder gives them for the "
        "codes of each network; both with corrected statistics, nothing trained; of two kinds of "
        f"sensitivities {record['validation_images']:,} validation images choose; "
        f"{record['test_images']:,} test images (float {record['float_test_accuracy']:.2%}), gains "
        "in points with the standard error of paired answers. At 2 bits nothing else fits:"
    )
    rows = [
        [
            str(row["weight_bits"]), f"{row['uniform']['flash_bytes']:,.0f}",
            f"{row['ours']['flash_bytes']:,.0f}",
            f"{row['uniform']['val_divergence']:.4f}", f"{row['ours']['val_divergence']:.4f}",
            f"{row['uniform']['test_accuracy']:.2%}",
            f"{row['ours']['test_accuracy']:.2%}",
            f"{row['gain']['points'] or 0.0:+.2f} ± {row['gain']['standard_error']:.2f}",
        ]
        for row in record["rows"]
    ]  # fmt: skip
    head = [
        "uniform bits", "bytes in flash", "ours", "divergence (validation)", "ours", "accuracy",
        "ours", "gain",
    ]  # fmt: skip
    return markdown(lead, head, rows)


def file_latency_table(records: list[dict[str, Any]]) -> str:
    """Return what exported files take beside those of ONNX Runtime's own quantizer."""
    (record,) = records
    lead = (
        "Latency of exported files as a multiple of that of ONNX Runtime's own `quantize_static` "
        "(QDQ, int8, a scale a channel), all files of a row interleaved in one run on "
        f"{record['options']['cpu']} ({record['options']['instructions']}): median of "
        f"{record['rows'][0]['repeats']} runs with sessions opened anew, and their extremes. w8a8 "
        "is written for CPUs with VNNI, all others are exact on every x86 CPU:"
    )
    files = list(dict.fromkeys(row["file"] for row in record["rows"]))
    files.remove("quantize_static")
    of = {(row["network"], row["threads"], row["file"]): row for row in record["rows"]}
    rows = [
        [
            network, str(threads), f"{of[network, threads, 'quantize_static']['latency_us']:,.0f}",
            *(_ratio(of[network, threads, file]) for file in files),
        ]
        for network, threads in dict.fromkeys(key[:2] for key in of)
    ]  # fmt: skip
    return markdown(lead, ["network", "threads", "quantize_static us", *files], rows)


def _ratio(row: dict[str, Any]) -> str:
    return f"{row['of_quantize_static']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
