"""`cairn insight`: what an author reads, and what a program does."""

from __future__ import annotations

import asyncio
import csv
import io
import re
import time
import unicodedata
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

import application.insight
from adapters.postgres.connections import Access, Database
from application.insight import ABANDONED_AFTER_DAYS, MAX_ABANDONED_AFTER_DAYS, PAUSE, TOO_FAST
from domain.progress import Outcome
from entrypoints.cli.main import insight
from tests.cli.conftest import Cairn, Nursery
from tests.fakes import CountedIds
from tests.worlds import World, manuscript, on_postgres

MINUTE, DAY = 60_000, 86_400_000
# Turns the colour on, ends the line, rings, turns the line round, and looks like a formula.
NASTY = "=1+1 \x1b[31mred\x1b[0m\nsecond line\x07 \u202eevil\x9b2J"
# Each of its letters from the East takes two columns.
TITLE = "Täglich " + "日本語 " * 20
_NOW = int(time.time() * 1000)  # once: it may be midnight between two tests, or within one
_runs = count(1)


@pytest.fixture
def on_world(owner_url: str) -> Callable[[Any], str]:
    """Acts in a world on this module's database, and returns its organisation: `org-1`, with a server of that name."""

    def run(act: Any) -> str:
        number = next(_runs)
        slug = f"org-{number}"

        async def acted() -> None:
            async with Database(Access(owner_url, assume_role=True)) as database:
                world = on_postgres(database, ids=CountedIds(number * 1_000_000))
                world.clock.time = _NOW - 40 * DAY
                await world.server(slug, slug)
                await act(world, slug)

        asyncio.run(acted())
        return slug

    return run


async def funnel_of_three(world: World, slug: str) -> None:
    """Ada completes it, slowly; Bob is stuck at the second step, and Cem was last seen there 40 days ago."""
    for version in (("install", "old-step", "deploy"), ("install", "sign-in", "deploy")):
        await world.publish(*version, organization=slug, servers=(slug,), title=TITLE)
    server = await world.tenancy.server(slug)
    handles = {}

    async def act(name: str, passed: int, does: str, note: str | None = None) -> None:
        caller = await world.caller(server, f"{name}@example.com")
        world.clock.time += passed
        if does == "select":
            lesson = await world.learning.select(caller, "tour", restart=False, to_latest=False)
        else:
            lesson = await world.learning.next(caller, handles[name], None, outcome=Outcome(does), note=note)
        handles[name] = str(lesson.progress.handle())

    await act("cem", 0, "select")
    await act("cem", 2 * MINUTE, "done")
    await act("ada", 38 * DAY, "select")
    await act("ada", 4 * MINUTE, "done")
    await act("ada", 1_500, "skipped")
    await act("ada", 31 * MINUTE, "done")
    await act("bob", DAY, "select")
    await act("bob", 6 * MINUTE, "done")
    for number in range(12):
        await act("bob", MINUTE, "stuck", f"{number} " + ("it fails " if number % 2 else "日本語です") * 60)
    await act("bob", MINUTE, "stuck", NASTY)


def cells(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in line)


@pytest.mark.promise("numbers")
def test_the_funnel_is_drawn_in_80_columns(on_database: Cairn, on_world: Callable[[Any], str]) -> None:
    slug = on_world(funnel_of_three)
    lines = on_database("insight", "tour", "--org", slug).lines
    assert lines[:16] == [
        "tour: Täglich " + "日本語 " * 9 + "日…",
        "all versions (latest 2), all servers",
        "",
        "Started           3  by 3 people",
        "Completed         1  33.3 %                Resumed           1  after a pause",
        "In progress       1                        Skipped           1  a step",
        "Abandoned         1  idle for 14 days      Stuck             1  at a step",
        "Restarted         0                        Too fast          1  two steps in 3 s",
        "",
        "    STEP                              REACHED   DONE  DROP    TIME   SKIP STUCK",
        "  1 Step install           ██████████       3      3   0 %   4 min      0     0",
        "  2 Step sign-in           ██████████       3      1  67 %              1     1",
        "  3 Step deploy            ███▍             1      1   0 %              0     0",
        "",
        "Notes of those who were stuck, newest first:",
        "",
    ]
    assert re.fullmatch(r"  \d{4}-\d\d-\d\d, version 2: Step sign-in", lines[16])
    assert lines[17] == "    =1+1 �[31mred�[0m second line� �evil�2J"
    assert lines[-1] == "And 3 older ones: --json and --csv list them."
    assert max(map(cells, lines)) <= 80
    # Of a long note, four lines.
    assert [line.endswith("…") for line in lines[20:24]] == [False, False, False, True]


@pytest.mark.promise("numbers")
def test_a_version_a_server_and_a_time_range_choose(on_database: Cairn, on_world: Callable[[Any], str]) -> None:
    slug = on_world(funnel_of_three)
    day = time.strftime("%Y-%m-%d", time.gmtime((_NOW - 40 * DAY) / 1000))

    def started(*options: str) -> int:
        return int(on_database("insight", "tour", "--org", slug, "--json", *options).json["attempts"]["started"])

    assert started() == 3
    assert started("--until", day) == started("--since", day, "--until", day) == 1
    assert started("--since", "2001-01-01") == started("--server", slug) == started("--version", "2") == 3
    assert started("--version", "1") == started("--until", "2001-01-01") == started("--since", "9999-12-31") == 0
    abandoned = on_database("insight", "tour", "--org", slug, "--json", "--days", "50").json["attempts"]["abandoned"]
    assert abandoned == 0


@pytest.mark.promise("cli.answers", "numbers")
def test_json_has_every_number_and_every_note(on_database: Cairn, on_world: Callable[[Any], str]) -> None:
    slug = on_world(funnel_of_three)
    funnel = on_database("insight", "tour", "--org", slug, "--json").json
    notes = funnel.pop("notes")
    assert len(notes) == funnel.pop("note_count") == 13
    assert notes[0]["note"] == NASTY
    assert {"step_key": "sign-in", "version": 2}.items() <= notes[0].items()
    assert [note["reported_at"] for note in notes] == sorted((note["reported_at"] for note in notes), reverse=True)
    assert funnel.pop("counted_at") == pytest.approx(time.time() * 1000, abs=60_000)
    step = {"reached": 3, "here": 0, "skipped": 0, "stuck": 0, "too_fast": 0, "title": "Step install"}
    assert funnel == {
        "key": "tour",
        "title": TITLE,
        "latest_version": 2,
        "version": None,
        "server": None,
        "since": None,
        "until": None,
        "abandoned_after_days": 14,
        "attempts": {"people": 3, "started": 3, "completed": 1, "completion_rate": 0.3333, "in_progress": 1}
        | {"abandoned": 1, "restarted": 0, "moved_on": 0, "resumed": 1, "skipped": 1, "stuck": 1, "too_fast": 1},
        "steps": [
            step
            | {"number": 1, "key": "install", "completed": 3, "drop_off": 0.0}
            | {"timed": 3, "median_active_ms": 4 * MINUTE},
            step
            | {"number": 2, "key": "sign-in", "title": "Step sign-in", "completed": 1, "drop_off": 0.6667}
            | {"here": 1, "skipped": 1, "stuck": 1, "too_fast": 1, "timed": 0, "median_active_ms": None},
            step
            | {"number": 3, "key": "deploy", "title": "Step deploy", "reached": 1, "completed": 1, "drop_off": 0.0}
            | {"timed": 0, "median_active_ms": None},
        ],
    }


@pytest.mark.promise("numbers")
def test_csv_has_the_same_and_nothing_that_a_spreadsheet_would_run(
    on_database: Cairn, on_world: Callable[[Any], str]
) -> None:
    slug = on_world(funnel_of_three)
    funnel = on_database("insight", "tour", "--org", slug, "--json").json
    outcome = on_database("insight", "tour", "--org", slug, "--csv")
    rows = list(csv.DictReader(io.StringIO(outcome.stdout, newline="")))
    assert [row["row"] for row in rows] == ["walkthrough", *["step"] * 3, *["note"] * 13]

    def written(values: dict[str, Any]) -> dict[str, str]:
        return {name: "" if value is None else str(value) for name, value in values.items()}

    whole, steps, notes = rows[0], rows[1:4], rows[4:]
    assert written(funnel["attempts"]).items() <= whole.items()
    for row, step in zip(steps, funnel["steps"], strict=True):
        assert written(step).items() <= row.items()
    disarmed = "'=1+1 �[31mred�[0m\nsecond line� �evil�2J"
    assert [(row["key"], row["note"]) for row in notes] == [
        ("sign-in", disarmed if note["note"] == NASTY else note["note"]) for note in funnel["notes"]
    ]


@pytest.mark.promise("numbers")
def test_where_there_is_nothing_to_count_it_is_said_in_words(
    on_database: Cairn, on_world: Callable[[Any], str]
) -> None:
    async def publish(world: World, slug: str) -> None:
        await world.publish("a", organization=slug, servers=(slug,))

    slug = on_world(publish)
    first = ["tour: The tour", "all versions (latest 1), all servers", ""]
    assert on_database("insight", "tour", "--org", slug).lines == [*first, "Nobody has begun it yet."]
    lines = on_database("insight", "tour", "--org", slug, "--version", "1", "--until", "2001-02-03").lines
    assert lines[1:] == ["version 1 (latest 1), all servers, until 2001-02-03", "", "Nobody began it there and then."]
    empty = on_database("insight", "tour", "--org", slug, "--json").json
    assert (empty["attempts"]["started"], empty["attempts"]["completion_rate"], empty["notes"]) == (0, None, [])
    assert [step["drop_off"] for step in empty["steps"]] == [None]
    rows = list(csv.DictReader(on_database("insight", "tour", "--org", slug, "--csv").lines))
    assert [row["row"] for row in rows] == ["walkthrough", "step"]


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("tour --org nowhere", r"no organisation 'nowhere'"),
        ("nothing --org {org}", r"no walkthrough 'nothing': .*cairn push"),
        ("draft --org {org}", r"draft was never published.*cairn push"),
        ("tour --org {org} --server nowhere", r"no server 'nowhere' in organisation '{org}': .*server list"),
        ("tour --org {org} --version 3", r"no published version 3 of tour: the latest is 2"),
        ("tour --org {org} --since 2026-01-02 --until 2026-01-01", r"ends before it begins"),
    ],
)
def test_what_cannot_be_counted_is_told_in_one_line(
    on_database: Cairn, on_world: Callable[[Any], str], arguments: str, says: str
) -> None:
    async def drafts(world: World, slug: str) -> None:
        await funnel_of_three(world, slug)
        for key in ("draft", "tour"):
            await world.authoring.push(
                slug, manuscript("x", key=key), publish=None, servers=[], by="author@example.com"
            )

    org = on_world(drafts)
    assert re.search(says.format(org=org), on_database("insight", *arguments.format(org=org).split()).error)


@pytest.mark.promise("cli.answers")
def test_another_organisations_walkthrough_and_server_are_refused_in_the_words_for_what_is_not_there(
    on_database: Cairn, on_world: Callable[[Any], str]
) -> None:
    async def nothing(world: World, slug: str) -> None:
        await world.publish("a", key="ours", organization=slug, servers=(slug,))

    theirs, ours = on_world(funnel_of_three), on_world(nothing)
    foreign = on_database("insight", "tour", "--org", ours).error
    assert foreign == on_database("insight", "none", "--org", ours).error.replace("none", "tour")
    foreign = on_database("insight", "ours", "--org", ours, "--server", theirs).error
    assert foreign == on_database("insight", "ours", "--org", ours, "--server", "none").error.replace("none", theirs)


@pytest.mark.parametrize("wrong", ["--since yesterday", "--version 0", "--days 0", "--json --csv"])
def test_an_option_that_is_not_understood_is_a_matter_of_usage(nursery: Nursery, wrong: str) -> None:
    outcome = nursery.run("insight", "tour", "--org", "acme", *wrong.split())
    assert (outcome.status, outcome.stdout) == (2, "")


@pytest.mark.promise("numbers")
def test_the_help_says_what_every_number_means_in_the_words_of_where_they_are_counted(nursery: Nursery) -> None:
    definitions = application.insight.__doc__
    assert definitions
    assert " ".join(definitions.split()) in " ".join(" ".join(nursery.run("insight", "--help").lines).split())
    # The numbers in those words, and in the options, are those that the counting goes by.
    for number in (f"{PAUSE // MINUTE} minutes", f"{TOO_FAST // 1000} seconds", f"{ABANDONED_AFTER_DAYS} days"):
        assert number in " ".join(definitions.split())
    days = next(option for option in insight.params if option.name == "days")
    assert days.default == ABANDONED_AFTER_DAYS
    assert getattr(days.type, "max", None) == MAX_ABANDONED_AFTER_DAYS
