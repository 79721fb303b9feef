"""The `cairn` command: what it takes.

What it does is in `commands.py` and `running.py`, imported only when a command runs. Nothing but click is imported
here, so that `cairn --help` answers at once.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import click


def _run(command: str, options: dict[str, Any], module: str = "commands") -> None:
    # What a module is made of stays: the collector, which looks at all of it again and again as they are loaded, would
    # take a fifth of the time.
    gc.disable()
    terminal = importlib.import_module("entrypoints.cli.terminal")
    commands = importlib.import_module(f"entrypoints.cli.{module}")
    gc.freeze()
    gc.enable()
    terminal.run(getattr(commands, command), options)


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
_these_servers = click.option(
    "--server", "servers", required=True, multiple=True, metavar="SLUG", help="On this server; may be repeated."
)
_number = click.IntRange(1, 1_000_000)
_by = click.option("--by", metavar="WHO", help="Who does it, for the record [default: your login name].")
_policy = click.option(
    "--policy",
    type=click.Choice(["keep", "offer", "carry_over", "supersede"]),
    help="What becomes of those mid-way on older versions: they finish them (keep, the default); and are told how to "
    "move (offer); are moved, and keep what they have done (carry_over); must begin again (supersede).",
)
_dry_run = click.option(
    "--dry-run", "is_dry_run", is_flag=True, help="Show what would become of everybody mid-way, and store nothing."
)
_expect = click.option(
    "--expect",
    "expected",
    type=click.IntRange(0, 1_000_000),
    metavar="N",
    help="Only if N is the latest version; 0: if there is none.",
)
_force_push = click.option(
    "--force", "is_forced", is_flag=True, help="Undo what was edited in place since the last push."
)
_version = click.option("--version", type=_number, metavar="N", help="This version [default: the latest].")
_auth_mode = click.Choice(["on_demand", "on_connect", "anonymous"])
_who = click.argument("who")
_draft = click.option("--draft", "is_draft", is_flag=True, help="The draft, and no version.")


class _Sections(click.Group):
    """Lists its commands by what they are for."""

    titles: ClassVar[Mapping[str, Sequence[str]]] = {
        "Run": ("dev", "serve", "migrate"),
        "Who and where": ("org", "server", "user", "token"),
        "Write": ("lint", "preview", "schema", "pull", "diff", "push", "discard"),
        "Publish": ("publish", "rollback", "unpublish", "withdraw", "archive", "restore"),
        "Put on servers": ("assign", "unassign", "enable", "disable", "order"),
        "Look": ("versions", "insight", "tools"),
    }

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # As wide as the widest of all, so that the sections are one table.
        width = max(map(len, self.commands))
        limit = formatter.width - width - 6
        for title, names in self.titles.items():
            with formatter.section(title):
                rows = [(name.ljust(width), self.commands[name].get_short_help_str(limit)) for name in names]
                formatter.write_dl(rows)


@click.group(cls=_Sections, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
def user() -> None:
    """People, and what is stored about them."""


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
    _run("dev", options, "developing")


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
@click.option("--finish", is_flag=True, help="Also make what stops the release before: when no process of it runs.")
@_data_dir
@_json
def migrate(**options: Any) -> None:
    """Bring the database to this release's schema.

    Safe while the release before serves, to repeat, and to run twice at once.
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
    type=_auth_mode,
    default="on_demand",
    show_default=True,
    help="on_demand: anybody may list; on_connect: every request needs a token; anonymous: as on_demand, and without "
    "a token on a personal address.",
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


@server.command("set-auth")
@click.argument("server")
@click.argument("auth_mode", metavar="MODE", type=_auth_mode)
@click.option("--org", metavar="SLUG", help="Only if it is this organisation's.")
@_data_dir
@_json
def server_set_auth(**options: Any) -> None:
    """Change who may call SERVER without a token.

    \b
    MODE is
      on_demand   anybody may list the walkthroughs, all else needs a token
      on_connect  every request needs a token
      anonymous   as on_demand; and on a personal address, which the server's
                  page gives out, nothing needs one

    Clients that are asked for a token have people sign in.
    """
    _run("server_set_auth", options)


@server.command("set-oidc")
@click.argument("org")
@click.option("--issuer", metavar="URL", help="The provider's address, as its documentation gives it.")
@click.option("--client-id", metavar="ID", help="What the provider knows Cairn by.")
@click.option("--name", help="What people know the provider by [default: its host].")
@click.option("--only", "is_only", is_flag=True, help="Let nobody sign in by an e-mail code instead.")
@click.option("--secret-stdin", "is_from_stdin", is_flag=True, help="Read the client secret from standard input.")
@click.option(
    "--secret-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Read the client secret from this file. Without either, you are asked for it.",
)
@click.option("--remove", "is_removed", is_flag=True, help="Take the provider away.")
@_data_dir
@_json
def server_set_oidc(**options: Any) -> None:
    """Let people of ORG sign in with its identity provider.

    On all its servers, with OpenID Connect. The provider is tried at once.
    """
    _run("server_set_oidc", options)


@main.command()
@click.argument("key")
@_org
@_servers
@_data_dir
@_json
def assign(**options: Any) -> None:
    """Put the walkthrough KEY on servers."""
    _run("assign", options, "authoring")


@main.command()
@click.argument("key")
@_org
@_these_servers
@_data_dir
@_json
def unassign(**options: Any) -> None:
    """Take the walkthrough KEY from servers.

    Those mid-way still find it and may finish.
    """
    _run("unassign", options, "authoring")


@main.command()
@click.argument("key")
@_org
@_these_servers
@_data_dir
@_json
def enable(**options: Any) -> None:
    """Show the walkthrough KEY on servers again."""
    _run("enable", options, "authoring")


@main.command()
@click.argument("key")
@_org
@_these_servers
@_data_dir
@_json
def disable(**options: Any) -> None:
    """Hide the walkthrough KEY on servers.

    It keeps its place there. Those mid-way still find it and may finish.
    """
    _run("disable", options, "authoring")


@main.command()
@click.argument("server")
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@_org
@_data_dir
@_json
def order(**options: Any) -> None:
    """Put walkthroughs at the top of the list of SERVER.

    In the order given; the others follow in the order they have.
    """
    _run("order", options, "authoring")


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
@_policy
@_dry_run
@_expect
@_force_push
@_servers
@_by
@_data_dir
@_json
def push(**options: Any) -> None:
    """Store or publish a walkthrough's folder.

    It becomes the draft, or with --publish the next version. Nothing is stored unless all is sound. The content of
    the latest version makes no new one.
    """
    _run("push", options, "authoring")


@main.command()
@click.argument("key")
@_folder
@_org
@_version
@_draft
@click.option(
    "--force",
    "is_forced",
    is_flag=True,
    help="Overwrite what DIR holds and no pull could bring back: changes, comments, file names.",
)
@_data_dir
@_json
def pull(**options: Any) -> None:
    """Write the walkthrough KEY into a folder.

    'cairn push' makes the same version of it. Steps that are no longer there are removed from DIR; README.md, images
    and sub-folders stay.
    """
    _run("pull", options, "versions")


@main.command()
@_folder
@_org
@_version
@_draft
@_data_dir
@_json
def diff(**options: Any) -> None:
    """Show what a folder changes.

    Compares DIR with the latest version, or another, or the draft. The exit status is 0 whether or not they differ;
    --json says is_same.
    """
    _run("diff", options, "versions")


@main.command()
@click.argument("key")
@_org
@click.option(
    "--between", nargs=2, type=_number, metavar="N M", help="What version M changed since version N, and no list."
)
@_data_dir
@_json
def versions(**options: Any) -> None:
    """List the versions of the walkthrough KEY.

    With how many people are mid-way on each and have completed it, and what was done to the walkthrough, by whom.
    """
    _run("versions", options, "versions")


@main.command()
@click.argument("key")
@_org
@_policy
@_dry_run
@_by
@_data_dir
@_json
def publish(**options: Any) -> None:
    """Publish the draft of the walkthrough KEY.

    Where there is no draft, an unpublished walkthrough is shown again, under the policy it had.
    """
    _run("publish", options, "authoring")


@main.command()
@click.argument("key")
@click.argument("version", type=_number)
@_org
@_policy
@_dry_run
@_expect
@_force_push
@_by
@_data_dir
@_json
def rollback(**options: Any) -> None:
    """Publish an older VERSION's content again.

    It becomes the next version of the walkthrough KEY.
    """
    _run("rollback", options, "authoring")


@main.command()
@click.argument("key")
@_org
@_by
@_data_dir
@_json
def unpublish(**options: Any) -> None:
    """Hide the walkthrough KEY everywhere.

    Those mid-way still find it and may finish. 'cairn publish' shows it again.
    """
    _run("unpublish", options, "authoring")


@main.command()
@click.argument("key")
@click.argument("version", type=_number)
@_org
@_by
@_data_dir
@_json
def withdraw(**options: Any) -> None:
    """End an older VERSION of KEY, for ever.

    Those mid-way on it begin again on the latest version.
    """
    _run("withdraw", options, "authoring")


@main.command()
@click.argument("key")
@_org
@_by
@_data_dir
@_json
def archive(**options: Any) -> None:
    """Hide the walkthrough KEY until it is restored.

    It cannot be published meanwhile. Those mid-way still find it and may finish.
    """
    _run("archive", options, "authoring")


@main.command()
@click.argument("key")
@_org
@_by
@_data_dir
@_json
def restore(**options: Any) -> None:
    """Take the walkthrough KEY from the archive."""
    _run("restore", options, "authoring")


@main.command()
@click.argument("key")
@_org
@_by
@_data_dir
@_json
def discard(**options: Any) -> None:
    """Take the draft of KEY back to the latest version."""
    _run("discard", options, "authoring")


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


@user.command("list")
@click.argument("org")
@click.option("--server", metavar="SLUG", help="Only those who have been on this server, counting what they did there.")
@click.option("--after", metavar="WHO", help="Those behind this one: the next page.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many.")
@_data_dir
@_json
def user_list(**options: Any) -> None:
    """List the people of ORG.

    By e-mail address, then visitors, with how many walkthroughs they have begun and completed.
    """
    _run("user_list", options, "people")


@user.command("show")
@click.argument("org")
@_who
@_data_dir
@_json
def user_show(**options: Any) -> None:
    """Show who somebody of ORG is, and where they stand.

    WHO is an e-mail address or an id.
    """
    _run("user_show", options, "people")


@user.command("export")
@click.argument("org")
@_who
@click.option(
    "-o", "--output", "file", metavar="FILE", type=click.Path(path_type=Path), help="Write it to this new file."
)
@_data_dir
@_json
def user_export(**options: Any) -> None:
    """Hand over all that is stored about somebody.

    As one JSON document, with every call that they made. WHO is an e-mail address or an id.
    """
    _run("user_export", options, "people")


@user.command("erase")
@click.argument("org")
@_who
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
@_data_dir
@_json
def user_erase(**options: Any) -> None:
    """Erase somebody of ORG, for ever.

    With their progress and all that lets them in. That calls were made stays in the log, without who made them and
    what they sent. Erase again what was interrupted. WHO is an e-mail address or an id.
    """
    _run("user_erase", options, "people")


@token.command("create")
@_one_server
@click.option("--email", required=True, help="Whose token it is. The address counts as verified.")
@_data_dir
@_json
def token_create(**options: Any) -> None:
    """Create a token. It is printed alone on the last line, and cannot be shown again."""
    _run("token_create", options, "people")


@token.command("list")
@click.option("--server", metavar="SLUG", help="Of this server.")
@click.option("--org", metavar="SLUG", help="Of all servers of this organisation.")
@click.option("--user", metavar="WHO", help="Only this person's: an e-mail address or an id.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many.")
@_data_dir
@_json
def token_list(**options: Any) -> None:
    """List what is good at present, the newest first.

    Tokens that were created here, and grants: what people let their clients do when they signed in.
    """
    _run("token_list", options, "people")


@token.command("revoke")
@_one_server
@click.option("--email", help="End every token and grant that this person has on the server.")
@click.option("--token", metavar="TOKEN", help="End this one; '-' reads it from standard input.")
@click.option("--grant", metavar="ID", help="End what a person let a client do.")
@click.option("--client", metavar="NAME", help="End everybody's grants to this client.")
@_data_dir
@_json
def token_revoke(**options: Any) -> None:
    """End tokens, at once."""
    _run("token_revoke", options, "people")


if __name__ == "__main__":
    main()
