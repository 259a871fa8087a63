"""``haq models``: the models that can be asked for by name."""

import json
from typing import Annotated

import typer

from haq.errors import HaqError


def models_command(
    source: Annotated[
        str | None,
        typer.Argument(
            help="torchvision or timm, to list all its names.",
            show_default="where models come from",
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(help="Only names that contain this.", metavar="TEXT", show_default="all"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List models: those of HAQ, and where others come from by prefix."""
    from haq.errors import look_up
    from haq.models import MODELS
    from haq.models.sources import SOURCES

    if source is None:
        if like is not None:
            raise HaqError(
                f"--like {like} is of the names of a source: haq models timm --like {like}"
            )
        about = {name: "comes with HAQ" for name in MODELS}
        about |= {kind.example: kind.what for kind in SOURCES.values()}
        about["package.module:factory"] = "a function of your own that returns a torch.nn.Module"
    else:
        names = look_up(SOURCES, "source", source).names
        if names is None:
            raise HaqError(
                f"{source} models have no names: {SOURCES[source].what}, {SOURCES[source].example}"
            )
        about = {f"{source}:{name}": "" for name in names() if like is None or like in name}
    if as_json:
        typer.echo(json.dumps(about if source is None else list(about)))
        return
    width = max(map(len, about), default=0)
    for name, what in about.items():
        typer.echo(f"{name:{width}}  {what}".rstrip())
