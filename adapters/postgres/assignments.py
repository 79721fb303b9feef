"""Which walkthroughs are on which servers."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Integer, bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.postgres.connections import Database
from adapters.postgres.tables import mcp_server_walkthroughs, mcp_servers, walkthroughs
from application.ports import Placement
from domain.errors import NotFound
from domain.publishing import unknown
from domain.tenancy import Millis, OrganizationId, ServerKey, WalkthroughId
from domain.walkthrough import Assignment, in_order

_ASSIGNED = mcp_server_walkthroughs.c


class PostgresAssignmentStore:
    """`AssignmentStore` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def assign(
        self, organization_id: OrganizationId, key: str, placements: Sequence[Placement], now: Millis
    ) -> Sequence[Assignment]:
        async with self._database.transaction(organization_id) as connection:
            id = await _id(connection, organization_id, key)
            return await place(connection, organization_id, id, placements, now)

    async def unassign(self, organization_id: OrganizationId, key: str, servers: Sequence[ServerKey]) -> Sequence[bool]:
        async with self._database.transaction(organization_id) as connection:
            id = await _id(connection, organization_id, key)
            statement = (
                mcp_server_walkthroughs.delete()
                .where(
                    _ASSIGNED.organization_id == organization_id,
                    _ASSIGNED.mcp_server_id.in_([server.server_id for server in servers]),
                    _ASSIGNED.walkthrough_id == id,
                )
                .returning(_ASSIGNED.mcp_server_id)
            )
            gone = set((await connection.execute(statement)).scalars())
        return [server.server_id in gone for server in servers]

    async def set_enabled(
        self, organization_id: OrganizationId, key: str, servers: Sequence[ServerKey], *, is_enabled: bool
    ) -> Sequence[bool]:
        async with self._database.transaction(organization_id) as connection:
            id = await _id(connection, organization_id, key)
            here = (
                _ASSIGNED.organization_id == organization_id,
                _ASSIGNED.mcp_server_id.in_([server.server_id for server in servers]),
                _ASSIGNED.walkthrough_id == id,
            )
            rows = await connection.execute(
                select(_ASSIGNED.mcp_server_id, _ASSIGNED.is_enabled)
                .where(*here)
                .order_by(_ASSIGNED.mcp_server_id)
                .with_for_update()
            )
            was_enabled = {row.mcp_server_id: row.is_enabled for row in rows}
            for server in servers:
                if server.server_id not in was_enabled:
                    slug = await connection.scalar(
                        select(mcp_servers.c.slug).where(
                            mcp_servers.c.organization_id == organization_id, mcp_servers.c.id == server.server_id
                        )
                    )
                    raise NotFound(f"walkthrough {key!r} is not on server {slug!r}: assign it first")
            await connection.execute(update(mcp_server_walkthroughs).where(*here).values(is_enabled=is_enabled))
        return [was_enabled[server.server_id] is not is_enabled for server in servers]

    async def order(self, server: ServerKey, first: Sequence[str]) -> Sequence[str]:
        async with self._database.transaction(server.organization_id) as connection:
            here = (
                _ASSIGNED.organization_id == server.organization_id,
                _ASSIGNED.mcp_server_id == server.server_id,
            )
            rows = await connection.execute(
                select(walkthroughs.c.key, walkthroughs.c.id)
                .join_from(
                    mcp_server_walkthroughs,
                    walkthroughs,
                    (walkthroughs.c.organization_id == _ASSIGNED.organization_id)
                    & (walkthroughs.c.id == _ASSIGNED.walkthrough_id),
                )
                .where(*here)
                .order_by(_ASSIGNED.display_order, walkthroughs.c.key)
                .with_for_update(of=mcp_server_walkthroughs)
            )
            ids = {row.key: row.id for row in rows}
            keys = in_order(list(ids), first)
            if keys:
                await connection.execute(
                    update(mcp_server_walkthroughs)
                    .where(*here, _ASSIGNED.walkthrough_id == bindparam("its_id"))
                    .values(display_order=bindparam("place", type_=Integer)),
                    [{"its_id": ids[key], "place": place} for place, key in enumerate(keys, start=1)],
                )
        return keys


async def _id(connection: AsyncConnection, organization_id: OrganizationId, key: str) -> WalkthroughId:
    id = await connection.scalar(
        select(walkthroughs.c.id).where(walkthroughs.c.organization_id == organization_id, walkthroughs.c.key == key)
    )
    if id is None:
        raise unknown(key)
    return WalkthroughId(id)


async def place(
    connection: AsyncConnection,
    organization_id: OrganizationId,
    id: WalkthroughId,
    placements: Sequence[Placement],
    now: Millis,
) -> Sequence[Assignment]:
    """Assigns, each server in the order given; a place is kept unless another one is named."""
    assignments = []
    for placement in placements:
        last = select(func.coalesce(func.max(_ASSIGNED.display_order), 0) + 1).where(
            _ASSIGNED.organization_id == organization_id, _ASSIGNED.mcp_server_id == placement.server.server_id
        )
        order = last.scalar_subquery() if placement.display_order is None else bindparam("at", placement.display_order)
        statement = insert(mcp_server_walkthroughs).values(
            organization_id=organization_id,
            mcp_server_id=placement.server.server_id,
            walkthrough_id=id,
            display_order=order,
            created_at=now,
        )
        kept = _ASSIGNED.display_order if placement.display_order is None else placement.display_order
        row = (
            await connection.execute(
                statement.on_conflict_do_update(
                    constraint=mcp_server_walkthroughs.primary_key, set_={"display_order": kept}
                ).returning(_ASSIGNED.display_order, _ASSIGNED.is_enabled)
            )
        ).one()
        assignments.append(Assignment(placement.server, id, row.display_order, row.is_enabled))
    return assignments
