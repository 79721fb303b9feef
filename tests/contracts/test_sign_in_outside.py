"""What signing in asks of others, and what it compares: never within a transaction, and in constant time."""

from __future__ import annotations

import hmac

import asyncpg
import pytest

from adapters.postgres.connections import Database
from adapters.postgres.sign_in import PostgresPeople, PostgresSignInStore
from adapters.postgres.visitors import PostgresVisitorStore
from adapters.rate_limits import MemoryRateLimits
from application.limits import rates
from application.ports import Parameters, ProvenIdentity
from application.sign_in import Page, SignIn
from application.visitors import Visitors
from domain.oauth import proves
from domain.sign_in import OidcProvider
from tests.contracts.test_authorization import CHALLENGE, NOW, VERIFIER, Host, make_host
from tests.fakes import SetClock

_PROVIDER = OidcProvider("https://login.example.com", "cairn", "secret", "Example")
_OPEN = """
select count(*) from pg_stat_activity
 where datname = current_database() and application_name = 'cairn' and state like 'idle in trans%'
"""


class _Outside:
    """A mail server and an identity provider in one, who look whether a transaction is open meanwhile."""

    where = None

    def __init__(self, owner: asyncpg.Connection) -> None:
        self._owner = owner
        self.codes: list[str] = []
        self.open_transactions: list[int] = []

    async def _look(self) -> None:
        self.open_transactions.append(await self._owner.fetchval(_OPEN))

    async def send(self, to: str, subject: str, text: str) -> bool:
        await self._look()
        self.codes.append(text.split("\n")[0])
        return True

    async def begin(self, provider: OidcProvider, return_to: str, state: str, nonce: str, verifier: str) -> str:
        await self._look()
        return f"https://login.example.com/?state={state}"

    async def complete(
        self, provider: OidcProvider, return_to: str, parameters: Parameters, nonce: str, verifier: str
    ) -> ProvenIdentity:
        await self._look()
        return ProvenIdentity(provider.issuer, "ada", "ada@example.com", is_email_verified=True)

    async def check(self, provider: OidcProvider) -> None:
        raise AssertionError("nobody sets a provider here")


@pytest.fixture
async def host(database: Database) -> Host:
    return await make_host(database)


@pytest.fixture
def outside(owner: asyncpg.Connection) -> _Outside:
    return _Outside(owner)


@pytest.fixture
def sign_in(host: Host, database: Database, outside: _Outside) -> SignIn:
    world, limits, clock = host.world, MemoryRateLimits(rates("")), SetClock(NOW)
    visitors = Visitors(
        PostgresVisitorStore(database), world.catalogue, world.library, world.progress, limits, host.ids, clock
    )
    stores = PostgresSignInStore(database), PostgresPeople(database), world.tenants
    return SignIn(*stores, host.authorization, outside, visitors, outside, limits, host.ids, clock)


async def _begun(host: Host, sign_in: SignIn) -> Page:
    page = Page(host.site, host.ids.token(), host.ids.token())
    assert await host.ask(page.key) is None
    await sign_in.approve(page)
    return page


@pytest.mark.promise("auth.oauth")
async def test_no_message_is_sent_and_no_provider_asked_while_a_transaction_is_open(
    host: Host, sign_in: SignIn, outside: _Outside
) -> None:
    page = await _begun(host, sign_in)
    await sign_in.send_code(page, "ada@example.com", "192.0.2.1")
    assert await sign_in.try_code(page, outside.codes[-1], "192.0.2.1") is not None

    await host.world.tenants.set_provider(host.server.key.organization_id, _PROVIDER, NOW)
    page = await _begun(host, sign_in)
    away = await sign_in.leave(page, "192.0.2.1")
    assert away is not None
    _, back = await sign_in.come_back(host.site, page.browser, [("state", away.partition("=")[2]), ("code", "x")])
    assert back is not None
    assert outside.open_transactions == [0, 0, 0]


@pytest.mark.promise("auth.refused")
async def test_secrets_are_compared_in_constant_time(
    host: Host, sign_in: SignIn, outside: _Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def recorded(ours: bytes, theirs: bytes) -> bool:
        compared.append((bytes(ours), bytes(theirs)))
        return compare(ours, theirs)

    monkeypatch.setattr(hmac, "compare_digest", recorded)

    assert proves(VERIFIER, CHALLENGE)
    assert compared.pop() == (CHALLENGE.encode(), CHALLENGE.encode())

    page = await _begun(host, sign_in)
    await sign_in.send_code(page, "ada@example.com", "192.0.2.1")
    compared.clear()
    assert await sign_in.try_code(page, "nothing", "192.0.2.1") is None
    assert (page.hash_of_code(outside.codes[-1]), page.hash_of_code("nothing")) in compared

    secret = (await host.register(token_endpoint_auth_method="client_secret_post"))["client_secret"]
    compared.clear()
    given = {"grant_type": "refresh_token", "refresh_token": "x", "client_secret": f"{secret}x"}
    client_id = (await host.register(token_endpoint_auth_method="client_secret_post"))["client_id"]
    answer = await host.authorization.token(host.site, list({**given, "client_id": client_id}.items()), None, NOW)
    assert (answer.status, answer.body["error"], len(compared)) == (401, "invalid_client", 1)

    await host.world.tenants.set_provider(host.server.key.organization_id, _PROVIDER, NOW)
    page = await _begun(host, sign_in)
    away = await sign_in.leave(page, "192.0.2.1")
    assert away is not None
    compared.clear()
    await sign_in.come_back(host.site, page.browser, [("state", f"{away.partition('=')[2]}x"), ("code", "x")])
    assert len(compared) == 1, "a state that is not the one awaited"
