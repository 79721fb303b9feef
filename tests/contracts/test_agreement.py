"""The fakes and PostgreSQL, driven side by side by whatever people and authors may do: they never disagree.

Both worlds begin with the same ids and clock, so whole answers are compared, handles and times included. On PostgreSQL
two processes take turns, and each remembers where it left people; on the fakes nobody ever remembers anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import asyncpg
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from adapters.postgres.connections import Access, Database
from application.learning import Learning, Lesson
from domain.errors import CairnError
from domain.progress import Outcome, replay
from domain.tenancy import Caller
from domain.walkthrough import PublishPolicy, VersionKey
from tests.fakes import CountedIds, SetClock
from tests.worlds import World, in_memory, on_postgres

_PEOPLE = ("ada@example.com", "bob@example.com")
_ORGANIZATIONS = ("acme", "globex")
_runs = count(1)


def _machine(runner: asyncio.Runner, database: Database) -> type[RuleBasedStateMachine]:
    class TwoWorlds(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            run = next(_runs)
            # Ids and slugs of their own for each run, since the database outlives it.
            self.prefix = f"r{run}"
            given = [{"clock": SetClock(), "ids": CountedIds(run * 1_000_000)} for _ in range(2)]
            self.worlds: list[World] = [in_memory(**given[0]), on_postgres(database, **given[1])]
            self.processes = [_process(self.worlds[1]) for _ in range(2)]
            self.handles: list[str] = []
            self.keys: set[VersionKey] = set()

        def both(self, act: Callable[[World], Awaitable[Any]]) -> Any:
            """Does it in both worlds, and compares what comes back, errors included."""
            self.worlds[0].learning = _process(self.worlds[0])
            self.worlds[1].learning = self.processes[0]
            answers = [runner.run(self.answer(world, act)) for world in self.worlds]
            assert answers[0] == answers[1]
            return answers[0]

        async def answer(self, world: World, act: Callable[[World], Awaitable[Any]]) -> Any:
            try:
                return _comparable(await act(world))
            except CairnError as error:
                return (
                    type(error),
                    str(error),
                    {name: value for name, value in vars(error).items() if not name.startswith("_")},
                )

        def organization(self, number: int) -> str:
            return f"{self.prefix}-{_ORGANIZATIONS[number]}"

        async def caller(self, world: World, organization: int, person: int) -> Caller:
            slug = self.organization(organization)
            server = await world.tenancy.server(slug, slug)
            return await world.caller(server, _PEOPLE[person])

        @initialize()
        def begin(self) -> None:
            for number in range(len(_ORGANIZATIONS)):
                slug = self.organization(number)
                self.both(lambda world, slug=slug: world.server(slug, slug))

        @rule(
            organization=st.integers(0, 1),
            steps=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5, unique=True),
            policy=st.sampled_from(PublishPolicy),
            is_second=st.booleans(),
            is_assigned=st.booleans(),
        )
        def publish(
            self, organization: int, steps: list[str], policy: PublishPolicy, is_second: bool, is_assigned: bool
        ) -> None:
            slug = self.organization(organization)
            key = "second" if is_second else "tour"
            servers = (slug,) if is_assigned else ()
            self.both(
                lambda world: world.publish(
                    *steps, key=key, title="The tour", organization=slug, policy=policy, servers=servers
                )
            )

        @rule(
            organization=st.integers(0, 1),
            person=st.integers(0, 1),
            reference=st.sampled_from(["tour", "second", "the TOUR", "nothing"]),
            restart=st.booleans(),
            to_latest=st.booleans(),
        )
        def select(self, organization: int, person: int, reference: str, restart: bool, to_latest: bool) -> None:
            async def act(world: World) -> Lesson:
                caller = await self.caller(world, organization, person)
                return await world.learning.select(caller, reference, restart=restart, to_latest=to_latest)

            self.remember(self.both(act))

        @precondition(lambda self: self.handles)
        @rule(
            data=st.data(),
            organization=st.integers(0, 1),
            person=st.integers(0, 1),
            reference=st.sampled_from([None, None, None, "tour", "second"]),
            outcome=st.sampled_from([Outcome.DONE, Outcome.DONE, Outcome.SKIPPED, Outcome.STUCK]),
            note=st.sampled_from([None, "why", "how"]),
        )
        def next(
            self,
            data: st.DataObject,
            organization: int,
            person: int,
            reference: str | None,
            outcome: Outcome,
            note: str | None,
        ) -> None:
            handle = data.draw(st.sampled_from([None, "unreadable", *self.handles[-6:]]))

            async def act(world: World) -> Lesson:
                caller = await self.caller(world, organization, person)
                return await world.learning.next(caller, handle, reference, outcome=outcome, note=note)

            self.remember(self.both(act))

        @rule(organization=st.integers(0, 1), person=st.integers(0, 1), number=st.integers(1, 6))
        def read(self, organization: int, person: int, number: int) -> None:
            async def lists(world: World) -> Any:
                caller = await self.caller(world, organization, person)
                return [await world.learning.list(caller), await world.learning.status(caller, None)]

            async def review(world: World) -> Lesson:
                return await world.learning.review(await self.caller(world, organization, person), "tour", number)

            self.both(lists)
            self.both(review)

        @rule(
            organization=st.integers(0, 1),
            change=st.sampled_from(["enable", "disable", "assign", "unassign"]),
            is_second=st.booleans(),
        )
        def place(self, organization: int, change: str, is_second: bool) -> None:
            slug = self.organization(organization)
            key = "second" if is_second else "tour"
            servers: list[Any] = [(slug, None)] if change == "assign" else [slug]
            self.both(lambda world: getattr(world.authoring, change)(slug, key, servers))

        @rule(organization=st.integers(0, 1), version=st.integers(1, 3), is_second=st.booleans())
        def withdraw(self, organization: int, version: int, is_second: bool) -> None:
            slug = self.organization(organization)
            key = "second" if is_second else "tour"
            self.both(lambda world: world.authoring.withdraw(slug, key, version, by=_PEOPLE[0]))

        @rule()
        def another_process(self) -> None:
            self.processes.reverse()

        @rule(milliseconds=st.integers(-5_000, 100_000))
        def time_passes(self, milliseconds: int) -> None:
            for world in self.worlds:
                world.clock.time += milliseconds

        def remember(self, told: Any) -> None:
            if isinstance(told, Lesson):
                if handle := told.progress.handle():
                    self.handles.append(str(handle))
                self.check_history(told)

        def check_history(self, told: Lesson) -> None:
            """The events stored in each world are the same, and replay to the progress that was answered."""
            events = self.both(lambda world: world.progress.events(told.progress.key))
            keys = [
                VersionKey(told.standing.organization_id, told.standing.walkthrough_id, number)
                for number in {event.version for event in events}
            ]
            versions = runner.run(self.worlds[1].library.outlines(keys))
            assert replay(told.progress.key, events, {key.number: each for key, each in versions.items()}) == (
                told.progress
            )

    return TwoWorlds


def _process(world: World) -> Learning:
    """The use cases as a process has them that has just started."""
    return Learning(world.catalogue, world.library, world.progress, world.clock)


def _comparable(answer: Any) -> Any:
    """What came back, in a form that compares by value."""
    if isinstance(answer, list | tuple) and not hasattr(answer, "_fields"):  # a named one is a record
        return [_comparable(each) for each in answer]
    return answer


@pytest.mark.timeout(900)
@pytest.mark.promise("replay")
def test_the_fakes_and_postgres_never_disagree(owner_url: str) -> None:
    with asyncio.Runner() as runner:
        database = Database(Access(owner_url, assume_role=True))
        runner.run(database.__aenter__())
        try:
            run_state_machine_as_test(
                _machine(runner, database),
                settings=settings(max_examples=60, stateful_step_count=30, deadline=None),
            )
        finally:
            runner.run(database.__aexit__(None, None, None))

            async def empty() -> None:
                owner = await asyncpg.connect(owner_url)
                await owner.execute("delete from organizations")
                await owner.close()

            runner.run(empty())
