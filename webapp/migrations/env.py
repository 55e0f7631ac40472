"""Alembic's entry: runs the revisions on the connection that `webapp.schema` hands over."""

from alembic import context

from webapp.db import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    transactional_ddl=True,
)
context.run_migrations()
