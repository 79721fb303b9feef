"""What a process remembers of people changes no answer: it is as if everything had been read.

One person takes one walkthrough, through either of two processes, while its author does what authors do. Beside it the
same happens in a world in which each call is a process of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from application.learning import Learning, Lesson
from application.ports import Standing
from domain.errors import CairnError
from domain.progress import Outcome
from domain.tenancy import Caller
from domain.walkthrough import PublishPolicy
from tests.fakes import CountedIds, SetClock
from tests.worlds import World, in_memory

_STEPS = [("a", "b", "c", "d"), ("b", "a", "e", "d"), ("d",)]


# What an author may do, publishing most of all.
_AUTHORS = st.one_of(
    *[
        st.builds(
            lambda steps, policy: lambda world: world.publish(*steps, policy=policy),
            st.sampled_from(_STEPS),
            st.sampled_from(PublishPolicy),
        )
    ]
    * 3,
    st.builds(
        lambda version: lambda world: world.authoring.withdraw("acme", "tour", version, by="author@example.com"),
        st.integers(1, 3),
    ),
    st.builds(
        lambda change: lambda world: getattr(world.authoring, change)("acme", "tour", ["guides"]),
        st.sampled_from(["enable", "disable", "unassign"]),
    ),
    st.builds(
        lambda change: lambda world: getattr(world.authoring, change)("acme", "tour", by="author@example.com"),
        st.sampled_from(["unpublish", "publish_again", "archive", "restore"]),
    ),
)


class _Reads:
    """A catalogue that counts how often it was asked for one walkthrough."""

    def __init__(self, world: World) -> None:
        self.count = 0
        self.standings = world.catalogue.standings
        self._matching = world.catalogue.matching

    async def matching(self, caller: Caller, reference: str) -> Sequence[Standing]:
        self.count += 1
        return await self._matching(caller, reference)


def _process(world: World, reads: _Reads) -> Learning:
    return Learning(reads, world.library, world.progress, world.clock)


async def _begun(processes: int) -> tuple[World, Caller, _Reads, list[Learning]]:
    world = in_memory(clock=SetClock(), ids=CountedIds())
    caller = await world.caller(await world.server())
    await world.publish(*_STEPS[0])
    reads = _Reads(world)
    return world, caller, reads, [_process(world, reads) for _ in range(processes)]


def _machine(runner: asyncio.Runner) -> type[RuleBasedStateMachine]:
    class TwoProcesses(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.world, self.caller, _, self.processes = runner.run(_begun(2))
            self.plain, *_ = runner.run(_begun(0))
            self.handles: list[str] = []

        def call(self, act: Callable[[Learning], Awaitable[Lesson]]) -> None:
            told = runner.run(_answer(act(self.processes[0])))
            assert told == runner.run(_answer(act(_process(self.plain, _Reads(self.plain)))))
            assert self.stored(self.world) == self.stored(self.plain)
            if isinstance(told, Lesson) and (handle := told.progress.handle()):
                self.handles.append(str(handle))

        def stored(self, world: World) -> Any:
            (standing,) = runner.run(world.catalogue.standings(self.caller)) or [None]
            if standing is None or standing.progress is None:
                return None
            return standing.progress, runner.run(world.progress.events(standing.progress.key))

        @rule(restart=st.booleans(), to_latest=st.booleans())
        def select(self, restart: bool, to_latest: bool) -> None:
            self.call(lambda learning: learning.select(self.caller, "tour", restart=restart, to_latest=to_latest))

        @precondition(lambda self: self.handles)
        @rule(age=st.sampled_from([1, 1, 1, 2, 3]), outcome=st.sampled_from(Outcome), by_name=st.booleans())
        def next(self, age: int, outcome: Outcome, by_name: bool) -> None:
            handle, reference = self.handles[-age:][0], "tour" if by_name else None
            self.call(lambda learning: learning.next(self.caller, handle, reference, outcome=outcome, note=None))

        @rule()
        def another_process(self) -> None:
            self.processes.reverse()

        @rule(act=_AUTHORS)
        def author(self, act: Callable[[World], Awaitable[Any]]) -> None:
            for world in (self.world, self.plain):
                runner.run(_answer(act(world)))
                world.clock.time += 1_000

    return TwoProcesses


async def _answer(act: Awaitable[Any]) -> Any:
    try:
        return await act
    except CairnError as error:
        return type(error), str(error), vars(error)


def test_no_answer_differs_from_one_that_read_everything() -> None:
    with asyncio.Runner() as runner:
        run_state_machine_as_test(
            _machine(runner), settings=settings(max_examples=300, stateful_step_count=30, deadline=None)
        )


async def test_the_steps_that_one_process_leads_through_are_read_once() -> None:
    _, caller, reads, (learning,) = await _begun(1)
    lesson = await learning.select(caller, "tour", restart=False, to_latest=False)
    for _ in _STEPS[0]:
        lesson = await learning.next(caller, str(lesson.progress.handle()), None, outcome=Outcome.DONE, note=None)
    assert lesson.progress.completed_at is not None
    assert reads.count == 1


async def test_a_process_that_remembers_somebody_elsewhere_reads_before_it_writes() -> None:
    world, caller, reads, (here, there) = await _begun(2)
    lesson = await here.select(caller, "tour", restart=False, to_latest=False)
    lesson = await there.next(caller, str(lesson.progress.handle()), None, outcome=Outcome.DONE, note=None)
    commits = 0
    commit = world.progress.commit

    async def counted(*given: Any) -> bool:
        nonlocal commits
        commits += 1
        return await commit(*given)

    world.progress.commit = counted  # type: ignore[method-assign]  # the same, and counts
    lesson = await here.next(caller, str(lesson.progress.handle()), None, outcome=Outcome.DONE, note=None)
    assert (lesson.progress.current_number(lesson.version), commits, reads.count) == (3, 1, 3)


async def test_beyond_its_bound_a_process_remembers_those_whom_it_led_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("application.learning._MAX_REMEMBERED_BYTES", 5_000)  # three people
    world, _, reads, (learning,) = await _begun(1)
    server = await world.servers.server_at(slug="guides", custom_domain=None)
    assert server is not None
    people = [await world.caller(server, f"p{number}@example.com") for number in range(5)]
    lessons = [await learning.select(each, "tour", restart=False, to_latest=False) for each in people]
    reads.count = 0
    read = []
    for caller, lesson in reversed(list(zip(people, lessons, strict=True))):
        before = reads.count
        await learning.next(caller, str(lesson.progress.handle()), None, outcome=Outcome.DONE, note=None)
        read.append(reads.count - before)
    assert read == [0, 0, 0, 1, 1]
