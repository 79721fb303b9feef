"""`cairn pull`, `diff` and `versions`: what an author reads of the versions of a walkthrough."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from application.authoring import Authoring, History
from domain.difference import Difference, FieldChange, difference
from domain.draft import renames
from domain.errors import NotFound
from domain.publishing import LedgerEntry
from domain.tenancy import Millis
from domain.walkthrough import Manuscript
from entrypoints.cli.columns import clipped, disarmed, folded, harmless, width_of
from entrypoints.cli.commands import given, manuscript_in, to_publish, with_container
from entrypoints.cli.terminal import show
from entrypoints.workshop import Workshop

_WIDTH = 80
# A longer key stands out of its column, and what is said of it on the next line where it must.
_KEY_CELLS = 30
# What a person reads through; --json has all of it.
_ROWS_SHOWN = 50
_LINES_SHOWN = 20  # of one text
_TEXTS_SHOWN = 20
_CONTEXT_LINES = 1

# ------------------------------------------------------------------------------------------------- commands


def pull(
    key: str,
    folder: Path,
    org: str,
    version: int | None,
    is_draft: bool,
    is_forced: bool,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    _require_one(version, is_draft)

    async def asked(container: Workshop) -> tuple[_Content, frozenset[str], int]:
        authoring = container.authoring()
        # First: whatever is published after this is not what the author has looked at.
        history = await authoring.versions(org, key)
        content = await _content(authoring, org, key, version, is_draft=is_draft)
        known = {each.record.content_hash for each in history.versions}
        if history.draft is not None and history.draft.texts:
            known.add(history.draft.manuscript().content_hash())
        return content, frozenset(known), len(history.versions)

    content, known, latest = with_container(data_dir, asked)
    steps = len(content.manuscript.steps)
    is_written = Workshop.write_folder()(folder, content.manuscript, known=known, is_forced=is_forced)
    what = f"{content.of} of {key}"
    show(
        as_json,
        {"key": key, **content.named, "folder": str(folder), "steps": steps, "unchanged": not is_written},
        f"Wrote {what} to {folder}: {_counted(steps, 'step')}."
        if is_written
        else f"{folder} is unchanged: it holds {what} already.",
        _to_publish(folder, org, data_dir, latest),
    )


def diff(folder: Path, org: str, version: int | None, is_draft: bool, data_dir: Path | None, as_json: bool) -> None:
    _require_one(version, is_draft)
    manuscript = manuscript_in(folder)

    async def asked(container: Workshop) -> tuple[_Content, int]:
        authoring = container.authoring()
        latest = len((await authoring.versions(org, manuscript.key)).versions)  # first, as above
        return await _content(authoring, org, manuscript.key, version, is_draft=is_draft), latest

    stored, latest = with_container(data_dir, asked)
    found = difference(stored.manuscript, manuscript)
    result = {"key": manuscript.key, "before": stored.named, "after": {"folder": str(folder)}, **_result(found)}
    lines = [*_told(manuscript.key, stored.of, str(folder), found)]
    if not found.is_empty:
        lines += ["", _to_publish(folder, org, data_dir, latest)]
    show(as_json, result, *lines)


def _to_publish(folder: Path, org: str, data_dir: Path | None, latest: int) -> str:
    return to_publish("push", folder, "--org", org, "--publish", *given("--data-dir", data_dir), latest=latest)


def versions(key: str, org: str, between: tuple[int, int] | None, data_dir: Path | None, as_json: bool) -> None:
    if between is not None:
        _between(key, org, *between, data_dir, as_json)
        return
    history = with_container(data_dir, lambda container: container.authoring().versions(org, key))
    show(as_json, _history_result(history), *_history_lines(history))


def _between(key: str, org: str, old: int, new: int, data_dir: Path | None, as_json: bool) -> None:
    async def both(container: Workshop) -> tuple[_Content, _Content, dict[str, str]]:
        authoring = container.authoring()
        contents = [await _content(authoring, org, key, number, is_draft=False) for number in (old, new)]
        first, last = sorted((old, new))
        # Everything that was edited after the earlier of them was published.
        edits = await authoring.edits(org, key, (first + 1, 0))
        renamed = renames(each.edit for each in edits if each.number <= last)
        return contents[0], contents[1], renamed if old == first else {new: old for old, new in renamed.items()}

    before, after, renamed = with_container(data_dir, both)
    found = difference(before.manuscript, after.manuscript, renames=renamed)
    result = {"key": key, "before": before.named, "after": after.named, **_result(found)}
    show(as_json, result, *_told(key, before.of, after.of, found))


def _require_one(version: int | None, is_draft: bool) -> None:
    if is_draft and version is not None:
        raise click.UsageError("Give either --version or --draft.")


class _Content:
    """A stored content: a version's or the draft's."""

    def __init__(self, manuscript: Manuscript, version: int, *, is_draft: bool) -> None:
        self.manuscript = manuscript
        self.named = {"version": version, "draft": is_draft}
        self.of = f"the draft of version {version}" if is_draft else f"version {version}"


async def _content(authoring: Authoring, org: str, key: str, version: int | None, *, is_draft: bool) -> _Content:
    """The version with this number, the draft, or else the latest version."""
    if is_draft:
        draft = await authoring.draft(org, key)
        if not draft.texts:
            raise NotFound(f"the draft of {key} has no steps yet: push some first with 'cairn push DIR'")
        return _Content(draft.manuscript(), draft.key.number, is_draft=True)
    if version is None and not (await authoring.versions(org, key)).versions:
        raise NotFound(f"{key} was never published: name its draft with --draft")
    found = await authoring.version(org, key, version)
    return _Content(found.manuscript(key), found.number, is_draft=False)


# --------------------------------------------------------------------------------------------- a difference


def _result(found: Difference) -> dict[str, Any]:
    return {
        "is_same": found.is_empty,
        "details": [asdict(each) for each in found.details],
        "added": [asdict(each) for each in found.added],
        "removed": [asdict(each) for each in found.removed],
        "renamed": [asdict(each) for each in found.renamed],
        "moved": [
            {"key": each.text.key, "from_number": each.from_number, "number": each.number, "after": each.after}
            for each in found.moved
        ],
        "changed": [
            {"key": each.after.key, "number": each.number, "fields": [asdict(field) for field in each.fields]}
            for each in found.changed
        ],
    }


def _told(key: str, before: str, after: str, found: Difference) -> Iterator[str]:
    yield from folded(f"{key}: {before} → {harmless(after)}", _WIDTH)
    if found.is_empty:
        yield "They are the same."
        return
    sections: dict[str, list[tuple[int, str, str]]] = {
        "added": [(each.number, each.text.key, each.text.title) for each in found.added],
        "removed": [(each.number, each.text.key, each.text.title) for each in found.removed],
        "renamed": [(each.number, each.after, f"was {each.before}") for each in found.renamed],
        "moved": [(each.number, each.text.key, f"was step {each.from_number}") for each in found.moved],
        "changed": [(each.number, each.after.key, ", ".join(map(_label, each.fields))) for each in found.changed],
    }
    counts = [f"{len(rows)} {name}" for name, rows in sections.items() if rows]
    if counts:
        yield f"Steps: {', '.join(counts)}"
    for name, rows in sections.items():
        if not rows:
            continue
        yield ""
        yield click.style(name.capitalize(), bold=True)
        width = min(max(len(row[1]) for row in rows[:_ROWS_SHOWN]), _KEY_CELLS)
        for number, step_key, about in rows[:_ROWS_SHOWN]:
            line = f"{number:>5}  {step_key:<{width}}  {harmless(about)}"
            if width_of(line) <= _WIDTH:
                yield line
            else:
                yield f"{number:>5}  {step_key}"
                yield from folded(harmless(about), _WIDTH, " " * 9)
        if len(rows) > _ROWS_SHOWN:
            yield f"       and {len(rows) - _ROWS_SHOWN} more: --json lists them"
    texts = [(_label(change), change) for change in found.details]
    texts += [(f"{each.after.key}: {_label(change)}", change) for each in found.changed for change in each.fields]
    for name, change in texts[:_TEXTS_SHOWN]:
        yield ""
        yield click.style(name, bold=True)
        yield from _changed_lines(change)
    if len(texts) > _TEXTS_SHOWN:
        yield ""
        yield f"And {_counted(len(texts) - _TEXTS_SHOWN, 'more text')} changed: --json has them."


def _label(change: FieldChange) -> str:
    return change.field.replace("_", " ")


def _changed_lines(change: FieldChange) -> Iterator[str]:
    """The lines that differ, each with a little of what stands around it."""
    lines = list(_compared(_lines(change.before), _lines(change.after)))
    if len(lines) > _LINES_SHOWN + 1:  # one line more takes no more room than to say so
        more = len(lines) - _LINES_SHOWN
        lines[_LINES_SHOWN:] = [f"    … {more} more lines"]
    yield from lines


def _lines(value: str | int | None) -> list[str]:
    return [] if value is None else [disarmed(line.expandtabs(4)) for line in str(value).split("\n")]


def _compared(before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    matcher = difflib.SequenceMatcher(None, before, after)
    for number, group in enumerate(matcher.get_grouped_opcodes(_CONTEXT_LINES)):
        if number:
            yield "    …"
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                yield from (clipped(f"    {line}".rstrip(), _WIDTH) for line in before[i1:i2])
                continue
            removed, added = list(before[i1:i2]), list(after[j1:j2])
            for at in range(min(len(removed), len(added))):
                removed[at], added[at] = _from_where_they_differ(removed[at], added[at])
            yield from (click.style(_marked("-", line), fg="red") for line in removed)
            yield from (click.style(_marked("+", line), fg="green") for line in added)


def _from_where_they_differ(one: str, other: str) -> tuple[str, str]:
    """Two lines as they are; where one is too long to be seen whole, from a little before they differ."""
    room = _WIDTH - 4
    if max(width_of(one), width_of(other)) <= room:
        return one, other
    pairs = enumerate(zip(one, other, strict=False))
    same = next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(one), len(other)))
    start = one.rfind(" ", 0, max(same - room // 4, 0)) + 1
    return (f"…{one[start:]}", f"…{other[start:]}") if start else (one, other)


def _marked(sign: str, line: str) -> str:
    # Two blanks at the end of a line break it in Markdown, and nobody would see what has changed.
    bare = line.rstrip(" ")
    shown = bare + "·" * (len(line) - len(bare))
    return clipped(f"  {sign} {shown}", _WIDTH) if shown else f"  {sign}"


# ------------------------------------------------------------------------------------------------- history


def _history_result(history: History) -> dict[str, Any]:
    """Times are Unix milliseconds."""
    draft = history.draft
    return {
        "key": history.key,
        "published": history.is_published,
        "archived_at": history.archived_at,
        "versions": [
            {
                "version": each.record.number,
                "state": each.record.state.value,
                "title": each.record.title,
                "steps": each.record.step_count,
                "content_hash": each.record.content_hash,
                "policy": each.record.policy.value,
                "published_at": each.record.published_at,
                "published_by": each.record.published_by,
                "mid_way": each.people.mid_way,
                "completed": each.people.completed,
            }
            for each in history.versions
        ],
        "draft": None
        if draft is None
        else {"version": draft.key.number, "revision": draft.revision, "title": draft.title, "steps": len(draft.texts)},
        "ledger": [asdict(entry) for entry in history.ledger],
    }


def _history_lines(history: History) -> Iterator[str]:
    state = "published" if history.is_published else "not published"
    if history.archived_at is not None:
        state = f"archived since {_moment(history.archived_at)} UTC"
    yield f"{history.key}: {state}, {_counted(len(history.versions), 'version')}"
    if history.draft is not None:
        draft = history.draft
        steps = _counted(len(draft.texts), "step")
        yield f"Draft of version {draft.key.number}: {steps}, revision {draft.revision}"
    if history.versions:
        yield ""
        yield "NO  STATE      POLICY      STEPS  MID-WAY  DONE  PUBLISHED   BY"
        yield from _left_out(len(history.versions), "earlier version")
    for each in history.versions[-_ROWS_SHOWN:]:
        record, people = each.record, each.people
        yield clipped(
            f"{record.number:>2}  {record.state.value:<9}  {record.policy.value:<10}  {record.step_count:>5}  "
            f"{people.mid_way:>7}  {people.completed:>4}  {_day(record.published_at)}  {_by(record.published_by)}",
            _WIDTH,
        )
    if history.ledger:
        yield ""
        yield "WHEN (UTC)        WHAT         NO  POLICY      BY"
        yield from _left_out(len(history.ledger), "earlier entry", "earlier entries")
    for entry in history.ledger[-_ROWS_SHOWN:]:
        yield clipped(_ledger_line(entry), _WIDTH)


def _ledger_line(entry: LedgerEntry) -> str:
    deed = entry.deed.value.replace("_", " ")
    number = "" if entry.version is None else entry.version
    policy = "" if entry.policy is None else entry.policy.value
    source = "" if entry.source_version is None else f", to version {entry.source_version}"
    return f"{_moment(entry.at)}  {deed:<11}  {number:>2}  {policy:<10}  {_by(entry.by)}{source}"


def _left_out(count: int, one: str, many: str | None = None) -> Iterator[str]:
    if count > _ROWS_SHOWN:
        yield f"({_counted(count - _ROWS_SHOWN, one, many)}: --json lists them)"


def _by(name: str | None) -> str:
    return "–" if name is None else harmless(name)


def _moment(time: Millis) -> str:
    return datetime.fromtimestamp(time / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _day(time: Millis) -> str:
    return _moment(time)[:10]


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
