"""Manuscripts and versions: their limits, their hash, and finding a step."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from domain.errors import InvalidValue, NotFound, OperatorError
from domain.tenancy import StepId
from domain.walkthrough import (
    MAX_DESCRIPTION_CHARS,
    MAX_MINUTES,
    MAX_RESULT_BYTES,
    MAX_STEPS,
    MAX_TITLE_CHARS,
    Delivery,
    Intake,
    Manuscript,
    Outline,
    Step,
    StepText,
    Version,
    WalkthroughType,
    in_order,
    take_in,
)
from tests.domain.generate import (
    examples,
    key_orders,
    keys,
    manuscripts,
    outline_of,
    step_texts,
    texts,
    titles,
    version_of,
)


def step(**changes: Any) -> StepText:
    return StepText(**{"key": "intro", "title": "Intro", "content": "Hello."} | changes)


def manuscript(**changes: Any) -> Manuscript:
    plain: dict[str, Any] = {
        "key": "setup",
        "title": "Set up",
        "description": "How to set up.",
        "type": WalkthroughType.QUICKSTART,
        "steps": (step(),),
    }
    return Manuscript(**plain | changes)


# ------------------------------------------------------------------------------------------------- the hash


def shown(manuscript: Manuscript) -> tuple[object, ...]:
    """All that a learner can be shown."""
    return (manuscript.title, manuscript.description, manuscript.type, manuscript.steps)


@given(manuscripts, manuscripts)
@examples(150)
def test_hashes_are_equal_exactly_when_the_content_is(one: Manuscript, other: Manuscript) -> None:
    assert (one.content_hash() == other.content_hash()) == (shown(one) == shown(other))


@given(manuscripts, keys)
@examples(100)
def test_the_hash_does_not_depend_on_the_walkthroughs_key(one: Manuscript, key: str) -> None:
    assert replace(one, key=key).content_hash() == one.content_hash()


# Drawn so that a changed value may be any other, one close to it included.
CHANGES = {
    "key": keys,
    "title": titles,
    "content": texts,
    "assistant_notes": st.none() | texts | st.just("null"),
    "workspace_actions": st.none() | texts,
    "done_when": st.none() | texts,
    "delivery": st.sampled_from(Delivery),
    "estimated_minutes": st.none() | st.integers(1, 90),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_hash_sees_every_part_of_a_step(name: str) -> None:
    @given(manuscripts, CHANGES[name], st.data())
    @examples(40)
    def sees(one: Manuscript, value: object, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(one.steps) - 1))
        assume(getattr(one.steps[place], name) != value)
        assume(name != "key" or value not in {step.key for step in one.steps})
        changed = list(one.steps)
        changed[place] = replace(changed[place], **{name: value})
        assert replace(one, steps=tuple(changed)).content_hash() != one.content_hash()

    sees()


@pytest.mark.parametrize(
    "changes", [{"title": "Set Up"}, {"description": "How to set up!"}, {"type": WalkthroughType.COURSE}]
)
def test_the_hash_sees_title_description_and_type(changes: dict[str, Any]) -> None:
    assert manuscript(**changes).content_hash() != manuscript().content_hash()


def test_the_hash_sees_the_order_of_the_steps() -> None:
    first, second = step(key="a"), step(key="b")
    assert manuscript(steps=(first, second)).content_hash() != manuscript(steps=(second, first)).content_hash()


def test_a_text_moved_from_one_field_to_another_is_other_content() -> None:
    hashes = {
        manuscript(steps=(step(**{name: "same"}),)).content_hash()
        for name in ("assistant_notes", "workspace_actions", "done_when", "content")
    }
    assert len(hashes) == 4


def test_the_hash_is_the_same_for_ever() -> None:
    """Stored hashes are compared across releases: another way of hashing would republish everything."""
    assert (
        manuscript(steps=(step(), step(key="end", title="Fin – 終", estimated_minutes=5))).content_hash()
        == "02780fd5f4599c6159ba2f32bd1e022f05dd8790f7953729b82d6d3487b1e120"
    )


# --------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    "value", ["", " ", "two\nlines", "a\ttab", "a\x00", "a\u2028b", "a" * (MAX_TITLE_CHARS + 1), "\ud800"]
)
def test_a_title_is_one_line_of_limited_length(value: str) -> None:
    with pytest.raises(InvalidValue):
        step(title=value)
    with pytest.raises(InvalidValue):
        manuscript(title=value)


@pytest.mark.parametrize(
    "value",
    [
        "a",
        "é" * MAX_TITLE_CHARS,
        "日本語 のタイトル",
        "Use `pip` & <tags> 🚀",
        "👨\u200d💻 pair up",
        "Étape\u00a01\u202f: début",
    ],
)
def test_a_title_may_be_in_any_language(value: str) -> None:
    assert step(title=value).title == manuscript(title=value).title == value


@pytest.mark.parametrize("value", ["", " \n", "a" * (MAX_DESCRIPTION_CHARS + 1), "a\x00", "a\ud800"])
def test_a_description_is_not_empty_and_limited(value: str) -> None:
    with pytest.raises(InvalidValue):
        manuscript(description=value)
    assert manuscript(description="a" * MAX_DESCRIPTION_CHARS)


@pytest.mark.parametrize("value", [0, -1, MAX_MINUTES + 1])
def test_an_estimate_is_between_a_minute_and_a_day(value: int) -> None:
    with pytest.raises(InvalidValue):
        step(estimated_minutes=value)
    assert step(estimated_minutes=1).estimated_minutes == 1
    assert step(estimated_minutes=MAX_MINUTES).estimated_minutes == MAX_MINUTES


@pytest.mark.parametrize("value", ["", " \n\t"])
def test_a_step_has_content(value: str) -> None:
    with pytest.raises(InvalidValue, match="intro"):
        step(content=value)


@pytest.mark.parametrize("name", ["content", "assistant_notes", "workspace_actions", "done_when"])
@pytest.mark.parametrize("value", ["a\x00b", "\ud800", "a\udfff"])
def test_no_text_holds_what_no_database_can_store(name: str, value: str) -> None:
    with pytest.raises(InvalidValue, match="'intro' contains"):
        step(**{name: value})


@pytest.mark.parametrize("name", ["content", "assistant_notes", "workspace_actions", "done_when"])
def test_a_step_that_could_not_be_delivered_is_refused(name: str) -> None:
    with pytest.raises(InvalidValue, match="split it into two steps"):
        step(**{name: "a" * (MAX_RESULT_BYTES // 2)})


def test_a_step_may_be_as_long_as_can_be_delivered() -> None:
    longest = step(title="Title", content="x" * 15_498)
    assert longest.delivered_bytes() == MAX_RESULT_BYTES == 40_000
    with pytest.raises(InvalidValue):
        replace(longest, content="x" * 15_499)


def test_a_key_that_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidValue):
        step(key="Intro")
    with pytest.raises(InvalidValue):
        manuscript(key="set up")


def test_a_walkthrough_has_1_to_500_steps_with_keys_of_their_own() -> None:
    many = tuple(step(key=f"s{number}") for number in range(MAX_STEPS + 1))
    assert len(manuscript(steps=many[:MAX_STEPS]).steps) == MAX_STEPS == 500
    for steps in ((), many, (step(), step(title="Another"))):
        with pytest.raises(InvalidValue):
            manuscript(steps=steps)


@given(manuscripts)
@examples(50)
def test_the_estimate_is_the_sum_of_those_that_are_given(one: Manuscript) -> None:
    given_ = [step.estimated_minutes for step in one.steps if step.estimated_minutes is not None]
    assert one.estimated_minutes() == (sum(given_) if given_ else None)


@given(step_texts, st.sampled_from(["content", "assistant_notes", "workspace_actions", "done_when"]), texts)
@examples(200)
def test_a_longer_text_never_takes_fewer_bytes(one: StepText, name: str, more: str) -> None:
    longer = replace(one, **{name: (getattr(one, name) or "") + more})
    assert longer.delivered_bytes() >= one.delivered_bytes() + 2 * len(more.encode())


@given(step_texts)
@examples(100)
def test_delivered_bytes_count_each_text_twice(one: StepText) -> None:
    texts = [one.content, one.assistant_notes, one.workspace_actions, one.done_when]
    assert one.delivered_bytes() > 2 * sum(len(text.encode()) for text in texts if text is not None)


# ------------------------------------------------------------------------------------------------- versions


@given(st.integers(1, 9), key_orders)
@examples(100)
def test_an_outline_finds_each_step_of_its_version_by_id_key_and_position(number: int, order: tuple[str, ...]) -> None:
    version = version_of(number, order)
    outline = version.outline()
    assert (outline.key, outline.number, outline.title) == (version.key, number, version.title)
    assert list(outline.steps) == [(step.id, step.text.key, step.text.title) for step in version.steps]
    for position, each in enumerate(outline.steps):
        assert outline.position(each.id) == position
        assert outline.step(each.id) is each
        assert outline.step_by_key(order[position]) is each


def test_an_outline_knows_no_step_of_another_version() -> None:
    old, new = outline_of(1, "abc"), outline_of(2, "bcd")
    with pytest.raises(KeyError):
        new.position(old.steps[1].id)
    assert new.step(old.steps[1].id) is None
    assert new.step_by_key("a") is None
    assert new.step_by_key("b") is new.steps[0]


def test_a_version_has_steps_with_ids_and_keys_of_their_own() -> None:
    sound = version_of(1, "ab")
    same_key = (sound.steps[0], Step(StepId("other"), sound.steps[0].text))
    same_id = (sound.steps[0], Step(sound.steps[0].id, sound.steps[1].text))
    with pytest.raises(InvalidValue):
        replace(sound, steps=())
    with pytest.raises(InvalidValue):
        replace(sound, steps=same_key)
    with pytest.raises(InvalidValue):
        replace(sound, steps=same_id)


@pytest.mark.parametrize("never_changes", [version_of(1, "ab"), outline_of(1, "ab")])
def test_a_version_never_changes(never_changes: Version | Outline) -> None:
    with pytest.raises(FrozenInstanceError):
        never_changes.title = "Another"  # type: ignore[misc]


@given(key_orders, key_orders)
@examples(100)
def test_versions_are_equal_when_what_they_hold_is(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert (version_of(1, one) == version_of(1, other)) == (one == other)
    assert Version(version_of(1, one).key, "t", "d", WalkthroughType.COURSE, version_of(1, one).steps) != version_of(
        1, one
    )


@pytest.mark.promise("version.unchanged")
@pytest.mark.parametrize("is_published", [True, False])
@pytest.mark.parametrize("publish", [True, False])
def test_what_is_the_latest_already_makes_no_new_version_and_publishing_it_shows_it_again(
    is_published: bool, publish: bool
) -> None:
    same, other = manuscript(), manuscript(title="Set up anew")
    given = {"latest": 3, "latest_hash": same.content_hash(), "is_published": is_published}
    assert take_in(same, publish=publish, **given) == Intake(3, is_unchanged=True, is_published=is_published or publish)
    assert take_in(other, publish=publish, **given) == Intake(4, is_unchanged=False, is_published=publish)
    first = take_in(same, latest=None, latest_hash=None, is_published=False, publish=publish)
    assert first == Intake(1, is_unchanged=False, is_published=publish)


# ------------------------------------------------------------------------------------------ a server's list


def test_those_named_come_first_and_all_others_in_the_order_they_have() -> None:
    assert in_order(["a", "b", "c", "d"], ["d", "b"]) == ["d", "b", "a", "c"]
    assert in_order(["a", "b"], []) == ["a", "b"]


@pytest.mark.parametrize(
    ("first", "error"), [(["x"], NotFound), (["a", "x"], NotFound), (["a", "b", "a"], InvalidValue)]
)
def test_an_order_names_what_is_there_and_each_once(first: list[str], error: type[OperatorError]) -> None:
    with pytest.raises(error):
        in_order(["a", "b"], first)
