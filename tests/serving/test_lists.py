"""What clients keep: who a server is and what it lists, how long that holds, and that it is the same every time."""

from __future__ import annotations

from typing import Any

import pytest

from tests.processes import Serving, serving
from tests.serving.conftest import Tenant
from tests.serving.raw import MODERN, Reply, modern, only, request

_LISTS = {
    "tools": ["tools/list"],
    "prompts": ["prompts/list"],
    "resources": ["resources/list", "resources/templates/list"],
}


async def _answer(
    tenant: Tenant, method: str, *, era: str = "modern", token: str | None = None, service: Serving | None = None
) -> Reply:
    body: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": method}
    headers = [f"host: {tenant.host}", *([f"authorization: Bearer {token}"] if token else [])]
    if era == "modern":
        body, _ = modern(body)
        headers += [f"mcp-protocol-version: {MODERN}", f"mcp-method: {method}"]
    elif method == "initialize":
        client = {"name": "raw", "version": "1"}
        body["params"] = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client}
    return await only(service or tenant.service, request(*headers, body=body))


@pytest.mark.promise("tools.lists")
async def test_discovery_tells_the_revisions_the_capabilities_and_how_long_that_holds(tenant: Tenant) -> None:
    result = (await _answer(tenant, "server/discover")).json["result"]
    assert result["supportedVersions"] == [MODERN]  # of the handshake there is nothing to discover
    assert result["resultType"] == "complete"
    assert set(result["capabilities"]) - {"completions"} == set(_LISTS)
    assert (result["ttlMs"], result["cacheScope"]) == (60_000, "public")
    # Nothing is announced that is not served.
    for capability in result["capabilities"].values():
        assert not any(capability.values())


@pytest.mark.promise("tools.lists")
async def test_every_list_says_how_long_and_for_whom_it_holds(tenant: Tenant) -> None:
    await tenant.publish("one")
    capabilities = (await _answer(tenant, "server/discover")).json["result"]["capabilities"]
    token = await tenant.token()
    hints = {}
    for capability in capabilities.keys() & _LISTS.keys():
        for method in _LISTS[capability]:
            result = (await _answer(tenant, method, token=token)).json["result"]
            assert result["resultType"] == "complete"
            hints[method] = (result["ttlMs"], result["cacheScope"])
            # The era of the handshake has no such thing.
            old = (await _answer(tenant, method, era="legacy", token=token)).json["result"]
            assert not {"resultType", "ttlMs", "cacheScope"} & set(old)
    assert hints["tools/list"] == (60_000, "public")
    for method in hints.keys() - {"tools/list", "resources/templates/list"}:
        # These are of one person, or change with what an author publishes.
        assert hints[method][1] == "private", method


@pytest.mark.promise("tools.lists")
async def test_the_same_question_has_the_same_answer_to_the_byte_from_every_process(
    tenant: Tenant, owner_url: str
) -> None:
    await tenant.publish("one", "two", key="one", title="One")
    await tenant.publish("one", "two", key="two", title="Two")
    token = await tenant.token()
    with serving("serve", "--port", "0", CAIRN_DATABASE_URL=owner_url, PYTHONHASHSEED="1") as other:
        for era, methods in (
            ("modern", ["server/discover", *(method for each in _LISTS.values() for method in each)]),
            ("legacy", ["initialize", *(method for each in _LISTS.values() for method in each)]),
        ):
            for method in methods:
                answers = [
                    await _answer(tenant, method, era=era, token=token, service=service)
                    for service in (tenant.service, other, tenant.service, other)
                ]
                assert {answer.status for answer in answers} == {200}
                assert len({answer.body for answer in answers}) == 1, (era, method)


async def test_the_tools_are_listed_in_the_order_of_their_use(tenant: Tenant) -> None:
    for era in ("modern", "legacy"):
        tools = (await _answer(tenant, "tools/list", era=era)).json["result"]["tools"]
        assert [tool["name"] for tool in tools] == [
            "list_walkthroughs",
            "select_walkthrough",
            "next_walkthrough_step",
            "get_walkthrough_status",
            "review_walkthrough_step",
        ]
