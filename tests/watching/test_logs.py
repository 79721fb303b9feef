"""What a service says about itself: which request a line is about, and that no line holds anybody's secrets."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from adapters.postgres.connections import Database
from adapters.system import RandomIds
from domain.tenancy import AuthMode
from entrypoints.logs import begin_request, configure_logs, log_what_nobody_awaits, note, trace_of
from tests.processes import Serving, serving
from tests.serving.conftest import Tenant, call, make_tenant
from tests.sign_in.conftest import Host, answered
from tests.watching.conftest import at, lines, wait_until

_EMAIL = "grace.hopper@example.com"
_SECRET = f"{RandomIds().token()} {_EMAIL}"
_PLAIN_ID = re.compile(r"[0-9a-f]{16}")


async def _line(service: Serving, answer: httpx2.Response) -> dict[str, Any]:
    """The line that ends the request which was so answered."""

    def found() -> list[dict[str, Any]]:
        return [line for line in lines(service, "request") if line["request_id"] == answer.headers["x-request-id"]]

    await asyncio.to_thread(wait_until, lambda: bool(found()))
    (line,) = found()
    return line


# --------------------------------------------------------------------------------------------------- a request


async def test_a_request_leaves_one_line_that_says_what_was_done(tenant: Tenant) -> None:
    await tenant.publish("one", "two", key="guide")
    token = await tenant.token()
    answer = await tenant.post(call("select_walkthrough", walkthrough="guide"), token=token)
    line = await _line(tenant.service, answer)
    assert 0 < line.pop("milliseconds") < 60_000
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", line.pop("timestamp"))
    assert _PLAIN_ID.fullmatch(line.pop("request_id"))
    assert line == {
        "event": "request",
        "level": "info",
        "method": "POST",
        "route": "/mcp",
        "status": 200,
        "server": tenant.server.slug,
        "tool": "select_walkthrough",
        "outcome": "started",
    }


async def test_a_refusal_leaves_a_line_too(closed_tenant: Tenant) -> None:
    line = await _line(closed_tenant.service, await closed_tenant.post(call("list_walkthroughs")))
    assert (line["status"], line["route"], line["server"]) == (401, "/mcp", closed_tenant.server.slug)
    assert "tool" not in line


async def test_a_proxys_request_id_is_taken_over(tenant: Tenant) -> None:
    id = "6F9619FF-8b86-d011-b42d-00c04fc964ff"
    answer = await tenant.post(call("list_walkthroughs"), x_request_id=id)
    assert answer.headers["x-request-id"] == id
    assert (await _line(tenant.service, answer))["request_id"] == id


@pytest.mark.parametrize(
    "id", ["", "short", "123456", "f" * 65, "cairn_3f9619ff8b86d011b42d00c04fc964ff", _EMAIL, "0123456789abcdef\t1"]
)
async def test_what_may_be_somebodys_secret_is_no_request_id(tenant: Tenant, id: str) -> None:
    answer = await tenant.post(call("list_walkthroughs"), x_request_id=id)
    assert _PLAIN_ID.fullmatch(answer.headers["x-request-id"])
    assert not id or id not in tenant.service.output


async def test_a_personal_address_and_a_query_are_in_no_line(database: Database, service: Serving) -> None:
    tenant = await make_tenant(database, service, auth_mode=AuthMode.ANONYMOUS)
    async with httpx2.AsyncClient(headers={"host": tenant.host}) as http:
        minted = await http.post(at(service, "/"))
        path = minted.headers["location"]
        shown = await http.get(at(service, f"{path}?token=of-somebody"))
        called = await http.post(at(service, f"{path}/mcp"), json=call("list_walkthroughs"))
        strange = await http.get(at(service, "/passwords/of-somebody"))
        odd = await http.request("OFSOMEBODY", at(service, "/"))
    assert (minted.status_code, shown.status_code, called.status_code) == (303, 200, 200)
    assert (await _line(service, shown))["route"] == "/v/{visitor}"
    assert (await _line(service, called))["route"] == "/v/{visitor}/mcp"
    assert "route" not in await _line(service, strange)
    assert (await _line(service, odd))["method"] == "other"
    for secret in (path.removeprefix("/v/"), "of-somebody", "OFSOMEBODY"):
        assert secret not in service.output


async def test_a_sign_in_leaves_no_address_code_or_token(acme: Host) -> None:
    browser = await acme.browser()
    asking = await acme.asking()
    location = await browser.sign_in(asking.url, _EMAIL)
    granted = (await acme.token(asking, location)).json()
    used = await acme.tenant.post(call("list_walkthroughs"), token=granted["access_token"])
    await _line(acme.tenant.service, used)
    routes = {line["route"] for line in lines(acme.tenant.service, "request") if "route" in line}
    assert {"/register", "/authorize", "/sign-in", "/token", "/mcp"} <= routes
    secrets = [
        _EMAIL,
        acme.mailbox.code(_EMAIL),
        answered(location)["code"],
        asking.verifier,
        granted["access_token"],
        granted["refresh_token"],
        *(cookie.value for cookie in browser.http.cookies.jar),
    ]
    assert len(secrets) == 7
    # A code's six digits may stand in a time or an id; where a code would be told, they stand alone.
    output = re.sub(r'"(timestamp|request_id)":"[^"]*"|"milliseconds":[0-9.]+', "", acme.tenant.service.output)
    assert [secret for secret in secrets if secret is not None and secret in output] == []


# --------------------------------------------------------------------------------------------- what goes wrong


@pytest.fixture(scope="module")
def buggy(owner_url: str) -> Iterator[Serving]:
    """A service with bugs."""
    with serving(
        "serve", "--port", "0", module="tests.watching.raising_server",
        CAIRN_DATABASE_URL=owner_url, CAIRN_TEST_SECRET=_SECRET,
    ) as running:  # fmt: skip
        yield running


@pytest.fixture
async def faulty(database: Database, buggy: Serving) -> Tenant:
    return await make_tenant(database, buggy, auth_mode=AuthMode.ANONYMOUS)


_ROOTS = ["builtins.ValueError", "builtins.KeyError"]


@pytest.mark.parametrize(
    ("tool", "event", "types"),
    [
        ("get_walkthrough_status", "tool call failed", _ROOTS),
        ("list_walkthroughs", "tool call failed", ["asyncpg.exceptions.UniqueViolationError (23505, people_key)"]),
    ],
)
async def test_a_failing_tool_is_told_without_what_the_exception_says(
    faulty: Tenant, tool: str, event: str, types: list[str]
) -> None:
    token = await faulty.token(_EMAIL)
    answer = await faulty.post(call(tool), token=token)
    assert _SECRET not in answer.text
    await _assert_told(faulty, answer, event, types)


async def test_a_failing_task_that_nobody_waits_for_is_told_as_no_requests_own(faulty: Tenant) -> None:
    event = "an exception ended in nobody's hands"
    token = await faulty.token(_EMAIL)
    answer = await faulty.post(call("select_walkthrough", walkthrough="guide"), token=token)
    assert _SECRET not in answer.text
    await asyncio.to_thread(wait_until, lambda: bool(lines(faulty.service, event)))
    (line,) = lines(faulty.service, event)
    assert _types(line) == _ROOTS
    assert "request_id" not in line
    _assert_no_secret(faulty.service)


async def test_a_failing_page_is_told_without_what_the_exception_says(faulty: Tenant) -> None:
    async with httpx2.AsyncClient(headers={"host": faulty.host}) as http:
        answer = await http.post(at(faulty.service, "/"))
    assert answer.status_code == 500
    assert _SECRET not in answer.text
    await _assert_told(faulty, answer, "request failed", _ROOTS)


async def test_a_failing_endpoint_answers_as_json_rpc_and_is_told_without_what_the_exception_says(
    faulty: Tenant,
) -> None:
    headers = {"host": faulty.host, "x-bug": "1", "authorization": f"Bearer {await faulty.token(_EMAIL)}"}
    async with httpx2.AsyncClient(headers=headers) as http:
        answer = await http.post(at(faulty.service, "/mcp"), json=call("list_walkthroughs"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, -32003)
    assert _SECRET not in answer.text
    await _assert_told(faulty, answer, "request failed", _ROOTS)


async def test_a_failing_gate_is_told_by_the_server_with_the_requests_id(faulty: Tenant) -> None:
    before = len(lines(faulty.service))
    async with httpx2.AsyncClient(headers={"host": faulty.host}) as http:
        answer = await http.get(at(faulty.service, "/assets/bug.css"))
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    await asyncio.to_thread(wait_until, lambda: len(lines(faulty.service)) >= before + 2)
    ended, told = lines(faulty.service)[before:]
    assert (ended["event"], ended["status"]) == ("request", 500)
    assert (told["logger"], told["event"]) == ("uvicorn.error", "Exception in ASGI application\n")
    assert told["request_id"] == ended["request_id"]
    assert _types(told) == _ROOTS
    _assert_no_secret(faulty.service)


async def test_a_call_that_cannot_be_recorded_is_told_without_what_the_exception_says(faulty: Tenant) -> None:
    token = await faulty.token(_EMAIL)
    answer = await faulty.post(call("review_walkthrough_step", walkthrough="guide", step_number=1), token=token)
    line = await _line(faulty.service, answer)
    assert (line["tool"], line["outcome"]) == ("review_walkthrough_step", "temporarily_unavailable")
    _assert_no_secret(faulty.service)


async def _assert_told(tenant: Tenant, answer: httpx2.Response, event: str, types: list[str]) -> None:
    ended = await _line(tenant.service, answer)

    def told() -> list[dict[str, Any]]:
        return [line for line in lines(tenant.service, event) if line["request_id"] == ended["request_id"]]

    await asyncio.to_thread(wait_until, lambda: bool(told()))
    (line,) = told()
    assert line["level"] == "error"
    assert _types(line) == types
    assert "raising_server.py:" in line["exception"]
    _assert_no_secret(tenant.service)


def _types(line: dict[str, Any]) -> list[str]:
    """The exceptions that a line tells of, from the last to the first."""
    return [each for each in line["exception"].split("\n") if not each.startswith(" ") and each != "which came of"]


def _assert_no_secret(service: Serving) -> None:
    for secret in (_SECRET, *_SECRET.split()):
        assert secret not in service.output


# ------------------------------------------------------------------------------------------------ line by line


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Logs as a process that serves does; gives what was logged."""
    root, written = logging.getLogger(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    before, root.handlers = root.handlers, []  # or those of the test runner would be closed
    configure_logs()
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    root.handlers = before
    root.setLevel(logging.WARNING)
    structlog.reset_defaults()


def test_of_what_libraries_say_only_what_stands_in_their_source_is_told(logged: Any) -> None:
    logging.getLogger("somelib.deep").warning("refused %r for %s", _SECRET, _EMAIL)
    logging.getLogger("somelib").error(ValueError(_SECRET))
    logging.getLogger("uvicorn.error").error("worker %s died", 4711)
    told = [(line["logger"], line["event"], line["level"]) for line in logged()]
    assert told == [
        ("somelib.deep", "refused %r for %s", "warning"),
        ("somelib", "ValueError", "error"),
        ("uvicorn.error", "worker 4711 died", "error"),
    ]


def test_an_operators_key_in_the_address_that_traces_go_to_is_in_no_line(logged: Any) -> None:
    exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:1/v1/traces?key={_SECRET}", timeout=60)
    sending = threading.Thread(target=exporter.export, args=[[]])
    sending.start()
    wait_until(lambda: bool(logged()))
    exporter.shutdown()  # or it would try again for a minute
    sending.join()
    first = logged()[0]
    assert first["logger"].startswith("opentelemetry.exporter.otlp.")
    assert first["event"].startswith("Transient error %s encountered")
    assert not [line for line in logged() if _EMAIL in str(line)]


async def test_facts_are_noted_for_the_request_under_way_whoever_finds_them_out(logged: Any) -> None:
    async def request(id: str, tool: str) -> dict[str, Any]:
        facts = begin_request(id)
        await asyncio.create_task(_find_out(tool))
        return facts

    note(tool="of no request")
    found = await asyncio.gather(*(asyncio.create_task(request(str(n), f"tool-{n}")) for n in range(3)))
    assert found == [{"request_id": str(n), "tool": f"tool-{n}"} for n in range(3)]
    assert [(line["request_id"], line["event"]) for line in logged()] == [(str(n), f"tool-{n}") for n in range(3)]


async def _find_out(tool: str) -> None:
    await asyncio.sleep(0)
    note(tool=tool)
    logging.getLogger("uvicorn.error").warning(tool)


async def test_a_callback_that_fails_is_told_without_its_arguments(logged: Any) -> None:
    log_what_nobody_awaits()
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    loop.call_soon(int, _SECRET)
    loop.call_soon(done.set)
    await done.wait()
    loop.set_exception_handler(None)
    (line,) = logged()
    assert (line["event"], _types(line)) == ("an exception ended in nobody's hands", ["builtins.ValueError"])
    assert _EMAIL not in str(line)


def test_no_line_is_lost_for_what_cannot_be_encoded(logged: Any) -> None:
    del logging.getLogger().handlers[1:]  # the test runner's, which cannot encode it either
    logging.getLogger("uvicorn.error").error("half a pair: \udfff")
    assert [line["event"] for line in logged()] == ["half a pair: \udfff"]


def test_a_trace_names_everything_that_led_there_and_ends() -> None:
    first = ExceptionGroup("secret", [ValueError("secret"), OSError(2, "secret")])
    first.__cause__ = KeyError("secret")
    assert trace_of(first).split("\n") == [
        "builtins.ExceptionGroup",
        "  | builtins.ValueError",
        "  | builtins.FileNotFoundError (2)",
        "which came of",
        "builtins.KeyError",
    ]
    chain: BaseException = ValueError("secret")
    for _ in range(100):
        after = ValueError("secret")
        after.__cause__ = chain
        chain = after
    assert trace_of(chain).count("builtins.ValueError") == 8
