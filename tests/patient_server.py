"""`cairn` that waits for locks, and for a Redis, as long as a test does."""

from __future__ import annotations

import sys

from adapters import redis_rate_limits
from adapters.postgres import connections
from entrypoints.cli import main
from entrypoints.http import gate
from entrypoints.mcp import server
from tests.patience import PATIENCE_SECONDS, TIMEOUTS

connections.SERVICE_TIMEOUTS |= TIMEOUTS
connections._STATEMENT_TIMEOUT_SECONDS = connections.LOOKUP_SECONDS = PATIENCE_SECONDS
gate.ANSWER_SECONDS = server.ANSWER_SECONDS = PATIENCE_SECONDS
redis_rate_limits._PATIENCE_SECONDS = PATIENCE_SECONDS

if __name__ == "__main__":
    main.main(sys.argv[1:])
