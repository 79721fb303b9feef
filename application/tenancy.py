"""What an operator does with organisations and their servers."""

from __future__ import annotations

from collections.abc import Sequence

from application.ports import Clock, IdentityProvider, Ids, ServerListing, TenantStore
from domain.errors import NotFound
from domain.sign_in import OidcProvider
from domain.tenancy import AuthMode, OrganizationId, Server, ServerId, ServerKey, display_name, domain_name, slug


class Tenancy:
    """Creates and finds organisations and servers."""

    def __init__(self, tenants: TenantStore, ids: Ids, clock: Clock) -> None:
        self._tenants = tenants
        self._ids = ids
        self._clock = clock

    async def create_organization(self, slug_: str, name: str | None = None) -> OrganizationId:
        """A new organisation.

        Raises:
            InvalidValue, AlreadyExists.
        """
        id = OrganizationId(self._ids.new("org"))
        await self._tenants.create_organization(id, slug(slug_), display_name(name or slug_), self._clock.now())
        return id

    async def create_server(
        self, organization: str, slug_: str, *, auth_mode: AuthMode, name: str | None, custom_domain: str | None
    ) -> Server:
        """A new server of the organisation with this slug.

        Raises:
            InvalidValue, AlreadyExists, NotFound (no such organisation).
        """
        organization_id = await self.organization(organization)
        server = Server(
            key=ServerKey(organization_id, ServerId(self._ids.new("srv"))),
            slug=slug(slug_),
            name=name or slug_,
            auth_mode=auth_mode,
            custom_domain=domain_name(custom_domain) if custom_domain is not None else None,
        )
        await self._tenants.create_server(server, self._clock.now())
        return server

    async def organization(self, slug_: str) -> OrganizationId:
        """The id of the organisation with this slug.

        Raises:
            NotFound.
        """
        found = await self._tenants.organization(slug_)
        if found is None:
            raise NotFound(f"there is no organisation {slug_!r}: create it with 'cairn org create {slug_}'")
        return found

    async def servers(self, organization: str | None = None) -> Sequence[ServerListing]:
        """The servers of one organisation, or of all."""
        id = None if organization is None else await self.organization(organization)
        return await self._tenants.servers(id)

    async def server(self, slug_: str, organization: str | None = None) -> Server:
        """The server with this slug, of this organisation where one is named.

        Raises:
            NotFound: also for another organisation's server, in the same words.
        """
        found = await self._tenants.server(slug_)
        if found is not None and organization in (None, found.organization_slug):
            return found.server
        where = f" in organisation {organization!r}" if organization else ""
        raise NotFound(f"there is no server {slug_!r}{where}: see 'cairn server list'")

    async def set_auth_mode(self, slug_: str, auth_mode: AuthMode, organization: str | None = None) -> AuthMode:
        """Changes who may call the server with this slug, within 2 s everywhere. Returns the mode it had.

        Raises:
            NotFound: as `server`.
        """
        server = await self.server(slug_, organization)
        return await self._tenants.set_auth_mode(server.key, auth_mode)


class Providers:
    """Sets up the identity providers of organisations."""

    def __init__(
        self, tenancy: Tenancy, tenants: TenantStore, identity_provider: IdentityProvider, clock: Clock
    ) -> None:
        self._tenancy = tenancy
        self._tenants = tenants
        self._identity_provider = identity_provider
        self._clock = clock

    async def set(self, organization: str, provider: OidcProvider) -> Sequence[Server]:
        """Makes this the organisation's provider, once it has answered. Returns the servers on which people use it.

        Raises:
            NotFound: no such organisation.
            InvalidValue: when people could not sign in with it, and why. Nothing is changed then.
        """
        organization_id = await self._tenancy.organization(organization)
        await self._identity_provider.check(provider)
        await self._tenants.set_provider(organization_id, provider, self._clock.now())
        return [each.server for each in await self._tenants.servers(organization_id)]

    async def remove(self, organization: str) -> None:
        """Takes the organisation's provider away. Who has signed in with it stays who they are.

        Raises:
            NotFound: no such organisation, or it has none.
        """
        organization_id = await self._tenancy.organization(organization)
        if not await self._tenants.set_provider(organization_id, None, self._clock.now()):
            raise NotFound(f"{organization} has no identity provider: there is nothing to remove")
