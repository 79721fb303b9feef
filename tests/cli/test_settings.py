"""Every variable of `entrypoints/settings.py` has its effect, and an empty one counts as unset."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import asyncpg
import httpx2
import pytest
from sqlalchemy import make_url

from domain.errors import InvalidValue
from entrypoints.settings import Settings
from tests.cli.conftest import Nursery
from tests.processes import Serving, serving

VARIABLES = [f"CAIRN_{field.name.upper()}" for field in fields(Settings)]


@pytest.mark.promise("settings.database-url")
def test_every_setting_is_taken_from_its_variable_and_handed_to_a_worker_as_it_is() -> None:
    given = {
        "CAIRN_DATA_DIR": "somewhere/else",
        "CAIRN_DATABASE_URL": "postgresql://service@db/cairn",
        "CAIRN_OWNER_DATABASE_URL": "postgres://owner@db/cairn",
        "CAIRN_BASE_DOMAIN": "example.com",
        "CAIRN_DEFAULT_SERVER": "acme",
        "CAIRN_ALLOWED_ORIGINS": "https://app.example.com, vscode-webview://0a1b",
        "CAIRN_TRUSTED_PROXIES": "10.0.0.0/8, 192.0.2.7",
        "CAIRN_SMTP_URL": "smtps://cairn:secret@mail.example.com",
        "CAIRN_MAIL_FROM": "guides@example.com",
        "CAIRN_RATE_LIMIT_URL": "redis://redis.example.com/0",
        "CAIRN_LIMITS": "calls_per_user=1000/60 calls_per_network=off",
        "CAIRN_METRICS_ADDRESS": "127.0.0.1:9464",
        "CAIRN_CLIENT_DOCUMENTS": "off",
    }
    assert sorted(given) == sorted(VARIABLES)
    settings = Settings.from_environment(given)
    others = list(given.values())[1:]
    assert settings == Settings(Path("somewhere/else"), *others)
    assert settings.environment() == given
    assert Settings.from_environment(settings.environment()) == settings


def test_an_empty_variable_counts_as_unset() -> None:
    assert Settings.from_environment(dict.fromkeys(VARIABLES, "")) == Settings.from_environment({}) == Settings()
    assert Settings.from_environment(Settings().environment()) == Settings()


def test_origins_are_told_apart_by_blanks_and_commas() -> None:
    for written in ("https://a.example,HTTPS://B.example:8443", " https://a.example\n\t, ,https://b.example:8443 ,"):
        settings = Settings.from_environment({"CAIRN_ALLOWED_ORIGINS": written})
        assert settings.origins() == {"https://a.example", "https://b.example:8443"}
    assert Settings.from_environment({"CAIRN_ALLOWED_ORIGINS": "*"}).origins() == {"*"}
    assert Settings().origins() == frozenset()


def test_what_the_command_line_says_wins_over_the_variable() -> None:
    assert Settings.from_environment({"CAIRN_DATA_DIR": "a"}, data_dir=Path("b")).data_dir == Path("b")
    assert Settings.from_environment({"CAIRN_DATA_DIR": "a"}, data_dir=None).data_dir == Path("a")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CAIRN_DATABASE_URL", "mysql://db/cairn"),
        ("CAIRN_DATABASE_URL", "db:5432"),
        ("CAIRN_OWNER_DATABASE_URL", "postgresql://owner@db/cairn"),
        ("CAIRN_DEFAULT_SERVER", "Not A Slug"),
        ("CAIRN_BASE_DOMAIN", "https://example.com"),
        ("CAIRN_BASE_DOMAIN", "exa mple"),
        ("CAIRN_CLIENT_DOCUMENTS", "false"),
        ("CAIRN_TRUSTED_PROXIES", "10.0.0.1/8"),
        ("CAIRN_RATE_LIMIT_URL", "127.0.0.1:6379"),
        ("CAIRN_LIMITS", "calls_per_year=1/1"),
        ("CAIRN_ALLOWED_ORIGINS", "app.example.com"),
        ("CAIRN_ALLOWED_ORIGINS", "https://app.example.com/"),
        ("CAIRN_ALLOWED_ORIGINS", "https://*.example.com"),
        ("CAIRN_ALLOWED_ORIGINS", "https://app.example.com null"),
    ],
)
@pytest.mark.promise("cli.answers")
def test_a_value_that_cannot_be_is_refused_with_the_name_of_its_variable(
    nursery: Nursery, variable: str, value: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidValue, match=variable):
        Settings.from_environment({variable: value})
    assert variable in nursery.run("server", "list", cwd=tmp_path, **{variable: value}).error


# --------------------------------------------------------------------------------- the same, on real commands


def test_the_data_directory_is_the_options_then_the_variables_then_the_one_here(
    nursery: Nursery, data_dir: Path, tmp_path: Path
) -> None:
    for arguments, variables, cwd in (
        (["--data-dir", str(data_dir)], {"CAIRN_DATA_DIR": str(tmp_path)}, tmp_path),
        ([], {"CAIRN_DATA_DIR": str(data_dir)}, tmp_path),
        ([], {"CAIRN_DATA_DIR": ""}, data_dir.parent),
        ([], {}, data_dir.parent),
    ):
        assert nursery.run("server", "list", "--json", *arguments, cwd=cwd, **variables).json == {"servers": []}
        assert not list(tmp_path.iterdir())


@pytest.mark.promise("settings.database-url")
def test_a_database_url_is_used_and_no_embedded_server_is_made(
    nursery: Nursery, make_database: Callable[..., str], tmp_path: Path
) -> None:
    url = make_database(is_empty=True)
    for variables in ({"CAIRN_OWNER_DATABASE_URL": ""}, {}):
        assert nursery.run("migrate", cwd=tmp_path, CAIRN_DATABASE_URL=url, **variables).lines
    assert nursery.run("org", "create", "acme", cwd=tmp_path, CAIRN_DATABASE_URL=url).lines
    assert not list(tmp_path.iterdir())


@pytest.fixture
def login(superuser_url: str) -> Iterator[str]:
    """A login of the server's that owns nothing."""
    name = f"cairn_login_{os.getpid()}"

    async def execute(statement: str) -> None:
        connection = await asyncpg.connect(superuser_url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(execute(f"create role {name} login password 'secret'"))
    yield name
    asyncio.run(execute(f"drop role {name}"))


@pytest.mark.promise("settings.database-url")
def test_the_owner_migrates_and_the_service_works_with_a_login_of_its_own(
    nursery: Nursery, make_database: Callable[..., str], login: str
) -> None:
    owner = make_database(is_empty=True)
    service = make_url(owner).set(username=login, password="secret").render_as_string(hide_password=False)
    urls = {"CAIRN_OWNER_DATABASE_URL": owner, "CAIRN_DATABASE_URL": service}
    assert nursery.run("server", "list", **urls).status == 1
    assert nursery.run("migrate", **urls).lines
    assert nursery.run("org", "create", "acme", **urls).lines
    assert nursery.run("server", "list", "--org", "acme", "--json", **urls).json == {"servers": []}


def status(service: Serving, host: str | None = None) -> int:
    """What a first request to this host is answered with."""
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "list_walkthroughs", "arguments": {}}}
    headers = {"accept": "application/json, text/event-stream", **({"host": host} if host else {})}
    return httpx2.post(service.url, json=body, headers=headers, timeout=20).status_code


def test_base_domain_and_default_server_say_who_answers_where_in_every_worker(
    nursery: Nursery, make_database: Callable[..., str]
) -> None:
    url = make_database()
    settings = {"CAIRN_DATABASE_URL": url, "CAIRN_BASE_DOMAIN": "cairn.example", "CAIRN_DEFAULT_SERVER": "acme-guides"}
    assert nursery.run("org", "create", "acme", **settings).lines
    create = ("server", "create", "--org", "acme", "--slug", "acme-guides", "--json")
    assert nursery.run(*create, **settings).json["hosts"] == ["acme-guides.cairn.example"]
    with serving("serve", "--port", "0", "--workers", "2", **settings) as service:
        assert status(service, "acme-guides.cairn.example") == 200
        assert status(service) == 200
        assert status(service, "acme-guides.localhost") == 421
        assert status(service, "other.cairn.example") == 421


def test_without_a_default_server_nobody_answers_at_the_bare_address(
    nursery: Nursery, make_database: Callable[..., str]
) -> None:
    url = make_database()
    assert nursery.run("org", "create", "acme", CAIRN_DATABASE_URL=url).lines
    assert nursery.run("server", "create", "--org", "acme", "--slug", "acme", CAIRN_DATABASE_URL=url).lines
    empty = {"CAIRN_BASE_DOMAIN": "", "CAIRN_DEFAULT_SERVER": "", "CAIRN_OWNER_DATABASE_URL": ""}
    with serving("serve", "--port", "0", CAIRN_DATABASE_URL=url, **empty) as service:
        assert status(service) == 421
        assert status(service, "acme.localhost") == 200


def test_dev_serves_the_demo_server_at_the_bare_address(tmp_path: Path) -> None:
    settings = {"CAIRN_DATABASE_URL": "", "CAIRN_DATA_DIR": str(tmp_path), "CAIRN_DEFAULT_SERVER": ""}
    with serving("dev", "--port", "0", **settings) as service:
        assert status(service) == status(service, "demo.localhost") == 200


@pytest.mark.promise("cli.answers")
@pytest.mark.parametrize("workers", [1, 2])
def test_mail_settings_that_cannot_be_are_told_before_anything_is_served(
    nursery: Nursery, make_database: Callable[..., str], workers: int
) -> None:
    url = make_database()
    for variable, value in (("CAIRN_SMTP_URL", "mail.example.com:25"), ("CAIRN_MAIL_FROM", "nobody at example")):
        settings = {"CAIRN_DATABASE_URL": url, "CAIRN_SMTP_URL": "smtp://127.0.0.1", variable: value}
        refused = nursery.run("serve", "--port", "0", "--workers", str(workers), **settings)
        assert (refused.status, variable in refused.error) == (1, True)
