"""What the use cases need from outside. Each port has one contract suite, run on its fake and on PostgreSQL.

Every method takes the organisation, or a key that begins with it. One method is one transaction. A method
that reaches the database raises `TemporarilyUnavailable` when it cannot be reached in time; the call may then
be repeated as it was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from domain.forecast import Standing as MidWay
from domain.progress import Progress, ProgressEvent, ProgressKey, Transition
from domain.publishing import Change, DraftRevision, LedgerEntry, Walkthrough
from domain.tenancy import (
    Caller,
    CallId,
    Millis,
    OrganizationId,
    Server,
    ServerId,
    ServerKey,
    StepId,
    UserId,
    WalkthroughId,
)
from domain.walkthrough import (
    Assignment,
    Manuscript,
    Publication,
    Version,
    VersionKey,
    WalkthroughType,
)

# ------------------------------------------------------------------------------------------------ the world


class Clock(Protocol):
    """Tells the time. No rule is decided by it."""

    def now(self) -> Millis:
        """The present, in Unix milliseconds."""
        ...


class Ids(Protocol):
    """Makes names that nobody can guess and that never come twice."""

    def new(self, prefix: str) -> str:
        """A nanoid behind `prefix` and an underscore; letters and digits only."""
        ...

    def token(self) -> str:
        """A bearer token of 256 random bits, with a readable prefix."""
        ...


# ------------------------------------------------------------------------------------------------- learning


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """What a list shows of a version."""

    number: int
    title: str
    description: str
    type: WalkthroughType
    step_count: int
    estimated_minutes: int | None


@dataclass(frozen=True, slots=True)
class Standing:
    """A walkthrough on a server, as one caller meets it: fresh from the database at each call."""

    organization_id: OrganizationId
    walkthrough_id: WalkthroughId
    key: str
    publication: Publication
    shown: VersionSummary
    """The version that the caller is on, or the latest where they have not begun."""
    progress: Progress | None

    @property
    def is_visible(self) -> bool:
        """Whether the caller may know of it: it can be started, or they have begun it."""
        return self.publication.is_available or self.progress is not None


class Catalogue(Protocol):
    """The walkthroughs of a server: those assigned to it, and those that the caller has begun there."""

    async def standings(self, caller: Caller) -> Sequence[Standing]:
        """All of them that were ever published, hidden ones included, in display order, then by key."""
        ...

    async def matching(self, caller: Caller, reference: str) -> Sequence[Standing]:
        """Those whose id or key is `reference`, or whose shown title is, letter case aside."""
        ...


class VersionLibrary(Protocol):
    """Content of published versions. It never changes, so it may be served from memory."""

    async def versions(self, keys: Collection[VersionKey]) -> Mapping[VersionKey, Version]:
        """The versions by these keys; unknown keys and drafts are left out."""
        ...


class ProgressStore(Protocol):
    """Keeps where people stand, and every event that led there."""

    async def commit(self, transition: Transition) -> bool:
        """Stores `transition.after` and its events together, in one statement, or nothing.

        Returns whether it did: False when the stored progress is no longer at `transition.before`'s
        revision, or exists although `before` is None. Then someone else was first: read and decide again.
        Repeating a committed transition is False and harmless.
        """
        ...

    async def is_noted(self, key: ProgressKey, attempt: int, step_id: StepId, note: str | None) -> bool:
        """Whether this step was reported stuck with this very note before, in this attempt."""
        ...

    async def events(self, key: ProgressKey) -> Sequence[ProgressEvent]:
        """Everything that happened, by revision."""
        ...


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One answered tool call. `input` is JSON-compatible, bounded and free of NUL and lone surrogates."""

    id: CallId
    caller: Caller
    tool_name: str
    client_name: str | None
    client_version: str | None
    protocol_version: str
    walkthrough_id: WalkthroughId | None
    version: int | None
    step_id: StepId | None
    outcome: str
    """What the caller was told: a status of the contract, `listed`, or `error`."""
    error_code: str | None
    duration_us: int
    input: Mapping[str, Any]
    created_at: Millis


class CallLog(Protocol):
    """The record of every answered tool call."""

    def admit(self) -> AbstractContextManager[Callable[[ToolCall], Awaitable[None]]]:
        """A place for one call, taken before its tool runs, and what records the call: at most once.

        Recording returns when the call is stored; the same id twice is stored once. A call handed in is stored even
        when nobody waits any more, and keeps its place until then. Without one, the place is free at the end.

        Raises:
            TemporarilyUnavailable: on entering, when too many calls have a place already. On recording, when the call
                could not be stored, because the database is away or takes no call of this server: it is gone, say.
        """
        ...

    async def drain(self) -> None:
        """Returns when no call that was handed in waits any more: each is stored, or given up."""
        ...


# ------------------------------------------------------------------------------------------------- identity


class ServerDirectory(Protocol):
    """Which server lives at which host name."""

    async def server_at(self, *, slug: str | None, custom_domain: str | None) -> Server | None:
        """The server with this slug, or else this custom domain; None where there is none."""
        ...


class TokenStore(Protocol):
    """Bearer tokens, known only by their SHA-256. A token is one person's, on one server."""

    async def user_of(self, server: ServerKey, token_hash: bytes) -> UserId | None:
        """Whose token it is; None for an unknown or revoked one, or another server's."""
        ...

    async def issue(self, server: ServerKey, email: str, new_user: UserId, token_hash: bytes, now: Millis) -> UserId:
        """Adds a token for the person with this verified e-mail; `new_user` is the id they get if unknown."""
        ...

    async def revoke(self, server: ServerKey, token_hash: bytes) -> int:
        """Ends this token. Returns how many tokens ended: 1, or 0 where there was none."""
        ...

    async def revoke_all_of(self, server: ServerKey, email: str) -> int:
        """Ends every token that this person has on this server. Returns how many."""
        ...


# ---------------------------------------------------------------------------------- authoring and tenancy


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a walkthrough is to be assigned: a server of the same organisation, and its place in the list."""

    server: ServerKey
    display_order: int | None
    """None keeps the place it has, or puts it last."""


class ContentCheck(Protocol):
    """Judges what an author wrote: the same wherever it comes from, and whatever it is stored for."""

    def __call__(self, manuscript: Manuscript) -> None:
        """Lets it pass as it is. May take seconds for a large walkthrough that it has not seen before.

        Raises:
            ContentRejected: with what is wrong, each with its place in the manuscript.
        """
        ...


@dataclass(frozen=True, slots=True)
class VersionPeople:
    """How many stand on a version."""

    mid_way: int
    completed: int


class WalkthroughStore(Protocol):
    """Where authors keep walkthroughs. It decides nothing: what is to become of one is decided by its caller."""

    async def read(
        self, organization_id: OrganizationId, key: str, *, since: DraftRevision | None = None
    ) -> Walkthrough | None:
        """The walkthrough with this key, as of one moment; None where this organisation has none.

        Its `edits_since` are those recorded after `since`, or after the last push.
        """
        ...

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
        """Reads the walkthrough as `read` does, has its change decided, and stores that, all in one transaction.

        Other authors of the same walkthrough wait meanwhile, so `decide` sees what is stored, is called once, and
        does nothing but decide. With `new_id`, a walkthrough that is not there is begun. At last it is assigned to
        `placements`, and the change that is returned has the assignments, in their order. Whatever `decide` raises
        comes through, and nothing is stored. Of a draft, what differs is written: for one edit at most three links,
        and at most one step beside.

        Raises:
            NotFound: no such walkthrough in this organisation, and no `new_id`.
        """
        ...

    async def ledger(self, organization_id: OrganizationId, walkthrough_id: WalkthroughId) -> Sequence[LedgerEntry]:
        """Everything that was done to it, in order. Nothing in it ever changes."""
        ...

    async def people(
        self, organization_id: OrganizationId, walkthrough_id: WalkthroughId
    ) -> Mapping[int, VersionPeople]:
        """How many people are on each version, by its number; versions that nobody is on are left out."""
        ...

    async def standings(self, organization_id: OrganizationId, walkthrough_id: WalkthroughId) -> Sequence[MidWay]:
        """Everybody mid-way, those who stand alike counted together; in no particular order."""
        ...


class AssignmentStore(Protocol):
    """Which walkthroughs are on which servers, and in which order. Every method is one transaction, all or nothing."""

    async def assign(
        self, organization_id: OrganizationId, key: str, placements: Sequence[Placement], now: Millis
    ) -> Sequence[Assignment]:
        """Puts the walkthrough with this key on these servers. Repeating it changes nothing.

        Raises:
            NotFound: no such walkthrough in this organisation.
        """
        ...

    async def unassign(self, organization_id: OrganizationId, key: str, servers: Sequence[ServerKey]) -> Sequence[bool]:
        """Takes it from these servers; whether it was there, for each. Nobody's progress goes with it.

        Raises:
            NotFound: no such walkthrough in this organisation.
        """
        ...

    async def set_enabled(
        self, organization_id: OrganizationId, key: str, servers: Sequence[ServerKey], *, is_enabled: bool
    ) -> Sequence[bool]:
        """Shows or hides it on these servers; whether that changed anything, for each.

        Raises:
            NotFound: no such walkthrough in this organisation, or it is not on one of these servers.
        """
        ...

    async def order(self, server: ServerKey, first: Sequence[str]) -> Sequence[str]:
        """Puts the walkthroughs with these keys at the top of the server's list, and returns the keys of all of it.

        Raises:
            NotFound, InvalidValue: as `domain.walkthrough.in_order`.
        """
        ...


class TenantStore(Protocol):
    """Organisations and their servers."""

    async def create_organization(self, id: OrganizationId, slug: str, name: str, now: Millis) -> None:
        """Raises: AlreadyExists."""
        ...

    async def create_server(self, server: Server, now: Millis) -> None:
        """Raises: AlreadyExists (slug or custom domain is taken, by any organisation)."""
        ...

    async def organization(self, slug: str) -> OrganizationId | None:
        """The id behind a slug."""
        ...

    async def server(self, slug: str) -> ServerListing | None:
        """The server with this slug, whoever's it is."""
        ...

    async def servers(self, organization_id: OrganizationId | None) -> Sequence[ServerListing]:
        """The servers of one organisation, or of all, by organisation and slug."""
        ...


@dataclass(frozen=True, slots=True)
class ServerListing:
    """A server as the operator's list shows it."""

    organization_slug: str
    server: Server
    assigned: int
    """How many walkthroughs are on it."""


# -------------------------------------------------------------------------------------------------- insight


@dataclass(frozen=True, slots=True)
class Cohort:
    """Which attempts are counted; the terms are defined in `application.insight`. None leaves a choice open."""

    version: int | None
    server_id: ServerId | None
    since: Millis | None
    """Those that began then or later."""
    until: Millis | None
    """Those that began before."""


@dataclass(frozen=True, slots=True)
class Measures:
    """The lengths by which attempts are judged, in milliseconds, and the moment at which they are."""

    now: Millis
    pause: Millis
    too_fast: Millis
    abandoned_after: Millis
    max_notes: int


@dataclass(frozen=True, slots=True)
class AttemptCounts:
    """How many attempts; `people` counts the persons who made them."""

    people: int
    started: int
    completed: int
    in_progress: int
    abandoned: int
    restarted: int
    moved_on: int
    resumed: int
    skipped: int
    stuck: int
    too_fast: int


@dataclass(frozen=True, slots=True)
class StepCounts:
    """How many attempts, at the step with this key."""

    key: str
    reached: int
    completed: int
    here: int
    skipped: int
    stuck: int
    too_fast: int
    timed: int
    median_active: Millis | None
    """Over the `timed` attempts; None where there are none."""


@dataclass(frozen=True, slots=True)
class StuckNote:
    """What somebody wrote who was stuck. Text of theirs: anything may be in it."""

    step_key: str
    version: int
    note: str
    reported_at: Millis


@dataclass(frozen=True, slots=True)
class Counts:
    """What the events of a cohort add up to."""

    attempts: AttemptCounts
    steps: Mapping[str, StepCounts]
    """By key; a step at which nothing happened is left out."""
    note_count: int
    notes: Sequence[StuckNote]
    """The newest of them, newest first."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A walkthrough to be counted. `latest_version` is None where it was never published."""

    walkthrough_id: WalkthroughId
    latest_version: int | None


class Funnels(Protocol):
    """Adds up what happened, from the progress events alone."""

    async def subject(self, organization_id: OrganizationId, key: str) -> Subject | None:
        """The organisation's walkthrough with this key; None where there is none."""
        ...

    async def counts(
        self, organization_id: OrganizationId, walkthrough_id: WalkthroughId, cohort: Cohort, measures: Measures
    ) -> Counts:
        """All numbers of one cohort, as of one moment. Reads, and may take some seconds over a million events."""
        ...
