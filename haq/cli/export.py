"""``haq export``: a run's network as a file to take away."""

from pathlib import Path
from typing import Annotated

import typer

from haq.cli.options import RunFolder, given


def export_command(
    context: typer.Context,
    run: RunFolder,
    format: Annotated[
        str,
        typer.Option(
            help="onnx, for ONNX Runtime, tensorrt, for TensorRT, or safetensors, for haq.load.",
            metavar="NAME",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file to write.", metavar="FILE")],
    cpu: Annotated[
        str,
        typer.Option(
            help="x86 CPUs on which an ONNX file is right: any, or vnni, where layers of 8-bit "
            "weights and activations are faster.",
            metavar="NAME",
        ),
    ] = "any",
    measure: Annotated[
        bool, typer.Option(help="Measure the accuracy and latency of an ONNX file.")
    ] = True,
) -> None:
    """Write a run's network as a file to take away."""
    from haq.errors import HaqError, look_up
    from haq.runs.export import CPUS, FORMATS, cpu_note, float32_note, tensorrt_note

    write = look_up(FORMATS, "format", format)
    look_up(dict.fromkeys(CPUS), "cpu", cpu)
    if format != "onnx" and cpu != "any":
        raise HaqError(f"--cpu {cpu} is for --format onnx; a checkpoint is the same for every CPU")
    if format != "onnx" and "measure" in given(context):
        raise HaqError("--measure is for --format onnx; leave it out")
    written = write(run, out, cpu=cpu) if format == "onnx" else write(run, out)
    typer.echo(f"{out}: {out.stat().st_size / 1000:.1f} kB")
    notes = [cpu_note(written), float32_note(written)] if format == "onnx" else []
    notes += [tensorrt_note(written)] if format == "tensorrt" else []
    for note in filter(None, notes):
        typer.echo(note)
    if format == "onnx" and measure:
        from haq.cli.terminal.onnx import print_onnx
        from haq.cli.terminal.progress import progress
        from haq.runs.onnx_summary import summarise

        with progress() as on_progress:
            summary = summarise(run, written, on_progress=on_progress)
        print_onnx(summary)
