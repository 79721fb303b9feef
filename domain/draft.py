"""The draft of a walkthrough: what its author edits, one small edit at a time, until it is published.

    (no draft) ──Draft.empty, Draft.copy──▶ revision 0 ──edit──▶ revision 1 ──edit──▶ … ──manuscript()──▶ published
                                            │      ▲
                                            └──────┘ an edit that changes nothing

An edit is a value: it can be stored, shown in a line, and applied again. `Draft.apply` is the only place where a
draft changes, and says exactly what a store has to write: one step at most, and at most three links. Replaying
the recorded edits from the beginning gives the draft.

Steps are named by their keys, which learners' progress hangs on. Only a RenameStep changes a key, and to a
learner a step by another key is another step.

Two editors at once: an edit names the draft and revision that its author had read. Where that is no longer the
current one it is refused, whatever it is about, with the edits made since (StaleEdit). Nothing is merged behind
anyone's back: that two edits touch different steps does not mean that they go together, when one moves a step
that the other's text leans on; and the lost answer of an edit that was stored is then told from a new edit. A
draft is therefore never thrown away and begun again at revision 0 under the same number: its way back to the
latest version is a series of edits too (`domain/difference.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import ClassVar

from domain.chain import ChainEdit, StepChain, StepLink, unmoved
from domain.errors import AlreadyExists, BrokenChain, InvalidValue, NotFound, StaleEdit
from domain.tenancy import Millis, StepId, key
from domain.walkthrough import (
    MAX_STEPS,
    Manuscript,
    Step,
    StepText,
    VersionKey,
    WalkthroughType,
    description,
    title,
)

# ------------------------------------------------------------------------------------------------- edits
#
# `after` names the step that another comes directly after; None puts it first. `kind` is how an edit is stored.
# `str` says in the past tense what was done.


@dataclass(frozen=True, slots=True)
class InsertStep:
    """A step that was not there. Its id is new, and belongs to the version that the draft becomes."""

    kind: ClassVar[str] = "insert"
    step: Step
    after: str | None

    def __str__(self) -> str:
        return f"inserted step {self.step.text.key!r} {_place(self.after)}"


@dataclass(frozen=True, slots=True)
class RemoveStep:
    """A step taken out. The last one may go too, but an empty draft cannot be published."""

    kind: ClassVar[str] = "remove"
    step_key: str

    def __str__(self) -> str:
        return f"removed step {self.step_key!r}"


@dataclass(frozen=True, slots=True)
class MoveStep:
    """A step put elsewhere; all others keep their order."""

    kind: ClassVar[str] = "move"
    step_key: str
    after: str | None

    def __post_init__(self) -> None:
        if self.step_key == self.after:
            raise InvalidValue(f"step {self.step_key!r} cannot come after itself: name another step")

    def __str__(self) -> str:
        return f"moved step {self.step_key!r} {'to the beginning' if self.after is None else _place(self.after)}"


@dataclass(frozen=True, slots=True)
class ReplaceStep:
    """Everything that is written in a step but its key, which says which step it is."""

    kind: ClassVar[str] = "replace"
    text: StepText

    def __str__(self) -> str:
        return f"rewrote step {self.text.key!r}"


@dataclass(frozen=True, slots=True)
class RenameStep:
    """Another key. Whoever had completed the step by its old key is led through it again."""

    kind: ClassVar[str] = "rename"
    step_key: str
    new_key: str

    def __post_init__(self) -> None:
        key(self.new_key)

    def __str__(self) -> str:
        return f"renamed step {self.step_key!r} to {self.new_key!r}"


@dataclass(frozen=True, slots=True)
class SetDetails:
    """Title, description and type of the walkthrough; None leaves one as it is."""

    kind: ClassVar[str] = "details"
    title: str | None = None
    description: str | None = None
    type: WalkthroughType | None = None

    def __post_init__(self) -> None:
        if self.title is not None:
            title(self.title)
        if self.description is not None:
            description(self.description)

    def __str__(self) -> str:
        said = [
            self.title is not None and f"the title to {self.title!r}",
            self.description is not None and "the description",
            self.type is not None and f"the type to {self.type.value}",
        ]
        return f"set {', '.join(part for part in said if part) or 'nothing'}"


def _place(after: str | None) -> str:
    return "at the beginning" if after is None else f"after {after!r}"


Edit = InsertStep | RemoveStep | MoveStep | ReplaceStep | RenameStep | SetDetails


@dataclass(frozen=True, slots=True)
class RecordedEdit:
    """An edit as it was stored: `revision` is the draft's after it, `number` the version's that it was to become."""

    number: int
    revision: int
    edit: Edit
    edited_by: str
    edited_at: Millis

    def __str__(self) -> str:
        moment = datetime.fromtimestamp(self.edited_at / 1000, UTC)
        return f"{moment:%Y-%m-%d %H:%M} UTC, {self.edited_by}: {self.edit}"


def renames(edits: Iterable[Edit]) -> dict[str, str]:
    """Old key to new of the steps that still are what they were when `edits` began, under another key."""
    # The key that each step had at first, by the key it has now; None for a step that was inserted since.
    origin: dict[str, str | None] = {}
    for edit in edits:
        match edit:
            case InsertStep():
                origin[edit.step.text.key] = None
            case RemoveStep():
                origin.pop(edit.step_key, None)
            case RenameStep():
                origin[edit.new_key] = origin.pop(edit.step_key, edit.step_key)
    return {old: new for new, old in origin.items() if old not in (None, new)}


# ------------------------------------------------------------------------------------------------- draft


@dataclass(frozen=True, slots=True)
class Draft:
    """A walkthrough that is being edited. `revision` counts the edits that led here, and is 0 before the first."""

    key: VersionKey
    """Of the version that it becomes."""
    walkthrough_key: str
    title: str
    description: str
    type: WalkthroughType
    chain: StepChain
    texts: Mapping[StepId, StepText]
    revision: int = 0
    _ids: Mapping[str, StepId] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        key(self.walkthrough_key)
        title(self.title)
        description(self.description)
        if set(self.chain) != self.texts.keys():
            raise BrokenChain("a draft's chain and its texts are of the same steps")
        ids = {text.key: step_id for step_id, text in self.texts.items()}
        if len(ids) != len(self.texts):
            raise InvalidValue("each step of a draft has a key of its own")
        if len(ids) > MAX_STEPS:
            raise InvalidValue(f"a walkthrough has at most {MAX_STEPS} steps; this draft has {len(ids)}")
        if self.revision < 0:
            raise InvalidValue("a draft's revision counts from 0")
        object.__setattr__(self, "_ids", ids)

    @classmethod
    def empty(
        cls, version: VersionKey, walkthrough_key: str, *, title: str, description: str, type: WalkthroughType
    ) -> Draft:
        """A draft with no step yet."""
        return cls(version, walkthrough_key, title, description, type, StepChain.of([]), {})

    @classmethod
    def copy(cls, version: VersionKey, manuscript: Manuscript, ids: Iterable[StepId]) -> Draft:
        """A draft that begins as `manuscript`, which may be a version's: the step keys stay, the `ids` are new.

        `ids` are as many as there are steps.
        """
        texts = dict(zip(ids, manuscript.steps, strict=True))
        return cls(
            version,
            manuscript.key,
            manuscript.title,
            manuscript.description,
            manuscript.type,
            StepChain.of(texts),
            texts,
        )

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps in the order of the chain."""
        return tuple(Step(step_id, self.texts[step_id]) for step_id in self.chain)

    def manuscript(self) -> Manuscript:
        """What is published when the draft is.

        Raises:
            InvalidValue: while there is no step.
        """
        if not self.texts:
            raise InvalidValue("the draft has no steps: insert at least one before you publish it")
        texts = tuple(step.text for step in self.steps)
        return Manuscript(self.walkthrough_key, self.title, self.description, self.type, texts)

    def require_current(self, number: int, revision: int, since: Sequence[RecordedEdit]) -> None:
        """Refuses to go on from a draft that is not this one: to edit it, or to publish what somebody has seen.

        `number` and `revision` are what the caller had read, `since` the edits recorded after that.

        Raises:
            StaleEdit: when it is not the current one.
        """
        if (number, revision) != (self.key.number, self.revision):
            raise StaleEdit(self.key.number, self.revision, since)

    def apply(self, edit: Edit) -> DraftChange:
        """The draft after `edit`, and what is to be written. An edit that changes nothing leaves the revision.

        Raises:
            NotFound: when it names a step that the draft does not have.
            AlreadyExists: when the key that it gives to a step is another's.
            InvalidValue: when it inserts one step more than there may be.
        """
        chain = ChainEdit(self.chain, (), None)
        added: Step | None = None
        changed: Step | None = None
        details = (self.title, self.description, self.type)
        match edit:
            case InsertStep():
                self._require_unused(edit.step.text.key)
                if len(self.texts) == MAX_STEPS:
                    raise InvalidValue(
                        f"the draft has {MAX_STEPS} steps, and no more are allowed: remove one before you insert one"
                    )
                chain = self.chain.insert_after(self._anchor(edit.after), edit.step.id)
                added = edit.step
            case RemoveStep():
                chain = self.chain.remove(self._id(edit.step_key))
            case MoveStep():
                chain = self.chain.move(self._id(edit.step_key), self._anchor(edit.after))
            case ReplaceStep():
                changed = Step(self._id(edit.text.key), edit.text)
            case RenameStep():
                step_id = self._id(edit.step_key)
                if edit.new_key != edit.step_key:
                    self._require_unused(edit.new_key)
                changed = Step(step_id, replace(self.texts[step_id], key=edit.new_key))
            case SetDetails():
                details = (
                    self.title if edit.title is None else edit.title,
                    self.description if edit.description is None else edit.description,
                    self.type if edit.type is None else edit.type,
                )
        if changed is not None and changed.text == self.texts[changed.id]:
            changed = None
        texts = {step_id: text for step_id, text in self.texts.items() if step_id != chain.removed}
        texts |= {step.id: step.text for step in (added, changed) if step is not None}
        are_details_changed = details != (self.title, self.description, self.type)
        new_title, new_description, new_type = details
        after = Draft(
            key=self.key,
            walkthrough_key=self.walkthrough_key,
            title=new_title,
            description=new_description,
            type=new_type,
            chain=chain.chain,
            texts=texts,
            revision=self.revision,
        )
        if after != self:
            after = replace(after, revision=self.revision + 1)
        return DraftChange(self, edit, after, chain.changed, added, chain.removed, changed, are_details_changed)

    def reorder(self, step_keys: Sequence[str]) -> tuple[MoveStep, ...]:
        """The fewest moves, to be applied one after the other, that bring the steps into this order.

        Raises:
            InvalidValue: when `step_keys` does not name every step of the draft exactly once.
        """
        present = [step.text.key for step in self.steps]
        if sorted(step_keys) != sorted(present):
            raise InvalidValue(f"a new order names each step of the draft once, and the draft has {len(present)}")
        stay = unmoved(present, step_keys)
        anchors = [None, *step_keys]
        return tuple(
            MoveStep(step_key, after)
            for after, step_key in zip(anchors, step_keys, strict=False)
            if step_key not in stay
        )

    def _id(self, step_key: str) -> StepId:
        if step_key not in self._ids:
            raise NotFound(f"the draft has no step {step_key!r}: name one of its step keys")
        return self._ids[step_key]

    def _anchor(self, after: str | None) -> StepId | None:
        return None if after is None else self._id(after)

    def _require_unused(self, step_key: str) -> None:
        if step_key in self._ids:
            raise AlreadyExists(f"the draft has a step {step_key!r} already: choose another key")


@dataclass(frozen=True, slots=True)
class DraftChange:
    """An edited draft, and exactly what differs. With `is_empty` nothing does, and there is nothing to store."""

    before: Draft
    edit: Edit
    after: Draft
    links: tuple[StepLink, ...]
    """Links to write, at most three; that of an added step is among them."""
    added: Step | None
    removed: StepId | None
    changed: Step | None
    """A step whose key or texts are others now; its link stays."""
    are_details_changed: bool

    @property
    def is_empty(self) -> bool:
        """Whether the edit changed nothing."""
        return self.after.revision == self.before.revision


def replay(beginning: Draft, edits: Iterable[Edit]) -> Draft:
    """The draft that `edits`, in order, make of what it was in the beginning.

    Raises:
        OperatorError: when one of them cannot have followed.
    """
    draft = beginning
    for edit in edits:
        draft = draft.apply(edit).after
    return draft
