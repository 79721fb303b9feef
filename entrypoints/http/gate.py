"""The gate: decides whose host a request is for, and who sends it, before anything else sees it.

    two lengths at once     400       RFC 9112 section 6.1: against request smuggling
    unknown host            421       RFC 9110 section 15.5.20
    foreign Origin          403       MCP transports: against DNS rebinding
    another path            404
    a page that asks first  204       the CORS protocol of the Fetch standard; no token, no body
    not POST to /mcp        405       no stream is offered, and there are no sessions to end
    not JSON, or compressed 415       RFC 9110 section 15.5.16
    no JSON wanted          406       RFC 9110 section 12.5.1: without Accept, everything is wanted
    body over 1 MiB         413
    body not there in 60 s  408
    token needed, not there 401       RFC 6750 section 3, without an error code
    token not valid here    401       RFC 6750 section 3.1, error="invalid_token"
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
any program with the same token. `X-Forwarded-*` and `Forwarded` are not looked at: a proxy hands on the Host that it
was sent.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Set
from contextlib import suppress
from typing import Any, TypeVar, cast

import msgspec
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send
from mcp_types import (
    HEADER_MISMATCH,
    INVALID_REQUEST,
    PROTOCOL_VERSION_META_KEY,
    UNSUPPORTED_PROTOCOL_VERSION,
)
from mcp_types.version import KNOWN_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

from application.identity import Identity
from application.ports import ServerDirectory
from domain.errors import TemporarilyUnavailable
from domain.tenancy import AuthMode, Caller, Server, UserId
from entrypoints.http.message import Refusal, Request, message_of, text_of
from entrypoints.mcp.server import ANSWER_SECONDS, MAX_BODY_BYTES, STATE_KEY, Arrival
from entrypoints.mcp.tools import TOOLS

_T = TypeVar("_T")

_LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]{1,253}?)\.?(:[0-9]{1,5})?")
# The router overlooks slashes, so `//mcp` is the same place; any other path is refused here, unseen by the router.
_MCP_PATH = re.compile(r"/*mcp/*")
# For each of the two look-ups; of the time in which a request is answered, the tool has the rest.
_LOOKUP_SECONDS = 1.0
_LINGER_SECONDS = 2.0
# A mebibyte in this time is 17 kB a second, which the slowest line has; longer is no client of ours.
_BODY_SECONDS = 60.0

_LOOPBACK_ORIGIN = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?")
_PREFLIGHT_SECONDS = 7_200  # browsers keep it no longer
_PARAMETER_HEADER = re.compile(r"mcp-param-[a-z0-9!#$%&'*+.^_`|~-]{1,100}")
_REQUEST_HEADERS = (
    "authorization, content-type, accept, mcp-protocol-version, mcp-method, mcp-name, mcp-session-id, last-event-id, "
    "traceparent, tracestate, baggage"
)
_EXPOSED_HEADERS = b"www-authenticate, retry-after, mcp-session-id, mcp-protocol-version"


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        servers: ServerDirectory,
        identity: Identity,
        *,
        base_domain: str,
        default_server: str | None,
        allowed_origins: Set[str] = frozenset(),
    ) -> None:
        self._app = app
        self._servers = servers
        self._identity = identity
        self._base_domain = base_domain.lower()
        self._default_server = default_server
        self._allowed_origins = allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on with an `Arrival` in its state, or refuses it."""
        if scope["type"] != "http":  # type: ignore[comparison-overlap]  # servers send the plain string
            await self._app(scope, receive, send)
            return
        http = cast(HTTPScope, scope)
        headers = _Headers(http)
        is_welcome = self._welcomes(headers)
        send = _to_page(send, headers.only(b"origin") if is_welcome else None)
        request = Request()
        try:
            server = await self._reach(http, headers, is_welcome=is_welcome)
            if http["method"] == "OPTIONS" and headers.ask_for_a_page():
                await _allow(send, headers)
                return
            arrival, receive = await self._admit(server, http, headers, receive, request)
        except Refusal as refusal:
            await _refuse(receive, send, refusal, request, is_unread=not request.is_read and headers.announce_a_body())
        except _Gone:
            return
        else:
            scope["state"] = {**scope.get("state", {}), STATE_KEY: arrival}
            # What the client takes and sends has been found out; the SDK spells these two more narrowly than HTTP does.
            scope["headers"] = [
                *((name, value) for name, value in scope["headers"] if name not in (b"accept", b"content-type")),
                (b"accept", b"application/json, text/event-stream"),
                (b"content-type", b"application/json"),
            ]
            await self._app(scope, receive, send)

    async def _reach(self, scope: HTTPScope, headers: _Headers, *, is_welcome: bool) -> Server | None:
        """The server that a request is for; None when the database cannot be asked."""
        if headers.count(b"transfer-encoding") and (headers.count(b"content-length") or scope["http_version"] == "1.0"):
            raise Refusal(
                400,
                "A request says its length once: by Content-Length or, in HTTP/1.1, by Transfer-Encoding.",
                code=INVALID_REQUEST,
            )
        host = self._host(headers)
        # A request to a proxy names the host here too, and is to be taken (RFC 9112 section 3.2.2).
        absolute = re.fullmatch(r"(?i:https?)://([^/]*)(/.*)?", scope["path"])
        if absolute and absolute[1].lower() == host:
            scope["path"] = absolute[2] or "/"
            scope["raw_path"] = scope["path"].encode()
        server: Server | None = None
        with suppress(TemporarilyUnavailable):
            server = await self._server_at(host, asyncio.get_running_loop().time() + _LOOKUP_SECONDS)
            if server is None:
                raise Refusal(421, "No Cairn server answers at this host name.")
        if not is_welcome:
            raise Refusal(403, "Pages of this origin may not call this server: ask its operator to allow the origin.")
        if not _MCP_PATH.fullmatch(scope["path"]):
            raise Refusal(404, "Cairn answers at /mcp.")
        return server

    def _welcomes(self, headers: _Headers) -> bool:
        """A browser says whose page calls: this host's own, one of the reader's own machine, or an allowed one."""
        if not headers.count(b"origin"):
            return True
        if headers.count(b"origin") > 1:
            return False
        origin = (headers.only(b"origin") or "").lower()
        host = (headers.only(b"host") or "").lower()
        return (
            origin in (f"http://{host}", f"https://{host}")
            or _LOOPBACK_ORIGIN.fullmatch(origin) is not None
            or not self._allowed_origins.isdisjoint({origin, "*"})
        )

    async def _admit(
        self, server: Server | None, scope: HTTPScope, headers: _Headers, receive: Receive, request: Request
    ) -> tuple[Arrival, Receive]:
        loop = asyncio.get_running_loop()
        is_away = server is None
        if scope["method"] != "POST":
            raise Refusal(405, "Only POST is served here.", (b"allow", b"POST"))
        _check_forms(headers)

        body = await _read(headers, receive)
        request.is_read = True
        # From here on it is our time, not that of a client that sends slowly.
        look_up_by, answer_by = loop.time() + _LOOKUP_SECONDS, loop.time() + ANSWER_SECONDS
        message: dict[str, Any] | None = None
        flaw: Refusal | None = None
        try:
            text = text_of(body)
            message = message_of(text, request)
        except Refusal as refusal:
            flaw = refusal
        caller: Caller | None = None
        if server is not None:
            token = headers.bearer_token()
            user_id: UserId | None = None
            if token is not None:
                try:
                    user_id = await _by(look_up_by, self._identity.user_of(server.key, token))
                except TemporarilyUnavailable:
                    is_away = True
                else:
                    if user_id is None:
                        raise _unauthorized("This token is not valid on this server: get a new one.", is_invalid=True)
            elif _needs_token(server, message):
                raise _unauthorized(
                    "A token of this server is needed: send it in the header 'Authorization: Bearer …'.",
                    is_invalid=False,
                )
            caller = Caller(server.key, user_id)
        if message is None:
            assert flaw is not None  # noqa: S101  # there is one or the other
            raise flaw
        _check_revision(headers, message)
        if is_away:
            # The assistant can only read results: so a tool call is answered by the tool, anything else by 503.
            if message["method"] != "tools/call":
                raise Refusal(503, "The database cannot be reached; try again.", (b"retry-after", b"1"))
            caller = None
        return Arrival(server, caller, headers.only(b"user-agent"), answer_by), _replay(text.encode(), receive)

    def _host(self, headers: _Headers) -> str:
        host = headers.only(b"host")
        if host is None or not _HOST.fullmatch(host.lower()):
            raise Refusal(421, "A request names one host, in its Host header.")
        return host.lower()

    async def _server_at(self, host: str, look_up_by: float) -> Server | None:
        match = _HOST.fullmatch(host)
        assert match is not None  # noqa: S101  # checked as it came in
        name = match[1]
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
        return await _by(look_up_by, self._servers.server_at(slug=slug, custom_domain=custom_domain))


class _Gone(Exception):
    """The client went away before its request was whole: there is nobody to answer."""


class _Headers:
    """The headers of a request, by lower-case name."""

    def __init__(self, scope: HTTPScope) -> None:
        self._all = scope["headers"]

    def only(self, name: bytes) -> str | None:
        """The value of a header that may come once; None when it is missing, or comes twice and says nothing."""
        values = [value for key, value in self._all if key == name]
        return values[0].decode("latin-1").strip() if len(values) == 1 else None

    def count(self, name: bytes) -> int:
        return sum(key == name for key, _ in self._all)

    def ask_for_a_page(self) -> bool:
        """A browser's question whether a page may send something ("CORS-preflight request")."""
        return self.count(b"origin") > 0 and self.count(b"access-control-request-method") > 0

    def announce_a_body(self) -> bool:
        return self.count(b"transfer-encoding") > 0 or self.only(b"content-length") not in (None, "0")

    def listed(self, name: bytes) -> list[str]:
        """The members of a header that is a list, in lower case; several headers are one (RFC 9110 section 5.3)."""
        values = ",".join(value.decode("latin-1") for key, value in self._all if key == name)
        return [member for each in values.lower().split(",") if (member := each.strip())]

    def starting(self, prefix: bytes) -> list[bytes]:
        return [value for key, value in self._all if key.startswith(prefix)]

    def bearer_token(self) -> str | None:
        """RFC 6750 section 2.1; None where there is no Bearer credential at all.

        Raises:
            Refusal: when there are several, or the one is empty.
        """
        if self.count(b"authorization") > 1:
            raise _unauthorized("A request carries one Authorization header.", is_invalid=True)
        scheme, _, token = (self.only(b"authorization") or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        if not token.strip():
            raise _unauthorized("The Authorization header holds no token.", is_invalid=True)
        return token.strip()


async def _by(time: float, lookup: Awaitable[_T]) -> _T:
    """A look-up, or `TemporarilyUnavailable` when it takes too long."""
    try:
        async with asyncio.timeout_at(time):
            return await lookup
    except TimeoutError as error:
        raise TemporarilyUnavailable from error


def _to_page(send: Send, origin: str | None) -> Send:
    """A `send` whose answers the page of this origin may read; None: no page, or none that may."""
    fields = [(b"vary", b"Origin")]
    if origin is not None:
        fields.append((b"access-control-allow-origin", origin.encode("latin-1")))
        fields.append((b"access-control-expose-headers", _EXPOSED_HEADERS))

    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *fields]}
        await send(message)

    return sent


async def _allow(send: Send, headers: _Headers) -> None:
    """The answer to a page's browser that asks what the page may send."""
    asked_for = headers.listed(b"access-control-request-headers")
    parameters = [name for name in asked_for if _PARAMETER_HEADER.fullmatch(name)]
    fields = [
        (b"access-control-allow-methods", b"POST"),
        (b"access-control-allow-headers", ", ".join([_REQUEST_HEADERS, *parameters]).encode()),
        (b"access-control-max-age", str(_PREFLIGHT_SECONDS).encode()),
        (b"vary", b"Access-Control-Request-Headers"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": fields})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _check_forms(headers: _Headers) -> None:
    """What is sent is JSON as it is, and JSON is taken for an answer."""
    if headers.listed(b"content-encoding") not in ([], ["identity"]):
        raise Refusal(415, "Send the body as it is, without a Content-Encoding.", (b"accept-encoding", b"identity"))
    content_type = headers.only(b"content-type") or ""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "Send the body with 'Content-Type: application/json'.")
    is_taken: dict[str, bool] = {}
    for accepted in headers.listed(b"accept"):
        form, *parameters = (part.strip() for part in accepted.split(";"))
        is_taken[form] = not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    # The closest says it, wherever it stands.
    closest = next((form for form in ("application/json", "application/*", "*/*") if form in is_taken), None)
    if is_taken and (closest is None or not is_taken[closest]):
        raise Refusal(406, "Answers are JSON: send 'Accept: application/json, text/event-stream'.")


async def _read(headers: _Headers, receive: Receive) -> bytes:
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


async def _read_to_end(headers: _Headers, receive: Receive) -> bytes:
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


def _check_revision(headers: _Headers, message: dict[str, Any]) -> None:
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


def _unauthorized(problem: str, *, is_invalid: bool) -> Refusal:
    challenge = 'Bearer realm="cairn"'
    if is_invalid:
        challenge += f', error="invalid_token", error_description="{problem}"'
    return Refusal(401, problem, (b"www-authenticate", challenge.encode()))


def _too_long() -> Refusal:
    return Refusal(413, f"A request body has at most {MAX_BODY_BYTES:,} bytes.")


def _unclear(problem: str) -> Refusal:
    return Refusal(400, problem, code=HEADER_MISMATCH)


async def _refuse(receive: Receive, send: Send, refusal: Refusal, request: Request, *, is_unread: bool) -> None:
    error = {"code": refusal.code, "message": refusal.problem, **({"data": refusal.data} if refusal.data else {})}
    body = msgspec.json.encode({"jsonrpc": "2.0", "id": request.id, "error": error})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
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
