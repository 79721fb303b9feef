"""The ports of signing in, in memory. The stores pass the same contract suite as their PostgreSQL counterparts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from application.ports import SignInKey, SignInUnderWay, Visitor
from domain.errors import NotFound
from domain.oauth import DocumentAway
from domain.progress import Merge
from domain.sign_in import SIGN_IN_LIFETIME, UNUSED_VISITOR_LIFETIME, IdentityKey, SignInState
from domain.tenancy import Millis, OrganizationId, ServerKey, UserId
from tests.fakes import Memory, person_in, see


class MemorySignInStore:
    def __init__(self) -> None:
        self._kept: dict[SignInKey, tuple[SignInUnderWay, Millis]] = {}

    async def begin_keeping(self, key: SignInKey, visitor: UserId, state: SignInState, now: Millis) -> None:
        self._kept[key] = SignInUnderWay(state, visitor), Millis(now + SIGN_IN_LIFETIME)

    async def read(self, key: SignInKey, now: Millis) -> SignInUnderWay | None:
        found, expires_at = self._kept.get(key, (None, Millis(0)))
        return found if now < expires_at else None

    async def change(
        self, key: SignInKey, decide: Callable[[SignInState], SignInState], now: Millis
    ) -> SignInUnderWay | None:
        found = await self.read(key, now)
        if found is None:
            return None
        changed = SignInUnderWay(decide(found.state), found.visitor)
        self._kept[key] = changed, self._kept[key][1]
        return changed


class MemoryPeople:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def person(
        self, organization_id: OrganizationId, identity: IdentityKey | None, email: str, new_user: UserId, now: Millis
    ) -> UserId:
        user_id = person_in(self._memory, organization_id, identity, email, new_user)
        see(self._memory, organization_id, user_id, now)
        return user_id


@dataclass
class MemoryMailer:
    """Keeps what was sent; while it is away, nothing is."""

    sent: list[tuple[str, str, str]] = field(default_factory=list)
    is_away: bool = False
    where: str | None = None

    async def send(self, to: str, subject: str, text: str) -> bool:
        if not self.is_away:
            self.sent.append((to, subject, text))
        return not self.is_away


class MemoryVisitorStore:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    async def add(self, server: ServerKey, visitor_hash: bytes, new_user: UserId, now: Millis) -> None:
        memory, organization_id = self._memory, server.organization_id
        begun = {key.user_id for key in memory.progress if key.organization_id == organization_id}
        for place, user_id in list(memory.visitors.items()):
            who = place[0].organization_id, user_id
            is_idle = who[0] == organization_id and user_id not in begun and who not in memory.merged_into
            if is_idle and memory.seen[who][0] < now - UNUSED_VISITOR_LIFETIME:
                del memory.visitors[place], memory.seen[who]
        memory.visitors[server, visitor_hash] = new_user
        see(memory, organization_id, new_user, now)

    async def find(self, server: ServerKey, visitor_hash: bytes) -> Visitor | None:
        user_id = self._memory.visitors.get((server, visitor_hash))
        if user_id is None:
            return None
        return Visitor(user_id, self._memory.merged_into.get((server.organization_id, user_id)))

    async def merge(
        self, server: ServerKey, visitor: UserId, account: UserId, merges: Sequence[Merge]
    ) -> UserId | None:
        memory, organization_id = self._memory, server.organization_id
        if visitor not in [user_id for (at, _), user_id in memory.visitors.items() if at == server]:
            raise NotFound(visitor)
        if (organization_id, visitor) in memory.merged_into:
            return memory.merged_into[organization_id, visitor]
        if account not in [user_id for (at, _), user_id in memory.people.items() if at == organization_id]:
            raise NotFound(account)
        begun = {
            key
            for key in memory.progress
            if (key.organization_id, key.server_id, key.user_id) == (organization_id, server.server_id, visitor)
        }
        if begun != {merge.visitor.before.key for merge in merges}:
            return None
        for merge in merges:
            accounts = merge.visitor.before.key._replace(user_id=account)
            if memory.progress[merge.visitor.before.key] != merge.visitor.before:
                return None
            if memory.progress.get(accounts) != (merge.account.before if merge.account else None):
                return None
        for merge in merges:
            for revised in (merge.visitor, merge.account):
                if revised is not None:
                    del memory.progress[revised.before.key]
                    memory.progress[revised.after.key] = revised.after
                    memory.events[revised.after.key] = [*memory.events.pop(revised.before.key), *revised.events]
        memory.merged_into[organization_id, visitor] = account
        return account


@dataclass
class MemoryClientDocuments:
    """What stands on the web, and which of it was asked for. Whatever `meanwhile` does is done while it is fetched.
    While the web is away, nothing can be had."""

    documents: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    asked_for: list[str] = field(default_factory=list)
    meanwhile: Callable[[], Awaitable[None]] | None = None
    is_away: bool = False

    async def fetch(self, client_id: str) -> Mapping[str, Any] | None:
        self.asked_for.append(client_id)
        if self.meanwhile is not None:
            await self.meanwhile()
        if self.is_away:
            raise DocumentAway(client_id)
        return self.documents.get(client_id)
