"""Versions at the terminal: pulled, compared, listed, published, foretold, taken back; and put on servers."""

from __future__ import annotations

import getpass
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.content.folder import read_folder
from adapters.content.writing import write_folder
from domain.draft import RecordedEdit, RemoveStep, RenameStep, ReplaceStep, SetDetails
from domain.errors import StaleEdit
from domain.progress import Outcome
from domain.tenancy import Millis
from domain.walkthrough import Delivery, PublishPolicy, StepText
from entrypoints.cli import terminal
from tests.cli.conftest import Act, Cairn, write_walkthrough
from tests.processes import PROJECT, environment
from tests.worlds import World, manuscript

OnWorld = Callable[[Act], str]
ME = getpass.getuser()


async def nothing(world: World, slug: str) -> None:
    """An organisation, and nothing in it."""


async def two_versions(world: World, slug: str) -> None:
    """Ada and Bob mid-way on version 1, Cem has completed it; version 2 renames, moves and rewrites."""
    await world.publish("install", "old-step", "configure", "deploy", organization=slug, servers=(slug,), by="ada")
    server = await world.tenancy.server(slug)
    for name, steps in (("ada", 0), ("bob", 3), ("cem", 4)):
        caller = await world.caller(server, f"{name}@example.com")
        lesson = await world.learning.select(caller, "tour", restart=False, to_latest=False)
        for _ in range(steps):
            handle = str(lesson.progress.handle())
            lesson = await world.learning.next(caller, handle, None, outcome=Outcome.DONE, note=None)
    draft = await world.authoring.draft(slug, "tour")
    install = draft.manuscript().steps[0]
    await world.authoring.edit(
        slug,
        "tour",
        (draft.key.number, draft.revision),
        [
            RenameStep("old-step", "sign-in"),
            RemoveStep("configure"),
            ReplaceStep(replace(install, content=_REWRITTEN, done_when="It runs.", estimated_minutes=None)),
            SetDetails(title="The grand tour"),
        ],
        by="bob",
    )
    draft = await world.authoring.draft(slug, "tour")
    await world.authoring.reorder(
        slug, "tour", (draft.key.number, draft.revision), ["install", "deploy", "sign-in"], by="bob"
    )
    draft = await world.authoring.draft(slug, "tour")
    world.clock.time += 90_000_000
    await world.authoring.publish(
        slug, "tour", (draft.key.number, draft.revision), PublishPolicy.CARRY_OVER, by="bob\u202e 日本語"
    )


_REWRITTEN = "Do install.\n\nRun it.  \n\tAnd wait for it."


@pytest.fixture
def versions(on_world: OnWorld) -> str:
    return on_world(two_versions)


# ------------------------------------------------------------------------------------------------------ pull


@pytest.mark.promise("version.commands", "cli.answers")
def test_pull_writes_a_folder_that_pushes_back_as_unchanged(
    on_database: Cairn, on_world: OnWorld, tmp_path: Path
) -> None:
    org = ("--org", on_world(nothing))
    written = write_walkthrough(tmp_path / "mine", "one", "two")
    assert on_database("push", str(written), *org, "--publish").lines == ["Published tour as version 1."]
    said = on_database("pull", "tour", "copy", *org, cwd=tmp_path).lines
    publish = f"To publish: cairn push copy --org {org[1]} --publish --expect 1"
    assert said == ["Wrote version 1 of tour to copy: 2 steps.", publish]
    copy = tmp_path / "copy"
    assert read_folder(copy) == read_folder(written)
    assert on_database("push", str(copy), *org, "--publish").lines == ["tour is unchanged: version 1 has this content."]
    assert on_database("diff", "copy", *org, cwd=tmp_path).lines == ["tour: version 1 → copy", "They are the same."]
    again = on_database("pull", "tour", "copy", *org, "--json", cwd=tmp_path).json
    assert again == {
        "key": "tour",
        "version": 1,
        "draft": False,
        "folder": "copy",
        "steps": 2,
        "unchanged": True,
    }
    assert on_database("pull", "tour", "copy", *org, cwd=tmp_path).lines == [
        "copy is unchanged: it holds version 1 of tour already.",
        publish,
    ]


def test_pull_takes_the_draft_or_an_older_version_and_knows_each_of_them_again(
    on_database: Cairn, on_world: OnWorld, tmp_path: Path
) -> None:
    org = ("--org", on_world(nothing))
    for steps in (["one"], ["one", "two"]):
        assert on_database("push", str(write_walkthrough(tmp_path / "mine", *steps)), *org, "--publish").lines
    assert on_database("push", str(write_walkthrough(tmp_path / "mine", "a", "b", "c")), *org).lines
    pull = ("pull", "tour", str(tmp_path / "copy"), *org)
    for which, said, steps in (
        (("--draft",), "the draft of version 3", ["a", "b", "c"]),
        (("--version", "1"), "version 1", ["one"]),
        ((), "version 2", ["one", "two"]),
        (("--draft",), "the draft of version 3", ["a", "b", "c"]),
    ):
        line, publish = on_database(*pull, *which).lines
        assert line.startswith(f"Wrote {said} of tour to ")
        assert publish.endswith(f"{org[1]} --publish --expect 2")
        assert [step.key for step in read_folder(tmp_path / "copy").steps] == steps


def test_pull_refuses_to_overwrite_what_was_never_stored_unless_it_is_forced(
    on_database: Cairn, on_world: OnWorld, tmp_path: Path
) -> None:
    org = ("--org", on_world(nothing))
    mine = write_walkthrough(tmp_path / "mine", "one", "two")
    assert on_database("push", "mine", *org, "--publish", cwd=tmp_path).lines
    (mine / "01-one.md").write_text("# Mine\n\nNever stored.\n")
    pull = ("pull", "tour", "mine", *org)
    assert on_database(*pull, cwd=tmp_path).error == (
        "mine has changes that were never stored: push them, or overwrite them with --force"
    )
    assert (mine / "01-one.md").read_text() == "# Mine\n\nNever stored.\n"
    assert on_database(*pull, "--force", "--json", cwd=tmp_path).json["unchanged"] is False
    assert read_folder(mine) == read_folder(write_walkthrough(tmp_path / "again", "one", "two"))
    other = write_walkthrough(tmp_path / "other", "one", key="other")
    assert on_database("pull", "tour", "other", *org, "--force", cwd=tmp_path).error == (
        "other holds another walkthrough, 'other': name another folder, --force or not"
    )
    assert read_folder(other).key == "other"


def test_pull_and_diff_say_what_there_is_to_be_had(on_database: Cairn, on_world: OnWorld, tmp_path: Path) -> None:
    slug = on_world(nothing)
    assert on_database("push", str(write_walkthrough(tmp_path / "mine", "one")), "--org", slug).lines
    for command in (("pull", "tour", "copy"), ("diff", "mine")):
        run = (*command, "--org", slug)
        assert on_database(*run, cwd=tmp_path).error == "tour was never published: name its draft with --draft"
        missing = on_database(*run, "--version", "7", cwd=tmp_path).error
        assert missing == "tour has no published version 7: see 'cairn versions tour'"
        usage = on_database(*run, "--version", "1", "--draft", cwd=tmp_path).usage_error
        assert "Give either --version or --draft." in usage
    assert not (tmp_path / "copy").exists()
    assert on_database("pull", "none", "copy", "--org", slug, cwd=tmp_path).error == (
        "there is no walkthrough 'none': push it first with 'cairn push DIR'"
    )


def test_pull_of_what_no_file_can_hold_names_the_step_and_writes_nothing(
    on_database: Cairn, on_world: OnWorld, tmp_path: Path
) -> None:
    async def act(world: World, slug: str) -> None:
        odd = replace(manuscript("one"), steps=(StepText("one", "One", "Do.\n\n::: note\nSo.\n:::"),))
        await world.authoring.push(slug, odd, publish=PublishPolicy.KEEP, servers=[], by="ada")

    assert on_database("pull", "tour", "copy", "--org", on_world(act), cwd=tmp_path).error == (
        "step 'one' cannot be kept in a file: its content has a line that begins with ':::', as a block does; change "
        "that in the draft and publish it, or pull another version"
    )
    assert not (tmp_path / "copy").exists()


# ------------------------------------------------------------------------------------------------------ diff


def test_diff_shows_steps_and_texts_as_a_person_reads_them(on_database: Cairn, versions: str, tmp_path: Path) -> None:
    org = ("--org", versions)
    assert on_database("pull", "tour", "mine", *org, "--version", "1", cwd=tmp_path).lines
    mine = read_folder(tmp_path / "mine")
    known = {mine.content_hash()}
    one, _, three, four = mine.steps
    long = "word " * 30
    changed = replace(
        one,
        content=f"{one.content}\n\nFirst.\n{long}here.\nSame.\nSame.\nSame.\nLast.",
        delivery=Delivery.TOGETHER,
        done_when="It is.",
    )
    new = replace(mine, title="Another tour", steps=(changed, four, three, StepText("new", "Brand new", "Do.")))
    write_folder(tmp_path / "mine", new, known=known)
    lines = on_database("diff", "mine", *org, "--version", "1", cwd=tmp_path).lines
    assert lines == [
        "tour: version 1 → mine",
        "Steps: 1 added, 1 removed, 1 moved, 1 changed",
        "",
        "Added",
        "    4  new  Brand new",
        "",
        "Removed",
        "    2  old-step  Step old-step",
        "",
        "Moved",
        "    2  deploy  was step 4",
        "",
        "Changed",
        "    1  install  content, done when, delivery",
        "",
        "title",
        "  - The tour",
        "  + Another tour",
        "",
        "install: content",
        "    Do install.",
        "  +",
        "  + First.",
        "  + word word word word word word word word word word word word word word word…",
        "  + Same.",
        "  + Same.",
        "  + Same.",
        "  + Last.",
        "",
        "install: done when",
        "  + It is.",
        "",
        "install: delivery",
        "  - explain",
        "  + together",
        "",
        f"To publish: cairn push mine --org {versions} --publish --expect 2",
    ]
    assert max(map(len, lines)) == 79  # an ellipsis takes the place of a blank
    # Within a long line, what is shown begins a little before the place that differs.
    stored = ("push", "mine", *org, "--by", "ada")
    assert on_database(*stored, cwd=tmp_path).lines
    file = tmp_path / "mine" / "01-install.md"
    file.write_text(file.read_text().replace("here.\nSame.\nSame.", "there.\nSame.  \nSame."))
    lines = on_database("diff", "mine", *org, "--draft", cwd=tmp_path).lines
    assert lines == [
        "tour: the draft of version 3 → mine",
        "Steps: 1 changed",
        "",
        "Changed",
        "    1  install  content",
        "",
        "install: content",
        "    First.",
        "  - …word word word word here.",
        "  - Same.",
        "  + …word word word word there.",
        "  + Same.··",
        "    Same.",
        "",
        f"To publish: cairn push mine --org {versions} --publish --expect 2",
    ]


def test_a_difference_of_long_names_is_shown_whole_within_80_columns(
    on_database: Cairn, on_world: OnWorld, tmp_path: Path
) -> None:
    long, other = "first-" + "a" * 57 + "z", "first-" + "b" * 57 + "z"
    titled = StepText(long, "A title that goes on " * 4 + "to its end", "Do.")
    folder = "folder-" + "f" * 80

    async def act(world: World, slug: str) -> None:
        first = replace(manuscript("short", key="k" * 64), steps=(titled, StepText("short", "Short", "Do.")))
        for each in (first, replace(first, steps=first.steps[::-1])):
            await world.authoring.push(slug, each, publish=PublishPolicy.KEEP, servers=[], by="ada")
        await world.authoring.edit(slug, "k" * 64, (3, 0), [RenameStep(long, other)], by="ada")
        await world.authoring.publish(slug, "k" * 64, (3, 1), PublishPolicy.KEEP, by="ada")

    org = ("--org", on_world(act))
    between = ("versions", "k" * 64, *org, "--between")
    assert on_database(*between, "1", "2").lines == [
        "k" * 64 + ": version 1 →",
        "version 2",
        "Steps: 1 moved",
        "",
        "Moved",
        "    1  short  was step 2",
    ]
    assert on_database(*between, "2", "3").lines[-3:] == ["Renamed", f"    2  {other}", f"         was {long}"]
    write_walkthrough(tmp_path / folder, "short", key="k" * 64)
    assert on_database("diff", folder, *org, "--version", "1", cwd=tmp_path).lines[:9] == [
        "k" * 64 + ": version 1 →",
        "folder-" + "f" * 73,
        "f" * 7,
        "Steps: 1 removed, 1 changed",
        "",
        "Removed",
        f"    1  {long}",
        "         A title that goes on A title that goes on A title that goes on A title",
        "         that goes on to its end",
    ]


def test_a_difference_as_json_has_every_text_whole(on_database: Cairn, versions: str) -> None:
    org = ("--org", versions)
    found = on_database("versions", "tour", *org, "--between", "1", "2", "--json").json
    assert found == {
        "key": "tour",
        "before": {"version": 1, "draft": False},
        "after": {"version": 2, "draft": False},
        "is_same": False,
        "details": [{"field": "title", "before": "The tour", "after": "The grand tour"}],
        "added": [],
        "removed": [
            {
                "number": 3,
                "text": {
                    "key": "configure",
                    "title": "Step configure",
                    "content": "Do configure.",
                    "assistant_notes": None,
                    "workspace_actions": None,
                    "done_when": None,
                    "delivery": "explain",
                    "estimated_minutes": 2,
                },
            }
        ],
        "renamed": [{"number": 3, "before": "old-step", "after": "sign-in"}],
        "moved": [{"key": "deploy", "from_number": 4, "number": 2, "after": "install"}],
        "changed": [
            {
                "key": "install",
                "number": 1,
                "fields": [
                    {"field": "content", "before": "Do install.", "after": _REWRITTEN},
                    {"field": "done_when", "before": None, "after": "It runs."},
                    {"field": "estimated_minutes", "before": 2, "after": None},
                ],
            }
        ],
    }


def test_a_difference_is_bounded_and_says_what_it_left_out(
    on_database: Cairn, on_world: OnWorld, tmp_path: Path
) -> None:
    async def act(world: World, slug: str) -> None:
        first = manuscript(*(f"s{number}" for number in range(60)))
        line = "Line {}.\n\n" * 40
        second = replace(first, steps=tuple(replace(each, content=line + each.key) for each in first.steps))
        for each in (first, second):
            await world.authoring.push(slug, each, publish=PublishPolicy.KEEP, servers=[], by="ada")

    lines = on_database("versions", "tour", "--org", on_world(act), "--between", "1", "2").lines
    assert lines[1] == "Steps: 60 changed"
    assert lines[53:55] == ["   50  s49  content", "       and 10 more: --json lists them"]
    assert lines[56:59] == ["s0: content", "  - Do s0.", "  + Line {}."]
    assert lines[77] == "    … 62 more lines"
    assert lines[-2:] == ["", "And 40 more texts changed: --json has them."]


def test_what_others_wrote_cannot_speak_to_the_terminal(on_database: Cairn, on_world: OnWorld, tmp_path: Path) -> None:
    async def act(world: World, slug: str) -> None:
        await world.publish("one", organization=slug, servers=(), by="\u202eevil\ufeff")
        await world.authoring.edit(slug, "tour", (2, 0), [SetDetails(title="New")], by="\u202eevil\ufeff")

    org = ("--org", on_world(act))
    shown = on_database("versions", "tour", *org).stdout
    refused = on_database("push", str(write_walkthrough(tmp_path / "mine", "two")), *org).complaint
    lost = on_database("push", str(tmp_path / "mine"), *org, "--publish", "--force", "--expect", "0").complaint
    assert [text.count("\ufffdevil\ufffd") for text in (shown, refused, lost)] == [2, 1, 1]
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e\ufeff]", shown + refused + lost)


# -------------------------------------------------------------------------------------------------- versions


@pytest.mark.promise("version.commands", "cli.answers")
def test_versions_are_listed_with_the_people_on_them_and_everything_that_was_done(
    on_database: Cairn, versions: str
) -> None:
    org = ("--org", versions)
    lines = on_database("versions", "tour", *org).lines
    assert lines == [
        "tour: published, 2 versions",
        "",
        "NO  STATE      POLICY      STEPS  MID-WAY  DONE  PUBLISHED   BY",
        " 1  published  keep            4        2     1  1970-01-01  ada",
        " 2  published  carry_over      3        0     0  1970-01-02  bob\ufffd 日本語",
        "",
        "WHEN (UTC)        WHAT         NO  POLICY      BY",
        "1970-01-01 00:16  published     1  keep        ada",
        "1970-01-02 01:16  published     2  carry_over  bob\ufffd 日本語",
    ]
    assert on_database("rollback", "tour", "1", *org, "--by", "cem").lines == [
        "Published tour as version 3, with the content of version 1."
    ]
    found = on_database("versions", "tour", *org, "--json").json
    *_, third = found["versions"]
    first = found["versions"][0]
    assert {**third, "published_at": 0} == {
        "version": 3,
        "state": "published",
        "title": "The tour",
        "steps": 4,
        "content_hash": first["content_hash"],
        "policy": "keep",
        "published_at": 0,
        "published_by": "cem",
        "mid_way": 0,
        "completed": 0,
    }
    assert (first["mid_way"], first["completed"], first["published_at"]) == (2, 1, 1_000_000)
    assert (found["key"], found["published"], found["archived_at"], found["draft"]) == ("tour", True, None, None)
    assert found["ledger"][-1] == {
        "deed": "rolled_back",
        "version": 3,
        "content_hash": first["content_hash"],
        "policy": "keep",
        "source_version": 1,
        "by": "cem",
        "at": third["published_at"],
    }
    *_, last = on_database("versions", "tour", *org).lines
    assert re.fullmatch(r"[0-9: -]{16}  rolled back   3  keep        cem, to version 1", last)


def test_a_long_history_shows_its_end_within_80_columns(on_database: Cairn, on_world: OnWorld) -> None:
    async def act(world: World, slug: str) -> None:
        for number in range(52):
            await world.publish(
                f"s{number}", organization=slug, servers=(), by="somebody.with.a.long.address@engineering.example.com"
            )
        await world.authoring.push(slug, manuscript("a", "b"), publish=None, servers=[], by="ada")
        await world.authoring.archive(slug, "tour", by="ada")

    lines = on_database("versions", "tour", "--org", on_world(act)).lines
    assert lines[:6] == [
        "tour: archived since 1970-01-01 00:16 UTC, 52 versions",
        "Draft of version 53: 2 steps, revision 3",
        "",
        "NO  STATE      POLICY      STEPS  MID-WAY  DONE  PUBLISHED   BY",
        "(2 earlier versions: --json lists them)",
        " 3  published  keep            1        0     0  1970-01-01  somebody.with.a.lo…",
    ]
    assert lines[56:59] == [
        "WHEN (UTC)        WHAT         NO  POLICY      BY",
        "(3 earlier entries: --json lists them)",
        "1970-01-01 00:16  published     4  keep        somebody.with.a.long.address@eng…",
    ]
    assert lines[-1] == "1970-01-01 00:16  archived     52  keep        ada"
    assert max(map(len, lines)) <= 80


def test_the_difference_of_two_versions_names_renamed_steps_in_both_directions(
    on_database: Cairn, versions: str
) -> None:
    between = ("versions", "tour", "--org", versions, "--between")
    assert on_database(*between, "1", "2").lines == [
        "tour: version 1 → version 2",
        "Steps: 1 removed, 1 renamed, 1 moved, 1 changed",
        "",
        "Removed",
        "    3  configure  Step configure",
        "",
        "Renamed",
        "    3  sign-in  was old-step",
        "",
        "Moved",
        "    2  deploy  was step 4",
        "",
        "Changed",
        "    1  install  content, done when, estimated minutes",
        "",
        "title",
        "  - The tour",
        "  + The grand tour",
        "",
        "install: content",
        "    Do install.",
        "  +",
        "  + Run it.··",
        "  +     And wait for it.",
        "",
        "install: done when",
        "  + It runs.",
        "",
        "install: estimated minutes",
        "  - 2",
    ]
    back = on_database(*between, "2", "1", "--json").json
    assert back["renamed"] == [{"number": 2, "before": "sign-in", "after": "old-step"}]
    assert on_database(*between, "2", "2").lines == ["tour: version 2 → version 2", "They are the same."]


def test_a_difference_has_colours_on_a_terminal_alone(owner_url: str, versions: str, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 80))
    command = ["versions", "tour", "--org", versions, "--between", "1", "2"]
    subprocess.run(
        [sys.executable, "-m", "entrypoints.cli.main", *command],
        cwd=PROJECT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(CAIRN_DATABASE_URL=owner_url),
        check=True,
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert b"\x1b[31m  - The tour\x1b[0m\r\n\x1b[32m  + The grand tour\x1b[0m\r\n" in shown
    assert b"\x1b[1mRemoved\x1b[0m" in shown


# -------------------------------------------------------------------------------------------------- dry runs


TABLES: Sequence[tuple[str, Sequence[str]]] = [
    (
        "keep",
        [
            "VERSION  ON STEP    PEOPLE  THEY",
            "      1  1 install       1  finish version 1",
            "      1  4 deploy        1  finish version 1",
            "",
            "Both people mid-way stay. Nothing was stored.",
        ],
    ),
    (
        "offer",
        [
            "VERSION  ON STEP    PEOPLE  THEY",
            "      1  1 install       1  may finish version 1, and are told how to move",
            "      1  4 deploy        1  may finish version 1, and are told how to move",
            "",
            "Both people mid-way are offered the move. Nothing was stored.",
        ],
    ),
    (
        "carry_over",
        [
            "VERSION  ON STEP    PEOPLE  THEY",
            "      1  1 install       1  go on at step 1",
            "      1  4 deploy        1  have completed it",
            "",
            "Of 2 people mid-way, 1 moves and 1 has completed it. Nothing was stored.",
        ],
    ),
    (
        "supersede",
        [
            "VERSION  ON STEP    PEOPLE  THEY",
            "      1  1 install       1  begin again at step 1",
            "      1  4 deploy        1  begin again at step 1",
            "",
            "Both people mid-way begin again. Nothing was stored.",
        ],
    ),
]


@pytest.mark.promise("version.commands")
@pytest.mark.parametrize(("policy", "table"), TABLES, ids=[policy for policy, _ in TABLES])
def test_a_dry_run_says_what_would_become_of_everybody_and_stores_nothing(
    on_database: Cairn, versions: str, tmp_path: Path, policy: str, table: Sequence[str]
) -> None:
    org = ("--org", versions)
    before = on_database("versions", "tour", *org, "--json").json
    mine = write_walkthrough(tmp_path / "mine", "install", "old-step", "configure")
    push = ("push", str(mine), *org, "--publish", "--policy", policy)
    assert on_database(*push, "--dry-run").lines == [
        f"Publishing tour as version 3 with {policy}:",
        "",
        *table,
        f"To publish: cairn push {mine} --org {versions} --publish --policy {policy} --expect 2",
    ]
    assert on_database("versions", "tour", *org, "--json").json == before


def test_a_dry_run_as_json_has_every_row(on_database: Cairn, versions: str) -> None:
    run = ("rollback", "tour", "1", "--org", versions, "--policy", "carry_over", "--dry-run")
    assert on_database(*run, "--json").json == {
        "key": "tour",
        "version": 3,
        "policy": "carry_over",
        "unchanged": False,
        "people": 2,
        "fates": {"stays": 0, "offered": 0, "moves": 2, "completes": 0, "pending": 0, "restarts": 0, "waits": 0},
        "outlooks": [
            {
                "version": 1,
                "step_number": number,
                "step_key": key,
                "fate": "moves",
                "to_step_number": number,
                "people": 1,
            }
            for number, key in ((1, "install"), (4, "deploy"))
        ],
    }


def test_a_dry_run_of_what_is_the_latest_or_is_nobodys_says_so(
    on_database: Cairn, on_world: OnWorld, tmp_path: Path
) -> None:
    org = ("--org", on_world(nothing))
    write_walkthrough(tmp_path / "my tour", "one")
    push = ("push", "my tour", *org, "--publish")
    given = ("--by", "ada", "--force")
    assert on_database(*push, *given, "--dry-run", cwd=tmp_path).lines == [
        "Publishing tour as version 1 with keep:",
        "Nobody is mid-way. Nothing was stored.",
        f"To publish: cairn push 'my tour' --org {org[1]} --publish --by ada --force --expect 0",
    ]
    assert on_database(*push, cwd=tmp_path).lines
    for run in (push, ("publish", "tour", *org), ("rollback", "tour", "1", *org)):
        same = "tour is unchanged: version 1 has this content, and nobody would be moved."
        assert on_database(*run, "--dry-run", cwd=tmp_path).lines == [same]
        assert on_database(*run, "--policy", "offer", "--dry-run", cwd=tmp_path).lines == [
            f"{same} Its earlier policy (keep) stands."
        ]


def test_people_on_a_server_where_it_is_hidden_wait(on_database: Cairn, versions: str) -> None:
    org = ("--org", versions)
    assert on_database("disable", "tour", *org, "--server", versions).lines
    rollback = ("rollback", "tour", "1", *org, "--policy")
    for policy, they, all_of_them in (
        ("supersede", "wait: it is hidden on their server", "wait"),
        ("carry_over", "move once it is shown there", "move once it is shown on their server"),
        ("keep", "finish version 1", "stay"),
    ):
        assert on_database(*rollback, policy, "--dry-run").lines[3:] == [
            f"      1  1 install       1  {they}",
            f"      1  4 deploy        1  {they}",
            "",
            f"Both people mid-way {all_of_them}. Nothing was stored.",
            f"To publish: cairn rollback tour 1 --org {versions} --policy {policy} --expect 2",
        ]


# ------------------------------------------------------------------------------------------ published, taken back


@pytest.mark.promise("version.commands")
def test_a_walkthroughs_whole_life_at_the_terminal(on_database: Cairn, on_world: OnWorld, tmp_path: Path) -> None:
    org = ("--org", on_world(nothing))

    def says(*command: str) -> str:
        (line,) = on_database(*command, *org, cwd=tmp_path).lines
        return line

    write_walkthrough(tmp_path / "mine", "one")
    assert says("push", "mine") == "Stored tour as a draft of version 1; --publish publishes it."
    assert says("publish", "tour", "--by", "ada") == "Published tour as version 1."
    assert says("publish", "tour") == "tour is published: version 1 is the latest."
    write_walkthrough(tmp_path / "mine", "one", "two")
    assert says("push", "mine", "--publish", "--policy", "offer") == "Published tour as version 2."
    unchanged = "tour is unchanged: version 2 has this content."
    assert says("push", "mine", "--publish", "--policy", "offer") == unchanged
    assert says("push", "mine", "--publish") == f"{unchanged} Its earlier policy (offer) stands."
    assert says("push", "mine") == unchanged
    assert says("withdraw", "tour", "1") == "Withdrew version 1 of tour: those mid-way on it begin again on the latest."
    assert says("withdraw", "tour", "1") == "Version 1 of tour is withdrawn already."
    assert says("unpublish", "tour") == "Unpublished tour: it is hidden, and those mid-way may finish."
    assert says("unpublish", "tour") == "tour is not published."
    again = "Published tour again: version 2"
    assert says("publish", "tour", "--policy", "offer") == f"{again} is shown."
    assert says("unpublish", "tour").startswith("Unpublished")
    assert says("publish", "tour") == f"{again} is shown. Its earlier policy (offer) stands."
    assert says("unpublish", "tour").startswith("Unpublished")
    assert says("push", "mine", "--publish", "--policy", "supersede") == (
        f"{again} has this content. Its earlier policy (offer) stands."
    )
    assert says("archive", "tour") == "Archived tour: it is hidden, and those mid-way may finish."
    assert says("archive", "tour") == "tour is archived already."
    assert on_database("publish", "tour", *org).error == "tour is archived: restore it before you publish it"
    assert says("restore", "tour") == "Restored tour from the archive."
    assert says("restore", "tour") == "tour is not archived."
    assert says("discard", "tour") == "tour has no draft."
    write_walkthrough(tmp_path / "mine", "three")
    assert says("push", "mine").startswith("Stored")
    assert says("discard", "tour") == "Discarded the draft of tour: it is as version 2 again."
    assert says("discard", "tour") == "tour has no draft."
    published = "tour is published: version 2 is the latest."
    assert says("publish", "tour", "--policy", "offer") == published
    assert says("publish", "tour", "--policy", "supersede") == f"{published} Its earlier policy (offer) stands."
    says("rollback", "tour", "1", "--policy", "supersede")
    ledger = on_database("versions", "tour", *org, "--json").json["ledger"]
    assert [(each["deed"], each["version"], each["policy"], each["by"]) for each in ledger] == [
        ("published", 1, "keep", "ada"),
        ("published", 2, "offer", ME),
        ("withdrawn", 1, "keep", ME),
        *(("unpublished", 2, "offer", ME), ("republished", 2, "offer", ME)) * 3,
        ("archived", 2, "offer", ME),
        ("restored", 2, "offer", ME),
        ("rolled_back", 3, "supersede", ME),
    ]


@pytest.mark.promise("cli.answers")
def test_what_was_done_is_told_as_json(on_database: Cairn, on_world: OnWorld, tmp_path: Path) -> None:
    slug = on_world(nothing)
    org = ("--org", slug, "--json")
    push = ("push", str(write_walkthrough(tmp_path / "mine", "one")), *org)
    assert on_database(*push).json == {
        "key": "tour",
        "version": 1,
        "published": False,
        "unchanged": False,
        "policy": None,
        "servers": [],
        "hidden_on": [],
    }
    assert on_database("discard", "tour", *org).json == {"key": "tour", "discarded": True, "version": None}
    assert on_database("discard", "tour", "--org", slug).lines == ["Discarded the draft of tour: it has no steps now."]
    assert on_database(*push, "--publish", "--server", slug).json["servers"] == [slug]
    for _ in range(2):
        was = {"key": "tour", "version": 1, "policy": "keep"}
        assert on_database("unpublish", "tour", *org).json == {**was, "done": "unpublished", "unchanged": _ > 0}
    assert on_database("publish", "tour", *org).json == {**was, "done": "republished", "unchanged": False}
    assert on_database("rollback", "tour", "1", *org).json == {**was, "published": True, "unchanged": True}


def test_a_push_that_would_undo_edits_in_place_shows_them_and_may_be_forced(
    on_database: Cairn, on_world: OnWorld, tmp_path: Path
) -> None:
    async def act(world: World, slug: str) -> None:
        await world.publish("one", "two", organization=slug, servers=())
        edits = [SetDetails(title=f"Title {number}") for number in range(21)]
        await world.authoring.edit(slug, "tour", (2, 0), [RemoveStep("two"), *edits], by="bob")

    slug = on_world(act)
    mine = write_walkthrough(tmp_path / "mine", "three")
    refused = on_database("push", str(mine), "--org", slug)
    assert (refused.status, refused.stdout) == (1, "")
    shown = refused.complaint.splitlines()
    assert shown[0] == "(2 earlier edits)"
    assert shown[1] == "1970-01-01 00:16 UTC, bob: set the title to 'Title 1'"
    assert shown[20] == "1970-01-01 00:16 UTC, bob: set the title to 'Title 20'"
    assert shown[21:] == [
        "error: the draft of tour was edited in place since it was last pushed, and your files would undo that: bring "
        "those edits into your files, publish or discard the draft, or force the push"
    ]
    assert on_database("push", str(mine), "--org", slug, "--force").lines == [
        "Stored tour as a draft of version 2; --publish publishes it."
    ]


@pytest.mark.promise("cli.answers")
def test_what_came_in_between_is_told_as_json(on_database: Cairn, on_world: OnWorld, tmp_path: Path) -> None:
    async def act(world: World, slug: str) -> None:
        await world.publish("one", "two", organization=slug, servers=(), by="ada")
        await world.authoring.edit(slug, "tour", (2, 0), [RemoveStep("two"), SetDetails(title="New")], by="bob")

    slug = on_world(act)
    mine = write_walkthrough(tmp_path / "mine", "three")
    push = ("push", str(mine), "--org", slug, "--json")
    refused = on_database(*push)
    assert (refused.status, refused.complaint) == (1, "")
    assert json.loads(refused.stdout) == {
        "error": "the draft of tour was edited in place since it was last pushed, and your files would undo that: "
        "bring those edits into your files, publish or discard the draft, or force the push",
        "version": 2,
        "revision": 2,
        "since": [
            {"version": 2, "revision": revision, "edit": edit, "by": "bob", "at": 1_000_000}
            for revision, edit in (
                (1, {"kind": "remove", "step_key": "two"}),
                (2, {"kind": "details", "title": "New", "description": None, "type": None}),
            )
        ],
    }
    lost = on_database(*push, "--publish", "--expect", "0")
    assert (lost.status, lost.complaint) == (1, "")
    (first,) = on_database("versions", "tour", "--org", slug, "--json").json["versions"]
    assert json.loads(lost.stdout) == {
        "error": "version 1 of tour was published already by ada, with the policy keep, and nothing was done now: "
        "look at it before you publish again",
        "version": 1,
        "policy": "keep",
        "content_hash": first["content_hash"],
        "published_at": 1_000_000,
        "published_by": "ada",
    }


def test_a_stale_edit_is_told_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    since = [RecordedEdit(2, 1, RenameStep("a", "b"), "bob", Millis(5))]

    def command(*, as_json: bool) -> None:
        raise StaleEdit(2, 1, since)

    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            terminal.run(command, {"as_json": True})
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert ended.value.code == 1
    told = capsys.readouterr()
    assert told.err == ""
    assert json.loads(told.out) == {
        "error": str(StaleEdit(2, 1, since)),
        "version": 2,
        "revision": 1,
        "since": [
            {
                "version": 2,
                "revision": 1,
                "edit": {"kind": "rename", "step_key": "a", "new_key": "b"},
                "by": "bob",
                "at": 5,
            }
        ],
    }


def test_who_publishes_after_another_is_told_whose_version_was_first(
    on_database: Cairn, on_world: OnWorld, tmp_path: Path
) -> None:
    org = ("--org", on_world(nothing))
    push = ("push", "mine", *org, "--publish", "--expect")
    for number, step in enumerate(("one", "two")):
        write_walkthrough(tmp_path / "mine", step)
        assert on_database(*push, str(number), "--by", "ada", cwd=tmp_path).lines
    write_walkthrough(tmp_path / "mine", "three")
    lost = "version 2 of tour was published already by ada, with the policy keep, and nothing was done now: look at it "
    for run in ((*push, "1"), ("rollback", "tour", "1", *org, "--expect", "1")):
        assert on_database(*run, cwd=tmp_path).error == lost + "before you publish again"
    assert on_database(*push, "7", cwd=tmp_path).error == (
        "nothing was published: tour has no version 7 yet: see 'cairn versions tour'"
    )
    assert on_database(*push, "2", cwd=tmp_path).lines == ["Published tour as version 3."]


@pytest.mark.promise("race.publish")
@pytest.mark.parametrize("command", ["pull", "pull an older one", "diff", "push --dry-run", "rollback --dry-run"])
def test_the_command_that_is_shown_publishes_unless_somebody_else_has_since(
    on_database: Cairn, versions: str, tmp_path: Path, command: str
) -> None:
    org = ("--org", versions, "--by", "ada")
    mine = write_walkthrough(tmp_path / "my tour", "mine")
    shown = {
        "pull": ("pull", "tour", "my tour", *org[:2], "--force"),
        "pull an older one": ("pull", "tour", "my tour", *org[:2], "--force", "--version", "1"),
        "diff": ("diff", "my tour", *org[:2], "--version", "1"),
        "push --dry-run": ("push", "my tour", *org, "--publish", "--policy", "offer", "--dry-run"),
        "rollback --dry-run": ("rollback", "tour", "1", *org, "--policy", "offer", "--dry-run"),
    }[command]
    *_, last = on_database(*shown, cwd=tmp_path).lines
    program, *publish = shlex.split(last.removeprefix("To publish: "))
    assert program == "cairn"
    write_walkthrough(mine, "changed")
    assert on_database(*publish, cwd=tmp_path).lines[0].startswith("Published tour as version 3")
    *_, latest = on_database("versions", "tour", *org[:2], "--json").json["versions"]
    given = ("offer", "ada") if "--dry-run" in command else ("keep", ME)
    assert (latest["policy"], latest["published_by"]) == given
    write_walkthrough(mine, "changed", "again")
    again = ["2" if word == "1" else word for word in publish]  # another version's content than what is the latest now
    assert on_database(*again, cwd=tmp_path).error.startswith("version 3 of tour was published already")


@pytest.mark.parametrize("option", [("--policy", "offer"), ("--dry-run",), ("--expect", "1")])
def test_what_only_a_publish_takes_is_refused_without_one(
    nursery: Any, tmp_path: Path, option: tuple[str, ...]
) -> None:
    mine = write_walkthrough(tmp_path / "mine", "one")
    usage = nursery.run("push", str(mine), "--org", "acme", *option, cwd=tmp_path).usage_error
    assert f"{option[0]} goes with --publish." in usage


def test_who_acts_is_one_line(on_database: Cairn, versions: str) -> None:
    for name in ("", " ", "x" * 101, "a\nb", "\x1b[31m"):
        error = on_database("unpublish", "tour", "--org", versions, "--by", name).error
        assert error == "a name is one line of 1 to 100 characters"


def test_another_organisations_walkthrough_is_answered_like_one_that_is_not_there(
    on_database: Cairn, on_world: OnWorld, versions: str, tmp_path: Path
) -> None:
    mine = write_walkthrough(tmp_path / "mine", "one")
    org = ("--org", on_world(nothing))
    for command in (
        ("pull", "{}", "copy"),
        ("versions", "{}"),
        ("publish", "{}"),
        ("rollback", "{}", "1"),
        ("unpublish", "{}"),
        ("archive", "{}"),
        ("restore", "{}"),
        ("withdraw", "{}", "1"),
        ("discard", "{}"),
        ("unassign", "{}", "--server", org[1]),
        ("enable", "{}", "--server", org[1]),
        ("disable", "{}", "--server", org[1]),
        ("order", org[1], "{}"),
    ):
        theirs, missing = (
            on_database(*(part.format(key) for part in command), *org, cwd=tmp_path).error for key in ("tour", "none")
        )
        assert theirs.replace("tour", "none") == missing, command
    assert "there is no walkthrough 'tour'" in on_database("diff", str(mine), *org).error
    assert len(on_database("versions", "tour", "--org", versions, "--json").json["ledger"]) == 2


# ---------------------------------------------------------------------------------------------------- servers


@pytest.mark.promise("version.commands", "cli.answers")
def test_a_walkthrough_is_hidden_shown_and_taken_from_servers(on_database: Cairn, versions: str) -> None:
    on = ("--org", versions, "--server", versions)
    for command, first, again in (
        (
            "disable",
            f"tour is hidden on {versions}: those mid-way may finish.",
            f"tour is hidden on {versions} already",
        ),
        ("enable", f"tour is shown on {versions}.", f"tour is shown on {versions} already"),
        ("unassign", f"Took tour from {versions}.", f"tour is not on {versions}"),
    ):
        assert on_database(command, "tour", *on).lines == [first]
        assert on_database(command, "tour", *on).lines == [f"{again}."]
    assert on_database("unassign", "tour", *on, "--json").json == {
        "key": "tour",
        "servers": [{"server": versions, "unchanged": True}],
    }
    assert "Missing option '--server'" in on_database("enable", "tour", "--org", versions).usage_error


def test_of_several_servers_each_line_and_each_error_names_its_own(on_database: Cairn, on_world: OnWorld) -> None:
    async def act(world: World, slug: str) -> None:
        for number in (1, 2):
            await world.server(slug, f"{slug}-{number}")
        await world.publish("one", organization=slug, servers=(slug, f"{slug}-1"))

    slug = on_world(act)
    on = ("tour", "--org", slug, "--server", slug, "--server")
    assert on_database("disable", *on, f"{slug}-1").lines == [
        f"tour is hidden on {slug}: those mid-way may finish.",
        f"tour is hidden on {slug}-1: those mid-way may finish.",
    ]
    assert on_database("enable", *on, f"{slug}-2").error == (
        f"walkthrough 'tour' is not on server '{slug}-2': assign it first"
    )


@pytest.mark.promise("cli.answers")
def test_what_is_put_on_a_server_where_it_is_hidden_is_said_to_be_hidden(
    on_database: Cairn, on_world: OnWorld, tmp_path: Path
) -> None:
    async def act(world: World, slug: str) -> None:
        await world.server(slug, f"{slug}-1")
        await world.publish("one", organization=slug, servers=(slug,))
        await world.authoring.disable(slug, "tour", [slug])

    slug = on_world(act)
    org = ("--org", slug)
    on = (*org, "--server", slug, "--server", f"{slug}-1")
    hidden = f"tour is hidden on {slug}: 'cairn enable tour --org {slug} --server {slug}' shows it."
    assert on_database("assign", "tour", *on).lines == [
        f"tour is on {slug}, at 1.",
        f"tour is on {slug}-1, at 1.",
        hidden,
    ]
    push = ("push", str(write_walkthrough(tmp_path / "mine", "two")), *on, "--publish")
    assert on_database(*push).lines == ["Published tour as version 2.", hidden]
    assert on_database(*push, "--json").json["hidden_on"] == [slug]
    # As it says.
    assert on_database("enable", "tour", *org, "--server", slug).lines == [f"tour is shown on {slug}."]
    assert on_database(*push).lines == ["tour is unchanged: version 2 has this content."]


def test_a_servers_list_is_put_in_order(on_database: Cairn, on_world: OnWorld) -> None:
    async def act(world: World, slug: str) -> None:
        for key in ("a", "b", "c"):
            await world.publish("one", key=key, organization=slug, servers=(slug,))

    slug = on_world(act)
    assert on_database("order", slug, "c", "a", "--org", slug).lines == [f"{slug}:", "  1  c", "  2  a", "  3  b"]
    assert on_database("order", slug, "b", "--org", slug, "--json").json == {
        "server": slug,
        "walkthroughs": ["b", "c", "a"],
    }
    assert on_database("order", slug, "d", "--org", slug).error == (
        "walkthrough 'd' is not on this server: assign it first"
    )
    assert "Missing argument 'KEY...'" in on_database("order", slug, "--org", slug).usage_error
