"""OAuth, as far as it is rules: where a server answers, which redirects are safe, and how long things are good for.

Each MCP server is a protected resource (RFC 9728) with an authorization server of its own (RFC 8414), both on its host.
What a person lets a client do, once, is a grant, and all that comes of it is one family:

    authorization code ──redeemed──▶ access and refresh token ──refreshed──▶ access and refresh token ──▶ …
        │                                   │                                      │
        └─redeemed again──┐                 └─refreshed again within 120 s: a pair beside the one it gave
                          ▼                          again later ──┐
                    the family ends ◀──────────────────────────────┴── a refresh token is revoked (RFC 7009)

Clients race their refreshes, or never get the answer, and are then not thieves; whoever comes later may be one. No
token is issued in a family that has ended.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlencode, urlsplit

from domain.errors import CairnError
from domain.tenancy import MAX_NAME_CHARS, Millis, Server

WALKTHROUGHS = "walkthroughs"
"""The scope that every tool needs."""
OFFLINE_ACCESS = "offline_access"
"""The scope by which OpenID clients ask for a refresh token; it is given to all who can use one."""
SCOPES = (WALKTHROUGHS, OFFLINE_ACCESS)

CODE_LIFETIME = Millis(60_000)
"""Of an authorization code. A client that waits for it redeems it at once."""
ACCESS_LIFETIME = Millis(3_600_000)
REFRESH_LIFETIME = Millis(30 * 86_400_000)
"""Of a refresh token, from its issue: whoever comes back within a month is still signed in."""
RETRY_GRACE = Millis(120_000)
"""How long after its first use a refresh token may be used again: longer than clients wait for an answer."""
UNUSED_LIFETIME = Millis(30 * 86_400_000)
"""Of a registration with which nobody has ever signed in."""
DOCUMENT_LIFETIME = Millis(3_600_000)
"""After which a client's document is read again."""
DOCUMENT_KEPT = Millis(86_400_000)
"""How long what it said is taken for true while it cannot be read: longer than a host is away for."""

AUTHORIZATION_CODE = "authorization_code"
REFRESH_TOKEN = "refresh_token"  # noqa: S105  # the name of a grant type
GRANT_TYPES = (AUTHORIZATION_CODE, REFRESH_TOKEN)
AUTH_METHODS = ("none", "client_secret_basic", "client_secret_post")
"""RFC 7591 section 2: how a client says who it is; `none` is what clients on people's own machines do."""

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
# RFC 8252 section 7.1 wants a scheme that is a domain name turned round; these programs chose theirs without a dot.
_EDITOR_SCHEMES = frozenset(
    {
        "claude",
        "code-oss",
        "cursor",
        "goose",
        "jetbrains",
        "kiro",
        "raycast",
        "trae",
        "vscode",
        "vscode-insiders",
        "vscodium",
        "warp",
        "windsurf",
        "zed",
    }
)
_REVERSE_DNS = re.compile(r"[a-z][a-z0-9-]*(\.[a-z0-9-]+)+")
MAX_REDIRECT_URIS = 20
# Client ids may be URLs, and are part of a key: an index takes rows of 2,700 bytes.
_MAX_URI_CHARS = 1_000
# Anybody may register, and what they say is kept for a month. They are ASCII; all else that is kept is bounded too.
_MAX_URIS_CHARS = 4_000
# RFC 3986 without what browsers mend or take for something else: a backslash is a slash to them.
_URI = re.compile(r"[!$-;=?-\[\]_a-z~%]+")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]+\]")
_CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Site(NamedTuple):
    """A server at the origin it was reached at, such as `https://acme.example.com`: no path, no slash at the end."""

    server: Server
    origin: str

    @property
    def issuer(self) -> str:
        """RFC 8414 section 2: the authorization server's name."""
        return self.origin

    @property
    def resource(self) -> str:
        """RFC 8707: what tokens of this server are for."""
        return f"{self.origin}/mcp"

    @property
    def resource_metadata(self) -> str:
        """RFC 9728 section 3: where the resource describes itself."""
        return f"{self.origin}/.well-known/oauth-protected-resource/mcp"

    def is_meant_by(self, resource: str | None) -> bool:
        """Whether a client that names this resource (RFC 8707 section 2) wants a token of this server.

        Clients name the address they were given, its origin alone, or nothing; some with a slash at the end.
        """
        if resource is None:
            return True
        parts, ours = _split(resource), _split(self.origin)
        if (
            parts is None
            or ours is None
            or parts.query
            or parts.username is not None
            or "#" in resource
            or "?" in resource
        ):
            return False
        return _origin(parts) == _origin(ours) and parts.path.removesuffix("/") in ("", "/mcp")


# ----------------------------------------------------------------------------------------------- redirects


def is_registrable(uri: object) -> bool:
    """Whether a client may be answered at this URI (RFC 9700 section 4.1, RFC 8252 sections 7.1 and 7.3).

    By https anywhere, by http on the person's own machine, or by the scheme of a native app.
    """
    if not isinstance(uri, str) or len(uri) > _MAX_URI_CHARS or not _URI.fullmatch(uri):
        return False
    parts = _split(uri)
    if parts is None or "@" in parts.netloc:
        return False
    if parts.scheme in ("http", "https"):
        return _HOST.fullmatch(_host(parts)) is not None and (parts.scheme == "https" or parts.hostname in _LOOPBACK)
    is_app = parts.scheme in _EDITOR_SCHEMES or _REVERSE_DNS.fullmatch(parts.scheme) is not None
    return is_app and bool(parts.netloc or parts.path)


def may_redirect(uri: str, registered: Sequence[str]) -> bool:
    """Whether a client that registered these may be answered at `uri`: the same text, or, on the person's own machine,
    another port (RFC 8252 section 7.3: such a client listens wherever the system lets it)."""
    if uri in registered:
        return True
    return is_registrable(uri) and any(_is_same_but_for_the_port(uri, each) for each in registered)


def _is_same_but_for_the_port(uri: str, registered: str) -> bool:
    one, other = urlsplit(uri), urlsplit(registered)
    return (
        one.scheme == other.scheme == "http"  # so that both are on that machine: nothing else is registered with it
        and one.hostname == other.hostname
        and (one.path, one.query) == (other.path, other.query)
    )


def redirect(uri: str, parameters: Sequence[tuple[str, str]]) -> str:
    """RFC 6749 section 4.1.2: `uri` with these parameters behind those that it has, which stay as they are."""
    return f"{uri}{'&' if '?' in uri else '?'}{urlencode(parameters)}"


# ------------------------------------------------------------------------------------------------- clients


class ClientRefused(CairnError):
    """A registration, or a client's document, that cannot be taken. `error` is a code of RFC 7591 section 3.2.2."""

    def __init__(self, error: str, problem: str) -> None:
        super().__init__(problem)
        self.error = error
        self.problem = problem


class DocumentAway(CairnError):
    """A client's document that cannot be had at present: its host does not answer, or says that it cannot."""


@dataclass(frozen=True, slots=True)
class Client:
    """What is known of a client. What is never used, such as its logo, is not kept."""

    name: str
    redirect_uris: tuple[str, ...]
    grant_types: tuple[str, ...]
    auth_method: str

    @classmethod
    def registered(cls, metadata: Mapping[str, Any]) -> Client:
        """RFC 7591 section 2: what a client says of itself. What Cairn knows nothing of is left out.

        Without `grant_types` a client gets all there are: a person then signs in once, not every hour.

        Raises:
            ClientRefused.
        """
        redirect_uris = metadata.get("redirect_uris")
        if (
            not isinstance(redirect_uris, list)
            or not 1 <= len(redirect_uris) <= MAX_REDIRECT_URIS
            or not all(is_registrable(uri) for uri in redirect_uris)
        ):
            raise ClientRefused(
                "invalid_redirect_uri",
                f"Give 1 to {MAX_REDIRECT_URIS} redirect_uris: https, http on 127.0.0.1, [::1] or localhost, or an "
                "app's own scheme such as com.example.app; without fragment and user name.",
            )
        auth_method = metadata.get("token_endpoint_auth_method") or "client_secret_basic"
        if auth_method not in AUTH_METHODS:
            raise ClientRefused(
                "invalid_client_metadata", f"token_endpoint_auth_method is one of: {', '.join(AUTH_METHODS)}."
            )
        asked_for = _texts(metadata, "grant_types", GRANT_TYPES)
        if AUTHORIZATION_CODE not in asked_for or "code" not in _texts(metadata, "response_types", ("code",)):
            problem = "Only the authorization code flow is served: name authorization_code in grant_types."
            raise ClientRefused("invalid_client_metadata", problem)
        name = metadata.get("client_name") or ""
        if not isinstance(name, str):
            raise ClientRefused("invalid_client_metadata", "client_name is a text.")
        if sum(map(len, redirect_uris)) > _MAX_URIS_CHARS:
            problem = f"All redirect_uris together have at most {_MAX_URIS_CHARS:,} characters: register fewer of them."
            raise ClientRefused("invalid_client_metadata", problem)
        grant_types = tuple(grant_type for grant_type in GRANT_TYPES if grant_type in asked_for)
        return cls(_one_line(name) or "An unnamed client", tuple(redirect_uris), grant_types, auth_method)

    @classmethod
    def documented(cls, url: str, document: Mapping[str, Any]) -> Client:
        """What a client says of itself in the document whose URL is its id
        (draft-ietf-oauth-client-id-metadata-document section 4). Such a client has no secret.

        Raises:
            ClientRefused: also when it is another client's document.
        """
        # Some offer several ways, of which the first is one that Cairn has not got.
        others = document.get("token_endpoint_auth_methods_supported")
        offered = [document.get("token_endpoint_auth_method") or "none", *(others if isinstance(others, list) else ())]
        if document.get("client_id") != url or "client_secret" in document or "none" not in offered:
            raise ClientRefused("invalid_client_metadata", "A document names itself as client_id, and holds no secret.")
        name = document.get("client_name") or urlsplit(url).hostname
        return cls.registered({**document, "client_name": name, "token_endpoint_auth_method": "none"})

    def metadata(self) -> dict[str, Any]:
        """As RFC 7591 section 3.2.1 tells it; `registered` reads it back."""
        return {
            "client_name": self.name,
            "redirect_uris": list(self.redirect_uris),
            "grant_types": list(self.grant_types),
            "response_types": ["code"],
            "token_endpoint_auth_method": self.auth_method,
        }


def is_document_url(client_id: str) -> bool:
    """Whether a client is known by a document of its own: its id is an https URL with a path."""
    if not is_registrable(client_id):
        return False
    parts = urlsplit(client_id)
    return (
        client_id.startswith("https://")
        and parts.path not in ("", "/")
        and not any(segment in (".", "..") for segment in parts.path.lower().replace("%2e", ".").split("/"))
    )


def is_known(client_id: str, known_at: Millis, last_used_at: Millis | None, now: Millis) -> bool:
    """Whether a client may ask people for anything. `known_at` is when it registered, or when its document was read."""
    if is_document_url(client_id):
        return now - known_at < DOCUMENT_KEPT
    return last_used_at is not None or now - known_at < UNUSED_LIFETIME


def is_to_be_read(read_at: Millis | None, now: Millis) -> bool:
    """Whether a client's document has to be looked up, which was read at that time, or never."""
    return read_at is None or now - read_at >= DOCUMENT_LIFETIME


def _texts(metadata: Mapping[str, Any], name: str, default: Sequence[str]) -> Sequence[str]:
    given = metadata.get(name)
    if given is None:
        return default
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise ClientRefused("invalid_client_metadata", f"{name} is a list of texts.")
    return given


def _one_line(name: str) -> str:
    """A name that a stranger chose, as it may be shown: one line, and nothing that turns the text around it."""
    kept = "".join(
        " " if unicodedata.category(character) == "Cc" else character
        for character in name[: 10 * MAX_NAME_CHARS]
        if unicodedata.category(character) not in ("Cf", "Cs", "Co", "Cn")
    )
    return " ".join(kept.split())[:MAX_NAME_CHARS].strip()


# ----------------------------------------------------------------------------------------- codes and tokens


def granted_scope(asked_for: str | None) -> str | None:
    """RFC 6749 section 3.3: of what a client asks for, what there is. None: nothing of it.

    Names are divided by the space alone: other blanks are no names, and divide none.
    """
    if asked_for is None:
        return WALKTHROUGHS
    names = asked_for.split(" ")
    return " ".join(scope for scope in SCOPES if scope in names) or None


def is_challenge(text: str | None) -> bool:
    """Whether this can be a code challenge by S256 (RFC 7636 section 4.2)."""
    return text is not None and _CHALLENGE.fullmatch(text) is not None


def proves(verifier: str, challenge: str) -> bool:
    """RFC 7636 section 4.6: whether whoever has this verifier began what has this challenge."""
    digest = hashlib.sha256(verifier.encode(errors="replace")).digest()
    return hmac.compare_digest(base64.urlsafe_b64encode(digest).rstrip(b"="), challenge.encode(errors="replace"))


class Use(Enum):
    """What it means that an authorization code or a refresh token is used."""

    FIRST = "first"
    """It is good for tokens, and used up."""
    RETRIED = "retried"
    """It is good for tokens once more: the client did not get the first ones, or asked twice at once."""
    REUSED = "reused"
    """The family ends: two have it, and one of them is no client of ours."""
    EXPIRED = "expired"
    """It is good for nothing."""


def use_of_code(used_at: Millis | None, expires_at: Millis, now: Millis) -> Use:
    """RFC 6749 section 4.1.2. `used_at` is when it was redeemed."""
    if used_at is not None:
        return Use.REUSED
    return Use.FIRST if now < expires_at else Use.EXPIRED


def use_of_refresh_token(used_at: Millis | None, expires_at: Millis, now: Millis) -> Use:
    """RFC 9700 section 4.14.2. `used_at` is when it was first used."""
    if used_at is not None and now - used_at > RETRY_GRACE:
        return Use.REUSED
    if now >= expires_at:
        return Use.EXPIRED
    return Use.FIRST if used_at is None else Use.RETRIED


# --------------------------------------------------------------------------------------------- URLs in parts


def _split(uri: str) -> SplitResult | None:
    try:
        parts = urlsplit(uri)
        _ = parts.port  # checked only when it is read
    except ValueError:
        return None
    return parts


def _host(parts: SplitResult) -> str:
    return re.sub(r":[0-9]*\Z", "", parts.netloc)


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)
