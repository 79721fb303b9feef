"""What one process takes on at once: places, the line in front of them, and room for large bodies."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from adapters.rate_limits import MemoryRateLimits
from application.limits import Limit
from entrypoints.http.gate import Gate
from entrypoints.http.load import Load, Shed, Work
from entrypoints.http.message import Refusal
from tests.patience import PATIENCE_SECONDS
from tests.serving.conftest import call
from tests.worlds import in_memory

pytestmark = pytest.mark.promise("shedding")

_SECONDS = 0.3  # that somebody waits in the line: more than the machine does anything else between two lines of a test


async def _ended(*tasks: asyncio.Task[None]) -> list[BaseException | None]:
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.wait(tasks)
    return [task.exception() for task in tasks]


def _waits(load: Load, order: list[int], number: int) -> asyncio.Task[None]:
    async def wait() -> None:
        await load.take_place()
        order.append(number)

    return asyncio.create_task(wait())


async def test_whoever_comes_when_the_line_is_full_is_refused_at_once_and_the_line_goes_in_order() -> None:
    load, order = Load(places=2, line=3, line_seconds=60), []
    tasks = [_waits(load, order, number) for number in range(5)]
    await asyncio.sleep(0)
    assert (order, load.in_work, load.waiting) == ([0, 1], 2, 3)
    with pytest.raises(Refusal) as refused:
        await load.take_place()
    assert (refused.value.status, refused.value.headers) == (503, ((b"retry-after", b"1"),))
    assert load.sheds == {Shed.LINE_FULL: 1}
    for _ in range(3):
        load.give_place()
    assert await _ended(*tasks) == [None] * 5
    assert (order, load.in_work, load.waiting) == ([0, 1, 2, 3, 4], 2, 0)
    load.give_place()
    load.give_place()
    assert load.in_work == 0


async def test_whoever_would_be_answered_late_is_refused_and_holds_nobody_up() -> None:
    load, order = Load(places=1, line=3, line_seconds=_SECONDS), []
    await load.take_place()
    first, *late = [_waits(load, order, number) for number in range(3)]
    await asyncio.sleep(0)
    load.give_place()  # so that it is not the database that all wait for
    for error in await _ended(*late):
        assert isinstance(error, Refusal)
        assert error.status == 503
    assert await _ended(first) == [None]
    assert (order, load.in_work, load.waiting, load.sheds) == ([0], 1, 0, {Shed.WAITED: 2})
    load.give_place()
    await load.take_place()
    assert load.in_work == 1


async def test_where_nothing_moves_those_in_the_line_go_on_up_to_a_bound() -> None:
    load, order = Load(places=2, line=3, line_seconds=_SECONDS), []
    assert await _ended(*(_waits(load, order, number) for number in range(5))) == [None] * 5
    assert (order, load.in_work, load.waiting) == ([0, 1, 2, 3, 4], 5, 0)
    # Whoever comes now waits for as long, but there are enough.
    (refused,) = await _ended(_waits(load, order, 5))
    assert isinstance(refused, Refusal)
    assert load.sheds == {Shed.WAITED: 1}
    # And when it moves again, there are as many places as before.
    behind = _waits(load, order, 6)
    await asyncio.sleep(0)
    for left in (4, 3, 2, 2):
        load.give_place()
        assert load.in_work == left
    assert await _ended(behind) == [None]


async def test_a_request_that_is_cancelled_in_the_line_takes_no_place_with_it() -> None:
    load, order = Load(places=1, line=3, line_seconds=60), []
    await load.take_place()
    waiting, granted, behind = (_waits(load, order, number) for number in range(3))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    load.give_place()  # to the second, which is cancelled before it learns of it
    granted.cancel()
    assert await _ended(behind) == [None]
    assert (order, load.in_work, load.waiting) == ([2], 1, 0)


class _Client:
    """A client as ASGI shows it: what it sends, part by part, and what it got."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = [
            {"type": "http.request", "body": part, "more_body": number < len(parts)}
            for number, part in enumerate(parts, 1)
        ]
        self.got: list[Any] = []

    async def receive(self) -> Any:
        return self.parts.pop(0) if self.parts else await asyncio.Future()

    async def send(self, message: Any) -> None:
        self.got.append(message)

    def work(self, load: Load) -> Work:
        return Work(load, self.receive, self.send)


_BEGINNING: Any = {"type": "http.response.start", "status": 200, "headers": []}


async def test_a_request_has_a_place_from_the_end_of_its_body_to_the_beginning_of_its_answer() -> None:
    load = Load()
    work = _Client(b"{", b"}").work(load)
    await work.receive()
    assert (load.in_work, work.is_read) == (0, False)
    await work.receive()
    assert (load.in_work, work.is_read) == (1, True)
    await work.send(_BEGINNING)
    assert load.in_work == 0
    work.end()
    assert load.in_work == 0


async def test_a_request_that_ends_without_an_answer_gives_its_place_back() -> None:
    load = Load()
    work = _Client(b"{}").work(load)
    await work.receive()
    assert load.in_work == 1
    work.end()
    assert load.in_work == 0


async def test_what_is_still_read_after_the_answer_takes_no_place() -> None:
    load = Load(places=0, line=0)
    work = _Client(b"{}").work(load)
    await work.send(_BEGINNING)
    await work.receive()
    assert load.sheds == {}


async def test_so_many_large_bodies_are_under_way_at_a_time_and_small_ones_pass_them() -> None:
    load = Load()
    large = [_Client(b"x" * 70_000, b"x").work(load) for _ in range(32)]
    for work in large:
        await work.receive()
    one_more = _Client(b"x" * 40_000, b"x" * 40_000, b"x").work(load)
    await one_more.receive()
    with pytest.raises(Refusal) as refused:
        await one_more.receive()
    assert refused.value.status == 503
    assert load.sheds == {Shed.LARGE_BODIES: 1}
    small = _Client(b"x" * 60_000, b"").work(load)
    await small.receive()
    await small.receive()
    assert load.in_work == 1
    await large[0].receive()
    large[1].end()
    assert load.large_bodies == 30


async def test_while_the_process_is_about_to_end_each_answer_ends_its_connection() -> None:
    load, client = Load(), _Client()
    await client.work(load).send(_BEGINNING)
    load.is_stopping = True
    await client.work(load).send(_BEGINNING)
    await client.work(load).send({**_BEGINNING, "headers": [(b"connection", b"close")]})
    assert [message["headers"] for message in client.got] == [[], *[[(b"connection", b"close")]] * 2]


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/mcp", b"application/json"),
        ("POST", "/v/visitorvisitorvisitor/mcp", b"application/json"),
        ("GET", "/", b"text/html; charset=utf-8"),
        ("GET", "/.well-known/oauth-authorization-server", b"application/json"),
    ],
)
async def test_each_kind_of_place_refuses_in_its_own_form_and_the_connection_stays(
    method: str, path: str, kind: bytes
) -> None:
    world = in_memory()
    await world.server()
    nobody: Any = None
    limits = MemoryRateLimits(dict.fromkeys(Limit))
    gate = Gate(
        nobody, world.servers, world.identity, nobody, limits,
        base_domain="localhost", default_server=None, load=Load(places=0, line=0),
    )  # fmt: skip
    body = json.dumps(call("list_walkthroughs")).encode() if method == "POST" else b""
    client = _Client(body)
    headers = [(b"host", b"guides.localhost"), (b"origin", b"http://guides.localhost")]
    if body:
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope: Any = {
        "type": "http", "http_version": "1.1", "method": method, "path": path, "headers": headers,
        "query_string": b"", "client": ("127.0.0.1", 1),
    }  # fmt: skip
    await gate(scope, client.receive, client.send)
    beginning, content = client.got
    answered = dict(beginning["headers"])
    assert (beginning["status"], answered[b"retry-after"], answered[b"content-type"]) == (503, b"1", kind)
    assert b"connection" not in answered
    assert b"try again in 1 s" in content["body"]
    # What a page of another program may read, it may read when it is refused, too.
    assert (b"access-control-allow-origin" in answered) == (kind == b"application/json")
