"""Open the database and bring its tables up to date: SQLite in WAL mode, or PostgreSQL."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    create_engine,
    event,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from haq.errors import HaqError
from haq.service.tables import STORE

BUSY_S = 5.0
"""How long a write waits for another one in SQLite before it counts as locked."""

_LOCK = 4_711_001
"""PostgreSQL's advisory lock: one migration at a time."""


_URL = (
    "sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME, with %40 for an @ in the "
    "password, %2F for a / and %3F for a ?"
)


def connect(url: str) -> Engine:
    """Return the engine of a database; nothing is opened before its first use, but a folder made.

    Raises:
        HaqError: The URL names no SQLite or PostgreSQL database.
    """
    try:
        parsed = make_url(url)
        kind = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):
        # Without the reason, which repeats parts of the URL: there is a password in it.
        raise HaqError(f"the database's URL cannot be read: give {_URL}") from None
    if kind not in ("sqlite", "postgresql"):
        raise HaqError(f"database {kind}: give {_URL}")
    if kind == "postgresql" and (url.count("@") > 1 or ("@" in url and not parsed.username)):
        # The rest of a password stands where host, port or name belong.
        raise HaqError(f"the database's URL has an @, a / or a ? in its password: give {_URL}")
    if url.startswith("postgresql://"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    try:
        return _sqlite(parsed) if kind == "sqlite" else _postgresql(parsed)
    except (NoSuchModuleError, ImportError) as error:
        raise HaqError(f"database {parsed.drivername}: {error}; give {_URL}") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise HaqError(
            f"the folder of the database {parsed.database} cannot be made: {reason}"
        ) from error


def _sqlite(url: URL) -> Engine:
    if url.database in (None, "", ":memory:"):
        raise HaqError("database: SQLite needs a file, such as sqlite:///haq.sqlite")
    Path(str(url.database)).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_S})
    _like_postgresql(engine)
    return engine


def _postgresql(url: URL) -> Engine:
    return create_engine(
        url, pool_size=10, pool_pre_ping=True, connect_args={"connect_timeout": 10}
    )


@contextmanager
def answering(engine: Engine) -> Iterator[None]:
    """Turn what a database says when it does not answer into one sentence without its password.

    Raises:
        HaqError: It does not.
    """
    try:
        yield
    except SQLAlchemyError as error:
        url = engine.url
        where = url.database if url.get_backend_name() == "sqlite" else url.host or "this machine"
        reason = str(getattr(error, "orig", None) or type(error).__name__).strip()
        sentence = " ".join(reason.split())
        for secret in (str(url.password or ""), quote(str(url.password or ""))):
            sentence = sentence.replace(secret, "***") if secret else sentence
        raise HaqError(f"the database at {where} does not answer: {sentence}") from None


def _like_postgresql(engine: Engine) -> None:
    """Let SQLite keep foreign keys, and take its lock when a transaction begins that will write."""

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # no implicit transactions of the driver's own
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get("reads", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Give a connection for reading: it waits for no writer."""
    with engine.connect().execution_options(reads=True) as connection:
        yield connection


def migrate(engine: Engine) -> str:
    """Bring the tables up to date and return the store's name, made with the first table.

    Raises:
        HaqError: The database does not answer, or is of a newer version.
    """
    with answering(engine), engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        config = _config()
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError:
            raise HaqError(
                "the database is of a newer haq than this one: install that again, or restore a "
                "backup of before"
            ) from None
        name = connection.scalar(select(STORE.c.id))
        if name is None:
            name = uuid.uuid4().hex
            connection.execute(insert(STORE).values(id=name))
    return str(name)


def check_current(engine: Engine) -> str:
    """Return the store's name, or say that the database is of another version.

    Raises:
        HaqError: It is, or it does not answer.
    """
    head = ScriptDirectory.from_config(_config()).get_current_head()
    with answering(engine), reading(engine) as connection:
        there = MigrationContext.configure(connection).get_current_revision()
        if there != head:
            raise HaqError(
                f"the database is at revision {there or 'none'}, this haq needs {head}: "
                "start haq serve of this version first, it brings the tables up to date"
            )
        return str(connection.scalar(select(STORE.c.id)))


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    return config
