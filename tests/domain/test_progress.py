"""Progress, rule by rule (the rules of the public contract), and then all of them at once.

The first part has a test for each sentence of the rules. The second part is a machine: one person with several
clients, stale handles, lost answers, racing calls and an author who publishes meanwhile; each decision is
compared with `Contract`, which says in the contract's own words what should happen and shares no code with the
domain. In both, a step's id is its key and its version (`b-2`), and `Course` stands for the application.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import example, given, note
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from domain.errors import (
    CompletedStepRequired,
    CorruptHistory,
    StepNotCurrent,
    StepNotReached,
    ToolError,
    VersionWithdrawn,
    WalkthroughUnavailable,
)
from domain.progress import (
    EventKind,
    Outcome,
    Progress,
    ProgressEvent,
    Standpoint,
    Status,
    StepHandle,
    Told,
    Transition,
    evolve,
    move_is_offered,
    replay,
    reviewed_step,
    standpoint,
)
from domain.tenancy import Millis, StepId, WalkthroughId
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
    Author,
    Call,
    Course,
    handle,
)
from tests.domain.generate import WALKTHROUGH, examples, outline_of, revised


def refused(course: Course, error: type[ToolError], call: Call) -> ToolError:
    """Checks that the call is refused and leaves everything as it was."""
    before = (course.progress, list(course.events))
    with pytest.raises(error) as refusal:
        course.call(call)
    assert (course.progress, course.events) == before
    return refusal.value


def names_where_one_stands(course: Course, named: Standpoint) -> bool:
    version = course.versions[course.stands.version]
    step = course.stands.current_step(version)
    return named == Standpoint(
        title=version.title,
        reference=WALKTHROUGH,
        step_title=step and step.title,
        step_number=step and version.steps.index(step) + 1,
        total_steps=len(version.steps),
        handle=course.stands.handle(),
    )


# ---------------------------------------------------------------------------------------- rule 1: advance


@pytest.mark.promise("next.advanced")
def test_the_handle_of_the_current_step_moves_exactly_one_step() -> None:
    course = Course.of("abc").begin()
    assert course.next(handle("a-1")) is Told.ADVANCED
    assert (course.at, course.completed) == ("b-1", "a")
    event = course.events[-1]
    assert (event.kind, event.from_step_id, event.to_step_id, event.outcome) == (
        EventKind.ADVANCED,
        "a-1",
        "b-1",
        DONE,
    )


@pytest.mark.promise("next.repeated")
def test_the_same_handle_again_moves_nothing_and_answers_repeated() -> None:
    course = Course.of("abc").begin()
    course.next(handle("a-1"))
    before = (course.progress, list(course.events))
    for outcome in (DONE, SKIPPED):
        assert course.next(handle("a-1"), outcome) is Told.REPEATED
    assert (course.progress, course.events) == before


def test_the_same_handle_days_later_is_still_a_repeat() -> None:
    course = Course.of("abcd").begin(steps=2)
    course.now = Millis(START + 9 * 86_400_000)
    course.select()
    assert course.next(handle("a-1")) is Told.REPEATED
    assert course.at == "c-1"


def test_two_clients_at_once_with_one_handle_move_one_step() -> None:
    course = Course.of("abc").begin()
    call = Call("next", handle=course.handle)
    first, second = course.decide(call), course.decide(call)
    assert first.told is second.told is Told.ADVANCED
    assert course.commit(first)
    assert not course.commit(second), "the revision that the second was decided on is gone"
    assert course.call(call) is Told.REPEATED
    assert (course.at, course.completed) == ("b-1", "a")


def test_a_handle_of_any_completed_step_is_a_repeat() -> None:
    course = Course.of("abcd").begin(steps=3)
    for step_id in ("a-1", "b-1", "c-1"):
        assert course.next(handle(step_id)) is Told.REPEATED
    assert course.at == "d-1"


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.promise("next.not-current")
def test_a_handle_of_a_later_step_is_refused_and_the_current_step_named(outcome: Outcome) -> None:
    course = Course.of("abc").begin(steps=1)
    error = refused(course, StepNotCurrent, Call("next", handle=handle("c-1"), outcome=outcome))
    assert isinstance(error, StepNotCurrent)
    assert error.code == "step_not_current"
    assert names_where_one_stands(course, error.standpoint)
    assert str(error.standpoint.handle) == handle("b-1")


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("attempt", [1, 3])
def test_a_handle_of_another_attempt_is_refused(outcome: Outcome, attempt: int) -> None:
    course = Course.of("abc").begin(steps=1)
    course.select(restart=True)
    for step_id in ("a-1", "b-1"):
        call = Call("next", handle=handle(step_id, attempt=attempt), outcome=outcome)
        error = refused(course, StepNotCurrent, call)
        assert isinstance(error, StepNotCurrent)
        assert names_where_one_stands(course, error.standpoint)


@pytest.mark.parametrize("outcome", Outcome)
def test_a_handle_of_another_walkthrough_is_refused(outcome: Outcome) -> None:
    course = Course.of("abc").begin()
    error = refused(course, StepNotCurrent, Call("next", handle=handle("a-1", walkthrough="w2"), outcome=outcome))
    assert isinstance(error, StepNotCurrent)
    assert names_where_one_stands(course, error.standpoint)


@pytest.mark.promise("next.other-version")
def test_a_handle_of_the_version_before_advances_where_its_step_is_current_by_key() -> None:
    course = Course.of("abc").begin(steps=1).publish("axbc")
    course.select(latest=True)
    course.next()
    assert course.at == "b-2"
    assert course.next(handle("b-1")) is Told.ADVANCED
    assert course.at == "c-2"
    assert course.events[-1].from_step_id == "b-2"


@pytest.mark.promise("next.other-version")
def test_a_handle_of_the_version_before_repeats_where_its_step_is_completed_or_gone() -> None:
    course = Course.of("abcd").begin(steps=1).publish("adx")
    course.select(latest=True)
    before = (course.progress, list(course.events))
    assert course.at == "d-2"
    assert course.next(handle("a-1")) is Told.REPEATED
    assert course.next(handle("b-1")) is Told.REPEATED
    assert course.next(handle("c-1")) is Told.REPEATED
    assert (course.progress, course.events) == before


def test_a_handle_of_the_version_before_is_refused_where_its_step_comes_later() -> None:
    course = Course.of("abc").begin(steps=1).publish("axb")
    course.select(latest=True)
    assert course.at == "x-2"
    refused(course, StepNotCurrent, Call("next", handle=handle("b-1")))


@pytest.mark.promise("next.handle-required")
def test_without_a_handle_the_current_step_and_its_handle_are_named() -> None:
    course = Course.of("abc").begin(steps=1)
    error = refused(course, CompletedStepRequired, Call("next"))
    assert isinstance(error, CompletedStepRequired)
    assert error.code == "completed_step_required"
    assert error.unreadable is False
    assert len(error.standpoints) == 1
    assert names_where_one_stands(course, error.standpoints[0])


@pytest.mark.parametrize("step_id", ["z-1", "a-7"])
def test_a_handle_of_a_step_that_never_was_counts_as_unreadable(step_id: str) -> None:
    course = Course.of("abc").begin(steps=1)
    error = refused(course, CompletedStepRequired, Call("next", handle=handle(step_id)))
    assert isinstance(error, CompletedStepRequired)
    assert error.unreadable
    assert names_where_one_stands(course, error.standpoints[0])


def test_from_the_last_step_the_walkthrough_is_completed() -> None:
    course = Course.of("ab").begin(steps=1)
    course.now = Millis(START + 5)
    assert course.next() is Told.COMPLETED
    assert course.stands.status is Status.COMPLETED
    assert (course.at, course.stands.handle(), course.stands.completed_at) == (None, None, START + 5)
    assert (course.kinds[-1], course.events[-1].to_step_id) == (EventKind.ADVANCED, None)
    assert course.completed == "ab"


def test_a_walkthrough_of_one_step_is_completed_by_its_handle() -> None:
    course = Course.of("a").begin()
    assert course.next() is Told.COMPLETED


@pytest.mark.promise("next.completed")
def test_the_time_of_completion_is_set_once_per_attempt() -> None:
    course = Course.of("ab").begin(steps=2)
    completed_at = course.stands.completed_at
    course.now = Millis(START + 1_000)
    course.next(handle("b-1"), STUCK, "Where do I find it again?")
    course.next(handle("b-1"))
    course.select()
    course.publish("abc", CARRY_OVER)
    course.select(latest=True)
    assert course.stands.completed_at == completed_at == START
    course.select(restart=True)
    assert course.stands.completed_at is None
    for _ in "abc":
        course.next()
    assert course.stands.completed_at == START + 1_000


@pytest.mark.parametrize("outcome", [DONE, SKIPPED])
def test_once_completed_every_handle_of_the_attempt_is_a_repeat_with_no_step(outcome: Outcome) -> None:
    course = Course.of("abc").begin(steps=3)
    before = (course.progress, list(course.events))
    for step_id in ("a-1", "b-1", "c-1"):
        assert course.next(handle(step_id), outcome) is Told.REPEATED
    assert (course.progress, course.events) == before
    assert course.at is None


def test_once_completed_a_call_without_a_handle_names_no_step() -> None:
    course = Course.of("ab").begin(steps=2)
    error = refused(course, CompletedStepRequired, Call("next"))
    assert isinstance(error, CompletedStepRequired)
    assert (error.standpoints[0].handle, error.standpoints[0].step_number) == (None, None)


def test_once_completed_a_handle_of_the_attempt_before_is_refused() -> None:
    course = Course.of("ab").begin(steps=1)
    course.select(restart=True)
    course.next()
    course.next()
    refused(course, StepNotCurrent, Call("next", handle=handle("a-1")))


# ---------------------------------------------------------------------------------------- rule 2: outcome


def test_a_skipped_step_advances_and_counts_as_completed() -> None:
    course = Course.of("abc").begin()
    assert course.next(outcome=SKIPPED) is Told.ADVANCED
    assert (course.at, course.completed, course.events[-1].outcome) == ("b-1", "a", SKIPPED)
    assert course.next(handle("a-1")) is Told.REPEATED
    course.publish("bca")
    course.select(latest=True)
    course.next()
    assert course.next() is Told.COMPLETED, "the skipped step is not asked for again"


def test_skipping_the_last_step_completes() -> None:
    course = Course.of("a").begin()
    assert course.next(outcome=SKIPPED) is Told.COMPLETED


def test_being_stuck_records_the_note_and_stays() -> None:
    course = Course.of("ab").begin()
    assert course.next(outcome=STUCK, note="No permission.") is Told.STUCK
    assert (course.at, course.completed) == ("a-1", "")
    event = course.events[-1]
    assert (event.kind, event.from_step_id, event.to_step_id) == (EventKind.STUCK, "a-1", "a-1")
    assert (event.outcome, event.note) == (STUCK, "No permission.")


@pytest.mark.promise("next.outcome")
def test_a_stuck_note_is_recorded_once_for_the_same_handle_and_note() -> None:
    course = Course.of("ab").begin()
    course.next(outcome=STUCK, note="No permission.")
    before = (course.progress, list(course.events))
    assert course.next(outcome=STUCK, note="No permission.") is Told.STUCK
    assert (course.progress, course.events) == before


def test_another_note_or_the_same_on_another_step_or_attempt_is_recorded() -> None:
    course = Course.of("abc").begin()
    for _ in range(2):
        course.next(outcome=STUCK, note="Help.")
        course.next(outcome=STUCK, note="Please.")
        course.next(outcome=STUCK)
        course.next()
        course.next(outcome=STUCK, note="Help.")
        course.select(restart=True)
    noted = [(event.attempt, event.from_step_id, event.note) for event in course.events if event.outcome is STUCK]
    assert len(noted) == len(set(noted)) == 8


def test_after_being_stuck_a_later_done_advances_as_usual() -> None:
    course = Course.of("ab").begin()
    stuck_on = course.handle
    course.next(stuck_on, STUCK, "Help.")
    assert course.next(stuck_on, DONE, "Found it.") is Told.ADVANCED
    assert (course.at, course.events[-1].note) == ("b-1", "Found it.")


def test_being_stuck_on_a_completed_step_records_the_note_and_answers_repeated() -> None:
    course = Course.of("abc").begin(steps=2)
    for _ in range(2):
        assert course.next(handle("a-1"), STUCK, "It broke again.") is Told.REPEATED
    assert course.kinds.count(EventKind.STUCK) == 1
    event = course.events[-1]
    assert (event.from_step_id, event.to_step_id, event.note) == ("a-1", "c-1", "It broke again.")
    assert (course.at, course.completed) == ("c-1", "ab")


def test_being_stuck_after_the_end_records_the_note_and_stays_completed() -> None:
    course = Course.of("ab").begin(steps=2)
    assert course.next(handle("b-1"), STUCK, "And now?") is Told.REPEATED
    assert (course.kinds[-1], course.stands.status) == (EventKind.STUCK, Status.COMPLETED)


def test_being_stuck_on_a_step_that_is_gone_records_the_note_and_answers_repeated() -> None:
    course = Course.of("ab").begin().publish("xb")
    course.select(latest=True)
    for _ in range(2):
        assert course.next(handle("a-1"), STUCK, "Where is it?") is Told.REPEATED
    assert course.kinds.count(EventKind.STUCK) == 1
    assert (course.events[-1].from_step_id, course.at) == ("a-1", "x-2")


# ----------------------------------------------------------------------------------------- rule 3: select


def test_select_starts_at_step_1_of_the_latest_version() -> None:
    course = Course.of("ab").publish("xy")
    assert course.select() is Told.STARTED
    assert course.at == "x-2"
    assert course.stands == Progress(KEY, 2, 1, 1, Status.IN_PROGRESS, StepId("x-2"), frozenset(), START, START, None)
    assert course.events == [ProgressEvent(1, EventKind.STARTED, 1, 2, None, StepId("x-2"), None, None, START)]


@pytest.mark.parametrize("latest", [False, True])
@pytest.mark.parametrize("restart", [False, True])
def test_not_started_every_select_starts(restart: bool, latest: bool) -> None:
    course = Course.of("ab")
    assert course.select(restart=restart, latest=latest) is Told.STARTED
    assert course.kinds == [EventKind.STARTED]


@pytest.mark.promise("select.resumed")
def test_select_in_progress_resumes_at_the_current_step_and_moves_nothing() -> None:
    course = Course.of("abc").begin(steps=1)
    before = course.stands
    course.now = Millis(START + 60_000)
    assert course.select() is Told.RESUMED
    assert course.stands == replace(before, revision=before.revision + 1, last_activity_at=START + 60_000)


@pytest.mark.promise("select.resumed")
def test_resuming_counts_as_activity() -> None:
    course = Course.of("abc").begin(steps=1)
    course.now = Millis(START + 60_000)
    course.select()
    assert course.stands.last_activity_at == START + 60_000
    assert course.kinds[-1] is EventKind.RESUMED


@pytest.mark.parametrize("policy", PublishPolicy)
@pytest.mark.parametrize("latest", [False, True])
@pytest.mark.promise("select.completed")
def test_select_once_completed_answers_completed_and_writes_nothing(latest: bool, policy: PublishPolicy) -> None:
    course = Course.of("ab").begin(steps=2).publish("abc", policy)
    before = (course.progress, list(course.events))
    assert course.select(latest=latest) is Told.COMPLETED
    assert course.hide().select(latest=latest) is Told.COMPLETED
    assert (course.progress, course.events) == before


def test_only_restart_leaves_a_completed_walkthrough() -> None:
    course = Course.of("ab").begin(steps=2)
    assert course.select(restart=True) is Told.RESTARTED
    assert (course.at, course.completed, course.stands.attempt) == ("a-1", "", 2)
    assert course.stands.status is Status.IN_PROGRESS


# ---------------------------------------------------------------------------------------- rule 4: restart


@pytest.mark.parametrize("latest", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.promise("select.restart")
def test_restart_begins_the_next_attempt_on_the_latest_version_whatever_version_says(steps: int, latest: bool) -> None:
    course = Course.of("abc").begin(steps).publish("xab", KEEP)
    course.now = Millis(START + 10)
    assert course.select(restart=True, latest=latest) is Told.RESTARTED
    assert (course.at, course.completed, course.stands.attempt) == ("x-2", "", 2)
    assert course.stands.started_at == START + 10
    assert course.kinds[-1] is EventKind.RESTARTED


@pytest.mark.parametrize("latest", [False, True])
def test_restart_of_an_untouched_attempt_on_the_latest_version_resumes_it(latest: bool) -> None:
    course = Course.of("ab").begin(steps=1)
    course.select(restart=True)
    course.next(outcome=STUCK, note="Nothing is completed by this.")
    course.now = Millis(START + 10)
    assert course.select(restart=True, latest=latest) is Told.RESUMED
    assert (course.at, course.stands.attempt, course.stands.last_activity_at) == ("a-1", 2, START + 10)
    assert course.kinds[-1] is EventKind.RESUMED


def test_two_restarts_at_once_begin_one_attempt() -> None:
    course = Course.of("ab").begin(steps=1)
    restart = Call("select", restart=True)
    first, second = course.decide(restart), course.decide(restart)
    assert course.commit(first)
    assert not course.commit(second)
    assert course.call(restart) is Told.RESUMED
    assert course.stands.attempt == 2


def test_an_attempt_with_something_carried_over_is_not_untouched() -> None:
    course = Course.of("ab").begin(steps=1).publish("xy")
    course.select(latest=True)
    assert course.stands.completed_steps(course.versions[2]) == 0
    assert course.select(restart=True) is Told.RESTARTED


def test_the_events_keep_former_attempts() -> None:
    course = Course.of("ab").begin(steps=1)
    former = list(course.events)
    course.select(restart=True)
    assert course.events[: len(former)] == former
    assert [event.attempt for event in course.events] == [1, 1, 2]


# ----------------------------------------------------------------------------------------- rule 5: latest


@pytest.mark.parametrize("policy", PublishPolicy)
@pytest.mark.promise("select.latest")
def test_latest_moves_by_carry_over_whatever_the_publish_policy(policy: PublishPolicy) -> None:
    course = Course.of("abc").begin(steps=1).publish("xac", policy)
    assert course.select(latest=True) is Told.MOVED_TO_LATEST
    assert (course.at, course.completed, course.stands.attempt) == ("x-2", "a", 1)
    assert course.kinds[-1] is EventKind.MOVED


def test_latest_goes_to_the_newest_version_past_those_between() -> None:
    course = Course.of("abc").begin(steps=1).publish("xyz").publish("abd")
    assert course.select(latest=True) is Told.MOVED_TO_LATEST
    assert course.at == "b-3"


def test_latest_resumes_where_one_is_there_already() -> None:
    course = Course.of("abc").begin(steps=1)
    assert course.select(latest=True) is Told.RESUMED
    assert course.hide().select(latest=True) is Told.RESUMED
    assert course.at == "b-1"


# ------------------------------------------------------------------------------------- rule 6: carry over


def test_a_step_completed_in_the_version_before_stays_completed_and_is_passed_over() -> None:
    course = Course.of("abc").begin(steps=2).publish("xbay")
    assert course.select(latest=True) is Told.MOVED_TO_LATEST
    assert (course.at, course.completed) == ("x-2", "ab")
    assert course.stands.completed_steps(course.versions[2]) == 2
    assert course.next() is Told.ADVANCED
    assert course.at == "y-2", "b and a were done before"


@pytest.mark.promise("carry-over")
def test_a_step_completed_two_versions_ago_stays_completed_where_it_reappears() -> None:
    course = Course.of("abc").begin(steps=2).publish("cd")
    course.select(latest=True)
    assert (course.at, course.completed) == ("c-2", "ab")
    course.publish("bcad")
    course.select(latest=True)
    assert course.at == "c-3"
    course.next()
    assert (course.at, course.completed) == ("d-3", "abc")


def test_one_lands_on_the_first_step_not_completed_even_before_where_one_stood() -> None:
    course = Course.of("abcd").begin(steps=3).publish("abxcd")
    course.select(latest=True)
    assert course.at == "x-2"


@pytest.mark.promise("carry-over")
def test_one_is_not_put_past_a_renamed_step() -> None:
    course = Course.of("abc").begin(steps=2).publish("axc")
    course.select(latest=True)
    assert course.at == "x-2"


def test_where_everything_is_completed_the_move_completes() -> None:
    course = Course.of("abc").begin(steps=2).publish("ba")
    course.now = Millis(START + 7)
    assert course.select(latest=True) is Told.COMPLETED
    assert (course.stands.status, course.stands.completed_at, course.stands.version) == (
        Status.COMPLETED,
        START + 7,
        2,
    )
    event = course.events[-1]
    assert (event.kind, event.from_step_id, event.to_step_id) == (EventKind.MOVED, "c-1", None)
    for step_id in ("a-1", "b-1", "c-1", "a-2"):
        assert course.next(handle(step_id)) is Told.REPEATED


def test_nothing_carries_over_from_one_attempt_to_the_next() -> None:
    course = Course.of("abc").begin(steps=2).publish("abc")
    course.select(latest=True)
    course.select(restart=True)
    assert (course.at, course.completed) == ("a-2", "")
    course.publish("abc")
    course.select(latest=True)
    assert course.at == "a-3"


def test_moving_keeps_attempt_and_start() -> None:
    course = Course.of("abc").begin(steps=1).publish("abc")
    course.now = Millis(START + 9)
    course.select(latest=True)
    assert (course.stands.attempt, course.stands.started_at, course.stands.last_activity_at) == (
        1,
        START,
        START + 9,
    )


# --------------------------------------------------------------- rule 7: who moves, and what comes first


@pytest.mark.parametrize("policy", PublishPolicy)
def test_a_publish_alone_moves_nobody(policy: PublishPolicy) -> None:
    course = Course.of("abc").begin(steps=1)
    before = course.stands
    course.publish("xyz", policy)
    assert course.stands == before
    assert course.at == "b-1"


@pytest.mark.promise("honoured-first")
def test_the_handle_given_is_honoured_before_the_move_and_both_in_one_call() -> None:
    course = Course.of("abc").begin(steps=1).publish("xabc", CARRY_OVER)
    shown = course.handle
    before = course.stands
    transition = course.decide(Call("next", handle=shown))
    assert transition.told is Told.MOVED_TO_LATEST
    assert transition.before == before
    assert [event.kind for event in transition.events] == [EventKind.ADVANCED, EventKind.MOVED]
    assert [event.revision for event in transition.events] == [before.revision + 1, before.revision + 2]
    assert [event.version for event in transition.events] == [1, 2]
    assert course.commit(transition)
    assert (course.at, course.completed) == ("x-2", "ab")
    assert course.next(shown) is Told.REPEATED


def test_the_handle_is_honoured_in_its_version_though_its_step_is_gone_in_the_newest() -> None:
    course = Course.of("abc").begin(steps=1).publish("ac", CARRY_OVER)
    assert course.next(handle("b-1")) is Told.MOVED_TO_LATEST
    assert (course.at, course.completed) == ("c-2", "ab")


def test_a_handle_that_completes_is_honoured_and_no_move_follows() -> None:
    course = Course.of("ab").begin(steps=1).publish("abc", CARRY_OVER)
    assert course.next() is Told.COMPLETED
    assert (course.stands.version, course.stands.status) == (1, Status.COMPLETED)


def test_a_move_after_the_handle_that_leaves_nothing_answers_completed() -> None:
    course = Course.of("abc").begin().publish("a", CARRY_OVER)
    assert course.next() is Told.COMPLETED
    assert course.kinds[-2:] == [EventKind.ADVANCED, EventKind.MOVED]
    assert (course.stands.version, course.events[-1].to_step_id) == (2, None)


@pytest.mark.parametrize(("outcome", "step_id"), [(DONE, "a-1"), (STUCK, "a-1"), (STUCK, "b-1")])
def test_a_demanded_move_comes_with_a_repeat_and_with_being_stuck(outcome: Outcome, step_id: str) -> None:
    course = Course.of("abc").begin(steps=1).publish("xabc", CARRY_OVER)
    assert course.next(handle(step_id), outcome, "Help.") is Told.MOVED_TO_LATEST
    assert (course.at, course.completed) == ("x-2", "a")
    assert course.kinds.count(EventKind.STUCK) == (outcome is STUCK)


def test_a_demanded_move_does_not_come_with_an_error() -> None:
    course = Course.of("abc").begin(steps=1).publish("xabc", CARRY_OVER)
    refused(course, CompletedStepRequired, Call("next"))
    refused(course, StepNotCurrent, Call("next", handle=handle("c-1")))
    refused(course, StepNotCurrent, Call("next", handle=handle("b-1", attempt=2)))
    assert course.at == "b-1"


def test_a_demanded_move_comes_with_the_next_select() -> None:
    course = Course.of("abc").begin(steps=1).publish("xabc", CARRY_OVER)
    assert course.select() is Told.MOVED_TO_LATEST
    assert course.kinds[-1] is EventKind.MOVED
    assert course.select() is Told.RESUMED


def test_no_reading_of_a_progress_moves_it() -> None:
    course = Course.of("abc").begin(steps=1).publish("xabc", CARRY_OVER)
    before = replace(course.stands)
    publication = course.author.publication(course.stands)
    assert not move_is_offered(course.stands, publication)
    standpoint(course.stands, course.versions[1])
    reviewed_step(course.stands, course.versions[1], 1)
    assert course.stands == before


# ---------------------------------------------------------------------------- rule 8: the promise, in races


def test_a_call_decided_before_a_publish_and_committed_after_it_loses_nothing() -> None:
    course = Course.of("abc").begin()
    late = course.decide(Call("next", handle=course.handle))
    course.publish("xabc", CARRY_OVER)
    assert course.commit(late)
    assert (course.at, course.completed) == ("b-1", "a")
    assert course.select() is Told.MOVED_TO_LATEST
    assert (course.at, course.completed) == ("x-2", "a")


def test_a_next_that_races_a_restart_is_refused_when_it_is_decided_again() -> None:
    course = Course.of("abc").begin(steps=1)
    call = Call("next", handle=course.handle)
    restart, late = course.decide(Call("select", restart=True)), course.decide(call)
    assert course.commit(restart)
    assert not course.commit(late)
    refused(course, StepNotCurrent, call)
    assert (course.at, course.completed) == ("a-1", "")


def test_a_restart_that_races_the_first_step_keeps_neither_twice() -> None:
    course = Course.of("abc").begin()
    restart = Call("select", restart=True)
    advance, late = course.decide(Call("next", handle=course.handle)), course.decide(restart)
    assert late.told is Told.RESUMED
    assert course.commit(advance)
    assert not course.commit(late)
    assert course.call(restart) is Told.RESTARTED


def test_two_stuck_calls_at_once_record_the_note_once() -> None:
    course = Course.of("ab").begin()
    call = Call("next", handle=course.handle, outcome=STUCK, note="Help.")
    first, second = course.decide(call), course.decide(call)
    assert course.commit(first)
    assert not course.commit(second)
    assert course.call(call) is Told.STUCK
    assert course.kinds.count(EventKind.STUCK) == 1


# ---------------------------------------------------------------------------- versions: what a publish says


@pytest.mark.promise("version.pinned")
def test_under_keep_they_finish_what_they_began_and_are_not_told() -> None:
    course = Course.of("ab").begin().publish("xab", KEEP)
    assert not move_is_offered(course.stands, course.author.publication(course.stands))
    assert course.select() is Told.RESUMED
    assert [course.next(), course.next()] == [Told.ADVANCED, Told.COMPLETED]
    assert course.stands.version == 1


@pytest.mark.promise("version.policies")
def test_under_offer_they_finish_and_are_told() -> None:
    course = Course.of("ab").begin().publish("xab", OFFER)
    assert move_is_offered(course.stands, course.author.publication(course.stands))
    assert course.select() is Told.RESUMED
    assert [course.next(), course.next()] == [Told.ADVANCED, Told.COMPLETED]
    assert not move_is_offered(course.stands, course.author.publication(course.stands))


def test_a_move_is_offered_only_to_those_who_may_make_it() -> None:
    course = Course.of("ab").publish("abc", OFFER)
    assert not move_is_offered(None, course.author.publication(None)), "not started"
    course.begin()
    assert not move_is_offered(course.stands, course.author.publication(course.stands)), "on the latest"
    course.publish("abc", SUPERSEDE).publish("abc", OFFER)
    assert not move_is_offered(course.stands, course.author.publication(course.stands)), "withdrawn"
    course.select()
    course.publish("ab", OFFER)
    assert move_is_offered(course.stands, course.author.publication(course.stands))
    course.hide()
    assert not move_is_offered(course.stands, course.author.publication(course.stands)), "hidden"


@pytest.mark.parametrize("policy", [KEEP, OFFER, CARRY_OVER])
def test_the_newest_publish_speaks_for_all_older_versions(policy: PublishPolicy) -> None:
    course = Course.of("ab").begin().publish("xab", CARRY_OVER).publish("yab", policy)
    assert course.select() is (Told.MOVED_TO_LATEST if policy is CARRY_OVER else Told.RESUMED)
    assert course.at == ("y-3" if policy is CARRY_OVER else "a-1")


@pytest.mark.parametrize("outcome", Outcome)
def test_on_a_withdrawn_version_next_is_refused_before_anything_else_and_changes_nothing(outcome: Outcome) -> None:
    course = Course.of("abc").begin(steps=1).publish("abc", SUPERSEDE)
    for text in (
        handle("b-1"),
        handle("a-1"),
        handle("c-1"),
        handle("b-1", attempt=2),
        handle("z-1"),
        None,
        "junk",
    ):
        error = refused(course, VersionWithdrawn, Call("next", handle=text, outcome=outcome))
        assert isinstance(error, VersionWithdrawn)
        assert (error.code, error.title, error.reference) == (
            "version_withdrawn",
            course.versions[1].title,
            WALKTHROUGH,
        )


def test_on_a_withdrawn_version_select_restarts_on_the_latest() -> None:
    course = Course.of("abc").begin(steps=1).publish("xab", SUPERSEDE)
    assert course.select() is Told.RESTARTED
    assert (course.at, course.completed, course.stands.attempt) == ("x-2", "", 2)
    assert course.kinds == [EventKind.STARTED, EventKind.ADVANCED, EventKind.RESTARTED]


@pytest.mark.parametrize("policy", [KEEP, OFFER, CARRY_OVER])
@pytest.mark.promise("version.policies")
def test_a_withdrawn_version_stays_withdrawn_under_later_publishes(policy: PublishPolicy) -> None:
    course = Course.of("abc").begin(steps=1).publish("abc", SUPERSEDE).publish("abc", policy)
    refused(course, VersionWithdrawn, Call("next", handle=course.handle))
    assert course.select() is Told.RESTARTED
    assert course.at == "a-3"


@pytest.mark.parametrize("policy", PublishPolicy)
def test_the_completed_are_never_moved_and_never_told_of_a_withdrawn_version(policy: PublishPolicy) -> None:
    course = Course.of("ab").begin(steps=2).publish("abc", policy)
    before = (course.progress, list(course.events))
    assert course.select() is Told.COMPLETED
    assert course.next(handle("b-1")) is Told.REPEATED
    assert (course.progress, course.events) == before
    assert course.next(handle("b-1"), STUCK, "One more thing.") is Told.REPEATED
    assert (course.stands.version, course.stands.status) == (1, Status.COMPLETED)


# ------------------------------------------------------------------------------------------------- hidden


@pytest.mark.parametrize("latest", [False, True])
@pytest.mark.parametrize("restart", [False, True])
def test_what_is_hidden_cannot_be_started(restart: bool, latest: bool) -> None:
    course = Course.of("ab").hide()
    error = refused(course, WalkthroughUnavailable, Call("select", restart=restart, latest=latest))
    assert isinstance(error, WalkthroughUnavailable)
    assert error.title == course.versions[course.author.latest].title
    assert course.progress is None


@pytest.mark.parametrize("steps", [1, 3])
def test_what_is_hidden_cannot_be_restarted(steps: int) -> None:
    course = Course.of("abc").begin(steps).hide()
    refused(course, WalkthroughUnavailable, Call("select", restart=True))
    refused(course, WalkthroughUnavailable, Call("select", restart=True, latest=True))


@pytest.mark.parametrize("policy", PublishPolicy)
def test_what_is_hidden_cannot_be_moved_to(policy: PublishPolicy) -> None:
    course = Course.of("abc").begin(steps=1).publish("abc", policy).hide()
    refused(course, WalkthroughUnavailable, Call("select", latest=True))


def test_a_demanded_move_waits_while_the_walkthrough_is_hidden() -> None:
    course = Course.of("abc").begin().publish("xabc", CARRY_OVER).hide()
    assert course.select() is Told.RESUMED
    assert course.next() is Told.ADVANCED
    assert course.at == "b-1"
    assert course.hide(False).select() is Told.MOVED_TO_LATEST
    assert (course.at, course.completed) == ("x-2", "a")


@pytest.mark.promise("version.hidden")
def test_those_mid_way_may_select_and_finish_what_is_hidden() -> None:
    course = Course.of("ab").begin().hide()
    assert course.select() is Told.RESUMED
    assert course.select(restart=True) is Told.RESUMED, "nothing is completed: it changes nothing"
    assert [course.next(), course.next()] == [Told.ADVANCED, Told.COMPLETED]


def test_a_hidden_and_withdrawn_version_cannot_be_finished() -> None:
    course = Course.of("ab").begin(steps=1).publish("ab", SUPERSEDE).hide()
    refused(course, VersionWithdrawn, Call("next", handle=course.handle))
    refused(course, WalkthroughUnavailable, Call("select"))


# ------------------------------------------------------------------------------------------------- review


def test_the_current_and_the_completed_steps_can_be_reviewed_and_no_others() -> None:
    course = Course.of("abcd").begin(steps=1)
    version = course.versions[1]
    assert [reviewed_step(course.stands, version, number).id for number in (1, 2)] == ["a-1", "b-1"]
    for number in (-1, 0, 3, 4, 5):
        with pytest.raises(StepNotReached) as refusal:
            reviewed_step(course.stands, version, number)
        error = refusal.value
        assert (error.code, error.step_number, error.total_steps, error.reachable) == (
            "step_not_reached",
            number,
            4,
            (1, 2),
        )


def test_a_completed_step_after_the_current_one_can_be_reviewed() -> None:
    course = Course.of("abc").begin(steps=2).publish("xaybz")
    course.select(latest=True)
    with pytest.raises(StepNotReached) as refusal:
        reviewed_step(course.stands, course.versions[2], 3)
    assert refusal.value.reachable == (1, 2, 4)


def test_once_completed_every_step_can_be_reviewed() -> None:
    course = Course.of("abc").begin(steps=3)
    steps = course.versions[1].steps
    assert tuple(reviewed_step(course.stands, course.versions[1], number) for number in (1, 2, 3)) == steps


# ------------------------------------------------------------------------------------------ times and events


@pytest.mark.promise("times.monotone")
def test_times_do_not_decrease_when_the_clock_steps_back() -> None:
    course = Course.of("abc").begin().publish("xabc", CARRY_OVER)
    course.now = Millis(START - 3_600_000)
    course.next()
    course.next(outcome=STUCK)
    course.select()
    course.select(restart=True)
    assert {event.occurred_at for event in course.events} == {START}
    assert course.stands.started_at == course.stands.last_activity_at == START


def test_both_events_of_one_call_bear_its_time() -> None:
    course = Course.of("abc").begin().publish("xabc", CARRY_OVER)
    course.now = Millis(START + 4)
    course.next()
    assert [event.occurred_at for event in course.events] == [START, START + 4, START + 4]


def event(
    revision: int,
    kind: EventKind,
    to_step_id: str | None,
    occurred_at: int = START,
    attempt: int = 1,
    version: int = 1,
) -> ProgressEvent:
    return ProgressEvent(
        revision,
        kind,
        attempt=attempt,
        version=version,
        from_step_id=None,
        to_step_id=None if to_step_id is None else StepId(to_step_id),
        outcome=None,
        note=None,
        occurred_at=Millis(occurred_at),
    )


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([], id="none"),
        *(
            pytest.param([event(1, kind, "a-1")], id=f"begins with {kind}")
            for kind in EventKind
            if kind is not EventKind.STARTED
        ),
        pytest.param([event(2, EventKind.STARTED, "a-1")], id="begins at revision 2"),
        pytest.param([event(1, EventKind.STARTED, "a-1"), event(2, EventKind.STARTED, "a-1")], id="starts twice"),
        pytest.param([event(1, EventKind.STARTED, "a-1"), event(1, EventKind.RESUMED, "a-1")], id="one revision twice"),
        pytest.param([event(1, EventKind.STARTED, "a-1"), event(3, EventKind.RESUMED, "a-1")], id="a gap"),
        pytest.param(
            [event(1, EventKind.STARTED, "a-1"), event(2, EventKind.ADVANCED, "b-1", START - 1)], id="back in time"
        ),
    ],
)
def test_events_that_cannot_follow_on_each_other_are_refused(events: list[ProgressEvent]) -> None:
    with pytest.raises(CorruptHistory):
        replay(KEY, events, {1: outline_of(1, "abc")})


@pytest.mark.parametrize(
    "impossible",
    [
        pytest.param(event(3, EventKind.ADVANCED, "a-1"), id="advances after completion"),
        pytest.param(event(3, EventKind.RESUMED, None), id="resumes after completion"),
        pytest.param(event(3, EventKind.MOVED, "a-2", version=2), id="moves after completion"),
        pytest.param(event(3, EventKind.STUCK, "a-1"), id="a note reopens it"),
        pytest.param(event(3, EventKind.STUCK, None, attempt=9), id="a note in another attempt"),
        pytest.param(event(3, EventKind.STUCK, None, version=2), id="a note changes the version"),
        pytest.param(event(3, EventKind.RESTARTED, "a-1"), id="restarts in the same attempt"),
        pytest.param(event(3, EventKind.RESTARTED, None, attempt=2), id="restarts into completion"),
    ],
)
def test_what_the_rules_cannot_record_does_not_follow_on_completion(impossible: ProgressEvent) -> None:
    completed = [event(1, EventKind.STARTED, "a-1"), event(2, EventKind.ADVANCED, None)]
    versions = {1: outline_of(1, "a"), 2: outline_of(2, "ab")}
    assert replay(KEY, completed, versions).status is Status.COMPLETED
    with pytest.raises(CorruptHistory):
        replay(KEY, [*completed, impossible], versions)


@pytest.mark.parametrize(
    "impossible",
    [
        pytest.param(event(2, EventKind.MOVED, "b-1"), id="moves to the version it is on"),
        pytest.param(event(2, EventKind.ADVANCED, "b-1", version=2), id="advances into another version"),
        pytest.param(event(2, EventKind.RESUMED, "b-1"), id="resumes elsewhere"),
        pytest.param(event(2, EventKind.ADVANCED, "b-1", attempt=2), id="advances into another attempt"),
        pytest.param(event(1, EventKind.STARTED, "a-1", attempt=2), id="starts with a later attempt"),
    ],
)
def test_what_the_rules_cannot_record_does_not_follow_in_progress(impossible: ProgressEvent) -> None:
    begun = [event(1, EventKind.STARTED, "a-1")] if impossible.revision > 1 else []
    with pytest.raises(CorruptHistory):
        replay(KEY, [*begun, impossible], {1: outline_of(1, "abc"), 2: outline_of(2, "abc")})


def test_a_move_away_from_a_version_that_is_not_there_is_refused() -> None:
    events = [event(1, EventKind.STARTED, "a-1"), event(2, EventKind.MOVED, "a-2", version=2)]
    with pytest.raises(CorruptHistory):
        replay(KEY, events, {2: outline_of(2, "abc")})


def test_an_event_of_another_progress_does_not_follow() -> None:
    course = Course.of("abc").begin(steps=1)
    with pytest.raises(CorruptHistory):
        evolve(course.stands, course.events[0], KEY, course.versions)


@pytest.mark.parametrize(
    "change",
    [
        {"current_step_id": None},
        {"completed_at": START},
        {"status": Status.COMPLETED},
        {"status": Status.COMPLETED, "current_step_id": None},
        {"status": Status.COMPLETED, "completed_at": START},
        {"version": 0},
        {"attempt": 0},
        {"revision": 0},
        {"last_activity_at": START - 1},
    ],
)
def test_a_progress_that_contradicts_itself_cannot_be_built(change: dict[str, object]) -> None:
    with pytest.raises(CorruptHistory):
        replace(Course.of("ab").begin().stands, **change)  # type: ignore[arg-type]


def test_a_progress_is_not_read_with_a_version_that_it_is_not_on() -> None:
    course = Course.of("ab").begin().publish("ab")
    for read in (
        lambda: course.stands.current_step(outline_of(1, "bc")),
        lambda: course.stands.current_step(replace(course.versions[2], steps=course.versions[1].steps)),
        lambda: course.stands.current_step(course.versions[2]),
        lambda: course.stands.completed_keys(course.versions[2]),
        lambda: standpoint(course.stands, course.versions[2]),
    ):
        with pytest.raises(CorruptHistory):
            read()


# ------------------------------------------------------------------------------------------------- handles

ids = st.from_regex(r"[A-Za-z0-9_-]{1,24}", fullmatch=True)
counts = st.integers(1, 999_999_999)
handles = st.builds(StepHandle, ids.map(WalkthroughId), counts, ids.map(StepId), counts)


@given(handles, st.sampled_from(["", " ", "\n", "\t "]))
@examples(200)
def test_a_handle_is_read_back_as_it_was_handed_out(handed_out: StepHandle, margin: str) -> None:
    assert StepHandle.parse(f"{margin}{handed_out}{margin}") == handed_out


@given(st.text(), handles, st.integers(0, 60), st.integers(0, 60))
@example("", StepHandle(WALKTHROUGH, 1, StepId("s"), 1), 0, 0)
@example("....", StepHandle(WALKTHROUGH, 1, StepId("s"), 1), 3, 3)
@examples(500)
def test_what_is_read_from_any_text_is_that_text(text: str, near: StepHandle, start: int, end: int) -> None:
    for candidate in (text, str(near)[:start] + text + str(near)[end:]):
        read = StepHandle.parse(candidate)
        assert read is None or str(read) == candidate.strip()


@given(
    st.tuples(
        st.sampled_from(["w1", "", " ", "w\x00", "w\ud800", "é", "w" * 65, "w 1"]) | st.text(max_size=3),
        st.sampled_from(["1", "0", "007", "-1", "+1", "1_0", "1e3", "٣", "²", "9" * 10, "", " 1"]),
        st.sampled_from(["s-1", "", "s\x00", "\ud800", "s" * 65, "s/../t"]) | st.text(max_size=3),
        st.sampled_from(["1", "0", "01", "-1", "9" * 10, "1 "]),
    ).map(".".join)
)
@example("w1.1.s-1.1")
@examples(500)
def test_of_texts_with_a_sound_check_only_those_are_read_that_cairn_could_hand_out(body: str) -> None:
    """The check is no secret: whoever sends it may put anything before it, and the database is asked for it."""
    text = f"{body}.{hashlib.sha256(body.encode(errors='replace')).hexdigest()[:6]}"
    read = StepHandle.parse(text)
    if read is not None:
        assert str(read) == text
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", read.walkthrough_id)
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", read.step_id)
        assert max(read.version, read.attempt) <= 999_999_999
    assert body != "w1.1.s-1.1" or read is not None


ONE = StepHandle(WalkthroughId("kX3_a-9"), 12, StepId("Qr7-_zb0"), 3)


def test_no_single_mistyped_letter_makes_another_handle() -> None:
    """Every substitution, omission, insertion and transposition in one handle; the check lets none of these by."""
    plain = str(ONE)
    letters = [chr(code) for code in range(32, 127)]
    mistyped = {plain[:at] + letter + plain[at + 1 :] for at in range(len(plain)) for letter in letters}
    mistyped |= {plain[:at] + letter + plain[at:] for at in range(len(plain) + 1) for letter in letters}
    mistyped |= {plain[:at] + plain[at + 1 :] for at in range(len(plain))}
    mistyped |= {plain[:at] + plain[at + 1] + plain[at] + plain[at + 2 :] for at in range(len(plain) - 1)}
    mistyped |= {plain.lower(), plain.upper(), plain + plain, plain[: len(plain) // 2]}
    mistyped -= {text for text in mistyped if text.strip() == plain}
    assert len(mistyped) > 5_000
    assert [text for text in mistyped if StepHandle.parse(text) is not None] == []


@pytest.mark.parametrize(
    "text",
    ["", ".", "....", "current", "w.1.s.1", "w.1.s.1.", "a-1", "null", "\x00", "\ud800.1.s.1.000000", "٣.٣.٣.٣.٣"],
)
def test_text_that_cairn_did_not_hand_out_is_no_handle(text: str) -> None:
    assert StepHandle.parse(text) is None


def test_a_handle_names_walkthrough_version_step_and_attempt() -> None:
    course = Course.of("ab").begin(steps=1)
    course.select(restart=True)
    assert course.stands.handle() == StepHandle(WALKTHROUGH, 1, StepId("a-1"), 2)
    assert re.fullmatch(r"w1\.1\.a-1\.2\.[0-9a-f]{6}", course.handle)


# ------------------------------------------------------------------- all of it at once: what should happen


@dataclass(frozen=True)
class Stand:
    """One person's standing, in the contract's words."""

    version: int
    attempt: int
    done: frozenset[str]
    here: str | None
    started: int
    active: int
    finished: int | None
    noted: frozenset[tuple[str, str | None]]
    """Handles and notes of being stuck, of all attempts."""


@dataclass(frozen=True)
class Answer:
    """What a call is answered, where it leaves the person, and what goes on record."""

    says: str
    stand: Stand | None
    records: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contract:
    """The rules, said a second time: what a call should lead to."""

    author: Author
    now: int

    def answer(self, stand: Stand | None, call: Call) -> Answer:
        if call.tool == "select":
            return self._select(stand, call)
        assert stand is not None
        return self._next(stand, call)

    def _select(self, stand: Stand | None, call: Call) -> Answer:
        newest = self.author.latest
        if stand is None:
            if self.author.is_hidden:
                return Answer("walkthrough_unavailable", None)
            first = self.author.published[newest - 1][0]
            begun = Stand(newest, 1, frozenset(), first, self.now, self.now, None, frozenset())
            return Answer("started", begun, ("started",))
        if call.restart and (stand.version != newest or stand.done):
            return self._again(stand)
        if stand.here is None:
            return Answer("completed", stand)
        if call.latest and stand.version != newest:
            return Answer("walkthrough_unavailable", stand) if self.author.is_hidden else self._carried(stand)
        if stand.version in self.author.withdrawn:
            return self._again(stand)
        if self._must_move(stand):
            return self._carried(stand)
        return Answer("resumed", replace(stand, active=self._time(stand)), ("resumed",))

    def _next(self, stand: Stand, call: Call) -> Answer:
        if stand.here is not None and stand.version in self.author.withdrawn:
            return Answer("version_withdrawn", stand)
        named = re.fullmatch(r"(\w+)\.(\d+)\.([a-z])-(\d+)\.(\d+)\.[0-9a-f]{6}", call.handle or "")
        if named is None or call.is_garbled:
            return Answer("completed_step_required", stand)
        walkthrough, version, key, attempt = named[1], int(named[2]), named[3], int(named[5])
        if walkthrough != WALKTHROUGH or attempt != stand.attempt:
            return Answer("step_not_current", stand)
        if version > self.author.latest or key not in self.author.published[version - 1]:
            return Answer("completed_step_required", stand)
        if key != stand.here and key not in stand.done and key in self.author.published[stand.version - 1]:
            return Answer("step_not_current", stand)

        answer = Answer("repeated", stand)
        if call.outcome is STUCK:
            assert call.handle is not None
            answer = Answer("stuck" if key == stand.here else "repeated", stand)
            if (call.handle, call.note) not in stand.noted:
                noted = stand.noted | {(call.handle, call.note)}
                answer = replace(
                    answer, stand=replace(stand, noted=noted, active=self._time(stand)), records=("stuck",)
                )
        elif key == stand.here:
            ahead = self._landed(stand, stand.version, stand.done | {key})
            answer = Answer("completed" if ahead.here is None else "advanced", ahead, ("advanced",))
        assert answer.stand is not None
        if self._must_move(answer.stand):
            moved = self._carried(answer.stand)
            return replace(moved, records=answer.records + moved.records)
        return answer

    def _again(self, stand: Stand) -> Answer:
        if self.author.is_hidden:
            return Answer("walkthrough_unavailable", stand)
        begun = Stand(
            version=self.author.latest,
            attempt=stand.attempt + 1,
            done=frozenset(),
            here=self.author.published[-1][0],
            started=self._time(stand),
            active=self._time(stand),
            finished=None,
            noted=stand.noted,
        )
        return Answer("restarted", begun, ("restarted",))

    def _carried(self, stand: Stand) -> Answer:
        moved = self._landed(stand, self.author.latest, stand.done)
        return Answer("completed" if moved.here is None else "moved_to_latest", moved, ("moved",))

    def _landed(self, stand: Stand, version: int, done: frozenset[str]) -> Stand:
        open_keys = [key for key in self.author.published[version - 1] if key not in done]
        return replace(
            stand,
            version=version,
            done=done,
            here=open_keys[0] if open_keys else None,
            active=self._time(stand),
            finished=None if open_keys else self._time(stand),
        )

    def _must_move(self, stand: Stand) -> bool:
        return (
            self.author.policy is CARRY_OVER
            and stand.here is not None
            and stand.version != self.author.latest
            and stand.version not in self.author.withdrawn
            and not self.author.is_hidden
        )

    def _time(self, stand: Stand) -> int:
        return max(self.now, stand.active)


def key_of(step_id: str | None) -> str | None:
    return None if step_id is None else step_id.split("-")[0]


@dataclass(frozen=True)
class Decided:
    """A call that was decided and is not yet committed; no transition where it was refused."""

    client: int
    call: Call
    transition: Transition | None
    answer: Answer
    is_answer_lost: bool


clients = st.integers(0, 2)
outcomes = st.sampled_from([DONE, DONE, DONE, SKIPPED, STUCK])
notes = st.sampled_from([None, "Help.", "It fails."])
seldom = st.sampled_from([False, False, False, True])


def is_shown_something(machine: OnePersonWithSeveralClients) -> bool:
    return any(machine.shown)


class OnePersonWithSeveralClients(RuleBasedStateMachine):
    """Every call is decided by the domain and by the contract; what is on record is checked after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.course = Course()
        self.stand: Stand | None = None
        self.shown: tuple[list[str], ...] = ([], [], [])
        self.waiting: list[Decided] = []
        self.last: Call | None = None
        # What the checks need to remember, by attempt: which handles were shown to anybody, with which of
        # them somebody said that the step is done, and what was completed.
        self.ever_shown: set[str] = set()
        self.said_done: dict[int, set[str | None]] = {}
        self.previously: Progress | None = None
        self.told_completed: Counter[int] = Counter()

    # ---- what the author does

    @initialize(keys=st.permutations("abcdef").flatmap(lambda keys: st.sampled_from([keys, keys[:4], keys[:2]])))
    def publishes_first(self, keys: list[str]) -> None:
        self.course.publish(keys)

    @rule(data=st.data(), policy=st.sampled_from([*PublishPolicy, CARRY_OVER, CARRY_OVER]), roll_back=seldom)
    def publishes(self, data: st.DataObject, policy: PublishPolicy, roll_back: bool) -> None:
        published = self.course.author.published
        keys = data.draw(st.sampled_from(published) if roll_back else revised(published[-1]))
        self.course.publish(keys, policy)

    @rule(is_hidden=seldom)
    def hides_or_shows(self, is_hidden: bool) -> None:
        self.course.hide(is_hidden)

    @rule(by=st.integers(-10_000, 100_000))
    def the_clock_moves(self, by: int) -> None:
        self.course.now = Millis(self.course.now + by)

    # ---- what the person's clients do

    @rule(client=clients, restart=seldom, latest=seldom, wait=seldom, lost=seldom)
    def selects(self, client: int, restart: bool, latest: bool, wait: bool, lost: bool) -> None:
        self.calls(client, Call("select", restart=restart, latest=latest), wait, lost)

    @rule(client=clients)
    def goes_on(self, client: int) -> None:
        """As a well-behaved assistant does: selects, and from then on says that each step is done."""
        shown = self.shown[client]
        self.calls(client, Call("next", handle=shown[-1]) if shown else Call("select"), False, False)

    @precondition(is_shown_something)
    @rule(client=clients, outcome=outcomes, note=notes, wait=seldom, lost=seldom)
    def says_of_the_step_shown_last(
        self, client: int, outcome: Outcome, note: str | None, wait: bool, lost: bool
    ) -> None:
        shown = self.shown[client] or max(self.shown, key=len)
        self.calls(client, Call("next", handle=shown[-1], outcome=outcome, note=note), wait, lost)

    @precondition(is_shown_something)
    @rule(client=clients, back=st.integers(0, 5), outcome=outcomes, note=notes, wait=seldom)
    def says_of_a_step_shown_before(
        self, client: int, back: int, outcome: Outcome, note: str | None, wait: bool
    ) -> None:
        shown = self.shown[client] or max(self.shown, key=len)
        call = Call("next", handle=shown[-1 - back % len(shown)], outcome=outcome, note=note)
        self.calls(client, call, wait, False)

    @precondition(is_shown_something)
    @rule(data=st.data(), note=notes)
    def two_clients_say_so_at_once(self, data: st.DataObject, note: str | None) -> None:
        """Both are decided on the same standing; the quicker one commits and the other is decided again."""
        shown = max(self.shown, key=len)
        calls = [
            data.draw(st.sampled_from([Call("select"), Call("select", restart=True), Call("select", latest=True)]))
            if data.draw(seldom)
            else Call("next", handle=shown[-1], outcome=data.draw(outcomes), note=note)
            for _ in range(data.draw(st.integers(2, 3)))
        ]
        for client, call in enumerate(calls):
            self.calls(client, call, True, False)
        for decided in self.waiting[-len(calls) :]:
            self.waiting.remove(decided)
            self.commits(decided)

    @precondition(lambda self: self.stand is not None)
    @rule(client=clients, data=st.data(), outcome=outcomes, note=notes)
    def says_of_a_step_never_shown(self, client: int, data: st.DataObject, outcome: Outcome, note: str | None) -> None:
        """A made-up handle of any step of any version, attempt and walkthrough but the current step's.

        That one nobody could tell from a handle that was shown.
        """
        assert self.stand is not None
        version = data.draw(st.integers(1, self.course.author.latest + 1))
        known = self.course.author.published[version - 1] if version <= self.course.author.latest else "ab"
        key = data.draw(st.sampled_from([key for key in [*known, "z"] if key != self.stand.here]))
        attempt = max(1, self.stand.attempt + data.draw(st.sampled_from([0, 0, 0, -1, 1])))
        walkthrough = data.draw(st.sampled_from([WALKTHROUGH, WALKTHROUGH, WALKTHROUGH, "w2"]))
        made_up = handle(f"{key}-{version}", attempt, walkthrough)
        self.calls(client, Call("next", handle=made_up, outcome=outcome, note=note), False, False)

    @precondition(lambda self: self.stand is not None)
    @rule(client=clients, at=st.integers(0, 40), letter=st.sampled_from("aZ0. é"), outcome=outcomes)
    def says_of_no_step_that_can_be_read(self, client: int, at: int, letter: str, outcome: Outcome) -> None:
        text = None
        if self.shown[client] and letter != " ":
            whole = self.shown[client][-1]
            at %= len(whole)
            text = whole[:at] + (letter if whole[at] != letter else "-") + whole[at + 1 :]
        garbled = Call("next", handle=text, outcome=outcome, is_garbled=text is not None)
        self.calls(client, garbled, False, False)

    @precondition(lambda self: self.last is not None)
    @rule(client=clients)
    def repeats_the_last_call(self, client: int) -> None:
        assert self.last is not None
        self.calls(client, self.last, False, False)

    # ---- how a call goes

    def calls(self, client: int, call: Call, wait: bool, lost: bool) -> None:
        self.last = call
        if call.tool == "next" and call.outcome is not STUCK and call.handle in self.ever_shown:
            read = StepHandle.parse(call.handle or "")
            assert read is not None
            self.said_done.setdefault(read.attempt, set()).add(key_of(read.step_id))
        decided = self.decides(client, call, lost)
        if wait:
            self.waiting.append(decided)
        else:
            self.commits(decided)

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 20))
    def a_waiting_call_commits(self, which: int) -> None:
        self.commits(self.waiting.pop(which % len(self.waiting)))

    def decides(self, client: int, call: Call, lost: bool) -> Decided:
        """By the domain and by the contract, which must agree."""
        answer = Contract(self.course.author, self.course.now).answer(self.stand, call)
        note(f"{call} -> {answer.says}")
        before = self.course.progress
        refusal: ToolError | None = None
        try:
            transition = self.course.decide(call)
        except ToolError as error:
            refusal = error
        if refusal is not None:
            assert refusal.code == answer.says
            assert (answer.stand, answer.records) == (self.stand, ())
            self.is_shown_where_it_stands(client, refusal)
            return Decided(client, call, None, answer, lost)
        assert transition.told == answer.says
        assert transition.before == before
        assert tuple(event.kind for event in transition.events) == answer.records
        assert answer.stand is not None
        self.agree(transition.after, answer.stand)
        if not transition.events:
            assert transition.after == before
        return Decided(client, call, transition, answer, lost)

    def commits(self, decided: Decided) -> None:
        if decided.transition is None:
            return
        if not self.course.commit(decided.transition):
            # Another call was quicker: decided again, on what is stored now, and so until it holds.
            decided = self.decides(decided.client, decided.call, decided.is_answer_lost)
            if decided.transition is None:
                return
            assert self.course.commit(decided.transition)
        transition = decided.transition
        if transition.events:
            self.stand = decided.answer.stand
            if transition.told is Told.COMPLETED:
                self.told_completed[transition.after.attempt] += 1
                assert self.told_completed[transition.after.attempt] == 1
        elif decided.call.tool == "next":
            assert transition.told is not Told.COMPLETED
        shown = transition.after.handle()
        if shown is not None and not decided.is_answer_lost:
            self.shown[decided.client].append(str(shown))
            self.ever_shown.add(str(shown))

    def is_shown_where_it_stands(self, client: int, error: ToolError) -> None:
        """Errors of `next` name the current step, and its handle may then be used."""
        if isinstance(error, StepNotCurrent | CompletedStepRequired):
            named = error.standpoint if isinstance(error, StepNotCurrent) else error.standpoints[0]
            assert names_where_one_stands(self.course, named)
            if named.handle is not None:
                self.shown[client].append(str(named.handle))
                self.ever_shown.add(str(named.handle))

    def agree(self, progress: Progress, stand: Stand) -> None:
        version = self.course.versions[progress.version]
        keys = self.course.author.published[stand.version - 1]
        assert (progress.version, progress.attempt) == (stand.version, stand.attempt)
        assert key_of(progress.current_step_id) == stand.here
        assert progress.completed_keys(version) == stand.done
        assert progress.completed_steps(version) == len(stand.done & set(keys))
        assert progress.current_number(version) == (None if stand.here is None else keys.index(stand.here) + 1)
        assert (progress.started_at, progress.last_activity_at) == (stand.started, stand.active)
        assert (progress.status is Status.COMPLETED, progress.completed_at) == (stand.here is None, stand.finished)

    # ---- what must hold at every point, whatever the contract's second telling says

    @invariant()
    def the_record_is_true(self) -> None:
        progress, events = self.course.progress, self.course.events
        if progress is None:
            assert events == []
            return
        assert self.stand is not None
        self.agree(progress, self.stand)
        assert [event.revision for event in events] == list(range(1, progress.revision + 1))
        assert replay(KEY, events, self.course.versions) == progress
        assert all(before.occurred_at <= after.occurred_at for before, after in pairwise(events))
        assert progress.started_at <= progress.last_activity_at == events[-1].occurred_at

    @invariant()
    def nothing_is_passed_lost_or_doubled(self) -> None:
        progress = self.course.progress
        if progress is None:
            return
        version = self.course.versions[progress.version]
        done = progress.completed_keys(version)
        said_done = self.said_done.get(progress.attempt, set())
        assert done <= said_done, "completed is only what was shown and then said to be done, in this attempt"
        number = progress.current_number(version) or len(version.steps) + 1
        assert {step.key for step in version.steps[: number - 1]} <= done, "nobody is past a step not done"
        assert progress.current_step_id is None or key_of(progress.current_step_id) not in done

        advanced = [
            (event.attempt, key_of(event.from_step_id))
            for event in self.course.events
            if event.kind is EventKind.ADVANCED
        ]
        assert len(advanced) == len(set(advanced)), "a step moves on once in an attempt"
        assert {key for attempt, key in advanced if attempt == progress.attempt} == done
        noted = [
            (event.attempt, event.from_step_id, event.note)
            for event in self.course.events
            if event.kind is EventKind.STUCK
        ]
        assert len(noted) == len(set(noted)), "a note is recorded once"

        earlier = self.previously
        if earlier is not None:
            assert progress.version >= earlier.version
            if progress.attempt == earlier.attempt:
                assert done >= earlier.completed_keys(self.course.versions[earlier.version]), "nothing is lost"
                assert progress.started_at == earlier.started_at
                if earlier.status is Status.COMPLETED:
                    assert progress.completed_at == earlier.completed_at
                    assert progress.version == earlier.version
            else:
                assert progress.attempt == earlier.attempt + 1
        self.previously = progress

    @invariant()
    def what_can_be_reviewed_was_reached(self) -> None:
        if self.course.progress is None or self.stand is None:
            return
        keys = self.course.author.published[self.stand.version - 1]
        version = self.course.versions[self.stand.version]
        for number, key in enumerate(keys, start=1):
            if key == self.stand.here or key in self.stand.done:
                assert reviewed_step(self.course.progress, version, number).key == key
            else:
                with pytest.raises(StepNotReached):
                    reviewed_step(self.course.progress, version, number)

    @invariant()
    def a_move_is_offered_only_where_it_can_be_made(self) -> None:
        author, stand = self.course.author, self.stand
        expected = (
            author.policy is OFFER
            and not author.is_hidden
            and stand is not None
            and stand.here is not None
            and stand.version != author.latest
            and stand.version not in author.withdrawn
        )
        assert move_is_offered(self.course.progress, author.publication(self.course.progress)) == expected


@pytest.mark.promise("rules.any-interleaving", "replay")
def test_no_interleaving_of_clients_and_publishes_skips_loses_or_doubles_anything() -> None:
    run_state_machine_as_test(OnePersonWithSeveralClients, settings=examples(400, stateful_step_count=50))
