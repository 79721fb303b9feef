"""An index by which the numbers about one walkthrough find its events, from a given time on.

Building it holds up those who advance, for about a second per million events; who waits longer than the lock timeout
is told to send the same call again.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("set local lock_timeout = '3s'")
    op.execute("""
        create index walkthrough_progress_events_by_time
            on walkthrough_progress_events (organization_id, walkthrough_id, occurred_at)""")


def downgrade() -> None:
    op.execute("set local lock_timeout = '3s'")
    op.execute("drop index walkthrough_progress_events_by_time")
