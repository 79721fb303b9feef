"""The official MCP conformance suite, run on the product's own transport in both protocol eras, and on its sign-in.

CAIRN_TEST_CONFORMANCE names a folder that holds Node and the suite; `make .venv/conformance/installed` makes one.
Nothing is fetched when it runs.
"""

from __future__ import annotations

import json
import re
import socket
from asyncio import create_subprocess_exec
from asyncio.subprocess import PIPE
from collections import Counter
from contextlib import AsyncExitStack
from enum import StrEnum
from pathlib import Path

import anyio
import httpx2
import pytest
import yaml

from adapters.postgres.connections import Database
from adapters.system import RandomIds, SystemClock
from tests.node import BareHost, Node, node_or_skip
from tests.processes import serving
from tests.serving.conftest import Tenant
from tests.sign_in.conftest import Mailbox
from tests.worlds import on_postgres

_VERSION = "0.2.0-alpha.12"
_RUN_SECONDS = 60  # it takes two; a scenario that hangs ends itself after ten
_SCENARIO_MILLISECONDS = 10_000

_REQUEST = "asks the client something while it waits: without a session, its reply could not be brought here"
_NOTIFICATION = "sends the client something before the answer: each request has one JSON answer, and no stream"
_SESSION = "is about a session, which Cairn never begins"
_KEPT = "has the server remember something between requests, in a session"
# By revision and name. All else passes, and none of these does.
_EXCLUDED: dict[str, dict[str, str]] = {
    "2025-11-25": {
        "elicitation-sep1034-defaults": _REQUEST,
        "elicitation-sep1330-enums": _REQUEST,
        "logging-set-level": _KEPT,
        "resources-subscribe": _KEPT,
        "resources-unsubscribe": _KEPT,
        "server-session-lifecycle": _SESSION,
        "server-sse-multiple-streams": _SESSION,
        "server-sse-polling": _SESSION,
        "tools-call-elicitation": _REQUEST,
        "tools-call-sampling": _REQUEST,
        "tools-call-with-logging": _NOTIFICATION,
        "tools-call-with-progress": _NOTIFICATION,
    },
    "2026-07-28": {
        "tools-call-with-progress": _NOTIFICATION,
    },
}


class Verdict(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    UNTRIED = "untried"
    """No check of the scenario's own came to a result. The suite counts it as passed."""


def _checks(results: Path, of: str) -> dict[str, list[dict[str, str]]]:
    """The checks of each scenario that was run, by its name: the suite's folders are named for it and the time."""
    return {
        re.sub(rf"^{of}-(.+)-\d{{4}}-\d\d-\d\dT[\d-]+Z$", r"\1", file.parent.name): json.loads(file.read_text())
        for file in results.glob(f"{of}-*/checks.json")
    }


def _verdict(checks: list[dict[str, str]]) -> Verdict:
    """What the checks of one scenario come to. A warning, which the suite lets pass, is a failure here."""
    if any(check["status"] in ("FAILURE", "WARNING") for check in checks):
        return Verdict.FAILED
    # The suite holds every message against the schema besides, whatever the scenario tries.
    if any(check["status"] == "SUCCESS" and not check["id"].startswith("wire-schema") for check in checks):
        return Verdict.PASSED
    return Verdict.UNTRIED


@pytest.fixture
def node() -> Node:
    return node_or_skip()


@pytest.fixture
def suite(node: Node) -> Path:
    """The package."""
    package = node.package("@modelcontextprotocol/conformance")
    assert json.loads((package / "package.json").read_text())["version"] == _VERSION
    return package


@pytest.fixture
async def token(database: Database) -> str:
    """Somebody's, on a server named `fixtures`."""
    world = on_postgres(database, clock=SystemClock(), ids=RandomIds())
    server = await world.server("conformance", "fixtures")
    return await world.identity.create_token(server.key, "ada@example.com")


@pytest.mark.parametrize("revision", _EXCLUDED)
async def test_the_scenarios_of_a_revision_pass_unless_they_need_what_no_stateless_server_has(
    node: Node,
    suite: Path,
    revision: str,
    owner_url: str,
    token: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--suite", "all", "--spec-version", revision, "--timeout", str(_SCENARIO_MILLISECONDS)]
    with (
        anyio.fail_after(_RUN_SECONDS),
        serving(
            "serve",
            "--port",
            "0",
            module="tests.conformance.fixture_server",
            CAIRN_DATABASE_URL=owner_url,
            CAIRN_DEFAULT_SERVER="fixtures",
            FIXTURE_TOKEN=token,
        ) as service,
    ):
        ran = await anyio.run_process(
            [node.program, suite / "dist/index.js", "server", "--url", service.url, "-o", tmp_path, *options],
            check=False,
        )

    checks = _checks(tmp_path, "server")
    verdicts = {name: _verdict(each) for name, each in sorted(checks.items())}
    excluded = _EXCLUDED[revision]
    counts = Counter("excluded" if name in excluded else str(verdict) for name, verdict in verdicts.items())
    with capsys.disabled():
        told = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
        print(f"\nMCP conformance {_VERSION}, {revision}: {told}, of {len(verdicts)} scenarios")

    required = set(yaml.safe_load((suite / f"requirements/{revision}.yaml").read_text())["server"])
    unrun = (required | excluded.keys()) - verdicts.keys()
    assert not unrun, f"required or excluded, and never run:\n{ran.stderr.decode()}"
    wrong = {
        name: [check for check in checks[name] if check["status"] in ("FAILURE", "WARNING")]
        for name, verdict in verdicts.items()
        if verdict is not Verdict.PASSED and name not in excluded
    }
    assert not wrong
    needless = [name for name in excluded if verdicts[name] is Verdict.PASSED]
    assert not needless, "excluded, and yet they pass"


@pytest.mark.promise("auth.oauth")
async def test_all_scenarios_of_an_authorization_server_pass(
    node: Node, suite: Path, owner_url: str, database: Database, mailbox: Mailbox, tmp_path: Path
) -> None:
    world = on_postgres(database, clock=SystemClock(), ids=RandomIds())
    # For the client's callback, which the suite listens to itself.
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serving(
        "serve", "--port", "0",
        CAIRN_DATABASE_URL=owner_url, CAIRN_SMTP_URL=mailbox.url, CAIRN_DEFAULT_SERVER="fixtures",
    ) as service:  # fmt: skip
        tenant = Tenant(world, await world.server("conformance", "fixtures"), service, "conformance")
        async with AsyncExitStack() as stack, httpx2.AsyncClient() as client:
            stack.enter_context(anyio.fail_after(_RUN_SECONDS))
            host = BareHost(tenant, mailbox, stack)
            client_id = await host.register(redirect_uris=[f"http://127.0.0.1:{port}/callback"])
            process = await create_subprocess_exec(
                node.program, suite / "dist/index.js", "authorization", "--url", host.origin, "--client-id", client_id,
                "--resource", service.url, "--port", str(port), "-o", tmp_path, stdout=PIPE,
            )  # fmt: skip
            assert process.stdout is not None
            try:
                said = ""
                while line := (await process.stdout.readline()).decode():
                    said += line
                    if line.startswith(f"{host.origin}/authorize?"):
                        location = await (await host.browser()).sign_in(line.strip())
                        assert (await client.get(location)).status_code == 200
                assert await process.wait() == 0, said
            finally:
                if process.returncode is None:
                    process.kill()
                await process.wait()

    verdicts = {name: _verdict(each) for name, each in _checks(tmp_path, "authorization-server").items()}
    scenarios = ("authorization-server-metadata-endpoint", "authorization-code-grant")
    assert verdicts == dict.fromkeys(scenarios, Verdict.PASSED), said
