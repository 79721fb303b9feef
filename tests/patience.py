"""Waiting longer than a service does: on a busy machine, to be kept waiting is no sign that something hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import asyncpg

from adapters.postgres.connections import Access

PATIENCE_SECONDS = 60
"""For what takes a moment. Then the test has failed."""
_WAITING = """
select count(*) from pg_stat_activity
 where datname = current_database() and application_name = 'cairn' and wait_event_type = 'Lock'
"""
TIMEOUTS = {"lock_timeout": f"{PATIENCE_SECONDS}s", "statement_timeout": f"{PATIENCE_SECONDS}s"}


class Patient(Access):
    """Waits for locks longer than a service does, so that many meet at one row."""

    def connect_arguments(self) -> Mapping[str, Any]:
        arguments = super().connect_arguments()
        settings = {**arguments["server_settings"], **TIMEOUTS}
        return {**arguments, "command_timeout": PATIENCE_SECONDS, "server_settings": settings}


async def until_waiting(owner: asyncpg.Connection, contenders: int = 1) -> None:
    """Until so many of a service's connections to this database are held up by a lock."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await owner.fetchval(_WAITING) < contenders:  # noqa: ASYNC110  # PostgreSQL sets no event of ours
            await asyncio.sleep(0)
