"""An author's Markdown as HTML for people's browsers. What an assistant gets is the Markdown itself, untouched."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from urllib.parse import quote, unquote

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from adapters.content.markdown import MAX_NESTING, heading_slugs, plain_text

# What the renderer makes of Markdown, and no more. Images are not among them: see `_image`.
_TAGS = {
    *("h1", "h2", "h3", "h4", "h5", "h6", "p", "br", "hr", "blockquote", "ul", "ol", "li"),
    *("pre", "code", "em", "strong", "a", "table", "thead", "tbody", "tr", "th", "td"),
}
_ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}} | {f"h{level}": {"id"} for level in range(1, 7)}
_ADDRESS = re.compile("https?:|mailto:|#", re.IGNORECASE)


def html_of(markdown: str, *, headings_below: int = 0, ids: str = "section-") -> str:
    """The HTML of a text: to be put into the body of a page as it is.

    Its headings are put `headings_below` levels below what they are, to fit below those of the page, and get ids that
    begin with `ids`: other texts of the page need another beginning. `#fragment` leads to the heading of that text.

    HTML in it is shown as the text that it is. Other links lead to https, http and mailto addresses alone, and take
    neither the referring page nor its window along; any other is shown as its text. An image becomes a link to it, so
    that to read a page asks nobody else for anything.
    """
    env: EnvType = {}
    tokens = _MARKDOWN.parse(markdown, env)
    headings = [index for index, token in enumerate(tokens) if token.type == "heading_open"]
    slugs = heading_slugs([plain_text(tokens[index + 1].children or ()) for index in headings])
    for index, slug in zip(headings, slugs, strict=True):
        if slug:
            tokens[index].attrSet("id", f"{ids}{slug}")
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + headings_below)}"
        token.children = token.children and _with_links_that_lead(token.children, set(slugs) - {""}, ids)
    return nh3.clean(
        _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, env),
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        url_schemes={"https", "http", "mailto"},
        url_relative=_only_fragment,
        link_rel="noopener noreferrer nofollow",
    )


def _only_fragment(address: str) -> str | None:
    return address if address.startswith("#") else None


def _with_links_that_lead(within: Sequence[Token], slugs: Collection[str], ids: str) -> list[Token]:
    """What is within a line, its links to elsewhere than a page takes without their marks."""
    kept: list[Token] = []
    is_open = False
    for token in within:
        if token.type == "link_open":
            address = str(token.attrs["href"])
            slug = unquote(address[1:]).lower()
            is_open = slug in slugs if address.startswith("#") else _ADDRESS.match(address) is not None
            if address.startswith("#"):
                token.attrs["href"] = f"#{ids}{quote(slug)}"
        if is_open or token.type not in ("link_open", "link_close"):
            kept.append(token)
    return kept


def _image(_: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    image = tokens[index]
    shown = escapeHtml(plain_text(image.children or ()) or "image")
    before = tokens[:index]
    is_in_link = sum(token.type == "link_open" for token in before) > sum(t.type == "link_close" for t in before)
    address = str(image.attrs["src"])
    if is_in_link or address.startswith("#") or not _ADDRESS.match(address):
        return shown
    return f'<a href="{escapeHtml(address)}">{shown}</a>'


def _parser() -> MarkdownIt:
    # Tables are no part of CommonMark, but every assistant shows them, so authors write them.
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": MAX_NESTING}).enable("table")
    parser.add_render_rule("image", _image)
    return parser


_MARKDOWN = _parser()
