"""Sign-ins under way, and who is who."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, and_, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.postgres.connections import Database
from adapters.postgres.tables import mcp_server_user_identities, mcp_server_users, oauth_authorizations
from application.ports import SignInKey, SignInUnderWay
from domain.errors import TemporarilyUnavailable
from domain.sign_in import SIGN_IN_LIFETIME, IdentityKey, SignInState, whose
from domain.tenancy import Millis, OrganizationId, UserId

# Each time somebody else was first, and is known by the next.
_ATTEMPTS = 3
# What is swept in passing, so that nobody waits for it.
_MAX_SWEPT = 100

_ROW = oauth_authorizations.c


def stored_state(state: SignInState) -> Mapping[str, Any]:
    """What a state is in JSON: the column `sign_in`."""
    values: dict[str, Any] = msgspec.to_builtins(state)
    return values


class PostgresSignInStore:
    """`SignInStore` on PostgreSQL. Those who change one sign-in queue up on its row."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin_keeping(self, key: SignInKey, visitor: UserId, state: SignInState, now: Millis) -> None:
        async with self._database.transaction(key.server.organization_id) as connection:
            await sweep(connection, key, now)
            await connection.execute(
                insert(oauth_authorizations).values(
                    organization_id=key.server.organization_id,
                    mcp_server_id=key.server.server_id,
                    id_hash=key.id_hash,
                    browser_hash=key.browser_hash,
                    request=None,
                    visitor_id=visitor,
                    sign_in=stored_state(state),
                    created_at=now,
                    expires_at=now + SIGN_IN_LIFETIME,
                )
            )

    async def read(self, key: SignInKey, now: Millis) -> SignInUnderWay | None:
        async with self._database.transaction(key.server.organization_id) as connection:
            return await _read(connection, key, now, is_locked=False)

    async def change(
        self, key: SignInKey, decide: Callable[[SignInState], SignInState], now: Millis
    ) -> SignInUnderWay | None:
        async with self._database.transaction(key.server.organization_id) as connection:
            found = await _read(connection, key, now, is_locked=True)
            if found is None:
                return None
            state = decide(found.state)
            if state != found.state:
                await connection.execute(
                    update(oauth_authorizations).where(_by(key)).values(sign_in=stored_state(state))
                )
        return SignInUnderWay(state, found.visitor)


async def sweep(connection: AsyncConnection, key: SignInKey, now: Millis) -> None:
    """Forgets sign-ins of this server whose time is over: what was typed there is nobody's business any more."""
    over = (
        select(_ROW.id_hash)
        .where(
            _ROW.organization_id == key.server.organization_id,
            _ROW.mcp_server_id == key.server.server_id,
            _ROW.expires_at <= now,
        )
        .limit(_MAX_SWEPT)
        .with_for_update(skip_locked=True)
    )
    await connection.execute(
        oauth_authorizations.delete().where(
            _ROW.organization_id == key.server.organization_id,
            _ROW.mcp_server_id == key.server.server_id,
            _ROW.id_hash.in_(over),
        )
    )


async def _read(connection: AsyncConnection, key: SignInKey, now: Millis, *, is_locked: bool) -> SignInUnderWay | None:
    statement = select(_ROW.sign_in, _ROW.visitor_id).where(_by(key), _ROW.expires_at > now)
    row = (await connection.execute(statement.with_for_update() if is_locked else statement)).one_or_none()
    return None if row is None else SignInUnderWay(msgspec.convert(row.sign_in, SignInState), row.visitor_id)


def _by(key: SignInKey) -> ColumnElement[bool]:
    return and_(
        _ROW.organization_id == key.server.organization_id,
        _ROW.mcp_server_id == key.server.server_id,
        _ROW.id_hash == key.id_hash,
        _ROW.browser_hash == key.browser_hash,
    )


class PostgresPeople:
    """`People` on PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def person(
        self, organization_id: OrganizationId, identity: IdentityKey | None, email: str, new_user: UserId, now: Millis
    ) -> UserId:
        async with self._database.transaction(organization_id) as connection:
            return await person(connection, organization_id, identity, email, new_user, now)


async def person(
    connection: AsyncConnection,
    organization_id: OrganizationId,
    identity: IdentityKey | None,
    email: str,
    new_user: UserId,
    now: Millis,
) -> UserId:
    """What `People.person` does, within a transaction.

    Two who come at once for the first time meet on a unique constraint: of the address, where they have that in common,
    else of the identity. The second then waits for the first, takes back what it did, and finds that person.
    """
    address = IdentityKey.of_address(email)
    leading = identity or address
    for _ in range(_ATTEMPTS):
        async with connection.begin_nested() as attempt:
            known = await _known(connection, organization_id, {leading, address})
            by_address = known.get(address) or await _by_email(connection, organization_id, email)
            found = whose(known.get(leading), by_address)
            if found is None:
                user_id = await _new(connection, organization_id, email, new_user, now)
                found = user_id, user_id
            elif not await _seen(connection, organization_id, found[0], now):
                await attempt.rollback()  # erased meanwhile
                continue
            user_id, has_address = found
            await _let_be_known(connection, organization_id, {address: has_address, leading: user_id}, now)
            known = await _known(connection, organization_id, {leading})
            if known.get(leading) == user_id:
                return user_id
            await attempt.rollback()
    raise TemporarilyUnavailable


_KNOWN_BY = mcp_server_user_identities.c
_USER = mcp_server_users.c


async def _known(
    connection: AsyncConnection, organization_id: OrganizationId, keys: set[IdentityKey]
) -> Mapping[IdentityKey, UserId]:
    rows = await connection.execute(
        select(_KNOWN_BY.issuer, _KNOWN_BY.subject, _KNOWN_BY.mcp_server_user_id).where(
            _KNOWN_BY.organization_id == organization_id,
            tuple_(_KNOWN_BY.issuer, _KNOWN_BY.subject).in_([(key.issuer, key.subject) for key in keys]),
        )
    )
    return {IdentityKey(row.issuer, row.subject): UserId(row.mcp_server_user_id) for row in rows}


async def _by_email(connection: AsyncConnection, organization_id: OrganizationId, email: str) -> UserId | None:
    # Whom the previous release has let in has no row among the identities.
    user_id = await connection.scalar(
        select(_USER.id).where(_USER.organization_id == organization_id, _USER.email == email)
    )
    return None if user_id is None else UserId(user_id)


async def _new(
    connection: AsyncConnection, organization_id: OrganizationId, email: str, new_user: UserId, now: Millis
) -> UserId:
    statement = insert(mcp_server_users).values(
        organization_id=organization_id,
        id=new_user,
        email=email,
        email_verified_at=now,
        first_seen_at=now,
        last_seen_at=now,
    )
    # An update makes the row come back whether or not it was there.
    added = statement.on_conflict_do_update(
        index_elements=["organization_id", "email"],
        set_={"last_seen_at": func.greatest(_USER.last_seen_at, statement.excluded.last_seen_at)},
    )
    return UserId((await connection.execute(added.returning(_USER.id))).scalar_one())


async def _seen(connection: AsyncConnection, organization_id: OrganizationId, user_id: UserId, now: Millis) -> bool:
    statement = (
        update(mcp_server_users)
        .where(_USER.organization_id == organization_id, _USER.id == user_id)
        .values(last_seen_at=func.greatest(_USER.last_seen_at, now))
    )
    return (await connection.execute(statement)).rowcount == 1


async def _let_be_known(
    connection: AsyncConnection, organization_id: OrganizationId, owners: Mapping[IdentityKey, UserId], now: Millis
) -> None:
    rows = [
        {
            "organization_id": organization_id,
            "issuer": key.issuer,
            "subject": key.subject,
            "mcp_server_user_id": user_id,
            "created_at": now,
        }
        # In one order always: two who add the same rows do not wait for each other in a circle.
        for key, user_id in sorted(owners.items(), key=lambda each: (each[0].issuer, each[0].subject))
    ]
    await connection.execute(insert(mcp_server_user_identities).values(rows).on_conflict_do_nothing())
