"""Progress: where one person stands, on one server, in one walkthrough. Every rule about it is in this file.

                        select                            next, from the last step
    (not started) ─────started────▶ in progress ─────────────completed──────────▶ completed
                                    │ ▲  │ ▲  │ ▲                                     │  ▲
                             select │ │  │ │  └─┘ next: advanced                      └──┘ select, next:
                            resumed └─┘  │ │      repeated (nothing changes)               completed, repeated
                                         │ │      stuck (the note is recorded)            (nothing changes;
                                         │ │                                               a note is recorded)
                                         └─┘ moved_to_latest, by step key (may end in completed)

    select(restart) from either state: restarted, the next attempt on the latest version
    select on a withdrawn version:     restarted; next on one: the error version_withdrawn, nothing changes

A visitor who signs in keeps their progress, once, walkthrough by walkthrough, by the first line that fits:

    the account has       the visitor has       the account                         the visitor
    ----------------      ------------------    --------------------------------    ---------------------------------
    nothing               anything              gets the visitor's, history and     has nothing any more
                                                all: merged, and stands as it did
    in progress           completed             merged: completed, on the           ──merged──▶ merged, wherever it
                                                visitor's version                       stood: nothing follows on it
    in progress           in progress, same     merged, once for each completed
                          version               step gained: lands by step key
    anything              anything              keeps its own

Deciding and changing are two things. `select`, `next_step` and `merge` decide: pure functions of the progress, the
versions concerned and what was handed in, which return what to commit. Progress changes in one function alone,
`evolve`, which applies one event; so replaying the events gives the progress, by construction and by test.

Nothing here is decided by a clock: times are recorded, and never decrease within one progress. A handle moves
its step once, because the step it names is then no longer the current one. A commit compares the revision a
decision was based on, so two racing calls with one handle cannot both move.

Completed steps are the keys in `carried` (completed in earlier versions of this attempt, or as a visitor) and those
of all steps before the current one. Both landing and advancing stop at the first step not completed, so everything
before the current step is always completed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from domain.errors import (
    CompletedStepRequired,
    CorruptHistory,
    StepNotCurrent,
    StepNotReached,
    VersionWithdrawn,
    WalkthroughUnavailable,
)
from domain.tenancy import Millis, OrganizationId, ServerId, StepId, UserId, WalkthroughId
from domain.walkthrough import Heading, Outline, Publication, PublishPolicy

MAX_NOTE_CHARS = 2_000
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# As `str` writes it, so that one handle has one text; and no more than a database holds, since the check at a
# handle's end is no secret and anyone may compute it.
_COUNT = re.compile(r"[1-9][0-9]{0,8}")
_HANDLE_CHECK_CHARS = 6  # 24 bits: a handle that a model has mistyped passes once in 16 million


class Status(StrEnum):
    """The state of an attempt."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    MERGED = "merged"
    """A visitor's, who goes on in an account that has its own. It stays where it stood, for ever."""


class EventKind(StrEnum):
    """What happened to a progress."""

    STARTED = "started"
    RESUMED = "resumed"
    ADVANCED = "advanced"
    STUCK = "stuck"
    MOVED = "moved"
    RESTARTED = "restarted"
    MERGED = "merged"


class Outcome(StrEnum):
    """How the person left a step."""

    DONE = "done"
    SKIPPED = "skipped"
    STUCK = "stuck"


class Told(StrEnum):
    """The status a caller is told. Part of the public contract."""

    STARTED = "started"
    RESUMED = "resumed"
    RESTARTED = "restarted"
    MOVED_TO_LATEST = "moved_to_latest"
    ADVANCED = "advanced"
    REPEATED = "repeated"
    STUCK = "stuck"
    COMPLETED = "completed"
    REVIEW = "review"


class ProgressKey(NamedTuple):
    """Names one progress."""

    organization_id: OrganizationId
    server_id: ServerId
    user_id: UserId
    walkthrough_id: WalkthroughId


class StepHandle(NamedTuple):
    """Names a step as it was shown to someone. Handed out with the step, and given back to say it is completed."""

    walkthrough_id: WalkthroughId
    version: int
    step_id: StepId
    attempt: int

    def __str__(self) -> str:
        body = f"{self.walkthrough_id}.{self.version}.{self.step_id}.{self.attempt}"
        return f"{body}.{_handle_check(body)}"

    @classmethod
    def parse(cls, text: str) -> StepHandle | None:
        """The handle that `text` is; None for what Cairn did not hand out, such as one with a mistyped letter."""
        body, _, check = text.strip().rpartition(".")
        parts = body.split(".")
        if len(parts) != 4 or check != _handle_check(body):
            return None
        walkthrough_id, version, step_id, attempt = parts
        if not _ID.fullmatch(walkthrough_id) or not _ID.fullmatch(step_id):
            return None
        if not _COUNT.fullmatch(version) or not _COUNT.fullmatch(attempt):
            return None
        return cls(WalkthroughId(walkthrough_id), int(version), StepId(step_id), int(attempt))


def _handle_check(body: str) -> str:
    # Lone surrogates can come in JSON and have no UTF-8 form; no handle of ours holds one.
    return hashlib.sha256(body.encode(errors="replace")).hexdigest()[:_HANDLE_CHECK_CHARS]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where someone stands. `revision` counts the events that led here, the first being 1."""

    key: ProgressKey
    version: int
    attempt: int
    revision: int
    status: Status
    current_step_id: StepId | None
    carried: frozenset[str]
    """Keys of steps completed in earlier versions of this attempt, or as a visitor, whether or not this version has
    them."""
    started_at: Millis
    """When this attempt began."""
    last_activity_at: Millis
    completed_at: Millis | None

    def __post_init__(self) -> None:
        completed = self.current_step_id is None
        if completed != (self.completed_at is not None) or (
            self.status is not Status.MERGED and completed != (self.status is Status.COMPLETED)
        ):
            raise CorruptHistory("completed means: no current step, and a time of completion")
        if min(self.version, self.attempt, self.revision) < 1 or self.last_activity_at < self.started_at:
            raise CorruptHistory("versions, attempts and revisions count from 1, and activity follows the start")

    def current_step(self, version: Outline) -> Heading | None:
        """The step to be shown; None once completed."""
        if self.current_step_id is None:
            return None
        step = version.step(self.current_step_id)
        if version.number != self.version or step is None:
            raise CorruptHistory(f"version {version.number} does not hold the current step of {self.key}")
        return step

    def current_number(self, version: Outline) -> int | None:
        """The current step's number, counted from 1; None once completed."""
        return None if self.current_step_id is None else self._position(version) + 1

    def _position(self, version: Outline) -> int:
        """How many steps lie before the current one: all of them once completed."""
        step = self.current_step(version)
        return len(version.steps) if step is None else version.position(step.id)

    def completed_keys(self, version: Outline) -> frozenset[str]:
        """Keys of all steps completed in this attempt, in this version (`version`) or an earlier one."""
        return self.carried.union(step.key for step in version.steps[: self._position(version)])

    # The next two are asked in every call: what they take does not grow with the number of steps.

    def has_completed(self, step_key: str, version: Outline) -> bool:
        """Whether `completed_keys` has this one."""
        if step_key in self.carried:
            return True
        step = version.step_by_key(step_key)
        return step is not None and version.position(step.id) < self._position(version)

    def completed_steps(self, version: Outline) -> int:
        """How many of this version's steps are completed."""
        before = self._position(version)
        carried = (version.step_by_key(key) for key in self.carried)
        return before + sum(step is not None and version.position(step.id) >= before for step in carried)

    def handle(self) -> StepHandle | None:
        """The handle of the current step; None once completed."""
        if self.current_step_id is None:
            return None
        return StepHandle(self.key.walkthrough_id, self.version, self.current_step_id, self.attempt)


class ProgressEvent(NamedTuple):
    """One thing that happened, as it is recorded. `revision` is the progress's after it."""

    revision: int
    kind: EventKind
    attempt: int
    version: int
    from_step_id: StepId | None
    """The step it is about: the one left, or the one on which the person is stuck. None for the first.

    Of a MERGED one: the completed step that is gained, which may be of an older version; the one on which the person
    stood, where the progress changes hands or the visitor's completion counts (the last, once completed). None exactly
    where a visitor's progress ends.
    """
    to_step_id: StepId | None
    """The current step afterwards. None exactly when the attempt is then completed."""
    outcome: Outcome | None
    note: str | None
    occurred_at: Millis


class Transition(NamedTuple):
    """A decision: what the progress was based on, what it becomes, what to record and what to say.

    Without events nothing changed, and there is nothing to commit.
    """

    before: Progress | None
    after: Progress
    events: tuple[ProgressEvent, ...]
    told: Told


@dataclass(frozen=True, slots=True)
class Revised:
    """A progress and what becomes of it. Where `after` has another key, the whole history goes there with it."""

    before: Progress
    after: Progress
    events: tuple[ProgressEvent, ...]


@dataclass(frozen=True, slots=True)
class Merge:
    """A decision on one walkthrough of a visitor who keeps their progress. It holds for both as they were read."""

    visitor: Revised
    account: Revised | None
    """None where the account has none, and gets the visitor's. Without events where it keeps its own."""


class Standpoint(NamedTuple):
    """Where someone stands, as an error names it. Step and handle are None once completed."""

    title: str
    reference: str
    step_title: str | None
    step_number: int | None
    total_steps: int
    handle: StepHandle | None


def standpoint(progress: Progress, version: Outline) -> Standpoint:
    """Where `progress` stands, in the words an error needs."""
    step = progress.current_step(version)
    return Standpoint(
        title=version.title,
        reference=version.key.walkthrough_id,
        step_title=step.title if step else None,
        step_number=progress.current_number(version),
        total_steps=len(version.steps),
        handle=progress.handle(),
    )


Versions = Mapping[int, Outline]
"""The versions that a decision looks at, by number: the one the progress is on, the latest, the handle's."""


# ----------------------------------------------------------------------------------------------- evolving


def evolve(progress: Progress | None, event: ProgressEvent, key: ProgressKey, versions: Versions) -> Progress:
    """The progress after `event`: the only place where progress changes.

    `versions` must hold the version that a MOVED or MERGED event left, and the one of the step that a MERGED event
    gains; other kinds need none.

    Raises:
        CorruptHistory: when the event cannot follow on this progress.
    """
    _require_possible(progress, event)
    completed = event.to_step_id is None
    begins = progress is None or event.kind is EventKind.RESTARTED
    status = Status.COMPLETED if completed else Status.IN_PROGRESS
    if progress is None or begins:
        carried: frozenset[str] = frozenset()
    elif event.version != progress.version:
        if progress.version not in versions:
            raise CorruptHistory(f"version {progress.version}, which was left, is not there")
        carried = progress.completed_keys(versions[progress.version])
    elif event.kind is EventKind.MERGED and _gains(progress, event):
        carried = progress.carried | {_key_of(event.from_step_id, versions)}
    else:
        carried = progress.carried
        if event.kind is EventKind.MERGED and event.from_step_id is None:
            status = Status.MERGED
    completed_at = event.occurred_at if completed else None
    if completed and progress is not None and progress.completed_at is not None and not begins:
        completed_at = progress.completed_at  # set once per attempt; a later note does not move it
    return Progress(
        key=key,
        version=event.version,
        attempt=event.attempt,
        revision=event.revision,
        status=status,
        current_step_id=event.to_step_id,
        carried=carried,
        started_at=event.occurred_at if progress is None or begins else progress.started_at,
        last_activity_at=event.occurred_at,
        completed_at=completed_at,
    )


def _require_possible(progress: Progress | None, event: ProgressEvent) -> None:
    """Refuses what no decision below could have recorded."""
    kind = event.kind
    if progress is None:
        first = (event.revision, event.attempt) == (1, 1)
        possible = kind is EventKind.STARTED and first and event.to_step_id is not None
    else:
        is_open = progress.status is Status.IN_PROGRESS
        here = (event.attempt, event.version) == (progress.attempt, progress.version)
        stays = event.to_step_id == progress.current_step_id
        leaves = is_open and event.attempt == progress.attempt and event.from_step_id == progress.current_step_id
        follows = {
            EventKind.STARTED: False,
            EventKind.RESUMED: is_open and here and stays,
            EventKind.ADVANCED: is_open and here and not stays,
            EventKind.STUCK: here and stays,
            EventKind.MOVED: is_open and event.attempt == progress.attempt and event.version > progress.version,
            EventKind.RESTARTED: event.attempt == progress.attempt + 1 and event.to_step_id is not None,
            EventKind.MERGED: (here and stays) or (leaves and (here or event.to_step_id is None)),
        }
        is_next = event.revision == progress.revision + 1 and event.occurred_at >= progress.last_activity_at
        possible = follows[kind] and is_next and progress.status is not Status.MERGED
    if not possible:
        raise CorruptHistory(f"{kind} at revision {event.revision} cannot follow on {progress}")


def _gains(progress: Progress, event: ProgressEvent) -> bool:
    """Whether a merge completes the step that it names. Otherwise it names the one on which the person stands."""
    is_open = progress.status is Status.IN_PROGRESS
    return is_open and event.from_step_id is not None and event.from_step_id != event.to_step_id


def _key_of(step_id: StepId | None, versions: Versions) -> str:
    for version in versions.values():
        step = version.step(step_id) if step_id is not None else None
        if step is not None:
            return step.key
    raise CorruptHistory(f"the version of step {step_id}, which was gained, is not there")


def replay(key: ProgressKey, events: Iterable[ProgressEvent], versions: Versions) -> Progress:
    """The progress that `events`, in order of revision, lead to.

    Raises:
        CorruptHistory: when there are none, or the rules could not have produced them.
    """
    progress: Progress | None = None
    for event in events:
        progress = evolve(progress, event, key, versions)
    if progress is None:
        raise CorruptHistory("no events, no progress")
    return progress


# ----------------------------------------------------------------------------------------------- deciding


def select(
    progress: Progress | None,
    key: ProgressKey,
    publication: Publication,
    versions: Versions,
    *,
    restart: bool,
    to_latest: bool,
    now: Millis,
) -> Transition:
    """Starts, resumes, restarts or moves. `versions` holds the progress's version and the latest.

    Raises:
        WalkthroughUnavailable: to start, restart or move what is hidden at present; to do anything with a visitor's
            progress that has ended.
    """
    latest = versions[publication.latest_version]
    if progress is None:
        _require_available(publication, latest)
        return _step(None, key, EventKind.STARTED, latest, latest.steps[0].id, now=now, told=Told.STARTED)

    mine = versions[progress.version]
    _require_unmerged(progress, mine)
    completed = progress.status is Status.COMPLETED
    is_fresh = mine.number == latest.number and not progress.completed_keys(mine)
    if restart and not is_fresh:
        return _restart(progress, publication, latest, now)
    if completed:
        return Transition(progress, progress, (), Told.COMPLETED)
    if to_latest and progress.version != latest.number:
        _require_available(publication, latest)
        return _move(progress, versions, latest, now)
    if publication.is_withdrawn:
        return _restart(progress, publication, latest, now)
    if _move_is_demanded(progress, publication):
        return _move(progress, versions, latest, now)
    return _step(progress, key, EventKind.RESUMED, mine, progress.current_step_id, now=now, told=Told.RESUMED)


def next_step(
    progress: Progress,
    publication: Publication,
    versions: Versions,
    handle: StepHandle | None,
    *,
    outcome: Outcome,
    note: str | None,
    already_noted: bool,
    now: Millis,
    unreadable: bool = False,
) -> Transition:
    """Moves one step on, where `handle` is the current step's; then makes the move that a publish demands.

    `versions` holds the progress's version, the latest, and the handle's where there is such a version.
    `already_noted` says whether this handle and note were recorded as stuck before; `unreadable`, where there is no
    handle, that something was given for one.

    Raises:
        WalkthroughUnavailable: when it is a visitor's progress that has ended.
        VersionWithdrawn: when the version that the progress is on was withdrawn.
        CompletedStepRequired: when `handle` is None or names no step that there is.
        StepNotCurrent: when it names a later step, another attempt or another walkthrough.
    """
    mine, latest = versions[progress.version], versions[publication.latest_version]
    _require_unmerged(progress, mine)
    current = progress.current_step(mine)
    if current is not None and publication.is_withdrawn:
        raise VersionWithdrawn(mine.title, progress.key.walkthrough_id)
    if handle is None:
        raise CompletedStepRequired([standpoint(progress, mine)], unreadable=unreadable)
    if handle.walkthrough_id != progress.key.walkthrough_id or handle.attempt != progress.attempt:
        raise StepNotCurrent(standpoint(progress, mine))
    shown_in = versions.get(handle.version)
    shown = shown_in.step(handle.step_id) if shown_in else None
    if shown is None:
        raise CompletedStepRequired([standpoint(progress, mine)], unreadable=True)

    # A handle counts by its step's key: the same step of another version is the same step.
    is_current = current is not None and shown.key == current.key
    is_gone = mine.step_by_key(shown.key) is None
    if not (is_current or is_gone or progress.has_completed(shown.key, mine)):
        raise StepNotCurrent(standpoint(progress, mine))

    transition = Transition(progress, progress, (), Told.REPEATED)
    if outcome is Outcome.STUCK:
        told = Told.STUCK if is_current else Told.REPEATED
        transition = transition._replace(told=told)
        if not already_noted:
            transition = _step(
                progress,
                progress.key,
                EventKind.STUCK,
                mine,
                progress.current_step_id,
                from_step_id=handle.step_id,
                outcome=outcome,
                note=note,
                now=now,
                told=told,
            )
    elif current is not None and is_current:
        to_step_id = _first_open(mine, progress.carried, after=mine.position(current.id))
        transition = _step(
            progress,
            progress.key,
            EventKind.ADVANCED,
            mine,
            to_step_id,
            outcome=outcome,
            note=note,
            now=now,
            told=Told.ADVANCED if to_step_id else Told.COMPLETED,
        )
    if _move_is_demanded(transition.after, publication):
        moved = _move(transition.after, versions, latest, now)
        return moved._replace(before=progress, events=transition.events + moved.events)
    return transition


def merge(
    visitor: Progress, account: Progress | None, account_key: ProgressKey, versions: Versions, *, now: Millis
) -> Merge:
    """What becomes of one walkthrough when a visitor keeps their progress: `visitor`, which has not ended.

    `versions` holds those that the two stand on, and those that the visitor's attempt was on before.
    """
    theirs = versions[visitor.version]
    if account is None:
        stood_on = visitor.current_step_id or theirs.steps[-1].id
        return Merge(_merged(_as_it_is(visitor), account_key, theirs, stood_on, visitor.current_step_id, now), None)
    ended = _merged(_as_it_is(visitor), visitor.key, theirs, None, visitor.current_step_id, now)
    kept = _as_it_is(account)
    if account.status is Status.IN_PROGRESS:
        if visitor.status is Status.COMPLETED:
            kept = _merged(kept, account_key, theirs, account.current_step_id, None, now, versions)
        elif visitor.version == account.version:
            kept = _united(kept, visitor, versions, now)
    return Merge(ended, kept)


def reachable_steps(progress: Progress, version: Outline) -> Mapping[int, Heading]:
    """The steps that may be read again, by number from 1: the current one and completed ones."""
    completed = progress.completed_keys(version)
    return {
        number: step
        for number, step in enumerate(version.steps, start=1)
        if step.key in completed or step.id == progress.current_step_id
    }


def reviewed_step(progress: Progress, version: Outline, step_number: int) -> Heading:
    """The step numbered `step_number` (from 1), if it may be read again.

    Raises:
        StepNotReached: for any other number.
    """
    reachable = reachable_steps(progress, version)
    if step_number not in reachable:
        raise StepNotReached(step_number, len(version.steps), sorted(reachable))
    return reachable[step_number]


def move_is_offered(progress: Progress | None, publication: Publication) -> bool:
    """Whether the person is to be told that a newer version exists and may be moved to."""
    return publication.policy is PublishPolicy.OFFER and _may_move(progress, publication)


def _move_is_demanded(progress: Progress, publication: Publication) -> bool:
    # A carry-over of a hidden walkthrough waits until it is shown again.
    return publication.policy is PublishPolicy.CARRY_OVER and _may_move(progress, publication)


def _may_move(progress: Progress | None, publication: Publication) -> bool:
    return (
        progress is not None
        and progress.status is Status.IN_PROGRESS
        and progress.version != publication.latest_version
        and publication.is_available
        and not publication.is_withdrawn
    )


def _require_available(publication: Publication, latest: Outline) -> None:
    if not publication.is_available:
        raise WalkthroughUnavailable(latest.title)


def _require_unmerged(progress: Progress, mine: Outline) -> None:
    # A call that was let in before the visitor kept their progress. The next one is told where it is.
    if progress.status is Status.MERGED:
        raise WalkthroughUnavailable(mine.title)


def _restart(progress: Progress, publication: Publication, latest: Outline, now: Millis) -> Transition:
    _require_available(publication, latest)
    first = latest.steps[0].id
    return _step(progress, progress.key, EventKind.RESTARTED, latest, first, now=now, told=Told.RESTARTED)


def _move(progress: Progress, versions: Versions, latest: Outline, now: Millis) -> Transition:
    """Carries over by step key: completed steps stay completed, and the first other one is the current step."""
    to_step_id = _first_open(latest, progress.completed_keys(versions[progress.version]))
    told = Told.MOVED_TO_LATEST if to_step_id else Told.COMPLETED
    return _step(progress, progress.key, EventKind.MOVED, latest, to_step_id, now=now, told=told, versions=versions)


def _united(account: Revised, visitor: Progress, versions: Versions, now: Millis) -> Revised:
    """The account's progress with the steps that a visitor has completed, who is on the same version."""
    mine = versions[visitor.version]
    completed = account.before.completed_keys(mine)
    gained = visitor.completed_keys(mine) - completed
    ids = {step.key: step.id for version in (*versions.values(), mine) for step in version.steps}
    here = [step.key for step in mine.steps if step.key in gained]
    # From the last one back: what is gained after the current step moves nobody, and then one event passes over it all.
    # So nobody is recorded at a step that they are passed over. Steps that are gone come back completed, too.
    for key in (*sorted(gained.difference(here)), *reversed(here)):
        completed |= {key}
        to_step_id = _first_open(mine, completed)
        account = _merged(account, account.before.key, mine, ids[key], to_step_id, now, versions)
    return account


def _as_it_is(progress: Progress) -> Revised:
    return Revised(progress, progress, ())


def _merged(
    revised: Revised,
    key: ProgressKey,
    version: Outline,
    from_step_id: StepId | None,
    to_step_id: StepId | None,
    now: Millis,
    versions: Versions | None = None,
) -> Revised:
    """With one more event of a merge."""
    progress = revised.after
    event = ProgressEvent(
        revision=progress.revision + 1,
        kind=EventKind.MERGED,
        attempt=progress.attempt,
        version=version.number,
        from_step_id=from_step_id,
        to_step_id=to_step_id,
        outcome=None,
        note=None,
        occurred_at=max(now, progress.last_activity_at),
    )
    return Revised(revised.before, evolve(progress, event, key, versions or {}), (*revised.events, event))


def _first_open(version: Outline, completed: frozenset[str], *, after: int = -1) -> StepId | None:
    """The first step that is not completed, of those after a position."""
    steps = map(version.steps.__getitem__, range(after + 1, len(version.steps)))
    return next((step.id for step in steps if step.key not in completed), None)


def _step(
    progress: Progress | None,
    key: ProgressKey,
    kind: EventKind,
    version: Outline,
    to_step_id: StepId | None,
    *,
    now: Millis,
    told: Told,
    from_step_id: StepId | None = None,
    outcome: Outcome | None = None,
    note: str | None = None,
    versions: Versions | None = None,
) -> Transition:
    """The transition of one event; everything that follows from the progress itself is filled in here."""
    event = ProgressEvent(
        revision=progress.revision + 1 if progress else 1,
        kind=kind,
        attempt=1 if progress is None else progress.attempt + (kind is EventKind.RESTARTED),
        version=version.number,
        from_step_id=from_step_id or (progress.current_step_id if progress else None),
        to_step_id=to_step_id,
        outcome=outcome,
        note=note,
        occurred_at=max(now, progress.last_activity_at) if progress else now,
    )
    return Transition(progress, evolve(progress, event, key, versions or {}), (event,), told)
