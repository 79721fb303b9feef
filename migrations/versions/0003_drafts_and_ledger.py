"""Drafts that are edited in place, a ledger of what authors did, and more that is refused about published versions.

Safe while the previous release serves: the new columns have defaults, and it neither reads nor writes what is new. It
may still delete a draft, with the edits recorded on it.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

TABLES = """
-- How many edits led to the draft (to the version, once published), and how many of them the last push had seen.
alter table walkthrough_versions
    add column revision integer not null default 0,
    add column pushed_revision integer not null default 0,
    add constraint walkthrough_versions_revision_check check (pushed_revision between 0 and revision);

-- Deferred, so that two steps may exchange their keys.
alter table walkthrough_steps
    drop constraint walkthrough_steps_key_key,
    add constraint walkthrough_steps_key_key unique (organization_id, walkthrough_id, version, key)
        deferrable initially deferred;

create table walkthrough_draft_edits (
    organization_id text    not null,
    walkthrough_id  text    not null,
    version         integer not null,
    revision        integer not null,
    edit            jsonb   not null,
    edited_by       text    not null,
    edited_at       bigint  not null,
    constraint walkthrough_draft_edits_pkey primary key (organization_id, walkthrough_id, version, revision),
    constraint walkthrough_draft_edits_version_fkey foreign key (organization_id, walkthrough_id, version)
        references walkthrough_versions (organization_id, walkthrough_id, version) on delete cascade,
    constraint walkthrough_draft_edits_revision_check check (revision >= 1)
);

create table walkthrough_ledger (
    organization_id text    not null,
    walkthrough_id  text    not null,
    number          integer not null,
    deed            text    not null,
    version         integer,
    content_hash    text,
    policy          text,
    source_version  integer,
    acted_by        text,
    acted_at        bigint  not null,
    constraint walkthrough_ledger_pkey primary key (organization_id, walkthrough_id, number),
    constraint walkthrough_ledger_walkthrough_fkey foreign key (organization_id, walkthrough_id)
        references walkthroughs (organization_id, id) on delete cascade,
    constraint walkthrough_ledger_number_check check (number >= 1),
    constraint walkthrough_ledger_deed_check check (deed in
        ('published', 'rolled_back', 'unpublished', 'republished', 'archived', 'restored', 'withdrawn')),
    constraint walkthrough_ledger_policy_check check (policy in ('keep', 'offer', 'carry_over', 'supersede')),
    constraint walkthrough_ledger_version_check check (
        -- Only what was never published can be archived without a version to name.
        num_nulls(version, content_hash, policy) in (0, case when deed in ('archived', 'restored') then 3 else 0 end)
        and (source_version is not null) = (deed = 'rolled_back'))
);

-- What was published before there was a ledger. Nobody knows by whom.
insert into walkthrough_ledger (organization_id, walkthrough_id, number, deed, version, content_hash, policy, acted_by,
       acted_at)
select organization_id, walkthrough_id, row_number() over walkthrough, 'published', version, content_hash, on_publish,
       published_by, published_at
  from walkthrough_versions
 where state <> 'draft'
window walkthrough as (partition by organization_id, walkthrough_id order by version);

-- Who stands where in one walkthrough. Neither column ever changes, so that an advance still touches no index.
create index walkthrough_progress_by_walkthrough on walkthrough_progress (organization_id, walkthrough_id);
"""

TRIGGERS = """
-- Whoever publishes must see every step there is. In a transaction that reads from an older snapshot, a step that
-- somebody else added since would go unseen, and uncounted.
create function walkthrough_versions_isolation() returns trigger language plpgsql as $$
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception 'a version is published in a transaction of isolation level read committed'
            using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end $$;
create trigger walkthrough_versions_isolation before update on walkthrough_versions
    for each row when (old.state = 'draft' and new.state <> 'draft') execute function walkthrough_versions_isolation();

create function walkthroughs_guard() returns trigger language plpgsql as $$
begin
    if tg_op = 'UPDATE' and (new.latest_version is null or new.latest_version < old.latest_version) then
        raise exception 'the latest version of walkthrough % only goes up', new.id
            using errcode = 'integrity_constraint_violation';
    end if;
    if exists (select from walkthrough_versions v where v.organization_id = new.organization_id
            and v.walkthrough_id = new.id and v.version = new.latest_version and v.state = 'draft') then
        raise exception 'version % of walkthrough % is a draft, and cannot be the latest', new.latest_version, new.id
            using errcode = 'integrity_constraint_violation';
    end if;
    return null;
end $$;
create trigger walkthroughs_guard_insert after insert on walkthroughs
    for each row when (new.latest_version is not null) execute function walkthroughs_guard();
create trigger walkthroughs_guard_update after update on walkthroughs
    for each row when (new.latest_version is distinct from old.latest_version) execute function walkthroughs_guard();

create function walkthrough_ledger_guard() returns trigger language plpgsql as $$
begin
    -- It goes with its walkthrough, whose row is then gone already, and in no other way.
    if tg_op = 'DELETE' and not exists (select from walkthroughs w
            where w.organization_id = old.organization_id and w.id = old.walkthrough_id) then
        return old;
    end if;
    raise exception 'the ledger never changes' using errcode = 'integrity_constraint_violation';
end $$;
create trigger walkthrough_ledger_guard before update or delete on walkthrough_ledger
    for each row execute function walkthrough_ledger_guard();
-- A truncate of steps or versions takes the walkthroughs along, whose latest version is one, and these the ledger: so
-- it is refused too, although it asks no row.
create trigger walkthrough_ledger_truncate before truncate on walkthrough_ledger
    for each statement execute function walkthrough_ledger_guard();
"""

GRANTS = """
-- Steps of drafts; those of published versions are guarded by a trigger, whoever comes.
grant update, delete on walkthrough_steps to cairn_service;
grant delete on mcp_server_walkthroughs to cairn_service;
grant select, insert on walkthrough_draft_edits, walkthrough_ledger to cairn_service;
revoke execute on function walkthrough_versions_isolation(), walkthroughs_guard(), walkthrough_ledger_guard()
    from public;
"""

DOWN = """
revoke update, delete on walkthrough_steps from cairn_service;
revoke delete on mcp_server_walkthroughs from cairn_service;
drop trigger walkthroughs_guard_insert on walkthroughs;
drop trigger walkthroughs_guard_update on walkthroughs;
drop trigger walkthrough_versions_isolation on walkthrough_versions;
drop index walkthrough_progress_by_walkthrough;
drop table walkthrough_ledger, walkthrough_draft_edits;
drop function walkthrough_ledger_guard();
drop function walkthroughs_guard();
drop function walkthrough_versions_isolation();
alter table walkthrough_steps
    drop constraint walkthrough_steps_key_key,
    add constraint walkthrough_steps_key_key unique (organization_id, walkthrough_id, version, key);
alter table walkthrough_versions
    drop constraint walkthrough_versions_revision_check,
    drop column revision,
    drop column pushed_revision;
"""


def upgrade() -> None:
    op.execute("set local lock_timeout = '3s'")
    for statements in (TABLES, TRIGGERS, GRANTS):
        _run(statements)


def downgrade() -> None:
    """What was edited in place stays as the draft; who edited and published what is forgotten."""
    op.execute("set local lock_timeout = '3s'")
    _run(DOWN)


def _run(statements: str) -> None:
    # Several statements in one go are the driver's simple protocol, which SQLAlchemy does not speak.
    op.get_bind().connection.run_async(lambda driver: driver.execute(statements))
