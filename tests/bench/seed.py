"""Databases of any size to measure on, made by COPY, the same each time, and kept for the next run.

python -m tests.bench.seed FOLDER small|large     makes one in the embedded PostgreSQL of a folder, and says how large

Everything follows from a `Scale` by arithmetic. The first organisation is the one that is measured, with four fifths of
the progress, and ten smaller ones have the rest. Of its people every other one is on its first servers
(`Scale.learner_servers`), and the others are spread over the servers that are left. Each has a token, but for one in
twenty, who is a visitor; each has begun as many of their server's walkthroughs, and is up to two steps into them. The
first of those on the first servers are the learners: they stand at step 1 of all that they have begun, and are put back
there whenever the database is taken again. Rows lie in the order in which they would have come to be, over ninety days,
so that what one person has is spread over the table. Every id is as long as a real one, and as random to an index.

Every walkthrough has one published version, whose content has the size of real documents. Nothing is in the call log.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from adapters.embedded_postgres import EmbeddedPostgres
from adapters.postgres.connections import SERVICE_ROLE
from adapters.postgres.schema import migrate
from domain.progress import StepHandle
from domain.sign_in import VISITOR_ISSUER
from domain.tenancy import OrganizationId, ServerId, ServerKey, StepId, UserId, WalkthroughId, hash_of
from domain.walkthrough import Manuscript, StepText, WalkthroughType

_START = 1_750_000_000_000  # long before today: whatever is done to it comes after
_DAYS_90 = 90 * 24 * 3_600_000
_OTHERS = 10
# How many others begin a walkthrough between one's own steps, at most.
_BETWEEN = 200


@dataclass(frozen=True)
class Scale:
    """How much there is; of the measured organisation, but for the first."""

    progress_rows: int
    """Of all organisations."""
    walkthroughs: int = 10
    steps: int = 5
    """Of each walkthrough."""
    servers: int = 1
    assignments: int = 10
    """Walkthroughs on each server."""
    begun: int = 5
    """Walkthroughs that each person has begun."""
    learners: int = 200
    learner_servers: int = 1
    """Over how many servers the learners are spread."""
    is_alone: bool = False
    """Whether there is no other organisation."""


SMALL = Scale(100_000, walkthroughs=10, servers=500, learners=2_000)
LARGE = Scale(3_000_000, walkthroughs=10_000, servers=500, assignments=50, learners=2_000)


@dataclass(frozen=True)
class Learner:
    """Somebody at step 1 of all that they have begun."""

    server: ServerKey
    slug: str
    """The server's: its host's first label."""
    user_id: UserId
    token: str
    walkthrough_ids: Sequence[WalkthroughId]
    """What they have begun."""


@dataclass(frozen=True)
class Seeded:
    """A database and who is in it."""

    owner_url: str
    service_url: str
    """For a login that is the service role; where there is none, the owner's becomes it."""
    scale: Scale

    @property
    def organization_id(self) -> OrganizationId:
        """The measured one's."""
        return OrganizationId(_id("org", 0))

    def slug(self, server: int) -> str:
        """Of a server of the measured organisation, by number; and its custom domain is `<slug>.example.com`."""
        return f"guides-0-{server}"

    def assigned(self, server: int) -> Sequence[WalkthroughId]:
        """The walkthroughs on a server of the measured organisation, in display order."""
        return [_walkthrough_id(self.scale, server, place) for place in range(self.scale.assignments)]

    def learners(self) -> Sequence[Learner]:
        """All of them; those of one server come `learner_servers` apart."""
        found = []
        for number in range(self.scale.learners):
            place, server = divmod(number, self.scale.learner_servers)
            begun = [
                _walkthrough_id(self.scale, server, (place + more) % self.scale.assignments)
                for more in range(self.scale.begun)
            ]
            found.append(
                Learner(
                    ServerKey(self.organization_id, ServerId(_id("srv", 0, server))),
                    self.slug(server),
                    UserId(_id("usr", 0, 2 * number)),
                    _token(0, 2 * number),
                    begun,
                )
            )
        return found

    def step_id(self, walkthrough_id: WalkthroughId, number: int) -> StepId:
        """Of a step by its number, the first being 1."""
        return StepId(_step_id(walkthrough_id, number))

    def handle(self, walkthrough_id: WalkthroughId, number: int) -> str:
        """What completes a step, in somebody's first attempt."""
        return str(StepHandle(walkthrough_id, 1, self.step_id(walkthrough_id, number), 1))

    def visitor(self) -> tuple[ServerKey, bytes]:
        """A visitor's server, and the hash of the id in their address."""
        server = self.scale.learner_servers % self.scale.servers
        return ServerKey(self.organization_id, ServerId(_id("srv", 0, server))), hash_of(_id("vis", 0, 1))


async def seeded(postgres: EmbeddedPostgres, name: str, scale: Scale) -> Seeded:
    """The database of this name on a server that runs, made anew unless it is there as this file would make it now.

    The learners stand at step 1, and the call log is empty.
    """
    stamp = _stamp(scale)
    seeded = Seeded(postgres.dsn("postgres", name), postgres.dsn(SERVICE_ROLE, name), scale)
    server = await asyncpg.connect(postgres.dsn("postgres", "postgres"))
    try:
        found = await server.fetchval(
            "select shobj_description(oid, 'pg_database') from pg_database where datname = $1", name
        )
        if found == stamp:
            await _put_back(seeded)
            return seeded
        await server.execute(f'drop database if exists "{name}" with (force)')
        await server.execute(f'create database "{name}"')
        await migrate(seeded.owner_url, service_login=SERVICE_ROLE, finish=True)
        await fill(seeded.owner_url, scale)
        # Last of all: where it is missing, somebody ended the seeding.
        await server.execute(f"comment on database \"{name}\" is '{stamp}'")
    finally:
        await server.close()
    return seeded


def _stamp(scale: Scale) -> str:
    root = Path(__file__).parents[2]
    recipe = hashlib.sha256(repr(scale).encode())
    for file in [Path(__file__), *sorted((root / "migrations" / "versions").glob("*.py"))]:
        recipe.update(file.read_bytes())
    return recipe.hexdigest()


async def fill(owner_url: str, scale: Scale) -> Seeded:
    """Fills an empty database at this release's schema, as a superuser, and returns who is in it then."""
    reader, writer = await asyncpg.connect(owner_url), await asyncpg.connect(owner_url)
    try:
        await writer.execute("set session_replication_role = replica; set maintenance_work_mem = '256MB'")
        # An index that is built when all rows are there is a matter of seconds.
        await writer.execute(_NOT_READY, _LARGE_TABLES)
        for tenant in _tenants(scale):
            for table, columns, records in _few(tenant):
                await writer.copy_records_to_table(table, columns=columns.split(), records=records)
            for table, query in _many(tenant):
                await _copy(reader, query, writer, table)
        for table in _LARGE_TABLES:
            await writer.execute(f"reindex table {table}")
        await writer.execute("vacuum (analyze)")
        await writer.execute("checkpoint")
    finally:
        await reader.close()
        await writer.close()
    return Seeded(owner_url, owner_url, scale)


async def _put_back(seeded: Seeded) -> None:
    """Undoes what the learners have done since: their first events are all that is left of it."""
    owner = await asyncpg.connect(seeded.owner_url)
    try:
        learners = [learner.user_id for learner in seeded.learners()]
        async with owner.transaction():
            await owner.execute(_FORGET_BEGUN, seeded.organization_id, learners, _START + 2 * _DAYS_90)
            await owner.execute(_FORGET_EVENTS, seeded.organization_id, learners)
            await owner.execute(_PUT_BACK, seeded.organization_id, learners)
            await owner.execute("truncate tool_calls")
        await owner.execute("vacuum walkthrough_progress, walkthrough_progress_events")
        await owner.execute("checkpoint")
    finally:
        await owner.close()


_FORGET_BEGUN = """
delete from walkthrough_progress p using walkthrough_progress_events e
 where p.organization_id = $1 and p.mcp_server_user_id = any($2)
   and e.organization_id = p.organization_id and e.mcp_server_id = p.mcp_server_id
   and e.mcp_server_user_id = p.mcp_server_user_id and e.walkthrough_id = p.walkthrough_id
   and e.revision = 1 and e.occurred_at > $3
"""
_FORGET_EVENTS = """
delete from walkthrough_progress_events
 where organization_id = $1 and mcp_server_user_id = any($2) and revision > 1
"""
_PUT_BACK = """
update walkthrough_progress p
   set version = e.version, attempt = 1, revision = 1, status = 'in_progress', current_step_id = e.to_step_id,
       carried = '{}', started_at = e.occurred_at, last_activity_at = e.occurred_at, completed_at = null
  from walkthrough_progress_events e
 where p.organization_id = $1 and p.mcp_server_user_id = any($2) and p.revision > 1
   and e.organization_id = p.organization_id and e.mcp_server_id = p.mcp_server_id
   and e.mcp_server_user_id = p.mcp_server_user_id and e.walkthrough_id = p.walkthrough_id and e.revision = 1
"""

# ------------------------------------------------------------------------------------------------------ what is copied

_LARGE_TABLES = [
    "mcp_server_users",
    "mcp_server_user_identities",
    "access_tokens",
    "walkthrough_progress",
    "walkthrough_progress_events",
]
# As while `create index concurrently` runs: it is left alone. `reindex` makes it whole, and finds what is there twice.
_NOT_READY = "update pg_index set indisready = false, indisvalid = false where indrelid = any($1::text[]::regclass[])"


@dataclass(frozen=True)
class _Tenant:
    """An organisation, and how many people it has."""

    number: int
    people: int
    scale: Scale


def _tenants(scale: Scale) -> Sequence[_Tenant]:
    """The measured organisation, and the smaller ones.

    Raises:
        ValueError: for a scale that cannot be.
    """
    others = 0 if scale.is_alone else scale.progress_rows // (5 * _OTHERS * scale.begun)
    people = scale.progress_rows // scale.begun - _OTHERS * others
    if not scale.begun <= scale.assignments <= scale.walkthroughs or scale.learner_servers > scale.servers:
        raise ValueError("people begin some of what is assigned to their server, and that is some of what there is")
    if 2 * scale.learners > people:
        raise ValueError(f"every other one of {people} people is a learner at most, and not {scale.learners}")
    few = Scale(0, scale.assignments, min(scale.steps, 5), assignments=scale.assignments, begun=scale.begun, learners=0)
    smaller = [] if scale.is_alone else [_Tenant(number, others, few) for number in range(1, _OTHERS + 1)]
    return [_Tenant(0, people, scale), *smaller]


def _id(prefix: str, *numbers: int) -> str:
    """As long as the real ones, and known beforehand. In SQL by `_sql_id`."""
    return f"{prefix}_{_md5('/'.join(map(str, (prefix, *numbers))))[:16]}"


def _md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def _sql_id(prefix: str, tenant: int, number: str) -> str:
    return f"'{prefix}_' || left(md5('{prefix}/{tenant}/' || {number}), 16)"


def _step_id(walkthrough_id: str, number: int) -> str:
    return f"stp_{_md5(f'{walkthrough_id}/{number}')[:16]}"


def _walkthrough_id(scale: Scale, server: int, place: int) -> WalkthroughId:
    """Of the measured organisation: servers take them in turn."""
    return WalkthroughId(_id("wlk", 0, (server * scale.assignments + place) % scale.walkthroughs))


def _token(tenant: int, person: int) -> str:
    return f"cairn_{_md5(f'{tenant}/{person}')}"


def _few(tenant: _Tenant) -> Iterator[tuple[str, str, Iterator[tuple[Any, ...]]]]:
    """Table, columns and rows of what there is little of."""
    o, scale = tenant.number, tenant.scale
    org = _id("org", o)
    walkthroughs, servers = range(scale.walkthroughs), range(scale.servers)
    yield (
        "organizations",
        "id slug name created_at",
        iter([(org, f"organization-{o}", f"Organization {o}", _START)]),
    )
    yield (
        "mcp_servers",
        "organization_id id slug custom_domain name auth_mode created_at",
        (
            (
                *(org, _id("srv", o, s), f"guides-{o}-{s}", f"guides-{o}-{s}.example.com"),
                *(f"Guides {s}", "on_demand", _START),
            )
            for s in servers
        ),
    )
    yield (
        "walkthroughs",
        "organization_id id key is_published latest_version created_at updated_at",
        ((org, _id("wlk", o, w), f"walkthrough-{w}", True, 1, _START, _START) for w in walkthroughs),
    )
    yield (
        "mcp_server_walkthroughs",
        "organization_id mcp_server_id walkthrough_id display_order is_enabled created_at",
        (
            (
                org,
                _id("srv", o, s),
                _id("wlk", o, (s * scale.assignments + place) % scale.walkthroughs),
                place,
                True,
                _START,
            )
            for s in servers
            for place in range(scale.assignments)
        ),
    )
    for first in range(0, scale.walkthroughs, _AT_ONCE):
        written = [
            (_id("wlk", o, w), its, its.content_hash())
            for w in range(first, min(first + _AT_ONCE, scale.walkthroughs))
            for its in [manuscript(w, scale.steps)]
        ]
        yield (
            "walkthrough_versions",
            "organization_id walkthrough_id version state title description type first_step_id step_count"
            " estimated_minutes content_hash on_publish published_at published_by created_at",
            (
                (
                    *(org, id, 1, "published", its.title, its.description, its.type, _step_id(id, 1), len(its.steps)),
                    *(its.estimated_minutes(), hash, "keep", _START, _AUTHOR, _START),
                )
                for id, its, hash in written
            ),
        )
        yield (
            "walkthrough_ledger",
            "organization_id walkthrough_id number deed version content_hash policy acted_by acted_at",
            ((org, id, 1, "published", 1, hash, "keep", _AUTHOR, _START) for id, _, hash in written),
        )
        yield (
            "walkthrough_steps",
            "organization_id walkthrough_id version id key title next_step_id position content assistant_notes"
            " done_when delivery estimated_minutes",
            (
                (
                    *(org, id, 1, _step_id(id, place), step.key, step.title),
                    *(_step_id(id, place + 1) if place < len(its.steps) else None, place, step.content),
                    *(step.assistant_notes, step.done_when, step.delivery, step.estimated_minutes),
                )
                for id, its, _ in written
                for place, step in enumerate(its.steps, start=1)
            ),
        )


_AUTHOR = "author@example.com"
_AT_ONCE = 500  # walkthroughs in memory


def _many(tenant: _Tenant) -> Iterator[tuple[str, str]]:
    """Table, and the query for its rows, of what there is much of. All columns, in their order."""
    o, people, scale = tenant.number, tenant.people, tenant.scale
    if not people:
        return
    rows = people * scale.begun
    tick = _DAYS_90 // rows
    between = min(_BETWEEN, people)
    org, usr = f"'{_id('org', o)}'", _sql_id("usr", o, "p")
    theirs, rest = scale.learner_servers, scale.servers - scale.learner_servers
    # Who is on which server, and at which place there. The first server of those that are not the learners' has the
    # number `begin`; where there are no others, everybody is on the learners'.
    on = f"""
        lateral (select case p % 2 when 0 then {theirs} else {rest or theirs} end as among,
                        case p % 2 when 0 then 0 else {theirs if rest else 0} end as begin) as half,
        lateral (select half.begin + p / 2 % half.among as s, p / 2 / half.among as place) as home"""
    # Server and walkthrough of a row, and how many steps have been completed.
    begun = f"""
        lateral (select r % {people} as p, r / {people} as k) as whose, {on},
        lateral (select (s * {scale.assignments} + (place + k) % {scale.assignments}) % {scale.walkthroughs} as w,
                        case when p % 2 = 0 and p / 2 < {scale.learners} then 0
                             else least((p / 2 + k) % 3, {scale.steps}) end::integer as completed) as which,
        lateral (select {_sql_id("srv", o, "s")} as srv, {usr} as usr, {_sql_id("wlk", o, "w")} as wlk) as ids"""
    visitor = "p % 20 = 1"
    everybody = f"from generate_series(0, {people - 1}) as p"
    yield (
        "mcp_server_users",
        f"""
        select {org}, {usr}, case when not {visitor} then 'person-' || p || '@example.com' end,
               case when not {visitor} then {_START}::bigint end, {_START}::bigint, {_START}::bigint, null::text
          {everybody}""",
    )
    yield (
        "mcp_server_user_identities",
        f"""
        select {org}, case when {visitor} then '{VISITOR_ISSUER}' || {_sql_id("srv", o, "s")} else 'email' end,
               case when {visitor} then encode(sha256(({_sql_id("vis", o, "p")})::bytea), 'hex')
                    else 'person-' || p || '@example.com' end, {usr}, {_START}::bigint
          {everybody}, {on}""",
    )
    yield (
        "access_tokens",
        f"""
        select {org}, sha256(('cairn_' || md5('{o}/' || p))::bytea), {_sql_id("srv", o, "s")}, {usr}, {_START}::bigint,
               null::text, 'walkthroughs', null::bigint
          {everybody}, {on}
         where not {visitor}""",
    )
    yield (
        "walkthrough_progress",
        f"""
        select {org}, srv, usr, wlk, 1, 1, completed + 1,
               case when completed < {scale.steps} then 'stp_' || left(md5(wlk || '/' || completed + 1), 16) end,
               '{{}}'::text[], case when completed < {scale.steps} then 'in_progress' else 'completed' end,
               {_START} + r * {tick}::bigint, last, case when completed = {scale.steps} then last end
          from generate_series(0, {rows - 1}) as r, {begun},
               lateral (select {_START} + (r + completed * {between}) * {tick}::bigint as last) as t""",
    )
    # In the order of time: at each moment one row's start, and steps of those who began a little before.
    yield (
        "walkthrough_progress_events",
        f"""
        select {org}, srv, usr, wlk, e, 1, 1, case e when 1 then 'started' else 'advanced' end,
               case when e > 1 then 'stp_' || left(md5(wlk || '/' || e - 1), 16) end,
               case when e <= {scale.steps} then 'stp_' || left(md5(wlk || '/' || e), 16) end,
               case when e > 1 then 'done' end, null::text, {_START} + moment * {tick}::bigint
          from generate_series(0, {rows - 1 + 2 * between}) as moment, generate_series(1, 3) as e,
               lateral (select moment - (e - 1) * {between} as r) as ago, {begun}
         where r between 0 and {rows - 1} and e <= completed + 1""",
    )


async def _copy(reader: asyncpg.Connection, query: str, writer: asyncpg.Connection, table: str) -> None:
    """Rows from a query into a table, by COPY on both sides: one backend makes them while the other stores them."""
    pieces: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=64)

    async def read() -> None:
        try:
            await reader.copy_from_query(query, output=pieces.put, format="binary")
        finally:
            await pieces.put(None)

    async def given() -> AsyncIterator[bytes]:
        while (piece := await pieces.get()) is not None:
            yield piece

    async with asyncio.TaskGroup() as both:
        both.create_task(read())
        both.create_task(writer.copy_to_table(table, source=given(), format="binary"))


# ------------------------------------------------------------------------------------------------------------- content

_SENTENCES = """
Open the settings of your workspace and look for the section that is named after this step.
The value that you enter here is used by every build from now on, so choose one that your team agrees on.
If the page stays empty, reload it once; the first visit prepares the list in the background.
A warning about an unused variable is expected at this point and goes away two steps further on.
Compare what you see with the example below before you go on, line by line if need be.
Nothing is sent anywhere until you confirm it, so feel free to try the other options too.
Whoever reviews the change will look for a test, and the template already holds an empty one.
Keep the terminal open; we shall come back to the same session when the service is running.
The command prints a short table, in which the last column says whether a mirror is in use.
On a slow connection this takes up to two minutes, and it can be stopped and started again.
""".strip().splitlines()
_WORDS = ["cache", "queue", "index", "report", "invoice", "parcel", "ledger", "bridge", "signal", "harbour", "garden"]


def manuscript(number: int, steps: int) -> Manuscript:
    """A walkthrough of about 1.5 kB of Markdown a step, its own for each number."""
    chance = random.Random(number)  # its numbers are the same on every machine
    topic = chance.choice(_WORDS)
    return Manuscript(
        key=f"walkthrough-{number}",
        title=f"Set up the {topic} {number}",
        description=f"From nothing to a {topic} that runs, with a test for it and a place to see how it does.",
        type=WalkthroughType.COURSE,
        steps=tuple(_step(chance, topic, place) for place in range(1, steps + 1)),
    )


def _step(chance: random.Random, topic: str, place: int) -> StepText:
    word = chance.choice(_WORDS)
    sentences = chance.sample(_SENTENCES, len(_SENTENCES))
    said = [" ".join(sentences[first : first + 3]) for first in (0, 3, 6)]
    listed = "\n".join(f"- {sentence}" for sentence in chance.sample(sentences, 4))
    code = "\n".join(
        f"{topic}.{chance.choice(_WORDS)}_{line}({chance.randrange(10**6)}, name={word!r})" for line in range(1, 6)
    )
    return StepText(
        key=f"step-{place}",
        title=f"Connect the {word}",
        content=f"## The {word}\n\n{said[0]}\n\n### Try it\n\n{said[1]}\n\n```python\n{code}\n```\n\n"
        f"### What to look at\n\n{listed}\n\n{said[2]}\n",
        assistant_notes=f"People mix up the {word} and the {topic}: ask which one they see.",
        done_when=f"The {word} answers, and its line in the table says so.",
        estimated_minutes=3,
    )


async def _make(folder: Path, name: str) -> None:
    with EmbeddedPostgres(folder) as postgres:
        began = time.monotonic()
        made = await seeded(postgres, name, {"small": SMALL, "large": LARGE}[name])
        print(f"{time.monotonic() - began:.0f} s")
        owner = await asyncpg.connect(made.owner_url)
        for table, rows, size in await owner.fetch(_SIZES):
            print(f"{table:32}{rows:>12,}{size / 2**20:>10,.0f} MiB")
        await owner.close()


_SIZES = """
select relname, reltuples::bigint, pg_total_relation_size(oid) from pg_class
 where relkind = 'r' and relnamespace = 'public'::regnamespace and reltuples > 0 order by 3 desc
"""

if __name__ == "__main__":
    asyncio.run(_make(Path(sys.argv[1]), sys.argv[2]))
