"""Who gets past the gate, over raw HTTP: modes, challenges, personal addresses, other sites' pages, and proxies."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest

from adapters.postgres.connections import Database
from adapters.rate_limits import MemoryRateLimits
from application.limits import Limit
from domain.tenancy import AuthMode
from entrypoints.http.gate import Gate
from tests.processes import Serving, learner, serving
from tests.serving.conftest import Tenant, assert_that_events_replay, call, challenge, make_tenant
from tests.serving.raw import (
    Reply,
    assert_discreet,
    assert_no_tool_was_reached,
    connected,
    first,
    modern,
    only,
    request,
)
from tests.worlds import in_memory

_LIST, _SELECT = call("list_walkthroughs"), call("select_walkthrough", walkthrough="tour")
_INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}},
}
_FORM = ("content-type: application/x-www-form-urlencoded",)
_OAUTH_PATHS = (
    "/.well-known/oauth-protected-resource",
    "/.well-known/oauth-protected-resource/mcp",
    "/.well-known/oauth-authorization-server",
    "/.well-known/openid-configuration",
    "/token",
    "/register",
    "/revoke",
)


def _message(method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


_OPEN = [_message("tools/list"), _message("prompts/list"), _message("resources/list"), _LIST]
_GUARDED = [
    _SELECT,
    call("next_walkthrough_step"),
    call("get_walkthrough_status"),
    call("review_walkthrough_step", walkthrough="tour", step_number=1),
    call("no_such_tool"),
    _message("resources/read", uri="walkthrough://tour/1"),
]


@pytest.fixture
async def open_tenant(database: Database, service: Serving, owner: asyncpg.Connection) -> AsyncIterator[Tenant]:
    """A tenant whose server takes visitors."""
    made = await make_tenant(database, service, auth_mode=AuthMode.ANONYMOUS)
    yield made
    await assert_that_events_replay(made.world, owner, made.server.key.organization_id)


@pytest.fixture(scope="module")
def proxied(owner_url: str) -> Iterator[Serving]:
    """A service that believes proxies on this machine."""
    with serving(
        "serve", "--port", "0", CAIRN_DATABASE_URL=owner_url, CAIRN_TRUSTED_PROXIES="127.0.0.0/8 ::1"
    ) as running:
        yield running


async def _ask(tenant: Tenant, method: str, path: str, *headers: str, body: bytes = b"", host: str = "") -> Reply:
    """One request to a page or an OAuth endpoint, a POST with a form."""
    forms = _FORM if method == "POST" else ()
    asking = request(f"host: {host or tenant.host}", *headers, method=method, path=path, body=body, forms=forms)
    return await only(tenant.service, asking)


async def _mint(tenant: Tenant) -> str:
    """A new visitor's id."""
    reply = await _ask(tenant, "POST", "/")
    assert reply.status == 303, reply
    return reply.headers["location"].removeprefix("/v/")


async def _at(tenant: Tenant, path: str, body: Any, *headers: str) -> Reply:
    return await only(tenant.service, request(f"host: {tenant.host}", *headers, body=body, path=path))


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


# ---------------------------------------------------------------------------------------------------- modes


@pytest.mark.promise("gate.modes")
@pytest.mark.parametrize("mode", AuthMode)
async def test_what_a_server_answers_without_a_token_is_decided_by_its_mode_and_the_body(
    database: Database, service: Serving, owner: asyncpg.Connection, mode: AuthMode
) -> None:
    tenant = await make_tenant(database, service, auth_mode=mode)
    await tenant.publish("one")
    is_open = mode is not AuthMode.ON_CONNECT
    told = {}
    for message in (_INITIALIZE, *_OPEN, *_GUARDED):
        legacy = await tenant.post(message)
        in_either = [legacy.status_code]
        if message is not _INITIALIZE:
            body, headers = modern(message)
            in_either.append((await tenant.post(body, **headers)).status_code)
        told[json.dumps(message)] = in_either
    expected = {json.dumps(message): [200 if is_open else 401] * 2 for message in _OPEN}
    expected |= {json.dumps(message): [401] * 2 for message in _GUARDED}
    assert told == expected | {json.dumps(_INITIALIZE): [200 if is_open else 401]}


# ------------------------------------------------------------------------------------------------ challenges


@pytest.mark.promise("gate.token")
async def test_each_challenge_is_what_the_specifications_say_to_the_letter(
    tenant: Tenant, owner: asyncpg.Connection
) -> None:
    """RFC 6750 section 3; MCP 2026-07-28, "Authorization": the documents' address and the scope, every time."""
    await tenant.publish("one")
    without = await tenant.post(_SELECT)
    assert (without.status_code, without.headers["www-authenticate"]) == (401, challenge(tenant))
    bad = await tenant.post(_SELECT, token="cairn_unknown")
    assert (bad.status_code, bad.headers["www-authenticate"]) == (
        401,
        f'{challenge(tenant)}, error="invalid_token", '
        'error_description="This token is not valid on this server: get a new one."',
    )
    token = await tenant.token()
    await owner.execute("update access_tokens set scope = 'offline_access' where token_hash = $1", _hash(token))
    for message in (_SELECT, _LIST, _INITIALIZE):
        less = await tenant.post(message, token=token)
        assert (less.status_code, less.headers["www-authenticate"]) == (
            403,
            f'{challenge(tenant)}, error="insufficient_scope", '
            'error_description="This token is not for walkthroughs: get one with the scope walkthroughs."',
        )
        assert less.json()["id"] == 1
    await owner.execute(
        "update access_tokens set scope = 'offline_access walkthroughs' where token_hash = $1", _hash(token)
    )
    assert (await tenant.post(_SELECT, token=token)).status_code == 200


@pytest.mark.promise("gate.token")
async def test_a_challenge_names_the_very_host_that_was_asked(
    database: Database, service: Serving, owner: asyncpg.Connection
) -> None:
    tenant = await make_tenant(database, service, custom_domain="guides.challenge.example.com")
    for host, origin in (
        (tenant.host, f"http://{tenant.host}"),
        (tenant.host.upper(), f"http://{tenant.host}"),
        (f"{tenant.host}:80", f"http://{tenant.host}"),
        (f"{tenant.host}:8123", f"http://{tenant.host}:8123"),
        # Elsewhere than on this machine a proxy ends TLS.
        ("guides.challenge.example.com", "https://guides.challenge.example.com"),
        ("guides.challenge.example.com.", "https://guides.challenge.example.com"),
        ("guides.challenge.example.com:443", "https://guides.challenge.example.com"),
        ("guides.challenge.example.com:8443", "https://guides.challenge.example.com:8443"),
    ):
        told = (await tenant.post(_SELECT, host=host)).headers["www-authenticate"]
        assert told == (
            f'Bearer resource_metadata="{origin}/.well-known/oauth-protected-resource/mcp", scope="walkthroughs"'
        )
        document = await _ask(tenant, "GET", "/.well-known/oauth-protected-resource/mcp", host=host)
        assert (document.json["resource"], document.json["authorization_servers"]) == (f"{origin}/mcp", [origin])


@pytest.mark.promise("gate.token")
async def test_a_token_that_has_expired_is_as_good_as_unknown(tenant: Tenant, owner: asyncpg.Connection) -> None:
    await tenant.publish("one")
    token, other = await tenant.token(), await tenant.token()
    await owner.execute("update access_tokens set expires_at = $2 where token_hash = $1", _hash(token), 2**50)
    assert (await tenant.post(_LIST, token=token)).status_code == 200
    await owner.execute("update access_tokens set expires_at = 1 where token_hash = $1", _hash(token))
    unknown = await tenant.post(_SELECT, token="cairn_unknown")
    for message in (_SELECT, _LIST, _INITIALIZE):
        expired = await tenant.post(message, token=token)
        assert (expired.status_code, expired.content) == (401, unknown.content)
        assert expired.headers["www-authenticate"] == unknown.headers["www-authenticate"]
    assert (await tenant.post(_SELECT, token=other)).status_code == 200


@pytest.mark.promise("gate.token")
async def test_a_token_in_the_address_is_refused_even_beside_a_good_one(
    tenant: Tenant, owner: asyncpg.Connection
) -> None:
    await tenant.publish("one")
    token = await tenant.token()
    for query in (f"access_token={token}", f"x=1&access_token={token}", "access_token="):
        for header in ((), (f"authorization: Bearer {token}",)):
            for message in (_SELECT, _LIST):
                reply = await _at(tenant, f"/mcp?{query}", message, *header)
                assert reply.status == 401
                assert reply.headers["www-authenticate"] == (
                    f'{challenge(tenant)}, error="invalid_token", error_description="A token is sent in the header '
                    "'Authorization: Bearer ...', and nowhere else.\""
                )
    await assert_no_tool_was_reached(owner)
    assert token not in tenant.service.output


async def _to_nobody(*_: Any) -> None:
    raise AssertionError("nothing is to be served")


class _Unasked:
    """An `Identity` that is not to be asked."""

    async def bearer_of(self, *_: Any) -> Any:
        raise AssertionError("a token was looked up")


@pytest.mark.promise("gate.token")
async def test_a_token_in_the_address_is_not_even_looked_up() -> None:
    world = in_memory()
    await world.server()
    unasked: Any = _Unasked()
    gate = Gate(
        *(_to_nobody, world.servers, unasked, unasked),  # type: ignore[arg-type]
        MemoryRateLimits(dict.fromkeys(Limit)),
        base_domain="localhost",
        default_server=None,
    )
    headers = [
        (b"host", b"guides.localhost"), (b"content-type", b"application/json"), (b"authorization", b"Bearer other"),
    ]  # fmt: skip
    scope: Any = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": "/mcp", "headers": headers,
        "query_string": b"access_token=known", "client": ("127.0.0.1", 1),
    }  # fmt: skip
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": json.dumps(_SELECT).encode(), "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await gate(scope, receive, send)
    assert sent[0]["status"] == 401


# ------------------------------------------------------------------------------------------ personal addresses


@pytest.mark.promise("auth.anonymous")
async def test_every_tool_works_at_a_personal_address_without_a_token(open_tenant: Tenant, era: str) -> None:
    await open_tenant.publish("one", "two")
    url = open_tenant.service.url.removesuffix("/mcp") + f"/v/{await _mint(open_tenant)}/mcp"
    async with learner(url, era=era, host=open_tenant.host) as me:
        assert len((await me.client.list_tools()).tools) == 5
        started = await me.call("select_walkthrough", walkthrough="tour")
        advanced = await me.call("next_walkthrough_step", completed_step=started["step"]["handle"])
        assert (advanced["status"], advanced["step"]["number"]) == ("advanced", 2)
        (row,) = (await me.call("list_walkthroughs"))["walkthroughs"]
        assert row["status"] == "in_progress"
        (standing,) = (await me.call("get_walkthrough_status"))["walkthroughs"]
        assert standing["current_step_number"] == 2
        assert (await me.call("review_walkthrough_step", walkthrough="tour", step_number=1))["step"]["number"] == 1
    # Another visitor, and whoever comes without an address, is somebody else.
    other = await _at(open_tenant, f"/v/{await _mint(open_tenant)}/mcp", _LIST)
    assert [each["status"] for each in other.json["result"]["structuredContent"]["walkthroughs"]] == ["not_started"]
    assert (await open_tenant.post(_SELECT)).status_code == 401


@pytest.mark.promise("auth.anonymous")
async def test_a_personal_address_that_is_none_here_is_not_found_whatever_is_sent(
    open_tenant: Tenant, database: Database, service: Serving, owner: asyncpg.Connection
) -> None:
    await open_tenant.publish("one")
    visitor = await _mint(open_tenant)
    sibling = await open_tenant.world.server(
        open_tenant.organization, f"{open_tenant.server.slug}-b", auth_mode=AuthMode.ANONYMOUS
    )
    here = Tenant(open_tenant.world, sibling, service, open_tenant.organization)
    elsewhere = await make_tenant(database, service, auth_mode=AuthMode.ANONYMOUS)
    unknown = "x" * 22
    for tenant, id in (
        (open_tenant, unknown),
        (open_tenant, visitor[:-1]),
        (open_tenant, visitor.swapcase()),
        (here, visitor),
        (elsewhere, visitor),
    ):
        for message in (_SELECT, _LIST, _INITIALIZE):
            reply = await _at(tenant, f"/v/{id}/mcp", message)
            assert reply.fault == (404, -32003, 1)
            assert reply.json["error"]["message"] == (
                f"Nobody has this personal address: connect to http://{tenant.host}/mcp and sign in."
            )
            assert "www-authenticate" not in reply.headers
    # What no id looks like is no path at all.
    for path in (f"/v/{'x' * 9}/mcp", f"/v/{'x' * 51}/mcp", f"/v/{visitor}x%2f/mcp", "/v//mcp", f"/V/{visitor}/mcp"):
        assert (await _at(open_tenant, path, _SELECT)).status == 404, path
    await assert_no_tool_was_reached(owner)


@pytest.mark.promise("auth.anonymous", "gate.modes")
@pytest.mark.parametrize("mode", [AuthMode.ON_CONNECT, AuthMode.ON_DEMAND])
async def test_where_visitors_are_no_longer_taken_their_addresses_are_not_found(
    database: Database, service: Serving, owner: asyncpg.Connection, mode: AuthMode
) -> None:
    tenant = await make_tenant(database, service, auth_mode=mode)
    await tenant.publish("one")
    # One that was given out before the mode was changed.
    visitor = "v" * 22
    organization, server = tenant.server.key.organization_id, tenant.server.key.server_id
    await owner.execute(
        "insert into mcp_server_users (organization_id, id, first_seen_at, last_seen_at) values ($1, 'usr_v', 1, 1)",
        organization,
    )
    await owner.execute(
        "insert into mcp_server_user_identities values ($1, $2, $3, 'usr_v', 1)",
        organization,
        f"visitor:{server}",
        hashlib.sha256(visitor.encode()).hexdigest(),
    )
    for message in (_SELECT, _LIST):
        assert (await _at(tenant, f"/v/{visitor}/mcp", message)).status == 404
    await assert_no_tool_was_reached(owner)
    assert (await _ask(tenant, "POST", "/")).status == 405


@pytest.mark.promise("auth.anonymous")
async def test_a_spent_address_says_that_it_has_ended_and_one_with_a_token_says_too_much(
    open_tenant: Tenant, owner: asyncpg.Connection
) -> None:
    await open_tenant.publish("one")
    visitor, token = await _mint(open_tenant), await open_tenant.token()
    for header in (f"authorization: Bearer {token}", "authorization: Bearer x", "authorization: Basic YTpi"):
        for message in (_SELECT, _LIST):
            reply = await _at(open_tenant, f"/v/{visitor}/mcp", message, header)
            assert reply.fault == (400, -32003, 1)
            assert reply.json["error"]["message"] == (
                f"A personal address says who calls: send no token here, or send it to http://{open_tenant.host}/mcp."
            )
    await assert_no_tool_was_reached(owner)
    ada = (await open_tenant.caller()).user_id
    await owner.execute(
        "update mcp_server_users set merged_into = $1 where id = (select mcp_server_user_id from"
        " mcp_server_user_identities where subject = $2)",
        ada,
        hashlib.sha256(visitor.encode()).hexdigest(),
    )
    for message in (_SELECT, _LIST, _INITIALIZE):
        reply = await _at(open_tenant, f"/v/{visitor}/mcp", message)
        assert reply.fault == (410, -32003, 1)
        assert reply.json["error"]["message"] == (
            f"The progress made here is in an account by now: connect to http://{open_tenant.host}/mcp and sign in."
        )
    await assert_no_tool_was_reached(owner)


@pytest.mark.promise("auth.anonymous", "tools.nothing-internal")
async def test_a_visitors_id_is_in_no_log_line_no_call_and_no_answer(
    open_tenant: Tenant, owner: asyncpg.Connection
) -> None:
    await open_tenant.publish("one")
    visitor = await _mint(open_tenant)
    bodies: list[Any] = [_SELECT, call("next_walkthrough_step"), b"{", b"[]", call("no_such_tool")]
    replies = [await _at(open_tenant, f"/v/{visitor}/mcp", body) for body in bodies]
    replies.append(await _at(open_tenant, f"/v/{visitor}/mcp", _SELECT, "authorization: Bearer x"))
    replies.append(await _ask(open_tenant, "GET", f"/v/{visitor}/mcp"))
    replies.append(await _ask(open_tenant, "DELETE", f"/v/{visitor}"))
    replies.append(await _ask(open_tenant, "POST", f"/v/{visitor}/keep", "origin: https://evil.example.com"))
    assert [reply.status for reply in replies] == [200, 200, 400, 400, 200, 400, 405, 405, 403]
    for reply in replies:
        assert visitor not in reply.body.decode() + str(reply.headers)
    logged = await owner.fetch("select it::text from tool_calls it")
    assert len(logged) == 3
    stored = hashlib.sha256(visitor.encode()).hexdigest()
    for text in (open_tenant.service.output, *(row for (row,) in logged)):
        assert visitor not in text
        assert stored not in text


# ----------------------------------------------------------------------------------------------------- paths


@pytest.mark.promise("gate.request", "auth.refused")
async def test_paths_that_do_not_exist_are_not_found_by_any_method(tenant: Tenant) -> None:
    for path in (
        "/nothing",
        "/sign-in/",
        "/sign-in/x",
        "//sign-in",
        "/authorize/",
        "/token/x",
        "/oauth/token",
        "/.well-known/",
        "/.well-known/oauth-protected-resource/",
        "/.well-known/oauth-protected-resource/x",
        "/.well-known/oauth-authorization-server/mcp/x",
        "/mcp/.well-known/oauth-protected-resource",
        "/assets/",
        "/assets/../settings.py",
        "/assets/%2e%2e/settings.py",
        "/assets/..%2fsettings.py",
        "/dev",
        "/dev/outbox",
        "/v/",
        "/schema/openapi.json",
    ):
        for method in ("GET", "POST", "DELETE"):
            reply = await _ask(tenant, method, path)
            assert reply.status == 404, (method, path)
            assert_discreet(reply.body.decode())
    for path in ("/assets/nothing.css", "/assets/..", "/dev/outbox.json"):
        assert (await _ask(tenant, "GET", path)).status == 404, path


@pytest.mark.promise("auth.refused")
async def test_each_place_takes_its_own_methods_and_says_which_in_its_own_form(tenant: Tenant) -> None:
    for path, allowed in (
        *((path, "GET") for path in _OAUTH_PATHS if path.startswith("/.well-known")),
        *((path, "POST") for path in ("/token", "/register", "/revoke")),
        ("/authorize", "GET"),
        ("/sign-in/callback", "GET"),
        ("/sign-in", "GET POST"),
        ("/", "GET POST"),
    ):
        for method in {"GET", "POST", "PUT", "DELETE", "PATCH"} - set(allowed.split()):
            reply = await _ask(tenant, method, path)
            assert reply.status == 405, (method, path)
            also = {"OPTIONS", *(["HEAD"] if "GET" in allowed else [])}
            assert set(reply.headers["allow"].split(", ")) == {*allowed.split(), *also}, (method, path)
            is_json = path in _OAUTH_PATHS
            assert reply.headers["content-type"] == ("application/json" if is_json else "text/html; charset=utf-8")
            if is_json:
                assert reply.json["error"] == "invalid_request"


# ------------------------------------------------------------------------------------------- other sites' pages


@pytest.mark.promise("gate.pages", "auth.oauth")
async def test_pages_of_any_origin_may_use_what_clients_use_and_read_its_refusals(tenant: Tenant) -> None:
    for origin in ("https://evil.example.com", "null", "vscode-webview://0a1b", "http://localhost:6274"):
        page = f"origin: {origin}"
        for path in _OAUTH_PATHS:
            asked = await _ask(
                tenant, "OPTIONS", path, page, "access-control-request-method: POST",
                "access-control-request-headers: authorization, content-type, mcp-protocol-version",
            )  # fmt: skip
            assert asked.status == 204, path
            assert asked.headers["access-control-allow-origin"] == origin
            assert asked.headers["access-control-allow-methods"] == "GET, POST"
            may_send = asked.headers["access-control-allow-headers"].split(", ")
            assert {"authorization", "content-type", "mcp-protocol-version"} <= set(may_send)
            method = "GET" if path.startswith("/.well-known") else "POST"
            reply = await _ask(tenant, method, path, page)
            assert reply.status == (200 if method == "GET" else 401 if path == "/revoke" else 400), (path, reply)
            assert reply.headers["access-control-allow-origin"] == origin
            assert "www-authenticate" in reply.headers["access-control-expose-headers"].split(", ")
            assert "access-control-allow-credentials" not in reply.headers
            assert "origin" in reply.headers["vary"].lower()


@pytest.mark.promise("gate.pages", "auth.refused")
async def test_no_page_of_another_site_reads_a_page_or_sends_its_form(open_tenant: Tenant) -> None:
    host, port = open_tenant.host, f"{open_tenant.host}:8123"
    visitor = await _mint(open_tenant)
    foreign = (
        ("sec-fetch-site: cross-site", "origin: https://evil.example.com"),
        ("sec-fetch-site: cross-site", "origin: null"),
        ("sec-fetch-site: same-site", f"origin: http://x.{host}"),
        ("sec-fetch-site: same-site", f"origin: http://{host}"),  # whatever else is said: it is not this origin's
        ("sec-fetch-site: rubbish", f"origin: http://{host}"),
        ("origin: https://evil.example.com",),
        ("origin: http://localhost:6274",),  # a developer's tool may call, and may not press buttons
        (f"origin: http://{host}.evil.example.com",),
        (f"origin: http://{host}:8124",),
        ("origin: ",),
        ("origin: https://evil.example.com", f"origin: http://{host}"),
    )
    for path in ("/", "/sign-in", f"/v/{visitor}/keep"):
        for headers in foreign:
            reply = await _ask(open_tenant, "POST", path, *headers)
            assert reply.status == 403, (path, headers)
            assert reply.headers["content-type"] == "text/html; charset=utf-8"
            assert not [name for name in reply.headers if name.startswith("access-control")]
            assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
            assert "set-cookie" not in reply.headers
    for path in ("/", "/authorize", "/sign-in", f"/v/{visitor}"):
        reply = await _ask(open_tenant, "GET", path, "origin: https://evil.example.com")
        assert reply.status == 403, path
        asking = ("origin: https://evil.example.com", "access-control-request-method: POST")
        reply = await _ask(open_tenant, "OPTIONS", path, *asking)
        assert (reply.status, "access-control-allow-origin" in reply.headers) == (403, False), path
    # Cairn's own pages have no referrer: as Chrome and Firefox, and as older ones write it.
    for headers in (
        ("origin: null", "sec-fetch-site: same-origin"),
        (f"origin: http://{port}", "sec-fetch-site: same-origin"),
        ("sec-fetch-site: same-origin",),
        ("sec-fetch-site: none",),
        ("origin: null",),
        (f"origin: http://{port}",),
        (f"origin: https://{port}",),
        (),
    ):
        assert (await _ask(open_tenant, "POST", "/", *headers, host=port)).status == 303, headers
    # A client's page, or a provider's, sends people here by a link.
    for site in ("cross-site", "same-site"):
        assert (await _ask(open_tenant, "GET", "/", f"sec-fetch-site: {site}")).status == 200


# --------------------------------------------------------------------------------------- hosts and proxies


async def _issuer(tenant: Tenant, *headers: str) -> str:
    reply = await _ask(tenant, "GET", "/.well-known/oauth-authorization-server", *headers)
    assert reply.status == 200, reply
    return str(reply.json["issuer"])


@pytest.mark.promise("gate.unknown-host", "auth.refused")
async def test_a_host_that_is_nobodys_is_misdirected_on_every_path_in_its_form(
    tenant: Tenant, closed_tenant: Tenant
) -> None:
    spoofs = ("x-forwarded-host", "x-host", "x-original-host", "forwarded")
    for path in ("/", "/sign-in", "/authorize", *_OAUTH_PATHS):
        for spoof in spoofs:
            value = f"host={tenant.host}" if spoof == "forwarded" else tenant.host
            reply = await _ask(tenant, "GET", path, f"{spoof}: {value}", host="nobody.localhost")
            assert reply.status == 421, (path, spoof)
            is_json = path in _OAUTH_PATHS
            assert reply.headers["content-type"] == ("application/json" if is_json else "text/html; charset=utf-8")
            assert reply.headers["cache-control"] == "no-store"
            assert_discreet(reply.body.decode())
    for spoof in (
        f"x-forwarded-host: {closed_tenant.host}",
        f"forwarded: host={closed_tenant.host};proto=https",
        "x-forwarded-proto: https",
        "x-forwarded-port: 8443",
        "x-forwarded-for: 192.0.2.1",
    ):
        assert await _issuer(tenant, spoof) == f"http://{tenant.host}", spoof
        reply = await _at(tenant, "/mcp", _SELECT, spoof)
        assert reply.headers["www-authenticate"] == challenge(tenant)


@pytest.mark.promise("gate.token")
async def test_a_trusted_proxy_says_by_which_scheme_it_was_called_and_never_for_which_host(
    database: Database, proxied: Serving, owner: asyncpg.Connection
) -> None:
    tenant = await make_tenant(database, proxied)
    other = await make_tenant(database, proxied)
    secure, plain = f"https://{tenant.host}", f"http://{tenant.host}"
    assert await _issuer(tenant) == plain
    assert await _issuer(tenant, "x-forwarded-proto: https") == secure
    assert await _issuer(tenant, "x-forwarded-proto: http, https") == secure  # the nearest proxy is the last
    assert await _issuer(tenant, "x-forwarded-proto: https", "x-forwarded-proto: http") == plain
    for spoof in (f"x-forwarded-host: {other.host}", f"forwarded: host={other.host};proto=http"):
        assert await _issuer(tenant, "x-forwarded-proto: https", spoof) == secure
    reply = await _at(tenant, "/mcp", _SELECT, "x-forwarded-proto: https")
    assert reply.headers["www-authenticate"] == (
        f'Bearer resource_metadata="{secure}/.well-known/oauth-protected-resource/mcp", scope="walkthroughs"'
    )
    client = (
        await only(
            proxied,
            request(
                f"host: {tenant.host}",
                path="/register",
                body={"redirect_uris": ["http://localhost:1/"], "token_endpoint_auth_method": "none"},
            ),
        )
    ).json
    query = (
        f"response_type=code&client_id={client['client_id']}&redirect_uri=http://localhost:1/"
        f"&code_challenge={'c' * 43}&code_challenge_method=S256"
    )
    for scheme, name, attributes in (
        ("https", "__Host-cairn-browser", "Path=/; HttpOnly; SameSite=Lax; Secure"),
        ("http", "cairn-browser", "Path=/; HttpOnly; SameSite=Lax"),
    ):
        begun = await _ask(tenant, "GET", f"/authorize?{query}", f"x-forwarded-proto: {scheme}")
        assert begun.status == 303, begun
        cookie, _, rest = begun.headers["set-cookie"].partition("; ")
        assert (cookie.partition("=")[0], rest) == (name, attributes)


# ---------------------------------------------------------------------------------------------------- bodies


@pytest.mark.promise("auth.refused")
async def test_a_form_has_at_most_64_kb_and_60_fields(tenant: Tenant) -> None:
    for path, is_page in (("/token", False), ("/revoke", False), ("/sign-in", True)):
        fits = await _ask(tenant, "POST", path, body=b"x=".ljust(65_536, b"y"))
        assert fits.status in (400, 401, 403), path
        too_long = await _ask(tenant, "POST", path, body=b"x=".ljust(65_537, b"y"))
        assert too_long.status == 413
        assert b"65,536 bytes" in too_long.body
        assert (b"<html" in too_long.body) is is_page
        many = await _ask(tenant, "POST", path, body=b"&".join(b"f%d=1" % number for number in range(61)))
        assert many.status == 400
        assert "cannot be read" in many.body.decode()
    # Not announced: its end is not waited for.
    endless = request(
        f"host: {tenant.host}", "transfer-encoding: chunked", path="/token", forms=_FORM,
        body=b"10001\r\n" + b"x" * 65_537 + b"\r\n",
    )  # fmt: skip
    assert (await first(tenant.service, endless)).status == 413


@pytest.mark.promise("auth.refused")
async def test_a_form_that_does_not_come_to_its_end_is_given_up_after_ten_seconds(tenant: Tenant) -> None:
    """A byte a second, as somebody sends who only wants to hold the connection."""

    async def drip(path: str) -> Reply:
        asking = request(
            f"host: {tenant.host}", "content-length: 1000", path=path, forms=_FORM, body=b"x=", close=False
        )
        async with connected(tenant.service) as connection:
            await connection.send(asking)
            answer = asyncio.create_task(connection.reply())
            for _ in range(20):
                done, _ = await asyncio.wait({answer}, timeout=1)
                if done:
                    break
                await connection.send(b"x")
            return await answer

    replies = await asyncio.gather(*(drip(path) for path in ("/token", "/revoke", "/sign-in")))
    assert [reply.status for reply in replies] == [408] * 3
    assert [b"not there within 10 s" in reply.body for reply in replies] == [True] * 3
    assert replies[0].json["error"] == "invalid_request"


@pytest.mark.promise("auth.refused")
async def test_whoever_hangs_up_in_mid_form_leaves_no_trace(tenant: Tenant) -> None:
    asking = request(f"host: {tenant.host}", "content-length: 1000", path="/token", forms=_FORM, body=b"x=")
    before = len(tenant.service.lines)
    for _ in range(3):
        async with connected(tenant.service) as connection:
            await connection.send(asking)
    assert (await _ask(tenant, "GET", "/")).status == 200
    assert [line for line in tenant.service.lines[before:] if '"event":"request"' not in line] == []


def test_every_auth_mode_is_tried_here() -> None:
    assert set(AuthMode) == {AuthMode.ON_CONNECT, AuthMode.ON_DEMAND, AuthMode.ANONYMOUS}
