"""A version is published while someone is mid-way: what they see and keep, for every change, place and order of calls.

What a person sees follows from two things alone: the version they are on, and which step keys they have done in
this attempt. They stand on the first step of their version that they have not done. `Learner` remembers just
those two, and says of each call what must come of it; it shares no code with the domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product

import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from domain.errors import StepNotCurrent, StepNotReached, ToolError, VersionWithdrawn
from domain.progress import Status, Told, move_is_offered, replay, reviewed_step
from domain.walkthrough import PublishPolicy
from tests.domain.course import CARRY_OVER, DONE, KEY, OFFER, STUCK, Call, Course, handle
from tests.domain.generate import examples, key_orders, revised

# Of each way to change a walkthrough, one that is published over `abcd`.
CHANGES = {
    "a step added first": "xabcd",
    "a step added between, or a step split that keeps its key": "abxcd",
    "a step split, its second half keeping the key": "axbcd",
    "a step split into two new ones": "axycd",
    "the first step removed": "bcd",
    "all but one removed": "c",
    "a step moved forward": "dabc",
    "a step moved back": "bcda",
    "a step renamed": "axcd",
    "all replaced": "wxyz",
    "nothing but texts": "abcd",
}


@dataclass
class Learner:
    """A person on a course, checked at every call against what they were shown and what they said."""

    course: Course
    version: int = 1
    attempt: int = 1
    done: set[str] = field(default_factory=set)
    shown: list[str] = field(default_factory=list)
    """Handles, in the order in which they were shown."""

    @classmethod
    def begun(cls, keys: Sequence[str], attempt: int, position: int) -> Learner:
        """Someone who has done the first `position` steps of version 1 in this attempt."""
        course = Course().publish(keys)
        course.begin()
        for _ in range(attempt - 1):
            course.next()
            course.select(restart=True)
        former = [handle(f"{keys[0]}-1", number) for number in range(1, attempt)]
        learner = cls(course, attempt=attempt, shown=former)
        learner.is_where_it_should_be()
        for _ in range(position):
            learner.calls("current", 0)
        return learner

    def fork(self) -> Learner:
        """Another one who has come the same way."""
        course = replace(self.course, events=list(self.course.events), versions=dict(self.course.versions))
        return replace(self, course=course, done=set(self.done), shown=list(self.shown))

    @property
    def keys(self) -> tuple[str, ...]:
        return self.course.author.published[self.version - 1]

    @property
    def here(self) -> str | None:
        """The key of the step that must be shown; None once all are done."""
        return next((key for key in self.keys if key not in self.done), None)

    @property
    def is_withdrawn(self) -> bool:
        return self.here is not None and self.version in self.course.author.withdrawn

    # ---- calls

    def calls(self, kind: str, pick: int) -> None:
        """One call, and what must come of it. `pick` chooses among the steps that the kind of call may name."""
        before, events = self.course.progress, len(self.course.events)
        match kind:
            case "select" | "latest" | "restart":
                told = self.course.select(restart=kind == "restart", latest=kind == "latest")
                assert told is self.selected(kind)
            case "status, review":
                self.reads()
                assert (self.course.progress, len(self.course.events)) == (before, events)
            case _:
                self.says(kind, pick)
        self.is_where_it_should_be()

    def selected(self, kind: str) -> Told:
        """What `select` must answer; and how it changes where one must stand."""
        latest = self.course.author.latest
        if (kind == "restart" and (self.done or self.version != latest)) or (kind != "latest" and self.is_withdrawn):
            self.version, self.attempt, self.done = latest, self.attempt + 1, set()
            return Told.RESTARTED
        if self.here is None:
            return Told.COMPLETED
        moves = kind == "latest" or self.course.author.policy is CARRY_OVER
        if moves and self.version != latest:
            self.version = latest
            return Told.MOVED_TO_LATEST if self.here else Told.COMPLETED
        return Told.RESUMED

    def says(self, kind: str, pick: int) -> None:
        """`next`, with a handle shown earlier, or of any step of either version in this attempt."""
        if kind in ("current", "stuck"):
            key = self.here or self.keys[-1]
            given_ = handle(f"{key}-{self.version}", self.attempt)
        elif kind == "stale":
            given_ = self.shown[pick % len(self.shown)]
        else:
            number = min(int(kind.removeprefix("version ")), self.course.author.latest)
            keys = self.course.author.published[number - 1]
            given_ = handle(f"{keys[pick % len(keys)]}-{number}", self.attempt)
        key, attempt = given_.split(".")[2][0], int(given_.split(".")[3])
        call = Call("next", handle=given_, outcome=STUCK if kind == "stuck" else DONE)

        refusal: type[ToolError] | None = None
        if self.is_withdrawn:
            refusal = VersionWithdrawn
        elif attempt != self.attempt or (key in self.keys and key != self.here and key not in self.done):
            refusal = StepNotCurrent
        if refusal is not None:
            before, events = self.course.progress, list(self.course.events)
            with pytest.raises(refusal):
                self.course.call(call)
            assert (self.course.progress, self.course.events) == (before, events)
            return

        expected = Told.STUCK if kind == "stuck" and key == self.here else Told.REPEATED
        if key == self.here and kind != "stuck":
            self.done.add(key)
            expected = Told.ADVANCED if self.here else Told.COMPLETED
        latest = self.course.author.latest
        if self.here is not None and self.version != latest and self.course.author.policy is CARRY_OVER:
            self.version = latest
            expected = Told.MOVED_TO_LATEST if self.here else Told.COMPLETED
        assert self.course.call(call) is expected

    def reads(self) -> None:
        """What status says, and which steps can be reviewed."""
        progress, version = self.course.stands, self.course.versions[self.version]
        author = self.course.author
        assert progress.completed_steps(version) == len(self.done.intersection(self.keys))
        assert progress.current_number(version) == (self.keys.index(self.here) + 1 if self.here else None)
        assert move_is_offered(progress, author.publication(progress)) == (
            author.policy is OFFER and self.here is not None and self.version != author.latest and not self.is_withdrawn
        )
        for number, key in enumerate(self.keys, start=1):
            if key == self.here or key in self.done:
                assert reviewed_step(progress, version, number).key == key
            else:
                with pytest.raises(StepNotReached):
                    reviewed_step(progress, version, number)

    # ---- what must hold

    def is_where_it_should_be(self) -> None:
        progress = self.course.stands
        version = self.course.versions[self.version]
        step = progress.current_step(version)
        assert (progress.version, progress.attempt) == (self.version, self.attempt)
        assert (step and step.key) == self.here
        assert progress.completed_keys(version) == self.done, "nothing done is lost, and nothing else counts as done"
        assert (progress.status is Status.COMPLETED) == (self.here is None)
        if step is not None:
            assert {one.key for one in version.steps[: version.position(step.id)]} <= self.done
            shown = str(progress.handle())
            if shown not in self.shown:
                self.shown.append(shown)

    def goes_on_to_the_end(self) -> None:
        """From here on as a well-behaved assistant: what is still to do is shown in order, each step once."""
        self.calls("select", 0)
        to_do = [key for key in self.keys if key not in self.done]
        seen: list[str | None] = []
        while self.here is not None:
            assert len(seen) < len(to_do)
            seen.append(self.here)
            self.calls("current", 0)
        assert seen == to_do
        assert set(self.keys) <= self.done
        self.replays()

    def replays(self) -> None:
        events = self.course.events
        assert replay(KEY, events, self.course.versions) == self.course.progress
        assert [event.revision for event in events] == list(range(1, len(events) + 1))
        versions = [(event.attempt, event.version) for event in events]
        assert all(earlier <= later for earlier, later in pairwise(versions)), "nobody is moved back"


# ------------------------------------------------------------------------- every change, place, policy, order

# In the matrix, the first call names the first step that it may name, and the second call the second.
MOVING = ["select", "latest", "restart", "current", "stale", "version 1", "version 2", "stuck"]
KINDS = [*MOVING, "status, review"]


@pytest.mark.promise("rules.any-interleaving")
@pytest.mark.parametrize("policy", PublishPolicy)
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_published_mid_way_and_whatever_is_called_next_nothing_done_is_lost_or_undone_passed(
    change: str, policy: PublishPolicy
) -> None:
    for attempt, position in product((1, 2), range(5)):
        midway = Learner.begun("abcd", attempt, position)
        midway.course.publish(CHANGES[change], policy)
        gone_on = set()
        for first in MOVING:
            called = midway.fork()
            called.calls(first, 0)
            for second in MOVING:
                learner = called.fork()
                learner.calls(second, 1)
                learner.reads()
                learner.replays()
                # A decision looks at nothing of a person but their progress: of those who stand alike, one goes on.
                stands = replace(learner.course.stands, revision=1)
                if stands not in gone_on:
                    gone_on.add(stands)
                    learner.goes_on_to_the_end()


@pytest.mark.promise("rules.any-interleaving")
@given(
    keys=key_orders.flatmap(lambda keys: st.tuples(st.just(keys), revised(keys))),
    attempt=st.integers(1, 3),
    position=st.integers(0, 6),
    policy=st.sampled_from(PublishPolicy),
    calls=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 9)), max_size=10),
    when=st.integers(0, 10),
)
@examples(600)
def test_so_it_is_for_any_two_versions_and_any_order_of_calls(
    keys: tuple[tuple[str, ...], tuple[str, ...]],
    attempt: int,
    position: int,
    policy: PublishPolicy,
    calls: list[tuple[str, int]],
    when: int,
) -> None:
    old, new = keys
    learner = Learner.begun(old, attempt, min(position, len(old)))
    note(f"{''.join(old)} -> {''.join(new)}")
    for number, (kind, pick) in enumerate(calls):
        if number == when:
            learner.course.publish(new, policy)
        learner.calls(kind, pick)
    if when >= len(calls):
        learner.course.publish(new, policy)
    learner.goes_on_to_the_end()


@given(
    st.lists(st.sampled_from(PublishPolicy), min_size=1, max_size=4),
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 9)), max_size=3),
    key_orders,
    st.data(),
)
@examples(300)
def test_so_it_is_for_any_row_of_versions(
    policies: list[PublishPolicy], calls: list[tuple[str, int]], keys: tuple[str, ...], data: st.DataObject
) -> None:
    learner = Learner.begun(keys, 1, data.draw(st.integers(0, len(keys))))
    for policy in policies:
        keys = data.draw(revised(keys))
        learner.course.publish(keys, policy)
        for kind, pick in calls:
            learner.calls(kind, pick)
    learner.goes_on_to_the_end()
