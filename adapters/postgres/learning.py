"""What a tool call reads and writes: catalogue, content and progress. The hot statements."""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence

from asyncpg import Record
from sqlalchemy import RowMapping

from adapters.postgres.connections import Database
from application.ports import Standing, VersionSummary
from domain.progress import (
    EventKind,
    Outcome,
    Progress,
    ProgressEvent,
    ProgressKey,
    Status,
    Transition,
)
from domain.tenancy import Caller, Millis, OrganizationId, StepId, WalkthroughId
from domain.walkthrough import (
    Delivery,
    Publication,
    PublishPolicy,
    Step,
    StepText,
    Version,
    VersionKey,
    VersionState,
    WalkthroughType,
)

# Functions of the database, which name the organisation before they read or write (migration 0009): $1.
_STANDINGS = "select * from standings_here($1, $2, $3)"
_NAMED = "select * from standings_named($1, $2, $3, $4)"


class PostgresCatalogue:
    """`Catalogue` on PostgreSQL: one statement a call, whatever there is."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def standings(self, caller: Caller) -> Sequence[Standing]:
        server = caller.server
        async with self._database.hot() as connection:
            rows = await connection.fetch(_STANDINGS, server.organization_id, server.server_id, caller.user_id)
        return [_standing(server.organization_id, row) for row in rows]

    async def matching(self, caller: Caller, reference: str) -> Sequence[Standing]:
        if not _is_storable(reference):
            return []
        server = caller.server
        async with self._database.hot() as connection:
            rows = await connection.fetch(_NAMED, server.organization_id, server.server_id, caller.user_id, reference)
        return [_standing(server.organization_id, row) for row in rows]


def _is_storable(text: str) -> bool:
    """Whether PostgreSQL can hold it: nothing stored contains NUL or a lone surrogate, so nothing matches."""
    return not any(letter == "\x00" or "\ud800" <= letter <= "\udfff" for letter in text)


# A list makes one of each a row, and to call the enum takes ten times as long.
_POLICIES = {each.value: each for each in PublishPolicy}
_TYPES = {each.value: each for each in WalkthroughType}


def _standing(organization_id: OrganizationId, row: Record) -> Standing:
    # As the functions return them (migration 0009), and in this order: by name, twenty-five take twice as long.
    id, key, is_published, archived_at, latest_version, on_publish, is_enabled = row[:7]
    number, state, title, description, type, step_count, estimated_minutes = row[7:14]
    progress = None
    if row["revision"] is not None:
        progress_key = ProgressKey(organization_id, row["mcp_server_id"], row["mcp_server_user_id"], id)
        progress = stored_progress(progress_key, row)
    # By place, which takes half as long as by name.
    is_available = is_published and archived_at is None and bool(is_enabled)
    is_withdrawn = progress is not None and state == VersionState.WITHDRAWN
    publication = Publication(latest_version, _POLICIES[on_publish], is_available, is_withdrawn)
    shown = VersionSummary(number, title, description, _TYPES[type], step_count, estimated_minutes)
    return Standing(organization_id, id, key, publication, shown, progress)


def stored_progress(key: ProgressKey, row: RowMapping | Record) -> Progress:
    """Where somebody stands, from its row by column name, whichever driver has read it."""
    return Progress(
        key=key,
        version=row["version"],
        attempt=row["attempt"],
        revision=row["revision"],
        status=Status(row["status"]),
        current_step_id=row["current_step_id"],
        carried=frozenset(row["carried"]),
        started_at=row["started_at"],
        last_activity_at=row["last_activity_at"],
        completed_at=row["completed_at"],
    )


# ------------------------------------------------------------------------------------------------- content

# One row a step; the version's own columns come with each, which is cheaper than a second statement. Numbers
# travel as text: of all arrays the driver knows those of text without asking the server on each new connection.
_CONTENT = """
select v.walkthrough_id, v.version, v.title as version_title, v.description, v.type,
       s.id, s.key, s.title, s.content, s.assistant_notes, s.workspace_actions, s.done_when, s.delivery,
       s.estimated_minutes
  from unnest($2::text[], $3::text[]::integer[]) as wanted (walkthrough_id, version)
  join walkthrough_versions v
    on v.organization_id = $1 and v.walkthrough_id = wanted.walkthrough_id and v.version = wanted.version
  join walkthrough_steps s
    on s.organization_id = v.organization_id and s.walkthrough_id = v.walkthrough_id and s.version = v.version
 where v.state <> 'draft'
 order by v.walkthrough_id, v.version, s.position
"""


class PostgresVersionLibrary:
    """`VersionLibrary` on PostgreSQL, kept in memory by use and by size.

    Published content never changes, so what is kept is never wrong. A version is loaded once however many
    calls ask for it at the same moment.
    """

    def __init__(self, database: Database, *, max_bytes: int = 64 * 2**20) -> None:
        self._database = database
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[VersionKey, tuple[Version, int]] = OrderedDict()
        self._loading: dict[VersionKey, asyncio.Task[Mapping[VersionKey, Version]]] = {}

    async def versions(self, keys: Collection[VersionKey]) -> Mapping[VersionKey, Version]:
        found: dict[VersionKey, Version] = {}
        missing = []
        for key in keys:
            if key in self._kept:
                self._kept.move_to_end(key)
                found[key] = self._kept[key][0]
            elif key not in self._loading:
                missing.append(key)
        if missing:
            # A task of its own, so that a caller who goes away does not take the others' answer along.
            task = asyncio.create_task(self._load(missing))
            for key in missing:
                self._loading[key] = task
            task.add_done_callback(lambda task: self._loaded(missing, task))
        for task in {self._loading[key] for key in keys if key in self._loading}:
            loaded = await asyncio.shield(task)
            found |= {key: loaded[key] for key in keys if key in loaded}
        return found

    def _loaded(self, keys: Sequence[VersionKey], task: asyncio.Task[Mapping[VersionKey, Version]]) -> None:
        for key in keys:
            del self._loading[key]
        if not task.cancelled():
            task.exception()  # goes to whoever still waits; where nobody does, asyncio need not say so

    async def _load(self, keys: Sequence[VersionKey]) -> Mapping[VersionKey, Version]:
        loaded: dict[VersionKey, Version] = {}
        # Every caller asks for one organisation; a statement never reads from two.
        for organization_id in {key.organization_id for key in keys}:
            mine = [key for key in keys if key.organization_id == organization_id]
            async with self._database.hot_transaction(organization_id) as connection:
                rows = await connection.fetch(
                    _CONTENT,
                    organization_id,
                    [key.walkthrough_id for key in mine],
                    [str(key.number) for key in mine],
                )
            by_version: dict[VersionKey, list[Record]] = {}
            for row in rows:
                key = VersionKey(organization_id, WalkthroughId(row["walkthrough_id"]), row["version"])
                by_version.setdefault(key, []).append(row)
            loaded |= {key: _version(key, steps) for key, steps in by_version.items()}
        for key, version in loaded.items():
            self._keep(key, version)
        return loaded

    def _keep(self, key: VersionKey, version: Version) -> None:
        size = _size_in_memory(version)
        self._kept[key] = (version, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, freed) = self._kept.popitem(last=False)
            self._bytes -= freed


def _size_in_memory(version: Version) -> int:
    """What its texts take, in bytes, and a thousand more a step for the objects that hold them."""
    return sum(1_000 + sum(map(sys.getsizeof, step.text.texts())) for step in version.steps)


def step_text(row: RowMapping | Record) -> StepText:
    """What is written in a step, from its row by column name, whichever driver has read it."""
    return StepText(
        key=row["key"],
        title=row["title"],
        content=row["content"],
        assistant_notes=row["assistant_notes"],
        workspace_actions=row["workspace_actions"],
        done_when=row["done_when"],
        delivery=Delivery(row["delivery"]),
        estimated_minutes=row["estimated_minutes"],
    )


def _version(key: VersionKey, rows: Sequence[Record]) -> Version:
    return Version(
        key=key,
        title=rows[0]["version_title"],
        description=rows[0]["description"],
        type=WalkthroughType(rows[0]["type"]),
        steps=tuple(Step(StepId(row["id"]), step_text(row)) for row in rows),
    )


# ------------------------------------------------------------------------------------------------ progress

# $1-$4 the key. Each stores the row and its events, or nothing, and says how many events it stored.
_ADVANCE = f"select advance_progress({', '.join(f'${number}' for number in range(1, 37))})"
_BEGIN = f"select begin_progress({', '.join(f'${number}' for number in range(1, 25))})"

_IS_NOTED = """
select exists (
    select from walkthrough_progress_events
     where organization_id = $1 and mcp_server_id = $2 and mcp_server_user_id = $3
       and (mcp_server_user_id, walkthrough_id) between ($3, $4) and ($3, $4)
       and kind = 'stuck' and attempt = $5 and from_step_id = $6 and note is not distinct from $7)
"""

_EVENTS = """
select revision, kind, attempt, version, from_step_id, to_step_id, outcome, note, occurred_at
  from walkthrough_progress_events
 where organization_id = $1 and mcp_server_id = $2 and mcp_server_user_id = $3 and walkthrough_id = $4
 order by revision
"""


class PostgresProgressStore:
    """`ProgressStore` on PostgreSQL: compares and sets; decides nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def commit(self, transition: Transition, publication: Publication) -> bool:
        before, after = transition.before, transition.after
        latest, is_available = publication.latest_version, publication.is_available
        row = (
            after.version,
            after.attempt,
            after.revision,
            after.status,
            after.current_step_id,
            sorted(after.carried),
            after.started_at,
            after.last_activity_at,
            after.completed_at,
        )
        first, *second = map(_event_row, transition.events)
        async with self._database.hot() as connection:
            if before is None:
                stored = await connection.fetchval(_BEGIN, *_key_row(after.key), latest, is_available, *row, *first)
            else:
                decided_on = before.revision, before.version, latest, is_available, publication.is_withdrawn
                (move,) = second or [_NO_EVENT]
                stored = await connection.fetchval(_ADVANCE, *_key_row(after.key), *decided_on, *row, *first, *move)
        return bool(stored == len(transition.events))

    async def is_noted(self, key: ProgressKey, attempt: int, step_id: StepId, note: str | None) -> bool:
        async with self._database.hot_transaction(key.organization_id) as connection:
            return bool(await connection.fetchval(_IS_NOTED, *_key_row(key), attempt, step_id, note))

    async def events(self, key: ProgressKey) -> Sequence[ProgressEvent]:
        async with self._database.hot_transaction(key.organization_id) as connection:
            rows = await connection.fetch(_EVENTS, *_key_row(key))
        return [stored_event(row) for row in rows]


def stored_event(row: RowMapping | Record) -> ProgressEvent:
    """What happened, from its row by column name, whichever driver has read it."""
    return ProgressEvent(
        revision=row["revision"],
        kind=EventKind(row["kind"]),
        attempt=row["attempt"],
        version=row["version"],
        from_step_id=row["from_step_id"],
        to_step_id=row["to_step_id"],
        outcome=Outcome(row["outcome"]) if row["outcome"] else None,
        note=row["note"],
        occurred_at=Millis(row["occurred_at"]),
    )


_NO_EVENT: tuple[object, ...] = (None,) * 9


def _key_row(key: ProgressKey) -> tuple[str, str, str, str]:
    return key.organization_id, key.server_id, key.user_id, key.walkthrough_id


def _event_row(event: ProgressEvent) -> tuple[object, ...]:
    return (
        event.revision,
        event.attempt,
        event.version,
        event.kind,
        event.from_step_id,
        event.to_step_id,
        event.outcome,
        event.note,
        event.occurred_at,
    )
