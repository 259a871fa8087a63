"""``haq targets``: the devices whose costs are known."""

import json
from typing import Annotated

import typer


def targets_command(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help="my-machine.json or table:board.csv.", show_default="all that come with haq"
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all there is to know, as JSON.")
    ] = False,
) -> None:
    """List targets: devices, bits, and how far their costs can be trusted."""
    from haq.hw_profiles import TARGETS
    from haq.runs.provenance import describe

    targets = [describe(name) for name in files or TARGETS]
    if as_json:
        typer.echo(json.dumps(targets))
    else:
        from haq.cli.terminal.costs import print_targets

        print_targets(targets)
