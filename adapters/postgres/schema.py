"""Bringing a database to this release's schema, and telling whether it is there."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from adapters.postgres.connections import SERVICE_ROLE, Access, unavailable_when_away
from adapters.postgres.tables import metadata
from domain.errors import WrongSchema

if TYPE_CHECKING:
    from sqlalchemy import Connection

_MONTHS_AHEAD = 3
# Two processes that migrate at once take turns. Transaction-level, as everywhere.
_MIGRATION_LOCK = 0x43414952


async def migrate(owner_url: str, *, service_login: str | None = None, revision: str = "head") -> str:
    """Brings the schema up to `revision`, as its owner; safe to repeat and to run twice at once.

    Makes the next months' partitions too, and lets `service_login`, where given, work as the service role.
    Returns the revision that the database is then at.

    Raises:
        WrongSchema: when a newer release has migrated it, or the owner may not do what is needed.
        TemporarilyUnavailable: when it cannot be reached.
    """
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda **_: asyncpg.connect(owner_url, timeout=10, server_settings={"application_name": "cairn"}),
        poolclass=NullPool,
    )
    try:
        async with unavailable_when_away(), engine.connect() as connection:
            await connection.run_sync(_upgrade, revision)
            await connection.commit()
            await connection.execute(
                text("select make_tool_call_partitions(now(), :months)"), {"months": _MONTHS_AHEAD}
            )
            if service_login == SERVICE_ROLE:
                await connection.execute(text(f"alter role {SERVICE_ROLE} login"))
            elif service_login is not None:
                quoted = service_login.replace('"', '""')
                await connection.execute(text(f'grant {SERVICE_ROLE} to "{quoted}"'))
            await connection.commit()
            return str(await connection.scalar(text("select version_num from alembic_version")))
    except CommandError as error:
        raise _newer() from error
    except DBAPIError as error:
        if isinstance(error.orig.__cause__ if error.orig else None, asyncpg.InsufficientPrivilegeError):
            raise WrongSchema(
                "the login may not change this database: migrate as its owner, a login that may create roles"
            ) from error
        raise
    finally:
        await engine.dispose()


async def ensure_database(superuser_url: str, name: str) -> None:
    """Makes the database if it is not there; for a server of our own, where nobody else does."""
    async with unavailable_when_away():
        connection = await asyncpg.connect(superuser_url, timeout=10)
        try:
            if not await connection.fetchval("select exists (select from pg_database where datname = $1)", name):
                with suppress(
                    asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError
                ):  # another process was faster
                    await connection.execute(f'create database "{name}"')
        finally:
            await connection.close(timeout=1)


def login_of(url: str) -> str | None:
    """The login that a `postgresql://` URL names, if it does."""
    return make_url(url).username


def _upgrade(connection: Connection, revision: str) -> None:
    connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
    config = _config()
    config.attributes["connection"] = connection
    config.attributes["target_metadata"] = metadata
    command.upgrade(config, revision)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parents[2] / "migrations"))
    return config


async def check_schema(access: Access) -> None:
    """Returns when the service can work on this database.

    Raises:
        WrongSchema: when it was never migrated, or by an older or a newer release; or when the service would
            work as an owner or superuser, whom no grant and no row policy holds back.
        TemporarilyUnavailable: when it cannot be reached.
    """
    head = ScriptDirectory.from_config(_config()).get_current_head()
    async with unavailable_when_away():
        try:
            connection = await asyncpg.connect(**access.connect_arguments())
        except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
            raise WrongSchema(f"the database lets the service not in ({error}): run 'cairn migrate'") from error
        try:
            revision = await connection.fetchval("select version_num from alembic_version")
            may_do_anything = await connection.fetchval(
                "select rolsuper or exists (select from pg_class where relname = 'walkthrough_progress' and"
                " pg_has_role(relowner, 'usage')) from pg_roles where rolname = current_user"
            )
        except asyncpg.UndefinedTableError as error:
            raise WrongSchema("the database has no Cairn schema yet: run 'cairn migrate'") from error
        except asyncpg.InsufficientPrivilegeError as error:
            raise WrongSchema(
                "the service's login may not read the schema: run 'cairn migrate' as the owner, with "
                "CAIRN_DATABASE_URL naming this login"
            ) from error
        finally:
            await connection.close(timeout=1)
    if may_do_anything:
        raise WrongSchema("the service must not work as the owner of its tables or as a superuser")
    if revision == head:
        return
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if revision in known:
        raise WrongSchema(f"the database is at schema {revision}, this release needs {head}: run 'cairn migrate'")
    raise _newer()


def _newer() -> WrongSchema:
    return WrongSchema("the database was migrated by a newer Cairn: upgrade this installation to that release")
