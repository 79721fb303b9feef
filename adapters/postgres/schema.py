"""Bringing a database to this release's schema, and telling whether it is there.

A revision is expanding, so that the release before goes on serving, or contracting (`is_contracting` in its module): it
takes away what only that release needs. `cairn migrate` leaves what contracts until it is told to finish, by whoever
knows that no process of the release before is left: two runs at once, or one too many, shut nobody out.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
from sqlalchemy import exists, make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from adapters.postgres.connections import (
    SERVICE_ROLE,
    SERVICE_TIMEOUTS,
    Access,
    cause_of,
    connect,
    unavailable_when_away,
)
from adapters.postgres.tables import metadata, organizations
from domain.errors import TemporarilyUnavailable, WrongSchema

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import Script, ScriptDirectory
    from sqlalchemy import Connection

# alembic is imported where it is used: to load it takes longer than a service otherwise needs to start, and that only
# sees whether the database is at the newest revision.
_MIGRATIONS = Path(__file__).parents[2] / "migrations"

_MONTHS_AHEAD = 3
_OLDEST_SERVER = 15_00_00  # the first with `unique nulls not distinct`
# Two processes that migrate at once take turns. Transaction-level, as everywhere.
_MIGRATION_LOCK = 0x43414952

# No such login or database, or a wrong password.
_LOCKED_OUT = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)


_NO_TEMPORARY_TABLES = """
do $$ begin execute format('revoke temporary on database %I from public', current_database()); end $$
"""


async def migrate(owner_url: str, *, service_login: str | None = None, finish: bool = False) -> str:
    """Brings the schema up to this release's, as its owner; safe to repeat and to run twice at once.

    Each revision is made as a whole or not at all; those before one that fails stay, and it goes on from there.
    Makes the next months' partitions too, and lets `service_login`, where given, work as the service role.
    Returns the revision that the database is then at. Where there is an organisation, only with `finish` is anything
    made that would stop the release before; `check_schema` says whether that is left.

    Raises:
        WrongSchema: when a newer release has migrated it, or the owner may not do what is needed, or a revision after
            the first that was missing cannot be made at present.
        TemporarilyUnavailable: when it cannot be reached, and nothing was done.
    """
    from alembic.script.revision import RevisionError

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda **_: connect(dsn=owner_url, server_settings={"application_name": "cairn"}),
        poolclass=NullPool,
        hide_parameters=True,
    )
    reached = ""
    try:
        async with unavailable_when_away():
            # A transaction each, so that no table is held while the rows of another are read. Whoever else migrates
            # takes turns: what is missing is looked up behind the lock.
            while True:
                async with engine.begin() as connection:
                    await connection.run_sync(_take_turn)
                    if service_login is not None:
                        await _check_login(connection, service_login)
                    made = await connection.run_sync(_make_next, may_contract=finish)
                    if made is None:
                        return await _finish(connection, service_login)
                reached = f"the database is at schema {made} now: "
    except RevisionError as error:
        raise _newer() from error
    except TemporarilyUnavailable as error:
        # To a service that runs this looks like being away; here somebody is there who can do something about it.
        cause = cause_of(error.__cause__)
        if isinstance(cause, _LOCKED_OUT):
            raise WrongSchema(
                f"the server does not let the owner's login in ({cause.args[0]}): correct CAIRN_DATABASE_URL"
            ) from error
        if not reached:
            raise
        raise WrongSchema(f"{reached}what is left could not be done in time; run 'cairn migrate' again") from error
    except (DBAPIError, asyncpg.InsufficientPrivilegeError) as error:
        # A migration speaks to the driver itself, so its errors come as they are.
        cause = cause_of(error)
        if isinstance(cause, asyncpg.InsufficientPrivilegeError):
            raise WrongSchema(
                f"{reached}the login may not change this database: migrate as its owner, a login that may create roles "
                f"and grant {SERVICE_ROLE} ({cause.args[0]})"
            ) from error
        raise
    finally:
        await engine.dispose()


async def _finish(connection: AsyncConnection, service_login: str | None) -> str:
    await connection.execute(text("select make_tool_call_partitions(now(), :months)"), {"months": _MONTHS_AHEAD})
    # Nobody who works here needs temporary tables, and one that is named like ours could be taken for it. Where the
    # database is somebody else's, this changes nothing.
    await connection.execute(text(_NO_TEMPORARY_TABLES))
    if service_login is not None:
        await _let_in(connection, service_login)
    return str(await connection.scalar(text("select version_num from alembic_version")))


async def _check_login(connection: AsyncConnection, login: str) -> None:
    """Before anything is made: the schema may itself make the role that the login is."""
    known = text("select :login = :role or exists (select from pg_roles where rolname = :login)")
    if not await connection.scalar(known, {"login": login, "role": SERVICE_ROLE}):
        raise WrongSchema(f"the server has no login {login!r}: create it, then run 'cairn migrate' again")


async def _let_in(connection: AsyncConnection, login: str) -> None:
    """Lets a login work as the service, under the service's timeouts."""
    quoted = '"' + login.replace('"', '""') + '"'
    if login == SERVICE_ROLE:
        await connection.exec_driver_sql(f"alter role {quoted} login")
        return
    await connection.exec_driver_sql(f"grant {SERVICE_ROLE} to {quoted}")
    # A role's own settings apply to those who log in as it, not to its members. Whoever may not set them leaves that
    # to an administrator; `check_schema` tells.
    with suppress(DBAPIError):
        async with connection.begin_nested():
            for name, value in SERVICE_TIMEOUTS.items():
                await connection.exec_driver_sql(f"alter role {quoted} set {name} = '{value}'")


def is_complete(revision: str) -> bool:
    """Whether a database at this revision, to which `migrate` has brought it, has all that this release makes."""
    return not _missing(revision)


async def ensure_database(superuser_url: str, name: str) -> None:
    """Makes the database if it is not there; for a server of our own, where nobody else does."""
    async with unavailable_when_away():
        connection = await connect(dsn=superuser_url)
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


def _take_turn(connection: Connection) -> None:
    version = connection.scalar(text("select current_setting('server_version_num')::integer"))
    if version is None or version < _OLDEST_SERVER:
        raise WrongSchema(
            f"Cairn needs PostgreSQL {_OLDEST_SERVER // 10_000} or newer; this server is {version // 10_000}"
        )
    connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
    # Whoever waits for a table's lock holds up all who come after.
    connection.execute(text("set local lock_timeout = '3s'"))


def _make_next(connection: Connection, *, may_contract: bool) -> str | None:
    """Makes the first revision that is missing, and returns it; None where none is, or it is not to be made yet."""
    from alembic import command
    from alembic.migration import MigrationContext

    missing = _missing(MigrationContext.configure(connection).get_current_revision())
    if not missing:
        return None
    # Where there is no organisation, nobody is served.
    if _is_contracting(missing[0]) and not may_contract and connection.scalar(select(exists(organizations))):
        return None
    config = _config()
    config.attributes["connection"] = connection
    config.attributes["target_metadata"] = metadata
    command.upgrade(config, missing[0].revision)
    return missing[0].revision


@cache
def _newest() -> str:
    """The revision of a database of this release: each file begins with its own, and they follow one another."""
    return max(file.name for file in (_MIGRATIONS / "versions").glob("0*.py")).partition("_")[0]


def _missing(present: str | None) -> Sequence[Script]:
    """What this release makes and the database has not, in order."""
    return [*_directory().iterate_revisions("head", present or "base")][::-1]


def _directory() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(_config())


def _is_contracting(revision: Script) -> bool:
    return getattr(revision.module, "is_contracting", False)


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    return config


async def check_schema(access: Access) -> bool:
    """Returns when the service can work on this database: whether it is all done, or a contracting revision is left.

    Raises:
        WrongSchema: when it was never migrated, or by an older or a newer release; or when the service would
            work as an owner or superuser, or otherwise as somebody whom no grant or row policy holds back.
        TemporarilyUnavailable: when it cannot be reached.
    """
    async with unavailable_when_away():
        try:
            connection = await connect(**access.connect_arguments())
        except (*_LOCKED_OUT, asyncpg.InsufficientPrivilegeError, asyncpg.InvalidParameterValueError) as error:
            # The last two: it may not connect or become the service role, or there is no such role yet.
            raise WrongSchema(
                f"the database does not let the service in ({error.args[0]}): run 'cairn migrate', or correct "
                "CAIRN_DATABASE_URL"
            ) from error
        try:
            revision = await connection.fetchval("select version_num from alembic_version")
            may_do_anything = await connection.fetchval(
                "select rolsuper or rolbypassrls or exists (select from pg_class where relrowsecurity and"
                " pg_has_role(relowner, 'usage')) from pg_roles where rolname = current_user"
            )
            login = await connection.fetchval("select session_user")
            is_bounded = await connection.fetchval("select current_setting('statement_timeout') <> '0'")
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
        raise WrongSchema(
            "the service must not work as the owner of its tables or as a superuser, or bypass row-level security"
        )
    if not is_bounded:
        settings = "; ".join(
            f"alter role \"{login}\" set {name} = '{value}'" for name, value in SERVICE_TIMEOUTS.items()
        )
        raise WrongSchema(f"the service's login has no time limits: let an administrator run: {settings}")
    if revision == _newest():
        return True

    from alembic.script.revision import RevisionError
    from alembic.util import CommandError

    try:
        missing = _missing(revision)
    except (CommandError, RevisionError) as error:
        raise _newer() from error
    if not all(map(_is_contracting, missing)):
        if _is_contracting(missing[0]):
            raise WrongSchema(
                f"the database is at schema {revision}, where the upgrade before this one was not finished: run "
                "'cairn migrate --finish' once no process of the release before that is left"
            )
        needed = next(each.revision for each in reversed(missing) if not _is_contracting(each))
        raise WrongSchema(f"the database is at schema {revision}, this release needs {needed}: run 'cairn migrate'")
    return not missing


@cache
def _older() -> Set[str]:
    """The revisions that this release has left behind."""
    known = {each.revision for each in _directory().walk_revisions()}
    return {revision for revision in known if not all(map(_is_contracting, _missing(revision)))}


def can_go_on(revision: str) -> bool:
    """Whether a process of this release that serves can go on at this revision of the schema.

    It can at a newer release's, which is migrated to while the old one still serves; only to start there is refused.
    """
    return revision == _newest() or revision not in _older()


def _newer() -> WrongSchema:
    return WrongSchema("the database was migrated by a newer Cairn: upgrade this installation to that release")
