"""The call log by group commit: what waits while one write is under way goes into the next, in one statement."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass

import msgspec

from adapters.postgres.connections import Database
from application.ports import ToolCall
from domain.errors import TemporarilyUnavailable
from domain.tenancy import OrganizationId

# A process answers some hundred calls a second, and each of them within 3.5 s or not as done. More than these would
# wait for an answer that no longer comes, and hold their arguments in memory meanwhile.
_MAX_PLACES = 1_000
# One statement stays a matter of milliseconds, far from the role's timeout of 3 s.
_MAX_BATCH_ROWS = 250
_MAX_BATCH_BYTES = 2**20

# $1 organisations, $2 the rows of each as a JSON array. A function of the database, which names each organisation
# before it writes (migration 0007). Of all arrays the driver knows those of text without asking the server.
_RECORD = "select record_tool_calls($1, $2)"


@dataclass(frozen=True, slots=True)
class _Row:
    """A call on its way into the table. `stored` is cancelled where its caller has gone; it is written all the same."""

    organization_id: OrganizationId
    json: bytes
    stored: Future[None]


class PostgresCallLog:
    """`CallLog` on PostgreSQL: a writer takes everything that waits, and stores it in one statement.

    No timer: a call that meets nobody is written at once, and batches form by themselves while a write is under way.
    That only one is under way at a time is what makes them form. A writer is a task that ends when nothing waits.

    When a batch fails, each organisation in it gets a writer of its own, beside the common one and for as long as it
    has rows: what holds up or spoils the rows of one (whoever deletes a server locks the row that the foreign key
    looks at) then touches nobody else. Such a writer tries its batch again, and where the database refuses it, row by
    row, so that a row that cannot be stored fails alone. Where the database is away, its batch fails at once: rows
    would only run into the same wall one after the other. Ids stay, so that what an attempt stored unheard is not
    stored twice.

    Batches mix organisations: in one statement each, one after the other. A table distributed by organisation will want
    them apart: then every organisation has its own writer from the start.
    """

    def __init__(self, database: Database, *, places: int = _MAX_PLACES) -> None:
        self._database = database
        self._places = self._free = places
        self.rows_written = self.batches_written = self.rows_failed = 0
        """Since the start."""
        # By organisation, for those that are written apart; None is the common queue, and its writer.
        self._waiting: dict[OrganizationId | None, deque[_Row]] = {}
        self._writers: dict[OrganizationId | None, asyncio.Task[None]] = {}

    @contextmanager
    def admit(self) -> Iterator[Callable[[ToolCall], Awaitable[None]]]:
        if not self._free:
            raise TemporarilyUnavailable from asyncio.QueueFull("too many calls wait to be recorded")
        self._free -= 1
        is_handed_over = False

        async def record(call: ToolCall) -> None:
            nonlocal is_handed_over
            assert not is_handed_over, "a place is for one call"  # noqa: S101
            organization_id = call.caller.server.organization_id
            try:
                json = call_json(call)
            except (TypeError, ValueError) as error:  # ours to mend; a call that is not recorded is not answered
                raise TemporarilyUnavailable from error
            row = _Row(organization_id, json, asyncio.get_running_loop().create_future())
            is_handed_over = True  # the place is the row's from now on, until that is stored or given up
            self._hand_over(organization_id if organization_id in self._writers else None, row)
            await row.stored

        try:
            yield record
        finally:
            if not is_handed_over:
                self._free += 1

    @property
    def waiting(self) -> int:
        """The calls that have a place and are not recorded yet."""
        return self._places - self._free

    async def drain(self) -> None:
        while self._writers:
            await asyncio.wait(self._writers.values())

    def _hand_over(self, queue: OrganizationId | None, row: _Row) -> None:
        self._waiting.setdefault(queue, deque()).append(row)
        if queue not in self._writers:
            # It writes what others hand in as well: it is no part of the request that happens to begin it.
            self._writers[queue] = asyncio.create_task(self._write(queue), context=Context())

    async def _write(self, queue: OrganizationId | None) -> None:
        """Writes until nothing waits in this queue any more."""
        waiting = self._waiting[queue]
        store = self._store_together if queue is None else self._store_apart
        try:
            while waiting:
                await store(_batch(waiting))
        finally:
            del self._writers[queue], self._waiting[queue]

    async def _store_together(self, batch: Sequence[_Row]) -> None:
        try:
            await self._insert(batch)
        except Exception:  # noqa: BLE001  # whatever it was, the next attempt meets it again, and tells the callers
            for row in batch:
                self._hand_over(row.organization_id, row)
        else:
            self._settle(batch)

    async def _store_apart(self, batch: Sequence[_Row]) -> None:
        try:
            await self._insert(batch)
        except TemporarilyUnavailable as away:
            self._settle(batch, away.__cause__)
        except Exception:  # noqa: BLE001  # as above
            await self._store_one_by_one(batch)
        else:
            self._settle(batch)

    async def _store_one_by_one(self, rows: Sequence[_Row]) -> None:
        for number, row in enumerate(rows):
            try:
                await self._insert([row])
            except TemporarilyUnavailable as away:
                self._settle(rows[number:], away.__cause__)
                return
            except Exception as refusal:  # noqa: BLE001  # a bug of ours, or a tenant that is gone: no answer either way
                self._settle([row], refusal)
            else:
                self._settle([row])

    async def _insert(self, rows: Sequence[_Row]) -> None:
        by_organization: dict[str, list[bytes]] = {}
        for row in rows:
            by_organization.setdefault(row.organization_id, []).append(row.json)
        # In one order always: two batches that hold the same calls do not wait for each other in a circle.
        organizations = sorted(by_organization)
        arrays = [b"[" + b",".join(by_organization[each]) + b"]" for each in organizations]
        async with self._database.hot() as connection:
            await connection.execute(_RECORD, organizations, [array.decode() for array in arrays])
        self.batches_written += 1

    def _settle(self, rows: Sequence[_Row], failure: BaseException | None = None) -> None:
        """Frees their places and tells their callers."""
        for row in rows:
            self._free += 1
            if failure is None:
                self.rows_written += 1
            else:
                self.rows_failed += 1
            if row.stored.done():
                continue
            if failure is None:
                row.stored.set_result(None)
            else:
                error = TemporarilyUnavailable()
                error.__cause__ = failure
                row.stored.set_exception(error)


def _batch(waiting: deque[_Row]) -> Sequence[_Row]:
    """Takes what waits, from the front and within the bounds; at least one."""
    batch = [waiting.popleft()]
    size = len(batch[0].json)
    while waiting and len(batch) < _MAX_BATCH_ROWS and size + len(waiting[0].json) <= _MAX_BATCH_BYTES:
        size += len(waiting[0].json)
        batch.append(waiting.popleft())
    return batch


def call_json(call: ToolCall) -> bytes:
    """The row as the database's functions read it. What is no number in JSON (infinite, or none) becomes null."""
    return msgspec.json.encode(
        {
            "id": call.id,
            "mcp_server_id": call.caller.server.server_id,
            "mcp_server_user_id": call.caller.user_id,
            "tool_name": call.tool_name,
            "client_name": call.client_name,
            "client_version": call.client_version,
            "protocol_version": call.protocol_version,
            "walkthrough_id": call.walkthrough_id,
            "version": call.version,
            "step_id": call.step_id,
            "outcome": call.outcome,
            "error_code": call.error_code,
            "duration_us": call.duration_us,
            "input": call.input,
            "created_at": call.created_at,
        }
    )
