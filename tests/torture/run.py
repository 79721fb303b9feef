"""`make torture`: each fault under 32 clients that advance in both eras, and a table of what became of it.

python -m tests.torture.run [the beginning of a row's name]     CAIRN_TORTURE_SEED makes a run again

What is promised, row by row: every advance that was acknowledged is in the database exactly once; every call that was
answered with anything but `temporarily_unavailable` is in `tool_calls`; every answer came within 5 s, but for the time
in which a service was started in place of another; the service is back by itself within 2 s of its database; and the
checker finds nothing. Each row shows how it is known that the fault happened, and how many calls were in flight at that
moment. The exit status is 1 if anything of this does not hold.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, nullcontext
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection
from pathlib import Path

import asyncpg
import uvloop

from adapters.embedded_postgres import EmbeddedPostgres
from adapters.postgres.connections import Access, Database
from adapters.postgres.schema import migrate
from adapters.postgres.visitors import PostgresVisitorStore
from adapters.system import RandomIds, SystemClock
from application.limits import Limit
from application.visitors import Visitors
from domain.tenancy import AuthMode
from domain.walkthrough import PublishPolicy
from tests.processes import Serving, serving
from tests.torture.checker import violations
from tests.torture.crowd import ANSWER_SECONDS, LEGACY, MODERN, NOTE, Call, Crowd, Person
from tests.torture.faults import ROWS, CannotHappen, Row, Stage, small_disk
from tests.torture.proxy import Proxy
from tests.worlds import manuscript, on_postgres

RECOVERY_SECONDS = 2.0
_CLIENTS = 32
_CONTENT = "content-of-an-author"
_STEPS = ("one", "two", "three", "four", "five", "six")
_DISK_MEBIBYTES = 256  # a new cluster takes 40, its log of changes 16 at a time
_PATIENCE_SECONDS = 60  # for what takes a second, on a machine with much else to do
_SECRET = re.compile(r"cairn_[A-Za-z0-9_-]{20,}|[\w.+-]+@[\w-]+\.\w+")


@dataclass(frozen=True)
class Template:
    """A stopped cluster with two organisations, two servers each, and everybody who is going to call."""

    data_dir: Path
    people: Sequence[Person]
    users: Mapping[str, str]
    """By a person's name, their user id."""
    secrets: Sequence[str]
    """What no log may hold."""


@dataclass
class Report:
    """A row of the table, and what does not hold."""

    name: str
    seed: int
    calls: int = 0
    acknowledged: int = 0
    found: int = 0
    lost: int = 0
    doubled: int = 0
    unlogged: int = 0
    longest_seconds: float = 0.0
    recovery_seconds: float = math.inf
    in_flight: int = 0
    proof: str = ""
    problems: list[str] = field(default_factory=list)

    def line(self) -> str:
        return (
            f"{self.name:<28} {self.calls:>7} {self.acknowledged:>7} {self.found:>7} {self.lost:>5} {self.doubled:>7} "
            f"{self.unlogged:>8} {self.longest_seconds:>8.2f}s {self.recovery_seconds:>8.2f}s {self.in_flight:>9}  "
            f"{self.proof}"
        )


HEADING = (
    f"{'fault':<28} {'calls':>7} {'ack.':>7} {'found':>7} {'lost':>5} {'doubled':>7} {'unlogged':>8} {'longest':>9} "
    f"{'recovery':>9} {'in flight':>9}  proof"
)


class _NoLimits:
    async def hit(self, limit: Limit, *who: str) -> None:
        """Lets everybody pass."""


async def make_template(folder: Path) -> Template:
    """Makes the cluster once; each row gets a copy."""
    with EmbeddedPostgres(folder) as postgres:
        await migrate(postgres.dsn())
        async with Database(Access(postgres.dsn(), assume_role=True)) as database:
            people, users, private = await _settle(database)
    return Template(folder, people, users, private)


async def _settle(database: Database) -> tuple[list[Person], dict[str, str], list[str]]:
    world = on_postgres(database, clock=SystemClock(), ids=RandomIds())
    visitors = Visitors(
        *(PostgresVisitorStore(database), world.catalogue, world.library, world.progress),
        *(_NoLimits(), world.ids, world.clock),
    )
    servers = []
    for organization in ("acme", "globex"):
        for slug, mode in (
            (f"{organization}-guides", AuthMode.ON_CONNECT),
            (f"{organization}-open", AuthMode.ANONYMOUS),
        ):
            servers.append(await world.server(organization, slug, auth_mode=mode))
        tour = manuscript(*_STEPS)
        steps = tuple(
            replace(step, title=f"{_CONTENT}, title", content=f"{_CONTENT} of step {step.key}") for step in tour.steps
        )
        assigned = [(server.slug, None) for server in servers[-2:]]
        tour = replace(tour, steps=steps)
        await world.authoring.push(organization, tour, publish=PublishPolicy.KEEP, servers=assigned, by="an author")
    people, users, private = [], {}, [NOTE, _CONTENT, "@torture.example.com"]
    for number in range(_CLIENTS):
        server = servers[number % len(servers)]
        name, token, path = f"p{number}", None, "/mcp"
        if server.auth_mode is AuthMode.ANONYMOUS and number >= _CLIENTS // 2:
            visitor = await visitors.mint(server.key, "192.0.2.1")
            path = f"/v/{visitor}/mcp"
            users[name] = str(await visitors.visitor(server.key, visitor))
            private.append(visitor)
        else:
            email = f"{name}@torture.example.com"
            token = await world.identity.create_token(server.key, email)
            users[name] = str((await world.caller(server, email)).user_id)
            private.append(token)
        revision = (LEGACY, MODERN)[number // len(servers) % 2]
        people.append(Person(name, f"{server.slug}.localhost", path, token, revision))
    return people, users, private


@asynccontextmanager
async def staged(rows: Sequence[Row], template: Template, folder: Path) -> AsyncIterator[Stage]:
    """A cluster and a service on which all of `rows` can happen, one after the other.

    Raises:
        AssertionError: at the end, where the service does not stop as it should, or its log tells too much.
    """
    async with AsyncExitStack() as stack:
        data_dir = folder / "data"
        stack.enter_context(
            small_disk(data_dir, _DISK_MEBIBYTES) if any(it.on_small_disk for it in rows) else nullcontext()
        )
        # By `cp`, which keeps owners: PostgreSQL may run as another account.
        subprocess.run(["cp", "-a", f"{template.data_dir}/.", data_dir], check=True)  # noqa: ASYNC221  # nothing runs yet
        settings = {name: value for row in rows for name, value in row.settings.items()}
        postgres = stack.enter_context(EmbeddedPostgres(data_dir, settings=settings))
        url = postgres.dsn()
        proxy: Proxy | None = None
        if any(row.is_proxied for row in rows):
            proxy = Proxy(postgres.socket_dir / ".s.PGSQL.5432")
            await proxy.open()
            stack.push_async_callback(proxy.close)
            url = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres"
        port = _free_port()
        arguments = ["serve", "--port", str(port), "--workers", str(max(row.workers for row in rows))]
        variables = {"CAIRN_DATABASE_URL": url, "CLOCK_IS_BACK": str(folder / "clock-is-back")}
        # Its clock is the machine's until a fault sets it back.
        module = (
            "tests.torture.stepping_server" if any(row.on_stepping_clock for row in rows) else "entrypoints.cli.main"
        )
        services: list[Serving] = []

        def start() -> Serving:
            services.append(stack.enter_context(serving(*arguments, module=module, **variables)))
            # Of several workers none may be up yet, and what comes before them waits.
            with closing(HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_SECONDS)) as first:
                first.request("GET", "/")
                first.getresponse()
            return services[-1]

        stage = Stage(postgres, folder, start, await asyncio.to_thread(start), proxy, ("127.0.0.1", port))
        yield stage
        assert await asyncio.to_thread(stage.service.stop) == 0
        assert (told := list(_tells_too_much(template, services))) == [], told


async def torture(row: Row, template: Template, stage: Stage, *, seed: int, is_long: bool = False) -> Report:
    """One row: a crowd of its own, the fault, and what holds afterwards.

    Raises:
        CannotHappen: where the fault cannot be brought about on this machine.
    """
    report = Report(row.name, seed)
    stage.random = random.Random(f"{seed}-{row.name}")
    stage.crowd = crowd = Crowd(template.people, stage.address, seed, row.name.replace(" ", "-"))
    stage.hold_seconds = row.long_seconds if is_long else row.hold_seconds
    stage.proof, stage.in_flight, stage.coming_up = [], 0, (0.0, 0.0)
    learning = asyncio.create_task(crowd.learn())
    try:
        await _strike_and_recover(row, stage, report, rounds=20 if is_long else 3)
    except (AssertionError, TimeoutError) as failure:
        report.problems.append(str(failure) or repr(failure))
    finally:
        crowd.is_over = True
        await learning
    stage.calls += crowd.calls
    await _judge(template, stage, report)
    report.proof = "; ".join(stage.proof)
    return report


async def _strike_and_recover(row: Row, stage: Stage, report: Report, *, rounds: int) -> None:
    crowd = stage.crowd
    await crowd.until_everyone_advances(0, rounds, seconds=_PATIENCE_SECONDS)
    # At any moment of whatever is going on.
    await asyncio.sleep(stage.random.uniform(0, 0.1))
    async with row.fault(stage):
        await stage.hold(until_refused=row.refused)
    await _until_database_accepts(stage)
    since = time.monotonic() if row.refused else stage.began
    await crowd.until(
        lambda: bool(crowd.acknowledgements(since)), "an advance is acknowledged", seconds=_PATIENCE_SECONDS
    )
    report.recovery_seconds = crowd.acknowledgements(since)[0] - since
    await crowd.until_everyone_advances(since, rounds, seconds=_PATIENCE_SECONDS)


async def _until_database_accepts(stage: Stage) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            probe = await asyncpg.connect(stage.postgres.dsn(), timeout=1)
        except (OSError, TimeoutError, asyncpg.PostgresError):
            assert time.monotonic() < deadline, "the database has not come back"
        else:
            await probe.close()
            return


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


# ------------------------------------------------------------------------------------------------------ the judgement


async def _judge(template: Template, stage: Stage, report: Report) -> None:
    """Compares what the clients were told with what is in the tables."""
    connection = await asyncpg.connect(stage.postgres.dsn())
    try:
        rows = await connection.fetch(
            "select client_version as tag, coalesce(error_code, outcome) as told from tool_calls"
        )
        events = await connection.fetch(
            "select mcp_server_user_id, walkthrough_id, attempt, from_step_id from walkthrough_progress_events"
            " where kind = 'advanced'"
        )
        wrong = await violations(connection, is_log_whole=True)
    finally:
        await connection.close()
    problems = report.problems
    logged: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        logged[row["tag"]].append(row["told"])
    happened = Counter(tuple(row.values()) for row in events)
    asked = {_named(template, call) for call in stage.calls if call.handle is not None}
    told = Counter(_named(template, call) for call in stage.calls if call.is_acknowledged and call.told != "repeated")
    calls = stage.crowd.calls
    acknowledged = {_named(template, call) for call in calls if call.is_acknowledged}

    report.calls = len(calls)
    report.acknowledged = len(acknowledged)
    report.found = sum(happened[each] == 1 for each in acknowledged)
    report.lost = sum(happened[each] == 0 for each in acknowledged)
    report.doubled = sum(happened[each] > 1 or told[each] > 1 for each in asked)
    # Those of former rows too: whatever happens now takes nothing of them away.
    unlogged = [call for call in stage.calls if call.is_answered and logged[call.tag] != [call.told]]
    report.unlogged = len(unlogged)
    report.longest_seconds = max(_seconds(call, stage) for call in calls)
    report.in_flight = stage.in_flight

    problems += stage.crowd.surprises[:5]
    if len(stage.crowd.surprises) > 5:
        problems.append(f"and {len(stage.crowd.surprises) - 5} more like this")
    problems += [f"{call.tag} was told {call.told}, the log says {logged[call.tag]}" for call in unlogged[:5]]
    problems += [f"an event of no call: {each}" for each in happened if each not in asked]
    strangers = logged.keys() - {call.tag for call in stage.calls}
    problems += [f"a log row of no call: {tag}" for tag in strangers]
    halves = [tag for tag, is_whole in stage.crowd.vanished.items() if not is_whole]
    problems += [f"a log row of half a call: {tag}" for tag in halves if logged[tag]]
    problems += [str(violation) for violation in wrong]
    if report.lost or report.doubled or report.found != report.acknowledged:
        problems.append(f"{report.lost} lost, {report.doubled} doubled")
    if report.longest_seconds > ANSWER_SECONDS:
        problems.append(f"an answer took {report.longest_seconds:.1f} s")
    if report.recovery_seconds > RECOVERY_SECONDS:
        problems.append(f"it took {report.recovery_seconds:.1f} s to recover")
    if not stage.in_flight:
        problems.append("no call was in flight when the fault began")
    if not stage.proof:
        problems.append("nothing shows that the fault happened")


def _seconds(call: Call, stage: Stage) -> float:
    """How long a call took; how long a service takes to come up is the machine's affair."""
    if call.answered is None:
        return 0.0
    began, ended = stage.coming_up
    return call.answered - call.sent - max(0.0, min(call.answered, ended) - max(call.sent, began))


def _named(template: Template, call: Call) -> tuple[str, str, int, str]:
    """Whose step of which attempt a call's handle names, as the rows of events do."""
    walkthrough_id, _, step_id, attempt, _ = (call.handle or "").split(".")
    return template.users[call.person.name], walkthrough_id, int(attempt), step_id


def _tells_too_much(template: Template, services: Iterable[Serving]) -> Iterator[str]:
    """The lines in which a service has told a token, an address, a visitor's id, a note or content."""
    for service in services:
        for line in service.output.splitlines():
            if any(secret in line for secret in template.secrets) or _SECRET.search(line):
                yield line


# ---------------------------------------------------------------------------------------------------------- the table


async def _run(only: str, seed: int) -> int:
    print(f"seed {seed}: CAIRN_TORTURE_SEED={seed} makes this run again\n\n{HEADING}", flush=True)
    failed = left_out = 0
    rows = [row for row in ROWS if row.name.startswith(only)]
    if not rows:
        print(f"no row's name begins with {only!r}")
        return 2
    with tempfile.TemporaryDirectory(prefix="cairn-torture-") as scratch:
        template = await make_template(Path(scratch) / "template")
        for number, row in enumerate(rows):
            folder = Path(scratch) / f"row-{number}"
            folder.mkdir()
            problems: list[str] = []
            try:
                async with staged([row], template, folder) as stage:
                    report = await torture(row, template, stage, seed=seed, is_long=True)
                    print(report.line(), flush=True)
                    problems = report.problems
            except CannotHappen as reason:
                print(f"{row.name:<28} left out: {reason}", flush=True)
                left_out += 1
                problems = [str(reason)] if os.environ.get("CAIRN_TEST_NO_SKIPS") else []
            except AssertionError as failure:
                problems = [*problems, str(failure)]
            for problem in problems:
                print(f"    {problem}", flush=True)
            failed += bool(problems)
    came_of_it = f"{failed} rows do not hold" if failed else "all others hold" if left_out else "all hold"
    print(f"\n{came_of_it}" + (f", {left_out} left out" if left_out else ""))
    return int(failed > 0)


def seed_of_run() -> int:
    """That of CAIRN_TORTURE_SEED, or a new one."""
    return int(os.environ.get("CAIRN_TORTURE_SEED") or secrets.randbelow(1_000_000))


if __name__ == "__main__":
    sys.exit(uvloop.run(_run(sys.argv[1] if len(sys.argv) > 1 else "", seed_of_run())))
