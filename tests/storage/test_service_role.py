"""What the service may do to its own database, and nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import asyncpg
import pytest
from sqlalchemy import text

from adapters.postgres.connections import SERVICE_ROLE, Access, Database
from domain.progress import Outcome
from domain.tenancy import OrganizationId
from tests.storage.conftest import until_waited_for
from tests.worlds import manuscript, on_postgres

ADDED = {"SELECT", "INSERT"}
EVERYTHING = ADDED | {"UPDATE", "DELETE"}
# Everything the role has in the database, and why it is no less.
MAY = {
    "organizations": ADDED,
    "mcp_servers": ADDED | {"UPDATE"},  # when people sign in
    "mcp_server_users": ADDED | {"UPDATE", "DELETE"},  # a person who comes again, and one who is erased
    "access_tokens": ADDED | {"UPDATE", "DELETE"},  # one that is revoked
    "walkthroughs": ADDED | {"UPDATE"},  # the latest version
    "walkthrough_versions": ADDED | {"UPDATE", "DELETE"},  # a publish, and a draft that is replaced
    "walkthrough_steps": ADDED | {"UPDATE", "DELETE"},  # a draft's; a trigger guards those of published versions
    "walkthrough_draft_edits": ADDED,  # the record of who edited what
    "walkthrough_ledger": ADDED,  # and of who did what
    "mcp_server_walkthroughs": ADDED | {"UPDATE", "DELETE"},  # the place in the list, and being taken from it
    "walkthrough_progress": ADDED | {"UPDATE"},
    "walkthrough_progress_events": ADDED,  # the record of what happened
    "tool_calls": ADDED | {"UPDATE"},  # what an erased person's calls say of them; no other column
    "mcp_server_user_identities": EVERYTHING,
    "oidc_providers": EVERYTHING,
    "oauth_clients": EVERYTHING,
    "oauth_authorizations": EVERYTHING,  # each step of a sign-in changes its row
    "oauth_grants": EVERYTHING,
    "oauth_codes": EVERYTHING,
    "oauth_refresh_tokens": EVERYTHING,
    "alembic_version": {"SELECT"},  # to know whether the schema is its release's
}
# All but the last three see one organisation's rows; those tell only whether a name is taken, and by whom.
MAY_CALL = {
    *("bearer_of", "visitor_of", "standings_here", "standings_named"),
    *("version_outlines", "version_steps"),
    *("advance_progress", "begin_progress", "record_tool_calls", "hand_over_progress"),
    *("server_at", "organization_of", "organization_ids"),
}
TIMEOUTS = {"statement_timeout": "3s", "lock_timeout": "2500ms", "idle_in_transaction_session_timeout": "10s"}


class Open(Protocol):
    """Asks a connection for one value."""

    async def __call__(self, statement: str) -> object: ...


@pytest.fixture
async def database(owner_url: str, owner: asyncpg.Connection) -> AsyncIterator[Database]:
    """As the service opens it, with its own timeouts."""
    async with Database(Access(owner_url, assume_role=True)) as opened:
        yield opened


@pytest.fixture(params=["hot", "transaction"])
def connect(request: pytest.FixtureRequest, database: Database) -> AbstractAsyncContextManager[Open]:
    """A connection of either pool."""

    @asynccontextmanager
    async def hot() -> AsyncIterator[Open]:
        async with database.hot() as connection:
            yield connection.fetchval

    @asynccontextmanager
    async def transaction() -> AsyncIterator[Open]:
        async with database.transaction(OrganizationId("a")) as connection:

            async def ask(statement: str) -> object:
                return await connection.scalar(text(statement))

            yield ask

    return {"hot": hot, "transaction": transaction}[request.param]()


# ---------------------------------------------------------------------------------------------- what it is and has


async def test_the_role_is_nobody_and_owns_nothing(owner: asyncpg.Connection) -> None:
    role = await owner.fetchrow(
        "select rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls, rolcanlogin"
        " from pg_roles where rolname = $1",
        SERVICE_ROLE,
    )
    assert not any(role)
    owned = await owner.fetchval(
        "select count(*) from pg_shdepend where refobjid = $1::regrole and deptype = 'o'"
        " and dbid in (0, (select oid from pg_database where datname = current_database()))",
        SERVICE_ROLE,
    )
    assert owned == 0
    assert await owner.fetchval("select count(*) from pg_auth_members where member = $1::regrole", SERVICE_ROLE) == 0


async def test_the_role_has_the_table_privileges_that_are_spelled_out_and_no_others(owner: asyncpg.Connection) -> None:
    """In effect: granted to it, to everybody, or to a role it is in, on a table or one of its columns."""
    privileges = {"SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"}
    if owner.get_server_version().major >= 17:
        privileges.add("MAINTAIN")
    rows = await owner.fetch(
        """
        select relname, privilege from pg_class, unnest($2::text[]) as privilege
         where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v', 'm', 'f')
           and (has_table_privilege($1, oid, privilege)
                or privilege in ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')
                   and has_any_column_privilege($1, oid, privilege))""",
        SERVICE_ROLE,
        sorted(privileges),
    )
    has: dict[str, set[str]] = {}
    for table, privilege in rows:
        has.setdefault(table, set()).add(privilege)
    assert has == MAY
    assert (
        await owner.fetchval(
            "select count(*) from pg_class where relnamespace = 'public'::regnamespace and relkind = 'S'"
        )
        == 0
    )


async def test_of_a_call_only_what_it_says_of_a_person_may_be_changed(owner: asyncpg.Connection) -> None:
    columns = await owner.fetch(
        "select attname from pg_attribute where attrelid = 'tool_calls'::regclass and attnum > 0"
        " and has_column_privilege($1, attrelid, attnum, 'UPDATE')",
        SERVICE_ROLE,
    )
    assert {name for (name,) in columns} == {"mcp_server_user_id", "client_name", "client_version", "input"}


async def test_the_role_may_use_the_schema_and_make_nothing_in_it(owner: asyncpg.Connection) -> None:
    schemas = await owner.fetch(
        "select nspname, has_schema_privilege($1, oid, 'CREATE') as may_create from pg_namespace"
        " where has_schema_privilege($1, oid, 'USAGE') and nspname !~ '^pg_' and nspname <> 'information_schema'",
        SERVICE_ROLE,
    )
    assert [tuple(row) for row in schemas] == [("public", False)]
    assert not await owner.fetchval("select has_database_privilege($1, current_database(), 'CREATE')", SERVICE_ROLE)


async def test_the_role_may_call_the_functions_that_are_its_statements_and_no_others(owner: asyncpg.Connection) -> None:
    functions = await owner.fetch(
        "select oid::regprocedure::text from pg_proc"
        " where pronamespace = 'public'::regnamespace and has_function_privilege($1, oid, 'EXECUTE')",
        SERVICE_ROLE,
    )
    to_everybody = (
        "select count(*) from pg_proc"
        " where pronamespace = 'public'::regnamespace and has_function_privilege('public', oid, 'execute')"
    )
    assert await owner.fetchval(to_everybody) == 0
    assert {name.partition("(")[0] for (name,) in functions} == MAY_CALL


@pytest.mark.parametrize(
    "statement",
    [
        "create table mine (n integer)",
        "create schema mine",
        "create function mine() returns integer language sql as 'select 1'",
        "alter table walkthroughs add column mine integer",
        "alter table walkthrough_steps disable trigger walkthrough_steps_guard",
        "drop table tool_calls",
        "delete from organizations",
        "delete from mcp_servers",
        "delete from walkthroughs",
        "update walkthrough_draft_edits set edited_by = 'eve'",
        "delete from walkthrough_draft_edits",
        "truncate walkthrough_draft_edits",
        "update walkthrough_ledger set acted_by = 'eve'",
        "delete from walkthrough_ledger",
        "truncate walkthrough_ledger",
        "truncate walkthrough_steps cascade",
        "set constraints all immediate; alter table walkthrough_ledger disable trigger all",
        "drop trigger walkthrough_steps_guard on walkthrough_steps",
        "create or replace function walkthrough_steps_guard() returns trigger language plpgsql as 'begin end'",
        "create index mine on walkthroughs (created_at)",
        "create table tool_calls_mine partition of tool_calls for values from (1) to (2)",
        "select make_tool_call_partitions('2100-01-01', 1)",
        "truncate walkthrough_progress_events",
        "truncate tool_calls",
        "truncate organizations cascade",
        "delete from walkthrough_progress",
        "delete from walkthrough_progress_events",
        "delete from tool_calls",
        "delete from tool_calls_default",
        "update walkthrough_progress_events set note = 'rewritten'",
        "update tool_calls set outcome = 'ok'",
        "update tool_calls set organization_id = 'b'",
        "update tool_calls_default set input = '{}'",
        "insert into tool_calls_default select * from tool_calls_default",
        "update alembic_version set version_num = '9999'",
        "set session_replication_role = replica",
        "alter role cairn_service superuser",
        "copy walkthroughs to program 'true'",
        "select pg_read_file('postgresql.conf')",
    ],
)
async def test_the_service_is_refused(tenants: asyncpg.Connection, database: Database, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.hot() as connection:
            await connection.execute(statement)


# ----------------------------------------------------------------------------------- history goes to an account

# What `tenants` has of the person's progress is the visitor's, who is merged into the person. No column of it is like
# another, or empty.
_VISITED = """
insert into mcp_server_user_identities values ('$', 'visitor:srv_$', 'hash', 'visitor_$', 1);
update mcp_server_users set merged_into = 'usr_$' where organization_id = '$' and id = 'visitor_$';
insert into walkthrough_progress
select (jsonb_populate_record(p, '{"mcp_server_user_id": "visitor_$", "version": 1, "attempt": 3, "carried": ["key-9"],
       "current_step_id": null, "status": "completed", "started_at": 4, "last_activity_at": 5, "completed_at": 6}')).*
  from walkthrough_progress p where organization_id = '$';
update walkthrough_progress_events set mcp_server_user_id = 'visitor_$' where organization_id = '$';
delete from walkthrough_progress where organization_id = '$' and mcp_server_user_id = 'usr_$';
"""
_HAND_OVER = "select hand_over_progress($1, $2, $3, $4)"
_THEIRS = ("a", "srv_a", "visitor_a", "wt_a")


@pytest.fixture
async def visited(tenants: asyncpg.Connection) -> asyncpg.Connection:
    for organization in ("a", "b"):
        await tenants.execute(_VISITED.replace("$", organization))
    return tenants


async def _learned(owner: asyncpg.Connection) -> list[dict[str, object]]:
    """All progress, and all that happened to it."""
    stored = [
        await owner.fetch(f"select * from {table} order by organization_id, mcp_server_user_id, revision")
        for table in ("walkthrough_progress", "walkthrough_progress_events")
    ]
    return [dict(row) for rows in stored for row in rows]


async def test_a_visitors_progress_goes_to_the_account_they_were_merged_into_with_all_that_happened(
    visited: asyncpg.Connection, database: Database
) -> None:
    before = await _learned(visited)
    async with database.hot_transaction(OrganizationId("a")) as connection:
        await connection.execute(_HAND_OVER, *_THEIRS)
    moved = [row | {"mcp_server_user_id": "usr_a"} if row["organization_id"] == "a" else row for row in before]
    assert len([row for row in moved if row["mcp_server_user_id"] == "usr_a"]) == 3
    assert await _learned(visited) == moved


_USER_A = "update mcp_server_users set merged_into = {} where organization_id = 'a' and id = 'visitor_a'"
# What is otherwise in the database, the organisation that is named, and what is asked for.
REFUSED = {
    "of somebody whom nobody merged": (_USER_A.format("null"), "a", _THEIRS),
    "of one who was merged into somebody without an address": (
        "insert into mcp_server_users (organization_id, id, first_seen_at, last_seen_at) values ('a', 'other', 1, 1); "
        + _USER_A.format("'other'"),
        *("a", _THEIRS),
    ),
    "of a visitor of another server": (
        "update mcp_server_user_identities set issuer = 'visitor:srv_2' where mcp_server_user_id = 'visitor_a'",
        *("a", _THEIRS),
    ),
    "that has ended": (
        "update walkthrough_progress set status = 'merged' where organization_id = 'a'",
        *("a", _THEIRS),
    ),
    "on another server": ("select", "a", ("a", "srv_b", "visitor_a", "wt_a")),
    "in another walkthrough": ("select", "a", ("a", "srv_a", "visitor_a", "wt_b")),
    "of the account itself": ("select", "a", ("a", "srv_a", "usr_a", "wt_a")),
    "of another organisation's visitor": ("select", "a", ("a", "srv_a", "visitor_b", "wt_a")),
    "of another organisation": ("select", "a", ("b", "srv_b", "visitor_b", "wt_b")),
    "where no organisation is named": ("select", "", _THEIRS),
}


@pytest.mark.promise("tenant.isolation")
@pytest.mark.parametrize(("otherwise", "named", "asked"), REFUSED.values(), ids=REFUSED)
async def test_no_other_progress_goes_to_anybody(
    visited: asyncpg.Connection, database: Database, otherwise: str, named: str, asked: tuple[str, ...]
) -> None:
    await visited.execute(otherwise)
    before = await _learned(visited)
    with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="no progress of a visitor who was merged"):
        async with database.hot_transaction(OrganizationId(named)) as connection:
            await connection.execute(_HAND_OVER, *asked)
    assert await _learned(visited) == before


async def test_an_account_that_has_begun_by_itself_is_given_nothing_in_its_place(
    visited: asyncpg.Connection, database: Database
) -> None:
    await visited.execute(
        'insert into walkthrough_progress select (jsonb_populate_record(p, \'{"mcp_server_user_id": "usr_a"}\')).*'
        " from walkthrough_progress p where organization_id = 'a'"
    )
    before = await _learned(visited)
    with pytest.raises(asyncpg.UniqueViolationError):
        async with database.hot_transaction(OrganizationId("a")) as connection:
            await connection.execute(_HAND_OVER, *_THEIRS)
    assert await _learned(visited) == before


async def test_what_happens_while_progress_is_about_to_go_to_an_account_goes_along(
    visited: asyncpg.Connection, database: Database
) -> None:
    """To one who calls it without having held the row before, too."""

    async def hand_over() -> None:
        async with database.hot_transaction(OrganizationId("a")) as connection:
            await connection.execute(_HAND_OVER, *_THEIRS)

    async with visited.transaction():
        await visited.execute("update walkthrough_progress set revision = 3 where organization_id = 'a'")
        await visited.execute(
            "insert into walkthrough_progress_events select (jsonb_populate_record(e, '{\"revision\": 3}')).*"
            " from walkthrough_progress_events e where organization_id = 'a' and revision = 2"
        )
        handed_over = asyncio.create_task(hand_over())
        await until_waited_for(visited, handed_over)
    await handed_over
    theirs = [row["revision"] for row in await _learned(visited) if row["mcp_server_user_id"] == "usr_a"]
    assert theirs == [3, 1, 2, 3]


# -------------------------------------------------------------------------------------------------- connections


async def test_every_connection_works_as_the_role_under_its_timeouts(
    connect: AbstractAsyncContextManager[Open],
) -> None:
    async with connect as ask:
        assert await ask("select current_user") == SERVICE_ROLE
        assert {name: await ask(f"show {name}") for name in TIMEOUTS} == TIMEOUTS


async def test_those_who_log_in_as_the_role_have_the_same_timeouts(owner: asyncpg.Connection) -> None:
    settings = await owner.fetchval(
        "select setconfig from pg_db_role_setting where setrole = $1::regrole and setdatabase = 0", SERVICE_ROLE
    )
    assert sorted(settings) == sorted(f"{name}={value}" for name, value in TIMEOUTS.items())


async def test_work_leaves_nothing_behind_on_a_session(owner_url: str, owner: asyncpg.Connection) -> None:
    """No setting, lock, temporary table, open cursor or listener: so PgBouncer may hand sessions to others."""
    async with Database(Access(owner_url, assume_role=True), pool_size=1) as database:
        world = on_postgres(database)
        server = await world.server()
        for steps in (("a", "b"), ("a", "b", "c")):
            await world.publish(*steps)
        await world.authoring.push("acme", manuscript("draft"), publish=None, servers=[], by="author@example.com")
        caller = await world.caller(server)
        lesson = await world.learning.select(caller, "tour", restart=False, to_latest=False)
        await world.learning.next(caller, str(lesson.progress.handle()), None, outcome=Outcome.DONE, note=None)
        left = """
            select 'setting ' || name || ' = ' || setting from pg_settings where source = 'session'
             union all
            -- A setting of ours is in no list.
            select 'organisation ' || current_setting('app.organization_id', true)
             where current_setting('app.organization_id', true) <> ''
             union all
            select 'lock on ' || locktype from pg_locks
             where pid = pg_backend_pid() and locktype not in ('relation', 'virtualxid')
             union all
            select 'cursor ' || name from pg_cursors where is_holdable
             union all
            select 'listener ' || pg_listening_channels()
             union all
            select 'temporary ' || relname from pg_class where relnamespace = pg_my_temp_schema()"""
        async with database.hot() as connection:
            assert [what for (what,) in await connection.fetch(left)] == []
        for _ in range(2):
            async with database.transaction(None) as engine:
                assert (await engine.execute(text(left))).scalars().all() == []
