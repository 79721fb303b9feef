"""The figures that Prometheus reads: what they count, what they may be labelled with, and who can read them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import httpx2
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from adapters.postgres.connections import Database
from domain.errors import InvalidValue, OperatorError
from domain.tenancy import AuthMode
from entrypoints import metrics
from entrypoints.cli.serving import metrics_served
from entrypoints.mcp.tools import TOOLS
from entrypoints.settings import Settings, host_and_port
from tests.processes import PROJECT, Serving, environment
from tests.serving.conftest import Tenant, call, make_tenant
from tests.sign_in.conftest import Host
from tests.watching.conftest import at, figures, figures_at, growth, wait_until, watched


def _answered(before: dict[str, float], service: Serving, *names: str) -> dict[str, float]:
    """What has come of it, once the last sample of it has been taken."""
    return growth(before, figures(service), *names)


async def test_calls_are_counted_by_tool_and_outcome(tenant: Tenant) -> None:
    await tenant.publish("one", "two", "three", key="guide")
    before = figures(tenant.service)
    async with tenant.learner(era="legacy") as ada:
        shown = await ada.call("select_walkthrough", walkthrough="guide")
        handle = shown["step"]["handle"]
        await ada.call("next_walkthrough_step", completed_step=handle)
        await ada.call("next_walkthrough_step", completed_step=handle)
        await ada.refused("select_walkthrough", walkthrough="nothing of the kind")
    wait_until(lambda: _answered(before, tenant.service, "cairn_call_log_rows_total") != {})  # the last of them
    assert _answered(before, tenant.service, "cairn_tool_calls_total", "cairn_tool_call_seconds_count") == {
        'cairn_tool_calls_total{outcome="started",tool="select_walkthrough"}': 1,
        'cairn_tool_calls_total{outcome="walkthrough_not_found",tool="select_walkthrough"}': 1,
        'cairn_tool_calls_total{outcome="advanced",tool="next_walkthrough_step"}': 1,
        'cairn_tool_calls_total{outcome="repeated",tool="next_walkthrough_step"}': 1,
        'cairn_tool_call_seconds_count{tool="select_walkthrough"}': 2,
        'cairn_tool_call_seconds_count{tool="next_walkthrough_step"}': 2,
    }


async def test_what_the_call_log_writes_is_counted(tenant: Tenant, owner: asyncpg.Connection) -> None:
    await tenant.publish("one", "two")
    before = figures(tenant.service)
    async with tenant.learner() as ada:
        await ada.call("select_walkthrough", walkthrough="tour")  # which is recorded with what it changes
        for _ in range(5):
            await ada.call("list_walkthroughs")
    assert await owner.fetchval("select count(*) from tool_calls") == 6
    names = ("cairn_call_log_rows_total", "cairn_call_log_batches_total", "cairn_call_log_failures_total")
    each_by_itself = {"cairn_call_log_rows_total": 5, "cairn_call_log_batches_total": 5}
    wait_until(lambda: _answered(before, tenant.service, *names) == each_by_itself)
    wait_until(lambda: figures(tenant.service)["cairn_call_log_waiting"] == 0)


async def test_what_callers_write_is_no_label(tenant: Tenant) -> None:
    token = await tenant.token()
    before = figures(tenant.service)
    assert (await tenant.post(call("a-tool-of-my-own"), token=token)).json()["error"]["code"] == -32602
    async with httpx2.AsyncClient() as http:
        for path in ("/a-path-of-my-own", "/v/a-visitor-of-my-own/mcp", "/assets/an-asset-of-my-own"):
            await http.get(at(tenant.service, path), headers={"host": tenant.host})
        await http.request("MYOWN", at(tenant.service, "/mcp"), headers={"host": tenant.host})
        await http.get(at(tenant.service, "/"), headers={"host": "a-host-of-my.own"})
    expected = {
        'cairn_tool_calls_total{outcome="unknown_tool",tool="other"}': 1,
        'cairn_http_requests_total{kind="mcp",status="200"}': 1,
        'cairn_http_requests_total{kind="none",status="404"}': 1,
        'cairn_http_requests_total{kind="mcp",status="405"}': 2,
        'cairn_http_requests_total{kind="page",status="404"}': 1,
        'cairn_http_requests_total{kind="page",status="421"}': 1,
    }

    def counted() -> dict[str, float]:
        return growth(before, figures(tenant.service), "cairn_tool_calls_total", "cairn_http_requests_total")

    # A request is counted when it has ended, and its answer may be here before that.
    wait_until(lambda: sum(counted().values()) >= sum(expected.values()))
    assert counted() == expected
    after = figures(tenant.service)
    assert not [name for name in after if "my-own" in name or "my.own" in name or "server-" in name or "org-" in name]


async def test_no_label_has_more_values_than_the_code_has(tenant: Tenant) -> None:
    labels: dict[str, set[str]] = {}
    for name in figures(tenant.service):
        for label, value in re.findall(r'([a-z]+)="([^"]*)"', name):
            labels.setdefault(label, set()).add(value)
    assert set(labels) <= {"tool", "outcome", "kind", "status", "le", "pool", "state", "limit", "reason", "version"}
    assert labels.get("tool", set()) <= {*TOOLS, "other"}
    assert labels["kind"] <= {"mcp", "oauth", "page", "health", "none"}
    assert labels["pool"] == {"calls", "rest"}
    assert labels["state"] == {"in_use", "free"}


async def test_sign_ins_are_counted_by_what_came_of_them(acme: Host) -> None:
    service = acme.tenant.service
    before = figures(service)
    browser = await acme.browser()
    asking = await acme.asking()
    await browser.open(asking.url)
    await browser.submit(decision="approve")
    await browser.submit(email="ada@refused.example.com")
    await browser.submit(email="ada@example.com")
    await browser.submit(code="000000" if acme.mailbox.code("ada@example.com") != "000000" else "111111")
    assert await browser.submit(code=acme.mailbox.code("ada@example.com")) is not None
    other = await acme.browser()
    await other.open((await acme.asking()).url)
    assert await other.submit(decision="deny") is not None
    assert _answered(before, service, "cairn_sign_ins_total") == {
        'cairn_sign_ins_total{outcome="begun"}': 2,
        'cairn_sign_ins_total{outcome="code_not_sent"}': 1,
        'cairn_sign_ins_total{outcome="code_sent"}': 1,
        'cairn_sign_ins_total{outcome="code_wrong"}': 1,
        'cairn_sign_ins_total{outcome="signed_in"}': 1,
        'cairn_sign_ins_total{outcome="denied"}': 1,
    }


async def test_whoever_is_limited_is_counted(database: Database, service: Serving) -> None:
    tenant = await make_tenant(database, service, auth_mode=AuthMode.ANONYMOUS)
    before = figures(service)
    async with httpx2.AsyncClient(headers={"host": tenant.host}) as http:
        statuses = [(await http.post(at(service, "/"))).status_code for _ in range(5)]
    assert statuses[3:] == [429, 429]
    assert _answered(before, service, "cairn_limited_total") == {'cairn_limited_total{limit="visitors_per_network"}': 2}


async def test_a_process_tells_of_itself(service: Serving) -> None:
    wait_until(lambda: figures(service).get("process_resident_memory_bytes", 0.0) > 10e6)
    told = figures(service)
    assert 0 < told["process_cpu_seconds_total"] < 1_000
    assert 3 < told["process_open_fds"] < 1_000
    assert told["process_start_time_seconds"] > 1.7e9
    assert told['cairn_build_info{version="0.1.0"}'] == 1
    wait_until(lambda: figures(service)["cairn_http_requests_in_flight"] == 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", None])
async def test_figures_are_no_page_of_the_public_service(tenant: Tenant, host: str | None) -> None:
    async with httpx2.AsyncClient() as http:
        answer = await http.get(at(tenant.service, "/metrics"), headers={"host": host or tenant.host})
    assert answer.status_code == (421 if host else 404)
    assert "cairn_" not in answer.text


async def test_nothing_else_is_served_where_figures_are(service: Serving) -> None:
    address = figures_at(service)
    assert httpx2.get(f"{address}/more").status_code == 404
    assert httpx2.get(address.removesuffix("metrics")).status_code == 404
    assert httpx2.post(address).status_code == 501


def test_slow_readers_take_few_places_and_not_for_long(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics, "_READER_SECONDS", 60.0)
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        stack.enter_context(metrics.served(listener, workers=1))

        def reader() -> socket.socket:
            return stack.enter_context(socket.create_connection(listener.getsockname(), timeout=10))

        def is_read() -> bool:
            try:
                return httpx2.get(f"http://127.0.0.1:{listener.getsockname()[1]}/metrics").status_code == 200
            except httpx2.TransportError:
                return False

        slow = [reader() for _ in range(8)]
        for each in slow:
            each.sendall(b"GET /metrics HTTP/1.0\r\nslow: ")
        assert reader().recv(1) == b"", "the ninth is closed at once"
        for each in slow:
            each.setblocking(False)
            with pytest.raises(BlockingIOError):  # not ended, and nothing told
                each.recv(1)
        assert not is_read()
        monkeypatch.setattr(metrics, "_READER_SECONDS", 0.5)
        assert [_ends_a_client_that_never_rests(each) for each in slow] == [True] * 8
        monkeypatch.setattr(metrics, "_READER_SECONDS", 60.0)
        wait_until(is_read)
    assert capfd.readouterr() == ("", ""), "no line names who was ended"


def _ends_a_client_that_never_rests(slow: socket.socket) -> bool:
    """Whether a connection is ended within 10 s on which something comes 20 times a second."""
    slow.settimeout(0.05)
    for _ in range(200):
        try:
            slow.sendall(b"x")
            return slow.recv(1) == b""
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


def test_a_worker_that_only_starts_has_begun_all_the_same(tmp_path: Path) -> None:
    variables = environment(**{metrics.DIRECTORY: str(tmp_path)})
    subprocess.run([sys.executable, "-c", "import entrypoints.metrics"], cwd=PROJECT, env=variables, check=True)
    read = MultiProcessCollector(CollectorRegistry(), path=str(tmp_path)).collect()
    (began,) = [sample.value for each in read for sample in each.samples if sample.name.startswith("process_start")]
    assert began > 1.7e9


async def test_the_figures_of_several_workers_are_their_sum_and_outlive_them(
    owner_url: str, database: Database
) -> None:
    with watched("--workers", "2", CAIRN_DATABASE_URL=owner_url) as service:
        tenant = await make_tenant(database, service)
        listed = 'cairn_tool_calls_total{outcome="listed",tool="list_walkthroughs"}'

        async def answered(count: int) -> None:
            # A connection each: the next worker that is free takes it.
            for _ in range(count):
                assert (await tenant.post(call("list_walkthroughs"))).status_code == 200

        def free_connections() -> float:
            return figures(service).get('cairn_pool_connections{pool="calls",state="free"}', 0.0)

        while free_connections() < 2:  # one for each worker that has answered
            await answered(5)
        before = figures(service)
        counted = before[listed]
        first, _ = workers = _workers(service.pid)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: first not in _workers(service.pid))
        memory = "process_resident_memory_bytes"
        wait_until(lambda: figures(service)[memory] < 0.8 * before[memory])  # what it held is not held any more
        assert figures(service)[listed] == counted, "what a worker counted stays"
        await answered(10)
        assert figures(service)[listed] == counted + 10
        assert workers != _workers(service.pid)
    assert service.process.returncode == 0


def _workers(pid: int) -> list[int]:
    """The workers of a service: those processes that it spawned to serve."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = stat.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if parent == pid and b"spawn_main" in command:
            found.append(int(stat.parent.name))
    return found


def test_an_address_that_is_taken_is_said(service: Serving) -> None:
    taken = figures_at(service).split("/")[2]
    said = "is in use: stop what listens there, or choose another with CAIRN_METRICS_ADDRESS$"
    with pytest.raises(OperatorError, match=said), metrics_served(Settings(metrics_address=taken), workers=1):
        pass


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("[::1]:9464", ("::1", 9464)),
        ("metrics.internal:0", ("metrics.internal", 0)),
    ],
)
def test_an_address_to_listen_on_is_a_host_and_a_port(written: str, read: tuple[str, int]) -> None:
    assert host_and_port(written) == read
    assert Settings.from_environment({"CAIRN_METRICS_ADDRESS": written}).metrics_address == written


@pytest.mark.parametrize("written", ["9464", "127.0.0.1", "::1:9464", "127.0.0.1:65536", "127.0.0.1:x", "a b:1"])
def test_what_is_no_address_to_listen_on_is_said(written: str) -> None:
    with pytest.raises(InvalidValue, match=r"^CAIRN_METRICS_ADDRESS: .* is no address to listen on: write it like"):
        Settings.from_environment({"CAIRN_METRICS_ADDRESS": written})
