"""Which paths are served, and in which form whoever asks there understands a refusal."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

import msgspec

from domain.errors import TooManyRequests
from entrypoints.http.message import Refusal
from entrypoints.http.pages import problem_html
from entrypoints.http.site import PAGE_HEADERS


class Kind(Enum):
    """Who asks at a path, and in which form they understand a refusal."""

    MCP = "a JSON-RPC error"
    OAUTH = "a JSON object as in RFC 6749 section 5.2"
    PAGE = "a page"


KIND_NAMES = {kind: kind.name.lower() for kind in Kind}

# The router overlooks slashes, so `//mcp` is the same place; any other path is refused here, unseen by the router.
_PATHS = {
    Kind.MCP: re.compile(r"/*mcp/*|/v/(?P<visitor>[A-Za-z0-9_-]{10,50})/mcp/?"),
    Kind.OAUTH: re.compile(
        r"/\.well-known/(oauth-protected-resource|oauth-authorization-server|openid-configuration)(/mcp)?"
        r"|/(token|register|revoke)"
    ),
    Kind.PAGE: re.compile(
        # At a personal address, whatever was copied of it: its page says what is wrong.
        r"/|/authorize|/sign-in(/callback)?|/v/[^/]{1,50}(/keep)?|/assets/[a-z0-9.-]{1,50}|/dev/outbox\.json"
    ),
}
_PERSONAL = re.compile(r"^/v/[^/]+")
METHODS = {Kind.MCP: b"POST", Kind.OAUTH: b"GET, POST"}


@dataclass(frozen=True, slots=True)
class Place:
    """A path that is served."""

    kind: Kind
    visitor: str | None
    """Of a personal address: who it says is calling."""
    route: str
    """The path without what differs from one person, or one file, to the next."""


_MCP = Place(Kind.MCP, None, "/mcp")


def place_of(path: str) -> Place | None:
    if path == _MCP.route:  # as nearly always
        return _MCP
    for kind, pattern in _PATHS.items():
        if match := pattern.fullmatch(path):
            return Place(kind, match.groupdict().get("visitor"), _route(kind, path))
    return None


def _route(kind: Kind, path: str) -> str:
    if path.startswith("/v/"):
        return _PERSONAL.sub("/v/{visitor}", path.removesuffix("/") if kind is Kind.MCP else path)
    if kind is Kind.MCP:
        return "/mcp"
    return "/assets/{name}" if path.startswith("/assets/") else path


def too_many(error: TooManyRequests) -> Refusal:
    """RFC 6585 section 4."""
    seconds = str(error.retry_after_seconds)
    return Refusal(429, f"That is too much at once: try again in {seconds} s.", (b"retry-after", seconds.encode()))


def away() -> Refusal:
    return Refusal(503, "The service is not available for a moment: try again.", (b"retry-after", b"1"))


def refusal_body(kind: Kind, refusal: Refusal, id: str | int | None = None) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The body of a refusal and the headers that go with it, in the form that is understood there."""
    plain = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    match kind:
        case Kind.MCP:
            error = {
                "code": refusal.code,
                "message": refusal.problem,
                **({"data": refusal.data} if refusal.data else {}),
            }
            return msgspec.json.encode({"jsonrpc": "2.0", "id": id, "error": error}), plain
        case Kind.OAUTH:
            code = "invalid_request" if refusal.status < 429 else "temporarily_unavailable"
            return msgspec.json.encode({"error": code, "error_description": refusal.problem}), plain
        case Kind.PAGE:
            headers = [(name.encode(), value.encode()) for name, value in PAGE_HEADERS.items()]
            return problem_html(refusal.problem), [(b"content-type", b"text/html; charset=utf-8"), *headers]
