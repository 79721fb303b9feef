"""Markdown as both the reading and the check of a walkthrough see it: CommonMark 0.31, nothing added."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline, autolink, backtick, html_inline, image, link
from markdown_it.token import Token
from markdown_it.utils import EnvType

# Quotes and list items within each other. The parser skips what is deeper, unseen, so it is refused instead.
MAX_NESTING = 40
# A heading may carry long links beside its 200 characters; the bound keeps the slowest of them below 0.1 s.
MAX_HEADING_CHARS = 2_000

BLOCKS = ("assistant-notes", "workspace-actions", "done-when")


class Markdown(MarkdownIt):
    """The parser. It takes links as they are written, whatever they lead to: the check judges them."""

    def __init__(self) -> None:
        # A link that is made by reference has the label of its definition in `meta["label"]`.
        super().__init__("commonmark", {"maxNesting": MAX_NESTING, "store_labels": True})
        for name, rule in {
            "link": link,
            "image": image,
            "autolink": autolink,
            "html_inline": html_inline,
            "backticks": backtick,
        }.items():
            self.inline.ruler.at(name, _located(rule))

    def validateLink(self, url: str) -> bool:  # noqa: N802  # the name is the library's
        return True

    def normalizeLink(self, url: str) -> str:  # noqa: N802  # as above
        return url

    def blocks(self, text: str) -> tuple[list[Token], EnvType]:
        """The blocks of a text and its definitions of references; what is within their lines is not parsed."""
        tokens: list[Token] = []
        env: EnvType = {}
        self.block.parse(text, self, env, tokens)
        return tokens, env

    def within(self, lines: str, env: EnvType) -> Sequence[Token]:
        """What is within the lines of one block. Links, images, HTML and code say where: see `span`."""
        tokens: list[Token] = []
        self.inline.parse(lines, self, env, tokens)
        return tokens


def span(token: Token) -> tuple[int, int]:
    """Where a token of `Markdown.within` begins and ends in the lines."""
    return token.meta["start"], token.meta["end"]


def _located(rule: Callable[[StateInline, bool], bool]) -> Callable[[StateInline, bool], bool]:
    def located(state: StateInline, silent: bool) -> bool:
        start, number = state.pos, len(state.tokens)
        matches = rule(state, silent)
        if matches and not silent:
            for token in state.tokens[number:]:
                # What is within a link was located already, when the link was still open.
                if token.type in _LOCATED and "start" not in token.meta:
                    token.meta |= {"start": start, "end": state.pos}
        return matches

    return located


_LOCATED = ("link_open", "image", "html_inline", "code_inline")


def first_line(token: Token) -> int:
    """The line on which a block begins, counted from 1."""
    return token.map[0] + 1 if token.map else 1


def is_closed(fence: Token, lines: Sequence[str]) -> bool:
    """Whether a code fence ends by a line of its own, and not with the text or whatever it stands in."""
    first, end = fence.map or (0, 0)
    # CommonMark 0.31 section 4.5; had an earlier line closed it, that would have been its last.
    closing = rf"{re.escape(fence.markup[0])}{{{len(fence.markup)},}}[ \t]*"
    if fence.level:  # in a quote or list, whose own marks come first
        return end > first + 1 and re.search(rf"(^|[ \t>]){closing}$", lines[end - 1]) is not None
    return end > first + 1 and re.fullmatch(rf" {{0,3}}{closing}", lines[end - 1]) is not None


def plain_text(tokens: Sequence[Token]) -> str:
    """What people read of what is within a line."""

    def one(token: Token) -> str:
        match token.type:
            case "image":
                return plain_text(token.children or ())
            case "softbreak" | "hardbreak":
                return " "
            case "html_inline":
                return ""
            case _:
                return token.content

    return "".join(map(one, tokens))


def heading_slugs(headings: Sequence[str]) -> Sequence[str]:
    """The fragments by which GitHub and editors link to these headings (their plain texts), one for each."""
    slugs: list[str] = []
    counts: dict[str, int] = {}
    for heading in headings:
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        count = counts.get(slug, 0)
        counts[slug] = count + 1
        if count:
            slug = f"{slug}-{count}"
            counts.setdefault(slug, 1)
        slugs.append(slug)
    return slugs
