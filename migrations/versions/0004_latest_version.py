"""Only older versions are withdrawn, and never the latest.

Safe while the previous release serves: the question is asked when a transaction ends, so that a publish may withdraw
the older versions before it makes its own the latest, as that release does.
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"

TRIGGER = """
create function walkthrough_versions_withdrawal() returns trigger language plpgsql as $$
declare
    latest integer;
begin
    -- Without a lock: the latest version's number only goes up (walkthroughs_guard), so whatever is older stays so.
    select w.latest_version into latest from walkthroughs w
     where w.organization_id = new.organization_id and w.id = new.walkthrough_id;
    if found and (latest is null or new.version >= latest) then
        raise exception 'version % of walkthrough % is not older than the latest, and cannot be withdrawn',
            new.version, new.walkthrough_id
            using errcode = 'integrity_constraint_violation', constraint = tg_name;
    end if;
    return null;
end $$;
create constraint trigger walkthrough_versions_withdrawal after update on walkthrough_versions
    deferrable initially deferred
    for each row when (new.state = 'withdrawn' and old.state <> 'withdrawn')
    execute function walkthrough_versions_withdrawal();
revoke execute on function walkthrough_versions_withdrawal() from public;
"""

DOWN = """
drop trigger walkthrough_versions_withdrawal on walkthrough_versions;
drop function walkthrough_versions_withdrawal();
"""


def upgrade() -> None:
    op.execute("set local lock_timeout = '3s'")
    _run(TRIGGER)


def downgrade() -> None:
    op.execute("set local lock_timeout = '3s'")
    _run(DOWN)


def _run(statements: str) -> None:
    # Several statements in one go are the driver's simple protocol, which SQLAlchemy does not speak.
    op.get_bind().connection.run_async(lambda driver: driver.execute(statements))
