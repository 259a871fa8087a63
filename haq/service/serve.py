"""The commands that serve: server and worker, and their settings."""

import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from types import FrameType
from typing import NamedTuple, cast, get_args

import uvicorn
from fastapi import FastAPI

from haq.errors import HaqError, look_up
from haq.runs.clusters import check_cluster
from haq.service import place, security
from haq.service.application import create_app
from haq.service.cluster import in_cluster
from haq.service.database import answering, connect, migrate
from haq.service.hooks import allowed_host
from haq.service.limits import bytes_of, limits_of, seconds_of
from haq.service.logs import to_standard_error
from haq.service.place import PRIVATE
from haq.service.processes import Workers, beside, run_worker
from haq.service.settings import Keep, Order, Settings
from haq.service.sockets import bound, most_connections, protocol
from haq.service.store.leases import PAUSE_S

LOG = logging.getLogger("haq.service")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_TURN_S = 0.001  # of a thread: the event loop comes soon again, however many threads compute
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


class Offers(NamedTuple):
    """What users may ask for, each a list of NAME=VALUE."""

    data: Sequence[str] = ()
    weights: Sequence[str] = ()
    models: Sequence[str] = ()


NOTHING = Offers()


class Bounds(NamedTuple):
    """What users may take, and how much of it is kept; see ``limits_of`` and ``keep_of``."""

    limits: Sequence[str] = ()
    keep_for: str | None = None
    keep_bytes: str | None = None


NO_BOUNDS = Bounds()


def keep_of(keep_for: str | None, keep_bytes: str | None) -> Keep:
    """Return for how long and how much is kept, such as 90d and 200GB.

    Raises:
        HaqError: One is no such amount.
    """
    return Keep(
        None if keep_for is None else seconds_of("keep for", keep_for),
        None if keep_bytes is None else bytes_of("keep bytes", keep_bytes),
    )


def settings_of(
    files: Path,
    database: str | None,
    offers: Offers = NOTHING,
    threads: int = 1,
    lease_s: float = 30.0,
    tries: int = 3,
    order: str = "fair",
    bounds: Bounds = NO_BOUNDS,
) -> Settings:
    """Return the settings that the options of a command give.

    Raises:
        HaqError: One cannot be.
    """
    if not 2 <= lease_s <= PAUSE_S:
        raise HaqError(f"lease {lease_s:g}: give 2 to {PAUSE_S:g} seconds")
    look_up(dict.fromkeys(get_args(Order)), "order", order)
    files = files.absolute()
    files_of = {
        name: Path(path).absolute() for name, path in offered(offers.weights, "weights").items()
    }
    for name, path in files_of.items():
        if not path.is_file():
            raise HaqError(f"weights {name}: there is no file {path}")
    return Settings(
        files=files, database=database or "", threads=threads, lease_s=lease_s, tries=tries,
        data={"digits": "digits"}
        | {name: _data(name, spec) for name, spec in offered(offers.data, "data").items()},
        weights=files_of, order=cast(Order, order), limits=limits_of(bounds.limits),
        keep=keep_of(bounds.keep_for, bounds.keep_bytes),
        models={name: _model(name, spec) for name, spec in offered(offers.models, "model").items()},
    )  # fmt: skip


def with_hooks(settings: Settings, hosts: Sequence[str]) -> Settings:
    """Return the settings with the hosts that an operator allows.

    Raises:
        HaqError: One is no host.
    """
    return replace(settings, hooks=tuple(allowed_host(host) for host in hosts))


def _data(name: str, spec: str) -> str:
    """Return data that are offered, with a whole path where they lie in files."""
    kind, _, where = spec.partition(":")
    if kind == "digits" or re.fullmatch(r"[A-Za-z_]\w*", where):  # a function of the operator's own
        return spec
    from haq.datasets import DATASETS

    try:
        look_up(DATASETS, "data", kind)
    except HaqError as error:
        raise HaqError(f"data {name}={spec}: {error}") from None
    if not Path(where).exists():
        raise HaqError(f"data {name}={spec}: there is no {Path(where).absolute()}")
    return f"{kind}:{Path(where).absolute()}"


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


EXECUTORS: Mapping[str, Callable[[Settings, int, str], Workers]] = {
    "local": lambda settings, count, _: beside(settings, count),
    "ray": in_cluster,
}
"""Who does the runs: processes beside the server, or in a Ray cluster at an address."""


def serve(
    settings: Settings,
    host: str,
    port: int,
    workers: int,
    open_to_all: bool,
    proxies: Sequence[str] = (),
    executor: str = "local",
    ray: str = "auto",
) -> None:
    """Serve until a signal comes; then hand back what the workers do.

    Raises:
        HaqError: The port is taken, it would be open to the world, the database cannot be reached,
            or the files belong to another one.
    """
    to_standard_error()
    os.umask(PRIVATE)
    check_proxies(proxies)
    look_up(EXECUTORS, "executor", executor)
    if executor == "ray":
        check_cluster(ray)
    sockets = bound(host, port)  # before anything is begun
    is_new = not settings.files.exists()
    engine = connect(settings.url)
    name = migrate(engine)
    place.prepare(settings, name)
    with answering(engine):
        is_open = security.is_open(engine, host, open_to_all)
    sys.setswitchinterval(_TURN_S)
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
    at_work = EXECUTORS[executor](settings, workers, ray)
    try:
        _Server(_config(app, proxies)).run(sockets)
    finally:
        at_work.end()
        engine.dispose()
    LOG.info("ended")


def check_proxies(proxies: Sequence[str]) -> None:
    """Check that each is an address or a network.

    Raises:
        HaqError: One is not, such as "*", behind which anyone could name any address.
    """
    for proxy in proxies:
        try:
            ip_network(proxy)
        except ValueError:
            raise HaqError(
                f"trusted proxy {proxy!r}: give an address or a network, such as 10.0.0.7 or "
                "10.0.0.0/24"
            ) from None


def _config(app: FastAPI, proxies: Sequence[str] = ()) -> uvicorn.Config:
    return uvicorn.Config(
        app, http=protocol(most_connections()), ws="none", log_config=None, access_log=False,
        server_header=False, timeout_graceful_shutdown=_GRACE_S,
        # Anyone could write these headers: they count where the operator names the proxy.
        proxy_headers=bool(proxies), forwarded_allow_ips=list(proxies),
    )  # fmt: skip


def _nothing(number: int, frame: FrameType | None) -> None:
    pass


def worker(settings: Settings) -> None:
    """Be a worker until a signal comes.

    Raises:
        HaqError: As ``run_worker``.
    """
    to_standard_error()
    os.umask(PRIVATE)
    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    run_worker(settings)
