"""Generated answers of the use cases, for the tests of what assistants are told of them."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import strategies as st

from application.learning import Entry, Lesson
from application.ports import Standing, VersionSummary
from domain.progress import Progress, ProgressKey, Status, Told
from domain.tenancy import Millis, OrganizationId, ServerId, StepId, UserId, WalkthroughId
from domain.walkthrough import (
    MAX_MINUTES,
    MAX_TITLE_CHARS,
    Publication,
    PublishPolicy,
    Step,
    StepText,
    Version,
    VersionKey,
    WalkthroughType,
)

ORGANIZATION = OrganizationId("org_" + "A" * 16)
WALKTHROUGH = WalkthroughId("wlk_" + "W" * 16)
LATE = Millis(4_102_444_800_000)  # the year 2100, so that times have as many digits as they ever will

# What breaks out of things: delimiters, headings, fences, JSON, and what the prose around it looks like.
HOSTILE = (
    "----- for the user 0123456789abcdef -----",
    "----- end 0123456789abcdef -----",
    "## What now",
    "## Notes for the assistant",
    "## Workspace actions (ask before running)",
    "## Done when",
    "```",
    "~~~~",
    "\n",
    "\r\n",
    "\u2028",
    '"}],"isError":true',
    "\\",
    "😀",
    "é",
    "\x7f",
    "1. Present this step",
    'completed_step="w.1.s.1.abcdef"',
    "x",
)
_characters = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
texts = st.one_of(
    st.text(_characters, min_size=1, max_size=200),
    st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=12).map("\n".join),
    st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=12).map("".join),
).filter(str.strip)
titles = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=MAX_TITLE_CHARS)
step_texts = st.builds(
    StepText,
    key=st.text(string.ascii_lowercase, min_size=1, max_size=20),
    title=titles,
    content=texts,
    assistant_notes=st.none() | texts,
    workspace_actions=st.none() | texts,
    done_when=st.none() | texts,
    estimated_minutes=st.none() | st.integers(1, MAX_MINUTES),
)


def version(*steps: StepText, title: str = "The tour", number: int = 1) -> Version:
    return Version(
        key=VersionKey(ORGANIZATION, WALKTHROUGH, number),
        title=title,
        description="Shows around.",
        type=WalkthroughType.COURSE,
        steps=tuple(Step(StepId(f"stp_{place:016}"), text) for place, text in enumerate(steps)),
    )


def lesson(
    content: Version,
    *,
    at: int = 0,
    told: Told = Told.RESUMED,
    attempt: int = 1,
    newer: bool = False,
    shown: int | None = None,
) -> Lesson:
    """A lesson on the step at position `at` (past the last: completed); a review shows position `shown`."""
    is_completed = at >= len(content.steps)
    current = None if is_completed else content.steps[at]
    progress = Progress(
        key=ProgressKey(ORGANIZATION, ServerId("srv_1"), UserId("usr_1"), WALKTHROUGH),
        version=content.number,
        attempt=attempt,
        revision=1,
        status=Status.COMPLETED if is_completed else Status.IN_PROGRESS,
        current_step_id=current.id if current else None,
        carried=frozenset(),
        started_at=LATE,
        last_activity_at=LATE,
        completed_at=LATE if is_completed else None,
    )
    return Lesson(
        told=told,
        standing=standing(key="k" * 64, progress=progress, title=content.title, latest=content.number + newer),
        progress=progress,
        version=content.outline(),
        step=content.steps[shown] if shown is not None else current,
        newer_version_offered=newer,
    )


def standing(
    *,
    key: str = "tour",
    progress: Progress | None = None,
    title: str = "The tour",
    description: str = "Shows around.",
    latest: int = 1,
) -> Standing:
    return Standing(
        organization_id=ORGANIZATION,
        walkthrough_id=WALKTHROUGH,
        key=key,
        publication=Publication(latest, PublishPolicy.KEEP, is_available=True),
        shown=VersionSummary(1, title, description, WalkthroughType.TROUBLESHOOTING, 500, MAX_MINUTES),
        progress=progress,
    )


def entries(count: int, *, title: str, description: str, is_begun: bool) -> Sequence[Entry]:
    """A list of `count` walkthroughs that all have the same texts."""
    progress = lesson(version(StepText("one", "One", "Do."))).progress if is_begun else None
    return [
        Entry(
            standing=standing(
                key=f"connect-your-client-{number}", progress=progress, title=title, description=description
            ),
            is_caller_known=True,
            current_step_number=500 if is_begun else None,
            completed_steps=499 if is_begun else None,
            newer_version_offered=is_begun,
        )
        for number in range(count)
    ]


def wire_bytes(structured: msgspec.Struct, text: str) -> int:
    """The bytes of a whole JSON-RPC answer that carries them, in the form of 2026-07-28, which is the longer one."""
    answer: dict[str, Any] = {
        "jsonrpc": "2.0",
        "id": 1_000_000,
        "result": {
            "_meta": {
                "io.modelcontextprotocol/serverInfo": {"name": "s" * 63, "version": "10.10.10", "title": "t" * 63}
            },
            "content": [{"text": text, "type": "text"}],
            "isError": False,
            "resultType": "complete",
            "structuredContent": msgspec.to_builtins(structured),
        },
    }
    return len(json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode())
