"""The tool table: each tool once. Schemas, validation, the gate's rule and the reference derive from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import NoneType
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar, get_args

import msgspec
from msgspec import Struct

from application.learning import Learning, Lesson
from application.ports import ToolCall
from domain.errors import InvalidArguments
from domain.progress import Outcome
from domain.tenancy import Caller, StepId, WalkthroughId
from entrypoints.mcp import rendering
from entrypoints.mcp.schema import (
    LessonResult,
    NextArguments,
    NoArguments,
    ReviewArguments,
    SelectArguments,
    StatusArguments,
    StatusList,
    WalkthroughList,
    input_schema,
)


class Gist(NamedTuple):
    """What the call log keeps of an answer."""

    outcome: str
    walkthrough_id: WalkthroughId | None = None
    version: int | None = None
    step_id: StepId | None = None
    error_code: str | None = None


FromGist: TypeAlias = Callable[[Gist], ToolCall]
"""Makes what the call log keeps of the call."""


class Answer(NamedTuple):
    """What a tool answers with."""

    structured: Struct
    text: str
    gist: Gist
    is_recorded: bool = False
    """Whether the call was recorded: together with what it changed."""


ArgumentsT = TypeVar("ArgumentsT", bound=Struct)


@dataclass(frozen=True)
class Tool(Generic[ArgumentsT]):
    """One tool. `arguments` and `result` are structs: their schemas are what clients see."""

    name: str
    title: str
    description: str
    arguments: type[ArgumentsT]
    result: type[Struct]
    run: Callable[[Learning, Caller, ArgumentsT, FromGist], Awaitable[Answer]]
    is_read_only: bool
    is_open: bool = False
    """Whether it may be called without a token on a server whose auth mode is not `on_connect`."""

    @cached_property
    def _nullable(self) -> Sequence[str]:
        """What is required, and yet may be None: the tool itself has something better to say than "missing"."""
        fields = msgspec.structs.fields(self.arguments)
        return [field.encode_name for field in fields if field.required and NoneType in get_args(field.type)]

    def decode(self, arguments: Mapping[str, Any] | None) -> ArgumentsT:
        """The arguments of a call, checked. `null` counts as absent.

        Raises:
            InvalidArguments: which of them is wrong, and what is expected.
        """
        given = {
            storable(name): storable(value) if isinstance(value, str) else value
            for name, value in (arguments or {}).items()
            if value is not None
        }
        for name in self._nullable:
            given.setdefault(name, None)
        try:
            return msgspec.convert(given, self.arguments, strict=True)
        except msgspec.ValidationError as error:
            raise InvalidArguments(_problem(error, self.arguments)) from error


_MAX_PROBLEM_CHARS = 200


def _problem(error: msgspec.ValidationError, arguments: type[Struct]) -> str:
    """Which argument is wrong, and what is expected; little of what was sent, which may be long."""
    problem, _, place = str(error).rpartition(" - at ")
    name = place.removeprefix("`$.").removesuffix("`")
    if problem.startswith("Invalid enum value"):
        choices = input_schema(arguments)["properties"][name]["enum"]
        return f"`{name}` is one of {', '.join(choices)}"
    problem = problem.replace(" | null", "")  # null counts as absent, so nobody is told of it
    if problem:
        return f"{problem[:_MAX_PROBLEM_CHARS]} - at `{name[:_MAX_PROBLEM_CHARS]}`"
    return place[:_MAX_PROBLEM_CHARS]


def storable(text: str) -> str:
    """Text without what neither UTF-8 nor a database can hold: NUL, and halves of surrogate pairs."""
    return text.replace("\x00", "\ufffd").encode(errors="replace").decode()


def _answered(lesson: Lesson) -> Answer:
    result, text = rendering.lesson(lesson)
    return Answer(result, text, _gist(lesson), lesson.is_recorded)


def _gist(lesson: Lesson) -> Gist:
    step_id = lesson.step.id if lesson.step else None
    return Gist(lesson.told, lesson.standing.walkthrough_id, lesson.version.number, step_id)


async def _list(learning: Learning, caller: Caller, arguments: NoArguments, as_call: FromGist) -> Answer:
    return Answer(*rendering.walkthrough_list(await learning.list(caller)), Gist("listed"))


async def _select(learning: Learning, caller: Caller, arguments: SelectArguments, as_call: FromGist) -> Answer:
    return _answered(
        await learning.select(
            caller,
            arguments.walkthrough,
            restart=arguments.restart,
            to_latest=arguments.version == "latest",
            as_call=lambda lesson: as_call(_gist(lesson)),
        )
    )


async def _next(learning: Learning, caller: Caller, arguments: NextArguments, as_call: FromGist) -> Answer:
    return _answered(
        await learning.next(
            caller,
            arguments.completed_step,
            arguments.walkthrough,
            outcome=Outcome(arguments.outcome),
            note=arguments.note,
            as_call=lambda lesson: as_call(_gist(lesson)),
        )
    )


async def _status(learning: Learning, caller: Caller, arguments: StatusArguments, as_call: FromGist) -> Answer:
    entries = await learning.status(caller, arguments.walkthrough)
    return Answer(*rendering.status_list(entries), Gist("listed"))


async def _review(learning: Learning, caller: Caller, arguments: ReviewArguments, as_call: FromGist) -> Answer:
    return _answered(await learning.review(caller, arguments.walkthrough, arguments.step_number))


TOOLS: Mapping[str, Tool[Any]] = {
    tool.name: tool
    for tool in (
        Tool(
            name="list_walkthroughs",
            title="List walkthroughs",
            description="Lists the step-by-step walkthroughs (courses, quickstarts, installers, integrations, "
            "troubleshooting guides) that the user can take here, and how far they are. Use it when the user asks "
            "what walkthroughs, tutorials or guides there are.",
            arguments=NoArguments,
            result=WalkthroughList,
            run=_list,
            is_read_only=True,
            is_open=True,
        ),
        Tool(
            name="select_walkthrough",
            title="Start or resume a walkthrough",
            description="Starts a walkthrough at step 1, or resumes it exactly where the user left off, and returns "
            "the one step to present now. Called again, it shows the current step again and moves nothing. Present "
            "that step, end your turn, and wait for the user.",
            arguments=SelectArguments,
            result=LessonResult,
            run=_select,
            is_read_only=False,
        ),
        Tool(
            name="next_walkthrough_step",
            title="Record the step and go on",
            description="Records how the user left the step they were shown (done, skipped, or stuck on it), and "
            "returns the step to present now. Call it only after the user has said so or has asked for the next step, "
            "once per step, with that step's handle as completed_step. Never call it several times in a row, not "
            "even when the user is in a hurry: each step is theirs to take.",
            arguments=NextArguments,
            result=LessonResult,
            run=_next,
            is_read_only=False,
        ),
        Tool(
            name="get_walkthrough_status",
            title="Where the user stands",
            description="Tells how far the user is in one walkthrough, or in all that they have begun. Use it when "
            "they ask only that: it shows no step. To go on, use select_walkthrough.",
            arguments=StatusArguments,
            result=StatusList,
            run=_status,
            is_read_only=True,
        ),
        Tool(
            name="review_walkthrough_step",
            title="Look at a step again",
            description="Shows the current step or one that the user has completed once more, by its number. Moves "
            "nothing.",
            arguments=ReviewArguments,
            result=LessonResult,
            run=_review,
            is_read_only=True,
        ),
    )
}
