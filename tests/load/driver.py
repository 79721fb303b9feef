"""Assistants that call without a pause or at a set rate, cheap enough that the service is what is measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.serving.conftest import call
from tests.serving.raw import Connection, Reply, modern, request


def tool_request(host: str, token: str | None, era: str, tool: str, **arguments: Any) -> bytes:
    """A tool call as it goes over the socket, in one of the eras `modern` and `legacy`."""
    body, extra = modern(call(tool, **arguments)) if era == "modern" else (call(tool, **arguments), {})
    named = [f"{name.replace('_', '-')}: {value}" for name, value in extra.items()]
    authorization = [f"authorization: Bearer {token}"] if token else []
    return request(f"host: {host}", *authorization, *named, body=body, close=False)


@dataclass
class Line:
    """One client's connection, which is made again where an answer said that it ends."""

    url: str
    _connection: Connection | None = None

    async def ask(self, content: bytes) -> Reply:
        """The answer to one request, which is sent once."""
        if self._connection is None:
            address = urlsplit(self.url)
            self._connection = Connection(*await asyncio.open_connection(address.hostname, address.port))
        connection = self._connection
        await connection.send(content)
        reply = await connection.reply()
        if "close" in reply.headers.get("connection", ""):
            self.close()
        return reply

    def close(self) -> None:
        if self._connection is not None:
            self._connection.writer.close()
            self._connection = None


@dataclass
class Figures:
    """What a load was answered with."""

    seconds: float = 0.0
    accepted: list[float] = field(default_factory=list)
    """How long each took that was answered, in seconds."""
    shed: list[float] = field(default_factory=list)
    others: list[Reply] = field(default_factory=list)
    sheds: list[Reply] = field(default_factory=list)

    def add(self, reply: Reply, seconds: float) -> None:
        if reply.status == 503:
            self.shed.append(seconds)
            self.sheds.append(reply)
        elif reply.status == 200 and b'"isError":true' not in reply.body:
            self.accepted.append(seconds)
        else:
            self.others.append(reply)

    @property
    def goodput(self) -> float:
        return len(self.accepted) / self.seconds

    def percentile(self, share: float) -> float:
        return sorted(self.accepted)[int(share * (len(self.accepted) - 1))]

    def __str__(self) -> str:
        if not self.accepted:
            return f"nothing accepted, {len(self.shed)} shed, {len(self.others)} others in {self.seconds:.1f} s"
        return (
            f"{self.goodput:.0f}/s, p50 {self.percentile(0.5) * 1e3:.1f} ms, p99 {self.percentile(0.99) * 1e3:.1f} ms, "
            f"{len(self.shed)} shed, {len(self.others)} others in {self.seconds:.1f} s"
        )


async def closed_loop(url: str, contents: Sequence[bytes], clients: int, seconds: float) -> Figures:
    """So many clients, each of which calls again as soon as it is answered."""
    figures = Figures()
    began = time.monotonic()

    async def calls(number: int) -> None:
        line = Line(url)
        while time.monotonic() < began + seconds:
            sent = time.monotonic()
            figures.add(await line.ask(contents[number % len(contents)]), time.monotonic() - sent)
        line.close()

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(calls(number))
    figures.seconds = time.monotonic() - began
    return figures


async def open_loop(url: str, contents: Sequence[bytes], rate: float, seconds: float, lines: int) -> Figures:
    """So many calls a second, whether the earlier ones are answered or not, over at most so many connections.

    Sheds come back at once, so that there is always a connection free.
    """
    figures = Figures()
    free: asyncio.Queue[Line] = asyncio.Queue()
    for _ in range(lines):
        free.put_nowait(Line(url))
    began = time.monotonic()

    async def one(number: int) -> None:
        line = await free.get()
        sent_at = time.monotonic()
        try:
            reply = await line.ask(contents[number % len(contents)])
            figures.add(reply, time.monotonic() - sent_at)
        finally:
            free.put_nowait(line)

    async with asyncio.TaskGroup() as group:
        sent = 0
        while (now := time.monotonic()) < began + seconds:
            while sent < (now - began) * rate:
                group.create_task(one(sent))
                sent += 1
            await asyncio.sleep(0.002)
    figures.seconds = time.monotonic() - began
    while not free.empty():
        free.get_nowait().close()
    return figures
