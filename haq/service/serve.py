"""The commands of the service: serve, worker and token."""

import logging
import os
import re
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from haq.errors import HaqError
from haq.service import place, security
from haq.service.application import create_app
from haq.service.database import check_current, connect, migrate
from haq.service.hooks import allowed_host
from haq.service.logs import to_standard_error
from haq.service.processes import Workers, run_worker
from haq.service.settings import Settings
from haq.service.sockets import bound, most_connections, protocol

LOG = logging.getLogger("haq.service")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_GRACE_S = 10  # for requests under way when the server ends


def offered(pairs: Sequence[str], what: str) -> dict[str, str]:
    """Return what NAME=VALUE options offer to users.

    Raises:
        HaqError: One cannot be read, or two have one name.
    """
    offers = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not value or not _NAME.fullmatch(name):
            raise HaqError(f"{what} {pair!r}: write NAME={what.upper()}")
        if name in offers:
            raise HaqError(f"{what} {pair!r}: {name} is offered already; give another name")
        offers[name] = value
    return offers


def settings_of(
    files: Path,
    database: str | None,
    data: Sequence[str] = (),
    weights: Sequence[str] = (),
    threads: int = 1,
    lease_s: float = 30.0,
    tries: int = 3,
    models: Sequence[str] = (),
) -> Settings:
    """Return the settings that the options of a command give.

    Raises:
        HaqError: One cannot be.
    """
    if lease_s < 2:
        raise HaqError(f"lease {lease_s:g}: give at least 2 seconds")
    files = files.absolute()
    files_of = {name: Path(path).absolute() for name, path in offered(weights, "weights").items()}
    for name, path in files_of.items():
        if not path.is_file():
            raise HaqError(f"weights {name}: there is no file {path}")
    return Settings(
        files=files, database=database or "", threads=threads, lease_s=lease_s, tries=tries,
        data={"digits": "digits"} | offered(data, "data"), weights=files_of,
        models={name: _model(name, spec) for name, spec in offered(models, "model").items()},
    )  # fmt: skip


def with_hooks(settings: Settings, hosts: Sequence[str]) -> Settings:
    """Return the settings with the hosts that an operator allows.

    Raises:
        HaqError: One is no host.
    """
    return replace(settings, hooks=tuple(allowed_host(host) for host in hosts))


def _model(name: str, spec: str) -> str:
    """Return a model that is offered, with a whole path where it is made of files."""
    from haq.models import MODELS
    from haq.models.sources import SOURCES, about, at_absolute_path, named

    if name in MODELS:
        raise HaqError(f"model {name}={spec}: {name} comes with HAQ; give another name")
    if named(spec) is None:
        raise HaqError(f"model {name}={spec}: give one that begins with {', '.join(SOURCES)}")
    about(spec)
    return at_absolute_path(spec)


class _Server(uvicorn.Server):
    """Ends the streams of events at a signal, which would last for ever otherwise."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.service.feed.end()  # type: ignore[union-attr]
        super().handle_exit(sig, frame)


def serve(settings: Settings, host: str, port: int, workers: int, open_to_all: bool) -> None:
    """Serve until a signal comes; then hand back what the workers do.

    Raises:
        HaqError: The port is taken, it would be open to the world, the database cannot be reached,
            or the files belong to another one.
    """
    to_standard_error()
    sockets = bound(host, port)  # before anything is begun
    is_new = not settings.files.exists()
    engine = connect(settings.url)
    name = migrate(engine)
    place.prepare(settings, name)
    is_open = security.is_open(engine, host, open_to_all)
    app = create_app(
        engine, settings,
        store_name=name, is_open=is_open, only_loopback=is_open and security.is_loopback(host),
    )  # fmt: skip
    LOG.info(
        "serving",
        extra={
            "host": host, "port": sockets[0].getsockname()[1], "workers": workers, "open": is_open,
            "files": str(settings.files), "new": is_new,
        },
    )  # fmt: skip
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _nothing)  # uvicorn raises the signal again once it has ended
    beside = Workers(settings, workers)
    try:
        _Server(_config(app)).run(sockets)
    finally:
        beside.end()
        engine.dispose()
    LOG.info("ended")


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app, http=protocol(most_connections()), ws="none", log_config=None, access_log=False,
        server_header=False, timeout_graceful_shutdown=_GRACE_S,
        # Anyone could write these headers: they count where the operator names the proxy.
        proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,
    )  # fmt: skip


def _nothing(number: int, frame: FrameType | None) -> None:
    pass


def worker(settings: Settings) -> None:
    """Be a worker until a signal comes.

    Raises:
        HaqError: As ``run_worker``.
    """
    to_standard_error()
    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    run_worker(settings)


def new_token(settings: Settings, name: str, scope: str) -> str:
    """Return a new token; the database is made where there is none yet.

    Raises:
        HaqError: The name or the scope cannot be.
    """
    engine = connect(settings.url)
    migrate(engine)
    return security.create_token(engine, name, scope)


def token_lines(settings: Settings) -> list[str]:
    """Return a line for every token.

    Raises:
        HaqError: The database is of another version.
    """
    engine = connect(settings.url)
    check_current(engine)
    return [
        f"{token.id}  {token.scope:<6}  {'revoked' if token.revoked else 'in use':<7}  {token.name}"
        for token in security.tokens(engine)
    ]


def revoke_token(settings: Settings, name: str) -> list[str]:
    """Revoke a token by its id, or all of a user; return the ids.

    Raises:
        HaqError: There is none in use.
    """
    engine = connect(settings.url)
    check_current(engine)
    return security.revoke(engine, name)
