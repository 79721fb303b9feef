"""Other people's documents as walkthrough folders: Killercoda's scenarios, CodeTour's tours, Google's codelabs.

Each converter is a pure function from the files of a source to the files of a folder, by name. It gives one of two:

- the faithful folder has the source's texts as they stand. What another format means by them is no Markdown, and
  some of it reaches nobody here: that is what the content check is to find;
- the mended folder is what its author would make of it, having read what was found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import yaml
from markdown_it import MarkdownIt

Files = Mapping[str, str]

# Where the codelab's pictures are: what it names `img/…` stands beside its text in this public repository.
_CODELAB = "https://raw.githubusercontent.com/firebase/emulators-codelab/HEAD/steps/"
_FILE_NAME = re.compile(r"[\w-]+\.(?:png|gif)")


@dataclass(frozen=True)
class Step:
    """A step to be written. Without a title it is called by its first heading."""

    name: str
    content: str
    title: str | None = None
    minutes: int | None = None
    actions: str | None = None


def _folder(key: str, title: str, description: str | None, steps: Iterable[Step]) -> Files:
    about = {"schema": 1, "key": key, "title": title, "description": description, "type": "course"}
    files = {f"{number:02}-{step.name}.md": _file(step) for number, step in enumerate(steps, start=1)}
    return {"walkthrough.yaml": _yaml(about), **files}


def _file(step: Step) -> str:
    front = _yaml({"title": step.title, "minutes": step.minutes})
    block = f"\n::: workspace-actions\n{step.actions}\n:::\n" if step.actions else ""
    return (f"---\n{front}---\n" if front else "") + step.content.rstrip("\n") + "\n" + block


def _yaml(fields: Mapping[str, Any]) -> str:
    given = {name: value for name, value in fields.items() if value is not None}
    return yaml.safe_dump(given, sort_keys=False, allow_unicode=True, width=10_000) if given else ""


def _named(text: str) -> str:
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-")


# ---------------------------------------------------------------------------------------------- Killercoda

_BUTTON = r"\{\{(?:exec|copy)\}\}"  # behind code; one runs it in the terminal beside the text, one copies it
_RUN = re.compile(r"```[a-z]*\n(.*?)\n *```\{\{exec\}\}", re.DOTALL)


def killercoda(source: Files, key: str, *, is_mended: bool) -> Files:
    """A scenario: `index.json`, and a page of Markdown for each step, before the first and after the last."""
    scenario = json.loads(source["index.json"])
    details = scenario["details"]
    pages = [page["text"] for page in (details["intro"], *details["steps"], details["finish"])]
    steps = [Step(page.removesuffix(".md"), source[page]) for page in pages]
    if is_mended:
        steps = [_without_buttons(step) for step in steps]
    return _folder(key, scenario["title"], scenario["description"], steps)


def _without_buttons(step: Step) -> Step:
    commands = [command.strip() for command in _RUN.findall(step.content)]
    actions = "\n".join(["Run each of these when the user comes to it:", "", "```bash", *commands, "```"])
    content = re.sub(_BUTTON, "", step.content)
    # The terminal's ports, as its own pages reach them; at the reader's they are those of the machine.
    content = re.sub(r"\{\{TRAFFIC_HOST1_(\d+)\}\}", r"http://localhost:\1", content)
    return replace(step, content=content, actions=actions if commands else None)


# ------------------------------------------------------------------------------------------------ CodeTour

_COMMAND = re.compile("^>> (.+)$", re.MULTILINE)  # a line to be clicked, which runs it in a terminal


def codetour(source: Files, key: str, *, is_mended: bool) -> Files:
    """A tour: one file of JSON. Each step is about a place in the project, which the editor opens.

    The places are put into words, as there is no other way to keep them. What a step does to the editor's
    windows is left out.
    """
    (text,) = source.values()
    tour = json.loads(text)
    description = tour.get("description")
    steps = [_stop(given) for given in tour["steps"]]
    if is_mended:
        steps = [_told(step, given) for step, given in zip(steps, tour["steps"], strict=True)]
        description = description or f"A tour of the code: {tour['title']}."
    return _folder(key, tour["title"], description, steps)


def _stop(given: Mapping[str, Any]) -> Step:
    actions = None
    if "line" in given:
        actions = f"Open `{given['file']}` at line {given['line']}."
    elif "pattern" in given:
        actions = f"Open `{given['file']}` at the first line that matches `` {given['pattern']} ``."
    return Step(_named(given.get("title") or _place(given)), given["description"], given.get("title"), actions=actions)


def _place(given: Mapping[str, Any]) -> str:
    """What the editor shows for a step without a title, more or less."""
    at = f"line {given['line']}" if "line" in given else given["pattern"]
    return f"{PurePosixPath(given['file']).name}, {at}"


def _told(step: Step, given: Mapping[str, Any]) -> Step:
    content, commands = _COMMAND.subn(r"```sh\n\1\n```", step.content)
    offer = "Offer to run the step's commands, each for itself." if commands else None
    actions = "\n\n".join(filter(None, (step.actions, offer)))
    return replace(step, content=content, title=step.title or _place(given), actions=actions or None)


# ------------------------------------------------------------------------------------------------- codelab

_IMAGE = re.compile(r'<img src="([^"]+)" alt="([^"]+)"[^>]*/>')
_BOX = re.compile(r"^> aside (positive|negative)\n(?:> *\n)?((?:.+\n)+)", re.MULTILINE)


def codelab(source: Files, key: str, *, is_mended: bool) -> Files:
    """A codelab: one file of Markdown, whose headings of the second level are the steps."""
    (text,) = source.values()
    _, front, body = text.split("---\n", 2)
    lines = body.split("\n")
    headings = [
        (token.tag, token.map[0]) for token in MarkdownIt().parse(body) if token.type == "heading_open" and token.map
    ]
    (title,) = [lines[line].removeprefix("# ") for tag, line in headings if tag == "h1"]
    starts = [line for tag, line in headings if tag == "h2"]
    steps = [_chapter(lines[start:end]) for start, end in pairwise([*starts, len(lines)])]
    if is_mended:
        steps = [replace(step, content=_with_pictures(_with_boxes(step.content))) for step in steps]
    return _folder(key, title, yaml.safe_load(front)["summary"], steps)


def _chapter(lines: list[str]) -> Step:
    heading, *rest = lines
    minutes = None
    if rest[0].startswith("Duration: "):
        whole, seconds = rest.pop(0).removeprefix("Duration: ").split(":")
        minutes = int(whole) + (int(seconds) > 0)
    return Step(_named(heading), "\n".join([heading, *rest]), minutes=minutes)


def _with_pictures(markdown: str) -> str:
    # Where nobody wrote what a picture shows, its file name stands in the place of that.
    return _IMAGE.sub(
        lambda found: f"![{'Screenshot' if _FILE_NAME.fullmatch(found[2]) else found[2]}]({_CODELAB}{found[1]})",
        markdown,
    )


def _with_boxes(markdown: str) -> str:
    """A box is a quote whose first line names its colour; some have no `>` before their other lines."""

    def quoted(found: re.Match[str]) -> str:
        label = "Good to know" if found[1] == "positive" else "Careful"
        said = [f"> {line.removeprefix('>').removeprefix(' ')}".rstrip() for line in found[2].splitlines()]
        return "\n".join([f"> **{label}**", ">", *said, ""])

    return _BOX.sub(quoted, markdown)
