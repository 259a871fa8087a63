"""Every read and write of a run's row and its events, each in one transaction.

A run is done by whoever holds its lease. A lease has a number, the fence, that grows whenever a
worker takes the run; what a worker writes counts only while the row still bears its number.
Events are numbered from 1 for each run, under the lock of its row, so a reader who knows the last
number misses none.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.exc import IntegrityError

from haq.errors import HaqError
from haq.runs.job import Job
from haq.service.database import reading
from haq.service.tables import EVENTS, RUNS, now

STATES = ("queued", "running", "paused", "finished", "failed", "cancelled")
OVER = ("finished", "failed", "cancelled")

_GONE = "deleted"  # hidden, until its files are taken away


class Conflict(HaqError):
    """Something cannot be done in the state in which a run is."""


class LeaseLost(Exception):
    """Another worker has the run, or nobody may have it any more."""


@dataclass(frozen=True)
class Run:
    """A row of the table of runs; see there."""

    id: str
    owner: str
    title: str
    asked: str
    key: str | None
    key_hash: str | None
    state: str
    message: str | None
    traceback: str | None
    created: float
    updated: float
    started: float | None
    finished: float | None
    not_before: float
    worker: str | None
    lease_until: float | None
    fence: int
    attempts: int
    cancel: bool
    stage: str | None
    done: int
    total: int
    note: str
    episodes: int
    episodes_asked: int
    best_accuracy: float | None
    episode_s: float | None
    events: int

    @property
    def job(self) -> Job:
        """What was asked for, with names and uploads as the user wrote them."""
        return Job.model_validate_json(self.asked)


class Event(NamedTuple):
    """One thing that happened to a run."""

    run_id: str
    number: int
    kind: str
    data: str
    at: float


class Lease(NamedTuple):
    """The right to do a run."""

    run_id: str
    fence: int


class Progress(NamedTuple):
    """Where a search stands, as its worker knows it."""

    stage: str | None = None
    done: int = 0
    total: int = 0
    note: str = ""
    episode_s: float | None = None


_COLUMNS = [RUNS.c[field.name] for field in fields(Run)]


def _run(row: Any) -> Run:
    return Run(**row._mapping)


# --- for users


def submit(
    engine: Engine, owner: str, job: Job, title: str, key: str | None = None
) -> tuple[Run, bool]:
    """Queue a job and return its run, and whether it is new.

    Args:
        engine: The database.
        owner: Whose run it is.
        job: Checked already.
        title: For people.
        key: Of idempotency: the same key of the same owner gives the run of the first time.

    Raises:
        Conflict: The key was used for another job.
    """
    asked = job.model_dump_json()
    key_hash = hashlib.sha256(json.dumps([asked, title]).encode()).hexdigest() if key else None
    # In the order of submission, also of runs within one tick of the database's clock.
    run_id = f"{time.time_ns():016x}{secrets.token_hex(8)}"
    values = {
        "id": run_id, "owner": owner, "title": title, "asked": asked, "key": key,
        "key_hash": key_hash, "state": "queued", "created": now(), "updated": now(),
        "not_before": 0.0, "fence": 0, "attempts": 0, "cancel": False, "done": 0, "total": 0,
        "note": "", "episodes": 0, "episodes_asked": job.episodes, "events": 0,
    }  # fmt: skip
    try:
        with engine.begin() as connection:
            connection.execute(insert(RUNS).values(**values))
            _add_event(connection, run_id, "state", {"state": "queued"})
            return _get(connection, run_id), True
    except IntegrityError:
        with reading(engine) as connection:
            row = connection.execute(
                select(*_COLUMNS).where(RUNS.c.owner == owner, RUNS.c.key == key)
            ).first()
        if row is None:
            raise
        if row.key_hash != key_hash:
            raise Conflict(f"idempotency key {key!r} was used for another job before") from None
        return _run(row), False


def find(engine: Engine, run_id: str, owner: str | None = None) -> Run | None:
    """Return a run; None if there is none, or it is not of this owner (None: of anyone)."""
    with reading(engine) as connection:
        row = connection.execute(
            select(*_COLUMNS).where(RUNS.c.id == run_id, RUNS.c.state != _GONE, _of(owner))
        ).first()
    return None if row is None else _run(row)


def listed(
    engine: Engine,
    owner: str | None = None,
    states: Sequence[str] = (),
    text: str = "",
    limit: int = 50,
    before: tuple[float, str] | None = None,
) -> list[Run]:
    """Return runs, the newest first.

    Args:
        engine: The database.
        owner: Whose; None for everyone's.
        states: Which states; none for all.
        text: What the title must hold.
        limit: How many at most.
        before: Created and id of the last run of the page before.
    """
    query = select(*_COLUMNS).where(RUNS.c.state != _GONE, _of(owner))
    if states:
        query = query.where(RUNS.c.state.in_(states))
    if text:
        query = query.where(RUNS.c.title.icontains(text, autoescape=True))
    if before is not None:
        created, run_id = before
        query = query.where(
            or_(RUNS.c.created < created, and_(RUNS.c.created == created, RUNS.c.id < run_id))
        )
    with reading(engine) as connection:
        rows = connection.execute(
            query.order_by(RUNS.c.created.desc(), RUNS.c.id.desc()).limit(limit)
        )
        return [_run(row) for row in rows]


def counts(engine: Engine) -> dict[str, int]:
    """Return how many runs there are in each state."""
    with reading(engine) as connection:
        rows = connection.execute(select(RUNS.c.state, func.count()).group_by(RUNS.c.state))
        found = {state: count for state, count in rows}
    return {state: found.get(state, 0) for state in STATES}


def longest_wait(engine: Engine) -> float:
    """Return for how many seconds the first in the queue has been waiting."""
    query = select(now() - func.min(RUNS.c.created)).where(RUNS.c.state == "queued")
    with reading(engine) as connection:
        return float(connection.scalar(query) or 0.0)


def waiting(engine: Engine, owner: str) -> int:
    """Return how many runs of an owner are not over."""
    query = select(func.count()).where(RUNS.c.owner == owner, RUNS.c.state.not_in([*OVER, _GONE]))
    with reading(engine) as connection:
        return connection.scalar(query) or 0


def uses(engine: Engine, text: str) -> int:
    """Return how many runs that are not over ask for something, such as an upload."""
    query = select(func.count()).where(
        RUNS.c.asked.contains(text, autoescape=True), RUNS.c.state.not_in([*OVER, _GONE])
    )
    with reading(engine) as connection:
        return connection.scalar(query) or 0


def events_after(engine: Engine, run_id: str, number: int, limit: int = 1000) -> list[Event]:
    """Return the events of a run after one with this number, in their order."""
    query = (
        select(EVENTS)
        .where(EVENTS.c.run_id == run_id, EVENTS.c.number > number)
        .order_by(EVENTS.c.number)
        .limit(limit)
    )
    with reading(engine) as connection:
        return [Event(*row) for row in connection.execute(query)]


def seen(engine: Engine, run_ids: Sequence[str]) -> dict[str, Run]:
    """Return the runs with these ids that are there."""
    with reading(engine) as connection:
        rows = connection.execute(
            select(*_COLUMNS).where(RUNS.c.id.in_(run_ids), RUNS.c.state != _GONE)
        )
        return {row.id: _run(row) for row in rows}


def cancel(engine: Engine, run_id: str) -> Run:
    """Cancel a run: at once where nobody does it, else its worker will.

    Raises:
        Conflict: It is over already.
    """
    with engine.begin() as connection:
        run = _locked(connection, run_id)
        if run.state in OVER:
            raise Conflict(f"the run is {run.state} already; there is nothing to cancel")
        if run.state == "running":
            _set(connection, run_id, cancel=True)
        else:
            _enter(connection, run_id, "cancelled", finished=now())
        return _get(connection, run_id)


def retry(engine: Engine, run_id: str) -> Run:
    """Queue a failed or cancelled run again; it goes on after its last finished episode.

    Raises:
        Conflict: It is in another state.
    """
    with engine.begin() as connection:
        run = _locked(connection, run_id)
        if run.state not in ("failed", "cancelled"):
            raise Conflict(f"the run is {run.state}; only failed or cancelled runs are tried again")
        _enter(
            connection, run_id, "queued",
            attempts=0, cancel=False, not_before=0.0, finished=None, traceback=None,
        )  # fmt: skip
        return _get(connection, run_id)


def hide(engine: Engine, run_id: str) -> None:
    """Take a run out of every list; its files and its row are for ``forget``.

    Raises:
        Conflict: It is running.
    """
    with engine.begin() as connection:
        run = _locked(connection, run_id)
        if run.state == "running":
            raise Conflict("the run is running; cancel it first")
        _set(connection, run_id, state=_GONE, key=None)


def hidden(engine: Engine) -> list[str]:
    """Return the runs whose files are to be taken away."""
    with reading(engine) as connection:
        return list(connection.scalars(select(RUNS.c.id).where(RUNS.c.state == _GONE)))


def forget(engine: Engine, run_id: str) -> None:
    """Delete the row and the events of a hidden run."""
    with engine.begin() as connection:
        connection.execute(delete(RUNS).where(RUNS.c.id == run_id, RUNS.c.state == _GONE))


# --- for workers


def claim(engine: Engine, worker: str, lease_s: float, tries: int) -> Run | None:
    """Take the oldest run that waits, or whose worker gave no sign of life; None if there is none.

    Runs whose workers died too often in a row are failed on the way, and those that were to be
    cancelled are.
    """
    free = and_(RUNS.c.state.in_(["queued", "paused"]), RUNS.c.not_before <= now())
    with engine.begin() as connection:
        _bury(connection, tries)
        # Two workers never get the same row: the one skips what the other has locked.
        found = connection.scalar(
            select(RUNS.c.id)
            .where(or_(free, _expired()))
            .order_by(RUNS.c.created, RUNS.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        if found is None:
            return None
        _enter(
            connection, found, "running",
            worker=worker, lease_until=now() + lease_s, fence=RUNS.c.fence + 1,
            attempts=RUNS.c.attempts + 1, started=func.coalesce(RUNS.c.started, now()),
        )  # fmt: skip
        return _get(connection, found)


def _bury(connection: Connection, tries: int) -> None:
    rows = connection.execute(
        select(RUNS.c.id, RUNS.c.cancel)
        .where(_expired(), or_(RUNS.c.cancel, RUNS.c.attempts >= tries))
        .with_for_update(skip_locked=True)
    ).all()
    for run_id, cancelled in rows:
        state = "cancelled" if cancelled else "failed"
        why = None if cancelled else _too_often(tries, "the process of its search or worker died")
        _enter(connection, run_id, state, why, finished=now(), lease_until=None)


def _too_often(tries: int, why: str) -> str:
    return f"given up after {tries} tries without a new episode: {why}"


def report(
    engine: Engine,
    lease: Lease,
    lease_s: float,
    progress: Progress,
    trials: Sequence[Mapping[str, Any]] = (),
) -> bool:
    """Renew the lease, note where the search stands and add its new trials to the events.

    Args:
        engine: The database.
        lease: Whose write this is.
        lease_s: How long the lease holds from now on.
        progress: Where the search stands.
        trials: With "episode", "accuracy" and "best_accuracy" each; those known are passed over.

    Returns:
        Whether the run is to be cancelled.

    Raises:
        LeaseLost: The run is another worker's.
    """
    stand = {key: value for key, value in progress._asdict().items() if value is not None}
    with engine.begin() as connection:
        _fenced(connection, lease, lease_until=now() + lease_s, **stand)
        _add_trials(connection, lease.run_id, trials)
        return _get(connection, lease.run_id).cancel


def _add_trials(connection: Connection, run_id: str, trials: Sequence[Mapping[str, Any]]) -> None:
    known = _get(connection, run_id).episodes
    for trial in trials:
        if trial["episode"] == known:
            known += 1
            _add_event(connection, run_id, "trial", trial)
            _set(
                connection, run_id,
                episodes=known, best_accuracy=trial["best_accuracy"], attempts=1,
            )  # fmt: skip


def finish(engine: Engine, lease: Lease, trials: Sequence[Mapping[str, Any]] = ()) -> None:
    """End a run well.

    Raises:
        LeaseLost: The run is another worker's.
    """
    with engine.begin() as connection:
        _fenced(connection, lease, lease_until=None)
        _add_trials(connection, lease.run_id, trials)
        _enter(connection, lease.run_id, "finished", finished=now(), traceback=None)


def stop(engine: Engine, lease: Lease) -> None:
    """Note that a run has been cancelled.

    Raises:
        LeaseLost: The run is another worker's.
    """
    with engine.begin() as connection:
        _fenced(connection, lease, lease_until=None)
        _enter(connection, lease.run_id, "cancelled", finished=now())


def fail(engine: Engine, lease: Lease, message: str, traceback: str | None = None) -> None:
    """End a run badly, for good.

    Raises:
        LeaseLost: The run is another worker's.
    """
    with engine.begin() as connection:
        _fenced(connection, lease, lease_until=None)
        _enter(connection, lease.run_id, "failed", message, finished=now(), traceback=traceback)


def try_again(
    engine: Engine, lease: Lease, tries: int, delay_s: float, message: str, traceback: str | None
) -> None:
    """Queue a run whose search broke, or fail it if that was the last of its tries.

    Raises:
        LeaseLost: The run is another worker's.
    """
    with engine.begin() as connection:
        _fenced(connection, lease, lease_until=None, traceback=traceback)
        if _get(connection, lease.run_id).attempts >= tries:
            why = _too_often(tries, message)
            _enter(connection, lease.run_id, "failed", why, finished=now())
        else:
            _enter(connection, lease.run_id, "queued", message, not_before=now() + delay_s)


def hand_back(
    engine: Engine, lease: Lease, delay_s: float = 0.0, message: str | None = None
) -> None:
    """Queue a run that is not at fault, or pause it for a while where there is a message.

    Raises:
        LeaseLost: The run is another worker's.
    """
    with engine.begin() as connection:
        _fenced(connection, lease, lease_until=None, attempts=RUNS.c.attempts - 1)
        if _get(connection, lease.run_id).cancel:
            _enter(connection, lease.run_id, "cancelled", finished=now())
        else:
            state = "queued" if message is None else "paused"
            _enter(connection, lease.run_id, state, message, not_before=now() + delay_s)


# --- within a transaction


def _of(owner: str | None) -> ColumnElement[bool]:
    return true() if owner is None else RUNS.c.owner == owner


def _expired() -> ColumnElement[bool]:
    return and_(RUNS.c.state == "running", RUNS.c.lease_until < now())


def _get(connection: Connection, run_id: str) -> Run:
    return _run(connection.execute(select(*_COLUMNS).where(RUNS.c.id == run_id)).one())


def _locked(connection: Connection, run_id: str) -> Run:
    row = connection.execute(
        select(*_COLUMNS).where(RUNS.c.id == run_id, RUNS.c.state != _GONE).with_for_update()
    ).first()
    if row is None:
        raise Conflict(f"there is no run {run_id} any more")
    return _run(row)


def _set(connection: Connection, run_id: str, **values: Any) -> None:
    connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(updated=now(), **values))


def _fenced(connection: Connection, lease: Lease, **values: Any) -> None:
    mine = and_(RUNS.c.id == lease.run_id, RUNS.c.fence == lease.fence, RUNS.c.state == "running")
    done = connection.execute(update(RUNS).where(mine).values(updated=now(), **values))
    if done.rowcount != 1:
        raise LeaseLost(f"run {lease.run_id} is no longer this worker's")


def _enter(
    connection: Connection, run_id: str, state: str, message: str | None = None, **values: Any
) -> None:
    _set(connection, run_id, state=state, message=message, **values)
    said = {"state": state} | ({} if message is None else {"message": message})
    _add_event(connection, run_id, "state", said)


def _add_event(connection: Connection, run_id: str, kind: str, data: Mapping[str, Any]) -> None:
    number = connection.scalar(
        update(RUNS)
        .where(RUNS.c.id == run_id)
        .values(events=RUNS.c.events + 1, updated=now())
        .returning(RUNS.c.events)
    )
    connection.execute(
        insert(EVENTS).values(
            run_id=run_id, number=number, kind=kind, data=json.dumps(data), at=now()
        )
    )
