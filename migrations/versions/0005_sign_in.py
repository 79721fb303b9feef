"""Signing in: who a person is, the clients that ask for them, their grants and tokens, and visitors.

Safe while the previous release serves: new columns have defaults, and it neither reads nor writes what is new. It does
not know of a token's end, and takes for good what has expired; it has no part in issuing such tokens.

Nothing here reads the rows of a table that may be large, since those tables are held until it is done: constraints are
not validated, and what has to read is left to the next revision.
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"

TABLES = """
alter table mcp_servers
    drop constraint mcp_servers_auth_mode_check,
    add constraint mcp_servers_auth_mode_check check (auth_mode in ('on_connect', 'on_demand', 'anonymous'));

-- A visitor who has kept their progress: whose account it went to.
alter table mcp_server_users
    add column merged_into text,
    add constraint mcp_server_users_merged_into_fkey foreign key (organization_id, merged_into)
        references mcp_server_users (organization_id, id) on delete cascade not valid,
    add constraint mcp_server_users_merged_into_check check (merged_into is null or email is null) not valid;

-- How a person is known: by an address ('email'), by an identity provider (its issuer), or as the visitor of a server
-- ('visitor:' and the server's id; the subject is a hash).
create table mcp_server_user_identities (
    organization_id    text   not null,
    issuer             text   not null,
    subject            text   not null,
    mcp_server_user_id text   not null,
    created_at         bigint not null,
    constraint mcp_server_user_identities_pkey primary key (organization_id, issuer, subject),
    constraint mcp_server_user_identities_user_fkey foreign key (organization_id, mcp_server_user_id)
        references mcp_server_users (organization_id, id) on delete cascade
);
create index mcp_server_user_identities_by_user on mcp_server_user_identities (organization_id, mcp_server_user_id);

-- An identity provider of the organisation's own (OpenID Connect). The secret is sent to it, so it is kept as it is.
create table oidc_providers (
    organization_id    text    not null,
    issuer             text    not null,
    client_id          text    not null,
    client_secret      text    not null,
    name               text    not null,
    offers_email_codes boolean not null default true,
    created_at         bigint  not null,
    constraint oidc_providers_pkey primary key (organization_id),
    constraint oidc_providers_organization_fkey foreign key (organization_id)
        references organizations (id) on delete cascade
);

create table oauth_clients (
    organization_id text   not null,
    mcp_server_id   text   not null,
    client_id       text   not null,
    metadata        jsonb  not null,
    secret_hash     bytea,
    created_at      bigint not null,
    last_used_at    bigint,
    constraint oauth_clients_pkey primary key (organization_id, mcp_server_id, client_id),
    constraint oauth_clients_server_fkey foreign key (organization_id, mcp_server_id)
        references mcp_servers (organization_id, id) on delete cascade
);
create index oauth_clients_unused on oauth_clients (organization_id, mcp_server_id, created_at)
    where last_used_at is null;

-- Sign-ins under way. The id is a secret of the browser's, and so is what it is bound to.
create table oauth_authorizations (
    organization_id text   not null,
    mcp_server_id   text   not null,
    id_hash         bytea  not null,
    browser_hash    bytea  not null,
    request         jsonb,
    visitor_id      text,
    sign_in         jsonb  not null,
    created_at      bigint not null,
    expires_at      bigint not null,
    constraint oauth_authorizations_pkey primary key (organization_id, mcp_server_id, id_hash),
    constraint oauth_authorizations_server_fkey foreign key (organization_id, mcp_server_id)
        references mcp_servers (organization_id, id) on delete cascade,
    constraint oauth_authorizations_visitor_fkey foreign key (organization_id, visitor_id)
        references mcp_server_users (organization_id, id) on delete cascade,
    -- For a client that asks, or for a visitor who keeps their progress.
    constraint oauth_authorizations_purpose_check check ((request is null) <> (visitor_id is null))
);
create index oauth_authorizations_expired on oauth_authorizations (organization_id, mcp_server_id, expires_at);

-- What a person let a client do, once: all codes and tokens that come of it are one family, and end together. Unless
-- it is revoked before, one of them is good until `good_until`.
create table oauth_grants (
    organization_id    text   not null,
    id                 text   not null,
    mcp_server_id      text   not null,
    mcp_server_user_id text   not null,
    client_id          text   not null,
    client_name        text   not null,
    scope              text   not null,
    created_at         bigint not null,
    revoked_at         bigint,
    good_until         bigint not null,
    constraint oauth_grants_pkey primary key (organization_id, id),
    constraint oauth_grants_server_fkey foreign key (organization_id, mcp_server_id)
        references mcp_servers (organization_id, id) on delete cascade,
    constraint oauth_grants_user_fkey foreign key (organization_id, mcp_server_user_id)
        references mcp_server_users (organization_id, id) on delete cascade
);
create index oauth_grants_by_user on oauth_grants (organization_id, mcp_server_user_id);
create index oauth_grants_by_end on oauth_grants (organization_id, mcp_server_id, good_until);

create table oauth_codes (
    organization_id text   not null,
    code_hash       bytea  not null,
    grant_id        text   not null,
    redirect_uri    text,
    code_challenge  text   not null,
    expires_at      bigint not null,
    used_at         bigint,
    constraint oauth_codes_pkey primary key (organization_id, code_hash),
    constraint oauth_codes_grant_fkey foreign key (organization_id, grant_id)
        references oauth_grants (organization_id, id) on delete cascade
);
create index oauth_codes_by_grant on oauth_codes (organization_id, grant_id);

create table oauth_refresh_tokens (
    organization_id text   not null,
    token_hash      bytea  not null,
    grant_id        text   not null,
    created_at      bigint not null,
    expires_at      bigint not null,
    rotated_at      bigint,
    constraint oauth_refresh_tokens_pkey primary key (organization_id, token_hash),
    constraint oauth_refresh_tokens_grant_fkey foreign key (organization_id, grant_id)
        references oauth_grants (organization_id, id) on delete cascade
);
create index oauth_refresh_tokens_by_grant on oauth_refresh_tokens (organization_id, grant_id);

-- Tokens that an operator gave out have no grant and no end.
alter table access_tokens
    add column grant_id text,
    add column scope text not null default 'walkthroughs',
    add column expires_at bigint,
    add constraint access_tokens_grant_fkey foreign key (organization_id, grant_id)
        references oauth_grants (organization_id, id) on delete cascade not valid;
"""

# A visitor's progress goes to an account with all that happened to it, or ends where the account has its own.
PROGRESS = """
alter table walkthrough_progress
    drop constraint walkthrough_progress_status_check,
    add constraint walkthrough_progress_status_check check (
        (current_step_id is null) = (completed_at is not null) and
        (status = 'merged' or
         (status = 'in_progress' and current_step_id is not null) or
         (status = 'completed' and current_step_id is null))) not valid;
alter table walkthrough_progress_events
    drop constraint walkthrough_progress_events_kind_check,
    add constraint walkthrough_progress_events_kind_check
        check (kind in ('started', 'resumed', 'advanced', 'stuck', 'moved', 'restarted', 'merged')) not valid,
    drop constraint walkthrough_progress_events_progress_fkey,
    add constraint walkthrough_progress_events_progress_fkey
        foreign key (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id)
        references walkthrough_progress (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id)
        on update cascade on delete cascade not valid;
"""

GRANTS = """
grant update on mcp_servers to cairn_service;
-- A person who is erased goes with everything that is theirs; of their calls only that they were made is left.
grant delete on mcp_server_users to cairn_service;
grant update (mcp_server_user_id, client_name, client_version, input) on tool_calls to cairn_service;
grant update on access_tokens to cairn_service;
grant select, insert, update, delete on mcp_server_user_identities, oidc_providers, oauth_clients,
    oauth_authorizations, oauth_grants, oauth_codes, oauth_refresh_tokens to cairn_service;
"""

DOWN = """
drop table oauth_refresh_tokens, oauth_codes, oauth_authorizations, oauth_clients, oidc_providers,
    mcp_server_user_identities;
delete from access_tokens where grant_id is not null;
alter table access_tokens drop column grant_id, drop column scope, drop column expires_at;
drop table oauth_grants;
delete from walkthrough_progress where status = 'merged';
delete from walkthrough_progress_events where kind = 'merged';
alter table walkthrough_progress
    drop constraint walkthrough_progress_status_check,
    add constraint walkthrough_progress_status_check check (
        (status = 'in_progress' and current_step_id is not null and completed_at is null) or
        (status = 'completed' and current_step_id is null and completed_at is not null));
alter table walkthrough_progress_events
    drop constraint walkthrough_progress_events_kind_check,
    add constraint walkthrough_progress_events_kind_check
        check (kind in ('started', 'resumed', 'advanced', 'stuck', 'moved', 'restarted')),
    drop constraint walkthrough_progress_events_progress_fkey,
    add constraint walkthrough_progress_events_progress_fkey
        foreign key (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id)
        references walkthrough_progress (organization_id, mcp_server_id, mcp_server_user_id, walkthrough_id)
        on delete cascade;
alter table mcp_server_users drop column merged_into;
update mcp_servers set auth_mode = 'on_demand' where auth_mode = 'anonymous';
alter table mcp_servers
    drop constraint mcp_servers_auth_mode_check,
    add constraint mcp_servers_auth_mode_check check (auth_mode in ('on_connect', 'on_demand'));
revoke update on mcp_servers, access_tokens from cairn_service;
revoke delete on mcp_server_users from cairn_service;
revoke update (mcp_server_user_id, client_name, client_version, input) on tool_calls from cairn_service;
"""


def upgrade() -> None:
    op.execute("set local lock_timeout = '3s'")
    for statements in (TABLES, PROGRESS, GRANTS):
        _run(statements)


def downgrade() -> None:
    """Everybody who signed in has to be given a token by an operator again; what visitors kept stays kept."""
    op.execute("set local lock_timeout = '3s'")
    _run(DOWN)


def _run(statements: str) -> None:
    # Several statements in one go are the driver's simple protocol, which SQLAlchemy does not speak.
    op.get_bind().connection.run_async(lambda driver: driver.execute(statements))
