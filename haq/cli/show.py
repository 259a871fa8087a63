"""``haq show``: what a run found, layer by layer."""

from typing import Annotated

import typer

from haq.cli.options import RunFolder
from haq.errors import HaqError


def show_command(
    run: RunFolder,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all that is known of it as JSON.")
    ] = False,
) -> None:
    """Show what a run found, layer by layer."""
    from haq.cli.terminal.run import print_run
    from haq.runs.folder import find_folder, read_json

    folder = find_folder(run)
    if not (folder / "summary.json").exists():
        raise HaqError(f"run {folder} has no finished episode yet: haq search --resume {folder}")
    print_run(folder, read_json(folder / "summary.json"), as_json)
