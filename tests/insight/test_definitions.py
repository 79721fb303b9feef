"""Each number at the edge of its definition, told by small stories."""

from __future__ import annotations

from dataclasses import replace

import pytest

from application.insight import Funnel, FunnelStep
from domain.errors import InvalidValue, NotFound
from domain.progress import Outcome
from domain.tenancy import Caller, Millis
from domain.walkthrough import PublishPolicy
from tests.worlds import World, in_memory, manuscript

SECOND, MINUTE, DAY = 1_000, 60_000, 86_400_000


class Story:
    """Acts on one server, and asks for the numbers."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.handles: dict[str, str] = {}

    async def caller(self, name: str) -> Caller:
        return await self.world.caller(await self.world.tenancy.server("guides"), f"{name}@example.com")

    async def select(self, name: str = "ada", *, after: int = 0, restart: bool = False) -> None:
        self.world.clock.time += after
        lesson = await self.world.learning.select(await self.caller(name), "tour", restart=restart, to_latest=False)
        self.handles[name] = str(lesson.progress.handle())

    async def next(self, name: str = "ada", *, after: int = 0, does: str = "done", note: str | None = None) -> None:
        self.world.clock.time += after
        lesson = await self.world.learning.next(
            await self.caller(name), self.handles[name], None, outcome=Outcome(does), note=note
        )
        self.handles[name] = str(lesson.progress.handle())

    async def funnel(self, version: int | None = None, days: int = 14) -> Funnel:
        return await self.world.insight.funnel("acme", "tour", version=version, abandoned_after_days=days)

    async def step(self, key: str, version: int | None = None) -> FunnelStep:
        return next(step for step in (await self.funnel(version)).steps if step.counts.key == key)


@pytest.fixture
async def story() -> Story:
    world = in_memory()
    await world.server()
    await world.publish("a", "b", "c")
    return Story(world)


@pytest.mark.promise("numbers")
@pytest.mark.parametrize(("gap", "resumed", "active"), [(30 * MINUTE, 0, 31 * MINUTE), (30 * MINUTE + 1, 1, MINUTE)])
async def test_a_pause_begins_after_30_minutes_and_is_no_part_of_the_time(
    story: Story, gap: int, resumed: int, active: int
) -> None:
    await story.select()
    await story.select(after=gap)
    await story.next(after=MINUTE)
    assert (await story.funnel()).attempts.resumed == resumed
    assert (await story.step("a")).counts.median_active == active


@pytest.mark.promise("numbers")
async def test_a_step_of_whose_time_nothing_is_left_is_in_no_median(story: Story) -> None:
    await story.select()
    await story.next(after=2 * DAY)
    counts = (await story.step("a")).counts
    assert (counts.completed, counts.timed, counts.median_active) == (1, 0, None)


@pytest.mark.promise("numbers")
@pytest.mark.parametrize(("gap", "too_fast"), [(3 * SECOND, 1), (3 * SECOND + 1, 0)])
async def test_two_advances_within_3_seconds_are_too_fast_at_the_second_step(
    story: Story, gap: int, too_fast: int
) -> None:
    await story.select()
    await story.next()  # however soon after the start: that is one advance
    assert (await story.funnel()).attempts.too_fast == 0
    await story.select(after=gap - 1)  # what lies between does not matter
    await story.next(after=1)
    assert (await story.funnel()).attempts.too_fast == too_fast
    assert [(await story.step(key)).counts.too_fast for key in "abc"] == [0, too_fast, 0]


@pytest.mark.promise("numbers")
@pytest.mark.parametrize(("idle", "state"), [(14 * DAY - 1, "in_progress"), (14 * DAY, "abandoned")])
async def test_abandoned_is_who_did_nothing_for_the_days_that_are_asked_for(
    story: Story, idle: int, state: str
) -> None:
    await story.select()
    story.world.clock.time += idle
    funnel = await story.funnel()
    assert [getattr(funnel.attempts, name) for name in ("in_progress", "abandoned")] == [
        int(state == name) for name in ("in_progress", "abandoned")
    ]
    assert funnel.steps[0].counts.here == int(state == "in_progress")
    assert (await story.funnel(days=15)).attempts.in_progress == 1


@pytest.mark.promise("numbers")
async def test_beginning_again_is_another_attempt_and_gives_up_only_what_was_not_completed(story: Story) -> None:
    await story.select("ada")
    await story.next("ada")
    await story.select("ada", restart=True, after=DAY)
    await story.select("bob")
    for _ in "abc":
        await story.next("bob")
    await story.select("bob", restart=True)
    attempts = (await story.funnel()).attempts
    assert (attempts.started, attempts.people) == (4, 2)
    assert (attempts.completed, attempts.restarted, attempts.in_progress) == (1, 1, 2)
    assert attempts.resumed == 0  # to begin again is not to go on


@pytest.mark.promise("numbers")
async def test_who_moves_between_versions_counts_once_on_the_whole_and_once_on_each(story: Story) -> None:
    await story.select()
    await story.next(after=MINUTE)
    await story.next(after=MINUTE)
    await story.world.publish("x", "b", "c", "a", policy=PublishPolicy.CARRY_OVER)
    await story.select(after=MINUTE)  # has done a and b, and lands on x
    await story.next(after=MINUTE)  # passes b over, to c
    whole, first, second = [(await story.funnel(version)) for version in (None, 1, 2)]
    assert [each.attempts.started for each in (whole, first, second)] == [1, 1, 1]
    assert [each.attempts.in_progress for each in (whole, first, second)] == [1, 0, 1]
    assert [each.attempts.moved_on for each in (whole, first, second)] == [0, 1, 0]

    def reached(funnel: Funnel) -> dict[str, tuple[int, int]]:
        return {step.counts.key: (step.counts.reached, step.counts.completed) for step in funnel.steps}

    # In the order of the version that is shown. What is passed over is not reached again.
    assert list(reached(whole).items()) == [("x", (1, 1)), ("b", (1, 1)), ("c", (1, 0)), ("a", (1, 1))]
    assert list(reached(first).items()) == [("a", (1, 1)), ("b", (1, 1)), ("c", (1, 0))]
    assert list(reached(second).items()) == [("x", (1, 1)), ("b", (0, 0)), ("c", (1, 0)), ("a", (0, 0))]


@pytest.mark.promise("numbers")
async def test_a_step_that_the_shown_version_does_not_have_follows_without_number_and_title(story: Story) -> None:
    await story.select()
    await story.next(after=MINUTE)
    await story.next(after=MINUTE)
    await story.world.publish("z", "c")
    assert [(step.number, step.title, step.counts.key) for step in (await story.funnel()).steps] == [
        (1, "Step z", "z"),
        (2, "Step c", "c"),
        (None, None, "a"),
        (None, None, "b"),
    ]


@pytest.mark.promise("numbers")
async def test_rates_are_of_all_that_started_and_of_all_that_reached(story: Story) -> None:
    empty = await story.funnel()
    assert empty.completion_rate is None
    assert [step.drop_off for step in empty.steps] == [None, None, None]
    for name in ("ada", "bob", "cem", "dan"):
        await story.select(name)
    for name in ("ada", "ada", "ada", "bob"):
        await story.next(name, after=MINUTE)
    funnel = await story.funnel()
    assert funnel.completion_rate == 0.25
    assert [step.drop_off for step in funnel.steps] == [0.5, 0.5, 0.0]


@pytest.mark.promise("numbers")
async def test_who_is_stuck_several_times_at_a_step_counts_once_and_each_note_is_listed(story: Story) -> None:
    await story.select()
    for note in ("why", None, "how"):
        await story.next(does="stuck", note=note, after=SECOND)
    await story.next(after=MINUTE)
    funnel = await story.funnel()
    assert (funnel.attempts.stuck, [step.counts.stuck for step in funnel.steps]) == (1, [1, 0, 0])
    assert [(note.step_key, note.version, note.note) for note in funnel.notes] == [("a", 1, "how"), ("a", 1, "why")]


@pytest.mark.promise("numbers")
async def test_the_time_range_takes_whole_attempts_by_when_they_began(story: Story) -> None:
    began = story.world.clock.time
    await story.select()
    for _ in "abc":
        await story.next(after=DAY)

    async def completed(since: int | None, until: int | None) -> tuple[int, int]:
        funnel = await story.world.insight.funnel(
            "acme", "tour", since=since and Millis(since), until=until and Millis(until)
        )
        return funnel.attempts.started, funnel.attempts.completed

    assert await completed(began, began + 1) == (1, 1)
    assert await completed(began + 1, None) == (0, 0)
    assert await completed(None, began) == (0, 0)


@pytest.mark.promise("numbers")
async def test_another_organisations_walkthrough_and_server_are_as_if_they_were_not_there(story: Story) -> None:
    world = story.world
    await world.server("globex", "theirs")
    await world.publish("a", key="secret", organization="globex", servers=("theirs",))
    told = []
    for key, server in (("secret", None), ("nothing", None), ("tour", "theirs"), ("tour", "nothing")):
        with pytest.raises(NotFound) as refused:
            await world.insight.funnel("acme", key, server=server)
        told.append(str(refused.value))
    assert told[0] == told[1].replace("nothing", "secret")
    assert told[2] == told[3].replace("nothing", "theirs")


@pytest.mark.promise("numbers")
async def test_what_was_never_published_or_cannot_be_asked_is_refused(story: Story) -> None:
    world = story.world
    await world.authoring.push("acme", manuscript("a", key="draft"), publish=None, servers=[], by="author@example.com")
    await world.authoring.push(
        "acme", replace(manuscript("a"), title="Newer"), publish=None, servers=[], by="author@example.com"
    )
    with pytest.raises(NotFound, match="draft was never published"):
        await world.insight.funnel("acme", "draft")
    with pytest.raises(NotFound, match="no published version 2 of tour: the latest is 1"):
        await story.funnel(version=2)  # which is the draft
    for days in (0, 3_651):
        with pytest.raises(InvalidValue, match="from 1 to 3650"):
            await story.funnel(days=days)
    with pytest.raises(InvalidValue, match="ends before it begins"):
        await world.insight.funnel("acme", "tour", since=Millis(5), until=Millis(5))
