"""A real service process on this module's database, and tenants on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import asyncpg
import httpx2
import pytest

from adapters.postgres.connections import Database
from adapters.system import RandomIds, SystemClock
from domain.progress import EventKind, Outcome, Progress, ProgressEvent, ProgressKey, Status, replay
from domain.tenancy import AuthMode, Caller, OrganizationId, Server
from domain.walkthrough import VersionKey
from tests.processes import Learner, Serving, learner, serving
from tests.worlds import World, on_postgres

_numbers = count(1)


@pytest.fixture(scope="module")
def service(owner_url: str) -> Iterator[Serving]:
    """`cairn serve` on this module's database."""
    with serving("serve", "--port", "0", CAIRN_DATABASE_URL=owner_url) as running:
        yield running


@dataclass
class Tenant:
    """An organisation with one server, as its people reach it."""

    world: World
    server: Server
    service: Serving
    organization: str

    @property
    def host(self) -> str:
        return f"{self.server.slug}.localhost"

    async def token(self, email: str = "ada@example.com") -> str:
        return await self.world.identity.create_token(self.server.key, email)

    async def caller(self, email: str = "ada@example.com") -> Caller:
        return await self.world.caller(self.server, email)

    async def publish(self, *steps: str, **given: Any) -> int:
        return await self.world.publish(*steps, organization=self.organization, servers=(self.server.slug,), **given)

    @asynccontextmanager
    async def learner(
        self, email: str | None = "ada@example.com", *, era: str = "auto", url: str | None = None
    ) -> AsyncIterator[Learner]:
        token = await self.token(email) if email else None
        async with learner(url or self.service.url, token, era=era, host=self.host) as connected:
            yield connected

    async def post(self, body: Any, *, token: str | None = None, **headers: str) -> httpx2.Response:
        """One raw request in the handshake era's form; header names with underscores for hyphens."""
        all_headers = {
            "host": self.host,
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            **({"authorization": f"Bearer {token}"} if token else {}),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        content = {"content": body} if isinstance(body, bytes | str) else {"json": body}
        async with httpx2.AsyncClient(timeout=30) as http:
            return await http.post(self.service.url, headers=all_headers, **content)


def challenge(tenant: Tenant, *, port: str = "") -> str:
    """What a client is told that has sent no token: where it finds out how people sign in (RFC 9728 section 5.1)."""
    metadata = f"http://{tenant.host}{port}/.well-known/oauth-protected-resource/mcp"
    return f'Bearer resource_metadata="{metadata}", scope="walkthroughs"'


def call(tool: str, **arguments: Any) -> dict[str, Any]:
    """The JSON-RPC request of a tool call."""
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}


async def moves(owner: asyncpg.Connection) -> Sequence[tuple[Any, ...]]:
    """All progress there is, to compare before and after."""
    rows = await owner.fetch("select * from walkthrough_progress order by mcp_server_user_id, walkthrough_id")
    events = await owner.fetchval("select count(*) from walkthrough_progress_events")
    return [*(tuple(row.values()) for row in rows), (events,)]


async def make_tenant(database: Database, service: Serving, **given: Any) -> Tenant:
    """A tenant with a host name of its own, so that no cache remembers another test's."""
    number = next(_numbers)
    world = on_postgres(database, clock=SystemClock(), ids=RandomIds())
    organization = f"org-{number}"
    server = await world.server(organization, f"server-{number}", name=f"Guides {number}", **given)
    return Tenant(world, server, service, organization)


_PROGRESS = """
select mcp_server_id, mcp_server_user_id, walkthrough_id, version, attempt, revision, status, current_step_id, carried,
       started_at, last_activity_at, completed_at
  from walkthrough_progress
 where organization_id = $1
"""
_EVENTS = """
select revision, kind, attempt, version, from_step_id, to_step_id, outcome, note, occurred_at
  from walkthrough_progress_events
 where (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id) = ($1, $2, $3, $4)
 order by revision
"""


async def assert_that_events_replay(world: World, owner: asyncpg.Connection, organization: OrganizationId) -> None:
    """What an organisation's events lead to is what is stored as progress, row by row."""
    # One snapshot, for a client may have hung up on a call that is still being answered.
    async with owner.transaction(isolation="repeatable_read", readonly=True):
        stored = [_progress(organization, dict(row)) for row in await owner.fetch(_PROGRESS, organization)]
        events = [[_event(dict(row)) for row in await owner.fetch(_EVENTS, *each.key)] for each in stored]
    for progress, led_there in zip(stored, events, strict=True):
        keys = {VersionKey(organization, progress.key.walkthrough_id, each.version) for each in led_there}
        versions = {key.number: version for key, version in (await world.library.outlines(keys)).items()}
        assert replay(progress.key, led_there, versions) == progress


def _progress(organization: OrganizationId, row: dict[str, Any]) -> Progress:
    person = (row.pop("mcp_server_id"), row.pop("mcp_server_user_id"), row.pop("walkthrough_id"))
    typed = {"status": Status(row["status"]), "carried": frozenset(row["carried"])}
    return Progress(key=ProgressKey(organization, *person), **row | typed)


def _event(row: dict[str, Any]) -> ProgressEvent:
    return ProgressEvent(
        **row | {"kind": EventKind(row["kind"]), "outcome": Outcome(row["outcome"]) if row["outcome"] else None}
    )


@pytest.fixture
async def tenant(database: Database, service: Serving, owner: asyncpg.Connection) -> AsyncIterator[Tenant]:
    """A tenant whose stored progress, whatever the test did, is at its end what the stored events lead to."""
    made = await make_tenant(database, service)
    yield made
    await assert_that_events_replay(made.world, owner, made.server.key.organization_id)


@pytest.fixture
async def closed_tenant(database: Database, service: Serving, owner: asyncpg.Connection) -> AsyncIterator[Tenant]:
    """A tenant like that, whose server wants a token from the first request on."""
    made = await make_tenant(database, service, auth_mode=AuthMode.ON_CONNECT)
    yield made
    await assert_that_events_replay(made.world, owner, made.server.key.organization_id)


@pytest.fixture(params=["auto", "legacy"])
def era(request: pytest.FixtureRequest) -> str:
    """Both protocol eras: the client's `auto` finds 2026-07-28, `legacy` speaks the handshake of 2025-11-25."""
    return str(request.param)
