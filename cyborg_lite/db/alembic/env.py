# SPDX-License-Identifier: Apache-2.0
"""Run by alembic for each migration, over the connection that it is given."""

from alembic import context

from cyborg_lite import model

context.configure(
    connection=context.config.attributes['connection'],
    target_metadata=model.Base.metadata,
    # SQLite alters a table by copying it.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
