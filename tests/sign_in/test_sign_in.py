"""Signing in, as a person's browser meets it: pages, codes by mail, the organisation's provider."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from itertools import product
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import asyncpg
import httpx2
import oidc_provider_mock
import pytest

from adapters.postgres.connections import Database
from application.limits import Limit
from application.sign_in import Page, SignIn
from domain.oauth import Site
from domain.sign_in import MAX_SENDS, MAX_TRIES, MAX_VISITS
from domain.tenancy import AuthMode, OrganizationId, Server, ServerId, ServerKey, UserId
from tests.fakes import Memory
from tests.fakes_sign_in import MemoryMailer, MemoryPeople, MemorySignInStore
from tests.processes import Serving, serving
from tests.serving.conftest import call, make_tenant
from tests.sign_in.conftest import Asking, Browser, Host, Mailbox, answered
from tests.worlds import in_memory

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:authlib")

START_AGAIN = "Start again from your MCP client"


async def choosing(host: Host, asking: Asking | None = None) -> Browser:
    """A browser that is asked who it is."""
    browser = await host.browser()
    await browser.open((asking or await host.asking()).url)
    await browser.submit(decision="approve")
    return browser


async def sent(host: Host, email: str = "ada@example.com") -> Browser:
    """A browser that is asked for a code."""
    browser = await choosing(host)
    await browser.submit(email=email)
    assert browser.heading == "Enter the code"
    return browser


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 1_000_000:06}"


async def people(owner: asyncpg.Connection, host: Host) -> list[tuple[Any, ...]]:
    """Everybody in the organisation: their address, and how they are known."""
    rows = await owner.fetch(
        """
        select users.email, array_agg(known.subject order by known.subject)
          from mcp_server_users users
          join mcp_server_user_identities known
            on (known.organization_id, known.mcp_server_user_id) = (users.organization_id, users.id)
         where users.organization_id = $1
         group by users.id, users.email
         order by users.email
        """,
        host.tenant.server.key.organization_id,
    )
    return [tuple(row) for row in rows]


# ------------------------------------------------------------------------------------------------------ the way


@pytest.mark.promise("auth.oauth")
async def test_a_person_signs_in_by_a_code_and_calls_with_the_token(acme: Host) -> None:
    await acme.tenant.publish("one", "two")
    asking, browser = await acme.asking(), await acme.browser()
    await browser.open(asking.url)
    assert browser.heading == f"Let Claude Code use {acme.tenant.server.name}?"
    assert "You will be sent to an app on this computer (localhost)" in browser.text
    assert await browser.submit(decision="approve") is None
    assert browser.heading == f"Sign in to {acme.tenant.server.name}"
    assert await browser.submit(email=" Ada@Example.com") is None
    assert browser.heading == "Enter the code"
    assert "on its way to ada@example.com ." in browser.text
    code = acme.mailbox.code("ada@example.com")
    location = await browser.submit(code=f" {code[:3]} {code[3:]} ")
    assert location is not None
    assert location.startswith(f"{asking.query['redirect_uri']}?")
    answer = answered(location)
    assert (answer["state"], answer["iss"], set(answer)) == (
        asking.query["state"],
        acme.origin,
        {"code", "state", "iss"},
    )
    token = (await acme.token(asking, location)).json()["access_token"]
    called = await acme.tenant.post(call("select_walkthrough", walkthrough="tour"), token=token)
    assert called.json()["result"]["structuredContent"]["status"] == "started"


@pytest.mark.promise("auth.identity")
async def test_one_person_on_two_servers_of_the_organisation_has_progress_of_their_own_on_each(
    acme: Host, labs: Host, owner: asyncpg.Connection
) -> None:
    await acme.tenant.world.publish(
        *("one", "two"),
        organization=acme.tenant.organization,
        servers=(acme.tenant.server.slug, labs.tenant.server.slug),
    )
    told = []
    for host in (acme, labs, acme):
        asking = await host.asking()
        location = await (await host.browser()).sign_in(asking.url)
        token = (await host.token(asking, location)).json()["access_token"]
        called = await host.tenant.post(call("select_walkthrough", walkthrough="tour"), token=token)
        told.append(called.json()["result"]["structuredContent"]["status"])
    assert told == ["started", "started", "resumed"]
    assert await people(owner, acme) == [("ada@example.com", ["ada@example.com"])]


@pytest.mark.promise("auth.identity")
async def test_whoever_an_operator_gave_a_token_is_the_same_person_when_they_sign_in(
    acme: Host, owner: asyncpg.Connection
) -> None:
    await acme.tenant.token("ada@example.com")
    await (await acme.browser()).sign_in((await acme.asking()).url)
    assert await people(owner, acme) == [("ada@example.com", ["ada@example.com"])]


async def test_the_message_begins_with_the_code_and_names_server_and_client_without_a_link(acme: Host) -> None:
    client = await acme.register(client_name="Prize! http://evil.example.com/now")
    browser = await choosing(acme, await acme.asking(client))
    await browser.submit(email="eve@example.com")
    (message,) = acme.mailbox.to("eve@example.com")
    assert message["subject"] == f"Your code for {acme.tenant.server.name}"
    assert (message["from"], message["to"]) == ("Guides <guides@acme.example.com>", "eve@example.com")
    assert message["auto-submitted"] == "auto-generated"
    assert message.get_content_type() == "text/plain"
    text = message.get_content().replace("\r\n", "\n")
    assert re.match(r"[0-9]{6}\n\n", text)
    assert f"{acme.tenant.server.name}, to sign in from Prize! http evil example com now." in text
    assert "If it was not you who asked for it, ignore this message" in text


async def test_a_client_known_by_a_private_scheme_is_named_by_it(acme: Host) -> None:
    to = "cursor://anysphere.cursor-mcp/oauth/callback"
    client = await acme.register(client_name="Cursor <b>", redirect_uris=[to])
    browser = await acme.browser()
    await browser.open((await acme.asking(client, redirect_uri=to)).url)
    assert "an app on this computer (cursor:)" in browser.text
    assert "<b>" not in browser.page.text  # type: ignore[union-attr]


# -------------------------------------------------------------------------------------------------- before a yes


@pytest.mark.promise("auth.oauth")
async def test_nothing_is_sent_before_the_client_is_allowed(acme: Host) -> None:
    browser = await acme.browser()
    await browser.open((await acme.asking()).url)
    question = browser.text
    for fields in ({"email": "early@example.com"}, {"action": "again"}, {"action": "provider"}, {"code": "123456"}, {}):
        assert await browser.submit(**fields) is None
        assert browser.text == question
    assert acme.mailbox.to("early@example.com") == []


@pytest.mark.promise("auth.oauth")
@pytest.mark.parametrize("late", [False, True])
async def test_a_no_goes_back_to_the_client_at_once_from_every_page(acme: Host, late: bool) -> None:
    asking, browser = await acme.asking(), await acme.browser()
    await browser.open(asking.url)
    if late:
        await browser.submit(decision="approve")
        await browser.submit(email="no@example.com")
    location = await browser.submit(decision="deny")
    assert location is not None
    assert answered(location) | {"error_description": ""} == {
        "error": "access_denied",
        "error_description": "",
        "state": asking.query["state"],
        "iss": acme.origin,
    }
    assert await browser.submit(decision="approve") is None
    assert (browser.page.status_code, browser.heading) == (403, START_AGAIN)  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------- whose page this is


@pytest.mark.promise("auth.refused")
async def test_a_sign_in_is_its_own_browsers_and_its_own_servers(acme: Host, labs: Host, globex: Host) -> None:
    browser = await sent(acme)
    code = acme.mailbox.code("ada@example.com")
    fields = {"request": browser.request, "code": code}
    cookie = {"cookie": f"cairn-browser={browser.http.cookies['cairn-browser']}"}
    stranger, nobody = await acme.http(), {**fields, "request": "A" * 43}
    on_labs, on_globex = await labs.http(), await globex.http()
    refused = [
        await stranger.get("/sign-in", params={"request": fields["request"]}),
        await stranger.post("/sign-in", data=fields),
        await stranger.post("/sign-in", data={**fields, "code": "", "decision": "deny"}),
        await browser.http.post("/sign-in", data=nobody),
        await browser.http.post("/sign-in", data={"code": code}),
        await browser.http.get("/sign-in"),
        await on_labs.post("/sign-in", data=fields, headers=cookie),
        await on_globex.post("/sign-in", data=fields, headers=cookie),
        await on_globex.get("/sign-in", params={"request": fields["request"]}, headers=cookie),
        await stranger.get("/sign-in/callback", params={"state": f"{fields['request']}.x", "code": "x"}),
        await stranger.get("/sign-in/callback"),
    ]
    assert {answer.status_code for answer in refused} == {403}
    (body,) = {answer.text for answer in refused}  # and none says more than another
    assert START_AGAIN in body
    assert await browser.submit(code=code) is not None


@pytest.mark.promise("auth.refused")
async def test_a_browser_is_known_by_one_cookie_of_exactly_that_name(acme: Host) -> None:
    browser = await sent(acme)
    http, known = await acme.http(), f"cairn-browser={browser.http.cookies['cairn-browser']}"
    shown = {"params": {"request": browser.request}}
    for cookie in (known, f"a=b;\t{known} ;c", f'a="; {known}'):
        assert (await http.get("/sign-in", **shown, headers={"cookie": cookie})).status_code == 200, cookie
    tossed = f"cairn-browser={'x' * 43}"
    for cookies in (
        [f"\xa0{known}"], [f"a=b; \x85{known}"], [f"Cairn-Browser{known[13:]}"], [f'cairn-browser="{known[14:]}"'],
        [known + "x"], [f"{tossed}; {known}"], [f"{known}; {tossed}"], [known, tossed], [known, known],
    ):  # fmt: skip
        headers = [("cookie", cookie.encode("latin-1")) for cookie in cookies]
        refused = await http.get("/sign-in", **shown, headers=headers)
        assert refused.status_code == 403, cookies
        # Whoever begins like that gets a cookie of their own, and none that another host may have set.
        begun = await http.get((await acme.asking()).url, headers=headers)
        assert re.match("cairn-browser=[A-Za-z0-9_-]{43};", begun.headers["set-cookie"]), cookies
        assert tossed not in begun.headers["set-cookie"]
        http.cookies.clear()


@pytest.mark.promise("auth.refused")
async def test_a_session_cannot_be_fixed(acme: Host) -> None:
    """Whoever is lured into a sign-in that an attacker began does not end it, and a known browser is nobody known."""
    attacker, victim = await acme.browser(), await acme.browser()
    await attacker.open((await acme.asking()).url)
    await attacker.submit(decision="approve")
    planted = attacker.http.cookies["cairn-browser"]

    await victim.sign_in((await acme.asking()).url)
    own = victim.http.cookies["cairn-browser"]
    assert await victim.open(f"/sign-in?request={attacker.request}") is None
    assert (victim.page.status_code, victim.heading) == (403, START_AGAIN)  # type: ignore[union-attr]
    assert victim.http.cookies["cairn-browser"] == own != planted

    # Even if the attacker's own secret were in the victim's browser: having signed in leaves nobody signed in.
    tricked = await acme.browser()
    tricked.http.cookies.set("cairn-browser", planted)
    await tricked.sign_in((await acme.asking()).url)
    await attacker.open((await acme.asking()).url)
    assert attacker.asks_for("decision")
    assert await attacker.submit(decision="approve") is None
    assert attacker.asks_for("email")


@pytest.mark.promise("auth.refused")
async def test_a_form_that_another_site_sends_is_refused(acme: Host) -> None:
    browser = await sent(acme)
    form = {"request": browser.request, "code": acme.mailbox.code("ada@example.com")}
    for headers in (
        {"origin": "https://evil.example.com", "sec-fetch-site": "cross-site"},
        {"origin": "http://other.localhost", "sec-fetch-site": "same-site"},
        {"origin": "null", "sec-fetch-site": "cross-site"},
        {"origin": "https://evil.example.com"},
    ):
        answer = await browser.http.post("/sign-in", data=form, headers=headers)
        assert answer.status_code == 403, headers
    assert await browser.submit(code=form["code"]) is not None


@pytest.mark.promise("auth.refused")
async def test_a_sign_in_is_over_after_a_quarter_of_an_hour(acme: Host, owner: asyncpg.Connection) -> None:
    browser = await sent(acme)
    code = acme.mailbox.code("ada@example.com")
    (lasts,) = await owner.fetchrow("select expires_at - created_at from oauth_authorizations")
    assert lasts == 15 * 60_000
    await owner.execute("update oauth_authorizations set expires_at = created_at")
    assert await browser.submit(code=code) is None
    assert (browser.page.status_code, browser.heading) == (403, START_AGAIN)  # type: ignore[union-attr]


@pytest.mark.promise("auth.refused")
async def test_every_page_is_framed_by_nobody_kept_nowhere_and_asks_no_other_host(acme: Host) -> None:
    browser = await acme.browser()
    pages = []
    await browser.open((await acme.asking()).url)
    pages.append(browser.page)
    for fields in ({"decision": "approve"}, {"email": "headers@example.com"}, {"code": "x"}):
        await browser.submit(**fields)
        pages.append(browser.page)
    pages.append(await browser.http.get("/sign-in"))
    for shown in pages:
        assert shown is not None
        headers = shown.headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert not re.search(r"(?:src|href|action)=.(?:https?:)?//", shown.text)
        for address in re.findall(r'(?:src|href)="(/assets/[^"]*)"', shown.text):
            assert (await browser.http.get(address)).status_code == 200
    assert (await browser.http.get("/assets/other.css")).status_code == 404


@pytest.mark.promise("auth.refused")
@pytest.mark.parametrize(
    "body", ["request=ID&code=1&code=2", "request=ID&request=ID&code=1", "request=ID&decision=approve&decision=deny"]
)
async def test_a_field_that_comes_twice_is_refused(acme: Host, body: str) -> None:
    browser = await sent(acme)
    answer = await browser.http.post(
        "/sign-in",
        content=body.replace("ID", browser.request),
        headers={"content-type": "application/x-www-form-urlencoded"},
    )
    assert answer.status_code == 400
    assert (await browser.http.post("/sign-in", json={"request": browser.request})).status_code == 415


# ---------------------------------------------------------------------------------------------------------- codes


@pytest.mark.promise("auth.refused")
async def test_five_wrong_codes_end_the_code_and_another_one_signs_in(acme: Host) -> None:
    browser = await sent(acme)
    code = acme.mailbox.code("ada@example.com")
    troubles = []
    for _ in range(MAX_TRIES):
        assert await browser.submit(code=wrong(code)) is None
        troubles.append(browser.trouble)
    assert troubles[:4] == ["That is not the code: compare it with the newest message, and type it again."] * 4
    assert troubles[4] == "Too many wrong codes: this one is no longer good. Let another one be sent."
    assert await browser.submit(code=code) is None
    assert browser.trouble == troubles[4]
    assert await browser.submit(action="again") is None
    assert browser.trouble is None
    assert await browser.submit(code=acme.mailbox.code("ada@example.com")) is not None


@pytest.mark.promise("auth.refused")
async def test_a_code_is_no_longer_good_when_its_ten_minutes_are_over(acme: Host, owner: asyncpg.Connection) -> None:
    browser = await sent(acme)
    (lasts,) = await owner.fetchrow(
        "select (sign_in #>> '{code,expires_at}')::bigint - created_at from oauth_authorizations"
    )
    assert 10 * 60_000 <= lasts < 11 * 60_000
    await owner.execute("update oauth_authorizations set sign_in = jsonb_set(sign_in, '{code,expires_at}', '1')")
    assert await browser.submit(code=acme.mailbox.code("ada@example.com")) is None
    assert browser.trouble == "That code has expired: let another one be sent."
    await browser.submit(action="again")
    assert await browser.submit(code=acme.mailbox.code("ada@example.com")) is not None


@pytest.mark.promise("auth.refused")
async def test_a_code_is_good_in_the_browser_and_the_sign_in_that_it_was_sent_for(acme: Host) -> None:
    first = await sent(acme)
    code = acme.mailbox.code("ada@example.com")
    second = await sent(acme)
    assert acme.mailbox.code("ada@example.com") != code, "one in a million: run it again"
    assert await second.submit(code=code) is None
    assert second.trouble is not None
    assert await first.submit(code=code) is not None


@pytest.mark.promise("auth.refused")
def test_a_stored_code_cannot_be_found_by_trying_all_codes() -> None:
    server = Server(ServerKey(OrganizationId("org"), ServerId("srv")), "guides", "Guides", AuthMode.ON_DEMAND)
    site = Site(server, "https://guides.example.com")
    pages = [Page(site, id, browser) for id, browser in product(["i" * 43, "j" * 43], ["b" * 43, "c" * 43])]
    stored = {page.hash_of_code("123456") for page in pages} | {hashlib.sha256(b"123456").digest()}
    assert len(stored) == 5
    ways = {page.secret(purpose, state) for page in pages for purpose in ("nonce", "verifier") for state in "xy"}
    assert len(ways) == 8  # of the browser's secret, for one way and one purpose
    assert all(re.fullmatch("[A-Za-z0-9_-]{43}", way) for way in ways)


@pytest.mark.promise("auth.refused")
async def test_eight_right_codes_at_once_bring_one_code_to_the_client(acme: Host) -> None:
    browser = await sent(acme)
    form = {"request": browser.request, "code": acme.mailbox.code("ada@example.com")}
    answers = await asyncio.gather(*(browser.http.post("/sign-in", data=form) for _ in range(8)))
    back = [answer for answer in answers if answer.headers.get("location", "").startswith("http://localhost:33418/")]
    assert len(back) == 1
    assert set(Counter(answer.status_code for answer in answers)) <= {303, 403}


@pytest.mark.promise("auth.refused")
async def test_a_sixth_code_is_not_sent_in_one_sign_in(acme: Host) -> None:
    browser = await sent(acme, "many@example.com")
    for _ in range(MAX_SENDS):
        await browser.submit(action="again")
    assert browser.trouble == "No more codes can be sent here: start again from your MCP client."
    assert len(acme.mailbox.to("many@example.com")) == MAX_SENDS
    assert await browser.submit(code=acme.mailbox.code("many@example.com")) is not None


async def test_what_is_no_address_is_told_at_the_field(acme: Host) -> None:
    browser = await choosing(acme)
    for typed in (
        *("ada", "", "ada@example.com\r\nBcc: all@example.com", "a" * 300 + "@example.com"),
        *('"ada"@example.com', "ada(x)@example.com", "ada@(x)example.com", "ada@ex\u200bample.com", "ada@[127.0.0.1]"),
    ):
        await browser.submit(email=typed)
        assert browser.trouble == "That is no e-mail address: give one such as ada@example.com.", typed
        assert 'aria-invalid="true" aria-describedby="trouble use"' in browser.page.text  # type: ignore[union-attr]
    assert acme.mailbox.to("all@example.com") == []


async def test_nothing_before_the_right_code_tells_whether_somebody_has_an_account(acme: Host) -> None:
    await (await acme.browser()).sign_in((await acme.asking()).url, "known@example.com")
    seen = []
    for email in ("known@example.com", "never@example.com"):
        browser = await choosing(acme)
        pages = []
        for fields in ({"email": email}, {"code": "no code"}):
            await browser.submit(**fields)
            assert browser.page is not None
            page = browser.page.text.replace(browser.request, "REQUEST").replace(email, "EMAIL")
            pages.append((browser.page.status_code, page))
        message = acme.mailbox.to(email)[-1].get_content().replace(acme.mailbox.code(email), "CODE")
        seen.append((pages, message))
    assert seen[0] == seen[1]


@pytest.mark.promise("auth.oauth")
async def test_a_message_that_cannot_be_sent_is_told_and_the_address_can_be_corrected(acme: Host) -> None:
    browser = await choosing(acme)
    await browser.submit(email="ada@refused.example.com")
    assert browser.trouble == "The message could not be sent. Check the address, and try again in a minute."
    assert 'value="ada@refused.example.com"' in browser.page.text  # type: ignore[union-attr]
    await browser.submit(email="ada@example.com")
    await browser.submit(action="other")
    assert browser.heading == f"Sign in to {acme.tenant.server.name}"
    await browser.submit(email="other@example.com")
    assert await browser.submit(code=acme.mailbox.code("other@example.com")) is not None


@pytest.mark.promise("auth.oauth")
async def test_a_sign_in_that_stopped_on_its_last_step_goes_on_from_there(
    acme: Host, owner: asyncpg.Connection
) -> None:
    browser = await sent(acme)
    # As if the process had died when it had counted the code in, and before the way back.
    await owner.execute(
        'update oauth_authorizations set sign_in = sign_in || \'{"stage": "identified", "code": null}\''
    )
    await browser.open(f"/sign-in?request={browser.request}")
    assert browser.heading == "You are signed in"
    assert await browser.submit() is not None


@pytest.mark.promise("auth.refused")
async def test_nothing_about_a_person_is_in_the_log(acme: Host, service: Serving) -> None:
    browser = await choosing(acme)
    await browser.submit(email="secret@refused.example.com")
    await browser.submit(email="secret@example.com")
    await browser.submit(code=acme.mailbox.code("secret@example.com"))
    assert "could not be handed in" in service.output
    for told in ("secret@", browser.http.cookies["cairn-browser"], acme.mailbox.code("secret@example.com")):
        assert told not in service.output


# --------------------------------------------------------------------------------------------------------- limits


@pytest.fixture
async def limited(owner_url: str, database: Database, mailbox: Mailbox) -> AsyncIterator[tuple[Host, Host]]:
    """Servers of two organisations, on a service with small limits."""
    small = {
        "codes_per_address": "2/600",
        "codes_per_network": "4/600",
        "tries_per_network": "3/600",
        "provider_visits_per_network": "3/600",
    }
    limits = " ".join(f"{limit.label}={small.get(limit.label, 'off')}" for limit in Limit)
    with serving(
        "serve", "--port", "0", CAIRN_DATABASE_URL=owner_url, CAIRN_SMTP_URL=mailbox.url, CAIRN_LIMITS=limits
    ) as running:
        async with AsyncExitStack() as stack:
            yield (
                Host(await make_tenant(database, running), mailbox, stack),
                Host(await make_tenant(database, running), mailbox, stack),
            )


@pytest.mark.promise("auth.refused")
async def test_neither_a_mailbox_is_flooded_nor_codes_are_guessed_from_many_browsers(
    limited: tuple[Host, Host],
) -> None:
    here, there = limited
    browsers = [await choosing(here) for _ in range(3)]
    for browser in browsers:
        await browser.submit(email="flood@example.com")
    assert len(here.mailbox.to("flood@example.com")) == 2
    refused = browsers[2].page
    assert refused is not None
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 600
    # Another organisation's person of that address is not held up by it; the network is, in the end.
    elsewhere = await choosing(there)
    await elsewhere.submit(email="flood@example.com")
    assert elsewhere.heading == "Enter the code"
    last = await choosing(there)
    await last.submit(email="unlucky@example.com")
    assert last.page is not None
    assert last.page.status_code == 429
    assert here.mailbox.to("unlucky@example.com") == []

    code = here.mailbox.code("flood@example.com")
    for _ in range(3):
        await elsewhere.submit(code=wrong(code))
        assert elsewhere.trouble is not None
    held = await elsewhere.http.post("/sign-in", data={"request": elsewhere.request, "code": code})
    assert (held.status_code, "retry-after" in held.headers) == (429, True)


@pytest.mark.promise("auth.refused")
async def test_a_provider_is_not_asked_by_one_network_for_ever(
    limited: tuple[Host, Host], owner: asyncpg.Connection
) -> None:
    here, _ = limited
    await use_provider(owner, here, "http://localhost:9")
    first, second = await choosing(here), await choosing(here)
    for browser in (first, first, second, second):
        await browser.submit(action="provider")
    assert first.trouble is not None
    assert second.page is not None
    assert (second.page.status_code, "retry-after" in second.page.headers) == (429, True)


class Hits:
    """Who was counted, for what."""

    def __init__(self) -> None:
        self.hits: list[tuple[Limit, tuple[str, ...]]] = []

    async def hit(self, limit: Limit, *who: str) -> None:
        self.hits.append((limit, who))


@pytest.mark.promise("auth.refused")
async def test_each_thing_that_costs_somebody_else_is_counted_for_who_asks_for_it() -> None:
    memory, hits = Memory(), Hits()
    world, store, unused = in_memory(memory), MemorySignInStore(), cast(Any, None)
    sign_in = SignIn(
        *(store, MemoryPeople(memory), world.tenants, unused, unused, unused, MemoryMailer(), hits, world.ids),
        world.clock,
    )
    site = Site(await world.server(), "https://guides.example.com")
    page, there, organization = Page(site, "i" * 43, "b" * 43), "192.0.2.7", site.server.key.organization_id
    await sign_in.begin_keeping(site, UserId("usr_visitor"), page.id, page.browser, there)
    await sign_in.send_code(page, "Ada@Example.com", there)
    assert hits.hits == [
        (Limit.SIGN_INS_PER_NETWORK, ("192.0.2.0/24",)),
        (Limit.CODES_PER_NETWORK, ("192.0.2.0/24",)),
        # A day is long: whoever asks from elsewhere does not keep the owner out.
        (Limit.CODES_PER_ADDRESS_A_DAY, (organization, "ada@example.com", "192.0.2.0/24")),
        (Limit.CODES_PER_ADDRESS, (organization, "ada@example.com")),
    ]
    await sign_in.choose_again(page)
    hits.hits.clear()
    assert await sign_in.leave(page, there) is None
    assert hits.hits == []  # there is no provider to go to


# ------------------------------------------------------------------------------------- the organisation's provider


@pytest.fixture
def issuer() -> Iterator[str]:
    known = [
        oidc_provider_mock.User(sub="ada", claims={"email": "ada@example.com", "email_verified": True}),
        oidc_provider_mock.User(sub="bob", claims={"email": "ada@example.com"}),
    ]
    with oidc_provider_mock.run_server_in_thread(require_nonce=True, user_claims=known) as server:
        yield f"http://localhost:{server.server_port}"


async def use_provider(owner: asyncpg.Connection, host: Host, issuer: str, *, codes: bool = True) -> None:
    await owner.execute(
        "insert into oidc_providers (organization_id, issuer, client_id, client_secret, name, offers_email_codes, "
        "created_at) values ($1, $2, 'cairn', 'secret', 'Acme <SSO>', $3, 1)",
        *(host.tenant.server.key.organization_id, issuer, codes),
    )


async def at_provider(url: str, **form: str) -> str:
    """Answers the provider's page; returns the way back on the server's host, without its origin."""
    async with httpx2.AsyncClient() as http:
        answer = await http.post(url, data=form)
    assert answer.status_code == 302, answer.text
    location = urlsplit(answer.headers["location"])
    assert location.path == "/sign-in/callback"
    return f"{location.path}?{location.query}"


@pytest.mark.promise("auth.identity")
async def test_the_provider_and_a_code_lead_to_one_person(acme: Host, issuer: str, owner: asyncpg.Connection) -> None:
    await use_provider(owner, acme, issuer)
    browser = await choosing(acme)
    assert "Continue with Acme &lt;SSO&gt;" in browser.page.text.replace("<bdi>", "").replace("</bdi>", "")  # type: ignore[union-attr]
    away = await browser.submit(action="provider")
    assert away is not None
    assert away.startswith(issuer)
    assert await browser.open(await at_provider(away, sub="ada")) is not None
    assert await people(owner, acme) == [("ada@example.com", ["ada", "ada@example.com"])]
    await (await acme.browser()).sign_in((await acme.asking()).url)
    assert await people(owner, acme) == [("ada@example.com", ["ada", "ada@example.com"])]


@pytest.mark.promise("auth.identity")
async def test_without_a_verified_address_a_code_is_asked_for_and_both_identities_meet(
    acme: Host, issuer: str, owner: asyncpg.Connection
) -> None:
    await use_provider(owner, acme, issuer, codes=False)
    browser = await choosing(acme)
    assert not browser.asks_for("email")
    await browser.submit(email="bob@example.com")
    assert acme.mailbox.to("bob@example.com") == []  # by the provider alone
    for _ in range(2):
        away = await browser.submit(action="provider")
        assert away is not None
        assert await browser.open(await at_provider(away, sub="bob")) is None
        assert browser.trouble is not None
        assert "has confirmed no e-mail address of yours" in browser.trouble
        assert await people(owner, acme) == []
    await browser.submit(email="bob@example.com")
    assert await browser.submit(code=acme.mailbox.code("bob@example.com")) is not None
    assert await people(owner, acme) == [("bob@example.com", ["bob", "bob@example.com"])]
    # From then on the provider's word is enough for who it is, and the address is asked for all the same.
    browser = await choosing(acme)
    await browser.open(await at_provider(str(await browser.submit(action="provider")), sub="bob"))
    await browser.submit(email="bobby@example.com")
    assert await browser.submit(code=acme.mailbox.code("bobby@example.com")) is not None
    assert await people(owner, acme) == [("bob@example.com", ["bob", "bob@example.com", "bobby@example.com"])]


@pytest.mark.promise("auth.provider")
async def test_a_return_that_fails_is_told_and_the_person_goes_on_from_there(
    acme: Host, issuer: str, owner: asyncpg.Connection
) -> None:
    await use_provider(owner, acme, issuer)
    browser = await choosing(acme)
    away = str(await browser.submit(action="provider"))
    # RFC 6749 section 4.1.2.1 wants the state there, and this provider leaves it out.
    denied = await at_provider(away, action="deny") + "&state=" + parse_qs(urlsplit(away).query)["state"][0]
    assert await browser.open(denied) is None
    assert browser.heading == f"Sign in to {acme.tenant.server.name}"
    assert browser.trouble is not None
    assert "Acme &lt;SSO&gt;" in browser.trouble
    told = browser.trouble
    # That way is used up.
    assert await browser.open(await at_provider(away, sub="ada")) is None
    assert browser.trouble == told
    assert await browser.submit(email="ada@example.com") is None
    assert await browser.submit(code=acme.mailbox.code("ada@example.com")) is not None


@pytest.mark.promise("auth.provider")
async def test_only_the_newest_way_back_from_the_provider_is_taken_and_only_in_that_browser(
    acme: Host, issuer: str, owner: asyncpg.Connection
) -> None:
    await use_provider(owner, acme, issuer)
    browser = await choosing(acme)
    first, second = [str(await browser.submit(action="provider")) for _ in range(2)]
    stranger = await choosing(acme)
    back = await at_provider(second, sub="ada")
    assert await stranger.open(back) is None
    assert (stranger.page.status_code, stranger.heading) == (403, START_AGAIN)  # type: ignore[union-attr]
    assert await browser.open(await at_provider(first, sub="ada")) is None
    assert browser.heading == f"Sign in to {acme.tenant.server.name}"
    assert await browser.open(back) is not None


@pytest.mark.promise("auth.provider", "auth.refused")
async def test_the_provider_is_asked_at_most_five_times_in_a_sign_in(
    acme: Host, issuer: str, owner: asyncpg.Connection
) -> None:
    await use_provider(owner, acme, issuer)
    browser = await choosing(acme)
    ways = [await browser.submit(action="provider") for _ in range(MAX_VISITS + 1)]
    assert [way is not None for way in ways] == [True] * MAX_VISITS + [False]
    assert browser.trouble == "That was tried too often here: start again from your MCP client."
    # The newest way is still open.
    assert await browser.open(await at_provider(str(ways[-2]), sub="ada")) is not None


@pytest.mark.promise("auth.provider")
async def test_a_provider_that_cannot_be_reached_is_told_on_the_page(acme: Host, owner: asyncpg.Connection) -> None:
    await use_provider(owner, acme, "http://localhost:9")
    browser = await choosing(acme)
    assert await browser.submit(action="provider") is None
    assert browser.heading == f"Sign in to {acme.tenant.server.name}"
    assert browser.trouble is not None


# ------------------------------------------------------------------------------------------------------- visitors


@pytest.mark.promise("auth.anonymous")
async def test_a_visitor_keeps_their_progress_by_signing_in(
    database: Database, service: Serving, mailbox: Mailbox, owner: asyncpg.Connection
) -> None:
    async with AsyncExitStack() as stack:
        host = Host(await make_tenant(database, service, auth_mode=AuthMode.ANONYMOUS), mailbox, stack)
        await host.tenant.publish("one", "two")
        browser = await host.browser()
        address = (await browser.http.post("/")).headers["location"]
        called = await browser.http.post(
            f"{address}/mcp",
            json=call("select_walkthrough", walkthrough="tour"),
            headers={"accept": "application/json, text/event-stream"},
        )
        assert called.json()["result"]["structuredContent"]["status"] == "started"
        kept = await browser.http.post(f"{address}/keep")
        await browser.open(kept.headers["location"])
        assert browser.heading == f"Keep your progress on {host.tenant.server.name}"
        assert not browser.asks_for("decision")
        await browser.submit(email="visitor@example.com")
        text = mailbox.to("visitor@example.com")[-1].get_content()
        assert f"{host.tenant.server.name}, to keep your progress." in text
        assert await browser.submit(code=mailbox.code("visitor@example.com")) is None
        assert browser.heading == "Your progress is kept"
        assert f"connect your assistant to {host.origin}/mcp in place of it" in browser.text
        token = await host.tenant.token("visitor@example.com")
        again = await host.tenant.post(call("select_walkthrough", walkthrough="tour"), token=token)
        assert again.json()["result"]["structuredContent"]["status"] == "resumed"


@pytest.fixture
async def open_host(database: Database, service: Serving, mailbox: Mailbox) -> AsyncIterator[Host]:
    """A server that takes visitors."""
    async with AsyncExitStack() as stack:
        yield Host(await make_tenant(database, service, auth_mode=AuthMode.ANONYMOUS), mailbox, stack)


async def keeping(host: Host, address: str, email: str) -> Browser:
    """A browser that is asked for the code, to keep what was done at a personal address."""
    browser = await host.browser()
    await browser.open((await browser.http.post(f"{address}/keep")).headers["location"])
    await browser.submit(email=email)
    return browser


@pytest.mark.promise("auth.anonymous")
async def test_of_two_who_keep_one_visitors_progress_the_second_is_told_that_another_has_it(open_host: Host) -> None:
    address = (await (await open_host.http()).post("/")).headers["location"]
    first = await keeping(open_host, address, "first@example.com")
    second = await keeping(open_host, address, "second@example.com")
    for browser, email, heading in (
        (first, "first@example.com", "Your progress is kept"),
        (second, "second@example.com", "This progress is in another account"),
    ):
        assert await browser.submit(code=open_host.mailbox.code(email)) is None
        assert browser.heading == heading
        assert f"{open_host.origin}/mcp" in browser.text
    assert "first@example.com" not in second.text


@pytest.mark.promise("auth.anonymous")
async def test_a_visitor_who_was_erased_meanwhile_cannot_be_kept_and_nothing_breaks(
    open_host: Host, owner: asyncpg.Connection, service: Serving
) -> None:
    address = (await (await open_host.http()).post("/")).headers["location"]
    browser = await keeping(open_host, address, "late@example.com")
    code = open_host.mailbox.code("late@example.com")
    await owner.execute("delete from mcp_server_user_identities where issuer like 'visitor:%'")
    assert await browser.submit(code=code) is None
    assert (browser.page.status_code, browser.heading) == (403, START_AGAIN)  # type: ignore[union-attr]
    assert "Traceback" not in service.output


# --------------------------------------------------------------------------------------------------- without mail


async def test_in_development_messages_are_in_the_terminal_and_codes_in_the_outbox_of_this_machine(
    tmp_path: Path,
) -> None:
    with serving(
        *("dev", "--data-dir", str(tmp_path / "data"), "--port", "0"),
        CAIRN_BASE_DOMAIN="dev.example.com",
        CAIRN_TRUSTED_PROXIES="127.0.0.1",
    ) as running:
        base = running.url.removesuffix("/mcp")
        async with httpx2.AsyncClient(base_url=base, timeout=30) as http:
            assert (await http.get("/dev/outbox.json")).json() == {}
            registered = await http.post(
                "/register",
                json={"redirect_uris": ["http://localhost/cb"], "token_endpoint_auth_method": "none"},
            )
            query = {
                "response_type": "code",
                "client_id": registered.json()["client_id"],
                "redirect_uri": "http://localhost:1/cb",
                "code_challenge": "c" * 43,
                "code_challenge_method": "S256",
            }
            browser = Browser(http, Mailbox())
            await browser.open(str(httpx2.URL("/authorize", params=query)))
            await browser.submit(decision="approve")
            await browser.submit(email="dev@example.com")
            assert "the message is shown in the terminal" in browser.text
            outbox = await http.get("/dev/outbox.json")
            (code,) = outbox.json().values()
            assert outbox.json() == {"dev@example.com": code}
            assert outbox.headers["cache-control"] == "no-store"
            assert f"Message to dev@example.com: Your code for Cairn demo\n\n  {code}\n" in running.output
            assert str(await browser.submit(code=code)).startswith("http://localhost:1/cb?")
            # Somebody elsewhere, by a proxy on this machine or by a name that this one has for others.
            for elsewhere in ({"x-forwarded-for": "203.0.113.5"}, {"host": "demo.dev.example.com"}):
                assert (await http.get("/dev/outbox.json", headers=elsewhere)).status_code == 404
            # The name of another machine that leads here (DNS rebinding), and a page of another site.
            assert (await http.get("/dev/outbox.json", headers={"host": "evil.example.com"})).status_code == 421
            from_page = {"origin": "https://evil.example.com", "sec-fetch-site": "cross-site"}
            assert (await http.get("/dev/outbox.json", headers=from_page)).status_code == 403


async def test_a_service_that_cannot_send_mail_says_so_and_has_no_outbox(owner_url: str, database: Database) -> None:
    with serving("serve", "--port", "0", CAIRN_DATABASE_URL=owner_url) as running:
        async with AsyncExitStack() as stack:
            host = Host(await make_tenant(database, running), Mailbox(), stack)
            browser = await choosing(host)
            assert not browser.asks_for("email")
            assert "This server cannot send e-mail yet" in browser.text
            assert "CAIRN_SMTP_URL" in browser.text
            await browser.submit(email="ada@example.com")
            assert browser.heading == f"Sign in to {host.tenant.server.name}"
            assert (await browser.http.get("/dev/outbox.json")).status_code == 404
            assert json.dumps("ada@example.com") not in running.output
