"""Walkthroughs on servers: put there, shown and hidden, brought into order, and taken away."""

from __future__ import annotations

import pytest

from domain.errors import InvalidValue, NotFound
from domain.tenancy import Caller, Server
from tests.worlds import World


@pytest.fixture
async def guides(world: World) -> Server:
    """A server with the walkthroughs one, two and three, and another organisation with its own."""
    server = await world.server()
    await world.server(slug="labs")
    await world.server("globex", "foreign")
    for key in ("one", "two", "three"):
        await world.publish("a", key=key, title=key)
    await world.publish("a", key="one", organization="globex", servers=("foreign",))
    return server


async def listed(world: World, server: Server) -> list[str]:
    return [entry.standing.key for entry in await world.learning.list(Caller(server.key, None))]


async def test_a_disabled_walkthrough_keeps_its_place(world: World, guides: Server) -> None:
    assert await world.authoring.disable("acme", "two", ["guides"]) == [True]
    assert await world.authoring.disable("acme", "two", ["guides"]) == [False]
    assert await listed(world, guides) == ["one", "three"]
    assert await world.authoring.enable("acme", "two", ["guides"]) == [True]
    assert await world.authoring.enable("acme", "two", ["guides"]) == [False]
    assert await listed(world, guides) == ["one", "two", "three"]


async def test_what_is_on_no_such_server_is_not_enabled_on_any(world: World, guides: Server) -> None:
    await world.authoring.disable("acme", "one", ["guides"])
    with pytest.raises(NotFound, match="walkthrough 'one' is not on server 'labs': assign it first"):
        await world.authoring.enable("acme", "one", ["guides", "labs"])
    with pytest.raises(NotFound):
        await world.authoring.enable("acme", "one", ["guides", "foreign"])
    assert await listed(world, guides) == ["two", "three"]


async def test_an_unassigned_walkthrough_is_gone_once(world: World, guides: Server) -> None:
    assert await world.authoring.unassign("acme", "one", ["guides", "labs"]) == [True, False]
    assert await world.authoring.unassign("acme", "one", ["guides"]) == [False]
    assert await listed(world, guides) == ["two", "three"]
    foreign = await world.tenancy.server("foreign")
    assert await listed(world, foreign) == ["one"]
    await world.authoring.assign("acme", "one", [("guides", None)])
    assert await listed(world, guides) == ["two", "three", "one"]


async def test_those_named_come_first_and_the_others_keep_their_order(world: World, guides: Server) -> None:
    assert await world.authoring.order("acme", "guides", ["three"]) == ["three", "one", "two"]
    assert await listed(world, guides) == ["three", "one", "two"]
    assert await world.authoring.order("acme", "guides", ["two", "one"]) == ["two", "one", "three"]
    assert await world.authoring.order("acme", "guides", []) == ["two", "one", "three"]
    assert await world.authoring.order("acme", "labs", []) == []
    assert await listed(world, guides) == ["two", "one", "three"]


async def test_an_order_that_names_what_is_not_there_changes_nothing(world: World, guides: Server) -> None:
    with pytest.raises(NotFound):
        await world.authoring.order("acme", "guides", ["three", "four"])
    with pytest.raises(NotFound):
        await world.authoring.order("acme", "labs", ["one"])
    with pytest.raises(NotFound):
        await world.authoring.order("acme", "foreign", ["one"])
    with pytest.raises(InvalidValue):
        await world.authoring.order("acme", "guides", ["three", "three"])
    assert await listed(world, guides) == ["one", "two", "three"]
