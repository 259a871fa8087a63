"""Channels: under one name, the newest network that was published; and networks by their ids."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, delete, func, insert, select
from sqlalchemy.exc import IntegrityError

from haq.service.database import reading
from haq.service.store.rows import COLUMNS, GONE, Run, run_of
from haq.service.tables import CHANNELS, NETWORKS, RUNS, now

TRIES = 5


@dataclass(frozen=True)
class Published:
    """A run on a channel.

    Attributes:
        owner: Of the channel.
        name: Of the channel.
        number: From 1; the highest is the newest.
        run: Whose network it is.
        at: When it was published, in seconds since 1970.
    """

    owner: str
    name: str
    number: int
    run: Run
    at: float


def publish(engine: Engine, owner: str, name: str, run_id: str) -> None:
    """Make a run's network the newest one of a channel; nothing happens if it is already."""
    for attempt in range(TRIES):
        try:
            with engine.begin() as connection:
                mine = (CHANNELS.c.owner == owner) & (CHANNELS.c.name == name)
                last = connection.execute(
                    select(CHANNELS.c.number, CHANNELS.c.run_id)
                    .where(mine)
                    .order_by(CHANNELS.c.number.desc())
                ).first()
                if last is None or last.run_id != run_id:
                    number = 1 if last is None else last.number + 1
                    values = {"owner": owner, "name": name, "number": number, "run_id": run_id}
                    connection.execute(insert(CHANNELS).values(**values, at=now()))
            return
        except IntegrityError:  # somebody published at the same time
            if attempt + 1 == TRIES:
                raise


def history(engine: Engine, owner: str | None, name: str) -> list[Published]:
    """Return what was published on a channel, the newest first; of runs that are still there.

    Args:
        engine: The database.
        owner: Whose channel; None for anyone's.
        name: Of the channel.
    """
    return _rows(engine, owner, name)


def channels(engine: Engine, owner: str | None) -> list[Published]:
    """Return the newest network of every channel of an owner, or of all, by name."""
    newest: dict[tuple[str, str], Published] = {}
    for row in _rows(engine, owner, None):
        newest.setdefault((row.owner, row.name), row)
    return [newest[key] for key in sorted(newest)]


def _rows(engine: Engine, owner: str | None, name: str | None) -> list[Published]:
    query = (
        select(CHANNELS.c.owner, CHANNELS.c.name, CHANNELS.c.number, CHANNELS.c.at, *_OF_RUN)
        .join(RUNS, RUNS.c.id == CHANNELS.c.run_id)
        .where(RUNS.c.state != GONE)
        .order_by(CHANNELS.c.at.desc(), CHANNELS.c.number.desc())
    )
    if owner is not None:
        query = query.where(CHANNELS.c.owner == owner)
    if name is not None:
        query = query.where(CHANNELS.c.name == name)
    with reading(engine) as connection:
        return [
            Published(row[0], row[1], row[2], Run(*row[4:]), row[3])
            for row in connection.execute(query)
        ]


_OF_RUN = [column.label(f"run_{column.name}") for column in COLUMNS]


def remember(engine: Engine, run_id: str, network: str) -> None:
    """Keep the id of a run's network."""
    with engine.begin() as connection:
        connection.execute(delete(NETWORKS).where(NETWORKS.c.run_id == run_id))
        connection.execute(insert(NETWORKS).values(run_id=run_id, network=network))


def network_of(engine: Engine, run_id: str) -> str | None:
    """Return the id of a run's network, if it is known."""
    with reading(engine) as connection:
        return connection.scalar(select(NETWORKS.c.network).where(NETWORKS.c.run_id == run_id))


def runs_with(engine: Engine, network: str, owner: str | None) -> Sequence[Run]:
    """Return the runs whose network has this id, of an owner or (None) of anyone."""
    query = (
        select(*COLUMNS)
        .join(NETWORKS, NETWORKS.c.run_id == RUNS.c.id)
        .where(NETWORKS.c.network == network, RUNS.c.state != GONE)
    )
    if owner is not None:
        query = query.where(RUNS.c.owner == owner)
    with reading(engine) as connection:
        return [run_of(row) for row in connection.execute(query)]


def count(engine: Engine, owner: str) -> int:
    """Return how many channels an owner has."""
    query = select(func.count(CHANNELS.c.name.distinct())).where(CHANNELS.c.owner == owner)
    with reading(engine) as connection:
        return connection.scalar(query) or 0
