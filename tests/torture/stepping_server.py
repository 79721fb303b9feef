"""`cairn serve` whose wall clock is an hour behind for as long as the file CLOCK_IS_BACK is there."""

from __future__ import annotations

import os
import sys

from dependency_injector import providers

from domain.tenancy import Millis
from entrypoints import container as composition
from entrypoints.cli import main

HOUR_MS = 3_600_000


class SteppingClock(composition.SystemClock):
    def now(self) -> Millis:
        is_back = os.path.exists(os.environ["CLOCK_IS_BACK"])  # noqa: PTH110  # a Path would cost more than the clock
        return Millis(super().now() - (HOUR_MS if is_back else 0))


if __name__ == "__main__":
    composition.Container.clock.override(providers.Singleton(SteppingClock))
    main.main(sys.argv[1:])
