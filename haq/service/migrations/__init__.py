"""From any older database to the tables of today, by Alembic."""
