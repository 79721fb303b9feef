"""Steps as resources, for a user to attach to a chat: the current one and each completed one.

    cairn://walkthroughs/connect-your-client/steps/3          a step by its number
    cairn://walkthroughs/connect-your-client/steps/current    wherever its reader is

Reading one is a review: it moves nothing and hands out no handle, and no other step can be read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

import mcp_types as types
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from application.learning import Learning, Reached
from domain.errors import StepNotReached, WalkthroughNotFound, WalkthroughNotStarted
from domain.tenancy import Caller
from entrypoints.mcp import rendering
from entrypoints.mcp.icons import ICONS
from entrypoints.mcp.paging import page
from entrypoints.mcp.tools import storable

_CURRENT = "current"
_URI = re.compile(r"cairn://walkthroughs/([^/?#]{1,900})/steps/(current|[1-9][0-9]{0,5})")
_MEDIA_TYPE = "text/markdown"
_MAX_URI_CHARS = 1_000  # that an error repeats

STEP = types.ResourceTemplate(
    uri_template="cairn://walkthroughs/{walkthrough}/steps/{step}",
    name="walkthrough_step",
    title="A step of a walkthrough",
    description=f"A step that the user may look at again, in a walkthrough that they have begun: the current one "
    f"(step: {_CURRENT}) or a completed one (step: its number).",
    mime_type=_MEDIA_TYPE,
    icons=ICONS,
)
_NOT_FOUND_BEFORE_2026 = -32002  # MCP 2025-11-25 "Resources", error handling; later revisions: invalid params


async def listed(learning: Learning, caller: Caller, cursor: str | None) -> types.ListResourcesResult:
    """What the caller may read: by walkthrough in display order, the current step first, then the completed ones."""
    resources = [resource for each in await learning.reached(caller) for resource in _resources(each)]
    shown, next_cursor = page(resources, cursor, lambda resource: resource.uri)
    return types.ListResourcesResult(resources=shown, next_cursor=next_cursor)


async def read(learning: Learning, caller: Caller, uri: str, protocol_version: str) -> types.ReadResourceResult:
    """One step, as `review_walkthrough_step` shows it, but for what is the assistant's alone.

    Raises:
        MCPError: there is no such step for this caller, with what there is.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise _not_found(uri, f"The address of a step is {STEP.uri_template}.", protocol_version)
    walkthrough, step = unquote(match[1]), match[2]
    try:
        lesson = await learning.review(caller, walkthrough, None if step == _CURRENT else int(step))
    except (WalkthroughNotFound, WalkthroughNotStarted, StepNotReached) as error:
        raise _not_found(uri, rendering.tool_error(error), protocol_version) from error
    contents = types.TextResourceContents(uri=uri, mime_type=_MEDIA_TYPE, text=rendering.reading(lesson))
    return types.ReadResourceResult(contents=[contents])


async def completed(
    learning: Learning, caller: Caller, template: str, variable: str, typed: str, known: Mapping[str, str]
) -> Sequence[str]:
    """Values for a variable of the template that begin with what was typed; `known` are those of the others."""
    if template != STEP.uri_template:
        return []
    reached = await learning.reached(caller)
    walkthrough = known.get("walkthrough")
    values = {
        "walkthrough": [each.standing.key for each in reached],
        "step": [step for each in reached if each.standing.key == walkthrough for step in _steps(each)],
    }
    return [value for value in values.get(variable, ()) if value.startswith(typed)]


def _steps(reached: Reached) -> Sequence[str]:
    current = reached.current_step_number
    numbers = [str(number) for number in reached.steps if number != current]
    return numbers if current is None else [_CURRENT, *numbers]


def _resources(reached: Reached) -> Sequence[types.Resource]:
    key, total = reached.standing.key, len(reached.version.steps)
    resources = []
    for step in _steps(reached):
        number = int(step) if step != _CURRENT else reached.current_step_number or 0
        where = f"step {number} of {total}" + (", the current one" if step == _CURRENT else "")
        resources.append(
            types.Resource(
                uri=STEP.uri_template.format(walkthrough=key, step=step),
                name=f"{key}-{step}",
                title=f"{reached.steps[number].title} ({where})",
                description=f"{reached.version.title}, {where}",
                mime_type=_MEDIA_TYPE,
            )
        )
    return resources


def _not_found(uri: str, problem: str, protocol_version: str) -> MCPError:
    """MCP "Resources", error handling: the code differs by revision, the address is in the data."""
    is_modern = protocol_version in MODERN_PROTOCOL_VERSIONS
    code = types.INVALID_PARAMS if is_modern else _NOT_FOUND_BEFORE_2026
    return MCPError(code=code, message=problem, data={"uri": storable(uri[:_MAX_URI_CHARS])})
