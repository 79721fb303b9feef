"""Whose word about a request's origin is taken, and whose is not."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import InvalidValue
from entrypoints.http.proxies import client_address, forwarded_scheme, trusted_networks

TRUSTED = trusted_networks("10.0.0.0/8, 2001:db8:1::/48 192.0.2.7")
ours = st.one_of(
    st.ip_addresses(network="10.0.0.0/8"), st.ip_addresses(network="2001:db8:1::/48"), st.just("192.0.2.7")
).map(str)
strangers = st.one_of(
    st.ip_addresses(network="203.0.113.0/24"), st.ip_addresses(network="2001:db8:2::/48"), st.just("192.0.2.8")
).map(str)
garbage = st.one_of(
    st.text(alphabet=st.characters(codec="latin-1"), max_size=40),
    st.sampled_from(["unknown", "_hidden", "10.0.0", "10.0.0.1.", "10.0.0.1/8", "fe80::1%eth0", "[10.0.0.1", "0x0a.1"]),
).filter(lambda text: "," not in text and not _is_address(text))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip().strip("[]"))
    except ValueError:
        return False
    return True


@given(strangers, st.lists(st.one_of(ours, strangers, garbage)))
def test_who_is_no_trusted_proxy_is_the_client_whatever_it_says(peer: str, said: list[str]) -> None:
    assert client_address(peer, [", ".join(said)], TRUSTED) == peer
    assert forwarded_scheme(peer, ["https"], TRUSTED) is None


@given(st.one_of(ours, strangers), st.lists(st.one_of(ours, strangers, garbage)))
def test_where_no_proxy_is_named_nothing_is_believed(peer: str, said: list[str]) -> None:
    assert client_address(peer, said, ()) == peer
    assert forwarded_scheme(peer, ["https"], ()) is None


@given(ours, st.lists(st.one_of(ours, strangers, garbage), max_size=20), strangers, st.lists(ours, max_size=10))
def test_the_client_is_the_last_address_that_no_proxy_of_ours_has(
    peer: str, invented: list[str], client: str, proxies: list[str]
) -> None:
    told = [*invented, client, *proxies]
    assert client_address(peer, [",".join(told)], TRUSTED) == client
    assert client_address(peer, told, TRUSTED) == client, "several headers are one"


@given(ours, st.lists(st.one_of(ours, strangers, garbage), max_size=20), garbage, st.lists(ours, max_size=10))
def test_what_is_no_address_ends_the_search_at_the_proxy_that_wrote_it(
    peer: str, invented: list[str], broken: str, proxies: list[str]
) -> None:
    assert client_address(peer, [*invented, broken, *proxies], TRUSTED) == [*proxies, peer][0]


@given(ours, st.lists(ours, max_size=16))
def test_among_proxies_alone_the_first_is_the_client(peer: str, proxies: list[str]) -> None:
    assert client_address(peer, proxies, TRUSTED) == [*proxies, peer][0]


@pytest.mark.parametrize("peer", ["", "unix:/run/cairn", "fe80::1%eth0", "testclient"])
def test_a_peer_without_an_address_is_believed_nothing(peer: str) -> None:
    everybody = trusted_networks("0.0.0.0/0 ::/0")
    assert client_address(peer, ["203.0.113.1"], everybody) == peer
    assert forwarded_scheme(peer, ["https"], everybody) is None


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("203.0.113.9:4711", "203.0.113.9"),
        ("[2001:db8:2::9]:4711", "2001:db8:2::9"),
        ("[2001:db8:2::9]", "2001:db8:2::9"),
        (" 2001:0DB8:0002:0000::9 ", "2001:db8:2::9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("\t203.0.113.9", "203.0.113.9"),
        ("2001:db8:2::9:4711", "2001:db8:2::9:4711"),
        ("[2001:0db8:0002:0000:0000:0000:203.113.113.109]:65535", "2001:db8:2::cb71:716d"),
    ],
)
def test_an_address_is_read_in_each_way_that_proxies_write_it(written: str, address: str) -> None:
    assert client_address("10.0.0.1", [written], TRUSTED) == address
    assert client_address("::ffff:10.0.0.1", [written], TRUSTED) == address, "a proxy on a socket for both families"


def test_a_header_of_thousands_of_proxies_is_no_work() -> None:
    assert client_address("10.0.0.1", ["203.0.113.9", *["10.0.0.2"] * 16], TRUSTED) == "10.0.0.2"
    assert client_address("10.0.0.1", [",".join(["10.0.0.2"] * 1_000_000)], TRUSTED) == "10.0.0.2"


@pytest.mark.parametrize(
    ("said", "scheme"),
    [
        (["https"], "https"),
        (["HTTPS "], "https"),
        (["http"], "http"),
        (["https, http"], "http"),
        (["http", "https"], "https"),
        ([], None),
        ([""], None),
        (["https,"], None),
        (["ftp"], None),
        (["https;x"], None),
    ],
)
def test_the_scheme_is_what_the_nearest_proxy_says_it_is(said: list[str], scheme: str | None) -> None:
    assert forwarded_scheme("10.0.0.1", said, TRUSTED) == scheme


def test_networks_are_told_apart_by_blanks_and_commas() -> None:
    assert trusted_networks(" 10.0.0.0/8,, 192.0.2.7\n2001:db8::/32 ") == [
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("192.0.2.7/32"),
        ipaddress.ip_network("2001:db8::/32"),
    ]
    assert trusted_networks("") == []


@pytest.mark.parametrize("setting", ["10.0.0.1/8", "*", "proxy.example.com", "10.0.0.0/33", "10.0.0.0/8;10.1.0.0/16"])
def test_what_is_no_network_is_refused_with_how_to_write_one(setting: str) -> None:
    with pytest.raises(InvalidValue, match=r"is no network: write an address such as 10\.0\.0\.7, or a network such"):
        trusted_networks(setting)
