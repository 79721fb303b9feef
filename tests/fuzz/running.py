"""How long a fuzzing run lasts, and how it is repeated.

    make fuzz N=100000        that many examples of each kind
    make fuzz SECONDS=600     as many as there is time for, for each kind
    make fuzz SEED=417        the same examples again

Without any of them a run is short and always the same, as the suite needs it. A failure is shrunk by Hypothesis to the
smallest request or folder that still fails, and says with which seed it comes again.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

# Hypothesis remembers all that it has tried, so a long run is many short ones with seeds of their own, one after the
# other: what fails is then found again in seconds.
_AT_ONCE = 1000


def fuzz(check: Callable[[Any], None], cases: SearchStrategy[Any], *, examples: int) -> int:
    """Checks generated cases, `examples` of them where nothing else is asked for; returns how many it were.

    Raises whatever `check` raises for the smallest case that was found, with the seed beside it.
    """
    wanted = int(os.environ.get("CAIRN_FUZZ_EXAMPLES") or 0)
    seconds = float(os.environ.get("CAIRN_FUZZ_SECONDS") or 0)
    named = os.environ.get("CAIRN_FUZZ_SEED")
    is_long = bool(wanted or seconds)
    first = int(named) if named else random.SystemRandom().randrange(10**6) if is_long else 1
    ends_at = time.monotonic() + seconds
    count, number = 0, first
    while (time.monotonic() < ends_at) if seconds else (count < (wanted or examples)):
        size = _AT_ONCE if seconds else min(_AT_ONCE, (wanted or examples) - count)
        bounds = settings(
            max_examples=size,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,  # the second is often the first, met on its way to something smaller
        )
        try:
            seed(number)(bounds(given(cases)(check)))()
        except BaseException as failure:
            failure.add_note(f"again: make fuzz N={size} SEED={number}")
            raise
        count, number = count + size, number + 1
    print(f"\n{count} examples, SEED={first}")
    return count
