"""Organisations, their MCP servers and the people on them: names, keys and who may call.

An organisation is the tenant. Every key of anything that belongs to one begins with its id, so that no
query can be written, and no row stored, without saying whose it is.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, NewType

from domain.errors import InvalidValue

Millis = NewType("Millis", int)
"""A point in time, Unix milliseconds; or a span, in milliseconds, where a name says so."""

OrganizationId = NewType("OrganizationId", str)
ServerId = NewType("ServerId", str)
UserId = NewType("UserId", str)
WalkthroughId = NewType("WalkthroughId", str)
StepId = NewType("StepId", str)
CallId = NewType("CallId", str)


def hash_of(secret: str) -> bytes:
    """What is stored of a secret that was made of random bits: its SHA-256, 32 bytes. A copy of it opens nothing."""
    return hashlib.sha256(secret.encode(errors="replace")).digest()


# One DNS label (RFC 1035 section 2.3.1, digits allowed first by RFC 1123 section 2.1): slugs become host names.
# Labels with hyphens in third and fourth place are reserved (RFC 5891 section 4.2.3.1).
_SLUG = re.compile(r"(?!..--)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
KEY = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DOMAIN = re.compile(r"(?=.{1,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]")
# RFC 5322 section 3.2.3, with the letters of RFC 6531 section 3.3 by their category: `_is_dot_atom`.
_ATOMS = re.compile(r"[^.]+(\.[^.]+)*")
_ATOM_SIGNS = frozenset("!#$%&'*+-/=?^_`{|}~.")
_MAX_MAILBOX_BYTES = 64  # RFC 5321 section 4.5.3.1.1
_MAX_ADDRESS_BYTES = 254  # section 4.5.3.1.3, without the angle brackets
# Control characters, Unicode's line and paragraph separators, and halves of surrogate pairs. Joiners are not among
# them: emoji and Persian need those.
BREAKS_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
MAX_NAME_CHARS = 100
_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def slug(value: str) -> str:
    """A name fit to be a host label.

    Raises:
        InvalidValue: for anything but 1 to 63 lower-case letters, digits and inner hyphens.
    """
    if not _SLUG.fullmatch(value):
        raise InvalidValue(
            f"{value!r} cannot be a slug: use 1 to 63 lower-case letters, digits and hyphens, "
            "beginning and ending with a letter or digit"
        )
    return value


def key(value: str) -> str:
    """A stable name for a walkthrough or a step.

    Raises:
        InvalidValue: for anything but 1 to 64 lower-case letters, digits, `.`, `_` and `-`.
    """
    if not KEY.fullmatch(value):
        raise InvalidValue(
            f"{value!r} cannot be a key: use 1 to 64 lower-case letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    return value


def domain_name(value: str) -> str:
    """A custom domain, lower-cased, without scheme or port.

    Raises:
        InvalidValue: when it is no host name.
    """
    lowered = value.translate(_ASCII_LOWER).removesuffix(".")
    if not _DOMAIN.fullmatch(lowered):
        raise InvalidValue(f"{value!r} cannot be a domain: give a host name such as guides.example.com")
    return lowered


def display_name(value: str) -> str:
    """What people see of an organisation or server: one line of 1 to `MAX_NAME_CHARS` characters.

    Raises:
        InvalidValue: for anything else.
    """
    if not value.strip() or len(value) > MAX_NAME_CHARS or BREAKS_A_LINE.search(value):
        raise InvalidValue(f"a name is one line of 1 to {MAX_NAME_CHARS} characters")
    return value


def email_address(value: str) -> str:
    """An e-mail address as Cairn compares it, and as messages are sent to it: trimmed, its ASCII letters lower-cased,
    the domain in its ASCII form (RFC 5890 section 2.3.2.1).

    One mailbox has one spelling: quotes, comments and address literals (RFC 5321 section 4.1.2), by which it would have
    many, are refused. Letters beyond ASCII stay as they are before the @ sign; some fold to ASCII ones (the Kelvin sign
    to k), and two mailboxes would be one.

    Raises:
        InvalidValue: when it is no such address.
    """
    mailbox, _, domain = value.strip().translate(_ASCII_LOWER).rpartition("@")
    try:
        if _is_dot_atom(mailbox):
            address = f"{mailbox}@{_ascii_domain(domain)}"
            if len(address.encode()) <= _MAX_ADDRESS_BYTES:
                return address
    except InvalidValue:
        pass
    raise InvalidValue(f"{value!r} cannot be an e-mail address: give one such as ada@example.com")


def _is_dot_atom(mailbox: str) -> bool:
    return (
        _ATOMS.fullmatch(mailbox) is not None
        and all(character in _ATOM_SIGNS or unicodedata.category(character)[0] in "LMN" for character in mailbox)
        # What only looks like another letter, or is one that is put together, would be a second spelling.
        and unicodedata.is_normalized("NFKC", mailbox)
        and len(mailbox.encode()) <= _MAX_MAILBOX_BYTES
    )


def _ascii_domain(value: str) -> str:
    """
    Raises:
        InvalidValue: also for a name that only the older rules (RFC 3490) take for the one that they make of it: by the
            newer ones (RFC 5891) it may be another domain, and somebody else's.
    """
    if len(value) > _MAX_ADDRESS_BYTES:  # what follows takes its time with long ones
        raise InvalidValue("this is too long for a domain")
    plain = unicodedata.normalize("NFKC", value).lower()
    if plain.isascii():
        return domain_name(plain)
    try:
        encoded = plain.encode("idna")
        if encoded.decode("idna") == plain:
            return domain_name(encoded.decode("ascii"))
    except UnicodeError:
        pass
    raise InvalidValue(f"{value!r} is no domain")


class AuthMode(StrEnum):
    """Who may call a server's tools without a token."""

    ON_CONNECT = "on_connect"
    """Nobody: the first request already needs one."""
    ON_DEMAND = "on_demand"
    """Anybody may list; every other tool needs one."""
    ANONYMOUS = "anonymous"
    """As on demand; and whoever has a personal address of the server needs none there."""


@dataclass(frozen=True, slots=True)
class ServerKey:
    """Names one MCP server of one organisation."""

    organization_id: OrganizationId
    server_id: ServerId


@dataclass(frozen=True, slots=True)
class Server:
    """A virtual host on which an organisation's walkthroughs are taken."""

    key: ServerKey
    slug: str
    name: str
    auth_mode: AuthMode
    custom_domain: str | None = None

    def __post_init__(self) -> None:
        slug(self.slug)
        display_name(self.name)
        if self.custom_domain is not None and domain_name(self.custom_domain) != self.custom_domain:
            raise InvalidValue(f"{self.custom_domain!r} must be in lower case")


class Caller(NamedTuple):
    """Who calls a tool, and where. `user_id` is None for someone who has not signed in."""

    server: ServerKey
    user_id: UserId | None
