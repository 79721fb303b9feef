"""OpenTelemetry traces, where an operator names an endpoint for them: of a request, its MCP message, its statements.

The environment variables are OpenTelemetry's own (`OTEL_EXPORTER_OTLP_ENDPOINT` and its like). The caller's
`traceparent` is the parent, and says whether a request is sampled (W3C Trace Context); a `traceparent` in the `_meta`
of an MCP message is closer to the caller's own doing, and wins for what is done about the message.

No span holds what people write or are called: names come from our tables, and of a statement only what it does to which
table. An exception is told by its type.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_LAST_WORDS_SECONDS = 1.0  # for what has not been sent when the process ends; a collector that is away holds up nobody

# What an MCP client may ask of a server; whatever else is asked is refused, and its name is the caller's.
_METHODS = frozenset(
    {
        "initialize",
        "server/discover",
        "ping",
        "tools/list",
        "tools/call",
        "prompts/list",
        "prompts/get",
        "resources/list",
        "resources/read",
        "resources/templates/list",
        "completion/complete",
    }
)
_WRITES = re.compile(r"(?<!\bfor )(?<!\bkey )(?<!\bdo )\b(insert into|update|delete from)\s+([a-z_]+)")
_READS = re.compile(r"\bfrom\s+([a-z_]+)")
_CALLS = re.compile(r"select (?:\* from )?([a-z_]+)\(")


class Traces:
    """The spans of this process, sent in the background. All that is loaded for them is loaded when one is made."""

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        named = {"service.name": os.environ.get("OTEL_SERVICE_NAME", "cairn"), "service.version": version("cairn")}
        # Not the process's global provider: no library is to make spans of its own here.
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("cairn", version("cairn"))
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, scope: Any, facts: dict[str, Any], status: Callable[[], int]) -> Iterator[None]:
        """The span of an HTTP request, and the trace's id among the facts about it."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        parent = self._propagator.extract(carrier)
        with self._tracer.start_as_current_span(
            "request", context=parent, kind=SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ) as span:
            facts["trace_id"] = f"{span.get_span_context().trace_id:032x}"
            try:
                yield
            except Exception as error:
                _tell(span, error)
                raise
            finally:
                route = facts.get("route", "none")
                span.update_name(f"{facts['method']} {route}")
                span.set_attributes({"http.request.method": facts["method"], "http.route": route})
                span.set_attributes({"http.response.status_code": status(), "cairn.request_id": facts["request_id"]})
                if status() >= 500:
                    span.set_status(Status(StatusCode.ERROR))

    async def message(self, context: Any, call_next: Callable[[Any], Awaitable[Any]], tool: str | None) -> Any:
        """The span of an MCP message, for a middleware of the SDK. `tool` is the one called, as our table has it."""
        from opentelemetry.context import get_current
        from opentelemetry.trace import Status, StatusCode

        meta = {name: value for name, value in (context.meta or {}).items() if isinstance(value, str)}
        # Without one, the span under way stays what it is.
        parent = self._propagator.extract(meta, context=get_current())
        method = context.method if context.method in _METHODS else "other"
        with self._tracer.start_as_current_span(
            f"{method} {tool}" if tool else method,
            context=parent,
            attributes={
                "mcp.method.name": method,
                **({"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": tool} if tool else {}),
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                result = await call_next(context)
            except Exception as error:
                _tell(span, error)
                raise
            if isinstance(result, dict) and result.get("isError"):
                span.set_attribute("error.type", "tool_error")
                span.set_status(Status(StatusCode.ERROR))
            return result

    def statement(self, record: Any) -> None:
        """A query logger for asyncpg: the span of a statement that has ended. One outside of a request has none."""
        from opentelemetry.trace import SpanKind, get_current_span

        # Of the request, not of the span: that may have ended just now.
        under_way = get_current_span()
        if not under_way.get_span_context().is_valid:
            return
        # asyncpg tells of a statement one turn of the event loop after its end, and whoever waited for it may be done.
        now = time.time_ns()
        ended = min(now, getattr(under_way, "end_time", None) or now)
        span = self._tracer.start_span(
            _summary(record.query),
            kind=SpanKind.CLIENT,
            attributes={"db.system.name": "postgresql"},
            start_time=ended - int(record.elapsed * 1e9),
        )
        if record.exception is not None:
            _tell(span, record.exception)
        span.end(ended)

    def close(self) -> None:
        """Sends what is left, for a moment."""
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(_LAST_WORDS_SECONDS)


def traces_wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether an operator has named an endpoint."""
    is_off = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not is_off and any(environment.get(name) for name in _ENDPOINTS)


def _tell(span: Span, error: BaseException) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", type(error).__qualname__)
    span.set_status(Status(StatusCode.ERROR))


@lru_cache(maxsize=256)  # there are some fifty
def _summary(query: str) -> str:
    """What a statement does, and to which table: the first that it writes, or else reads. Or the function it calls."""
    text = query.lower()
    if called := _CALLS.match(text):
        return called[1]
    if written := _WRITES.search(text):
        return f"{written[1].split()[0]} {written[2]}"
    if read := _READS.search(text):
        return f"select {read[1]}"
    return text.split(None, 1)[0][:40] if text.split() else "statement"
