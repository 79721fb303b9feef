"""The walkthroughs that come with Cairn: sound, worth taking, and every command in them one that there is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from adapters.content.folder import read_folder
from entrypoints.cli.demo import WALKTHROUGHS
from entrypoints.cli.main import main
from tests.cli.conftest import Nursery

FOLDERS = sorted(each for each in WALKTHROUGHS.iterdir() if each.is_dir())
each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def test_two_are_shipped() -> None:
    assert len(FOLDERS) == 2


@pytest.mark.promise("content.real")
@each_folder
def test_a_shipped_walkthrough_lints_clean_and_has_at_least_six_steps(nursery: Nursery, folder: Path) -> None:
    told = nursery.run("lint", str(folder), "--json").json
    assert told["findings"] == []
    assert told["steps"] >= 6


@pytest.mark.promise("content.real")
@each_folder
def test_every_step_can_be_checked_and_says_how_long_it_takes(folder: Path) -> None:
    for step in read_folder(folder).steps:
        assert step.done_when, step.key
        assert step.estimated_minutes, step.key


def commands_in(folder: Path) -> Iterator[str]:
    """Every command of `cairn` that stands on a line of its own or between backticks."""
    for file in sorted(folder.glob("*.md")):
        text = file.read_text().replace("\\\n", " ")
        for found in re.finditer(r"(?:^ *|`)(?:\.venv/bin/)?cairn ([a-z][^`\n]*)", text, re.MULTILINE):
            yield found[1].strip()


@pytest.mark.promise("content.real")
@each_folder
def test_every_command_in_a_shipped_walkthrough_is_one_that_there_is(folder: Path) -> None:
    for line in commands_in(folder):
        command, arguments = main, shlex.split(line)
        context = click.Context(main)
        while isinstance(command, click.Group) and arguments:
            name, *arguments = arguments
            assert name in command.commands, line
            command = command.commands[name]
        if arguments:  # a command that is only named, as in "`cairn dev`", needs no arguments
            try:
                command.make_context(line, arguments, parent=context)
            except click.UsageError as error:
                raise AssertionError(f"{line}: {error.format_message()}") from error


def test_the_authors_course_has_commands_to_be_checked() -> None:
    assert sum(len(list(commands_in(folder))) for folder in FOLDERS) > 10
