"""What the migrations make, how they are run, and what is said where the service and a database do not fit."""

from __future__ import annotations

import ast
import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

import migrations
from adapters.postgres import connections
from adapters.postgres.connections import SERVICE_ROLE, Access, Database
from adapters.postgres.schema import check_schema, is_complete, migrate
from adapters.postgres.tables import metadata
from domain.draft import RemoveStep
from domain.errors import TemporarilyUnavailable, WrongSchema
from domain.tenancy import OrganizationId
from domain.walkthrough import PublishPolicy
from tests.storage.conftest import FIRST_RELEASE, logged_in, until_waited_for
from tests.worlds import on_postgres

MIGRATIONS = Path(migrations.__file__).parent
TIMEOUTS = {"statement_timeout": "3s", "lock_timeout": "2500ms", "idle_in_transaction_session_timeout": "10s"}

# Everything in a schema that somebody made, in words that do not depend on the order it was made in.
_CATALOGUE = {
    "tables": """
        select c.relname, c.relkind::text, c.relpersistence::text, c.reloptions::text, pg_get_partkeydef(c.oid),
               pg_get_expr(c.relpartbound, c.oid)
          from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind not in ('i', 'I')""",
    "columns": """
        select c.relname || '.' || a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated::text,
               a.attidentity::text, pg_get_expr(d.adbin, d.adrelid)
          from pg_attribute a join pg_class c on c.oid = a.attrelid
          left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
         where c.relnamespace = 'public'::regnamespace and a.attnum > 0 and not a.attisdropped
           and c.relkind in ('r', 'p')""",
    "constraints": """
        select c.relname || '.' || k.conname, k.contype::text, pg_get_constraintdef(k.oid), k.convalidated
          from pg_constraint k join pg_class c on c.oid = k.conrelid
         where c.relnamespace = 'public'::regnamespace and k.contype <> 'n'""",
    "indexes": "select indexname, indexdef from pg_indexes where schemaname = 'public'",
    "triggers": """
        select c.relname || '.' || t.tgname, pg_get_triggerdef(t.oid), t.tgenabled::text
          from pg_trigger t join pg_class c on c.oid = t.tgrelid
         where c.relnamespace = 'public'::regnamespace and not t.tgisinternal""",
    "functions": """
        select p.oid::regprocedure::text, pg_get_functiondef(p.oid), p.proacl::text
          from pg_proc p where p.pronamespace = 'public'::regnamespace""",
    "policies": """
        select relname, relrowsecurity, relforcerowsecurity, policyname, roles::text, cmd, permissive, qual, with_check
          from pg_class left join pg_policies on tablename = relname
         where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')""",
    "grants": """
        select c.relname, grantee::regrole::text, privilege_type
          from pg_class c, aclexplode(c.relacl) where c.relnamespace = 'public'::regnamespace
         union all
        select a.attrelid::regclass || '.' || a.attname, grantee::regrole::text, privilege_type
          from pg_attribute a, aclexplode(a.attacl)
         union all
        select 'public', case grantee when 0 then 'public' else grantee::regrole::text end, privilege_type
          from pg_namespace, aclexplode(nspacl) where nspname = 'public'""",
}


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def _catalogue(url: str) -> Mapping[str, set[tuple[object, ...]]]:
    async with _connected(url) as connection:
        return {what: {tuple(row) for row in await connection.fetch(query)} for what, query in _CATALOGUE.items()}


async def _on(url: str, work: Callable[[Connection], Any]) -> Any:
    """Runs synchronous work, as alembic's is, in one transaction."""
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda **_: asyncpg.connect(url), poolclass=NullPool
    )
    async with engine.begin() as connection:
        return await connection.run_sync(work)


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


async def _up_to(url: str, revision: str) -> None:
    await _on(url, lambda connection: command.upgrade(_config(connection), revision))


def _revisions() -> list[str]:
    """From the first to the newest."""
    return [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()][::-1]


# ------------------------------------------------------------------------------------------------- up and down


async def test_each_migration_goes_up_down_and_up_again(empty_url: str) -> None:
    async with _connected(empty_url) as connection:
        for revision in _revisions():
            before = await _catalogue(empty_url)
            await _up_to(empty_url, revision)
            up = await _catalogue(empty_url)
            await _on(empty_url, lambda connection: command.downgrade(_config(connection), "-1"))
            down = await _catalogue(empty_url)
            for what in _CATALOGUE:
                added = {row for row in down[what] - before[what] if "alembic_version" not in str(row)}
                assert (what, added, before[what] - down[what]) == (what, set(), set())
            await _up_to(empty_url, revision)
            assert await _catalogue(empty_url) == up
        assert await connection.fetchval("select version_num from alembic_version") == _revisions()[-1]


async def test_what_the_first_release_stored_is_edited_and_published_and_stays_when_taken_back(empty_url: str) -> None:
    await _up_to(empty_url, "0002")
    async with _connected(empty_url) as connection:
        for organization in ("a", "b"):
            await connection.execute(FIRST_RELEASE.replace("$", organization))
        await _up_to(empty_url, "head")
        ledger = "select organization_id, number, deed, version, content_hash, policy, acted_by from walkthrough_ledger"
        recorded = [tuple(row) for row in await connection.fetch(f"{ledger} order by 1, 2")]
        assert recorded == [
            (organization, number, "published", number, f"hash {number}", "keep", None)
            for organization in ("a", "b")
            for number in (1, 2)
        ]
        async with Database(Access(empty_url, assume_role=True)) as database:
            authoring = on_postgres(database).authoring
            draft = await authoring.edit("a", "tour", (3, 0), [RemoveStep("key-2")], by="ada")
            assert [step.text.key for step in draft.steps] == ["key-1", "key-3"]
            published = await authoring.publish("a", "tour", (3, 1), PublishPolicy.KEEP, by="ada")
            assert (published.version, published.is_published) == (3, True)
            await authoring.edit("b", "tour", (3, 0), [RemoveStep("key-1")], by="bob")
        steps = "select organization_id, version, id, next_step_id from walkthrough_steps order by 1, 2, 3"
        before = await connection.fetch(steps)
        await _on(empty_url, lambda connection: command.downgrade(_config(connection), "0002"))
        assert await connection.fetch(steps) == before
        # As the first release replaces a draft.
        await connection.execute("delete from walkthrough_versions where organization_id = 'b' and version = 3")
        await _up_to(empty_url, "head")
        assert await connection.fetchval("select count(*) from walkthrough_ledger where organization_id = 'a'") == 3


async def test_migrating_again_changes_nothing(fresh_url: str) -> None:
    before = await _catalogue(fresh_url)
    assert await migrate(fresh_url) == _revisions()[-1]
    assert await _catalogue(fresh_url) == before


async def test_two_migrations_of_an_empty_database_at_once_both_succeed(empty_url: str, owner_url: str) -> None:
    assert await asyncio.gather(migrate(empty_url), migrate(empty_url)) == [_revisions()[-1]] * 2
    assert await _catalogue(empty_url) == await _catalogue(owner_url)


async def test_two_migrations_that_make_the_same_months_at_once_both_succeed(fresh_url: str) -> None:
    async with _connected(fresh_url) as connection:
        months = await _months(connection)
        await connection.execute("drop table " + ", ".join(months))
        # Held where neither has made a month yet; the second may wait for the first instead.
        async with connection.transaction():
            await connection.execute("lock table tool_calls_default in access exclusive mode")
            both = asyncio.gather(migrate(fresh_url), migrate(fresh_url), return_exceptions=True)
            await _until_two_wait(connection)
        assert await both == [_revisions()[-1]] * 2
        assert await _months(connection) == months


async def _months(connection: asyncpg.Connection) -> list[str]:
    rows = await connection.fetch(
        "select inhrelid::regclass::text from pg_inherits where inhparent = 'tool_calls'::regclass order by 1"
    )
    return [name for (name,) in rows if name != "tool_calls_default"]


_OTHERS = "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"


async def _until_two_wait(connection: asyncpg.Connection) -> None:
    """Until two other sessions are on this database, and each waits for a lock."""
    waiting = (
        "select count(*) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid() and wait_event_type = 'Lock'"
    )
    while await connection.fetchval(waiting) < 2:
        await connection.execute("select pg_stat_clear_snapshot()")


async def test_two_databases_of_one_server_migrate_at_once(empty_url: str, fresh_url: str) -> None:
    async with _connected(fresh_url) as neighbour:
        # What the neighbour's migration does to the role that they share.
        async with neighbour.transaction():
            await neighbour.execute(f"alter role {SERVICE_ROLE} set statement_timeout = '3s'")
            await neighbour.execute(f"grant {SERVICE_ROLE} to current_user")
            migration = asyncio.create_task(migrate(empty_url))
            await until_waited_for(neighbour, migration)
        assert await migration == _revisions()[-1]


_REFUSES = """
create function refuse() returns event_trigger language plpgsql as $$ begin
    if current_query() like '%access_tokens_by_user%' then
        raise exception 'held by somebody' using errcode = '{code}';
    end if;
end $$;
create event trigger refuses on ddl_command_start when tag in ('CREATE INDEX') execute function refuse();
"""


@pytest.mark.parametrize("code", ["55P03", "42501"], ids=["a table is held", "the owner may not"])
async def test_a_revision_that_cannot_be_made_leaves_those_before_it_and_says_where_the_database_is(
    empty_url: str, owner_url: str, code: str
) -> None:
    async with _connected(empty_url) as connection:
        await connection.execute(_REFUSES.replace("{code}", code))
        with pytest.raises(WrongSchema, match=r"at schema 0005 now: "):
            await migrate(empty_url)
        assert await connection.fetchval("select version_num from alembic_version") == "0005"
        # Nothing of it, not even what went well.
        unvalidated = "select count(*) from pg_constraint where not convalidated"
        assert await connection.fetchval(unvalidated) == 6
        with pytest.raises((WrongSchema, TemporarilyUnavailable)):
            await migrate(empty_url)
        await connection.execute("drop event trigger refuses; drop function refuse()")
        assert await migrate(empty_url) == _revisions()[-1]
    assert await _catalogue(empty_url) == await _catalogue(owner_url)


async def test_signing_in_reads_no_large_table_while_it_holds_it(empty_url: str) -> None:
    """What a revision holds it holds until its end, so what it reads then keeps everybody waiting."""
    large = ("access_tokens", "mcp_server_users", "walkthrough_progress", "walkthrough_progress_events", "tool_calls")
    scanned = f"""
        select conname from pg_constraint
         where convalidated and contype <> 'n' and conrelid::regclass::text in {large}
         union all
        select indexname from pg_indexes where tablename in {large}"""
    held = f"""
        select relation::regclass::text from pg_locks
         where pid = pg_backend_pid() and mode = 'AccessExclusiveLock' and relation::regclass::text in {large}"""
    await _up_to(empty_url, "0004")
    async with _connected(empty_url) as connection:
        before = {tuple(row) for row in await connection.fetch(scanned)}
        await _up_to(empty_url, "0005")
        assert {tuple(row) for row in await connection.fetch(scanned)} <= before

    def last(connection: Connection) -> list[str]:
        command.upgrade(_config(connection), "0006")
        return list(connection.exec_driver_sql(held).scalars())

    assert await _on(empty_url, last) == []


async def test_a_key_of_the_events_is_replaced_without_reading_them_while_they_are_held(empty_url: str) -> None:
    unread = "select conname from pg_constraint where not convalidated"
    # Of the session that waits for this one: what it has of the events for reading all of them, which lets everybody
    # write, and what it waits for.
    held = """
        select mode, granted from pg_locks
         where relation = 'walkthrough_progress_events'::regclass and pg_backend_pid() = any(pg_blocking_pids(pid))
           and mode <> 'AccessShareLock'"""
    await _up_to(empty_url, "0009")
    async with _connected(empty_url) as connection:
        assert await connection.fetch(unread) == [("walkthrough_progress_events_next_progress_fkey",)]
        async with connection.transaction():
            await connection.execute("lock table walkthrough_progress_events in row exclusive mode")  # as who writes
            finished = asyncio.create_task(migrate(empty_url, finish=True))
            await until_waited_for(connection, finished)
            assert {tuple(row) for row in await connection.fetch(held)} == {
                ("ShareUpdateExclusiveLock", True),
                ("AccessExclusiveLock", False),
            }
        assert await finished == _revisions()[-1]
        assert await connection.fetch(unread) == []


def test_migrations_import_nothing_of_ours() -> None:
    ours = {"domain", "application", "adapters", "entrypoints", "migrations", "tests"}
    files = sorted(MIGRATIONS.rglob("*.py"))
    assert any(file.name == "env.py" for file in files)
    assert any(file.parent.name == "versions" and file.stem != "__init__" for file in files)
    for file in files:
        imported = set()
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Import():
                    imported |= {name.name.partition(".")[0] for name in node.names}
                case ast.ImportFrom():
                    assert node.level == 0, f"{file} imports relatively"
                    imported.add(str(node.module).partition(".")[0])
        assert not imported & ours, file
        assert imported <= sys.stdlib_module_names | {"alembic", "sqlalchemy"}, file


# --------------------------------------------------------------------------------------------- the same tables


async def test_alembic_finds_no_difference_between_migrations_and_tables(owner_url: str) -> None:
    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "include_name": lambda name, kind, _: kind != "table" or not name.startswith("tool_calls_"),
            },
        )
        return compare_metadata(context, metadata)

    assert await _on(owner_url, differences) == []


async def test_the_tables_make_what_the_migrations_make_except_checks(owner_url: str, empty_url: str) -> None:
    """What alembic does not compare: primary keys, deferrability, fillfactor, partitioning."""
    await _on(empty_url, metadata.create_all)
    from_tables, from_migrations = await _catalogue(empty_url), await _catalogue(owner_url)

    def comparable(rows: set[tuple[object, ...]]) -> set[tuple[object, ...]]:
        # Checks, triggers and partitions are the migrations' alone.
        return {
            row
            for row in rows
            if row[1] not in ("c", "t")
            if "alembic_version" not in str(row[0]) and not str(row[0]).startswith("tool_calls_2")
            if not str(row[0]).startswith("tool_calls_default")
        }

    for what in ("tables", "columns", "constraints", "indexes"):
        assert comparable(from_migrations[what]) == comparable(from_tables[what])
        assert comparable(from_tables[what])
    tables = {row[0]: row for row in from_migrations["tables"]}
    assert tables["walkthrough_progress"][3] == "{fillfactor=80}"
    assert tables["tool_calls"][4] == "RANGE (created_at)"


# -------------------------------------------------------------------------------------------------- partitions


async def test_this_and_the_next_months_have_a_partition(owner: asyncpg.Connection) -> None:
    expected = await owner.fetch(
        "select to_char(date_trunc('month', now() at time zone 'utc') + make_interval(months => n),"
        " '\"tool_calls_\"YYYY_MM') from generate_series(0, 3) as n order by 1"
    )
    assert await _months(owner) == [name for (name,) in expected]


async def test_partitions_follow_each_other_without_a_gap(fresh_url: str) -> None:
    async with _connected(fresh_url) as connection:
        # Over a leap day and a year's end, in a zone where none of them begins at midnight UTC.
        await connection.execute("set timezone = 'Pacific/Auckland'")
        await connection.execute("drop table " + ", ".join(await _months(connection)))
        await connection.execute("select make_tool_call_partitions('2027-11-30T23:30:00Z', 15)")
        bounds = await connection.fetch(
            r"select c.relname, regexp_match(pg_get_expr(c.relpartbound, c.oid), '\(''(\d+)''\) TO \(''(\d+)''\)')"
            r" from pg_class c where relname ~ '^tool_calls_\d+_\d+$' order by 1"
        )
        assert [name for name, _ in bounds][:3] == ["tool_calls_2027_11", "tool_calls_2027_12", "tool_calls_2028_01"]
        assert len(bounds) == 16
        assert [upper for _, (_, upper) in bounds][:-1] == [lower for _, (lower, _) in bounds][1:]
        assert bounds[0][1][0] == "1825027200000"  # 2027-11-01T00:00:00Z


@pytest.mark.parametrize(
    "created_at",
    [
        pytest.param(0, id="1970"),
        pytest.param(-(2**63), id="the first"),
        pytest.param(2**63 - 1, id="the last"),
        pytest.param(None, id="now"),
        pytest.param(4_102_444_800_000, id="2100"),
    ],
)
async def test_a_call_of_any_month_is_stored_once(tenants: asyncpg.Connection, created_at: int | None) -> None:
    statement = """
        insert into tool_calls (organization_id, created_at, id, mcp_server_id, tool_name, protocol_version, outcome,
               duration_us, input)
        values ('a', coalesce($1, (extract(epoch from now()) * 1000)::bigint), 'call', 'srv_a', 't', 'p', 'ok', 1, '{}')
        returning tableoid::regclass::text"""
    stored_in = await tenants.fetchval(statement, created_at)
    assert (stored_in == "tool_calls_default") is (created_at is not None)
    assert await tenants.fetchval("select count(*) from tool_calls where id = 'call'") == 1


async def test_a_month_whose_calls_came_before_its_partition_goes_on_in_the_default_one(
    fresh_url: str,
) -> None:
    async with _connected(fresh_url) as connection:
        months = await _months(connection)
        await connection.execute(f"drop table {months[0]}")
        await connection.execute(
            "insert into organizations values ('a', 'a', 'A', 1);"
            "insert into mcp_servers (organization_id, id, slug, name, auth_mode, created_at)"
            " values ('a', 'srv_a', 'a', 'A', 'on_demand', 1);"
            "insert into tool_calls (organization_id, created_at, id, mcp_server_id, tool_name, protocol_version,"
            " outcome, duration_us, input)"
            " values ('a', extract(epoch from now()) * 1000, 'call', 'srv_a', 't', 'p', 'ok', 1, '{}')"
        )
        await migrate(fresh_url)
        assert await _months(connection) == months[1:]
        assert await connection.fetchval("select count(*) from tool_calls") == 1


# ------------------------------------------------------------------------------------ what fits and what does not


async def test_the_service_works_on_a_migrated_database(fresh_url: str) -> None:
    await check_schema(Access(fresh_url, assume_role=True))


async def test_a_newer_releases_database_says_upgrade(fresh_url: str) -> None:
    async with _connected(fresh_url) as connection:
        await connection.execute("update alembic_version set version_num = '9999'")
        before = await _catalogue(fresh_url)
        with pytest.raises(WrongSchema, match="newer Cairn: upgrade"):
            await migrate(fresh_url)
        with pytest.raises(WrongSchema, match="newer Cairn: upgrade"):
            await check_schema(Access(fresh_url, assume_role=True))
        assert await connection.fetchval("select version_num from alembic_version") == "9999"
        assert await _catalogue(fresh_url) == before


async def test_a_database_without_schema_says_migrate(empty_url: str) -> None:
    with pytest.raises(WrongSchema, match="run 'cairn migrate'"):
        await check_schema(Access(empty_url, assume_role=True))


async def test_a_server_without_the_service_role_says_migrate(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the first start on a database that nobody has migrated, on a server that never saw Cairn."""
    monkeypatch.setattr(connections, "SERVICE_ROLE", "cairn_nobody")
    with pytest.raises(WrongSchema, match="run 'cairn migrate'"):
        await check_schema(Access(empty_url, assume_role=True))


async def test_a_schema_taken_down_says_migrate(fresh_url: str) -> None:
    await _on(fresh_url, lambda connection: command.downgrade(_config(connection), "base"))
    with pytest.raises(WrongSchema, match="run 'cairn migrate'"):
        await check_schema(Access(fresh_url, assume_role=True))


async def test_the_service_refuses_to_work_as_a_superuser(fresh_url: str) -> None:
    with pytest.raises(WrongSchema, match="must not work as the owner of its tables or as a superuser"):
        await check_schema(Access(fresh_url))


@pytest.fixture
def owned_url(empty_url: str, make_login: Callable[..., str], superuser_url: str) -> str:
    """An empty database, as an owner who is no superuser and may hand out the service role."""
    login = make_login("createrole", owns=empty_url)

    async def as_if_it_had_made_the_role() -> None:
        async with _connected(superuser_url) as connection:
            may_separate = connection.get_server_version().major >= 16
            what = "admin true, inherit false, set false" if may_separate else "admin option"
            await connection.execute(f"grant {SERVICE_ROLE} to {login} with {what}")

    asyncio.run(as_if_it_had_made_the_role())
    return logged_in(empty_url, login)


async def test_an_owner_who_is_no_superuser_migrates_and_the_service_refuses_to_work_as_it(owned_url: str) -> None:
    assert await migrate(owned_url) == _revisions()[-1]
    await check_schema(Access(owned_url, assume_role=True))
    with pytest.raises(WrongSchema, match="must not work as the owner of its tables or as a superuser"):
        await check_schema(Access(owned_url))


async def test_a_login_that_bypasses_row_level_security_is_refused(
    fresh_url: str, make_login: Callable[..., str]
) -> None:
    login = await asyncio.to_thread(make_login, "bypassrls")
    await migrate(fresh_url, service_login=login)
    with pytest.raises(WrongSchema, match="or bypass row-level security"):
        await check_schema(Access(logged_in(fresh_url, login)))


async def test_an_owner_who_may_not_grant_the_role_of_a_neighbour_is_told(
    empty_url: str, make_login: Callable[..., str]
) -> None:
    """Two installations of different owners on one server. Up to PostgreSQL 15, createrole was enough."""
    login = await asyncio.to_thread(make_login, "createrole", owns=empty_url)
    url = logged_in(empty_url, login)
    async with _connected(url) as connection:
        if connection.get_server_version().major < 16:
            assert await migrate(url) == _revisions()[-1]
            return
    with pytest.raises(WrongSchema, match=SERVICE_ROLE):
        await migrate(url)


async def test_a_login_that_inherits_from_the_owner_is_refused_too(
    owned_url: str, make_login: Callable[..., str], superuser_url: str
) -> None:
    deputy = await asyncio.to_thread(make_login)
    await migrate(owned_url, service_login=deputy)
    async with _connected(owned_url) as connection:
        owner = await connection.fetchval("select current_user")
    async with _connected(superuser_url) as connection:
        await connection.execute(f"grant {owner} to {deputy}")
    with pytest.raises(WrongSchema, match="must not work as the owner"):
        await check_schema(Access(logged_in(owned_url, deputy)))


@pytest.mark.parametrize("may_create_in_schema", [False, True], ids=["a stranger", "an owner without createrole"])
async def test_a_login_that_may_not_create_roles_migrates_nothing_and_is_told(
    empty_url: str, make_login: Callable[..., str], may_create_in_schema: bool
) -> None:
    login = await asyncio.to_thread(make_login, owns=empty_url if may_create_in_schema else None)
    before = await _catalogue(empty_url)
    with pytest.raises(WrongSchema, match="migrate as its owner, a login that may create roles"):
        await migrate(logged_in(empty_url, login))
    assert await _catalogue(empty_url) == before


async def test_a_failing_grant_to_the_services_login_leaves_nothing_half_made(empty_url: str) -> None:
    before = await _catalogue(empty_url)
    with pytest.raises(WrongSchema, match="cairn_absent_login"):
        await migrate(empty_url, service_login="cairn_absent_login")
    assert await _catalogue(empty_url) == before


# ----------------------------------------------------------------------------------------- the service's own login


async def test_a_login_that_nobody_let_in_is_told_how(fresh_url: str, make_login: Callable[..., str]) -> None:
    login = await asyncio.to_thread(make_login)
    with pytest.raises(WrongSchema, match="run 'cairn migrate' as the owner"):
        await check_schema(Access(logged_in(fresh_url, login)))


@pytest.mark.parametrize("work", [migrate, lambda url: check_schema(Access(url))], ids=["migrate", "check"])
async def test_a_login_that_the_server_does_not_know_is_told(fresh_url: str, work: Callable[[str], Any]) -> None:
    with pytest.raises(WrongSchema, match="cairn_absent_login"):
        await work(logged_in(fresh_url, "cairn_absent_login"))


async def test_an_owners_login_that_may_not_become_the_service_is_told(
    fresh_url: str, make_login: Callable[..., str]
) -> None:
    login = await asyncio.to_thread(make_login)
    with pytest.raises(WrongSchema, match=SERVICE_ROLE):
        await check_schema(Access(logged_in(fresh_url, login), assume_role=True))


async def test_a_login_of_its_own_works_as_the_service(fresh_url: str, make_login: Callable[..., str]) -> None:
    login = await asyncio.to_thread(make_login)
    await migrate(fresh_url, service_login=login)
    access = Access(logged_in(fresh_url, login))
    await check_schema(access)
    async with Database(access) as database:
        world = on_postgres(database)
        server = await world.server()
        await world.publish("one", "two")
        caller = await world.caller(server)
        lesson = await world.learning.select(caller, "tour", restart=False, to_latest=False)
        assert lesson.progress.current_step_id is not None


async def test_a_login_of_its_own_has_the_services_timeouts(fresh_url: str, make_login: Callable[..., str]) -> None:
    login = await asyncio.to_thread(make_login)
    await migrate(fresh_url, service_login=login)
    async with Database(Access(logged_in(fresh_url, login))) as database, database.hot() as connection:
        shown = {name: await connection.fetchval(f"show {name}") for name in TIMEOUTS}
    assert shown == TIMEOUTS


async def test_a_login_with_no_time_limits_is_told(
    fresh_url: str, make_login: Callable[..., str], superuser_url: str
) -> None:
    """As where the owner may let a login work as the service, but not change it."""
    login = await asyncio.to_thread(make_login)
    await migrate(fresh_url, service_login=login)
    async with _connected(superuser_url) as connection:
        await connection.execute(f"alter role {login} reset all")
    with pytest.raises(WrongSchema, match=f'alter role "{login}" set statement_timeout'):
        await check_schema(Access(logged_in(fresh_url, login)))


async def test_letting_a_login_in_twice_is_once(fresh_url: str, make_login: Callable[..., str]) -> None:
    login = await asyncio.to_thread(make_login)
    for _ in range(2):
        await migrate(fresh_url, service_login=login)
    async with _connected(fresh_url) as connection:
        members = await connection.fetchval(
            "select count(*) from pg_auth_members where member = $1::regrole and roleid = $2::regrole",
            login,
            SERVICE_ROLE,
        )
    assert members == 1


async def test_nobody_makes_temporary_tables_in_a_database_of_ours(empty_url: str) -> None:
    await migrate(empty_url)
    may = "select has_database_privilege($1, current_database(), 'TEMPORARY')"
    async with _connected(empty_url) as connection:
        assert await connection.fetchval(may, SERVICE_ROLE) is False


# ---------------------------------------------------------------------------------------- expanding and contracting

# What the release before row-level security asks, on a connection of its own.
_FORMER = "select count(*) from walkthroughs"
_LISTS = ("standings", "standings_here")  # before revision 0009, and since


async def test_a_database_in_use_is_contracted_only_where_that_is_asked_for(empty_url: str) -> None:
    await _up_to(empty_url, "0006")
    async with _connected(empty_url) as connection:
        await connection.execute(FIRST_RELEASE.replace("$", "a"))
        assert await asyncio.gather(migrate(empty_url), migrate(empty_url)) == ["0007"] * 2
        assert await migrate(empty_url) == "0007"
        assert not is_complete("0007")
        access = Access(empty_url, assume_role=True)
        with pytest.raises(WrongSchema, match="run 'cairn migrate --finish' once no process of the release before"):
            await check_schema(access)
        former = await asyncpg.connect(**access.connect_arguments())
        assert await former.fetchval(_FORMER) == 1
        # Both releases may share a session, behind a pooler. What was set for a transaction leaves an empty setting.
        await former.fetch("select * from visitor_of('a', 'email', 'ada@example.com')")
        assert await former.fetchval(_FORMER) == 1
        assert await migrate(empty_url, finish=True) == _revisions()[-1]
        assert is_complete(_revisions()[-1])
        assert await check_schema(access) is True
        assert await former.fetchval(_FORMER) == 0
        await former.close()


async def test_what_the_release_before_calls_stays_until_the_upgrade_is_finished(empty_url: str) -> None:
    await _up_to(empty_url, "0008")
    async with _connected(empty_url) as connection:
        await connection.execute(FIRST_RELEASE.replace("$", "a"))
        access = Access(empty_url, assume_role=True)
        former = await asyncpg.connect(**access.connect_arguments())
        assert await migrate(empty_url) == "0009"
        assert await check_schema(access) is False  # it can be served, and something is left
        there = [await former.fetch(f"select * from {name}('a', 'srv_a', null)") for name in _LISTS]
        assert there[0] == there[1] != []
        assert await migrate(empty_url, finish=True) == _revisions()[-1]
        assert await check_schema(access) is True
        with pytest.raises(asyncpg.UndefinedFunctionError):
            await former.fetch("select * from standings('a', 'srv_a', null)")
        await former.close()


_EVENTS = "select array_agg(mcp_server_user_id) from walkthrough_progress_events"
# A visitor who is merged into the person, and the progress of the one becomes the other's.
_VISITOR = """
insert into mcp_server_users (organization_id, id, first_seen_at, last_seen_at, merged_into)
values ('a', 'visitor', 1, 1, 'usr_a');
insert into mcp_server_user_identities values ('a', 'visitor:srv_a', 'hash', 'visitor', 1);
"""
_GOES_TO_THE_VISITOR = "update walkthrough_progress set mcp_server_user_id = 'visitor' where organization_id = 'a'"
_GOES_TO_THE_PERSON = "select hand_over_progress('a', 'srv_a', 'visitor', 'wt_a')"


async def test_the_release_before_hands_over_by_the_key_until_the_upgrade_is_finished(empty_url: str) -> None:
    await _up_to(empty_url, "0008")
    async with _connected(empty_url) as connection:
        await connection.execute(FIRST_RELEASE.replace("$", "a") + _VISITOR)
        assert await migrate(empty_url) == "0009"
        # Asked in the order in which they were made, and that may come out either way.
        name = "walkthrough_progress_events_progress_fkey"
        made = await connection.fetchval("select pg_get_constraintdef(oid) from pg_constraint where conname = $1", name)
        await connection.execute(f"alter table walkthrough_progress_events drop constraint {name}")
        await connection.execute(f"alter table walkthrough_progress_events add constraint {name} {made}")
        async with Database(Access(empty_url, assume_role=True)) as service:

            async def run(statement: str) -> object:
                async with service.hot_transaction(OrganizationId("a")) as former_or_new:
                    await former_or_new.execute(statement)
                return await connection.fetchval(_EVENTS)

            assert await run(_GOES_TO_THE_VISITOR) == ["visitor"] * 2
            assert await run(_GOES_TO_THE_PERSON) == ["usr_a"] * 2
            assert await run(_GOES_TO_THE_VISITOR) == ["visitor"] * 2
            assert await migrate(empty_url, finish=True) == _revisions()[-1]
            assert await run(_GOES_TO_THE_PERSON) == ["usr_a"] * 2
            with pytest.raises(asyncpg.ForeignKeyViolationError):
                await run(_GOES_TO_THE_VISITOR)


async def test_a_database_without_an_organisation_is_made_in_one_run(empty_url: str) -> None:
    await _up_to(empty_url, "0006")
    assert await migrate(empty_url) == _revisions()[-1]
