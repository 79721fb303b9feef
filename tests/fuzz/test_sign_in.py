"""Bad input to the OAuth endpoints and the pages: whatever is sent is answered, tells nothing, and leads nowhere else.

Before each request the sign-ins under way are put back as they were, so that a request that fails does so again.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

import asyncpg
import pytest
from hypothesis import strategies as st

from adapters.postgres.connections import Access, Database
from domain.tenancy import AuthMode
from entrypoints.http.places import Kind, place_of
from tests.fuzz.choices import Choices
from tests.fuzz.envelopes import Request
from tests.fuzz.running import fuzz
from tests.fuzz.test_mcp import _ANSWER_SECONDS, _FAILED, _INTERNAL, _KNOWN, Answer, Wire
from tests.processes import serving
from tests.sign_in.conftest import NO_LIMITS, REDIRECT_URI, Mailbox, mailbox
from tests.worlds import World, on_postgres

__all__ = ["mailbox"]

_EXAMPLES = 600
_HOST = "guides.localhost"
_COOKIE = "cairn-browser"
_CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWBuGJSstw-cM"
_VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
_STRANGE = (
    "", " ", "\x00", "a\r\nset-cookie: a=b", "\ufffd", "\u202e", "é", "%00", "%", "null", "-1", "x" * 5_000, "[]", "{}",
    "https://evil.example.com/", "javascript:alert(1)", "//evil.example.com", "\\", "'", '"', "<b>", "{{7*7}}", "a=b&c",
    "ada@example.com", "000000", "S256", "code", "plain", "walkthroughs", "\ud800", "1" * 40,
)  # fmt: skip
_FIELDS = (
    "request", "decision", "action", "email", "code", "state", "client_id", "redirect_uri", "response_type", "scope",
    "code_challenge", "code_challenge_method", "resource", "grant_type", "refresh_token", "code_verifier", "token",
    "token_type_hint", "client_secret", "iss", "error", "nonce", "response_mode", "prompt",
)  # fmt: skip
_PATHS = (
    "/", "/authorize", "/sign-in", "/sign-in/callback", "/token", "/register", "/revoke", "/assets/cairn.css",
    "/dev/outbox.json", "/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp",
    "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration/mcp", "/v/short", "/v/short/keep",
    "/favicon.ico", "/sign-in/", "//token", "/v/%00", "/v/%ff%fe", "/v/..", "/%2e%2e/token", "/v/a%2fb",
    "/assets/x", "/assets/%2e%2e",
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What sound requests are made of."""

    browsers: list[tuple[str, str]]
    """Of each sign-in under way: the secret in its address, and the browser's."""
    client_id: str
    refresh_tokens: list[str]
    visitor: str


def _requests(facts: Facts) -> st.SearchStrategy[Request]:
    """One request each: a sound one, or one with a few things wrong."""
    words = (*_STRANGE, facts.client_id, REDIRECT_URI, facts.visitor, *facts.refresh_tokens, *facts.browsers[0])
    asking = {
        "response_type": "code",
        "client_id": facts.client_id,
        "redirect_uri": REDIRECT_URI,
        "code_challenge": _CHALLENGE,
        "code_challenge_method": "S256",
        "state": "x",
        "scope": "walkthroughs",
    }

    def sound(choose: Choices) -> tuple[str, str, dict[str, Any], str]:
        """Method, path, parameters and the browser's secret."""
        id, browser = choose.of(facts.browsers)
        done = choose.of([
            {"decision": "approve"}, {"decision": "deny"}, {"email": "ada@example.com"}, {"code": "123456"}, {},
            {"action": "again"}, {"action": "other"}, {"action": "provider"}, {"email": choose.of(_STRANGE)},
        ])  # fmt: skip
        refreshed = {"refresh_token": choose.of(facts.refresh_tokens), "client_id": facts.client_id}
        redeemed = {"code": "x", "redirect_uri": REDIRECT_URI, "client_id": facts.client_id, "code_verifier": _VERIFIER}
        metadata = {"redirect_uris": [REDIRECT_URI], "client_name": "Guide", "token_endpoint_auth_method": "none"}
        return choose.of([
            ("GET", "/sign-in", {"request": id}, browser),
            ("POST", "/sign-in", {"request": id, **done}, browser),
            ("GET", "/sign-in/callback", {"state": f"{id}.x", "code": "x", "iss": "https://op.example.com"}, browser),
            ("GET", "/authorize", asking, browser),
            ("GET", "/", {}, browser),
            ("POST", "/token", {"grant_type": "refresh_token", **refreshed}, ""),
            ("POST", "/token", {"grant_type": "authorization_code", **redeemed}, ""),
            ("POST", "/revoke", {"token": choose.of(words), "client_id": facts.client_id}, ""),
            ("POST", "/register", metadata, ""),
            ("GET", f"/v/{facts.visitor}", {}, browser),
            ("POST", f"/v/{facts.visitor}/keep", {}, browser),
            (choose.of(["GET", "POST"]), choose.of(_PATHS), {}, browser),
        ])  # fmt: skip

    @st.composite
    def build(draw: st.DrawFn) -> Request:
        choose = Choices(draw)
        method, path, parameters, browser = sound(choose)
        fields = list(parameters.items())
        cookies = [f"{_COOKIE}={browser}"] if browser else []
        host, form, as_json = _HOST, "application/x-www-form-urlencoded", path == "/register"
        headers: list[tuple[str, str]] = []
        for _ in range(choose.of([0, 1, 1, 2, 4])):
            match choose.below(12):
                case 0 | 1 if fields:
                    at = choose.below(len(fields))
                    fields[at] = (fields[at][0], choose.of([*words, *([[], {}, 7, None, [None]] if as_json else [])]))
                case 2 if fields:
                    del fields[choose.below(len(fields))]
                case 3:
                    fields.append((choose.of(_FIELDS), choose.of(words)))
                case 4 if fields:
                    fields.append(choose.of(fields))
                case 5:
                    fields.append((draw(st.text(max_size=6)), draw(st.text(max_size=12))))
                case 6:
                    method = choose.of(["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"])
                case 7:
                    path = choose.of(_PATHS)
                case 8:
                    secret = choose.of([browser, facts.browsers[-1][1], "x" * 43, "", '"', "x" * 9_000])
                    cookies.append(
                        choose.of([f"{_COOKIE}={secret}", f"\xa0{_COOKIE}={secret}", _COOKIE, ";;=", "\xff"])
                    )
                case 9:
                    headers.append(choose.of([
                        ("Origin", "null"), ("Origin", "https://evil.example.com"), ("Sec-Fetch-Site", "cross-site"),
                        ("Sec-Fetch-Site", "same-origin"), ("Authorization", "Basic !"),
                        ("Authorization", "Basic OjpcOg=="),
                        ("Authorization", "Bearer x"), ("X-Forwarded-For", "::"), ("X-Forwarded-Proto", "https,\xff"),
                        ("Accept", "text/html"), ("Accept", ";,q=\xff"), ("Access-Control-Request-Method", "POST"),
                        ("Content-Type", "text/plain"), ("If-None-Match", "*"), ("Range", "bytes=0-1"),
                    ]))  # fmt: skip
                case 10:
                    host = choose.of(
                        [f"{_HOST}:0", f"{_HOST}:65535", f"{_HOST}.", "localhost", "nowhere.localhost", "[::1]"]
                    )
                case _:
                    form = choose.of(["application/json", "multipart/form-data", f"{form}; charset=utf-16", "", "\xff"])
        encoded = urlencode([(name, str(value).encode("utf-8", "replace")) for name, value in fields])
        if not choose.below(12):
            encoded = draw(st.text(max_size=30).map(lambda text: quote(text, safe="%&=;+")))
        request = Request(method=method, target=path, headers=[("Host", host), *headers])
        request.headers += [("Cookie", cookie) for cookie in cookies]
        if method in ("GET", "HEAD"):
            request.target += f"?{encoded}" if encoded else ""
        elif as_json and choose.below(10):
            pairs = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in fields)
            request.body = ("{" + ", ".join(pairs) + "}").encode()
            request.headers.append(("Content-Type", "application/json"))
        else:
            request.body = encoded.encode() if choose.below(8) else draw(st.binary(max_size=60))
            request.headers.append(("Content-Type", form))
        if not choose.below(30):
            request.framing = choose.of(["chunked", "torn chunks", "both lengths", "too long", "none"])
        return request

    return build()


def _judge(request: Request, answer: Answer) -> None:
    if answer.status is None:
        assert not request.is_http, "the connection was closed without an answer"
        return
    assert answer.seconds < _ANSWER_SECONDS
    assert 200 <= answer.status < 500 or answer.status == 503, f"answered with {answer.status}"
    said = answer.body.decode() + "".join(f"{name}: {value}\n" for name, value in answer.headers.items())
    sent = unquote(request.wire().decode("utf-8", "replace"))
    told = [found[0] for found in _INTERNAL.finditer(said) if found[0] not in sent]
    assert not told, f"tells of the inside: {told}"
    location = answer.headers.get("location")
    if location is not None:
        assert answer.status == 303
        assert location.startswith((f"{REDIRECT_URI}?", "/sign-in?request=", "/v/"))
    place = place_of(unquote(urlsplit(f"http://{_HOST}{request.target}").path))
    if not answer.body or not request.is_http or place is None:
        return
    form = answer.headers["content-type"]
    if place.kind is Kind.OAUTH:
        assert form == "application/json"
        decoded = answer.decoded
        assert answer.status < 400 or {"error", "error_description"} <= set(decoded)
    else:
        assert form.partition(";")[0] in ("text/html", "text/css", "text/javascript", "text/plain")
        if form.startswith("text/html"):
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["cache-control"] == "no-store"


@dataclass
class Stage:
    """A server, a client, and sign-ins at each stage."""

    runner: asyncio.Runner
    owner: asyncpg.Connection
    facts: Facts

    def put_back(self) -> None:
        """The sign-ins under way as they were; what was begun since ends."""
        self.runner.run(
            self.owner.execute(
                "delete from oauth_authorizations; insert into oauth_authorizations select * from kept_authorizations"
            )
        )


@contextmanager
def _stage(owner_url: str, wire: Wire) -> Iterator[Stage]:
    async def build() -> World:
        world = on_postgres(database)
        await world.server("acme", "guides", name="Guides", auth_mode=AuthMode.ANONYMOUS)
        await world.publish("one", "two", organization="acme", servers=("guides",))
        return world

    def send(
        method: str, target: str, form: dict[str, str] | None = None, cookie: str = "", body: Any = None
    ) -> Answer:
        kind = "application/json" if body is not None else "application/x-www-form-urlencoded"
        headers = [("Host", _HOST), ("Content-Type", kind), *([("Cookie", cookie)] if cookie else [])]
        content = json.dumps(body) if body is not None else urlencode(form or {})
        return wire.send(Request(method=method, target=target, headers=headers, body=content.encode()))

    def begun(place: str, answer: Answer) -> tuple[str, str]:
        assert answer.status == 303, (place, answer)
        return answer.headers["location"].partition("=")[2], re.split("[=;]", answer.headers["set-cookie"])[1]

    with asyncio.Runner() as runner:
        database = Database(Access(owner_url, assume_role=True))
        runner.run(database.__aenter__())
        owner = runner.run(asyncpg.connect(owner_url))
        try:
            runner.run(build())
            metadata = {"redirect_uris": [REDIRECT_URI], "token_endpoint_auth_method": "none"}
            client_id = send("POST", "/register", body=metadata).decoded["client_id"]
            asking = urlencode(
                {
                    "response_type": "code",
                    "client_id": client_id,
                    "redirect_uri": REDIRECT_URI,
                    "code_challenge": _CHALLENGE,
                    "code_challenge_method": "S256",
                }
            )
            browsers = [begun("/authorize", send("GET", f"/authorize?{asking}")) for _ in range(3)]
            visitor = send("POST", "/").headers["location"].removeprefix("/v/")
            browsers.append(begun("/keep", send("POST", f"/v/{visitor}/keep")))
            for id, browser in browsers[1:3]:
                send("POST", "/sign-in", {"request": id, "decision": "approve"}, f"{_COOKIE}={browser}")
            id, browser = browsers[2]
            send("POST", "/sign-in", {"request": id, "email": "ada@example.com"}, f"{_COOKIE}={browser}")
            runner.run(owner.execute("create table kept_authorizations as table oauth_authorizations"))
            yield Stage(runner, owner, Facts(browsers, client_id, ["cairn_refresh_x", "x"], visitor))
        finally:
            runner.run(owner.close())
            runner.run(database.__aexit__(None, None, None))


# What hundreds of requests cannot fail to meet, unless the generator has gone to sleep. Not which of these statuses at
# which of these paths: some are met once in hundreds.
_MET = {"/sign-in", "/authorize", "/token", "/revoke", "/register", "/", "/sign-in/callback", 200, 201, 303, 400, 403}


@pytest.mark.promise("auth.refused")
@pytest.mark.timeout(600)
def test_whatever_is_sent_to_sign_in_is_answered_tells_nothing_and_leads_nowhere_else(
    owner_url: str, mailbox: Mailbox
) -> None:
    met: Counter[Any] = Counter()
    slowest = 0.0
    variables = {"CAIRN_SMTP_URL": mailbox.url, "CAIRN_LIMITS": NO_LIMITS}
    with serving("serve", "--port", "0", CAIRN_DATABASE_URL=owner_url, **variables) as service:
        port = urlsplit(service.url).port
        assert port is not None
        wire = Wire(("127.0.0.1", port))
        with _stage(owner_url, wire) as stage:

            def check(request: Request) -> None:
                nonlocal slowest
                stage.put_back()
                lines = len(service.lines)
                answer = wire.send(request)
                try:
                    _judge(request, answer)
                    failed = [
                        each for each in service.lines[lines:] if _FAILED.search(each) and not _KNOWN.search(each)
                    ]
                    assert not failed, "".join(failed)
                except Exception as failure:
                    wire.close()
                    failure.add_note(f"{request.wire()[:4000]!r}\n→ {answer.status} {answer.body[:4000]!r}")
                    raise
                slowest = max(slowest, answer.seconds)
                met[request.target.partition("?")[0], answer.status] += 1

            count = fuzz(check, _requests(stage.facts), examples=_EXAMPLES)
            wire.close()
    failed = [each for each in service.lines if _FAILED.search(each) and not _KNOWN.search(each)]
    assert not failed, "".join(failed)
    print(f"slowest {slowest * 1000:.0f} ms; {dict(met.most_common())}")
    if count >= _EXAMPLES:
        found = {each for pair in met for each in pair}
        assert found >= _MET, f"never met: {_MET - found}"
