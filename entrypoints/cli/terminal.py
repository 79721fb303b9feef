"""How a command ends: its result shown, or in one line what is the matter and what to do."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import click

from domain.errors import ContentRejected, InvalidValue, OperatorError, TemporarilyUnavailable


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
        for finding in error.findings:
            click.echo(finding, err=True)
        _fail(str(error))
    except OperatorError as error:
        _fail(str(error))
    except TemporarilyUnavailable as error:
        remedy = "start it, or correct CAIRN_DATABASE_URL" if os.environ.get("CAIRN_DATABASE_URL") else "try again"
        _fail(f"the database does not answer ({_cause(error)}): {remedy}")


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


def _fail(problem: str) -> None:
    click.echo(f"{click.style('error', fg='red')}: {problem}", err=True)
    raise SystemExit(1)


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    return " ".join(str(cause).split())[:200] or type(cause).__name__


def say(message: str) -> None:
    click.echo(message, err=True)


def show(as_json: bool, result: Any, *lines: str) -> None:
    """The result of a command: for a program, or for a person."""
    for line in [json.dumps(result, ensure_ascii=False)] if as_json else lines:
        click.echo(line)
