"""A simulated month: a script says who does what and when, and the funnel is exactly what the script put in.

The expectation is added up from the script; neither events nor progress are looked at.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import pytest

from adapters.postgres.connections import Database
from application.insight import Funnel, FunnelStep
from application.learning import Lesson
from application.ports import AttemptCounts, StepCounts, StuckNote
from domain.progress import Outcome
from domain.tenancy import Caller, Millis, Server
from domain.walkthrough import PublishPolicy
from tests.worlds import World, on_postgres

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000
START = 1_790_000_000_000
END = START + 31 * DAY
SERVERS = ("guides", "labs")
PEOPLE = 80
STEPS = {
    1: ("install", "sign-in", "call", "errors", "deploy"),
    2: ("install", "sign-in", "call", "errors", "test", "deploy"),
    3: ("install", "call", "sign-in", "retries", "test", "deploy"),
}
# The third moves everyone who is mid-way by their next call. Nobody acts across that day but the movers.
PUBLISHED = {1: (0, PublishPolicy.KEEP), 2: (10 * DAY, PublishPolicy.KEEP), 3: (20 * DAY, PublishPolicy.CARRY_OVER)}


@dataclass(frozen=True)
class Act:
    """After `wait` milliseconds: done, skipped or stuck; or back, which asks where one stands."""

    wait: int
    does: str
    note: str | None = None


@dataclass(frozen=True)
class Visit:
    """What is done at a step. Without acts, the learner was last seen there."""

    key: str
    acts: tuple[Act, ...]

    def left(self) -> str | None:
        return self.acts[-1].does if self.acts and self.acts[-1].does in ("done", "skipped") else None


@dataclass(frozen=True)
class Stay:
    """A stretch on one version. What begins a second one is the last act of the first, which moves the learner."""

    version: int
    begins: int
    visits: tuple[Visit, ...]

    def ends(self) -> int:
        return self.begins + sum(act.wait for visit in self.visits for act in visit.acts)


@dataclass(frozen=True)
class Attempt:
    person: int
    server: str
    stays: tuple[Stay, ...]
    completes: bool = False
    is_given_up: bool = False


# ---------------------------------------------------------------------------------------------------- the script


def script() -> list[Attempt]:
    chance = random.Random(4)
    attempts = []
    for person in range(PEOPLE):
        server = chance.choice(SERVERS)
        begins = START + chance.randrange(8 * DAY) + chance.choice([0, 10 * DAY, 20 * DAY])
        version = 1 + (begins - START) // (10 * DAY)
        attempt = _attempt(chance, person, server, version, begins, until=begins + 20 * HOUR)
        attempts.append(attempt)
        # To begin again where nothing is completed changes nothing.
        if chance.random() < 0.4 and not attempt.completes and attempt.stays[0].visits[0].left():
            begins = attempt.stays[0].ends() + chance.choice([SECOND, HOUR])
            attempts[-1] = Attempt(person, server, attempt.stays, is_given_up=True)
            version = 1 + (begins - START) // (10 * DAY)
            attempts.append(_attempt(chance, person, server, version, begins, until=begins + 20 * HOUR))
    return [*attempts, *_movers()]


def _attempt(chance: random.Random, person: int, server: str, version: int, begins: int, *, until: int) -> Attempt:
    stops_at = chance.choice([None, None, *range(len(STEPS[version]))])
    left = until - begins
    visits = []
    for number, key in enumerate(STEPS[version]):
        acts = []
        if chance.random() < 0.15:
            acts += [
                Act(chance.randrange(MINUTE, 10 * MINUTE), "stuck", chance.choice([None, f"No {key} for {person}"]))
            ]
        if chance.random() < 0.15:
            acts += [Act(chance.choice([30 * MINUTE, 30 * MINUTE + 1, 2 * HOUR]), "back")]
        if number != stops_at:
            wait = chance.choice([SECOND, 3 * SECOND, 3 * SECOND + 1, *(MINUTE * n + person for n in range(1, 30, 4))])
            acts += [Act(wait, "skipped" if chance.random() < 0.1 else "done")]
        left -= sum(act.wait for act in acts)
        assert left > 0, "the script runs over a publish"
        visits.append(Visit(key, tuple(acts)))
        if number == stops_at:
            break
    return Attempt(person, server, (Stay(version, begins, tuple(visits)),), completes=stops_at is None)


def _movers() -> Iterator[Attempt]:
    """Each begins on version 2 and comes back after version 3 is there."""
    begins = START + 19 * DAY
    quick, back = Act(MINUTE, "done"), Act(2 * DAY, "back")
    # Has done the first two, and now finds them in another order: 'call' comes first, and 'sign-in' is passed over.
    on_2 = Stay(2, begins, (Visit("install", (quick,)), Visit("sign-in", (quick,)), Visit("call", (back,))))
    rest = tuple(Visit(key, (quick,)) for key in ("call", "retries", "test", "deploy"))
    yield Attempt(PEOPLE, "guides", (on_2, Stay(3, on_2.ends(), rest)), completes=True)
    # Stops where they landed.
    yield Attempt(PEOPLE + 1, "labs", (on_2, Stay(3, on_2.ends(), (Visit("call", ()),))))
    # Has completed 'errors', which version 3 does not have.
    far = (*on_2.visits[:2], Visit("call", (quick,)), Visit("errors", (quick,)), Visit("test", (back,)))
    on_2 = Stay(2, begins, far)
    stuck = Visit("retries", (Act(5 * MINUTE, "stuck", "Where are the errors?"), Act(31 * MINUTE, "skipped")))
    on_3 = Stay(3, on_2.ends(), (stuck, Visit("test", (quick,)), Visit("deploy", ())))
    yield Attempt(PEOPLE + 2, "guides", (on_2, on_3))
    # Comes back by saying that 'call' is done. 'errors' would be next, but what is shown is version 3's 'retries'.
    on_2 = Stay(2, begins, (*far[:2], Visit("call", (Act(2 * DAY, "done"),))))
    on_3 = Stay(3, on_2.ends(), (Visit("retries", (quick,)), Visit("test", ())))
    yield Attempt(PEOPLE + 3, "labs", (on_2, on_3))


# ------------------------------------------------------------------------------------------------ acting it out


async def act_out(world: World, attempts: Sequence[Attempt]) -> None:
    """Everything in the order of time, whoever does it."""
    servers: dict[str, Server] = {slug: await world.server(slug=slug) for slug in SERVERS}
    callers: dict[int, Caller] = {}
    handles: dict[int, str] = {}
    for each in attempts:
        if each.person not in callers:
            callers[each.person] = await world.caller(servers[each.server], f"{each.person}@example.com")

    async def begin(attempt: Attempt) -> None:
        restart = attempt.person in handles
        remember(
            attempt, await world.learning.select(callers[attempt.person], "tour", restart=restart, to_latest=False)
        )

    async def do(attempt: Attempt, act: Act) -> None:
        caller = callers[attempt.person]
        if act.does == "back":
            lesson = await world.learning.select(caller, "tour", restart=False, to_latest=False)
        else:
            handle = handles[attempt.person]
            lesson = await world.learning.next(caller, handle, None, outcome=Outcome(act.does), note=act.note)
        remember(attempt, lesson)

    def remember(attempt: Attempt, lesson: Lesson) -> None:
        handles[attempt.person] = str(lesson.progress.handle())

    happenings = [
        (START + at, lambda number=number, policy=policy: world.publish(*STEPS[number], policy=policy, servers=SERVERS))
        for number, (at, policy) in PUBLISHED.items()
    ]
    for attempt in attempts:
        happenings.append((attempt.stays[0].begins, lambda attempt=attempt: begin(attempt)))
        for stay in attempt.stays:
            now = stay.begins
            for visit in stay.visits:
                for act in visit.acts:
                    now += act.wait
                    happenings.append((now, lambda attempt=attempt, act=act: do(attempt, act)))
    # Sorting is stable: what one person does at one moment stays in order.
    for now, happen in sorted(happenings, key=lambda each: each[0]):
        world.clock.time = now
        await happen()
    world.clock.time = END


# ---------------------------------------------------------------------------------------------- what to expect


@dataclass(frozen=True)
class Counted:
    """What counts of an attempt: all of it, or its stay on one version."""

    attempt: Attempt
    stays: tuple[Stay, ...]

    def state(self) -> str:
        if self.stays[-1] is not self.attempt.stays[-1]:
            return "moved_on"
        if self.attempt.completes:
            return "completed"
        if self.attempt.is_given_up:
            return "restarted"
        return "abandoned" if self.stays[-1].ends() + 14 * DAY <= END else "in_progress"

    def visits(self, key: str | None = None) -> list[Visit]:
        return [visit for stay in self.stays for visit in stay.visits if key in (None, visit.key)]

    def is_left(self, key: str | None, *how: str) -> bool:
        return any(visit.left() in how for visit in self.visits(key))

    def is_stuck(self, key: str | None = None) -> bool:
        return any(act.does == "stuck" for visit in self.visits(key) for act in visit.acts)

    def is_resumed(self) -> bool:
        return any(act.wait > 30 * MINUTE for visit in self.visits() for act in visit.acts)

    def too_fast(self) -> set[str]:
        """The steps, but for the first of a stay, that were left within 3 seconds of coming to them."""
        return {
            visit.key
            for stay in self.stays
            for visit in stay.visits[1:]
            if visit.left() and sum(act.wait for act in visit.acts) <= 3 * SECOND
        }

    def active(self, key: str) -> int | None:
        waits = [act.wait for visit in self.visits(key) for act in visit.acts if act.wait <= 30 * MINUTE]
        return sum(waits) if waits and self.is_left(key, "done") else None


def counted(
    attempts: Sequence[Attempt], version: int | None, server: str | None, since: int, until: int
) -> list[Counted]:
    found = []
    for attempt in attempts:
        stays = tuple(stay for stay in attempt.stays if version in (None, stay.version))
        if stays and server in (None, attempt.server) and since <= stays[0].begins < until:
            found.append(Counted(attempt, stays))
    return found


def expected_attempts(all_: Sequence[Counted]) -> AttemptCounts:
    states = [each.state() for each in all_]
    return AttemptCounts(
        people=len({each.attempt.person for each in all_}),
        started=len(all_),
        completed=states.count("completed"),
        in_progress=states.count("in_progress"),
        abandoned=states.count("abandoned"),
        restarted=states.count("restarted"),
        moved_on=states.count("moved_on"),
        resumed=sum(each.is_resumed() for each in all_),
        skipped=sum(each.is_left(None, "skipped") for each in all_),
        stuck=sum(each.is_stuck() for each in all_),
        too_fast=sum(bool(each.too_fast()) for each in all_),
    )


def expected_step(all_: Sequence[Counted], key: str) -> StepCounts:
    times = [time for each in all_ if (time := each.active(key)) is not None]
    return StepCounts(
        key=key,
        reached=sum(bool(each.visits(key)) for each in all_),
        completed=sum(each.is_left(key, "done", "skipped") for each in all_),
        here=sum(each.state() == "in_progress" and each.visits()[-1].key == key for each in all_),
        skipped=sum(each.is_left(key, "skipped") for each in all_),
        stuck=sum(each.is_stuck(key) for each in all_),
        too_fast=sum(key in each.too_fast() for each in all_),
        timed=len(times),
        median_active=Millis(int(statistics.median(times))) if times else None,
    )


def expected_notes(all_: Sequence[Counted]) -> list[StuckNote]:
    notes = []
    for each in all_:
        for stay in each.stays:
            now = stay.begins
            for visit in stay.visits:
                for act in visit.acts:
                    now += act.wait
                    if act.note:
                        notes.append(StuckNote(visit.key, stay.version, act.note, Millis(now)))
    return sorted(notes, key=lambda note: -note.reported_at)


def titles(version: int | None) -> Mapping[str, int]:
    return {key: number for number, key in enumerate(STEPS[version or 3], start=1)}


@pytest.mark.promise("numbers")
async def test_a_months_numbers_are_what_the_script_put_in(database: Database) -> None:
    attempts = script()
    world = on_postgres(database)
    await act_out(world, attempts)
    seen: dict[str, int] = {}
    ranges = [(None, None), (START + 5 * DAY, START + 15 * DAY), (START + 20 * DAY, None)]
    for version, server, (since, until) in product((None, 1, 2, 3), (None, *SERVERS), ranges):
        funnel: Funnel = await world.insight.funnel(
            "acme",
            "tour",
            server=server,
            version=version,
            since=since and Millis(since),
            until=until and Millis(until),
        )
        all_ = counted(attempts, version, server, since or 0, until or END)
        which = (version, server, since, until)
        assert (which, funnel.attempts) == (which, expected_attempts(all_))
        shown = titles(version)
        keys = [*shown, *sorted({visit.key for each in all_ for visit in each.visits()} - set(shown))]
        assert (which, list(funnel.steps)) == (
            which,
            [
                FunnelStep(shown.get(key), f"Step {key}" if key in shown else None, expected_step(all_, key))
                for key in keys
            ],
        )
        assert (which, list(funnel.notes)) == (which, expected_notes(all_))
        for name in AttemptCounts.__slots__:
            seen[name] = seen.get(name, 0) + getattr(funnel.attempts, name)
    assert all(seen.values()), f"the script leaves something out: {seen}"
