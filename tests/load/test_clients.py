"""Clients that take their time, or come in numbers: they hold up nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, ClassVar

import pytest
import uvicorn
from uvicorn.server import ServerState

from entrypoints.http.connections import PunctualProtocol
from tests.load.driver import tool_request
from tests.patience import PATIENCE_SECONDS
from tests.serving.conftest import Tenant
from tests.serving.raw import Connection, connected

pytestmark = pytest.mark.promise("shedding")


async def test_clients_that_send_slowly_take_no_places(tenant: Tenant) -> None:
    await tenant.publish("one")
    asking = tool_request(tenant.host, await tenant.token(), "modern", "select_walkthrough", walkthrough="tour")
    async with AsyncExitStack() as open_ones:
        # More than there are places and room in the line.
        slow = [await open_ones.enter_async_context(connected(tenant.service)) for _ in range(60)]
        for connection in slow:
            await connection.send(asking[:-1])
        async with connected(tenant.service) as connection:
            await connection.send(asking)
            assert (await connection.reply()).json["result"]["structuredContent"]["status"] == "started"
        await slow[0].send(asking[-1:])
        assert (await slow[0].reply()).json["result"]["structuredContent"]["status"] == "resumed"


class _Few(PunctualProtocol):
    most = 3
    take_seconds = 0.2
    _waiting: ClassVar[dict[PunctualProtocol, None]] = {}


_LONG = b"x" * 2**20


async def _app(scope: Any, receive: Any, send: Any) -> None:
    message = await receive()
    while message.get("more_body"):
        message = await receive()
    body = {"/long": _LONG, "/": b"ok"}[scope["path"]]
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


@asynccontextmanager
async def _server() -> AsyncIterator[Any]:
    """Yields what opens a connection to a server that takes three, and how many it has."""
    config = uvicorn.Config(_app, http=_Few, lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(lambda: _Few(config, state, {}), host="127.0.0.1", port=0)
    opened: list[Connection] = []

    async def connect(content: bytes = b"") -> Connection:
        connection = Connection(*await asyncio.open_connection(*server.sockets[0].getsockname()))
        opened.append(connection)
        await connection.send(content)
        return connection

    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            yield connect, state.connections
    finally:
        for connection in opened:
            connection.writer.close()
        server.close()


_GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
_POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"


async def test_whoever_comes_takes_the_place_of_the_connection_that_has_kept_the_service_waiting_longest() -> None:
    async with _server() as (connect, _):
        resting = await connect(_GET)
        assert (await resting.reply()).status == 200
        sending = await connect(_POST)
        silent = await connect()
        # A new request of an old connection: it has kept nobody waiting.
        await resting.send(_GET)
        assert (await resting.reply()).status == 200
        newest = await connect(_GET)
        assert (await newest.reply()).status == 200
        ended = await sending.reply()
        assert (ended.status, ended.headers["retry-after"], ended.headers["connection"]) == (503, "1", "close")
        assert await sending.rest() == b""

        another = await connect(_GET)
        assert (await another.reply()).status == 200
        assert (await silent.reply()).status == 503
        # One from which nothing is awaited is ended without a word.
        assert (await (await connect(_GET)).reply()).status == 200
        assert await resting.rest() == b""
        await newest.send(_GET)
        assert (await newest.reply()).status == 200


async def test_a_client_that_does_not_read_its_answer_is_cut_off() -> None:
    async with _server() as (connect, connections):
        # More than the buffers on the way can hold.
        unread = await connect(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n" * 32)
        transport: Any = unread.writer.transport
        transport.pause_reading()
        for is_there in (True, False):
            while bool(connections) is not is_there:  # noqa: ASYNC110  # nothing tells
                await asyncio.sleep(0)
        transport.resume_reading()
        received = 0
        with suppress(ConnectionError):
            while part := await unread.reader.read(2**20):
                received += len(part)
        assert received < 32 * len(_LONG)
