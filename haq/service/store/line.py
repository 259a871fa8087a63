"""Who waits, who works, and what runs took: all that an estimate is made of."""

import heapq
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import Engine, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from haq.service.database import reading
from haq.service.store.rows import COLUMNS, Run, run_of
from haq.service.tables import RUNS, WORKERS, now

ALIVE_S = 60.0
"""For how long a sign of life of a worker counts."""

_MOST = 2000  # runs that wait, of which positions are told


class Standing(NamedTuple):
    """The service at one moment.

    Attributes:
        running: Runs under way, the first begun first.
        waiting: Runs that wait, in the order in which they are taken.
        workers: How many workers gave a sign of life of late, or do a run.
        moment: In seconds since 1970, by the database's clock.
    """

    running: list[Run]
    waiting: list[Run]
    workers: int
    moment: float


def standing(engine: Engine, fair: bool = True) -> Standing:
    """Return what runs, what waits and who is there to do it, of all users.

    Args:
        engine: The database.
        fair: Whether users take turns, as in ``Turns``; otherwise the oldest run is next.
    """
    with reading(engine) as connection:
        moment = float(connection.scalar(select(now())) or 0.0)
        running = connection.execute(
            select(*COLUMNS).where(RUNS.c.state == "running").order_by(RUNS.c.started, RUNS.c.id)
        )
        rows = [run_of(row) for row in running]
        waiting = connection.execute(
            select(*COLUMNS).where(RUNS.c.state.in_(["queued", "paused"]))
            .order_by(RUNS.c.created, RUNS.c.id).limit(_MOST)
        )  # fmt: skip
        line = [run_of(row) for row in waiting]
        if fair:
            last = connection.execute(
                select(RUNS.c.owner, func.max(RUNS.c.taken))
                .where(RUNS.c.owner.in_({run.owner for run in line}))
                .group_by(RUNS.c.owner)
            )
            line = in_turn(line, rows, {owner: taken or 0.0 for owner, taken in last})
        seen = connection.scalars(select(WORKERS.c.name).where(WORKERS.c.seen > moment - ALIVE_S))
        alive = {*seen, *(run.worker for run in rows if (run.lease_until or 0.0) > moment)}
    return Standing(rows, line, len(alive), moment)


def in_turn(waiting: Sequence[Run], running: Sequence[Run], last: Mapping[str, float]) -> list[Run]:
    """Return runs in the order in which they are taken where users take turns.

    Args:
        waiting: The oldest first.
        running: Those under way.
        last: When a run of an owner was last taken.
    """
    lines: dict[str, deque[Run]] = {}
    for run in waiting:
        lines.setdefault(run.owner, deque()).append(run)
    busy = Counter(run.owner for run in running)
    turns = [(busy[owner], last.get(owner, 0.0), owner) for owner in lines]
    heapq.heapify(turns)
    order = []
    while turns:
        count, moment, owner = heapq.heappop(turns)
        order.append(lines[owner].popleft())
        if lines[owner]:
            heapq.heappush(turns, (count + 1, moment, owner))
    return order


def paces(engine: Engine, most: int = 100) -> Mapping[tuple[str, str, str], list[float]]:
    """Return the seconds an episode of the last finished runs, by model, data and agent.

    The whole run counts, from its first start to its end.
    """
    query = (
        select(*COLUMNS).where(RUNS.c.state == "finished", RUNS.c.started.is_not(None))
        .order_by(RUNS.c.finished.desc()).limit(most)
    )  # fmt: skip
    seconds: dict[tuple[str, str, str], list[float]] = {}
    with reading(engine) as connection:
        runs = [run_of(row) for row in connection.execute(query)]
    for run in runs:
        took = (run.finished or 0.0) - (run.started or 0.0)
        key = (run.job.model, run.job.data, run.job.agent)
        seconds.setdefault(key, []).append(max(0.0, took) / max(1, run.episodes_asked))
    return seconds


def sign_of_life(engine: Engine, worker: str) -> None:
    """Note that a worker is there; those that were not for an hour are forgotten."""
    with engine.begin() as connection:
        connection.execute(delete(WORKERS).where(WORKERS.c.seen < now() - 3600.0))
        there = update(WORKERS).where(WORKERS.c.name == worker).values(seen=now())
        if connection.execute(there).rowcount:
            return
        try:
            with connection.begin_nested():
                connection.execute(insert(WORKERS).values(name=worker, seen=now()))
        except IntegrityError:
            pass  # of the same name, at the same moment


def leave(engine: Engine, worker: str) -> None:
    """Note that a worker ends."""
    with engine.begin() as connection:
        connection.execute(delete(WORKERS).where(WORKERS.c.name == worker))
