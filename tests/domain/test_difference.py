"""Differences: complete, since applying one gives the other content; and as small as they can be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.difference import (
    AddedStep,
    ChangedStep,
    Difference,
    FieldChange,
    MovedStep,
    RemovedStep,
    RenamedStep,
    difference,
)
from domain.draft import Draft, Edit, InsertStep, MoveStep, RemoveStep, RenameStep, ReplaceStep, SetDetails, replay
from domain.errors import InvalidValue
from domain.tenancy import StepId
from domain.walkthrough import Delivery, Manuscript, StepText, VersionKey, WalkthroughType
from tests.domain.generate import ORGANIZATION, WALKTHROUGH, examples, manuscripts, revisions, version_of

KEY = VersionKey(ORGANIZATION, WALKTHROUGH, 2)
NOTHING = Difference((), (), (), (), (), ())


def of(keys: str, **contents: str) -> Manuscript:
    """A manuscript with one step for each letter, and with these contents where they are given."""
    plain = version_of(1, keys).manuscript("setup")
    steps = (replace(step, content=contents.get(step.key, step.content)) for step in plain.steps)
    return replace(plain, steps=tuple(steps))


def text(key: str) -> StepText:
    return of(key).steps[0]


def ids() -> Iterator[StepId]:
    return (StepId(f"new-{number}") for number in count())


def draft_of(manuscript: Manuscript | None, like: Manuscript) -> Draft:
    """A draft of `manuscript`; where there is none, an empty one."""
    if manuscript is None:
        return Draft.empty(KEY, like.key, title="-", description="-", type=WalkthroughType.COURSE)
    return Draft.copy(KEY, manuscript, [StepId(f"old-{step.key}") for step in manuscript.steps])


def applied(found: Difference, before: Manuscript | None, after: Manuscript) -> Draft:
    return replay(draft_of(before, after), found.edits(ids()))


def keys_of(steps: Sequence[AddedStep | RemovedStep | MovedStep]) -> str:
    return "".join(step.text.key for step in steps)


# ---------------------------------------------------------------------------------------------- properties


@given(revisions())
@examples(400)
def test_a_difference_makes_the_old_content_into_the_new(pair: tuple[Manuscript, Manuscript]) -> None:
    before, after = pair
    found = difference(before, after)
    draft = applied(found, before, after)
    assert draft.manuscript() == after
    assert found.is_empty == (before == after) == (found == NOTHING)
    assert draft.revision == len(found.edits(ids())), "each edit changes something"


@given(manuscripts, manuscripts)
@examples(100)
def test_so_does_that_of_any_two_contents(one: Manuscript, other: Manuscript) -> None:
    other = replace(other, key=one.key)
    assert applied(difference(one, other), one, other).manuscript() == other
    assert difference(one, one) == NOTHING
    assert difference(one, replace(one, key="another")) == NOTHING, "the walkthrough's key is not compared"


@given(manuscripts)
@examples(60)
def test_from_nothing_everything_is_added(manuscript: Manuscript) -> None:
    found = difference(None, manuscript)
    assert [step.text for step in found.added] == list(manuscript.steps)
    assert (found.removed, found.renamed, found.moved, found.changed) == ((), (), (), ())
    assert {change.field: (change.before, change.after) for change in found.details} == {
        name: (None, getattr(manuscript, name)) for name in ("title", "description", "type")
    }
    assert applied(found, None, manuscript).manuscript() == manuscript


@given(revisions())
@examples(300)
def test_what_is_added_one_way_is_removed_the_other_way(pair: tuple[Manuscript, Manuscript]) -> None:
    there, back = difference(*pair), difference(*reversed(pair))
    assert [(step.number, step.text) for step in there.added] == [(step.number, step.text) for step in back.removed]
    assert [(step.number, step.text) for step in there.removed] == [(step.number, step.text) for step in back.added]
    assert len(there.moved) == len(back.moved)
    assert {(step.before, step.after) for step in there.changed} == {(step.after, step.before) for step in back.changed}
    swapped = [FieldChange(change.field, change.after, change.before) for change in back.details]
    assert list(there.details) == swapped


@given(revisions())
@examples(300)
def test_no_fewer_steps_could_have_moved(pair: tuple[Manuscript, Manuscript]) -> None:
    before, after = ([step.key for step in manuscript.steps] for manuscript in pair)
    common = [key for key in before if key in after]
    most = max(
        size
        for size in range(len(common) + 1)
        for kept in combinations(common, size)
        if sorted(kept, key=after.index) == list(kept)
    )
    assert len(difference(*pair).moved) == len(common) - most


@given(revisions())
@examples(200)
def test_every_step_of_both_contents_is_accounted_for_with_its_number(pair: tuple[Manuscript, Manuscript]) -> None:
    before, after = pair
    found = difference(before, after)
    old, new = ({step.key: (number, step) for number, step in enumerate(one.steps, start=1)} for one in pair)
    assert {step.text.key: (step.number, step.text) for step in found.added} == {
        key: new[key] for key in new.keys() - old.keys()
    }
    assert {step.text.key: (step.number, step.text) for step in found.removed} == {
        key: old[key] for key in old.keys() - new.keys()
    }
    for step in found.moved:
        assert (step.from_number, step.number, step.text) == (old[step.text.key][0], *new[step.text.key])
    assert {step.after.key: (step.number, step.before, step.after) for step in found.changed} == {
        key: (new[key][0], old[key][1], new[key][1]) for key in old.keys() & new.keys() if old[key][1] != new[key][1]
    }


# ------------------------------------------------------------------------------------------------ examples


def test_a_difference_is_told_in_the_order_of_the_steps() -> None:
    assert difference(of("abcde"), of("eaxbyc", b="Do that.")) == Difference(
        details=(),
        added=(AddedStep(3, "a", text("x")), AddedStep(5, "b", text("y"))),
        removed=(RemovedStep(4, text("d")),),
        renamed=(),
        moved=(MovedStep(5, 1, None, text("e")),),
        changed=(ChangedStep(4, text("b"), replace(text("b"), content="Do that.")),),
    )


def test_the_edits_of_a_difference_are_few_and_small() -> None:
    after = replace(of("eaxbyc", b="Do that."), title="Set up", type=WalkthroughType.INSTALLER)
    made: tuple[Edit, ...] = difference(of("abcde"), after).edits(ids())
    assert [str(edit) for edit in made] == [
        "removed step 'd'",
        "moved step 'e' to the beginning",
        "inserted step 'x' after 'a'",
        "inserted step 'y' after 'b'",
        "rewrote step 'b'",
        "set the title to 'Set up', the type to installer",
    ]
    assert [type(edit) for edit in made] == [
        RemoveStep,
        MoveStep,
        InsertStep,
        InsertStep,
        ReplaceStep,
        SetDetails,
    ]


CHANGES: dict[str, object] = {
    "title": "Another",
    "content": "Do that.",
    "assistant_notes": "Ask first.",
    "workspace_actions": "Run it.",
    "done_when": "It runs.",
    "delivery": Delivery.VERBATIM,
    "estimated_minutes": 5,
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_field_of_a_step_is_compared(name: str) -> None:
    before = text("a")
    after = replace(before, **{name: CHANGES[name]})  # type: ignore[arg-type]
    found = difference(of("a"), replace(of("a"), steps=(after,)))
    assert found == replace(NOTHING, changed=(ChangedStep(1, before, after),))
    assert found.changed[0].fields == (FieldChange(name, getattr(before, name), CHANGES[name]),)  # type: ignore[arg-type]


def test_every_changed_field_is_named_and_the_key_never() -> None:
    after = replace(text("a"), key="b", **CHANGES)  # type: ignore[arg-type]
    assert [change.field for change in ChangedStep(1, text("a"), after).fields] == list(CHANGES)


def test_title_description_and_type_are_compared() -> None:
    before = of("a")
    after = replace(before, title="T", description="D", type=WalkthroughType.INSTALLER)
    assert difference(before, after) == replace(
        NOTHING,
        details=(
            FieldChange("title", before.title, "T"),
            FieldChange("description", before.description, "D"),
            FieldChange("type", WalkthroughType.COURSE, WalkthroughType.INSTALLER),
        ),
    )


# ------------------------------------------------------------------------------------------------- renames


def test_a_rename_is_one_removed_and_one_added_unless_it_is_told() -> None:
    before, after = of("abc"), of("axc")
    assert (keys_of(difference(before, after).removed), keys_of(difference(before, after).added)) == ("b", "x")
    told = difference(before, after, renames={"b": "x"})
    assert (told.added, told.removed, told.moved) == ((), (), ())
    assert told.renamed == (RenamedStep(2, "b", "x"),)
    assert [change.field for change in told.changed[0].fields] == ["title", "content"]
    assert not replace(told, changed=()).is_empty


def test_a_step_that_has_another_key_and_no_other_text_is_renamed_and_not_changed() -> None:
    before = of("ab")
    after = replace(before, steps=(before.steps[0], replace(before.steps[1], key="x")))
    assert difference(before, after, renames={"b": "x"}) == replace(NOTHING, renamed=(RenamedStep(2, "b", "x"),))


@pytest.mark.parametrize("renames", [{"b": "c"}, {"a": "x"}, {"z": "x"}, {"b": "z"}, {"a": "c"}])
def test_a_key_that_both_contents_have_is_the_same_step_whatever_was_renamed(renames: dict[str, str]) -> None:
    before, after = of("abc"), of("axc")
    assert difference(before, after, renames=renames) == difference(before, after)


def test_two_steps_cannot_have_become_one() -> None:
    with pytest.raises(InvalidValue, match="renamed to one key"):
        difference(of("abc"), of("cx"), renames={"a": "x", "b": "x"})


@given(revisions(), st.data())
@examples(300)
def test_with_renames_too_it_makes_the_old_content_into_the_new(
    pair: tuple[Manuscript, Manuscript], data: st.DataObject
) -> None:
    before, after = pair
    plain = difference(before, after)
    gone = data.draw(st.permutations(keys_of(plain.removed)))
    come = data.draw(st.permutations(keys_of(plain.added)))
    told = dict(zip(gone, come, strict=False))
    found = difference(before, after, renames=told)
    assert applied(found, before, after).manuscript() == after
    assert {(step.before, step.after) for step in found.renamed} == set(told.items())
    assert len(found.added) == len(plain.added) - len(told)
    assert len(found.removed) == len(plain.removed) - len(told)
    assert all(isinstance(edit, RenameStep) for edit in found.edits(ids())[len(found.removed) :][: len(told)])
