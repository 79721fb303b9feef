"""Several workers behind one socket."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn

from entrypoints.cli.serving import _Worker
from entrypoints.http.connections import PunctualProtocol
from entrypoints.http.load import Load
from tests.patience import PATIENCE_SECONDS
from tests.processes import Serving, serving
from tests.serving.raw import Connection

_ALIVE = b"GET /livez HTTP/1.1\r\nhost: any\r\n\r\n"
_AT_ONCE = 32


@asynccontextmanager
async def _comers(service: Serving) -> AsyncIterator[list[Connection]]:
    """Connections to a service, which are closed at the end."""
    opened: list[Connection] = []
    try:
        yield opened
    finally:
        for connection in opened:
            connection.writer.close()


async def _come(service: Serving, opened: list[Connection], times: int = 1) -> None:
    """So many connect at once, are answered, and stay."""

    async def one() -> None:
        address = urlsplit(service.url)
        opened.append(connection := Connection(*await asyncio.open_connection(address.hostname, address.port)))
        await connection.send(_ALIVE)
        assert (await connection.reply()).status == 200

    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(*(one() for _ in range(times)))


def _served(service: Serving) -> Counter[int]:
    """By a worker's pid, how many of its connections come in at the service's port, as the kernel has it."""
    port = urlsplit(service.url).port
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    is_established = "01"
    ours = {row[9] for row in table if row[3] == is_established and int(row[1].split(":")[1], 16) == port}
    served: Counter[int] = Counter()
    for pid in Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split():
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # it has been closed meanwhile
                served[int(pid)] += str(file.readlink()).removeprefix("socket:[").removesuffix("]") in ours
    return +served


@pytest.mark.promise("serve.workers")
async def test_of_many_who_come_at_once_each_worker_takes_its_share_and_a_stuck_one_holds_up_nobody(
    owner_url: str,
) -> None:
    with serving("serve", "--workers", "2", "--port", "0", CAIRN_DATABASE_URL=owner_url) as service:
        async with _comers(service) as opened:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while len(_served(service)) < 2:  # the first to be up takes whoever has come before the second is
                    await _come(service, opened)
                    await asyncio.sleep(0.02)
            await _come(service, opened, _AT_ONCE)
            served = _served(service)
            print(f"\n{served}")
            assert served.total() >= _AT_ONCE
            assert min(served.values()) >= served.total() / 4

            stuck = min(served)
            os.kill(stuck, signal.SIGSTOP)
            try:
                await _come(service, opened, _AT_ONCE)
            finally:
                os.kill(stuck, signal.SIGCONT)


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.promise("serve.workers")
async def test_of_those_who_come_one_after_the_other_each_goes_to_the_worker_with_the_fewest() -> None:
    """Two workers in one process, where the same of them is always first to hear of somebody."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        counts = [0, 0, sys.maxsize]  # the third is not there
        workers = []
        for number in range(2):
            config = uvicorn.Config(_app, http=PunctualProtocol, lifespan="off", log_config=None)
            config.load()
            worker = _Worker(config, Load(), listener.dup(), counts, number)
            worker.lifespan = config.lifespan_class(config)
            workers.append(worker)
        for worker in workers:
            await worker.startup()
        port = listener.getsockname()[1]
        opened = []
        try:
            for _ in range(12):
                opened.append(connection := Connection(*await asyncio.open_connection("127.0.0.1", port)))
                await connection.send(_ALIVE)
                assert (await connection.reply()).status == 200
            assert counts == [6, 6, sys.maxsize]
        finally:
            for connection in opened:
                connection.writer.close()
            for worker in workers:
                await worker.shutdown()
