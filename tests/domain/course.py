"""One person in one walkthrough whose author publishes meanwhile, played on the domain alone.

`Course` stands for the application: it reads, decides, and commits by revision. A step's id is its key and its
version (`b-2`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from domain.progress import (
    EventKind,
    Outcome,
    Progress,
    ProgressEvent,
    ProgressKey,
    StepHandle,
    Told,
    Transition,
    next_step,
    select,
)
from domain.tenancy import Millis, OrganizationId, ServerId, StepId, UserId, WalkthroughId
from domain.walkthrough import Outline, Publication, PublishPolicy
from tests.domain.generate import WALKTHROUGH, outline_of

KEY = ProgressKey(OrganizationId("acme"), ServerId("s1"), UserId("ada"), WALKTHROUGH)
KEEP, OFFER, CARRY_OVER, SUPERSEDE = PublishPolicy
DONE, SKIPPED, STUCK = Outcome
START = Millis(1_700_000_000_000)


@dataclass(frozen=True)
class Call:
    """One call of a tool, as a client sends it."""

    tool: str
    restart: bool = False
    latest: bool = False
    handle: str | None = None
    outcome: Outcome = DONE
    note: str | None = None
    is_garbled: bool = False
    """Whether the handle is one that was mistyped."""


@dataclass(frozen=True)
class Author:
    """All that an author has done up to now."""

    published: tuple[tuple[str, ...], ...] = ()
    policy: PublishPolicy = KEEP
    withdrawn: frozenset[int] = frozenset()
    is_hidden: bool = False

    @property
    def latest(self) -> int:
        return len(self.published)

    def publish(self, keys: Sequence[str], policy: PublishPolicy) -> Author:
        older = frozenset(range(1, self.latest + 1)) if policy is SUPERSEDE else frozenset()
        return replace(self, published=(*self.published, tuple(keys)), policy=policy, withdrawn=self.withdrawn | older)

    def publication(self, progress: Progress | None) -> Publication:
        return Publication(
            latest_version=self.latest,
            policy=self.policy,
            is_available=not self.is_hidden,
            is_withdrawn=progress is not None and progress.version in self.withdrawn,
        )


@dataclass
class Course:
    """One person in one walkthrough, and the record that they leave."""

    author: Author = field(default_factory=Author)
    progress: Progress | None = None
    events: list[ProgressEvent] = field(default_factory=list)
    now: Millis = START
    versions: dict[int, Outline] = field(default_factory=dict)

    @classmethod
    def of(cls, keys: str) -> Course:
        """A walkthrough with one step for each letter, published once."""
        return cls().publish(keys)

    def publish(self, keys: Sequence[str], policy: PublishPolicy = KEEP) -> Course:
        self.author = self.author.publish(keys, policy)
        self.versions[self.author.latest] = outline_of(self.author.latest, keys)
        return self

    def hide(self, is_hidden: bool = True) -> Course:
        self.author = replace(self.author, is_hidden=is_hidden)
        return self

    # ---- as the application does it

    def decide(self, call: Call) -> Transition:
        """Decides on what is stored now; nothing is committed."""
        publication = self.author.publication(self.progress)
        seen = {self.author.latest}
        if self.progress is not None:
            seen.add(self.progress.version)
        if call.tool == "select":
            versions = {number: self.versions[number] for number in seen}
            return select(
                self.progress,
                KEY,
                publication,
                versions,
                restart=call.restart,
                to_latest=call.latest,
                now=self.now,
            )
        assert self.progress is not None
        handle = None if call.handle is None else StepHandle.parse(call.handle)
        if handle is not None and handle.version in self.versions:
            seen.add(handle.version)
        return next_step(
            self.progress,
            publication,
            {number: self.versions[number] for number in seen},
            handle,
            outcome=call.outcome,
            note=call.note,
            already_noted=handle is not None and self._is_noted(handle, call.note),
            now=self.now,
        )

    def _is_noted(self, handle: StepHandle, text: str | None) -> bool:
        return any(
            (event.kind, event.attempt, event.from_step_id, event.note)
            == (EventKind.STUCK, handle.attempt, handle.step_id, text)
            for event in self.events
        )

    def commit(self, transition: Transition) -> bool:
        """By compare-and-set on the revision; False where another call was quicker."""
        if transition.events:
            stored = self.progress.revision if self.progress else 0
            if stored != (transition.before.revision if transition.before else 0):
                return False
            self.progress = transition.after
            self.events.extend(transition.events)
        return True

    # ---- as an example tells it

    def call(self, call: Call) -> Told:
        transition = self.decide(call)
        assert self.commit(transition)
        return transition.told

    def select(self, *, restart: bool = False, latest: bool = False) -> Told:
        return self.call(Call("select", restart=restart, latest=latest))

    def next(self, handle: str | None = "current", outcome: Outcome = DONE, note: str | None = None) -> Told:
        """With the handle of the current step, or the one given."""
        return self.call(
            Call("next", handle=self.handle if handle == "current" else handle, outcome=outcome, note=note)
        )

    def begin(self, steps: int = 0) -> Course:
        """Started, and with so many steps completed."""
        assert self.select() is Told.STARTED
        for _ in range(steps):
            self.next()
        return self

    @property
    def stands(self) -> Progress:
        assert self.progress is not None
        return self.progress

    @property
    def handle(self) -> str:
        return str(self.stands.handle())

    @property
    def at(self) -> str | None:
        """The id of the current step."""
        return self.stands.current_step_id

    @property
    def completed(self) -> str:
        """The completed keys, in the order of the alphabet."""
        return "".join(sorted(self.stands.completed_keys(self.versions[self.stands.version])))

    @property
    def kinds(self) -> list[EventKind]:
        return [event.kind for event in self.events]


def handle(step_id: str, attempt: int = 1, walkthrough: str = WALKTHROUGH) -> str:
    """The handle of `b-2`, as it would be shown."""
    return str(StepHandle(WalkthroughId(walkthrough), int(step_id.split("-")[1]), StepId(step_id), attempt))
