"""What MCP clients ask of a server's authorization server: to be registered, to act for a person, and for tokens."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from application.limits import Limit, network_of
from application.ports import (
    AuthorizationServer,
    ClientDocuments,
    Clock,
    OAuthAnswer,
    Parameters,
    RateLimiter,
    SignInKey,
)
from domain.oauth import DocumentAway, Site


class Authorization:
    """OAuth 2.1, as far as clients see it. `address` is the network address that a request comes from.

    Every method raises `TooManyRequests` where a limit is used up.
    """

    def __init__(
        self, server: AuthorizationServer, documents: ClientDocuments | None, limits: RateLimiter, clock: Clock
    ) -> None:
        """`documents` is None where this service has no way out to where clients publish them."""
        self._server = server
        self._documents = documents
        self._limits = limits
        self._clock = clock

    @property
    def reads_documents(self) -> bool:
        """Whether a client may be known by a document of its own. One that may be does not register."""
        return self._documents is not None

    async def authorize(
        self, site: Site, parameters: Parameters, id: str, browser: str, address: str
    ) -> OAuthAnswer | None:
        """Begins a sign-in by the name of `id`, for this browser only; both are secrets of 256 bits.

        None: it is begun, and the person is to be asked. A client that is known by a document of its own is looked up
        on the web first, unless that was done within the hour. One whose document cannot be had at present is taken
        for what it last said, for a day; one that has none is unknown.
        """
        await self._limits.hit(Limit.SIGN_INS_PER_NETWORK, network_of(address))
        now = self._clock.now()
        client_id = next((value for name, value in parameters if name == "client_id"), "")
        if self._documents is not None and await self._server.wants_document(site, client_id, now):
            with suppress(DocumentAway):
                await self._server.keep_document(site, client_id, await self._documents.fetch(client_id), now)
        return await self._server.authorize(site, parameters, SignInKey.of(site.server.key, id, browser), now)

    async def token(self, site: Site, parameters: Parameters, authorization: str | None, address: str) -> OAuthAnswer:
        """Tokens for a code or a refresh token."""
        await self._limits.hit(Limit.TOKENS_PER_NETWORK, network_of(address))
        return await self._server.token(site, parameters, authorization, self._clock.now())

    async def revoke(self, site: Site, parameters: Parameters, authorization: str | None, address: str) -> OAuthAnswer:
        """Ends a token: with a refresh token, all that came of the same consent."""
        await self._limits.hit(Limit.TOKENS_PER_NETWORK, network_of(address))
        return await self._server.revoke(site, parameters, authorization, self._clock.now())

    async def register(self, site: Site, metadata: Mapping[str, Any], address: str) -> OAuthAnswer:
        """Registers a client (RFC 7591)."""
        await self._limits.hit(Limit.REGISTRATIONS_PER_NETWORK, network_of(address))
        server = site.server.key
        await self._limits.hit(Limit.REGISTRATIONS_PER_SERVER, server.organization_id, server.server_id)
        return await self._server.register(site, metadata, self._clock.now())
