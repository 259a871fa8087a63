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


class Turns(NamedTuple):
    """Whose run is next.

    Attributes:
        fair: Whether users take turns: first whoever has the fewest runs under way, and of those
            whoever has waited longest for one to be taken; otherwise the oldest run is next.
        running: How many runs of one user may be under way.
    """

    fair: bool = True
    running: int = 1000


TURNS = Turns()


def claim(
    engine: Engine, worker: str, lease_s: float, tries: int, turns: Turns = TURNS
) -> Run | None:
    """Take the next run that waits, or whose worker gave no sign of life; None if there is none.

    Runs whose workers died too often in a row are failed on the way, and those that were to be
    cancelled are.

    Args:
        engine: The database.
        worker: Its name.
        lease_s: How long the lease holds; that of a run is renewed before.
        tries: After which a run counts as failed.
        turns: Whose run is next.
    """
    # No lease and no pause is set further ahead than that, unless the clock went back since.
    beyond = now() + 2 * lease_s + PAUSE_S
    waits = and_(
        RUNS.c.state.in_(["queued", "paused"]),
        or_(RUNS.c.not_before <= now(), RUNS.c.not_before > beyond),
    )
    expired = and_(
        RUNS.c.state == "running", or_(RUNS.c.lease_until < now(), RUNS.c.lease_until > beyond)
    )
    with engine.begin() as connection:
        _bury(connection, expired, tries)
        run_id = _next(connection, or_(waits, expired), expired, turns)
        if run_id is None:
            return None
        enter(
            connection, run_id, "running",
            worker=worker, lease_until=now() + lease_s, fence=RUNS.c.fence + 1, taken=now(),
            attempts=RUNS.c.attempts + 1, started=func.coalesce(RUNS.c.started, now()),
        )  # fmt: skip
        return current(connection, run_id)


PAUSE_S = 600.0
"""The longest pause of a run."""


def _next(
    connection: Connection, ready: ColumnElement[bool], expired: ColumnElement[bool], turns: Turns
) -> str | None:
    owners = [owner for count, _, owner in _owners(connection, ready, expired)
              if count < turns.running]  # fmt: skip
    groups = [[owner] for owner in owners] if turns.fair else [owners]
    for group in groups:
        # Two workers never get the same row: the one skips what the other has locked.
        run_id = connection.scalar(
            select(RUNS.c.id)
            .where(ready, RUNS.c.owner.in_(group))
            .order_by(RUNS.c.created, RUNS.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        if run_id is not None:
            return str(run_id)
    return None


def _owners(
    connection: Connection, ready: ColumnElement[bool], expired: ColumnElement[bool]
) -> list[tuple[int, float, str]]:
    """Return who waits, in turn: with the runs under way, and when one was last taken."""
    names = connection.scalars(select(RUNS.c.owner).where(ready).distinct()).all()
    busy = select(RUNS.c.owner, func.count()).where(RUNS.c.state == "running", ~expired)
    counts = {owner: count for owner, count in connection.execute(busy.group_by(RUNS.c.owner))}
    last = {
        name: connection.scalar(select(func.max(RUNS.c.taken)).where(RUNS.c.owner == name)) or 0.0
        for name in names
    }
    return sorted((counts.get(name, 0), last[name], name) for name in names)


def _bury(connection: Connection, expired: ColumnElement[bool], tries: int) -> None:
    rows = connection.execute(
        select(RUNS.c.id, RUNS.c.cancel)
        .where(expired, or_(RUNS.c.cancel, RUNS.c.attempts >= tries))
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
    busy_s: float = 0.0,
) -> bool:
    """Renew the lease, note where the search stands and add its new trials to the events.

    Args:
        engine: The database.
        lease: Whose write this is.
        lease_s: How long the lease holds from now on.
        progress: Where the search stands.
        trials: With "episode", "accuracy" and "best_accuracy" each; those known are passed over.
        busy_s: How long the run has been under way since the last report.

    Returns:
        Whether the run is to be cancelled.

    Raises:
        LeaseLost: The run is another worker's.
    """
    columns = {key: value for key, value in progress._asdict().items() if value is not None}
    with engine.begin() as connection:
        busy = {"busy_s": RUNS.c.busy_s + busy_s}
        _fenced(connection, lease, lease_until=now() + lease_s, **busy, **columns)
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


def _fenced(connection: Connection, lease: Lease, **values: Any) -> None:
    mine = and_(RUNS.c.id == lease.run_id, RUNS.c.fence == lease.fence)
    state = connection.scalar(select(RUNS.c.state).where(mine).with_for_update())
    # A run that failed with this lease was given up for dead, and its worker lives.
    if state not in ("running", "failed"):
        raise LeaseLost(f"run {lease.run_id} is no longer this worker's")
    if state == "failed":
        enter(connection, lease.run_id, "running", finished=None)
    change(connection, lease.run_id, **values)


def weigh(engine: Engine, run_id: str, size_bytes: int) -> None:
    """Note what the files of a run take."""
    with engine.begin() as connection:
        connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(size_bytes=size_bytes))
