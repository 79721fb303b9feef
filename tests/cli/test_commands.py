"""Every command on an embedded data directory, as a person and as a program reads it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import pty
import re
import subprocess
import sys
import termios
from contextlib import suppress
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from adapters.content.schema import SCHEMAS
from adapters.embedded_postgres import EmbeddedPostgres
from entrypoints.mcp.tools import TOOLS
from tests.cli.conftest import Cairn, write_walkthrough
from tests.processes import PROJECT, environment

_numbers = count(1)
TOKEN = re.compile(r"cairn_[A-Za-z0-9_-]{43}")


@pytest.fixture
def org(cairn: Cairn) -> str:
    """An organisation with a server of the same name."""
    slug = f"org-{next(_numbers)}"
    assert cairn("org", "create", slug).lines
    assert cairn("server", "create", "--org", slug, "--slug", slug).lines
    return slug


def fetch(data_dir: Path, sql: str, *arguments: Any) -> list[dict[str, Any]]:
    async def ask() -> list[dict[str, Any]]:
        connection = await asyncpg.connect(EmbeddedPostgres(data_dir).dsn("postgres", "cairn"))
        try:
            return [dict(row) for row in await connection.fetch(sql, *arguments)]
        finally:
            await connection.close()

    return asyncio.run(ask())


def listed(cairn: Cairn, org: str) -> dict[str, Any]:
    (row,) = cairn("server", "list", "--org", org, "--json").json["servers"]
    return dict(row)


# --------------------------------------------------------------------------------------- organisations, servers


def test_a_database_without_servers_says_how_to_make_one(cairn: Cairn) -> None:
    assert cairn("server", "list", "--json").json == {"servers": []}
    assert cairn("server", "list").lines == ["There are no servers yet: 'cairn server create'."]


@pytest.mark.promise("cli.answers")
def test_an_organisation_is_created_with_and_without_a_name(cairn: Cairn, data_dir: Path) -> None:
    assert cairn("org", "create", "plain").lines == ["Created organisation plain."]
    made = cairn("org", "create", "named", "--name", "Näme & Söhne", "--json").json
    assert made["slug"] == "named"
    assert fetch(data_dir, "select id, name from organizations where slug in ('plain', 'named') order by slug") == [
        {"id": made["id"], "name": "Näme & Söhne"},
        {"id": fetch(data_dir, "select id from organizations where slug = 'plain'")[0]["id"], "name": "plain"},
    ]


@pytest.mark.promise("cli.answers")
def test_a_server_is_created_in_each_mode_and_with_a_domain_of_its_own(cairn: Cairn, org: str) -> None:
    said = cairn("server", "create", "--org", org, "--slug", f"{org}-a", "--auth-mode", "on_connect").lines
    assert said == [f"Created server {org}-a: it answers at {org}-a.localhost."]
    made = cairn(
        *("server", "create", "--org", org, "--slug", f"{org}-b", "--domain", f"Guides.{org}.Example.COM"),
        *("--auth-mode", "on_demand", "--name", "Guides", "--json"),
    ).json
    assert made.pop("id").startswith("srv_")
    assert made == {
        "slug": f"{org}-b",
        "auth_mode": "on_demand",
        "hosts": [f"{org}-b.localhost", f"guides.{org}.example.com"],
    }
    rows = cairn("server", "list", "--org", org, "--json").json["servers"]
    assert {row["slug"]: (row["auth_mode"], row["name"], row["custom_domain"]) for row in rows} == {
        org: ("on_demand", org, None),
        f"{org}-a": ("on_connect", f"{org}-a", None),
        f"{org}-b": ("on_demand", "Guides", f"guides.{org}.example.com"),
    }


def test_servers_are_listed_in_a_table_and_of_one_organisation_alone_where_it_is_named(
    cairn: Cairn, org: str, folder: Path
) -> None:
    assert cairn("server", "create", "--org", org, "--slug", f"{org}-long", "--domain", f"{org}.example.com").lines
    assert cairn("push", str(folder), "--org", org, "--publish", "--server", f"{org}-long").lines
    header, first, second = cairn("server", "list", "--org", org).lines
    columns = [header.index(name) for name in ("ORGANISATION", "SERVER", "AUTH MODE", "WALKTHROUGHS", "CUSTOM DOMAIN")]
    cells = [
        [line[a:b].strip() for a, b in zip(columns, [*columns[1:], None], strict=True)] for line in (first, second)
    ]
    assert cells == [[org, org, "on_demand", "0", ""], [org, f"{org}-long", "on_demand", "1", f"{org}.example.com"]]
    assert len(header) <= 80
    everyone = [line.split() for line in cairn("server", "list").lines]
    assert first.split() in everyone
    assert second.split() in everyone
    assert len(everyone) > 3


# ------------------------------------------------------------------------------------------------------- lint


@pytest.mark.promise("cli.lint")
def test_lint_finds_nothing_wrong_with_a_sound_folder(cairn: Cairn, folder: Path) -> None:
    assert cairn("lint", str(folder)).lines == ["tour: 2 steps, nothing wrong."]
    assert cairn("lint", str(folder), "--json").json == {"findings": [], "key": "tour", "steps": 2}
    write_walkthrough(folder, "one")
    assert cairn("lint", ".", cwd=folder).lines == ["tour: 1 step, nothing wrong."]


@pytest.mark.promise("cli.lint")
def test_lint_tells_everything_that_is_wrong_at_once_each_with_file_line_and_remedy(cairn: Cairn, folder: Path) -> None:
    write_walkthrough(folder, "one", "two", "three", type="tutorial")
    (folder / "01-one.md").write_text("---\nminuts: 3\n---\n# One\n\nDo.\n")
    (folder / "03-three.md").write_text("# Three\n\nDo.\n\n::: done-when\nIt is.\n")
    outcome = cairn("lint", str(folder))
    assert (outcome.status, outcome.stdout) == (1, "")
    *findings, error = outcome.stderr.splitlines()
    found = [re.fullmatch(r"([^:]+):(\d+): ([a-z-]+): (.+)", line) for line in findings]
    assert [each and each.groups()[:3] for each in found] == [
        ("01-one.md", "2", "front-matter-unknown"),
        ("03-three.md", "5", "block-unclosed"),
        ("walkthrough.yaml", "5", "field-invalid"),
    ]
    assert error == "error: 3 problems found in 3 files"
    as_json = cairn("lint", str(folder), "--json")
    assert (as_json.status, as_json.stderr) == (1, "")
    rows = json.loads(as_json.stdout)["findings"]
    assert [f"{row['file']}:{row['line']}: {row['rule']}: {row['remedy']}" for row in rows] == findings


@pytest.mark.promise("cli.lint")
def test_lint_needs_no_database(nursery: Any, folder: Path, tmp_path: Path) -> None:
    outcome = nursery.run("lint", str(folder), cwd=tmp_path, CAIRN_DATABASE_URL="postgresql://127.0.0.1:1/none")
    assert outcome.lines == ["tour: 2 steps, nothing wrong."]
    assert not (tmp_path / ".cairn").exists()


def test_lint_at_a_terminal_puts_what_to_do_below_the_place_within_its_width(folder: Path) -> None:
    (folder / "01-one.md").write_text("# One\n\nSee [the next](02-two.md).\n\nClone <repository>.\n")
    (folder / "02-two.md").write_text("# Two\n\nDo.\\n\\nThen.\n")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 60))
    command = [sys.executable, "-m", "entrypoints.cli.main", "lint", str(folder)]
    done = subprocess.run(
        command, cwd=PROJECT, stdin=theirs, stdout=theirs, stderr=theirs, env=environment(), check=False
    )
    os.close(theirs)
    said = b""
    with suppress(OSError):  # so a terminal ends whose other side is closed
        while part := os.read(ours, 65_536):
            said += part
    os.close(ours)
    told = re.sub("\x1b\\[[0-9;]*m", "", said.decode()).replace("\r\n", "\n")
    assert done.returncode == 1
    assert (
        told
        == """\
01-one.md:3  link-dead
    write the whole https:// address instead of '02-two.md':
    other files are not delivered; a file of the user's own
    goes in backticks
01-one.md:5  html-raw
    write this in Markdown: HTML is not shown; a placeholder
    such as `<name>`, or HTML to read, goes in backticks

02-two.md:3  text-escaped-twice
    write what `\\n` stands for: the text was escaped twice;
    if it is meant to be read so, use backticks

error: 3 problems found in 2 files
"""
    )


def test_lint_of_a_single_fault_counts_in_the_singular(cairn: Cairn, folder: Path) -> None:
    (folder / "01-one.md").write_text("# One\n\nClone <repository>.\n")
    assert cairn("lint", str(folder)).stderr.splitlines()[-1] == "error: 1 problem found in 1 file"


# -------------------------------------------------------------------------------------------- preview, schema


def test_preview_is_one_page_that_asks_for_nothing_with_the_authors_blocks_apart(cairn: Cairn, folder: Path) -> None:
    (folder / "01-one.md").write_text(
        "---\nminutes: 1\n---\n# A & *B*\n\n[c](https://example.com) ![d](https://example.com/d.png)\n\n"
        "::: assistant-notes\nAsk `first`.\n:::\n::: done-when\nIt runs.\n:::\n"
    )
    page = "\n".join(cairn("preview", str(folder)).lines)
    assert '<h3 id="step-1-content-a--b">A &amp; <em>B</em></h3>' in page
    assert '<article id="step-1" aria-labelledby="title-1">\n<h2 id="title-1">A &amp; B</h2>' in page
    assert "Step 1 of 2 · one · delivery: explain · 1 minute" in page
    notes = "For the assistant: notes"
    assert f'<aside aria-label="{notes}">\n<h3>{notes}</h3>\n<p>Ask <code>first</code>.</p>\n</aside>' in page
    assert page.count("<aside ") == 2
    # Whatever a browser would fetch or run by itself.
    assert not re.search(r"<(img|script|link|iframe|object|embed)|src=|url\(|@import|\bon[a-z]+=", page)
    (style,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    hash = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">' in page
    assert cairn("preview", str(folder), "--json").json == {"key": "tour", "html": page}


def test_preview_of_a_faulty_folder_says_what_lint_says(cairn: Cairn, folder: Path) -> None:
    (folder / "01-one.md").write_text("# One\n\n<b>\n")
    outcome = cairn("preview", str(folder))
    assert (outcome.status, outcome.stdout, outcome.stderr) == (1, "", cairn("lint", str(folder)).stderr)


@pytest.mark.parametrize("subject", ["walkthrough", "step"])
def test_schema_prints_what_an_editor_can_check_by(cairn: Cairn, subject: str) -> None:
    assert json.loads("\n".join(cairn("schema", subject).lines)) == SCHEMAS[subject]
    assert cairn("schema", subject, "--json").json == SCHEMAS[subject]


# ------------------------------------------------------------------------------------------------------- push


@pytest.mark.promise("cli.push", "cli.answers")
def test_push_stores_a_draft_and_publish_makes_it_the_next_version(cairn: Cairn, org: str, folder: Path) -> None:
    push = ("push", str(folder), "--org", org)
    assert cairn(*push).lines == ["Stored tour as a draft of version 1; --publish publishes it."]
    assert cairn(*push).lines == ["Stored tour as a draft of version 1; --publish publishes it."]
    assert cairn(*push, "--publish").lines == ["Published tour as version 1."]
    assert cairn(*push, "--publish").lines == ["tour is unchanged: version 1 has this content."]
    write_walkthrough(folder, "one", "two", "three")
    draft = {
        "key": "tour",
        "version": 2,
        "published": False,
        "unchanged": False,
        "policy": None,
        "servers": [],
        "hidden_on": [],
    }
    assert cairn(*push, "--json").json == draft
    published = {**draft, "published": True, "policy": "keep"}
    assert cairn(*push, "--publish", "--json").json == published
    assert cairn(*push, "--publish", "--json").json == {**published, "unchanged": True}


@pytest.mark.promise("cli.push")
def test_push_puts_a_walkthrough_on_several_servers_each_at_its_place(
    cairn: Cairn, org: str, data_dir: Path, tmp_path: Path
) -> None:
    assert cairn("server", "create", "--org", org, "--slug", f"{org}-b").lines
    for key, here, there in (("first", f"{org}:2", f"{org}-b:1"), ("second", f"{org}:1", f"{org}-b")):
        folder = write_walkthrough(tmp_path / key, "one", key=key)
        pushed = cairn(
            "push", str(folder), "--org", org, "--publish", "--server", here, "--server", there, "--json"
        ).json
        assert pushed["servers"] == [org, f"{org}-b"]
    rows = fetch(
        data_dir,
        """select s.slug, w.key, m.display_order from mcp_server_walkthroughs m
             join mcp_servers s on (s.organization_id, s.id) = (m.organization_id, m.mcp_server_id)
             join walkthroughs w on (w.organization_id, w.id) = (m.organization_id, m.walkthrough_id)
            where s.slug in ($1, $2) order by s.slug, m.display_order""",
        org,
        f"{org}-b",
    )
    assert [tuple(row.values()) for row in rows] == [
        (org, "second", 1),
        (org, "first", 2),
        (f"{org}-b", "first", 1),
        (f"{org}-b", "second", 2),
    ]


@pytest.mark.promise("cli.push")
def test_push_stores_nothing_when_anything_is_wrong(cairn: Cairn, org: str, data_dir: Path, folder: Path) -> None:
    count_rows = "select count(*) from walkthroughs w join organizations o on o.id = organization_id where o.slug = $1"
    for case in ("finding", "server", "order"):
        write_walkthrough(folder, "one", type="tutorial" if case == "finding" else "course")
        servers = {"finding": [], "server": ["--server", org, "--server", "nowhere"], "order": ["--server", f"{org}:x"]}
        outcome = cairn("push", str(folder), "--org", org, "--publish", *servers[case])
        assert outcome.status == 1, case
        assert fetch(data_dir, count_rows, org) == [{"count": 0}], case


def test_assign_puts_a_walkthrough_on_servers_and_repeating_it_keeps_the_place(
    cairn: Cairn, org: str, folder: Path, tmp_path: Path
) -> None:
    assert cairn("push", str(folder), "--org", org, "--publish").lines
    assert listed(cairn, org)["walkthroughs"] == 0
    assert cairn("assign", "tour", "--org", org, "--server", f"{org}:3").lines == [f"tour is on {org}, at 3."]
    assert listed(cairn, org)["walkthroughs"] == 1
    again = cairn("assign", "tour", "--org", org, "--server", org, "--json").json
    assert again == {"key": "tour", "servers": [{"server": org, "order": 3, "enabled": True}]}
    moved = cairn("assign", "tour", "--org", org, "--server", f"{org}:1", "--json").json
    assert moved["servers"][0]["order"] == 1


# ----------------------------------------------------------------------------------------------------- tokens


@pytest.mark.promise("cli.token")
def test_a_token_is_alone_on_the_last_line_and_only_its_hash_is_stored(cairn: Cairn, org: str, data_dir: Path) -> None:
    *about, token = cairn("token", "create", "--server", org, "--email", "Ada@Example.com").lines
    assert TOKEN.fullmatch(token)
    assert len(about) == 1
    assert token not in about[0]
    rows = fetch(
        data_dir,
        """select t.*, u.email, u.email_verified_at from access_tokens t
             join mcp_servers s on (s.organization_id, s.id) = (t.organization_id, t.mcp_server_id)
             join mcp_server_users u on (u.organization_id, u.id) = (t.organization_id, t.mcp_server_user_id)
            where s.slug = $1""",
        org,
    )
    (row,) = rows
    assert row["token_hash"] == hashlib.sha256(token.encode()).digest()
    assert (row["email"], bool(row["email_verified_at"])) == ("ada@example.com", True)
    assert token not in str(row)
    assert token.encode() not in b"".join(value for value in row.values() if isinstance(value, bytes))


@pytest.mark.promise("cli.token", "cli.answers")
def test_each_token_is_another_one_and_one_alone_can_be_ended(cairn: Cairn, org: str) -> None:
    mail = ("--server", org, "--email", "ada@example.com")
    first, second = (cairn("token", "create", *mail, "--json").json["token"] for _ in range(2))
    assert first != second
    revoke = ("token", "revoke", "--server", org)
    assert cairn(*revoke, "--token", first).lines == [f"Revoked 1 token on {org}."]
    assert "nothing to revoke" in cairn(*revoke, "--token", first).error
    assert cairn(*revoke, "--token", "-", "--json", stdin=f"{second}\n".encode()).json == {"revoked": 1}
    assert "nothing to revoke" in cairn("token", "revoke", *mail).error


@pytest.mark.promise("cli.token")
def test_all_tokens_of_a_person_on_one_server_are_ended_and_no_other(cairn: Cairn, org: str) -> None:
    assert cairn("server", "create", "--org", org, "--slug", f"{org}-b").lines
    for server, person in ((org, "ada"), (org, "ada"), (org, "bob"), (f"{org}-b", "ada")):
        assert cairn("token", "create", "--server", server, "--email", f"{person}@example.com").lines
    assert cairn("token", "revoke", "--server", org, "--email", "ADA@example.com").lines == [
        f"Revoked 2 tokens on {org}."
    ]
    for server, person in ((org, "bob"), (f"{org}-b", "ada")):
        revoked = cairn("token", "revoke", "--server", server, "--email", f"{person}@example.com", "--json").json
        assert revoked == {"revoked": 1}


def test_a_token_from_a_pipe_may_be_anything_and_is_not_shown(cairn: Cairn, org: str) -> None:
    for nonsense in (b"", b"\n", b"\xff\xfe\n", b"no\x00token\n", b"x" * 100_000):
        error = cairn("token", "revoke", "--server", org, "--token", "-", stdin=nonsense).error
        assert "nothing to revoke" in error


# --------------------------------------------------------------------------------------------------- migrate


@pytest.mark.promise("cli.answers")
def test_migrate_may_be_repeated(cairn: Cairn) -> None:
    revision = cairn("migrate", "--json").json["revision"]
    assert cairn("migrate").lines == [f"The database is at schema {revision}."]
    assert cairn("migrate").lines == [f"The database is at schema {revision}."]


@pytest.mark.promise("storage.shared")
def test_a_fresh_data_directory_is_told_to_be_migrated_and_then_works(nursery: Any, tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / ".cairn", durable=False) as embedded:
        assert "'cairn migrate'" in nursery.run("org", "create", "acme", cwd=tmp_path).error
        # A server of somebody's on which Cairn has never been: not even the service's role is there.
        foreign = embedded.dsn("postgres", "postgres")
        assert "'cairn migrate'" in nursery.run("server", "list", CAIRN_DATABASE_URL=foreign).error
        assert nursery.run("migrate", cwd=tmp_path).lines
        assert nursery.run("org", "create", "acme", cwd=tmp_path).lines == ["Created organisation acme."]


# ----------------------------------------------------------------------------------------------------- tools


@pytest.mark.promise("cli.answers")
def test_the_reference_names_every_tool_with_its_arguments_and_needs_no_database(nursery: Any, tmp_path: Path) -> None:
    away = {"cwd": tmp_path, "CAIRN_DATABASE_URL": "postgresql://127.0.0.1:1/none"}
    tools = nursery.run("tools", "--json", **away).json["tools"]
    assert [tool["name"] for tool in tools] == list(TOOLS)
    text = "\n".join(nursery.run("tools", **away).lines)
    for tool in tools:
        assert f"## {tool['name']}\n\n{tool['description']}\n" in text
        for argument, schema in tool["input_schema"]["properties"].items():
            assert re.search(rf"^- `{argument}` \(.+\): {re.escape(schema['description'])}$", text, re.MULTILINE)
