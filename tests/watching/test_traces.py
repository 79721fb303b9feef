"""Traces: from the caller's own span through request and tool to the statement, and nothing where none is wanted."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from adapters.postgres.connections import Database
from entrypoints.traces import _summary, traces_wanted
from tests.processes import PROJECT, Serving, environment, serving
from tests.serving.conftest import Tenant, call, make_tenant
from tests.serving.raw import modern
from tests.watching.conftest import at, lines, wait_until

_EMAIL = "ada.lovelace@example.com"
_TRACE, _PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
_SLOW_STOP_SECONDS = 10


@dataclass
class Collector:
    """Takes what is exported by OTLP over HTTP."""

    url: str = ""
    received: list[Span] = field(default_factory=list)

    def spans(self, trace: str) -> dict[str, Span]:
        """The spans of a trace, by name; of those with one name the first."""
        found: dict[str, Span] = {}
        for span in list(self.received):
            if span.trace_id.hex() == trace:
                found.setdefault(span.name, span)
        return found


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # as http.server has it
            body = self.rfile.read(int(self.headers["content-length"]))
            request = ExportTraceServiceRequest.FromString(body)
            found.received += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield found
    server.shutdown()
    server.server_close()


@contextmanager
def _traced(owner_url: str, endpoint: str) -> Iterator[Serving]:
    with serving(
        "serve", "--port", "0", CAIRN_DATABASE_URL=owner_url,
        OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_BSP_SCHEDULE_DELAY="50",
    ) as running:  # fmt: skip
        yield running


@pytest.fixture(scope="module")
def service(owner_url: str, collector: Collector) -> Iterator[Serving]:
    """A service whose traces go to the collector."""
    with _traced(owner_url, collector.url) as running:
        yield running


async def _call(tenant: Tenant, tool: str, *, sampled: bool = True, **arguments: Any) -> httpx2.Response:
    message, headers = modern(call(tool, **arguments))
    parent = f"00-{_TRACE}-{_PARENT}-{'01' if sampled else '00'}"
    return await tenant.post(message, token=await tenant.token(_EMAIL), traceparent=parent, **headers)


def _attributes(span: Span) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


async def test_a_trace_goes_from_the_callers_span_through_request_and_tool_to_the_statement(
    tenant: Tenant, collector: Collector
) -> None:
    await tenant.publish("one", "two", key="guide")
    answer = await _call(tenant, "select_walkthrough", walkthrough="guide")
    assert answer.json()["result"]["structuredContent"]["status"] == "started"
    wait_until(lambda: "POST /mcp" in collector.spans(_TRACE))
    spans = collector.spans(_TRACE)
    request, tool = spans["POST /mcp"], spans["tools/call select_walkthrough"]
    commit = spans["begin_progress"]
    assert (request.parent_span_id.hex(), request.kind) == (_PARENT, Span.SPAN_KIND_SERVER)
    assert tool.parent_span_id == request.span_id
    assert (commit.parent_span_id, commit.kind) == (tool.span_id, Span.SPAN_KIND_CLIENT)
    assert request.start_time_unix_nano <= tool.start_time_unix_nano <= commit.start_time_unix_nano
    assert commit.end_time_unix_nano <= tool.end_time_unix_nano <= request.end_time_unix_nano
    assert _attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/mcp",
        "http.response.status_code": 200,
        "cairn.request_id": answer.headers["x-request-id"],
    }
    assert _attributes(tool) == {
        "mcp.method.name": "tools/call",
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "select_walkthrough",
    }
    assert _attributes(commit) == {"db.system.name": "postgresql"}
    assert len([name for name in spans if name.startswith("tools/call")]) == 1, "the SDK adds none of its own"

    def its_lines() -> list[dict[str, Any]]:
        return [each for each in lines(tenant.service, "request") if each.get("trace_id") == _TRACE]

    wait_until(lambda: bool(its_lines()))
    (line,) = its_lines()
    assert line["request_id"] == answer.headers["x-request-id"]
    told = b"".join(span.SerializeToString() for span in collector.received)
    for secret in (_EMAIL, "guide", "one", tenant.server.slug):
        assert secret.encode() not in told, secret


async def test_what_the_call_log_writes_for_several_requests_is_in_nobodys_trace(
    tenant: Tenant, collector: Collector
) -> None:
    collector.received.clear()
    assert (await _call(tenant, "list_walkthroughs")).status_code == 200
    wait_until(lambda: "POST /mcp" in collector.spans(_TRACE))
    spans = collector.spans(_TRACE)
    assert "standings_here" in spans
    assert "record_tool_calls" not in spans


async def test_a_parent_in_the_message_is_the_parent_of_what_is_done_about_it(
    tenant: Tenant, collector: Collector
) -> None:
    trace, parent = "1" * 32, "2" * 16
    message, headers = modern(call("list_walkthroughs"))
    message["params"]["_meta"] = {**message["params"]["_meta"], "traceparent": f"00-{trace}-{parent}-01"}
    await tenant.post(message, **headers)
    wait_until(lambda: "tools/call list_walkthroughs" in collector.spans(trace))
    assert collector.spans(trace)["tools/call list_walkthroughs"].parent_span_id.hex() == parent


async def test_what_the_caller_does_not_sample_is_not_exported(tenant: Tenant, collector: Collector) -> None:
    collector.received.clear()
    assert (await _call(tenant, "list_walkthroughs", sampled=False)).status_code == 200
    # Spans are exported in the order in which they end.
    after = await tenant.post(call("list_walkthroughs"), traceparent=f"00-{'3' * 32}-{_PARENT}-01")
    assert after.status_code == 200
    wait_until(lambda: "POST /mcp" in collector.spans("3" * 32))
    assert collector.spans(_TRACE) == {}


@pytest.mark.parametrize("parent", ["", "00-0-0-01", f"00-{'0' * 32}-{_PARENT}-01", "ff-" + _TRACE])
async def test_without_a_parent_that_can_be_read_a_trace_begins_here(
    tenant: Tenant, collector: Collector, parent: str
) -> None:
    collector.received.clear()
    await tenant.post(call("list_walkthroughs"), traceparent=parent)
    wait_until(lambda: any(span.name == "POST /mcp" for span in collector.received))
    (request,) = [span for span in collector.received if span.name == "POST /mcp"]
    assert request.parent_span_id == b""


async def test_a_tool_error_is_told_and_what_callers_write_names_no_span(tenant: Tenant, collector: Collector) -> None:
    collector.received.clear()
    token = await tenant.token(_EMAIL)
    await tenant.post(call("select_walkthrough", walkthrough="of-my-own"), token=token)
    await tenant.post(call("a-tool-of-my-own"), token=token)
    await tenant.post({"jsonrpc": "2.0", "id": 1, "method": "a/method-of-my-own"}, token=token)
    async with httpx2.AsyncClient() as http:
        await http.request("OFMYOWN", at(tenant.service, "/of-my-own"), headers={"host": tenant.host})
    wait_until(lambda: any(span.name == "other none" for span in collector.received))
    spans = {span.name: span for span in collector.received}
    assert {"tools/call select_walkthrough", "tools/call other", "other", "other none"} <= set(spans)
    assert _attributes(spans["tools/call select_walkthrough"])["error.type"] == "tool_error"
    assert _attributes(spans["tools/call other"])["error.type"] == "MCPError"
    told = b"".join(span.SerializeToString() for span in collector.received).lower()
    assert b"my-own" not in told
    assert b"ofmyown" not in told


async def test_a_collector_that_is_away_harms_nobody(owner_url: str, database: Database) -> None:
    with _traced(owner_url, "http://127.0.0.1:1") as service:
        tenant = await make_tenant(database, service)
        for _ in range(10):
            assert (await tenant.post(call("list_walkthroughs"))).status_code == 200
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < _SLOW_STOP_SECONDS


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_traces_are_made_where_an_endpoint_is_named(variables: dict[str, str], wanted: bool) -> None:
    assert traces_wanted(variables) == wanted


def test_where_none_are_wanted_nothing_is_loaded_for_them() -> None:
    # Not the whole SDK: redis-py loads its figures wherever it is installed.
    heavy = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "google.protobuf", "requests")
    script = f"import sys, entrypoints.cli.running; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("statement", "summary"),
    [
        ("select a from tokens where b = $1", "select tokens"),
        ("with a as (select 1 from b)\nupdate c set d = $1 from a", "update c"),
        ("insert into tool_calls (a) select 1 on conflict do update set a = 2", "insert tool_calls"),
        ("select a from b for update of b", "select b"),
        ("select a from b for no key update", "select b"),
        ("delete from sign_ins", "delete sign_ins"),
        ("select * from standings($1, $2, $3)", "standings"),
        ("select advance_progress($1, $2)", "advance_progress"),
        ("begin", "begin"),
        ("", "statement"),
    ],
)
def test_a_statement_is_named_for_what_it_does_to_which_table(statement: str, summary: str) -> None:
    assert _summary(statement) == summary
