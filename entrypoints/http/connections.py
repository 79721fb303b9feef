"""Connections: how many there are, and how long one may keep the service waiting."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import ClassVar

from h11 import LocalProtocolError
from uvicorn.protocols.http.h11_impl import H11Protocol

_UNHEARD = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class PunctualProtocol(H11Protocol):
    """HTTP/1.1 that ends a connection whose next request has begun, or is to begin it, and does not get past its head;
    and one whose client does not take its answers.

    Without an end, a few connections that send nothing more, or read nothing more, take every place there is. How long
    a body may take is the gate's to say, and how long a connection may rest between requests is uvicorn's.

    Where there are more than `most`, the connection that has kept the service waiting longest makes room for the new
    one: whoever comes is heard, however many others have come to say nothing.
    """

    head_seconds: ClassVar[float] = 10.0  # the slowest line has it there in one
    # Half a megabyte in this time is what the slowest line has, and few answers are longer than a tenth.
    take_seconds: ClassVar[float] = 30.0
    # With 64 KiB unread on each, they take half as much memory as the process itself. With 200 calls a second, each on
    # a connection of its own, this many are kept for the five seconds that one may rest.
    most: ClassVar[int] = 1_000
    # All of this process that wait for their clients, in the order in which they began to.
    _waiting: ClassVar[dict[PunctualProtocol, None]] = {}
    _due: asyncio.TimerHandle | None = None
    _taken_by: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._wait_for_head()
        if len(self.connections) > self.most:
            next(iter(self._waiting)).make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel()
        elif self._due is None:
            self._wait_for_head()
        self._join_or_leave_those_who_wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._wait_for_reader()
        self._join_or_leave_those_who_wait()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._wait_for_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._waiting.setdefault(self)
        self._wait_for_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._taken_by is not None and not self.transport.is_closing():
            self._taken_by.cancel()
            self._taken_by = None
        self._join_or_leave_those_who_wait()

    def send_400_response(self, msg: str) -> None:
        # uvicorn does not ask whether an answer has begun, or whether it may have a body: one to HEAD has none.
        with suppress(LocalProtocolError):
            super().send_400_response(msg)
        self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        if self._taken_by is not None:
            self._taken_by.cancel()
        self._waiting.pop(self, None)
        super().connection_lost(exc)

    @classmethod
    def end_those_who_wait(cls) -> None:
        """Ends every connection of this process that waits for its client."""
        for connection in list(cls._waiting):
            connection.make_room()

    def make_room(self) -> None:
        """Ends the connection for others' sake, and says so where something may have been asked."""
        del self._waiting[self]
        if self._taken_by is not None:
            self.transport.abort()
        elif not self.transport.is_closing():
            is_resting = self._due is None and self.cycle.response_complete
            if not is_resting:
                self.transport.write(_UNHEARD)
            self._close()

    def _join_or_leave_those_who_wait(self) -> None:
        """A request that is whole is ours to answer; before that, and from one to the next, it is for the client."""
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body or self._taken_by is not None:
            self._waiting.setdefault(self)
        else:
            self._waiting.pop(self, None)

    def _wait_for_head(self) -> None:
        self._due = self.loop.call_later(self.head_seconds, self._give_up)
        self._waiting.setdefault(self)

    def _cancel(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            # RFC 9110 section 15.5.9
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self._close()

    def _close(self) -> None:
        self.transport.close()
        self._wait_for_reader()

    def _wait_for_reader(self) -> None:
        # A transport that is closed waits, for as long as it takes, for what it still holds to be taken.
        if self._taken_by is None:
            self._taken_by = self.loop.call_later(self.take_seconds, self.transport.abort)
