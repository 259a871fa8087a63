"""``haq compare``: several runs side by side."""

from pathlib import Path
from typing import Annotated

import typer


def compare_command(
    runs: Annotated[list[str], typer.Argument(help="Names or folders of runs.")],
    out: Annotated[Path, typer.Option(help="The page to write.", metavar="FILE")] = Path(
        "compare.html"
    ),
    csv: Annotated[Path, typer.Option(help="The table to write.", metavar="FILE")] = Path(
        "compare.csv"
    ),
) -> None:
    """Write a page and a table that show several runs side by side."""
    from haq.files import write_text
    from haq.reports.compare import compared, comparison_csv, comparison_html
    from haq.runs.folder import find_folder

    folders = [find_folder(run) for run in runs]
    write_text(csv, comparison_csv(compared(folders)))
    write_text(out, comparison_html(folders))
    typer.echo(f"{out}\n{csv}")
