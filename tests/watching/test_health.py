"""Whether a process lives, and whether it should be sent requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import asyncpg
import httpx2
import pytest

from adapters.postgres import schema
from adapters.postgres.connections import Access, Database
from entrypoints.http.watch import Readiness
from tests.processes import Serving
from tests.watching.conftest import at, lines, wait_until

_NOT_SO_SLOW_SECONDS = 5  # of an answer that is to be there within one, on a machine that does much else


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=10) as client:
        yield client


async def _ask(http: httpx2.AsyncClient, service: Serving, path: str, **headers: str) -> tuple[int, object]:
    answer = await http.get(at(service, path), headers=headers)
    return answer.status_code, answer.json()


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3:8000", "nobody.example.com", "not a host"])
async def test_health_is_told_under_any_host(http: httpx2.AsyncClient, service: Serving, path: str, host: str) -> None:
    assert await _ask(http, service, path, host=host) == (200, {"status": "ok"})


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_health_is_read_and_nothing_else(http: httpx2.AsyncClient, service: Serving, path: str) -> None:
    head = await http.head(at(service, path))
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "15")
    posted = await http.post(at(service, path))
    assert (posted.status_code, posted.headers["allow"]) == (405, "GET, HEAD")


async def test_a_process_is_not_ready_on_an_older_schema_but_lives(
    http: httpx2.AsyncClient, service: Serving, owner: asyncpg.Connection
) -> None:
    head = await owner.fetchval("select version_num from alembic_version")
    before = len(lines(service))

    async def until_told(status: int, said: object) -> None:
        async with asyncio.timeout(_NOT_SO_SLOW_SECONDS):
            while (told := await _ask(http, service, "/readyz")) != (status, said):
                assert told in [(200, {"status": "ok"}), (503, {"status": "failing", "failing": "schema"})]
                await asyncio.sleep(0.05)

    await until_told(200, {"status": "ok"})
    await owner.execute("update alembic_version set version_num = '0001'")
    try:
        await until_told(503, {"status": "failing", "failing": "schema"})
        assert await _ask(http, service, "/livez") == (200, {"status": "ok"})
    finally:
        await owner.execute("update alembic_version set version_num = $1", head)
    await until_told(200, {"status": "ok"})
    wait_until(lambda: bool(lines(service, "ready again")))
    told = [(line["event"], line.get("failing")) for line in lines(service)[before:]]
    assert told == [("not ready", "schema"), ("ready again", None)], "only the turns are logged"


async def test_a_process_goes_on_while_a_newer_release_has_migrated(
    http: httpx2.AsyncClient, service: Serving, owner: asyncpg.Connection, database: Database
) -> None:
    head = await owner.fetchval("select version_num from alembic_version")
    await owner.execute("update alembic_version set version_num = '9999_not_ours'")
    try:
        assert await database.trouble(schema.can_go_on) is None
    finally:
        await owner.execute("update alembic_version set version_num = $1", head)


async def test_a_database_without_a_schema_is_told(superuser_url: str) -> None:
    async with Database(Access(superuser_url)) as database:
        assert await database.trouble(schema.can_go_on) == "schema"


async def test_a_database_that_is_away_is_told() -> None:
    async with Database(Access("postgresql://cairn@127.0.0.1:1/cairn")) as database:
        assert await database.trouble(schema.can_go_on) == "database"


async def test_a_database_that_does_not_answer_is_told_within_a_second(
    http: httpx2.AsyncClient, service: Serving, owner: asyncpg.Connection
) -> None:
    async with owner.transaction():
        await owner.execute("lock table alembic_version in access exclusive mode")
        async with asyncio.timeout(_NOT_SO_SLOW_SECONDS):
            # What was found just before is still good.
            while (told := await _ask(http, service, "/readyz"))[0] == 200:  # noqa: ASYNC110  # another process
                await asyncio.sleep(0.05)
            assert told == (503, {"status": "failing", "failing": "database"})


async def test_a_pool_that_is_used_up_is_told(owner_url: str) -> None:
    async with Database(Access(owner_url, assume_role=True), pool_size=1) as database:
        assert database.connections() == {"calls": (0, 0), "rest": (0, 0)}
        async with database.hot():
            assert database.connections()["calls"] == (1, 0)
            assert await database.trouble(schema.can_go_on) == "pool"
        assert await database.trouble(schema.can_go_on) is None
        async with database.transaction(None):
            assert database.connections() == {"calls": (0, 1), "rest": (1, 0)}


async def test_however_many_ask_one_look_is_under_way() -> None:
    looks = 0
    looking, let_go = asyncio.Event(), asyncio.Event()

    async def look() -> str | None:
        nonlocal looks
        looks += 1
        looking.set()
        await let_go.wait()
        return None

    readiness = Readiness(look, lambda: False)
    asking = [asyncio.create_task(readiness.trouble()) for _ in range(50)]
    await looking.wait()
    let_go.set()
    assert await asyncio.gather(*asking) == [None] * 50
    assert await readiness.trouble() is None, "what was found just now is still good"
    assert looks == 1


async def test_a_look_that_does_not_end_is_not_waited_for() -> None:
    began = time.monotonic()
    readiness = Readiness(asyncio.Event().wait, lambda: False)  # type: ignore[arg-type]
    assert await readiness.trouble() == "database"
    assert time.monotonic() - began < _NOT_SO_SLOW_SECONDS


async def test_a_look_that_fails_is_trouble() -> None:
    async def look() -> str | None:
        raise ValueError

    assert await Readiness(look, lambda: False).trouble() == "database"


async def test_a_process_that_is_told_to_stop_is_not_ready_at_once() -> None:
    looking = asyncio.Event()

    async def look() -> str | None:
        looking.set()
        await asyncio.sleep(0)
        return None

    is_stopping = False
    readiness = Readiness(look, lambda: is_stopping)
    asking = asyncio.create_task(readiness.trouble())
    await looking.wait()
    is_stopping = True
    assert await asking == "stopping", "not even to those who asked before"
    assert await readiness.trouble() == "stopping"
