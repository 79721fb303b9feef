"""The composition root of commands: with what authors write and operators see to, which a service need not import."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dependency_injector import providers

from adapters.content.check import check_manuscript
from adapters.content.folder import read_folder
from adapters.content.pages import html_of
from adapters.content.schema import SCHEMAS
from adapters.content.writing import write_folder
from adapters.postgres.assignments import PostgresAssignmentStore
from adapters.postgres.authoring import PostgresWalkthroughStore
from adapters.postgres.insight import PostgresFunnels
from adapters.postgres.people import PostgresPersonalDataStore
from application.authoring import Authoring
from application.insight import Insight
from application.people import PersonalData
from application.tenancy import Providers, Tenancy
from entrypoints.container import Container, Storage


class Workshop(Container):
    """What a service has, and what is done to it: by authors, and by whoever runs it."""

    read_folder = providers.Object(read_folder)
    write_folder = providers.Object(write_folder)
    check_content = providers.Object(check_manuscript)
    html_of = providers.Object(html_of)
    content_schemas = providers.Object(SCHEMAS)

    walkthroughs = providers.Singleton(PostgresWalkthroughStore, Container.database)
    assignments = providers.Singleton(PostgresAssignmentStore, Container.database)
    funnels = providers.Singleton(PostgresFunnels, Container.database)
    personal_data_store = providers.Singleton(PostgresPersonalDataStore, Container.database)

    tenancy = providers.Factory(Tenancy, Container.tenants, Container.ids, Container.clock)
    authoring = providers.Factory(
        Authoring,
        walkthroughs,
        assignments,
        Container.library,
        check_content,
        tenancy,
        Container.ids,
        Container.clock,
    )
    insight = providers.Factory(Insight, funnels, Container.library, tenancy, Container.clock)
    personal_data = providers.Factory(PersonalData, personal_data_store, Container.library, tenancy, Container.clock)
    oidc_providers = providers.Factory(
        Providers, tenancy, Container.tenants, Container.identity_provider, Container.clock
    )


@asynccontextmanager
async def opened(storage: Storage) -> AsyncIterator[Workshop]:
    """The workshop on this database, for as long as its pools are open."""
    async with storage.database() as database:
        yield Workshop(database=database)
