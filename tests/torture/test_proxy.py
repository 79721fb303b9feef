"""The proxy of the torture: what it breaks is broken for the service alone."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path

from tests.streams import send
from tests.torture.proxy import Proxy

_CLIENTS = 16
_CONNECTIONS = 60
"""Of each client, one after the other. Of all these, a fiftieth are dropped while something is on its way."""


async def test_a_connection_that_the_database_drops_in_mid_statement_just_ends(tmp_path: Path) -> None:
    # Whatever is raised in one of the proxy's own tasks fails the test.
    chance = random.Random(7)
    dropped = 0

    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dropped
        with suppress(OSError):
            for _ in range(chance.randrange(1, 30)):
                await reader.read(65_536)
                send(writer, bytes(2_000))
        writer.transport.abort()
        dropped += 1

    async def ask() -> None:
        for _ in range(_CONNECTIONS):
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            with suppress(OSError):
                while True:
                    send(writer, bytes(chance.randrange(10, 9_000)))
                    if chance.random() < 0.5:
                        await reader.read(65_536)
                    else:
                        await asyncio.sleep(0)

    proxy = Proxy(tmp_path / "socket")
    await proxy.open()
    async with await asyncio.start_unix_server(drop, tmp_path / "socket"):
        await asyncio.gather(*(ask() for _ in range(_CLIENTS)))
        await proxy.close()
    assert dropped == _CLIENTS * _CONNECTIONS
