"""The hot statements find their rows through indexes, however many there are, and updates stay within their page."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Any

import asyncpg
import pytest

from adapters.postgres.connections import Access, Database
from adapters.postgres.visitors import PostgresVisitorStore
from application.insight import PAUSE, TOO_FAST
from application.ports import Cohort, Measures, ToolCall
from domain.progress import EventKind, Outcome, Progress, ProgressEvent, ProgressKey, Status, Told, Transition
from domain.tenancy import (
    Caller,
    CallId,
    Millis,
    OrganizationId,
    ServerId,
    ServerKey,
    StepId,
    UserId,
    WalkthroughId,
)
from domain.walkthrough import VersionKey
from tests.calls import record
from tests.worlds import World, on_postgres

# Ten organisations, each with 50 servers of 10 walkthroughs, and 100 people, who stand in 5 walkthroughs of the first
# server. One of them, o3, has 10,000 walkthroughs. Enough for the planner to tell what one caller has from what an
# organisation has, and an index from a scan. Foreign keys and triggers are off, for speed.
_CROWD = """
set session_replication_role = replica;
insert into organizations select 'o' || o, 'o' || o, 'O', 1 from generate_series(0, 9) o;
insert into mcp_servers (organization_id, id, slug, custom_domain, name, auth_mode, created_at)
select 'o' || o, 's' || s, 'o' || o || 's' || s, 'o' || o || 's' || s || '.example.com', 'S', 'on_demand', 1
  from generate_series(0, 9) o, generate_series(0, 49) s;
insert into mcp_server_users select 'o' || o, 'u' || u, 'u' || u || '@example.com', 1, 1, 1
  from generate_series(0, 9) o, generate_series(0, 99) u;
insert into mcp_server_user_identities
select 'o' || o, 'visitor:s0', encode(sha256(('o' || o || 'v' || u)::bytea), 'hex'), 'u' || u, 1
  from generate_series(0, 9) o, generate_series(0, 99) u;
insert into access_tokens select 'o' || o, sha256(('o' || o || 'u' || u || 't' || t)::bytea), 's0', 'u' || u, 1
  from generate_series(0, 9) o, generate_series(0, 99) u, generate_series(0, 2) t;
insert into walkthroughs select 'o' || o, 'w' || w, 'k' || w, true, 2, null, 1, 1
  from generate_series(0, 9) o, generate_series(0, case o when 3 then 9999 else 39 end) w;
insert into walkthrough_versions
select 'o' || o, 'w' || w, v, 'published', 'Title ' || w, 'Shows.', 'course', 'w' || w || 'v' || v || 'n1', 6, 10, 'h',
       'keep', 1, null, 1
  from generate_series(0, 9) o, generate_series(0, case o when 3 then 9999 else 39 end) w, generate_series(1, 2) v;
insert into walkthrough_steps
select 'o' || o, 'w' || w, v, 'w' || w || 'v' || v || 'n' || n, 'n' || n, 'Step',
       'w' || w || 'v' || v || 'n' || nullif(n + 1, 7), n, 'Do it.', null, null, null, 'explain', 1
  from generate_series(0, 9) o, generate_series(0, 39) w, generate_series(1, 2) v, generate_series(1, 6) n;
insert into mcp_server_walkthroughs select 'o' || o, 's' || s, 'w' || w, w, true, 1
  from generate_series(0, 9) o, generate_series(0, 49) s, generate_series(0, 39) w where w % 4 = s % 4;
insert into walkthrough_progress
select 'o' || o, 's0', 'u' || u, 'w' || (u * 7 + p * 8) % 40, 1, 1, 3, 'n3', '{}', 'in_progress', 1, 2, null
  from generate_series(0, 9) o, generate_series(0, 99) u, generate_series(0, 4) p;
insert into walkthrough_progress_events
select p.organization_id, p.mcp_server_id, p.mcp_server_user_id, p.walkthrough_id, r, 1, 1,
       case r when 1 then 'started' else 'advanced' end, null, null, case r when 1 then null else 'done' end, null, 1
  from walkthrough_progress p, generate_series(1, 3) r;
insert into tool_calls (organization_id, created_at, id, mcp_server_id, tool_name, protocol_version, outcome,
       duration_us, input)
select 'o' || n % 10, n, 'c' || n, 's0', 't', 'p', 'ok', 1, '{}' from generate_series(1, 5000) n;
reset session_replication_role;
"""


@pytest.fixture(scope="module")
def crowded_url(make_database: Callable[..., str]) -> str:
    """A database with ten busy organisations."""
    url = make_database()

    async def fill() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(_CROWD)
        await connection.execute("vacuum analyze")
        await connection.close()

    asyncio.run(fill())
    return url


_SERVER = ServerKey(OrganizationId("o3"), ServerId("s0"))
_U0 = Caller(_SERVER, UserId("u0"))  # stands in w0, w8, w16, w24 and w32
_KEY = ProgressKey(_SERVER.organization_id, _SERVER.server_id, UserId("u0"), WalkthroughId("w8"))
_VERSIONS = [VersionKey(_SERVER.organization_id, WalkthroughId(f"w{n}"), 1 + n % 16 // 8) for n in (0, 8, 16, 24, 32)]
_STANDING = Progress(
    key=_KEY,
    version=1,
    attempt=1,
    revision=3,
    status=Status.IN_PROGRESS,
    current_step_id=StepId("n3"),
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


_NEW = replace(_STANDING, key=replace(_KEY, walkthrough_id=WalkthroughId("w1")), revision=1)
_CALL = ToolCall(
    caller=_U0,
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


# What a tool call asks of the ports, with arguments for which something is found.
HOT: dict[str, Callable[[World], Awaitable[object]]] = {
    "the list": lambda world, _: world.catalogue.standings(_U0),
    "the list of nobody": lambda world, _: world.catalogue.standings(Caller(_SERVER, None)),
    "one by id": lambda world, _: world.catalogue.matching(_U0, "w8"),
    "one by title": lambda world, _: world.catalogue.matching(_U0, "title 8"),
    "content": lambda world, _: world.library.versions(_VERSIONS[:1]),
    "content of five": lambda world, _: world.library.versions(_VERSIONS),
    "an advance": lambda world, _: world.progress.commit(_moved(_STANDING, EventKind.ADVANCED)),
    "a start": lambda world, _: world.progress.commit(_moved(_NEW, EventKind.STARTED)),
    "whether it is noted": lambda world, _: world.progress.is_noted(_KEY, 1, StepId("n3"), None),
    "events": lambda world, _: world.progress.events(_KEY),
    "the log": lambda world, _: record(world.calls, _CALL),
    "the server of a slug": lambda world, _: world.servers.server_at(slug="o3s7", custom_domain=None),
    "the server of a domain": lambda world, _: world.servers.server_at(slug=None, custom_domain="o3s7.example.com"),
    "the visitor of an address": lambda _, database: PostgresVisitorStore(database).find(
        _SERVER, sha256(b"o3v0").digest()
    ),
    "the user of a token": lambda world, _: world.tokens.bearer_of(_SERVER, sha256(b"o3u0t0").digest(), Millis(0)),
}


# What frames a statement.
_FRAME = re.compile(r"begin|commit|rollback|savepoint|release|select set_config", re.IGNORECASE)
_FUNCTION = """
select prosrc, prosecdef, proargnames,
       array(select format_type(kind, null) from unnest(proargtypes) with ordinality as of (kind, place) order by place)
  from pg_proc where proname = $1
"""


async def _inside(connection: Any, statement: str) -> tuple[str, bool]:
    """The statement in the function that this one calls, and whether it runs as the owner; or else itself."""
    called = re.fullmatch(r"select (?:\* from )?(\w+)\([$0-9, ]*\)", statement)
    if called is None:
        return statement, False
    source, is_owners, names, types = await connection.fetchrow(_FUNCTION, called[1])
    for place, name in enumerate((names or [])[: len(types)], start=1):
        source = re.sub(rf"\b{name}\b", f"${place}", source) if name else source
    guarded = re.search(r"set_config\(.*?;\s*(?:return query)?(.*?);", source, re.DOTALL)
    statement = guarded[1] if guarded else source
    statement = re.sub(r"\$(\d+)", lambda found: f"(${found[1]}::{types[int(found[1]) - 1]})", statement)
    return statement.replace("[number]", "[1]"), is_owners


class ExplainingDatabase(Database):
    """Explains each hot statement after it has run, and takes back what it did.

    Of a function, the statement in it, under the same setting and as the same role.
    """

    nodes: list[dict[str, Any]]
    """Of the plan for its arguments, analysed."""
    generic_nodes: list[dict[str, Any]]
    """Of the plan for any arguments, which may take over from the sixth run of a statement on."""

    @asynccontextmanager
    async def hot(self) -> AsyncIterator[Any]:
        ran: list[Any] = []
        async with super().hot() as connection:
            async with _taken_back(connection):
                with connection.query_logger(ran.append):
                    yield connection
            (query,) = [each for each in ran if not _FRAME.match(each.query)]
            statement, is_owners = await _inside(connection, query.query)
            async with _taken_back(connection):
                await self._act(connection, is_owners)
                explained = await connection.fetchval(
                    f"explain (analyze, timing off, format json) {statement}", *query.args
                )
                self.nodes = list(_nodes(json.loads(explained)[0]["Plan"]))
            async with _taken_back(connection):
                await self._act(connection, is_owners)
                await connection.execute("set local plan_cache_mode = force_generic_plan")
                await connection.execute(f"prepare hot as {statement}")
                nothing = ", ".join(["null"] * len(query.args))
                explained = await connection.fetchval(f"explain (format json) execute hot ({nothing})")
                await connection.execute("deallocate hot")
                self.generic_nodes = list(_nodes(json.loads(explained)[0]["Plan"]))

    async def _act(self, connection: Any, is_owners: bool) -> None:
        await connection.execute("select set_config('app.organization_id', $1, true)", _SERVER.organization_id)
        if is_owners:
            await connection.execute("set local role none")


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


@pytest.mark.parametrize("ask", HOT.values(), ids=HOT)
async def test_a_hot_statement_scans_no_table(
    crowded_url: str, ask: Callable[[World, Database], Awaitable[object]]
) -> None:
    async with ExplainingDatabase(Access(crowded_url, assume_role=True)) as database:
        answer = await ask(on_postgres(database), database)
        assert answer is not False or ask is HOT["whether it is noted"]
        assert answer not in ([], {}), "with other arguments, it would have another plan"
        for nodes in (database.nodes, database.generic_nodes):
            assert [node["Relation Name"] for node in nodes if "Seq Scan" in node["Node Type"]] == []
            # Nor a whole index: each search in one begins with the organisation, or with the host's name.
            searches = [node.get("Index Cond", "") for node in nodes if "Index Name" in node]
            assert all(re.search(r"\((organization_id|slug|custom_domain) = ", search) for search in searches), searches
        # Nor all that an organisation has: what one person and one server have, and no more.
        read = [
            node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            for node in database.nodes
            if "Relation Name" in node or "Index Name" in node
        ]
        assert max(read, default=0) <= 30


async def test_advancing_updates_in_place(owner_url: str, owner: asyncpg.Connection) -> None:
    """HOT: the new row version is in the same page, and no index is touched."""
    counted = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'walkthrough_progress'"
    # Whatever reads the table meanwhile keeps room from being used again.
    await owner.execute("alter table walkthrough_progress set (autovacuum_enabled = off)")
    before = await owner.fetchrow(counted)
    async with Database(Access(owner_url, assume_role=True), pool_size=1) as database:
        world = on_postgres(database)
        server = await world.server()
        await world.publish("one", "two")
        learners = []
        for number in range(40):
            caller = await world.caller(server, f"learner-{number}@example.com")
            lesson = await world.learning.select(caller, "tour", restart=False, to_latest=False)
            learners.append(lesson.progress)
        for _ in range(25):
            for number, progress in enumerate(learners):
                transition = _moved(progress, EventKind.ADVANCED)
                assert await world.progress.commit(transition)
                learners[number] = transition.after
        async with database.hot() as connection:
            await connection.execute("select pg_stat_force_next_flush()")
    await owner.execute("select pg_stat_clear_snapshot()")
    updated, in_place = (now - then for now, then in zip(await owner.fetchrow(counted), before, strict=True))
    assert updated >= 1_000
    assert in_place > 0.9 * updated, f"{in_place} of {updated}"


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
