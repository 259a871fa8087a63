"""Run by Alembic, with the connection that ``haq.service.database`` opened."""

from alembic import context

from haq.service.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,
    transactional_ddl=False,  # the caller holds the transaction
)
context.run_migrations()
