"""Every setting of Cairn, once. Each is an environment variable; the command line overrides some of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from application.limits import rates
from domain.errors import InvalidValue
from domain.tenancy import domain_name, slug
from entrypoints.http.proxies import trusted_networks

# RFC 6454 section 6.2; editors and browser extensions have schemes of their own.
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})")
_MAX_PORT = 65_535
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@*]+")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a process needs to know from outside. The variable is the field's name, upper-case, after `CAIRN_`."""

    data_dir: Path = Path(".cairn")
    """Where the embedded PostgreSQL and the token of `cairn dev` live."""
    database_url: str | None = None
    """`postgresql://…` of an existing server, PostgreSQL 15 to 18. Unset: the embedded one in the data directory."""
    owner_database_url: str | None = None
    """The same database as its owner, for migrations. Unset: `database_url` is the owner's, and the service gives
    up the owner's rights on each connection."""
    base_domain: str = "localhost"
    """A server with the slug `acme` answers at `acme.<base domain>`."""
    default_server: str | None = None
    """Slug of the server that answers at bare `127.0.0.1`, `[::1]` and `localhost`; unset: none does."""
    allowed_origins: str | None = None
    """Origins whose pages may call, as browsers write them (`https://app.example.com`), with spaces or commas between
    them; `*`: any. Pages of a server's own host and of the reader's own machine always may."""

    trusted_proxies: str | None = None
    """Networks of the proxies in front (`10.0.0.0/8`), with spaces or commas between them: what these say in
    X-Forwarded-For and X-Forwarded-Proto is believed. Unset: nobody is."""
    smtp_url: str | None = None
    """`smtp://user:password@host:587`, or `smtps://` for TLS from the start: how sign-in codes are sent. Unset: people
    can sign in only through their organisation's identity provider."""
    mail_from: str | None = None
    """The address that sign-in codes come from. Unset: `cairn@` and the base domain."""
    rate_limit_url: str | None = None
    """`redis://…` of a Redis or Valkey in which all processes count together. Unset: each process counts for itself."""
    limits: str | None = None
    """Limits other than the usual, by name: `calls_per_user=1000/60 calls_per_network=off`, a count and the seconds for
    it, with spaces or commas between them."""
    metrics_address: str | None = None
    """`127.0.0.1:9464`: where Prometheus reads `/metrics`; whoever can reach that address can. Unset: nobody can."""
    client_documents: str = "on"
    """Whether MCP clients may be known by a document that they publish on the web. `off` where this service has no way
    out to it: a client that has one then registers instead."""

    def __post_init__(self) -> None:
        if self.default_server is not None:
            _checked("default_server", slug, self.default_server)
        if self.base_domain != "localhost":
            _checked("base_domain", domain_name, self.base_domain)
        for origin in self.origins():
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise InvalidValue(
                    f"CAIRN_ALLOWED_ORIGINS: {origin!r} is no origin: write it like https://app.example.com, with a "
                    "scheme and without a path"
                )
        if self.client_documents not in ("on", "off"):
            raise InvalidValue("CAIRN_CLIENT_DOCUMENTS is on or off")
        if self.trusted_proxies is not None:
            _checked("trusted_proxies", trusted_networks, self.trusted_proxies)
        if self.limits is not None:
            _checked("limits", rates, self.limits)
        if self.metrics_address is not None:
            _checked("metrics_address", host_and_port, self.metrics_address)
        if self.rate_limit_url is not None:
            _checked("rate_limit_url", _check_redis_url, self.rate_limit_url)
        for url in (self.database_url, self.owner_database_url):
            if url is not None and not url.startswith(("postgresql://", "postgres://")):
                raise InvalidValue("CAIRN_DATABASE_URL and CAIRN_OWNER_DATABASE_URL begin with postgresql://")
        if self.owner_database_url is not None and self.database_url is None:
            raise InvalidValue("CAIRN_OWNER_DATABASE_URL needs CAIRN_DATABASE_URL, the service's own login, beside it")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, **overrides: Any) -> Self:
        """The settings of this process; `overrides` that are not None win, empty variables count as unset.

        Raises:
            InvalidValue: for a value that cannot be.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            if value := environment.get(_variable(field.name)):
                values[field.name] = value
        values |= {name: value for name, value in overrides.items() if value is not None}
        if "data_dir" in values:
            values["data_dir"] = Path(values["data_dir"])
        return cls(**values)

    def origins(self) -> Set[str]:
        """The allowed origins one by one, in lower case as browsers send them."""
        return frozenset((self.allowed_origins or "").lower().replace(",", " ").split())

    def environment(self) -> Mapping[str, str]:
        """The variables that make these settings again, for a worker process."""
        values = {_variable(field.name): getattr(self, field.name) for field in fields(self)}
        return {name: str(value) for name, value in values.items() if value is not None}


def host_and_port(address: str) -> tuple[str, int]:
    """The two parts of an address to listen on; port 0 is a free one.

    Raises:
        InvalidValue: for anything else.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[3]) > _MAX_PORT:
        raise InvalidValue(f"{address[:100]!r} is no address to listen on: write it like 127.0.0.1:9464, or [::1]:9464")
    return match[1] or match[2], int(match[3])


def _check_redis_url(value: str) -> None:
    try:
        parts = urlsplit(value)
        is_fit = parts.scheme in ("redis", "rediss") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        is_fit = False
    if not is_fit:
        raise InvalidValue("write it like redis://127.0.0.1:6379, or rediss:// for TLS")  # not the value: a password


def _checked(name: str, check: Callable[[str], object], value: str) -> None:
    try:
        check(value)
    except InvalidValue as error:
        raise InvalidValue(f"{_variable(name)}: {error}") from error


def _variable(name: str) -> str:
    return f"CAIRN_{name.upper()}"
