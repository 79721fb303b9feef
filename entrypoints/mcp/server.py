"""The MCP server: tools, prompts and resources on the SDK's low-level server, for every tenant and both protocol eras.

2025-11-25 and before begin with a handshake; 2026-07-28 carries everything in each request. Neither needs a
session here: state travels as handles in tool arguments, so any process can answer any call.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from importlib.metadata import version as installed_version
from typing import Any, NamedTuple, TypeVar

import mcp_types as types
import msgspec
import structlog
from litestar.types import Receive, Scope, Send
from mcp.server import CacheHint, Server, ServerRequestContext
from mcp.server.context import CallNext, HandlerResult
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import (
    ERROR_CODE_HTTP_STATUS,
    InboundModernRoute,
    classify_inbound_request,
    find_duplicated_routing_header,
)
from mcp_types import CLIENT_INFO_META_KEY
from mcp_types.methods import validate_client_request
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from application.learning import Learning
from application.limits import Limit
from application.ports import CallLog, Clock, Ids, RateLimiter, ToolCall
from domain.errors import RateLimited, TemporarilyUnavailable, ToolError, TooManyRequests
from domain.tenancy import Caller, CallId
from domain.tenancy import Server as Tenant
from entrypoints import metrics
from entrypoints.logs import note, title_of
from entrypoints.mcp import prompts, rendering, resources
from entrypoints.mcp.icons import ICONS
from entrypoints.mcp.paging import page
from entrypoints.mcp.schema import input_schema, output_schema
from entrypoints.mcp.tools import TOOLS, Answer, Gist, Tool, storable
from entrypoints.traces import Traces

MAX_BODY_BYTES = 2**20
# A call is answered within 5 s whatever its database does: 1 s to find the host, and from there on this.
ANSWER_SECONDS = 3.5
# Of one person, at once, in one process: assistants that send whole batches send five, and a person may have two that
# do. Of what a process works on (entrypoints/http/load.py), a quarter is left to others.
_CALLS_AT_ONCE = 12
_WARNING_SECONDS = 1.0  # at most one line in this time: an outage is one story, however many calls it meets
_LIST_TTL_MS = 60_000  # how long a client may keep the list of tools: they change with a release only
_PROMPTS_TTL_MS = 5_000  # as long as an author who has just assigned a walkthrough waits without wondering
_UNAVAILABLE = -32003  # MCP leaves -32000 to -32019 to servers
_MAX_LOGGED_CHARS = 4_000  # per argument; longer than any argument that can be right
_MAX_LOGGED_ARGUMENTS = 20
_SERVER_INFO_META = "io.modelcontextprotocol/serverInfo"

_STAMP = {"name": "cairn", "version": installed_version("cairn")}
_encode = msgspec.json.Encoder().encode

_MAX_COMPLETIONS = 100  # MCP "Completion": at most so many values
_ICONS = [icon.model_dump(by_alias=True, exclude_none=True) for icon in ICONS]

# To find a figure's labels takes as long as to count; there are few.
_tool_calls = cache(metrics.tool_calls.labels)
_tool_call_seconds = cache(metrics.tool_call_seconds.labels)

# What clients said of themselves in calls that were in order, by revision; a few kinds of clients are all there are.
_in_order: set[tuple[str, str]] = set()
_MAX_IN_ORDER = 256
_MAX_SHORT_CHARS = 4_000  # a call with the longest note there may be, and twice what clients say of themselves
_USUAL_PARAMS = frozenset({"name", "arguments", "_meta"})
# Of these the SDK's readers look at the first alone (MCP 2026-07-28, "_meta"; W3C Trace Context; W3C Baggage).
_META_OF_ONE_CALL = frozenset({"progressToken", "traceparent", "tracestate", "baggage"})

_T = TypeVar("_T")

_log = structlog.get_logger(__name__)


class Arrival(NamedTuple):
    """What the gate found out about a request; travels in the ASGI scope's state under `STATE_KEY`.

    `tenant` and `caller` are None when the database could not be asked: then every tool answers that it is
    temporarily unavailable, in the form that the assistant can read.
    """

    tenant: Tenant | None
    caller: Caller | None
    user_agent: str | None
    answer_by: float
    """The event loop's time by which the request must be answered."""
    message: Mapping[str, Any] | None = None
    """What the body says, where it has been read."""
    length: int = 0
    """How many characters the body has."""


STATE_KEY = "cairn"


class _Call(NamedTuple):
    """A tool call, whichever way it came. `client` is the name and version that it says of itself."""

    id: str | int | None
    tool: str
    arguments: Mapping[str, Any]
    revision: str
    client: tuple[str, str] | None


class _Said(NamedTuple):
    """What a tool says. `structured` is None exactly where it is an error."""

    text: str
    structured: msgspec.Struct | None

    @property
    def is_error(self) -> bool:
        return self.structured is None


class McpEndpoint:
    """Serves `/mcp` for all tenants. Enter `running()` once, for as long as it serves."""

    def __init__(
        self,
        learning: Learning,
        calls: CallLog,
        limits: RateLimiter,
        clock: Clock,
        ids: Ids,
        traces: Traces | None = None,
    ) -> None:
        self._learning = learning
        self._calls = calls
        self._limits = limits
        self._clock = clock
        self._ids = ids
        self._traces = traces
        self._warned_at = -_WARNING_SECONDS
        self._at_once: Counter[tuple[str, str | None]] = Counter()  # by person; nobody stands there with none
        self._tools = [_listed(tool) for tool in TOOLS.values()]
        server: Server[Any] = Server(
            _STAMP["name"],
            version=_STAMP["version"],
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_prompts=self._list_prompts,
            on_get_prompt=self._get_prompt,
            on_list_resources=self._list_resources,
            on_list_resource_templates=_list_resource_templates,
            on_read_resource=self._read_resource,
            on_completion=self._complete,
            # Without it the SDK lists the tools before each call, and with a schema it walks through that, to find
            # arguments that stand in a header as well. None of ours does.
            get_tool_input_schema=lambda name: None,
            cache_hints={
                "tools/list": CacheHint(ttl_ms=_LIST_TTL_MS, scope="public"),
                "resources/templates/list": CacheHint(ttl_ms=_LIST_TTL_MS, scope="public"),
                # What follows is the caller's own: it shows how far they are.
                "prompts/list": CacheHint(ttl_ms=_PROMPTS_TTL_MS, scope="private"),
                "resources/list": CacheHint(ttl_ms=0, scope="private"),
                "resources/read": CacheHint(ttl_ms=0, scope="private"),
                "server/discover": CacheHint(ttl_ms=_LIST_TTL_MS, scope="public"),
            },
        )
        # In place of the SDK's own tracing: that names spans by what callers write, and keeps what exceptions say.
        server.middleware = [*([self._trace] if traces is not None else []), _introduce]
        # No security settings: host and origin are checked by the gate, against what the database knows.
        self._manager = StreamableHTTPSessionManager(
            server, json_response=True, stateless=True, max_request_body_size=MAX_BODY_BYTES
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open for requests. Whatever is to be logged when it ends is logged first."""
        async with self._manager.run():
            yield
            # Calls that gave up waiting have left rows behind, and the database is open for these a little longer.
            with suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self._calls.drain()

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request, past the gate."""
        arrival: Arrival = scope["state"][STATE_KEY]
        call = _plain_call(scope, arrival) if self._traces is None else None
        if call is not None:
            await _send_json(send, *await self._answered_plainly(call, arrival))
            return
        # The gate has found out what the client takes and sends; the SDK spells these two more narrowly than HTTP does.
        scope["headers"] = [
            *((name, value) for name, value in scope["headers"] if name not in (b"accept", b"content-type")),
            (b"accept", b"application/json, text/event-stream"),
            (b"content-type", b"application/json"),
        ]
        await self._manager.handle_request(scope, receive, _in_utf8(send))  # type: ignore[arg-type]  # Litestar's types

    async def _answered_plainly(self, call: _Call, arrival: Arrival) -> tuple[int, bytes]:
        """HTTP status and body of the answer to a call of the newest era."""
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": call.id}
        try:
            said = await self._answer(call, arrival)
        except MCPError as error:
            fault = {"code": error.error.code, "message": error.error.message}
            return ERROR_CODE_HTTP_STATUS.get(error.error.code, 200), _encode({**answer, "error": fault})
        return 200, _encode({**answer, "result": _result(arrival, said)})

    async def _trace(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """SDK middleware: a span around a message."""
        assert self._traces is not None  # noqa: S101  # or it would not stand there
        called = _label((ctx.params or {}).get("name")) if ctx.method == "tools/call" else None
        result: HandlerResult = await self._traces.message(ctx, call_next, called)
        return result

    async def _list_tools(
        self, context: ServerRequestContext[Any, Any], params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        tools, _ = page(self._tools, params.cursor if params else None, lambda tool: tool.name)
        return types.ListToolsResult(tools=tools)

    async def _call_tool(
        self, context: ServerRequestContext[Any, Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        """A tool call by way of the SDK."""
        # What a client says of itself with an older revision has been looked at by nobody.
        is_modern = context.protocol_version in MODERN_PROTOCOL_VERSIONS
        said_of_client: Any = (params.meta or {}).get(CLIENT_INFO_META_KEY) if is_modern else None
        call = _Call(
            id=context.request_id,
            tool=params.name,
            arguments=params.arguments or {},
            revision=context.protocol_version,
            client=_named_client(said_of_client),
        )
        said = await self._answer(call, _arrival(context))
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=said.text)],
            structured_content=None if said.structured is None else msgspec.to_builtins(said.structured),
            is_error=said.is_error,
        )

    async def _list_prompts(
        self, context: ServerRequestContext[Any, Any], params: types.PaginatedRequestParams | None
    ) -> types.ListPromptsResult:
        cursor = params.cursor if params else None
        return await self._look_up(context, lambda caller: prompts.listed(self._learning, caller, cursor))

    async def _get_prompt(
        self, context: ServerRequestContext[Any, Any], params: types.GetPromptRequestParams
    ) -> types.GetPromptResult:
        walkthrough = (params.arguments or {}).get(prompts.ARGUMENT)
        return await self._look_up(
            context, lambda caller: prompts.got(self._learning, caller, params.name, walkthrough)
        )

    async def _list_resources(
        self, context: ServerRequestContext[Any, Any], params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        cursor = params.cursor if params else None
        return await self._look_up(context, lambda caller: resources.listed(self._learning, caller, cursor))

    async def _read_resource(
        self, context: ServerRequestContext[Any, Any], params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        return await self._look_up(
            context, lambda caller: resources.read(self._learning, caller, params.uri, context.protocol_version)
        )

    async def _complete(
        self, context: ServerRequestContext[Any, Any], params: types.CompleteRequestParams
    ) -> types.CompleteResult:
        ref, argument = params.ref, params.argument
        known = (params.context.arguments if params.context else None) or {}

        async def values(caller: Caller) -> Sequence[str]:
            if isinstance(ref, types.PromptReference):
                return await prompts.completed(self._learning, caller, ref.name, argument.name, argument.value)
            return await resources.completed(self._learning, caller, ref.uri, argument.name, argument.value, known)

        found = await self._look_up(context, values)
        return types.CompleteResult(
            completion=types.Completion(
                values=list(found[:_MAX_COMPLETIONS]), total=len(found), has_more=len(found) > _MAX_COMPLETIONS
            )
        )

    async def _look_up(self, context: ServerRequestContext[Any, Any], look_up: Callable[[Caller], Awaitable[_T]]) -> _T:
        """What reads from the database and is no tool call: answered in time, if only with the advice to try again."""
        arrival = _arrival(context)
        try:
            if arrival.caller is None:
                raise TemporarilyUnavailable
            with self._counted(arrival.caller):
                self._check_bound(arrival.caller)
                async with asyncio.timeout_at(arrival.answer_by):
                    return await look_up(arrival.caller)
        except RateLimited as error:
            raise MCPError(code=_UNAVAILABLE, message=rendering.tool_error(error)) from error
        except (TemporarilyUnavailable, TimeoutError) as error:
            self._warn(title_of(error.__cause__ or error))
            raise MCPError(code=_UNAVAILABLE, message=rendering.tool_error(TemporarilyUnavailable())) from error
        except MCPError:
            raise
        except Exception as error:
            _log.error("request failed", method=context.method, exc_info=error)
            raise MCPError(code=types.INTERNAL_ERROR, message="Internal error") from error

    async def _answer(self, call: _Call, arrival: Arrival) -> _Said:
        """The answer, or `temporarily_unavailable` in time: whatever was committed then stays so, and the same call
        again is told so.

        Neither uvicorn nor the SDK ends what a client no longer waits for: what has begun is finished and logged. Only
        the end of a process ends calls, of those that outlast the time it is given.
        """
        began, label = time.perf_counter(), _label(call.tool)
        try:
            if arrival.caller is None:
                return self._unavailable("the gate could not ask the database", label)
            with self._counted(arrival.caller):
                async with asyncio.timeout_at(arrival.answer_by):
                    return await self._run_and_record(arrival.caller, call, arrival)
        except TemporarilyUnavailable as error:
            cause = title_of(error.__cause__) if error.__cause__ else "others were faster, time and again"
            return self._unavailable(cause, label)
        except TimeoutError:
            return self._unavailable("no answer in time", label)
        except MCPError:
            raise
        except Exception as error:
            _count_outcome(label, _error_code(error))
            raise _internal_error(error, label) from error
        finally:
            _tool_call_seconds(label).observe(time.perf_counter() - began)

    def _unavailable(self, cause: str, label: str) -> _Said:
        self._warn(cause)
        _count_outcome(label, TemporarilyUnavailable.code)
        return _refused(TemporarilyUnavailable())

    def _warn(self, cause: str) -> None:
        now = time.monotonic()
        if now - self._warned_at >= _WARNING_SECONDS:
            self._warned_at = now
            _log.warning("calls are answered temporarily_unavailable", cause=cause)

    async def _run_and_record(self, caller: Caller, call: _Call, arrival: Arrival) -> _Said:
        """Runs the tool, records the call, and only then answers. Where no more calls can be recorded, none is run."""
        began = time.perf_counter_ns()

        def as_call(gist: Gist) -> ToolCall:
            client_name, client_version = _client(call, arrival)
            return ToolCall(
                id=CallId(self._ids.new("call")),
                caller=caller,
                tool_name=_loggable(call.tool),
                client_name=client_name,
                client_version=client_version,
                protocol_version=call.revision,
                walkthrough_id=gist.walkthrough_id,
                version=gist.version,
                step_id=gist.step_id,
                outcome=gist.outcome,
                error_code=gist.error_code,
                duration_us=(time.perf_counter_ns() - began) // 1_000,
                input=_loggable_input(call.arguments),
                created_at=self._clock.now(),
            )

        answer: Answer | None = None
        failure: Exception | None = None
        with self._calls.admit() as record:
            try:
                await self._count(caller)
                tool = TOOLS.get(call.tool)
                if tool is None:
                    raise MCPError(code=types.INVALID_PARAMS, message=f"Unknown tool: {call.tool[:100]}")
                answer = await tool.run(self._learning, caller, tool.decode(call.arguments), as_call)
            except TemporarilyUnavailable:
                raise
            except Exception as error:  # noqa: BLE001  # whatever it is, it is recorded and then answered
                failure = error
            if answer is None:
                await record(as_call(Gist("error", error_code=_error_code(failure))))
            elif not answer.is_recorded:
                await record(as_call(answer.gist))
        _count_outcome(_label(call.tool), answer.gist.outcome if answer else _error_code(failure))
        return _failed(failure, call.tool) if answer is None else _Said(answer.text, answer.structured)

    async def _count(self, caller: Caller) -> None:
        """One call more of a known person, on whichever server of the organisation; the gate counts the unknown."""
        if caller.user_id is None:
            return
        self._check_bound(caller)
        try:
            await self._limits.hit(Limit.CALLS_PER_USER, caller.server.organization_id, caller.user_id)
        except TooManyRequests as error:
            raise RateLimited(error.retry_after_seconds) from error

    @contextmanager
    def _counted(self, caller: Caller) -> Iterator[None]:
        """One more of what a known person has under way, for as long as this is."""
        if caller.user_id is None:
            yield
            return
        person = (caller.server.organization_id, caller.user_id)
        self._at_once[person] += 1
        try:
            yield
        finally:
            self._at_once[person] -= 1
            if not self._at_once[person]:
                del self._at_once[person]

    def _check_bound(self, caller: Caller) -> None:
        """Refuses what a known person has under way beyond the bound."""
        if self._at_once[caller.server.organization_id, caller.user_id] > _CALLS_AT_ONCE:
            raise RateLimited(1)


def _label(tool: Any) -> str:
    """A tool for a figure: one of ours, as there is no bound to what callers write."""
    return tool if isinstance(tool, str) and tool in TOOLS else "other"


def _count_outcome(label: str, outcome: str) -> None:
    _tool_calls(label, outcome).inc()
    note(tool=label, outcome=outcome)


def _error_code(failure: Exception | None) -> str:
    """What the call log calls a failure: a tool error by its own code."""
    match failure:
        case ToolError():
            return failure.code
        case MCPError():
            return "unknown_tool"
        case _:
            return "internal_error"


def _failed(failure: Exception | None, tool: str) -> _Said:
    """Where errors become protocol answers: what the assistant can mend is a result, the rest is raised."""
    if isinstance(failure, ToolError):
        return _refused(failure)
    if isinstance(failure, MCPError):
        raise failure
    raise _internal_error(failure, _label(tool))


def _internal_error(failure: Exception | None, label: str) -> MCPError:
    _log.error("tool call failed", tool=label, exc_info=failure)
    return MCPError(code=types.INTERNAL_ERROR, message="Internal error")


def _arrival(ctx: ServerRequestContext[Any, Any]) -> Arrival:
    """What the gate left in the scope: the SDK hands its own Request on, over the very same scope."""
    assert ctx.request is not None, "HTTP is the only transport"  # noqa: S101
    arrival: Arrival = ctx.request.scope["state"][STATE_KEY]
    return arrival


def _in_utf8(send: Send) -> Send:
    """A `send` for answers that are one JSON body each, which writes letters as letters.

    For 2026-07-28 the SDK escapes all that is not ASCII, and a step in Cyrillic would take three times its size.
    """
    started: Any = None

    async def sent(message: Any) -> None:
        nonlocal started
        if message["type"] == "http.response.start":
            started = message  # until its length is known
            return
        if started is not None:
            body = message.get("body", b"")
            if b"\\u" in body and not message.get("more_body"):
                body = json.dumps(json.loads(body), ensure_ascii=False, separators=(",", ":")).encode()
                message = {**message, "body": body}
                others = [(name, value) for name, value in started["headers"] if name.lower() != b"content-length"]
                started = {**started, "headers": [*others, (b"content-length", str(len(body)).encode())]}
            await send(started)
            started = None
        await send(message)

    return sent


async def _send_json(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _plain_call(scope: Scope, arrival: Arrival) -> _Call | None:
    """A tool call of the newest era, in which the SDK finds nothing wrong; None: anything else.

    Such calls are nearly all there is. The SDK's functions say whether they are in order, and what it would then do (a
    request, a connection, a session, a context and three models of the result) is left out: it takes as long as the
    tool itself. A test answers the same calls both ways.
    """
    message = arrival.message
    if message is None or message["method"] != "tools/call":
        return None
    name = (message.get("params") or {}).get("name")
    if not isinstance(name, str) or name not in TOOLS:
        return None
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    if find_duplicated_routing_header(headers) is not None:
        return None
    route = classify_inbound_request(message, headers=dict(headers))
    if not isinstance(route, InboundModernRoute):
        return None
    params = message["params"]
    if not _are_in_order(params, route.protocol_version, is_short=arrival.length <= _MAX_SHORT_CHARS):
        return None
    return _Call(
        id=message["id"],
        tool=name,
        arguments=params.get("arguments") or {},
        revision=route.protocol_version,
        client=_named_client(route.client_info),
    )


def _are_in_order(params: Mapping[str, Any], revision: str, *, is_short: bool) -> bool:
    """Whether the SDK finds nothing wrong with the parameters of a call that names one of our tools.

    A client says the same of itself in each call, and to read that is a twentieth of an advance. Where it was in order
    before, it is so beside any arguments and whatever else differs from call to call. `is_short`: so that it may be
    remembered.
    """
    said: tuple[str, str] | None = None
    meta = params.get("_meta")
    if (
        is_short
        and params.keys() <= _USUAL_PARAMS
        and isinstance(params.get("arguments", {}), dict)
        and isinstance(meta, dict)
        and type(meta.get("progressToken", 0)) in (str, int)
    ):
        # A text, unlike equality, tells 1 from True and from 1.0.
        said = revision, repr([member for member in meta.items() if member[0] not in _META_OF_ONE_CALL])
        if said in _in_order:
            return True
    try:
        # Two readers, as the SDK has: one takes what the revision knows, the other what any revision does.
        validate_client_request("tools/call", revision, params)
        types.CallToolRequestParams.model_validate(params, by_name=False)
    except ValueError:
        return False
    if said is not None:
        if len(_in_order) >= _MAX_IN_ORDER:
            _in_order.clear()
        _in_order.add(said)
    return True


def _named_client(info: Mapping[str, Any] | None) -> tuple[str, str] | None:
    """Name and version in a `clientInfo` in which the SDK finds nothing wrong."""
    return None if info is None else (info["name"], info["version"])


def _result(arrival: Arrival, said: _Said) -> dict[str, Any]:
    """MCP 2026-07-28, "CallToolResult", with whom it is from."""
    tenant = arrival.tenant
    result = {
        "content": [{"type": "text", "text": said.text}],
        "isError": said.is_error,
        "resultType": "complete",
        "_meta": {_SERVER_INFO_META: _STAMP if tenant is None else {**_STAMP, **_named(tenant)}},
    }
    return result if said.structured is None else {**result, "structuredContent": said.structured}


def _named(tenant: Tenant) -> dict[str, Any]:
    return {"name": tenant.slug, "title": tenant.name}


async def _list_resource_templates(
    context: ServerRequestContext[Any, Any], params: types.PaginatedRequestParams | None
) -> types.ListResourceTemplatesResult:
    templates, _ = page([resources.STEP], params.cursor if params else None, lambda template: template.name)
    return types.ListResourceTemplatesResult(resource_templates=templates)


async def _introduce(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """SDK middleware: tells each tenant's own name, and how its assistant is to lead people."""
    result = await call_next(ctx)
    tenant = _arrival(ctx).tenant
    if tenant is None or not isinstance(result, dict):
        return result
    info = _named(tenant)
    if ctx.method == "initialize":
        result["serverInfo"] = {**result["serverInfo"], **info, "icons": _ICONS}
    if ctx.method in ("initialize", "server/discover"):
        result["instructions"] = (
            f"{tenant.name} offers walkthroughs: guided lessons that the user takes here with your help, one step at "
            "a time. list_walkthroughs shows them, select_walkthrough starts or resumes one. Present one step, end "
            "your turn, and go on with next_walkthrough_step only when the user says that the step is done. Where "
            "the user stands is kept for them, so they can stop at any time and resume anywhere."
        )
    if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
        if ctx.method == "server/discover":
            info["icons"] = _ICONS  # every other answer says whose it is as well, and needs no picture for that
        meta = result.get("_meta") or {}
        if stamp := meta.get(_SERVER_INFO_META):
            result["_meta"] = {**meta, _SERVER_INFO_META: {**stamp, **info}}
    return result


def _listed(tool: Tool[Any]) -> types.Tool:
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=input_schema(tool.arguments),
        output_schema=output_schema(tool.result),
        icons=ICONS,
        annotations=types.ToolAnnotations(
            title=tool.title,
            read_only_hint=tool.is_read_only,
            destructive_hint=False,  # nothing that was done is ever undone: events keep every attempt
            idempotent_hint=True,  # the same call again moves nothing
            open_world_hint=False,
        ),
    )


def _refused(error: ToolError) -> _Said:
    return _Said(rendering.tool_error(error), None)


def _client(call: _Call, arrival: Arrival) -> tuple[str | None, str | None]:
    """The client's name and version: what it says of itself, or else what its User-Agent begins with.

    A client of the handshake era says its name once, in a request that no later call can be matched with.
    """
    if call.client is not None:
        name, version = call.client
        return _loggable(name), _loggable(version)
    if not arrival.user_agent:
        return None, None
    name, _, version = arrival.user_agent.split(" ", 1)[0].partition("/")
    return _loggable(name), _loggable(version) or None


def _loggable(text: str) -> str:
    """A caller's text as a database can hold it, and no longer than anyone will want to read."""
    return storable(text[:_MAX_LOGGED_CHARS])


def _loggable_input(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments for the log, bounded. What no tool takes (nested values) is kept as its beginning."""

    def bounded(value: Any) -> Any:
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int):
            return value if abs(value) < 2**53 else str(value)[:40]
        return _loggable(value if isinstance(value, str) else repr(value)[:200])

    return {
        _loggable(str(name))[:100]: bounded(value) for name, value in list(arguments.items())[:_MAX_LOGGED_ARGUMENTS]
    }
