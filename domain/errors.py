"""Every error that Cairn raises on purpose, in one tree.

    CairnError
    ├── ToolError                    told to the assistant, as a tool result it can act on
    │   ├── WalkthroughNotFound      walkthrough_not_found
    │   ├── WalkthroughNotStarted    walkthrough_not_started
    │   ├── WalkthroughUnavailable   walkthrough_unavailable
    │   ├── CompletedStepRequired    completed_step_required
    │   ├── StepNotCurrent           step_not_current
    │   ├── StepNotReached           step_not_reached
    │   ├── VersionWithdrawn         version_withdrawn
    │   ├── InvalidArguments         invalid_arguments
    │   ├── RateLimited              rate_limited
    │   └── TemporarilyUnavailable   temporarily_unavailable
    ├── TooManyRequests              a limit is used up: HTTP 429, with when to come back
    ├── SignInFailed                 told to the person who signs in, in a sentence that says what to do
    ├── SignInOver                   a sign-in that is over, unknown, or another browser's: HTTP 403
    ├── ClientRefused                an OAuth client that cannot be taken as it is (defined beside its rules, in oauth)
    ├── DocumentAway                 what an OAuth client says of itself cannot be read at present (there too)
    ├── AuthenticationRequired       a use case was reached without a caller, whom the gate asks for with HTTP 401
    ├── BrokenChain                  links that are no chain
    ├── CorruptHistory               stored events that the rules could not have produced
    └── OperatorError                told to the author or operator at the terminal, in one line with a remedy
        ├── InvalidValue             a slug, key, e-mail or the like that cannot be
        ├── NotFound                 what was named does not exist (or is another organisation's)
        ├── AlreadyExists            what was to be made is there
        ├── StaleEdit                a draft was edited since it was read, with what changed
        ├── EditedInPlace            a push that would undo edits it has not seen, with these
        ├── PublishedMeanwhile       a publish that came second, with the version that was first
        ├── ContentRejected          a walkthrough that may not be stored, with every finding
        ├── WrongSchema              a database that this release cannot serve
        └── EmbeddedPostgresError    the embedded server cannot be had (defined beside it, in the adapter)

An error carries facts; wording for the assistant is made in `entrypoints/mcp/rendering.py` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from domain.draft import RecordedEdit
    from domain.progress import Standpoint
    from domain.publishing import VersionRecord
    from domain.walkthrough import Finding


class CairnError(Exception):
    """The root: whoever catches this catches everything that was decided, and no bug."""


# ------------------------------------------------------------------------------------ told to the assistant


class ToolError(CairnError):
    """A fault that the assistant can read and mend; `code` is stable and part of the public contract."""

    code: ClassVar[str]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A walkthrough that the caller may have meant."""

    id: str
    key: str
    title: str


class WalkthroughNotFound(ToolError):
    """No walkthrough by this name is here, or several have this title."""

    code = "walkthrough_not_found"

    def __init__(self, reference: str, candidates: Sequence[Candidate], *, ambiguous: bool = False) -> None:
        super().__init__(reference)
        self.reference = reference
        self.candidates = tuple(candidates)
        self.ambiguous = ambiguous


class WalkthroughNotStarted(ToolError):
    """The caller has not begun this walkthrough."""

    code = "walkthrough_not_started"

    def __init__(self, title: str, reference: str) -> None:
        super().__init__(title)
        self.title = title
        self.reference = reference


class WalkthroughUnavailable(ToolError):
    """Hidden at present: it cannot be started, restarted or moved to another version."""

    code = "walkthrough_unavailable"

    def __init__(self, title: str) -> None:
        super().__init__(title)
        self.title = title


class CompletedStepRequired(ToolError):
    """`next` was called without a handle that can be read; `standpoints` are where the caller stands."""

    code = "completed_step_required"

    def __init__(self, standpoints: Sequence[Standpoint], *, unreadable: bool) -> None:
        super().__init__()
        self.standpoints = tuple(standpoints)
        self.unreadable = unreadable


class StepNotCurrent(ToolError):
    """The handle names a later step, another attempt or another walkthrough."""

    code = "step_not_current"

    def __init__(self, standpoint: Standpoint) -> None:
        super().__init__()
        self.standpoint = standpoint


class StepNotReached(ToolError):
    """Only the current step and completed ones can be re-read."""

    code = "step_not_reached"

    def __init__(self, step_number: int, total_steps: int, reachable: Sequence[int]) -> None:
        super().__init__(step_number)
        self.step_number = step_number
        self.total_steps = total_steps
        self.reachable = tuple(reachable)


class VersionWithdrawn(ToolError):
    """The version that the caller is on was withdrawn by its author."""

    code = "version_withdrawn"

    def __init__(self, title: str, reference: str) -> None:
        super().__init__(title)
        self.title = title
        self.reference = reference


class InvalidArguments(ToolError):
    """Unknown, missing or ill-typed arguments; `problem` says which and what is expected."""

    code = "invalid_arguments"

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class RateLimited(ToolError):
    """This person calls tools faster than any person reads."""

    code = "rate_limited"

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds


class TemporarilyUnavailable(ToolError):
    """The same call may be sent again; whatever had been committed is not done twice."""

    code = "temporarily_unavailable"


# ---------------------------------------------------------------------------------------------- the others


class TooManyRequests(CairnError):
    """A limit is used up; `retry_after_seconds`, at least 1, is when there is room again."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds


class SignInFailed(CairnError):
    """Nobody was signed in. `problem` is a sentence for the person, and says what they can do."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


class SignInOver(CairnError):
    """There is no such sign-in under way in this browser. Whether there ever was is not told."""


class AuthenticationRequired(CairnError):
    """A use case that needs a known caller was reached without one (the gate should have refused)."""


class BrokenChain(CairnError):
    """Links that do not form one chain: two heads or tails, a cycle, an orphan, a shared successor."""


class CorruptHistory(CairnError):
    """Stored progress events that contradict the rules."""


class OperatorError(CairnError):
    """Told at the terminal; the message is one line that says what to do."""


class InvalidValue(OperatorError):
    """A value that cannot be what it is given for."""


class NotFound(OperatorError):
    """Not there, or not this organisation's: the two are never told apart."""


class AlreadyExists(OperatorError):
    """There is one by that name already."""


class StaleEdit(OperatorError):
    """The draft is no longer the one that was read, and nothing was stored. `since` are the edits made meanwhile."""

    def __init__(self, number: int, revision: int, since: Sequence[RecordedEdit]) -> None:
        super().__init__(
            "the draft has changed since you read it, and nothing of yours was stored: look at what changed, and make "
            f"your edit again on revision {revision} of the draft of version {number}"
        )
        self.number = number
        self.revision = revision
        self.since = tuple(since)


class EditedInPlace(OperatorError):
    """Nothing was pushed. `since` are the edits that the draft holds, and the pushed files do not."""

    def __init__(self, key: str, number: int, revision: int, since: Sequence[RecordedEdit]) -> None:
        super().__init__(
            f"the draft of {key} was edited in place since it was last pushed, and your files would undo that: bring "
            "those edits into your files, publish or discard the draft, or force the push"
        )
        self.number = number
        self.revision = revision
        self.since = tuple(since)


class PublishedMeanwhile(OperatorError):
    """Nothing was published. `version` is the one that was published first."""

    def __init__(self, key: str, version: VersionRecord) -> None:
        by = f" by {version.published_by}" if version.published_by else ""
        super().__init__(
            f"version {version.number} of {key} was published already{by}, with the policy {version.policy.value}, "
            "and nothing was done now: look at it before you publish again"
        )
        self.version = version


class WrongSchema(OperatorError):
    """The database is not at the schema that this release needs."""


class ContentRejected(OperatorError):
    """Nothing of the walkthrough was stored. `unlisted`: how many more there are, like those that are listed."""

    def __init__(self, findings: Sequence[Finding], *, unlisted: int = 0) -> None:
        count = len(findings) + unlisted
        super().__init__(f"{count:,} problem{'s' if count != 1 else ''} found")
        self.findings = tuple(findings)
