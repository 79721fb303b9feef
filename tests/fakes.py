"""The ports in memory. Each passes the same contract suite as its PostgreSQL counterpart (tests/contracts)."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from application.ports import (
    AttemptCounts,
    Cohort,
    Counts,
    Measures,
    Placement,
    ServerListing,
    Standing,
    StepCounts,
    StuckNote,
    Subject,
    ToolCall,
    VersionPeople,
    VersionSummary,
)
from domain.draft import RecordedEdit
from domain.errors import AlreadyExists, NotFound, TemporarilyUnavailable
from domain.forecast import Standing as MidWay
from domain.progress import EventKind, Outcome, Progress, ProgressEvent, ProgressKey, Status, Transition
from domain.publishing import Change, DraftRevision, LedgerEntry, Walkthrough, unknown
from domain.tenancy import Caller, Millis, OrganizationId, Server, ServerKey, StepId, UserId, WalkthroughId
from domain.walkthrough import Assignment, Publication, Version, VersionKey, in_order


class SetClock:
    """A clock that shows what it is set to."""

    def __init__(self, now: int = 1_000_000) -> None:
        self.time = now

    def now(self) -> Millis:
        return Millis(self.time)


class CountedIds:
    """Ids that count, so that a failing test reads well."""

    def __init__(self, first: int = 1) -> None:
        self._count = itertools.count(first)

    def new(self, prefix: str) -> str:
        return f"{prefix}_{next(self._count)}"

    def token(self) -> str:
        return f"cairn_token{next(self._count)}"


@dataclass
class _Walkthrough:
    state: Walkthrough
    versions: dict[int, Version] = field(default_factory=dict)
    """The content of all that were published."""
    edits: list[RecordedEdit] = field(default_factory=list)
    ledger: list[LedgerEntry] = field(default_factory=list)

    @property
    def id(self) -> WalkthroughId:
        return self.state.id

    @property
    def latest(self) -> int | None:
        return self.state.latest_number or None


@dataclass
class Memory:
    """What all the fakes of one world share."""

    organizations: dict[str, OrganizationId] = field(default_factory=dict)
    servers: dict[ServerKey, Server] = field(default_factory=dict)
    people: dict[tuple[OrganizationId, str], UserId] = field(default_factory=dict)
    tokens: dict[tuple[ServerKey, bytes], UserId] = field(default_factory=dict)
    walkthroughs: dict[tuple[OrganizationId, str], _Walkthrough] = field(default_factory=dict)
    assignments: dict[tuple[ServerKey, WalkthroughId], Assignment] = field(default_factory=dict)
    progress: dict[ProgressKey, Progress] = field(default_factory=dict)
    events: dict[ProgressKey, list[ProgressEvent]] = field(default_factory=dict)
    calls: dict[str, ToolCall] = field(default_factory=dict)


class MemoryCatalogue:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def standings(self, caller: Caller) -> Sequence[Standing]:
        found = []
        for (organization_id, _), walkthrough in self._memory.walkthroughs.items():
            if organization_id != caller.server.organization_id or walkthrough.latest is None:
                continue
            assignment = self._memory.assignments.get((caller.server, walkthrough.id))
            progress = None
            if caller.user_id is not None:
                server = caller.server
                key = ProgressKey(organization_id, server.server_id, caller.user_id, walkthrough.id)
                progress = self._memory.progress.get(key)
            if assignment is None and progress is None:
                continue
            order = (0, assignment.display_order) if assignment else (1, 0)
            standing = self._standing(organization_id, walkthrough, assignment, progress)
            found.append(((*order, walkthrough.state.key), standing))
        return [standing for _, standing in sorted(found, key=lambda each: each[0])]

    async def matching(self, caller: Caller, reference: str) -> Sequence[Standing]:
        return [
            each
            for each in await self.standings(caller)
            if reference in (each.walkthrough_id, each.key) or each.shown.title.lower() == reference.lower()
        ]

    def _standing(
        self,
        organization_id: OrganizationId,
        walkthrough: _Walkthrough,
        assignment: Assignment | None,
        progress: Progress | None,
    ) -> Standing:
        assert walkthrough.latest is not None
        state = walkthrough.state
        shown = walkthrough.versions[progress.version if progress else walkthrough.latest]
        is_shown = state.is_published and state.archived_at is None
        return Standing(
            organization_id,
            walkthrough.id,
            state.key,
            Publication(
                walkthrough.latest,
                state.record(walkthrough.latest).policy,
                is_shown and assignment is not None and assignment.is_enabled,
                progress is not None and state.record(progress.version).is_withdrawn,
            ),
            VersionSummary(
                shown.number,
                shown.title,
                shown.description,
                shown.type,
                len(shown.steps),
                shown.manuscript(state.key).estimated_minutes(),
            ),
            progress,
        )


class MemoryVersionLibrary:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def versions(self, keys: Collection[VersionKey]) -> Mapping[VersionKey, Version]:
        published = {
            version.key: version
            for walkthrough in self._memory.walkthroughs.values()
            for version in walkthrough.versions.values()
        }
        return {key: published[key] for key in keys if key in published}


class MemoryProgressStore:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def commit(self, transition: Transition) -> bool:
        key = transition.after.key
        stored = self._memory.progress.get(key)
        if (stored.revision if stored else None) != (transition.before.revision if transition.before else None):
            return False
        self._memory.progress[key] = transition.after
        self._memory.events.setdefault(key, []).extend(transition.events)
        return True

    async def is_noted(self, key: ProgressKey, attempt: int, step_id: StepId, note: str | None) -> bool:
        return any(
            (each.kind, each.attempt, each.from_step_id, each.note) == ("stuck", attempt, step_id, note)
            for each in self._memory.events.get(key, [])
        )

    async def events(self, key: ProgressKey) -> Sequence[ProgressEvent]:
        return list(self._memory.events.get(key, []))


class MemoryCallLog:
    def __init__(self, memory: Memory, *, places: int = 1_000) -> None:
        self._memory = memory
        self._free = places

    @contextmanager
    def admit(self) -> Iterator[Callable[[ToolCall], Awaitable[None]]]:
        if not self._free:
            raise TemporarilyUnavailable
        self._free -= 1
        try:
            yield self._record
        finally:
            self._free += 1

    async def drain(self) -> None:
        pass

    async def _record(self, call: ToolCall) -> None:
        if call.caller.server not in self._memory.servers:
            raise TemporarilyUnavailable
        self._memory.calls.setdefault(call.id, call)


class MemoryServerDirectory:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def server_at(self, *, slug: str | None, custom_domain: str | None) -> Server | None:
        for server in self._memory.servers.values():
            if slug is not None and server.slug == slug:
                return server
        for server in self._memory.servers.values():
            if custom_domain is not None and server.custom_domain == custom_domain:
                return server
        return None


class MemoryTokenStore:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def user_of(self, server: ServerKey, token_hash: bytes) -> UserId | None:
        return self._memory.tokens.get((server, token_hash))

    async def issue(self, server: ServerKey, email: str, new_user: UserId, token_hash: bytes, now: Millis) -> UserId:
        user_id = self._memory.people.setdefault((server.organization_id, email), new_user)
        self._memory.tokens.setdefault((server, token_hash), user_id)
        return user_id

    async def revoke(self, server: ServerKey, token_hash: bytes) -> int:
        return int(self._memory.tokens.pop((server, token_hash), None) is not None)

    async def revoke_all_of(self, server: ServerKey, email: str) -> int:
        user_id = self._memory.people.get((server.organization_id, email))
        theirs = [key for key, owner in self._memory.tokens.items() if key[0] == server and owner == user_id]
        for key in theirs:
            del self._memory.tokens[key]
        return len(theirs)


class MemoryTenantStore:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def create_organization(self, id: OrganizationId, slug: str, name: str, now: Millis) -> None:
        if slug in self._memory.organizations:
            raise AlreadyExists(slug)
        self._memory.organizations[slug] = id

    async def create_server(self, server: Server, now: Millis) -> None:
        if server.key.organization_id not in self._memory.organizations.values():
            raise NotFound(server.key.organization_id)
        for other in self._memory.servers.values():
            if other.slug == server.slug or (server.custom_domain and other.custom_domain == server.custom_domain):
                raise AlreadyExists(server.slug)
        self._memory.servers[server.key] = server

    async def organization(self, slug: str) -> OrganizationId | None:
        return self._memory.organizations.get(slug)

    async def server(self, slug: str) -> ServerListing | None:
        return next((each for each in await self.servers(None) if each.server.slug == slug), None)

    async def servers(self, organization_id: OrganizationId | None) -> Sequence[ServerListing]:
        slugs = {id: slug for slug, id in self._memory.organizations.items()}
        listings = [
            ServerListing(slugs[key.organization_id], server, sum(at == key for at, _ in self._memory.assignments))
            for key, server in self._memory.servers.items()
            if organization_id in (None, key.organization_id)
        ]
        return sorted(listings, key=lambda each: (each.organization_slug, each.server.slug))


class MemoryWalkthroughStore:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def read(
        self, organization_id: OrganizationId, key: str, *, since: DraftRevision | None = None
    ) -> Walkthrough | None:
        walkthrough = self._memory.walkthroughs.get((organization_id, key))
        if walkthrough is None:
            return None
        state = walkthrough.state
        if since is None and state.draft is not None:
            since = (state.draft.key.number, state.pushed_revision)
        recorded = [each for each in walkthrough.edits if since and (each.number, each.revision) > since]
        return replace(state, edits_since=tuple(recorded))

    async def change(
        self,
        organization_id: OrganizationId,
        key: str,
        decide: Callable[[Walkthrough], Change],
        now: Millis,
        *,
        since: DraftRevision | None = None,
        new_id: WalkthroughId | None = None,
        placements: Sequence[Placement] = (),
    ) -> Change:
        state = await self.read(organization_id, key, since=since)
        if state is None:
            if new_id is None:
                raise unknown(key)
            state = Walkthrough(organization_id, new_id, key)
        change = decide(state)
        begun = _Walkthrough(state)
        walkthrough = self._memory.walkthroughs.setdefault((organization_id, key), begun)
        walkthrough.state = change.after
        walkthrough.edits += change.edits
        if change.after.latest is not None:
            walkthrough.versions[change.after.latest_number] = change.after.latest
        if change.entry is not None:
            walkthrough.ledger.append(change.entry)
        assignments = [_place(self._memory, placement, state.id) for placement in placements]
        return replace(change, assignments=tuple(assignments))

    async def ledger(self, organization_id: OrganizationId, walkthrough_id: WalkthroughId) -> Sequence[LedgerEntry]:
        return [
            entry
            for (at, _), walkthrough in self._memory.walkthroughs.items()
            for entry in walkthrough.ledger
            if (at, walkthrough.id) == (organization_id, walkthrough_id)
        ]

    async def people(
        self, organization_id: OrganizationId, walkthrough_id: WalkthroughId
    ) -> Mapping[int, VersionPeople]:
        standing = Counter(
            (progress.version, progress.status) for progress in self._on(organization_id, walkthrough_id)
        )
        return {
            version: VersionPeople(standing[version, Status.IN_PROGRESS], standing[version, Status.COMPLETED])
            for version in {version for version, _ in standing}
        }

    async def standings(self, organization_id: OrganizationId, walkthrough_id: WalkthroughId) -> Sequence[MidWay]:
        people: Counter[tuple[int, StepId, frozenset[str], bool]] = Counter()
        for progress in self._on(organization_id, walkthrough_id):
            if progress.current_step_id is not None:
                server = ServerKey(organization_id, progress.key.server_id)
                assignment = self._memory.assignments.get((server, walkthrough_id))
                is_enabled = assignment is not None and assignment.is_enabled
                people[progress.version, progress.current_step_id, progress.carried, is_enabled] += 1
        return [MidWay(*where, count) for where, count in people.items()]

    def _on(self, organization_id: OrganizationId, walkthrough_id: WalkthroughId) -> list[Progress]:
        return [
            progress
            for key, progress in self._memory.progress.items()
            if (key.organization_id, key.walkthrough_id) == (organization_id, walkthrough_id)
        ]


class MemoryAssignmentStore:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def assign(
        self, organization_id: OrganizationId, key: str, placements: Sequence[Placement], now: Millis
    ) -> Sequence[Assignment]:
        id = self._id(organization_id, key)
        return [_place(self._memory, placement, id) for placement in placements]

    async def unassign(self, organization_id: OrganizationId, key: str, servers: Sequence[ServerKey]) -> Sequence[bool]:
        id = self._id(organization_id, key)
        return [self._memory.assignments.pop((server, id), None) is not None for server in servers]

    async def set_enabled(
        self, organization_id: OrganizationId, key: str, servers: Sequence[ServerKey], *, is_enabled: bool
    ) -> Sequence[bool]:
        id = self._id(organization_id, key)
        for server in servers:
            if (server, id) not in self._memory.assignments:
                slug = self._memory.servers[server].slug
                raise NotFound(f"walkthrough {key!r} is not on server {slug!r}: assign it first")
        were = [self._memory.assignments[server, id] for server in servers]
        for assignment in were:
            self._memory.assignments[assignment.server, id] = replace(assignment, is_enabled=is_enabled)
        return [assignment.is_enabled is not is_enabled for assignment in were]

    async def order(self, server: ServerKey, first: Sequence[str]) -> Sequence[str]:
        keys = {walkthrough.id: walkthrough.state.key for walkthrough in self._memory.walkthroughs.values()}
        listed = [assignment for (at, _), assignment in self._memory.assignments.items() if at == server]
        listed.sort(key=lambda each: (each.display_order, keys[each.walkthrough_id]))
        ids = {keys[each.walkthrough_id]: each.walkthrough_id for each in listed}
        ordered = in_order(list(ids), first)
        for place, key in enumerate(ordered, start=1):
            at = (server, ids[key])
            self._memory.assignments[at] = replace(self._memory.assignments[at], display_order=place)
        return ordered

    def _id(self, organization_id: OrganizationId, key: str) -> WalkthroughId:
        walkthrough = self._memory.walkthroughs.get((organization_id, key))
        if walkthrough is None:
            raise unknown(key)
        return walkthrough.id


def _place(memory: Memory, placement: Placement, id: WalkthroughId) -> Assignment:
    at = (placement.server, id)
    there = memory.assignments.get(at)
    order = placement.display_order
    if order is None:
        others = [each.display_order for (on, _), each in memory.assignments.items() if on == at[0]]
        order = there.display_order if there else max(others, default=0) + 1
    assignment = replace(there, display_order=order) if there else Assignment(*at, order)
    memory.assignments[at] = assignment
    return assignment


class MemoryFunnels:
    """Walks through each attempt event by event, as a person would with the definitions in hand."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def subject(self, organization_id: OrganizationId, key: str) -> Subject | None:
        walkthrough = self._memory.walkthroughs.get((organization_id, key))
        return Subject(walkthrough.id, walkthrough.latest) if walkthrough else None

    async def counts(
        self, organization_id: OrganizationId, walkthrough_id: WalkthroughId, cohort: Cohort, measures: Measures
    ) -> Counts:
        stays = []
        for key, events in self._memory.events.items():
            if (key.organization_id, key.walkthrough_id) != (organization_id, walkthrough_id):
                continue
            if cohort.server_id in (None, key.server_id):
                for attempt in range(1, events[-1].attempt + 1):
                    own = [event for event in events if event.attempt == attempt]
                    stay = _Stay(key, own, is_latest=attempt == events[-1].attempt, version=cohort.version)
                    if stay.events and _is_within(cohort, stay.events[0].occurred_at):
                        stays.append(stay)
        steps = {
            step.id: step.text.key
            for walkthrough in self._memory.walkthroughs.values()
            for version in walkthrough.versions.values()
            for step in version.steps
        }
        for stay in stays:
            stay.walk(steps, measures)
        states = Counter(stay.state(measures) for stay in stays)
        noted = sorted((note for stay in stays for note in stay.notes), key=lambda note: note[0])
        return Counts(
            attempts=AttemptCounts(
                people=len({stay.key.user_id for stay in stays}),
                started=len(stays),
                completed=states["completed"],
                in_progress=states["in_progress"],
                abandoned=states["abandoned"],
                restarted=states["restarted"],
                moved_on=states["moved_on"],
                resumed=sum(stay.is_resumed for stay in stays),
                skipped=sum(bool(stay.skipped) for stay in stays),
                stuck=sum(bool(stay.stuck) for stay in stays),
                too_fast=sum(bool(stay.too_fast) for stay in stays),
            ),
            steps={
                key: self._at_step(key, stays, measures)
                for key in {key for stay in stays for key in stay.reached | stay.stuck}
            },
            note_count=len(noted),
            notes=[note for _, note in noted[: measures.max_notes]],
        )

    def _at_step(self, key: str, stays: Sequence[_Stay], measures: Measures) -> StepCounts:
        times = [stay.active[key] for stay in stays if key in stay.completed - stay.skipped and key in stay.active]
        return StepCounts(
            key=key,
            reached=sum(key in stay.reached for stay in stays),
            completed=sum(key in stay.completed for stay in stays),
            here=sum(stay.state(measures) == "in_progress" and stay.current == key for stay in stays),
            skipped=sum(key in stay.skipped for stay in stays),
            stuck=sum(key in stay.stuck for stay in stays),
            too_fast=sum(key in stay.too_fast for stay in stays),
            timed=len(times),
            median_active=Millis(int(statistics.median(times))) if times else None,
        )


def _is_within(cohort: Cohort, began_at: Millis) -> bool:
    return (cohort.since is None or cohort.since <= began_at) and (cohort.until is None or began_at < cohort.until)


def _is_one_call(event: ProgressEvent, following: ProgressEvent) -> bool:
    """Whether a `next` advanced, and then made the move that a publish demands."""
    kinds = (event.kind, following.kind)
    return kinds == (EventKind.ADVANCED, EventKind.MOVED) and event.occurred_at == following.occurred_at


class _Stay:
    """One attempt, for as long as it was on `version`; or all of it."""

    def __init__(
        self, key: ProgressKey, attempt: Sequence[ProgressEvent], *, is_latest: bool, version: int | None
    ) -> None:
        self.key = key
        self.events = [event for event in attempt if version in (None, event.version)]
        self.was_left = bool(self.events) and self.events[-1] is not attempt[-1]
        self.is_latest = is_latest
        # What follows each event, in the attempt: after the last one that may be the move away.
        first = attempt.index(self.events[0]) if self.events else 0
        self._following = attempt[first + 1 : first + 1 + len(self.events)]
        self.reached: set[str] = set()
        self.completed: set[str] = set()
        self.skipped: set[str] = set()
        self.stuck: set[str] = set()
        self.too_fast: set[str] = set()
        self.active: Counter[str] = Counter()
        self.is_resumed = False
        self.current: str | None = None
        self.notes: list[tuple[tuple[int, str, str, int], StuckNote]] = []

    def walk(self, steps: Mapping[StepId, str], measures: Measures) -> None:
        advanced: ProgressEvent | None = None
        for event, following in itertools.zip_longest(self.events, self._following):
            left = steps[event.from_step_id] if event.from_step_id else ""
            if event.kind is EventKind.ADVANCED:
                self.completed.add(left)
                if event.outcome is Outcome.SKIPPED:
                    self.skipped.add(left)
                if advanced and event.occurred_at - advanced.occurred_at <= measures.too_fast:
                    self.too_fast.add(left)
                advanced = event
            elif event.kind is EventKind.MOVED:
                advanced = None
            if event.kind is EventKind.STUCK:
                self.stuck.add(left)
                if event.note is not None:
                    note = StuckNote(left, event.version, event.note, event.occurred_at)
                    newest_first = (-event.occurred_at, self.key.server_id, self.key.user_id, -event.revision)
                    self.notes.append((newest_first, note))
            self.current = steps[event.to_step_id] if event.to_step_id else None
            if self.current is None or (following and _is_one_call(event, following)):
                continue  # nothing was shown
            self.reached.add(self.current)
            gap = following.occurred_at - event.occurred_at if following else 0
            if gap > measures.pause:
                self.is_resumed = True
            elif following:
                self.active[self.current] += gap

    def state(self, measures: Measures) -> str:
        if self.current is None:
            return "completed"
        if self.was_left:
            return "moved_on"
        if not self.is_latest:
            return "restarted"
        return "abandoned" if measures.now - self.events[-1].occurred_at >= measures.abandoned_after else "in_progress"
