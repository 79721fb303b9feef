"""What an operator does for people: looks them up, hands over what is stored about them, and erases it.

A person is named by a verified e-mail address, or by their id, as visitors have to be. Whoever is not there and whoever
is another organisation's are not told apart.

To be erased means: the person, the visitors in their account, their identities, grants, tokens, sign-ins under way,
progress and its events are deleted. In the log of calls it stays that a call was made, of which tool, when, with what
outcome; who made it, with which client, and what was sent is gone. Whoever signs in with the address afterwards is a
new person. The ledger and the drafts of authors are none of it: authors are no end users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from application.ports import Begun, Clock, PersonalDataStore, PersonalRecord, PersonSummary, ToolCall, VersionLibrary
from application.tenancy import Tenancy
from domain.errors import NotFound, TemporarilyUnavailable
from domain.tenancy import Millis, OrganizationId, StepId, UserId, email_address
from domain.walkthrough import Outline, VersionKey

MAX_PEOPLE = 1_000
"""On one page of the list."""
_MAX_DECISIONS = 3
# A call gets its time before its row is written, by the clock of another machine: one so much earlier may still come.
_LATENESS = Millis(10 * 60_000)


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the people of an organisation. `next` is what the page behind it comes after; None: there is none."""

    people: Sequence[PersonSummary]
    next: str | None


@dataclass(frozen=True, slots=True)
class StepName:
    """A step as people know it."""

    key: str
    title: str


@dataclass(frozen=True, slots=True)
class Taken:
    """A walkthrough that somebody has begun, with the names of the steps it is about."""

    begun: Begun
    title: str
    total_steps: int
    current: StepName | None
    current_number: int | None
    completed: Sequence[StepName]
    """Of this attempt: in the order of the version they are on, then by key those that it no longer has."""
    steps: Mapping[StepId, StepName]
    """All that the events name."""


@dataclass(frozen=True, slots=True)
class Dossier:
    """All that is stored about a person, but for their calls."""

    record: PersonalRecord
    taken: Sequence[Taken]


@dataclass(frozen=True, slots=True)
class Erased:
    """Somebody who is no more, and how many calls they had made."""

    user_id: UserId
    calls: int


class PersonalData:
    """The use cases. `who` is an address, in whatever case, or an id."""

    def __init__(self, store: PersonalDataStore, library: VersionLibrary, tenancy: Tenancy, clock: Clock) -> None:
        self._store = store
        self._library = library
        self._tenancy = tenancy
        self._clock = clock

    async def people(
        self, organization: str, *, server: str | None = None, after: str | None = None, limit: int
    ) -> Page:
        """At most `limit`, up to `MAX_PEOPLE`: by address, then visitors by id.

        Raises:
            NotFound: no such organisation, or no such server in it.
        """
        organization_id = await self._tenancy.organization(organization)
        server_id = None if server is None else (await self._tenancy.server(server, organization)).key.server_id
        limit = min(limit, MAX_PEOPLE)
        behind = None if after is None else _known_as(after)
        found = await self._store.people(organization_id, server_id, behind, limit + 1)
        shown = found[:limit]
        return Page(shown, (shown[-1].email or shown[-1].user_id) if len(found) > limit else None)

    async def find(self, organization_id: OrganizationId, who: str) -> UserId:
        """Raises: NotFound."""
        found = await self._store.find(organization_id, _known_as(who))
        if found is None:
            raise NotFound(f"there is nobody {who!r} in this organisation: see 'cairn user list' with its slug")
        return found

    async def record(self, organization: str, who: str) -> PersonalRecord:
        """What is stored about a person, but for their calls, and without what they took.

        Raises:
            NotFound.
        """
        return await self._record(await self._tenancy.organization(organization), who)

    async def dossier(self, organization: str, who: str) -> Dossier:
        """What is stored about a person, but for their calls.

        Raises:
            NotFound.
        """
        organization_id = await self._tenancy.organization(organization)
        record = await self._record(organization_id, who)
        return Dossier(record, [await self._taken(organization_id, begun) for begun in record.begun])

    async def calls(self, organization: str, record: PersonalRecord) -> Sequence[ToolCall]:
        """All that are logged of a person, by time. Reads the whole log of the organisation."""
        organization_id = await self._tenancy.organization(organization)
        found: list[ToolCall] = []
        since: Millis | None = Millis(0)
        while since is not None:
            calls, since = await self._store.calls(organization_id, record.user_ids, since)
            found += calls
        return found

    async def erase(self, organization: str, who: str) -> Erased:
        """Erases a person. What it was interrupted in, it does when it is repeated.

        The calls come first: they are found by the person, and by nothing else. They are gone through stretch by
        stretch, in a transaction each; then everything else goes at once, with the calls made meanwhile.

        Raises:
            NotFound: nobody like that, or not any more.
            TemporarilyUnavailable: visitors came into the account time and again meanwhile.
        """
        organization_id = await self._tenancy.organization(organization)
        calls = 0
        for _ in range(_MAX_DECISIONS):
            record = await self._record(organization_id, who)
            began_at = self._clock.now()
            since: Millis | None = Millis(0)
            while since is not None:
                forgotten = await self._store.forget_calls(organization_id, record.user_ids, since)
                calls, since = calls + forgotten.calls, forgotten.next
            late = await self._store.erase(organization_id, record.user_ids, Millis(began_at - _LATENESS))
            if late is not None:
                return Erased(record.user_id, calls + late)
        raise TemporarilyUnavailable

    async def _record(self, organization_id: OrganizationId, who: str) -> PersonalRecord:
        record = await self._store.record(organization_id, await self.find(organization_id, who))
        if record is None:
            raise NotFound(f"{who} has been erased in this very moment")
        return record

    async def _taken(self, organization_id: OrganizationId, begun: Begun) -> Taken:
        progress = begun.progress
        numbers = {progress.version} | {event.version for event in begun.events}
        keys = [VersionKey(organization_id, progress.key.walkthrough_id, number) for number in numbers]
        versions = {key.number: version for key, version in (await self._library.outlines(keys)).items()}
        version = versions[progress.version]
        names = {step.id: StepName(step.key, step.title) for each in versions.values() for step in each.steps}
        current = progress.current_step(version)
        return Taken(
            begun,
            version.title,
            len(version.steps),
            None if current is None else names[current.id],
            progress.current_number(version),
            _completed(progress.completed_keys(version), version, versions),
            names,
        )


def _completed(keys: frozenset[str], version: Outline, versions: Mapping[int, Outline]) -> Sequence[StepName]:
    here = [step for step in version.steps if step.key in keys]
    gone = keys - {step.key for step in here}
    # The newest wording of each.
    titles = {step.key: step.title for number in sorted(versions) for step in versions[number].steps}
    return [
        *(StepName(step.key, step.title) for step in here),
        *(StepName(key, titles.get(key, key)) for key in sorted(gone)),
    ]


def _known_as(who: str) -> str:
    return email_address(who) if "@" in who else who
