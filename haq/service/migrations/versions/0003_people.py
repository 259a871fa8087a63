"""Tags, remarks, sweeps and hooks of runs; and which workers are there."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Bring the tables to this revision."""
    for column in (
        sa.Column("tags", sa.Text(), nullable=False, server_default=""),
        sa.Column("remark", sa.Text(), nullable=False, server_default=""),
        sa.Column("sweep", sa.String(length=32), nullable=True),
        sa.Column("hook", sa.String(length=500), nullable=True),
        sa.Column("hook_left", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("hook_at", sa.Double(), nullable=False, server_default="0"),
    ):
        op.add_column("runs", column)
    op.create_index("runs_by_sweep", "runs", ["sweep"], unique=False)
    op.create_index("runs_with_hooks", "runs", ["hook_left", "state"], unique=False)
    op.create_table(
        "workers",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("seen", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
