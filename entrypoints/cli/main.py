"""The `cairn` command: what it takes.

What it does is in `commands.py` and `running.py`, imported only when a command runs. Nothing but click is imported
here, so that `cairn --help` answers at once.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click


def _run(command: str, options: dict[str, Any], module: str = "commands") -> None:
    terminal = importlib.import_module("entrypoints.cli.terminal")
    terminal.run(getattr(importlib.import_module(f"entrypoints.cli.{module}"), command), options)


_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Where the embedded database lives [default: $CAIRN_DATA_DIR or .cairn].",
)
_org = click.option("--org", required=True, metavar="SLUG", help="The organisation.")
_folder = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
_servers = click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="SLUG[:ORDER]",
    help="Put it on this server, at this place in the list; may be repeated.",
)
_day = click.DateTime(["%Y-%m-%d"])
_one_server = click.option("--server", required=True, metavar="SLUG", help="The server.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="cairn")
def main() -> None:
    """Guided walkthroughs that developers take inside their IDE or AI assistant, over MCP."""


@main.command()
@_json
def tools(**options: Any) -> None:
    """Print the reference of the MCP tools.

    What each does and takes; with --json also what it returns.
    """
    _run("tools", options, "running")


@main.group()
def org() -> None:
    """Organisations."""


@main.group()
def server() -> None:
    """MCP servers of an organisation."""


@main.group()
def token() -> None:
    """Bearer tokens, with which people reach a server."""


@main.command()
@_data_dir
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@_json
def dev(**options: Any) -> None:
    """Run everything on this machine.

    Makes the database, loads the demo walkthroughs, serves them, and prints how to connect.
    """
    _run("dev", options, "running")


@main.command()
@_data_dir
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes.")
@_json
def serve(**options: Any) -> None:
    """Serve the MCP servers of a database."""
    _run("serve", options, "running")


@main.command()
@_data_dir
@_json
def migrate(**options: Any) -> None:
    """Bring the database to this release's schema.

    Safe to repeat, and to run twice at once.
    """
    _run("migrate", options)


@org.command("create")
@click.argument("slug")
@click.option("--name", help="What people see [default: the slug].")
@_data_dir
@_json
def org_create(**options: Any) -> None:
    """Create an organisation."""
    _run("org_create", options)


@server.command("create")
@_org
@click.option("--slug", required=True, help="Its host label: it answers at SLUG.<base domain>.")
@click.option(
    "--auth-mode",
    type=click.Choice(["on_demand", "on_connect"]),
    default="on_demand",
    show_default=True,
    help="on_demand: anybody may list; on_connect: every request needs a token.",
)
@click.option("--domain", help="A domain of its own, such as guides.example.com.")
@click.option("--name", help="What people see [default: the slug].")
@_data_dir
@_json
def server_create(**options: Any) -> None:
    """Create an MCP server."""
    _run("server_create", options)


@server.command("list")
@click.option("--org", metavar="SLUG", help="Only this organisation's.")
@_data_dir
@_json
def server_list(**options: Any) -> None:
    """List MCP servers."""
    _run("server_list", options)


@main.command()
@click.argument("key")
@_org
@_servers
@_data_dir
@_json
def assign(**options: Any) -> None:
    """Put the walkthrough KEY on servers."""
    _run("assign", options)


@main.command()
@_folder
@_json
def lint(**options: Any) -> None:
    """Check a walkthrough's folder.

    Reports everything that is wrong with it at once, each with file, line and remedy.
    """
    _run("lint", options)


@main.command()
@_folder
@_json
def preview(**options: Any) -> None:
    """Print a walkthrough's folder as an HTML page.

    Each step as people read it, with what only the assistant reads set apart. The page needs nothing else, and runs
    nothing: cairn preview DIR > preview.html
    """
    _run("preview", options)


@main.command()
@click.argument("subject", type=click.Choice(["walkthrough", "step"]))
@_json
def schema(**options: Any) -> None:
    """Print the JSON Schema of the folder format.

    SUBJECT is 'walkthrough' for walkthrough.yaml, or 'step' for the front matter of a step. An editor with the YAML
    language server checks while you write, if walkthrough.yaml begins with the line

    \b
      # yaml-language-server: $schema=walkthrough.schema.json

    and beside it lies what 'cairn schema walkthrough > walkthrough.schema.json' made.
    """
    _run("schema", options)


@main.command()
@_folder
@_org
@click.option("--publish", is_flag=True, help="Publish it as the next version; without this it becomes the draft.")
@_servers
@_data_dir
@_json
def push(**options: Any) -> None:
    """Store or publish a walkthrough's folder.

    It becomes the draft, or with --publish the next version. Nothing is stored unless all is sound.
    """
    _run("push", options)


class _WithDefinitions(click.Command):
    """A command whose help ends with what its numbers mean, said where they are counted."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        definitions = importlib.import_module("application.insight").__doc__ or ""
        formatter.write_paragraph()
        formatter.write_text(definitions)


@main.command(cls=_WithDefinitions)
@click.argument("key")
@_org
@click.option("--server", metavar="SLUG", help="Only what was taken on this server.")
@click.option("--version", type=click.IntRange(1, 1_000_000), metavar="N", help="Only what happened on this version.")
@click.option("--since", type=_day, metavar="DATE", help="Only attempts that began on this day (UTC) or later.")
@click.option("--until", type=_day, metavar="DATE", help="Only attempts that began on this day or earlier.")
@click.option(
    "--days",
    type=click.IntRange(1, 3650),
    default=14,
    show_default=True,
    help="How long nothing has happened in an attempt that counts as abandoned.",
)
@_data_dir
@click.option("--csv", "as_csv", is_flag=True, help="Print the result as CSV, one row a step and a note.")
@_json
def insight(**options: Any) -> None:
    """Show how learners fare in the walkthrough KEY.

    How many start, reach each step and complete it, how long each takes them, and where they are stuck, with what
    they wrote.
    """
    _run("insight", options, "insight")


@token.command("create")
@_one_server
@click.option("--email", required=True, help="Whose token it is. The address counts as verified.")
@_data_dir
@_json
def token_create(**options: Any) -> None:
    """Create a token. It is printed alone on the last line, and cannot be shown again."""
    _run("token_create", options)


@token.command("revoke")
@_one_server
@click.option("--email", help="End every token that this person has on the server.")
@click.option("--token", metavar="TOKEN", help="End this one; '-' reads it from standard input.")
@_data_dir
@_json
def token_revoke(**options: Any) -> None:
    """End tokens, at once."""
    _run("token_revoke", options)


if __name__ == "__main__":
    main()
