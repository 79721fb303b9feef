"""The group commit of the call log: how batches form, and what becomes of one that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from adapters.postgres.call_log import PostgresCallLog
from adapters.postgres.connections import Access, Database
from application.learning import AsCall, Lesson
from application.ports import ToolCall
from domain.errors import TemporarilyUnavailable
from domain.progress import Outcome, Told
from domain.tenancy import Caller
from tests.calls import record, stored_calls, tool_call
from tests.patience import Patient
from tests.storage.conftest import until_waited_for
from tests.storage.test_statements import CountingDatabase
from tests.worlds import World, on_postgres


@dataclass(frozen=True, slots=True)
class ImpatientAccess(Access):
    """Waits for a lock only a moment, so that a test need not wait long."""

    def connect_arguments(self) -> Mapping[str, Any]:
        arguments = dict(Access.connect_arguments(self))
        return arguments | {"server_settings": {**arguments["server_settings"], "lock_timeout": "1s"}}


class UnheardDatabase(CountingDatabase):
    """Loses the answer of the first statement: it was carried out, and nobody heard."""

    is_deaf = True

    @asynccontextmanager
    async def hot(self) -> AsyncIterator[Any]:
        async with super().hot() as connection:
            yield connection
            if self.is_deaf:
                self.is_deaf = False
                raise asyncpg.ConnectionDoesNotExistError("the connection was lost")


@pytest.fixture
async def counted(owner_url: str, owner: asyncpg.Connection) -> AsyncIterator[CountingDatabase]:
    async with CountingDatabase(Access(owner_url, assume_role=True)) as opened:
        yield opened


@pytest.fixture
def world(database: Database) -> World:
    return on_postgres(database)


@pytest.fixture
async def here(world: World) -> Caller:
    return Caller((await world.server()).key, None)


@pytest.fixture
async def elsewhere(world: World) -> Caller:
    return Caller((await world.server("globex", "labs")).key, None)


async def _stored_ids(owner: asyncpg.Connection) -> set[str]:
    return {call.id for call in await stored_calls(owner)}


async def _told(log: PostgresCallLog, calls: list[ToolCall]) -> list[type]:
    """What becomes of calls that are recorded in the same moment."""
    told = await asyncio.gather(*(record(log, call) for call in calls), return_exceptions=True)
    return [type(each) for each in told]


_STORED, _REFUSED = type(None), TemporarilyUnavailable


@asynccontextmanager
async def _held(url: str, statement: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that holds what the statement locks, until the end of the block."""
    holder = await asyncpg.connect(url)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute(statement)
    try:
        yield holder
    finally:
        await transaction.rollback()
        await holder.close()


_LOCK_THE_LOG = "lock table tool_calls in exclusive mode"


# ------------------------------------------------------------------------------------------------ batches


async def test_a_call_that_meets_nobody_is_written_at_once_by_one_statement(
    counted: CountingDatabase, here: Caller, owner: asyncpg.Connection
) -> None:
    log = PostgresCallLog(counted)
    for number in (1, 2, 3):
        await record(log, tool_call(here))
        assert counted.statements == number
    assert len(await stored_calls(owner)) == 3


async def test_500_calls_at_once_take_two_statements_whoever_they_are(
    counted: CountingDatabase, here: Caller, elsewhere: Caller, owner: asyncpg.Connection
) -> None:
    log = PostgresCallLog(counted)
    calls = [tool_call(here if number % 2 else elsewhere) for number in range(500)]
    assert await _told(log, calls) == [_STORED] * 500
    assert counted.statements == 2
    assert await _stored_ids(owner) == {call.id for call in calls}


async def test_what_comes_during_a_write_goes_into_the_next_one(
    counted: CountingDatabase, here: Caller, owner: asyncpg.Connection, owner_url: str
) -> None:
    log = PostgresCallLog(counted)
    async with _held(owner_url, _LOCK_THE_LOG) as holder:
        first = asyncio.create_task(record(log, tool_call(here)))
        await until_waited_for(holder, first)
        others = [asyncio.create_task(record(log, tool_call(here))) for _ in range(50)]
        await asyncio.sleep(0)
        assert not any(each.done() for each in (first, *others))
    await asyncio.gather(first, *others)
    assert counted.statements == 2
    assert len(await stored_calls(owner)) == 51


async def test_large_calls_go_in_several_statements(
    counted: CountingDatabase, here: Caller, owner: asyncpg.Connection
) -> None:
    log = PostgresCallLog(counted)
    calls = [tool_call(here, input={"note": "x" * size}) for size in (500_000, 500_000, 2_000_000, 10, 10)]
    assert await _told(log, calls) == [_STORED] * 5
    assert counted.statements == 3
    assert {call.id: len(call.input["note"]) for call in await stored_calls(owner)} == {
        call.id: len(call.input["note"]) for call in calls
    }


async def test_duplicates_within_a_batch_are_stored_once(
    counted: CountingDatabase, here: Caller, owner: asyncpg.Connection
) -> None:
    call, other = tool_call(here), tool_call(here)
    assert await _told(PostgresCallLog(counted), [call, other, call, call]) == [_STORED] * 4
    assert counted.statements == 1
    assert await stored_calls(owner) == [call, other]


# ------------------------------------------------------------------------------------ rows that are refused


@pytest.mark.promise("calls.logged")
@pytest.mark.parametrize(
    "poison",
    [
        {"outcome": "error"},  # without a code, which the table does not take
        {"version": 2**31},  # more than the column holds
        {"tool_name": "a\x00b"},
        {"input": {"x": "a\x00b"}},
        {"input": {"x": "\ud800"}},
    ],
    ids=["check", "range", "NUL", "NUL in the arguments", "surrogate"],
)
async def test_a_row_that_cannot_be_stored_fails_alone(
    counted: CountingDatabase, here: Caller, elsewhere: Caller, owner: asyncpg.Connection, poison: dict[str, Any]
) -> None:
    log = PostgresCallLog(counted)
    calls = [tool_call(here), tool_call(here, **poison), tool_call(here), tool_call(elsewhere)]
    assert await _told(log, calls) == [_STORED, _REFUSED, _STORED, _STORED]
    assert await stored_calls(owner) == [calls[0], calls[2], calls[3]]
    before = counted.statements
    assert await _told(log, calls[:1] + calls[2:]) == [_STORED] * 3
    assert counted.statements - before == 1  # together again


@pytest.mark.promise("calls.logged")
async def test_what_a_call_changes_stays_as_it_was_where_the_call_cannot_be_recorded(
    world: World, owner: asyncpg.Connection
) -> None:
    caller = await world.caller(await world.server())
    await world.publish("one", "two")

    def as_call(lesson: Lesson) -> ToolCall:
        return tool_call(caller, outcome="error")  # without a code, which the table does not take

    async def select(as_call: AsCall | None) -> Lesson:
        return await world.learning.select(caller, "tour", restart=False, to_latest=False, as_call=as_call)

    with pytest.raises(asyncpg.CheckViolationError):
        await select(as_call)
    (standing,) = await world.catalogue.standings(caller)
    assert standing.progress is None
    begun = (await select(None)).progress
    done = (str(begun.handle()), None)
    with pytest.raises(asyncpg.CheckViolationError):
        await world.learning.next(caller, *done, outcome=Outcome.DONE, note=None, as_call=as_call)
    (standing,) = await world.catalogue.standings(caller)
    assert standing.progress == begun
    assert [event.kind for event in await world.progress.events(begun.key)] == ["started"]
    assert await stored_calls(owner) == []


@pytest.mark.parametrize("deleted", ["mcp_servers", "organizations"])
async def test_who_is_led_on_a_server_that_is_being_deleted_holds_up_nobody(
    owner_url: str, owner: asyncpg.Connection, deleted: str
) -> None:
    async with Database(Patient(owner_url, assume_role=True)) as database:
        world = on_postgres(database)
        server = await world.server()
        await world.publish("one", "two")
        ada, bob = await world.caller(server), await world.caller(server, "bob@example.com")
        begun = await world.learning.select(ada, "tour", restart=False, to_latest=False)
        done = (str(begun.progress.handle()), None)
        async with _held(owner_url, f"delete from {deleted}"):
            # Or they would wait for the deletion, which might wait for them, and others for their connections.
            with pytest.raises(TemporarilyUnavailable):
                await world.learning.next(ada, *done, outcome=Outcome.DONE, note=None)
            with pytest.raises(TemporarilyUnavailable):
                await world.learning.select(bob, "tour", restart=False, to_latest=False)
        told = await world.learning.next(ada, *done, outcome=Outcome.DONE, note=None)
        assert told.told is Told.ADVANCED


@pytest.mark.promise("calls.logged")
async def test_calls_of_an_organisation_that_is_deleted_are_refused_and_no_others(
    counted: CountingDatabase, here: Caller, elsewhere: Caller, owner: asyncpg.Connection
) -> None:
    log = PostgresCallLog(counted)
    await owner.execute("delete from organizations where id = $1", elsewhere.server.organization_id)
    calls = [tool_call(here if number % 2 else elsewhere) for number in range(20)]
    assert await _told(log, calls) == [_REFUSED, _STORED] * 10
    assert await _stored_ids(owner) == {call.id for call in calls[1::2]}
    # All together, each organisation together, and the deleted one's row by row.
    assert counted.statements == 1 + 2 + 10


async def test_an_organisation_whose_rows_are_held_up_holds_up_no_other(
    here: Caller, elsewhere: Caller, owner: asyncpg.Connection, owner_url: str
) -> None:
    async with CountingDatabase(ImpatientAccess(owner_url, assume_role=True)) as counted:
        log = PostgresCallLog(counted)
        is_being_deleted = f"select from mcp_servers where id = '{elsewhere.server.server_id}' for update"
        async with _held(owner_url, is_being_deleted):
            stuck = asyncio.create_task(record(log, tool_call(elsewhere)))
            # In the same batch: stored as soon as that has failed, while the stuck one is tried again.
            await record(log, tool_call(here))
            assert not stuck.done()
            # From then on the others are not held up at all, even by new calls of the stuck organisation.
            stuck_too = asyncio.create_task(record(log, tool_call(elsewhere)))
            before = counted.statements
            for _ in range(5):
                await record(log, tool_call(here))
            assert counted.statements - before == 5  # none of them failed with one that is stuck
            assert not stuck.done()
            assert not stuck_too.done()
            with pytest.raises(TemporarilyUnavailable):
                await stuck
        await stuck_too
    assert len(await stored_calls(owner)) == 7


# ---------------------------------------------------------------------------------- attempts that are lost


async def test_an_attempt_whose_end_was_not_heard_is_repeated_and_stored_once(
    here: Caller, elsewhere: Caller, owner: asyncpg.Connection, owner_url: str
) -> None:
    async with UnheardDatabase(Access(owner_url, assume_role=True)) as unheard:
        calls = [tool_call(here), tool_call(here), tool_call(elsewhere)]
        assert await _told(PostgresCallLog(unheard), calls) == [_STORED] * 3
        assert unheard.statements == 3
    assert await stored_calls(owner) == calls


async def test_a_write_whose_backend_is_killed_is_repeated(
    database: Database, here: Caller, owner: asyncpg.Connection, owner_url: str
) -> None:
    log = PostgresCallLog(database)
    async with _held(owner_url, _LOCK_THE_LOG) as holder:
        calls = [tool_call(here), tool_call(here), tool_call(here)]
        waiting = [asyncio.create_task(record(log, call)) for call in calls]
        await until_waited_for(holder, waiting[0])
        killed = await holder.fetchval(
            "select count(pg_terminate_backend(pid)) from pg_locks"
            " where not granted and pg_backend_pid() = any(pg_blocking_pids(pid))"
        )
        assert killed == 1
    await asyncio.gather(*waiting)
    assert await stored_calls(owner) == calls


async def test_while_no_connection_can_be_had_a_batch_is_refused_at_once_and_later_ones_are_stored(
    here: Caller, owner: asyncpg.Connection, owner_url: str
) -> None:
    class AwayDatabase(CountingDatabase):
        is_away = True
        attempts = 0

        @asynccontextmanager
        async def hot(self) -> AsyncIterator[Any]:
            if self.is_away:
                self.attempts += 1
                raise TemporarilyUnavailable from ConnectionRefusedError()
            async with super().hot() as connection:
                yield connection

    async with AwayDatabase(Access(owner_url, assume_role=True)) as away:
        log = PostgresCallLog(away)
        assert await _told(log, [tool_call(here) for _ in range(200)]) == [_REFUSED] * 200
        assert away.attempts == 2  # for all of them
        away.is_away = False
        call = tool_call(here)
        await record(log, call)
    assert await stored_calls(owner) == [call]


async def test_the_database_going_away_in_the_midst_of_rows_ends_the_attempt_for_the_rest(
    here: Caller, owner: asyncpg.Connection, owner_url: str
) -> None:
    class FadingDatabase(CountingDatabase):
        attempts = 0

        @asynccontextmanager
        async def hot(self) -> AsyncIterator[Any]:
            self.attempts += 1
            if self.attempts > 4:
                raise TemporarilyUnavailable from ConnectionRefusedError()
            async with super().hot() as connection:
                yield connection

    async with FadingDatabase(Access(owner_url, assume_role=True)) as fading:
        log = PostgresCallLog(fading)
        calls = [tool_call(here), tool_call(here, outcome="error"), *(tool_call(here) for _ in range(50))]
        assert await _told(log, calls) == [_STORED] + [_REFUSED] * 51
        assert fading.attempts == 5  # twice all together, then two rows, and one for the rest
    assert await stored_calls(owner) == calls[:1]


async def test_a_caller_who_goes_away_during_the_write_takes_nothing_along(
    counted: CountingDatabase, here: Caller, owner: asyncpg.Connection, owner_url: str
) -> None:
    log = PostgresCallLog(counted, places=3)
    calls = [tool_call(here), tool_call(here), tool_call(here)]
    async with _held(owner_url, _LOCK_THE_LOG) as holder:
        writing = asyncio.create_task(record(log, calls[0]))
        await until_waited_for(holder, writing)
        gone, stays = (asyncio.create_task(record(log, call)) for call in calls[1:])
        await asyncio.sleep(0)
        writing.cancel()
        gone.cancel()
        await asyncio.wait([writing, gone])
        with pytest.raises(TemporarilyUnavailable), log.admit():
            pass  # their rows still wait, and keep their places
    await stays
    assert await stored_calls(owner) == calls
    with log.admit(), log.admit(), log.admit():
        pass


async def test_draining_waits_for_the_writes_that_are_under_way_and_for_what_waits_behind_them(
    counted: CountingDatabase, here: Caller, owner: asyncpg.Connection, owner_url: str
) -> None:
    log = PostgresCallLog(counted)
    await log.drain()
    async with _held(owner_url, _LOCK_THE_LOG) as holder:
        first = asyncio.create_task(record(log, tool_call(here)))
        await until_waited_for(holder, first)
        second = asyncio.create_task(record(log, tool_call(here)))
        await asyncio.sleep(0)
        for each in (first, second):
            each.cancel()
        draining = asyncio.create_task(log.drain())
        await asyncio.wait([first, second])
        assert not draining.done()
    await draining
    assert len(await stored_calls(owner)) == 2
