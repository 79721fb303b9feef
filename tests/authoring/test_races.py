"""Authors who meet, and authors who meet learners, on PostgreSQL: each race is seen to happen before it may go on."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from adapters.postgres.connections import Database
from application.authoring import Stored
from domain.draft import InsertStep, RemoveStep
from domain.errors import CairnError, PublishedMeanwhile, StaleEdit, VersionWithdrawn
from domain.progress import Outcome, Told, replay
from domain.tenancy import Caller, StepId
from domain.walkthrough import PublishPolicy, Step, StepText, VersionKey
from tests.faults.test_races import held_back
from tests.patience import until_waiting
from tests.storage.conftest import until_waited_for
from tests.torture.checker import violations
from tests.worlds import World, manuscript, on_postgres

ADA, BOB = "ada@example.com", "bob@example.com"
# `make storm` says for how long people learn at least while versions are published.
_STORM_SECONDS = float(os.environ.get("CAIRN_STORM_SECONDS") or 0)
_WALKTHROUGH = "select 1 from walkthroughs for update"
_PROGRESS = "select 1 from walkthrough_progress for update"


@pytest.fixture
async def world(database: Database) -> World:
    """A world where version 1 of `tour` is published, with the steps a, b and c."""
    made = on_postgres(database)
    await made.server()
    await made.publish("a", "b", "c")
    return made


async def _met(owner_url: str, owner: asyncpg.Connection, *calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What came of these calls, all of which waited for the walkthrough's row before any went on."""

    async def outcome(call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await call()
        except CairnError as error:
            return error

    async with held_back(owner_url, owner, _WALKTHROUGH, len(calls)):
        tasks = [asyncio.create_task(outcome(call)) for call in calls]
    return list(await asyncio.gather(*tasks))


def _insert(key: str) -> InsertStep:
    return InsertStep(Step(StepId("-"), StepText(key, "Title", "Do it.")), None)


@pytest.mark.parametrize("is_begun", [False, True], ids=["the first edit", "a later one"])
async def test_of_two_editors_one_wins_and_the_other_is_told_what_the_first_did(
    world: World, owner: asyncpg.Connection, owner_url: str, is_begun: bool
) -> None:
    revision = 0
    if is_begun:
        revision = (await world.authoring.edit("acme", "tour", (2, 0), [RemoveStep("c")], by=ADA)).revision
    edits = {ADA: _insert("x"), BOB: _insert("y")}
    outcomes = await _met(
        owner_url,
        owner,
        *(
            lambda by=by, edit=edit: world.authoring.edit("acme", "tour", (2, revision), [edit], by=by)
            for by, edit in edits.items()
        ),
    )
    (stale,) = [each for each in outcomes if isinstance(each, StaleEdit)]
    (draft,) = [each for each in outcomes if not isinstance(each, StaleEdit)]
    (since,) = stale.since
    assert draft.revision == revision + 1
    assert isinstance(since.edit, InsertStep)
    assert since.edit.step.text == edits[since.edited_by].step.text
    assert await world.authoring.draft("acme", "tour") == draft
    # The other one looks, and edits again: nothing of either is lost.
    loser = BOB if since.edited_by == ADA else ADA
    after = await world.authoring.edit("acme", "tour", (2, revision + 1), [edits[loser]], by=loser)
    assert {"x", "y"} <= {step.text.key for step in after.steps}


@pytest.mark.promise("race.publish")
async def test_of_two_publishers_of_one_draft_one_is_told_that_it_is_published(
    world: World, owner: asyncpg.Connection, owner_url: str
) -> None:
    await world.authoring.edit("acme", "tour", (2, 0), [_insert("x")], by=ADA)
    outcomes = await _met(
        owner_url,
        owner,
        lambda: world.authoring.publish("acme", "tour", (2, 1), PublishPolicy.OFFER, by=ADA),
        lambda: world.authoring.publish("acme", "tour", (2, 1), PublishPolicy.SUPERSEDE, by=BOB),
    )
    (won,) = [each for each in outcomes if isinstance(each, Stored)]
    (lost,) = [each for each in outcomes if isinstance(each, PublishedMeanwhile)]
    history = await world.authoring.versions("acme", "tour")
    assert [each.record.number for each in history.versions] == [1, 2]
    assert (won.version, lost.version) == (2, history.versions[-1].record)
    winner = ADA if outcomes[0] is won else BOB
    assert [each.by for each in history.ledger] == ["author@example.com", winner]


@pytest.mark.promise("race.publish")
@pytest.mark.parametrize("expected_latest", [1, None], ids=["who say so", "who say nothing"])
async def test_of_two_pushes_that_expect_the_same_latest_version_one_is_published(
    world: World, owner: asyncpg.Connection, owner_url: str, expected_latest: int | None
) -> None:
    async def push(key: str, by: str) -> Stored:
        return await world.authoring.push(
            "acme", manuscript(key), publish=PublishPolicy.KEEP, servers=[], by=by, expected_latest=expected_latest
        )

    outcomes = await _met(owner_url, owner, lambda: push("x", ADA), lambda: push("y", BOB))
    assert {type(each) for each in outcomes} == {Stored, PublishedMeanwhile}
    assert len((await world.authoring.versions("acme", "tour")).versions) == 2


async def test_two_first_pushes_of_a_key_make_one_walkthrough(world: World) -> None:
    """Whichever comes second finds the row of the first, and is told of its version."""

    async def push(step: str, publish: PublishPolicy | None) -> Stored:
        return await world.authoring.push(
            "acme",
            manuscript(step, key="draft" if publish is None else "new"),
            publish=publish,
            servers=[("guides", None)],
            by=ADA,
        )

    drafts = await asyncio.gather(push("x", None), push("y", None))
    assert [each.version for each in drafts] == [1, 1]
    assert len({each.walkthrough_id for each in drafts}) == 1
    versions = await asyncio.gather(
        push("x", PublishPolicy.KEEP), push("y", PublishPolicy.KEEP), return_exceptions=True
    )
    stored = [each for each in versions if isinstance(each, Stored)]
    lost = [each for each in versions if isinstance(each, PublishedMeanwhile)]
    # Whether the second had begun before the first was done is not for this test to say.
    assert len(stored) + len(lost) == 2
    assert sorted(each.version for each in stored) == list(range(1, len(stored) + 1))
    assert len({each.walkthrough_id for each in stored}) == 1


@pytest.mark.promise("race.publish")
async def test_of_a_publish_and_an_edit_that_meet_one_is_stale(
    world: World, owner: asyncpg.Connection, owner_url: str
) -> None:
    await world.authoring.edit("acme", "tour", (2, 0), [_insert("x")], by=ADA)
    published, edited = await _met(
        owner_url,
        owner,
        lambda: world.authoring.publish("acme", "tour", (2, 1), PublishPolicy.KEEP, by=ADA),
        lambda: world.authoring.edit("acme", "tour", (2, 1), [_insert("y")], by=BOB),
    )
    history = await world.authoring.versions("acme", "tour")
    if isinstance(published, Stored):
        assert isinstance(edited, StaleEdit)
        assert [each.record.step_count for each in history.versions] == [3, 4]
        assert history.draft is None
    else:
        assert isinstance(published, StaleEdit)
        assert [each.edited_by for each in published.since] == [BOB]
        assert [each.record.step_count for each in history.versions] == [3]
        assert history.draft == edited


async def _replays(world: World, caller: Caller) -> None:
    (standing,) = await world.catalogue.standings(caller)
    progress = standing.progress
    assert progress is not None
    events = await world.progress.events(progress.key)
    keys = [VersionKey(progress.key.organization_id, progress.key.walkthrough_id, each.version) for each in events]
    versions = {key.number: each for key, each in (await world.library.outlines(keys)).items()}
    assert replay(progress.key, events, versions) == progress


@pytest.mark.promise("race.publish")
@pytest.mark.parametrize("policy", PublishPolicy)
async def test_a_step_that_is_completed_while_a_version_is_published_counts(
    world: World, owner: asyncpg.Connection, owner_url: str, policy: PublishPolicy
) -> None:
    """The advance was decided on version 1, and waits to be stored while version 2 comes."""
    caller = await world.caller(await world.tenancy.server("guides"))
    lesson = await world.learning.select(caller, "tour", restart=False, to_latest=False)
    handle = str(lesson.progress.handle())
    async with held_back(owner_url, owner, _PROGRESS, 1):
        advance = asyncio.create_task(world.learning.next(caller, handle, None, outcome=Outcome.DONE, note=None))
        await until_waiting(owner)
        assert await world.publish("n", "a", "b", "c", policy=policy) == 2
        assert not advance.done()
    lesson = await advance
    assert lesson.told is Told.ADVANCED
    assert lesson.progress.version == 1
    handle = str(lesson.progress.handle())
    if policy is PublishPolicy.SUPERSEDE:
        with pytest.raises(VersionWithdrawn):
            await world.learning.next(caller, handle, None, outcome=Outcome.DONE, note=None)
        lesson = await world.learning.select(caller, "tour", restart=False, to_latest=False)
        assert lesson.told is Told.RESTARTED
    else:
        lesson = await world.learning.next(caller, handle, None, outcome=Outcome.DONE, note=None)
        is_moved = policy is PublishPolicy.CARRY_OVER
        assert lesson.told is (Told.MOVED_TO_LATEST if is_moved else Told.ADVANCED)
        assert lesson.progress.completed_keys(lesson.version) == {"a", "b"}
    await _replays(world, caller)


async def test_nobody_who_learns_waits_for_an_author(world: World, owner: asyncpg.Connection, owner_url: str) -> None:
    caller = await world.caller(await world.tenancy.server("guides"))
    lesson = await world.learning.select(caller, "tour", restart=False, to_latest=False)
    async with owner.transaction():
        await owner.execute(_WALKTHROUGH)
        publish = asyncio.create_task(world.publish("n", policy=PublishPolicy.SUPERSEDE))
        await until_waited_for(owner, publish)
        handle = str(lesson.progress.handle())
        lesson = await world.learning.next(caller, handle, None, outcome=Outcome.DONE, note=None)
        assert lesson.told is Told.ADVANCED
        assert not publish.done()
    assert await publish == 2
    await _replays(world, caller)


@pytest.mark.promise("race.publish")
async def test_fifty_publishes_of_all_policies_while_32_people_learn_lose_nobody_a_step(
    world: World, owner: asyncpg.Connection
) -> None:
    """No sleeping: each publish comes when sixty more steps have been completed since the last.

    `make storm` goes on for longer, with more of them.
    """
    keys = [f"s{number}" for number in range(8)]
    await world.publish(*keys)
    server = await world.tenancy.server("guides")
    advanced, published, is_over = 0, 0, False
    ends_at = time.monotonic() + _STORM_SECONDS

    async def author() -> None:
        nonlocal published, is_over
        policies = list(PublishPolicy)
        while published < 50 or time.monotonic() < ends_at:
            number = published
            before = advanced
            while advanced < before + 60:  # noqa: ASYNC110  # the learners run on this same loop
                await asyncio.sleep(0)
            if number % 5 == 4:
                await world.authoring.roll_back("acme", "tour", number - 2, policies[number % 4], by=ADA)
            else:
                rotated = keys[number % 8 :] + keys[: number % 8]
                await world.publish(*rotated, f"n{number}", policy=policies[number % 4])
            published += 1
        is_over = True

    async def learn(number: int) -> Caller:
        nonlocal advanced
        caller = await world.caller(server, f"learner{number}@example.com")
        attempt, completed = 0, set[str]()
        while not is_over:
            lesson = await world.learning.select(caller, "tour", restart=False, to_latest=False)
            while lesson.step is not None:
                if lesson.progress.attempt != attempt:
                    attempt, completed = lesson.progress.attempt, set()
                assert completed <= lesson.progress.completed_keys(lesson.version), "what was completed is not any more"
                assert lesson.step.text.key not in completed, "shown again what was completed before"
                shown = lesson.step.text.key
                try:
                    handle = str(lesson.progress.handle())
                    lesson = await world.learning.next(caller, handle, None, outcome=Outcome.DONE, note=None)
                except VersionWithdrawn:
                    break
                completed.add(shown)
                advanced += 1
            else:
                await world.learning.select(caller, "tour", restart=True, to_latest=False)
        return caller

    *callers, _ = await asyncio.gather(*(learn(number) for number in range(32)), author())
    ledger = (await world.authoring.versions("acme", "tour")).ledger
    assert len(ledger) == 2 + published
    for caller in callers:
        assert caller is not None
        await _replays(world, caller)
    assert await violations(owner) == []
    by_policy = Counter(entry.policy.value for entry in ledger[2:] if entry.policy)
    print(
        f"{advanced:,} steps taken by {len(callers)} people during {published} publishes ({dict(by_policy)}): none lost"
    )
