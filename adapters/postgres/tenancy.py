"""Organisations, servers, people and their tokens."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, fields

from sqlalchemy import ColumnElement, Table, and_, func, null, or_, select, text, true, union_all, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.postgres.connections import LOOKUP_SECONDS, Database, act_for
from adapters.postgres.people import known_as
from adapters.postgres.sign_in import person
from adapters.postgres.tables import (
    access_tokens,
    mcp_server_users,
    mcp_server_walkthroughs,
    mcp_servers,
    oauth_grants,
    oauth_refresh_tokens,
    oidc_providers,
    organizations,
)
from application.ports import Bearer, ServerDirectory, ServerListing, TokenListing
from domain.errors import AlreadyExists, NotFound, TemporarilyUnavailable
from domain.sign_in import OidcProvider
from domain.tenancy import AuthMode, Millis, OrganizationId, Server, ServerId, ServerKey, UserId

_PROVIDER = [oidc_providers.c[field.name] for field in fields(OidcProvider)]


class PostgresTenantStore:
    """`TenantStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_organization(self, id: OrganizationId, slug: str, name: str, now: Millis) -> None:
        statement = insert(organizations).values(id=id, slug=slug, name=name, created_at=now)
        async with self._database.transaction(id) as connection:
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
        async with self._database.transaction(server.key.organization_id) as connection:
            try:
                result = await connection.execute(statement.on_conflict_do_nothing())
            except IntegrityError as error:
                raise NotFound("this organisation is gone: see 'cairn org create'") from error
        if not result.rowcount:
            # Slugs and domains are host names, so they are taken for all organisations at once.
            names = server.slug if server.custom_domain is None else f"{server.slug} or {server.custom_domain}"
            raise AlreadyExists(f"the name {names} is taken: choose another one")

    async def organization(self, slug: str) -> OrganizationId | None:
        async with self._database.transaction(None) as connection:
            found = await connection.scalar(select(func.organization_of(slug)))
        return OrganizationId(found) if found is not None else None

    async def server(self, slug: str) -> ServerListing | None:
        async with self._database.transaction(None) as connection:
            id = await connection.scalar(text(_ORGANIZATION_WITH_SERVER), {"slug": slug})
            found = [] if id is None else await _listings(connection, id, mcp_servers.c.slug == slug)
        return found[0] if found else None

    async def servers(self, organization_id: OrganizationId | None) -> Sequence[ServerListing]:
        async with self._database.transaction(None) as connection:
            ids: Sequence[OrganizationId] = (
                [organization_id]
                if organization_id is not None
                else (await connection.scalars(select(func.organization_ids()))).all()
            )
            return [listing for id in ids for listing in await _listings(connection, id, true())]

    async def provider(self, organization_id: OrganizationId) -> OidcProvider | None:
        async with self._database.transaction(organization_id) as connection:
            return await _provider(connection, organization_id)

    async def set_auth_mode(self, server: ServerKey, auth_mode: AuthMode) -> AuthMode:
        which = and_(mcp_servers.c.organization_id == server.organization_id, mcp_servers.c.id == server.server_id)
        async with self._database.transaction(server.organization_id) as connection:
            former = await connection.scalar(select(mcp_servers.c.auth_mode).where(which).with_for_update())
            if former is None:
                raise NotFound("this server is gone: see 'cairn server list'")
            await connection.execute(update(mcp_servers).where(which).values(auth_mode=auth_mode))
        return AuthMode(former)

    async def set_provider(self, organization_id: OrganizationId, provider: OidcProvider | None, now: Millis) -> bool:
        async with self._database.transaction(organization_id) as connection:
            removed = await connection.execute(
                oidc_providers.delete().where(oidc_providers.c.organization_id == organization_id)
            )
            if provider is not None:
                values = asdict(provider)
                values["created_at"] = now
                statement = insert(oidc_providers).values(organization_id=organization_id, **values)
                # Somebody else may have set one in this very moment: the last one counts.
                await connection.execute(
                    statement.on_conflict_do_update(
                        index_elements=["organization_id"], set_={"created_at": now, **values}
                    )
                )
        return removed.rowcount == 1


# Functions of the database, which find it before it is known whose organisation is asked for (migration 0007).
_SERVER_AT = "select * from server_at($1, $2)"
_ORGANIZATION_WITH_SERVER = "select organization_id from server_at(:slug, null)"


async def _listings(
    connection: AsyncConnection, organization_id: OrganizationId, which: ColumnElement[bool]
) -> Sequence[ServerListing]:
    """Those servers of an organisation. From here on, the transaction is on its rows."""
    await act_for(connection, organization_id)
    assigned = (
        select(func.count())
        .where(
            mcp_server_walkthroughs.c.organization_id == mcp_servers.c.organization_id,
            mcp_server_walkthroughs.c.mcp_server_id == mcp_servers.c.id,
        )
        .scalar_subquery()
    )
    rows = await connection.execute(
        select(organizations.c.slug.label("organization_slug"), mcp_servers, assigned.label("assigned"))
        .join_from(mcp_servers, organizations, mcp_servers.c.organization_id == organizations.c.id)
        .where(mcp_servers.c.organization_id == organization_id, which)
        .order_by(mcp_servers.c.slug)
    )
    provider = await _provider(connection, organization_id)
    return [
        ServerListing(
            organization_slug=row["organization_slug"],
            server=Server(
                key=ServerKey(organization_id, row["id"]),
                slug=row["slug"],
                name=row["name"],
                auth_mode=AuthMode(row["auth_mode"]),
                custom_domain=row["custom_domain"],
            ),
            assigned=row["assigned"],
            provider=provider,
        )
        for row in rows.mappings()
    ]


async def _provider(connection: AsyncConnection, organization_id: OrganizationId) -> OidcProvider | None:
    statement = select(*_PROVIDER).where(oidc_providers.c.organization_id == organization_id)
    row = (await connection.execute(statement)).one_or_none()
    return None if row is None else OidcProvider(*row)


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
    created, renamed or removed is noticed within `max_age_seconds`. Who has waited for `max_wait_seconds` is told that
    it is temporarily unavailable, and whoever asks next may find the answer there.
    """

    def __init__(
        self,
        directory: ServerDirectory,
        *,
        max_age_seconds: float = 2.0,
        max_wait_seconds: float = LOOKUP_SECONDS,
        max_entries: int = 10_000,
    ) -> None:
        self._directory = directory
        self._max_age_seconds = max_age_seconds
        self._max_wait_seconds = max_wait_seconds
        self._max_entries = max_entries
        self._known: OrderedDict[tuple[str | None, str | None], tuple[float, Server | None]] = OrderedDict()
        self._asking: dict[tuple[str | None, str | None], asyncio.Task[Server | None]] = {}

    async def server_at(self, *, slug: str | None, custom_domain: str | None) -> Server | None:
        host = (slug, custom_domain)
        known = self._known.get(host)
        if known is not None and time.monotonic() - known[0] < self._max_age_seconds:
            return known[1]
        if host not in self._asking:
            # One question however many wait for it; it outlives a caller who goes away, and one who can wait no longer.
            self._asking[host] = task = asyncio.create_task(self._ask(host))
            task.add_done_callback(lambda task: self._answered(host, task))
        try:
            async with asyncio.timeout(self._max_wait_seconds):
                return await asyncio.shield(self._asking[host])
        except TimeoutError as error:
            raise TemporarilyUnavailable from error

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


# As above.
_BEARER_OF = "select * from bearer_of($1, $2, $3, $4)"


class PostgresTokenStore:
    """`TokenStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def bearer_of(self, server: ServerKey, token_hash: bytes, now: Millis) -> Bearer | None:
        row = await self._database.look_up(_BEARER_OF, server.organization_id, token_hash, server.server_id, now)
        return None if row is None else Bearer(UserId(row["mcp_server_user_id"]), frozenset(row["scope"].split()))

    async def issue(self, server: ServerKey, email: str, new_user: UserId, token_hash: bytes, now: Millis) -> UserId:
        async with self._database.transaction(server.organization_id) as connection:
            user_id = await person(connection, server.organization_id, None, email, new_user, now)
            token = insert(access_tokens).values(
                organization_id=server.organization_id,
                token_hash=token_hash,
                mcp_server_id=server.server_id,
                mcp_server_user_id=user_id,
                created_at=now,
            )
            await connection.execute(token)
        return user_id

    async def listed(
        self,
        organization_id: OrganizationId,
        server_id: ServerId | None,
        user_id: UserId | None,
        now: Millis,
        limit: int,
    ) -> Sequence[TokenListing]:
        def chosen(table: Table) -> Sequence[ColumnElement[bool]]:
            conditions = [table.c.organization_id == organization_id]
            if server_id is not None:
                conditions.append(table.c.mcp_server_id == server_id)
            if user_id is not None:
                conditions.append(table.c.mcp_server_user_id == user_id)
            return conditions

        given_out = select(
            _TOKEN.mcp_server_id,
            _TOKEN.mcp_server_user_id,
            *(null().label(name) for name in ("grant_id", "client_id", "client_name")),
            _TOKEN.scope,
            _TOKEN.created_at,
            _TOKEN.expires_at.label("ends_at"),
        ).where(
            *chosen(access_tokens),
            _TOKEN.grant_id.is_(None),
            or_(_TOKEN.expires_at.is_(None), _TOKEN.expires_at > now),
        )
        granted = select(
            _GRANT.mcp_server_id,
            _GRANT.mcp_server_user_id,
            _GRANT.id,
            _GRANT.client_id,
            _GRANT.client_name,
            _GRANT.scope,
            _GRANT.created_at,
            _GRANT.good_until,
        ).where(*chosen(oauth_grants), _GRANT.revoked_at.is_(None), _GRANT.good_until > now)
        listed = union_all(given_out, granted).subquery()
        statement = (
            select(listed, mcp_servers.c.slug, mcp_server_users.c.email)
            .join(mcp_servers, and_(mcp_servers.c.organization_id == organization_id, mcp_servers.c.id == listed.c[0]))
            .join(
                mcp_server_users,
                and_(mcp_server_users.c.organization_id == organization_id, mcp_server_users.c.id == listed.c[1]),
            )
            .order_by(listed.c.created_at.desc(), listed.c.grant_id, listed.c.mcp_server_user_id)
            .limit(limit)
        )
        async with self._database.transaction(organization_id) as connection:
            rows = (await connection.execute(statement)).all()
        return [
            TokenListing(
                server=row.slug,
                user_id=row.mcp_server_user_id,
                email=row.email,
                grant_id=row.grant_id,
                client_id=row.client_id,
                client_name=row.client_name,
                scope=row.scope,
                created_at=row.created_at,
                ends_at=row.ends_at,
            )
            for row in rows
        ]

    async def revoke(self, server: ServerKey, token_hash: bytes, now: Millis) -> int:
        of_token = union_all(
            *(
                select(table.c.grant_id).where(
                    table.c.organization_id == server.organization_id, table.c.token_hash == token_hash
                )
                for table in (access_tokens, oauth_refresh_tokens)
            )
        )
        async with self._database.transaction(server.organization_id) as connection:
            ended = await _end_grants(connection, server, _GRANT.id.in_(of_token), now)
            return ended or await _delete_given_out(connection, server, _TOKEN.token_hash == token_hash)

    async def revoke_all_of(self, server: ServerKey, email: str, now: Millis) -> int:
        theirs = known_as(server.organization_id, email)
        async with self._database.transaction(server.organization_id) as connection:
            granted = await _end_grants(connection, server, _GRANT.mcp_server_user_id.in_(theirs), now)
            return granted + await _delete_given_out(connection, server, _TOKEN.mcp_server_user_id.in_(theirs))

    async def revoke_grant(self, server: ServerKey, grant_id: str, now: Millis) -> int:
        async with self._database.transaction(server.organization_id) as connection:
            return await _end_grants(connection, server, _GRANT.id == grant_id, now)

    async def revoke_client(self, server: ServerKey, client: str, now: Millis) -> int:
        async with self._database.transaction(server.organization_id) as connection:
            return await _end_grants(
                connection, server, or_(_GRANT.client_id == client, _GRANT.client_name == client), now
            )


_TOKEN = access_tokens.c
_GRANT = oauth_grants.c


async def _end_grants(connection: AsyncConnection, server: ServerKey, which: ColumnElement[bool], now: Millis) -> int:
    """Ends those that are still good, each with its whole family. Whoever issues in one holds its row, as this does."""
    organization_id = server.organization_id
    good = (
        select(_GRANT.id)
        .where(
            _GRANT.organization_id == organization_id,
            _GRANT.mcp_server_id == server.server_id,
            _GRANT.revoked_at.is_(None),
            _GRANT.good_until > now,
            which,
        )
        .order_by(_GRANT.id)  # in one order always: two who end the same do not wait for each other in a circle
        .with_for_update()
    )
    ended = (await connection.scalars(good)).all()
    if ended:
        await connection.execute(
            update(oauth_grants)
            .where(_GRANT.organization_id == organization_id, _GRANT.id.in_(ended))
            .values(revoked_at=now)
        )
        for table in (access_tokens, oauth_refresh_tokens):
            await connection.execute(
                table.delete().where(table.c.organization_id == organization_id, table.c.grant_id.in_(ended))
            )
    return len(ended)


async def _delete_given_out(connection: AsyncConnection, server: ServerKey, which: ColumnElement[bool]) -> int:
    """Deletes tokens that an operator gave out."""
    statement = access_tokens.delete().where(
        _TOKEN.organization_id == server.organization_id,
        _TOKEN.mcp_server_id == server.server_id,
        _TOKEN.grant_id.is_(None),
        which,
    )
    return (await connection.execute(statement)).rowcount
