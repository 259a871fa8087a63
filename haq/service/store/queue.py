"""What users do to runs: submit, cancel, retry, delete; each in one transaction."""

import hashlib
import json
import secrets
import time
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Engine, delete, insert, select
from sqlalchemy.exc import IntegrityError

from haq.runs.job import Job
from haq.service.database import reading
from haq.service.store.changes import change, enter, locked
from haq.service.store.events import add_event
from haq.service.store.rows import COLUMNS, GONE, OVER, Conflict, Run, current, run_of
from haq.service.tables import RUNS, now


class Beside(NamedTuple):
    """What a user says of a run beside its job and its title.

    Attributes:
        tags: Words.
        remark: Text.
        sweep: Shared by the runs of one submission.
        hook: A URL that is told when the run ends.
    """

    tags: tuple[str, ...] = ()
    remark: str = ""
    sweep: str | None = None
    hook: str | None = None


NOTHING = Beside()


def joined(tags: Sequence[str]) -> str:
    """Return tags as the table has them.

    >>> joined(["b", "a", "b"]), joined([])
    (' b a ', '')
    """
    return f" {' '.join(dict.fromkeys(tags))} " if tags else ""


def submit(
    engine: Engine,
    owner: str,
    job: Job,
    title: str,
    key: str | None = None,
    beside: Beside = NOTHING,
) -> tuple[Run, bool]:
    """Queue a job and return its run, and whether it is new.

    Args:
        engine: The database.
        owner: Whose run it is.
        job: Checked already.
        title: For people.
        key: Of idempotency: the same key of the same owner gives the run of the first time.
        beside: What else is said of the run.

    Raises:
        Conflict: The key was used for another job.
    """
    asked = job.model_dump_json()
    whole = [asked, title] if beside == NOTHING else [asked, title, beside]
    key_hash = hashlib.sha256(json.dumps(whole).encode()).hexdigest() if key else None
    # In the order of submission, also of runs within one tick of the database's clock.
    run_id = f"{time.time_ns():016x}{secrets.token_hex(8)}"
    values = {
        "id": run_id, "owner": owner, "title": title, "asked": asked, "key": key,
        "key_hash": key_hash, "state": "queued", "created": now(), "updated": now(),
        "not_before": 0.0, "fence": 0, "attempts": 0, "cancel": False, "done": 0, "total": 0,
        "note": "", "episodes": 0, "episodes_asked": job.episodes, "events": 0,
        "tags": joined(beside.tags), "remark": beside.remark, "sweep": beside.sweep,
        "hook": beside.hook, "hook_left": 0,
        "busy_s": 0.0, "size_bytes": 0,
    }  # fmt: skip
    try:
        with engine.begin() as connection:
            connection.execute(insert(RUNS).values(**values))
            add_event(connection, run_id, "state", {"state": "queued"})
            return current(connection, run_id), True
    except IntegrityError:
        first = _with_key(engine, owner, key)
        if first is None:
            raise
        if first.key_hash != key_hash:
            raise Conflict(f"idempotency key {key!r} was used for another job before") from None
        return first, False


def _with_key(engine: Engine, owner: str, key: str | None) -> Run | None:
    query = select(*COLUMNS).where(RUNS.c.owner == owner, RUNS.c.key == key)
    with reading(engine) as connection:
        row = connection.execute(query).first()
    return None if row is None else run_of(row)


def cancel(engine: Engine, run_id: str) -> Run:
    """Cancel a run: at once where nobody does it, else its worker will.

    Raises:
        Conflict: It is over already.
    """
    with engine.begin() as connection:
        run = locked(connection, run_id)
        if run.state in OVER:
            raise Conflict(f"the run is {run.state} already; there is nothing to cancel")
        if run.state == "running":
            change(connection, run_id, cancel=True)
        else:
            enter(connection, run_id, "cancelled", finished=now())
        return current(connection, run_id)


def retry(engine: Engine, run_id: str) -> Run:
    """Queue a failed or cancelled run again; it goes on after its last finished episode.

    Raises:
        Conflict: It is in another state.
    """
    with engine.begin() as connection:
        run = locked(connection, run_id)
        if run.state not in ("failed", "cancelled"):
            raise Conflict(f"the run is {run.state}; only failed or cancelled runs are tried again")
        enter(
            connection, run_id, "queued",
            attempts=0, cancel=False, not_before=0.0, finished=None, traceback=None,
        )  # fmt: skip
        return current(connection, run_id)


def annotate(
    engine: Engine,
    run_id: str,
    title: str | None = None,
    tags: Sequence[str] | None = None,
    remark: str | None = None,
) -> Run:
    """Change what is said of a run; None leaves it as it is.

    Raises:
        Conflict: There is no such run any more.
    """
    given = {"title": title, "tags": None if tags is None else joined(tags), "remark": remark}
    with engine.begin() as connection:
        locked(connection, run_id)
        change(connection, run_id, **{k: v for k, v in given.items() if v is not None})
        return current(connection, run_id)


def hide(engine: Engine, run_id: str, if_over: bool = False) -> None:
    """Take a run out of every list; its files and its row are for ``forget``.

    Args:
        engine: The database.
        run_id: Which run.
        if_over: Whether one that waits stays too.

    Raises:
        Conflict: It is running, or waits and is to stay then.
    """
    with engine.begin() as connection:
        run = locked(connection, run_id)
        if run.state == "running" or (if_over and run.state not in OVER):
            raise Conflict(f"the run is {run.state}; cancel it first")
        change(connection, run_id, state=GONE, key=None)


def forget(engine: Engine, run_id: str) -> None:
    """Delete the row and the events of a hidden run."""
    with engine.begin() as connection:
        connection.execute(delete(RUNS).where(RUNS.c.id == run_id, RUNS.c.state == GONE))
