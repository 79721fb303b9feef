"""What `read_folder` takes, what it refuses, and that it refuses everything at once."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adapters.content import folder as folder_module
from adapters.content.check import faults_of_description, faults_of_markdown, faults_of_title, shows_nothing
from adapters.content.findings import Rule
from adapters.content.folder import read_folder
from adapters.content.markdown import MAX_NESTING
from domain.errors import ContentRejected
from domain.walkthrough import MAX_STEPS, Delivery, Finding, Manuscript, StepText, WalkthroughType

WALKTHROUGH = """\
schema: 1
key: connect
title: Connect your client
description: From nothing to a first answer.
type: quickstart
"""
STEP = "# Install\n\nRun the installer.\n"


def write(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, text in files.items():
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def read(folder: Path, files: Mapping[str, str | bytes]) -> Manuscript:
    return read_folder(write(folder, {"walkthrough.yaml": WALKTHROUGH, **files}))


def read_step(folder: Path, text: str | bytes) -> StepText:
    (step,) = read(folder, {"01-install.md": text}).steps
    return step


def findings(folder: Path, files: Mapping[str, str | bytes]) -> list[tuple[str, int, str]]:
    return [(finding.file, finding.line, finding.rule) for finding in rejected(write(folder, files))]


def rejected(folder: Path) -> tuple[Finding, ...]:
    with pytest.raises(ContentRejected) as refusal:
        read_folder(folder)
    return refusal.value.findings


def manuscript_or_findings(folder: Path) -> Manuscript | tuple[Finding, ...]:
    try:
        return read_folder(folder)
    except ContentRejected as refusal:
        return refusal.findings


# --------------------------------------------------------------------------------------- what a folder gives


def test_a_plain_markdown_file_is_a_step_titled_by_its_heading_and_keyed_by_its_name(tmp_path: Path) -> None:
    assert read(tmp_path, {"01-install.md": STEP}) == Manuscript(
        "connect",
        "Connect your client",
        "From nothing to a first answer.",
        WalkthroughType.QUICKSTART,
        (StepText("install", "Install", "# Install\n\nRun the installer."),),
    )


def test_front_matter_and_blocks_are_taken_out_and_the_rest_is_content(tmp_path: Path) -> None:
    text = (
        "---\nkey: setup\ntitle: Set up\nminutes: 5\ndelivery: together\n---\n\nBefore.\n\n"
        ":::assistant-notes\nAsk first.\n:::\nBetween.\n::: workspace-actions  \n    make\n:::\n"
        "::: done-when\n\nIt runs.\n\n\nTwice.\n\n:::\n\nAfter.  \n"
    )
    assert read_step(tmp_path, text) == StepText(
        key="setup",
        title="Set up",
        content="Before.\n\nBetween.\n\nAfter.  ",
        assistant_notes="Ask first.",
        workspace_actions="    make",
        done_when="It runs.\n\n\nTwice.",
        delivery=Delivery.TOGETHER,
        estimated_minutes=5,
    )


@pytest.mark.parametrize(
    "content",
    [
        "```\n::: done-when\n:::\n```",
        "~~~~ text\n::: done-when\n~~~\n:::\n~~~~",
        "- ```\n  ::: done-when\n  :::\n  ```",
        "- item\n\n  ::: tip\n  x\n  :::",
        "> ::: tip\n> :::",
        "text ::: done-when",
        "\\::: done-when",
    ],
)
def test_three_colons_in_code_and_within_other_text_are_content(tmp_path: Path, content: str) -> None:
    step = read_step(tmp_path, f"# Title\n\n{content}\n\n::: assistant-notes\n{content}\n\n:::\n")
    assert (step.content, step.assistant_notes, step.done_when) == (f"# Title\n\n{content}", content, None)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("<!--\n::: done-when\n:::\n-->", 4),
        ("<pre>\n\n::: done-when\n\n:::\n</pre>", 5),
        ("<div>\n::: assistant-notes", 4),
        ("- item\n\n  ::: done-when\n  x\n  :::", 5),
        ("10. item\n\n    ::: workspace-actions", 5),
        ("- > quote\n  ::: done-when", 4),
        ("> ::: done-when\n> :::", 3),
        ("> - a\n>   ::: done-when", 4),
    ],
)
def test_a_block_that_its_place_makes_content_is_refused_and_never_shown_to_the_user(
    tmp_path: Path, content: str, line: int
) -> None:
    files = {"walkthrough.yaml": WALKTHROUGH, "a.md": f"# Title\n\n{content}"}
    assert ("a.md", line, "block-misplaced") in findings(tmp_path, files)


@pytest.mark.parametrize(
    "before",
    [
        "text",
        "- item",
        "- item\n  - item",
        "10. item",
        "> quote",
        "> - item",
        "- > quote",
        "> > quote\nlazy",
        "a\n===",
    ],
)
@pytest.mark.parametrize("indent", ["", " "])
def test_a_block_needs_no_blank_line_before_it(tmp_path: Path, before: str, indent: str) -> None:
    step = read_step(tmp_path, f"# Title\n{before}\n{indent}::: done-when\n{before}\n{indent}:::\nEnd.")
    assert (step.content, step.done_when) == (f"# Title\n{before}\n\nEnd.", before)


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("Set up\n======", "Set up"),
        ("```\n# not this\n```\n\n### But `this` *one* ###", "But this one"),
        ("# [Read](https://example.com) \\* &amp; ![a *logo*](https://example.com/x.png) it", "Read * & a logo it"),
        ("# See [docs]\n\n[docs]: https://example.com", "See docs"),
        ("Over two\nlines\n---", "Over two lines"),
        ("> # Quoted\n\n# Own", "Own"),
        ("::: done-when\n# Not for the user\n:::\n\n# Own", "Own"),
        ("#\n\n# Second", "Second"),
    ],
)
def test_the_title_is_the_plain_text_of_the_first_heading(tmp_path: Path, markdown: str, expected: str) -> None:
    assert read_step(tmp_path, f"{markdown}\n\nText.").title == expected


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("01-connect-your-client.md", "connect-your-client"),
        ("step1.md", "step1"),
        ("01.md", "01"),
        ("07_-.md", "07"),
        ("3. My Step (new).MD", "my-step-new"),
        ("caf\u00e9.md", "caf"),
        ("cafe\u0301.md", "caf"),
        ("a.b_c.md", "a.b_c"),
    ],
)
def test_the_key_comes_from_the_file_name(tmp_path: Path, file: str, expected: str) -> None:
    assert [step.key for step in read(tmp_path, {file: STEP}).steps] == [expected]


def test_steps_come_in_natural_order_of_their_names(tmp_path: Path) -> None:
    ordered = [
        "01-b0.md",
        "1-b1.md",
        "1-c.md",
        "2-a.md",
        "10-a2.md",
        "B9.md",
        "c1.md",
        "step.md",
        "step2.md",
        "step10.md",
    ]
    files = {name: f"# {name}\n\nText." for name in reversed(ordered)}
    assert [step.title for step in read(tmp_path, files).steps] == ordered


def test_names_equal_but_for_leading_zeros_come_in_the_order_of_their_characters(tmp_path: Path) -> None:
    names = ["1-a.md", "01-a.md", "001-a.md"]
    files = {name: f"---\nkey: k{number}\n---\n# {name}" for number, name in enumerate(names)}
    assert [step.title for step in read(tmp_path, files).steps] == ["001-a.md", "01-a.md", "1-a.md"]


def test_other_files_and_subfolders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write(tmp_path / "images", {"inner.md": "no step"})
    others: dict[str, str | bytes] = {
        "README.md": "",
        "readme.MD": "",
        ".hidden.md": "",
        "logo.png": b"\xff",
        "notes.txt": "",
    }
    assert [step.key for step in read(tmp_path, {"a.md": STEP, **others}).steps] == ["a"]


def test_two_rules_across_the_page_with_prose_between_them_are_no_front_matter(tmp_path: Path) -> None:
    text = "---\ntitle: T\n---\n\n---\n\nNote: one.\nText.\n\n---\n\nMore.\n\n+++"
    assert read_step(tmp_path, text).content == text.removeprefix("---\ntitle: T\n---\n\n")


@pytest.mark.parametrize(
    ("heading", "title"),
    [
        ("Use the `<Link>` component", "Use the `<Link>` component"),
        ("Write `[a](b)` and `c`", "Write `[a](b)` and c"),
        ("Run `make` *now*", "Run make now"),
    ],
)
def test_code_in_a_heading_keeps_its_backticks_in_the_title_where_it_reads_as_markup(
    tmp_path: Path, heading: str, title: str
) -> None:
    assert read_step(tmp_path, f"# {heading}\n\nText.").title == title


def test_line_endings_become_lf_and_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    walkthrough = b"\xef\xbb\xbf" + WALKTHROUGH.replace("\n", "\r\n").encode()
    step = b"\xef\xbb\xbf---\r\ntitle: T\r\n---\r\nOne\r\ntwo\rthree\r\n"
    files = {"walkthrough.yaml": walkthrough, "a.md": step}
    assert read_folder(write(tmp_path, files)).steps == (StepText("a", "T", "One\ntwo\nthree"),)


def test_a_block_text_in_yaml_loses_only_its_last_line_break(tmp_path: Path) -> None:
    text = WALKTHROUGH.replace("From nothing to a first answer.", "|\n  One\n  two\n\n  three\n\n")
    assert read(tmp_path, {"walkthrough.yaml": text, "a.md": STEP}).description == "One\ntwo\n\nthree"


def test_only_spaces_and_tabs_make_a_line_blank_as_in_markdown(tmp_path: Path) -> None:
    text = "---\ntitle: T\n---\n \t\n\xa0\n  Text.\n\u3000\n\n"
    assert read_step(tmp_path, text).content == "\xa0\n  Text.\n\u3000"


def test_a_link_within_the_folder_is_read(tmp_path: Path) -> None:
    write(tmp_path, {"shared.txt": STEP})
    (tmp_path / "a.md").symlink_to("shared.txt")
    assert read(tmp_path, {}).steps[0].content == STEP.strip()


# ------------------------------------------------------------------------------------------ what is refused

# Each case is one step file: the rule, the line, and the text.
STEP_CASES: list[tuple[str, int, str | bytes]] = [
    ("file-too-large", 1, "# T\n" + "x" * 64 * 1024),
    ("text-not-utf8", 3, b"# T\n\n\xe9t\xe9"),
    ("text-not-utf8", 3, b"# T\r\rb\xc3"),
    ("text-not-utf8", 1, "# T".encode("utf-16")),
    ("text-nul", 2, "# T\na\x00b"),
    ("front-matter-unclosed", 2, "\n---\ntitle: T\n\nText."),
    ("front-matter-empty", 1, "---\n---\n# T\nText."),
    ("front-matter-empty", 1, "---\n# title: T\n---\n# T\nText."),
    ("front-matter-unknown", 3, "---\ntitle: T\ncolour: red\n---\nText."),
    ("front-matter-unknown", 2, "---\ncolour: red\n---\n# T\nText."),
    ("front-matter-unknown", 5, "---\ntitle: T\n---\n\n---\nminutes: 5\ntags:\n  - a\n---\nText."),
    ("front-matter-unknown", 2, "\n+++\ntitle = 'T'\n+++\n# T\nText."),
    ("front-matter-unknown", 4, "---\ntitle: T\n---\n+++\nminutes = 5\n+++\nText."),
    ("yaml-not-a-mapping", 3, "---\n\n- a\n---\n# T\nText."),
    ("yaml-not-a-mapping", 3, "---\n\nIntroduction\n---\n# T\nText."),
    ("yaml-invalid", 3, "---\ntitle: T\nkey: a: b\n---\nText."),
    ("yaml-invalid", 3, "---\ntitle: T\n\tkey: a\n---\nText."),
    ("yaml-invalid", 2, '---\ntitle: "\u2028\x85\x07"\n---\nText.'),
    ("yaml-invalid", 4, '---\ntitle: "\u2028\x85"\nminutes: 1\nkey: @\n---\nText.'),
    ("yaml-invalid", 2, '---\ntitle: "\\UFFFFFFFF"\n---\nText.'),
    ("yaml-invalid", 2, '---\ntitle: "\\ud83d\\ude00"\n---\nText.'),
    ("yaml-feature", 2, "---\ntitle: !!str T\n---\nText."),
    ("yaml-feature", 2, "---\ntitle: " + "[" * 5001 + "]" * 5001 + "\n---\nText."),
    ("yaml-feature", 3, "---\ntitle: T\n? [a]\n: b\n---\nText."),
    ("yaml-feature", 3, "---\ntitle: T\n? " + "[" * 5000 + "\n---\nText."),
    ("yaml-feature", 2, "---\ntitle: [a]\n---\nText."),
    ("front-matter-unknown", 3, "---\ntitle: T\ntags: [a, {b: c}]\n---\nText."),
    ("yaml-unquoted", 2, "---\ntitle: no\n---\nText."),
    ("yaml-unquoted", 3, "---\ntitle: T\nkey: 1.0\n---\nText."),
    ("yaml-unquoted", 2, "---\ntitle: 2024-01-01\n---\nText."),
    ("yaml-unquoted", 2, "---\ntitle: 12\n---\nText."),
    ("field-twice", 3, '---\ntitle: T\n"title": U\n---\nText.'),
    ("field-empty", 2, "---\ntitle:\n---\nText."),
    ("field-invalid", 2, '---\ntitle: ""\n---\nText.'),
    ("field-invalid", 2, "---\nkey: Not a key\n---\n# T\nText."),
    ("field-invalid", 2, "---\nminutes: 0\n---\n# T\nText."),
    ("field-invalid", 2, "---\nminutes: 1:30\n---\n# T\nText."),
    ("field-invalid", 2, "---\nminutes: 010\n---\n# T\nText."),
    ("field-invalid", 2, "---\nminutes: '5'\n---\n# T\nText."),
    ("field-invalid", 2, "---\nminutes: " + "9" * 5000 + "\n---\n# T\nText."),
    ("field-invalid", 2, "---\ndelivery: slowly\n---\n# T\nText."),
    ("title-missing", 1, "Text without a heading."),
    ("title-from-heading", 2, "\n# " + "x" * 201 + "\n\nText."),
    ("title-from-heading", 1, "# " + "*a _b `c" * 1_000 + "\n\nText."),
    ("step-empty", 1, ""),
    ("step-empty", 1, " \n\t\n"),
    ("step-empty", 1, "---\ntitle: T\n---\n\n::: done-when\nx\n:::"),
    *(
        ("step-empty", 1, f"---\ntitle: T\n---\n{nothing}")
        for nothing in ("&nbsp;", "***", "#", "```\n\n```", ">", "\u3000", "- \n- ", "&#32;\n\n>")
    ),
    ("step-too-large", 1, "# T\n\n" + "x" * 20_000),
    ("block-unknown", 2, "# T\n::: assistant-note\nx\n:::"),
    ("block-unknown", 2, "# T\n::::tip Title\nx\n::::"),
    ("block-twice", 5, "# T\n::: done-when\nx\n:::\n::: done-when\ny\n:::"),
    ("block-empty", 2, "# T\n::: done-when\n\n:::"),
    ("block-nested", 4, "# T\n::: done-when\nx\n::: assistant-notes\ny\n:::"),
    ("block-unclosed", 2, "# T\n::: done-when\nx\n"),
    ("block-not-open", 2, "# T\n:::\nx"),
    ("fence-unclosed", 2, "# T\n```\nx\n``"),
    ("fence-unclosed", 2, "# T\n~~~\nx\n```\n    ~~~"),
    ("fence-unclosed", 3, "# T\n\n````"),
    ("fence-unclosed", 2, "# T\n````\nx\n```"),
    ("fence-unclosed", 2, "# T\n```bash\nls\n```{{exec}}\n"),
    ("fence-unclosed", 4, "# T\n::: done-when\nx\n```\n:::\ny"),
    ("nesting-too-deep", 2, "# T\n" + ">" * 5000 + "x"),
    ("nesting-too-deep", 2, "# T\n" + "- " * 5000 + "x"),
    ("nesting-too-deep", 2, "# T\n" + "[" * 60 + "x" + "](javascript:x)" * 60),
    ("fence-unclosed", 3, "# T\n- a\n  ```\n  b\n\nAfter."),
    ("fence-unclosed", 2, "# T\n> ```\n> b"),
    ("block-misplaced", 3, "# T\n- a\n  ::: done-when\n  b"),
    ("block-misplaced", 4, "# T\npara\n\n    ::: done-when\n    x"),
    ("block-misplaced", 2, "# T\n:: assistant-notes\nx"),
    ("fence-info", 2, "# T\n```bash and then do this\nls\n```"),
    ("link-disguised", 2, "# T\n[a](https://github.com@evil.example/)"),
    ("link-unused", 3, "# T\n\n[note]: https://a.example (do this)"),
    ("html-raw", 2, "---\ntitle: Use <Link>\n---\nText."),
    ("link-dead", 2, "---\ntitle: See [it](https://a.example)\n---\nText."),
    ("html-raw", 1, "# Use \\<Link>\nText."),
    ("html-raw", 5, "---\ntitle: T\n---\nRun\n`<a>` <b>it</b>."),
    ("html-raw", 6, "# T\n::: done-when\nx\n:::\n\n<b>it</b>"),
    ("html-raw", 4, "# T\n\n::: done-when\nx<br>\n:::\n\nAfter."),
    ("link-scheme", 4, "# T\n\n::: done-when\n[a](javascript:x)\n:::"),
    ("link-dead", 3, "# T\n\n[a](other.md)"),
    ("link-fragment", 3, "# T\n\n[a](#u)"),
    ("character-control", 2, "# T\na\x07"),
    ("character-bidirectional", 2, "# T\na\u202eb"),
    ("character-invisible", 1, "# T\u200b\na"),
    ("character-invisible", 1, "# T&#8203;\na"),
    ("character-invisible", 3, "---\nkey: a\ntitle: T\u2060T\n---\na"),
    ("character-private", 2, "# T\n`\ue0b0`"),
    ("text-escaped-twice", 2, "# T\nOne.\\nTwo"),
    ("yaml-comment", 2, "---\ntitle: Fix issue #12\n---\nText."),
    ("yaml-unquoted", 2, "---\ntitle: ~\n---\nText."),
    ("yaml-unquoted", 2, "---\ntitle: 1:30\n---\nText."),
    ("yaml-unquoted", 2, "---\ntitle: 0o7\n---\nText."),
    ("yaml-unquoted", 2, "---\ntitle: 1e3\n---\nText."),
    ("yaml-unquoted", 2, "---\ntitle: y\n---\nText."),
]


@pytest.mark.parametrize(("rule", "line", "text"), STEP_CASES)
def test_a_faulty_step_gives_one_finding_at_its_line(
    tmp_path: Path,
    rule: str,
    line: int,
    text: str | bytes,
) -> None:
    files = {"walkthrough.yaml": WALKTHROUGH, "01-a.md": text}
    assert findings(tmp_path, files) == [("01-a.md", line, rule)]


WALKTHROUGH_CASES: list[tuple[str, int, str | bytes]] = [
    ("file-too-large", 1, WALKTHROUGH + "#" * 64 * 1024),
    ("text-not-utf8", 6, WALKTHROUGH.encode() + b"\xff"),
    ("text-nul", 6, WALKTHROUGH + "\x00"),
    ("field-missing", 1, WALKTHROUGH.replace("type: quickstart\n", "")),
    ("field-unknown", 6, WALKTHROUGH + "version: 2\n"),
    ("field-unknown", 6, WALKTHROUGH + "<<: 2\n"),
    ("field-twice", 6, WALKTHROUGH + "key: other\n"),
    ("field-invalid", 5, WALKTHROUGH.replace("quickstart", "novel")),
    ("field-invalid", 4, WALKTHROUGH.replace("From nothing to a first answer.", "x" * 1_001)),
    ("field-invalid", 1, WALKTHROUGH.replace("schema: 1", "schema: one")),
    ("schema-unsupported", 1, WALKTHROUGH.replace("schema: 1", "schema: 2")),
    ("yaml-unquoted", 2, WALKTHROUGH.replace("key: connect", "key: 1.0")),
    ("yaml-unquoted", 3, WALKTHROUGH.replace("Connect your client", "no")),
    ("yaml-unquoted", 3, WALKTHROUGH.replace("Connect your client", "=")),
    ("yaml-comment", 4, WALKTHROUGH.replace("From nothing to a first answer.", "From # nothing")),
    ("text-escaped-twice", 4, WALKTHROUGH.replace("From nothing to", "From\\n\\nnothing to")),
    ("character-invisible", 3, WALKTHROUGH.replace("Connect", "Con\u200bnect")),
    ("character-bidirectional", 4, WALKTHROUGH.replace("nothing", "\u2066nothing")),
    ("yaml-feature", 3, WALKTHROUGH.replace("Connect your client", "&a Text")),
    ("yaml-feature", 4, WALKTHROUGH.replace("From nothing to a first answer.", "[a, {b: c}]")),
    ("yaml-invalid", 6, WALKTHROUGH + "---\nkey: other\n"),
    ("yaml-invalid", 6, WALKTHROUGH + "%YAML " + "9" * 5000 + ".1\n"),
    ("yaml-not-a-mapping", 1, "[" * 20_000 + "]" * 20_000),
    ("yaml-not-a-mapping", 2, "# my walkthrough\nconnect\n"),
]


@pytest.mark.parametrize(("rule", "line", "text"), WALKTHROUGH_CASES)
def test_a_faulty_walkthrough_file_gives_one_finding_at_its_line(
    tmp_path: Path, rule: str, line: int, text: str | bytes
) -> None:
    assert findings(tmp_path, {"walkthrough.yaml": text, "01-a.md": STEP}) == [("walkthrough.yaml", line, rule)]


FOLDER_CASES = {
    "folder-unreadable": ".",
    "walkthrough-missing": "walkthrough.yaml",
    "walkthrough-invalid": "walkthrough.yaml",
    "step-count": ".",
    "file-outside": "01-a.md",
    "file-unreadable": "01-a.md",
    "key-from-file-name": "\u0448\u0430\u0433.md",
    "key-twice": "02-a.md",
}


def test_every_rule_has_a_case_here() -> None:
    cases = {rule for rule, _, _ in STEP_CASES + WALKTHROUGH_CASES} | set(FOLDER_CASES)
    assert cases == {rule.value for rule in Rule}


@pytest.mark.parametrize("name", ["missing", "file.txt", "file.txt/below", "loop", "nul\x00"])
def test_what_is_no_folder_is_one_finding(tmp_path: Path, name: str) -> None:
    write(tmp_path, {"file.txt": ""})
    (tmp_path / "loop").symlink_to("loop")
    (finding,) = rejected(tmp_path / name)
    assert (finding.file, finding.line, finding.rule) == (".", 1, "folder-unreadable")
    assert str(tmp_path) not in finding.remedy


def test_an_empty_folder_lacks_steps_and_walkthrough_file(tmp_path: Path) -> None:
    assert findings(tmp_path, {}) == [(".", 1, "step-count"), ("walkthrough.yaml", 1, "walkthrough-missing")]


def test_an_empty_walkthrough_file_lacks_each_field(tmp_path: Path) -> None:
    expected = [("walkthrough.yaml", 1, "field-missing")] * 5
    assert findings(tmp_path, {"walkthrough.yaml": "", "a.md": STEP}) == expected


def test_as_many_steps_as_the_domain_allows_are_read_and_one_more_is_not(tmp_path: Path) -> None:
    steps = {f"step{number}.md": STEP for number in range(MAX_STEPS)}
    assert len(read(tmp_path, steps).steps) == MAX_STEPS
    assert findings(tmp_path, {"one-more.md": ""}) == [(".", 1, "step-count")]


def test_a_rule_that_only_the_whole_manuscript_breaks_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "MAX_STEPS", MAX_STEPS + 1)
    steps = {f"step{number}.md": STEP for number in range(MAX_STEPS + 1)}
    expected = [("walkthrough.yaml", 1, "walkthrough-invalid")]
    assert findings(tmp_path, {"walkthrough.yaml": WALKTHROUGH, **steps}) == expected


@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_out_of_the_folder_is_not_read(tmp_path: Path, absolute: bool) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write(tmp_path, {"secret.md": STEP})
    (folder / "01-a.md").symlink_to(tmp_path / "secret.md" if absolute else "../secret.md")
    assert findings(folder, {"walkthrough.yaml": WALKTHROUGH}) == [("01-a.md", 1, "file-outside")]


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling", "loop"])
def test_what_cannot_be_read_as_a_file_is_a_finding(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "01-a.md"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "dangling":
            path.symlink_to("gone.txt")
        case "loop":
            path.symlink_to("01-a.md")
    assert findings(tmp_path, {"walkthrough.yaml": WALKTHROUGH}) == [("01-a.md", 1, "file-unreadable")]


def test_a_file_name_that_gives_no_key_asks_for_one(tmp_path: Path) -> None:
    (finding,) = rejected(write(tmp_path, {"walkthrough.yaml": WALKTHROUGH, "\u0448\u0430\u0433.md": STEP}))
    assert (finding.file, finding.rule) == ("\u0448\u0430\u0433.md", "key-from-file-name")
    assert "set `key:` in the front matter" in finding.remedy


def test_two_files_with_one_key_are_told_apart_by_front_matter(tmp_path: Path) -> None:
    files = {
        "walkthrough.yaml": WALKTHROUGH,
        "01-a.md": STEP,
        "02-a.md": STEP,
        "03-b.md": f"---\nkey: a\n---\n{STEP}",
    }
    assert findings(tmp_path, files) == [("02-a.md", 1, "key-twice"), ("03-b.md", 2, "key-twice")]
    (first, _) = rejected(tmp_path)
    assert first.remedy == "set another `key:` in the front matter: 01-a.md has the key 'a' already"


def test_the_finding_for_a_false_friend_shows_what_was_written_in_quotes(tmp_path: Path) -> None:
    (finding,) = rejected(write(tmp_path, {"walkthrough.yaml": WALKTHROUGH, "a.md": "---\ntitle: no\n---\nText."}))
    assert 'write `title: "no"`' in finding.remedy


def test_everything_wrong_in_every_file_comes_at_once_in_order(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "walkthrough.yaml": "schema: 2\nkey: A\ntitle: no\ndescription:\nsort: x\n",
        "02-b.md": b"\xff",
        "10-c.md": "---\nkey: B!\nminutes: 0\ncolour: x\n---\n:::\n::: done-when\n:::\n```\n" + "x" * 20_000,
        "01-a.md": "No heading.",
    }
    assert findings(tmp_path, files) == [
        ("01-a.md", 1, "title-missing"),
        ("02-b.md", 1, "text-not-utf8"),
        ("10-c.md", 1, "step-too-large"),
        ("10-c.md", 1, "title-missing"),
        ("10-c.md", 2, "field-invalid"),
        ("10-c.md", 3, "field-invalid"),
        ("10-c.md", 4, "front-matter-unknown"),
        ("10-c.md", 6, "block-not-open"),
        ("10-c.md", 7, "block-empty"),
        ("10-c.md", 9, "fence-unclosed"),
        ("walkthrough.yaml", 1, "field-missing"),
        ("walkthrough.yaml", 1, "schema-unsupported"),
        ("walkthrough.yaml", 2, "field-invalid"),
        ("walkthrough.yaml", 3, "yaml-unquoted"),
        ("walkthrough.yaml", 4, "field-empty"),
        ("walkthrough.yaml", 5, "field-unknown"),
    ]


def test_a_finding_is_one_printable_line_whatever_the_file_is_called(tmp_path: Path) -> None:
    write(tmp_path, {"walkthrough.yaml": WALKTHROUGH, "a\nb.md": "x", os.fsdecode(b"\xff.md"): "x"})
    assert [finding.file for finding in rejected(tmp_path)] == [r"\udcff.md", r"\udcff.md", r"a\nb.md"]
    assert all(str(finding).isprintable() for finding in rejected(tmp_path))


def test_a_comment_behind_a_field_that_cannot_hold_it_is_only_a_comment(tmp_path: Path) -> None:
    text = (
        "# mine\nschema: 1  # of the format\nkey: connect # for ever\ntitle: 'Fix issue #12'  # in quotes\n"
        "description: |  # below\n  Fix #12\ntype: quickstart # too\n"
    )
    step = "---\ntitle: C# and F#\nminutes: 5 # or so\ndelivery: verbatim #\n---\nText."
    manuscript = read(tmp_path, {"walkthrough.yaml": text, "a.md": step})
    told = (manuscript.title, manuscript.description, manuscript.steps[0].title)
    assert told == ("Fix issue #12", "Fix #12", "C# and F#")


def test_a_step_that_is_too_large_says_by_how_much(tmp_path: Path) -> None:
    (finding,) = rejected(write(tmp_path, {"walkthrough.yaml": WALKTHROUGH, "a.md": "# T\n\n" + "x" * 20_000}))
    assert finding.remedy == (
        "step 'a' would take up to 49,018 bytes when delivered, 9,018 more than the 40,000 that are allowed: "
        "split it into two steps"
    )


def test_a_file_of_ten_thousand_faults_gives_ten_findings_and_the_number_of_the_others(tmp_path: Path) -> None:
    text = "# T\n" + "a <b>\n" * 10_000
    folder = write(tmp_path, {"walkthrough.yaml": WALKTHROUGH, "a.md": text, "b.md": "# T\n\n<b>\n"})
    with pytest.raises(ContentRejected) as refusal:
        read_folder(folder)
    found = [(each.file, each.line) for each in refusal.value.findings if each.rule == "html-raw"]
    assert found == [("a.md", line) for line in range(2, 12)] + [("b.md", 3)]
    last = [each for each in refusal.value.findings if each.file == "a.md" and each.rule == "html-raw"][-1]
    assert last.remedy.endswith("(and 9,990 more like this in the file)")
    assert str(refusal.value) == "10,002 problems found"  # the step is too large besides


def test_a_rule_broken_in_every_file_is_listed_in_each_and_not_without_end(tmp_path: Path) -> None:
    steps = {f"s{number}.md": "# T\n" + "<b>\n\n" * 8 for number in range(MAX_STEPS)}
    with pytest.raises(ContentRejected) as refusal:
        read_folder(write(tmp_path, {"walkthrough.yaml": WALKTHROUGH, **steps}))
    assert {each.file for each in refusal.value.findings} == set(steps)
    assert len(refusal.value.findings) < 2 * MAX_STEPS
    assert str(refusal.value) == "4,000 problems found"


def test_quotes_nested_up_to_the_limit_are_read(tmp_path: Path) -> None:
    content = "# T\n\n" + ">" * (MAX_NESTING - 2) + " deep"
    expected = StepText("install", "T", content, done_when="x")
    assert read_step(tmp_path, f"{content}\n::: done-when\nx\n:::") == expected


# ----------------------------------------------------------------------------------------------- properties

PIECES = [
    "---",
    "```",
    "~~~",
    ":::",
    "::: done-when",
    "::: x",
    "<!--",
    "-->",
    "# T",
    "> ",
    "- ",
    "    ",
    "\t",
    "title: no",
]
PIECES += [
    "key: a",
    "&a",
    "*a",
    "[",
    "{",
    '"',
    "'",
    "|",
    "? ",
    "\\U",
    "%YAML 1.1",
    "<div>",
    "\r",
    "\n",
    "\n",
    "\n",
    "\ufeff",
]
PIECES += [
    "minutes: ",
    "9",
    "schema: 1\n",
    "\u2028",
    "\x85",
    "[a]: b",
    "![",
    "](",
    "===",
    "\x00",
    "!!python/name:os",
    "<<: *a",
]
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=30).map("".join)
encoded = texts.map(lambda text: text.encode("utf-8", "surrogatepass"))
front_matter = encoded.map(lambda text: b"---\n" + text + b"\n---\n# T\n\nText.\n")
file_bytes = st.binary(max_size=80) | encoded | front_matter


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    walkthrough=st.just(WALKTHROUGH.encode())
    | file_bytes
    | texts.map(lambda text: (WALKTHROUGH + text).encode("utf-8", "replace")),
    steps=st.lists(file_bytes, max_size=3),
)
@example(walkthrough=b'title: "\\UFFFFFFFF"', steps=[b"---\n? " + b"[" * 9_000])
def test_any_bytes_give_a_manuscript_or_findings_that_point_into_the_files(
    walkthrough: bytes, steps: list[bytes]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        files = {"walkthrough.yaml": walkthrough} | {f"step{n}.md": data for n, data in enumerate(steps)}
        folder = write(Path(name), files)
        outcome = manuscript_or_findings(folder)
    if isinstance(outcome, Manuscript):
        assert len(outcome.steps) == len(steps)
        assert len(outcome.content_hash()) == 64
        return
    assert outcome
    for finding in outcome:
        data = b"" if finding.file == "." else files[finding.file]
        line_ends = len(re.findall(rb"\r\n|\r|\n", data))
        assert 1 <= finding.line <= line_ends + 2
        assert finding.rule in set(Rule)
        assert finding.remedy


# Neither what would close or open something else than the writer means to, nor what is not kept as it stands.
plain = st.text(
    st.characters(categories=["L", "N", "P", "S", "Zs"], exclude_characters="`~<:[\\&\u115f\u1160\u3164\uffa0"),
    min_size=1,
    max_size=30,
).filter(lambda text: text.strip() != "" and text.strip(" \t") != "---")
content_piece = st.one_of(
    plain,
    st.lists(plain, min_size=1, max_size=3).map("\n".join),
    plain.map(lambda text: f"```text\n::: done-when\n{text}\n\n:::\n```"),
    plain.map(lambda text: f"~~~~\n::: assistant-notes\n~~~\n{text}\n:::\n  ~~~~"),
    plain.map(lambda text: f"text\n\n    ::: done-when {text}\n\n\n    :::"),
    plain.map(lambda text: f"1. item\n\n   ::: {text}\n\n   ```\n   :::\n   ```"),
    plain.map(lambda text: f"> {text}\n> ::: tip"),
)
pieces = st.lists(content_piece, min_size=1, max_size=3)
# What the check refuses is tried in test_check.py.
texts_of_a_step = pieces.map(lambda several: "\n\n".join(several).strip("\n")).filter(
    lambda text: not faults_of_markdown(text) and not shows_nothing(text)
)
titles = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=200).filter(
    lambda text: text.isprintable() and text.strip() != "" and not faults_of_title(text)
)
keys = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)
description_characters = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
descriptions = st.text(description_characters, min_size=1, max_size=300)
step_texts = st.builds(
    StepText,
    key=keys,
    title=titles,
    content=texts_of_a_step,
    assistant_notes=st.none() | texts_of_a_step,
    workspace_actions=st.none() | texts_of_a_step,
    done_when=st.none() | texts_of_a_step,
    delivery=st.sampled_from(Delivery),
    estimated_minutes=st.none() | st.integers(1, 24 * 60),
)
manuscripts = st.builds(
    Manuscript,
    key=keys,
    title=titles,
    description=descriptions.filter(lambda text: text.strip() != "" and not faults_of_description(text)),
    type=st.sampled_from(WalkthroughType),
    steps=st.lists(step_texts, min_size=1, max_size=4, unique_by=lambda step: step.key).map(tuple),
)


def quoted(text: str) -> str:
    return str(yaml.safe_dump(text, default_style='"', width=10**6)).rstrip("\n")


def step_file(step: StepText, blocks_first: bool) -> str:
    front = [f"key: {quoted(step.key)}", f"title: {quoted(step.title)}", f"delivery: {step.delivery.value}"]
    if step.estimated_minutes is not None:
        front.append(f"minutes: {step.estimated_minutes}")
    named = {
        "assistant-notes": step.assistant_notes,
        "workspace-actions": step.workspace_actions,
        "done-when": step.done_when,
    }
    blocks = "\n".join(f"::: {name}\n{text}\n:::" for name, text in named.items() if text is not None)
    parts = [blocks, step.content] if blocks_first else [step.content, blocks]
    return "\n".join(["---", *front, "---", *parts, ""])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(manuscript=manuscripts, blocks_first=st.booleans())
def test_a_manuscript_written_to_a_folder_is_read_back_identical(
    manuscript: Manuscript,
    blocks_first: bool,
) -> None:
    own = [f"{name}: {quoted(getattr(manuscript, name))}" for name in ("key", "title", "description")]
    files = {"walkthrough.yaml": "\n".join(["schema: 1", *own, f"type: {manuscript.type.value}"])}
    files |= {f"{number}.md": step_file(step, blocks_first) for number, step in enumerate(manuscript.steps)}
    with tempfile.TemporaryDirectory() as name:
        assert read_folder(write(Path(name), files)) == manuscript


# -------------------------------------------------------------------------------------- other people's files


def test_the_grafana_scenario_reads_as_its_ten_steps_in_order(tmp_path: Path) -> None:
    shared = os.environ.get("CAIRN_TEST_CONTENT")
    if not shared:
        pytest.skip("CAIRN_TEST_CONTENT does not name a folder with killercoda/grafana-fundamentals")
    originals = {
        # Its platform's marks are no Markdown: `{{exec}}` behind a fence leaves the fence open, and `{{TRAFFIC…}}` is
        # no address.
        path.name: re.sub(
            r"\{\{(exec|copy)\}\}|(?<=\()\{\{TRAFFIC",
            lambda mark: "" if mark[1] else "http://localhost/{{",
            path.read_text(),
        )
        for path in Path(shared, "killercoda/grafana-fundamentals").glob("step*.md")
    }
    steps = read(tmp_path, originals).steps
    assert [step.key for step in steps] == [f"step{number}" for number in range(1, 11)]
    assert [step.content for step in steps] == [originals[f"{step.key}.md"].strip("\n") for step in steps]
    assert [f"# {step.title}" for step in steps] == [step.content.split("\n")[0] for step in steps]
    assert (steps[0].title, steps[9].title) == ("Set up the sample application", "Add an alert rule to Grafana")
