"""What Cairn counts, each figure once, and how Prometheus reads it.

No label has more values than the code has: no host, path, organisation or person. A tool that is not in the table is
`other`.

Operators' figures are no page of the public service: a proxy that hands everything on would hand them to everybody, and
its own address, by which the service sees all of them come, may be this machine's. So they are served on an address
of their own, and nowhere unless the operator names one.

Several workers count in one directory, as prometheus-client has it: a figure is the sum over all of them, and what a
worker counted stays when it dies. What is taken at times (`sampled`) is at most a second old.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, MetricsHandler, disable_created_metrics
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from application.limits import Limit
from application.ports import RateLimiter
from domain.errors import TooManyRequests

# Where prometheus-client looks, as it is imported, for the directory in which several processes count.
DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
_SAMPLE_SECONDS = 1.0
_READERS = 8  # at a time: of those who are meant to read, there are one or two
_READER_SECONDS = 5.0  # for all of a connection, that asks one line: whoever reads figures is near
# An advance takes 1 ms, and whatever is not answered within 5 s is given up.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

_log = structlog.get_logger(__name__)

disable_created_metrics()  # type: ignore[no-untyped-call]  # has no types
_REGISTRY = CollectorRegistry()

tool_calls = Counter("cairn_tool_calls", "Tool calls answered.", ["tool", "outcome"], registry=_REGISTRY)
tool_call_seconds = Histogram(
    "cairn_tool_call_seconds",
    "From the gate to the answer, the row in the call log included.",
    ["tool"],
    buckets=_SECONDS,
    registry=_REGISTRY,
)
http_requests = Counter("cairn_http_requests", "HTTP requests answered.", ["kind", "status"], registry=_REGISTRY)
http_request_seconds = Histogram(
    "cairn_http_request_seconds", "From the head to the answer.", ["kind"], buckets=_SECONDS, registry=_REGISTRY
)
http_requests_in_flight = Gauge(
    "cairn_http_requests_in_flight", "Requests begun.", registry=_REGISTRY, multiprocess_mode="livesum"
)
pool_connections = Gauge(
    "cairn_pool_connections",
    "Connections to the database.",
    ["pool", "state"],
    registry=_REGISTRY,
    multiprocess_mode="livesum",
)
call_log_waiting = Gauge(
    "cairn_call_log_waiting",
    "Calls under way, until they are recorded.",
    registry=_REGISTRY,
    multiprocess_mode="livesum",
)
call_log_rows = Counter(
    "cairn_call_log_rows",
    "Rows written of calls that changed nothing; others are written with that.",
    registry=_REGISTRY,
)
call_log_batches = Counter("cairn_call_log_batches", "Statements that wrote them.", registry=_REGISTRY)
call_log_failures = Counter(
    "cairn_call_log_failures", "Calls that changed nothing and could not be recorded.", registry=_REGISTRY
)
sign_ins = Counter("cairn_sign_ins", "What came of sign-ins.", ["outcome"], registry=_REGISTRY)
limited = Counter("cairn_limited", "Requests beyond a rate limit.", ["limit"], registry=_REGISTRY)
sheds = Counter("cairn_sheds", "Requests beyond capacity.", ["reason"], registry=_REGISTRY)
build_info = Gauge("cairn_build_info", "This release.", ["version"], registry=_REGISTRY, multiprocess_mode="max")
# As prometheus-client names them for one process; of several it has none.
_cpu_seconds = Counter("process_cpu_seconds", "Processor time spent.", registry=_REGISTRY)
_memory_bytes = Gauge("process_resident_memory_bytes", "Memory held.", registry=_REGISTRY, multiprocess_mode="livesum")
_open_files = Gauge("process_open_fds", "Open file descriptors.", registry=_REGISTRY, multiprocess_mode="livesum")
_start_time = Gauge(
    "process_start_time_seconds", "When the oldest process began.", registry=_REGISTRY, multiprocess_mode="livemin"
)
_start_time.set(time.time())  # now: of several processes the least counts, and a worker that starts would count as 0


class CountedLimits:
    """A `RateLimiter` that counts whom it refuses."""

    def __init__(self, limits: RateLimiter) -> None:
        self._limits = limits

    async def hit(self, limit: Limit, *who: str) -> None:
        """See the port."""
        try:
            await self._limits.hit(limit, *who)
        except TooManyRequests:
            limited.labels(limit.label).inc()
            raise


class Growth:
    """Adds what a count kept elsewhere has grown by to a counter."""

    def __init__(self, counter: Counter, count: Callable[[], float]) -> None:
        self._counter = counter
        self._count = count
        self._before = 0.0

    def take(self) -> None:
        """Adds what has come since the last time."""
        now = self._count()
        self._counter.inc(now - self._before)
        self._before = now


async def sampled(take: Callable[[], None]) -> None:
    """Takes the figures that others keep, again and again until it is cancelled, and then once more."""
    build_info.labels(version("cairn")).set(1)
    cpu = Growth(_cpu_seconds, time.process_time)
    try:
        while True:
            take()
            cpu.take()
            _take_process()
            await asyncio.sleep(_SAMPLE_SECONDS)
    finally:
        take()
        cpu.take()


def _take_process() -> None:
    """What Linux tells; elsewhere these stay 0."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
        _open_files.set(sum(1 for _ in Path("/proc/self/fd").iterdir()))
        _memory_bytes.set(pages * os.sysconf("SC_PAGE_SIZE"))
    except OSError:
        return


@contextmanager
def served(listener: socket.socket, *, workers: int) -> Iterator[None]:
    """Serves the figures at `/metrics` of a socket that listens: this process's own, or those of all its workers.

    Workers have to be started within. Of several who read at a time each takes a thread: beyond 8, a connection is
    closed at once, and none lasts longer than 5 s, however slowly it asks.
    """
    registry, directory = _REGISTRY, None
    if workers > 1:
        directory = _fresh_directory(listener.getsockname()[1])
        os.environ[DIRECTORY] = str(directory)
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(directory))  # type: ignore[no-untyped-call]  # has no types

    class Handler(MetricsHandler):
        def do_GET(self) -> None:  # noqa: N802  # as http.server has it
            if self.path != "/metrics":
                self.send_error(404)
                return
            if directory is not None:
                _forget_the_dead(directory)
            super().do_GET()

    Handler.registry = registry
    server = _FewReaders(listener, Handler)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


class _FewReaders(ThreadingHTTPServer):
    """Serves a few connections at a time on a socket that listens, each for a few seconds."""

    def __init__(self, listener: socket.socket, handler: type[MetricsHandler]) -> None:
        super().__init__(("", 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self._changes = threading.Lock()
        self._began: dict[Any, float] = {}

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is a place for it, which it has from now on."""
        with self._changes:
            if len(self._began) >= _READERS:
                return False
            self._began[request] = time.monotonic()
            return True

    def service_actions(self) -> None:
        """Called twice a second, and after each connection that comes: ends those that have had their time."""
        now = time.monotonic()
        with self._changes:  # none is closed meanwhile, so that its number is not another's
            for request, began in self._began.items():
                if now - began >= _READER_SECONDS:
                    with suppress(OSError):
                        request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        """Its place is another's."""
        with self._changes:
            self._began.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Not what http.server does: it prints who read. That somebody has gone, or was ended, is no error."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            _log.error("the figures could not be told", exc_info=error)


def _fresh_directory(port: int) -> Path:
    """An empty directory for the workers' counts, in memory where that can be: no full disk stops them there.

    Whoever has the port has the directory, so that what a killed service left is found and removed.
    """
    memory = Path("/dev/shm")  # noqa: S108  # the name has the user in it, and the directory is made anew
    root = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    directory = root / f"cairn-metrics-{os.getuid()}-{port}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    return directory


def _forget_the_dead(directory: Path) -> None:
    """Of a worker that is gone, what it held is not held any more; what it counted still counts."""
    for file in directory.glob("gauge_live*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]  # has no types
