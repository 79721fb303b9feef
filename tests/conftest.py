"""One PostgreSQL for the whole run, a database of its own for each module, and every table empty for each test."""

from __future__ import annotations

import asyncio
import os
import tomllib
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import settings
from sqlalchemy import make_url

from adapters.embedded_postgres import EmbeddedPostgres
from adapters.postgres import connections
from adapters.postgres.connections import Database
from adapters.postgres.schema import migrate
from tests.patience import PATIENCE_SECONDS, Patient

_TEMPLATE = "cairn_template"
_names = count(1)

# However long an example takes: the machine may be busy. What a plugin has chosen before stays so.
settings.register_profile("unhurried", settings.default, deadline=None)
settings.load_profile("unhurried")
# Nor does a look-up in this process, which keeps its own time.
connections.LOOKUP_SECONDS = PATIENCE_SECONDS


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="session")
def superuser_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL to make databases on: the embedded one, or that of CAIRN_TEST_DATABASE_URL."""
    given = os.environ.get("CAIRN_TEST_DATABASE_URL")
    if given:
        yield given
        return
    with EmbeddedPostgres(tmp_path_factory.mktemp("shared-postgres"), durable=False) as server:
        yield server.dsn("postgres", "postgres")


@pytest.fixture(scope="session")
def make_database(superuser_url: str) -> Iterator[Callable[..., str]]:
    """Makes a database, migrated unless `is_empty`, and returns its owner's URL. All are dropped at the end."""
    run = os.getpid()
    made: list[str] = []

    async def on_server(statement: str) -> None:
        connection = await asyncpg.connect(superuser_url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def make(*, is_empty: bool = False) -> str:
        name = f"cairn_test_{run}_{next(_names)}"
        origin = "" if is_empty else f' template "{template}" strategy file_copy'
        asyncio.run(on_server(f'create database "{name}"{origin}'))
        made.append(name)
        return url_of(name)

    def url_of(name: str) -> str:
        return make_url(superuser_url).set(database=name).render_as_string(hide_password=False)

    template = ""
    template_url = make(is_empty=True)
    template = made[0]
    asyncio.run(migrate(template_url))
    yield make
    for name in reversed(made):
        asyncio.run(on_server(f'drop database if exists "{name}" with (force)'))


@pytest.fixture(scope="module")
def owner_url(make_database: Callable[..., str]) -> str:
    """This module's database, as its owner."""
    return make_database()


@pytest.fixture
async def owner(owner_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the owner's; afterwards every table is empty again."""
    connection = await asyncpg.connect(owner_url)
    yield connection
    # Everything belongs to an organisation, and goes with it.
    await connection.execute("delete from organizations")
    await connection.close()


@pytest.fixture
async def database(owner_url: str, owner: asyncpg.Connection) -> AsyncIterator[Database]:
    """The service's pools, working as the role that owns nothing, with more patience than a service has."""
    async with Database(Patient(owner_url, assume_role=True)) as opened:
        yield opened


@pytest.fixture(scope="session")
def content_folder() -> Path:
    """Real documents to test with, outside the project: named by CAIRN_TEST_CONTENT."""
    named = os.environ.get("CAIRN_TEST_CONTENT")
    if not named:
        pytest.skip("CAIRN_TEST_CONTENT names no folder of real documents")
    return Path(named)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the promises that wait for a later area."""
    promises = tomllib.loads((Path(__file__).parent / "promises.toml").read_text())
    pending = [(promise["pending"], id, promise["says"]) for id, promise in promises.items() if "pending" in promise]
    terminalreporter.section("promised, and still to be built")
    for area, id, says in sorted(pending):
        terminalreporter.line(f"{area}: {id}: {says}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """With CAIRN_TEST_NO_SKIPS, a test that is skipped has failed: there, everything it wants can be had."""
    report = yield
    if report.skipped and os.environ.get("CAIRN_TEST_NO_SKIPS") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
    return report
