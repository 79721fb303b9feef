"""What every `RateLimiter` promises: counting in this process and in a Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import count

import pytest

from adapters.rate_limits import MemoryRateLimits
from adapters.redis_rate_limits import RedisRateLimits
from application.limits import Limit, rates
from application.ports import RateLimiter
from domain.errors import TooManyRequests
from tests.patience import PATIENCE_SECONDS
from tests.redis_server import RedisServer, redis_serving

pytestmark = pytest.mark.anyio

Make = Callable[[str], Awaitable[RateLimiter]]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_serving(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["memory", "redis"])
async def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Makes a limiter with these settings, which has counted nothing yet."""
    # A busy machine is no Redis that hangs.
    monkeypatch.setattr("adapters.redis_rate_limits._PATIENCE_SECONDS", PATIENCE_SECONDS)
    opened: list[RedisRateLimits] = []

    async def made(setting: str) -> RateLimiter:
        if request.param == "memory":
            return MemoryRateLimits(rates(setting))
        redis: RedisServer = request.getfixturevalue("redis")
        redis.forget()
        opened.append(RedisRateLimits(redis.url, rates(setting)))
        return opened[-1]

    yield made
    for each in opened:
        await each.close()


async def _refusal(limits: RateLimiter, limit: Limit, *who: str) -> int | None:
    """The seconds that one hit is told to wait; None: it counts."""
    try:
        await limits.hit(limit, *who)
    except TooManyRequests as error:
        return error.retry_after_seconds
    return None


async def test_as_many_as_the_rate_says_count_and_the_next_is_told_to_wait(make: Make) -> None:
    limits = await make("calls_per_user=3/60")
    for _ in range(3):
        assert await _refusal(limits, Limit.CALLS_PER_USER, "org", "ada") is None
    for _ in range(3):
        assert await _refusal(limits, Limit.CALLS_PER_USER, "org", "ada") in range(50, 61)


async def test_each_person_and_each_limit_is_counted_apart(make: Make) -> None:
    limits = await make("calls_per_user=1/60 calls_per_server=1/60")
    everyone = [("org", "ada"), ("org", "ben"), ("gro", "ada"), ("orgada",), ("org ada",), ("", "orgada"), ()]
    for who in everyone:
        assert await _refusal(limits, Limit.CALLS_PER_USER, *who) is None, who
        assert await _refusal(limits, Limit.CALLS_PER_SERVER, *who) is None, who
    for who in everyone:
        assert await _refusal(limits, Limit.CALLS_PER_USER, *who) is not None, who


async def test_whoever_waits_as_long_as_told_is_let_through_however_often_they_asked_meanwhile(make: Make) -> None:
    limits = await make("calls_per_user=2/1")
    for who in map(str, count()):
        began = time.monotonic()
        told = [await _refusal(limits, Limit.CALLS_PER_USER, who) for _ in range(3)]
        refused_at = time.monotonic()
        if refused_at < began + 0.9:  # or the second was over before they had all asked
            break
    assert told == [None, None, 1]
    is_refused = True
    while is_refused and time.monotonic() < refused_at + 1.05:  # the clocks count milliseconds
        is_refused = await _refusal(limits, Limit.CALLS_PER_USER, who) is not None
    assert not is_refused or await _refusal(limits, Limit.CALLS_PER_USER, who) is None


async def test_of_a_race_exactly_as_many_count_as_the_rate_says(make: Make) -> None:
    limits = await make("calls_per_user=20/60")
    told = await asyncio.gather(*(_refusal(limits, Limit.CALLS_PER_USER, "ada") for _ in range(60)))
    assert told.count(None) == 20


async def test_a_limit_that_is_off_never_refuses(make: Make) -> None:
    limits = await make("codes_per_address=off")
    for _ in range(50):
        assert await _refusal(limits, Limit.CODES_PER_ADDRESS, "ada@example.com") is None


async def test_any_text_names_somebody(make: Make) -> None:
    limits = await make("calls_per_user=1/60")
    for who in ("", "\x00", "\ud800", "é", "x" * 100_000, "a/b", "{a}", "a b\r\n", "٣"):
        assert await _refusal(limits, Limit.CALLS_PER_USER, "org", who) is None, who[:10]
        assert await _refusal(limits, Limit.CALLS_PER_USER, "org", who) is not None, who[:10]
