"""What a reverse proxy says of the request that it hands on; believed only of a proxy that the operator has named.

Each proxy adds the address that it was called from at the end of X-Forwarded-For, so that only the end can be believed:
what stands before it may be the caller's own invention. X-Forwarded-Host is never looked at: a proxy hands on the Host
that it was sent.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from domain.errors import InvalidValue

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAX_PROXIES = 16  # in a row; nobody has more, and a header of thousands is no work
# Some write the port as well: 192.0.2.1:4711, [2001:db8::1]:4711.
_WRITTEN = re.compile(r"([0-9.]{7,15})(?::[0-9]{1,5})?|\[([0-9A-Fa-f:.]{2,45})\](?::[0-9]{1,5})?|([0-9A-Fa-f:.]{2,45})")
_MAX_WRITTEN_CHARS = 53  # 45 of an IPv6 address that ends as an IPv4 one, its brackets, and a port


def trusted_networks(setting: str) -> Sequence[Network]:
    """The networks (`10.0.0.0/8`) and single addresses that `setting` names, spaces or commas between them.

    Raises:
        InvalidValue: for anything else.
    """
    networks = []
    for part in setting.replace(",", " ").split():
        try:
            networks.append(ipaddress.ip_network(part))
        except ValueError as error:
            raise InvalidValue(
                f"{part[:100]!r} is no network: write an address such as 10.0.0.7, or a network such as 10.0.0.0/8 "
                "that ends in zeros"
            ) from error
    return networks


def client_address(peer: str, forwarded_for: Sequence[str], trusted: Sequence[Network]) -> str:
    """The address that a request comes from: the last one that no trusted proxy has.

    `peer` is the other end of the connection, and `forwarded_for` the values of X-Forwarded-For in the order in which
    they came. What is no address ends the search, as nobody trusted can have written it.
    """
    address = _parsed(peer)
    if address is None:
        return peer
    if not _is_trusted(address, trusted):
        return str(address)
    hops = ",".join(forwarded_for).rsplit(",", _MAX_PROXIES)[-_MAX_PROXIES:]
    for hop in reversed(hops):
        found = _parsed(hop)
        if found is None:
            break
        address = found
        if not _is_trusted(address, trusted):
            break
    return str(address)


def forwarded_scheme(
    peer: str, forwarded_proto: Sequence[str], trusted: Sequence[Network]
) -> Literal["http", "https"] | None:
    """The scheme by which the nearest proxy was called, from the values of X-Forwarded-Proto; None: it is not known."""
    address = _parsed(peer)
    if address is None or not _is_trusted(address, trusted):
        return None
    match ",".join(forwarded_proto).rsplit(",", 1)[-1].strip().lower():
        case "https":
            return "https"
        case "http":
            return "http"
        case _:
            return None


def _parsed(text: str) -> Address | None:
    """An address as it may be written in the header; an IPv4 address in IPv6 clothes is an IPv4 address."""
    written = text.strip()
    # What is longer is none, and is not remembered: a caller may send tens of kilobytes.
    return _parsed_again(written) if len(written) <= _MAX_WRITTEN_CHARS else None


@lru_cache(1_024)  # to read one takes 20 µs, and a client makes many calls
def _parsed_again(written: str) -> Address | None:
    match = _WRITTEN.fullmatch(written)
    if match is None:
        return None
    try:
        address = ipaddress.ip_address(match[1] or match[2] or match[3])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_trusted(address: Address, trusted: Sequence[Network]) -> bool:
    return any(address in network for network in trusted)
