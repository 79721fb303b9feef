"""Storing manuscripts: draft, publish, assign; each in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.postgres.connections import Database
from adapters.postgres.tables import (
    mcp_server_walkthroughs,
    walkthrough_steps,
    walkthrough_versions,
    walkthroughs,
)
from application.ports import Ids, Placement, Stored
from domain.chain import StepChain
from domain.errors import NotFound
from domain.tenancy import Millis, OrganizationId, StepId, WalkthroughId
from domain.walkthrough import Assignment, Manuscript, PublishPolicy, VersionState, take_in


class PostgresWalkthroughStore:
    """`WalkthroughStore` on PostgreSQL. Authors of one walkthrough queue up on its row."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
        async with self._database.transaction() as connection:
            walkthrough = await _locked(connection, organization_id, manuscript.key, ids, now)
            id, latest = WalkthroughId(walkthrough["id"]), walkthrough["latest_version"]
            intake = take_in(
                manuscript,
                latest=latest,
                latest_hash=await _hash(connection, organization_id, id, latest) if latest else None,
                is_published=walkthrough["is_published"],
                publish=publish is not None,
            )
            await _drop_draft(connection, organization_id, id)
            if not intake.is_unchanged:
                await _write_draft(connection, organization_id, id, intake.version, manuscript, ids, now)
                if publish is not None:
                    await _publish(connection, organization_id, id, intake.version, publish, now)
            elif intake.is_published != walkthrough["is_published"]:
                await _mark(connection, organization_id, id, intake.version, now)
            await _place(connection, organization_id, id, placements, now)
        return Stored(id, manuscript.key, intake.version, intake.is_published, intake.is_unchanged)

    async def assign(
        self, organization_id: OrganizationId, key: str, placements: Sequence[Placement], now: Millis
    ) -> Sequence[Assignment]:
        async with self._database.transaction() as connection:
            id = await connection.scalar(
                select(walkthroughs.c.id).where(
                    walkthroughs.c.organization_id == organization_id, walkthroughs.c.key == key
                )
            )
            if id is None:
                raise NotFound(f"there is no walkthrough {key!r}: push it first with 'cairn push DIR'")
            return await _place(connection, organization_id, WalkthroughId(id), placements, now)


async def _locked(connection: AsyncConnection, organization_id: OrganizationId, key: str, ids: Ids, now: Millis) -> Any:
    """The walkthrough's row, made if need be, and held until the transaction ends."""
    await connection.execute(
        insert(walkthroughs)
        .values(organization_id=organization_id, id=ids.new("wt"), key=key, created_at=now, updated_at=now)
        .on_conflict_do_nothing(index_elements=["organization_id", "key"])
    )
    statement = (
        select(walkthroughs.c.id, walkthroughs.c.latest_version, walkthroughs.c.is_published)
        .where(walkthroughs.c.organization_id == organization_id, walkthroughs.c.key == key)
        .with_for_update()
    )
    return (await connection.execute(statement)).mappings().one()


async def _hash(
    connection: AsyncConnection, organization_id: OrganizationId, id: WalkthroughId, version: int
) -> str | None:
    return await connection.scalar(
        select(walkthrough_versions.c.content_hash).where(
            walkthrough_versions.c.organization_id == organization_id,
            walkthrough_versions.c.walkthrough_id == id,
            walkthrough_versions.c.version == version,
        )
    )


async def _drop_draft(connection: AsyncConnection, organization_id: OrganizationId, id: WalkthroughId) -> None:
    """What the author hands in takes the place of whatever the draft was."""
    await connection.execute(
        walkthrough_versions.delete().where(
            walkthrough_versions.c.organization_id == organization_id,
            walkthrough_versions.c.walkthrough_id == id,
            walkthrough_versions.c.state == VersionState.DRAFT,
        )
    )


async def _write_draft(
    connection: AsyncConnection,
    organization_id: OrganizationId,
    id: WalkthroughId,
    number: int,
    manuscript: Manuscript,
    ids: Ids,
    now: Millis,
) -> None:
    await connection.execute(
        update(walkthroughs)
        .where(walkthroughs.c.organization_id == organization_id, walkthroughs.c.id == id)
        .values(updated_at=now)
    )
    # Fresh ids in every version: an id never means two different contents.
    chain = StepChain.of(StepId(ids.new("stp")) for _ in manuscript.steps)
    version = {"organization_id": organization_id, "walkthrough_id": id, "version": number}
    await connection.execute(
        insert(walkthrough_versions).values(
            **version,
            state=VersionState.DRAFT,
            title=manuscript.title,
            description=manuscript.description,
            type=manuscript.type,
            first_step_id=chain.first,
            step_count=len(chain),
            estimated_minutes=manuscript.estimated_minutes(),
            content_hash=manuscript.content_hash(),
            created_at=now,
        )
    )
    await connection.execute(
        insert(walkthrough_steps),
        [
            {
                **version,
                "id": link.id,
                "next_step_id": link.next_step_id,
                "position": position,
                "key": step.key,
                "title": step.title,
                "content": step.content,
                "assistant_notes": step.assistant_notes,
                "workspace_actions": step.workspace_actions,
                "done_when": step.done_when,
                "delivery": step.delivery,
                "estimated_minutes": step.estimated_minutes,
            }
            for position, (link, step) in enumerate(zip(chain.links(), manuscript.steps, strict=True), start=1)
        ],
    )


async def _publish(
    connection: AsyncConnection,
    organization_id: OrganizationId,
    id: WalkthroughId,
    number: int,
    policy: PublishPolicy,
    now: Millis,
) -> None:
    of_walkthrough = (
        walkthrough_versions.c.organization_id == organization_id,
        walkthrough_versions.c.walkthrough_id == id,
    )
    await connection.execute(
        update(walkthrough_versions)
        .where(*of_walkthrough, walkthrough_versions.c.version == number)
        .values(state=VersionState.PUBLISHED, on_publish=policy, published_at=now)
    )
    if policy is PublishPolicy.SUPERSEDE:
        await connection.execute(
            update(walkthrough_versions)
            .where(
                *of_walkthrough,
                walkthrough_versions.c.version < number,
                walkthrough_versions.c.state == VersionState.PUBLISHED,
            )
            .values(state=VersionState.WITHDRAWN)
        )
    await _mark(connection, organization_id, id, number, now)


async def _mark(
    connection: AsyncConnection, organization_id: OrganizationId, id: WalkthroughId, latest: int, now: Millis
) -> None:
    await connection.execute(
        update(walkthroughs)
        .where(walkthroughs.c.organization_id == organization_id, walkthroughs.c.id == id)
        .values(is_published=True, latest_version=latest, updated_at=now)
    )


async def _place(
    connection: AsyncConnection,
    organization_id: OrganizationId,
    id: WalkthroughId,
    placements: Sequence[Placement],
    now: Millis,
) -> Sequence[Assignment]:
    """Assigns, each server in the order given; a place is kept unless another one is named."""
    table = mcp_server_walkthroughs
    assignments = []
    for placement in placements:
        last = select(func.coalesce(func.max(table.c.display_order), 0) + 1).where(
            table.c.organization_id == organization_id, table.c.mcp_server_id == placement.server.server_id
        )
        order = last.scalar_subquery() if placement.display_order is None else bindparam("at", placement.display_order)
        statement = insert(table).values(
            organization_id=organization_id,
            mcp_server_id=placement.server.server_id,
            walkthrough_id=id,
            display_order=order,
            created_at=now,
        )
        kept = table.c.display_order if placement.display_order is None else placement.display_order
        row = (
            await connection.execute(
                statement.on_conflict_do_update(constraint=table.primary_key, set_={"display_order": kept}).returning(
                    table.c.display_order, table.c.is_enabled
                )
            )
        ).one()
        assignments.append(Assignment(placement.server, id, row.display_order, row.is_enabled))
    return assignments
