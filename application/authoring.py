"""What an author does: hand in a walkthrough, publish it, put it on servers."""

from __future__ import annotations

from collections.abc import Sequence

from application.ports import Clock, ContentCheck, Ids, Placement, Stored, WalkthroughStore
from application.tenancy import Tenancy
from domain.walkthrough import Assignment, Manuscript, PublishPolicy


class Authoring:
    """The author's use cases, for the organisation that is named by its slug."""

    def __init__(
        self, walkthroughs: WalkthroughStore, check_content: ContentCheck, tenancy: Tenancy, ids: Ids, clock: Clock
    ) -> None:
        self._walkthroughs = walkthroughs
        self._check_content = check_content
        self._tenancy = tenancy
        self._ids = ids
        self._clock = clock

    async def push(
        self,
        organization: str,
        manuscript: Manuscript,
        *,
        publish: PublishPolicy | None,
        servers: Sequence[tuple[str, int | None]],
    ) -> Stored:
        """Stores a manuscript as the draft, or publishes it; and assigns it to `servers` (slug, order).

        Raises:
            ContentRejected: a text of it must not be delivered.
            NotFound: no such organisation or server.
            Either way nothing is stored.
        """
        self._check_content(manuscript)
        organization_id = await self._tenancy.organization(organization)
        return await self._walkthroughs.save(
            organization_id,
            manuscript,
            self._ids,
            self._clock.now(),
            publish=publish,
            placements=await self._placements(organization, servers),
        )

    async def assign(
        self, organization: str, key: str, servers: Sequence[tuple[str, int | None]]
    ) -> Sequence[Assignment]:
        """Puts a walkthrough on servers; repeating it changes nothing but an order that is given.

        Raises:
            NotFound: no such organisation, walkthrough or server.
        """
        organization_id = await self._tenancy.organization(organization)
        placements = await self._placements(organization, servers)
        return await self._walkthroughs.assign(organization_id, key, placements, self._clock.now())

    async def _placements(self, organization: str, servers: Sequence[tuple[str, int | None]]) -> Sequence[Placement]:
        return [Placement((await self._tenancy.server(slug, organization)).key, order) for slug, order in servers]
