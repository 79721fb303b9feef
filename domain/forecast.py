"""The forecast of a publish: how many stand where, and what would become of them, before anything is published.

No rule of progress is told here a second time: the forecast lets each group of people make its next `select` after
the publish, by the function that will decide when they really do, and counts the answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum

from domain.errors import CorruptHistory, WalkthroughUnavailable
from domain.progress import Progress, ProgressKey, Status, Told, Transition, Versions, move_is_offered, select
from domain.tenancy import Millis, ServerId, StepId, UserId
from domain.walkthrough import Heading, Manuscript, Outline, Publication, PublishPolicy, VersionKey


class Fate(StrEnum):
    """What becomes of someone mid-way, by their next select."""

    STAYS = "stays"
    """They finish what they began."""
    OFFERED = "offered"
    """They may finish, and are told how to move."""
    MOVES = "moves"
    """They go on at the first step of the new version that they have not done."""
    COMPLETES = "completes"
    """They have done every step of the new version."""
    PENDING = "pending"
    """They would go on in the new version, and do so once the walkthrough is shown on their server again."""
    RESTARTS = "restarts"
    """Their version is withdrawn: they begin the new one."""
    WAITS = "waits"
    """Their version is withdrawn, and the walkthrough is hidden on their server."""


_FATES = {
    Told.MOVED_TO_LATEST: Fate.MOVES,
    Told.COMPLETED: Fate.COMPLETES,
    Told.RESTARTED: Fate.RESTARTS,
}


@dataclass(frozen=True, slots=True)
class Standing:
    """People mid-way who stand alike. Completed attempts are no part of a forecast: nobody moves those."""

    version: int
    current_step_id: StepId
    carried: frozenset[str]
    """As in Progress."""
    is_enabled: bool
    """Whether the walkthrough is enabled on their server."""
    people: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """One row of a forecast: `people` stand on one step of an older version, and share a fate."""

    version: int
    number: int
    """The step's, from 1."""
    step_key: str
    fate: Fate
    to_number: int | None
    """The step of the new version on which they go on, from 1; None where they do not go on in it."""
    people: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a publish would do to everyone mid-way, by version, step and fate; no rows where nobody is."""

    outlooks: tuple[Outlook, ...]

    def people(self, *fates: Fate) -> int:
        """How many share one of these fates; everybody, where none is named."""
        return sum(outlook.people for outlook in self.outlooks if not fates or outlook.fate in fates)


def forecast(
    key: VersionKey,
    manuscript: Manuscript,
    policy: PublishPolicy,
    standings: Iterable[Standing],
    versions: Versions,
    *,
    withdrawn: Collection[int],
) -> Forecast:
    """What becomes of `standings` once `manuscript` is published as the version `key`, under `policy`.

    `versions` holds every version that anyone stands on; `withdrawn` has the numbers of those withdrawn already.
    A publish shows the walkthrough on every server where it is enabled, and enables it on none.

    Raises:
        CorruptHistory: when a standing's version does not hold its step.
    """
    # Steps get their ids when they are stored; until then their keys will do.
    steps = tuple(Heading(StepId(text.key), text.key, text.title) for text in manuscript.steps)
    new = Outline(key, manuscript.title, steps)
    tally: Counter[tuple[int, int, str, Fate, int | None]] = Counter()
    for standing in standings:
        mine = versions[standing.version]
        publication = Publication(
            latest_version=new.number,
            policy=policy,
            is_available=standing.is_enabled,
            is_withdrawn=policy.withdraws_older or mine.number in withdrawn,
        )
        step = mine.step(standing.current_step_id)
        if step is None:
            raise CorruptHistory(f"version {mine.number} does not hold step {standing.current_step_id}")
        fate, to_number = _fate(_progress(key, standing), publication, mine, new)
        tally[mine.number, mine.position(step.id) + 1, step.key, fate, to_number] += standing.people
    rows = [Outlook(*place, people) for place, people in tally.items()]
    rows.sort(key=lambda row: (row.version, row.number, row.fate, row.to_number or 0))
    return Forecast(tuple(rows))


def _progress(key: VersionKey, standing: Standing) -> Progress:
    """Anyone who stands so. Who, where and since when decides nothing."""
    nobody = ProgressKey(key.organization_id, ServerId("-"), UserId("-"), key.walkthrough_id)
    return Progress(
        key=nobody,
        version=standing.version,
        attempt=1,
        revision=1,
        status=Status.IN_PROGRESS,
        current_step_id=standing.current_step_id,
        carried=standing.carried,
        started_at=Millis(0),
        last_activity_at=Millis(0),
        completed_at=None,
    )


def _fate(progress: Progress, publication: Publication, mine: Outline, new: Outline) -> tuple[Fate, int | None]:
    """Their next select after the publish, and the number of the new version's step that it leads to, if any."""
    versions = {mine.number: mine, new.number: new}

    def selected(publication: Publication) -> Transition:
        return select(progress, progress.key, publication, versions, restart=False, to_latest=False, now=Millis(0))

    try:
        transition = selected(publication)
    except WalkthroughUnavailable:
        return Fate.WAITS, None
    after = transition.after
    if after.version == new.number:
        return _FATES[transition.told], after.current_number(new)
    if move_is_offered(after, publication):
        return Fate.OFFERED, None
    if selected(publication._replace(is_available=True)).after.version == new.number:
        return Fate.PENDING, None
    return Fate.STAYS, None
