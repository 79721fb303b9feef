"""The faults, each of which says how it is known that it happened."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from adapters.embedded_postgres import EmbeddedPostgres
from tests.processes import Serving
from tests.streams import send
from tests.torture.crowd import NOTE, Call, Crowd, request
from tests.torture.proxy import Proxy
from tests.torture.stepping_server import HOUR_MS

_LIFT_SECONDS = 60.0  # within which PostgreSQL is back from a crash, on a busy machine
_SLOW_CLIENTS = 8
_CLIENTS_OF_A_WORKER = 4  # at least; a worker that does not serve yet has fewer sockets


class CannotHappen(Exception):
    """The fault cannot be brought about on this machine; the message says why."""


@dataclass
class Stage:
    """What a fault is made on, and what it leaves behind: the proof that it happened."""

    postgres: EmbeddedPostgres
    folder: Path
    start_service: Callable[[], Serving]
    service: Serving
    proxy: Proxy | None
    address: tuple[str, int]
    """Where the service listens."""
    random: random.Random = field(init=False)
    crowd: Crowd = field(init=False)
    hold_seconds: float = 0.0
    began: float = 0.0
    in_flight: int = 0
    """How many calls were sent and not answered when the fault began."""
    coming_up: tuple[float, float] = (0.0, 0.0)
    """From when to when a service was started in place of another: whoever comes meanwhile waits until it serves."""
    proof: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    """Those of all crowds up to now."""

    def strike(self) -> None:
        """Called in the very moment at which the fault begins."""
        self.began = time.monotonic()
        self.in_flight = len(self.crowd.in_flight)

    async def start_another(self) -> None:
        began = time.monotonic()
        self.service = await asyncio.to_thread(self.start_service)
        self.coming_up = began, time.monotonic()

    async def hold(self, *, until_refused: int = 0) -> None:
        """Lets the fault last, and until so many calls have run into it."""
        await asyncio.sleep(self.hold_seconds)
        await self.crowd.until(
            lambda: self.crowd.refused(self.began) >= until_refused,
            f"{until_refused} calls run into the fault",
            seconds=_LIFT_SECONDS,
        )


Fault = Callable[[Stage], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Row:
    """One row of the table. Within the fault's block it holds; at its end it has been lifted."""

    name: str
    fault: Fault
    workers: int = 1
    settings: dict[str, str] = field(default_factory=dict)
    is_proxied: bool = False
    on_small_disk: bool = False
    on_stepping_clock: bool = False
    refused: int = 16
    """How many calls are to run into the fault before it is lifted; 0: service is to go on meanwhile."""
    hold_seconds: float = 0.3
    """In the short form."""
    long_seconds: float = 5.0


# -------------------------------------------------------------------------------------------------------- processes


def _stat(pid: int) -> list[str]:
    """What the kernel says of a process, from its state on (proc_pid_stat(5)); of one that is gone, nothing."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return []


def _state(pid: int) -> str | None:
    return next(iter(_stat(pid)), None)


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since the machine was; None where there is none, or only its remains."""
    return None if _state(pid) in ("Z", None) else int(_stat(pid)[19])


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _workers(pid: int) -> list[int]:
    """Those of a service's children that serve."""
    found = []
    for child in _children(pid):
        with suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def _sockets(pid: int) -> int:
    with suppress(OSError):
        return sum(str(fd.readlink()).startswith("socket:") for fd in Path(f"/proc/{pid}/fd").iterdir())
    return 0


async def _busy_workers(stage: Stage) -> dict[int, int | None]:
    """Both workers, and when they were started, once each has clients."""

    def are_busy() -> bool:
        workers = _workers(stage.service.pid)
        return len(workers) == 2 and all(_sockets(pid) > _CLIENTS_OF_A_WORKER for pid in workers)

    await stage.crowd.until(are_busy, "both workers have clients", seconds=_LIFT_SECONDS)
    return {pid: _started(pid) for pid in _workers(stage.service.pid)}


@asynccontextmanager
async def worker_killed(stage: Stage) -> AsyncIterator[None]:
    before = await _busy_workers(stage)
    victim = stage.random.choice(sorted(before))
    stage.strike()
    os.kill(victim, signal.SIGKILL)

    def is_replaced() -> bool:
        return any(pid not in before for pid in _workers(stage.service.pid))

    await stage.crowd.until(is_replaced, "another worker is started", seconds=_LIFT_SECONDS)
    (new,) = set(_workers(stage.service.pid)) - set(before)
    assert _started(victim) != before[victim]
    stage.proof.append(f"worker {victim} gone, in its place {new}, {_younger(new, before[victim])} s younger")
    yield


def _younger(pid: int, before: int | None) -> float:
    """By how many seconds a process was started after another."""
    return round(((_started(pid) or 0) - (before or 0)) / os.sysconf("SC_CLK_TCK"), 1)


@asynccontextmanager
async def service_killed(stage: Stage) -> AsyncIterator[None]:
    victim = stage.service
    stage.strike()
    victim.kill()
    yield
    await stage.start_another()
    assert victim.process.returncode == -signal.SIGKILL
    stage.proof.append(f"pid {victim.pid} killed by SIGKILL, {stage.service.pid} serves")


@asynccontextmanager
async def workers_orphaned(stage: Stage) -> AsyncIterator[None]:
    """The service is killed and started again at once, as a supervisor does it: its workers have only just noticed."""
    victim = stage.service
    orphans = await _busy_workers(stage)
    stage.strike()
    victim.kill()
    await stage.start_another()
    assert victim.process.returncode == -signal.SIGKILL

    def are_gone() -> bool:
        return all(_started(pid) != began for pid, began in orphans.items())

    await stage.crowd.until(are_gone, "its workers have ended", seconds=_LIFT_SECONDS)
    gone = " and ".join(map(str, orphans))
    stage.proof.append(f"pid {victim.pid} killed by SIGKILL, its workers {gone} gone, {stage.service.pid} serves")
    yield


@asynccontextmanager
async def postgres_killed(stage: Stage) -> AsyncIterator[None]:
    said = stage.postgres.log_file.stat().st_size
    async with _postgres_ended(stage, signal.SIGKILL):
        yield
    log = stage.postgres.log_file.read_bytes()[said:].decode(errors="replace")
    assert "was not properly shut down" in log, "PostgreSQL has not recovered from a crash"


@asynccontextmanager
async def postgres_restarted(stage: Stage) -> AsyncIterator[None]:
    async with _postgres_ended(stage, signal.SIGINT):
        yield


@asynccontextmanager
async def _postgres_ended(stage: Stage, how: signal.Signals) -> AsyncIterator[None]:
    victim = stage.postgres.pid
    assert victim is not None
    began = _started(victim)
    stage.strike()
    os.kill(victim, how)
    await stage.crowd.until(lambda: _started(victim) != began, "PostgreSQL has ended", seconds=_LIFT_SECONDS)
    yield
    assert await asyncio.to_thread(stage.postgres.ensure_running)
    new = stage.postgres.pid
    assert new is not None
    assert new != victim
    stage.proof.append(f"pid {victim} ended by {how.name}, in its place {new}, {_younger(new, began)} s younger")


@asynccontextmanager
async def postgres_paused(stage: Stage) -> AsyncIterator[None]:
    postmaster = stage.postgres.pid
    assert postmaster is not None
    processes = [postmaster, *_children(postmaster)]
    stage.strike()
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
        # One that was on its way out when it was stopped is gone, or waits for the postmaster to take note.
        states = {pid: _state(pid) for pid in processes}
        assert states[postmaster] == "T", states
        assert set(states.values()) <= {"T", "Z", None}, states
        stopped = list(states.values()).count("T")
        stage.proof.append(f"{stopped} processes in state T for {time.monotonic() - stage.began:.1f} s")
    finally:
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


# ------------------------------------------------------------------------------------------------------- connections


@asynccontextmanager
async def connections_refused(stage: Stage) -> AsyncIterator[None]:
    assert stage.proxy is not None
    stage.strike()
    stage.proxy.refuse()
    try:
        await asyncio.open_connection("127.0.0.1", stage.proxy.port)
        raise AssertionError("nobody was refused")
    except ConnectionRefusedError as refused:
        stage.proof.append(f"{errno.errorcode[refused.errno or 0]}, {stage.proxy.cuts} connections cut off")
    yield
    await stage.proxy.open()


@asynccontextmanager
async def connections_cut(stage: Stage) -> AsyncIterator[None]:
    assert stage.proxy is not None
    stage.strike()
    before = stage.proxy.cuts, stage.proxy.cuts_in_statements
    stage.proxy.cut(stage.random)
    yield
    await stage.crowd.until(
        lambda: stage.proxy is not None and stage.proxy.cuts_in_statements > before[1] + 10,
        "connections are cut in mid-statement",
        seconds=_LIFT_SECONDS,
    )
    stage.proxy.cut(None)
    cuts, within = stage.proxy.cuts - before[0], stage.proxy.cuts_in_statements - before[1]
    stage.proof.append(f"{cuts} connections cut, {within} in mid-statement")


@asynccontextmanager
async def out_of_connections(stage: Stage) -> AsyncIterator[None]:
    async with AsyncExitStack() as taken:
        stage.strike()
        probe = await asyncpg.connect(stage.postgres.dsn())
        taken.push_async_callback(probe.close)
        theirs = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'cairn'"
        count, sqlstate = 1, None
        # Whatever becomes free is taken, until the service has none left.
        while sqlstate is None or await probe.fetchval(f"select count(*) from ({theirs}) as ended"):
            try:
                taken.push_async_callback((await asyncpg.connect(stage.postgres.dsn(), timeout=5)).close)
                count += 1
                sqlstate = None
            except asyncpg.TooManyConnectionsError as full:
                sqlstate = full.sqlstate
        stage.proof.append(f"SQLSTATE {sqlstate}, {count} connections taken")
        yield


@asynccontextmanager
async def database_closed(stage: Stage) -> AsyncIterator[None]:
    """Connections are refused by PostgreSQL itself, as while a backup is restored."""
    beside = await asyncpg.connect(stage.postgres.dsn(database="template1"))
    try:
        stage.strike()
        await beside.execute("alter database postgres with allow_connections false")
        await beside.execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = 'postgres'")
        stage.proof.append(f"SQLSTATE {await _sqlstate_of(stage, 'select 1')}")
        yield
    finally:
        await beside.execute("alter database postgres with allow_connections true")
        await beside.close()


@asynccontextmanager
async def read_only(stage: Stage) -> AsyncIterator[None]:
    connection = await asyncpg.connect(stage.postgres.dsn())
    try:
        stage.strike()
        await _set_read_only(stage, connection, "on")
        probe = await asyncpg.connect(stage.postgres.dsn())
        try:
            await probe.execute("create table forbidden ()")
            raise AssertionError("a read-only server takes writes")
        except asyncpg.ReadOnlySQLTransactionError as refused:
            stage.proof.append(f"SQLSTATE {refused.sqlstate}")
        finally:
            await probe.close()
        yield
    finally:
        await _set_read_only(stage, connection, "off")
        await connection.close()


async def _set_read_only(stage: Stage, connection: asyncpg.Connection, to: str) -> None:
    await connection.execute(f"alter system set default_transaction_read_only = {to}")
    await connection.execute("select pg_reload_conf()")
    deadline = time.monotonic() + _LIFT_SECONDS
    while await connection.fetchval("show default_transaction_read_only") != to:
        assert time.monotonic() < deadline


# -------------------------------------------------------------------------------------------------------------- disk


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    """A file system of its own at `folder`, of so many mebibytes; where this account may mount none, a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={mebibytes}m,mode=755"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "cairn-torture", folder], capture_output=True, check=False
    )
    try:
        yield
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", "--lazy", folder], check=True)


@asynccontextmanager
async def disk_full(stage: Stage) -> AsyncIterator[None]:
    if not os.path.ismount(stage.postgres.data_dir):  # noqa: ASYNC240
        raise CannotHappen("this account may mount no file system that is small enough to be filled")
    ballast = stage.postgres.data_dir / "ballast"
    stage.strike()
    with open(ballast, "wb", buffering=0) as file:  # noqa: ASYNC230  # memory, a few hundred mebibytes at most
        full = _fill(file)
    while True:  # PostgreSQL finds room in its own files for a while
        sqlstate = await _sqlstate_of(
            stage, "create table ballast as select repeat('x', 1000) from generate_series(1, 2000)"
        )
        if sqlstate is not None:
            break
        with open(ballast, "ab", buffering=0) as file:  # noqa: ASYNC230
            full = _fill(file)
    stage.proof.append(f"{errno.errorcode[full]}, SQLSTATE {sqlstate}")
    try:
        yield
    finally:
        ballast.unlink()
        if await asyncio.to_thread(stage.postgres.ensure_running):
            stage.proof.append("PostgreSQL had ended")


def _fill(file: Any) -> int:
    """Writes until nothing more can be written; returns the errno."""
    for size in (2**20, 2**12):
        while True:
            try:
                file.write(bytes(size))
            except OSError as error:
                if size == 2**12:
                    return error.errno or 0
                break
    raise AssertionError("unreachable")


async def _sqlstate_of(stage: Stage, statement: str) -> str | None:
    try:
        probe = await asyncpg.connect(stage.postgres.dsn(), timeout=5)
    except (OSError, asyncpg.PostgresError) as error:
        return getattr(error, "sqlstate", None) or "of no connection"
    try:
        await probe.execute(statement)
        return None
    except (OSError, asyncpg.PostgresError) as error:
        return getattr(error, "sqlstate", None) or "of no connection"
    finally:
        with suppress(Exception):
            await probe.close()


# ----------------------------------------------------------------------------------------------- clients, and clocks


@asynccontextmanager
async def clients_vanish(stage: Stage) -> AsyncIterator[None]:
    stage.strike()
    stage.crowd.vanishing = 0.3
    yield
    vanished = stage.crowd.vanished
    await stage.crowd.until(
        lambda: set(vanished.values()) == {True, False} and len(vanished) > 40, "clients vanish", seconds=_LIFT_SECONDS
    )
    stage.crowd.vanishing = 0.0
    whole = [tag for tag, is_whole in vanished.items() if is_whole]
    connection = await asyncpg.connect(stage.postgres.dsn())
    # What was begun is finished, whoever has gone.
    finished = await connection.fetchval(
        "select count(*) from tool_calls where client_version = any($1::text[])", whole
    )
    await connection.close()
    assert finished > 0, "of the calls that were hung up on, not one was done"
    stage.proof.append(
        f"{len(vanished) - len(whole)} calls half sent, {len(whole)} sent and hung up on: {finished} done"
    )


@asynccontextmanager
async def clients_crawl(stage: Stage) -> AsyncIterator[None]:
    """Beside the others, some send a byte a second."""
    sent: list[int] = []
    ended: list[bytes] = []

    async def crawl(number: int) -> None:
        reader, writer = await asyncio.open_connection(*stage.address)
        person = stage.crowd.people[number]
        content = request(
            person, "next_walkthrough_step", {"completed_step": "x", "note": NOTE}, f"{stage.crowd.name}.slow.{number}"
        )
        try:
            # Half of them are slow with the head, half with the body.
            begins = 0 if number % 2 else content.index(b"\r\n\r\n") + 4
            send(writer, content[:begins])
            for at in range(begins, len(content)):
                send(writer, content[at : at + 1])
                sent.append(number)
                with suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        ended.append((await reader.read(100)).split(b"\r\n")[0])
                        return
        finally:
            writer.transport.abort()

    stage.strike()
    crawling = [asyncio.create_task(crawl(number)) for number in range(_SLOW_CLIENTS)]
    await stage.crowd.until(lambda: set(sent) == set(range(_SLOW_CLIENTS)), "all are slow", seconds=_LIFT_SECONDS)
    yield
    assert len(sent) > _SLOW_CLIENTS
    told = f", {len(ended)} told {ended[0].decode()}" if ended else ""
    stage.proof.append(
        f"{_SLOW_CLIENTS} clients sent {len(sent)} bytes in {time.monotonic() - stage.began:.1f} s{told}"
    )
    for task in crawling:
        task.cancel()
    await asyncio.gather(*crawling, return_exceptions=True)


@asynccontextmanager
async def clock_steps_back(stage: Stage) -> AsyncIterator[None]:
    flag = stage.folder / "clock-is-back"
    stage.strike()
    flag.touch()
    yield
    connection = await asyncpg.connect(stage.postgres.dsn())
    early = await connection.fetchval(
        "select count(*) from tool_calls where created_at < $1", time.time_ns() // 1_000_000 - HOUR_MS // 2
    )
    await connection.close()
    assert early > 0, "the clock has not stepped back"
    flag.unlink()
    stage.proof.append(f"{early} calls are dated an hour ago")


ROWS = (
    Row("worker killed", worker_killed, workers=2, refused=0),
    Row("service killed", service_killed),
    Row("service of 2 workers killed", workers_orphaned, workers=2, refused=1, hold_seconds=0, long_seconds=0),
    Row("PostgreSQL killed", postgres_killed),
    Row("PostgreSQL restarted", postgres_restarted),
    Row("PostgreSQL paused", postgres_paused, hold_seconds=6, long_seconds=20),
    Row("connections refused", connections_refused, is_proxied=True),
    Row("database closed", database_closed),
    Row("out of connections", out_of_connections, settings={"max_connections": "25"}),
    Row("read-only", read_only),
    Row("disk full", disk_full, on_small_disk=True),
    Row("connections cut", connections_cut, is_proxied=True, refused=4, hold_seconds=1.5, long_seconds=15),
    Row("clients vanish", clients_vanish, refused=0, hold_seconds=1, long_seconds=10),
    Row("clients send a byte a second", clients_crawl, refused=0, hold_seconds=3, long_seconds=15),
    Row("clock an hour back", clock_steps_back, on_stepping_clock=True, refused=0, hold_seconds=1),
)
