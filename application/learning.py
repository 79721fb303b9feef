"""What an end user does through their assistant: list, find, select, next, status, review.

Each use case finds where the caller stands, lets `domain.progress` decide, and commits the decision if nobody
was faster. A lost race is read and decided again, so a retry, a duplicate or a second client ends in an
answer about the state that is now true, never in a second step.

A commit compares everything that a decision was based on. So the step after the one that this process moved somebody to
is decided on what it remembers of them, and only if that is no longer so, on what it reads.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from application.ports import Catalogue, Clock, ProgressStore, Standing, ToolCall, VersionLibrary
from domain import progress as rules
from domain.errors import (
    AuthenticationRequired,
    Candidate,
    CompletedStepRequired,
    CorruptHistory,
    TemporarilyUnavailable,
    WalkthroughNotFound,
    WalkthroughNotStarted,
)
from domain.progress import Outcome, Progress, ProgressKey, Status, StepHandle, Told, Transition
from domain.tenancy import Caller, UserId
from domain.walkthrough import Heading, Outline, Step, VersionKey

# On what is read. Each lost race means that another call on this progress was committed, or something published. Three
# lost in a row happen only under a storm, and then it is kinder to let the client try again than to hold its request.
_MAX_DECISIONS = 3
# Some 5,000 people in walkthroughs.
_MAX_REMEMBERED_BYTES = 8 * 2**20


class Lesson(NamedTuple):
    """What select, next and review answer with: where the caller stands, and the step to show, if any."""

    told: Told
    standing: Standing
    """What was decided on; its progress is the one before this call."""
    progress: Progress
    version: Outline
    step: Step | None
    newer_version_offered: bool
    is_recorded: bool = False
    """Whether the call was recorded: together with what it changed."""


AsCall: TypeAlias = Callable[[Lesson], ToolCall]
"""What the call log keeps of a call that is to be answered so."""


class Entry(NamedTuple):  # as what it is made of
    """A walkthrough in a list. The counts are None where the caller has not begun."""

    standing: Standing
    is_caller_known: bool
    current_step_number: int | None
    completed_steps: int | None
    newer_version_offered: bool


@dataclass(frozen=True, slots=True)
class Reached:
    """The steps of a begun walkthrough that its person may read again, by number."""

    standing: Standing
    version: Outline
    steps: Mapping[int, Heading]
    current_step_number: int | None


class Learning:
    """The end user's use cases. Whatever it remembers may be wrong, and is never needed."""

    def __init__(self, catalogue: Catalogue, library: VersionLibrary, progress: ProgressStore, clock: Clock) -> None:
        self._catalogue = catalogue
        self._library = library
        self._progress = progress
        self._clock = clock
        self._remembered: OrderedDict[ProgressKey, tuple[Standing, int]] = OrderedDict()
        self._remembered_bytes = 0

    async def list(self, caller: Caller) -> Sequence[Entry]:
        """The walkthroughs that may be taken on this server, in display order."""
        standings = await self._catalogue.standings(caller)
        return await self._entries(caller, [each for each in standings if each.publication.is_available])

    async def status(self, caller: Caller, reference: str | None) -> Sequence[Entry]:
        """Where the caller stands: in one walkthrough, or in all they have begun, hidden ones included.

        Raises:
            WalkthroughNotFound, WalkthroughNotStarted: about the one that was named.
        """
        _require_user(caller)
        if reference is None:
            standings = await self._catalogue.standings(caller)
            return await self._entries(caller, [each for each in standings if each.progress])
        standing = await self._find(caller, reference)
        _require_progress(standing)
        return await self._entries(caller, [standing])

    async def select(
        self, caller: Caller, reference: str, *, restart: bool, to_latest: bool, as_call: AsCall | None = None
    ) -> Lesson:
        """Starts, resumes, restarts, or moves to the latest version. Records the call with whatever that changes.

        Raises:
            WalkthroughNotFound, WalkthroughUnavailable, TemporarilyUnavailable.
        """
        _require_user(caller)
        now = self._clock.now()

        async def decide(standing: Standing, versions: rules.Versions) -> Transition:
            return rules.select(
                standing.progress,
                _progress_key(caller, standing),
                standing.publication,
                versions,
                restart=restart,
                to_latest=to_latest,
                now=now,
            )

        return await self._commit(caller, await self._find(caller, reference), decide, as_call)

    async def next(
        self,
        caller: Caller,
        completed_step: str | None,
        reference: str | None,
        *,
        outcome: Outcome,
        note: str | None,
        as_call: AsCall | None = None,
    ) -> Lesson:
        """Moves one step on from the step that the handle `completed_step` names. Records the call with that.

        Raises:
            CompletedStepRequired, StepNotCurrent, VersionWithdrawn, WalkthroughNotFound,
            WalkthroughNotStarted, TemporarilyUnavailable.
        """
        _require_user(caller)
        now = self._clock.now()
        handle = StepHandle.parse(completed_step) if completed_step is not None else None
        if reference is None:
            if handle is None:
                here = await self._standpoints(caller)
                raise CompletedStepRequired(here, unreadable=completed_step is not None)
            reference = handle.walkthrough_id
        remembered = None
        if handle is not None and reference == handle.walkthrough_id and outcome is not Outcome.STUCK:
            remembered = self._recall(caller, handle)
        standing = remembered or await self._find(caller, reference)
        _require_progress(standing)

        async def decide(standing: Standing, versions: rules.Versions) -> Transition:
            progress = _require_progress(standing)
            already_noted = (
                outcome is Outcome.STUCK
                and handle is not None
                and await self._progress.is_noted(progress.key, handle.attempt, handle.step_id, note)
            )
            return rules.next_step(
                progress,
                standing.publication,
                versions,
                handle,
                outcome=outcome,
                note=note,
                already_noted=already_noted,
                now=now,
                unreadable=completed_step is not None,
            )

        decisions = _MAX_DECISIONS + (remembered is not None)
        return await self._commit(caller, standing, decide, as_call, handle=handle, decisions=decisions)

    async def review(self, caller: Caller, reference: str, step_number: int | None) -> Lesson:
        """Re-reads a completed step or the current one (None; once completed there is none), and moves nothing.

        Raises:
            WalkthroughNotFound, WalkthroughNotStarted, StepNotReached.
        """
        _require_user(caller)
        standing = await self._find(caller, reference)
        progress = _require_progress(standing)
        version = (await self._versions(standing))[progress.version]
        if step_number is None:
            heading = progress.current_step(version)
        else:
            heading = rules.reviewed_step(progress, version, step_number)
        step = await self._in_full(version, heading)
        return _lesson(Told.REVIEW, standing, progress, version, step)

    async def reached(self, caller: Caller) -> Sequence[Reached]:
        """What `review` can show: of each walkthrough that the caller has begun, in display order."""
        return [
            Reached(standing, version, rules.reachable_steps(progress, version), progress.current_number(version))
            for standing, progress, version in await self._begun(await self._catalogue.standings(caller))
        ]

    async def find(self, caller: Caller, reference: str) -> Standing:
        """A walkthrough that the caller may begin, or has begun.

        Raises:
            WalkthroughNotFound.
        """
        standing = await self._find(caller, reference)
        if not standing.is_visible:
            raise await self._not_found(caller, reference)
        return standing

    async def _commit(
        self,
        caller: Caller,
        standing: Standing,
        decide: Callable[[Standing, rules.Versions], Awaitable[Transition]],
        as_call: AsCall | None,
        *,
        handle: StepHandle | None = None,
        decisions: int = _MAX_DECISIONS,
    ) -> Lesson:
        """Decides and commits, again on fresh state for as long as someone else is faster."""
        met = standing.progress
        for decision in range(decisions):
            if decision:
                standing = await self._find(caller, standing.walkthrough_id)
            versions = await self._versions(standing, handle)
            transition = await decide(standing, versions)
            after = transition.after
            version = versions[after.version]
            # Before the commit, so that nobody is moved to a step that cannot be shown to them.
            step = await self._in_full(version, after.current_step(version))
            # A mere resume has nothing left to record where the same person was faster: that was activity just now.
            settled = not transition.events or (transition.told is Told.RESUMED and standing.progress != met)
            is_recorded = as_call is not None and not settled
            lesson = _lesson(transition.told, standing, after, version, step, is_recorded=is_recorded)
            if settled:
                return lesson
            call = as_call(lesson) if as_call else None
            if await self._progress.commit(transition, standing.publication, call):
                self._remember(standing, after)
                return lesson
        raise TemporarilyUnavailable

    def _remember(self, standing: Standing, progress: Progress) -> None:
        """Where somebody stands, as it was stored this moment, if all else that was read is about the same version."""
        _, freed = self._remembered.pop(progress.key, (None, 0))
        self._remembered_bytes -= freed
        if progress.version != standing.shown.number:
            return
        standing = standing._replace(progress=progress)
        size = _size_in_memory(standing, progress)
        self._remembered[progress.key] = (standing, size)
        self._remembered_bytes += size
        while self._remembered_bytes > _MAX_REMEMBERED_BYTES:
            _, (_, freed) = self._remembered.popitem(last=False)
            self._remembered_bytes -= freed

    def _recall(self, caller: Caller, handle: StepHandle) -> Standing | None:
        """Where the caller stood last, if it was on the step of `handle`. To leave it is stored by a commit, and that
        finds out whether all of this is still so; nothing that changes nothing is decided on it."""
        server = caller.server
        key = ProgressKey(server.organization_id, server.server_id, _require_user(caller), handle.walkthrough_id)
        standing, _ = self._remembered.get(key, (None, 0))
        is_there = standing is not None and standing.progress is not None and standing.progress.handle() == handle
        return standing if is_there else None

    async def _find(self, caller: Caller, reference: str) -> Standing:
        """The walkthrough by id, then by key, then by a title that only one has."""
        reference = reference.strip()
        matches = await self._catalogue.matching(caller, reference)
        for named in ("walkthrough_id", "key"):
            for standing in matches:
                if getattr(standing, named) == reference:
                    return standing
        titled = [standing for standing in matches if standing.is_visible]
        if len(titled) == 1:
            return titled[0]
        if titled:
            raise WalkthroughNotFound(reference, [_candidate(each) for each in titled], ambiguous=True)
        raise await self._not_found(caller, reference)

    async def _not_found(self, caller: Caller, reference: str) -> WalkthroughNotFound:
        present = [each for each in await self._catalogue.standings(caller) if each.is_visible]
        return WalkthroughNotFound(reference, [_candidate(each) for each in present])

    async def _versions(self, standing: Standing, handle: StepHandle | None = None) -> rules.Versions:
        """The versions a decision looks at: the caller's, the latest, and the handle's if there is such a one."""
        numbers = {standing.publication.latest_version}
        if standing.progress:
            numbers.add(standing.progress.version)
        if handle and handle.walkthrough_id == standing.walkthrough_id:
            numbers.add(handle.version)
        keys = [VersionKey(standing.organization_id, standing.walkthrough_id, number) for number in numbers]
        return {key.number: version for key, version in (await self._library.outlines(keys)).items()}

    async def _in_full(self, version: Outline, heading: Heading | None) -> Step | None:
        if heading is None:
            return None
        step = await self._library.step(version.key, heading.id)
        if step is None:
            raise CorruptHistory(f"{version.key} has lost its step {heading.id}")
        return step

    async def _begun(self, standings: Sequence[Standing]) -> Sequence[tuple[Standing, Progress, Outline]]:
        """Those of `standings` that were begun, each with the version it is on; one read for all of them."""
        begun = [(each, each.progress) for each in standings if each.progress]
        keys = {_version_key(each, progress): (each, progress) for each, progress in begun}
        versions = await self._library.outlines(keys)
        return [(each, progress, versions[key]) for key, (each, progress) in keys.items()]

    async def _entries(self, caller: Caller, standings: Sequence[Standing]) -> Sequence[Entry]:
        counts = {
            each.walkthrough_id: (progress.current_number(version), progress.completed_steps(version))
            for each, progress, version in await self._begun(standings)
        }
        is_known = caller.user_id is not None
        entries = []
        for each in standings:
            if each.progress is None:  # most of a list
                entries.append(Entry(each, is_known, None, None, False))
                continue
            number, completed = counts[each.walkthrough_id]
            offered = rules.move_is_offered(each.progress, each.publication)
            entries.append(Entry(each, is_known, number, completed, offered))
        return entries

    async def _standpoints(self, caller: Caller) -> Sequence[rules.Standpoint]:
        """Where the caller stands in each walkthrough in progress."""
        standings = await self._catalogue.standings(caller)
        active = [each for each in standings if each.progress and each.progress.status is Status.IN_PROGRESS]
        return [rules.standpoint(progress, version) for _, progress, version in await self._begun(active)]


def _size_in_memory(standing: Standing, progress: Progress) -> int:
    """In bytes, and rather more: the texts that may be long, the keys that may be many, and what holds them."""
    carried = sys.getsizeof(progress.carried) + 120 * len(progress.carried)
    return 1_300 + sys.getsizeof(standing.shown.title) + sys.getsizeof(standing.shown.description) + carried


def _require_user(caller: Caller) -> UserId:
    if caller.user_id is None:
        raise AuthenticationRequired
    return caller.user_id


def _require_progress(standing: Standing) -> Progress:
    if standing.progress is None:
        raise WalkthroughNotStarted(standing.shown.title, standing.walkthrough_id)
    return standing.progress


def _progress_key(caller: Caller, standing: Standing) -> ProgressKey:
    server = caller.server
    return ProgressKey(server.organization_id, server.server_id, _require_user(caller), standing.walkthrough_id)


def _version_key(standing: Standing, progress: Progress) -> VersionKey:
    return VersionKey(standing.organization_id, standing.walkthrough_id, progress.version)


def _candidate(standing: Standing) -> Candidate:
    return Candidate(standing.walkthrough_id, standing.key, standing.shown.title)


def _lesson(
    told: Told,
    standing: Standing,
    progress: Progress,
    version: Outline,
    step: Step | None,
    *,
    is_recorded: bool = False,
) -> Lesson:
    offered = rules.move_is_offered(progress, standing.publication)
    return Lesson(told, standing, progress, version, step, offered, is_recorded)
