"""What is promised of visitors and of their merge into an account, whichever implementation stands behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.postgres.connections import Access, Database
from adapters.postgres.visitors import PostgresVisitorStore
from application.insight import PAUSE, TOO_FAST
from application.limits import Limit
from application.ports import Cohort, Counts, Measures, ToolCall, Visitor, VisitorStore
from application.visitors import Spent, Visitors
from domain.errors import CairnError, NotFound, WalkthroughNotStarted
from domain.progress import (
    EventKind,
    Merge,
    Outcome,
    Progress,
    ProgressEvent,
    ProgressKey,
    Status,
    Transition,
    merge,
    replay,
)
from domain.sign_in import UNUSED_VISITOR_LIFETIME
from domain.tenancy import Caller, Millis, Server, UserId
from domain.walkthrough import Publication, PublishPolicy, VersionKey
from tests.domain.generate import examples, key_orders, revised
from tests.fakes import CountedIds, Memory, SetClock
from tests.fakes_sign_in import MemoryVisitorStore
from tests.worlds import World, in_memory, on_postgres

NOW = Millis(2_000_000)
_numbers = count(1)


class NoLimits:
    async def hit(self, limit: Limit, *who: str) -> None:
        pass


@dataclass
class Visited:
    """A world that takes visitors."""

    world: World
    store: VisitorStore

    def __post_init__(self) -> None:
        world = self.world
        self.visitors = Visitors(
            *(self.store, world.catalogue, world.library, world.progress),
            *(NoLimits(), world.ids, world.clock),
        )

    async def visitor(self, server: Server) -> Caller:
        user_id = UserId(f"usr_visitor{next(_numbers)}")
        await self.store.add(server.key, user_id.encode(), user_id, NOW)
        return Caller(server.key, user_id)

    async def person(self, server: Server, email: str = "ada@example.com") -> Caller:
        return await self.world.caller(server, email)

    async def takes(self, caller: Caller, *done: str, key: str = "tour", restart: bool = False) -> Progress:
        """Selects, and completes these steps."""
        lesson = await self.world.learning.select(caller, key, restart=restart, to_latest=False)
        for _ in done:
            handle = str(lesson.progress.handle())
            lesson = await self.world.learning.next(caller, handle, None, outcome=Outcome.DONE, note=None)
        return lesson.progress

    async def standing(self, caller: Caller, key: str = "tour") -> Progress | None:
        return next(each.progress for each in await self.world.catalogue.standings(caller) if each.key == key)

    async def events(self, caller: Caller, of: Progress) -> list[ProgressEvent]:
        assert caller.user_id is not None
        return list(await self.world.progress.events(of.key._replace(user_id=caller.user_id)))

    async def decide(self, theirs: Progress, own: Progress | None, account: Caller) -> Merge:
        key = theirs.key._replace(user_id=_id(account))
        numbers = {theirs.version} | ({own.version} if own else set())
        keys = [VersionKey(key.organization_id, key.walkthrough_id, number) for number in numbers]
        versions = {each.number: version for each, version in (await self.world.library.outlines(keys)).items()}
        return merge(theirs, own, key, versions, now=NOW)


def _id(caller: Caller) -> UserId:
    assert caller.user_id is not None
    return caller.user_id


@pytest.fixture(params=["memory", "postgres"])
def visited(request: pytest.FixtureRequest) -> Visited:
    if request.param == "memory":
        memory = Memory()
        return Visited(in_memory(memory), MemoryVisitorStore(memory))
    database = request.getfixturevalue("database")
    return Visited(on_postgres(database), PostgresVisitorStore(database))


# ------------------------------------------------------------------------------------------------ who it is


@pytest.mark.promise("auth.anonymous")
async def test_a_visitor_is_known_on_one_server_of_one_organisation_by_the_hash_alone(visited: Visited) -> None:
    server, sibling = await visited.world.server(), await visited.world.server(slug="labs")
    foreign = await visited.world.server("globex", "theirs")
    await visited.store.add(server.key, b"one", UserId("usr_1"), NOW)
    await visited.store.add(sibling.key, b"two", UserId("usr_2"), NOW)
    assert await visited.store.find(server.key, b"one") == Visitor(UserId("usr_1"), None)
    for where, visitor_hash in ((server, b"two"), (sibling, b"one"), (foreign, b"one"), (server, b"")):
        assert await visited.store.find(where.key, visitor_hash) is None


async def test_a_visitor_who_begins_nothing_is_forgotten_after_thirty_days(visited: Visited) -> None:
    server, sibling = await visited.world.server(), await visited.world.server(slug="labs")
    foreign = await visited.world.server("globex", "theirs")
    await visited.world.publish("a", "b", servers=("labs",))
    ada = await visited.person(server)
    for where, name in ((server, "1_idle"), (sibling, "2_begun"), (sibling, "3_idle"), (foreign, "4_idle")):
        await visited.store.add(where.key, name.encode(), UserId(f"usr_{name}"), NOW)
    await visited.takes(Caller(sibling.key, UserId("usr_2_begun")))
    await visited.store.add(server.key, b"5_merged", UserId("usr_5_merged"), NOW)
    assert await visited.store.merge(server.key, UserId("usr_5_merged"), _id(ada), []) == _id(ada)
    await visited.store.add(server.key, b"6_later", UserId("usr_6_later"), Millis(NOW + 1))

    async def there() -> set[str]:
        places = [(server, ("1_idle", "5_merged", "6_later", "7_new", "8_new"))]
        places += [(sibling, ("2_begun", "3_idle")), (foreign, ("4_idle",))]
        return {
            name
            for where, names in places
            for name in names
            if await visited.store.find(where.key, name.encode()) is not None
        }

    await visited.store.add(server.key, b"7_new", UserId("usr_7_new"), Millis(NOW + UNUSED_VISITOR_LIFETIME))
    assert await there() == {"1_idle", "2_begun", "3_idle", "4_idle", "5_merged", "6_later", "7_new"}
    await visited.store.add(server.key, b"8_new", UserId("usr_8_new"), Millis(NOW + UNUSED_VISITOR_LIFETIME + 1))
    assert await there() == {"2_begun", "4_idle", "5_merged", "6_later", "7_new", "8_new"}
    assert await visited.standing(Caller(sibling.key, UserId("usr_2_begun"))) is not None


# ------------------------------------------------------------------------------------------------ the merge


@pytest.mark.promise("auth.anonymous")
async def test_an_account_without_progress_gets_the_row_and_every_event_of_it_once(visited: Visited) -> None:
    server = await visited.world.server()
    await visited.world.publish("a", "b", "c")
    visitor, ada = await visited.visitor(server), await visited.person(server)
    before = await visited.takes(visitor, "a")
    led_there = await visited.events(visitor, before)
    assert await visited.visitors.merge(server.key, _id(visitor), _id(ada))
    after = await visited.standing(ada)
    now = Millis(visited.world.clock.time)
    assert after == replace(
        before, key=before.key._replace(user_id=_id(ada)), revision=before.revision + 1, last_activity_at=now
    )
    assert await visited.standing(visitor) is None
    assert await visited.events(visitor, before) == []
    *same, last = await visited.events(ada, before)
    assert (same, last.kind) == (led_there, EventKind.MERGED)


async def test_what_is_united_and_what_ends_is_stored_with_its_events(visited: Visited) -> None:
    server = await visited.world.server()
    await visited.world.publish("a", "b", "c")
    await visited.world.publish("x", key="done", title="Done")
    visitor, ada = await visited.visitor(server), await visited.person(server)
    theirs, own = await visited.takes(visitor, "a", "b"), await visited.takes(ada)
    await visited.takes(visitor, "x", key="done")
    await visited.takes(ada, "x", key="done")
    decided = await visited.decide(theirs, own, ada)
    assert decided.account is not None
    assert len(decided.account.events) == 2
    visited.world.clock.time = NOW
    assert await visited.visitors.merge(server.key, _id(visitor), _id(ada))
    assert await visited.standing(ada) == decided.account.after
    assert await visited.events(ada, own) == [*(await visited.events(ada, own))[:1], *decided.account.events]
    assert (await visited.events(visitor, own))[-1:] == list(decided.visitor.events)
    standing = await visited.standing(ada, "done")
    assert standing is not None
    assert standing.status is Status.COMPLETED


async def test_a_visitor_who_has_begun_nothing_is_spent_too(visited: Visited) -> None:
    server = await visited.world.server()
    await visited.store.add(server.key, b"one", UserId("usr_1"), NOW)
    ada = await visited.person(server)
    assert await visited.visitors.merge(server.key, UserId("usr_1"), _id(ada))
    assert await visited.store.find(server.key, b"one") == Visitor(UserId("usr_1"), ada.user_id)


@pytest.mark.promise("auth.anonymous")
async def test_merged_twice_nothing_happens_and_another_account_gets_nothing(visited: Visited) -> None:
    server = await visited.world.server()
    await visited.world.publish("a", "b")
    visitor, ada = await visited.visitor(server), await visited.person(server)
    bob = await visited.person(server, "bob@example.com")
    before = await visited.takes(visitor)
    assert await visited.visitors.merge(server.key, _id(visitor), _id(ada))
    after = await visited.standing(ada)
    assert await visited.visitors.merge(server.key, _id(visitor), _id(ada))
    assert not await visited.visitors.merge(server.key, _id(visitor), _id(bob))
    decided = await visited.decide(before, None, bob)
    assert await visited.store.merge(server.key, _id(visitor), _id(bob), [decided]) == ada.user_id
    assert await visited.standing(ada) == after
    assert await visited.standing(bob) is None


async def test_only_a_visitor_of_the_server_is_merged_and_only_into_a_person_of_the_organisation(
    visited: Visited,
) -> None:
    server, sibling = await visited.world.server(), await visited.world.server(slug="labs")
    foreign = await visited.world.server("globex", "theirs")
    await visited.world.publish("a")
    visitor, ada = await visited.visitor(server), await visited.person(server)
    other = await visited.visitor(server)
    await visited.takes(visitor)
    for where, who, into in (
        (server, _id(visitor), _id(visitor)),
        (server, _id(visitor), _id(other)),
        (server, _id(visitor), UserId("usr_nobody")),
        (server, _id(visitor), _id(await visited.person(foreign, "eve@example.com"))),
        (server, _id(ada), _id(await visited.person(server, "bob@example.com"))),
        (sibling, _id(visitor), _id(ada)),
        (foreign, _id(visitor), _id(await visited.person(foreign))),
    ):
        with pytest.raises(NotFound):
            await visited.visitors.merge(where.key, who, into)
    assert await visited.standing(visitor) is not None
    assert await visited.visitors.merge(server.key, _id(visitor), _id(ada))


async def test_a_merge_leaves_other_servers_and_walkthroughs_of_the_account_alone(visited: Visited) -> None:
    server, sibling = await visited.world.server(), await visited.world.server(slug="labs")
    await visited.world.publish("a", "b", servers=("guides", "labs"))
    await visited.world.publish("x", "y", key="own", title="Own")
    visitor, here, there = await visited.visitor(server), await visited.person(server), await visited.person(sibling)
    assert here.user_id == there.user_id
    await visited.takes(visitor, "a")
    own, elsewhere = await visited.takes(here, "x", key="own"), await visited.takes(there)
    assert await visited.visitors.merge(server.key, _id(visitor), _id(here))
    assert await visited.standing(here, "own") == own
    assert await visited.standing(there) == elsewhere


# ------------------------------------------------------------------------------------------ who was faster


@pytest.mark.parametrize(
    "faster", ["the visitor moves", "the visitor begins", "the account moves", "the account begins"]
)
async def test_what_was_decided_on_something_else_is_not_stored_at_all(visited: Visited, faster: str) -> None:
    server = await visited.world.server()
    await visited.world.publish("a", "b", "c")
    await visited.world.publish("x", key="second", title="Second")
    visitor, ada = await visited.visitor(server), await visited.person(server)
    theirs = await visited.takes(visitor, "a")
    own = await visited.takes(ada) if faster == "the account moves" else None
    decided = await visited.decide(theirs, own, ada)
    match faster:
        case "the visitor moves":
            await visited.takes(visitor, "b")
        case "the visitor begins":
            await visited.takes(visitor, key="second")
        case "the account moves" | "the account begins":
            await visited.takes(ada)
    stand = [await visited.standing(each) for each in (visitor, ada)]
    told = [await visited.events(each, theirs) for each in (visitor, ada)]
    assert await visited.store.merge(server.key, _id(visitor), _id(ada), [decided]) is None
    assert [await visited.standing(each) for each in (visitor, ada)] == stand
    assert [await visited.events(each, theirs) for each in (visitor, ada)] == told
    assert await visited.visitors.merge(server.key, _id(visitor), _id(ada)), "decided again, it is"


async def test_what_the_account_keeps_unchanged_has_to_be_what_it_was_decided_on_too(visited: Visited) -> None:
    server = await visited.world.server()
    await visited.world.publish("a", "b")
    visitor, ada = await visited.visitor(server), await visited.person(server)
    own = await visited.takes(ada)
    await visited.world.publish("a", "b", "c")
    theirs = await visited.takes(visitor, "a")
    decided = await visited.decide(theirs, own, ada)
    assert decided.account is not None
    assert decided.account.events == ()
    await visited.world.learning.select(ada, "tour", restart=False, to_latest=True)
    assert await visited.store.merge(server.key, _id(visitor), _id(ada), [decided]) is None
    assert await visited.visitors.merge(server.key, _id(visitor), _id(ada))
    after = await visited.standing(ada)
    assert after is not None
    assert after.carried == {"a"}, "on the same version by now, they are united"


@pytest.mark.parametrize("is_known", [True, False], ids=["ended", "handed over"])
async def test_nothing_is_begun_or_moved_on_a_visitor_who_is_in_an_account(visited: Visited, is_known: bool) -> None:
    server = await visited.world.server()
    await visited.world.publish("a", "b")
    await visited.world.publish("x", key="second", title="Second")
    visitor, ada = await visited.visitor(server), await visited.person(server)
    theirs = await visited.takes(visitor)
    if is_known:
        await visited.takes(ada)
    # Decided while the visitor was still one, to be committed afterwards.
    decided: list[tuple[Transition, Publication]] = []

    async def never(transition: Transition, publication: Publication, call: ToolCall | None) -> bool:
        decided.append((transition, publication))
        return False

    commit = visited.world.progress.commit
    visited.world.progress.commit = never  # type: ignore[method-assign]  # so that nothing is stored yet
    for key in ("tour", "second"):
        with suppress(CairnError):
            await visited.world.learning.select(visitor, key, restart=False, to_latest=False)
    with suppress(CairnError):
        await visited.world.learning.next(visitor, str(theirs.handle()), None, outcome=Outcome.DONE, note=None)
    visited.world.progress.commit = commit  # type: ignore[method-assign]  # from here on it is
    assert {each.events[0].kind for each, _ in decided} == {"resumed", "started", "advanced"}
    assert await visited.visitors.merge(server.key, _id(visitor), _id(ada))
    stand, told = await visited.standing(ada), await visited.events(visitor, theirs)
    for each in decided:
        assert not await visited.world.progress.commit(*each)
    assert [each.progress for each in await visited.world.catalogue.standings(visitor)] == [None, None]
    assert await visited.events(visitor, theirs) == told
    assert await visited.standing(ada) == stand
    with pytest.raises(WalkthroughNotStarted):
        await visited.world.learning.next(visitor, str(theirs.handle()), None, outcome=Outcome.DONE, note=None)
    for key in ("tour", "second"):
        with pytest.raises(CairnError):
            await visited.world.learning.select(visitor, key, restart=False, to_latest=False)


# --------------------------------------------------------------------------------------------- who counts it


async def test_nobody_is_mid_way_where_a_visitors_progress_has_ended(visited: Visited) -> None:
    server = await visited.world.server()
    await visited.world.publish("a", "b", "c")
    visitor, ada = await visited.visitor(server), await visited.person(server)
    progress = await visited.takes(visitor, "a")
    await visited.world.publish("a", "b", "c", "d")
    await visited.takes(ada)
    assert await visited.visitors.merge(server.key, _id(visitor), _id(ada))
    key = progress.key
    standings = await visited.world.walkthroughs.standings(key.organization_id, key.walkthrough_id)
    assert [(each.version, each.people) for each in standings] == [(2, 1)]
    people = await visited.world.walkthroughs.people(key.organization_id, key.walkthrough_id)
    assert {number: (each.mid_way, each.completed) for number, each in people.items()} == {2: (1, 0)}


MEASURES = Measures(Millis(10_000_000_000), PAUSE, TOO_FAST, Millis(14 * 86_400_000), 100)
EVERYTHING = Cohort(None, None, None, None)


async def _counts(visited: Visited, organization: str, cohort: Cohort = EVERYTHING, now: int | None = None) -> Counts:
    organization_id = await visited.world.tenants.organization(organization)
    assert organization_id is not None
    subject = await visited.world.funnels.subject(organization_id, "tour")
    assert subject is not None
    measures = replace(MEASURES, now=Millis(now)) if now is not None else MEASURES
    return await visited.world.funnels.counts(organization_id, subject.walkthrough_id, cohort, measures)


@pytest.mark.parametrize("days", [0, 100])
async def test_an_attempt_that_ended_by_a_merge_has_moved_on_and_is_not_abandoned(visited: Visited, days: int) -> None:
    server = await visited.world.server()
    await visited.world.publish("a", "b", "c")
    visitor, ada = await visited.visitor(server), await visited.person(server)
    await visited.takes(visitor, "a")
    await visited.takes(ada)
    assert await visited.visitors.merge(server.key, _id(visitor), _id(ada))
    for version in (None, 1):
        counts = await _counts(
            visited, "acme", replace(EVERYTHING, version=version), visited.world.clock.time + days * 86_400_000
        )
        told = counts.attempts
        assert (told.people, told.started, told.moved_on, told.restarted, told.completed) == (2, 2, 1, 0, 0)
        assert (told.in_progress, told.abandoned) == ((0, 1) if days else (1, 0))
        at_b = counts.steps["b"]
        assert (at_b.reached, at_b.here, at_b.completed) == (2, 0 if days else 1, 0)


async def test_an_attempt_that_was_handed_over_is_the_accounts_and_counts_once(visited: Visited) -> None:
    server = await visited.world.server()
    await visited.world.publish("a", "b", "c")
    visitor, ada = await visited.visitor(server), await visited.person(server)
    await visited.takes(visitor, "a")
    assert await visited.visitors.merge(server.key, _id(visitor), _id(ada))
    told = (await _counts(visited, "acme", now=visited.world.clock.time)).attempts
    assert (told.people, told.started, told.in_progress, told.moved_on) == (1, 1, 1, 0)


async def test_what_a_visitor_completed_counts_on_their_version_once(visited: Visited) -> None:
    server = await visited.world.server()
    await visited.world.publish("a")
    visitor, ada = await visited.visitor(server), await visited.person(server)
    await visited.takes(visitor, "a")
    await visited.world.publish("a", "b")
    await visited.takes(ada)
    assert await visited.visitors.merge(server.key, _id(visitor), _id(ada))
    told = {
        version: (await _counts(visited, "acme", replace(EVERYTHING, version=version))).attempts
        for version in (None, 1, 2)
    }
    assert {version: (each.started, each.completed, each.moved_on) for version, each in told.items()} == {
        None: (2, 2, 0),
        1: (1, 1, 0),
        2: (1, 0, 1),
    }


# ------------------------------------------------------------------------------------------ whatever happens

_runs = count(1)
_PASSED = st.sampled_from([0, 1, 1_000, TOO_FAST, PAUSE, PAUSE + 1, 20 * 86_400_000])
_ACTS = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(PublishPolicy)),
    st.tuples(st.just("select"), st.integers(0, 2), st.sampled_from(["", "", "restart", "latest"])),
    *[st.tuples(st.just("next"), st.integers(0, 2), st.sampled_from([Outcome.DONE, *Outcome]))] * 4,
    st.tuples(st.just("merge"), st.integers(0, 1)),
)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as opened:
        yield opened


@pytest.fixture(scope="module")
def pools(owner_url: str, runner: asyncio.Runner) -> Iterator[Database]:
    """As `database`, for all the examples of one test."""
    database = Database(Access(owner_url, assume_role=True))
    runner.run(database.__aenter__())
    yield database
    runner.run(database.__aexit__(None, None, None))

    async def empty() -> None:
        owner = await asyncpg.connect(owner_url)
        await owner.execute("delete from organizations")
        await owner.close()

    runner.run(empty())


class Both:
    """Does the same in two worlds: two visitors and a person on one server, in one walkthrough."""

    def __init__(self, pools: Database, run: int) -> None:
        self.slug = f"r{run}"
        memory = Memory()
        given = [{"clock": SetClock(), "ids": CountedIds(run * 1_000_000)} for _ in range(2)]
        self.fake = Visited(in_memory(memory, **given[0]), MemoryVisitorStore(memory))
        self.real = Visited(on_postgres(pools, **given[1]), PostgresVisitorStore(pools))
        self.worlds = (self.fake, self.real)
        self.handles: list[list[str]] = [[], [], []]
        self.merged = 0
        self.versions = 0

    async def begin(self, steps: tuple[str, ...]) -> None:
        for visited in self.worlds:
            self.server = await visited.world.server(self.slug, self.slug)
            await visited.visitors.mint(self.server.key, "192.0.2.1")  # takes the ids of one
            self.people = [Caller(self.server.key, UserId(f"usr_{self.slug}_{number}")) for number in range(2)]
            for caller in self.people:
                await visited.store.add(self.server.key, _id(caller).encode(), _id(caller), NOW)
            self.people.append(await visited.person(self.server))
        await self.publish(steps, PublishPolicy.KEEP)

    async def publish(self, steps: tuple[str, ...], policy: PublishPolicy) -> None:
        self.versions += 1
        for visited in self.worlds:
            await visited.world.publish(*steps, organization=self.slug, policy=policy, servers=(self.slug,))

    async def select(self, person: int, how: str) -> None:
        answers = []
        for visited in self.worlds:
            try:
                lesson = await visited.world.learning.select(
                    self.people[person], "tour", restart=how == "restart", to_latest=how == "latest"
                )
                answers.append((lesson.told, lesson.progress))
                self.handles[person].append(str(lesson.progress.handle()))
            except CairnError as error:
                answers.append((type(error), str(error)))
        assert answers[0] == answers[1]

    async def next(self, person: int, handle: str, outcome: Outcome) -> None:
        note = "why" if outcome is Outcome.STUCK else None
        answers = []
        for visited in self.worlds:
            try:
                lesson = await visited.world.learning.next(
                    self.people[person], handle, None, outcome=outcome, note=note
                )
                answers.append((lesson.told, lesson.progress))
                self.handles[person].append(str(lesson.progress.handle()))
            except CairnError as error:
                answers.append((type(error), str(error)))
        assert answers[0] == answers[1]

    async def merge(self, visitor: int) -> None:
        who, account = self.people[visitor], self.people[2]
        spent = [await each.store.find(self.server.key, _id(who).encode()) for each in self.worlds]
        assert spent[0] == spent[1]
        for visited in self.worlds:
            assert await visited.visitors.merge(self.server.key, _id(who), _id(account))
        self.merged += spent[0] == Visitor(_id(who), None)

    async def compare(self) -> None:
        """The same progress and events are stored in both, spent visitors' included; and events replay."""
        for caller in self.people:
            stand = [await visited.world.catalogue.standings(caller) for visited in self.worlds]
            assert stand[0] == stand[1]
            standing = stand[0][0]
            key = ProgressKey(standing.organization_id, self.server.key.server_id, _id(caller), standing.walkthrough_id)
            events = [list(await visited.world.progress.events(key)) for visited in self.worlds]
            assert events[0] == events[1]
            if events[0]:
                keys = [
                    VersionKey(key.organization_id, key.walkthrough_id, number)
                    for number in range(1, self.versions + 1)
                ]
                found = await self.real.world.library.outlines(keys)
                replayed = replay(key, events[0], {each.number: version for each, version in found.items()})
                ended = replayed.status is Status.MERGED
                assert standing.progress == (None if ended else replayed)

    async def count(self, cohort: Cohort, now: int) -> None:
        fake, real = [await _counts(visited, self.slug, cohort, now) for visited in self.worlds]
        assert fake == real
        whole = real.attempts
        ends = whole.completed, whole.in_progress, whole.abandoned, whole.restarted, whole.moved_on
        assert sum(ends) == whole.started


@pytest.mark.promise("auth.anonymous")
@pytest.mark.timeout(900)
@examples(30)
@given(data=st.data(), steps=key_orders, acts=st.lists(st.tuples(_ACTS, _PASSED), min_size=8, max_size=30))
def test_the_fake_and_postgres_merge_and_count_the_same(
    data: st.DataObject,
    steps: tuple[str, ...],
    acts: list[tuple[tuple[object, ...], int]],
    runner: asyncio.Runner,
    pools: Database,
) -> None:
    both = Both(pools, next(_runs))
    runner.run(both.begin(steps))
    clocks = [visited.world.clock for visited in both.worlds]
    moments = [clocks[0].time]
    for act, passed in [*acts, (("merge", 0), 1), (("merge", 1), 1)]:
        match act:
            case ("publish", PublishPolicy() as policy):
                steps = data.draw(revised(steps))
                runner.run(both.publish(steps, policy))
            case ("select", int(person), str(how)):
                runner.run(both.select(person, how))
            case ("next", int(person), Outcome() as outcome):
                if not both.handles[person]:
                    runner.run(both.select(person, ""))
                else:
                    runner.run(both.next(person, both.handles[person][-1], outcome))
            case ("merge", int(visitor)):
                runner.run(both.merge(visitor))
        for clock in clocks:
            clock.time += passed
        moments.append(clocks[0].time)
    assert both.merged == 2
    runner.run(both.compare())
    bounds = st.none() | st.sampled_from(moments)
    for version in (None, *range(1, both.versions + 1)):
        since, until = data.draw(bounds), data.draw(bounds)
        for cohort in (Cohort(version, None, None, None), Cohort(version, None, since, until)):
            runner.run(both.count(cohort, moments[-1]))


async def test_an_id_is_told_once_and_known_again_until_it_is_spent(visited: Visited) -> None:
    server = await visited.world.server()
    id = await visited.visitors.mint(server.key, "192.0.2.1")
    found = await visited.visitors.visitor(server.key, id)
    assert isinstance(found, str)
    assert await visited.visitors.visitor(server.key, id + "x") is None
    ada = await visited.person(server)
    assert await visited.visitors.merge(server.key, found, _id(ada))
    assert await visited.visitors.visitor(server.key, id) == Spent()
