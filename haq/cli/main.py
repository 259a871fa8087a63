"""The command line: heavy imports stand inside the commands, so ``haq --help`` is instant."""

import os
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from haq.cli.compare import compare_command
from haq.cli.cost import cost_command
from haq.cli.distill import distill_command
from haq.cli.doctor import doctor_command
from haq.cli.export import export_command
from haq.cli.inspect import inspect_command
from haq.cli.kit import kit_app
from haq.cli.ls import ls_command
from haq.cli.models import models_command
from haq.cli.profile import profile_command
from haq.cli.prune import prune_command
from haq.cli.search import search_command
from haq.cli.serve import serve_command, service_app, token_app, worker_command
from haq.cli.show import show_command
from haq.cli.sweep import sweep_command
from haq.cli.targets import targets_command
from haq.cli.terminal.output import with_output
from haq.cli.track import track_command
from haq.cli.train import train_command
from haq.cli.updates import diff_command, pack_command, pull_command, unpack_command
from haq.cli.verify import verify_command
from haq.errors import HaqError

PANELS: Mapping[str, Mapping[str, Callable[..., None]]] = {
    "Search and results": {
        "search": search_command,
        "sweep": sweep_command,
        "ls": ls_command,
        "show": show_command,
        "track": track_command,
        "inspect": inspect_command,
        "compare": compare_command,
    },
    "Networks and files": {
        "models": models_command,
        "train": train_command,
        "distill": distill_command,
        "prune": prune_command,
        "export": export_command,
        "verify": verify_command,
    },
    "Updates": {
        "pack": pack_command,
        "unpack": unpack_command,
        "diff": diff_command,
        "pull": pull_command,
    },
    "Hardware": {
        "targets": targets_command,
        "cost": cost_command,
        "profile": profile_command,
        "doctor": doctor_command,
    },
    "Service": {"serve": serve_command, "worker": worker_command},
}
"""The commands by the panel of the help that shows them."""

SPEAKING = frozenset(
    ("search", "sweep", "inspect", "train", "distill", "prune", "export", "verify", "profile")
)
"""Commands that take so long that they show how far they are."""

# Typer's base of all wrong options, which it does not name: in some releases it is click's.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class Commands(TyperGroup):
    """All commands; one that is interrupted says how to go on."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo(INTERRUPTED, err=True)
            raise typer.Exit(130) from None


INTERRUPTED = "haq: interrupted; give the same command again to start over"


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"haq {version('haq')}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Find how many bits each layer of a network should have, under a budget."""


def _assembled() -> typer.Typer:
    app = typer.Typer(
        cls=Commands,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for panel, commands in PANELS.items():
        for name, command in commands.items():
            spoken = with_output(command) if name in SPEAKING else command
            app.command(name, rich_help_panel=panel)(spoken)
    app.add_typer(kit_app, name="kit", rich_help_panel="Hardware")
    app.add_typer(token_app, name="token", rich_help_panel="Service")
    app.add_typer(service_app, name="service", rich_help_panel="Service")
    return app


app = _assembled()


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    sys.path.insert(0, os.getcwd())  # so that --model mymodule:factory finds what lies here
    # Spinning threads starve each other where processes share the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for stream in (sys.stdout, sys.stderr):
        # What the terminal's encoding cannot hold must not end a command.
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        sys.exit(app(standalone_mode=False))
    except UsageError as error:
        typer.echo(f"haq: {error.format_message()}", err=True)  # type: ignore[attr-defined]
        sys.exit(2)
    except HaqError as error:
        typer.echo(f"haq: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo(INTERRUPTED, err=True)
        sys.exit(130)
