"""An author's Markdown as HTML for people's browsers. What an assistant gets is the Markdown itself, untouched."""

from __future__ import annotations

from collections.abc import Sequence

import nh3
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from adapters.content.markdown import MAX_NESTING, plain_text

# What the renderer makes of Markdown, and no more. Images are not among them: see `_image`.
_TAGS = {
    *("h1", "h2", "h3", "h4", "h5", "h6", "p", "br", "hr", "blockquote", "ul", "ol", "li"),
    *("pre", "code", "em", "strong", "a", "table", "thead", "tbody", "tr", "th", "td"),
}
_ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}}


def html_of(markdown: str, *, headings_below: int = 0) -> str:
    """The HTML of a text: to be put into the body of a page as it is.

    Its headings are put `headings_below` levels below what they are, to fit below those of the page.

    HTML in it is shown as the text that it is. Links lead to https, http and mailto addresses alone, and take neither
    the referring page nor its window along; an image becomes a link to it, so that to read a page asks nobody else
    for anything.
    """
    env: EnvType = {}
    tokens = _MARKDOWN.parse(markdown, env)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + headings_below)}"
    return nh3.clean(
        _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, env),
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        url_schemes={"https", "http", "mailto"},
        url_relative="deny",
        link_rel="noopener noreferrer nofollow",
    )


def _image(_: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    image = tokens[index]
    shown = escapeHtml(plain_text(image.children or ()) or "image")
    before = tokens[:index]
    is_in_link = sum(token.type == "link_open" for token in before) > sum(t.type == "link_close" for t in before)
    return shown if is_in_link else f'<a href="{escapeHtml(str(image.attrs["src"]))}">{shown}</a>'


def _parser() -> MarkdownIt:
    # Tables are no part of CommonMark, but every assistant shows them, so authors write them.
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": MAX_NESTING}).enable("table")
    parser.add_render_rule("image", _image)
    return parser


_MARKDOWN = _parser()
