"""The command that runs everything on one machine: what serves, and what makes the demo that is served."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from domain.errors import InvalidValue
from entrypoints.cli.demo import DEMO, connection_lines, prepare_demo
from entrypoints.cli.serving import listening, metrics_served, serve_until_stopped
from entrypoints.cli.terminal import say, show
from entrypoints.container import storage
from entrypoints.settings import Settings


def dev(data_dir: Path | None, port: int, as_json: bool) -> None:
    settings = Settings.from_environment(
        data_dir=data_dir, default_server=os.environ.get("CAIRN_DEFAULT_SERVER") or DEMO
    )
    if settings.database_url is not None:
        raise InvalidValue("cairn dev makes a database of its own: unset CAIRN_DATABASE_URL, or use 'cairn serve'")
    # First, so that a port in use is told before a database is made.
    with (
        listening("127.0.0.1", port) as listener,
        metrics_served(settings, workers=1),
        storage(settings, say, may_create=True) as held,
    ):
        token = asyncio.run(prepare_demo(held, settings))
        url = f"{listener.address}/mcp"
        lines = connection_lines(url, token)
        serve_until_stopped(
            held,
            settings,
            listener,
            workers=1,
            on_ready=lambda: show(as_json, {"url": url, "token": token}, *lines),
            show_mail=say,
        )
