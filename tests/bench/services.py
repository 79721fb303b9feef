"""The processes that are measured: Cairn on a database, and what it is compared with."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.bench.clients import Record, Task, unexpected
from tests.bench.machine import Unfair, children, cores
from tests.processes import PROJECT, environment

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
# What is counted in them is counted, and nobody is refused.
_WIDE_LIMITS = " ".join(f"calls_per_{who}=999999999/60" for who in ("user", "network", "server"))
_FASTMCP = PROJECT / ".venv" / "bench"


@dataclass(frozen=True)
class Service:
    """A process that answers on a port of the loopback address."""

    process: subprocess.Popen[bytes]
    port: int
    seconds: float
    """From its start until it said that it is ready."""

    @property
    def pids(self) -> Sequence[int]:
        """All its processes."""
        return [self.process.pid, *children(self.process.pid)]


@contextmanager
def cairn(
    database_url: str,
    folder: Path,
    *,
    workers: int = 1,
    core: int | None = None,
    program: Sequence[str] = ("-m", "entrypoints.cli.main"),
) -> Iterator[Service]:
    """`cairn serve` on a database, with its log in a file, as an operator runs it; or another program that does so."""
    arguments = [*program, "serve", "--port", "0", "--workers", str(workers)]
    variables = environment(CAIRN_DATABASE_URL=database_url, CAIRN_LIMITS=_WIDE_LIMITS)
    with started([sys.executable, *arguments], variables, r"https?://[^/\s]+:(\d+)/mcp", folder, core) as service:
        yield service


@contextmanager
def no_op(kind: str, folder: Path, *, core: int) -> Iterator[Service]:
    """A server with a tool that does nothing: `sdk` or `fastmcp`.

    Raises:
        Unfair: when FastMCP is not installed, or it does not come up.
    """
    command = [sys.executable, "-m", "tests.bench.peers", kind]
    if kind == "fastmcp":
        if not (_FASTMCP / "installed").exists():  # made last: an interpreter is there also where pip failed
            raise Unfair("FastMCP is not installed: make .venv/bench/installed")
        command = [str(_FASTMCP / "bin" / "python"), str(PROJECT / "tests" / "bench" / "peers.py"), kind]
    with ExitStack() as stack:
        try:
            service = stack.enter_context(started(command, environment(), r"(\d+)", folder, core))
        except RuntimeError as error:
            raise Unfair(str(error)) from error
        yield service


@contextmanager
def started(
    command: Sequence[str], variables: dict[str, str], ready: str, folder: Path, core: int | None
) -> Iterator[Service]:
    """A process, from the moment it says its port: the group of `ready`. Its core is its own from the beginning.

    Raises:
        RuntimeError: when it ends instead, or says nothing for too long.
    """
    if core is not None:
        command = ["taskset", "-c", str(core), *command]
    out, log = folder / "out", folder / "log"
    began = time.perf_counter()
    with out.open("wb") as stdout, log.open("ab") as stderr:
        process = subprocess.Popen(command, cwd=PROJECT, env=variables, stdout=stdout, stderr=stderr)
    try:
        while not (found := re.search(ready + r".*\n", out.read_text())):
            if process.poll() is not None or time.perf_counter() - began > _START_SECONDS:
                raise RuntimeError(f"{' '.join(command)} did not come up: {log.read_text()[-200:]}")
            time.sleep(0.002)
        yield Service(process, int(found[1]), time.perf_counter() - began)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ask(task: Task) -> Record:
    """Has a process of its own do the task.

    Raises:
        RuntimeError: when a call was not answered as it should be.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.clients"],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        input=msgspec.json.encode(task),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr.decode()[-2_000:]}")
    record = msgspec.json.decode(done.stdout, type=Record)
    if wrong := unexpected(task.kind, record.told.keys()):
        raise RuntimeError(f"{task.kind} was answered: {', '.join(sorted(wrong))}")
    return record


def other_core() -> int:
    """Where those who ask run, and PostgreSQL."""
    return cores()[1]
