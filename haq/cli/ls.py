"""``haq ls``: the runs that lie here."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from haq.runs.listing import Listed


def ls_command(
    folder: Annotated[
        Path, typer.Argument(help="Where runs lie.", metavar="FOLDER")
    ] = Path("results"),
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:  # fmt: skip
    """List runs: what was asked for, how far they are, and what they found."""
    from rich.table import Table

    from haq.cli.terminal.console import console
    from haq.runs.listing import runs_in

    runs = runs_in(folder)
    if as_json:
        typer.echo(json.dumps([run.fields() for run in runs], indent=2))
        return
    if not runs:
        typer.echo(f"no runs in {folder}: haq search makes one")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("run", "state", "asked for", "float", "handed over", "test"):
        table.add_column(column, overflow="fold")
    for run in runs:
        table.add_row(run.name, _state(run), _asked(run), *_values(run))
    console().print(table)
    for run in runs:
        if run.fault:
            typer.echo(f"{run.name}: {run.fault}", err=True)


def _state(run: "Listed") -> str:
    if run.state == "damaged":
        return run.state
    of = f" of {run.asked}" if run.asked is not None else ""
    return f"{run.state}, {run.episodes}{of} episode{'s' * (run.episodes != 1 or bool(of))}"


def _asked(run: "Listed") -> str:
    on = f" on {run.target}" if run.target else ""
    return f"{run.model}, {run.data}, {' '.join(run.budgets)}{on}, {run.agent}" if run.model else ""


def _values(run: "Listed") -> list[str]:
    from haq.metrics import named

    return [
        "" if value is None else named(run.metric).text(value)
        for value in (run.float_val, run.final_val, run.final_test)
    ]
