"""A real browser: what a page gets to see of Cairn, by its own judgement of the headers and not by ours."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.serving.conftest import Tenant, call, challenge
from tests.serving.raw import META, MODERN, assert_no_tool_was_reached

_DEADLINE_SECONDS = 60
_PAGE = """<!doctype html><title>A page</title><script>
(async () => {
  const told = [];
  for (const [headers, message] of REQUESTS) {
    try {
      const answer = await fetch(URL_, {method: "POST", headers, body: JSON.stringify(message)});
      const text = await answer.text();
      told.push([answer.status, answer.headers.get("www-authenticate"), text ? JSON.parse(text) : null]);
    } catch (error) {
      told.push([0, error.name, null]);
    }
  }
  await fetch("/told", {method: "POST", body: JSON.stringify(told)});
})();
</script>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("there is no chromium to try pages in")
    return found


@contextmanager
def _page_server(page: str) -> Iterator[tuple[int, queue.Queue[Any]]]:
    """Serves a page at a port of its own, and takes what the page tells."""
    told: queue.Queue[Any] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say(page.encode() if self.path == "/" else b"")

        def do_POST(self) -> None:
            told.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self._say(b"")

        def _say(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1], told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _shown(
    chromium: str, profile: Path, host: str, url: str, requests: list[tuple[dict[str, str], dict[str, Any]]]
) -> list[tuple[int, str | None, Any]]:
    """Status, challenge and body of each answer, as a page of that host sees them; status 0: it sees none."""
    page = _PAGE.replace("REQUESTS", json.dumps(requests)).replace("URL_", json.dumps(url))
    with _page_server(page) as (port, told):
        browser = subprocess.Popen(
            [
                chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
                "--disable-background-networking", f"--user-data-dir={profile}",
                "--host-resolver-rules=MAP *.example.com 127.0.0.1", f"http://{host}:{port}/",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            return [tuple(each) for each in told.get(timeout=_DEADLINE_SECONDS)]
        finally:
            browser.terminate()
            browser.wait(_DEADLINE_SECONDS)


@pytest.mark.promise("gate.pages")
async def test_a_page_on_the_own_machine_goes_through_the_whole_dance_and_a_foreign_one_sees_nothing(
    chromium: str, tenant: Tenant, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    await tenant.publish("one")
    bearer = {"authorization": f"Bearer {await tenant.token()}"}
    form = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    old = {**form, "mcp-protocol-version": "2025-11-25"}
    new = {**form, "mcp-protocol-version": MODERN, "mcp-method": "tools/call", "mcp-name": "select_walkthrough"}
    client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "page", "version": "1"}}
    select = call("select_walkthrough", walkthrough="tour")
    requests = [
        (form, {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": client}),
        (old, {"jsonrpc": "2.0", "method": "notifications/initialized"}),
        (old, select),
        (old | bearer, select),
        (new | bearer, {**select, "params": {**select["params"], "_meta": META}}),
    ]
    url = tenant.service.url.replace("127.0.0.1", tenant.host)

    foreign = _shown(chromium, tmp_path / "foreign", "evil.example.com", url, requests)
    assert foreign == [(0, "TypeError", None)] * 5
    await assert_no_tool_was_reached(owner)

    initialized, notified, challenged, started, resumed = _shown(chromium, tmp_path / "own", "localhost", url, requests)
    assert initialized[0] == 200
    assert initialized[2]["result"]["serverInfo"]["name"] == tenant.server.slug
    assert notified == (202, None, None)
    port = f":{urlsplit(url).port}"
    assert challenged[:2] == (401, challenge(tenant, port=port))
    assert (started[0], started[2]["result"]["structuredContent"]["status"]) == (200, "started")
    assert (resumed[0], resumed[2]["result"]["structuredContent"]["status"]) == (200, "resumed")
