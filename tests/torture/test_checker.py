"""The checker names each thing that cannot be, and nothing else; a history that a real service has written has none."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest

from adapters.postgres.connections import Access, Database
from adapters.postgres.visitors import PostgresVisitorStore
from adapters.system import RandomIds, SystemClock
from application.limits import Limit
from application.visitors import Visitors
from domain.draft import RenameStep
from domain.tenancy import AuthMode
from domain.walkthrough import PublishPolicy
from tests.processes import PROJECT, Learner, Serving, environment, learner
from tests.serving.conftest import make_tenant, service
from tests.torture.checker import violations

__all__ = ["service"]


class _NoLimits:
    async def hit(self, limit: Limit, *who: str) -> None:
        """Lets everybody pass."""


async def _advance(me: Learner, told: dict[str, Any], *, times: int = 1, **given: Any) -> dict[str, Any]:
    for _ in range(times):
        told = await me.call("next_walkthrough_step", completed_step=told["step"]["handle"], **given)
    return told


@pytest.fixture(scope="module")
async def history(owner_url: str, service: Serving) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the superuser's to a database in which everything has happened once that may happen."""
    async with Database(Access(owner_url, assume_role=True)) as database:
        await _happen(database, service)
        # A second organisation, in which the same has happened.
        await _happen(database, service)
    connection = await asyncpg.connect(owner_url)
    await connection.execute(_FAMILIES)
    yield connection
    await connection.close()


async def _happen(database: Database, service: Serving) -> None:
    tenant = await make_tenant(database, service, auth_mode=AuthMode.ANONYMOUS)
    world, server = tenant.world, tenant.server.key
    visitors = Visitors(
        *(PostgresVisitorStore(database), world.catalogue, world.library, world.progress),
        *(_NoLimits(), RandomIds(), SystemClock()),
    )
    for key in ("tour", "united", "finished", "given", "kept"):
        await tenant.publish("one", "two", "three", key=key, title=key)

    async with tenant.learner("ada@example.com") as ada:
        await ada.call("list_walkthroughs")
        told = await ada.call("select_walkthrough", walkthrough="tour")
        first = told["step"]["handle"]
        await ada.call("next_walkthrough_step", completed_step=first, outcome="stuck", note="why")
        told = await _advance(ada, told, outcome="skipped")
        await ada.call("next_walkthrough_step", completed_step=first)
        await ada.call("review_walkthrough_step", walkthrough="tour", step_number=1)
        await tenant.publish("two", "one", "four", key="tour", title="tour", policy=PublishPolicy.CARRY_OVER)
        told = await _advance(ada, told)  # moved to version 2, where both are completed
        assert (told["status"], told["step"]["key"]) == ("moved_to_latest", "four")
        assert (await _advance(ada, told))["status"] == "completed"
        told = await ada.call("select_walkthrough", walkthrough="tour", restart=True)
        await tenant.publish("five", "two", "one", key="tour", title="tour")
        told = await ada.call("select_walkthrough", walkthrough="tour", version="latest")
        await tenant.publish("six", "one", key="tour", title="tour", policy=PublishPolicy.SUPERSEDE)
        await ada.refused("next_walkthrough_step", completed_step=told["step"]["handle"])
        told = await ada.call("select_walkthrough", walkthrough="tour")
        assert told["status"] == "restarted"
        await _advance(ada, told)
        for key in ("united", "finished", "kept"):
            await ada.call("select_walkthrough", walkthrough=key)

    visitor = await visitors.mint(server, "192.0.2.1")
    url = service.url.replace("/mcp", f"/v/{visitor}/mcp")
    async with learner(url, host=tenant.host) as me:
        for key, steps in (("united", 2), ("finished", 3), ("given", 1)):
            await _advance(me, await me.call("select_walkthrough", walkthrough=key), times=steps)
    await tenant.publish("zero", "one", key="kept", title="kept")
    async with learner(url, host=tenant.host) as me:
        await me.call("select_walkthrough", walkthrough="kept")
    visiting = await visitors.visitor(server, visitor)
    account = (await tenant.caller("ada@example.com")).user_id
    assert isinstance(visiting, str)
    assert account is not None
    assert await visitors.merge(server, visiting, account)
    async with tenant.learner("ada@example.com") as ada:
        told = await ada.call("select_walkthrough", walkthrough="given")
        assert told["step"]["key"] == "two"
        await _advance(ada, told)
        assert (await ada.call("select_walkthrough", walkthrough="united"))["step"]["key"] == "three"
        assert (await ada.call("select_walkthrough", walkthrough="finished"))["status"] == "completed"

    async with tenant.learner("grace@example.com") as grace:
        await _advance(grace, await grace.call("select_walkthrough", walkthrough="united"), times=2)

    draft = await world.authoring.draft(tenant.organization, "united")
    edits = [RenameStep("one", "uno"), RenameStep("two", "due")]
    await world.authoring.edit(tenant.organization, "united", (draft.key.number, draft.revision), edits, by="ada")


# For each Ada: a family whose code was redeemed, and one that was revoked, as they are left in the tables.
_FAMILIES = """
insert into oauth_grants
select u.organization_id, g.id, s.id, u.id, 'client', 'Client', 'walkthroughs', 1, g.revoked_at, 9
  from mcp_server_users u
  join mcp_servers s using (organization_id), (values ('live', null::bigint), ('ended', 5)) as g (id, revoked_at)
 where u.email = 'ada@example.com';
insert into oauth_codes
select organization_id, sha256(id::bytea), id, null, 'challenge', 2, 1 from oauth_grants;
insert into oauth_refresh_tokens
select organization_id, sha256('refresh'), id, 1, 9, null from oauth_grants where id = 'live';
insert into access_tokens (organization_id, token_hash, mcp_server_id, mcp_server_user_id, created_at, grant_id, scope,
       expires_at)
select organization_id, sha256('access'), mcp_server_id, mcp_server_user_id, 1, id, scope, 8
  from oauth_grants where id = 'live';
"""


# In SQL: people and things of one of the two organisations, and the other one.
_NAMES = """
create temporary table names on commit drop as
select g.organization_id as org, g.id as grace, a.id as ada, v.id as visitor, s.id as server, t.id as tour,
       w.id as united, n.id as given, f.id as finished,
       (select max(id) from organizations) as other, (select max(id) from mcp_server_users where organization_id =
       (select max(id) from organizations)) as stranger
  from organizations o
  join mcp_servers s on s.organization_id = o.id
  join mcp_server_users g on g.organization_id = o.id and g.email = 'grace@example.com'
  join mcp_server_users a on a.organization_id = o.id and a.email = 'ada@example.com'
  join mcp_server_users v on v.organization_id = o.id and v.merged_into = a.id
  join walkthroughs t on t.organization_id = o.id and t.key = 'tour'
  join walkthroughs w on w.organization_id = o.id and w.key = 'united'
  join walkthroughs n on n.organization_id = o.id and n.key = 'given'
  join walkthroughs f on f.organization_id = o.id and f.key = 'finished'
 where o.id = (select min(id) from organizations);
create function pg_temp.step(walkthrough text, its_key text, its_version integer) returns text language sql as
    'select id from walkthrough_steps where walkthrough_id = $1 and key = $2 and version = $3';
"""
_PROGRESS = "update walkthrough_progress p set {} from names where p.mcp_server_user_id = grace"
_EVENT = "update walkthrough_progress_events e set {} from names where e.mcp_server_user_id = grace and e.revision = {}"
_TOUR = "update walkthrough_progress_events e set {} from names where e.walkthrough_id = tour and e.kind = '{}'"
_MERGE = "update walkthrough_progress_events e set {} from names where e.walkthrough_id = {} and e.kind = 'merged'"
_CALL = "update tool_calls c set {} from names where c.mcp_server_user_id = grace and c.outcome = 'advanced'"

# The invariant and those that are broken along with it, what is said of the place, and how it comes to be broken. Grace
# has done the first two of the three steps of `united`; Ada has been led through all that may happen in `tour`.
_SEEDS = [
    ("progress.ahead", "revision 4 after 3", _PROGRESS.format("revision = 4")),
    ("progress.behind", "revision 2 after 3", _PROGRESS.format("revision = 2")),
    ("progress.ahead", "revision 3 after 2", "delete from walkthrough_progress_events e using names"
        " where e.mcp_server_user_id = grace and revision = 3"),
    ("progress.ahead", "after 0 events", "delete from walkthrough_progress_events e using names"
        " where e.mcp_server_user_id = grace"),
    ("events.gapless", "[1, 3]", "delete from walkthrough_progress_events e using names"
        " where e.mcp_server_user_id = grace and revision = 2"),
    ("progress.row", "version is 2", _PROGRESS.format("version = 2")),
    ("progress.row", "attempt is 2", _PROGRESS.format("attempt = 2")),
    ("progress.row visitors.progress", "status is 'merged'", _PROGRESS.format("status = 'merged'")),
    ("progress.row", "current_step_id", _PROGRESS.format("current_step_id = pg_temp.step(united, 'one', 1)")),
    ("progress.row", "carried", _PROGRESS.format("carried = '{three}'")),
    ("progress.row", "started_at", _PROGRESS.format("started_at = started_at - 1")),
    ("progress.row", "last_activity_at", _PROGRESS.format("last_activity_at = last_activity_at + 1")),
    ("progress.row", "completed_at", "update walkthrough_progress p set completed_at = completed_at + 1 from names"
        " where p.mcp_server_user_id = ada and completed_at is not null"),
    ("events.times", "revision 3", _EVENT.format("occurred_at = occurred_at + 60000", 2)),
    ("events.rules", "is not published", _EVENT.format("version = 2", 3)),
    ("events.rules", "begins with a start", _EVENT.format("kind = 'resumed'", 1)),
    ("events.rules", "who starts", _EVENT.format("to_step_id = pg_temp.step(united, 'two', 1)", 1)),
    ("events.rules", "starts twice", _EVENT.format("kind = 'started', outcome = null", 3)),
    ("events.rules", "advance leads on", _EVENT.format("from_step_id = pg_temp.step(united, 'one', 1)", 3)),
    ("events.rules", "advance leads to", _EVENT.format("to_step_id = pg_temp.step(united, 'three', 1)", 2)),
    ("events.rules", "advance leads to", _EVENT.format("to_step_id = null", 2)),
    ("events.rules", "has an outcome", _EVENT.format("outcome = 'stuck'", 3)),
    ("events.rules", "ends with a restart", _EVENT.format("attempt = 2", 3)),
    ("events.rules", "who resumes", _EVENT.format("kind = 'resumed', outcome = null", 3)),
    ("events.rules", "who is stuck", _EVENT.format("kind = 'stuck', outcome = 'stuck'", 3)),
    ("events.rules", "no step", _TOUR.format("from_step_id = 'stp_x'", "stuck")),
    ("events.rules", "not been shown", _TOUR.format("from_step_id = pg_temp.step(tour, 'three', 1)", "stuck")),
    ("events.rules", "move leads on", _TOUR.format("from_step_id = to_step_id", "moved")),
    ("events.rules", "move leads to", _TOUR.format("to_step_id = pg_temp.step(tour, 'one', 2)", "moved")
        + " and e.version = 2"),
    ("events.rules", "later version", _TOUR.format("version = 1", "moved") + " and e.version = 2"),
    ("events.rules", "next attempt", _TOUR.format("attempt = e.attempt + 1", "restarted")),
    ("events.rules", "restart leads", _TOUR.format("from_step_id = to_step_id", "restarted")),
    ("events.rules", "who restarts", _TOUR.format("to_step_id = pg_temp.step(tour, 'one', 4)", "restarted")
        + " and e.version = 4"),
    ("events.rules", "untouched", _EVENT.format("kind = 'restarted', outcome = null, attempt = 2,"
        " to_step_id = e.from_step_id", 2)),
    ("events.noted-twice", "revision 5", "insert into walkthrough_progress_events select organization_id,"
        " mcp_server_id, mcp_server_user_id, walkthrough_id, revision + n, attempt, version, 'stuck', from_step_id,"
        " to_step_id, 'stuck', 'why', occurred_at from walkthrough_progress_events, names, generate_series(1, 2) n"
        " where mcp_server_user_id = grace and revision = 3;" + _PROGRESS.format("revision = 5")),
    ("events.rules", "a visitor was merged", "update mcp_server_users u set merged_into = grace from names"
        " where u.id = visitor"),
    ("events.rules", "who is merged", _EVENT.format("kind = 'merged', outcome = null, from_step_id = null", 3)),
    ("events.rules", "stays where it stood", _MERGE.format("to_step_id = null", "united")
        + " and e.mcp_server_user_id = visitor"),
    ("events.rules", "stays as it is", "insert into walkthrough_progress_events select organization_id, mcp_server_id,"
        " mcp_server_user_id, walkthrough_id, revision + 1, attempt, version, 'merged', pg_temp.step(finished, 'one',"
        " 1), null, null, null, occurred_at from walkthrough_progress_events, names where mcp_server_user_id = ada"
        " and walkthrough_id = finished and kind = 'merged';"
        "update walkthrough_progress p set revision = revision + 1 from names where p.mcp_server_user_id = ada"
        " and p.walkthrough_id = finished"),
    ("events.rules", "nothing is gained", _MERGE.format("from_step_id = pg_temp.step(united, 'three', 1)", "united")
        + " and e.mcp_server_user_id = ada"),
    ("events.rules", "who gains a step", _MERGE.format("to_step_id = null", "united")
        + " and e.mcp_server_user_id = ada and e.from_step_id is distinct from e.to_step_id"),
    ("events.rules", "nothing follows", "insert into walkthrough_progress_events select organization_id, mcp_server_id,"
        " mcp_server_user_id, walkthrough_id, revision + 1, attempt, version, 'resumed', to_step_id, to_step_id, null,"
        " null, occurred_at from walkthrough_progress_events, names where mcp_server_user_id = visitor"
        " and walkthrough_id = united and kind = 'merged';"
        "update walkthrough_progress p set revision = revision + 1 from names where p.mcp_server_user_id = visitor"
        " and p.walkthrough_id = united"),
    # What callers were told.
    ("calls.no-event", "was told advanced", _CALL.format("input = jsonb_set(input, '{outcome}', '\"skipped\"')")),
    ("calls.no-event", "no handle", _CALL.format("input = '{}'")),
    ("calls.no-event", "was told stuck", _TOUR.format("kind = 'resumed', outcome = null, note = null", "stuck")),
    ("calls.no-event", "was told started", "update tool_calls c set version = 2,"
        " step_id = pg_temp.step(tour, 'two', 2) from names where c.mcp_server_user_id = ada"
        " and c.walkthrough_id = tour and c.outcome = 'started'"),
    ("calls.no-event", "was told stood", "update tool_calls c set step_id = pg_temp.step(united, 'two', 1)"
        " from names where c.mcp_server_user_id = ada and c.walkthrough_id = united and c.outcome = 'resumed'"),
    ("calls.doubled", "1×", "insert into tool_calls select (jsonb_populate_record(c, '{\"id\": \"call_again\"}')).*"
        " from tool_calls c, names where c.mcp_server_user_id = grace and c.outcome = 'advanced'"),
    ("calls.doubled", "1×", "insert into tool_calls select (jsonb_populate_record(c, '{\"id\": \"call_again\"}')).*"
        " from tool_calls c, names where c.mcp_server_user_id = ada and c.outcome = 'restarted'"),
    ("calls.never-shown", "left one", "delete from tool_calls c using names where c.mcp_server_user_id = grace"
        " and outcome = 'started'"),
    ("calls.shown", "was told repeated", "update tool_calls c set version = 2, step_id = pg_temp.step(tour, 'one', 2)"
        " from names where c.mcp_server_user_id = ada and c.outcome = 'repeated'"),
    ("calls.shown", "told repeated", "update tool_calls c set version = 4, step_id = pg_temp.step(tour, 'six', 4),"
        " input = m.input from names, tool_calls m where c.mcp_server_user_id = ada and c.outcome = 'repeated'"
        " and m.mcp_server_user_id = ada and m.outcome = 'moved_to_latest' and m.tool_name like 'next%'"),
    ("calls.shown", "told repeated", _CALL.format("outcome = 'repeated', step_id = split_part("
        "input->>'completed_step', '.', 3)")),
    ("calls.shown", "was told review", "update tool_calls c set version = 3, step_id = pg_temp.step(tour, 'two', 3)"
        " from names where c.mcp_server_user_id = ada and c.outcome = 'review'"),
    ("calls.shown", "was told stuck", "update tool_calls c set step_id = pg_temp.step(tour, 'two', 1)"
        " from names where c.mcp_server_user_id = ada and c.outcome = 'stuck'"),
    ("calls.shown", "was told completed", "update tool_calls c set step_id = pg_temp.step(finished, 'one', 1)"
        " from names where c.mcp_server_user_id = ada and c.walkthrough_id = finished and c.outcome = 'completed'"),
    ("calls.unrecorded", "at revision 3", _CALL.format("outcome = 'repeated'")),
    ("calls.unrecorded", "at revision 2", "delete from tool_calls"),
    ("calls.tenant", "call_", _CALL.format("mcp_server_user_id = stranger")),
    ("calls.tenant", "call_", "update tool_calls c set walkthrough_id = w.id from names, walkthroughs w"
        " where c.mcp_server_user_id = ada and c.outcome = 'review' and w.organization_id = other"),
    ("calls.content", "call_", "update tool_calls c set version = 9 from names where c.mcp_server_user_id = ada"
        " and c.outcome = 'review'"),
    ("calls.content", "call_", "update tool_calls c set step_id = 'stp_x' from names where c.mcp_server_user_id = ada"
        " and c.outcome = 'review'"),
    # References.
    ("reference", "walkthrough_progress ", "delete from mcp_servers s using names where s.id = server;"
        "delete from mcp_server_walkthroughs; delete from oauth_grants; delete from oauth_codes;"
        "delete from oauth_refresh_tokens; delete from access_tokens; delete from mcp_server_user_identities"),
    ("reference", "walkthrough_progress_events", "delete from walkthrough_progress p using names"
        " where p.mcp_server_user_id = grace"),
    ("reference", "mcp_server_walkthroughs", "update mcp_server_walkthroughs a set organization_id = other from names"
        " where a.organization_id = org"),
    # Content, and what its authors did.
    ("chain events.rules", "0 of 2",
        "update walkthrough_versions v set first_step_id = null from names where walkthrough_id = tour"
        " and v.version = 4"),
    ("chain events.rules", "1 of 2",
        "update walkthrough_steps s set next_step_id = id from names where walkthrough_id = tour"
        " and s.version = 4 and key = 'six'"),
    ("chain events.rules", "2 of 3",
        "update walkthrough_steps s set next_step_id = null from names where walkthrough_id = tour"
        " and s.version = 3 and key = 'two'"),
    ("chain events.rules", "2 of 2",
        "update walkthrough_versions v set step_count = 3 from names where walkthrough_id = tour"
        " and v.version = 4"),
    ("chain.positions", "/4", "update walkthrough_steps s set position = position + 5 from names"
        " where walkthrough_id = tour and s.version = 4 and key = 'one'"),
    ("chain.keys content.hash", "/3", "update walkthrough_steps s set key = 'two' from names"
        " where walkthrough_id = tour and s.version = 3 and key = 'one'"),
    ("content.hash", "/1", "update walkthrough_versions v set title = 'Other' from names where walkthrough_id = given"),
    ("content.hash", "/2", "update walkthrough_steps s set content = content || '.' from names"
        " where walkthrough_id = tour and s.version = 2 and key = 'four'"),
    ("content.hash", "/3", "update walkthrough_steps s set estimated_minutes = 1 from names"
        " where walkthrough_id = tour and s.version = 3 and key = 'five'"),
    ("versions.numbers reference", "/9",
        "update walkthrough_versions v set version = 9 from names where walkthrough_id = united"
        " and state = 'draft'"),
    ("versions.numbers events.rules ledger.versions calls.content", "/1",
        "update walkthrough_versions v set state = 'draft' from names"
        " where walkthrough_id = tour and version = 1"),
    ("versions.latest reference", "/2/1", "update walkthroughs w set latest_version = 2 from names where w.id = given"),
    ("versions.latest", "/1/1", "update walkthroughs w set archived_at = 1 from names where w.id = given"),
    ("versions.withdrawn", "/1", "update walkthrough_versions v set state = 'withdrawn' from names"
        " where walkthrough_id = given"),
    ("versions.withdrawn", "/3", "update walkthrough_versions v set on_publish = 'keep' from names"
        " where walkthrough_id = tour and version = 4; update walkthrough_ledger l set policy = 'keep' from names"
        " where walkthrough_id = tour and version = 4; insert into walkthrough_ledger select organization_id,"
        " walkthrough_id, 5, 'unpublished', version, content_hash, 'supersede', null, null, acted_at"
        " from walkthrough_ledger, names where walkthrough_id = tour and version = 4"),
    ("versions.withdrawn", "/2", "update walkthrough_versions v set state = 'published' from names"
        " where walkthrough_id = tour and version = 2"),
    ("drafts.edits", "/2", "delete from walkthrough_draft_edits e using names where organization_id = org"
        " and revision = 1"),
    ("drafts.edits", "/2", "update walkthrough_versions v set revision = 1 from names where organization_id = org"
        " and state = 'draft'"),
    ("ledger.gapless ledger.versions", "/4",
        "delete from walkthrough_ledger l using names where walkthrough_id = tour and number = 3"),
    ("ledger.versions", "/1", "update walkthrough_ledger l set content_hash = 'x' from names"
        " where walkthrough_id = given"),
    ("ledger.versions", "/1", "update walkthrough_ledger l set policy = 'offer' from names"
        " where walkthrough_id = given"),
    # People, and the families of their tokens.
    ("visitors.merged identities", "usr_", "update mcp_server_users u set email = null from names where u.id = ada"),
    ("visitors.progress", "usr_", "update walkthrough_progress p set status = 'in_progress' from names"
        " where p.mcp_server_user_id = visitor and p.walkthrough_id = united"),
    ("identities", "email", "update mcp_server_user_identities i set subject = 'x@example.com' from names"
        " where i.mcp_server_user_id = grace"),
    ("identities", "visitor:", "update mcp_server_user_identities i set issuer = 'visitor:srv_x' from names"
        " where i.mcp_server_user_id = visitor"),
    ("tokens.revoked", "/live", "update oauth_grants g set revoked_at = 5 from names where organization_id = org"),
    ("tokens.family", "/live", "update access_tokens t set mcp_server_user_id = grace from names"
        " where organization_id = org and grant_id = 'live'"),
    ("tokens.family", "/live", "update access_tokens t set scope = 'walkthroughs admin' where grant_id = 'live'"),
    ("tokens.family", "/live", "update access_tokens t set expires_at = null where grant_id = 'live'"),
    ("tokens.end", "/live/9/10", "update oauth_refresh_tokens t set expires_at = 10"),
    ("tokens.unasked", "/live", "update oauth_codes c set used_at = null"),
]  # fmt: skip
# Callers were told otherwise than what now stands there; and the rows are not what the events lead to.
_FOLLOWS = {"calls.no-event", "calls.never-shown", "calls.shown", "progress.row"}


@pytest.mark.parametrize(
    ("named", "said", "seed"), _SEEDS, ids=[f"{named.split()[0]}, {said}" for named, said, _ in _SEEDS]
)
async def test_a_violation_that_is_seeded_is_named(
    history: asyncpg.Connection, named: str, said: str, seed: str
) -> None:
    transaction = history.transaction(isolation="repeatable_read")
    await transaction.start()
    try:
        await history.execute("set local session_replication_role = replica")  # no trigger, and no foreign key
        await history.execute(_NAMES + _WITHOUT_CHECKS)
        await history.execute(seed)
        it, *along = named.split()
        found = await violations(history, is_log_whole=it == "calls.unrecorded")
        assert any(each.invariant == it and said in each.where for each in found), found
        assert {each.invariant for each in found} <= {it, *along, *_FOLLOWS}
    finally:
        await transaction.rollback()


# What PostgreSQL itself would refuse.
_WITHOUT_CHECKS = """
do $$ declare it record; begin
    for it in select conrelid::regclass as place, conname from pg_constraint
               where contype = 'c' and coninhcount = 0 and connamespace = 'public'::regnamespace loop
        execute format('alter table %s drop constraint %I', it.place, it.conname);
    end loop;
end $$;
alter table walkthrough_steps drop constraint walkthrough_steps_key_key,
    drop constraint walkthrough_steps_next_step_key;
drop index walkthrough_versions_one_draft;
"""


async def test_a_history_that_the_service_has_written_has_none(history: asyncpg.Connection) -> None:
    assert await history.fetchval("select count(distinct kind) from walkthrough_progress_events") == 7
    assert await violations(history) == []
    assert await violations(history, is_log_whole=True) == []


def test_alone_it_prints_each_violation_and_its_exit_status_is_1(make_database: Callable[..., str]) -> None:
    url = make_database()

    async def happen(statements: str) -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(statements)
        await connection.close()

    def checked(*given: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "tests.torture.checker", *given, url]
        ran = subprocess.run(command, cwd=PROJECT, env=environment(), capture_output=True, text=True, check=False)
        return ran.returncode, ran.stdout

    assert checked() == (0, "")
    asyncio.run(
        happen(
            "insert into organizations values ('a', 'a', 'A', 1);"
            "insert into mcp_server_users values ('a', 'usr_a', 'a@example.com', 1, 1, 1);"
            "insert into mcp_server_user_identities values ('a', 'email', 'b@example.com', 'usr_a', 1)"
        )
    )
    assert checked() == (1, "identities: a/email/usr_a\n")
    assert checked("--whole-log") == (1, "identities: a/email/usr_a\n")
