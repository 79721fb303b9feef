"""The list of promised behaviours is complete: each has a test, or names the area that will build it."""

from __future__ import annotations

import ast
import tomllib
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parent
# As read from the files, so that running a part of the suite says nothing wrong about the rest.
PROMISES: dict[str, dict[str, str]] = tomllib.loads((TESTS / "promises.toml").read_text())


def _proofs() -> dict[str, list[str]]:
    """The tests that each promise's id is marked on."""
    proofs = defaultdict(list)
    for file in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            for decorator in getattr(node, "decorator_list", []):
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.promise":
                    for id in decorator.args:
                        proofs[ast.literal_eval(id)].append(f"{file.relative_to(TESTS)}::{node.name}")  # type: ignore[attr-defined]
    return proofs


def test_every_promise_has_a_test_or_the_area_that_will_build_it() -> None:
    proofs = _proofs()
    broken = [id for id, promise in PROMISES.items() if id not in proofs and "pending" not in promise]
    assert not broken, f"promised, and neither tested nor pending: {broken}"


def test_no_promise_is_pending_that_has_a_test() -> None:
    assert not [id for id in _proofs() if "pending" in PROMISES.get(id, {})]


def test_every_marked_test_names_a_promise_that_is_on_the_list() -> None:
    unknown = {id: tests for id, tests in _proofs().items() if id not in PROMISES}
    assert not unknown


def test_the_list_is_short_enough_to_be_read() -> None:
    assert len(PROMISES) < 80
    assert all(set(promise) - {"pending"} == {"says", "source"} for promise in PROMISES.values())
