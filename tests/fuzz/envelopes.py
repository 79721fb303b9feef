"""Requests to `/mcp` that are nearly right: valid ones of every method and both eras, broken where Hypothesis says.

A request is built as a tree (`Object`, lists, scalars and `Raw`), its headers as a list, and both can hold what no
JSON library or HTTP client would write: a member twice, NaN, half of a surrogate pair, a length that is not true.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import string
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.choices import Choices

MODERN, HANDSHAKE = "2026-07-28", "2025-11-25"
_OLDER = ("2025-06-18", "2025-03-26", "2024-11-05")


@dataclass
class Object:
    """A JSON object whose members have an order, and may come twice."""

    members: list[list[Any]]

    def __repr__(self) -> str:
        return encode(self, is_ascii=True)[:2000]


@dataclass(frozen=True)
class Raw:
    """JSON as it is to be sent, or what is no JSON."""

    text: str


@dataclass(frozen=True)
class Facts:
    """What a client of the stage can know, or guess."""

    host: str
    tokens: Sequence[str]
    """The more often a token is in it, the more requests bear it."""
    references: Sequence[str]
    handles: Sequence[str]
    other_hosts: Sequence[str]
    prompts: Sequence[str]
    resources: Sequence[str]
    templates: Sequence[str]


@dataclass(repr=False)
class Request:
    """One HTTP request, as it goes over the wire."""

    method: str = "POST"
    target: str = "/mcp"
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    framing: str = "whole"

    @property
    def is_http(self) -> bool:
        """Whether an HTTP server must find nothing wrong with it."""
        token = set(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~")
        printable = {chr(code) for code in range(0x20, 0x7F)} | {chr(code) for code in range(0x80, 0x100)} | {"\t"}
        names = [name.lower() for name, _ in self.headers]
        return (
            self.framing in ("whole", "chunked")
            and bool(self.method)
            and set(self.method) <= token
            and self.target.startswith("/")
            and set(self.target) <= {chr(code) for code in range(0x21, 0x7F)}
            and names.count("host") == 1
            and not {"transfer-encoding", "content-length", "upgrade", "connection", "expect"} & set(names)
            and all(name and set(name) <= token and set(value) <= printable for name, value in self.headers)
        )

    @property
    def is_cut_off(self) -> bool:
        """Whether less is sent than is announced."""
        return self.framing in ("torn chunks", "too long")

    def __repr__(self) -> str:
        return f"Request({self.wire()[:1500]!r})"

    def header(self, wanted: str) -> list[str]:
        return [value for name, value in self.headers if name.lower() == wanted]

    def wire(self) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1", *(f"{name}: {value}" for name, value in self.headers)]
        body = self.body
        match self.framing:
            case "chunked":
                lines.append("Transfer-Encoding: chunked")
                body = b"".join(_chunk(self.body[at : at + 97]) for at in range(0, len(self.body), 97)) + b"0\r\n\r\n"
            case "torn chunks":
                lines.append("Transfer-Encoding: chunked")
                body = _chunk(self.body)[:-2] + b"zz\r\n"
            case "both lengths":
                lines += [f"Content-Length: {len(self.body)}", "Transfer-Encoding: chunked"]
                body = _chunk(self.body) + b"0\r\n\r\n"
            case "two lengths":
                lines += [f"Content-Length: {len(self.body)}", f"Content-Length: {len(self.body) + 1}"]
            case "too short":
                lines.append(f"Content-Length: {len(self.body) // 2}")
            case "too long":
                lines.append(f"Content-Length: {len(self.body) + 7}")
            case "no number":
                lines.append("Content-Length: -1")
            case "none":
                body = b""
            case _:
                lines.append(f"Content-Length: {len(self.body)}")
        head = "\r\n".join(lines) + "\r\n\r\n"
        return head.encode("latin-1", "replace") + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def encode(value: Any, *, is_ascii: bool) -> str:
    """JSON, and whatever else the tree holds."""
    match value:
        case Raw():
            return value.text
        case Object():
            members = (f"{json.dumps(name)}:{encode(each, is_ascii=is_ascii)}" for name, each in value.members)
            return "{" + ",".join(members) + "}"
        case list():
            return "[" + ",".join(encode(each, is_ascii=is_ascii) for each in value) + "]"
        case _:
            return json.dumps(value, ensure_ascii=is_ascii)


def _tree(value: Any) -> Any:
    match value:
        case dict():
            return Object([[name, _tree(each)] for name, each in value.items()])
        case list():
            return [_tree(each) for each in value]
        case _:
            return value


# ------------------------------------------------------------------------------------------------ sound requests


def _asked(choose: Choices, facts: Facts) -> tuple[str, dict[str, Any]]:
    """Method and parameters of something that is served, or, seldom, of something that is not."""
    reference, handle = choose.of(facts.references), choose.of(facts.handles)
    kind = choose.below(32)
    match kind:
        case 0 | 1 | 2 | 3:
            return _tool("next_walkthrough_step", completed_step=handle)
        case 4 | 5 | 6 | 7:
            return _tool(
                "next_walkthrough_step",
                completed_step=choose.of([handle, handle, handle, None]),
                outcome=choose.of(["done", "skipped", "stuck", "stuck", None]),
                note=choose.of([None, "why", "", "n" * 2000, "\u202e\u200b"]),
                walkthrough=choose.of([None, None, reference]),
            )
        case 8 | 9:
            return _tool("select_walkthrough", walkthrough=reference)
        case 10 | 11:
            version = choose.of(["pinned", "latest"])
            return _tool("select_walkthrough", walkthrough=reference, restart=bool(choose.below(2)), version=version)
        case 12 | 13:
            return _tool("review_walkthrough_step", walkthrough=reference, step_number=choose.of([1, 2, 3, 0, -1, 4]))
        case 14:
            return _tool("get_walkthrough_status", walkthrough=choose.of([None, reference]))
        case 15:
            return _tool("list_walkthroughs")
        case 16:
            client = {"name": "fuzzed", "version": "1"}
            return "initialize", {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": client}
        case 17 | 18:
            return "prompts/get", {"name": choose.of([*facts.prompts, "none"]), "arguments": {}}
        case 19 | 20:
            return "resources/read", {"uri": choose.of([*facts.resources, "cairn://none"])}
        case 21 | 22:
            of = choose.of(
                [
                    {"type": "ref/prompt", "name": (*facts.prompts, "tour")[0]},
                    {"type": "ref/resource", "uri": (*facts.templates, "cairn://{walkthrough}")[0]},
                ]
            )
            argument = {"name": choose.of(["walkthrough", "step"]), "value": choose.of(["", "t", "The"])}
            return "completion/complete", {"ref": of, "argument": argument}
        case _:
            return choose.of(_PLAIN)


def _tool(name: str, **arguments: Any) -> tuple[str, dict[str, Any]]:
    return "tools/call", {"name": name, "arguments": arguments}


_PLAIN: Sequence[tuple[str, dict[str, Any]]] = (
    ("server/discover", {}),
    ("ping", {}),
    ("tools/list", {}),
    ("prompts/list", {}),
    ("resources/list", {}),
    ("resources/templates/list", {}),
    ("notifications/initialized", {}),
    ("notifications/cancelled", {"requestId": 1, "reason": "no"}),
    ("notifications/progress", {"progressToken": 1, "progress": 1}),
    ("notifications/roots/list_changed", {}),
    ("logging/setLevel", {"level": "debug"}),
    ("resources/subscribe", {"uri": "cairn://none"}),
    ("subscriptions/listen", {"notifications": {"toolsListChanged": True}}),
    ("tasks/get", {"taskId": "1"}),
    ("sampling/createMessage", {"messages": [], "maxTokens": 1}),
    ("roots/list", {}),
)


def _sound(choose: Choices, facts: Facts) -> tuple[Object, list[tuple[str, str]]]:
    """A message that is right in its era, and its headers."""
    method, params = _asked(choose, facts)
    revision = choose.of([MODERN, MODERN, MODERN, HANDSHAKE, HANDSHAKE, choose.of(_OLDER)])
    headers = [
        ("Host", facts.host),
        ("Content-Type", "application/json"),
        ("Accept", "application/json, text/event-stream"),
        ("MCP-Protocol-Version", revision),
        ("Authorization", f"Bearer {choose.of(facts.tokens)}"),
        ("User-Agent", "fuzzed/1.0"),
    ]
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": 7, "method": method}
    if method.startswith("notifications/"):
        del message["id"]
    if revision == MODERN:
        params = params | {
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": MODERN,
                "io.modelcontextprotocol/clientInfo": {"name": "fuzzed", "version": "1"},
                "io.modelcontextprotocol/clientCapabilities": {},
            }
        }
        headers.append(("Mcp-Method", method))
        if name := params.get("name") or params.get("uri"):
            headers.append(("Mcp-Name", name))
    if params or choose.below(2):
        message["params"] = params
    tree = _tree(message)
    assert isinstance(tree, Object)
    return tree, headers


# ------------------------------------------------------------------------------------------------------ breaking

_LONG = 100_000
_HOSTILE_JSON = [
    *map(
        Raw,
        (
            "null", "true", "false", "0", "-1", "1.0", "1.5", "-0.0", "1e999", "1e-999", "NaN", "Infinity", "-Infinity",
            "9007199254740993", "18446744073709551616", "1" + "0" * 400, "9" * 5000, "00", "0x10", "+1", "'a'", "nul",
            '"\\u0000"', '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"\t"', '"\\x"', "[]", "{}", "[[]]",
            '{"":0}', '{"a":1,"a":2}', "{,}", "[1,]", "// no", "[" * 90 + "]" * 90, "[" * 900 + "]" * 900,
            "[" * _LONG + "]" * _LONG, '{"a":' * 900 + "1" + "}" * 900, '{"a":' * _LONG + "1" + "}" * _LONG,
            "[" * _LONG, "[" + "0," * 20_000 + "0]", "{" + ",".join(f'"k{n}":{n}' for n in range(5000)) + "}",
        ),
    ),
]  # fmt: skip
_HOSTILE_TEXT = [
    "", " ", "\x00", "\ud800", "\u202e", "\ufeff", "\U000e0041", "😀", "é", "\x7f", "\x85", "\u2028", "\n", "\r\n",
    "x" * _LONG, "\x00" * 5000, "é" * 4001, "\ud800" * 4001, "'; drop table walkthrough_progress; --", "%s%n%x", "$1",
    "../../etc/passwd", "{0.__class__}", "${jndi:ldap://x}", "=?base64?dG91cg==?=", "=?base64?!?=", "__proto__",
    "tools/call", "tools/list", "initialize", "list_walkthroughs", "next_walkthrough_step", "2.0", "1",
    MODERN, HANDSHAKE, "2099-01-01", "null", "true",
]  # fmt: skip
_generated = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8))
_character = st.characters(exclude_categories=[])
_bytes = st.binary(min_size=1, max_size=40)
_latin = st.text(st.characters(max_codepoint=255), max_size=20)


def _scalar(choose: Choices) -> Any:
    match choose.below(4):
        case 0 | 1:
            return choose.of(_HOSTILE_JSON)
        case 2:
            return choose.of(_HOSTILE_TEXT)
        case _:
            return choose.draw(_generated)


def _value(choose: Choices) -> Any:
    match choose.below(6):
        case 0:
            return [_scalar(choose) for _ in range(choose.below(4))]
        case 1:
            return Object([[choose.of(_HOSTILE_TEXT), _scalar(choose)] for _ in range(choose.below(4))])
        case _:
            return _scalar(choose)


def _slots(value: Any) -> Iterator[tuple[list[Any], int]]:
    """Every place of the tree that holds a value: a list and an index, where an object's members are such lists."""
    if isinstance(value, Object):
        for member in value.members:
            yield member, 1
            yield from _slots(member[1])
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield value, index
            yield from _slots(each)


def _objects(value: Any) -> Iterator[Object]:
    if isinstance(value, Object):
        yield value
        for _, each in value.members:
            yield from _objects(each)
    elif isinstance(value, list):
        for each in value:
            yield from _objects(each)


def _garbled(choose: Choices, text: str, pool: Sequence[str]) -> str:
    """The text with a letter changed, cut off, spliced with another of `pool`, or with something around it."""
    at = choose.below(len(text) + 1)
    match choose.below(9):
        case 0:
            return text[:at] + choose.draw(_character) + text[at + 1 :]
        case 1:
            return text[:at]
        case 2:
            other = choose.of(pool)
            return text[:at] + other[choose.below(len(other) + 1) :]
        case 3:
            return text[:at] + choose.of(_HOSTILE_TEXT) + text[at:]
        case 4:
            return choose.of([" {}", "{} ", "\n{}\t", "\x00{}", "{}\x00", '"{}"', "{}.", "{}\u200b"]).replace(
                "{}", text
            )
        case 5:
            return text.swapcase()
        case 6:
            return _spliced(choose, text, pool)
        case 7:
            return text * choose.of([0, 2, 50, 2_000])
        case _:
            return choose.of(pool)


def _spliced(choose: Choices, text: str, pool: Sequence[str]) -> str:
    """A handle made of two, or with another count, and with check digits that are right: they are no secret."""
    parts = text.split(".")
    if len(parts) != 5:
        return text + "."
    others = [each.split(".") for each in pool if each.count(".") == 4]
    for place in {choose.below(4), choose.below(4)}:
        other = choose.of(others)[place]
        counts = ["0", "-1", "01", "1", "2", "3", "999999999", "1000000000", "1" * 400, "１", "", "1.0", other]
        parts[place] = choose.of(counts) if place in (1, 3) else other
    body = ".".join(parts[:4])
    return f"{body}.{hashlib.sha256(body.encode(errors='replace')).hexdigest()[:6]}"


def _break_tree(choose: Choices, message: Object, facts: Facts) -> None:
    slots = list(_slots(message))
    if not slots:
        return
    holder, index = choose.of(slots)
    value = holder[index]
    owner = choose.of(list(_objects(message)))
    kind = choose.below(11)
    match kind:
        case 0 | 1:
            holder[index] = _value(choose)
        case 2 if owner.members:
            del owner.members[choose.below(len(owner.members))]
        case 3 if owner.members:
            name, twin = choose.of(owner.members)
            again = choose.of([_value(choose), deepcopy(twin)])
            owner.members.insert(choose.below(len(owner.members) + 1), [name, again])
        case 4 if owner.members:
            member = choose.of(owner.members)
            member[0] = _garbled(choose, member[0], _HOSTILE_TEXT)
        case 5:
            name = choose.of(["value", choose.of(_HOSTILE_TEXT)])
            holder[index] = choose.of([[value], Object([[name, value]])])
        case 6:
            holder[index] = str(value) if not isinstance(value, str) else Raw(value[:50])
        case 7:
            other, place = choose.of(slots)
            holder[index] = deepcopy(other[place])
        case 8:
            name = choose.of([*_HOSTILE_TEXT, "user_id", "_meta", "id", "method", "result", "error", "restart"])
            owner.members.append([name, _value(choose)])
        case _ if isinstance(value, str):
            pool = facts.handles if value in facts.handles else [*facts.references, *_HOSTILE_TEXT]
            holder[index] = _garbled(choose, value, pool)


_HEADER_VALUES: dict[str, Sequence[str]] = {
    "Accept": (
        "*/*", "application/json", "text/event-stream", "text/html", "application/json;q=0", "", "application/*",
        "application/json, text/event-stream;q=0.1", ", ,", "x" * 5000,
    ),
    "Content-Type": (
        "application/json; charset=utf-8", "APPLICATION/JSON", "text/plain", "", "application/json; charset=utf-16",
        "multipart/form-data; boundary=x", "application/json, text/plain", "\xff",
    ),
    "MCP-Protocol-Version": (MODERN, HANDSHAKE, *_OLDER, "2099-01-01", "", "1", f" {MODERN} ", "\xe9", "2026-7-28"),
    "Mcp-Method": ("tools/call", "tools/list", "TOOLS/CALL", "", "=?base64?dG9vbHMvY2FsbA==?=", "ping", "\xe9"),
    "Mcp-Name": (
        "list_walkthroughs", "next_walkthrough_step", "", " select_walkthrough ", "=?base64?dG91cg==?=",
        "=?base64?bGlzdF93YWxrdGhyb3VnaHM=?=", "=?base64?/w==?=", "=?base64?!!?=", "=?base64??=", "\xe9", "x" * 5000,
    ),
    "Mcp-Session-Id": ("1", "x" * 300, ""),
    "Last-Event-ID": ("1",),
    "Origin": ("null", "http://evil.example", "http://localhost:3000", "https://localhost", "", "\xe9", "http://["),
    "X-Forwarded-Host": ("rival.localhost",),
    "X-Forwarded-For": ("1.2.3.4",),
    "Forwarded": ("host=rival.localhost",),
    "X-HTTP-Method-Override": ("DELETE",),
    "Content-Encoding": ("gzip", "br", "identity", "", "gzip, gzip"),
    "Accept-Encoding": ("gzip", "identity;q=0, *;q=0"),
    "Cookie": ("a=b",),
    "Range": ("bytes=0-1",),
    "If-None-Match": ("*",),
    "Mcp-Param-walkthrough": ("tour", "=?base64?!?="),
    "Access-Control-Request-Method": ("POST",),
    "Traceparent": ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "zz"),
    "Expect": ("100-continue", "200-ok"),
    "Connection": ("close", "upgrade", "keep-alive, x"),
    "Upgrade": ("websocket", "h2c"),
}  # fmt: skip


def _break_headers(choose: Choices, headers: list[tuple[str, str]], facts: Facts) -> None:
    tokens = [f"Bearer {each}" for each in facts.tokens]
    known = {
        **_HEADER_VALUES,
        "Authorization": (
            *tokens, "Bearer", "Bearer ", "bearer x", "Basic YTpi", "", "Bearer \xff", f"{tokens[0]} ", f"{tokens[0]}x",
            tokens[0][:-1], tokens[0].lower(), tokens[0].replace(" ", "  "), tokens[0].replace(" ", "\t"),
            f"{tokens[0]}, {tokens[-1]}", "Bearer " + "x" * 20_000,
        ),
        "Host": (
            *facts.other_hosts, facts.host.upper(), f"{facts.host}.", f"{facts.host}:80", f"{facts.host}:x", "", "a b",
            "localhost", "127.0.0.1", "[::1]", "\xe9", f"{facts.host}, {facts.other_hosts[0]}", f"x@{facts.host}",
            f"{facts.host}/mcp", "." * 300,
        ),
    }  # fmt: skip
    at = choose.below(len(headers)) if headers else 0
    match choose.below(6):
        case 0 if headers:
            del headers[at]
        case 1 if headers:
            name, _ = headers[at]
            headers.insert(choose.below(len(headers) + 1), (name, choose.of(known.get(name, ("x",)))))
        case 2 if headers:
            name, value = headers[at]
            headers[at] = (choose.of([name.lower(), name.upper(), f"{name} ", f"X-{name}", ""]), value)
        case 3 if headers:
            name, value = headers[at]
            headers[at] = (name, choose.draw(_latin))
        case _:
            name = choose.of(sorted(known))
            headers[:] = [each for each in headers if each[0] != name]
            headers.append((name, choose.of(known[name])))


def _break_bytes(choose: Choices, body: bytes) -> bytes:
    at = choose.below(min(len(body), 4000) + 1)
    match choose.below(13):
        case 0:
            return body[:at]
        case 1 if at < len(body):
            return body[:at] + bytes([body[at] ^ 1 << choose.below(8)]) + body[at + 1 :]
        case 2:
            return body[:at] + choose.draw(_bytes)[:3] + body[at:]
        case 3:
            return body[:at] + body[at + 1 + choose.below(30) :]
        case 4:
            return b"\xef\xbb\xbf" + body
        case 5:
            return body.decode(errors="replace").encode(choose.of(["utf-16", "utf-16-le", "utf-32"]))
        case 6:
            return b"[" + body + b"]"
        case 7:
            return body + choose.of([b"", b"\n", b" ", b","]) + body
        case 8:
            return b"[" + b",".join([body] * choose.of([2, 50])) + b"]"
        case 9:
            return body + b" " * choose.of([1, 2**20 - len(body), 2**20 + 1 - len(body), 2**21])
        case 10:
            return gzip.compress(body, mtime=0)
        case 11:
            return choose.draw(_bytes)
        case _:
            return b""


_FRAMINGS = ("chunked", "torn chunks", "both lengths", "two lengths", "too short", "too long", "no number", "none")
OAUTH = ("/.well-known/oauth-protected-resource", "/token", "/register", "/revoke")
PAGES = ("/", "/sign-in", "/authorize", "/v/" + "x" * 22)
_TARGETS = (
    "/mcp/", "//mcp", "/mcp?x=1", "/MCP", "/", "/mcp/../mcp", "/mcp%2f", "/%6dcp", "/mcp#x", "*", "http://evil.example/mcp",
    "/mcp;x", "/" + "a" * 3000, "/mcp\x00", "/é", "/v/x/mcp", "mcp", "/v/" + "x" * 22 + "/mcp", *OAUTH, *PAGES,
)  # fmt: skip
_METHODS = ("GET", "DELETE", "OPTIONS", "HEAD", "PUT", "PATCH", "TRACE", "CONNECT", "post", "PO ST", "", "X" * 300)


def requests(facts: Facts) -> st.SearchStrategy[Request]:
    """One request each; a sixth of them are sound, most are broken in one place, and few in so many that the first
    reader throws them out."""

    @st.composite
    def build(draw: st.DrawFn) -> Request:
        choose = Choices(draw)
        message, headers = _sound(choose, facts)
        request = Request(headers=headers)
        for _ in range(choose.of([0, 1, 1, 1, 2, 4])):
            if choose.below(4):
                _break_tree(choose, message, facts)
            else:
                _break_headers(choose, headers, facts)
        request.body = encode(message, is_ascii=bool(choose.below(2))).encode("utf-8", "surrogatepass")
        match choose.below(24):
            case 23 | 22:
                request.body = _break_bytes(choose, request.body)
            case 21:
                request.framing = choose.of(_FRAMINGS)
            case 20:
                request.method = choose.of(_METHODS)
            case 19:
                request.target = choose.of(_TARGETS)
        return request

    return build()
