"""How alembic runs: as the schema's owner, on the connection in `config.attributes["connection"]`.

Whoever hands the connection in has begun a transaction and commits it: all of what is asked for, or nothing.
"""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=context.config.attributes.get("target_metadata"),
)
with context.begin_transaction():
    context.run_migrations()
