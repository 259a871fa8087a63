"""A copy of the database and the files of a service, as of one moment, and the way back.

The copy is a folder: the rows as a SQLite database, whatever they came from, and the folders of the
runs and uploads that they speak of. Both may be copied while the service runs, and after a crash.
"""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Connection, Engine, delete, insert, select

from haq.errors import HaqError
from haq.files import write_text
from haq.service import place
from haq.service.database import answering, check_current, connect, migrate
from haq.service.settings import Settings
from haq.service.store.rows import GONE
from haq.service.tables import METADATA, RUNS, SESSIONS, STORE, UPLOADS, WORKERS

ROWS = "haq.sqlite"

_PARTS = {"runs": RUNS, "uploads": UPLOADS}
_OF_THE_MOMENT = (SESSIONS, WORKERS)  # who is signed in or at work just now


class Copied(NamedTuple):
    """What a backup holds, or what was put back of it."""

    runs: int
    uploads: int
    size_bytes: int


def backup(settings: Settings, folder: Path) -> Copied:
    """Copy the rows and the files of a service to a folder, which may hold an older backup.

    Rows are of one moment, and files are copied after it: where a run went on meanwhile, it goes on
    from there. Runs that are deleted meanwhile are left out. The rows take their place last: a
    backup that was broken off is the one before it.

    Raises:
        HaqError: The database does not answer, or something cannot be read or written.
    """
    engine = connect(settings.url)
    name = check_current(engine)
    fault = place.missing(settings, name)
    if fault:
        raise HaqError(f"{settings.files}: {fault}")
    with _in_sentences(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = folder / f".{ROWS}.part"
        part.unlink(missing_ok=True)
        copy = connect(f"sqlite:///{part}")
        migrate(copy)
        with answering(engine):
            copy_rows(engine, copy)
            _copy_files(copy, settings.files, folder)
            _forget(copy, _known(copy, RUNS) - _known(engine, RUNS))
        _in_one_file(copy, part)
        part.replace(folder / ROWS)
        return _tidied(folder)


def restore(settings: Settings, folder: Path) -> Copied:
    """Put a backup into a service that is empty: no runs in its database, no files in its folder.

    Raises:
        HaqError: There is no backup, the service is not empty, or something cannot be written.
    """
    if (folder / place.NAME).exists():  # where rows may stand in the log of SQLite alone
        raise HaqError(f"{folder} is the folder of a service: haq service backup makes one of it")
    if not (folder / ROWS).is_file():
        raise HaqError(f"{folder} holds no backup: haq service backup writes one")
    engine = connect(settings.url)
    migrate(engine)
    with _in_sentences(folder), answering(engine), _brought_up_to_date(folder) as source:
        name = _name(source)
        there = settings.files / place.NAME
        if _known(engine, RUNS) or _known(engine, UPLOADS):
            raise HaqError(f"the database holds runs already: restore {folder} into an empty one")
        if there.exists() and there.read_text(encoding="utf-8").strip() not in (
            name,
            _name(engine),
        ):
            raise HaqError(f"{settings.files} is of another service: give an empty folder")
        if any(path.is_dir() for part in _PARTS for path in (settings.files / part).glob("*")):
            raise HaqError(
                f"{settings.files} holds runs already: restore {folder} into an empty one"
            )
        settings.files.mkdir(mode=0o700, parents=True, exist_ok=True)
        copied = _copy_files(source, folder, settings.files)
        copy_rows(source, engine)
        write_text(there, name + "\n")
    return copied


@contextmanager
def _in_sentences(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, shutil.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise HaqError(f"{folder}: {str(reason).lower()}; what was there before stays") from error


def copy_rows(source: Engine, target: Engine) -> None:
    """Copy all rows, as of one moment, into tables that hold nothing but the name of a store."""
    with _snapshot(source) as reads, target.begin() as writes:
        writes.execute(delete(STORE))
        for table in METADATA.sorted_tables:
            if table in _OF_THE_MOMENT:
                continue
            for rows in reads.execute(select(table)).mappings().partitions(1000):
                writes.execute(insert(table), [dict(row) for row in rows])


@contextmanager
def _snapshot(engine: Engine) -> Iterator[Connection]:
    options = {"reads": True}
    if engine.dialect.name == "postgresql":
        options["isolation_level"] = "REPEATABLE READ"  # type: ignore[assignment]
    with engine.connect().execution_options(**options) as connection:
        yield connection


def _known(engine: Engine, table: object) -> set[str]:
    assert table in (RUNS, UPLOADS)
    query = select(RUNS.c.id).where(RUNS.c.state != GONE) if table is RUNS else select(UPLOADS.c.id)
    with _snapshot(engine) as connection:
        return set(connection.scalars(query))


def _name(engine: Engine) -> str:
    with _snapshot(engine) as connection:
        return str(connection.scalar(select(STORE.c.id)))


def _forget(engine: Engine, run_ids: set[str]) -> None:
    with engine.begin() as connection:
        for run_id in run_ids:
            connection.execute(delete(RUNS).where(RUNS.c.id == run_id))


def _in_one_file(engine: Engine, file: Path) -> None:
    """Close a SQLite database so that all of it is in one file."""
    engine.dispose()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")


@contextmanager
def _brought_up_to_date(folder: Path) -> Iterator[Engine]:
    """Give the rows of a backup, in a copy that has the tables of today."""
    with tempfile.TemporaryDirectory() as around:
        copy = Path(around) / ROWS
        shutil.copyfile(folder / ROWS, copy)
        engine = connect(f"sqlite:///{copy}")
        try:
            migrate(engine)
            yield engine
        finally:
            engine.dispose()


def _copy_files(rows: Engine, source: Path, target: Path) -> Copied:
    counts, size = {}, 0
    for part, table in _PARTS.items():
        (target / part).mkdir(mode=0o700, exist_ok=True)
        known = sorted(_known(rows, table))
        counts[part] = len(known)
        for name in known:
            _mirror(source / part / name, target / part / name)
            size += place.size_of(target / part / name)
    return Copied(counts["runs"], counts["uploads"], size)


def _mirror(source: Path, target: Path) -> None:
    """Bring a folder to what another one holds; files as large and as old as theirs are kept."""
    files = {Path(around, name).relative_to(source) for around, _, names in os.walk(source)
             for name in names if not name.endswith(".part")}  # fmt: skip
    for path in files:
        try:
            theirs = (source / path).stat()
            ours = (target / path).stat() if (target / path).exists() else None
            if ours and (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns):
                continue
            (target / path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = (target / path).with_name(f".{path.name}.part")
            shutil.copy2(source / path, part)
            part.replace(target / path)
        except FileNotFoundError:  # it was replaced or deleted just now
            pass
    for old in [path for path in target.rglob("*") if path.is_file()]:
        if old.relative_to(target) not in files:
            old.unlink()


def _tidied(folder: Path) -> Copied:
    """Take away what the rows of a backup do not speak of, and say what it holds."""
    engine = connect(f"sqlite:///{folder / ROWS}")
    counts = {}
    for part, table in _PARTS.items():
        known = _known(engine, table)
        counts[part] = len(known)
        for path in (folder / part).iterdir():
            if path.name not in known:
                shutil.rmtree(path)
    _in_one_file(engine, folder / ROWS)
    return Copied(counts["runs"], counts["uploads"], place.size_of(folder))
