"""Alembic's environment: works on the connection that it is handed, inside that connection's transaction."""

from alembic import context

from cortex_api.db.tables import Model

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Model.metadata,
    compare_type=True,
    compare_server_default=True,
)
with context.begin_transaction():
    context.run_migrations()
