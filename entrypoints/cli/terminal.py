"""How a command ends: its result shown, or in one line what is the matter and what to do."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from domain.errors import (
    ContentRejected,
    EditedInPlace,
    InvalidValue,
    OperatorError,
    PublishedMeanwhile,
    StaleEdit,
    TemporarilyUnavailable,
)
from domain.walkthrough import Finding
from entrypoints.cli.columns import disarmed, harmless

if TYPE_CHECKING:
    from domain.draft import RecordedEdit

# Longer lines are hard to read, however wide the terminal.
_MAX_WIDTH = 100
_EDITS_SHOWN = 20

MIGRATION_LEFT = (
    "A part of the migration is left, as it would stop the release before: when no process of that release is running, "
    "run 'cairn migrate --finish'."
)


def run(command: Callable[..., None], options: dict[str, Any]) -> None:
    """Runs a command; what an operator can mend is told in one line, with exit status 1."""
    # Whatever ends a command lets it give back its share in the embedded server.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _refuse_what_is_no_text(options)
        command(**options)
    except ContentRejected as error:
        if options["as_json"]:
            findings = [{"file": f.file, "line": f.line, "rule": f.rule, "remedy": f.remedy} for f in error.findings]
            click.echo(json.dumps({"findings": findings}, ensure_ascii=False))
            raise SystemExit(1) from error
        for line in _told(error.findings) if sys.stderr.isatty() else error.findings:
            click.echo(line, err=True)
        files = len({finding.file for finding in error.findings})
        _fail(f"{error} in {files} file{'s' if files > 1 else ''}")
    except (EditedInPlace, PublishedMeanwhile, StaleEdit) as error:
        if options["as_json"]:
            click.echo(json.dumps({"error": str(error), **_facts(error)}, ensure_ascii=False))
            raise SystemExit(1) from error
        if not isinstance(error, PublishedMeanwhile):
            _show_edits(error.since)
        _fail(str(error))
    except OperatorError as error:
        _fail(str(error))
    except TemporarilyUnavailable as error:
        remedy = "start it, or correct CAIRN_DATABASE_URL" if os.environ.get("CAIRN_DATABASE_URL") else "try again"
        _fail(f"the database does not answer ({_cause(error)}): {remedy}")


def _show_edits(edits: Sequence[RecordedEdit]) -> None:
    if len(edits) > _EDITS_SHOWN:
        click.echo(f"({len(edits) - _EDITS_SHOWN:,} earlier edits)", err=True)
    for edit in edits[-_EDITS_SHOWN:]:
        click.echo(harmless(str(edit)), err=True)


def _facts(error: EditedInPlace | PublishedMeanwhile | StaleEdit) -> dict[str, Any]:
    """What came in between: somebody's version, or their edits. Times are Unix milliseconds."""
    if isinstance(error, PublishedMeanwhile):
        first = error.version
        return {
            "version": first.number,
            "policy": first.policy,
            "content_hash": first.content_hash,
            "published_at": first.published_at,
            "published_by": first.published_by,
        }
    since = [
        {
            "version": each.number,
            "revision": each.revision,
            "edit": {"kind": each.edit.kind, **asdict(each.edit)},
            "by": each.edited_by,
            "at": each.edited_at,
        }
        for each in error.since
    ]
    return {"version": error.number, "revision": error.revision, "since": since}


def _refuse_what_is_no_text(options: dict[str, Any]) -> None:
    """Arguments are bytes: those that are no text come as lone surrogates, which no database takes.

    Raises:
        InvalidValue: with the name of the first.
    """
    for name, value in options.items():
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and any("\ud800" <= letter <= "\udfff" for letter in text):
                option = name.replace("_", "-")
                raise InvalidValue(f"{option} {text!a} cannot be stored: write it in UTF-8")


def _told(findings: Sequence[Finding]) -> Iterator[str]:
    """Findings for a person: the place, which terminals open, then what to do; the files with space between them."""
    width = min(shutil.get_terminal_size().columns, _MAX_WIDTH)
    for _, of_file in itertools.groupby(findings, lambda finding: finding.file):
        for finding in of_file:
            place = click.style(f"{finding.file}:{finding.line}", bold=True)
            yield f"{place}  {click.style(finding.rule, fg='yellow')}"
            yield textwrap.fill(
                finding.remedy,
                width,
                initial_indent="    ",
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        yield ""


def _fail(problem: str) -> None:
    # A name in it, or a path, may be anybody's.
    click.echo(f"{click.style('error', fg='red')}: {disarmed(problem)}", err=True)
    raise SystemExit(1)


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    if driver := getattr(cause, "orig", None):  # an SQLAlchemy error, which repeats the whole statement
        cause = driver.__cause__ or driver
    return " ".join(str(cause).split())[:200] or type(cause).__name__


def say(message: str) -> None:
    click.echo(message, err=True)


def show(as_json: bool, result: Any, *lines: str) -> None:
    """The result of a command: for a program, or for a person."""
    for line in [json.dumps(result, ensure_ascii=False)] if as_json else lines:
        click.echo(line)
