"""The endpoint's side of the call log: no answer without its row, and no tool run where there is no place for one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.postgres.connections import Database
from adapters.rate_limits import MemoryRateLimits
from adapters.system import RandomIds
from application.limits import rates
from application.ports import CallLog, ToolCall
from domain.tenancy import Caller, Server
from entrypoints.http.message import Refusal, Request, message_of, text_of
from entrypoints.mcp.server import STATE_KEY, Arrival, McpEndpoint
from tests import fakes
from tests.worlds import World, in_memory, on_postgres

_SECONDS = 3.5


@dataclass
class HeldLog(fakes.MemoryCallLog):
    """A log whose rows wait until `released`, like those behind a slow write."""

    memory: fakes.Memory
    places: int = 1_000
    handed_in: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    writing: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__(self.memory, places=self.places)

    @contextmanager
    def admit(self) -> Iterator[Callable[[ToolCall], Awaitable[None]]]:
        with super().admit() as record:

            async def write(call: ToolCall) -> None:
                await self.released.wait()
                await record(call)

            async def held(call: ToolCall) -> None:
                task = asyncio.create_task(write(call))
                self.writing.add(task)
                task.add_done_callback(self.writing.discard)
                self.handed_in.set()
                await asyncio.shield(task)

            yield held

    async def drain(self) -> None:
        if self.writing:
            await asyncio.wait(self.writing)


@dataclass
class Served:
    """An endpoint behind the gate, and one person on one server."""

    endpoint: McpEndpoint
    server: Server
    caller: Caller

    async def post(self, body: bytes, *headers: tuple[str, str], seconds: float = _SECONDS) -> tuple[int, Any]:
        """Status and decoded body of the answer."""
        sent: list[dict[str, Any]] = []
        answer_by = asyncio.get_running_loop().time() + seconds
        message = None
        with suppress(Refusal):  # what the gate would refuse is for the SDK here
            message = message_of(text_of(body), Request())
        arrival = Arrival(self.server, self.caller, "raw/1", answer_by, message)
        scope: Any = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/mcp",
            "raw_path": b"/mcp",
            "query_string": b"",
            "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 1),
            "headers": [
                (b"host", b"guides.localhost"),
                (b"content-type", b"application/json"),
                (b"accept", b"application/json, text/event-stream"),
                *((name.encode(), value.encode()) for name, value in headers),
            ],
            "state": {STATE_KEY: arrival},
        }
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            for message in messages:
                return message
            return await asyncio.Future()  # the client stays connected

        async def send(message: Any) -> None:
            sent.append(message)

        await self.endpoint.handle(scope, receive, send)
        content = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], json.loads(content)

    async def call(self, tool: str, arguments: str, *, era: str = "auto", seconds: float = _SECONDS) -> tuple[int, Any]:
        """A tool call with arguments in JSON as the client wrote them."""
        name = json.dumps(tool)
        if era == "legacy":
            params = f'{{"name":{name},"arguments":{arguments}}}'
            return await self.post(_request(params), ("mcp-protocol-version", "2025-11-25"), seconds=seconds)
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "raw-client", "version": "4.2"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        params = f'{{"name":{name},"arguments":{arguments},"_meta":{json.dumps(meta)}}}'
        return await self.post(
            _request(params),
            ("mcp-protocol-version", "2026-07-28"),
            ("mcp-method", "tools/call"),
            ("mcp-name", tool),
            seconds=seconds,
        )

    async def told(self, tool: str, *, seconds: float = _SECONDS, **arguments: Any) -> str:
        """The status, or the code of a tool error."""
        _, answer = await self.call(tool, json.dumps(arguments), seconds=seconds)
        result = answer["result"]
        if not result["isError"]:
            return str(result["structuredContent"]["status"])
        return str(result["content"][0]["text"].split(":")[0])


def _request(params: str) -> bytes:
    return f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}'.encode()


@asynccontextmanager
async def _served(world: World, log: CallLog, **server: Any) -> AsyncIterator[Served]:
    guides = await world.server(**server)
    await world.publish("one", "two", organization=server.get("organization", "acme"), servers=(guides.slug,))
    endpoint = McpEndpoint(world.learning, log, MemoryRateLimits(rates("")), world.clock, RandomIds())
    async with endpoint.running():
        yield Served(endpoint, guides, await world.caller(guides))


async def _standing(world: World, caller: Caller) -> int | None:
    """The revision of the caller's progress."""
    (standing,) = await world.catalogue.matching(caller, "tour")
    return standing.progress.revision if standing.progress else None


@pytest.mark.promise("calls.logged")
async def test_no_tool_is_run_where_its_call_finds_no_place_in_the_log() -> None:
    memory = fakes.Memory()
    world = in_memory(memory)
    log = HeldLog(memory, places=1)
    async with _served(world, log) as served:
        reading = asyncio.create_task(served.told("review_walkthrough_step", walkthrough="tour", step_number=1))
        await log.handed_in.wait()
        assert await served.told("select_walkthrough", walkthrough="tour") == "temporarily_unavailable"
        assert await _standing(world, served.caller) is None
        log.released.set()
        assert await reading == "walkthrough_not_started"
        assert await served.told("select_walkthrough", walkthrough="tour") == "started"
    assert [call.outcome for call in memory.calls.values()] == ["error", "started"]


@pytest.mark.promise("calls.logged")
async def test_a_row_that_is_late_leaves_the_call_unanswered_and_is_written_before_the_service_ends() -> None:
    memory = fakes.Memory()
    world = in_memory(memory)
    log = HeldLog(memory)
    async with _served(world, log) as served:
        assert await served.told("list_walkthroughs", seconds=0.05) == "temporarily_unavailable"
        assert memory.calls == {}
        asyncio.get_running_loop().call_later(0.05, log.released.set)
    assert [call.outcome for call in memory.calls.values()] == ["listed"]


@pytest.mark.promise("calls.logged")
async def test_a_call_whose_client_goes_away_is_recorded() -> None:
    memory = fakes.Memory()
    world = in_memory(memory)
    log = HeldLog(memory)
    async with _served(world, log) as served:
        request = asyncio.create_task(served.told("list_walkthroughs"))
        await log.handed_in.wait()
        request.cancel()
        await asyncio.wait([request])
        assert request.cancelled()
        log.released.set()
    assert [call.outcome for call in memory.calls.values()] == ["listed"]


@pytest.mark.promise("calls.logged")
async def test_what_a_call_changes_is_stored_with_its_row_and_what_changes_nothing_is_handed_to_the_log() -> None:
    memory = fakes.Memory()
    world = in_memory(memory)
    log = HeldLog(memory)
    async with _served(world, log) as served:
        assert await served.told("select_walkthrough", walkthrough="tour") == "started"
        lesson = await world.learning.select(served.caller, "tour", restart=False, to_latest=False)
        step = {"completed_step": str(lesson.progress.handle())}
        assert await served.told("next_walkthrough_step", **step) == "advanced"
        assert not log.handed_in.is_set()
        again = asyncio.create_task(served.told("next_walkthrough_step", **step))
        await log.handed_in.wait()
        assert [call.outcome for call in memory.calls.values()] == ["started", "advanced"]
        log.released.set()
        assert await again == "repeated"
    assert [(call.outcome, call.version, call.step_id is None) for call in memory.calls.values()] == [
        ("started", 1, False),
        ("advanced", 1, False),
        ("repeated", 1, False),
    ]


@pytest.mark.promise("calls.logged")
async def test_an_advance_whose_row_cannot_be_stored_moves_nobody_and_is_no_answer(
    database: Database, owner: asyncpg.Connection
) -> None:
    world = on_postgres(database)
    async with _served(world, world.calls) as served:
        assert await served.told("select_walkthrough", walkthrough="tour") == "started"
        lesson = await world.learning.select(served.caller, "tour", restart=False, to_latest=False)
        step = {"completed_step": str(lesson.progress.handle())}
        await owner.execute("alter table tool_calls add constraint none_moves check (outcome <> 'advanced')")
        _, answer = await served.call("next_walkthrough_step", json.dumps(step))
        assert answer["error"]["message"] == "Internal error"
        await owner.execute("alter table tool_calls drop constraint none_moves")
        assert await served.told("next_walkthrough_step", **step) == "advanced"
    outcomes = await owner.fetch("select outcome, error_code from tool_calls order by created_at, id")
    assert sorted(map(tuple, outcomes), key=str) == [
        ("advanced", None),
        ("error", "internal_error"),
        ("started", None),
    ]


@pytest.mark.promise("limits")
async def test_of_one_person_so_many_calls_are_under_way_at_once_and_one_more_is_refused_and_logged() -> None:
    memory = fakes.Memory()
    world = in_memory(memory)
    log = HeldLog(memory)
    async with _served(world, log) as served:
        other = Served(served.endpoint, served.server, await world.caller(served.server, "bob@example.com"))
        review: Any = {"tool": "review_walkthrough_step", "walkthrough": "tour", "step_number": 1}
        calls = [asyncio.create_task(each.told(**review)) for each in [served] * 13 + [other]]
        async with asyncio.timeout(5):
            while len(log.writing) < len(calls):  # noqa: ASYNC110  # until all have run, and wait for their rows
                await asyncio.sleep(0)
        log.released.set()
        assert await asyncio.gather(*calls) == ["walkthrough_not_started"] * 12 + [
            "rate_limited",
            "walkthrough_not_started",
        ]
        assert await served.told(**review) == "walkthrough_not_started"
    assert sum(call.error_code == "rate_limited" for call in memory.calls.values()) == 1


# ------------------------------------------------------------------------------------------ whatever is sent

# JSON as it may be written: with numbers that no database holds, and halves of surrogate pairs, which the readers of
# both eras take or refuse, but never pass on to fail later.
_NUMBERS = st.one_of(
    st.integers().map(str),
    st.integers(4_000, 6_000).map(lambda digits: "9" * digits),
    st.floats().map(json.dumps),
    st.sampled_from(["1e999", "-1e999", "1e-999", "NaN", "Infinity", "-Infinity", "-0.0", "1E400", "0.1e1"]),
)
_TEXTS = st.one_of(
    st.text(st.characters(), max_size=30),
    st.sampled_from(
        ["\x00", "a\x00b", "\ud800", "\udfff\ud800", "\ufffe", "\u2028", "\x1f", "x" * 5_000, "\U0010ffff"]
    ),
)
_SCALARS = st.one_of(st.sampled_from(["null", "true", "false"]), _NUMBERS, _TEXTS.map(json.dumps))
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda values: f"[{','.join(values)}]"),
        st.lists(st.tuples(_TEXTS.map(json.dumps), inner), max_size=3).map(
            lambda members: f"{{{','.join(f'{name}:{value}' for name, value in members)}}}"
        ),
    ),
    max_leaves=6,
)
_ARGUMENT_NAMES = st.one_of(st.sampled_from(["walkthrough", "version", "completed_step", "note", "restart"]), _TEXTS)
_ARGUMENTS = st.lists(st.tuples(_ARGUMENT_NAMES.map(json.dumps), _VALUES), max_size=4).map(
    lambda members: f"{{{','.join(f'{name}:{value}' for name, value in members)}}}"
)
_TOOLS = st.sampled_from(
    ["list_walkthroughs", "select_walkthrough", "next_walkthrough_step", "get_walkthrough_status", "no_such_tool"]
)


@pytest.mark.promise("calls.logged")
@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_whatever_the_arguments_are_a_call_that_is_taken_ends_in_a_stored_row(
    database: Database, owner: asyncpg.Connection, era: str
) -> None:
    world = on_postgres(database)
    taken = 0

    async def sent(served: Served, tool: str, arguments: str) -> None:
        nonlocal taken
        before = await owner.fetchval("select count(*) from tool_calls")
        _, answer = await served.call(tool, arguments, era=era)
        rows = await owner.fetchval("select count(*) from tool_calls") - before
        code = answer.get("error", {}).get("code")
        if code == -32700:  # the reader took it for no JSON
            assert rows == 0
            return
        assert (code, rows) == (-32602 if tool == "no_such_tool" else None, 1)
        assert "temporarily_unavailable" not in json.dumps(answer)
        taken += 1

    async with _served(world, world.calls) as served:
        loop = asyncio.get_running_loop()

        @settings(max_examples=150, deadline=None)
        @given(tool=_TOOLS, arguments=_ARGUMENTS)
        def send(tool: str, arguments: str) -> None:
            asyncio.run_coroutine_threadsafe(sent(served, tool, arguments), loop).result(10)

        await asyncio.to_thread(send)
    assert taken > 50
    assert await owner.fetchval("select count(*) from tool_calls where error_code = 'internal_error'") == 0
