"""Row-level security without exception: who names no organisation sees nothing.

Contracting: it shuts out the release before 0007, which names none. `cairn migrate --finish` makes it, when no process
of that release is left.
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
is_contracting = True

# In the order of 0007.
TABLES = [
    "walkthrough_progress_events",
    "walkthrough_progress",
    "tool_calls",
    "mcp_server_walkthroughs",
    "walkthrough_draft_edits",
    "walkthrough_ledger",
    "walkthrough_steps",
    "walkthrough_versions",
    "walkthroughs",
    "oauth_refresh_tokens",
    "oauth_codes",
    "access_tokens",
    "oauth_grants",
    "oauth_authorizations",
    "oauth_clients",
    "oidc_providers",
    "mcp_server_user_identities",
    "mcp_server_users",
    "mcp_servers",
    "organizations",
]


def upgrade() -> None:
    op.execute("set local lock_timeout = '3s'")
    for table in TABLES:
        op.execute(f"drop policy former_release on {table}")


def downgrade() -> None:
    op.execute("set local lock_timeout = '3s'")
    for table in TABLES:
        op.execute(
            f"create policy former_release on {table} to cairn_service"
            " using (coalesce(current_setting('app.organization_id', true), '') = '')"
        )
