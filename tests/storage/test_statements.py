"""How many statements a call takes: a constant number, whatever the number of steps and walkthroughs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx2
import pytest
from litestar.types import ASGIApp

from adapters.postgres.connections import Access, Database
from application.learning import Learning
from domain.progress import Outcome
from domain.tenancy import AuthMode, Caller, OrganizationId
from entrypoints.container import Storage
from entrypoints.http.app import application
from entrypoints.http.load import Load
from entrypoints.settings import Settings
from tests.serving.conftest import call
from tests.worlds import World, on_postgres

# What no call does each time: begin, the organisation, the statement, commit.
FRAMED = 4


class CountingDatabase(Database):
    """Counts every statement that is sent on the hot pool, and takes a transaction for one more."""

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
                await asyncio.sleep(0)  # asyncpg tells its loggers in the next turn of the loop
                connection.remove_query_logger(count)

    @asynccontextmanager
    async def transaction(self, organization_id: OrganizationId | None) -> AsyncIterator[Any]:
        self.statements += 1
        async with super().transaction(organization_id) as connection:
            yield connection


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
    lesson = await cost("next", learning.next(caller, first, None, outcome=Outcome.DONE, note=None))
    await cost("next, repeated", learning.next(caller, first, None, outcome=Outcome.DONE, note=None))
    await cost("stuck", learning.next(caller, first, None, outcome=Outcome.STUCK, note="why"))
    await cost("review", learning.review(caller, key, 1))
    await cost("list, begun", learning.list(caller))
    await cost("status", learning.status(caller, None))
    elsewhere = Learning(world.catalogue, world.library, world.progress, world.clock)
    second = str(lesson.progress.handle())
    await cost("next, elsewhere", elsewhere.next(caller, second, None, outcome=Outcome.DONE, note=None))
    return costs


@pytest.mark.promise("statements.constant")
async def test_a_call_takes_as_many_statements_for_500_steps_as_for_three(counted: CountingDatabase) -> None:
    world = on_postgres(counted)
    server = await world.server()
    caller = await world.caller(server)
    await world.publish("a", "b", "c", key="small", title="Small")
    await world.publish(*(f"s{number}" for number in range(500)), key="large", title="Large")
    small = await _cost_of_each_call(world, counted, caller, "small")
    large = await _cost_of_each_call(world, counted, caller, "large")
    assert small == large
    assert small == {
        "list, not begun": 1,
        "first select": 2 + 2,  # where the caller stands, the commit; the outline and the step (once in a process)
        "select": 2,
        "next": 1,  # where the caller stands is remembered since the select
        "next, repeated": 1,
        "stuck": 2 + FRAMED,  # and whether it is noted already
        "review": 1,
        "list, begun": 1,
        "status": 1,
        "next, elsewhere": 2,
    }


async def test_a_list_takes_one_statement_however_many_walkthroughs_were_begun(counted: CountingDatabase) -> None:
    world = on_postgres(counted)
    server = await world.server()
    caller = await world.caller(server)
    for number in range(12):
        await world.publish("a", "b", key=f"w{number}", title=f"W{number}")
        await world.learning.select(caller, f"w{number}", restart=False, to_latest=False)
    fresh = on_postgres(counted)  # another process: no content in memory yet
    for expected in (1 + 1, 1):  # the outlines
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
    assert counted.statements - before == 5 + 2 + 5


# ---------------------------------------------------------------------------------------------- whoever calls


@dataclass(frozen=True)
class LookedAt(Storage):
    """The storage of an application whose database a test looks at."""

    looked_at: Database

    def database(self) -> Database:
        return self.looked_at


@asynccontextmanager
async def serving_here(owner_url: str, database: Database, load: Load | None = None) -> AsyncIterator[ASGIApp]:
    """The whole application, in this process and on this database, which opens and closes with it."""
    storage = LookedAt(owner_url, Access(owner_url, assume_role=True), None, None, database)
    # Calls are counted as ever, but one person may make as many as a test does.
    app = application(storage, Settings(database_url=owner_url, limits="calls_per_user=6000/60"), load)
    heard, told = asyncio.Queue[Any](), asyncio.Queue[Any]()
    running = asyncio.create_task(app({"type": "lifespan", "state": {}}, heard.get, told.put))  # type: ignore[arg-type,typeddict-item]
    await heard.put({"type": "lifespan.startup"})
    assert (await told.get())["type"] == "lifespan.startup.complete"
    yield app
    await heard.put({"type": "lifespan.shutdown"})
    await running


@pytest.fixture
async def served(owner_url: str, owner: asyncpg.Connection) -> AsyncIterator[tuple[CountingDatabase, ASGIApp]]:
    """The whole application, and what counts its statements."""
    counting = CountingDatabase(Access(owner_url, assume_role=True))
    async with serving_here(owner_url, counting) as app:
        yield counting, app


@pytest.mark.promise("statements.constant")
async def test_a_call_with_a_token_or_of_a_visitor_takes_one_statement_more_than_one_without(
    served: tuple[CountingDatabase, ASGIApp],
) -> None:
    """The token is found with its person, and so is the visitor; who they are costs nothing else."""
    counting, app = served
    world = on_postgres(counting)
    server = await world.server(auth_mode=AuthMode.ANONYMOUS)
    await world.publish("a", "b")
    token = await world.identity.create_token(server.key, "ada@example.com")
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://guides.localhost") as http:  # type: ignore[arg-type]
        visitor = (await http.post("/")).headers["location"].removeprefix("/v/")

        async def cost(tool: str, path: str = "/mcp", **headers: str) -> int:
            before = counting.statements
            answer = await http.post(path, json=call(tool, walkthrough="tour"), headers=headers)
            assert not answer.json()["result"]["isError"], answer.text
            return counting.statements - before

        bearer = {"authorization": f"Bearer {token}"}
        costs = {
            "without": await cost("list_walkthroughs"),
            "with a token": await cost("list_walkthroughs", **bearer),
            "a visitor": await cost("list_walkthroughs", f"/v/{visitor}/mcp"),
        }
        assert costs == {"without": 2, "with a token": 3, "a visitor": 3}  # the list, and the log
        begun = [
            await cost("select_walkthrough", path, **headers)
            for _ in range(2)
            for path, headers in (("/mcp", bearer), (f"/v/{visitor}/mcp", {}))
        ]
        assert begun[2:] == [3, 3]  # who it is, where they stand, and the commit
