"""One walkthrough is looked up by its key alone, and a list by the rows that belong to its reader.

`matching_standings` read everything on the server to find one walkthrough by whatever names it: most of what a step
took in the database. And the plan of both followed from what the planner thought of the tables' sizes: with a thousand
walkthroughs it read them all, and with few learners to a walkthrough it went through everybody's progress in it.

So did an advance. The planner takes organisation and walkthrough for independent, so that in many organisations it
expects next to nobody in a walkthrough, and finds the index of walkthroughs as good as the primary key, and smaller. A
person's row is asked for in such a way that only the primary key leads to it (`ONE_PERSONS`).

To show one step of a version that a process had not met, it read all of them. What rules need of a version, and some of
its steps, are look-ups of their own; the former has an index, in which texts do not lie between one step and the next.
To build it holds up those who write walkthroughs, for about two seconds per million steps, and nobody who takes one.

A step is stored only if the walkthrough is published as it was when the step was decided on: so a decision may be made
on what was true a while ago. The call that stores it is recorded with it: a statement and a flush less, and nobody is
moved by a call that nobody finds.

The history of a visitor's progress went to their account by a foreign key `on update cascade`. Citus takes none where
the distribution column is in the key. A function of the owner's moves it instead, as the service changes no event.

Expanding: the release before calls the former functions and relies on the former key, and these stay until revision
0010.
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"

COLUMNS = """(
    id text, key text, is_published boolean, archived_at bigint, latest_version integer, on_publish text,
    is_enabled boolean, shown_version integer, state text, title text, description text, type text,
    step_count integer, estimated_minutes integer, mcp_server_id text, mcp_server_user_id text, version integer,
    attempt integer, revision integer, status text, current_step_id text, carried text[], started_at bigint,
    last_activity_at bigint, completed_at bigint)"""

SHOWN = """
           shown.version, shown.state, shown.title, shown.description, shown.type, shown.step_count,
           shown.estimated_minutes, p.mcp_server_id, p.mcp_server_user_id, p.version, p.attempt, p.revision,
           p.status, p.current_step_id, p.carried, p.started_at, p.last_activity_at, p.completed_at"""

# What is on the server $2, and what the person $3 has begun there. Each row that belongs to it is looked up by its
# whole primary key, in a lateral subquery that ends after one: no size of a table leads the planner to read more of it.
LISTED = f"""
    return query
    with mine as materialized (
        select * from walkthrough_progress
         where organization_id = $1 and mcp_server_id = $2 and mcp_server_user_id = $3 and status <> 'merged'),
    here as materialized (
        select coalesce(a.walkthrough_id, mine.walkthrough_id) as walkthrough_id, a.display_order, a.is_enabled
          from (select * from mcp_server_walkthroughs where organization_id = $1 and mcp_server_id = $2) a
          full join mine on mine.walkthrough_id = a.walkthrough_id)
    select w.id, w.key, w.is_published, w.archived_at, w.latest_version, latest.on_publish, here.is_enabled, {SHOWN}
      from here
      left join mine p on p.walkthrough_id = here.walkthrough_id
     cross join lateral
           (select id, key, is_published, archived_at, latest_version from walkthroughs
             where organization_id = $1 and id = here.walkthrough_id
             limit 1) w
     cross join lateral
           (select on_publish from walkthrough_versions
             where organization_id = $1 and walkthrough_id = here.walkthrough_id and version = w.latest_version
             limit 1) latest
     cross join lateral
           (select version, state, title, description, type, step_count, estimated_minutes from walkthrough_versions
             where organization_id = $1 and walkthrough_id = here.walkthrough_id
               and version = coalesce(p.version, w.latest_version)
             limit 1) shown
{{condition}}     order by here.display_order nulls last, w.key;
"""  # noqa: S608  # no text of anybody's

# Two columns compared as one are looked for in an index where they lie side by side, which is the primary key alone.
# That a column is compared by itself as well tells the planner how few rows there are.
ONE_PERSONS = """mcp_server_user_id = $3
       and (mcp_server_user_id, walkthrough_id) between ($3, {0}) and ($3, {0})"""

# The one whose id or key is $4, if it is on the server, or the person has begun it there.
NAMED = f"""
    return query
    select w.id, w.key, w.is_published, w.archived_at, w.latest_version, latest.on_publish, a.is_enabled, {SHOWN}
      from walkthroughs w
      left join mcp_server_walkthroughs a
        on a.organization_id = $1 and a.mcp_server_id = $2 and a.walkthrough_id = w.id
      left join lateral
           (select * from walkthrough_progress
             where organization_id = $1 and mcp_server_id = $2 and {ONE_PERSONS.format("w.id")}
             limit 1) p
        on p.status <> 'merged'
      join walkthrough_versions latest
        on latest.organization_id = $1 and latest.walkthrough_id = w.id and latest.version = w.latest_version
      join walkthrough_versions shown
        on shown.organization_id = $1 and shown.walkthrough_id = w.id
       and shown.version = coalesce(p.version, w.latest_version)
     where w.organization_id = $1 and w.{{column}} = $4
       and (a.walkthrough_id is not null or p.walkthrough_id is not null);
    if found then
        return;
    end if;
"""  # noqa: S608  # as above

OUTLINE_INDEX = """
create index walkthrough_steps_outline on walkthrough_steps (organization_id, walkthrough_id, version, position)
    include (id, key, title);
"""
# What rules need of versions: those of the walkthroughs $2 with the numbers $3. A row for each step takes twice as long
# as one for all of them. A version is looked up as in a list.
OUTLINES = """
    return query
    select wanted.walkthrough_id, wanted.version, v.title, its.ids, its.keys, its.titles
      from unnest($2, $3::integer[]) wanted (walkthrough_id, version)
     cross join lateral
           (select title from walkthrough_versions
             where organization_id = $1 and walkthrough_id = wanted.walkthrough_id and version = wanted.version
               and state <> 'draft'
             limit 1) v
     cross join lateral
           (select array_agg(s.id) as ids, array_agg(s.key) as keys, array_agg(s.title) as titles
              from (select id, key, title from walkthrough_steps
                     where organization_id = $1 and walkthrough_id = wanted.walkthrough_id and version = wanted.version
                     order by position) s) its;
"""
# Of version $3 of the walkthrough $2, the steps $4. Each is asked for as one person's row is: where most versions are
# short, the planner takes what leads to all steps of one for as good.
STEPS = """
    return query
    select s.id, s.key, s.title, s.content, s.assistant_notes, s.workspace_actions, s.done_when, s.delivery,
           s.estimated_minutes
      from (select from walkthrough_versions
             where organization_id = $1 and walkthrough_id = $2 and version = $3 and state <> 'draft'
             limit 1) v
     cross join unnest($4) wanted (id)
     cross join lateral
           (select * from walkthrough_steps
             where organization_id = $1 and walkthrough_id = $2 and version = $3
               and (version, id) between ($3, wanted.id) and ($3, wanted.id)
             limit 1) s;
"""

# $1 is the organisation, which is named first (revision 0007). The planner makes one plan for all callers: to make one
# for each takes several times as long as the call. While there are few rows in a table it would read them all for each
# walkthrough of a list, if it might.
FUNCTION = """
create function {name}({parameters}) returns table {columns}
language plpgsql set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
#variable_conflict use_column
begin
    perform set_config('app.organization_id', $1, true);
{body}end $$;
"""
FUNCTIONS = [
    FUNCTION.format(
        name="standings_here", parameters="text, text, text", columns=COLUMNS, body=LISTED.format(condition="")
    ),
    FUNCTION.format(
        name="standings_named",
        parameters="text, text, text, text",
        columns=COLUMNS,
        # Nobody types the title of what they can name otherwise: that may take as long as a list.
        body=NAMED.format(column="id")
        + NAMED.format(column="key")
        + LISTED.format(condition="     where lower(shown.title) = lower($4)\n"),
    ),
    FUNCTION.format(
        name="version_outlines",
        parameters="text, text[], text[]",
        columns="(walkthrough_id text, version integer, title text, ids text[], keys text[], titles text[])",
        body=OUTLINES,
    ),
    FUNCTION.format(
        name="version_steps",
        parameters="text, text, integer, text[]",
        columns="""(
    id text, key text, title text, content text, assistant_notes text, workspace_actions text, done_when text,
    delivery text, estimated_minutes integer)""",
        body=STEPS,
    ),
]
# As revision 0007 made them, and with what else has to be so: the latest version, and whether the walkthrough may be
# begun on this server. Who has begun has a version, and it is asked whether that was withdrawn.
PUBLISHED = """
               select from walkthroughs w
                 left join mcp_server_walkthroughs a
                   on a.organization_id = $1 and a.mcp_server_id = $2 and a.walkthrough_id = w.id
                where w.organization_id = $1 and w.id = $4 and w.latest_version = {latest}
                  and (w.is_published and w.archived_at is null and coalesce(a.is_enabled, false)) = {is_available}"""
# The foreign key of a call looks at the server's row, and whoever deletes the server has that row and waits for the
# progress: to come to it last could be a deadlock. So it comes first, and nobody waits for it, which would keep a
# connection from other tenants. While it is taken, nothing is stored.
SERVER_FIRST = """
    perform from mcp_servers where organization_id = $1 and id = $2 for key share skip locked;
    if not found then
        return 0;
    end if;"""
# A call as revision 0007 records it, in one transaction with what it changed. To have that function do it would take
# half as long again.
RECORDED = """
    if stored > 0 and {call} is not null then
        insert into tool_calls (organization_id, id, mcp_server_id, mcp_server_user_id, tool_name, client_name,
               client_version, protocol_version, walkthrough_id, version, step_id, outcome, error_code, duration_us,
               input, created_at)
        select $1, call.*
          from json_to_record({call}::json) as call (id text, mcp_server_id text, mcp_server_user_id text,
               tool_name text, client_name text, client_version text, protocol_version text, walkthrough_id text,
               version integer, step_id text, outcome text, error_code text, duration_us bigint, input jsonb,
               created_at bigint);
    end if;
"""
PROGRESS = f"""
-- $2-$4 the rest of the key, $5-$9 the row that the decision was based on (revision, version, attempt, current step,
-- last activity), $10-$12 how the walkthrough was published then (latest version, available, own version withdrawn),
-- $13-$21 the new row, $22-$30 what happened, $31-$39 the move that a publish demanded after it, or nulls (a call
-- stores no more than these two), and $40 the call, or null. The row is compared and set, and the events and the call
-- go in with it, or nothing happens: a racing call that waited for the row finds another revision and changes nothing.
-- A database that went back in time counts the same revisions again for something else, and so the revision is not all
-- that is compared. Returns how many events were stored.
create function advance_progress(text, text, text, text, integer, integer, integer, text, bigint,
    integer, boolean, boolean, integer, integer, integer, text, text, text[], bigint, bigint, bigint,
    integer, integer, integer, text, text, text, text, text, bigint,
    integer, integer, integer, text, text, text, text, text, bigint, text) returns integer
language plpgsql set enable_seqscan = off as $$
declare
    stored integer;
begin
    perform set_config('app.organization_id', $1, true);{SERVER_FIRST}
    with moved as (
        update walkthrough_progress
           set version = $13, attempt = $14, revision = $15, status = $16, current_step_id = $17, carried = $18,
               started_at = $19, last_activity_at = $20, completed_at = $21
         where organization_id = $1 and mcp_server_id = $2 and {ONE_PERSONS.format("$4")}
           and revision = $5 and version = $6 and attempt = $7 and current_step_id is not distinct from $8
           and last_activity_at = $9
           and exists ({PUBLISHED.format(latest="$10", is_available="$11")})
           and exists (
               select from walkthrough_versions
                where organization_id = $1 and walkthrough_id = $4 and version = $6 and (state = 'withdrawn') = $12)
        returning 1
    )
    insert into walkthrough_progress_events (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id,
           revision, attempt, version, kind, from_step_id, to_step_id, outcome, note, occurred_at)
    select $1, $2, $3, $4, e.*
      from moved,
           (values ($22, $23, $24, $25, $26, $27, $28, $29, $30),
                   ($31, $32, $33, $34, $35, $36, $37, $38, $39)) as e (revision)
     where e.revision is not null;
    get diagnostics stored = row_count;{RECORDED.format(call="$40")}
    return stored;
end $$;

-- $2-$4 the rest of the key, $5-$6 how the walkthrough was published (latest version, available), $7-$15 the row,
-- $16-$24 what happened, $25 the call, or null. Whoever merges a visitor holds the visitor's row. This waits for it,
-- and finds nobody then; or it comes first, and is merged too. The foreign key would lock the same row as much. Returns
-- how many events were stored.
create function begin_progress(text, text, text, text, integer, boolean,
    integer, integer, integer, text, text, text[], bigint, bigint, bigint,
    integer, integer, integer, text, text, text, text, text, bigint, text) returns integer
language plpgsql set enable_seqscan = off as $$
declare
    stored integer;
begin
    perform set_config('app.organization_id', $1, true);{SERVER_FIRST}
    with begun as (
        insert into walkthrough_progress (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id,
               version, attempt, revision, status, current_step_id, carried, started_at, last_activity_at,
               completed_at)
        select $1, $2, u.id, $4, $7, $8, $9, $10, $11, $12, $13, $14, $15
          from mcp_server_users u
         where u.organization_id = $1 and u.id = $3 and u.merged_into is null
           and exists ({PUBLISHED.format(latest="$5", is_available="$6")})
           for key share
        on conflict (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id) do nothing
        returning 1
    )
    insert into walkthrough_progress_events (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id,
           revision, attempt, version, kind, from_step_id, to_step_id, outcome, note, occurred_at)
    select $1, $2, $3, $4, $16, $17, $18, $19, $20, $21, $22, $23, $24
      from begun;
    get diagnostics stored = row_count;{RECORDED.format(call="$25")}
    return stored;
end $$;
"""  # noqa: S608  # as above
# The same server as before (revision 0007). One after the other, as one condition for both names took both indexes, and
# three times as long.
SERVER_AT = """
create or replace function server_at(slug_asked text, custom_domain_asked text) returns table (
    organization_id text, id text, slug text, custom_domain text, name text, auth_mode text)
language plpgsql stable security definer set search_path = pg_catalog, public, pg_temp
    set enable_seqscan = off as $$
#variable_conflict use_column
begin
    return query
    select s.organization_id, s.id, s.slug, s.custom_domain, s.name, s.auth_mode
      from public.mcp_servers s
     where s.slug = slug_asked;
    if not found then
        return query
        select s.organization_id, s.id, s.slug, s.custom_domain, s.name, s.auth_mode
          from public.mcp_servers s
         where s.custom_domain = custom_domain_asked;
    end if;
end $$;
"""
FORMER_SERVER_AT = """
create or replace function server_at(slug_asked text, custom_domain_asked text) returns table (
    organization_id text, id text, slug text, custom_domain text, name text, auth_mode text)
language sql stable security definer set search_path = pg_catalog, public, pg_temp as $$
    select s.organization_id, s.id, s.slug, s.custom_domain, s.name, s.auth_mode
      from public.mcp_servers s
     where s.slug = slug_asked or s.custom_domain = custom_domain_asked
     order by s.slug = slug_asked desc
     limit 1
$$;
"""
# $1 the organisation, $2 the server, $3 the visitor, $4 the walkthrough. It runs as the owner, whom no policy holds
# back, and looks for itself: the organisation is the one that the transaction has named, the visitor is one of the
# server's, and the account is the one that they were merged into. In this order every event has its progress at every
# moment. An account that has begun by itself keeps what it has, by the primary key.
HAND_OVER = """
create function hand_over_progress(text, text, text, text) returns void
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
#variable_conflict use_column
declare
    account text;
    former public.walkthrough_progress;
begin
    select a.id into account
      from public.mcp_server_user_identities i
      join public.mcp_server_users v on v.organization_id = $1 and v.id = i.mcp_server_user_id
      join public.mcp_server_users a on a.organization_id = $1 and a.id = v.merged_into
     where i.organization_id = $1 and i.issuer = 'visitor:' || $2 and i.mcp_server_user_id = $3
       and a.email is not null and current_setting('app.organization_id', true) = $1;
    select * into former
      from public.walkthrough_progress
     where organization_id = $1 and mcp_server_id = $2 and mcp_server_user_id = $3 and walkthrough_id = $4
       and status <> 'merged'
       for update;
    if account is null or former.organization_id is null then
        raise exception 'this is no progress of a visitor who was merged into an account'
            using errcode = 'integrity_constraint_violation';
    end if;
    insert into public.walkthrough_progress (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id,
           version, attempt, revision, current_step_id, carried, status, started_at, last_activity_at, completed_at)
    values ($1, $2, account, $4, former.version, former.attempt, former.revision, former.current_step_id,
           former.carried, former.status, former.started_at, former.last_activity_at, former.completed_at);
    update public.walkthrough_progress_events set mcp_server_user_id = account
     where organization_id = $1 and mcp_server_id = $2 and mcp_server_user_id = $3 and walkthrough_id = $4;
    delete from public.walkthrough_progress
     where organization_id = $1 and mcp_server_id = $2 and mcp_server_user_id = $3 and walkthrough_id = $4;
end $$;
revoke execute on function hand_over_progress(text, text, text, text) from public;
grant execute on function hand_over_progress(text, text, text, text) to cairn_service;
"""
# What takes the place of the former key in revision 0010. Until then both are there. Deferred, as the release before
# changes the key of progress: which of the two is asked first would follow from their numbers in the catalogue, and at
# the end of the transaction the former has moved the events. Not validated: that reads all of them, and the tables are
# held until this is done.
KEY = """
alter table walkthrough_progress_events add constraint walkthrough_progress_events_next_progress_fkey
    foreign key (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id)
    references walkthrough_progress (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id)
    on delete cascade deferrable initially deferred not valid
"""
NAMES = [
    "standings_here(text, text, text)",
    "standings_named(text, text, text, text)",
    "version_outlines(text, text[], text[])",
    "version_steps(text, text, integer, text[])",
    "advance_progress(text, text, text, text, integer, integer, integer, text, bigint, integer, boolean, boolean,"
    " integer, integer, integer, text, text, text[], bigint, bigint, bigint, integer, integer, integer, text, text,"
    " text, text, text, bigint, integer, integer, integer, text, text, text, text, text, bigint, text)",
    "begin_progress(text, text, text, text, integer, boolean, integer, integer, integer, text, text, text[], bigint,"
    " bigint, bigint, integer, integer, integer, text, text, text, text, text, bigint, text)",
]


def upgrade() -> None:
    op.execute("set local lock_timeout = '3s'")
    for function in FUNCTIONS:
        _run(function)
    _run(PROGRESS)
    _run(SERVER_AT)
    for function in NAMES:
        _run(
            f"revoke execute on function {function} from public; grant execute on function {function} to cairn_service"
        )
    _run(HAND_OVER)
    _run(OUTLINE_INDEX)  # authors wait from here to the end
    _run(KEY)  # and from here on, for a moment, whoever learns


def downgrade() -> None:
    op.execute("set local lock_timeout = '3s'")
    op.execute("alter table walkthrough_progress_events drop constraint walkthrough_progress_events_next_progress_fkey")
    op.execute("drop function hand_over_progress(text, text, text, text)")
    _run(FORMER_SERVER_AT)
    for function in NAMES:
        _run(f"drop function {function}")
    _run("drop index walkthrough_steps_outline")


def _run(statements: str) -> None:
    # Several statements in one go are the driver's simple protocol, which SQLAlchemy does not speak.
    op.get_bind().connection.run_async(lambda driver: driver.execute(statements))
