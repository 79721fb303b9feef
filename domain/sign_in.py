"""Signing in: one sign-in under way, and who it is that has signed in. All rules about it are here.

A browser is sent to a server's pages by an MCP client, and goes back to it as a known person:

                       ┌────────────────────── another address; the code could not be sent ───────────────┐
                       ▼                                                                                  │
    ASKED ─ approve ─▶ CHOOSING ─────────────────────── a code is sent ──▶ CODE_SENT ◀┐ sent again,       │
                       ▲ ▲   │                                      ▲       │  │  └────┘ a wrong code      │
                       │ │   └─ leave ─▶ AWAY ──────────────────────┘       │  └──────────────────────────┘
                       │ └──── it failed ─┘│ │                              │
                       └─ no verified ─────┘ └─ with a verified address ─┐  └─ the right code ─┐
                          address: asked for                             ▼                     ▼
                                                                         IDENTIFIED ─────▶ (over) or KEPT

It is over when the browser goes back to the client, or when 15 minutes have passed: then nothing is left of it. A
visitor who keeps their progress has approved that beforehand and begins at CHOOSING; there is nobody to go back to, so
that it ends as KEPT, or as KEPT_ELSEWHERE. Whoever says no ends it at once, from anywhere.

Before it is approved nothing is sent to anybody. Whatever does not fit the stage, such as the answer to a question that
is no longer asked, changes nothing. `trouble` is what the next page has to say, and goes with the next thing done.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from domain.errors import InvalidValue
from domain.tenancy import Millis, ServerId, UserId, display_name, email_address

SIGN_IN_LIFETIME = Millis(15 * 60_000)
"""From the first page to the way back. Long enough to look for a message in another program."""
EMAILED_CODE_LIFETIME = Millis(10 * 60_000)
# One in 40,000 to guess a code of six digits, with all five codes of a sign-in.
MAX_TRIES = 5
MAX_SENDS = 5
# Each may make this service ask the provider: enough for whoever fails there, and no hammer.
MAX_VISITS = 5

UNUSED_VISITOR_LIFETIME = Millis(30 * 86_400_000)
"""Of a personal address with which nothing was begun: anybody may have as many as they ask for."""

EMAIL_ISSUER = "email"
VISITOR_ISSUER = "visitor:"
"""Before the id of a server, whose visitors it knows by what is stored of their secrets."""

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class IdentityKey:
    """What was proved about a person: that `issuer` knows them as `subject`.

    The issuer is an OpenID provider's, and the subject its name for them (OpenID Connect Core section 2); or it is
    `EMAIL_ISSUER`, and the subject is an address; or it is a server's own, for its visitors.
    """

    issuer: str
    subject: str

    @classmethod
    def of_address(cls, email: str) -> IdentityKey:
        """Whoever reads what is sent to this address."""
        return cls(EMAIL_ISSUER, email)

    @classmethod
    def of_visitor(cls, server: ServerId, visitor_hash: bytes) -> IdentityKey:
        """Whoever has the secret with this hash."""
        return cls(VISITOR_ISSUER + server, visitor_hash.hex())


# RFC 3986 without userinfo and fragment: a port, a path, a query.
_REST_OF_URL = r"(:[0-9]{1,5})?(/[!-\"$->@-\[\]-~]*)?(\?[!-\"$-~]*)?"
_ANY_HOST = re.compile(r"https://([A-Za-z0-9.-]+|\[[0-9a-f:.]+\])" + _REST_OF_URL)
_THIS_MACHINE = re.compile(r"http://(localhost|127\.0\.0\.1|\[::1\])" + _REST_OF_URL)


@dataclass(frozen=True, slots=True)
class OidcProvider:
    """An organisation's own identity provider (OpenID Connect), as its operator named it."""

    issuer: str
    """Exactly as the provider writes it, with or without a slash at the end: both exist, and they are not the same."""
    client_id: str
    client_secret: str = field(repr=False)
    name: str
    """What people know it by."""
    offers_email_codes: bool = True
    """Whether people may sign in by e-mail codes as well."""

    def __post_init__(self) -> None:
        if not self.can_be_at(self.issuer) or "?" in self.issuer:
            raise InvalidValue(
                "an issuer is an https URL without a query, as the provider's documentation gives it, such as "
                "https://accounts.example.com"
            )
        if not self.client_id or not self.client_secret:
            raise InvalidValue("give the client id and the client secret that the provider gave you")
        display_name(self.name)

    def can_be_at(self, url: str) -> bool:
        """Whether secrets may be sent to this URL: by https, or by http to this machine where the issuer is on it."""
        return bool(_ANY_HOST.fullmatch(url) or (_THIS_MACHINE.fullmatch(self.issuer) and _THIS_MACHINE.fullmatch(url)))


def whose(by_identity: UserId | None, by_address: UserId | None) -> tuple[UserId, UserId] | None:
    """The person who has proved an identity and an address, and the person whose the address is from now on.

    The arguments are who is known by either. An identity that is known says who it is; an address that nobody has
    becomes theirs, and one that is another person's stays that person's: two persons never become one. An identity that
    is new belongs to the person of the address. None: nobody is known, and a new person has both.
    """
    person = by_identity or by_address
    return None if person is None else (person, by_address or person)


@dataclass(frozen=True, slots=True)
class AskingClient:
    """The client that asks to act for a person, as far as the person is told.

    `name` is what it says of itself. Where the browser goes afterwards is the truth: `redirect_host`, or, for an app
    that is opened by a link of its own, that link's scheme and a colon. `document_host` is where a client that is known
    by a document of its own has published it.
    """

    name: str
    redirect_host: str
    is_on_this_computer: bool
    document_host: str | None = None

    @classmethod
    def of(cls, name: str, redirect_uri: str, client_id: str) -> AskingClient:
        """`redirect_uri` is one of those that the client may use."""
        to, by = urlsplit(redirect_uri), urlsplit(client_id)
        is_web = to.scheme in ("http", "https")
        return cls(
            name=name,
            redirect_host=(to.hostname or "") if is_web else f"{to.scheme}:",
            is_on_this_computer=not is_web or to.hostname in _LOOPBACK,
            document_host=by.hostname if by.scheme == "https" else None,
        )


class Stage(StrEnum):
    """What the browser is asked next."""

    ASKED = "asked"
    """Whether the client may act for them."""
    CHOOSING = "choosing"
    """Who they are: an address to send a code to, or a provider."""
    CODE_SENT = "code_sent"
    """The code."""
    AWAY = "away"
    """Nothing: they are at the provider. Whoever comes back without its word chooses again."""
    IDENTIFIED = "identified"
    """Nothing: who they are is known."""
    KEPT = "kept"
    """Nothing: what a visitor had done belongs to them."""
    KEPT_ELSEWHERE = "kept_elsewhere"
    """Nothing: what a visitor had done belongs to another account already."""


_ENDS_OF_KEEPING = (Stage.KEPT, Stage.KEPT_ELSEWHERE)


class Trouble(StrEnum):
    """What went wrong, and can be mended by the person."""

    BAD_ADDRESS = "bad_address"
    NOT_SENT = "not_sent"
    NO_MORE_CODES = "no_more_codes"
    WRONG_CODE = "wrong_code"
    CODE_EXPIRED = "code_expired"
    CODE_USED_UP = "code_used_up"
    NO_MORE_VISITS = "no_more_visits"
    PROVIDER_FAILED = "provider_failed"
    ADDRESS_UNPROVED = "address_unproved"
    """The provider vouches for no address, so that a code has to."""


@dataclass(frozen=True, slots=True)
class SentCode:
    """A code under way to a mailbox. The hash covers the browser's two secrets, so that it is good nowhere else."""

    code_hash: bytes
    expires_at: Millis
    wrong_tries: int = 0


@dataclass(frozen=True, slots=True)
class SignInState:
    """A sign-in under way. `client` is None where a visitor keeps their progress.

    `email` is the address that the code goes to, later the verified one; `proven` is what the provider has said;
    `away` is the SHA-256 of the `state` by which the provider's answer is recognised.
    """

    stage: Stage
    client: AskingClient | None
    email: str | None = None
    code: SentCode | None = None
    sends: int = 0
    visits: int = 0
    """How often they went to the provider."""
    away: bytes | None = None
    proven: IdentityKey | None = None
    trouble: Trouble | None = None
    problem: str | None = None
    """With `PROVIDER_FAILED`: a sentence about it."""

    def __post_init__(self) -> None:
        is_sound = (
            (self.problem is not None) == (self.trouble is Trouble.PROVIDER_FAILED)
            and (self.code is not None) == (self.stage is Stage.CODE_SENT)
            and (self.away is not None) == (self.stage is Stage.AWAY)
            and (self.email is not None or self.stage not in (Stage.CODE_SENT, Stage.IDENTIFIED, *_ENDS_OF_KEEPING))
            and (self.client is not None or self.stage is not Stage.ASKED)
            and (self.client is None or self.stage not in _ENDS_OF_KEEPING)
            and 0 <= self.sends <= MAX_SENDS
            and 0 <= self.visits <= MAX_VISITS
        )
        if not is_sound:
            raise InvalidValue("this is no state of a sign-in")

    @classmethod
    def asked(cls, client: AskingClient) -> SignInState:
        """A client has sent the browser here."""
        return cls(Stage.ASKED, client)

    @classmethod
    def keeping(cls) -> SignInState:
        """A visitor has asked to keep their progress."""
        return cls(Stage.CHOOSING, None)

    @property
    def may_choose(self) -> bool:
        """Whether it was approved, and is open who they are."""
        return self.stage in (Stage.CHOOSING, Stage.AWAY)

    @property
    def may_leave(self) -> bool:
        """Whether they may go to the provider."""
        return self.may_choose and self.visits < MAX_VISITS

    @property
    def may_send(self) -> bool:
        """Whether a code may be sent, to the address that was named before or to another."""
        return (self.may_choose or self.stage is Stage.CODE_SENT) and self.sends < MAX_SENDS

    def approve(self) -> SignInState:
        """The client may act for them."""
        return self._at(Stage.CHOOSING) if self.stage is Stage.ASKED else self

    def send(self, email: str, code_hash: bytes, now: Millis) -> SignInState:
        """A code is to be sent to what was typed as an address. It was, if `code.code_hash` is `code_hash` then.

        A code that was sent before is worth nothing any more.
        """
        if not (self.may_choose or self.stage is Stage.CODE_SENT):
            return self
        if self.sends >= MAX_SENDS:
            return self._troubled(Trouble.NO_MORE_CODES)
        try:
            address = email_address(email)
        except InvalidValue:
            return self._troubled(Trouble.BAD_ADDRESS)
        code = SentCode(code_hash, Millis(now + EMAILED_CODE_LIFETIME))
        return self._at(Stage.CODE_SENT, email=address, code=code, sends=self.sends + 1)

    def unsent(self, code_hash: bytes) -> SignInState:
        """The message with this code could not be handed in. The address stands, to be tried again or corrected."""
        if self.code is None or self.code.code_hash != code_hash:
            return self
        return self._at(Stage.CHOOSING, trouble=Trouble.NOT_SENT)

    def choose_again(self) -> SignInState:
        """They want another address, or another way."""
        return self._at(Stage.CHOOSING) if self.stage is Stage.CODE_SENT else self

    def try_code(self, code_hash: bytes, now: Millis) -> SignInState:
        """A code was typed. A wrong one counts; after `MAX_TRIES` of them not even the right one is taken."""
        if self.code is None:
            return self
        if self.code.wrong_tries >= MAX_TRIES:
            return self._troubled(Trouble.CODE_USED_UP)
        if now >= self.code.expires_at:
            return self._troubled(Trouble.CODE_EXPIRED)
        if hmac.compare_digest(self.code.code_hash, code_hash):
            return self._at(Stage.IDENTIFIED)
        code = replace(self.code, wrong_tries=self.code.wrong_tries + 1)
        is_used_up = code.wrong_tries >= MAX_TRIES
        return self._troubled(Trouble.CODE_USED_UP if is_used_up else Trouble.WRONG_CODE, code=code)

    def leave(self, away: bytes) -> SignInState:
        """They go to the provider, whose answer is recognised by `away`. Earlier ways there lead nowhere any more."""
        if not self.may_choose:
            return self
        if self.visits >= MAX_VISITS:
            return self._troubled(Trouble.NO_MORE_VISITS)
        return self._at(Stage.AWAY, away=away, visits=self.visits + 1)

    def is_awaiting(self, away: bytes) -> bool:
        """Whether this is the way back that is waited for."""
        return self.away is not None and hmac.compare_digest(self.away, away)

    def come_back(self, away: bytes, identity: IdentityKey, email: str | None) -> SignInState:
        """The provider says who they are; `email` is an address that it has verified, if any."""
        if not self.is_awaiting(away):
            return self
        if email is not None:
            return self._at(Stage.IDENTIFIED, proven=identity, email=email)
        return self._at(Stage.CHOOSING, proven=identity, trouble=Trouble.ADDRESS_UNPROVED)

    def failed(self, away: bytes, problem: str) -> SignInState:
        """The provider says no, or what cannot be believed."""
        if not self.is_awaiting(away):
            return self
        return self._at(Stage.CHOOSING, trouble=Trouble.PROVIDER_FAILED, problem=problem)

    def kept(self, *, by_them: bool) -> SignInState:
        """What the visitor had done belongs to the person now, or, if not `by_them`, to somebody else before."""
        is_due = self.client is None and self.stage is Stage.IDENTIFIED
        return self._at(Stage.KEPT if by_them else Stage.KEPT_ELSEWHERE) if is_due else self

    def _at(self, stage: Stage, **values: Any) -> SignInState:
        """At another stage, without what belonged to the one before it alone."""
        return replace(self, **{"stage": stage, "code": None, "away": None, "trouble": None, "problem": None, **values})

    def _troubled(self, trouble: Trouble, **values: Any) -> SignInState:
        return replace(self, trouble=trouble, problem=None, **values)
