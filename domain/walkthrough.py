"""Walkthroughs and their versions: what an author writes, and what a published version is for ever.

    Manuscript ──publish──▶ Version(number = latest + 1) ──withdrawn by a later `supersede`──▶ withdrawn
                            title, description, type and steps never change again

A manuscript is what an author hands in: steps known by their keys alone. Publishing gives each step an id of
its own, never used again in any other version, and links them into the chain.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import NamedTuple

from domain.errors import InvalidValue, NotFound
from domain.tenancy import BREAKS_A_LINE, OrganizationId, ServerKey, StepId, WalkthroughId, key

MAX_STEPS = 500
MAX_TITLE_CHARS = 200
MAX_DESCRIPTION_CHARS = 1_000
MAX_MINUTES = 24 * 60
# Claude Code refuses tool results over 25,000 tokens and warns at 10,000; 40,000 bytes stay below that warning.
MAX_RESULT_BYTES = 40_000
# What stands around a step's own texts in a result: headings, ids, progress and the closing lines, twice over
# (text and structure), with the longest titles. Measured by a test that renders the largest step there can be.
RESULT_FRAME_BYTES = 9_000

# Neither has a place in UTF-8 text that a database holds.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class WalkthroughType(StrEnum):
    """What a walkthrough is for; told to the assistant."""

    COURSE = "course"
    QUICKSTART = "quickstart"
    INSTALLER = "installer"
    INTEGRATION = "integration"
    TROUBLESHOOTING = "troubleshooting"


class Delivery(StrEnum):
    """How the author wants a step presented."""

    VERBATIM = "verbatim"
    """Word for word."""
    EXPLAIN = "explain"
    """In the assistant's words, fitted to the person."""
    TOGETHER = "together"
    """Worked through jointly in the person's own project."""


class PublishPolicy(StrEnum):
    """What a publish says happens to everyone mid-way on an older version."""

    KEEP = "keep"
    """They finish what they began, and are not told."""
    OFFER = "offer"
    """They finish, and are told how to move."""
    CARRY_OVER = "carry_over"
    """They are moved by their next select or next."""
    SUPERSEDE = "supersede"
    """Every older version is withdrawn: they begin again on this one."""

    @property
    def withdraws_older(self) -> bool:
        """Whether a publish under this policy withdraws every older version, for ever."""
        return self is PublishPolicy.SUPERSEDE


class VersionState(StrEnum):
    """The life of a version."""

    DRAFT = "draft"
    PUBLISHED = "published"
    WITHDRAWN = "withdrawn"


def title(value: str) -> str:
    """A title: one line of 1 to `MAX_TITLE_CHARS` characters.

    Raises:
        InvalidValue: for anything else.
    """
    if not value.strip() or len(value) > MAX_TITLE_CHARS or BREAKS_A_LINE.search(value):
        raise InvalidValue(f"a title is one line of 1 to {MAX_TITLE_CHARS} characters")
    return value


def description(value: str) -> str:
    """A description: 1 to `MAX_DESCRIPTION_CHARS` characters.

    Raises:
        InvalidValue: for anything else.
    """
    if not value.strip() or len(value) > MAX_DESCRIPTION_CHARS or _UNSTORABLE.search(value):
        raise InvalidValue(f"a description has 1 to {MAX_DESCRIPTION_CHARS} characters")
    return value


def minutes(value: int) -> int:
    """An estimate, in whole minutes.

    Raises:
        InvalidValue: outside 1 to `MAX_MINUTES`.
    """
    if not 1 <= value <= MAX_MINUTES:
        raise InvalidValue(f"minutes are a whole number from 1 to {MAX_MINUTES}")
    return value


@dataclass(frozen=True, slots=True)
class StepText:
    """What an author wrote for one step. Texts are Markdown and reach the assistant untouched."""

    key: str
    title: str
    content: str
    assistant_notes: str | None = None
    workspace_actions: str | None = None
    done_when: str | None = None
    delivery: Delivery = Delivery.EXPLAIN
    estimated_minutes: int | None = None

    def __post_init__(self) -> None:
        key(self.key)
        title(self.title)
        if not self.content.strip():
            raise InvalidValue(f"step {self.key!r} has no content for the user")
        if any(_UNSTORABLE.search(text) for text in self.texts()):
            raise InvalidValue(f"step {self.key!r} contains a NUL character or half of a surrogate pair")
        if self.estimated_minutes is not None:
            minutes(self.estimated_minutes)
        if (size := self.delivered_bytes()) > MAX_RESULT_BYTES:
            raise InvalidValue(
                f"step {self.key!r} would take up to {size:,} bytes when delivered, {size - MAX_RESULT_BYTES:,} more "
                f"than the {MAX_RESULT_BYTES:,} that are allowed: split it into two steps"
            )

    def delivered_bytes(self) -> int:
        """An upper bound of a whole tool result that carries this step, in bytes of JSON.

        Every text is sent twice, in the readable text and in the structure, for clients that show the
        model only one of them.
        """
        texts = sum(len(json.dumps(text, ensure_ascii=False).encode()) for text in self.texts())
        return 2 * texts + RESULT_FRAME_BYTES

    def texts(self) -> Iterator[str]:
        """The long ones: everything but key and title."""
        yield self.content
        for text in (self.assistant_notes, self.workspace_actions, self.done_when):
            if text is not None:
                yield text


@dataclass(frozen=True, slots=True)
class Manuscript:
    """A whole walkthrough as its author hands it in; sound, or it cannot be built."""

    key: str
    title: str
    description: str
    type: WalkthroughType
    steps: tuple[StepText, ...]

    def __post_init__(self) -> None:
        key(self.key)
        title(self.title)
        description(self.description)
        if not 1 <= len(self.steps) <= MAX_STEPS:
            raise InvalidValue(f"a walkthrough has 1 to {MAX_STEPS} steps; this one has {len(self.steps)}")
        keys = [step.key for step in self.steps]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise InvalidValue(f"the step key {min(twice)!r} is used twice")

    def content_hash(self) -> str:
        """SHA-256, in hex, of everything the learner can be shown, in order. Equal content, equal hash."""
        content = asdict(self)
        del content["key"]
        return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def estimated_minutes(self) -> int | None:
        """The sum over the steps that say; None where none does."""
        return sum(step.estimated_minutes or 0 for step in self.steps) or None


@dataclass(frozen=True, slots=True)
class Intake:
    """What becomes of a manuscript that is handed in."""

    version: int
    """The number it gets, or has already."""
    is_unchanged: bool
    """Whether the latest version has this very content, so that no new one is made."""
    is_published: bool
    """Whether that version is, or now becomes, published and shown."""


def take_in(
    manuscript: Manuscript, *, latest: int | None, latest_hash: str | None, is_published: bool, publish: bool
) -> Intake:
    """Decides on a manuscript, given the latest version there is and whether the walkthrough is published.

    To publish what is the latest already makes no new version, but ends an unpublishing.
    """
    if latest is not None and latest_hash == manuscript.content_hash():
        return Intake(latest, is_unchanged=True, is_published=is_published or publish)
    return Intake((latest or 0) + 1, is_unchanged=False, is_published=publish)


class VersionKey(NamedTuple):  # looked up by in each call
    """Names one version of one walkthrough."""

    organization_id: OrganizationId
    walkthrough_id: WalkthroughId
    number: int


class Heading(NamedTuple):  # hundreds are made when a process first meets a version
    """A step, but for what is written in it. `id` belongs to its version alone, `key` is the same in all of them."""

    id: StepId
    key: str
    title: str


@dataclass(frozen=True, slots=True)
class Outline:
    """What rules need of a published version: which steps it has, in chain order. Immutable, so it may be kept for
    ever."""

    key: VersionKey
    title: str
    steps: tuple[Heading, ...]
    _position: Mapping[StepId, int] = field(init=False, repr=False, compare=False)
    _by_key: Mapping[str, Heading] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        position = {step.id: position for position, step in enumerate(self.steps)}
        by_key = {step.key: step for step in self.steps}
        if not self.steps or not len(position) == len(by_key) == len(self.steps):
            raise InvalidValue("a version has at least one step, and each step an id and a key of its own")
        object.__setattr__(self, "_position", position)
        object.__setattr__(self, "_by_key", by_key)

    @property
    def number(self) -> int:
        """1 for the first version of a walkthrough, and so on."""
        return self.key.number

    def position(self, step_id: StepId) -> int:
        """Where a step of this version stands, counted from 0.

        Raises:
            KeyError: for a step of another version.
        """
        return self._position[step_id]

    def step(self, step_id: StepId) -> Heading | None:
        """The step with this id; None for one of another version."""
        position = self._position.get(step_id)
        return None if position is None else self.steps[position]

    def step_by_key(self, step_key: str) -> Heading | None:
        """The step with this key; None where this version has none."""
        return self._by_key.get(step_key)


@dataclass(frozen=True, slots=True)
class Step:
    """A step in its version, with all that is written in it."""

    id: StepId
    text: StepText


@dataclass(frozen=True, slots=True)
class Version:
    """The whole content of a published version, as its author knows it."""

    key: VersionKey
    title: str
    description: str
    type: WalkthroughType
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        self.outline()  # which refuses what is none

    @property
    def number(self) -> int:
        """1 for the first version of a walkthrough, and so on."""
        return self.key.number

    def outline(self) -> Outline:
        """What rules need of it."""
        steps = tuple(Heading(step.id, step.text.key, step.text.title) for step in self.steps)
        return Outline(self.key, self.title, steps)

    def manuscript(self, walkthrough_key: str) -> Manuscript:
        """What its author handed in, to be compared, pulled or published again."""
        texts = tuple(step.text for step in self.steps)
        return Manuscript(walkthrough_key, self.title, self.description, self.type, texts)


class Publication(NamedTuple):
    """What may change, beside the immutable content, and is compared when someone's next step is stored."""

    latest_version: int
    policy: PublishPolicy
    """Said by the newest publish, about everyone on any older version."""
    is_available: bool
    """Published, not archived, and enabled on this server: may be started, restarted and moved to."""
    is_withdrawn: bool = False
    """Whether the version that the person is on was withdrawn."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A walkthrough on a server."""

    server: ServerKey
    walkthrough_id: WalkthroughId
    display_order: int
    is_enabled: bool = True


def in_order(listed: Sequence[str], first: Sequence[str]) -> list[str]:
    """The keys of a server's list with `first` at the top, in this order; all others follow in the order they have.

    Raises:
        NotFound: when one of `first` is not `listed`.
        InvalidValue: when one comes twice.
    """
    for each in first:
        if each not in listed:
            raise NotFound(f"walkthrough {each!r} is not on this server: assign it first")
        if first.count(each) > 1:
            raise InvalidValue(f"walkthrough {each!r} comes twice in the order: name it once")
    return [*first, *(each for each in listed if each not in first)]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong in an author's files: where it is, which rule it breaks, and what to do."""

    file: str
    line: int
    rule: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.rule}: {self.remedy}"
