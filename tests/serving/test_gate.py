"""The gate, over raw HTTP against a real service: whose host, which page, which method, how much, and whose token."""

from __future__ import annotations

import asyncio
import codecs
import gc
import json
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx2
import pytest

from adapters.postgres.connections import Database
from adapters.rate_limits import MemoryRateLimits
from application.identity import Identity
from application.limits import Limit
from domain.tenancy import Caller
from entrypoints.http.gate import Gate
from entrypoints.http.proxies import trusted_networks
from entrypoints.mcp.server import STATE_KEY, Arrival
from tests.processes import Serving, serving
from tests.serving.conftest import Tenant, call, challenge, make_tenant
from tests.serving.raw import (
    FORMS,
    MODERN,
    PING,
    assert_discreet,
    assert_no_tool_was_reached,
    first,
    modern,
    only,
    replies,
    request,
    sent,
)
from tests.worlds import World, in_memory

_ONE_MIB = 2**20
_LIST_TOOLS = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
_INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "raw", "version": "1"},
    },
}
_LIST = call("list_walkthroughs")
_GUARDED = [
    call("select_walkthrough", walkthrough="tour"),
    call("next_walkthrough_step"),
    call("get_walkthrough_status"),
    call("review_walkthrough_step", walkthrough="tour", step_number=1),
]


async def _calls(owner: asyncpg.Connection) -> int:
    return int(await owner.fetchval("select count(*) from tool_calls"))


async def test_what_is_no_http_request_gets_no_further_than_the_gate() -> None:
    """Where a WebSocket library is installed, a server may make a scope of its own of a request to upgrade."""
    world = in_memory()
    answers: list[Any] = []
    await world.server()

    async def served(*_: Any) -> None:
        raise AssertionError("there is nothing to serve")

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        answers.append(message)

    scope: Any = {**_POST, "type": "websocket", "scheme": "ws"}
    await _gate(served, world, world.identity)(scope, receive, send)
    assert answers == [{"type": "websocket.close", "code": 1000, "reason": None}]


async def test_a_request_to_upgrade_is_served_as_if_it_asked_for_nothing_more(tenant: Tenant) -> None:
    for upgrade in ("websocket", "h2c"):
        headers = (f"host: {tenant.host}", f"upgrade: {upgrade}", "connection: upgrade, close")
        forms = (*FORMS, "sec-websocket-version: 13", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==")
        assert (await only(tenant.service, request(*headers, forms=forms, close=False))).fault == (200, None, 1)


# ----------------------------------------------------------------------------------------------------- host


@pytest.mark.promise("gate.unknown-host")
async def test_a_host_that_is_no_server_s_is_misdirected(tenant: Tenant) -> None:
    slug = tenant.server.slug
    for host in (
        "nobody.localhost",
        "nobody.example.com",
        f"deep.{slug}.localhost",
        f"{slug}.localhost.example.com",
        f"{slug}.example.com",
        f"no-{slug}.localhost",
        f"{slug}",
        ".localhost",
        "..localhost",
        f"{slug}..localhost",
        f"{slug}.localhost..",
        f"{slug}_.localhost",
        f"{slug}.localhost:",
        f"{slug}.localhost:port",
        f"{slug}.localhost:123456",
        f"{slug}.localhost/mcp",
        f"{slug}.localhost,{slug}.localhost",
        f"{slug}%2elocalhost",
        f"user@{slug}.localhost",
        f"{slug}.localhost'",
        "[::1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "::1",
        "[fe80::1%25lo]",
        "127.1",
        "0.0.0.0",
        "2130706433",
        "127.0.0.1",
        "127.0.0.1.",
        "localhost",
        "LOCALHOST:80",
        "x" * 300 + ".localhost",
    ):
        reply = await only(tenant.service, request(f"host: {host}"))
        assert reply.status == 421, host
        assert reply.headers["content-type"] == "application/json"
        assert "host" in json.loads(reply.body)["error"]["message"].lower()
        assert_discreet(reply.body.decode())


@pytest.mark.promise("gate.unknown-host")
async def test_a_host_with_bytes_that_no_name_has_is_refused(tenant: Tenant, owner: asyncpg.Connection) -> None:
    slug = tenant.server.slug
    token = await tenant.token()
    for host in (f"{slug}.loc\xe4lhost", f"{slug}.local host", f"{slug}\x7f.localhost", f"{slug}.local\thost", ""):
        reply = await only(tenant.service, request(f"host: {host}", f"authorization: Bearer {token}", body=_GUARDED[0]))
        assert reply.status in (400, 421), host
    await assert_no_tool_was_reached(owner)


@pytest.mark.promise("gate.unknown-host")
async def test_a_request_names_exactly_one_host(tenant: Tenant, owner: asyncpg.Connection) -> None:
    token = f"authorization: Bearer {await tenant.token()}"
    host = f"host: {tenant.host}"
    assert (await only(tenant.service, request(token, body=_LIST, http="1.0"))).status == 421
    # The HTTP layer already refuses these two, as RFC 9112 section 3.2 demands.
    for headers in ((token,), (host, host, token), (host, "host: nobody.localhost", token)):
        assert (await only(tenant.service, request(*headers, body=_LIST))).status == 400
    both = request(host, host, token, body=_LIST, http="1.0")
    assert (await only(tenant.service, both)).status in (400, 421)
    assert await _calls(owner) == 0


@pytest.mark.promise("gate.unknown-host")
async def test_case_a_port_and_the_root_s_dot_make_no_other_host(tenant: Tenant) -> None:
    host = tenant.host
    for same in (host, host.upper(), host.title(), f"{host}.", f"{host}:80", f"{host}:65535", f"{host}.:8000"):
        assert (await only(tenant.service, request(f"host: {same}"))).status == 200, same


@pytest.mark.promise("gate.unknown-host", "tenant.identity")
async def test_a_custom_domain_is_its_server_s_host_and_no_subdomain_is(database: Database, service: Serving) -> None:
    tenant = await make_tenant(database, service, custom_domain="guides.acme-custom.example.com")
    for host in ("guides.acme-custom.example.com", "Guides.ACME-custom.example.com.:443", tenant.host):
        reply = await only(service, request(f"host: {host}", body=_INITIALIZE))
        assert reply.status == 200
        assert json.loads(reply.body)["result"]["serverInfo"]["name"] == tenant.server.slug
    for host in (
        "acme-custom.example.com",
        "x.guides.acme-custom.example.com",
        "guides.acme-custom.example.com.localhost",
    ):
        assert (await only(service, request(f"host: {host}"))).status == 421, host


@pytest.fixture(scope="module")
def service_with_default(owner_url: str) -> Iterator[Serving]:
    """A service on the same database that has a server for the bare addresses."""
    with serving("serve", "--port", "0", CAIRN_DATABASE_URL=owner_url, CAIRN_DEFAULT_SERVER="the-default") as running:
        yield running


@pytest.mark.promise("gate.unknown-host")
async def test_the_bare_loopback_addresses_are_the_default_server_s(
    tenant: Tenant, service_with_default: Serving
) -> None:
    await tenant.world.server(tenant.organization, "the-default", name="By default")
    for host in ("127.0.0.1", "127.0.0.1:8000", "localhost", "LocalHost:8000", "localhost.", "[::1]", "[::1]:8000"):
        reply = await only(service_with_default, request(f"host: {host}", body=_INITIALIZE))
        assert reply.status == 200, host
        assert json.loads(reply.body)["result"]["serverInfo"]["title"] == "By default"
    for host in ("127.0.0.2", "[::2]", "nobody.localhost", "x.127.0.0.1", "localhost.example.com"):
        assert (await only(service_with_default, request(f"host: {host}"))).status == 421, host
    # And the others keep their own.
    reply = await only(service_with_default, request(f"host: {tenant.host}", body=_INITIALIZE))
    assert json.loads(reply.body)["result"]["serverInfo"]["title"] == tenant.server.name


# --------------------------------------------------------------------------------------------------- origin


@pytest.mark.promise("gate.pages")
async def test_a_page_of_another_origin_is_forbidden_even_with_a_token(
    tenant: Tenant, owner: asyncpg.Connection
) -> None:
    await tenant.publish("one")
    token = await tenant.token()
    host = f"{tenant.host}:8000"
    for origin in (
        "null",
        "",
        f"http://{tenant.host}",
        f"http://{tenant.host}:8001",
        f"https://x.{tenant.host}:8000",
        "https://evil.example.com",
        f"https://{tenant.host}:8000.evil.example.com",
        f"ftp://{tenant.host}:8000",
        f"http://{tenant.host}:8000/",
        f"http://{tenant.host}:8000, http://{tenant.host}:8000",
        tenant.host,
    ):
        reply = await only(
            tenant.service,
            request(f"host: {host}", f"authorization: Bearer {token}", f"origin: {origin}", body=_GUARDED[0]),
        )
        assert reply.status == 403, origin
        assert_discreet(reply.body.decode())
    own = f"origin: http://{host}"
    assert (await only(tenant.service, request(f"host: {host}", own, own))).status == 403
    await assert_no_tool_was_reached(owner)


@pytest.mark.promise("gate.pages")
async def test_a_page_of_the_host_itself_may_call(tenant: Tenant) -> None:
    for host in (tenant.host, f"{tenant.host}:8000"):
        for origin in (f"http://{host}", f"https://{host}", f"HTTPS://{host.upper()}"):
            assert (await only(tenant.service, request(f"host: {host}", f"origin: {origin}"))).status == 200


# ----------------------------------------------------------------------------------------- method and path


@pytest.mark.promise("gate.request")
async def test_only_post_is_served_at_mcp(tenant: Tenant, closed_tenant: Tenant) -> None:
    for one in (tenant, closed_tenant):
        for method in ("GET", "DELETE", "PUT", "HEAD", "OPTIONS", "PATCH", "BREW"):
            for path in ("/mcp", "/mcp/", "/mcp?x=1"):
                asked = request(f"host: {one.host}", method=method, path=path, body=PING)
                reply = await only(one.service, asked)
                assert (reply.status, reply.headers["allow"]) == (405, "POST"), (method, path)


@pytest.mark.promise("gate.request", "gate.modes")
async def test_no_spelling_of_the_path_leads_past_the_gate(closed_tenant: Tenant, owner: asyncpg.Connection) -> None:
    service, host = closed_tenant.service, f"host: {closed_tenant.host}"
    for path in (
        "//mcp",
        "/mcp//",
        "///mcp///",
        "/./mcp",
        "/x/../mcp",
        "/%6dcp",
        "/mcp%2f",
        "/%2fmcp",
        "/mcp;x",
        "/mcp%00",
        "/MCP",
        "/mcp/x",
        "/",
        "",
        "/schema",
        f"http://{closed_tenant.host}/mcp",
        "mcp",
        "*",
    ):
        for message in (_INITIALIZE, _LIST_TOOLS, _LIST):
            for reply in replies(await sent(service, request(host, body=message, path=path))):
                assert reply.status in (400, 401, 404, 405), (path, reply)
                assert_discreet(reply.body.decode())
    upgrade = request(
        host, "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
        method="GET",
    ).replace(b"connection: close", b"connection: upgrade, close")  # fmt: skip
    assert (await only(service, upgrade)).status == 405
    await assert_no_tool_was_reached(owner)


# --------------------------------------------------------------------------------------------------- length


def _padded(message: dict[str, Any], size: int) -> bytes:
    return json.dumps(message).encode().ljust(size)


async def _in_chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 2**16):
        yield body[start : start + 2**16]


def _chunked(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


@pytest.mark.promise("gate.request")
async def test_a_body_of_exactly_one_mib_is_served(tenant: Tenant) -> None:
    body = _padded(PING, _ONE_MIB)
    assert (await tenant.post(body)).status_code == 200
    async with httpx2.AsyncClient(timeout=30) as http:
        headers = {"host": tenant.host, "content-type": "application/json", "accept": "application/json"}
        reply = await http.post(tenant.service.url, headers=headers, content=_in_chunks(body))
    assert reply.request.headers["transfer-encoding"] == "chunked"
    assert (reply.status_code, reply.json()["result"]) == (200, {})


@pytest.mark.promise("gate.request")
async def test_a_longer_body_is_refused_as_soon_as_it_is_known(tenant: Tenant, owner: asyncpg.Connection) -> None:
    await tenant.publish("one")
    token = await tenant.token()
    headers = f"host: {tenant.host}", f"authorization: Bearer {token}"
    body = _padded(_GUARDED[0], _ONE_MIB + 1)
    # Still under way when it is refused: a connection closed on it would be reset, and the answer lost.
    for size in (1, 2**16, 4 * _ONE_MIB):
        assert (await tenant.post(_padded(_GUARDED[0], _ONE_MIB + size), token=token)).status_code == 413
    for unfinished in (
        # Announced: not a byte of it is waited for.
        request(*headers, f"content-length: {_ONE_MIB + 1}", body=b""),
        request(*headers, f"content-length: {10**18}", body=b""),
        # Not announced: its end is not waited for.
        request(*headers, "transfer-encoding: chunked", body=_chunked(body)),
    ):
        reply = await first(tenant.service, unfinished)
        assert (reply.status, reply.headers["connection"]) == (413, "close")
        assert "1,048,576" in json.loads(reply.body)["error"]["message"]
    await assert_no_tool_was_reached(owner)


@pytest.mark.promise("gate.request", "gate.token")
async def test_a_false_content_length_smuggles_nothing(tenant: Tenant, owner: asyncpg.Connection) -> None:
    await tenant.publish("one")
    host, token = f"host: {tenant.host}", f"authorization: Bearer {await tenant.token()}"
    body = json.dumps(_GUARDED[0]).encode()
    # Shorter than the body: what is cut off is no request.
    cut_off, *_ = replies(await sent(tenant.service, request(host, token, "content-length: 20", body=body)))
    assert cut_off.fault == (400, -32700, None)
    # Lengths that contradict each other, or are none.
    for lie in (
        ("content-length: 5", f"content-length: {len(body)}"),
        ("content-length: 1_0",),
        ("content-length: -1",),
    ):
        assert (await only(tenant.service, request(host, token, *lie, body=body))).status == 400, lie
    # A second request behind the first is one of its own, and does not ride on the first one's token.
    open_call = request(host, token, body=PING).replace(b"connection: close\r\n", b"")
    second = replies(await sent(tenant.service, open_call + request(host, body=body)))
    assert [reply.status for reply in second] == [200, 401]
    await assert_no_tool_was_reached(owner)


@pytest.mark.promise("gate.request")
async def test_a_client_that_hangs_up_in_mid_body_harms_nobody(tenant: Tenant, owner: asyncpg.Connection) -> None:
    await tenant.publish("one")
    token = await tenant.token()
    address = urlsplit(tenant.service.url)
    for headers, part in (
        (("content-length: 1000",), json.dumps(_GUARDED[0]).encode()),
        (("content-length: 1000",), b""),
        (("transfer-encoding: chunked",), _chunked(json.dumps(_GUARDED[0]).encode())),
    ):
        _, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(request(f"host: {tenant.host}", f"authorization: Bearer {token}", *headers, body=part))
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    await assert_no_tool_was_reached(owner)
    reply = await tenant.post(_GUARDED[0], token=token)
    assert reply.json()["result"]["structuredContent"]["status"] == "started"
    assert "Traceback" not in tenant.service.output


_POST: Any = {
    "type": "http",
    "http_version": "1.1",
    "method": "POST",
    "path": "/mcp",
    "query_string": b"",
    "client": ("127.0.0.1", 1),
}
_POSTED = [(b"host", b"guides.localhost"), (b"content-type", b"application/json")]


class _Fast(asyncio.SelectorEventLoop):
    """An event loop on which as much time passes as a test says, without anybody waiting."""

    passed = 0.0

    def time(self) -> float:
        return super().time() + self.passed


class _Elsewhere:
    """An `Identity` that is asked over a network: whoever asks has to wait their turn."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    async def bearer_of(self, *question: Any) -> Any:
        await asyncio.sleep(0)
        return await self._identity.bearer_of(*question)


def _gate(app: Any, world: World, identity: Any) -> Gate:
    limits: Any = MemoryRateLimits(dict.fromkeys(Limit))
    visitors: Any = None  # nobody comes by a personal address
    return Gate(app, world.servers, identity, visitors, limits, base_domain="localhost", default_server=None)


@pytest.mark.promise("gate.request")
@pytest.mark.parametrize("name", [b"host", b"accept", b"x-forwarded-for"])
async def test_nothing_stays_in_memory_of_what_strangers_write_into_headers(name: bytes) -> None:
    world = in_memory()
    await world.server()
    nobody: Any = None
    limits = MemoryRateLimits(dict.fromkeys(Limit))
    proxies = trusted_networks("127.0.0.1")
    gate = Gate(
        *(nobody, world.servers, world.identity, nobody, limits),
        base_domain="localhost", default_server=None, trusted_proxies=proxies,
    )  # fmt: skip
    statuses = set()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        statuses.add(message.get("status"))

    async def come(number: int) -> None:
        headers = dict(_POSTED) | {name: b"%05d" % number + b"x" * 60_000}
        scope: Any = {**_POST, "headers": list(headers.items())}
        await gate(scope, receive, send)

    await come(0)
    tracemalloc.start()
    try:
        for number in range(200):
            await come(number)
        gc.collect()  # refusals hold on to what they refuse, in a circle
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000  # of twelve million
    assert statuses == {{b"host": 421, b"accept": 406}.get(name, 400), None}


@pytest.mark.promise("gate.request")
def test_a_body_that_takes_its_time_is_no_outage() -> None:
    """The time in which a call is answered begins when the whole of it is there: a slow line is not our database."""
    loop = _Fast()

    async def upload(seconds: float) -> Arrival:
        world = in_memory()
        server = await world.server()
        token = await world.identity.create_token(server.key, "ada@example.com")
        arrivals: list[Arrival] = []

        async def served(scope: Any, receive: Any, send: Any) -> None:
            arrivals.append(scope["state"][STATE_KEY])

        async def receive() -> Any:
            loop.passed += seconds
            return {"type": "http.request", "body": json.dumps(_GUARDED[0]).encode(), "more_body": False}

        async def send(message: Any) -> None:
            assert message.get("status") is None, message

        gate = _gate(served, world, _Elsewhere(world.identity))
        headers = [*_POSTED, (b"authorization", f"Bearer {token}".encode())]
        await gate({**_POST, "headers": headers}, receive, send)  # type: ignore[typeddict-item]
        return arrivals[0]

    try:
        for seconds in (0, 2, 30):
            arrival = loop.run_until_complete(upload(seconds))
            assert arrival.caller is not None, f"after {seconds} s the token is not even looked up"
            assert arrival.answer_by > loop.time() + 2, f"after {seconds} s no time is left to answer in"
    finally:
        loop.close()


@pytest.mark.promise("gate.request")
def test_a_body_that_does_not_come_to_its_end_is_given_up() -> None:
    """A byte a second, as a client sends that only wants to hold the connection."""
    loop = _Fast()
    received = 0

    async def drip() -> list[Any]:
        world = in_memory()
        await world.server()
        answers: list[Any] = []

        async def receive() -> Any:
            nonlocal received
            received += 1
            assert received < 1_000, "nobody gives it up"
            loop.passed += 1
            await asyncio.sleep(0)
            return {"type": "http.request", "body": b" ", "more_body": True}

        async def send(message: Any) -> None:
            answers.append(message)

        async def served(*_: Any) -> None:
            raise AssertionError("there is nothing to serve")

        gate = _gate(served, world, world.identity)
        headers = [*_POSTED, (b"content-length", b"1000000")]
        scope: Any = {**_POST, "headers": headers}
        await gate(scope, receive, send)
        return answers

    try:
        start, body, end = loop.run_until_complete(drip())
        assert start["status"] == 408
        assert (b"connection", b"close") in start["headers"]
        assert json.loads(body["body"])["error"]["message"] == (
            "The body was not there within 60 s: send it again, at once."
        )
        assert not end["more_body"]
        assert 60 <= received <= 65
    finally:
        loop.close()


# --------------------------------------------------------------------------------------------------- tokens


@pytest.mark.promise("gate.token", "gate.modes")
async def test_without_a_token_an_on_demand_server_lists_and_asks_for_one_at_every_other_tool(
    tenant: Tenant, owner: asyncpg.Connection
) -> None:
    await tenant.publish("one")
    for message in (_INITIALIZE, PING, _LIST_TOOLS):
        assert (await tenant.post(message)).status_code == 200
    body, headers = modern({"jsonrpc": "2.0", "id": 1, "method": "server/discover"})
    assert (await tenant.post(body, **headers)).status_code == 200
    for message in [*_GUARDED, call("no_such_tool"), call("LIST_WALKTHROUGHS"), call("list_walkthroughs\n")]:
        for body, headers in ((message, {}), modern(message)):
            reply = await tenant.post(body, **headers)
            assert reply.status_code == 401, message
            assert reply.headers["www-authenticate"] == challenge(tenant)  # and no error: nothing was wrong
            assert reply.headers["content-type"] == "application/json"
            assert reply.headers["cache-control"] == "no-store"
            assert_discreet(reply.text)
    await assert_no_tool_was_reached(owner)
    for body, headers in ((_LIST, {}), modern(_LIST)):
        result = (await tenant.post(body, **headers)).json()["result"]
        assert [row["status"] for row in result["structuredContent"]["walkthroughs"]] == [None]


@pytest.mark.promise("gate.token")
async def test_a_refusal_for_want_of_a_token_says_what_to_do(tenant: Tenant) -> None:
    refused = (await tenant.post(_GUARDED[0])).json()
    assert refused["id"] == _GUARDED[0]["id"]  # the body is a JSON-RPC error, of the request that was made
    without = refused["error"]["message"]
    unknown = (await tenant.post(_GUARDED[0], token="cairn_unknown")).json()["error"]["message"]
    assert "Authorization: Bearer" in without
    assert "new" in unknown or "another" in unknown  # there is only one thing to do with a dead token


@pytest.mark.promise("gate.token", "gate.modes")
async def test_an_on_connect_server_answers_nothing_without_a_token(
    closed_tenant: Tenant, owner: asyncpg.Connection
) -> None:
    await closed_tenant.publish("one")
    messages = [_INITIALIZE, PING, _LIST_TOOLS, _LIST, *_GUARDED, call("no_such_tool")]
    notification = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    discover = {"jsonrpc": "2.0", "id": 1, "method": "server/discover"}
    for body in (*messages, notification, discover, [], [PING], {}, 0, None, b"", b"no json", b'{"method":'):
        reply = await closed_tenant.post(body)
        assert reply.status_code == 401, body
        assert "error" not in reply.headers["www-authenticate"]
        assert closed_tenant.server.name not in reply.text
    await assert_no_tool_was_reached(owner)
    token = await closed_tenant.token()
    for message in (_INITIALIZE, _LIST_TOOLS, _LIST, _GUARDED[0]):
        assert (await closed_tenant.post(message, token=token)).status_code == 200


@pytest.mark.promise("gate.token")
async def test_a_token_that_is_none_of_this_server_s_is_refused_even_where_none_is_needed(
    tenant: Tenant, owner: asyncpg.Connection
) -> None:
    await tenant.publish("one")
    good = await tenant.token()
    host = f"host: {tenant.host}"
    for bad in (
        "Bearer cairn_unknown",
        f"Bearer {good}x",
        f"Bearer {good[:-1]}",
        f"Bearer {good.upper()}",
        f"Bearer {good} {good}",
        f"Bearer {good}, Bearer {good}",
        f'Bearer "{good}"',
        "Bearer \xff\xfe",
        "Bearer ' or ''='",
        f"Bearer {'x' * 10_000}",
        "Bearer",
        "bearer ",
        "BEARER \t",
    ):
        for message in (_LIST, _GUARDED[0], _LIST_TOOLS):
            reply = await only(tenant.service, request(host, f"authorization: {bad}", body=message))
            assert reply.status == 401, bad
            told = reply.headers["www-authenticate"]
            assert told.startswith(f'{challenge(tenant)}, error="invalid_token", error_description="')
            assert good not in reply.body.decode()
            assert_discreet(reply.body.decode() + told.replace("Bearer", ""))
    await assert_no_tool_was_reached(owner)


@pytest.mark.promise("gate.token")
async def test_several_authorization_headers_are_none(tenant: Tenant, owner: asyncpg.Connection) -> None:
    await tenant.publish("one")
    host, good = f"host: {tenant.host}", f"authorization: Bearer {await tenant.token()}"
    for headers in ((good, good), (good, "authorization: Basic YTpi"), ("authorization: Bearer x", good)):
        for message in (_GUARDED[0], _LIST):  # not even where no token is needed
            reply = await only(tenant.service, request(host, *headers, body=message))
            assert reply.status == 401
            assert 'error="invalid_token"' in reply.headers["www-authenticate"]
    await assert_no_tool_was_reached(owner)


@pytest.mark.promise("gate.token")
async def test_a_scheme_is_matched_without_case_and_any_other_one_is_no_token(tenant: Tenant) -> None:
    await tenant.publish("one")
    token, host = await tenant.token(), f"host: {tenant.host}"
    for right in (f"bearer {token}", f"BEARER {token}", f"BeArEr   {token}  "):
        reply = await only(tenant.service, request(host, f"authorization: {right}", body=_GUARDED[0]))
        assert reply.status == 200, right
    for other in (f"Basic {token}", token, f"Token {token}", f"Bearer:{token}", f"Bearer\t{token}", ""):
        reply = await only(tenant.service, request(host, f"authorization: {other}", body=_GUARDED[0]))
        assert reply.status == 401, other
        assert "error" not in reply.headers["www-authenticate"]


@pytest.mark.promise("gate.other-server-token")
async def test_a_token_of_another_server_or_organisation_is_as_good_as_unknown(
    tenant: Tenant, closed_tenant: Tenant, owner: asyncpg.Connection
) -> None:
    await tenant.publish("one")
    sibling = await tenant.world.server(tenant.organization, f"{tenant.server.slug}-sibling")
    siblings = await tenant.world.identity.create_token(sibling.key, "ada@example.com")
    foreign = await closed_tenant.token()
    unknown = await tenant.post(_GUARDED[0], token="cairn_unknown")
    for token in (siblings, foreign):
        for message in (_GUARDED[0], _LIST, _INITIALIZE):
            reply = await tenant.post(message, token=token)
            assert reply.status_code == 401
            assert (reply.content, reply.headers["www-authenticate"]) == (
                unknown.content,
                unknown.headers["www-authenticate"],
            )
    await assert_no_tool_was_reached(owner)


@pytest.mark.promise("gate.token")
async def test_a_revoked_token_ends_with_the_next_call(tenant: Tenant, owner: asyncpg.Connection) -> None:
    await tenant.publish("one", "two")
    token, other = await tenant.token(), await tenant.token()
    assert (await tenant.post(_GUARDED[0], token=token)).status_code == 200
    assert await tenant.world.identity.revoke(tenant.server.key, token) == 1
    assert (await tenant.post(_GUARDED[0], token=token)).status_code == 401
    assert (await tenant.post(_LIST, token=token)).status_code == 401
    assert (await tenant.post(_GUARDED[0], token=other)).status_code == 200
    assert await _calls(owner) == 2


# ------------------------------------------------------------------- the body decides, and one parser reads it


@pytest.mark.promise("gate.modes")
async def test_a_header_that_names_an_open_tool_opens_no_other_one(tenant: Tenant, owner: asyncpg.Connection) -> None:
    await tenant.publish("one")
    body, _ = modern(_GUARDED[0])
    for method, name in (("tools/call", "list_walkthroughs"), ("tools/list", None), ("server/discover", None)):
        for version in (MODERN, "2025-11-25", None):
            headers = {
                **({"mcp_protocol_version": version} if version else {}),
                "mcp_method": method,
                **({"mcp_name": name} if name else {}),
            }
            assert (await tenant.post(body, **headers)).status_code == 401
            assert (await tenant.post(_GUARDED[0], **headers)).status_code == 401
    # Nor does a token help a request whose headers contradict its body.
    lying = {"mcp_protocol_version": MODERN, "mcp_method": "tools/call", "mcp_name": "list_walkthroughs"}
    reply = await tenant.post(body, token=await tenant.token(), **lying)
    assert reply.status_code == 400
    await assert_no_tool_was_reached(owner)


_OPEN_TEXT, _GUARDED_TEXT = json.dumps(_LIST), json.dumps(_GUARDED[0])
_TWICE_NAMED = _OPEN_TEXT.replace('"name": "list_walkthroughs"', '"name": "list_walkthroughs", "name": "{}"')
_ODD_BODIES: dict[str, bytes] = {
    "a batch": json.dumps([_LIST, _GUARDED[0]]).encode(),
    "a batch, guarded first": json.dumps([_GUARDED[0], _LIST]).encode(),
    "a batch in a batch": json.dumps([[_GUARDED[0]]]).encode(),
    "a batch with rubbish": json.dumps([1, None, "x", _GUARDED[0]]).encode(),
    "a notification": json.dumps({**_GUARDED[0], "id": None}).encode(),
    "without an id": json.dumps({k: v for k, v in _GUARDED[0].items() if k != "id"}).encode(),
    "UTF-16 with its mark": _GUARDED_TEXT.encode("utf-16"),
    "UTF-16, little end": _GUARDED_TEXT.encode("utf-16-le"),
    "UTF-16, big end": _GUARDED_TEXT.encode("utf-16-be"),
    "UTF-32": _GUARDED_TEXT.encode("utf-32"),
    "a byte order mark": codecs.BOM_UTF8 + _GUARDED_TEXT.encode(),
    "a tool named twice": _TWICE_NAMED.replace("{}", "select_walkthrough").encode(),
    "a tool named twice, by an escape": _TWICE_NAMED.replace(
        '"name": "{}"', '"n\\u0061me": "select_walkthrough"'
    ).encode(),
    "a method named twice": _GUARDED_TEXT.replace('"method"', '"method": "tools/list", "method"').encode(),
    "params given twice": (_GUARDED_TEXT[:-1] + ', "params": {"name": "next_walkthrough_step"}}').encode(),
    "an escaped method": _GUARDED_TEXT.replace("tools/call", "tools\\/c\\u0061ll").encode(),
    "deep nesting": _GUARDED_TEXT.replace('"tour"', "[" * 150 + "]" * 150).encode(),
    "deeper nesting": _GUARDED_TEXT.replace('"tour"', "[" * 600 + "]" * 600).encode(),
    "bottomless nesting": _GUARDED_TEXT.replace('"tour"', "[" * 100_000 + "]" * 100_000).encode(),
    "not a number": _GUARDED_TEXT.replace('"tour"', "NaN").encode(),
    "infinity": _GUARDED_TEXT.replace('"tour"', "-Infinity").encode(),
    "a number beyond floats": _GUARDED_TEXT.replace('"tour"', "1e999").encode(),
    "a number of 5,000 digits": _GUARDED_TEXT.replace('"tour"', "9" * 5_000).encode(),
    "half a surrogate pair": _GUARDED_TEXT.replace("tour", "\\ud800").encode(),
    "half a surrogate pair, raw": _GUARDED_TEXT.replace("tour", "\ud800").encode("utf-8", "surrogatepass"),
    "NUL": _GUARDED_TEXT.replace("tour", "\\u0000").encode(),
    "NUL, raw": _GUARDED_TEXT.replace("tour", "\x00").encode(),
    "bytes that are no UTF-8": _GUARDED_TEXT.encode().replace(b"tour", b"\xff\xfe"),
    "white space around it": b"\r\n\t " + _GUARDED_TEXT.encode() + b"\n\n",
    "something after it": _GUARDED_TEXT.encode() + b"\x00",
    "two of them": _OPEN_TEXT.encode() + b"\n" + _GUARDED_TEXT.encode(),
    "a tool that is no text": _GUARDED_TEXT.replace('"select_walkthrough"', '["list_walkthroughs"]').encode(),
    "params that are no object": json.dumps({**_GUARDED[0], "params": ["select_walkthrough"]}).encode(),
    "nothing": b"",
}


@pytest.mark.parametrize("version", [MODERN, "2025-11-25", None])
@pytest.mark.promise("gate.modes", "gate.token", "tools.nothing-internal")
async def test_no_form_of_body_reaches_a_tool_without_a_token(
    tenant: Tenant, owner: asyncpg.Connection, version: str | None
) -> None:
    await tenant.publish("one")
    headers = {"mcp_protocol_version": version, "mcp_method": "tools/call", "mcp_name": "select_walkthrough"}
    for form, body in _ODD_BODIES.items():
        reply = await tenant.post(body, **headers if version else {})
        assert reply.status_code in (400, 401), form
        await assert_no_tool_was_reached(owner)
        assert_discreet(reply.text)


@pytest.mark.promise("tools.nothing-internal")
async def test_a_refusal_tells_nothing_of_the_inside_nor_of_other_tenants(
    tenant: Tenant, closed_tenant: Tenant
) -> None:
    caller: Caller = await tenant.caller()
    replies = [
        await tenant.post(_GUARDED[0]),
        await tenant.post(_GUARDED[0], token=await closed_tenant.token()),
        await tenant.post(b"{"),
        await tenant.post([_LIST]),
        await tenant.post(PING, host=f"x.{closed_tenant.host}"),
        await tenant.post(PING, origin=f"http://{closed_tenant.host}"),
        await closed_tenant.post(_LIST),
    ]
    assert all(reply.status_code >= 400 for reply in replies)
    for reply in replies:
        # Where a client is told to look is on the host that it asked, which it knows.
        shown = (reply.text + str(reply.headers)).replace(f"//{reply.request.headers['host']}/", "")
        assert_discreet(reply.text)
        for secret in (
            closed_tenant.server.name,
            closed_tenant.server.slug,
            closed_tenant.organization,
            str(caller.user_id),
            tenant.server.key.server_id,
            tenant.server.key.organization_id,
        ):
            assert secret not in shown
