"""Organisations, servers, people and their tokens."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence

from sqlalchemy import ColumnElement, func, select, true
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from adapters.postgres.connections import Database
from adapters.postgres.tables import (
    access_tokens,
    mcp_server_users,
    mcp_server_walkthroughs,
    mcp_servers,
    organizations,
)
from application.ports import ServerDirectory, ServerListing
from domain.errors import AlreadyExists, NotFound
from domain.tenancy import AuthMode, Millis, OrganizationId, Server, ServerId, ServerKey, UserId


class PostgresTenantStore:
    """`TenantStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_organization(self, id: OrganizationId, slug: str, name: str, now: Millis) -> None:
        statement = insert(organizations).values(id=id, slug=slug, name=name, created_at=now)
        async with self._database.transaction() as connection:
            result = await connection.execute(statement.on_conflict_do_nothing(index_elements=["slug"]))
        if not result.rowcount:
            raise AlreadyExists(f"there is an organisation {slug!r} already: choose another slug")

    async def create_server(self, server: Server, now: Millis) -> None:
        statement = insert(mcp_servers).values(
            organization_id=server.key.organization_id,
            id=server.key.server_id,
            slug=server.slug,
            custom_domain=server.custom_domain,
            name=server.name,
            auth_mode=server.auth_mode,
            created_at=now,
        )
        async with self._database.transaction() as connection:
            try:
                result = await connection.execute(statement.on_conflict_do_nothing())
            except IntegrityError as error:
                raise NotFound("this organisation is gone: see 'cairn org create'") from error
        if not result.rowcount:
            # Slugs and domains are host names, so they are taken for all organisations at once.
            names = server.slug if server.custom_domain is None else f"{server.slug} or {server.custom_domain}"
            raise AlreadyExists(f"the name {names} is taken: choose another one")

    async def organization(self, slug: str) -> OrganizationId | None:
        async with self._database.transaction() as connection:
            found = await connection.scalar(select(organizations.c.id).where(organizations.c.slug == slug))
        return OrganizationId(found) if found is not None else None

    async def server(self, slug: str) -> ServerListing | None:
        found = await self._listings(mcp_servers.c.slug == slug)
        return found[0] if found else None

    async def servers(self, organization_id: OrganizationId | None) -> Sequence[ServerListing]:
        return await self._listings(
            true() if organization_id is None else mcp_servers.c.organization_id == organization_id
        )

    async def _listings(self, which: ColumnElement[bool]) -> Sequence[ServerListing]:
        assigned = (
            select(func.count())
            .where(
                mcp_server_walkthroughs.c.organization_id == mcp_servers.c.organization_id,
                mcp_server_walkthroughs.c.mcp_server_id == mcp_servers.c.id,
            )
            .scalar_subquery()
        )
        statement = (
            select(organizations.c.slug.label("organization_slug"), mcp_servers, assigned.label("assigned"))
            .join_from(mcp_servers, organizations, mcp_servers.c.organization_id == organizations.c.id)
            .where(which)
            .order_by(organizations.c.slug, mcp_servers.c.slug)
        )
        async with self._database.transaction() as connection:
            rows = (await connection.execute(statement)).mappings().all()
        return [
            ServerListing(
                organization_slug=row["organization_slug"],
                server=Server(
                    key=ServerKey(row["organization_id"], row["id"]),
                    slug=row["slug"],
                    name=row["name"],
                    auth_mode=AuthMode(row["auth_mode"]),
                    custom_domain=row["custom_domain"],
                ),
                assigned=row["assigned"],
            )
            for row in rows
        ]


_SERVER_AT = """
select organization_id, id, slug, custom_domain, name, auth_mode
  from mcp_servers
 where slug = $1 or custom_domain = $2
 order by slug = $1 desc
 limit 1
"""


class PostgresServerDirectory:
    """`ServerDirectory` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def server_at(self, *, slug: str | None, custom_domain: str | None) -> Server | None:
        async with self._database.hot() as connection:
            row = await connection.fetchrow(_SERVER_AT, slug, custom_domain)
        if row is None:
            return None
        return Server(
            key=ServerKey(OrganizationId(row["organization_id"]), ServerId(row["id"])),
            slug=row["slug"],
            name=row["name"],
            auth_mode=AuthMode(row["auth_mode"]),
            custom_domain=row["custom_domain"],
        )


class RecentServers:
    """A `ServerDirectory` that remembers what another one said, unknown hosts included, for a short while.

    It takes the place of a query a call, and of one a request under a flood of made-up hosts. A server that is
    created, renamed or removed is noticed within `max_age_seconds`.
    """

    def __init__(self, directory: ServerDirectory, *, max_age_seconds: float = 2.0, max_entries: int = 10_000) -> None:
        self._directory = directory
        self._max_age_seconds = max_age_seconds
        self._max_entries = max_entries
        self._known: OrderedDict[tuple[str | None, str | None], tuple[float, Server | None]] = OrderedDict()
        self._asking: dict[tuple[str | None, str | None], asyncio.Task[Server | None]] = {}

    async def server_at(self, *, slug: str | None, custom_domain: str | None) -> Server | None:
        host = (slug, custom_domain)
        known = self._known.get(host)
        if known is not None and time.monotonic() - known[0] < self._max_age_seconds:
            return known[1]
        if host not in self._asking:
            # One question however many wait for it; it outlives a caller who goes away.
            self._asking[host] = task = asyncio.create_task(self._ask(host))
            task.add_done_callback(lambda task: self._answered(host, task))
        return await asyncio.shield(self._asking[host])

    def _answered(self, host: tuple[str | None, str | None], task: asyncio.Task[Server | None]) -> None:
        del self._asking[host]
        if not task.cancelled():
            task.exception()  # goes to whoever still waits; where nobody does, asyncio need not say so

    async def _ask(self, host: tuple[str | None, str | None]) -> Server | None:
        asked_at = time.monotonic()
        server = await self._directory.server_at(slug=host[0], custom_domain=host[1])
        self._known[host] = (asked_at, server)
        self._known.move_to_end(host)
        while len(self._known) > self._max_entries:
            self._known.popitem(last=False)
        return server


_USER_OF = """
select mcp_server_user_id
  from access_tokens
 where organization_id = $1 and token_hash = $2 and mcp_server_id = $3
"""


class PostgresTokenStore:
    """`TokenStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def user_of(self, server: ServerKey, token_hash: bytes) -> UserId | None:
        async with self._database.hot() as connection:
            user = await connection.fetchval(_USER_OF, server.organization_id, token_hash, server.server_id)
        return None if user is None else UserId(user)

    async def issue(self, server: ServerKey, email: str, new_user: UserId, token_hash: bytes, now: Millis) -> UserId:
        # An update that changes nothing makes the row come back whether or not it was there.
        person = (
            insert(mcp_server_users)
            .values(
                organization_id=server.organization_id,
                id=new_user,
                email=email,
                email_verified_at=now,
                first_seen_at=now,
                last_seen_at=now,
            )
            .on_conflict_do_update(index_elements=["organization_id", "email"], set_={"email": email})
            .returning(mcp_server_users.c.id)
        )
        async with self._database.transaction() as connection:
            user_id = UserId((await connection.execute(person)).scalar_one())
            token = insert(access_tokens).values(
                organization_id=server.organization_id,
                token_hash=token_hash,
                mcp_server_id=server.server_id,
                mcp_server_user_id=user_id,
                created_at=now,
            )
            await connection.execute(token)
        return user_id

    async def revoke(self, server: ServerKey, token_hash: bytes) -> int:
        statement = access_tokens.delete().where(
            access_tokens.c.organization_id == server.organization_id,
            access_tokens.c.token_hash == token_hash,
            access_tokens.c.mcp_server_id == server.server_id,
        )
        async with self._database.transaction() as connection:
            return (await connection.execute(statement)).rowcount

    async def revoke_all_of(self, server: ServerKey, email: str) -> int:
        person = select(mcp_server_users.c.id).where(
            mcp_server_users.c.organization_id == server.organization_id, mcp_server_users.c.email == email
        )
        statement = access_tokens.delete().where(
            access_tokens.c.organization_id == server.organization_id,
            access_tokens.c.mcp_server_id == server.server_id,
            access_tokens.c.mcp_server_user_id.in_(person),
        )
        async with self._database.transaction() as connection:
            return (await connection.execute(statement)).rowcount
