"""Real documents of other people's: what the content check finds in them, and that they are taken to their ends."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from domain.errors import ContentRejected
from domain.progress import EventKind, Status, replay
from domain.walkthrough import MAX_RESULT_BYTES, Finding, VersionKey
from entrypoints.workshop import Workshop
from tests.cli.conftest import Cairn
from tests.documents.converters import Files, codelab, codetour, killercoda
from tests.processes import text_of
from tests.serving.conftest import Tenant


@dataclass(frozen=True)
class Document:
    key: str
    source: str
    """The file, or the folder of files, among the real documents."""
    convert: Callable[..., Files]

    def read(self, content_folder: Path) -> Files:
        source = content_folder / self.source
        files = source.iterdir() if source.is_dir() else [source]
        return {file.name: file.read_bytes().decode() for file in files}

    def write(self, content_folder: Path, folder: Path, *, is_mended: bool) -> Path:
        """The document's walkthrough folder, made in `folder`."""
        folder /= self.key
        folder.mkdir()
        for name, text in self.convert(self.read(content_folder), self.key, is_mended=is_mended).items():
            (folder / name).write_bytes(text.encode())
        return folder


DOCUMENTS = [
    Document("grafana-fundamentals", "killercoda/grafana-fundamentals", killercoda),
    Document("kyverno-tutorial", "codetour/kyverno-tutorial/main.tour", codetour),
    Document("mini-typescript-overview", "codetour/mini-typescript/overview.tour", codetour),
    Document("mini-typescript-lexer", "codetour/mini-typescript/lexer.tour", codetour),
    Document("mini-typescript-parser", "codetour/mini-typescript/parser.tour", codetour),
    Document("firebase-emulator", "codelab/firebase-emulators/index.lab.md", codelab),
]
_WHOLE = re.DOTALL | re.MULTILINE
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.key)


class Known(NamedTuple):
    """What the check finds in a faithful folder, and what that is."""

    document: str
    rule: str
    count: int
    shows: str
    """What each line that is found contains; empty where a file lacks something."""
    why: str


_BUTTON = "a fence that ends in ```{{exec}} or ```{{copy}}, which only Killercoda takes for its end"
_HOST = "an address that only Killercoda fills in, and a dead link for everybody else"
_PLACES = "a tour calls a step without a title by its place in the project"
_NO_DESCRIPTION = "a tour needs no description"
_PICTURE = "a picture in HTML, and in a file that is not delivered"
KNOWN = [
    Known("grafana-fundamentals", "fence-unclosed", 12, "```", _BUTTON),
    Known("grafana-fundamentals", "link-dead", 6, "]({{TRAFFIC_HOST1_", _HOST),
    Known("kyverno-tutorial", "title-missing", 9, "", _PLACES),
    Known("mini-typescript-overview", "title-missing", 14, "", _PLACES),
    Known("mini-typescript-overview", "field-missing", 1, "", _NO_DESCRIPTION),
    Known("mini-typescript-lexer", "title-missing", 17, "", _PLACES),
    Known("mini-typescript-lexer", "field-missing", 1, "", _NO_DESCRIPTION),
    Known("mini-typescript-parser", "title-missing", 10, "", _PLACES),
    Known("mini-typescript-parser", "field-missing", 1, "", _NO_DESCRIPTION),
    Known("firebase-emulator", "html-raw", 16, '<img src="img/', _PICTURE),
]


def findings_in(folder: Path) -> Sequence[Finding]:
    try:
        Workshop.read_folder()(folder)
    except ContentRejected as refusal:
        return refusal.findings
    return ()


def test_what_is_found_in_faithful_folders_is_known_and_explained(
    content_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, unexplained = [], []
    for document in DOCUMENTS:
        folder = document.write(content_folder, tmp_path, is_mended=False)
        known = {each.rule: each for each in KNOWN if each.document == document.key}
        by_rule = defaultdict(list)
        for finding in findings_in(folder):
            by_rule[finding.rule].append(finding)
        for rule in sorted({*by_rule, *known}):
            found, explained = by_rule[rule], known.get(rule)
            rows.append((document.key, rule, str(len(found)), explained.why if explained else "?"))
            if explained is None or len(found) != explained.count:
                unexplained += [f"{document.key}: {rule}: {len(found)} found, {explained}", *map(str, found)]
            else:
                unexplained += [str(each) for each in found if explained.shows not in _line(folder, each)]
    with capsys.disabled():
        print("\n" + _table(("DOCUMENT", "RULE", "FOUND", "WHAT IT IS"), rows))
    assert not unexplained, "\n".join(unexplained)


def _line(folder: Path, finding: Finding) -> str:
    lines = (folder / finding.file).read_text().split("\n")
    return lines[finding.line - 1]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


@each_document
def test_a_faithful_folder_has_every_text_of_its_source(document: Document, content_folder: Path) -> None:
    source = document.read(content_folder)
    files = document.convert(source, document.key, is_mended=False)
    written = [content_of(text) for name, text in sorted(files.items()) if name.endswith(".md")]
    if document.convert is killercoda:
        title = json.loads(source["index.json"])["title"]
        names = ["intro", *(f"step{number}" for number in range(1, 11)), "finish"]
        texts = [source[f"{name}.md"] for name in names]
    elif document.convert is codetour:
        (tour,) = map(json.loads, source.values())
        title, texts = tour["title"], [step["description"] for step in tour["steps"]]
    else:
        front, *chapters = re.split("^(?=## )", *source.values(), flags=re.MULTILINE)
        title = front.split("\n---\n")[1].strip().removeprefix("# ")
        texts = [re.sub("^(## .*\n)Duration: .*\n", r"\1", chapter) for chapter in chapters]
    assert written == [text.strip("\n") for text in texts]
    assert yaml.safe_load(files["walkthrough.yaml"])["title"] == title


def content_of(file: str) -> str:
    """What a file that a converter wrote holds for the user."""
    without_front = re.sub(r"\A---\n.*?\n---\n", "", file, flags=re.DOTALL)
    return without_front.split("\n::: workspace-actions\n")[0].strip("\n")


def actions_of(file: str) -> str | None:
    found = re.search(r"^::: workspace-actions\n(.+)\n:::$", file, _WHOLE)
    return found[1] if found else None


@pytest.mark.promise("content.real")
@each_document
async def test_a_mended_document_is_published_and_taken_to_its_end(
    document: Document,
    tenant: Tenant,
    on_database: Cairn,
    content_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = document.write(content_folder, tmp_path, is_mended=True)
    files = [file.read_bytes().decode() for file in sorted(folder.glob("*.md"))]
    assert on_database("lint", str(folder), "--json").json == {
        "findings": [],
        "key": document.key,
        "steps": len(files),
    }
    arguments = ("--org", tenant.organization, "--publish", "--server", tenant.server.slug, "--json")
    assert on_database("push", str(folder), *arguments).json == {
        "key": document.key,
        "version": 1,
        "published": True,
        "unchanged": False,
        "policy": "keep",
        "servers": [tenant.server.slug],
        "hidden_on": [],
    }
    largest = 0
    for era in ("auto", "legacy"):
        taken = await _take_to_its_end(tenant, document.key, era)
        assert [each.content for each in taken] == [content_of(file) for file in files]
        assert [each.actions for each in taken] == [actions_of(file) for file in files]
        largest = max(largest, *(each.bytes for each in taken))
        await _record_is_true(tenant, f"{era}@example.com", len(files))
    assert largest < MAX_RESULT_BYTES
    with capsys.disabled():
        print(f"\n{document.key}: {len(files)} steps, the largest result {largest:,} of {MAX_RESULT_BYTES:,} bytes")


class Shown(NamedTuple):
    """What a person was shown of a step."""

    content: str
    actions: str | None
    bytes: int
    """The size of the result."""


async def _take_to_its_end(tenant: Tenant, key: str, era: str) -> Sequence[Shown]:
    shown = []
    async with tenant.learner(f"{era}@example.com", era=era) as me:
        result = await me.client.call_tool("select_walkthrough", {"walkthrough": key})
        while (told := _structure(result))["step"]:
            step, text = told["step"], text_of(result)
            assert told["status"] == ("advanced" if shown else "started")
            assert (step["number"], told["progress"]["completed_steps"]) == (len(shown) + 1, len(shown))
            fence = hashlib.sha256(step["content"].encode()).hexdigest()[:16]
            between = re.search(f"^----- for the user {fence} -----\n(.*)\n----- end {fence} -----$", text, _WHOLE)
            assert between
            assert between[1] == step["content"]
            size = len(result.model_dump_json(by_alias=True, exclude_none=True).encode())
            shown.append(Shown(between[1], step["workspace_actions"], size))
            result = await me.client.call_tool("next_walkthrough_step", {"completed_step": step["handle"]})
    assert told["status"] == "completed"
    assert told["progress"]["completed_steps"] == told["progress"]["total_steps"] == len(shown)
    return shown


def _structure(result: Any) -> dict[str, Any]:
    assert not result.is_error, result.content
    return dict(result.structured_content)


async def _record_is_true(tenant: Tenant, email: str, steps: int) -> None:
    """One step was left after the other, and the events lead to the row."""
    (standing,) = await tenant.world.catalogue.standings(await tenant.caller(email))
    progress = standing.progress
    assert progress is not None
    key = VersionKey(standing.organization_id, standing.walkthrough_id, 1)
    version = (await tenant.world.library.outlines([key]))[key]
    ids = [step.id for step in version.steps]
    events = await tenant.world.progress.events(progress.key)
    assert [(event.kind, event.from_step_id) for event in events] == [
        (EventKind.STARTED, None),
        *((EventKind.ADVANCED, id) for id in ids),
    ]
    assert replay(progress.key, events, {1: version}) == progress
    assert progress.status is Status.COMPLETED
    assert progress.completed_steps(version) == steps
