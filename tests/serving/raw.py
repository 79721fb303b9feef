"""HTTP as it goes over a socket: requests that no well-behaved client would write, and answers to the byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from tests.processes import PROJECT, Serving
from tests.streams import send

MODERN = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
FORMS = ("content-type: application/json", "accept: application/json, text/event-stream")
_DEADLINE_SECONDS = 60


@dataclass
class Reply:
    """An answer as it came over the socket; of several headers of one name, all, with a comma between them."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(self.body)
        return decoded

    @property
    def fault(self) -> tuple[int, int | None, Any]:
        """Status, JSON-RPC error code and id; no code where the answer is a result."""
        return self.status, self.json.get("error", {}).get("code"), self.json["id"]


def request(
    *headers: str,
    body: Any = PING,
    method: str = "POST",
    path: str = "/mcp",
    http: str = "1.1",
    forms: tuple[str, ...] = FORMS,
    close: bool = True,
) -> bytes:
    """A request as a client writes it. Without `headers` there is no Host either; `close`: its connection ends then."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/{http}", *headers, *forms, *(["connection: close"] if close else [])]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers):
        lines.append(f"content-length: {len(content)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content


@dataclass
class Connection:
    """A connection to the service that stays open from answer to answer."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, part: bytes) -> None:
        send(self.writer, part)
        await self.writer.drain()

    async def reply(self) -> Reply:
        """The next answer; only that much is read."""
        async with asyncio.timeout(_DEADLINE_SECONDS):
            head = await self.reader.readuntil(b"\r\n\r\n")
            reply = _reply(head)
            if reply.status >= 200 and reply.status != 204:
                reply.body = await self.reader.readexactly(int(reply.headers["content-length"]))
            return reply

    async def rest(self) -> bytes:
        """Everything up to the end that the service makes."""
        async with asyncio.timeout(_DEADLINE_SECONDS):
            return await self.reader.read()


@asynccontextmanager
async def connected(service: Serving) -> AsyncIterator[Connection]:
    address = urlsplit(service.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


async def sent(service: Serving, content: bytes) -> bytes:
    """All bytes that the service answers with; the write side stays open, as a waiting client's does."""
    async with connected(service) as connection:
        await connection.send(content)
        return await connection.rest()


async def first(service: Serving, content: bytes) -> Reply:
    """The answer to a request that may not be whole; once it is there, its end is not waited for."""
    async with connected(service) as connection:
        await connection.send(content)
        return await connection.reply()


async def only(service: Serving, content: bytes) -> Reply:
    """The one answer to a request, after which the connection ends."""
    (reply,) = replies(await sent(service, content))
    return reply


def replies(received: bytes) -> list[Reply]:
    """The answers in `received`, each of which says its length, or is the last."""
    all_of_them = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        reply = _reply(head)
        length = int(reply.headers.get("content-length", 0 if reply.status == 204 else len(received)))
        reply.body, received = received[:length], received[length:]
        all_of_them.append(reply)
    return all_of_them


def _reply(head: bytes) -> Reply:
    status, *lines = head.decode("latin-1").strip().split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        known = headers.get(name.lower())
        headers[name.lower()] = f"{known}, {value.strip()}" if known is not None else value.strip()
    return Reply(int(status.split()[1]), headers, b"")


def modern(message: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The same request in the form of 2026-07-28, with the headers that repeat its body."""
    params = {**message.get("params", {}), "_meta": META}
    headers = {"mcp_protocol_version": MODERN, "mcp_method": message["method"]}
    if "name" in params:
        headers["mcp_name"] = params["name"].strip()
    return {**message, "params": params}, headers


async def assert_no_tool_was_reached(owner: asyncpg.Connection) -> None:
    assert await owner.fetchval("select count(*) from tool_calls") == 0
    assert await owner.fetchval("select count(*) from walkthrough_progress") == 0


def assert_discreet(text: str) -> None:
    """Nothing of the inside: no statement, no path, no stack, no class, no library."""
    lowered = text.lower()
    for telltale in (
        "traceback", "select ", "insert ", ".py", "asyncpg", "sqlalchemy", "postgres", 'file "', "pydantic",
        "validation error", "line 1", "jsonrpcrequest",
    ):  # fmt: skip
        assert telltale not in lowered, text
    assert str(PROJECT) not in text
