"""What an author does: hand in a walkthrough or edit its draft, publish it, take it back, put it on servers.

Every method takes the organisation by its slug; another organisation's walkthrough is answered like one that is not
there. `by` says who acts, and is kept with what they did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from application.ports import (
    AssignmentStore,
    Clock,
    ContentCheck,
    Ids,
    Placement,
    VersionLibrary,
    VersionPeople,
    WalkthroughStore,
)
from application.tenancy import Tenancy
from domain.draft import Draft, Edit, RecordedEdit
from domain.errors import NotFound
from domain.forecast import Forecast, forecast
from domain.publishing import (
    Change,
    Deed,
    DraftRevision,
    LedgerEntry,
    Signature,
    VersionRecord,
    Walkthrough,
    unknown,
)
from domain.tenancy import Millis, OrganizationId, ServerKey, StepId, WalkthroughId, key
from domain.walkthrough import Assignment, Manuscript, PublishPolicy, Version, VersionKey, take_in

_NOBODY = VersionPeople(mid_way=0, completed=0)


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a content: the version it is now, or was already."""

    walkthrough_id: WalkthroughId
    key: str
    version: int
    is_published: bool
    is_unchanged: bool
    policy: PublishPolicy | None
    """The one that holds: of what is unchanged, the earlier one. None for a draft."""
    is_shown_again: bool
    """Whether this ended an unpublishing."""
    hidden_on: tuple[str, ...]
    """The slugs of the servers, among those it was to be put on, on which it is and stays disabled."""


@dataclass(frozen=True, slots=True)
class Done:
    """What was done to a walkthrough as a whole; or was so already, and is left as it was."""

    key: str
    deed: Deed
    version: int | None
    """The one that it concerns, which is the latest but for a withdrawal; None where there is none."""
    policy: PublishPolicy | None
    """That version's."""
    was_already: bool


@dataclass(frozen=True, slots=True)
class VersionListing:
    """A version, and how many people are on it now."""

    record: VersionRecord
    people: VersionPeople


@dataclass(frozen=True, slots=True)
class History:
    """A walkthrough as its authors see it."""

    key: str
    is_published: bool
    archived_at: Millis | None
    versions: Sequence[VersionListing]
    """By number."""
    draft: Draft | None
    """None while it holds nothing that the latest version does not."""
    ledger: Sequence[LedgerEntry]
    """In order."""


@dataclass(frozen=True, slots=True)
class Prospect:
    """What a publish would do."""

    version: int
    """The number that the content would get, or has."""
    is_unchanged: bool
    """Whether it is the latest version's. Then nobody is moved, unless that was unpublished and is shown again."""
    policy: PublishPolicy
    """The one that would hold: of what is unchanged, the earlier one."""
    forecast: Forecast


class Authoring:
    """The author's use cases."""

    def __init__(
        self,
        walkthroughs: WalkthroughStore,
        assignments: AssignmentStore,
        library: VersionLibrary,
        check_content: ContentCheck,
        tenancy: Tenancy,
        ids: Ids,
        clock: Clock,
    ) -> None:
        self._walkthroughs = walkthroughs
        self._assignments = assignments
        self._library = library
        self._check_content = check_content
        self._tenancy = tenancy
        self._ids = ids
        self._clock = clock

    # ------------------------------------------------------------------------------------------- handing in

    async def push(
        self,
        organization: str,
        manuscript: Manuscript,
        *,
        publish: PublishPolicy | None,
        servers: Sequence[tuple[str, int | None]],
        by: str,
        expected_latest: int | None = None,
        is_forced: bool = False,
    ) -> Stored:
        """Makes a manuscript the draft, or publishes it; and assigns it to `servers` (slug, order). All or nothing.

        `expected_latest` is the latest version that its author had seen, 0 for none. Where that is not said, it is the
        one that is latest as this begins: so of two that publish at once, the second is told of the first.

        Raises:
            ContentRejected: a text of it must not be delivered.
            NotFound: no such organisation or server, and as `Walkthrough.push`.
            EditedInPlace, PublishedMeanwhile, OperatorError: as `Walkthrough.push`.
        """
        organization_id = await self._tenancy.organization(organization)
        if publish is not None and expected_latest is None:
            found = await self._walkthroughs.read(organization_id, manuscript.key)
            expected_latest = found.latest_number if found is not None else 0
        self._check_content(manuscript)  # here too, where nobody waits for the walkthrough meanwhile
        placements = await self._placements(organization, servers)
        change = await self._change(
            organization_id,
            manuscript.key,
            lambda it: it.push(
                manuscript,
                self._step_ids(),
                self._signed(by),
                publish=publish,
                expected_latest=expected_latest,
                is_forced=is_forced,
            ),
            new_id=WalkthroughId(self._ids.new("wt")),
            placements=placements,
        )
        on = zip(servers, change.assignments, strict=True)
        return _stored(change, hidden_on=tuple(slug for (slug, _), at in on if not at.is_enabled))

    # ----------------------------------------------------------------------------------------------- drafts

    async def draft(self, organization: str, key_: str) -> Draft:
        """The draft; where nobody has changed anything, the latest version's copy, at revision 0.

        Raises:
            NotFound: no such organisation or walkthrough.
        """
        _, walkthrough = await self._read(organization, key_)
        return walkthrough.drafted(self._step_ids())

    async def edits(self, organization: str, key_: str, since: DraftRevision) -> Sequence[RecordedEdit]:
        """The edits that were recorded after the draft was as in `since`, in order, those of later drafts included.

        Raises:
            NotFound: as `draft`.
        """
        _, walkthrough = await self._read(organization, key_, since=since)
        return walkthrough.edits_since

    async def edit(
        self, organization: str, key_: str, based_on: DraftRevision, edits: Sequence[Edit], *, by: str
    ) -> Draft:
        """Applies all of these edits to the draft that was read, or none; returns the draft after them.

        Raises:
            ContentRejected: a text of the draft must not be delivered.
            StaleEdit: when the draft has changed since it was read, with what changed; nothing is stored.
            NotFound, AlreadyExists, InvalidValue: as `draft`, and when an edit cannot be applied.
        """
        return await self._edit(
            organization,
            key_,
            based_on,
            lambda it: it.edit(based_on, edits, self._step_ids(), self._signed(by)),
        )

    async def reorder(
        self, organization: str, key_: str, based_on: DraftRevision, step_keys: Sequence[str], *, by: str
    ) -> Draft:
        """Brings the draft's steps into this order, by as few moves as can be.

        Raises:
            StaleEdit, NotFound, InvalidValue: as `edit`.
        """
        return await self._edit(
            organization,
            key_,
            based_on,
            lambda it: it.reorder(based_on, step_keys, self._step_ids(), self._signed(by)),
        )

    async def discard_draft(self, organization: str, key_: str, based_on: DraftRevision, *, by: str) -> Draft:
        """Takes the draft back to the latest version, by edits that are recorded like any others.

        Raises:
            StaleEdit, NotFound: as `edit`.
        """
        return await self._edit(
            organization,
            key_,
            based_on,
            lambda it: it.discard(based_on, self._step_ids(), self._signed(by)),
        )

    # ------------------------------------------------------------------------------------------- publishing

    async def publish(
        self, organization: str, key_: str, based_on: DraftRevision, policy: PublishPolicy, *, by: str
    ) -> Stored:
        """Publishes the draft that was read.

        Raises:
            PublishedMeanwhile, StaleEdit, InvalidValue, OperatorError: as `Walkthrough.publish`.
            NotFound: no such organisation or walkthrough.
        """
        organization_id = await self._tenancy.organization(organization)
        change = await self._change(
            organization_id,
            key_,
            lambda it: it.publish(based_on, self._step_ids(), policy, self._signed(by)),
            since=based_on,
        )
        return _stored(change)

    async def roll_back(
        self,
        organization: str,
        key_: str,
        version: int,
        policy: PublishPolicy,
        *,
        by: str,
        expected_latest: int | None = None,
        is_forced: bool = False,
    ) -> Stored:
        """Publishes an older version's content as a new version. It takes the place of a draft, as a push does.

        Raises:
            NotFound: no such organisation, walkthrough or version.
            EditedInPlace, PublishedMeanwhile, OperatorError: as `Walkthrough.push`.
        """
        manuscript = (await self.version(organization, key_, version)).manuscript(key_)
        organization_id = await self._tenancy.organization(organization)
        change = await self._change(
            organization_id,
            key_,
            lambda it: it.push(
                manuscript,
                self._step_ids(),
                self._signed(by),
                publish=policy,
                expected_latest=expected_latest,
                is_forced=is_forced,
                rolls_back_to=version,
            ),
        )
        return _stored(change)

    async def forecast(self, organization: str, manuscript: Manuscript, policy: PublishPolicy) -> Prospect:
        """What publishing this manuscript (a draft's, or an older version's) would do now. Nothing is stored.

        Raises:
            NotFound: no such organisation.
        """
        organization_id = await self._tenancy.organization(organization)
        walkthrough = await self._walkthroughs.read(organization_id, manuscript.key)
        if walkthrough is None:
            return Prospect(1, is_unchanged=False, policy=policy, forecast=Forecast(()))
        latest = walkthrough.latest_number
        intake = take_in(
            manuscript,
            latest=latest or None,
            latest_hash=walkthrough.record(latest).content_hash if latest else None,
            is_published=walkthrough.is_published,
            publish=True,
        )
        if intake.is_unchanged:
            policy = walkthrough.record(latest).policy
        if intake.is_unchanged and walkthrough.is_published:
            return Prospect(intake.version, is_unchanged=True, policy=policy, forecast=Forecast(()))
        # Whoever is on that very version already is not moved by it.
        standings = [
            each
            for each in await self._walkthroughs.standings(organization_id, walkthrough.id)
            if each.version != intake.version
        ]
        keys = {VersionKey(organization_id, walkthrough.id, each.version) for each in standings}
        versions = await self._library.outlines(keys)
        expected = forecast(
            VersionKey(organization_id, walkthrough.id, intake.version),
            manuscript,
            policy,
            standings,
            {version.number: outline for version, outline in versions.items()},
            withdrawn={version.number for version in walkthrough.versions if version.is_withdrawn},
        )
        return Prospect(intake.version, is_unchanged=intake.is_unchanged, policy=policy, forecast=expected)

    async def unpublish(self, organization: str, key_: str, *, by: str) -> Done:
        """Hides a walkthrough; those mid-way may finish it.

        Raises:
            NotFound: no such organisation or walkthrough.
            OperatorError: when it was never published.
        """
        return await self._do(organization, key_, Deed.UNPUBLISHED, lambda it: it.unpublish(self._signed(by)))

    async def publish_again(self, organization: str, key_: str, *, by: str) -> Done:
        """Shows the latest version of an unpublished walkthrough again, under its earlier policy.

        Raises:
            NotFound: no such organisation or walkthrough.
            OperatorError: when it was never published, or is archived.
        """
        return await self._do(
            organization,
            key_,
            Deed.REPUBLISHED,
            lambda it: it.publish_again(self._signed(by)),
        )

    async def archive(self, organization: str, key_: str, *, by: str) -> Done:
        """Hides a walkthrough, and keeps it from being published until it is restored.

        Raises:
            NotFound: no such organisation or walkthrough.
        """
        return await self._do(organization, key_, Deed.ARCHIVED, lambda it: it.archive(self._signed(by)))

    async def restore(self, organization: str, key_: str, *, by: str) -> Done:
        """Takes a walkthrough from the archive, as it went there.

        Raises:
            NotFound: no such organisation or walkthrough.
        """
        return await self._do(organization, key_, Deed.RESTORED, lambda it: it.restore(self._signed(by)))

    async def withdraw(self, organization: str, key_: str, version: int, *, by: str) -> Done:
        """Ends an older version for ever: whoever is mid-way on it begins again on the latest.

        Raises:
            NotFound: no such organisation, walkthrough or published version.
            OperatorError: for the latest version.
        """
        return await self._do(
            organization,
            key_,
            Deed.WITHDRAWN,
            lambda it: it.withdraw(version, self._signed(by)),
            version=version,
        )

    async def versions(self, organization: str, key_: str) -> History:
        """All versions with the people on them, the draft, and the ledger.

        Raises:
            NotFound: no such organisation or walkthrough.
        """
        organization_id, walkthrough = await self._read(organization, key_)
        people = await self._walkthroughs.people(organization_id, walkthrough.id)
        return History(
            key=walkthrough.key,
            is_published=walkthrough.is_published,
            archived_at=walkthrough.archived_at,
            versions=[VersionListing(each, people.get(each.number, _NOBODY)) for each in walkthrough.versions],
            draft=walkthrough.draft if walkthrough.is_changed else None,
            ledger=await self._walkthroughs.ledger(organization_id, walkthrough.id),
        )

    async def version(self, organization: str, key_: str, number: int | None = None) -> Version:
        """The content of a published version, withdrawn ones included; of the latest, where no number is given.

        Raises:
            NotFound: no such organisation, walkthrough or published version.
        """
        organization_id, walkthrough = await self._read(organization, key_)
        if number is None and walkthrough.latest is None:
            raise NotFound(f"{key_} was never published: publish it with 'cairn push DIR --publish'")
        if walkthrough.latest is not None and number in (None, walkthrough.latest_number):
            return walkthrough.latest
        number = walkthrough.record(number or 0).number
        found = await self._walkthroughs.version(VersionKey(organization_id, walkthrough.id, number))
        if found is None:
            raise unknown(key_)
        return found

    # ------------------------------------------------------------------------------------------ assignments

    async def assign(
        self, organization: str, key: str, servers: Sequence[tuple[str, int | None]]
    ) -> Sequence[Assignment]:
        """Puts a walkthrough on servers; repeating it changes nothing but an order that is given.

        Raises:
            NotFound: no such organisation, walkthrough or server.
        """
        organization_id = await self._tenancy.organization(organization)
        placements = await self._placements(organization, servers)
        return await self._assignments.assign(organization_id, key, placements, self._clock.now())

    async def unassign(self, organization: str, key: str, servers: Sequence[str]) -> Sequence[bool]:
        """Takes a walkthrough from these servers; whether it was there, for each. Nobody's progress goes with it.

        Raises:
            NotFound: no such organisation, walkthrough or server.
        """
        organization_id = await self._tenancy.organization(organization)
        return await self._assignments.unassign(organization_id, key, await self._servers(organization, servers))

    async def enable(self, organization: str, key: str, servers: Sequence[str]) -> Sequence[bool]:
        """Shows a walkthrough on these servers; whether it was hidden there, for each.

        Raises:
            NotFound: no such organisation, walkthrough or server, or it is not on one of them.
        """
        organization_id = await self._tenancy.organization(organization)
        at = await self._servers(organization, servers)
        return await self._assignments.set_enabled(organization_id, key, at, is_enabled=True)

    async def disable(self, organization: str, key: str, servers: Sequence[str]) -> Sequence[bool]:
        """Hides a walkthrough on these servers, and keeps its place; whether it was shown there, for each.

        Raises:
            NotFound: as `enable`.
        """
        organization_id = await self._tenancy.organization(organization)
        at = await self._servers(organization, servers)
        return await self._assignments.set_enabled(organization_id, key, at, is_enabled=False)

    async def order(self, organization: str, server: str, first: Sequence[str]) -> Sequence[str]:
        """Puts the walkthroughs with these keys at the top of a server's list; returns the keys of the whole list.

        Raises:
            NotFound: no such organisation or server, or one of the walkthroughs is not on it.
            InvalidValue: when one is named twice.
        """
        (at,) = await self._servers(organization, [server])
        return await self._assignments.order(at, first)

    # ------------------------------------------------------------------------------------------------ parts

    async def _change(
        self,
        organization_id: OrganizationId,
        key_: str,
        decide: Callable[[Walkthrough], Change],
        *,
        since: DraftRevision | None = None,
        new_id: WalkthroughId | None = None,
        placements: Sequence[Placement] = (),
    ) -> Change:
        def decided(walkthrough: Walkthrough) -> Change:
            change = decide(walkthrough)
            # Every text that is to be stored or published comes by here, whichever way it came.
            if change.draft is not None and change.draft.texts:
                self._check_content(change.draft.manuscript())
            return change

        return await self._walkthroughs.change(
            organization_id, key(key_), decided, self._clock.now(), since=since, new_id=new_id, placements=placements
        )

    async def _edit(
        self, organization: str, key_: str, based_on: DraftRevision, decide: Callable[[Walkthrough], Change]
    ) -> Draft:
        organization_id = await self._tenancy.organization(organization)
        change = await self._change(organization_id, key_, decide, since=based_on)
        return change.after.drafted(self._step_ids())

    async def _do(
        self,
        organization: str,
        key_: str,
        deed: Deed,
        decide: Callable[[Walkthrough], Change],
        *,
        version: int | None = None,
    ) -> Done:
        organization_id = await self._tenancy.organization(organization)
        change = await self._change(organization_id, key_, decide)
        number = version or change.after.latest_number or None
        policy = None if number is None else change.after.record(number).policy
        return Done(key_, deed, number, policy, was_already=change.is_empty)

    async def _read(
        self, organization: str, key_: str, *, since: DraftRevision | None = None
    ) -> tuple[OrganizationId, Walkthrough]:
        organization_id = await self._tenancy.organization(organization)
        walkthrough = await self._walkthroughs.read(organization_id, key(key_), since=since)
        if walkthrough is None:
            raise unknown(key_)
        return organization_id, walkthrough

    def _signed(self, by: str) -> Signature:
        return Signature(by, self._clock.now())

    def _step_ids(self) -> Iterator[StepId]:
        while True:
            yield StepId(self._ids.new("stp"))

    async def _placements(self, organization: str, servers: Sequence[tuple[str, int | None]]) -> Sequence[Placement]:
        return [Placement((await self._tenancy.server(slug, organization)).key, order) for slug, order in servers]

    async def _servers(self, organization: str, slugs: Sequence[str]) -> Sequence[ServerKey]:
        return [(await self._tenancy.server(slug, organization)).key for slug in slugs]


def _stored(change: Change, *, hidden_on: tuple[str, ...] = ()) -> Stored:
    intake, after = change.intake, change.after
    assert intake is not None, "a push and a publish take a content in"  # noqa: S101
    is_version = intake.version <= after.latest_number
    return Stored(
        after.id,
        after.key,
        intake.version,
        is_published=intake.is_published,
        is_unchanged=intake.is_unchanged,
        policy=after.record(intake.version).policy if is_version else None,
        is_shown_again=change.entry is not None and change.entry.deed is Deed.REPUBLISHED,
        hidden_on=hidden_on,
    )
