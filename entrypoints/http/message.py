"""The body of a request: one JSON-RPC 2.0 message with one meaning, or a refusal.

    not JSON in UTF-8       400       -32700
    not one JSON-RPC call   400       -32600

The protocol layer has a reader for each era, and whoever stands in front of Cairn has one more: what they would read
differently is refused, or made the same for all of them.
"""

from __future__ import annotations

import json
import re
from typing import Any

from mcp_types import INVALID_REQUEST, PARSE_ERROR

# Of arrays and objects in each other. The reader of the handshake era ends there.
_MAX_DEPTH = 200
# Of arrays and objects in all. To read them holds up everybody whom this process serves: half a million, which fit into
# a body, take seconds, and these take some 20 ms. A call has a dozen, and its note may be of brackets alone.
_MAX_CONTAINERS = 4_000
# Answers repeat them.
_MAX_ID_CHARS = 1_000
_MAX_METHOD_CHARS = 100
_REFUSED = -32003  # MCP leaves -32000 to -32019 to servers; the HTTP status says which refusal it is

# An escaped half of a surrogate pair, where every backslash begins an escape.
_HALF_PAIR = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_NO_BACKSLASH = "\udfff\udfff"  # in no text that was read as UTF-8


class Refusal(Exception):
    """An HTTP answer that ends a request at the gate, with a JSON-RPC error for its body."""

    def __init__(
        self, status: int, problem: str, *headers: tuple[bytes, bytes], code: int = _REFUSED, data: Any = None
    ) -> None:
        super().__init__(problem)
        self.code = code
        self.data = data
        self.status = status
        self.problem = problem
        self.headers = headers


class Request:
    """What a refusal has to know of a request: the id that stands in its body."""

    id: str | int | None = None


def text_of(body: bytes) -> str:
    """The text of a body, as both readers take it.

    A byte order mark is left out (RFC 8259 section 8.1 allows it). An escaped half of a surrogate pair becomes U+FFFD:
    assistants leave one where they cut a text off in the middle of an emoji, and one of the readers takes that for no
    JSON at all.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable() from error
    if "\\u" not in text:
        return text
    marked = text.replace("\\\\", _NO_BACKSLASH)
    return _HALF_PAIR.sub(r"\\ufffd", marked).replace(_NO_BACKSLASH, "\\\\")


def message_of(text: str, request: Request) -> dict[str, Any]:
    """The JSON-RPC 2.0 message that a body is; `request` gets its id as soon as that is known.

    Raises:
        Refusal: for anything else.
    """
    containers = text.count("[") + text.count("{")
    if containers > _MAX_CONTAINERS:
        raise _no_message(f"A body has at most {_MAX_CONTAINERS:,} arrays and objects.")
    try:
        decoded = READER.decode(text)
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        raise _unreadable() from error
    if isinstance(decoded, list):
        raise _no_message("Batches are not served: send each message in a request of its own.")
    if not isinstance(decoded, dict):
        raise _no_message("A request body is one JSON-RPC request or notification.")
    if "result" in decoded or "error" in decoded:
        raise _no_message("This server asks clients nothing, and takes no responses.")
    is_request = "id" in decoded
    if is_request:
        id = decoded["id"]
        if not isinstance(id, str | int) or isinstance(id, bool):
            raise _no_message("The id of a request is a string or an integer.")
        if isinstance(id, str) and len(id) > _MAX_ID_CHARS:
            raise _no_message(f"The id of a request has at most {_MAX_ID_CHARS:,} characters.")
        request.id = id
    if containers > _MAX_DEPTH and _is_too_deep(decoded):
        raise _too_deep()
    if decoded.get("jsonrpc") != "2.0":
        raise _no_message('A message says "jsonrpc": "2.0".')
    method, params = decoded.get("method"), decoded.get("params")
    if not isinstance(method, str):
        raise _no_message("A request body is one JSON-RPC request or notification.")
    if len(method) > _MAX_METHOD_CHARS:
        raise _no_message(f"The name of a method has at most {_MAX_METHOD_CHARS} characters.")
    if params is not None and not isinstance(params, dict):
        raise _no_message("The params of a message are an object.")
    if not is_request and not method.startswith("notifications/"):
        raise _no_message("A request has an id: without one it is not answered, and nothing is done.")
    return decoded


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Which of two members of one name is meant, each reader decides (RFC 8259 section 4)."""
    decoded = dict(members)
    if len(decoded) != len(members):
        raise _no_message("An object in the body names a member twice.")
    return decoded


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


READER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
"""Of JSON with one meaning. Raises `Refusal` where an object names a member twice, ValueError and RecursionError."""


_CONTAINERS = frozenset({dict, list})


def _is_too_deep(decoded: Any) -> bool:
    level = [decoded]
    for _ in range(_MAX_DEPTH):
        members = (member for each in level for member in (each.values() if type(each) is dict else each))
        level = [member for member in members if type(member) in _CONTAINERS]
    return bool(level)


def _unreadable() -> Refusal:
    return Refusal(400, "The body cannot be read: it is to be JSON in UTF-8.", code=PARSE_ERROR)


def _no_message(problem: str) -> Refusal:
    return Refusal(400, problem, code=INVALID_REQUEST)


def _too_deep() -> Refusal:
    return _no_message(f"Arrays and objects are nested at most {_MAX_DEPTH} deep.")
