"""When a run was last taken, how long it took, and the bytes of runs and uploads."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Bring the tables to this revision."""
    op.add_column("runs", sa.Column("taken", sa.Double(), nullable=True))
    for table, column in (
        ("runs", sa.Column("busy_s", sa.Double(), nullable=False, server_default="0")),
        ("runs", sa.Column("size_bytes", sa.BigInteger(), nullable=False, server_default="0")),
        ("uploads", sa.Column("stored_bytes", sa.BigInteger(), nullable=False, server_default="0")),
    ):
        op.add_column(table, column)
    op.execute("UPDATE uploads SET stored_bytes = size_bytes")
    op.create_index("runs_by_turn", "runs", ["owner", "taken"], unique=False)
