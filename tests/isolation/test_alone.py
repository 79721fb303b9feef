"""What two organisations do in turns, at random: each fares as if it were alone.

All that they have bears the same names and the same ids, so that nothing but the organisation keeps them apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from adapters.postgres.connections import Database
from domain.errors import CairnError
from domain.progress import Outcome
from domain.tenancy import Caller, Server
from domain.walkthrough import PublishPolicy
from tests.fakes import CountedIds, SetClock
from tests.worlds import World, in_memory, on_postgres

pytestmark = pytest.mark.usefixtures("first_wall_alone")

_DEEDS = 60
_PEOPLE = ("ada@example.com", "bob@example.com")
_KEYS = ("tour", "quickstart")
_STEPS = (("a", "b", "c"), ("b", "a", "d"), ("a", "d"))

Deed = Callable[["Organization"], Any]


class SameIds(CountedIds):
    """The same ids for everything of each organisation, but for the organisation's own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def new(self, prefix: str) -> str:
        return f"org_{self._name}" if prefix == "org" else super().new(prefix)


@dataclass
class Organization:
    """One of them, in a world."""

    world: World
    name: str
    servers: list[Server] = field(default_factory=list)
    handles: dict[tuple[int, str, str], str] = field(default_factory=dict)

    @property
    def slugs(self) -> tuple[str, ...]:
        return tuple(each.slug for each in self.servers)

    async def open(self) -> None:
        # Host names are the one thing that cannot be the same.
        self.servers = [await self.world.server(self.name, f"{self.name}-{place}") for place in ("here", "there")]
        for key in _KEYS:
            await self.publish(key, 0, PublishPolicy.KEEP)

    async def publish(self, key: str, content: int, policy: PublishPolicy) -> str:
        version = await self.world.publish(
            *_STEPS[content], key=key, title=f"The {key}", organization=self.name, policy=policy, servers=self.slugs
        )
        return f"published {version}"

    async def caller(self, place: int, email: str) -> Caller:
        return await self.world.caller(self.servers[place], email)

    async def select(self, place: int, email: str, key: str, restart: bool) -> str:
        lesson = await self.world.learning.select(
            await self.caller(place, email), key, restart=restart, to_latest=False
        )
        return self._told(lesson, place, email, key)

    async def next(self, place: int, email: str, key: str, outcome: Outcome) -> str:
        handle = self.handles.get((place, email, key))
        lesson = await self.world.learning.next(
            await self.caller(place, email), handle, key, outcome=outcome, note=None
        )
        return self._told(lesson, place, email, key)

    def _told(self, lesson: Any, place: int, email: str, key: str) -> str:
        if handle := lesson.progress.handle():
            self.handles[place, email, key] = str(handle)
        step = lesson.step.text.key if lesson.step else None
        return f"{lesson.told} {step} of {lesson.version.number}, revision {lesson.progress.revision}, {handle}"

    async def list(self, place: int, email: str) -> str:
        entries = await self.world.learning.list(await self.caller(place, email))
        return str([(e.standing.key, e.standing.shown, e.current_step_number, e.completed_steps) for e in entries])

    async def count(self, key: str) -> str:
        return str(await self.world.insight.funnel(self.name, key))

    async def show(self, key: str, is_enabled: bool) -> str:
        change = self.world.authoring.enable if is_enabled else self.world.authoring.disable
        return str(await change(self.name, key, self.slugs))

    async def revoke(self, place: int, email: str) -> str:
        return str(await self.world.identity.revoke_all_of(self.servers[place].key, email))


def _deed(chance: random.Random) -> Deed:
    place, email, key = chance.randrange(2), chance.choice(_PEOPLE), chance.choice(_KEYS)
    outcome, policy = chance.choice(list(Outcome)), chance.choice(list(PublishPolicy))
    content, flag = chance.randrange(len(_STEPS)), chance.random() < 0.2
    deeds: list[tuple[int, Deed]] = [
        (30, lambda its: its.next(place, email, key, outcome)),
        (15, lambda its: its.select(place, email, key, flag)),
        (5, lambda its: its.list(place, email)),
        (3, lambda its: its.count(key)),
        (3, lambda its: its.publish(key, content, policy)),
        (2, lambda its: its.show(key, not flag)),
        (2, lambda its: its.revoke(place, email)),
    ]
    return chance.choices([deed for _, deed in deeds], [weight for weight, _ in deeds])[0]


async def _done(deed: Deed, its: Organization) -> str:
    try:
        return str(await deed(its))
    except CairnError as error:
        return type(error).__name__


@pytest.mark.promise("tenant.isolation")
@pytest.mark.parametrize("seed", range(3))
async def test_an_organisation_fares_as_if_it_were_alone(database: Database, seed: int) -> None:
    chance = random.Random(seed)  # for the same story again
    clock = SetClock()
    shared = on_postgres(database).library  # with all that it keeps in memory
    together, alone = [], []
    for name in ("acme", "globex"):
        world = on_postgres(database, clock=clock, ids=SameIds(name))
        together.append(Organization(replace(world, library=shared), name))
        alone.append(Organization(in_memory(clock=clock, ids=SameIds(name)), name))
    for its in (*together, *alone):
        await its.open()
    for _ in range(_DEEDS):
        clock.time += 60_000
        which, deed = chance.randrange(2), _deed(chance)
        assert await _done(deed, together[which]) == await _done(deed, alone[which])
