"""Databases, logins and two organisations with a row in every table, made with nothing but SQL."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from itertools import count

import asyncpg
import pytest
from sqlalchemy import make_url

_names = count(1)


@pytest.fixture
def empty_url(make_database: Callable[..., str]) -> str:
    """A database without a schema, as a superuser."""
    return make_database(is_empty=True)


@pytest.fixture
def fresh_url(make_database: Callable[..., str]) -> str:
    """A migrated database of this test's own, as its owner, who is a superuser."""
    return make_database()


@pytest.fixture
def make_login(superuser_url: str) -> Iterator[Callable[..., str]]:
    """Makes a login with these role options, and returns its name, which is its password too."""
    made: list[str] = []

    async def on_server(*statements: str) -> None:
        connection = await asyncpg.connect(superuser_url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    def make(options: str = "", *, owns: str | None = None) -> str:
        """`owns` is the URL of a database that becomes its own."""
        name = f"cairn_login_{os.getpid()}_{next(_names)}"
        statements = [f"create role {name} login password '{name}' {options}"]
        if owns is not None:
            statements.append(f'alter database "{make_url(owns).database}" owner to {name}')
        asyncio.run(on_server(*statements))
        made.append(name)
        return name

    yield make

    async def drop(name: str) -> None:
        connection = await asyncpg.connect(superuser_url)
        databases = await connection.fetch(
            "select datname from pg_database where pg_get_userbyid(datdba) = $1 or oid in"
            " (select dbid from pg_shdepend where refobjid = (select oid from pg_roles where rolname = $1))",
            name,
        )
        for (database,) in databases:
            await connection.execute(f'drop database "{database}" with (force)')
        await connection.execute(f"drop role {name}")
        await connection.close()

    for name in reversed(made):
        asyncio.run(drop(name))


def logged_in(url: str, login: str) -> str:
    """The same database, as a login of `make_login`."""
    return make_url(url).set(username=login, password=login).render_as_string(hide_password=False)


# One organisation, called `$`, with a row in every table of the first release, in that release's words. Version 1 is
# withdrawn, 2 is published and the latest, 3 is the draft; the steps of version 3 are $31, $32 and $33.
FIRST_RELEASE = """
insert into organizations values ('$', '$', 'Organisation $', 1);
insert into mcp_servers (organization_id, id, slug, custom_domain, name, auth_mode, created_at)
values ('$', 'srv_$', '$', '$.example.com', 'Server', 'on_demand', 1);
insert into mcp_server_users values ('$', 'usr_$', 'ada@example.com', 1, 1, 1);
insert into access_tokens values ('$', sha256('$'), 'srv_$', 'usr_$', 1);
insert into walkthroughs (organization_id, id, key, created_at, updated_at) values ('$', 'wt_$', 'tour', 1, 1);
insert into mcp_server_walkthroughs values ('$', 'srv_$', 'wt_$', 1, true, 1);

insert into walkthrough_versions (organization_id, walkthrough_id, version, state, title, description, type,
       first_step_id, step_count, content_hash, created_at)
values ('$', 'wt_$', 1, 'draft', 'Tour', 'Shows around.', 'course', '$11', 3, 'hash 1', 1);
insert into walkthrough_steps (organization_id, walkthrough_id, version, id, key, title, next_step_id, position,
       content, delivery)
select '$', 'wt_$', 1, '$1' || n, 'key-' || n, 'Step ' || n, '$1' || nullif(n + 1, 4), n, 'Do it.', 'explain'
  from generate_series(1, 3) as n;
update walkthrough_versions set state = 'published', on_publish = 'keep', published_at = 1
 where organization_id = '$' and version = 1;
update walkthrough_versions set state = 'withdrawn' where organization_id = '$' and version = 1;

insert into walkthrough_versions (organization_id, walkthrough_id, version, state, title, description, type,
       first_step_id, step_count, content_hash, created_at)
values ('$', 'wt_$', 2, 'draft', 'Tour', 'Shows around.', 'course', '$21', 3, 'hash 2', 1);
insert into walkthrough_steps (organization_id, walkthrough_id, version, id, key, title, next_step_id, position,
       content, delivery)
select '$', 'wt_$', 2, '$2' || n, 'key-' || n, 'Step ' || n, '$2' || nullif(n + 1, 4), n, 'Do it.', 'explain'
  from generate_series(1, 3) as n;
update walkthrough_versions set state = 'published', on_publish = 'keep', published_at = 1
 where organization_id = '$' and version = 2;
update walkthroughs set is_published = true, latest_version = 2 where organization_id = '$';

insert into walkthrough_versions (organization_id, walkthrough_id, version, state, title, description, type,
       first_step_id, step_count, content_hash, created_at)
values ('$', 'wt_$', 3, 'draft', 'Tour', 'Shows around.', 'course', '$31', 3, 'hash 3', 1);
insert into walkthrough_steps (organization_id, walkthrough_id, version, id, key, title, next_step_id, position,
       content, delivery)
select '$', 'wt_$', 3, '$3' || n, 'key-' || n, 'Step ' || n, '$3' || nullif(n + 1, 4), n, 'Do it.', 'explain'
  from generate_series(1, 3) as n;

insert into walkthrough_progress (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id, version,
       attempt, revision, current_step_id, status, started_at, last_activity_at)
values ('$', 'srv_$', 'usr_$', 'wt_$', 2, 1, 2, '$22', 'in_progress', 1, 2);
insert into walkthrough_progress_events (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id,
       revision, attempt, version, kind, from_step_id, to_step_id, outcome, occurred_at)
values ('$', 'srv_$', 'usr_$', 'wt_$', 1, 1, 2, 'started', null, '$21', null, 1),
       ('$', 'srv_$', 'usr_$', 'wt_$', 2, 1, 2, 'advanced', '$21', '$22', 'done', 2);
insert into tool_calls (organization_id, created_at, id, mcp_server_id, tool_name, protocol_version, outcome,
       duration_us, input)
values ('$', 1, 'call_1', 'srv_$', 'list_walkthroughs', '2025-11-25', 'ok', 1, '{}'),
       ('$', extract(epoch from now()) * 1000, 'call_2', 'srv_$', 'list_walkthroughs', '2025-11-25', 'ok', 1, '{}');
"""


# And a row in every table that came later.
_LATER = """
update walkthrough_versions set revision = 1 where organization_id = '$' and version = 3;
insert into walkthrough_draft_edits (organization_id, walkthrough_id, version, revision, edit, edited_by, edited_at)
values ('$', 'wt_$', 3, 1, '{"kind": "remove", "step_key": "key-4"}', 'ada@example.com', 1);
insert into walkthrough_ledger (organization_id, walkthrough_id, number, deed, version, content_hash, policy,
       source_version, acted_by, acted_at)
values ('$', 'wt_$', 1, 'published', 1, 'hash 1', 'keep', null, null, 1),
       ('$', 'wt_$', 2, 'published', 2, 'hash 2', 'keep', null, 'ada@example.com', 1);

insert into mcp_server_users (organization_id, id, first_seen_at, last_seen_at) values ('$', 'visitor_$', 1, 1);
insert into mcp_server_user_identities values ('$', 'email', 'ada@example.com', 'usr_$', 1);
insert into oidc_providers (organization_id, issuer, client_id, client_secret, name, created_at)
values ('$', 'https://login.example.com', 'cairn', 'secret', 'Example', 1);
insert into oauth_clients (organization_id, mcp_server_id, client_id, metadata, created_at)
values ('$', 'srv_$', 'client_$', '{}', 1);
insert into oauth_authorizations (organization_id, mcp_server_id, id_hash, browser_hash, request, sign_in,
       created_at, expires_at)
values ('$', 'srv_$', sha256('id $'), sha256('browser $'), '{}', '{}', 1, 2);
insert into oauth_grants values ('$', 'grant_$', 'srv_$', 'usr_$', 'client_$', 'Client', 'walkthroughs', 1, null, 2);
insert into oauth_codes values ('$', sha256('code $'), 'grant_$', 'http://localhost/callback', 'challenge', 2, null);
insert into oauth_refresh_tokens values ('$', sha256('refresh $'), 'grant_$', 1, 2, null);
"""


@pytest.fixture
async def tenants(owner: asyncpg.Connection) -> asyncpg.Connection:
    """The owner's connection, to two organisations `a` and `b` that differ in nothing but their names."""
    for organization in ("a", "b"):
        await owner.execute((FIRST_RELEASE + _LATER).replace("$", organization))
    return owner


async def until_waited_for(connection: asyncpg.Connection, other: asyncio.Task[object]) -> None:
    """Until a session waits for a lock that this one holds; or until `other` has ended without."""
    waiting = "select exists (select from pg_locks where not granted and pg_backend_pid() = any(pg_blocking_pids(pid)))"
    while not other.done() and not await connection.fetchval(waiting):
        pass
