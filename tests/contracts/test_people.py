"""What is promised of what is stored about people, and of their erasure, whichever implementation stands behind it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import asyncpg
import pytest

from adapters.postgres.connections import Database
from adapters.postgres.people import PostgresPersonalDataStore
from adapters.postgres.sign_in import PostgresPeople
from adapters.postgres.visitors import PostgresVisitorStore
from application.people import MAX_PEOPLE, PersonalData, StepName
from application.ports import ForgottenCalls, People, PersonalDataStore, PersonSummary, ToolCall, VisitorStore
from application.visitors import Visitors
from domain.errors import InvalidValue, NotFound, TemporarilyUnavailable
from domain.progress import Outcome
from domain.sign_in import IdentityKey
from domain.tenancy import Caller, Millis, OrganizationId, Server, UserId
from domain.walkthrough import PublishPolicy
from tests.calls import record, stored_calls, tool_call
from tests.fakes import Memory, MemoryPersonalDataStore
from tests.fakes_sign_in import MemoryPeople, MemoryVisitorStore
from tests.worlds import World, in_memory, on_postgres

OKTA = "https://acme.okta.example"


class NoLimits:
    async def hit(self, *_: object) -> None:
        pass


@dataclass
class Office:
    """A world whose people are looked after."""

    world: World
    store: PersonalDataStore
    known: People
    visitor_store: VisitorStore

    def __post_init__(self) -> None:
        world = self.world
        self.data = PersonalData(self.store, world.library, world.tenancy, world.clock)
        self.visitors = Visitors(
            *(self.visitor_store, world.catalogue, world.library, world.progress, NoLimits()),
            *(world.ids, world.clock),
        )

    async def visitor(self, server: Server) -> Caller:
        id = await self.visitors.mint(server.key, "192.0.2.1")
        user_id = await self.visitors.visitor(server.key, id)
        assert isinstance(user_id, str)
        return Caller(server.key, user_id)

    async def take(
        self, caller: Caller, *outcomes: Outcome, walkthrough: str = "tour", note: str | None = None
    ) -> None:
        """Begins a walkthrough and leaves as many steps behind."""
        lesson = await self.world.learning.select(caller, walkthrough, restart=False, to_latest=False)
        for outcome in outcomes:
            handle = str(lesson.progress.handle())
            lesson = await self.world.learning.next(caller, handle, None, outcome=outcome, note=note)

    async def called(self, caller: Caller, at: int) -> ToolCall:
        """A call in the log."""
        made = tool_call(
            caller, created_at=Millis(at), client_name="acme-ide", client_version="1.2", input={"note": "a note"}
        )
        await record(self.world.calls, made)
        return made

    async def logged(self, *users: UserId) -> Sequence[ToolCall]:
        """The calls of these, as they are stored."""
        organization_id = await self.world.tenancy.organization("acme")
        found: list[ToolCall] = []
        since: Millis | None = Millis(0)
        while since is not None:
            calls, since = await self.store.calls(organization_id, users, since)
            found += calls
        return found


@pytest.fixture(params=["memory", "postgres"])
def office(request: pytest.FixtureRequest) -> Office:
    if request.param == "memory":
        memory = Memory()
        return Office(
            in_memory(memory), MemoryPersonalDataStore(memory), MemoryPeople(memory), MemoryVisitorStore(memory)
        )
    database = request.getfixturevalue("database")
    return Office(
        on_postgres(database),
        PostgresPersonalDataStore(database, stretch_calls=1),
        PostgresPeople(database),
        PostgresVisitorStore(database),
    )


# ------------------------------------------------------------------------------------------- who there is


async def test_people_are_listed_by_address_and_then_visitors_a_page_at_a_time(office: Office) -> None:
    server = await office.world.server()
    for email in ("cem@example.com", "ada@example.com", "bob@example.com"):
        await office.world.caller(server, email)
    visitors = sorted([(await office.visitor(server)).user_id for _ in range(3)])
    everybody = ["ada@example.com", "bob@example.com", "cem@example.com", *visitors]
    for limit in (1, 2, 4, 6, 7):
        listed: list[str] = []
        after = None
        for _ in range(0, len(everybody), limit):
            page = await office.data.people("acme", after=after, limit=limit)
            assert len(page.people) <= limit
            listed += [each.email or each.user_id for each in page.people]
            after = page.next
        assert (listed, after) == (everybody, None)
    behind = await office.data.people("acme", after="ADA@example.com", limit=MAX_PEOPLE)
    assert [each.email for each in behind.people] == ["bob@example.com", "cem@example.com", None, None, None]


async def test_a_list_counts_what_was_begun_and_completed_everywhere_or_on_one_server(office: Office) -> None:
    guides, labs = await office.world.server(), await office.world.server(slug="labs")
    await office.world.publish("a", "b", servers=("guides", "labs"))
    await office.world.publish("a", key="other", title="The other")
    first_seen = office.world.clock.time
    ada = await office.world.caller(guides)
    await office.take(ada, Outcome.DONE)
    await office.take(ada, Outcome.DONE, walkthrough="other")
    office.world.clock.time += 1_000
    await office.take(await office.world.caller(labs))
    await office.world.caller(labs, "bob@example.com")
    seen = (first_seen, first_seen + 1_000)
    for server, begun, completed in ((None, 3, 1), ("guides", 2, 1), ("labs", 1, 0)):
        page = await office.data.people("acme", server=server, limit=1)
        assert page.people == [PersonSummary(ada.user_id, "ada@example.com", *seen, begun, completed)], server
    on_guides = await office.data.people("acme", server="guides", limit=9)
    on_labs = await office.data.people("acme", server="labs", limit=9)
    assert [each.email for each in on_guides.people] == ["ada@example.com"]
    assert [each.email for each in on_labs.people] == ["ada@example.com", "bob@example.com"]


async def test_a_visitor_is_listed_on_their_server_until_they_are_in_an_account(office: Office) -> None:
    guides, labs = await office.world.server(), await office.world.server(slug="labs")
    await office.world.publish("a", "b")
    visitor = await office.visitor(guides)
    await office.take(visitor, Outcome.DONE)
    on_labs = await office.data.people("acme", server="labs", limit=9)
    on_guides = await office.data.people("acme", server="guides", limit=9)
    assert (on_labs.people, [each.user_id for each in on_guides.people]) == ([], [visitor.user_id])
    ada = await office.world.caller(labs)
    assert await office.visitors.merge(guides.key, visitor.user_id, ada.user_id)
    everybody = (await office.data.people("acme", limit=9)).people
    assert [(each.email, each.begun) for each in everybody] == [("ada@example.com", 1)]


async def test_a_person_is_found_by_every_verified_address_and_by_id_and_in_their_organisation_alone(
    office: Office,
) -> None:
    server, elsewhere = await office.world.server(), await office.world.server("globex", "labs")
    here, there = server.key.organization_id, elsewhere.key.organization_id
    okta = IdentityKey(OKTA, "1")
    ada = await office.known.person(here, okta, "ada@example.com", UserId("usr_ada"), Millis(1))
    assert await office.known.person(here, okta, "ada@work.example", UserId("usr_other"), Millis(2)) == ada
    for who in ("Ada@Example.com ", "ada@work.example", "usr_ada"):
        assert await office.data.find(here, who) == "usr_ada", who
        with pytest.raises(NotFound) as unknown:
            await office.data.find(there, who)
        with pytest.raises(NotFound) as nobody:
            await office.data.find(there, who.replace("a", "b"))
        assert str(unknown.value).replace(repr(who), "") == str(nobody.value).replace(repr(who.replace("a", "b")), "")
    for who in (OKTA, "1", ""):
        with pytest.raises(NotFound):
            await office.data.find(here, who)
    with pytest.raises(InvalidValue):
        await office.data.find(here, "@")


# ------------------------------------------------------------------------------------------ what is stored


async def test_a_dossier_names_the_steps_that_were_completed_and_the_current_one(office: Office) -> None:
    server = await office.world.server()
    await office.world.publish("install", "gone", "deploy")
    ada = await office.world.caller(server)
    await office.take(ada, Outcome.DONE, Outcome.SKIPPED)
    await office.world.publish("install", "sign-in", "deploy", policy=PublishPolicy.CARRY_OVER)
    await office.take(ada)
    (taken,) = (await office.data.dossier("acme", "ada@example.com")).taken
    assert (taken.begun.server, taken.begun.walkthrough, taken.title) == ("guides", "tour", "The tour")
    assert (taken.current, taken.current_number) == (StepName("sign-in", "Step sign-in"), 2)
    assert taken.completed == [StepName("install", "Step install"), StepName("gone", "Step gone")]
    assert taken.total_steps == 3
    told = [(taken.steps[each.from_step_id].key if each.from_step_id else None) for each in taken.begun.events]
    assert told == [None, "install", "gone", "deploy"]
    assert [each.kind for each in taken.begun.events] == ["started", "advanced", "advanced", "moved"]


@pytest.mark.promise("people")
async def test_a_dossier_holds_what_is_the_persons_and_nothing_of_anybody_else(office: Office) -> None:
    guides, labs = await office.world.server(), await office.world.server(slug="labs")
    await office.world.publish("a", "b", servers=("guides", "labs"))
    ada, bob, visitor = await office.world.caller(guides), await office.world.caller(guides, "bob@example.com"), None
    visitor = await office.visitor(guides)
    for caller in (ada, bob, visitor, Caller(labs.key, bob.user_id)):
        await office.take(caller, Outcome.STUCK, note=f"by {caller.user_id}")
    assert await office.visitors.merge(guides.key, visitor.user_id, ada.user_id)
    calls = [await office.called(caller, at) for at, caller in enumerate((ada, bob, visitor, ada), start=1)]
    dossier = await office.data.dossier("acme", "ada@example.com")
    record = dossier.record
    assert (record.user_id, record.email) == (ada.user_id, "ada@example.com")
    assert [row["id"] for row in record.users] == [ada.user_id, visitor.user_id]
    assert [(row["issuer"], row["subject"]) for row in record.identities if row["issuer"] == "email"] == [
        ("email", "ada@example.com")
    ]
    assert {(each.server, each.progress.key.user_id) for each in record.begun} == {
        ("guides", ada.user_id),
        ("guides", visitor.user_id),
    }
    assert {event.note for each in record.begun for event in each.events} == {
        None,
        *(f"by {user_id}" for user_id in record.user_ids),
    }
    assert [row["server"] for row in record.tokens] == ["guides"]
    assert await office.data.calls("acme", record) == [calls[0], calls[2], calls[3]]


# ----------------------------------------------------------------------------------------------- erasure


@pytest.mark.promise("people")
async def test_whoever_is_erased_leaves_nothing_behind_but_that_calls_were_made(office: Office) -> None:
    guides, elsewhere = await office.world.server(), await office.world.server("globex", "labs")
    await office.world.publish("a", "b")
    ada, bob, visitor = (
        await office.world.caller(guides),
        await office.world.caller(guides, "bob@example.com"),
        await office.visitor(guides),
    )
    token = await office.world.identity.create_token(guides.key, "ada@example.com")
    namesake = await office.world.caller(elsewhere)
    for caller in (ada, bob, visitor):
        await office.take(caller, Outcome.STUCK, note="a note")
    assert await office.visitors.merge(guides.key, visitor.user_id, ada.user_id)
    for at in range(1, 4):
        for caller in (ada, bob, visitor, namesake):
            await office.called(caller, at)
    assert len(await office.logged(ada.user_id, visitor.user_id)) == 6

    erased = await office.data.erase("acme", "Ada@example.com")

    assert (erased.user_id, erased.calls) == (ada.user_id, 6)
    assert await office.logged(ada.user_id, visitor.user_id) == []
    for who in ("ada@example.com", ada.user_id, visitor.user_id):
        assert await office.store.find(guides.key.organization_id, who) is None
        assert await office.store.record(guides.key.organization_id, UserId(who)) is None
    assert await office.world.identity.bearer_of(guides.key, token) is None
    assert [each.email for each in (await office.data.people("acme", limit=9)).people] == ["bob@example.com"]
    bobs = (await office.data.dossier("acme", "bob@example.com")).record
    assert [len(each.events) for each in bobs.begun] == [2]
    assert [each.input for each in await office.logged(bob.user_id)] == [{"note": "a note"}] * 3
    assert len((await office.data.dossier("globex", "ada@example.com")).record.tokens) == 1
    with pytest.raises(NotFound):
        await office.data.erase("acme", "ada@example.com")

    again = await office.world.caller(guides)
    assert again.user_id != ada.user_id
    assert (await office.data.dossier("acme", "ada@example.com")).record.begun == []


class Interrupted:
    """A store of personal data in whose work something comes between, once: before its n-th stretch, or the end."""

    def __init__(self, store: PersonalDataStore, stretch: int, happening: object) -> None:
        self._store = store
        self._stretch = stretch
        self._happening = happening

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def forget_calls(
        self, organization_id: OrganizationId, users: Collection[UserId], since: Millis
    ) -> ForgottenCalls:
        await self._come_between(self._stretch == 1)
        return await self._store.forget_calls(organization_id, users, since)

    async def erase(self, organization_id: OrganizationId, users: Collection[UserId], since: Millis) -> int | None:
        await self._come_between(self._stretch > 0)
        return await self._store.erase(organization_id, users, since)

    async def _come_between(self, is_due: bool) -> None:
        self._stretch -= 1
        if is_due:
            self._stretch = 0
            await self._happening()  # type: ignore[operator]


def interrupted(office: Office, stretch: int, happening: object) -> PersonalData:
    world = office.world
    store = Interrupted(office.store, stretch, happening)
    return PersonalData(store, world.library, world.tenancy, world.clock)  # type: ignore[arg-type]


@pytest.mark.promise("people")
@pytest.mark.parametrize("stretch", [2, 9])
async def test_an_erasure_that_is_interrupted_is_finished_when_it_is_repeated(office: Office, stretch: int) -> None:
    server = await office.world.server()
    ada = await office.world.caller(server)
    for at in range(1, 5):
        await office.called(ada, at)

    async def dies() -> None:
        raise TemporarilyUnavailable

    with pytest.raises(TemporarilyUnavailable):
        await interrupted(office, stretch, dies).erase("acme", "ada@example.com")
    left = await office.logged(ada.user_id)
    assert len(left) == (3 if stretch == 2 else 0)
    assert (await office.data.erase("acme", "ada@example.com")).calls == len(left)
    assert await office.logged(ada.user_id) == []


@pytest.mark.promise("people")
async def test_a_call_that_is_made_while_somebody_is_erased_is_taken_along(office: Office) -> None:
    server = await office.world.server()
    office.world.clock.time = 100_000_000
    ada = await office.world.caller(server)
    await office.called(ada, 1)

    async def calls() -> None:
        for at in (office.world.clock.time - 60_000, office.world.clock.time + 60_000):
            await office.called(ada, at)

    assert (await interrupted(office, 9, calls).erase("acme", "ada@example.com")).calls == 3
    assert await office.logged(ada.user_id) == []


async def test_a_visitor_who_comes_into_the_account_meanwhile_is_erased_with_it(office: Office) -> None:
    server = await office.world.server()
    await office.world.publish("a", "b")
    ada, visitor = await office.world.caller(server), await office.visitor(server)
    await office.take(visitor)
    await office.called(visitor, 5)

    async def merges() -> None:
        assert await office.visitors.merge(server.key, visitor.user_id, ada.user_id)

    assert (await interrupted(office, 9, merges).erase("acme", ada.user_id)).calls == 1
    assert await office.logged(visitor.user_id) == []
    assert (await office.data.people("acme", limit=9)).people == []


async def test_nothing_is_erased_of_people_who_are_not_as_they_were_read(office: Office) -> None:
    server = await office.world.server()
    ada, bob = await office.world.caller(server), await office.world.caller(server, "bob@example.com")
    organization_id = server.key.organization_id
    assert await office.store.erase(organization_id, [ada.user_id, UserId("usr_nobody")], Millis(0)) is None
    assert await office.store.erase(OrganizationId("org_other"), [ada.user_id], Millis(0)) is None
    assert len((await office.data.people("acme", limit=9)).people) == 2
    assert await office.store.erase(organization_id, [ada.user_id], Millis(0)) == 0
    assert [each.user_id for each in (await office.data.people("acme", limit=9)).people] == [bob.user_id]


# ------------------------------------------------------------------------------------------ on PostgreSQL


async def test_of_a_call_it_stays_what_was_called_and_when_and_not_who_and_what(
    owner: asyncpg.Connection, database: Database
) -> None:
    world = on_postgres(database)
    server = await world.server()
    ada = await world.caller(server)
    made = tool_call(
        ada, client_name="acme-ide", client_version="1", walkthrough_id="wt_1", version=2, step_id="st", input={"a": 1}
    )
    await record(world.calls, made)
    store = PostgresPersonalDataStore(database)
    await PersonalData(store, world.library, world.tenancy, world.clock).erase("acme", "ada@example.com")
    (left,) = await stored_calls(owner)
    nobody = {"caller": Caller(server.key, None), "client_name": None, "client_version": None, "input": {}}
    assert left == made._replace(**nobody)  # type: ignore[arg-type]
