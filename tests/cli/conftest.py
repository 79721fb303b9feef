"""Commands of `cairn`, each in a process of its own, and what they work on."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from adapters.embedded_postgres import EmbeddedPostgres
from adapters.postgres.connections import Access, Database
from tests.fakes import CountedIds
from tests.processes import PROJECT, environment
from tests.worlds import World, on_postgres

AS_ROOT = os.geteuid() == 0
# What an ordinary user is where the tests run as root.
ORDINARY = next(it for it in pwd.getpwall() if it.pw_uid and it.pw_name not in ("postgres", "nobody"))
# What a slow machine may say between: it is progress, and no error.
_PROGRESS = re.compile(r"(PostgreSQL is|waiting for) .*\n")

# Imports once what takes a second, and forks for each command. It becomes another user only after its imports:
# that one may not reach the interpreter.
_NURSERY = """
import gc, importlib, json, os, sys, traceback
main = importlib.import_module("entrypoints.cli.main").main
importlib.import_module("entrypoints.cli.commands")
importlib.import_module("entrypoints.cli.developing")
answers = os.dup(1)
gc.freeze()
os.write(answers, b"here\\n")
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.close(answers)
        for number, name, flags in (0, "stdin", os.O_RDONLY), (1, "stdout", os.O_WRONLY), (2, "stderr", os.O_WRONLY):
            os.dup2(os.open(job[name], flags), number)
        sys.stdin = open(0)
        os.chdir(job["cwd"])
        os.environ.clear()
        os.environ.update(job["environment"])
        if job["ids"]:
            os.setgroups([]); os.setgid(job["ids"][1]); os.setuid(job["ids"][0])
        status = 70
        try:
            main(job["arguments"], prog_name="cairn")
        except SystemExit as ending:
            status = ending.code or 0
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush(); sys.stderr.flush()
        os._exit(status)  # to tear down all that was imported would take a second
    os.write(answers, b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> Sequence[str]:
        """What a command that succeeded printed."""
        assert (self.status, self.complaint) == (0, ""), self
        return self.stdout.splitlines()

    @property
    def json(self) -> Any:
        """What a command that succeeded printed, and nothing else is there."""
        (line,) = self.lines
        return json.loads(line)

    @property
    def complaint(self) -> str:
        return _PROGRESS.sub("", self.stderr)

    @property
    def error(self) -> str:
        """The one line of a command that was refused."""
        assert self.status == 1, self
        assert self.stdout == "", self
        assert self.complaint.count("\n") == 1, self
        assert re.match(r"error: \S", self.complaint), self
        return self.complaint.removeprefix("error: ").rstrip("\n")

    @property
    def usage_error(self) -> str:
        assert self.status == 2, self
        assert self.stdout == "", self
        assert self.stderr.startswith("Usage: cairn"), self
        assert "Traceback" not in self.stderr, self
        return self.stderr


class Nursery:
    """Runs commands quickly: each is a process of its own, with the imports already done."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)
        self._folder = folder
        self._turn = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _NURSERY],
            env=environment(),
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # What it takes to import is no command's time.
        assert self._process.stdout
        assert self._process.stdout.readline() == "here\n"

    def run(
        self,
        *arguments: str,
        cwd: Path | None = None,
        stdin: bytes = b"",
        ordinary: bool = False,
        **variables: str,
    ) -> Outcome:
        """`cairn` with these arguments; `ordinary` as a user who may not do everything."""
        files = {name: self._folder / name for name in ("stdin", "stdout", "stderr")}
        for name, file in files.items():
            file.write_bytes(stdin if name == "stdin" else b"")
            file.chmod(0o666)
        job = {
            "arguments": arguments,
            "cwd": str(cwd or self._folder),
            "environment": environment(**variables),
            "ids": [ORDINARY.pw_uid, ORDINARY.pw_gid] if ordinary and AS_ROOT else None,
            **{name: str(file) for name, file in files.items()},
        }
        assert self._process.stdin
        assert self._process.stdout
        with self._turn:
            print(json.dumps(job), file=self._process.stdin, flush=True)
            status = int(self._process.stdout.readline())
        return Outcome(status, files["stdout"].read_text(), files["stderr"].read_text())

    def end(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with tempfile.TemporaryDirectory(prefix="cairn-cli-") as folder:
        nursery = Nursery(Path(folder))
        yield nursery
        nursery.end()


Cairn = Callable[..., Outcome]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Iterator[Path]:
    """An embedded data directory that is migrated, and whose server outlasts each single command."""
    folder = tmp_path_factory.mktemp("cli") / ".cairn"
    with EmbeddedPostgres(folder, durable=False):
        assert nursery.run("migrate", "--data-dir", str(folder)).status == 0
        yield folder


@pytest.fixture
def cairn(nursery: Nursery, data_dir: Path) -> Cairn:
    """A command on this module's data directory."""

    def run(*arguments: str, **given: Any) -> Outcome:
        return nursery.run(*arguments, **{"CAIRN_DATA_DIR": str(data_dir), **given})

    return run


@pytest.fixture
def on_database(nursery: Nursery, owner_url: str) -> Cairn:
    """A command on this module's database of the shared server."""

    def run(*arguments: str, **given: Any) -> Outcome:
        return nursery.run(*arguments, **{"CAIRN_DATABASE_URL": owner_url, **given})

    return run


_worlds = count(1)
Act = Callable[[World, str], Awaitable[Any]]


@pytest.fixture
def on_world(owner_url: str) -> Callable[[Act], str]:
    """Acts in a world on this module's database, and returns its organisation, which has a server of that name."""

    def run(act: Act) -> str:
        number = next(_worlds)
        slug = f"world-{number}"

        async def acted() -> None:
            async with Database(Access(owner_url, assume_role=True)) as database:
                world = on_postgres(database, ids=CountedIds(number * 1_000_000))
                await world.server(slug, slug)
                await act(world, slug)

        asyncio.run(acted())
        return slug

    return run


def write_walkthrough(folder: Path, *steps: str, key: str = "tour", type: str = "course") -> Path:
    """A folder with a sound walkthrough, unless `type` is none."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        old.unlink()
    (folder / "walkthrough.yaml").write_text(
        f"schema: 1\nkey: {key}\ntitle: The {key}\ndescription: Shows around.\ntype: {type}\n"
    )
    for number, step in enumerate(steps, start=1):
        (folder / f"{number:02}-{step}.md").write_text(f"# Step {step}\n\nDo {step}.\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound walkthrough of two steps."""
    return write_walkthrough(tmp_path / "tour", "one", "two")


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """What the condition gives once it gives something."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return answer


@contextmanager
def ordinary_folder() -> Iterator[Path]:
    """A folder that everybody can reach and an ordinary user may only read."""
    with tempfile.TemporaryDirectory(prefix="cairn-cli-") as folder:
        path = Path(folder)
        path.chmod(0o555)
        yield path
        path.chmod(0o755)
