"""A world to test use cases and contracts in: all the ports, in memory or on PostgreSQL, and the use cases on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from adapters.content.check import check_manuscript
from adapters.postgres.assignments import PostgresAssignmentStore
from adapters.postgres.authoring import PostgresWalkthroughStore
from adapters.postgres.call_log import PostgresCallLog
from adapters.postgres.connections import Database
from adapters.postgres.insight import PostgresFunnels
from adapters.postgres.learning import PostgresCatalogue, PostgresProgressStore, PostgresVersionLibrary
from adapters.postgres.tenancy import PostgresServerDirectory, PostgresTenantStore, PostgresTokenStore
from application.authoring import Authoring
from application.identity import Identity
from application.insight import Insight
from application.learning import Learning
from application.ports import (
    AssignmentStore,
    CallLog,
    Catalogue,
    Funnels,
    Ids,
    ProgressStore,
    ServerDirectory,
    TenantStore,
    TokenStore,
    VersionLibrary,
    WalkthroughStore,
)
from application.tenancy import Tenancy
from domain.tenancy import AuthMode, Caller, Server
from domain.walkthrough import Manuscript, PublishPolicy, StepText, WalkthroughType
from tests import fakes


@dataclass
class World:
    tenants: TenantStore
    walkthroughs: WalkthroughStore
    assignments: AssignmentStore
    catalogue: Catalogue
    library: VersionLibrary
    progress: ProgressStore
    calls: CallLog
    servers: ServerDirectory
    tokens: TokenStore
    funnels: Funnels
    clock: Any = field(default_factory=fakes.SetClock)
    ids: Ids = field(default_factory=fakes.CountedIds)

    def __post_init__(self) -> None:
        self.tenancy = Tenancy(self.tenants, self.ids, self.clock)
        self.authoring = Authoring(
            self.walkthroughs,
            self.assignments,
            self.library,
            check_manuscript,
            self.tenancy,
            self.ids,
            self.clock,
        )
        self.identity = Identity(self.tokens, self.ids, self.clock)
        self.learning = Learning(self.catalogue, self.library, self.progress, self.clock)
        self.insight = Insight(self.funnels, self.library, self.tenancy, self.clock)

    async def server(self, organization: str = "acme", slug: str = "guides", **given: object) -> Server:
        """A server, and its organisation if there is none yet."""
        if await self.tenants.organization(organization) is None:
            await self.tenancy.create_organization(organization)
        values = {"auth_mode": AuthMode.ON_DEMAND, "name": None, "custom_domain": None, **given}
        return await self.tenancy.create_server(organization, slug, **values)  # type: ignore[arg-type]

    async def caller(self, server: Server, email: str = "ada@example.com") -> Caller:
        """A person who has signed in on a server."""
        token = await self.identity.create_token(server.key, email)
        bearer = await self.identity.bearer_of(server.key, token)
        assert bearer is not None
        return Caller(server.key, bearer.user_id)

    async def publish(
        self,
        *steps: str,
        key: str = "tour",
        title: str = "The tour",
        organization: str = "acme",
        policy: PublishPolicy = PublishPolicy.KEEP,
        servers: tuple[str, ...] = ("guides",),
        by: str = "author@example.com",
    ) -> int:
        """Publishes a walkthrough with steps of these keys, and returns the version's number."""
        stored = await self.authoring.push(
            organization,
            manuscript(*steps, key=key, title=title),
            publish=policy,
            servers=[(slug, None) for slug in servers],
            by=by,
        )
        return stored.version


def manuscript(*steps: str, key: str = "tour", title: str = "The tour") -> Manuscript:
    """A small walkthrough with steps of these keys."""
    return Manuscript(
        key=key,
        title=title,
        description="Shows around.",
        type=WalkthroughType.COURSE,
        steps=tuple(StepText(step, f"Step {step}", f"Do {step}.", estimated_minutes=2) for step in steps),
    )


def in_memory(memory: fakes.Memory | None = None, **given: Any) -> World:
    memory = memory or fakes.Memory()
    return World(
        tenants=fakes.MemoryTenantStore(memory),
        walkthroughs=fakes.MemoryWalkthroughStore(memory),
        assignments=fakes.MemoryAssignmentStore(memory),
        catalogue=fakes.MemoryCatalogue(memory),
        library=fakes.MemoryVersionLibrary(memory),
        progress=fakes.MemoryProgressStore(memory),
        calls=fakes.MemoryCallLog(memory),
        servers=fakes.MemoryServerDirectory(memory),
        tokens=fakes.MemoryTokenStore(memory),
        funnels=fakes.MemoryFunnels(memory),
        **given,
    )


def on_postgres(database: Database, **given: Any) -> World:
    return World(
        tenants=PostgresTenantStore(database),
        walkthroughs=PostgresWalkthroughStore(database),
        assignments=PostgresAssignmentStore(database),
        catalogue=PostgresCatalogue(database),
        library=PostgresVersionLibrary(database),
        progress=PostgresProgressStore(database),
        calls=PostgresCallLog(database),
        servers=PostgresServerDirectory(database),
        tokens=PostgresTokenStore(database),
        funnels=PostgresFunnels(database),
        **given,
    )
