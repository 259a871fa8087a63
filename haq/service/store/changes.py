"""The steps that the writes of a run are made of, each within a transaction of its caller."""

from typing import Any

from sqlalchemy import Connection, case, select, update

from haq.service.store.events import add_event
from haq.service.store.rows import COLUMNS, GONE, OVER, Conflict, Run, run_of
from haq.service.tables import RUNS, now

HOOK_TRIES = 5
"""How often the end of a run is told, at most."""


def locked(connection: Connection, run_id: str) -> Run:
    """Return a run and lock its row until the transaction ends.

    Raises:
        Conflict: There is none.
    """
    row = connection.execute(
        select(*COLUMNS).where(RUNS.c.id == run_id, RUNS.c.state != GONE).with_for_update()
    ).first()
    if row is None:
        raise Conflict(f"there is no run {run_id} any more")
    return run_of(row)


def change(connection: Connection, run_id: str, **values: Any) -> None:
    """Write these columns of a run."""
    connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(updated=now(), **values))


def enter(
    connection: Connection, run_id: str, state: str, message: str | None = None, **values: Any
) -> None:
    """Bring a run into a state, with the event that says so; each end is for its hook to tell."""
    if state in OVER:
        tries = case((RUNS.c.hook.is_not(None), HOOK_TRIES), else_=0)
        values = {"hook_left": tries, "hook_at": 0.0, **values}
    change(connection, run_id, state=state, message=message, **values)
    data = {"state": state} | ({} if message is None else {"message": message})
    add_event(connection, run_id, "state", data)
