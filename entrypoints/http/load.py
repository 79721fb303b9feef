"""How much one process takes on at once: what is beyond is refused with 503, early, so that the rest stays fast.

    a place       from when the body of a request is there to when its answer begins
    the line      in front of the places, short: who could only be answered late is refused instead
    a large body  that is not there yet: so many at a time

Where not one place is given back while somebody waits, all who have one wait for the database. Then it is not too much
that is asked of us, and whoever stands in the line goes on, to be told by a tool that it is temporarily unavailable.

A client that sends a byte a second has no place, and neither has one that does not read its answer. How many
connections there are is for entrypoints/http/connections.py, and how many calls of one person for the MCP endpoint.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from enum import Enum
from typing import Any

from litestar.types import Receive, Send

from entrypoints.http.message import Refusal

# Twice the connections to the database, so that each of these is busy while an answer is made. From two callers at once
# on, one more makes the others wait, and raises what is answered in all by a tenth at most.
_PLACES = 16
# One process answers a thousand calls a second on a core of its own, and some 250 where it shares one: the last of the
# line then waits for an eighth of a second.
_LINE = 32
# Where the core is slower or shared, this bounds the wait. With the 4.5 s that a call itself may take, an answer is
# there within 5 s.
_LINE_SECONDS = 0.45
# No tool takes as much. Whatever is smaller is bounded by the number of connections.
_LARGE_BYTES = 2**16
# With bodies of at most 1 MiB, they take as many mebibytes.
_LARGE_BODIES = 32
_RETRY_SECONDS = 1  # by then, everything that was accepted before has been answered


class Shed(Enum):
    """Why a request was refused, as it is counted."""

    LINE_FULL = "line_full"
    WAITED = "waited"
    LARGE_BODIES = "large_bodies"


class Load:
    """What one process has taken on. `sheds` counts what it has refused since it began."""

    def __init__(self, *, places: int = _PLACES, line: int = _LINE, line_seconds: float = _LINE_SECONDS) -> None:
        self.in_work = 0
        self.large_bodies = 0
        self.sheds: Counter[Shed] = Counter()
        self.started = asyncio.Event()
        """Set by the server once requests are accepted: what none of them needs at once is done from then on."""
        self.is_stopping = False
        """Whether this process is about to end. It still answers, and says on each answer that the connection ends."""
        self._places = places
        self._line_length = line
        self._line_seconds = line_seconds
        self._line: deque[asyncio.Future[bool]] = deque()
        self._given_back = 0

    @property
    def waiting(self) -> int:
        """How many requests stand in the line."""
        return len(self._line)

    async def take_place(self) -> None:
        """Waits for a place in the order of arrival, if there is one to be waited for.

        Raises:
            Refusal: 503 when there is not.
        """
        if self.in_work < self._places:
            self.in_work += 1
            return
        if len(self._line) >= self._line_length:
            raise self.refusal(Shed.LINE_FULL)
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        self._line.append(turn)
        patience = loop.call_later(self._line_seconds, self._end_of_patience, turn, self._given_back)
        try:
            has_place = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_place()
            else:
                self._line.remove(turn)
            raise
        finally:
            patience.cancel()
        if not has_place:
            raise self.refusal(Shed.WAITED)

    def give_place(self) -> None:
        """Hands a place on to whoever has waited longest."""
        self._given_back += 1
        if self._line and self.in_work <= self._places:
            self._line.popleft().set_result(True)
        else:
            self.in_work -= 1

    def take_room(self) -> None:
        """Room for one large body more.

        Raises:
            Refusal: 503 when there is none.
        """
        if self.large_bodies >= _LARGE_BODIES:
            raise self.refusal(Shed.LARGE_BODIES)
        self.large_bodies += 1

    def refusal(self, reason: Shed) -> Refusal:
        """Counts one more that is refused."""
        self.sheds[reason] += 1
        problem = f"More is asked of this service than it can answer: try again in {_RETRY_SECONDS} s."
        return Refusal(503, problem, (b"retry-after", str(_RETRY_SECONDS).encode()))

    def _end_of_patience(self, turn: asyncio.Future[bool], given_back: int) -> None:
        if turn.done():
            return
        self._line.remove(turn)
        nothing_moves = self._given_back == given_back and self.in_work < self._places + self._line_length
        self.in_work += nothing_moves
        turn.set_result(nothing_moves)


class Work:
    """One request: it has a place from `begin`, or the end of its body, to the beginning of its answer.

    Whatever handles it uses the `receive` and `send` of the work, and says its `end`.
    """

    def __init__(self, load: Load, receive: Receive, send: Send) -> None:
        self.is_read = False
        """Whether the body is there, as a whole."""
        self._load = load
        self._receive = receive
        self._send = send
        self._has_begun = False
        self._is_answered = False
        self._has_place = False
        self._size = 0
        self._has_room = False

    async def begin(self) -> None:
        """Takes a place; once. As `Load.take_place`."""
        if not self._has_begun:
            self._has_begun = True
            await self._load.take_place()
            self._has_place = True

    async def receive(self) -> Any:
        """As ASGI has it. What completes the body comes once there is a place.

        Raises:
            Refusal: 503 when there is none, or no room for the body.
        """
        message: Any = await self._receive()
        if message["type"] == "http.request" and not self.is_read and not self._is_answered:
            self._size += len(message.get("body", b""))
            self.is_read = not message.get("more_body", False)
            if self.is_read:
                self._give_room()
                await self.begin()
            elif self._size > _LARGE_BYTES and not self._has_room:
                self._load.take_room()
                self._has_room = True
        return message

    async def send(self, message: Any) -> None:
        """As ASGI has it. The place is given back as the answer begins: how fast that is read is the client's."""
        if message["type"] == "http.response.start":
            self._is_answered = True
            self._give_place()
            if self._load.is_stopping and (b"connection", b"close") not in message.get("headers", ()):
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        await self._send(message)

    def end(self) -> None:
        """Gives back whatever is left."""
        self._give_place()
        self._give_room()

    def _give_place(self) -> None:
        if self._has_place:
            self._has_place = False
            self._load.give_place()

    def _give_room(self) -> None:
        if self._has_room:
            self._has_room = False
            self._load.large_bodies -= 1
