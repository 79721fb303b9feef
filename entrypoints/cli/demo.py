"""What `cairn dev` sets up: a database at this release's schema, with an organisation, a server and real content."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import click

import entrypoints
from domain.errors import AlreadyExists, OperatorError
from domain.tenancy import AuthMode
from domain.walkthrough import PublishPolicy
from entrypoints.container import Storage
from entrypoints.http.connecting import claude_code_command, mcp_servers
from entrypoints.settings import Settings
from entrypoints.workshop import Workshop, opened

DEMO = "demo"
DEVELOPER = "developer@example.com"
WALKTHROUGHS = Path(entrypoints.__file__).parent / "walkthroughs"
_REMEDY = "move it away, or choose another --data-dir"
_CLIENT_NAME = "cairn-demo"
_TOKEN_FILE = "dev-token"  # noqa: S105  # a file's name


def connection_lines(url: str, token: str) -> list[str]:
    """How to connect to the demo server, ready to be pasted."""
    header = f"Authorization: Bearer {token}"
    server = {"type": "http", "url": url, "headers": {"Authorization": f"Bearer {token}"}}
    return [
        "",
        click.style("Cairn is running.", bold=True) + " Connect your assistant to the demo server, and ask it:",
        click.style("show me the walkthroughs", italic=True),
        "",
        f"  URL     {url}",
        f"  Token   {token}",
        f"  Page    {url.removesuffix('mcp')}",
        "",
        click.style("Claude Code", bold=True),
        f"  {claude_code_command(_CLIENT_NAME, url, header)}",
        "",
        click.style("Cursor and others", bold=True) + " that read an mcpServers file (Cursor: ~/.cursor/mcp.json)",
        *("  " + line for line in mcp_servers(_CLIENT_NAME, server).splitlines()),
        "",
        "The page has more clients, and lets you sign in instead of pasting the token:",
        "the codes that it asks for are shown here.",
        "The token is for development, and stays the same in this data directory.",
        "Stop with Ctrl-C: progress is kept.",
        "",
    ]


def shipped_walkthroughs() -> list[Path]:
    """The folders of the walkthroughs that come with Cairn, in their order."""
    return sorted(folder for folder in WALKTHROUGHS.iterdir() if folder.is_dir())


async def prepare_demo(storage: Storage, settings: Settings) -> str:
    """Migrates, and makes whatever of the demo is not there yet. Returns the developer's token. Safe to repeat.

    The shipped walkthroughs are published as they come with this release: whatever else was published under their keys
    stays as an older version.
    """
    await storage.migrate(finish=True)  # whoever develops runs one release
    await storage.check()
    async with opened(storage) as container:
        with suppress(AlreadyExists):
            await container.tenancy().create_organization(DEMO, "Cairn demo")
        with suppress(AlreadyExists):
            await container.tenancy().create_server(
                DEMO, DEMO, auth_mode=AuthMode.ON_DEMAND, name="Cairn demo", custom_domain=None
            )
        for folder in shipped_walkthroughs():
            await container.authoring().push(
                DEMO,
                container.read_folder()(folder),
                publish=PublishPolicy.OFFER,
                servers=[(DEMO, None)],
                by="cairn dev",
            )
        return await _token(container, settings.data_dir)


async def _token(container: Workshop, data_dir: Path) -> str:
    """The developer's token, the same at every start, so that a client's configuration stays right."""
    server = (await container.tenancy().server(DEMO, DEMO)).key
    token = _kept_token(data_dir)
    if token is None or not await container.identity().bearer_of(server, token):
        token = await container.identity().create_token(server, DEVELOPER)
        _keep_token(data_dir, token)
    return token


def _kept_token(data_dir: Path) -> str | None:
    try:
        return (data_dir / _TOKEN_FILE).read_text(errors="replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OperatorError(f"cannot read {data_dir / _TOKEN_FILE} ({error.strerror}): {_REMEDY}") from error


def _keep_token(data_dir: Path, token: str) -> None:
    """Writes it where nobody else can read it."""
    file = data_dir / _TOKEN_FILE
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(token + "\n")
    except OSError as error:
        raise OperatorError(f"cannot write {file} ({error.strerror}): {_REMEDY}") from error
