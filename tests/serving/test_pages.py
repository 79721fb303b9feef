"""Pages in a browser that call Cairn: which of them may, what their browser is told, and what they can read.

The rules: the CORS protocol of the Fetch standard (section 3.2); MCP, "Security Warning": Origin is checked.
"""

from __future__ import annotations

from collections.abc import Iterator

import asyncpg
import pytest

from tests.processes import Serving, serving
from tests.serving.conftest import Tenant, call
from tests.serving.raw import FORMS, MODERN, PING, Reply, assert_no_tool_was_reached, modern, only, request

_SELECT = call("select_walkthrough", walkthrough="tour")
_EACH_ITS_OWN = ("date", "connection", "x-request-id")
_INSPECTOR = "http://localhost:6274"
_ASKED_FOR = "authorization, content-type, mcp-protocol-version"
_EXPOSED = "www-authenticate, retry-after, mcp-session-id, mcp-protocol-version"


@pytest.fixture(scope="module")
def open_service(owner_url: str) -> Iterator[Serving]:
    """A service whose operator lets in pages of three other origins."""
    origins = "https://app.example.com, HTTPS://Other.example.com:8443\nvscode-webview://0a1b"
    with serving("serve", "--port", "0", CAIRN_DATABASE_URL=owner_url, CAIRN_ALLOWED_ORIGINS=origins) as running:
        yield running


@pytest.fixture(scope="module")
def wide_open_service(owner_url: str) -> Iterator[Serving]:
    """A service whose operator lets in every page."""
    with serving("serve", "--port", "0", CAIRN_DATABASE_URL=owner_url, CAIRN_ALLOWED_ORIGINS="*") as running:
        yield running


async def _asked(service: Serving, host: str, origin: str, *headers: str) -> Reply:
    """The answer to a browser that asks whether a page may send a request; it sends no token, and no type."""
    asking = (f"host: {host}", f"origin: {origin}", "access-control-request-method: POST", *headers)
    return await only(service, request(*asking, body=b"", method="OPTIONS", forms=("accept: */*",)))


async def _called(service: Serving, host: str, origin: str) -> Reply:
    return await only(service, request(f"host: {host}", f"origin: {origin}"))


def _assert_readable(reply: Reply, origin: str) -> None:
    assert reply.headers["access-control-allow-origin"] == origin
    assert reply.headers["access-control-expose-headers"] == _EXPOSED
    assert "origin" in reply.headers["vary"].lower()
    # There is no cookie that it could be about, and there must never be one.
    assert "access-control-allow-credentials" not in reply.headers


def _assert_unreadable(reply: Reply) -> None:
    assert not [name for name in reply.headers if name.startswith("access-control")]
    assert reply.headers["vary"] == "Origin"


@pytest.mark.promise("gate.pages")
async def test_pages_of_the_host_the_own_machine_and_allowed_origins_may_call(
    tenant: Tenant, open_service: Serving, wide_open_service: Serving
) -> None:
    own = (
        f"http://{tenant.host}:8000",
        f"https://{tenant.host}:8000",
        "http://localhost",
        "http://localhost:6274",
        "https://localhost:65535",
        "http://127.0.0.1:3000",
        "http://[::1]:3000",
    )
    allowed = ("https://app.example.com", "https://other.example.com:8443", "vscode-webview://0a1b")
    foreign = (
        "null",
        "https://evil.example.com",
        "http://app.example.com",
        "https://app.example.com:8443",
        "https://app.example.com.evil.example.com",
        "https://x.app.example.com",
        "https://appxexample.com",
        "http://localhost.example.com",
        "http://localhost:6274.example.com",
        "http://localhost:port",
        "http://evil.example.com#http://localhost",
        "http://localhost@evil.example.com",
        "http://127.0.0.2",
        "http://127.0.0.1.example.com",
        "http://0.0.0.0:3000",
        "http://[::ffff:127.0.0.1]",
        "file://",
    )
    host = f"{tenant.host}:8000"
    for service, in_, out in (
        (tenant.service, own, (*allowed, *foreign)),
        (open_service, (*own, *allowed), foreign),
        (wide_open_service, (*own, *allowed, *foreign), ()),
    ):
        for origin in in_:
            called, asked = await _called(service, host, origin), await _asked(service, host, origin)
            assert (called.status, asked.status) == (200, 204), origin
            _assert_readable(called, origin)
            _assert_readable(asked, origin)
        for origin in out:
            called, asked = await _called(service, host, origin), await _asked(service, host, origin)
            assert (called.status, asked.status) == (403, 403), origin
            _assert_unreadable(called)
            _assert_unreadable(asked)
    # Two origins are none, even where any would do.
    twice = request(f"host: {host}", f"origin: {_INSPECTOR}", f"origin: {_INSPECTOR}")
    for service in (tenant.service, wide_open_service):
        reply = await only(service, twice)
        assert reply.status == 403
        _assert_unreadable(reply)


@pytest.mark.promise("gate.pages")
async def test_a_browser_that_asks_first_is_told_what_a_page_may_send(
    tenant: Tenant, closed_tenant: Tenant, owner: asyncpg.Connection
) -> None:
    for each in (tenant, closed_tenant):  # the question never carries a token
        reply = await _asked(
            each.service,
            each.host,
            _INSPECTOR,
            "access-control-request-headers: authorization,Mcp-Param-Region,mcp-param-x y,mcp-param-,x,mcp-param-zone",
        )
        assert (reply.status, reply.body) == (204, b"")
        assert {name: value for name, value in reply.headers.items() if name not in _EACH_ITS_OWN} == {
            "access-control-allow-origin": _INSPECTOR,
            "access-control-allow-methods": "POST",
            "access-control-allow-headers": "authorization, content-type, accept, mcp-protocol-version, mcp-method, "
            "mcp-name, mcp-session-id, last-event-id, traceparent, tracestate, baggage, mcp-param-region, "
            "mcp-param-zone",
            "access-control-expose-headers": _EXPOSED,
            "access-control-max-age": "7200",
            "vary": "Access-Control-Request-Headers, Origin",
        }
    # Of a host that is nobody's, or another path, there is nothing to tell but that.
    for status, path, host in ((421, "/mcp", "nobody.localhost"), (404, "/nothing", tenant.host)):
        asking = (f"host: {host}", f"origin: {_INSPECTOR}", "access-control-request-method: POST")
        reply = await only(tenant.service, request(*asking, body=b"", method="OPTIONS", path=path))
        assert reply.status == status
        _assert_readable(reply, _INSPECTOR)
    # Without the question it is a method like any other.
    for headers in ((), (f"origin: {_INSPECTOR}",), ("access-control-request-method: POST",)):
        reply = await only(tenant.service, request(f"host: {tenant.host}", *headers, body=b"", method="OPTIONS"))
        assert (reply.status, reply.headers["allow"]) == (405, "POST")
    await assert_no_tool_was_reached(owner)


@pytest.mark.promise("gate.pages")
async def test_a_page_can_read_why_it_was_refused(tenant: Tenant, closed_tenant: Tenant) -> None:
    page = f"origin: {_INSPECTOR}"
    host, closed = f"host: {tenant.host}", f"host: {closed_tenant.host}"
    unknown, _ = modern({"jsonrpc": "2.0", "id": 1, "method": "no/such"})
    routing = (f"mcp-protocol-version: {MODERN}", "mcp-method: no/such")
    for status, content in (
        (401, request(host, page, body=_SELECT)),
        (401, request(closed, page, body=PING)),
        (401, request(host, page, "authorization: Bearer cairn_unknown", body=PING)),
        (421, request("host: nobody.localhost", page)),
        (404, request(host, page, path="/nothing")),
        (405, request(host, page, method="GET", body=b"")),  # as a client does that hopes for a stream
        (405, request(host, page, method="DELETE", body=b"")),
        (406, request(host, page, forms=(FORMS[0], "accept: text/html"))),
        (413, request(host, page, f"content-length: {2**20 + 1}", body=b" " * (2**20 + 1))),
        (415, request(host, page, forms=("content-type: text/plain",))),
        (400, request(host, page, body=b"{")),
        (400, request(host, page, "mcp-protocol-version: 1")),
        (400, request(host, page, "transfer-encoding: chunked", "content-length: 5", body=b"0\r\n\r\n")),
        # And what the protocol layer refuses.
        (404, request(host, page, *routing, body=unknown)),
        (202, request(host, page, body={"jsonrpc": "2.0", "method": "notifications/initialized"})),
    ):  # fmt: skip
        reply = await only(tenant.service, content)
        assert reply.status == status
        _assert_readable(reply, _INSPECTOR)
        if status == 401:
            assert reply.headers["www-authenticate"].startswith("Bearer ")


@pytest.mark.promise("gate.pages")
async def test_a_page_has_no_credential_but_the_token_that_it_sends(tenant: Tenant, owner: asyncpg.Connection) -> None:
    await tenant.publish("one")
    token = await tenant.token()
    for carried in (f"cookie: token={token}; authorization={token}", f"proxy-authorization: Bearer {token}"):
        sent = request(f"host: {tenant.host}", f"origin: {_INSPECTOR}", carried, body=_SELECT)
        reply = await only(tenant.service, sent)
        assert reply.status == 401
        assert "set-cookie" not in reply.headers
    # A page cannot send a form, or a text without asking: those types are no JSON.
    for form in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        sent = request(f"host: {tenant.host}", f"origin: {_INSPECTOR}", body=_SELECT, forms=(f"content-type: {form}",))
        assert (await only(tenant.service, sent)).status == 415
    await assert_no_tool_was_reached(owner)


async def test_an_answer_to_nobody_s_page_says_that_it_depends_on_one(tenant: Tenant) -> None:
    """Or a cache between would give a page what was meant for none."""
    for content in (request(f"host: {tenant.host}"), request(f"host: {tenant.host}", body=_SELECT)):
        _assert_unreadable(await only(tenant.service, content))


@pytest.mark.promise("gate.pages", "auth.refused")
async def test_where_every_page_may_call_none_may_press_the_buttons_of_this_host(
    tenant: Tenant, wide_open_service: Serving
) -> None:
    for method, path in (("GET", "/"), ("POST", "/"), ("POST", "/sign-in")):
        for origin in ("https://evil.example.com", _INSPECTOR):
            pressing = request(f"host: {tenant.host}", f"origin: {origin}", method=method, path=path, body=b"")
            reply = await only(wide_open_service, pressing)
            assert reply.status == 403, (method, path)
            _assert_unreadable(reply)
