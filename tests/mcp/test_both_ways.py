"""A call of the newest era, answered without the SDK's machinery and with it: nobody can tell which it was.

Two worlds that are equal get the same calls, through the gate. In one of them the endpoint is kept from knowing what
the gate has read, so that everything goes the SDK's way.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp_types.methods import validate_client_request

from adapters.rate_limits import MemoryRateLimits
from application.limits import Limit, rates
from application.ports import ToolCall
from application.visitors import Visitors
from domain.errors import TemporarilyUnavailable
from domain.tenancy import AuthMode, Millis, UserId, hash_of
from entrypoints.http.gate import Gate
from entrypoints.mcp import server
from entrypoints.mcp.server import STATE_KEY, McpEndpoint
from tests import fakes
from tests.fakes_sign_in import MemoryVisitorStore
from tests.worlds import World, in_memory

_MODERN = "2026-07-28"
_VERSION, _CLIENT, _CAPABILITIES, _LOG_LEVEL = (
    f"io.modelcontextprotocol/{name}" for name in ("protocolVersion", "clientInfo", "clientCapabilities", "logLevel")
)
_VISITOR = "visitor-visitor-visito"
_ABSENT: Any = object()
_HANDLE = "<the handle that was given out last>"
_TOO_LARGE = "<1e999>"  # a number as no JSON library writes it


@dataclass(frozen=True)
class Ask:
    """A tool call of the newest era, and what is wrong or unusual about it."""

    tool: Any = "list_walkthroughs"
    arguments: Any = _ABSENT
    who: str = "ada"
    id: Any = 1
    meta: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    message: Mapping[str, Any] = field(default_factory=dict)
    headers: Sequence[tuple[str, str | None]] = ()
    """Those that are there beside or, with None before them, in place of the usual."""

    def body(self, handle: str) -> bytes:
        client = {"name": "raw-client", "version": "4.2"}
        meta = _with({_VERSION: _MODERN, _CLIENT: client, _CAPABILITIES: {}}, self.meta)
        params = _with({"name": self.tool, "arguments": self.arguments, "_meta": meta}, self.params)
        message = {"jsonrpc": "2.0", "id": self.id, "method": "tools/call", "params": params}
        text = json.dumps(_with(message, self.message))
        return text.replace(json.dumps(_HANDLE), json.dumps(handle)).replace(f'"{_TOO_LARGE}"', "1e999").encode()

    def scope(self) -> Any:
        tool = self.tool if isinstance(self.tool, str) and self.tool.isascii() else "x"
        headers = [("mcp-protocol-version", _MODERN), ("mcp-method", "tools/call"), ("mcp-name", tool)]
        headers += [("accept", "application/json"), ("content-type", "application/json"), ("user-agent", "raw/1 (x)")]
        host, path = "guides.localhost", "/mcp"
        if self.who.startswith("visitor"):
            host, path = "open.localhost", f"/v/{_VISITOR}/mcp"
        if "ada" in self.who:
            headers.append(("authorization", "Bearer cairn_ada"))
        for name, value in self.headers:
            headers = [each for each in headers if value is not None or each[0] != name]
            headers += [(name, value)] if value is not None else []
        return {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 1),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in [("host", host), *headers]],
        }  # fmt: skip


def _with(members: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**members, **changes}.items() if value is not _ABSENT}


@dataclass
class Side:
    """One of the two worlds, and the way that its calls go."""

    world: World
    memory: fakes.Memory
    endpoint: McpEndpoint
    gate: Gate
    handle: str = "none"
    plain: int = 0
    """How many calls were answered without anybody reading what the gate had read."""

    async def answer(self, ask: Ask) -> Any:
        """Status, headers and body of the answer, and what it left in the log and of progress."""
        sent: list[Any] = []
        messages = [{"type": "http.request", "body": ask.body(self.handle), "more_body": False}]

        async def receive() -> Any:
            return messages.pop() if messages else await asyncio.Future()

        async def send(message: Any) -> None:
            sent.append(message)

        logged = len(self.memory.calls)
        await self.gate(ask.scope(), receive, send)
        body = json.loads(b"".join(message.get("body", b"") for message in sent[1:]) or b"null")
        headers = {name: value for name, value in sent[0]["headers"] if name != b"content-length"}
        assert len(headers) == len([name for name, _ in sent[0]["headers"] if name != b"content-length"])
        match body:
            case {"result": {"structuredContent": {"step": {"handle": str(handle)}}}}:
                self.handle = handle
        calls = [call._replace(duration_us=0) for call in self.memory.calls.values()]
        return sent[0]["status"], headers, body, calls[logged:], self.memory.progress, self.memory.events


def _side(memory: fakes.Memory, *, is_plain: bool, change: Callable[[Side], Any]) -> Side:
    world = in_memory(memory, clock=fakes.SetClock(), ids=fakes.CountedIds(1_000))
    limits: Any = MemoryRateLimits(dict.fromkeys(Limit))
    visitors = Visitors(
        MemoryVisitorStore(memory), world.catalogue, world.library, world.progress, limits, world.ids, world.clock
    )
    side: Side

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if not is_plain:
            scope["state"][STATE_KEY] = scope["state"][STATE_KEY]._replace(message=None)
        is_read = False

        async def received() -> Any:
            nonlocal is_read
            is_read = True
            return await receive()

        await side.endpoint.handle(scope, received, send)
        side.plain += not is_read

    gate = Gate(app, world.servers, world.identity, visitors, limits, base_domain="localhost", default_server=None)  # type: ignore[arg-type]
    endpoint = McpEndpoint(world.learning, world.calls, limits, world.clock, world.ids)
    side = Side(world, memory, endpoint, gate)
    change(side)
    return side


@asynccontextmanager
async def _both(memory: fakes.Memory, change: Callable[[Side], Any] = lambda side: None) -> AsyncIterator[list[Side]]:
    sides = [_side(deepcopy(memory), is_plain=is_plain, change=change) for is_plain in (True, False)]
    async with AsyncExitStack() as running:
        for side in sides:
            await running.enter_async_context(side.endpoint.running())
        yield sides


async def _answer(sides: Sequence[Side], ask: Ask) -> tuple[int, Any, list[ToolCall]]:
    """The answer, which is the same both ways; and what was logged."""
    plain, by_sdk = [await side.answer(ask) for side in sides]
    assert plain == by_sdk
    assert sides[1].plain == 0
    return plain[0], plain[2], plain[3]


async def _furnished() -> fakes.Memory:
    memory = fakes.Memory()
    world = in_memory(memory)
    guides = await world.server()
    await world.server("acme", "open", auth_mode=AuthMode.ANONYMOUS)
    await world.publish("one", "two", "three", title="Тур 🧭", servers=("guides", "open"))
    await world.publish("a", "b", key="other", servers=("guides",))
    ada = (await world.caller(guides)).user_id
    assert ada is not None
    memory.tokens[guides.key, hash_of("cairn_ada")] = ada
    (opened,) = (server for server in memory.servers.values() if server.slug == "open")
    await MemoryVisitorStore(memory).add(opened.key, hash_of(_VISITOR), UserId("usr_visitor"), Millis(1))
    return memory


@pytest.fixture
async def memory() -> fakes.Memory:
    return await _furnished()


# -------------------------------------------------------------------------------------------------- the calls

_SOUND = (
    Ask("list_walkthroughs"),
    Ask("list_walkthroughs", {}),
    Ask("select_walkthrough", {"walkthrough": "tour"}),
    Ask("select_walkthrough", {"walkthrough": "тур 🧭", "version": "latest"}),
    Ask("select_walkthrough", {"walkthrough": "tour", "restart": True}),
    Ask("next_walkthrough_step", {"completed_step": _HANDLE}),
    Ask("next_walkthrough_step", {"completed_step": _HANDLE, "outcome": "stuck", "note": "почему?\x00🧭"}),
    Ask("get_walkthrough_status", {"walkthrough": None}),
    Ask("get_walkthrough_status", {}),
    Ask("review_walkthrough_step", {"walkthrough": "tour", "step_number": 1}),
)
_WHO = ("ada", "nobody", "visitor", "visitor and ada")
_TOOLS = (
    "no_such_tool",
    "",
    "LIST_WALKTHROUGHS",
    "list_walkthroughs ",
    "т",
    "x" * 300,
    None,
    1,
    ["list_walkthroughs"],
    {},
)
_ARGUMENTS = (
    None, [], "x", 1, {"walkthrough": None}, {"walkthrough": 5}, {"walkthrough": ["tour"]}, {"walkthrough": {"a": {}}},
    {"walkthrough": "a\x00b"}, {"walkthrough": "\ud83d"}, {"walkthrough": "нет 🧭"}, {"walkthrough": "x" * 5_000},
    {"walkthrough": "tour", "restart": "yes"}, {"walkthrough": "tour", "version": "newest"}, {"unknown": 1}, {"": None},
    {"\x00": 1, "\ud800": 2}, {"step_number": 10**30, "walkthrough": "tour"}, {"step_number": _TOO_LARGE},
    {"walkthrough": "tour", "step_number": 1.5}, {"walkthrough": "tour", "step_number": 99},
    {"completed_step": "no handle"}, {"completed_step": None}, {"completed_step": _HANDLE, "outcome": "lost"},
    {"completed_step": _HANDLE, "outcome": "done", "note": "n" * 2_001}, {"walkthrough": "other"},
    {"walkthrough": "tour", "_meta": {}}, {f"argument {number}": number for number in range(30)},
)  # fmt: skip
_IDS = ("", "é", "1", "x" * 1_001, 0, -1, 2**53 + 1, 2**64, -(10**40), 1.0, 1.5, True, None, [], _ABSENT)
_METAS: Sequence[Mapping[str, Any]] = (
    {_CLIENT: _ABSENT}, {_CLIENT: None}, {_CLIENT: {}}, {_CLIENT: "x"}, {_CLIENT: {"name": "n"}},
    {_CLIENT: {"name": "n", "version": None}}, {_CLIENT: {"name": 1, "version": "1"}},
    {_CLIENT: {"name": "ы🧭\x00", "version": "v" * 5_000, "title": "T", "unknown": [1]}},
    {_CLIENT: {"name": "", "version": "", "icons": [{"src": "https://example.com/i.png", "theme": "dark"}]}},
    {_CLIENT: {"name": "n", "version": "1", "icons": [{"src": 1}]}},
    {_CLIENT: {"name": "n", "version": "1", "icons": {}}},
    {_CLIENT: {"name": "n", "version": "1", "icons": [{"src": "x", "theme": "pink"}], "websiteUrl": "x"}},
    {_CLIENT: {"name": "n", "version": "1", "description": 1}},
    {_CAPABILITIES: _ABSENT}, {_CAPABILITIES: None}, {_CAPABILITIES: []},
    {_CAPABILITIES: {"roots": {"listChanged": "?"}}}, {_CAPABILITIES: {"roots": {"listChanged": True}}},
    {_CAPABILITIES: {"elicitation": {"form": {}, "url": {}}, "sampling": {"tools": {}}}},
    {_CAPABILITIES: {"experimental": {"a": {"b": 1}}, "extensions": {"a/b": {}}, "tasks": {"list": {}}, "more": 1}},
    {_CAPABILITIES: {"experimental": {"a": 1}}}, {_CAPABILITIES: {"tasks": 1}}, {_CAPABILITIES: {"roots": 1}},
    {_CAPABILITIES: {"elicitation": True}}, {_CAPABILITIES: {"extensions": {"a": None}}},
    {_VERSION: _ABSENT}, {_VERSION: None}, {_VERSION: 1}, {_VERSION: "2025-11-25"}, {_VERSION: "2027-01-01"},
    {_LOG_LEVEL: "debug"}, {_LOG_LEVEL: "loud"}, {_LOG_LEVEL: None},
    {"progressToken": "p"}, {"progressToken": 7}, {"progressToken": None},
    {"progressToken": 1}, {"progressToken": True}, {"progressToken": 1.0}, {"progressToken": 1.5},
    {"progressToken": []}, {"progressToken": {}},
    {"progress_token": "p"}, {"progress_token": []}, {"unknown/key": {"a": [1, {"b": None}]}}, {"traceparent": 1},
)  # fmt: skip
_PARAMS: Sequence[Mapping[str, Any]] = (
    {"_meta": _ABSENT}, {"_meta": None}, {"_meta": []}, {"_meta": {}}, {"meta": {}}, {"unknown": {"a": 1}},
    {"task": {}}, {"task": {"ttl": 5}}, {"task": {"ttl": "soon"}}, {"task": 5}, {"task": None},
    {"requestState": "s"}, {"requestState": None}, {"requestState": 1}, {"request_state": 1},
    {"inputResponses": {}}, {"inputResponses": None}, {"inputResponses": []}, {"inputResponses": {"a": 1}},
    {"inputResponses": {"a": {"action": "accept", "content": {"b": "c"}}}}, {"inputResponses": {"a": {"action": "?"}}},
    {"inputResponses": {"a": {"action": "accept", "content": {"b": [1]}}}}, {"inputResponses": {"a": {"roots": []}}},
    {"inputResponses": {"a": {"roots": [{"uri": "x"}]}}}, {"inputResponses": {"a": {"role": "user", "content": []}}},
    {"cursor": 1}, {"name": _ABSENT}, {"uri": 1},
)  # fmt: skip
_MESSAGES: Sequence[Mapping[str, Any]] = (
    {"unknown": {"a": 1}}, {"result": 1}, {"error": None}, {"jsonrpc": "1.0"}, {"jsonrpc": _ABSENT}, {"params": None},
    {"params": []}, {"params": _ABSENT}, {"method": "tools/list"}, {"method": "notifications/cancelled", "id": _ABSENT},
    {"method": "TOOLS/CALL"}, {"method": None}, {"method": "server/discover"},
)  # fmt: skip
_HEADERS: Sequence[Sequence[tuple[str, str | None]]] = (
    *([(name, None)] for name in (
        "mcp-protocol-version", "mcp-method", "mcp-name", "user-agent", "accept", "content-type",
    )),
    *([(name, value)] for name, value in (
        ("mcp-protocol-version", _MODERN), ("mcp-method", "tools/call"), ("mcp-name", "list_walkthroughs"),
        ("mcp-param-walkthrough", "tour"), ("mcp-param-walkthrough", "=?base64?!?="), ("mcp-session-id", "x"),
        ("last-event-id", "1"), ("accept", "text/html"),
        ("origin", "http://localhost:1"), ("origin", "https://evil.example"),
    )),
    *([(name, None), (name, value)] for name, value in (
        ("mcp-protocol-version", "2025-11-25"), ("mcp-protocol-version", "2027-01-01"), ("mcp-protocol-version", ""),
        ("mcp-protocol-version", f" {_MODERN} "), ("mcp-method", "tools/list"), ("mcp-method", "Tools/Call"),
        ("mcp-name", "review_walkthrough_step"), ("mcp-name", ""), ("mcp-name", "=?base64?bGlzdF93YWxrdGhyb3VnaHM=?="),
        ("mcp-name", "=?base64?bGlzdF93YWxrdGhyb3VnaHN=?="), ("mcp-name", "=?base64?!?="), ("mcp-name", "\xe9"),
        ("mcp-name", "LIST_WALKTHROUGHS"), ("user-agent", ""), ("user-agent", "agent"), ("user-agent", "a/b/c d\xe9"),
        ("accept", "application/json;q=0"), ("accept", "*/*"), ("content-type", "application/json; charset=utf-8"),
        ("content-type", "text/plain"),
    )),
)  # fmt: skip


def _each() -> Iterator[Ask]:
    """Every single thing that can be unusual, by itself."""
    yield from _SOUND
    yield from (replace(ask, who=who) for ask in _SOUND for who in _WHO)
    yield from (Ask(tool, who=who) for tool in _TOOLS for who in ("ada", "nobody"))
    yield from (replace(ask, arguments=arguments) for ask in (*_SOUND[2::3], _SOUND[0]) for arguments in _ARGUMENTS)
    yield from (Ask(id=id) for id in _IDS)
    yield from (Ask(meta=meta) for meta in _METAS)
    yield from (Ask(params=params) for params in _PARAMS)
    yield from (Ask(message=message) for message in _MESSAGES)
    yield from (Ask(headers=headers) for headers in _HEADERS)


async def test_whatever_is_unusual_about_a_call_it_is_answered_the_same_both_ways(memory: fakes.Memory) -> None:
    statuses, asked = set(), 0
    async with _both(memory) as sides:
        for ask in _each():
            statuses.add((await _answer(sides, ask))[0])
            asked += 1
    assert statuses == {200, 202, 400, 401, 403, 406, 415}
    assert sides[0].plain > asked / 3


_ASKS = st.builds(
    lambda sound, unusual: replace(sound, **{name: value for each in unusual for name, value in each.items()}),
    st.sampled_from(_SOUND),
    st.lists(
        st.one_of(
            *(
                st.sampled_from([{name: value} for value in values])
                for name, values in (
                    ("who", _WHO), ("arguments", _ARGUMENTS), ("id", _IDS), ("meta", _METAS), ("params", _PARAMS),
                    ("message", _MESSAGES), ("headers", _HEADERS),
                )
            )
        ),
        max_size=3,
    ),
)  # fmt: skip


def test_so_are_several_in_a_row_each_with_several_such_things() -> None:
    furnished = asyncio.run(_furnished())

    async def answered(asks: Sequence[Ask]) -> None:
        async with _both(furnished) as sides:
            for ask in asks:
                await _answer(sides, ask)

    @settings(max_examples=100, deadline=None)
    @given(st.lists(_ASKS, min_size=1, max_size=6))
    def check(asks: list[Ask]) -> None:
        asyncio.run(answered(asks))

    check()


# ---------------------------------------------------------------------------------- what clients say of themselves


@pytest.fixture
def read_by_sdk(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The parameters that the SDK has read of plain calls, from now on."""
    read: list[Any] = []

    def validate(method: str, revision: str, params: Any) -> None:
        read.append(params)
        validate_client_request(method, revision, params)

    monkeypatch.setattr(server, "validate_client_request", validate)
    monkeypatch.setattr(server, "_in_order", set())
    return read


async def test_what_a_client_says_of_itself_is_read_once(memory: fakes.Memory, read_by_sdk: list[Any]) -> None:
    trace = {"traceparent": "00-{0}-{0}-01", "tracestate": "a={0}", "baggage": "b={0}"}
    async with _both(memory) as (side, _):
        for number, ask in enumerate(_SOUND):
            varied = {"progressToken": number, **{name: text.format(number) for name, text in trace.items()}}
            await side.answer(replace(ask, meta=varied))
            await side.answer(replace(ask, meta={"progressToken": str(number)}))
            await side.answer(ask)
        assert side.plain == 3 * len(_SOUND)
        assert len(read_by_sdk) == 1
        for number, meta in enumerate(
            ({_CAPABILITIES: {"roots": {}}}, {_LOG_LEVEL: "debug"}, {"a/b": 1}, {"a/b": True})
        ):
            await side.answer(Ask(meta=meta))
            await side.answer(Ask(meta=meta))
            assert len(read_by_sdk) == 2 + number


async def test_what_was_not_in_order_is_read_again_each_time(memory: fakes.Memory, read_by_sdk: list[Any]) -> None:
    async with _both(memory) as (side, _):
        for number in range(1, 4):
            status, _, _, calls, _, _ = await side.answer(Ask(meta={_CAPABILITIES: 1}))
            assert (status, calls, len(read_by_sdk)) == (400, [], number)


async def test_no_more_is_remembered_of_clients_than_there_is_room_for(
    memory: fakes.Memory, read_by_sdk: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_MAX_IN_ORDER", 8)
    async with _both(memory) as (side, _):
        for number in range(20):
            await side.answer(Ask(meta={"number": number}))
            assert len(server._in_order) <= 8
        before = set(server._in_order)
        await side.answer(Ask(meta={"long": "x" * 4_000}))
        assert server._in_order == before
        assert len(read_by_sdk) == side.plain == 21


# ------------------------------------------------------------------------------------------------------ faults


def _breaks_the_tool(side: Side) -> None:
    async def standings(caller: Any) -> Any:
        raise ValueError("the secret of the catalogue")

    side.world.catalogue.standings = standings  # type: ignore[method-assign]


def _breaks_the_log(side: Side) -> None:
    async def record(call: ToolCall) -> None:
        raise ValueError("the secret of the log")

    side.world.calls._record = record  # type: ignore[attr-defined]


def _fills_the_log(side: Side) -> None:
    side.world.calls._free = 0  # type: ignore[attr-defined]


def _takes_the_database_away(side: Side) -> None:
    async def server_at(**_: Any) -> Any:
        raise TemporarilyUnavailable

    side.world.servers.server_at = server_at  # type: ignore[method-assign]


def _limits(side: Side) -> None:
    limits = MemoryRateLimits(rates("calls_per_user=1/60"), now=lambda: 0.0)
    side.endpoint._limits = limits


def _stops_the_tool(side: Side) -> None:
    side.world.catalogue.standings = lambda caller: asyncio.Future()  # type: ignore[method-assign,assignment]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_breaks_the_tool, "Internal error"),
        (_breaks_the_log, "Internal error"),
        (_fills_the_log, "temporarily_unavailable"),
        (_takes_the_database_away, "temporarily_unavailable"),
        (_limits, "rate_limited"),
        (_stops_the_tool, "temporarily_unavailable"),
    ],
)
async def test_what_goes_wrong_here_is_told_the_same_both_ways(
    memory: fakes.Memory, monkeypatch: pytest.MonkeyPatch, change: Callable[[Side], Any], told: str
) -> None:
    monkeypatch.setattr("entrypoints.http.gate.ANSWER_SECONDS", 0.05)
    async with _both(memory, change) as sides:
        await _answer(sides, Ask())
        status, body, _ = await _answer(sides, Ask())
    assert sides[0].plain == 2
    assert status == 200
    assert told in json.dumps(body)
    assert "secret" not in json.dumps(body)
