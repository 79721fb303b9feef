"""Names: what may be a slug, a key, a domain or an e-mail address, judged a second time in plain words."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domain.errors import InvalidValue, OperatorError
from domain.tenancy import (
    AuthMode,
    OrganizationId,
    Server,
    ServerId,
    ServerKey,
    display_name,
    domain_name,
    email_address,
    hash_of,
    key,
    slug,
)
from tests.domain.generate import examples

LOWER = string.ascii_lowercase
DIGITS = string.digits


def is_accepted(check: Callable[[str], str], value: str) -> bool:
    try:
        check(value)
    except InvalidValue:
        return False
    return True


def is_dns_label(value: str) -> bool:
    """RFC 1035 section 2.3.4 and RFC 1123 section 2.1, of lower-case letters."""
    return 1 <= len(value) <= 63 and not set(value) - set(LOWER + DIGITS + "-") and value.strip("-") == value


def nearly(alphabet: str, longest: int) -> st.SearchStrategy[str]:
    """Text that is often acceptable, and else wrong by little: a length, an end, a character."""
    plain = st.text(alphabet, max_size=longest + 2)
    lengths = st.sampled_from([longest - 1, longest, longest + 1]).map(lambda length: "a" * length)
    strange = st.builds(
        "".join, st.tuples(st.text(alphabet, max_size=3), st.characters(), st.text(alphabet, max_size=3))
    )
    return plain | lengths | strange | st.text(max_size=5)


@given(nearly(LOWER + DIGITS + "-", 63))
@example("a\n")
@example("Acme")
@example("²")
@example("")
@examples(500)
def test_a_slug_is_exactly_a_dns_label_in_lower_case(value: str) -> None:
    # Reserved labels, such as those of internationalised names, are none that anyone may choose.
    acceptable = is_dns_label(value) and value[2:4] != "--"
    assert is_accepted(slug, value) == acceptable
    assert not acceptable or slug(value) == value


@given(nearly(LOWER + DIGITS + "._-", 64))
@example("a\n")
@example(".a")
@example("Intro")
@examples(500)
def test_a_key_is_up_to_64_plain_characters_and_begins_with_a_letter_or_digit(value: str) -> None:
    acceptable = 1 <= len(value) <= 64 and not set(value) - set(LOWER + DIGITS + "._-") and value[0] not in "._-"
    assert is_accepted(key, value) == acceptable
    assert not acceptable or key(value) == value


labels = st.text(LOWER + DIGITS + "-", min_size=1, max_size=5) | st.sampled_from(["com", "a" * 63, "b" * 64, "", "7"])


@given(st.lists(labels, min_size=1, max_size=5).map(".".join))
@example("guides.example.com\n")
@example("https://example.com")
@example("example.com:443")
@example("192.0.2.1")
@example(".".join(["a" * 61] * 4 + ["com"]))
@example(".".join(["a" * 61] * 3 + ["a" * 63, "com"]))
@examples(500)
def test_a_domain_is_a_host_name_of_several_labels_that_is_no_address(value: str) -> None:
    parts = value.removesuffix(".").split(".")
    acceptable = (
        len(value.removesuffix(".")) <= 253
        and len(parts) >= 2
        and all(map(is_dns_label, parts))
        and parts[-1][0] not in DIGITS
        and len(parts[-1]) >= 2
    )
    assert is_accepted(domain_name, value) == acceptable


@given(st.lists(labels, min_size=2, max_size=4).map(".".join).filter(lambda value: is_accepted(domain_name, value)))
@examples(100)
def test_a_domain_is_compared_in_lower_case_and_without_the_root_dot(value: str) -> None:
    plain = domain_name(value)
    assert domain_name(plain) == domain_name(value.upper()) == domain_name(plain + ".") == plain


ATOM_SIGNS = "!#$%&'*+-/=?^_`{|}~"
atoms = st.text(LOWER + string.ascii_uppercase + DIGITS + ATOM_SIGNS, min_size=1, max_size=5)
mailboxes = st.lists(atoms, min_size=1, max_size=4).map(".".join)
hosts = st.lists(labels, min_size=2, max_size=4).map(".".join).filter(lambda value: is_accepted(domain_name, value))


@given(mailboxes, hosts, st.sampled_from(["", " ", "\t", "\n"]))
@examples(300)
def test_an_email_address_is_compared_trimmed_and_in_lower_case(mailbox: str, host: str, margin: str) -> None:
    address = f"{mailbox}@{host}".removesuffix(".")
    if len(address) > 254:
        assert not is_accepted(email_address, address)
        return
    plain = email_address(margin + address + margin)
    assert plain == address.lower() == email_address(plain) == email_address(address.upper())


@given(
    st.text(max_size=12)
    | st.builds("{}@{}".format, st.text(max_size=8), st.text(max_size=8) | hosts)
    | st.builds("{}@{}.com".format, mailboxes, st.text(max_size=8))
    | st.builds("{}@{}".format, st.text(st.sampled_from('ad."(),:;<>@[\\] \u200b\u00e9'), max_size=6), hosts)
)
@example("a@\u1e9e.com")
@example("a@\ufdfa.com")
@example("a\u0301@example.com")
@examples(1_000)
def test_an_email_address_is_a_dot_atom_at_a_host_name_and_its_only_spelling(value: str) -> None:
    if not is_accepted(email_address, value):
        return
    plain = email_address(value)
    mailbox, host = plain.split("@")
    assert is_accepted(domain_name, host)
    assert "." in host
    assert all(mailbox.split("."))
    assert not set(mailbox) & set('"(),:;<>@[\\] ')
    assert all(character in ATOM_SIGNS or character == "." or unicodedata.category(character)[0] in "LMN"
               for character in mailbox)  # fmt: skip
    assert len(plain.encode()) <= 254
    assert email_address(plain) == plain
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        other = unicodedata.normalize(form, plain)  # type: ignore[arg-type]
        assert not is_accepted(email_address, other) or email_address(other) == plain


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ("s@\uff45xample.com", "s@example.com"),
        ("s@EX\u00c4MPLE.com", "s@xn--exmple-cua.com"),
        ("s@xn--exmple-cua.com", "s@xn--exmple-cua.com"),
        ("s@example.com.", "s@example.com"),
        ("\u00e9lo\u00efse@example.com", "\u00e9lo\u00efse@example.com"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940@example.com", "\u0939\u093f\u0928\u094d\u0926\u0940@example.com"),
        ("a.b+c_d'e@sub.example.com", "a.b+c_d'e@sub.example.com"),
    ],
)
def test_one_mailbox_has_one_spelling(value: str, plain: str) -> None:
    assert email_address(value) == plain


@pytest.mark.parametrize(
    "value",
    [
        "",
        "ada",
        "@example.com",
        "ada@",
        "ada@b@example.com",
        "ada lovelace@example.com",
        "a@b.com\r\nBcc: c@d.com",
        "a\x00@b.com",
        "a\x85@b.com",
        "a@b.\ud800",
        "\ud800@b.com",
        # Other spellings of a mailbox that has a plain one.
        '"ada"@example.com',
        "ada(a)@example.com",
        "ada@(1)example.com",
        "ada\\@example.com",
        "ada@example.com(x)",
        ".ada@example.com",
        "ada.@example.com",
        "a..da@example.com",
        "ada@example..com",
        "ada@ex\u200bample.com",
        "ada@ex\u00adample.com",
        "ad\u200ba@example.com",
        "\uff41da@example.com",
        "\u212ada@example.com",
        "e\u0301lise@example.com",
        # Of no mailbox that a message finds from everywhere.
        "ada@[127.0.0.1]",
        "ada@127.0.0.1",
        "root@localhost",
        "ada@-example.com",
        "ada@ex_ample.com",
        # fa\u00df.de and fass.de are two domains, and the older rules make one of them.
        "ada@fa\u00df.de",
        "ada@" + "e\u0301" * 200 + ".com",
    ],
)
def test_what_is_no_email_address_is_refused(value: str) -> None:
    with pytest.raises(InvalidValue):
        email_address(value)


@pytest.mark.parametrize(("length", "accepted"), [(254, True), (255, False)])
def test_an_email_address_has_at_most_254_characters(length: int, accepted: bool) -> None:
    address = "ada@" + "a." * 123 + "m" * (length - 250)
    assert len(address) == length
    assert is_accepted(email_address, address) is accepted


@pytest.mark.parametrize(("length", "accepted"), [(64, True), (65, False)])
def test_a_mailbox_has_at_most_64_characters(length: int, accepted: bool) -> None:
    assert is_accepted(email_address, "a" * length + "@example.com") is accepted


@pytest.mark.parametrize("check", [slug, key, domain_name, email_address])
def test_a_refused_name_is_told_to_the_operator_in_one_line(check: Callable[[str], str]) -> None:
    with pytest.raises(OperatorError) as refusal:
        check("no\nname")
    assert len(str(refusal.value).splitlines()) == 1
    assert r"no\nname" in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("A", True),
        ("A" * 100, True),
        ("", False),
        (" ", False),
        ("A" * 101, False),
        ("Ac\nme", False),
        ("A\x00", False),
    ],
)
def test_a_name_that_people_see_is_one_line_of_at_most_100_characters(name: str, accepted: bool) -> None:
    assert is_accepted(display_name, name) is accepted
    assert not accepted or display_name(name) == name


def server(*, slug: str = "acme", custom_domain: str | None = None) -> Server:
    return Server(
        ServerKey(OrganizationId("o1"), ServerId("s1")),
        slug,
        "Acme",
        AuthMode.ON_DEMAND,
        custom_domain=custom_domain,
    )


def test_a_server_has_a_slug_and_a_domain_that_can_be() -> None:
    assert server(custom_domain="guides.example.com").custom_domain == "guides.example.com"
    for build in (
        lambda: server(slug="Acme"),
        lambda: server(slug=""),
        lambda: server(custom_domain="Guides.example.com"),
        lambda: server(custom_domain="guides.example.com."),
        lambda: server(custom_domain="guides"),
        lambda: server(custom_domain=""),
    ):
        with pytest.raises(InvalidValue):
            build()


def test_of_a_secret_its_sha_256_is_stored_whatever_was_sent_for_one() -> None:
    assert hash_of("abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_of("\ud800") == hash_of("?")
