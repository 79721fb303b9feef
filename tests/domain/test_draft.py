"""The draft against a plain list of texts, and against a store that is told nothing but what each edit changed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.chain import StepChain, StepLink
from domain.draft import (
    Draft,
    Edit,
    InsertStep,
    MoveStep,
    RecordedEdit,
    RemoveStep,
    RenameStep,
    ReplaceStep,
    SetDetails,
    renames,
    replay,
)
from domain.errors import AlreadyExists, BrokenChain, InvalidValue, NotFound, OperatorError, StaleEdit
from domain.tenancy import Millis, StepId
from domain.walkthrough import MAX_STEPS, MAX_TITLE_CHARS, Manuscript, Step, StepText, VersionKey, WalkthroughType
from tests.domain.generate import ORGANIZATION, WALKTHROUGH, examples, key_orders, manuscripts, step_keys, version_of

KEY = VersionKey(ORGANIZATION, WALKTHROUGH, 3)


def text(key: str, content: str = "Do it.") -> StepText:
    return StepText(key=key, title=f"Step {key}", content=content)


def draft_of(keys: Sequence[str], revision: int = 0) -> Draft:
    """A draft with these steps. A step's id is its key and `-0`."""
    ids = [StepId(f"{key}-0") for key in keys]
    texts = dict(zip(ids, map(text, keys), strict=True))
    return Draft(
        KEY, "setup", "Set up", "How to set up.", WalkthroughType.COURSE, StepChain.of(ids), texts, revision=revision
    )


def keys_of(draft: Draft) -> str:
    return "".join(step.text.key for step in draft.steps)


def insert(key: str, after: str | None, id: str = "new") -> InsertStep:
    return InsertStep(Step(StepId(id), text(key)), after)


# ------------------------------------------------------------------------------------- against a plain list

anchors = st.none() | step_keys
edits = st.one_of(
    st.builds(InsertStep, st.builds(Step, st.just(StepId("?")), st.builds(text, step_keys)), anchors),
    st.builds(RemoveStep, step_keys),
    st.tuples(step_keys, anchors).filter(lambda pair: pair[0] != pair[1]).map(lambda pair: MoveStep(*pair)),
    st.builds(ReplaceStep, st.builds(text, step_keys, st.sampled_from(["Do it.", "Do that.", "Do both."]))),
    st.builds(RenameStep, step_keys, step_keys),
    st.builds(
        SetDetails,
        st.none() | st.sampled_from(["Set up", "Take down"]),
        st.none() | st.sampled_from(["How to set up.", "Why to set up."]),
        st.none() | st.sampled_from(WalkthroughType),
    ),
)
Listed = list[StepText]


def edited_list(steps: Listed, edit: Edit) -> Listed | type[OperatorError]:
    """The edit on a plain list of texts, or what refuses it."""
    steps = list(steps)
    place = {step.key: number for number, step in enumerate(steps)}
    match edit:
        case InsertStep(step, after):
            if step.text.key in place:
                return AlreadyExists
            if after is not None and after not in place:
                return NotFound
            steps.insert(0 if after is None else place[after] + 1, step.text)
        case RemoveStep(key):
            if key not in place:
                return NotFound
            del steps[place[key]]
        case MoveStep(key, after):
            if key not in place or (after is not None and after not in place):
                return NotFound
            moved = steps.pop(place[key])
            steps.insert(0 if after is None else [step.key for step in steps].index(after) + 1, moved)
        case ReplaceStep(new):
            if new.key not in place:
                return NotFound
            steps[place[new.key]] = new
        case RenameStep(key, new_key):
            if key not in place:
                return NotFound
            if new_key != key and new_key in place:
                return AlreadyExists
            steps[place[key]] = replace(steps[place[key]], key=new_key)
        case SetDetails():
            pass
    return steps


@pytest.mark.promise("version.drafts")
@given(key_orders, st.lists(edits, max_size=25))
@examples(400)
def test_any_sequence_of_edits_makes_what_it_would_make_of_a_list(keys: tuple[str, ...], sequence: list[Edit]) -> None:
    draft = beginning = draft_of(keys)
    listed = [text(key) for key in keys]
    details = {"title": draft.title, "description": draft.description, "type": draft.type}
    stored = {link.id: link.next_step_id for link in draft.chain.links()}
    stored_texts = dict(draft.texts)
    recorded: list[Edit] = []
    for number, drawn in enumerate(sequence):
        edit = drawn
        if isinstance(drawn, InsertStep):
            edit = replace(drawn, step=replace(drawn.step, id=StepId(f"new-{number}")))
        expected = edited_list(listed, edit)
        if isinstance(expected, type):
            with pytest.raises(expected):
                draft.apply(edit)
            continue
        new_details = dict(details)
        if isinstance(edit, SetDetails):
            new_details |= {name: getattr(edit, name) for name in details if getattr(edit, name) is not None}

        change = draft.apply(edit)
        assert change.before is draft
        assert change.is_empty == ((listed, details) == (expected, new_details))
        assert change.after.revision == draft.revision + (not change.is_empty)
        assert [step.text for step in change.after.steps] == expected
        assert {name: getattr(change.after, name) for name in details} == new_details
        assert change.are_details_changed == (details != new_details)

        # What is stored is written from the change alone: what differs, all of it and nothing else.
        order = [*change.after.chain, None]
        whole = {step_id: order[place + 1] for place, step_id in enumerate(order[:-1]) if step_id is not None}
        written = {link.id: link.next_step_id for link in change.links}
        assert written == {id: after for id, after in whole.items() if stored.get(id, "no row") != after}
        assert len(change.links) == len(written) <= 3
        assert {change.removed} - {None} == stored.keys() - whole.keys()
        assert {change.added.id if change.added else None} - {None} == whole.keys() - stored.keys()
        if change.removed is not None:
            del stored[change.removed], stored_texts[change.removed]
        stored |= written
        for step in (change.added, change.changed):
            if step is not None:
                assert stored_texts.get(step.id) != step.text
                stored_texts[step.id] = step.text
        read = StepChain.from_links(StepLink(*row) for row in stored.items())
        assert replace(change.after, chain=read, texts=stored_texts) == change.after

        draft, listed, details = change.after, expected, new_details
        if not change.is_empty:
            recorded.append(edit)
    assert len(recorded) == draft.revision
    assert replay(beginning, recorded) == draft
    if listed:
        assert draft.manuscript() == Manuscript(key="setup", steps=tuple(listed), **details)


# ----------------------------------------------------------------------------------------------- beginning


@given(manuscripts)
@examples(60)
def test_a_draft_begins_as_a_copy_with_the_same_keys_and_new_ids(manuscript: Manuscript) -> None:
    ids = [StepId(f"new-{number}") for number, _ in enumerate(manuscript.steps)]
    draft = Draft.copy(KEY, manuscript, iter(ids))
    assert draft.manuscript() == manuscript
    assert draft.steps == tuple(map(Step, ids, manuscript.steps))
    assert (draft.key, draft.revision) == (KEY, 0)


@given(st.integers(1, 9), key_orders)
@examples(40)
def test_a_copy_of_a_version_holds_what_the_version_does(number: int, keys: tuple[str, ...]) -> None:
    version = version_of(number, keys)
    draft = Draft.copy(KEY, version.manuscript("setup"), [StepId(f"new-{key}") for key in keys])
    assert [step.text for step in draft.steps] == [step.text for step in version.steps]
    assert (draft.title, draft.description, draft.type) == (version.title, version.description, version.type)
    assert draft.walkthrough_key == "setup"
    assert not {step.id for step in draft.steps} & {step.id for step in version.steps}


@pytest.mark.parametrize("count", [1, 3])
def test_a_copy_needs_an_id_for_each_step_and_no_more(count: int) -> None:
    manuscript = version_of(1, "ab").manuscript("setup")
    with pytest.raises(ValueError, match="zip"):
        Draft.copy(KEY, manuscript, [StepId(f"new-{number}") for number in range(count)])


def test_an_empty_draft_can_be_filled_but_not_published() -> None:
    draft = Draft.empty(KEY, "setup", title="Set up", description="How.", type=WalkthroughType.COURSE)
    assert (draft.key, draft.type) == (KEY, WalkthroughType.COURSE)
    with pytest.raises(InvalidValue, match="insert at least one"):
        draft.manuscript()
    filled = draft.apply(insert("a", None)).after
    assert [step.key for step in filled.manuscript().steps] == ["a"]
    with pytest.raises(InvalidValue, match="insert at least one"):
        filled.apply(RemoveStep("a")).after.manuscript()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"walkthrough_key": "Set Up"}, InvalidValue),
        ({"title": ""}, InvalidValue),
        ({"description": " "}, InvalidValue),
        ({"revision": -1}, InvalidValue),
        ({"chain": StepChain.of([StepId("a-0")])}, BrokenChain),
        ({"texts": {StepId("a-0"): text("a"), StepId("b-0"): text("a")}}, InvalidValue),
    ],
)
def test_a_draft_that_contradicts_itself_cannot_be_built(change: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        replace(draft_of("ab"), **change)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- editing


@pytest.mark.parametrize(
    ("edit", "keys"),
    [
        (insert("x", None), "xabc"),
        (insert("x", "b"), "abxc"),
        (RemoveStep("b"), "ac"),
        (MoveStep("c", None), "cab"),
        (MoveStep("a", "b"), "bac"),
        (RenameStep("b", "x"), "axc"),
    ],
    ids=str,
)
def test_an_edit_names_steps_by_their_keys(edit: Edit, keys: str) -> None:
    assert keys_of(draft_of("abc").apply(edit).after) == keys


def test_a_renamed_or_replaced_step_is_the_same_row() -> None:
    draft = draft_of("abc")
    renamed = draft.apply(RenameStep("b", "x"))
    assert renamed.changed == Step(StepId("b-0"), replace(text("b"), key="x"))
    replaced = draft.apply(ReplaceStep(text("b", "Anew.")))
    assert replaced.changed == Step(StepId("b-0"), text("b", "Anew."))
    for change in (renamed, replaced):
        assert (change.links, change.added, change.removed) == ((), None, None)
        assert change.after.chain == draft.chain


@pytest.mark.parametrize(
    "edit",
    [
        MoveStep("b", "a"),
        MoveStep("a", None),
        ReplaceStep(text("b")),
        RenameStep("b", "b"),
        SetDetails(),
        SetDetails(title="Set up", type=WalkthroughType.COURSE),
    ],
    ids=str,
)
def test_an_edit_that_changes_nothing_is_not_counted_and_leaves_nothing_to_store(edit: Edit) -> None:
    draft = draft_of("abc", revision=4)
    change = draft.apply(edit)
    assert change.is_empty
    assert change.after == draft
    assert (change.links, change.added, change.removed, change.changed) == ((), None, None, None)
    assert not change.are_details_changed


def test_a_draft_holds_no_more_steps_than_a_walkthrough_may_have() -> None:
    full = draft_of([f"s{number}" for number in range(MAX_STEPS)])
    with pytest.raises(InvalidValue, match="remove one before"):
        full.apply(insert("x", None))
    assert len(full.apply(RemoveStep("s0")).after.apply(insert("x", None)).after.steps) == MAX_STEPS == 500
    with pytest.raises(InvalidValue, match="at most 500 steps; this draft has 501"):
        draft_of([f"s{number}" for number in range(MAX_STEPS + 1)])


@pytest.mark.parametrize(
    ("edit", "error", "says"),
    [
        (insert("a", None), AlreadyExists, "the draft has a step 'a' already: choose another key"),
        (RenameStep("b", "a"), AlreadyExists, "the draft has a step 'a' already: choose another key"),
        (insert("x", "z"), NotFound, "the draft has no step 'z': name one of its step keys"),
        (RemoveStep("z"), NotFound, "the draft has no step 'z': name one of its step keys"),
        (MoveStep("z", None), NotFound, "the draft has no step 'z': name one of its step keys"),
        (ReplaceStep(text("z")), NotFound, "the draft has no step 'z': name one of its step keys"),
        (RenameStep("z", "a"), NotFound, "the draft has no step 'z': name one of its step keys"),
    ],
    ids=str,
)
def test_a_refused_edit_says_in_one_sentence_what_to_do(edit: Edit, error: type[OperatorError], says: str) -> None:
    with pytest.raises(error) as refusal:
        draft_of("abc").apply(edit)
    assert str(refusal.value) == says


def test_a_change_of_a_draft_says_by_which_edit_and_of_what() -> None:
    change = draft_of("abc").apply(RemoveStep("b"))
    assert (change.edit, change.before) == (RemoveStep("b"), draft_of("abc"))


def test_an_edit_that_can_never_be_made_cannot_be_built() -> None:
    with pytest.raises(InvalidValue, match="cannot come after itself"):
        MoveStep("a", "a")
    with pytest.raises(InvalidValue):
        RenameStep("a", "Not a key")
    with pytest.raises(InvalidValue):
        SetDetails(title="a" * (MAX_TITLE_CHARS + 1))
    with pytest.raises(InvalidValue):
        SetDetails(description="")


# ------------------------------------------------------------------------------------------------- an order


@given(key_orders.flatmap(lambda keys: st.tuples(st.just(keys), st.permutations(keys))))
@examples(200)
def test_any_order_is_reached_by_the_fewest_single_moves(orders: tuple[tuple[str, ...], list[str]]) -> None:
    keys, wanted = orders
    draft = draft_of(keys)
    moves = draft.reorder(wanted)
    assert keys_of(replay(draft, moves)) == "".join(wanted)
    most = max(
        size
        for size in range(len(keys) + 1)
        for kept in combinations(keys, size)
        if sorted(kept, key=wanted.index) == list(kept)
    )
    assert len(moves) == len(keys) - most
    assert replay(draft, moves).revision == len(moves), "each move changes something"


@pytest.mark.parametrize("keys", ["ab", "abcd", "abx", "aab", "aabc", ""])
def test_an_order_names_every_step_once(keys: str) -> None:
    with pytest.raises(InvalidValue, match="each step of the draft once, and the draft has 3"):
        draft_of("abc").reorder(keys)


# --------------------------------------------------------------------------------------------- two editors

NINE = Millis(1_767_258_000_000)  # 2026-01-01, 09:00 UTC


def test_an_edit_of_what_was_read_goes_on() -> None:
    draft_of("abc", revision=4).require_current(3, 4, [])


@pytest.mark.parametrize(("number", "revision"), [(3, 2), (3, 5), (2, 4), (4, 4)])
def test_an_edit_of_anything_else_is_refused_with_what_changed(number: int, revision: int) -> None:
    since = [
        RecordedEdit(3, 3, MoveStep("c", None), "ada@example.com", NINE),
        RecordedEdit(3, 4, ReplaceStep(text("b")), "bob@example.com", Millis(NINE + 61_000)),
    ]
    with pytest.raises(StaleEdit) as refusal:
        draft_of("cab", revision=4).require_current(number, revision, since)
    assert str(refusal.value) == (
        "the draft has changed since you read it, and nothing of yours was stored: look at what changed, and make "
        "your edit again on revision 4 of the draft of version 3"
    )
    assert (refusal.value.number, refusal.value.revision, refusal.value.since) == (3, 4, tuple(since))
    assert [str(edit) for edit in refusal.value.since] == [
        "2026-01-01 09:00 UTC, ada@example.com: moved step 'c' to the beginning",
        "2026-01-01 09:01 UTC, bob@example.com: rewrote step 'b'",
    ]


@pytest.fixture
def in_india(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose own time is five and a half hours ahead."""
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("in_india")
def test_when_an_edit_was_made_is_told_in_utc_wherever_the_machine_is() -> None:
    edit = RecordedEdit(3, 1, RemoveStep("b"), "ada@example.com", NINE)
    assert str(edit) == "2026-01-01 09:00 UTC, ada@example.com: removed step 'b'"


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (insert("x", None), "inserted step 'x' at the beginning"),
        (insert("x", "b"), "inserted step 'x' after 'b'"),
        (RemoveStep("b"), "removed step 'b'"),
        (MoveStep("c", None), "moved step 'c' to the beginning"),
        (MoveStep("c", "a"), "moved step 'c' after 'a'"),
        (ReplaceStep(text("b")), "rewrote step 'b'"),
        (RenameStep("b", "x"), "renamed step 'b' to 'x'"),
        (SetDetails(title="Take down"), "set the title to 'Take down'"),
        (SetDetails(description="A\nB", type=WalkthroughType.COURSE), "set the description, the type to course"),
        (SetDetails(), "set nothing"),
    ],
)
def test_an_edit_is_told_in_one_line(edit: Edit, line: str) -> None:
    assert str(edit) == line


# ------------------------------------------------------------------------------------------------- renames


@pytest.mark.parametrize(
    ("edits", "known"),
    [
        ([], {}),
        ([RenameStep("a", "x")], {"a": "x"}),
        ([RenameStep("a", "x"), RenameStep("x", "y")], {"a": "y"}),
        ([RenameStep("a", "x"), RenameStep("x", "a")], {}),
        ([RenameStep("a", "x"), RemoveStep("x")], {}),
        ([RenameStep("a", "x"), RenameStep("b", "a")], {"a": "x", "b": "a"}),
        ([insert("x", None), RenameStep("x", "y")], {}),
        ([RenameStep("a", "x"), insert("a", None), RenameStep("a", "y")], {"a": "x"}),
        ([RemoveStep("a"), insert("a", None), RenameStep("a", "y")], {}),
        ([MoveStep("a", "b"), RenameStep("a", "x"), ReplaceStep(text("x"))], {"a": "x"}),
    ],
)
def test_what_was_renamed_is_known_from_the_edits(edits: list[Edit], known: dict[str, str]) -> None:
    replay(draft_of("abc"), edits)
    assert renames(edits) == known


@given(key_orders, st.lists(edits, max_size=15))
@examples(200)
def test_renames_lead_each_step_to_the_key_that_it_goes_by(keys: tuple[str, ...], sequence: list[Edit]) -> None:
    draft = draft_of(keys)
    made: list[Edit] = []
    for number, drawn in enumerate(sequence):
        edit = drawn
        if isinstance(drawn, InsertStep):
            edit = replace(drawn, step=replace(drawn.step, id=StepId(f"new-{number}")))
        try:
            draft = draft.apply(edit).after
        except OperatorError:
            continue
        made.append(edit)
    by_id = {step.id: step.text.key for step in draft.steps}
    led = {key: by_id[StepId(f"{key}-0")] for key in keys if StepId(f"{key}-0") in by_id}
    assert renames(made) == {old: new for old, new in led.items() if old != new}
