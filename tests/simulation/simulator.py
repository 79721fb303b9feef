"""People whose assistants misbehave, driven by a seed against a real service over raw HTTP.

A person has one assistant or two at once; an assistant has habits (`Habit`), a memory of the handles it holds, and a
random source of its own, so that a seed draws the same calls again for as long as it gets the same answers. Every
call goes out in a protocol era drawn for it, under a tag that the call log keeps (as the client's version), and is
kept as a `Call`: what was asked, when, and what came back. Nothing here judges; `test_simulation.py` does.

Handles do not say whose they are, so `open_stage` sends pathfinders ahead, through each walkthrough several times and
in both versions: what they were shown is what an assistant that skips ahead has seen somewhere before.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count, pairwise
from typing import Any

import httpx2
import pydantic_core

from tests.serving.conftest import Tenant, call

# Keys are shared between walkthroughs on purpose: a handle of the one must not count in the other. Of the first
# version one step is gone and the others stood in another order.
WALKTHROUGHS = {
    "tour": (("two", "gone", "one", "three"), ("one", "two", "three")),
    "setup": (("one", "gone", "two"), ("one", "two", "three", "four", "five")),
    "hello": (("gone", "one"), ("one",)),
}
VERSION = 2
_PATHFINDER_ATTEMPTS = 2
_MODERN, _HANDSHAKE = "2026-07-28", "2025-11-25"
_PEOPLE_AT_ONCE = 8
_CONNECTIONS = 64  # more than people and their batches ever want at once: a call that waits for one proves nothing
_CALLS = 24  # that a person's assistants make, or a few more: enough to complete most walkthroughs, and begin again
_HANGS_UP_AT = ["http11.send_request_body.complete", "http11.receive_response_headers.complete"]


class Habit(StrEnum):
    """A way in which an assistant misbehaves."""

    SKIPS_AHEAD = "skips_ahead"
    BATCHES = "batches"
    DOUBLES = "doubles"
    FORGETS = "forgets"
    MIXES_UP = "mixes_up"
    RETRIES = "retries"


@dataclass(frozen=True)
class Named:
    """What a handle names, as whoever was shown it knows."""

    walkthrough: str
    version: int
    step: str
    attempt: int


@dataclass(frozen=True)
class Standpoint:
    """A walkthrough in progress, as the text of an error names it."""

    walkthrough: str
    number: str
    total: str
    step: str
    handle: str


_STANDS = re.compile(
    r'"The (?P<walkthrough>\w+)" is at step (?P<number>\d+) of (?P<total>\d+): '
    r'Step (?P<step>\w+) \(completed_step="(?P<handle>\S+)"\)'
)


@dataclass
class Call:
    """One call, and what came back of it: nothing, where the client hung up."""

    tag: str
    tool: str
    arguments: dict[str, Any]
    revision: str
    sent: int = 0
    received: int | None = None
    result: dict[str, Any] | None = None
    error: str | None = None
    text: str = ""
    hangs_up_at: str | None = None
    """The moment at which the client hangs up, in the words of httpcore's trace."""

    @property
    def is_answered(self) -> bool:
        return self.received is not None

    @property
    def is_unread(self) -> bool:
        """Whether it may have done what nobody was told of: so too when time ran out behind its commit."""
        return not self.is_answered or self.error_code == "temporarily_unavailable"

    @property
    def error_code(self) -> str | None:
        return self.error.partition(":")[0] if self.error else None

    @property
    def status(self) -> str | None:
        return self.result.get("status") if self.result else None

    def standpoints(self) -> list[Standpoint]:
        """Where the person stands in walkthroughs in progress, as the text of an error tells it."""
        return [Standpoint(**found.groupdict()) for found in _STANDS.finditer(self.error or "")]

    def __str__(self) -> str:
        came_back = self.status or self.error or ("hung up" if not self.is_answered else "rows")
        step = (self.result or {}).get("step") or {}
        progress = (self.result or {}).get("progress") or {}
        where = f" attempt {progress.get('attempt')} step {step.get('number')}" if progress else ""
        return (
            f"{self.sent}-{self.received} {self.tag} {self.revision} {self.tool} {self.arguments} → {came_back}{where}"
        )


class Misanswered(AssertionError):
    """An answer that no assistant should ever get: no tool result at all."""


class _HungUp(Exception):
    pass


@dataclass
class Stage:
    """What all simulated people share: one tenant, its walkthroughs, and the handles that others were shown."""

    tenant: Tenant
    http: httpx2.AsyncClient
    ids: dict[str, str] = field(default_factory=dict)
    """Each walkthrough's id."""
    handles: dict[str, Named] = field(default_factory=dict)
    """All handles that anyone was shown, or can have made up so that they read like one."""
    pathfinder: list[str] = field(default_factory=list)
    """Those that the pathfinders were shown, in that order."""
    ticks: Iterator[int] = field(default_factory=lambda: count(1))

    def name(self, handle: str, named: Named) -> None:
        assert self.handles.setdefault(handle, named) == named, f"{handle} names two things: {named}"

    async def send(self, asked: Call, token: str) -> None:
        """Sends one call and keeps its answer.

        Raises:
            Misanswered: for anything but a tool's result.
        """
        message = call(asked.tool, **asked.arguments)
        headers = {
            "host": self.tenant.host,
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "authorization": f"Bearer {token}",
            "mcp-protocol-version": asked.revision,
            "user-agent": f"simulated/{asked.tag}",
        }
        if asked.revision == _MODERN:
            message["params"]["_meta"] = {
                "io.modelcontextprotocol/protocolVersion": _MODERN,
                "io.modelcontextprotocol/clientInfo": {"name": "simulated", "version": asked.tag},
                "io.modelcontextprotocol/clientCapabilities": {},
            }
            headers |= {"mcp-method": "tools/call", "mcp-name": asked.tool, "user-agent": "another/1"}

        async def hang_up(moment: str, _: dict[str, Any]) -> None:
            if moment == asked.hangs_up_at:
                raise _HungUp

        asked.sent = next(self.ticks)
        try:
            answer = await self.http.post(
                self.tenant.service.url,
                headers=headers,
                json=message,
                extensions={"trace": hang_up} if asked.hangs_up_at else None,
            )
        except _HungUp:
            return
        decoded = pydantic_core.from_json(answer.content) if answer.content else {}
        if answer.status_code != 200 or "result" not in decoded:
            raise Misanswered(f"{asked.tag} {asked.tool} {asked.arguments}: {answer.status_code} {answer.text}")
        result = decoded["result"]
        asked.text = result["content"][0]["text"]
        if result.get("isError"):
            asked.error = asked.text
            for at in asked.standpoints():
                # Nobody may have been shown this one: whoever began the attempt may have hung up.
                attempt = int(at.handle.split(".")[3])
                self.name(at.handle, Named(at.walkthrough, VERSION, at.step, attempt))
        else:
            asked.result = result["structuredContent"]
            self._remember(asked.result)
        asked.received = next(self.ticks)

    def _remember(self, result: dict[str, Any]) -> None:
        step = result.get("step")
        if step and step["handle"]:
            walkthrough = result["walkthrough"]
            named = Named(walkthrough["key"], walkthrough["version"], step["key"], result["progress"]["attempt"])
            self.name(step["handle"], named)


@asynccontextmanager
async def open_stage(tenant: Tenant) -> AsyncIterator[Stage]:
    """Publishes both versions and sends a pathfinder through each; then the walkthroughs change no more."""
    limits = httpx2.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
    async with httpx2.AsyncClient(timeout=30, limits=limits) as http:
        stage = Stage(tenant, http)
        for version in range(1, VERSION + 1):
            for key, versions in WALKTHROUGHS.items():
                assert await tenant.publish(*versions[version - 1], key=key, title=f"The {key}") == version
            await _find_paths(stage, await Person.arrives(stage, f"pathfinder-{version}"))
        yield stage


async def _find_paths(stage: Stage, pathfinder: Person) -> None:
    for walkthrough in WALKTHROUGHS:
        for _ in range(_PATHFINDER_ATTEMPTS):
            told = await pathfinder.told("select_walkthrough", walkthrough=walkthrough, restart=True)
            stage.ids[walkthrough] = told["walkthrough"]["id"]
            while told["step"]:
                stage.pathfinder.append(told["step"]["handle"])
                told = await pathfinder.told("next_walkthrough_step", completed_step=told["step"]["handle"])


@dataclass
class Person:
    """Someone who signed in, and all calls that were ever made for them."""

    stage: Stage
    name: str
    token: str
    calls: list[Call] = field(default_factory=list)

    @classmethod
    async def arrives(cls, stage: Stage, name: str) -> Person:
        return cls(stage, name, await stage.tenant.token(f"{name}@example.com"))

    def means_to(self, tool: str, revision: str = _MODERN, **arguments: Any) -> Call:
        """A call that is not sent yet. None counts as absent, and is left out."""
        given = {name: value for name, value in arguments.items() if value is not None}
        return Call(f"{self.name}.{len(self.calls) + 1}", tool, given, revision)

    async def make(self, meant: Call) -> Call:
        self.calls.append(meant)
        meant.tag = f"{self.name}.{len(self.calls)}"
        await self.stage.send(meant, self.token)
        return meant

    async def told(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The result of a call that nothing is wrong with."""
        made = await self.make(self.means_to(tool, **arguments))
        assert made.result is not None, made
        return made.result


@dataclass
class Assistant:
    """One assistant of a person's: habits, a memory, and so many calls before it is put away."""

    person: Person
    random: random.Random
    habits: Sequence[Habit]
    walkthroughs: Sequence[str]
    calls_left: int
    held: dict[str, str] = field(default_factory=dict)
    """The handle of each walkthrough's step that it believes to be the current one."""
    completed: set[str] = field(default_factory=set)
    steps_shown: int = 0

    async def assist(self) -> None:
        while self.calls_left > 0:
            await self._turn()

    async def _turn(self) -> None:
        walkthrough = self.random.choice(self.walkthroughs)
        habit = self.random.choice(self.habits)
        chance = self.random.random()
        if walkthrough in self.completed:
            if chance < 0.5:
                await self._ask(habit, "select_walkthrough", walkthrough=walkthrough, restart=True)
            elif chance < 0.7:
                await self._next(habit, walkthrough, self._another_handle(walkthrough))
            elif chance < 0.8:
                await self._ask(habit, "select_walkthrough", walkthrough=walkthrough, version="latest")
            else:
                await self._look(habit, walkthrough)
        elif walkthrough not in self.held:
            if habit is Habit.FORGETS and chance < 0.6:
                await self._next(habit, walkthrough, None)
            else:
                await self._ask(habit, "select_walkthrough", walkthrough=self._spelling(walkthrough))
        elif chance < 0.1:
            await self._look(habit, walkthrough)
        elif chance < 0.15:
            await self._ask(habit, "select_walkthrough", walkthrough=walkthrough)
        elif chance < 0.2:
            await self._ask(habit, "select_walkthrough", walkthrough=walkthrough, restart=True)
        elif habit is Habit.SKIPS_AHEAD and chance < 0.7:
            await self._skip_ahead(walkthrough)
        elif habit is Habit.MIXES_UP and chance < 0.7:
            await self._mix_up(walkthrough)
        else:
            await self._next(habit, walkthrough, self.held[walkthrough])

    async def _look(self, habit: Habit, walkthrough: str) -> None:
        """What moves nothing."""
        match self.random.randrange(4):
            case 0:
                await self._ask(habit, "list_walkthroughs")
            case 1:
                named = self.random.choice([None, walkthrough])
                await self._ask(habit, "get_walkthrough_status", walkthrough=named)
            case _:
                number = self.random.randint(1, 5)
                await self._ask(habit, "review_walkthrough_step", walkthrough=walkthrough, step_number=number)

    async def _next(self, habit: Habit, walkthrough: str, handle: str | None, named: str | None = None) -> None:
        outcome, note = self._outcome()
        if named is None and self.random.random() < 0.3:
            named = walkthrough
        arguments = {"completed_step": handle, "walkthrough": named, "outcome": outcome, "note": note}
        await self._ask(habit, "next_walkthrough_step", **arguments)

    async def _skip_ahead(self, walkthrough: str) -> None:
        """Uses handles that it was not given for this: alone, or its own and later ones all at once."""
        if self.random.random() < 0.5:
            await self._next(Habit.SKIPS_AHEAD, walkthrough, self._another_handle(walkthrough))
            return
        handles = [self.held[walkthrough], *(self._another_handle(walkthrough) for _ in range(2))]
        self.random.shuffle(handles)
        meant = []
        for handle in handles:
            outcome, note = self._outcome()
            meant.append(self._means_to("next_walkthrough_step", completed_step=handle, outcome=outcome, note=note))
        await self._at_once(meant)

    async def _mix_up(self, walkthrough: str) -> None:
        """Says one walkthrough and gives the handle of another, or gives the other's where it means this one."""
        other = self.random.choice([each for each in [*WALKTHROUGHS, "nowhere"] if each != walkthrough])
        if other == "nowhere" or self.random.random() < 0.5:
            await self._next(Habit.MIXES_UP, walkthrough, self.held[walkthrough], named=self._spelling(other))
        else:
            handle = self.held.get(other) or self._another_handle(other)
            await self._next(Habit.MIXES_UP, walkthrough, handle)

    def _another_handle(self, walkthrough: str) -> str:
        """One that someone was shown, with its attempt put right or not; one made up; or one mistyped."""
        stage = self.person.stage
        handle = self.random.choice(
            [each for each in stage.pathfinder if stage.handles[each].walkthrough == walkthrough]
        )
        chance = self.random.random()
        if chance < 0.6:
            return handle
        id, version, step, attempt, check = handle.split(".")
        if chance < 0.7:
            return f"{id}.{version}.{step}.{int(attempt) + 1}.{check}"
        if chance < 0.75:
            return _checked(f"{id}.{version}.{step}x.{attempt}")
        # Nothing about a handle is secret: whoever reads how one is made can make the one of any attempt.
        made_up = self.random.randint(1, 4)
        named = stage.handles[handle]
        handle = _checked(f"{id}.{version}.{step}.{made_up}")
        stage.name(handle, Named(walkthrough, named.version, named.step, made_up))
        return handle

    def _outcome(self) -> tuple[str | None, str | None]:
        outcome = self.random.choice([None, None, "done", "done", "skipped", "stuck"])
        note = self.random.choice([None, None, "why", f"note {self.random.randrange(100)}"])
        return outcome, note

    def _spelling(self, walkthrough: str) -> str:
        return self.random.choice(
            [walkthrough, self.person.stage.ids.get(walkthrough, walkthrough), f"the {walkthrough}"]
        )

    # ---- making calls

    def _means_to(self, tool: str, **arguments: Any) -> Call:
        return self.person.means_to(tool, self.random.choice([_MODERN, _HANDSHAKE]), **arguments)

    async def _ask(self, habit: Habit, tool: str, **arguments: Any) -> None:
        """The same call once or several times, as the habit has it."""
        match habit:
            case Habit.BATCHES if tool == "next_walkthrough_step":
                await self._at_once([self._means_to(tool, **arguments) for _ in range(self.random.randint(2, 5))])
            case Habit.DOUBLES:
                twice = [self._means_to(tool, **arguments), self._means_to(tool, **arguments)]
                if self.random.random() < 0.5:
                    await self._at_once(twice)
                else:
                    for meant in twice:
                        await self._make(meant)
            case Habit.RETRIES:
                if self.random.random() < 0.6:
                    abandoned = self._means_to(tool, **arguments)
                    abandoned.hangs_up_at = self.random.choice(_HANGS_UP_AT)
                    await self._make(abandoned)
                await self._make(self._means_to(tool, **arguments))
            case _:
                await self._make(self._means_to(tool, **arguments))

    async def _at_once(self, meant: Sequence[Call]) -> None:
        async with asyncio.TaskGroup() as group:
            for each in meant:
                group.create_task(self._make(each))

    async def _make(self, meant: Call) -> None:
        """Makes a call, as often as it is told to make it again."""
        for _ in range(5):
            self.calls_left -= 1
            made = await self.person.make(meant)
            if made.error_code != "temporarily_unavailable":
                break
            meant = self.person.means_to(meant.tool, meant.revision, **meant.arguments)
        self._learn(made)

    def _learn(self, made: Call) -> None:
        """Takes from an answer what an assistant remembers of it: which handle is now the current one."""
        if made.error_code == "completed_step_required" and self.random.random() < 0.5:
            for at in made.standpoints():
                self.held[at.walkthrough] = at.handle
        if made.result is None or "walkthrough" not in made.result or made.status == "review":
            return
        walkthrough, step = made.result["walkthrough"]["key"], made.result["step"]
        if step is None:
            self.held.pop(walkthrough, None)
            self.completed.add(walkthrough)
            return
        self.completed.discard(walkthrough)
        if self.held.get(walkthrough) != step["handle"]:
            self.held[walkthrough] = step["handle"]
            self.steps_shown += 1
            if Habit.FORGETS in self.habits and self.steps_shown % 3 == 0:
                self.held.clear()


def _checked(body: str) -> str:
    return f"{body}.{hashlib.sha256(body.encode()).hexdigest()[:6]}"


@dataclass
class Run:
    """One seed's: a person, and what their assistants did."""

    seed: int
    person: Person
    kind: str

    @property
    def is_concurrent(self) -> bool:
        """Whether any two calls were under way at once, those included that nobody waited for."""
        calls = sorted(self.person.calls, key=lambda it: it.sent)
        return any(later.sent < (it.received or later.sent + 1) for it, later in pairwise(calls))

    def story(self) -> str:
        return "\n".join(map(str, self.person.calls))


async def simulate(stage: Stage, seed: int) -> Run:
    """One person from arrival to a last look, driven by `seed` alone.

    Every third person has two assistants at once. Of those with one, most have one habit, so that all come up
    equally often; the rest, and all who have two, have a mixture.
    """
    chosen = random.Random(f"{seed}")  # a text, since integers hash to themselves and neighbours would be alike
    person = await Person.arrives(stage, f"seed-{seed}")
    is_two = seed % 3 == 0
    habits = list(Habit)
    mixture = chosen.sample(habits, chosen.randint(2, len(habits)))
    mine = mixture if is_two or seed % 8 > 5 else [habits[seed % 8]]
    walkthroughs = chosen.sample(list(WALKTHROUGHS), 2 if Habit.MIXES_UP in mine else chosen.randint(1, 2))
    assistants = [
        Assistant(person, random.Random(f"{seed}-{number}"), mine, walkthroughs, _CALLS // (1 + is_two))
        for number in range(1 + is_two)
    ]
    try:
        async with asyncio.TaskGroup() as group:
            for assistant in assistants:
                group.create_task(assistant.assist())
        await person.told("get_walkthrough_status")
    except Exception as failure:
        failure.add_note("\n".join(map(str, person.calls)))
        raise
    return Run(seed, person, ("two: " if is_two else "") + ", ".join(mine))


async def simulate_all(stage: Stage, seeds: Sequence[int]) -> tuple[list[Run], dict[int, Exception]]:
    """Many people at the same time; and what came of those whose runs did not get to their end."""
    waiting = iter(seeds)
    runs: list[Run] = []
    failures: dict[int, Exception] = {}

    async def keep_simulating() -> None:
        for seed in waiting:
            try:
                runs.append(await simulate(stage, seed))
            except Exception as failure:  # noqa: BLE001  # whatever it was, its seed is told, and the others go on
                failures[seed] = failure

    async with asyncio.TaskGroup() as group:
        for _ in range(_PEOPLE_AT_ONCE):
            group.create_task(keep_simulating())
    return sorted(runs, key=lambda run: run.seed), failures
