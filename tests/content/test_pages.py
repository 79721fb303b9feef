"""What people's browsers get of an author's Markdown: everything that is said, and nothing that acts."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adapters.content.pages import html_of
from entrypoints.cli.preview import page
from tests.worlds import manuscript

_TAGS = {"h1", "h2", "h3", "h4", "h5", "h6", "p", "br", "hr", "blockquote", "ul", "ol", "li"} | {
    *("pre", "code", "em", "strong", "a", "table", "thead", "tbody", "tr", "th", "td")
}
_REL = "noopener noreferrer nofollow"


class Page(HTMLParser):
    """What a browser would find in a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.others: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        self.others.append(data)

    def handle_decl(self, decl: str) -> None:
        self.others.append(decl)

    def handle_pi(self, data: str) -> None:
        self.others.append(data)


@pytest.mark.parametrize(
    ("markdown", "html"),
    [
        ("# A *b*", '<h1 id="section-a-b">A <em>b</em></h1>\n'),
        ("# !", "<h1>!</h1>\n"),
        (
            "# A `\u00fc`\n\n## A \u00fc\n\n[b](#a-\u00fc-1)",
            '<h1 id="section-a-\u00fc">A <code>\u00fc</code></h1>\n<h2 id="section-a-\u00fc-1">A \u00fc</h2>\n'
            f'<p><a href="#section-a-%C3%BC-1" rel="{_REL}">b</a></p>\n',
        ),
        ("[a *b*](#nowhere) and [c](#) and [](#d)", "<p>a <em>b</em> and c and </p>\n"),
        ("3. a\n4. `b`", '<ol start="3">\n<li>a</li>\n<li><code>b</code></li>\n</ol>\n'),
        ("```js\na < b\n```", "<pre><code>a &lt; b\n</code></pre>\n"),
        ("|a|\n|-|", "<table>\n<thead>\n<tr>\n<th>a</th>\n</tr>\n</thead>\n</table>\n"),
        ("a <b>c</b>", "<p>a &lt;b&gt;c&lt;/b&gt;</p>\n"),
        ("<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>\n"),
        ('[a](https://b.example "c")', f'<p><a href="https://b.example" title="c" rel="{_REL}">a</a></p>\n'),
        ("<ada@example.com>", f'<p><a href="mailto:ada@example.com" rel="{_REL}">ada@example.com</a></p>\n'),
        ("[a](b.md)", "<p>a</p>\n"),
        ("[a](ftp://b.example) <vscode:b> [c](//d)", "<p>a vscode:b c</p>\n"),
        ("![a](b.png) ![c](#d) [![e](f)](g)", "<p>a c e</p>\n"),
        ("![a *b*](https://c.example/d.png)", f'<p><a href="https://c.example/d.png" rel="{_REL}">a b</a></p>\n'),
        ("![](https://c.example/d.png)", f'<p><a href="https://c.example/d.png" rel="{_REL}">image</a></p>\n'),
        ("[![a](https://c.example/d)](https://e.example)", f'<p><a href="https://e.example" rel="{_REL}">a</a></p>\n'),
    ],
)
def test_markdown_becomes_this_html(markdown: str, html: str) -> None:
    assert html_of(markdown) == html


def test_headings_go_below_those_of_the_page_and_end_at_the_sixth_level() -> None:
    assert html_of("# A\n\n##### B", headings_below=2) == ('<h3 id="section-a">A</h3>\n<h6 id="section-b">B</h6>\n')


def test_a_preview_keeps_the_lines_of_the_description_and_the_ids_of_its_texts_apart() -> None:
    whole = manuscript("one", "two")
    texts = {"content": "# A\n\n[b](#a)", "assistant_notes": "# A\n\n[b](#a)"}
    steps = tuple(replace(step, **texts, workspace_actions=None, done_when="# A") for step in whole.steps)
    shown = Page(page(replace(whole, description="One.\n<Two>.\n\nThree.", steps=steps), html_of))
    assert "One.\n<Two>.\n\nThree." in shown.text
    assert [tag for tag, _ in shown.elements].count("br") == 3
    ids = [attributes["id"] for _, attributes in shown.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) == 2 * 2 + 2 * 3
    targets = [str(attributes["href"]) for tag, attributes in shown.elements if tag == "a"]
    assert len(targets) == 2 + 2 * 2
    assert {target.removeprefix("#") for target in targets} <= set(ids)


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<iframe srcdoc='<script>'>",
    "[a](javascript:alert(1))",
    "[a](java&#10;script:alert(1))",
    "[a](data:text/html;base64,PHNjcmlwdD4=)",
    "![a](javascript:x)",
    '![a" onerror="x](https://x/"onerror="y)',
    '[a](https://x "t" onclick="y")',
    '<https://x/"onmouseover=y>',
    "<javascript:alert(1)>",
    '```" onclick="x\n</code></pre><script>\n```',
    "`</code><script>`",
    "|<script>|\n|-|\n|[a](javascript:x)|",
    "<style>*{display:none}</style>",
    "<!-- --><b>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=x>",
    "&lt;script&gt;",
    "[a]: javascript:x\n\n[a]",
    "\x00\u202e<b>",
]
SHREDS = [*"<>\"'`[]()!:/=&;# \n", "script", "javascript:", "a", "onload", "http://x", "-->", "<!--"]
hostile = st.one_of(
    st.lists(st.sampled_from(HOSTILE) | st.text(max_size=8), max_size=6).map("\n".join),
    st.lists(st.sampled_from(SHREDS), max_size=40).map("".join),
)


@settings(max_examples=800, deadline=None)
@given(hostile)
@example("\n".join(HOSTILE))
@example("![" * 50 + "a" + "](javascript:x)" * 50)
def test_whatever_the_markdown_holds_the_html_only_says_it(markdown: str) -> None:
    page = Page(html_of(markdown))
    assert page.others == []
    for tag, attributes in page.elements:
        assert tag in _TAGS
        assert attributes.keys() <= {"a": {"href", "title", "rel"}, "ol": {"start"}}.get(tag, {"id"})
        assert tag.startswith("h") or "id" not in attributes
        if "href" in attributes:
            assert (attributes["href"] or "").startswith(("https:", "http:", "mailto:", "#section-"))
        if tag == "a":
            assert attributes["rel"] == _REL


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("abc <>&\"'/=", min_size=1, max_size=12), min_size=1, max_size=4).map(" x".join))
def test_html_that_an_author_wrote_is_read_as_text(written: str) -> None:
    text = f"x{written}x".replace("\n", " ")
    shown = Page(html_of(text)).text
    assert "".join(shown.split()) == "".join(text.split())
