"""Bad folders: each is read or refused with findings that are there, in time, and no text is read that nobody wrote.

What is read is published and taken to its end in memory, and each step is looked at as an assistant gets it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from domain.errors import ContentRejected
from domain.progress import Outcome
from domain.walkthrough import MAX_RESULT_BYTES, Finding, Manuscript, PublishPolicy, StepText
from entrypoints.mcp import rendering
from entrypoints.workshop import Workshop
from tests.documents.test_documents import DOCUMENTS
from tests.fuzz.folders import Files, Folder, folders
from tests.fuzz.running import fuzz
from tests.mcp.answers import wire_bytes
from tests.worlds import World, in_memory

_EXAMPLES = 400
# Of the processor, for a folder of a few files with the worst in them: that takes 1.3 s here, and on another machine
# three times as long. What is not linear takes minutes.
_SECONDS = 6.0
_SHIPPED = Path(rendering.__file__).parents[1] / "walkthroughs"


def _sources() -> Sequence[Files]:
    """The walkthroughs that come along, and real documents where they are at hand."""
    sources: list[Files] = [
        {file.name: file.read_bytes() for file in folder.iterdir()} for folder in sorted(_SHIPPED.iterdir())
    ]
    if content := os.environ.get("CAIRN_TEST_CONTENT"):
        for document in DOCUMENTS:
            for is_mended in (True, False):
                files = document.convert(document.read(Path(content)), document.key, is_mended=is_mended)
                sources.append({name: text.encode() for name, text in files.items()})
    return sources


# ------------------------------------------------------------------------------------------------------ refused


def _judge_findings(folder: Path, findings: Sequence[Finding]) -> None:
    """Each names a file that is there, a line that it has, and what to do."""
    assert findings
    there = {each.name if each.name.isprintable() else ascii(each.name)[1:-1]: each for each in folder.iterdir()}
    ends = {name: _line_count(path) for name, path in there.items()} | {".": 1}
    for finding in findings:
        assert finding.remedy.strip()
        assert re.fullmatch("[a-z0-9-]+", finding.rule)
        assert str(finding).isprintable(), f"not one line: {finding}"
        # The one file that may be missed is the one that every folder has.
        last = ends[finding.file] if finding.file != "walkthrough.yaml" else ends.get(finding.file, 1)
        assert 1 <= finding.line <= last, f"no such line: {finding}"


def _line_count(path: Path) -> int:
    """How many lines a file has, the last one without an end; 1 for what cannot be read."""
    is_small_file = path.is_file() and path.stat().st_size < 2**24
    return len(re.findall(rb"\r\n|\r|\n", path.read_bytes())) + 1 if is_small_file else 1


# --------------------------------------------------------------------------------------------------------- read


def _written(data: bytes) -> list[str]:
    """The lines of a step below its front matter, without the blank ones around them: what its author wrote."""
    lines = data.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    first = next((number for number, line in enumerate(lines) if line.strip(" \t")), 0)
    if lines[first].rstrip(" \t") == "---":
        closing = next(number for number in range(first + 1, len(lines)) if lines[number].rstrip(" \t") == "---")
        lines = lines[closing + 1 :]
    kept = [number for number, line in enumerate(lines) if line.strip(" \t")]
    return lines[kept[0] : kept[-1] + 1] if kept else []


def _is_marker(line: str) -> bool:
    return line.lstrip(" \t").startswith(":::")


def _texts(step: StepText) -> str:
    return "\n".join(filter(None, (step.content, step.assistant_notes, step.workspace_actions, step.done_when)))


def _lines(text: str) -> frozenset[tuple[str, int]]:
    """Its lines and how often each is there, without those that may be markers and those that are blank."""
    return frozenset(Counter(line for line in text.split("\n") if line.strip(" \t") and not _is_marker(line)).items())


# What nobody sees, and what turns the reading direction around: no text that is delivered holds any.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\u200b\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")


def _judge_texts(folder: Path, manuscript: Manuscript) -> None:
    """Every line that was written outside the front matter has arrived as it stands, and no other."""
    names = {file.name for file in folder.iterdir() if file.name.lower().endswith(".md") and file.name[0] != "."}
    files = [folder / name for name in names if name.lower() != "readme.md"]
    assert all(file.resolve().is_relative_to(folder.resolve()) for file in files), "read from outside of the folder"
    written = [_written(file.read_bytes()) for file in files]
    assert Counter(_lines("\n".join(lines)) for lines in written) == Counter(
        _lines(_texts(step)) for step in manuscript.steps
    )
    assert not _HIDDEN.search("".join(map(_texts, manuscript.steps)))
    # Without anything like a marker it is the content, to the letter.
    contents = Counter(step.content for step in manuscript.steps)
    assert Counter("\n".join(lines) for lines in written if not any(map(_is_marker, lines))) <= contents


async def _deliver(world: World, manuscript: Manuscript) -> None:
    """Publishes it, takes it to its end, and looks at each answer as an assistant gets it."""
    server = await world.server()
    ada = await world.caller(server)
    await world.authoring.push("acme", manuscript, publish=PublishPolicy.KEEP, servers=[(server.slug, None)], by="fuzz")
    lesson = await world.learning.select(ada, manuscript.key, restart=False, to_latest=False)
    for step in manuscript.steps:
        structured, text = rendering.lesson(lesson)
        assert lesson.step is not None
        assert lesson.step.text == step
        fence = hashlib.sha256(step.content.encode()).hexdigest()[:16]
        block = f"----- for the user {fence} -----\n{step.content}\n----- end {fence} -----"
        assert text.count(block) == 1
        assert text.count(f"----- end {fence} -----") == 1
        assert wire_bytes(structured, text) <= MAX_RESULT_BYTES
        handle = str(lesson.progress.handle())
        lesson = await world.learning.next(ada, handle, None, outcome=Outcome.DONE, note=None)
    assert lesson.step is None


@pytest.mark.timeout(600)
def test_any_folder_is_refused_at_lines_that_are_there_or_delivered_as_it_was_written() -> None:
    read = Workshop.read_folder()
    met: Counter[str] = Counter()
    slowest = 0.0
    with asyncio.Runner() as runner:

        def check(given: Folder) -> None:
            nonlocal slowest
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                given.write(folder)
                began = time.process_time()
                try:
                    manuscript = read(folder)
                except ContentRejected as refused:
                    took = time.process_time() - began
                    _judge_findings(folder, refused.findings)
                    met.update({finding.rule for finding in refused.findings})
                else:
                    took = time.process_time() - began
                    _judge_texts(folder, manuscript)
                    runner.run(_deliver(in_memory(), manuscript))
                    met["read"] += 1
                assert took < _SECONDS, f"took {took:.1f} s"
            slowest = max(slowest, took)

        count = fuzz(check, folders(_sources()), examples=_EXAMPLES)
    print(f"slowest {slowest:.2f} s; {dict(met.most_common())}")
    if count >= _EXAMPLES:
        assert met["read"] > count // 10
        assert len(met) > 20  # of ten runs, each with a seed of its own, none met fewer than 28
