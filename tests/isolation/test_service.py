"""Every tool, prompt, resource, page and OAuth endpoint of the service, asked by names of another organisation's."""

from __future__ import annotations

import asyncio
import re
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2
import mcp_types as types
import pytest
from litestar.routes import HTTPRoute
from litestar.types import ASGIApp

from adapters.postgres.connections import Database
from application.limits import Limit
from entrypoints.container import Storage
from entrypoints.http.app import application
from entrypoints.http.places import place_of
from entrypoints.mcp.prompts import ARGUMENT, TAKE_ANY
from entrypoints.mcp.resources import STEP
from entrypoints.mcp.tools import TOOLS
from entrypoints.settings import Settings
from tests.contracts.test_authorization import CHALLENGE, REDIRECT, VERIFIER
from tests.isolation.tenants import OF_A_SERVER, Names
from tests.isolation.walk import NotingAccess, Walk
from tests.serving.raw import modern

NO_LIMITS = " ".join(f"{limit.label}=off" for limit in Limit)
_REQUEST_ID = "0" * 16  # answers say it
# What differs from one answer to the next: secrets that are made anew.
_FRESH = re.compile(
    r"(?<=cairn-browser=)[A-Za-z0-9_-]{43}|(?<=cairn_code_)[A-Za-z0-9_-]{43}"
    r"|(?<=cairn_secret_)[A-Za-z0-9_-]{43}"
)
# A walkthrough is its organisation's, and can be taken on those servers that it was put on.
_ON_A_SERVER = OF_A_SERVER | {"key", "title", "walkthrough_id", "handle", "untaken_id"}


@dataclass
class Web:
    """The service, as it is reached at one server's host."""

    app: ASGIApp
    http: httpx2.AsyncClient

    async def ask(self, method: str, path: str, cookie: str | None = None, **given: Any) -> str:
        """One request; its answer as text."""
        headers = {**given.pop("headers", {}), **({"cookie": f"cairn-browser={cookie}"} if cookie else {})}
        headers["x-request-id"] = _REQUEST_ID
        answer = await self.http.request(method, path, headers=headers, **given)
        told = [*sorted(answer.headers.multi_items()), str(answer.status_code), answer.text]
        return _FRESH.sub("<fresh>", "\n".join(map(str, told)))

    async def mcp(self, era: str, method: str, token: str | None, path: str = "/mcp", **params: Any) -> str:
        """One MCP request, in the form of an era."""
        message: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        headers = {"authorization": f"Bearer {token}"} if token else {}
        if era == "modern":
            message, of_era = modern(message)
            headers |= {name.replace("_", "-"): value for name, value in of_era.items()}
        return await self.ask("POST", path, headers=headers, json=message)


@pytest.fixture(scope="module")
async def web(owner_url: str, at: tuple[object, Walk]) -> AsyncIterator[Web]:
    _, walk = at
    access = NotingAccess(owner_url, True, walk.statements.connection_class)

    class Noting(Storage):
        def database(self) -> Database:
            return Database(access)

    app = application(Noting(owner_url, access, None, None), Settings(limits=NO_LIMITS), show_mail=lambda message: None)
    heard, told = asyncio.Queue[Any](), asyncio.Queue[Any]()
    running = asyncio.create_task(app({"type": "lifespan", "state": {}}, heard.get, told.put))  # type: ignore[arg-type,typeddict-item]
    await heard.put({"type": "lifespan.startup"})
    assert (await told.get())["type"] == "lifespan.startup.complete"
    base = f"http://{walk.home.slug}.localhost"
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=base) as http:  # type: ignore[arg-type]
        walk.statements.sent.clear()
        await http.get("/assets/none")
        await asyncio.sleep(0)  # the driver tells of a statement after it has answered
        walk.statements.passing = frozenset(walk.statements.sent)  # whose host it is
        yield Web(app, http)
    await heard.put({"type": "lifespan.shutdown"})
    await running


# ------------------------------------------------------------------------------------------------------- MCP

Request = Callable[[Names], Mapping[str, Any]]

TOOL_PROBES: Mapping[str, Sequence[Request]] = {
    "list_walkthroughs": [lambda n: {}],
    "select_walkthrough": [
        lambda n: {"walkthrough": n.walkthrough_id},
        lambda n: {"walkthrough": n.key, "restart": True},
        lambda n: {"walkthrough": n.title, "version": "latest"},
    ],
    "next_walkthrough_step": [
        lambda n: {"completed_step": n.handle},
        lambda n: {"completed_step": n.handle, "walkthrough": n.key},
        lambda n: {"completed_step": n.handle, "outcome": "stuck", "note": "hm"},
        lambda n: {"walkthrough": n.walkthrough_id},
    ],
    "get_walkthrough_status": [lambda n: {"walkthrough": n.key}, lambda n: {}],
    "review_walkthrough_step": [lambda n: {"walkthrough": n.walkthrough_id, "step_number": 1}],
}


def _completes(ref: Mapping[str, Any], argument: str, value: str, **known: str) -> Mapping[str, Any]:
    return {"ref": ref, "argument": {"name": argument, "value": value}, "context": {"arguments": known}}


_PROMPT = {"type": "ref/prompt", "name": TAKE_ANY}
_RESOURCE = {"type": "ref/resource", "uri": STEP.uri_template}
_HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "probe", "version": "1"}}

REQUESTS: Mapping[str, Sequence[Request]] = {
    "ping": [lambda n: {}],
    "initialize": [lambda n: _HELLO],
    "server/discover": [lambda n: {}],
    "tools/list": [lambda n: {}],
    "tools/call": [
        lambda n, name=name, request=request: {"name": name, "arguments": request(n)}  # type: ignore[misc]
        for name, requests in TOOL_PROBES.items()
        for request in requests
    ],
    "prompts/list": [lambda n: {}],
    "prompts/get": [
        lambda n: {"name": f"take-{n.key}"},
        lambda n: {"name": TAKE_ANY, "arguments": {ARGUMENT: n.title}},
    ],
    "resources/list": [lambda n: {}],
    "resources/templates/list": [lambda n: {}],
    "resources/read": [
        lambda n: {"uri": STEP.uri_template.format(walkthrough=n.key, step="current")},
        lambda n: {"uri": STEP.uri_template.format(walkthrough=n.walkthrough_id, step=1)},
    ],
    "completion/complete": [
        lambda n: _completes(_PROMPT, ARGUMENT, n.key),
        lambda n: _completes(_RESOURCE, "walkthrough", n.key),
        lambda n: _completes(_RESOURCE, "step", "", walkthrough=n.key),
    ],
}
# Of one era only.
_ERAS = {"ping": ["legacy"], "initialize": ["legacy"], "server/discover": ["modern"]}
_NOT_SERVED: Mapping[str, Mapping[str, Any]] = {
    "logging/setLevel": {"level": "info"},
    "resources/subscribe": {"uri": "cairn://walkthroughs/a/steps/1"},
    "resources/unsubscribe": {"uri": "cairn://walkthroughs/a/steps/1"},
    "subscriptions/listen": {"notifications": {"toolsListChanged": True}},
}

_EACH_REQUEST = [
    pytest.param(method, era, request, id=f"{method}-{era}-{number}")
    for method, requests in REQUESTS.items()
    for era in _ERAS.get(method, ["legacy", "modern"])
    for number, request in enumerate(requests)
]


def test_every_tool_and_every_request_of_the_protocol_has_a_probe_or_is_not_served() -> None:
    methods = {each.model_fields["method"].default for each in typing.get_args(types.ClientRequest)}
    assert REQUESTS.keys() | _NOT_SERVED.keys() == methods
    assert TOOL_PROBES.keys() == TOOLS.keys()


@pytest.mark.parametrize("method", sorted(_NOT_SERVED))
async def test_no_other_request_is_served(web: Web, walk: Walk, method: str) -> None:
    for era in ("legacy", "modern"):
        answer = await web.mcp(era, method, walk.home.token, **_NOT_SERVED[method])
        assert '"code":-32601' in answer.replace(" ", "")


@pytest.mark.promise("tenant.isolation")
@pytest.mark.parametrize(("method", "era", "request_of"), _EACH_REQUEST)
async def test_a_person_asks_for_what_is_anothers_as_for_what_nobody_has(
    web: Web, walk: Walk, method: str, era: str, request_of: Request
) -> None:
    await walk.probe(
        lambda n: web.mcp(era, method, n.token, **request_of(n)),
        changes=method == "tools/call",  # the refused call is in the log
        of_a_server=_ON_A_SERVER,
    )


@pytest.mark.promise("tenant.isolation")
@pytest.mark.parametrize(
    ("method", "request_of"),
    [
        pytest.param(method, request, id=f"{method}-{number}")
        for method, requests in REQUESTS.items()
        if "modern" in _ERAS.get(method, ["modern"])
        for number, request in enumerate(requests)
    ],
)
async def test_a_visitor_asks_for_what_is_anothers_as_for_what_nobody_has(
    web: Web, walk: Walk, method: str, request_of: Request
) -> None:
    await walk.probe(
        lambda n: web.mcp("modern", method, None, f"/v/{n.visitor}/mcp", **request_of(n)),
        changes=method == "tools/call",
        of_a_server=_ON_A_SERVER,
    )


@pytest.mark.promise("tenant.isolation")
@pytest.mark.parametrize("request_of", [pytest.param(each, id=f"{n}") for n, each in enumerate(REQUESTS["tools/call"])])
async def test_a_tool_takes_as_long_for_what_is_anothers(web: Web, walk: Walk, request_of: Request) -> None:
    await walk.takes_as_long(lambda n: web.mcp("modern", "tools/call", n.token, **request_of(n)))


# ------------------------------------------------------------------------------------------- pages and OAuth


def _authorize(client_id: str) -> str:
    return (
        f"/authorize?response_type=code&client_id={quote(client_id, safe='')}&redirect_uri={quote(REDIRECT, safe='')}"
        f"&code_challenge={CHALLENGE}&code_challenge_method=S256"
    )


def _sends(web: Web, n: Names, request: str, **fields: str) -> Awaitable[str]:
    """A form of the sign-in's page."""
    headers = {"origin": str(web.http.base_url).rstrip("/"), "sec-fetch-site": "same-origin"}
    return web.ask("POST", "/sign-in", n.browser, data={"request": request, **fields}, headers=headers)


PAGES: Mapping[str, Sequence[Callable[[Web, Names], Awaitable[str]]]] = {
    "GET /authorize": [lambda web, n: web.ask("GET", _authorize(n.client_id))],
    "POST /token": [
        lambda web, n: web.ask(
            "POST",
            "/token",
            data={
                "grant_type": "authorization_code",
                "code": n.code,
                "client_id": n.client_id,
                "redirect_uri": REDIRECT,
                "code_verifier": VERIFIER,
            },
        ),
        lambda web, n: web.ask(
            "POST",
            "/token",
            data={"grant_type": "refresh_token", "refresh_token": n.refresh_token, "client_id": n.client_id},
        ),
    ],
    "POST /revoke": [
        lambda web, n: web.ask("POST", "/revoke", data={"token": n.access_token, "client_id": n.client_id}),
        lambda web, n: web.ask("POST", "/revoke", data={"token": n.refresh_token, "client_id": n.client_id}),
    ],
    "GET /sign-in": [
        lambda web, n: web.ask("GET", f"/sign-in?request={n.request}", n.browser),
        lambda web, n: web.ask("GET", f"/sign-in?request={n.keeping}", n.browser),
    ],
    "POST /sign-in": [
        lambda web, n: _sends(web, n, n.request, decision="approve"),
        lambda web, n: _sends(web, n, n.request, decision="deny"),
        lambda web, n: _sends(web, n, n.keeping, email="eve@example.com"),
        lambda web, n: _sends(web, n, n.keeping, code="123456"),
    ],
    "GET /sign-in/callback": [
        lambda web, n: web.ask("GET", f"/sign-in/callback?state={n.request}.any&code=any", n.browser),
    ],
    "GET /v/{visitor}": [lambda web, n: web.ask("GET", f"/v/{n.visitor}")],
    "POST /v/{visitor}/keep": [lambda web, n: web.ask("POST", f"/v/{n.visitor}/keep")],
}
TAKE_NO_NAME = {
    "GET /": "it shows what its own host offers",
    "POST /": "it gives out a new personal address of its own host",
    "POST /register": "it makes a new client of its own host",
    "GET /assets/{name}": "the same files for everybody",
    "GET /dev/outbox.json": "on a developer's own machine alone; it holds the codes of all mailboxes",
    "GET /.well-known/oauth-protected-resource": "it describes its own host",
    "GET /.well-known/oauth-protected-resource/mcp": "it describes its own host",
    "GET /.well-known/oauth-authorization-server": "it describes its own host",
    "GET /.well-known/oauth-authorization-server/mcp": "it describes its own host",
    "GET /.well-known/openid-configuration": "it describes its own host",
    "GET /.well-known/openid-configuration/mcp": "it describes its own host",
}
_OWN_ADDRESSES = re.compile(r'(?<=/v/)[A-Za-z0-9_-]{22}|(?<=client_)[A-Za-z0-9]{16}|"client_id_issued_at":[0-9]+')
_EACH_PAGE = [pytest.param(probe, id=f"{name}-{n}") for name, them in PAGES.items() for n, probe in enumerate(them)]


async def test_every_route_has_a_probe_or_takes_no_name(web: Web) -> None:
    routes = (await web.app._app._app.pages.litestar()).routes  # type: ignore[attr-defined]  # in the gate, which is watched
    served = {
        f"{method} {route.path_format}"
        for route in routes
        if isinstance(route, HTTPRoute)
        for method in route.methods - {"OPTIONS"}
    }
    assert PAGES.keys() | TAKE_NO_NAME.keys() == served
    assert [route.path for route in routes if not isinstance(route, HTTPRoute)] == []
    for path in (route.partition(" ")[2] for route in served):
        assert place_of(re.sub("{[a-z]*}", "a", path)), path


@pytest.mark.promise("tenant.isolation")
@pytest.mark.parametrize("probe", _EACH_PAGE)
async def test_a_host_knows_nothing_of_what_another_one_gave_out(
    web: Web, walk: Walk, probe: Callable[[Web, Names], Awaitable[str]]
) -> None:
    await walk.probe(lambda n: probe(web, n), of_a_server=_ON_A_SERVER)


@pytest.mark.promise("tenant.isolation")
@pytest.mark.parametrize("probe", _EACH_PAGE)
async def test_a_page_takes_as_long_for_what_another_host_gave_out(
    web: Web, walk: Walk, probe: Callable[[Web, Names], Awaitable[str]]
) -> None:
    await walk.takes_as_long(lambda n: probe(web, n))


@pytest.mark.promise("tenant.isolation")
@pytest.mark.parametrize("route", sorted(TAKE_NO_NAME))
async def test_what_takes_no_name_says_nothing_of_another_host(web: Web, walk: Walk, route: str) -> None:
    """With the other's cookie, too."""
    method, path = route.replace("{name}", "cairn.css").split(" ")
    form = {"json": {"redirect_uris": [REDIRECT]}} if path == "/register" else {}
    answers = []
    for cookie in (walk.foreign.browser, walk.absent.browser):
        answers.append(_OWN_ADDRESSES.sub("<fresh>", await web.ask(method, path, cookie, **form)))
        await walk.tables.restore()
    assert answers[0] == answers[1]
    if path != "/dev/outbox.json":
        own = {walk.foreign.organization, walk.foreign.key, walk.foreign.title, walk.foreign.client_name}
        assert [name for name in own if name in answers[0]] == []
