"""One store under load, without the service around it, in a process of its own.

python -m tests.bench.stores     reads a `Task` as JSON from its input, and writes a `Record` as JSON when it has ended
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import msgspec
import uvloop

from adapters.postgres.connections import Access, Database
from adapters.postgres.learning import PostgresCatalogue, PostgresProgressStore
from adapters.postgres.tenancy import PostgresServerDirectory
from application.ports import ToolCall
from domain.progress import EventKind, Outcome, Progress, ProgressEvent, Told, Transition
from domain.tenancy import Caller, CallId, OrganizationId, ServerId, ServerKey, UserId
from tests.bench.clients import Record


class Task(msgspec.Struct, frozen=True):
    """What to do for `seconds`, `connections` at a time.

    `commit` stores one advance after another, each task that of one of `people`; `hosts` looks up `slugs`.
    """

    kind: str
    database_url: str
    connections: int
    seconds: float
    people: Sequence[tuple[str, str, str, str]] = ()
    """Organisation, server, user and walkthrough."""
    slugs: Sequence[str] = ()
    core: int | None = None


async def _run(task: Task) -> Record:
    microseconds: list[int] = []

    async def repeat(ask: Callable[[], Awaitable[bool]], until: float) -> None:
        now = time.perf_counter()
        while now < until:
            sent = now
            assert await ask(), "a statement did not do what it is measured for"
            now = time.perf_counter()
            microseconds.append(int((now - sent) * 1e6))

    async with Database(Access(task.database_url), pool_size=task.connections) as database:
        if task.kind == "commit":
            asked = [await _advancing(database, person) for person in task.people[: task.connections]]
        else:
            asked = [_looking_up(database, task.slugs)] * task.connections
        await asyncio.gather(*(ask() for ask in asked))  # so that all connections are there
        cpu, began = time.process_time(), time.perf_counter()
        await asyncio.gather(*(repeat(ask, began + task.seconds) for ask in asked))
        seconds = time.perf_counter() - began
    return Record(seconds, {"answered": len(microseconds)}, microseconds, time.process_time() - cpu)


async def _advancing(database: Database, person: tuple[str, str, str, str]) -> Callable[[], Awaitable[bool]]:
    """What stores an advance of somebody from their step to the same one: what is stored is as large as any."""
    organization, server, user, walkthrough = person
    caller = Caller(ServerKey(OrganizationId(organization), ServerId(server)), UserId(user))
    (standing,) = await PostgresCatalogue(database).matching(caller, walkthrough)
    assert standing.progress is not None
    progress: Progress = standing.progress
    store = PostgresProgressStore(database)

    async def advance() -> bool:
        nonlocal progress
        event = ProgressEvent(
            revision=progress.revision + 1,
            kind=EventKind.ADVANCED,
            attempt=progress.attempt,
            version=progress.version,
            from_step_id=progress.current_step_id,
            to_step_id=progress.current_step_id,
            outcome=Outcome.DONE,
            note=None,
            occurred_at=progress.last_activity_at,
        )
        after = replace(progress, revision=event.revision)
        transition = Transition(progress, after, (event,), Told.ADVANCED)
        call = call_of(caller, after, f"call_{user}_{after.revision}")
        is_stored = await store.commit(transition, standing.publication, call)
        progress = after
        return is_stored

    return advance


def call_of(caller: Caller, progress: Progress, call_id: str) -> ToolCall:
    """What is recorded of the advance that led there."""
    return ToolCall(
        id=CallId(call_id),
        caller=caller,
        tool_name="next_walkthrough_step",
        client_name="bench",
        client_version="1.0.0",
        protocol_version="2026-07-28",
        walkthrough_id=progress.key.walkthrough_id,
        version=progress.version,
        step_id=progress.current_step_id,
        outcome=Told.ADVANCED,
        error_code=None,
        duration_us=1_000,
        input={"completed_step": str(progress.handle())},
        created_at=progress.last_activity_at,
    )


def _looking_up(database: Database, slugs: Sequence[str]) -> Callable[[], Awaitable[bool]]:
    directory = PostgresServerDirectory(database)
    number = 0

    async def look_up() -> bool:
        nonlocal number
        number += 1
        return await directory.server_at(slug=slugs[number % len(slugs)], custom_domain=None) is not None

    return look_up


def main() -> None:
    """Does the task."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    if task.core is not None:
        os.sched_setaffinity(0, {task.core})
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(_run(task))))


if __name__ == "__main__":
    main()
