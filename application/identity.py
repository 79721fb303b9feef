"""Who is calling: bearer tokens, each one person's on one server.

A token is 256 random bits. Only its SHA-256 is stored, so a copy of the database holds no token; and a hash of
that many random bits needs no salt and no slow function.
"""

from __future__ import annotations

from collections.abc import Sequence

from application.ports import Bearer, Clock, Ids, TokenListing, TokenStore
from domain.tenancy import OrganizationId, ServerId, ServerKey, UserId, email_address, hash_of


class Identity:
    """Issues, checks and ends tokens."""

    def __init__(self, tokens: TokenStore, ids: Ids, clock: Clock) -> None:
        self._tokens = tokens
        self._ids = ids
        self._clock = clock

    async def bearer_of(self, server: ServerKey, token: str) -> Bearer | None:
        """The person whose token this is on `server`, and what it is for; None for any other text."""
        return await self._tokens.bearer_of(server, hash_of(token), self._clock.now())

    async def create_token(self, server: ServerKey, email: str) -> str:
        """A new token for the person with this e-mail, which the caller vouches for. Told once, never stored.

        Raises:
            InvalidValue: when `email` is no address.
        """
        token = self._ids.token()
        new_user = UserId(self._ids.new("usr"))
        await self._tokens.issue(server, email_address(email), new_user, hash_of(token), self._clock.now())
        return token

    async def tokens(
        self,
        organization_id: OrganizationId,
        *,
        server_id: ServerId | None = None,
        user_id: UserId | None = None,
        limit: int,
    ) -> Sequence[TokenListing]:
        """What is good at present, the newest first: tokens that an operator gave out, and grants to clients."""
        return await self._tokens.listed(organization_id, server_id, user_id, self._clock.now(), limit)

    async def revoke(self, server: ServerKey, token: str) -> int:
        """Ends one token, and with a client's all that it was let do. Returns how many ended: 1, or 0 for no token."""
        return await self._tokens.revoke(server, hash_of(token), self._clock.now())

    async def revoke_all_of(self, server: ServerKey, email: str) -> int:
        """Ends every token and grant that a person has on `server`. Returns how many, a grant counting once.

        Raises:
            InvalidValue: when `email` is no address.
        """
        return await self._tokens.revoke_all_of(server, email_address(email), self._clock.now())

    async def revoke_grant(self, server: ServerKey, grant_id: str) -> int:
        """Ends what a person let a client do, with every token that came of it. Returns 1, or 0 for no such grant."""
        return await self._tokens.revoke_grant(server, grant_id, self._clock.now())

    async def revoke_client(self, server: ServerKey, client: str) -> int:
        """Ends everybody's grants to the clients with this id or name. Returns how many."""
        return await self._tokens.revoke_client(server, client, self._clock.now())
