"""The outermost layer: each request gets an id, and is counted, logged and traced; and whoever watches over this
process is told how it is.

    /livez     200       this process answers
    /readyz    200       it can answer a tool call; else 503, with what fails: the database, its schema, the pool of
                         connections, pages that could not be loaded, or that the process is about to stop

These two are asked by address, so that any Host will do, and anybody may: they say nothing else. They are in no log.

An `X-Request-Id` is taken over where it looks like what proxies make, so that it cannot be somebody's token or address;
otherwise a request gets one here. Either way the answer says it, and all lines about the request do.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import msgspec
import structlog
from litestar.types import ASGIApp, Receive, Scope, Send

from entrypoints import metrics
from entrypoints.logs import begin_request, write_request
from entrypoints.traces import Traces

# UUIDs, and the hexadecimal numbers of others.
_REQUEST_ID = re.compile(rb"[0-9A-Fa-f-]{16,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"})
_ANSWER_SECONDS = 1.0  # those who ask wait no longer, by default
# Anybody may ask: a second look so soon would tell nothing new, and cost a statement.
_FRESH_SECONDS = 0.5
_GONE = 499  # nginx's number for a client that went away: there was no answer

# To find a figure's labels takes as long as to count; there are few.
_requests = cache(metrics.http_requests.labels)
_request_seconds = cache(metrics.http_request_seconds.labels)

_log = structlog.get_logger(__name__)


class Readiness:
    """Whether this process should be sent requests."""

    def __init__(self, look: Callable[[], Awaitable[str | None]], is_stopping: Callable[[], bool]) -> None:
        """`look` returns what fails, in one word, or None; `is_stopping` whether the process is about to end."""
        self._look = look
        self._is_stopping = is_stopping
        self._looking: asyncio.Task[str | None] | None = None
        self._looked_at = 0.0
        self._said: str | None = None

    async def trouble(self) -> str | None:
        """What fails, within a second; None: nothing does. However many ask, one look is under way at a time."""
        if self._is_stopping():
            return "stopping"
        now = time.monotonic()
        if self._looking is None or (self._looking.done() and now - self._looked_at >= _FRESH_SECONDS):
            self._looked_at = now
            self._looking = asyncio.create_task(self._look_once())
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                found = await asyncio.shield(self._looking)
        except TimeoutError:
            found = "database"
        self._say(found)
        return "stopping" if self._is_stopping() else found

    async def _look_once(self) -> str | None:
        try:
            return await self._look()
        except Exception as error:  # noqa: BLE001  # whatever it is, no call would be answered either
            _log.error("this process cannot be looked after", exc_info=error)
            return "database"

    def _say(self, found: str | None) -> None:
        if found != self._said:
            self._said = found
            if found is None:
                _log.info("ready again")
            else:
                _log.warning("not ready", failing=found)


class Watch:
    """ASGI middleware around everything. `in_flight` is the number of requests that have begun and not ended."""

    def __init__(self, app: ASGIApp, readiness: Readiness, traces: Traces | None, *, logs_requests: bool) -> None:
        self._app = app
        self._readiness = readiness
        self._traces = traces
        self._logs_requests = logs_requests
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers what is asked about this process, and passes everything else on."""
        if scope["type"] != "http":  # type: ignore[comparison-overlap]  # servers send the plain string
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        http: Any = scope
        request_id = _request_id(http)
        facts = begin_request(request_id)
        facts["method"] = http["method"] if http["method"] in _METHODS else "other"
        status = _GONE

        async def sent(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                named = (b"x-request-id", request_id.encode())
                message = {**message, "headers": [*message.get("headers", ()), named]}
            await send(message)

        self.in_flight += 1
        try:
            if http["path"] in ("/livez", "/readyz"):
                facts["kind"] = "health"
                await self._tell(http, sent)
                return
            with nullcontext() if self._traces is None else self._traces.request(http, facts, lambda: status):
                await self._app(scope, receive, sent)
        except Exception:
            status = 500  # which the server answers, and logs what happened
            raise
        finally:
            self.in_flight -= 1
            self._end(facts, status, time.perf_counter() - began)

    async def _tell(self, scope: Any, send: Send) -> None:
        failing = await self._readiness.trouble() if scope["path"] == "/readyz" else None
        status, said = (200, {"status": "ok"}) if failing is None else (503, {"status": "failing", "failing": failing})
        if scope["method"] not in ("GET", "HEAD"):
            status, said = 405, {"status": "this is read by GET"}
        body = msgspec.json.encode(said)
        shown = b"" if scope["method"] == "HEAD" else body
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            *([(b"allow", b"GET, HEAD")] if status == 405 else []),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": shown, "more_body": False})

    def _end(self, facts: dict[str, Any], status: int, seconds: float) -> None:
        kind = facts.pop("kind", "none")
        _requests(kind, status).inc()
        _request_seconds(kind).observe(seconds)
        if self._logs_requests and kind != "health":
            write_request({**facts, "status": status, "milliseconds": round(seconds * 1_000, 2)})


def _request_id(scope: Any) -> str:
    given = [value for name, value in scope["headers"] if name == b"x-request-id"]
    if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]):
        taken: str = given[0].decode()
        return taken
    return secrets.token_hex(8)
