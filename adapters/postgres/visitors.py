"""Visitors, and what becomes of their progress when they sign in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg
from sqlalchemy import bindparam, exists, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.postgres.connections import Database
from adapters.postgres.tables import (
    mcp_server_user_identities,
    mcp_server_users,
    walkthrough_progress,
    walkthrough_progress_events,
)
from application.ports import Visitor
from domain.errors import NotFound
from domain.progress import Merge, Progress, ProgressEvent, ProgressKey
from domain.sign_in import UNUSED_VISITOR_LIFETIME, VISITOR_ISSUER, IdentityKey
from domain.tenancy import Millis, ServerKey, UserId

# A function of the database, which names the organisation before it reads (migration 0007).
_VISITOR = "select * from visitor_of($1, $2, $3)"

# Those that a new visitor finds to be forgotten, in two steps: progress that is begun while they are locked is seen by
# the second. Ids are random, so that a hundred others are looked at each time, and nobody is passed over for ever. Only
# some go at once, since what goes with a user is looked for without an index; one comes, so those to go stay few.
_UNUSED = """
with seen as (
    select id from mcp_server_users
     where organization_id = :organization and id < :new_user and email is null and merged_into is null
     order by id desc limit 100
)
select id from mcp_server_users as visitor
 where organization_id = :organization and id in (select id from seen) and first_seen_at < :until and not {has_begun}
 limit 10 for update skip locked
"""
_FORGET = """
delete from mcp_server_users as visitor
 where organization_id = :organization and id = any(cast(:unused as text[])) and not {has_begun}
"""
# By server, as the key of progress begins with it.
_HAS_BEGUN = """exists (
    select from mcp_servers s
      join walkthrough_progress p on p.organization_id = s.organization_id and p.mcp_server_id = s.id
       and p.mcp_server_user_id = visitor.id
     where s.organization_id = :organization)"""

_PROGRESS, _EVENTS = walkthrough_progress.c, walkthrough_progress_events.c
_KEY = ("organization_id", "mcp_server_id", "mcp_server_user_id", "walkthrough_id")
# A function of the database (migration 0009): a visitor's progress, with all that happened to it, is the account's from
# then on that the visitor is merged into.
_HAND_OVER = text("select hand_over_progress(:organization_id, :mcp_server_id, :mcp_server_user_id, :walkthrough_id)")
_REVISE = (
    update(walkthrough_progress)
    .where(*(_PROGRESS[column] == bindparam(f"of_{column}") for column in _KEY))
    .values(
        {
            column.name: bindparam(f"new_{column.name}", type_=column.type)
            for column in _PROGRESS
            if column.name not in _KEY
        }
    )
)


class PostgresVisitorStore:
    """`VisitorStore` on PostgreSQL: compares and sets; decides nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, server: ServerKey, visitor_hash: bytes, new_user: UserId, now: Millis) -> None:
        user = insert(mcp_server_users).values(
            organization_id=server.organization_id, id=new_user, first_seen_at=now, last_seen_at=now
        )
        known_by = IdentityKey.of_visitor(server.server_id, visitor_hash)
        identity = insert(mcp_server_user_identities).values(
            organization_id=server.organization_id,
            issuer=known_by.issuer,
            subject=known_by.subject,
            mcp_server_user_id=new_user,
            created_at=now,
        )
        async with self._database.transaction(server.organization_id) as connection:
            await connection.execute(user)
            await connection.execute(identity)
            await _forget_unused(connection, server, new_user, now)

    async def find(self, server: ServerKey, visitor_hash: bytes) -> Visitor | None:
        known_by = IdentityKey.of_visitor(server.server_id, visitor_hash)
        row = await self._database.look_up(_VISITOR, server.organization_id, known_by.issuer, known_by.subject)
        return None if row is None else Visitor(row["id"], row["merged_into"])

    async def merge(
        self, server: ServerKey, visitor: UserId, account: UserId, merges: Sequence[Merge]
    ) -> UserId | None:
        try:
            async with self._database.transaction(server.organization_id) as connection:
                kept_by = await _hold(connection, server, visitor, account)
                if kept_by is not None:
                    return kept_by
                if not await _is_as_decided_on(connection, server, visitor, account, merges):
                    return None
                # First, as it is by this that the database knows to whom what they did may go.
                await connection.execute(
                    update(mcp_server_users)
                    .where(
                        mcp_server_users.c.organization_id == server.organization_id, mcp_server_users.c.id == visitor
                    )
                    .values(merged_into=account)
                )
                await _store(connection, merges)
                return account
        except IntegrityError as error:
            # The account has begun one of them in this very moment.
            if error.orig is not None and isinstance(error.orig.__cause__, asyncpg.UniqueViolationError):
                return None
            raise


async def _forget_unused(connection: AsyncConnection, server: ServerKey, new_user: UserId, now: Millis) -> None:
    organization = {"organization": server.organization_id}
    found = text(_UNUSED.format(has_begun=_HAS_BEGUN))
    given = {"new_user": new_user, "until": now - UNUSED_VISITOR_LIFETIME}
    unused = (await connection.scalars(found, organization | given)).all()
    if unused:
        await connection.execute(text(_FORGET.format(has_begun=_HAS_BEGUN)), organization | {"unused": unused})


async def _hold(connection: AsyncConnection, server: ServerKey, visitor: UserId, account: UserId) -> UserId | None:
    """Keeps the visitor from beginning anything, and others from merging into the account; whose the visitor is."""
    users, identities = mcp_server_users.c, mcp_server_user_identities.c
    is_visitor_here = exists().where(
        identities.organization_id == server.organization_id,
        identities.issuer == VISITOR_ISSUER + server.server_id,
        identities.mcp_server_user_id == visitor,
    )
    found = (
        await connection.execute(
            select(users.merged_into)
            .where(users.organization_id == server.organization_id, users.id == visitor, is_visitor_here)
            .with_for_update()  # beginning takes the key's lock
        )
    ).one_or_none()
    if found is None:
        raise NotFound("there is no such visitor on this server")
    if found.merged_into is not None:
        return UserId(found.merged_into)
    person = await connection.scalar(
        select(users.id)
        .where(users.organization_id == server.organization_id, users.id == account, users.email.is_not(None))
        .with_for_update(key_share=True)  # the account may begin meanwhile
    )
    if person is None:
        raise NotFound("there is no such person in this organisation")
    return None


async def _is_as_decided_on(
    connection: AsyncConnection, server: ServerKey, visitor: UserId, account: UserId, merges: Sequence[Merge]
) -> bool:
    """Whether both sides still stand where they did. Whatever they have begun stays so until the end."""
    decided_on = {
        (before.key.user_id, before.key.walkthrough_id): before.revision
        for merge in merges
        for before in [merge.visitor.before, *([merge.account.before] if merge.account else [])]
    }
    rows = await connection.execute(
        select(_PROGRESS.mcp_server_user_id, _PROGRESS.walkthrough_id, _PROGRESS.revision)
        .where(
            _PROGRESS.organization_id == server.organization_id,
            _PROGRESS.mcp_server_id == server.server_id,
            or_(
                _PROGRESS.mcp_server_user_id == visitor,
                (_PROGRESS.mcp_server_user_id == account)
                & _PROGRESS.walkthrough_id.in_([merge.visitor.before.key.walkthrough_id for merge in merges]),
            ),
        )
        .with_for_update()
    )
    return decided_on == {(row.mcp_server_user_id, row.walkthrough_id): row.revision for row in rows}


async def _store(connection: AsyncConnection, merges: Sequence[Merge]) -> None:
    handed_over = [merge.visitor.before.key for merge in merges if merge.visitor.after.key != merge.visitor.before.key]
    if handed_over:
        await connection.execute(_HAND_OVER, [_key_row(key) for key in handed_over])
    revised = [each for merge in merges for each in (merge.visitor, merge.account) if each is not None and each.events]
    if revised:
        await connection.execute(_REVISE, [_revision(each.after) for each in revised])
        events = [_event_row(each.after.key, event) for each in revised for event in each.events]
        await connection.execute(insert(walkthrough_progress_events), events)


def _revision(after: Progress) -> dict[str, Any]:
    return {f"of_{column}": value for column, value in _key_row(after.key).items()} | {
        f"new_{column}": value for column, value in _progress_row(after).items()
    }


def _key_row(key: ProgressKey) -> dict[str, Any]:
    return dict(zip(_KEY, (key.organization_id, key.server_id, key.user_id, key.walkthrough_id), strict=True))


def _progress_row(progress: Progress) -> dict[str, Any]:
    return {
        "version": progress.version,
        "attempt": progress.attempt,
        "revision": progress.revision,
        "current_step_id": progress.current_step_id,
        "carried": sorted(progress.carried),
        "status": progress.status,
        "started_at": progress.started_at,
        "last_activity_at": progress.last_activity_at,
        "completed_at": progress.completed_at,
    }


def _event_row(key: ProgressKey, event: ProgressEvent) -> dict[str, Any]:
    return _key_row(key) | {
        "revision": event.revision,
        "attempt": event.attempt,
        "version": event.version,
        "kind": event.kind,
        "from_step_id": event.from_step_id,
        "to_step_id": event.to_step_id,
        "outcome": event.outcome,
        "note": event.note,
        "occurred_at": event.occurred_at,
    }
