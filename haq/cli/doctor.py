"""``haq doctor``: what works on this machine."""

import json
from typing import Annotated

import typer


def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Say what works on this machine and what that means; exit code 1 if HAQ does not."""
    from rich.table import Table

    from haq.cli.terminal.console import console
    from haq.runs.doctor import check_up, verdict

    checks = list(check_up())
    if as_json:
        typer.echo(json.dumps([check._asdict() for check in checks], indent=2))
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        for column in ("", "what", "here", "means"):
            table.add_column(column, overflow="fold")
        for check in checks:
            table.add_row(SIGNS[check.works], check.what, check.here, check.means)
        console().print(table)
        typer.echo(verdict(checks))
    if any(check.works is False for check in checks):
        raise typer.Exit(1)


SIGNS = {True: "ok", None: "-", False: "!!"}
