"""What a client may get wrong in a message, over raw HTTP in both eras: the answer says so, and nothing has happened.

The rules: JSON-RPC 2.0; MCP 2025-11-25, "Transports"; MCP 2026-07-28, "Streamable HTTP".
"""

from __future__ import annotations

import base64
import codecs
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from domain.walkthrough import MAX_RESULT_BYTES, PublishPolicy
from tests.serving.conftest import Tenant, call
from tests.serving.raw import (
    FORMS,
    META,
    MODERN,
    Reply,
    assert_discreet,
    assert_no_tool_was_reached,
    modern,
    only,
    request,
)
from tests.worlds import manuscript

_HANDSHAKE = "2025-11-25"
_ERAS = pytest.mark.parametrize("era", ["legacy", "modern"])
_SELECT = call("select_walkthrough", walkthrough="tour") | {"id": 7}
_LIST_TOOLS: dict[str, Any] = {"jsonrpc": "2.0", "id": 7, "method": "tools/list"}
_ABSENT = object()
_META_VERSION = "io.modelcontextprotocol/protocolVersion"
_PARSE_ERROR, _INVALID_REQUEST, _INVALID_PARAMS, _NOT_FOUND = -32700, -32600, -32602, -32601
_MISMATCH, _UNSUPPORTED = -32020, -32022


def _in_era(era: str, message: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A message as a client of that era sends it, with the headers that go with it."""
    if era == "legacy":
        return message, [f"mcp-protocol-version: {_HANDSHAKE}"]
    body, headers = modern(message)
    return body, [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]


async def _answer(
    tenant: Tenant, body: Any, *headers: str, token: str | None = None, forms: tuple[str, ...] = FORMS
) -> Reply:
    fields = [f"host: {tenant.host}", *([f"authorization: Bearer {token}"] if token else []), *headers]
    reply = await only(tenant.service, request(*fields, body=body, forms=forms))
    assert_discreet(reply.body.decode())
    assert reply.status < 500
    assert reply.headers["vary"] == "Origin"
    if reply.body:
        assert reply.headers["content-type"] == "application/json"
    return reply


# ------------------------------------------------------------------------------------------------- envelopes

_ENVELOPES: dict[str, tuple[dict[str, Any], Any]] = {
    # What is changed in a request with the id 7, and the id of the answer.
    "a null id": ({"id": None}, None),
    "an id with a fraction": ({"id": 1.5}, None),
    "an id that is a float": ({"id": 1.0}, None),
    "an id beyond floats": ({"id": float("1e300")}, None),
    "a true id": ({"id": True}, None),
    "a list for an id": ({"id": [7]}, None),
    "an id of 1,001 characters": ({"id": "x" * 1_001}, None),
    "an object for an id": ({"id": {"id": 7}}, None),
    "no id": ({"id": _ABSENT}, None),
    "another JSON-RPC": ({"jsonrpc": "1.0"}, 7),
    "a number for JSON-RPC": ({"jsonrpc": 2.0}, 7),
    "a null JSON-RPC": ({"jsonrpc": None}, 7),
    "no JSON-RPC": ({"jsonrpc": _ABSENT}, 7),
    "a number for a method": ({"method": 5}, 7),
    "a method of 101 characters": ({"method": "x" * 101}, 7),
    "a null method": ({"method": None}, 7),
    "no method": ({"method": _ABSENT}, 7),
    "params in a list": ({"params": ["select_walkthrough", {"walkthrough": "tour"}]}, 7),
    "params in a text": ({"params": "select_walkthrough"}, 7),
    "a number for params": ({"params": 0}, 7),
    "a response": ({"method": _ABSENT, "params": _ABSENT, "result": {}}, None),
    "a response with an error": ({"method": _ABSENT, "params": _ABSENT, "error": {"code": 1, "message": "x"}}, None),
    "a request and a response in one": ({"result": {}}, None),
    "a request and an error in one": ({"error": {"code": 1, "message": "x"}}, None),
}


@_ERAS
@pytest.mark.promise("tools.nothing-internal")
async def test_an_envelope_that_is_no_request_is_told_so_with_its_id(
    tenant: Tenant, era: str, owner: asyncpg.Connection
) -> None:
    await tenant.publish("one")
    token = await tenant.token()
    good, headers = _in_era(era, _SELECT)
    for oddity, (changes, id) in _ENVELOPES.items():
        body = {name: value for name, value in {**good, **changes}.items() if value is not _ABSENT}
        reply = await _answer(tenant, body, *headers, token=token)
        assert reply.fault == (400, _INVALID_REQUEST, id), oddity
        assert reply.json["error"]["message"].endswith("."), oddity
    for oddity, values in {"a batch": [good], "no batch": [], "a batch of two": [good, good]}.items():
        reply = await _answer(tenant, values, *headers, token=token)
        assert reply.fault == (400, _INVALID_REQUEST, None), oddity
        assert reply.json["error"]["message"] == "Batches are not served: send each message in a request of its own."
    for value in (0, None, True, "tools/call", 1.5):
        assert (await _answer(tenant, value, *headers, token=token)).fault == (400, _INVALID_REQUEST, None), value
    await assert_no_tool_was_reached(owner)


@_ERAS
async def test_an_id_comes_back_as_it_was_sent(tenant: Tenant, era: str) -> None:
    for id in (
        0,
        -1,
        7,
        7,
        2**31,
        2**53 + 1,
        2**64,
        -(10**30),
        int("9" * 4_300),
        "",
        " ",
        "7",
        "x" * 1_000,
        "\x00",
        "é😀",
    ):
        body, headers = _in_era(era, _LIST_TOOLS | {"id": id})
        assert (await _answer(tenant, body, *headers)).fault == (200, None, id)
        body, headers = _in_era(era, _SELECT | {"id": id})
        assert (await _answer(tenant, body, *headers)).fault == (401, -32003, id)


@_ERAS
async def test_a_notification_is_taken_without_a_word(tenant: Tenant, era: str, owner: asyncpg.Connection) -> None:
    for method, params in (
        ("notifications/initialized", _ABSENT),
        ("notifications/initialized", None),
        ("notifications/cancelled", {"requestId": 7, "reason": "no more"}),
        ("notifications/cancelled", {"requestId": {}}),
        ("notifications/progress", {"progressToken": 7, "progress": 0.5}),
        ("notifications/roots/list_changed", {}),
        ("notifications/of/nobody", {"x": [1]}),
        ("notifications/", {}),
    ):
        body = {"jsonrpc": "2.0", "method": method, **({} if params is _ABSENT else {"params": params})}
        _, headers = _in_era(era, {"method": method})
        reply = await _answer(tenant, body, *headers)
        assert (reply.status, reply.body, reply.headers["content-length"]) == (202, b"", "0"), (method, params)
    await assert_no_tool_was_reached(owner)
    assert "Traceback" not in tenant.service.output


@_ERAS
async def test_what_cannot_be_served_is_a_fault_of_its_era(tenant: Tenant, era: str, owner: asyncpg.Connection) -> None:
    token = await tenant.token()
    await tenant.publish("one")
    for method, params, code in (
        ("no/such", {}, _NOT_FOUND),
        ("", {}, _NOT_FOUND),
        ("Tools/List", {}, _NOT_FOUND),
        ("tools/list ", {}, _NOT_FOUND),
        ("notifications/initialized", {}, _NOT_FOUND),
        ("subscriptions/listen", {"notifications": {}}, _NOT_FOUND),
        ("tools/call", {}, _INVALID_PARAMS),
        ("tools/call", {"name": None}, _INVALID_PARAMS),
        ("tools/call", {"name": "get_walkthrough_status", "arguments": []}, _INVALID_PARAMS),
        ("tools/call", {"name": "get_walkthrough_status", "arguments": "x"}, _INVALID_PARAMS),
        ("tools/list", {"cursor": 5}, _INVALID_PARAMS),
        ("server/discover" if era == "legacy" else "initialize", {}, _NOT_FOUND),
        ("server/discover" if era == "legacy" else "ping", {}, _NOT_FOUND),
    ):
        body = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
        headers = [f"mcp-protocol-version: {_HANDSHAKE}"]
        if era == "modern":
            body["params"] = {**params, "_meta": META}
            headers = [
                f"mcp-protocol-version: {MODERN}",
                f"mcp-method: {method}",
                f"mcp-name: {params.get('name', '')}",
            ]
        reply = await _answer(tenant, body, *headers, token=token)
        status = 200 if era == "legacy" else 404 if code == _NOT_FOUND else 400
        if method.endswith(" ") and era == "modern":  # no header can carry that but in base64
            status, code = 400, _MISMATCH
        assert reply.fault == (status, code, 7), (method, params)
    await assert_no_tool_was_reached(owner)


@pytest.mark.promise("tools.nothing-internal")
async def test_a_request_s_metadata_is_checked_before_anything_runs(tenant: Tenant, owner: asyncpg.Connection) -> None:
    await tenant.publish("one")
    token = await tenant.token()
    body, headers = _in_era("modern", _SELECT)
    for changes in (
        {"io.modelcontextprotocol/clientInfo": 5},
        {"io.modelcontextprotocol/clientInfo": {}},
        {"io.modelcontextprotocol/clientInfo": {"name": ["raw"], "version": {}}},
        {"io.modelcontextprotocol/clientCapabilities": 5},
        {"io.modelcontextprotocol/clientCapabilities": None},
        {"progressToken": {}},
        {"progressToken": [1]},
    ):
        odd = {**body, "params": {**body["params"], "_meta": META | changes}}
        assert (await _answer(tenant, odd, *headers, token=token)).fault == (400, _INVALID_PARAMS, 7), changes
    for meta in ([], "x", 5, None, {}, {_META_VERSION: MODERN}):
        odd = {**body, "params": {**body["params"], "_meta": meta}}
        assert (await _answer(tenant, odd, *headers, token=token)).fault == (400, _INVALID_PARAMS, 7), meta
    for meta in ([], "x", 5):
        odd = {**_SELECT, "params": {**_SELECT["params"], "_meta": meta}}
        reply = await _answer(tenant, odd, f"mcp-protocol-version: {_HANDSHAKE}", token=token)
        assert reply.fault == (200, _INVALID_PARAMS, 7), meta
    await assert_no_tool_was_reached(owner)


# --------------------------------------------------------------------------------------------------- bodies


def _twice(name: str, value: str) -> Callable[[str], bytes]:
    """Names a member twice: first with another value, which only one of two readers may take."""
    return lambda text: text.replace(f'"{name}": ', f'"{name}": {value}, "{name}": ', 1).encode()


def _nested(opening: str, closing: str, depth: int) -> Callable[[str], bytes]:
    return lambda text: text.replace('"tour"', opening * depth + "1" + closing * depth).encode()


_UNREADABLE: dict[str, Callable[[str], bytes]] = {
    "nothing": lambda text: b"",
    "white space": lambda text: b" \r\n\t",
    "a beginning": lambda text: text[:-1].encode(),
    "a beginning that is a number": lambda text: b"-",
    "more than one": lambda text: (text + text).encode(),
    "a NUL behind": lambda text: text.encode() + b"\x00",
    "single quotes": lambda text: text.replace('"', "'").encode(),
    "a comment": lambda text: text.replace("{", "{/* */", 1).encode(),
    "a comma too many": lambda text: (text[:-1] + ",}").encode(),
    "NaN": lambda text: text.replace('"tour"', "NaN").encode(),
    "Infinity": lambda text: text.replace('"tour"', "Infinity").encode(),
    "-Infinity": lambda text: text.replace('"tour"', "-Infinity").encode(),
    "a number of 4,301 digits": lambda text: text.replace('"tour"', "9" * 4_301).encode(),
    "an id of 4,301 digits": lambda text: text.replace('"id": 7', '"id": ' + "9" * 4_301).encode(),
    "a raw line break in a text": lambda text: text.replace("tour", "to\nur").encode(),
    "a raw NUL in a text": lambda text: text.replace("tour", "to\x00ur").encode(),
    "an escape that is none": lambda text: text.replace("tour", "\\x41").encode(),
    "half an escape": lambda text: text.replace("tour", "\\ud83d\\ud").encode(),
    "bytes that are no UTF-8": lambda text: text.encode().replace(b"tour", b"\xff\xfe"),
    "an overlong slash": lambda text: text.encode().replace(b"tour", b"\xc0\xaf"),
    "a cut off letter": lambda text: text.encode().replace(b"tour", b"\xf0\x9f\x98"),
    "a raw half of a surrogate pair": lambda text: text.replace("tour", "\ud800").encode("utf-8", "surrogatepass"),
    "Latin-1": lambda text: text.replace("tour", "t\xf6ur").encode("latin-1"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16, big end, without a mark": lambda text: text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "two byte order marks": lambda text: codecs.BOM_UTF8 * 2 + text.encode(),
}
_AMBIGUOUS: dict[str, Callable[[str], bytes]] = {
    # "name" is the one that would smuggle: the gate lets list_walkthroughs through without a token.
    "two names": _twice("name", '"list_walkthroughs"'),
    "two ids": _twice("id", "8"),
    "two JSON-RPCs": _twice("jsonrpc", '"1.0"'),
    "two methods": _twice("method", '"tools/list"'),
    "two params": _twice("params", "{}"),
    "two arguments": _twice("arguments", "{}"),
    "two arguments of one name": _twice("walkthrough", '"other"'),
    "the same twice": _twice("name", '"select_walkthrough"'),
    "one of them escaped": lambda text: text.replace(
        '"name": ', '"n\\u0061me": "list_walkthroughs", "name": '
    ).encode(),
}
_TOO_DEEP: dict[str, tuple[Callable[[str], bytes], int | None]] = {
    # Beyond what the JSON reader of the standard library goes down to, not even the id is known.
    "198 lists": (_nested("[", "]", 198), 7),
    "198 objects": (_nested('{"a":', "}", 198), 7),
    "300 of both": (_nested('[{"a":', "}]", 150), 7),
    "2,000 lists": (_nested("[", "]", 2_000), None),
    "2,000 objects": (_nested('{"a":', "}", 2_000), None),
    "100,000 objects": (_nested('{"a":', "}", 100_000), None),
    "500,000 lists": (_nested("[", "]", 500_000), None),
    "4,000 lists beside each other": (
        lambda text: text.replace('"arguments": {', '"arguments": {"x": [' + "[]," * 3_999 + "[]], ", 1).encode(),
        None,
    ),
    "nothing but a million beginnings": (lambda text: b"[" * 1_000_000, None),
    "in the metadata": (
        lambda text: text.replace('"params": {', '"params": {"_meta": ' + "[" * 250 + "]" * 250 + ", ", 1).encode(),
        7,
    ),
}


@_ERAS
@pytest.mark.promise("tools.nothing-internal", "gate.modes")
async def test_a_body_that_is_not_one_json_text_with_one_meaning_is_refused(
    tenant: Tenant, era: str, owner: asyncpg.Connection
) -> None:
    await tenant.publish("one")
    message, headers = _in_era(era, _SELECT)
    if era == "modern":  # so that _meta comes first where a case puts another beside it
        message["params"].pop("_meta")
    text = json.dumps(message)
    for token in (await tenant.token(), None):
        for oddity, odd in _UNREADABLE.items():
            reply = await _answer(tenant, odd(text), *headers, token=token)
            assert reply.fault == (400, _PARSE_ERROR, None), oddity
        for oddity, odd in _AMBIGUOUS.items():
            reply = await _answer(tenant, odd(text), *headers, token=token)
            assert reply.fault == (400, _INVALID_REQUEST, None), oddity
        for oddity, (odd, id) in _TOO_DEEP.items():
            reply = await _answer(tenant, odd(text), *headers, token=token)
            assert reply.fault == (400, _INVALID_REQUEST, id), oddity
    await assert_no_tool_was_reached(owner)


@_ERAS
@pytest.mark.promise("tools.size-limit")
async def test_a_step_takes_no_more_on_the_wire_than_promised_whatever_its_script(tenant: Tenant, era: str) -> None:
    content = ("Установите 😀 " * 580).strip()
    steps = (replace(step, content=content) for step in manuscript("one").steps)
    await tenant.world.authoring.push(
        tenant.organization,
        replace(manuscript("one"), steps=tuple(steps)),
        publish=PublishPolicy.KEEP,
        servers=[(tenant.server.slug, None)],
        by="author@example.com",
    )
    message, headers = _in_era(era, _SELECT)
    reply = await _answer(tenant, message, *headers, token=await tenant.token())
    assert reply.json["result"]["structuredContent"]["step"]["content"] == content
    assert 2 * len(content.encode()) < len(reply.body) <= MAX_RESULT_BYTES
    assert reply.headers["content-length"] == str(len(reply.body))
    assert b"\\u0" not in reply.body


@_ERAS
async def test_a_body_that_is_merely_unusual_is_served(tenant: Tenant, era: str) -> None:
    await tenant.publish("one")
    token = await tenant.token()
    message, headers = _in_era(era, _SELECT)
    text = json.dumps(message)
    for oddity, body in {
        "a byte order mark": codecs.BOM_UTF8 + text.encode(),
        "white space around": b"\r\n\t " + text.encode() + b"\n\n",
        "the order of members": json.dumps(dict(reversed(message.items()))).encode(),
        "members that nobody knows": json.dumps(message | {"trace": 1, "$": None}).encode(),
        "escapes": text.replace("tools/call", "tools\\/c\\u0061ll").encode(),
    }.items():
        reply = await _answer(tenant, body, *headers, token=token)
        assert reply.json["result"]["structuredContent"]["walkthrough"]["key"] == "tour", oddity
    # As deep as the reader of the handshake era goes; no further, see above.
    for deepest in (_nested("[", "]", 197), _nested('{"a":', "}", 197)):
        reply = await _answer(tenant, deepest(text), *headers, token=token)
        assert reply.json["result"]["content"][0]["text"].startswith("invalid_arguments: ")


@_ERAS
async def test_half_of_a_surrogate_pair_is_a_replacement_character(
    tenant: Tenant, era: str, owner: asyncpg.Connection
) -> None:
    """As an assistant leaves it that cuts off a note in the middle of an emoji."""
    await tenant.publish("one", "two")
    token = await tenant.token()
    shown = await _called(tenant, era, token, _SELECT)
    handle = shown["step"]["handle"]
    for escaped, meant in {
        "cut \\ud83d": "cut \ufffd",
        "\\ude00 cut": "\ufffd cut",
        "\\uD83D\\uDE00 whole": "😀 whole",
        "\\ud83d\\ud83d\\ude00\\ude00": "\ufffd😀\ufffd",
        "\\ud83d\\\\ude00": "\ufffd\\ude00",
        "no escape: \\\\ud83d": "no escape: \\ud83d",
        "none either: \\\\\\\\ud83d": "none either: \\\\ud83d",
        "one: \\\\\\ud83d": "one: \\\ufffd",
        "\\ud83d\\u0041": "\ufffdA",
    }.items():
        body, headers = _in_era(
            era, call("next_walkthrough_step", completed_step=handle, outcome="stuck", note="the note")
        )
        text = json.dumps(body).replace("the note", escaped)
        reply = await _answer(tenant, text.encode(), *headers, token=token)
        assert reply.json["result"]["structuredContent"]["status"] == "stuck", escaped
        note = "select note from walkthrough_progress_events order by revision desc limit 1"
        assert await owner.fetchval(note) == meant, escaped


async def _called(tenant: Tenant, era: str, token: str, message: dict[str, Any]) -> dict[str, Any]:
    body, headers = _in_era(era, message)
    structured: dict[str, Any] = (await _answer(tenant, body, *headers, token=token)).json["result"][
        "structuredContent"
    ]
    return structured


# ------------------------------------------------------------------------------------------ forms of content


@_ERAS
async def test_an_answer_is_json_for_whoever_takes_json(tenant: Tenant, era: str, owner: asyncpg.Connection) -> None:
    body, headers = _in_era(era, _LIST_TOOLS)
    json_form, *_ = FORMS
    for accepted in (
        (),
        ("accept:",),
        ("accept: application/json, text/event-stream",),
        ("accept: application/json",),
        ("accept: */*",),
        ("accept: application/*",),
        ("accept: APPLICATION/Json",),
        ("accept: application/json;q=0.1, text/event-stream;q=1",),
        ("accept: application/json ; charset=utf-8 ; q=0.001",),
        ("accept: text/html, application/xhtml+xml, */*;q=0.8",),
        ("accept: text/*;q=0, application/json",),
        ("accept: */*;q=0, application/json",),
        ("accept: text/event-stream", "accept: application/json"),
        ("accept: ,, application/json ,",),
    ):
        reply = await _answer(tenant, body, *headers, forms=(json_form, *accepted))
        assert reply.fault == (200, None, 7), accepted
    for refused in (
        ("accept: text/event-stream",),
        ("accept: text/html",),
        ("accept: text/*",),
        ("accept: application/json;q=0",),
        ("accept: application/json;q=0.000, */*",),
        ("accept: application/*; q=0, */*",),
        ("accept: application/jsonl",),
        ("accept: application/vnd.api+json",),
        ("accept: json",),
    ):
        reply = await _answer(tenant, body, *headers, forms=(json_form, *refused))
        assert reply.fault == (406, -32003, None), refused
        assert "Accept: application/json" in reply.json["error"]["message"]
    await assert_no_tool_was_reached(owner)


@_ERAS
async def test_a_body_comes_as_json_and_not_compressed(tenant: Tenant, era: str, owner: asyncpg.Connection) -> None:
    body, headers = _in_era(era, _LIST_TOOLS)
    _, accept = FORMS
    for form in (
        "content-type: application/json",
        "content-type: application/json; charset=utf-8",
        "content-type: application/json;charset=UTF-8",
        "content-type: APPLICATION/JSON",
        "content-type: application/json ; x=y",
        "content-type: application/json;",
        "Content-TYPE:application/json\t",
    ):
        assert (await _answer(tenant, body, *headers, forms=(form, accept))).status == 200, form
        assert (await _answer(tenant, body, *headers, "content-encoding: identity", forms=(form, accept))).status == 200
    for forms in (
        (),
        ("content-type:",),
        ("content-type: text/plain",),
        ("content-type: text/json",),
        ("content-type: application/jsonl",),
        ("content-type: application/json-rpc",),
        ("content-type: application/vnd.api+json",),
        ("content-type: application/x-www-form-urlencoded",),
        ("content-type: multipart/form-data; boundary=application/json",),
        ("content-type: application/json, text/plain",),
        ("content-type: application/json", "content-type: application/json"),
    ):
        reply = await _answer(tenant, body, *headers, forms=(*forms, accept))
        assert reply.fault == (415, -32003, None), forms
        assert "Content-Type: application/json" in reply.json["error"]["message"]
        assert "accept-encoding" not in reply.headers
    for encoding in ("gzip", "GZIP", "br", "deflate", "identity, gzip", "x"):
        reply = await _answer(tenant, body, *headers, f"content-encoding: {encoding}")
        assert reply.fault == (415, -32003, None), encoding
        assert reply.headers["accept-encoding"] == "identity"
    # Nor is an answer compressed.
    reply = await _answer(tenant, body, *headers, "accept-encoding: gzip, br, *;q=1, identity;q=0")
    assert "content-encoding" not in reply.headers
    assert reply.fault == (200, None, 7)
    await assert_no_tool_was_reached(owner)


# ------------------------------------------------------------------------- headers that repeat the body


def _base64(text: str) -> str:
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="


_VERSION, _METHOD, _NAME = f"MCP-Protocol-Version: {MODERN}", "Mcp-Method: tools/call", "Mcp-Name: select_walkthrough"
_MISMATCHES: dict[str, tuple[str, ...]] = {
    "no method": (_VERSION, _NAME),
    "no name": (_VERSION, _METHOD),
    "neither": (_VERSION,),
    "an empty method": (_VERSION, "Mcp-Method:", _NAME),
    "an empty name": (_VERSION, _METHOD, "Mcp-Name:"),
    "another method": (_VERSION, "Mcp-Method: tools/list", _NAME),
    "another case of the method": (_VERSION, "Mcp-Method: Tools/Call", _NAME),
    "a method in base64": (_VERSION, f"Mcp-Method: {_base64('tools/call')}", _NAME),
    "another name": (_VERSION, _METHOD, "Mcp-Name: list_walkthroughs"),
    "another case of the name": (_VERSION, _METHOD, "Mcp-Name: Select_Walkthrough"),
    "another name in base64": (_VERSION, _METHOD, f"Mcp-Name: {_base64('list_walkthroughs')}"),
    "a name in quotes": (_VERSION, _METHOD, 'Mcp-Name: "select_walkthrough"'),
    "a name with a blank inside": (_VERSION, _METHOD, "Mcp-Name: select_ walkthrough"),
    "blanks in base64": (_VERSION, _METHOD, f"Mcp-Name: {_base64(' select_walkthrough ')}"),
    "base64 of base64": (_VERSION, _METHOD, f"Mcp-Name: {_base64(_base64('select_walkthrough'))}"),
    "base64 without its end": (_VERSION, _METHOD, f"Mcp-Name: {_base64('select_walkthrough')[:-2]}"),
    "base64 that is none": (_VERSION, _METHOD, "Mcp-Name: =?base64?***?="),
    "base64 without its padding": (_VERSION, _METHOD, "Mcp-Name: =?base64?c2VsZWN0X3dhbGt0aHJvdWdo?="[:-1]),
    "base64 with bits left over": (_VERSION, _METHOD, "Mcp-Name: =?base64?c2VsZWN0X3dhbGt0aHJvdWdodB==?="),
    "base64 of no UTF-8": (_VERSION, _METHOD, "Mcp-Name: =?base64?//4=?="),
    "the mark in capitals": (
        _VERSION,
        _METHOD,
        f"Mcp-Name: {_base64('select_walkthrough').replace('base64', 'BASE64')}",
    ),
    "letters beyond ASCII": (_VERSION, _METHOD, "Mcp-Name: s\xe9lect_walkthrough"),
    "letters beyond ASCII elsewhere": (_VERSION, _METHOD, _NAME, "Mcp-Param-Walkthrough: t\xf6ur"),
    "the method twice": (_VERSION, _METHOD, _METHOD, _NAME),
    "two methods": (_VERSION, _METHOD, "Mcp-Method: tools/list", _NAME),
    "two methods in one": (_VERSION, "Mcp-Method: tools/call, tools/list", _NAME),
    "the name twice": (_VERSION, _METHOD, _NAME, _NAME),
    "two names": (_VERSION, _METHOD, "Mcp-Name: list_walkthroughs", _NAME),
    "two names, the other way": (_VERSION, _METHOD, _NAME, "Mcp-Name: list_walkthroughs"),
    "the version twice": (_VERSION, _VERSION, _METHOD, _NAME),
    "two versions": (_VERSION, f"MCP-Protocol-Version: {_HANDSHAKE}", _METHOD, _NAME),
    "two versions, the other way": (f"MCP-Protocol-Version: {_HANDSHAKE}", _VERSION, _METHOD, _NAME),
    "an unknown version that the body does not name": ("MCP-Protocol-Version: 2099-01-01", _METHOD, _NAME),
    "two versions in one": (f"MCP-Protocol-Version: {MODERN}, {MODERN}", _METHOD, _NAME),
}


@pytest.mark.promise("gate.headers")
async def test_a_header_that_does_not_repeat_the_body_is_refused(tenant: Tenant, owner: asyncpg.Connection) -> None:
    await tenant.publish("one")
    token = await tenant.token()
    body, _ = modern(_SELECT)
    for oddity, headers in _MISMATCHES.items():
        reply = await _answer(tenant, body, *headers, token=token)
        assert reply.fault == (400, _MISMATCH, 7), oddity
    for stated in (_HANDSHAKE, "2099-01-01", "", f"{MODERN} ", None, 5, [MODERN]):
        meta = META | {_META_VERSION: stated}
        odd = {**body, "params": {**body["params"], "_meta": meta}}
        reply = await _answer(tenant, odd, _VERSION, _METHOD, _NAME, token=token)
        assert reply.fault == (400, _MISMATCH, 7), stated
    for name in (5, ["select_walkthrough"], True):
        odd = {**body, "params": {**body["params"], "name": name}}
        reply = await _answer(tenant, odd, _VERSION, _METHOD, f"Mcp-Name: {name}", token=token)
        assert reply.fault == (400, _MISMATCH, 7), name
    await assert_no_tool_was_reached(owner)


@pytest.mark.promise("gate.headers")
async def test_a_header_that_repeats_the_body_in_another_form_is_taken(tenant: Tenant) -> None:
    await tenant.publish("one")
    token = await tenant.token()
    body, _ = modern(_SELECT)
    for headers in (
        (_VERSION, _METHOD, _NAME),
        (_VERSION.lower(), _METHOD.lower(), _NAME.lower()),
        (
            _VERSION.replace("MCP-Protocol-Version", "MCP-PROTOCOL-VERSION"),
            "MCP-METHOD: tools/call",
            "mCP-nAME: select_walkthrough",
        ),
        (f"mcp-protocol-version:{MODERN}\t ", "mcp-method:  tools/call  ", "mcp-name:\tselect_walkthrough \t"),
        (_VERSION, _METHOD, f"Mcp-Name: {_base64('select_walkthrough')}"),
        (_VERSION, _METHOD, _NAME, "Mcp-Param-Walkthrough: of nobody's schema", "Mcp-Unheard-Of: x"),
        (_VERSION, _METHOD, _NAME, "Mcp-Session-Id: 1234", "Last-Event-ID: 1"),
    ):
        reply = await _answer(tenant, body, *headers, token=token)
        assert reply.json["result"]["structuredContent"]["walkthrough"]["key"] == "tour", headers
        assert reply.json["result"]["resultType"] == "complete"
        assert "mcp-session-id" not in reply.headers
    unknown, _ = modern(call("zeig_ä") | {"id": 7})
    reply = await _answer(tenant, unknown, _VERSION, _METHOD, f"Mcp-Name: {_base64('zeig_ä')}", token=token)
    assert reply.fault == (400, _INVALID_PARAMS, 7)
    assert "Unknown tool" in reply.json["error"]["message"]


# ------------------------------------------------------------------------------------------------ revisions


@pytest.mark.promise("gate.headers")
async def test_a_revision_that_is_not_served_is_answered_with_the_one_to_use(
    tenant: Tenant, owner: asyncpg.Connection
) -> None:
    token = await tenant.token()
    await tenant.publish("one")
    for version in ("2099-01-01", "2026-07-28x", "1", "draft", "", "2025-11-25, 2025-11-25", "x" * 5_000):
        stated = {**_SELECT, "params": {**_SELECT["params"], "_meta": META | {_META_VERSION: version}}}
        for body in (_SELECT, stated, _LIST_TOOLS, {**_LIST_TOOLS, "method": "initialize"}):
            reply = await _answer(tenant, body, f"mcp-protocol-version: {version}", token=token)
            assert reply.fault == (400, _UNSUPPORTED, 7), version
            assert reply.json["error"]["data"] == {"supported": [MODERN], "requested": version}
    notification = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    reply = await _answer(tenant, notification, "mcp-protocol-version: 2099-01-01")
    assert reply.fault == (400, _UNSUPPORTED, None)
    await assert_no_tool_was_reached(owner)


async def test_the_header_says_which_era_a_request_is_of(tenant: Tenant) -> None:
    """There is a connector that sends a header of the handshake era over a body of the newest: it is served."""
    await tenant.publish("one")
    token = await tenant.token()
    of_both, lying = modern(_SELECT)[0], ("mcp-method: tools/list", "mcp-name: list_walkthroughs")
    for headers in (
        ("mcp-protocol-version: 2025-11-25",),
        ("mcp-protocol-version: 2025-11-25", "mcp-method: tools/call", "mcp-name: select_walkthrough"),
        # Nothing repeats the body in this era: such headers say nothing, true or not.
        ("mcp-protocol-version: 2025-11-25", *lying),
        ("mcp-protocol-version: 2025-06-18",),
        ("mcp-protocol-version: 2025-03-26",),
        ("mcp-protocol-version: 2024-11-05",),
        # Without a header it is 2025-03-26, whatever the body says.
        (),
        lying,
    ):
        for body in (_SELECT, of_both):
            result = (await _answer(tenant, body, *headers, token=token)).json["result"]
            assert result["structuredContent"]["walkthrough"]["key"] == "tour", headers
            assert "resultType" not in result
    # And no header of the newest era makes a body that is of none.
    reply = await _answer(tenant, _SELECT, _VERSION, _METHOD, _NAME, token=token)
    assert reply.fault == (400, _INVALID_PARAMS, 7)


async def test_the_handshake_settles_on_a_revision_whatever_is_asked_for(tenant: Tenant) -> None:
    for asked, header, settled in (
        ("2025-11-25", None, "2025-11-25"),
        ("2025-06-18", "2025-11-25", "2025-06-18"),
        ("2099-01-01", None, "2025-11-25"),
        ("2026-07-28", None, "2025-11-25"),
        ("", None, "2025-11-25"),
    ):
        params = {"protocolVersion": asked, "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
        body = {"jsonrpc": "2.0", "id": 7, "method": "initialize", "params": params}
        reply = await _answer(tenant, body, *([f"mcp-protocol-version: {header}"] if header else []))
        assert reply.json["result"]["protocolVersion"] == settled
        assert "mcp-session-id" not in reply.headers
    for params in ({}, {"protocolVersion": 5}, {"protocolVersion": "2025-11-25", "clientInfo": {}}):
        body = {"jsonrpc": "2.0", "id": 7, "method": "initialize", "params": params}
        assert (await _answer(tenant, body)).fault == (200, _INVALID_PARAMS, 7)
