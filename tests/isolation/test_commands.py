"""Every command of `cairn` that works for one organisation, given what is another's."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from entrypoints.cli.main import main
from tests.cli.conftest import write_walkthrough
from tests.isolation.tenants import OF_A_SERVER, Names
from tests.isolation.walk import Walk


@dataclass
class Terminal:
    """Where commands are typed. `folder` is written anew for each of them."""

    database_url: str
    folder: Path

    async def type(self, *arguments: str) -> str:
        """A command's exit status, and what it printed."""
        environment = {"CAIRN_DATABASE_URL": self.database_url}
        outcome = await asyncio.to_thread(CliRunner(env=environment).invoke, main, arguments, prog_name="cairn")
        return f"{outcome.exit_code}\n{outcome.output}"

    async def pull(self, n: Names) -> str:
        shutil.rmtree(self.folder, ignore_errors=True)
        return await self.type("pull", n.key, str(self.folder), "--org", n.organization)

    async def push(self, n: Names, *options: str) -> str:
        shutil.rmtree(self.folder, ignore_errors=True)
        write_walkthrough(self.folder, "one", "two", key="fresh")
        return await self.type("push", str(self.folder), "--org", n.organization, "--by", "author", *options)

    async def diff(self, n: Names) -> str:
        shutil.rmtree(self.folder, ignore_errors=True)
        write_walkthrough(self.folder, "one", "two", key=n.key)
        return await self.type("diff", str(self.folder), "--org", n.organization)

    async def restore(self, n: Names) -> str:
        await self.type("archive", n.key, "--org", n.organization)
        return await self.type("restore", n.key, "--org", n.organization)


@pytest.fixture
def terminal(owner_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    # Commands run in threads here, beside the loop of the walk; only a main thread takes signals.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return Terminal(owner_url, tmp_path / "folder")


def _by_key(*command: str) -> Callable[[Terminal, Names], Awaitable[str]]:
    return lambda at, n: at.type(command[0], n.key, *command[1:], "--org", n.organization)


def _on_server(command: str) -> Callable[[Terminal, Names], Awaitable[str]]:
    return lambda at, n: at.type(command, n.key, "--org", n.organization, "--server", n.slug)


COMMANDS: Mapping[str, Sequence[Callable[[Terminal, Names], Awaitable[str]]]] = {
    "server list": [lambda at, n: at.type("server", "list", "--org", n.organization)],
    "server set-auth": [
        lambda at, n: at.type("server", "set-auth", n.slug, "on_connect", "--org", n.organization),
    ],
    "server set-oidc": [lambda at, n: at.type("server", "set-oidc", n.organization, "--remove")],
    "assign": [_on_server("assign")],
    "unassign": [_on_server("unassign")],
    "enable": [_on_server("enable")],
    "disable": [_on_server("disable")],
    "order": [lambda at, n: at.type("order", n.slug, n.key, "--org", n.organization)],
    "push": [lambda at, n: at.push(n, "--server", n.slug)],
    "pull": [Terminal.pull],
    "diff": [Terminal.diff],
    "versions": [_by_key("versions")],
    "publish": [_by_key("publish", "--by", "author"), _by_key("publish", "--dry-run")],
    "rollback": [_by_key("rollback", "1", "--force")],
    "unpublish": [_by_key("unpublish")],
    "withdraw": [_by_key("withdraw", "1")],
    "archive": [_by_key("archive")],
    "restore": [Terminal.restore],
    "discard": [_by_key("discard")],
    "insight": [_by_key("insight"), _on_server("insight")],
    "user list": [
        lambda at, n: at.type("user", "list", n.organization),
        lambda at, n: at.type("user", "list", n.organization, "--server", n.slug),
    ],
    "user show": [
        lambda at, n: at.type("user", "show", n.organization, n.email),
        lambda at, n: at.type("user", "show", n.organization, n.visitor_id),
    ],
    "user export": [lambda at, n: at.type("user", "export", n.organization, n.user_id)],
    "user erase": [lambda at, n: at.type("user", "erase", n.organization, n.email, "--yes")],
    "token list": [
        lambda at, n: at.type("token", "list", "--org", n.organization, "--server", n.slug, "--user", n.email),
    ],
}
# These take no organisation: the server says whose it is, so that it is one's own here.
AT_A_SERVER: Mapping[str, Sequence[Callable[[Terminal, str, Names], Awaitable[str]]]] = {
    "token revoke": [
        lambda at, server, n: at.type("token", "revoke", "--server", server, "--email", n.email),
        lambda at, server, n: at.type("token", "revoke", "--server", server, "--token", n.token),
        lambda at, server, n: at.type("token", "revoke", "--server", server, "--grant", n.grant_id),
        lambda at, server, n: at.type("token", "revoke", "--server", server, "--client", n.client_name),
    ],
}
LOOK_NOTHING_UP = {
    "org create": "it makes an organisation; slugs are taken for all at once",
    "server create": "it makes a server; slugs and domains are taken for all at once",
    "token create": "it makes a token at the server that it names, for whoever that organisation knows by the address",
}

_EACH = [pytest.param(probe, id=f"{name}-{n}") for name, them in COMMANDS.items() for n, probe in enumerate(them)]
_EACH_AT_A_SERVER = [
    pytest.param(probe, id=f"{name}-{n}") for name, them in AT_A_SERVER.items() for n, probe in enumerate(them)
]


def _leaves(command: click.Command, *path: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from _leaves(each, *path, name)
    else:
        yield " ".join(path), command


def test_every_command_that_takes_an_organisation_or_a_server_has_a_probe_or_looks_nothing_up() -> None:
    takes = {
        name
        for name, command in _leaves(main)
        if {"org", "server", "servers", "who"} & {each.name for each in command.params}
    }
    assert COMMANDS.keys() | AT_A_SERVER.keys() | LOOK_NOTHING_UP.keys() == takes | {"org create"}


@pytest.mark.promise("tenant.isolation")
@pytest.mark.parametrize("probe", _EACH)
async def test_what_is_another_organisations_is_refused_like_what_is_not_there(
    terminal: Terminal, walk: Walk, probe: Callable[[Terminal, Names], Awaitable[str]]
) -> None:
    answers = []

    async def typed(names: Names) -> str:
        answers.append(await probe(terminal, names))
        return answers[-1]

    # An operator works for all organisations: a server is looked up by its slug, and then refused.
    await walk.probe(typed, of_a_server=frozenset(), statements=False)
    assert answers[0].startswith("0\n")


@pytest.mark.promise("tenant.isolation")
@pytest.mark.parametrize("probe", _EACH_AT_A_SERVER)
async def test_what_was_given_out_at_another_server_is_refused_like_what_was_never_given_out(
    terminal: Terminal, walk: Walk, probe: Callable[[Terminal, str, Names], Awaitable[str]]
) -> None:
    await walk.probe(lambda n: probe(terminal, walk.home.slug, n), of_a_server=OF_A_SERVER | {"client_name"})
