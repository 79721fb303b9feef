"""Drafts: edited in place, pushed onto, discarded; and what two editors are told who meet on one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from domain.draft import (
    Draft,
    Edit,
    InsertStep,
    MoveStep,
    RemoveStep,
    RenameStep,
    ReplaceStep,
    SetDetails,
    replay,
)
from domain.errors import AlreadyExists, EditedInPlace, InvalidValue, NotFound, StaleEdit
from domain.tenancy import StepId
from domain.walkthrough import Delivery, PublishPolicy, Step, StepText, WalkthroughType
from tests.worlds import World, manuscript

ADA, BOB = "ada@example.com", "bob@example.com"


def text(key: str, content: str = "Do it.") -> StepText:
    return StepText(key, f"Step {key}", content)


def insert(key: str, after: str | None = None) -> InsertStep:
    return InsertStep(Step(StepId("-"), text(key)), after)


def order(draft: Draft) -> str:
    return "".join(step.text.key for step in draft.steps)


@pytest.fixture
async def tour(world: World) -> World:
    """A world where version 1 of `tour` is published, with the steps a, b and c."""
    await world.server()
    await world.publish("a", "b", "c")
    return world


async def edit(world: World, *edits: Edit, based_on: tuple[int, int] | None = None, by: str = ADA) -> Draft:
    """Edits the draft as it is now, or as it was at `based_on`."""
    if based_on is None:
        draft = await world.authoring.draft("acme", "tour")
        based_on = (draft.key.number, draft.revision)
    return await world.authoring.edit("acme", "tour", based_on, edits, by=by)


# ------------------------------------------------------------------------------------------------ beginning


async def test_a_draft_begins_as_the_latest_versions_copy_with_steps_of_its_own(tour: World) -> None:
    version = await tour.authoring.version("acme", "tour")
    draft = await tour.authoring.draft("acme", "tour")
    assert (draft.key.number, draft.revision) == (2, 0)
    assert draft.manuscript() == version.manuscript("tour")
    assert not {step.id for step in draft.steps} & {step.id for step in version.steps}


async def test_looking_at_a_draft_that_nobody_edited_stores_nothing(tour: World) -> None:
    await tour.authoring.draft("acme", "tour")
    assert (await tour.authoring.versions("acme", "tour")).draft is None
    edited = await edit(tour, SetDetails(title="The tour"))
    assert edited.revision == 0
    assert (await tour.authoring.versions("acme", "tour")).draft is None


async def test_every_edit_is_stored_and_comes_back_as_it_was(tour: World) -> None:
    """Each kind, with every field of a step filled; read back by another use case object."""
    full = StepText("new", "New", "Do so.", "note", "ask", "done", Delivery.VERBATIM, 7)
    edits: list[Edit] = [
        InsertStep(Step(StepId("-"), full), "b"),
        MoveStep("a", "new"),
        RemoveStep("c"),
        ReplaceStep(replace(text("b", "Other."), estimated_minutes=3)),
        RenameStep("new", "fresh"),
        SetDetails("Another", "Shows more.", WalkthroughType.INSTALLER),
    ]
    for number, each in enumerate(edits, start=1):
        tour.clock.time += 1
        draft = await edit(tour, each, by=f"{number}@example.com")
        assert draft == await tour.authoring.draft("acme", "tour")
        assert draft.revision == number
    assert order(draft) == "bfresha"
    recorded = await tour.authoring.edits("acme", "tour", (2, 0))
    assert [(each.number, each.revision, each.edited_by) for each in recorded] == [
        (2, number, f"{number}@example.com") for number in range(1, 7)
    ]
    assert [each.edited_at - recorded[0].edited_at for each in recorded] == [0, 1, 2, 3, 4, 5]
    assert [each.edit for each in recorded[1:]] == edits[1:]
    first = recorded[0].edit
    assert isinstance(first, InsertStep)
    assert (first.step.text, first.after) == (full, "b")
    assert first.step.id == next(step.id for step in draft.steps if step.text.key == "fresh")


async def test_the_recorded_edits_replay_from_the_latest_version_to_the_draft(tour: World) -> None:
    beginning = await tour.authoring.draft("acme", "tour")
    await edit(tour, insert("x", "a"), MoveStep("c", None), RenameStep("b", "y"))
    draft = await edit(tour, RemoveStep("a"), ReplaceStep(text("x", "More.")))
    recorded = await tour.authoring.edits("acme", "tour", (2, 0))
    assert replay(beginning, [each.edit for each in recorded]).manuscript() == draft.manuscript()


async def test_two_steps_exchange_their_keys_in_one_call(tour: World) -> None:
    await edit(tour, SetDetails(title="Begun"))
    draft = await edit(tour, RenameStep("a", "tmp"), RenameStep("b", "a"), RenameStep("tmp", "b"))
    assert order(draft) == "bac"
    assert order(await tour.authoring.draft("acme", "tour")) == "bac"


async def test_a_step_is_removed_and_one_with_its_key_is_inserted_in_one_call(tour: World) -> None:
    before = await edit(tour, SetDetails(title="Begun"))
    after = await edit(tour, RemoveStep("b"), insert("b", None))
    assert order(after) == "bac"
    assert after.steps[0].id not in {step.id for step in before.steps}


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (RemoveStep("nowhere"), NotFound),
        (MoveStep("a", "nowhere"), NotFound),
        (insert("b", None), AlreadyExists),
        (RenameStep("a", "b"), AlreadyExists),
    ],
)
async def test_of_several_edits_all_are_applied_or_none(tour: World, wrong: Edit, error: type[Exception]) -> None:
    before = await edit(tour, SetDetails(title="Begun"))
    with pytest.raises(error):
        await edit(tour, RemoveStep("c"), wrong)
    assert await tour.authoring.draft("acme", "tour") == before
    assert len(await tour.authoring.edits("acme", "tour", (2, 0))) == 1


async def test_steps_are_reordered_by_the_fewest_moves(tour: World) -> None:
    draft = await tour.authoring.reorder("acme", "tour", (2, 0), ["c", "a", "b"], by=ADA)
    assert order(draft) == "cab"
    assert [each.edit for each in await tour.authoring.edits("acme", "tour", (2, 0))] == [MoveStep("c", None)]
    with pytest.raises(InvalidValue):
        await tour.authoring.reorder("acme", "tour", (2, 1), ["c", "a"], by=ADA)


async def test_a_draft_may_be_emptied_but_not_published_empty(tour: World) -> None:
    draft = await edit(tour, *map(RemoveStep, "abc"))
    assert order(draft) == ""
    assert draft == await tour.authoring.draft("acme", "tour")
    with pytest.raises(InvalidValue):
        await tour.authoring.publish("acme", "tour", (2, 3), PublishPolicy.KEEP, by=ADA)
    assert order(await edit(tour, insert("z"))) == "z"
    pushed = await tour.authoring.push("acme", manuscript("n"), publish=None, servers=[], by=ADA, is_forced=True)
    assert pushed.version == 2
    assert (await tour.authoring.draft("acme", "tour")).manuscript() == manuscript("n")


@pytest.mark.parametrize("by", ["", "two\nlines", "x" * 101])
async def test_who_edits_is_one_line(tour: World, by: str) -> None:
    with pytest.raises(InvalidValue):
        await edit(tour, RemoveStep("a"), by=by)


# ---------------------------------------------------------------------------------------------- two editors


@pytest.mark.promise("version.drafts")
async def test_a_stale_edit_is_refused_with_what_changed_and_nothing_is_lost(tour: World) -> None:
    await edit(tour, RemoveStep("c"), by=BOB)
    with pytest.raises(StaleEdit) as refused:
        await edit(tour, ReplaceStep(text("a", "Mine.")), based_on=(2, 0))
    (since,) = refused.value.since
    assert (since.revision, since.edit, since.edited_by) == (1, RemoveStep("c"), BOB)
    assert (refused.value.number, refused.value.revision) == (2, 1)
    draft = await edit(tour, ReplaceStep(text("a", "Mine.")), based_on=(2, 1))
    assert order(draft) == "ab"


async def test_a_lost_answer_sent_again_is_told_apart_by_what_changed(tour: World) -> None:
    mine = insert("x", "a")
    await edit(tour, mine)
    with pytest.raises(StaleEdit) as refused:
        await edit(tour, mine, based_on=(2, 0))
    (since,) = refused.value.since
    assert isinstance(since.edit, InsertStep)
    assert (since.edited_by, since.edit.step.text, since.edit.after) == (ADA, mine.step.text, mine.after)
    assert order(await tour.authoring.draft("acme", "tour")) == "axbc"


async def test_an_edit_of_a_draft_that_was_published_is_stale_and_told_what_came_after(tour: World) -> None:
    await edit(tour, insert("x"), by=BOB)
    await tour.authoring.publish("acme", "tour", (2, 1), PublishPolicy.KEEP, by=BOB)
    await edit(tour, insert("y"), by=BOB)
    with pytest.raises(StaleEdit) as refused:
        await edit(tour, RemoveStep("a"), based_on=(2, 0))
    assert [(each.number, each.revision) for each in refused.value.since] == [(2, 1), (3, 1)]
    assert (refused.value.number, refused.value.revision) == (3, 1)


@pytest.mark.parametrize("based_on", [(2, 5), (1, 0), (3, 0), (9_999_999_999, 1), (0, 0), (-1, -1)])
async def test_an_edit_of_a_draft_that_never_was_is_stale(tour: World, based_on: tuple[int, int]) -> None:
    with pytest.raises(StaleEdit):
        await edit(tour, RemoveStep("a"), based_on=based_on)


# ------------------------------------------------------------------------------------------------- pushing


async def test_a_push_onto_a_draft_is_recorded_as_edits(tour: World) -> None:
    await tour.authoring.push("acme", manuscript("b", "a", "x"), publish=None, servers=[], by=ADA)
    recorded = await tour.authoring.edits("acme", "tour", (2, 0))
    assert [each.edit.kind for each in recorded] == ["remove", "move", "insert"]
    with pytest.raises(StaleEdit) as refused:
        await edit(tour, RemoveStep("c"), based_on=(2, 0), by=BOB)
    assert list(refused.value.since) == list(recorded)


async def test_a_push_is_refused_when_it_would_undo_edits_made_in_place_unless_forced(tour: World) -> None:
    await tour.authoring.push("acme", manuscript("a", "b"), publish=None, servers=[], by=ADA)
    before = await edit(tour, insert("x"), by=BOB)
    for publish in (None, PublishPolicy.KEEP):
        with pytest.raises(EditedInPlace) as refused:
            await tour.authoring.push("acme", manuscript("a"), publish=publish, servers=[], by=ADA)
        assert [(each.revision, each.edited_by) for each in refused.value.since] == [(2, BOB)]
    assert await tour.authoring.draft("acme", "tour") == before
    await tour.authoring.push("acme", manuscript("a"), publish=None, servers=[], by=ADA, is_forced=True)
    assert order(await tour.authoring.draft("acme", "tour")) == "a"
    assert [each.edited_by for each in await tour.authoring.edits("acme", "tour", (2, 1))] == [BOB, ADA, ADA]


async def test_what_pushes_had_seen_of_a_published_draft_says_nothing_about_the_next(tour: World) -> None:
    await tour.authoring.push("acme", manuscript("x", "y", "z"), publish=None, servers=[], by=ADA)
    await tour.authoring.push("acme", manuscript("x", "y", "z"), publish=PublishPolicy.KEEP, servers=[], by=ADA)
    await edit(tour, RemoveStep("y"), by=BOB)
    with pytest.raises(EditedInPlace):
        await tour.authoring.push("acme", manuscript("x"), publish=None, servers=[], by=ADA)


async def test_who_pushes_what_the_draft_holds_has_seen_its_edits(tour: World) -> None:
    await edit(tour, insert("x"), by=BOB)
    seen = (await tour.authoring.draft("acme", "tour")).manuscript()
    pushed = await tour.authoring.push("acme", seen, publish=None, servers=[], by=ADA)
    assert (pushed.version, pushed.is_unchanged) == (2, False)
    await tour.authoring.push("acme", manuscript("a"), publish=None, servers=[], by=ADA)
    assert order(await tour.authoring.draft("acme", "tour")) == "a"


async def test_a_publish_of_what_is_published_leaves_a_colleague_s_draft_alone(tour: World) -> None:
    await tour.authoring.push("acme", manuscript("a", "x"), publish=None, servers=[], by=BOB)
    again = await tour.authoring.push("acme", manuscript("a", "b", "c"), publish=PublishPolicy.KEEP, servers=[], by=ADA)
    assert (again.version, again.is_unchanged) == (1, True)
    assert order(await tour.authoring.draft("acme", "tour")) == "ax"


async def test_a_push_of_what_is_published_takes_a_pushed_draft_back_and_leaves_an_edited_one(tour: World) -> None:
    await tour.authoring.push("acme", manuscript("a"), publish=None, servers=[], by=ADA)
    again = await tour.authoring.push("acme", manuscript("a", "b", "c"), publish=None, servers=[], by=ADA)
    assert (again.version, again.is_unchanged) == (1, True)
    assert order(await tour.authoring.draft("acme", "tour")) == "abc"
    await edit(tour, insert("x"), by=BOB)
    again = await tour.authoring.push("acme", manuscript("a", "b", "c"), publish=PublishPolicy.KEEP, servers=[], by=ADA)
    assert (again.version, again.is_unchanged) == (1, True)
    assert order(await tour.authoring.draft("acme", "tour")) == "xabc"


async def test_a_discarded_draft_is_the_latest_version_again_and_says_so_to_its_editors(tour: World) -> None:
    await edit(tour, insert("x"), RemoveStep("a"), by=BOB)
    with pytest.raises(StaleEdit):
        await tour.authoring.discard_draft("acme", "tour", (2, 1), by=ADA)
    draft = await tour.authoring.discard_draft("acme", "tour", (2, 2), by=ADA)
    assert draft.manuscript() == manuscript("a", "b", "c")
    assert draft.revision == 4
    with pytest.raises(StaleEdit):
        await edit(tour, RemoveStep("b"), based_on=(2, 2), by=BOB)
    await tour.authoring.push("acme", manuscript("z"), publish=None, servers=[], by=ADA)


async def test_a_discarded_draft_that_was_never_published_has_no_steps_left(world: World) -> None:
    await world.server()
    await world.authoring.push("acme", manuscript("a", "b"), publish=None, servers=[], by=ADA)
    draft = await world.authoring.discard_draft("acme", "tour", (1, 0), by=ADA)
    assert (order(draft), draft.key.number, draft.revision) == ("", 1, 2)


# ------------------------------------------------------------------------------------------ other people's


async def test_another_organisations_walkthrough_answers_like_one_that_is_not_there(tour: World) -> None:
    await tour.tenancy.create_organization("globex")
    authoring = tour.authoring
    acts = {
        "draft": lambda key: authoring.draft("globex", key),
        "edits": lambda key: authoring.edits("globex", key, (2, 0)),
        "edit": lambda key: authoring.edit("globex", key, (2, 0), [RemoveStep("a")], by=ADA),
        "reorder": lambda key: authoring.reorder("globex", key, (2, 0), ["a", "b", "c"], by=ADA),
        "discard": lambda key: authoring.discard_draft("globex", key, (2, 0), by=ADA),
        "publish": lambda key: authoring.publish("globex", key, (2, 0), PublishPolicy.KEEP, by=ADA),
        "roll back": lambda key: authoring.roll_back("globex", key, 1, PublishPolicy.KEEP, by=ADA),
        "unpublish": lambda key: authoring.unpublish("globex", key, by=ADA),
        "publish again": lambda key: authoring.publish_again("globex", key, by=ADA),
        "archive": lambda key: authoring.archive("globex", key, by=ADA),
        "restore": lambda key: authoring.restore("globex", key, by=ADA),
        "withdraw": lambda key: authoring.withdraw("globex", key, 1, by=ADA),
        "versions": lambda key: authoring.versions("globex", key),
        "version": lambda key: authoring.version("globex", key, 1),
        "assign": lambda key: authoring.assign("globex", key, []),
        "unassign": lambda key: authoring.unassign("globex", key, []),
        "enable": lambda key: authoring.enable("globex", key, []),
        "disable": lambda key: authoring.disable("globex", key, []),
    }
    before = await tour.authoring.versions("acme", "tour")
    for act in acts.values():
        told = []
        for key in ("tour", "none"):
            with pytest.raises(NotFound) as refused:
                await act(key)
            assert type(refused.value) is NotFound
            told.append(str(refused.value).replace(key, "KEY"))
        assert told[0] == told[1]
    assert await tour.authoring.versions("acme", "tour") == before
