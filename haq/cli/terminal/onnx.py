"""Print what is known of an ONNX file."""

from pathlib import Path
from typing import Any

from haq.cli.terminal.console import console
from haq.metrics import metric_of


def print_onnx(summary: dict[str, Any]) -> None:
    """Print what an exported file is worth in ONNX Runtime."""
    screen = console()
    kernels = ", ".join(f"{count} {kernel}" for kernel, count in summary["kernels"].items())
    screen.print(f"layers run in {kernels}")
    if "test_images" in summary:
        metric = metric_of(summary)
        if "top1_agreement" in summary:
            alike = f"same answer for {summary['top1_agreement']:.2%}"
        else:
            alike = f"cosine of both answers {summary['cosine_to_torch']:.4f}"
        own, other = (summary[metric.key(f"{who}_test")] for who in ("onnxruntime", "torch"))
        screen.print(
            f"{metric.said} on {summary['test_images']} test images: ONNX Runtime "
            f"{metric.text(own)}, PyTorch {metric.text(other)}; {alike} of "
            f"{summary['compared_images']}"
        )
    times = summary["latency"]
    own = times["this"]["value"]
    shares = ", ".join(
        f"{own / times[name]['value']:.2f} of {label}'s {times[name]['value']:,.0f} us"
        for name, label in (("fp32", "the float network"), ("quantize_static", "quantize_static"))
        if name in times
    )
    if "without_quantize_static" in times:
        shares += f" (quantize_static of ONNX Runtime fails: {times['without_quantize_static']})"
    screen.print(
        f"latency of one image, {times['threads']} thread ({times['clock']}, "
        f"{times['statistic']}): {own:,.0f} us; {shares}"
    )


def print_verified(file: Path, result: dict[str, Any]) -> None:
    """Print what was found out about an ONNX file."""
    screen = console()
    screen.print(f"{file}: {result['bytes'] / 1000:.1f} kB, valid ONNX, loads in ONNX Runtime")
    kernels = ", ".join(f"{count} {kernel}" for kernel, count in result["kernels"].items())
    screen.print(f"every layer runs as its bits claim: {kernels}")
    exact = f"{result['equal_images']} of {result['simulated_images']} images equal to the last bit"
    if not result["all_integer"]:
        exact += (
            f", largest difference {result['largest_difference']:.2g} behind float operators; "
            "every layer is right on its own input"
        )
    screen.print(f"integers worked out in numpy: {exact}")
    if result["vnni_only"]:
        layers = ", ".join(result["vnni_only"])
        screen.print(f"right on CPUs with VNNI only, because of {layers}")
    metric = metric_of(result)
    if metric.key("test") in result:
        promised, value = result[metric.key("promised_test")], result[metric.key("test")]
        text = "" if promised is None else f" (its run measured {metric.text(promised)})"
        screen.print(
            f"{metric.said} on {result['test_images']} test images: {metric.text(value)}{text}"
        )
