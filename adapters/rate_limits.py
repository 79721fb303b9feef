"""Counting in sliding windows, in this process alone.

A window is two counts: of the period under way, which began with its first hit, and of the one before, which fades out
over the length of the present one. That takes the same few bytes for sixty thousand hits as for one. The price: whoever
does everything at the very end of one period can do as much again by the end of the next. No limit here is so tight
that this would matter.

In memory we count ourselves: the storage that comes with `limits` walks through all its keys again and again in the
event loop, which then stands still for 0.4 s at 250,000 keys, and takes 16 µs a hit at best, where this takes 2.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from application.limits import Limit, Rate
from domain.errors import TooManyRequests

# Of each limit. 240 bytes each, so that all of them together take 270 MB at the very worst; nobody legitimate is one
# of more than so many in two periods of one process.
_MAX_KEYS = 100_000


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
        window = self._window(limit, rate, key_of(who))
        left = window.began_at + rate.seconds - self._now()
        if (wait := wait_for_room(rate, window.before, window.count, left)) is not None:
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


class _Window:
    __slots__ = ("before", "began_at", "count")

    def __init__(self, began_at: float, before: int) -> None:
        self.began_at = began_at
        self.before = before
        self.count = 0


def wait_for_room(rate: Rate, before: int, count: int, left: float) -> int | None:
    """Whole seconds after which there is room for one more, at least 1; None: there is.

    `before` and `count` are those of the period before and of the present one, of which `left` seconds remain.
    """
    if before * left / rate.seconds + count < rate.count:
        return None
    room = rate.count - count
    # A period that is full by itself ends, and begins to fade at once.
    seconds = left - room * rate.seconds / before if room > 0 else left
    return max(1, math.ceil(seconds))


def key_of(who: Sequence[str]) -> bytes:
    """Whoever it is, in 16 bytes that do not say so: enough that no two are ever the same."""
    return hashlib.blake2b("\0".join(who).encode(errors="surrogatepass"), digest_size=16).digest()
