"""Counting in sliding windows in a Redis that many processes share: see `adapters.rate_limits`.

Apart from that, since to load what speaks to Redis takes a tenth of a service's start, and few need it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import structlog
from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from adapters.rate_limits import MemoryRateLimits, key_of, wait_for_room
from application.limits import Limit, Rate
from domain.errors import InvalidValue, TooManyRequests

_PATIENCE_SECONDS = 0.1  # a Redis nearby answers within 1 ms; what waits for it is somebody's call
_AWAY_SECONDS = 2.0  # how often one call tries whether Redis is back
_WARNING_SECONDS = 60.0
_MAX_CONNECTIONS = 32  # at 0.2 ms a hit, more than one process can keep busy

_log = structlog.get_logger(__name__)


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
                wait = await self._hit(limit, rate, key_of(who).hex())
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
        return wait_for_room(rate, before, count, max(left, 0.0)) or 1

    def _warn(self, error: Exception) -> None:
        if self._now() >= self._warn_at:
            self._warn_at = self._now() + _WARNING_SECONDS
            cause = f"{type(error).__name__}: {error}"  # its repr says less
            _log.warning("Redis cannot be asked: each process keeps the rate limits for itself", cause=cause)
