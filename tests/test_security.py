"""SECURITY.md keeps its word: each threat names tests that there are, and what Cairn is built on may be passed on."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_TEST = re.compile(r"`([a-z_/]+\.py)::(test_\w+)`")
# Of SPDX, and in the words of packages that are older than that: what may be used by, and passed on with, a work under
# Apache-2.0. MPL-2.0 asks for no more than that its own files stay under it, and nothing of it is changed here.
_FITTING = {
    *("Apache-2.0", "Apache Software License", "BSD-2-Clause", "BSD-3-Clause", "BSD License", "MIT", "MIT License"),
    *("3-Clause BSD License", "MIT-0", "PSF-2.0", "MPL-2.0", "Mozilla Public License 2.0 (MPL 2.0)"),
}
# Its metadata names a licence in no form that can be read, and its files hold this one.
_READ_BY_HAND = {"rich-click": "MIT"}
# Of packages that are for other systems or releases of Python, and so not here to be read.
_NOT_EVERYWHERE = {
    "async-timeout": "Apache-2.0",
    "colorama": "BSD-3-Clause",
    "httpx2-jsfetch": "BSD-3-Clause",
    "pywin32": "PSF-2.0",
    "tzdata": "Apache-2.0",
}
_LOCKS = sorted(file.name for file in ROOT.glob("requirements*.lock"))


def _threats() -> Iterator[tuple[int, list[str]]]:
    """The rows of the tables of threats: line number, and cells."""
    is_threat = False
    for number, line in enumerate((ROOT / "SECURITY.md").read_text().splitlines(), start=1):
        if not line.startswith("|"):
            is_threat = False
        elif line.startswith("| Threat |"):
            is_threat = True
        elif is_threat and not line.startswith("|---"):
            yield number, [cell.strip() for cell in line.strip("|").split("|")]


def test_every_threat_has_a_defence_and_a_test() -> None:
    rows = list(_threats())
    assert len(rows) > 50
    # A folder in brackets is where the tests of what is being built will be.
    incomplete = [number for number, row in rows if len(row) != 3 or not all(row) or not _TEST.search(row[2])]
    assert not incomplete, f"lines of SECURITY.md without threat, defence and test: {incomplete}"


def test_every_test_that_is_named_exists() -> None:
    named = set(_TEST.findall((ROOT / "SECURITY.md").read_text()))
    there = {file: _tests_of(ROOT / "tests" / file) for file in {file for file, _ in named}}
    assert not sorted(f"{file}::{test}" for file, test in named if test not in there[file])


def test_every_place_in_the_code_that_is_named_exists() -> None:
    places = set(re.findall(r"`((?:domain|application|adapters|entrypoints|migrations)/[a-z0-9_/.]+)`", _text()))
    assert len(places) > 15
    assert not sorted(place for place in places if not (ROOT / place).exists())


def _text() -> str:
    return (ROOT / "SECURITY.md").read_text()


def _tests_of(file: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(file.read_text() if file.exists() else ""))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_locked_package_has_its_hash() -> None:
    for lock in _LOCKS:
        entries = re.split(r"^(?=[a-z])", (ROOT / lock).read_text(), flags=re.MULTILINE)[1:]
        assert entries
        assert not [entry for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}$", entry, re.MULTILINE)]
    packages = json.loads((ROOT / "tests/conformance/package-lock.json").read_text())["packages"]
    assert not [name for name, package in packages.items() if name and not package["integrity"].startswith("sha512-")]


@pytest.mark.parametrize("failing", [None, *_LOCKS, "npm"])
def test_every_lock_file_is_audited(tmp_path: Path, failing: str | None) -> None:
    """Those who are asked are played by scripts: `make audit` asks all of them, and one that fails makes it fail."""
    for file in ("Makefile", "pyproject.toml", "tests/conformance/package-lock.json", *_LOCKS):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    asked = tmp_path / "asked"
    for program, name in (("audit/bin/pip-audit", '"${@: -1}"'), ("conformance/bin/python", "npm")):
        script = tmp_path / ".venv" / program
        script.parent.mkdir(parents=True)
        script.write_text(f'#!/bin/bash\necho {name} $* >> {asked}\n[ {name} != "{failing}" ]\n')
        script.chmod(0o755)
    for made in ("bin/python", "audit/installed", "conformance/installed"):
        (tmp_path / ".venv" / made).parent.mkdir(exist_ok=True)
        (tmp_path / ".venv" / made).touch()
    done = subprocess.run(["make", "audit"], cwd=tmp_path, capture_output=True, timeout=30, check=False)
    assert (done.returncode == 0) == (failing is None)
    if failing is None:
        *locks, npm = asked.read_text().splitlines()
        assert [line.split()[:2] for line in locks] == [[lock, "--strict"] for lock in _LOCKS]
        assert 'node.npm(["audit", "--package-lock-only", "--prefix", "tests/conformance"])' in npm


def test_what_cairn_is_built_on_may_be_passed_on_with_it() -> None:
    misfits = {package: told for package in _locked() if not _fits(told := _licence_of(package))}
    assert not misfits


def _locked() -> list[str]:
    return sorted(set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)))


def _licence_of(package: str) -> str:
    """An SPDX expression, or the like."""
    try:
        found = metadata(package)
    except PackageNotFoundError:
        return _NOT_EVERYWHERE[package]
    classifiers = [each.rpartition(" :: ")[2] for each in found.get_all("Classifier", []) if "License ::" in each]
    told = found.get("License-Expression") or " AND ".join(classifiers) or found.get("License", "")
    return _READ_BY_HAND.get(package, told)


def _fits(expression: str) -> bool:
    """Whether an SPDX expression, without brackets, can be met by licences that fit."""
    return any(all(name in _FITTING for name in part.split(" AND ")) for part in expression.split(" OR "))


def test_a_licence_that_asks_for_more_does_not_fit() -> None:
    assert not any(map(_fits, ("", "GPL-3.0-only", "AGPL-3.0-or-later", "MIT AND LGPL-3.0-only")))
    assert all(map(_fits, ("MIT OR GPL-3.0-only", "Apache-2.0 AND MIT", "BSD License")))
