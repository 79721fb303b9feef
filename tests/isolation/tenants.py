"""Organisations that hold the same, and all the names by which something of theirs can be asked for.

A probe is an action by names. Which of them are somebody else's is chosen for it: so it is one and the same action with
one's own names, with another organisation's among them, and with names that nobody has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set
from dataclasses import dataclass, fields, replace

from adapters.postgres.authorization import PostgresAuthorizationServer
from adapters.postgres.connections import Database
from adapters.postgres.people import PostgresPersonalDataStore
from adapters.postgres.sign_in import PostgresPeople, PostgresSignInStore
from adapters.postgres.tenancy import RecentServers
from adapters.postgres.visitors import PostgresVisitorStore
from adapters.system import RandomIds
from application.ports import OidcProvider, SignInKey
from domain.oauth import Site
from domain.progress import Outcome, Progress, ProgressKey, StepHandle
from domain.sign_in import IdentityKey, SignInState
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
from domain.walkthrough import PublishPolicy
from tests.calls import record, tool_call
from tests.contracts.test_authorization import REDIRECT, Host
from tests.worlds import World, manuscript, on_postgres

NOW = Millis(2_000_000_000_000)
"""Whatever is under way was begun now, and has time left however slow the tests are."""
ISSUER = "https://login.example.com"
SHARED_EMAIL = "ada@example.com"
SHARED_KEY = "tour"


@dataclass(frozen=True)
class Names:
    """Names of what one organisation has on one server; of each kind there is one that only they have."""

    organization: str
    organization_id: OrganizationId
    slug: str
    server_id: ServerId
    email: str
    user_id: UserId
    subject: str
    """What the identity provider calls the same person."""
    key: str
    title: str
    walkthrough_id: WalkthroughId
    step_id: StepId
    """Where the person stands in it."""
    handle: str
    untaken_id: WalkthroughId
    """Of a walkthrough that they have not begun."""
    token: str
    """An operator has given it out."""
    client_id: str
    client_name: str
    document_url: str
    """By which another client is known."""
    grant_id: str
    access_token: str
    refresh_token: str
    code: str
    request: str
    """A sign-in that a client has asked for."""
    browser: str
    """The cookie of the browser in which it, and `keeping`, is under way."""
    keeping: str
    """A sign-in of the visitor's."""
    visitor: str
    visitor_id: UserId

    @property
    def server(self) -> ServerKey:
        return ServerKey(self.organization_id, self.server_id)

    @property
    def site(self) -> Site:
        server = Server(self.server, "any", "Any", AuthMode.ANONYMOUS)
        return Site(server, "https://any.example.com")

    @property
    def caller(self) -> Caller:
        return Caller(self.server, self.user_id)

    @property
    def progress_key(self) -> ProgressKey:
        return ProgressKey(self.organization_id, self.server_id, self.user_id, self.walkthrough_id)

    @property
    def request_key(self) -> SignInKey:
        return SignInKey(self.server, sha256(self.request), sha256(self.browser))

    @property
    def keeping_key(self) -> SignInKey:
        return SignInKey(self.server, sha256(self.keeping), sha256(self.browser))

    def borrowing(self, others: Names, these: Set[str]) -> Names:
        """With `these` of another's."""
        return replace(self, **{name: getattr(others, name) for name in these})

    def hidden(self, text: str, these: Set[str]) -> str:
        """The text without `these`, in whichever form: what is left is the same, whoever bears them."""
        values = {str(getattr(self, name)): name for name in these}
        if "handle" in these:
            walkthrough_id, _, step_id, *_ = self.handle.split(".")
            values |= {walkthrough_id: "handle's walkthrough", step_id: "handle's step"}
        for value in sorted(values, key=len, reverse=True):
            for form in (value, sha256(value).hex()):
                text = text.replace(form, f"<{values[value]}>")
        return text


KINDS = tuple(field.name for field in fields(Names))
OF_AN_ORGANIZATION = frozenset({"organization", "organization_id"})
"""Kinds that say whose everything else is; these are never mixed: one's own organisation is what asks."""
OF_A_SERVER = frozenset(
    {"token", "client_id", "grant_id", "access_token", "refresh_token", "code", "request", "browser", "keeping"}
    | {"visitor", "visitor_id"}
)
"""Kinds that belong to one server of an organisation, and are worth nothing on its others."""


class Noted(Names):
    """Names that take note of which of them were asked for."""

    asked: set[str]

    @classmethod
    def of(cls, names: Names) -> Noted:
        noted = cls(**{kind: getattr(names, kind) for kind in KINDS})
        object.__setattr__(noted, "asked", set())
        return noted

    def __getattribute__(self, name: str) -> object:
        if name in KINDS:
            self.asked.add(name)
        return super().__getattribute__(name)


def sha256(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


@dataclass
class Stores:
    """Every port that PostgreSQL stands behind, once for all organisations, as in a process of the service."""

    database: Database

    def __post_init__(self) -> None:
        database = self.database
        self.world: World = on_postgres(database, ids=RandomIds())
        self.world.servers = RecentServers(self.world.servers)
        self.world.clock.time = NOW
        self.sign_ins = PostgresSignInStore(database)
        self.people = PostgresPeople(database)
        self.visitors = PostgresVisitorStore(database)
        self.personal = PostgresPersonalDataStore(database)
        self.authorization = PostgresAuthorizationServer(database, RandomIds())


async def settle(at: Stores, organization: str, slug: str | None = None) -> Names:
    """Founds an organisation, or gives it one more server, and lets people do all there that can be done.

    Everything has the same shape and order everywhere; a walkthrough and a person bear the same names everywhere.
    """
    world, ids = at.world, RandomIds()
    is_new = slug is None
    slug = slug or organization
    server = await world.server(organization, slug, auth_mode=AuthMode.ANONYMOUS, name=f"The {slug} guides")
    if is_new:
        provider = OidcProvider(ISSUER, f"cairn-{slug}", f"secret-of-{slug}", f"Log in to {slug}")
        await world.tenants.set_provider(server.key.organization_id, provider, NOW)
    key, title = f"{slug}-only", f"What {slug} only has"
    for steps in (("one", "two", "three"), ("one", "two", "extra", "three")):
        await world.publish(
            *steps, key=key, title=title, organization=organization, policy=PublishPolicy.OFFER, servers=(slug,)
        )
        if is_new or len(steps) == 3:
            await world.publish(*steps, key=SHARED_KEY, organization=organization, servers=(slug,))
    draft = manuscript("one", "draft", key=key, title=title)
    await world.authoring.push(organization, draft, publish=None, servers=[], by="author@example.com")

    async def taken(caller: Caller, walkthrough: str = key) -> Progress:
        lesson = await world.learning.select(caller, walkthrough, restart=False, to_latest=False)
        for outcome in (Outcome.DONE, Outcome.STUCK):
            handle = str(lesson.progress.handle())
            note = f"{slug} is hard" if outcome is Outcome.STUCK else None
            lesson = await world.learning.next(caller, handle, None, outcome=outcome, note=note)
        return lesson.progress

    email = f"ada@{slug}.example.com"
    ada = await world.caller(server, email)
    assert ada.user_id is not None
    progress = await taken(ada)
    assert progress.current_step_id is not None
    await taken(await world.caller(server, SHARED_EMAIL), SHARED_KEY)
    await record(world.calls, tool_call(ada, input={"walkthrough": key}, client_name=f"Editor of {slug}"))
    subject = f"ada-of-{slug}"
    await at.people.person(server.key.organization_id, IdentityKey(ISSUER, subject), email, ada.user_id, NOW)
    untaken = await world.walkthroughs.read(server.key.organization_id, SHARED_KEY)
    assert untaken is not None

    visitor, visitor_id = ids.visitor(), UserId(ids.new("usr"))
    await at.visitors.add(server.key, sha256(visitor), visitor_id, NOW)
    await taken(Caller(server.key, visitor_id))

    host = Host(world, server, at.authorization, ada.user_id, now=NOW)
    client_name, document_url = f"Editor of {slug}", f"https://{slug}.example.com/client.json"
    host.client_id = (await host.register(client_name=client_name))["client_id"]
    document = {"client_id": document_url, "client_name": "Docs", "redirect_uris": [REDIRECT]}
    await at.authorization.keep_document(host.site, document_url, document, NOW)
    tokens, code = await host.sign_in(), await host.code()
    (_, granted) = [
        each
        for each in await world.tokens.listed(server.key.organization_id, server.key.server_id, None, NOW, 10)
        if each.grant_id is not None
    ]
    assert granted.grant_id is not None
    names = Names(
        organization=organization,
        organization_id=server.key.organization_id,
        slug=slug,
        server_id=server.key.server_id,
        email=email,
        user_id=ada.user_id,
        subject=subject,
        key=key,
        title=title,
        walkthrough_id=progress.key.walkthrough_id,
        step_id=progress.current_step_id,
        handle=str(progress.handle()),
        untaken_id=untaken.id,
        token=await world.identity.create_token(server.key, email),
        client_id=host.client_id,
        client_name=client_name,
        document_url=document_url,
        grant_id=granted.grant_id,
        access_token=tokens["access_token"],
        refresh_token=tokens["refresh_token"],
        code=code,
        request=ids.token("")[1:],
        browser=ids.token("")[1:],
        keeping=ids.token("")[1:],
        visitor=visitor,
        visitor_id=visitor_id,
    )
    assert await host.ask(names.request_key) is None
    await at.sign_ins.begin_keeping(names.keeping_key, visitor_id, SignInState.keeping(), NOW)
    return names


def nobodys(names: Names) -> Names:
    """Names like these that nobody has, and as long."""

    def unlike(value: str) -> str:
        prefix, separator, _ = value.rpartition("_")
        start = f"{prefix}{separator}"
        return start + "0" * (len(value) - len(start))

    walkthrough_id, step_id = WalkthroughId(unlike(names.walkthrough_id)), StepId(unlike(names.step_id))
    own = {
        "organization": "empty",
        "slug": "empty",
        "email": "ada@empty.example.com",
        "subject": "ada-of-empty",
        "key": "empty-only",
        "title": "What empty only has",
        "client_name": "Editor of empty",
        "document_url": "https://empty.example.com/client.json",
        "handle": str(StepHandle(walkthrough_id, 1, step_id, 1)),
        "untaken_id": unlike(names.untaken_id)[:-1] + "1",
        "visitor_id": unlike(names.visitor_id)[:-1] + "1",
        "keeping": "1" * 43,
        "browser": "2" * 43,
        "access_token": "cairn_" + "3" * 43,
    }
    return Names(**{kind: own.get(kind) or unlike(getattr(names, kind)) for kind in KINDS})  # type: ignore[arg-type]
