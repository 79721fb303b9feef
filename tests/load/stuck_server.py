"""`cairn`, whose tool calls never come to their end and hold up their process; it is patient for a second only."""

from __future__ import annotations

import sys
import time
from typing import Any

from entrypoints.cli import main, serving
from entrypoints.mcp.server import McpEndpoint


async def _stuck(*_: Any) -> None:
    print("stuck", flush=True)
    time.sleep(60)  # noqa: ASYNC251  # as a mistake of ours would


serving._GRACE_SECONDS = 1.0
McpEndpoint.handle = _stuck  # type: ignore[method-assign]

if __name__ == "__main__":
    main.main(sys.argv[1:])
