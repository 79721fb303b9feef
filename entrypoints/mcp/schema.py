"""Arguments and results of the tools. Descriptions here are what an assistant reads in the tools' schemas."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from domain.progress import MAX_NOTE_CHARS, Status, Told
from domain.walkthrough import MAX_STEPS, Delivery, WalkthroughType

# ----------------------------------------------------------------------------------------------- arguments

# Longer than any id, key or title, so that what is refused is a mistake and not a long title.
_Reference = Annotated[str, Meta(min_length=1, max_length=300, description="Its key, id or exact title.")]


class NoArguments(Struct):
    pass


class SelectArguments(Struct, forbid_unknown_fields=True):
    walkthrough: _Reference
    restart: Annotated[
        bool,
        Meta(
            description="Begin again from step 1, as a new attempt; the earlier one stays on record. Only when the "
            "user asks for it."
        ),
    ] = False
    version: Annotated[
        Literal["pinned", "latest"],
        Meta(
            description="pinned: stay on the version the user began. latest: move to the newest one; what is "
            "completed stays completed. Only when the user agrees to move."
        ),
    ] = "pinned"


class NextArguments(Struct, forbid_unknown_fields=True):
    completed_step: (
        Annotated[
            str,
            Meta(
                max_length=300,
                description="The handle of the step that the user has just finished, exactly as it was given.",
            ),
        ]
        | None
    )
    walkthrough: _Reference | None = None
    outcome: Annotated[
        Literal["done", "skipped", "stuck"],
        Meta(
            description="done: the user says so, or asks to go on. skipped: they want to leave it out; it counts as "
            "completed. stuck: they cannot go on; this is recorded for the author, and nothing moves."
        ),
    ] = "done"
    note: (
        Annotated[
            str,
            Meta(max_length=MAX_NOTE_CHARS, description="What the user wants the author to know, in their words."),
        ]
        | None
    ) = None


class StatusArguments(Struct):
    walkthrough: _Reference | None = None


class ReviewArguments(Struct):
    walkthrough: _Reference
    step_number: Annotated[int, Meta(ge=1, le=MAX_STEPS, description="Counted from 1.")]


# ------------------------------------------------------------------------------------------------- results

_Millis = Annotated[int, Meta(description="Unix time in milliseconds.")]


class Row(Struct):
    id: str
    key: str
    title: str
    description: str
    type: WalkthroughType
    step_count: int
    estimated_minutes: int | None
    version: int
    status: Annotated[
        Literal["not_started", "in_progress", "completed"] | None,
        Meta(description="null while the user has not signed in."),
    ]
    current_step_number: int | None
    newer_version_available: bool


class WalkthroughList(Struct):
    walkthroughs: list[Row]


class StatusRow(Row):
    attempt: int
    started_at: _Millis
    last_activity_at: _Millis
    completed_at: _Millis | None
    completed_steps: int


class StatusList(Struct):
    walkthroughs: list[StatusRow]


class WalkthroughReference(Struct):
    id: str
    key: str
    title: str
    version: Annotated[int, Meta(description="The version the user is on.")]
    latest_version: int


class StepResult(Struct):
    handle: Annotated[
        str | None, Meta(description="Give it back as completed_step when the user has finished this step.")
    ]
    key: str
    number: int
    title: str
    content: Annotated[str, Meta(description="Markdown, for the user.")]
    assistant_notes: Annotated[str | None, Meta(description="Markdown, for the assistant.")]
    workspace_actions: Annotated[
        str | None, Meta(description="Markdown: what may be done in the workspace once the user agrees.")
    ]
    done_when: Annotated[str | None, Meta(description="Markdown: how to tell that the step is done.")]
    delivery: Annotated[
        Delivery,
        Meta(
            description="verbatim: word for word; explain: in the assistant's words; together: worked through "
            "in the user's project."
        ),
    ]
    estimated_minutes: int | None


class ProgressResult(Struct):
    completed_steps: int
    total_steps: int
    attempt: int
    started_at: _Millis
    completed_at: _Millis | None


class LessonResult(Struct):
    status: Told
    walkthrough: WalkthroughReference
    step: StepResult | None
    progress: ProgressResult
    what_now: Annotated[str, Meta(description="What the assistant does next.")]


def status_of(value: Status | None) -> Literal["not_started", "in_progress", "completed"]:
    """The status a list shows of a progress, or of none; a visitor's that has ended is none."""
    if value is Status.COMPLETED:
        return "completed"
    return "in_progress" if value is Status.IN_PROGRESS else "not_started"


# ----------------------------------------------------------------------------------------------- JSON Schema


def output_schema(type: type[Struct]) -> dict[str, Any]:
    """The JSON Schema of a result, with `type: object` at its root as MCP requires.

    msgspec puts a reference there and the object itself among the definitions.
    """
    (root,), definitions = msgspec.json.schema_components([type], ref_template="#/$defs/{name}")
    schema: dict[str, Any] = definitions.pop(root["$ref"].removeprefix("#/$defs/"))
    for definition in (schema, *definitions.values()):
        del definition["title"]  # the name of a class of ours, which tells nobody anything
    return schema | ({"$defs": definitions} if definitions else {})


def input_schema(type: type[Struct]) -> dict[str, Any]:
    """The JSON Schema of arguments, as plain as assistants like it.

    `null` counts as absent everywhere, so no argument's schema speaks of it.
    """
    schema = output_schema(type)
    for argument in schema["properties"].values():
        if "anyOf" in argument:
            (kind,) = (each for each in argument.pop("anyOf") if each != {"type": "null"})
            argument.pop("default", None)
            argument |= kind
    if type.__struct_config__.forbid_unknown_fields:
        schema["additionalProperties"] = False
    return schema
