"""Real `cairn` processes, and real MCP clients to talk to them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

PROJECT = Path(__file__).parents[1]
_START_SECONDS = 60
_STOP_SECONDS = 60
# Tests call as fast as they can, and all from one address. Those that are about limits set their own.
_NO_LIMITS = "calls_per_user=off calls_per_network=off calls_per_server=off"


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without any setting of Cairn's, with `variables`, and with no limit on calls."""
    # Nor how wide a terminal is: whoever runs tests side by side says so for all of them.
    left_out = ("CAIRN_", "COLUMNS", "LINES")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return kept | {"PYTHONPATH": str(PROJECT), "CAIRN_LIMITS": _NO_LIMITS} | variables


def cairn(
    *arguments: str, cwd: Path | None = None, stdin: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command of `cairn` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "entrypoints.cli.main", *arguments],
        cwd=cwd or PROJECT,
        env=environment(**variables),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=_START_SECONDS,
        check=False,
    )


@dataclass
class Serving:
    """A process that serves."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def kill(self) -> None:
        """kill -9, and nothing is left of it when this returns."""
        self.process.kill()
        self.process.wait(_STOP_SECONDS)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_STOP_SECONDS)


@contextmanager
def serving(
    *arguments: str, module: str = "entrypoints.cli.main", cwd: Path | None = None, **variables: str
) -> Iterator[Serving]:
    """A serving process, from the moment it says where, to the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd or PROJECT,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    server = Serving(process)
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            server.lines.append(line)
            if not server.url and (found := re.search(r"https?://\S+?/mcp", line)):
                server.url = found[0]
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        ready.wait(_START_SECONDS)
        assert server.url, f"the process did not come up:\n{server.output}"
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # without the time that SIGTERM gives a balancer
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
        reader.join(_STOP_SECONDS)


@dataclass
class Learner:
    """A person's assistant: the official client, and what it was told last."""

    client: Client

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The structured result of a call that succeeds."""
        result = await self.client.call_tool(tool, arguments)
        assert not result.is_error, result.content
        assert isinstance(result.structured_content, dict)
        return result.structured_content

    async def refused(self, tool: str, **arguments: Any) -> str:
        """The text of a call that is answered with a tool error."""
        result = await self.client.call_tool(tool, arguments)
        assert result.is_error, result.structured_content
        return text_of(result)


def text_of(result: Any) -> str:
    (content,) = result.content
    return str(content.text)


@asynccontextmanager
async def learner(
    url: str, token: str | None = None, *, era: str = "auto", host: str | None = None
) -> AsyncIterator[Learner]:
    """Connects as an unmodified MCP client would. `era` is the client's own mode: auto or legacy."""
    headers: Mapping[str, str] = {
        **({"authorization": f"Bearer {token}"} if token else {}),
        **({"host": host} if host else {}),
    }
    async with httpx2.AsyncClient(headers=headers, timeout=30) as http:  # noqa: SIM117
        async with Client(streamable_http_client(url, http_client=http), mode=era) as client:
            yield Learner(client)
