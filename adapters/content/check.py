"""The check on a walkthrough's texts: the same for a folder, at push and at publish. It refuses and never rewrites.

A text is refused for what would not reach people as its author meant it, or would reach them as something else: raw
HTML, links that are dangerous or lead nowhere, characters that nobody sees, text that was escaped once too often, a
`:::` line that is no block where it stands. What an assistant shows is anybody's guess; what a page shows is
`adapters.content.pages`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import unescape
from itertools import pairwise, takewhile
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
# Anything but what a page links to is opened by some program of the reader's machine, if by any.
_SCHEMES = ("https", "http", "mailto")
# The editors in which walkthroughs are taken ask before they install something. Their other links run commands of
# extensions, or put words into the assistant.
_INSTALLS = re.compile(
    r"(?:vscode(?:-insiders)?|cursor):extension/[\w.-]+ | vscode(?:-insiders)?:mcp/install\?\S+"
    r"| cursor://anysphere\.cursor-deeplink/mcp/install\?\S+",
    re.IGNORECASE | re.VERBOSE,
)
_EDITORS = ("vscode", "vscode-insiders", "cursor")
_DANGEROUS = ("javascript", "data", "vbscript", "file")
_SHOWN_CHARS = 60

# A colon less, and the colons of a Chinese or Japanese keyboard, are meant as one too.
_OPENER = re.compile(rf"^[ \t]*[:\uff1a]{{2,}}[ \t]*({'|'.join(BLOCKS)})[ \t]*$", re.MULTILINE | re.IGNORECASE)
# Where a browser sees a tag or comment begin (HTML, section 13.2.5.6), CommonMark may see none.
_TAG = re.compile(r"(?<!\\)(?:\\\\)*(<(?:/?[A-Za-z]|!(?:--|\[|[A-Za-z])|\?[A-Za-z])[^\s<>]{0,20})")


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
        if shows_nothing(step.content):
            findings.add(f"{step.key}/content", Fault(1, Rule.STEP_EMPTY, NOTHING_TO_READ))
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
    return few([*hidden_characters(title), *_markup(title)])


def faults_of_description(description: str) -> Sequence[Fault]:
    """What is wrong with a plain text of several lines."""
    faults = [*hidden_characters(description), *_markup(description)]
    return few([*faults, *_escaped_twice(description, _code_in_plain(description), 1)])


def is_markup(text: str) -> bool:
    """Whether a plain text holds what a client may take for HTML or a link, so that it has to stand in backticks."""
    return _MARKUP.search(text) is not None


# Titles and descriptions are delivered outside of any delimiters, and nobody knows how a client shows them.
_MARKUP = re.compile(
    r"(?P<html><(?:/?[A-Za-z]|!(?:--|\[|[A-Za-z])|\?[A-Za-z])) | (?P<link>\]\()"
    r"| (?P<scheme>\b(?:(?:javascript|vbscript):(?=\S) | data:(?:[\w.+-]+/[\w.+-]+)?[;,] | file:/))",
    re.IGNORECASE | re.VERBOSE,
)
_MARKUP_REMEDIES = {
    "html": (Rule.HTML_RAW, "put what looks like HTML in backticks, as in `<name>`: this is plain text"),
    "link": (Rule.LINK_DEAD, "put the link into the content of a step, or in backticks: this is plain text"),
    "scheme": (Rule.LINK_SCHEME, "remove this address or put it in backticks: it runs or opens what nobody chose"),
}


def _markup(text: str) -> Iterator[Fault]:
    shown = _blanked(text, _code_in_plain(text))
    for found in _MARKUP.finditer(shown):
        rule, remedy = _MARKUP_REMEDIES[str(found.lastgroup)]
        yield Fault(1 + text.count("\n", 0, found.start()), rule, remedy)
    yield from hidden_by_entities(shown, 1)


def _code_in_plain(text: str) -> Sequence[tuple[int, int]]:
    return [found.span() for found in re.finditer("`[^`\n]*`", text)]


@lru_cache(maxsize=MAX_STEPS)
def shows_nothing(text: str) -> bool:
    """Whether a text in Markdown comes to nothing that a person could see: no word, no code, no image."""
    tokens, env = _MARKDOWN.blocks(text)
    for token in tokens:
        if token.type in ("fence", "code_block", "html_block") and token.content.strip():
            return False
        if token.type == "inline":
            if _bracket_depth(token.content) > _MAX_BRACKETS:
                return False  # refused for that, and slow to parse
            within = _MARKDOWN.within(token.content, env)
            if any(each.type in ("image", "html_inline") or each.content.strip() for each in within):
                return False
    return True


NOTHING_TO_READ = "write what the user is to read, outside of any ::: block"


# A push checks what it reads, and again what it stores: the second time the answers are still here.
@lru_cache(maxsize=4 * MAX_STEPS)
def faults_of_markdown(text: str) -> Sequence[Fault]:
    """What is wrong with a text in Markdown, a few of each rule (`Fault.more` says how many were left out)."""
    return few(_faults_of_markdown(text))


def _faults_of_markdown(text: str) -> Iterator[Fault]:
    yield from hidden_characters(text)
    tokens, env = _MARKDOWN.blocks(text)
    lines = text.split("\n")
    links: list[_Link] = []
    for token in tokens:
        if token.level >= MAX_NESTING - 1 and token.nesting == 1:
            yield Fault(first_line(token), Rule.NESTING_TOO_DEEP, TOO_DEEP)
            return
        match token.type:
            case "html_block":
                yield _raw_html(first_line(token), token.content)
                yield from _misplaced(token)
            case "code_block":
                yield from _misplaced(token)
            case "fence":
                yield from _faults_of_fence(token, lines)
            case "inline":
                yield from _misplaced(token)
                yield from _faults_within(token, env, links)
    definitions = _definitions(env, links)
    # A definition says where it stands; whatever refers to it is judged by it.
    addresses = [*definitions, *(link for link in links if not link.label)]
    slugs: set[str] = set()
    if any(each.address.strip().startswith("#") for each in addresses):
        slugs = set(heading_slugs(_headings(tokens, env)))
    used = {link.label for link in links}
    for each in addresses:
        # To many renderers `[^1]: word` is a footnote, and so a text; a scheme in it counts all the same.
        is_text = each.label.startswith("^") and _scheme(each.address) is None
        if not is_text and (fault := _fault_of_link(each, slugs)):
            yield fault
        elif each.is_duplicate or (each.label and each.label not in used) or each.label.startswith("//"):
            yield Fault(each.line, Rule.LINK_UNUSED, _UNUSED)
    for each in definitions:
        yield from hidden_by_entities("\n".join(lines[each.line - 1 : each.end]), each.line)


@dataclass(frozen=True, slots=True)
class _Link:
    """A link or an image, or the definition of one.

    `label`: of the definition, where there is one. `end`: the last line of a definition.
    """

    line: int
    address: str
    is_image: bool
    label: str = ""
    end: int = 0
    is_duplicate: bool = False


def _definitions(env: EnvType, links: Sequence[_Link]) -> Sequence[_Link]:
    images = {link.label for link in links if link.is_image}
    firsts = [(label, each, False) for label, each in env.get("references", {}).items()]
    others = [(each["label"], each, True) for each in env.get("duplicate_refs", [])]
    return [
        _Link(each["map"][0] + 1, each["href"], label in images, label, each["map"][1], is_duplicate)
        for label, each, is_duplicate in [*firsts, *others]
    ]


_UNUSED = (
    "remove this definition, which nobody sees: no link refers to it; what only the assistant is to read goes into "
    "assistant-notes"
)
TOO_DEEP = "nest fewer quotes, lists and brackets within each other"
_NO_HTML = (
    "write this in Markdown: HTML is not shown; a placeholder such as `<name>`, or HTML to read, goes in backticks"
)
_NO_IMG = "write an image as `![what it shows](https://…)`: HTML is not shown"


def _raw_html(line: int, html: str) -> Fault:
    return Fault(line, Rule.HTML_RAW, _NO_IMG if html.lstrip().lower().startswith("<img") else _NO_HTML)


def unclosed(fence: Token) -> str:
    """What to do about a code fence that is not closed."""
    marks = len(fence.markup)
    shown = fence.markup if marks <= _SHOWN_MARKS else f"{marks:,} of {fence.markup[0]}"
    return f"close this code fence with a line of {shown} and nothing else"


_SHOWN_MARKS = 10

# The language, and what documentation tools read behind it: `js title="a.js" {1,3-5}`, `{.python .wide}`. Nobody sees
# it where code is shown, so it is no place for sentences.
_FENCE_INFO = re.compile(
    r"[^\s{}]{0,40} (?: \s* \{{1,2} [^{}]{0,60} \}{1,2}"
    r"| \s+ [\w.:-]{1,40} = (?: \"[^\"]{0,100}\" | '[^']{0,100}' | \{[^{}]{0,60}\} | [^\s\"'{}]{1,60} ) ){0,8} \s*",
    re.VERBOSE,
)


def _faults_of_fence(fence: Token, lines: Sequence[str]) -> Iterator[Fault]:
    line = first_line(fence)
    if not is_closed(fence, lines):
        yield Fault(line, Rule.FENCE_UNCLOSED, unclosed(fence))
    if not _FENCE_INFO.fullmatch(fence.info.strip()):
        remedy = 'write no more than the language behind the fence, or settings such as `js title="a.js"`'
        yield Fault(line, Rule.FENCE_INFO, f"{remedy}: nobody sees what stands there")
    yield from hidden_by_entities(fence.info, line)


def _misplaced(token: Token) -> Iterator[Fault]:
    """Lines that look like the beginning of a block to their author, and are content to everybody else."""
    for found in _OPENER.finditer(token.content):
        remedy = (
            f"begin the line `::: {found[1].lower()}` at the left margin, below a blank line: "
            "as it stands it opens no block, and the user reads on; to show it, use a code fence"
        )
        line = first_line(token) + token.content.count("\n", 0, found.start(1))
        yield Fault(line, Rule.BLOCK_MISPLACED, remedy)


def _faults_within(block: Token, env: EnvType, links: list[_Link]) -> Iterator[Fault]:
    """What is wrong within the lines of a block; its links, by line, go to `links`."""
    lines, first = block.content, first_line(block)
    if _bracket_depth(lines) > _MAX_BRACKETS:
        yield Fault(first, Rule.NESTING_TOO_DEEP, TOO_DEEP)
        return
    may_be_escaped = any(sign.search(lines) for sign in (_ESCAPED, _BREAK_IN_PROSE, ENTITY))
    may_be_link = "](" in lines or "][" in lines or ("[" in lines and "references" in env)
    # Parsing within lines takes ten times as long as finding the blocks, and most lines have nothing to be found.
    if not may_be_escaped and not may_be_link and "<" not in lines:
        return
    code: list[tuple[int, int]] = []
    told: list[tuple[int, int]] = []
    linked: list[tuple[int, int]] = []
    for token in _every(_MARKDOWN.within(lines, env)):
        if "start" not in token.meta:
            continue
        start, end = span(token)
        line = first + lines.count("\n", 0, start)
        match token.type:
            case "html_inline":
                told.append((start, end))
                yield _raw_html(line, token.content)
            case "code_inline":
                code.append((start, end))
            case "link_open" | "image":
                address = str(token.attrs.get("href") or token.attrs.get("src") or "")
                links.append(_Link(line, address, token.type == "image", token.meta.get("label", "")))
                if token.type == "link_open" and token.markup != "autolink":
                    yield from _disguised(line, token.meta["shown"], address)
                (told if token.markup == "autolink" else linked).append((start, end))
    if "<" in lines:
        # An address between angle brackets is no tag.
        pointed = [
            (start + found.start(), start + found.end())
            for start, end in linked
            for found in re.finditer(r"(?<!\\)\]\(\s*<[^<>\n]*>", lines[start:end])
        ]
        for found in _TAG.finditer(_blanked(lines, [*code, *told, *pointed])):
            yield _raw_html(first + lines.count("\n", 0, found.start(1)), found[1])
    for found in _UNDEFINED.finditer(_blanked(lines, [*code, *told, *linked])) if "][" in lines else ():
        remedy = f"define `[{found[1][:_SHOWN_CHARS]}]: https://…`, which this refers to, or put it in backticks"
        yield Fault(first + lines.count("\n", 0, found.start()), Rule.LINK_DEAD, _in_one_line(remedy))
    if may_be_escaped:
        yield from hidden_by_entities(_blanked(lines, code + told), first)
        # In a link's title a quotation mark may well be escaped.
        code += [found.span() for found in re.finditer(r"\]\([^()\n]*\)|<[^<>\s]*>", lines)]
        yield from _escaped_twice(lines, code, first)


# Not behind a word, which in prose is an array; not footnotes, nor numbers alone.
_UNDEFINED = re.compile(r"(?<![\w\])\\])\[(?!\^)(?=[^\[\]]*[^\W\d])[^\[\]]+\]\[(?!\^)([^\[\]]*[^\W\d][^\[\]]*)\]")


def _in_one_line(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text)


def _every(tokens: Sequence[Token]) -> Iterator[Token]:
    """Tokens, and those of the descriptions of images, which are where their image is.

    What is shown of a link goes into its `meta["shown"]`.
    """
    for index, token in enumerate(tokens):
        if token.type == "link_open":
            after = takewhile(lambda at: tokens[at].type != "link_close", range(index + 1, len(tokens)))
            token.meta["shown"] = plain_text([tokens[at] for at in after])
        yield token
        for child in _every(token.children or ()):
            child.meta |= {each: token.meta[each] for each in ("start", "end") if each in token.meta}
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


def _fault_of_link(link: _Link, slugs: set[str]) -> Fault | None:
    line, address, is_image = link.line, link.address, link.is_image
    shown = repr(address if len(address) <= _SHOWN_CHARS else f"{address[:_SHOWN_CHARS]}…")
    scheme = _scheme(address)
    for disguised in (address, unquote(address), unquote(unquote(address))):
        # What browsers drop from an address (WHATWG URL section 4.4) hides no scheme.
        if (bare := _scheme(re.sub(r"[\x00-\x20\x7f-\xa0]", "", disguised))) in _DANGEROUS:
            remedy = f"remove the {bare}: address: it runs or opens what the reader did not choose"
            return Fault(line, Rule.LINK_SCHEME, remedy)
    if scheme in _EDITORS and not _INSTALLS.fullmatch(address):
        remedy = f"remove {shown}: a link into an editor may install an extension or an MCP server, and nothing else"
        return Fault(line, Rule.LINK_SCHEME, remedy)
    if scheme is not None and scheme not in (*_SCHEMES, *_EDITORS):
        remedy = (
            f"write an https:// address instead of {shown}, or put it in backticks: "
            f"links begin with one of {', '.join(_SCHEMES)}"
        )
        return Fault(line, Rule.LINK_SCHEME, remedy)
    if scheme in ("https", "http") and re.match(r"[a-z]+:[/\\]*[^/?#]*[@\\]", address, re.IGNORECASE):
        remedy = f"write {shown} without what stands before its host: what looks like the host there is none"
        return Fault(line, Rule.LINK_DISGUISED, remedy)
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


# A text that is an address: with its scheme, with a path, or with an ending that few names of programs have.
_ADDRESS = re.compile(
    r"""\W* (?: https?://(?:[^/?#\s]*@)? (?P<of_address>[^/?#:\s]+)
    | (?P<with_path>(?:\w[\w-]*\.)+[a-z]{2,}) (?: :[0-9]+ )? / \S* \Z
    | (?P<alone>(?:www\.(?:\w[\w-]*\.)+[a-z]{2,} | (?:\w[\w-]*\.)+(?:com|org|edu|gov))) \W* \Z )""",
    re.IGNORECASE | re.VERBOSE,
)


def _disguised(line: int, shown: str, address: str) -> Iterator[Fault]:
    """A link whose text is an address of another host than it leads to, `www.` and hosts below that one apart."""
    if _scheme(address) not in (*_SCHEMES, *_EDITORS) or not (found := _ADDRESS.match(shown.strip())):
        return
    said = str(found[str(found.lastgroup)]).lower().removeprefix("www.")
    host = _host(address)
    if host != said and not host.endswith(f".{said}"):
        remedy = (
            "write the address that the link leads to, or words in its place: its text is an address of another host"
        )
        yield Fault(line, Rule.LINK_DISGUISED, remedy)


def _host(address: str) -> str:
    found = re.match(r"https?:/*(?:[^/?#]*@)?([^/?#:]*)", address, re.IGNORECASE)
    return found[1].lower().removeprefix("www.") if found else ""


def _scheme(address: str) -> str | None:
    found = re.match(r"([a-z][a-z0-9+.-]*):", address, re.IGNORECASE)  # RFC 3986 section 3.1
    return found[1].lower() if found else None


# --------------------------------------------------------------------------------------------- double escapes

# What a text shows that went through JSON or HTML once too often. `\n` before a small letter may be a path or LaTeX
# (`src\new`, `\nabla`): it counts only after the end of a sentence, behind `\r`, and where `_BREAK_IN_PROSE` sees
# it. No path counts that begins like one. `x64` and `x86` are folders.
_ESCAPED = re.compile(
    r"""
    (?P<break> (?<!\\) \\{1,2} (?:r\\{1,2})? (?:
        [nt] (?! [A-Za-z0-9_] )
      | n (?= [0-9] )
      | [nt] (?= (?! Left | Right | V[Dd]ash ) [A-Z] )
      | n (?<= [a-z0-9)][.!?:;]\\n ) (?= [a-z] )
      | n (?<= \\r\\n )
      | n (?<= \\r\\\\n )
    ) )
  | (?P<code> \\{1,2} (?: u [0-9a-fA-F]{4} | x (?!(?:32|64|86)(?![0-9A-Za-z])) [0-9a-fA-F]{2} ) )
  | (?P<entity> & (?:amp|\#38|\#x26) ; (?:[a-zA-Z][a-zA-Z0-9]{1,31}|\#[0-9]{1,7}|\#[xX][0-9a-fA-F]{1,6}) ; )
  | (?P<slash> https?:\\{1,3}/\\{1,3}/ )
  | (?P<apostrophe> (?<=[A-Za-z]) \\{1,3}' (?=[A-Za-z]) )
  | (?P<quote> \\{1,3}" [^"\n]* \\{1,3}" )
    """,
    re.VERBOSE,
)
# `one\ntwo` between words. Many names begin with `n` and a vowel, so that one alone may be a path; few with `n` and a
# consonant.
_BREAK_IN_PROSE = re.compile(
    r"""
    (?: (?<=\s) | \A ) [\w'\u2019-]+ [,)]? (?P<break> \\{1,2} n )
    (?! (?: abla|ame[sd]?|amespaces?|ano|ative|av|avigation|e|earrow|eq|ested|et|ets|etworks?|ew|ewcommand|ewline|ews
        |ext|fs|ginx|i|ltk|map|o|odes?|one|ormal|ot|otes?|otebooks?|otin|pm|pmrc|ps|t|tdll|u|uget|ull|umbers?|umpy|uxt
        |vcc|vim|vidia|vm|warrow|x|(?:leq|geq|less|gtr|prec|succ|sim|cong|mid|parallel|subset|supset|vdash|exists
        |triangle|left|right)\w* ) (?![a-z]) )
    (?P<next> [a-z] ) [a-z'\u2019-]* (?= [\s,;:!?)] | \.(?:\s|\Z) | \Z | \\{1,2}n )
    """,
    re.VERBOSE,
)
_PATH = re.compile(r"""["'(\[<]*(?:[A-Za-z]:|\\{2,}\w+|%\w+%|\.{1,2}|~|\$(?:env:)?\w+|HK[A-Z_]+:?)\\""")


def _escaped_twice(text: str, code: Sequence[tuple[int, int]], first: int) -> Iterator[Fault]:
    """Signs of double escaping outside of `code`; `first` is the number of the text's first line."""
    told: set[int] = set()
    shown = _blanked(text, code)
    for found in [*_ESCAPED.finditer(shown), *_breaks_in_prose(shown)]:
        line = first + text.count("\n", 0, found.start())
        if line in told or (found.lastgroup in ("break", "code") and _is_in_path(text, found.start())):
            continue
        if found.lastgroup == "entity" and unescape(unescape(found[0])) == unescape(found[0]):
            continue  # no name of any character
        told.add(line)
        sign = "\\n" if found.lastgroup == "next" else found[0] if len(found[0]) <= _SHOWN_CHARS else found[0][:2]
        remedy = (
            f"write what `{sign}` stands for: the text was escaped twice; if it is meant to be read so, use backticks"
        )
        yield Fault(line, Rule.TEXT_ESCAPED_TWICE, remedy)


def _breaks_in_prose(text: str) -> Iterator[re.Match[str]]:
    for line_of_text in re.finditer(r"[^\n]+", text):
        found = [*_BREAK_IN_PROSE.finditer(text, *line_of_text.span())]
        if len(found) > 1 or any(each["next"] not in "aeiouy" for each in found):
            yield found[0]


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
