"""Every table distributes by its organisation, as Citus asks for it, and docs/scaling.md says how.

Citus itself is not here. What it refuses is written down as rules over the catalogue (`REFUSED`), and each is planted
once. Sources are in docs/scaling.md.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from adapters.postgres.connections import Access, Database
from domain.tenancy import AuthMode
from entrypoints.container import Storage
from entrypoints.http.app import application
from entrypoints.mcp.tools import TOOLS
from entrypoints.settings import Settings
from tests.serving.conftest import call
from tests.storage.test_plans import _FRAME, _by_what_it_uses, _inside, _nodes
from tests.worlds import on_postgres

# What stays on the coordinator alone, and what every node has a whole copy of. All others are distributed.
LOCAL = {"alembic_version"}  # the schema's revision: no tenant's, and read by `cairn migrate` and `/readyz`
REFERENCE = {
    "organizations",  # its slug is unique everywhere
    "mcp_servers",  # found by a host name, before it is known whose it is; slugs and domains are unique everywhere
}

# Each finds what breaks one rule: `name` and `wrong`. `kinds` is one row a table: its kind ('distributed', 'reference'
# or 'local') and the number of the column by which it is distributed, if it is there. Partitions count as tables: each
# has keys and columns of its own.
_KINDS = """
with kinds as (
    select c.oid as relid, c.relname, c.relkind, c.relispartition,
           case when c.relname = any($1) then 'local' when c.relname = any($2) then 'reference' else 'distributed' end
               as kind,
           (select a.attnum from pg_attribute a
             where a.attrelid = c.oid and a.attname = 'organization_id' and a.atttypid = 'text'::regtype
               and a.attnotnull and a.attgenerated = '' and a.attcollation = 'default'::regcollation) as by
      from pg_class c
     where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
)
"""
REFUSED = """
select relname as name, 'has no organisation to be distributed by' as wrong
  from kinds where kind = 'distributed' and by is null
union all
select i.indexrelid::regclass::text, 'is unique without the organisation'
  from pg_index i join kinds on relid = i.indrelid
 where kind = 'distributed' and i.indisunique and (by is null or by <> all((i.indkey::smallint[])[0:i.indnkeyatts - 1]))
union all
select k.conname, 'excludes' from pg_constraint k join kinds on relid = k.conrelid
 where kind <> 'local' and k.contype = 'x'
union all
select k.conname, case
           when near.kind = 'distributed' and far.kind = 'distributed'
                then 'does not have the organisation in one place on both sides'
           else 'leads from a ' || near.kind || ' table to a ' || far.kind || ' one' end
  from pg_constraint k join kinds near on near.relid = k.conrelid join kinds far on far.relid = k.confrelid
 where k.contype = 'f' and case near.kind
           when 'distributed' then
               far.kind = 'local' or far.kind = 'distributed'
               and coalesce(array_position(k.conkey, near.by) <> array_position(k.confkey, far.by), true)
           when 'reference' then far.kind <> 'reference'
           else far.kind <> 'local' end
union all
select k.conname, case when k.confupdtype not in ('a', 'r') then 'changes its rows on update'
                       else 'empties its columns on delete' end
  from pg_constraint k join kinds on relid = k.conrelid
 where k.contype = 'f' and k.conparentid = 0 and kind = 'distributed' and by = any(k.conkey)
   and (k.confupdtype not in ('a', 'r') or k.confdeltype in ('n', 'd'))
union all
select relname || '.' || attname, 'is numbered by a sequence'
  from pg_attribute a join kinds on relid = a.attrelid left join pg_attrdef d on d.adrelid = relid and d.adnum = attnum
 where kind <> 'local' and (attidentity <> '' or pg_get_expr(d.adbin, d.adrelid) like 'nextval(%')
union all
select p.polname || ' on ' || relname, 'asks a table in its policy' from pg_policy p join kinds on relid = p.polrelid
 where kind <> 'local' and concat(p.polqual::text, p.polwithcheck::text) like '%{SUBLINK%'
union all
select t.tgname, 'fires on a reference table' from pg_trigger t join kinds on relid = t.tgrelid
 where kind = 'reference' and not t.tgisinternal
union all
select relname, 'is a partition with partitions' from kinds where relispartition and relkind = 'p'
union all
select r.rulename, 'is a rule' from pg_rewrite r join kinds on relid = r.ev_class where kind <> 'local'
"""


async def refused(connection: asyncpg.Connection) -> set[str]:
    """What Citus would refuse of the schema as it stands, each as a short sentence."""
    return {f"{name} {wrong}" for name, wrong in await connection.fetch(_KINDS + REFUSED, [*LOCAL], [*REFERENCE])}


@pytest.fixture
async def planting(owner: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """The owner's connection, in a transaction that is taken back."""
    transaction = owner.transaction()
    await transaction.start()
    yield owner
    await transaction.rollback()


async def test_every_table_distributes_by_its_organisation(owner: asyncpg.Connection) -> None:
    assert await refused(owner) == set()


_KEY = "organization_id text not null, id text not null, constraint planted_pkey primary key (organization_id, id)"

PLANTED = [
    ("create table planted (id text)", {"planted has no organisation to be distributed by"}),
    ("create table planted (organization_id text, id text)", {"planted has no organisation to be distributed by"}),
    (
        "create table planted (organization_id varchar not null, id text)",
        {"planted has no organisation to be distributed by"},
    ),
    (
        "create table planted (id text primary key)",
        {"planted has no organisation to be distributed by", "planted_pkey is unique without the organisation"},
    ),
    (
        f"create table planted ({_KEY}, constraint planted_id_key unique (id) deferrable)",
        {"planted_id_key is unique without the organisation"},
    ),
    (
        "create unique index planted on walkthroughs (id) where archived_at is null",
        {"planted is unique without the organisation"},
    ),
    (
        "create unique index planted on walkthroughs (id) include (organization_id)",
        {"planted is unique without the organisation"},
    ),
    (
        "create unique index planted on walkthroughs (lower(organization_id), id)",
        {"planted is unique without the organisation"},
    ),
    (
        "create unique index planted on tool_calls_default (id)",
        {"planted is unique without the organisation"},
    ),
    (
        f"create table planted ({_KEY}, constraint planted_span exclude using gist (int4range(1, 2) with &&))",
        {"planted_span excludes"},
    ),
    (
        # Both sides have it, each in another place of the key.
        "create unique index theirs on walkthroughs (id, organization_id);"
        f"create table planted ({_KEY}, constraint planted_fkey foreign key (organization_id, id)"
        " references walkthroughs (id, organization_id))",
        {"planted_fkey does not have the organisation in one place on both sides"},
    ),
    (
        "alter table alembic_version add constraint planted_key unique (version_num);"
        f"create table planted ({_KEY}, constraint planted_fkey foreign key (id)"
        " references alembic_version (version_num))",
        {"planted_fkey leads from a distributed table to a local one"},
    ),
    (
        "alter table mcp_servers add constraint planted_fkey foreign key (organization_id, id)"
        " references walkthroughs (organization_id, id)",
        {"planted_fkey leads from a reference table to a distributed one"},
    ),
    (
        f"create table planted ({_KEY}, constraint planted_fkey foreign key (organization_id, id)"
        " references mcp_servers (organization_id, id) on update cascade)",
        {"planted_fkey changes its rows on update"},
    ),
    (
        f"create table planted ({_KEY}, constraint planted_fkey foreign key (organization_id, id)"
        " references walkthroughs (organization_id, id) on delete set null (id))",
        {"planted_fkey empties its columns on delete"},
    ),
    ("alter table walkthroughs add number serial", {"walkthroughs.number is numbered by a sequence"}),
    (
        "alter table walkthroughs add number bigint generated always as identity",
        {"walkthroughs.number is numbered by a sequence"},
    ),
    (
        "create policy planted on walkthroughs using (id in (select id from mcp_servers))",
        {"planted on walkthroughs asks a table in its policy"},
    ),
    (
        "create trigger planted after delete on mcp_servers execute function walkthroughs_guard()",
        {"planted fires on a reference table"},
    ),
    (
        "create table planted partition of tool_calls for values from (1) to (2) partition by range (created_at)",
        {"planted is a partition with partitions"},
    ),
    ("create rule planted as on delete to walkthroughs do instead nothing", {"planted is a rule"}),
]


@pytest.mark.parametrize(("statements", "found"), PLANTED, ids=[" ".join(sorted(found)) for _, found in PLANTED])
async def test_what_would_not_distribute_is_found_and_named(
    planting: asyncpg.Connection, statements: str, found: set[str]
) -> None:
    await planting.execute(statements)
    assert await refused(planting) == found


_TRIGGERS = """
select distinct p.proname, p.prosrc
  from pg_trigger t join pg_proc p on p.oid = t.tgfoid join pg_class c on c.oid = t.tgrelid
 where not t.tgisinternal and c.relnamespace = 'public'::regnamespace
 order by p.proname
"""


async def test_what_a_trigger_reads_is_of_its_rows_organisation(owner: asyncpg.Connection) -> None:
    """It fires on the shard of its row, where nothing else of the table is."""
    tables = "|".join(await _tables(owner))
    named = {}
    for name, source in await owner.fetch(_TRIGGERS):
        asked = re.findall(rf"\b(?:from|join|into|update)\s+(?:{tables})\b", source)
        of_the_row = re.findall(
            rf"\b(?:from|join)\s+(?:{tables})\s+(\w+)\s+(?:where|on)\s+\1\.organization_id = (?:new|old|step)\.", source
        )
        named[name] = (len(asked), len(of_the_row))
    assert named == {
        "walkthrough_ledger_guard": (1, 1),
        "walkthrough_steps_guard": (1, 1),
        "walkthrough_versions_guard": (4, 4),
        "walkthrough_versions_isolation": (0, 0),
        "walkthrough_versions_withdrawal": (1, 1),
        "walkthroughs_guard": (1, 1),
    }


async def _tables(connection: asyncpg.Connection) -> Sequence[str]:
    """All there are, without partitions."""
    rows = await connection.fetch(
        "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')"
        " and not relispartition order by relname"
    )
    return [name for (name,) in rows]


# ------------------------------------------------------------------------------------------------ hot statements


class HearingDatabase(Database):
    """Keeps what is sent on the hot pool, each statement once."""

    sent: dict[str, None]

    @asynccontextmanager
    async def hot(self) -> AsyncIterator[Any]:
        async with super().hot() as connection:
            with connection.query_logger(self._heard):
                yield connection

    def _heard(self, query: Any) -> None:
        if not _FRAME.match(query.query):
            self.sent.setdefault(query.query)


@dataclass(frozen=True)
class Heard(Storage):
    """The storage of an application whose hot statements are kept."""

    hearing: HearingDatabase

    def database(self) -> Database:
        return self.hearing


@pytest.fixture
async def hot_statements(owner_url: str, owner: asyncpg.Connection) -> Sequence[str]:
    """What the application sends when each tool is called, by a person with a token, by a visitor, and again."""
    access = Access(owner_url, assume_role=True)
    hearing = HearingDatabase(access)
    hearing.sent = {}
    app = application(Heard(owner_url, access, None, None, hearing), Settings(database_url=owner_url))
    heard, told = asyncio.Queue[Any](), asyncio.Queue[Any]()
    running = asyncio.create_task(app({"type": "lifespan", "state": {}}, heard.get, told.put))  # type: ignore[arg-type,typeddict-item]
    await heard.put({"type": "lifespan.startup"})
    assert (await told.get())["type"] == "lifespan.startup.complete"
    world = on_postgres(hearing)
    server = await world.server(auth_mode=AuthMode.ANONYMOUS)
    await world.publish("a", "b")
    bearer = {"authorization": f"Bearer {await world.identity.create_token(server.key, 'ada@example.com')}"}
    called = set()
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://guides.localhost") as http:  # type: ignore[arg-type]
        visitor = (await http.post("/")).headers["location"].removeprefix("/v/")

        async def use(path: str, headers: dict[str, str], tool: str, **arguments: Any) -> Any:
            called.add(tool)
            result = (await http.post(path, json=call(tool, **arguments), headers=headers)).json()["result"]
            assert not result["isError"], result
            return result["structuredContent"]

        for path, headers in (("/mcp", bearer), (f"/v/{visitor}/mcp", {})):
            await use(path, headers, "list_walkthroughs")
            begun = await use(path, headers, "select_walkthrough", walkthrough="tour")
            done = {"completed_step": begun["step"]["handle"]}
            await use(path, headers, "next_walkthrough_step", **done, outcome="stuck", note="why")
            await use(path, headers, "next_walkthrough_step", **done)
            await use(path, headers, "get_walkthrough_status")
            await use(path, headers, "review_walkthrough_step", walkthrough="tour", step_number=1)
    await heard.put({"type": "lifespan.shutdown"})
    await running
    assert called == set(TOOLS)
    return [*hearing.sent]


_PARAMETERS = "select cardinality(parameter_types) from pg_prepared_statements where name = 'hot'"


def _name(sent: str) -> str:
    """The function that is called, or the statement's own first words."""
    called = re.match(r"select (?:\* from )?(\w+)\(\$", sent)
    return called[1] if called else " ".join(sent.split()[:4])


async def _source(connection: asyncpg.Connection, sent: str) -> str:
    """All of what a statement runs: of a function, every statement in it."""
    source = await connection.fetchval("select prosrc from pg_proc where proname = $1", _name(sent))
    return str(source or sent)


def _organizations(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each table that is read or written in a plan, and what its organisation is compared with or set to there."""
    for node in _nodes(plan):
        if node["Node Type"] == "ModifyTable":
            if node["Operation"] == "Insert":
                yield node["Relation Name"], _first_output(node).replace("(", "").replace(")", "")
        elif "Relation Name" in node:
            searches = node.get("Index Cond", node.get("Recheck Cond", ""))
            compared = re.search(r"\((?:\w+\.)?organization_id = (\$\d+)\)", searches)
            yield node["Relation Name"], compared[1] if compared else f"a look at {searches or 'all of it'}"


def _first_output(node: dict[str, Any]) -> str:
    """What becomes of the first column, which is the organisation in every table."""
    (source,) = [each for each in node["Plans"] if each["Parent Relationship"] in ("Outer", "Subquery")]
    output: str = source["Output"][0]
    return _first_output(source) if output.startswith('"*SELECT*"') else output


async def test_every_hot_statement_names_the_organisation_as_a_plain_equality(
    hot_statements: Sequence[str], owner: asyncpg.Connection
) -> None:
    """So that the shard is known from the statement's first parameter alone, and nothing else is asked.

    As the owner, whom no policy holds back: a policy compares as well, and would stand in for what a statement forgot.
    """
    distributed = set(await _tables(owner)) - LOCAL - REFERENCE
    found = {}
    async with owner.transaction():
        await owner.execute("set local plan_cache_mode = force_generic_plan; set local enable_seqscan = off")
        for sent in hot_statements:
            statements, is_owners, _ = await _inside(owner, sent)
            looked_at = []
            for statement in statements:
                asked, used = _by_what_it_uses(statement)
                assert is_owners or used[0] == 1  # and so $1 stays what it is
                await owner.execute(f"prepare hot as {asked}")
                count = await owner.fetchval(_PARAMETERS)
                nothing = ", ".join(["null"] * count)
                explained = await owner.fetchval(f"explain (verbose, format json) execute hot ({nothing})")
                await owner.execute("deallocate hot")
                looked_at += _organizations(json.loads(explained)[0]["Plan"])
            tables = {name for name, _ in looked_at}
            assert tables == set(re.findall(r"\w+", await _source(owner, sent))) & (distributed | REFERENCE)
            found[_name(sent)] = {
                f"{name} by {organization}" for name, organization in looked_at if name in distributed
            }
            assert not is_owners or tables <= REFERENCE  # nobody's rows are named to it
    assert {each for named in found.values() for each in named if not each.endswith(" by $1")} == {
        "tool_calls by $1[1]"  # a batch names several, one after the other: each organisation is to get its own writer
    }
    assert {name for name, named in found.items() if not named} == {"server_at"}


# ---------------------------------------------------------------------------------------------- docs/scaling.md

_DOCUMENT = Path(__file__).parents[2] / "docs" / "scaling.md"

# Takes the place of Citus for the statements of the document: notes what is asked for, and refuses a table that still
# has keys or triggers. A table or a function that is asked for twice, or that there is not, fails by itself.
_STAND_IN = """
create schema stand_in;
create table stand_in.placed (name text primary key, kind text, by text, beside text);
create table stand_in.sent (name text primary key, by text, beside text, is_forced boolean);
create view citus_tables as select name::regclass as table_name from stand_in.placed;
create function stand_in.place(regclass, text, text, text) returns void language plpgsql as $$
begin
    if exists (select from pg_constraint where contype = 'f' and $1 in (conrelid, confrelid))
       or exists (select from pg_trigger where tgrelid = $1 and not tgisinternal) then
        raise exception '% still has keys or triggers', $1;
    end if;
    insert into stand_in.placed values ($1, $2, $3, $4);
end $$;
create function create_reference_table(regclass) returns void language sql as
    $$ select stand_in.place($1, 'reference', null, null) $$;
create function create_distributed_table(regclass, text, colocate_with text) returns void language sql as
    $$ select stand_in.place($1, 'distributed', $2, $3) $$;
create function create_distributed_function(
    regprocedure, text, colocate_with text, force_delegation boolean default false) returns void language sql as
    $$ insert into stand_in.sent values ($1::text, $2, $3, $4) $$;
create function truncate_local_data_after_distributing_table(regclass) returns void language sql as $$ $$;
"""
_MADE = """
select conname as name, pg_get_constraintdef(oid) as made from pg_constraint
 where contype = 'f' and conparentid = 0 and connamespace = 'public'::regnamespace
union all
select tgname, pg_get_triggerdef(oid) from pg_trigger where not tgisinternal and tgparentid = 0
"""
# What the service may call of the functions whose first argument can be an organisation. Of those that run as the owner
# this takes one, and it is called within a transaction.
_WITHIN = "hand_over_progress(text,text,text,text)"
_DELEGATED = f"""
select oid::regprocedure::text from pg_proc
 where pronamespace = 'public'::regnamespace and proargtypes[0] = 'text'::regtype
   and (not prosecdef or oid = '{_WITHIN}'::regprocedure)
   and has_function_privilege('cairn_service', oid, 'execute') and not has_function_privilege('public', oid, 'execute')
"""


def _statements() -> Sequence[str]:
    """Those under "Tables and functions", one by one. What ends with `\\gexec` gives statements to be run."""
    (section,) = re.findall(r"### Tables and functions\n(.*?)\n###", _DOCUMENT.read_text(), re.DOTALL)
    (block,) = re.findall(r"```sql\n(.*?)```", section, re.DOTALL)
    return [each.strip() for each in re.split(r"(?<=;)\n|(?<=\\gexec)\n", block) if each.strip()]


async def test_the_statements_for_citus_name_every_table_and_function_once(fresh_url: str) -> None:
    owner = await asyncpg.connect(fresh_url)
    before = dict(await owner.fetch(_MADE))
    tables = set(await _tables(owner)) - LOCAL
    await owner.execute(_STAND_IN)
    for statement in _statements():
        if statement.endswith(r"\gexec"):
            for (given,) in await owner.fetch(statement.removesuffix(r"\gexec")):
                await owner.execute(given)
        else:
            await owner.execute(statement)
    placed = await owner.fetch("select * from stand_in.placed")
    sent = await owner.fetch("select * from stand_in.sent")
    assert {row["name"] for row in placed} == tables
    assert {row["name"] for row in placed if row["kind"] == "reference"} == REFERENCE
    group = "mcp_server_users"
    for row in placed:
        if row["kind"] == "distributed":
            assert (row["by"], row["beside"]) == ("organization_id", "none" if row["name"] == group else group)
    assert {row["name"] for row in sent} == {name for (name,) in await owner.fetch(_DELEGATED)}
    assert {(row["by"], row["beside"]) for row in sent} == {("$1", group)}
    assert {row["name"] for row in sent if row["is_forced"]} == {_WITHIN}
    forced = await owner.fetch("select proname from pg_proc where proconfig::text like '%force_generic_plan%'")
    assert forced == []
    assert dict(await owner.fetch(_MADE)) == before
    assert await refused(owner) == set()
    await owner.close()
