"""What the assistant is told: each result as structure and as text, and each error as text.

Some clients show the model only the text and some only the structure, so each says everything. Wording is
part of how well an assistant behaves: it never names a step that was not reached, it ends with the one thing
to do next, and it avoids words that scanners take for an attempt to take the assistant over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from application.learning import Entry, Lesson
from domain.errors import (
    CompletedStepRequired,
    InvalidArguments,
    RateLimited,
    StepNotCurrent,
    StepNotReached,
    TemporarilyUnavailable,
    ToolError,
    VersionWithdrawn,
    WalkthroughNotFound,
    WalkthroughNotStarted,
    WalkthroughUnavailable,
)
from domain.progress import Standpoint, Status, Told
from domain.walkthrough import MAX_DESCRIPTION_CHARS, MAX_RESULT_BYTES, MAX_TITLE_CHARS, Delivery, WalkthroughType
from entrypoints.mcp.schema import (
    LessonResult,
    ProgressResult,
    Row,
    StatusList,
    StatusRow,
    StepResult,
    WalkthroughList,
    WalkthroughReference,
    status_of,
)

ListT = TypeVar("ListT", WalkthroughList, StatusList)

_FENCE_DIGITS = 16  # of the content's own SHA-256: text that contains its own hash cannot be written

_PRESENT = {
    Delivery.VERBATIM: "Present this step to the user word for word.",
    Delivery.EXPLAIN: "Present this step to the user in your own words, fitted to them and their project.",
    Delivery.TOGETHER: "Work through this step together with the user, in their project.",
}

# ------------------------------------------------------------------------------------------------- lessons


def lesson(it: Lesson) -> tuple[LessonResult, str]:
    """The result of select, next and review."""
    progress, version = it.progress, it.version
    step = None
    if it.step is not None:
        text = it.step.text
        handle = progress.handle() if it.told is not Told.REVIEW else None
        step = StepResult(
            handle=str(handle) if handle else None,
            key=text.key,
            number=version.position(it.step.id) + 1,
            title=text.title,
            content=text.content,
            assistant_notes=text.assistant_notes,
            workspace_actions=text.workspace_actions,
            done_when=text.done_when,
            delivery=text.delivery,
            estimated_minutes=text.estimated_minutes,
        )
    result = LessonResult(
        status=it.told,
        walkthrough=WalkthroughReference(
            id=it.standing.walkthrough_id,
            key=it.standing.key,
            title=version.title,
            version=version.number,
            latest_version=it.standing.publication.latest_version,
        ),
        step=step,
        progress=ProgressResult(
            completed_steps=progress.completed_steps(version),
            total_steps=len(version.steps),
            attempt=progress.attempt,
            started_at=progress.started_at,
            completed_at=progress.completed_at,
        ),
        what_now="",
    )
    result.what_now = _what_now(it, result)
    return result, _lesson_text(result)


def reading(it: Lesson) -> str:
    """A step as a resource, which people open themselves: without what is for the assistant alone."""
    result, _ = lesson(it)
    if result.step is not None:
        result.step.assistant_notes = result.step.workspace_actions = None
    return _lesson_text(result)


def _what_now(it: Lesson, result: LessonResult) -> str:
    lines = []
    reference, step = result.walkthrough.id, result.step
    if it.newer_version_offered:
        lines.append(
            f"Version {result.walkthrough.latest_version} of this walkthrough is out. Tell the user; if they want "
            f'to move, call select_walkthrough with walkthrough="{reference}" and version="latest". What they '
            "completed stays completed."
        )
    if it.told is Told.REPEATED and step is not None:
        lines.append("That step was completed before, so nothing has moved. This is the current step.")
    if it.told is Told.MOVED_TO_LATEST:
        lines.append(f"The user is now on version {result.walkthrough.version}. What they completed stays completed.")
    if it.told is Told.REVIEW:
        if it.progress.status is Status.COMPLETED:
            lines.append("This is a look back: the walkthrough is completed, and nothing has moved.")
        else:
            lines.append("This is a look back: nothing has moved.")
            lines.append(f'To go on, call select_walkthrough with walkthrough="{reference}".')
    elif step is None:
        lines.append(f"All {result.progress.total_steps} steps are completed. Tell the user so, and end your turn.")
        lines.append(
            f'Only if they ask: select_walkthrough with walkthrough="{reference}" and restart=true begins again; '
            "review_walkthrough_step shows any step once more."
        )
    else:
        if it.told is Told.STUCK:
            # They have seen the step: an assistant that is told to present it does so again instead of helping.
            first = "It is recorded for the author that the user is stuck here. Help with what holds them up."
        else:
            first = _PRESENT[step.delivery]
        lines += [
            f"1. {first}",
            "2. End your turn, and wait for the user.",
            "3. Once the user says that this step is done, or asks for the next one, call next_walkthrough_step with "
            f'completed_step="{step.handle}" (outcome="skipped" if they want to skip it; outcome="stuck" with a '
            "note if they cannot go on).",
            "4. Answer questions about this step without calling next_walkthrough_step.",
            f'Unsure where you are? Call select_walkthrough with walkthrough="{reference}": it shows the current step '
            "again, and moves nothing.",
        ]
    return "\n".join(lines)


def _lesson_text(result: LessonResult) -> str:
    walkthrough, step = result.walkthrough, result.step
    progress = result.progress
    where = (
        f"{progress.completed_steps} of {progress.total_steps} completed · attempt {progress.attempt} · "
        f"version {walkthrough.version} · {result.status.value}"
    )
    if step is None:
        return f"{walkthrough.title} · {where}\n\n{result.what_now}"
    minutes = f" · about {step.estimated_minutes} min" if step.estimated_minutes else ""
    fence = hashlib.sha256(step.content.encode()).hexdigest()[:_FENCE_DIGITS]
    parts = [
        f"{walkthrough.title} · step {step.number} of {progress.total_steps}: {step.title} · {where}{minutes}",
        f"----- for the user {fence} -----\n{step.content}\n----- end {fence} -----",
    ]
    if step.assistant_notes:
        parts.append(f"## Notes for the assistant\n\n{step.assistant_notes}")
    if step.workspace_actions:
        parts.append(f"## Workspace actions (ask before running)\n\n{step.workspace_actions}")
    if step.done_when:
        parts.append(f"## Done when\n\n{step.done_when}")
    parts.append(f"## What now\n\n{result.what_now}")
    return "\n\n".join(parts)


# --------------------------------------------------------------------------------------------------- lists

# How many characters of a description and of a title: tried in this order until a whole list fits into one
# result. A key names its walkthrough whatever is left of the title.
_LENGTHS = ((MAX_DESCRIPTION_CHARS, MAX_TITLE_CHARS), (240, MAX_TITLE_CHARS), (80, 80), (0, 80), (0, 40), (0, 20))
_ENVELOPE_BYTES = 800  # JSON-RPC around a result, with the longest name of a server


def walkthrough_list(entries: Sequence[Entry]) -> tuple[WalkthroughList, str]:
    """The result of list_walkthroughs."""
    return _fitting(lambda *chars: WalkthroughList([Row(*_row(each, *chars)) for each in entries]), _list_text)


def status_list(entries: Sequence[Entry]) -> tuple[StatusList, str]:
    """The result of get_walkthrough_status."""
    return _fitting(lambda *chars: StatusList([_status_row(each, *chars) for each in entries]), _status_text)


def _fitting(build: Callable[[int, int], ListT], text: Callable[[ListT], str]) -> tuple[ListT, str]:
    """The fullest form of a list that fits into one result; of what fits in no form, as many rows as do."""
    for chars in _LENGTHS:
        result = build(*chars)
        if _fits(result, rendered := text(result)):
            return result, rendered
    rows, hidden = result.walkthroughs, 0
    while not _fits(result, rendered):
        hidden += 1 + len(rows) // 20
        result = type(result)(rows[:-hidden])
        rendered = f"{text(result)}\n\n{hidden} more are not shown here; each can be named by its key or title."
    return result, rendered


def _fits(result: Struct, text: str) -> bool:
    return len(msgspec.json.encode((result, text))) <= MAX_RESULT_BYTES - _ENVELOPE_BYTES


def cut(text: str, chars: int) -> str:
    """The text in at most so many characters, with an ellipsis where some of it is left out."""
    return text if len(text) <= chars else text[: chars - 1] + "…" if chars else ""


def _row(entry: Entry, description_chars: int, title_chars: int) -> tuple[Any, ...]:
    """The fields of a `Row`."""
    standing, shown = entry.standing, entry.standing.shown
    return (
        standing.walkthrough_id,
        standing.key,
        cut(shown.title, title_chars),
        cut(shown.description, description_chars),
        shown.type,
        shown.step_count,
        shown.estimated_minutes,
        shown.number,
        status_of(standing.progress.status if standing.progress else None) if entry.is_caller_known else None,
        entry.current_step_number,
        entry.newer_version_offered,
    )


def _status_row(entry: Entry, *chars: int) -> StatusRow:
    progress = entry.standing.progress
    assert progress is not None, "status is told of what was begun"  # noqa: S101
    own = (progress.attempt, progress.started_at, progress.last_activity_at, progress.completed_at)
    fields = (*_row(entry, *chars), *own, entry.completed_steps or 0)
    return StatusRow(*fields)


def _list_text(result: WalkthroughList) -> str:
    if not result.walkthroughs:
        return "There are no walkthroughs here at present. Tell the user so."
    lines = [
        f"{len(result.walkthroughs)} walkthrough{'s' if len(result.walkthroughs) > 1 else ''}. Unless the user has "
        "named one, show them and let the user choose; then call select_walkthrough with the key of that one.",
        "",
    ]
    for number, row in enumerate(result.walkthroughs, start=1):
        lines.append(f"{number}. {_headline(row)}")
        if row.description:
            # On one line: a line of its author's could look like a row.
            is_one = row.description.isprintable()
            lines.append("   " + (row.description if is_one else " ".join(row.description.split())))
    return "\n".join(lines)


def _status_text(result: StatusList) -> str:
    if not result.walkthroughs:
        return "The user has not begun any walkthrough with this account. list_walkthroughs shows what there is."
    lines = []
    for number, row in enumerate(result.walkthroughs, start=1):
        lines.append(f"{number}. {_headline(row)}")
        lines.append(
            f"   {row.completed_steps} of {row.step_count} steps completed · attempt {row.attempt} · begun "
            f"{_utc(row.started_at)} · last active {_utc(row.last_activity_at)}"
            + (f" · completed {_utc(row.completed_at)}" if row.completed_at is not None else "")
        )
    lines += ["", "To go on with one, call select_walkthrough with its key."]
    return "\n".join(lines)


_WHERE = {None: "", "not_started": " · not started", "completed": " · completed"}
_KINDS = {kind: kind.value for kind in WalkthroughType}


def _headline(row: Row) -> str:
    minutes = f", about {row.estimated_minutes} min" if row.estimated_minutes else ""
    steps = f"{row.step_count} step{'s' if row.step_count > 1 else ''}"
    where = f" · in progress, at step {row.current_step_number}" if row.status == "in_progress" else _WHERE[row.status]
    newer = " · a newer version is out" if row.newer_version_available else ""
    kind = _KINDS[row.type]
    return f"{row.title} (key: {row.key}) · {kind}, {steps}{minutes}, version {row.version}{where}{newer}"


def _utc(millis: int) -> str:
    return datetime.fromtimestamp(millis / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


# -------------------------------------------------------------------------------------------------- errors


def tool_error(error: ToolError) -> str:
    """What the assistant reads of an error: its code, then what is the matter and what to do."""
    return f"{error.code}: {_explained(error)}"


def _explained(error: ToolError) -> str:
    match error:
        case WalkthroughNotFound(ambiguous=True):
            return (
                f'Several walkthroughs have the title "{_quoted(error.reference)}". Call again with the key of one:\n'
                + _candidates(error)
            )
        case WalkthroughNotFound(candidates=()):
            return f'There is no walkthrough "{_quoted(error.reference)}", nor any other one here.'
        case WalkthroughNotFound():
            return (
                f'There is no walkthrough "{_quoted(error.reference)}". Call again with the key of one of these:\n'
                + _candidates(error)
            )
        case WalkthroughNotStarted():
            return (
                f'The user has not begun "{error.title}". If they want to, call select_walkthrough with '
                f'walkthrough="{error.reference}".'
            )
        case WalkthroughUnavailable():
            return (
                f'"{error.title}" is not offered at present, so it cannot be begun, begun again or moved to another '
                "version. Tell the user; list_walkthroughs shows what there is."
            )
        case CompletedStepRequired():
            problem = (
                "completed_step is not a handle that was given out here."
                if error.unreadable
                else "completed_step is missing."
            )
            if not error.standpoints:
                return f"{problem} The user has no walkthrough in progress: list_walkthroughs shows what there is."
            return (
                f"{problem} Nothing has moved. If the user has finished the step they were shown, call again with "
                "its handle:\n" + _some([f"- {_stands(each)}" for each in error.standpoints], "get_walkthrough_status")
            )
        case StepNotCurrent():
            return (
                f"That handle is not of a step that can be completed now, and nothing has moved. "
                f"{_stands(error.standpoint)}{_how_to_show(error.standpoint)}"
            )
        case StepNotReached():
            return (
                f"Step {error.step_number} cannot be shown: only completed steps and the current one can. "
                f"Those are: {', '.join(map(str, error.reachable))} (of {error.total_steps})."
            )
        case VersionWithdrawn():
            return (
                f'The version of "{error.title}" that the user is on was withdrawn by its author, and nothing has '
                f"moved. Tell the user; to begin on the newest version, call select_walkthrough with "
                f'walkthrough="{error.reference}".'
            )
        case InvalidArguments():
            return f"{error.problem}. Correct the arguments and call again."
        case RateLimited():
            seconds = error.retry_after_seconds
            return (
                f"These calls come faster than anyone reads, and this one was not carried out. Wait {seconds} "
                f"second{'s' if seconds != 1 else ''}, then make the very same call again. A walkthrough is taken one "
                "step at a time with the user: end your turn after each step."
            )
        case TemporarilyUnavailable():
            return (
                "The service cannot answer at this moment. Make the very same call again in a few seconds: nothing "
                "is lost, and nothing is done twice."
            )
    raise AssertionError(f"no words for {type(error).__name__}")


def _stands(at: Standpoint) -> str:
    if at.handle is None:
        return (
            f'"{at.title}" is completed. If the user wants to begin again, call select_walkthrough with '
            f'walkthrough="{at.reference}" and restart=true.'
        )
    return (
        f'"{at.title}" is at step {at.step_number} of {at.total_steps}: {at.step_title} (completed_step="{at.handle}").'
    )


def _how_to_show(at: Standpoint) -> str:
    if at.handle is None:
        return ""
    return f' Call select_walkthrough with walkthrough="{at.reference}" to show that step; it moves nothing.'


def _candidates(error: WalkthroughNotFound) -> str:
    return _some([f"- {each.key}: {each.title}" for each in error.candidates], "list_walkthroughs")


# Of lines with two of the longest titles, as many as fit into a result.
_MAX_LINES = 20


def _some(lines: Sequence[str], tool: str) -> str:
    """As many of `lines` as fit, and which tool shows the rest."""
    more = len(lines) - _MAX_LINES
    return "\n".join([*lines[:_MAX_LINES], *([f"- and {more} more: {tool} shows them all"] if more > 0 else [])])


def _quoted(text: str) -> str:
    """A piece of what the caller sent, short and on one line."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:100]
