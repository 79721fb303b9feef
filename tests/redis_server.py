"""A real Redis, to be mistreated."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_START_SECONDS = 20


@dataclass
class RedisServer:
    """A redis-server of Debian's that keeps nothing."""

    binary: str
    folder: Path
    port: int
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """From nothing, and again at the same port after `kill`. Returns once it answers."""
        options = {"port": str(self.port), "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": str(self.folder)}
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self.process = subprocess.Popen([self.binary, *arguments], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert self.process.poll() is None, "redis-server ended at once"
            assert time.monotonic() < deadline, "redis-server did not come up"

    def kill(self) -> None:
        """kill -9, and nothing is left of it when this returns."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """It takes connections and answers none."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def forget(self) -> None:
        """Empties it."""
        assert self.ask("FLUSHALL") == b"+OK\r\n"

    def ask(self, command: str) -> bytes:
        """What it answers to an inline command, as it stands on the wire and as far as it has come."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=_START_SECONDS) as connection:
            connection.sendall(command.encode() + b"\r\n")
            return connection.recv(65_536)

    def _answers(self) -> bool:
        try:
            return self.ask("PING") == b"+PONG\r\n"
        except OSError:
            return False


@contextmanager
def redis_serving(folder: Path) -> Iterator[RedisServer]:
    """A Redis for as long as the block; without Debian's redis-server the test is skipped."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("there is no redis-server to count in")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = RedisServer(binary, folder, port)
    server.start()
    try:
        yield server
    finally:
        server.kill()
