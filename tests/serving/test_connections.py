"""What happens below the messages, over raw sockets: lengths, chunks, slow and broken connections, and proxies."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
import uvicorn
from uvicorn.server import ServerState

from entrypoints.http.connections import PunctualProtocol
from tests.serving.conftest import Tenant, call
from tests.serving.raw import (
    FORMS,
    MODERN,
    PING,
    Reply,
    assert_discreet,
    assert_no_tool_was_reached,
    connected,
    modern,
    only,
    replies,
    request,
    sent,
)

_SELECT = call("select_walkthrough", walkthrough="tour") | {"id": 7}
_NOT_HTTP = b"Invalid HTTP request received."


def _chunk(part: bytes, *, size: int | None = None, extension: bytes = b"") -> bytes:
    return b"%x%s\r\n%s\r\n" % (len(part) if size is None else size, extension, part)


def _headers(tenant: Tenant, token: str | None = None, *headers: str) -> tuple[str, ...]:
    return (f"host: {tenant.host}", *([f"authorization: Bearer {token}"] if token else []), *headers)


def _shown(reply: Reply) -> tuple[int, str]:
    """The status of an answer, and the key of the step it shows."""
    return reply.status, reply.json["result"]["structuredContent"]["step"]["key"]


# ----------------------------------------------------------------------------------------------------- heads


class _Impatient(PunctualProtocol):
    head_seconds = 0.2
    take_seconds = 0.2

    def connection_made(self, transport: Any) -> None:
        self.lost = asyncio.Event()
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost.set()


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@asynccontextmanager
async def _impatient() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server that waits a fifth of a second for the head of a request."""
    config = uvicorn.Config(_echo, http=_Impatient, lifespan="off", log_config=None, timeout_keep_alive=30)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Impatient(config, state, {}), host="127.0.0.1", port=0
    )
    try:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            yield reader, writer
        finally:
            writer.close()
    finally:
        server.close()


@pytest.mark.promise("gate.request")
@pytest.mark.parametrize("begun", [b"", b"POST /mcp HTTP/1.1\r\nHost: x", b"GET / HTTP/1.1\r\nHost: x\r\n"])
async def test_a_connection_that_does_not_get_past_a_request_s_head_is_ended(begun: bytes) -> None:
    async with asyncio.timeout(10), _impatient() as (reader, writer):
        # Also after a request that was answered, and however often a little more comes.
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
        writer.write(begun or b"G")
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
    async with asyncio.timeout(10), _impatient() as (reader, writer):
        writer.write(begun)
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")


async def test_a_request_whose_head_was_there_in_time_takes_the_time_that_it_takes() -> None:
    async with asyncio.timeout(10), _impatient() as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3 * _Impatient.head_seconds):
                await reader.read()
        writer.write(b"{}")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")


# --------------------------------------------------------------------------------------------------- answers

_LONG = 1_048_576  # what no kernel holds here
_TAKEN = 131_072  # what none holds either, and taken in a small part of the time that there is for it
_SHORT = 60_000  # what is held for a connection before its answer is held up


async def _tell(scope: Any, receive: Any, send: Any) -> None:
    body = b"x" * int(scope["path"][1:])
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


@asynccontextmanager
async def _crammed(keep_alive: int) -> AsyncIterator[tuple[set[Any], asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection on which the kernel holds next to nothing, to a server that waits a fifth of a second for each."""
    config = uvicorn.Config(_tell, http=_Impatient, lifespan="off", log_config=None, timeout_keep_alive=keep_alive)
    config.load()
    state = ServerState()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        server = await asyncio.get_running_loop().create_server(lambda: _Impatient(config, state, {}), sock=listener)
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, listener.getsockname())
        reader, writer = await asyncio.open_connection(sock=client, limit=1_024)
        try:
            yield state.connections, reader, writer
        finally:
            writer.transport.abort()
            server.close()


@pytest.mark.parametrize(
    ("size", "keep_alive", "header"), [(_LONG, 30, ""), (_SHORT, 0, ""), (_SHORT, 30, "Connection: close\r\n")]
)
async def test_a_connection_whose_answers_are_not_taken_is_ended(size: int, keep_alive: int, header: str) -> None:
    async with asyncio.timeout(10), _crammed(keep_alive) as (connections, reader, writer):
        writer.write(f"GET /{size} HTTP/1.1\r\nHost: x\r\n{header}\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        (connection,) = connections
        await connection.lost.wait()
        assert not connections


async def test_a_connection_whose_answers_are_taken_stays() -> None:
    async with asyncio.timeout(10), _crammed(30) as (_, reader, writer):
        for _ in range(2):
            writer.write(f"GET /{_TAKEN} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            assert len(await reader.readexactly(_TAKEN)) == _TAKEN
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2 * _Impatient.take_seconds):
                    await reader.read()


# ------------------------------------------------------------------------------------------ lengths and chunks


async def test_a_body_may_come_in_chunks_of_any_size(tenant: Tenant) -> None:
    await tenant.publish("one")
    headers = _headers(tenant, await tenant.token(), "transfer-encoding: chunked")
    body = json.dumps(_SELECT).encode()
    for chunks in (
        _chunk(body) + _chunk(b""),
        b"".join(_chunk(bytes([each])) for each in body) + _chunk(b""),
        _chunk(body, extension=b";name=value") + b"0\r\ntrailer: x\r\nauthorization: Bearer x\r\n\r\n",
        b"%08X\r\n%s\r\n0\r\n\r\n" % (len(body), body),
    ):
        assert _shown(await only(tenant.service, request(*headers, body=chunks))) == (200, "one")


@pytest.mark.promise("gate.request")
async def test_chunks_that_are_none_end_the_connection(tenant: Tenant, owner: asyncpg.Connection) -> None:
    await tenant.publish("one")
    headers = _headers(tenant, await tenant.token(), "transfer-encoding: chunked")
    body = json.dumps(_SELECT).encode()
    for chunks in (
        _chunk(body, size=len(body) - 5) + _chunk(b""),
        b"zz\r\n" + body,
        b"-1\r\n" + body,
        b"%x\r\n" % 2**80 + body,
        b"\r\n" + _chunk(body),
    ):
        reply = await only(tenant.service, request(*headers, body=chunks))
        assert (reply.status, reply.headers["connection"]) == (400, "close"), chunks[:20]
    await assert_no_tool_was_reached(owner)
    assert "Traceback" not in tenant.service.output


@pytest.mark.promise("gate.request")
async def test_a_length_is_said_once(tenant: Tenant, owner: asyncpg.Connection) -> None:
    """Whoever stands in front may go by the other, and take the rest for the next request (RFC 9112 section 11.2)."""
    await tenant.publish("one")
    headers = _headers(tenant, await tenant.token())
    body = json.dumps(_SELECT).encode()
    chunks = _chunk(body) + _chunk(b"")
    both = (*headers, "transfer-encoding: chunked", f"content-length: {len(chunks)}")
    behind = request(*headers, body=_SELECT)
    for content in (
        request(*both, body=chunks, close=False) + behind,
        request(*reversed(both), body=chunks, close=False) + behind,
        request(*headers, "transfer-encoding: chunked", body=chunks, http="1.0", close=False) + behind,
    ):
        reply = await only(tenant.service, content)  # and what came behind it is not looked at
        assert reply.fault == (400, -32600, None)
        assert reply.headers["connection"] == "close"
    for encoding in (
        "identity",
        "gzip, chunked",
        "xchunked",
        "chunked, identity",
        "chunked\r\ntransfer-encoding: chunked",
    ):
        reply = await only(tenant.service, request(*headers, f"transfer-encoding: {encoding}", body=chunks))
        assert (reply.status, reply.body) == (400, _NOT_HTTP), encoding
    await assert_no_tool_was_reached(owner)


async def test_who_asks_before_sending_is_told_to_go_on_or_why_not(tenant: Tenant, owner: asyncpg.Connection) -> None:
    await tenant.publish("one")
    token = await tenant.token()
    body = json.dumps(_SELECT).encode()
    expecting = ("expect: 100-continue", f"content-length: {len(body)}")
    async with connected(tenant.service) as connection:
        await connection.send(request(*_headers(tenant, token, *expecting), body=b""))
        assert (await connection.reply()).status == 100
        await connection.send(body)
        assert _shown(await connection.reply()) == (200, "one")
    await owner.execute("delete from walkthrough_progress")
    await owner.execute("delete from tool_calls")
    for headers, forms, status in (
        (("host: nobody.localhost", *expecting), FORMS, 421),
        (_headers(tenant, token, "origin: https://evil.example.com", *expecting), FORMS, 403),
        (_headers(tenant, token, "expect: 100-continue", f"content-length: {2**21}"), FORMS, 413),
        (_headers(tenant, token, *expecting), ("content-type: text/plain",), 415),
        (_headers(tenant, token, *expecting), (FORMS[0], "accept: text/html"), 406),
    ):
        async with connected(tenant.service) as connection:
            await connection.send(request(*headers, body=b"", forms=forms))
            assert (await connection.reply()).status == status
    await assert_no_tool_was_reached(owner)


# ---------------------------------------------------------------------------------- one connection, many requests


async def test_answers_come_in_the_order_of_the_requests(tenant: Tenant) -> None:
    await tenant.publish("one", "two")
    token = await tenant.token()
    pipelined = [
        request(*_headers(tenant, token), body=_SELECT | {"id": "first"}, close=False),
        request(*_headers(tenant), body=_SELECT | {"id": "second"}, close=False),
        request(*_headers(tenant), body=PING | {"id": "third"}, close=False),
        request(*_headers(tenant), body=PING | {"id": "fourth", "jsonrpc": "1.0"}, close=False),
        request(*_headers(tenant), body=PING | {"id": "last"}),
    ]
    answers = replies(await sent(tenant.service, b"".join(pipelined)))
    assert [(answer.status, answer.json["id"]) for answer in answers] == [
        (200, "first"), (401, "second"), (200, "third"), (400, "fourth"), (200, "last"),
    ]  # fmt: skip


@pytest.mark.promise("gate.token")
async def test_a_refusal_leaves_the_connection_to_the_next_request(tenant: Tenant, owner: asyncpg.Connection) -> None:
    await tenant.publish("one")
    token = await tenant.token()
    lying, _ = modern(_SELECT)
    refused: list[tuple[int, bytes]] = [
        (401, request(*_headers(tenant), body=_SELECT, close=False)),
        (401, request(*_headers(tenant, "cairn_unknown"), body=_SELECT, close=False)),
        (400, request(*_headers(tenant, token), body=b"", close=False)),
        (400, request(*_headers(tenant, token), body=b"{", close=False)),
        (400, request(*_headers(tenant, token), body=[_SELECT], close=False)),
        (400, request(*_headers(tenant, token), body=b"[" * 100_000, close=False)),
        (400, request(*_headers(tenant, token, f"mcp-protocol-version: {MODERN}"), body=lying, close=False)),
        (400, request(*_headers(tenant, token, "mcp-protocol-version: 1"), body=_SELECT, close=False)),
        # Refused by what stands before the body, of which there is none.
        (421, request("host: nobody.localhost", body=b"", close=False)),
        (403, request(*_headers(tenant, token, "origin: null"), body=b"", close=False)),
        (404, request(*_headers(tenant, token), body=b"", path="/nothing", close=False)),
        (405, request(*_headers(tenant, token), body=b"", method="GET", close=False)),
        (405, request(*_headers(tenant, token), body=b"", method="DELETE", close=False)),
        (415, request(*_headers(tenant, token), body=b"", forms=(), close=False)),
        (406, request(*_headers(tenant, token), body=b"", forms=(FORMS[0], "accept: text/html"), close=False)),
    ]
    async with connected(tenant.service) as connection:
        for status, content in refused:
            await connection.send(content)
            reply = await connection.reply()
            assert reply.status == status
            assert "connection" not in reply.headers
            assert_discreet(reply.body.decode())
            await connection.send(request(*_headers(tenant), body=PING | {"id": status}, close=False))
            assert (await connection.reply()).fault == (200, None, status)
    await assert_no_tool_was_reached(owner)


async def test_a_refusal_of_a_body_nobody_read_arrives_and_ends_the_connection(
    tenant: Tenant, owner: asyncpg.Connection
) -> None:
    """A proxy that still sends the body when the connection is reset under it would make a 502 of the answer."""
    token = await tenant.token()
    long = json.dumps(_SELECT).encode().ljust(2**20)
    for status, headers, kwargs in (
        (421, ("host: nobody.localhost",), {}),
        (403, _headers(tenant, token, "origin: null"), {}),
        (404, _headers(tenant, token), {"path": "/nothing"}),
        (405, _headers(tenant, token), {"method": "PUT"}),
        (413, _headers(tenant, token), {"body": long + b" "}),
        (415, _headers(tenant, token, "content-encoding: gzip"), {}),
        (415, _headers(tenant, token), {"forms": ()}),
        (406, _headers(tenant, token), {"forms": (FORMS[0], "accept: text/html")}),
    ):
        for http, close in (("1.1", False), ("1.1", True), ("1.0", False)):
            content = request(*headers, http=http, close=close, **{"body": long} | kwargs)
            async with connected(tenant.service) as connection:
                await connection.send(content[:1_000])
                reply = await connection.reply()  # before the body is there
                assert reply.fault == (status, -32003, None)
                assert reply.headers["connection"] == "close"
                await connection.send(content[1_000:])
                assert await connection.rest() == b""
    await assert_no_tool_was_reached(owner)


async def test_http_1_0_and_a_client_that_closes_are_served(tenant: Tenant) -> None:
    for content in (
        request(*_headers(tenant), http="1.0", close=False),
        request(*_headers(tenant), http="1.0"),
        request(*_headers(tenant)),
    ):
        reply = await only(tenant.service, content)
        assert (reply.status, reply.headers["connection"], reply.json["result"]) == (200, "close", {})


@pytest.mark.promise("next.repeated")
async def test_an_answer_that_was_lost_is_asked_for_again_and_nothing_moves_twice(
    tenant: Tenant, owner: asyncpg.Connection
) -> None:
    await tenant.publish("one", "two", "three")
    token = await tenant.token()
    first = await only(tenant.service, request(*_headers(tenant, token), body=_SELECT))
    handle = first.json["result"]["structuredContent"]["step"]["handle"]
    body = call("next_walkthrough_step", completed_step=handle)
    async with connected(tenant.service) as connection:
        await connection.send(request(*_headers(tenant, token), body=body))
        # The first bytes show that there is an answer; the rest of it goes nowhere.
        await connection.reader.readexactly(1)
    again = await only(tenant.service, request(*_headers(tenant, token), body=body))
    structured = again.json["result"]["structuredContent"]
    assert (structured["status"], structured["step"]["key"]) == ("repeated", "two")
    outcomes = await owner.fetch("select outcome from tool_calls order by created_at")
    assert sorted(row["outcome"] for row in outcomes) == ["advanced", "repeated", "started"]


# ------------------------------------------------------------------------------------------------- targets


async def test_methods_other_than_post_are_refused_each_in_its_own_way(
    tenant: Tenant, owner: asyncpg.Connection
) -> None:
    token = await tenant.token()
    for method in ("GET", "DELETE", "PUT", "PATCH", "TRACE", "OPTIONS", "BREW", "post", "QUERY"):
        reply = await only(tenant.service, request(*_headers(tenant, token), body=_SELECT, method=method))
        assert reply.fault == (405, -32003, None), method
        assert reply.headers["allow"] == "POST"
    answer = await sent(tenant.service, request(*_headers(tenant, token), body=b"", method="HEAD"))
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert answer.endswith(b"\r\n\r\n")  # HEAD has no body, whatever it is told
    await assert_no_tool_was_reached(owner)


async def test_only_the_path_itself_is_a_target(tenant: Tenant, owner: asyncpg.Connection) -> None:
    token = await tenant.token()
    for path, method in (
        (f"http://{tenant.host}/nothing", "POST"),
        ("http://nobody.localhost/mcp", "POST"),  # another host than the Host header's
        (f"http://{tenant.host}@nobody.localhost/mcp", "POST"),
        ("*", "OPTIONS"),
        ("/mcp/../mcp", "POST"),
        ("/" + "x" * 50_000, "POST"),
    ):
        reply = await only(tenant.service, request(*_headers(tenant, token), body=_SELECT, path=path, method=method))
        assert reply.fault == (404, -32003, None), path[:50]
    connect = request(*_headers(tenant, token), body=b"", path=f"{tenant.host}:80", method="CONNECT")
    assert (await only(tenant.service, connect)).fault == (404, -32003, None)
    await assert_no_tool_was_reached(owner)
    reply = await only(tenant.service, request(*_headers(tenant), path="/mcp?" + "x" * 50_000))
    assert reply.fault == (200, None, 1)
    # As to a proxy, which a server takes as well (RFC 9112 section 3.2.2).
    for path in (f"http://{tenant.host}/mcp", f"HTTPS://{tenant.host.upper()}/mcp?x"):
        assert (await only(tenant.service, request(*_headers(tenant), path=path))).fault == (200, None, 1)


async def test_what_is_no_http_at_all_is_answered_400_and_closed(tenant: Tenant, owner: asyncpg.Connection) -> None:
    token = await tenant.token()
    whole = request(*_headers(tenant, token), body=_SELECT)
    for content in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # somebody speaks TLS
        b"hello\r\n\r\n",
        whole.replace(b"host: ", b"host : "),
        whole.replace(b"content-type", b"content\x00type"),
        whole.replace(b"HTTP/1.1", b"HTTP/11"),
        whole.replace(b"POST /mcp", b"POST  /mcp"),
        whole.replace(b"POST /mcp", b"POST /m cp"),
        b"POST /" + b"x" * 65_600,  # 64 KiB without an end
        b"POST /mcp HTTP/1.1\r\nx: " + b"x" * 65_600,
    ):
        received = await sent(tenant.service, content)
        assert received.startswith(b"HTTP/1.1 400 "), content[:40]
        assert _NOT_HTTP in received
    await assert_no_tool_was_reached(owner)
    assert "Traceback" not in tenant.service.output


# ------------------------------------------------------------------------------------------------- proxies


@pytest.mark.promise("gate.unknown-host", "gate.token")
async def test_a_proxy_hands_on_the_host_and_nothing_else_says_it(tenant: Tenant, closed_tenant: Tenant) -> None:
    """`Host` has to arrive as the client sent it: what a proxy writes beside it could have been written by anyone."""
    for added in (
        (f"x-forwarded-host: {closed_tenant.host}",),
        (f"forwarded: for=1.2.3.4;host={closed_tenant.host};proto=https",),
        (f"x-original-host: {closed_tenant.host}", f"x-host: {closed_tenant.host}"),
        ('x-forwarded-for: 1.2.3.4, ]]"[, unknown', "x-forwarded-proto: javascript", "x-forwarded-port: x"),
        ("x-original-url: /admin", "x-rewrite-url: /admin", "x-http-method-override: DELETE"),
        ("via: 1.1 proxy, 1.0 other", "x-request-id: 1", "connection: x-hop", "x-hop: 1", "te: trailers", "dnt: 1"),
        ("traceparent: not-a-trace", "tracestate: ,,,", "baggage: =;="),
        ("traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",),
    ):
        reply = await only(tenant.service, request(*_headers(tenant, None, *added)))
        assert reply.fault == (200, None, 1), added
        # Nor does any of it open a host that wants a token, or make a host of one that is none.
        assert (await only(tenant.service, request(*_headers(closed_tenant, None, *added)))).status == 401
        assert (await only(tenant.service, request("host: nobody.localhost", *added))).status == 421


async def test_what_proxies_do_to_headers_changes_nothing(tenant: Tenant) -> None:
    await tenant.publish("one")
    token = await tenant.token()
    body, _ = modern(_SELECT)
    routing = (f"mcp-protocol-version: {MODERN}", "mcp-method: tools/call", "mcp-name: select_walkthrough")
    good = (*_headers(tenant, token), *routing, *FORMS)
    for headers in (
        [
            header.upper()
            if header.startswith(("mcp", "host", "content", "accept")) and "mcp-" not in header
            else header
            for header in good
        ],
        [header.title().split(":")[0] + ":" + header.partition(":")[2] for header in good],
        [header.replace(": ", ":\t \t") + " \t" for header in good],
        [header.replace("authorization: Bearer ", "authorization: Bearer\r\n ") for header in good],  # folded
        [*reversed(good)],
    ):
        reply = await only(tenant.service, request(*headers, body=body, forms=()))
        assert _shown(reply) == (200, "one"), headers


async def test_many_and_long_headers_are_borne(tenant: Tenant) -> None:
    many: tuple[Any, ...] = tuple(f"x-{number}: {number}" for number in range(1_000))
    for added in (many, (f"x-long: {'x' * 30_000}",), ("cookie: " + "a=b; " * 2_000,)):
        assert (await only(tenant.service, request(*_headers(tenant, None, *added)))).fault == (200, None, 1)
