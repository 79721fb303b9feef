"""The ports in memory. Each passes the same contract suite as its PostgreSQL counterpart (tests/contracts)."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from application.ports import Ids, Placement, ServerListing, Standing, Stored, ToolCall, VersionSummary
from domain.errors import AlreadyExists, NotFound, TemporarilyUnavailable
from domain.progress import Progress, ProgressEvent, ProgressKey, Transition
from domain.tenancy import Caller, Millis, OrganizationId, Server, ServerKey, StepId, UserId, WalkthroughId
from domain.walkthrough import (
    Assignment,
    Manuscript,
    Publication,
    PublishPolicy,
    Step,
    Version,
    VersionKey,
    VersionState,
    take_in,
)


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
    id: WalkthroughId
    key: str
    versions: dict[int, Version] = field(default_factory=dict)
    states: dict[int, VersionState] = field(default_factory=dict)
    policies: dict[int, PublishPolicy] = field(default_factory=dict)
    manuscripts: dict[int, Manuscript] = field(default_factory=dict)
    latest: int | None = None
    is_published: bool = False


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
            found.append(((*order, walkthrough.key), standing))
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
        shown = walkthrough.versions[progress.version if progress else walkthrough.latest]
        return Standing(
            organization_id,
            walkthrough.id,
            walkthrough.key,
            Publication(
                walkthrough.latest,
                walkthrough.policies[walkthrough.latest],
                walkthrough.is_published and assignment is not None and assignment.is_enabled,
                progress is not None and walkthrough.states[progress.version] is VersionState.WITHDRAWN,
            ),
            VersionSummary(
                shown.number,
                shown.title,
                shown.description,
                shown.type,
                len(shown.steps),
                walkthrough.manuscripts[shown.number].estimated_minutes(),
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
            for number, version in walkthrough.versions.items()
            if walkthrough.states.get(number, VersionState.DRAFT) is not VersionState.DRAFT
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

    async def save(
        self,
        organization_id: OrganizationId,
        manuscript: Manuscript,
        ids: Ids,
        now: Millis,
        *,
        publish: PublishPolicy | None,
        placements: Sequence[Placement],
    ) -> Stored:
        walkthrough = self._memory.walkthroughs.setdefault(
            (organization_id, manuscript.key), _Walkthrough(WalkthroughId(ids.new("wt")), manuscript.key)
        )
        latest = walkthrough.latest
        intake = take_in(
            manuscript,
            latest=latest,
            latest_hash=walkthrough.manuscripts[latest].content_hash() if latest else None,
            is_published=walkthrough.is_published,
            publish=publish is not None,
        )
        walkthrough.states.pop((latest or 0) + 1, None)  # the draft that was
        if intake.is_unchanged:
            walkthrough.is_published = intake.is_published
        else:
            number = intake.version
            walkthrough.manuscripts[number] = manuscript
            walkthrough.states[number] = VersionState.DRAFT
            walkthrough.versions[number] = Version(
                VersionKey(organization_id, walkthrough.id, number),
                manuscript.title,
                manuscript.description,
                manuscript.type,
                tuple(Step(StepId(ids.new("stp")), text) for text in manuscript.steps),
            )
            if publish:
                if publish is PublishPolicy.SUPERSEDE:
                    walkthrough.states = dict.fromkeys(walkthrough.states, VersionState.WITHDRAWN)
                walkthrough.states[number] = VersionState.PUBLISHED
                walkthrough.policies[number] = publish
                walkthrough.latest = number
                walkthrough.is_published = True
        await self.assign(organization_id, manuscript.key, placements, now)
        return Stored(walkthrough.id, walkthrough.key, intake.version, intake.is_published, intake.is_unchanged)

    async def assign(
        self, organization_id: OrganizationId, key: str, placements: Sequence[Placement], now: Millis
    ) -> Sequence[Assignment]:
        walkthrough = self._memory.walkthroughs.get((organization_id, key))
        if walkthrough is None:
            raise NotFound(key)
        assigned = []
        for placement in placements:
            at = (placement.server, walkthrough.id)
            there = self._memory.assignments.get(at)
            order = placement.display_order
            if order is None:
                others = [each.display_order for (on, _), each in self._memory.assignments.items() if on == at[0]]
                order = there.display_order if there else max(others, default=0) + 1
            assignment = replace(there, display_order=order) if there else Assignment(*at, order)
            self._memory.assignments[at] = assignment
            assigned.append(assignment)
        return assigned
