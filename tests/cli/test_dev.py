"""`cairn dev` and `cairn serve` as real processes: started, shared, killed and stopped."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from adapters.content.folder import read_folder
from adapters.embedded_postgres import EmbeddedPostgres
from entrypoints.cli.demo import WALKTHROUGHS
from tests.cli.conftest import Nursery, wait_until, write_walkthrough
from tests.processes import PROJECT, Learner, Serving, environment, learner, serving, text_of

KEYS = [read_folder(folder).key for folder in sorted(WALKTHROUGHS.iterdir()) if folder.is_dir()]
FIRST = KEYS[0]
LAST_WORDS = "Stop with Ctrl-C"


def announced(service: Serving) -> str:
    """Everything that is printed at the start."""
    wait_until(lambda: LAST_WORDS in service.output)
    return service.output


def token_of(service: Serving) -> str:
    (token,) = re.findall(r"^ *Token +(\S+)$", announced(service), re.MULTILINE)
    return str(token)


def has_stopped(data_dir: Path) -> bool:
    """Whether not one process of the embedded server is left: they all hold this lock."""
    with open(data_dir / "postgres.server", "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing in it, in which `cairn dev` is started."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def dev(home: Path) -> Iterator[Serving]:
    """`cairn dev` on a fresh machine."""
    with serving("dev", "--port", "0", cwd=home) as running:
        announced(running)
        yield running


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory for tests that start and end `cairn dev` themselves."""
    return tmp_path_factory.mktemp("used") / ".cairn"


@pytest.fixture(params=["auto", "legacy"])
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --------------------------------------------------------------------------------------------- what it prints


@pytest.mark.promise("dev")
async def test_dev_prints_a_url_and_a_token_with_which_the_walkthroughs_are_listed(dev: Serving, era: str) -> None:
    (url,) = re.findall(r"^ *URL +(\S+)$", announced(dev), re.MULTILINE)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/mcp", url)
    async with learner(url, token_of(dev), era=era) as me:
        rows = (await me.call("list_walkthroughs"))["walkthroughs"]
    assert [row["key"] for row in rows] == KEYS
    assert all(row["status"] is not None for row in rows)  # so the token says who calls


@pytest.mark.promise("dev")
async def test_the_line_for_claude_can_be_pasted_and_works(dev: Serving) -> None:
    (line,) = (line for line in announced(dev).splitlines() if "claude mcp add" in line)
    words = shlex.split(line)
    assert words[:7] == ["claude", "mcp", "add", "--transport", "http", "--scope", "user"]
    name, url, option, header = words[7:]
    assert (name, option) == ("cairn-demo", "--header")
    label, _, value = header.partition(": ")
    assert label == "Authorization"
    scheme, _, token = value.partition(" ")
    assert scheme == "Bearer"
    async with learner(url, token) as me:
        assert (await me.call("get_walkthrough_status"))["walkthroughs"] is not None


@pytest.mark.promise("dev")
async def test_the_configuration_can_be_pasted_and_works(dev: Serving) -> None:
    text = announced(dev)
    configuration = json.JSONDecoder().raw_decode(text[text.index("{") :])[0]
    ((name, server),) = configuration["mcpServers"].items()
    assert (name, server["type"]) == ("cairn-demo", "http")
    assert list(server["headers"]) == ["Authorization"]
    async with learner(server["url"], server["headers"]["Authorization"].removeprefix("Bearer ")) as me:
        assert (await me.call("get_walkthrough_status"))["walkthroughs"] is not None


@pytest.mark.promise("dev")
def test_nobody_else_can_read_the_token(dev: Serving, home: Path) -> None:
    file = home / ".cairn" / "dev-token"
    assert file.read_text() == token_of(dev) + "\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_is_printed_fits_a_terminal_but_for_what_is_to_be_pasted(dev: Serving) -> None:
    text = announced(dev)
    long = [line for line in text.splitlines() if len(line) > 80]
    assert all("Authorization" in line for line in long), long
    assert "\x1b" not in text  # no colours where nobody sees them


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.promise("content.real")
async def test_a_shipped_walkthrough_is_taken_to_its_end(dev: Serving, era: str, key: str) -> None:
    steps = read_folder(next(each for each in WALKTHROUGHS.iterdir() if each.is_dir() and key in each.name)).steps
    async with learner(dev.url, token_of(dev), era=era) as me:
        told = await me.call("select_walkthrough", walkthrough=key, restart=True)
        shown = []
        while told["step"]:
            shown.append((told["step"]["key"], told["step"]["content"]))
            told = await me.call("next_walkthrough_step", completed_step=told["step"]["handle"])
        assert told["status"] == "completed"
        assert shown == [(step.key, step.content) for step in steps]
        assert len(shown) >= 6


# ----------------------------------------------------------------------------------------------------- sharing


@pytest.mark.promise("storage.shared")
async def test_a_second_dev_on_the_same_data_directory_shares_database_and_token(dev: Serving, home: Path) -> None:
    token = token_of(dev)
    with serving("dev", "--port", "0", "--json", cwd=home) as second:
        assert second.url != dev.url
        (line,) = [line for line in second.lines if line.startswith("{")]
        assert json.loads(line) == {"url": second.url, "token": token}
        async with learner(dev.url, token) as me:
            told = await me.call("select_walkthrough", walkthrough=FIRST, restart=True)
        async with learner(second.url, token) as me:
            told = await me.call("next_walkthrough_step", completed_step=told["step"]["handle"])
        async with learner(dev.url, token) as me:
            here = await me.call("select_walkthrough", walkthrough=FIRST)
            assert (here["status"], here["step"]) == ("resumed", told["step"])
        assert second.stop() == 0
    async with learner(dev.url, token) as me:  # the one that is left has kept the database
        assert (await me.call("select_walkthrough", walkthrough=FIRST))["step"] == told["step"]


@pytest.mark.promise("storage.shared")
async def test_other_commands_work_while_dev_runs(dev: Serving, home: Path, nursery: Nursery, tmp_path: Path) -> None:
    folder = write_walkthrough(tmp_path / "mine", "one", "two", key="mine")
    push = nursery.run("push", str(folder), "--org", "demo", "--publish", "--server", "demo", cwd=home)
    assert push.lines == ["Published mine as version 1."]
    token = nursery.run("token", "create", "--server", "demo", "--email", "bob@example.com", cwd=home).lines[-1]
    async with learner(dev.url, token) as me:
        assert [row["key"] for row in (await me.call("list_walkthroughs"))["walkthroughs"]] == [*KEYS, "mine"]
    assert nursery.run("token", "revoke", "--server", "demo", "--email", "bob@example.com", cwd=home).lines
    refused = httpx2.post(dev.url, json={}, headers={"authorization": f"Bearer {token}"})
    assert refused.status_code == 401


# ------------------------------------------------------------------------------------------------------ crashes


async def patient(me: Learner, tool: str, **arguments: Any) -> dict[str, Any]:
    """The call, repeated as long as it is answered that it may be."""
    deadline = time.monotonic() + 10
    while True:
        result = await me.client.call_tool(tool, arguments)
        if not result.is_error:
            assert result.structured_content
            return dict(result.structured_content)
        assert text_of(result).startswith("temporarily_unavailable: ")
        assert time.monotonic() < deadline, "it did not come back"


@pytest.mark.promise("dev")
async def test_a_killed_database_comes_back_by_itself_and_nothing_is_lost(dev: Serving, home: Path, era: str) -> None:
    data_dir = home / ".cairn"
    async with learner(dev.url, token_of(dev), era=era) as me:
        told = await me.call("select_walkthrough", walkthrough=FIRST, restart=True)
        told = await me.call("next_walkthrough_step", completed_step=told["step"]["handle"])
        before = postmaster(data_dir)
        os.kill(before, signal.SIGKILL)

        advanced = await patient(me, "next_walkthrough_step", completed_step=told["step"]["handle"])
        # `repeated`, if the answer to the call that moved was lost with the database.
        assert advanced["status"] in ("advanced", "repeated")
        assert advanced["step"]["number"] == told["step"]["number"] + 1
        here = await patient(me, "select_walkthrough", walkthrough=FIRST)
        assert (here["step"], here["progress"]) == (advanced["step"], advanced["progress"])
        assert postmaster(data_dir) != before


@pytest.mark.promise("dev")
async def test_a_killed_dev_is_started_again_and_the_person_stands_where_they_stood(used: Path) -> None:
    stood: dict[str, Any] = {}
    with serving("dev", "--port", "0", "--data-dir", str(used)) as first:
        token = token_of(first)

        async def killed_under_its_client() -> None:
            async with learner(first.url, token, era="legacy") as me:
                stood.update(await me.call("select_walkthrough", walkthrough=FIRST))
                for _ in range(2):
                    stood.update(await me.call("next_walkthrough_step", completed_step=stood["step"]["handle"]))
                os.kill(postmaster(used), signal.SIGKILL)  # and the database with it
                first.kill()
                await me.call("get_walkthrough_status")

        with pytest.raises(ExceptionGroup, match="unhandled errors"):  # so the client says that nobody is there
            await killed_under_its_client()
        assert first.process.returncode == -signal.SIGKILL
    with serving("dev", "--port", "0", "--data-dir", str(used)) as second:
        assert token_of(second) == token
        async with learner(second.url, token, era="auto") as me:
            resumed = await me.call("select_walkthrough", walkthrough=FIRST)
            assert (resumed["status"], resumed["step"], resumed["progress"]) == (
                "resumed",
                stood["step"],
                stood["progress"],
            )
            onward = await me.call("next_walkthrough_step", completed_step=stood["step"]["handle"])
            assert (onward["status"], onward["step"]["number"]) == ("advanced", stood["step"]["number"] + 1)


@pytest.mark.promise("dev")
def test_a_token_that_was_revoked_or_lost_is_replaced_at_the_next_start(used: Path, nursery: Nursery) -> None:
    token = (used / "dev-token").read_text().strip()
    revoke = ("token", "revoke", "--server", "demo", "--token", "-", "--data-dir", str(used))
    assert nursery.run(*revoke, stdin=token.encode()).lines  # which starts the database, and stops it
    with serving("dev", "--port", "0", "--data-dir", str(used)) as second:
        assert token_of(second) != token
        assert (used / "dev-token").read_text().strip() == token_of(second)


# ----------------------------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_last_one_out_stops_the_embedded_server(used: Path, number: signal.Signals) -> None:
    with serving("dev", "--port", "0", "--data-dir", str(used)) as service:
        announced(service)
        assert not has_stopped(used)
        service.process.send_signal(number)
        assert service.process.wait(20) == 0
        assert has_stopped(used)
    said = service.output.partition(LAST_WORDS)[2]
    assert "Traceback" not in said
    assert "Aborted" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_dev_that_is_stopped_while_it_starts_leaves_no_server_behind(used: Path, number: signal.Signals) -> None:
    assert has_stopped(used)
    process = subprocess.Popen(
        [sys.executable, "-m", "entrypoints.cli.main", "dev", "--port", "0", "--data-dir", str(used)],
        cwd=PROJECT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # From the moment it is there; what comes next is migrating and seeding.
        wait_until(lambda: (used / "postgres" / "postmaster.pid").exists(), 60)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert has_stopped(used)
        assert "Traceback" not in errors
    finally:
        with EmbeddedPostgres(used):  # ends what may have been left
            pass


# ------------------------------------------------------------------------------------------------------ workers


def workers_of(service: Serving) -> set[int]:
    """The processes that serve, below the one that was started."""
    listed = subprocess.run(["ps", "-Aww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return {int(pid) for pid, parent, args in rows if int(parent) == service.pid and "spawn_main" in args}


def is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.promise("serve.workers")
async def test_each_worker_serves_a_killed_one_is_replaced_and_all_end_together(used: Path) -> None:
    token = (used / "dev-token").read_text().strip()
    arguments = ("serve", "--workers", "2", "--port", "0", "--data-dir", str(used))
    with serving(*arguments, CAIRN_DEFAULT_SERVER="demo") as service:

        async def serves() -> None:
            async with learner(service.url, token) as me:
                assert [row["key"] for row in (await me.call("list_walkthroughs"))["walkthroughs"]] == KEYS

        await serves()
        workers = wait_until(lambda: (found := workers_of(service)) and len(found) == 2 and found)
        doomed, other = sorted(workers)
        for stopped in (doomed, other):
            os.kill(stopped, signal.SIGSTOP)  # so that the other one has to answer
            try:
                await serves()
            finally:
                os.kill(stopped, signal.SIGCONT)
        os.kill(doomed, signal.SIGKILL)
        await serves()
        workers = wait_until(lambda: (found := workers_of(service) - {doomed}) and len(found) == 2 and found)
        os.kill(other, signal.SIGSTOP)
        try:
            await serves()  # the new one
        finally:
            os.kill(other, signal.SIGCONT)
        assert service.stop() == 0
        assert not any(is_alive(pid) for pid in workers)
        assert has_stopped(used)


@pytest.mark.promise("serve.workers")
def test_workers_end_when_the_process_that_started_them_is_killed(used: Path) -> None:
    with serving("serve", "--workers", "2", "--port", "0", "--data-dir", str(used)) as service:
        workers = wait_until(lambda: (found := workers_of(service)) and len(found) == 2 and found)
        service.kill()
        wait_until(lambda: not any(is_alive(pid) for pid in workers))
        wait_until(lambda: has_stopped(used))  # the last worker out has stopped the embedded server
