"""Storing what authors do to a walkthrough: its draft, its versions, the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import msgspec
from sqlalchemy import BigInteger, Boolean, bindparam, cast, func, literal, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.postgres.assignments import place
from adapters.postgres.connections import Database
from adapters.postgres.learning import step_text
from adapters.postgres.tables import (
    mcp_server_walkthroughs,
    walkthrough_draft_edits,
    walkthrough_ledger,
    walkthrough_progress,
    walkthrough_steps,
    walkthrough_versions,
    walkthroughs,
)
from application.ports import Placement, VersionPeople
from domain.chain import StepChain, StepLink
from domain.draft import Draft, Edit, RecordedEdit
from domain.errors import TemporarilyUnavailable
from domain.forecast import Standing
from domain.progress import Status
from domain.publishing import (
    Change,
    Deed,
    DraftRevision,
    LedgerEntry,
    VersionRecord,
    Walkthrough,
    unknown,
)
from domain.tenancy import Millis, OrganizationId, StepId, WalkthroughId
from domain.walkthrough import (
    PublishPolicy,
    Step,
    Version,
    VersionKey,
    VersionState,
    WalkthroughType,
)

_EDITS: Mapping[str, type[Edit]] = {edit.kind: edit for edit in get_args(Edit)}
_VERSION = walkthrough_versions.c
_STEP = walkthrough_steps.c


class PostgresWalkthroughStore:
    """`WalkthroughStore` on PostgreSQL. Authors of one walkthrough queue up on its row; learners never wait for it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(
        self, organization_id: OrganizationId, key: str, *, since: DraftRevision | None = None
    ) -> Walkthrough | None:
        async with self._database.transaction(organization_id) as connection:
            # Shared: so that no author changes it between these statements.
            return await _read(connection, organization_id, key, since, is_shared=True)

    async def change(
        self,
        organization_id: OrganizationId,
        key: str,
        decide: Callable[[Walkthrough], Change],
        now: Millis,
        *,
        since: DraftRevision | None = None,
        new_id: WalkthroughId | None = None,
        placements: Sequence[Placement] = (),
    ) -> Change:
        async with self._database.transaction(organization_id) as connection:
            if new_id is not None:
                await connection.execute(
                    insert(walkthroughs)
                    .values(organization_id=organization_id, id=new_id, key=key, created_at=now, updated_at=now)
                    .on_conflict_do_nothing(index_elements=["organization_id", "key"])
                )
            walkthrough = await _read(connection, organization_id, key, since, is_shared=False)
            if walkthrough is None:
                raise unknown(key)
            change = decide(walkthrough)
            if not change.is_empty:
                await _write(connection, change, now)
            assignments = await place(connection, organization_id, walkthrough.id, placements, now)
        return replace(change, assignments=tuple(assignments))

    async def version(self, key: VersionKey) -> Version | None:
        async with self._database.transaction(key.organization_id) as connection:
            row = (
                (
                    await connection.execute(
                        select(_VERSION.title, _VERSION.description, _VERSION.type).where(
                            _VERSION.organization_id == key.organization_id,
                            _VERSION.walkthrough_id == key.walkthrough_id,
                            _VERSION.version == key.number,
                            _VERSION.state != VersionState.DRAFT,
                        )
                    )
                )
                .mappings()
                .one_or_none()
            )
            if row is None:
                return None
            return _content(key, row, await _steps(connection, key.organization_id, key.walkthrough_id, [key.number]))

    async def ledger(self, organization_id: OrganizationId, walkthrough_id: WalkthroughId) -> Sequence[LedgerEntry]:
        its = walkthrough_ledger.c
        async with self._database.transaction(organization_id) as connection:
            rows = await connection.execute(
                select(
                    its.deed, its.version, its.content_hash, its.policy, its.source_version, its.acted_by, its.acted_at
                )
                .where(its.organization_id == organization_id, its.walkthrough_id == walkthrough_id)
                .order_by(its.number)
            )
            return [
                LedgerEntry(
                    deed=Deed(row.deed),
                    version=row.version,
                    content_hash=row.content_hash,
                    policy=PublishPolicy(row.policy) if row.policy else None,
                    source_version=row.source_version,
                    by=row.acted_by,
                    at=row.acted_at,
                )
                for row in rows
            ]

    async def people(
        self, organization_id: OrganizationId, walkthrough_id: WalkthroughId
    ) -> Mapping[int, VersionPeople]:
        its = walkthrough_progress.c
        async with self._database.transaction(organization_id) as connection:
            rows = await connection.execute(
                select(
                    its.version,
                    func.count().filter(its.status == Status.IN_PROGRESS).label("mid_way"),
                    func.count().filter(its.status == Status.COMPLETED).label("completed"),
                )
                .where(
                    its.organization_id == organization_id,
                    its.walkthrough_id == walkthrough_id,
                    its.status != Status.MERGED,
                )
                .group_by(its.version)
            )
            return {row.version: VersionPeople(row.mid_way, row.completed) for row in rows}

    async def standings(self, organization_id: OrganizationId, walkthrough_id: WalkthroughId) -> Sequence[Standing]:
        its, at = walkthrough_progress.c, mcp_server_walkthroughs.c
        is_enabled = func.coalesce(at.is_enabled, literal(False, Boolean)).label("is_enabled")
        async with self._database.transaction(organization_id) as connection:
            rows = await connection.execute(
                select(its.version, its.current_step_id, its.carried, is_enabled, func.count().label("people"))
                .join_from(
                    walkthrough_progress,
                    mcp_server_walkthroughs,
                    (at.organization_id == its.organization_id)
                    & (at.mcp_server_id == its.mcp_server_id)
                    & (at.walkthrough_id == its.walkthrough_id),
                    isouter=True,
                )
                .where(
                    its.organization_id == organization_id,
                    its.walkthrough_id == walkthrough_id,
                    its.status == Status.IN_PROGRESS,
                )
                .group_by(its.version, its.current_step_id, its.carried, is_enabled)
            )
            return [
                Standing(row.version, row.current_step_id, frozenset(row.carried), row.is_enabled, row.people)
                for row in rows
            ]


# ------------------------------------------------------------------------------------------------- reading


async def _read(
    connection: AsyncConnection,
    organization_id: OrganizationId,
    key: str,
    since: DraftRevision | None,
    *,
    is_shared: bool,
) -> Walkthrough | None:
    """The walkthrough, its row held until the transaction ends: a constant number of statements."""
    row = (
        await connection.execute(
            select(
                walkthroughs.c.id,
                walkthroughs.c.is_published,
                walkthroughs.c.archived_at,
                walkthroughs.c.latest_version,
            )
            .where(walkthroughs.c.organization_id == organization_id, walkthroughs.c.key == key)
            .with_for_update(read=is_shared)
        )
    ).one_or_none()
    if row is None:
        return None
    id = WalkthroughId(row.id)
    versions = (
        await connection.execute(
            select(
                _VERSION.version,
                _VERSION.state,
                _VERSION.title,
                _VERSION.description,
                _VERSION.type,
                _VERSION.step_count,
                _VERSION.content_hash,
                _VERSION.on_publish,
                _VERSION.revision,
                _VERSION.pushed_revision,
                _VERSION.published_at,
                _VERSION.published_by,
            )
            .where(_VERSION.organization_id == organization_id, _VERSION.walkthrough_id == id)
            .order_by(_VERSION.version)
        )
    ).mappings()
    published: list[RowMapping] = []
    latest: RowMapping | None = None
    drafted: RowMapping | None = None
    for version in versions:
        if version["state"] == VersionState.DRAFT:
            drafted = version
        else:
            published.append(version)
        if version["version"] == row.latest_version:
            latest = version
    steps = await _steps(
        connection, organization_id, id, [each["version"] for each in (latest, drafted) if each is not None]
    )
    draft = None
    if drafted is not None:
        draft = _draft(VersionKey(organization_id, id, drafted["version"]), key, drafted, steps)
        since = since or (drafted["version"], drafted["pushed_revision"])
    return Walkthrough(
        organization_id=organization_id,
        id=id,
        key=key,
        is_published=row.is_published,
        archived_at=row.archived_at,
        versions=tuple(map(_record, published)),
        latest=None if latest is None else _content(VersionKey(organization_id, id, latest["version"]), latest, steps),
        draft=draft,
        pushed_revision=0 if drafted is None else drafted["pushed_revision"],
        edits_since=() if since is None else await _edits(connection, organization_id, id, since),
    )


async def _steps(
    connection: AsyncConnection, organization_id: OrganizationId, id: WalkthroughId, numbers: Sequence[int]
) -> Mapping[int, Sequence[RowMapping]]:
    """The steps of these versions, by their numbers; those that have a position in its order."""
    found: dict[int, list[RowMapping]] = {number: [] for number in numbers}
    rows = await connection.execute(
        select(
            _STEP.version,
            _STEP.id,
            _STEP.next_step_id,
            _STEP.key,
            _STEP.title,
            _STEP.content,
            _STEP.assistant_notes,
            _STEP.workspace_actions,
            _STEP.done_when,
            _STEP.delivery,
            _STEP.estimated_minutes,
        )
        .where(_STEP.organization_id == organization_id, _STEP.walkthrough_id == id, _STEP.version.in_(numbers))
        .order_by(_STEP.version, _STEP.position)
    )
    for row in rows.mappings():
        found[row["version"]].append(row)
    return found


async def _edits(
    connection: AsyncConnection, organization_id: OrganizationId, id: WalkthroughId, since: DraftRevision
) -> tuple[RecordedEdit, ...]:
    its = walkthrough_draft_edits.c
    # As bigints, since anybody may have named any number.
    after = [cast(literal(number, BigInteger), BigInteger) for number in since]
    rows = await connection.execute(
        select(its.version, its.revision, its.edit, its.edited_by, its.edited_at)
        .where(
            its.organization_id == organization_id,
            its.walkthrough_id == id,
            tuple_(its.version, its.revision) > tuple_(*after),
        )
        .order_by(its.version, its.revision)
    )
    return tuple(RecordedEdit(row.version, row.revision, _edit(row.edit), row.edited_by, row.edited_at) for row in rows)


def _edit(stored: dict[str, Any]) -> Edit:
    edit: Edit = msgspec.convert(stored, _EDITS[stored["kind"]])
    return edit


def _record(row: RowMapping) -> VersionRecord:
    return VersionRecord(
        number=row["version"],
        state=VersionState(row["state"]),
        title=row["title"],
        step_count=row["step_count"],
        content_hash=row["content_hash"],
        policy=PublishPolicy(row["on_publish"]),
        revision=row["revision"],
        published_at=row["published_at"],
        published_by=row["published_by"],
    )


def _content(key: VersionKey, row: RowMapping, steps: Mapping[int, Sequence[RowMapping]]) -> Version:
    return Version(
        key=key,
        title=row["title"],
        description=row["description"],
        type=WalkthroughType(row["type"]),
        steps=tuple(Step(StepId(step["id"]), step_text(step)) for step in steps[key.number]),
    )


def _draft(key: VersionKey, walkthrough_key: str, row: RowMapping, steps: Mapping[int, Sequence[RowMapping]]) -> Draft:
    return Draft(
        key=key,
        walkthrough_key=walkthrough_key,
        title=row["title"],
        description=row["description"],
        type=WalkthroughType(row["type"]),
        chain=StepChain.from_links(StepLink(step["id"], step["next_step_id"]) for step in steps[key.number]),
        texts={StepId(step["id"]): step_text(step) for step in steps[key.number]},
        revision=row["revision"],
    )


# ------------------------------------------------------------------------------------------------- writing


async def _write(connection: AsyncConnection, change: Change, now: Millis) -> None:
    """What the change says, and nothing that is stored already."""
    before, after = change.before, change.after
    its = {"organization_id": after.organization_id, "walkthrough_id": after.id}
    if change.draft is not None and change.draft is not before.draft:
        await _write_draft(connection, before.draft, change.draft, its, now)
    if after.draft is not None and after.pushed_revision != before.pushed_revision:
        await connection.execute(
            update(walkthrough_versions)
            .where(*_of(walkthrough_versions, its), _VERSION.version == after.draft.key.number)
            .values(pushed_revision=after.pushed_revision)
        )
    if change.edits:
        await connection.execute(
            insert(walkthrough_draft_edits),
            [
                {
                    **its,
                    "version": each.number,
                    "revision": each.revision,
                    "edit": {"kind": each.edit.kind, **msgspec.to_builtins(each.edit)},
                    "edited_by": each.edited_by,
                    "edited_at": each.edited_at,
                }
                for each in change.edits
            ],
        )
    if change.new_version is not None and change.draft is not None:
        await _publish(connection, change.draft, change.new_version, its)
    if change.withdrawn:
        await connection.execute(
            update(walkthrough_versions)
            .where(*_of(walkthrough_versions, its), _VERSION.version.in_(change.withdrawn))
            .values(state=VersionState.WITHDRAWN)
        )
    await connection.execute(
        update(walkthroughs)
        .where(walkthroughs.c.organization_id == after.organization_id, walkthroughs.c.id == after.id)
        .values(
            is_published=after.is_published,
            archived_at=after.archived_at,
            latest_version=after.latest_number or None,
            updated_at=now,
        )
    )
    if change.entry is not None:
        await _enter(connection, change.entry, its)


def _of(table: Any, its: Mapping[str, str]) -> list[Any]:
    return [table.c[column] == value for column, value in its.items()]


async def _write_draft(
    connection: AsyncConnection, before: Draft | None, after: Draft, its: Mapping[str, str], now: Millis
) -> None:
    """The draft's row, and of its steps those that are new, gone or other than they were."""
    manuscript = after.manuscript() if after.texts else None
    row = {
        "title": after.title,
        "description": after.description,
        "type": after.type,
        "first_step_id": after.chain.first,
        "step_count": len(after.chain),
        "estimated_minutes": manuscript.estimated_minutes() if manuscript else None,
        "content_hash": manuscript.content_hash() if manuscript else "",
        "revision": after.revision,
    }
    number = after.key.number
    if before is None:
        await connection.execute(
            insert(walkthrough_versions).values(**its, version=number, state=VersionState.DRAFT, created_at=now, **row)
        )
    else:
        updated = await connection.execute(
            update(walkthrough_versions)
            .where(
                *_of(walkthrough_versions, its),
                _VERSION.version == number,
                _VERSION.state == VersionState.DRAFT,
                _VERSION.revision == before.revision,
            )
            .values(**row)
        )
        if updated.rowcount != 1:  # by a hand that did not wait for the walkthrough's row
            raise TemporarilyUnavailable
    were = _rows(before) if before is not None else {}
    are = _rows(after)
    if gone := were.keys() - are.keys():
        await connection.execute(
            walkthrough_steps.delete().where(
                *_of(walkthrough_steps, its), _STEP.version == number, _STEP.id.in_(sorted(gone))
            )
        )
    if new := [row for id, row in are.items() if id not in were]:
        await connection.execute(insert(walkthrough_steps), [{**its, "version": number, **row} for row in new])
    if other := [row for id, row in are.items() if id in were and were[id] != row]:
        columns = other[0].keys() - {"id"}
        await connection.execute(
            update(walkthrough_steps)
            .where(*_of(walkthrough_steps, its), _STEP.version == number, _STEP.id == bindparam("its_id"))
            .values({column: bindparam(f"new_{column}", type_=_STEP[column].type) for column in columns}),
            [{"its_id": row["id"], **{f"new_{column}": row[column] for column in columns}} for row in other],
        )


def _rows(draft: Draft) -> dict[StepId, dict[str, Any]]:
    """Each step as it is stored, but for its position, which it gets when it is published."""
    rows = {}
    for link in draft.chain.links():
        text = draft.texts[link.id]
        rows[link.id] = {
            "id": link.id,
            "next_step_id": link.next_step_id,
            "key": text.key,
            "title": text.title,
            "content": text.content,
            "assistant_notes": text.assistant_notes,
            "workspace_actions": text.workspace_actions,
            "done_when": text.done_when,
            "delivery": text.delivery,
            "estimated_minutes": text.estimated_minutes,
        }
    return rows


async def _publish(connection: AsyncConnection, draft: Draft, version: VersionRecord, its: Mapping[str, str]) -> None:
    await connection.execute(
        update(walkthrough_steps)
        .where(*_of(walkthrough_steps, its), _STEP.version == version.number, _STEP.id == bindparam("its_id"))
        .values(position=bindparam("place", type_=_STEP.position.type)),
        [{"its_id": id, "place": place} for place, id in enumerate(draft.chain, start=1)],
    )
    await connection.execute(
        update(walkthrough_versions)
        .where(*_of(walkthrough_versions, its), _VERSION.version == version.number)
        .values(
            state=version.state,
            content_hash=version.content_hash,
            on_publish=version.policy,
            published_at=version.published_at,
            published_by=version.published_by,
        )
    )


async def _enter(connection: AsyncConnection, entry: LedgerEntry, its: Mapping[str, str]) -> None:
    """Numbered in a row: the walkthrough's own row is held, so nobody else takes the same number."""
    number = select(func.coalesce(func.max(walkthrough_ledger.c.number), 0) + 1).where(*_of(walkthrough_ledger, its))
    await connection.execute(
        insert(walkthrough_ledger).values(
            **its,
            number=number.scalar_subquery(),
            deed=entry.deed,
            version=entry.version,
            content_hash=entry.content_hash,
            policy=entry.policy,
            source_version=entry.source_version,
            acted_by=entry.by,
            acted_at=entry.at,
        )
    )
