"""Client-id metadata documents, read where clients publish them.

Anybody may name any URL as their client id, and it is asked for from inside the operator's network. So what is asked is
a public address or nothing, and everything that cannot be had looks the same from outside.

Whoever names hosts that do not answer must not keep others from being heard: a host is looked up by one request at a
time, and what could not be had is not asked for again for half a minute.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import unquote

import httpx2
import msgspec
import structlog

from domain.errors import InvalidValue
from domain.oauth import DocumentAway
from domain.tenancy import domain_name

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""From a host name to all of its addresses, as text. Raises `OSError` where there is none."""

_HTTPS_PORT = 443
_MAX_URL_CHARS = 2_000
# The draft's section 6.6 advises 5 kB.
_MAX_BYTES = 5_120
_TIMEOUT_SECONDS = 5.0
# One that does not answer leaves time for the next: of two protocols often only one gets through.
_CONNECT_SECONDS = 2.0
# A name with a hundred addresses is not a list of places to knock at.
_MAX_ADDRESSES = 3
# Each takes a thread for as long as the name server is silent, 5 to 10 s as resolvers are set up.
_MAX_LOOKUPS = 16
# Long enough that one silent host costs next to nothing, and short enough that one that is back is soon heard.
_AWAY_SECONDS = 30.0
# Of some 2 kB at most.
_MAX_REMEMBERED = 1_000
_JSON = re.compile(r"application/([a-z0-9.-]+\+)?json", re.IGNORECASE)

# RFC 3986 section 3.3, and none of what URL parsers disagree about: userinfo, brackets, backslashes, other alphabets.
_CHAR = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})"
_URL = re.compile(
    rf"https://(?P<host>[A-Za-z0-9.-]+)(?::443)?(?P<target>/(?P<path>{_CHAR}+)(?:\?(?:{_CHAR}|\?)*)?)", re.ASCII
)

# `is_global` alone is not enough: depending on the release of Python it takes some of these for public.
_V4_NOT_PUBLIC = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",
            "100.64.0.0/10",  # shared, behind carriers' address translation
            "127.0.0.0/8",
            "169.254.0.0/16",  # link-local; clouds answer there with credentials
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",  # relays of 6to4
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",
        ),
    )
)
# The only block that is given out so far. What carries an IPv4 address inside it (::/96, ::ffff:0:0/96, 64:ff9b::/96),
# fc00::/7, fe80::/10, fec0::/10 and multicast are outside.
_V6_PUBLIC = ip_network("2000::/3")
_V6_NOT_PUBLIC = tuple(
    map(
        ip_network,
        (
            "2001::/23",  # Teredo and others that tunnel
            "2001:db8::/32",
            "2002::/16",  # 6to4: an IPv4 address inside
            "3fff::/20",
        ),
    )
)

_log = structlog.get_logger(__name__)


class _NotTaken(Exception):
    """Why a document was not taken: for the log."""


class WebClientDocuments:
    """Asks for documents by https, at addresses that were found to be public, and at no other."""

    def __init__(
        self,
        *,
        resolve: Resolve | None = None,
        is_public: Callable[[str], bool] | None = None,
        port: int = _HTTPS_PORT,
        tls: ssl.SSLContext | None = None,
        timeout_seconds: float = _TIMEOUT_SECONDS,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """All arguments are for tests, which have no public address to ask."""
        # A thread is stuck for as long as a name server is silent. In threads of their own these lookups hold up
        # nobody else's, the database's above all.
        self._lookups = ThreadPoolExecutor(_MAX_LOOKUPS, "client-document-lookup")
        self._resolve = resolve or self._addresses
        self._is_public = is_public or is_public_address
        self._port = port
        self._tls = tls or httpx2.create_ssl_context()
        self._timeout_seconds = timeout_seconds
        self._seconds = seconds
        self._resolving: dict[str, asyncio.Future[Sequence[str]]] = {}
        self._away_until: OrderedDict[str, float] = OrderedDict()

    async def fetch(self, client_id: str) -> Mapping[str, Any] | None:
        """What the port says."""
        try:
            host, target = _place(client_id)
        except _NotTaken as reason:
            _log.debug("client document not taken", reason=str(reason))
            return None
        if self._seconds() < self._away_until.get(client_id, 0.0):
            raise DocumentAway("it could not be had a moment ago")
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return _decoded(await self._read(await self._vetted(host), host, target))
        except _NotTaken as reason:
            _log.debug("client document not taken", host=host, reason=str(reason))
            return None
        except (DocumentAway, OSError, httpx2.HTTPError, httpx2.InvalidURL) as error:
            _log.debug("client document away", host=host, reason=f"{type(error).__name__}: {error}")
            self._remember(client_id)
            raise DocumentAway("it cannot be had at present") from error

    def _remember(self, client_id: str) -> None:
        self._away_until[client_id] = self._seconds() + _AWAY_SECONDS
        self._away_until.move_to_end(client_id)
        if len(self._away_until) > _MAX_REMEMBERED:
            self._away_until.popitem(last=False)

    async def _vetted(self, host: str) -> Sequence[str]:
        addresses = await self._looked_up(host)
        # One private address among public ones is an attack or a mistake. Either way the next answer may be that one.
        if not addresses or not all(map(self._is_public, addresses)):
            raise _NotTaken("its address is not public")
        return addresses[:_MAX_ADDRESSES]

    async def _looked_up(self, host: str) -> Sequence[str]:
        """By the lookup under way, if there is one: it goes on, as its thread does, where nobody waits for it."""
        lookup = self._resolving.get(host)
        if lookup is None:
            lookup = self._resolving[host] = asyncio.ensure_future(self._resolve(host))
            lookup.add_done_callback(lambda done: self._resolved(host, done))
        return await asyncio.shield(lookup)

    def _resolved(self, host: str, lookup: asyncio.Future[Sequence[str]]) -> None:
        del self._resolving[host]
        if not lookup.cancelled():
            lookup.exception()  # where nobody waits for it, it is no news either

    async def _addresses(self, host: str) -> Sequence[str]:
        # The dot at the end: never `host` in some domain of the operator's, which the resolver would try as well.
        found = await asyncio.get_running_loop().run_in_executor(
            self._lookups, lambda: socket.getaddrinfo(f"{host}.", _HTTPS_PORT, type=socket.SOCK_STREAM)
        )
        return [str(address[0]) for *_, address in found]

    async def _read(self, addresses: Sequence[str], host: str, target: str) -> bytes:
        # The address is what is connected to, so that the name is not looked up again, with another answer. The
        # certificate must be the name's.
        async with httpx2.AsyncClient(
            verify=self._tls,
            trust_env=False,
            follow_redirects=False,
            timeout=httpx2.Timeout(None, connect=_CONNECT_SECONDS),
        ) as client:
            problem: Exception = _NotTaken("it has no address")
            for address in addresses:
                try:
                    return await self._ask(client, address, host, target)
                except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                    problem = error
            raise problem

    async def _ask(self, client: httpx2.AsyncClient, address: str, host: str, target: str) -> bytes:
        literal = f"[{address}]" if ":" in address else address
        async with client.stream(
            "GET",
            f"https://{literal}:{self._port}{target}",
            headers={"host": host, "accept": "application/json", "accept-encoding": "identity", "user-agent": "cairn"},
            extensions={"sni_hostname": host},
        ) as response:
            return await _body(response)


def is_public_address(address: str) -> bool:
    """Whether this address, as a resolver writes it, is one of the public internet."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv4Address):
        return parsed.is_global and not any(parsed in network for network in _V4_NOT_PUBLIC)
    return _is_public_v6(parsed)


def _is_public_v6(address: IPv6Address) -> bool:
    return (
        address.is_global
        and address.scope_id is None
        and address in _V6_PUBLIC
        and not any(address in network for network in _V6_NOT_PUBLIC)
    )


def _place(client_id: str) -> tuple[str, str]:
    """Host, and path with query, of a client id that can be the URL of a document."""
    found = _URL.fullmatch(client_id) if len(client_id) <= _MAX_URL_CHARS else None
    if found is None:
        raise _NotTaken("it is no https URL of a document")
    if any(unquote(segment) in (".", "..") for segment in found["path"].split("/")):
        raise _NotTaken("its path has dot segments")
    try:
        # Whose last label begins with a letter: so it is never an address, in whatever notation.
        return domain_name(found["host"]), found["target"]
    except InvalidValue:
        raise _NotTaken("its host is no public name") from None


async def _body(response: httpx2.Response) -> bytes:
    if response.is_server_error or response.status_code == httpx2.codes.TOO_MANY_REQUESTS:
        raise DocumentAway(f"it is answered with {response.status_code}")
    if response.status_code != httpx2.codes.OK:
        raise _NotTaken(f"it is answered with {response.status_code}")
    if not _JSON.fullmatch(response.headers.get("content-type", "").partition(";")[0].strip()):
        raise _NotTaken("it is not JSON by its content type")
    body = b""
    # As it came: what was compressed against our word is no JSON, and never gets to unfold.
    async for part in response.aiter_raw():
        body += part
        if len(body) > _MAX_BYTES:
            raise _NotTaken(f"it has more than {_MAX_BYTES:,} bytes")
    return body


def _decoded(body: bytes) -> Mapping[str, Any]:
    try:
        document = msgspec.json.decode(body)
    except (ValueError, RecursionError):
        raise _NotTaken("it is not JSON") from None
    if not isinstance(document, dict):
        raise _NotTaken("it is no JSON object")
    return document
