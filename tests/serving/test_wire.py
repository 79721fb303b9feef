"""What goes over the wire: introductions, the list of tools, results, faults, the call log, and what stays apart."""

from __future__ import annotations

import json
from typing import Any

import asyncpg
import httpx2
import jsonschema
import pydantic_core
import pytest

from adapters.postgres.connections import Database
from domain.progress import MAX_NOTE_CHARS, Told
from domain.walkthrough import MAX_RESULT_BYTES, PublishPolicy
from tests.processes import Learner, Serving, text_of
from tests.serving.conftest import Tenant, call, make_tenant, moves

_MODERN = "2026-07-28"
_TOOLS = [
    "list_walkthroughs",
    "select_walkthrough",
    "next_walkthrough_step",
    "get_walkthrough_status",
    "review_walkthrough_step",
]
_READ_ONLY = {"list_walkthroughs", "get_walkthrough_status", "review_walkthrough_step"}
_ROW = {
    "id", "key", "title", "description", "type", "step_count", "estimated_minutes", "version", "status",
    "current_step_number", "newer_version_available",
}  # fmt: skip


async def _sent(
    tenant: Tenant, era: str, message: dict[str, Any], *, token: str | None = None, **headers: str
) -> httpx2.Response:
    """One raw request in the form of an era."""
    # Escaped to ASCII: half of a surrogate pair can be sent in no other way.
    if era == "legacy":
        body = json.dumps(message).encode()
        return await tenant.post(body, token=token, mcp_protocol_version="2025-11-25", **headers)
    meta = {
        "io.modelcontextprotocol/protocolVersion": _MODERN,
        "io.modelcontextprotocol/clientInfo": {"name": "raw-client", "version": "4.2"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {**message.get("params", {}), "_meta": meta}
    routing = {"mcp_protocol_version": _MODERN, "mcp_method": message["method"]}
    if "name" in params:
        routing["mcp_name"] = params["name"]
    body = json.dumps({**message, "params": params}).encode()
    return await tenant.post(body, token=token, **routing, **headers)


async def _called(tenant: Tenant, era: str, token: str | None, tool: str, **arguments: Any) -> dict[str, Any]:
    """The JSON-RPC answer to a raw tool call, read by a strict reader as clients have them."""
    answer = await _sent(tenant, era, call(tool, **arguments), token=token)
    decoded: dict[str, Any] = pydantic_core.from_json(answer.content)
    assert "Internal error" not in answer.text
    assert len(answer.content) <= MAX_RESULT_BYTES
    return decoded


def _error_text(answer: dict[str, Any]) -> str:
    result = answer["result"]
    assert result["isError"] is True
    assert "structuredContent" not in result
    (content,) = result["content"]
    return str(content["text"])


# -------------------------------------------------------------------------------------------- introductions


@pytest.mark.promise("tenant.identity")
async def test_each_server_introduces_itself_by_its_own_name_on_one_process(
    tenant: Tenant, closed_tenant: Tenant, era: str
) -> None:
    for mine, other in ((tenant, closed_tenant), (closed_tenant, tenant)):
        token = await mine.token()
        if era == "legacy":
            params = {
                "protocolVersion": "2025-11-25",
                "capabilities": {},
                "clientInfo": {"name": "raw", "version": "1"},
            }
            hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
            answer = await mine.post(hello, token=token)
            result = answer.json()["result"]
            info = result["serverInfo"]
            assert result["protocolVersion"] == "2025-11-25"
        else:
            answer = await _sent(mine, era, {"jsonrpc": "2.0", "id": 1, "method": "server/discover"}, token=token)
            result = answer.json()["result"]
            info = result["_meta"]["io.modelcontextprotocol/serverInfo"]
            assert _MODERN in result["supportedVersions"]
        assert (info["name"], info["title"]) == (mine.server.slug, mine.server.name)
        assert info["version"]
        assert result["instructions"].startswith(f"{mine.server.name} offers walkthroughs")
        assert "tools" in result["capabilities"]
        assert "mcp-session-id" not in answer.headers
        for foreign in (other.server.name, other.server.slug, other.organization):
            assert foreign not in answer.text


@pytest.mark.promise("tenant.identity")
async def test_every_answer_of_the_newest_era_says_whose_it_is(tenant: Tenant) -> None:
    token = await tenant.token()
    for message in (call("list_walkthroughs"), {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}):
        meta = (await _sent(tenant, "auto", message, token=token)).json()["result"]["_meta"]
        assert meta["io.modelcontextprotocol/serverInfo"]["name"] == tenant.server.slug


async def test_older_revisions_of_the_handshake_are_served_as_asked_for(tenant: Tenant) -> None:
    for revision in ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"):
        params = {"protocolVersion": revision, "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
        hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
        assert (await tenant.post(hello)).json()["result"]["protocolVersion"] == revision
        listed = await tenant.post({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, mcp_protocol_version=revision)
        assert len(listed.json()["result"]["tools"]) == len(_TOOLS)


# ------------------------------------------------------------------------------------------------ the tools


@pytest.mark.promise("tools.schema")
async def test_five_tools_are_listed_each_with_all_that_clients_look_at(tenant: Tenant, era: str) -> None:
    answer = await _sent(tenant, era, {"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    result = answer.json()["result"]
    tools = result["tools"]
    assert [tool["name"] for tool in tools] == _TOOLS
    assert "nextCursor" not in result
    for tool in tools:
        assert tool["title"]
        assert tool["description"]
        for schema in (tool["inputSchema"], tool["outputSchema"]):
            jsonschema.Draft202012Validator.check_schema(schema)
            assert schema["type"] == "object"
            assert not {"anyOf", "oneOf", "allOf", "$ref"} & set(schema)
        annotations = tool["annotations"]
        assert annotations.pop("title", tool["title"]) == tool["title"]
        assert annotations == {
            "readOnlyHint": tool["name"] in _READ_ONLY,
            "destructiveHint": False,
            "idempotentHint": True,
            "openWorldHint": False,
        }


@pytest.mark.promise("tools.schema")
async def test_every_result_in_every_status_is_what_its_schema_says(tenant: Tenant, era: str) -> None:
    await tenant.publish("one", "two", "three")
    statuses = set()
    async with tenant.learner(era=era) as me, tenant.learner(None, era=era) as nobody:
        validators = {
            tool.name: jsonschema.Draft202012Validator(tool.output_schema)
            for tool in (await me.client.list_tools()).tools
        }

        async def told(learner: Learner, name: str, **arguments: Any) -> dict[str, Any]:
            structured = await learner.call(name, **arguments)
            validators[name].validate(structured)
            assert set(structured) == set(validators[name].schema["properties"])
            if "walkthroughs" not in structured:
                statuses.add(structured["status"])
            else:
                extra = {"attempt", "started_at", "last_activity_at", "completed_at", "completed_steps"}
                expected = _ROW | (extra if name == "get_walkthrough_status" else set())
                assert all(set(row) == expected for row in structured["walkthroughs"])
            return structured

        async def look_around() -> None:
            await told(nobody, "list_walkthroughs")
            await told(me, "list_walkthroughs")
            await told(me, "get_walkthrough_status")

        async def go_on(shown: dict[str, Any], **arguments: Any) -> dict[str, Any]:
            return await told(me, "next_walkthrough_step", completed_step=shown["step"]["handle"], **arguments)

        await look_around()
        first = await told(me, "select_walkthrough", walkthrough="tour")
        await told(me, "select_walkthrough", walkthrough="tour")
        await go_on(first, outcome="stuck", note="n")
        await look_around()
        await go_on(await go_on(first))
        await go_on(first)
        await told(me, "review_walkthrough_step", walkthrough="tour", step_number=1)
        await tenant.publish("one", "four", policy=PublishPolicy.OFFER)
        await look_around()
        moved = await told(me, "select_walkthrough", walkthrough="tour", version="latest")
        assert (await go_on(moved))["step"] is None
        await look_around()
        await told(me, "select_walkthrough", walkthrough="tour")
        await told(me, "review_walkthrough_step", walkthrough="tour", step_number=2)
        await told(me, "select_walkthrough", walkthrough="tour", restart=True)
    assert statuses == {each.value for each in Told}


# --------------------------------------------------------------------------------------------------- faults


@pytest.mark.promise("tools.errors", "calls.logged")
async def test_an_unknown_tool_is_a_protocol_fault(tenant: Tenant, era: str, owner: asyncpg.Connection) -> None:
    token = await tenant.token()
    for name in ("no_such_tool", "select_walkthroughs", "x" * 5_000):
        answer = await _sent(tenant, era, call(name, walkthrough="tour"), token=token)
        error = answer.json()["error"]
        assert error["code"] == -32602
        assert error["message"].startswith("Unknown tool")
        assert len(answer.content) < 1_000
    codes = await owner.fetch("select distinct outcome, error_code from tool_calls")
    assert [tuple(row) for row in codes] == [("error", "unknown_tool")]


@pytest.mark.promise("tools.arguments")
async def test_an_ill_typed_argument_is_a_tool_error_that_names_it(
    tenant: Tenant, era: str, owner: asyncpg.Connection
) -> None:
    await tenant.publish("one", "two")
    token = await tenant.token()
    before = await moves(owner)
    for tool, argument, value in (
        ("select_walkthrough", "walkthrough", 5),
        ("select_walkthrough", "walkthrough", ["tour"]),
        ("select_walkthrough", "walkthrough", {"key": {"of": ["tour"]}}),
        ("select_walkthrough", "walkthrough", ""),
        ("select_walkthrough", "walkthrough", "x" * 301),
        ("select_walkthrough", "restart", "yes"),
        ("select_walkthrough", "version", "newest"),
        ("select_walkthrough", "version", 10**400),
        ("next_walkthrough_step", "completed_step", 10**400),
        ("next_walkthrough_step", "outcome", "finished"),
        ("next_walkthrough_step", "note", {}),
        ("next_walkthrough_step", "note", "😀" * (MAX_NOTE_CHARS + 1)),
        ("get_walkthrough_status", "walkthrough", False),
        ("review_walkthrough_step", "step_number", 10**400),
        ("review_walkthrough_step", "step_number", -(10**400)),
        ("review_walkthrough_step", "step_number", 1e308),
        ("review_walkthrough_step", "step_number", 0),
    ):
        required = {"walkthrough": "tour"} if tool != "next_walkthrough_step" else {}
        text = _error_text(await _called(tenant, era, token, tool, **required | {argument: value}))
        assert text.startswith("invalid_arguments: "), (tool, argument)
        assert argument in text
        assert len(text) < 500
    assert await moves(owner) == before


@pytest.mark.promise("tools.arguments")
async def test_a_missing_argument_is_named(tenant: Tenant, era: str) -> None:
    token = await tenant.token()
    for tool, given, missing in (
        ("select_walkthrough", {}, "walkthrough"),
        ("review_walkthrough_step", {"walkthrough": "tour"}, "step_number"),
        ("review_walkthrough_step", {"step_number": 1}, "walkthrough"),
        ("review_walkthrough_step", {"walkthrough": None, "step_number": 1}, "walkthrough"),
    ):
        text = _error_text(await _called(tenant, era, token, tool, **given))
        assert text.startswith("invalid_arguments: ")
        assert missing in text


@pytest.mark.promise("tools.null-is-absent")
async def test_null_counts_as_absent(tenant: Tenant, era: str) -> None:
    await tenant.publish("one", "two")
    async with tenant.learner(era=era) as me:
        nothing = {"restart": None, "version": None, "whatever": None}
        first = await me.call("select_walkthrough", walkthrough="tour", **nothing)
        assert first["status"] == "started"
        told = await me.call(
            "next_walkthrough_step",
            completed_step=first["step"]["handle"],
            walkthrough=None,
            outcome=None,
            note=None,
        )
        assert told["status"] == "advanced"
        assert len((await me.call("get_walkthrough_status", walkthrough=None))["walkthroughs"]) == 1
    bare = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "list_walkthroughs"}}
    answer = await _sent(tenant, era, bare)
    assert answer.json()["result"]["structuredContent"]["walkthroughs"]


@pytest.mark.promise("tools.arguments")
async def test_unknown_arguments_are_ignored_by_readers_and_refused_by_name_by_the_others(
    tenant: Tenant, era: str, owner: asyncpg.Connection
) -> None:
    await tenant.publish("one", "two")
    async with tenant.learner(era=era) as me:
        text = await me.refused("select_walkthrough", walkthrough="tour", step_number=2)
        assert text.startswith("invalid_arguments: ")
        assert "step_number" in text
        assert await moves(owner) == [(0,)]
        first = await me.call("select_walkthrough", walkthrough="tour")
        before = await moves(owner)
        handle = first["step"]["handle"]
        text = await me.refused("next_walkthrough_step", completed_step=handle, confirmed=True)
        assert text.startswith("invalid_arguments: ")
        assert "confirmed" in text
        assert await moves(owner) == before
        assert (await me.call("list_walkthroughs", filter="x", page=[1]))["walkthroughs"]
        assert (await me.call("get_walkthrough_status", verbose={"a": 1}))["walkthroughs"]
        reviewed = await me.call("review_walkthrough_step", walkthrough="tour", step_number=1, restart=True)
        assert reviewed["status"] == "review"
        assert await moves(owner) == before


@pytest.mark.promise("tools.arguments", "next.outcome")
async def test_a_note_holds_two_thousand_characters_and_not_one_more(
    tenant: Tenant, era: str, owner: asyncpg.Connection
) -> None:
    await tenant.publish("one", "two")
    async with tenant.learner(era=era) as me:
        handle = (await me.call("select_walkthrough", walkthrough="tour"))["step"]["handle"]
        before = await moves(owner)
        text = await me.refused("next_walkthrough_step", completed_step=handle, note="😀" * (MAX_NOTE_CHARS + 1))
        assert text.startswith("invalid_arguments: ")
        assert "note" in text
        assert await moves(owner) == before
        note = "😀" * MAX_NOTE_CHARS
        told = await me.call("next_walkthrough_step", completed_step=handle, note=note)
        assert told["status"] == "advanced"
    stored = await owner.fetchval("select note from walkthrough_progress_events where kind = 'advanced'")
    assert stored == note


@pytest.mark.promise("tools.arguments", "tools.nothing-internal")
async def test_text_that_no_database_holds_is_answered_like_any_other(
    tenant: Tenant, era: str, owner: asyncpg.Connection
) -> None:
    await tenant.publish("one", "two")
    token = await tenant.token()
    first = await _called(tenant, era, token, "select_walkthrough", walkthrough="tour")
    handle = first["result"]["structuredContent"]["step"]["handle"]
    calls = 1
    for odd in ("tour\x00", "\ud800", "\u2028"):
        for tool, arguments in (
            ("list_walkthroughs", {"x": odd}),
            ("list_walkthroughs", {odd: 1}),
            ("list_walkthroughs", {"x": [odd, {odd: odd}]}),
            ("select_walkthrough", {"walkthrough": odd}),
            ("select_walkthrough", {"walkthrough": "tour", "version": odd}),
            ("select_walkthrough", {"walkthrough": "tour", "restart": odd}),
            ("select_walkthrough", {"walkthrough": "tour", odd: 1}),
            ("next_walkthrough_step", {"completed_step": odd}),
            ("next_walkthrough_step", {"completed_step": f"{handle}{odd}"}),
            ("next_walkthrough_step", {"completed_step": handle, "walkthrough": odd}),
            ("next_walkthrough_step", {"completed_step": handle, "outcome": odd}),
            ("next_walkthrough_step", {"completed_step": handle, "outcome": "stuck", "note": odd}),
            ("get_walkthrough_status", {"walkthrough": odd}),
            ("review_walkthrough_step", {"walkthrough": "tour", "step_number": odd}),
        ):
            answer = await _sent(tenant, era, call(tool, **arguments), token=token)
            shown = (tool, arguments)
            calls += 1
            assert answer.status_code == 200, shown
            assert "result" in answer.json(), shown
            pydantic_core.from_json(answer.content)  # as a strict client reads it
    assert await owner.fetchval("select count(*) from tool_calls") == calls
    assert await owner.fetchval("select count(*) from tool_calls where error_code = 'internal_error'") == 0


@pytest.mark.promise("tools.arguments")
async def test_deep_and_long_arguments_are_answered_like_any_other(
    tenant: Tenant, era: str, owner: asyncpg.Connection
) -> None:
    await tenant.publish("one")
    token = await tenant.token()
    deep: Any = "x"
    for _ in range(90):  # the reader of the handshake era ends at 200
        deep = [{"deeper": deep}]
    long = "x" * 500_000
    for tool, arguments in (
        ("list_walkthroughs", {"x": deep, "y": long, long: 1}),
        ("list_walkthroughs", {f"argument {number}": number for number in range(5_000)}),
        ("select_walkthrough", {"walkthrough": deep}),
        ("select_walkthrough", {"walkthrough": long}),
        ("select_walkthrough", {"walkthrough": "tour", "version": long}),
        ("select_walkthrough", {"walkthrough": "tour", long: 1}),
        ("next_walkthrough_step", {"completed_step": long}),
        ("next_walkthrough_step", {"completed_step": "x", "note": long}),
    ):
        answer = await _called(tenant, era, token, tool, **arguments)
        assert "result" in answer
        assert len(json.dumps(answer)) < 5_000
    rows = await owner.fetch("select input from tool_calls")
    assert len(rows) == 8
    assert max(len(row["input"]) for row in rows) < 20 * 5_000


# -------------------------------------------------------------------------------------------- the call log


@pytest.mark.promise("calls.logged")
async def test_every_tool_call_is_recorded_with_who_what_where_and_how_it_ended(
    tenant: Tenant, era: str, owner: asyncpg.Connection
) -> None:
    await tenant.publish("one", "two")
    token = await tenant.token()
    caller = await tenant.caller()
    agent = {"user_agent": "old-client/3.1 (linux) python/3"}

    async def send(tool: str, **arguments: Any) -> dict[str, Any]:
        answer = await _sent(tenant, era, call(tool, **arguments), token=token, **agent)
        result: dict[str, Any] = answer.json().get("result", {})
        return result.get("structuredContent", {})

    await send("list_walkthroughs")
    first = await send("select_walkthrough", walkthrough="tour")
    handle = first["step"]["handle"]
    second = await send("next_walkthrough_step", completed_step=handle, note="n\x00" * 20)
    await send("select_walkthrough", walkthrough="nothing")
    await send("select_walkthrough", walkthrough=7)
    await send("no_such_tool", big="x" * 100_000, nested={"a": [1]}, number=10**300, yes=True)
    await _sent(tenant, era, call("list_walkthroughs"), **agent)
    rows = [dict(row) for row in await owner.fetch("select * from tool_calls order by created_at, id")]
    rows.sort(key=lambda row: row["created_at"])
    steps = [handle.split(".")[2], second["step"]["handle"].split(".")[2]]
    walkthrough = first["walkthrough"]["id"]
    assert {
        (row["tool_name"], row["outcome"], row["error_code"], row["walkthrough_id"], row["version"], row["step_id"])
        for row in rows
    } == {
        ("list_walkthroughs", "listed", None, None, None, None),
        ("select_walkthrough", "started", None, walkthrough, 1, steps[0]),
        ("next_walkthrough_step", "advanced", None, walkthrough, 1, steps[1]),
        ("select_walkthrough", "error", "walkthrough_not_found", None, None, None),
        ("select_walkthrough", "error", "invalid_arguments", None, None, None),
        ("no_such_tool", "error", "unknown_tool", None, None, None),
    }
    assert len(rows) == 7
    assert [row["mcp_server_user_id"] for row in rows].count(None) == 1  # the list without a token
    for row in rows:
        assert row["organization_id"] == tenant.server.key.organization_id
        assert row["mcp_server_id"] == tenant.server.key.server_id
        assert row["mcp_server_user_id"] in (caller.user_id, None)
        expected = ("old-client", "3.1") if era == "legacy" else ("raw-client", "4.2")
        assert (row["client_name"], row["client_version"]) == expected
        assert row["protocol_version"] == ("2025-11-25" if era == "legacy" else _MODERN)
        assert 0 < row["duration_us"] < 5_000_000
        assert len(row["input"]) < 10_000
        assert token not in str(row)
    inputs = {(row["tool_name"], row["error_code"]): json.loads(row["input"]) for row in rows}
    assert inputs["select_walkthrough", None] == {"walkthrough": "tour"}
    assert inputs["next_walkthrough_step", None] == {"completed_step": handle, "note": "n\ufffd" * 20}
    unknown = inputs["no_such_tool", "unknown_tool"]
    assert set(unknown) == {"big", "nested", "number", "yes"}
    assert unknown["yes"] is True


@pytest.mark.promise("calls.logged")
async def test_what_the_gate_refuses_and_what_is_no_tool_call_is_not_recorded(
    tenant: Tenant, closed_tenant: Tenant, era: str, owner: asyncpg.Connection
) -> None:
    good = call("list_walkthroughs")
    for answer in (
        await _sent(tenant, era, call("select_walkthrough", walkthrough="tour")),
        await _sent(tenant, era, good, token="cairn_unknown"),
        await _sent(closed_tenant, era, good),
        await _sent(tenant, era, good, origin="https://elsewhere.example.com"),
        await _sent(tenant, era, good, host="nobody.localhost"),
        await tenant.post(good | {"method": "tools/list"}),
        await tenant.post({"jsonrpc": "2.0", "id": 1, "method": "no/such"}),
    ):
        assert answer.status_code != 500
    assert await owner.fetchval("select count(*) from tool_calls") == 0


# ---------------------------------------------------------------------------------------- hidden walkthroughs

_HIDE = {
    "disabled": "update mcp_server_walkthroughs set is_enabled = false where walkthrough_id = $1",
    "removed": "delete from mcp_server_walkthroughs where walkthrough_id = $1",
    "unpublished": "update walkthroughs set is_published = false where id = $1",
    "archived": "update walkthroughs set archived_at = 1 where id = $1",
}


@pytest.mark.promise("version.hidden")
@pytest.mark.parametrize("statement", _HIDE.values(), ids=_HIDE.keys())
async def test_a_hidden_walkthrough_takes_nobody_new_and_lets_those_mid_way_finish(
    tenant: Tenant, owner: asyncpg.Connection, statement: str
) -> None:
    await tenant.publish("one", "two", "three")
    async with tenant.learner() as me, tenant.learner("bob@example.com") as bob:
        told = await me.call("select_walkthrough", walkthrough="tour")
        told = await me.call("next_walkthrough_step", completed_step=told["step"]["handle"])
        await tenant.publish("one", "two", "three", "four", policy=PublishPolicy.CARRY_OVER)
        walkthrough = told["walkthrough"]["id"]
        await owner.execute(statement, walkthrough)
        # Nobody new: it is not in the list, and cannot be begun.
        for learner in (me, bob):
            assert (await learner.call("list_walkthroughs"))["walkthroughs"] == []
        for reference in ("tour", walkthrough, "The tour"):
            text = await bob.refused("select_walkthrough", walkthrough=reference)
            if statement == _HIDE["removed"] or reference == "The tour":
                # As if there were none: whoever has not begun it knows of it by no title.
                assert text.startswith(("walkthrough_not_found: ", "walkthrough_unavailable: "))
            else:
                assert text.startswith("walkthrough_unavailable: ")
        assert (await bob.call("get_walkthrough_status"))["walkthroughs"] == []
        # Mid-way: neither begun again nor moved, but found and resumed where it stands.
        for arguments in ({"restart": True}, {"version": "latest"}):
            text = await me.refused("select_walkthrough", walkthrough="tour", **arguments)
            assert text.startswith("walkthrough_unavailable: ")
        (row,) = (await me.call("get_walkthrough_status"))["walkthroughs"]
        assert (row["status"], row["current_step_number"], row["version"]) == ("in_progress", 2, 1)
        assert row["newer_version_available"] is False
        resumed = await me.call("select_walkthrough", walkthrough="The tour")
        assert (resumed["status"], resumed["step"]) == ("resumed", told["step"])
        reviewed = await me.call("review_walkthrough_step", walkthrough="tour", step_number=1)
        assert reviewed["step"]["key"] == "one"
        # And finished, on the version it was begun on: the pending carry-over waits.
        third = await me.call("next_walkthrough_step", completed_step=told["step"]["handle"])
        assert (third["status"], third["step"]["key"], third["walkthrough"]["version"]) == ("advanced", "three", 1)
        done = await me.call("next_walkthrough_step", completed_step=third["step"]["handle"])
        assert (done["status"], done["step"]) == ("completed", None)
        assert (await me.call("select_walkthrough", walkthrough="tour"))["status"] == "completed"
        text = await me.refused("select_walkthrough", walkthrough="tour", restart=True)
        assert text.startswith("walkthrough_unavailable: ")


# --------------------------------------------------------------------------------------------------- apart


def _as_if_absent(text: str, reference: str) -> str:
    return text.replace(reference, "<reference>")


@pytest.mark.promise("tenant.isolation")
async def test_what_is_another_organisation_s_answers_exactly_as_what_does_not_exist(
    database: Database, service: Serving, era: str, owner: asyncpg.Connection
) -> None:
    mine, theirs = await make_tenant(database, service), await make_tenant(database, service)
    await mine.publish("one", "two", key="mine", title="Mine")
    await theirs.publish("one", "two", key="theirs-secret", title="Their secret tour")
    async with theirs.learner("eve@example.com", era=era) as eve:
        told = await eve.call("select_walkthrough", walkthrough="theirs-secret")
    before = await moves(owner)
    foreign_id, foreign_handle = told["walkthrough"]["id"], told["step"]["handle"]
    absent = "wlk_" + "0" * (len(foreign_id) - 4)
    async with mine.learner("eve@example.com", era=era) as me:
        for reference in (foreign_id, "theirs-secret", "Their secret tour"):
            for tool, arguments in (
                ("select_walkthrough", {}),
                ("select_walkthrough", {"restart": True, "version": "latest"}),
                ("get_walkthrough_status", {}),
                ("review_walkthrough_step", {"step_number": 1}),
                ("next_walkthrough_step", {}),
                ("next_walkthrough_step", {"completed_step": foreign_handle}),
            ):
                foreign = await me.refused(tool, walkthrough=reference, **arguments)
                missing = await me.refused(tool, walkthrough=absent, **arguments)
                assert _as_if_absent(foreign, reference) == _as_if_absent(missing, absent)
                assert foreign.startswith("walkthrough_not_found: ")
                assert "Their" not in foreign.replace(reference, "")
        text = await me.refused("next_walkthrough_step", completed_step=foreign_handle)
        assert text.startswith("walkthrough_not_found: ")
        assert _as_if_absent(text, foreign_id) == _as_if_absent(
            await me.refused("select_walkthrough", walkthrough=absent), absent
        )
        assert await moves(owner) == before
        # Nor does it move a walkthrough that it is used with.
        await me.call("select_walkthrough", walkthrough="mine")
        before = await moves(owner)
        text = await me.refused("next_walkthrough_step", walkthrough="mine", completed_step=foreign_handle)
        assert text.startswith("step_not_current: ")
        text = await me.refused(
            "next_walkthrough_step", walkthrough="mine", completed_step=foreign_handle, outcome="stuck", note="n"
        )
        assert text.startswith("step_not_current: ")
        assert await moves(owner) == before
        (row,) = (await me.call("list_walkthroughs"))["walkthroughs"]
        assert row["key"] == "mine"


@pytest.mark.promise("tenant.isolation")
async def test_a_handle_of_another_server_of_the_organisation_moves_nothing(
    tenant: Tenant, era: str, owner: asyncpg.Connection
) -> None:
    await tenant.publish("one", "two", key="here", title="Here")
    slug = f"{tenant.server.slug}-{era}"
    sibling = Tenant(
        tenant.world, await tenant.world.server(tenant.organization, slug), tenant.service, tenant.organization
    )
    await sibling.publish("one", "two", key="there", title="Over the hills")
    async with sibling.learner(era=era) as me:
        told = await me.call("select_walkthrough", walkthrough="there")
        assert [row["key"] for row in (await me.call("list_walkthroughs"))["walkthroughs"]] == ["there"]
    async with tenant.learner(era=era) as me:
        before = await moves(owner)
        assert [row["key"] for row in (await me.call("list_walkthroughs"))["walkthroughs"]] == ["here"]
        for reference in ("there", told["walkthrough"]["id"]):
            text = await me.refused("select_walkthrough", walkthrough=reference)
            assert text.startswith("walkthrough_not_found: ")
            assert "hills" not in text
        text = await me.refused("next_walkthrough_step", completed_step=told["step"]["handle"])
        assert text.startswith("walkthrough_not_found: ")
        assert await moves(owner) == before


@pytest.mark.promise("tools.no-later-step", "tools.fence")
async def test_no_answer_on_the_way_tells_of_a_later_step(tenant: Tenant, era: str) -> None:
    keys = ["alpha", "bravo", "charlie"]
    await tenant.publish(*keys)
    async with tenant.learner(era=era) as me:
        result = await me.client.call_tool("select_walkthrough", {"walkthrough": "tour"})
        for place, _ in enumerate(keys):
            handle = (result.structured_content or {})["step"]["handle"]
            answers = [
                result,
                await me.client.call_tool("list_walkthroughs", {}),
                await me.client.call_tool("get_walkthrough_status", {}),
                await me.client.call_tool("next_walkthrough_step", {}),
                await me.client.call_tool("review_walkthrough_step", {"walkthrough": "tour", "step_number": 3}),
                await me.client.call_tool("next_walkthrough_step", {"completed_step": handle, "outcome": "stuck"}),
            ]
            if place == 2:
                answers.pop(4)
            told = " ".join(text_of(each) + json.dumps(each.structured_content) for each in answers)
            assert keys[place] in told
            assert not any(key in told for key in keys[place + 1 :])
            result = await me.client.call_tool("next_walkthrough_step", {"completed_step": handle})
