"""`cairn user` and `cairn token`, and who may call a server and sign in there: as an operator reads and decides it."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import stat
import subprocess
import sys
import termios
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import asyncpg
import oidc_provider_mock
import pytest

from adapters.postgres.sign_in import PostgresPeople
from domain.progress import Outcome
from domain.sign_in import IdentityKey
from domain.tenancy import AuthMode, Caller, Millis, UserId
from tests.calls import record, tool_call
from tests.cli.conftest import Act, Cairn
from tests.processes import PROJECT, environment
from tests.worlds import World

OKTA = "https://acme.okta.example"
ADA, WORK, VISITOR = "ada@example.com", "ada@work.example", "usr_visitor"
OnWorld = Callable[[Act], str]
# Turns the colour on, ends the line, and turns the text round.
NASTY = "\x1b[31mEditor\x1b[0m\n\u202eeulc"


def on_owner(url: str, work: Callable[[asyncpg.Connection], Awaitable[Any]]) -> Any:
    async def asked() -> Any:
        connection = await asyncpg.connect(url)
        try:
            return await work(connection)
        finally:
            await connection.close()

    return asyncio.run(asked())


def execute(url: str, *statements: str) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        for statement in statements:
            await connection.execute(statement)

    on_owner(url, work)


def fetch(url: str, sql: str, *arguments: Any) -> list[dict[str, Any]]:
    async def work(connection: asyncpg.Connection) -> list[dict[str, Any]]:
        return [dict(row) for row in await connection.fetch(sql, *arguments)]

    rows: list[dict[str, Any]] = on_owner(url, work)
    return rows


async def people_of_three(world: World, slug: str) -> None:
    """Ada stands at the second of three steps, Bob is through, and a visitor has begun."""
    await world.publish("install", "sign-in", "deploy", organization=slug, servers=(slug,), title="The tour 日本語")
    server = await world.tenancy.server(slug)
    world.clock.time = 1_790_000_000_000  # 2026-09-21
    for email, outcomes in ((ADA, [Outcome.DONE]), ("bob@example.com", [Outcome.DONE] * 3)):
        await take(world, await world.caller(server, email), outcomes)
    organization_id = server.key.organization_id
    await PostgresPeople(world.tokens._database).person(  # type: ignore[attr-defined]
        organization_id, IdentityKey(OKTA, "00u1"), ADA, UserId("usr_unused"), Millis(1_790_000_000_001)
    )


async def take(world: World, caller: Caller, outcomes: list[Outcome], note: str | None = None) -> None:
    lesson = await world.learning.select(caller, "tour", restart=False, to_latest=False)
    for outcome in outcomes:
        handle = str(lesson.progress.handle())
        lesson = await world.learning.next(caller, handle, None, outcome=outcome, note=note)


def grant_to(
    url: str, slug: str, email: str = ADA, *, id: str = "grant_0123456789abcdef", name: str = "Editor"
) -> None:
    """A grant to a client with an access and a refresh token, good until 2033."""
    on_owner(
        url,
        lambda connection: connection.execute(
            f"""
            with granted as (
                insert into oauth_grants (organization_id, id, mcp_server_id, mcp_server_user_id, client_id,
                                          client_name, scope, created_at, good_until)
                select s.organization_id, $3, s.id, u.id, 'client_1', $4, 'walkthroughs', 1790000000000, 2000000000000
                  from mcp_servers s join mcp_server_users u using (organization_id)
                 where s.slug = $1 and u.email = $2
                returning *),
            access as (
                insert into access_tokens (organization_id, token_hash, mcp_server_id, mcp_server_user_id, created_at,
                                           grant_id, expires_at)
                select organization_id, '\\x{os.urandom(32).hex()}', mcp_server_id, mcp_server_user_id, created_at, id,
                       2000000000001 from granted)
            insert into oauth_refresh_tokens (organization_id, token_hash, grant_id, created_at, expires_at)
            select organization_id, '\\x{os.urandom(32).hex()}', id, created_at, 2000000000002 from granted""",
            *(slug, email, id, name),
        ),
    )


# -------------------------------------------------------------------------------------------- list and show


@pytest.mark.promise("people")
def test_people_are_listed_with_what_they_did(on_database: Cairn, on_world: OnWorld) -> None:
    org = on_world(people_of_three)
    assert on_database("user", "list", org).lines == [
        "WHO              FIRST SEEN  LAST SEEN   BEGUN  DONE",
        "ada@example.com  2026-09-21  2026-09-21      1     0",
        "bob@example.com  2026-09-21  2026-09-21      1     1",
    ]
    listed = on_database("user", "list", org, "--json").json
    assert listed["next"] is None
    assert [set(row) for row in listed["people"]] == [
        {"id", "email", "first_seen_at", "last_seen_at", "begun", "completed"}
    ] * 2
    first = on_database("user", "list", org, "--server", org, "--limit", "1").lines
    assert first[2:] == ["", f"And more: cairn user list {org} --server {org} --after ada@example.com"]
    behind = on_database("user", "list", org, "--server", org, "--limit", "1", "--after", ADA, "--json").json
    assert ([row["email"] for row in behind["people"]], behind["next"]) == (["bob@example.com"], None)
    assert on_database("user", "list", org, "--after", "zoe@example.com").lines == ["There is nobody more."]


async def nobody(world: World, slug: str) -> None:
    pass


def test_a_list_of_nobody_says_so(on_database: Cairn, on_world: OnWorld) -> None:
    org = on_world(nobody)
    assert on_database("user", "list", org).lines == [f"There is nobody in {org} yet."]
    assert on_database("token", "list", "--org", org).lines == ["There are no tokens."]
    assert "there is no organisation" in on_database("user", "list", "nowhere").error


@pytest.mark.promise("people")
def test_a_person_is_shown_with_where_they_stand_and_what_lets_them_in(
    on_database: Cairn, on_world: OnWorld, owner_url: str
) -> None:
    org = on_world(people_of_three)
    grant_to(owner_url, org)
    shown = on_database("user", "show", org, "ADA@example.com").lines
    id = on_database("user", "show", org, ADA, "--json").json["id"]
    width = max(len(org), len("SERVER"))
    assert shown == [
        f"ada@example.com ({id})",
        "First seen on 2026-09-21, last on 2026-09-21.",
        "",
        "KNOWN BY                   AS               SINCE",
        "email                      ada@example.com  2026-09-21",
        "https://acme.okta.example  00u1             2026-09-21",
        "",
        f"{'SERVER':{width}}  WALKTHROUGH  STANDS AT                  LAST ACTIVE",
        f"{org:{width}}  tour         step 2 of 3: Step sign-in  2026-09-21",
        "",
        f"{'SERVER':{width}}  CLIENT           SINCE       UNTIL       GRANT",
        f"{org:{width}}  Editor           2026-09-21  2033-05-18  grant_0123456789abcdef",
        f"{org:{width}}  (an operator's)  2026-09-21  never",
    ]
    result = on_database("user", "show", org, id, "--json").json
    (taken,) = result["progress"]
    assert taken["current_step"] == {"key": "sign-in", "title": "Step sign-in", "number": 2}
    assert taken["completed_steps"] == [{"key": "install", "title": "Step install"}]
    assert [token["grant_id"] for token in result["tokens"]] == ["grant_0123456789abcdef", None]
    assert "hash" not in json.dumps(result)


def test_long_and_nasty_names_stay_within_the_terminal(on_database: Cairn, on_world: OnWorld, owner_url: str) -> None:
    long = f"{'a' * 60}@example.com"

    async def act(world: World, slug: str) -> None:
        await people_of_three(world, slug)
        await world.caller(await world.tenancy.server(slug), long)

    org = on_world(act)
    grant_to(owner_url, org, long, id="grant_nasty0123456789a", name=NASTY + "x" * 80)
    for command in (
        *(("user", "list", org), ("user", "show", org, long)),
        *(("token", "list", "--org", org), ("token", "list", "--server", org)),
    ):
        lines = on_database(*command).lines
        assert max(map(len, lines)) <= 80, command
        assert not re.search("[\x00-\x1f\u202e]", "".join(lines)), command
    assert any(line.endswith("grant_nasty0123456789a") for line in on_database("token", "list", "--org", org).lines)


def test_nobody_of_another_organisation_can_be_named(on_database: Cairn, on_world: OnWorld) -> None:
    org, other = on_world(people_of_three), on_world(nobody)
    id = on_database("user", "show", org, ADA, "--json").json["id"]
    for command in ("show", "export", "erase"):
        for who in (ADA, id):
            sure = ("--yes",) if command == "erase" else ()
            refused = on_database("user", command, other, who, *sure).error
            assert refused == f"there is nobody '{who}' in this organisation: see 'cairn user list' with its slug"
            assert on_database("user", command, other, "x" + who, *sure).error == refused.replace(who, "x" + who)
    assert on_database("user", "show", org, ADA).lines
    assert on_database("token", "list", "--org", other, "--user", ADA).status == 1
    assert on_database("token", "list", "--org", other, "--server", org).error == (
        f"there is no server '{org}' in organisation '{other}': see 'cairn server list'"
    )
    assert on_database("user", "list", other, "--server", org).status == 1


# --------------------------------------------------------------------------------------- export and erasure

# Every table with people in it: those that refer to them, directly or not, and those that name them without.
_PERSONAL = """
with recursive personal as (
    select 'mcp_server_users'::regclass::oid as id
     union
    select attrelid from pg_attribute where attname like '%user_id' and attnum > 0
     union
    select conrelid from pg_constraint join personal on confrelid = personal.id where contype = 'f'
)
select relname from pg_class join personal on oid = personal.id
 where relkind in ('r', 'p') and not relispartition and relnamespace = 'public'::regnamespace
"""
# What an export leaves out, or tells in other words.
_NOT_TOLD = {
    "organization_id",  # the organisation by its slug
    "mcp_server_id",  # the server by its slug
    "carried",  # among the completed steps
    "current_step_id",  # by key and title
    *("id_hash", "browser_hash", "code_hash", "token_hash"),
    "code_challenge",  # is a hash as well
}
_NOT_TOLD_OF_A_SIGN_IN = {"away", "code_hash"}


async def ada_everywhere(world: World, slug: str) -> None:
    """Ada has something in every table in which a person can."""
    await world.publish("install", "sign-in", "deploy", organization=slug, servers=(slug,))
    server = await world.tenancy.server(slug)
    ada = await world.caller(server, ADA)
    await take(world, ada, [Outcome.DONE])
    await take(world, ada, [Outcome.STUCK], note="I am Ada and stuck")
    await world.publish("install", "deploy", organization=slug, servers=(slug,))
    lesson = await world.learning.select(ada, "tour", restart=False, to_latest=True)
    made = tool_call(
        ada,
        tool_name="next_walkthrough_step",
        client_name="adas-ide",
        client_version="9.9.9",
        walkthrough_id=lesson.progress.key.walkthrough_id,
        version=1,
        step_id=lesson.progress.current_step_id,
        outcome="stuck",
        duration_us=77_001,
        input={"note": "a note of Ada's"},
        created_at=Millis(1_790_000_000_123),
    )
    await record(world.calls, made)
    await record(world.calls, tool_call(Caller(server.key, UserId(VISITOR)), created_at=Millis(1_790_000_000_124)))


# Columns that would say the same as another one say something of their own.
_FILL = """
insert into mcp_server_users (organization_id, id, first_seen_at, last_seen_at, merged_into)
values ('{at}', '{visitor}', 1790000001001, 1790000001002, '{user}');
insert into mcp_server_user_identities values
    ('{at}', 'visitor:{server}', 'abcd', '{visitor}', 1790000002001),
    ('{at}', 'https://acme.okta.example', '00u-ada', '{user}', 1790000002002),
    ('{at}', 'email', 'ada@work.example', '{user}', 1790000002003);
insert into oauth_grants values ('{at}', 'grant_a', '{server}', '{user}', 'client_a', 'Adas IDE',
    'walkthroughs offline_access', 1790000003001, 1790000003002, 1790000003003);
insert into oauth_codes values ('{at}', sha256('code'), 'grant_a', 'http://127.0.0.1:5/ada', 'challenge',
    1790000004001, 1790000004002);
insert into oauth_refresh_tokens values ('{at}', sha256('refresh'), 'grant_a', 1790000005001, 1790000005002,
    1790000005003);
insert into access_tokens values ('{at}', sha256('access'), '{server}', '{user}', 1790000006001, 'grant_a', 'offline',
    1790000006002);
insert into oauth_authorizations values  -- one by its address and provider, and one of the visitor's
    ('{at}', '{server}', sha256('id'), sha256('browser'), '{{"client_id": "client_b"}}', null, '{sign_in}',
     1790000007001, 1790000007002),
    ('{at}', '{server}', sha256('id2'), sha256('browser'), null, '{visitor}', '{{"stage": "choosing"}}',
     1790000008001, 1790000008002);
update mcp_server_users set email_verified_at = 1790000001003, last_seen_at = 1790000001005 where id = '{user}';
update walkthrough_progress set started_at = started_at - 1
 where organization_id = '{at}' and mcp_server_user_id = '{user}';
"""


def fill(url: str, org: str) -> None:
    """What the world has no hands for."""
    (there,) = fetch(
        url,
        "select u.organization_id, u.id as user_id, s.id as server_id from mcp_server_users u"
        " join mcp_servers s using (organization_id) join organizations o on o.id = u.organization_id"
        " where o.slug = $1 and u.email = $2",
        *(org, ADA),
    )
    at, user, server = there["organization_id"], there["user_id"], there["server_id"]
    sign_in = {
        "stage": "code_sent",
        "client": {"name": "Adas IDE"},
        "email": WORK,
        "code": {"code_hash": "bm8=", "expires_at": 1790000009001, "wrong_tries": 3},
        "away": None,
        "proven": {"issuer": OKTA, "subject": "00u-ada"},
    }
    execute(url, _FILL.format(at=at, user=user, server=server, visitor=VISITOR, sign_in=json.dumps(sign_in)))


def leaves(value: Any, without: set[str] = frozenset()) -> Iterator[Any]:  # type: ignore[assignment]
    if isinstance(value, dict):
        for name, each in value.items():
            if name not in without:
                yield from leaves(each, without)
    elif isinstance(value, list):
        for each in value:
            yield from leaves(each, without)
    else:
        yield value


def told_of(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What an export has to hold of a row: column and value."""
    for column, value in row.items():
        if column in _NOT_TOLD or (column == "subject" and row["issuer"].startswith("visitor:")):
            continue
        if column in ("sign_in", "request", "input") and value is not None:
            yield from ((column, leaf) for leaf in leaves(json.loads(value), _NOT_TOLD_OF_A_SIGN_IN))
        else:
            yield column, value


@pytest.mark.promise("people")
def test_an_export_holds_every_column_of_every_table_in_which_the_person_is(
    on_database: Cairn, on_world: OnWorld, owner_url: str
) -> None:
    org = on_world(ada_everywhere)
    fill(owner_url, org)
    document = on_database("user", "export", org, WORK, "--json").json
    told = set(leaves(document))
    tables = [row["relname"] for row in fetch(owner_url, _PERSONAL)]
    assert len(tables) >= 10
    missing = []
    for table in tables:
        rows = fetch(
            owner_url,
            f"select t.* from {table} t join organizations o on o.id = t.organization_id where o.slug = $1",
            org,
        )
        assert rows, f"{table} refers to people: give Ada something in it, and say here and in the export what it is"
        missing += [(table, column) for row in rows for column, value in told_of(row) if value not in told]
    assert missing == []
    assert not {"abcd", "bm8="} & told
    for secret in ("id", "browser", "refresh", "access", "state", "code"):
        assert sha256(secret.encode()).hexdigest() not in json.dumps(document)
    assert [each["key"] for each in document["progress"][0]["completed_steps"]] == ["install"]
    assert document["progress"][0]["current_step"]["key"] == "deploy"


@pytest.mark.promise("people")
def test_after_an_erasure_no_row_of_any_table_mentions_the_person(
    on_database: Cairn, on_world: OnWorld, owner_url: str
) -> None:
    execute(owner_url, "delete from organizations")  # others have an Ada as well
    org = on_world(ada_everywhere)
    fill(owner_url, org)
    id = on_database("user", "show", org, ADA, "--json").json["id"]
    traces = [id, VISITOR, ADA, WORK, "00u-ada", "Ada", "adas", "9.9.9", "grant_a"]

    def mentions(trace: str) -> list[str]:
        tables = fetch(
            owner_url,
            "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')"
            " and not relispartition",
        )
        return [
            table["relname"]
            for table in tables
            if fetch(owner_url, f"select from {table['relname']} t where t::text like '%' || $1 || '%'", trace)
        ]

    assert all(mentions(trace) for trace in traces)
    assert on_database("user", "erase", org, ADA, "--yes").lines == [
        f"Erased ada@example.com from {org}. Of 2 calls it stays in the log that they were made, without who and what."
    ]
    assert {trace: mentions(trace) for trace in traces} == {trace: [] for trace in traces}
    rows = fetch(
        owner_url,
        "select t.* from tool_calls t join organizations o on o.id = t.organization_id where o.slug = $1"
        " order by created_at",
        org,
    )
    assert [(row["mcp_server_user_id"], row["input"], row["client_name"]) for row in rows] == [(None, "{}", None)] * 2
    assert (rows[0]["tool_name"], rows[0]["duration_us"]) == ("next_walkthrough_step", 77_001)
    assert on_database("token", "create", "--server", org, "--email", ADA).lines
    again = on_database("user", "show", org, ADA, "--json").json
    assert again["id"] != id
    assert again["progress"] == []


def test_an_export_goes_into_a_new_file_that_only_its_owner_may_read(
    on_database: Cairn, on_world: OnWorld, tmp_path: Path
) -> None:
    org = on_world(people_of_three)
    file = tmp_path / "ada.json"
    said = on_database("user", "export", org, ADA, "-o", str(file)).lines
    assert said == [f"Wrote all that is stored about ada@example.com to {file}, which only you can read."]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    written = json.loads(file.read_text())
    printed = json.loads("\n".join(on_database("user", "export", org, ADA).lines))
    assert {**written, "exported_at": 0} == {**printed, "exported_at": 0}
    assert written["email"] == ADA
    assert on_database("user", "export", org, ADA, "-o", str(file)).error == (
        f"{file} is there already: name another file"
    )
    assert "cannot be written" in on_database("user", "export", org, ADA, "-o", str(tmp_path / "no" / "file")).error
    told = on_database("user", "export", org, ADA, "-o", str(tmp_path / "b.json"), "--json").json
    assert told == {"file": str(tmp_path / "b.json"), "id": written["id"], "tool_calls": 0}


def test_nobody_is_erased_unasked(on_database: Cairn, on_world: OnWorld) -> None:
    org = on_world(people_of_three)
    assert "say --yes" in on_database("user", "erase", org, ADA, stdin=b"y\n").usage_error
    assert on_database("user", "show", org, ADA).lines
    erased = on_database("user", "erase", org, ADA, "--yes", "--json").json
    assert erased.pop("id").startswith("usr_")
    assert erased == {"calls": 0}
    assert on_database("user", "erase", org, "bob@example.com", "--yes").lines == [
        f"Erased bob@example.com from {org}."
    ]


@pytest.mark.parametrize(("answer", "is_erased"), [(b"y\n", True), (b"n\n", False), (b"\n", False)])
def test_at_a_terminal_an_erasure_is_asked_about(
    on_database: Cairn, on_world: OnWorld, owner_url: str, answer: bytes, is_erased: bool
) -> None:
    org = on_world(people_of_three)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "entrypoints.cli.main", "user", "erase", org, ADA],
        cwd=PROJECT,
        env=environment(CAIRN_DATABASE_URL=owner_url),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    os.write(ours, answer)
    out, err = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    asked = f"Erase ada@example.com from {org} for good, with the progress in 1 walkthrough? [y/N]: "
    assert err.decode().startswith(asked)
    assert on_database("user", "show", org, ADA).status == (1 if is_erased else 0)
    if is_erased:
        assert (process.returncode, out.decode()) == (0, f"Erased ada@example.com from {org}.\n")
    else:
        assert (process.returncode, out.decode()) == (1, "")
        assert err.decode().removeprefix(asked).strip() == "error: nothing was erased"


# --------------------------------------------------------------------------------------------------- tokens


def test_tokens_are_listed_of_a_server_or_an_organisation_and_of_a_person(
    on_database: Cairn, on_world: OnWorld, owner_url: str
) -> None:
    org = on_world(people_of_three)
    grant_to(owner_url, org)
    assert on_database("token", "list", "--server", org).lines == [
        "WHO              CLIENT           UNTIL       GRANT",
        "ada@example.com  Editor           2033-05-18  grant_0123456789abcdef",
        "ada@example.com  (an operator's)  never",
        "bob@example.com  (an operator's)  never",
    ]
    everywhere = on_database("token", "list", "--org", org, "--json").json
    assert [(each["email"], each["server"], each["client_name"]) for each in everywhere["tokens"]] == [
        (ADA, org, "Editor"),
        (ADA, org, None),
        ("bob@example.com", org, None),
    ]
    assert not everywhere["has_more"]
    assert "hash" not in json.dumps(everywhere)
    bobs = on_database("token", "list", "--org", org, "--user", "Bob@example.com", "--json").json
    assert [each["email"] for each in bobs["tokens"]] == ["bob@example.com"]
    first = on_database("token", "list", "--server", org, "--limit", "1").lines
    assert first[2:] == ["", "And more: see them with --limit, up to 1,000, or of one person with --user."]
    assert "--server or --org" in on_database("token", "list").usage_error


@pytest.mark.promise("auth.oauth")
@pytest.mark.parametrize("by", [("--grant", "grant_0123456789abcdef"), ("--client", "Editor"), ("--email", ADA)])
def test_grants_are_revoked_by_id_client_or_person(
    on_database: Cairn, on_world: OnWorld, owner_url: str, by: tuple[str, str]
) -> None:
    org = on_world(people_of_three)
    grant_to(owner_url, org)
    revoke = ("token", "revoke", "--server", org, *by)
    expected = f"Revoked 2 tokens on {org}." if by[0] == "--email" else f"Revoked 1 grant on {org}."
    assert on_database(*revoke).lines == [expected]
    assert "nothing to revoke" in on_database(*revoke).error
    left = on_database("token", "list", "--server", org, "--json").json["tokens"]
    assert [each["grant_id"] for each in left] == [None] * (1 if by[0] == "--email" else 2)


def test_what_is_revoked_is_named_once(on_database: Cairn) -> None:
    for given in ((), ("--grant", "g", "--client", "c"), ("--email", ADA, "--token", "t")):
        assert "--grant and --client" in on_database("token", "revoke", "--server", "s", *given).usage_error


# ------------------------------------------------------------------------------------------ modes and providers


def test_a_servers_mode_is_changed_and_it_is_said_for_whom(on_database: Cairn, on_world: OnWorld) -> None:
    org, other = on_world(nobody), on_world(nobody)
    list_, connect, visit = (
        "Anybody may list the walkthroughs; people sign in as they take one.",
        "Every request needs a token, so that people sign in as they connect.",
        "As on_demand; nobody signs in at a personal address from the server's page.",
    )
    left = "Personal addresses are no longer answered; what was done there is kept."
    for mode, said in (
        ("on_demand", [f"{org} is on_demand already.", list_]),
        ("anonymous", [f"{org} is anonymous within 2 seconds, and was on_demand.", visit]),
        ("on_connect", [f"{org} is on_connect within 2 seconds, and was anonymous.", connect, left]),
        ("on_demand", [f"{org} is on_demand within 2 seconds, and was on_connect.", list_]),
    ):
        assert on_database("server", "set-auth", org, mode, "--org", org).lines == said
        (row,) = on_database("server", "list", "--org", org, "--json").json["servers"]
        assert row["auth_mode"] == mode
    changed = on_database("server", "set-auth", org, "anonymous", "--json").json
    assert changed == {"slug": org, "auth_mode": "anonymous", "former_auth_mode": "on_demand"}
    refused = on_database("server", "set-auth", org, "on_connect", "--org", other).error
    assert refused == f"there is no server '{org}' in organisation '{other}': see 'cairn server list'"
    assert on_database("server", "list", "--org", org, "--json").json["servers"][0]["auth_mode"] == "anonymous"
    assert on_database("server", "set-auth", org, "nobody").status == 2


def test_a_server_is_created_for_visitors(on_database: Cairn, on_world: OnWorld) -> None:
    org = on_world(nobody)
    create = ("server", "create", "--org", org, "--slug", f"{org}-open", "--auth-mode", "anonymous", "--json")
    assert on_database(*create).json["auth_mode"] == AuthMode.ANONYMOUS.value


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    """An identity provider that answers."""
    with oidc_provider_mock.run_server_in_thread() as server:
        yield f"http://localhost:{server.server_port}"


def provider_of(cairn: Cairn, org: str) -> Any:
    (row,) = cairn("server", "list", "--org", org, "--json").json["servers"]
    return row["provider"]


@pytest.mark.promise("auth.provider")
def test_a_provider_is_tried_and_set_and_what_to_register_there_is_said(
    on_database: Cairn, on_world: OnWorld, owner_url: str, issuer: str
) -> None:
    org, other = on_world(nobody), on_world(nobody)
    given = ("server", "set-oidc", org, "--issuer", issuer, "--client-id", "cairn", "--secret-stdin")
    assert on_database(*given, "--name", "Okta", stdin=b"s3cret\n", CAIRN_BASE_DOMAIN="cairn.example").lines == [
        f"People of {org} sign in with Okta ({issuer}), or by an e-mail code.",
        "Register at the provider where it sends them back to:",
        f"  https://{org}.cairn.example/sign-in/callback",
    ]
    (stored,) = fetch(
        owner_url,
        "select issuer, client_id, client_secret, p.name, offers_email_codes from oidc_providers p"
        " join organizations o on o.id = p.organization_id where o.slug = $1",
        org,
    )
    assert stored == {
        "issuer": issuer,
        "client_id": "cairn",
        "client_secret": "s3cret",
        "name": "Okta",
        "offers_email_codes": True,
    }
    told = {"name": "Okta", "issuer": issuer, "client_id": "cairn", "offers_email_codes": True}
    assert provider_of(on_database, org) == told
    assert provider_of(on_database, other) is None
    assert on_database("server", "list", "--org", org).lines[2:] == [
        "",
        f"People of {org} sign in with Okta ({issuer}), or by an e-mail code.",
    ]
    changed = on_database(*given, "--only", "--json", stdin=b"other").json
    assert changed == {
        "organization": org,
        "provider": {"name": "localhost", "issuer": issuer, "client_id": "cairn", "offers_email_codes": False},
        "redirect_uris": [f"http://{org}.localhost:8000/sign-in/callback"],
    }
    assert on_database("server", "list", "--org", org).lines[-1] == (
        f"People of {org} sign in with localhost ({issuer}), and in no other way."
    )
    assert on_database("server", "set-oidc", org, "--remove").lines == [
        f"People of {org} sign in by e-mail codes alone."
    ]
    assert provider_of(on_database, org) is None
    assert "nothing to remove" in on_database("server", "set-oidc", org, "--remove").error


def test_a_new_server_is_named_to_its_organisations_provider_with_its_own_domain_too(
    on_database: Cairn, on_world: OnWorld, issuer: str
) -> None:
    org = on_world(nobody)
    domain = f"guides.{org}.example.com"
    assert on_database("server", "create", "--org", org, "--slug", f"{org}-b", "--domain", domain).lines
    given = ("server", "set-oidc", org, "--issuer", issuer, "--client-id", "cairn", "--secret-stdin", "--json")
    redirects = on_database(*given, stdin=b"s\n", CAIRN_BASE_DOMAIN="cairn.example").json["redirect_uris"]
    assert redirects == [
        f"https://{host}/sign-in/callback" for host in (f"{org}.cairn.example", f"{org}-b.cairn.example", domain)
    ]


def test_a_provider_that_nobody_could_sign_in_with_is_not_set(
    on_database: Cairn, on_world: OnWorld, issuer: str
) -> None:
    org = on_world(nobody)

    def given(issuer: str, org: str = org) -> tuple[str, ...]:
        return ("server", "set-oidc", org, "--issuer", issuer, "--client-id", "cairn", "--secret-stdin")

    for wrong, problem in (
        ("http://127.0.0.1:9", "nobody could sign in with http://127.0.0.1:9"),
        ("http://okta.example", "an issuer is an https URL"),
        ("okta", "an issuer is an https URL"),
    ):
        assert problem in on_database(*given(wrong), stdin=b"s\n").error
    assert "client secret" in on_database(*given(issuer), stdin=b"\n").error
    assert "cannot be read" in on_database(*given(issuer), stdin=b"\xff\n").error
    assert "there is no organisation" in on_database(*given(issuer, "nowhere"), stdin=b"s\n").error
    assert provider_of(on_database, org) is None


def test_the_secret_comes_from_a_file_or_a_prompt_and_is_never_an_argument_or_shown(
    on_database: Cairn, on_world: OnWorld, owner_url: str, issuer: str, tmp_path: Path
) -> None:
    org = on_world(nobody)
    given = ("server", "set-oidc", org, "--issuer", issuer, "--client-id", "cairn")
    secrets = (
        "select client_secret from oidc_providers p join organizations o on o.id = organization_id where slug = $1"
    )
    file = tmp_path / "secret"
    file.write_text("of-a-file\n")
    assert "of-a-file" not in on_database(*given, "--secret-file", str(file), "--json").stdout
    assert fetch(owner_url, secrets, org) == [{"client_secret": "of-a-file"}]
    assert "cannot be read" in on_database(*given, "--secret-file", str(tmp_path / "none")).error
    assert "--secret-stdin or --secret-file" in on_database(*given).usage_error
    assert "either --secret-stdin" in on_database(*given, "--secret-stdin", "--secret-file", str(file)).usage_error
    assert "--issuer and --client-id" in on_database("server", "set-oidc", org).usage_error
    assert "no other option" in on_database(*given, "--remove").usage_error

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "entrypoints.cli.main", *given],
        cwd=PROJECT,
        env=environment(CAIRN_DATABASE_URL=owner_url),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    seen = b""
    while b"Client secret: " not in seen:
        seen += os.read(ours, 1_000)
    os.write(ours, b"of-a-prompt\n")
    with suppress(OSError):  # Linux says so when the other side is closed
        while part := os.read(ours, 1_000):
            seen += part
    os.close(ours)
    assert process.wait(60) == 0, seen
    assert b"of-a-prompt" not in seen
    assert fetch(owner_url, secrets, org) == [{"client_secret": "of-a-prompt"}]
