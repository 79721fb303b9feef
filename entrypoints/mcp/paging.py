"""Long lists in pages (MCP "Pagination"): of prompts and of resources."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import TypeVar

import mcp_types as types
from mcp.shared.exceptions import MCPError

# With the longest titles and descriptions a page stays far below what clients take; an ordinary list is one page.
PAGE_SIZE = 50

_T = TypeVar("_T")


def page(items: Sequence[_T], cursor: str | None, name: Callable[[_T], str]) -> tuple[list[_T], str | None]:
    """The items that follow `cursor`, and the next cursor, or None at the end.

    A cursor names the last item that was shown, so that what is added or removed meanwhile repeats nothing and
    leaves nothing out.

    Raises:
        MCPError: invalid params, for a cursor that was never given out, or whose item is gone.
    """
    start = 0
    if cursor is not None:
        names = [_cursor(name(item)) for item in items]
        if cursor not in names:
            raise MCPError(code=types.INVALID_PARAMS, message="This cursor is not valid: list again without one.")
        start = names.index(cursor) + 1
    shown = list(items[start : start + PAGE_SIZE])
    return shown, _cursor(name(shown[-1])) if len(items) > start + PAGE_SIZE else None


def _cursor(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()
