"""What the ports of learning promise, whichever implementation stands behind them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import pytest

from application.ports import VersionLibrary
from domain.errors import TemporarilyUnavailable
from domain.progress import (
    EventKind,
    Outcome,
    Progress,
    ProgressEvent,
    Told,
    Transition,
    replay,
)
from domain.tenancy import Caller, Millis, StepId, WalkthroughId
from domain.walkthrough import Outline, Publication, PublishPolicy, Step, VersionKey
from tests.worlds import World, manuscript

PUBLISHED = Publication(1, PublishPolicy.KEEP, is_available=True)
"""How a walkthrough of these tests is, unless something becomes of it."""


async def _begun(world: World, *steps: str) -> tuple[Caller, Progress]:
    server = await world.server()
    await world.publish(*steps)
    caller = await world.caller(server)
    lesson = await world.learning.select(caller, "tour", restart=False, to_latest=False)
    return caller, lesson.progress


def _advanced(progress: Progress, step: str = "stp_next") -> Transition:
    event = ProgressEvent(
        revision=progress.revision + 1,
        kind=EventKind.ADVANCED,
        attempt=progress.attempt,
        version=progress.version,
        from_step_id=progress.current_step_id,
        to_step_id=StepId(step),
        outcome=Outcome.DONE,
        note=None,
        occurred_at=Millis(progress.last_activity_at + 1),
    )
    after = replace(progress, revision=event.revision, current_step_id=StepId(step), last_activity_at=event.occurred_at)
    return Transition(progress, after, (event,), Told.ADVANCED)


async def _stored(world: World, caller: Caller) -> Progress | None:
    (standing,) = await world.catalogue.matching(caller, "tour")
    return standing.progress


async def test_a_transition_is_committed_once(world: World) -> None:
    caller, progress = await _begun(world, "a", "b")
    transition = _advanced(progress)
    assert await world.progress.commit(transition, PUBLISHED)
    assert not await world.progress.commit(transition, PUBLISHED)
    assert await _stored(world, caller) == transition.after
    assert len(await world.progress.events(progress.key)) == 2


async def test_a_decision_on_what_is_no_longer_so_changes_nothing(world: World) -> None:
    caller, progress = await _begun(world, "a", "b")
    assert await world.progress.commit(_advanced(progress, "stp_first"), PUBLISHED)
    assert not await world.progress.commit(_advanced(progress, "stp_second"), PUBLISHED)
    stored = await _stored(world, caller)
    assert stored is not None
    assert stored.current_step_id == "stp_first"
    assert [event.to_step_id for event in await world.progress.events(progress.key)][1:] == ["stp_first"]


@pytest.mark.parametrize(
    "other",
    [{"revision": 2}, {"attempt": 2}, {"last_activity_at": Millis(1)}, {"current_step_id": StepId("stp_other")}],
    ids=lambda other: next(iter(other)),
)
async def test_a_decision_on_what_never_was_changes_nothing(world: World, other: dict[str, Any]) -> None:
    """As of a database that went back in time, and counts the same revisions again for something else."""
    caller, progress = await _begun(world, "a", "b")
    before = replace(progress, **({"started_at": Millis(0)} | other))
    assert not await world.progress.commit(_advanced(before), PUBLISHED)
    assert await _stored(world, caller) == progress
    assert len(await world.progress.events(progress.key)) == 1


async def test_a_resume_that_an_author_overtakes_is_recorded_all_the_same(world: World) -> None:
    caller, progress = await _begun(world, "a", "b")
    commit = world.progress.commit

    async def overtaken(*given: Any) -> bool:
        world.progress.commit = commit  # type: ignore[method-assign]  # the next are as they were
        await world.publish("a", "b", "c")
        return await commit(*given)

    world.progress.commit = overtaken  # type: ignore[method-assign]  # for one commit
    lesson = await world.learning.select(caller, "tour", restart=False, to_latest=False)
    assert lesson.told is Told.RESUMED
    assert [event.kind for event in await world.progress.events(progress.key)] == ["started", "resumed"]
    assert await _stored(world, caller) == lesson.progress


_BY = "author@example.com"
AUTHORS_MAY: dict[str, Callable[[World], Awaitable[object]]] = {
    "publish it anew": lambda world: world.publish("a", "b", "c", "d"),
    "withdraw the version that somebody is on": lambda world: world.authoring.withdraw("acme", "tour", 1, by=_BY),
    "hide it everywhere": lambda world: world.authoring.unpublish("acme", "tour", by=_BY),
    "put it away": lambda world: world.authoring.archive("acme", "tour", by=_BY),
    "hide it on this server": lambda world: world.authoring.disable("acme", "tour", ["guides"]),
    "take it from this server": lambda world: world.authoring.unassign("acme", "tour", ["guides"]),
}


@pytest.mark.parametrize("what", AUTHORS_MAY)
async def test_a_decision_on_what_an_author_has_changed_since_changes_nothing(world: World, what: str) -> None:
    caller, progress = await _begun(world, "a", "b")
    await world.publish("a", "b", "c")
    (decided_on,) = await world.catalogue.matching(caller, "tour")
    await AUTHORS_MAY[what](world)
    assert not await world.progress.commit(_advanced(progress), decided_on.publication)
    assert len(await world.progress.events(progress.key)) == 1
    (since,) = await world.catalogue.matching(caller, "tour")
    assert since.progress == progress
    assert await world.progress.commit(_advanced(progress), since.publication)


async def test_a_progress_begins_once(world: World) -> None:
    caller, progress = await _begun(world, "a", "b")
    (event,) = await world.progress.events(progress.key)
    again = Transition(None, replace(progress, started_at=Millis(5)), (event,), Told.STARTED)
    assert not await world.progress.commit(again, PUBLISHED)
    assert await _stored(world, caller) == progress
    assert len(await world.progress.events(progress.key)) == 1


@pytest.mark.parametrize("what", [each for each in AUTHORS_MAY if "withdraw" not in each])
async def test_nobody_begins_what_an_author_has_changed_since(world: World, what: str) -> None:
    caller, progress = await _begun(world, "a", "b")
    await world.publish("a", "b", "c")
    (decided_on,) = await world.catalogue.matching(caller, "tour")
    server = await world.servers.server_at(slug="guides", custom_domain=None)
    assert server is not None
    bob = await world.caller(server, "bob@example.com")
    assert bob.user_id is not None
    (event,) = await world.progress.events(progress.key)
    begins = Transition(None, replace(progress, key=progress.key._replace(user_id=bob.user_id)), (event,), Told.STARTED)
    await AUTHORS_MAY[what](world)
    assert not await world.progress.commit(begins, decided_on.publication)
    assert await world.progress.events(begins.after.key) == []


async def test_a_transition_moves_one_person_on_one_server_in_one_walkthrough_alone(world: World) -> None:
    guides, labs = await world.server(), await world.server(slug="labs")
    for key in ("tour", "other"):
        await world.publish("a", "b", key=key, title=key, servers=("guides", "labs"))
    ada, bob = await world.caller(guides), await world.caller(guides, "bob@example.com")
    places = [(ada, "tour"), (bob, "tour"), (await world.caller(labs), "tour"), (ada, "other")]
    begun = [
        (await world.learning.select(caller, key, restart=False, to_latest=False)).progress for caller, key in places
    ]
    assert await world.progress.commit(_advanced(begun[0]), PUBLISHED)
    stands = [standing.progress for place in places for standing in await world.catalogue.matching(*place)]
    assert stands == [_advanced(begun[0]).after, *begun[1:]]
    assert [len(await world.progress.events(progress.key)) for progress in begun] == [2, 1, 1, 1]


async def test_two_events_of_one_call_are_committed_together(world: World) -> None:
    caller, progress = await _begun(world, "a", "b")
    first = _advanced(progress)
    second = _advanced(first.after, "stp_last")
    both = Transition(progress, second.after, first.events + second.events, Told.MOVED_TO_LATEST)
    assert await world.progress.commit(both, PUBLISHED)
    assert await _stored(world, caller) == second.after
    assert [event.revision for event in await world.progress.events(progress.key)] == [1, 2, 3]


async def test_a_note_is_known_by_attempt_step_and_text(world: World) -> None:
    caller, progress = await _begun(world, "a", "b")
    assert progress.current_step_id is not None
    handle = str(progress.handle())
    for note in ("why?", None):
        await world.learning.next(caller, handle, None, outcome=Outcome.STUCK, note=note)
    await world.learning.next(caller, handle, None, outcome=Outcome.DONE, note="that's why")
    step = progress.current_step_id
    for attempt, step_id, note, expected in (
        (1, step, "why?", True),
        (1, step, None, True),
        (1, step, "how?", False),
        (1, step, "that's why", False),
        (2, step, "why?", False),
        (1, StepId("stp_other"), "why?", False),
    ):
        assert await world.progress.is_noted(progress.key, attempt, step_id, note) is expected


async def test_drafts_unknown_versions_and_other_organisations_are_not_in_the_library(world: World) -> None:
    await world.server()
    number = await world.publish("a", "b")
    draft = await world.authoring.push("acme", manuscript("a", "c"), publish=None, servers=[], by="author@example.com")
    organization_id = await world.tenants.organization("acme")
    other = await world.tenancy.create_organization("globex")
    assert organization_id is not None
    published = VersionKey(organization_id, draft.walkthrough_id, number)
    wanted = [
        published,
        VersionKey(organization_id, draft.walkthrough_id, draft.version),
        VersionKey(organization_id, draft.walkthrough_id, 99),
        VersionKey(organization_id, WalkthroughId("wlk_other"), number),
        VersionKey(other, draft.walkthrough_id, number),
    ]
    found = await world.library.outlines(wanted)
    assert set(found) == {published}
    assert [key for key in wanted if await world.walkthroughs.version(key) is not None] == [published]
    walkthrough = await world.walkthroughs.read(organization_id, "tour")
    assert walkthrough is not None
    assert walkthrough.draft is not None
    ids = [step.id for step in (*found[published].steps, *walkthrough.draft.steps)]
    theirs = [key for key in wanted for id in (*ids, StepId("stp_other")) if await world.library.step(key, id)]
    assert theirs == [published, published]


class _Torn:
    """A library that is away by the time that a step is asked for."""

    def __init__(self, library: VersionLibrary) -> None:
        self._library = library

    async def outlines(self, keys: Collection[VersionKey]) -> Mapping[VersionKey, Outline]:
        return await self._library.outlines(keys)

    async def step(self, version: VersionKey, step_id: StepId) -> Step | None:
        raise TemporarilyUnavailable


async def test_nobody_is_moved_to_a_step_that_cannot_be_shown(world: World) -> None:
    caller, progress = await _begun(world, "a", "b")
    await world.publish("x", key="other", title="Another one")
    await world.publish("a", "b", "c", policy=PublishPolicy.OFFER)
    torn = replace(world, library=_Torn(world.library)).learning
    for move in (
        torn.next(caller, str(progress.handle()), None, outcome=Outcome.DONE, note=None),
        torn.select(caller, "tour", restart=True, to_latest=False),
        torn.select(caller, "tour", restart=False, to_latest=True),
        torn.select(caller, "other", restart=False, to_latest=False),
    ):
        with pytest.raises(TemporarilyUnavailable):
            await move
    assert [standing.progress for standing in await world.catalogue.standings(caller)] == [progress, None]
    assert len(await world.progress.events(progress.key)) == 1


async def test_a_catalogue_is_one_servers_and_shows_one_persons_progress(world: World) -> None:
    guides = await world.server()
    labs = await world.server(slug="labs")
    foreign = await world.server("globex", "foreign")
    await world.publish("a", "b", key="tour", servers=("guides", "labs"))
    await world.publish("x", key="other", title="Another one")
    await world.publish("x", key="theirs", organization="globex", servers=("foreign",))
    ada, bob = await world.caller(guides), await world.caller(guides, "bob@example.com")
    await world.learning.select(ada, "tour", restart=False, to_latest=False)

    seen = {
        name: [(each.key, each.progress is not None) for each in await world.catalogue.standings(caller)]
        for name, caller in {
            "ada": ada,
            "bob": bob,
            "nobody": Caller(guides.key, None),
            "ada on labs": await world.caller(labs),
            "foreign": await world.caller(foreign),
        }.items()
    }
    assert seen == {
        "ada": [("tour", True), ("other", False)],
        "bob": [("tour", False), ("other", False)],
        "nobody": [("tour", False), ("other", False)],
        "ada on labs": [("tour", False)],
        "foreign": [("theirs", False)],
    }


async def test_a_walkthrough_is_matched_by_id_key_and_title_whatever_its_letter_case(world: World) -> None:
    caller, progress = await _begun(world, "a")
    for reference in (progress.key.walkthrough_id, "tour", "The tour", "THE TOUR"):
        (standing,) = await world.catalogue.matching(caller, reference)
        assert standing.key == "tour"
    for reference in ("tou", "TOUR", "%", "", "a\x00b", "\ud800"):
        assert await world.catalogue.matching(caller, reference) == []


async def test_a_list_is_in_display_order(world: World) -> None:
    server = await world.server()
    for key in ("one", "two", "three"):
        await world.publish("a", key=key, title=key)
    await world.authoring.assign("acme", "three", [("guides", 1)])
    await world.authoring.assign("acme", "two", [("guides", None)])  # keeps its place
    standings = await world.catalogue.standings(Caller(server.key, None))
    assert [each.key for each in standings] == ["one", "three", "two"]  # 1, 1, 2: equal places go by key


async def test_a_walkthrough_that_was_never_published_is_nowhere(world: World) -> None:
    server = await world.server()
    await world.authoring.push(
        "acme", manuscript("a"), publish=None, servers=[("guides", None)], by="author@example.com"
    )
    assert await world.catalogue.standings(Caller(server.key, None)) == []


@pytest.mark.promise("replay")
async def test_events_replay_to_the_stored_progress(world: World) -> None:
    caller, progress = await _begun(world, "a", "b", "c")
    lesson = await world.learning.next(caller, str(progress.handle()), None, outcome=Outcome.DONE, note=None)
    await world.publish("n", "a", "b", "c", policy=PublishPolicy.CARRY_OVER)
    handle = str(lesson.progress.handle())
    lesson = await world.learning.next(caller, handle, None, outcome=Outcome.SKIPPED, note="known")
    assert lesson.told is Told.MOVED_TO_LATEST
    await world.learning.select(caller, "tour", restart=True, to_latest=False)
    keys = [VersionKey(progress.key.organization_id, progress.key.walkthrough_id, number) for number in (1, 2)]
    versions = {key.number: version for key, version in (await world.library.outlines(keys)).items()}
    events = await world.progress.events(progress.key)
    assert [event.kind.value for event in events] == ["started", "advanced", "advanced", "moved", "restarted"]
    assert replay(progress.key, events, versions) == await _stored(world, caller)
