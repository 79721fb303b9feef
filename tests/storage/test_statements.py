"""How many statements a call takes: a constant number, whatever the number of steps and walkthroughs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from adapters.postgres.connections import Access, Database
from domain.progress import Outcome
from domain.tenancy import Caller
from tests.worlds import World, on_postgres


class CountingDatabase(Database):
    """Counts every statement that is sent on the hot pool."""

    statements = 0

    @asynccontextmanager
    async def hot(self) -> AsyncIterator[Any]:
        async with super().hot() as connection:

            def count(_: object) -> None:
                self.statements += 1

            connection.add_query_logger(count)
            try:
                yield connection
            finally:
                connection.remove_query_logger(count)


@pytest.fixture
async def counted(owner_url: str, owner: asyncpg.Connection) -> AsyncIterator[CountingDatabase]:
    async with CountingDatabase(Access(owner_url, assume_role=True)) as opened:
        yield opened


async def _cost_of_each_call(world: World, counted: CountingDatabase, caller: Caller, key: str) -> dict[str, int]:
    costs = {}

    async def cost(name: str, call: Any) -> Any:
        before = counted.statements
        answer = await call
        costs[name] = counted.statements - before
        return answer

    learning = world.learning
    await cost("list, not begun", learning.list(caller))
    lesson = await cost("first select", learning.select(caller, key, restart=False, to_latest=False))
    first = str(lesson.progress.handle())
    await cost("select", learning.select(caller, key, restart=False, to_latest=False))
    await cost("next", learning.next(caller, first, None, outcome=Outcome.DONE, note=None))
    await cost("next, repeated", learning.next(caller, first, None, outcome=Outcome.DONE, note=None))
    await cost("stuck", learning.next(caller, first, None, outcome=Outcome.STUCK, note="why"))
    await cost("review", learning.review(caller, key, 1))
    await cost("list, begun", learning.list(caller))
    await cost("status", learning.status(caller, None))
    return costs


@pytest.mark.promise("statements.constant")
async def test_a_call_takes_as_many_statements_for_500_steps_as_for_two(counted: CountingDatabase) -> None:
    world = on_postgres(counted)
    server = await world.server()
    caller = await world.caller(server)
    await world.publish("a", "b", key="small", title="Small")
    await world.publish(*(f"s{number}" for number in range(500)), key="large", title="Large")
    small = await _cost_of_each_call(world, counted, caller, "small")
    large = await _cost_of_each_call(world, counted, caller, "large")
    assert small == large
    assert small == {
        "list, not begun": 1,
        "first select": 3,  # where the caller stands, the content (once in a process), the commit
        "select": 2,
        "next": 2,
        "next, repeated": 1,
        "stuck": 3,  # and whether it is noted already
        "review": 1,
        "list, begun": 1,
        "status": 1,
    }


async def test_a_list_takes_one_statement_however_many_walkthroughs_were_begun(counted: CountingDatabase) -> None:
    world = on_postgres(counted)
    server = await world.server()
    caller = await world.caller(server)
    for number in range(12):
        await world.publish("a", "b", key=f"w{number}", title=f"W{number}")
        await world.learning.select(caller, f"w{number}", restart=False, to_latest=False)
    fresh = on_postgres(counted)  # another process: no content in memory yet
    for expected in (2, 1):
        before = counted.statements
        assert len(await fresh.learning.list(caller)) == 12
        assert counted.statements - before == expected


async def test_content_that_many_ask_for_at_once_is_loaded_once(counted: CountingDatabase) -> None:
    world = on_postgres(counted)
    server = await world.server()
    await world.publish("a", "b")
    callers = [await world.caller(server, f"p{number}@example.com") for number in range(5)]
    before = counted.statements
    await asyncio.gather(*(world.learning.select(each, "tour", restart=False, to_latest=False) for each in callers))
    assert counted.statements - before == 5 + 1 + 5
