"""Races that are made to happen: every contender is seen waiting for the same row before any may go on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from domain.progress import EventKind, replay
from domain.walkthrough import PublishPolicy, VersionKey
from tests.load.driver import tool_request
from tests.patience import PATIENCE_SECONDS, until_waiting
from tests.processes import Serving, serving
from tests.serving.conftest import Tenant
from tests.serving.raw import connected

_CONTENDERS = 8  # as many as a process has connections


@pytest.fixture(scope="module")
def service(owner_url: str) -> Iterator[Serving]:
    """`cairn serve` in which whoever has come waits until all have."""
    with serving("serve", "--port", "0", module="tests.patient_server", CAIRN_DATABASE_URL=owner_url) as running:
        yield running


@asynccontextmanager
async def held_back(owner_url: str, owner: asyncpg.Connection, lock: str, contenders: int) -> AsyncIterator[None]:
    """Holds what `lock` locks until all contenders wait for it, then lets them all go at once."""
    holder = await asyncpg.connect(owner_url)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute(lock)
    try:
        yield
        await until_waiting(owner, contenders)
    finally:
        await transaction.rollback()
        await holder.close()


async def race(
    owner_url: str, owner: asyncpg.Connection, lock: str, calls: list[Callable[[], Coroutine[Any, Any, Any]]]
) -> list[Any]:
    """The answers of all calls, which met at one row."""
    async with held_back(owner_url, owner, lock, len(calls)):
        tasks = [asyncio.create_task(call()) for call in calls]
    return list(await asyncio.gather(*tasks))


async def _history_is_true(tenant: Tenant) -> list[EventKind]:
    """Replays the only progress there is, and returns what happened to it."""
    caller = await tenant.caller()
    (standing,) = await tenant.world.catalogue.standings(caller)
    progress = standing.progress
    assert progress is not None
    events = await tenant.world.progress.events(progress.key)
    keys = [
        VersionKey(standing.organization_id, standing.walkthrough_id, number) for number in {e.version for e in events}
    ]
    versions = {key.number: each for key, each in (await tenant.world.library.outlines(keys)).items()}
    assert replay(progress.key, events, versions) == progress
    return [event.kind for event in events]


@pytest.mark.promise("race.calls")
async def test_eight_clients_with_one_handle_move_one_step(
    tenant: Tenant, owner: asyncpg.Connection, owner_url: str, era: str
) -> None:
    await tenant.publish("one", "two", "three")
    async with tenant.learner(era=era) as me:
        first = await me.call("select_walkthrough", walkthrough="tour")

        async def contend() -> dict[str, Any]:
            return await me.call("next_walkthrough_step", completed_step=first["step"]["handle"])

        answers = await race(owner_url, owner, "select 1 from walkthrough_progress for update", [contend] * _CONTENDERS)
        assert Counter(each["status"] for each in answers) == {"advanced": 1, "repeated": _CONTENDERS - 1}
        assert {each["step"]["key"] for each in answers} == {"two"}
    assert await _history_is_true(tenant) == ["started", "advanced"]


@pytest.mark.promise("race.calls")
async def test_eight_clients_on_the_last_step_complete_it_once(
    tenant: Tenant, owner: asyncpg.Connection, owner_url: str
) -> None:
    await tenant.publish("only")
    async with tenant.learner() as me:
        first = await me.call("select_walkthrough", walkthrough="tour")

        async def contend() -> dict[str, Any]:
            return await me.call("next_walkthrough_step", completed_step=first["step"]["handle"])

        answers = await race(owner_url, owner, "select 1 from walkthrough_progress for update", [contend] * _CONTENDERS)
        assert Counter(each["status"] for each in answers) == {"completed": 1, "repeated": _CONTENDERS - 1}
        assert len({each["progress"]["completed_at"] for each in answers}) == 1
    assert await _history_is_true(tenant) == ["started", "advanced"]


@pytest.mark.promise("race.calls")
async def test_eight_first_selects_begin_one_progress(
    tenant: Tenant, owner: asyncpg.Connection, owner_url: str
) -> None:
    await tenant.publish("one", "two")
    caller = await tenant.caller()
    (standing,) = await tenant.world.catalogue.standings(caller)
    server = tenant.server.key
    # A row that is never committed: whoever inserts the same key waits to see what becomes of it.
    lock = (
        "insert into walkthrough_progress values "
        f"('{server.organization_id}', '{server.server_id}', '{caller.user_id}', '{standing.walkthrough_id}', "
        "1, 1, 1, 'stp_x', '{}', 'in_progress', 1, 1, null)"
    )
    async with tenant.learner() as me:

        async def contend() -> dict[str, Any]:
            return await me.call("select_walkthrough", walkthrough="tour")

        answers = await race(owner_url, owner, lock, [contend] * _CONTENDERS)
        assert Counter(each["status"] for each in answers) == {"started": 1, "resumed": _CONTENDERS - 1}
        assert len({each["step"]["handle"] for each in answers}) == 1
    assert (await _history_is_true(tenant))[0] == "started"


@pytest.mark.promise("race.calls")
async def test_eight_restarts_at_once_are_one_restart(
    tenant: Tenant, owner: asyncpg.Connection, owner_url: str
) -> None:
    await tenant.publish("one", "two")
    async with tenant.learner() as me:
        first = await me.call("select_walkthrough", walkthrough="tour")
        await me.call("next_walkthrough_step", completed_step=first["step"]["handle"])

        async def contend() -> dict[str, Any]:
            return await me.call("select_walkthrough", walkthrough="tour", restart=True)

        answers = await race(owner_url, owner, "select 1 from walkthrough_progress for update", [contend] * _CONTENDERS)
        assert Counter(each["status"] for each in answers) == {"restarted": 1, "resumed": _CONTENDERS - 1}
        assert {each["progress"]["attempt"] for each in answers} == {2}
    assert (await _history_is_true(tenant)).count(EventKind.RESTARTED) == 1


@pytest.mark.promise("race.calls")
async def test_the_same_note_from_four_clients_is_recorded_once(
    tenant: Tenant, owner: asyncpg.Connection, owner_url: str
) -> None:
    await tenant.publish("one", "two")
    async with tenant.learner() as me:
        first = await me.call("select_walkthrough", walkthrough="tour")

        async def contend() -> dict[str, Any]:
            return await me.call(
                "next_walkthrough_step", completed_step=first["step"]["handle"], outcome="stuck", note="why"
            )

        answers = await race(owner_url, owner, "select 1 from walkthrough_progress for update", [contend] * 4)
        assert Counter(each["status"] for each in answers) == {"stuck": 4}
    assert await _history_is_true(tenant) == ["started", "stuck"]


@pytest.mark.promise("race.calls")
async def test_selects_that_race_an_advance_lose_nothing(
    tenant: Tenant, owner: asyncpg.Connection, owner_url: str
) -> None:
    await tenant.publish("one", "two", "three")
    async with tenant.learner() as me:
        first = await me.call("select_walkthrough", walkthrough="tour")

        async def advance() -> dict[str, Any]:
            return await me.call("next_walkthrough_step", completed_step=first["step"]["handle"])

        async def select() -> dict[str, Any]:
            return await me.call("select_walkthrough", walkthrough="tour")

        answers = await race(
            owner_url, owner, "select 1 from walkthrough_progress for update", [advance, select, select, advance]
        )
        assert Counter(each["status"] for each in answers) == {"advanced": 1, "repeated": 1, "resumed": 2}
        assert (await select())["step"]["key"] == "two"
    assert (await _history_is_true(tenant)).count(EventKind.ADVANCED) == 1


@pytest.mark.promise("race.publish")
async def test_people_advance_while_versions_are_published_and_nobody_loses_a_step(tenant: Tenant) -> None:
    keys = [f"s{number}" for number in range(8)]
    await tenant.publish(*keys)
    policies = [PublishPolicy.KEEP, PublishPolicy.OFFER, PublishPolicy.CARRY_OVER]

    async def publish() -> None:
        for number in range(12):
            rotated = keys[number % 8 :] + keys[: number % 8]
            await tenant.publish(*rotated, f"n{number}", policy=policies[number % 3])

    async def learn(name: str) -> set[str]:
        completed: set[str] = set()
        async with tenant.learner(f"{name}@example.com") as me:
            told = await me.call("select_walkthrough", walkthrough="tour")
            while told["step"]:
                assert told["step"]["key"] not in completed, "shown again what was completed before"
                completed.add(told["step"]["key"])
                told = await me.call("next_walkthrough_step", completed_step=told["step"]["handle"])
        return completed

    *finished, _ = await asyncio.gather(*(learn(f"learner{number}") for number in range(6)), publish())
    for completed in finished:
        assert set(keys) <= completed


@pytest.mark.promise("calls.logged")
@pytest.mark.parametrize(
    ("spoken", "variables"),
    [
        pytest.param("modern", {}, id="modern"),
        pytest.param("legacy", {}, id="legacy"),
        pytest.param("modern", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, id="modern, by way of the SDK"),
    ],
)
async def test_a_call_whose_client_hangs_up_is_finished_and_logged(
    tenant: Tenant, owner: asyncpg.Connection, owner_url: str, spoken: str, variables: dict[str, str]
) -> None:
    await tenant.publish("one", "two")
    token = await tenant.token()
    begin = tool_request(tenant.host, token, "modern", "select_walkthrough", walkthrough="tour")
    variables = {"CAIRN_DATABASE_URL": owner_url, **variables}
    with serving("serve", "--port", "0", module="tests.patient_server", **variables) as service:
        async with connected(service) as calling, connected(service) as looking:
            await calling.send(begin)
            handle = (await calling.reply()).json["result"]["structuredContent"]["step"]["handle"]
            advance = tool_request(tenant.host, token, spoken, "next_walkthrough_step", completed_step=handle)
            async with held_back(owner_url, owner, "select from walkthrough_progress for update", 1):
                await calling.send(advance)
                await until_waiting(owner)
                calling.writer.transport.abort()
                for _ in range(2):  # once it has answered somebody else, the service knows of it
                    await looking.send(b"GET /livez HTTP/1.1\r\nhost: any\r\n\r\n")
                    assert (await looking.reply()).status == 200
            async with asyncio.timeout(PATIENCE_SECONDS):
                while '"next_walkthrough_step","outcome":"advanced"' not in service.output:  # noqa: ASYNC110  # a pipe
                    await asyncio.sleep(0.01)
    assert await owner.fetchval("select count(*) from tool_calls where outcome = 'advanced'") == 1
    assert await _history_is_true(tenant) == ["started", "advanced"]
