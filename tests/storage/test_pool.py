"""The pool under the hot statements: who gets a connection, in which order, and what becomes of each in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.postgres.connections import Access, Database
from adapters.postgres.pool import ConnectionPool
from domain.errors import TemporarilyUnavailable
from tests.patience import PATIENCE_SECONDS

_LONG = 10.0  # longer than it takes. Where somebody waits for what never comes, a test ends with it
_POOLED = """
select pid from pg_stat_activity where application_name in ('pooled', 'cairn') and datname = current_database()
"""


@pytest.fixture
async def make(owner_url: str, owner: asyncpg.Connection) -> AsyncIterator[Callable[..., ConnectionPool]]:
    """Makes a pool on this module's database, of a size. All are closed at the end."""
    made: list[ConnectionPool] = []

    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(owner_url, server_settings={"application_name": "pooled"})

    def pool(size: int, connect: Callable[[], Awaitable[Any]] = connect, **given: Any) -> ConnectionPool:
        made.append(ConnectionPool(connect, size, **given))
        return made[-1]

    yield pool
    for each in made:
        await each.close()
    await _until_left(owner)


async def _until_left(owner: asyncpg.Connection, *pids: int) -> None:
    """Until the server has these of the pool's connections, and no others."""
    async with asyncio.timeout(_LONG):
        while {row["pid"] for row in await owner.fetch(_POOLED)} != set(pids):
            pass


async def _end(owner: asyncpg.Connection, connection: asyncpg.Connection) -> None:
    """Has the server end a connection, and waits until its client knows."""
    await owner.execute("select pg_terminate_backend($1)", connection.get_server_pid())
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not connection.is_closed():
            await owner.execute("select")


def _takes(pool: ConnectionPool, order: list[Any], name: Any) -> asyncio.Task[Any]:
    async def take() -> Any:
        connection = await pool.take(_LONG)
        order.append(name)
        return connection

    return asyncio.create_task(take())


async def _turns(count: int = 5) -> None:
    """Lets everything go on that can."""
    for _ in range(count):
        await asyncio.sleep(0)


# ---------------------------------------------------------------------------------------------------- the line


async def test_there_are_at_most_so_many_connections_and_whoever_waits_is_served_in_order(
    make: Callable[..., ConnectionPool], owner: asyncpg.Connection
) -> None:
    pool, order = make(2), []  # type: ignore[var-annotated]
    first, second = await pool.take(_LONG), await pool.take(_LONG)
    waiting = [_takes(pool, order, number) for number in range(3)]
    await _turns()
    assert (order, pool.in_use, pool.free) == ([], 2, 0)
    pool.give_back(second)
    pool.give_back(first)
    await _turns()
    assert (order, await waiting[0], await waiting[1]) == ([0, 1], second, first)
    pool.give_back(first)
    assert await waiting[2] is first
    await _until_left(owner, first.get_server_pid(), second.get_server_pid())
    for each in (first, second):
        pool.give_back(each)
    assert (pool.in_use, pool.free) == (0, 2)


async def test_of_those_that_are_free_the_last_used_is_taken(make: Callable[..., ConnectionPool]) -> None:
    pool = make(2)
    first, second = await pool.take(_LONG), await pool.take(_LONG)
    pool.give_back(second)
    pool.give_back(first)
    assert [await pool.take(_LONG), await pool.take(_LONG)] == [first, second]


async def test_whoever_waits_too_long_is_told_so_and_leaves_no_hole(make: Callable[..., ConnectionPool]) -> None:
    pool = make(1)
    only = await pool.take(_LONG)
    with pytest.raises(TimeoutError):
        await pool.take(0)
    behind = _takes(pool, [], "behind")
    await _turns()
    pool.give_back(only)
    assert await behind is only


async def test_a_turn_that_comes_in_the_moment_of_giving_up_goes_to_the_next(
    make: Callable[..., ConnectionPool],
) -> None:
    pool, order = make(1), []  # type: ignore[var-annotated]
    only = await pool.take(_LONG)
    leaving, behind = _takes(pool, order, "leaving"), _takes(pool, order, "behind")
    await _turns()
    pool.give_back(only)
    leaving.cancel()
    assert await behind is only
    assert (order, leaving.cancelled()) == (["behind"], True)
    leaving = _takes(pool, order, "leaving")
    await _turns()
    pool.give_back(only)
    leaving.cancel()
    await _turns()
    assert (pool.in_use, pool.free) == (0, 1), "and where there is no next, it is free"


# ----------------------------------------------------------------------------------------------- making them


async def test_a_place_whose_connection_cannot_be_made_goes_to_the_next(
    make: Callable[..., ConnectionPool], owner_url: str
) -> None:
    may_fail = asyncio.Event()
    tries = 0

    async def connect() -> asyncpg.Connection:
        nonlocal tries
        tries += 1
        if tries == 1:
            await may_fail.wait()
            raise ConnectionRefusedError
        return await asyncpg.connect(owner_url, server_settings={"application_name": "pooled"})

    pool = make(1, connect)
    first, second = _takes(pool, [], 1), _takes(pool, [], 2)
    await _turns()
    assert (pool.in_use, tries) == (0, 1), "what is being made is not in use yet"
    may_fail.set()
    with pytest.raises(ConnectionRefusedError):
        await first
    pool.give_back(await second)
    assert (pool.in_use, pool.free) == (0, 1)


async def test_whoever_gives_up_while_a_connection_is_made_leaves_neither_it_nor_a_hole(
    make: Callable[..., ConnectionPool], owner_url: str
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.set()
        await reader.read()
        ended.set()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]

        async def connect() -> asyncpg.Connection:
            url = owner_url if begun.is_set() else f"postgresql://cairn@127.0.0.1:{port}/cairn?sslmode=disable"
            return await asyncpg.connect(url, server_settings={"application_name": "pooled"})

        pool = make(1, connect)
        leaving, behind = _takes(pool, [], "leaving"), _takes(pool, [], "behind")
        await begun.wait()
        leaving.cancel()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await ended.wait()
            pool.give_back(await behind)
    assert (pool.in_use, pool.free) == (0, 1)


# ------------------------------------------------------------------------------------------------ those that end


async def test_a_connection_that_has_died_is_not_lent_again(
    make: Callable[..., ConnectionPool], owner: asyncpg.Connection
) -> None:
    pool = make(1)
    dead = await pool.take(_LONG)
    pool.give_back(dead)
    await _end(owner, dead)
    at_rest = await pool.take(_LONG)
    assert await at_rest.fetchval("select 1") == 1
    await _end(owner, at_rest)
    behind = _takes(pool, [], "behind")
    await _turns()
    pool.give_back(at_rest)
    after = await behind
    assert await after.fetchval("select 1") == 1
    await _until_left(owner, after.get_server_pid())
    pool.give_back(after)
    assert (pool.in_use, pool.free) == (0, 1)


async def test_a_connection_that_dies_on_the_way_from_hand_to_hand_is_replaced(
    make: Callable[..., ConnectionPool], owner: asyncpg.Connection
) -> None:
    pool = make(1)
    only = await pool.take(_LONG)
    behind = _takes(pool, [], "behind")
    await _turns()
    pool.give_back(only)
    only.terminate()
    after = await behind
    assert after is not only
    assert await after.fetchval("select 1") == 1
    await _until_left(owner, after.get_server_pid())


async def test_those_that_have_rested_for_long_are_ended_before_one_is_lent(
    make: Callable[..., ConnectionPool], owner: asyncpg.Connection
) -> None:
    now = 0.0
    pool = make(3, now=lambda: now)
    lent = [await pool.take(_LONG) for _ in range(3)]
    for each in lent:
        pool.give_back(each)
    now = 300.0
    assert await pool.take(_LONG) is lent[2]
    now = 301.0
    pool.give_back(lent[2])
    assert (pool.in_use, pool.free) == (0, 1), "the two that nobody needed are gone"
    now = 602.0
    new = await pool.take(_LONG)
    await _until_left(owner, new.get_server_pid())
    assert new not in lent


async def test_a_pool_that_is_closed_lends_nothing_and_ends_what_comes_back(
    make: Callable[..., ConnectionPool], owner: asyncpg.Connection
) -> None:
    pool = make(2)
    lent, handed_on = await pool.take(_LONG), await pool.take(_LONG)
    leaving = _takes(pool, [], "leaving")
    await _turns()
    pool.give_back(handed_on)  # to somebody who gives up in that moment
    leaving.cancel()
    await pool.close()
    await _until_left(owner, lent.get_server_pid())
    with pytest.raises(asyncpg.InterfaceError):
        await pool.take(_LONG)
    assert await lent.fetchval("select 1") == 1, "whoever has one may end what they do"
    pool.give_back(lent)
    await _until_left(owner)
    assert (pool.in_use, pool.free) == (0, 0)


async def test_whoever_waits_while_the_pool_is_closed_gets_nothing(
    make: Callable[..., ConnectionPool], owner: asyncpg.Connection
) -> None:
    pool = make(1)
    lent = await pool.take(_LONG)
    waiting = [_takes(pool, [], number) for number in range(2)]
    await _turns()
    await pool.close()
    pool.give_back(lent)
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in told] == [asyncpg.InterfaceError] * 2
    await _until_left(owner)
    assert pool.in_use == 0


# ------------------------------------------------------------------------------------------ statements on them


@pytest.fixture
async def single(owner_url: str, owner: asyncpg.Connection) -> AsyncIterator[Database]:
    """Pools of one connection each, on whose server a statement may take as long as it likes."""
    async with Database(Access(owner_url), pool_size=1) as opened:
        yield opened


async def _pid(database: Database) -> int:
    async with database.hot() as connection:
        return int(await connection.fetchval("select pg_backend_pid()"))


@pytest.mark.parametrize("by", ["its caller", "its time"])
async def test_a_statement_that_is_given_up_ends_with_its_connection(
    single: Database, owner: asyncpg.Connection, by: str
) -> None:
    before = await _pid(single)

    async def rest() -> None:
        async with single.hot() as connection:
            await connection.execute("select pg_sleep(600)", timeout=0.3 if by == "its time" else None)

    resting = asyncio.create_task(rest())
    if by == "its caller":
        busy = "select state = 'active' from pg_stat_activity where pid = $1"
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await owner.fetchval(busy, before):
                pass
        resting.cancel()
    with pytest.raises(asyncio.CancelledError if by == "its caller" else TemporarilyUnavailable):
        await resting
    await _until_left(owner)
    assert single.connections()["calls"] == (0, 0)
    after = await _pid(single)
    assert after != before
    await _until_left(owner, after)


async def test_what_the_database_itself_refuses_costs_no_connection(
    single: Database, owner: asyncpg.Connection
) -> None:
    before = await _pid(single)
    with pytest.raises(asyncpg.UniqueViolationError):
        async with single.hot() as connection:
            await connection.execute("insert into organizations values ('o', 'o', 'O', 1), ('o', 'o', 'O', 1)")
    with pytest.raises(TemporarilyUnavailable) as refused:
        async with single.hot() as connection:  # of the two, neither stays
            await connection.execute("set statement_timeout = 10; select pg_sleep(600)")
    assert isinstance(refused.value.__cause__, asyncpg.QueryCanceledError)
    assert single.connections()["calls"] == (0, 1)
    assert await _pid(single) == before


async def test_a_connection_that_is_ended_under_a_statement_is_not_lent_again(
    single: Database, owner: asyncpg.Connection
) -> None:
    before = await _pid(single)
    with pytest.raises(TemporarilyUnavailable):
        async with single.hot() as connection:
            await connection.execute("select pg_terminate_backend(pg_backend_pid())")
    assert single.connections()["calls"] == (0, 0)
    assert await _pid(single) != before


# -------------------------------------------------------------------------------------------- in whatever order


@dataclass
class _Line:
    """What a connection is to the pool."""

    is_open: bool = True

    def is_closed(self) -> bool:
        return not self.is_open

    def terminate(self) -> None:
        self.is_open = False

    async def close(self, *, timeout: float) -> None:  # noqa: ASYNC109  # as asyncpg has it
        try:
            await asyncio.sleep(0)
        finally:
            self.is_open = False


@dataclass
class _Server:
    """Makes connections, each in some turns of the loop and some of them not; knows how many there are."""

    fails: list[bool]
    lines: list[_Line] = field(default_factory=list)
    making: int = 0

    async def connect(self) -> Any:
        self.making += 1
        try:
            await asyncio.sleep(0)
        finally:
            self.making -= 1
        if self.fails and self.fails.pop():
            raise ConnectionRefusedError
        self.lines.append(_Line())
        return self.lines[-1]

    @property
    def open(self) -> int:
        return sum(line.is_open for line in self.lines)


@dataclass(frozen=True)
class _Visit:
    """Somebody who takes a connection, keeps it for some turns of the loop, and is through with it in some way."""

    comes_at: int
    stays: int
    leaves: str
    is_cancelled_at: int | None


_VISITS = st.builds(
    _Visit,
    comes_at=st.integers(0, 8),
    stays=st.integers(0, 4),
    leaves=st.sampled_from(["given back", "thrown away", "dead"]),
    is_cancelled_at=st.none() | st.integers(0, 16),
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 3), st.lists(_VISITS, max_size=8), st.lists(st.booleans(), max_size=4))
def test_whatever_happens_in_whatever_order_places_add_up_and_nobody_waits_for_ever(
    size: int, visits: list[_Visit], fails: list[bool]
) -> None:
    asyncio.run(_visited(size, visits, fails))


async def _visited(size: int, visits: list[_Visit], fails: list[bool]) -> None:
    server = _Server(fails)
    pool = ConnectionPool(server.connect, size)
    holding = 0

    async def visit(how: _Visit) -> None:
        nonlocal holding
        for _ in range(how.comes_at):
            await asyncio.sleep(0)
        line: Any = await pool.take(_LONG)
        assert not line.is_closed()
        holding += 1
        try:
            for _ in range(how.stays):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            holding -= 1
            await pool.throw_away(line)
            raise
        holding -= 1
        if how.leaves == "thrown away":
            await pool.throw_away(line)
            return
        line.is_open = how.leaves != "dead"
        pool.give_back(line)

    tasks = [asyncio.create_task(visit(how)) for how in visits]
    for turn in range(200):
        for how, task in zip(visits, tasks, strict=True):
            if how.is_cancelled_at == turn:
                task.cancel()
        await asyncio.sleep(0)
        assert server.open + server.making <= size
        assert holding <= pool.in_use <= size
        assert pool.in_use + pool.free <= size
    assert all(task.done() for task in tasks), "somebody waits for ever"
    for how, task in zip(visits, tasks, strict=True):
        if not task.cancelled():
            assert task.exception() is None or isinstance(task.exception(), ConnectionRefusedError), how
    assert (pool.in_use, pool.free) == (0, server.open)
    await pool.close()
    assert server.open == 0


async def test_a_look_up_is_given_up_after_its_own_time(single: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.postgres.connections._STATEMENT_TIMEOUT_SECONDS", 2 * PATIENCE_SECONDS)
    monkeypatch.setattr("adapters.postgres.connections.LOOKUP_SECONDS", 0.1)
    await _pid(single)
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(TemporarilyUnavailable) as refused:
            await single.look_up("select pg_sleep($1)", 600)
    assert isinstance(refused.value.__cause__, TimeoutError)
    assert single.connections()["calls"] == (0, 0)
