"""The tables as SQLAlchemy knows them. A test finds no difference between these and what the migrations make."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

metadata = MetaData()


def _text(name: str, *, nullable: bool = False) -> Column[str]:
    return Column(name, Text, nullable=nullable)


def _integer(name: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, Integer, nullable=nullable)


def _millis(name: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, BigInteger, nullable=nullable)


def _parent(name: str, columns: list[str], table: str, keys: list[str]) -> ForeignKeyConstraint:
    """A reference to the immediate parent, within the organisation; the row goes when the parent goes."""
    return ForeignKeyConstraint(columns, [f"{table}.{key}" for key in keys], name=name, ondelete="CASCADE")


_ORGANIZATION = (["organization_id"], "organizations", ["id"])
_SERVER = (["organization_id", "mcp_server_id"], "mcp_servers", ["organization_id", "id"])
_USER = (["organization_id", "mcp_server_user_id"], "mcp_server_users", ["organization_id", "id"])
_WALKTHROUGH = (["organization_id", "walkthrough_id"], "walkthroughs", ["organization_id", "id"])
_VERSION_COLUMNS = ["organization_id", "walkthrough_id", "version"]
_VERSION = (_VERSION_COLUMNS, "walkthrough_versions", _VERSION_COLUMNS)
_GRANT = (["organization_id", "grant_id"], "oauth_grants", ["organization_id", "id"])
_PROGRESS_COLUMNS = ["organization_id", "mcp_server_id", "mcp_server_user_id", "walkthrough_id"]

organizations = Table(
    "organizations",
    metadata,
    _text("id"),
    _text("slug"),
    _text("name"),
    _millis("created_at"),
    PrimaryKeyConstraint("id", name="organizations_pkey"),
    UniqueConstraint("slug", name="organizations_slug_key"),
)

mcp_servers = Table(
    "mcp_servers",
    metadata,
    _text("organization_id"),
    _text("id"),
    _text("slug"),
    _text("custom_domain", nullable=True),
    _text("name"),
    _text("auth_mode"),
    Column("settings", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    _millis("created_at"),
    PrimaryKeyConstraint("organization_id", "id", name="mcp_servers_pkey"),
    UniqueConstraint("slug", name="mcp_servers_slug_key"),
    UniqueConstraint("custom_domain", name="mcp_servers_custom_domain_key"),
    _parent("mcp_servers_organization_fkey", *_ORGANIZATION),
)

mcp_server_users = Table(
    "mcp_server_users",
    metadata,
    _text("organization_id"),
    _text("id"),
    _text("email", nullable=True),
    _millis("email_verified_at", nullable=True),
    _millis("first_seen_at"),
    _millis("last_seen_at"),
    _text("merged_into", nullable=True),
    PrimaryKeyConstraint("organization_id", "id", name="mcp_server_users_pkey"),
    UniqueConstraint("organization_id", "email", name="mcp_server_users_email_key"),
    _parent("mcp_server_users_organization_fkey", *_ORGANIZATION),
    _parent(
        "mcp_server_users_merged_into_fkey",
        ["organization_id", "merged_into"],
        "mcp_server_users",
        ["organization_id", "id"],
    ),
    Index(
        "mcp_server_users_merged",
        "organization_id",
        "merged_into",
        postgresql_where=text("merged_into is not null"),
    ),
    Index(
        "mcp_server_users_visitors",
        "organization_id",
        "id",
        postgresql_where=text("email is null and merged_into is null"),
    ),
)

mcp_server_user_identities = Table(
    "mcp_server_user_identities",
    metadata,
    _text("organization_id"),
    _text("issuer"),
    _text("subject"),
    _text("mcp_server_user_id"),
    _millis("created_at"),
    PrimaryKeyConstraint("organization_id", "issuer", "subject", name="mcp_server_user_identities_pkey"),
    _parent("mcp_server_user_identities_user_fkey", *_USER),
    Index("mcp_server_user_identities_by_user", "organization_id", "mcp_server_user_id"),
)

oidc_providers = Table(
    "oidc_providers",
    metadata,
    _text("organization_id"),
    _text("issuer"),
    _text("client_id"),
    _text("client_secret"),
    _text("name"),
    Column("offers_email_codes", Boolean, nullable=False, server_default=text("true")),
    _millis("created_at"),
    PrimaryKeyConstraint("organization_id", name="oidc_providers_pkey"),
    _parent("oidc_providers_organization_fkey", *_ORGANIZATION),
)

oauth_clients = Table(
    "oauth_clients",
    metadata,
    _text("organization_id"),
    _text("mcp_server_id"),
    _text("client_id"),
    Column("metadata", JSONB, nullable=False),
    Column("secret_hash", LargeBinary, nullable=True),
    _millis("created_at"),
    _millis("last_used_at", nullable=True),
    PrimaryKeyConstraint("organization_id", "mcp_server_id", "client_id", name="oauth_clients_pkey"),
    _parent("oauth_clients_server_fkey", *_SERVER),
    Index(
        "oauth_clients_unused",
        "organization_id",
        "mcp_server_id",
        "created_at",
        postgresql_where=text("last_used_at is null"),
    ),
)

oauth_authorizations = Table(
    "oauth_authorizations",
    metadata,
    _text("organization_id"),
    _text("mcp_server_id"),
    Column("id_hash", LargeBinary, nullable=False),
    Column("browser_hash", LargeBinary, nullable=False),
    Column("request", JSONB(none_as_null=True), nullable=True),
    _text("visitor_id", nullable=True),
    Column("sign_in", JSONB, nullable=False),
    _millis("created_at"),
    _millis("expires_at"),
    PrimaryKeyConstraint("organization_id", "mcp_server_id", "id_hash", name="oauth_authorizations_pkey"),
    _parent("oauth_authorizations_server_fkey", *_SERVER),
    _parent(
        "oauth_authorizations_visitor_fkey",
        ["organization_id", "visitor_id"],
        "mcp_server_users",
        ["organization_id", "id"],
    ),
    Index("oauth_authorizations_expired", "organization_id", "mcp_server_id", "expires_at"),
)

oauth_grants = Table(
    "oauth_grants",
    metadata,
    _text("organization_id"),
    _text("id"),
    _text("mcp_server_id"),
    _text("mcp_server_user_id"),
    _text("client_id"),
    _text("client_name"),
    _text("scope"),
    _millis("created_at"),
    _millis("revoked_at", nullable=True),
    _millis("good_until"),
    PrimaryKeyConstraint("organization_id", "id", name="oauth_grants_pkey"),
    _parent("oauth_grants_server_fkey", *_SERVER),
    _parent("oauth_grants_user_fkey", *_USER),
    Index("oauth_grants_by_user", "organization_id", "mcp_server_user_id"),
    Index("oauth_grants_by_end", "organization_id", "mcp_server_id", "good_until"),
)

oauth_codes = Table(
    "oauth_codes",
    metadata,
    _text("organization_id"),
    Column("code_hash", LargeBinary, nullable=False),
    _text("grant_id"),
    _text("redirect_uri", nullable=True),
    _text("code_challenge"),
    _millis("expires_at"),
    _millis("used_at", nullable=True),
    PrimaryKeyConstraint("organization_id", "code_hash", name="oauth_codes_pkey"),
    _parent("oauth_codes_grant_fkey", *_GRANT),
    Index("oauth_codes_by_grant", "organization_id", "grant_id"),
)

oauth_refresh_tokens = Table(
    "oauth_refresh_tokens",
    metadata,
    _text("organization_id"),
    Column("token_hash", LargeBinary, nullable=False),
    _text("grant_id"),
    _millis("created_at"),
    _millis("expires_at"),
    _millis("rotated_at", nullable=True),
    PrimaryKeyConstraint("organization_id", "token_hash", name="oauth_refresh_tokens_pkey"),
    _parent("oauth_refresh_tokens_grant_fkey", *_GRANT),
    Index("oauth_refresh_tokens_by_grant", "organization_id", "grant_id"),
)

access_tokens = Table(
    "access_tokens",
    metadata,
    _text("organization_id"),
    Column("token_hash", LargeBinary, nullable=False),
    _text("mcp_server_id"),
    _text("mcp_server_user_id"),
    _millis("created_at"),
    _text("grant_id", nullable=True),
    Column("scope", Text, nullable=False, server_default=text("'walkthroughs'::text")),
    _millis("expires_at", nullable=True),
    PrimaryKeyConstraint("organization_id", "token_hash", name="access_tokens_pkey"),
    _parent("access_tokens_server_fkey", *_SERVER),
    _parent("access_tokens_user_fkey", *_USER),
    _parent("access_tokens_grant_fkey", *_GRANT),
    Index(
        "access_tokens_by_grant",
        "organization_id",
        "grant_id",
        postgresql_where=text("grant_id is not null"),
    ),
    Index("access_tokens_by_user", "organization_id", "mcp_server_user_id"),
)

walkthroughs = Table(
    "walkthroughs",
    metadata,
    _text("organization_id"),
    _text("id"),
    _text("key"),
    Column("is_published", Boolean, nullable=False, server_default=text("false")),
    _integer("latest_version", nullable=True),
    _millis("archived_at", nullable=True),
    _millis("created_at"),
    _millis("updated_at"),
    PrimaryKeyConstraint("organization_id", "id", name="walkthroughs_pkey"),
    UniqueConstraint("organization_id", "key", name="walkthroughs_key_key"),
    _parent("walkthroughs_organization_fkey", *_ORGANIZATION),
    ForeignKeyConstraint(
        ["organization_id", "id", "latest_version"],
        [f"walkthrough_versions.{column}" for column in _VERSION_COLUMNS],
        name="walkthroughs_latest_version_fkey",
        use_alter=True,
    ),
)

walkthrough_versions = Table(
    "walkthrough_versions",
    metadata,
    _text("organization_id"),
    _text("walkthrough_id"),
    _integer("version"),
    _text("state"),
    _text("title"),
    _text("description"),
    _text("type"),
    _text("first_step_id", nullable=True),
    _integer("step_count"),
    _integer("estimated_minutes", nullable=True),
    _text("content_hash"),
    _text("on_publish", nullable=True),
    _millis("published_at", nullable=True),
    _text("published_by", nullable=True),
    _millis("created_at"),
    Column("revision", Integer, nullable=False, server_default=text("0")),
    Column("pushed_revision", Integer, nullable=False, server_default=text("0")),
    PrimaryKeyConstraint(*_VERSION_COLUMNS, name="walkthrough_versions_pkey"),
    _parent("walkthrough_versions_walkthrough_fkey", *_WALKTHROUGH),
    ForeignKeyConstraint(
        [*_VERSION_COLUMNS, "first_step_id"],
        [f"walkthrough_steps.{column}" for column in (*_VERSION_COLUMNS, "id")],
        name="walkthrough_versions_first_step_fkey",
        deferrable=True,
        initially="DEFERRED",
        use_alter=True,
    ),
    Index(
        "walkthrough_versions_one_draft",
        "organization_id",
        "walkthrough_id",
        unique=True,
        postgresql_where=text("state = 'draft'"),
    ),
)

walkthrough_steps = Table(
    "walkthrough_steps",
    metadata,
    _text("organization_id"),
    _text("walkthrough_id"),
    _integer("version"),
    _text("id"),
    _text("key"),
    _text("title"),
    _text("next_step_id", nullable=True),
    _integer("position", nullable=True),
    _text("content"),
    _text("assistant_notes", nullable=True),
    _text("workspace_actions", nullable=True),
    _text("done_when", nullable=True),
    _text("delivery"),
    _integer("estimated_minutes", nullable=True),
    PrimaryKeyConstraint(*_VERSION_COLUMNS, "id", name="walkthrough_steps_pkey"),
    UniqueConstraint(*_VERSION_COLUMNS, "key", name="walkthrough_steps_key_key", deferrable=True, initially="DEFERRED"),
    UniqueConstraint(
        *_VERSION_COLUMNS,
        "position",
        name="walkthrough_steps_position_key",
        deferrable=True,
        initially="DEFERRED",
    ),
    UniqueConstraint(
        *_VERSION_COLUMNS,
        "next_step_id",
        name="walkthrough_steps_next_step_key",
        deferrable=True,
        initially="DEFERRED",
        postgresql_nulls_not_distinct=True,
    ),
    Index("walkthrough_steps_outline", *_VERSION_COLUMNS, "position", postgresql_include=["id", "key", "title"]),
    _parent("walkthrough_steps_version_fkey", *_VERSION),
    ForeignKeyConstraint(
        [*_VERSION_COLUMNS, "next_step_id"],
        [f"walkthrough_steps.{column}" for column in (*_VERSION_COLUMNS, "id")],
        name="walkthrough_steps_next_step_fkey",
        deferrable=True,
        initially="DEFERRED",
    ),
)

walkthrough_draft_edits = Table(
    "walkthrough_draft_edits",
    metadata,
    _text("organization_id"),
    _text("walkthrough_id"),
    _integer("version"),
    _integer("revision"),
    Column("edit", JSONB, nullable=False),
    _text("edited_by"),
    _millis("edited_at"),
    PrimaryKeyConstraint(*_VERSION_COLUMNS, "revision", name="walkthrough_draft_edits_pkey"),
    _parent("walkthrough_draft_edits_version_fkey", *_VERSION),
)

walkthrough_ledger = Table(
    "walkthrough_ledger",
    metadata,
    _text("organization_id"),
    _text("walkthrough_id"),
    _integer("number"),
    _text("deed"),
    _integer("version", nullable=True),
    _text("content_hash", nullable=True),
    _text("policy", nullable=True),
    _integer("source_version", nullable=True),
    _text("acted_by", nullable=True),
    _millis("acted_at"),
    PrimaryKeyConstraint("organization_id", "walkthrough_id", "number", name="walkthrough_ledger_pkey"),
    _parent("walkthrough_ledger_walkthrough_fkey", *_WALKTHROUGH),
)

mcp_server_walkthroughs = Table(
    "mcp_server_walkthroughs",
    metadata,
    _text("organization_id"),
    _text("mcp_server_id"),
    _text("walkthrough_id"),
    _integer("display_order"),
    Column("is_enabled", Boolean, nullable=False, server_default=text("true")),
    _millis("created_at"),
    PrimaryKeyConstraint("organization_id", "mcp_server_id", "walkthrough_id", name="mcp_server_walkthroughs_pkey"),
    _parent("mcp_server_walkthroughs_server_fkey", *_SERVER),
    _parent("mcp_server_walkthroughs_walkthrough_fkey", *_WALKTHROUGH),
)

walkthrough_progress = Table(
    "walkthrough_progress",
    metadata,
    *(_text(column) for column in _PROGRESS_COLUMNS),
    _integer("version"),
    _integer("attempt"),
    _integer("revision"),
    _text("current_step_id", nullable=True),
    Column("carried", ARRAY(Text), nullable=False, server_default=text("'{}'::text[]")),
    _text("status"),
    _millis("started_at"),
    _millis("last_activity_at"),
    _millis("completed_at", nullable=True),
    PrimaryKeyConstraint(*_PROGRESS_COLUMNS, name="walkthrough_progress_pkey"),
    _parent("walkthrough_progress_server_fkey", *_SERVER),
    _parent("walkthrough_progress_user_fkey", *_USER),
    _parent("walkthrough_progress_version_fkey", *_VERSION),
    Index("walkthrough_progress_by_walkthrough", "organization_id", "walkthrough_id"),
    postgresql_with={"fillfactor": 80},
)

walkthrough_progress_events = Table(
    "walkthrough_progress_events",
    metadata,
    *(_text(column) for column in _PROGRESS_COLUMNS),
    _integer("revision"),
    _integer("attempt"),
    _integer("version"),
    _text("kind"),
    _text("from_step_id", nullable=True),
    _text("to_step_id", nullable=True),
    _text("outcome", nullable=True),
    _text("note", nullable=True),
    _millis("occurred_at"),
    PrimaryKeyConstraint(*_PROGRESS_COLUMNS, "revision", name="walkthrough_progress_events_pkey"),
    _parent("walkthrough_progress_events_progress_fkey", _PROGRESS_COLUMNS, "walkthrough_progress", _PROGRESS_COLUMNS),
    Index("walkthrough_progress_events_by_time", "organization_id", "walkthrough_id", "occurred_at"),
)

tool_calls = Table(
    "tool_calls",
    metadata,
    _text("organization_id"),
    _millis("created_at"),
    _text("id"),
    _text("mcp_server_id"),
    _text("mcp_server_user_id", nullable=True),
    _text("tool_name"),
    _text("client_name", nullable=True),
    _text("client_version", nullable=True),
    _text("protocol_version"),
    _text("walkthrough_id", nullable=True),
    _integer("version", nullable=True),
    _text("step_id", nullable=True),
    _text("outcome"),
    _text("error_code", nullable=True),
    Column("duration_us", BigInteger, nullable=False),
    Column("input", JSONB, nullable=False),
    PrimaryKeyConstraint("organization_id", "created_at", "id", name="tool_calls_pkey"),
    _parent("tool_calls_server_fkey", *_SERVER),
    postgresql_partition_by="RANGE (created_at)",
)
