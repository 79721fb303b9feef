"""Counting in sliding windows: in this process, or in a Redis that many processes share.

A window is two counts: of the period under way, which began with its first hit, and of the one before, which fades out
over the length of the present one. That takes the same few bytes for sixty thousand hits as for one. The price: whoever
does everything at the very end of one period can do as much again by the end of the next. No limit here is so tight
that this would matter.

In memory we count ourselves: the storage that comes with `limits` walks through all its keys again and again in the
event loop, which then stands still for 0.4 s at 250,000 keys, and takes 16 µs a hit at best, where this takes 2.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import structlog
from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from application.limits import Limit, Rate
from domain.errors import InvalidValue, TooManyRequests

# Of each limit. 240 bytes each, so that all of them together take 270 MB at the very worst; nobody legitimate is one
# of more than so many in two periods of one process.
_MAX_KEYS = 100_000

_PATIENCE_SECONDS = 0.1  # a Redis nearby answers within 1 ms; what waits for it is somebody's call
_AWAY_SECONDS = 2.0  # how often one call tries whether Redis is back
_WARNING_SECONDS = 60.0
_MAX_CONNECTIONS = 32  # at 0.2 ms a hit, more than one process can keep busy

_log = structlog.get_logger(__name__)


class MemoryRateLimits:
    """The port `RateLimiter` in this process alone. `now` tells seconds, from whenever.

    Of each limit it remembers at most `max_keys`. A flood of more makes it forget those that began longest ago, and
    they may do as much again: better that than to refuse strangers, or to grow.
    """

    def __init__(
        self,
        rates: Mapping[Limit, Rate | None],
        now: Callable[[], float] = time.monotonic,
        max_keys: int = _MAX_KEYS,
    ) -> None:
        self._rates = rates
        self._now = now
        self._max_keys = max_keys
        # In the order in which their present periods were begun. Of a plain dict, the first is slow to find once many
        # before it have gone.
        self._windows: dict[Limit, OrderedDict[bytes, _Window]] = {limit: OrderedDict() for limit in Limit}

    async def hit(self, limit: Limit, *who: str) -> None:
        """See the port."""
        rate = self._rates[limit]
        if rate is None:
            return
        window = self._window(limit, rate, _key(who))
        left = window.began_at + rate.seconds - self._now()
        if (wait := _wait(rate, window.before, window.count, left)) is not None:
            raise TooManyRequests(wait)
        window.count += 1

    def _window(self, limit: Limit, rate: Rate, key: bytes) -> _Window:
        now, windows = self._now(), self._windows[limit]
        window = windows.get(key)
        if window is not None and now < window.began_at + rate.seconds:
            return window
        if window is not None and now < window.began_at + 2 * rate.seconds:
            began_at, before = window.began_at + rate.seconds, window.count
        else:
            began_at, before = now, 0
        windows.pop(key, None)
        # For each that comes two may go, so that what is over is gone before as many have come again.
        for _ in range(2):
            oldest = next(iter(windows), None)
            if oldest is not None and (
                len(windows) >= self._max_keys or now >= windows[oldest].began_at + 2 * rate.seconds
            ):
                del windows[oldest]
        windows[key] = fresh = _Window(began_at, before)
        return fresh


class RedisRateLimits:
    """The port `RateLimiter` in a Redis, for all processes together.

    Where Redis does not answer in time, this process counts for itself, and tries again every few seconds.
    """

    def __init__(self, url: str, rates: Mapping[Limit, Rate | None], now: Callable[[], float] = time.monotonic) -> None:
        """`url` is `redis://…` or `rediss://…`; nothing is connected yet. `now` tells seconds, from whenever.

        Raises:
            InvalidValue: when it cannot be read, or has options that there are not.
        """
        try:
            self._pool = BlockingConnectionPool.from_url(
                url,
                max_connections=_MAX_CONNECTIONS,
                timeout=None,  # patience ends here below
                retry=Retry(NoBackoff(), 1),  # once more, for a connection that has gone stale
            )
            # Connects nowhere, but looks at the options.
            self._pool.make_connection()  # type: ignore[no-untyped-call]  # redis-py's is not annotated
        except (ValueError, TypeError, RedisError) as error:
            raise InvalidValue(
                "the address of Redis cannot be read: write it like redis://127.0.0.1:6379, with options of redis-py"
            ) from error
        self._counts = RedisStorage(
            f"async+{url}",
            implementation="redispy",
            key_prefix="cairn",
            connection_pool=self._pool,  # type: ignore[arg-type]  # taken as its documentation says
        )
        self._counter = SlidingWindowCounterRateLimiter(self._counts)
        self._items = {
            limit: RateLimitItemPerSecond(rate.count, rate.seconds, namespace=limit.label)
            for limit, rate in rates.items()
            if rate is not None
        }
        self._rates = rates
        self._meanwhile = MemoryRateLimits(rates, now)
        self._now = now
        self._is_away = False
        self._try_at = self._warn_at = now()

    async def hit(self, limit: Limit, *who: str) -> None:
        """See the port."""
        rate = self._rates[limit]
        if rate is None:
            return
        now = self._now()
        if self._is_away and now < self._try_at:
            await self._meanwhile.hit(limit, *who)
            return
        self._try_at = now + _AWAY_SECONDS  # where Redis is away, the others do not wait for this one to find out
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                wait = await self._hit(limit, rate, _key(who).hex())
        except (RedisError, OSError, TimeoutError) as error:
            self._is_away = True
            self._warn(error)
            await self._meanwhile.hit(limit, *who)
            return
        self._is_away = False
        if wait is not None:
            raise TooManyRequests(wait)

    async def close(self) -> None:
        """Closes the connections."""
        await self._pool.disconnect()

    async def _hit(self, limit: Limit, rate: Rate, key: str) -> int | None:
        item = self._items[limit]
        if await self._counter.hit(item, key):
            return None
        before, fades_in, count, ends_in = await self._counts.get_sliding_window(item.key_for(key), rate.seconds)
        # Redis keeps the present count for the period after it, too; a count from before it does not tell has faded.
        left = fades_in if before else ends_in - rate.seconds
        return _wait(rate, before, count, max(left, 0.0)) or 1

    def _warn(self, error: Exception) -> None:
        if self._now() >= self._warn_at:
            self._warn_at = self._now() + _WARNING_SECONDS
            cause = f"{type(error).__name__}: {error}"  # its repr says less
            _log.warning("Redis cannot be asked: each process keeps the rate limits for itself", cause=cause)


class _Window:
    __slots__ = ("before", "began_at", "count")

    def __init__(self, began_at: float, before: int) -> None:
        self.began_at = began_at
        self.before = before
        self.count = 0


def _wait(rate: Rate, before: int, count: int, left: float) -> int | None:
    """Whole seconds after which there is room for one more, at least 1; None: there is.

    `before` and `count` are those of the period before and of the present one, of which `left` seconds remain.
    """
    if before * left / rate.seconds + count < rate.count:
        return None
    room = rate.count - count
    # A period that is full by itself ends, and begins to fade at once.
    seconds = left - room * rate.seconds / before if room > 0 else left
    return max(1, math.ceil(seconds))


def _key(who: Sequence[str]) -> bytes:
    """Whoever it is, in 16 bytes that do not say so: enough that no two are ever the same."""
    return hashlib.blake2b("\0".join(who).encode(errors="surrogatepass"), digest_size=16).digest()
