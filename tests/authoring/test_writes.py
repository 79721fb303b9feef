"""What an edit costs: as many statements for five hundred steps as for five, and no row written that did not change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import asyncpg
import pytest
from sqlalchemy import event

from adapters.postgres.connections import Access, Database
from domain.draft import Edit, InsertStep, MoveStep, RemoveStep, RenameStep, ReplaceStep, SetDetails
from domain.tenancy import StepId
from domain.walkthrough import PublishPolicy, Step, StepText
from tests.worlds import World, manuscript, on_postgres

_BY = "ada@example.com"
# Notes each row of a step that is written, and whether it was its link, its texts, or both.
_WATCH = """
create table written (id text not null, what text not null);
create function note_written() returns trigger language plpgsql security definer as $$
begin
    insert into written values (coalesce(new.id, old.id), case
        when tg_op = 'INSERT' then 'added' when tg_op = 'DELETE' then 'removed'
        when new.next_step_id is distinct from old.next_step_id then 'link' else 'text' end);
    return null;
end $$;
create trigger note_written after insert or update or delete on walkthrough_steps
    for each row execute function note_written();
"""
_UNWATCH = "drop trigger note_written on walkthrough_steps; drop function note_written(); drop table written"


class CountingDatabase(Database):
    """Counts the statements of its transactions. One sent for many rows is one."""

    statements = 0

    async def __aenter__(self) -> CountingDatabase:
        await super().__aenter__()
        assert self._engine is not None

        def count(*_: object) -> None:
            self.statements += 1

        event.listen(self._engine.sync_engine, "before_cursor_execute", count)
        return self


@pytest.fixture
async def counted(owner_url: str, owner: asyncpg.Connection) -> AsyncIterator[CountingDatabase]:
    await owner.execute(_WATCH)
    try:
        async with CountingDatabase(Access(owner_url, assume_role=True)) as opened:
            yield opened
    finally:
        await owner.execute(_UNWATCH)


async def _begun(world: World, steps: int) -> None:
    """A draft of so many steps, k0 and so on, edited once; the first edit writes it."""
    await world.server()
    await world.publish(*(f"k{number}" for number in range(steps)))
    await world.authoring.edit("acme", "tour", (2, 0), [SetDetails(title="Begun")], by=_BY)


def _step(key: str) -> Step:
    return Step(StepId("-"), StepText(key, "Title", "Do it."))


# What is written of the steps, beside the draft's own row, and how often something is sent: whose rows are meant; the
# walkthrough's row, its versions, steps and edits read; the draft's row, the steps and the edit written, and the
# walkthrough's row at last.
COSTS: dict[str, tuple[Sequence[Edit], list[str], int]] = {
    "insert": ([InsertStep(_step("new"), "k1")], ["added", "link"], 10),
    "insert first": ([InsertStep(_step("new"), None)], ["added"], 9),
    "insert last": ([InsertStep(_step("new"), "LAST")], ["added", "link"], 10),
    "remove": ([RemoveStep("k2")], ["link", "removed"], 10),
    "remove the first": ([RemoveStep("k0")], ["removed"], 9),
    "move": ([MoveStep("k1", "k3")], ["link", "link", "link"], 9),
    "move to the beginning": ([MoveStep("k3", None)], ["link", "link"], 9),
    "move to the end": ([MoveStep("k1", "LAST")], ["link", "link", "link"], 9),
    "replace": ([ReplaceStep(StepText("k2", "Other", "Other."))], ["text"], 9),
    "rename": ([RenameStep("k2", "new")], ["text"], 9),
    "details": ([SetDetails(description="Other.")], [], 8),
    "nothing": ([SetDetails(description="Shows around.")], [], 5),
}


@pytest.mark.parametrize("size", [5, 500])
@pytest.mark.parametrize("name", COSTS)
async def test_an_edit_writes_three_links_at_most_and_takes_a_constant_number_of_statements(
    counted: CountingDatabase, owner: asyncpg.Connection, name: str, size: int
) -> None:
    world = on_postgres(counted)
    await _begun(world, size - 1)
    given, written, statements = COSTS[name]
    last = f"k{size - 2}"
    edits = [_with_last(edit, last) for edit in given]
    draft = await world.authoring.draft("acme", "tour")
    await owner.execute("delete from written")
    before = counted.statements
    await world.authoring.edit("acme", "tour", (2, 1), edits, by=_BY)
    # One more finds the organisation.
    assert counted.statements - before - 1 == statements
    rows = await owner.fetch("select id, what from written order by what, id")
    assert [what for _, what in rows] == written
    assert len({id for id, _ in rows}) == len(rows)
    # Nothing but what differs was written, and all of that.
    after = await world.authoring.draft("acme", "tour")
    links = {link.id: link.next_step_id for link in draft.chain.links()}
    differ = {link.id for link in after.chain.links() if link.id in links and links[link.id] != link.next_step_id}
    assert differ == {id for id, what in rows if what == "link"}


def _with_last(edit: Edit, last: str) -> Edit:
    match edit:
        case InsertStep(step, "LAST"):
            return InsertStep(step, last)
        case MoveStep(step_key, "LAST"):
            return MoveStep(step_key, last)
    return edit


@pytest.mark.parametrize("size", [2, 100])
async def test_a_push_takes_as_many_statements_however_many_edits_it_comes_to(
    counted: CountingDatabase, owner: asyncpg.Connection, size: int
) -> None:
    world = on_postgres(counted)
    await _begun(world, size)
    others = manuscript(*(f"n{number}" for number in range(size)))
    before = counted.statements
    await world.authoring.push("acme", others, publish=PublishPolicy.KEEP, servers=[], by=_BY, is_forced=True)
    # The organisation; what is latest as it begins, in four; the walkthrough's row begun, read and written; versions,
    # steps and edits read; the draft's row, its edits, steps removed, added and placed; the publish and the ledger.
    assert counted.statements - before == 20
