"""The composition root of what serves: which adapter stands behind each port.

Nothing else in the entrypoints knows an adapter but `entrypoints.workshop`, which adds what only commands use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import structlog
from dependency_injector import containers, providers

from adapters.mail import Outbox, SmtpMailer
from adapters.postgres import schema
from adapters.postgres.call_log import PostgresCallLog
from adapters.postgres.connections import SERVICE_ROLE, Access, Database
from adapters.postgres.learning import PostgresCatalogue, PostgresProgressStore, PostgresVersionLibrary
from adapters.postgres.sign_in import PostgresPeople, PostgresSignInStore
from adapters.postgres.tenancy import (
    PostgresServerDirectory,
    PostgresTenantStore,
    PostgresTokenStore,
    RecentServers,
)
from adapters.postgres.visitors import PostgresVisitorStore
from adapters.rate_limits import MemoryRateLimits
from adapters.system import RandomIds, SystemClock
from application.authorization import Authorization
from application.identity import Identity
from application.learning import Learning
from application.limits import rates
from application.ports import AuthorizationServer, ClientDocuments, Clock, IdentityProvider, Ids, Mailer, RateLimiter
from application.sign_in import SignIn, SignInOutcome
from application.visitors import Visitors
from domain.errors import NotFound
from entrypoints import metrics
from entrypoints.metrics import CountedLimits
from entrypoints.settings import Settings

if TYPE_CHECKING:
    from adapters.embedded_postgres import EmbeddedPostgres

_DATABASE = "cairn"  # on the embedded server
# How often a service looks after its embedded server: it is back well within 2 s of a crash.
_LOOK_AFTER_SECONDS = 0.5

_log = structlog.get_logger(__name__)


# What signing in takes, TLS and cryptography above all, is imported when it is first asked for: no call needs it, and a
# start would be by a tenth longer. `entrypoints.http.app` asks for it in a thread, as to import it holds up all others.


def _client_documents() -> ClientDocuments:
    from adapters.client_documents import WebClientDocuments

    return WebClientDocuments()


def _identity_provider(clock: Clock) -> IdentityProvider:
    from adapters.openid import OpenIdConnect

    return OpenIdConnect(clock)


def _authorization_server(database: Database, ids: Ids) -> AuthorizationServer:
    from adapters.postgres.authorization import PostgresAuthorizationServer

    return PostgresAuthorizationServer(database, ids)


class Container(containers.DeclarativeContainer):
    """Adapters once a process, use cases anew for whoever asks, but for the one that remembers."""

    database = providers.Dependency(instance_of=Database)
    mailer: providers.Provider[Mailer | None] = providers.Object(None)
    codes: providers.Provider[Mapping[str, str] | None] = providers.Object(None)
    count_sign_in: providers.Provider[Callable[[SignInOutcome], None]] = providers.Object(lambda outcome: None)
    limits: providers.Provider[RateLimiter] = providers.Singleton(MemoryRateLimits, rates(""))

    clock = providers.Singleton(SystemClock)
    ids = providers.Singleton(RandomIds)

    catalogue = providers.Singleton(PostgresCatalogue, database)
    library = providers.Singleton(PostgresVersionLibrary, database)
    progress_store = providers.Singleton(PostgresProgressStore, database)
    call_log = providers.Singleton(PostgresCallLog, database)
    servers = providers.Singleton(RecentServers, providers.Singleton(PostgresServerDirectory, database))
    tokens = providers.Singleton(PostgresTokenStore, database)
    tenants = providers.Singleton(PostgresTenantStore, database)

    client_documents: providers.Provider[ClientDocuments | None] = providers.Singleton(_client_documents)
    identity_provider = providers.Singleton(_identity_provider, clock)
    authorization_server = providers.Singleton(_authorization_server, database, ids)
    sign_ins = providers.Singleton(PostgresSignInStore, database)
    people = providers.Singleton(PostgresPeople, database)
    visitor_store = providers.Singleton(PostgresVisitorStore, database)

    learning = providers.Singleton(Learning, catalogue, library, progress_store, clock)
    identity = providers.Factory(Identity, tokens, ids, clock)
    visitors = providers.Factory(Visitors, visitor_store, catalogue, library, progress_store, limits, ids, clock)
    authorization = providers.Factory(Authorization, authorization_server, client_documents, limits, clock)
    sign_in = providers.Factory(
        SignIn,
        sign_ins,
        people,
        tenants,
        authorization_server,
        identity_provider,
        visitors,
        mailer,
        limits,
        ids,
        clock,
        count_sign_in,
    )


def figures(container: Container) -> Callable[[], None]:
    """What takes the figures that the adapters keep; called from time to time while they are open."""
    database, calls = container.database(), container.call_log()
    growing = (
        metrics.Growth(metrics.call_log_rows, lambda: calls.rows_written),
        metrics.Growth(metrics.call_log_batches, lambda: calls.batches_written),
        metrics.Growth(metrics.call_log_failures, lambda: calls.rows_failed),
    )

    def take() -> None:
        for pool, (in_use, free) in database.connections().items():
            metrics.pool_connections.labels(pool, "in_use").set(in_use)
            metrics.pool_connections.labels(pool, "free").set(free)
        metrics.call_log_waiting.set(calls.waiting)
        for each in growing:
            each.take()

    return take


def serving_container(
    database: Database, settings: Settings, show_mail: Callable[[str], None] | None = None
) -> Container:
    """The container of a process that serves: what depends on settings is as these say.

    For development, `show_mail` gets what would be sent by mail, and the codes in it are found in `codes`.

    Raises:
        InvalidValue: for a setting that cannot be.
    """
    mailer: Mailer | None = None
    codes: Mapping[str, str] | None = None
    if show_mail is not None:
        mailer = outbox = Outbox(show_mail)
        codes = outbox.codes
    elif settings.smtp_url is not None:
        mailer = SmtpMailer(settings.smtp_url, settings.mail_from or f"cairn@{settings.base_domain}")
    allowed = rates(settings.limits or "")
    limits: RateLimiter = MemoryRateLimits(allowed)
    if settings.rate_limit_url is not None:
        from adapters.redis_rate_limits import RedisRateLimits  # here, as it takes a tenth of a start to load

        limits = RedisRateLimits(settings.rate_limit_url, allowed)
    container = Container(
        database=database,
        mailer=providers.Object(mailer),
        codes=providers.Object(codes),
        limits=providers.Object(CountedLimits(limits)),
        count_sign_in=providers.Object(lambda outcome: metrics.sign_ins.labels(outcome.value).inc()),
    )
    if settings.client_documents == "off":
        container.client_documents.override(providers.Object(None))
    return container


@dataclass(frozen=True, slots=True)
class Storage:
    """A database that is there to be used: by its owner, and by the service."""

    owner_url: str
    access: Access
    service_login: str | None
    """The login to be let work as the service; None where the owner's connections become it."""
    embedded: EmbeddedPostgres | None

    async def migrate(self, *, finish: bool) -> tuple[str, bool]:
        """Brings it to this release's schema: the revision, and whether that is all of it.

        See `adapters.postgres.schema.migrate`.
        """
        if self.embedded is not None:
            await schema.ensure_database(self.embedded.dsn("postgres", "postgres"), _DATABASE)
        revision = await schema.migrate(self.owner_url, service_login=self.service_login, finish=finish)
        return revision, schema.is_complete(revision)

    async def check(self) -> bool:
        """Refuses a schema that this release cannot serve. See `adapters.postgres.schema.check_schema`."""
        return await schema.check_schema(self.access)

    def database(self) -> Database:
        """The service's pools on it, not open yet."""
        return Database(self.access)

    def trouble_of(self, database: Database) -> Callable[[], Awaitable[str | None]]:
        """What tells, in a word, why no tool call can be answered on these pools now. See `Database.trouble`."""
        return partial(database.trouble, schema.can_go_on)

    async def keep_running(self) -> None:
        """Starts the embedded server again whenever it is found dead; never returns."""
        while True:
            await asyncio.sleep(_LOOK_AFTER_SECONDS)
            if self.embedded is None:
                continue
            try:
                if await asyncio.to_thread(self.embedded.ensure_running):
                    _log.warning("the embedded PostgreSQL was dead and has been started again")
            except Exception as error:  # noqa: BLE001  # whatever it was, the next look may find it mended
                _log.error("the embedded PostgreSQL cannot be started", problem=str(error))


@contextmanager
def storage(
    settings: Settings, on_slow: Callable[[str], None] = lambda message: None, *, may_create: bool = False
) -> Iterator[Storage]:
    """The database of these settings; the embedded one is started, or joined, and left again at the end.

    `on_slow` is told, in a sentence, what takes more than a second. Only with `may_create` is an embedded server
    made where there is none: whoever mistypes a folder should not find a database there.

    Raises:
        OperatorError: when the embedded server cannot be had, with what to do.
    """
    if settings.database_url is not None:
        owner_url = settings.owner_database_url or settings.database_url
        access = Access(settings.database_url, assume_role=settings.owner_database_url is None)
        login = None if access.assume_role else schema.login_of(settings.database_url)
        yield Storage(owner_url, access, login, None)
        return
    from adapters.embedded_postgres import EmbeddedPostgres  # here, as whoever has a database of their own needs none

    embedded_server = EmbeddedPostgres(settings.data_dir, on_slow=on_slow)
    if not may_create and not embedded_server.exists():
        raise NotFound(
            f"there is no database in {settings.data_dir}: name the right one with --data-dir, or make one with "
            "'cairn migrate' or 'cairn dev'"
        )
    with embedded_server as embedded:
        yield Storage(
            embedded.dsn("postgres", _DATABASE), Access(embedded.dsn(SERVICE_ROLE, _DATABASE)), SERVICE_ROLE, embedded
        )
