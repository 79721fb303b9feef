"""Row-level security: the second wall between organisations.

Under it the service sees and writes the rows of one organisation, the one named by the setting `app.organization_id`,
and none where that is not set. The setting is made for a transaction, never for a session: what a session keeps, the
next user of a pooled connection would inherit (PgBouncer's transaction mode).

A transaction for each statement would cost two more round trips. So what every tool call does is a function that names
the organisation and then runs the statement. It is never named within the statement that it guards: nothing says when
that would happen. A function is never changed, as the release before calls it: a changed one gets another name, and
the former one goes in a later contracting revision.

Safe while the previous release serves, which knows no such setting: where none is made, a second policy lets that
release on. Revision 0008 takes it away.
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"

# Those first that statements lock first: a call that waits for us then holds nothing that we come to later.
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

# A column and a stable function, both compared with an equal sign: the planner asks once whether the statement's own
# organisation is the one that is set, and not once a row.
POLICIES = """
alter table {table} enable row level security;
create policy organization on {table} to cairn_service
    using ({column} = current_setting('app.organization_id', true));
create policy former_release on {table} to cairn_service
    using (coalesce(current_setting('app.organization_id', true), '') = '');
"""

# Nobody is granted anything on a partition, and the policies of tool_calls guard the way through it. Behind that, the
# partitions are closed too.
PARTITIONS = """
do $$ declare
    partition regclass;
begin
    for partition in select inhrelid::regclass from pg_inherits where inhparent = 'tool_calls'::regclass loop
        execute format('alter table %s enable row level security', partition);
    end loop;
end $$;

create or replace function make_tool_call_partitions(from_time timestamptz, months integer) returns void
language plpgsql as $$
declare
    first date := date_trunc('month', from_time at time zone 'utc');
    month text;
    lower_bound bigint;
    upper_bound bigint;
begin
    for ahead in 0 .. months loop
        month := format('tool_calls_%s', to_char(first + make_interval(months => ahead), 'YYYY_MM'));
        lower_bound := extract(epoch from (first + make_interval(months => ahead)) at time zone 'utc') * 1000;
        upper_bound := extract(epoch from (first + make_interval(months => ahead + 1)) at time zone 'utc') * 1000;
        -- A month that the default partition already holds calls of stays there.
        if to_regclass(month) is null
           and not exists (select from tool_calls_default
                           where created_at >= lower_bound and created_at < upper_bound) then
            execute format('create table %s partition of tool_calls for values from (%s) to (%s)',
                month, lower_bound, upper_bound);
            execute format('alter table %s enable row level security', month);
        end if;
    end loop;
end $$;
"""

# What every tool call does. $1 is the organisation.
STATEMENTS = """
-- $2 the token's hash, $3 the server, $4 now.
create function bearer_of(text, bytea, text, bigint) returns table (mcp_server_user_id text, scope text)
language plpgsql as $$
#variable_conflict use_column
begin
    perform set_config('app.organization_id', $1, true);
    return query
    select mcp_server_user_id, scope
      from access_tokens
     where organization_id = $1 and token_hash = $2 and mcp_server_id = $3 and (expires_at is null or expires_at > $4);
end $$;

-- $2 the issuer, $3 the subject. Two steps in two primary keys, as cheap as a token.
create function visitor_of(text, text, text) returns table (id text, merged_into text)
language plpgsql as $$
#variable_conflict use_column
begin
    perform set_config('app.organization_id', $1, true);
    return query
    select u.id, u.merged_into
      from mcp_server_user_identities i
      join mcp_server_users u on u.organization_id = i.organization_id and u.id = i.mcp_server_user_id
     where i.organization_id = $1 and i.issuer = $2 and i.subject = $3;
end $$;
{standings}
-- $2-$4 the rest of the key, $5 the revision the decision was based on, $6-$14 the new row, $15-$23 what happened, and
-- $24-$32 the move that a publish demanded after it, or nulls: a call records no more than these two. The row is
-- compared and set, and the events go in with it, or nothing happens: a racing call that waited for the row finds
-- another revision and changes nothing. Returns how many events were stored.
create function advance_progress(text, text, text, text, integer,
    integer, integer, integer, text, text, text[], bigint, bigint, bigint,
    integer, integer, integer, text, text, text, text, text, bigint,
    integer, integer, integer, text, text, text, text, text, bigint) returns integer
language plpgsql as $$
declare
    stored integer;
begin
    perform set_config('app.organization_id', $1, true);
    with moved as (
        update walkthrough_progress
           set version = $6, attempt = $7, revision = $8, status = $9, current_step_id = $10, carried = $11,
               started_at = $12, last_activity_at = $13, completed_at = $14
         where organization_id = $1 and mcp_server_id = $2 and mcp_server_user_id = $3 and walkthrough_id = $4
           and revision = $5
        returning 1
    )
    insert into walkthrough_progress_events (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id,
           revision, attempt, version, kind, from_step_id, to_step_id, outcome, note, occurred_at)
    select $1, $2, $3, $4, e.*
      from moved,
           (values ($15, $16, $17, $18, $19, $20, $21, $22, $23),
                   ($24, $25, $26, $27, $28, $29, $30, $31, $32)) as e (revision)
     where e.revision is not null;
    get diagnostics stored = row_count;
    return stored;
end $$;

-- $2-$4 the rest of the key, $5-$13 the row, $14-$22 what happened. Whoever merges a visitor holds the visitor's row.
-- This waits for it, and finds nobody then; or it comes first, and is merged too. The foreign key would lock the same
-- row as much. Returns how many events were stored.
create function begin_progress(text, text, text, text,
    integer, integer, integer, text, text, text[], bigint, bigint, bigint,
    integer, integer, integer, text, text, text, text, text, bigint) returns integer
language plpgsql as $$
declare
    stored integer;
begin
    perform set_config('app.organization_id', $1, true);
    with begun as (
        insert into walkthrough_progress (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id,
               version, attempt, revision, status, current_step_id, carried, started_at, last_activity_at,
               completed_at)
        select $1, $2, u.id, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13
          from mcp_server_users u
         where u.organization_id = $1 and u.id = $3 and u.merged_into is null
           for key share
        on conflict (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id) do nothing
        returning 1
    )
    insert into walkthrough_progress_events (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id,
           revision, attempt, version, kind, from_step_id, to_step_id, outcome, note, occurred_at)
    select $1, $2, $3, $4, $14, $15, $16, $17, $18, $19, $20, $21, $22
      from begun;
    get diagnostics stored = row_count;
    return stored;
end $$;

-- $1 organisations, and in $2 the rows of each as a JSON array: a batch is one statement, whoever is in it. A row that
-- is there already was stored by an attempt whose end nobody heard of.
create function record_tool_calls(text[], text[]) returns void
language plpgsql as $$
begin
    for number in 1 .. cardinality($1) loop
        perform set_config('app.organization_id', $1[number], true);
        insert into tool_calls (organization_id, id, mcp_server_id, mcp_server_user_id, tool_name, client_name,
               client_version, protocol_version, walkthrough_id, version, step_id, outcome, error_code, duration_us,
               input, created_at)
        select $1[number], call.*
          from json_to_recordset($2[number]::json) as call (id text, mcp_server_id text, mcp_server_user_id text,
               tool_name text, client_name text, client_version text, protocol_version text, walkthrough_id text,
               version integer, step_id text, outcome text, error_code text, duration_us bigint, input jsonb,
               created_at bigint)
            on conflict (organization_id, created_at, id) do nothing;
    end loop;
end $$;
"""

# Begins with the server's own and the caller's own walkthroughs, both found by a prefix of a primary key, so that an
# organisation's size does not matter. $2 the server, $3 the user or null. Left to itself, the planner makes a plan for
# each call, which takes several times as long as the call; the one plan for all is as good.
STANDINGS = """
create function {name}({parameters}) returns table (
    id text, key text, is_published boolean, archived_at bigint, latest_version integer, on_publish text,
    is_enabled boolean, shown_version integer, state text, title text, description text, type text,
    step_count integer, estimated_minutes integer, mcp_server_id text, mcp_server_user_id text, version integer,
    attempt integer, revision integer, status text, current_step_id text, carried text[], started_at bigint,
    last_activity_at bigint, completed_at bigint)
language plpgsql set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
begin
    perform set_config('app.organization_id', $1, true);
    return query
    select w.id, w.key, w.is_published, w.archived_at, w.latest_version, latest.on_publish, a.is_enabled,
           shown.version, shown.state, shown.title, shown.description, shown.type, shown.step_count,
           shown.estimated_minutes, p.mcp_server_id, p.mcp_server_user_id, p.version, p.attempt, p.revision,
           p.status, p.current_step_id, p.carried, p.started_at, p.last_activity_at, p.completed_at
      from (select walkthrough_id from mcp_server_walkthroughs
             where organization_id = $1 and mcp_server_id = $2
             union
            select walkthrough_id from walkthrough_progress
             where organization_id = $1 and mcp_server_id = $2 and mcp_server_user_id = $3) as here
      join walkthroughs w on w.organization_id = $1 and w.id = here.walkthrough_id
      left join mcp_server_walkthroughs a
        on a.organization_id = $1 and a.mcp_server_id = $2 and a.walkthrough_id = w.id
      left join walkthrough_progress p
        on p.organization_id = $1 and p.mcp_server_id = $2 and p.mcp_server_user_id = $3
       and p.walkthrough_id = w.id and p.status <> 'merged'
      join walkthrough_versions latest
        on latest.organization_id = $1 and latest.walkthrough_id = w.id and latest.version = w.latest_version
      join walkthrough_versions shown
        on shown.organization_id = $1 and shown.walkthrough_id = w.id
       and shown.version = coalesce(p.version, w.latest_version)
{condition}     order by a.display_order nulls last, w.key;
end $$;
"""
MATCHING = "     where w.id = $4 or w.key = $4 or lower(shown.title) = lower($4)\n"

# Who is there, before it is known whose organisation is asked for. These run as the tables' owner, whom the policies do
# not hold back, and tell no more than a name in answer to a name; `organization_ids` is for the operator's lists.
# Temporary tables are looked for last, and the service makes none: what runs as the owner must find the owner's tables.
DIRECTORY = """
create function server_at(slug_asked text, custom_domain_asked text) returns table (
    organization_id text, id text, slug text, custom_domain text, name text, auth_mode text)
language sql stable security definer set search_path = pg_catalog, public, pg_temp as $$
    select s.organization_id, s.id, s.slug, s.custom_domain, s.name, s.auth_mode
      from public.mcp_servers s
     where s.slug = slug_asked or s.custom_domain = custom_domain_asked
     order by s.slug = slug_asked desc
     limit 1
$$;

create function organization_of(slug_asked text) returns text
language sql stable security definer set search_path = pg_catalog, public, pg_temp as $$
    select o.id from public.organizations o where o.slug = slug_asked
$$;

create function organization_ids() returns setof text
language sql stable security definer set search_path = pg_catalog, public, pg_temp as $$
    select o.id from public.organizations o order by o.slug
$$;
"""

FUNCTIONS = [
    "bearer_of(text, bytea, text, bigint)",
    "visitor_of(text, text, text)",
    "standings(text, text, text)",
    "matching_standings(text, text, text, text)",
    "advance_progress(text, text, text, text, integer, integer, integer, integer, text, text, text[], bigint, bigint,"
    " bigint, integer, integer, integer, text, text, text, text, text, bigint, integer, integer, integer, text, text,"
    " text, text, text, bigint)",
    "begin_progress(text, text, text, text, integer, integer, integer, text, text, text[], bigint, bigint, bigint,"
    " integer, integer, integer, text, text, text, text, text, bigint)",
    "record_tool_calls(text[], text[])",
    "server_at(text, text)",
    "organization_of(text)",
    "organization_ids()",
]

# What guards published content looks at the tables, and not at temporary ones of the same name.
GUARDS = [
    "walkthrough_steps_guard",
    "walkthrough_versions_guard",
    "walkthrough_versions_isolation",
    "walkthroughs_guard",
    "walkthrough_ledger_guard",
    "walkthrough_versions_withdrawal",
]

# As 0001 made it.
PARTITIONS_DOWN = """
do $$ declare
    partition regclass;
begin
    for partition in select inhrelid::regclass from pg_inherits where inhparent = 'tool_calls'::regclass loop
        execute format('alter table %s disable row level security', partition);
    end loop;
end $$;

create or replace function make_tool_call_partitions(from_time timestamptz, months integer) returns void
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


def upgrade() -> None:
    op.execute("set local lock_timeout = '3s'")
    standings = STANDINGS.format(name="standings", parameters="text, text, text", condition="")
    matching = STANDINGS.format(name="matching_standings", parameters="text, text, text, text", condition=MATCHING)
    _run(STATEMENTS.replace("{standings}", standings + matching))
    _run(DIRECTORY)
    for function in FUNCTIONS:
        _run(
            f"revoke execute on function {function} from public; grant execute on function {function} to cairn_service"
        )
    for guard in GUARDS:
        _run(f"alter function {guard}() set search_path = pg_catalog, public, pg_temp")
    for table in TABLES:
        _run(POLICIES.format(table=table, column="id" if table == "organizations" else "organization_id"))
    _run(PARTITIONS)


def downgrade() -> None:
    op.execute("set local lock_timeout = '3s'")
    for table in TABLES:
        _run(
            f"drop policy former_release on {table}; drop policy organization on {table};"
            f" alter table {table} disable row level security"
        )
    _run(PARTITIONS_DOWN)
    for guard in GUARDS:
        _run(f"alter function {guard}() reset search_path")
    for function in FUNCTIONS:
        _run(f"drop function {function}")


def _run(statements: str) -> None:
    # Several statements in one go are the driver's simple protocol, which SQLAlchemy does not speak.
    op.get_bind().connection.run_async(lambda driver: driver.execute(statements))
