"""What is stored about people: listed, read as a whole, and erased.

Rows are held in one order everywhere, here and where tokens are issued: grant, person, sign-in, and then the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    RowMapping,
    Select,
    String,
    and_,
    bindparam,
    delete,
    or_,
    select,
    text,
    tuple_,
    union,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.postgres.connections import Database, act_for
from adapters.postgres.learning import stored_event, stored_progress
from adapters.postgres.tables import (
    access_tokens,
    mcp_server_user_identities,
    mcp_server_users,
    mcp_servers,
    oauth_authorizations,
    oauth_codes,
    oauth_grants,
    oauth_refresh_tokens,
    tool_calls,
    walkthrough_progress,
    walkthrough_progress_events,
    walkthroughs,
)
from application.ports import Begun, ForgottenCalls, PersonalRecord, PersonSummary, ToolCall
from domain.progress import ProgressEvent, ProgressKey
from domain.sign_in import EMAIL_ISSUER, VISITOR_ISSUER
from domain.tenancy import Caller, CallId, Millis, OrganizationId, ServerId, ServerKey, UserId

# The call log has no index by person: it would be paid for at every call, and is wanted a few times a year. So it is
# read in stretches of this many calls. Each takes a small part of the time that a statement has.
_STRETCH_CALLS = 50_000

# Those with an address come first, by address, then visitors by id: each part along an index, and no longer than a
# page. What is begun is counted by server, as the key of progress begins with it.
_PEOPLE = """
with person as (
    (select u.id, u.email, u.first_seen_at, u.last_seen_at from mcp_server_users u
      where u.organization_id = :organization and u.email > :address and {is_here}
      order by u.email limit :limit)
    union all
    (select u.id, u.email, u.first_seen_at, u.last_seen_at from mcp_server_users u
      where u.organization_id = :organization and u.id > :id and u.email is null and u.merged_into is null and {is_here}
      order by u.id limit :limit)
)
select person.*, begun.begun, begun.completed
  from person,
       lateral (select count(*) as begun, count(*) filter (where p.status = 'completed') as completed
                  from mcp_servers s
                  join walkthrough_progress p
                    on p.organization_id = s.organization_id and p.mcp_server_id = s.id
                   and p.mcp_server_user_id = person.id
                 where s.organization_id = :organization and (cast(:server as text) is null or s.id = :server)) as begun
 order by person.email nulls last, person.id
 limit :limit
"""
_ANYWHERE = "true"
_HERE = """(
    exists (select from walkthrough_progress p where p.organization_id = u.organization_id
               and p.mcp_server_id = :server and p.mcp_server_user_id = u.id)
    or exists (select from access_tokens t where t.organization_id = u.organization_id
                  and t.mcp_server_user_id = u.id and t.mcp_server_id = :server)
    or exists (select from oauth_grants g where g.organization_id = u.organization_id
                  and g.mcp_server_user_id = u.id and g.mcp_server_id = :server and g.revoked_at is null)
    or exists (select from mcp_server_user_identities i where i.organization_id = u.organization_id
                  and i.mcp_server_user_id = u.id and i.issuer = :visitors_here))"""

_USER = mcp_server_users.c
_IDENTITY = mcp_server_user_identities.c
_SIGN_IN = oauth_authorizations.c
_CALL = tool_calls.c


def known_as(organization_id: OrganizationId, who: str) -> CompoundSelect[str]:
    """The person with this verified address, in lower case, or this id."""
    return union(
        select(_USER.id).where(_USER.organization_id == organization_id, or_(_USER.id == who, _USER.email == who)),
        select(_IDENTITY.mcp_server_user_id).where(
            _IDENTITY.organization_id == organization_id, _IDENTITY.issuer == EMAIL_ISSUER, _IDENTITY.subject == who
        ),
    )


class PostgresPersonalDataStore:
    """`PersonalDataStore` on PostgreSQL."""

    def __init__(self, database: Database, *, stretch_calls: int = _STRETCH_CALLS) -> None:
        self._database = database
        self._stretch_calls = stretch_calls

    async def people(
        self, organization_id: OrganizationId, server_id: ServerId | None, after: str | None, limit: int
    ) -> Sequence[PersonSummary]:
        is_address = after is None or "@" in after
        parameters = {
            "organization": organization_id,
            "server": server_id,
            "visitors_here": VISITOR_ISSUER + (server_id or ""),
            # Behind a visitor there is nobody with an address: nothing comes after null.
            "address": (after or "") if is_address else None,
            "id": "" if is_address else after,
            "limit": limit,
        }
        statement = text(_PEOPLE.format(is_here=_ANYWHERE if server_id is None else _HERE)).bindparams(
            bindparam("server", type_=String), bindparam("address", type_=String)
        )
        async with self._database.transaction(organization_id) as connection:
            rows = (await connection.execute(statement, parameters)).all()
        return [PersonSummary(*row) for row in rows]

    async def find(self, organization_id: OrganizationId, who: str) -> UserId | None:
        async with self._database.transaction(organization_id) as connection:
            found = await connection.scalar(known_as(organization_id, who))
        return None if found is None else UserId(found)

    async def record(self, organization_id: OrganizationId, user_id: UserId) -> PersonalRecord | None:
        async with self._database.transaction(None) as connection:
            # Before the first statement, or it is too late.
            await connection.execute(text("set transaction isolation level repeatable read, read only"))
            await act_for(connection, organization_id)
            return await _record(connection, organization_id, user_id)

    async def calls(
        self, organization_id: OrganizationId, users: Collection[UserId], since: Millis
    ) -> tuple[Sequence[ToolCall], Millis | None]:
        async with self._database.transaction(organization_id) as connection:
            following, theirs = await self._stretch(connection, organization_id, users, since)
            rows = await connection.execute(select(tool_calls).where(theirs).order_by(_CALL.created_at, _CALL.id))
            return [_call(row) for row in rows.mappings()], following

    async def forget_calls(
        self, organization_id: OrganizationId, users: Collection[UserId], since: Millis
    ) -> ForgottenCalls:
        async with self._database.transaction(organization_id) as connection:
            following, theirs = await self._stretch(connection, organization_id, users, since)
            return ForgottenCalls(await _forget(connection, theirs), following)

    async def erase(
        self, organization_id: OrganizationId, users: Collection[UserId], calls_since: Millis
    ) -> int | None:
        async with self._database.transaction(organization_id) as connection:
            grants = select(oauth_grants.c.id).where(
                oauth_grants.c.organization_id == organization_id, oauth_grants.c.mcp_server_user_id.in_(users)
            )
            await connection.execute(grants.order_by(oauth_grants.c.id).with_for_update())
            held = select(_USER.id).where(
                _USER.organization_id == organization_id, or_(_USER.id.in_(users), _USER.merged_into.in_(users))
            )
            if set((await connection.scalars(held.order_by(_USER.id).with_for_update())).all()) != set(users):
                return None
            await _end_sign_ins(connection, organization_id, users)
            # One by one: what goes with a person is looked for without an index, and a statement has three seconds.
            for user_id in users:
                await connection.execute(
                    delete(mcp_server_users).where(_USER.organization_id == organization_id, _USER.id == user_id)
                )
            theirs = _calls_of(organization_id, users)
            return await _forget(connection, and_(theirs, _CALL.created_at >= calls_since))

    async def _stretch(
        self, connection: AsyncConnection, organization_id: OrganizationId, users: Collection[UserId], since: Millis
    ) -> tuple[Millis | None, ColumnElement[bool]]:
        """Where the stretch that begins at `since` ends, and the calls of these in it."""
        beyond = (
            select(_CALL.created_at)
            .where(_CALL.organization_id == organization_id, _CALL.created_at >= since)
            .order_by(_CALL.created_at)
            .offset(self._stretch_calls)
            .limit(1)
        )
        end: int | None = await connection.scalar(beyond)
        theirs = and_(_calls_of(organization_id, users), _CALL.created_at >= since)
        if end is None:
            return None, theirs
        # At least a millisecond, however many calls it holds.
        end = max(end, since + 1)
        return Millis(end), and_(theirs, _CALL.created_at < end)


def _calls_of(organization_id: OrganizationId, users: Collection[UserId]) -> ColumnElement[bool]:
    return and_(_CALL.organization_id == organization_id, _CALL.mcp_server_user_id.in_(users))


async def _forget(connection: AsyncConnection, which: ColumnElement[bool]) -> int:
    nobody: Mapping[str, Any] = {"mcp_server_user_id": None, "client_name": None, "client_version": None, "input": {}}
    return (await connection.execute(update(tool_calls).where(which).values(nobody))).rowcount


async def _end_sign_ins(
    connection: AsyncConnection, organization_id: OrganizationId, users: Collection[UserId]
) -> None:
    await connection.execute(
        delete(oauth_authorizations).where(await _is_sign_in_of(connection, organization_id, users))
    )


async def _is_sign_in_of(
    connection: AsyncConnection, organization_id: OrganizationId, users: Collection[UserId]
) -> ColumnElement[bool]:
    """Which sign-ins under way name one of these: as the visitor who begins it, by an address or by an identity."""
    rows = await connection.execute(
        select(_IDENTITY.issuer, _IDENTITY.subject).where(
            _IDENTITY.organization_id == organization_id, _IDENTITY.mcp_server_user_id.in_(users)
        )
    )
    known = {(row.issuer, row.subject) for row in rows}
    emails = await connection.scalars(
        select(_USER.email).where(
            _USER.organization_id == organization_id, _USER.id.in_(users), _USER.email.is_not(None)
        )
    )
    addresses = {subject for issuer, subject in known if issuer == EMAIL_ISSUER} | set(emails)
    proven = _SIGN_IN.sign_in["proven"]
    return and_(
        _SIGN_IN.organization_id == organization_id,
        or_(
            _SIGN_IN.visitor_id.in_(users),
            _SIGN_IN.sign_in["email"].astext.in_(addresses),
            tuple_(proven["issuer"].astext, proven["subject"].astext).in_(known),
        ),
    )


# ------------------------------------------------------------------------------------------------ the record


async def _record(
    connection: AsyncConnection, organization_id: OrganizationId, user_id: UserId
) -> PersonalRecord | None:
    users = await _rows(
        connection,
        select(
            _USER.id, _USER.email, _USER.email_verified_at, _USER.first_seen_at, _USER.last_seen_at, _USER.merged_into
        )
        .where(_USER.organization_id == organization_id, or_(_USER.id == user_id, _USER.merged_into == user_id))
        .order_by(_USER.merged_into.is_not(None), _USER.first_seen_at, _USER.id),
    )
    if not users or users[0]["id"] != user_id:
        return None
    ids = [row["id"] for row in users]
    return PersonalRecord(
        user_id=user_id,
        email=users[0]["email"],
        users=users,
        identities=await _identities(connection, organization_id, ids),
        begun=await _begun(connection, organization_id, ids),
        grants=await _grants(connection, organization_id, ids),
        tokens=await _rows(
            connection,
            _at_servers(
                access_tokens, "grant_id", "scope", "created_at", "expires_at", of=organization_id, users=ids
            ).order_by(access_tokens.c.created_at),
        ),
        sign_ins=await _sign_ins(connection, organization_id, ids),
    )


async def _rows(connection: AsyncConnection, statement: Select[Any]) -> Sequence[Mapping[str, Any]]:
    return [dict(row) for row in (await connection.execute(statement)).mappings()]


def _at_servers(table: Any, *columns: str, of: OrganizationId, users: Sequence[UserId] | None = None) -> Select[Any]:
    """These columns of a table, with the slug of the server that each row belongs to."""
    chosen = [mcp_servers.c.organization_id == of]
    if users is not None:
        chosen.append(table.c.mcp_server_user_id.in_(users))
    return (
        select(mcp_servers.c.slug.label("server"), *(table.c[name] for name in columns))
        .join_from(
            mcp_servers,
            table,
            and_(table.c.organization_id == mcp_servers.c.organization_id, table.c.mcp_server_id == mcp_servers.c.id),
        )
        .where(*chosen)
    )


async def _identities(
    connection: AsyncConnection, organization_id: OrganizationId, users: Sequence[UserId]
) -> Sequence[Mapping[str, Any]]:
    rows = await _rows(
        connection,
        select(_IDENTITY.mcp_server_user_id.label("user_id"), _IDENTITY.issuer, _IDENTITY.subject, _IDENTITY.created_at)
        .where(_IDENTITY.organization_id == organization_id, _IDENTITY.mcp_server_user_id.in_(users))
        .order_by(_IDENTITY.created_at, _IDENTITY.issuer, _IDENTITY.subject),
    )
    # What a visitor is known by is the hash of a secret.
    return [{**row, "subject": None} if row["issuer"].startswith(VISITOR_ISSUER) else row for row in rows]


async def _begun(
    connection: AsyncConnection, organization_id: OrganizationId, users: Sequence[UserId]
) -> Sequence[Begun]:
    progress, events = walkthrough_progress.c, walkthrough_progress_events.c
    rows = await connection.execute(
        select(mcp_servers.c.slug, walkthroughs.c.key, walkthrough_progress)
        .join_from(
            mcp_servers,
            walkthrough_progress,
            and_(progress.organization_id == mcp_servers.c.organization_id, progress.mcp_server_id == mcp_servers.c.id),
        )
        .join(
            walkthroughs,
            and_(walkthroughs.c.organization_id == organization_id, walkthroughs.c.id == progress.walkthrough_id),
        )
        .where(mcp_servers.c.organization_id == organization_id, progress.mcp_server_user_id.in_(users))
        .order_by(mcp_servers.c.slug, walkthroughs.c.key, progress.mcp_server_user_id)
    )
    stored = [(_key(organization_id, row), row) for row in rows.mappings()]
    happened: dict[ProgressKey, list[ProgressEvent]] = {key: [] for key, _ in stored}
    which = tuple_(events.mcp_server_id, events.mcp_server_user_id, events.walkthrough_id)
    found = await connection.execute(
        select(walkthrough_progress_events)
        .where(
            events.organization_id == organization_id,
            which.in_([(key.server_id, key.user_id, key.walkthrough_id) for key in happened]),
        )
        .order_by(events.revision)
    )
    for row in found.mappings():
        happened[_key(organization_id, row)].append(stored_event(row))
    return [Begun(row["slug"], row["key"], stored_progress(key, row), happened[key]) for key, row in stored]


def _key(organization_id: OrganizationId, row: RowMapping) -> ProgressKey:
    return ProgressKey(organization_id, row["mcp_server_id"], row["mcp_server_user_id"], row["walkthrough_id"])


async def _grants(
    connection: AsyncConnection, organization_id: OrganizationId, users: Sequence[UserId]
) -> Sequence[Mapping[str, Any]]:
    grants = await _rows(
        connection,
        _at_servers(
            oauth_grants,
            *("id", "client_id", "client_name", "scope", "created_at", "revoked_at", "good_until"),
            of=organization_id,
            users=users,
        ).order_by(oauth_grants.c.created_at, oauth_grants.c.id),
    )
    issued: dict[str, dict[str, list[Mapping[str, Any]]]] = {
        grant["id"]: {"codes": [], "refresh_tokens": []} for grant in grants
    }
    for section, table, columns in (
        ("codes", oauth_codes, ("redirect_uri", "expires_at", "used_at")),
        ("refresh_tokens", oauth_refresh_tokens, ("created_at", "expires_at", "rotated_at")),
    ):
        statement = (
            select(table.c.grant_id, *(table.c[name] for name in columns))
            .where(table.c.organization_id == organization_id, table.c.grant_id.in_(issued))
            .order_by(table.c.expires_at)
        )
        for row in await _rows(connection, statement):
            issued[row["grant_id"]][section].append({name: row[name] for name in columns})
    return [{**grant, **issued[grant["id"]]} for grant in grants]


async def _sign_ins(
    connection: AsyncConnection, organization_id: OrganizationId, users: Sequence[UserId]
) -> Sequence[Mapping[str, Any]]:
    which = await _is_sign_in_of(connection, organization_id, users)
    columns = ("visitor_id", "request", "sign_in", "created_at", "expires_at")
    rows = await _rows(connection, _at_servers(oauth_authorizations, *columns, of=organization_id).where(which))
    return [{**row, "sign_in": _without_hashes(row["sign_in"])} for row in rows]


def _without_hashes(sign_in: Mapping[str, Any]) -> Mapping[str, Any]:
    code = sign_in.get("code")
    kept = {name: value for name, value in sign_in.items() if name not in ("away", "code")}
    return kept | ({"code": {name: code[name] for name in code if name != "code_hash"}} if code else {})


def _call(row: RowMapping) -> ToolCall:
    return ToolCall(
        id=CallId(row["id"]),
        caller=Caller(ServerKey(row["organization_id"], row["mcp_server_id"]), row["mcp_server_user_id"]),
        tool_name=row["tool_name"],
        client_name=row["client_name"],
        client_version=row["client_version"],
        protocol_version=row["protocol_version"],
        walkthrough_id=row["walkthrough_id"],
        version=row["version"],
        step_id=row["step_id"],
        outcome=row["outcome"],
        error_code=row["error_code"],
        duration_us=row["duration_us"],
        input=row["input"],
        created_at=row["created_at"],
    )
