"""The official MCP client with its own OAuth, as assistants have it: what it does without being told anything but the
address of a server, and a person who signs in by the pages."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
import httpx2
import pytest
from mcp import Client
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken

from domain.tenancy import AuthMode
from tests.processes import Learner, Serving, serving
from tests.serving.conftest import assert_that_events_replay
from tests.sign_in.conftest import NO_LIMITS, REDIRECT_URI, Browser, Host, Mailbox, answered

DOCUMENT = "https://assistant.example.com/client.json"
REVISIONS = {"auto": "2026-07-28", "legacy": "2025-11-25"}


@pytest.fixture(scope="module")
def service(owner_url: str, mailbox: Mailbox) -> Iterator[Serving]:
    """`cairn serve`, to which the web holds one document of a client."""
    document = {
        "client_id": DOCUMENT,
        "client_name": "Documented assistant",
        "redirect_uris": [REDIRECT_URI],
        "grant_types": ["authorization_code", "refresh_token"],
    }
    with serving(
        "serve", "--port", "0", module="tests.sign_in.documented_clients",
        CAIRN_DATABASE_URL=owner_url, CAIRN_SMTP_URL=mailbox.url, CAIRN_LIMITS=NO_LIMITS,
        CLIENT_DOCUMENTS=json.dumps({DOCUMENT: document}),
    ) as running:  # fmt: skip
        yield running


class ByName(httpx2.AsyncHTTPTransport):
    """Finds every host on this machine, as browsers find those below `localhost`."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.url = request.url.copy_with(host="127.0.0.1")
        return await super().handle_async_request(request)


@dataclass
class Machine:
    """What an assistant keeps on one machine between its runs: mcp's `TokenStorage`, and the browser that it opens."""

    host: Host
    browser: Browser
    email: str = "ada@example.com"
    tokens: OAuthToken | None = None
    client: OAuthClientInformationFull | None = None
    sign_ins: list[dict[str, str]] = field(default_factory=list)
    """What each sign-in answered the client."""

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info

    async def show(self, url: str) -> None:
        """What the client does with the address of the authorization server's page."""
        assert url.startswith(f"{self.host.origin}/authorize?")
        location = await self.browser.sign_in(url.removeprefix(self.host.origin), self.email)
        assert location.startswith(f"{REDIRECT_URI}?")
        self.sign_ins.append(answered(location))

    async def answer(self) -> AuthorizationCodeResult:
        return AuthorizationCodeResult.model_validate(self.sign_ins[-1])

    async def revoke(self) -> None:
        """Signs the assistant out, at the authorization server alone."""
        assert self.tokens is not None
        assert self.tokens.refresh_token is not None
        assert self.client is not None
        form = {"token": self.tokens.refresh_token, "client_id": self.client.client_id}
        revoked = await (await self.host.http()).post("/revoke", data=form)
        assert revoked.status_code == 200, revoked.text


@dataclass
class Assistant(Learner):
    """An assistant that runs."""

    oauth: OAuthClientProvider

    def expire(self) -> None:
        """An hour passes: the client knows from `expires_in` that its access token is of no use any more."""
        assert self.oauth.context.token_expiry_time is not None
        self.oauth.context.token_expiry_time -= 3_601


@asynccontextmanager
async def run(machine: Machine, era: str = "auto", document: str | None = None) -> AsyncIterator[Assistant]:
    """Runs the assistant of a machine on its server. `era` as in `learner`; `document` is its client-id."""
    url = f"{machine.host.origin}/mcp"
    metadata = OAuthClientMetadata.model_validate(
        {"client_name": "Official client", "redirect_uris": [REDIRECT_URI], "token_endpoint_auth_method": "none"}
    )
    oauth = OAuthClientProvider(url, metadata, machine, machine.show, machine.answer, document)
    async with httpx2.AsyncClient(auth=oauth, transport=ByName(), timeout=30) as http:  # noqa: SIM117
        async with Client(streamable_http_client(url, http_client=http), mode=era) as client:
            yield Assistant(client, oauth)


async def machine(host: Host, email: str = "ada@example.com") -> Machine:
    """A machine on which nobody has ever signed in."""
    return Machine(host, await host.browser(), email)


@pytest.mark.promise("auth.oauth")
@pytest.mark.parametrize("era", REVISIONS)
@pytest.mark.parametrize("auth_mode", [AuthMode.ON_CONNECT, AuthMode.ON_DEMAND])
async def test_the_official_client_signs_in_refreshes_and_signs_in_again_as_the_same_person(
    acme: Host, owner: asyncpg.Connection, auth_mode: AuthMode, era: str
) -> None:
    await acme.tenant.world.tenancy.set_auth_mode(acme.tenant.server.slug, auth_mode)
    await acme.tenant.publish("one", "two", "three")
    laptop = await machine(acme)

    async with run(laptop, era) as assistant:
        assert assistant.client.protocol_version == REVISIONS[era]
        shown = await assistant.call("list_walkthroughs")
        assert [each["key"] for each in shown["walkthroughs"]] == ["tour"]
        assert len(laptop.sign_ins) == (1 if auth_mode is AuthMode.ON_CONNECT else 0)

        first = await assistant.call("select_walkthrough", walkthrough="tour")
        assert first["status"] == "started"
        assert len(laptop.sign_ins) == 1
        assert set(laptop.sign_ins[0]) == {"code", "state", "iss"}
        assert laptop.tokens is not None
        assert laptop.tokens.scope == "walkthroughs offline_access"

        before, registered = laptop.tokens, laptop.client
        assistant.expire()
        second = await assistant.call("next_walkthrough_step", completed_step=first["step"]["handle"])
        assert (second["status"], second["step"]["key"]) == ("advanced", "two")
        assert len(laptop.sign_ins) == 1
        assert laptop.tokens.access_token != before.access_token
        assert laptop.tokens.refresh_token != before.refresh_token

        await laptop.revoke()
        again = await assistant.call("select_walkthrough", walkthrough="tour")
        assert (again["status"], again["step"]) == ("resumed", second["step"])
        assert len(laptop.sign_ins) == 2
        assert laptop.client == registered

    # Another machine, and the other era of the protocol.
    desktop = await machine(acme)
    async with run(desktop, "legacy" if era == "auto" else "auto") as assistant:
        elsewhere = await assistant.call("select_walkthrough", walkthrough="tour")
        assert (elsewhere["status"], elsewhere["step"]) == ("resumed", second["step"])
    assert len(desktop.sign_ins) == 1

    # The first one once more, with what it has kept.
    async with run(laptop, era) as assistant:
        third = await assistant.call("next_walkthrough_step", completed_step=second["step"]["handle"])
    assert third["step"]["key"] == "three"
    assert len(laptop.sign_ins) == 2
    assert await owner.fetchval("select array_agg(email) from mcp_server_users") == ["ada@example.com"]
    await assert_that_events_replay(acme.tenant.world, owner, acme.tenant.server.key.organization_id)


@pytest.mark.promise("auth.oauth")
async def test_a_client_that_is_known_by_its_document_signs_in_without_being_registered(
    acme: Host, owner: asyncpg.Connection
) -> None:
    await acme.tenant.publish("one")
    laptop = await machine(acme)
    async with run(laptop, document=DOCUMENT) as assistant:
        assert (await assistant.call("select_walkthrough", walkthrough="tour"))["status"] == "started"
        assistant.expire()
        assert (await assistant.call("select_walkthrough", walkthrough="tour"))["status"] == "resumed"
    assert len(laptop.sign_ins) == 1
    assert await owner.fetchval("select array_agg(client_id) from oauth_clients") == [DOCUMENT]


@pytest.mark.promise("auth.identity")
async def test_one_person_stands_elsewhere_on_each_server_of_the_organisation(
    acme: Host, labs: Host, owner: asyncpg.Connection
) -> None:
    await acme.tenant.publish("one", "two")
    await labs.tenant.publish("one", "two")
    here, there = await machine(acme), await machine(labs)
    async with run(here) as assistant:
        first = await assistant.call("select_walkthrough", walkthrough="tour")
        await assistant.call("next_walkthrough_step", completed_step=first["step"]["handle"])
    async with run(there) as assistant:
        assert (await assistant.call("select_walkthrough", walkthrough="tour"))["status"] == "started"
    async with run(here) as assistant:
        assert (await assistant.call("select_walkthrough", walkthrough="tour"))["step"]["key"] == "two"
    assert await owner.fetchval("select count(*) from mcp_server_users") == 1

    # What one server has issued says nothing to the other, which asks again.
    there.tokens = here.tokens
    async with run(there) as assistant:
        assert (await assistant.call("select_walkthrough", walkthrough="tour"))["step"]["key"] == "one"
    assert len(there.sign_ins) == 2


@pytest.mark.promise("auth.identity")
async def test_two_addresses_are_two_people(acme: Host, owner: asyncpg.Connection) -> None:
    await acme.tenant.publish("one", "two")
    async with run(await machine(acme, "ada@example.com")) as assistant:
        first = await assistant.call("select_walkthrough", walkthrough="tour")
        await assistant.call("next_walkthrough_step", completed_step=first["step"]["handle"])
    async with run(await machine(acme, "ada@work.example.com")) as assistant:
        assert (await assistant.call("select_walkthrough", walkthrough="tour"))["status"] == "started"
    assert await owner.fetchval("select count(*) from mcp_server_users") == 2
