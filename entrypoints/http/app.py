"""The ASGI application of one process: the gate around Litestar around MCP."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, nullcontext
from typing import cast

from litestar import Litestar, asgi
from litestar.types import ASGIApp, Receive, Scope, Send

from entrypoints.container import Container, Storage, storage
from entrypoints.http.gate import Gate
from entrypoints.logs import configure_logs
from entrypoints.mcp.server import McpEndpoint
from entrypoints.settings import Settings

_PARENT_CHECK_SECONDS = 1.0


def create_app() -> ASGIApp:
    """The application of a worker process, with settings from the environment.

    A worker ends when the process that started it has ended, however that was: orphans would hold its port. Its share
    in an embedded server is given back at the end, by the last one so that the server stops.
    """
    configure_logs()
    settings = Settings.from_environment()
    share = ExitStack()

    @asynccontextmanager
    async def working() -> AsyncIterator[None]:
        parent = multiprocessing.parent_process()
        watch = asyncio.create_task(_end_with(parent)) if parent is not None else None
        try:
            yield
        finally:
            if watch is not None:
                watch.cancel()
            await asyncio.to_thread(share.close)

    return application(share.enter_context(storage(settings)), settings, working)


def application(
    storage: Storage,
    settings: Settings,
    around: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
) -> ASGIApp:
    """The application on a storage; its pools are open from ASGI start-up to shut-down, within `around`."""
    database = storage.database()
    container = Container(database=database)
    container.check_dependencies()
    endpoint = McpEndpoint(container.learning(), container.call_log(), container.clock(), container.ids())

    @asgi("/mcp", copy_scope=True)
    async def mcp(scope: Scope, receive: Receive, send: Send) -> None:
        await endpoint.handle(scope, receive, send)

    @asynccontextmanager
    async def serving(_: Litestar) -> AsyncIterator[None]:
        async with around(), database, endpoint.running():
            keeper = asyncio.create_task(storage.keep_running())
            try:
                yield
            finally:
                keeper.cancel()

    litestar = Litestar([mcp], lifespan=[serving], openapi_config=None, logging_config=None)
    return Gate(
        cast(ASGIApp, litestar),
        container.servers(),
        container.identity(),
        base_domain=settings.base_domain,
        default_server=settings.default_server,
        allowed_origins=settings.origins(),
    )


async def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    """Stops this process in good order once `parent` is gone."""
    while parent.is_alive():  # noqa: ASYNC110  # nothing that asyncio can wait for tells of a parent's end
        await asyncio.sleep(_PARENT_CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
