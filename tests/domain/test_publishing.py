"""What a decision about a walkthrough says beside what the stores are asked for in tests/authoring: what it was based
on, and what it records where little or nothing is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest

from domain.draft import RemoveStep
from domain.errors import EditedInPlace
from domain.publishing import Change, Deed, LedgerEntry, Signature, Walkthrough
from domain.tenancy import Millis, StepId
from domain.walkthrough import Intake, Manuscript, PublishPolicy, StepText, WalkthroughType
from tests.domain.generate import ORGANIZATION, WALKTHROUGH

ADA = Signature("ada@example.com", Millis(1_000))
KEEP = PublishPolicy.KEEP


def ids() -> Iterator[StepId]:
    return (StepId(f"stp_{number}") for number in count())


def manuscript(keys: str) -> Manuscript:
    steps = tuple(StepText(key, f"Step {key}", f"Do {key}.") for key in keys)
    return Manuscript("tour", "The tour", "Shows around.", WalkthroughType.COURSE, steps)


def published(*versions: str) -> Walkthrough:
    """With these versions, one step for each letter."""
    walkthrough = Walkthrough(ORGANIZATION, WALKTHROUGH, "tour")
    for keys in versions:
        walkthrough = walkthrough.push(manuscript(keys), ids(), ADA, publish=KEEP).after
    return walkthrough


@pytest.mark.parametrize(
    ("deed", "walkthrough"),
    [
        (lambda it: it.unpublish(ADA), published("ab")),
        (lambda it: it.publish_again(ADA), published("ab").unpublish(ADA).after),
        (lambda it: it.archive(ADA), published("ab")),
        (lambda it: it.restore(ADA), published("ab").archive(ADA).after),
        (lambda it: it.withdraw(1, ADA), published("ab", "abc")),
        (lambda it: it.edit((2, 0), [], ids(), ADA), published("ab")),
        (lambda it: it.reorder((2, 0), ["b", "a"], ids(), ADA), published("ab")),
        (lambda it: it.push(manuscript("a"), ids(), ADA, publish=None), published("ab")),
        (lambda it: it.push(manuscript("a"), ids(), ADA, publish=KEEP), published("ab")),
        (lambda it: it.push(manuscript("ab"), ids(), ADA, publish=KEEP), published("ab")),
        (lambda it: it.push(manuscript("ab"), ids(), ADA, publish=None), published()),
        (lambda it: it.publish((2, 0), ids(), KEEP, ADA), published("ab")),
        (
            lambda it: it.publish((2, 1), ids(), KEEP, ADA),
            published("ab").reorder((2, 0), ["b", "a"], ids(), ADA).after,
        ),
    ],
)
def test_a_change_says_what_it_is_based_on(deed: Callable[[Walkthrough], Change], walkthrough: Walkthrough) -> None:
    change = deed(walkthrough)
    assert change.before == walkthrough
    assert change.is_empty == (change.after == walkthrough)


def test_a_push_and_a_publish_say_which_draft_is_stored_with_them() -> None:
    reordered = published("ab").reorder((2, 0), ["b", "a"], ids(), ADA).after
    assert reordered.publish((2, 1), ids(), KEEP, ADA).draft == reordered.draft
    first = published().push(manuscript("ab"), ids(), ADA, publish=None)
    assert first.draft is not None
    assert first.draft == first.after.draft


def test_what_is_unpublished_is_not_published_and_nothing_else_about_it_is_other() -> None:
    change = published("ab").unpublish(ADA)
    assert change.after.is_published is False
    assert change.after.publish_again(ADA).after == published("ab")


def test_a_change_names_the_version_that_it_publishes_and_those_that_it_withdraws() -> None:
    walkthrough = published("a", "ab")
    superseded = walkthrough.push(manuscript("abc"), ids(), ADA, publish=PublishPolicy.SUPERSEDE)
    assert superseded.new_version is not None
    assert (superseded.new_version.number, superseded.withdrawn) == (3, (1, 2))
    for change, withdrawn in ((walkthrough.withdraw(1, ADA), (1,)), (walkthrough.unpublish(ADA), ())):
        assert (change.new_version, change.withdrawn) == (None, withdrawn)


def test_what_has_no_draft_is_not_changed_and_what_has_no_version_is() -> None:
    begun = published().push(manuscript("ab"), ids(), ADA, publish=None).after
    assert [walkthrough.is_changed for walkthrough in (published(), published("ab"), begun)] == [False, False, True]


def test_a_push_of_what_is_published_says_so() -> None:
    change = published("ab").push(manuscript("ab"), ids(), ADA, publish=None)
    assert change.intake == Intake(1, is_unchanged=True, is_published=True)


def test_to_publish_what_is_the_latest_already_shows_it_again() -> None:
    hidden = published("ab").unpublish(ADA).after
    for change in (
        hidden.push(manuscript("ab"), ids(), ADA, publish=KEEP),
        hidden.publish((2, 0), ids(), KEEP, ADA),
    ):
        assert change.after == published("ab")
        assert change.entry is not None
        assert change.entry.deed is Deed.REPUBLISHED


def test_who_pushes_is_told_of_a_new_order_too() -> None:
    reordered = published("ab").reorder((2, 0), ["b", "a"], ids(), ADA).after
    assert reordered.is_edited_in_place
    with pytest.raises(EditedInPlace) as refusal:
        reordered.push(manuscript("abc"), ids(), ADA, publish=None)
    assert (refusal.value.number, refusal.value.revision) == (2, 1)


def test_to_discard_a_draft_that_nobody_has_begun_changes_nothing() -> None:
    assert published("ab").discard((2, 0), ids(), ADA).is_empty


def test_an_edit_that_changes_nothing_touches_no_text() -> None:
    reordered = published("ab").reorder((2, 0), ["b", "a"], ids(), ADA).after
    for walkthrough, revision in ((published("ab"), 0), (reordered, 1)):
        assert walkthrough.edit((2, revision), [], ids(), ADA) == Change(walkthrough, walkthrough)


def test_a_draft_without_steps_is_another_content_and_can_be_filled_again() -> None:
    emptied = published("ab").edit((2, 0), [RemoveStep("a"), RemoveStep("b")], ids(), ADA).after
    assert emptied.is_changed
    for filled in (
        emptied.discard((2, 2), ids(), ADA).after,
        emptied.push(manuscript("ab"), ids(), ADA, publish=None, is_forced=True).after,
    ):
        assert filled.draft is not None
        assert filled.draft.manuscript() == manuscript("ab")
        assert not filled.is_changed


def test_what_was_never_published_is_archived_with_who_and_when_and_no_version() -> None:
    assert published().archive(ADA).entry == LedgerEntry(
        Deed.ARCHIVED, version=None, content_hash=None, policy=None, source_version=None, by=ADA.by, at=ADA.at
    )
