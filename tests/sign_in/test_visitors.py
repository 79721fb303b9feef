"""Visitors on PostgreSQL and over HTTP: what is stored of them, and races against the merge into an account."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import asyncpg
import httpx2
import pytest

from adapters.postgres.connections import Database
from adapters.postgres.visitors import PostgresVisitorStore
from adapters.system import RandomIds, SystemClock
from application.learning import Lesson
from application.limits import Limit
from application.ports import Visitor
from application.visitors import Visitors
from domain.errors import CairnError, TemporarilyUnavailable, TooManyRequests
from domain.progress import EventKind, Outcome, Progress, ProgressKey, Status, StepHandle, Told, replay
from domain.tenancy import AuthMode, Caller, Millis, Server, ServerKey, UserId
from domain.walkthrough import VersionKey
from tests.patience import PATIENCE_SECONDS, Patient, until_waiting
from tests.processes import Serving, learner
from tests.serving.conftest import call, make_tenant, service
from tests.worlds import World, in_memory, on_postgres

__all__ = ["service"]

_CONTENDERS = 16  # on either side


class Limits:
    """Counts, and lets so many pass."""

    def __init__(self, allowed: int = 1_000_000) -> None:
        self.allowed = allowed
        self.hits: list[tuple[Limit, tuple[str, ...]]] = []

    async def hit(self, limit: Limit, *who: str) -> None:
        if len(self.hits) == self.allowed:
            raise TooManyRequests(600)
        self.hits.append((limit, who))


@dataclass
class Place:
    """A server that takes visitors, a visitor of it and a person."""

    world: World
    visitors: Visitors
    server: Server
    visitor: Caller
    ada: Caller

    async def keep(self) -> bool:
        """The merge, for as long as others are faster."""
        assert self.visitor.user_id is not None
        assert self.ada.user_id is not None
        while True:
            with suppress(TemporarilyUnavailable):
                return await self.visitors.merge(self.server.key, self.visitor.user_id, self.ada.user_id)

    async def select(self, caller: Caller, key: str = "tour") -> Lesson:
        return await self.world.learning.select(caller, key, restart=False, to_latest=False)

    async def next(self, caller: Caller, handle: str) -> Lesson:
        return await self.world.learning.next(caller, handle, None, outcome=Outcome.DONE, note=None)

    def key(self, caller: Caller, progress: Progress) -> ProgressKey:
        assert caller.user_id is not None
        key = progress.key
        return ProgressKey(key.organization_id, key.server_id, caller.user_id, key.walkthrough_id)


async def make_place(database: Database) -> Place:
    world = on_postgres(database, clock=SystemClock(), ids=RandomIds())
    store = PostgresVisitorStore(database)
    visitors = Visitors(
        *(store, world.catalogue, world.library, world.progress),
        *(Limits(), world.ids, world.clock),
    )
    server = await world.server(auth_mode=AuthMode.ANONYMOUS)
    found = await visitors.visitor(server.key, await visitors.mint(server.key, "192.0.2.1"))
    assert isinstance(found, str)
    return Place(world, visitors, server, Caller(server.key, found), await world.caller(server))


@pytest.fixture
async def place(database: Database) -> Place:
    return await make_place(database)


@asynccontextmanager
async def meeting(
    owner_url: str, owner: asyncpg.Connection, lock: str, contenders: int
) -> AsyncIterator[asyncio.TaskGroup]:
    """Holds what `lock` locks until so many wait for it; then lets them all go, and waits for the end of the tasks."""
    holder = await asyncpg.connect(owner_url)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute(lock)
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        try:
            yield tasks
            await until_waiting(owner, contenders)
        finally:
            await transaction.rollback()
            await holder.close()


@pytest.fixture
async def crowded(owner_url: str, owner: asyncpg.Connection) -> AsyncIterator[Place]:
    """With a connection for every contender, each of them open."""
    size = 2 * _CONTENDERS + 1
    async with Database(Patient(owner_url, assume_role=True), pool_size=size) as opened:
        everyone = asyncio.Barrier(size)

        async def open_one() -> None:
            async with opened.hot():
                await everyone.wait()

        await asyncio.gather(*(open_one() for _ in range(size)))
        yield await make_place(opened)


# -------------------------------------------------------------------------------------------- what is stored


@pytest.mark.promise("auth.anonymous")
async def test_of_a_visitor_only_a_hash_is_stored_and_no_address(place: Place, owner: asyncpg.Connection) -> None:
    id = await place.visitors.mint(place.server.key, "192.0.2.1")
    assert re.fullmatch("[A-Za-z0-9_-]{22}", id)
    subject = hashlib.sha256(id.encode()).hexdigest()
    row = await owner.fetchrow(
        "select i.issuer, u.* from mcp_server_user_identities i join mcp_server_users u"
        " on u.organization_id = i.organization_id and u.id = i.mcp_server_user_id where i.subject = $1",
        subject,
    )
    assert (row["issuer"], row["email"], row["merged_into"]) == (f"visitor:{place.server.key.server_id}", None, None)
    stored = await owner.fetch("select u::text || i::text from mcp_server_users u, mcp_server_user_identities i")
    assert all(id not in each[0] for each in stored)


async def test_ids_do_not_come_twice() -> None:
    ids = RandomIds()
    assert len({ids.visitor() for _ in range(1_000)}) == 1_000


async def test_minting_is_limited_by_network() -> None:
    world = in_memory()
    server = await world.server()
    limits = Limits(allowed=2)
    store = Added()
    visitors = Visitors(store, world.catalogue, world.library, world.progress, limits, world.ids, world.clock)  # type: ignore[arg-type]
    await visitors.mint(server.key, "192.0.2.1")
    await visitors.mint(server.key, "2001:db8:1:2::3")
    with pytest.raises(TooManyRequests):
        await visitors.mint(server.key, "192.0.2.9")
    assert limits.hits == [
        (Limit.VISITORS_PER_NETWORK, ("192.0.2.0/24",)),
        (Limit.VISITORS_PER_NETWORK, ("2001:db8:1::/48",)),
    ]
    assert len(store.added) == 2


class Added:
    """A store that others are always faster in."""

    def __init__(self) -> None:
        self.added: list[UserId] = []
        self.merges = 0

    async def add(self, server: ServerKey, visitor_hash: bytes, new_user: UserId, now: Millis) -> None:
        self.added.append(new_user)

    async def find(self, server: ServerKey, visitor_hash: bytes) -> Visitor | None:
        return None

    async def merge(self, server: ServerKey, visitor: UserId, account: UserId, merges: Sequence[object]) -> None:
        self.merges += 1


async def test_a_merge_that_lost_three_times_is_to_be_tried_again() -> None:
    world = in_memory()
    server = await world.server()
    store = Added()
    visitors = Visitors(store, world.catalogue, world.library, world.progress, Limits(), world.ids, world.clock)
    with pytest.raises(TemporarilyUnavailable):
        await visitors.merge(server.key, UserId("usr_visitor"), UserId("usr_ada"))
    assert store.merges == 3


async def test_a_step_that_is_gone_counts_for_the_account_when_it_comes_back(place: Place) -> None:
    await place.world.publish("x", "a", "b")
    lesson = await place.select(place.visitor)
    await place.next(place.visitor, str(lesson.progress.handle()))
    await place.world.publish("a", "b")
    for caller in (place.visitor, place.ada):
        await place.world.learning.select(caller, "tour", restart=False, to_latest=True)
    assert await place.keep()
    await place.world.publish("a", "x", "b")
    lesson = await place.world.learning.select(place.ada, "tour", restart=False, to_latest=True)
    lesson = await place.next(place.ada, str(lesson.progress.handle()))
    assert lesson.step is not None
    assert lesson.step.text.key == "b"


# ----------------------------------------------------------------------------------------------------- races


@dataclass
class Walk:
    """What one of several clients was told, which goes on from whatever it is shown."""

    advanced: list[str]
    """The steps that it was told it has moved on from."""
    refusals: list[str]

    @classmethod
    async def of(cls, place: Place, caller: Caller, handle: StepHandle | None) -> Walk:
        """Begins with this handle, or with a select."""
        walk = cls([], [])
        while True:
            try:
                lesson = await (place.next(caller, str(handle)) if handle else place.select(caller))
            except TemporarilyUnavailable:
                continue
            except CairnError as error:
                walk.refusals.append(type(error).__name__)
                return walk
            if handle and lesson.told in (Told.ADVANCED, Told.COMPLETED):
                walk.advanced.append(handle.step_id)
            handle = lesson.progress.handle()
            if handle is None:
                return walk


async def all_is_recorded(place: Place, walks: Sequence[Walk], *before: str) -> None:
    """What is stored of either is what its events lead to, and in these is every advance that anybody was told, and
    those `before`, and no other."""
    advanced: Counter[str | None] = Counter()
    for caller, ends in ((place.visitor, Status.MERGED), (place.ada, Status.COMPLETED)):
        (standing,) = await place.world.catalogue.standings(caller)
        key = ProgressKey(
            standing.organization_id,
            place.server.key.server_id,
            UserId(caller.user_id or ""),
            standing.walkthrough_id,
        )
        events = await place.world.progress.events(key)
        if events:
            version = VersionKey(key.organization_id, key.walkthrough_id, 1)
            replayed = replay(key, events, {1: (await place.world.library.outlines([version]))[version]})
            assert replayed.status is ends
            assert standing.progress == (None if ends is Status.MERGED else replayed)
            advanced.update(event.from_step_id for event in events if event.kind is EventKind.ADVANCED)
        else:
            assert (caller, standing.progress) == (place.visitor, None)
    assert Counter(step for walk in walks for step in walk.advanced) + Counter(before) == advanced


async def _mid_way(place: Place, caller: Caller) -> Progress:
    """With one of its steps completed."""
    progress = (await place.select(caller)).progress
    return (await place.next(caller, str(progress.handle()))).progress


@pytest.mark.promise("auth.anonymous")
@pytest.mark.parametrize("account", ["has nothing", "is mid-way"])
@pytest.mark.parametrize("is_merge_first", [True, False], ids=["the merge first", "the merge last"])
async def test_what_a_visitor_does_while_they_are_merged_is_merged_or_refused(
    crowded: Place, owner_url: str, owner: asyncpg.Connection, is_merge_first: bool, account: str
) -> None:
    place = crowded
    await place.world.publish("a", "b", "c", "d")
    if account == "is mid-way":
        await place.select(place.ada)
    theirs = await _mid_way(place, place.visitor)
    lock = f"select 1 from walkthrough_progress where mcp_server_user_id = '{place.visitor.user_id}' for update"
    async with meeting(owner_url, owner, lock, _CONTENDERS + 1) as group:
        if is_merge_first:
            kept = group.create_task(place.keep())
            await until_waiting(owner)
        tasks = [group.create_task(Walk.of(place, place.visitor, theirs.handle())) for _ in range(_CONTENDERS)]
        if not is_merge_first:
            kept = group.create_task(place.keep())
    assert await kept
    walks = await asyncio.gather(*tasks)
    advanced = sum(len(walk.advanced) for walk in walks)
    if is_merge_first:
        assert [(walk.advanced, walk.refusals) for walk in walks] == [([], ["WalkthroughNotStarted"])] * _CONTENDERS
    else:
        assert advanced > 0
    walks.append(await Walk.of(place, place.ada, None))
    assert len(walks[-1].advanced) == 3 - advanced, "the account goes on where the visitor was"
    await all_is_recorded(place, walks, await owner.fetchval("select id from walkthrough_steps where key = 'a'"))


@pytest.mark.parametrize("is_merge_first", [True, False], ids=["the merge first", "the merge last"])
async def test_what_an_account_does_while_a_visitor_is_merged_into_it_is_united_or_repeated(
    crowded: Place, owner_url: str, owner: asyncpg.Connection, is_merge_first: bool
) -> None:
    place = crowded
    await place.world.publish("a", "b", "c", "d", "e")
    await _mid_way(place, place.visitor)
    mine = (await place.select(place.ada)).progress
    lock = f"select 1 from walkthrough_progress where mcp_server_user_id = '{place.ada.user_id}' for update"
    async with meeting(owner_url, owner, lock, _CONTENDERS + 1) as group:
        if is_merge_first:
            kept = group.create_task(place.keep())
            await until_waiting(owner)
        tasks = [group.create_task(Walk.of(place, place.ada, mine.handle())) for _ in range(_CONTENDERS)]
        if not is_merge_first:
            kept = group.create_task(place.keep())
    assert await kept
    walks = await asyncio.gather(*tasks)
    assert [walk.refusals for walk in walks] == [[]] * _CONTENDERS
    assert sum(len(walk.advanced) for walk in walks) == (4 if is_merge_first else 5), "`a` was gained, or done"
    await all_is_recorded(place, walks, await owner.fetchval("select id from walkthrough_steps where key = 'a'"))


@pytest.mark.promise("auth.anonymous")
@pytest.mark.parametrize("account", ["has nothing", "is mid-way"])
async def test_whatever_both_do_at_once_every_advance_that_was_told_is_recorded_once(
    crowded: Place, owner_url: str, owner: asyncpg.Connection, account: str
) -> None:
    place = crowded
    await place.world.publish(*"abcdefgh")
    theirs = await _mid_way(place, place.visitor)
    lock = "select 1 from walkthrough_progress for update"
    if account == "is mid-way":
        await place.select(place.ada)
    else:
        # A row that is never committed: whoever begins waits to see what becomes of it.
        key = place.key(place.ada, theirs)
        lock += (
            "; insert into walkthrough_progress values "
            f"('{key.organization_id}', '{key.server_id}', '{key.user_id}', '{key.walkthrough_id}', "
            "1, 1, 1, 'stp_x', '{}', 'in_progress', 1, 1, null)"
        )
    async with meeting(owner_url, owner, lock, 2 * _CONTENDERS + 1) as group:
        tasks = [group.create_task(Walk.of(place, place.visitor, theirs.handle())) for _ in range(_CONTENDERS)]
        tasks += [group.create_task(Walk.of(place, place.ada, None)) for _ in range(_CONTENDERS)]
        kept = group.create_task(place.keep())
    assert await kept
    walks = await asyncio.gather(*tasks)
    assert {refusal for walk in walks[_CONTENDERS:] for refusal in walk.refusals} == set()
    assert {refusal for walk in walks for refusal in walk.refusals} <= {"WalkthroughNotStarted"}
    await all_is_recorded(place, walks, await owner.fetchval("select id from walkthrough_steps where key = 'a'"))


async def test_what_a_visitor_begins_while_they_are_merged_goes_along_or_is_not_begun(
    crowded: Place, owner_url: str, owner: asyncpg.Connection
) -> None:
    place = crowded
    keys = [f"w{number}" for number in range(8)]
    for key in keys:
        await place.world.publish("a", "b", key=key, title=key)
    lock = f"select 1 from mcp_server_users where id = '{place.visitor.user_id}' for update"

    async def begin(key: str) -> str | None:
        try:
            return (await place.select(place.visitor, key)).told.value
        except TemporarilyUnavailable:
            return None

    async with meeting(owner_url, owner, lock, len(keys) + 1) as group:
        begun = [group.create_task(begin(key)) for key in keys[:4]]
        kept = group.create_task(place.keep())
        begun += [group.create_task(begin(key)) for key in keys[4:]]
    assert await kept
    told = dict(zip(keys, await asyncio.gather(*begun), strict=True))
    of_ada = {each.key: each.progress is not None for each in await place.world.catalogue.standings(place.ada)}
    assert of_ada == {key: answer == "started" for key, answer in told.items()}
    assert (
        await owner.fetchval(
            "select count(*) from walkthrough_progress where mcp_server_user_id = $1", place.visitor.user_id
        )
        == 0
    )


async def test_a_merge_that_waited_for_the_accounts_own_beginning_is_decided_again(
    place: Place, owner_url: str, owner: asyncpg.Connection
) -> None:
    await place.world.publish("a", "b", "c")
    theirs = await _mid_way(place, place.visitor)
    first = await owner.fetchval("select id from walkthrough_steps where key = 'a'")
    key = place.key(place.ada, theirs)
    whose = (key.organization_id, key.server_id, key.user_id, key.walkthrough_id, first)
    beginning = await asyncpg.connect(owner_url)
    transaction = beginning.transaction()
    await transaction.start()
    await beginning.execute(
        "insert into walkthrough_progress values ($1, $2, $3, $4, 1, 1, 1, $5, '{}', 'in_progress', 1, 1, null)", *whose
    )
    await beginning.execute(
        "insert into walkthrough_progress_events values ($1, $2, $3, $4, 1, 1, 1, 'started', null, $5, null, null, 1)",
        *whose,
    )
    kept = asyncio.create_task(place.keep())
    await until_waiting(owner)
    await transaction.commit()
    await beginning.close()
    assert await kept
    (standing,) = await place.world.catalogue.standings(place.ada)
    assert standing.progress is not None
    assert (standing.progress.current_step_id, standing.progress.carried) == (theirs.current_step_id, {"a"})
    await all_is_recorded(place, [await Walk.of(place, place.ada, None)], first)


async def test_a_beginning_that_waited_for_the_merge_begins_nothing(
    place: Place, owner_url: str, owner: asyncpg.Connection
) -> None:
    await place.world.publish("a")
    merging = await asyncpg.connect(owner_url)
    transaction = merging.transaction()
    await transaction.start()
    visitor, ada = place.visitor.user_id, place.ada.user_id
    await merging.execute("select 1 from mcp_server_users where id = $1 for update", visitor)
    await merging.execute("update mcp_server_users set merged_into = $2 where id = $1", visitor, ada)
    begun = asyncio.create_task(place.select(place.visitor))
    await until_waiting(owner)
    await transaction.commit()
    await merging.close()
    with pytest.raises(TemporarilyUnavailable):
        await begun
    assert await owner.fetchval("select count(*) from walkthrough_progress") == 0


@pytest.mark.promise("auth.anonymous")
async def test_of_two_accounts_that_want_one_visitor_one_gets_everything(
    crowded: Place, owner_url: str, owner: asyncpg.Connection
) -> None:
    place = crowded
    bob = await place.world.caller(place.server, "bob@example.com")
    for key in ("one", "two"):
        await place.world.publish("a", "b", key=key, title=key)
        await place.select(place.visitor, key)
    visitor = place.visitor.user_id
    assert visitor is not None

    async def keep(account: Caller) -> bool:
        assert account.user_id is not None
        return await place.visitors.merge(place.server.key, visitor, account.user_id)

    lock = f"select 1 from mcp_server_users where id = '{visitor}' for update"
    async with meeting(owner_url, owner, lock, 2) as group:
        tasks = [group.create_task(keep(each)) for each in (place.ada, bob)]
    kept = await asyncio.gather(*tasks)
    assert sorted(kept) == [False, True]
    has = [
        sum(each.progress is not None for each in await place.world.catalogue.standings(caller))
        for caller in (place.ada, bob)
    ]
    assert has == [2 if each else 0 for each in kept]


async def test_two_visitors_who_sign_in_to_one_account_at_once_are_both_merged(
    crowded: Place, owner_url: str, owner: asyncpg.Connection
) -> None:
    place = crowded
    await place.world.publish("a", "b", "c")
    minted = await place.visitors.visitor(place.server.key, await place.visitors.mint(place.server.key, "192.0.2.1"))
    assert isinstance(minted, str)
    both = (place.visitor, Caller(place.server.key, minted))
    for caller in both:
        lesson = await place.select(caller)
        await place.next(caller, str(lesson.progress.handle()))
    ada = place.ada.user_id
    assert ada is not None

    async def keep(caller: Caller) -> bool:
        assert caller.user_id is not None
        return await place.visitors.merge(place.server.key, caller.user_id, ada)

    lock = f"select 1 from mcp_server_users where id = '{ada}' for update"
    async with meeting(owner_url, owner, lock, 2) as group:
        tasks = [group.create_task(keep(each)) for each in both]
    assert await asyncio.gather(*tasks) == [True, True]
    rows = await owner.fetch("select mcp_server_user_id, status from walkthrough_progress")
    assert Counter((row["mcp_server_user_id"] == ada, row["status"]) for row in rows) == {
        (True, "in_progress"): 1,
        (False, "merged"): 1,
    }


# ------------------------------------------------------------------------------------------------- over HTTP


@pytest.mark.promise("auth.anonymous")
async def test_a_visitor_takes_a_walkthrough_keeps_it_and_goes_on_in_the_account(
    database: Database, service: Serving, owner: asyncpg.Connection
) -> None:
    tenant = await make_tenant(database, service, auth_mode=AuthMode.ANONYMOUS)
    await tenant.publish("one", "two", "three")
    world = tenant.world
    visitors = Visitors(
        *(PostgresVisitorStore(database), world.catalogue, world.library, world.progress),
        *(Limits(), world.ids, world.clock),
    )
    id = await visitors.mint(tenant.server.key, "192.0.2.1")
    found = await visitors.visitor(tenant.server.key, id)
    assert isinstance(found, str)
    url = service.url.replace("/mcp", f"/v/{id}/mcp")
    async with learner(url, host=tenant.host) as visitor:
        first = await visitor.call("select_walkthrough", walkthrough="tour")
        second = await visitor.call("next_walkthrough_step", completed_step=first["step"]["handle"])
        assert second["status"] == "advanced"
        ada = await tenant.caller()
        assert ada.user_id is not None
        assert await visitors.merge(tenant.server.key, found, ada.user_id)
    async with tenant.learner() as account:
        # The handle that the visitor was shown is the account's now.
        third = await account.call("next_walkthrough_step", completed_step=second["step"]["handle"])
    assert (third["status"], third["step"]["number"], third["progress"]["attempt"]) == ("advanced", 3, 1)
    # And the visitor's address is good for nothing any more.
    async with httpx2.AsyncClient() as http:
        answer = await http.post(
            url,
            headers={"host": tenant.host, "accept": "application/json, text/event-stream"},
            json=call("next_walkthrough_step", completed_step=third["step"]["handle"]),
        )
    assert answer.status_code == 410
    assert id not in service.output
