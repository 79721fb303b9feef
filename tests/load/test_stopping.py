"""SIGTERM: what was accepted is answered and logged, others are told to go elsewhere, and the end is soon."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.load.driver import tool_request
from tests.patience import PATIENCE_SECONDS, until_waiting
from tests.processes import Serving, serving
from tests.serving.conftest import Tenant
from tests.serving.raw import Reply, connected

# A row of the caller's progress, held by somebody else: the call waits.
_HOLD = "select from walkthrough_progress for update"
_NOTICED_SECONDS = 1.9  # of the two that a balancer is given


@asynccontextmanager
async def _held(owner_url: str, owner: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    holder = await asyncpg.connect(owner_url)
    await holder.execute("begin")
    await holder.execute(_HOLD)
    try:
        yield holder
    finally:
        await holder.close()


def _listens(service: Serving) -> bool:
    """Whether anybody can still connect, as the kernel has it: to try would be to come."""
    listens, port = "0A", urlsplit(service.url).port
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[3] == listens and int(row[1].split(":")[1], 16) == port for row in rows)


async def _readiness(service: Serving) -> Reply:
    async with connected(service) as asking:
        await asking.send(b"GET /readyz HTTP/1.1\r\nhost: any\r\n\r\n")
        return await asking.reply()


async def _ended(service: Serving) -> int:
    return await asyncio.to_thread(service.process.wait, 20)


@pytest.mark.promise("serve.workers")
@pytest.mark.parametrize(("workers", "era"), [("1", "modern"), ("1", "legacy"), ("2", "modern")])
async def test_a_call_that_was_accepted_is_answered_and_logged_before_the_process_ends(
    tenant: Tenant, owner: asyncpg.Connection, owner_url: str, workers: str, era: str
) -> None:
    await tenant.publish("one", "two")
    token = await tenant.token()
    begin = tool_request(tenant.host, token, "modern", "select_walkthrough", walkthrough="tour")
    with serving(
        "serve", "--workers", workers, "--port", "0", module="tests.patient_server", CAIRN_DATABASE_URL=owner_url
    ) as service:
        async with connected(service) as calling, connected(service) as resting:
            await resting.send(begin)
            handle = (await resting.reply()).json["result"]["structuredContent"]["step"]["handle"]
            async with _held(owner_url, owner) as holder:
                await calling.send(
                    tool_request(tenant.host, token, era, "next_walkthrough_step", completed_step=handle)
                )
                await until_waiting(owner)
                service.process.send_signal(signal.SIGTERM)
                # It still answers, also whoever comes new, and sends everybody away.
                told = ""
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while told != "close":
                        async with connected(service) as new:
                            await new.send(tool_request(tenant.host, token, "modern", "get_walkthrough_status"))
                            told = (await new.reply()).headers.get("connection", "")
                await holder.execute("rollback")
                answer = await calling.reply()
        assert answer.json["result"]["structuredContent"]["status"] == "advanced"
        assert answer.headers["connection"] == "close"
        assert await _ended(service) == 0
    assert "Traceback" not in service.output
    assert await owner.fetchval("select count(*) from tool_calls where outcome = 'advanced'") == 1


@pytest.mark.promise("serve.workers")
async def test_a_process_that_nobody_calls_listens_until_a_balancer_can_have_noticed(
    tenant: Tenant, owner_url: str
) -> None:
    with serving("serve", "--port", "0", CAIRN_DATABASE_URL=owner_url) as service:
        began = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_SECONDS):
            answer = await _readiness(service)
            while answer.status == 200:  # the signal is still on its way
                answer = await _readiness(service)
            assert (answer.status, answer.json["failing"]) == (503, "stopping")
            while _listens(service):  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0.01)
        assert time.monotonic() - began > _NOTICED_SECONDS
        assert await _ended(service) == 0


@pytest.mark.promise("serve.workers")
async def test_who_is_still_sending_does_not_hold_up_the_end(tenant: Tenant, owner_url: str) -> None:
    half = tool_request(tenant.host, None, "modern", "list_walkthroughs")[:-1]
    with serving("serve", "--port", "0", CAIRN_DATABASE_URL=owner_url) as service:
        async with connected(service) as sending:
            await sending.send(half)
            began = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            assert (await sending.reply()).status == 503
            assert await _ended(service) == 0
            assert time.monotonic() - began < 7  # or it was waited for, for five seconds after the two
    assert '"level":"error"' not in service.output


@pytest.mark.promise("serve.workers")
async def test_a_second_signal_ends_it_at_once(tenant: Tenant, owner: asyncpg.Connection, owner_url: str) -> None:
    await tenant.publish("one", "two")
    begin = tool_request(tenant.host, await tenant.token(), "modern", "select_walkthrough", walkthrough="tour")
    with serving("serve", "--port", "0", module="tests.patient_server", CAIRN_DATABASE_URL=owner_url) as service:
        async with connected(service) as calling:
            await calling.send(begin)
            await calling.reply()
            async with _held(owner_url, owner):
                await calling.send(begin)
                await until_waiting(owner)
                service.process.send_signal(signal.SIGTERM)
                service.process.send_signal(signal.SIGINT)
                assert await _ended(service) == 1
                assert await calling.rest() == b""


@pytest.mark.promise("serve.workers")
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_what_is_stuck_ends_with_the_grace_period(tenant: Tenant, owner_url: str, workers: str) -> None:
    """A worker that does nothing at all any more, and a request that holds up its whole process."""
    with serving(
        "serve", "--workers", workers, "--port", "0", module="tests.load.stuck_server", CAIRN_DATABASE_URL=owner_url
    ) as service:
        async with connected(service) as calling:
            await calling.send(tool_request(tenant.host, None, "modern", "list_walkthroughs"))
            async with asyncio.timeout(PATIENCE_SECONDS):
                while "stuck" not in service.output:  # noqa: ASYNC110  # its output is read by a thread
                    await asyncio.sleep(0.01)
            service.process.send_signal(signal.SIGTERM)
            assert await _ended(service) == 1  # long before the request would end
