"""The headers of a request, and what browsers ask and are told by them."""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Any

from litestar.types import HTTPScope, Send

_LOOPBACK_ORIGIN = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?")
_PREFLIGHT_SECONDS = 7_200  # browsers keep it no longer
_PARAMETER_HEADER = re.compile(r"mcp-param-[a-z0-9!#$%&'*+.^_`|~-]{1,100}")
_REQUEST_HEADERS = (
    "authorization, content-type, accept, mcp-protocol-version, mcp-method, mcp-name, mcp-session-id, last-event-id, "
    "traceparent, tracestate, baggage"
)
_EXPOSED_HEADERS = b"www-authenticate, retry-after, mcp-session-id, mcp-protocol-version"


class Headers:
    """The headers of a request, by lower-case name."""

    def __init__(self, scope: HTTPScope) -> None:
        # Each request is asked for a dozen of them.
        self._values: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            self._values.setdefault(name, []).append(value)

    def only(self, name: bytes) -> str | None:
        """The value of a header that may come once; None when it is missing, or comes twice and says nothing."""
        values = self._values.get(name, ())
        return values[0].decode("latin-1").strip() if len(values) == 1 else None

    def count(self, name: bytes) -> int:
        """How often it comes."""
        return len(self._values.get(name, ()))

    def all(self, name: bytes) -> list[str]:
        """Every value of it, in order."""
        return [value.decode("latin-1") for value in self._values.get(name, ())]

    def listed(self, name: bytes) -> list[str]:
        """The members of a header that is a list, in lower case; several headers are one (RFC 9110 section 5.3)."""
        return members(",".join(self.all(name)))

    def starting(self, prefix: bytes) -> list[bytes]:
        """The values of all whose names begin so."""
        return [value for name, values in self._values.items() if name.startswith(prefix) for value in values]

    def take_pages(self) -> bool:
        """Whether a browser shows the answer to somebody (RFC 9110 section 12.5.1)."""
        return any(each.partition(";")[0].strip() == "text/html" for each in self.listed(b"accept"))

    def ask_for_a_page(self) -> bool:
        """A browser's question whether a page may send something ("CORS-preflight request")."""
        return self.count(b"origin") > 0 and self.count(b"access-control-request-method") > 0

    def announce_a_body(self) -> bool:
        """Whether a body follows."""
        return self.count(b"transfer-encoding") > 0 or self.only(b"content-length") not in (None, "0")

    def come_from(self, allowed: Set[str]) -> bool:
        """A browser says whose page calls: this host's own, one of the reader's own machine, or an allowed one."""
        if not self.count(b"origin"):
            return True
        if self.count(b"origin") > 1:
            return False
        origin = (self.only(b"origin") or "").lower()
        host = (self.only(b"host") or "").lower()
        return (
            origin in (f"http://{host}", f"https://{host}")
            or _LOOPBACK_ORIGIN.fullmatch(origin) is not None
            or not allowed.isdisjoint({origin, "*"})
        )

    def come_from_here(self) -> bool:
        """Whether a page of this very host sends this, or no page at all.

        Cairn's pages send no Referer, and of such a page a browser calls the origin of its forms `null` (Fetch,
        "append a request Origin header"); it says by Sec-Fetch-Site whose they are.
        """
        site = self.only(b"sec-fetch-site")
        if self.count(b"sec-fetch-site") > 1:
            return False
        if site is not None:
            # A client's own page, or a provider's, sends people here by a link, and never with a form.
            return site in ("same-origin", "none") or not self.count(b"origin")
        host = (self.only(b"host") or "").lower()
        return not self.count(b"origin") or (self.only(b"origin") or "").lower() in (
            "null",
            f"http://{host}",
            f"https://{host}",
        )


def members(value: str) -> list[str]:
    """The members of a list, in lower case."""
    return [member for each in value.lower().split(",") if (member := each.strip())]


def to_page(send: Send, origin: str | None) -> Send:
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


async def allow(send: Send, headers: Headers, methods: bytes) -> None:
    """The answer to a page's browser that asks what the page may send."""
    asked_for = headers.listed(b"access-control-request-headers")
    parameters = [name for name in asked_for if _PARAMETER_HEADER.fullmatch(name)]
    fields = [
        (b"access-control-allow-methods", methods),
        (b"access-control-allow-headers", ", ".join([_REQUEST_HEADERS, *parameters]).encode()),
        (b"access-control-max-age", str(_PREFLIGHT_SECONDS).encode()),
        (b"vary", b"Access-Control-Request-Headers"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": fields})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
