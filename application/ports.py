"""What the use cases need from outside. Each port has one contract suite, run on its fake and on PostgreSQL.

Every method takes the organisation, or a key that begins with it. One method is one transaction. A method
that reaches the database raises `TemporarilyUnavailable` when it cannot be reached in time; the call may then
be repeated as it was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from application.limits import Limit
from domain.oauth import Site
from domain.progress import Merge, Progress, ProgressEvent, ProgressKey, Transition
from domain.sign_in import IdentityKey, OidcProvider, SignInState
from domain.tenancy import (
    AuthMode,
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
    hash_of,
)
from domain.walkthrough import (
    Assignment,
    Manuscript,
    Outline,
    Publication,
    Step,
    Version,
    VersionKey,
    WalkthroughType,
)

if TYPE_CHECKING:  # what authors do, which a service has no need to load
    from domain.forecast import Standing as MidWay
    from domain.publishing import Change, DraftRevision, LedgerEntry, Walkthrough

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

    def token(self, prefix: str = "cairn") -> str:
        """A bearer token, or the like, of 256 random bits, behind a readable prefix."""
        ...

    def code(self) -> str:
        """Six random digits, for a person to read and to type."""
        ...

    def visitor(self) -> str:
        """128 random bits, as 22 characters that URLs take."""
        ...


# ------------------------------------------------------------------------------------------------- learning


# Tuples, as those below: a list makes one of each a row, and of a frozen dataclass that takes twice as long.
class VersionSummary(NamedTuple):
    """What a list shows of a version."""

    number: int
    title: str
    description: str
    type: WalkthroughType
    step_count: int
    estimated_minutes: int | None


class Standing(NamedTuple):
    """A walkthrough on a server, as one caller meets it."""

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
        """All of them that were ever published, hidden ones included, in display order, then by key.

        A visitor's progress that has ended, because they go on in an account, is none.
        """
        ...

    async def matching(self, caller: Caller, reference: str) -> Sequence[Standing]:
        """The one whose id is `reference`, or else whose key is, or else all of this shown title, letter case aside."""
        ...


class VersionLibrary(Protocol):
    """Content of published versions, as much of it as is needed. It never changes, so it may be served from memory."""

    async def outlines(self, keys: Collection[VersionKey]) -> Mapping[VersionKey, Outline]:
        """What rules need of these versions; unknown keys and drafts are left out."""
        ...

    async def step(self, version: VersionKey, step_id: StepId) -> Step | None:
        """A step with all that is written in it; None where there is no such step, and in a draft."""
        ...


class ToolCall(NamedTuple):
    """A tool call, as it was answered if the answer was not lost.

    `input` is JSON-compatible, bounded and free of NUL and lone surrogates.
    """

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


class ProgressStore(Protocol):
    """Keeps where people stand, and every event that led there."""

    async def commit(self, transition: Transition, publication: Publication, call: ToolCall | None = None) -> bool:
        """Stores `transition.after`, its events and the person's `call` together, in one statement, or nothing.

        Returns whether it did: False when the stored progress is no longer `transition.before`, or exists although
        that is None; when a visitor begins who is in an account by now; when the walkthrough is no longer published as
        `publication` says; and while the server is being deleted. Then someone else was first: read and decide again.
        So a decision may be made on what is not fresh. Repeating a committed transition is False and harmless.
        """
        ...

    async def is_noted(self, key: ProgressKey, attempt: int, step_id: StepId, note: str | None) -> bool:
        """Whether this step was reported stuck with this very note before, in this attempt."""
        ...

    async def events(self, key: ProgressKey) -> Sequence[ProgressEvent]:
        """Everything that happened, by revision."""
        ...


class CallLog(Protocol):
    """The record of every answered tool call, but of those that `ProgressStore.commit` records."""

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


class Bearer(NamedTuple):
    """Who sends a token, and what the token is for."""

    user_id: UserId
    scope: frozenset[str]


@dataclass(frozen=True, slots=True)
class TokenListing:
    """A token that an operator gave out, or a grant: what a person let a client do, with all tokens that came of it."""

    server: str
    """Its slug."""
    user_id: UserId
    email: str | None
    grant_id: str | None
    """None, like the client: a token that an operator gave out."""
    client_id: str | None
    client_name: str | None
    """As the client calls itself. Text of theirs: anything may be in it."""
    scope: str
    created_at: Millis
    ends_at: Millis | None
    """When it ends unless it is used; None for never."""


class TokenStore(Protocol):
    """Bearer tokens, known only by their SHA-256. A token is one person's, on one server."""

    async def bearer_of(self, server: ServerKey, token_hash: bytes, now: Millis) -> Bearer | None:
        """Whose token it is; None for an unknown, revoked or expired one, or another server's. One query."""
        ...

    async def issue(self, server: ServerKey, email: str, new_user: UserId, token_hash: bytes, now: Millis) -> UserId:
        """Adds a token for the person with this verified e-mail; `new_user` is the id they get if unknown."""
        ...

    async def listed(
        self,
        organization_id: OrganizationId,
        server_id: ServerId | None,
        user_id: UserId | None,
        now: Millis,
        limit: int,
    ) -> Sequence[TokenListing]:
        """What is good now, of one server or of all, of one person or of everybody: the newest first, at most
        `limit`."""
        ...

    async def revoke(self, server: ServerKey, token_hash: bytes, now: Millis) -> int:
        """Ends this token, and with a client's the whole grant. Returns how many ended: 1, or 0 for no token."""
        ...

    async def revoke_all_of(self, server: ServerKey, email: str, now: Millis) -> int:
        """Ends every token and grant that this person has on this server. Returns how many, a grant counting once."""
        ...

    async def revoke_grant(self, server: ServerKey, grant_id: str, now: Millis) -> int:
        """Ends this grant. Returns how many ended: 1, or 0 where there was none that was still good."""
        ...

    async def revoke_client(self, server: ServerKey, client: str, now: Millis) -> int:
        """Ends every grant on this server of the clients with this id or name. Returns how many."""
        ...


# -------------------------------------------------------------------------------------------------- sign-in


class RateLimiter(Protocol):
    """Counts what is done, by whom."""

    async def hit(self, limit: Limit, *who: str) -> None:
        """Counts one more; `who` is everything that the count is kept by.

        Raises:
            TooManyRequests: when it is one too many; then it is not counted.
        """
        ...


# The authorization server

Parameters = Sequence[tuple[str, str]]
"""The parameters of a query or a form, as they came: in order, and with those that came twice."""


@dataclass(frozen=True, slots=True)
class OAuthAnswer:
    """What the protocol answers: JSON, or for a browser a `location` to go to, or neither where no redirect is safe."""

    status: int
    body: Mapping[str, Any]
    location: str | None = None
    challenge: str | None = None
    """WWW-Authenticate, where a client is to say who it is."""


@dataclass(frozen=True, slots=True)
class SignInKey:
    """Names a sign-in under way: by what its pages carry, and by the browser that began it. Both are secrets, so
    these are their SHA-256. Whoever has one without the other has nothing."""

    server: ServerKey
    id_hash: bytes
    browser_hash: bytes

    @classmethod
    def of(cls, server: ServerKey, id: str, browser: str) -> SignInKey:
        """By the secrets themselves."""
        return cls(server, hash_of(id), hash_of(browser))


class AuthorizationServer(Protocol):
    """OAuth 2.1 on the host of each server. A refusal is an answer: what it changed (a family revoked) is stored."""

    async def authorize(self, site: Site, parameters: Parameters, key: SignInKey, now: Millis) -> OAuthAnswer | None:
        """Begins a sign-in for the client that asks (RFC 6749 section 4.1.1). None: it is begun, and nothing was said
        to the client yet."""
        ...

    async def finish(self, site: Site, key: SignInKey, user: UserId | None, now: Millis) -> OAuthAnswer:
        """Ends the sign-in by sending the browser back to the client: with a code for `user`, or, for None, with
        `access_denied`. Without a location: it was over already."""
        ...

    async def token(self, site: Site, parameters: Parameters, authorization: str | None, now: Millis) -> OAuthAnswer:
        """RFC 6749 sections 4.1.3 and 6. `authorization` is the header of that name."""
        ...

    async def revoke(self, site: Site, parameters: Parameters, authorization: str | None, now: Millis) -> OAuthAnswer:
        """RFC 7009."""
        ...

    async def register(self, site: Site, metadata: Mapping[str, Any], now: Millis) -> OAuthAnswer:
        """RFC 7591. Clients that were never used within 30 days of it are forgotten on the way, as in `authorize`."""
        ...

    async def wants_document(self, site: Site, client_id: str, now: Millis) -> bool:
        """Whether this client is one that is known by a document of its own, and that was not read of late."""
        ...

    async def keep_document(self, site: Site, client_id: str, document: Mapping[str, Any] | None, now: Millis) -> None:
        """Takes what such a client says of itself; None, or what cannot be: it is unknown until it is read again.
        Sign-ins that it has begun are not."""
        ...


class ClientDocuments(Protocol):
    """Client-id metadata documents on the web (draft-ietf-oauth-client-id-metadata-document)."""

    async def fetch(self, client_id: str) -> Mapping[str, Any] | None:
        """The JSON object at this https URL; None where there is none that can be taken. Never asks a private address,
        never follows a redirect, ends within 5 s.

        Raises:
            DocumentAway: when it cannot be had at present, or could not a moment ago.
        """
        ...


# Identity providers


@dataclass(frozen=True, slots=True)
class ProvenIdentity:
    """Whom an identity provider vouches for. `subject` is the provider's name for them, 1 to 255 characters."""

    issuer: str
    subject: str
    email: str | None
    """As Cairn compares addresses; None where the provider gave none."""
    is_email_verified: bool
    """Whether the provider says that the address is theirs. Otherwise it is worth nothing."""


class IdentityProvider(Protocol):
    """Signs people in elsewhere (OpenID Connect Core 1.0, authorization code flow). Nothing of it is stored."""

    async def begin(self, provider: OidcProvider, return_to: str, state: str, nonce: str, verifier: str) -> str:
        """The URL at the provider to send the browser to. It comes back to `return_to`, with `state`.

        `nonce` and `verifier` are secrets of this one sign-in, at least 43 characters that URLs take (RFC 7636).

        Raises:
            SignInFailed: when the provider cannot be reached, or does not describe itself.
        """
        ...

    async def complete(
        self, provider: OidcProvider, return_to: str, parameters: Parameters, nonce: str, verifier: str
    ) -> ProvenIdentity:
        """Whom the provider vouches for by sending the browser back with `parameters`, whose state is known already.

        Raises:
            SignInFailed: when it vouches for nobody, or what it says cannot be trusted.
        """
        ...

    async def check(self, provider: OidcProvider) -> None:
        """Asks the provider to describe itself, afresh.

        Raises:
            InvalidValue: when people could not sign in with it, and why.
        """
        ...


# Signing in


@dataclass(frozen=True, slots=True)
class SignInUnderWay:
    """A sign-in as it is stored. `visitor` is the one who keeps their progress by it."""

    state: SignInState
    visitor: UserId | None


class SignInStore(Protocol):
    """Sign-ins under way. It decides nothing. One that has ended, by time too, is one that never was."""

    async def begin_keeping(self, key: SignInKey, visitor: UserId, state: SignInState, now: Millis) -> None:
        """Begins one for a visitor of this server. One that a client asks for is begun by the `AuthorizationServer`."""
        ...

    async def read(self, key: SignInKey, now: Millis) -> SignInUnderWay | None:
        """The one by this key; None where there is none."""
        ...

    async def change(
        self, key: SignInKey, decide: Callable[[SignInState], SignInState], now: Millis
    ) -> SignInUnderWay | None:
        """Reads it, has its next state decided, and stores that, all in one transaction; returns it as it is then.

        Whoever else wants to change it waits meanwhile, so `decide` sees what is stored, is called once, and does
        nothing but decide. None, and nothing is decided, where there is none.
        """
        ...


class People(Protocol):
    """Who is who in an organisation."""

    async def person(
        self, organization_id: OrganizationId, identity: IdentityKey | None, email: str, new_user: UserId, now: Millis
    ) -> UserId:
        """The person who has just proved that this address is theirs, and this identity at a provider, if given.

        `domain.sign_in.whose` says who that is; `new_user` is the id they get if unknown. Both are how they are known
        from now on, and they were seen `now`. However many ask at once for the first time, they are one person.
        """
        ...


class Mailer(Protocol):
    """Sends messages to people."""

    @property
    def where(self) -> str | None:
        """A sentence that says where messages are found, where that is not their mailbox."""
        ...

    async def send(self, to: str, subject: str, text: str) -> bool:
        """Hands one message in, plain text of any length; whether that was possible. Ends within 10 s."""
        ...


# Visitors


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who has a personal address of a server."""

    user_id: UserId
    merged_into: UserId | None
    """Whose account has their progress by now."""


class VisitorStore(Protocol):
    """Visitors of a server, known only by the SHA-256 of the id in their personal address."""

    async def add(self, server: ServerKey, visitor_hash: bytes, new_user: UserId, now: Millis) -> None:
        """Adds a visitor, who is a user without an e-mail address.

        Others of the organisation, who were added longer than `UNUSED_VISITOR_LIFETIME` ago and have begun nothing, are
        forgotten on the way: a few, and all in time.
        """
        ...

    async def find(self, server: ServerKey, visitor_hash: bytes) -> Visitor | None:
        """Whose address this is; None for nobody's, and for another server's. One query."""
        ...

    async def merge(
        self, server: ServerKey, visitor: UserId, account: UserId, merges: Sequence[Merge]
    ) -> UserId | None:
        """Stores all of `merges` together, and that the visitor is in this account from now on; or nothing.

        Returns whose account the visitor is in. Where that is another one, or this one since before, nothing was done.
        None where the merges are not of all that the visitor has begun on this server, or either side has moved since
        they were decided: read and decide again. Nothing can be begun or moved on a visitor who is in an account.

        Raises:
            NotFound: no such visitor on this server, or no such person in the organisation.
        """
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

    async def version(self, key: VersionKey) -> Version | None:
        """The whole content of a published version; None where this organisation has no such one."""
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

    async def set_auth_mode(self, server: ServerKey, auth_mode: AuthMode) -> AuthMode:
        """Changes who may call a server. Returns the mode it had.

        Raises:
            NotFound: no such server.
        """
        ...

    async def set_provider(self, organization_id: OrganizationId, provider: OidcProvider | None, now: Millis) -> bool:
        """Makes this the organisation's provider; None takes it away. Returns whether there was one before."""
        ...

    async def provider(self, organization_id: OrganizationId) -> OidcProvider | None:
        """The identity provider of an organisation's own; None where it has none."""
        ...


@dataclass(frozen=True, slots=True)
class ServerListing:
    """A server as the operator's list shows it."""

    organization_slug: str
    server: Server
    assigned: int
    """How many walkthroughs are on it."""
    provider: OidcProvider | None = None
    """The organisation's own identity provider."""


# ------------------------------------------------------------------------------------------- personal data


@dataclass(frozen=True, slots=True)
class PersonSummary:
    """Somebody, as a list shows them. Without an e-mail address they are a visitor."""

    user_id: UserId
    email: str | None
    first_seen_at: Millis
    last_seen_at: Millis
    begun: int
    """How many walkthroughs they have begun, counted by server; a merged one is counted in the account."""
    completed: int


@dataclass(frozen=True, slots=True)
class Begun:
    """A walkthrough that somebody has begun on a server, and all that happened, by revision."""

    server: str
    """Its slug."""
    walkthrough: str
    """Its key."""
    progress: Progress
    events: Sequence[ProgressEvent]


@dataclass(frozen=True, slots=True)
class PersonalRecord:
    """All that is stored about one person, but for their calls; the secrets that are stored as hashes are left out.

    The rows are JSON-compatible, by column name, each with the slug of its `server` where it has one.
    """

    user_id: UserId
    email: str | None
    users: Sequence[Mapping[str, Any]]
    """The person's own row, and those of the visitors who are in their account."""
    identities: Sequence[Mapping[str, Any]]
    begun: Sequence[Begun]
    grants: Sequence[Mapping[str, Any]]
    """Each with its `codes` and `refresh_tokens`."""
    tokens: Sequence[Mapping[str, Any]]
    sign_ins: Sequence[Mapping[str, Any]]
    """Those under way in which the person is named."""

    @property
    def user_ids(self) -> Sequence[UserId]:
        """The person, and the visitors in their account."""
        return [row["id"] for row in self.users]


@dataclass(frozen=True, slots=True)
class ForgottenCalls:
    """A stretch of the call log that somebody has been taken out of."""

    calls: int
    """How many were theirs."""
    next: Millis | None
    """Where the next stretch begins; None: this was the last."""


class PersonalDataStore(Protocol):
    """What is stored about people, to be shown to them, handed over and erased."""

    async def people(
        self, organization_id: OrganizationId, server_id: ServerId | None, after: str | None, limit: int
    ) -> Sequence[PersonSummary]:
        """At most `limit` people behind `after`, an address or a visitor's id: by address, then visitors by id.

        With a server, those who have begun something there, or were let in, with what they did there. Visitors who are
        in an account are left out.
        """
        ...

    async def find(self, organization_id: OrganizationId, who: str) -> UserId | None:
        """The person with this verified address, in lower case, or this id; None where this organisation has none."""
        ...

    async def record(self, organization_id: OrganizationId, user_id: UserId) -> PersonalRecord | None:
        """All that is stored about this person, but for their calls, as of one moment."""
        ...

    async def calls(
        self, organization_id: OrganizationId, users: Collection[UserId], since: Millis
    ) -> tuple[Sequence[ToolCall], Millis | None]:
        """The calls of these in one bounded stretch of the log, and where the next one begins; None: nowhere."""
        ...

    async def forget_calls(
        self, organization_id: OrganizationId, users: Collection[UserId], since: Millis
    ) -> ForgottenCalls:
        """Takes these out of one such stretch: of their calls, who made them, with which client, and what was sent is
        gone; that they were made stays. May be repeated."""
        ...

    async def erase(
        self, organization_id: OrganizationId, users: Collection[UserId], calls_since: Millis
    ) -> int | None:
        """Deletes these with all that is theirs, and takes them out of the calls since then, or does nothing.

        Returns how many calls those were. None, and nothing was done, where they are no longer one person with all the
        visitors in their account: read again.
        """
        ...


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
