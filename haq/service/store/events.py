"""Events of a run, numbered from 1 without a gap.

A number is given under the lock of the run's row, so a reader who knows the last one misses none.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, insert, select, update

from haq.service.database import reading
from haq.service.tables import EVENTS, RUNS, now


class Event(NamedTuple):
    """One thing that happened to a run."""

    run_id: str
    number: int
    kind: str
    data: str
    at: float


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


def add_event(connection: Connection, run_id: str, kind: str, data: Mapping[str, Any]) -> None:
    """Add an event to a run under the next number."""
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
