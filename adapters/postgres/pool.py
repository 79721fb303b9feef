"""Connections for the hot statements, handed from one caller to the next without a word to the server.

asyncpg's own pool makes a task and three timers for each statement, and resets what was never set: that takes twice as
long as the statement itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

import asyncpg

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# What lies between may forget a connection that rests, and not say so. Common firewalls do from 350 s on.
_REST_SECONDS = 300.0
# For a statement that was given up to be cancelled; its connection is thrown away then.
_CLOSE_SECONDS = 0.2


class ConnectionPool:
    """At most `size` connections, made by `connect` as they are needed.

    Whoever finds none free waits in line, and is served in the order of arrival. Of the free ones the last used is
    taken first, so that those that are not needed grow old, and go.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], size: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.size = size
        self._connect = connect
        self._now = now
        self._taken = 0  # places: of connections that are lent out, and of those that are being made
        self._making = 0
        self._free: deque[tuple[Connection, float]] = deque()  # and since when; the last used is last
        self._line: deque[asyncio.Future[Connection | None]] = deque()
        self._is_closed = False

    @property
    def in_use(self) -> int:
        """How many connections are lent out."""
        return self._taken - self._making

    @property
    def free(self) -> int:
        """How many connections wait to be used."""
        return len(self._free)

    async def take(self, timeout_seconds: float) -> Connection:
        """A connection, which is to be given back by `give_back` or `throw_away`.

        Raises:
            TimeoutError: when none came free, or could be made, in time.
            OSError, asyncpg.PostgresError: when one has to be made and cannot.
            asyncpg.InterfaceError: when the pool is closed.
        """
        if self._is_closed:
            raise asyncpg.InterfaceError("the pool is closed")
        self._end_rested()
        while self._free:
            connection, _ = self._free.pop()
            if not connection.is_closed():
                self._taken += 1
                return connection
            connection.terminate()  # so that asyncpg forgets it, too
        async with asyncio.timeout(timeout_seconds):
            return await self._made_or_handed_on()

    async def _made_or_handed_on(self) -> Connection:
        if self._taken < self.size:
            self._taken += 1
            return await self._made()
        turn: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            handed_on = await turn
        except BaseException:
            if turn.done() and not turn.cancelled():  # it came in the very moment of giving up
                self._pass_on(turn.result())
            raise
        if handed_on is None:
            return await self._made()
        if handed_on.is_closed():  # on the way from hand to hand
            handed_on.terminate()
            return await self._made()
        return handed_on

    def give_back(self, connection: Connection) -> None:
        """For the next. Whatever was begun on it has ended."""
        self._pass_on(connection)

    async def throw_away(self, connection: Connection) -> None:
        """In place of `give_back`, where a statement may still be under way: it is cancelled."""
        try:
            with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=_CLOSE_SECONDS)
        finally:
            self._pass_on(None)

    async def close(self) -> None:
        """Closes those that are free; those that are lent out, as they come back."""
        self._is_closed = True
        while self._free:
            connection, _ = self._free.pop()
            with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=_CLOSE_SECONDS)

    async def _made(self) -> Connection:
        """A new connection, in a place that is counted already."""
        self._making += 1
        try:
            if self._is_closed:
                raise asyncpg.InterfaceError("the pool is closed")
            return await self._connect()
        except BaseException:
            self._pass_on(None)
            raise
        finally:
            self._making -= 1

    def _pass_on(self, connection: Connection | None) -> None:
        """A connection that can still be used, or else a place for a new one, to whoever is first in line."""
        if connection is not None and (connection.is_closed() or self._is_closed):
            connection.terminate()
            connection = None
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(connection)
                return
        self._taken -= 1
        if connection is not None:
            self._free.append((connection, self._now()))
        self._end_rested()

    def _end_rested(self) -> None:
        """Ends those that have rested for too long: when one is given back, and before any is lent again."""
        while self._free and self._now() - self._free[0][1] > _REST_SECONDS:
            self._free.popleft()[0].terminate()
