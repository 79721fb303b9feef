"""The gate: decides whose host a request is for, and who sends it, before anything else sees it.

    too many at once        429       RFC 6585 section 4: per network, and per server
    more than can be done   503       RFC 9110 section 15.6.4: when the body is there (entrypoints/http/load.py)
    two lengths at once     400       RFC 9112 section 6.1: against request smuggling
    unknown host            421       RFC 9110 section 15.5.20
    another path            404
    foreign Origin          403       MCP transports: against DNS rebinding; and no form of another site

What is for a page or for OAuth goes on with a `Visit` (entrypoints/http/site.py), and a call to an MCP endpoint with an
`Arrival`. For such a call:

    a page that asks first  204       the CORS protocol of the Fetch standard; no token, no body
    not POST to /mcp        405       no stream is offered, and there are no sessions to end
    not JSON, or compressed 415       RFC 9110 section 15.5.16
    no JSON wanted          406       RFC 9110 section 12.5.1: without Accept, everything is wanted
    body over 1 MiB         413
    body not there in 60 s  408
    token needed, not there 401       RFC 6750 section 3, without an error code
    token not valid here    401       RFC 6750 section 3.1, error="invalid_token"; in the query it is not even read
    token for less          403       RFC 6750 section 3.1, error="insufficient_scope"
    unknown visitor         404       410 for one whose progress is in an account by now
    not JSON in UTF-8       400       -32700
    not one JSON-RPC call   400       -32600
    unknown revision        400       -32022, with those that are served
    Mcp headers unclear     400       -32020; that they repeat the body is checked by the SDK
    database away           503, but a tool call goes on and is answered `temporarily_unavailable`

Whether a token is needed is decided from the JSON body, never from a header that repeats it. A body has one meaning, or
is refused (`entrypoints/http/message.py`).

Every answer to a page says whether the page may read it, refusals too: a browser's client has to see the challenge.
Pages of any origin on the reader's own machine may call, as developers' tools are such pages. No credential comes by
itself (there are no cookies, and Access-Control-Allow-Credentials is never sent), so that a page can do no more than
any program with the same token. The pages of sign-in are no page's but this host's own.

`X-Forwarded-For` and `X-Forwarded-Proto` count where a trusted proxy sends them (entrypoints/http/proxies.py);
`X-Forwarded-Host` and `Forwarded` never do: a proxy hands on the Host that it was sent.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network
from typing import Any, cast

from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send
from mcp_types import (
    HEADER_MISMATCH,
    INVALID_REQUEST,
    PROTOCOL_VERSION_META_KEY,
    UNSUPPORTED_PROTOCOL_VERSION,
)
from mcp_types.version import KNOWN_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

from application.identity import Identity
from application.limits import Limit, network_of
from application.ports import RateLimiter, ServerDirectory
from application.visitors import Spent, Visitors
from domain.errors import TemporarilyUnavailable, TooManyRequests
from domain.oauth import WALKTHROUGHS, Site
from domain.tenancy import AuthMode, Caller, Server, UserId
from entrypoints.http import site as sites
from entrypoints.http.headers import Headers, allow, members, to_page
from entrypoints.http.load import Load, Work
from entrypoints.http.message import Refusal, Request, message_of, text_of
from entrypoints.http.places import KIND_NAMES, METHODS, Kind, Place, away, place_of, refusal_body, too_many
from entrypoints.http.proxies import client_address, forwarded_scheme
from entrypoints.http.site import Visit
from entrypoints.logs import note
from entrypoints.mcp.server import ANSWER_SECONDS, MAX_BODY_BYTES, STATE_KEY, Arrival
from entrypoints.mcp.tools import TOOLS

_LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]{1,253}?)\.?(:[0-9]{1,5})?")
_MAX_PORT = 65_535
_MAX_HOST_CHARS = 260  # a name, its dot at the end, a colon and a port
_MAX_REMEMBERED_CHARS = 500  # of a header; those of clients have a hundred, those of browsers two
_LINGER_SECONDS = 2.0
# A mebibyte in this time is 17 kB a second, which the slowest line has; longer is no client of ours.
_BODY_SECONDS = 60.0


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        servers: ServerDirectory,
        identity: Identity,
        visitors: Visitors,
        limits: RateLimiter,
        *,
        base_domain: str,
        default_server: str | None,
        allowed_origins: Set[str] = frozenset(),
        trusted_proxies: Sequence[IPv4Network | IPv6Network] = (),
        load: Load | None = None,
        before_pages: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`before_pages` is awaited before a request that is no call is handled, and has no place meanwhile."""
        self._app = app
        self._servers = servers
        self._identity = identity
        self._visitors = visitors
        self._limits = limits
        self._base_domain = base_domain.lower()
        self._default_server = default_server
        self._allowed_origins = allowed_origins
        self._trusted_proxies = trusted_proxies
        self._load = load or Load()
        self._before_pages = before_pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on with an `Arrival` or a `Visit` in its state, or refuses it."""
        if scope["type"] == "lifespan":  # type: ignore[comparison-overlap]  # servers send the plain string
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # type: ignore[comparison-overlap]  # as above
            # A WebSocket: nothing here speaks it, and what is not asked for its host and its token gets no further.
            await send({"type": "websocket.close", "code": 1000, "reason": None})
            return
        work = Work(self._load, receive, send)
        try:
            await self._handle(cast(HTTPScope, scope), work)
        finally:
            work.end()

    async def _handle(self, scope: HTTPScope, work: Work) -> None:
        receive: Receive = work.receive
        headers = Headers(scope)
        host = _host_of(headers.only(b"host"))
        _take_absolute_form(scope, host)
        place = place_of(scope["path"])
        if place is not None:
            note(kind=KIND_NAMES[place.kind], route=place.route)
        is_welcome = self._welcomes(place, headers)
        may_read = is_welcome and (place is None or place.kind is not Kind.PAGE)
        send = to_page(work.send, headers.only(b"origin") if may_read else None)
        request = Request()
        try:
            site = await self._reach(scope, headers, host, place)
            if place is None:
                raise Refusal(
                    404, "There is nothing here: Cairn answers at /mcp, and the page at / says how to connect."
                )
            if not is_welcome:
                raise Refusal(
                    403, "Pages of this origin may not call this server: ask its operator to allow the origin."
                )
            if scope["method"] == "OPTIONS" and headers.ask_for_a_page() and place.kind in METHODS:
                await allow(send, headers, METHODS[place.kind])
                return
            if place.kind is Kind.MCP:
                arrival, receive = await self._admit(site, place, scope, headers, receive, request)
            else:
                if self._before_pages is not None:
                    await self._before_pages()
                if scope["method"] != "POST" or not headers.announce_a_body():
                    await work.begin()  # no handler waits for a body
        except Refusal as refusal:
            is_unread = not work.is_read and headers.announce_a_body()
            kind = place.kind if place else Kind.PAGE if headers.take_pages() else Kind.MCP
            await _refuse(receive, send, kind, refusal, request, is_unread=is_unread)
        except _Gone:
            return
        else:
            if place.kind is not Kind.MCP:
                assert site is not None  # noqa: S101  # or it would have been refused
                found: Any = {sites.STATE_KEY: Visit(site, self._address(scope, headers))}
                # RFC 9110 section 9.3.2: as GET; the body is left out by whoever writes the answer.
                method = "GET" if scope["method"] == "HEAD" else scope["method"]
                state = {**scope.get("state", {}), **found}
                await self._app(cast(Scope, {**scope, "method": method, "state": state}), receive, send)
                return
            scope["state"] = {**scope.get("state", {}), STATE_KEY: arrival}
            scope["path"], scope["raw_path"] = "/mcp", b"/mcp"
            await self._app(scope, receive, send)

    def _welcomes(self, place: Place | None, headers: Headers) -> bool:
        if place is None or place.kind is Kind.MCP:
            return headers.come_from(self._allowed_origins)
        if place.kind is Kind.PAGE:
            return headers.come_from_here()
        # A client in a browser, of whatever site, registers and gets its token as any other program does.
        return headers.count(b"origin") <= 1

    async def _reach(self, scope: HTTPScope, headers: Headers, host: _Host | None, place: Place | None) -> Site | None:
        """The site that a request is for; None when the database cannot be asked, and an MCP tool is to say so."""
        address = self._address(scope, headers)
        await self._count(Limit.CALLS_PER_NETWORK, network_of(address))
        if headers.count(b"transfer-encoding") and (headers.count(b"content-length") or scope["http_version"] == "1.0"):
            raise Refusal(
                400,
                "A request says its length once: by Content-Length or, in HTTP/1.1, by Transfer-Encoding.",
                code=INVALID_REQUEST,
            )
        if host is None:
            raise Refusal(421, "A request names one host, in its Host header.")
        try:
            server = await self._server_at(host)
        except TemporarilyUnavailable as error:
            if place is None or place.kind is not Kind.MCP:
                raise away() from error
            return None
        if server is None:
            raise Refusal(421, "No Cairn server answers at this host name.")
        note(server=server.slug)
        await self._count(Limit.CALLS_PER_SERVER, server.key.organization_id, server.key.server_id)
        return Site(server, self._origin(scope, headers, host))

    async def _count(self, limit: Limit, *who: str) -> None:
        try:
            await self._limits.hit(limit, *who)
        except TooManyRequests as error:
            raise too_many(error) from error

    def _address(self, scope: HTTPScope, headers: Headers) -> str:
        """The network address of whoever sends this."""
        peer = scope["client"][0] if scope["client"] else ""
        return client_address(peer, headers.all(b"x-forwarded-for"), self._trusted_proxies)

    def _origin(self, scope: HTTPScope, headers: Headers, host: _Host) -> str:
        """Where the browser is. What is not the reader's own machine is reached by https, whoever ends that for us."""
        name, port = host.name, host.port
        peer = scope["client"][0] if scope["client"] else ""
        scheme = forwarded_scheme(peer, headers.all(b"x-forwarded-proto"), self._trusted_proxies)
        if scheme is None:
            scheme = "http" if name in _LOOPBACK_HOSTS or name.endswith(".localhost") else "https"
        default = ":443" if scheme == "https" else ":80"
        return f"{scheme}://{name}{'' if port == default else port}"

    async def _admit(
        self,
        site: Site | None,
        place: Place,
        scope: HTTPScope,
        headers: Headers,
        receive: Receive,
        request: Request,
    ) -> tuple[Arrival, Receive]:
        if scope["method"] != "POST":
            raise Refusal(405, "Only POST is served here.", (b"allow", b"POST"))
        _check_forms(headers)

        body = await _read(headers, receive)
        # From here on it is our time, not that of a client that sends slowly.
        answer_by = asyncio.get_running_loop().time() + ANSWER_SECONDS
        message: dict[str, Any] | None = None
        flaw: Refusal | None = None
        try:
            text = text_of(body)
            message = message_of(text, request)
        except Refusal as refusal:
            flaw = refusal
        caller: Caller | None = None
        is_away = site is None
        if site is not None:
            try:
                if place.visitor is None:
                    caller = await self._caller(site, scope, headers, message)
                else:
                    caller = await self._visitor(site, place.visitor, headers)
            except TemporarilyUnavailable:
                is_away = True
        if message is None:
            assert flaw is not None  # noqa: S101  # there is one or the other
            raise flaw
        _check_revision(headers, message)
        # The assistant can only read results: so a tool call is answered by the tool, anything else by 503.
        if is_away and message["method"] != "tools/call":
            raise away()
        server = site.server if site else None
        arrival = Arrival(server, caller, headers.only(b"user-agent"), answer_by, message, len(text))
        return arrival, _replay(text.encode(), receive)

    async def _caller(self, site: Site, scope: HTTPScope, headers: Headers, message: dict[str, Any] | None) -> Caller:
        """Who sends a message to `/mcp`, by their token."""
        if b"access_token=" in scope["query_string"]:
            # It would stand in the logs of whatever lies between.
            raise _unauthorized(site, "A token is sent in the header 'Authorization: Bearer …', and nowhere else.")
        server = site.server
        token = _bearer_token(site, headers)
        if token is None:
            if _needs_token(server, message):
                raise _unauthorized(site, None)
            return Caller(server.key, None)
        bearer = await self._identity.bearer_of(server.key, token)
        if bearer is None:
            raise _unauthorized(site, "This token is not valid on this server: get a new one.")
        if WALKTHROUGHS not in bearer.scope:
            raise _insufficient(site)
        return Caller(server.key, bearer.user_id)

    async def _visitor(self, site: Site, visitor: str, headers: Headers) -> Caller:
        """Who sends a message to a personal address: whoever it was given to."""
        server = site.server
        if headers.count(b"authorization"):
            raise Refusal(400, f"A personal address says who calls: send no token here, or send it to {site.resource}.")
        found: UserId | Spent | None = None
        if server.auth_mode is AuthMode.ANONYMOUS:
            found = await self._visitors.visitor(server.key, visitor)
        if found is None:
            raise Refusal(404, f"Nobody has this personal address: connect to {site.resource} and sign in.")
        if isinstance(found, Spent):
            raise Refusal(
                410, f"The progress made here is in an account by now: connect to {site.resource} and sign in."
            )
        return Caller(server.key, found)

    async def _server_at(self, host: _Host) -> Server | None:
        name = host.name
        slug: str | None = None
        custom_domain: str | None = None
        if name in _LOOPBACK_HOSTS:
            slug = self._default_server
        elif name.endswith(f".{self._base_domain}"):
            slug = name.removesuffix(f".{self._base_domain}")
        else:
            custom_domain = name
        if slug is None and custom_domain is None:
            return None
        return await self._servers.server_at(slug=slug, custom_domain=custom_domain)


class _Gone(Exception):
    """The client went away before its request was whole: there is nobody to answer."""


@dataclass(frozen=True, slots=True)
class _Host:
    """The value of a Host header, in lower case; `port` is empty, or has its colon."""

    text: str
    name: str
    port: str


def _host_of(header: str | None) -> _Host | None:
    # What is longer is no host, and is not remembered: a caller may send tens of kilobytes, and many such.
    return _parsed_host(header) if header and len(header) <= _MAX_HOST_CHARS else None


@lru_cache(1_024)  # of those who call again and again
def _parsed_host(header: str) -> _Host | None:
    text = header.lower()
    match = _HOST.fullmatch(text)
    if match is None or not 0 < int((match[2] or ":1")[1:]) <= _MAX_PORT:
        return None
    return _Host(text, match[1], match[2] or "")


def _take_absolute_form(scope: HTTPScope, host: _Host | None) -> None:
    """A request to a proxy names the host in its first line too, and is to be taken (RFC 9112 section 3.2.2)."""
    if scope["path"].startswith("/"):
        return
    absolute = re.fullmatch(r"(?i:https?)://([^/]*)(/.*)?", scope["path"])
    if absolute and host and absolute[1].lower() == host.text:
        scope["path"] = absolute[2] or "/"
        scope["raw_path"] = scope["path"].encode()


def _check_forms(headers: Headers) -> None:
    """What is sent is JSON as it is, and JSON is taken for an answer."""
    if headers.count(b"content-encoding") and headers.listed(b"content-encoding") not in ([], ["identity"]):
        raise Refusal(415, "Send the body as it is, without a Content-Encoding.", (b"accept-encoding", b"identity"))
    content_type = headers.only(b"content-type") or ""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "Send the body with 'Content-Type: application/json'.")
    accept = ",".join(headers.all(b"accept"))
    # Whoever sends more than any client does is not remembered.
    if not (_takes_json_again(accept) if len(accept) <= _MAX_REMEMBERED_CHARS else _takes_json(accept)):
        raise Refusal(406, "Answers are JSON: send 'Accept: application/json, text/event-stream'.")


def _takes_json(accept: str) -> bool:
    """RFC 9110 section 12.5.1."""
    is_taken: dict[str, bool] = {}
    for accepted in members(accept):
        form, *parameters = (part.strip() for part in accepted.split(";"))
        is_taken[form] = not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    # The closest says it, wherever it stands.
    closest = next((form for form in ("application/json", "application/*", "*/*") if form in is_taken), None)
    return not is_taken or (closest is not None and is_taken[closest])


_takes_json_again = lru_cache(256)(_takes_json)  # clients send the same in each request


async def _read(headers: Headers, receive: Receive) -> bytes:
    """The whole body.

    Raises:
        Refusal: 413 as soon as it is known to be too long, 408 when it does not come to its end.
    """
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            return await _read_to_end(headers, receive)
    except TimeoutError as error:
        problem = f"The body was not there within {_BODY_SECONDS:.0f} s: send it again, at once."
        raise Refusal(408, problem) from error


async def _read_to_end(headers: Headers, receive: Receive) -> bytes:
    announced = headers.only(b"content-length")
    if announced is not None and announced.isdigit() and int(announced[:20]) > MAX_BODY_BYTES:
        raise _too_long()
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise _Gone
        parts.append(message["body"])
        size += len(message["body"])
        if size > MAX_BODY_BYTES:
            raise _too_long()
        if not message["more_body"]:
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, and then whatever still comes."""
    pending: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Any:
        return pending.pop() if pending else await receive()

    return replayed


def _check_revision(headers: Headers, message: dict[str, Any]) -> None:
    """MCP 2026-07-28, Streamable HTTP, "Protocol Version Header" and "Server Validation".

    A header that disagrees with a body of the newest era is the SDK's to refuse. One of the handshake era wins over the
    body: there are connectors that send `_meta` of 2026-07-28 with it. Without a header it is 2025-03-26.
    """
    count = headers.count(b"mcp-protocol-version")
    if not count:
        return
    version = headers.only(b"mcp-protocol-version")
    if version is None:
        raise _unclear("A request has one MCP-Protocol-Version header.")
    if version in MODERN_PROTOCOL_VERSIONS and not all(value.isascii() for value in headers.starting(b"mcp-")):
        raise _unclear("An Mcp header with letters beyond ASCII is sent in its base64 form.")
    meta = (message.get("params") or {}).get("_meta")
    stated = meta.get(PROTOCOL_VERSION_META_KEY) if isinstance(meta, dict) else None
    if version not in KNOWN_PROTOCOL_VERSIONS and stated in (None, version):
        raise Refusal(
            400,
            "Unsupported protocol version",
            code=UNSUPPORTED_PROTOCOL_VERSION,
            # As server/discover lists them: those of the handshake are found out by a handshake.
            data={"supported": list(MODERN_PROTOCOL_VERSIONS), "requested": version},
        )


def _needs_token(server: Server, message: dict[str, Any] | None) -> bool:
    if server.auth_mode is AuthMode.ON_CONNECT:
        return True
    if message is None:
        return False
    # A step is its reader's own, whichever way it is read.
    return message["method"] == "resources/read" or (
        message["method"] == "tools/call" and not _is_open(message.get("params"))
    )


def _is_open(params: Any) -> bool:
    name = params.get("name") if isinstance(params, dict) else None
    return isinstance(name, str) and name in TOOLS and TOOLS[name].is_open


def _bearer_token(site: Site, headers: Headers) -> str | None:
    """RFC 6750 section 2.1; None where there is no Bearer credential at all.

    Raises:
        Refusal: when there are several, or the one is empty.
    """
    if headers.count(b"authorization") > 1:
        raise _unauthorized(site, "A request carries one Authorization header.")
    scheme, _, token = (headers.only(b"authorization") or "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    if not token.strip():
        raise _unauthorized(site, "The Authorization header holds no token.")
    return token.strip()


def _unauthorized(site: Site, flaw: str | None) -> Refusal:
    """RFC 6750 section 3 and MCP 2026-07-28, "Authorization": how a client finds out where people sign in.

    `flaw` is what is wrong with the token that was sent, in ASCII; None where none was.
    """
    error = "" if flaw is None else f', error="invalid_token", error_description="{_quoted(flaw)}"'
    problem = flaw or "A token of this server is needed: send it in the header 'Authorization: Bearer …'."
    return Refusal(401, problem, (b"www-authenticate", (_challenge(site) + error).encode()))


def _insufficient(site: Site) -> Refusal:
    problem = f"This token is not for walkthroughs: get one with the scope {WALKTHROUGHS}."
    challenge = f'{_challenge(site)}, error="insufficient_scope", error_description="{problem}"'
    return Refusal(403, problem, (b"www-authenticate", challenge.encode()))


def _challenge(site: Site) -> str:
    return f'Bearer resource_metadata="{site.resource_metadata}", scope="{WALKTHROUGHS}"'


def _quoted(text: str) -> str:
    """As RFC 6750 section 3 lets an error be described: printable ASCII without quotes and backslashes."""
    return text.replace("…", "...").replace('"', "'")


def _too_long() -> Refusal:
    return Refusal(413, f"A request body has at most {MAX_BODY_BYTES:,} bytes.")


def _unclear(problem: str) -> Refusal:
    return Refusal(400, problem, code=HEADER_MISMATCH)


async def _refuse(
    receive: Receive, send: Send, kind: Kind, refusal: Refusal, request: Request, *, is_unread: bool
) -> None:
    body, described = refusal_body(kind, refusal, request.id)
    headers = [
        *described,
        (b"content-length", str(len(body)).encode()),
        *refusal.headers,
        *([(b"connection", b"close")] if is_unread else []),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": is_unread})
    if is_unread:
        # A connection that is closed on bytes still under way is reset, and the answer lost (RFC 9112 section 9.6);
        # one that is kept would take for a request what a client sends late.
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})
