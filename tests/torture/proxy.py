"""A TCP proxy between the service and its PostgreSQL: it refuses connections, or cuts them in mid-statement."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path

from tests.streams import send

# PostgreSQL's protocol 3.0: what its every answer ends with, before the byte that says whether there is a transaction.
_READY = b"Z\x00\x00\x00\x05"
_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset, and what is still in the buffers is lost


@dataclass
class Proxy:
    """Listens on a port of its own, on loopback; `socket_path` is where PostgreSQL is."""

    socket_path: Path
    port: int = 0
    cuts: int = 0
    """How many connections were cut, and how many of these while a statement was under way."""
    cuts_in_statements: int = 0
    _scissors: random.Random | None = None
    _server: asyncio.Server | None = None
    _links: set[_Link] = field(default_factory=set)

    async def open(self) -> None:
        """Listens, from the second time on at the same port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Whoever connects is refused, and those who are connected are cut off."""
        assert self._server is not None
        self._server.close()
        for link in list(self._links):
            self._cut(link)

    def cut(self, scissors: random.Random | None) -> None:
        """Cuts every connection, now and from now on, after some bytes or some time that `scissors` say; None: none."""
        self._scissors = scissors
        for link in self._links:
            self._measure(link)

    async def close(self) -> None:
        self.refuse()
        for link in list(self._links):
            link.task.cancel()
        await asyncio.gather(*(link.task for link in self._links), return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            database = await asyncio.open_unix_connection(self.socket_path)
        except OSError:  # as the service would find it
            writer.transport.abort()
            return
        link = _Link(task, writer, database[1])
        self._links.add(link)
        self._measure(link)
        try:
            await asyncio.gather(self._pump(link, reader, is_asking=True), self._pump(link, database[0]))
        except OSError:
            pass
        finally:
            self._links.discard(link)
            link.abort()

    def _measure(self, link: _Link) -> None:
        if link.timer is not None:
            link.timer.cancel()
        link.bytes_left = None
        if self._scissors is not None:
            # A connection takes about 800 bytes to begin, and an advance with its log row sends 1,500.
            link.bytes_left = self._scissors.randrange(300, 20_000)
            seconds = self._scissors.uniform(0.05, 1.5)
            link.timer = asyncio.get_running_loop().call_later(seconds, self._cut, link)

    async def _pump(self, link: _Link, reader: asyncio.StreamReader, *, is_asking: bool = False) -> None:
        to = link.database if is_asking else link.service
        while data := await reader.read(65_536):
            link.is_asked = is_asking or not data[:-1].endswith(_READY)
            if link.bytes_left is not None and len(data) >= link.bytes_left:
                send(to, data[: link.bytes_left])
                await asyncio.sleep(0)
                self._cut(link)
                return
            if link.bytes_left is not None:
                link.bytes_left -= len(data)
            send(to, data)
            await to.drain()
        link.abort()

    def _cut(self, link: _Link) -> None:
        if not link.is_cut:
            self.cuts += 1
            self.cuts_in_statements += link.is_asked
            link.abort()


@dataclass(eq=False)
class _Link:
    """One connection on both of its sides."""

    task: asyncio.Task[None]
    service: asyncio.StreamWriter
    database: asyncio.StreamWriter
    bytes_left: int | None = None
    timer: asyncio.TimerHandle | None = None
    is_asked: bool = False
    """Whether the service waits for the end of an answer."""
    is_cut: bool = False

    def abort(self) -> None:
        self.is_cut = True
        if self.timer is not None:
            self.timer.cancel()
        sock = self.service.get_extra_info("socket")
        if sock is not None and not self.service.transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        for writer in (self.service, self.database):
            writer.transport.abort()
