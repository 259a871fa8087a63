"""``haq inspect``: a page with all that a run found."""

from pathlib import Path
from typing import Annotated

import typer

from haq.cli.options import RunFolder
from haq.cli.terminal.output import warn
from haq.errors import HaqError


def inspect_command(
    run: RunFolder,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page to write.", metavar="FILE", show_default="report.html in the run"
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            help="A folder for the charts as pictures; needs Chromium.", metavar="DIR",
            show_default="none",
        ),
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option(help="Measure the layers' sensitivities where the run has none.")
    ] = True,
) -> None:  # fmt: skip
    """Write a page with all that a run found, and why each layer got its bits."""
    from haq.cli.terminal.progress import progress
    from haq.files import write_text
    from haq.reports.report import report_html
    from haq.runs.figures import write_figures
    from haq.runs.folder import find_folder

    folder = find_folder(run)
    if sensitivity:
        try:
            with progress() as on_progress:
                write_figures(folder, on_progress)
        except HaqError as error:
            warn(f"not measured for the page: {error}")
    page = out or folder / "report.html"
    write_text(page, report_html(folder))
    typer.echo(str(page))
    if png is not None:
        from haq.reports.pictures import write_pictures

        for path in write_pictures(folder, png):
            typer.echo(str(path))
