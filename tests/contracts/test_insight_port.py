"""What the port of insight promises: the fake and PostgreSQL add up whatever can happen to the same numbers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.postgres.connections import Access, Database
from application.insight import PAUSE, TOO_FAST
from application.learning import Lesson
from application.ports import Cohort, Counts, Measures, Subject
from domain.errors import CairnError, StepNotCurrent
from domain.progress import Outcome
from domain.tenancy import Caller, Millis, ServerId
from domain.walkthrough import PublishPolicy
from tests.domain.generate import examples, key_orders, revised
from tests.fakes import CountedIds, SetClock
from tests.worlds import World, in_memory, manuscript, on_postgres

MEASURES = Measures(Millis(10_000_000_000), PAUSE, TOO_FAST, Millis(14 * 86_400_000), 100)
EVERYTHING = Cohort(None, None, None, None)
_runs = count(1)


async def subject_of(world: World, organization: str, key: str = "tour") -> Subject | None:
    organization_id = await world.tenants.organization(organization)
    assert organization_id is not None
    return await world.funnels.subject(organization_id, key)


async def counts_of(
    world: World, organization: str, cohort: Cohort = EVERYTHING, measures: Measures = MEASURES
) -> Counts:
    organization_id = await world.tenants.organization(organization)
    subject = await subject_of(world, organization)
    assert organization_id is not None
    assert subject is not None
    return await world.funnels.counts(organization_id, subject.walkthrough_id, cohort, measures)


@pytest.mark.promise("numbers")
async def test_a_subject_is_found_by_key_within_its_organisation_alone(world: World) -> None:
    await world.server()
    await world.server("globex", "theirs")
    await world.authoring.push("acme", manuscript("a"), publish=None, servers=[], by="author@example.com")
    subject = await subject_of(world, "acme")
    assert subject is not None
    assert subject.latest_version is None
    await world.publish("a", "b")
    assert await subject_of(world, "acme") == replace(subject, latest_version=1)
    assert await subject_of(world, "globex") is None
    assert await subject_of(world, "acme", "Tour") is None


@pytest.mark.promise("numbers")
async def test_another_organisations_attempts_are_in_no_number_of_ones_own(world: World) -> None:
    ours, theirs = await world.server(), await world.server("globex", "theirs")
    await world.publish("a", "b")
    await world.publish("a", "b", organization="globex", servers=("theirs",))
    for server, people in ((ours, 1), (theirs, 3)):
        for number in range(people):
            caller = await world.caller(server, f"{number}@example.com")
            await world.learning.select(caller, "tour", restart=False, to_latest=False)
    assert [(await counts_of(world, name)).attempts.started for name in ("acme", "globex")] == [1, 3]
    # Not even with the other organisation's own ids.
    us, subject = await world.tenants.organization("acme"), await subject_of(world, "globex")
    assert us is not None
    assert subject is not None
    foreign = await world.funnels.counts(us, subject.walkthrough_id, EVERYTHING, MEASURES)
    assert (foreign.attempts.started, foreign.steps, foreign.notes) == (0, {}, [])


async def test_only_the_newest_notes_are_listed_and_all_are_counted(world: World) -> None:
    server = await world.server()
    await world.publish("a")
    caller = await world.caller(server)
    handle = str((await world.learning.select(caller, "tour", restart=False, to_latest=False)).progress.handle())
    for note in ("first", "second", None, "third"):
        world.clock.time += 1_000
        await world.learning.next(caller, handle, None, outcome=Outcome.STUCK, note=note)
    counts = await counts_of(world, "acme", measures=replace(MEASURES, max_notes=2))
    assert [note.note for note in counts.notes] == ["third", "second"]
    assert counts.note_count == 3


async def test_an_attempt_is_abandoned_once_it_was_idle_for_the_whole_time(world: World) -> None:
    server = await world.server()
    await world.publish("a")
    await world.learning.select(await world.caller(server), "tour", restart=False, to_latest=False)
    for idle, abandoned in ((-1, 0), (0, 1), (1, 1)):
        now = Millis(world.clock.time + MEASURES.abandoned_after + idle)
        attempts = (await counts_of(world, "acme", measures=replace(MEASURES, now=now))).attempts
        assert (attempts.abandoned, attempts.in_progress) == (abandoned, 1 - abandoned)


async def test_a_time_range_begins_with_its_first_moment_and_ends_before_its_last(world: World) -> None:
    server = await world.server()
    await world.publish("a")
    await world.learning.select(await world.caller(server), "tour", restart=False, to_latest=False)
    began = world.clock.time
    for since, until, started in ((began, began + 1, 1), (began + 1, None, 0), (None, began, 0)):
        cohort = Cohort(None, None, since and Millis(since), until and Millis(until))
        assert (await counts_of(world, "acme", cohort)).attempts.started == started


async def test_a_note_after_completing_is_no_resumption_and_no_time_of_a_step(world: World) -> None:
    server = await world.server()
    await world.publish("a")
    caller = await world.caller(server)
    handle = str((await world.learning.select(caller, "tour", restart=False, to_latest=False)).progress.handle())
    for passed, outcome in ((1_000, Outcome.DONE), (PAUSE + 1, Outcome.STUCK), (1_000, Outcome.STUCK)):
        world.clock.time += passed
        await world.learning.next(caller, handle, None, outcome=outcome, note=str(passed))
    counts = await counts_of(world, "acme")
    attempts, step = counts.attempts, counts.steps["a"]
    assert (attempts.completed, attempts.resumed, attempts.stuck) == (1, 0, 1)
    assert (step.median_active, step.stuck, counts.note_count) == (1_000, 1, 2)


async def test_a_note_counts_at_the_step_of_its_handle_also_where_that_is_of_an_older_version(world: World) -> None:
    server = await world.server()
    await world.publish("a", "b")
    caller = await world.caller(server)
    handle = str((await world.learning.select(caller, "tour", restart=False, to_latest=False)).progress.handle())
    await world.publish("b", "a", policy=PublishPolicy.CARRY_OVER)
    await world.learning.select(caller, "tour", restart=False, to_latest=False)  # now at b, of version 2
    with pytest.raises(StepNotCurrent):
        await world.learning.next(caller, handle, None, outcome=Outcome.STUCK, note="where am I?")
    await world.publish("b", policy=PublishPolicy.CARRY_OVER)  # which has no a: its handle is honoured
    await world.learning.select(caller, "tour", restart=False, to_latest=False)
    await world.learning.next(caller, handle, None, outcome=Outcome.STUCK, note="where is a?")
    for version in (None, 3):
        counts = await counts_of(world, "acme", replace(EVERYTHING, version=version))
        assert [(note.step_key, note.version, note.note) for note in counts.notes] == [("a", 3, "where is a?")]
        assert (counts.steps["a"].stuck, counts.steps["b"].stuck) == (1, 0)
    assert counts.steps["a"].reached == 0


@pytest.mark.promise("numbers")
async def test_a_step_that_a_call_advances_to_and_moves_on_from_at_once_was_shown_to_nobody(world: World) -> None:
    callers = [await world.caller(await world.server(slug=slug)) for slug in ("guides", "labs")]
    servers = [caller.server.server_id for caller in callers]

    async def select(caller: Caller) -> str:
        world.clock.time += 60_000
        return str((await world.learning.select(caller, "tour", restart=False, to_latest=False)).progress.handle())

    async def done(caller: Caller, handle: str) -> str:
        world.clock.time += 60_000
        lesson = await world.learning.next(caller, handle, None, outcome=Outcome.DONE, note=None)
        return str(lesson.progress.handle())

    await world.publish("a", "b", "c", "d", servers=("guides", "labs"))
    at_b = [await done(caller, await select(caller)) for caller in callers]
    await done(callers[1], at_b[1])  # and is shown c
    await world.publish("x", "a", "b", policy=PublishPolicy.CARRY_OVER, servers=("guides", "labs"))
    await done(callers[0], at_b[0])  # c would come now, but x is shown
    await select(callers[1])

    async def at_steps(server: ServerId | None, version: int | None) -> dict[str, tuple[int, int]]:
        counts = await counts_of(world, "acme", Cohort(version, server, None, None))
        assert counts.attempts.moved_on == (counts.attempts.started if version == 1 else 0)
        return {key: (step.reached, step.completed) for key, step in counts.steps.items()}

    both, one = (2, 2), (1, 1)
    assert await at_steps(None, None) == {"a": both, "b": both, "c": (1, 0), "x": (2, 0)}
    assert await at_steps(None, 1) == {"a": both, "b": both, "c": (1, 0)}
    assert await at_steps(None, 2) == {"x": (2, 0)}
    assert await at_steps(servers[0], None) == {"a": one, "b": one, "x": (1, 0)}
    assert await at_steps(servers[0], 1) == {"a": one, "b": one}
    assert await at_steps(servers[1], 1) == {"a": one, "b": one, "c": (1, 0)}


async def test_no_time_at_a_step_that_was_not_shown_is_no_time_that_is_left_of_it(world: World) -> None:
    caller = await world.caller(await world.server())
    await world.publish("a", "b")
    handle = str((await world.learning.select(caller, "tour", restart=False, to_latest=False)).progress.handle())
    await world.publish("x", "a", "b", policy=PublishPolicy.CARRY_OVER)
    for passed in (1_000, 1_000, PAUSE + 1):  # a, whereupon b is not shown; x; b, after a pause
        world.clock.time += passed
        lesson = await world.learning.next(caller, handle, None, outcome=Outcome.DONE, note=None)
        handle = str(lesson.progress.handle())
    step = (await counts_of(world, "acme")).steps["b"]
    assert (step.reached, step.completed, step.timed, step.median_active) == (1, 1, 0, None)


@pytest.mark.parametrize(("advances", "gap", "reached"), [(1, 0, 0), (1, 1, 1), (0, 0, 1)])
async def test_only_an_advance_and_a_move_of_one_millisecond_are_taken_for_one_call(
    world: World, advances: int, gap: int, reached: int
) -> None:
    caller = await world.caller(await world.server())
    await world.publish("a", "b")
    lesson = await world.learning.select(caller, "tour", restart=False, to_latest=False)
    for _ in range(advances):
        handle = str(lesson.progress.handle())
        lesson = await world.learning.next(caller, handle, None, outcome=Outcome.DONE, note=None)
    await world.publish("x", policy=PublishPolicy.CARRY_OVER)
    world.clock.time += gap
    await world.learning.select(caller, "tour", restart=False, to_latest=False)
    counts = await counts_of(world, "acme")
    left = counts.steps.get("ab"[advances])
    assert (left.reached if left else 0) == reached


# ------------------------------------------------------------------------------------------------- whatever happens

# Beside the lengths that decide something: one less, the length itself, one more.
_PASSED = st.sampled_from(
    [0, 1, 1_000, *(length + by for length in (TOO_FAST, PAUSE) for by in (-1, 0, 1)), 5 * 60_000, 20 * 86_400_000]
)
_ACTS = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(PublishPolicy)),
    st.tuples(st.just("select"), st.integers(0, 2), st.sampled_from(["", "", "restart", "latest"])),
    *[st.tuples(st.just("next"), st.integers(0, 2), st.sampled_from(list(Outcome)))] * 4,
)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as opened:
        yield opened


@pytest.fixture(scope="module")
def pools(owner_url: str, runner: asyncio.Runner) -> Iterator[Database]:
    """As `database`, for all the examples of one test."""
    database = Database(Access(owner_url, assume_role=True))
    runner.run(database.__aenter__())
    yield database
    runner.run(database.__aexit__(None, None, None))

    async def empty() -> None:
        owner = await asyncpg.connect(owner_url)
        await owner.execute("delete from organizations")
        await owner.close()

    runner.run(empty())


class _Told:
    """Does the same in two worlds: three people, on two servers, in one walkthrough; and remembers what they saw."""

    def __init__(self, worlds: tuple[World, World], slug: str) -> None:
        self.worlds = worlds
        self.slug = slug
        self.handles: list[list[str]] = [[], [], []]
        self.shown: set[tuple[int, int, int, str]] = set()
        """Person, attempt, version and key of each step that was shown."""

    async def begin(self, steps: tuple[str, ...]) -> None:
        self.callers: list[list[Caller]] = []
        for world in self.worlds:
            servers = [await world.server(self.slug, f"{self.slug}-{number}") for number in range(2)]
            # The first and the second are one person, on two servers.
            where = [(servers[0], "ada"), (servers[1], "ada"), (servers[0], "bob")]
            self.callers.append([await world.caller(server, f"{name}@example.com") for server, name in where])
        await self.publish(steps, PublishPolicy.KEEP)

    async def publish(self, steps: tuple[str, ...], policy: PublishPolicy) -> None:
        self.pass_time(1)  # so that no move by a call of its own is in the millisecond of the advance before it
        servers = (f"{self.slug}-0", f"{self.slug}-1")
        for world in self.worlds:
            await world.publish(*steps, organization=self.slug, policy=policy, servers=servers)

    async def select(self, person: int, how: str) -> None:
        self.pass_time(1)
        for world, callers in zip(self.worlds, self.callers, strict=True):
            lesson = await world.learning.select(
                callers[person], "tour", restart=how == "restart", to_latest=how == "latest"
            )
        self.remember(person, lesson)

    async def next(self, person: int, outcome: Outcome, handle: str, note: str | None) -> None:
        for world, callers in zip(self.worlds, self.callers, strict=True):
            try:
                lesson = await world.learning.next(callers[person], handle, None, outcome=outcome, note=note)
            except CairnError:
                return
        self.remember(person, lesson)

    def remember(self, person: int, lesson: Lesson) -> None:
        if lesson.step is not None:
            progress = lesson.progress
            self.handles[person].append(str(progress.handle()))
            self.shown.add((person, progress.attempt, progress.version, lesson.step.text.key))

    def shown_to(self, cohort: Cohort) -> dict[str, int]:
        """How many attempts of the cohort, whenever they began, were shown each step."""
        attempts = {
            (person, attempt, key)
            for person, attempt, version, key in self.shown
            if cohort.version in (None, version)
            and cohort.server_id in (None, self.callers[0][person].server.server_id)
        }
        return Counter(key for _, _, key in attempts)

    def pass_time(self, milliseconds: int) -> None:
        for world in self.worlds:
            world.clock.time += milliseconds


@pytest.mark.timeout(900)
@pytest.mark.promise("numbers")
@examples(60)
@given(data=st.data(), steps=key_orders, acts=st.lists(st.tuples(_ACTS, _PASSED), min_size=3, max_size=40))
def test_the_fake_and_postgres_count_the_same(
    data: st.DataObject,
    steps: tuple[str, ...],
    acts: list[tuple[tuple[object, ...], int]],
    runner: asyncio.Runner,
    pools: Database,
) -> None:
    run = next(_runs)
    given = [{"clock": SetClock(), "ids": CountedIds(run * 1_000_000)} for _ in range(2)]
    worlds = (in_memory(**given[0]), on_postgres(pools, **given[1]))
    told = _Told(worlds, f"r{run}")
    runner.run(told.begin(steps))
    moments = [told.worlds[0].clock.time]
    versions = 1
    for act, passed in acts:
        match act:
            case ("publish", PublishPolicy() as policy):
                steps = data.draw(revised(steps))
                runner.run(told.publish(steps, policy))
                versions += 1
            case ("select", int(person), str(how)):
                runner.run(told.select(person, how))
            case ("next", int(person), Outcome() as outcome) if told.handles[person]:
                # Mostly the newest handle; now and then one of a step that was left, or of another attempt.
                back = data.draw(st.sampled_from([1, 1, 1, 1, 2, 3]))
                handle = told.handles[person][-min(back, len(told.handles[person]))]
                note = data.draw(st.sampled_from([None, "why", "how"])) if outcome is Outcome.STUCK else None
                runner.run(told.next(person, outcome, handle, note))
        told.pass_time(passed)
        moments.append(told.worlds[0].clock.time)

    async def compare(cohort: Cohort, measures: Measures) -> None:
        fake, real = [await counts_of(world, told.slug, cohort, measures) for world in worlds]
        assert fake == real
        # And what must hold whatever the numbers are.
        whole = real.attempts
        ends = whole.completed, whole.in_progress, whole.abandoned, whole.restarted, whole.moved_on
        assert sum(ends) == whole.started
        assert whole.moved_on == 0 or cohort.version is not None
        if cohort.since is cohort.until is None:
            reached = {key: step.reached for key, step in real.steps.items() if step.reached}
            assert reached == told.shown_to(cohort)
        for step in real.steps.values():
            assert step.reached <= whole.started
            assert step.completed + step.here <= step.reached
            assert max(step.skipped, step.timed, step.too_fast) <= step.completed

    bounds = st.none() | st.sampled_from(moments)
    for version in (None, *range(1, versions + 1)):
        since, until = data.draw(bounds), data.draw(bounds)
        server = data.draw(st.sampled_from([None, *(caller.server.server_id for caller in told.callers[0])]))
        for cohort in (Cohort(version, None, None, None), Cohort(version, server, since, until)):
            runner.run(compare(cohort, replace(MEASURES, now=Millis(moments[-1]))))
