"""What a whole call costs, in counts that come out the same on every machine, busy or not.

A call here is all that `cairn serve` does between the bytes it is sent and the bytes it answers, on a real database. A
bound that breaks is a cost that every call pays from then on; `make bench` tells what it is in time. One that has
become too wide is to be narrowed, so that what was won stays won.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import asyncpg
import pytest
import structlog
from litestar.types import ASGIApp

from adapters.postgres.connections import Access, Database
from domain.tenancy import AuthMode, Server
from domain.walkthrough import PublishPolicy
from entrypoints.logs import configure_logs
from tests.serving.conftest import call
from tests.serving.raw import modern
from tests.storage.test_statements import CountingDatabase, serving_here
from tests.worlds import World, manuscript, on_postgres

_ERAS = ("modern", "legacy")

# The token, where the person stands, and what they do, or else the log. Whom this process has left at a step is not
# looked up.
STATEMENTS = {
    "list_walkthroughs": 3,
    "select_walkthrough": 3,
    "next_walkthrough_step": 2,
    "review_walkthrough_step": 3,
    "get_walkthrough_status": 3,
}
# Of a list, for each of eight at once: two of its own, and half a write to the log, which the eight share.
STATEMENTS_OF_ONE_IN_EIGHT = 2.5

# Rows by table: inserted, updated, updated within their page (HOT), deleted, and read.
Rows = tuple[int, int, int, int, int]
_WHO: dict[str, Rows] = {"access_tokens": (0, 0, 0, 0, 1)}
_WHERE: dict[str, Rows] = {
    "mcp_server_walkthroughs": (0, 0, 0, 0, 1),
    "walkthroughs": (0, 0, 0, 0, 1),
    "walkthrough_versions": (0, 0, 0, 0, 2),  # the latest, and the one shown
    "walkthrough_progress": (0, 0, 0, 0, 1),
}
_GONE_ON: dict[str, Rows] = {
    "mcp_server_walkthroughs": (0, 0, 0, 0, 1),
    "walkthroughs": (0, 0, 0, 0, 1),
    "walkthrough_versions": (0, 0, 0, 0, 1),  # the one that the person is on
    "walkthrough_progress": (0, 1, 1, 0, 2),
    "walkthrough_progress_events": (1, 0, 0, 0, 0),
}


def _both(one: dict[str, Rows], other: dict[str, Rows]) -> dict[str, Rows]:
    none = (0, 0, 0, 0, 0)
    return {
        name: tuple(map(sum, zip(one.get(name, none), other.get(name, none), strict=True)))  # type: ignore[misc]
        for name in one | other
    }


_LOGGED: dict[str, Rows] = {"tool_calls": (1, 0, 0, 0, 0), "mcp_servers": (0, 0, 0, 0, 1)}  # the foreign key
_STORED = _both(_LOGGED, {"mcp_servers": (0, 0, 0, 0, 1)})  # before anything else
ROWS = {
    "list_walkthroughs": _WHO | _WHERE | _LOGGED,
    "select_walkthrough": _WHO | _both(_WHERE, _GONE_ON) | _STORED,
    "next_walkthrough_step": _WHO | _GONE_ON | _STORED,
    "review_walkthrough_step": _WHO | _WHERE | _LOGGED,
    "get_walkthrough_status": _WHO | _WHERE | _LOGGED,
}
# Read for each walkthrough of a server with many, by what tells of them all: itself, its assignment, its version twice.
ROWS_READ_OF_A_WALKTHROUGH = 4
TELL_OF_ALL = {"list_walkthroughs", "get_walkthrough_status"}

# The write-ahead log, without the record of the commit: 873 for the progress, its event and the call. An index more, or
# a row that moves to another page, is 70 or so each.
WAL_BYTES_OF_AN_ADVANCE = 910

# An answer has the step's text twice, as structure and as text. Beside it, at most:
ANSWER_BYTES_AROUND_A_STEP = 2_160
# For each walkthrough of a list, with a short title and description: twice as well.
ANSWER_BYTES_OF_A_WALKTHROUGH = 335
# Length, kind, Vary, X-Request-Id.
HEADER_BYTES = 103
# What an assistant reads before its user has said a word: about 4,000 tokens, and 300.
FIRST_BYTES = {"tools/list": 16_500, "server/discover": 1_250}

# Python functions, entered or resumed, by era: measured on Python 3.11 as 417 and 1,388, and a thirtieth more. The
# handshake's era takes more because the SDK works on its messages, and passes them through streams.
FUNCTION_CALLS_OF_AN_ADVANCE = {"modern": 431, "legacy": 1_434}
# Of a step that a process does not show when it first meets the version: to make its heading, and to count its bytes.
FUNCTION_CALLS_OF_A_HEADING = 2
FUNCTION_CALLS_OF_A_LISTED_WALKTHROUGH = 17
# asyncio tasks beside the request's own: none of Cairn's, and in the handshake's era three of the SDK's.
TASKS_OF_A_CALL = {"modern": 0, "legacy": 3}
# Objects that hold one another in a circle, so that the garbage collector must find them: everything stands still
# while it looks. Those that there are come from the SDK.
CYCLIC_OBJECTS_OF_A_CALL = {"modern": 0, "legacy": 10}

# What may run beside a call, or take a turn more: far less than anything done for each step or walkthrough.
_STRAY_CALLS = 5
_ID_BYTES = 20  # ids count up here, so that some are a digit longer, and each is told several times

_HOW_TO_LOOK = "`make bench ONLY=advance` tells where an advance's time goes"


@dataclass
class Answer:
    """What a client gets."""

    header_bytes: int
    body: bytes

    @property
    def result(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self.body)["result"]
        return result


class Client:
    """Somebody who calls the application as a server does that has read a request: with nothing in between."""

    def __init__(self, app: ASGIApp, host: str, token: str, era: str) -> None:
        self._app = app
        self._era = era
        self._headers = [
            (b"host", host.encode()),
            (b"authorization", f"Bearer {token}".encode()),
            (b"content-type", b"application/json"),
            (b"accept", b"application/json, text/event-stream"),
        ]

    def request(self, message: dict[str, Any]) -> Callable[[], Awaitable[Answer]]:
        """What sends this message; made before, so that only what answers it is counted."""
        message, named = modern(message) if self._era == "modern" else (message, {})
        body = json.dumps(message).encode()
        scope: Any = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/mcp",
            "raw_path": b"/mcp",
            "query_string": b"",
            "root_path": "",
            "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 1),
            "headers": [
                *self._headers,
                *((name.replace("_", "-").encode(), value.encode()) for name, value in named.items()),
            ],
            "state": {},
        }
        parts = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Any] = []

        async def receive() -> Any:
            return parts.pop() if parts else await asyncio.Future()  # the client stays connected

        async def send(message: Any) -> None:
            sent.append(message)

        async def ask() -> Answer:
            await self._app(scope, receive, send)
            start, *rest = sent
            header_bytes = sum(len(name) + len(value) + 4 for name, value in start["headers"])  # ": " and "\r\n"
            return Answer(header_bytes, b"".join(part["body"] for part in rest))

        return ask

    async def told(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The structured result of a call that succeeds."""
        result = (await self.request(call(tool, **arguments))()).result
        assert not result["isError"], result
        structured: dict[str, Any] = result["structuredContent"]
        return structured


@dataclass
class Served:
    """The whole application in this process, and a server on it that wants a token from everybody."""

    app: ASGIApp
    world: World
    server: Server

    async def client(self, era: str = "modern", email: str = "ada@example.com", server: Server | None = None) -> Client:
        server = server or self.server
        token = await self.world.identity.create_token(server.key, email)
        return Client(self.app, f"{server.slug}.localhost", token, era)


@asynccontextmanager
async def _served(owner_url: str, database: Database) -> AsyncIterator[Served]:
    async with serving_here(owner_url, database) as app:
        world = on_postgres(database)
        yield Served(app, world, await world.server(auth_mode=AuthMode.ON_CONNECT))


@pytest.fixture(autouse=True)
def _logs_as_served(owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A line for each request, in the form that a service writes it; nobody keeps it."""
    root = logging.getLogger()
    before, root.handlers = root.handlers, []  # or those of the test runner would be closed
    with open(os.devnull, "w", buffering=1) as nowhere:
        monkeypatch.setattr(sys, "stderr", nowhere)
        configure_logs()
        yield
        root.handlers = before
        root.setLevel(logging.WARNING)
        structlog.reset_defaults()


_ONE_OF_EACH: dict[str, dict[str, Any]] = {
    "list_walkthroughs": {},
    "select_walkthrough": {"walkthrough": "tour"},
    "review_walkthrough_step": {"walkthrough": "tour", "step_number": 1},
    "get_walkthrough_status": {},
}


async def _each_tool(client: Client) -> AsyncIterator[tuple[str, Callable[[], Awaitable[Answer]]]]:
    """A request to each tool by someone who is at home here: all that is loaded once in a process was."""
    lesson = await client.told("select_walkthrough", walkthrough="tour")
    advance = call("next_walkthrough_step", completed_step=lesson["step"]["handle"])
    yield "next_walkthrough_step", client.request(advance)
    for tool, arguments in _ONE_OF_EACH.items():
        yield tool, client.request(call(tool, **arguments))


# ------------------------------------------------------------------------------------------------- statements


@pytest.mark.promise("statements.constant")
@pytest.mark.parametrize("era", _ERAS)
async def test_each_tool_takes_so_many_statements(owner_url: str, era: str) -> None:
    counting = CountingDatabase(Access(owner_url, assume_role=True))
    async with _served(owner_url, counting) as served:
        await served.world.publish("a", "b", "c")
        taken = {}
        async for tool, ask in _each_tool(await served.client(era)):
            before = counting.statements
            assert not (await ask()).result["isError"]
            taken[tool] = counting.statements - before
    assert taken == STATEMENTS


async def test_eight_who_call_at_once_share_what_is_written_to_the_log(owner_url: str) -> None:
    counting = CountingDatabase(Access(owner_url, assume_role=True))
    rounds = 25
    async with _served(owner_url, counting) as served:
        await served.world.publish("a")
        people = [await served.client(email=f"p{number}@example.com") for number in range(8)]
        before = counting.statements
        for _ in range(rounds):
            for listed in await asyncio.gather(*(each.told("list_walkthroughs") for each in people)):
                assert len(listed["walkthroughs"]) == 1
    assert (counting.statements - before) / (8 * rounds) <= STATEMENTS_OF_ONE_IN_EIGHT


# ------------------------------------------------------------------------------------------------------- rows

_OTHERS = """
select exists (select from pg_stat_activity
                where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid())
"""
_TELL = "select pg_stat_force_next_flush()"
_TOUCHED = """
select coalesce(pg_partition_root(relid), relid)::regclass::text as name, sum(n_tup_ins)::int, sum(n_tup_upd)::int,
       sum(n_tup_hot_upd)::int, sum(n_tup_del)::int, sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::int
  from pg_stat_user_tables group by 1
"""


async def _until_alone(owner: asyncpg.Connection) -> None:
    """Until those who were connected to this database before have ended."""
    async with asyncio.timeout(20):
        while await owner.fetchval(_OTHERS):
            pass


class _Touched:
    """What PostgreSQL has counted for those who use `database`, which has one connection for calls.

    A connection tells of its rows when it ends, when it is asked to, or else at any time: nobody else may have one.
    """

    def __init__(self, database: Database, owner: asyncpg.Connection) -> None:
        self._database = database
        self._owner = owner

    async def by(self, ask: Callable[[], Awaitable[Answer]]) -> dict[str, Rows]:
        """The rows that a call touches, by table."""
        before = await self._counts()
        assert not (await ask()).result["isError"]
        after = await self._counts()
        counted = {
            name: tuple(now - then for now, then in zip(after[name], before[name], strict=True)) for name in after
        }
        return {name: rows for name, rows in counted.items() if any(rows)}  # type: ignore[misc]  # of five numbers

    async def _counts(self) -> dict[str, tuple[int, ...]]:
        async with self._database.hot() as connection:
            await connection.execute(_TELL)
        async with self._database.transaction(None) as rest:
            await rest.exec_driver_sql(_TELL)
        await self._owner.execute(_TELL)
        await self._owner.execute("select pg_stat_clear_snapshot()")
        return {name: tuple(counts) for name, *counts in await self._owner.fetch(_TOUCHED)}


async def test_each_tool_touches_so_many_rows_whatever_the_number_of_steps(
    owner_url: str, owner: asyncpg.Connection
) -> None:
    database = Database(Access(owner_url, assume_role=True), pool_size=1)
    for steps in (5, 500):
        await _until_alone(owner)
        async with _served(owner_url, database) as served:
            await served.world.publish(*(f"s{number}" for number in range(steps)))
            touched = _Touched(database, owner)
            rows = {tool: await touched.by(ask) async for tool, ask in _each_tool(await served.client())}
        assert rows == ROWS
        await owner.execute("delete from organizations")


async def test_a_server_with_fifty_walkthroughs_costs_no_call_more_unless_it_tells_of_them(
    owner_url: str, owner: asyncpg.Connection
) -> None:
    """Against one with a single walkthrough."""
    database = Database(Access(owner_url, assume_role=True), pool_size=1)
    count = 50
    await _until_alone(owner)
    async with _served(owner_url, database) as served:
        busy = await served.world.server(slug="busy", auth_mode=AuthMode.ON_CONNECT)
        await served.world.publish(*"abcdefg", servers=(served.server.slug, busy.slug))
        for number in range(1, count):
            await served.world.publish("a", key=f"tour-{number}", title=f"Tour {number}", servers=(busy.slug,))
        await owner.execute("analyze")  # so that plans are made for what there is
        touched = _Touched(database, owner)
        async for tool, ask in _each_tool(await served.client(server=busy)):
            rows = await touched.by(ask)
            read = sum(each[-1] for each in ROWS[tool].values()) + 1  # the foreign key looks at both servers there are
            more = ROWS_READ_OF_A_WALKTHROUGH * (count - 1) if tool in TELL_OF_ALL else 0
            assert sum(each[-1] for each in rows.values()) <= read + more, (tool, rows)
            assert {name: each[:4] for name, each in rows.items()} == {
                name: each[:4] for name, each in ROWS[tool].items()
            }
        one, fifty = await _work(await served.client()), await _work(await served.client(server=busy))
    for tool in ("select_walkthrough", "next_walkthrough_step", "review_walkthrough_step"):
        assert abs(fifty[tool].function_calls - one[tool].function_calls) <= _STRAY_CALLS, tool
        assert abs(fifty[tool].answer_bytes - one[tool].answer_bytes) <= _ID_BYTES, tool
    listed, alone = fifty["list_walkthroughs"], one["list_walkthroughs"]
    calls = FUNCTION_CALLS_OF_A_LISTED_WALKTHROUGH * (count - 1) + _STRAY_CALLS
    assert listed.function_calls - alone.function_calls <= calls
    assert listed.answer_bytes - alone.answer_bytes <= ANSWER_BYTES_OF_A_WALKTHROUGH * (count - 1)


# ------------------------------------------------------------------------------------------ write-ahead log


class WeighingDatabase(Database):
    """Has PostgreSQL weigh what each statement of a call writes: it runs, is taken back, and runs again explained."""

    wal_bytes = 0

    @asynccontextmanager
    async def hot(self) -> AsyncIterator[Any]:
        ran: list[Any] = []
        async with super().hot() as connection:
            transaction = connection.transaction()
            await transaction.start()
            with connection.query_logger(ran.append):
                yield connection
                await asyncio.sleep(0)  # the driver tells of a statement after it has answered
            await transaction.rollback()
            (query,) = ran
            explained = await connection.fetchval(f"explain (analyze, wal, format json) {query.query}", *query.args)
            self.wal_bytes += json.loads(explained)[0]["Plan"]["WAL Bytes"]


async def test_an_advance_writes_little_to_the_write_ahead_log(owner_url: str) -> None:
    database = WeighingDatabase(Access(owner_url, assume_role=True))
    steps = 12
    async with _served(owner_url, database) as served:
        await served.world.publish(*(f"s{number}" for number in range(steps)))
        client = await served.client()
        lesson = await client.told("select_walkthrough", walkthrough="tour")
        written = []
        while lesson["step"]["number"] < steps:
            before = database.wal_bytes
            lesson = await client.told("next_walkthrough_step", completed_step=lesson["step"]["handle"])
            written.append(database.wal_bytes - before)
    # Half of what is measured is there, whatever else there is: or nothing would be weighed.
    assert WAL_BYTES_OF_AN_ADVANCE / 2 < median(written) <= WAL_BYTES_OF_AN_ADVANCE


# ------------------------------------------------------------------------------------------------------ bytes


async def test_an_answer_has_its_step_twice_and_little_beside_it(owner_url: str) -> None:
    texts = {name: name[0] * 3_000 for name in ("content", "assistant_notes", "workspace_actions", "done_when")}
    tour = manuscript("one", "two")
    tour = replace(tour, steps=tuple(replace(step, **texts) for step in tour.steps))
    async with _served(owner_url, Database(Access(owner_url, assume_role=True))) as served:
        await served.world.authoring.push(
            "acme", tour, publish=PublishPolicy.KEEP, servers=[("guides", None)], by="author@example.com"
        )
        answers = {tool: await ask() async for tool, ask in _each_tool(await served.client())}
    for tool, answer in answers.items():
        text = 2 * sum(map(len, texts.values())) if "step" in answer.result["structuredContent"] else 0
        assert text < len(answer.body) <= text + ANSWER_BYTES_AROUND_A_STEP, tool
        assert answer.header_bytes <= HEADER_BYTES, tool


async def test_what_an_assistant_reads_before_its_user_says_a_word_is_short(owner_url: str) -> None:
    async with _served(owner_url, Database(Access(owner_url, assume_role=True))) as served:
        client = await served.client()
        for method, bound in FIRST_BYTES.items():
            answer = await client.request({"jsonrpc": "2.0", "id": 1, "method": method})()
            assert answer.result
            assert len(answer.body) <= bound, method


# ------------------------------------------------------------------------------------------------------- work


@dataclass
class Work:
    """What an answer takes, and how long it is."""

    function_calls: int
    answer_bytes: int


async def _watched(ask: Callable[[], Awaitable[Answer]]) -> tuple[int, Answer]:
    """How often a Python function was entered or resumed until the answer was there, and the answer."""
    count = 0

    def look(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        answer = await ask()
    finally:
        sys.setprofile(before)
    assert not answer.result["isError"], answer.result
    return count, answer


async def _work(client: Client) -> dict[str, Work]:
    """Of each tool, the least of three calls: now and then something runs that has nothing to do with one."""
    watched: dict[str, list[tuple[int, Answer]]] = {}
    for _ in range(3):
        async for tool, ask in _each_tool(client):
            watched.setdefault(tool, []).append(await _watched(ask))
    return {tool: Work(min(calls for calls, _ in each), len(each[-1][1].body)) for tool, each in watched.items()}


@pytest.mark.parametrize("era", _ERAS)
async def test_an_advance_takes_so_many_function_calls_wherever_in_a_walkthrough_it_is(
    owner_url: str, era: str
) -> None:
    counts: dict[str, list[int]] = {"short": [], "long": []}
    async with _served(owner_url, Database(Access(owner_url, assume_role=True))) as served:
        client = await served.client(era)
        for key, steps in (("short", 10), ("long", 80)):
            await served.world.publish(*(f"s{number}" for number in range(steps)), key=key, title=key)
            lesson = await client.told("select_walkthrough", walkthrough=key)
            while lesson["step"]["number"] < steps:
                ask = client.request(call("next_walkthrough_step", completed_step=lesson["step"]["handle"]))
                count, answer = await _watched(ask)
                counts[key].append(count)
                lesson = answer.result["structuredContent"]
    medians = [median(each) for each in (counts["short"], counts["long"][:9], counts["long"][-9:])]
    assert max(medians) - min(medians) <= _STRAY_CALLS, (
        f"at the beginning of a short and a long one, and at its end: {medians}"
    )
    assert max(medians) <= FUNCTION_CALLS_OF_AN_ADVANCE[era], _HOW_TO_LOOK


async def test_the_first_select_of_a_version_in_a_process_takes_next_to_nothing_for_a_step_that_it_does_not_show(
    owner_url: str,
) -> None:
    counts = {}
    async with _served(owner_url, Database(Access(owner_url, assume_role=True))) as served:
        client = await served.client()
        for steps in (1, 20, 500):  # the first alone has all that happens once in a process
            await served.world.publish(*(f"s{number}" for number in range(steps)), key=f"of-{steps}", title=f"{steps}")
            counts[steps], _ = await _watched(client.request(call("select_walkthrough", walkthrough=f"of-{steps}")))
    # More than once the driver may be told that something has come.
    assert counts[500] - counts[20] <= FUNCTION_CALLS_OF_A_HEADING * (500 - 20) + 4 * _STRAY_CALLS


@pytest.mark.parametrize("era", _ERAS)
async def test_nothing_is_left_of_a_call_and_little_for_the_garbage_collector(owner_url: str, era: str) -> None:
    calls, tasks = 200, 0

    def made(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **given: Any) -> asyncio.Task[Any]:
        nonlocal tasks
        tasks += 1
        return asyncio.Task(work, loop=loop, **given)

    async with _served(owner_url, Database(Access(owner_url, assume_role=True))) as served:
        await served.world.publish("a")
        client = await served.client(era)

        async def resume(times: int) -> None:
            """Which is read, decided, stored and logged as an advance is, and can be done again."""
            for _ in range(times):
                await client.told("select_walkthrough", walkthrough="tour")

        await resume(100)
        gc.collect()
        gc.disable()
        try:
            objects, blocks = len(gc.get_objects()), sys.getallocatedblocks()
            asyncio.get_running_loop().set_task_factory(made)
            await resume(calls)
            asyncio.get_running_loop().set_task_factory(None)
            cyclic = gc.collect()
            objects, blocks = len(gc.get_objects()) - objects, sys.getallocatedblocks() - blocks
        finally:
            gc.enable()
    # A thing for fewer than every fifth call is none that a call leaves. Blocks swing more, by half of one.
    assert blocks < calls
    assert (
        max(objects, tasks - calls * TASKS_OF_A_CALL[era], cyclic - calls * CYCLIC_OBJECTS_OF_A_CALL[era]) < calls / 5
    )
