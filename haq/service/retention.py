"""What is taken away: the files of deleted runs, and what the operator keeps only for so long."""

import logging
import shutil
import time
from typing import NamedTuple

from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError

from haq.service import place, store, uploads
from haq.service.database import reading
from haq.service.settings import Keep, Settings
from haq.service.store.rows import OVER
from haq.service.tables import CHANNELS, RUNS, now

LOG = logging.getLogger("haq.service.retention")

EVERY_S = 600.0
"""Between two looks at what is older or larger than it may be."""


class Old(NamedTuple):
    """Something that may be taken away.

    Attributes:
        kind: "run" or "upload".
        id: Its number.
        owner: Whose it is.
        name: Its title or name.
        age_s: Since it was over, or brought.
        size_bytes: Of its files.
    """

    kind: str
    id: str
    owner: str
    name: str
    age_s: float
    size_bytes: int


class Retention:
    """Takes away what is deleted, at once, and what is kept too long, now and then."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._settings, self._looked = engine, settings, -EVERY_S

    def look(self) -> None:
        """Take away what is to be taken away; what cannot be now is left for the next time."""
        try:
            if self._settings.keep != Keep() and time.monotonic() - self._looked >= EVERY_S:
                self._looked = time.monotonic()
                clean(self._engine, self._settings, self._settings.keep)
            sweep(self._engine, self._settings)
        except (SQLAlchemyError, OSError) as error:
            LOG.warning("deleted runs are not taken away yet: %s", type(error).__name__)


def sweep(engine: Engine, settings: Settings) -> None:
    """Take away the files of deleted runs."""
    for run_id in store.hidden(engine):
        folder = settings.run_folder(run_id)
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            folder.with_name(f".{run_id}.lock").unlink(missing_ok=True)
            store.forget(engine, run_id)


def clean(engine: Engine, settings: Settings, keep: Keep, dry: bool = False) -> list[Old]:
    """Delete what is older than it may be, and then the oldest until no more bytes are kept.

    Runs that are not over stay, and those whose networks are on a channel, and uploads that a run
    needs that is not over.

    Args:
        engine: The database.
        settings: Where the files lie.
        keep: For how long, and how much.
        dry: Only return what would be deleted.

    Returns:
        What was deleted, the oldest first.
    """
    known = sorted(_old(engine, settings), key=lambda one: -one.age_s)
    total = sum(place.size_of(settings.files / part) for part in ("runs", "uploads"))
    gone = []
    for one in known:
        too_old = keep.seconds is not None and one.age_s > keep.seconds
        too_much = keep.size_bytes is not None and total > keep.size_bytes
        if (too_old or too_much) and (dry or _deleted(engine, settings, one)):
            gone.append(one)
            total -= one.size_bytes
    if not dry:
        sweep(engine, settings)
    return gone


def _old(engine: Engine, settings: Settings) -> list[Old]:
    published = select(CHANNELS.c.run_id)
    columns = (RUNS.c.id, RUNS.c.owner, RUNS.c.title, now() - RUNS.c.finished)
    query = select(*columns).where(RUNS.c.state.in_(OVER), RUNS.c.id.not_in(published))
    with reading(engine) as connection:
        runs = [("run", *row) for row in connection.execute(query)]
        moment = connection.scalar(select(now())) or 0.0
    brought = [
        ("upload", one.id, one.owner, one.name, moment - one.created)
        for one in uploads.listed(engine, None)
        if not store.uses(engine, f"upload:{one.id}")
    ]
    folders = {"run": settings.run_folder, "upload": settings.upload_folder}
    return [
        Old(kind, number, owner, name, age_s or 0.0, place.size_of(folders[kind](number)))
        for kind, number, owner, name, age_s in [*runs, *brought]
    ]


def _deleted(engine: Engine, settings: Settings, one: Old) -> bool:
    try:
        if one.kind == "run":
            store.hide(engine, one.id, if_over=True)
        else:
            upload = uploads.find(engine, one.id, None)
            if upload is None:
                return False
            uploads.remove(engine, settings, upload)
    except store.Conflict:  # it is asked for again, or gone, since it was looked at
        return False
    LOG.info("deleted", extra={one.kind: one.id, "user": one.owner, "age_s": round(one.age_s)})
    return True
