"""Assistants that misbehave, by the thousand: afterwards the record is held against what each person was shown.

What is judged comes from two sides: the calls as their senders saw them, and the rows as the owner of the database
reads them. What may follow on what is said here in the public contract's own words, for people on one version; nothing
of the product decides here, except that its `replay` is asked for its opinion too.

A person's standing in a walkthrough is (attempt, completed steps), and None before they begin. The events give the
history of it; every answer is an observation of it, and observations must agree with one order of all calls:
whoever asks after an answer came back can see nothing older than that answer (`Judge._sees`).

    CAIRN_SIMULATIONS=20000 pytest tests/simulation     any number of seeds
    CAIRN_SIMULATION_SEED=417 pytest tests/simulation   one of them alone; with -s, all that was said
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import asyncpg
import pytest

from domain.progress import EventKind, Outcome, Progress, ProgressEvent, ProgressKey, Status, replay
from domain.walkthrough import Outline, VersionKey
from tests.serving.conftest import Tenant
from tests.simulation.simulator import (
    VERSION,
    WALKTHROUGHS,
    Call,
    Habit,
    Named,
    Run,
    Stage,
    open_stage,
    simulate_all,
)
from tests.torture.checker import violations

_NEXT, _SELECT = "next_walkthrough_step", "select_walkthrough"
# What a thousand runs cannot fail to meet, unless the simulator has gone to sleep.
_MET = {
    "started", "resumed", "restarted", "advanced", "repeated", "stuck", "completed", "review", "rows", "hung up",
    "completed_step_required", "step_not_current", "step_not_reached", "walkthrough_not_found",
    "walkthrough_not_started",
}  # fmt: skip


class Standing(NamedTuple):
    """Where someone stands in a walkthrough they have begun."""

    attempt: int
    completed: int


@dataclass
class Record:
    """All that the database holds, read in one moment."""

    steps: Mapping[str, tuple[str, str]]
    """Walkthrough's key and step's key of each step id, in every version."""
    rows: Mapping[tuple[str, str], asyncpg.Record]
    """Progress by e-mail and walkthrough's key."""
    events: Mapping[tuple[str, str], Sequence[asyncpg.Record]]
    logged: Mapping[str, Sequence[asyncpg.Record]]
    """Logged calls by e-mail."""
    versions: Mapping[int, Mapping[str, Outline]]


_OF_PEOPLE = """
select u.email, w.key as walkthrough, it.*
  from {table} it
  join mcp_server_users u on u.organization_id = it.organization_id and u.id = it.mcp_server_user_id
  left join walkthroughs w on w.organization_id = it.organization_id and w.id = it.walkthrough_id
 where it.organization_id = $1
 order by {order}
"""


async def _read(owner: asyncpg.Connection, stage: Stage) -> Record:
    organization = stage.tenant.server.key.organization_id
    # Calls whose client hung up may still be under way.
    async with owner.transaction(isolation="repeatable_read"):
        steps = await owner.fetch(
            "select s.id, w.key as walkthrough, s.key from walkthrough_steps s join walkthroughs w "
            "on w.organization_id = s.organization_id and w.id = s.walkthrough_id where s.organization_id = $1",
            organization,
        )
        rows = await owner.fetch(_OF_PEOPLE.format(table="walkthrough_progress", order="1"), organization)
        events = await owner.fetch(
            _OF_PEOPLE.format(table="walkthrough_progress_events", order="it.revision"), organization
        )
        logged = await owner.fetch(_OF_PEOPLE.format(table="tool_calls", order="it.created_at"), organization)
    record = Record(
        steps={step["id"]: (step["walkthrough"], step["key"]) for step in steps},
        rows={(row["email"], row["walkthrough"]): row for row in rows},
        events=defaultdict(list),
        logged=defaultdict(list),
        versions={},
    )
    assert len(record.rows) == len(rows)
    for event in events:
        record.events[event["email"], event["walkthrough"]].append(event)  # type: ignore[attr-defined]
    for each in logged:
        record.logged[each["email"]].append(each)  # type: ignore[attr-defined]
    keys = {key: VersionKey(stage.tenant.server.key.organization_id, id, VERSION) for key, id in stage.ids.items()}
    found = await stage.tenant.world.library.outlines(list(keys.values()))
    record.versions = {VERSION: {walkthrough: found[key] for walkthrough, key in keys.items()}}
    return record


# ------------------------------------------------------------------------------------------------- judging


@dataclass
class Judge:
    """Holds one walkthrough of one person against what they were shown.

    Raises AssertionError, with the rule that was broken.
    """

    stage: Stage
    record: Record
    run: Run
    walkthrough: str
    history: list[Standing | None] = field(default_factory=lambda: [None])
    """Each standing that there was, in order; no two are equal."""
    earliest: list[int] = field(default_factory=lambda: [0])
    """For each of `history`, the moment before which it cannot have been: when its first possible cause was sent."""
    completed_at: dict[int, int] = field(default_factory=dict)
    """When each completed attempt was, by the events."""
    begun_at: dict[int, int] = field(default_factory=dict)

    @property
    def keys(self) -> Sequence[str]:
        return WALKTHROUGHS[self.walkthrough][VERSION - 1]

    @property
    def calls(self) -> Sequence[Call]:
        return self.run.person.calls

    @property
    def events(self) -> Sequence[asyncpg.Record]:
        return self.record.events.get((f"{self.run.person.name}@example.com", self.walkthrough), [])

    @property
    def row(self) -> asyncpg.Record | None:
        return self.record.rows.get((f"{self.run.person.name}@example.com", self.walkthrough))

    def judge(self) -> None:
        self._events_are_a_walk_through_the_chain()
        self._row_is_where_the_events_end()
        self._every_event_was_asked_for()
        self._answers_agree_with_one_order()
        self._nothing_is_doubled_and_nothing_lost()
        self._every_step_was_shown()

    # ---- the record by itself

    def _events_are_a_walk_through_the_chain(self) -> None:
        standing: Standing | None = None
        noted = set()
        for number, event in enumerate(self.events, start=1):
            attempt, completed = standing or (0, 0)
            kind, comes_from, leads_to = event["kind"], event["from_step_id"], event["to_step_id"]
            assert event["revision"] == number, "revisions count the events"
            assert event["version"] == VERSION
            assert number == 1 or event["occurred_at"] >= self.events[number - 2]["occurred_at"], "time went back"
            assert (kind == "started") == (number == 1), "begun once, and first"
            if kind in ("started", "restarted"):
                assert kind == "started" or completed > 0, "begun again where nothing was done"
                standing = Standing(attempt + 1, 0)
                self.begun_at[standing.attempt] = event["occurred_at"]
            elif kind == "advanced":
                assert completed < len(self.keys), "left a step after the last"
                assert self._key(comes_from) == self.keys[completed], "left a step that was not the current one"
                assert event["outcome"] in ("done", "skipped")
                standing = Standing(attempt, completed + 1)
            elif kind == "stuck":
                named = (attempt, comes_from, event["note"])
                assert named not in noted, "one note of one handle is recorded once"
                noted.add(named)
            else:
                assert kind == "resumed", kind
                assert completed < len(self.keys), "resumed what was completed"
            assert standing is not None
            assert event["attempt"] == standing.attempt
            is_complete = standing.completed == len(self.keys)
            assert (leads_to is None) == is_complete
            assert is_complete or self._key(leads_to) == self.keys[standing.completed], "a step was passed over"
            if standing != self.history[-1]:
                self.history.append(standing)
                if is_complete:
                    self.completed_at[standing.attempt] = event["occurred_at"]

    def _row_is_where_the_events_end(self) -> None:
        row, standing = self.row, self.history[-1]
        if row is None or standing is None:
            assert row is None, "progress without an event"
            assert standing is None, "events without progress"
            return
        is_complete = standing.completed == len(self.keys)
        assert row["revision"] == len(self.events)
        assert (row["version"], row["attempt"], row["carried"]) == (VERSION, standing.attempt, [])
        assert row["status"] == ("completed" if is_complete else "in_progress")
        assert is_complete == (row["current_step_id"] is None)
        assert is_complete or self._key(row["current_step_id"]) == self.keys[standing.completed]
        assert row["started_at"] == self.begun_at[standing.attempt]
        assert row["last_activity_at"] == self.events[-1]["occurred_at"]
        assert row["completed_at"] == self.completed_at.get(standing.attempt)
        server = self.stage.tenant.server.key
        key = ProgressKey(server.organization_id, server.server_id, row["mcp_server_user_id"], row["walkthrough_id"])
        versions = {VERSION: self.record.versions[VERSION][self.walkthrough]}
        assert replay(key, [_event(each) for each in self.events], versions) == _progress(key, row)

    def _key(self, step_id: str) -> str:
        walkthrough, key = self.record.steps[step_id]
        assert walkthrough == self.walkthrough, "a step of another walkthrough"
        return key

    # ---- the record against the calls

    def _every_event_was_asked_for(self) -> None:
        standing: Standing | None = None
        for event in self.events:
            kind, attempt = event["kind"], event["attempt"]
            causes = [each for each in self.calls if self._may_have_caused(each, event)]
            assert causes, f"nobody asked for {dict(event)}"
            if kind == "advanced":
                assert standing is not None
                standing = Standing(attempt, standing.completed + 1)
            elif kind in ("started", "restarted"):
                standing = Standing(attempt, 0)
            else:
                continue
            self.earliest.append(min(each.sent for each in causes))
            told = [each for each in causes if each.status == _told_of(kind, standing, len(self.keys))]
            told = [each for each in told if _lesson_standing(each) == standing]
            assert len(told) <= 1, f"{len(told)} calls were told that they made {dict(event)}"
            assert told or any(each.is_unread for each in causes), f"nobody was told of {dict(event)}"
        begun = [each for each in self.events if each["kind"] == "restarted"]
        selects = [each for each in self.calls if self._is_select(each)]
        restarts = [each for each in selects if each.arguments.get("restart")]
        assert len(begun) <= len(restarts), "more restarts than anyone asked for"
        assert sum(each["kind"] == "resumed" for each in self.events) <= len(selects)

    def _is_select(self, it: Call) -> bool:
        return it.tool == _SELECT and self._is_meant(it.arguments["walkthrough"])

    def _may_have_caused(self, it: Call, event: asyncpg.Record) -> bool:
        kind, arguments = event["kind"], it.arguments
        if kind in ("started", "resumed", "restarted"):
            return self._is_select(it) and (kind != "restarted" or bool(arguments.get("restart")))
        named = self._named(it)
        if it.tool != _NEXT or named is None or not self._is_meant(arguments.get("walkthrough", self.walkthrough)):
            return False
        return (
            named.walkthrough,
            named.step,
            named.attempt,
            arguments.get("outcome", "done"),
            arguments.get("note"),
        ) == (
            self.walkthrough,
            self._key(event["from_step_id"]),
            event["attempt"],
            event["outcome"],
            event["note"],
        )

    def _named(self, it: Call) -> Named | None:
        return self.stage.handles.get(it.arguments.get("completed_step", ""))

    def _is_meant(self, reference: str) -> bool:
        return reference in (self.walkthrough, f"the {self.walkthrough}", self.stage.ids[self.walkthrough])

    def _answers_agree_with_one_order(self) -> None:
        """Each answer shows a standing that there was, not yet too early and never older than one told before."""
        proven: list[tuple[int, int]] = []  # (when it was told, how far the history had come)
        for it in sorted((each for each in self.calls if each.is_answered), key=lambda each: each.received or 0):
            assert it.received is not None
            for shows in self._observations(it):
                since = max((place for told, place in proven if told < it.sent), default=0)
                places = [
                    place
                    for place in range(since, len(self.history))
                    if self.earliest[place] < it.received and shows(self.history[place])
                ]
                assert places, f"shows what is older than what was told before, or never was: {it}\n{it.text}"
                proven.append((it.received, places[0]))
        if not any(each.is_unread for each in self.calls):
            assert max(place for _, place in proven) == len(self.history) - 1, "the last look saw less than there is"

    def _observations(self, it: Call) -> list[Callable[[Standing | None], bool]]:
        """What an answer says of this walkthrough, as conditions on the standing at that moment."""
        steps = len(self.keys)
        if it.result is not None and "walkthroughs" in it.result:
            rows = [row for row in it.result["walkthroughs"] if row["key"] == self.walkthrough]
            if not rows:
                assert it.tool != "list_walkthroughs"
                return [] if it.arguments else [lambda standing: standing is None]
            return [lambda standing: self._row_says(rows[0], standing)]
        if it.result is not None:
            if it.result["walkthrough"]["key"] != self.walkthrough:
                return []
            seen = _lesson_standing(it)
            assert seen is not None
            self._lesson_is_right(it, seen)
            return [lambda standing: standing == seen]
        if it.error_code == "walkthrough_not_started":
            return [lambda standing: standing is None] if f'"The {self.walkthrough}"' in it.text else []
        if it.error_code == "step_not_reached":
            if not self._is_meant(it.arguments["walkthrough"]):
                return []
            found = re.search(r"Those are: ([\d, ]+) \(of (\d+)\)", it.text)
            assert found, it.text
            assert int(found[2]) == steps
            reached = [int(number) for number in found[1].split(", ")]
            assert reached == list(range(1, len(reached) + 1))
            assert it.arguments["step_number"] not in reached
            return [lambda standing: standing is not None and min(standing.completed + 1, steps) == len(reached)]
        return self._refusal_shows(it)

    def _refusal_shows(self, it: Call) -> list[Callable[[Standing | None], bool]]:
        """A refused `next` names where the person stands, and rightly refused it."""
        if it.is_unread:
            return []
        steps, named = len(self.keys), self._named(it)
        given, reference = it.arguments.get("completed_step"), it.arguments.get("walkthrough")
        if it.error_code == "walkthrough_not_found":
            assert reference is not None
            assert "nowhere" in reference, it
            return []
        here = [at for at in it.standpoints() if at.walkthrough == self.walkthrough]
        if it.error_code == "completed_step_required":
            assert named is None, f"refused a handle that was given out: {it}"
            is_about_all = given is None and reference is None
        else:
            assert it.error_code == "step_not_current", it
            assert given is not None, it
            assert it.standpoints() or '" is completed' in it.text, f"names no current step: {it}"
            is_about_all = False
        if here and reference is not None:
            assert self._is_meant(reference), it
        elif here and named is not None:
            assert named.walkthrough == self.walkthrough, it
        if not here:
            if is_about_all:
                return [lambda standing: standing is None or standing.completed == steps]
            if f'"The {self.walkthrough}" is completed' not in it.text:
                return []
            return [
                lambda standing: (
                    standing is not None and standing.completed == steps and not self._counts(named, standing)
                )
            ]
        (at,) = here
        assert (int(at.total), at.step) == (steps, self.keys[int(at.number) - 1])
        seen = Standing(self.stage.handles[at.handle].attempt, int(at.number) - 1)
        return [lambda standing: standing == seen and not self._counts(named, seen)]

    def _counts(self, named: Named | None, standing: Standing) -> bool:
        """Whether a handle is of the current step, or a completed one, or one that is gone: never to be refused."""
        if named is None or (named.walkthrough, named.attempt) != (self.walkthrough, standing.attempt):
            return False
        return named.step not in self.keys or self.keys.index(named.step) <= standing.completed

    def _row_says(self, row: Mapping[str, Any], standing: Standing | None) -> bool:
        steps = len(self.keys)
        assert (row["version"], row["step_count"]) == (VERSION, steps)
        if standing is None:
            return (row["status"], row["current_step_number"], "attempt" in row) == ("not_started", None, False)
        is_complete = standing.completed == steps
        says = [
            row["status"] == ("completed" if is_complete else "in_progress"),
            row["current_step_number"] == (None if is_complete else standing.completed + 1),
        ]
        if "attempt" in row:
            says += [
                (row["attempt"], row["completed_steps"]) == standing,
                row["started_at"] == self.begun_at[standing.attempt],
                row["completed_at"] == (self.completed_at.get(standing.attempt) if is_complete else None),
            ]
        return all(says)

    def _lesson_is_right(self, it: Call, seen: Standing) -> None:
        """What one answer says is right at the standing it shows, and follows from what was asked."""
        assert it.result is not None
        steps, step, progress, named = len(self.keys), it.result["step"], it.result["progress"], self._named(it)
        is_complete = seen.completed == steps
        assert progress["total_steps"] == steps
        assert progress["started_at"] == self.begun_at.get(seen.attempt), it
        assert progress["completed_at"] == (self.completed_at.get(seen.attempt) if is_complete else None), it
        assert it.result["walkthrough"]["version"] == VERSION
        number = it.arguments["step_number"] if it.status == "review" else seen.completed + 1
        if it.status == "review":
            assert it.tool == "review_walkthrough_step"
            assert number <= min(seen.completed + 1, steps), f"shown what was not reached: {it}"
            assert step["handle"] is None
        elif is_complete:
            assert step is None
        if step is not None:
            key = self.keys[number - 1]
            assert (step["key"], step["number"]) == (key, number), it
            assert (step["title"], step["content"]) == (f"Step {key}", f"Do {key}.")
            assert f"step {number} of {steps}: Step {key}" in it.text
            assert f"\nDo {key}.\n" in it.text
            everything = it.text + json.dumps(it.result)
            assert not any(
                f"Step {later}" in everything or f"Do {later}." in everything for later in self.keys[number:]
            )
        if it.status != "review":
            assert (it.tool, it.status) in {
                (_SELECT, "started"), (_SELECT, "resumed"), (_SELECT, "restarted"), (_SELECT, "completed"),
                (_NEXT, "advanced"), (_NEXT, "completed"), (_NEXT, "stuck"), (_NEXT, "repeated"),
            }, it  # fmt: skip
        if it.tool == _SELECT:
            assert self._is_meant(it.arguments["walkthrough"])
            wants_restart = bool(it.arguments.get("restart"))
            assert (it.status == "started") <= (seen == (1, 0))
            assert (it.status == "restarted") <= (wants_restart and seen.attempt > 1 and seen.completed == 0)
            assert (it.status == "resumed") <= (not is_complete and (not wants_restart or seen.completed == 0))
            assert (it.status == "completed") == is_complete
            assert not (is_complete and wants_restart)
        if it.tool == _NEXT:
            assert named is not None, f"a handle that nobody gave out: {it}"
            assert self._is_meant(it.arguments.get("walkthrough", self.walkthrough)), it
            assert (named.walkthrough, named.attempt) == (self.walkthrough, seen.attempt), it
            is_stuck = it.arguments.get("outcome") == "stuck"
            if it.status in ("advanced", "completed"):
                assert named.step == self.keys[seen.completed - 1], it
                assert not is_stuck
                assert (it.status == "completed") == is_complete, it
            elif it.status == "stuck":
                assert is_stuck
                assert named.step == self.keys[seen.completed], it
            else:
                is_gone = named.step not in self.keys
                assert is_gone or self.keys.index(named.step) < seen.completed, it

    def _nothing_is_doubled_and_nothing_lost(self) -> None:
        """Each answer that speaks of a change has its event, and its alone."""
        advanced = Counter(
            (each["attempt"], self._key(each["from_step_id"])) for each in self.events if each["kind"] == "advanced"
        )
        assert set(advanced.values()) <= {1}, f"a step was completed twice in one attempt: {advanced}"
        noted = {
            (each["attempt"], each["from_step_id"], each["note"]) for each in self.events if each["kind"] == "stuck"
        }
        for it in self.calls:
            if it.result is None or it.result.get("walkthrough", {}).get("key") != self.walkthrough:
                continue
            attempt = _lesson_standing(it).attempt
            if it.tool == _NEXT and it.arguments.get("outcome") == "stuck":
                step_id = it.arguments["completed_step"].split(".")[2]
                assert (attempt, step_id, it.arguments.get("note")) in noted, f"a note was lost: {it}"
            elif it.tool == _NEXT and it.status in ("advanced", "completed"):
                named = self._named(it)
                assert named is not None
                (event,) = [
                    each
                    for each in self.events
                    if (each["kind"], each["attempt"]) == ("advanced", attempt)
                    and self._key(each["from_step_id"]) == named.step
                ]
                asked = (it.arguments.get("outcome", "done"), it.arguments.get("note"))
                assert (event["outcome"], event["note"]) == asked, f"recorded otherwise than told: {it}"

    def _every_step_was_shown(self) -> None:
        """None that was passed went unshown: each came in an answer, except to a client that hung up on it."""
        shown: dict[Standing, int] = {}
        for it in self.calls:
            if it.result and it.status != "review" and it.result.get("walkthrough", {}).get("key") == self.walkthrough:
                seen = _lesson_standing(it)
                shown[seen] = min(shown.get(seen, it.received or 0), it.received or 0)
        unread = any(each.is_unread for each in self.calls)
        for standing in filter(None, self.history):
            assert standing in shown or unread, f"nobody was shown {standing}"
        if not unread and not self.run.is_concurrent:
            told = [shown[standing] for standing in self.history if standing]
            assert told == sorted(told), "shown in another order than recorded"


def _told_of(kind: str, standing: Standing, steps: int) -> str:
    return "completed" if kind == "advanced" and standing.completed == steps else kind


def _lesson_standing(it: Call) -> Standing | None:
    if it.result is None or "progress" not in it.result:
        return None
    return Standing(it.result["progress"]["attempt"], it.result["progress"]["completed_steps"])


def _event(row: asyncpg.Record) -> ProgressEvent:
    return ProgressEvent(
        revision=row["revision"],
        kind=EventKind(row["kind"]),
        attempt=row["attempt"],
        version=row["version"],
        from_step_id=row["from_step_id"],
        to_step_id=row["to_step_id"],
        outcome=Outcome(row["outcome"]) if row["outcome"] else None,
        note=row["note"],
        occurred_at=row["occurred_at"],
    )


def _progress(key: ProgressKey, row: asyncpg.Record) -> Progress:
    return Progress(
        key=key,
        version=row["version"],
        attempt=row["attempt"],
        revision=row["revision"],
        status=Status(row["status"]),
        current_step_id=row["current_step_id"],
        carried=frozenset(row["carried"]),
        started_at=row["started_at"],
        last_activity_at=row["last_activity_at"],
        completed_at=row["completed_at"],
    )


def _judge_the_log(record: Record, run: Run, stage: Stage) -> None:
    """Every answered call is logged once, as it was answered; of the others none twice."""
    by_tag = defaultdict(list)
    for row in record.logged[f"{run.person.name}@example.com"]:
        by_tag[row["client_version"]].append(row)
    assert set(by_tag) <= {it.tag for it in run.person.calls}, "a call was logged that nobody made"
    for it in run.person.calls:
        rows = by_tag[it.tag]
        assert len(rows) <= 1, f"logged twice: {it}"
        if it.is_unread:  # by the rules, what is answered temporarily_unavailable need not be logged either
            continue
        assert rows, f"not logged: {it}"
        (row,) = rows
        assert (row["tool_name"], row["protocol_version"]) == (it.tool, it.revision)
        assert json.loads(row["input"]) == it.arguments
        assert (row["outcome"], row["error_code"]) == (it.status or ("error" if it.error else "listed"), it.error_code)
        if it.result and "walkthrough" in it.result:
            walkthrough, step = it.result["walkthrough"], it.result["step"]
            assert (row["walkthrough_id"], row["version"]) == (walkthrough["id"], walkthrough["version"])
            assert record.steps.get(row["step_id"]) == ((walkthrough["key"], step["key"]) if step else None)


def _judge(stage: Stage, record: Record, run: Run) -> None:
    for walkthrough in WALKTHROUGHS:
        Judge(stage, record, run, walkthrough).judge()
    _judge_the_log(record, run, stage)


def _seeds() -> Sequence[int]:
    if alone := os.environ.get("CAIRN_SIMULATION_SEED"):
        return [int(alone)]
    return range(int(os.environ.get("CAIRN_SIMULATIONS", "1000")))


@pytest.mark.promise("rules.any-interleaving")
@pytest.mark.timeout(600)
async def test_a_thousand_seeded_runs_of_misbehaving_assistants_leave_a_record_that_is_true(
    tenant: Tenant, owner: asyncpg.Connection
) -> None:
    seeds = _seeds()
    async with open_stage(tenant) as stage:
        runs, failures = await simulate_all(stage, seeds)
        record = await _read(owner, stage)
        assert await violations(owner) == []
    for run in runs:
        try:
            _judge(stage, record, run)
        except Exception as failure:  # noqa: BLE001  # a record that cannot even be judged is not true
            failure.add_note(f"{run.kind}\n{run.story()}")
            failures[run.seed] = failure
    met = Counter(outcome for run in runs for outcome in map(_outcome_of, run.person.calls))
    print(f"\n{len(seeds)} simulated people, {met.total()} calls: {dict(met.most_common())}")
    if len(seeds) == 1:
        print("\n".join(f"{run.kind}\n{run.story()}" for run in runs))
    if failures:
        seed = min(failures)
        print(f"{len(failures)} failed: {sorted(failures)[:20]}; alone: CAIRN_SIMULATION_SEED={seed}")
        raise failures[seed]
    if len(seeds) >= 1000:
        assert set(met) >= _MET, f"never met: {_MET - set(met)}"
        assert {habit for habit in Habit if any(run.kind == habit for run in runs)} == set(Habit)


def _outcome_of(it: Call) -> str:
    return it.status or it.error_code or ("rows" if it.is_answered else "hung up")
