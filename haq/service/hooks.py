"""Tell a URL when a run ends.

Only hosts that the operator names are ever asked, no redirect is followed and nothing of an answer
is kept: whoever submits runs must not reach what only the server reaches.
"""

import http.client
import json
import logging
import re
import ssl
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, urlsplit

from sqlalchemy import Engine, select, update
from sqlalchemy.exc import SQLAlchemyError

from haq.errors import HaqError
from haq.service import findings, store
from haq.service.database import reading
from haq.service.settings import Settings
from haq.service.tables import RUNS, now

LOG = logging.getLogger("haq.service.hooks")

_PORTS = {"http": 80, "https": 443}
_WAIT_S = 10.0
_LOOK_S = 2.0
_AGAIN_S = 30.0  # after the first try in vain; each time four times as long

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?")

Send = Callable[[str, bytes], int]
"""Posts JSON to a URL and returns the status."""


def allowed_host(text: str) -> str:
    """Return a host that an operator allows, in lower case.

    Raises:
        HaqError: It is no host.

    >>> allowed_host("Hooks.Example.com"), allowed_host("ci.local:8443")
    ('hooks.example.com', 'ci.local:8443')
    """
    if not _HOST.fullmatch(text.lower()):
        raise HaqError(f"hook {text!r}: give a host such as hooks.example.com or ci.local:8443")
    return text.lower()


def check(url: str, settings: Settings) -> str:
    """Return a URL that may be told.

    Raises:
        HaqError: It is none, or its host is not allowed.
    """
    parts = _parts(url)
    if not settings.hooks:
        raise HaqError("nothing can be told here: the operator allows hosts with haq serve --hook")
    host, port = str(parts.hostname).lower(), parts.port
    usual = _PORTS[parts.scheme]
    names = {f"{host}:{port or usual}"} | ({host} if port in (None, usual) else set())
    if not names & set(settings.hooks):
        raise HaqError(f"host {host} is not allowed; {', '.join(settings.hooks)} can be told")
    return url


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        plain = re.fullmatch(r"[\x21-\x7e]{1,500}", url) and "\\" not in url
        fits = plain and parts.scheme in _PORTS and parts.hostname and parts.port != 0
        if fits and "@" not in parts.netloc and _HOST.fullmatch(parts.netloc.lower()):
            return parts
    except ValueError:
        pass
    raise HaqError("give a URL such as https://hooks.example.com/haq, without a user or password")


def post(url: str, body: bytes) -> int:
    """Post JSON to a URL and return the status of the answer; a redirect is an answer too.

    Raises:
        OSError: Nobody answers.
    """
    parts = urlsplit(url)
    host, port = str(parts.hostname), parts.port
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        safe = ssl.create_default_context()
        connection = http.client.HTTPSConnection(host, port, timeout=_WAIT_S, context=safe)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_WAIT_S)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Content-Type": "application/json", "User-Agent": "haq"}
        connection.request("POST", path, body, headers)
        return connection.getresponse().status
    except http.client.HTTPException as error:
        raise OSError(f"no answer of HTTP ({type(error).__name__})") from error
    finally:
        connection.close()


def said(run: store.Run, settings: Settings) -> dict[str, Any]:
    """Return what is told of a run; ``text`` is what chats show."""
    found = findings.finding(settings.run_folder(run.id)) if run.state == "finished" else None
    what = (
        f": {found.score}, {found.change}" if found else f": {run.message}" if run.message else ""
    )
    return {
        "text": f"HAQ: {run.title} is {run.state}{what}",
        "event": "run.ended", "id": run.id, "title": run.title, "state": run.state,
        "message": run.message, "path": f"/runs/{run.id}",
    }  # fmt: skip


def deliver(engine: Engine, settings: Settings, send: Send = post) -> int:
    """Tell whoever waits for it of the runs that ended; return how many were tried."""
    due = (RUNS.c.hook_left > 0) & RUNS.c.state.in_(store.OVER) & (RUNS.c.hook_at <= now())
    with reading(engine) as connection:
        query = select(RUNS.c.id, RUNS.c.hook_left).where(due).limit(20)
        rows = connection.execute(query).all()
    return sum(_told(engine, settings, send, run_id, left) for run_id, left in rows)


def _told(engine: Engine, settings: Settings, send: Send, run_id: str, left: int) -> bool:
    # Another server may have taken this try: whoever lowers the number makes it.
    tries = store.HOOK_TRIES - left
    mine = (RUNS.c.id == run_id) & (RUNS.c.hook_left == left)
    again = now() + _AGAIN_S * 4**tries
    with engine.begin() as connection:
        taken = connection.execute(
            update(RUNS).where(mine).values(hook_left=left - 1, hook_at=again)
        )
    run = store.find(engine, run_id)
    if taken.rowcount != 1 or run is None or run.hook is None:
        return False
    try:
        status = send(check(run.hook, settings), json.dumps(said(run, settings)).encode())
    except (OSError, HaqError, ValueError) as error:
        status = 0
        LOG.warning("a hook was not told: %s", type(error).__name__, extra={"run": run_id})
    if 200 <= status < 300:
        # Where the run ended again meanwhile, that is to be told too.
        still = (RUNS.c.id == run_id) & (RUNS.c.hook_left == left - 1)
        with engine.begin() as connection:
            connection.execute(update(RUNS).where(still).values(hook_left=0))
    return True


def keep_delivering(engine: Engine, settings: Settings, stop: threading.Event) -> None:
    """Deliver until ``stop`` is set."""
    while not stop.wait(_LOOK_S):
        try:
            deliver(engine, settings)
        except (SQLAlchemyError, OSError) as error:
            LOG.warning("hooks wait: %s", type(error).__name__)
