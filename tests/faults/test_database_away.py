"""The database goes away and comes back: a clear answer within 5 s, nothing lost, and service again by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import asyncpg
import httpx2
import pytest
from mcp.shared.exceptions import MCPError

from adapters.embedded_postgres import EmbeddedPostgres
from adapters.postgres.connections import Access, Database
from adapters.postgres.schema import migrate
from tests.processes import Learner, Serving, serving
from tests.serving.conftest import Tenant, make_tenant

_PROMISED_SECONDS = 5.0
_RECOVERY_SECONDS = 10.0


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server of this module's own, which it may mistreat; durable, since it is killed."""
    with EmbeddedPostgres(tmp_path_factory.mktemp("mistreated")) as server:
        asyncio.run(migrate(server.dsn()))
        yield server


@pytest.fixture(scope="module")
def service(postgres: EmbeddedPostgres) -> Iterator[Serving]:
    with serving("serve", "--port", "0", CAIRN_DATABASE_URL=postgres.dsn()) as running:
        yield running


@pytest.fixture
async def tenant(postgres: EmbeddedPostgres, service: Serving) -> AsyncIterator[Tenant]:
    async with Database(Access(postgres.dsn(), assume_role=True)) as database:
        yield await make_tenant(database, service)


async def _answer(me: Learner, tool: str, **arguments: Any) -> tuple[str, float]:
    """What a call is answered with (a status, or a tool error's code), and after how many seconds."""
    began = time.monotonic()
    result = await me.client.call_tool(tool, arguments)
    seconds = time.monotonic() - began
    if result.is_error:
        return result.content[0].text.split(":")[0], seconds  # type: ignore[union-attr]
    assert result.structured_content is not None
    return str(result.structured_content.get("status")), seconds


async def _until_it_works(me: Learner, tool: str, **arguments: Any) -> str:
    async with asyncio.timeout(_RECOVERY_SECONDS):
        while (status := (await _answer(me, tool, **arguments))[0]) == "temporarily_unavailable":  # noqa: ASYNC110
            await asyncio.sleep(0)
    return status


@asynccontextmanager
async def _paused(postgres: EmbeddedPostgres) -> AsyncIterator[None]:
    """Every process of the server stopped in its tracks, as on a machine that has frozen."""
    postmaster = postgres.pid
    assert postmaster is not None
    with open(f"/proc/{postmaster}/task/{postmaster}/children") as listed:  # noqa: ASYNC230
        children = listed.read().split()
    processes = [postmaster, *map(int, children)]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            with suppress(ProcessLookupError):  # one that was on its way out when it was stopped
                os.kill(pid, signal.SIGCONT)


@pytest.mark.promise("unavailable")
async def test_while_the_database_is_stopped_calls_are_answered_and_nothing_is_lost(
    tenant: Tenant, postgres: EmbeddedPostgres
) -> None:
    await tenant.publish("one", "two", "three")
    async with tenant.learner() as me:
        first = await me.call("select_walkthrough", walkthrough="tour")
        handle = first["step"]["handle"]
        postmaster = postgres.pid
        assert postmaster is not None
        os.kill(postmaster, signal.SIGKILL)
        for tool, arguments in (
            ("next_walkthrough_step", {"completed_step": handle}),
            ("select_walkthrough", {"walkthrough": "tour"}),
            ("list_walkthroughs", {}),
        ):
            code, seconds = await _answer(me, tool, **arguments)
            assert code == "temporarily_unavailable"
            assert seconds < _PROMISED_SECONDS
        # While the database is away nobody can say whether a token is valid.
        response = await tenant.post({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, token="cairn_any")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")

        assert await asyncio.to_thread(postgres.ensure_running)
        assert postgres.pid != postmaster
        assert await _until_it_works(me, "next_walkthrough_step", completed_step=handle) == "advanced"
        assert (await me.call("next_walkthrough_step", completed_step=handle))["status"] == "repeated"


@pytest.mark.promise("unavailable")
async def test_while_the_database_is_frozen_no_call_hangs_and_none_is_done_twice(
    tenant: Tenant, postgres: EmbeddedPostgres
) -> None:
    await tenant.publish("one", "two", "three")
    async with tenant.learner() as me:
        first = await me.call("select_walkthrough", walkthrough="tour")
        handle = first["step"]["handle"]
        async with _paused(postgres):
            answers = await asyncio.gather(
                *(_answer(me, "next_walkthrough_step", completed_step=handle) for _ in range(12))
            )
            for code, seconds in answers:
                assert code == "temporarily_unavailable"
                assert seconds < _PROMISED_SECONDS
        assert await _until_it_works(me, "next_walkthrough_step", completed_step=handle) in ("advanced", "repeated")
        told = await me.call("select_walkthrough", walkthrough="tour")
        assert (told["step"]["key"], told["progress"]["completed_steps"]) == ("two", 1)


@pytest.mark.promise("calls.logged")
async def test_a_call_that_cannot_be_recorded_is_not_answered_and_changes_nothing(
    tenant: Tenant, postgres: EmbeddedPostgres
) -> None:
    await tenant.publish("one", "two", "three")
    async with tenant.learner() as me:
        first = await me.call("select_walkthrough", walkthrough="tour")
        handle = first["step"]["handle"]
        holder = await asyncpg.connect(postgres.dsn())
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("lock table tool_calls in exclusive mode")
        try:
            for tool, arguments in (("next_walkthrough_step", {"completed_step": handle}), ("list_walkthroughs", {})):
                code, seconds = await _answer(me, tool, **arguments)
                assert code == "temporarily_unavailable"
                assert seconds < _PROMISED_SECONDS
        finally:
            await transaction.rollback()
            await holder.close()
        advanced = await me.call("next_walkthrough_step", completed_step=handle)
        assert (advanced["status"], advanced["step"]["key"]) == ("advanced", "two")


@pytest.mark.promise("unavailable")
async def test_prompts_and_resources_that_the_database_holds_up_are_refused_in_time_and_come_back(
    tenant: Tenant, postgres: EmbeddedPostgres
) -> None:
    await tenant.publish("one", "two")
    async with tenant.learner() as me:
        await me.call("select_walkthrough", walkthrough="tour")
        holder = await asyncpg.connect(postgres.dsn())
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("lock table walkthroughs in access exclusive mode")
        uri = "cairn://walkthroughs/tour/steps/current"
        try:
            for asked in (me.client.list_prompts, me.client.list_resources, lambda: me.client.read_resource(uri)):
                began = time.monotonic()
                with pytest.raises(MCPError) as refused:
                    await asked()
                assert time.monotonic() - began < _PROMISED_SECONDS
                assert refused.value.error.code == -32003
                assert refused.value.error.message.startswith("temporarily_unavailable: ")
        finally:
            await transaction.rollback()
            await holder.close()
        assert len((await me.client.list_prompts()).prompts) == 2
        assert len((await me.client.list_resources()).resources) == 1


@asynccontextmanager
async def _killed(postgres: EmbeddedPostgres) -> AsyncIterator[None]:
    """The server killed, and started again at the end of the block."""
    postmaster = postgres.pid
    assert postmaster is not None
    os.kill(postmaster, signal.SIGKILL)
    try:
        yield
    finally:
        assert await asyncio.to_thread(postgres.ensure_running)


async def _asked(tenant: Tenant, method: str, path: str, **form: str) -> tuple[httpx2.Response, float]:
    """What a page or an OAuth endpoint answers, and after how many seconds."""
    began = time.monotonic()
    async with httpx2.AsyncClient(base_url=tenant.service.url.removesuffix("/mcp"), timeout=30) as http:
        content = {"json": form} if path == "/register" else {"data": form} if form else {}
        answer = await http.request(method, path, headers={"host": tenant.host}, **content)  # type: ignore[arg-type]
    return answer, time.monotonic() - began


@pytest.mark.promise("unavailable")
@pytest.mark.parametrize(
    "is_known", [True, False], ids=["a host that was asked lately", "a host of which nothing is known"]
)
@pytest.mark.parametrize("away", [_killed, _paused])
async def test_pages_and_oauth_endpoints_say_in_their_own_form_that_the_database_is_away(
    tenant: Tenant,
    postgres: EmbeddedPostgres,
    away: Callable[[EmbeddedPostgres], AbstractAsyncContextManager[None]],
    is_known: bool,
) -> None:
    query = f"client_id=client_x&redirect_uri=http://localhost:1/&code_challenge={'c' * 43}&code_challenge_method=S256"
    places: list[tuple[str, str, dict[str, str]]] = [
        ("GET", "/", {}),
        ("GET", f"/authorize?response_type=code&{query}", {}),
        ("GET", f"/sign-in?request={'r' * 43}", {}),
        ("GET", f"/sign-in/callback?state={'s' * 43}", {}),
        ("POST", "/sign-in", {"request": "r" * 43, "decision": "approve"}),
        ("GET", f"/v/{'v' * 22}", {}),
        ("POST", f"/v/{'v' * 22}/keep", {"x": "1"}),
        ("POST", "/token", {"grant_type": "refresh_token", "refresh_token": "x", "client_id": "client_x"}),
        ("POST", "/revoke", {"token": "x", "client_id": "client_x"}),
        ("POST", "/register", {"redirect_uris": ["http://localhost:1/"]}),  # type: ignore[dict-item]
    ]
    if is_known:
        for method, path, form in places:
            answer, _ = await _asked(tenant, method, path, **form)
            assert answer.status_code < 500, (path, answer.text)
    async with away(postgres):
        for (method, path, _), (answer, seconds) in zip(
            places,
            await asyncio.gather(*(_asked(tenant, method, path, **form) for method, path, form in places)),
            strict=True,
        ):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), (method, path, answer.text)
            assert answer.headers["cache-control"] == "no-store"
            assert seconds < _PROMISED_SECONDS, (method, path)
            said = "The service is not available for a moment: try again."
            if path in ("/token", "/revoke", "/register"):
                assert answer.json() == {"error": "temporarily_unavailable", "error_description": said}
            else:
                assert answer.headers["content-type"] == "text/html; charset=utf-8"
                assert said in answer.text
    async with asyncio.timeout(_RECOVERY_SECONDS):
        while (await _asked(tenant, "GET", "/"))[0].status_code != 200:
            pass
