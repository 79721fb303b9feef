"""The second wall: the database shows the service one organisation's rows, and none to whoever names none.

The first wall is the statements, which all name their organisation. Here they are ours, and name none or another one.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from adapters.postgres.connections import SERVICE_ROLE
from domain.tenancy import Millis, OrganizationId
from tests.isolation.tenants import Names, Stores
from tests.isolation.test_ports import PROBES, Probe
from tests.isolation.walk import Walk
from tests.storage.conftest import tenants

__all__ = ["tenants"]

_TABLES = """
select relname, attname, relispartition
  from pg_class
  join pg_attribute on attrelid = pg_class.oid and attname = case relname when 'organizations' then 'id'
                                                                          else 'organization_id' end
 where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and not attisdropped
 order by relname
"""
# Nothing but these is there without an organisation.
_NOBODYS = {"alembic_version"}
# Who is there, told before anybody's organisation is known: a name for a name, and the operator's list.
_DIRECTORY = {"server_at", "organization_of", "organization_ids"}
# And what moves a history that the service may not change: it looks at the setting itself.
_AS_THE_OWNER = _DIRECTORY | {"hand_over_progress"}


@dataclass(frozen=True)
class Table:
    """A table of tenants' data."""

    name: str
    column: str
    """That says whose a row is."""
    is_partition: bool


async def _tables(owner: asyncpg.Connection) -> Sequence[Table]:
    return [Table(*row) for row in await owner.fetch(_TABLES)]


@asynccontextmanager
async def _service(owner: asyncpg.Connection, organization: str | None) -> AsyncIterator[None]:
    """As the service that may do everything with every table, with no trigger and no foreign key in its way: so that
    policies alone are what holds it back. All is taken back at the end."""
    transaction = owner.transaction()
    await transaction.start()
    await owner.execute(f"grant all on all tables in schema public to {SERVICE_ROLE}")
    await owner.execute("set local session_replication_role = replica")
    await owner.execute(f"set local role {SERVICE_ROLE}")
    if organization is not None:
        await owner.execute("select set_config('app.organization_id', $1, true)", organization)
    try:
        yield
    finally:
        await transaction.rollback()


async def _count(owner: asyncpg.Connection, statement: str) -> int:
    return int((await owner.execute(statement)).rpartition(" ")[2])


async def _refused(owner: asyncpg.Connection, statement: str, *arguments: object) -> bool:
    """Whether a policy refuses it; what it did otherwise is taken back."""
    attempt = owner.transaction()
    await attempt.start()
    try:
        await owner.execute(statement, *arguments)
    except asyncpg.InsufficientPrivilegeError as error:
        return "row-level security policy" in str(error)
    finally:
        await attempt.rollback()
    return False


async def test_every_table_of_tenants_has_exactly_the_one_policy_and_partitions_have_none(
    owner: asyncpg.Connection,
) -> None:
    tables = await _tables(owner)
    names = {each.name for each in tables}
    everything = await owner.fetch(
        "select relname, relrowsecurity from pg_class where relnamespace = 'public'::regnamespace"
        " and relkind in ('r', 'p', 'v', 'm', 'f')"
    )
    assert {name for name, _ in everything} - names == _NOBODYS
    assert [name for name, is_secured in everything if not is_secured] == list(_NOBODYS)
    policies = await owner.fetch(
        "select tablename, permissive, roles::text[], cmd, qual, with_check from pg_policies"
        " where schemaname = 'public' order by tablename"
    )
    of_theirs = "({} = current_setting('app.organization_id'::text, true))"
    assert [tuple(row) for row in policies] == [
        (each.name, "PERMISSIVE", [SERVICE_ROLE], "ALL", of_theirs.format(each.column), None)
        for each in tables
        if not each.is_partition
    ]


async def test_nobody_is_granted_anything_on_a_partition(owner: asyncpg.Connection) -> None:
    partitions = [each.name for each in await _tables(owner) if each.is_partition]
    assert partitions
    for name in partitions:
        granted = "select has_table_privilege($1, $2, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')"
        assert not await owner.fetchval(granted, SERVICE_ROLE, name), name


@pytest.mark.promise("tenant.isolation")
@pytest.mark.parametrize("organization", [None, "", "b", "nobody"])
async def test_whoever_names_another_organisation_or_none_neither_sees_nor_changes_a_row(
    tenants: asyncpg.Connection, organization: str | None
) -> None:
    """An empty setting is what one that was made for a transaction leaves behind in its session."""
    for table in await _tables(tenants):
        name, of_a = table.name, f"{table.column} = 'a'"
        row = await tenants.fetchval(f"select to_jsonb(its)::text from {name} its where {of_a} limit 1")
        if row is None:
            assert table.is_partition, name
            continue
        values = json.loads(row)
        anew = f"insert into {name} select * from jsonb_populate_record(null::{name}, $1::text::jsonb)"
        async with _service(tenants, organization):
            assert await _count(tenants, f"select from {name} where {of_a}") == 0, name
            assert await _count(tenants, f"update {name} set {table.column} = 'c' where {of_a}") == 0, name
            assert await _count(tenants, f"delete from {name} where {of_a}") == 0, name
            for stored in (values, _renamed(values)):
                assert await _refused(tenants, anew, json.dumps(stored)), name
            if organization == "b" and not table.is_partition:
                assert await _refused(tenants, f"update {name} set {table.column} = 'a'"), name


@pytest.mark.promise("tenant.isolation")
async def test_whoever_names_their_organisation_sees_and_changes_its_rows_and_no_others(
    tenants: asyncpg.Connection,
) -> None:
    """So that it is the setting which the others are held back by."""
    for table in [each for each in await _tables(tenants) if not each.is_partition]:
        name = table.name
        stored = await tenants.fetchval(f"select count(*) from {name} where {table.column} = 'a'")
        row = await tenants.fetchval(f"select to_jsonb(its)::text from {name} its where {table.column} = 'a' limit 1")
        anew = f"insert into {name} select * from jsonb_populate_record(null::{name}, $1::text::jsonb)"
        assert stored, name
        async with _service(tenants, "a"):
            assert await _count(tenants, f"select from {name}") == stored, name
            assert await _count(tenants, f"update {name} set {table.column} = {table.column}") == stored, name
            assert await _count(tenants, f"delete from {name}") == stored, name
            assert not await _refused(tenants, anew, row), name


def _renamed(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row that is not there yet: of the same organisation, with other names of its own."""
    kept = {"organization_id", "state", "status", "kind", "auth_mode", "delivery", "type", "deed", "policy", "settings"}
    return {
        name: f"{value} anew" if isinstance(value, str) and name not in kept and not value.startswith("\\x") else value
        for name, value in values.items()
    }


async def test_only_who_is_there_is_told_and_a_history_handed_over_as_the_owner(owner: asyncpg.Connection) -> None:
    """Policies do not hold the owner back. Everything else that the service calls runs as the service."""
    functions = await owner.fetch(
        "select proname, prosecdef, proconfig from pg_proc where pronamespace = 'public'::regnamespace"
        " and has_function_privilege($1, oid, 'EXECUTE')",
        SERVICE_ROLE,
    )
    assert {name for name, is_owners, _ in functions if is_owners} == _AS_THE_OWNER
    paths = [setting for _, is_owners, settings in functions if is_owners for setting in settings if "_path" in setting]
    assert paths == ["search_path=pg_catalog, public, pg_temp"] * len(_AS_THE_OWNER)
    assert len(functions) > len(_AS_THE_OWNER)


async def test_what_runs_as_the_owner_takes_no_temporary_table_for_the_owners(owner: asyncpg.Connection) -> None:
    """As a service that may make temporary tables, which `cairn migrate` takes from it where it can."""
    await owner.execute("insert into organizations values ('org_1', 'acme', 'Acme', 1)")
    async with owner.transaction():
        await owner.execute("create temporary table ran_by (who text); grant insert on ran_by to cairn_service")
        await owner.execute(
            "create function pg_temp.evil() returns text language plpgsql as"
            " $$ begin insert into pg_temp.ran_by values (current_user); return 'org_evil'; end $$;"
            " create temporary view organizations as select pg_temp.evil() as id, 'acme'::text as slug;"
            " grant select on pg_temp.organizations to cairn_service"
        )
        await owner.execute("set local role cairn_service")
        assert await owner.fetchval("select organization_of('acme')") == "org_1"
        assert await owner.fetch("select * from organization_ids()") == [("org_1",)]
        await owner.execute("set local role none")
        assert await owner.fetch("select * from ran_by") == []
        await owner.execute("drop view pg_temp.organizations; drop function pg_temp.evil(); drop table ran_by")


# ------------------------------------------------------------------------------ what the service sends names its own


@pytest.fixture
async def watched(walk: Walk) -> AsyncIterator[Walk]:
    """The world, where whoever comes to a table without naming an organisation is told so."""
    owner = walk.tables.owner
    await owner.execute("""
        create function named_organization() returns text language plpgsql stable as $$ begin
            if coalesce(current_setting('app.organization_id', true), '') = '' then
                raise exception 'no organisation is named';
            end if;
            return current_setting('app.organization_id');
        end $$""")
    tables = [each for each in await _tables(owner) if not each.is_partition]
    for each in tables:
        await owner.execute(f"alter policy organization on {each.name} using ({each.column} = named_organization())")
    await walk.tables.restore()
    yield walk
    for each in tables:
        setting = "current_setting('app.organization_id', true)"
        await owner.execute(f"alter policy organization on {each.name} using ({each.column} = {setting})")
    await owner.execute("drop function named_organization()")
    await walk.tables.restore()


async def _creates_organization(at: Stores, n: Names) -> str:
    await at.world.tenants.create_organization(OrganizationId("org_new"), "fresh", "Fresh", Millis(1))
    return "created"


# Those that name no tenant, too.
_OTHERS: Mapping[str, Probe] = {
    "ServerDirectory.server_at": lambda at, n: at.world.servers.server_at(slug=n.slug, custom_domain=None),
    "TenantStore.create_organization": _creates_organization,
    "TenantStore.organization": lambda at, n: at.world.tenants.organization(n.organization),
    "TenantStore.server": lambda at, n: at.world.tenants.server(n.slug),
    "TenantStore.servers": lambda at, n: at.world.tenants.servers(None),
}


@pytest.mark.promise("tenant.isolation")
async def test_no_statement_of_the_service_names_no_organisation(stores: Stores, watched: Walk) -> None:
    with pytest.raises(asyncpg.RaiseError, match="no organisation is named"):
        async with stores.database.hot() as connection:
            await connection.fetch("select from walkthroughs where organization_id = 'a'")
    everything = [(name, each) for name, them in PROBES.items() for each in them] + list(_OTHERS.items())
    for name, probe in everything:
        told = await watched.ends(lambda n, probe=probe: probe(stores, n), watched.home)  # type: ignore[misc]
        assert "no organisation is named" not in told.answer, name
        assert "Error" not in told.answer, (name, told.answer)
