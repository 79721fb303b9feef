"""The check on a walkthrough's texts: the same for a folder, at push and at publish. It refuses and never rewrites.

A text is refused for what would not reach people as its author meant it, or would reach them as something else: raw
HTML, links that are dangerous or lead nowhere, characters that nobody sees, text that was escaped once too often, a
`:::` line that is no block where it stands. What an assistant shows is anybody's guess; what a page shows is
`adapters.content.pages`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from urllib.parse import unquote

from markdown_it.token import Token
from markdown_it.utils import EnvType

from adapters.content.characters import ENTITY, hidden_by_entities, hidden_characters
from adapters.content.findings import Fault, Findings, Rule, few
from adapters.content.markdown import (
    BLOCKS,
    MAX_HEADING_CHARS,
    MAX_NESTING,
    Markdown,
    first_line,
    heading_slugs,
    is_closed,
    plain_text,
    span,
)
from domain.walkthrough import MAX_STEPS, Manuscript, StepText

_MARKDOWN = Markdown()

# Square brackets within each other. Deeper ones the parser takes for text, where another may see a link; and they are
# what makes parsing slow: with them bounded, the slowest text found takes 15 µs a character.
_MAX_BRACKETS = 20
# What a page links to, and the editors in which walkthroughs are taken: a link that installs an extension there asks
# first. Anything else is opened by some program of the reader's machine, if by any.
_SCHEMES = ("https", "http", "mailto", "vscode", "vscode-insiders", "cursor")
_DANGEROUS = ("javascript", "data", "vbscript", "file")
_SHOWN_CHARS = 60

_OPENER = re.compile(rf"^[ \t]*:{{3,}}[ \t]*({'|'.join(BLOCKS)})[ \t]*$", re.MULTILINE)


def check_manuscript(manuscript: Manuscript) -> None:
    """Refuses a walkthrough with a text that must not be delivered.

    Findings name the field of the walkthrough, or the step's key and the text (`install/done_when`), and the line in
    that. To check the same texts again costs next to nothing, so that whoever stores them does not rely on whoever
    read them.

    Raises:
        ContentRejected: with everything that is wrong.
    """
    findings = Findings()
    for fault in faults_of_title(manuscript.title):
        findings.add("title", fault)
    for fault in faults_of_description(manuscript.description):
        findings.add("description", fault)
    for step in manuscript.steps:
        for fault in faults_of_title(step.title):
            findings.add(f"{step.key}/title", fault)
        for name, text in markdown_of(step).items():
            for fault in faults_of_markdown(text):
                findings.add(f"{step.key}/{name}", fault)
    if findings:
        raise findings.rejection()


def markdown_of(step: StepText) -> Mapping[str, str]:
    """The texts of a step that are Markdown, by the names of their fields."""
    texts = {name: getattr(step, name) for name in ("content", "assistant_notes", "workspace_actions", "done_when")}
    return {name: text for name, text in texts.items() if text is not None}


def faults_of_title(title: str) -> Sequence[Fault]:
    """What is wrong with a line of plain text. It may speak of `\\n` and the like: its heading had them in code."""
    return few(hidden_characters(title))


def faults_of_description(description: str) -> Sequence[Fault]:
    """What is wrong with a plain text of several lines."""
    code = [found.span() for found in re.finditer("`[^`\n]*`", description)]
    return few([*hidden_characters(description), *_escaped_twice(description, code, 1)])


# A push checks what it reads, and again what it stores: the second time the answers are still here.
@lru_cache(maxsize=4 * MAX_STEPS)
def faults_of_markdown(text: str) -> Sequence[Fault]:
    """What is wrong with a text in Markdown, a few of each rule (`Fault.more` says how many were left out)."""
    return few(_faults_of_markdown(text))


def _faults_of_markdown(text: str) -> Iterator[Fault]:
    yield from hidden_characters(text)
    tokens, env = _MARKDOWN.blocks(text)
    lines = text.split("\n")
    # Only definitions of references say where they stand; whatever refers to them is judged by them.
    definitions = [
        (label, each["map"][0] + 1, each["href"])
        for label, each in [
            *env.get("references", {}).items(),
            *((each["label"], each) for each in env.get("duplicate_refs", [])),
        ]
    ]
    # To many renderers `[^1]: word` is a footnote, and so a text; a scheme in it counts all the same.
    links = [(line, href, False) for label, line, href in definitions if _scheme(href) or not label.startswith("^")]
    defined = {href for _, _, href in definitions}
    for token in tokens:
        if token.level >= MAX_NESTING - 1 and token.nesting == 1:
            yield Fault(first_line(token), Rule.NESTING_TOO_DEEP, TOO_DEEP)
            return
        match token.type:
            case "html_block":
                yield _raw_html(first_line(token), token.content)
                yield from _misplaced(token)
            case "fence" if not is_closed(token, lines):
                yield Fault(first_line(token), Rule.FENCE_UNCLOSED, unclosed(token))
            case "inline":
                yield from _misplaced(token)
                within: list[tuple[int, str, bool]] = []
                yield from _faults_within(token, env, within)
                links += [link for link in within if link[1] not in defined]
    slugs: Mapping[str, int] = {}
    if any(address.strip().startswith("#") for _, address, _ in links):
        slugs = heading_slugs(_headings(tokens, env))
    for line, address, is_image in links:
        if fault := _fault_of_link(line, address, is_image, slugs):
            yield fault


TOO_DEEP = "nest fewer quotes, lists and brackets within each other"
_NO_HTML = (
    "write this in Markdown: HTML is not shown; a placeholder such as `<name>`, or HTML to read, goes in backticks"
)
_NO_IMG = "write an image as `![what it shows](https://…)`: HTML is not shown"


def _raw_html(line: int, html: str) -> Fault:
    return Fault(line, Rule.HTML_RAW, _NO_IMG if html.lstrip().lower().startswith("<img") else _NO_HTML)


def unclosed(fence: Token) -> str:
    """What to do about a code fence that is not closed."""
    return f"close this code fence with a line of {fence.markup} and nothing else"


def _misplaced(token: Token) -> Iterator[Fault]:
    """Lines that look like the beginning of a block to their author, and are content to everybody else."""
    if ":::" not in token.content:
        return
    for found in _OPENER.finditer(token.content):
        remedy = (
            f"begin the line `::: {found[1]}` at the left margin, below a blank line: "
            "in HTML, a quote or a list it opens no block, and the user reads on"
        )
        line = first_line(token) + token.content.count("\n", 0, found.start(1))
        yield Fault(line, Rule.BLOCK_MISPLACED, remedy)


def _faults_within(block: Token, env: EnvType, links: list[tuple[int, str, bool]]) -> Iterator[Fault]:
    """What is wrong within the lines of a block; its links, by line, go to `links`."""
    lines, first = block.content, first_line(block)
    if _bracket_depth(lines) > _MAX_BRACKETS:
        yield Fault(first, Rule.NESTING_TOO_DEEP, TOO_DEEP)
        return
    may_be_escaped = _ESCAPED.search(lines) is not None or ENTITY.search(lines) is not None
    # Parsing within lines takes ten times as long as finding the blocks, and most lines have nothing to be found.
    if not may_be_escaped and "<" not in lines and "](" not in lines:
        return
    code: list[tuple[int, int]] = []
    for token in _every(_MARKDOWN.within(lines, env)):
        if "start" not in token.meta:
            continue
        start, end = span(token)
        line = first + lines.count("\n", 0, start)
        match token.type:
            case "html_inline":
                yield _raw_html(line, token.content)
            case "code_inline":
                code.append((start, end))
            case "link_open" | "image":
                address = str(token.attrs.get("href") or token.attrs.get("src") or "")
                links.append((line, address, token.type == "image"))
    if may_be_escaped:
        # In a link's title a quotation mark may well be escaped.
        code += [found.span() for found in re.finditer(r"\]\([^()\n]*\)|<[^<>\s]*>", lines)]
        yield from _escaped_twice(lines, code, first)
        yield from hidden_by_entities(_blanked(lines, code), first)


def _every(tokens: Sequence[Token]) -> Iterator[Token]:
    """Tokens, and those of the descriptions of images, which are where their image is."""
    for token in tokens:
        yield token
        for child in _every(token.children or ()):
            child.meta = {**child.meta, **token.meta}
            yield child


def _bracket_depth(lines: str) -> int:
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]]", lines):
        depth = depth + 1 if bracket == "[" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return deepest


# ---------------------------------------------------------------------------------------------------- links


def _headings(tokens: Sequence[Token], env: EnvType) -> list[str]:
    below = pairwise(tokens)
    texts = [inline.content for token, inline in below if token.type == "heading_open"]
    return [plain_text(_MARKDOWN.within(text, env)) for text in texts if len(text) <= MAX_HEADING_CHARS]


def _fault_of_link(line: int, address: str, is_image: bool, slugs: Mapping[str, int]) -> Fault | None:
    shown = repr(address if len(address) <= _SHOWN_CHARS else f"{address[:_SHOWN_CHARS]}…")
    scheme = _scheme(address)
    for disguised in (address, unquote(address), unquote(unquote(address))):
        # What browsers drop from an address (WHATWG URL section 4.4) hides no scheme.
        if (bare := _scheme(re.sub(r"[\x00-\x20\x7f-\xa0]", "", disguised))) in _DANGEROUS:
            remedy = f"remove the {bare}: address: it runs or opens what the reader did not choose"
            return Fault(line, Rule.LINK_SCHEME, remedy)
    if scheme is not None and scheme not in _SCHEMES:
        remedy = (
            f"write an https:// address instead of {shown}, or put it in backticks: "
            f"links begin with one of {', '.join(_SCHEMES)}"
        )
        return Fault(line, Rule.LINK_SCHEME, remedy)
    if is_image and scheme not in ("https", "http"):
        remedy = f"write the image's whole https:// address instead of {shown}: files of the folder are not delivered"
        return Fault(line, Rule.LINK_DEAD, remedy)
    if scheme is None and address.startswith("#") and len(address) > 1:
        if unquote(address[1:]).lower() in slugs:
            return None
        return Fault(line, Rule.LINK_FRAGMENT, f"link to a heading of this text: there is none for {shown}")
    if address in ("", "#"):  # `[//]: # (a comment)` is what many write for a comment
        remedy = "link to something, or remove this; what only the assistant is to read goes into assistant-notes"
        return Fault(line, Rule.LINK_DEAD, remedy)
    if scheme is None:
        remedy = (
            f"write the whole https:// address instead of {shown}: other files are not delivered; "
            "a file of the user's own goes in backticks"
        )
        return Fault(line, Rule.LINK_DEAD, remedy)
    if scheme in ("https", "http") and not re.match(r"[a-z]+://[^/?#\s]", address, re.IGNORECASE):
        return Fault(line, Rule.LINK_DEAD, f"write the whole address instead of {shown}: it names no host")
    return None


def _scheme(address: str) -> str | None:
    found = re.match(r"([a-z][a-z0-9+.-]*):", address, re.IGNORECASE)  # RFC 3986 section 3.1
    return found[1].lower() if found else None


# --------------------------------------------------------------------------------------------- double escapes

# What a text shows that went through JSON or HTML once too often. `\n` before a small letter may be a path or LaTeX
# (`src\new`, `\nabla`): it counts only after the end of a sentence, and no path counts that begins like one.
_ESCAPED = re.compile(
    r"""
    (?P<break> (?<!\\) \\{1,2} (?:r\\{1,2})? (?:
        [nt] (?! [A-Za-z0-9_] )
      | n (?= [0-9] )
      | [nt] (?= (?! Left | Right | V[Dd]ash ) [A-Z] )
      | n (?<= [a-z0-9)][.!?:;]\\n ) (?= [a-z] )
    ) )
  | (?P<code> \\{1,2} u [0-9a-fA-F]{4} )
  | (?P<entity> & (?:amp|\#38|\#x26) ; (?:amp|lt|gt|quot|apos|nbsp|\#[0-9]{1,7}|\#[xX][0-9a-fA-F]{1,6}) ; )
  | (?P<slash> https?:\\{1,3}/\\{1,3}/ )
  | (?P<apostrophe> (?<=[A-Za-z]) \\{1,3}' (?=[A-Za-z]) )
  | (?P<quote> \\{1,3}" [^"\n]* \\{1,3}" )
    """,
    re.VERBOSE,
)
_PATH = re.compile(r"""["'(\[<]*(?:[A-Za-z]:|\\{2,}\w+|%\w+%|\.{1,2}|~|\$(?:env:)?\w+|HK[A-Z_]+:?)\\""")


def _escaped_twice(text: str, code: Sequence[tuple[int, int]], first: int) -> Iterator[Fault]:
    """Signs of double escaping outside of `code`; `first` is the number of the text's first line."""
    told: set[int] = set()
    for found in _ESCAPED.finditer(_blanked(text, code)):
        line = first + text.count("\n", 0, found.start())
        if line in told or (found.lastgroup in ("break", "code") and _is_in_path(text, found.start())):
            continue
        told.add(line)
        sign = found[0] if len(found[0]) <= _SHOWN_CHARS else found[0][:2]
        remedy = (
            f"write what `{sign}` stands for: the text was escaped twice; if it is meant to be read so, use backticks"
        )
        yield Fault(line, Rule.TEXT_ESCAPED_TWICE, remedy)


def _blanked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text with other characters in the place of these spans; lines stay where they are."""
    pieces: list[str] = []
    at = 0
    for start, end in sorted(spans):
        pieces += [text[at:start], re.sub("[^\n]", "x", text[max(at, start) : end])]
        at = max(at, end)
    return "".join([*pieces, text[at:]])


def _is_in_path(text: str, at: int) -> bool:
    # As far as a path may be long (MAX_PATH of Windows): a text without any space must not be searched again and again.
    before = re.split(r"\s", text[max(0, at - 260) : at + 1])[-1]
    return _PATH.match(before) is not None
