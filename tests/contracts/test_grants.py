"""What lets people in, as an operator sees and ends it: the tokens they gave out, and grants to clients."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import asyncpg
import pytest

from adapters.postgres.connections import Database
from adapters.postgres.tenancy import PostgresTokenStore
from application.identity import Identity
from application.ports import TokenListing
from domain.oauth import CODE_LIFETIME, REFRESH_LIFETIME
from domain.tenancy import Millis, UserId
from tests.contracts.test_authorization import FAMILY, NOW, Host, error_of, make_host
from tests.fakes import SetClock
from tests.faults.test_races import held_back
from tests.patience import Patient, until_waiting
from tests.worlds import World


@pytest.fixture
async def host(database: Database) -> Host:
    """A host on which only its client is let in: nobody has a token of the operator's."""
    host = await make_host(database)
    assert await host.world.identity.revoke_all_of(host.server.key, "ada@example.com") == 1
    host.world.clock.time = NOW
    return host


async def listed(host: Host, limit: int = 9, user: UserId | None = None) -> Sequence[TokenListing]:
    host.world.clock.time = host.now
    organization_id = host.server.key.organization_id
    return await host.world.identity.tokens(organization_id, user_id=user, limit=limit)


async def the_grant(host: Host) -> str:
    (grant,) = await listed(host)
    assert grant.grant_id is not None
    return grant.grant_id


async def test_tokens_are_listed_newest_first_of_everybody_a_server_or_a_person(world: World) -> None:
    guides, labs = await world.server(), await world.server(slug="labs")
    ada = await world.caller(guides)
    world.clock.time += 1
    await world.caller(labs, "bob@example.com")
    world.clock.time += 1
    await world.caller(labs)
    await world.caller(await world.server("globex", "foreign"))
    organization_id = guides.key.organization_id
    for given, expected in (
        ({"limit": 9}, [("labs", "ada"), ("labs", "bob"), ("guides", "ada")]),
        ({"limit": 2}, [("labs", "ada"), ("labs", "bob")]),
        ({"limit": 9, "server_id": labs.key.server_id}, [("labs", "ada"), ("labs", "bob")]),
        ({"limit": 9, "user_id": ada.user_id}, [("labs", "ada"), ("guides", "ada")]),
        ({"limit": 9, "user_id": ada.user_id, "server_id": guides.key.server_id}, [("guides", "ada")]),
    ):
        found = await world.identity.tokens(organization_id, **given)  # type: ignore[arg-type]
        assert [(each.server, each.email) for each in found] == [
            (server, f"{who}@example.com") for server, who in expected
        ], given
        assert {(each.grant_id, each.client_name, each.ends_at) for each in found} == {(None, None, None)}


async def test_a_grant_is_listed_once_with_its_client_for_as_long_as_it_is_good(host: Host) -> None:
    code = await host.code()
    (grant,) = await listed(host)
    assert (grant.email, grant.client_id, grant.client_name) == ("ada@example.com", host.client_id, "Editor")
    assert (grant.created_at, grant.ends_at, grant.scope) == (NOW, NOW + CODE_LIFETIME, "walkthroughs")
    tokens = (await host.redeem(code)).body
    host.now = Millis(NOW + 5_000)
    assert (await host.refresh(tokens["refresh_token"])).status == 200
    end = host.now + REFRESH_LIFETIME
    assert [(each.grant_id, each.ends_at) for each in await listed(host)] == [(grant.grant_id, end)]
    host.now = Millis(end - 1)
    assert len(await listed(host)) == 1
    host.now = Millis(end)
    assert await listed(host) == []
    assert await host.world.identity.revoke_grant(host.server.key, grant.grant_id or "") == 0


@pytest.mark.promise("auth.oauth")
@pytest.mark.parametrize("by", ["access token", "refresh token", "address", "grant", "client id", "client name"])
async def test_a_grant_that_is_revoked_ends_with_all_that_came_of_it_and_no_other(host: Host, by: str) -> None:
    identity, key = host.world.identity, host.server.key
    tokens = await host.sign_in()
    second = (await host.refresh(tokens["refresh_token"])).body
    grant_id = await the_grant(host)
    bob = await host.world.caller(host.server, "bob@example.com")
    assert bob.user_id is not None
    other = Host(host.world, host.server, host.authorization, bob.user_id)
    other.client_id = (await other.register(client_name="Other"))["client_id"]
    others = await other.sign_in()
    ended = {
        "access token": lambda: identity.revoke(key, tokens["access_token"]),
        "refresh token": lambda: identity.revoke(key, second["refresh_token"]),
        "address": lambda: identity.revoke_all_of(key, "Ada@example.com"),
        "grant": lambda: identity.revoke_grant(key, grant_id),
        "client id": lambda: identity.revoke_client(key, host.client_id),
        "client name": lambda: identity.revoke_client(key, "Editor"),
    }[by]
    assert await ended() == 1
    for token in (tokens["access_token"], second["access_token"]):
        assert not await host.is_good(token)
    for token in (tokens["refresh_token"], second["refresh_token"]):
        assert error_of(await host.refresh(token)) == (400, "invalid_grant")
    assert await ended() == 0
    assert await other.is_good(others["access_token"])
    assert (await other.refresh(others["refresh_token"])).status == 200
    assert [each.client_name for each in await listed(host)] == ["Other", None]  # the second is bob's, of the operator


async def test_a_code_of_a_revoked_grant_is_good_for_nothing(host: Host) -> None:
    code = await host.code()
    assert await host.world.identity.revoke_grant(host.server.key, await the_grant(host)) == 1
    assert error_of(await host.redeem(code)) == (400, "invalid_grant")


@pytest.mark.parametrize(("organization", "slug"), [("acme", "labs"), ("globex", "labs")])
async def test_nothing_of_one_server_is_revoked_on_another(
    host: Host, database: Database, organization: str, slug: str
) -> None:
    tokens = await host.sign_in()
    grant_id = await the_grant(host)
    other = await host.world.server(organization, slug)
    identity = host.world.identity
    assert await identity.revoke_grant(other.key, grant_id) == 0
    assert await identity.revoke_client(other.key, "Editor") == 0
    assert await identity.revoke_all_of(other.key, "ada@example.com") == 0
    for token in tokens["access_token"], tokens["refresh_token"]:
        assert await identity.revoke(other.key, token) == 0
    assert await host.is_good(tokens["access_token"])


@pytest.mark.promise("auth.oauth")
async def test_by_any_address_of_theirs_a_person_is_let_in_no_more(host: Host, owner: asyncpg.Connection) -> None:
    tokens = await host.sign_in()
    await owner.execute(
        "insert into mcp_server_user_identities select organization_id, 'email', 'ada@work.example', id, 1"
        " from mcp_server_users where email = 'ada@example.com'"
    )
    assert await host.world.identity.revoke_all_of(host.server.key, "ada@work.example") == 1
    assert not await host.is_good(tokens["access_token"])


@pytest.mark.promise("auth.oauth")
@pytest.mark.parametrize("first", ["refresh", "revoke"])
async def test_nothing_is_issued_past_an_operators_revocation(
    host: Host, owner: asyncpg.Connection, owner_url: str, first: str
) -> None:
    token = (await host.sign_in())["refresh_token"]
    grant_id = await the_grant(host)
    async with Database(Patient(owner_url, assume_role=True)) as another:
        identity = Identity(PostgresTokenStore(another), host.ids, SetClock(NOW))
        begin = {
            "refresh": lambda: asyncio.create_task(host.refresh(token)),
            "revoke": lambda: asyncio.create_task(identity.revoke_grant(host.server.key, grant_id)),
        }
        (second,) = begin.keys() - {first}
        async with held_back(owner_url, owner, FAMILY, 2):
            tasks = {first: begin[first]()}
            await until_waiting(owner)
            tasks[second] = begin[second]()
        assert await tasks["revoke"] == 1
        assert (await tasks["refresh"]).status == (200 if first == "refresh" else 400)
    assert await owner.fetchval("select count(*) from access_tokens") == 0
    assert await owner.fetchval("select count(*) from oauth_refresh_tokens") == 0
