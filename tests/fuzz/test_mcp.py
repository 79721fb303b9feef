"""Bad input to `/mcp`: whatever is sent, it is answered, tells nothing, and moves nobody who did not ask for it.

Every request meets the same stage: after one that moved somebody, their rows are put back. So a request that fails does
so again by itself, which is what Hypothesis needs to make it smaller.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import asyncpg
import pytest

from adapters.postgres.connections import Access, Database
from adapters.system import SystemClock
from domain.progress import Outcome, Progress, ProgressEvent, ProgressKey, StepHandle, replay
from domain.tenancy import AuthMode, Caller, Server
from domain.walkthrough import PublishPolicy, VersionKey
from entrypoints.http.places import place_of
from tests.fakes import CountedIds
from tests.fuzz.envelopes import HANDSHAKE, MODERN, OAUTH, PAGES, Facts, Request, requests
from tests.fuzz.running import fuzz
from tests.processes import Serving
from tests.worlds import World, on_postgres

_EXAMPLES = 3000
_ANSWER_SECONDS = 5.0
_MAX_ANSWER_BYTES = 64 * 1024  # a result has 40,000 at most, and the list of tools comes close to that of a result
_WRITING = ("select_walkthrough", "next_walkthrough_step")
_RIVAL = "zqxrival"  # in everything that another organisation has
# What only the inside of the service says.
_INTERNAL = re.compile(
    rf"{_RIVAL}|Traceback|site-packages|\.py\b|asyncpg|sqlalchemy|pydantic|msgspec|litestar|uvicorn|starlette|anyio|"
    r"[A-Z]\w+(?:Error|Exception)\b|<class|object at 0x|validation error|insert into|where organization_id|"
    r"organization_id|mcp_server_user|walkthrough_progress|/home/|/usr/"
)
_FAILED = re.compile(r"Traceback|tool call failed|Exception|(?<!uvicorn\.)\berror\b", re.IGNORECASE)
# uvicorn answers a broken chunk itself, and then finds that it cannot send the answer of the application as well.
_KNOWN = re.compile(r"h11\._util\.LocalProtocolError")


@dataclass
class Answer:
    """What came back: nothing where the connection was closed instead."""

    status: int | None
    headers: dict[str, str]
    body: bytes
    seconds: float

    @property
    def decoded(self) -> Any:
        def refuse(constant: str) -> Any:
            raise ValueError(constant)

        return json.loads(self.body.decode(), parse_constant=refuse)


@dataclass
class Wire:
    """A connection that is kept for as long as the service keeps it."""

    address: tuple[str, int]
    open: socket.socket | None = None

    def send(self, request: Request) -> Answer:
        """One request and its answer.

        Raises:
            TimeoutError: where none came in time.
        """
        if not request.is_http:
            self.close()
        was_kept = self.open is not None
        if self.open is None:
            self.open = socket.create_connection(self.address, timeout=_ANSWER_SECONDS)
            self.open.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.monotonic()
        try:
            with suppress(ConnectionError):  # it may be answered before it was read to its end
                self.open.sendall(request.wire())
            if request.is_cut_off:
                with suppress(OSError):
                    self.open.shutdown(socket.SHUT_WR)  # nothing else comes: who waits for it would wait for ever
            answer = http.client.HTTPResponse(self.open, method=request.method)
            answer.begin()
            body = answer.read()
        except ConnectionError:
            self.close()
            if was_kept:  # it may have been closed before this request came
                return self.send(request)
            return Answer(None, {}, b"", time.monotonic() - began)
        said = {name.lower(): value for name, value in answer.getheaders()}
        if answer.will_close or not request.is_http:
            self.close()
        return Answer(answer.status, said, body, time.monotonic() - began)

    def close(self) -> None:
        if self.open is not None:
            self.open.close()
            self.open = None


# One round trip: what the log got since the last look, and everything about where people stand.
_LOOK = """
with logged as (delete from tool_calls returning tool_name, outcome, error_code, mcp_server_user_id)
select (select coalesce(json_agg(logged), '[]') from logged)::text as logged,
       (select md5(coalesce(string_agg(p::text, '|' order by p::text), '')) from walkthrough_progress p) as progress,
       (select md5(coalesce(string_agg(e::text, '|' order by e::text), '')) from walkthrough_progress_events e)
           as events
"""
_REST = (
    "organizations", "mcp_servers", "mcp_server_users", "access_tokens", "walkthroughs", "walkthrough_versions",
    "walkthrough_steps", "mcp_server_walkthroughs",
)  # fmt: skip


@dataclass
class Stage:
    """Two organisations, their people mid-way, and what the database held of it in the beginning."""

    runner: asyncio.Runner
    owner: asyncpg.Connection
    world: World
    server: Server
    facts: Facts
    people: dict[str, Caller]
    """By token: those that are valid on this server."""
    before: asyncpg.Record = field(init=False)
    rest: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.runner.run(
            self.owner.execute(
                "create table kept_progress as select * from walkthrough_progress;"
                "create table kept_events as select * from walkthrough_progress_events"
            )
        )
        self.before = self.look()
        self.rest = self.everything_else()

    def look(self) -> asyncpg.Record:
        return self.runner.run(self.owner.fetchrow(_LOOK))

    def put_back(self) -> None:
        self.runner.run(
            self.owner.execute(
                "delete from walkthrough_progress_events; delete from walkthrough_progress;"
                "insert into walkthrough_progress select * from kept_progress;"
                "insert into walkthrough_progress_events select * from kept_events"
            )
        )

    def everything_else(self) -> list[str]:
        """A digest of each table that no tool call has any business with."""
        digest = "select md5(coalesce(string_agg(t::text, '|' order by t::text), '')) from {} t"
        return [str(self.runner.run(self.owner.fetchval(digest.format(table)))) for table in _REST]

    def moved(self) -> list[tuple[str, str]]:
        """User and walkthrough of each progress that is not as it was."""
        rows = self.runner.run(
            self.owner.fetch(
                "select mcp_server_id, mcp_server_user_id, walkthrough_id from "
                "((table walkthrough_progress except table kept_progress) union all "
                "(table kept_progress except table walkthrough_progress)) as p "
                "union "
                "select mcp_server_id, mcp_server_user_id, walkthrough_id from "
                "((table walkthrough_progress_events except table kept_events) union all "
                "(table kept_events except table walkthrough_progress_events)) as e"
            )
        )
        assert {row["mcp_server_id"] for row in rows} <= {self.server.key.server_id}, "moved on another server"
        assert not self.runner.run(self.owner.fetch("table kept_events except table walkthrough_progress_events"))
        return [(row["mcp_server_user_id"], row["walkthrough_id"]) for row in rows]

    def history(self, caller: Caller, key: ProgressKey) -> tuple[Sequence[ProgressEvent], int, Progress | None]:
        """Events of a progress, how many of them there were before, and the progress as it is stored."""
        where = "mcp_server_id = $1 and mcp_server_user_id = $2 and walkthrough_id = $3"
        kept = f"select count(*) from kept_events where {where}"

        async def read() -> tuple[Sequence[ProgressEvent], int, Progress | None]:
            (standing,) = await self.world.catalogue.matching(caller, key.walkthrough_id)
            before = await self.owner.fetchval(kept, key.server_id, key.user_id, key.walkthrough_id)
            return await self.world.progress.events(key), before, standing.progress

        return self.runner.run(read())


@contextmanager
def _stage(owner_url: str, service: Serving) -> Iterator[Stage]:
    """Ids and tokens are counted, so that the same seed makes the same requests in any run."""

    async def build() -> tuple[World, Server, dict[str, Caller], dict[str, list[str]]]:
        world = on_postgres(database, clock=SystemClock(), ids=CountedIds())
        server = await world.server("acme", "guides", name="Guides")
        annex = await world.server("acme", "annex", name="Annex", auth_mode=AuthMode.ON_CONNECT)
        rival = await world.server(_RIVAL, _RIVAL, name=_RIVAL)
        valid: dict[str, Caller] = {}
        told: dict[str, list[str]] = {"tokens": [], "handles": [], "current": [], "references": []}

        async def arrive(at: Server, email: str) -> Caller:
            token = await world.identity.create_token(at.key, email)
            bearer = await world.identity.bearer_of(at.key, token)
            assert bearer is not None
            caller = Caller(at.key, bearer.user_id)
            told["tokens"].append(token)
            if at is server:
                valid[token] = caller
            return caller

        async def take(caller: Caller, key: str, steps: int) -> None:
            lesson = await world.learning.select(caller, key, restart=False, to_latest=False)
            told["references"] += [lesson.standing.walkthrough_id, key, lesson.version.title]
            for done in range(steps + 1):
                handle = str(lesson.progress.handle() or "")
                if handle:
                    told["current" if done == steps else "handles"].append(handle)
                if done < steps:
                    lesson = await world.learning.next(caller, handle, None, outcome=Outcome.DONE, note=None)

        ada = await arrive(server, "ada@example.com")
        bob = await arrive(server, "bob@example.com")
        placed = {"organization": "acme", "servers": ("guides", "annex")}
        for key in ("tour", "setup", "moved", "gone", "hello", "idle"):
            await world.publish("one", "two", "three", key=key, title=f"The {key}", **placed)
        await take(ada, "hello", 3)
        await take(ada, "tour", 1)
        await take(ada, "setup", 2)
        await take(ada, "moved", 1)
        await take(ada, "gone", 1)
        await take(bob, "tour", 2)
        for key, policy in (
            ("setup", PublishPolicy.OFFER),
            ("moved", PublishPolicy.CARRY_OVER),
            ("gone", PublishPolicy.SUPERSEDE),
        ):
            await world.publish("one", "three", "two", "four", key=key, title=f"The {key}", policy=policy, **placed)
        await take(bob, "setup", 1)
        elsewhere = await arrive(annex, "ada@example.com")
        await take(elsewhere, "tour", 0)
        theirs = await arrive(rival, f"{_RIVAL}@example.com")
        await world.publish(
            *(f"{_RIVAL}{number}" for number in range(3)),
            key=_RIVAL,
            title=f"The {_RIVAL}",
            organization=_RIVAL,
            servers=(_RIVAL,),
        )
        await take(theirs, _RIVAL, 1)
        revoked = await world.identity.create_token(server.key, "eve@example.com")
        assert await world.identity.revoke(server.key, revoked)
        told["tokens"].append(revoked)
        told["references"] += ["idle", "The idle", "nowhere"]
        # What nobody was shown, and anyone can make up: the current step in another attempt, and in another version.
        for handle in map(StepHandle.parse, told["current"]):
            assert handle is not None
            told["handles"] += [str(handle._replace(attempt=2)), str(handle._replace(version=2))]
        return world, server, valid, told

    with asyncio.Runner() as runner:
        database = Database(Access(owner_url, assume_role=True))
        runner.run(database.__aenter__())
        owner = runner.run(asyncpg.connect(owner_url))
        try:
            world, server, people, told = runner.run(build())
            first, second, *others = told["tokens"]
            facts = Facts(
                host="guides.localhost",
                tokens=[first] * 20 + [second] * 6 + others + ["cairn_token999"],
                references=told["references"],
                handles=told["current"] * 3 + told["handles"],
                other_hosts=["annex.localhost", f"{_RIVAL}.localhost", "nowhere.localhost", "example.com"],
                prompts=_listed(service, first, "prompts/list", "prompts", "name"),
                resources=_listed(service, first, "resources/list", "resources", "uri"),
                templates=_listed(service, first, "resources/templates/list", "resourceTemplates", "uriTemplate"),
            )
            yield Stage(runner, owner, world, server, facts, people)
        finally:
            runner.run(owner.close())
            runner.run(database.__aexit__(None, None, None))


def _listed(service: Serving, token: str, method: str, member: str, name: str) -> list[str]:
    """What there is of prompts or resources, as a client is told."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method}).encode()
    headers = [
        ("Host", "guides.localhost"),
        ("Content-Type", "application/json"),
        ("Accept", "application/json"),
        ("MCP-Protocol-Version", HANDSHAKE),
        ("Authorization", f"Bearer {token}"),
    ]
    wire = _wire_to(service)
    answer = wire.send(Request(headers=headers, body=body))
    wire.close()
    return [each[name] for each in answer.decoded.get("result", {}).get(member, [])]


def _wire_to(service: Serving) -> Wire:
    url = urlsplit(service.url)
    assert url.port is not None
    return Wire(("127.0.0.1", url.port))


# ------------------------------------------------------------------------------------------------------ judging


def _judge_answer(request: Request, answer: Answer) -> None:
    """An answer that any HTTP and JSON-RPC client understands, and that tells nothing of the inside."""
    if answer.status is None:
        assert not request.is_http, "the connection was closed without an answer"
        return
    assert answer.seconds < _ANSWER_SECONDS
    assert 200 <= answer.status < 500, f"answered with {answer.status}"
    assert len(answer.body) <= _MAX_ANSWER_BYTES
    said = answer.body.decode() + "".join(f"{name}: {value}\n" for name, value in answer.headers.items())
    sent = request.wire().decode("utf-8", "replace")
    told = [found[0] for found in _INTERNAL.finditer(said) if found[0] not in sent]
    assert not told, f"tells of the inside: {told}"
    if not answer.body:
        # 406 says that the client can read nothing that could be said.
        assert answer.status in (202, 204, 406) or request.method == "HEAD"
        return
    if not request.is_http and answer.headers.get("content-type", "").startswith("text/plain"):
        assert (answer.status, answer.body) == (400, b"Invalid HTTP request received.")
        return
    path = request.target.partition("?")[0]
    is_nowhere = place_of(unquote(path)) is None
    if path in PAGES or (is_nowhere and "text/html" in ",".join(request.header("accept"))):
        assert answer.headers.get("content-type") == "text/html; charset=utf-8"
        return
    assert answer.headers.get("content-type") == "application/json"
    decoded = answer.decoded
    assert isinstance(decoded, dict)
    if path in OAUTH:
        assert "jsonrpc" not in decoded
        assert answer.status == 200 or ("error" in decoded and "error_description" in decoded)
        return
    assert decoded["jsonrpc"] == "2.0"
    assert set(decoded) in ({"jsonrpc", "id", "result"}, {"jsonrpc", "id", "error"})
    assert decoded["id"] is None or type(decoded["id"]) in (str, int)
    if "error" in decoded:
        assert decoded["error"]["code"] != -32603, "an internal error"
        assert type(decoded["error"]["code"]) is int
        assert isinstance(decoded["error"]["message"], str)
        return
    assert answer.status == 200
    asked = _message(request)
    assert decoded["id"] == _sendable(asked["id"])
    if asked["method"] == "tools/call":
        result = decoded["result"]
        (content,) = result["content"]
        assert content["type"] == "text"
        assert result.get("isError", False) is ("structuredContent" not in result)
        assert len(answer.body) <= 40_000


def _sendable(id: str | int) -> str | int:
    """An id as it can be sent back: of half a surrogate pair, U+FFFD."""
    return id.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(id, str) else id


def _message(request: Request) -> dict[str, Any]:
    """The message as any other reader of JSON sees it: of a member that comes twice, the last."""
    message = json.loads(request.body)
    assert isinstance(message, dict)
    return message


def _result_of_a_tool(request: Request, answer: Answer) -> tuple[str, dict[str, Any]] | None:
    """Which tool answered, and what, where one did and it was no refusal."""
    if answer.status != 200 or not answer.body:
        return None
    decoded = answer.decoded
    if "result" not in decoded or _message(request)["method"] != "tools/call" or decoded["result"].get("isError"):
        return None
    return _message(request)["params"]["name"], decoded["result"]["structuredContent"]


def _judge_record(stage: Stage, request: Request, answer: Answer) -> None:
    """Nobody is moved but by a call that says so, and the log has each call that was answered."""
    now = stage.look()
    has_moved = (now["progress"], now["events"]) != (stage.before["progress"], stage.before["events"])
    try:
        _judge_log(stage, request, answer, json.loads(now["logged"]))
        result = _result_of_a_tool(request, answer)
        if result is None or result[0] not in _WRITING:
            assert not has_moved, "somebody was moved"
        elif has_moved:
            _judge_move(stage, request, *result)
        else:
            assert result[1]["status"] in ("repeated", "completed"), result[1]["status"]
    finally:
        if has_moved:
            stage.put_back()


def _caller(stage: Stage, request: Request) -> Caller | None:
    """The person whose token the request carries in the one way that counts."""
    authorization = request.header("authorization")
    if len(authorization) != 1:
        return None
    bearer = re.fullmatch(r"bearer +(\S+) *", authorization[0], re.IGNORECASE)
    return stage.people.get(bearer[1]) if bearer else None


def _judge_log(stage: Stage, request: Request, answer: Answer, logged: list[dict[str, Any]]) -> None:
    decoded = answer.decoded if answer.body and answer.status == 200 else {}
    method = _message(request).get("method") if decoded else None
    result = decoded.get("result") if method == "tools/call" else None
    if result is None:
        # An unknown tool is answered with an error of the protocol, and logged too.
        assert len(logged) <= 1
        assert all(each["error_code"] == "unknown_tool" for each in logged), "logged what no tool answered"
        return
    (row,) = logged
    told = result["content"][0]["text"].partition(":")[0] if result.get("isError") else None
    assert row["error_code"] == told
    if not told:
        assert row["outcome"] == result["structuredContent"].get("status", "listed")
    caller = _caller(stage, request)
    assert row["mcp_server_user_id"] == (caller.user_id if caller else None)


def _judge_move(stage: Stage, request: Request, tool: str, result: dict[str, Any]) -> None:
    """The caller's own progress in the walkthrough that was answered, by what the arguments say, and nothing else."""
    caller = _caller(stage, request)
    assert caller is not None, "moved without a valid token"
    assert caller.user_id is not None
    assert request.header("host")[0].lower().startswith(stage.facts.host), "moved through another host"
    walkthrough = result["walkthrough"]["id"]
    assert stage.moved() == [(caller.user_id, walkthrough)], "moved somebody else, or somewhere else"
    key = ProgressKey(caller.server.organization_id, caller.server.server_id, caller.user_id, walkthrough)
    events, kept, stored = stage.history(caller, key)
    keys = [VersionKey(key.organization_id, walkthrough, number) for number in (1, 2)]
    found = stage.runner.run(stage.world.library.outlines(keys))
    versions = {each.number: version for each, version in found.items()}
    assert replay(key, events, versions) == stored

    arguments = _message(request)["params"].get("arguments") or {}
    new = [each.kind for each in events[kept:]]
    assert len(new) in (1, 2)
    before = replay(key, events[:kept], versions) if kept else None
    if tool == "select_walkthrough":
        assert new in (["started"], ["resumed"], ["restarted"], ["moved"])
        asks = arguments.get("restart") is True or result["walkthrough"]["key"] == "gone"
        assert "restarted" not in new or asks, "begun again unasked"
        may_move = arguments.get("version") == "latest" or result["walkthrough"]["key"] == "moved"
        assert "moved" not in new or may_move, "moved to another version unasked"
        return
    assert before is not None
    handle = StepHandle.parse(arguments["completed_step"])
    assert handle is not None
    assert handle.walkthrough_id == walkthrough
    assert handle.attempt == before.attempt, "a handle of another attempt counted"
    outcome = arguments.get("outcome") or "done"
    if new[0] == "advanced":
        assert outcome in ("done", "skipped")
        step = versions[handle.version].step(handle.step_id)
        assert step is not None
        assert step == versions[handle.version].step_by_key(step.key)
        current = before.current_step(versions[before.version])
        assert current is not None
        assert step.key == current.key, "advanced by the handle of another step than the current one"
    elif new[0] == "stuck":
        assert outcome == "stuck"
    else:
        assert new == ["moved"]
    assert "moved" not in new or result["walkthrough"]["key"] == "moved"


# What thousands of requests cannot fail to meet, unless the generator has gone to sleep. `stuck` is met once in them.
_MET = {
    200, 202, 400, 401, 403, 404, 405, 413, 421, None,
    "started", "resumed", "restarted", "moved_to_latest", "advanced", "repeated", "completed", "review",
    "listed", "invalid_arguments", "completed_step_required", "step_not_current", "step_not_reached",
    "version_withdrawn", "walkthrough_not_found", "walkthrough_not_started",
}  # fmt: skip


def _met(request: Request, answer: Answer) -> Iterator[Any]:
    yield answer.status
    if answer.status != 200 or not answer.body:
        return
    decoded = answer.decoded
    revision = "modern" if MODERN in request.header("mcp-protocol-version") else "handshake"
    yield f"{revision}: {'result' if 'result' in decoded else decoded['error']['code']}"
    result = decoded.get("result") or {}
    if "content" in result:
        structured = result.get("structuredContent") or {}
        yield structured.get("status", "listed") if structured else result["content"][0]["text"].partition(":")[0]


@pytest.mark.promise("tools.nothing-internal")
@pytest.mark.timeout(600)
def test_whatever_is_sent_is_answered_tells_nothing_and_moves_nobody_who_did_not_ask(
    owner_url: str, service: Serving
) -> None:
    met: Counter[Any] = Counter()
    slowest = 0.0
    with _stage(owner_url, service) as stage:
        wire = _wire_to(service)

        def check(request: Request) -> None:
            nonlocal slowest
            lines = len(service.lines)
            answer = wire.send(request)
            try:
                _judge_answer(request, answer)
                _judge_record(stage, request, answer)
                failed = [line for line in service.lines[lines:] if _FAILED.search(line) and not _KNOWN.search(line)]
                assert not failed, "".join(failed)
            except Exception as failure:
                wire.close()
                stage.look()
                stage.put_back()
                failure.add_note(f"{request.wire()[:4000]!r}\n→ {answer.status} {answer.body[:4000]!r}")
                raise
            slowest = max(slowest, answer.seconds)
            met.update(_met(request, answer))

        count = fuzz(check, requests(stage.facts), examples=_EXAMPLES)
        wire.close()
        assert stage.everything_else() == stage.rest
    failed = [line for line in service.lines if _FAILED.search(line) and not _KNOWN.search(line)]
    assert not failed, "".join(failed)
    print(f"slowest {slowest * 1000:.0f} ms; {dict(met.most_common())}")
    if count >= _EXAMPLES:
        assert set(met) >= _MET, f"never met: {_MET - set(met)}"
