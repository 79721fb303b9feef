"""Sign-in at an identity provider: a real one on loopback, and one that lies in every way there is."""

from __future__ import annotations

import asyncio
import hmac
import json
import threading
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx2
import oidc_provider_mock
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey, JWKRegistry, Key, OctKey, OKPKey, RSAKey
from structlog.testing import capture_logs

from adapters.openid import OpenIdConnect, _fits, _imported
from adapters.system import SystemClock
from application.ports import Parameters, ProvenIdentity
from domain.errors import InvalidValue, SignInFailed
from domain.sign_in import OidcProvider
from tests.fakes import SetClock
from tests.patience import PATIENCE_SECONDS

# What the two libraries say of themselves, where this file signs as a provider might.
pytestmark = [
    pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:authlib"),
]

NOW = 1_800_000_000
RETURN_TO = "https://acme.example.com/sign-in/callback"
STATE, NONCE, VERIFIER, CODE = "s" * 43, "n" * 43, "v" * 43, "the-code"
EMAIL = "ada@example.com"
NOT_ASKED = "Acme SSO cannot be asked at the moment: try again in a minute."
NOT_CONFIRMED = "Acme SSO did not confirm who you are: try again, and if it happens again, tell whoever sent you here."
BACK: Parameters = [("code", CODE), ("state", STATE)]


def _named(key: Key, kid: str) -> Key:
    return JWKRegistry.import_key({**key.as_dict(private=True), "kid": kid})


KEY = _named(RSAKey.generate_key(2048), "first")
OTHER_KEY = _named(RSAKey.generate_key(2048), "second")
EC_KEY = _named(ECKey.generate_key("P-256"), "third")


@dataclass
class Request:
    """What the provider was asked."""

    path: str
    headers: dict[str, str]
    body: str


@dataclass
class Answer:
    """What the provider answers; with `waits`, not before the test is over."""

    body: bytes
    status: int = 200
    location: str | None = None
    waits: bool = False


class Upstream:
    """A provider that says whatever a test wants it to."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.is_over = threading.Event()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
                upstream.requests.append(Request(self.path, dict(self.headers), body))
                answer = upstream.answers.get(self.path, Answer(b"", status=404))
                if answer.waits:
                    upstream.is_over.wait(30)
                    return
                self.send_response(answer.status)
                if answer.location is not None:
                    self.send_header("location", answer.location)
                self.send_header("content-length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self.server.server_port}"
        self.metadata: dict[str, Any] = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
        }
        self.answers: dict[str, Answer] = {}
        self.describe()
        self.publish(KEY)
        self.sign()

    def describe(self, **changes: Any) -> None:
        self.metadata |= changes
        self.answers["/.well-known/openid-configuration"] = Answer(json.dumps(self.metadata).encode())

    def publish(self, *keys: Key) -> None:
        published = [key.as_dict(private=False) for key in keys]
        self.answers["/keys"] = Answer(json.dumps({"keys": published}).encode())

    def claims(self, **changes: Any) -> dict[str, Any]:
        return {
            "iss": self.issuer,
            "sub": "user-1",
            "aud": "cairn",
            "exp": NOW + 300,
            "iat": NOW,
            "nonce": NONCE,
            "email": EMAIL,
            "email_verified": True,
        } | changes

    def sign(self, *, key: Key = KEY, algorithm: str = "RS256", header: Any = None, **changes: Any) -> None:
        """The next ID token; without the claims and header fields that are `...`."""
        claims = {name: value for name, value in self.claims(**changes).items() if value is not ...}
        protected = {"alg": algorithm, "kid": key.get("kid")} | (header or {})
        protected = {name: value for name, value in protected.items() if value is not ...}
        registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
        registry.max_header_length = 100_000
        self.hand_out(jws.serialize_compact(protected, json.dumps(claims), key, registry=registry))

    def hand_out(self, id_token: str, **tokens: Any) -> None:
        self.answers["/token"] = Answer(json.dumps({"id_token": id_token, "token_type": "Bearer"} | tokens).encode())

    def also(self, **tokens: Any) -> None:
        """Hands out more beside the ID token."""
        self.answers["/token"] = Answer(json.dumps(json.loads(self.answers["/token"].body) | tokens).encode())

    def paths(self) -> list[str]:
        return [request.path for request in self.requests]


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,))
    thread.start()
    yield made
    made.is_over.set()
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture
def clock() -> SetClock:
    return SetClock(NOW * 1000)


@pytest.fixture
def openid(clock: SetClock) -> OpenIdConnect:
    return OpenIdConnect(clock)


@pytest.fixture
def provider(upstream: Upstream) -> OidcProvider:
    return OidcProvider(upstream.issuer, "cairn", "the-secret", "Acme SSO")


Complete = Callable[..., Any]


@pytest.fixture
def complete(openid: OpenIdConnect, provider: OidcProvider) -> Complete:
    async def completed(parameters: Parameters = BACK) -> ProvenIdentity:
        return await openid.complete(provider, RETURN_TO, parameters, NONCE, VERIFIER)

    return completed


async def _refusal(attempt: Any) -> tuple[str, list[str]]:
    """What the person is told, and what the log says."""
    with capture_logs() as logs, pytest.raises(SignInFailed) as failed:
        await attempt
    written = json.dumps(logs)
    assert not [secret for secret in (CODE, NONCE, VERIFIER, "the-secret", EMAIL) if secret in written]
    return failed.value.problem, [entry["reason"] for entry in logs]


# ------------------------------------------------------------------------------------------ a real provider


@pytest.fixture(scope="module")
def real_issuer() -> Iterator[str]:
    people = [
        oidc_provider_mock.User(sub="ada", claims={"email": "Ada@Example.com", "email_verified": True}),
        oidc_provider_mock.User(sub="bob", claims={"email": "bob@example.com"}),
    ]
    with oidc_provider_mock.run_server_in_thread(require_nonce=True, user_claims=people) as server:
        yield f"http://localhost:{server.server_port}"


async def _browse(url: str, form: dict[str, str]) -> Parameters:
    """What a browser brings back when the person answers the provider's page."""
    async with httpx2.AsyncClient() as browser:
        answer = await browser.post(url, data=form)
    assert answer.status_code == 302
    location = urlsplit(answer.headers["location"])
    assert f"{location.scheme}://{location.netloc}{location.path}" == RETURN_TO
    return parse_qsl(location.query)


@pytest.mark.promise("auth.provider")
@pytest.mark.parametrize(
    ("subject", "email", "is_verified"), [("ada", "ada@example.com", True), ("bob", "bob@example.com", False)]
)
async def test_a_real_provider_signs_people_in(real_issuer: str, subject: str, email: str, is_verified: bool) -> None:
    openid = OpenIdConnect(SystemClock())
    provider = OidcProvider(real_issuer, "cairn", "secret", "Mock")
    url = await openid.begin(provider, RETURN_TO, STATE, NONCE, VERIFIER)
    parameters = await _browse(url, {"sub": subject})
    assert dict(parameters)["state"] == STATE
    found = await openid.complete(provider, RETURN_TO, parameters, NONCE, VERIFIER)
    assert found == ProvenIdentity(real_issuer, subject, email, is_verified)


async def test_what_a_real_provider_says_once_does_not_count_twice(real_issuer: str) -> None:
    openid = OpenIdConnect(SystemClock())
    provider = OidcProvider(real_issuer, "cairn", "secret", "Mock")
    parameters = await _browse(await openid.begin(provider, RETURN_TO, STATE, NONCE, VERIFIER), {"sub": "ada"})
    await openid.complete(provider, RETURN_TO, parameters, NONCE, VERIFIER)
    _, reasons = await _refusal(openid.complete(provider, RETURN_TO, parameters, NONCE, VERIFIER))
    assert reasons == [f"{real_issuer}/oauth2/token answered 400 (invalid_grant)"]


async def test_who_declines_at_a_real_provider_is_told_to_start_again(real_issuer: str) -> None:
    openid = OpenIdConnect(SystemClock())
    provider = OidcProvider(real_issuer, "cairn", "secret", "Mock")
    parameters = await _browse(await openid.begin(provider, RETURN_TO, STATE, NONCE, VERIFIER), {"action": "deny"})
    problem, reasons = await _refusal(openid.complete(provider, RETURN_TO, parameters, NONCE, VERIFIER))
    assert problem == "Mock was told not to sign you in: try again."
    assert reasons == []


async def test_a_real_provider_passes_the_check(real_issuer: str) -> None:
    await OpenIdConnect(SystemClock()).check(OidcProvider(real_issuer, "cairn", "secret", "Mock"))


# ---------------------------------------------------------------------------------------------- what is sent


@pytest.mark.promise("auth.provider")
@pytest.mark.parametrize("query", ["", "?tenant=acme"])
async def test_the_browser_is_sent_with_a_challenge_and_never_the_verifier(
    upstream: Upstream, openid: OpenIdConnect, provider: OidcProvider, query: str
) -> None:
    upstream.describe(authorization_endpoint=f"{upstream.issuer}/authorize{query}")
    url = urlsplit(await openid.begin(provider, RETURN_TO, STATE, NONCE, VERIFIER))
    assert f"{url.scheme}://{url.netloc}{url.path}" == f"{upstream.issuer}/authorize"
    sent = parse_qsl(url.query)
    assert sent == [
        *parse_qsl(query[1:]),
        ("response_type", "code"),
        ("client_id", "cairn"),
        ("redirect_uri", RETURN_TO),
        ("scope", "openid email"),
        ("state", STATE),
        ("nonce", NONCE),
        ("code_challenge", urlsafe_b64encode(sha256(VERIFIER.encode()).digest()).decode().rstrip("=")),
        ("code_challenge_method", "S256"),
    ]


async def test_the_code_goes_out_with_the_verifier_and_the_secret_in_the_header(
    upstream: Upstream, openid: OpenIdConnect, provider: OidcProvider
) -> None:
    awkward = replace(provider, client_id="cairn:1", client_secret="s/p c&et")
    upstream.sign(aud="cairn:1")
    await openid.complete(awkward, RETURN_TO, BACK, NONCE, VERIFIER)
    request = next(request for request in upstream.requests if request.path == "/token")
    kind, _, pair = request.headers["authorization"].partition(" ")
    assert (kind, b64decode(pair)) == ("Basic", b"cairn%3A1:s%2Fp+c%26et")
    assert parse_qs(request.body) == {
        "grant_type": ["authorization_code"],
        "code": [CODE],
        "redirect_uri": [RETURN_TO],
        "code_verifier": [VERIFIER],
    }


async def test_the_secret_goes_into_the_form_where_the_provider_takes_it_only_there(
    upstream: Upstream, complete: Complete
) -> None:
    upstream.describe(token_endpoint_auth_methods_supported=["private_key_jwt", "client_secret_post"])
    await complete()
    request = next(request for request in upstream.requests if request.path == "/token")
    assert "authorization" not in request.headers
    form = parse_qs(request.body)
    assert (form["client_id"], form["client_secret"]) == (["cairn"], ["the-secret"])


async def test_what_a_provider_publishes_is_asked_for_once_an_hour(
    upstream: Upstream, complete: Complete, clock: SetClock
) -> None:
    asked = ["/.well-known/openid-configuration", "/token", "/keys"]
    await complete()
    assert upstream.paths() == asked
    clock.time += 3_599_000
    upstream.sign(exp=NOW + 9_000)
    await complete()
    assert upstream.paths() == [*asked, "/token"]
    clock.time += 1_000
    await complete()
    assert upstream.paths() == [*asked, "/token", *asked]


async def test_what_goes_to_this_machine_in_plain_goes_through_no_proxy(
    complete: Complete, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert (await complete()).subject == "user-1"


# ------------------------------------------------------------------------------------------ what is believed


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (RSAKey.generate_key(2048), "PS256"),
        (ECKey.generate_key("P-256"), "ES256"),
        (OKPKey.generate_key("Ed25519"), "EdDSA"),
        (OKPKey.generate_key("Ed25519"), "Ed25519"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_id_token_may_be_signed_by_any_of_the_algorithms_with_public_keys(
    upstream: Upstream, complete: Complete, key: Key, algorithm: str
) -> None:
    named = _named(key, "k")
    upstream.describe(id_token_signing_alg_values_supported=[algorithm])
    # A set may hold keys that nobody here knows, or that are broken, or for something else.
    upstream.publish(named)
    good = json.loads(upstream.answers["/keys"].body)["keys"]
    odd = [
        {"kty": "AKP", "kid": "k"},
        {"kty": "RSA", "kid": "k", "n": 5},
        {"kid": "k"},
        good[0] | {"use": "enc"},
        good[0] | {"alg": "X"},
    ]
    upstream.answers["/keys"] = Answer(json.dumps({"keys": [*odd, *good]}).encode())
    upstream.sign(key=named, algorithm=algorithm)
    assert await complete() == ProvenIdentity(upstream.issuer, "user-1", EMAIL, True)


async def test_a_token_that_names_no_key_is_of_the_only_one_of_its_kind(
    upstream: Upstream, complete: Complete, clock: SetClock
) -> None:
    upstream.sign(header={"kid": ...})
    assert (await complete()).subject == "user-1"
    clock.time += 3_600_000
    upstream.publish(EC_KEY, KEY)
    upstream.sign(header={"kid": ...}, exp=NOW + 9_000)
    assert (await complete()).subject == "user-1"
    clock.time += 3_600_000
    upstream.publish(KEY, OTHER_KEY)
    missing = f"the ID token is signed by a key that is not at {upstream.issuer}/keys"
    assert await _refusal(complete()) == (NOT_CONFIRMED, [missing])


@pytest.mark.promise("auth.provider")
@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["cairn"]},
        {"aud": ["cairn", "other"], "azp": "cairn"},
        {"azp": "cairn"},
        {"exp": NOW - 59},
        {"iat": NOW + 60, "nbf": NOW + 60},
        {"iat": NOW - 0.5},
        {"sub": "user-1", "groups": ["x" * 100] * 1_000},
        {"header": {"x5c": ["A" * 8_000], "nonce": "z"}},
    ],
    ids=",".join,
)
async def test_a_token_that_is_right_counts(upstream: Upstream, complete: Complete, changes: dict[str, Any]) -> None:
    upstream.sign(**changes)
    assert await complete() == ProvenIdentity(upstream.issuer, "user-1", EMAIL, True)


@pytest.mark.promise("auth.provider")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"nonce": "m" * 43}, "the ID token is for another sign-in"),
        ({"nonce": ...}, "the ID token is for another sign-in"),
        ({"aud": "other"}, "the ID token is for another client"),
        ({"aud": ["other"]}, "the ID token is for another client"),
        ({"aud": []}, "the ID token is for another client"),
        ({"aud": ["cairn", "other"]}, "the ID token was given to another client"),
        ({"aud": ["cairn", "other"], "azp": "other"}, "the ID token was given to another client"),
        ({"azp": "other"}, "the ID token was given to another client"),
        ({"iss": "https://other.example"}, "the ID token is another issuer's"),
        ({"exp": NOW - 60}, "the ID token has expired"),
        ({"iat": NOW + 61}, "the ID token is from the future: is the clock of this machine right?"),
        ({"nbf": NOW + 61}, "the ID token is from the future: is the clock of this machine right?"),
        ({"sub": ""}, "the ID token has no subject that can be kept"),
        ({"sub": "x" * 256}, "the ID token has no subject that can be kept"),
        ({"sub": "a\0b"}, "the ID token has no subject that can be kept"),
        ({"sub": 7}, "the ID token is not as it should be: Expected `str`, got `int` - at `$.sub`"),
        ({"exp": ...}, "the ID token is not as it should be: Object missing required field `exp`"),
        ({"exp": float("inf")}, "the ID token is not as it should be: it is not JSON"),
        ({"exp": str(NOW + 300)}, "the ID token is not as it should be: Expected `float`, got `str` - at `$.exp`"),
        ({"key": _named(OTHER_KEY, "first")}, "the signature of the ID token is not right"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_a_token_that_is_not_right_signs_nobody_in(
    upstream: Upstream, complete: Complete, changes: dict[str, Any], reason: str
) -> None:
    upstream.sign(**changes)
    assert await _refusal(complete()) == (NOT_CONFIRMED, [reason])


def _segment(content: Any) -> str:
    return urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def _with_public_key_as_secret(upstream: Upstream) -> str:
    signed = f"{_segment({'alg': 'HS256', 'kid': 'first'})}.{_segment(upstream.claims())}"
    signature = hmac.new(KEY.as_pem(private=False), signed.encode(), sha256).digest()
    return f"{signed}.{urlsafe_b64encode(signature).decode().rstrip('=')}"


def _with_published_secret(upstream: Upstream) -> str:
    secret = _named(OctKey.generate_key(256), "shared")
    upstream.publish(secret)
    published = json.loads(upstream.answers["/keys"].body)["keys"][0]
    upstream.answers["/keys"] = Answer(json.dumps({"keys": [published | secret.as_dict(private=True)]}).encode())
    return jws.serialize_compact(
        {"alg": "HS256", "kid": "shared"}, json.dumps(upstream.claims()), secret, algorithms=["HS256"]
    )


def _with_changed_payload(upstream: Upstream) -> str:
    header, _, signature = json.loads(upstream.answers["/token"].body)["id_token"].split(".")
    return f"{header}.{_segment(upstream.claims(sub='someone-else'))}.{signature}"


NO_ALGORITHM = "the ID token is signed by an algorithm that the provider does not name, or Cairn"


@pytest.mark.promise("auth.provider")
@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (lambda upstream: f"{_segment({'alg': 'none'})}.{_segment(upstream.claims())}.", NO_ALGORITHM),
        (lambda upstream: f"{_segment({'alg': 'None'})}.{_segment(upstream.claims())}.", NO_ALGORITHM),
        (lambda upstream: f"{_segment({'alg': ['RS256']})}.{_segment(upstream.claims())}.", NO_ALGORITHM),
        (_with_public_key_as_secret, NO_ALGORITHM),
        (_with_published_secret, NO_ALGORITHM),
        (_with_changed_payload, "the signature of the ID token is not right"),
        (
            lambda upstream: f"{_segment({'alg': 'RS256', 'kid': 'first'})}.{_segment({})}.",
            "the signature of the ID token is not right",
        ),
        (lambda upstream: "no token", "the ID token cannot be read (DecodeError)"),
        (lambda upstream: f"{_segment('alg')}.{_segment({})}.", "the ID token cannot be read (TypeError)"),
        (
            lambda upstream: f"{_segment({'alg': 'RS256', 'kid': 'first', 'crit': ['x'], 'x': 1})}.{_segment({})}.",
            "the ID token cannot be read (UnsupportedHeaderError)",
        ),
        (lambda upstream: f"{_segment({})}.{_segment({})}.", "the ID token cannot be read (MissingAlgorithmError)"),
    ],
)
async def test_a_forged_token_signs_nobody_in(
    upstream: Upstream, complete: Complete, forge: Callable[[Upstream], str], reason: str
) -> None:
    upstream.hand_out(forge(upstream))
    assert await _refusal(complete()) == (NOT_CONFIRMED, [reason])


@pytest.mark.promise("auth.provider")
async def test_an_algorithm_that_the_provider_does_not_name_is_not_taken(
    upstream: Upstream, complete: Complete
) -> None:
    upstream.describe(id_token_signing_alg_values_supported=["ES256"])
    assert await _refusal(complete()) == (NOT_CONFIRMED, [NO_ALGORITHM])


async def test_a_key_too_short_to_trust_is_as_good_as_none(upstream: Upstream, complete: Complete) -> None:
    short = _named(RSAKey.generate_key(1024), "short")
    upstream.publish(short)
    upstream.sign(key=short)
    problem, reasons = await _refusal(complete())
    assert (problem, reasons) == (
        NOT_CONFIRMED,
        [f"the ID token is signed by a key that is not at {upstream.issuer}/keys"],
    )


async def test_new_keys_are_read_when_they_are_needed_but_not_at_every_call(
    upstream: Upstream, complete: Complete, clock: SetClock
) -> None:
    await complete()
    upstream.publish(OTHER_KEY)
    upstream.sign(key=OTHER_KEY)
    missing = f"the ID token is signed by a key that is not at {upstream.issuer}/keys"
    assert await _refusal(complete()) == (NOT_CONFIRMED, [missing])
    assert upstream.paths().count("/keys") == 1
    clock.time += 10_000
    assert (await complete()).subject == "user-1"
    assert upstream.paths().count("/keys") == 2


# --------------------------------------------------------------------------------------------- the way back


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ([*BACK, ("code", "another")], "the browser came back with a parameter twice"),
        ([*BACK, ("iss", "https://other.example")], "the browser came back from another issuer"),
        ([*BACK, ("iss", "")], "the browser came back from another issuer"),
        ([("state", STATE)], "the browser came back without a code"),
        ([("code", ""), ("state", STATE)], "the browser came back without a code"),
        ([("error", "server_error"), ("error_description", EMAIL)], "the provider refused (server_error)"),
        ([("error", EMAIL)], "the provider refused (for no known reason)"),
    ],
)
async def test_a_browser_that_comes_back_wrong_costs_no_request(
    upstream: Upstream, complete: Complete, parameters: Parameters, reason: str
) -> None:
    assert await _refusal(complete(parameters)) == (NOT_CONFIRMED, [reason])
    assert upstream.paths() == ["/.well-known/openid-configuration"]


async def test_a_provider_that_names_itself_on_the_way_back_must_do_so(upstream: Upstream, complete: Complete) -> None:
    upstream.describe(authorization_response_iss_parameter_supported=True)
    assert await _refusal(complete()) == (NOT_CONFIRMED, ["the browser came back from another issuer"])
    assert (await complete([*BACK, ("iss", upstream.issuer)])).subject == "user-1"


@pytest.mark.promise("auth.provider")
async def test_a_refusal_from_another_issuer_is_not_taken_for_the_providers(
    upstream: Upstream, complete: Complete
) -> None:
    parameters = [("error", "access_denied"), ("iss", "https://other.example")]
    assert await _refusal(complete(parameters)) == (NOT_CONFIRMED, ["the browser came back from another issuer"])


# ---------------------------------------------------------------------------------------------- the address


@pytest.mark.promise("auth.provider")
@pytest.mark.parametrize(
    ("claims", "email", "is_verified"),
    [
        ({"email": "Ada@Example.com"}, "ada@example.com", True),
        ({"email_verified": "true"}, EMAIL, True),
        ({"email_verified": False}, EMAIL, False),
        ({"email_verified": "false"}, EMAIL, False),
        ({"email_verified": "True"}, EMAIL, False),
        ({"email_verified": 1}, EMAIL, False),
        ({"email_verified": ...}, EMAIL, False),
        ({"email": ...}, None, False),
        ({"email": 7}, None, False),
        ({"email": "nobody"}, None, False),
        ({"email": "a@b\x80c"}, None, False),
        ({"email": "a" * 60 + "@" + "b" * 200}, None, False),
    ],
)
async def test_an_address_counts_only_when_the_provider_says_that_it_is_theirs(
    upstream: Upstream, complete: Complete, claims: dict[str, Any], email: str | None, is_verified: bool
) -> None:
    upstream.sign(**claims)
    assert await complete() == ProvenIdentity(upstream.issuer, "user-1", email, is_verified)


async def test_a_missing_address_is_asked_for_at_the_user_info_endpoint(upstream: Upstream, complete: Complete) -> None:
    upstream.describe(userinfo_endpoint=f"{upstream.issuer}/userinfo")
    upstream.sign(email=..., email_verified=...)
    upstream.also(access_token="the-access-token")
    answer = {"sub": "user-1", "email": EMAIL, "email_verified": True}
    upstream.answers["/userinfo"] = Answer(json.dumps(answer).encode())
    assert await complete() == ProvenIdentity(upstream.issuer, "user-1", EMAIL, True)
    assert upstream.requests[-1].headers["authorization"] == "Bearer the-access-token"

    upstream.answers["/userinfo"] = Answer(json.dumps(answer | {"sub": "user-2"}).encode())
    assert await _refusal(complete()) == (NOT_CONFIRMED, ["the user info is someone else's"])


async def test_an_address_in_the_token_is_not_asked_for_again(upstream: Upstream, complete: Complete) -> None:
    upstream.describe(userinfo_endpoint=f"{upstream.issuer}/userinfo")
    upstream.sign(email_verified=False)
    upstream.also(access_token="the-access-token")
    assert await complete() == ProvenIdentity(upstream.issuer, "user-1", EMAIL, False)
    assert "/userinfo" not in upstream.paths()


@pytest.mark.parametrize(
    ("answer", "access_token"),
    [
        (Answer(b"", status=503), "the-access-token"),
        (Answer(b"", status=401), "the-access-token"),
        (Answer(b"<html>"), "the-access-token"),
        (Answer(b"{}"), None),
    ],
)
async def test_without_user_info_the_person_is_known_and_the_address_is_not(
    upstream: Upstream, complete: Complete, answer: Answer, access_token: str | None
) -> None:
    upstream.describe(userinfo_endpoint=f"{upstream.issuer}/userinfo")
    upstream.sign(email=..., email_verified=...)
    upstream.also(access_token=access_token)
    upstream.answers["/userinfo"] = answer
    assert await complete() == ProvenIdentity(upstream.issuer, "user-1", None, False)


# ------------------------------------------------------------------------------- answers that are no answers

ODD_ANSWERS: list[tuple[Answer, str]] = [
    (Answer(b"{" + b" " * 262_144), "answered more than 262,144 bytes"),
    (Answer(b"<html>"), "did not answer as it should: it is not JSON"),
    (Answer(b'{"x":' + b"[" * 100_000), "did not answer as it should: it is not JSON"),
    (Answer(b"[]"), "did not answer as it should: Expected `object`, got `array`"),
    (Answer(b'{"error": "' + EMAIL.encode() + b'"}', status=500), "answered 500"),
    (Answer(b"{}", status=307, location="/elsewhere"), "answered 307"),
    (Answer(b"", waits=True), "did not answer within 0.5 s"),
]


@pytest.mark.promise("auth.provider")
@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/token", "/keys"])
@pytest.mark.parametrize(("answer", "reason"), ODD_ANSWERS, ids=[reason for _, reason in ODD_ANSWERS])
async def test_whatever_a_provider_answers_the_person_is_told_to_try_again(
    upstream: Upstream, provider: OidcProvider, clock: SetClock, path: str, answer: Answer, reason: str
) -> None:
    upstream.answers[path] = answer
    upstream.answers["/elsewhere"] = Answer(b"{}")
    # Whoever answers at all has as long as a busy machine takes.
    openid = OpenIdConnect(clock, timeout_seconds=0.5 if answer.waits else PATIENCE_SECONDS)
    attempt = openid.complete(provider, RETURN_TO, BACK, NONCE, VERIFIER)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await _refusal(attempt) == (NOT_ASKED, [f"{upstream.issuer}{path} {reason}"])
    assert "/elsewhere" not in upstream.paths()


async def test_a_provider_that_comes_back_is_asked_again(
    upstream: Upstream, openid: OpenIdConnect, provider: OidcProvider, clock: SetClock
) -> None:
    described = upstream.answers["/.well-known/openid-configuration"]
    for status, told in ((503, NOT_ASKED), (404, NOT_CONFIRMED)):
        upstream.answers["/.well-known/openid-configuration"] = Answer(b"", status=status)
        for _ in range(3):  # however often the button is pressed, it is asked once in five seconds
            problem, _ = await _refusal(openid.begin(provider, RETURN_TO, STATE, NONCE, VERIFIER))
            assert problem == told
            clock.time += 1_666
        clock.time += 2
    assert upstream.paths() == ["/.well-known/openid-configuration"] * 2
    upstream.answers["/.well-known/openid-configuration"] = described
    assert (await openid.begin(provider, RETURN_TO, STATE, NONCE, VERIFIER)).startswith(f"{upstream.issuer}/authorize?")


@pytest.mark.parametrize(
    ("path", "answer", "reason"),
    [
        ("/token", Answer(b'{"error": "invalid_client"}', status=401), "answered 401 (invalid_client)"),
        (
            "/token",
            Answer(b'{"error": "invalid_grant", "error_description": "x"}', status=400),
            "answered 400 (invalid_grant)",
        ),
        ("/token", Answer(b'{"error": 5}', status=400), "answered 400"),
        ("/keys", Answer(b"", status=404), "answered 404"),
    ],
)
async def test_a_refusal_is_no_reason_to_wait_a_minute(
    upstream: Upstream, complete: Complete, path: str, answer: Answer, reason: str
) -> None:
    upstream.answers[path] = answer
    assert await _refusal(complete()) == (NOT_CONFIRMED, [f"{upstream.issuer}{path} {reason}"])


@pytest.mark.parametrize("access_token", ["tok\r\nen", "token\n", "tokén", ""])
async def test_an_access_token_that_no_header_takes_is_not_sent_and_not_shown(
    upstream: Upstream, complete: Complete, access_token: str
) -> None:
    upstream.describe(userinfo_endpoint=f"{upstream.issuer}/userinfo")
    upstream.also(access_token=access_token)
    reason = "did not answer as it should: Expected `str` matching regex '\\\\A[!-~]+\\\\Z' - at `$.access_token`"
    assert await _refusal(complete()) == (NOT_ASKED, [f"{upstream.issuer}/token {reason}"])
    assert "/userinfo" not in upstream.paths()


@given(
    published=st.sampled_from([KEY, EC_KEY, OKPKey.generate_key("Ed25519")]).map(
        lambda key: key.as_dict(private=False)
    ),
    changes=st.dictionaries(
        st.sampled_from(["kty", "n", "e", "x", "y", "crv", "use", "kid", "alg", "key_ops"]),
        st.sampled_from(["RSA", "EC", "OKP", "P-521", "X25519", "AQAB", "", "!", "A" * 43, 7, None, [], {}, ["sign"]]),
        min_size=1,
    ),
)
def test_no_key_that_is_published_breaks_anything(published: dict[str, Any], changes: dict[str, Any]) -> None:
    key = _imported(published | changes)
    assert key is None or _fits(key, "ES256", "k") in (True, False)


# ------------------------------------------------------------------------------------- what operators are told


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"issuer": "https://other.example"},
            "{issuer}/.well-known/openid-configuration says that the issuer is 'https://other.example': "
            "give it exactly like that",
        ),
        (
            {"token_endpoint": "http://other.example/token"},
            "{issuer}/.well-known/openid-configuration names the endpoint 'http://other.example/token', "
            "which is no https URL",
        ),
        (
            {"userinfo_endpoint": "javascript:alert(1)"},
            "{issuer}/.well-known/openid-configuration names the endpoint 'javascript:alert(1)', which is no https URL",
        ),
        (
            {"id_token_signing_alg_values_supported": ["HS256", "none"]},
            "it signs with none of RS256, PS256, ES256, EdDSA, Ed25519",
        ),
        (
            {"token_endpoint_auth_methods_supported": ["private_key_jwt"]},
            "it takes neither client_secret_basic nor client_secret_post",
        ),
        (
            {"jwks_uri": 5},
            "{issuer}/.well-known/openid-configuration did not answer as it should: "
            "Expected `str`, got `int` - at `$.jwks_uri`",
        ),
    ],
)
async def test_the_check_says_what_is_wrong_and_nobody_is_sent_there(
    upstream: Upstream, openid: OpenIdConnect, provider: OidcProvider, changes: dict[str, Any], reason: str
) -> None:
    upstream.describe(**changes)
    expected = reason.format(issuer=upstream.issuer)
    with pytest.raises(InvalidValue) as refused:
        await openid.check(provider)
    assert str(refused.value) == f"nobody could sign in with {upstream.issuer}: {expected}"
    assert (await _refusal(openid.begin(provider, RETURN_TO, STATE, NONCE, VERIFIER)))[1] == [expected]


async def test_the_check_wants_a_key_and_asks_afresh(
    upstream: Upstream, openid: OpenIdConnect, provider: OidcProvider
) -> None:
    await openid.check(provider)
    upstream.publish()
    with pytest.raises(InvalidValue) as refused:
        await openid.check(provider)
    expected = f"nobody could sign in with {upstream.issuer}: {upstream.issuer}/keys has no key that Cairn can use"
    assert str(refused.value) == expected


async def test_the_check_says_when_nobody_answers(openid: OpenIdConnect, upstream: Upstream) -> None:
    with pytest.raises(
        InvalidValue, match=r"^nobody could sign in with http://127\.0\.0\.1:1: .* cannot be reached \("
    ):
        await openid.check(OidcProvider("http://127.0.0.1:1", "cairn", "secret", "Nobody"))


async def test_an_issuer_with_a_slash_at_its_end_is_another_one(upstream: Upstream, openid: OpenIdConnect) -> None:
    upstream.describe(issuer=f"{upstream.issuer}/")
    with pytest.raises(InvalidValue, match="give it exactly like that"):
        await openid.check(OidcProvider(upstream.issuer, "cairn", "secret", "Acme SSO"))
    await openid.check(OidcProvider(f"{upstream.issuer}/", "cairn", "secret", "Acme SSO"))


@pytest.mark.parametrize(
    "issuer",
    [
        "http://idp.example.com",
        "https://idp.example.com?x=1",
        "https://idp.example.com/#x",
        "https://user@idp.example.com",
        "https://idp.example.com\\@other.example",
        "idp.example.com",
        "http://localhost.example.com",
        "http://localhost@example.com",
    ],
)
def test_an_issuer_is_an_https_url(issuer: str) -> None:
    with pytest.raises(InvalidValue, match="an issuer is an https URL"):
        OidcProvider(issuer, "cairn", "secret", "Acme SSO")


def test_a_provider_does_not_show_its_secret() -> None:
    assert "the-secret" not in repr(OidcProvider("https://idp.example.com", "cairn", "the-secret", "Acme SSO"))
