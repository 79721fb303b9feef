"""Organisations, their MCP servers and the people on them: names, keys and who may call.

An organisation is the tenant. Every key of anything that belongs to one begins with its id, so that no
query can be written, and no row stored, without saying whose it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from domain.errors import InvalidValue

Millis = NewType("Millis", int)
"""A point in time, Unix milliseconds; or a span, in milliseconds, where a name says so."""

OrganizationId = NewType("OrganizationId", str)
ServerId = NewType("ServerId", str)
UserId = NewType("UserId", str)
WalkthroughId = NewType("WalkthroughId", str)
StepId = NewType("StepId", str)
CallId = NewType("CallId", str)

# One DNS label (RFC 1035 section 2.3.1, digits allowed first by RFC 1123 section 2.1): slugs become host names.
# Labels with hyphens in third and fourth place are reserved (RFC 5891 section 4.2.3.1).
_SLUG = re.compile(r"(?!..--)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
KEY = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DOMAIN = re.compile(r"(?=.{1,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]")
# Deliberately loose: an address is proved by a message that arrives, not by a pattern. RFC 5321 4.5.3.1: ≤ 254.
_EMAIL = re.compile(r"(?=.{3,254}\Z)[^\s@<>,;\x00-\x1f\x7f]{1,64}@[^\s@<>,;\x00-\x1f\x7f]+")
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
    """An e-mail address as Cairn compares it: trimmed, its ASCII letters lower-cased.

    Other letters stay as they are: some fold to ASCII ones (the Kelvin sign to k), and two mailboxes would be one.

    Raises:
        InvalidValue: when it is no address.
    """
    lowered = value.strip().translate(_ASCII_LOWER)
    if not _EMAIL.fullmatch(lowered) or BREAKS_A_LINE.search(lowered):
        raise InvalidValue(f"{value!r} cannot be an e-mail address: give one such as ada@example.com")
    return lowered


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


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls a tool, and where. `user_id` is None for someone who has not signed in."""

    server: ServerKey
    user_id: UserId | None
