"""What the commands of `cairn` do that end. Parameters are the options declared in `main.py`, by name."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from domain.errors import NotFound, OperatorError
from domain.tenancy import AuthMode
from domain.walkthrough import Manuscript
from entrypoints.cli.columns import disarmed
from entrypoints.cli.preview import page
from entrypoints.cli.terminal import say, show
from entrypoints.container import Container, Storage, storage
from entrypoints.settings import Settings

_T = TypeVar("_T")
_STANDARD_INPUT = "-"


def with_storage(data_dir: Path | None, work: Callable[[Storage], Awaitable[_T]], *, may_create: bool = False) -> _T:
    settings = Settings.from_environment(data_dir=data_dir)
    # A connection that Ctrl-C leaves half open is nothing to read about.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    async def awaited(held: Storage) -> _T:
        return await work(held)

    with storage(settings, say, may_create=may_create) as held:
        return asyncio.run(awaited(held))


def with_container(data_dir: Path | None, work: Callable[[Container], Awaitable[_T]]) -> _T:
    async def opened(held: Storage) -> _T:
        await held.check()
        async with held.opened() as container:
            return await work(container)

    return with_storage(data_dir, opened)


def migrate(data_dir: Path | None, as_json: bool) -> None:
    revision = with_storage(data_dir, lambda held: held.migrate(), may_create=True)
    show(as_json, {"revision": revision}, f"The database is at schema {revision}.")


# ------------------------------------------------------------------------------------------------- tenancy


def org_create(slug: str, name: str | None, data_dir: Path | None, as_json: bool) -> None:
    id = with_container(data_dir, lambda container: container.tenancy().create_organization(slug, name))
    show(as_json, {"id": id, "slug": slug}, f"Created organisation {slug}.")


def server_create(
    org: str, slug: str, auth_mode: str, domain: str | None, name: str | None, data_dir: Path | None, as_json: bool
) -> None:
    base_domain = Settings.from_environment().base_domain
    server = with_container(
        data_dir,
        lambda container: container.tenancy().create_server(
            org, slug, auth_mode=AuthMode(auth_mode), name=name, custom_domain=domain
        ),
    )
    hosts = [f"{slug}.{base_domain}", *([server.custom_domain] if server.custom_domain else [])]
    show(
        as_json,
        {"id": server.key.server_id, "slug": slug, "auth_mode": auth_mode, "hosts": hosts},
        f"Created server {slug}: it answers at {' and '.join(hosts)}.",
    )


def server_list(org: str | None, data_dir: Path | None, as_json: bool) -> None:
    listings = with_container(data_dir, lambda container: container.tenancy().servers(org))
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
    show(as_json, {"servers": rows}, *(table if rows else ["There are no servers yet: 'cairn server create'."]))


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [tuple(map(str, row)) for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def token_create(server: str, email: str, data_dir: Path | None, as_json: bool) -> None:
    async def create(container: Container) -> str:
        key = (await container.tenancy().server(server)).key
        return await container.identity().create_token(key, email)

    token = with_container(data_dir, create)
    show(as_json, {"token": token}, f"A token of {email} on {server}; it is not shown again:", token)


def token_revoke(server: str, email: str | None, token: str | None, data_dir: Path | None, as_json: bool) -> None:
    if (email is None) == (token is None):
        raise click.UsageError("Give either --email or --token.")
    secret = sys.stdin.buffer.readline().decode(errors="replace").strip() if token == _STANDARD_INPUT else token

    async def revoke(container: Container) -> int:
        key = (await container.tenancy().server(server)).key
        if email is not None:
            return await container.identity().revoke_all_of(key, email)
        return await container.identity().revoke(key, secret or "")

    revoked = with_container(data_dir, revoke)
    if not revoked:
        raise OperatorError(f"nothing to revoke: there is no such token on {server}")
    show(as_json, {"revoked": revoked}, f"Revoked {revoked} token{'s' if revoked > 1 else ''} on {server}.")


# ----------------------------------------------------------------------------------------------- authoring


def manuscript_in(folder: Path) -> Manuscript:
    # A finding never names a path of this machine; whoever mistyped one wants to see it.
    if not folder.is_dir():
        raise NotFound(f"{folder} is no folder: name the one that holds the walkthrough.yaml")
    manuscript: Manuscript = Container.read_folder()(folder)
    return manuscript


def to_publish(*words: object, latest: int) -> str:
    """The command line that publishes just what was shown: not where somebody else has published since."""
    return disarmed(f"To publish: {shlex.join(['cairn', *map(str, words), '--expect', str(latest)])}")


def given(option: str, value: object) -> Sequence[object]:
    """An option as it stands in a command line, where it is given."""
    return [] if value is None else [option, value]


def lint(folder: Path, as_json: bool) -> None:
    manuscript = manuscript_in(folder)
    steps = len(manuscript.steps)
    show(
        as_json,
        {"findings": [], "key": manuscript.key, "steps": steps},
        f"{manuscript.key}: {steps} step{'s' if steps > 1 else ''}, nothing wrong.",
    )


def preview(folder: Path, as_json: bool) -> None:
    manuscript = manuscript_in(folder)
    html = page(manuscript, Container.html_of())
    show(as_json, {"key": manuscript.key, "html": html}, html)


def schema(subject: str, as_json: bool) -> None:
    printed = Container.content_schemas()[subject]
    show(as_json, printed, json.dumps(printed, indent=2, ensure_ascii=False))
