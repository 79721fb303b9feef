"""Whatever can be built can be stored, and comes back as it was: on the fakes and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import count

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.postgres.connections import Access, Database
from application.authoring import Authoring
from domain.progress import EventKind, Outcome, Progress, ProgressEvent, Status, Told, Transition
from domain.tenancy import Caller, Millis, ServerKey, StepId
from domain.walkthrough import Delivery, Manuscript, Publication, PublishPolicy, StepText, VersionKey, WalkthroughType
from tests.worlds import World, in_memory, on_postgres

# What an author or learner can type.
_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=80)
_ONE_LINE = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=80)
_KEYS = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,11}", fullmatch=True)
_STEPS = st.builds(
    StepText,
    key=_KEYS,
    title=_ONE_LINE,
    content=_TEXT.map(lambda text: "." + text),
    assistant_notes=st.none() | _TEXT,
    workspace_actions=st.none() | _TEXT,
    done_when=st.none() | _TEXT,
    delivery=st.sampled_from(Delivery),
    estimated_minutes=st.none() | st.integers(1, 1440),
)
_MANUSCRIPTS = st.builds(
    Manuscript,
    key=_KEYS,
    title=_ONE_LINE,
    description=_ONE_LINE,
    type=st.sampled_from(WalkthroughType),
    steps=st.lists(_STEPS, min_size=1, max_size=6, unique_by=lambda step: step.key).map(tuple),
)
_INTEGERS = st.integers(1, 2**31 - 1)
_TIMES = st.lists(st.integers(1_000_000, 2**53), min_size=3, max_size=3).map(sorted)
_people = count()
_examples = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as opened:
        yield opened


@pytest.fixture(params=["memory", "postgres"])
def world(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[World]:
    if request.param == "memory":
        made = in_memory()
        runner.run(made.server())
        yield made
        return
    owner_url = request.getfixturevalue("owner_url")
    database = Database(Access(owner_url, assume_role=True))
    runner.run(database.__aenter__())
    made = on_postgres(database)
    runner.run(made.server())
    yield made
    runner.run(database.__aexit__(None, None, None))

    async def empty() -> None:
        owner = await asyncpg.connect(owner_url)
        await owner.execute("delete from organizations")
        await owner.close()

    runner.run(empty())


@_examples
@given(written=_MANUSCRIPTS)
def test_a_version_comes_back_as_it_was_written(world: World, runner: asyncio.Runner, written: Manuscript) -> None:
    async def stored() -> VersionKey:
        # What is stored comes back as it was, also what the check on content would refuse.
        anything_goes = Authoring(
            *(world.walkthroughs, world.assignments, world.library),
            lambda manuscript: None,
            *(world.tenancy, world.ids, world.clock),
        )
        pushed = await anything_goes.push(
            "acme", written, publish=PublishPolicy.KEEP, servers=[], by="author@example.com"
        )
        return VersionKey(await world.tenancy.organization("acme"), pushed.walkthrough_id, pushed.version)

    key = runner.run(stored())
    version = runner.run(world.walkthroughs.version(key))
    assert version is not None
    assert (version.title, version.description, version.type) == (written.title, written.description, written.type)
    assert tuple(step.text for step in version.steps) == written.steps
    assert runner.run(world.library.outlines([key])) == {key: version.outline()}
    assert tuple(runner.run(world.library.step(key, step.id)) for step in version.steps) == version.steps


@_examples
@given(
    attempt=_INTEGERS,
    to_step=st.none() | _KEYS,
    outcome=st.sampled_from(Outcome),
    note=st.none() | _TEXT,
    carried=st.frozensets(_KEYS, max_size=5),
    times=_TIMES,
)
def test_progress_and_events_come_back_as_they_were_stored(
    world: World,
    runner: asyncio.Runner,
    attempt: int,
    to_step: str | None,
    outcome: Outcome,
    note: str | None,
    carried: frozenset[str],
    times: list[int],
) -> None:
    async def begun() -> Progress:
        (listing,) = await world.tenants.servers(None)
        caller = await world.caller(listing.server, f"learner{next(_people)}@example.com")
        await world.publish("a", "b")
        return (await world.learning.select(caller, "tour", restart=False, to_latest=False)).progress

    before = runner.run(begun())
    started_at, completed_at, last_activity_at = map(Millis, times)
    event = ProgressEvent(
        revision=2,
        kind=EventKind.STUCK if outcome is Outcome.STUCK else EventKind.ADVANCED,
        attempt=attempt,
        version=1,
        from_step_id=before.current_step_id,
        to_step_id=None if to_step is None else StepId(to_step),
        outcome=outcome,
        note=note,
        occurred_at=last_activity_at,
    )
    after = Progress(
        key=before.key,
        version=1,
        attempt=attempt,
        revision=2,
        status=Status.COMPLETED if to_step is None else Status.IN_PROGRESS,
        current_step_id=event.to_step_id,
        carried=carried,
        started_at=started_at,
        last_activity_at=last_activity_at,
        completed_at=completed_at if to_step is None else None,
    )
    published = Publication(1, PublishPolicy.KEEP, is_available=True)
    assert runner.run(world.progress.commit(Transition(before, after, (event,), Told.ADVANCED), published))
    assert list(runner.run(world.progress.events(before.key)))[1:] == [event]
    server = ServerKey(before.key.organization_id, before.key.server_id)
    (standing,) = runner.run(world.catalogue.matching(Caller(server, before.key.user_id), "tour"))
    assert standing.progress == after
