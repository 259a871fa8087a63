"""``haq export``: a run's network as a file to take away."""

from pathlib import Path
from typing import Annotated

import typer


def export_command(
    run: Annotated[str, typer.Argument(help="A run's name or folder.")],
    format: Annotated[
        str,
        typer.Option(help="onnx, for ONNX Runtime, or safetensors, for haq.load.", metavar="NAME"),
    ],
    out: Annotated[Path, typer.Option(help="The file to write.", metavar="FILE")],
    measure: Annotated[
        bool, typer.Option(help="Measure the accuracy and latency of an ONNX file.")
    ] = True,
) -> None:
    """Write a run's network as a file to take away."""
    from haq.errors import look_up
    from haq.runs.export import FORMATS

    written = look_up(FORMATS, "format", format)(run, out)
    typer.echo(f"{out}: {out.stat().st_size / 1000:.1f} kB")
    if format == "onnx" and measure:
        from haq.cli.terminal.onnx import print_onnx
        from haq.cli.terminal.progress import progress
        from haq.runs.onnx_file import summarise

        with progress() as on_progress:
            summary = summarise(run, written, on_progress=on_progress)
        print_onnx(summary)
