"""What differs between two contents of a walkthrough, step by step, by key.

A step key that both have is one step: it may have moved, and its texts may have changed. As learners' progress
does, a comparison goes by keys alone: a renamed step is one removed and one added, unless the renames are told. Of
the steps that both have, as many as possible are taken to have stayed, so that moving one step reads as one move.

A difference is complete: the edits that it amounts to make the one content into the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace

from domain.chain import unmoved
from domain.draft import Edit, InsertStep, MoveStep, RemoveStep, RenameStep, ReplaceStep, SetDetails
from domain.errors import InvalidValue
from domain.tenancy import StepId
from domain.walkthrough import Manuscript, Step, StepText, WalkthroughType


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field that reads otherwise; None where there is nothing. `field` is its name in StepText or Manuscript."""

    field: str
    before: str | int | None
    after: str | int | None


@dataclass(frozen=True, slots=True)
class AddedStep:
    """A step that only the new content has. `number`, from 1, is its place there, and `after` the key before it."""

    number: int
    after: str | None
    text: StepText


@dataclass(frozen=True, slots=True)
class RemovedStep:
    """A step that only the old content has; `number`, from 1, is its place there."""

    number: int
    text: StepText


@dataclass(frozen=True, slots=True)
class RenamedStep:
    """A step that is known to go by another key now. To a learner it is a new one all the same."""

    number: int
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class MovedStep:
    """A step that stands elsewhere among the others: its number in the old content and in the new."""

    from_number: int
    number: int
    after: str | None
    text: StepText
    """As it is in the new content."""


@dataclass(frozen=True, slots=True)
class ChangedStep:
    """A step whose texts read otherwise; `number`, from 1, is its place in the new content."""

    number: int
    before: StepText
    after: StepText

    @property
    def fields(self) -> tuple[FieldChange, ...]:
        """The fields that differ, the key apart."""
        return _changes(self.before, self.after, [field.name for field in fields(StepText) if field.name != "key"])


@dataclass(frozen=True, slots=True)
class Difference:
    """What the new content has that the old has not, and so on; each in the order of the new one (removed: old)."""

    details: tuple[FieldChange, ...]
    """Of title, description and type."""
    added: tuple[AddedStep, ...]
    removed: tuple[RemovedStep, ...]
    renamed: tuple[RenamedStep, ...]
    moved: tuple[MovedStep, ...]
    changed: tuple[ChangedStep, ...]

    @property
    def is_empty(self) -> bool:
        """Whether the two contents are the same."""
        return not (self.details or self.added or self.removed or self.renamed or self.moved or self.changed)

    def edits(self, ids: Iterator[StepId]) -> tuple[Edit, ...]:
        """What makes a draft of the old content into the new one. `ids` gives as many as steps are added."""
        placed: list[AddedStep | MovedStep] = [*self.added, *self.moved]
        placed.sort(key=lambda step: step.number)
        return (
            *(RemoveStep(step.text.key) for step in self.removed),
            *(RenameStep(step.before, step.after) for step in self.renamed),
            # From front to back, so that each comes after a step that has its place already.
            *(
                InsertStep(Step(next(ids), step.text), step.after)
                if isinstance(step, AddedStep)
                else MoveStep(step.text.key, step.after)
                for step in placed
            ),
            *(ReplaceStep(step.after) for step in self.changed),
            *self._set_details(),
        )

    def _set_details(self) -> Iterator[SetDetails]:
        new = {change.field: str(change.after) for change in self.details}
        if new:
            type = WalkthroughType(new["type"]) if "type" in new else None
            yield SetDetails(new.get("title"), new.get("description"), type)


def _changes(before: object | None, after: object, names: Iterable[str]) -> tuple[FieldChange, ...]:
    pairs = ((name, getattr(before, name, None), getattr(after, name)) for name in names)
    return tuple(FieldChange(name, old, new) for name, old, new in pairs if old != new)


def difference(before: Manuscript | None, after: Manuscript, *, renames: Mapping[str, str] | None = None) -> Difference:
    """What differs in `after`: everything, where `before` is None, for nothing yet.

    The walkthrough's own key is not compared.

    `renames` leads from old keys to new ones. It counts where the old key is gone and the new one was not there:
    a key that both contents have is the same step in both.

    Raises:
        InvalidValue: when `renames` leads from two keys to one.
    """
    old_steps = before.steps if before else ()
    old_keys = {text.key for text in old_steps}
    new_keys = {text.key for text in after.steps}
    names = {
        old: new for old, new in (renames or {}).items() if old in old_keys - new_keys and new in new_keys - old_keys
    }
    if len(set(names.values())) != len(names):
        raise InvalidValue("two steps cannot have been renamed to one key")

    # Each old step by the key it goes by in the new content.
    old = {names.get(text.key, text.key): (number, text) for number, text in enumerate(old_steps, start=1)}
    stay = unmoved(list(old), [text.key for text in after.steps])
    added: list[AddedStep] = []
    renamed: list[RenamedStep] = []
    moved: list[MovedStep] = []
    changed: list[ChangedStep] = []
    anchors = [None, *(text.key for text in after.steps)]
    for number, (anchor, text) in enumerate(zip(anchors, after.steps, strict=False), start=1):
        if text.key not in old:
            added.append(AddedStep(number, anchor, text))
            continue
        old_number, old_text = old[text.key]
        if old_text.key != text.key:
            renamed.append(RenamedStep(number, old_text.key, text.key))
        if text.key not in stay:
            moved.append(MovedStep(old_number, number, anchor, text))
        if replace(old_text, key=text.key) != text:
            changed.append(ChangedStep(number, old_text, text))
    return Difference(
        details=_changes(before, after, ("title", "description", "type")),
        added=tuple(added),
        removed=tuple(RemovedStep(number, text) for key, (number, text) in old.items() if key not in new_keys),
        renamed=tuple(renamed),
        moved=tuple(moved),
        changed=tuple(changed),
    )
