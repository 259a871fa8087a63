"""``haq cost``: what each layer of a network costs on a target."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from haq.cli.options import HARDWARE, NETWORK, Length, Model, Target, Width, option
from haq.errors import HaqError


def cost_command(  # noqa: PLR0913 - one argument an option
    model: Model,
    target: Target,
    batch: Annotated[
        int | None,
        option(HARDWARE, "Images computed at once.", metavar="N", show_default="the target's own"),
    ] = None,
    weights: Annotated[
        Path | None,
        option(NETWORK, "Float weights, whose network may be pruned or of low rank.",
               metavar="FILE", show_default="none: the network as it is built"),
    ] = None,
    width: Width = 1.0,
    size: Annotated[
        int | None,
        option(NETWORK, "Height and width of an image, in pixels.", metavar="N",
               show_default="the model's own"),
    ] = None,
    channels: Annotated[
        int | None,
        option(NETWORK, "Channels of an image.", metavar="N", min=1,
               show_default="those of the first convolution"),
    ] = None,
    classes: Annotated[
        int | None,
        option(NETWORK, "Outputs of the last layer.", metavar="N",
               show_default="the model's own"),
    ] = None,
    length: Length = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every pair of bits, as JSON.")
    ] = False,
    as_csv: Annotated[
        bool,
        typer.Option("--csv", help="Print every pair of bits, as a table for --target table:FILE."),
    ] = False,
) -> None:  # fmt: skip
    """Print what each layer costs on a target."""
    from haq.cli.cost_table import cost_csv, cost_table

    if as_json and as_csv:
        raise HaqError("--json and --csv are two ways to print the same; give one")
    asked: dict[str, Any] = {
        "batch": batch, "width": width, "size": size, "classes": classes, "channels": channels,
        "weights": weights, "length": length,
    }  # fmt: skip
    if as_csv:
        typer.echo(cost_csv(model, target, **asked), nl=False)
    elif as_json:
        typer.echo(json.dumps(cost_table(model, target, **asked)))
    else:
        from haq.cli.terminal.costs import print_costs

        print_costs(cost_table(model, target, **asked))
