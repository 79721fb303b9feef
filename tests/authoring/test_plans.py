"""What an author asks about people finds them by an index, whoever else there is; each with one statement."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import asyncpg
import pytest
from sqlalchemy import event

from adapters.postgres.authoring import PostgresWalkthroughStore
from adapters.postgres.connections import Access, Database
from domain.tenancy import OrganizationId, WalkthroughId

# Two organisations with 100 walkthroughs each, on two servers, and 200 people in each of the first ten. Foreign keys
# and triggers are off, for speed.
_CROWD = """
set session_replication_role = replica;
insert into mcp_server_walkthroughs
select 'o' || o, 's' || s, 'w' || w, 1, true, 1
  from generate_series(1, 2) o, generate_series(1, 2) s, generate_series(1, 100) w;
insert into walkthrough_progress
select 'o' || o, 's' || u % 2 + 1, 'u' || u, 'w' || w, u % 3 + 1, 1, 1, 'n' || u % 5, '{}', 'in_progress', 1, 1, null
  from generate_series(1, 2) o, generate_series(1, 10) w, generate_series(1, 200) u;
reset session_replication_role;
"""


@pytest.fixture
async def crowded_url(owner_url: str, owner: asyncpg.Connection) -> AsyncIterator[str]:
    await owner.execute(_CROWD)
    await owner.execute("vacuum analyze walkthrough_progress, mcp_server_walkthroughs")
    yield owner_url
    await owner.execute("set session_replication_role = replica")
    await owner.execute("delete from walkthrough_progress; delete from mcp_server_walkthroughs")


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


@pytest.mark.parametrize("name", ["people", "standings"])
async def test_people_of_one_walkthrough_are_counted_without_reading_others(
    crowded_url: str, owner: asyncpg.Connection, name: str
) -> None:
    sent: list[tuple[str, Any]] = []
    async with Database(Access(crowded_url, assume_role=True)) as database:
        assert database._engine is not None

        def note(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
            sent.append((statement, parameters))

        event.listen(database._engine.sync_engine, "before_cursor_execute", note)
        ask: Callable[..., Any] = getattr(PostgresWalkthroughStore(database), name)
        counted = await ask(OrganizationId("o1"), WalkthroughId("w7"))
    if name == "people":
        assert sum(each.mid_way for each in counted.values()) == 200
    else:
        assert sum(each.people for each in counted) == 200
    (whose, whose_parameters), (statement, parameters) = sent
    async with owner.transaction():
        await owner.execute("set local role cairn_service")
        await owner.execute(whose, *whose_parameters)
        explained = await owner.fetchval(f"explain (analyze, timing off, format json) {statement}", *parameters)
    nodes = list(_nodes(json.loads(explained)[0]["Plan"]))
    assert "Seq Scan" not in {
        node["Node Type"] for node in nodes if node.get("Relation Name") == "walkthrough_progress"
    }
    assert "walkthrough_progress_by_walkthrough" in {node.get("Index Name") for node in nodes}
    read = [
        node["Actual Rows"] * node["Actual Loops"] + node.get("Rows Removed by Filter", 0)
        for node in nodes
        if node.get("Relation Name") == "walkthrough_progress"
    ]
    assert read == [200]
