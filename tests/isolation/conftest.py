"""Two organisations, and two servers of one of them, in a world that every test of a module finds as it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from adapters.postgres.connections import Database
from tests.isolation.tenants import Stores, nobodys, settle
from tests.isolation.walk import NotingAccess, Statements, Tables, Walk


@pytest.fixture(scope="module")
async def at(owner_url: str) -> AsyncIterator[tuple[Stores, Walk]]:
    owner = await asyncpg.connect(owner_url)
    statements = Statements()
    with statements.noted():
        async with Database(NotingAccess(owner_url, True, statements.connection_class)) as database:
            stores = Stores(database)
            # Names of one length, so that all that is told of them is as long, too.
            foreign, home = await settle(stores, "omega"), await settle(stores, "alpha")
            sibling = await settle(stores, "alpha", "annex")
            tables = Tables(owner)
            await tables.keep()
            yield stores, Walk(tables, statements, home, foreign, sibling, nobodys(home))
    await owner.close()


@pytest.fixture
def stores(at: tuple[Stores, Walk]) -> Stores:
    return at[0]


@pytest.fixture
def walk(at: tuple[Stores, Walk]) -> Walk:
    return at[1]


@pytest.fixture(scope="module")
def first_wall_alone(owner_url: str) -> None:
    """The statements of this module's service are held back by nothing but themselves."""

    async def take_second_down() -> None:
        owner = await asyncpg.connect(owner_url)
        for (table,) in await owner.fetch("select oid::regclass::text from pg_class where relrowsecurity"):
            await owner.execute(f"alter table {table} disable row level security")
        await owner.close()

    asyncio.run(take_second_down())
