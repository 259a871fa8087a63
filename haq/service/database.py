"""Open the database and bring its tables up to date: SQLite in WAL mode, or PostgreSQL."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, insert, make_url, select, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from haq.errors import HaqError
from haq.service.tables import STORE

BUSY_S = 5.0
"""How long a write waits for another one in SQLite before it counts as locked."""

_LOCK = 4_711_001
"""PostgreSQL's advisory lock: one migration at a time."""


def connect(url: str) -> Engine:
    """Return the engine of a database; nothing is opened before its first use, but a folder made.

    Raises:
        HaqError: The URL names no SQLite or PostgreSQL database.
    """
    try:
        parsed = make_url(url)
        kind = parsed.get_backend_name()
        if kind == "sqlite":
            if parsed.database in (None, "", ":memory:"):
                raise HaqError("database: SQLite needs a file, such as sqlite:///haq.sqlite")
            Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
            engine = create_engine(parsed, connect_args={"timeout": BUSY_S})
            _like_postgresql(engine)
            return engine
        if kind == "postgresql":
            return create_engine(
                parsed, pool_size=10, pool_pre_ping=True, connect_args={"connect_timeout": 10}
            )
    except (ArgumentError, NoSuchModuleError, ImportError, OSError) as error:
        raise HaqError(f"the database cannot be opened: {error}") from error
    raise HaqError(
        f"database {kind}: give sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME"
    )


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
    """Bring the tables up to date and return the store's name, made with the first table."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("select pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        found = connection.scalar(select(STORE.c.id))
        if found is None:
            found = uuid.uuid4().hex
            connection.execute(insert(STORE).values(id=found))
    return str(found)


def check_current(engine: Engine) -> str:
    """Return the store's name, or say that the database is of another version.

    Raises:
        HaqError: It is.
    """
    head = ScriptDirectory.from_config(_config()).get_current_head()
    with reading(engine) as connection:
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
