"""The foundation: organisations, servers, people, walkthroughs, progress and the call log.

`organization_id` leads every key of tenant data, so that a reference across tenants cannot be stored and the
tables can be distributed by it. Times are Unix milliseconds in bigint.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

# Text rules are the domain's; what stands here is what makes other rows meaningless when it is broken.
TABLES = """
create table organizations (
    id         text   not null,
    slug       text   not null,
    name       text   not null,
    created_at bigint not null,
    constraint organizations_pkey primary key (id),
    constraint organizations_slug_key unique (slug)
);

create table mcp_servers (
    organization_id text   not null,
    id              text   not null,
    slug            text   not null,
    custom_domain   text,
    name            text   not null,
    auth_mode       text   not null,
    settings        jsonb  not null default '{}',
    created_at      bigint not null,
    constraint mcp_servers_pkey primary key (organization_id, id),
    constraint mcp_servers_slug_key unique (slug),
    constraint mcp_servers_custom_domain_key unique (custom_domain),
    constraint mcp_servers_organization_fkey foreign key (organization_id)
        references organizations (id) on delete cascade,
    constraint mcp_servers_auth_mode_check check (auth_mode in ('on_connect', 'on_demand'))
);

create table mcp_server_users (
    organization_id   text   not null,
    id                text   not null,
    email             text,
    email_verified_at bigint,
    first_seen_at     bigint not null,
    last_seen_at      bigint not null,
    constraint mcp_server_users_pkey primary key (organization_id, id),
    constraint mcp_server_users_email_key unique (organization_id, email),
    constraint mcp_server_users_organization_fkey foreign key (organization_id)
        references organizations (id) on delete cascade,
    constraint mcp_server_users_email_check check ((email is null) = (email_verified_at is null))
);

create table access_tokens (
    organization_id    text   not null,
    token_hash         bytea  not null,
    mcp_server_id      text   not null,
    mcp_server_user_id text   not null,
    created_at         bigint not null,
    constraint access_tokens_pkey primary key (organization_id, token_hash),
    constraint access_tokens_server_fkey foreign key (organization_id, mcp_server_id)
        references mcp_servers (organization_id, id) on delete cascade,
    constraint access_tokens_user_fkey foreign key (organization_id, mcp_server_user_id)
        references mcp_server_users (organization_id, id) on delete cascade,
    constraint access_tokens_hash_check check (octet_length(token_hash) = 32)
);

create table walkthroughs (
    organization_id text    not null,
    id              text    not null,
    key             text    not null,
    is_published    boolean not null default false,
    latest_version  integer,
    archived_at     bigint,
    created_at      bigint  not null,
    updated_at      bigint  not null,
    constraint walkthroughs_pkey primary key (organization_id, id),
    constraint walkthroughs_key_key unique (organization_id, key),
    constraint walkthroughs_organization_fkey foreign key (organization_id)
        references organizations (id) on delete cascade,
    constraint walkthroughs_published_check check (not is_published or latest_version is not null)
);

create table walkthrough_versions (
    organization_id   text    not null,
    walkthrough_id    text    not null,
    version           integer not null,
    state             text    not null,
    title             text    not null,
    description       text    not null,
    type              text    not null,
    first_step_id     text,
    step_count        integer not null,
    estimated_minutes integer,
    content_hash      text    not null,
    on_publish        text,
    published_at      bigint,
    published_by      text,
    created_at        bigint  not null,
    constraint walkthrough_versions_pkey primary key (organization_id, walkthrough_id, version),
    constraint walkthrough_versions_walkthrough_fkey foreign key (organization_id, walkthrough_id)
        references walkthroughs (organization_id, id) on delete cascade,
    constraint walkthrough_versions_version_check check (version >= 1 and step_count >= 0),
    constraint walkthrough_versions_state_check check (state in ('draft', 'published', 'withdrawn')),
    constraint walkthrough_versions_type_check
        check (type in ('course', 'quickstart', 'installer', 'integration', 'troubleshooting')),
    constraint walkthrough_versions_on_publish_check
        check (on_publish in ('keep', 'offer', 'carry_over', 'supersede')),
    constraint walkthrough_versions_published_check check (
        (state = 'draft' and on_publish is null and published_at is null) or
        (state <> 'draft' and on_publish is not null and published_at is not null and first_step_id is not null))
);
create unique index walkthrough_versions_one_draft on walkthrough_versions (organization_id, walkthrough_id)
    where state = 'draft';

alter table walkthroughs add constraint walkthroughs_latest_version_fkey
    foreign key (organization_id, id, latest_version)
    references walkthrough_versions (organization_id, walkthrough_id, version);

create table walkthrough_steps (
    organization_id   text    not null,
    walkthrough_id    text    not null,
    version           integer not null,
    id                text    not null,
    key               text    not null,
    title             text    not null,
    next_step_id      text,
    position          integer,
    content           text    not null,
    assistant_notes   text,
    workspace_actions text,
    done_when         text,
    delivery          text    not null,
    estimated_minutes integer,
    constraint walkthrough_steps_pkey primary key (organization_id, walkthrough_id, version, id),
    constraint walkthrough_steps_key_key unique (organization_id, walkthrough_id, version, key),
    constraint walkthrough_steps_position_key unique (organization_id, walkthrough_id, version, position)
        deferrable initially deferred,
    constraint walkthrough_steps_next_step_key
        unique nulls not distinct (organization_id, walkthrough_id, version, next_step_id)
        deferrable initially deferred,
    constraint walkthrough_steps_version_fkey foreign key (organization_id, walkthrough_id, version)
        references walkthrough_versions (organization_id, walkthrough_id, version) on delete cascade,
    constraint walkthrough_steps_next_step_fkey
        foreign key (organization_id, walkthrough_id, version, next_step_id)
        references walkthrough_steps (organization_id, walkthrough_id, version, id)
        deferrable initially deferred,
    constraint walkthrough_steps_delivery_check check (delivery in ('verbatim', 'explain', 'together'))
);

alter table walkthrough_versions add constraint walkthrough_versions_first_step_fkey
    foreign key (organization_id, walkthrough_id, version, first_step_id)
    references walkthrough_steps (organization_id, walkthrough_id, version, id)
    deferrable initially deferred;

create table mcp_server_walkthroughs (
    organization_id text    not null,
    mcp_server_id   text    not null,
    walkthrough_id  text    not null,
    display_order   integer not null,
    is_enabled      boolean not null default true,
    created_at      bigint  not null,
    constraint mcp_server_walkthroughs_pkey primary key (organization_id, mcp_server_id, walkthrough_id),
    constraint mcp_server_walkthroughs_server_fkey foreign key (organization_id, mcp_server_id)
        references mcp_servers (organization_id, id) on delete cascade,
    constraint mcp_server_walkthroughs_walkthrough_fkey foreign key (organization_id, walkthrough_id)
        references walkthroughs (organization_id, id) on delete cascade
);

-- Updated at every step of every person. No index on a column that changes, and room left in each page, so
-- that updates stay within it (HOT) and no index grows with them.
create table walkthrough_progress (
    organization_id    text    not null,
    mcp_server_id      text    not null,
    mcp_server_user_id text    not null,
    walkthrough_id     text    not null,
    version            integer not null,
    attempt            integer not null,
    revision           integer not null,
    current_step_id    text,
    carried            text[]  not null default '{}',
    status             text    not null,
    started_at         bigint  not null,
    last_activity_at   bigint  not null,
    completed_at       bigint,
    constraint walkthrough_progress_pkey
        primary key (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id),
    constraint walkthrough_progress_server_fkey foreign key (organization_id, mcp_server_id)
        references mcp_servers (organization_id, id) on delete cascade,
    constraint walkthrough_progress_user_fkey foreign key (organization_id, mcp_server_user_id)
        references mcp_server_users (organization_id, id) on delete cascade,
    constraint walkthrough_progress_version_fkey foreign key (organization_id, walkthrough_id, version)
        references walkthrough_versions (organization_id, walkthrough_id, version) on delete cascade,
    constraint walkthrough_progress_counts_check check (attempt >= 1 and revision >= 1),
    constraint walkthrough_progress_times_check check (last_activity_at >= started_at),
    constraint walkthrough_progress_status_check check (
        (status = 'in_progress' and current_step_id is not null and completed_at is null) or
        (status = 'completed' and current_step_id is null and completed_at is not null))
) with (fillfactor = 80);

create table walkthrough_progress_events (
    organization_id    text    not null,
    mcp_server_id      text    not null,
    mcp_server_user_id text    not null,
    walkthrough_id     text    not null,
    revision           integer not null,
    attempt            integer not null,
    version            integer not null,
    kind               text    not null,
    from_step_id       text,
    to_step_id         text,
    outcome            text,
    note               text,
    occurred_at        bigint  not null,
    constraint walkthrough_progress_events_pkey
        primary key (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id, revision),
    constraint walkthrough_progress_events_progress_fkey
        foreign key (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id)
        references walkthrough_progress (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id)
        on delete cascade,
    constraint walkthrough_progress_events_counts_check check (revision >= 1 and attempt >= 1 and version >= 1),
    constraint walkthrough_progress_events_kind_check
        check (kind in ('started', 'resumed', 'advanced', 'stuck', 'moved', 'restarted')),
    constraint walkthrough_progress_events_outcome_check check (
        -- A check that is null passes, so null is named wherever it could come in.
        (kind = 'advanced' and outcome is not null and outcome in ('done', 'skipped')) or
        (kind = 'stuck' and outcome is not null and outcome = 'stuck') or
        (kind not in ('advanced', 'stuck') and outcome is null and note is null))
);

create table tool_calls (
    organization_id    text    not null,
    created_at         bigint  not null,
    id                 text    not null,
    mcp_server_id      text    not null,
    mcp_server_user_id text,
    tool_name          text    not null,
    client_name        text,
    client_version     text,
    protocol_version   text    not null,
    walkthrough_id     text,
    version            integer,
    step_id            text,
    outcome            text    not null,
    error_code         text,
    duration_us        bigint  not null,
    input              jsonb   not null,
    constraint tool_calls_pkey primary key (organization_id, created_at, id),
    constraint tool_calls_server_fkey foreign key (organization_id, mcp_server_id)
        references mcp_servers (organization_id, id) on delete cascade,
    constraint tool_calls_error_check check ((outcome = 'error') = (error_code is not null))
) partition by range (created_at);
-- Catches what no month was made for, so that a call is never lost for want of a partition.
create table tool_calls_default partition of tool_calls default;
"""

# Content that people are in the middle of never changes: not by a bug, not by hand.
TRIGGERS = """
create function walkthrough_steps_guard() returns trigger language plpgsql as $$
declare
    step  record := case when tg_op = 'DELETE' then old else new end;
    found_state text;
begin
    -- Held against a publish (which takes this row for update) until this transaction ends.
    select v.state into found_state from walkthrough_versions v
     where v.organization_id = step.organization_id and v.walkthrough_id = step.walkthrough_id
       and v.version = step.version
       for share;
    if found_state <> 'draft' then
        raise exception 'the steps of version % of walkthrough % are published and never change',
            step.version, step.walkthrough_id using errcode = 'integrity_constraint_violation';
    end if;
    if tg_op = 'UPDATE' and (old.organization_id, old.walkthrough_id, old.version)
            is distinct from (new.organization_id, new.walkthrough_id, new.version) then
        raise exception 'a step does not move to another version'
            using errcode = 'integrity_constraint_violation';
    end if;
    return step;
end $$;
create trigger walkthrough_steps_guard before insert or update or delete on walkthrough_steps
    for each row execute function walkthrough_steps_guard();

create function walkthrough_versions_guard() returns trigger language plpgsql as $$
declare
    reached integer;
begin
    if tg_op = 'DELETE' then
        -- It goes with its walkthrough, whose row is then gone already, and in no other way.
        if old.state <> 'draft' and exists (select from walkthroughs w
                where w.organization_id = old.organization_id and w.id = old.walkthrough_id) then
            raise exception 'version % of walkthrough % is published and stays', old.version, old.walkthrough_id
                using errcode = 'integrity_constraint_violation';
        end if;
        return old;
    end if;
    if tg_op = 'INSERT' then
        if new.state <> 'draft' then
            raise exception 'a version begins as a draft' using errcode = 'integrity_constraint_violation';
        end if;
        return new;
    end if;
    if old.state = 'draft' and new.state = 'published' then
        with recursive chain as (
            select s.id, s.next_step_id, 1 as place, s.position from walkthrough_steps s
             where s.organization_id = new.organization_id and s.walkthrough_id = new.walkthrough_id
               and s.version = new.version and s.id = new.first_step_id
            union all
            select s.id, s.next_step_id, c.place + 1, s.position from chain c
              join walkthrough_steps s on s.organization_id = new.organization_id
               and s.walkthrough_id = new.walkthrough_id and s.version = new.version and s.id = c.next_step_id
             where c.place < new.step_count  -- a ring ends here
        )
        select count(*) into reached from chain
         where position = place and (next_step_id is null) = (place = new.step_count);
        if reached <> new.step_count or new.step_count < 1 or reached <> (
            select count(*) from walkthrough_steps s where s.organization_id = new.organization_id
               and s.walkthrough_id = new.walkthrough_id and s.version = new.version) then
            raise exception 'the steps of version % of walkthrough % are not one chain',
                new.version, new.walkthrough_id using errcode = 'integrity_constraint_violation';
        end if;
    elsif old.state = 'draft' and new.state = 'withdrawn' then
        raise exception 'only a published version is withdrawn' using errcode = 'integrity_constraint_violation';
    elsif old.state <> 'draft' and not (
            (old.state = new.state or (old.state = 'published' and new.state = 'withdrawn'))
            and (to_jsonb(new) - 'state') = (to_jsonb(old) - 'state')) then
        raise exception 'version % of walkthrough % is published and never changes',
            old.version, old.walkthrough_id using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end $$;
create trigger walkthrough_versions_guard before insert or update or delete on walkthrough_versions
    for each row execute function walkthrough_versions_guard();
"""

PARTITIONS = """
create function make_tool_call_partitions(from_time timestamptz, months integer) returns void
language plpgsql as $$
declare
    first date := date_trunc('month', from_time at time zone 'utc');
    lower_bound bigint;
    upper_bound bigint;
begin
    for ahead in 0 .. months loop
        lower_bound := extract(epoch from (first + make_interval(months => ahead)) at time zone 'utc') * 1000;
        upper_bound := extract(epoch from (first + make_interval(months => ahead + 1)) at time zone 'utc') * 1000;
        -- A month that the default partition already holds calls of stays there.
        if to_regclass(format('tool_calls_%s', to_char(first + make_interval(months => ahead), 'YYYY_MM'))) is null
           and not exists (select from tool_calls_default
                           where created_at >= lower_bound and created_at < upper_bound) then
            execute format('create table tool_calls_%s partition of tool_calls for values from (%s) to (%s)',
                to_char(first + make_interval(months => ahead), 'YYYY_MM'), lower_bound, upper_bound);
        end if;
    end loop;
end $$;
"""

# The role the service works as. It owns nothing and may do what the service does: no DDL, and no change to the
# record of what happened. The timeouts bound every statement, so that no call hangs: 5 s is what callers are promised
# for an answer. A role belongs to the whole cluster: where another database has made it, perhaps at this moment, it is
# left as it is. Who makes a role may grant it, but is not let become it (PostgreSQL 16 and later).
ROLE = """
do $$ begin
    create role cairn_service nologin;
    alter role cairn_service set statement_timeout = '3s';
    alter role cairn_service set lock_timeout = '2500ms';
    alter role cairn_service set idle_in_transaction_session_timeout = '10s';
exception when duplicate_object or unique_violation then null;
end $$;
do $$ begin
    if not pg_has_role('cairn_service',
            case when current_setting('server_version_num')::integer < 160000 then 'member' else 'set' end) then
        grant cairn_service to current_user;
    end if;
end $$;

grant usage on schema public to cairn_service;
grant select on alembic_version to cairn_service;
grant select, insert on organizations, mcp_servers, walkthrough_steps to cairn_service;
grant select, insert, update on mcp_server_users, walkthroughs, mcp_server_walkthroughs, walkthrough_progress
    to cairn_service;
-- Deleted are tokens that are revoked, and drafts that are replaced; nothing that anyone's progress hangs on.
grant select, insert, delete on access_tokens to cairn_service;
grant select, insert, update, delete on walkthrough_versions to cairn_service;
grant select, insert on walkthrough_progress_events, tool_calls to cairn_service;
revoke execute on function make_tool_call_partitions(timestamptz, integer), walkthrough_versions_guard(),
    walkthrough_steps_guard() from public;
"""

DOWN = """
drop table tool_calls, walkthrough_progress_events, walkthrough_progress, mcp_server_walkthroughs,
    walkthrough_steps, walkthrough_versions, walkthroughs, access_tokens, mcp_server_users, mcp_servers,
    organizations cascade;
drop function make_tool_call_partitions(timestamptz, integer);
drop function walkthrough_versions_guard();
drop function walkthrough_steps_guard();
revoke all on schema public from cairn_service;
revoke all on alembic_version from cairn_service;
"""


def upgrade() -> None:
    op.execute("set local lock_timeout = '3s'")
    for statements in (TABLES, TRIGGERS, PARTITIONS, ROLE):
        _run(statements)


def downgrade() -> None:
    """Takes everything but the role, which other databases of the cluster may use."""
    op.execute("set local lock_timeout = '3s'")
    _run(DOWN)


def _run(statements: str) -> None:
    # Several statements in one go are the driver's simple protocol, which SQLAlchemy does not speak.
    op.get_bind().connection.run_async(lambda driver: driver.execute(statements))
