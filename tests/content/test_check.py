"""What the check on a walkthrough's texts refuses, what it lets pass, and that it is one check everywhere."""

from __future__ import annotations

import re
import sys
import time
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adapters.content.characters import hidden_characters
from adapters.content.check import (
    check_manuscript,
    faults_of_description,
    faults_of_markdown,
    faults_of_title,
)
from adapters.content.findings import MAX_LISTED_IN_A_FILE, Rule
from adapters.content.folder import read_folder
from domain.errors import ContentRejected
from domain.walkthrough import Manuscript, PublishPolicy
from tests.worlds import World, in_memory, manuscript, on_postgres

# ---------------------------------------------------------------------------------------------- what is wrong

# Each case is a text, and what is found in it: line and rule.
FAULTY: list[tuple[str, list[tuple[int, str]]]] = [
    # HTML
    ("a <b>c</b>", [(1, "html-raw")]),
    ("one\ntwo\nthree <br/>", [(3, "html-raw")]),
    ("<div>\nx\n</div>", [(1, "html-raw")]),
    ("a <!-- b --> c", [(1, "html-raw")]),
    ("<!-- a\n\nb -->", [(1, "html-raw")]),
    ("# A <kbd>B</kbd>", [(1, "html-raw")]),
    ("> - `<a>` and <a>", [(1, "html-raw")]),
    ("Clone <repository> first.", [(1, "html-raw")]),
    ("<?php ?>", [(1, "html-raw")]),
    ("a <![CDATA[b]]>", [(1, "html-raw")]),
    ("<script>\nx", [(1, "html-raw")]),
    ("[a <i>b</i>](https://example.com)", [(1, "html-raw")]),
    ("![a <i>b</i>](https://example.com/x.png)", [(1, "html-raw")]),
    ("`code\nspan` then\n<b>", [(3, "html-raw")]),
    # HTML to browsers alone
    ("a\n<svg/onload=alert(1)>", [(2, "html-raw")]),
    ("<img/src=x/onerror=alert(1)>", [(1, "html-raw")]),
    ("<img src==x onerror=alert(1)>", [(1, "html-raw")]),
    ("<img src=x onerror=alert(1)//", [(1, "html-raw")]),
    ('a <a href="x"onclick=y> b', [(1, "html-raw")]),
    ("a </b/> c", [(1, "html-raw")]),
    ("a <!doctype", [(1, "html-raw")]),
    ("a <?xml", [(1, "html-raw")]),
    ("a <!-- b", [(1, "html-raw")]),
    ("if a<b then", [(1, "html-raw")]),
    ("a \\\\<svg/onload=x>", [(1, "html-raw")]),
    ("](<svg/onload=x>)", [(1, "html-raw")]),
    ("[\\](<svg/onload=x> b](https://example.com)", [(1, "html-raw")]),
    # a block that is none
    ("<div>\n::: assistant-notes\nsecret\n:::\n</div>", [(1, "html-raw"), (2, "block-misplaced")]),
    ("- a\n  ::: done-when\n  b", [(2, "block-misplaced")]),
    ("> a\n> b\n> :::: workspace-actions", [(3, "block-misplaced")]),
    (":::assistant-notes\nnot from a folder\n:::", [(1, "block-misplaced")]),
    ("a\n\n    b\n    ::: assistant-notes\n    c\n    :::", [(4, "block-misplaced")]),
    ("a\n:: assistant-notes", [(2, "block-misplaced")]),
    ("\uff1a\uff1a\uff1a assistant-notes", [(1, "block-misplaced")]),
    ("> ::: Done-When", [(1, "block-misplaced")]),
    ("a[^1]\n\n[^1]: foot\n    ::: assistant-notes\n    b", [(4, "block-misplaced")]),
    ("[^1]: foot note\n\n    ::: assistant-notes\n    b", [(3, "block-misplaced")]),
    # fences
    ("```\na", [(1, "fence-unclosed")]),
    ("- ```\n  a\n\nb", [(1, "fence-unclosed")]),
    ("> ~~~\n> a\n> ```", [(1, "fence-unclosed")]),
    ("a\n```bash run it now\nls\n```", [(2, "fence-info")]),
    ("~~~ js title=a and more\n~~~", [(1, "fence-info")]),
    ("```" + "x" * 41 + "\n```", [(1, "fence-info")]),
    ("```js&#8203;\n```", [(1, "character-invisible")]),
    # links: schemes and their disguises
    ("[a](javascript:alert(1))", [(1, "link-scheme")]),
    ("[a](JavaScript:x)", [(1, "link-scheme")]),
    ("[a](&#106;avascript:x)", [(1, "link-scheme")]),
    ("[a](java&Tab;script:x)", [(1, "link-scheme")]),
    ("[a](<java\tscript:x>)", [(1, "link-scheme")]),
    ("[a](<\x20javascript:x>)", [(1, "link-scheme")]),
    ("[a](%6Aavascript:x)", [(1, "link-scheme")]),
    ("[a](%256Aavascript:x)", [(1, "link-scheme")]),
    ("[a](javascript&colon;x)", [(1, "link-scheme")]),
    ("[a](java\\script:x)\n[a](javascript\\:x)", [(1, "link-dead"), (2, "link-scheme")]),
    ("[a](data:text/html,x)", [(1, "link-scheme")]),
    ("[a](vbscript:x)", [(1, "link-scheme")]),
    ("[a](file:///etc/passwd)", [(1, "link-scheme")]),
    ("![a](data:image/png;base64,AAAA)", [(1, "link-scheme")]),
    ("<javascript:alert(1)>", [(1, "link-scheme")]),
    ("a\n[b][c]\n\n[c]: javascript:x", [(4, "link-scheme")]),
    ("<https://example.com>\n[b][c]\n\n[c]: javascript:x", [(4, "link-scheme")]),
    ("[c]\n\n[c]: https://example.com\n[c]: javascript:x", [(4, "link-scheme")]),
    ("[unused]: data:x", [(1, "link-scheme")]),
    ("[![a](javascript:x)](https://example.com)", [(1, "link-scheme")]),
    ("![[a](javascript:x)][c]\n\n[c]: https://example.com/x.png", [(1, "link-scheme")]),
    ("[a](command:workbench.action.quit)", [(1, "link-scheme")]),
    ("Open <host:port>.", [(1, "link-scheme")]),
    ("[a](ms-msdt:x)", [(1, "link-scheme")]),
    ("[^1]: javascript:x", [(1, "link-scheme")]),
    ("[a](vscode:chat?prompt=x)", [(1, "link-scheme")]),
    ("[a](vscode://github.copilot-chat/x)", [(1, "link-scheme")]),
    ("[a](cursor://anysphere.cursor-deeplink/prompt?text=x)", [(1, "link-scheme")]),
    # links that look like others
    ("[a](https://github.com@evil.example/)", [(1, "link-disguised")]),
    ("[a](https://github.com:x@evil.example)", [(1, "link-disguised")]),
    ("[a](https://evil.example\\a.github.com/)", [(1, "link-disguised")]),
    ("a\n[https://github.com/a](https://evil.example/a)", [(2, "link-disguised")]),
    ("[`github.com/a`](https://evil.example/a)", [(1, "link-disguised")]),
    ("[github.com](https://github.com.evil.example)", [(1, "link-disguised")]),
    ("[www.a.example][b]\n\n[b]: https://evil.example", [(1, "link-disguised")]),
    ("[https://github.com](mailto:ada@evil.example)", [(1, "link-disguised")]),
    # definitions that nobody sees
    ("a\n\n[note]: https://a.example (do this)", [(3, "link-unused")]),
    ("a [//]\n\n[//]: https://a.example (do this)", [(3, "link-unused")]),
    ("`[c]`\n\n[c]: https://example.com", [(3, "link-unused")]),
    ("[c]\n\n[c]: https://a.example\n[C]: https://b.example", [(4, "link-unused")]),
    ("[^1]: foot", [(1, "link-unused")]),
    ("[c]\n\n[c]: https://a.example 'x&#8203;'", [(3, "character-invisible")]),
    ("[c](https://a.example 'x&#8203;')", [(1, "character-invisible")]),
    ("[c](https://a.example/&zwnj;)", [(1, "character-invisible")]),
    # links that lead nowhere
    ("[a](./b.md)", [(1, "link-dead")]),
    ("[a](/b)", [(1, "link-dead")]),
    ("[a](../b?c#d)", [(1, "link-dead")]),
    ("[a]()", [(1, "link-dead")]),
    ("[a](<>)", [(1, "link-dead")]),
    ("[a](#)", [(1, "link-dead")]),
    ("[a](//example.com)", [(1, "link-dead")]),
    ("[a](https:example.com)", [(1, "link-dead")]),
    ("[a](https:///x)", [(1, "link-dead")]),
    ("![a](img/x.png)", [(1, "link-dead")]),
    ("![a](vscode:extension/acme.tools)", [(1, "link-dead")]),
    ("[//]: # (a comment)\n[a]: <> (one more)", [(1, "link-dead"), (2, "link-dead")]),
    ("![a](#b)\n# b", [(1, "link-dead")]),
    ("a\n![b][c]\n\n[c]: x.png", [(4, "link-dead")]),
    ("[a](www.example.com) and\n[b]({{URL}})", [(1, "link-dead"), (2, "link-dead")]),
    ("[x][nope]", [(1, "link-dead")]),
    ("a\n![y][nope]", [(2, "link-dead")]),
    ("[![y](https://example.com/x.png)][nope]", [(1, "link-dead")]),
    ("[a](#one)\n\n# Two", [(1, "link-fragment")]),
    ("[a](#a-2)\n# A\n# A", [(1, "link-fragment")]),
    # double escapes
    ("Do this.\\n\\nThen that.", [(1, "text-escaped-twice")]),
    ("Do this.\\r\\nThen that.", [(1, "text-escaped-twice")]),
    ("Do this.\\nthen that.", [(1, "text-escaped-twice")]),
    ("Steps:\\n1. One\\n2. Two", [(1, "text-escaped-twice")]),
    ("a\\n- b\\n- c", [(1, "text-escaped-twice")]),
    ("Do this.\\\\n\\\\nThen that.", [(1, "text-escaped-twice")]),
    ("a\nb\\n", [(2, "text-escaped-twice")]),
    ("Name\\tValue", [(1, "text-escaped-twice")]),
    ("`\\n` is right and \\n is not", [(1, "text-escaped-twice")]),
    ('Say \\"hello\\" to it.', [(1, "text-escaped-twice")]),
    ("It doesn\\'t.", [(1, "text-escaped-twice")]),
    ("A caf\\u00e9", [(1, "text-escaped-twice")]),
    ("A caf\\xe9", [(1, "text-escaped-twice")]),
    ("a\nline one\\nline two\\nline three", [(2, "text-escaped-twice")]),
    ("Step 1\\nstep 2", [(1, "text-escaped-twice")]),
    ("First ask\\nand then\\nask again", [(1, "text-escaped-twice")]),
    ("a\\r\\nb", [(1, "text-escaped-twice")]),
    ("a &amp;mdash; b", [(1, "text-escaped-twice")]),
    ("a &amp;lt; b", [(1, "text-escaped-twice")]),
    ("a &amp;amp; b", [(1, "text-escaped-twice")]),
    ("Go to https:\\/\\/example.com", [(1, "text-escaped-twice")]),
    # hidden characters, in code as well
    ("a\x07", [(1, "character-control")]),
    ("a\n\x1b[31m", [(2, "character-control")]),
    ("a\rb", [(1, "character-control")]),
    ("a\u2028b", [(1, "character-control")]),
    ("a\uffff", [(1, "character-control")]),
    ("```\nif a\u202e # b\n```", [(2, "character-bidirectional")]),
    ("`\u2066a\u2069`", [(1, "character-bidirectional")]),
    ("a\u200bb", [(1, "character-invisible")]),
    ("`a\u200db`", [(1, "character-invisible")]),
    ("a\u200cb", [(1, "character-invisible")]),
    ("a\u2060b\ufeff", [(1, "character-invisible")]),
    ("a\xadb", [(1, "character-invisible")]),
    ("a\u3164b", [(1, "character-invisible")]),
    ("a\u200eb", [(1, "character-invisible")]),
    ("\u05d0\u200f\u200fb", [(1, "character-invisible")]),
    ("\u05d0" + "b" * 200 + "\u200fb", [(1, "character-invisible")]),
    ("\u06cc\u200c\u200c\u0647", [(1, "character-invisible")]),
    ("\U0001f600\u200db", [(1, "character-invisible")]),
    ("\u270c\ufe0f\ufe0f", [(1, "character-invisible")]),
    ("a\ufe0f", [(1, "character-invisible")]),
    ("\U0001f600" + "".join(map(chr, range(0xE0100, 0xE0120))), [(1, "character-invisible")]),
    ("".join(chr(0xE0000 + ord(each)) for each in "do it"), [(1, "character-invisible")]),
    ("\U0001f3f4" + "".join(chr(0xE0000 + ord(each)) for each in "usca") + "\U000e007f", [(1, "character-invisible")]),
    ("a &#8203; b\n&zwnj; c", [(1, "character-invisible"), (2, "character-invisible")]),
    ("a &#x202E; b", [(1, "character-bidirectional")]),
    *(
        (base + chr(selector), [(1, "character-invisible")])
        for base in "a\xe9\u2014\u4e2d"
        for selector in (0xFE0E, 0xFE0F)
    ),
    *((base + chr(0xFE03), [(1, "character-invisible")]) for base in "\u4e2d\u2229\U0001f600"),
    ("\U0001f600\ufe00", [(1, "character-invisible")]),
    ("1\ufe0f2\ufe0e", [(1, "character-invisible")]),
    ("\u4e2d\U000e0100\n\u4e2d\U000e0101", [(1, "character-invisible"), (2, "character-invisible")]),
    ("\u4e2d\ufe00\u56fd\ufe01", [(1, "character-invisible")]),
    ("\u4e2d\U000e0100" * 17, [(1, "character-invisible")]),
    ("\u0628\u200d\u0628", [(1, "character-invisible")]),
    ("\u0628\u0628\u200d", [(1, "character-invisible")]),
    ("\u0628\u200c\u0628", [(1, "character-invisible")]),
    ("\u0628\u0628\u200c", [(1, "character-invisible")]),
    ("\u062f\u062f\u200c" * 5 + "\u062f", [(1, "character-invisible")]),
    ("\u0915\u200d\u0937", [(1, "character-invisible")]),
    ("\u0915\u094d\u200d\u200c\u0937", [(1, "character-invisible")]),
    ("\u0915\u094d\u200d" * 5, [(1, "character-invisible")]),
    ("\u1820\u180b\u180c", [(1, "character-invisible")]),
    ("\u1820\u180b" * 5, [(1, "character-invisible")]),
    ("a\u2800b", [(1, "character-invisible")]),
    ("a\U0001d159", [(1, "character-invisible")]),
    ("a\U0001fffe\nb\U0010ffff", [(1, "character-control"), (2, "character-control")]),
    ("\ue0b0 main", [(1, "character-private")]),
    ("\U000f0000", [(1, "character-private")]),
    # what would be parsed by one reader and not by another
    (">" * 50 + " a", [(1, "nesting-too-deep")]),
    ("[" * 30 + "a" + "]" * 30 + "(javascript:x)", [(1, "nesting-too-deep")]),
]


@pytest.mark.promise("content.check")
@pytest.mark.parametrize(("text", "expected"), FAULTY)
def test_a_faulty_text_is_refused_at_its_line(text: str, expected: list[tuple[int, str]]) -> None:
    assert [(fault.line, fault.rule.value) for fault in faults_of_markdown(text)] == expected


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("a <b>c", "write this in Markdown"),
        ('<img src="https://example.com/x.png">', "write an image as `![what it shows](https://…)`"),
        ('a <IMG src="x.png">', "write an image as `![what it shows](https://…)`"),
        ("[//]: # (a comment)", "link to something, or remove this; what only the assistant is to read"),
        ("[a](b.md)", "write the whole https:// address instead of 'b.md'"),
    ],
)
def test_a_remedy_speaks_of_what_was_most_likely_meant(text: str, remedy: str) -> None:
    assert faults_of_markdown(text)[0].remedy.startswith(remedy)


SOUND = [
    # HTML
    "`<b>`, \\<b>, &lt;b>, a < b, 3<4, <-, <3 and ->",
    "```html\n<b>\n```\n\n    <div>\n\nText",
    "``a `<b>` c``",
    "<https://example.com/a?b=c&d> and <ada@example.com>",
    # blocks and fences
    "```\n::: done-when\n```\n\n    ::: tip",
    "a: b, :: done-when and : done-when\n: done-when",
    "text ::: done-when and \\::: done-when",
    "::: tip\nanother's\n:::",
    "- ```\n  a\n  ```\n\n> ~~~\n> a\n> ~~~~",
    "1. ```bash\n   a\n\n   b\n   ```",
    *(
        f"```{info}\na\n```"
        for info in (
            " js ",
            'js title="a b.js"',
            "js {1,3-5} a='b'",
            "{.python .wide}",
            "bash{{exec}}",
            "rust,ignore a=1",
        )
    ),
    # links
    "[a](https://example.com) [b](HTTP://localhost:8080/x) [c](mailto:ada@example.com)",
    "[a](https://example.com/javascript:x) and javascript:alert(1) in words",
    "![a](https://example.com/x.png)",
    "[a](vscode-insiders:mcp/install?%7B%22name%22%7D) [b](cursor:extension/acme.tools)",
    "[https://a.example/b](https://a.example/c) [a.example/b](http://www.a.example) [github.com](https://docs.github.com)",
    "[Node.js](https://nodejs.org) [socket.io](https://example.com) [src/a.py](https://example.com) [a/b](https://c.example)",
    "[At https://a.example](https://b.example) <https://a.example/@b> [c](https://d.example/@e?f=g@h)",
    "[a](<https://example.com/b c>) `<svg/` \\<svg/onload> a <= b < c <1 << x </ y",
    "[a](vscode:extension/acme.tools) and [b](cursor://anysphere.cursor-deeplink/mcp/install?name=a)",
    "Said[^1] so.\n\n[^1]: elsewhere",
    "[a][b] and [c] and [d][] and [e]\n\n[b]: https://example.com\n[E]: https://example.com 'f'",
    "a[i][j] and [0][1] and x.[^1][^2] and \\[a][b] and `[a][b]` and [ ][ ]",
    "[x](y and - [ ] a task and a[0] (b)\n\n`[a](b.md)`",
    "[a](#set-up-c) and [b](#set-up-c-1)\n\n# Set up `C`!\n\n## Set up *C*",
    "[a](#%C3%BCber)\n\n\u00dcber\n====",
    "> [!NOTE]\n> An alert[^1].",
    # no double escapes
    "Go to C:\\new, C:\\\\temp\\\\node, \\\\server\\tools\\n and .\\node_modules\\.bin\\n.",
    "%APPDATA%\\npm\\T and ~\\notes and src\\new\\test",
    "Go to src\\new folder, path\\to\\name x, bin\\x64 y, lib\\x86\\a and src\\nginx z or src\\note",
    "Let x\\nleq y and $a\\neq b$ and &amp;foo; \\xyz \\nu b",
    "$\\nabla$ \\theta, \\nu and \\Rightarrow, $\\nRightarrow$, $x,\\nu$",
    "`\\n` and ``a\\tb`` and `\\u00e9`",
    '```json\n"a\\n\\"b\\""\n```',
    '[a](https://example.com "say \\"b\\"")',
    'a 6\\" pipe',
    "AT&amp;T and &lt;b&gt; and &amp;c",
    "a\\*b\\_c\\\\d",
    # characters that a script, an emoji or a flag needs
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "\u0915\u094d\u200d\u0937 \u0dc1\u0dca\u200d\u0dbb\u0dd3",
    "\u0e01\u200b\u0e02",
    "\U0001f469\u200d\U0001f4bb \U0001f469\U0001f3fd\u200d\U0001f680",
    "\u2764\ufe0f\u200d\U0001f525 \U0001f3f3\ufe0f\u200d\u26a7\ufe0f",
    "\u2764\ufe0f 1\ufe0f\u20e3 \u2139\ufe0f \u2194\ufe0f \xa9\ufe0f \U0001f1e9\U0001f1ea",
    "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "\u8fbb\U000e0100\u4e2d \u908a\U000e0100",
    "\u4e2d\U000e0100" * 16,
    "\u5d1c\ufe00 \u2229\ufe00",
    "\u203c\ufe0f \u2049\ufe0f \u2611\ufe0e \u3030\ufe0f \xae\ufe0e \u2b05\ufe0f #\ufe0f\u20e3",
    "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645\u200c\u0634\u0627\u0646",
    "\u0647\u200d. \u06a9\u062a\u0627\u0628\u200c\u0647\u0627\u06cc",
    "\u09b0\u200d\u09cd\u09af \u0d05\u0d35\u0d28\u0d4d\u200d \u0c2b\u0c4d\u200c\u0c2b",
    "\u1794\u200c\u17ca\u17b8 \u1820\u180b",
    "\u05d0\u05d1 C++\u200e \u05d2 and \u0639 (x)\u200f",
    "a\tb\xa0c \u3000 caf\u00e9 cafe\u0301 \u2026 \u201ca\u201d \U0001fae9",
]


@pytest.mark.parametrize("text", SOUND)
def test_a_sound_text_passes(text: str) -> None:
    assert faults_of_markdown(text) == ()


def test_titles_and_descriptions_are_plain_text() -> None:
    assert faults_of_title("Escape \\n, &amp;amp; C:\\n, a < b, 3<4, [a] (b), `<b>` and `[a](b)`, data: a table") == ()
    assert [fault.rule for fault in faults_of_title("a\u200bb\u202e")] == [
        "character-bidirectional",
        "character-invisible",
    ]
    assert faults_of_description("Use `\\n`, `<b>`, [a], C:\\new.") == ()
    faults = faults_of_description("One.\nTwo.\\nThree.\u200b")
    assert [(fault.line, fault.rule) for fault in faults] == [(2, "character-invisible"), (2, "text-escaped-twice")]


@pytest.mark.parametrize(
    ("plain", "rule"),
    [
        ("a <b>", "html-raw"),
        ("a </b", "html-raw"),
        ("Use Vec<T>", "html-raw"),
        ("a <!-- b -->", "html-raw"),
        ("a <?php", "html-raw"),
        ("a [b](https://c.example)", "link-dead"),
        ("a ![b](c)", "link-dead"),
        ("a JavaScript:b", "link-scheme"),
        ("a data:text/html,b", "link-scheme"),
        ("a data:,b", "link-scheme"),
        ("a file:///b", "link-scheme"),
        ("a&#8203;b", "character-invisible"),
        ("a&shy;b", "character-invisible"),
    ],
)
def test_titles_and_descriptions_hold_no_markup_outside_of_backticks(plain: str, rule: str) -> None:
    assert [fault.rule for fault in faults_of_title(plain)] == [rule]
    assert [(fault.line, fault.rule) for fault in faults_of_description(f"A\n{plain}")] == [(2, rule)]
    assert faults_of_title(f"`{plain}`") == ()


@pytest.mark.parametrize(
    ("text", "is_nothing"),
    [
        ("[a]: https://a.example", True),
        ("[](https://a.example)", True),
        ("&nbsp;\n\n***\n\n#\n\n>\n\n- \n\n```\n \n```\n\u3000", True),
        ("![](https://a.example/b.png)", False),
        ("    a", False),
        ("***\n\n- > `a`", False),
        ("&nbsp;a", False),
    ],
)
def test_content_of_which_nothing_would_be_seen_is_refused(text: str, is_nothing: bool) -> None:
    whole = manuscript("one")
    faulty = replace(whole, steps=(replace(whole.steps[0], content=text),))
    told: set[tuple[str, str]] = set()
    try:
        check_manuscript(faulty)
    except ContentRejected as refusal:
        told = {(each.file, each.rule) for each in refusal.findings}
    assert (("one/content", "step-empty") in told) is is_nothing


def test_a_fence_of_many_marks_is_named_by_their_number() -> None:
    (fault,) = faults_of_markdown("`" * 12_000 + "\na")
    assert fault.remedy == "close this code fence with a line of 12,000 of ` and nothing else"


def test_a_remedy_says_where_an_invisible_character_is_and_what_a_link_leads_to() -> None:
    (hidden,) = faults_of_markdown("Install the\u200b client")
    assert hidden.remedy == "remove the invisible U+200B (zero width space) after 'Install the'"
    (link,) = faults_of_markdown("[a](notes/setup.md)")
    assert link.remedy == (
        "write the whole https:// address instead of 'notes/setup.md': other files are not delivered; "
        "a file of the user's own goes in backticks"
    )


UNSEEN = ("Cc", "Cf", "Co", "Zl", "Zp")
# Formats by their category, and seen: numbers and verses are enclosed by them.
ENCLOSING = [*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD]


def test_every_control_format_and_private_character_is_refused_on_its_own() -> None:
    unseen = {code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in UNSEEN}
    passed = {code for code in unseen if not [*hidden_characters(f"a{chr(code)}b")]}
    assert passed == unseen & {*b"\t\n", *ENCLOSING}  # not every Python knows each of them


# ------------------------------------------------------------------------------------------------ properties

PIECES = ["<", ">", "[", "]", "(", ")", "![", "](", "`", "```\n", "~~~\n", "> ", "- ", "# ", "\n", "\n\n", "    "]
PIECES += ["\\", "\\n", "&amp;", "&#106;", "javascript:", "data:", "https://a", "#a", "[a]: ", "<!--", "-->", "<div>"]
PIECES += ["</a", ":::", "\t", "::: done-when\n", "\u200b", "\u200d", "\ufe0f", "\u202e", "\U000e0041", "\u05d0"]
PIECES += ["\U0001f600", "*", '"', "'", "\r", "\x00"]
anything = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=40).map("".join)


@settings(max_examples=1_500, deadline=None)
@given(anything)
@example("![" * 40 + "a" + "](#)" * 40)
@example("[a]:\n\n[a]: #\n[a]")
def test_any_text_gives_faults_that_point_at_its_lines(text: str) -> None:
    for fault in faults_of_markdown(text):
        assert 1 <= fault.line <= text.count("\n") + 1
        assert fault.remedy.isprintable()
        assert fault.more >= 0


words = st.text("abcdefghijklmnopqrstuvwxyzABCDEäöüß日本語привет0123456789", min_size=1, max_size=10)
sentences = st.lists(words, min_size=1, max_size=12).map(lambda several: " ".join(several) + ".")
prose = st.one_of(
    sentences,
    sentences.map(lambda text: f"# {text}"),
    sentences.map(lambda text: f"- {text}\n- **{text}**"),
    sentences.map(lambda text: f"> {text}"),
    sentences.map(lambda text: f"```bash\necho '{text}\\n' <a> # [b](c)\n```"),
    sentences.map(lambda text: f"Run `{text} <x> \\n`, see [{text}](https://example.com/{len(text)})."),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(prose, min_size=1, max_size=8).map("\n\n".join))
def test_ordinary_prose_passes(text: str) -> None:
    assert faults_of_markdown(text) == ()


@settings(max_examples=300, deadline=None)
@given(
    before=st.lists(prose, max_size=4).map("\n\n".join),
    after=st.lists(prose, max_size=4).map("\n\n".join),
    faulty=st.sampled_from([case for case in FAULTY if len(case[1]) == 1 and "fence" not in case[1][0][1]]),
)
def test_a_fault_is_found_wherever_it_stands_in_prose(
    before: str, after: str, faulty: tuple[str, list[tuple[int, str]]]
) -> None:
    text, [(line, rule)] = faulty
    offset = before.count("\n") + 3
    found = {(fault.line, fault.rule.value) for fault in faults_of_markdown(f"{before}\n\n\n{text}\n\n{after}")}
    assert (line + offset, rule) in found


def test_of_many_faults_a_few_are_listed_and_the_last_stands_for_the_others() -> None:
    faults = faults_of_markdown("a\u200b\n" * 1_000)
    assert [fault.line for fault in faults] == list(range(1, MAX_LISTED_IN_A_FILE + 1))
    assert [fault.more for fault in faults] == [0] * (MAX_LISTED_IN_A_FILE - 1) + [1_000 - MAX_LISTED_IN_A_FILE]


@pytest.mark.parametrize(
    "piece",
    [
        "[a](",
        "[](",
        "![",
        "[",
        "[" * 19 + "]" * 19 + "(x)",
        "<a ",
        "<a>",
        "\\n",
        "\\",
        '\\"',
        "`a``b",
        "a\u200e",
        "&#8203;",
        "<a/",
        "[a][b]",
        "[a]\n\n[a]: https://b.example\n\n",
        "[-](https://b.example)",
        "[" + "-" * 900 + "](https://b.example)",
        " a\\nb",
        "\u062f\u062f\u200c",
        "\u4e2d\U000e0100",
        "```js a=b",
    ],
)
def test_the_time_grows_with_the_length_of_a_text_and_no_faster(piece: str) -> None:
    def seconds(length: int) -> float:
        text = (piece * length)[:length] + "<]("
        began = time.process_time()
        faults_of_markdown.__wrapped__(text)
        return time.process_time() - began

    # Twice for quadratic: eight times as long would then take sixty-four times as long. The least of several, for the
    # machine may be busy; and a floor, below which a clock says little.
    short, long = (max(0.002, min(seconds(length) for _ in range(3))) for length in (1_900, 15_200))
    assert long < 30 * short


# ---------------------------------------------------------------------------------- the same check everywhere


@pytest.fixture(params=["memory", "postgres"])
def world(request: pytest.FixtureRequest) -> World:
    return in_memory() if request.param == "memory" else on_postgres(request.getfixturevalue("database"))


def faulty_manuscript() -> Manuscript:
    sound = manuscript("one", "two")
    first, second = sound.steps
    return replace(
        sound,
        title="The\u200b tour",
        description="Shows.\\n\\nAround.",
        steps=(
            replace(first, title="A\u202eB", content="# A\n\n<b>"),
            replace(second, assistant_notes="x\n[a](b.md)", workspace_actions="\ue000", done_when="```\na"),
        ),
    )


PLACES = [
    ("description", 1, "text-escaped-twice"),
    ("one/content", 3, "html-raw"),
    ("one/title", 1, "character-bidirectional"),
    ("title", 1, "character-invisible"),
    ("two/assistant_notes", 2, "link-dead"),
    ("two/done_when", 1, "fence-unclosed"),
    ("two/workspace_actions", 1, "character-private"),
]


@pytest.mark.promise("content.check")
@pytest.mark.parametrize("publish", [None, PublishPolicy.KEEP])
async def test_a_manuscript_from_anywhere_is_refused_by_the_same_check_and_nothing_is_stored(
    world: World, publish: PublishPolicy | None
) -> None:
    await world.server()
    with pytest.raises(ContentRejected) as refusal:
        await world.authoring.push("acme", faulty_manuscript(), publish=publish, servers=[], by="author")
    assert [(each.file, each.line, each.rule) for each in refusal.value.findings] == PLACES
    stored = await world.authoring.push("acme", manuscript("one", "two"), publish=publish, servers=[], by="author")
    assert stored.version == 1
    assert not stored.is_unchanged


def test_the_same_texts_in_a_folder_are_refused_by_the_same_rules_with_the_same_remedies(tmp_path: Path) -> None:
    faulty = faulty_manuscript()
    (tmp_path / "walkthrough.yaml").write_text(
        f"schema: 1\nkey: tour\ntitle: {faulty.title}\ndescription: {faulty.description}\ntype: course\n"
    )
    names = {"assistant-notes": "assistant_notes", "workspace-actions": "workspace_actions", "done-when": "done_when"}
    for step in faulty.steps:
        blocks = [
            f"::: {block}\n{text}\n:::\n"
            for block, name in names.items()
            if (text := getattr(step, name)) and "```" not in text
        ]
        lines = ["---", f"title: {step.title}", "---", *blocks, step.content, step.done_when or ""]
        (tmp_path / f"{step.key}.md").write_text("\n".join(lines))
    with pytest.raises(ContentRejected) as of_folder:
        read_folder(tmp_path)
    with pytest.raises(ContentRejected) as of_manuscript:
        check_manuscript(faulty)
    told, expected = (
        sorted((each.rule, each.remedy) for each in refusal.value.findings) for refusal in (of_folder, of_manuscript)
    )
    assert told == expected
    assert {Rule(rule) for rule, _ in told} == {Rule(rule) for _, _, rule in PLACES}


def test_checking_the_same_walkthrough_again_costs_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"[a](https://example.com/{number}) `b`\n\n" for number in range(300))
    steps = tuple(replace(step, content=f"{text}{step.key}") for step in manuscript(*map(str, range(10))).steps)
    checked = replace(manuscript("one"), steps=steps)
    check_manuscript(checked)
    monkeypatch.setattr("adapters.content.check._faults_of_markdown", lambda text: pytest.fail("parsed again"))
    check_manuscript(checked)


def test_a_finding_of_a_folder_points_at_the_line_of_the_file_across_blocks(tmp_path: Path) -> None:
    (tmp_path / "walkthrough.yaml").write_text("schema: 1\nkey: a\ntitle: A\ndescription: A.\ntype: course\n")
    text = "---\ntitle: A\n---\n\none\n\n::: done-when\n\ntwo\n<i>\n:::\n\n\nthree\n<b>\n"
    text += "::: assistant-notes\n<u>\n\n:::\n<s>\n"
    (tmp_path / "a.md").write_text(text)
    with pytest.raises(ContentRejected) as refusal:
        read_folder(tmp_path)
    lines = text.split("\n")
    assert [lines[each.line - 1] for each in refusal.value.findings] == ["<i>", "<b>", "<u>", "<s>"]
    assert all(re.fullmatch(r"a\.md:\d+: html-raw: .+", str(each)) for each in refusal.value.findings)
