"""`cairn serve` that kills itself with SIGKILL at a named point, at the n-th time it comes there.

CRASH_POINT   before_commit | after_commit | before_log | after_log
CRASH_AT      counted from 1
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from dependency_injector import providers

from application.ports import ToolCall
from domain.progress import Transition
from domain.walkthrough import Publication
from entrypoints import container as composition
from entrypoints.cli import main

_POINT, _remaining = os.environ["CRASH_POINT"], int(os.environ["CRASH_AT"])


def _pass(point: str) -> None:
    global _remaining
    if point == _POINT:
        _remaining -= 1
        if _remaining == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class CrashingStore(composition.PostgresProgressStore):
    async def commit(self, transition: Transition, publication: Publication, call: ToolCall | None = None) -> bool:
        _pass("before_commit")
        committed = await super().commit(transition, publication, call)
        _pass("after_commit")
        return committed


class CrashingLog(composition.PostgresCallLog):
    @contextmanager
    def admit(self) -> Iterator[Callable[[ToolCall], Awaitable[None]]]:
        with super().admit() as record:

            async def record_or_crash(call: ToolCall) -> None:
                _pass("before_log")
                await record(call)
                _pass("after_log")

            yield record_or_crash


if __name__ == "__main__":
    container = composition.Container
    container.progress_store.override(providers.Singleton(CrashingStore, container.database))
    container.call_log.override(providers.Singleton(CrashingLog, container.database))
    main.main(sys.argv[1:])
