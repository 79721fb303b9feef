"""Whether the history in the tables is consistent, told by the tables alone.

python -m tests.torture.checker postgresql://…     as the schema's owner; a line for each violation, and exit status 1

Nothing here is Cairn's own code, on purpose: the rules of progress are written down a second time, from the contract
and not from `domain/progress.py`, so that a mistake in the one is not a mistake in the other.

What a table cannot tell is left to those who hold the clients' own records: a call that was answered and is nowhere.
Where nothing has failed, so that every call is in the log, `--whole-log` holds each advance against it too.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

Row = Mapping[str, Any]
Key = tuple[str, ...]

_PROGRESS_KEY = ("organization_id", "mcp_server_id", "mcp_server_user_id", "walkthrough_id")


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that cannot be. `invariant` is a name that stays, such as `events.gapless`."""

    invariant: str
    where: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.where}"


async def violations(connection: asyncpg.Connection, *, is_log_whole: bool = False) -> Sequence[Violation]:
    """All that is wrong, from one snapshot. The connection must be let past row-level security.

    `is_log_whole` says that each call ever made is in the log: none was made past the service, none failed to be
    recorded, and none was forgotten since.
    """
    async with connection.transaction(isolation="repeatable_read"):
        return [
            *await _references(connection),
            *await _queried(connection),
            *await _histories(connection, is_log_whole=is_log_whole),
        ]


# ---------------------------------------------------------------------------------- references, and what SQL can say

_FOREIGN_KEYS = """
select c.conrelid::regclass::text as child, c.confrelid::regclass::text as parent,
       array(select a.attname::text from unnest(c.conkey) with ordinality k (num, at)
              join pg_attribute a on a.attrelid = c.conrelid and a.attnum = k.num order by k.at) as child_columns,
       array(select a.attname::text from unnest(c.confkey) with ordinality k (num, at)
              join pg_attribute a on a.attrelid = c.confrelid and a.attnum = k.num order by k.at) as parent_columns
  from pg_constraint c
 where c.contype = 'f' and c.conparentid = 0 and c.connamespace = 'public'::regnamespace
 order by 1, c.conname
"""


async def _references(connection: asyncpg.Connection) -> list[Violation]:
    """Every foreign key once more, row by row: it may have been switched off when a row came in."""
    found = []
    for key in await connection.fetch(_FOREIGN_KEYS):
        pairs = list(zip(key["child_columns"], key["parent_columns"], strict=True))
        rows = await connection.fetch(
            f"select {', '.join(f'c.{mine}::text' for mine, _ in pairs)} from {key['child']} c"
            f" where {' and '.join(f'c.{mine} is not null' for mine, _ in pairs)}"
            f" and not exists (select from {key['parent']} p"
            f" where {' and '.join(f'p.{theirs} = c.{mine}' for mine, theirs in pairs)})"
        )
        found += [Violation("reference", f"{key['child']} {_at(row)} has no row in {key['parent']}") for row in rows]
    return found


# Each finds the rows that break the invariant, and names them. None joins by an id without its organisation, but
# where that is what it asks.
_QUERIES: Mapping[str, str] = {
    # What a call names may have gone since, and then is nowhere; it is never another organisation's.
    "calls.tenant": """
        select c.organization_id, c.id, c.mcp_server_user_id, c.walkthrough_id from tool_calls c
         where exists (select from mcp_server_users u
                        where u.id = c.mcp_server_user_id and u.organization_id <> c.organization_id)
            or exists (select from walkthroughs w
                        where w.id = c.walkthrough_id and w.organization_id <> c.organization_id)
    """,
    "calls.content": """
        select c.organization_id, c.id, c.walkthrough_id, c.version, c.step_id
          from tool_calls c
          join walkthroughs w on w.organization_id = c.organization_id and w.id = c.walkthrough_id
         where not exists (select from walkthrough_versions v
                            where v.organization_id = c.organization_id and v.walkthrough_id = c.walkthrough_id
                              and v.version = c.version and v.state <> 'draft')
            or c.step_id is not null and not exists (
                   select from walkthrough_steps s
                    where s.organization_id = c.organization_id and s.walkthrough_id = c.walkthrough_id
                      and s.version = c.version and s.id = c.step_id)
    """,
    "versions.numbers": """
        select organization_id, walkthrough_id, version
          from (select *, row_number() over (partition by organization_id, walkthrough_id order by version) as place,
                       count(*) over (partition by organization_id, walkthrough_id) as places
                  from walkthrough_versions) v
         where version <> place or (state = 'draft' and place <> places)
    """,
    "versions.latest": """
        select w.organization_id, w.id, w.latest_version, max(v.version) filter (where v.state <> 'draft')
          from walkthroughs w
          left join walkthrough_versions v on v.organization_id = w.organization_id and v.walkthrough_id = w.id
         group by w.organization_id, w.id
        having w.latest_version is distinct from max(v.version) filter (where v.state <> 'draft')
            or w.is_published and (w.latest_version is null or w.archived_at is not null)
    """,
    # An older one, by a deed of its own or by a later publish that supersedes; and then for ever.
    "versions.withdrawn": """
        select v.organization_id, v.walkthrough_id, v.version
          from walkthrough_versions v
          join walkthroughs w on w.organization_id = v.organization_id and w.id = v.walkthrough_id
         where v.state = 'withdrawn' and v.version >= w.latest_version
            or v.state <> 'draft' and (v.state = 'withdrawn') <> exists (
                   select from walkthrough_ledger l
                    where l.organization_id = v.organization_id and l.walkthrough_id = v.walkthrough_id
                      and (l.deed = 'withdrawn' and l.version = v.version
                           or l.deed in ('published', 'rolled_back') and l.policy = 'supersede'
                          and l.version > v.version))
    """,
    "drafts.edits": """
        select e.organization_id, e.walkthrough_id, e.version, e.revision
          from (select *, row_number() over (partition by organization_id, walkthrough_id, version
                                             order by revision) as place from walkthrough_draft_edits) e
          join walkthrough_versions v on v.organization_id = e.organization_id
           and v.walkthrough_id = e.walkthrough_id and v.version = e.version
         where e.revision <> e.place or e.revision > v.revision
    """,
    "ledger.gapless": """
        select organization_id, walkthrough_id, number
          from (select *, row_number() over (partition by organization_id, walkthrough_id order by number) as place
                  from walkthrough_ledger) l
         where number <> place
    """,
    "ledger.versions": """
        select v.organization_id, v.walkthrough_id, v.version
          from walkthrough_versions v
          left join walkthrough_ledger l on l.organization_id = v.organization_id
           and l.walkthrough_id = v.walkthrough_id and l.version = v.version and l.deed in ('published', 'rolled_back')
         group by v.organization_id, v.walkthrough_id, v.version
        having count(l.number) <> case when v.state = 'draft' then 0 else 1 end
            or min(l.content_hash) <> v.content_hash or min(l.policy) <> v.on_publish
    """,
    # Whoever was merged into an account is there nothing but a name: the account goes on.
    "visitors.merged": """
        select u.organization_id, u.id, u.merged_into
          from mcp_server_users u
          join mcp_server_users a on a.organization_id = u.organization_id and a.id = u.merged_into
         where a.merged_into is not null or a.email is null or u.email is not null
    """,
    "visitors.progress": """
        select p.organization_id, p.mcp_server_id, p.mcp_server_user_id, p.walkthrough_id
          from walkthrough_progress p
          join mcp_server_users u on u.organization_id = p.organization_id and u.id = p.mcp_server_user_id
         where (u.merged_into is not null) <> (p.status = 'merged')
    """,
    "identities": """
        select i.organization_id, i.issuer, i.mcp_server_user_id
          from mcp_server_user_identities i
          join mcp_server_users u on u.organization_id = i.organization_id and u.id = i.mcp_server_user_id
         where i.issuer = 'email' and i.subject is distinct from u.email
            or i.issuer like 'visitor:%' and (u.email is not null or not exists (
                   select from mcp_servers s
                    where s.organization_id = i.organization_id and 'visitor:' || s.id = i.issuer))
    """,
    "tokens.revoked": """
        select g.organization_id, g.id
          from oauth_grants g
         where g.revoked_at is not null
           and (exists (select from access_tokens t where t.organization_id = g.organization_id and t.grant_id = g.id)
                or exists (select from oauth_refresh_tokens r
                            where r.organization_id = g.organization_id and r.grant_id = g.id))
    """,
    "tokens.family": """
        select t.organization_id, t.grant_id, t.mcp_server_id, t.mcp_server_user_id
          from access_tokens t
          join oauth_grants g on g.organization_id = t.organization_id and g.id = t.grant_id
         where (t.mcp_server_id, t.mcp_server_user_id) <> (g.mcp_server_id, g.mcp_server_user_id)
            or t.created_at < g.created_at or t.expires_at is null
            or not string_to_array(t.scope, ' ') <@ string_to_array(g.scope, ' ')
    """,
    "tokens.end": """
        select g.organization_id, g.id, g.good_until, t.expires_at
          from oauth_grants g
          join (select organization_id, grant_id, expires_at from access_tokens
                union all select organization_id, grant_id, expires_at from oauth_refresh_tokens) t
            on t.organization_id = g.organization_id and t.grant_id = g.id
         where t.expires_at > g.good_until
    """,
    # What came of a code came after it was used.
    "tokens.unasked": """
        select g.organization_id, g.id
          from oauth_grants g
         where (exists (select from access_tokens t where t.organization_id = g.organization_id and t.grant_id = g.id)
                or exists (select from oauth_refresh_tokens r
                            where r.organization_id = g.organization_id and r.grant_id = g.id))
           and not exists (select from oauth_codes c
                            where c.organization_id = g.organization_id and c.grant_id = g.id
                              and c.used_at is not null)
    """,
}


async def _queried(connection: asyncpg.Connection) -> list[Violation]:
    return [
        Violation(invariant, _at(row)) for invariant, query in _QUERIES.items() for row in await connection.fetch(query)
    ]


def _at(row: Row | Key) -> str:
    return "/".join(map(str, row if isinstance(row, tuple) else row.values()))


# ------------------------------------------------------------------------------------------------------- histories


@dataclass
class _Content:
    """One published version: its steps' ids in the order of the chain, and the key of each."""

    ids: list[str]
    keys: dict[str, str]

    def before(self, step_id: str | None) -> set[str]:
        """Keys of the steps before this one; of all of them where there is none."""
        return {self.keys[id] for id in (self.ids if step_id is None else self.ids[: self.ids.index(step_id)])}

    def first_open(self, completed: set[str]) -> str | None:
        return next((id for id in self.ids if self.keys[id] not in completed), None)


@dataclass
class _Standing:
    """Where the events up to now have led: the row as it ought to be."""

    version: int
    attempt: int
    revision: int
    status: str
    current: str | None
    carried: set[str]
    started_at: int
    last_activity_at: int
    completed_at: int | None

    def completed(self, content: _Content) -> set[str]:
        """Keys of the steps completed in this attempt; `content` is that of its version."""
        return self.carried | content.before(self.current)

    def row(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "attempt": self.attempt,
            "revision": self.revision,
            "status": self.status,
            "current_step_id": self.current,
            "carried": sorted(self.carried),
            "started_at": self.started_at,
            "last_activity_at": self.last_activity_at,
            "completed_at": self.completed_at,
        }


@dataclass
class _Tables:
    """What was read, by key."""

    progress: dict[Key, Row] = field(default_factory=dict)
    events: dict[Key, list[Row]] = field(default_factory=lambda: defaultdict(list))
    contents: dict[tuple[str, str], dict[int, _Content]] = field(default_factory=lambda: defaultdict(dict))
    """By organisation and walkthrough: each published version that is one chain."""
    standings: dict[Key, list[_Standing]] = field(default_factory=dict)
    """After each of its events, of every progress whose events follow from one another."""
    deeds: dict[Key, Counter[Key]] = field(default_factory=lambda: defaultdict(Counter))
    """What has happened to each progress, in the words of the calls that did it; how often."""
    merged_into: dict[tuple[str, str], str] = field(default_factory=dict)
    merged_with: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    """By organisation and account: its visitors."""
    calls: list[Row] = field(default_factory=list)

    def step_key(self, organization_id: str, walkthrough_id: str, step_id: str | None) -> str | None:
        for content in self.contents[organization_id, walkthrough_id].values():
            if step_id in content.keys:
                return content.keys[step_id]
        return None


async def _histories(connection: asyncpg.Connection, *, is_log_whole: bool) -> list[Violation]:
    tables = _Tables()
    found = [*_chains(tables, await _versions(connection), await connection.fetch("select * from walkthrough_steps"))]
    tables.progress = {_key(row): row for row in await connection.fetch("select * from walkthrough_progress")}
    for row in await connection.fetch("select * from walkthrough_progress_events order by revision"):
        tables.events[_key(row)].append(row)
    for row in await connection.fetch("select * from mcp_server_users where merged_into is not null"):
        tables.merged_into[row["organization_id"], row["id"]] = row["merged_into"]
        tables.merged_with[row["organization_id"], row["merged_into"]].append(row["id"])
    tables.calls = await connection.fetch(
        "select c.*, input->>'completed_step' as handle, coalesce(input->>'outcome', 'done') as left_as"
        " from tool_calls c where mcp_server_user_id is not null and walkthrough_id is not null"
    )
    for key, row in tables.progress.items():
        found += _replayed(tables, key, row)
    tables.deeds |= {key: _deeds(tables, key, events) for key, events in tables.events.items()}
    found += _answered(tables)
    found += _told(tables)
    if is_log_whole:
        found += _unrecorded(tables)
    found += _shown(tables, await _first_calls(connection), await _told_by_errors(connection))
    return found


async def _versions(connection: asyncpg.Connection) -> list[Row]:
    return await connection.fetch("select * from walkthrough_versions where state <> 'draft'")


async def _first_calls(connection: asyncpg.Connection) -> dict[str, int]:
    rows = await connection.fetch("select organization_id, min(created_at) as at from tool_calls group by 1")
    return {row["organization_id"]: row["at"] for row in rows}


async def _told_by_errors(connection: asyncpg.Connection) -> set[tuple[str, str]]:
    """People whom an error has told where they stand, with the handle."""
    rows = await connection.fetch(
        "select distinct organization_id, mcp_server_user_id from tool_calls"
        " where mcp_server_user_id is not null and error_code in ('completed_step_required', 'step_not_current')"
    )
    return {(row["organization_id"], row["mcp_server_user_id"]) for row in rows}


def _key(row: Row) -> Key:
    return tuple(row[column] for column in _PROGRESS_KEY)


def _chains(tables: _Tables, versions: Sequence[Row], steps: Sequence[Row]) -> Iterator[Violation]:
    """Each published version is one chain: one head, one tail, and positions that count along it from 1."""
    by_version: dict[Key, dict[str, Row]] = defaultdict(dict)
    for step in steps:
        by_version[step["organization_id"], step["walkthrough_id"], step["version"]][step["id"]] = step
    for version in versions:
        key = version["organization_id"], version["walkthrough_id"], version["version"]
        mine = by_version[key]
        ids: list[str] = []
        at = version["first_step_id"]
        while at in mine and at not in ids:
            ids.append(at)
            at = mine[at]["next_step_id"]
        if at is not None or len(ids) != len(mine) or len(ids) != version["step_count"]:
            yield Violation("chain", f"{_at(key)}: {len(ids)} of {len(mine)} steps are reached, up to {at}")
            continue
        if [mine[id]["position"] for id in ids] != list(range(1, len(ids) + 1)):
            yield Violation("chain.positions", _at(key))
        if len({step["key"] for step in mine.values()}) != len(mine):
            yield Violation("chain.keys", _at(key))
        if _content_hash(version, [mine[id] for id in ids]) != version["content_hash"]:
            yield Violation("content.hash", _at(key))
        content = _Content(ids, {id: mine[id]["key"] for id in ids})
        tables.contents[key[0], key[1]][version["version"]] = content


_SHOWN_OF_A_STEP = (
    *("key", "title", "content", "assistant_notes", "workspace_actions", "done_when"),
    *("delivery", "estimated_minutes"),
)


def _content_hash(version: Row, steps: Sequence[Row]) -> str:
    """SHA-256, in hex, of the JSON of all that can be shown, its members sorted by name and its steps in order."""
    shown: dict[str, Any] = {column: version[column] for column in ("title", "description", "type")}
    shown["steps"] = [{column: step[column] for column in _SHOWN_OF_A_STEP} for step in steps]
    return hashlib.sha256(json.dumps(shown, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _replayed(tables: _Tables, key: Key, row: Row) -> Iterator[Violation]:
    """The events of one progress, each of which must follow from those before, and what they lead to."""
    events = tables.events.get(key, [])
    if [event["revision"] for event in events] != list(range(1, len(events) + 1)):
        yield Violation("events.gapless", f"{_at(key)}: revisions {[event['revision'] for event in events]}")
        return
    if len(events) != row["revision"]:
        kind = "progress.ahead" if row["revision"] > len(events) else "progress.behind"
        yield Violation(kind, f"{_at(key)}: revision {row['revision']} after {len(events)} events")
        return
    at: _Standing | None = None
    standings: list[_Standing] = []
    noted: set[Key] = set()
    for event in events:
        where = f"{_at(key)} at revision {event['revision']}"
        if at is not None and event["occurred_at"] < at.last_activity_at:
            yield Violation("events.times", f"{where}: {event['occurred_at']} after {at.last_activity_at}")
        try:
            at = _after(tables, key, at, event)
        except _Impossible as problem:
            yield Violation("events.rules", f"{where}: {event['kind']}: {problem}")
            return
        standings.append(at)
        if event["kind"] == "stuck":
            note = event["attempt"], event["from_step_id"], event["note"]
            if note in noted:
                yield Violation("events.noted-twice", where)
            noted.add(note)
    assert at is not None
    tables.standings[key] = standings
    expected = at.row()
    for column, value in expected.items():
        if row[column] != value:
            yield Violation("progress.row", f"{_at(key)}: {column} is {row[column]!r}, by its events {value!r}")


class _Impossible(Exception):
    """What the rules do not let happen."""


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Impossible(otherwise)


def _after(tables: _Tables, key: Key, at: _Standing | None, event: Row) -> _Standing:
    """The standing after `event`. Rules 1 to 6 of the contract, and what is promised to visitors."""
    contents = tables.contents[key[0], key[3]]
    _require(event["version"] in contents, "its version is not published, or not one chain")
    content = contents[event["version"]]
    now, kind, source, target = event["occurred_at"], event["kind"], event["from_step_id"], event["to_step_id"]
    if at is None:
        _require(kind == "started" and event["attempt"] == 1 and source is None, "a history begins with a start")
        _require(target == content.ids[0], "who starts is on the first step")
        return _Standing(event["version"], 1, 1, "in_progress", target, set(), now, now, None)
    _require(at.status != "merged", "nothing follows on what was merged into an account")
    is_open, is_here = at.status == "in_progress", event["version"] == at.version
    completed = at.completed(contents[at.version])
    version, carried, status = at.version, at.carried, at.status
    if kind == "restarted":
        _require(event["attempt"] == at.attempt + 1, "a restart is the next attempt")
        _require(event["version"] >= at.version and source == at.current, "a restart leads from here to the latest")
        _require(target == content.ids[0], "who restarts is on the first step")
        _require(event["version"] > at.version or bool(completed), "an attempt that is untouched is resumed")
        return _Standing(
            event["version"], at.attempt + 1, event["revision"], "in_progress", target, set(), now, now, None
        )
    _require(event["attempt"] == at.attempt, "an attempt ends with a restart only")
    match kind:
        case "resumed":
            _require(is_open and is_here and source == target == at.current, "who resumes stays")
        case "stuck":
            _require(is_here and target == at.current and event["outcome"] == "stuck", "who is stuck stays")
            stuck_on = tables.step_key(key[0], key[3], source)
            _require(stuck_on is not None, "nobody is stuck on what is no step")
            ahead = set(content.keys.values()) - completed - content.before(at.current)
            if at.current is not None:
                ahead.discard(content.keys[at.current])
            _require(stuck_on not in ahead, "nobody is stuck on a step that they have not been shown")
        case "advanced":
            _require(is_open and is_here and source == at.current, "an advance leads on from the current step")
            _require(event["outcome"] in ("done", "skipped"), "an advance has an outcome")
            target_by_rule = content.first_open(completed | {content.keys[at.current or ""]})
            _require(target == target_by_rule, f"an advance leads to the first open step, {target_by_rule}")
        case "moved":
            _require(is_open and event["version"] > at.version, "a move leads to a later version")
            _require(source == at.current, "a move leads on from the current step")
            version, carried = event["version"], completed
            target_by_rule = content.first_open(completed)
            _require(target == target_by_rule, f"a move leads to the first open step, {target_by_rule}")
        case "merged":
            version, carried, status = _merged(tables, key, at, event, completed)
        case _:
            raise _Impossible("nobody starts twice")
    if status != "merged":
        status = "completed" if target is None else "in_progress"
    return _Standing(
        version,
        at.attempt,
        event["revision"],
        status,
        target,
        carried,
        at.started_at,
        now,
        (at.completed_at or now) if target is None else None,
    )


def _merged(tables: _Tables, key: Key, at: _Standing, event: Row, completed: set[str]) -> tuple[int, set[str], str]:
    """Version, carried keys and status after a merge, of which there are four kinds."""
    content = tables.contents[key[0], key[3]][event["version"]]
    source, target = event["from_step_id"], event["to_step_id"]
    is_here, is_open = event["version"] == at.version, at.status == "in_progress"
    if source is None:
        _require((key[0], key[2]) in tables.merged_into, "the progress of a visitor ends who is merged")
        _require(is_here and target == at.current, "what ends stays where it stood")
        return at.version, at.carried, "merged"
    visitors = tables.merged_with[key[0], key[2]]
    _require(bool(visitors), "a visitor was merged into this account")
    if is_here and target == at.current and source == (at.current or content.ids[-1]):
        return at.version, at.carried, at.status  # the visitor's progress has changed hands
    _require(is_open, "what is completed stays as it is")
    theirs = [row for each in visitors if (row := tables.progress.get((key[0], key[1], each, key[3])))]
    if (
        target is None
        and source == at.current
        and any(row["completed_at"] is not None and row["version"] == event["version"] for row in theirs)
    ):
        if is_here:
            return at.version, at.carried | {content.keys[source]}, "completed"
        return event["version"], completed, "completed"  # the visitor's completion counts
    _require(is_here, "completed steps are united on one version")
    gained = tables.step_key(key[0], key[3], source)
    of_theirs = set().union(*(_completed_by(tables, key, row) for row in theirs))
    _require(
        gained in of_theirs and gained not in completed, f"no visitor has completed {gained}, or nothing is gained"
    )
    by_rule = content.first_open(completed | {gained or ""})
    _require(target == by_rule, f"who gains a step is on the first open one, {by_rule}")
    return at.version, at.carried | {gained or ""}, at.status


def _completed_by(tables: _Tables, key: Key, row: Row) -> set[str]:
    return {*row["carried"], *tables.contents[key[0], key[3]][row["version"]].before(row["current_step_id"])}


# ----------------------------------------------------------------------------------------------------- calls, events


def _answered(tables: _Tables) -> Iterator[Violation]:
    """Each call that was answered with a move has its event, and no two calls have one. Who resumes stood there.

    Not the other way round: the log's months are dropped, and releases before recorded a call after what it changed.
    """
    claims: dict[tuple[Key, Key], list[Row]] = defaultdict(list)
    repeatable: list[tuple[Row, Key, Key]] = []
    for call in tables.calls:
        key = _held_by(tables, call)
        match call["tool_name"], call["outcome"]:
            case "select_walkthrough", ("started" | "restarted") as kind:
                claims[key, (kind, call["version"], call["step_id"])].append(call)
            case "select_walkthrough", "resumed":  # where somebody else was faster, that is recorded and not this
                repeatable.append((call, key, ("stood", call["version"], call["step_id"])))
            case "select_walkthrough", "moved_to_latest":
                claims[key, ("moved", call["version"], call["step_id"])].append(call)
            case "next_walkthrough_step", "advanced":
                claims[key, ("advanced", *_handle_of(tables, call), call["version"], call["step_id"])].append(call)
            case "next_walkthrough_step", ("completed" | "moved_to_latest"):
                # By the step itself, or by a publish after it; the latter also where the handle was an old one.
                advanced = ("advanced", *_handle_of(tables, call), call["version"], call["step_id"])
                is_by_step = advanced in tables.deeds[key]
                moved = ("moved", call["version"], call["step_id"])
                claims[key, advanced if is_by_step else moved].append(call)
            case "next_walkthrough_step", "stuck":
                repeatable.append((call, key, ("stuck", *_handle_of(tables, call))))
    for (key, deed), calls in claims.items():
        happened = tables.deeds[key][deed]
        if not happened:
            yield Violation("calls.no-event", f"{_at(key)}: {calls[0]['id']} was told {_at(deed)}")
        elif len(calls) > happened:
            ids = ", ".join(call["id"] for call in calls)
            yield Violation("calls.doubled", f"{_at(key)}: {ids} were told {_at(deed)}, which happened {happened}×")
    for call, key, deed in repeatable:
        if not tables.deeds[key][deed]:
            yield Violation("calls.no-event", f"{_at(key)}: {call['id']} was told {_at(deed)}")


def _told(tables: _Tables) -> Iterator[Violation]:
    """What moved nothing shows the step on which its person stood, or on review one that they had completed too.

    And it is answered `repeated` only where the step that was handed in lay behind them.
    """
    for call in tables.calls:
        key, step = _held_by(tables, call), call["step_id"]
        if key in tables.progress and key not in tables.standings:
            continue  # named already
        contents, (attempt, handed, _) = tables.contents[key[0], key[3]], _handle_of(tables, call)
        standings = [each for each in tables.standings.get(key, ()) if each.version == call["version"]]
        stood = [each for each in standings if each.current == step]
        match call["tool_name"], call["outcome"]:
            case "review_walkthrough_step", "review":
                shown = tables.step_key(key[0], key[3], step)
                is_so = bool(stood) or any(shown in each.completed(contents[each.version]) for each in standings)
            case "select_walkthrough", "completed":
                is_so = step is None and bool(stood)
            case "next_walkthrough_step", "stuck":
                is_so = tables.step_key(key[0], key[3], step) == handed and attempt in {each.attempt for each in stood}
            case "next_walkthrough_step", "repeated":
                is_so = any(
                    each.attempt == attempt
                    and (
                        handed in each.completed(contents[each.version])
                        or handed not in contents[each.version].keys.values()
                    )
                    for each in stood
                )
            case _:
                continue
        if not is_so:
            yield Violation("calls.shown", f"{_at(key)}: {call['id']} was told {call['outcome']} and shown {step}")


def _unrecorded(tables: _Tables) -> Iterator[Violation]:
    """Each advance was told to somebody as what it was, or as the move that a publish demanded after it."""
    made = {
        (_held_by(tables, call), *_handle_of(tables, call))
        for call in tables.calls
        if call["tool_name"] == "next_walkthrough_step"
        and call["outcome"] in ("advanced", "completed", "moved_to_latest")
    }
    for key, events in tables.events.items():
        for event in events:
            left = event["attempt"], tables.step_key(key[0], key[3], event["from_step_id"]), event["outcome"]
            if event["kind"] == "advanced" and (key, *left) not in made:
                yield Violation("calls.unrecorded", f"{_at(key)} at revision {event['revision']}")


def _held_by(tables: _Tables, call: Row) -> Key:
    """Whose progress a call was about: a visitor's may have gone to an account since."""
    mine = _key(call)
    account = tables.merged_into.get((call["organization_id"], call["mcp_server_user_id"]))
    return mine if account is None or mine in tables.progress else (*mine[:2], account, mine[3])


def _deeds(tables: _Tables, key: Key, events: Sequence[Row]) -> Counter[Key]:
    deeds: Counter[Key] = Counter()
    for event in events:
        end = event["version"], event["to_step_id"]
        deeds["stood", *end] += 1
        match event["kind"]:
            case "advanced":
                source = tables.step_key(key[0], key[3], event["from_step_id"])
                deeds["advanced", event["attempt"], source, event["outcome"], *end] += 1
            case "stuck":
                source = tables.step_key(key[0], key[3], event["from_step_id"])
                deeds["stuck", event["attempt"], source, "stuck"] += 1
            case kind:
                deeds[kind, *end] += 1
    return deeds


def _handle_of(tables: _Tables, call: Row) -> tuple[Any, ...]:
    """Attempt and key of the step that a call said was completed, and how it was left."""
    body, _, check = (call["handle"] or "").strip().rpartition(".")
    parts = body.split(".")
    if len(parts) != 4 or hashlib.sha256(body.encode()).hexdigest()[:6] != check or not parts[3].isdecimal():
        return (0, "no handle", call["left_as"])
    return (int(parts[3]), tables.step_key(call["organization_id"], parts[0], parts[2]), call["left_as"])


def _shown(
    tables: _Tables, first_calls: Mapping[str, int], told_by_errors: set[tuple[str, str]]
) -> Iterator[Violation]:
    """Nobody has advanced from a step that no recorded answer has shown them: who holds a handle was answered.

    Only where the log goes back as far as the progress, and by honest clients: whoever computes a handle by
    themselves needs to be shown nothing.
    """
    shown: dict[Key, set[str | None]] = defaultdict(set)
    for call in tables.calls:
        if call["outcome"] not in ("error", "review"):
            step = tables.step_key(call["organization_id"], call["walkthrough_id"], call["step_id"])
            shown[_held_by(tables, call)].add(step)
    for key, events in tables.events.items():
        begins_before_the_log = events[0]["occurred_at"] < first_calls.get(key[0], sys.maxsize)
        if begins_before_the_log or (key[0], key[2]) in told_by_errors:
            continue
        for event in events:
            step = tables.step_key(key[0], key[3], event["from_step_id"])
            if event["kind"] == "advanced" and step not in shown[key]:
                yield Violation("calls.never-shown", f"{_at(key)}: revision {event['revision']} left {step}")


# ------------------------------------------------------------------------------------------------------------- alone


async def _check(url: str, *, is_log_whole: bool) -> int:
    connection = await asyncpg.connect(url)
    try:
        found = await violations(connection, is_log_whole=is_log_whole)
    finally:
        await connection.close()
    for violation in found:
        print(violation)
    return int(bool(found))


if __name__ == "__main__":
    given = sys.argv[1:]
    if len(given) - given.count("--whole-log") != 1:
        sys.exit("usage: python -m tests.torture.checker [--whole-log] postgresql://…")
    url = next(each for each in given if each != "--whole-log")
    sys.exit(asyncio.run(_check(url, is_log_whole="--whole-log" in given)))
