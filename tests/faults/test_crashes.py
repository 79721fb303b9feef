"""kill -9 at every point of a call: the same call again continues, and no step is lost or done twice."""

from __future__ import annotations

from typing import Any

import anyio
import asyncpg
import httpx2
import pytest
from mcp.shared.exceptions import MCPError

from domain.progress import EventKind, replay
from domain.walkthrough import VersionKey
from tests.processes import learner, serving
from tests.serving.conftest import Tenant

_STEPS = ("one", "two", "three")


async def _told(call: Any) -> dict[str, Any] | None:
    """The answer, or None where the service died instead of giving one."""
    try:
        with anyio.fail_after(10):
            result: dict[str, Any] = await call
            return result
    except (httpx2.HTTPError, OSError, ExceptionGroup):
        return None
    except MCPError:  # how the client tells that the connection was lost
        return None


async def _take(url: str, token: str, host: str, told: dict[str, Any] | None, path: list[str]) -> dict[str, Any] | None:
    """Goes on from what was told last until the end, or until the service dies; `path` is every step completed."""
    try:
        async with learner(url, token, host=host, era="legacy") as me:
            if told is None:
                told = await _told(me.call("select_walkthrough", walkthrough="tour"))
            while told is not None and told["step"] is not None:
                if await _told(me.call("get_walkthrough_status")) is None:  # which changes nothing
                    return told
                completing = told["step"]
                answer = await _told(me.call("next_walkthrough_step", completed_step=completing["handle"]))
                if answer is None:
                    return told
                path.append(completing["key"])
                told = answer
    except (httpx2.HTTPError, OSError, ExceptionGroup):
        return told
    return told


@pytest.mark.promise("crash.nothing-lost")
@pytest.mark.parametrize(
    ("point", "at"),
    [
        *(
            (point, at) for point in ("before_commit", "after_commit") for at in (1, 2, 4)
        ),  # select, next, the last next
        *((point, at) for point in ("before_log", "after_log") for at in (1, 3)),  # a look at where one stands
    ],
)
async def test_a_service_killed_in_mid_call_loses_and_doubles_nothing(
    tenant: Tenant, owner: asyncpg.Connection, owner_url: str, point: str, at: int
) -> None:
    await tenant.publish(*_STEPS)
    token = await tenant.token()
    path: list[str] = []
    with serving(
        "serve",
        "--port",
        "0",
        module="tests.faults.crashing_server",
        CAIRN_DATABASE_URL=owner_url,
        CRASH_POINT=point,
        CRASH_AT=str(at),
    ) as doomed:
        told = await _take(doomed.url, token, tenant.host, None, path)
        assert doomed.process.wait(10) == -9
    assert told is None or told["step"] is not None
    told = await _take(tenant.service.url, token, tenant.host, told, path)

    assert told is not None
    assert told["step"] is None
    assert path == list(_STEPS)
    caller = await tenant.caller()
    (standing,) = await tenant.world.catalogue.standings(caller)
    assert standing.progress is not None
    events = await tenant.world.progress.events(standing.progress.key)
    assert [event.kind for event in events if event.kind is not EventKind.RESUMED] == ["started", *["advanced"] * 3]
    key = VersionKey(standing.organization_id, standing.walkthrough_id, 1)
    versions = {1: (await tenant.world.library.outlines([key]))[key]}
    assert replay(standing.progress.key, events, versions) == standing.progress
    recorded = await owner.fetch(
        "select outcome from tool_calls where organization_id = $1 and outcome in ('started', 'advanced', 'completed')",
        tenant.server.key.organization_id,
    )
    assert sorted(outcome for (outcome,) in recorded) == ["advanced", "advanced", "completed", "started"]
