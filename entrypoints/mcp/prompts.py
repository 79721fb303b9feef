"""Walkthroughs as prompts, which clients offer as commands: "Take …" for each, and one that asks for a name.

A prompt moves nothing. It is what the user would have typed, and the assistant then calls the tools.
"""

from __future__ import annotations

from collections.abc import Sequence

import mcp_types as types
from mcp.shared.exceptions import MCPError

from application.learning import Entry, Learning
from domain.errors import WalkthroughNotFound
from domain.tenancy import Caller
from entrypoints.mcp import rendering
from entrypoints.mcp.icons import ICONS
from entrypoints.mcp.paging import page
from entrypoints.mcp.tools import storable

TAKE_ANY = "take_walkthrough"
ARGUMENT = "walkthrough"
# No walkthrough's prompt can bear the name above: these have a hyphen where that has its underscore.
_TAKE = "take-"
_MAX_DESCRIPTION_CHARS = 240  # a client shows a line of it


async def listed(learning: Learning, caller: Caller, cursor: str | None) -> types.ListPromptsResult:
    """What can be taken on this server, in display order."""
    prompts = [_take_any(), *map(_take, await learning.list(caller))]
    shown, next_cursor = page(prompts, cursor, lambda prompt: prompt.name)
    return types.ListPromptsResult(prompts=shown, next_cursor=next_cursor)


async def got(learning: Learning, caller: Caller, name: str, walkthrough: str | None) -> types.GetPromptResult:
    """The message of one prompt.

    Raises:
        MCPError: invalid params, for a prompt or a walkthrough that is not there.
    """
    if name == TAKE_ANY:
        reference = (walkthrough or "").strip()
    elif name.startswith(_TAKE):
        reference = name.removeprefix(_TAKE)
    else:
        raise MCPError(code=types.INVALID_PARAMS, message=f"Unknown prompt: {storable(name[:100])}")
    if not reference:
        return _said("Choose a walkthrough", "Show me the walkthroughs that I can take here, and let me choose one.")
    try:
        standing = await learning.find(caller, reference)
    except WalkthroughNotFound as error:
        raise MCPError(code=types.INVALID_PARAMS, message=rendering.tool_error(error)) from error
    return _said(
        _title(standing.shown.title),
        # By its key alone: a title is its author's, and this is the user's own voice.
        f'Take me through a walkthrough: call select_walkthrough with walkthrough="{standing.key}", present the one '
        "step that it returns, and end your turn. Go on only when I say that the step is done.",
    )


async def completed(learning: Learning, caller: Caller, prompt: str, argument: str, typed: str) -> Sequence[str]:
    """Names of walkthroughs that begin with what was typed: keys, or else titles where a word of it does."""
    if (prompt, argument) != (TAKE_ANY, ARGUMENT):
        return []
    return _names(await learning.list(caller), typed.strip().casefold())


def _names(entries: Sequence[Entry], typed: str) -> list[str]:
    titles = [each.standing.shown.title.casefold() for each in entries]
    names = []
    for entry, title in zip(entries, titles, strict=True):
        key = entry.standing.key
        if key.startswith(typed):
            names.append(key)
        elif title.startswith(typed) or any(word.startswith(typed) for word in title.split()):
            # A title names its walkthrough only where no other bears it.
            names.append(entry.standing.shown.title if titles.count(title) == 1 else key)
    return names


def _take_any() -> types.Prompt:
    return types.Prompt(
        name=TAKE_ANY,
        title="Take a walkthrough",
        description="Starts a walkthrough, or resumes it where you left off.",
        arguments=[
            types.PromptArgument(
                name=ARGUMENT,
                title="Walkthrough",
                description="Its key or title; leave it out to choose from the list.",
                required=False,
            )
        ],
        icons=ICONS,
    )


def _take(entry: Entry) -> types.Prompt:
    shown = entry.standing.shown
    return types.Prompt(
        name=_TAKE + entry.standing.key,
        title=_title(shown.title),
        description=rendering.cut(shown.description, _MAX_DESCRIPTION_CHARS),
        icons=ICONS,
    )


def _title(title: str) -> str:
    return title if title.lower().startswith("take ") else f"Take {title}"


def _said(description: str, text: str) -> types.GetPromptResult:
    content = types.TextContent(type="text", text=text)
    return types.GetPromptResult(description=description, messages=[types.PromptMessage(role="user", content=content)])
