"""Prompts, resources and completion, with an unmodified MCP client against a real service, in both protocol eras."""

from __future__ import annotations

import base64
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

import asyncpg
import httpx2
import mcp_types as types
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from adapters.postgres.connections import Database
from domain.walkthrough import PublishPolicy
from entrypoints.mcp.paging import PAGE_SIZE
from tests.processes import Serving, text_of
from tests.serving.conftest import Tenant, make_tenant, moves
from tests.worlds import manuscript

_PNG = b"\x89PNG\r\n\x1a\n"
_STEP = "cairn://walkthroughs/{walkthrough}/steps/{step}"
_NOT_FOUND = {"auto": -32602, "legacy": -32002}


async def _fault(request: Awaitable[Any]) -> tuple[int, str, Any]:
    """Code, message and data of a request that is answered with a protocol error."""
    with pytest.raises(MCPError) as raised:
        await request
    error = raised.value.error
    return error.code, error.message, error.data


async def _completed(client: Client, ref: Any, argument: str, value: str, **known: str) -> list[str]:
    result = await client.complete(ref, {"name": argument, "value": value}, known or None)
    assert result.completion.total == len(result.completion.values)
    assert result.completion.has_more is False
    return list(result.completion.values)


def _said(result: types.GetPromptResult) -> str:
    (message,) = result.messages
    assert message.role == "user"
    assert isinstance(message.content, types.TextContent)
    return message.content.text


# ------------------------------------------------------------------------------------------------- prompts


@pytest.mark.promise("prompts-and-resources")
async def test_each_walkthrough_that_can_be_taken_is_a_prompt_in_display_order(tenant: Tenant, era: str) -> None:
    await tenant.publish("one", key="zebra", title="Stripes")
    await tenant.publish("one", key="ant", title="Take colonies apart")
    async with tenant.learner(None, era=era) as visitor:
        prompts = (await visitor.client.list_prompts()).prompts
    assert [(each.name, each.title, each.description) for each in prompts] == [
        ("take_walkthrough", "Take a walkthrough", "Starts a walkthrough, or resumes it where you left off."),
        ("take-zebra", "Take Stripes", "Shows around."),
        ("take-ant", "Take colonies apart", "Shows around."),
    ]
    (argument,) = prompts[0].arguments or ()
    assert (argument.name, argument.required) == ("walkthrough", False)
    assert [each.arguments for each in prompts[1:]] == [None, None]


@pytest.mark.promise("prompts-and-resources")
async def test_a_prompt_asks_for_its_walkthrough_and_moves_nothing(
    tenant: Tenant, era: str, owner: asyncpg.Connection
) -> None:
    await tenant.publish("one", "two", key="tour", title="The grand tour")
    before = await moves(owner)
    async with tenant.learner(None, era=era) as visitor:
        get = visitor.client.get_prompt
        said = _said(await get("take-tour"))
        assert 'select_walkthrough with walkthrough="tour"' in said
        assert "end your turn" in said
        for reference in ("tour", " The Grand Tour "):
            assert _said(await get("take_walkthrough", {"walkthrough": reference})) == said
        for nothing in ({}, {"walkthrough": " "}):
            assert _said(await get("take_walkthrough", nothing)) == (
                "Show me the walkthroughs that I can take here, and let me choose one."
            )
    assert await moves(owner) == before


@pytest.mark.promise("prompts-and-resources")
async def test_what_a_prompt_asks_for_leads_to_the_step(tenant: Tenant, era: str) -> None:
    await tenant.publish("one", "two", key="tour")
    async with tenant.learner(era=era) as me:
        said = _said(await me.client.get_prompt("take-tour"))
        key = said.split('walkthrough="')[1].split('"')[0]
        assert (await me.call("select_walkthrough", walkthrough=key))["step"]["key"] == "one"


async def test_a_prompt_or_a_walkthrough_that_is_not_there_is_refused_with_what_there_is(
    tenant: Tenant, era: str
) -> None:
    await tenant.publish("one", key="tour", title="The tour")
    async with tenant.learner(None, era=era) as visitor:
        get = visitor.client.get_prompt
        assert await _fault(get("no-such")) == (-32602, "Unknown prompt: no-such", None)
        for asked in (get("take-nowhere"), get("take_walkthrough", {"walkthrough": "nowhere"})):
            code, message, _ = await _fault(asked)
            assert code == -32602
            assert message.startswith('walkthrough_not_found: There is no walkthrough "nowhere".')
            assert "tour: The tour" in message


async def test_a_hidden_walkthrough_is_a_prompt_for_nobody_and_is_found_by_those_mid_way(
    tenant: Tenant, era: str, owner: asyncpg.Connection
) -> None:
    await tenant.publish("one", "two", key="tour", title="Secret plans")
    async with tenant.learner(era=era) as me, tenant.learner("bob@example.com", era=era) as bob:
        await me.call("select_walkthrough", walkthrough="tour")
        await owner.execute("update mcp_server_walkthroughs set is_enabled = false")
        for someone in (me, bob):
            assert [each.name for each in (await someone.client.list_prompts()).prompts] == ["take_walkthrough"]
        assert 'walkthrough="tour"' in _said(await me.client.get_prompt("take-tour"))
        code, message, _ = await _fault(bob.client.get_prompt("take-tour"))
        assert code == -32602
        assert "Secret" not in message


@pytest.mark.promise("prompts-and-resources")
async def test_names_are_completed_by_the_beginning_of_a_key_or_of_a_word_of_a_title(tenant: Tenant, era: str) -> None:
    await tenant.publish("one", key="connect", title="Your first client")
    await tenant.publish("one", key="deploy-a", title="Deploy it")
    await tenant.publish("one", key="deploy-b", title="Ship to production")
    await tenant.publish("one", key="ship-c", title="Twice told")
    await tenant.publish("one", key="ship-d", title="Twice told")
    prompt = types.PromptReference(name="take_walkthrough")
    async with tenant.learner(None, era=era) as visitor:
        for typed, expected in {
            "": ["connect", "deploy-a", "deploy-b", "ship-c", "ship-d"],
            "dep": ["deploy-a", "deploy-b"],
            " DEPLOY-": ["deploy-a", "deploy-b"],
            "Your f": ["Your first client"],
            "CLI": ["Your first client"],
            "ship": ["Ship to production", "ship-c", "ship-d"],
            "twice": ["ship-c", "ship-d"],
            "lient": [],
        }.items():
            assert await _completed(visitor.client, prompt, "walkthrough", typed) == expected, typed
        assert await _completed(visitor.client, prompt, "other", "") == []
        assert await _completed(visitor.client, types.PromptReference(name="take-connect"), "walkthrough", "") == []


# ----------------------------------------------------------------------------------------------- resources


@pytest.mark.promise("prompts-and-resources")
async def test_the_current_step_and_each_completed_one_are_resources_and_no_later_one_is(
    tenant: Tenant, era: str
) -> None:
    await tenant.publish("alpha", "beta", "gamma", "delta", key="tour", title="The tour")
    await tenant.publish("other", key="untouched", title="Not begun")
    async with tenant.learner(era=era) as me:
        assert (await me.client.list_resources()).resources == []
        told = await me.call("select_walkthrough", walkthrough="tour")
        for _ in range(2):
            told = await me.call("next_walkthrough_step", completed_step=told["step"]["handle"])
        resources = (await me.client.list_resources()).resources
        assert [(each.uri, each.title, each.description) for each in resources] == [
            (
                _step_uri("current"),
                "Step gamma (step 3 of 4, the current one)",
                "The tour, step 3 of 4, the current one",
            ),
            (_step_uri(1), "Step alpha (step 1 of 4)", "The tour, step 1 of 4"),
            (_step_uri(2), "Step beta (step 2 of 4)", "The tour, step 2 of 4"),
        ]
        assert {each.mime_type for each in resources} == {"text/markdown"}
        for _ in range(2):
            told = await me.call("next_walkthrough_step", completed_step=told["step"]["handle"])
        assert [each.uri for each in (await me.client.list_resources()).resources] == [
            _step_uri(number) for number in (1, 2, 3, 4)
        ]


@pytest.mark.promise("prompts-and-resources")
async def test_a_resource_reads_as_the_review_of_its_step_and_moves_nothing(
    tenant: Tenant, era: str, owner: asyncpg.Connection
) -> None:
    await tenant.publish("one", "two", "three", key="tour", title="The tour")
    async with tenant.learner(era=era) as me:
        told = await me.call("select_walkthrough", walkthrough="tour")
        told = await me.call("next_walkthrough_step", completed_step=told["step"]["handle"])
        reviewed = {
            number: text_of(
                await me.client.call_tool("review_walkthrough_step", {"walkthrough": "tour", "step_number": number})
            )
            for number in (1, 2)
        }
        before = await moves(owner)
        for step, expected in ((1, 1), (2, 2), ("current", 2)):
            for walkthrough in ("tour", told["walkthrough"]["id"], "The%20tour"):
                uri = _STEP.format(walkthrough=walkthrough, step=step)
                (content,) = (await me.client.read_resource(uri)).contents
                assert isinstance(content, types.TextResourceContents)
                assert (content.uri, content.mime_type) == (uri, "text/markdown")
                assert content.text == reviewed[expected]
                assert told["step"]["handle"] not in content.text
        assert await moves(owner) == before


@pytest.mark.promise("prompts-and-resources")
async def test_a_resource_leaves_out_what_is_for_the_assistant_alone(tenant: Tenant, era: str) -> None:
    (plain,) = manuscript("one").steps
    step = replace(plain, assistant_notes="For you alone.", workspace_actions="`rm -r build`", done_when="It is green.")
    await tenant.world.authoring.push(
        tenant.organization,
        replace(manuscript("one"), steps=(step,)),
        publish=PublishPolicy.KEEP,
        servers=[(tenant.server.slug, None)],
        by="author@example.com",
    )
    async with tenant.learner(era=era) as me:
        await me.call("select_walkthrough", walkthrough="tour")
        (content,) = (await me.client.read_resource(_step_uri("current"))).contents
        assert isinstance(content, types.TextResourceContents)
        assert "Do one." in content.text
        assert "It is green." in content.text
        assert "For you alone." not in content.text
        assert "rm -r" not in content.text


async def test_the_current_step_of_a_completed_walkthrough_says_that_it_is_completed(tenant: Tenant, era: str) -> None:
    await tenant.publish("one", key="tour", title="The tour")
    async with tenant.learner(era=era) as me:
        told = await me.call("select_walkthrough", walkthrough="tour")
        await me.call("next_walkthrough_step", completed_step=told["step"]["handle"])
        (content,) = (await me.client.read_resource(_step_uri("current"))).contents
        assert isinstance(content, types.TextResourceContents)
        assert "1 of 1 completed" in content.text
        assert "Do one." not in content.text


@pytest.mark.promise("prompts-and-resources")
@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        (_STEP.format(walkthrough="tour", step=3), "step_not_reached: Step 3 cannot be shown"),
        (_STEP.format(walkthrough="tour", step=999999), "step_not_reached: Step 999999 cannot be shown"),
        (_STEP.format(walkthrough="asleep", step=1), "walkthrough_not_started: "),
        (_STEP.format(walkthrough="asleep", step="current"), "walkthrough_not_started: "),
        (_STEP.format(walkthrough="nowhere", step=1), 'walkthrough_not_found: There is no walkthrough "nowhere".'),
        (_STEP.format(walkthrough="%00", step=1), "walkthrough_not_found: "),
        (_STEP.format(walkthrough="tour", step=0), "The address of a step is "),
        (_STEP.format(walkthrough="tour", step="01"), "The address of a step is "),
        (_STEP.format(walkthrough="tour", step="one"), "The address of a step is "),
        (_STEP.format(walkthrough="tour", step=1) + "?x", "The address of a step is "),
        ("file:///etc/passwd", "The address of a step is "),
        ("", "The address of a step is "),
    ],
)
async def test_any_other_address_is_refused_with_what_there_is(
    tenant: Tenant, era: str, uri: str, problem: str
) -> None:
    await tenant.publish("one", "two", "three", key="tour", title="The tour")
    await tenant.publish("one", key="asleep", title="Asleep")
    async with tenant.learner(era=era) as me:
        told = await me.call("select_walkthrough", walkthrough="tour")
        await me.call("next_walkthrough_step", completed_step=told["step"]["handle"])
        code, message, data = await _fault(me.client.read_resource(uri))
        assert (code, data) == (_NOT_FOUND[era], {"uri": uri})
        assert message.startswith(problem)
        assert "three" not in message


@pytest.mark.promise("prompts-and-resources")
async def test_the_template_is_completed_with_what_its_reader_has_begun_and_reached(tenant: Tenant, era: str) -> None:
    await tenant.publish(*(f"s{number}" for number in range(1, 13)), key="tour")
    await tenant.publish("one", key="tutorial", title="Done with")
    await tenant.publish("one", key="tundra", title="Not begun")
    async with tenant.learner(era=era) as me:
        (template,) = (await me.client.list_resource_templates()).resource_templates
        assert (template.uri_template, template.mime_type) == (_STEP, "text/markdown")
        ref = types.ResourceTemplateReference(uri=template.uri_template)
        assert await _completed(me.client, ref, "walkthrough", "") == []
        told = await me.call("select_walkthrough", walkthrough="tutorial")
        await me.call("next_walkthrough_step", completed_step=told["step"]["handle"])
        told = await me.call("select_walkthrough", walkthrough="tour")
        for _ in range(10):
            told = await me.call("next_walkthrough_step", completed_step=told["step"]["handle"])
        complete = me.client
        assert await _completed(complete, ref, "walkthrough", "tu") == ["tutorial"]
        assert await _completed(complete, ref, "walkthrough", "t") == ["tour", "tutorial"]
        assert await _completed(complete, ref, "step", "1", walkthrough="tour") == ["1", "10"]
        assert await _completed(complete, ref, "step", "c", walkthrough="tour") == ["current"]
        assert await _completed(complete, ref, "step", "", walkthrough="tutorial") == ["1"]
        assert await _completed(complete, ref, "step", "", walkthrough="tundra") == []
        assert await _completed(complete, ref, "step", "") == []
        assert await _completed(complete, ref, "other", "") == []
        elsewhere = types.ResourceTemplateReference(uri="cairn://other/{walkthrough}")
        assert await _completed(complete, elsewhere, "walkthrough", "") == []


# -------------------------------------------------------------------------------------------- both of them


@pytest.mark.promise("prompts-and-resources")
async def test_prompts_and_resources_are_their_own_server_s_and_their_own_reader_s(
    database: Database, service: Serving, era: str
) -> None:
    mine, theirs = await make_tenant(database, service), await make_tenant(database, service)
    await mine.publish("one", "two", key="mine", title="Mine")
    await theirs.publish("one", "two", key="theirs", title="Their secret")
    async with theirs.learner("eve@example.com", era=era) as eve:
        await eve.call("select_walkthrough", walkthrough="theirs")
        assert [each.uri for each in (await eve.client.list_resources()).resources] == [
            _STEP.format(walkthrough="theirs", step="current")
        ]
    async with mine.learner(era=era) as ada, mine.learner("eve@example.com", era=era) as eve:
        await ada.call("select_walkthrough", walkthrough="mine")
        client = eve.client
        assert [each.name for each in (await client.list_prompts()).prompts] == ["take_walkthrough", "take-mine"]
        assert (await client.list_resources()).resources == []
        ref = types.ResourceTemplateReference(uri=_STEP)
        assert await _completed(client, ref, "walkthrough", "") == []
        prompt = types.PromptReference(name="take_walkthrough")
        assert await _completed(client, prompt, "walkthrough", "") == ["mine"]
        assert await _completed(client, prompt, "walkthrough", "their") == []
        for name in ("take-theirs", "take-absent"):
            _, message, _ = await _fault(client.get_prompt(name))
            assert message == (
                f'walkthrough_not_found: There is no walkthrough "{name.removeprefix("take-")}". Call again with the '
                "key of one of these:\n- mine: Mine"
            )
        foreign = await _fault(client.read_resource(_STEP.format(walkthrough="theirs", step=1)))
        absent = await _fault(client.read_resource(_STEP.format(walkthrough="absent", step=1)))
        assert foreign[1].replace("theirs", "absent") == absent[1]
        # A colleague's progress is the colleague's.
        _, message, _ = await _fault(client.read_resource(_STEP.format(walkthrough="mine", step=1)))
        assert message.startswith("walkthrough_not_started: ")


@pytest.mark.promise("prompts-and-resources")
async def test_without_a_token_prompts_are_open_and_steps_are_asked_to_be_signed_in_for(
    tenant: Tenant, closed_tenant: Tenant
) -> None:
    await tenant.publish("one", key="tour")
    await closed_tenant.publish("one", key="tour")
    statuses = {
        "prompts/list": {},
        "prompts/get": {"name": "take-tour"},
        "completion/complete": {
            "ref": {"type": "ref/prompt", "name": "take_walkthrough"},
            "argument": {"name": "walkthrough", "value": ""},
        },
        "resources/list": {},
        "resources/templates/list": {},
        "resources/read": {"uri": _step_uri("current")},
    }
    for method, params in statuses.items():
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer = await tenant.post(request)
        if method == "resources/read":
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer ")
        else:
            assert answer.status_code == 200
            assert "result" in answer.json()
        assert (await closed_tenant.post(request)).status_code == 401


async def test_a_long_list_comes_in_pages_that_together_hold_everything_once(tenant: Tenant, era: str) -> None:
    keys = [f"key-{number:03}" for number in range(PAGE_SIZE + 5)]
    for key in keys:
        await tenant.publish("one", key=key, title=f"Title {key}")
    async with tenant.learner(era=era) as me:
        first = await me.client.list_prompts()
        assert first.next_cursor
        second = await me.client.list_prompts(cursor=first.next_cursor)
        assert second.next_cursor is None
        names = [each.name for each in (*first.prompts, *second.prompts)]
        assert names == ["take_walkthrough", *(f"take-{key}" for key in keys)]
        assert len(first.prompts) == PAGE_SIZE
        for cursor in ("", "x", base64.urlsafe_b64encode(b"take-gone").decode()):
            for list_them in (
                me.client.list_prompts,
                me.client.list_resources,
                me.client.list_resource_templates,
                me.client.list_tools,
            ):
                asked = list_them(cursor=cursor)
                code, message, _ = await _fault(asked)
                assert (code, message) == (-32602, "This cursor is not valid: list again without one.")


async def test_server_tools_prompts_and_template_bear_an_icon_that_every_client_can_show(
    tenant: Tenant, era: str
) -> None:
    await tenant.publish("one", key="tour")
    async with tenant.learner(era=era) as me:
        info = me.client.server_info
        assert info is not None
        bearers = [
            info,
            *(await me.client.list_tools()).tools,
            *(await me.client.list_prompts()).prompts,
            *(await me.client.list_resource_templates()).resource_templates,
        ]
        assert len(bearers) == 1 + 5 + 2 + 1
        for bearer in bearers:
            (icon,) = bearer.icons or ()
            assert (icon.mime_type, icon.sizes) == ("image/png", ["48x48"])
            kind, _, data = icon.src.partition(",")
            assert kind == "data:image/png;base64"
            assert base64.b64decode(data, validate=True).startswith(_PNG)


_CACHED = {
    "tools/list": (60_000, "public"),
    "resources/templates/list": (60_000, "public"),
    "prompts/list": (5_000, "private"),
    "resources/list": (0, "private"),
    "server/discover": (60_000, "public"),
}


async def test_what_is_a_reader_s_own_is_cached_by_nobody_else(tenant: Tenant) -> None:
    await tenant.publish("one", key="tour")
    async with tenant.learner() as me:
        await me.call("select_walkthrough", walkthrough="tour")
    token = await tenant.token()
    cached = {**_CACHED, "resources/read": (0, "private")}
    for method, (ttl, scope) in cached.items():
        params = {"uri": _step_uri("current")} if method == "resources/read" else {}
        result = (await _modern(tenant, token, method, params)).json()["result"]
        assert (result["ttlMs"], result["cacheScope"]) == (ttl, scope), method


async def test_the_icon_travels_with_the_introduction_and_not_with_every_answer(tenant: Tenant) -> None:
    token = await tenant.token()
    assert "image/png" in (await _modern(tenant, token, "server/discover", {})).text
    listed = await _modern(tenant, token, "tools/call", {"name": "list_walkthroughs", "arguments": {}})
    assert "io.modelcontextprotocol/serverInfo" in listed.text
    assert "image/png" not in listed.text


async def _modern(tenant: Tenant, token: str, method: str, params: dict[str, Any]) -> httpx2.Response:
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
    }
    named = params.get("name") or params.get("uri")
    return await tenant.post(
        {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}},
        token=token,
        mcp_protocol_version="2026-07-28",
        mcp_method=method,
        **({"mcp_name": named} if named else {}),
    )


def _step_uri(step: int | str) -> str:
    return _STEP.format(walkthrough="tour", step=step)
