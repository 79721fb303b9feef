"""The pages of signing in, and the development outbox.

A form is answered with a redirect to the page that is due then (303, RFC 9110 section 15.4.4), so that loading a page
again repeats nothing. Each page and each form names its sign-in by the secret id; the other secret is a cookie.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import msgspec
from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler

from application.ports import Parameters
from application.sign_in import Page, SignIn
from domain.errors import SignInOver
from domain.sign_in import Stage
from entrypoints.http.message import Refusal
from entrypoints.http.pages import page
from entrypoints.http.site import PAGE_HEADERS, browser_of, form_of, query_of, visit

_TEMPLATES = {
    Stage.ASKED: "consent.html",
    Stage.CHOOSING: "choose.html",
    Stage.AWAY: "choose.html",
    Stage.CODE_SENT: "code.html",
    Stage.IDENTIFIED: "continue.html",
    Stage.KEPT: "kept.html",
    Stage.KEPT_ELSEWHERE: "kept_elsewhere.html",
}


def sign_in_pages(sign_in: SignIn, outbox: Mapping[str, str] | None) -> list[HTTPRouteHandler]:
    """The handlers of `/sign-in` and what belongs to it. `outbox` is None but in development."""

    @get("/sign-in", exception_handlers=_ERRORS)
    async def show(request: Request[Any, Any, Any]) -> Response[bytes]:
        shown = _page(request, _only(query_of(request), "request"))
        view = await sign_in.view(shown)
        return page(_TEMPLATES[view.state.stage], site=shown.site, id=shown.id, view=view, state=view.state)

    @post("/sign-in", status_code=303, exception_handlers=_ERRORS)
    async def take(request: Request[Any, Any, Any]) -> Response[bytes]:
        form = await form_of(request)
        shown = _page(request, _only(form, "request"))
        address = visit(request).address
        decision, action, email, code = (_only(form, name) for name in ("decision", "action", "email", "code"))
        location: str | None = None
        if decision == "deny":
            location = await sign_in.deny(shown)
        elif decision == "approve":
            await sign_in.approve(shown)
        elif action == "provider":
            location = await sign_in.leave(shown, address)
        elif action == "again":
            await sign_in.send_code(shown, None, address)
        elif action == "other":
            await sign_in.choose_again(shown)
        elif code is not None:
            location = await sign_in.try_code(shown, code, address)
        elif email is not None:
            await sign_in.send_code(shown, email, address)
        else:
            location = await sign_in.go_on(shown)
        return _see(shown, location)

    @get("/sign-in/callback", status_code=303, exception_handlers=_ERRORS)
    async def come_back(request: Request[Any, Any, Any]) -> Response[bytes]:
        browser, _ = browser_of(request)
        return _see(*await sign_in.come_back(visit(request).site, browser, query_of(request)))

    @get("/dev/outbox.json")
    async def dev_outbox(request: Request[Any, Any, Any]) -> Response[bytes]:
        found = visit(request)
        if outbox is None or not (_is_this_machine(found.site.origin) and _is_loopback(found.address)):
            raise Refusal(404, "There is nothing here.")
        return Response(msgspec.json.encode(dict(outbox)), media_type="application/json", headers=PAGE_HEADERS)

    return [show, take, come_back, dev_outbox]


def _over(_: Request[Any, Any, Any], __: Exception) -> Response[bytes]:
    # One page for all of them: whether there is such a sign-in is its own browser's business.
    return page("over.html", 403)


_ERRORS: dict[int | type[Exception], Any] = {SignInOver: _over}


def _page(request: Request[Any, Any, Any], id: str | None) -> Page:
    if id is None:
        raise SignInOver
    browser, _ = browser_of(request)
    return Page(visit(request).site, id, browser)


def _see(shown: Page, location: str | None) -> Response[bytes]:
    to = location if location is not None else f"/sign-in?request={shown.id}"
    return Response(b"", status_code=303, media_type="text/plain", headers={**PAGE_HEADERS, "location": to})


def _only(parameters: Parameters, name: str) -> str | None:
    """The parameter by this name; None where there is none.

    Raises:
        Refusal: when it comes twice.
    """
    values = [value for each, value in parameters if each == name]
    if len(values) > 1:
        raise Refusal(400, f"The field {name} is there twice: go back, and send the form again.")
    return values[0] if values else None


def _is_this_machine(origin: str) -> bool:
    name = urlsplit(origin).hostname or ""
    return name == "localhost" or name.endswith(".localhost") or _is_loopback(name)


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
