"""What the seed makes could have come to be by use: schema, checker and domain find nothing wrong with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import asyncpg
import pytest

from adapters.content.check import check_manuscript
from adapters.embedded_postgres import EmbeddedPostgres
from adapters.postgres.connections import Access, Database
from domain.progress import Outcome, Told
from domain.tenancy import Caller, Millis, hash_of
from tests.bench.seed import Learner, Scale, Seeded, fill, manuscript, seeded
from tests.torture.checker import violations
from tests.worlds import World, on_postgres

# Two steps, so that some are through; and more than one server of both kinds.
_FEW = Scale(2_000, walkthroughs=12, steps=2, servers=5, assignments=6, begun=4, learners=30, learner_servers=2)
_TODAY = 1_790_000_000_000
_COUNTED = """
select (select count(*) from walkthrough_progress), (select count(*) from walkthrough_progress_events),
       (select count(*) from walkthrough_progress_events where revision > 1 and mcp_server_user_id = $1)
"""


@pytest.fixture(scope="module")
def filled(make_database: Callable[..., str]) -> Seeded:
    return asyncio.run(fill(make_database(), _FEW))


@pytest.fixture
async def there(filled: Seeded) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(filled.owner_url)
    yield connection
    await connection.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path_factory.mktemp("bench"), durable=False) as running:
        yield running


async def test_every_reference_holds_and_every_history_leads_to_its_row(there: asyncpg.Connection) -> None:
    assert await violations(there) == []
    assert await there.fetchval("select count(*) from walkthrough_progress") == 2_000
    statuses = await there.fetch("select status, count(*) from walkthrough_progress group by 1 order by 1")
    assert {status for status, _ in statuses} == {"completed", "in_progress"}


async def test_every_index_is_whole_again(there: asyncpg.Connection) -> None:
    assert await there.fetch("select indexrelid::regclass from pg_index where not (indisready and indisvalid)") == []
    await there.execute("set enable_seqscan = off; set enable_bitmapscan = off")
    by_index = "select count(*) from access_tokens where organization_id > ''"
    assert "Index Only Scan" in str(await there.fetch(f"explain {by_index}"))
    assert await there.fetchval(by_index) == 470  # of 500 people, 30 of whom are visitors


async def test_it_satisfies_the_triggers_when_it_is_published_again(
    there: asyncpg.Connection, make_database: Callable[..., str]
) -> None:
    """Row by row into another database, where nothing is switched off: as drafts that are published then."""
    other = await asyncpg.connect(await asyncio.to_thread(make_database))
    for table in _IN_ORDER:
        rows = [dict(row) for row in await there.fetch(f"select * from {table}")]
        for row in rows:
            if table == "walkthroughs":
                row |= {"latest_version": None, "is_published": False}
            if table == "walkthrough_versions":
                row |= {"state": "draft", "on_publish": None, "published_at": None, "first_step_id": None}
        await other.copy_records_to_table(table, columns=list(rows[0]), records=[tuple(row.values()) for row in rows])
    async with other.transaction():
        for row in await there.fetch("select * from walkthrough_versions"):
            await other.execute(_PUBLISH, *(row[column] for column in _PUBLISHED))
        await other.execute("update walkthroughs set latest_version = 1, is_published = true")
    for table in _IN_ORDER:
        content = f"select md5(string_agg(t::text, '' order by t::text)) from {table} t"
        assert await other.fetchval(content) == await there.fetchval(content), table
    await other.close()


_IN_ORDER = [
    *("organizations", "mcp_servers", "mcp_server_users", "mcp_server_user_identities", "access_tokens"),
    *("walkthroughs", "walkthrough_versions", "walkthrough_steps", "walkthrough_ledger", "mcp_server_walkthroughs"),
    *("walkthrough_progress", "walkthrough_progress_events"),
]
_PUBLISHED = ("organization_id", "walkthrough_id", "version", "first_step_id", "published_at")
_PUBLISH = """
update walkthrough_versions set state = 'published', on_publish = 'keep', first_step_id = $4, published_at = $5
 where organization_id = $1 and walkthrough_id = $2 and version = $3
"""


async def test_every_learner_advances_by_their_token_from_step_1_of_all_that_they_have_begun(filled: Seeded) -> None:
    async with Database(Access(filled.owner_url, assume_role=True)) as database:
        world = on_postgres(database)
        for learner in filled.learners():
            told = [await _advance(world, filled, learner, number) for number in range(4)]
            assert told == [Told.ADVANCED] * 4
        assert len({learner.server for learner in filled.learners()}) == 2
        server, visitor_hash = filled.visitor()
        found = await world.servers.server_at(slug=filled.slug(2), custom_domain=None)
        assert found is not None
        assert (found.key, found.custom_domain) == (server, "guides-0-2.example.com")
        assert visitor_hash not in {hash_of(learner.token) for learner in filled.learners()}


async def _advance(world: World, filled: Seeded, learner: Learner, number: int) -> Told:
    bearer = await world.tokens.bearer_of(learner.server, hash_of(learner.token), Millis(_TODAY))
    assert bearer is not None
    assert bearer.user_id == learner.user_id
    world.clock.time = _TODAY
    handle = filled.handle(learner.walkthrough_ids[number], 1)
    lesson = await world.learning.next(
        Caller(learner.server, bearer.user_id), handle, None, outcome=Outcome.DONE, note=None
    )
    return lesson.told


def test_its_content_has_the_size_of_real_documents_and_nothing_to_complain_about() -> None:
    sizes = []
    for number in range(20):
        written = manuscript(number, 20)
        check_manuscript(written)  # raises what it finds
        sizes += [len(step.content) for step in written.steps]
    assert 1_300 < min(sizes) < max(sizes) < 1_700
    assert manuscript(7, 5) == manuscript(7, 5) != manuscript(8, 5)


async def test_it_is_made_once_and_the_learners_are_put_back(server: EmbeddedPostgres) -> None:
    first = await seeded(server, "kept", _FEW)
    learner = first.learners()[0]
    owner = await asyncpg.connect(first.owner_url)
    made = await owner.fetchval("select oid from pg_database where datname = current_database()")
    before = await owner.fetchrow(_COUNTED, learner.user_id)
    content = "select md5(string_agg(p::text, '' order by p::text)) from walkthrough_progress p"
    stood = await owner.fetchval(content)
    async with Database(Access(first.service_url)) as database:
        world = on_postgres(database)
        await _advance(world, first, learner, 0)
        caller = Caller(learner.server, learner.user_id)
        (unknown, *_) = set(first.assigned(0)) - set(learner.walkthrough_ids)
        for begun in (unknown, learner.walkthrough_ids[0]):
            lesson = await world.learning.select(caller, begun, restart=False, to_latest=False)
            assert lesson.told in (Told.STARTED, Told.RESUMED)
            await world.learning.next(caller, str(lesson.progress.handle()), None, outcome=Outcome.DONE, note=None)
            await world.learning.select(caller, begun, restart=True, to_latest=False)
    assert await owner.fetchrow(_COUNTED, learner.user_id) == (before[0] + 1, before[1] + 7, 6)
    again = await seeded(server, "kept", _FEW)
    assert again == first
    assert await owner.fetchrow(_COUNTED, learner.user_id) == before == (2_000, before[1], 0)
    assert await owner.fetchval(content) == stood
    await owner.close()
    await seeded(server, "kept", replace(_FEW, steps=3))
    owner = await asyncpg.connect(first.owner_url)
    assert await owner.fetchval("select oid from pg_database where datname = current_database()") != made
    assert await owner.fetchval("select max(step_count) from walkthrough_versions") == 3
    await owner.close()


async def test_one_that_was_ended_half_way_is_made_anew(server: EmbeddedPostgres) -> None:
    seeding = asyncio.create_task(seeded(server, "ended", _FEW))
    watcher = await asyncpg.connect(server.dsn("postgres", "postgres"))
    half_way = "select exists (select from pg_stat_activity where datname = 'ended' and query ~* '^copy')"
    while not await watcher.fetchval(half_way):
        assert not seeding.done()
    seeding.cancel()
    with suppress(asyncio.CancelledError):
        await seeding
    whole = await seeded(server, "ended", _FEW)
    owner = await asyncpg.connect(whole.owner_url)
    assert await owner.fetchval("select count(*) from walkthrough_progress") == 2_000
    assert await owner.fetchval("select count(*) from pg_index where not indisvalid") == 0
    await owner.close()
    await watcher.close()
