"""How often anyone may do a thing: every limit, once."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from domain.errors import InvalidValue

_SETTING = re.compile(r"([a-z_]+)=(?:([1-9][0-9]{0,8})/([1-9][0-9]{0,4})|off)")


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `count` in any `seconds`."""

    count: int
    seconds: int


class Limit(Enum):
    """What is limited, its name in the setting, and the rate. The comment beside a rate says who would reach it."""

    CALLS_PER_USER = (
        "calls_per_user",
        Rate(240, 60),
    )  # an assistant that runs through the steps; nobody reads four a second
    CALLS_PER_NETWORK = "calls_per_network", Rate(6_000, 60)  # a program; a company behind one address does not
    CALLS_PER_SERVER = "calls_per_server", Rate(60_000, 60)
    REGISTRATIONS_PER_NETWORK = "registrations_per_network", Rate(100, 600)
    REGISTRATIONS_PER_SERVER = "registrations_per_server", Rate(1_000, 600)
    SIGN_INS_PER_NETWORK = "sign_ins_per_network", Rate(300, 600)
    PROVIDER_VISITS_PER_NETWORK = "provider_visits_per_network", Rate(100, 600)
    # Messages to one mailbox, however many browsers ask. With five tries each, this is what bounds guessing: 25 tries
    # in ten minutes, of a million.
    CODES_PER_ADDRESS = "codes_per_address", Rate(5, 600)
    CODES_PER_ADDRESS_A_DAY = "codes_per_address_a_day", Rate(25, 86_400)  # to one mailbox, asked for from one network
    CODES_PER_NETWORK = "codes_per_network", Rate(60, 600)
    TRIES_PER_NETWORK = "tries_per_network", Rate(150, 600)  # beside the five that each code has
    TOKENS_PER_NETWORK = "tokens_per_network", Rate(1_200, 600)
    VISITORS_PER_NETWORK = "visitors_per_network", Rate(60, 600)

    def __init__(self, label: str, rate: Rate) -> None:
        self.label = label
        self.rate = rate


def rates(setting: str) -> Mapping[Limit, Rate | None]:
    """The rate of every limit, None for one that is off: as above, but for those that `setting` names.

    `calls_per_user=1000/60 calls_per_network=off`: names in lower case, count and seconds, spaces or commas between.

    Raises:
        InvalidValue: for anything else, or a limit that comes twice.
    """
    limits = {limit.label: limit for limit in Limit}
    found: dict[Limit, Rate | None] = {}
    for part in setting.replace(",", " ").split():
        match = _SETTING.fullmatch(part)
        if match is None:
            raise InvalidValue(
                f"{part[:100]!r} sets no limit: write calls_per_user=1000/60, a count and the seconds for it, or "
                "calls_per_user=off"
            )
        limit = limits.get(match[1])
        if limit is None:
            raise InvalidValue(f"there is no limit {match[1][:100]!r}: there are {', '.join(limits)}")
        if limit in found:
            raise InvalidValue(f"{match[1]} is set twice: leave one")
        found[limit] = Rate(int(match[2]), int(match[3])) if match[2] else None
    return {limit: limit.rate for limit in Limit} | found


@lru_cache(1_024)  # to find it out takes 20 µs, and a client makes many calls
def network_of(address: str) -> str:
    """The network of an IP address, by which strangers are told apart: 256 IPv4 addresses, or a site's IPv6 prefix.

    A site gets a /48 (RFC 6177), so that its single addresses say nothing. What is no address is its own network.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 6 and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return str(ipaddress.ip_network((parsed, 24 if parsed.version == 4 else 48), strict=False))
