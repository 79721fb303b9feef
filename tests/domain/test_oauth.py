"""The rules of OAuth: which redirects are safe, whose tokens are asked for, and what a code or token is good for."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from domain.oauth import (
    ACCESS_LIFETIME,
    AUTH_METHODS,
    DOCUMENT_KEPT,
    DOCUMENT_LIFETIME,
    GRANT_TYPES,
    MAX_REDIRECT_URIS,
    REFRESH_LIFETIME,
    RETRY_GRACE,
    UNUSED_LIFETIME,
    Client,
    ClientRefused,
    Site,
    Use,
    granted_scope,
    is_challenge,
    is_document_url,
    is_known,
    is_registrable,
    is_to_be_read,
    may_redirect,
    proves,
    redirect,
    use_of_code,
    use_of_refresh_token,
)
from domain.tenancy import MAX_NAME_CHARS, AuthMode, Millis, OrganizationId, Server, ServerId, ServerKey

SERVER = Server(ServerKey(OrganizationId("org_1"), ServerId("srv_1")), "acme", "Acme", AuthMode.ON_DEMAND)
DOCUMENT_URL = "https://client.example.com/client.json"

labels = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
hosts = st.lists(labels, min_size=2, max_size=4).map(".".join)
loopback_hosts = st.sampled_from(["127.0.0.1", "[::1]", "localhost"])
ports = st.one_of(st.just(""), st.integers(1, 65_535).map(lambda port: f":{port}"))
rests = st.from_regex(r"(/[a-zA-Z0-9._~-]{0,8}){0,3}(\?[a-z]{1,5}=[a-zA-Z0-9%+]{0,5})?", fullmatch=True)
app_schemes = st.one_of(
    st.sampled_from(["cursor", "vscode", "vscode-insiders", "windsurf", "zed", "claude"]),
    st.lists(labels, min_size=2, max_size=4).map(".".join),
)
web_uris = st.builds("https://{}{}{}".format, hosts, ports, rests)
loopback_uris = st.builds("http://{}{}{}".format, loopback_hosts, ports, rests)
app_uris = st.one_of(st.builds("{}://{}{}".format, app_schemes, labels, rests), app_schemes.map("{}:/callback".format))
good_uris = st.one_of(web_uris, loopback_uris, app_uris)
clients = st.builds(
    Client,
    name=st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=MAX_NAME_CHARS),
    redirect_uris=st.lists(good_uris, min_size=1, max_size=MAX_REDIRECT_URIS).map(tuple),
    grant_types=st.sampled_from([GRANT_TYPES[:1], GRANT_TYPES]),
    auth_method=st.sampled_from(AUTH_METHODS),
)

# ----------------------------------------------------------------------------------------------- redirects


@given(good_uris)
@example("https://claude.ai/api/mcp/auth_callback")
@example("cursor://anysphere.cursor-mcp/oauth/callback")
@example("com.example.app:/oauth2redirect")
@example("http://[::1]:1/")
def test_https_the_own_machine_and_apps_may_be_redirected_to(uri: str) -> None:
    assert is_registrable(uri)
    assert may_redirect(uri, [uri])


@pytest.mark.promise("auth.refused")
@pytest.mark.parametrize(
    "uri",
    [
        "javascript:alert(1)",
        "JavaScript://%0aalert(1)",
        "data:text/html,<script>",
        "data:text/html;base64,PHNjcmlwdD4=",
        "file:///etc/passwd",
        "vbscript:msgbox",
        "blob:https://client.example.com/1",
        "about:blank",
        "mailto:ada@example.com",
        "ftp://client.example.com/",
        "ws://127.0.0.1/",
        "unknown://callback",
        "http://client.example.com/callback",
        "http://127.0.0.1.example.com/",
        "http://127.1/",
        "http://2130706433/",
        "http://0.0.0.0/",
        "http://localhost.example.com/",
        "http://localhost./",
        "http://[::1]example.com/",
        "http://[::ffff:127.0.0.1]/",
        "https://user@client.example.com/",
        "https://client.example.com@evil.example.com/",
        "http://localhost@evil.example.com/",
        "https://client.example.com/#",
        "https://client.example.com/#fragment",
        "https://client.example.com\\@evil.example.com/",
        "https:client.example.com",
        "https:/client.example.com",
        "https:///client.example.com",
        "https://",
        "https://:443/",
        "https://client.example.com:65536/",
        "https://client.example.com:port/",
        "https://[::1/",
        "https://m\N{LATIN SMALL LETTER U WITH DIAERESIS}nchen.example.com/",
        " https://client.example.com/",
        "https://client.example.com/a b",
        "https://client.example.com/\n",
        "java\tscript:alert(1)",
        "https://client.example.com/\0",
        'https://client.example.com/"',
        "//client.example.com/",
        "/callback",
        "cursor:",
        "cursor://user@host/",
        ".example:/callback",
        "",
        "https://client.example.com/" + "a" * 1_000,
        None,
        7,
        ["https://client.example.com/"],
    ],
)
def test_nothing_else_may_be_redirected_to(uri: object) -> None:
    assert not is_registrable(uri)


@given(good_uris, st.integers(0, 40), st.characters())
def test_no_character_slips_in_that_readers_of_urls_take_for_different_things(
    uri: str, place: int, character: str
) -> None:
    changed = uri[:place] + character + uri[place:]
    harmless = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-._~!$&'()*+,;=:@/?%[]"
    assert not is_registrable(changed) or character in harmless
    assert not is_registrable(changed) or "@" not in urlsplit(changed).netloc


@given(loopback_hosts, ports, ports, rests)
def test_on_the_own_machine_any_port_will_do(host: str, registered: str, asked: str, rest: str) -> None:
    assert may_redirect(f"http://{host}{asked}{rest}", [f"http://{host}{registered}{rest}"])


@pytest.mark.promise("auth.refused")
@given(good_uris, good_uris)
@example("http://127.0.0.1:3000/cb", "http://localhost:3000/cb")
@example("http://127.0.0.1:3000/cb", "http://127.0.0.1:3000/cb?x=1")
@example("http://127.0.0.1:3000/cb", "https://127.0.0.1:3000/cb")
@example("https://localhost:3000/cb", "https://localhost:3001/cb")
@example("https://client.example.com/cb", "https://client.example.com/cb/")
@example("https://client.example.com/cb", "https://client.example.com:443/cb")
def test_otherwise_only_what_was_registered_will_do(registered: str, asked: str) -> None:
    assume(registered != asked)
    one, other = urlsplit(registered), urlsplit(asked)
    is_other_port = one.scheme == other.scheme == "http" and one[2:] == other[2:] and one.hostname == other.hostname
    assert may_redirect(asked, [registered]) is is_other_port


def test_another_port_is_no_way_around_the_rules() -> None:
    registered = ["http://127.0.0.1/cb"]
    for asked in ("http://user@127.0.0.1:1/cb", "http://127.0.0.1:99999/cb", "http://127.0.0.1:1/cb#x", "http://[::1"):
        assert not may_redirect(asked, registered)


@given(good_uris, st.lists(st.tuples(labels, st.text(st.characters(exclude_categories=["Cs"]))), min_size=1))
def test_what_is_sent_back_stands_behind_the_registered_address_as_it_is(
    uri: str, parameters: list[tuple[str, str]]
) -> None:
    location = redirect(uri, parameters)
    assert location.startswith(uri)
    assert location.isascii()
    had = parse_qsl(urlsplit(uri).query, keep_blank_values=True)
    assert parse_qsl(urlsplit(location).query, keep_blank_values=True) == [*had, *parameters]


# --------------------------------------------------------------------------------------------- the resource


@pytest.mark.parametrize("origin", ["https://acme.example.com", "http://127.0.0.1:8000", "http://[::1]:8000"])
@pytest.mark.parametrize("path", ["", "/", "/mcp", "/mcp/"])
def test_clients_name_the_endpoint_or_its_origin_with_or_without_a_slash(origin: str, path: str) -> None:
    site = Site(SERVER, origin)
    assert site.is_meant_by(f"{origin}{path}")
    assert site.is_meant_by(f"{origin.upper()}{path}")


def test_a_port_that_is_the_usual_one_may_be_named_or_not() -> None:
    assert Site(SERVER, "https://acme.example.com").is_meant_by("https://acme.example.com:443/mcp")
    assert Site(SERVER, "http://localhost:80").is_meant_by("http://localhost/mcp")
    assert not Site(SERVER, "https://acme.example.com").is_meant_by("https://acme.example.com:80/mcp")


def test_no_resource_is_meant_where_the_origin_is_none() -> None:
    for resource in ("https://acme.example.com:70000/mcp", "https://acme.example.com/mcp"):
        assert not Site(SERVER, "https://acme.example.com:70000").is_meant_by(resource)


def test_what_is_kept_of_a_client_is_bounded() -> None:
    uri = "https://client.example.com/"
    uris = [uri.ljust(1_000, "x"), uri.ljust(1_000, "y"), uri.ljust(1_000, "z"), uri.ljust(1_000, "a")]
    client = Client.registered({"redirect_uris": uris, "client_name": "\N{SNOWMAN}" * 1_000})
    assert len(json.dumps(client.metadata(), ensure_ascii=False).encode()) < 5_000
    with pytest.raises(ClientRefused) as refused:
        Client.registered({"redirect_uris": [*uris, "x.y:/"]})
    assert refused.value.error == "invalid_client_metadata"
    assert refused.value.problem == (
        "All redirect_uris together have at most 4,000 characters: register fewer of them."
    )


def test_a_server_names_itself_by_its_origin_and_its_endpoint() -> None:
    site = Site(SERVER, "https://acme.example.com")
    assert (site.issuer, site.resource, site.resource_metadata) == (
        "https://acme.example.com",
        "https://acme.example.com/mcp",
        "https://acme.example.com/.well-known/oauth-protected-resource/mcp",
    )


def test_a_client_may_name_no_resource() -> None:
    assert Site(SERVER, "https://acme.example.com").is_meant_by(None)


@pytest.mark.promise("auth.refused")
@pytest.mark.parametrize(
    "resource",
    [
        "https://other.example.com/mcp",
        "https://acme.example.com.evil.example.com/mcp",
        "https://acme.example.com@evil.example.com/mcp",
        "https://user@acme.example.com/mcp",
        "http://acme.example.com/mcp",
        "https://acme.example.com:8443/mcp",
        "https://acme.example.com/MCP",
        "https://acme.example.com/mcp//",
        "https://acme.example.com/mcp/more",
        "https://acme.example.com/mcp?x=1",
        "https://acme.example.com/mcp?",
        "https://acme.example.com/mcp#",
        "https://acme.example.com:port/mcp",
        "https://[/mcp",
        "acme.example.com/mcp",
        "mcp",
        "",
    ],
)
def test_another_resource_is_not_meant(resource: str) -> None:
    assert not Site(SERVER, "https://acme.example.com").is_meant_by(resource)


# -------------------------------------------------------------------------------------------------- clients


@given(clients)
def test_what_is_told_of_a_client_reads_back_as_that_client(client: Client) -> None:
    assert Client.registered(json.loads(json.dumps(client.metadata()))) == client


def test_a_client_that_says_only_where_to_answer_gets_a_secret_and_every_grant() -> None:
    client = Client.registered({"redirect_uris": ["http://localhost/cb"]})
    assert client == Client("An unnamed client", ("http://localhost/cb",), GRANT_TYPES, "client_secret_basic")


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"redirect_uris": []}, "invalid_redirect_uri"),
        ({"redirect_uris": None}, "invalid_redirect_uri"),
        ({"redirect_uris": "https://client.example.com/"}, "invalid_redirect_uri"),
        ({"redirect_uris": ["https://client.example.com/", "javascript:1"]}, "invalid_redirect_uri"),
        ({"redirect_uris": ["https://client.example.com/"] * 21}, "invalid_redirect_uri"),
        ({"redirect_uris": [["https://client.example.com/"]]}, "invalid_redirect_uri"),
        ({"token_endpoint_auth_method": "private_key_jwt"}, "invalid_client_metadata"),
        ({"token_endpoint_auth_method": ["none"]}, "invalid_client_metadata"),
        ({"grant_types": ["client_credentials"]}, "invalid_client_metadata"),
        ({"grant_types": "authorization_code"}, "invalid_client_metadata"),
        ({"grant_types": [{}]}, "invalid_client_metadata"),
        ({"response_types": ["token"]}, "invalid_client_metadata"),
        ({"client_name": 7}, "invalid_client_metadata"),
    ],
)
def test_a_registration_that_cannot_be_is_refused(changed: dict[str, Any], error: str) -> None:
    with pytest.raises(ClientRefused) as refused:
        Client.registered({"redirect_uris": ["https://client.example.com/"], **changed})
    assert refused.value.error == error
    assert refused.value.problem.isascii()


@given(st.text())
@example("Ada\u202e\u2066rotidE\u200b\ufeff")
@example("one\r\n\u2028two\x00\x85three\ud800")
@example("x" * 1_000)
@example("\u200b")
def test_a_name_is_one_visible_line_of_bounded_length(name: str) -> None:
    shown = Client.registered({"redirect_uris": ["https://client.example.com/"], "client_name": name}).name
    assert 1 <= len(shown) <= MAX_NAME_CHARS
    assert shown.isprintable()
    assert shown == " ".join(shown.split(" "))
    assert shown.encode()


def test_what_turns_or_breaks_a_line_in_a_name_is_a_blank_or_nothing() -> None:
    name = " My\tnew\x00\u2028 cl\u200bient\n"
    assert Client.registered({"redirect_uris": ["https://client.example.com/"], "client_name": name}).name == (
        "My new client"
    )


def test_of_a_name_no_more_than_the_first_thousand_characters_are_looked_at() -> None:
    name = "A" + "\u200b" * 998 + "BC"
    assert Client.registered({"redirect_uris": ["https://client.example.com/"], "client_name": name}).name == "AB"


def test_a_client_may_be_answered_at_twenty_addresses() -> None:
    uris = [f"https://client.example.com/{number}" for number in range(20)]
    assert Client.registered({"redirect_uris": uris}).redirect_uris == tuple(uris)


def test_a_client_is_told_all_that_is_kept_of_it() -> None:
    assert Client("An app", ("https://client.example.com/",), GRANT_TYPES, "none").metadata() == {
        "client_name": "An app",
        "redirect_uris": ["https://client.example.com/"],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": "none",
    }


def test_grants_that_are_not_known_are_left_out() -> None:
    client = Client.registered(
        {"redirect_uris": ["https://client.example.com/"], "grant_types": ["urn:x", "refresh_token", GRANT_TYPES[0]]}
    )
    assert client.grant_types == GRANT_TYPES


@pytest.mark.parametrize(
    "added",
    [
        {},
        {"token_endpoint_auth_method": "none"},
        {
            "token_endpoint_auth_method": "private_key_jwt",
            "token_endpoint_auth_methods_supported": ["private_key_jwt", "none"],
        },
    ],
)
def test_a_document_makes_a_client_without_a_secret(added: dict[str, Any]) -> None:
    document = {"client_id": DOCUMENT_URL, "redirect_uris": ["https://client.example.com/cb"], **added}
    assert Client.documented(DOCUMENT_URL, document) == Client(
        "client.example.com", ("https://client.example.com/cb",), GRANT_TYPES, "none"
    )


def test_a_document_may_name_its_client() -> None:
    document = {
        "client_id": DOCUMENT_URL,
        "client_name": "An app",
        "redirect_uris": ["https://client.example.com/cb"],
    }
    assert Client.documented(DOCUMENT_URL, document).name == "An app"


@pytest.mark.parametrize(
    "changed",
    [
        {"client_id": None},
        {"client_id": "https://client.example.com/other.json"},
        {"client_id": DOCUMENT_URL.upper()},
        {"client_secret": "x"},
        {"token_endpoint_auth_method": "client_secret_basic"},
        {"token_endpoint_auth_method": ["none"]},
        {"redirect_uris": ["http://client.example.com/cb"]},
        {"redirect_uris": None},
    ],
)
def test_a_document_that_cannot_be_is_refused(changed: dict[str, Any]) -> None:
    document = {"client_id": DOCUMENT_URL, "redirect_uris": ["https://client.example.com/cb"], **changed}
    with pytest.raises(ClientRefused):
        Client.documented(DOCUMENT_URL, document)


@pytest.mark.parametrize(
    ("client_id", "is_one"),
    [
        (DOCUMENT_URL, True),
        ("https://client.example.com/a?b=c", True),
        ("https://client.example.com", False),
        ("https://client.example.com/", False),
        ("https://client.example.com/../a", False),
        ("https://client.example.com/a/%2E%2e", False),
        ("https://client.example.com/a/./b", False),
        ("https://client.example.com/..a", True),
        ("HTTPS://client.example.com/a", False),
        ("http://localhost/a", False),
        ("cursor://host/a", False),
        ("https://user@client.example.com/a", False),
        ("https://client.example.com/a#", False),
        ("https://client.example.com/" + "a" * 1_000, False),
        ("client_1", False),
        ("", False),
    ],
)
def test_a_client_is_known_by_a_document_where_its_id_is_an_https_url_with_a_path(client_id: str, is_one: bool) -> None:
    assert is_document_url(client_id) is is_one


def test_a_registration_is_good_for_thirty_days_unless_somebody_signs_in_with_it() -> None:
    known_at = Millis(1_000)
    for now, is_good in ((known_at, True), (1_000 + UNUSED_LIFETIME - 1, True), (1_000 + UNUSED_LIFETIME, False)):
        assert is_known("client_1", known_at, None, Millis(now)) is is_good
        assert is_known("client_1", known_at, known_at, Millis(now))


def test_a_document_is_good_for_a_day_whoever_has_signed_in_with_it_and_read_again_after_an_hour() -> None:
    read_at = Millis(1_000)
    for used_at in (None, read_at):
        assert is_known(DOCUMENT_URL, read_at, used_at, Millis(1_000 + DOCUMENT_KEPT - 1))
        assert not is_known(DOCUMENT_URL, read_at, used_at, Millis(1_000 + DOCUMENT_KEPT))
    assert is_to_be_read(None, read_at)
    assert not is_to_be_read(read_at, Millis(1_000 + DOCUMENT_LIFETIME - 1))
    assert is_to_be_read(read_at, Millis(1_000 + DOCUMENT_LIFETIME))


# ----------------------------------------------------------------------------------------- codes and tokens


@pytest.mark.parametrize(
    ("asked_for", "granted"),
    [
        (None, "walkthroughs"),
        ("walkthroughs", "walkthroughs"),
        ("offline_access walkthroughs walkthroughs", "walkthroughs offline_access"),
        ("openid email walkthroughs", "walkthroughs"),
        ("offline_access", "offline_access"),
        ("admin", None),
        ("Walkthroughs", None),
        (" ", None),
        ("  walkthroughs ", "walkthroughs"),
        ("walkthroughs\n", None),
        ("walkthroughs\u00a0offline_access", None),
        *((blank, None) for blank in ("\t", "\u00a0", "\u3000", "\u2028", "\u0085")),
    ],
)
def test_what_is_granted_is_what_there_is_of_what_was_asked_for(asked_for: str | None, granted: str | None) -> None:
    assert granted_scope(asked_for) == granted


def test_a_verifier_proves_its_own_challenge() -> None:
    # The example of RFC 7636 appendix B.
    verifier, challenge = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    assert is_challenge(challenge)
    assert proves(verifier, challenge)
    for other in (verifier + "\n", verifier[:-1], verifier.swapcase(), "", challenge, "\N{SNOWMAN}\ud800"):
        assert not proves(other, challenge)
    assert not proves(verifier, challenge[:-1] + "\ud800")


@pytest.mark.parametrize("text", [None, "", "a" * 42, "a" * 44, "a" * 42 + "=", "a" * 42 + "\n", "a" * 42 + "\u00e4"])
def test_a_challenge_has_the_form_of_a_hash(text: str | None) -> None:
    assert not is_challenge(text)


times = st.integers(0, 2 * REFRESH_LIFETIME).map(Millis)


@given(st.none() | times, times, times)
def test_a_code_is_good_once_and_in_its_time(used_at: Millis | None, expires_at: Millis, now: Millis) -> None:
    use = use_of_code(used_at, expires_at, now)
    assert (use is Use.REUSED) == (used_at is not None)
    assert (use is Use.FIRST) == (used_at is None and now < expires_at)


@given(times, st.integers(-ACCESS_LIFETIME, ACCESS_LIFETIME), times)
@example(Millis(0), RETRY_GRACE, Millis(REFRESH_LIFETIME))
@example(Millis(0), RETRY_GRACE + 1, Millis(REFRESH_LIFETIME))
def test_a_refresh_token_that_was_used_is_good_for_the_grace_and_then_a_sign_of_theft(
    used_at: Millis, passed: int, expires_at: Millis
) -> None:
    now = Millis(used_at + passed)
    use = use_of_refresh_token(used_at, expires_at, now)
    assert (use is Use.REUSED) == (passed > RETRY_GRACE)
    assert (use is Use.RETRIED) == (passed <= RETRY_GRACE and now < expires_at)


@given(times, times)
def test_a_refresh_token_that_was_never_used_is_good_in_its_time(expires_at: Millis, now: Millis) -> None:
    assert use_of_refresh_token(None, expires_at, now) is (Use.FIRST if now < expires_at else Use.EXPIRED)
