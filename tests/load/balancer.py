"""A balancer as there are many: it asks each process whether it is ready, and passes connections on without a look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from urllib.parse import urlsplit

from tests.patience import PATIENCE_SECONDS
from tests.serving.raw import Connection
from tests.streams import send

_PROBE_SECONDS = 0.05
_PROBE = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n"


class Balancer:
    """Passes each connection on to the next process that is in: that answers, and does not say that it ends.

    Where a process refuses the connection, the next one is taken. Nothing else is ever tried twice.
    """

    def __init__(self) -> None:
        self.url = ""
        self._is_in: dict[str, bool] = {}
        self._turns = count()
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._passing: dict[asyncio.Task[None], str] = {}

    async def add(self, url: str) -> None:
        """Returns once the process is in."""
        self._is_in[url] = False
        self._probes[url] = asyncio.create_task(self._probe(url))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not self._is_in[url]:  # noqa: ASYNC110  # as balancers do
                await asyncio.sleep(_PROBE_SECONDS)

    async def remove(self, url: str) -> None:
        """Passes nothing more on to a process, and returns when nothing is under way there."""
        self._probes.pop(url).cancel()
        del self._is_in[url]
        while there := [task for task, passed_to in self._passing.items() if passed_to == url]:
            await asyncio.wait(there, timeout=PATIENCE_SECONDS)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Balancer]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp"
        try:
            yield self
        finally:
            server.close()
            for task in (*self._probes.values(), *self._passing):
                task.cancel()

    async def _probe(self, url: str) -> None:
        while True:
            is_in = False
            with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                reader, writer = await _connection_to(url)
                try:
                    send(writer, _PROBE)
                    reply = await Connection(reader, writer).reply()
                    is_in = reply.status != 503 and "close" not in reply.headers.get("connection", "")
                finally:
                    writer.close()
            self._is_in[url] = is_in
            await asyncio.sleep(_PROBE_SECONDS)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Where none is in, a try with any is better than none.
        chosen = [url for url, is_in in self._is_in.items() if is_in] or list(self._is_in)
        turn = next(self._turns)
        for offset in range(len(chosen)):
            with suppress(ConnectionRefusedError):
                url = chosen[(turn + offset) % len(chosen)]
                behind = await _connection_to(url)
                for source, target in ((reader, behind[1]), (behind[0], writer)):
                    task = asyncio.create_task(_pass_on(source, target))
                    self._passing[task] = url
                    task.add_done_callback(self._passing.pop)
                return
        writer.close()


async def _connection_to(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(url)
    return await asyncio.open_connection(address.hostname, address.port)


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while part := await source.read(2**16):
            send(target, part)
            await target.drain()
    target.close()
