"""Rows of the table of runs, as they are read."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, func, select, true

from haq.errors import HaqError
from haq.runs.job import Job
from haq.service.database import reading
from haq.service.tables import RUNS, UPLOADS, now

STATES = ("queued", "running", "paused", "finished", "failed", "cancelled")

OVER = ("finished", "failed", "cancelled")

GONE = "deleted"  # hidden, until its files are taken away


class Conflict(HaqError):
    """Something cannot be done in the state in which a run is."""


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
    taken: float | None
    busy_s: float
    size_bytes: int
    events: int
    tags: str
    remark: str
    sweep: str | None
    hook: str | None

    @property
    def words(self) -> list[str]:
        """The tags, one by one."""
        return self.tags.split()

    @property
    def job(self) -> Job:
        """What was asked for, with names and uploads as the user wrote them."""
        return Job.model_validate_json(self.asked)


COLUMNS = [RUNS.c[field.name] for field in fields(Run)]


def run_of(row: Any) -> Run:
    """Return the run in a row of the columns above."""
    return Run(**row._mapping)


def find(engine: Engine, run_id: str, owner: str | None = None) -> Run | None:
    """Return a run; None if there is none, or it is not of this owner (None: of anyone)."""
    with reading(engine) as connection:
        row = connection.execute(
            select(*COLUMNS).where(RUNS.c.id == run_id, RUNS.c.state != GONE, of_owner(owner))
        ).first()
    return None if row is None else run_of(row)


def counts(engine: Engine) -> dict[str, int]:
    """Return how many runs there are in each state."""
    with reading(engine) as connection:
        rows = connection.execute(select(RUNS.c.state, func.count()).group_by(RUNS.c.state))
        by_state = {state: count for state, count in rows}
    return {state: by_state.get(state, 0) for state in STATES}


def longest_wait(engine: Engine) -> float:
    """Return for how many seconds the first in the queue has been waiting."""
    query = select(now() - func.min(RUNS.c.created)).where(RUNS.c.state == "queued")
    with reading(engine) as connection:
        return float(connection.scalar(query) or 0.0)


def waiting(engine: Engine, owner: str) -> int:
    """Return how many runs of an owner are not over."""
    query = select(func.count()).where(RUNS.c.owner == owner, RUNS.c.state.not_in([*OVER, GONE]))
    with reading(engine) as connection:
        return connection.scalar(query) or 0


def stored(engine: Engine, owner: str) -> int:
    """Return the bytes of an owner's uploads and of the runs that are over."""
    with reading(engine) as connection:
        return sum(
            int(connection.scalar(select(func.sum(column)).where(table.c.owner == owner)) or 0)
            for table, column in ((UPLOADS, UPLOADS.c.stored_bytes), (RUNS, RUNS.c.size_bytes))
        )


def uses(engine: Engine, text: str) -> int:
    """Return how many runs that are not over ask for something, such as an upload."""
    query = select(func.count()).where(
        RUNS.c.asked.contains(text, autoescape=True), RUNS.c.state.not_in([*OVER, GONE])
    )
    with reading(engine) as connection:
        return connection.scalar(query) or 0


def seen(engine: Engine, run_ids: Sequence[str]) -> dict[str, Run]:
    """Return the runs with these ids that are there."""
    with reading(engine) as connection:
        rows = connection.execute(
            select(*COLUMNS).where(RUNS.c.id.in_(run_ids), RUNS.c.state != GONE)
        )
        return {row.id: run_of(row) for row in rows}


def hidden(engine: Engine) -> list[str]:
    """Return the runs whose files are to be taken away."""
    with reading(engine) as connection:
        return list(connection.scalars(select(RUNS.c.id).where(RUNS.c.state == GONE)))


def of_owner(owner: str | None) -> ColumnElement[bool]:
    """Return the condition that a run is of an owner; None for anyone's."""
    return true() if owner is None else RUNS.c.owner == owner


def current(connection: Connection, run_id: str) -> Run:
    """Return a run as it stands in this transaction."""
    return run_of(connection.execute(select(*COLUMNS).where(RUNS.c.id == run_id)).one())
