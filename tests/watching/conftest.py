"""A service that is watched: its figures, its log, and people who use it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.processes import Serving, serving
from tests.serving.conftest import closed_tenant, tenant  # noqa: F401  # fixtures
from tests.sign_in.conftest import NO_LIMITS, Mailbox, acme, mailbox  # noqa: F401  # fixtures
from tests.sign_in.conftest import globex as globex

_DEADLINE_SECONDS = 60
_FREE_PORT = "127.0.0.1:0"
_SAMPLE = re.compile(r"^([a-z_]+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def service(owner_url: str, mailbox: Mailbox) -> Iterator[Serving]:  # noqa: F811  # the fixture
    """`cairn serve` on this module's database, with figures. One limit is low: 3 visitors of one network."""
    with watched(
        CAIRN_DATABASE_URL=owner_url,
        CAIRN_SMTP_URL=mailbox.url,
        CAIRN_LIMITS=NO_LIMITS.replace("visitors_per_network=off", "visitors_per_network=3/600"),
    ) as running:
        yield running


def watched(*arguments: str, **variables: str) -> Any:
    """A serving process with figures."""
    return serving("serve", "--port", "0", *arguments, CAIRN_METRICS_ADDRESS=_FREE_PORT, **variables)


def figures_at(service: Serving) -> str:
    """Where the figures of a service are."""
    wait_until(lambda: "Prometheus reads" in service.output)
    found = re.search(r"Prometheus reads (\S+)", service.output)
    assert found
    return found[1]


def figures(service: Serving) -> dict[str, float]:
    """Every figure by its name and labels, as Prometheus reads them."""
    answer = httpx2.get(figures_at(service), timeout=10)
    assert answer.status_code == 200
    return {name: float(value) for name, value in _SAMPLE.findall(answer.text)}


def growth(before: Mapping[str, float], after: Mapping[str, float], *beginnings: str) -> dict[str, float]:
    """By how much the figures whose names begin so have grown, those that have."""
    return {
        name: value - before.get(name, 0.0)
        for name, value in after.items()
        if name.startswith(beginnings) and value != before.get(name, 0.0)
    }


def lines(service: Serving, event: str | None = None) -> list[dict[str, Any]]:
    """What a service has logged; with `event`, only those lines."""
    logged = [json.loads(line) for line in list(service.lines) if line.startswith("{")]
    return [line for line in logged if event in (None, line["event"])]


def wait_until(is_so: Callable[[], bool]) -> None:
    """Waits for what another process does."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "it never came to be so"
        time.sleep(0.02)


def at(service: Serving, path: str) -> str:
    """The URL of a path at a service's address."""
    parts = urlsplit(service.url)
    return f"{parts.scheme}://{parts.netloc}{path}"
