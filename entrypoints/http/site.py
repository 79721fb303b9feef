"""What the gate found out about a request that is for a page or for OAuth, and what such requests have in common."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from litestar import Request
from litestar.exceptions import InternalServerException

from application.ports import Parameters
from domain.oauth import Site
from entrypoints.http.headers import Headers
from entrypoints.http.message import Refusal

STATE_KEY = "visit"
MAX_FORM_BYTES = 65_536
_MAX_FIELDS = 60
# 64 kB in this time is what the slowest line has; longer is no browser and no client of ours.
_BODY_SECONDS = 10.0
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")

PAGE_HEADERS: Mapping[str, str] = {
    # Not `form-action`: Chrome holds a form to it through the redirect that follows, and consent ends at the client.
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; frame-ancestors 'none'",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Visit:
    """A request past the gate: whose site it is for, and the network address that it comes from."""

    site: Site
    address: str


def visit(request: Request[Any, Any, Any]) -> Visit:
    """What the gate found out."""
    found: Visit = request.scope["state"][STATE_KEY]
    return found


def browser_of(request: Request[Any, Any, Any]) -> tuple[str, Mapping[str, str]]:
    """The secret by which this browser is known again, and the headers that give it one where it has none yet.

    `__Host-` keeps other hosts of the domain from setting it (RFC 6265bis section 4.1.3.2). Plain http on the reader's
    own machine can have neither that prefix nor `Secure`.
    """
    is_secure = visit(request).site.origin.startswith("https://")
    name = "__Host-cairn-browser" if is_secure else "cairn-browser"
    known = [value for each, value in _cookies(request) if each == name]
    # Of two, which one is this browser's cannot be known: another host of the domain may have set the other.
    if len(known) == 1 and _SECRET.fullmatch(known[0]):
        return known[0], {}
    fresh = new_secret()
    return fresh, {"set-cookie": f"{name}={fresh}; Path=/; HttpOnly; SameSite=Lax" + ("; Secure" if is_secure else "")}


def _cookies(request: Request[Any, Any, Any]) -> list[tuple[str, str]]:
    """Names and values as they came (RFC 6265 section 4.2.1): nothing is decoded, and no name taken for another.

    Readers that strip more than spaces and tabs take a cookie whose name begins with, say, U+00A0 for `__Host-…`, and
    any host of the domain may set that.
    """
    pairs = [
        pair.strip(" \t").partition("=")
        for header in Headers(request.scope).all(b"cookie")
        for pair in header.split(";")
    ]
    return [(name, value) for name, _, value in pairs]


def new_secret() -> str:
    """256 random bits, as text."""
    return secrets.token_urlsafe(32)


def query_of(request: Request[Any, Any, Any]) -> Parameters:
    """The query's parameters as they came.

    Raises:
        Refusal: 400 for more than anybody has.
    """
    return _pairs(request.scope["query_string"])


async def form_of(request: Request[Any, Any, Any]) -> Parameters:
    """A form's fields as they came.

    Raises:
        Refusal: 415 for anything but a form, 413 for one that is too long, 400 for more fields than anybody has.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise Refusal(415, "Send a form: 'Content-Type: application/x-www-form-urlencoded'.")
    return _pairs(await body_of(request))


async def body_of(request: Request[Any, Any, Any]) -> bytes:
    """The body, at most `MAX_FORM_BYTES` of it.

    Raises:
        Refusal: 413, or 408 when it does not come to its end.
    """
    body = b""
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > MAX_FORM_BYTES:
                    raise Refusal(413, f"This takes at most {MAX_FORM_BYTES:,} bytes.")
    except TimeoutError as error:
        problem = f"The body was not there within {_BODY_SECONDS:.0f} s: send it again, at once."
        # The connection is left to entrypoints/http/connections.py: closed on bytes under way, it would be reset, and
        # the answer lost.
        raise Refusal(408, problem) from error
    except InternalServerException as error:  # the client went away: nobody reads this, and nothing is wrong here
        raise Refusal(400, "The body does not come to its end.") from error
    return body


def _pairs(encoded: bytes) -> Parameters:
    try:
        return parse_qsl(
            encoded.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict", encoding="utf-8"
        )
    except ValueError as error:
        raise Refusal(400, "The parameters cannot be read.") from error
