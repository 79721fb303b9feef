"""Publishing and taking back: versions, rollback, the archive, withdrawal, the dry run, and the ledger of it all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from application.authoring import Done, Stored
from domain.draft import InsertStep, SetDetails
from domain.errors import EditedInPlace, NotFound, OperatorError, PublishedMeanwhile, StaleEdit, WalkthroughUnavailable
from domain.forecast import Fate, Outlook
from domain.progress import Outcome, Told
from domain.publishing import Deed, LedgerEntry
from domain.tenancy import StepId
from domain.walkthrough import PublishPolicy, Step, StepText, VersionState
from tests.worlds import World, manuscript

ADA, BOB = "ada@example.com", "bob@example.com"
KEEP, OFFER, CARRY_OVER, SUPERSEDE = PublishPolicy


@pytest.fixture
async def tour(world: World) -> World:
    """A world where version 1 of `tour` is published by Ada, with the steps a and b."""
    await world.server()
    await world.publish("a", "b", by=ADA)
    return world


async def edited(world: World, key: str = "x", by: str = BOB) -> tuple[int, int]:
    """Puts a step in front of the draft, and returns the draft's number and revision."""
    draft = await world.authoring.draft("acme", "tour")
    edit = InsertStep(Step(StepId("-"), StepText(key, "Title", "Do it.")), None)
    draft = await world.authoring.edit("acme", "tour", (draft.key.number, draft.revision), [edit], by=by)
    return draft.key.number, draft.revision


async def told(world: World) -> list[tuple[object, ...]]:
    """The ledger, without times and hashes."""
    ledger = (await world.authoring.versions("acme", "tour")).ledger
    return [(each.deed, each.version, each.policy, each.source_version, each.by) for each in ledger]


async def states(world: World) -> dict[int, VersionState]:
    versions = (await world.authoring.versions("acme", "tour")).versions
    return {each.record.number: each.record.state for each in versions}


# --------------------------------------------------------------------------------------------- publishing


async def test_a_draft_is_published_as_it_was_read(tour: World) -> None:
    based_on = await edited(tour)
    tour.clock.time += 5
    stored = await tour.authoring.publish("acme", "tour", based_on, OFFER, by=BOB)
    walkthrough_id = (await tour.authoring.version("acme", "tour")).key.walkthrough_id
    assert stored == Stored(
        walkthrough_id,
        "tour",
        2,
        is_published=True,
        is_unchanged=False,
        policy=OFFER,
        is_shown_again=False,
        hidden_on=(),
    )
    history = await tour.authoring.versions("acme", "tour")
    latest = history.versions[-1].record
    content = (await tour.authoring.version("acme", "tour", 2)).manuscript("tour")
    assert [step.key for step in content.steps] == ["x", "a", "b"]
    assert latest.content_hash == content.content_hash()
    assert (latest.number, latest.step_count, latest.policy, latest.published_by) == (2, 3, OFFER, BOB)
    assert latest.published_at == tour.clock.now()
    assert history.draft is None
    assert history.ledger[-1] == LedgerEntry(
        Deed.PUBLISHED, 2, content.content_hash(), OFFER, None, BOB, tour.clock.now()
    )
    assert (await tour.authoring.draft("acme", "tour")).key.number == 3


async def test_a_draft_that_was_edited_since_is_not_published(tour: World) -> None:
    based_on = await edited(tour)
    await edited(tour, "y")
    with pytest.raises(StaleEdit) as refused:
        await tour.authoring.publish("acme", "tour", based_on, KEEP, by=ADA)
    assert [each.edited_by for each in refused.value.since] == [BOB]
    assert await states(tour) == {1: "published"}


async def test_who_publishes_a_draft_that_is_published_is_told_by_whom_and_how(tour: World) -> None:
    based_on = await edited(tour)
    await tour.authoring.publish("acme", "tour", based_on, CARRY_OVER, by=BOB)
    with pytest.raises(PublishedMeanwhile, match="version 2 of tour was published already by bob"):
        await tour.authoring.publish("acme", "tour", based_on, SUPERSEDE, by=ADA)
    assert await states(tour) == {1: "published", 2: "published"}


async def test_a_push_that_expects_another_latest_version_publishes_nothing(tour: World) -> None:
    await tour.publish("c", by=BOB)
    push = tour.authoring.push
    for expected in (0, 1):
        with pytest.raises(PublishedMeanwhile) as refused:
            await push("acme", manuscript("d"), publish=KEEP, servers=[], by=ADA, expected_latest=expected)
        assert refused.value.version.published_by == BOB
    for key, expected, remedy in (
        ("tour", 3, "see 'cairn versions tour'"),
        ("new", 1, "expect 0 to publish its first"),
    ):
        problem = f"nothing was published: {key} has no version {expected} yet: {remedy}"
        with pytest.raises(NotFound, match=problem):
            await push("acme", manuscript("d", key=key), publish=KEEP, servers=[], by=ADA, expected_latest=expected)
    # A lost answer, sent again: what was wanted is there.
    again = await push("acme", manuscript("c"), publish=KEEP, servers=[], by=BOB, expected_latest=1)
    assert (again.version, again.is_unchanged) == (2, True)
    first = await push("acme", manuscript("d", key="new"), publish=KEEP, servers=[], by=ADA, expected_latest=0)
    assert (first.version, first.is_published) == (1, True)
    assert await states(tour) == {1: "published", 2: "published"}


@pytest.mark.promise("version.unchanged")
async def test_a_draft_with_the_latest_content_makes_no_version_but_ends_an_unpublishing(tour: World) -> None:
    stored = await tour.authoring.publish("acme", "tour", (2, 0), SUPERSEDE, by=BOB)
    assert (stored.version, stored.is_published, stored.is_unchanged) == (1, True, True)
    assert (stored.policy, stored.is_shown_again) == (KEEP, False)
    await tour.authoring.unpublish("acme", "tour", by=ADA)
    draft = await tour.authoring.push("acme", manuscript("a", "b"), publish=None, servers=[], by=ADA)
    assert (draft.version, draft.is_published, draft.is_unchanged) == (1, False, True)
    stored = await tour.authoring.publish("acme", "tour", (2, 0), SUPERSEDE, by=BOB)
    assert (stored.version, stored.is_published, stored.is_unchanged) == (1, True, True)
    assert (stored.policy, stored.is_shown_again) == (KEEP, True)
    assert await told(tour) == [
        (Deed.PUBLISHED, 1, KEEP, None, ADA),
        (Deed.UNPUBLISHED, 1, KEEP, None, ADA),
        (Deed.REPUBLISHED, 1, KEEP, None, BOB),
    ]


async def test_a_draft_that_is_as_the_latest_version_is_none_to_show(tour: World) -> None:
    number, revision = await edited(tour)
    assert (await tour.authoring.versions("acme", "tour")).draft is not None
    discarded = await tour.authoring.discard_draft("acme", "tour", (number, revision), by=ADA)
    assert (await tour.authoring.versions("acme", "tour")).draft is None
    # It goes on from there, not from the beginning.
    assert await tour.authoring.draft("acme", "tour") == discarded
    await edited(tour)
    history = await tour.authoring.versions("acme", "tour")
    assert history.draft is not None
    assert history.draft.revision == revision + 2


async def test_a_push_says_on_which_of_its_servers_the_walkthrough_is_and_stays_hidden(tour: World) -> None:
    await tour.server(slug="labs")
    await tour.authoring.disable("acme", "tour", ["guides"])
    for steps in (("a", "b"), ("c",)):
        servers = [("labs", None), ("guides", None)]
        stored = await tour.authoring.push("acme", manuscript(*steps), publish=KEEP, servers=servers, by=ADA)
        assert stored.hidden_on == ("guides",)


async def test_a_supersede_withdraws_every_older_version_and_later_publishes_bring_none_back(tour: World) -> None:
    await tour.publish("c")
    await tour.publish("d", policy=SUPERSEDE)
    await tour.publish("e", policy=KEEP)
    assert await states(tour) == {1: "withdrawn", 2: "withdrawn", 3: "published", 4: "published"}


# ----------------------------------------------------------------------------------------------- rollback


@pytest.mark.promise("version.commands")
async def test_a_rollback_publishes_an_older_versions_content_as_a_new_version(tour: World) -> None:
    await tour.publish("c", by=BOB)
    stored = await tour.authoring.roll_back("acme", "tour", 1, OFFER, by=ADA)
    assert (stored.version, stored.is_published, stored.is_unchanged) == (3, True, False)
    old, new = [await tour.authoring.version("acme", "tour", number) for number in (1, 3)]
    assert new.manuscript("tour") == old.manuscript("tour")
    assert not {step.id for step in new.steps} & {step.id for step in old.steps}
    assert (await told(tour))[-1] == (Deed.ROLLED_BACK, 3, OFFER, 1, ADA)


async def test_a_rollback_to_what_is_the_latest_content_is_unchanged(tour: World) -> None:
    for version in (1, 1):
        stored = await tour.authoring.roll_back("acme", "tour", version, KEEP, by=ADA)
        assert (stored.version, stored.is_unchanged) == (1, True)
    assert len(await told(tour)) == 1


async def test_a_rollback_to_a_withdrawn_version_publishes_its_content_and_leaves_it_withdrawn(tour: World) -> None:
    await tour.publish("c", policy=SUPERSEDE)
    await tour.authoring.roll_back("acme", "tour", 1, KEEP, by=ADA)
    assert await states(tour) == {1: "withdrawn", 2: "published", 3: "published"}


@pytest.mark.parametrize("version", [0, -1, 2, 3, 10**12])
async def test_there_is_no_rollback_to_what_was_never_published(tour: World, version: int) -> None:
    await edited(tour)
    with pytest.raises(NotFound):
        await tour.authoring.roll_back("acme", "tour", version, KEEP, by=ADA)


async def test_a_rollback_does_not_undo_edits_made_in_place_unless_forced(tour: World) -> None:
    await tour.publish("c")
    await edited(tour)
    with pytest.raises(EditedInPlace):
        await tour.authoring.roll_back("acme", "tour", 1, KEEP, by=ADA)
    stored = await tour.authoring.roll_back("acme", "tour", 1, KEEP, by=ADA, is_forced=True)
    assert stored.version == 3
    kinds = [each.edit.kind for each in await tour.authoring.edits("acme", "tour", (3, 0))]
    assert kinds == ["insert", "remove", "remove", "insert", "insert"]


# --------------------------------------------------------------------- unpublishing, the archive, withdrawal

Act = Callable[[World], Awaitable[Done]]
ACTS: dict[Deed, Act] = {
    Deed.UNPUBLISHED: lambda it: it.authoring.unpublish("acme", "tour", by=BOB),
    Deed.REPUBLISHED: lambda it: it.authoring.publish_again("acme", "tour", by=BOB),
    Deed.ARCHIVED: lambda it: it.authoring.archive("acme", "tour", by=BOB),
    Deed.RESTORED: lambda it: it.authoring.restore("acme", "tour", by=BOB),
    Deed.WITHDRAWN: lambda it: it.authoring.withdraw("acme", "tour", 1, by=BOB),
}


@pytest.mark.promise("version.commands")
@pytest.mark.parametrize(
    ("before", "deed", "version"),
    [
        ([], Deed.UNPUBLISHED, 2),
        ([Deed.UNPUBLISHED], Deed.REPUBLISHED, 2),
        ([], Deed.ARCHIVED, 2),
        ([Deed.ARCHIVED], Deed.RESTORED, 2),
        ([], Deed.WITHDRAWN, 1),
    ],
)
async def test_what_was_done_already_is_said_and_not_done_twice(
    tour: World, before: list[Deed], deed: Deed, version: int
) -> None:
    await tour.publish("c", policy=OFFER)
    for earlier in before:
        await ACTS[earlier](tour)
    policy = OFFER if version == 2 else KEEP
    assert await ACTS[deed](tour) == Done("tour", deed, version, policy, was_already=False)
    done = await tour.authoring.versions("acme", "tour")
    tour.clock.time += 1
    assert await ACTS[deed](tour) == Done("tour", deed, version, policy, was_already=True)
    assert await tour.authoring.versions("acme", "tour") == done
    assert (await told(tour))[-1] == (deed, version, policy, None, BOB)
    assert [each.deed for each in done.ledger[2:]] == [*before, deed]


@pytest.mark.parametrize("deed", [Deed.UNPUBLISHED, Deed.REPUBLISHED, Deed.WITHDRAWN])
async def test_what_was_never_published_is_not_taken_back(world: World, deed: Deed) -> None:
    await world.server()
    await world.authoring.push("acme", manuscript("a"), publish=None, servers=[], by=ADA)
    with pytest.raises(OperatorError):
        await ACTS[deed](world)
    assert await told(world) == []


async def test_a_draft_that_was_never_published_can_be_archived(world: World) -> None:
    await world.server()
    await world.authoring.push("acme", manuscript("a"), publish=None, servers=[], by=ADA)
    await ACTS[Deed.ARCHIVED](world)
    await ACTS[Deed.RESTORED](world)
    assert await told(world) == [(Deed.ARCHIVED, None, None, None, BOB), (Deed.RESTORED, None, None, None, BOB)]


async def test_the_latest_version_is_not_withdrawn(tour: World) -> None:
    with pytest.raises(OperatorError, match="unpublish tour"):
        await tour.authoring.withdraw("acme", "tour", 1, by=ADA)
    await tour.publish("c")
    await tour.authoring.withdraw("acme", "tour", 1, by=ADA)
    assert await states(tour) == {1: "withdrawn", 2: "published"}


async def test_what_is_archived_is_edited_but_not_published(tour: World) -> None:
    await tour.publish("c")
    await ACTS[Deed.ARCHIVED](tour)
    based_on = await edited(tour)
    for publish in (
        tour.authoring.publish("acme", "tour", based_on, KEEP, by=ADA),
        tour.authoring.push("acme", manuscript("z"), publish=KEEP, servers=[], by=ADA),
        tour.authoring.push("acme", manuscript("c"), publish=KEEP, servers=[], by=ADA),
        tour.authoring.roll_back("acme", "tour", 1, KEEP, by=ADA),
        tour.authoring.publish_again("acme", "tour", by=ADA),
    ):
        with pytest.raises(OperatorError, match="archived: restore it"):
            await publish
    await ACTS[Deed.RESTORED](tour)
    assert (await tour.authoring.publish("acme", "tour", based_on, KEEP, by=ADA)).version == 3


@pytest.mark.promise("version.commands")
@pytest.mark.parametrize("hide", [Deed.UNPUBLISHED, Deed.ARCHIVED, "disabled", "unassigned"])
async def test_what_is_hidden_is_finished_by_those_mid_way_and_begun_by_nobody(tour: World, hide: str) -> None:
    (listing,) = await tour.tenancy.servers()
    ada, bob = await tour.caller(listing.server), await tour.caller(listing.server, BOB)
    lesson = await tour.learning.select(ada, "tour", restart=False, to_latest=False)
    await tour.learning.next(ada, str(lesson.progress.handle()), None, outcome=Outcome.DONE, note=None)
    if hide == "disabled":
        assert await tour.authoring.disable("acme", "tour", ["guides"]) == [True]
    elif hide == "unassigned":
        assert await tour.authoring.unassign("acme", "tour", ["guides"]) == [True]
    else:
        await ACTS[Deed(hide)](tour)
    assert await tour.learning.list(bob) == []
    assert [entry.standing.key for entry in await tour.learning.status(ada, None)] == ["tour"]
    with pytest.raises(WalkthroughUnavailable):
        await tour.learning.select(ada, "tour", restart=True, to_latest=False)
    lesson = await tour.learning.select(ada, "tour", restart=False, to_latest=False)
    assert lesson.told is Told.RESUMED
    lesson = await tour.learning.next(ada, str(lesson.progress.handle()), None, outcome=Outcome.DONE, note=None)
    assert lesson.told is Told.COMPLETED


# ------------------------------------------------------------------------------- the dry run, and the people


async def _learn(world: World, email: str, steps: int, slug: str = "guides") -> None:
    """Somebody begins, and completes so many steps."""
    caller = await world.caller(await world.tenancy.server(slug), email)
    lesson = await world.learning.select(caller, "tour", restart=False, to_latest=False)
    for _ in range(steps):
        handle = str(lesson.progress.handle())
        lesson = await world.learning.next(caller, handle, None, outcome=Outcome.DONE, note=None)


@pytest.fixture
async def crowd(world: World) -> World:
    """On version 1 (a, b, c): two at b, one at c, one completed; and on another server, where it is off, one at a."""
    await world.server()
    await world.server(slug="labs")
    await world.server("globex", "foreign")
    await world.publish("a", "b", "c", servers=("guides", "labs"))
    await world.publish("a", "b", "c", organization="globex", servers=("foreign",))
    for email, steps in (("p1@example.com", 1), ("p2@example.com", 1), ("p3@example.com", 2), ("p4@example.com", 3)):
        await _learn(world, email, steps)
    await _learn(world, "p1@example.com", 0, "labs")
    await _learn(world, "p1@example.com", 1, "foreign")
    await world.authoring.disable("acme", "tour", ["labs"])
    return world


@pytest.mark.promise("version.commands")
@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (KEEP, [(1, "a", Fate.STAYS, None, 1), (2, "b", Fate.STAYS, None, 2), (3, "c", Fate.STAYS, None, 1)]),
        (OFFER, [(1, "a", Fate.STAYS, None, 1), (2, "b", Fate.OFFERED, None, 2), (3, "c", Fate.OFFERED, None, 1)]),
        (CARRY_OVER, [(1, "a", Fate.PENDING, None, 1), (2, "b", Fate.MOVES, 2, 2), (3, "c", Fate.COMPLETES, None, 1)]),
        (SUPERSEDE, [(1, "a", Fate.WAITS, None, 1), (2, "b", Fate.RESTARTS, 1, 2), (3, "c", Fate.RESTARTS, 1, 1)]),
    ],
)
async def test_the_dry_run_says_who_stands_where_and_what_becomes_of_them(
    crowd: World, policy: PublishPolicy, expected: list[tuple[int, str, Fate, int | None, int]]
) -> None:
    before = await crowd.authoring.versions("acme", "tour")
    prospect = await crowd.authoring.forecast("acme", manuscript("a", "b"), policy)
    assert (prospect.version, prospect.is_unchanged) == (2, False)
    assert list(prospect.forecast.outlooks) == [Outlook(1, *row) for row in expected]
    assert await crowd.authoring.versions("acme", "tour") == before


async def test_the_dry_run_knows_who_is_on_a_withdrawn_version(crowd: World) -> None:
    await crowd.publish("a", "b")
    await crowd.authoring.withdraw("acme", "tour", 1, by=ADA)
    prospect = await crowd.authoring.forecast("acme", manuscript("a"), KEEP)
    assert prospect.version == 3
    assert [(each.step_key, each.fate, each.people) for each in prospect.forecast.outlooks] == [
        ("a", Fate.WAITS, 1),
        ("b", Fate.RESTARTS, 2),
        ("c", Fate.RESTARTS, 1),
    ]


async def test_the_dry_run_of_the_latest_content_moves_nobody_and_that_of_something_new_meets_nobody(
    crowd: World,
) -> None:
    same = await crowd.authoring.forecast("acme", manuscript("a", "b", "c"), SUPERSEDE)
    assert (same.version, same.is_unchanged, same.forecast.outlooks) == (1, True, ())
    new = await crowd.authoring.forecast("acme", manuscript("a", key="new"), SUPERSEDE)
    assert (new.version, new.is_unchanged, new.forecast.outlooks) == (1, False, ())


@pytest.mark.promise("version.commands")
async def test_the_dry_run_of_showing_an_unpublished_version_again_foresees_the_move_that_waits(crowd: World) -> None:
    await crowd.publish("a", "b", policy=CARRY_OVER)
    await crowd.authoring.unpublish("acme", "tour", by=ADA)
    again = await crowd.authoring.forecast("acme", manuscript("a", "b"), KEEP)
    assert (again.version, again.is_unchanged, again.policy) == (2, True, CARRY_OVER)
    assert [(each.step_key, each.fate, each.to_number, each.people) for each in again.forecast.outlooks] == [
        ("a", Fate.PENDING, None, 1),
        ("b", Fate.MOVES, 2, 2),
        ("c", Fate.COMPLETES, None, 1),
    ]


async def test_people_are_counted_on_the_version_they_are_on(crowd: World) -> None:
    await crowd.publish("a", "b", policy=CARRY_OVER)
    await _learn(crowd, "p1@example.com", 0)
    await _learn(crowd, "p3@example.com", 0)
    history = await crowd.authoring.versions("acme", "tour")
    counted = {each.record.number: (each.people.mid_way, each.people.completed) for each in history.versions}
    # p1 was moved to b and p3, who had done a and b, has completed; p2 has not come yet, and labs hides it.
    assert counted == {1: (2, 1), 2: (1, 1)}


async def test_a_version_that_nobody_is_on_counts_nobody(tour: World) -> None:
    (only,) = (await tour.authoring.versions("acme", "tour")).versions
    assert (only.people.mid_way, only.people.completed) == (0, 0)


# --------------------------------------------------------------------------------------------- and the ledger


async def test_the_ledger_tells_who_did_what_in_order(tour: World) -> None:
    await tour.publish("c", by=BOB, policy=CARRY_OVER)
    await tour.authoring.withdraw("acme", "tour", 1, by=ADA)
    await tour.authoring.unpublish("acme", "tour", by=BOB)
    await tour.authoring.roll_back("acme", "tour", 1, SUPERSEDE, by=ADA)
    await tour.authoring.archive("acme", "tour", by=BOB)
    await tour.authoring.restore("acme", "tour", by=ADA)
    assert await told(tour) == [
        (Deed.PUBLISHED, 1, KEEP, None, ADA),
        (Deed.PUBLISHED, 2, CARRY_OVER, None, BOB),
        (Deed.WITHDRAWN, 1, KEEP, None, ADA),
        (Deed.UNPUBLISHED, 2, CARRY_OVER, None, BOB),
        (Deed.ROLLED_BACK, 3, SUPERSEDE, 1, ADA),
        (Deed.ARCHIVED, 3, SUPERSEDE, None, BOB),
        (Deed.RESTORED, 3, SUPERSEDE, None, ADA),
    ]
    history = await tour.authoring.versions("acme", "tour")
    hashes = {each.record.number: each.record.content_hash for each in history.versions}
    assert all(entry.content_hash == hashes[entry.version or 0] for entry in history.ledger)


async def test_a_version_keeps_its_title_and_details(tour: World) -> None:
    draft = await tour.authoring.edit("acme", "tour", (2, 0), [SetDetails(title="Grand tour")], by=ADA)
    await tour.authoring.publish("acme", "tour", (2, draft.revision), KEEP, by=ADA)
    titles = [each.record.title for each in (await tour.authoring.versions("acme", "tour")).versions]
    assert titles == ["The tour", "Grand tour"]
