"""Who is calling: bearer tokens, each one person's on one server.

A token is 256 random bits. Only its SHA-256 is stored, so a copy of the database holds no token; and a hash of
that many random bits needs no salt and no slow function.
"""

from __future__ import annotations

import hashlib

from application.ports import Clock, Ids, TokenStore
from domain.tenancy import ServerKey, UserId, email_address


class Identity:
    """Issues, checks and ends tokens."""

    def __init__(self, tokens: TokenStore, ids: Ids, clock: Clock) -> None:
        self._tokens = tokens
        self._ids = ids
        self._clock = clock

    async def user_of(self, server: ServerKey, token: str) -> UserId | None:
        """The person whose token this is on `server`; None for any other text."""
        return await self._tokens.user_of(server, _hash(token))

    async def create_token(self, server: ServerKey, email: str) -> str:
        """A new token for the person with this e-mail, which the caller vouches for. Told once, never stored.

        Raises:
            InvalidValue: when `email` is no address.
        """
        token = self._ids.token()
        new_user = UserId(self._ids.new("usr"))
        await self._tokens.issue(server, email_address(email), new_user, _hash(token), self._clock.now())
        return token

    async def revoke(self, server: ServerKey, token: str) -> int:
        """Ends one token. Returns how many ended: 1, or 0 where there was none."""
        return await self._tokens.revoke(server, _hash(token))

    async def revoke_all_of(self, server: ServerKey, email: str) -> int:
        """Ends every token that a person has on `server`. Returns how many.

        Raises:
            InvalidValue: when `email` is no address.
        """
        return await self._tokens.revoke_all_of(server, email_address(email))


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
