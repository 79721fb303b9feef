"""`cairn serve` with bugs: what asks for one has a part of it fail, with CAIRN_TEST_SECRET in the exception's text.

/assets/bug.css           the gate
POST /                    the use case behind a page
get_walkthrough_status    the use case behind a tool
list_walkthroughs         the database, which quotes the values that it refuses
review_walkthrough_step   the writer of the call log
select_walkthrough        a task that nobody waits for
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Sequence
from typing import Any

import asyncpg
from dependency_injector import providers

from adapters.postgres.call_log import _Row
from application.learning import Learning
from application.visitors import Visitors
from entrypoints import container as composition
from entrypoints.cli import main
from entrypoints.http.gate import Gate
from entrypoints.mcp.server import McpEndpoint

_SECRET = os.environ["CAIRN_TEST_SECRET"]
_abandoned: set[asyncio.Task[None]] = set()


def _fail() -> None:
    try:
        raise KeyError(_SECRET)
    except KeyError as error:
        raise ValueError(f"nobody thought of {_SECRET}") from error


async def _fail_alone() -> None:
    _fail()


class BuggyLearning(Learning):
    async def status(self, *_: Any) -> Any:
        _fail()

    async def select(self, *arguments: Any, **options: Any) -> Any:
        task = asyncio.create_task(_fail_alone())
        _abandoned.add(task)
        task.add_done_callback(_abandoned.discard)
        # That nobody has waited is found out when the task is collected; here, not at some time or other.
        asyncio.get_running_loop().call_later(0.05, gc.collect)
        return await super().select(*arguments, **options)


class BuggyCatalogue(composition.PostgresCatalogue):
    async def standings(self, *_: Any) -> Any:
        error = asyncpg.UniqueViolationError("duplicate key value violates unique constraint")
        error.detail = f"Key (email)=({_SECRET}) already exists."
        error.constraint_name = "people_key"
        raise error


class BuggyLog(composition.PostgresCallLog):
    async def _insert(self, rows: Sequence[_Row]) -> None:
        if any(b"review_walkthrough_step" in row.json for row in rows):
            _fail()
        await super()._insert(rows)


class BuggyVisitors(Visitors):
    async def mint(self, *_: Any) -> Any:
        _fail()


if __name__ == "__main__":
    welcomes = Gate._welcomes

    def buggy(gate: Gate, place: Any, headers: Any) -> bool:
        if place is not None and place.route == "/assets/{name}":
            _fail()
        return welcomes(gate, place, headers)

    Gate._welcomes = buggy  # type: ignore[method-assign]
    handle = McpEndpoint.handle

    async def buggy_handle(endpoint: McpEndpoint, scope: Any, receive: Any, send: Any) -> None:
        if b"x-bug" in dict(scope["headers"]):
            _fail()
        await handle(endpoint, scope, receive, send)

    McpEndpoint.handle = buggy_handle  # type: ignore[method-assign]
    container = composition.Container
    container.learning.set_provides(BuggyLearning)
    container.visitors.set_provides(BuggyVisitors)
    container.catalogue.override(providers.Singleton(BuggyCatalogue, container.database))
    container.call_log.override(providers.Singleton(BuggyLog, container.database))
    main.main(sys.argv[1:])
