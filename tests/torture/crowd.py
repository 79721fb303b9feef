"""Thirty-two people's clients, which follow their handles honestly and keep a record of all that they were told.

Half of them speak 2025-11-25 and half 2026-07-28, each on a connection that stays open. Whoever is told
`temporarily_unavailable`, or loses the connection, makes the same call again. Each try has a tag of its own, which the
call log keeps as the client's version: so a call can be found there.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.streams import send

LEGACY, MODERN = "2025-11-25", "2026-07-28"
NOTE = "note-of-somebodys-own"
"""What every note begins with: it is to be in no log."""
ANSWER_SECONDS = 5.0
_HANG_SECONDS = 60.0  # by then it is one, and the client gives up
# Between two tries. More patience would hide how long recovery takes; with less, those who wait take the time of the
# processor that what they wait for needs.
_PAUSE_SECONDS = 0.05
UNANSWERED = ("temporarily_unavailable", "503")
"""Besides no answer at all: with these the call may have been done, and is in no log."""


@dataclass(frozen=True)
class Person:
    """Somebody with a client: where, as whom, and in which era. Visitors have an address instead of a token."""

    name: str
    host: str
    path: str
    token: str | None
    revision: str


@dataclass
class Call:
    """One try, as its client knows it. `told`: a status, an error's code or an HTTP status; None without an answer."""

    tag: str
    person: Person
    tool: str
    handle: str | None
    sent: float
    number: int | None = None
    """The number of the step whose handle it is."""
    answered: float | None = None
    told: str | None = None
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def is_answered(self) -> bool:
        return self.told is not None and self.told not in UNANSWERED

    @property
    def is_acknowledged(self) -> bool:
        """Whether it says that the step is done with: by this call, or by an earlier one of the same handle."""
        return self.handle is not None and self.told in ("advanced", "completed", "repeated")


@dataclass
class Crowd:
    """All clients at one service, and their record."""

    people: Sequence[Person]
    address: tuple[str, int]
    seed: int
    name: str = "crowd"
    """What its calls' tags begin with: it tells them from those of crowds before it."""
    calls: list[Call] = field(default_factory=list)
    in_flight: set[str] = field(default_factory=set)
    """Tags of the calls that are sent and not answered."""
    acknowledged: dict[str, list[float]] = field(default_factory=dict)
    """By person: when an advance of theirs was acknowledged."""
    surprises: list[str] = field(default_factory=list)
    """What no honest client should ever be told."""
    vanishing: float = 0.0
    """How likely a client hangs up on its call; as often before the whole of it is sent as after."""
    vanished: dict[str, bool] = field(default_factory=dict)
    """Tags of the calls that were hung up on, and whether they were sent as a whole."""
    is_over: bool = False

    async def learn(self) -> None:
        """Until `is_over`."""
        async with asyncio.TaskGroup() as group:
            for number, person in enumerate(self.people):
                group.create_task(_Client(self, person, random.Random(f"{self.seed}-{number}")).learn())

    def acknowledgements(self, since: float = 0.0) -> list[float]:
        return sorted(at for times in self.acknowledged.values() for at in times if at >= since)

    def refused(self, since: float) -> int:
        """How many calls got no answer, or one that says to try again."""
        return sum(call.sent >= since and call.answered is not None and not call.is_answered for call in self.calls)

    async def until(self, condition: Callable[[], bool], what: str, *, seconds: float) -> None:
        """Waits for something that the clients bring about.

        Raises:
            AssertionError: when it does not come within so many seconds.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"in {seconds} s it did not come to this: {what}"
            await asyncio.sleep(0.005)

    async def until_everyone_advances(self, since: float, times: int, *, seconds: float) -> None:
        def have_all() -> bool:
            return all(
                sum(at >= since for at in self.acknowledged.get(person.name, ())) >= times for person in self.people
            )

        await self.until(have_all, f"every one of {len(self.people)} clients advances {times}×", seconds=seconds)


class _HungUp(Exception):
    pass


@dataclass
class _Client:
    crowd: Crowd
    person: Person
    random: random.Random
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    tries: int = 0

    async def learn(self) -> None:
        """Takes the walkthrough again and again."""
        step: dict[str, Any] | None = None
        is_first = True
        while not self.crowd.is_over:
            if self.random.random() < 0.05:
                await self._ask("list_walkthroughs")
            if self.random.random() < 0.05 and self.streams is not None:
                self.streams[1].close()
                self.streams = None
            if step is None:
                told = await self._ask("select_walkthrough", walkthrough="tour", restart=not is_first)
                is_first = False
            else:
                told = await self._ask(
                    "next_walkthrough_step",
                    step["number"],
                    completed_step=step["handle"],
                    outcome=self.random.choice(["done", "done", "done", "skipped"]),
                    note=f"{NOTE} {self.random.random()}",
                )
            if told is None:
                break  # it is over
            after = told.result["step"]
            if step is not None:
                self._look_at(told, step["number"], after and after["number"], told.result["progress"]["total_steps"])
            step = after
        if self.streams is not None:
            self.streams[1].close()

    def _look_at(self, told: Call, before: int, after: int | None, total: int) -> None:
        """One step on from the one that the handle named: not none, and not two."""
        if after != (None if before == total else before + 1):
            self.crowd.surprises.append(f"{told.tag} went from step {before} to {after}")

    async def _ask(self, tool: str, number: int | None = None, **arguments: Any) -> Call | None:
        """The answer to a call that is made until there is one. None where it is over before."""
        is_repeated = False
        while not self.crowd.is_over:
            self.tries += 1
            call = Call(
                f"{self.crowd.name}.{self.person.name}.{self.tries}",
                *(self.person, tool, arguments.get("completed_step"), time.monotonic(), number),
            )
            self.crowd.calls.append(call)
            try:
                async with asyncio.timeout(_HANG_SECONDS):
                    await self._send(call, arguments)
            except _HungUp:
                pass
            except TimeoutError:
                call.answered = time.monotonic()
                self.crowd.surprises.append(f"{call.tag} hung")
            except (OSError, asyncio.IncompleteReadError):
                call.answered = time.monotonic()  # it was told at once that there will be none
            finally:
                self.crowd.in_flight.discard(call.tag)
                if call.told is None and self.streams is not None:
                    self.streams[1].transport.abort()
                    self.streams = None
            if call.is_answered:
                if call.is_acknowledged and call.answered is not None:
                    self.crowd.acknowledged.setdefault(self.person.name, []).append(call.answered)
                if not call.result or (call.told == "repeated" and not is_repeated):
                    self.crowd.surprises.append(f"{call.tag} {tool} was told {call.told}")
                if not call.result:
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                return call
            is_repeated = True
            await asyncio.sleep(_PAUSE_SECONDS)
        return None

    async def _send(self, call: Call, arguments: dict[str, Any]) -> None:
        if self.streams is None:
            self.streams = await asyncio.open_connection(*self.crowd.address)
            self.streams[1].get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader, writer = self.streams
        content = request(self.person, call.tool, arguments, call.tag)
        call.sent = time.monotonic()
        self.crowd.in_flight.add(call.tag)
        if self.random.random() < self.crowd.vanishing:
            is_whole = self.random.random() < 0.5
            send(writer, content if is_whole else content[: self.random.randrange(1, len(content))])
            await writer.drain()
            self.crowd.vanished[call.tag] = is_whole
            raise _HungUp
        send(writer, content)
        head = await reader.readuntil(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        call.answered = time.monotonic()
        call.told, call.result = _told(int(status.split()[1]), body)
        if headers.get("connection") == "close":
            writer.close()
            self.streams = None


def _told(status: int, body: bytes) -> tuple[str, dict[str, Any]]:
    """What an answer says, in a word; and the structured result of one that is no error."""
    answer = json.loads(body) if body else {}
    if status == 503 and answer.get("error", {}).get("message", "").startswith("More is asked of this service"):
        return "503", {}  # shed; while the database is away a tool answers, and no other 503 is to come
    if "error" in answer and "result" not in answer:
        return f"{status} {answer['error']}", {}
    if status != 200:
        return str(status), {}
    result = answer["result"]
    if result.get("isError"):
        return result["content"][0]["text"].partition(":")[0], {}
    return result["structuredContent"].get("status", "listed"), result["structuredContent"]


def request(person: Person, tool: str, arguments: dict[str, Any], tag: str) -> bytes:
    """A tool call as this person's client sends it."""
    params: dict[str, Any] = {"name": tool, "arguments": arguments}
    headers = [
        f"POST {person.path} HTTP/1.1",
        f"host: {person.host}",
        "content-type: application/json",
        "accept: application/json, text/event-stream",
        f"mcp-protocol-version: {person.revision}",
        # Where the era lets clients name themselves in each call, this is not what is logged.
        f"user-agent: torture/{tag if person.revision == LEGACY else 'unknown'}",
    ]
    if person.token is not None:
        headers.append(f"authorization: Bearer {person.token}")
    if person.revision == MODERN:
        params["_meta"] = {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientInfo": {"name": "torture", "version": tag},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        headers += ["mcp-method: tools/call", f"mcp-name: {tool}"]
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
    return "\r\n".join([*headers, f"content-length: {len(body)}", "", ""]).encode() + body
