"""The numbers an author sees, counted from the recorded events of one walkthrough.

Attempt: one person's, at one walkthrough, on one server. Beginning again makes another attempt. All numbers count
attempts; "people" alone counts persons.

Time range: takes the attempts that began in it, and all that became of them until now, also after its end.

Version: without one, an attempt counts as a whole, and what happened on several versions is added up by step key. With
one, it counts for as long as it was on that version: coming to it from an older one is its beginning there, and leaving
it for a newer one its end. An account's attempt that is completed on the version of a visitor's, by that visitor's, is
not counted there: the visitor's is.

Started: attempts that began. Each is exactly one of the next five.

Completed: no step is left. Completion rate: completed, of all that started.

Restarted: given up by beginning again. One that was completed before stays completed.

Moved on: gone on with on another version (only where a version is chosen); or a visitor's, who went on in an account
that had an attempt of its own. An account that had none has taken the visitor's over, and it is the account's.

Abandoned: none of these, and nothing has happened for 14 days (or as many as are asked for) or longer.

In progress: none of these.

Resumed: attempts, not completed then, that went on after more than 30 minutes in which nothing happened.

Too fast: attempts with two advances, one after the other on the same version, at most 3 seconds apart. At a step: those
whose second advance left it.

Reached: the step became the current one and was shown. A step that is passed over, because it was completed in an
earlier version or as a visitor, is not reached again. Nor is one reached that nobody was shown, because the call that
advanced to it moved on to a newer version at once. Such a call leaves an advance and a move in the same millisecond. So
would two calls, were they that quick or the clock set back between them: the events do not tell these apart, and count
as one.

Completed, at a step: it was reached, and left by an advance, done or skipped.

Drop-off: of those that reached a step, the part that has not completed it (so far).

Here: in progress, and this is the current step.

Skipped: the step was left by skipping it. Skipped steps are completed.

Stuck: somebody said so at the step, at least once, also after completing it. Notes are listed one by one.

Active time: how long the step was the current one, less every stretch of more than 30 minutes in which nothing
happened. The median is over the attempts that completed the step without skipping it, and of whose time some is left.

Former steps: with a version, the steps are that version's, else the latest version's. Others at which something was
counted follow, by key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from application.ports import (
    AttemptCounts,
    Clock,
    Cohort,
    Counts,
    Funnels,
    Measures,
    StepCounts,
    StuckNote,
    VersionLibrary,
)
from application.tenancy import Tenancy
from domain.errors import InvalidValue, NotFound
from domain.tenancy import Millis
from domain.walkthrough import Outline, VersionKey

PAUSE = Millis(30 * 60 * 1000)
TOO_FAST = Millis(3_000)
ABANDONED_AFTER_DAYS = 14
MAX_ABANDONED_AFTER_DAYS = 3_650
# A note has up to 2,000 characters, so that these stay within 2 MB; who wants more narrows the time range.
MAX_NOTES = 1_000
_DAY = 24 * 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class FunnelStep:
    """A step with its numbers. `number` and `title` are None for a former step."""

    number: int | None
    title: str | None
    counts: StepCounts

    @property
    def drop_off(self) -> float | None:
        """From 0 to 1; None where nobody reached it."""
        counts = self.counts
        return (counts.reached - counts.completed) / counts.reached if counts.reached else None


@dataclass(frozen=True, slots=True)
class Funnel:
    """All numbers of one cohort of one walkthrough. This module's docstring defines each."""

    key: str
    title: str
    latest_version: int
    server: str | None
    """The slug of the one that was asked for."""
    cohort: Cohort
    abandoned_after_days: int
    counted_at: Millis
    attempts: AttemptCounts
    steps: Sequence[FunnelStep]
    note_count: int
    notes: Sequence[StuckNote]
    """The newest `MAX_NOTES`, newest first."""

    @property
    def completion_rate(self) -> float | None:
        """From 0 to 1; None where nothing was started."""
        return self.attempts.completed / self.attempts.started if self.attempts.started else None


class Insight:
    """The author's view of what learners do, for the organisation that is named by its slug."""

    def __init__(self, funnels: Funnels, library: VersionLibrary, tenancy: Tenancy, clock: Clock) -> None:
        self._funnels = funnels
        self._library = library
        self._tenancy = tenancy
        self._clock = clock

    async def funnel(
        self,
        organization: str,
        key: str,
        *,
        server: str | None = None,
        version: int | None = None,
        since: Millis | None = None,
        until: Millis | None = None,
        abandoned_after_days: int = ABANDONED_AFTER_DAYS,
    ) -> Funnel:
        """The numbers of the walkthrough with this key, as of now; `until` itself lies outside the range.

        Raises:
            NotFound: no such organisation, server, walkthrough or published version.
            InvalidValue: a time range that ends before it begins, or days out of bounds.
        """
        if since is not None and until is not None and until <= since:
            raise InvalidValue("the time range ends before it begins: give an earlier --since or a later --until")
        if not 1 <= abandoned_after_days <= MAX_ABANDONED_AFTER_DAYS:
            raise InvalidValue(f"days are a whole number from 1 to {MAX_ABANDONED_AFTER_DAYS}")
        organization_id = await self._tenancy.organization(organization)
        subject = await self._funnels.subject(organization_id, key)
        if subject is None:
            raise NotFound(f"there is no walkthrough {key!r}: push it first with 'cairn push DIR'")
        latest = subject.latest_version
        if latest is None:
            raise NotFound(f"{key} was never published, so nobody can have taken it: see 'cairn push DIR --publish'")
        shown_key = VersionKey(organization_id, subject.walkthrough_id, version or latest)
        shown = (await self._library.outlines([shown_key])).get(shown_key)
        if shown is None:
            raise NotFound(f"there is no published version {version} of {key}: the latest is {latest}")
        at = await self._tenancy.server(server, organization) if server is not None else None
        now = self._clock.now()
        cohort = Cohort(version, at.key.server_id if at else None, since, until)
        measures = Measures(now, PAUSE, TOO_FAST, Millis(abandoned_after_days * _DAY), MAX_NOTES)
        counts = await self._funnels.counts(organization_id, subject.walkthrough_id, cohort, measures)
        return Funnel(
            key=key,
            title=shown.title,
            latest_version=latest,
            server=server,
            cohort=cohort,
            abandoned_after_days=abandoned_after_days,
            counted_at=now,
            attempts=counts.attempts,
            steps=_steps(shown, counts),
            note_count=counts.note_count,
            notes=counts.notes,
        )


def _steps(shown: Outline, counts: Counts) -> Sequence[FunnelStep]:
    steps = [
        FunnelStep(number, step.title, counts.steps.get(step.key) or _nothing_at(step.key))
        for number, step in enumerate(shown.steps, start=1)
    ]
    former: Mapping[str, StepCounts] = {
        key: counted for key, counted in counts.steps.items() if shown.step_by_key(key) is None
    }
    return [*steps, *(FunnelStep(None, None, former[key]) for key in sorted(former))]


def _nothing_at(key: str) -> StepCounts:
    return StepCounts(key, 0, 0, 0, 0, 0, 0, 0, None)
