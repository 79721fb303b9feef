"""The fakes and PostgreSQL, driven side by side by whatever authors may do in any order: they never disagree.

Both worlds begin with the same ids and clock, so whole answers are compared, step ids, times and errors included.
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
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from adapters.postgres.connections import Access, Database
from domain.draft import Edit, InsertStep, MoveStep, RemoveStep, RenameStep, ReplaceStep, SetDetails, replay
from domain.errors import CairnError
from domain.progress import Outcome
from domain.tenancy import StepId
from domain.walkthrough import PublishPolicy, Step, StepText, WalkthroughType
from tests.fakes import CountedIds, SetClock
from tests.worlds import World, in_memory, manuscript, on_postgres

_runs = count(1)
_PEOPLE = st.sampled_from(["ada@example.com", "bob@example.com"])
_KEYS = st.sampled_from("abcde")
_PLACES = st.none() | _KEYS
_TEXTS = st.builds(StepText, key=_KEYS, title=st.sampled_from(["One", "Two"]), content=st.sampled_from(["x", "y"]))
_EDITS = st.one_of(
    st.builds(InsertStep, st.builds(Step, st.just(StepId("-")), _TEXTS), _PLACES),
    st.builds(RemoveStep, _KEYS),
    st.tuples(_KEYS, _PLACES).filter(lambda it: it[0] != it[1]).map(lambda it: MoveStep(*it)),
    st.builds(ReplaceStep, _TEXTS),
    st.builds(RenameStep, _KEYS, _KEYS),
    st.builds(
        SetDetails,
        st.none() | st.sampled_from(["The tour", "Other"]),
        st.none() | st.just("Shows."),
        st.none() | st.sampled_from(WalkthroughType),
    ),
)
_STEPS = st.lists(_KEYS, min_size=1, max_size=4, unique=True)
_POLICIES = st.sampled_from(PublishPolicy)


def _machine(runner: asyncio.Runner, database: Database) -> type[RuleBasedStateMachine]:
    class TwoWorlds(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            run = next(_runs)
            # Ids and slugs of their own for each run, since the database outlives it.
            self.slug = f"r{run}"
            given = [{"clock": SetClock(), "ids": CountedIds(run * 1_000_000)} for _ in range(2)]
            self.worlds: list[World] = [in_memory(**given[0]), on_postgres(database, **given[1])]

        def both(self, act: Callable[[World], Awaitable[Any]]) -> Any:
            """Does it in both worlds, and compares what comes back, errors included."""
            answers = [runner.run(self.answer(world, act)) for world in self.worlds]
            assert answers[0] == answers[1]
            self.look()
            return answers[0]

        async def answer(self, world: World, act: Callable[[World], Awaitable[Any]]) -> Any:
            try:
                return await act(world)
            except CairnError as error:
                return type(error), str(error), {k: v for k, v in vars(error).items() if not k.startswith("_")}

        def look(self) -> None:
            """All that there is to be seen is the same in both, and the recorded edits lead to the draft."""
            seen = [runner.run(self.all_of(world)) for world in self.worlds]
            assert seen[0] == seen[1]

        async def all_of(self, world: World) -> Any:
            async def show() -> Any:
                history = await world.authoring.versions(self.slug, "tour")
                contents = [
                    await world.authoring.version(self.slug, "tour", each.record.number) for each in history.versions
                ]
                edits = await world.authoring.edits(self.slug, "tour", (0, 0))
                if history.draft is not None and contents:
                    of_draft = [each.edit for each in edits if each.number == history.draft.key.number]
                    ids = (StepId(f"copy_{number}") for number in range(len(contents[-1].steps)))
                    begun = type(history.draft).copy(history.draft.key, contents[-1].manuscript("tour"), ids)
                    replayed = replay(begun, of_draft)
                    assert [step.text for step in replayed.steps] == [step.text for step in history.draft.steps]
                    assert replayed.title == history.draft.title
                    assert replayed.revision == history.draft.revision
                return history, contents, edits

            server = await world.tenancy.server(self.slug)
            caller = await world.caller(server)
            return await self.answer(world, lambda _: show()), await world.catalogue.standings(caller)

        @initialize(steps=_STEPS, publish=st.none() | _POLICIES)
        def begin(self, steps: list[str], publish: PublishPolicy | None) -> None:
            self.both(lambda world: world.server(self.slug, self.slug))
            self.push(steps, publish, None, False, "ada@example.com")

        @rule(
            steps=_STEPS,
            publish=st.none() | _POLICIES,
            expected=st.none() | st.integers(0, 3),
            is_forced=st.booleans(),
            by=_PEOPLE,
        )
        def push(
            self, steps: list[str], publish: PublishPolicy | None, expected: int | None, is_forced: bool, by: str
        ) -> None:
            self.both(
                lambda world: world.authoring.push(
                    self.slug,
                    manuscript(*steps),
                    publish=publish,
                    servers=[(self.slug, None)],
                    by=by,
                    expected_latest=expected,
                    is_forced=is_forced,
                )
            )

        async def based_on(self, world: World, is_stale: bool) -> tuple[int, int]:
            draft = await world.authoring.draft(self.slug, "tour")
            return draft.key.number, max(0, draft.revision - is_stale)

        @rule(edits=st.lists(_EDITS, min_size=1, max_size=3), is_stale=st.booleans(), by=_PEOPLE)
        def edit(self, edits: list[Edit], is_stale: bool, by: str) -> None:
            async def act(world: World) -> Any:
                based_on = await self.based_on(world, is_stale)
                return await world.authoring.edit(self.slug, "tour", based_on, edits, by=by)

            self.both(act)

        @rule(alphabet=st.permutations("abcde"), by=_PEOPLE)
        def reorder(self, alphabet: list[str], by: str) -> None:
            async def act(world: World) -> Any:
                draft = await world.authoring.draft(self.slug, "tour")
                keys = sorted((step.text.key for step in draft.steps), key=alphabet.index)
                based_on = (draft.key.number, draft.revision)
                return await world.authoring.reorder(self.slug, "tour", based_on, keys, by=by)

            self.both(act)

        @rule(is_stale=st.booleans(), by=_PEOPLE)
        def discard(self, is_stale: bool, by: str) -> None:
            async def act(world: World) -> Any:
                based_on = await self.based_on(world, is_stale)
                return await world.authoring.discard_draft(self.slug, "tour", based_on, by=by)

            self.both(act)

        @rule(is_stale=st.booleans(), policy=_POLICIES, is_twice=st.booleans(), by=_PEOPLE)
        def publish(self, is_stale: bool, policy: PublishPolicy, is_twice: bool, by: str) -> None:
            async def act(world: World) -> Any:
                based_on = await self.based_on(world, is_stale)
                return [
                    await self.answer(
                        world, lambda it: it.authoring.publish(self.slug, "tour", based_on, policy, by=by)
                    )
                    for _ in range(1 + is_twice)
                ]

            self.both(act)

        @rule(version=st.integers(0, 5), policy=_POLICIES, is_forced=st.booleans(), by=_PEOPLE)
        def roll_back(self, version: int, policy: PublishPolicy, is_forced: bool, by: str) -> None:
            self.both(
                lambda world: world.authoring.roll_back(self.slug, "tour", version, policy, by=by, is_forced=is_forced)
            )

        @rule(act=st.sampled_from(["unpublish", "publish_again", "archive", "restore", "restore"]), by=_PEOPLE)
        def change_as_a_whole(self, act: str, by: str) -> None:
            self.both(lambda world: getattr(world.authoring, act)(self.slug, "tour", by=by))

        @rule(version=st.integers(0, 5), by=_PEOPLE)
        def withdraw(self, version: int, by: str) -> None:
            self.both(lambda world: world.authoring.withdraw(self.slug, "tour", version, by=by))

        @rule(act=st.sampled_from(["enable", "disable", "enable", "unassign"]))
        def change_the_assignment(self, act: str) -> None:
            self.both(lambda world: getattr(world.authoring, act)(self.slug, "tour", [self.slug]))

        @rule(person=_PEOPLE, steps=st.integers(0, 3), to_latest=st.booleans())
        def learn(self, person: str, steps: int, to_latest: bool) -> None:
            async def act(world: World) -> Any:
                caller = await world.caller(await world.tenancy.server(self.slug), person)
                lesson = await world.learning.select(caller, "tour", restart=False, to_latest=to_latest)
                for _ in range(steps):
                    handle = str(lesson.progress.handle())
                    lesson = await world.learning.next(caller, handle, None, outcome=Outcome.DONE, note=None)
                return lesson

            self.both(act)

        @rule(steps=_STEPS, policy=_POLICIES)
        def forecast(self, steps: list[str], policy: PublishPolicy) -> None:
            self.both(lambda world: world.authoring.forecast(self.slug, manuscript(*steps), policy))

        @rule(milliseconds=st.integers(0, 100_000))
        def time_passes(self, milliseconds: int) -> None:
            for world in self.worlds:
                world.clock.time += milliseconds

    return TwoWorlds


@pytest.mark.timeout(900)
def test_the_fakes_and_postgres_never_disagree_about_what_authors_do(owner_url: str) -> None:
    with asyncio.Runner() as runner:
        database = Database(Access(owner_url, assume_role=True))
        runner.run(database.__aenter__())
        try:
            run_state_machine_as_test(
                _machine(runner, database),
                settings=settings(max_examples=40, stateful_step_count=25, deadline=None),
            )
        finally:
            runner.run(database.__aexit__(None, None, None))

            async def empty() -> None:
                owner = await asyncpg.connect(owner_url)
                await owner.execute("delete from organizations")
                await owner.close()

            runner.run(empty())
