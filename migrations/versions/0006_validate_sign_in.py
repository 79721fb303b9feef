"""What reads the rows of large tables for signing in: constraints are validated, addresses known, indexes built.

A transaction of its own: the one before holds these tables so that nobody reads them. Safe while the previous release
serves. To validate holds nobody up, nor does reading the people. An index holds up whoever writes to its table until
this is done, and nobody who reads: for less than a second with a few hundred thousand tokens or people. So they are
built last, and not concurrently, which no transaction can.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"

VALIDATE = """
alter table mcp_server_users validate constraint mcp_server_users_merged_into_fkey;
alter table mcp_server_users validate constraint mcp_server_users_merged_into_check;
alter table access_tokens validate constraint access_tokens_grant_fkey;
alter table walkthrough_progress validate constraint walkthrough_progress_status_check;
alter table walkthrough_progress_events validate constraint walkthrough_progress_events_kind_check;
alter table walkthrough_progress_events validate constraint walkthrough_progress_events_progress_fkey;
"""

# Addresses that were verified before are identities from now on.
PEOPLE = """
insert into mcp_server_user_identities (organization_id, issuer, subject, mcp_server_user_id, created_at)
select organization_id, 'email', email, id, email_verified_at from mcp_server_users where email is not null
on conflict do nothing;
"""

INDEXES = """
create index mcp_server_users_merged on mcp_server_users (organization_id, merged_into) where merged_into is not null;
create index mcp_server_users_visitors on mcp_server_users (organization_id, id)
    where email is null and merged_into is null;
create index access_tokens_by_grant on access_tokens (organization_id, grant_id) where grant_id is not null;
create index access_tokens_by_user on access_tokens (organization_id, mcp_server_user_id);
"""

# The identities go with their table.
DOWN = """
drop index access_tokens_by_user, access_tokens_by_grant, mcp_server_users_visitors, mcp_server_users_merged;
alter table mcp_server_users
    drop constraint mcp_server_users_merged_into_fkey,
    add constraint mcp_server_users_merged_into_fkey foreign key (organization_id, merged_into)
        references mcp_server_users (organization_id, id) on delete cascade not valid,
    drop constraint mcp_server_users_merged_into_check,
    add constraint mcp_server_users_merged_into_check check (merged_into is null or email is null) not valid;
alter table access_tokens
    drop constraint access_tokens_grant_fkey,
    add constraint access_tokens_grant_fkey foreign key (organization_id, grant_id)
        references oauth_grants (organization_id, id) on delete cascade not valid;
alter table walkthrough_progress
    drop constraint walkthrough_progress_status_check,
    add constraint walkthrough_progress_status_check check (
        (current_step_id is null) = (completed_at is not null) and
        (status = 'merged' or
         (status = 'in_progress' and current_step_id is not null) or
         (status = 'completed' and current_step_id is null))) not valid;
alter table walkthrough_progress_events
    drop constraint walkthrough_progress_events_kind_check,
    add constraint walkthrough_progress_events_kind_check
        check (kind in ('started', 'resumed', 'advanced', 'stuck', 'moved', 'restarted', 'merged')) not valid,
    drop constraint walkthrough_progress_events_progress_fkey,
    add constraint walkthrough_progress_events_progress_fkey
        foreign key (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id)
        references walkthrough_progress (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id)
        on update cascade on delete cascade not valid;
"""


def upgrade() -> None:
    op.execute("set local lock_timeout = '3s'")
    for statements in (VALIDATE, PEOPLE, INDEXES):
        _run(statements)


def downgrade() -> None:
    """What was validated is not any more, as before; it takes no longer than the locks."""
    op.execute("set local lock_timeout = '3s'")
    _run(DOWN)


def _run(statements: str) -> None:
    # Several statements in one go are the driver's simple protocol, which SQLAlchemy does not speak.
    op.get_bind().connection.run_async(lambda driver: driver.execute(statements))
