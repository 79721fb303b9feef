"""Makes the recorded breaks (`mutations.toml`), each by itself and in a copy of the tree, and sees the tests go red.

make mutations                  all of them
make mutations ONLY=handle      those whose names begin so
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from adapters.embedded_postgres import EmbeddedPostgres

_PROJECT = Path(__file__).parents[2]
_AT_ONCE = 2  # more than a small machine has cores for would only be slower
_ROOMS = ("domain", "application", "adapters", "entrypoints", "migrations", "tests")


@dataclass(frozen=True)
class Mutation:
    """One break: what is replaced by what, and the tests that must go red."""

    name: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]
    why: str

    def apply(self, tree: Path, number: int) -> bool:
        """Makes it; False where its place is not there, or there several times."""
        path = tree / self.file
        source = path.read_text() if path.is_file() else ""
        if source.count(self.find) != 1:
            return False
        path.write_text(source.replace(self.find, self.replace))
        # Bytecode is told apart by its source's size and second, so each break has a second of its own.
        os.utime(path, (number, number))
        return True

    def revert(self, tree: Path) -> None:
        shutil.copy2(_PROJECT / self.file, tree / self.file)


def _copy(tree: Path) -> None:
    """What is tracked, with the changes of the moment, and what is new; nothing that was built."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=_PROJECT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (_PROJECT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(_PROJECT / name, tree / name)


def _environment(tree: Path, database_url: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CAIRN_")}
    return kept | {
        # Cairn is installed in this very environment, from the tree that is not to be touched: the copy comes first.
        "PYTHONPATH": str(tree),
        "CAIRN_TEST_DATABASE_URL": database_url,
        "CAIRN_TEST_NO_SKIPS": "1",
    }


def _prove_that_the_copy_is_used(tree: Path, environment: dict[str, str]) -> None:
    code = f"import {', '.join(_ROOMS)}; print(*(each.__path__[0] for each in ({', '.join(_ROOMS)},)), sep='\\n')"
    found = subprocess.run([sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, check=True)
    outside = [each for each in found.stdout.decode().splitlines() if not Path(each).is_relative_to(tree)]
    assert not outside, f"not the copy's: {outside}"


def _run(tests: list[str], tree: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "tests.mutations.unshrunk", "-q", "--tb=short", "-rfE", *tests]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def _unseen_by(mutation: Mutation, ran: subprocess.CompletedProcess[str]) -> list[str]:
    """Those of its tests that did not fail. One that cannot even be collected or set up has seen nothing."""
    failed = re.findall(r"^FAILED (.+?)(?: - .*)?$", ran.stdout, re.MULTILINE)
    return [test for test in mutation.tests if not any(each.startswith(test) for each in failed)]


def _see(mutation: Mutation, number: int, trees: SimpleQueue[Path], url: str) -> list[str]:
    """Makes one break in a tree that nobody else uses, and says so; what is wrong, if anything is."""
    tree = trees.get()
    began = time.monotonic()
    try:
        if not mutation.apply(tree, number):
            return [f"{mutation.name}: its place in {mutation.file} is gone, or there several times"]
        ran = _run(list(mutation.tests), tree, _environment(tree, url))
        mutation.revert(tree)
        unseen = _unseen_by(mutation, ran)
        verdict = "NOT SEEN" if unseen else "red"
        print(f"  {mutation.name:<48} {verdict:<9} {time.monotonic() - began:4.1f} s", flush=True)
        return [f"{mutation.name}: not seen by {test}\n{ran.stdout[-2000:]}" for test in unseen]
    finally:
        trees.put(tree)


def main(only: str) -> int:
    """Sees all breaks whose names begin with `only`; returns the exit status."""
    recorded = tomllib.loads((Path(__file__).parent / "mutations.toml").read_text())["mutation"]
    mutations = [Mutation(**{**each, "tests": tuple(each["tests"])}) for each in recorded]
    mutations = [each for each in mutations if each.name.startswith(only)]
    with ExitStack() as stack:
        folders = [
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cairn-mutations-"))).resolve()
            for _ in range(_AT_ONCE + 1)
        ]
        url = os.environ.get("CAIRN_TEST_DATABASE_URL")
        if not url:
            url = stack.enter_context(EmbeddedPostgres(folders.pop(), durable=False)).dsn("postgres", "postgres")
        trees: SimpleQueue[Path] = SimpleQueue()
        for tree in folders[:_AT_ONCE]:
            _copy(tree)
            _prove_that_the_copy_is_used(tree, _environment(tree, url))
            trees.put(tree)
        ran = _run(sorted({test for each in mutations for test in each.tests}), tree, _environment(tree, url))
        if ran.returncode:
            print(ran.stdout, ran.stderr, "The tests fail without any break.", sep="\n")
            return 1
        print("Without a break all of these tests are green. With one:", flush=True)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            seen = [pool.submit(_see, each, number, trees, url) for number, each in enumerate(mutations, start=1)]
        problems = [problem for each in seen for problem in each.result()]
    print(*problems, sep="\n")
    print(f"{len(problems)} problems with {len(mutations)} breaks.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
