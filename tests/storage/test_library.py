"""Content is loaded as far as it is shown, once however many ask, and kept as long as there is room for it."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.postgres.connections import Access, Database
from adapters.postgres.learning import PostgresVersionLibrary, _size_in_memory
from domain.progress import Outcome
from domain.tenancy import OrganizationId, StepId, WalkthroughId
from domain.walkthrough import Heading, Outline, PublishPolicy, Step, StepText, Version, VersionKey
from tests.worlds import World, manuscript, on_postgres

_AT_ONCE = 8  # steps: the one that is asked for, and those after it
_TEXT_BYTES = 3_000  # in each step


class HearingDatabase(Database):
    """Notes what is loaded: of an outline the number of its version, and of steps their ids."""

    loaded: list[list[str]]

    @asynccontextmanager
    async def hot(self) -> AsyncIterator[Any]:
        async with super().hot() as connection:
            with connection.query_logger(self._heard):
                yield connection
                await asyncio.sleep(0)  # the driver tells of a statement in the next turn of the loop

    def _heard(self, query: Any) -> None:
        if "version_outlines" in query.query or "version_steps" in query.query:
            self.loaded.append(query.args[-1])


class Shelf:
    """A version of 20 steps on a database, and what is loaded of it."""

    def __init__(self, database: HearingDatabase, world: World, version: Version) -> None:
        self.database = database
        self.world = world
        self.version = version
        self.ids = [step.id for step in version.steps]

    def library(self, *, max_bytes: int = 2**20) -> PostgresVersionLibrary:
        """With nothing in memory, as after a start."""
        self.database.loaded = []
        return PostgresVersionLibrary(self.database, max_bytes=max_bytes)


async def _shelf(database: HearingDatabase) -> Shelf:
    world = on_postgres(database)
    server = await world.server()
    tour = manuscript(*(f"s{number}" for number in range(20)))
    steps = tuple(replace(step, content=step.key.rjust(_TEXT_BYTES, ".")) for step in tour.steps)
    pushed = await world.authoring.push(
        "acme", replace(tour, steps=steps), publish=PublishPolicy.KEEP, servers=[("guides", None)], by="author"
    )
    version = await world.walkthroughs.version(VersionKey(server.key.organization_id, pushed.walkthrough_id, 1))
    assert version is not None
    return Shelf(database, world, version)


@pytest.fixture
async def shelf(owner_url: str, owner: asyncpg.Connection) -> AsyncIterator[Shelf]:
    async with HearingDatabase(Access(owner_url, assume_role=True)) as database:
        yield await _shelf(database)


async def test_whoever_is_led_through_a_version_has_its_steps_loaded_eight_at_a_time(shelf: Shelf) -> None:
    world = replace(shelf.world, library=shelf.library())
    caller = await world.caller((await world.tenants.servers(None))[0].server)
    lesson = await world.learning.select(caller, "tour", restart=False, to_latest=False)
    assert shelf.database.loaded == [["1"], shelf.ids[:_AT_ONCE]]
    while lesson.step is not None:
        assert lesson.step == shelf.version.steps[lesson.version.position(lesson.step.id)]
        handle = str(lesson.progress.handle())
        lesson = await world.learning.next(caller, handle, None, outcome=Outcome.DONE, note=None)
    await world.learning.reached(caller)
    assert shelf.database.loaded[1:] == [shelf.ids[first : first + _AT_ONCE] for first in (0, 8, 16)]


async def test_a_step_is_loaded_once_however_many_ask_and_from_wherever(shelf: Shelf) -> None:
    library = shelf.library()
    await library.outlines([shelf.version.key])
    asked = [4, 4, 6, 11, 12, 3, 0, 4]
    found = await asyncio.gather(*(library.step(shelf.version.key, shelf.ids[place]) for place in asked))
    assert found == [shelf.version.steps[place] for place in asked]
    # From 4 on, and whatever of those after 12, 3 and 0 is not on its way by then.
    assert sorted(shelf.database.loaded[1:]) == sorted(
        [shelf.ids[4:12], shelf.ids[12:20], shelf.ids[3:4], shelf.ids[:3]]
    )


async def test_without_its_outline_a_step_is_loaded_alone(shelf: Shelf) -> None:
    assert await shelf.library().step(shelf.version.key, shelf.ids[4]) == shelf.version.steps[4]
    assert shelf.database.loaded == [[shelf.ids[4]]]


async def test_a_caller_who_goes_away_takes_nobodys_answer_along(shelf: Shelf) -> None:
    library, key = shelf.library(), shelf.version.key
    outlines = [asyncio.create_task(library.outlines([key])) for _ in range(2)]
    steps = [asyncio.create_task(library.step(key, shelf.ids[0])) for _ in range(2)]
    await asyncio.sleep(0)
    for first in (outlines[0], steps[0]):
        assert first.cancel()
    assert await outlines[1] == {key: shelf.version.outline()}
    assert await steps[1] == shelf.version.steps[0]
    assert all([outlines[0].cancelled(), steps[0].cancelled()])
    assert sorted(shelf.database.loaded) == [["1"], [shelf.ids[0]]]


async def test_what_was_used_longest_ago_makes_room(shelf: Shelf) -> None:
    key, outline = shelf.version.key, shelf.version.outline()
    library = shelf.library(max_bytes=_size_in_memory(outline) + 12 * _size_in_memory(shelf.version.steps[0]))
    for step_id in shelf.ids:
        await library.outlines([key])  # as every call does, so that it stays
        await library.step(key, step_id)
        await library.step(key, shelf.ids[0])
    assert shelf.database.loaded.count(["1"]) == 1
    shelf.database.loaded = []
    for step_id in (shelf.ids[0], *shelf.ids[-11:]):
        await library.step(key, step_id)
    await library.outlines([key])
    assert shelf.database.loaded == []
    await library.step(key, shelf.ids[-12])
    assert shelf.database.loaded == [[shelf.ids[-12]]]


async def test_those_that_come_along_leave_room_for_the_step_that_was_asked_for(shelf: Shelf) -> None:
    library = shelf.library(max_bytes=2 * _size_in_memory(shelf.version.outline()))
    await library.outlines([shelf.version.key])
    for _ in range(2):
        assert await library.step(shelf.version.key, shelf.ids[0]) == shelf.version.steps[0]
    assert shelf.database.loaded == [["1"], shelf.ids[:_AT_ONCE]]
    await library.step(shelf.version.key, shelf.ids[_AT_ONCE - 1])
    assert len(shelf.database.loaded) == 3, "there was no room for all of them"


def _outline(number: int, steps: int) -> tuple[object, Outline]:
    key = VersionKey(OrganizationId(f"org_{number:021}"), WalkthroughId(f"wlk_{number:021}"), number)
    headings = (
        Heading(StepId(f"stp_{number:010}{place:011}"), f"set-up-{number}-{place}", f"Set up the {place}th of {number}")
        for place in range(steps)
    )
    return key, Outline(key, f"Tour {number}", tuple(headings))


def _step(number: int, words: int) -> tuple[object, Step]:
    id = StepId(f"stp_{number:021}")
    text = StepText(f"set-up-{number}", f"Set up the {number}th", f"{number} " * words, f"{number} " * words)
    return (_SOME_VERSION, id), Step(id, text)


_SOME_VERSION = VersionKey(OrganizationId("org"), WalkthroughId("wlk"), 1)


@pytest.mark.parametrize(("make", "much"), [(_outline, 1), (_outline, 5), (_outline, 500), (_step, 1), (_step, 500)])
def test_what_is_kept_takes_no_more_than_is_counted_for_it(
    make: Callable[[int, int], tuple[object, Outline | Step]], much: int
) -> None:
    kept: OrderedDict[object, tuple[object, int]] = OrderedDict()
    tracemalloc.start()
    for number in range(50):
        name, content = make(number, much)  # of parts that are nobody else's, as what comes from a database
        kept[name] = (content, _size_in_memory(content))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    counted = sum(size for _, size in kept.values())
    assert counted / 2 < taken <= counted


# ------------------------------------------------------------------------------------------- whatever is asked


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as opened:
        yield opened


@pytest.fixture
def opened(owner_url: str, runner: asyncio.Runner) -> Iterator[Shelf]:
    database = HearingDatabase(Access(owner_url, assume_role=True))
    runner.run(database.__aenter__())
    yield runner.run(_shelf(database))
    runner.run(database.__aexit__(None, None, None))

    async def empty() -> None:
        owner = await asyncpg.connect(owner_url)
        await owner.execute("delete from organizations")
        await owner.close()

    runner.run(empty())


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    asked=st.lists(st.lists(st.none() | st.integers(0, 19), min_size=1, max_size=6), min_size=1, max_size=6),
    max_bytes=st.sampled_from([0, 4 * _TEXT_BYTES, 12 * _TEXT_BYTES, 2**20]),
)
def test_whatever_is_shown_is_what_the_whole_version_holds(
    opened: Shelf, runner: asyncio.Runner, asked: list[list[int | None]], max_bytes: int
) -> None:
    """Steps and outlines in any order, several at the same moment, and with room for all, for some, or for nothing."""
    version, library = opened.version, opened.library(max_bytes=max_bytes)

    async def show(place: int | None) -> Step | Outline | None:
        if place is None:
            return (await library.outlines([version.key]))[version.key]
        return await library.step(version.key, opened.ids[place])

    async def show_all() -> None:
        for at_once in asked:
            shown = await asyncio.gather(*map(show, at_once))
            assert shown == [version.outline() if place is None else version.steps[place] for place in at_once]

    runner.run(show_all())
