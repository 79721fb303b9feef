"""Two pools on one database: asyncpg for what every tool call does, SQLAlchemy for everything else.

The hot statements run in autocommit on a pool whose release costs no round trip. That is sound only while
nothing ever sets anything for a session or takes an advisory lock, and nothing here does.

Row-level security shows the service the rows of one organisation, which it names for each transaction. The hot
statements are functions of the database (migration 0007) that name it themselves, so that they stay one round trip.

Between Cairn and the database there may be a pooler that gives every transaction another of its connections, such as
PgBouncer. What a connection prepared is not there for its next transaction, so that each statement is sent whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import asyncpg
import msgspec
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import QueuePool

from adapters.postgres.pool import Connection, ConnectionPool
from domain.errors import OperatorError, TemporarilyUnavailable
from domain.tenancy import OrganizationId

# Each step gives up early; the bound on a whole call is the deadline that its entrypoint sets.
_CONNECT_TIMEOUT_SECONDS = 2.0
_ACQUIRE_TIMEOUT_SECONDS = 1.5
_STATEMENT_TIMEOUT_SECONDS = 3.0
LOOKUP_SECONDS = 1.0  # what every request begins with: the rest of its time is for what it asks
_LOOK_SECONDS = 0.8  # whoever asks whether all is well is told within a second
# Every page of a sign-in and every token goes by these, each for some milliseconds.
_ENGINE_POOL_SIZE = 4

SERVICE_ROLE = "cairn_service"
# As the migrations set them on the role. Statements are bounded on the server too: a client that is gone cancels none.
SERVICE_TIMEOUTS = {
    "statement_timeout": "3s",
    "lock_timeout": "2500ms",
    "idle_in_transaction_session_timeout": "10s",
}

# For the transaction: a session's setting would be inherited by whoever uses its connection next.
_ACT_FOR = "select set_config('app.organization_id', $1, true)"

# Signs that the database cannot be had at present; and what the driver counts among them, but is a mistake of ours.
_AWAY = (
    OSError,  # refused, reset, no such socket
    TimeoutError,  # no connection of asyncpg's free, or no answer, in time
    NoConnectionFree,  # none of SQLAlchemy's
    asyncpg.PostgresConnectionError,  # class 08
    asyncpg.InterfaceError,  # the connection was closed under us
    asyncpg.InternalClientError,  # asyncpg says so when a connection dies in mid-protocol
    asyncpg.OperatorInterventionError,  # class 57: shut down, starting up, statement cancelled
    asyncpg.InsufficientResourcesError,  # class 53: out of connections, disk or memory
    asyncpg.ObjectNotInPrerequisiteStateError,  # the database takes no connections
    asyncpg.InvalidAuthorizationSpecificationError,  # nor does it take ours: class 28
    asyncpg.InvalidCatalogNameError,  # it is renamed, or being restored
    asyncpg.LockNotAvailableError,
    asyncpg.TransactionRollbackError,  # class 40: deadlock, serialization
    asyncpg.ReadOnlySQLTransactionError,  # a standby, or a server that its operator has set read-only
    asyncpg.IdleInTransactionSessionTimeoutError,
)
_MISTAKES = (ValueError, asyncpg.UnsupportedClientFeatureError, asyncpg.UnsupportedServerFeatureError)


class PoolableConnection(asyncpg.Connection):
    """A connection that may be one to a pooler instead of the server."""

    def leave_no_names(self) -> None:
        """From now on, for a pooler that gives each transaction another server connection: none has what was prepared
        on another, and none is to keep it.

        What the driver knows of a statement is kept all the same, unlike with its `statement_cache_size` of 0: the
        statement and its values go in one round trip.
        """
        prepared: Callable[..., Awaitable[Any]] = getattr(self, "_get_statement")  # noqa: B009  # not in the stubs

        async def unnamed(*given: Any, **named: Any) -> Any:
            statement = await prepared(*given, **{**named, "named": ""})
            statement.mark_unprepared()
            return statement

        self._get_statement = unnamed


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a database as the service.

    With `assume_role`, the login in `url` is the schema's owner, and each connection becomes the service role
    as it begins: for installations that have one login only.
    """

    url: str
    assume_role: bool = False

    def connect_arguments(self) -> Mapping[str, Any]:
        """What `asyncpg.connect` takes."""
        settings = {"application_name": "cairn"}
        if self.assume_role:
            # A role's own settings apply to those who log in as it, not to those who become it.
            settings |= {"role": SERVICE_ROLE, **SERVICE_TIMEOUTS}
        return {
            "dsn": self.url,
            "timeout": _CONNECT_TIMEOUT_SECONDS,
            "command_timeout": _STATEMENT_TIMEOUT_SECONDS,
            "connection_class": PoolableConnection,
            "server_settings": settings,
        }


async def _open(dsn: str | None = None, **arguments: Any) -> Connection:
    """A connection that knows whether there is a pooler in between. Takes what `asyncpg.connect` takes."""
    connection = await asyncpg.connect(dsn, **{"connection_class": PoolableConnection} | arguments)
    assert isinstance(connection, PoolableConnection)  # noqa: S101  # whatever else is asked for is one of them
    try:
        # A server names the process that serves a connection as it begins; a pooler, which has none yet, makes up one.
        # As there are no values in it, the statement is not prepared.
        its_own = f"select where pg_backend_pid() = {connection.get_server_pid()}"
        if await connection.execute(its_own, timeout=_CONNECT_TIMEOUT_SECONDS) == "SELECT 0":
            connection.leave_no_names()
    except BaseException:
        connection.terminate()
        raise
    return connection


async def connect(**arguments: Any) -> Connection:
    """A connection of its own, for what an operator asked for. Takes what `asyncpg.connect` takes.

    Raises:
        OperatorError: when the URL cannot be understood, or names something that the server does not have, or leads
            to a pooler that does not carry what is asked of a connection.
        OSError, TimeoutError, asyncpg.PostgresError: as `asyncpg.connect`.
    """
    try:
        return await _open(**{"timeout": _CONNECT_TIMEOUT_SECONDS} | arguments)
    except asyncpg.ProtocolViolationError as error:
        # The words of PgBouncer and its like: it can set for a session only what it knows of.
        if "startup parameter" not in error.args[0]:
            raise
        raise OperatorError(
            f"the pooler that CAIRN_DATABASE_URL leads to does not let Cairn change its role or its settings "
            f"({error.args[0]}): give the service a login of its own there, and set CAIRN_OWNER_DATABASE_URL"
        ) from error
    except (
        asyncpg.InvalidPasswordError,
        asyncpg.InvalidCatalogNameError,  # no such database
        asyncpg.UndefinedObjectError,  # a parameter that the server does not know
        asyncpg.CantChangeRuntimeParamError,
    ) as error:
        raise OperatorError(
            f"the database does not let Cairn in ({error.args[0]}): correct CAIRN_DATABASE_URL"
        ) from error
    except (ValueError, OverflowError) as error:  # their text may hold a piece of the password
        raise OperatorError(
            "CAIRN_DATABASE_URL cannot be read: write it as postgresql://user:password@host:5432/database, with "
            "special characters percent-encoded"
        ) from error


def cause_of(error: BaseException | None) -> BaseException | None:
    """What the driver said, if it comes by way of SQLAlchemy."""
    return error.orig.__cause__ if isinstance(error, DBAPIError) and error.orig else error


def _is_away(error: BaseException) -> bool:
    """Whether this is a sign of an unreachable, overloaded or restarting database."""
    cause = cause_of(error)
    return isinstance(cause, _AWAY) and not isinstance(cause, _MISTAKES)


@asynccontextmanager
async def unavailable_when_away() -> AsyncIterator[None]:
    """Turns every sign of an unreachable, overloaded or restarting database into `TemporarilyUnavailable`."""
    try:
        yield
    except Exception as error:
        if _is_away(error):
            raise TemporarilyUnavailable from error
        raise


class _Hot:
    """`Database.hot`. No generator: each call comes here three times, and that would take longer than to get a
    connection does."""

    __slots__ = ("_connection", "_pool")

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    async def __aenter__(self) -> Connection:
        try:
            self._connection = await self._pool.take(_ACQUIRE_TIMEOUT_SECONDS)
        except Exception as error:
            if _is_away(error):
                raise TemporarilyUnavailable from error
            raise
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What the database itself refused has ended; of anything else, nobody knows.
        if error is None or isinstance(error, asyncpg.PostgresError):
            self._pool.give_back(self._connection)
        else:
            await self._pool.throw_away(self._connection)
        if error is not None and _is_away(error):
            raise TemporarilyUnavailable from error


class Database:
    """The pools, opened and closed together: `async with Database(access): …`."""

    def __init__(self, access: Access, *, pool_size: int = 8) -> None:
        # 4 to 8 connections a core, over all processes: more of them are slower, not faster.
        self._access = access
        self._pool_size = pool_size
        self.on_statement: Callable[[Any], None] | None = None
        """Is told of each statement of a tool call once it has ended, in the context of whoever made it: an
        `asyncpg.connection.LoggedQuery`. To be set before the pools are opened."""
        self._pool: ConnectionPool | None = None
        self._engine: AsyncEngine | None = None

    async def __aenter__(self) -> Database:
        arguments = self._access.connect_arguments()
        # No connection is made here: a service starts, and answers, while its database is away.
        self._pool = ConnectionPool(self._connect, self._pool_size)
        self._engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=lambda **_: _open(**arguments),
            pool_size=_ENGINE_POOL_SIZE,
            max_overflow=0,
            pool_timeout=_ACQUIRE_TIMEOUT_SECONDS,
            pool_pre_ping=True,
            hide_parameters=True,  # what is stored is nobody's business in a log
            json_serializer=lambda value: msgspec.json.encode(value).decode(),
            json_deserializer=msgspec.json.decode,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._engine is not None:
            await self._engine.dispose()
        if self._pool is not None:
            await self._pool.close()

    def connections(self) -> Mapping[str, tuple[int, int]]:
        """Of each pool, how many connections are in use, and how many are free."""
        assert self._pool is not None, "the database has not been opened"  # noqa: S101
        assert self._engine is not None  # noqa: S101
        rest = self._engine.pool
        assert isinstance(rest, QueuePool)  # noqa: S101  # as it is where nothing else is asked for
        return {"calls": (self._pool.in_use, self._pool.free), "rest": (rest.checkedout(), rest.checkedin())}

    async def trouble(self, can_serve: Callable[[str], bool]) -> Literal["database", "pool", "schema"] | None:
        """What keeps a tool call from being answered now, within `_LOOK_SECONDS`; None: nothing does.

        `can_serve` tells of a revision of the schema whether this release can work on it.
        """
        assert self._pool is not None, "the database has not been opened"  # noqa: S101
        try:
            async with asyncio.timeout(_LOOK_SECONDS), self.hot() as connection:
                revision = await connection.fetchval("select version_num from alembic_version")
        except (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError):
            return "schema"
        except (TemporarilyUnavailable, TimeoutError, asyncpg.PostgresError):  # the last: it lets nobody in any more
            return "pool" if self._pool.in_use >= self._pool.size else "database"
        # A thread: of an unknown revision it is found out by loading what takes half a second, and others are served.
        is_ours = revision is not None and await asyncio.to_thread(can_serve, revision)
        return None if is_ours else "schema"

    def hot(self) -> AbstractAsyncContextManager[Connection]:
        """A connection for a tool call, in autocommit: for functions, as no table shows a row here.

        Raises:
            TemporarilyUnavailable: when none can be had, or the statement cannot be answered, in time.
        """
        assert self._pool is not None, "the database has not been opened"  # noqa: S101
        return _Hot(self._pool)

    async def look_up(self, statement: str, *arguments: object) -> asyncpg.Record | None:
        """The row of a function that says who sends a request. It is asked before anything else is done.

        The driver keeps the time, as it does anyway: a deadline around this would be a timer more in each call.

        Raises:
            TemporarilyUnavailable: as `hot`, and when the answer takes longer than `LOOKUP_SECONDS`.
        """
        async with self.hot() as connection:
            return await connection.fetchrow(statement, *arguments, timeout=LOOKUP_SECONDS)

    @asynccontextmanager
    async def hot_transaction(self, organization_id: OrganizationId) -> AsyncIterator[Connection]:
        """A connection for a tool call in one transaction, on this organisation's rows: three round trips more.

        Raises:
            TemporarilyUnavailable: as `hot`.
        """
        async with self.hot() as connection, connection.transaction():
            await connection.execute(_ACT_FOR, organization_id)
            yield connection

    @asynccontextmanager
    async def transaction(self, organization_id: OrganizationId | None) -> AsyncIterator[AsyncConnection]:
        """A SQLAlchemy connection in one transaction, on this organisation's rows; on none where it is None.

        Raises:
            TemporarilyUnavailable: as `hot`.
        """
        assert self._engine is not None, "the database has not been opened"  # noqa: S101
        # To find a connection dead, and that no other can be had, would take a statement's time and a connect's.
        too_long = asyncio.timeout(_ACQUIRE_TIMEOUT_SECONDS)
        async with unavailable_when_away(), too_long, self._engine.begin() as connection:
            if organization_id is not None:
                await act_for(connection, organization_id)
            too_long.reschedule(None)
            yield connection

    async def _connect(self) -> Connection:
        connection = await _open(**self._access.connect_arguments())
        if self.on_statement is not None:
            connection.add_query_logger(self.on_statement)
        return connection


async def act_for(connection: AsyncConnection, organization_id: OrganizationId) -> None:
    """From now on and until the transaction ends, this organisation's rows are seen and written, and no others."""
    await connection.exec_driver_sql(_ACT_FOR, (organization_id,))
