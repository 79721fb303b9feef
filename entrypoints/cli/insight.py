"""`cairn insight`: the numbers an author sees, as a funnel in the terminal, as JSON or as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from application.insight import TOO_FAST, Funnel, FunnelStep
from domain.tenancy import Millis
from entrypoints.cli.columns import clipped, disarmed, harmless, width_of
from entrypoints.cli.commands import with_container
from entrypoints.cli.terminal import show

_WIDTH = 80
_TITLE_CELLS = 22
_BAR_CELLS = 10
_EIGHTHS = " ▏▎▍▌▋▊▉"
_NOTES_SHOWN = 10
_NOTE_LINES = 4
_DAY = 24 * 60 * 60 * 1000


def insight(
    key: str,
    org: str,
    server: str | None,
    version: int | None,
    since: datetime | None,
    until: datetime | None,
    days: int,
    data_dir: Path | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    if as_json and as_csv:
        raise click.UsageError("Give either --json or --csv.")
    funnel = with_container(
        data_dir,
        lambda container: container.insight().funnel(
            org,
            key,
            server=server,
            version=version,
            since=None if since is None else _midnight(since),
            # The day that is named belongs to the range.
            until=None if until is None else Millis(_midnight(until) + _DAY),
            abandoned_after_days=days,
        ),
    )
    show(as_json, _result(funnel), *(_csv(funnel) if as_csv else _drawn(funnel)))


def _midnight(day: datetime) -> Millis:
    return Millis(int(day.replace(tzinfo=UTC).timestamp()) * 1000)


# --------------------------------------------------------------------------------------------- for programs


def _result(funnel: Funnel) -> dict[str, Any]:
    """Times are Unix milliseconds, `until` is not included; rates go from 0 to 1."""
    cohort = funnel.cohort
    return {
        "key": funnel.key,
        "title": funnel.title,
        "latest_version": funnel.latest_version,
        "version": cohort.version,
        "server": funnel.server,
        "since": cohort.since,
        "until": cohort.until,
        "counted_at": funnel.counted_at,
        "abandoned_after_days": funnel.abandoned_after_days,
        "attempts": {**asdict(funnel.attempts), "completion_rate": _rounded(funnel.completion_rate)},
        "steps": [_step_result(step) for step in funnel.steps],
        "note_count": funnel.note_count,
        "notes": [asdict(note) for note in funnel.notes],
    }


def _step_result(step: FunnelStep) -> dict[str, Any]:
    counts = asdict(step.counts)
    median = counts.pop("median_active")
    return {
        "number": step.number,
        "title": step.title,
        **counts,
        "drop_off": _rounded(step.drop_off),
        "median_active_ms": median,
    }


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 4)


def _csv(funnel: Funnel) -> list[str]:
    """A row for the walkthrough, one for each step, and one for each note; `row` says which."""
    result = _result(funnel)
    attempts, steps, notes = result.pop("attempts"), result.pop("steps"), result.pop("notes")
    rows = [
        {"row": "walkthrough", **result, **attempts},
        *({"row": "step", **step} for step in steps),
        *({"row": "note", "key": note.pop("step_key"), **note} for note in notes),
    ]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for always in ("reached", "drop_off", "median_active_ms", "note", "reported_at"):
        if always not in columns:  # the same columns, whether or not somebody was stuck
            columns.append(always)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: _cell(value) for column, value in row.items()} for row in rows)
    return [text.getvalue().removesuffix("\n")]


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    # A spreadsheet runs what begins like a formula, and a note is written by anyone.
    text = "\n".join(map(disarmed, value.splitlines()))
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


# ----------------------------------------------------------------------------------------------- for people


def _drawn(funnel: Funnel) -> Iterator[str]:
    attempts = funnel.attempts
    yield clipped(f"{funnel.key}: {harmless(funnel.title)}", _WIDTH)
    yield clipped(_cohort(funnel), _WIDTH)
    yield ""
    if not attempts.started:
        yield "Nobody has begun it yet." if _is_everything(funnel) else "Nobody began it there and then."
        return
    rate = _percent(funnel.completion_rate, 1)
    left, right = "{:<12}{:>7}  {:<22}", "{:<12}{:>7}  {}"
    for one, other in (
        (("Started", attempts.started, f"by {_counted(attempts.people, 'person', 'people')}"), None),
        (("Completed", attempts.completed, rate), ("Resumed", attempts.resumed, "after a pause")),
        (("In progress", attempts.in_progress, ""), ("Skipped", attempts.skipped, "a step")),
        (
            ("Abandoned", attempts.abandoned, f"idle for {_counted(funnel.abandoned_after_days, 'day', 'days')}"),
            ("Stuck", attempts.stuck, "at a step"),
        ),
        (("Restarted", attempts.restarted, ""), ("Too fast", attempts.too_fast, f"two steps in {TOO_FAST // 1000} s")),
        (("Moved on", attempts.moved_on, "to a newer version"), None),
    ):
        if one[0] != "Moved on" or funnel.cohort.version is not None:
            yield (left.format(*one) + (right.format(*other) if other else "")).rstrip()
    yield ""
    yield _line("", "STEP", "", "REACHED", "DONE", "DROP", "TIME", "SKIP", "STUCK")
    most = max(attempts.started, *(step.counts.reached for step in funnel.steps))
    for step in funnel.steps:
        yield _step_line(step, most)
    if any(step.number is None for step in funnel.steps):
        whose = f"version {funnel.cohort.version or funnel.latest_version}"
        yield f"  – is a step that {whose} does not have."
    yield from _notes(funnel)


def _cohort(funnel: Funnel) -> str:
    cohort = funnel.cohort
    version = "all versions" if cohort.version is None else f"version {cohort.version}"
    parts = [
        f"{version} (latest {funnel.latest_version})",
        f"server {funnel.server}" if funnel.server else "all servers",
    ]
    if cohort.since is not None:
        parts.append(f"from {_day(cohort.since)}")
    if cohort.until is not None:
        parts.append(f"until {_day(Millis(cohort.until - 1))}")
    return ", ".join(parts)


def _is_everything(funnel: Funnel) -> bool:
    cohort = funnel.cohort
    return (cohort.version, cohort.server_id, cohort.since, cohort.until) == (None, None, None, None)


def _day(time: Millis) -> str:
    return datetime.fromtimestamp(time / 1000, UTC).strftime("%Y-%m-%d")


def _percent(rate: float | None, decimals: int) -> str:
    return "" if rate is None else f"{100 * rate:.{decimals}f} %"


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _step_line(step: FunnelStep, most: int) -> str:
    counts = step.counts
    return _line(
        "–" if step.number is None else step.number,
        harmless(step.title or counts.key),
        _bar(counts.reached / most),
        counts.reached,
        counts.completed,
        _percent(step.drop_off, 0),
        "" if counts.median_active is None else _duration(counts.median_active),
        counts.skipped,
        counts.stuck,
    )


def _line(number: Any, title: str, bar: str, *cells: Any) -> str:
    shown = clipped(title, _TITLE_CELLS)
    padding = " " * (_TITLE_CELLS - width_of(shown))
    reached, done, drop, time, skipped, stuck = cells
    return (
        f"{number:>3} {shown}{padding} {bar:<{_BAR_CELLS}} {reached:>7} {done:>6} {drop:>5} {time:>7} {skipped:>6} "
        f"{stuck:>5}"
    ).rstrip()


def _bar(part: float) -> str:
    eighths = round(part * _BAR_CELLS * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _duration(milliseconds: Millis) -> str:
    seconds = round(milliseconds / 1000)
    if seconds < 60:
        return f"{seconds} s"
    return f"{round(seconds / 60)} min" if seconds < 60 * 60 else f"{seconds / 3600:.1f} h"


def _notes(funnel: Funnel) -> Iterator[str]:
    if not funnel.notes:
        return
    titles = {step.counts.key: step.title for step in funnel.steps}
    yield ""
    yield "Notes of those who were stuck, newest first:"
    for note in funnel.notes[:_NOTES_SHOWN]:
        yield ""
        title = harmless(titles.get(note.step_key) or note.step_key)
        yield clipped(f"  {_day(note.reported_at)}, version {note.version}: {title}", _WIDTH)
        yield from (f"    {line}" for line in _wrapped(harmless(note.note), _WIDTH - 4))
    more = funnel.note_count - _NOTES_SHOWN
    if more > 0:
        yield ""
        yield f"And {_counted(more, 'older one', 'older ones')}: --json and --csv list them."


def _wrapped(text: str, cells: int) -> Sequence[str]:
    """The first lines of a text; the last ends in … where there were more."""
    lines: list[str] = []
    rest = text[: cells * (_NOTE_LINES + 1)]
    while rest and len(lines) < _NOTE_LINES:
        if width_of(rest) <= cells:
            return [*lines, rest]
        fits = len(rest)
        while width_of(rest[:fits]) > cells:
            fits -= 1
        # At a space, unless a word fills the line.
        end = rest.rfind(" ", 1, fits + 1)
        end = end if end > 0 else fits
        lines.append(rest[:end])
        rest = rest[end:].lstrip()
    if rest:
        lines[-1] = clipped(lines[-1] + " " + rest, cells)
    return lines
