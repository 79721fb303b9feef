"""Running uvicorn: one process, or several behind one socket; and how they end.

    a signal              not ready from now on (`Load.is_stopping`), and each answer says that its connection ends
    2 s after             the socket is closed, once nobody has come for 0.3 s or else 0.7 s later, so that whoever
                          comes is refused and can go to another process; connections that rest, or have not
                          yet said what they want, are ended, and calls that were accepted are answered and logged
    after 8 s             whatever is stuck ends with the process, with exit status 1
    a second signal       the same at once

The 2 s are for a balancer to notice; SIGINT, as from a keyboard, does without this waiting. Docker waits 10 s before
it kills, and the embedded PostgreSQL takes some of them.

Several processes accept from one socket, so that whoever comes waits for none in particular: not for one that is stuck,
nor for the successor of one that died. By itself, whichever is awake would take all that come at once, and clients stay
for hours. So a worker that has more connections than another lets that one go first, for some milliseconds.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, NoReturn

import structlog
import uvicorn
from uvicorn.config import STARTUP_FAILURE

from domain.errors import OperatorError
from entrypoints import metrics
from entrypoints.container import Storage, serving_container
from entrypoints.http.app import application, create_app
from entrypoints.http.connections import PunctualProtocol
from entrypoints.http.load import Load
from entrypoints.logs import configure_logs
from entrypoints.settings import Settings, host_and_port

_NOTICE_SECONDS = 2.0
# For one moment nobody may be connected, though the next one is on the way: a connection that waits to be accepted when
# the socket is closed is lost.
_QUIET_SECONDS = 0.3
_LATECOMERS_SECONDS = 0.7
# A call is answered within 5 s of its arrival; this counts from the moment that none arrives any more.
_ANSWER_SECONDS = 5
_GRACE_SECONDS = 8.0
_BACKLOG = 2048
_FILES = 4096  # connections, and what else a process opens; often only 1,024 are allowed unless asked for
# For each connection that a worker has more than another. One that runs is there within a millisecond or two; where one
# is stuck, 200 connections a second are still accepted.
_AFTER_YOU_SECONDS = 0.001
_LONGEST_AFTER_YOU_SECONDS = 0.005
_NO_FILES_SECONDS = 0.1  # until some may have been closed
_ABSENT = sys.maxsize  # more connections than anybody has

_OPTIONS: dict[str, Any] = {
    # Without uvloop, a socket that was bound beforehand answers 50 ms late (no TCP_NODELAY).
    "loop": "uvloop",
    "http": PunctualProtocol,
    "ws": "none",  # or a library that happens to be installed would open a way that the gate does not keep
    "timeout_graceful_shutdown": _ANSWER_SECONDS,
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "proxy_headers": False,  # by itself, uvicorn believes whoever calls from this machine: the gate decides that
    "lifespan": "on",
}

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that listens, and how to reach it."""

    socket: socket.socket
    address: str


@contextmanager
def metrics_served(settings: Settings, *, workers: int) -> Iterator[str | None]:
    """Serves the figures where the settings say, and gives the address; None: nowhere. Workers are started within.

    Raises:
        OperatorError: as `listening`.
    """
    if settings.metrics_address is None:
        yield None
        return
    host, port = host_and_port(settings.metrics_address)
    with (
        listening(host, port, chosen_by="CAIRN_METRICS_ADDRESS") as listener,
        metrics.served(listener.socket, workers=workers),
    ):
        yield f"{listener.address}/metrics"


@contextmanager
def listening(host: str, port: int, *, chosen_by: str = "--port") -> Iterator[Listener]:
    """Listens from now on; port 0 takes a free one. Whoever connects before anything is served waits.

    `chosen_by` is where the operator chose the port.

    Raises:
        OperatorError: when the address cannot be listened on, with what to do.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(_BACKLOG)
        except OSError as error:
            problem = f"cannot listen on {host} port {port} ({error.strerror}): choose another address or port"
            if error.errno == errno.EADDRINUSE:
                problem = f"port {port} is in use: stop what listens there, or choose another with {chosen_by}"
            raise OperatorError(problem) from error
        listener.set_inheritable(True)
        yield Listener(listener, f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}")


def serve_until_stopped(
    storage: Storage,
    settings: Settings,
    listener: Listener,
    *,
    workers: int,
    on_ready: Callable[[], None],
    show_mail: Callable[[str], None] | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM. `on_ready` is called once calls are answered.

    With one worker, `show_mail` gets what would be sent by mail.

    Raises:
        OperatorError: when the workers do not come up.
    """
    configure_logs()
    _allow_files()
    if workers == 1:
        load = Load()
        config = uvicorn.Config(application(storage, settings, load, show_mail=show_mail), **_OPTIONS)
        _Server(config, load, on_ready).run(sockets=[listener.socket])
        return
    serving_container(storage.database(), settings)  # a setting that cannot be is told once, and not by each worker
    os.environ.update(settings.environment())
    _Workers(listener.socket, workers).run(on_ready)


def _allow_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Server(uvicorn.Server):
    """A uvicorn server that says when it is ready, and ends as the top of this file has it."""

    def __init__(self, config: uvicorn.Config, load: Load, on_started: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        self._load = load
        self._on_started = on_started
        self._close_at = 0.0
        self._answered = 0
        self._quiet_since = time.monotonic()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What is there now stays: the collector need not look at it again and again. Nor need it look after every few
        # hundred objects: a plain call leaves nothing to it (tests/storage/test_counts.py).
        gc.freeze()
        gc.set_threshold(10_000, 20, 50)
        if self.started:
            self._on_started()
            self._load.started.set()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not what uvicorn does: it raises the signal once more when it has ended, for whoever waits for it. To be
        # stopped is how serving ends, and what follows (the embedded server is left) has still to happen.
        if self._load.is_stopping:
            # Whoever signals a whole group of processes reaches a worker by two ways.
            if parent_process() is None:
                _end_now("it was told to stop a second time")
            return
        self._load.is_stopping = True
        self._close_at = 0.0 if sig == signal.SIGINT else time.monotonic() + _NOTICE_SECONDS
        # A thread, since what is stuck may be the event loop.
        limit = threading.Timer(_GRACE_SECONDS, _end_now, ["something did not end within the grace period"])
        limit.daemon = True
        limit.start()

    async def on_tick(self, counter: int) -> bool:
        state, now = self.server_state, time.monotonic()
        if state.connections or state.total_requests != self._answered:
            self._answered, self._quiet_since = state.total_requests, now
        is_quiet = now - self._quiet_since >= _QUIET_SECONDS
        if self._load.is_stopping and now >= self._close_at + (0 if is_quiet else _LATECOMERS_SECONDS):
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Whoever is still sending has not been accepted: they would hold up the end, and be cut off at last.
        PunctualProtocol.end_those_who_wait()
        await super().shutdown(sockets)


def _end_now(reason: str) -> NoReturn:
    _log.warning("this process ends at once", reason=reason)
    os._exit(1)


def _work(listener: socket.socket, counts: MutableSequence[int], number: int) -> None:
    """What a worker process does."""
    load = Load()
    config = uvicorn.Config(lambda: create_app(load), factory=True, **_OPTIONS)
    _Worker(config, load, listener, counts, number).run()


class _Worker(_Server):
    """One of several processes behind one socket: it accepts by itself, to leave the others their share.

    `counts`, in memory that they share, holds how many connections each has; `number` is this one's place there.
    """

    def __init__(
        self, config: uvicorn.Config, load: Load, listener: socket.socket, counts: MutableSequence[int], number: int
    ) -> None:
        super().__init__(config, load)
        self._listener = listener
        self._counts = counts
        self._number = number
        self._arriving: set[asyncio.Task[Any]] = set()
        self._pause: asyncio.TimerHandle | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        self._listener.setblocking(False)
        self._count()
        self._listen()

    async def on_tick(self, counter: int) -> bool:
        self._count()  # some may have gone
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._pause is not None:
            self._pause.cancel()
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        if self._arriving:
            await asyncio.wait(self._arriving)
        await super().shutdown()

    def _count(self) -> int:
        count = self._counts[self._number] = len(self.server_state.connections) + len(self._arriving)
        return count

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._listener, self._somebody_waits)

    def _listen_after(self, seconds: float, then: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        self._pause = loop.call_later(seconds, then)

    def _somebody_waits(self) -> None:
        ahead = self._count() - min(self._counts)
        if ahead > 0:
            self._listen_after(min(ahead * _AFTER_YOU_SECONDS, _LONGEST_AFTER_YOU_SECONDS), self._accept_and_listen)
        else:
            self._accept()

    def _accept_and_listen(self) -> None:
        self._listen()
        self._accept()

    def _accept(self) -> None:
        """Accepts one, if no other worker has."""
        try:
            accepted, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            _log.error("no connection can be accepted", problem=error.strerror)
            self._listen_after(_NO_FILES_SECONDS, self._listen)
            return
        accepted.setblocking(False)
        task = asyncio.create_task(self._take_in(accepted))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)
        self._count()

    async def _take_in(self, accepted: socket.socket) -> None:
        def protocol() -> asyncio.Protocol:
            return PunctualProtocol(self.config, self.server_state, self.lifespan.state)

        with suppress(OSError):  # whoever it was may have gone by now
            await asyncio.get_running_loop().connect_accepted_socket(protocol, accepted)


class _Workers:
    """Processes behind one socket. One that dies is replaced at once."""

    def __init__(self, listener: socket.socket, count: int) -> None:
        self._listener = listener
        self._counts = get_context("spawn").RawArray("q", [_ABSENT] * count)
        self._processes: dict[int, BaseProcess] = {}
        self._kill_at: float | None = None

    def run(self, on_ready: Callable[[], None]) -> None:
        """Returns when all have ended in good order, after a signal. `on_ready` is called once signals are taken.

        Raises:
            OperatorError: when one cannot start.
            SystemExit: when one did not end in good order.
        """
        failure: OperatorError | None = None
        is_in_order = True
        with _signals() as told:
            on_ready()  # the socket listens: what comes before the workers are up waits for them
            while self._kill_at is None or self._processes:
                if self._kill_at is None:
                    self._start_missing()
                limit = None if self._kill_at is None else max(0.0, self._kill_at - time.monotonic())
                ready = wait([told, *(process.sentinel for process in self._processes.values())], limit)
                if told in ready:
                    for _ in told.recv(16):
                        self._stop()
                elif not ready:
                    self._kill()
                for number, process in [*self._processes.items()]:
                    if process.exitcode is None:
                        continue
                    del self._processes[number]
                    self._counts[number] = _ABSENT
                    if self._kill_at is not None:
                        is_in_order = is_in_order and process.exitcode in (0, -signal.SIGTERM)
                    elif process.exitcode == STARTUP_FAILURE:
                        failure = OperatorError("a worker cannot start: what is said above tells why")
                        self._stop()
                    else:
                        _log.warning("a worker has ended and is replaced", status=process.exitcode)
        if failure is not None:
            raise failure
        if not is_in_order:
            raise SystemExit(1)

    def _start_missing(self) -> None:
        for number in {*range(len(self._counts))} - self._processes.keys():
            process = get_context("spawn").Process(target=_work, args=(self._listener, self._counts, number))
            process.start()
            self._processes[number] = process

    def _stop(self) -> None:
        if self._kill_at is not None:
            self._kill()
            return
        # Their own limit comes first; this one is for those that do nothing at all any more.
        self._kill_at = time.monotonic() + _GRACE_SECONDS + 0.5
        # The socket refuses whoever comes once the last worker has closed it.
        self._listener.close()
        for process in self._processes.values():
            if process.pid is not None:
                with suppress(ProcessLookupError):
                    # Also where it was SIGINT: one that is just starting would fail by that. From a keyboard, it
                    # reaches the workers by itself.
                    os.kill(process.pid, signal.SIGTERM)

    def _kill(self) -> None:
        for process in self._processes.values():
            process.kill()


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket from which the numbers of the signals that come are read."""
    told, tells = socket.socketpair()
    with told, tells:
        tells.setblocking(False)
        before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
        signal.set_wakeup_fd(tells.fileno())
        try:
            yield told
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
