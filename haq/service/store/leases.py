"""What workers do to runs, each in one transaction that is fenced by the lease.

A run is done by whoever holds its lease. A lease has a number, the fence, that grows whenever a
worker takes the run; what a worker writes counts only while the row still bears its number.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, and_, func, or_, select, update

from haq.service.store.changes import change, enter
from haq.service.store.events import add_event
from haq.service.store.rows import Run, current
from haq.service.tables import RUNS, now


class LeaseLost(Exception):
    """Another worker has the run, or nobody may have it any more."""


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


def claim(engine: Engine, worker: str, lease_s: float, tries: int) -> Run | None:
    """Take the oldest run that waits, or whose worker gave no sign of life; None if there is none.

    Runs whose workers died too often in a row are failed on the way, and those that were to be
    cancelled are.
    """
    free = and_(RUNS.c.state.in_(["queued", "paused"]), RUNS.c.not_before <= now())
    with engine.begin() as connection:
        _bury(connection, tries)
        # Two workers never get the same row: the one skips what the other has locked.
        run_id = connection.scalar(
            select(RUNS.c.id)
            .where(or_(free, _expired()))
            .order_by(RUNS.c.created, RUNS.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        if run_id is None:
            return None
        enter(
            connection, run_id, "running",
            worker=worker, lease_until=now() + lease_s, fence=RUNS.c.fence + 1,
            attempts=RUNS.c.attempts + 1, started=func.coalesce(RUNS.c.started, now()),
        )  # fmt: skip
        return current(connection, run_id)


def _bury(connection: Connection, tries: int) -> None:
    rows = connection.execute(
        select(RUNS.c.id, RUNS.c.cancel)
        .where(_expired(), or_(RUNS.c.cancel, RUNS.c.attempts >= tries))
        .with_for_update(skip_locked=True)
    ).all()
    for run_id, cancelled in rows:
        state = "cancelled" if cancelled else "failed"
        why = None if cancelled else _too_often(tries, "the process of its search or worker died")
        enter(connection, run_id, state, why, finished=now(), lease_until=None)


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
    columns = {key: value for key, value in progress._asdict().items() if value is not None}
    with engine.begin() as connection:
        _fenced(connection, lease, lease_until=now() + lease_s, **columns)
        _add_trials(connection, lease.run_id, trials)
        return current(connection, lease.run_id).cancel


def _add_trials(connection: Connection, run_id: str, trials: Sequence[Mapping[str, Any]]) -> None:
    known = current(connection, run_id).episodes
    for trial in trials:
        if trial["episode"] == known:
            known += 1
            add_event(connection, run_id, "trial", trial)
            change(
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
        enter(connection, lease.run_id, "finished", finished=now(), traceback=None)


def stop(engine: Engine, lease: Lease) -> None:
    """Note that a run has been cancelled.

    Raises:
        LeaseLost: The run is another worker's.
    """
    with engine.begin() as connection:
        _fenced(connection, lease, lease_until=None)
        enter(connection, lease.run_id, "cancelled", finished=now())


def fail(engine: Engine, lease: Lease, message: str, traceback: str | None = None) -> None:
    """End a run badly, for good.

    Raises:
        LeaseLost: The run is another worker's.
    """
    with engine.begin() as connection:
        _fenced(connection, lease, lease_until=None)
        enter(connection, lease.run_id, "failed", message, finished=now(), traceback=traceback)


def try_again(
    engine: Engine, lease: Lease, tries: int, delay_s: float, message: str, traceback: str | None
) -> None:
    """Queue a run whose search broke, or fail it if that was the last of its tries.

    Raises:
        LeaseLost: The run is another worker's.
    """
    with engine.begin() as connection:
        _fenced(connection, lease, lease_until=None, traceback=traceback)
        if current(connection, lease.run_id).attempts >= tries:
            why = _too_often(tries, message)
            enter(connection, lease.run_id, "failed", why, finished=now())
        else:
            enter(connection, lease.run_id, "queued", message, not_before=now() + delay_s)


def hand_back(
    engine: Engine, lease: Lease, delay_s: float = 0.0, message: str | None = None
) -> None:
    """Queue a run that is not at fault, or pause it for a while where there is a message.

    Raises:
        LeaseLost: The run is another worker's.
    """
    with engine.begin() as connection:
        _fenced(connection, lease, lease_until=None, attempts=RUNS.c.attempts - 1)
        if current(connection, lease.run_id).cancel:
            enter(connection, lease.run_id, "cancelled", finished=now())
        else:
            state = "queued" if message is None else "paused"
            enter(connection, lease.run_id, state, message, not_before=now() + delay_s)


def take_back_try(engine: Engine, lease: Lease) -> None:
    """Note that a worker that lost this lease lives: the run was not what ended its try."""
    later = and_(RUNS.c.id == lease.run_id, RUNS.c.fence > lease.fence, RUNS.c.attempts > 0)
    open_ = RUNS.c.state.in_(["queued", "paused", "running"])
    with engine.begin() as connection:
        connection.execute(
            update(RUNS).where(later, open_).values(attempts=RUNS.c.attempts - 1, updated=now())
        )


def _expired() -> ColumnElement[bool]:
    return and_(RUNS.c.state == "running", RUNS.c.lease_until < now())


def _fenced(connection: Connection, lease: Lease, **values: Any) -> None:
    mine = and_(RUNS.c.id == lease.run_id, RUNS.c.fence == lease.fence, RUNS.c.state == "running")
    written = connection.execute(update(RUNS).where(mine).values(updated=now(), **values))
    if written.rowcount != 1:
        raise LeaseLost(f"run {lease.run_id} is no longer this worker's")
