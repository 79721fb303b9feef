"""What a process says about itself: one JSON object a line, on standard error.

A line names the request that it is about, and holds no token, code, address, content nor visitor: of an exception it
says where it came from, and not the text, which may hold any of them; of what a library says, only what stands in the
library's own source.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextvars import Context, ContextVar
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any

import msgspec
import structlog
from structlog.typing import EventDict

# Its messages name processes and settings, and nothing of a request. Others tell more: where traces cannot be sent,
# OpenTelemetry tells the URL that the operator named, which may have a key in it.
_DISCREET_LIBRARY = "uvicorn"
_MAX_FRAMES = 40  # of each exception, the innermost
_MAX_EXCEPTIONS = 8  # of those that led to one another

_request: ContextVar[dict[str, Any] | None] = ContextVar("request", default=None)

_log = structlog.get_logger(__name__)


def begin_request(request_id: str) -> dict[str, Any]:
    """From now on, what is logged in this task and those it begins is about this request.

    Returns the facts about the request, which `note` adds to.
    """
    facts: dict[str, Any] = {"request_id": request_id}
    _request.set(facts)
    return facts


def note(**facts: Any) -> None:
    """Adds to what is known of the request under way, for the line that ends it. Outside of one it does nothing."""
    known = _request.get()
    if known is not None:
        known.update(facts)


def write_request(facts: Mapping[str, Any]) -> None:
    """The line that ends a request, in the form of all others. There is one for each request, and to have it made by
    structlog would take as long as a statement of the database does."""
    now = datetime.now(UTC).replace(tzinfo=None).isoformat()
    sys.stderr.write(_json({**facts, "event": "request", "level": "info", "timestamp": f"{now}Z"}) + "\n")


def configure_logs() -> None:
    """Once a process, before it serves. What libraries log comes in the same form, from warnings upwards."""
    shared: list[Any] = [
        _name_request,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        _tell_exception,
    ]
    written = structlog.processors.JSONRenderer(serializer=_json)
    structlog.configure(
        processors=[*shared, written],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_quote_library, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, written],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def log_what_nobody_awaits() -> None:
    """Has the running loop log exceptions that end in nobody's hands as all others are: its own way shows values."""

    def told(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # It is found out at any time, in the middle of somebody else's request.
        told = partial(_log.error, "an exception ended in nobody's hands", exc_info=context.get("exception"))
        Context().run(told)

    asyncio.get_running_loop().set_exception_handler(told)


def trace_of(error: BaseException) -> str:
    """Where an exception came from, and those that led to it: their types and their frames, never their texts."""
    return "\n".join(_lines(error))


def _lines(error: BaseException) -> Iterator[str]:
    led_here: BaseException | None = error
    for _ in range(_MAX_EXCEPTIONS):
        if led_here is None:
            return
        yield title_of(led_here)
        yield from _frames(led_here.__traceback__)[-_MAX_FRAMES:]
        if isinstance(led_here, BaseExceptionGroup):
            for each in led_here.exceptions[:_MAX_EXCEPTIONS]:
                yield from (f"  | {line}" for line in _lines(each))
        led_here = led_here.__cause__ or (None if led_here.__suppress_context__ else led_here.__context__)
        if led_here is not None:
            yield "which came of"


def title_of(error: BaseException) -> str:
    """Its type, and what a database or an operating system gives it of names that are not values."""
    kind = type(error)
    known = [getattr(error, name, None) for name in ("sqlstate", "constraint_name", "errno")]
    said = ", ".join(str(value) for value in known if isinstance(value, str | int))
    return f"{kind.__module__}.{kind.__qualname__}" + (f" ({said})" if said else "")


def _frames(trace: TracebackType | None) -> list[str]:
    frames = []
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"  {code.co_filename}:{trace.tb_lineno} in {code.co_qualname}")
        trace = trace.tb_next
    return frames


def _name_request(logger: Any, method: str, event: EventDict) -> EventDict:
    request = _request.get()
    if request is not None:
        event["request_id"] = request["request_id"]
    return event


def _tell_exception(logger: Any, method: str, event: EventDict) -> EventDict:
    told = event.pop("exc_info", None)
    if told is True:
        told = sys.exc_info()
    error = told[1] if isinstance(told, tuple) else told
    if isinstance(error, BaseException):
        event["exception"] = trace_of(error)
    return event


def _quote_library(logger: Any, method: str, event: EventDict) -> EventDict:
    record: logging.LogRecord = event["_record"]
    library = record.name.partition(".")[0]
    event["logger"] = record.name
    if library != _DISCREET_LIBRARY or not isinstance(record.msg, str):
        event["event"] = record.msg if isinstance(record.msg, str) else type(record.msg).__qualname__
    return event


def _json(event: Mapping[str, Any], **_: Any) -> str:
    try:
        return msgspec.json.encode(event, enc_hook=repr).decode()
    except UnicodeEncodeError:  # half of a surrogate pair; no line is lost for it
        return json.dumps(event, default=repr)
