"""What each command of `cairn` does. Parameters are the options declared in `main.py`, by name."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from domain.errors import ContentRejected, InvalidValue, NotFound, OperatorError, TemporarilyUnavailable
from domain.tenancy import AuthMode
from domain.walkthrough import Manuscript, PublishPolicy
from entrypoints.cli.demo import DEMO, connection_lines, prepare_demo
from entrypoints.cli.serving import listening, serve_until_stopped
from entrypoints.container import Container, Storage, storage
from entrypoints.mcp.schema import input_schema, output_schema
from entrypoints.mcp.tools import TOOLS
from entrypoints.settings import Settings

_T = TypeVar("_T")
_STANDARD_INPUT = "-"


def run(command: Callable[..., None], options: dict[str, Any]) -> None:
    """Runs a command; what an operator can mend is told in one line, with exit status 1."""
    # Whatever ends a command lets it give back its share in the embedded server.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _refuse_what_is_no_text(options)
        command(**options)
    except ContentRejected as error:
        if options["as_json"]:
            findings = [{"file": f.file, "line": f.line, "rule": f.rule, "remedy": f.remedy} for f in error.findings]
            click.echo(json.dumps({"findings": findings}, ensure_ascii=False))
            raise SystemExit(1) from error
        for finding in error.findings:
            click.echo(finding, err=True)
        _fail(str(error))
    except OperatorError as error:
        _fail(str(error))
    except TemporarilyUnavailable as error:
        remedy = "start it, or correct CAIRN_DATABASE_URL" if os.environ.get("CAIRN_DATABASE_URL") else "try again"
        _fail(f"the database does not answer ({_cause(error)}): {remedy}")


def _refuse_what_is_no_text(options: dict[str, Any]) -> None:
    """Arguments are bytes: those that are no text come as lone surrogates, which no database takes.

    Raises:
        InvalidValue: with the name of the first.
    """
    for name, value in options.items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and any("\ud800" <= letter <= "\udfff" for letter in text):
                option = name.replace("_", "-")
                raise InvalidValue(f"{option} {text!a} cannot be stored: write it in UTF-8")


def _fail(problem: str) -> None:
    click.echo(f"{click.style('error', fg='red')}: {problem}", err=True)
    raise SystemExit(1)


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    return " ".join(str(cause).split())[:200] or type(cause).__name__


def _say(message: str) -> None:
    click.echo(message, err=True)


def _print(as_json: bool, result: Any, *lines: str) -> None:
    """The result of a command: for a program, or for a person."""
    for line in [json.dumps(result, ensure_ascii=False)] if as_json else lines:
        click.echo(line)


def _with_storage(data_dir: Path | None, work: Callable[[Storage], Awaitable[_T]], *, may_create: bool = False) -> _T:
    settings = Settings.from_environment(data_dir=data_dir)
    # A connection that Ctrl-C leaves half open is nothing to read about.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    async def awaited(held: Storage) -> _T:
        return await work(held)

    with storage(settings, _say, may_create=may_create) as held:
        return asyncio.run(awaited(held))


def _with_container(data_dir: Path | None, work: Callable[[Container], Awaitable[_T]]) -> _T:
    async def opened(held: Storage) -> _T:
        await held.check()
        async with held.opened() as container:
            return await work(container)

    return _with_storage(data_dir, opened)


# ------------------------------------------------------------------------------------------------- running


def dev(data_dir: Path | None, port: int, as_json: bool) -> None:
    settings = Settings.from_environment(
        data_dir=data_dir, default_server=os.environ.get("CAIRN_DEFAULT_SERVER") or DEMO
    )
    if settings.database_url is not None:
        raise InvalidValue("cairn dev makes a database of its own: unset CAIRN_DATABASE_URL, or use 'cairn serve'")
    # First, so that a port in use is told before a database is made.
    with listening("127.0.0.1", port) as listener, storage(settings, _say, may_create=True) as held:
        token = asyncio.run(prepare_demo(held, settings))
        url = f"{listener.address}/mcp"
        lines = connection_lines(url, token)
        serve_until_stopped(
            held, settings, listener, workers=1, on_ready=lambda: _print(as_json, {"url": url, "token": token}, *lines)
        )


def serve(data_dir: Path | None, host: str, port: int, workers: int, as_json: bool) -> None:
    settings = Settings.from_environment(data_dir=data_dir)
    with listening(host, port) as listener, storage(settings, _say) as held:
        asyncio.run(held.check())
        url = f"{listener.address}/mcp"
        said = f"Cairn serves at {url} (stop it with Ctrl-C)"
        serve_until_stopped(
            held, settings, listener, workers=workers, on_ready=lambda: _print(as_json, {"url": url}, said)
        )


def migrate(data_dir: Path | None, as_json: bool) -> None:
    revision = _with_storage(data_dir, lambda held: held.migrate(), may_create=True)
    _print(as_json, {"revision": revision}, f"The database is at schema {revision}.")


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
    _print(as_json, {"tools": reference}, *(line for each in reference for line in _described(each)))


def _described(tool: dict[str, Any]) -> list[str]:
    """A tool's part of the reference, in Markdown."""
    schema = tool["input_schema"]
    lines = [f"## {tool['name']}", "", tool["description"], ""]
    lines.append("Read-only. " if tool["read_only"] else "Writes. ")
    lines[-1] += "Open without a token where the auth mode is on_demand." if tool["open"] else "Needs a token."
    for name, argument in schema["properties"].items():
        required = (
            "required" if name in schema.get("required", []) else f"default {json.dumps(argument.get('default'))}"
        )
        kind = " | ".join(map(json.dumps, argument["enum"])) if "enum" in argument else argument["type"]
        lines.append(f"- `{name}` ({kind}, {required}): {argument.get('description', '')}")
    return [*lines, ""]


# ------------------------------------------------------------------------------------------------- tenancy


def org_create(slug: str, name: str | None, data_dir: Path | None, as_json: bool) -> None:
    id = _with_container(data_dir, lambda container: container.tenancy().create_organization(slug, name))
    _print(as_json, {"id": id, "slug": slug}, f"Created organisation {slug}.")


def server_create(
    org: str, slug: str, auth_mode: str, domain: str | None, name: str | None, data_dir: Path | None, as_json: bool
) -> None:
    base_domain = Settings.from_environment().base_domain
    server = _with_container(
        data_dir,
        lambda container: container.tenancy().create_server(
            org, slug, auth_mode=AuthMode(auth_mode), name=name, custom_domain=domain
        ),
    )
    hosts = [f"{slug}.{base_domain}", *([server.custom_domain] if server.custom_domain else [])]
    _print(
        as_json,
        {"id": server.key.server_id, "slug": slug, "auth_mode": auth_mode, "hosts": hosts},
        f"Created server {slug}: it answers at {' and '.join(hosts)}.",
    )


def server_list(org: str | None, data_dir: Path | None, as_json: bool) -> None:
    listings = _with_container(data_dir, lambda container: container.tenancy().servers(org))
    rows = [
        {
            "organization": each.organization_slug,
            "slug": each.server.slug,
            "name": each.server.name,
            "auth_mode": each.server.auth_mode.value,
            "custom_domain": each.server.custom_domain,
            "walkthroughs": each.assigned,
        }
        for each in listings
    ]
    table = _table(
        ("ORGANISATION", "SERVER", "AUTH MODE", "WALKTHROUGHS", "CUSTOM DOMAIN"),
        [
            (row["organization"], row["slug"], row["auth_mode"], row["walkthroughs"], row["custom_domain"] or "")
            for row in rows
        ],
    )
    _print(as_json, {"servers": rows}, *(table if rows else ["There are no servers yet: 'cairn server create'."]))


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [tuple(map(str, row)) for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def token_create(server: str, email: str, data_dir: Path | None, as_json: bool) -> None:
    async def create(container: Container) -> str:
        key = (await container.tenancy().server(server)).key
        return await container.identity().create_token(key, email)

    token = _with_container(data_dir, create)
    _print(as_json, {"token": token}, f"A token of {email} on {server}; it is not shown again:", token)


def token_revoke(server: str, email: str | None, token: str | None, data_dir: Path | None, as_json: bool) -> None:
    if (email is None) == (token is None):
        raise click.UsageError("Give either --email or --token.")
    secret = sys.stdin.buffer.readline().decode(errors="replace").strip() if token == _STANDARD_INPUT else token

    async def revoke(container: Container) -> int:
        key = (await container.tenancy().server(server)).key
        return await container.identity().revoke(key, token=secret, email=email)

    revoked = _with_container(data_dir, revoke)
    if not revoked:
        raise OperatorError(f"nothing to revoke: there is no such token on {server}")
    _print(as_json, {"revoked": revoked}, f"Revoked {revoked} token{'s' if revoked > 1 else ''} on {server}.")


# ----------------------------------------------------------------------------------------------- authoring


def _manuscript(folder: Path) -> Manuscript:
    # A finding never names a path of this machine; whoever mistyped one wants to see it.
    if not folder.is_dir():
        raise NotFound(f"{folder} is no folder: name the one that holds the walkthrough.yaml")
    manuscript: Manuscript = Container.read_folder()(folder)
    return manuscript


def lint(folder: Path, as_json: bool) -> None:
    manuscript = _manuscript(folder)
    steps = len(manuscript.steps)
    _print(
        as_json,
        {"findings": [], "key": manuscript.key, "steps": steps},
        f"{manuscript.key}: {steps} step{'s' if steps > 1 else ''}, nothing wrong.",
    )


def push(folder: Path, org: str, publish: bool, servers: Sequence[str], data_dir: Path | None, as_json: bool) -> None:
    placements = [_placement(each) for each in servers]
    manuscript = _manuscript(folder)
    stored = _with_container(
        data_dir,
        lambda container: container.authoring().push(
            org, manuscript, publish=PublishPolicy.KEEP if publish else None, servers=placements
        ),
    )
    if stored.is_unchanged:
        sentence = f"{stored.key} is unchanged: version {stored.version} has this content."
    elif stored.is_published:
        sentence = f"Published {stored.key} as version {stored.version}."
    else:
        sentence = f"Stored {stored.key} as a draft of version {stored.version}; --publish publishes it."
    result = {
        "key": stored.key,
        "version": stored.version,
        "published": stored.is_published,
        "unchanged": stored.is_unchanged,
        "servers": [slug for slug, _ in placements],
    }
    _print(as_json, result, sentence)


def assign(key: str, org: str, servers: Sequence[str], data_dir: Path | None, as_json: bool) -> None:
    if not servers:
        raise click.UsageError("Name at least one server with --server SLUG[:ORDER].")
    placements = [_placement(each) for each in servers]
    assigned = _with_container(data_dir, lambda container: container.authoring().assign(org, key, placements))
    rows = [
        {"server": slug, "order": each.display_order, "enabled": each.is_enabled}
        for (slug, _), each in zip(placements, assigned, strict=True)
    ]
    _print(
        as_json, {"key": key, "servers": rows}, *(f"{key} is on {row['server']}, at {row['order']}." for row in rows)
    )


def _placement(text: str) -> tuple[str, int | None]:
    slug, colon, order = text.partition(":")
    if not colon:
        return slug, None
    if not (order.isascii() and order.isdigit() and len(order) <= 6):
        raise InvalidValue(f"{text!r}: the place after the colon is a whole number of up to 6 digits, as in {slug}:1")
    return slug, int(order)
