"""The ASGI application of one process: the gate around Litestar around MCP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from litestar import Litestar, asgi
from litestar.types import ASGIApp, Receive, Scope, Send

from entrypoints.container import Container, Storage, storage
from entrypoints.http.gate import Gate
from entrypoints.logs import configure_logs
from entrypoints.mcp.server import McpEndpoint
from entrypoints.settings import Settings


def create_app() -> ASGIApp:
    """The application of a worker process: settings from the environment, storage held until the process ends."""
    configure_logs()
    settings = Settings.from_environment()
    held = storage(settings)
    app = application(held.__enter__(), settings)
    # Kept by the application, so that the worker's share in an embedded server lasts as long as the worker.
    app.held = held  # type: ignore[attr-defined]
    return app


def application(storage: Storage, settings: Settings, container: Container | None = None) -> ASGIApp:
    """The application on a storage; its pools are open from ASGI start-up to shut-down.

    `container` is for tests that put something else behind a port.
    """
    database = storage.database()
    container = container or Container()
    container.database.override(database)
    container.check_dependencies()
    endpoint = McpEndpoint(container.learning(), container.call_log(), container.clock(), container.ids())

    @asgi("/mcp", copy_scope=True)
    async def mcp(scope: Scope, receive: Receive, send: Send) -> None:
        await endpoint.handle(scope, receive, send)

    @asynccontextmanager
    async def serving(_: Litestar) -> AsyncIterator[None]:
        keeper = asyncio.create_task(storage.keep_running())
        try:
            async with database, endpoint.running():
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
    )
