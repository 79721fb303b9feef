"""What a service loads before calls are answered, and what only then."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
import httpx2
import pytest
from dependency_injector import providers

from adapters.postgres.connections import Access, Database
from domain.tenancy import AuthMode
from entrypoints.container import Container
from entrypoints.http import app as served
from entrypoints.http.load import Load
from tests.processes import PROJECT, environment
from tests.serving.raw import modern
from tests.storage.test_statements import serving_here
from tests.worlds import on_postgres

# By what needs it, and that is not to be had before calls are answered, or never by what serves.
NOT_YET = {
    "signing in": ("adapters.openid", "adapters.postgres.authorization", "authlib", "joserfc"),
    "documents of clients": ("adapters.client_documents", "httpcore2"),  # which TLS comes with
    "pages": ("litestar.plugins.pydantic", "pydantic.v1"),
    "content": ("adapters.content", "jsonschema", "markdown_it", "nh3"),
    "authors": ("application.authoring", "application.insight", "domain.draft", "domain.forecast", "domain.publishing"),
    "other commands": ("adapters.embedded_postgres", "entrypoints.cli.commands", "entrypoints.workshop"),
    "migrations": ("alembic",),
    "a Redis": ("adapters.redis_rate_limits", "limits", "redis"),
}
_WAIT_SECONDS = 10
_START_SECONDS = 60


def test_a_service_has_loaded_nothing_that_no_call_needs_when_it_is_ready_and_loads_the_rest_then(
    owner_url: str,
) -> None:
    # It ends when it begins to make its pages, which nobody has asked for.
    script = """
import json, os, signal, sys
from entrypoints.cli import main, running
from entrypoints.http import app
class Ending(app.Litestar):
    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        print(json.dumps([*sys.modules]))
        os.kill(os.getpid(), signal.SIGINT)
app.Litestar = Ending
running.show = lambda *_: print(json.dumps([*sys.modules]))
main.main(["serve", "--port", "0"])
"""
    told = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT,
        env=environment(CAIRN_DATABASE_URL=owner_url),
        capture_output=True,
        text=True,
        check=True,
        timeout=_START_SECONDS,
    )
    loaded, later = (set(json.loads(line)) for line in told.stdout.splitlines())
    assert {"asyncpg", "entrypoints.http.app", "litestar", "mcp", "sqlalchemy", "uvicorn"} <= loaded
    assert {what: found for what, names in NOT_YET.items() if (found := loaded.intersection(names))} == {}
    needed = {name for what in ("signing in", "documents of clients", "pages") for name in NOT_YET[what]}
    assert needed - later == set()


@dataclass
class Making:
    """What the pages are made of: it can be held up, and fail."""

    tries: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    may_end: threading.Event = field(default_factory=threading.Event)
    failures: list[Exception] = field(default_factory=list)

    def factory(self) -> Callable[[], object]:
        """To be called in a thread."""
        loop = asyncio.get_running_loop()

        def make() -> object:
            loop.call_soon_threadsafe(self.tries.put_nowait, None)
            assert self.may_end.wait(_WAIT_SECONDS)
            if self.failures:
                raise self.failures.pop()
            return object()  # which no page of these tests asks anything

        return make


@pytest.fixture
def making(owner: asyncpg.Connection) -> Making:
    """On a database with nothing in it."""
    return Making()


@asynccontextmanager
async def answering(owner_url: str, making: Making, load: Load | None = None) -> AsyncIterator[httpx2.AsyncClient]:
    """The service in this process; what pages need of an authorization server comes of `making`."""
    Container.authorization_server.override(providers.Singleton(making.factory()))
    database = Database(Access(owner_url, assume_role=True))
    try:
        async with (
            serving_here(owner_url, database, load) as app,
            httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://guides.localhost") as http,  # type: ignore[arg-type]
        ):
            await on_postgres(database).server(auth_mode=AuthMode.ON_DEMAND)
            yield http
    finally:
        making.may_end.set()
        Container.authorization_server.reset_override()


async def _call(http: httpx2.AsyncClient) -> httpx2.Response:
    message, named = modern({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}})
    headers = {name.replace("_", "-"): value for name, value in named.items()}
    return await http.post("/mcp", json=message, headers=headers)


async def test_whoever_asks_for_a_page_at_once_waits_for_it_and_holds_up_no_call(
    owner_url: str, making: Making
) -> None:
    async with answering(owner_url, making) as http, asyncio.timeout(_WAIT_SECONDS):
        pages = [asyncio.create_task(http.get("/")) for _ in range(60)]  # more than have a place, or wait for one
        await making.tries.get()
        assert (await _call(http)).status_code == 200
        assert not any(page.done() for page in pages)
        making.may_end.set()
        assert 200 in [(await page).status_code for page in pages]


async def test_the_pages_are_made_once_the_service_has_started_though_nobody_asks(
    owner_url: str, making: Making, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And again, where that failed."""
    monkeypatch.setattr(served, "_TRY_AGAIN_SECONDS", 0.01)
    making.failures.append(OSError(24, "Too many open files"))
    making.may_end.set()
    load = Load()
    async with answering(owner_url, making, load) as http, asyncio.timeout(_WAIT_SECONDS):
        assert (await _call(http)).status_code == 200
        assert making.tries.empty()
        load.started.set()
        await making.tries.get()
        await making.tries.get()
        assert (await http.get("/")).status_code == 200
        assert making.tries.empty()


async def test_where_pages_cannot_be_made_calls_are_answered_and_the_service_says_that_it_is_not_ready(
    owner_url: str, making: Making
) -> None:
    making.may_end.set()
    async with answering(owner_url, making) as http, asyncio.timeout(_WAIT_SECONDS):
        making.failures.append(ModuleNotFoundError("No module named 'joserfc'", name="joserfc"))
        page = await http.get("/")
        assert (page.status_code, page.headers["content-type"]) == (500, "text/html; charset=utf-8")
        assert "not your doing" in page.text
        assert "joserfc" not in page.text
        assert (await _call(http)).status_code == 200
        failing = await http.get("/readyz")
        assert (failing.status_code, failing.json()) == (503, {"status": "failing", "failing": "pages"})
        making.failures.append(ModuleNotFoundError("No module named 'joserfc'", name="joserfc"))
        token = await http.post("/token", data={"grant_type": "refresh_token"})
        assert (token.status_code, token.json()["error"]) == (500, "temporarily_unavailable")
        assert (await http.get("/")).status_code == 200
        while (await http.get("/readyz")).status_code != 200:  # noqa: ASYNC110  # what was found stays so for a moment
            await asyncio.sleep(0.05)
