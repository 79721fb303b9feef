"""What a tool call reads and writes: catalogue, content and progress. The hot statements."""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from asyncpg import Record
from sqlalchemy import RowMapping

from adapters.postgres.call_log import call_json
from adapters.postgres.connections import Database
from application.ports import Standing, ToolCall, VersionSummary
from domain.progress import (
    EventKind,
    Outcome,
    Progress,
    ProgressEvent,
    ProgressKey,
    Status,
    Transition,
)
from domain.tenancy import Caller, Millis, OrganizationId, StepId
from domain.walkthrough import (
    Delivery,
    Heading,
    Outline,
    Publication,
    PublishPolicy,
    Step,
    StepText,
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

# Functions as those above. Numbers travel as text: of all arrays the driver knows those of text without asking the
# server on each new connection.
_OUTLINES = "select * from version_outlines($1, $2, $3)"
_STEPS = "select * from version_steps($1, $2, $3, $4)"

# Whoever is shown a step is shown the next ones soon after, often by the same process. To load eight takes little more
# than to load one.
_STEPS_AT_ONCE = 8

_StepName = tuple[VersionKey, StepId]
_Name = TypeVar("_Name", VersionKey, _StepName)


class PostgresVersionLibrary:
    """`VersionLibrary` on PostgreSQL, kept in memory by use and by size.

    Published content never changes, so what is kept is never wrong. An outline or a step is loaded once however many
    calls ask for it at the same moment.
    """

    def __init__(self, database: Database, *, max_bytes: int = 64 * 2**20) -> None:
        self._database = database
        self._max_bytes = max_bytes
        self._bytes = 0
        # Outlines by their version, steps by their version and id.
        self._kept: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._loading: dict[Any, asyncio.Task[Mapping[Any, Any]]] = {}

    async def outlines(self, keys: Collection[VersionKey]) -> Mapping[VersionKey, Outline]:
        found: dict[VersionKey, Outline] = {}
        missing = []
        for key in keys:
            if key in self._kept:
                self._kept.move_to_end(key)
                found[key] = self._kept[key][0]
            else:
                missing.append(key)
        if missing:
            found |= await self._once(missing, missing, self._read_outlines)
        return found

    async def step(self, version: VersionKey, step_id: StepId) -> Step | None:
        name = (version, step_id)
        if name not in self._kept:
            return (await self._once([name], self._from(name), self._read_steps)).get(name)
        self._kept.move_to_end(name)
        step: Step = self._kept[name][0]
        return step

    def _from(self, name: _StepName) -> Sequence[_StepName]:
        """The step, and those after it that are loaded with it: none without an outline, or where it is on its way."""
        version, step_id = name
        outline: Outline | None = self._kept.get(version, (None, 0))[0]
        if name in self._loading or outline is None or outline.step(step_id) is None:
            return [name]
        first = outline.position(step_id)
        return [(version, step.id) for step in outline.steps[first : first + _STEPS_AT_ONCE]]

    async def _once(
        self,
        wanted: Collection[_Name],
        at_once: Sequence[_Name],
        read: Callable[[Sequence[_Name]], Coroutine[Any, Any, Mapping[_Name, Any]]],
    ) -> Mapping[_Name, Any]:
        """What is `wanted` and not kept, loaded `at_once` with what goes along, unless that is there or on its way."""
        missing = [each for each in at_once if each not in self._kept and each not in self._loading]
        if missing:
            # A task of its own, so that a caller who goes away does not take the others' answer along.
            task = asyncio.create_task(self._load(missing, read))
            for each in missing:
                self._loading[each] = task
            task.add_done_callback(lambda task: self._end(missing, task))
        found: dict[_Name, Any] = {}
        for task in {self._loading[each] for each in wanted if each in self._loading}:
            loaded = await asyncio.shield(task)
            found |= {each: loaded[each] for each in wanted if each in loaded}
        return found

    async def _load(
        self, names: Sequence[_Name], read: Callable[[Sequence[_Name]], Coroutine[Any, Any, Mapping[_Name, Any]]]
    ) -> Mapping[_Name, Any]:
        loaded = await read(names)
        for name in reversed(names):  # so that the step that was asked for is the last to make room
            if name in loaded:
                self._keep(name, loaded[name])
        return loaded

    def _end(self, names: Sequence[Any], task: asyncio.Task[Mapping[Any, Any]]) -> None:
        for name in names:
            del self._loading[name]
        if not task.cancelled():
            task.exception()  # goes to whoever still waits; where nobody does, asyncio need not say so

    async def _read_outlines(self, keys: Sequence[VersionKey]) -> Mapping[VersionKey, Outline]:
        loaded: dict[VersionKey, Outline] = {}
        # Every caller asks for one organisation; a statement never reads from two.
        for organization_id in {key.organization_id for key in keys}:
            mine = [key for key in keys if key.organization_id == organization_id]
            ids, numbers = [key.walkthrough_id for key in mine], [str(key.number) for key in mine]
            async with self._database.hot() as connection:
                rows = await connection.fetch(_OUTLINES, organization_id, ids, numbers)
            for row in rows:
                key = VersionKey(organization_id, row["walkthrough_id"], row["version"])
                steps = tuple(map(Heading._make, zip(row["ids"], row["keys"], row["titles"], strict=True)))
                loaded[key] = Outline(key, row["title"], steps)
        return loaded

    async def _read_steps(self, names: Sequence[_StepName]) -> Mapping[_StepName, Step]:
        version = names[0][0]  # that of all
        async with self._database.hot() as connection:
            rows = await connection.fetch(_STEPS, *version, [step_id for _, step_id in names])
        return {(version, row["id"]): Step(row["id"], step_text(row)) for row in rows}

    def _keep(self, name: Any, content: Outline | Step) -> None:
        size = _size_in_memory(content)
        self._kept[name] = (content, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, (_, freed) = self._kept.popitem(last=False)
            self._bytes -= freed


def _size_in_memory(content: Outline | Step) -> int:
    """What it takes, in bytes: its texts, and what holds them."""
    if isinstance(content, Step):
        return 1_000 + sum(map(sys.getsizeof, content.text.texts()))
    # Titles twice, as what the driver decodes from several bytes a letter holds more than it needs.
    return 1_000 + sum(350 + 2 * sys.getsizeof(step.title) for step in content.steps)


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


# ------------------------------------------------------------------------------------------------ progress

# $1-$4 the key. Each stores the row, its events and the call, or nothing, and says how many events it stored.
_ADVANCE = f"select advance_progress({', '.join(f'${number}' for number in range(1, 41))})"
_BEGIN = f"select begin_progress({', '.join(f'${number}' for number in range(1, 26))})"

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

    async def commit(self, transition: Transition, publication: Publication, call: ToolCall | None = None) -> bool:
        before, after = transition.before, transition.after
        published = publication.latest_version, publication.is_available
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
        recorded = None if call is None else call_json(call).decode()
        async with self._database.hot() as connection:
            if before is None:
                stored = await connection.fetchval(_BEGIN, *_key_row(after.key), *published, *row, *first, recorded)
            else:
                decided_on = (
                    before.revision,
                    before.version,
                    before.attempt,
                    before.current_step_id,
                    before.last_activity_at,
                    *published,
                    publication.is_withdrawn,
                )
                (move,) = second or [_NO_EVENT]
                stored = await connection.fetchval(
                    _ADVANCE, *_key_row(after.key), *decided_on, *row, *first, *move, recorded
                )
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
