"""The life of a walkthrough, as its authors lead it. Every rule about it is in this file.

                        push                        publish, push, roll_back
    (not there) ─────────────────▶ never published ──────────────────────────▶ published ◀─┐ publish: the next version
                                      │      ▲                                 │ ▲  │      │ (unchanged content: none)
                                      └──────┘                       unpublish │ │  └──────┘
                                    edit, push, discard                        ▼ │ publish_again, or any publish
                                    (and in every other state)            unpublished

    archive and restore lead from any of these to its archived form and back; what is archived is not published.
    withdraw concerns one older version, for ever; a publish under `supersede` withdraws all of them.

Deciding is all that happens here: each method of `Walkthrough` returns a Change, which says what the walkthrough is
then, which draft and edits are to be stored, and what goes into the ledger. A store reads the walkthrough, has this
decided, and writes the change, while it keeps other authors of the same walkthrough waiting.

Whoever decides on what they have seen names it: the draft's number and revision, or the latest version's number. Where
that is no longer what is there, nothing is done, and the error says what came in between. A push names no draft: it
may undo what was pushed before, which is in the author's files, but not what was edited in place since, unless forced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice

from domain.difference import difference
from domain.draft import Draft, Edit, InsertStep, RecordedEdit, RemoveStep
from domain.errors import EditedInPlace, NotFound, OperatorError, PublishedMeanwhile
from domain.tenancy import Millis, OrganizationId, StepId, WalkthroughId, display_name
from domain.walkthrough import (
    Assignment,
    Intake,
    Manuscript,
    PublishPolicy,
    Step,
    Version,
    VersionKey,
    VersionState,
    take_in,
)

DraftRevision = tuple[int, int]
"""A draft as somebody has read it: the number of the version that it becomes, and its revision."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Who acts, in one line, and when: recorded with what they do."""

    by: str
    at: Millis

    def __post_init__(self) -> None:
        display_name(self.by)


class Deed(StrEnum):
    """What an author did to a walkthrough as a whole; the ledger keeps it."""

    PUBLISHED = "published"
    ROLLED_BACK = "rolled_back"
    UNPUBLISHED = "unpublished"
    REPUBLISHED = "republished"
    """Shown again after it was unpublished; no new version."""
    ARCHIVED = "archived"
    RESTORED = "restored"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """Who did what, and when. Hash and policy are those of `version`: the one published or withdrawn, else the latest.

    All three are None where nothing had been published.
    """

    deed: Deed
    version: int | None
    content_hash: str | None
    policy: PublishPolicy | None
    source_version: int | None
    """The version whose content was published once more by a rollback."""
    by: str | None
    """None where it was done before the ledger was kept."""
    at: Millis


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A version that was published, without its content."""

    number: int
    state: VersionState
    title: str
    step_count: int
    content_hash: str
    policy: PublishPolicy
    revision: int
    """The draft's, when it was published."""
    published_at: Millis
    published_by: str | None

    @property
    def is_withdrawn(self) -> bool:
        """Whether people on it must begin again."""
        return self.state is VersionState.WITHDRAWN


@dataclass(frozen=True, slots=True)
class Walkthrough:
    """A walkthrough as it is stored, and all that a decision about it looks at."""

    organization_id: OrganizationId
    id: WalkthroughId
    key: str
    is_published: bool = False
    archived_at: Millis | None = None
    versions: tuple[VersionRecord, ...] = ()
    """All that were ever published, by number."""
    latest: Version | None = None
    """The newest one's content."""
    draft: Draft | None = None
    """None until somebody edits, or pushes something new: until then the draft is the latest version's copy."""
    pushed_revision: int = 0
    """The draft's revision when it was last pushed, or begun. What came after it was edited in place."""
    edits_since: tuple[RecordedEdit, ...] = ()
    """What was recorded after the draft and revision that the decision is based on; without one, since the last push"""

    @property
    def latest_number(self) -> int:
        """The newest version's number; 0 where nothing was published."""
        return 0 if self.latest is None else self.latest.number

    @property
    def is_edited_in_place(self) -> bool:
        """Whether the draft holds edits that no push has brought, nor has seen."""
        return self.draft is not None and self.draft.revision > self.pushed_revision

    @property
    def is_changed(self) -> bool:
        """Whether there is a draft, with another content than the latest version's."""
        if self.draft is None or self.latest is None:
            return self.draft is not None
        return _content(self.draft) != self.latest.manuscript(self.key)

    def record(self, number: int) -> VersionRecord:
        """The version with this number.

        Raises:
            NotFound: for one that was never published.
        """
        for version in self.versions:
            if version.number == number:
                return version
        raise NotFound(f"{self.key} has no published version {number}: see 'cairn versions {self.key}'")

    def drafted(self, ids: Iterator[StepId]) -> Draft:
        """The draft; where there is none yet, the latest version's copy at revision 0, with step ids of its own.

        Raises:
            NotFound: where there is neither.
        """
        if self.draft is not None:
            return self.draft
        if self.latest is None:
            raise NotFound(f"{self.key} has neither a version nor a draft: push it with 'cairn push DIR'")
        return Draft.copy(self._next, self.latest.manuscript(self.key), islice(ids, len(self.latest.steps)))

    # ---- drafts

    def edit(self, based_on: DraftRevision, edits: Iterable[Edit], ids: Iterator[StepId], signed: Signature) -> Change:
        """Applies all of `edits` to the draft, or none. Those that change nothing are not recorded.

        Raises:
            StaleEdit: when the draft is no longer at `based_on`.
            NotFound, AlreadyExists, InvalidValue: as `Draft.apply`.
        """
        draft = self._current(based_on, ids)
        return self._edited(draft, [_with_new_id(edit, ids) for edit in edits], self.pushed_revision, signed)

    def reorder(
        self, based_on: DraftRevision, step_keys: Sequence[str], ids: Iterator[StepId], signed: Signature
    ) -> Change:
        """Brings the draft's steps into this order, by the fewest moves.

        Raises:
            StaleEdit: as `edit`.
            InvalidValue: when `step_keys` does not name every step once.
        """
        draft = self._current(based_on, ids)
        return self._edited(draft, draft.reorder(step_keys), self.pushed_revision, signed)

    def discard(self, based_on: DraftRevision, ids: Iterator[StepId], signed: Signature) -> Change:
        """Takes the draft back to the latest version, by edits; to no steps at all, where there is none.

        Raises:
            StaleEdit: as `edit`.
        """
        draft = self._current(based_on, ids)
        edits: Iterable[Edit]
        if self.latest is None:
            edits = [RemoveStep(step.text.key) for step in draft.steps]
        else:
            edits = difference(_content(draft), self.latest.manuscript(self.key)).edits(ids)
        return self._edited(draft, edits, None, signed)

    def push(
        self,
        manuscript: Manuscript,
        ids: Iterator[StepId],
        signed: Signature,
        *,
        publish: PublishPolicy | None,
        expected_latest: int | None = None,
        is_forced: bool = False,
        rolls_back_to: int | None = None,
    ) -> Change:
        """Makes `manuscript` the draft, by edits where there is one, and publishes it where `publish` says how.

        Content equal to the latest version's makes no new one. A draft is then left alone, unless it is forced; only
        a push that is not to be published takes a draft back to it that was pushed itself.

        Raises:
            EditedInPlace: when that would undo edits made in place since the last push, and is not forced.
            PublishedMeanwhile: when there is a newer version than `expected_latest`, without this very content.
            NotFound: when there is no version `expected_latest` yet.
            OperatorError: to publish what is archived.
        """
        if publish is not None:
            self._require_not_archived()
        intake = self._take_in(manuscript, publish)
        if publish is not None and not intake.is_unchanged and expected_latest is not None:
            self._require_latest(expected_latest)
        keeps_draft = not is_forced and (publish is not None or self.is_edited_in_place)
        if intake.is_unchanged and (self.draft is None or keeps_draft):
            change = Change(self, self)
        else:
            change = self._overwritten(manuscript, ids, signed, is_forced=is_forced)
        if publish is not None:
            change = change.published(intake, publish, signed, source_version=rolls_back_to)
        return replace(change, intake=intake)

    # ---- publishing

    def publish(
        self, based_on: DraftRevision, ids: Iterator[StepId], policy: PublishPolicy, signed: Signature
    ) -> Change:
        """Publishes the draft as it was at `based_on`. With the latest version's content it makes no new version.

        Raises:
            PublishedMeanwhile: when this very draft was published already.
            StaleEdit: when the draft is no longer at `based_on` for another reason.
            InvalidValue: when the draft has no steps.
            OperatorError: when the walkthrough is archived.
        """
        self._require_not_archived()
        for version in self.versions:
            if based_on == (version.number, version.revision):
                raise PublishedMeanwhile(self.key, version)
        draft = self._current(based_on, ids)
        intake = self._take_in(draft.manuscript(), policy)
        return replace(Change(self, self).published(intake, policy, signed), intake=intake)

    def unpublish(self, signed: Signature) -> Change:
        """Hides it. Those mid-way may finish.

        Raises:
            OperatorError: when it was never published.
        """
        self._require_published_once("unpublish")
        if not self.is_published:
            return Change(self, self)
        return Change(self, replace(self, is_published=False), entry=self._entry(Deed.UNPUBLISHED, signed))

    def publish_again(self, signed: Signature) -> Change:
        """Shows the latest version again, under its earlier policy.

        Raises:
            OperatorError: when it was never published, or is archived.
        """
        self._require_published_once("publish again")
        self._require_not_archived()
        if self.is_published:
            return Change(self, self)
        return Change(self, replace(self, is_published=True), entry=self._entry(Deed.REPUBLISHED, signed))

    def archive(self, signed: Signature) -> Change:
        """Hides it and keeps it from being published. Its drafts may still be edited, and those mid-way may finish."""
        if self.archived_at is not None:
            return Change(self, self)
        return Change(self, replace(self, archived_at=signed.at), entry=self._entry(Deed.ARCHIVED, signed))

    def restore(self, signed: Signature) -> Change:
        """Takes it from the archive: published or not, as it was before."""
        if self.archived_at is None:
            return Change(self, self)
        return Change(self, replace(self, archived_at=None), entry=self._entry(Deed.RESTORED, signed))

    def withdraw(self, number: int, signed: Signature) -> Change:
        """Ends an older version for ever: whoever is mid-way on it begins again on the latest.

        Raises:
            NotFound: for a version that was never published.
            OperatorError: for the latest, which can be unpublished.
        """
        version = self.record(number)
        if number == self.latest_number:
            raise OperatorError(
                f"version {number} is the latest of {self.key}, and only older ones are withdrawn: unpublish "
                f"{self.key} to hide it, or publish another version first"
            )
        if version.is_withdrawn:
            return Change(self, self)
        withdrawn = replace(version, state=VersionState.WITHDRAWN)
        versions = tuple(withdrawn if each is version else each for each in self.versions)
        return Change(self, replace(self, versions=versions), entry=_entry_of(version, Deed.WITHDRAWN, signed))

    # ---- parts

    @property
    def _next(self) -> VersionKey:
        return VersionKey(self.organization_id, self.id, self.latest_number + 1)

    def _current(self, based_on: DraftRevision, ids: Iterator[StepId]) -> Draft:
        draft = self.drafted(ids)
        draft.require_current(*based_on, self.edits_since)
        return draft

    def _take_in(self, manuscript: Manuscript, publish: PublishPolicy | None) -> Intake:
        return take_in(
            manuscript,
            latest=self.latest_number or None,
            latest_hash=self.record(self.latest_number).content_hash if self.latest else None,
            is_published=self.is_published,
            publish=publish is not None,
        )

    def _overwritten(
        self, manuscript: Manuscript, ids: Iterator[StepId], signed: Signature, *, is_forced: bool
    ) -> Change:
        if self.draft is None and self.latest is None:
            draft = Draft.copy(self._next, manuscript, islice(ids, len(manuscript.steps)))
            return Change(self, replace(self, draft=draft), draft)
        draft = self.drafted(ids)
        edits = difference(_content(draft), manuscript).edits(ids)
        if edits and self.is_edited_in_place and not is_forced:
            raise EditedInPlace(self.key, draft.key.number, draft.revision, self.edits_since)
        return self._edited(draft, edits, None, signed)

    def _edited(self, draft: Draft, edits: Iterable[Edit], pushed_revision: int | None, signed: Signature) -> Change:
        """`pushed_revision` is None where the edits bring the draft to a content that is kept elsewhere."""
        recorded = []
        for edit in edits:
            change = draft.apply(edit)
            draft = change.after
            if not change.is_empty:
                recorded.append(RecordedEdit(draft.key.number, draft.revision, edit, signed.by, signed.at))
        pushed = draft.revision if pushed_revision is None else pushed_revision
        if not recorded and (self.draft is None or pushed == self.pushed_revision):
            return Change(self, self)
        return Change(self, replace(self, draft=draft, pushed_revision=pushed), draft, tuple(recorded))

    def _entry(self, deed: Deed, signed: Signature) -> LedgerEntry:
        if self.latest is None:
            return LedgerEntry(deed, None, None, None, None, signed.by, signed.at)
        return _entry_of(self.record(self.latest_number), deed, signed)

    def _require_latest(self, expected: int) -> None:
        if expected > self.latest_number:
            problem = f"nothing was published: {self.key} has no version {expected} yet"
            remedy = f"see 'cairn versions {self.key}'" if self.latest else "expect 0 to publish its first"
            raise NotFound(f"{problem}: {remedy}")
        if expected < self.latest_number:
            raise PublishedMeanwhile(self.key, self.versions[-1])

    def _require_not_archived(self) -> None:
        if self.archived_at is not None:
            raise OperatorError(f"{self.key} is archived: restore it before you publish it")

    def _require_published_once(self, what: str) -> None:
        if self.latest is None:
            raise OperatorError(f"{self.key} was never published, so there is nothing to {what}")


@dataclass(frozen=True, slots=True)
class Change:
    """A decision about a walkthrough: what it is afterwards, and what is stored beside that."""

    before: Walkthrough
    after: Walkthrough
    draft: Draft | None = None
    """The draft as it is stored, also where it is published in the same breath; None where no text is touched."""
    edits: tuple[RecordedEdit, ...] = ()
    entry: LedgerEntry | None = None
    intake: Intake | None = None
    """What became of the content, where some was handed in or published."""
    assignments: tuple[Assignment, ...] = ()
    """Where it was put with the change; no part of what is decided."""

    @property
    def is_empty(self) -> bool:
        """Whether all was so already, and there is nothing to store."""
        return self.after == self.before

    @property
    def new_version(self) -> VersionRecord | None:
        """The version that is published by it."""
        is_new = self.after.latest_number > self.before.latest_number
        return self.after.versions[-1] if is_new else None

    @property
    def withdrawn(self) -> tuple[int, ...]:
        """The numbers of the versions that are withdrawn by it."""
        ended = zip(self.before.versions, self.after.versions, strict=False)
        return tuple(before.number for before, after in ended if before.state is not after.state)

    def published(
        self, intake: Intake, policy: PublishPolicy, signed: Signature, *, source_version: int | None = None
    ) -> Change:
        """The change, and a publish of the draft that it leads to; of nothing new, where the content is no other."""
        was, draft = self.after, self.after.draft
        if intake.is_unchanged:
            entry = None if was.is_published else was._entry(Deed.REPUBLISHED, signed)
            return replace(self, after=replace(was, is_published=True), entry=entry)
        assert draft is not None, "content that is not the latest version's is the draft's"  # noqa: S101
        manuscript = draft.manuscript()
        version = VersionRecord(
            number=draft.key.number,
            state=VersionState.PUBLISHED,
            title=draft.title,
            step_count=len(draft.chain),
            content_hash=manuscript.content_hash(),
            policy=policy,
            revision=draft.revision,
            published_at=signed.at,
            published_by=signed.by,
        )
        older = was.versions
        if policy.withdraws_older:
            older = tuple(replace(each, state=VersionState.WITHDRAWN) for each in older)
        after = replace(
            was,
            is_published=True,
            versions=(*older, version),
            latest=Version(draft.key, draft.title, draft.description, draft.type, draft.steps),
            draft=None,
            pushed_revision=0,
        )
        deed = Deed.PUBLISHED if source_version is None else Deed.ROLLED_BACK
        entry = replace(_entry_of(version, deed, signed), source_version=source_version)
        return replace(self, after=after, draft=draft, entry=entry)


def unknown(key: str) -> NotFound:
    """The error for a walkthrough that is not there, or is another organisation's."""
    return NotFound(f"there is no walkthrough {key!r}: push it first with 'cairn push DIR'")


def _entry_of(version: VersionRecord, deed: Deed, signed: Signature) -> LedgerEntry:
    return LedgerEntry(deed, version.number, version.content_hash, version.policy, None, signed.by, signed.at)


def _content(draft: Draft) -> Manuscript | None:
    """What the draft would be published as; None while it has no steps."""
    return draft.manuscript() if draft.texts else None


def _with_new_id(edit: Edit, ids: Iterator[StepId]) -> Edit:
    """An inserted step gets its id here, so that it is new whoever wrote the edit."""
    return replace(edit, step=Step(next(ids), edit.step.text)) if isinstance(edit, InsertStep) else edit
