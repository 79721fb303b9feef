"""The load generator: people's clients, each on a connection that stays open, in a process of its own.

python -m tests.bench.clients     reads a `Task` as JSON from its input, and writes a `Record` as JSON when it has ended

It is written for one thing, to take as little of the processor as it can, so that what is measured is the service:
requests are put together from bytes, and of an answer no more is read than a client must know to go on.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence, Set
from itertools import chain, repeat
from typing import Any

import msgspec
import uvloop

MODERN = "2026-07-28"
_META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


class Person(msgspec.Struct, frozen=True):
    """Somebody with a token on a host, and what they take. `handle` is of the step that they stand at, if known."""

    host: str
    token: str
    walkthrough: str = ""
    handle: str | None = None


class Task(msgspec.Struct, frozen=True):
    """What to do: as `people`, for `seconds` or as many `calls`, whichever comes first.

    `kind` is the tool. `next_walkthrough_step` follows the handles, and selects again, from the first step on, where
    there is none. Each connection is one person's after another's, `turn` calls each, until all have had their turn
    `rounds` times; 0 is one person's for good.
    """

    port: int
    kind: str
    people: Sequence[Person]
    connections: int
    seconds: float = 3_600.0
    calls: int = 2**62
    turn: int = 0
    rounds: int = 2**62
    core: int | None = None


class Record(msgspec.Struct):
    """What came of it. `told` counts answers by status; times are of those that are what the task is about."""

    seconds: float
    told: dict[str, int]
    microseconds: list[int]
    cpu_seconds: float
    body_bytes: int = 0
    """Of the answers that are what the task is about, all together."""

    @property
    def counted(self) -> int:
        """How many answers were what the task is about."""
        return len(self.microseconds)

    def at(self, share: float) -> float:
        """The time in seconds within which this share of the answers came."""
        return sorted(self.microseconds)[min(int(share * self.counted), self.counted - 1)] / 1e6


class _Step(msgspec.Struct):
    handle: str


class _Structured(msgspec.Struct):
    status: str = "answered"
    step: _Step | None = None


class _Result(msgspec.Struct, rename="camel"):
    structured_content: _Structured | None = None
    is_error: bool = False
    content: msgspec.Raw = msgspec.Raw(b"")


class _Answer(msgspec.Struct):
    result: _Result


_answer = msgspec.json.Decoder(_Answer)


class _Connection(asyncio.Protocol):
    """One request at a time over HTTP/1.1. Answers have a Content-Length."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._size = -1  # of the whole answer, head included; -1: not known yet
        self._body_at = 0
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """The status and the body of the answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._size < 0:
            self._body_at = self._received.find(b"\r\n\r\n") + 4
            if self._body_at < 4:
                return
            length = self._received.find(b"content-length: ", 0, self._body_at) + 16
            assert length >= 16, self._received
            self._size = self._body_at + int(self._received[length : self._received.find(b"\r", length)])
        if len(self._received) >= self._size and self._answer is not None:
            status, body = int(self._received[9:12]), bytes(self._received[self._body_at : self._size])
            del self._received[: self._size]
            self._size = -1
            self._answer.set_result((status, body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the service closed the connection"))


class _Client:
    """A person's assistant."""

    def __init__(self, person: Person, kind: str) -> None:
        self._person = person
        self._kind = kind
        self._handle = person.handle
        # Put together once: but for the handle, of which all have one length, each request is like the last.
        self._idle = self.request(kind, {"walkthrough": person.walkthrough} if kind == "select_walkthrough" else {})
        self._select = self.request("select_walkthrough", {"walkthrough": person.walkthrough, "restart": True})
        self._next: tuple[int, bytes, bytes] | None = None

    def next(self) -> tuple[bytes, bool]:
        """The request to make now, and whether its answer is what the task is about."""
        if self._kind != "next_walkthrough_step":
            return self._idle, True
        handle = self._handle
        if handle is None:
            return self._select, False
        if self._next is None or self._next[0] != len(handle):
            before, _, after = self.request(self._kind, {"completed_step": handle}).partition(handle.encode())
            self._next = len(handle), before, after
        return self._next[1] + handle.encode() + self._next[2], True

    def read(self, status: int, body: bytes) -> str:
        """What the answer says, in a word."""
        if status != 200:
            return str(status)
        result = _answer.decode(body).result
        if result.is_error:
            return bytes(result.content)[:120].decode()
        structured = result.structured_content
        if structured is None:
            return "answered"
        self._handle = structured.step.handle if structured.step else None
        return structured.status

    def request(self, tool: str, arguments: dict[str, Any]) -> bytes:
        """A tool call of the newest era, as bytes."""
        params = {"name": tool, "arguments": arguments, "_meta": _META}
        body = msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
        return (
            f"POST /mcp HTTP/1.1\r\nhost: {self._person.host}\r\ncontent-type: application/json\r\n"
            "accept: application/json, text/event-stream\r\nuser-agent: bench/1\r\n"
            f"mcp-protocol-version: {MODERN}\r\nmcp-method: tools/call\r\nmcp-name: {tool}\r\n"
            f"authorization: Bearer {self._person.token}\r\ncontent-length: {len(body)}\r\n\r\n"
        ).encode() + body


# What an answer that is what a task is about says, by tool. A tool that is not named has no status of its own.
_ABOUT = {
    "next_walkthrough_step": {"advanced"},
    "select_walkthrough": {"started", "resumed", "restarted", "moved_to_latest", "completed"},
}
# What else may be said on the way there: of the selects in between, and of the last step.
_BESIDES = {"next_walkthrough_step": {"started", "resumed", "restarted", "completed"}}


def about(kind: str) -> Set[str]:
    """What the answers that count say."""
    return _ABOUT.get(kind, {"answered"})


def unexpected(kind: str, told: Set[str]) -> Set[str]:
    """Of what was told, whatever no answer to a task of this kind should say: an error's text, or a status of HTTP."""
    return told - about(kind) - _BESIDES.get(kind, set())


class _Crowd:
    def __init__(self, task: Task) -> None:
        self._task = task
        self._left = task.calls
        self._told: Counter[str] = Counter()
        self._microseconds: list[int] = []
        self._body_bytes = 0

    async def run(self) -> Record:
        """Everybody's calls, until the time is over or all are made."""
        task = self._task
        shares = [task.people[number :: task.connections] for number in range(task.connections)]
        loop = asyncio.get_running_loop()
        connections = [
            (await loop.create_connection(_Connection, "127.0.0.1", task.port))[1] for _ in range(task.connections)
        ]
        cpu, began = time.process_time(), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for connection, share in zip(connections, shares, strict=True):
                group.create_task(self._call(connection, share, began + task.seconds))
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        for connection in connections:
            connection.transport.close()
        return Record(seconds, dict(self._told), self._microseconds, cpu, self._body_bytes)

    async def _call(self, connection: _Connection, people: Sequence[Person], until: float) -> None:
        wanted = about(self._task.kind)
        now = time.perf_counter()
        clients = [_Client(person, self._task.kind) for person in people]
        for person in chain.from_iterable(repeat(clients, self._task.rounds)):
            calls = 0
            while not self._task.turn or calls < self._task.turn:
                if now >= until or self._left <= 0:
                    return
                self._left -= 1
                calls += 1
                request, counts = person.next()
                sent = now
                status, body = await connection.ask(request)
                told = person.read(status, body)
                now = time.perf_counter()
                self._told[told] += 1
                if counts and told in wanted:
                    self._body_bytes += len(body)
                    self._microseconds.append(int((now - sent) * 1e6))


def main() -> None:
    """Does the task."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    if task.core is not None:
        os.sched_setaffinity(0, {task.core})
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(_Crowd(task).run())))


if __name__ == "__main__":
    main()
