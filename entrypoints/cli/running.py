"""The command that serves, and the reference of what is served. Apart from the others, which need not import it all."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from entrypoints.cli.serving import listening, metrics_served, serve_until_stopped
from entrypoints.cli.terminal import MIGRATION_LEFT, say, show
from entrypoints.container import storage
from entrypoints.mcp.schema import input_schema, output_schema
from entrypoints.mcp.tools import TOOLS
from entrypoints.settings import Settings


def serve(data_dir: Path | None, host: str, port: int, workers: int, as_json: bool) -> None:
    settings = Settings.from_environment(data_dir=data_dir)
    with (
        listening(host, port) as listener,
        metrics_served(settings, workers=workers) as figures,
        storage(settings, say) as held,
    ):
        if not asyncio.run(held.check()):
            say(MIGRATION_LEFT)
        if settings.smtp_url is None:
            say("Nobody can sign in by an e-mailed code: CAIRN_SMTP_URL is not set.")
        url = f"{listener.address}/mcp"
        told, said = {"url": url}, [f"Cairn serves at {url} (stop it with Ctrl-C)"]
        if figures is not None:
            told["metrics"] = figures
            said.append(f"Prometheus reads {figures}")
        serve_until_stopped(held, settings, listener, workers=workers, on_ready=lambda: show(as_json, told, *said))


def tools(as_json: bool) -> None:
    reference = [
        {
            "name": tool.name,
            "title": tool.title,
            "description": tool.description,
            "read_only": tool.is_read_only,
            "open": tool.is_open,
            "input_schema": input_schema(tool.arguments),
            "output_schema": output_schema(tool.result),
        }
        for tool in TOOLS.values()
    ]
    show(as_json, {"tools": reference}, *(line for each in reference for line in _described(each)))


def _described(tool: dict[str, Any]) -> list[str]:
    """A tool's part of the reference, in Markdown."""
    schema = tool["input_schema"]
    lines = [f"## {tool['name']}", "", tool["description"], ""]
    lines.append("Read-only. " if tool["read_only"] else "Writes. ")
    lines[-1] += (
        "Open without a token where the auth mode is on_demand or anonymous." if tool["open"] else "Needs a token."
    )
    for name, argument in schema["properties"].items():
        required = (
            "required" if name in schema.get("required", []) else f"default {json.dumps(argument.get('default'))}"
        )
        kind = " | ".join(map(json.dumps, argument["enum"])) if "enum" in argument else argument["type"]
        lines.append(f"- `{name}` ({kind}, {required}): {argument.get('description', '')}")
    return [*lines, ""]
