"""The page of a server: what it is, how to connect to it, and, for whoever has one, their personal address."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from application.learning import Learning
from application.sign_in import SignIn
from application.visitors import Spent, Visitors
from domain.oauth import Site
from domain.tenancy import AuthMode, Caller
from entrypoints import metrics
from entrypoints.http.connecting import clients
from entrypoints.http.message import Refusal
from entrypoints.http.pages import page, problem_page
from entrypoints.http.site import PAGE_HEADERS, browser_of, new_secret, visit


def server_page(learning: Learning, visitors: Visitors, sign_in: SignIn) -> list[HTTPRouteHandler]:
    """The handlers of `/` and `/v/<visitor>`. A personal address is a secret: no handler tells it to a log."""

    @get("/")
    async def show(request: Request[Any, Any, Any]) -> Response[bytes]:
        site = visit(request).site
        return await _page(learning, site, site.resource)

    @post("/")
    async def mint(request: Request[Any, Any, Any]) -> Response[bytes]:
        found = visit(request)
        if found.site.server.auth_mode is not AuthMode.ANONYMOUS:
            raise Refusal(405, "This server has no personal addresses: connect to it, and sign in.", (b"allow", b"GET"))
        visitor = await visitors.mint(found.site.server.key, found.address)
        return _see(f"/v/{visitor}")

    @get("/v/{visitor:str}")
    async def show_personal(request: Request[Any, Any, Any], visitor: FromPath[str]) -> Response[bytes]:
        site = visit(request).site
        found = await visitors.visitor(site.server.key, visitor)
        if found is None or isinstance(found, Spent):
            return _no_longer(found)
        # Where personal addresses are no longer taken, what was done at one can still be kept.
        takes_visitors = site.server.auth_mode is AuthMode.ANONYMOUS
        path = f"/v/{visitor}"
        return await _page(
            learning, site, f"{site.origin}{path}/mcp" if takes_visitors else site.resource, personal=path
        )

    @post("/v/{visitor:str}/keep")
    async def keep(request: Request[Any, Any, Any], visitor: FromPath[str]) -> Response[bytes]:
        site, address = visit(request).site, visit(request).address
        found = await visitors.visitor(site.server.key, visitor)
        if found is None or isinstance(found, Spent):
            return _no_longer(found)
        id = new_secret()
        browser, headers = browser_of(request)
        await sign_in.begin_keeping(site, found, id, browser, address)
        metrics.sign_ins.labels("begun").inc()
        return _see(f"/sign-in?request={id}", headers)

    return [show, mint, show_personal, keep]


def _no_longer(found: Spent | None) -> Response[bytes]:
    if found is None:
        return problem_page(
            404, "No such address", "This personal address was never given out here: look whether all of it was copied."
        )
    return problem_page(
        410,
        "This address has ended",
        "Its progress was kept in an account. Connect your assistant to the server itself, and sign in to go on.",
    )


async def _page(learning: Learning, site: Site, url: str, personal: str | None = None) -> Response[bytes]:
    server = site.server
    is_open = server.auth_mode is not AuthMode.ON_CONNECT
    is_personal = url != site.resource
    return page(
        "server.html",
        server=server,
        url=url,
        clients=clients(server.slug, url, is_personal=is_personal),
        is_personal=is_personal,
        personal=personal,
        gives_addresses=server.auth_mode is AuthMode.ANONYMOUS and personal is None,
        signs_in_first=not is_open,
        walkthroughs=[each.standing.shown for each in await learning.list(Caller(server.key, None))]
        if is_open
        else None,
    )


def _see(place: str, headers: Mapping[str, str] = MappingProxyType({})) -> Response[bytes]:
    """Sends a browser on from a form (RFC 9110 section 15.4.4)."""
    to = {**PAGE_HEADERS, **headers, "location": place}
    return Response(b"", status_code=303, media_type="text/plain", headers=to)
