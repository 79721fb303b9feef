"""Client-id metadata documents, from a real server with a certificate; and every way to lead Cairn to a private one."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from adapters.client_documents import WebClientDocuments, is_public_address
from domain.oauth import DocumentAway
from tests.streams import send

HOST = "client.example.com"
URL = f"https://{HOST}/oauth/client.json"
DOCUMENT = {"client_id": URL, "client_name": "Editor", "redirect_uris": ["http://127.0.0.1/callback"]}
CONTENT = json.dumps(DOCUMENT).encode()


# ------------------------------------------------------------------------------------------------ a real server


@dataclass(frozen=True)
class Authority:
    """Who signs certificates, and a folder for what the servers need of them."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    folder: Path

    @property
    def trusting(self) -> ssl.SSLContext:
        """What a client needs to trust it, and nobody else."""
        return ssl.create_default_context(cadata=self.certificate.public_bytes(serialization.Encoding.PEM).decode())

    def server_for(self, host: str, *, days: int = 1) -> ssl.SSLContext:
        """A server's side, with a certificate for this host."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(host, key, self.certificate.subject, self.key, days=days)
        file = self.folder / f"{host}.pem"
        file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name | None,
    signer: ec.EllipticCurvePrivateKey,
    *,
    days: int = 1,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=10))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    return Authority(_certificate("Test authority", key, None, key), key, tmp_path_factory.mktemp("certificates"))


def reply(body: bytes = CONTENT, *headers: str, status: str = "200 OK", form: str = "application/json") -> bytes:
    """An answer as it goes over the wire, to the end of the connection."""
    lines = [f"HTTP/1.1 {status}", f"content-type: {form}", *headers, "connection: close", "", ""]
    return "\r\n".join(lines).encode() + body


@dataclass
class Web:
    """A server on loopback that plays a public one: what it answers, and what reached it."""

    authority: Authority
    port: int = 0
    answer: bytes = field(default_factory=reply)
    never_ends: bool = False
    drop: bytes = b""
    """What an answer that never ends goes on with, many times a second."""
    is_over: asyncio.Event = field(default_factory=asyncio.Event)
    connections: int = 0
    names: list[str | None] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    lookups: list[str] = field(default_factory=list)

    def documents(
        self,
        answers: Sequence[Sequence[str]] = (("127.0.0.1",),),
        is_public: Callable[[str], bool] = lambda address: address == "127.0.0.1",
        **changes: Any,
    ) -> WebClientDocuments:
        """Reads documents of this server, to whose loopback address the names resolve: in turn to these `answers`."""
        turns = iter(answers)

        async def resolve(host: str) -> Sequence[str]:
            self.lookups.append(host)
            return next(turns)

        return WebClientDocuments(
            **{
                "resolve": resolve,
                "is_public": is_public,
                "port": self.port,
                "tls": self.authority.trusting,
                **changes,
            }
        )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            send(writer, self.answer)
            await writer.drain()
            while self.never_ends and not self.is_over.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.is_over.wait(), 0.05)
                send(writer, self.drop)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


Start = Callable[..., Awaitable[Web]]


@pytest.fixture
async def start(authority: Authority) -> AsyncIterator[Start]:
    started: list[tuple[asyncio.Server, Web]] = []

    async def begin(tls: ssl.SSLContext | None = None) -> Web:
        web = Web(authority)
        context = tls or authority.server_for(HOST)
        context.sni_callback = lambda _, name, __: web.names.append(name)
        server = await asyncio.start_server(web.serve, "127.0.0.1", 0, ssl=context)
        web.port = server.sockets[0].getsockname()[1]
        started.append((server, web))
        return web

    yield begin
    for server, web in started:
        web.is_over.set()
        server.close()


@pytest.fixture
async def web(start: Start) -> Web:
    return await start()


# ------------------------------------------------------------------------------------------ what is asked and how


async def test_a_document_is_read_from_the_address_that_was_looked_up(web: Web) -> None:
    assert await web.documents().fetch(f"{URL}?v=1&x=%7E") == DOCUMENT
    assert (web.connections, web.names, web.lookups) == (1, [HOST], [HOST])
    line, *headers = web.requests[0].decode().strip().split("\r\n")
    assert line == "GET /oauth/client.json?v=1&x=%7E HTTP/1.1"
    assert {header.lower() for header in headers} == {
        f"host: {HOST}",
        "accept: application/json",
        "accept-encoding: identity",
        "connection: keep-alive",
        "user-agent: cairn",
    }


@pytest.mark.parametrize(
    "form", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.example+json"]
)
async def test_json_goes_by_several_names(web: Web, form: str) -> None:
    web.answer = reply(form=form)
    assert await web.documents().fetch(URL) == DOCUMENT


async def test_a_document_may_be_five_kilobytes_long(web: Web) -> None:
    web.answer = reply(CONTENT + b" " * (5_120 - len(CONTENT)))
    assert await web.documents().fetch(URL) == DOCUMENT
    web.answer = reply(CONTENT + b" " * (5_121 - len(CONTENT)))
    assert await web.documents((["127.0.0.1"],)).fetch(URL) is None


async def test_a_proxy_of_the_environment_is_not_asked(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert await web.documents().fetch(URL) == DOCUMENT


async def test_another_address_is_tried_where_one_does_not_answer(web: Web) -> None:
    documents = web.documents((["127.0.0.2", "127.0.0.1"],), is_public=lambda _: True)
    assert await documents.fetch(URL) == DOCUMENT


async def test_no_more_than_three_addresses_are_tried(web: Web) -> None:
    answers = [["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.1"]]
    with pytest.raises(DocumentAway):
        await web.documents(answers, is_public=lambda _: True).fetch(URL)
    assert web.connections == 0


# ----------------------------------------------------------------------------------------- what is not taken


@pytest.mark.parametrize(
    "answer",
    [
        reply(status="404 Not Found"),
        reply(status="410 Gone"),
        reply(status="201 Created"),
        reply(status="204 No Content"),
        reply(form="text/html"),
        reply(form="text/json"),
        reply(form=""),
        reply(CONTENT + b" " * 200_000),
        reply(b"[]"),
        reply(b"null"),
        reply(b'"text"'),
        reply(b""),
        reply(b"{"),
        reply(b"[" * 5_000),
        reply(b'{"client_name": "\xff"}'),
        reply(gzip.compress(CONTENT), "content-encoding: gzip"),
    ],
    ids=lambda answer: answer[:60].decode(errors="replace").replace("\r\n", " "),
)
async def test_an_answer_that_is_no_document_is_as_good_as_none(web: Web, answer: bytes) -> None:
    web.answer = answer
    assert await web.documents().fetch(URL) is None
    assert web.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        reply(status="500 Internal Server Error"),
        reply(status="503 Service Unavailable"),
        reply(status="429 Too Many Requests"),
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n" + CONTENT,
        b"no HTTP at all\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 50_000,
    ],
    ids=lambda answer: answer[:60].decode(errors="replace").replace("\r\n", " "),
)
async def test_an_answer_that_is_none_says_nothing_of_the_document(web: Web, answer: bytes) -> None:
    web.answer = answer
    with pytest.raises(DocumentAway):
        await web.documents().fetch(URL)
    assert web.connections == 1


@pytest.mark.promise("auth.refused")
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_a_redirect_is_not_followed(web: Web, start: Start, status: str) -> None:
    elsewhere = await start()
    web.answer = reply(CONTENT, f"location: https://{HOST}:{elsewhere.port}/", status=status)
    assert await web.documents((["127.0.0.1"], ["127.0.0.1"])).fetch(URL) is None
    web.answer = reply(CONTENT, "location: /other", status=status)
    assert await web.documents((["127.0.0.1"], ["127.0.0.1"])).fetch(URL) is None
    assert (web.connections, elsewhere.connections, web.lookups) == (2, 0, [HOST, HOST])


@pytest.mark.promise("auth.refused")
@pytest.mark.parametrize(
    ("answer", "drop"),
    [
        (b"", b""),
        (b"HTTP/1.1 200 OK\r\n", b""),
        (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + CONTENT, b""),
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + CONTENT, b" "),
    ],
    ids=["no answer", "no headers", "ever more headers", "no end", "drop by drop"],
)
async def test_an_answer_that_does_not_end_is_given_up(web: Web, answer: bytes, drop: bytes) -> None:
    web.answer, web.drop, web.never_ends = answer, drop, True
    began = asyncio.get_running_loop().time()
    with pytest.raises(DocumentAway):
        await web.documents(timeout_seconds=0.4).fetch(URL)
    assert 0.4 <= round(asyncio.get_running_loop().time() - began, 3) < 5
    assert web.connections == 1


async def test_a_name_server_that_does_not_answer_is_given_up(web: Web) -> None:
    async def resolve(host: str) -> Sequence[str]:
        await web.is_over.wait()
        return []

    began = asyncio.get_running_loop().time()
    with pytest.raises(DocumentAway):
        await web.documents(resolve=resolve, timeout_seconds=0.1).fetch(URL)
    assert 0.1 <= round(asyncio.get_running_loop().time() - began, 3) < 5  # the loop counts milliseconds


async def test_a_name_that_cannot_be_looked_up_says_nothing_of_the_document(web: Web) -> None:
    async def resolve(host: str) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(DocumentAway):
        await web.documents(resolve=resolve).fetch(URL)
    assert await web.documents(([],)).fetch(URL) is None


async def test_what_could_not_be_had_is_not_asked_for_again_for_half_a_minute(web: Web) -> None:
    now = 1_000.0
    documents = web.documents([["127.0.0.1"]] * 5, seconds=lambda: now)
    other = f"https://{HOST}/other.json"
    web.answer = reply(status="503 Service Unavailable")
    for passed, connections in ((0.0, 1), (29.9, 1), (30.0, 2), (59.9, 2)):
        now = 1_000.0 + passed
        with pytest.raises(DocumentAway):
            await documents.fetch(URL)
        assert (web.connections, len(web.lookups)) == (connections, connections)
    web.answer = reply()
    assert await documents.fetch(other) == DOCUMENT
    now = 1_060.0
    assert await documents.fetch(URL) == DOCUMENT
    # What is no document is asked for at once: somebody may be mending it.
    web.answer = reply(status="404 Not Found")
    assert await documents.fetch(URL) is None
    web.answer = reply()
    assert await web.documents().fetch(URL) == DOCUMENT


async def test_no_more_failures_are_remembered_than_a_thousand(web: Web) -> None:
    asked: list[str] = []

    async def resolve(host: str) -> Sequence[str]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    documents = web.documents(resolve=resolve)
    for number in (*range(1_001), *range(1, 1_001), 0):
        with pytest.raises(DocumentAway):
            await documents.fetch(f"https://{HOST}/{number}")
    assert len(asked) == 1_002


async def test_a_host_is_looked_up_by_one_at_a_time_and_silent_ones_keep_nobody_else_waiting(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence, asked = threading.Event(), []

    def getaddrinfo(host: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        if host != f"{HOST}.":
            silence.wait(20)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 443))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    documents = web.documents(resolve=None, timeout_seconds=1)
    silent = [f"https://silent-{number % 4}.example.com/{number}" for number in range(40)]
    try:
        waiting = [asyncio.create_task(documents.fetch(url)) for url in silent]
        while len(asked) < 4:  # noqa: ASYNC110  # a thread sets no event of ours
            await asyncio.sleep(0)
        assert await documents.fetch(URL) == DOCUMENT
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(answer) for answer in answers] == [DocumentAway] * 40
        # Those lookups go on, and nobody begins another beside them.
        with pytest.raises(DocumentAway):
            await documents.fetch("https://silent-0.example.com/again")
        assert sorted(asked) == [f"{HOST}.", *(f"silent-{number}.example.com." for number in range(4))]
    finally:
        silence.set()


async def test_the_certificate_must_be_the_names(authority: Authority, start: Start) -> None:
    other = await start(authority.server_for("other.example.com"))
    expired = await start(authority.server_for(HOST, days=-1))
    unknown = await start()
    for documents in (
        other.documents(),
        expired.documents(),
        unknown.documents(tls=ssl.create_default_context()),
    ):
        with pytest.raises(DocumentAway):
            await documents.fetch(URL)
    assert (other.requests, expired.requests, unknown.requests) == ([], [], [])


async def test_a_name_in_capitals_is_the_same_name(web: Web) -> None:
    assert await web.documents().fetch("https://Client.EXAMPLE.com:443/x") == DOCUMENT
    assert (web.names, web.lookups) == ([HOST], [HOST])


@pytest.mark.promise("auth.refused")
@pytest.mark.parametrize(
    "url",
    [
        f"http://{HOST}/client.json",
        f"HTTPS://{HOST}/client.json",
        f"ftp://{HOST}/client.json",
        f"https:/{HOST}/client.json",
        f"//{HOST}/client.json",
        f"https://{HOST}",
        f"https://{HOST}/",
        f"https://{HOST}?a=b",
        f"https://{HOST}:8443/client.json",
        f"https://{HOST}:80/client.json",
        f"https://{HOST}:0443/client.json",
        f"https://{HOST}:/client.json",
        f"https://{HOST}/client.json#x",
        f"https://{HOST}/client.json#",
        f"https://user@{HOST}/client.json",
        f"https://user:pass@{HOST}/client.json",
        f"https://@{HOST}/client.json",
        f"https://{HOST}\\@other.example.com/client.json",
        f"https://{HOST}/a\\b",
        f"https://{HOST}/a/../b",
        f"https://{HOST}/a/./b",
        f"https://{HOST}/..",
        f"https://{HOST}/a/%2e%2E/b",
        f"https://{HOST}/.%2e",
        f"https://{HOST}/a%zz",
        f"https://{HOST}/a b",
        f"https://{HOST}/a\n",
        f" https://{HOST}/a",
        f"https://{HOST}\t/a",
        f"https://{HOST}/a\r\nx: y",
        f"https://{HOST}/é",
        f"https://{HOST}/{'a' * 2_000}",
        "https://clïent.example.com/a",
        "https://client.example.com。/a",
        "https://client_1.example.com/a",
        "https://-.example.com/a",
        f"https://{'a' * 64}.example.com/a",
        "https://client..example.com/a",
        "https://localhost/a",
        "https://client/a",
        "https:///a",
        "https://[::1]/a",
        "https://%6cocalhost.example.com/a",
        "client",
        "",
    ],
)
async def test_what_is_no_url_of_a_document_is_not_even_looked_up(web: Web, url: str) -> None:
    assert await web.documents().fetch(url) is None
    assert (web.lookups, web.connections) == ([], 0)


async def test_why_there_is_none_is_said_in_the_log_alone(web: Web) -> None:
    with capture_logs() as logs:
        assert await web.documents((["10.0.0.1"],)).fetch(URL) is None
        assert await web.documents().fetch("http://x") is None
    assert logs == [
        {
            "event": "client document not taken",
            "host": HOST,
            "log_level": "debug",
            "reason": "its address is not public",
        },
        {"event": "client document not taken", "log_level": "debug", "reason": "it is no https URL of a document"},
    ]


# ------------------------------------------------------------------------------------------ private addresses


@pytest.mark.promise("auth.refused")
async def test_a_name_that_changes_its_address_is_looked_up_once(web: Web) -> None:
    """DNS rebinding: public when it is judged, private when it is connected to."""
    asked: list[str] = []

    def is_public(address: str) -> bool:
        asked.append(address)
        return address == "127.0.0.1"

    documents = web.documents((["127.0.0.1"], ["127.0.0.2"]), is_public=is_public)
    assert await documents.fetch(URL) == DOCUMENT
    assert (web.lookups, asked, web.connections) == ([HOST], ["127.0.0.1"], 1)
    assert await documents.fetch(URL) is None
    assert web.connections == 1


@pytest.mark.promise("auth.refused")
@pytest.mark.parametrize("answers", [["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "127.0.0.1"], ["127.0.0.1", "::1"]])
async def test_one_private_address_among_public_ones_is_one_too_many(web: Web, answers: list[str]) -> None:
    assert await web.documents((answers,)).fetch(URL) is None
    assert web.connections == 0


# By IANA's registries of special-purpose addresses, and what else never is the other end of a connection.
NOT_PUBLIC: list[IPv4Network | IPv6Network] = [
    *map(ip_network, ("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12")),
    *map(ip_network, ("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15")),
    *map(ip_network, ("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4")),
    *map(ip_network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64")),
    *map(ip_network, ("2001::/23", "2001::/32", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16")),
    *map(ip_network, ("fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8")),
]


@given(st.sampled_from(NOT_PUBLIC).flatmap(lambda network: st.ip_addresses(network=network)))
def test_no_address_of_a_special_network_is_public(address: IPv4Address | IPv6Address) -> None:
    assert not is_public_address(str(address))
    assert not is_public_address(address.exploded)


@given(st.ip_addresses(v=4))
def test_no_address_is_public_because_it_carries_one_that_is(address: IPv4Address) -> None:
    number = int(address)
    for start, shift in ((0, 0), (0xFFFF << 32, 0), (0x64FF9B << 96, 0), (0x2002 << 112, 80), (0x20010000 << 96, 0)):
        assert not is_public_address(str(IPv6Address(start + (number << shift))))


@pytest.mark.parametrize("network", NOT_PUBLIC, ids=str)
def test_the_ends_of_a_special_network_are_not_public(network: IPv4Network | IPv6Network) -> None:
    assert not is_public_address(str(network[0]))
    assert not is_public_address(str(network[-1]))


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "172.15.255.255"),
        *("172.32.0.0", "192.0.1.0", "192.88.98.255", "192.88.100.0", "198.20.0.0", "223.255.255.255"),
        *("2001:200::1", "2001:4860:4860::8888", "2003::1", "2606:4700:4700::1111", "2a00:1450:4001::1"),
    ],
)
def test_the_rest_of_the_internet_is_public(address: str) -> None:
    assert is_public_address(address)


@pytest.mark.parametrize(
    "address", ["fe80::1%lo", "2606:4700:4700::1111%1", "::ffff:8.8.8.8", "127.1", "0x7f000001", "2130706433", "x", ""]
)
def test_what_is_written_in_another_way_is_not_public(address: str) -> None:
    assert not is_public_address(address)


@pytest.fixture
def listeners() -> Iterator[list[socket.socket]]:
    """Listening on one port of this machine's addresses of both kinds, or of the older where there is no other."""
    with ExitStack() as opened:
        four = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        found = [four]
        with suppress(OSError):
            address = ("::1", four.getsockname()[1])
            found.append(opened.enter_context(socket.create_server(address, family=socket.AF_INET6)))
        for listener in found:
            listener.setblocking(False)
        yield found


def _arrivals(listeners: list[socket.socket]) -> int:
    """How many connections have reached them."""
    count = 0
    for listener in listeners:
        with suppress(BlockingIOError):
            while True:
                listener.accept()[0].close()
                count += 1
    return count


LOOPBACK_HOSTS = [
    *("127.0.0.1", "127.1", "127.0.1", "127.000.000.001", "127.0.0.1.", "0", "0.0.0.0", "0x0", "2130706433"),
    *("0x7f000001", "0x7f.0.0.1", "0X7F.1", "017700000001", "0177.0.0.1", "00000177.0x0.0.1", "127.127.127.127"),
    *("localhost", "localhost.", "LOCALHOST", "localhost.localdomain", "a.localhost", "ip6-localhost"),
    *("[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]"),
    *("[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[::1%25lo]", "[::1%lo]", "::1"),
    *("①②⑦.⓪.⓪.①", "127。0。0。1", "127%2e0%2e0%2e1", "ⓛocalhost", "127.0.0.1%00.example.com"),
]


@pytest.mark.promise("auth.refused")
async def test_nothing_reaches_this_machine_by_any_name_or_notation(listeners: list[socket.socket]) -> None:
    port = listeners[0].getsockname()[1]
    documents = WebClientDocuments(port=port, timeout_seconds=2)
    for host in LOOPBACK_HOSTS:
        for url in (f"https://{host}/a", f"https://{host}:{port}/a", f"https://x@{host}/a"):
            with suppress(DocumentAway):  # where a resolver knows no such name
                assert await documents.fetch(url) is None, url
    assert _arrivals(listeners) == 0


@pytest.mark.promise("auth.refused")
async def test_nothing_reaches_this_machine_by_what_a_name_resolves_to(listeners: list[socket.socket]) -> None:
    port = listeners[0].getsockname()[1]
    answers = iter([*LOOPBACK_HOSTS, "::1", "::ffff:127.0.0.1", "::127.0.0.1", "::", "::1%lo", "127.0.0.1", "::1"])

    async def resolve(host: str) -> Sequence[str]:
        return [next(answers)]

    documents = WebClientDocuments(port=port, resolve=resolve, timeout_seconds=2)
    for _ in range(len(LOOPBACK_HOSTS) + 5):
        assert await documents.fetch(URL) is None
    assert _arrivals(listeners) == 0
    # And would have, but for the guard.
    careless = WebClientDocuments(port=port, resolve=resolve, is_public=lambda _: True, timeout_seconds=0.3)
    for number in range(2):
        with pytest.raises(DocumentAway):
            await careless.fetch(f"{URL}?{number}")
    assert _arrivals(listeners) == len(listeners)


async def test_lookups_ask_for_the_very_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def getaddrinfo(*arguments: Any, **options: Any) -> list[Any]:
        asked.append(arguments)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 443))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert await WebClientDocuments().fetch(URL) is None
    assert asked == [(f"{HOST}.", 443)]
