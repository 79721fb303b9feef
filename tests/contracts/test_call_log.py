"""What the call log promises, whichever implementation stands behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.postgres.call_log import PostgresCallLog
from adapters.postgres.connections import Access, Database
from application.learning import AsCall, Lesson
from application.ports import CallLog, ToolCall
from domain.errors import TemporarilyUnavailable
from domain.progress import Outcome, Told
from domain.tenancy import Caller, Millis, ServerId, ServerKey
from domain.walkthrough import PublishPolicy
from tests import fakes
from tests.calls import record, stored_calls, tool_call
from tests.worlds import World, in_memory, on_postgres

_PLACES = 3


@dataclass
class Logged:
    """A log with few places, and what it holds."""

    log: CallLog
    world: World
    calls: Callable[[], Awaitable[list[ToolCall]]]

    async def caller(self, organization: str = "acme") -> Caller:
        return await self.world.caller(await self.world.server(organization, f"{organization}-guides"))


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as opened:
        yield opened


@pytest.fixture(params=["memory", "postgres"])
def logged(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[Logged]:
    if request.param == "memory":
        memory = fakes.Memory()

        async def in_mind() -> list[ToolCall]:
            return sorted(memory.calls.values(), key=lambda call: call.id)

        yield Logged(fakes.MemoryCallLog(memory, places=_PLACES), in_memory(memory), in_mind)
        return
    url = request.getfixturevalue("owner_url")
    owner = runner.run(asyncpg.connect(url))
    database = Database(Access(url, assume_role=True))
    runner.run(database.__aenter__())
    yield Logged(PostgresCallLog(database, places=_PLACES), on_postgres(database), lambda: stored_calls(owner))
    runner.run(database.__aexit__(None, None, None))
    runner.run(owner.execute("delete from organizations"))
    runner.run(owner.close())


_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=80)
_NAMES = st.none() | _TEXT
_CALLS = st.fixed_dictionaries(
    {
        "tool_name": _TEXT,
        "client_name": _NAMES,
        "client_version": _NAMES,
        "protocol_version": _TEXT,
        "walkthrough_id": _NAMES,
        "version": st.none() | st.integers(1, 2**31 - 1),
        "step_id": _NAMES,
        "duration_us": st.integers(0, 2**62),
        "input": st.dictionaries(
            _TEXT,
            # Above, PostgreSQL writes all digits of a number where Python writes an exponent.
            st.none() | st.booleans() | st.integers() | _TEXT | st.floats(-(2**53), 2**53),
            max_size=5,
        ),
        "created_at": st.integers(0, 2**62).map(Millis),
    }
)
_OUTCOMES = st.tuples(_TEXT.filter(lambda text: text != "error"), st.none()) | st.tuples(st.just("error"), _TEXT)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(values=_CALLS, outcome=_OUTCOMES, is_known=st.booleans())
def test_a_call_comes_back_as_it_was_recorded(
    logged: Logged,
    runner: asyncio.Runner,
    values: dict[str, object],
    outcome: tuple[str, str | None],
    is_known: bool,
) -> None:
    async def recorded() -> None:
        if not await logged.world.tenants.servers(None):
            await logged.caller()
        (listing,) = await logged.world.tenants.servers(None)
        caller = Caller(listing.server.key, None)
        if is_known:
            caller = await logged.world.caller(listing.server)
        call = tool_call(caller, outcome=outcome[0], error_code=outcome[1], **values)
        await record(logged.log, call)
        assert call in await logged.calls()

    runner.run(recorded())


@pytest.mark.promise("calls.logged")
def test_a_call_is_recorded_together_with_what_it_changes(logged: Logged, runner: asyncio.Runner) -> None:
    async def recorded() -> None:
        world, caller, as_call, made = await _course(logged)
        begun = await world.learning.select(caller, "tour", restart=False, to_latest=False, as_call=as_call)
        done = (str(begun.progress.handle()), None)
        moved = await world.learning.next(caller, *done, outcome=Outcome.DONE, note=None, as_call=as_call)
        again = await world.learning.next(caller, *done, outcome=Outcome.DONE, note=None, as_call=as_call)
        assert [each.is_recorded for each in (begun, moved, again)] == [True, True, False]
        assert [call.outcome for call in made] == ["started", "advanced"]
        assert await logged.calls() == made

    runner.run(recorded())


@pytest.mark.promise("calls.logged")
def test_a_call_that_comes_too_late_to_change_anything_is_not_recorded_with_it(
    logged: Logged, runner: asyncio.Runner
) -> None:
    async def recorded() -> None:
        world, caller, as_call, made = await _course(logged)
        _overtake(world, lambda: world.learning.select(caller, "tour", restart=False, to_latest=False))
        begun = await world.learning.select(caller, "tour", restart=False, to_latest=False, as_call=as_call)
        assert (begun.told, begun.is_recorded) == (Told.RESUMED, False)
        done = (str(begun.progress.handle()), None)
        _overtake(world, lambda: world.learning.next(caller, *done, outcome=Outcome.DONE, note=None))
        told = await world.learning.next(caller, *done, outcome=Outcome.DONE, note=None, as_call=as_call)
        assert (told.told, told.is_recorded) == (Told.REPEATED, False)
        assert [call.outcome for call in made] == ["started", "advanced"]
        assert await logged.calls() == []

    runner.run(recorded())


@pytest.mark.promise("calls.logged")
def test_a_call_that_is_decided_anew_is_recorded_as_it_is_answered(logged: Logged, runner: asyncio.Runner) -> None:
    async def recorded() -> None:
        world, caller, as_call, made = await _course(logged)
        begun = await world.learning.select(caller, "tour", restart=False, to_latest=False)
        anew = {"policy": PublishPolicy.CARRY_OVER, "servers": ("acme-guides",)}
        _overtake(world, lambda: world.publish("one", "new", "two", **anew))
        done = (str(begun.progress.handle()), None)
        told = await world.learning.next(caller, *done, outcome=Outcome.DONE, note=None, as_call=as_call)
        assert (told.is_recorded, told.version.number, [call.version for call in made]) == (True, 2, [1, 2])
        assert await logged.calls() == made[1:]

    runner.run(recorded())


def _overtake(world: World, act: Callable[[], Awaitable[object]]) -> None:
    """Has somebody act between the next decision and its commit."""
    commit = world.progress.commit

    async def overtaken(*given: Any) -> bool:
        world.progress.commit = commit  # type: ignore[method-assign]  # the others are as they were
        await act()
        return await commit(*given)

    world.progress.commit = overtaken  # type: ignore[method-assign]  # for one commit


async def _course(logged: Logged) -> tuple[World, Caller, AsCall, list[ToolCall]]:
    """Somebody before a walkthrough, what makes their calls, and those that it made."""
    caller = await logged.caller()
    await logged.world.publish("one", "two", "three", servers=("acme-guides",))
    made: list[ToolCall] = []

    def as_call(lesson: Lesson) -> ToolCall:
        key = lesson.progress.key
        at = {"walkthrough_id": key.walkthrough_id, "version": lesson.version.number, "input": {"walkthrough": "tour"}}
        made.append(tool_call(caller, outcome=lesson.told, **at))
        return made[-1]

    return logged.world, caller, as_call, made


def test_a_call_is_stored_once_however_often_it_is_recorded(logged: Logged, runner: asyncio.Runner) -> None:
    async def recorded() -> None:
        call, other = tool_call(await logged.caller()), tool_call(await logged.caller("globex"))
        await asyncio.gather(record(logged.log, call), record(logged.log, call), record(logged.log, other))
        await record(logged.log, call)
        assert await logged.calls() == sorted((call, other), key=lambda each: each.id)

    runner.run(recorded())


@pytest.mark.promise("calls.logged")
def test_a_call_of_a_server_that_is_gone_is_refused_and_no_other_with_it(
    logged: Logged, runner: asyncio.Runner
) -> None:
    async def recorded() -> None:
        here = await logged.caller()
        gone = Caller(ServerKey(here.server.organization_id, ServerId("srv_gone")), None)
        calls = [tool_call(here), tool_call(gone), tool_call(here)]
        told = await asyncio.gather(*(record(logged.log, call) for call in calls), return_exceptions=True)
        assert [type(each) for each in told] == [type(None), TemporarilyUnavailable, type(None)]
        assert await logged.calls() == sorted((calls[0], calls[2]), key=lambda each: each.id)

    runner.run(recorded())


def test_no_more_calls_are_admitted_than_there_are_places(logged: Logged, runner: asyncio.Runner) -> None:
    async def admitted() -> None:
        caller = await logged.caller()
        for _ in range(2):
            with ExitStack() as places:
                recording = [places.enter_context(logged.log.admit()) for _ in range(_PLACES)]
                with pytest.raises(TemporarilyUnavailable):
                    places.enter_context(logged.log.admit())
                await recording[0](tool_call(caller))
            # Free again, with a call recorded or without.
            for _ in range(_PLACES + 1):
                await record(logged.log, tool_call(caller))
        assert len(await logged.calls()) == 2 * (_PLACES + 2)

    runner.run(admitted())


def test_a_tool_that_fails_and_a_call_that_is_refused_leave_their_places_free(
    logged: Logged, runner: asyncio.Runner
) -> None:
    async def admitted() -> None:
        here = await logged.caller()
        gone = Caller(ServerKey(here.server.organization_id, ServerId("srv_gone")), None)
        for _ in range(_PLACES + 1):
            with pytest.raises(ZeroDivisionError), logged.log.admit():
                raise ZeroDivisionError
            with pytest.raises(TemporarilyUnavailable):
                await record(logged.log, tool_call(gone))
        call = tool_call(here)
        await record(logged.log, call)
        assert await logged.calls() == [call]

    runner.run(admitted())


def test_a_call_whose_caller_has_gone_is_stored_before_the_log_is_drained(
    logged: Logged, runner: asyncio.Runner
) -> None:
    async def cancelled() -> None:
        calls = [tool_call(await logged.caller())]
        calls.append(tool_call(calls[0].caller))
        waiting = [asyncio.create_task(record(logged.log, call)) for call in calls]
        await asyncio.sleep(0)
        for each in waiting:
            each.cancel()
        await asyncio.wait(waiting)
        await logged.log.drain()
        assert await logged.calls() == calls
        with ExitStack() as places:  # and all of them are free
            for _ in range(_PLACES):
                places.enter_context(logged.log.admit())

    runner.run(cancelled())
