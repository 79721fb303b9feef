"""What is promised of sign-ins under way, and of who is who, whichever implementation stands behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import pytest

from adapters.postgres.connections import Database
from adapters.postgres.sign_in import PostgresPeople, PostgresSignInStore
from application.ports import People, SignInKey, SignInStore, SignInUnderWay
from domain.sign_in import MAX_TRIES, SIGN_IN_LIFETIME, IdentityKey, SignInState, Stage, Trouble
from domain.tenancy import Millis, Server, UserId
from tests.fakes import Memory
from tests.fakes_sign_in import MemoryPeople, MemorySignInStore
from tests.patience import Patient, until_waiting
from tests.worlds import World, in_memory, on_postgres

OKTA = "https://acme.okta.example"
NOW = Millis(1_000_000)
CODE, WRONG = b"\x01" * 32, b"\x02" * 32


@dataclass
class Stores:
    world: World
    sign_ins: SignInStore
    people: People

    async def person(self, server: Server, subject: str | None, email: str, new_user: str, now: Millis = NOW) -> UserId:
        identity = IdentityKey(OKTA, subject) if subject else None
        return await self.people.person(server.key.organization_id, identity, email, UserId(new_user), now)

    async def begun(self, server: Server, state: SignInState | None = None) -> tuple[SignInKey, UserId]:
        """A sign-in under way of somebody who keeps their progress."""
        visitor = await self.person(server, None, "visitor@example.com", "usr_visitor")
        key = SignInKey(server.key, b"i" * 32, b"b" * 32)
        await self.sign_ins.begin_keeping(key, visitor, state or SignInState.keeping(), NOW)
        return key, visitor


@pytest.fixture(params=["memory", "postgres"])
def stores(request: pytest.FixtureRequest) -> Stores:
    if request.param == "memory":
        memory = Memory()
        return Stores(in_memory(memory), MemorySignInStore(), MemoryPeople(memory))
    database = request.getfixturevalue("database")
    return Stores(on_postgres(database), PostgresSignInStore(database), PostgresPeople(database))


# ---------------------------------------------------------------------------------------------- who is who


@pytest.mark.promise("auth.identity")
async def test_whoever_proves_the_same_address_again_is_the_same_person(stores: Stores) -> None:
    server = await stores.world.server()
    assert await stores.person(server, None, "ada@example.com", "usr_1") == "usr_1"
    assert await stores.person(server, None, "ada@example.com", "usr_2") == "usr_1"
    assert await stores.person(server, None, "bob@example.com", "usr_3") == "usr_3"


@pytest.mark.promise("auth.identity")
async def test_an_address_and_an_identity_of_another_organisation_are_other_peoples(stores: Stores) -> None:
    here, there = await stores.world.server(), await stores.world.server("globex", "labs")
    assert await stores.person(here, "ada", "ada@example.com", "usr_1") == "usr_1"
    assert await stores.person(there, "ada", "ada@example.com", "usr_2") == "usr_2"
    assert await stores.person(here, "ada", "ada@example.com", "usr_3") == "usr_1"


@pytest.mark.promise("auth.identity")
async def test_a_code_and_the_provider_lead_to_one_person_in_either_order(stores: Stores) -> None:
    server = await stores.world.server()
    assert await stores.person(server, None, "ada@example.com", "usr_1") == "usr_1"
    assert await stores.person(server, "ada", "ada@example.com", "usr_2") == "usr_1"
    assert await stores.person(server, "bob", "bob@example.com", "usr_3") == "usr_3"
    assert await stores.person(server, None, "bob@example.com", "usr_4") == "usr_3"


async def test_an_address_that_nobody_has_becomes_that_of_the_identity_which_proves_it(stores: Stores) -> None:
    server = await stores.world.server()
    assert await stores.person(server, "ada", "ada@example.com", "usr_1") == "usr_1"
    assert await stores.person(server, "ada", "ada@new.example.com", "usr_2") == "usr_1"
    assert await stores.person(server, None, "ada@new.example.com", "usr_3") == "usr_1"
    assert await stores.person(server, None, "ada@example.com", "usr_4") == "usr_1"
    assert await stores.person(server, "ada at another office", "ada@new.example.com", "usr_5") == "usr_1"


@pytest.mark.promise("auth.identity")
async def test_an_address_that_is_another_persons_stays_that_persons(stores: Stores) -> None:
    server = await stores.world.server()
    assert await stores.person(server, "ada", "ada@example.com", "usr_1") == "usr_1"
    assert await stores.person(server, None, "bob@example.com", "usr_2") == "usr_2"
    # The provider knows Ada by Bob's address now: she stays herself, and his code still leads to him.
    assert await stores.person(server, "ada", "bob@example.com", "usr_3") == "usr_1"
    assert await stores.person(server, None, "bob@example.com", "usr_4") == "usr_2"


@pytest.mark.promise("auth.identity")
async def test_a_person_with_a_token_of_an_operators_is_the_one_who_signs_in_and_the_other_way_round(
    stores: Stores,
) -> None:
    server = await stores.world.server()
    with_token = (await stores.world.caller(server, "ada@example.com")).user_id
    assert await stores.person(server, "ada", "ada@example.com", "usr_a") == with_token
    assert await stores.person(server, "bob", "bob@example.com", "usr_b") == "usr_b"
    assert (await stores.world.caller(server, "bob@example.com")).user_id == "usr_b"
    # By an address that came later, too.
    assert await stores.person(server, "bob", "bob@new.example.com", "usr_c") == "usr_b"
    assert (await stores.world.caller(server, "bob@new.example.com")).user_id == "usr_b"


# ------------------------------------------------------------------------------------- sign-ins under way


async def test_a_sign_in_is_found_by_both_secrets_on_its_own_server_until_its_time_is_over(stores: Stores) -> None:
    server, other = await stores.world.server(), await stores.world.server("globex", "labs")
    key, visitor = await stores.begun(server)
    assert await stores.sign_ins.read(key, NOW) == SignInUnderWay(SignInState.keeping(), visitor)
    ends = Millis(NOW + SIGN_IN_LIFETIME)
    assert await stores.sign_ins.read(key, Millis(ends - 1)) is not None

    def decide(_: SignInState) -> SignInState:
        raise AssertionError("there is nothing to decide")

    for strange, now in [
        (replace(key, id_hash=b"x" * 32), NOW),
        (replace(key, browser_hash=b"x" * 32), NOW),
        (replace(key, server=other.key), NOW),
        (key, ends),
    ]:
        assert await stores.sign_ins.read(strange, now) is None
        assert await stores.sign_ins.change(strange, decide, now) is None


async def test_what_is_decided_is_stored_and_what_is_refused_is_not(stores: Stores) -> None:
    key, visitor = await stores.begun(await stores.world.server())
    sent = SignInState.keeping().send("ada@example.com", CODE, NOW)
    assert await stores.sign_ins.change(key, lambda _: sent, NOW) == SignInUnderWay(sent, visitor)

    def decide(state: SignInState) -> SignInState:
        assert state == sent
        raise KeyError

    with pytest.raises(KeyError):
        await stores.sign_ins.change(key, decide, NOW)
    assert await stores.sign_ins.read(key, NOW) == SignInUnderWay(sent, visitor)


_STATES = [
    SignInState.keeping(),
    SignInState.keeping().send("no address", CODE, NOW),
    SignInState.keeping().send("ädä@example.com", bytes(range(32)), NOW).try_code(WRONG, NOW),
    SignInState.keeping().send("ada@example.com", CODE, NOW).try_code(CODE, NOW),
    SignInState.keeping().send("ada@example.com", CODE, NOW).try_code(CODE, NOW).kept(by_them=True),
    SignInState.keeping().send("ada@example.com", CODE, NOW).try_code(CODE, NOW).kept(by_them=False),
    SignInState.keeping().leave(bytes(32)),
    SignInState.keeping().leave(CODE).failed(CODE, "It said “no”."),
    SignInState.keeping().leave(CODE).come_back(CODE, IdentityKey(OKTA, "ada|1"), None),
    SignInState.keeping().leave(CODE).come_back(CODE, IdentityKey(OKTA, "ada|1"), "ada@example.com"),
]


@pytest.mark.parametrize("state", _STATES, ids=lambda state: f"{state.stage}, {state.trouble}")
async def test_every_state_comes_back_as_it_was_stored(stores: Stores, state: SignInState) -> None:
    key, _ = await stores.begun(await stores.world.server())
    await stores.sign_ins.change(key, lambda _: state, NOW)
    found = await stores.sign_ins.read(key, NOW)
    assert found is not None
    assert found.state == state


# ----------------------------------------------------------------------------------------- on PostgreSQL


@pytest.mark.promise("auth.identity")
async def test_somebody_whom_the_previous_release_let_in_is_found_by_their_address(
    database: Database, owner: asyncpg.Connection
) -> None:
    stores = Stores(on_postgres(database), PostgresSignInStore(database), PostgresPeople(database))
    server = await stores.world.server()
    assert await stores.person(server, None, "ada@example.com", "usr_1") == "usr_1"
    await owner.execute("delete from mcp_server_user_identities")
    # Whom that address belongs to is not changed by a provider's word either.
    assert await stores.person(server, "bob", "bob@example.com", "usr_2") == "usr_2"
    assert await stores.person(server, "bob", "ada@example.com", "usr_3") == "usr_2"
    assert await stores.person(server, "ada", "ada@example.com", "usr_4") == "usr_1"
    known = await owner.fetch("select subject, mcp_server_user_id from mcp_server_user_identities order by subject")
    assert [tuple(row) for row in known] == [
        ("ada", "usr_1"),
        ("ada@example.com", "usr_1"),
        ("bob", "usr_2"),
        ("bob@example.com", "usr_2"),
    ]


async def test_when_somebody_was_seen_never_goes_back(database: Database, owner: asyncpg.Connection) -> None:
    stores = Stores(on_postgres(database), PostgresSignInStore(database), PostgresPeople(database))
    server = await stores.world.server()
    seen = []
    for now in (NOW, Millis(NOW + 5), Millis(NOW + 2)):
        await stores.person(server, None, "ada@example.com", "usr_1", now)
        seen.append(tuple(await owner.fetchrow("select first_seen_at, last_seen_at from mcp_server_users")))
    assert seen == [(NOW, NOW), (NOW, NOW + 5), (NOW, NOW + 5)]


async def test_what_was_typed_is_forgotten_when_the_next_begins_after_its_time(
    database: Database, owner: asyncpg.Connection
) -> None:
    stores = Stores(on_postgres(database), PostgresSignInStore(database), PostgresPeople(database))
    server, other = await stores.world.server(), await stores.world.server(slug="labs")
    key, visitor = await stores.begun(server)
    await stores.begun(other)
    ends = Millis(NOW + SIGN_IN_LIFETIME)
    for now, left in ((Millis(ends - 1), 3), (ends, 3)):
        await stores.sign_ins.begin_keeping(
            replace(key, id_hash=now.to_bytes(32, "big")), visitor, SignInState.keeping(), now
        )
        assert await owner.fetchval("select count(*) from oauth_authorizations") == left
    assert (
        await owner.fetchval("select count(*) from oauth_authorizations where mcp_server_id = $1", other.key.server_id)
        == 1
    )


@asynccontextmanager
async def connections(owner_url: str, count: int) -> AsyncIterator[list[Database]]:
    """The pools of as many processes as give `count` connections, all of them made."""
    async with AsyncExitStack() as stack:
        pools = [
            await stack.enter_async_context(Database(Patient(owner_url, assume_role=True))) for _ in range(count // 2)
        ]
        for pool in pools:
            async with pool.transaction(None), pool.transaction(None):
                pass
        yield pools * 2


async def race(
    owner_url: str, owner: asyncpg.Connection, lock: list[str], calls: list[Callable[[], Awaitable[Any]]]
) -> list[Any]:
    """The answers of all calls. At least eight were seen waiting at once for what `lock` locks."""
    holder = await asyncpg.connect(owner_url)
    transaction = holder.transaction()
    await transaction.start()
    for statement in lock:
        await holder.execute(statement)
    try:
        tasks = [asyncio.ensure_future(call()) for call in calls]
        await until_waiting(owner, 8)
    finally:
        await transaction.rollback()
        await holder.close()
    return list(await asyncio.gather(*tasks))


@pytest.mark.promise("auth.identity")
async def test_thirty_two_first_sign_ins_at_once_make_one_person(
    database: Database, owner: asyncpg.Connection, owner_url: str
) -> None:
    server = await on_postgres(database).server()
    organization = server.key.organization_id
    # A row that is never committed: whoever inserts the same address waits to see what becomes of it.
    lock = (
        "insert into mcp_server_users (organization_id, id, email, email_verified_at, first_seen_at, last_seen_at) "
        f"values ('{organization}', 'usr_never', 'ada@example.com', 1, 1, 1)"
    )
    async with connections(owner_url, 32) as pools:

        def contender(number: int) -> Callable[[], Awaitable[UserId]]:
            identity = IdentityKey(OKTA, "ada") if number % 2 else None
            people = PostgresPeople(pools[number])
            return lambda: people.person(organization, identity, "ada@example.com", UserId(f"usr_{number}"), NOW)

        people = await race(owner_url, owner, [lock], [contender(number) for number in range(32)])
    assert len(set(people)) == 1
    assert [row["id"] for row in await owner.fetch("select id from mcp_server_users")] == [people[0]]
    known = await owner.fetch("select issuer, mcp_server_user_id from mcp_server_user_identities order by issuer")
    assert [tuple(row) for row in known] == [("email", people[0]), (OKTA, people[0])]


@pytest.mark.promise("auth.identity")
async def test_one_identity_with_many_addresses_at_once_makes_one_person_who_has_them_all(
    database: Database, owner: asyncpg.Connection, owner_url: str
) -> None:
    server = await on_postgres(database).server()
    organization = server.key.organization_id
    lock = [
        "insert into mcp_server_users (organization_id, id, first_seen_at, last_seen_at) "
        f"values ('{organization}', 'usr_never', 1, 1)",
        "insert into mcp_server_user_identities (organization_id, issuer, subject, mcp_server_user_id, created_at) "
        f"values ('{organization}', '{OKTA}', 'ada', 'usr_never', 1)",
    ]
    async with connections(owner_url, 8) as pools:

        def contender(number: int) -> Callable[[], Awaitable[UserId]]:
            people, email = PostgresPeople(pools[number]), f"ada{number}@example.com"
            return lambda: people.person(organization, IdentityKey(OKTA, "ada"), email, UserId(f"usr_{number}"), NOW)

        people = await race(owner_url, owner, lock, [contender(number) for number in range(8)])
    assert len(set(people)) == 1
    assert [row["id"] for row in await owner.fetch("select id from mcp_server_users")] == [people[0]]
    statement = "select count(*) from mcp_server_user_identities where mcp_server_user_id = $1"
    assert await owner.fetchval(statement, people[0]) == 9


@pytest.mark.promise("auth.refused")
async def test_eight_wrong_codes_at_once_count_as_five_and_the_right_one_comes_too_late(
    database: Database, owner: asyncpg.Connection, owner_url: str
) -> None:
    stores = Stores(on_postgres(database), PostgresSignInStore(database), PostgresPeople(database))
    key, _ = await stores.begun(await stores.world.server(), SignInState.keeping().send("a@example.com", CODE, NOW))
    async with connections(owner_url, 8) as pools:

        def contender(number: int) -> Callable[[], Awaitable[SignInUnderWay | None]]:
            store = PostgresSignInStore(pools[number])
            return lambda: store.change(key, lambda state: state.try_code(WRONG, NOW), NOW)

        answers = await race(
            owner_url, owner, ["select 1 from oauth_authorizations for update"], [contender(n) for n in range(8)]
        )
    tries = sorted(answer.state.code.wrong_tries for answer in answers)
    assert tries == [1, 2, 3, 4, 5, 5, 5, 5]
    late = await stores.sign_ins.change(key, lambda state: state.try_code(CODE, NOW), NOW)
    assert late is not None
    assert (late.state.stage, late.state.trouble) == (Stage.CODE_SENT, Trouble.CODE_USED_UP)
    assert late.state.code is not None
    assert late.state.code.wrong_tries == MAX_TRIES
