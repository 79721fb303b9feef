"""The rules of signing in, one by one, and then whatever a person, and somebody who guesses, may do in any order."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import InvalidValue
from domain.sign_in import (
    EMAILED_CODE_LIFETIME,
    MAX_SENDS,
    MAX_TRIES,
    MAX_VISITS,
    AskingClient,
    IdentityKey,
    OidcProvider,
    SignInState,
    Stage,
    Trouble,
    whose,
)
from domain.tenancy import Millis, ServerId, UserId
from tests.domain.generate import examples

NOW = Millis(1_000_000)
CODE, OTHER, WRONG = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32
WAY, OLD_WAY = b"\x04" * 32, b"\x05" * 32
ADA, BOB = UserId("usr_ada"), UserId("usr_bob")
IDENTITY = IdentityKey("https://acme.okta.example", "ada|1")
CLIENT = AskingClient.of("Claude Code", "http://localhost:3118/callback", "cli_1")
ASKED = SignInState.asked(CLIENT)
CHOOSING = ASKED.approve()
SENT = CHOOSING.send("Ada@Example.com ", CODE, NOW)
IDENTIFIED = SENT.try_code(CODE, NOW)


# ------------------------------------------------------------------------------------------ what is told of a client


@pytest.mark.parametrize(
    ("redirect_uri", "host", "is_here"),
    [
        ("https://Chat.Example.com/back?x=1", "chat.example.com", False),
        ("https://127.0.0.1.example.com/", "127.0.0.1.example.com", False),
        ("http://localhost:33418/", "localhost", True),
        ("http://127.0.0.1:1/cb", "127.0.0.1", True),
        ("http://[::1]:80/", "::1", True),
        ("cursor://anysphere.cursor-mcp/oauth/callback", "cursor:", True),
        ("com.example.app:/back", "com.example.app:", True),
    ],
)
def test_the_page_names_where_the_browser_goes(redirect_uri: str, host: str, is_here: bool) -> None:
    client = AskingClient.of("An app", redirect_uri, "cli_1")
    assert (client.name, client.redirect_host, client.is_on_this_computer) == ("An app", host, is_here)
    assert client.document_host is None


def test_a_client_with_a_document_of_its_own_is_named_by_where_that_is() -> None:
    client = AskingClient.of("An app", "http://localhost/", "https://apps.example.com/client.json")
    assert client.document_host == "apps.example.com"


def test_a_client_whose_id_is_no_address_of_a_document_is_named_by_none() -> None:
    assert AskingClient.of("An app", "http://localhost/", "http://apps.example.com/client.json").document_host is None


def test_a_code_may_be_sent_once_it_was_approved_and_again() -> None:
    assert [state.may_send for state in (ASKED, CHOOSING, SENT, IDENTIFIED)] == [False, True, True, False]


def test_what_a_client_asks_for_begins_with_the_question_whether_it_may() -> None:
    assert SignInState.asked(CLIENT) == SignInState(Stage.ASKED, CLIENT)


# ----------------------------------------------------------------------------------------------------- who is who


def test_an_address_is_an_identity_too() -> None:
    assert IdentityKey.of_address("ada@example.com") == IdentityKey("email", "ada@example.com")


@pytest.mark.parametrize(
    ("by_identity", "by_address", "expected"),
    [
        (None, None, None),
        (ADA, None, (ADA, ADA)),
        (None, BOB, (BOB, BOB)),
        (ADA, ADA, (ADA, ADA)),
        (ADA, BOB, (ADA, BOB)),
    ],
)
def test_an_identity_says_who_it_is_and_an_address_stays_whose_it_was(
    by_identity: UserId | None, by_address: UserId | None, expected: tuple[UserId, UserId] | None
) -> None:
    assert whose(by_identity, by_address) == expected


# ---------------------------------------------------------------------------------------------------------- codes


def test_a_code_goes_to_the_address_as_it_is_compared_and_the_right_one_identifies() -> None:
    assert (SENT.stage, SENT.email, SENT.sends) == (Stage.CODE_SENT, "ada@example.com", 1)
    assert (IDENTIFIED.stage, IDENTIFIED.email, IDENTIFIED.code) == (Stage.IDENTIFIED, "ada@example.com", None)


def test_a_code_is_taken_until_ten_minutes_are_over_and_not_then() -> None:
    ends = Millis(NOW + EMAILED_CODE_LIFETIME)
    assert SENT.try_code(CODE, Millis(ends - 1)).stage is Stage.IDENTIFIED
    late = SENT.try_code(CODE, ends)
    assert late == replace(SENT, trouble=Trouble.CODE_EXPIRED)


@pytest.mark.promise("auth.refused")
def test_the_fifth_wrong_code_ends_it_and_another_one_may_be_sent() -> None:
    state, told = SENT, []
    for _ in range(MAX_TRIES):
        assert state.try_code(CODE, NOW).stage is Stage.IDENTIFIED
        state = state.try_code(WRONG, NOW)
        told.append(state.trouble)
    assert told == [Trouble.WRONG_CODE] * 4 + [Trouble.CODE_USED_UP]
    assert state.try_code(CODE, NOW) == state.try_code(WRONG, NOW) == state
    again = state.send("ada@example.com", OTHER, NOW)
    assert again.trouble is None
    assert again.try_code(CODE, NOW).trouble is Trouble.WRONG_CODE  # the one before is worth nothing any more
    assert again.try_code(OTHER, NOW).stage is Stage.IDENTIFIED


def test_the_sixth_code_is_not_sent_whatever_the_address() -> None:
    state = CHOOSING
    for number in range(MAX_SENDS):
        assert state.may_send
        state = state.send(f"ada{number}@example.com", bytes([number]), NOW).choose_again()
    assert not state.may_send
    assert state.send("ada@example.com", CODE, NOW) == replace(state, trouble=Trouble.NO_MORE_CODES)


def test_what_is_no_address_gets_no_code_and_counts_for_nothing() -> None:
    assert CHOOSING.send("ada", CODE, NOW) == replace(CHOOSING, trouble=Trouble.BAD_ADDRESS)
    assert SENT.send("ada", OTHER, NOW) == replace(SENT, trouble=Trouble.BAD_ADDRESS)


def test_a_message_that_could_not_be_sent_leaves_the_address_to_be_tried_again() -> None:
    assert SENT.unsent(CODE) == replace(CHOOSING, email="ada@example.com", sends=1, trouble=Trouble.NOT_SENT)
    # By then another one was sent.
    assert SENT.send("bob@example.com", OTHER, NOW).unsent(CODE) == SENT.send("bob@example.com", OTHER, NOW)


def test_another_address_is_asked_for_and_the_code_ends() -> None:
    assert SENT.choose_again() == replace(CHOOSING, email="ada@example.com", sends=1)


# ------------------------------------------------------------------------------------------------------- provider


def test_a_verified_address_of_the_providers_identifies() -> None:
    back = CHOOSING.leave(WAY).come_back(WAY, IDENTITY, "ada@example.com")
    assert (back.stage, back.email, back.proven, back.away) == (Stage.IDENTIFIED, "ada@example.com", IDENTITY, None)


def test_without_a_verified_address_one_is_asked_for_and_both_are_known_at_the_end() -> None:
    back = CHOOSING.leave(WAY).come_back(WAY, IDENTITY, None)
    assert (back.stage, back.trouble, back.proven) == (Stage.CHOOSING, Trouble.ADDRESS_UNPROVED, IDENTITY)
    proved = back.send("ada@example.com", CODE, NOW).try_code(CODE, NOW)
    assert (proved.stage, proved.email, proved.proven) == (Stage.IDENTIFIED, "ada@example.com", IDENTITY)


def test_a_failed_return_says_why_and_the_person_goes_on_from_there() -> None:
    failed = CHOOSING.leave(WAY).failed(WAY, "It said no.")
    assert (failed.stage, failed.trouble, failed.problem) == (Stage.CHOOSING, Trouble.PROVIDER_FAILED, "It said no.")
    again = failed.leave(OLD_WAY)
    assert (again.stage, again.trouble, again.problem) == (Stage.AWAY, None, None)


@pytest.mark.parametrize(
    "elsewhere",
    [ASKED, CHOOSING, CHOOSING.leave(WAY), CHOOSING.leave(OLD_WAY).leave(WAY), SENT, IDENTIFIED],
    ids=lambda state: state.stage,
)
def test_a_return_that_is_not_waited_for_changes_nothing(elsewhere: SignInState) -> None:
    assert not elsewhere.is_awaiting(OLD_WAY)
    assert elsewhere.come_back(OLD_WAY, IDENTITY, "mallory@example.com") == elsewhere
    assert elsewhere.failed(OLD_WAY, "no") == elsewhere


def test_the_sixth_way_to_the_provider_is_not_gone_and_a_code_still_signs_in() -> None:
    state = CHOOSING
    for number in range(MAX_VISITS):
        assert state.may_leave
        state = state.leave(bytes([number])).failed(bytes([number]), "It said no.")
        assert state.visits == number + 1
    assert not state.may_leave
    assert state.leave(WAY) == replace(state, trouble=Trouble.NO_MORE_VISITS, problem=None)
    assert not state.leave(WAY).is_awaiting(WAY)
    assert state.send("ada@example.com", CODE, NOW).try_code(CODE, NOW).stage is Stage.IDENTIFIED
    # Who is away on the fifth way may still come back by it.
    away = replace(CHOOSING, visits=MAX_VISITS - 1).leave(WAY)
    assert away.leave(OLD_WAY).come_back(WAY, IDENTITY, "ada@example.com").stage is Stage.IDENTIFIED


# --------------------------------------------------------------------------------------------------------- stages


def test_nothing_but_a_yes_leads_on_from_the_question_whether_the_client_may() -> None:
    for state in (
        ASKED.send("ada@example.com", CODE, NOW),
        ASKED.try_code(CODE, NOW),
        ASKED.leave(WAY),
        ASKED.choose_again(),
        ASKED.kept(by_them=True),
    ):
        assert state == ASKED
    assert not ASKED.may_send
    assert not ASKED.may_leave
    assert ASKED.approve() == SignInState(Stage.CHOOSING, CLIENT)


def test_whoever_is_known_is_asked_nothing_more() -> None:
    for state in (
        IDENTIFIED.approve(),
        IDENTIFIED.send("mallory@example.com", OTHER, NOW),
        IDENTIFIED.try_code(WRONG, NOW),
        IDENTIFIED.leave(WAY),
        IDENTIFIED.choose_again(),
        IDENTIFIED.kept(by_them=True),  # there is a client to go back to
    ):
        assert state == IDENTIFIED


@pytest.mark.parametrize(("by_them", "end"), [(True, Stage.KEPT), (False, Stage.KEPT_ELSEWHERE)])
def test_a_visitor_who_is_known_ends_with_who_keeps_what_they_had_done(by_them: bool, end: Stage) -> None:
    known = SignInState.keeping().send("ada@example.com", CODE, NOW).try_code(CODE, NOW)
    kept = known.kept(by_them=by_them)
    assert kept == SignInState(end, None, email="ada@example.com", sends=1)
    assert SignInState.keeping().kept(by_them=by_them) == SignInState.keeping()
    assert kept.send("bob@example.com", OTHER, NOW) == kept.kept(by_them=not by_them) == kept


@pytest.mark.parametrize(
    "values",
    [
        {"stage": Stage.CODE_SENT},
        {"stage": Stage.CHOOSING, "code": SENT.code},
        {"stage": Stage.AWAY},
        {"stage": Stage.CHOOSING, "away": WAY},
        {"stage": Stage.IDENTIFIED, "email": None},
        {"stage": Stage.ASKED, "client": None},
        {"stage": Stage.KEPT, "email": "ada@example.com"},
        {"stage": Stage.KEPT_ELSEWHERE, "email": "ada@example.com"},
        {"stage": Stage.KEPT_ELSEWHERE, "client": None},
        {"trouble": Trouble.PROVIDER_FAILED},
        {"problem": "why"},
        {"sends": MAX_SENDS + 1},
        {"visits": MAX_VISITS + 1},
        {"visits": -1},
    ],
    ids=", ".join,
)
def test_what_is_no_state_cannot_be_built(values: dict[str, object]) -> None:
    with pytest.raises(InvalidValue, match=r"^this is no state of a sign-in$"):
        replace(CHOOSING, **values)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- everything, in any order


@dataclass(frozen=True)
class Deed:
    """Something that is done on a page, or with one: by the person, or by whoever guesses."""

    name: str
    mailbox: str = ""
    number: int = 0
    later: int = 0


_NUMBERS = st.integers(0, 2)
_DEEDS = st.one_of(
    st.sampled_from([Deed("approve"), Deed("other"), Deed("kept"), Deed("kept", number=1)]),
    st.builds(Deed, st.just("send"), st.sampled_from(["ada@example.com", "bob@example.com", "nobody"]), _NUMBERS),
    st.builds(Deed, st.sampled_from(["try", "unsent", "leave", "fail"]), number=_NUMBERS),
    st.builds(Deed, st.just("return"), st.sampled_from(["ada@example.com", ""]), _NUMBERS),
    st.builds(Deed, st.just("wait"), later=st.integers(1, EMAILED_CODE_LIFETIME)),
)
_HASHES = [bytes([number]) * 32 for number in range(3)]


@pytest.mark.promise("auth.refused")
@examples(800)
@given(begun=st.sampled_from([ASKED, SignInState.keeping()]), deeds=st.lists(_DEEDS, max_size=25))
def test_nobody_is_known_without_a_code_in_time_or_the_providers_word(begun: SignInState, deeds: list[Deed]) -> None:
    """Compared with what the contract says: kept here as the open code, the open way, and what was sent."""
    state, now = begun, int(NOW)
    is_approved = begun.client is None
    open_code: tuple[str, int, int, int] | None = None  # mailbox, number, until, wrong tries
    open_way: int | None = None
    sends = visits = 0
    known: str | None = None
    for deed in deeds:
        hash_ = _HASHES[deed.number]
        asks = is_approved and known is None
        match deed.name:
            case "approve":
                state, is_approved = state.approve(), True
            case "other":
                state = state.choose_again()
                open_code = None
            case "kept":
                state = state.kept(by_them=deed.number == 0)
            case "wait":
                now += deed.later
            case "send":
                state = state.send(deed.mailbox, hash_, Millis(now))
                if asks and "@" in deed.mailbox and sends < MAX_SENDS:
                    open_code, open_way = (deed.mailbox, deed.number, now + EMAILED_CODE_LIFETIME, 0), None
                    sends += 1
            case "unsent":
                state = state.unsent(hash_)
                if open_code and open_code[1] == deed.number:
                    open_code = None
            case "try":
                state = state.try_code(hash_, Millis(now))
                if open_code and now < open_code[2] and open_code[3] < MAX_TRIES:
                    mailbox, number, until, wrong = open_code
                    if number == deed.number:
                        known, open_code = mailbox, None
                    else:
                        open_code = (mailbox, number, until, wrong + 1)
            case "leave":
                state = state.leave(hash_)
                if asks and open_code is None and visits < MAX_VISITS:
                    open_way = deed.number
                    visits += 1
            case "fail":
                state = state.failed(hash_, "no")
                open_way = None if open_way == deed.number else open_way
            case "return":
                state = state.come_back(hash_, IDENTITY, deed.mailbox or None)
                if open_way == deed.number:
                    known, open_way = deed.mailbox or None, None
        assert (state.stage in (Stage.IDENTIFIED, Stage.KEPT, Stage.KEPT_ELSEWHERE)) == (known is not None)
        assert known is None or state.email == known
        assert (state.stage is Stage.ASKED) == (not is_approved)
        assert (state.code is not None) == (open_code is not None)
        assert (state.away is not None) == (open_way is not None)
        assert (state.sends, state.visits) == (sends, visits)
        assert state.client == begun.client


# ------------------------------------------------------------------------------------------------ a provider


def provider(issuer: str = "https://accounts.example.com", **given: str) -> OidcProvider:
    return OidcProvider(**{"issuer": issuer, "client_id": "cairn", "client_secret": "s", "name": "Acme SSO"} | given)


def test_a_visitor_is_known_by_the_server_and_the_hash_of_their_secret() -> None:
    assert IdentityKey.of_visitor(ServerId("srv_1"), b"\x00\xff") == IdentityKey("visitor:srv_1", "00ff")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        *(
            (
                {"issuer": issuer},
                "an issuer is an https URL without a query, as the provider's documentation gives it, such as "
                "https://accounts.example.com",
            )
            for issuer in (
                "",
                "accounts.example.com",
                "http://accounts.example.com",
                "https://accounts.example.com/?a=b",
            )
        ),
        ({"client_id": ""}, "give the client id and the client secret that the provider gave you"),
        ({"client_secret": ""}, "give the client id and the client secret that the provider gave you"),
        ({"name": "Acme\nSSO"}, "a name is one line of 1 to 100 characters"),
    ],
)
def test_a_provider_that_cannot_be_is_refused(given: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidValue) as refusal:
        provider(**given)
    assert str(refusal.value) == says


@pytest.mark.parametrize(
    ("issuer", "url", "expected"),
    [
        ("https://accounts.example.com", "https://other.example.com:8443/token?tenant=1", True),
        ("https://accounts.example.com", "http://localhost/token", False),
        ("http://localhost:8080/", "http://127.0.0.1:9090/token", True),
        ("http://localhost:8080/", "http://accounts.example.com/token", False),
        ("http://localhost:8080/", "https://accounts.example.com/token", True),
        ("https://accounts.example.com", "https://user@accounts.example.com/token", False),
    ],
)
def test_secrets_are_sent_by_https_or_on_this_machine_where_the_provider_is(
    issuer: str, url: str, expected: bool
) -> None:
    assert provider(issuer).can_be_at(url) is expected
