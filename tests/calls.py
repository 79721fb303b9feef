"""Tool calls to record, and what a database holds of them."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import asyncpg

from application.ports import CallLog, ToolCall
from domain.tenancy import Caller, CallId, Millis, OrganizationId, ServerId, ServerKey

_numbers = count(1)


def tool_call(caller: Caller, **given: Any) -> ToolCall:
    """A call with an id of its own."""
    values: dict[str, Any] = {
        "id": CallId(f"call_{next(_numbers)}"),
        "tool_name": "list_walkthroughs",
        "client_name": "test",
        "client_version": None,
        "protocol_version": "2026-07-28",
        "walkthrough_id": None,
        "version": None,
        "step_id": None,
        "outcome": "listed",
        "error_code": None,
        "duration_us": 12,
        "input": {},
        "created_at": Millis(1_800_000_000_000),
    }
    return ToolCall(caller=caller, **values | given)


async def record(log: CallLog, call: ToolCall) -> None:
    with log.admit() as admitted:
        await admitted(call)


async def stored_calls(connection: asyncpg.Connection) -> list[ToolCall]:
    """Every call in the table, in the order of their ids as these were counted: `call_9` is before `call_11`."""
    rows = await connection.fetch("select * from tool_calls order by length(id), id")
    return [_call(dict(row)) for row in rows]


def _call(row: dict[str, Any]) -> ToolCall:
    server = ServerKey(OrganizationId(row.pop("organization_id")), ServerId(row.pop("mcp_server_id")))
    row["caller"] = Caller(server, row.pop("mcp_server_user_id"))
    row["input"] = json.loads(row["input"])
    return ToolCall(**{name: row.pop(name) for name in ToolCall._fields})
