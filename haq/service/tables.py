"""The tables of the database. Times are seconds since 1970, by the database's own clock.

A change here needs a new file in migrations/versions; a test compares the two.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement

METADATA = MetaData()

RUNS = Table(
    "runs",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("title", String(200), nullable=False),
    Column("asked", Text, nullable=False),  # the job, as JSON
    Column("key", String(255)),  # of idempotency
    Column("key_hash", String(64)),
    Column("state", String(16), nullable=False),
    Column("message", Text),  # one sentence for the user
    Column("traceback", Text),  # for the operator
    Column("created", Double, nullable=False),
    Column("updated", Double, nullable=False),
    Column("started", Double),
    Column("finished", Double),
    Column("not_before", Double, nullable=False),
    Column("worker", String(200)),
    Column("lease_until", Double),
    Column("fence", Integer, nullable=False),  # one more with every worker that takes the run
    Column("attempts", Integer, nullable=False),
    Column("cancel", Boolean, nullable=False),
    Column("stage", String(32)),
    Column("done", Integer, nullable=False),
    Column("total", Integer, nullable=False),
    Column("note", Text, nullable=False),
    Column("episodes", Integer, nullable=False),  # finished
    Column("episodes_asked", Integer, nullable=False),
    Column("best_accuracy", Double),
    Column("episode_s", Double),  # what an episode took of late
    Column("taken", Double),  # when a worker took it last
    Column("busy_s", Double, nullable=False),  # under way so far, all tries together
    Column("size_bytes", BigInteger, nullable=False),  # of its files, once it is over
    Column("events", Integer, nullable=False),  # number of the last one
    Column("tags", Text, nullable=False, server_default=""),  # " one two ", words between blanks
    Column("remark", Text, nullable=False, server_default=""),  # the user's own
    Column("sweep", String(32)),  # shared by the runs of one submission
    Column("hook", String(500)),  # URL that is told when the run ends
    Column("hook_left", Integer, nullable=False, server_default="0"),  # tries to tell it
    Column("hook_at", Double, nullable=False, server_default="0"),  # not before
    UniqueConstraint("owner", "key", name="one_run_a_key"),
    Index("runs_by_state", "state", "created"),
    Index("runs_by_owner", "owner", "created"),
    Index("runs_by_sweep", "sweep"),
    Index("runs_with_hooks", "hook_left", "state"),
    Index("runs_by_turn", "owner", "taken"),
)

EVENTS = Table(
    "events",
    METADATA,
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),  # from 1, without a gap
    Column("kind", String(16), nullable=False),
    Column("data", Text, nullable=False),
    Column("at", Double, nullable=False),
)

TOKENS = Table(
    "tokens",
    METADATA,
    Column("id", String(16), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("scope", String(16), nullable=False),
    Column("created", Double, nullable=False),
    Column("revoked", Double),
)

SESSIONS = Table(
    "sessions",
    METADATA,
    Column("hash", String(64), primary_key=True),
    Column("token_id", ForeignKey("tokens.id", ondelete="CASCADE"), nullable=False),
    Column("csrf", String(64), nullable=False),
    Column("expires", Double, nullable=False),
)

UPLOADS = Table(
    "uploads",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("name", String(200), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("classes", Integer, nullable=False),
    Column("images", Integer, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),  # of its files, unpacked
    Column("created", Double, nullable=False),
    Index("uploads_by_owner", "owner", "created"),
)

NETWORKS = Table(
    "networks",
    METADATA,
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("network", String(64), nullable=False),  # its id, see docs/updates.md
    Index("networks_by_id", "network"),
)
"""The networks of finished runs that were asked for, so that they are found by their ids."""

CHANNELS = Table(
    "channels",
    METADATA,
    Column("owner", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),  # from 1; the highest is the newest
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("at", Double, nullable=False),
)
"""Which run's network was published on a channel, one after the other."""

WORKERS = Table(
    "workers",
    METADATA,
    Column("name", String(200), primary_key=True),
    Column("seen", Double, nullable=False),
)
"""When each worker last gave a sign of life."""

STORE = Table("store", METADATA, Column("id", String(32), primary_key=True))
"""One row: the name that the folder of files must bear as well."""


class now(FunctionElement[float]):
    """The time by the database's clock, which is the same for all workers."""

    type = Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _sqlite_now(element: Any, compiler: Any, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _postgresql_now(element: Any, compiler: Any, **options: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"
