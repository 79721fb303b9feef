"""Visitors: people who take walkthroughs on a personal address of a server, and may keep what they did by signing in.

A visitor's id is 128 random bits. Only its SHA-256 is stored, as with tokens. To keep the progress means that it goes
to an account, once, by the rules of `domain.progress.merge`; after it the address is spent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from application.limits import Limit, network_of
from application.ports import (
    Catalogue,
    Clock,
    Ids,
    ProgressStore,
    RateLimiter,
    VersionLibrary,
    VisitorStore,
)
from domain import progress as rules
from domain.errors import TemporarilyUnavailable
from domain.progress import Merge, Progress, ProgressKey
from domain.tenancy import Caller, ServerKey, UserId, WalkthroughId, hash_of
from domain.walkthrough import VersionKey

# As for a tool call: only someone who moves all the time on either side makes a merge lose three times.
_MAX_DECISIONS = 3


@dataclass(frozen=True, slots=True)
class Spent:
    """A visitor whose progress is in an account by now. Their address is good for nothing any more."""


class Visitors:
    """Mints visitors, knows them again, and merges them into accounts."""

    def __init__(
        self,
        store: VisitorStore,
        catalogue: Catalogue,
        library: VersionLibrary,
        progress: ProgressStore,
        limits: RateLimiter,
        ids: Ids,
        clock: Clock,
    ) -> None:
        self._store = store
        self._catalogue = catalogue
        self._library = library
        self._progress = progress
        self._limits = limits
        self._ids = ids
        self._clock = clock

    async def mint(self, server: ServerKey, address: str) -> str:
        """A new visitor of this server, for whoever asks from this IP address: the id for their personal address, 22
        characters that URLs take. Told once, never stored.

        Raises:
            TooManyRequests: when too many were minted for this network.
        """
        await self._limits.hit(Limit.VISITORS_PER_NETWORK, network_of(address))
        visitor = self._ids.visitor()
        await self._store.add(server, hash_of(visitor), UserId(self._ids.new("usr")), self._clock.now())
        return visitor

    async def visitor(self, server: ServerKey, visitor: str) -> UserId | Spent | None:
        """Who has this id on `server`; None for any other text."""
        found = await self._store.find(server, hash_of(visitor))
        if found is None:
            return None
        return found.user_id if found.merged_into is None else Spent()

    async def merge(self, server: ServerKey, visitor: UserId, account: UserId) -> bool:
        """Gives a visitor's progress on `server` to a person's account. Repeated, it changes nothing.

        Returns whether it is in this account: False where another one has had it before.

        Raises:
            NotFound: no such visitor on this server, or no such person in the organisation.
            TemporarilyUnavailable: others were faster, time and again. Nothing was merged.
        """
        now = self._clock.now()
        for _ in range(_MAX_DECISIONS):
            theirs, mine = await self._standing(server, visitor), await self._standing(server, account)
            merges: list[Merge] = []
            for walkthrough_id, progress in theirs.items():
                key = ProgressKey(server.organization_id, server.server_id, account, walkthrough_id)
                own = mine.get(walkthrough_id)
                versions = await self._versions(progress, own)
                if versions is None:
                    break
                merges.append(rules.merge(progress, own, key, versions, now=now))
            kept_by = await self._store.merge(server, visitor, account, merges)
            if kept_by is not None:
                return kept_by == account
        raise TemporarilyUnavailable

    async def _standing(self, server: ServerKey, user_id: UserId) -> Mapping[WalkthroughId, Progress]:
        standings = await self._catalogue.standings(Caller(server, user_id))
        return {each.walkthrough_id: each.progress for each in standings if each.progress}

    async def _versions(self, theirs: Progress, own: Progress | None) -> rules.Versions | None:
        """Those that both stand on, and those in which the visitor completed what their own version may not have; None
        where their progress went to an account since it was read, and its events with it."""
        numbers = {theirs.version} | ({own.version} if own else set())
        if own and theirs.carried:
            events = await self._progress.events(theirs.key)
            if not events:
                return None
            numbers |= {event.version for event in events if event.attempt == theirs.attempt}
        keys = [VersionKey(theirs.key.organization_id, theirs.key.walkthrough_id, number) for number in numbers]
        return {key.number: version for key, version in (await self._library.outlines(keys)).items()}
