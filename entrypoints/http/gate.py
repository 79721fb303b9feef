"""The gate: decides whose host a request is for, and who sends it, before anything else sees it.

    unknown host            421       RFC 9110 section 15.5.20
    foreign Origin          403       MCP transports: against DNS rebinding
    another path            404
    not POST to /mcp        405       no stream is offered, and there are no sessions to end
    body over 1 MiB         413
    not one JSON-RPC call   400
    token needed, not there 401       RFC 6750 section 3, without an error code
    token not valid here    401       RFC 6750 section 3.1, error="invalid_token"
    database away           503, but a tool call goes on and is answered `temporarily_unavailable`

Whether a token is needed is decided from the JSON body, never from a header that repeats it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, TypeVar, cast

import msgspec
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from application.identity import Identity
from application.ports import ServerDirectory
from domain.errors import TemporarilyUnavailable
from domain.tenancy import AuthMode, Caller, Server, UserId
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
_INVALID_REQUEST = -32600  # JSON-RPC 2.0 section 5.1
_REFUSED = -32003  # MCP leaves -32000 to -32019 to servers; the HTTP status says which refusal it is


class Refusal(Exception):
    """An HTTP answer that ends a request at the gate, with a JSON-RPC error for its body."""

    def __init__(self, status: int, problem: str, *headers: tuple[bytes, bytes], code: int = _REFUSED) -> None:
        super().__init__(problem)
        self.code = code
        self.status = status
        self.problem = problem
        self.headers = headers


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
    ) -> None:
        self._app = app
        self._servers = servers
        self._identity = identity
        self._base_domain = base_domain.lower()
        self._default_server = default_server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on with an `Arrival` in its state, or refuses it."""
        if scope["type"] != "http":  # type: ignore[comparison-overlap]  # servers send the plain string
            await self._app(scope, receive, send)
            return
        request = _Request()
        try:
            arrival, receive = await self._admit(cast(HTTPScope, scope), receive, request)
        except Refusal as refusal:
            await _refuse(receive, send, refusal, request.id)
        except _Gone:
            return
        else:
            scope["state"] = {**scope.get("state", {}), STATE_KEY: arrival}
            await self._app(scope, receive, send)

    async def _admit(self, scope: HTTPScope, receive: Receive, request: _Request) -> tuple[Arrival, Receive]:
        loop = asyncio.get_running_loop()
        headers = _Headers(scope)
        host = self._host(headers)
        is_away = False
        server: Server | None = None
        try:
            server = await self._server_at(host, loop.time() + _LOOKUP_SECONDS)
        except TemporarilyUnavailable:
            is_away = True
        if server is None and not is_away:
            raise Refusal(421, "No Cairn server answers at this host name.")
        _check_origin(headers, host)
        if not _MCP_PATH.fullmatch(scope["path"]):
            raise Refusal(404, "Cairn answers at /mcp.")
        if scope["method"] != "POST":
            raise Refusal(405, "Only POST is served here.", (b"allow", b"POST"))

        body = await _read(headers, receive)
        # From here on it is our time, not that of a client that sends slowly.
        look_up_by, answer_by = loop.time() + _LOOKUP_SECONDS, loop.time() + ANSWER_SECONDS
        message = _message(body)
        request.id = _request_id(message)
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
        if is_away:
            # The assistant can only read results: so a tool call is answered by the tool, anything else by 503.
            if message is None or message.get("method") != "tools/call":
                raise Refusal(503, "The database cannot be reached; try again.", (b"retry-after", b"1"))
            caller = None
        if message is None:
            raise Refusal(400, "A request body is one JSON-RPC request or notification.", code=_INVALID_REQUEST)
        return Arrival(server, caller, headers.only(b"user-agent"), answer_by), _replay(body, receive)

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


class _Request:
    """What a refusal has to repeat of a request: its id, once that has been read."""

    id: str | int | None = None


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


def _check_origin(headers: _Headers, host: str) -> None:
    """A browser says where a request comes from; a page of this very host may call, no other may."""
    if not headers.count(b"origin"):
        return
    origin = (headers.only(b"origin") or "").lower()
    if origin not in (f"http://{host}", f"https://{host}"):
        raise Refusal(403, "Pages of other origins may not call this server.")


async def _read(headers: _Headers, receive: Receive) -> bytes:
    """The whole body.

    Raises:
        Refusal: 413 as soon as it is known to be too long.
    """
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


def _message(body: bytes) -> dict[str, Any] | None:
    """The JSON-RPC message that a body is; None for anything else, batches included, which the gate refuses.

    The protocol layer has two readers, one for each era. Neither takes what this one refuses, and what it refuses
    never gets to them.
    """
    try:
        decoded = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return decoded if isinstance(decoded, dict) and isinstance(decoded.get("method"), str) else None


def _request_id(message: dict[str, Any] | None) -> str | int | None:
    id = message.get("id") if message is not None else None
    return id if isinstance(id, str | int) and not isinstance(id, bool) else None


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
    return Refusal(413, f"A request body has at most {MAX_BODY_BYTES:,} bytes.", (b"connection", b"close"))


async def _refuse(receive: Receive, send: Send, refusal: Refusal, id: str | int | None) -> None:
    said = {"jsonrpc": "2.0", "id": id, "error": {"code": refusal.code, "message": refusal.problem}}
    body = msgspec.json.encode(said)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *refusal.headers,
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": refusal.status == 413})
    if refusal.status == 413:
        # A connection that is closed on bytes still under way is reset, and the answer lost (RFC 9112 section 9.6).
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})
