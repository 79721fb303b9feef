"""Assistants that call without a pause or all at once, cheap enough that the service is what is measured."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.patience import PATIENCE_SECONDS
from tests.processes import Serving
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
        await self.send(content)
        return await self.reply()

    async def send(self, content: bytes) -> None:
        """Sends one request; its answer is to be asked for before the next."""
        if self._connection is None:
            address = urlsplit(self.url)
            self._connection = Connection(*await asyncio.open_connection(address.hostname, address.port))
        await self._connection.send(content)

    async def reply(self) -> Reply:
        """The answer to what was sent last."""
        assert self._connection is not None
        reply = await self._connection.reply()
        if "close" in reply.headers.get("connection", ""):
            self.close()
        return reply

    def close(self) -> None:
        if self._connection is not None:
            self._connection.writer.close()
            self._connection = None


@dataclass
class Answers:
    """What a load was answered with."""

    accepted: int = 0
    sheds: list[Reply] = field(default_factory=list)
    others: list[Reply] = field(default_factory=list)

    def add(self, reply: Reply) -> None:
        if reply.status == 503:
            self.sheds.append(reply)
        elif reply.status == 200 and b'"isError":true' not in reply.body:
            self.accepted += 1
        else:
            self.others.append(reply)


async def closed_loop(url: str, contents: Sequence[bytes], clients: int, times: int) -> Answers:
    """So many clients, each of which calls so often, and again as soon as it is answered."""
    answers = Answers()

    async def calls(number: int) -> None:
        line = Line(url)
        for turn in range(times):
            answers.add(await line.ask(contents[(number + turn * clients) % len(contents)]))
        line.close()

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(calls(number))
    return answers


def _is_stopped(pid: int) -> bool:
    """proc_pid_stat(5): the state stands behind the name, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def burst(service: Serving, lines: Sequence[Line], contents: Sequence[bytes]) -> Answers:
    """A call on each line, all of which are there before the service looks at the first of them."""
    answers = Answers()
    os.kill(service.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not _is_stopped(service.pid):  # noqa: ASYNC110  # on another core it may go on for a moment
                await asyncio.sleep(0)
        for number, line in enumerate(lines):
            await line.send(contents[number % len(contents)])
    finally:
        os.kill(service.pid, signal.SIGCONT)
    for reply in await asyncio.gather(*(line.reply() for line in lines)):
        answers.add(reply)
    return answers
