"""What is pushed comes back: through the use cases, on the fakes and on PostgreSQL, and through a folder."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.content.folder import read_folder
from adapters.content.writing import write_folder
from adapters.postgres.connections import Access, Database
from domain.errors import NotFound
from domain.walkthrough import Manuscript, PublishPolicy
from entrypoints.cli import versions
from tests.content.test_writing import held_manuscripts
from tests.worlds import World, in_memory, manuscript, on_postgres

_numbers = count(1)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module", params=["memory", "postgres"])
def world(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[World]:
    """One for all examples; each has an organisation of its own."""
    if request.param == "memory":
        yield in_memory()
        return
    owner_url = request.getfixturevalue("owner_url")
    database = Database(Access(owner_url, assume_role=True))
    runner.run(database.__aenter__())
    yield on_postgres(database)
    runner.run(database.__aexit__(None, None, None))

    async def empty() -> None:
        owner = await asyncpg.connect(owner_url)
        await owner.execute("delete from organizations")
        await owner.close()

    runner.run(empty())


@pytest.mark.promise("content.pull")
@settings(max_examples=60, deadline=None)
@given(first=held_manuscripts, second=held_manuscripts, is_draft=st.booleans())
def test_what_is_pulled_pushes_back_as_the_identical_version(
    world: World, runner: asyncio.Runner, first: Manuscript, second: Manuscript, is_draft: bool
) -> None:
    slug = f"acme-{next(_numbers)}"

    async def push(manuscript: Manuscript, *, publish: bool) -> tuple[int, bool]:
        policy = PublishPolicy.KEEP if publish else None
        stored = await world.authoring.push(slug, manuscript, publish=policy, servers=[], by="ada")
        return stored.version, stored.is_unchanged

    async def pulled(folder: Path, number: int | None) -> Manuscript:
        if number is None:
            stored = (await world.authoring.draft(slug, first.key)).manuscript()
        else:
            stored = (await world.authoring.version(slug, first.key, number)).manuscript(first.key)
        history = await world.authoring.versions(slug, first.key)
        known = {each.record.content_hash for each in history.versions}
        if history.draft is not None:
            known.add(history.draft.manuscript().content_hash())
        write_folder(folder, stored, known=known)
        return read_folder(folder)

    async def go(folder: Path) -> None:
        await world.tenancy.create_organization(slug)
        later = Manuscript(first.key, second.title, second.description, second.type, second.steps)
        is_same = later == first
        await push(first, publish=True)
        await push(later, publish=not is_draft)
        # One after the other into the same folder: each is known there.
        number = None if is_draft else 1 if is_same else 2
        back = await pulled(folder, number)
        assert back == later
        assert back.content_hash() == later.content_hash()
        if not is_draft:
            assert await push(back, publish=True) == (number, True)
        else:
            before = await world.authoring.draft(slug, first.key)
            await push(back, publish=False)
            assert await world.authoring.draft(slug, first.key) == before or is_same
        assert await pulled(folder, 1) == first

    with TemporaryDirectory() as folder:
        runner.run(go(Path(folder)))


def test_a_draft_without_steps_is_told_as_such_before_anything_is_written(world: World, runner: asyncio.Runner) -> None:
    slug = f"acme-{next(_numbers)}"

    async def go() -> None:
        await world.tenancy.create_organization(slug)
        await world.authoring.push(slug, manuscript("one"), publish=None, servers=[], by="ada")
        draft = await world.authoring.draft(slug, "tour")
        await world.authoring.discard_draft(slug, "tour", (draft.key.number, draft.revision), by="ada")
        with pytest.raises(NotFound) as refused:
            await versions._content(world.authoring, slug, "tour", None, is_draft=True)
        assert str(refused.value) == ("the draft of tour has no steps yet: push some first with 'cairn push DIR'")

    runner.run(go())
