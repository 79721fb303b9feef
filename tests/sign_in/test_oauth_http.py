"""OAuth as clients and attackers meet it: over HTTP, at a real service with servers of two organisations."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlencode, urlsplit

import asyncpg
import httpx2
import pytest

from adapters.postgres.connections import Database
from tests.patience import until_waiting
from tests.processes import serving
from tests.serving.conftest import call, make_tenant
from tests.sign_in.conftest import REDIRECT_URI, Asking, Host, Mailbox, answered

METADATA = {"redirect_uris": [REDIRECT_URI], "token_endpoint_auth_method": "none"}


async def sign_in(host: Host, email: str = "ada@example.com", **parameters: str) -> tuple[Asking, dict[str, Any]]:
    """A person lets a new client act for them; returns what it asked, and its tokens."""
    asking = await host.asking(**parameters)
    location = await (await host.browser()).sign_in(asking.url, email)
    answer = await host.token(asking, location)
    assert answer.status_code == 200, answer.text
    return asking, answer.json()


async def refresh(host: Host, asking: Asking, token: str, **fields: str) -> httpx2.Response:
    form = {"grant_type": "refresh_token", "refresh_token": token, "client_id": asking.query["client_id"], **fields}
    return await (await host.http()).post("/token", data=form)


async def status_of_a_call(host: Host, token: str) -> int:
    answer = await host.tenant.post(call("get_walkthrough_status"), token=token)
    return answer.status_code


def assert_is_refusal(answer: httpx2.Response, status: int, error: str) -> None:
    body = answer.json()
    assert (answer.status_code, body["error"]) == (status, error)
    assert sorted(body) == ["error", "error_description"]
    assert body["error_description"].isascii()
    assert answer.headers["cache-control"] == "no-store"


# ---------------------------------------------------------------------------------------------- the documents


@pytest.mark.promise("auth.oauth")
async def test_the_challenge_leads_to_the_documents_and_they_to_the_endpoints(acme: Host, globex: Host) -> None:
    for host in (acme, globex):
        http = await host.http()
        challenge = await host.tenant.post(call("get_walkthrough_status"), host=urlsplit(host.origin).netloc)
        assert challenge.status_code == 401
        where = f"{host.origin}/.well-known/oauth-protected-resource/mcp"
        assert f'resource_metadata="{where}"' in challenge.headers["www-authenticate"]
        resource = (await http.get(urlsplit(where).path)).json()
        assert resource == {
            "resource": f"{host.origin}/mcp",
            "resource_name": host.tenant.server.name,
            "authorization_servers": [host.origin],
            "scopes_supported": ["walkthroughs"],
            "bearer_methods_supported": ["header"],
        }
        server = (await http.get("/.well-known/oauth-authorization-server")).json()
        assert server == {
            "issuer": host.origin,
            "authorization_endpoint": f"{host.origin}/authorize",
            "token_endpoint": f"{host.origin}/token",
            "registration_endpoint": f"{host.origin}/register",
            "revocation_endpoint": f"{host.origin}/revoke",
            "scopes_supported": ["walkthroughs", "offline_access"],
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "token_endpoint_auth_methods_supported": ["none", "client_secret_basic", "client_secret_post"],
            "revocation_endpoint_auth_methods_supported": ["none", "client_secret_basic", "client_secret_post"],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            "client_id_metadata_document_supported": True,
        }


@pytest.mark.promise("auth.oauth")
async def test_the_documents_are_found_where_clients_look_for_them(acme: Host) -> None:
    http = await acme.http()
    root = (await http.get("/.well-known/oauth-protected-resource")).json()
    assert root["resource"] == acme.origin
    assert root["authorization_servers"] == [acme.origin]
    documents = [
        (await http.get(f"/.well-known/{name}{suffix}", headers={"origin": "http://localhost:6274"}))
        for name in ("oauth-authorization-server", "openid-configuration")
        for suffix in ("", "/mcp")
    ]
    for document in documents:
        assert document.json() == documents[0].json()
        assert document.headers["content-type"] == "application/json"
        assert document.headers["cache-control"] == "public, max-age=300"
        assert document.headers["access-control-allow-origin"] == "http://localhost:6274"


# ------------------------------------------------------------------------------------------------- the whole way


@pytest.mark.promise("gate.other-server-token")
async def test_a_token_is_good_on_its_server_and_nowhere_else(acme: Host, labs: Host, globex: Host) -> None:
    _, tokens = await sign_in(acme, resource=f"{acme.origin}/mcp")
    assert tokens["expires_in"] == 3600
    assert [await status_of_a_call(host, tokens["access_token"]) for host in (acme, labs, globex)] == [200, 401, 401]
    assert await status_of_a_call(acme, tokens["refresh_token"]) == 401


@pytest.mark.promise("auth.oauth")
async def test_tokens_are_refreshed_and_revoked(acme: Host) -> None:
    asking, tokens = await sign_in(acme, scope="walkthroughs offline_access")
    assert tokens["scope"] == "walkthroughs offline_access"
    renewed = await refresh(acme, asking, tokens["refresh_token"])
    assert renewed.headers["cache-control"] == "no-store"
    assert renewed.headers["pragma"] == "no-cache"
    assert await status_of_a_call(acme, renewed.json()["access_token"]) == 200
    form = {"token": renewed.json()["refresh_token"], "client_id": asking.query["client_id"]}
    revoked = await (await acme.http()).post("/revoke", data=form)
    assert (revoked.status_code, revoked.json()) == (200, {})
    for each in (tokens, renewed.json()):
        assert await status_of_a_call(acme, each["access_token"]) == 401
        assert_is_refusal(await refresh(acme, asking, each["refresh_token"]), 400, "invalid_grant")


@pytest.mark.promise("auth.oauth")
async def test_a_client_that_listens_on_another_port_of_the_own_machine_is_answered_there(acme: Host) -> None:
    asking = await acme.asking(redirect_uri="http://localhost:51234/callback")
    location = await (await acme.browser()).sign_in(asking.url)
    assert location.startswith("http://localhost:51234/callback?code=cairn_code_")
    assert answered(location)["state"] == asking.query["state"]
    assert answered(location)["iss"] == acme.origin
    assert (await acme.token(asking, location)).status_code == 200


@pytest.mark.promise("auth.refused")
async def test_a_code_that_is_redeemed_again_ends_the_tokens_that_it_was_good_for(acme: Host) -> None:
    asking = await acme.asking()
    location = await (await acme.browser()).sign_in(asking.url)
    tokens = (await acme.token(asking, location)).json()
    assert await status_of_a_call(acme, tokens["access_token"]) == 200
    assert_is_refusal(await acme.token(asking, location), 400, "invalid_grant")
    assert await status_of_a_call(acme, tokens["access_token"]) == 401
    assert_is_refusal(await refresh(acme, asking, tokens["refresh_token"]), 400, "invalid_grant")


@pytest.mark.promise("auth.refused")
async def test_of_eight_redemptions_at_once_at_most_one_is_answered(acme: Host) -> None:
    asking = await acme.asking()
    location = await (await acme.browser()).sign_in(asking.url)
    answers = await asyncio.gather(*(acme.token(asking, location) for _ in range(8)))
    good = [answer.json() for answer in answers if answer.status_code == 200]
    assert len(good) <= 1
    # Whoever was refused came second, or found no connection in time.
    assert {answer.status_code for answer in answers} <= {200, 400, 503}
    for tokens in good:
        assert await status_of_a_call(acme, tokens["access_token"]) == 401


# --------------------------------------------------------------------------------------------- bad input: /token


@pytest.mark.promise("auth.refused")
@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"code_verifier": "w" * 64}, "invalid_grant"),
        ({"redirect_uri": "http://localhost:33419/callback"}, "invalid_grant"),
        ({"resource": "https://evil.example.com/mcp"}, "invalid_target"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": ""}, "invalid_request"),
        ({"code": "\0"}, "invalid_request"),
        ({"code": "nothing"}, "invalid_grant"),
    ],
)
async def test_a_code_that_does_not_fit_is_good_for_nothing(acme: Host, changed: Mapping[str, str], error: str) -> None:
    asking = await acme.asking()
    location = await (await acme.browser()).sign_in(asking.url)
    assert_is_refusal(await acme.token(asking, location, **changed), 400, error)
    assert_is_refusal(await acme.token(asking, location, client_id=await acme.register()), 400, "invalid_grant")
    assert (await acme.token(asking, location)).status_code == 200


@pytest.mark.promise("auth.refused")
async def test_a_code_of_one_server_is_good_at_no_other(acme: Host, labs: Host, globex: Host) -> None:
    asking = await acme.asking()
    location = await (await acme.browser()).sign_in(asking.url)
    for other in (labs, globex):
        assert_is_refusal(await other.token(asking, location), 401, "invalid_client")
        known = await other.register()
        assert_is_refusal(await other.token(asking, location, client_id=known), 400, "invalid_grant")
    assert (await acme.token(asking, location)).status_code == 200


@pytest.mark.promise("auth.refused")
async def test_a_refresh_that_asks_for_more_is_refused(acme: Host) -> None:
    asking, tokens = await sign_in(acme)
    wider = await refresh(acme, asking, tokens["refresh_token"], scope="walkthroughs offline_access")
    assert_is_refusal(wider, 400, "invalid_scope")
    foreign = await refresh(acme, asking, tokens["refresh_token"], resource="https://evil.example.com")
    assert_is_refusal(foreign, 400, "invalid_target")


@pytest.mark.promise("auth.refused")
async def test_an_unknown_client_is_told_so_and_how_to_prove_itself(acme: Host) -> None:
    http = await acme.http()
    form = {"grant_type": "refresh_token", "refresh_token": "x"}
    for path in ("/token", "/revoke"):
        unknown = await http.post(path, data={**form, "token": "x", "client_id": "unknown"})
        assert_is_refusal(unknown, 401, "invalid_client")
        assert "www-authenticate" not in unknown.headers
        basic = await http.post(path, data={**form, "token": "x"}, auth=("unknown", "secret"))
        assert_is_refusal(basic, 401, "invalid_client")
        assert basic.headers["www-authenticate"] == 'Basic realm="cairn"'


@pytest.mark.promise("auth.refused")
async def test_a_client_with_a_secret_cannot_do_without(acme: Host) -> None:
    http = await acme.http()
    answer = await http.post("/register", json={"redirect_uris": [REDIRECT_URI]})
    client_id, secret = answer.json()["client_id"], answer.json()["client_secret"]
    asking = await acme.asking(client_id)
    location = await (await acme.browser()).sign_in(asking.url)
    assert_is_refusal(await acme.token(asking, location), 401, "invalid_client")
    assert_is_refusal(await acme.token(asking, location, client_secret="wrong"), 401, "invalid_client")
    assert (await acme.token(asking, location, client_secret=secret)).status_code == 200


@pytest.mark.promise("auth.refused")
@pytest.mark.parametrize("path", ["/token", "/revoke"])
async def test_only_a_form_whose_fields_come_once_is_read(acme: Host, path: str) -> None:
    http = await acme.http()
    form = urlencode({"grant_type": "refresh_token", "refresh_token": "x", "token": "x", "client_id": "unknown"})
    twice = await http.post(
        path, content=f"{form}&token=y", headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert_is_refusal(twice, 400, "invalid_request")
    as_json = await http.post(path, json={"grant_type": "refresh_token", "token": "x"})
    assert_is_refusal(as_json, 400, "invalid_request")
    too_long = await http.post(path, data={"token": "x" * 65_536})
    assert_is_refusal(too_long, 413, "invalid_request")
    # What stands in an address is in every log on the way.
    in_query = await http.post(
        f"{path}?{form}", content="", headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert_is_refusal(in_query, *((400, "invalid_request") if path == "/token" else (401, "invalid_client")))
    assert (await http.get(f"{path}?{form}")).status_code == 405


# ------------------------------------------------------------------------------------------- bad input: /authorize


@pytest.mark.promise("auth.refused")
@pytest.mark.parametrize(
    "changed",
    [
        {"client_id": "unknown"},
        {"client_id": ""},
        {"redirect_uri": "https://evil.example.com/callback"},
        {"redirect_uri": "http://localhost:33418/elsewhere"},
        {"redirect_uri": "http://127.0.0.1:33418/callback"},
        {"redirect_uri": "javascript:alert(1)"},
    ],
)
async def test_nobody_is_redirected_to_where_no_client_registered(acme: Host, changed: dict[str, str]) -> None:
    asking = await acme.asking(**changed) if "client_id" not in changed else None
    query = {**(asking or await acme.asking()).query, **changed}
    page = await (await acme.http()).get(f"/authorize?{urlencode(query)}")
    assert page.status_code == 400
    assert "location" not in page.headers
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "evil.example.com" not in page.text
    assert "alert(1)" not in page.text


@pytest.mark.promise("auth.refused")
@pytest.mark.parametrize("name", ["client_id", "redirect_uri", "state", "scope", "code_challenge", "resource", "other"])
async def test_a_parameter_that_comes_twice_is_refused(acme: Host, name: str) -> None:
    asking = await acme.asking(scope="walkthroughs", resource=acme.origin, other="1")
    page = await (await acme.http()).get(f"{asking.url}&{name}=2")
    assert (page.status_code, page.headers.get("location")) == (400, None)


@pytest.mark.promise("auth.refused")
@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"code_challenge": "", "code_challenge_method": ""}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge_method": ""}, "invalid_request"),
        ({"response_type": ""}, "invalid_request"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"scope": "\N{SNOWMAN}"}, "invalid_scope"),
        ({"resource": "https://evil.example.com/mcp"}, "invalid_target"),
    ],
)
async def test_a_client_is_told_what_is_wrong_with_state_and_iss(
    acme: Host, changed: dict[str, str], error: str
) -> None:
    asking = await acme.asking(**changed)
    answer = await (await acme.http()).get(asking.url)
    assert answer.status_code == 303
    assert answer.headers["referrer-policy"] == "no-referrer"
    location = answer.headers["location"]
    assert location.startswith(f"{REDIRECT_URI}?")
    told = answered(location)
    assert told.pop("error_description")
    assert told == {"error": error, "state": asking.query["state"], "iss": acme.origin}


@pytest.mark.promise("auth.oauth")
@pytest.mark.parametrize("suffix", ["", "/", "/mcp", "/mcp/"])
async def test_the_resource_may_be_named_in_the_ways_that_clients_do(acme: Host, suffix: str) -> None:
    _, tokens = await sign_in(acme, resource=f"{acme.origin}{suffix}")
    assert await status_of_a_call(acme, tokens["access_token"]) == 200


@pytest.mark.promise("auth.refused")
async def test_a_client_of_another_server_is_not_known(acme: Host, labs: Host, globex: Host) -> None:
    asking = await acme.asking()
    for other in (labs, globex):
        page = await (await other.http()).get(asking.url)
        assert (page.status_code, page.headers.get("location")) == (400, None)


@pytest.mark.promise("auth.refused")
async def test_a_sign_in_that_begins_gives_the_browser_a_cookie_that_no_script_reads(acme: Host) -> None:
    answer = await (await acme.http()).get((await acme.asking()).url)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/sign-in?request=")
    # Plain http on the own machine has neither the prefix nor Secure.
    name, _, attributes = answer.headers["set-cookie"].partition("=")
    assert name == "cairn-browser"
    assert attributes.partition("; ")[2] == "Path=/; HttpOnly; SameSite=Lax"


@pytest.mark.promise("auth.oauth")
async def test_a_denial_is_told_to_the_client(acme: Host) -> None:
    browser, asking = await acme.browser(), await acme.asking()
    assert await browser.open(asking.url) is None
    location = await browser.submit(decision="deny")
    assert location is not None
    told = answered(location)
    assert told.pop("error_description")
    assert told == {"error": "access_denied", "state": asking.query["state"], "iss": acme.origin}


# ---------------------------------------------------------------------------------------------- bad input: /register


@pytest.mark.promise("auth.refused")
@pytest.mark.parametrize(
    "uri",
    [
        "javascript:alert(1)",
        "data:text/html,x",
        "http://client.example.com/callback",
        "https://client.example.com/callback#fragment",
        "https://user:password@client.example.com/callback",
        "file:///etc/passwd",
        "",
    ],
)
async def test_an_address_that_is_not_safe_is_not_registered(acme: Host, uri: str) -> None:
    answer = await (await acme.http()).post("/register", json={**METADATA, "redirect_uris": [REDIRECT_URI, uri]})
    assert_is_refusal(answer, 400, "invalid_redirect_uri")


@pytest.mark.promise("auth.refused")
async def test_only_a_json_object_of_bounded_size_is_a_registration(acme: Host) -> None:
    http = await acme.http()
    as_json = {"content-type": "application/json"}
    for content in ("[]", "", "{", '"x"', "[" * 50_000, "\xff", "null"):
        answer = await http.post("/register", content=content, headers=as_json)
        assert_is_refusal(answer, 400, "invalid_client_metadata")
    for content, problem in (
        (json.dumps(METADATA)[:-1] + ', "redirect_uris": []}', "An object in the body names a member twice."),
        (json.dumps({**METADATA, "x": 1}).replace('"x": 1', '"x": {"y": 1, "y": 1}'), "An object in the body names a"),
        (b'{"client_name": "\xff"}', "The body cannot be read: it is to be JSON in UTF-8."),
    ):
        answer = await http.post("/register", content=content, headers=as_json)
        assert_is_refusal(answer, 400, "invalid_client_metadata")
        assert problem in answer.json()["error_description"]
    # Half a character, where a name was cut off in mid-emoji.
    halved = json.dumps({**METADATA, "client_name": "Guide \ud83d"})
    answer = await http.post("/register", content=halved, headers=as_json)
    assert (answer.status_code, answer.json()["client_name"]) == (201, "Guide \ufffd")
    text = await http.post("/register", content=json.dumps(METADATA), headers={"content-type": "text/plain"})
    assert_is_refusal(text, 400, "invalid_client_metadata")
    too_long = await http.post("/register", json={**METADATA, "client_name": "x" * 65_536})
    assert_is_refusal(too_long, 413, "invalid_request")


@pytest.mark.promise("auth.oauth")
async def test_a_registration_is_answered_so_that_common_clients_can_go_on(acme: Host) -> None:
    cursor = {
        "client_name": "Cursor",
        "redirect_uris": ["cursor://anysphere.cursor-mcp/oauth/callback", "http://localhost:8787/callback"],
        "grant_types": ["authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"],
        "response_types": ["code"],
        "token_endpoint_auth_method": "none",
        "scope": "walkthroughs openid",
        "logo_uri": "https://cursor.example.com/logo.png",
    }
    answer = await (await acme.http()).post("/register", json=cursor)
    told = answer.json()
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    assert told.pop("client_id").startswith("client_")
    assert told.pop("client_id_issued_at") > 0
    assert told == {
        **{name: value for name, value in cursor.items() if name not in ("scope", "logo_uri")},
        "grant_types": ["authorization_code", "refresh_token"],
    }


# ------------------------------------------------------------------------------- documents of clients, and limits


@pytest.mark.promise("auth.refused")
async def test_a_document_that_cannot_be_had_is_answered_as_an_unknown_client(acme: Host) -> None:
    http = await acme.http()

    async def page(client_id: str) -> tuple[int, str]:
        answer = await http.get(f"/authorize?{urlencode({'client_id': client_id, 'redirect_uri': REDIRECT_URI})}")
        return answer.status_code, answer.text

    unknown = await page("unknown")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"0x7f000001:{port}", f"[::ffff:127.0.0.1]:{port}"):
            assert await page(f"https://{host}/client.json") == unknown
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert await page("https://10.0.0.1/client.json") == unknown
    assert await page("https://client.invalid/client.json") == unknown


async def test_a_service_that_can_read_no_documents_has_such_clients_register(
    database: Database, owner_url: str, mailbox: Mailbox
) -> None:
    """They do not register where they need not, so a service without a way out would shut them out."""
    settings = {"CAIRN_DATABASE_URL": owner_url, "CAIRN_CLIENT_DOCUMENTS": "off"}
    with serving("serve", "--port", "0", **settings) as service:
        async with AsyncExitStack() as stack:
            host = Host(await make_tenant(database, service), mailbox, stack)
            http = await host.http()
            described = (await http.get("/.well-known/oauth-authorization-server")).json()
            assert described["client_id_metadata_document_supported"] is False
            asked = {"client_id": "https://client.example.com/client.json", "response_type": "code"}
            assert (await http.get("/authorize", params=asked)).status_code == 400


@pytest.mark.promise("auth.refused")
async def test_whoever_asks_too_often_is_told_when_to_come_back(
    database: Database, owner_url: str, mailbox: Mailbox
) -> None:
    limits = "registrations_per_network=2/600 sign_ins_per_network=2/600 tokens_per_network=2/600"
    with serving("serve", "--port", "0", CAIRN_DATABASE_URL=owner_url, CAIRN_LIMITS=limits) as service:
        async with AsyncExitStack() as stack:
            host = Host(await make_tenant(database, service), mailbox, stack)
            http = await host.http()
            asks = {
                "registration": lambda: http.post("/register", json=METADATA),
                "token": lambda: http.post("/token", data={"grant_type": "refresh_token"}),
                "sign-in": lambda: http.get("/authorize"),
            }
            for ask in asks.values():
                answers = [await ask() for _ in range(3)]
                assert [answer.status_code == 429 for answer in answers] == [False, False, True]
                assert 1 <= int(answers[2].headers["retry-after"]) <= 600
            # A token and its end are counted together.
            assert (await http.post("/revoke", data={"token": "x"})).status_code == 429


# ------------------------------------------------------------------------------------- more at once than can be


@pytest.mark.promise("unavailable")
async def test_whoever_comes_while_every_connection_is_taken_is_told_to_come_again(
    acme: Host, owner: asyncpg.Connection, owner_url: str
) -> None:
    browser = await acme.browser()
    await browser.open((await acme.asking()).url)
    path = f"/sign-in?request={browser.request}"
    holder = await asyncpg.connect(owner_url)
    try:
        async with holder.transaction():
            await holder.execute("lock table oauth_authorizations in access exclusive mode")
            # As many as a process has connections for all but tool calls.
            waiting = [asyncio.create_task(browser.http.get(path)) for _ in range(4)]
            await until_waiting(owner, 4)
            form = {"grant_type": "refresh_token", "refresh_token": "x", "client_id": "x"}
            page, token = await asyncio.gather(browser.http.get(path), browser.http.post("/token", data=form))
        assert [(each.status_code, each.headers["retry-after"]) for each in (page, token)] == [(503, "1")] * 2
        assert "try again" in page.text
        assert token.json()["error"] == "temporarily_unavailable"
        await asyncio.gather(*waiting)
        assert (await browser.http.get(path)).status_code == 200
    finally:
        await holder.close()
