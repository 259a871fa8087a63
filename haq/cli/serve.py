"""``haq serve``, ``haq worker`` and ``haq token``: searches over HTTP."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from haq.cli.options import option
from haq.errors import HaqError

SERVICE, SEARCHES = "Service", "Searches"

Files = Annotated[
    Path,
    option(SERVICE, "Folder of the service's runs and uploads.", metavar="DIR", envvar="HAQ_FILES"),
]
Database = Annotated[
    str | None,
    option(SERVICE, "URL of the database: sqlite:///FILE, or one of postgresql+psycopg.",
           metavar="URL", envvar="HAQ_DATABASE", show_default="a file in the folder"),
]  # fmt: skip
OfferedData = Annotated[
    list[str] | None,
    option(SEARCHES, "Data that users may ask for, beside digits. May be repeated.",
           metavar="NAME=DATA"),
]  # fmt: skip
OfferedWeights = Annotated[
    list[str] | None,
    option(SEARCHES, "Float weights that users may ask for. May be repeated.",
           metavar="NAME=FILE"),
]  # fmt: skip
OfferedModels = Annotated[
    list[str] | None,
    option(SEARCHES, "Models that users may ask for beside those of HAQ, such as "
           "bert=hf:/srv/models/bert or net=onnx:/srv/net.onnx. May be repeated.",
           metavar="NAME=MODEL"),
]  # fmt: skip
Lease = Annotated[
    float,
    option(SEARCHES, "Time after which another worker takes over from a dead one, at least 2.",
           metavar="SECONDS"),
]  # fmt: skip
Tries = Annotated[
    int,
    option(SEARCHES, "Times that a run is begun in a row without a new episode before it counts "
           "as failed.", metavar="N", min=1),
]  # fmt: skip
SearchThreads = Annotated[
    int, option(SEARCHES, "CPU threads of one search, at most.", metavar="N", min=1)
]

_FILES = Path("haq-files")


def _check_service() -> None:
    missing = [
        name for name in ("alembic", "fastapi", "sqlalchemy", "uvicorn") if not find_spec(name)
    ]
    if missing:
        raise HaqError(f"the service needs {', '.join(missing)}: pip install 'haq[service]'")


def serve_command(  # noqa: PLR0913 - one argument an option
    host: Annotated[str, option(SERVICE, "Address to listen at.", metavar="ADDRESS")] = "127.0.0.1",
    port: Annotated[
        int, option(SERVICE, "Port to listen at; 0 for any.", metavar="N", min=0, max=65535)
    ] = 8080,
    database: Database = None,
    files: Files = _FILES,
    workers: Annotated[
        int, option(SEARCHES, "Searches at once, each in a process.", metavar="N", min=0)
    ] = 1,
    data: OfferedData = None,
    weights: OfferedWeights = None,
    model: OfferedModels = None,
    threads: SearchThreads = 1,
    lease: Lease = 30.0,
    tries: Tries = 3,
    hook: Annotated[
        list[str] | None,
        option(
            SERVICE,
            "Host that users may have told when a run ends, such as "
            "hooks.example.com. May be repeated.",
            metavar="HOST[:PORT]",
        ),
    ] = None,
    everyone: Annotated[
        bool, option(SERVICE, "Let everyone who reaches it in, without tokens.", "--open")
    ] = False,
) -> None:
    """Serve searches over HTTP, with a page and workers."""
    _check_service()
    from haq.service.serve import serve, settings_of, with_hooks

    asked = settings_of(
        files, database, data or [], weights or [], threads, lease, tries, model or []
    )
    asked = with_hooks(asked, hook or [])
    serve(asked, host, port, workers, everyone)


def worker_command(
    database: Database = None,
    files: Files = _FILES,
    data: OfferedData = None,
    weights: OfferedWeights = None,
    model: OfferedModels = None,
    threads: SearchThreads = 1,
    lease: Lease = 30.0,
    tries: Tries = 3,
) -> None:
    """Do runs of a service, one at a time; give what haq serve was given."""
    _check_service()
    from haq.service.serve import settings_of, worker

    worker(
        settings_of(files, database, data or [], weights or [], threads, lease, tries, model or [])
    )


token_app = typer.Typer(help="Tokens for the service.", no_args_is_help=True)


@token_app.command("create")
def token_create_command(
    name: Annotated[str, typer.Argument(help="The user's name.")],
    scope: Annotated[
        str,
        option(SERVICE, "What the token allows: read, submit or admin.", metavar="NAME"),
    ] = "submit",
    database: Database = None,
    files: Files = _FILES,
) -> None:
    """Make a token and print it, this once."""
    _check_service()
    from haq.service.serve import new_token, settings_of

    typer.echo(new_token(settings_of(files, database), name, scope))


@token_app.command("list")
def token_list_command(database: Database = None, files: Files = _FILES) -> None:
    """List all tokens, without their secrets."""
    _check_service()
    from haq.service.serve import settings_of, token_lines

    for line in token_lines(settings_of(files, database)):
        typer.echo(line)


@token_app.command("revoke")
def token_revoke_command(
    name: Annotated[str, typer.Argument(help="A token's id, or a user's name for all of them.")],
    database: Database = None,
    files: Files = _FILES,
) -> None:
    """Revoke a token, or all of a user."""
    _check_service()
    from haq.service.serve import revoke_token, settings_of

    typer.echo(f"revoked: {', '.join(revoke_token(settings_of(files, database), name))}")
