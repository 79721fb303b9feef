"""Servers of two organisations on a real service process, with a real mail server, and people's browsers."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from adapters.postgres.connections import Database
from application.limits import Limit
from tests.processes import Serving, serving
from tests.serving.conftest import Tenant, make_tenant

NO_LIMITS = " ".join(f"{limit.label}=off" for limit in Limit)
REDIRECT_URI = "http://localhost:33418/callback"


@dataclass
class Mailbox:
    """Whatever is sent to anybody. It takes nothing for addresses at `refused.example.com`."""

    messages: list[tuple[str, EmailMessage]] = field(default_factory=list)
    url: str = ""

    async def handle_RCPT(  # noqa: N802  # aiosmtpd's name for it
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.endswith("@refused.example.com"):
            return "550 nobody of that name here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        assert isinstance(envelope.content, bytes)
        message = message_from_bytes(envelope.content, policy=policy.default)
        self.messages += [(address, message) for address in envelope.rcpt_tos]
        return "250 OK"

    def to(self, email: str) -> list[EmailMessage]:
        """All messages to this address, in order."""
        return [message for address, message in self.messages if address == email]

    def code(self, email: str) -> str:
        """What the newest message to this address begins with."""
        text = self.to(email)[-1].get_content()
        code = text.split("\n")[0].strip()
        assert re.fullmatch("[0-9]{6}", code), text
        return str(code)


@pytest.fixture(scope="module")
def mailbox() -> Iterator[Mailbox]:
    """A mail server."""
    handler = Mailbox()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    controller = Controller(handler, hostname="127.0.0.1", port=port)
    controller.start()
    handler.url = f"smtp://127.0.0.1:{port}"
    yield handler
    controller.stop()


@pytest.fixture(scope="module")
def service(owner_url: str, mailbox: Mailbox) -> Iterator[Serving]:
    """`cairn serve` on this module's database. Nothing here is about how often anybody may do a thing."""
    with serving(
        "serve", "--port", "0",
        CAIRN_DATABASE_URL=owner_url, CAIRN_SMTP_URL=mailbox.url, CAIRN_MAIL_FROM="Guides <guides@acme.example.com>",
        CAIRN_LIMITS=NO_LIMITS,
    ) as running:  # fmt: skip
        yield running


@dataclass
class Browser:
    """Somebody's browser, on one server: it keeps its cookie, and shows where it is sent without going there."""

    http: httpx2.AsyncClient
    mailbox: Mailbox
    page: httpx2.Response | None = None

    @property
    def text(self) -> str:
        """What the open page says, without its marks."""
        assert self.page is not None
        main = self.page.text[self.page.text.index("<main>") :]
        return " ".join(re.sub(r"<[^>]*>", " ", main).split())

    @property
    def heading(self) -> str:
        assert self.page is not None
        found = re.search("<h1>(.*?)</h1>", self.page.text, re.DOTALL)
        assert found, self.page.text
        return " ".join(re.sub(r"<[^>]*>", "", found[1]).split())

    @property
    def trouble(self) -> str | None:
        """What an assistive technology is told at once."""
        assert self.page is not None
        found = re.search('role="alert">(.*?)</', self.page.text, re.DOTALL)
        return found[1].strip() if found else None

    @property
    def request(self) -> str:
        """What the forms of the open page carry."""
        assert self.page is not None
        (id,) = set(re.findall('name="request" value="([A-Za-z0-9_-]{43})"', self.page.text))
        return str(id)

    def asks_for(self, name: str) -> bool:
        assert self.page is not None
        return f'name="{name}"' in self.page.text

    async def open(self, url: str) -> str | None:
        """Goes to a page of this host, and on from there. Where another site is to be opened, returns its address."""
        return await self._follow(await self.http.get(url))

    async def submit(self, **fields: str) -> str | None:
        """Sends the open page's form with these fields."""
        # As Chrome sends the form of a page without a referrer.
        headers = {"origin": "null", "sec-fetch-site": "same-origin"}
        form = {"request": self.request, **fields}
        return await self._follow(await self.http.post("/sign-in", data=form, headers=headers))

    async def _follow(self, answer: httpx2.Response) -> str | None:
        while answer.status_code == 303:
            location = answer.headers["location"]
            if not location.startswith("/"):
                return str(location)
            answer = await self.http.get(location)
        self.page = answer
        return None

    async def sign_in(self, url: str, email: str = "ada@example.com") -> str:
        """Says yes to everything from `url` on, with codes; returns where the browser is sent at the end."""
        location = await self.open(url)
        if self.asks_for("decision") and not self.asks_for("email"):
            location = await self.submit(decision="approve")
        if location is None and self.asks_for("email"):
            location = await self.submit(email=email)
        if location is None and self.asks_for("code"):
            location = await self.submit(code=self.mailbox.code(email))
        assert location is not None, self.text
        return location


@dataclass
class Host:
    """A server as browsers and clients reach it."""

    tenant: Tenant
    mailbox: Mailbox
    stack: AsyncExitStack

    @property
    def port(self) -> int:
        port = urlsplit(self.tenant.service.url).port
        assert port is not None
        return port

    @property
    def origin(self) -> str:
        return f"http://{self.tenant.host}:{self.port}"

    async def http(self) -> httpx2.AsyncClient:
        """A client of its own, with cookies of its own, for this host."""
        client = httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}", headers={"host": f"{self.tenant.host}:{self.port}"}, timeout=30
        )
        return await self.stack.enter_async_context(client)

    async def browser(self) -> Browser:
        """A browser that was never here."""
        return Browser(await self.http(), self.mailbox)

    async def register(self, **metadata: Any) -> str:
        """The id of a new public client."""
        answer = await (await self.http()).post(
            "/register",
            json={
                "client_name": "Claude Code",
                "redirect_uris": [REDIRECT_URI],
                "token_endpoint_auth_method": "none",
                **metadata,
            },
        )
        assert answer.status_code == 201, answer.text
        return str(answer.json()["client_id"])

    async def asking(self, client_id: str | None = None, **parameters: str) -> Asking:
        """What a client asks, ready to be opened in a browser."""
        verifier = secrets.token_urlsafe(48)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "response_type": "code",
            "client_id": client_id or await self.register(),
            "redirect_uri": REDIRECT_URI,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            "state": secrets.token_urlsafe(8),
            **parameters,
        }
        return Asking(f"/authorize?{urlencode(query)}", query, verifier)

    async def token(self, asking: Asking, location: str, **fields: str) -> httpx2.Response:
        """Redeems the code that the browser came back with."""
        form = {
            "grant_type": "authorization_code",
            "code": answered(location)["code"],
            "redirect_uri": asking.query["redirect_uri"],
            "client_id": asking.query["client_id"],
            "code_verifier": asking.verifier,
            **fields,
        }
        return await (await self.http()).post("/token", data=form)


@dataclass(frozen=True)
class Asking:
    """An authorization request: the page to open, its parameters, and the secret that redeems its code."""

    url: str
    query: Mapping[str, str]
    verifier: str


def answered(location: str) -> dict[str, str]:
    """The parameters that a client is answered with."""
    return {name: value for name, (value,) in parse_qs(urlsplit(location).query).items()}


@pytest.fixture
async def acme(database: Database, service: Serving, mailbox: Mailbox) -> AsyncIterator[Host]:
    """A server of an organisation."""
    async with AsyncExitStack() as stack:
        yield Host(await make_tenant(database, service), mailbox, stack)


@pytest.fixture
async def labs(acme: Host, service: Serving, mailbox: Mailbox) -> Host:
    """Another server of the same organisation."""
    slug = f"{acme.tenant.server.slug}-labs"
    server = await acme.tenant.world.server(acme.tenant.organization, slug, name="Labs")
    return Host(Tenant(acme.tenant.world, server, service, acme.tenant.organization), mailbox, acme.stack)


@pytest.fixture
async def globex(database: Database, service: Serving, mailbox: Mailbox) -> AsyncIterator[Host]:
    """A server of another organisation."""
    async with AsyncExitStack() as stack:
        yield Host(await make_tenant(database, service), mailbox, stack)
