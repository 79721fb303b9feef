"""Under load, the database is migrated while the release before serves; this one takes over; and its processes are
restarted one after the other. No call is lost."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.load.balancer import Balancer
from tests.load.driver import Line, tool_request
from tests.patience import PATIENCE_SECONDS
from tests.processes import PROJECT, Serving, environment, serving

_CLIENTS = 8
_CALLS_A_CONNECTION = 7  # then another, and so in time the other process: nothing is bound to either
_PAUSE_SECONDS = 0.1  # fewer calls than can be answered: processes begin at the same time, and have to get ready
_MORE = 40  # answers between two changes, so that each happens among calls
_HOST = "guides.localhost"
_STEPS = ("one", "two", "three")

# Run with the code of the release before, on a database of its schema.
_SET_UP = f"""
import asyncio, json, sys
from adapters.postgres.connections import Access, Database
from adapters.postgres.schema import migrate
from adapters.system import RandomIds, SystemClock
from tests.worlds import on_postgres

async def set_up(url):
    revision = await migrate(url)
    async with Database(Access(url, assume_role=True)) as database:
        world = on_postgres(database, clock=SystemClock(), ids=RandomIds())
        server = await world.server("acme", "guides")
        await world.publish(*{_STEPS!r}, organization="acme", servers=("guides",))
        people = [f"person-{{number}}@example.com" for number in range({_CLIENTS})]
        tokens = [await world.identity.create_token(server.key, person) for person in people]
    print(json.dumps([revision, tokens]))

asyncio.run(set_up(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def url(make_database: Callable[..., str]) -> str:
    """A database with nothing in it."""
    return make_database(is_empty=True)


def _git(*arguments: str) -> bytes:
    ran = subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, check=False, timeout=30)
    if ran.returncode != 0:
        pytest.skip("the release before is taken from this repository's history, which is not here")
    return ran.stdout


def _migrations(commit: str) -> set[bytes]:
    """The migrations of a commit, each with what is in it."""
    listed = _git("ls-tree", commit, "migrations/versions/").splitlines()
    return {line for line in listed if b"/0" in line}


def _blob(line: bytes) -> bytes:
    """What is in a file of `_migrations`."""
    return _git("cat-file", "blob", line.split()[2].decode())


@pytest.fixture(scope="module")
def release_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The newest code of this repository's past that did not know the newest revision that expands, nor what came with
    it, and knew each of those before as it is."""
    present, following = _migrations("HEAD"), "HEAD"
    expanding = max(line.split()[-1] for line in present if b"is_contracting" not in _blob(line))
    for commit in _git("log", "--format=%H", "--", "migrations/versions").decode().split():
        theirs = _migrations(commit)
        if theirs < present and expanding not in {line.split()[-1] for line in theirs}:
            break
        following = commit
    else:
        pytest.skip("the release before is not in the part of this repository's history that is here")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(_git("archive", f"{following}^"))) as archive:
        archive.extractall(folder, filter="data")
    return folder


class _Load:
    """People who go through a walkthrough again and again. Whatever is no answer of the service ends the test.

    A call that is answered `temporarily_unavailable` is made again, as it says: a process that has just begun, on a
    machine that is busy, may be too slow with the first ones.
    """

    def __init__(self, url: str, tokens: list[str]) -> None:
        self.told: Counter[str] = Counter()
        self.unavailable = 0
        self._url = url
        self._tokens = tokens
        self._has_ended = False

    async def until_more(self) -> None:
        wanted = self.told.total() + _MORE
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.told.total() < wanted:  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for number, token in enumerate(self._tokens):
                group.create_task(self._learn(token, "legacy" if number % 2 else "modern"))
            yield
            self._has_ended = True

    async def _learn(self, token: str, era: str) -> None:
        line, calls = Line(self._url), 0

        async def told(tool: str, **arguments: Any) -> dict[str, Any] | None:
            nonlocal calls
            await asyncio.sleep(_PAUSE_SECONDS)
            while True:
                reply = await line.ask(tool_request(_HOST, token, era, tool, **arguments))
                assert reply.status == 200, reply
                result = reply.json["result"]
                if not result.get("isError"):
                    break
                assert result["content"][0]["text"].startswith("temporarily_unavailable: "), result
                self.unavailable += 1
            self.told[result["structuredContent"]["status"]] += 1
            if (calls := calls + 1) % _CALLS_A_CONNECTION == 0:
                line.close()
            step: dict[str, Any] | None = result["structuredContent"]["step"]
            return step

        while not self._has_ended:
            step = await told("select_walkthrough", walkthrough="tour", restart=True)
            while step is not None and not self._has_ended:
                step = await told("next_walkthrough_step", completed_step=step["handle"])
        line.close()


@asynccontextmanager
async def _process(release: Path, url: str) -> AsyncIterator[Serving]:
    """A serving process of a release, which is started and ended while everything else goes on."""
    started = serving("serve", "--port", "0", cwd=release, PYTHONPATH=str(release), CAIRN_DATABASE_URL=url)
    starting = asyncio.create_task(asyncio.to_thread(started.__enter__))
    try:
        service = await asyncio.shield(starting)
        yield service
    finally:
        await starting  # or it would go on serving
        await asyncio.to_thread(started.__exit__, None, None, None)


async def _run(*arguments: str, release: Path, **variables: str) -> str:
    """What a program prints that is run with the code of a release."""
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, *arguments],
        cwd=release,
        env=environment(PYTHONPATH=str(release), **variables),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.promise("serve.workers")
async def test_a_release_takes_over_under_load_and_is_restarted_and_no_call_is_lost(
    release_before: Path, url: str
) -> None:
    before, tokens = json.loads(await _run("-c", _SET_UP, url, release=release_before))
    async with Balancer().listening() as balancer, AsyncExitStack() as processes:

        async def start(release: Path) -> Serving:
            service = await processes.enter_async_context(_process(release, url))
            await balancer.add(service.url)
            return service

        old = await start(release_before)
        load = _Load(balancer.url, tokens)
        async with load.going_on():
            await load.until_more()
            await _run("-m", "entrypoints.cli.main", "migrate", release=PROJECT, CAIRN_DATABASE_URL=url)
            await load.until_more()  # of the release before, at the new schema
            first, second = await start(PROJECT), await start(PROJECT)
            await load.until_more()  # of both releases, side by side
            await balancer.remove(old.url)
            await asyncio.to_thread(old.stop)
            await _run("-m", "entrypoints.cli.main", "migrate", "--finish", release=PROJECT, CAIRN_DATABASE_URL=url)
            await load.until_more()
            assert await asyncio.to_thread(first.stop) == 0
            await start(PROJECT)
            await load.until_more()
            assert await asyncio.to_thread(second.stop) == 0
            await load.until_more()

    owner = await asyncpg.connect(url)
    after = await owner.fetchval("select version_num from alembic_version")
    advanced = await owner.fetchval("select count(*) from walkthrough_progress_events where kind = 'advanced'")
    logged = Counter(dict(await owner.fetch("select outcome, count(*) from tool_calls group by outcome")))
    await owner.close()
    print(f"\nschema {before} to {after}: {dict(load.told)}, {load.unavailable} answered twice")
    assert before < after
    # Every one was answered, and moved somebody once. Without a busy machine, none is answered twice.
    assert advanced == load.told["advanced"] + load.told["completed"] + load.told["repeated"]
    assert load.told["repeated"] + load.told["resumed"] <= load.unavailable <= _CLIENTS
    assert load.told - logged == Counter()
    assert logged.total() - load.told.total() <= load.unavailable
