"""What the database itself refuses, whatever program or hand is at it: tried in plain SQL, as the owner.

`REFUSALS` has at least one statement for every constraint in the catalogue; a constraint without one fails.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping

import asyncpg
import pytest
from sqlalchemy import BigInteger, Integer

from adapters.postgres.tables import walkthrough_steps, walkthrough_versions
from tests.storage.conftest import until_waited_for

# Host names belong to the whole installation, not to one organisation.
GLOBAL_NAMES = {"mcp_servers_slug_key", "mcp_servers_custom_domain_key"}


def _copy(table: str, where: str = "true", **changes: object) -> str:
    """Inserts a row of organisation `a` once more, changed."""
    return (
        f"insert into {table} select (jsonb_populate_record(it, '{json.dumps(changes)}')).* from {table} it"
        f" where it.{'id' if table == 'organizations' else 'organization_id'} = 'a' and {where}"
    )


def _change(table: str, where: str = "true", **changes: object) -> str:
    """Changes rows of organisation `a`; values are SQL."""
    assignments = ", ".join(f"{column} = {value}" for column, value in changes.items())
    return f"update {table} set {assignments} where organization_id = 'a' and {where}"


DRAFT = "version = 3"
LAST = "id = 'a33'"
FIRST_ENTRY = "number = 1"
STARTED = "revision = 1"
ADVANCED = "revision = 2"
OLD_CALL = "created_at = 1"
PERSON = "id = 'usr_a'"
VISITOR = "id = 'visitor_a'"
OTHER_HASH = "\\x" + 32 * "00"

# The constraint, and a statement that it alone stands against. Those of `a` that name something of `b` are the
# references across tenants.
REFUSALS = [
    ("organizations_pkey", _copy("organizations", slug="c")),
    ("organizations_slug_key", _copy("organizations", id="c")),
    ("mcp_servers_pkey", _copy("mcp_servers", slug="c", custom_domain=None)),
    ("mcp_servers_slug_key", _copy("mcp_servers", id="srv", slug="b", custom_domain=None)),
    ("mcp_servers_custom_domain_key", _copy("mcp_servers", id="srv", slug="c", custom_domain="b.example.com")),
    ("mcp_servers_organization_fkey", _copy("mcp_servers", organization_id="c", slug="c", custom_domain=None)),
    ("mcp_servers_auth_mode_check", _change("mcp_servers", auth_mode="'never'")),
    ("mcp_server_users_pkey", _copy("mcp_server_users", PERSON, email="bob@example.com")),
    ("mcp_server_users_email_key", _copy("mcp_server_users", PERSON, id="usr")),
    ("mcp_server_users_organization_fkey", _copy("mcp_server_users", PERSON, organization_id="c")),
    ("mcp_server_users_email_check", _change("mcp_server_users", email="null")),
    ("mcp_server_users_email_check", _change("mcp_server_users", email_verified_at="null")),
    ("access_tokens_pkey", _copy("access_tokens")),
    ("access_tokens_server_fkey", _copy("access_tokens", token_hash=OTHER_HASH, mcp_server_id="srv_b")),
    ("access_tokens_user_fkey", _copy("access_tokens", token_hash=OTHER_HASH, mcp_server_user_id="usr_b")),
    ("access_tokens_hash_check", _change("access_tokens", token_hash="'token'")),
    ("access_tokens_grant_fkey", _change("access_tokens", grant_id="'grant_b'")),
    ("mcp_server_users_merged_into_fkey", _change("mcp_server_users", VISITOR, merged_into="'usr_b'")),
    ("mcp_server_users_merged_into_check", _change("mcp_server_users", PERSON, merged_into="'visitor_a'")),
    ("mcp_server_user_identities_pkey", _copy("mcp_server_user_identities", mcp_server_user_id="visitor_a")),
    (
        "mcp_server_user_identities_user_fkey",
        _copy("mcp_server_user_identities", subject="b", mcp_server_user_id="usr_b"),
    ),
    ("oidc_providers_pkey", _copy("oidc_providers", issuer="https://other.example.com")),
    ("oidc_providers_organization_fkey", _copy("oidc_providers", organization_id="c")),
    ("oauth_clients_pkey", _copy("oauth_clients", created_at=2)),
    ("oauth_clients_server_fkey", _copy("oauth_clients", mcp_server_id="srv_b")),
    ("oauth_authorizations_pkey", _copy("oauth_authorizations", expires_at=3)),
    ("oauth_authorizations_server_fkey", _copy("oauth_authorizations", id_hash=OTHER_HASH, mcp_server_id="srv_b")),
    (
        "oauth_authorizations_visitor_fkey",
        _change("oauth_authorizations", request="null", visitor_id="'visitor_b'"),
    ),
    ("oauth_authorizations_purpose_check", _change("oauth_authorizations", request="null")),
    ("oauth_authorizations_purpose_check", _change("oauth_authorizations", visitor_id="'visitor_a'")),
    ("oauth_grants_pkey", _copy("oauth_grants", created_at=2)),
    ("oauth_grants_server_fkey", _copy("oauth_grants", id="grant", mcp_server_id="srv_b")),
    ("oauth_grants_user_fkey", _copy("oauth_grants", id="grant", mcp_server_user_id="usr_b")),
    ("oauth_codes_pkey", _copy("oauth_codes", expires_at=3)),
    ("oauth_codes_grant_fkey", _copy("oauth_codes", code_hash=OTHER_HASH, grant_id="grant_b")),
    ("oauth_refresh_tokens_pkey", _copy("oauth_refresh_tokens", expires_at=3)),
    ("oauth_refresh_tokens_grant_fkey", _copy("oauth_refresh_tokens", token_hash=OTHER_HASH, grant_id="grant_b")),
    ("walkthroughs_pkey", _copy("walkthroughs", key="other")),
    ("walkthroughs_key_key", _copy("walkthroughs", id="wt")),
    (
        "walkthroughs_organization_fkey",
        _copy("walkthroughs", organization_id="c", latest_version=None, is_published=False),
    ),
    ("walkthroughs_published_check", _change("walkthroughs", latest_version="null")),
    ("walkthroughs_latest_version_fkey", _change("walkthroughs", latest_version="9")),
    ("walkthroughs_latest_version_fkey", _copy("walkthroughs", id="wt_b", key="other")),
    ("walkthrough_versions_pkey", _copy("walkthrough_versions", DRAFT)),
    ("walkthrough_versions_one_draft", _copy("walkthrough_versions", DRAFT, version=4)),
    ("walkthrough_versions_walkthrough_fkey", _copy("walkthrough_versions", DRAFT, walkthrough_id="wt_b")),
    ("walkthrough_versions_version_check", _change("walkthrough_versions", DRAFT, version="0")),
    ("walkthrough_versions_version_check", _change("walkthrough_versions", DRAFT, step_count="-1")),
    ("walkthrough_versions_type_check", _change("walkthrough_versions", DRAFT, type="'poem'")),
    (
        "walkthrough_versions_state_check",
        _change("walkthrough_versions", DRAFT, state="'lost'", on_publish="'keep'", published_at="1"),
    ),
    (
        "walkthrough_versions_on_publish_check",
        _change("walkthrough_versions", DRAFT, state="'published'", on_publish="'maybe'", published_at="1"),
    ),
    ("walkthrough_versions_published_check", _change("walkthrough_versions", DRAFT, on_publish="'keep'")),
    ("walkthrough_versions_published_check", _change("walkthrough_versions", DRAFT, published_at="1")),
    (
        "walkthrough_versions_published_check",
        _change("walkthrough_versions", DRAFT, state="'published'", published_at="1"),
    ),
    (
        "walkthrough_versions_published_check",
        _change("walkthrough_versions", DRAFT, state="'published'", on_publish="'keep'"),
    ),
    ("walkthrough_versions_first_step_fkey", _change("walkthrough_versions", DRAFT, first_step_id="'nowhere'")),
    ("walkthrough_versions_first_step_fkey", _change("walkthrough_versions", DRAFT, first_step_id="'a21'")),
    ("walkthrough_versions_first_step_fkey", _change("walkthrough_versions", DRAFT, first_step_id="'b31'")),
    ("walkthrough_versions_withdrawal", _change("walkthrough_versions", "version = 2", state="'withdrawn'")),
    ("walkthrough_steps_pkey", _copy("walkthrough_steps", LAST, key="k", position=9, next_step_id="a31")),
    ("walkthrough_steps_key_key", _copy("walkthrough_steps", LAST, id="a39", position=9, next_step_id="a31")),
    ("walkthrough_steps_position_key", _copy("walkthrough_steps", LAST, id="a39", key="k", next_step_id="a31")),
    # A shared successor, and two tails.
    (
        "walkthrough_steps_next_step_key",
        _copy("walkthrough_steps", LAST, id="a39", key="k", position=9, next_step_id="a32"),
    ),
    ("walkthrough_steps_next_step_key", _copy("walkthrough_steps", LAST, id="a39", key="k", position=9)),
    ("walkthrough_steps_next_step_fkey", _change("walkthrough_steps", LAST, next_step_id="'nowhere'")),
    ("walkthrough_steps_next_step_fkey", _change("walkthrough_steps", LAST, next_step_id="'a21'")),
    ("walkthrough_steps_next_step_fkey", _change("walkthrough_steps", LAST, next_step_id="'b31'")),
    ("walkthrough_steps_version_fkey", _copy("walkthrough_steps", LAST, version=9)),
    ("walkthrough_steps_version_fkey", _copy("walkthrough_steps", LAST, walkthrough_id="wt_b")),
    ("walkthrough_steps_delivery_check", _change("walkthrough_steps", LAST, delivery="'sung'")),
    ("walkthrough_versions_revision_check", _change("walkthrough_versions", DRAFT, revision="-1")),
    ("walkthrough_versions_revision_check", _change("walkthrough_versions", DRAFT, pushed_revision="2")),
    ("walkthrough_draft_edits_pkey", _copy("walkthrough_draft_edits")),
    ("walkthrough_draft_edits_version_fkey", _copy("walkthrough_draft_edits", version=9)),
    ("walkthrough_draft_edits_version_fkey", _copy("walkthrough_draft_edits", walkthrough_id="wt_b")),
    ("walkthrough_draft_edits_revision_check", _copy("walkthrough_draft_edits", revision=0)),
    ("walkthrough_ledger_pkey", _copy("walkthrough_ledger", FIRST_ENTRY)),
    ("walkthrough_ledger_walkthrough_fkey", _copy("walkthrough_ledger", FIRST_ENTRY, walkthrough_id="wt_b")),
    ("walkthrough_ledger_number_check", _copy("walkthrough_ledger", FIRST_ENTRY, number=0)),
    ("walkthrough_ledger_deed_check", _copy("walkthrough_ledger", FIRST_ENTRY, number=3, deed="burnt")),
    ("walkthrough_ledger_policy_check", _copy("walkthrough_ledger", FIRST_ENTRY, number=3, policy="maybe")),
    ("walkthrough_ledger_version_check", _copy("walkthrough_ledger", FIRST_ENTRY, number=3, version=None)),
    ("walkthrough_ledger_version_check", _copy("walkthrough_ledger", FIRST_ENTRY, number=3, content_hash=None)),
    ("walkthrough_ledger_version_check", _copy("walkthrough_ledger", FIRST_ENTRY, number=3, policy=None)),
    ("walkthrough_ledger_version_check", _copy("walkthrough_ledger", FIRST_ENTRY, number=3, source_version=1)),
    ("walkthrough_ledger_version_check", _copy("walkthrough_ledger", FIRST_ENTRY, number=3, deed="rolled_back")),
    (
        "walkthrough_ledger_version_check",
        _copy(
            "walkthrough_ledger",
            FIRST_ENTRY,
            number=3,
            deed="unpublished",
            version=None,
            content_hash=None,
            policy=None,
        ),
    ),
    ("mcp_server_walkthroughs_pkey", _copy("mcp_server_walkthroughs", display_order=2)),
    ("mcp_server_walkthroughs_server_fkey", _copy("mcp_server_walkthroughs", mcp_server_id="srv_b")),
    ("mcp_server_walkthroughs_walkthrough_fkey", _copy("mcp_server_walkthroughs", walkthrough_id="wt_b")),
    ("walkthrough_progress_pkey", _copy("walkthrough_progress", version=1)),
    ("walkthrough_progress_server_fkey", _copy("walkthrough_progress", mcp_server_id="srv_b")),
    ("walkthrough_progress_user_fkey", _copy("walkthrough_progress", mcp_server_user_id="usr_b")),
    ("walkthrough_progress_version_fkey", _copy("walkthrough_progress", walkthrough_id="wt_b")),
    ("walkthrough_progress_version_fkey", _change("walkthrough_progress", version="9")),
    ("walkthrough_progress_counts_check", _change("walkthrough_progress", attempt="0")),
    ("walkthrough_progress_counts_check", _change("walkthrough_progress", revision="0")),
    ("walkthrough_progress_times_check", _change("walkthrough_progress", last_activity_at="0")),
    ("walkthrough_progress_status_check", _change("walkthrough_progress", status="'paused'")),
    ("walkthrough_progress_status_check", _change("walkthrough_progress", current_step_id="null")),
    ("walkthrough_progress_status_check", _change("walkthrough_progress", completed_at="3")),
    ("walkthrough_progress_status_check", _change("walkthrough_progress", status="'completed'", completed_at="3")),
    (
        "walkthrough_progress_status_check",
        _change("walkthrough_progress", status="'completed'", current_step_id="null"),
    ),
    ("walkthrough_progress_events_pkey", _copy("walkthrough_progress_events", STARTED, revision=2)),
    ("walkthrough_progress_events_progress_fkey", _copy("walkthrough_progress_events", mcp_server_id="srv_b")),
    ("walkthrough_progress_events_progress_fkey", _copy("walkthrough_progress_events", mcp_server_user_id="usr_b")),
    ("walkthrough_progress_events_progress_fkey", _copy("walkthrough_progress_events", walkthrough_id="wt_b")),
    ("walkthrough_progress_events_counts_check", _change("walkthrough_progress_events", STARTED, revision="0")),
    ("walkthrough_progress_events_counts_check", _change("walkthrough_progress_events", STARTED, attempt="0")),
    ("walkthrough_progress_events_counts_check", _change("walkthrough_progress_events", STARTED, version="0")),
    ("walkthrough_progress_events_kind_check", _change("walkthrough_progress_events", STARTED, kind="'left'")),
    ("walkthrough_progress_events_outcome_check", _change("walkthrough_progress_events", STARTED, outcome="'done'")),
    ("walkthrough_progress_events_outcome_check", _change("walkthrough_progress_events", STARTED, note="'why?'")),
    ("walkthrough_progress_events_outcome_check", _change("walkthrough_progress_events", ADVANCED, outcome="'stuck'")),
    ("walkthrough_progress_events_outcome_check", _change("walkthrough_progress_events", ADVANCED, outcome="null")),
    (
        "walkthrough_progress_events_outcome_check",
        _change("walkthrough_progress_events", ADVANCED, kind="'stuck'", outcome="null"),
    ),
    ("walkthrough_progress_events_outcome_check", _change("walkthrough_progress_events", ADVANCED, kind="'stuck'")),
    ("tool_calls_pkey", _copy("tool_calls", OLD_CALL)),
    ("tool_calls_pkey", _copy("tool_calls", "not " + OLD_CALL)),
    ("tool_calls_server_fkey", _copy("tool_calls", id="call", mcp_server_id="srv_b")),
    ("tool_calls_error_check", _change("tool_calls", outcome="'error'")),
    ("tool_calls_error_check", _change("tool_calls", error_code="'step_not_current'")),
]

_OURS = """
    c.relnamespace = 'public'::regnamespace and c.relname <> 'alembic_version' and not c.relispartition"""


@pytest.mark.parametrize(("constraint", "statement"), REFUSALS, ids=[name for name, _ in REFUSALS])
async def test_the_database_refuses(tenants: asyncpg.Connection, constraint: str, statement: str) -> None:
    """One statement, in a transaction of its own, so that deferred constraints speak too."""
    with pytest.raises(asyncpg.IntegrityConstraintViolationError) as refused:
        await tenants.execute(statement)
    # A partition's own index stands in for its parent's key.
    named = await tenants.fetchval(
        "select parent.conname from pg_constraint it join pg_constraint parent on parent.oid = it.conparentid"
        " where it.conname = $1 and it.contype in ('p', 'u')",
        refused.value.constraint_name,
    )
    assert (named or refused.value.constraint_name) == constraint


async def test_every_constraint_is_tried(owner: asyncpg.Connection) -> None:
    rows = await owner.fetch(
        f"select conname from pg_constraint k join pg_class c on c.oid = k.conrelid"
        f" where {_OURS} and contype <> 'n'"  # not null, listed from PostgreSQL 18 on
        f" union select i.indexrelid::regclass::text from pg_index i join pg_class c on c.oid = i.indrelid"
        f" where {_OURS} and i.indisunique"
    )
    assert {name for (name,) in rows} == {name for name, _ in REFUSALS}


# --------------------------------------------------------------------------------------------- across tenants


async def test_every_key_of_tenant_data_leads_with_the_organisation(owner: asyncpg.Connection) -> None:
    """So a reference to another organisation's row cannot even be written down."""
    uniques = await owner.fetch(
        f"""
        select c.relname, i.indexrelid::regclass::text as name, pg_get_indexdef(i.indexrelid, 1, true) as leading
          from pg_index i join pg_class c on c.oid = i.indrelid
         where {_OURS} and i.indisunique and c.relname <> 'organizations'"""
    )
    assert {name for _, name, leading in uniques if leading != "organization_id"} == GLOBAL_NAMES
    assert len(uniques) > 10
    references = await owner.fetch(
        f"""
        select k.conname, referenced.relname, near.attname as near, far.attname as far, array_length(conkey, 1) as width
          from pg_constraint k join pg_class c on c.oid = k.conrelid
          join pg_class referenced on referenced.oid = k.confrelid
          join pg_attribute near on near.attrelid = k.conrelid and near.attnum = k.conkey[1]
          join pg_attribute far on far.attrelid = k.confrelid and far.attnum = k.confkey[1]
         where {_OURS} and k.contype = 'f'"""
    )
    assert len(references) > 10
    for name, referenced, near, far, width in references:
        expected = ("id", 1) if referenced == "organizations" else ("organization_id", max(width, 2))
        assert (name, near, (far, width)) == (name, "organization_id", expected)


async def test_every_table_belongs_to_organisations(owner: asyncpg.Connection) -> None:
    rows = await owner.fetch(
        f"""
        select c.relname from pg_class c where {_OURS} and c.relkind in ('r', 'p') and not exists (
            select from pg_attribute a where a.attrelid = c.oid and a.attname = 'organization_id' and a.attnotnull)"""
    )
    assert [name for (name,) in rows] == ["organizations"]


# -------------------------------------------------------------------------------------------- published content

FROZEN = pytest.mark.parametrize("version", [1, 2], ids=["withdrawn", "published"])
NEVER_CHANGES = "published and never change"


@FROZEN
@pytest.mark.parametrize(
    "statement",
    [
        pytest.param(_copy("walkthrough_steps", LAST, version=0, key="k", position=9), id="insert"),
        pytest.param(_change("walkthrough_steps", LAST, version="0"), id="move into it"),
        pytest.param("delete from walkthrough_steps where organization_id = 'a' and version = 0", id="delete"),
        pytest.param(_change("walkthrough_steps", "version = 0", id="id"), id="touch"),
    ],
)
async def test_steps_are_neither_added_to_nor_taken_from_a_frozen_version(
    tenants: asyncpg.Connection, statement: str, version: int
) -> None:
    statement = statement.replace('"version": 0', f'"version": {version}').replace(
        "version = 0", f"version = {version}"
    )
    with pytest.raises(asyncpg.IntegrityConstraintViolationError, match=NEVER_CHANGES):
        await tenants.execute(statement)


async def test_a_step_does_not_leave_a_frozen_version(tenants: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="does not move to another version"):
        await tenants.execute(_change("walkthrough_steps", "id = 'a23'", version="3", key="'k'", position="9"))


async def _state(connection: asyncpg.Connection, version: int = 3) -> str:
    return str(
        await connection.fetchval(
            "select state from walkthrough_versions where organization_id = 'a' and version = $1", version
        )
    )


def _another(column: object) -> str:
    """SQL for a value that differs from the one that is there."""
    name = column.name  # type: ignore[attr-defined]
    if isinstance(column.type, (Integer, BigInteger)):  # type: ignore[attr-defined]
        return f"coalesce({name}, 0) + 1"
    return f"coalesce({name}, '') || 'x'"


@FROZEN
@pytest.mark.parametrize("column", walkthrough_steps.columns, ids=lambda column: column.name)
async def test_no_column_of_a_frozen_versions_step_changes(
    tenants: asyncpg.Connection, column: object, version: int
) -> None:
    change = {column.name: _another(column)}  # type: ignore[attr-defined]
    with pytest.raises(
        asyncpg.IntegrityConstraintViolationError, match=f"{NEVER_CHANGES}|does not move to another version"
    ):
        await tenants.execute(_change("walkthrough_steps", f"id = 'a{version}2'", **change))


@pytest.mark.promise("version.frozen")
@FROZEN
@pytest.mark.parametrize("column", walkthrough_versions.columns, ids=lambda column: column.name)
async def test_no_column_of_a_frozen_version_changes(tenants: asyncpg.Connection, column: object, version: int) -> None:
    change = {column.name: _another(column)}  # type: ignore[attr-defined]
    with pytest.raises(asyncpg.IntegrityConstraintViolationError, match=NEVER_CHANGES):
        await tenants.execute(_change("walkthrough_versions", f"version = {version}", **change))


@pytest.mark.parametrize(
    ("version", "change"),
    [
        pytest.param(1, {"state": "'published'"}, id="a withdrawn one is published again"),
        pytest.param(1, {"state": "'draft'", "on_publish": "null", "published_at": "null"}, id="withdrawn to draft"),
        pytest.param(2, {"state": "'draft'", "on_publish": "null", "published_at": "null"}, id="published to draft"),
        pytest.param(2, {"state": "'withdrawn'", "title": "'Other'"}, id="withdrawn and changed at once"),
    ],
)
async def test_a_versions_state_goes_one_way(
    tenants: asyncpg.Connection, version: int, change: Mapping[str, str]
) -> None:
    with pytest.raises(asyncpg.IntegrityConstraintViolationError, match=NEVER_CHANGES):
        await tenants.execute(_change("walkthrough_versions", f"version = {version}", **change))


@pytest.mark.parametrize("is_first", [False, True], ids=["of the latest", "before there is a later one"])
async def test_an_older_version_can_be_withdrawn(tenants: asyncpg.Connection, is_first: bool) -> None:
    """Also by a publish that does it before it makes its own version the latest."""
    statements = [_PUBLISH_TOO, _LATEST_IS_3]
    statements.insert(1 if is_first else 2, _WITHDRAW_2)
    async with tenants.transaction():
        for statement in statements:
            await tenants.execute(statement)
    assert [await _state(tenants, number) for number in (2, 3)] == ["withdrawn", "published"]


@pytest.mark.parametrize("version", [1, 2], ids=["withdrawn", "published"])
async def test_a_version_begins_as_a_draft(tenants: asyncpg.Connection, version: int) -> None:
    with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="begins as a draft"):
        await tenants.execute(_copy("walkthrough_versions", f"version = {version}", version=9))


# ------------------------------------------------------------------------------------------- every other way in

# Steps a21 to a23 are the published version's, a31 to a33 the draft's. Each of these would leave a published version
# with other steps, or another version than people were told; each is one statement, or all there is in a transaction.
_PUBLISH_TOO = (
    "update walkthrough_versions set state = 'published', on_publish = 'keep', published_at = 1"
    " where organization_id = 'a' and version = 3"
)
# Leads to the first step, and breaks no constraint: it alone is not reached.
_STEP_TOO = (
    "insert into walkthrough_steps (organization_id, walkthrough_id, version, id, key, title, next_step_id, content,"
    " delivery) select 'a', 'wt_a', 3, 'a34', 'k', 'K', 'a31', 'Do it.', 'explain'"
)
_LATEST_IS_3 = "update walkthroughs set latest_version = 3 where organization_id = 'a'"
_WITHDRAW_2 = _change("walkthrough_versions", "version = 2", state="'withdrawn'")
_WITHDRAW_3 = _change("walkthrough_versions", "version = 3", state="'withdrawn'")
WAYS = {
    "a step, then the publish, in one statement": (
        f"with s as ({_STEP_TOO} returning 1) {_PUBLISH_TOO} and exists (select from s)"
    ),
    "the publish, then a step, in one statement": f"with p as ({_PUBLISH_TOO} returning 1) {_STEP_TOO} from p",
    "the publish, then without its last step, in one statement": (
        f"with p as ({_PUBLISH_TOO} returning 1), l as (update walkthrough_steps set next_step_id = null"
        " where organization_id = 'a' and id = 'a32' and exists (select from p) returning 1)"
        " delete from walkthrough_steps where organization_id = 'a' and id = 'a33' and exists (select from l)"
    ),
    "the publish, then another order, in one statement": (
        f"with p as ({_PUBLISH_TOO} returning 1) update walkthrough_steps"
        " set next_step_id = case id when 'a31' then 'a33' when 'a33' then 'a32' end"
        " where organization_id = 'a' and version = 3 and exists (select from p)"
    ),
    "a step after the publish, in one transaction": f"{_PUBLISH_TOO}; {_STEP_TOO}",
    "a step after the publish, constraints deferred": f"set constraints all deferred; {_PUBLISH_TOO}; {_STEP_TOO}",
    "a broken chain, constraints immediate": (
        "set constraints all immediate;"
        f" update walkthrough_steps set next_step_id = 'a31' where organization_id = 'a' and id = 'a33'; {_PUBLISH_TOO}"
    ),
    "two steps of one key, constraints deferred": (
        f"update walkthrough_steps set key = 'key-1' where organization_id = 'a' and version = 3; {_PUBLISH_TOO}"
    ),
    "a version is inserted published": _copy(
        "walkthrough_versions", DRAFT, version=4, state="published", on_publish="keep", published_at=1
    ),
    "a version becomes published on conflict": (
        _copy("walkthrough_versions", DRAFT, step_count=2)
        + " on conflict (organization_id, walkthrough_id, version) do update"
        " set state = 'published', on_publish = 'keep', published_at = 1, step_count = excluded.step_count"
    ),
    "a published version changes on conflict": (
        _copy("walkthrough_versions", DRAFT, version=2)
        + " on conflict (organization_id, walkthrough_id, version) do update set title = 'Other'"
    ),
    "a published step changes on conflict": (
        _copy("walkthrough_steps", "id = 'a22'")
        + " on conflict (organization_id, walkthrough_id, version, id) do update set title = 'Other'"
    ),
    "a published version is merged into": (
        "merge into walkthrough_versions v using (values ('a', 2)) as it (organization_id, version)"
        " on v.organization_id = it.organization_id and v.version = it.version"
        " when matched then update set title = 'Other'"
    ),
    "a published version is merged away": (
        "merge into walkthrough_versions v using (values ('a', 2)) as it (organization_id, version)"
        " on v.organization_id = it.organization_id and v.version = it.version when matched then delete"
    ),
    "a published step is merged into": (
        "merge into walkthrough_steps s using (values ('a', 'a22')) as it (organization_id, id)"
        " on s.organization_id = it.organization_id and s.id = it.id when matched then update set title = 'Other'"
    ),
    "a published step is merged away": (
        "merge into walkthrough_steps s using (values ('a', 'a22')) as it (organization_id, id)"
        " on s.organization_id = it.organization_id and s.id = it.id when matched then delete"
    ),
    "a step is merged into a published version": (
        "merge into walkthrough_steps s using (values ('a', 'a24')) as it (organization_id, id)"
        " on s.organization_id = it.organization_id and s.id = it.id when not matched then"
        " insert (organization_id, walkthrough_id, version, id, key, title, content, delivery)"
        " values ('a', 'wt_a', 2, 'a24', 'k', 'K', 'Do it.', 'explain')"
    ),
    "a draft's step takes a published one's place": (
        "update walkthrough_steps set version = 2, id = 'a24', key = 'k', position = 9"
        " where organization_id = 'a' and id = 'a33'"
    ),
    "the versions exchange their numbers": (
        "update walkthrough_versions set version = 5 - version where organization_id = 'a' and version in (2, 3)"
    ),
    "a version goes to another organisation": (
        "update walkthrough_versions set organization_id = 'b' where organization_id = 'a' and version = 2"
    ),
    "a walkthrough goes to another organisation": (
        "update walkthroughs set organization_id = 'b', id = 'wt_c', key = 'c' where organization_id = 'a'"
    ),
    "a walkthrough gets another id": "update walkthroughs set id = 'wt_c' where organization_id = 'a'",
    "an organisation gets another id": "update organizations set id = 'c' where id = 'a'",
    "a walkthrough is replaced within one statement": (
        "with gone as (delete from walkthroughs where organization_id = 'a' returning *)"
        " insert into walkthroughs select * from gone"
    ),
    "the latest version is withdrawn": _WITHDRAW_2,
    "a version is published, withdrawn, and made the latest": f"{_PUBLISH_TOO}; {_WITHDRAW_3}; {_LATEST_IS_3}",
    "a version is published and withdrawn, and never the latest": f"{_PUBLISH_TOO}; {_WITHDRAW_3}",
    "the latest version is withdrawn, and the later one taken back": (
        f"begin; {_WITHDRAW_2}; savepoint before; {_PUBLISH_TOO}; {_LATEST_IS_3};"
        " set constraints all immediate; rollback to before; commit"
    ),
    "all but the latest version go": "delete from walkthrough_versions where organization_id = 'a' and version < 2",
    "versions are truncated": "truncate walkthrough_versions cascade",
    "steps are truncated": "truncate walkthrough_steps cascade",
    "the ledger is truncated": "truncate walkthrough_ledger",
    "organisations are truncated": "truncate organizations cascade",
    "the latest version is the draft": "update walkthroughs set latest_version = 3 where organization_id = 'a'",
    "the latest version is an older one": "update walkthroughs set latest_version = 1 where organization_id = 'a'",
    "there is no latest version any more": (
        "update walkthroughs set latest_version = null, is_published = false where organization_id = 'a'"
    ),
    "a walkthrough begins with a draft for its latest version": (
        "with w as (insert into walkthroughs values ('a', 'wt_n', 'new', true, 1, null, 1, 1) returning 1)"
        " insert into walkthrough_versions (organization_id, walkthrough_id, version, state, title, description, type,"
        " step_count, content_hash, created_at) select 'a', 'wt_n', 1, 'draft', 'T', 'D', 'course', 0, 'h', 1 from w"
    ),
    "the ledger is rewritten": "update walkthrough_ledger set acted_by = 'eve' where organization_id = 'a'",
    "the ledger is touched": "update walkthrough_ledger set acted_by = acted_by where organization_id = 'a'",
    "the ledger forgets": "delete from walkthrough_ledger where organization_id = 'a' and number = 1",
    "the ledger is merged into": (
        "merge into walkthrough_ledger l using (values ('a', 1)) as it (organization_id, number)"
        " on l.organization_id = it.organization_id and l.number = it.number when matched then delete"
    ),
    "the ledger changes on conflict": (
        _copy("walkthrough_ledger", FIRST_ENTRY)
        + " on conflict (organization_id, walkthrough_id, number) do update set acted_by = 'eve'"
    ),
}


async def _published(connection: asyncpg.Connection) -> list[object]:
    """All that was published, as it is stored: versions, steps, the latest one's number and the ledger."""
    tables = ("walkthrough_versions", "walkthrough_steps")
    rows: list[object] = []
    for table in tables:
        rows += await connection.fetch(
            f"select it from {table} it join walkthrough_versions v using (organization_id, walkthrough_id, version)"
            " where v.state <> 'draft' order by it"
        )
    rows += await connection.fetch("select id, latest_version, is_published from walkthroughs order by organization_id")
    rows += await connection.fetch("select it from walkthrough_ledger it order by it")
    return rows


@pytest.mark.promise("version.frozen")
@pytest.mark.parametrize("role", ["owner", "service"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_there_is_no_way_to_change_what_is_published(tenants: asyncpg.Connection, way: str, role: str) -> None:
    """As the owner, a superuser even, with every trigger on; and as the service, whom grants hold back too."""
    before = await _published(tenants)
    if role == "service":
        await tenants.execute("set role cairn_service; set app.organization_id = 'a'")
    with pytest.raises((asyncpg.IntegrityConstraintViolationError, asyncpg.InsufficientPrivilegeError)) as refused:
        await tenants.execute(way)
    await tenants.execute("reset role; reset app.organization_id")
    if role == "owner":
        assert isinstance(refused.value, asyncpg.IntegrityConstraintViolationError)
    assert await _published(tenants) == before


@pytest.mark.promise("version.frozen")
@pytest.mark.parametrize("table", ["walkthrough_versions", "walkthrough_steps"])
async def test_nothing_is_copied_into_a_published_version(tenants: asyncpg.Connection, table: str) -> None:
    before = await _published(tenants)
    row: dict[str, object] = {"organization_id": "a", "walkthrough_id": "wt_a", "title": "T"}
    if table == "walkthrough_steps":
        row |= {"version": 2, "id": "a24", "key": "k", "content": "C", "delivery": "explain"}
    else:
        row |= {"version": 4, "state": "published", "on_publish": "keep", "published_at": 1, "description": "D"}
        row |= {"type": "course", "step_count": 0, "content_hash": "h", "created_at": 1, "first_step_id": "a21"}
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await tenants.copy_records_to_table(table, records=[tuple(row.values())], columns=list(row))
    assert await _published(tenants) == before


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_a_publish_that_could_not_see_a_step_added_meanwhile_is_refused(
    tenants: asyncpg.Connection, racer: asyncpg.Connection, isolation: str
) -> None:
    """Its snapshot is older than the step, which would then belong to the version, and to no chain."""
    await racer.execute(f"begin isolation level {isolation}; select from walkthrough_steps")
    await tenants.execute(_STEP_TOO)
    with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="read committed"):
        await racer.execute(_PUBLISH)
    await racer.execute("rollback")
    assert await _state(tenants) == "draft"


async def test_a_ledger_goes_with_its_walkthrough_alone(tenants: asyncpg.Connection) -> None:
    await tenants.execute("delete from walkthroughs where organization_id = 'a'")
    assert await tenants.fetchval("select count(*) from walkthrough_ledger where organization_id = 'a'") == 0
    assert await tenants.fetchval("select count(*) from walkthrough_ledger where organization_id = 'b'") == 2


# --------------------------------------------------------------------------------------------------- publishing

_PUBLISH = _change("walkthrough_versions", DRAFT, state="'published'", on_publish="'keep'", published_at="1")


def _steps(**next_or_position: str) -> str:
    """Changes steps of the draft: `a31="next_step_id = null"`."""
    return "; ".join(
        f"update walkthrough_steps set {change} where organization_id = 'a' and id = '{id}'"
        for id, change in next_or_position.items()
    )


BROKEN = {
    "a ring": _steps(a33="next_step_id = 'a31'"),
    "a ring beside the chain": _steps(a33="next_step_id = 'a33'", a32="next_step_id = null"),
    "a ring beside the chain, not counted": (
        _steps(a33="next_step_id = 'a33'", a32="next_step_id = null")
        + "; "
        + _change("walkthrough_versions", DRAFT, step_count="2")
    ),
    "too small a count": _change("walkthrough_versions", DRAFT, step_count="2"),
    "too large a count": _change("walkthrough_versions", DRAFT, step_count="4"),
    "two places swapped": _steps(a32="position = 3", a33="position = 2"),
    "places from zero": _steps(a31="position = 0", a32="position = 1", a33="position = 2"),
    "a step without a place": _steps(a33="position = null"),
    "no steps": (
        _change("walkthrough_versions", DRAFT, step_count="0", first_step_id="null")
        + "; delete from walkthrough_steps where organization_id = 'a' and version = 3"
    ),
    "no steps, but a count": (
        _change("walkthrough_versions", DRAFT, first_step_id="null")
        + "; delete from walkthrough_steps where organization_id = 'a' and version = 3"
    ),
    "no first step": _change("walkthrough_versions", DRAFT, first_step_id="null"),
    "the second step first": _change("walkthrough_versions", DRAFT, first_step_id="'a32'"),
    "the second step first, the first not counted": _change(
        "walkthrough_versions", DRAFT, first_step_id="'a32'", step_count="2"
    ),
}


@pytest.mark.parametrize("breaking", BROKEN.values(), ids=BROKEN)
async def test_what_is_not_one_chain_is_not_published(tenants: asyncpg.Connection, breaking: str) -> None:
    async with tenants.transaction():
        await tenants.execute(breaking)
        with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="are not one chain"):
            async with tenants.transaction():
                await tenants.execute(_PUBLISH)
        assert await _state(tenants) == "draft"
        # Away with what deferred constraints would refuse on their own at the end.
        await tenants.execute("delete from organizations where id = 'a'")


async def test_a_whole_chain_is_published(tenants: asyncpg.Connection) -> None:
    await tenants.execute(_PUBLISH)
    assert await _state(tenants) == "published"


async def test_a_draft_is_not_withdrawn_past_the_examination_of_its_chain(tenants: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await tenants.execute(
            _steps(a33="next_step_id = 'a31'")
            + "; "
            + _change("walkthrough_versions", DRAFT, state="'withdrawn'", on_publish="'keep'", published_at="1")
        )


@pytest.fixture
async def racer(owner_url: str, tenants: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """A second author's connection."""
    connection = await asyncpg.connect(owner_url)
    yield connection
    await connection.close()


async def test_a_publish_waits_for_a_step_that_is_being_added_and_counts_it(
    tenants: asyncpg.Connection, racer: asyncpg.Connection
) -> None:
    async with tenants.transaction():
        await tenants.execute(_copy("walkthrough_steps", LAST, id="a34", key="key-4", position=4))
        await tenants.execute(_steps(a33="next_step_id = 'a34'"))
        publish = asyncio.create_task(racer.execute(_PUBLISH))
        await until_waited_for(tenants, publish)
        assert not publish.done()
    with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="are not one chain"):
        await publish


async def test_a_step_waits_for_a_publish_and_comes_too_late(
    tenants: asyncpg.Connection, racer: asyncpg.Connection
) -> None:
    async with tenants.transaction():
        await tenants.execute(_PUBLISH)
        change = asyncio.create_task(racer.execute(_steps(a33="content = 'Something else.'")))
        await until_waited_for(tenants, change)
        assert not change.done()
    with pytest.raises(asyncpg.IntegrityConstraintViolationError, match=NEVER_CHANGES):
        await change


# ----------------------------------------------------------------------------------------------------- deleting


async def _rows(connection: asyncpg.Connection, organization: str) -> dict[str, int]:
    """How many rows each table of the catalogue has of an organisation."""
    tables = await connection.fetch(f"select c.relname from pg_class c where {_OURS} and c.relkind in ('r', 'p')")
    counts = {}
    for (table,) in tables:
        column = "id" if table == "organizations" else "organization_id"
        counts[table] = await connection.fetchval(f"select count(*) from {table} where {column} = $1", organization)
    return counts


async def test_an_organisation_goes_with_everything_of_it_and_nothing_of_another(tenants: asyncpg.Connection) -> None:
    before = await _rows(tenants, "b")
    assert await _rows(tenants, "a") == before
    assert all(before.values()), f"the tests' organisations have no row in some table: {before}"
    await tenants.execute("delete from organizations where id = 'a'")
    assert set((await _rows(tenants, "a")).values()) == {0}
    assert await _rows(tenants, "b") == before


async def test_a_draft_goes_with_its_steps(tenants: asyncpg.Connection) -> None:
    before, others = await _rows(tenants, "a"), await _rows(tenants, "b")
    drafted = await tenants.fetchval(
        "select count(*) from walkthrough_steps where organization_id = 'a' and version = 3"
    )
    await tenants.execute("delete from walkthrough_versions where organization_id = 'a' and version = 3")
    gone = {"walkthrough_versions": 1, "walkthrough_steps": drafted, "walkthrough_draft_edits": 1}
    assert await _rows(tenants, "a") == {table: rows - gone.get(table, 0) for table, rows in before.items()}
    assert await _rows(tenants, "b") == others


@pytest.mark.promise("version.frozen")
@FROZEN
async def test_a_frozen_version_is_not_deleted(tenants: asyncpg.Connection, version: int) -> None:
    before = await _rows(tenants, "a")
    with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="is published and stays"):
        await tenants.execute(f"delete from walkthrough_versions where organization_id = 'a' and version = {version}")
    assert await _rows(tenants, "a") == before


async def test_a_walkthrough_goes_with_all_of_it_and_leaves_the_calls(tenants: asyncpg.Connection) -> None:
    before, others = await _rows(tenants, "a"), await _rows(tenants, "b")
    await tenants.execute("delete from walkthroughs where organization_id = 'a'")
    after = await _rows(tenants, "a")
    gone = {table for table in before if table.startswith("walkthrough")} | {"mcp_server_walkthroughs"}
    assert after == {table: 0 if table in gone else rows for table, rows in before.items()}
    assert await _rows(tenants, "b") == others


_GRANTED = {"access_tokens", "oauth_grants", "oauth_codes", "oauth_refresh_tokens"}


@pytest.mark.parametrize(
    ("table", "also"),
    [
        (
            "mcp_servers",
            {*_GRANTED, "mcp_server_walkthroughs", "tool_calls", "oauth_clients", "oauth_authorizations"},
        ),
        ("mcp_server_users", {*_GRANTED, "mcp_server_user_identities"}),
    ],
)
async def test_a_server_or_person_goes_with_the_progress_there(
    tenants: asyncpg.Connection, table: str, also: set[str]
) -> None:
    before, others = await _rows(tenants, "a"), await _rows(tenants, "b")
    await tenants.execute(f"delete from {table} where organization_id = 'a'")
    gone = {table, "walkthrough_progress", "walkthrough_progress_events"} | also
    assert await _rows(tenants, "a") == {name: 0 if name in gone else rows for name, rows in before.items()}
    assert await _rows(tenants, "b") == others
