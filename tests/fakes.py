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
    Bearer,
    Begun,
    Cohort,
    Counts,
    ForgottenCalls,
    Measures,
    PersonalRecord,
    PersonSummary,
    Placement,
    ServerListing,
    Standing,
    StepCounts,
    StuckNote,
    Subject,
    TokenListing,
    ToolCall,
    VersionPeople,
    VersionSummary,
)
from domain.draft import RecordedEdit
from domain.errors import AlreadyExists, NotFound, TemporarilyUnavailable
from domain.forecast import Standing as MidWay
from domain.progress import EventKind, Outcome, Progress, ProgressEvent, ProgressKey, Status, Transition
from domain.publishing import Change, DraftRevision, LedgerEntry, Walkthrough, unknown
from domain.sign_in import IdentityKey, OidcProvider, whose
from domain.tenancy import (
    AuthMode,
    Caller,
    Millis,
    OrganizationId,
    Server,
    ServerId,
    ServerKey,
    StepId,
    UserId,
    WalkthroughId,
)
from domain.walkthrough import Assignment, Outline, Publication, Step, Version, VersionKey, in_order


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

    def token(self, prefix: str = "cairn") -> str:
        return f"{prefix}_token{next(self._count)}"

    def code(self) -> str:
        return f"{next(self._count):06}"

    def visitor(self) -> str:
        return f"visitor-{next(self._count):014}"


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
    providers: dict[OrganizationId, OidcProvider] = field(default_factory=dict)
    people: dict[tuple[OrganizationId, str], UserId] = field(default_factory=dict)
    identities: dict[tuple[OrganizationId, IdentityKey], UserId] = field(default_factory=dict)
    seen: dict[tuple[OrganizationId, UserId], tuple[Millis, Millis]] = field(default_factory=dict)
    """When they were first and last seen."""
    tokens: dict[tuple[ServerKey, bytes], UserId] = field(default_factory=dict)
    issued: dict[tuple[ServerKey, bytes], Millis] = field(default_factory=dict)
    walkthroughs: dict[tuple[OrganizationId, str], _Walkthrough] = field(default_factory=dict)
    assignments: dict[tuple[ServerKey, WalkthroughId], Assignment] = field(default_factory=dict)
    progress: dict[ProgressKey, Progress] = field(default_factory=dict)
    events: dict[ProgressKey, list[ProgressEvent]] = field(default_factory=dict)
    calls: dict[str, ToolCall] = field(default_factory=dict)
    visitors: dict[tuple[ServerKey, bytes], UserId] = field(default_factory=dict)
    merged_into: dict[tuple[OrganizationId, UserId], UserId] = field(default_factory=dict)

    def version(self, key: VersionKey) -> Version | None:
        """A version that was published."""
        for (organization_id, _), walkthrough in self.walkthroughs.items():
            if (organization_id, walkthrough.id) == key[:2]:
                return walkthrough.versions.get(key.number)
        return None


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
                if progress is not None and progress.status is Status.MERGED:
                    progress = None
            if assignment is None and progress is None:
                continue
            order = (0, assignment.display_order) if assignment else (1, 0)
            standing = self._standing(organization_id, walkthrough, assignment, progress)
            found.append(((*order, walkthrough.state.key), standing))
        return [standing for _, standing in sorted(found, key=lambda each: each[0])]

    async def matching(self, caller: Caller, reference: str) -> Sequence[Standing]:
        standings = await self.standings(caller)
        by_id = [each for each in standings if each.walkthrough_id == reference]
        by_key = [each for each in standings if each.key == reference]
        return by_id or by_key or [each for each in standings if each.shown.title.lower() == reference.lower()]

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
        return Standing(
            organization_id,
            walkthrough.id,
            state.key,
            _publication(walkthrough, assignment, progress),
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


def _publication(walkthrough: _Walkthrough, assignment: Assignment | None, progress: Progress | None) -> Publication:
    state = walkthrough.state
    assert walkthrough.latest is not None
    return Publication(
        walkthrough.latest,
        state.record(walkthrough.latest).policy,
        state.is_published and state.archived_at is None and assignment is not None and assignment.is_enabled,
        progress is not None and state.record(progress.version).is_withdrawn,
    )


class MemoryVersionLibrary:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def outlines(self, keys: Collection[VersionKey]) -> Mapping[VersionKey, Outline]:
        return {key: version.outline() for key in keys if (version := self._memory.version(key))}

    async def step(self, version: VersionKey, step_id: StepId) -> Step | None:
        found = self._memory.version(version)
        return next((step for step in found.steps if step.id == step_id), None) if found else None


class MemoryProgressStore:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def commit(self, transition: Transition, publication: Publication, call: ToolCall | None = None) -> bool:
        key = transition.after.key
        stored = self._memory.progress.get(key)
        if stored != transition.before:
            return False
        server = ServerKey(key.organization_id, key.server_id)
        assignment = self._memory.assignments.get((server, key.walkthrough_id))
        (walkthrough,) = (each for each in self._memory.walkthroughs.values() if each.id == key.walkthrough_id)
        if publication != _publication(walkthrough, assignment, stored):
            return False
        if transition.before is None and (key.organization_id, key.user_id) in self._memory.merged_into:
            return False
        self._memory.progress[key] = transition.after
        self._memory.events.setdefault(key, []).extend(transition.events)
        if call is not None:
            self._memory.calls[call.id] = call
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


def person_in(
    memory: Memory, organization_id: OrganizationId, identity: IdentityKey | None, email: str, new_user: UserId
) -> UserId:
    """What `People.person` says."""
    address = IdentityKey.of_address(email)
    leading = identity or address
    known = memory.identities
    by_address = known.get((organization_id, address), memory.people.get((organization_id, email)))
    found = whose(known.get((organization_id, leading)), by_address)
    if found is None:
        memory.people[organization_id, email] = new_user
        found = new_user, new_user
    user_id, has_address = found
    known[organization_id, address] = has_address
    known[organization_id, leading] = user_id
    return user_id


def see(memory: Memory, organization_id: OrganizationId, user_id: UserId, now: Millis) -> None:
    first, last = memory.seen.get((organization_id, user_id), (now, now))
    memory.seen[organization_id, user_id] = first, max(last, now)


class MemoryTokenStore:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def bearer_of(self, server: ServerKey, token_hash: bytes, now: Millis) -> Bearer | None:
        user_id = self._memory.tokens.get((server, token_hash))
        return None if user_id is None else Bearer(user_id, frozenset({"walkthroughs"}))

    async def issue(self, server: ServerKey, email: str, new_user: UserId, token_hash: bytes, now: Millis) -> UserId:
        user_id = person_in(self._memory, server.organization_id, None, email, new_user)
        see(self._memory, server.organization_id, user_id, now)
        self._memory.tokens.setdefault((server, token_hash), user_id)
        self._memory.issued.setdefault((server, token_hash), now)
        return user_id

    async def listed(
        self,
        organization_id: OrganizationId,
        server_id: ServerId | None,
        user_id: UserId | None,
        now: Millis,
        limit: int,
    ) -> Sequence[TokenListing]:
        memory = self._memory
        emails = {user_id: email for (at, email), user_id in memory.people.items() if at == organization_id}
        listed = [
            TokenListing(
                server=memory.servers[server].slug,
                user_id=owner,
                email=emails[owner],
                grant_id=None,
                client_id=None,
                client_name=None,
                scope="walkthroughs",
                created_at=memory.issued[server, token_hash],
                ends_at=None,
            )
            for (server, token_hash), owner in memory.tokens.items()
            if server.organization_id == organization_id
            and server_id in (None, server.server_id)
            and user_id in (None, owner)
        ]
        return sorted(listed, key=lambda each: (-each.created_at, each.user_id))[:limit]

    async def revoke(self, server: ServerKey, token_hash: bytes, now: Millis) -> int:
        return int(self._memory.tokens.pop((server, token_hash), None) is not None)

    async def revoke_grant(self, server: ServerKey, grant_id: str, now: Millis) -> int:
        return 0  # here nobody has signed in by a client

    async def revoke_client(self, server: ServerKey, client: str, now: Millis) -> int:
        return 0

    async def revoke_all_of(self, server: ServerKey, email: str, now: Millis) -> int:
        address = IdentityKey.of_address(email)
        user_id = self._memory.identities.get((server.organization_id, address))
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
            ServerListing(
                slugs[key.organization_id],
                server,
                sum(at == key for at, _ in self._memory.assignments),
                self._memory.providers.get(key.organization_id),
            )
            for key, server in self._memory.servers.items()
            if organization_id in (None, key.organization_id)
        ]
        return sorted(listings, key=lambda each: (each.organization_slug, each.server.slug))

    async def provider(self, organization_id: OrganizationId) -> OidcProvider | None:
        return self._memory.providers.get(organization_id)

    async def set_provider(self, organization_id: OrganizationId, provider: OidcProvider | None, now: Millis) -> bool:
        former = self._memory.providers.pop(organization_id, None)
        if provider is not None:
            self._memory.providers[organization_id] = provider
        return former is not None

    async def set_auth_mode(self, server: ServerKey, auth_mode: AuthMode) -> AuthMode:
        if server not in self._memory.servers:
            raise NotFound(server.server_id)
        former = self._memory.servers[server]
        self._memory.servers[server] = replace(former, auth_mode=auth_mode)
        return former.auth_mode


class MemoryPersonalDataStore:
    """Goes through the log one call at a time, so that every stretch has an end."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def people(
        self, organization_id: OrganizationId, server_id: ServerId | None, after: str | None, limit: int
    ) -> Sequence[PersonSummary]:
        everybody = [
            self._summary(user_id, self._emails(organization_id).get(user_id), server_id, first, last)
            for (at, user_id), (first, last) in self._memory.seen.items()
            if at == organization_id and (at, user_id) not in self._memory.merged_into
        ]
        here = [each for each in everybody if server_id is None or self._is_here(each, server_id)]
        here.sort(key=lambda each: (each.email is None, each.email or each.user_id))
        is_visitor = after is not None and "@" not in after
        behind = [
            each
            for each in here
            if after is None or (each.email is None, each.email or each.user_id) > (is_visitor, after)
        ]
        return behind[:limit]

    async def find(self, organization_id: OrganizationId, who: str) -> UserId | None:
        by_address = self._memory.identities.get((organization_id, IdentityKey.of_address(who)))
        return UserId(who) if (organization_id, who) in self._memory.seen else by_address

    async def record(self, organization_id: OrganizationId, user_id: UserId) -> PersonalRecord | None:
        if (organization_id, user_id) not in self._memory.seen:
            return None
        memory, users = self._memory, self._accounts(organization_id, [user_id])
        return PersonalRecord(
            user_id=user_id,
            email=self._emails(organization_id).get(user_id),
            users=[
                {"id": each, "first_seen_at": memory.seen[organization_id, each][0]}
                for each in sorted(users, key=lambda each: each != user_id)
            ],
            identities=[
                {"user_id": owner, "issuer": key.issuer, "subject": key.subject}
                for (at, key), owner in memory.identities.items()
                if at == organization_id and owner in users
            ],
            begun=[
                Begun(self._slug(key), self._walkthrough(key), progress, memory.events[key])
                for key, progress in memory.progress.items()
                if key.organization_id == organization_id and key.user_id in users
            ],
            grants=[],
            tokens=[
                {"server": memory.servers[server].slug, "created_at": memory.issued[server, token_hash]}
                for (server, token_hash), owner in memory.tokens.items()
                if server.organization_id == organization_id and owner in users
            ],
            sign_ins=[],
        )

    async def calls(
        self, organization_id: OrganizationId, users: Collection[UserId], since: Millis
    ) -> tuple[Sequence[ToolCall], Millis | None]:
        end = self._end_of_stretch(organization_id, since)
        return [
            call for call in self._calls(organization_id, users, since) if end is None or call.created_at < end
        ], end

    async def forget_calls(
        self, organization_id: OrganizationId, users: Collection[UserId], since: Millis
    ) -> ForgottenCalls:
        calls, end = await self.calls(organization_id, users, since)
        self._forget(calls)
        return ForgottenCalls(len(calls), end)

    async def erase(
        self, organization_id: OrganizationId, users: Collection[UserId], calls_since: Millis
    ) -> int | None:
        memory = self._memory
        there = {each for each in users if (organization_id, each) in memory.seen}
        if self._accounts(organization_id, there) != set(users):
            return None
        late = self._calls(organization_id, users, calls_since)
        self._forget(late)
        for by_key in (memory.progress, memory.events):
            for key in [key for key in by_key if key.organization_id == organization_id and key.user_id in users]:
                del by_key[key]  # type: ignore[attr-defined]
        for owned in (memory.identities, memory.tokens, memory.visitors, memory.people):
            for place in [place for place, owner in owned.items() if owner in users]:  # type: ignore[attr-defined]
                del owned[place]  # type: ignore[attr-defined]
        for each in users:
            del memory.seen[organization_id, each]
            memory.merged_into.pop((organization_id, each), None)
        return len(late)

    def _emails(self, organization_id: OrganizationId) -> Mapping[UserId, str]:
        return {owner: email for (at, email), owner in self._memory.people.items() if at == organization_id}

    def _accounts(self, organization_id: OrganizationId, users: Collection[UserId]) -> set[UserId]:
        merged = {
            visitor
            for (at, visitor), account in self._memory.merged_into.items()
            if at == organization_id and account in users
        }
        return merged | set(users)

    def _summary(
        self, user_id: UserId, email: str | None, server_id: ServerId | None, first: Millis, last: Millis
    ) -> PersonSummary:
        statuses = [
            progress.status
            for key, progress in self._memory.progress.items()
            if key.user_id == user_id and server_id in (None, key.server_id)
        ]
        return PersonSummary(user_id, email, first, last, len(statuses), statuses.count(Status.COMPLETED))

    def _is_here(self, person: PersonSummary, server_id: ServerId) -> bool:
        owners = itertools.chain(self._memory.tokens.items(), self._memory.visitors.items())
        return bool(person.begun) or (server_id, person.user_id) in {
            (server.server_id, owner) for (server, _), owner in owners
        }

    def _slug(self, key: ProgressKey) -> str:
        return self._memory.servers[ServerKey(key.organization_id, key.server_id)].slug

    def _walkthrough(self, key: ProgressKey) -> str:
        return next(each.state.key for each in self._memory.walkthroughs.values() if each.id == key.walkthrough_id)

    def _calls(self, organization_id: OrganizationId, users: Collection[UserId], since: Millis) -> Sequence[ToolCall]:
        return [
            call
            for call in self._memory.calls.values()
            if call.caller.server.organization_id == organization_id
            and call.caller.user_id in users
            and call.created_at >= since
        ]

    def _end_of_stretch(self, organization_id: OrganizationId, since: Millis) -> Millis | None:
        times = sorted(
            call.created_at
            for call in self._memory.calls.values()
            if call.caller.server.organization_id == organization_id and call.created_at >= since
        )
        return Millis(max(times[1], since + 1)) if len(times) > 1 else None

    def _forget(self, calls: Sequence[ToolCall]) -> None:
        for call in calls:
            nobody = Caller(call.caller.server, None)
            self._memory.calls[call.id] = call._replace(caller=nobody, client_name=None, client_version=None, input={})


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

    async def version(self, key: VersionKey) -> Version | None:
        return self._memory.version(key)

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
            (progress.version, progress.status)
            for progress in self._on(organization_id, walkthrough_id)
            if progress.status is not Status.MERGED
        )
        return {
            version: VersionPeople(standing[version, Status.IN_PROGRESS], standing[version, Status.COMPLETED])
            for version in {version for version, _ in standing}
        }

    async def standings(self, organization_id: OrganizationId, walkthrough_id: WalkthroughId) -> Sequence[MidWay]:
        people: Counter[tuple[int, StepId, frozenset[str], bool]] = Counter()
        for progress in self._on(organization_id, walkthrough_id):
            if progress.status is Status.IN_PROGRESS and progress.current_step_id is not None:
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
                    came_by_merge = bool(stay.events) and stay.events[0].kind is EventKind.MERGED
                    if stay.events and not came_by_merge and _is_within(cohort, stay.events[0].occurred_at):
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
        last = self.events[-1]
        if self.was_left or (last.kind is EventKind.MERGED and last.from_step_id is None):
            return "moved_on"
        if not self.is_latest:
            return "restarted"
        return "abandoned" if measures.now - self.events[-1].occurred_at >= measures.abandoned_after else "in_progress"
