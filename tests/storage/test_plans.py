"""The hot statements find their rows through indexes, however many there are, and updates stay within their page."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from adapters.embedded_postgres import EmbeddedPostgres
from adapters.postgres.connections import Access, Database
from adapters.postgres.visitors import PostgresVisitorStore
from application.insight import PAUSE, TOO_FAST
from application.ports import Cohort, Measures, ToolCall
from domain.progress import EventKind, Outcome, Progress, ProgressEvent, ProgressKey, Status, Told, Transition
from domain.tenancy import Caller, CallId, Millis, OrganizationId, StepId, WalkthroughId, hash_of
from domain.walkthrough import Publication, PublishPolicy, VersionKey
from tests.bench.seed import LARGE, Scale, Seeded, fill, manuscript, seeded
from tests.calls import record
from tests.worlds import World, on_postgres

# As in an installation that has grown: 50 walkthroughs on a server, and 200 times as many in the organisation. Enough
# for the planner to tell what one caller has from what an organisation has, and an index from a scan; with half the
# rows or half the walkthroughs it makes other plans. With 3,000,000 rows it makes these again: CAIRN_TEST_BENCH names
# the folder in which that database is, or is to be made.
_GROWN = Scale(100_000, walkthroughs=10_000, steps=2, servers=500, assignments=50, learners=10)


@pytest.fixture(scope="module")
def grown(make_database: Callable[..., str]) -> Iterator[Seeded]:
    """A database in which a great deal has happened."""
    folder = os.environ.get("CAIRN_TEST_BENCH")
    if folder is None:
        yield asyncio.run(fill(make_database(), _GROWN))
        return
    with EmbeddedPostgres(Path(folder)) as server:
        yield asyncio.run(seeded(server, "large", LARGE))


_SEEDED = Seeded("", "", _GROWN)  # ids are the same at any scale
_ADA = _SEEDED.learners()[0]
_SERVER = _ADA.server
_CALLER = Caller(_SERVER, _ADA.user_id)
_KEY = ProgressKey(_SERVER.organization_id, _SERVER.server_id, _ADA.user_id, _ADA.walkthrough_ids[1])
_VERSIONS = [VersionKey(_SERVER.organization_id, id, 1) for id in _ADA.walkthrough_ids]
_STANDING = Progress(
    key=_KEY,
    version=1,
    attempt=1,
    revision=1,
    status=Status.IN_PROGRESS,
    current_step_id=_SEEDED.step_id(_KEY.walkthrough_id, 1),
    carried=frozenset(),
    started_at=Millis(1),
    last_activity_at=Millis(2),
    completed_at=None,
)


def _moved(progress: Progress, kind: EventKind) -> Transition:
    """To the next step, or from none to the first."""
    begins = kind is EventKind.STARTED
    revision = 1 if begins else progress.revision + 1
    event = ProgressEvent(
        revision=revision,
        kind=kind,
        attempt=progress.attempt,
        version=progress.version,
        from_step_id=None if begins else progress.current_step_id,
        to_step_id=StepId(f"stp_{revision}"),
        outcome=None if begins else Outcome.DONE,
        note=None,
        occurred_at=Millis(progress.last_activity_at + 1),
    )
    after = replace(progress, revision=revision, current_step_id=event.to_step_id, last_activity_at=event.occurred_at)
    return Transition(None if begins else progress, after, (event,), Told.STARTED if begins else Told.ADVANCED)


_PUBLISHED = Publication(1, PublishPolicy.KEEP, is_available=True)
_NEW = replace(_STANDING, key=_KEY._replace(walkthrough_id=_SEEDED.assigned(0)[-1]), revision=1)
_CALL = ToolCall(
    caller=_CALLER,
    id=CallId("call"),
    tool_name="list_walkthroughs",
    client_name=None,
    client_version=None,
    protocol_version="2025-11-25",
    walkthrough_id=None,
    version=None,
    step_id=None,
    outcome="ok",
    error_code=None,
    duration_us=1,
    input={},
    created_at=Millis(1),
)


async def _step_and_those_after_it(world: World) -> object:
    """As a call asks: of a version whose outline it has."""
    (outline,) = (await world.library.outlines(_VERSIONS[1:2])).values()
    return await world.library.step(outline.key, outline.steps[0].id)


# What a tool call asks of the ports, with arguments for which something is found.
HOT: dict[str, Callable[[World, Database], Awaitable[object]]] = {
    "the list": lambda world, _: world.catalogue.standings(_CALLER),
    "the list of nobody": lambda world, _: world.catalogue.standings(Caller(_SERVER, None)),
    "one by id": lambda world, _: world.catalogue.matching(_CALLER, _KEY.walkthrough_id),
    "one by key": lambda world, _: world.catalogue.matching(_CALLER, manuscript(1, 1).key),
    "one by title": lambda world, _: world.catalogue.matching(_CALLER, manuscript(8, 1).title.lower()),
    "an outline": lambda world, _: world.library.outlines(_VERSIONS[:1]),
    "five outlines": lambda world, _: world.library.outlines(_VERSIONS),
    "steps": lambda world, _: _step_and_those_after_it(world),
    "an advance": lambda world, _: world.progress.commit(_moved(_STANDING, EventKind.ADVANCED), _PUBLISHED, _CALL),
    "a start": lambda world, _: world.progress.commit(_moved(_NEW, EventKind.STARTED), _PUBLISHED, _CALL),
    "whether it is noted": lambda world, _: world.progress.is_noted(_KEY, 1, StepId("n3"), None),
    "events": lambda world, _: world.progress.events(_KEY),
    "the log": lambda world, _: record(world.calls, _CALL),
    "the server of a slug": lambda world, _: world.servers.server_at(slug=_ADA.slug, custom_domain=None),
    "the server of a domain": lambda world, _: world.servers.server_at(
        slug=None, custom_domain=f"{_ADA.slug}.example.com"
    ),
    "the visitor of an address": lambda _, database: PostgresVisitorStore(database).find(*_SEEDED.visitor()),
    "the user of a token": lambda world, _: world.tokens.bearer_of(_SERVER, hash_of(_ADA.token), Millis(0)),
}


# Of a list, what the person has begun, what is on the server, and each row that belongs to it.
_LIST = """
Sort
  Result
    Index Scan walkthrough_progress_pkey
  Hash Join
    Result
      Index Scan mcp_server_walkthroughs_pkey
    Hash
      CTE Scan mine
  Nested Loop
    Nested Loop
      Nested Loop
        Nested Loop
          CTE Scan here
          Limit
            Result
              Index Scan walkthroughs_pkey
        CTE Scan mine
      Limit
        Result
          Index Scan walkthrough_versions_pkey
    Limit
      Result
        Index Scan walkthrough_versions_pkey
"""
_BY_ID = """
Result
  Nested Loop
    Nested Loop
      Nested Loop
        Nested Loop
          Index Scan walkthroughs_pkey
          Result
            Index Scan mcp_server_walkthroughs_pkey
        Subquery Scan
          Limit
            Result
              Index Scan walkthrough_progress_pkey
      Index Scan walkthrough_versions_pkey
    Index Scan walkthrough_versions_pkey
"""
_BY_KEY = _BY_ID.replace("Scan walkthroughs_pkey", "Scan walkthroughs_key_key")
# Titles are compared outside of what ends after one row.
_BY_TITLE = """
Sort
  Result
    Index Scan walkthrough_progress_pkey
  Hash Join
    Result
      Index Scan mcp_server_walkthroughs_pkey
    Hash
      CTE Scan mine
  Nested Loop
    Nested Loop
      Nested Loop
        Nested Loop
          CTE Scan here
          Limit
            Result
              Index Scan walkthroughs_pkey
        CTE Scan mine
      Limit
        Result
          Index Scan walkthrough_versions_pkey
    Subquery Scan
      Limit
        Result
          Index Scan walkthrough_versions_pkey
"""
# The index has all of it, and in its order: no text is passed over, and nothing sorted.
_OUTLINES = """
Nested Loop
  Nested Loop
    Function Scan
    Limit
      Result
        Index Scan walkthrough_versions_pkey
  Aggregate
    Result
      Index Only Scan walkthrough_steps_outline
"""
_STEPS = """
Nested Loop
  Nested Loop
    Limit
      Result
        Index Scan walkthrough_versions_pkey
    Function Scan
  Limit
    Result
      Index Scan walkthrough_steps_pkey
"""
_SERVER_FIRST = "\nLockRows\n  Result\n    Index Scan mcp_servers_pkey\n"
_RECORDED = "\nInsert tool_calls\n  Function Scan\n"
# The plan for any arguments; and how many rows that and the one for these arguments read at most, and how many pages.
# These are what was measured with 3,000,000 rows, and a little more: an index is a page deeper there than here. A list
# has four rows for each of fifty walkthroughs, of which a bitmap counts one twice.
PLANS = {
    "the list": (260, 475, _LIST),
    "the list of nobody": (255, 465, _LIST),
    "one by id": (5, 20, _BY_ID),
    "one by key": (5, 22, _BY_ID + _BY_KEY),
    "one by title": (260, 480, _BY_ID + _BY_KEY + _BY_TITLE),
    "an outline": (6, 10, _OUTLINES),
    "five outlines": (30, 45, _OUTLINES),
    "steps": (6, 26, _STEPS),
    "an advance": (
        *(5, 36),
        _SERVER_FIRST
        + """
Insert walkthrough_progress_events
  Update walkthrough_progress
    Result
      Nested Loop
        Index Scan walkthroughs_pkey
        Result
          Index Scan mcp_server_walkthroughs_pkey
    Result
      Index Scan walkthrough_versions_pkey
    Result
      Index Scan walkthrough_progress_pkey
  Nested Loop
    CTE Scan moved
    Values Scan
"""
        + _RECORDED,
    ),
    "a start": (
        *(4, 48),
        _SERVER_FIRST
        + """
Insert walkthrough_progress_events
  Insert walkthrough_progress
    Subquery Scan
      LockRows
        Result
          Nested Loop
            Index Scan walkthroughs_pkey
            Result
              Index Scan mcp_server_walkthroughs_pkey
        Result
          Index Scan mcp_server_users_pkey
  CTE Scan begun
"""
        + _RECORDED,
    ),
    "whether it is noted": (1, 6, "\nResult\n  Result\n    Index Scan walkthrough_progress_events_pkey\n"),
    "events": (1, 6, "\nResult\n  Index Scan walkthrough_progress_events_pkey\n"),
    "the log": (0, 12, _RECORDED),
    "the server of a slug": (1, 6, "\nIndex Scan mcp_servers_slug_key\n"),
    "the server of a domain": (
        *(1, 8),
        "\nIndex Scan mcp_servers_slug_key\n\nIndex Scan mcp_servers_custom_domain_key\n",
    ),
    "the visitor of an address": (
        *(2, 12),
        """
Result
  Nested Loop
    Index Scan mcp_server_user_identities_pkey
    Index Scan mcp_server_users_pkey
""",
    ),
    "the user of a token": (1, 6, "\nResult\n  Index Scan access_tokens_pkey\n"),
}


# What frames a statement.
_FRAME = re.compile(r"begin|commit|rollback|savepoint|release|select set_config", re.IGNORECASE)
_FUNCTION = """
select prosrc, prosecdef, coalesce(proconfig, '{}'), proargnames,
       array(select format_type(kind, null) from unnest(proargtypes) with ordinality as of (kind, place) order by place)
  from pg_proc where proname = $1
"""


async def _inside(connection: Any, statement: str) -> tuple[list[str], bool, list[str]]:
    """The statements in the function that this one calls, in their order, or else itself.

    And whether they run as the owner, and under which settings.
    """
    called = re.fullmatch(r"select (?:\* from )?(\w+)\([$0-9, ]*\)", statement)
    if called is None:
        return [statement], False, []
    source, is_owners, settings, names, types = await connection.fetchrow(_FUNCTION, called[1])
    for place, name in enumerate((names or [])[: len(types)], start=1):
        source = re.sub(rf"\b{name}\b", f"${place}", source) if name else source
    source = re.sub(r"\$(\d+)", lambda found: f"(${found[1]}::{types[int(found[1]) - 1]})", source)
    # Of SQL, all; of PL/pgSQL, what begins a line, but for what only names the organisation.
    source = source.replace("perform from", "select from")
    inside = re.findall(r"^\s*(?:return query\s+)?((?:select|with|insert)\s.*?);", source, re.DOTALL | re.MULTILINE)
    return [each.replace("[number]", "[1]") for each in inside or [source]], is_owners, settings


def _by_what_it_uses(statement: str) -> tuple[str, list[int]]:
    """The statement with its parameters numbered from 1, and which they are: not each uses all of a function's."""
    used = sorted({int(number) for number in re.findall(r"\$(\d+)", statement)})
    return re.sub(r"\$(\d+)", lambda found: f"${used.index(int(found[1])) + 1}", statement), used


class ExplainingDatabase(Database):
    """Explains each hot statement after it has run, and takes back what it did.

    Of a function, the statements in it, under the same setting and as the same role: up to the first that finds
    something to answer with, which is the last that the function runs.
    """

    plans: list[list[dict[str, Any]]]
    """Analysed, of each statement that runs: those for any arguments, which take over when a connection has run a
    statement some times; and those for its own arguments, unless it never has one."""

    @asynccontextmanager
    async def hot(self) -> AsyncIterator[Any]:
        ran: list[Any] = []
        async with super().hot() as connection:
            async with _taken_back(connection):
                with connection.query_logger(ran.append):
                    yield connection
            (query,) = [each for each in ran if not _FRAME.match(each.query)]
            statements, is_owners, settings = await _inside(connection, query.query)
            self.plans = []
            for mode in ["generic"] if "plan_cache_mode=force_generic_plan" in settings else ["generic", "custom"]:
                self.plans.append([])
                async with _taken_back(connection):
                    await connection.execute(
                        "select set_config('app.organization_id', $1, true)", _SERVER.organization_id
                    )
                    if is_owners:
                        await connection.execute("set local role none")
                    for setting in [*settings, f"plan_cache_mode=force_{mode}_plan"]:
                        await connection.execute("select set_config($1, $2, true)", *setting.split("=", 1))
                    for statement in statements:
                        asked, used = _by_what_it_uses(statement)
                        given = f"({', '.join(_literal(query.args[number - 1]) for number in used)})" if used else ""
                        await connection.execute(f"prepare hot as {asked}")
                        # What a connection reads of the catalogue, it reads once.
                        await connection.fetchval(f"explain (format json) execute hot {given}")
                        explained = await connection.fetchval(
                            f"explain (analyze, buffers, timing off, format json) execute hot {given}"
                        )
                        await connection.execute("deallocate hot")
                        (found,) = json.loads(explained)
                        self.plans[-1].append(found["Plan"])
                        if found["Plan"]["Actual Rows"] and found["Plan"]["Node Type"] != "LockRows":
                            break


def _literal(value: object) -> str:
    match value:
        case None:
            return "null"
        case int():
            return str(value)
        case bytes():
            return f"'\\x{value.hex()}'"
        case list():
            return f"array[{', '.join(map(_literal, value))}]::text[]"
        case _:
            return "'" + str(value).replace("'", "''") + "'"


@asynccontextmanager
async def _taken_back(connection: Any) -> AsyncIterator[None]:
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    finally:
        await transaction.rollback()


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


def _shape(plan: dict[str, Any], depth: int = 0) -> str:
    """A line for each node: its kind, and the table it writes or the index it searches.

    How the little that somebody has begun is joined to what is on the server differs between PostgreSQL's versions.
    """
    kind = plan.get("Operation") or plan["Node Type"]
    named = plan.get("Index Name") or plan.get("Relation Name") or plan.get("CTE Name") or ""
    line = f"{'  ' * depth}{kind} {named}".rstrip() + "\n"
    shape = line + "".join(_shape(child, depth + 1) for child in plan.get("Plans", []))
    return shape.replace("Merge Join", "Hash Join").replace("Sort\n      CTE Scan mine", "Hash\n      CTE Scan mine")


def _rows_read(plan: dict[str, Any]) -> int:
    """How many rows were found in tables and indexes, whether or not they were of use."""
    return sum(
        round((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"])
        for node in _nodes(plan)
        if ("Relation Name" in node and "Operation" not in node) or "Index Name" in node
    )


async def _have_stood(url: str) -> None:
    """Somebody stands where `_STANDING` has it, in time as well."""
    owner = await asyncpg.connect(url)
    await owner.execute(
        "update walkthrough_progress set started_at = $1, last_activity_at = $2"
        " where organization_id = $3 and mcp_server_user_id = $4 and walkthrough_id = $5",
        *(_STANDING.started_at, _STANDING.last_activity_at),
        *(_KEY.organization_id, _KEY.user_id, _KEY.walkthrough_id),
    )
    await owner.close()


async def _plans(url: str, name: str) -> list[list[dict[str, Any]]]:
    """`ExplainingDatabase.plans` of a hot statement: none reads more than it may."""
    most_rows, most_pages, _ = PLANS[name]
    await _have_stood(url)
    async with ExplainingDatabase(Access(url, assume_role=True)) as database:
        answer = await HOT[name](on_postgres(database), database)
    assert answer is not False or name == "whether it is noted"
    assert answer not in ([], {}), "with other arguments, it would have another plan"
    for plans in database.plans:
        nodes = [node for plan in plans for node in _nodes(plan)]
        assert [node["Relation Name"] for node in nodes if "Seq Scan" in node["Node Type"]] == []
        # Nor a whole index: each search in one begins with the organisation, or with the host's name.
        searches = [node.get("Index Cond", "") for node in nodes if "Index Name" in node]
        assert all(re.search(r"\((organization_id|slug|custom_domain) = ", search) for search in searches), searches
        assert sum(map(_rows_read, plans)) <= most_rows
        assert sum(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for plan in plans) <= most_pages
    return database.plans


@pytest.mark.parametrize("name", HOT)
async def test_a_hot_statement_finds_its_rows_by_the_same_indexes_however_many_there_are(
    grown: Seeded, name: str
) -> None:
    plans = await _plans(grown.owner_url, name)
    assert "".join("\n" + _shape(plan) for plan in plans[0]) == PLANS[name][-1]


# Next to nobody is in a walkthrough, but in that of `_KEY`, where a thousand are and have been stuck. The planner then
# takes what leads to everybody in a walkthrough for as good as a primary key, if it may.
_CROWDED = Scale(10_000, walkthroughs=5_000, steps=2, servers=100, assignments=50, learners=10)
_CROWD = """
set session_replication_role = replica;
insert into walkthrough_progress
select organization_id, mcp_server_id, 'usr_' || number, walkthrough_id, version, attempt, revision, current_step_id,
       carried, status, started_at, last_activity_at, completed_at
  from walkthrough_progress, generate_series(1, 1000) number
 where organization_id = '{0}' and mcp_server_user_id = '{1}' and walkthrough_id = '{2}';
insert into walkthrough_progress_events
select organization_id, mcp_server_id, 'usr_' || number, walkthrough_id, revision, attempt, version, 'stuck',
       to_step_id, to_step_id, 'stuck', note, occurred_at
  from walkthrough_progress_events, generate_series(1, 1000) number
 where organization_id = '{0}' and mcp_server_user_id = '{1}' and walkthrough_id = '{2}';
"""


@pytest.fixture(scope="module")
def crowded_url(make_database: Callable[..., str]) -> str:
    async def crowd(url: str) -> None:
        await fill(url, _CROWDED)
        owner = await asyncpg.connect(url)
        await owner.execute(_CROWD.format(_KEY.organization_id, _KEY.user_id, _KEY.walkthrough_id))
        await owner.execute("vacuum analyze")
        await owner.close()

    url = make_database()
    asyncio.run(crowd(url))
    return url


@pytest.mark.parametrize(
    "name", ["the list", "one by id", "one by key", "one by title", "an advance", "whether it is noted", "events"]
)
async def test_what_one_person_has_is_found_by_primary_keys_however_many_are_in_their_walkthrough(
    crowded_url: str, name: str
) -> None:
    keys = set(re.findall(r"\w+_p?key\b", PLANS[name][-1]))
    for plans in await _plans(crowded_url, name):
        assert {node["Index Name"] for plan in plans for node in _nodes(plan) if "Index Name" in node} == keys


async def test_advancing_updates_in_place(owner_url: str, owner: asyncpg.Connection) -> None:
    """HOT: the new row version is in the same page, and no index is touched.

    All versions of these rows have room in one page. Whether that of former ones is used again follows from who else
    has a transaction open, in whichever database of the server.
    """
    counted = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'walkthrough_progress'"
    before = await owner.fetchrow(counted)
    async with Database(Access(owner_url, assume_role=True), pool_size=1) as database:
        world = on_postgres(database)
        server = await world.server()
        await world.publish("one", "two")
        learners = []
        for number in range(5):
            caller = await world.caller(server, f"learner-{number}@example.com")
            lesson = await world.learning.select(caller, "tour", restart=False, to_latest=False)
            learners.append(lesson.progress)
        for _ in range(4):
            for number, progress in enumerate(learners):
                transition = _moved(progress, EventKind.ADVANCED)
                assert await world.progress.commit(transition, _PUBLISHED)
                learners[number] = transition.after
        async with database.hot() as connection:
            await connection.execute("select pg_stat_force_next_flush()")
    await owner.execute("select pg_stat_clear_snapshot()")
    updated, in_place = (now - then for now, then in zip(await owner.fetchrow(counted), before, strict=True))
    assert (updated, in_place) == (20, 20)


# Three hundred walkthroughs, ten of them with 200 people of 20 events each; written as they come to be, in the order of
# time, with people in no order at all. From minute 2,200 on there are one's tenth event and everybody's last ten.
# Another organisation has the same ids throughout, and everybody there is stuck.
_A_MONTH = """
set session_replication_role = replica;
insert into organizations values ('o1', 'o1', 'O', 1);
insert into walkthroughs select 'o1', 'w' || w, 'k' || w, true, 1, null, 1, 1 from generate_series(1, 300) w;
insert into walkthrough_versions
select 'o1', 'w' || w, 1, 'published', 'Title', 'Shows.', 'course', 'w' || w || 'n1', 20, 10, 'h', 'keep', 1, null, 1
  from generate_series(1, 300) w;
insert into walkthrough_steps
select 'o1', 'w' || w, 1, 'w' || w || 'n' || n, 'n' || n, 'Step', 'w' || w || 'n' || nullif(n + 1, 21), n, 'Do it.',
       null, null, null, 'explain', 1
  from generate_series(1, 300) w, generate_series(1, 20) n;
insert into walkthrough_progress
select 'o1', 's' || u % 3, md5('u' || u), 'w' || w, 1, 1, 20, 'w' || w || 'n20', '{}', 'in_progress', 1, 2, null
  from generate_series(1, 10) w, generate_series(1, 200) u;
insert into walkthrough_progress_events
select 'o1', 's' || u % 3, md5('u' || u), 'w' || w, r, 1, 1, case r when 1 then 'started' else 'advanced' end,
       case when r > 1 then 'w' || w || 'n' || r - 1 end, 'w' || w || 'n' || r, case when r > 1 then 'done' end, null,
       60000 * (u + 200 * r)
  from generate_series(1, 10) w, generate_series(1, 200) u, generate_series(1, 20) r
 order by 13;
insert into walkthrough_progress_events
select 'o2', mcp_server_id, mcp_server_user_id, walkthrough_id, revision, attempt, version, 'stuck', to_step_id,
       to_step_id, 'stuck', 'theirs', occurred_at
  from walkthrough_progress_events;
reset session_replication_role;
"""


class ListeningDatabase(Database):
    """Remembers what it was asked, and with what."""

    asked: list[Any]

    @asynccontextmanager
    async def hot(self) -> AsyncIterator[Any]:
        self.asked = []
        async with super().hot() as connection:
            with connection.query_logger(self.asked.append):
                yield connection


@pytest.mark.parametrize(("since", "events"), [(None, 4_000), (60_000 * 2_200, 2_001)], ids=["ever", "since"])
async def test_the_numbers_read_one_walkthroughs_events_from_the_time_range_on_by_index(
    fresh_url: str, since: int | None, events: int
) -> None:
    cohort = Cohort(None, None, None if since is None else Millis(since), None)
    measures = Measures(Millis(10**12), PAUSE, TOO_FAST, Millis(1), 10)
    owner = await asyncpg.connect(fresh_url)
    await owner.execute(_A_MONTH)
    await owner.execute("vacuum analyze")
    async with ListeningDatabase(Access(fresh_url, assume_role=True), pool_size=1) as database:
        counts = await on_postgres(database).funnels.counts(
            OrganizationId("o1"), WalkthroughId("w10"), cohort, measures
        )
        limit, query = [each for each in database.asked if not _FRAME.match(each.query)]  # one for all the numbers
        assert limit.query == "set local statement_timeout = '30s'"
        async with database.hot() as connection:
            assert await connection.fetchval("show statement_timeout") == "3s"  # for every other statement
    assert counts.attempts.started == (200 if since is None else 0)
    assert (counts.attempts.stuck, counts.note_count) == (0, 0)
    await owner.execute("begin; set local role cairn_service; set local app.organization_id = 'o1'")
    explained = await owner.fetchval(f"explain (analyze, timing off, format json) {query.query}", *query.args)
    await owner.close()
    nodes = list(_nodes(json.loads(explained)[0]["Plan"]))
    assert [node["Relation Name"] for node in nodes if "Seq Scan" in node["Node Type"]] == []
    scans = [node for node in nodes if node.get("Relation Name") == "walkthrough_progress_events"]
    assert len(scans) == 2  # for all that happened, and for who was stuck
    read = [node["Actual Rows"] * node["Actual Loops"] + node.get("Rows Removed by Filter", 0) for node in scans]
    assert max(read) == events
