"""Limits: how they are set, how windows slide, what a Redis that fails does, and what callers are told."""

from __future__ import annotations

import asyncio
import re
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import asyncpg
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from adapters.postgres.connections import Database
from adapters.rate_limits import MemoryRateLimits
from adapters.redis_rate_limits import _PATIENCE_SECONDS, RedisRateLimits
from application.limits import Limit, Rate, network_of, rates
from domain.errors import InvalidValue, TooManyRequests
from entrypoints.settings import Settings
from tests.patience import PATIENCE_SECONDS
from tests.processes import Serving, serving
from tests.redis_server import RedisServer, redis_serving
from tests.serving.conftest import Tenant, call, make_tenant
from tests.serving.raw import META, MODERN

_ABOUT_A_MINUTE = range(30, 61)  # however slow the machine


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_serving(tmp_path_factory.mktemp("redis")) as server:
        yield server


async def _told(limits: MemoryRateLimits | RedisRateLimits, limit: Limit, *who: str) -> int | None:
    """The seconds that one hit is told to wait; None: it counts."""
    try:
        await limits.hit(limit, *who)
    except TooManyRequests as error:
        return error.retry_after_seconds
    return None


# ------------------------------------------------------------------------------------------------- settings


def test_every_limit_is_as_it_stands_in_the_code_but_for_those_that_are_set() -> None:
    assert rates("") == {limit: limit.rate for limit in Limit}
    assert len(rates("")) == 13, "no limit is another one under a second name"
    changed = rates(" calls_per_user=1000/30,codes_per_address=off\n, visitors_per_network=1/86400 ")
    assert changed == rates("") | {
        Limit.CALLS_PER_USER: Rate(1000, 30),
        Limit.CODES_PER_ADDRESS: None,
        Limit.VISITORS_PER_NETWORK: Rate(1, 86400),
    }


@given(
    st.dictionaries(
        st.sampled_from(Limit), st.none() | st.builds(Rate, st.integers(1, 10**9 - 1), st.integers(1, 99_999))
    )
)
def test_whatever_can_be_set_is_read_as_it_was_written(given_rates: dict[Limit, Rate | None]) -> None:
    written = [
        f"{limit.label}={f'{rate.count}/{rate.seconds}' if rate else 'off'}" for limit, rate in given_rates.items()
    ]
    assert rates(" ".join(written)) == rates("") | given_rates


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("calls_per_user=0/60", "'calls_per_user=0/60' sets no limit: write calls_per_user=1000/60, a count and"),
        ("calls_per_user=60/0", "'calls_per_user=60/0' sets no limit"),
        ("calls_per_user=-1/60", "'calls_per_user=-1/60' sets no limit"),
        ("calls_per_user=1e3/60", "'calls_per_user=1e3/60' sets no limit"),
        ("calls_per_user=\u0661/60", "sets no limit"),
        ("calls_per_user=1000", "'calls_per_user=1000' sets no limit"),
        ("calls_per_user =1/1", "'calls_per_user' sets no limit"),
        ("calls_per_user=OFF", "'calls_per_user=OFF' sets no limit"),
        ("off", "'off' sets no limit"),
        (
            "calls_per_planet=1/60",
            "there is no limit 'calls_per_planet': there are calls_per_user, calls_per_network, c",
        ),
        ("calls_per_user=1/60 calls_per_user=off", "calls_per_user is set twice: leave one"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_what_can_be(setting: str, problem: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        rates(setting)
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("CAIRN_LIMITS", "calls=1", "CAIRN_LIMITS: 'calls=1' sets no limit: write calls_per_user=1000/60"),
        ("CAIRN_TRUSTED_PROXIES", "everybody", "CAIRN_TRUSTED_PROXIES: 'everybody' is no network: write an address"),
        *(
            (
                "CAIRN_RATE_LIMIT_URL",
                url,
                "CAIRN_RATE_LIMIT_URL: write it like redis://127.0.0.1:6379, or rediss:// for",
            )
            for url in ("memory://", "http://h", "redis://", "redis://:secret@h:port", "redis://:secret@h:70000", "h:1")
        ),
    ],
)
def test_the_operator_is_told_which_variable_is_wrong_and_how_it_is_written(
    variable: str, value: str, problem: str
) -> None:
    with pytest.raises(InvalidValue) as refused:
        Settings.from_environment({variable: value})
    assert str(refused.value).startswith(problem)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.0/24"),
        ("::ffff:192.0.2.7", "192.0.2.0/24"),
        ("2001:db8:1:2:3::4", "2001:db8:1::/48"),
        ("fe80::1%eth0", "fe80::/48"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_strangers_are_told_apart_by_network(address: str, network: str) -> None:
    assert network_of(address) == network


# -------------------------------------------------------------------------------------------------- windows

# Eighths of a second, of which sums are exact.
_pauses = st.lists(st.integers(0, 64).map(lambda eighths: eighths / 8), max_size=60)
_rate = st.builds(Rate, st.integers(1, 8), st.sampled_from([1, 2, 4, 8]))


def _in_memory(rate: Rate, **given: Any) -> tuple[MemoryRateLimits, list[float]]:
    """One limit, and the time as its only member."""
    now = [1_000.0]
    return MemoryRateLimits({**rates(""), Limit.CALLS_PER_USER: rate}, lambda: now[0], **given), now


@given(_rate, _pauses)
async def test_whoever_is_refused_is_told_when_there_is_room_to_the_second(rate: Rate, pauses: list[float]) -> None:
    limits, now = _in_memory(rate)
    for pause in pauses:
        now[0] += pause
        wait = await _told(limits, Limit.CALLS_PER_USER, "ada")
        if wait is None:
            continue
        assert 1 <= wait <= rate.seconds
        refused_at = now[0]
        now[0] = refused_at + wait - 1
        assert wait == 1 or await _told(limits, Limit.CALLS_PER_USER, "ada") is not None, "a second earlier"
        now[0] = refused_at + wait + 1 / 1024
        assert await _told(limits, Limit.CALLS_PER_USER, "ada") is None


@given(_rate, _pauses)
async def test_within_any_stretch_of_the_rates_length_at_most_twice_its_count_is_let_through(
    rate: Rate, pauses: list[float]
) -> None:
    limits, now = _in_memory(rate)
    let_through: list[float] = []
    for pause in pauses:
        now[0] += pause
        while await _told(limits, Limit.CALLS_PER_USER, "ada") is None:
            let_through.append(now[0])
    for begin in let_through:
        assert sum(begin <= each < begin + rate.seconds for each in let_through) <= 2 * rate.count


async def test_what_was_done_before_fades_out_over_the_length_of_the_rate() -> None:
    limits, now = _in_memory(Rate(4, 8))
    began_at, let_through = now[0], []
    while now[0] < began_at + 24:
        if await _told(limits, Limit.CALLS_PER_USER, "ada") is None:
            let_through.append(now[0] - began_at)
        now[0] += 1 / 8
    assert [int(each) for each in let_through] == [0, 0, 0, 0, 8, 10, 12, 14, 16, 18, 20, 22]


async def test_a_flood_of_strangers_takes_no_more_memory_than_is_set_aside_and_forgets_the_oldest_first() -> None:
    limits, _ = _in_memory(Rate(1, 60), max_keys=1_000)
    tracemalloc.start()
    try:
        for number in range(20_000):
            assert await _told(limits, Limit.CALLS_PER_USER, str(number)) is None
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000 * 500
    # From the newest on, for whoever is looked for and not there is counted, and pushes out another.
    told = [await _told(limits, Limit.CALLS_PER_USER, str(number)) for number in range(19_999, 17_999, -1)]
    assert [wait is None for wait in told] == [False] * 1_000 + [True] * 1_000


async def test_who_has_not_come_for_two_periods_takes_no_memory_once_others_come() -> None:
    limits, now = _in_memory(Rate(1, 60))
    tracemalloc.start()
    try:
        for number in range(2_000):
            await limits.hit(Limit.CALLS_PER_USER, f"first {number}")
        first, _ = tracemalloc.get_traced_memory()
        for wave in range(5):
            now[0] += 121
            for number in range(2_000):
                await limits.hit(Limit.CALLS_PER_USER, f"{wave} {number}")
        last, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert last < first * 1.5


# ---------------------------------------------------------------------------------------------------- Redis


class Asking(RedisRateLimits):
    """Knows how often it has asked Redis. Its time is set; it waits for Redis as long as that takes."""

    def __init__(self, url: str, setting: str = "") -> None:
        self.now, self.asked = 0.0, 0
        super().__init__(url, rates(setting), lambda: self.now)

    async def _hit(self, *given: Any) -> int | None:
        self.asked += 1
        return await super()._hit(*given)

    async def until_it_tries_again(self) -> None:
        self.now += 2
        await self.hit(Limit.CALLS_PER_SERVER, "org", "srv")


@pytest.fixture
async def in_redis(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Asking]:
    monkeypatch.setattr("adapters.redis_rate_limits._PATIENCE_SECONDS", PATIENCE_SECONDS)
    redis.forget()
    limits = Asking(redis.url, "calls_per_user=3/60 calls_per_server=1000/60")
    yield limits
    await limits.close()


@asynccontextmanager
async def _frozen(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """A Redis that hangs, and is waited for as a service does."""
    with monkeypatch.context() as patch:
        patch.setattr("adapters.redis_rate_limits._PATIENCE_SECONDS", _PATIENCE_SECONDS)
        redis.freeze()
        try:
            yield
        finally:
            redis.thaw()


async def _assert_redis_counts(redis: RedisServer, limits: Asking) -> None:
    await limits.until_it_tries_again()
    redis.forget()
    await limits.hit(Limit.CALLS_PER_SERVER, "org", "srv")
    assert redis.ask("DBSIZE") == b":1\r\n", "not the one that tries alone: every hit from now on"


@pytest.mark.parametrize("options", ["?color=red", "?socket_timeout=long", "?db=first", "?ssl_cert_reqs=bogus"])
def test_an_address_of_redis_with_options_that_cannot_be_is_refused_at_once(options: str) -> None:
    with pytest.raises(InvalidValue, match="the address of Redis cannot be read"):
        RedisRateLimits(f"rediss://:secret@127.0.0.1{options}", rates(""))


async def test_nobody_is_named_in_redis_and_nothing_stays_there(redis: RedisServer, in_redis: Asking) -> None:
    await in_redis.hit(Limit.CODES_PER_ADDRESS, "org_1", "srv_1", "ada@example.com")
    (key,) = [line for line in redis.ask("KEYS *").split(b"\r\n") if line.startswith(b"cairn:")]
    assert b"codes_per_address" in key
    assert not any(name in key for name in (b"ada", b"example", b"org_1", b"srv_1"))
    assert 600 <= int(redis.ask(f"TTL {key.decode()}")[1:]) <= 1_200


async def test_when_redis_is_killed_this_process_counts_for_itself_and_warns_once(
    redis: RedisServer, in_redis: Asking
) -> None:
    assert await _told(in_redis, Limit.CALLS_PER_USER, "ada") is None
    redis.kill()
    try:
        with capture_logs() as logs:
            told = [await _told(in_redis, Limit.CALLS_PER_USER, "ada") for _ in range(5)]
        assert [wait is None for wait in told] == [True, True, True, False, False]
        assert in_redis.asked == 2, "once before, and once that was in vain"
        ((level, event, cause),) = [(each["log_level"], each["event"], each["cause"]) for each in logs]
        assert (level, event) == ("warning", "Redis cannot be asked: each process keeps the rate limits for itself")
        assert cause.startswith("ConnectionError"), "nobody was held up for as long as patience lasts"
    finally:
        redis.start()
    with capture_logs() as logs:
        await _assert_redis_counts(redis, in_redis)
        redis.kill()
        redis.start()
        await _assert_redis_counts(redis, in_redis)
    assert logs == [], "within a minute, one line is enough"


async def test_a_redis_that_hangs_holds_up_one_call_for_a_tenth_of_a_second(
    redis: RedisServer, in_redis: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_redis.hit(Limit.CALLS_PER_SERVER, "org", "srv")
    took = []
    async with _frozen(redis, monkeypatch):
        for tries in range(1, 6):
            began = time.monotonic()
            await in_redis.until_it_tries_again()
            took.append(time.monotonic() - began)
            for _ in range(20):
                await in_redis.hit(Limit.CALLS_PER_SERVER, "org", "srv")
            assert in_redis.asked == 1 + tries
    # The least of several: on a busy machine only that one says what is waited for.
    assert 0.09 < min(took) < 0.5
    await _assert_redis_counts(redis, in_redis)


async def test_of_many_calls_one_finds_out_that_redis_still_hangs(
    redis: RedisServer, in_redis: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _frozen(redis, monkeypatch):
        await in_redis.until_it_tries_again()
        in_redis.now += 3
        await asyncio.gather(*(in_redis.hit(Limit.CALLS_PER_SERVER, "org", "srv") for _ in range(20)))
        assert in_redis.asked == 2


async def test_an_outage_is_told_once_a_minute_for_as_long_as_it_lasts(redis: RedisServer) -> None:
    limits = Asking(redis.url)
    redis.kill()
    try:
        with capture_logs() as logs:
            for _ in range(121):
                await limits.hit(Limit.CALLS_PER_SERVER, "org", "srv")
                limits.now += 1
    finally:
        redis.start()
        await limits.close()
    assert len(logs) == 3


async def test_a_redis_that_is_full_or_lets_nobody_in_is_like_one_that_is_away(
    redis: RedisServer, in_redis: Asking
) -> None:
    assert redis.ask("CONFIG SET maxmemory 1") == b"+OK\r\n"
    try:
        told = [await _told(in_redis, Limit.CALLS_PER_USER, "ada") for _ in range(4)]
        assert [wait is None for wait in told] == [True, True, True, False]
    finally:
        assert redis.ask("CONFIG SET maxmemory 0") == b"+OK\r\n"
    with_password = RedisRateLimits(redis.url.replace("//", "//nobody:secret@"), rates(""))
    with capture_logs() as logs:
        await with_password.hit(Limit.CALLS_PER_USER, "ada")
    await with_password.close()
    assert len(logs) == 1
    assert "secret" not in str(logs)


# ----------------------------------------------------------------------------------------- what callers are told


@pytest.fixture(scope="module")
def proxied(owner_url: str) -> Iterator[Serving]:
    """A service behind a proxy, so that each test calls from networks of its own."""
    limits = "calls_per_user=5/60 calls_per_network=12/60 calls_per_server=20/60"
    with serving(
        "serve", "--port", "0",
        CAIRN_DATABASE_URL=owner_url, CAIRN_LIMITS=limits, CAIRN_TRUSTED_PROXIES="127.0.0.0/8 ::1",
    ) as running:  # fmt: skip
        yield running


@pytest.fixture(params=["modern", "legacy"])
def forms(request: pytest.FixtureRequest) -> Forms:
    return Forms(is_modern=request.param == "modern")


_numbers = count(1)


def _network() -> str:
    """The beginning of all addresses of a network that nobody has called from."""
    return f"198.18.{next(_numbers)}."


@dataclass(frozen=True)
class Forms:
    """How requests are written in one of the two eras."""

    is_modern: bool

    async def call(self, tenant: Tenant, tool: str, *, token: str | None = None, **headers: str) -> httpx2.Response:
        body = call(tool, **({"walkthrough": "tour"} if tool == "select_walkthrough" else {}))
        if not self.is_modern:
            return await tenant.post(body, token=token, mcp_protocol_version="2025-11-25", **headers)
        body["params"]["_meta"] = META
        modern = {"mcp_protocol_version": MODERN, "mcp_method": "tools/call", "mcp_name": tool}
        return await tenant.post(body, token=token, **modern, **headers)


@pytest.mark.promise("limits")
async def test_a_person_who_calls_too_fast_is_told_to_wait_and_loses_nothing(
    database: Database, proxied: Serving, owner: asyncpg.Connection, forms: Forms
) -> None:
    tenant = await make_tenant(database, proxied)
    await tenant.publish("one", "two")
    here = {"x_forwarded_for": f"{_network()}1"}
    ada = {"token": await tenant.token(), **here}
    results = [(await forms.call(tenant, "select_walkthrough", **ada)).json()["result"] for _ in range(7)]
    assert [result["isError"] for result in results] == [False] * 5 + [True] * 2
    text = results[-1]["content"][0]["text"]
    assert re.fullmatch(
        r"rate_limited: These calls come faster than anyone reads, and this one was not carried out\. Wait "
        r"([345][0-9]|60) seconds, then make the very same call again\. A walkthrough is taken one step at a "
        r"time with the user: end your turn after each step\.",
        text,
    )
    logged = await owner.fetch(
        "select outcome, error_code from tool_calls where organization_id = $1 order by created_at, id",
        tenant.server.key.organization_id,
    )
    assert sorted((row["outcome"], row["error_code"] or "") for row in logged) == [
        ("error", "rate_limited"), ("error", "rate_limited"), *[("resumed", "")] * 4, ("started", ""),
    ]  # fmt: skip
    ben = {"token": await tenant.token("ben@example.com"), **here}
    assert not (await forms.call(tenant, "select_walkthrough", **ben)).json()["result"]["isError"]
    assert not (await forms.call(tenant, "list_walkthroughs", **here)).json()["result"]["isError"]


@pytest.mark.promise("limits")
async def test_a_person_is_counted_once_on_all_servers_of_the_organisation(
    database: Database, proxied: Serving, owner: asyncpg.Connection
) -> None:
    tenant = await make_tenant(database, proxied)
    await tenant.publish("one", "two")
    second = replace(tenant, server=await tenant.world.server(tenant.organization, f"{tenant.server.slug}-b"))
    forms, address = Forms(is_modern=True), f"{_network()}1"
    told = []
    for number in range(6):
        at = (tenant, second)[number % 2]
        answer = await forms.call(at, "list_walkthroughs", token=await at.token(), x_forwarded_for=address)
        told.append(answer.json()["result"]["isError"])
    assert told == [False] * 5 + [True]


@pytest.mark.promise("limits")
async def test_a_network_that_asks_too_much_gets_429_and_when_to_come_back(
    database: Database, proxied: Serving, owner: asyncpg.Connection, forms: Forms
) -> None:
    tenant, other = await make_tenant(database, proxied), await make_tenant(database, proxied)
    network = _network()
    answers = [
        await forms.call(each, "list_walkthroughs", x_forwarded_for=f"{network}{number}")
        for number, each in enumerate([tenant, other] * 7)
    ]
    assert [answer.status_code for answer in answers] == [200] * 12 + [429] * 2
    assert int(answers[-1].headers["retry-after"]) in _ABOUT_A_MINUTE
    assert answers[-1].headers["cache-control"] == "no-store"
    error = answers[-1].json()["error"]
    assert error["message"] == f"That is too much at once: try again in {answers[-1].headers['retry-after']} s."
    assert (await forms.call(tenant, "list_walkthroughs", x_forwarded_for=f"{_network()}1")).status_code == 200


@pytest.mark.promise("limits")
async def test_a_page_of_any_origin_may_read_when_it_is_to_come_back(
    database: Database, proxied: Serving, owner: asyncpg.Connection
) -> None:
    tenant = await make_tenant(database, proxied)
    page = {"origin": "http://localhost:5173", "x_forwarded_for": f"{_network()}1"}
    answers = [await Forms(is_modern=True).call(tenant, "list_walkthroughs", **page) for _ in range(13)]
    assert answers[-1].status_code == 429
    assert answers[-1].headers["access-control-allow-origin"] == page["origin"]
    assert "retry-after" in answers[-1].headers["access-control-expose-headers"]


@pytest.mark.promise("limits")
async def test_a_server_that_is_asked_too_much_gets_429_and_its_neighbour_none(
    database: Database, proxied: Serving, owner: asyncpg.Connection, forms: Forms
) -> None:
    tenant, other = await make_tenant(database, proxied), await make_tenant(database, proxied)
    answers = [await forms.call(tenant, "list_walkthroughs", x_forwarded_for=f"{_network()}1") for _ in range(22)]
    assert [answer.status_code for answer in answers] == [200] * 20 + [429] * 2
    assert int(answers[-1].headers["retry-after"]) in _ABOUT_A_MINUTE
    assert (await forms.call(other, "list_walkthroughs", x_forwarded_for=f"{_network()}1")).status_code == 200


@pytest.mark.promise("limits")
async def test_whoever_is_no_trusted_proxy_cannot_pass_for_many(
    database: Database, owner_url: str, owner: asyncpg.Connection
) -> None:
    with serving(
        "serve", "--port", "0", CAIRN_DATABASE_URL=owner_url, CAIRN_LIMITS="calls_per_network=3/60"
    ) as service:
        tenant = await make_tenant(database, service)
        answers = [
            await Forms(is_modern=True).call(
                tenant,
                "list_walkthroughs",
                x_forwarded_for=f"203.0.{number}.1",
                forwarded=f"for=203.0.{number}.1",
                x_real_ip=f"203.0.{number}.1",
            )
            for number in range(5)
        ]
    assert [answer.status_code for answer in answers] == [200] * 3 + [429] * 2


@pytest.mark.promise("limits")
async def test_two_processes_with_one_redis_keep_one_count_and_serve_without_it(
    database: Database, owner_url: str, owner: asyncpg.Connection, redis: RedisServer
) -> None:
    redis.forget()
    settings = {
        "CAIRN_DATABASE_URL": owner_url,
        "CAIRN_LIMITS": "calls_per_user=4/60",
        "CAIRN_RATE_LIMIT_URL": redis.url,
    }
    with (
        serving("serve", "--port", "0", module="tests.patient_server", **settings) as one,
        serving("serve", "--port", "0", module="tests.patient_server", **settings) as two,
    ):
        tenant = await make_tenant(database, one)
        token, second = await tenant.token(), replace(tenant, service=two)

        async def told() -> list[bool]:
            answers = [
                await Forms(is_modern=True).call(each, "list_walkthroughs", token=token)
                for each in (tenant, second) * 3
            ]
            return [answer.json()["result"]["isError"] for answer in answers]

        assert await told() == [False] * 4 + [True] * 2
        redis.kill()
        try:
            assert await told() == [False] * 6, "three each, counted by each for itself"
        finally:
            redis.start()
        assert one.output.count("Redis cannot be asked") == two.output.count("Redis cannot be asked") == 1
