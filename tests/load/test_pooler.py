"""PgBouncer in transaction mode before the database: each transaction may get another of its few connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx2
import pytest

from adapters.embedded_postgres import EmbeddedPostgres
from adapters.postgres.connections import SERVICE_ROLE, Access, Database
from adapters.system import RandomIds, SystemClock
from tests.load.balancer import Balancer
from tests.pgbouncer import SERVER_CONNECTIONS, PgBouncer, pgbouncer_serving
from tests.processes import cairn, serving
from tests.torture.faults import Row, Stage
from tests.torture.run import HEADING, Template, make_template, seed_of_run, torture
from tests.worlds import on_postgres


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return asyncio.run(make_template(tmp_path_factory.mktemp("pooled") / "data"))


@pytest.fixture(scope="module")
def postgres(template: Template) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(template.data_dir) as server:
        yield server


@pytest.fixture(scope="module")
def pooler(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PgBouncer]:
    """Before a database that has been migrated through it, for a service with a login of its own."""
    folder = tmp_path_factory.mktemp("pgbouncer")
    with pgbouncer_serving(folder, postgres.socket_dir, "postgres", SERVICE_ROLE) as server:
        migrated = cairn("migrate", **_urls(server))
        assert migrated.returncode == 0, migrated.stderr
        yield server


def _urls(pooler: PgBouncer) -> dict[str, str]:
    return {"CAIRN_DATABASE_URL": pooler.url(SERVICE_ROLE), "CAIRN_OWNER_DATABASE_URL": pooler.url("postgres")}


@pytest.mark.promise("crash.nothing-lost", "serve.workers")
async def test_two_processes_behind_one_address_and_few_connections_lose_and_double_nothing(
    template: Template, postgres: EmbeddedPostgres, pooler: PgBouncer, tmp_path: Path
) -> None:
    """32 people in both eras, whose connections go to either process in turn, while PgBouncer is killed and comes back
    with empty hands."""
    seen: list[int] = []
    direct = await asyncpg.connect(postgres.dsn())

    @asynccontextmanager
    async def pooler_killed(stage: Stage) -> AsyncIterator[None]:
        seen.append(await direct.fetchval("select count(*) from pg_stat_activity where usename = $1", SERVICE_ROLE))
        stage.strike()
        pooler.kill()
        yield
        pooler.start()
        stage.proof.append(f"PgBouncer killed, pid {pooler.process.pid} in its place")

    async with Balancer().listening() as balancer, AsyncExitStack() as stack:
        starting = [serving("serve", "--port", "0", **_urls(pooler)) for _ in range(2)]
        first, second = await asyncio.gather(*(asyncio.to_thread(stack.enter_context, each) for each in starting))
        for process in (first, second):
            await balancer.add(process.url)
        # What people sign in with is asked of SQLAlchemy.
        async with httpx2.AsyncClient(timeout=30) as http:
            for process in (first, second):
                url = process.url.replace("/mcp", "/register")
                host = {"host": "acme-guides.localhost"}
                for _ in range(SERVER_CONNECTIONS):
                    answer = await http.post(url, headers=host, json={"redirect_uris": ["http://localhost:1/"]})
                    assert answer.status_code == 201, answer.text
        address = urlsplit(balancer.url)
        stage = Stage(postgres, tmp_path, lambda: first, first, None, (str(address.hostname), address.port or 0))
        report = await torture(Row("PgBouncer killed", pooler_killed), template, stage, seed=seed_of_run())
        print(f"\n{HEADING}\n{report.line()}")
        for process in (first, second):
            assert "walkthrough" in process.output, "one of the two was asked nothing"
    await direct.close()
    assert report.problems == [], f"seed {report.seed}"
    assert seen == [SERVER_CONNECTIONS]


@pytest.mark.promise("tenant.isolation")
async def test_whoever_comes_after_another_organisation_on_one_connection_sees_their_own_and_no_more(
    postgres: EmbeddedPostgres, pooler: PgBouncer
) -> None:
    async with AsyncExitStack() as stack:
        url = pooler.url(SERVICE_ROLE, "alone")
        ours, theirs = [await stack.enter_async_context(Database(Access(url))) for _ in range(2)]
        worlds = [on_postgres(database, clock=SystemClock(), ids=RandomIds()) for database in (ours, theirs)]
        callers = []
        for world, organization in zip(worlds, ("umbrella", "initech"), strict=True):
            server = await world.server(organization, f"{organization}-guides")
            await world.publish("one", title=f"Of {organization}", organization=organization, servers=(server.slug,))
            callers.append(await world.caller(server))
        processes = set()
        for _ in range(3):
            for world, caller, database, title in zip(
                worlds, callers, (ours, theirs), ("Of umbrella", "Of initech"), strict=True
            ):
                assert [each.shown.title for each in await world.catalogue.standings(caller)] == [title]
                async with database.hot() as connection:
                    processes.add(await connection.fetchval("select pg_backend_pid()"))
                    assert await connection.fetchval("select count(*) from walkthroughs") == 0
                async with database.transaction(caller.server.organization_id) as transaction:
                    seen = await transaction.exec_driver_sql("select count(*) from walkthroughs")
                    assert seen.scalar_one() == 1
                    named = await transaction.exec_driver_sql("select count(*) from pg_prepared_statements")
                    assert named.scalar_one() == 0
        assert len(processes) == 1


async def test_without_a_pooler_a_connection_keeps_what_it_has_prepared(postgres: EmbeddedPostgres) -> None:
    async with Database(Access(postgres.dsn(SERVICE_ROLE)), pool_size=1) as database:
        async with database.hot() as connection:
            await connection.fetchval("select 1")
            prepared = await connection.fetch("select statement from pg_prepared_statements where not from_sql")
        assert "select 1" in {row["statement"] for row in prepared}
        async with database.transaction(None) as transaction:
            await transaction.exec_driver_sql("select 2")
            prepared = await transaction.exec_driver_sql("select statement from pg_prepared_statements")
            assert "select 2" in set(prepared.scalars())


@pytest.mark.promise("settings.database-url")
def test_through_a_pooler_one_login_for_everything_is_refused_with_what_to_do(pooler: PgBouncer) -> None:
    refused = cairn("serve", "--port", "0", CAIRN_DATABASE_URL=pooler.url("postgres"))
    assert refused.returncode == 1
    assert refused.stderr == (
        "error: the pooler that CAIRN_DATABASE_URL leads to does not let Cairn change its role or its settings "
        "(unsupported startup parameter: role): give the service a login of its own there, and set "
        "CAIRN_OWNER_DATABASE_URL\n"
    )
