"""The numbers an author sees, added up by one statement. What each means is said in `application/insight.py`."""

from __future__ import annotations

from typing import Any

import msgspec

from adapters.postgres.connections import Database
from application.ports import AttemptCounts, Cohort, Counts, Measures, StepCounts, StuckNote, Subject
from domain.tenancy import Millis, OrganizationId, WalkthroughId

_SUBJECT = "select id, latest_version from walkthroughs where organization_id = $1 and key = $2"

# $1 organisation, $2 walkthrough, $3 server or null, $4 version or null, $5 since, $6 until (not included),
# $7 now, $8 pause, $9 too fast, $10 abandoned after, $11 notes at most. Times are Unix milliseconds.
#
# An attempt that began in the time range has all of its events in it or later, so the index by time reads no earlier
# ones. `offset 0` keeps the planner from fetching the events person by person to save the sort: scattered over the
# table as they are, that took three times as long.
_COUNTS = """
with moment as (
    -- An event, what came after it (until then its `to_step_id` was the current step), and how long after.
    select mcp_server_id, mcp_server_user_id, attempt, version, kind, to_step_id, occurred_at,
           kind = 'merged' and from_step_id is null as is_end,
           lead(kind) over person as next_kind,
           lead(occurred_at) over person - occurred_at as gap,
           lead(outcome) over stay as next_outcome,
           lead(occurred_at) over stay
           - max(occurred_at) filter (where kind = 'advanced') over stay as next_since_advance
      from (select mcp_server_id, mcp_server_user_id, attempt, version, revision, kind, outcome, from_step_id,
                   to_step_id, occurred_at
              from walkthrough_progress_events
             where organization_id = $1 and walkthrough_id = $2 and occurred_at >= $5::bigint
               and ($3::text is null or mcp_server_id = $3)
            offset 0) as event
    window person as (partition by mcp_server_id, mcp_server_user_id order by revision),
           stay as (partition by mcp_server_id, mcp_server_user_id, attempt, version order by revision
                    rows unbounded preceding)
), visit as (
    -- An attempt at a step; the key is null once no step is left. A step from which the call that advanced to it moved
    -- on at once was shown to nobody.
    select m.mcp_server_id, m.mcp_server_user_id, m.attempt, s.key,
           min(m.occurred_at) filter (where m.kind in ('started', 'restarted')
                                         or (m.kind = 'moved' and $4::integer is not null)) as began_at,
           max(m.occurred_at) as last_at,
           bool_or(m.next_kind is null and not m.is_end) as is_last,
           bool_or(m.next_kind = 'restarted') as is_given_up,
           bool_or(m.next_outcome in ('done', 'skipped')) as is_completed,
           bool_or(m.next_outcome = 'skipped') as is_skipped,
           bool_or(m.next_outcome in ('done', 'skipped') and m.next_since_advance <= $9::bigint) as is_too_fast,
           bool_or(m.gap > $8::bigint and m.next_kind <> 'restarted') as is_resumed,
           sum(m.gap) filter (where m.gap <= $8::bigint) as active
      from moment m
      left join walkthrough_steps s
        on s.organization_id = $1 and s.walkthrough_id = $2 and s.version = m.version and s.id = m.to_step_id
     where ($4::integer is null or m.version = $4)
       and (m.kind = 'advanced' and m.next_kind = 'moved' and m.gap = 0) is not true
     group by m.mcp_server_id, m.mcp_server_user_id, m.attempt, s.key
), attempt as (
    select mcp_server_id, mcp_server_user_id, attempt,
           case when bool_or(key is null) then 'completed'
                when bool_or(is_given_up) then 'restarted'
                when not bool_or(is_last) then 'moved_on'
                when max(last_at) <= $7::bigint - $10::bigint then 'abandoned'
                else 'in_progress' end as state,
           bool_or(is_resumed) filter (where key is not null) as is_resumed,
           bool_or(is_skipped) as is_skipped,
           bool_or(is_too_fast) as is_too_fast
      from visit
     group by mcp_server_id, mcp_server_user_id, attempt
    having min(began_at) < $6::bigint
), stuck as (
    -- The step is the handle's, which may be of another version than the person is on.
    select mcp_server_id, mcp_server_user_id, attempt, s.key, e.version, e.note, e.occurred_at, e.revision
      from walkthrough_progress_events e
      join attempt using (mcp_server_id, mcp_server_user_id, attempt)
      join walkthrough_steps s
        on s.organization_id = $1 and s.walkthrough_id = $2 and s.id = e.from_step_id
     where e.organization_id = $1 and e.walkthrough_id = $2 and e.kind = 'stuck' and e.occurred_at >= $5::bigint
       and ($3::text is null or e.mcp_server_id = $3) and ($4::integer is null or e.version = $4)
), at_step as (
    select key, count(*) as reached,
           count(*) filter (where v.is_completed) as completed,
           count(*) filter (where v.is_last and state = 'in_progress') as here,
           count(*) filter (where v.is_skipped) as skipped,
           count(*) filter (where v.is_too_fast) as too_fast,
           count(active) filter (where v.is_completed and not v.is_skipped) as timed,
           floor(percentile_cont(0.5) within group (order by active::double precision)
                 filter (where v.is_completed and not v.is_skipped))::bigint as median_active
      from visit v join attempt using (mcp_server_id, mcp_server_user_id, attempt)
     where key is not null
     group by key
), stuck_at as (
    select key, count(distinct (mcp_server_id, mcp_server_user_id, attempt)) as stuck from stuck group by key
)
select (select json_build_object(
                   'people', count(distinct mcp_server_user_id),
                   'started', count(*),
                   'completed', count(*) filter (where state = 'completed'),
                   'in_progress', count(*) filter (where state = 'in_progress'),
                   'abandoned', count(*) filter (where state = 'abandoned'),
                   'restarted', count(*) filter (where state = 'restarted'),
                   'moved_on', count(*) filter (where state = 'moved_on'),
                   'resumed', count(*) filter (where is_resumed),
                   'skipped', count(*) filter (where is_skipped),
                   'stuck', (select count(distinct (mcp_server_id, mcp_server_user_id, attempt)) from stuck),
                   'too_fast', count(*) filter (where is_too_fast))
          from attempt) as attempts,
       (select json_agg(json_build_object(
                   'key', key, 'reached', coalesce(reached, 0), 'completed', coalesce(completed, 0),
                   'here', coalesce(here, 0), 'skipped', coalesce(skipped, 0), 'stuck', coalesce(stuck, 0),
                   'too_fast', coalesce(too_fast, 0), 'timed', coalesce(timed, 0), 'median_active', median_active))
          from at_step full join stuck_at using (key)) as steps,
       (select count(note) from stuck) as note_count,
       (select json_agg(json_build_object(
                   'step_key', key, 'version', version, 'note', note, 'reported_at', occurred_at))
          from (select * from stuck
                 where note is not null
                 order by occurred_at desc, mcp_server_id collate "C", mcp_server_user_id collate "C", revision desc
                 limit $11) as newest) as notes
"""
# A million events take about 5 s of a processor, and a tool call's limit is 3 s. An author who looks at them can wait.
_SECONDS = 30
_BEGINNING, _END = 0, 2**63 - 1


class PostgresFunnels:
    """`Funnels` on PostgreSQL: one statement for all the numbers, so that they are of one moment."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def subject(self, organization_id: OrganizationId, key: str) -> Subject | None:
        async with self._database.hot_transaction(organization_id) as connection:
            row = await connection.fetchrow(_SUBJECT, organization_id, key)
        return None if row is None else Subject(WalkthroughId(row["id"]), row["latest_version"])

    async def counts(
        self, organization_id: OrganizationId, walkthrough_id: WalkthroughId, cohort: Cohort, measures: Measures
    ) -> Counts:
        async with self._database.hot_transaction(organization_id) as connection:
            await connection.execute(f"set local statement_timeout = '{_SECONDS}s'")
            row = await connection.fetchrow(
                _COUNTS,
                organization_id,
                walkthrough_id,
                cohort.server_id,
                cohort.version,
                _BEGINNING if cohort.since is None else cohort.since,
                _END if cohort.until is None else cohort.until,
                measures.now,
                measures.pause,
                measures.too_fast,
                measures.abandoned_after,
                measures.max_notes,
                timeout=_SECONDS,
            )
        assert row is not None  # noqa: S101  # a select without a from has one row
        steps = [StepCounts(**each) for each in _decoded(row["steps"])]
        return Counts(
            attempts=AttemptCounts(**msgspec.json.decode(row["attempts"])),
            steps={each.key: each for each in steps},
            note_count=row["note_count"],
            notes=[_note(each) for each in _decoded(row["notes"])],
        )


def _decoded(rows: str | None) -> list[dict[str, Any]]:
    """What `json_agg` made, which is null for no rows."""
    decoded: list[dict[str, Any]] = msgspec.json.decode(rows) if rows is not None else []
    return decoded


def _note(row: dict[str, Any]) -> StuckNote:
    return StuckNote(row["step_key"], row["version"], row["note"], Millis(row["reported_at"]))
