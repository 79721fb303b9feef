"""The pages in a real browser: what people read, press and type, and that the browser has nothing to complain about.

Every page that was seen is in the test's temporary folder as a picture.
"""

from __future__ import annotations

import asyncio
import queue
import re
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import oidc_provider_mock
import pytest
from playwright.async_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    Route,
    ViewportSize,
    async_playwright,
    expect,
)

from adapters.postgres.connections import Database
from domain.tenancy import AuthMode
from tests.patience import PATIENCE_SECONDS
from tests.processes import Serving, learner
from tests.serving.conftest import call, make_tenant
from tests.sign_in.conftest import Asking, Host, Mailbox, answered

# What the library says of itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:authlib")

_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
_NARROW: ViewportSize = {"width": 320, "height": 640}  # WCAG 2.2, 1.4.10: no sideways scrolling from here on
_PATIENCE_MILLISECONDS = PATIENCE_SECONDS * 1_000
EMAIL = "ada@example.com"
BACK_AT_THE_CLIENT = "You may close this page."


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("there is no chromium to try pages in")
    return found


@pytest.fixture(scope="module")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        expect.set_options(timeout=_PATIENCE_MILLISECONDS)
        launched = await playwright.chromium.launch(executable_path=chromium, args=_ARGUMENTS)
        yield launched
        await launched.close()


@dataclass
class Client:
    """An MCP client on the person's machine, listening where it wants to be answered."""

    redirect_uri: str
    answers: queue.Queue[str] = field(default_factory=queue.Queue)

    def answer(self) -> dict[str, str]:
        """What it was told; it was told once."""
        told = answered(self.answers.get_nowait())
        assert self.answers.empty()
        return told


@pytest.fixture(scope="module")
def listener() -> Iterator[Client]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            client.answers.put(f"http://{self.headers['host']}{self.path}")
            body = f"<!doctype html><title>Back</title><h1>{BACK_AT_THE_CLIENT}</h1>".encode()
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    client = Client(f"http://127.0.0.1:{server.server_address[1]}/callback")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield client
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Person:
    """Somebody before a page."""

    page: Page
    host: Host
    pictures: Path
    complaints: list[str] = field(default_factory=list)
    """What the console says of our pages, the policy's refusals among it, and what they ask of other hosts."""

    def watch(self) -> None:
        def on_console(message: ConsoleMessage) -> None:
            # That a page itself came with a status above 399 is what a test is about, or would fail it.
            is_status = message.text.startswith("Failed to load resource") and message.location["url"] == self.page.url
            if self.is_ours(self.page.url) and message.type in ("error", "warning") and not is_status:
                self.complaints.append(f"{self.page.url}: {message.text}")

        self.page.on("console", on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def is_ours(self, url: str) -> bool:
        return url.startswith(f"{self.host.origin}/")

    async def hold(self, route: Route, request: Request) -> None:
        """Lets nothing leave this machine."""
        if self.is_ours(request.frame.url) and not request.is_navigation_request() and not self.is_ours(request.url):
            self.complaints.append(f"{request.frame.url} asks for {request.url}")
        name = urlsplit(request.url).hostname or ""
        is_local = name in ("127.0.0.1", "localhost") or name.endswith(".localhost")
        await (route.continue_() if is_local else route.abort())

    async def sees(self, heading: str) -> None:
        """The page with this heading is there, alone in having it, and it is a good page."""
        await expect(self.page.get_by_role("heading", level=1)).to_have_text(heading)
        number = len(list(self.pictures.iterdir()))
        name = re.sub("[^a-z]+", "-", heading.lower()).strip("-")
        await self.page.screenshot(path=self.pictures / f"{number:02}-{name}.png", full_page=True)
        if not self.is_ours(self.page.url):
            return
        size = self.page.viewport_size
        assert size is not None
        await self.page.set_viewport_size(_NARROW)
        width = await self.page.evaluate("document.documentElement.scrollWidth")
        assert width <= _NARROW["width"], f"{heading!r} is {width} pixels wide"
        await self.page.set_viewport_size(size)

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    async def press(self, name: str) -> None:
        await self.button(name).click()

    async def asks(self, asking: Asking) -> None:
        """The client has opened the browser."""
        await self.page.goto(f"{self.host.origin}{asking.url}")
        await self.sees(f"Let Claude Code use {self.host.tenant.server.name}?")

    async def is_told(self, trouble: str) -> None:
        """This stands on the page as an alert, and belongs to the field that it is about."""
        await expect(self.page.get_by_role("alert")).to_have_text(trouble)

    async def types_code(self, code: str) -> None:
        await self.sees("Enter the code")
        await expect(self.page.get_by_label("Code")).to_be_focused()
        await self.page.get_by_label("Code").fill(code)
        await self.press("Continue")

    async def signs_in(self, email: str = EMAIL) -> None:
        """From the question who they are to the end."""
        await self.page.get_by_label("E-mail address").fill(email)
        await self.press("Send me a code")
        await self.types_code(self.host.mailbox.code(email))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    return folder


@asynccontextmanager
async def person_at(browser: Browser, host: Host, pictures: Path, **given: Any) -> AsyncIterator[Person]:
    """A person with a browser that was never here. `given` as for Playwright's contexts."""
    context = await browser.new_context(**{"viewport": {"width": 900, "height": 700}, **given})
    context.set_default_timeout(_PATIENCE_MILLISECONDS)
    person = Person(await context.new_page(), host, pictures)
    person.watch()
    await context.route("**/*", person.hold)
    try:
        yield person
        assert person.complaints == []
    finally:
        await context.close()


@pytest.fixture
async def ada(browser: Browser, acme: Host, pictures: Path) -> AsyncIterator[Person]:
    async with person_at(browser, acme, pictures) as person:
        yield person


@pytest.fixture
async def asking(acme: Host, listener: Client) -> Asking:
    """What the client asks."""
    client_id = await acme.register(redirect_uris=[listener.redirect_uri])
    return await acme.asking(client_id, redirect_uri=listener.redirect_uri)


async def assert_signed_in(person: Person, listener: Client, asking: Asking) -> None:
    """The client has an answer, and with its code a token by which the person is known."""
    await person.sees(BACK_AT_THE_CLIENT)
    answer = listener.answer()
    assert (answer["state"], answer["iss"]) == (asking.query["state"], person.host.origin)
    issued = await person.host.token(asking, f"{listener.redirect_uri}?code={answer['code']}")
    assert issued.status_code == 200, issued.text
    token = issued.json()["access_token"]
    shown = await person.host.tenant.post(call("get_walkthrough_status"), token=token)
    assert shown.json()["result"]["structuredContent"] == {"walkthroughs": []}


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 1_000_000:06}"


@pytest.mark.promise("auth.oauth")
@pytest.mark.parametrize(
    "given",
    [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"java_script_enabled": False}],
    ids=["light", "dark", "without JavaScript"],
)
async def test_a_person_signs_in_by_a_code(
    browser: Browser, acme: Host, pictures: Path, listener: Client, asking: Asking, given: dict[str, Any]
) -> None:
    async with person_at(browser, acme, pictures, **given) as ada:
        await ada.asks(asking)
        facts = ada.page.get_by_role("definition")
        await expect(facts).to_have_text(["Claude Code", "an app on this computer (127.0.0.1)"])
        await ada.press("Allow")
        await ada.sees(f"Sign in to {acme.tenant.server.name}")
        await ada.signs_in()
        await assert_signed_in(ada, listener, asking)


async def test_the_keyboard_is_enough(ada: Person, listener: Client, asking: Asking) -> None:
    await ada.asks(asking)
    keyboard = ada.page.keyboard
    await keyboard.press("Tab")
    await expect(ada.button("Allow")).to_be_focused()
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert await ada.page.evaluate(outline) == "solid"
    await keyboard.press("Tab")
    await expect(ada.button("Don’t allow")).to_be_focused()
    await keyboard.press("Shift+Tab")
    await keyboard.press("Enter")
    await ada.sees(f"Sign in to {ada.host.tenant.server.name}")
    await expect(ada.page.get_by_label("E-mail address")).to_be_focused()
    await keyboard.type(EMAIL)
    await keyboard.press("Enter")
    await ada.sees("Enter the code")
    await keyboard.press("Tab")
    await keyboard.press("Tab")
    await expect(ada.button("Send another code")).to_be_focused()
    await keyboard.press("Space")
    await ada.sees("Enter the code")
    await keyboard.type(ada.host.mailbox.code(EMAIL))
    await keyboard.press("Enter")
    await assert_signed_in(ada, listener, asking)
    assert len(ada.host.mailbox.to(EMAIL)) >= 2


async def test_whoever_presses_twice_sends_once(ada: Person, listener: Client, asking: Asking) -> None:
    await ada.asks(asking)
    await ada.press("Allow")
    await ada.page.get_by_label("E-mail address").fill(EMAIL)
    await ada.press("Send me a code")
    await ada.page.get_by_label("Code").fill(ada.host.mailbox.code(EMAIL))
    sent: list[Request] = []
    was_pressed_twice = asyncio.Event()

    async def linger(route: Route, request: Request) -> None:
        sent.append(request)
        await was_pressed_twice.wait()
        await route.fallback()

    await ada.page.route("**/sign-in", linger)
    box = await ada.button("Continue").bounding_box()
    assert box is not None
    place = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    async with ada.page.expect_request("**/sign-in"):
        await ada.page.mouse.click(*place)
    await ada.page.mouse.click(*place)
    was_pressed_twice.set()
    await assert_signed_in(ada, listener, asking)
    assert len(sent) == 1


async def test_two_clients_may_ask_at_once_in_one_browser(ada: Person, listener: Client, asking: Asking) -> None:
    other = Person(await ada.page.context.new_page(), ada.host, ada.pictures, ada.complaints)
    other.watch()
    other_asking = await ada.host.asking(asking.query["client_id"], redirect_uri=listener.redirect_uri)
    for person, asked in ((ada, asking), (other, other_asking)):
        await person.asks(asked)
        await person.press("Allow")
        await person.page.get_by_label("E-mail address").fill(EMAIL)
        await person.press("Send me a code")
        await person.sees("Enter the code")
    first, second = (message.get_content()[:6] for message in ada.host.mailbox.to(EMAIL)[-2:])
    # Each code is good on the page that it was sent for.
    await ada.types_code(second)
    await ada.is_told("That is not the code: compare it with the newest message, and type it again.")
    await ada.types_code(first)
    await assert_signed_in(ada, listener, asking)
    await other.types_code(second)
    await assert_signed_in(other, listener, other_asking)


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_no_goes_back_to_the_client(ada: Person, listener: Client, asking: Asking, is_late: bool) -> None:
    await ada.asks(asking)
    if is_late:
        await ada.press("Allow")
        await ada.page.get_by_label("E-mail address").fill(EMAIL)
        await ada.press("Send me a code")
        await ada.sees("Enter the code")
        await ada.press("Cancel, and go back to the app")
    else:
        await ada.press("Don’t allow")
    await ada.sees(BACK_AT_THE_CLIENT)
    answer = listener.answer()
    assert (answer["error"], answer["state"]) == ("access_denied", asking.query["state"])
    assert "code" not in answer

    # The browser's own way back finds nothing that could be said yes to.
    again = await ada.page.go_back()
    assert again is not None
    assert again.status == 403
    await ada.sees("Start again from your MCP client")


async def test_what_goes_wrong_with_a_code_is_said_at_the_field_and_can_be_mended(
    ada: Person, listener: Client, asking: Asking, owner: asyncpg.Connection
) -> None:
    await ada.asks(asking)
    await ada.press("Allow")
    await ada.page.get_by_label("E-mail address").fill("ada@refused.example.com")
    await ada.press("Send me a code")
    await ada.is_told("The message could not be sent. Check the address, and try again in a minute.")
    await expect(ada.page.get_by_label("E-mail address")).to_have_value("ada@refused.example.com")
    await ada.page.get_by_label("E-mail address").fill(EMAIL)
    await ada.press("Send me a code")

    first = ada.host.mailbox.code(EMAIL)
    await ada.types_code(wrong(first))
    await ada.is_told("That is not the code: compare it with the newest message, and type it again.")
    field = ada.page.get_by_label("Code")
    await expect(field).to_have_accessible_description(re.compile("^That is not the code: "))
    await expect(field).to_have_attribute("aria-invalid", "true")

    await owner.execute("update oauth_authorizations set sign_in = jsonb_set(sign_in, '{code,expires_at}', '1')")
    await ada.types_code(first)
    await ada.is_told("That code has expired: let another one be sent.")
    await ada.press("Send another code")
    await expect(ada.page.get_by_role("alert")).to_have_count(0)
    await expect(field).not_to_have_attribute("aria-invalid", "true")

    # Loading the page again sends nothing again.
    sent = len(ada.host.mailbox.messages)
    await ada.page.reload()
    await ada.sees("Enter the code")
    assert len(ada.host.mailbox.messages) == sent
    await ada.types_code(f" {ada.host.mailbox.code(EMAIL)[:3]} {ada.host.mailbox.code(EMAIL)[3:]} ")
    await assert_signed_in(ada, listener, asking)


@pytest.mark.promise("auth.provider")
async def test_a_person_signs_in_at_the_provider_of_their_organisation(
    ada: Person, listener: Client, asking: Asking, owner: asyncpg.Connection
) -> None:
    known = [oidc_provider_mock.User(sub="ada", claims={"email": EMAIL, "email_verified": True})]
    with oidc_provider_mock.run_server_in_thread(require_nonce=True, user_claims=known) as provider:
        await owner.execute(
            "insert into oidc_providers (organization_id, issuer, client_id, client_secret, name, offers_email_codes, "
            "created_at) values ($1, $2, 'cairn', 'secret', 'Acme SSO', true, 1)",
            ada.host.tenant.server.key.organization_id,
            f"http://localhost:{provider.server_port}",
        )
        await ada.asks(asking)
        await ada.press("Allow")
        await ada.sees(f"Sign in to {ada.host.tenant.server.name}")
        await expect(ada.page.get_by_label("E-mail address")).to_be_visible()
        await ada.press("Continue with Acme SSO")
        # In the place of this provider, which forgets the state when it says no.
        asked = answered(ada.page.url)
        await ada.page.goto(f"{asked['redirect_uri']}?error=access_denied&state={asked['state']}")
        await ada.is_told("Acme SSO was told not to sign you in: try again.")
        await ada.sees(f"Sign in to {ada.host.tenant.server.name}")
        await ada.press("Continue with Acme SSO")
        await ada.page.get_by_role("button", name="ada", exact=True).click()
        await assert_signed_in(ada, listener, asking)
    assert await owner.fetchval("select array_agg(email) from mcp_server_users") == [EMAIL]


@pytest.mark.promise("auth.anonymous")
async def test_a_visitor_keeps_their_progress(
    browser: Browser, database: Database, service: Serving, mailbox: Mailbox, pictures: Path, listener: Client
) -> None:
    async with AsyncExitStack() as stack:
        host = Host(await make_tenant(database, service, auth_mode=AuthMode.ANONYMOUS), mailbox, stack)
        await host.tenant.publish("one", "two", "three")
        visitor = await stack.enter_async_context(
            person_at(browser, host, pictures, permissions=["clipboard-read", "clipboard-write"])
        )
        await visitor.page.goto(host.origin)
        await visitor.sees(host.tenant.server.name)
        await visitor.press("Get a personal address")
        await visitor.sees(f"Your personal address at {host.tenant.server.name}")
        await visitor.button("Copy the address").click()
        await expect(visitor.page.get_by_role("status")).to_have_text("Copied.")
        address = await visitor.page.evaluate("navigator.clipboard.readText()")
        assert re.fullmatch(rf"{host.origin}/v/[A-Za-z0-9_-]{{22}}/mcp", address)
        assert visitor.page.url == address.removesuffix("/mcp")

        # The assistant has no name for the host, and needs no token.
        local = address.replace(host.origin, service.url.removesuffix("/mcp"))
        async with learner(local, host=f"{host.tenant.host}:{host.port}") as assistant:
            first = await assistant.call("select_walkthrough", walkthrough="tour")
            second = await assistant.call("next_walkthrough_step", completed_step=first["step"]["handle"])

        await visitor.press("Keep this progress")
        await visitor.sees(f"Keep your progress on {host.tenant.server.name}")
        await expect(visitor.page.get_by_label("E-mail address")).to_be_focused()
        await visitor.signs_in()
        await visitor.sees("Your progress is kept")
        await visitor.page.get_by_role("link", name="How to connect it").click()
        await visitor.sees(host.tenant.server.name)

        client_id = await host.register(redirect_uris=[listener.redirect_uri])
        asking = await host.asking(client_id, redirect_uri=listener.redirect_uri)
        await visitor.asks(asking)
        await visitor.press("Allow")
        await visitor.signs_in()
        await visitor.sees(BACK_AT_THE_CLIENT)
        issued = await host.token(asking, f"{listener.redirect_uri}?code={listener.answer()['code']}")
        token = issued.json()["access_token"]
        async with learner(service.url, token, host=f"{host.tenant.host}:{host.port}") as assistant:
            again = await assistant.call("select_walkthrough", walkthrough="tour")
        assert (again["status"], again["step"]) == ("resumed", second["step"])

        answer = await visitor.page.goto(address.removesuffix("/mcp"))
        assert answer is not None
        assert answer.status == 410
        await visitor.sees("This address has ended")
