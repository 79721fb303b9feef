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
from urllib.parse import urlsplit

import click

from domain.errors import InvalidValue, NotFound
from domain.sign_in import OidcProvider
from domain.tenancy import AuthMode, Server
from domain.walkthrough import Manuscript
from entrypoints.cli.columns import disarmed, harmless
from entrypoints.cli.preview import page
from entrypoints.cli.terminal import MIGRATION_LEFT, say, show
from entrypoints.container import Storage, storage
from entrypoints.settings import Settings
from entrypoints.workshop import Workshop, opened

_T = TypeVar("_T")


def with_storage(data_dir: Path | None, work: Callable[[Storage], Awaitable[_T]], *, may_create: bool = False) -> _T:
    settings = Settings.from_environment(data_dir=data_dir)
    # A connection that Ctrl-C leaves half open is nothing to read about.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    async def awaited(held: Storage) -> _T:
        return await work(held)

    with storage(settings, say, may_create=may_create) as held:
        return asyncio.run(awaited(held))


def with_container(data_dir: Path | None, work: Callable[[Workshop], Awaitable[_T]]) -> _T:
    async def checked(held: Storage) -> _T:
        await held.check()
        async with opened(held) as container:
            return await work(container)

    return with_storage(data_dir, checked)


def migrate(finish: bool, data_dir: Path | None, as_json: bool) -> None:
    revision, is_complete = with_storage(data_dir, lambda held: held.migrate(finish=finish), may_create=True)
    said = [f"The database is at schema {revision}."]
    if not is_complete:
        said.append(MIGRATION_LEFT)
    show(as_json, {"revision": revision, "is_complete": is_complete}, *said)


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
            "provider": _provider_result(each.provider),
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
    providers = {each.organization_slug: each.provider for each in listings if each.provider}
    if providers:
        table.append("")
    table += [f"People of {slug} sign in {_by_provider(provider)}." for slug, provider in providers.items()]
    show(as_json, {"servers": rows}, *(table if rows else ["There are no servers yet: 'cairn server create'."]))


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [tuple(map(str, row)) for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def server_set_auth(server: str, auth_mode: str, org: str | None, data_dir: Path | None, as_json: bool) -> None:
    mode = AuthMode(auth_mode)
    former = with_container(data_dir, lambda container: container.tenancy().set_auth_mode(server, mode, org))
    if former is mode:
        lines = [f"{server} is {mode.value} already.", _WHO_MAY[mode]]
    else:
        lines = [f"{server} is {mode.value} within 2 seconds, and was {former.value}.", _WHO_MAY[mode]]
        if former is AuthMode.ANONYMOUS:
            lines.append("Personal addresses are no longer answered; what was done there is kept.")
    show(as_json, {"slug": server, "auth_mode": mode.value, "former_auth_mode": former.value}, *lines)


_WHO_MAY = {
    AuthMode.ON_CONNECT: "Every request needs a token, so that people sign in as they connect.",
    AuthMode.ON_DEMAND: "Anybody may list the walkthroughs; people sign in as they take one.",
    AuthMode.ANONYMOUS: "As on_demand; nobody signs in at a personal address from the server's page.",
}


def server_set_oidc(
    org: str,
    issuer: str | None,
    client_id: str | None,
    name: str | None,
    is_only: bool,
    is_from_stdin: bool,
    secret_file: Path | None,
    is_removed: bool,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    if is_removed:
        if any((issuer, client_id, name, is_only, is_from_stdin, secret_file)):
            raise click.UsageError("--remove goes with no other option.")
        with_container(data_dir, lambda container: container.oidc_providers().remove(org))
        show(as_json, {"organization": org, "provider": None}, f"People of {org} sign in by e-mail codes alone.")
        return
    if issuer is None or client_id is None:
        raise click.UsageError("Give --issuer and --client-id, or --remove.")
    if is_from_stdin and secret_file is not None:
        raise click.UsageError("Give either --secret-stdin or --secret-file.")
    provider = OidcProvider(
        issuer=issuer,
        client_id=client_id,
        client_secret=_secret(is_from_stdin, secret_file),
        name=name or urlsplit(issuer).hostname or issuer,
        offers_email_codes=not is_only,
    )
    base_domain = Settings.from_environment().base_domain
    servers = with_container(data_dir, lambda container: container.oidc_providers().set(org, provider))
    redirects = [uri for server in servers for uri in _redirects(server, base_domain)]
    result = {"organization": org, "provider": _provider_result(provider), "redirect_uris": redirects}
    lines = [f"People of {org} sign in {_by_provider(provider)}."]
    if redirects:
        lines += ["Register at the provider where it sends them back to:", *(f"  {uri}" for uri in redirects)]
    show(as_json, result, *lines)


def _secret(is_from_stdin: bool, file: Path | None) -> str:
    """The client secret, which is never an argument: those can be read by everybody on the machine.

    Raises:
        InvalidValue: where it cannot be had.
    """
    try:
        if file is not None:
            return file.read_text().strip()
        if is_from_stdin:
            return sys.stdin.buffer.readline().decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValue("the client secret cannot be read: name a file with one line of text") from error
    if not sys.stdin.isatty():
        raise click.UsageError("There is nobody to ask for the client secret: give --secret-stdin or --secret-file.")
    asked: str = click.prompt("Client secret", hide_input=True, err=True)
    return asked.strip()


def _redirects(server: Server, base_domain: str) -> list[str]:
    if base_domain == "localhost":
        origins = [f"http://{server.slug}.localhost:8000"]  # as `cairn dev` and `cairn serve` answer unless told
    else:
        origins = [f"https://{server.slug}.{base_domain}"]
    if server.custom_domain:
        origins.append(f"https://{server.custom_domain}")
    return [f"{origin}/sign-in/callback" for origin in origins]


def _provider_result(provider: OidcProvider | None) -> dict[str, Any] | None:
    """Without the secret, which nobody is shown."""
    if provider is None:
        return None
    return {
        "name": provider.name,
        "issuer": provider.issuer,
        "client_id": provider.client_id,
        "offers_email_codes": provider.offers_email_codes,
    }


def _by_provider(provider: OidcProvider) -> str:
    others = "or by an e-mail code" if provider.offers_email_codes else "and in no other way"
    return f"with {harmless(provider.name)} ({harmless(provider.issuer)}), {others}"


# ----------------------------------------------------------------------------------------------- authoring


def manuscript_in(folder: Path) -> Manuscript:
    # A finding never names a path of this machine; whoever mistyped one wants to see it.
    if not folder.is_dir():
        raise NotFound(f"{folder} is no folder: name the one that holds the walkthrough.yaml")
    manuscript: Manuscript = Workshop.read_folder()(folder)
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
    html = page(manuscript, Workshop.html_of())
    show(as_json, {"key": manuscript.key, "html": html}, html)


def schema(subject: str, as_json: bool) -> None:
    printed = Workshop.content_schemas()[subject]
    show(as_json, printed, json.dumps(printed, indent=2, ensure_ascii=False))
