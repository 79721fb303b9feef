"""The authorization server on PostgreSQL: families of tokens, clients, and those who meet in them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from adapters.postgres.authorization import PostgresAuthorizationServer
from adapters.postgres.connections import Database
from adapters.postgres.people import PostgresPersonalDataStore
from adapters.rate_limits import MemoryRateLimits
from adapters.system import RandomIds
from application.authorization import Authorization
from application.limits import rates
from application.ports import OAuthAnswer, SignInKey
from domain.errors import TemporarilyUnavailable, TooManyRequests
from domain.oauth import (
    ACCESS_LIFETIME,
    CODE_LIFETIME,
    DOCUMENT_KEPT,
    DOCUMENT_LIFETIME,
    REFRESH_LIFETIME,
    RETRY_GRACE,
    UNUSED_LIFETIME,
    Site,
)
from domain.sign_in import SIGN_IN_LIFETIME, Stage
from domain.tenancy import Millis, Server, UserId
from tests.fakes import SetClock
from tests.fakes_sign_in import MemoryClientDocuments
from tests.faults.test_races import held_back
from tests.patience import Patient, until_waiting
from tests.worlds import World, on_postgres

NOW = Millis(1_700_000_000_000)
REDIRECT = "http://127.0.0.1:3000/callback"
VERIFIER = "v" * 43
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
DOCUMENT_URL = "https://client.example.com/oauth/client.json"
DOCUMENT = {"client_id": DOCUMENT_URL, "client_name": "Docs", "redirect_uris": ["https://client.example.com/cb"]}
FAMILY = "select 1 from oauth_grants for update"


@dataclass
class Host:
    """One server's authorization server, a client of it and a person there; the time is set by the tests."""

    world: World
    server: Server
    authorization: PostgresAuthorizationServer
    user: UserId
    client_id: str = ""
    now: Millis = NOW
    ids: RandomIds = field(default_factory=RandomIds)

    @property
    def site(self) -> Site:
        return Site(self.server, f"https://{self.server.slug}.example.com")

    def key(self) -> SignInKey:
        return SignInKey(self.server.key, *(hashlib.sha256(self.ids.token().encode()).digest() for _ in "ab"))

    async def register(self, **metadata: Any) -> Mapping[str, Any]:
        given = {"redirect_uris": [REDIRECT], "token_endpoint_auth_method": "none", "client_name": "Editor", **metadata}
        answer = await self.authorization.register(self.site, given, self.now)
        assert answer.status == 201, answer.body
        return answer.body

    async def ask(self, key: SignInKey | None = None, **changed: str | None) -> OAuthAnswer | None:
        asked: dict[str, str | None] = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": REDIRECT,
            "code_challenge": CHALLENGE,
            "code_challenge_method": "S256",
            "state": "xyz",
            **changed,
        }
        given = [(name, value) for name, value in asked.items() if value is not None]
        return await self.authorization.authorize(self.site, given, key or self.key(), self.now)

    async def code(self, **changed: str | None) -> str:
        key = self.key()
        assert await self.ask(key, **changed) is None
        answer = await self.authorization.finish(self.site, key, self.user, self.now)
        return sent_back(answer)["code"]

    async def redeem(self, code: str, /, **changed: str) -> OAuthAnswer:
        given = {
            "grant_type": "authorization_code",
            "code": code,
            "client_id": self.client_id,
            "redirect_uri": REDIRECT,
            "code_verifier": VERIFIER,
            **changed,
        }
        return await self.authorization.token(self.site, list(given.items()), None, self.now)

    async def refresh(self, token: str, /, **changed: str) -> OAuthAnswer:
        given = {"grant_type": "refresh_token", "refresh_token": token, "client_id": self.client_id, **changed}
        return await self.authorization.token(self.site, list(given.items()), None, self.now)

    async def revoke(self, token: str, /, **changed: str) -> OAuthAnswer:
        given = {"token": token, "client_id": self.client_id, **changed}
        return await self.authorization.revoke(self.site, list(given.items()), None, self.now)

    async def sign_in(self, **changed: str | None) -> Mapping[str, Any]:
        answer = await self.redeem(await self.code(**changed))
        assert answer.status == 200, answer.body
        return answer.body

    async def is_good(self, token: str) -> bool:
        token_hash = hashlib.sha256(token.encode()).digest()
        return await self.world.tokens.bearer_of(self.server.key, token_hash, self.now) is not None


def sent_back(answer: OAuthAnswer | None) -> dict[str, str]:
    assert answer is not None
    assert answer.location is not None, answer.body
    return dict(parse_qsl(urlsplit(answer.location).query))


def error_of(answer: OAuthAnswer) -> tuple[int, str]:
    return answer.status, answer.body["error"]


async def make_host(database: Database, slug: str = "guides", organization: str = "acme") -> Host:
    world = on_postgres(database, ids=RandomIds())
    server = await world.server(organization, slug)
    caller = await world.caller(server)
    assert caller.user_id is not None
    host = Host(world, server, PostgresAuthorizationServer(database, RandomIds()), caller.user_id)
    host.client_id = (await host.register())["client_id"]
    return host


@pytest.fixture
async def host(database: Database) -> Host:
    return await make_host(database)


@pytest.fixture
async def processes(owner_url: str, host: Host) -> AsyncIterator[Sequence[PostgresAuthorizationServer]]:
    """Four more processes, with four connections each."""
    async with AsyncExitStack() as stack:
        yield [
            PostgresAuthorizationServer(
                await stack.enter_async_context(Database(Patient(owner_url, assume_role=True))), RandomIds()
            )
            for _ in range(4)
        ]


# ------------------------------------------------------------------------------------------------- families


@pytest.mark.promise("auth.oauth")
async def test_a_code_is_good_for_an_access_token_of_an_hour_and_a_refresh_token(host: Host) -> None:
    tokens = await host.sign_in()
    assert {name: value for name, value in tokens.items() if not name.endswith("_token")} == {
        "token_type": "Bearer",
        "expires_in": 3600,
        "scope": "walkthroughs",
    }
    assert await host.is_good(tokens["access_token"])
    assert not await host.is_good(tokens["refresh_token"])
    host.now = Millis(NOW + ACCESS_LIFETIME)
    assert not await host.is_good(tokens["access_token"])
    assert (await host.refresh(tokens["refresh_token"])).status == 200


async def test_a_code_is_good_for_a_minute(host: Host) -> None:
    codes = [await host.code(), await host.code()]
    host.now = Millis(NOW + CODE_LIFETIME - 1)
    assert (await host.redeem(codes[0])).status == 200
    host.now = Millis(NOW + CODE_LIFETIME)
    assert error_of(await host.redeem(codes[1])) == (400, "invalid_grant")


@pytest.mark.promise("auth.refused")
async def test_a_code_that_comes_again_ends_all_that_came_of_it(host: Host) -> None:
    other = await host.sign_in()
    code = await host.code()
    first = (await host.redeem(code)).body
    second = (await host.refresh(first["refresh_token"])).body
    assert error_of(await host.redeem(code)) == (400, "invalid_grant")
    assert [await host.is_good(each["access_token"]) for each in (first, second, other)] == [False, False, True]
    assert error_of(await host.refresh(second["refresh_token"])) == (400, "invalid_grant")
    assert (await host.refresh(other["refresh_token"])).status == 200


@pytest.mark.promise("auth.refused")
@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"code_verifier": "w" * 43}, "invalid_grant"),
        ({"code_verifier": "short"}, "invalid_grant"),
        ({"code_verifier": ""}, "invalid_request"),
        ({"redirect_uri": "http://127.0.0.1:3001/callback"}, "invalid_grant"),
        ({"redirect_uri": ""}, "invalid_grant"),
        ({"resource": "https://evil.example.com/mcp"}, "invalid_target"),
        ({"code": "cairn_code_unknown"}, "invalid_grant"),
        ({"code": "\N{SNOWMAN}\ud800"}, "invalid_grant"),
        ({"code": "nothing\0"}, "invalid_request"),
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
        ({"grant_type": "p\N{LATIN SMALL LETTER A WITH DIAERESIS}ssword"}, "unsupported_grant_type"),
        ({"grant_type": ""}, "invalid_request"),
    ],
)
async def test_what_does_not_fit_gets_nothing_and_uses_nothing_up(
    host: Host, changed: Mapping[str, str], error: str
) -> None:
    code = await host.code()
    refusal = await host.redeem(code, **changed)
    assert error_of(refusal) == (400, error)
    assert refusal.body["error_description"].isascii()
    assert (await host.redeem(code)).status == 200


@pytest.mark.promise("auth.refused")
async def test_a_code_or_refresh_token_of_another_client_is_good_for_nothing(host: Host) -> None:
    stranger = (await host.register())["client_id"]
    code = await host.code()
    assert error_of(await host.redeem(code, client_id=stranger)) == (400, "invalid_grant")
    tokens = (await host.redeem(code)).body
    assert error_of(await host.redeem(code, client_id=stranger)) == (400, "invalid_grant")
    assert error_of(await host.refresh(tokens["refresh_token"], client_id=stranger)) == (400, "invalid_grant")
    assert error_of(await host.revoke(tokens["refresh_token"], client_id=stranger)) == (400, "invalid_grant")
    assert await host.is_good(tokens["access_token"])


@pytest.mark.promise("auth.refused")
@pytest.mark.parametrize("organization", ["acme", "globex"])
async def test_nothing_of_one_server_is_good_at_another(host: Host, database: Database, organization: str) -> None:
    other = await make_host(database, "other", organization)
    # Even for a client of the same name.
    tokens, code = await host.sign_in(), await host.code()
    clients = "update oauth_clients set client_id = $1 where mcp_server_id = $2"
    async with database.hot_transaction(other.server.key.organization_id) as connection:
        assert await connection.execute(clients, host.client_id, other.server.key.server_id) == "UPDATE 1"
    other.client_id = host.client_id
    assert error_of(await other.redeem(code)) == (400, "invalid_grant")
    assert error_of(await other.refresh(tokens["refresh_token"])) == (400, "invalid_grant")
    assert (await other.revoke(tokens["refresh_token"])).status == 200
    assert not await other.is_good(tokens["access_token"])
    assert await host.is_good(tokens["access_token"])
    assert (await host.redeem(code)).status == 200
    assert (await host.refresh(tokens["refresh_token"])).status == 200


@pytest.mark.promise("auth.oauth")
async def test_a_refresh_token_is_good_for_thirty_days_and_each_refresh_begins_them_anew(host: Host) -> None:
    token = (await host.sign_in())["refresh_token"]
    for _ in range(3):
        host.now = Millis(host.now + REFRESH_LIFETIME - 1)
        answer = await host.refresh(token)
        assert answer.status == 200
        token = answer.body["refresh_token"]
    host.now = Millis(host.now + REFRESH_LIFETIME)
    assert error_of(await host.refresh(token)) == (400, "invalid_grant")


@pytest.mark.promise("auth.oauth")
async def test_a_refresh_that_is_repeated_within_two_minutes_gives_a_pair_beside_the_first(host: Host) -> None:
    token = (await host.sign_in())["refresh_token"]
    first = (await host.refresh(token)).body
    host.now = Millis(NOW + RETRY_GRACE)
    second = (await host.refresh(token)).body
    assert [await host.is_good(each["access_token"]) for each in (first, second)] == [True, True]
    assert [(await host.refresh(each["refresh_token"])).status for each in (first, second)] == [200, 200]


@pytest.mark.promise("auth.refused")
async def test_a_refresh_token_that_comes_again_later_ends_the_family(host: Host) -> None:
    token = (await host.sign_in())["refresh_token"]
    current = (await host.refresh(token)).body
    host.now = Millis(NOW + RETRY_GRACE + 1)
    assert error_of(await host.refresh(token)) == (400, "invalid_grant")
    assert not await host.is_good(current["access_token"])
    assert error_of(await host.refresh(current["refresh_token"])) == (400, "invalid_grant")


async def test_the_two_minutes_count_from_the_first_use(host: Host) -> None:
    token = (await host.sign_in())["refresh_token"]
    for passed, status in ((0, 200), (RETRY_GRACE, 200), (RETRY_GRACE + 1, 400)):
        host.now = Millis(NOW + passed)
        assert (await host.refresh(token)).status == status


async def test_a_refresh_for_another_resource_is_refused_and_uses_nothing_up(host: Host) -> None:
    token = (await host.sign_in())["refresh_token"]
    assert error_of(await host.refresh(token, resource="https://evil.example.com/mcp")) == (400, "invalid_target")
    host.now = Millis(NOW + RETRY_GRACE + 1)
    assert (await host.refresh(token, resource=host.site.resource)).status == 200


async def test_nothing_is_issued_in_a_family_that_an_operator_has_ended(host: Host, owner: asyncpg.Connection) -> None:
    code, token = await host.code(), (await host.sign_in())["refresh_token"]
    await owner.execute("update oauth_grants set revoked_at = $1", NOW)
    assert error_of(await host.redeem(code)) == (400, "invalid_grant")
    assert error_of(await host.refresh(token)) == (400, "invalid_grant")


async def test_a_refresh_may_ask_for_less_but_not_for_more(host: Host) -> None:
    narrow = await host.sign_in()
    assert error_of(await host.refresh(narrow["refresh_token"], scope="walkthroughs offline_access")) == (
        400,
        "invalid_scope",
    )
    for nothing in (
        " ",
        "  ",
        "\t",
        "\N{NO-BREAK SPACE}",
        "\u3000",
        "\u2028",
        "\u0085",
        "walkthroughs\N{NO-BREAK SPACE}",
    ):
        assert error_of(await host.refresh(narrow["refresh_token"], scope=nothing)) == (400, "invalid_scope")
    assert (await host.refresh(narrow["refresh_token"], scope="")).body["scope"] == "walkthroughs"
    wide = await host.sign_in(scope="offline_access walkthroughs openid")
    assert wide["scope"] == "walkthroughs offline_access"
    less = await host.refresh(wide["refresh_token"], scope="walkthroughs")
    assert less.body["scope"] == "walkthroughs"
    # What the person agreed to stands.
    assert (await host.refresh(less.body["refresh_token"])).body["scope"] == "walkthroughs offline_access"


async def test_a_client_without_that_grant_type_gets_no_refresh_token(host: Host) -> None:
    host.client_id = (await host.register(grant_types=["authorization_code"]))["client_id"]
    assert sorted(await host.sign_in()) == ["access_token", "expires_in", "scope", "token_type"]


@pytest.mark.promise("auth.oauth")
async def test_a_revoked_refresh_token_ends_its_family_and_a_revoked_access_token_itself(host: Host) -> None:
    one, two = await host.sign_in(), await host.sign_in()
    assert (await host.revoke(one["access_token"], token_type_hint="refresh_token")).status == 200
    assert not await host.is_good(one["access_token"])
    again = (await host.refresh(one["refresh_token"])).body
    assert (await host.revoke(again["refresh_token"], token_type_hint="no such thing")).status == 200
    assert not await host.is_good(again["access_token"])
    assert error_of(await host.refresh(one["refresh_token"])) == (400, "invalid_grant")
    assert await host.is_good(two["access_token"])
    assert (await host.revoke(again["refresh_token"])).status == 200
    assert (await host.revoke("unknown")).status == 200
    assert error_of(await host.revoke("")) == (400, "invalid_request")


async def test_a_token_that_an_operator_gave_out_cannot_be_ended_by_a_client(host: Host) -> None:
    token = await host.world.identity.create_token(host.server.key, "ada@example.com")
    assert (await host.revoke(token)).status == 200
    assert await host.is_good(token)


@pytest.mark.promise("auth.refused")
async def test_only_hashes_are_stored(host: Host, owner: asyncpg.Connection) -> None:
    secret = (await host.register(token_endpoint_auth_method="client_secret_basic"))["client_secret"]
    code = await host.code()
    tokens = (await host.redeem(code)).body
    tables = ("access_tokens", "oauth_refresh_tokens", "oauth_codes", "oauth_clients", "oauth_grants")
    stored = [str(await owner.fetch(f"select * from {table}")) for table in tables]
    for told in (secret, code, tokens["access_token"], tokens["refresh_token"]):
        assert not any(told in text or told.partition("_")[2] in text for text in stored)


async def test_what_has_expired_is_swept_on_the_way(host: Host, owner: asyncpg.Connection) -> None:
    token = (await host.sign_in())["refresh_token"]
    host.now = Millis(NOW + REFRESH_LIFETIME - 1)
    token = (await host.refresh(token)).body["refresh_token"]
    assert await owner.fetchval("select count(*) from access_tokens where grant_id is not null") == 1
    host.now = Millis(host.now + RETRY_GRACE)
    await host.refresh(token)
    assert await owner.fetchval("select count(*) from oauth_refresh_tokens") == 2
    host.now = Millis(host.now + 2 * REFRESH_LIFETIME)
    await host.sign_in()
    assert await owner.fetchval("select count(*) from oauth_grants") == 1


async def test_what_is_left_of_people_who_never_come_back_goes_with_whoever_comes(
    host: Host, owner: asyncpg.Connection
) -> None:
    await host.sign_in()  # tokens for a month
    await host.code()  # a code, and nothing more
    bob = (await host.world.caller(host.server, "bob@example.com")).user_id
    assert bob is not None
    host.user = bob
    whose = "select mcp_server_user_id = $1 from oauth_grants order by created_at, 1"
    host.now = Millis(NOW + REFRESH_LIFETIME)
    await host.sign_in()
    assert [row[0] for row in await owner.fetch(whose, bob)] == [False, True], "the code's has gone, the other ends now"
    host.now = Millis(NOW + REFRESH_LIFETIME + ACCESS_LIFETIME + 1)
    await host.sign_in()
    assert [row[0] for row in await owner.fetch(whose, bob)] == [True, True]
    assert await owner.fetchval("select count(*) from oauth_refresh_tokens") == 2


async def test_what_was_revoked_lately_or_is_in_use_is_not_swept(host: Host, owner: asyncpg.Connection) -> None:
    in_use, revoked = await host.sign_in(), await host.sign_in()
    host.now = Millis(NOW + REFRESH_LIFETIME - 1)
    in_use = (await host.refresh(in_use["refresh_token"])).body
    await host.revoke(revoked["refresh_token"])
    host.now = Millis(host.now + 2)
    code = await host.code()
    await host.sign_in()
    assert await owner.fetchval("select count(*) from oauth_grants") == 4
    assert (await host.redeem(code)).status == 200
    assert (await host.refresh(in_use["refresh_token"])).status == 200


# --------------------------------------------------------------------------------------------------- meetings


@pytest.mark.promise("auth.refused")
async def test_of_eight_who_redeem_a_code_at_once_one_is_answered_and_then_the_family_ends(
    host: Host, processes: Sequence[PostgresAuthorizationServer], owner: asyncpg.Connection, owner_url: str
) -> None:
    code = await host.code()
    given = {
        "grant_type": "authorization_code",
        "code": code,
        "client_id": host.client_id,
        "redirect_uri": REDIRECT,
        "code_verifier": VERIFIER,
    }
    async with held_back(owner_url, owner, FAMILY, 8):
        tasks = [
            asyncio.create_task(process.token(host.site, list(given.items()), None, NOW))
            for process in processes
            for _ in "ab"
        ]
    answers = await asyncio.gather(*tasks)
    assert sorted(answer.status for answer in answers) == [200, *[400] * 7]
    (tokens,) = [answer.body for answer in answers if answer.status == 200]
    assert not await host.is_good(tokens["access_token"])
    assert error_of(await host.refresh(tokens["refresh_token"])) == (400, "invalid_grant")


@pytest.mark.promise("auth.oauth")
async def test_of_eight_who_refresh_at_once_all_are_answered(
    host: Host, processes: Sequence[PostgresAuthorizationServer], owner: asyncpg.Connection, owner_url: str
) -> None:
    token = (await host.sign_in())["refresh_token"]
    given = [("grant_type", "refresh_token"), ("refresh_token", token), ("client_id", host.client_id)]
    async with held_back(owner_url, owner, FAMILY, 8):
        tasks = [asyncio.create_task(process.token(host.site, given, None, NOW)) for process in processes for _ in "ab"]
    answers = await asyncio.gather(*tasks)
    assert [answer.status for answer in answers] == [200] * 8
    assert len({answer.body["refresh_token"] for answer in answers}) == 8


@pytest.mark.promise("auth.refused")
@pytest.mark.parametrize("first", ["refresh", "revoke"])
async def test_nothing_is_issued_past_a_revocation(
    host: Host,
    processes: Sequence[PostgresAuthorizationServer],
    owner: asyncpg.Connection,
    owner_url: str,
    first: str,
) -> None:
    token = (await host.sign_in())["refresh_token"]
    refresh = [("grant_type", "refresh_token"), ("refresh_token", token), ("client_id", host.client_id)]
    revoke = [("token", token), ("client_id", host.client_id)]
    begin = {
        "refresh": lambda: asyncio.create_task(processes[0].token(host.site, refresh, None, NOW)),
        "revoke": lambda: asyncio.create_task(processes[1].revoke(host.site, revoke, None, NOW)),
    }
    (second,) = begin.keys() - {first}
    # They queue up in this order.
    async with held_back(owner_url, owner, FAMILY, 2):
        tasks = {first: begin[first]()}
        await until_waiting(owner)
        tasks[second] = begin[second]()
    refreshed, revoked = await tasks["refresh"], await tasks["revoke"]
    assert revoked.status == 200
    assert refreshed.status == (200 if first == "refresh" else 400)
    assert await owner.fetchval("select count(*) from access_tokens where grant_id is not null") == 0
    assert await owner.fetchval("select count(*) from oauth_refresh_tokens") == 0


async def test_of_two_who_finish_a_sign_in_at_once_one_does(
    host: Host, processes: Sequence[PostgresAuthorizationServer], owner: asyncpg.Connection, owner_url: str
) -> None:
    key = host.key()
    assert await host.ask(key) is None
    async with held_back(owner_url, owner, "select 1 from oauth_authorizations for update", 2):
        tasks = [
            asyncio.create_task(processes[0].finish(host.site, key, host.user, NOW)),
            asyncio.create_task(processes[1].finish(host.site, key, None, NOW)),
        ]
    answers = await asyncio.gather(*tasks)
    assert sorted(answer.location is None for answer in answers) == [False, True]


@pytest.mark.parametrize("first", ["finish", "erase"])
async def test_whoever_is_erased_while_they_finish_is_given_nothing_and_nobody_waits_in_a_circle(
    host: Host, database: Database, owner: asyncpg.Connection, owner_url: str, first: str
) -> None:
    key, organization_id = host.key(), host.server.key.organization_id
    assert await host.ask(key) is None
    # As it stands once they have proven their address.
    await owner.execute('update oauth_authorizations set sign_in = sign_in || \'{"email": "ada@example.com"}\'')
    people = PostgresPersonalDataStore(database)
    begin = {
        "finish": lambda: asyncio.create_task(host.authorization.finish(host.site, key, host.user, NOW)),
        "erase": lambda: asyncio.create_task(people.erase(organization_id, [host.user], Millis(0))),
    }
    (second,) = begin.keys() - {first}
    # They queue up in this order.
    async with held_back(owner_url, owner, "select 1 from oauth_authorizations for update", 2):
        tasks: dict[str, asyncio.Task[Any]] = {first: begin[first]()}
        await until_waiting(owner)
        tasks[second] = begin[second]()
    finished, erased = await tasks["finish"], await tasks["erase"]
    assert (finished.location is not None) is (first == "finish")
    assert erased == 0
    for table in ("mcp_server_users", "oauth_authorizations", "oauth_grants", "oauth_codes"):
        assert await owner.fetchval(f"select count(*) from {table}") == 0


async def test_whoever_finds_no_connection_free_is_told_to_come_again(host: Host, database: Database) -> None:
    async with AsyncExitStack() as held:
        for _ in range(4):
            await (await held.enter_async_context(database.transaction(None))).execute(text("select 1"))
        with pytest.raises(TemporarilyUnavailable):
            await host.refresh("token")
    assert error_of(await host.refresh("token")) == (400, "invalid_grant")


async def test_a_statement_that_fails_does_not_say_what_was_to_be_stored(database: Database) -> None:
    with pytest.raises(DBAPIError, match="division by zero") as failed:
        async with database.transaction(None) as connection:
            await connection.execute(text("select cast(:email as text), 1 / 0"), {"email": "ada@example.com"})
    assert "ada@example.com" not in str(failed.value)


# --------------------------------------------------------------------------------------- asking and finishing


async def test_a_sign_in_begins_with_what_the_person_has_to_know(host: Host, owner: asyncpg.Connection) -> None:
    assert await host.ask(redirect_uri="http://127.0.0.1:51234/callback") is None
    (row,) = await owner.fetch("select sign_in, request, expires_at from oauth_authorizations")
    state = json.loads(row["sign_in"])
    assert (state["stage"], state["client"]["name"], state["client"]["redirect_host"]) == (
        Stage.ASKED,
        "Editor",
        "127.0.0.1",
    )
    assert row["expires_at"] == NOW + SIGN_IN_LIFETIME


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"code_challenge": None, "code_challenge_method": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge_method": None}, "invalid_request"),
        ({"code_challenge": "short"}, "invalid_request"),
        ({"code_challenge": CHALLENGE + "\n"}, "invalid_request"),
        ({"response_type": None}, "invalid_request"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"response_type": "\N{SNOWMAN}"}, "unsupported_response_type"),
        ({"response_mode": "fragment"}, "invalid_request"),
        ({"scope": "admin"}, "invalid_scope"),
        ({"scope": "\u3000"}, "invalid_scope"),
        ({"resource": "https://evil.example.com/mcp"}, "invalid_target"),
    ],
)
async def test_a_client_is_told_by_a_redirect_what_is_wrong(
    host: Host, owner: asyncpg.Connection, changed: Mapping[str, str | None], error: str
) -> None:
    told = sent_back(await host.ask(state="a b&c=\N{SNOWMAN}", **changed))
    description = told.pop("error_description")
    assert description.isascii()
    assert told == {"error": error, "state": "a b&c=\N{SNOWMAN}", "iss": host.site.issuer}
    assert await owner.fetchval("select count(*) from oauth_authorizations") == 0


@pytest.mark.promise("auth.refused")
@pytest.mark.parametrize(
    "changed",
    [
        {"client_id": None},
        {"client_id": "unknown"},
        {"client_id": "https://client.example.com/unread"},
        {"redirect_uri": "http://127.0.0.1:3000/elsewhere"},
        {"redirect_uri": "https://evil.example.com/callback"},
        {"redirect_uri": "http://localhost:3000/callback"},
        {"state": "nothing\0"},
    ],
)
async def test_nobody_is_redirected_where_that_is_not_safe(host: Host, changed: Mapping[str, str | None]) -> None:
    answer = await host.ask(**changed)
    assert answer is not None
    assert (answer.status, answer.location, answer.body["error"]) == (400, None, "invalid_request")


async def test_a_parameter_that_comes_twice_is_refused_without_a_redirect(host: Host) -> None:
    for name in ("client_id", "redirect_uri", "state", "resource", "unknown"):
        given = [("client_id", host.client_id), ("redirect_uri", REDIRECT), (name, "a"), (name, "")]
        answer = await host.authorization.authorize(host.site, given, host.key(), NOW)
        assert answer is not None
        assert (answer.status, answer.location) == (400, None)
        twice = [("grant_type", "refresh_token"), ("client_id", host.client_id), (name, "a"), (name, "a")]
        assert error_of(await host.authorization.token(host.site, twice, None, NOW)) == (400, "invalid_request")


async def test_the_way_back_keeps_the_query_and_says_who_answers(host: Host) -> None:
    uri = "https://client.example.com/cb?a=b+c&d"
    host.client_id = (await host.register(redirect_uris=[uri]))["client_id"]
    key = host.key()
    # With one address registered it need not be named.
    assert await host.ask(key, redirect_uri=None) is None
    answer = await host.authorization.finish(host.site, key, None, NOW)
    assert answer.location is not None
    assert answer.location.startswith(f"{uri}&error=access_denied&")
    assert answer.location.endswith("&state=xyz&iss=https%3A%2F%2Fguides.example.com")
    assert answer.status == 303


async def test_a_sign_in_is_finished_once_in_its_time_and_by_its_own_browser(host: Host) -> None:
    key, late = host.key(), host.key()
    assert await host.ask(key) is None
    assert await host.ask(late) is None
    stranger = SignInKey(key.server, key.id_hash, host.key().browser_hash)
    for other in (stranger, host.key()):
        answer = await host.authorization.finish(host.site, other, host.user, NOW)
        assert (answer.status, answer.location) == (400, None)
    host.now = Millis(NOW + SIGN_IN_LIFETIME - 1)
    assert "code" in sent_back(await host.authorization.finish(host.site, key, host.user, host.now))
    assert (await host.authorization.finish(host.site, key, host.user, host.now)).location is None
    host.now = Millis(NOW + SIGN_IN_LIFETIME)
    assert (await host.authorization.finish(host.site, late, host.user, host.now)).location is None


async def test_somebody_who_was_erased_meanwhile_is_given_nothing(host: Host, owner: asyncpg.Connection) -> None:
    key = host.key()
    assert await host.ask(key) is None
    await owner.execute("delete from mcp_server_users")
    assert (await host.authorization.finish(host.site, key, host.user, NOW)).location is None
    assert await owner.fetchval("select count(*) from oauth_grants") == 0


async def test_a_client_that_has_changed_meanwhile_is_not_sent_anything(host: Host) -> None:
    await host.authorization.keep_document(host.site, DOCUMENT_URL, DOCUMENT, NOW)
    key = host.key()
    asked = {"client_id": DOCUMENT_URL, "redirect_uri": DOCUMENT["redirect_uris"][0]}
    assert await host.ask(key, **asked) is None
    moved = {**DOCUMENT, "redirect_uris": ["https://client.example.com/moved"]}
    await host.authorization.keep_document(host.site, DOCUMENT_URL, moved, NOW)
    assert (await host.authorization.finish(host.site, key, host.user, NOW)).location is None


# --------------------------------------------------------------------------------------------------- clients


async def test_a_registration_is_told_back_as_it_was_taken(host: Host) -> None:
    told = await host.register(
        client_name="  Ed\u202eitor\n\t3 ",
        grant_types=["authorization_code", "refresh_token", "urn:example:unknown"],
        logo_uri="https://evil.example.com/logo.png",
        software_statement="x",
    )
    client_id = told["client_id"]
    assert told == {
        "client_id": client_id,
        "client_id_issued_at": NOW // 1000,
        "client_name": "Editor 3",
        "redirect_uris": [REDIRECT],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": "none",
    }


@pytest.mark.parametrize("method", [None, "client_secret_basic", "client_secret_post"])
@pytest.mark.parametrize("sent", ["header", "form"])
async def test_a_client_with_a_secret_has_to_send_it(host: Host, method: str | None, sent: str) -> None:
    told = await host.register(token_endpoint_auth_method=method)
    host.client_id = told["client_id"]
    assert told["client_secret_expires_at"] == 0
    code = await host.code()

    async def redeem(secret: str) -> OAuthAnswer:
        given = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": REDIRECT,
            "code_verifier": VERIFIER,
        }
        header = None
        if sent == "form":
            given |= {"client_id": host.client_id, "client_secret": secret}
        else:
            header = f"Basic {base64.b64encode(f'{host.client_id}:{secret}'.encode()).decode()}"
        return await host.authorization.token(host.site, list(given.items()), header, NOW)

    assert error_of(await host.redeem(code)) == (401, "invalid_client")
    refused = await redeem("wrong")
    assert error_of(refused) == (401, "invalid_client")
    assert refused.challenge == (None if sent == "form" else 'Basic realm="cairn"')
    assert (await redeem(told["client_secret"])).status == 200


@pytest.mark.parametrize("credentials", ["", " ", " !", " /w==", " \N{SNOWMAN}", " YQAB", " JTAwOmE=", " YTpi"])
async def test_a_header_that_cannot_be_read_is_a_client_that_is_not_known(host: Host, credentials: str) -> None:
    given = [("grant_type", "refresh_token"), ("refresh_token", "x")]
    refused = await host.authorization.token(host.site, given, f"Basic{credentials}", NOW)
    assert error_of(refused) == (401, "invalid_client")
    assert refused.challenge == 'Basic realm="cairn"'


async def test_an_unknown_client_gets_401_and_no_challenge_where_it_sent_no_header(host: Host) -> None:
    for answer in (
        await host.redeem("code", client_id="unknown"),
        await host.refresh("token", client_id="unknown"),
        await host.revoke("token", client_id="unknown"),
        await host.revoke("token", client_id=""),
    ):
        assert error_of(answer) == (401, "invalid_client")
        assert answer.challenge is None


async def test_a_registration_that_was_never_used_is_refused_after_thirty_days_and_then_forgotten(
    host: Host, owner: asyncpg.Connection
) -> None:
    used = host.client_id
    await host.sign_in()
    unused = (await host.register())["client_id"]
    host.now = Millis(NOW + UNUSED_LIFETIME - 1)
    key = host.key()
    assert await host.ask(key, client_id=unused) is None
    host.now = Millis(NOW + UNUSED_LIFETIME)
    refused = await host.ask(client_id=unused)
    assert refused is not None
    assert refused.location is None
    assert await host.ask(client_id=used) is None
    # The sign-in that was begun in time can still end well.
    host.now = Millis(NOW + UNUSED_LIFETIME + SIGN_IN_LIFETIME - 2)
    await host.register()
    code = sent_back(await host.authorization.finish(host.site, key, host.user, host.now))["code"]
    assert (await host.redeem(code, client_id=unused)).status == 200
    forgotten = (await host.register())["client_id"]
    host.now = Millis(host.now + UNUSED_LIFETIME + SIGN_IN_LIFETIME + 1)
    await host.register()
    left = {row[0] for row in await owner.fetch("select client_id from oauth_clients")}
    assert forgotten not in left
    assert {used, unused} < left


async def test_what_anybody_may_leave_behind_is_forgotten_when_somebody_signs_in(
    host: Host, owner: asyncpg.Connection
) -> None:
    await host.sign_in()
    await host.register()
    await host.authorization.keep_document(host.site, DOCUMENT_URL, DOCUMENT, NOW)
    host.now = Millis(NOW + UNUSED_LIFETIME + SIGN_IN_LIFETIME)
    for number, left in enumerate((3, 1)):
        host.now = Millis(host.now + number)
        assert await host.ask() is None
        assert await owner.fetchval("select count(*) from oauth_clients") == left


async def test_a_document_is_good_for_a_day_and_wanted_again_after_an_hour(host: Host) -> None:
    asked = {"client_id": DOCUMENT_URL, "redirect_uri": DOCUMENT["redirect_uris"][0]}
    assert await host.authorization.wants_document(host.site, DOCUMENT_URL, NOW)
    assert (await host.ask(**asked)) is not None
    await host.authorization.keep_document(host.site, DOCUMENT_URL, DOCUMENT, NOW)
    for passed, is_wanted, is_good in (
        (0, False, True),
        (DOCUMENT_LIFETIME - 1, False, True),
        (DOCUMENT_LIFETIME, True, True),
        (DOCUMENT_KEPT - 1, True, True),
        (DOCUMENT_KEPT, True, False),
    ):
        host.now = Millis(NOW + passed)
        assert await host.authorization.wants_document(host.site, DOCUMENT_URL, host.now) is is_wanted
        assert (await host.ask(**asked) is None) is is_good


@pytest.mark.parametrize(
    "document", [None, {**DOCUMENT, "client_id": f"{DOCUMENT_URL}?"}, {**DOCUMENT, "redirect_uris": ["javascript:1"]}]
)
async def test_a_document_that_is_gone_makes_the_client_unknown_but_signs_nobody_out(
    host: Host, document: Mapping[str, Any] | None
) -> None:
    host.client_id = DOCUMENT_URL
    asked = {"redirect_uri": "https://client.example.com/cb"}
    await host.authorization.keep_document(host.site, DOCUMENT_URL, DOCUMENT, NOW)
    tokens, begun = (await host.redeem(await host.code(**asked), **asked)).body, host.key()
    assert await host.ask(begun, **asked) is None
    host.now = Millis(NOW + 1)
    await host.authorization.keep_document(host.site, DOCUMENT_URL, document, host.now)
    refused = await host.ask(**asked)
    unknown = await host.ask(client_id="unknown", **asked)
    assert refused == unknown
    assert await host.authorization.wants_document(host.site, DOCUMENT_URL, host.now)
    # Nor is a sign-in ended that was begun before.
    code = sent_back(await host.authorization.finish(host.site, begun, host.user, host.now))["code"]
    assert (await host.redeem(code, **asked)).status == 200
    assert (await host.refresh(tokens["refresh_token"])).status == 200


async def test_a_document_is_fetched_once_an_hour_and_while_no_transaction_is_open(
    host: Host, owner: asyncpg.Connection
) -> None:
    open_transactions = []

    async def look() -> None:
        query = (
            "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'cairn'"
            " and state like 'idle in trans%'"
        )
        open_transactions.append(await owner.fetchval(query))

    documents = MemoryClientDocuments({DOCUMENT_URL: DOCUMENT}, meanwhile=look)
    clock = SetClock(NOW)
    use_case = Authorization(host.authorization, documents, MemoryRateLimits(rates("")), clock)

    async def ask(client_id: str) -> OAuthAnswer | None:
        asked = {
            "client_id": client_id,
            "redirect_uri": "https://client.example.com/cb",
            "response_type": "code",
            "code_challenge": CHALLENGE,
            "code_challenge_method": "S256",
        }
        secrets = host.ids.token(), host.ids.token()
        return await use_case.authorize(host.site, list(asked.items()), *secrets, "192.0.2.1")

    for passed in (0, 0, DOCUMENT_LIFETIME - 1, DOCUMENT_LIFETIME, DOCUMENT_LIFETIME):
        clock.time = NOW + passed
        assert await ask(DOCUMENT_URL) is None
    assert documents.asked_for == [DOCUMENT_URL] * 2
    missing = "https://client.example.com/missing.json"
    assert await ask(missing) == await ask("unknown")
    assert documents.asked_for == [DOCUMENT_URL, DOCUMENT_URL, missing]
    assert open_transactions == [0, 0, 0]
    # While it cannot be had, it is looked up each time, and what it last said is good for a day.
    documents.is_away = True
    read_at = NOW + DOCUMENT_LIFETIME
    for passed, is_good in ((DOCUMENT_LIFETIME, True), (DOCUMENT_KEPT - 1, True), (DOCUMENT_KEPT, False)):
        clock.time = read_at + passed
        assert await ask(DOCUMENT_URL) == (None if is_good else await ask("unknown"))
    assert documents.asked_for[3:] == [DOCUMENT_URL] * 3
    assert await ask(missing) == await ask("unknown")
    # Once it says that it is gone, it is.
    documents.is_away = False
    assert await ask(DOCUMENT_URL) is None
    del documents.documents[DOCUMENT_URL]
    clock.time += DOCUMENT_LIFETIME
    assert await ask(DOCUMENT_URL) == await ask("unknown")


async def test_nothing_is_looked_up_for_whoever_asks_too_often(host: Host) -> None:
    documents = MemoryClientDocuments()
    limits = MemoryRateLimits(rates("sign_ins_per_network=1/60 registrations_per_server=1/60"))
    use_case = Authorization(host.authorization, documents, limits, SetClock(NOW))
    given = [("client_id", DOCUMENT_URL)]
    await use_case.authorize(host.site, given, "id", "browser", "192.0.2.1")
    # Neighbours share a network.
    with pytest.raises(TooManyRequests):
        await use_case.authorize(host.site, given, "id", "browser", "192.0.2.2")
    await use_case.authorize(host.site, given, "id", "browser", "198.51.100.1")
    assert len(documents.asked_for) == 2
    await use_case.register(host.site, {"redirect_uris": [REDIRECT]}, "192.0.2.1")
    with pytest.raises(TooManyRequests):
        await use_case.register(host.site, {"redirect_uris": [REDIRECT]}, "198.51.100.1")


async def test_no_document_is_wanted_of_a_client_that_registered(host: Host) -> None:
    for client_id in (host.client_id, "", "http://client.example.com/a", "https://client.example.com", "\0"):
        assert not await host.authorization.wants_document(host.site, client_id, NOW)


@pytest.mark.promise("auth.refused")
async def test_no_line_of_the_log_holds_a_secret(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        code = await host.code()
        tokens = (await host.redeem(code)).body
        await host.refresh(tokens["refresh_token"])
    for secret in (code, tokens["access_token"], tokens["refresh_token"]):
        assert secret not in caplog.text
