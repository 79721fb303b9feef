"""Sign-in at an organisation's own identity provider: OpenID Connect Core 1.0 and Discovery 1.0, code flow with PKCE.

The issuer is the operator's own word, so addresses inside the network are as good as any. What comes from there is not
taken on trust: an answer has a size and a time, and an ID token counts when everything about it is right.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import warnings
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, TypeVar
from urllib.parse import quote_plus, urlencode

import httpx2
import msgspec
import structlog
from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import JWKRegistry, Key, RSAKey

from application.ports import Clock, Parameters, ProvenIdentity
from domain.errors import InvalidValue, SignInFailed
from domain.sign_in import OidcProvider
from domain.tenancy import BREAKS_A_LINE, Millis, email_address

_T = TypeVar("_T")

_TIMEOUT_SECONDS = 5.0
_MAX_BYTES = 262_144
_MAX_PUBLISHED = 1_000
_KEEP = Millis(3_600_000)
# Keys are asked for again when one is missing: a provider may change them at any time. Not more often than this.
_ASK_AGAIN_AFTER = Millis(10_000)
# A provider that does not describe itself is left alone for so long: anybody may press the button that asks it.
_TRY_AGAIN_AFTER = Millis(5_000)
# How far the provider's clock may be from ours.
_LEEWAY_SECONDS = 60
_MAX_SUBJECT_CHARS = 255  # OpenID Connect Core section 2
_MIN_RSA_BITS = 2_048  # RFC 7518 section 3.3
# Certificates in the header are allowed, and passed over.
_MAX_HEADER_BYTES = 16_384
# By a public key only: with one by a shared secret, what the provider publishes could be taken for the secret.
_KEY_TYPES = {"RS256": "RSA", "PS256": "RSA", "ES256": "EC", "EdDSA": "OKP", "Ed25519": "OKP"}
_ERROR_CODE = re.compile(r"[a-z_]{1,60}")

_log = structlog.get_logger(__name__)


class _Metadata(msgspec.Struct, frozen=True):
    """What a provider says of itself (Discovery section 3, RFC 8414, RFC 9207), as far as it matters here."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    token_endpoint_auth_methods_supported: Sequence[str] = ("client_secret_basic",)
    id_token_signing_alg_values_supported: Sequence[str] = ("RS256",)
    authorization_response_iss_parameter_supported: bool = False

    @property
    def algorithms(self) -> Sequence[str]:
        return [name for name in self.id_token_signing_alg_values_supported if name in _KEY_TYPES]


class _KeySet(msgspec.Struct, frozen=True):
    keys: Sequence[dict[str, Any]]


class _Tokens(msgspec.Struct, frozen=True):
    id_token: str
    # RFC 6749 appendix A.12, without spaces: it goes into a header, and what cannot must not end in a log instead.
    access_token: Annotated[str, msgspec.Meta(pattern=r"\A[!-~]+\Z")] | None = None


class _Claims(msgspec.Struct, frozen=True):
    """Of an ID token. What the address claims hold is for `_address` to judge."""

    iss: str
    sub: str
    aud: str | Sequence[str]
    exp: float
    iat: float
    nonce: str | None = None
    azp: str | None = None
    nbf: float | None = None
    email: Any = None
    email_verified: Any = None


class _UserInfo(msgspec.Struct, frozen=True):
    sub: str
    email: Any = None
    email_verified: Any = None


class _Problem(msgspec.Struct, frozen=True):
    error: str


@dataclass(frozen=True, slots=True)
class _Read:
    """Something that a provider publishes, and when it was read."""

    what: Any
    at: Millis


class _Unreachable(Exception):
    """What was asked for could not be had. Says what, to the operator."""


class _Untrusted(Exception):
    """What was had is a refusal, or cannot be true. Says why, to the operator."""


class OpenIdConnect:
    """The port `IdentityProvider`, over HTTP."""

    def __init__(self, clock: Clock, *, timeout_seconds: float = _TIMEOUT_SECONDS) -> None:
        """`timeout_seconds` is for each request. `complete` makes up to four, and two where all is known already."""
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._tls = httpx2.create_ssl_context()
        self._published: dict[str, _Read] = {}

    async def begin(self, provider: OidcProvider, return_to: str, state: str, nonce: str, verifier: str) -> str:
        """The URL at the provider to send the browser to (Core section 3.1.2.1, RFC 7636 section 4.3).

        Raises:
            SignInFailed: when the provider cannot be reached, or does not describe itself.
        """
        try:
            metadata = await self._metadata(provider)
        except (_Unreachable, _Untrusted) as error:
            raise _failed(provider, error) from error
        query = urlencode(
            {
                "response_type": "code",
                "client_id": provider.client_id,
                "redirect_uri": return_to,
                "scope": "openid email",
                "state": state,
                "nonce": nonce,
                "code_challenge": urlsafe_b64encode(sha256(verifier.encode()).digest()).decode().rstrip("="),
                "code_challenge_method": "S256",
            }
        )
        return f"{metadata.authorization_endpoint}{'&' if '?' in metadata.authorization_endpoint else '?'}{query}"

    async def complete(
        self, provider: OidcProvider, return_to: str, parameters: Parameters, nonce: str, verifier: str
    ) -> ProvenIdentity:
        """Whom the provider vouches for (Core section 3.1.3). Whether the state is right, the caller knows already.

        Raises:
            SignInFailed: when it vouches for nobody, or what it says cannot be trusted.
        """
        try:
            metadata = await self._metadata(provider)
            code = _code(provider, metadata, parameters)
            tokens = await self._tokens(provider, metadata, return_to, code, verifier)
            claims = _verified(provider, metadata, nonce, await self._payload(provider, metadata, tokens), self._clock)
            address = claims.email, claims.email_verified
            if claims.email is None:
                address = await self._address_of(provider, metadata, tokens, claims.sub)
        except (_Unreachable, _Untrusted) as error:
            raise _failed(provider, error) from error
        email, is_verified = _address(*address)
        return ProvenIdentity(metadata.issuer, claims.sub, email, is_verified)

    async def check(self, provider: OidcProvider) -> None:
        """Asks the provider to describe itself, and for its keys, afresh.

        Raises:
            InvalidValue: when people could not sign in with it, and why.
        """
        try:
            metadata = await self._described(provider)
            if not await self._fetched_keys(metadata):
                raise _Untrusted(f"{metadata.jwks_uri} has no key that Cairn can use")
        except (_Unreachable, _Untrusted) as error:
            raise InvalidValue(f"nobody could sign in with {provider.issuer}: {error}") from error

    # ---------------------------------------------------------------------------------- what it publishes

    async def _metadata(self, provider: OidcProvider) -> _Metadata:
        found = await self._kept(provider.issuer, lambda: self._tried(provider), _KEEP)
        if not isinstance(found, _Metadata):
            found = await self._kept(provider.issuer, lambda: self._tried(provider), _TRY_AGAIN_AFTER)
        if isinstance(found, _Metadata):
            return found
        raise type(found)(str(found))  # anew: each raise of one exception makes it longer

    async def _tried(self, provider: OidcProvider) -> _Metadata | _Unreachable | _Untrusted:
        try:
            return await self._described(provider)
        except (_Unreachable, _Untrusted) as error:
            return error

    async def _described(self, provider: OidcProvider) -> _Metadata:
        url = f"{provider.issuer.removesuffix('/')}/.well-known/openid-configuration"
        metadata = await self._asked(_Metadata, "GET", url)
        if metadata.issuer != provider.issuer:
            raise _Untrusted(f"{url} says that the issuer is {metadata.issuer[:200]!r}: give it exactly like that")
        endpoints = (metadata.authorization_endpoint, metadata.token_endpoint, metadata.jwks_uri)
        for endpoint in (*endpoints, *filter(None, [metadata.userinfo_endpoint])):
            if not provider.can_be_at(endpoint):
                raise _Untrusted(f"{url} names the endpoint {endpoint[:200]!r}, which is no https URL")
        if not metadata.algorithms:
            raise _Untrusted(f"it signs with none of {', '.join(_KEY_TYPES)}")
        if _authentication(metadata) is None:
            raise _Untrusted("it takes neither client_secret_basic nor client_secret_post")
        return metadata

    async def _key(self, metadata: _Metadata, algorithm: str, kid: str | None) -> Key:
        for no_older_than in (_KEEP, _ASK_AGAIN_AFTER):
            keys = await self._kept(
                f"{metadata.issuer} {metadata.jwks_uri}", lambda: self._fetched_keys(metadata), no_older_than
            )
            fitting = [key for key in keys if _fits(key, algorithm, kid)]
            # Several of one name, or several and no name: which one is meant cannot be known.
            if len(fitting) == 1:
                return fitting[0]
        raise _Untrusted(f"the ID token is signed by a key that is not at {metadata.jwks_uri}")

    async def _fetched_keys(self, metadata: _Metadata) -> Sequence[Key]:
        published = await self._asked(_KeySet, "GET", metadata.jwks_uri)
        return [key for key in map(_imported, published.keys) if key is not None]

    async def _kept(self, name: str, read: Callable[[], Awaitable[_T]], no_older_than: Millis) -> _T:
        now = self._clock.now()
        known = self._published.get(name)
        if known is None or now - known.at >= no_older_than:
            what = await read()
            known = _Read(what, self._clock.now())
            self._published.pop(name, None)
            self._published[name] = known
            if len(self._published) > _MAX_PUBLISHED:
                del self._published[next(iter(self._published))]
        kept: _T = known.what
        return kept

    # --------------------------------------------------------------------------------- what it is asked for

    async def _tokens(
        self, provider: OidcProvider, metadata: _Metadata, return_to: str, code: str, verifier: str
    ) -> _Tokens:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": return_to,
            "code_verifier": verifier,
        }
        headers = {}
        if _authentication(metadata) == "client_secret_basic":
            # RFC 6749 section 2.3.1: both are encoded as in a form first.
            pair = f"{quote_plus(provider.client_id)}:{quote_plus(provider.client_secret)}"
            headers["authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        else:
            form |= {"client_id": provider.client_id, "client_secret": provider.client_secret}
        return await self._asked(_Tokens, "POST", metadata.token_endpoint, headers, form)

    async def _payload(self, provider: OidcProvider, metadata: _Metadata, tokens: _Tokens) -> bytes:
        """What the ID token holds, once its signature is found to be the provider's."""
        registry = jws.JWSRegistry(algorithms=metadata.algorithms, strict_check_header=False)
        registry.max_header_length = _MAX_HEADER_BYTES
        registry.max_payload_length = _MAX_BYTES
        try:
            signed = jws.extract_compact(tokens.id_token.encode(), registry=registry)
            algorithm, kid = signed.headers()["alg"], signed.headers().get("kid")
            if algorithm not in metadata.algorithms:
                raise _Untrusted("the ID token is signed by an algorithm that the provider does not name, or Cairn")
            key = await self._key(metadata, algorithm, kid)
            with warnings.catch_warnings(action="ignore", category=SecurityWarning):  # EdDSA has a newer name
                is_right = jws.validate_compact(signed, key, registry=registry)
        except (JoseError, ValueError, TypeError, RecursionError) as error:
            raise _Untrusted(f"the ID token cannot be read ({type(error).__name__})") from error
        if not is_right:
            raise _Untrusted("the signature of the ID token is not right")
        return signed.payload

    async def _address_of(
        self, provider: OidcProvider, metadata: _Metadata, tokens: _Tokens, subject: str
    ) -> tuple[Any, Any]:
        """What the provider says at its user info endpoint (Core section 5.3), where it has one."""
        if metadata.userinfo_endpoint is None or tokens.access_token is None:
            return None, None
        headers = {"authorization": f"Bearer {tokens.access_token}"}
        try:
            found = await self._asked(_UserInfo, "GET", metadata.userinfo_endpoint, headers)
        except (_Unreachable, _Untrusted) as error:
            # Who it is, is known. An address that is wanted can be proved by a code.
            _log.warning("no user info from the identity provider", issuer=provider.issuer, reason=str(error))
            return None, None
        if found.sub != subject:
            raise _Untrusted("the user info is someone else's")
        return found.email, found.email_verified

    async def _asked(
        self,
        kind: type[_T],
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
    ) -> _T:
        """What this URL answers, without following anywhere."""
        try:
            async with (
                asyncio.timeout(self._timeout_seconds),
                # A proxy of the operator's is for https alone: plain http never leaves this machine.
                httpx2.AsyncClient(verify=self._tls, trust_env=url.startswith("https:"), timeout=None) as client,
                client.stream(
                    method,
                    url,
                    headers={"accept": "application/json", "accept-encoding": "identity", **(headers or {})},
                    data=form,
                ) as response,
            ):
                body = b""
                async for part in response.aiter_raw():
                    body += part
                    if len(body) > _MAX_BYTES:
                        raise _Unreachable(f"{url} answered more than {_MAX_BYTES:,} bytes")
        except TimeoutError:
            raise _Unreachable(f"{url} did not answer within {self._timeout_seconds:g} s") from None
        except (OSError, httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise _Unreachable(f"{url} cannot be reached ({str(error) or type(error).__name__})") from error
        if response.status_code != httpx2.codes.OK:
            kind_of_problem = _Untrusted if response.is_client_error else _Unreachable
            raise kind_of_problem(f"{url} answered {response.status_code}{_error_code(body)}")
        try:
            return msgspec.json.decode(body, type=kind)
        except (ValueError, RecursionError) as error:
            # A validation error names fields and types, never what they hold.
            what = str(error) if isinstance(error, msgspec.ValidationError) else "it is not JSON"
            raise _Unreachable(f"{url} did not answer as it should: {what}") from error


def _failed(provider: OidcProvider, error: Exception) -> SignInFailed:
    _log.warning("sign-in at the identity provider failed", issuer=provider.issuer, reason=str(error))
    if isinstance(error, _Unreachable):
        return SignInFailed(f"{provider.name} cannot be asked at the moment: try again in a minute.")
    return SignInFailed(
        f"{provider.name} did not confirm who you are: try again, and if it happens again, tell whoever sent you here."
    )


def _code(provider: OidcProvider, metadata: _Metadata, parameters: Parameters) -> str:
    """The code that the browser brought (RFC 6749 section 4.1.2, RFC 9207 section 2.4)."""
    fields = dict(parameters)
    if len(fields) < len(parameters):
        raise _Untrusted("the browser came back with a parameter twice")
    issuer = fields.get("iss")
    if issuer != metadata.issuer and (issuer is not None or metadata.authorization_response_iss_parameter_supported):
        raise _Untrusted("the browser came back from another issuer")
    if fields.get("error") == "access_denied":
        raise SignInFailed(f"{provider.name} was told not to sign you in: try again.")
    if "error" in fields:
        code = fields["error"]
        raise _Untrusted(f"the provider refused ({code if _ERROR_CODE.fullmatch(code) else 'for no known reason'})")
    if not fields.get("code"):
        raise _Untrusted("the browser came back without a code")
    return fields["code"]


def _verified(provider: OidcProvider, metadata: _Metadata, nonce: str, payload: bytes, clock: Clock) -> _Claims:
    """The claims of an ID token whose signature is right, once they are found to be for this sign-in (Core 3.1.3.7)."""
    try:
        claims = msgspec.json.decode(payload, type=_Claims)
    except (ValueError, RecursionError) as error:
        what = str(error) if isinstance(error, msgspec.ValidationError) else "it is not JSON"
        raise _Untrusted(f"the ID token is not as it should be: {what}") from error
    now = clock.now() / 1000
    audience = [claims.aud] if isinstance(claims.aud, str) else claims.aud
    if claims.iss != metadata.issuer:
        raise _Untrusted("the ID token is another issuer's")
    if provider.client_id not in audience:
        raise _Untrusted("the ID token is for another client")
    if claims.azp != provider.client_id and (claims.azp is not None or len(audience) > 1):
        raise _Untrusted("the ID token was given to another client")
    if claims.exp <= now - _LEEWAY_SECONDS:
        raise _Untrusted("the ID token has expired")
    if max(claims.iat, claims.nbf or 0) > now + _LEEWAY_SECONDS:
        raise _Untrusted("the ID token is from the future: is the clock of this machine right?")
    if claims.nonce is None or not hmac.compare_digest(claims.nonce.encode(), nonce.encode()):
        raise _Untrusted("the ID token is for another sign-in")
    if not 0 < len(claims.sub) <= _MAX_SUBJECT_CHARS or BREAKS_A_LINE.search(claims.sub):
        raise _Untrusted("the ID token has no subject that can be kept")
    return claims


def _address(email: Any, is_verified: Any) -> tuple[str | None, bool]:
    """An address as Cairn compares it, and whether the provider says that it is the person's."""
    if not isinstance(email, str) or BREAKS_A_LINE.search(email):
        return None, False
    try:
        # Some providers write the claim as a string, against the specification (Core section 5.1).
        return email_address(email), is_verified is True or is_verified == "true"
    except InvalidValue:
        return None, False


def _authentication(metadata: _Metadata) -> str | None:
    for method in ("client_secret_basic", "client_secret_post"):
        if method in metadata.token_endpoint_auth_methods_supported:
            return method
    return None


def _imported(published: dict[str, Any]) -> Key | None:
    """A key that may sign ID tokens; None for any other: a set may hold keys of kinds that nobody here knows."""
    if published.get("kty") not in _KEY_TYPES.values():
        return None
    try:
        with warnings.catch_warnings(action="ignore", category=SecurityWarning):  # weak ones are left out here
            key = JWKRegistry.import_key(published)
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    return None if isinstance(key, RSAKey) and key.raw_value.key_size < _MIN_RSA_BITS else key


def _fits(key: Key, algorithm: str, kid: str | None) -> bool:
    return (
        key.key_type == _KEY_TYPES[algorithm]
        and key.get("use", "sig") == "sig"
        and key.get("alg", algorithm) == algorithm
        and (kid is None or key.get("kid") == kid)
    )


def _error_code(body: bytes) -> str:
    """The `error` of RFC 6749 section 5.2, where the body has one. It cannot carry a secret; its description can."""
    try:
        code = msgspec.json.decode(body, type=_Problem).error
    except (ValueError, RecursionError):
        return ""
    return f" ({code})" if _ERROR_CODE.fullmatch(code) else ""
