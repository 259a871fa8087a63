"""``haq serve``, ``haq worker``, ``haq token`` and ``haq service``: searches over HTTP."""

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

Order = Annotated[
    str,
    option(SEARCHES, "Whose run is next: fair (users take turns) or oldest.", metavar="NAME"),
]
Limit = Annotated[
    list[str] | None,
    option(SERVICE, "What requests, runs and users may take, such as run_s=24h, running=2 or "
           "stored_bytes=5GB; docs/operating.md lists the names. May be repeated.",
           metavar="NAME=VALUE", envvar="HAQ_LIMITS"),
]  # fmt: skip

KeepFor = Annotated[
    str | None,
    option(SERVICE, "Delete runs that are over, and uploads, once they are so old, such as 90d.",
           metavar="TIME", show_default="never"),
]  # fmt: skip
KeepBytes = Annotated[
    str | None,
    option(SERVICE, "Delete the oldest of them where all take more than so much, such as 200GB.",
           metavar="BYTES", show_default="never"),
]  # fmt: skip

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
    order: Order = "fair",
    limit: Limit = None,
    keep_for: KeepFor = None,
    keep_bytes: KeepBytes = None,
    trusted_proxy: Annotated[
        list[str] | None,
        option(
            SERVICE,
            "Address or network of a proxy whose X-Forwarded-For and -Proto count. May "
            "be repeated.",
            metavar="ADDRESS",
            envvar="HAQ_TRUSTED_PROXIES",
        ),
    ] = None,
    executor: Annotated[
        str,
        option(
            SEARCHES,
            "Where the workers are: local (beside the server) or ray (in a cluster).",
            metavar="NAME",
        ),
    ] = "local",
    ray: Annotated[
        str,
        option(
            SEARCHES,
            "The Ray cluster: HOST:PORT, or auto for the one that runs on this machine.",
            metavar="ADDRESS",
        ),
    ] = "auto",
    everyone: Annotated[
        bool, option(SERVICE, "Let everyone who reaches it in, without tokens.", "--open")
    ] = False,
) -> None:
    """Serve searches over HTTP, with a page and workers."""
    _check_service()
    from haq.service.serve import Bounds, Offers, serve, settings_of, with_hooks

    offers = Offers(data or [], weights or [], model or [])
    bounds = Bounds(limit or [], keep_for, keep_bytes)
    asked = settings_of(files, database, offers, threads, lease, tries, order, bounds)
    asked = with_hooks(asked, hook or [])
    serve(asked, host, port, workers, everyone, trusted_proxy or [], executor, ray)


def worker_command(  # noqa: PLR0913 - one argument an option
    database: Database = None,
    files: Files = _FILES,
    data: OfferedData = None,
    weights: OfferedWeights = None,
    model: OfferedModels = None,
    threads: SearchThreads = 1,
    lease: Lease = 30.0,
    tries: Tries = 3,
    order: Order = "fair",
    limit: Limit = None,
    keep_for: KeepFor = None,
    keep_bytes: KeepBytes = None,
) -> None:
    """Do runs of a service, one at a time; give what haq serve was given."""
    _check_service()
    from haq.service.serve import Bounds, Offers, settings_of, worker

    offers = Offers(data or [], weights or [], model or [])
    bounds = Bounds(limit or [], keep_for, keep_bytes)
    worker(settings_of(files, database, offers, threads, lease, tries, order, bounds))


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
    from haq.service.serve import settings_of
    from haq.service.upkeep import new_token

    typer.echo(new_token(settings_of(files, database), name, scope))


@token_app.command("list")
def token_list_command(database: Database = None, files: Files = _FILES) -> None:
    """List all tokens, without their secrets."""
    _check_service()
    from haq.service.serve import settings_of
    from haq.service.upkeep import token_lines

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
    from haq.service.serve import settings_of
    from haq.service.upkeep import revoke_token

    typer.echo(f"revoked: {', '.join(revoke_token(settings_of(files, database), name))}")


service_app = typer.Typer(help="Backups of the service, and what it keeps.", no_args_is_help=True)


@service_app.command("backup")
def backup_command(
    folder: Annotated[Path, typer.Argument(help="Where to; an older backup there is renewed.")],
    database: Database = None,
    files: Files = _FILES,
) -> None:
    """Copy the database and the files, while the service runs or after a crash."""
    _check_service()
    from haq.service.serve import settings_of
    from haq.service.upkeep import back_up

    typer.echo(back_up(settings_of(files, database), folder))


@service_app.command("restore")
def restore_command(
    folder: Annotated[Path, typer.Argument(help="A backup.")],
    database: Database = None,
    files: Files = _FILES,
) -> None:
    """Put a backup into an empty database and an empty folder."""
    _check_service()
    from haq.service.serve import settings_of
    from haq.service.upkeep import put_back

    typer.echo(put_back(settings_of(files, database), folder))


@service_app.command("clean")
def clean_command(
    older_than: Annotated[
        str | None, option(SERVICE, "Delete what is older, such as 90d.", metavar="TIME")
    ] = None,
    down_to: Annotated[
        str | None,
        option(
            SERVICE,
            "Then delete the oldest until the files take no more than so much, such as 50GB.",
            metavar="BYTES",
        ),
    ] = None,
    dry_run: Annotated[bool, option(SERVICE, "Only list it.", "--dry-run")] = False,
    database: Database = None,
    files: Files = _FILES,
) -> None:
    """Delete runs that are over, and uploads that no run needs, and list them."""
    _check_service()
    from haq.service.serve import keep_of, settings_of
    from haq.service.upkeep import cleaned

    keep = keep_of(older_than, down_to)
    for line in cleaned(settings_of(files, database), keep, dry_run):
        typer.echo(line)
