"""Which server a host is, as a process remembers it."""

from __future__ import annotations

import asyncio

import pytest

from adapters.postgres.tenancy import RecentServers
from domain.errors import TemporarilyUnavailable
from domain.tenancy import AuthMode, OrganizationId, Server, ServerId, ServerKey
from tests.patience import PATIENCE_SECONDS

_SERVER = Server(ServerKey(OrganizationId("org_1"), ServerId("srv_1")), "guides", "Guides", AuthMode.ON_DEMAND)


class _Slow:
    """A directory that answers when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()

    async def server_at(self, *, slug: str | None, custom_domain: str | None) -> Server | None:
        self.asked += 1
        await self.may_answer.wait()
        return _SERVER


async def test_who_waits_too_long_is_told_so_and_the_answer_is_there_for_the_next() -> None:
    slow = _Slow()
    servers = RecentServers(slow, max_age_seconds=PATIENCE_SECONDS, max_wait_seconds=0.05)
    for _ in range(2):
        with pytest.raises(TemporarilyUnavailable):
            await servers.server_at(slug="guides", custom_domain=None)
    slow.may_answer.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert await servers.server_at(slug="guides", custom_domain=None) is _SERVER
    assert slow.asked == 1
