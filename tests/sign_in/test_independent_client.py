"""A client library that knows nothing of MCP: the npm package oauth4webapi, which checks all that it is told."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from adapters.postgres.connections import Database
from adapters.system import RandomIds, SystemClock
from domain.tenancy import AuthMode
from tests.node import BareHost, Node, node_or_skip
from tests.processes import Serving, serving
from tests.serving.conftest import Tenant
from tests.sign_in.conftest import NO_LIMITS, REDIRECT_URI, Browser, Mailbox
from tests.worlds import on_postgres

_RUN_SECONDS = 60  # it takes two
_SCRIPT = Path(__file__).parent / "oauth4webapi/client.mjs"
_METHODS = ("none", "client_secret_basic", "client_secret_post")
_ERAS = ("2025-11-25", "2026-07-28")


@pytest.fixture(scope="module")
def node() -> Node:
    return node_or_skip()


@pytest.fixture(scope="module", params=[AuthMode.ON_DEMAND, AuthMode.ON_CONNECT])
def mode(request: pytest.FixtureRequest) -> AuthMode:
    found: AuthMode = request.param
    return found


def _slug(mode: AuthMode) -> str:
    return f"independent-{mode.value.replace('_', '-')}"


@pytest.fixture(scope="module")
def service(owner_url: str, mailbox: Mailbox, mode: AuthMode) -> Iterator[Serving]:
    """`cairn serve`, with a server at the bare address: Node knows no host below `localhost`."""
    with serving(
        "serve", "--port", "0",
        CAIRN_DATABASE_URL=owner_url, CAIRN_SMTP_URL=mailbox.url, CAIRN_LIMITS=NO_LIMITS,
        CAIRN_DEFAULT_SERVER=_slug(mode),
    ) as running:  # fmt: skip
        yield running


async def _run(node: Node, endpoint: str, method: str, era: str, browser: Browser, email: str) -> dict[str, Any]:
    """Runs the client to its end. The person says no the first time, and yes from then on."""
    # As an argument, so that the packages are looked for in the folder, and not beside the script.
    script = ("--input-type=module", "--eval", _SCRIPT.read_text())
    process = await asyncio.create_subprocess_exec(
        node.program,
        *script,
        endpoint,
        REDIRECT_URI,
        method,
        era,
        cwd=node.folder,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    has_denied = False
    try:
        async with asyncio.timeout(_RUN_SECONDS):
            while line := await process.stdout.readline():
                said: dict[str, Any] = json.loads(line)
                if "open" not in said:
                    return said
                if has_denied:
                    location = await browser.sign_in(said["open"], email)
                else:
                    assert await browser.open(said["open"]) is None
                    denied = await browser.submit(decision="deny")
                    assert denied is not None
                    location, has_denied = denied, True
                process.stdin.write(f"{location}\n".encode())
            raise AssertionError((await process.stderr.read()).decode())
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.promise("auth.oauth")
async def test_a_client_library_that_knows_nothing_of_mcp_signs_in_refreshes_and_is_revoked(
    node: Node, database: Database, service: Serving, mailbox: Mailbox, mode: AuthMode
) -> None:
    world = on_postgres(database, clock=SystemClock(), ids=RandomIds())
    tenant = Tenant(world, await world.server("acme", _slug(mode), auth_mode=mode), service, "acme")
    await tenant.publish("one", "two")
    async with AsyncExitStack() as stack:
        host = BareHost(tenant, mailbox, stack)
        ran = await asyncio.gather(
            *[
                _run(node, service.url, method, era, await host.browser(), f"{method}.{era}@example.com")
                for method in _METHODS
                for era in _ERAS
            ]
        )

    metadata = f"{host.origin}/.well-known/oauth-protected-resource/mcp"
    for run in ran:
        found, denied, started, advanced, first_revoked, second_revoked, resumed = run["told"]
        assert (found["challenge"], found["metadata"]) == ([["bearer", "invalid_token"]], metadata)
        resource = found["resource"]
        assert (resource["resource"], resource["authorization_servers"]) == (service.url, [host.origin])
        assert denied == {"denied": ["AuthorizationResponseError", "access_denied"]}
        assert (started["status"], started["step"]["key"]) == ("started", "one")
        assert (advanced["status"], advanced["step"]["key"]) == ("advanced", "two")
        assert first_revoked == second_revoked == {"revoked": ["bearer", "invalid_token"]}
        assert (resumed["status"], resumed["step"]) == ("resumed", advanced["step"])
        for tokens in run["tokens"]:
            assert (tokens["token_type"], tokens["expires_in"]) == ("bearer", 3600)
            assert tokens["scope"] == "walkthroughs offline_access"
    issued = [tokens[name] for run in ran for tokens in run["tokens"] for name in ("access_token", "refresh_token")]
    assert len(set(issued)) == 6 * len(ran) == 6 * len(_METHODS) * len(_ERAS)
