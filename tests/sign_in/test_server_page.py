"""A server's page over HTTP, and personal addresses: what is shown, to whom, and that nothing of it gets out."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from urllib.parse import urlsplit

import asyncpg
import httpx2
import pytest

from adapters.postgres.connections import Database
from domain.tenancy import AuthMode
from entrypoints.http.site import PAGE_HEADERS
from tests.processes import Serving, learner, serving
from tests.serving.conftest import Tenant, make_tenant
from tests.serving.raw import sent
from tests.sign_in.conftest import Browser, Mailbox

NAME = 'Ada\'s <b>"guides"</b> & $(id) `id` مسارات 🗿'


@pytest.fixture
async def open_tenant(database: Database, service: Serving) -> Tenant:
    return await make_tenant(database, service, auth_mode=AuthMode.ANONYMOUS)


@pytest.fixture
async def browser(service: Serving) -> AsyncIterator[httpx2.AsyncClient]:
    """What a browser sends, with no cookie of its own and following nothing."""
    async with httpx2.AsyncClient(base_url=service.url.removesuffix("/mcp"), timeout=30) as http:
        yield http


class Page(HTMLParser):
    """What stands on a page: its text, what can be copied, its links, forms and addresses."""

    def __init__(self, answer: httpx2.Response) -> None:
        super().__init__()
        self.snippets: list[str] = []
        self.links: list[str] = []
        self.forms: list[tuple[str, str]] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._is_code = False
        self.feed(answer.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self._is_code = tag == "code"
        if tag == "code":
            self.snippets.append("")
        if tag == "a":
            self.links.append(given["href"] or "")
        if tag == "form":
            self.forms.append((given["method"] or "", given["action"] or ""))
        self.addresses += [given[name] or "" for name in ("src", "href", "action") if name in given]

    def handle_endtag(self, tag: str) -> None:
        self._is_code = self._is_code and tag != "code"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._is_code:
            self.snippets[-1] += data


def at(tenant: Tenant, **headers: str) -> dict[str, dict[str, str]]:
    return {"headers": {"host": tenant.host, **{name.replace("_", "-"): value for name, value in headers.items()}}}


def origin(tenant: Tenant) -> str:
    """Loopback hosts are reached without a proxy that could end TLS."""
    return f"http://{tenant.host}"


async def mint(tenant: Tenant, browser: httpx2.AsyncClient) -> str:
    """A personal address, as its path."""
    answer = await browser.post("/", **at(tenant))
    assert answer.status_code == 303, answer.text
    path = answer.headers["location"]
    assert re.fullmatch(r"/v/[A-Za-z0-9_-]{22}", path)
    return path


async def people(owner: asyncpg.Connection) -> int:
    count: int = await owner.fetchval("select count(*) from mcp_server_users")
    return count


@pytest.mark.promise("server-page")
async def test_the_page_shows_the_name_and_how_each_client_is_connected(
    database: Database, service: Serving, browser: httpx2.AsyncClient
) -> None:
    tenant = await make_tenant(database, service)
    answer = await browser.get("/", **at(tenant))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    page = Page(answer)
    assert tenant.server.name in page.text
    for client in ("Claude Code", "Cursor", "VS Code", "Codex", "Gemini CLI", "ChatGPT"):
        assert client in page.text
    address, claude, cursor, *_ = page.snippets
    assert address == f"{origin(tenant)}/mcp"
    assert shlex.split(claude)[-2:] == [tenant.server.slug, address]
    assert json.loads(cursor) == {"mcpServers": {tenant.server.slug: {"url": address}}}
    assert [urlsplit(link).scheme for link in page.links] == ["cursor", "vscode"]
    # Who wants to connect is told by each whether anybody has.
    assert len(re.findall("Tried with version|Written from its documentation, not tried", page.text)) == 6


async def test_the_address_on_the_page_is_the_one_that_the_browser_came_by(
    open_tenant: Tenant, browser: httpx2.AsyncClient
) -> None:
    answer = await browser.get("/", headers={"host": f"{open_tenant.host}:8000"})
    assert Page(answer).snippets[0] == f"http://{open_tenant.host}:8000/mcp"


@pytest.mark.promise("server-page")
async def test_a_name_in_which_anything_stands_is_text_on_the_page_and_in_no_command(
    database: Database, service: Serving, browser: httpx2.AsyncClient
) -> None:
    tenant = await make_tenant(database, service)
    world = tenant.world
    server = await world.tenancy.create_server(
        tenant.organization, "plain-slug", auth_mode=AuthMode.ON_DEMAND, name=NAME, custom_domain=None
    )
    answer = await browser.get("/", headers={"host": f"{server.slug}.localhost"})
    page = Page(answer)
    assert NAME in page.text
    assert "b" not in page.tags
    assert not [each for each in (*page.snippets, *page.links) if "Ada" in each or "id" in shlex.split(each)]


@pytest.mark.promise("server-page")
async def test_the_walkthroughs_are_listed_where_the_list_is_open_and_hidden_ones_are_not(
    database: Database, service: Serving, browser: httpx2.AsyncClient
) -> None:
    tenant = await make_tenant(database, service)
    await tenant.publish("one", "two", key="shown", title="1 < 2 & '3'")
    await tenant.publish("one", key="hidden", title="Hidden from all")
    await tenant.world.authoring.unpublish(tenant.organization, "hidden", by="author@example.com")
    answer = await browser.get("/", **at(tenant))
    assert "1 &lt; 2 &amp;" in answer.text
    page = Page(answer)
    assert re.search(r"1 < 2 & '3'\s+Shows around\.\s+2 steps ·\s+about 4 minutes", page.text)
    assert "Hidden" not in page.text


@pytest.mark.promise("server-page")
async def test_a_server_that_wants_a_token_at_once_shows_no_walkthroughs(
    database: Database, service: Serving, browser: httpx2.AsyncClient
) -> None:
    tenant = await make_tenant(database, service, auth_mode=AuthMode.ON_CONNECT)
    await tenant.publish("one", key="secret", title="Secret")
    page = Page(await browser.get("/", **at(tenant)))
    assert "Secret" not in page.text
    assert "sign in as you connect" in page.text


@pytest.mark.promise("server-page")
async def test_the_page_asks_no_other_host_for_anything_and_is_kept_nowhere(
    open_tenant: Tenant, browser: httpx2.AsyncClient
) -> None:
    personal = await mint(open_tenant, browser)
    for path in ("/", personal):
        answer = await browser.get(path, **at(open_tenant))
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        for address in Page(answer).addresses:
            assert address.startswith(("/", "data:image/", "cursor://", "vscode:mcp/")), address
            assert not address.startswith("//")


@pytest.mark.promise("auth.anonymous")
async def test_only_a_server_that_takes_visitors_gives_out_personal_addresses(
    database: Database, service: Serving, browser: httpx2.AsyncClient, owner: asyncpg.Connection
) -> None:
    for mode in (AuthMode.ON_DEMAND, AuthMode.ON_CONNECT):
        tenant = await make_tenant(database, service, auth_mode=mode)
        assert Page(await browser.get("/", **at(tenant))).forms == []
        answer = await browser.post("/", **at(tenant))
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert await people(owner) == 0


@pytest.mark.promise("auth.anonymous")
async def test_a_personal_address_is_on_its_page_in_everything_to_copy_and_works(
    open_tenant: Tenant, browser: httpx2.AsyncClient, service: Serving
) -> None:
    await open_tenant.publish("one", "two")
    front = Page(await browser.get("/", **at(open_tenant)))
    assert front.forms == [("post", "/")]
    path = await mint(open_tenant, browser)
    answer = await browser.get(path, **at(open_tenant))
    page = Page(answer)
    url = f"{origin(open_tenant)}{path}/mcp"
    assert page.snippets[0] == url
    assert all(url in snippet for snippet in page.snippets)
    assert page.forms == [("post", f"{path}/keep")]
    assert "Whoever has this address has your progress" in page.text
    assert "You are not asked to sign in" in page.text
    at_service = service.url.removesuffix("/mcp") + path + "/mcp"
    async with learner(at_service, host=open_tenant.host) as me:
        assert (await me.call("select_walkthrough", walkthrough="tour"))["status"] == "started"


async def test_no_two_visitors_get_the_same_address(open_tenant: Tenant, browser: httpx2.AsyncClient) -> None:
    assert len({await mint(open_tenant, browser) for _ in range(5)}) == 5


@pytest.mark.promise("auth.refused")
async def test_keeping_the_progress_begins_a_sign_in_in_this_browser_alone(
    open_tenant: Tenant, browser: httpx2.AsyncClient
) -> None:
    path = await mint(open_tenant, browser)
    answer = await browser.post(f"{path}/keep", **at(open_tenant))
    assert answer.status_code == 303
    place = answer.headers["location"]
    assert re.fullmatch(r"/sign-in\?request=[A-Za-z0-9_-]{43}", place)
    cookie = answer.headers["set-cookie"]
    assert re.fullmatch(r"cairn-browser=[A-Za-z0-9_-]{43}; Path=/; HttpOnly; SameSite=Lax", cookie)
    browser.cookies.clear()
    assert (await browser.get(place, **at(open_tenant))).status_code == 403
    assert (await browser.get(place, **at(open_tenant, cookie=cookie.partition(";")[0]))).status_code == 200


@pytest.mark.promise("auth.anonymous")
async def test_whoever_keeps_their_progress_has_it_in_their_account_and_the_address_ends(
    open_tenant: Tenant, browser: httpx2.AsyncClient, mailbox: Mailbox, service: Serving
) -> None:
    await open_tenant.publish("one", "two")
    path = await mint(open_tenant, browser)
    async with learner(f"{service.url.removesuffix('/mcp')}{path}/mcp", host=open_tenant.host) as visitor:
        told = await visitor.call("select_walkthrough", walkthrough="tour")
        await visitor.call("next_walkthrough_step", completed_step=told["step"]["handle"])
    browser.headers["host"] = open_tenant.host
    person = Browser(browser, mailbox)
    await person.open((await browser.post(f"{path}/keep")).headers["location"])
    await person.submit(email="ada@example.com")
    await person.submit(code=mailbox.code("ada@example.com"))
    async with open_tenant.learner("ada@example.com") as ada:
        (row,) = (await ada.call("get_walkthrough_status"))["walkthroughs"]
        assert (row["status"], row["current_step_number"]) == ("in_progress", 2)

    shown = await browser.get(path)
    assert shown.status_code == 410
    assert "kept in an account" in Page(shown).text
    again = await browser.post(f"{path}/keep")
    assert (again.status_code, "location" in again.headers) == (410, False)


async def test_an_unknown_address_or_one_of_another_server_is_not_found(
    open_tenant: Tenant, database: Database, service: Serving, browser: httpx2.AsyncClient
) -> None:
    path = await mint(open_tenant, browser)
    other = await make_tenant(database, service, auth_mode=AuthMode.ANONYMOUS)
    for place, tenant in ((path, other), (path[:-1] + ("A" if path[-1] != "A" else "B"), open_tenant)):
        assert (await browser.get(place, **at(tenant))).status_code == 404
        assert (await browser.post(f"{place}/keep", **at(tenant))).status_code == 404


@pytest.mark.promise("auth.anonymous")
async def test_where_visitors_are_no_longer_taken_their_progress_can_still_be_kept(
    open_tenant: Tenant, database: Database, browser: httpx2.AsyncClient, owner: asyncpg.Connection, owner_url: str
) -> None:
    path = await mint(open_tenant, browser)
    await owner.execute(
        "update mcp_servers set auth_mode = 'on_demand' where id = $1", open_tenant.server.key.server_id
    )
    # Another process, for this one still remembers the server as it was.
    with serving("serve", "--port", "0", CAIRN_DATABASE_URL=owner_url) as fresh:
        async with httpx2.AsyncClient(base_url=fresh.url.removesuffix("/mcp"), timeout=30) as http:
            page = Page(await http.get(path, **at(open_tenant)))
            assert page.forms == [("post", f"{path}/keep")]
            assert page.snippets[0] == f"{origin(open_tenant)}/mcp"
            assert not [each for each in (*page.snippets, *page.links) if path in each]
            assert (await http.post(f"{path}/keep", **at(open_tenant))).status_code == 303


async def test_a_form_that_another_site_sends_is_refused(
    open_tenant: Tenant, browser: httpx2.AsyncClient, owner: asyncpg.Connection
) -> None:
    path = await mint(open_tenant, browser)
    before = await people(owner)
    for headers in ({"sec_fetch_site": "cross-site", "origin": "null"}, {"origin": "https://evil.example.com"}):
        for place in ("/", f"{path}/keep"):
            answer = await browser.post(place, **at(open_tenant, **headers))
            assert answer.status_code == 403, (place, headers)
    assert await people(owner) == before
    assert await owner.fetchval("select count(*) from oauth_authorizations") == 0


@pytest.mark.promise("auth.anonymous")
async def test_a_personal_address_is_in_no_log_line(
    open_tenant: Tenant, browser: httpx2.AsyncClient, service: Serving
) -> None:
    path = await mint(open_tenant, browser)
    for method, place in (("GET", path), ("POST", f"{path}/keep"), ("PUT", path), ("GET", f"{path}/none")):
        await browser.request(method, place, **at(open_tenant))
    assert path.removeprefix("/v/") not in service.output


@pytest.mark.parametrize("path", ["/index.html", "/v", "/v/", "/v/a/b", "/favicon.ico", "/robots.txt", "/keep"])
async def test_other_paths_are_not_found_and_browsers_are_told_on_a_page(
    open_tenant: Tenant, browser: httpx2.AsyncClient, path: str
) -> None:
    as_browsers = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    for accept, form in ((as_browsers, "text/html; charset=utf-8"), ("*/*", "application/json")):
        answer = await browser.get(path, **at(open_tenant, accept=accept))
        assert (answer.status_code, answer.headers["content-type"]) == (404, form)
        assert "the page at / says how to connect" in answer.text


async def test_of_a_personal_address_that_was_not_copied_whole_the_page_says_so(
    open_tenant: Tenant, browser: httpx2.AsyncClient
) -> None:
    path = await mint(open_tenant, browser)
    for copied in (path[:4], path[:-1], path + ".", path + "%20", path + "x" * 28):
        answer = await browser.get(copied, **at(open_tenant))
        assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
        assert "look whether all of it was copied" in Page(answer).text
        assert (await browser.post(f"{copied}/keep", **at(open_tenant))).status_code == 404


@pytest.mark.promise("auth.refused")
async def test_a_redirect_from_a_form_is_kept_nowhere_and_tells_no_other_site(
    open_tenant: Tenant, browser: httpx2.AsyncClient
) -> None:
    minted = await browser.post("/", **at(open_tenant))
    kept = await browser.post(f"{minted.headers['location']}/keep", **at(open_tenant))
    for answer in (minted, kept):
        assert answer.status_code == 303
        for name, value in PAGE_HEADERS.items():
            assert answer.headers[name] == value
        assert answer.headers["content-type"].startswith("text/plain")


async def test_head_is_answered_as_get_without_the_body(open_tenant: Tenant, browser: httpx2.AsyncClient) -> None:
    path = await mint(open_tenant, browser)
    asset = next(each for each in Page(await browser.get("/", **at(open_tenant))).addresses if "/assets/" in each)
    documents = ("/.well-known/oauth-protected-resource/mcp", "/.well-known/oauth-authorization-server")
    for place in ("/", path, asset, *documents, "/sign-in", "/v/short", "/authorize"):
        shown = await browser.get(place, **at(open_tenant))
        asked = await browser.head(place, **at(open_tenant))
        told = [name for name in shown.headers if name not in ("date", "x-request-id")]
        assert (asked.status_code, asked.content) == (shown.status_code, b"")
        assert {name: asked.headers[name] for name in told} == {name: shown.headers[name] for name in told}
    assert (await browser.head("/token", **at(open_tenant))).status_code == 405
    assert (await browser.head("/mcp", **at(open_tenant))).status_code == 405


async def test_a_head_with_a_broken_body_is_refused_and_is_no_fault_of_the_service(
    open_tenant: Tenant, service: Serving
) -> None:
    lines = (f"host: {open_tenant.host}", "transfer-encoding: chunked")
    broken = "\r\n".join(["HEAD / HTTP/1.1", *lines, "", "", "5\r\nhello", "zz\r\n"]).encode()
    received = await sent(service, broken)
    assert received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 200 "))
    assert received[-4:] == b"\r\n\r\n"
    assert "Fatal error" not in service.output


@pytest.mark.promise("auth.refused")
async def test_no_page_of_any_origin_reads_a_page_of_this_host(
    open_tenant: Tenant, browser: httpx2.AsyncClient
) -> None:
    path = await mint(open_tenant, browser)
    for place in ("/", path, "/dev/outbox.json", "/sign-in", "/authorize"):
        for headers in (
            {"origin": origin(open_tenant)},
            {"origin": "null", "sec_fetch_site": "same-origin"},
            {"origin": "https://evil.example.com", "sec_fetch_site": "same-origin"},
        ):
            answer = await browser.get(place, **at(open_tenant, **headers))
            assert "access-control-allow-origin" not in answer.headers, (place, headers)
            assert answer.status_code != 403 or place == "/sign-in"


@pytest.mark.promise("auth.refused")
async def test_two_words_about_whose_form_it_is_are_none(open_tenant: Tenant, browser: httpx2.AsyncClient) -> None:
    said = [("host", open_tenant.host), ("origin", "null"), ("sec-fetch-site", "same-origin")]
    assert (await browser.post("/", headers=said)).status_code == 303
    assert (await browser.post("/", headers=[*said, ("sec-fetch-site", "same-origin")])).status_code == 403


@pytest.mark.parametrize(("port", "status"), [("1", 200), ("65535", 200), ("0", 421), ("65536", 421), ("99999", 421)])
async def test_a_host_with_a_port_that_cannot_be_is_no_host(
    open_tenant: Tenant, browser: httpx2.AsyncClient, port: str, status: int
) -> None:
    answer = await browser.get("/", headers={"host": f"{open_tenant.host}:{port}"})
    assert answer.status_code == status
