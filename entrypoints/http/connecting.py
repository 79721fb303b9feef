"""How to connect each client to a server: what to click, to run or to paste, and how far that was tried.

The name that a client knows the server by is the server's slug: it can stand in every shell and every file as it is.
The server's own name, in which anything may stand, is in none of this.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import quote

# Names that Claude Code keeps for itself, as found by trying.
_TAKEN_NAMES = frozenset({"claude-in-chrome", "computer-use", "workspace"})


class Tried(StrEnum):
    """How far a client was tried against a running Cairn."""

    SIGNS_IN = "adds the server, registers, signs in and connects"
    CONNECTS = "takes the configuration and connects"
    NOT = "written from its documentation, not tried"


@dataclass(frozen=True, slots=True)
class Snippet:
    """Something to copy."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Client:
    """One client, and how it is connected: by any of these ways."""

    name: str
    tried: Tried
    version: str | None
    """With which it was tried; None where it was not."""
    snippets: tuple[Snippet, ...]
    link: str | None = None
    """What installs the server when it is clicked: a URL of the client's own scheme."""
    note: str | None = None

    @property
    def trial(self) -> str:
        """How far it was tried, as a phrase."""
        return (
            f"Tried with version {self.version}: {self.tried.value}" if self.version else self.tried.value.capitalize()
        )


def client_name(slug: str) -> str:
    """The name that clients are to know a server by."""
    return f"{slug}-walkthroughs" if slug in _TAKEN_NAMES else slug


def claude_code_command(name: str, url: str, header: str | None = None) -> str:
    """The command that adds a server to Claude Code, for a POSIX shell."""
    words = ["claude", "mcp", "add", "--transport", "http", "--scope", "user", name, url]
    return shlex.join([*words, "--header", header] if header else words)


def mcp_servers(name: str, server: Mapping[str, Any]) -> str:
    """The JSON of a file that lists servers the way Cursor does, and many after it."""
    return json.dumps({"mcpServers": {name: server}}, indent=2)


def clients(slug: str, url: str, *, is_personal: bool = False) -> Sequence[Client]:
    """How each client is connected to the server of this slug at this URL. On a personal one nobody signs in."""
    name = client_name(slug)
    server = {"type": "http", "url": url}
    named = json.dumps({"name": name, **server})
    cursor = base64.b64encode(json.dumps({"url": url}).encode()).decode()
    tried = Tried.CONNECTS if is_personal else Tried.SIGNS_IN

    def unless_personal(note: str) -> str | None:
        return None if is_personal else note

    return (
        Client(
            "Claude Code",
            tried,
            "2.1.330",
            (Snippet("Run in a terminal", claude_code_command(name, url)),),
            note=unless_personal(f"To sign in, run “claude mcp login {name}”, or type /mcp in Claude Code."),
        ),
        Client(
            "Cursor",
            Tried.NOT,
            None,
            (Snippet("Or paste into ~/.cursor/mcp.json", mcp_servers(name, {"url": url})),),
            link=f"cursor://anysphere.cursor-deeplink/mcp/install?name={quote(name, safe='')}"
            f"&config={quote(cursor, safe='')}",
        ),
        Client(
            "VS Code",
            Tried.CONNECTS,
            "1.139.1, as code-server",
            (
                Snippet("Or run in a terminal", shlex.join(["code", "--add-mcp", named])),
                Snippet(
                    "Or paste into the file that “MCP: Open User Configuration” opens",
                    json.dumps({"servers": {name: server}}, indent=2),
                ),
            ),
            link=f"vscode:mcp/install?{quote(named, safe='')}",
            note="It was tried with the file; the button and the command are as its documentation has them.",
        ),
        Client(
            "Codex",
            tried,
            "0.169.0",
            # Its command has people sign in wherever they can, on a personal URL too.
            (Snippet("Paste into ~/.codex/config.toml", f"[mcp_servers.{name}]\nurl = {json.dumps(url)}"),)
            if is_personal
            else (Snippet("Run in a terminal", shlex.join(["codex", "mcp", "add", name, "--url", url])),),
            note=unless_personal(f"It has you sign in at once. To sign in again, run “codex mcp login {name}”."),
        ),
        Client(
            "Gemini CLI",
            tried,
            "0.61.0",
            (
                Snippet(
                    "Run in a terminal",
                    shlex.join(["gemini", "mcp", "add", "--transport", "http", "--scope", "user", name, url]),
                ),
            ),
            note="It connects only in folders that you have told it to trust."
            + ("" if is_personal else f" To sign in, type “/mcp auth {name}” in it."),
        ),
        Client(
            "ChatGPT",
            Tried.NOT,
            None,
            (Snippet("Paste as its server URL", url),),
            note="On the web, choose Plugins, the plus button, and “Add custom MCP server”; "
            + ("no authentication." if is_personal else "authenticate with OAuth.")
            + (
                ""
                if url.startswith("https://")
                else " ChatGPT reaches only https addresses on the internet, which this is not."
            ),
        ),
    )
