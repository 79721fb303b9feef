"""A visitor keeps their progress: what becomes of one walkthrough, case by case, and then of whatever may have been.

A step's id is its key and its version (`b-2`). Both are in the same walkthrough, whose author publishes meanwhile.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import CorruptHistory, ToolError, WalkthroughUnavailable
from domain.progress import (
    EventKind,
    Merge,
    Outcome,
    Progress,
    ProgressEvent,
    ProgressKey,
    Status,
    Told,
    evolve,
    merge,
    replay,
)
from domain.tenancy import Millis, StepId, UserId
from domain.walkthrough import PublishPolicy
from tests.domain.course import (
    CARRY_OVER,
    DONE,
    KEEP,
    KEY,
    OFFER,
    SKIPPED,
    START,
    STUCK,
    SUPERSEDE,
    Call,
    Course,
    handle,
)
from tests.domain.generate import examples, key_orders, revised

ACCOUNT = KEY._replace(user_id=UserId("grace"))
LATER = Millis(START + 60_000)


@dataclass
class Two:
    """A visitor and the account that they sign in to, each with what they did."""

    visitor: Course = field(default_factory=Course)
    account: Course = field(default_factory=Course)

    @classmethod
    def of(cls, keys: str, visitor: int | None, account: int | None) -> Two:
        """So many steps completed; None: not begun."""
        two = cls().publish(keys)
        for course, steps in ((two.visitor, visitor), (two.account, account)):
            if steps is not None:
                course.begin(steps)
        return two

    def publish(self, keys: str | tuple[str, ...], policy: PublishPolicy = KEEP) -> Two:
        for course in (self.visitor, self.account):
            course.publish(keys, policy)
        return self

    def as_account(self) -> Progress | None:
        return replace(self.account.progress, key=ACCOUNT) if self.account.progress else None

    def merge(self, now: int = LATER) -> Merge:
        """With no more versions than are asked for."""
        mine, visitor = self.as_account(), self.visitor.stands
        numbers = {visitor.version} | ({mine.version} if mine else set())
        numbers |= {event.version for event in self.visitor.events if event.attempt == visitor.attempt}
        versions = {number: self.visitor.versions[number] for number in numbers}
        return merge(visitor, mine, ACCOUNT, versions, now=Millis(now))

    def kept(self, merged: Merge) -> tuple[Progress, list[ProgressEvent]]:
        """What the account has afterwards, and all that led there."""
        if merged.account is None:
            return merged.visitor.after, [*self.visitor.events, *merged.visitor.events]
        return merged.account.after, [*self.account.events, *merged.account.events]

    def keys(self, progress: Progress) -> str:
        return "".join(sorted(progress.completed_keys(self.visitor.versions[progress.version])))


def as_it_was(progress: Progress, **changed: object) -> Progress:
    """One event later, and otherwise the same."""
    return replace(progress, revision=progress.revision + 1, last_activity_at=LATER, **changed)  # type: ignore[arg-type]


def recorded(events: tuple[ProgressEvent, ...]) -> list[tuple[str | None, str | None]]:
    assert {(event.kind, event.outcome, event.note) for event in events} <= {(EventKind.MERGED, None, None)}
    return [(event.from_step_id, event.to_step_id) for event in events]


# --------------------------------------------------------------------------------------------- case by case


@pytest.mark.parametrize(("steps", "stood_on"), [(0, "a-1"), (2, "c-1"), (3, "c-1")])
def test_an_account_that_has_nothing_gets_the_visitors_progress_as_it_stands(steps: int, stood_on: str) -> None:
    two = Two.of("abc", steps, None)
    merged = two.merge()
    assert merged.account is None
    assert merged.visitor.after == as_it_was(two.visitor.stands, key=ACCOUNT)
    assert recorded(merged.visitor.events) == [(stood_on, two.visitor.at)]


def test_attempts_and_versions_come_along() -> None:
    two = Two.of("abc", 2, None).publish("xabc")
    two.visitor.select(restart=True)
    two.visitor.next()
    after = two.merge().visitor.after
    assert (after.attempt, after.version, after.current_step_id) == (2, 2, "a-2")


def test_on_the_same_version_the_completed_steps_are_united_and_the_account_lands_on_the_first_open_one() -> None:
    two = Two.of("abcde", 3, 1)
    merged = two.merge()
    assert merged.account is not None
    after = merged.account.after
    assert (after.key, after.attempt, after.status, after.current_step_id) == (ACCOUNT, 1, Status.IN_PROGRESS, "d-1")
    assert two.keys(after) == "abc"
    assert recorded(merged.account.events) == [("c-1", "b-1"), ("b-1", "d-1")]


def test_steps_that_lie_after_the_accounts_current_one_are_passed_over_later() -> None:
    two = Two.of("abcd", 2, 0).publish("cdab")
    for course in (two.visitor, two.account):
        course.select(latest=True)
    assert (two.visitor.at, two.account.at) == ("c-2", "c-2")
    merged = two.merge()
    assert merged.account is not None
    assert recorded(merged.account.events) == [("b-2", "c-2"), ("a-2", "c-2")]
    two.account.progress = merged.account.after
    assert [two.account.next(), two.account.next()] == [Told.ADVANCED, Told.COMPLETED]


def test_a_merge_may_complete_what_neither_has_completed() -> None:
    two = Two.of("abcd", 2, 0).publish("cdab")
    for course in (two.visitor, two.account):
        course.select(latest=True)
    for _ in "cd":
        two.account.next()
    merged = two.merge()
    assert merged.account is not None
    after = merged.account.after
    assert (after.status, after.completed_at, after.current_step_id) == (Status.COMPLETED, LATER, None)
    assert recorded(merged.account.events) == [("b-2", "a-2"), ("a-2", None)]


def test_a_step_that_is_gone_from_the_version_is_still_done_when_it_comes_back() -> None:
    two = Two.of("xab", 1, 0).publish("ab").publish("abx", OFFER)
    two.visitor.author = two.account.author = replace(two.visitor.author, published=two.visitor.author.published[:2])
    for course in (two.visitor, two.account):
        course.select(latest=True)
    merged = two.merge()
    assert merged.account is not None
    assert recorded(merged.account.events) == [("x-1", "a-2")]
    two.account.progress = merged.account.after
    two.account.author = two.account.author.publish("abx", KEEP)
    two.account.select(latest=True)
    assert [two.account.next(), two.account.next()] == [Told.ADVANCED, Told.COMPLETED]


@pytest.mark.parametrize("account", [0, 1, 3])
def test_what_the_account_has_done_already_is_not_gained(account: int) -> None:
    two = Two.of("abcd", 1, account)
    merged = two.merge()
    assert merged.account is not None
    assert merged.account.after == (two.as_account() if account else merged.account.after)
    assert recorded(merged.account.events) == ([] if account else [("a-1", "b-1")])


def test_a_completed_account_keeps_its_own() -> None:
    for visitor in (0, 1, 3):
        merged = Two.of("abc", visitor, 3).merge()
        assert merged.account is not None
        assert (merged.account.before, merged.account.events) == (merged.account.after, ())


def test_what_the_visitor_has_completed_the_account_has_completed_on_the_visitors_version() -> None:
    two = Two.of("abc", 3, 1).publish("xbc")
    two.account.select(latest=True)
    assert two.account.at == "x-2"
    merged = two.merge()
    assert merged.account is not None
    after = merged.account.after
    assert (after.status, after.version, after.attempt, after.completed_at) == (Status.COMPLETED, 1, 1, LATER)
    assert (after.started_at, two.keys(after)) == (START, "abc")
    assert recorded(merged.account.events) == [("x-2", None)]


def test_on_the_same_version_too_the_visitors_completion_is_one_event() -> None:
    two = Two.of("abc", 3, 1)
    merged = two.merge()
    assert merged.account is not None
    assert recorded(merged.account.events) == [("b-1", None)]


def test_on_another_version_the_account_keeps_its_own() -> None:
    two = Two.of("abc", 2, 1).publish("abc")
    two.visitor.select(latest=True)
    merged = two.merge()
    assert merged.account is not None
    assert (merged.account.after, merged.account.events) == (two.as_account(), ())


@pytest.mark.parametrize("account", [0, 2, 3])
@pytest.mark.parametrize("visitor", [0, 1, 3])
def test_where_the_account_has_its_own_the_visitors_ends_where_it_stood(visitor: int, account: int) -> None:
    two = Two.of("abc", visitor, account)
    merged = two.merge()
    assert merged.visitor.after == as_it_was(two.visitor.stands, status=Status.MERGED)
    assert recorded(merged.visitor.events) == [(None, two.visitor.at)]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    "call",
    [
        Call("select"),
        Call("select", restart=True),
        Call("select", latest=True),
        *(Call("next", handle=handle("a-1"), outcome=outcome, note="why") for outcome in Outcome),
        Call("next", handle=handle("b-1")),
        Call("next"),
    ],
)
def test_nothing_follows_on_a_visitors_progress_that_has_ended(steps: int, call: Call) -> None:
    two = Two.of("abc", steps, 0).publish("abcd", CARRY_OVER)
    two.visitor.progress = two.merge().visitor.after
    with pytest.raises(WalkthroughUnavailable) as refusal:
        two.visitor.call(call)
    assert refusal.value.title == two.visitor.versions[1].title


# ------------------------------------------------------------------------------------------ what is recorded


def merged_event(revision: int, from_step: str | None, to_step: str | None, **given: int) -> ProgressEvent:
    values = {"attempt": 1, "version": 1, "occurred_at": START} | given
    step_ids = [None if step is None else StepId(step) for step in (from_step, to_step)]
    return ProgressEvent(
        revision,
        EventKind.MERGED,
        values["attempt"],
        values["version"],
        *step_ids,
        outcome=None,
        note=None,
        occurred_at=Millis(values["occurred_at"]),
    )


@pytest.mark.parametrize(
    ("completed", "impossible"),
    [
        pytest.param(1, merged_event(3, "c-1", "a-1"), id="moves by a step that is not current"),
        pytest.param(1, merged_event(3, None, "c-1"), id="ends elsewhere"),
        pytest.param(1, merged_event(3, None, None), id="ends as completed"),
        pytest.param(1, merged_event(3, "c-1", None), id="is completed by a step that is not current"),
        pytest.param(1, merged_event(3, "b-1", "b-2", version=2), id="moves to another version"),
        pytest.param(1, merged_event(3, "b-1", "b-1", attempt=2), id="begins another attempt"),
        pytest.param(1, merged_event(4, "b-1", "b-1"), id="leaves a gap"),
        pytest.param(1, merged_event(3, "b-1", "b-1", occurred_at=START - 1), id="goes back in time"),
        pytest.param(1, merged_event(3, "z-1", "b-1"), id="gains a step that never was"),
        pytest.param(3, merged_event(5, "c-1", "a-1"), id="reopens what is completed"),
        pytest.param(3, merged_event(5, "c-1", None, version=2), id="moves what is completed"),
    ],
)
def test_what_no_merge_records_is_refused(completed: int, impossible: ProgressEvent) -> None:
    course = Course.of("abc").begin(completed).publish("abc")
    with pytest.raises(CorruptHistory):
        evolve(course.stands, impossible, KEY, course.versions)


@pytest.mark.parametrize("completed", [1, 3])
@pytest.mark.parametrize("kind", EventKind)
def test_no_event_follows_on_an_end(kind: EventKind, completed: int) -> None:
    two = Two.of("abc", completed, 0)
    ended = two.merge().visitor.after
    at = StepId(two.visitor.at) if two.visitor.at else None
    for attempt, from_step, to_step in ((1, at, at), (1, None, at), (1, at, None), (2, None, StepId("a-1"))):
        event = merged_event(ended.revision + 1, None, None, attempt=attempt, occurred_at=LATER)
        event = event._replace(kind=kind, from_step_id=from_step, to_step_id=to_step)
        with pytest.raises(CorruptHistory):
            evolve(ended, event, KEY, two.visitor.versions)


def test_an_end_keeps_the_time_of_completion_and_no_other_has_one() -> None:
    ended = Two.of("ab", 2, 0).merge().visitor.after
    assert (ended.completed_at, ended.current_step_id) == (START, None)
    for changed in ({"completed_at": None}, {"current_step_id": StepId("a-1")}):
        with pytest.raises(CorruptHistory):
            replace(ended, **changed)


# -------------------------------------------------------------------------------- whatever may have happened

CASES = {
    "the account has nothing",
    "both are completed",
    "the account is completed",
    "the visitor is completed",
    "the visitor is completed on an older version",
    "same version, nothing gained",
    "same version, steps gained",
    "same version, a step gained that is gone",
    "same version, completed by it",
    "other versions",
}


def case_of(two: Two, merged: Merge) -> set[str]:
    visitor, account = two.visitor.stands, two.as_account()
    if account is None or merged.account is None:
        return {"the account has nothing"}
    done = [progress.status is Status.COMPLETED for progress in (visitor, account)]
    if all(done):
        return {"both are completed"}
    if done[1]:
        return {"the account is completed"}
    if done[0]:
        older = {"the visitor is completed on an older version"} if visitor.version < account.version else set()
        return {"the visitor is completed"} | older
    if visitor.version != account.version:
        return {"other versions"}
    if not merged.account.events:
        return {"same version, nothing gained"}
    gone = any(event.from_step_id not in ids_of(two, account.version) for event in merged.account.events)
    return (
        {"same version, steps gained"}
        | ({"same version, a step gained that is gone"} if gone else set())
        | ({"same version, completed by it"} if merged.account.after.completed_at else set())
    )


def ids_of(two: Two, version: int) -> set[str]:
    return {step.id for step in two.visitor.versions[version].steps}


@st.composite
def histories(draw: st.DrawFn) -> Two:
    """Two people in one walkthrough of up to three versions, each with a history of up to a dozen calls or so."""
    two = Two().publish(draw(key_orders))
    # Both do much the same, or else they would seldom meet.
    for _ in range(draw(st.integers(1, 14))):
        latest = two.visitor.author.published[-1]
        both = (two.visitor, two.account)
        doing = draw(st.sampled_from(["next", "next", "next", "call", "publish", "time"]))
        if doing == "publish" and len(two.visitor.versions) < 3:
            two.publish(draw(revised(latest)), draw(st.sampled_from([KEEP, OFFER, CARRY_OVER, CARRY_OVER, SUPERSEDE])))
        elif doing == "time":
            for course in both:
                course.now = Millis(course.now + draw(st.integers(-5_000, 100_000)))
        else:
            for course in draw(st.sampled_from([both, both, both[:1], both[1:]])):
                acts(draw, course, doing)
    if two.visitor.progress is None:
        two.visitor.select()
    return two


@st.composite
def histories_that_met_again(draw: st.DrawFn) -> Two:
    """Two who began on different versions, did some steps there, and went on to the same third one."""
    two = Two().publish(draw(st.lists(st.sampled_from("abcde"), unique=True, min_size=1, max_size=5).map(tuple)))
    for course in (two.visitor, two.account):
        course.begin(draw(st.integers(0, len(two.visitor.author.published[-1]) - 1)))
        keys = draw(st.permutations(two.visitor.author.published[0]))
        two.publish(tuple(keys[: draw(st.integers(1, len(keys)))]))
    for course in (two.visitor, two.account):
        course.select(latest=True)
    return two


def acts(draw: st.DrawFn, course: Course, doing: str) -> None:
    if course.progress is None:
        course.select()
        return
    calls = [Call("select"), Call("select", restart=True), Call("select", latest=True)]
    current = course.progress.handle()
    if current is not None:
        calls.append(Call("next", handle=str(current), outcome=STUCK, note="why"))
        calls.append(Call("next", handle=str(current), outcome=SKIPPED))
    call = draw(st.sampled_from(calls))
    if doing == "next" and current is not None:
        call = Call("next", handle=str(current), outcome=DONE)
    with suppress(ToolError):  # of a version that was withdrawn
        course.call(call)


@pytest.mark.promise("auth.anonymous")
def test_whatever_both_did_nobody_loses_a_step_and_the_events_tell_it_all() -> None:
    met: Counter[str] = Counter()

    @examples(1_500)
    @given(two=histories() | histories_that_met_again(), now=st.integers(START - 10_000, START + 1_000_000))
    def check(two: Two, now: int) -> None:
        merged = two.merge(now)
        met.update(case_of(two, merged))
        check_merge(two, merged, now)

    check()
    assert set(met) == CASES
    assert min(met.values()) >= 5, met


def check_merge(two: Two, merged: Merge, now: int) -> None:
    versions, visitor, account = two.visitor.versions, two.visitor.stands, two.as_account()
    kept, led_there = two.kept(merged)

    # Replaying what is recorded of either gives what is stored of either.
    assert kept.key == ACCOUNT
    assert replay(ACCOUNT, led_there, versions) == kept
    assert [event.revision for event in led_there] == list(range(1, kept.revision + 1))
    if merged.account is not None:
        ended = merged.visitor
        assert replay(KEY, [*two.visitor.events, *ended.events], versions) == ended.after
        assert ended.after == replace(
            visitor,
            status=Status.MERGED,
            revision=visitor.revision + 1,
            last_activity_at=max(now, visitor.last_activity_at),
        )

    # No time decreases, and an attempt is completed once.
    assert all(before.occurred_at <= after.occurred_at for before, after in pairwise(led_there))
    was = account or visitor
    assert (kept.attempt, kept.started_at) == (was.attempt, was.started_at)
    if was.completed_at is not None or kept.completed_at is None:
        assert kept.completed_at == was.completed_at
    else:
        assert kept.completed_at == kept.last_activity_at == max(now, was.last_activity_at)

    # Nobody loses a step, and nobody is put past one.
    version = versions[kept.version]
    done = kept.completed_keys(version)
    if account is None:
        assert replace(kept, key=KEY, revision=visitor.revision, last_activity_at=visitor.last_activity_at) == visitor
    elif account.status is Status.COMPLETED:
        assert kept == account
    elif visitor.status is Status.COMPLETED:
        assert (kept.status, kept.version) == (Status.COMPLETED, visitor.version)
        assert done >= account.completed_keys(versions[account.version])
    elif visitor.version == account.version:
        assert done == visitor.completed_keys(version) | account.completed_keys(version)
        first_open = next((step.id for step in version.steps if step.key not in done), None)
        assert kept.current_step_id == first_open
        passed_through = {event.to_step_id for event in led_there[account.revision :]}
        assert passed_through <= {account.current_step_id, first_open}, "nobody was at a step they are passed over"
        gained = [event.from_step_id for event in led_there[account.revision :]]
        assert len(gained) == len(set(gained)) == len(done - account.completed_keys(version))
    else:
        assert kept == account

    # It goes on like any other: also what was gained ahead, or is gone, is never asked for again.
    if kept.completed_at is None and kept.version not in two.account.author.withdrawn:
        goes_on(two, kept, led_there, done)


def goes_on(two: Two, kept: Progress, led_there: list[ProgressEvent], done: frozenset[str]) -> None:
    course = Course(two.account.author, kept, list(led_there), kept.last_activity_at, dict(two.account.versions))
    everything = tuple("abcdefgh")
    course.publish(everything, CARRY_OVER)
    shown = set()
    while course.stands.status is Status.IN_PROGRESS:
        course.next()
        if course.at is not None:
            shown.add(course.at.split("-")[0])
    assert shown.isdisjoint(done)
    assert replay(ACCOUNT, course.events, course.versions) == course.stands


@given(two=histories())
@examples(200)
def test_a_merge_of_what_was_merged_is_impossible(two: Two) -> None:
    merged = two.merge()
    if merged.account is not None:
        two.visitor.progress = merged.visitor.after
        with pytest.raises(CorruptHistory):
            two.merge()


def test_the_key_of_the_account_is_the_only_one_that_a_progress_is_given() -> None:
    other = ProgressKey(KEY.organization_id, KEY.server_id, UserId("linus"), KEY.walkthrough_id)
    two = Two.of("ab", 1, None)
    assert merge(two.visitor.stands, None, other, two.visitor.versions, now=LATER).visitor.after.key == other
