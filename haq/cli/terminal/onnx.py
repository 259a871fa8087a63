"""Print what is known of an ONNX file."""

from pathlib import Path
from typing import Any

from haq.cli.terminal.console import console


def print_onnx(summary: dict[str, Any]) -> None:
    """Print what an exported file is worth in ONNX Runtime."""
    screen = console()
    kernels = ", ".join(f"{count} {kernel}" for kernel, count in summary["kernels"].items())
    screen.print(f"layers run in {kernels}")
    if "test_images" in summary:
        screen.print(
            f"accuracy on {summary['test_images']} test images: ONNX Runtime "
            f"{summary['onnxruntime_test_accuracy']:.2%}, PyTorch "
            f"{summary['torch_test_accuracy']:.2%}; same answer for "
            f"{summary['top1_agreement']:.2%} of {summary['compared_images']}"
        )
    times = summary["latency"]
    own = times["this"]["value"]
    shares = ", ".join(
        f"{own / times[name]['value']:.2f} of {label}'s {times[name]['value']:,.0f} us"
        for name, label in (("fp32", "the float network"), ("quantize_static", "quantize_static"))
    )
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
    if "test_accuracy" in result:
        promised = result["promised_test_accuracy"]
        text = "" if promised is None else f" (its run measured {promised:.2%})"
        screen.print(
            f"accuracy on {result['test_images']} test images: {result['test_accuracy']:.2%}{text}"
        )
