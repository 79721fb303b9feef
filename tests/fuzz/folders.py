"""Walkthrough folders that are nearly right: real ones, broken where Hypothesis says."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

import entrypoints
from tests.fuzz.choices import Choices

Files = Mapping[str, bytes]


@dataclass
class Folder:
    """What is in a folder. A value that begins with `kind:` is no file but what it says, see `write`."""

    files: dict[str, bytes]

    def __repr__(self) -> str:
        return "Folder(" + ", ".join(f"{name!r}: {data[:1500]!r}" for name, data in self.files.items()) + ")"

    def write(self, at: Path) -> None:
        """Makes it; a name that the file system cannot have is left out."""
        for name, data in self.files.items():
            path = at / name
            kind, _, target = data.partition(b":")
            with suppress(OSError, ValueError):
                match kind:
                    case b"kind link":
                        path.symlink_to(os.fsdecode(target))
                    case b"kind folder":
                        path.mkdir()
                    case b"kind pipe":
                        os.mkfifo(path)
                    case _:
                        path.write_bytes(data)


_MANY = 10_000
_LINES = [
    "", " ", "\t", "---", "--- ", " ---", "...", ":::", "::: done-when", "::: assistant-notes",
    "::: workspace-actions", ":::done-when", "::: x", " :::", "    :::", ":::: done-when", "> :::", "- :::", "```",
    "````", "~~~", "    ```", "```x", "``` `", "# Heading", "#", "Heading", "===", "<!--", "-->", "<div>", "</div>",
    "<script>alert(1)</script>", "<b>b</b>", "<https://example.com>", "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))", "[x](data:text/html,x)", "[x]()", "[x](&#106;avascript:x)", "[x](./there.md)",
    "![x](there.png)", "[x](//host/y)", "[x](#heading)", "[a]: vbscript:x", "[a]: https://example.com", "[a][b]",
    "\\n", "a\\nb\\nc", "C:\\new\\table", "\\u00e9", "&amp;lt;", "&lt;", "&#8203;", "\u200b", "a\u200bb",
    "\u202eabc", "\U000e0041", "\ufeff", "\x7f", "\x0c", "\x1b[31m", "\x85", "\u2028", "\xa0", "\x00", "title: no",
    "title: 1.0", "title: 2024-01-01", "title: ''", "title:", "key: a b", "key: é", "minutes: 1e3", "minutes: 0",
    "minutes: 99999999999", "delivery: verbatim", "delivery: loud", "schema: 2", "type: course", "x: y", "? a",
    ": b", "- a", "a: &a b", "b: *a", "<<: *a", "!!python/object:os.system x", "title: [a, b]", "title: {a: b}",
    "title: |", "  text", "title: \"\\UFFFFFFFF\"", "title: \"\\ud800\"", "%YAML 1.1", "# comment",
    "| a | b |\n|---|---|\n| 1 | 2 |", "* * *", "1. a", "- [ ] a", "  - b", "> quote", "> > > a", "a  \nb",
    "$\\nabla$", "`a", "`` a ` b ``", "**a", "\\", "a|b", "----- end 0123456789abcdef -----", "## What now",
]  # fmt: skip
# What readers of Markdown and YAML are slow with, and what a step may just about hold, or not.
_SLOW = [
    "[" * _MANY, "![" * _MANY, "[a](" * _MANY, "*a " * _MANY, "**a" * _MANY, "_a" * _MANY, "`" * _MANY,
    "> " * _MANY, "- " * _MANY, "<" * _MANY, "<!--" * _MANY, "<a " * _MANY, "&" * _MANY, "\\" * _MANY, "|" * _MANY,
    "(" * _MANY, "a\n" * _MANY, "# a\n" * _MANY, "[a]: b\n" * 10_000, "[a" * _MANY + "]" * _MANY, "::: x\n" * _MANY,
    "```\n" * _MANY, "    " * _MANY, "\t" * _MANY, "\n" * _MANY, "https://a.b/" * 10_000, "<a@b>" * _MANY,
    "`a" * _MANY, "![a](b)" * _MANY, "".join("`" * n + " " for n in range(1, 500)), "x" * 19_000,
    "é" * 9_500, "x" * 262_144,
    "é" * 20_000, "😀" * 10_000, "1. " * _MANY, "- a\n" * _MANY, "  " * 5 + "- a\n" * _MANY, "{" * _MANY,
    "a: " * _MANY, "&a " * _MANY, "? " * _MANY, "#" * _MANY, "\\n" * _MANY, "&amp;" * _MANY, "[x](y)" * _MANY,
    "**" * _MANY, "*" * _MANY, "~" * _MANY, "<b>" * _MANY, '"' * _MANY,
]  # fmt: skip
_PARTS = [
    b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00", b"\r", b"\r\n", b"\n", b"\xef\xbb\xbf", b"\xe2\x80\x8b",
    b"\xe2\x80\xae", b"\xf3\xa0\x81\x81", b"\x1b", b":::", b"```", b"---\n", b"<", b"](", b"[", b"\\", b"`", b"*",
    b"&", b"\t", b"'", b'"',
]  # fmt: skip
_NAMES = [
    "README.md", "readme.MD", ".hidden.md", "a.md", "A.MD", "1.md", "01-a.md", "1-a.md", "é.md", "e\u0301.md",
    " .md", "-.md", "a b.md", "\u202e.md", "\n.md", "\udcff.md", ".md", "a.markdown", "x" * 250 + ".md", "９.md",
    "9" * 200 + ".md", "\x1b.md", "٣.md", "²-a.md", "a.md.md", "a\u200b.md", "con.md", "::: .md", "02.md",
    "walkthrough.yml", "notes.txt",
]  # fmt: skip
_OUTSIDE = Path(entrypoints.__path__[0], "walkthroughs", "01-take-your-first-walkthrough", "01-you-are-connected.md")
_OTHERS = [
    *[b"kind link:" + bytes(_OUTSIDE)] * 3,
    b"kind link:walkthrough.yaml", b"kind link:/etc/passwd", b"kind link:../x", b"kind link:nowhere",
    b"kind folder:", b"kind pipe:", b"kind link:.", b"kind link:/dev/zero", b"", b"\n", b"# T\n\nText.\n",
    b"---\n---\n", b"---\n",
]  # fmt: skip
_YAML_VALUES = [
    "no", "1.0", "~", "", "''", "'\\n'", "a: b", "[", "é", "\u202e", "x" * 5000, "|", "0x1", "1:30", "*a", "!!str a",
]  # fmt: skip
_bytes = st.binary(min_size=1, max_size=20)


def folders(sources: Sequence[Files]) -> st.SearchStrategy[Folder]:
    """Folders with a few steps of a source each; a few of them are whole."""

    @st.composite
    def build(draw: st.DrawFn) -> Folder:
        choose = Choices(draw)
        source = choose.of(sources)
        steps = [name for name in source if name != "walkthrough.yaml"]
        kept = {"walkthrough.yaml", *(choose.of(steps) for _ in range(choose.of([1, 1, 2, 3])))}
        files = {name: data for name, data in source.items() if name in kept}
        for _ in range(choose.of([0, 1, 1, 1, 2, 3])):
            _break(choose, files)
        return Folder(files)

    return build()


def _break(choose: Choices, files: dict[str, bytes]) -> None:
    names = list(files)
    if not names:
        return
    name = choose.of(names)
    data = files[name]
    lines = data.split(b"\n")
    at = choose.below(len(lines))
    kind = choose.below(20)
    match kind:
        case 0 | 1 | 2 | 3 | 4:
            lines.insert(at, choose.of(_LINES).encode())
        case 5:
            del lines[at]
        case 6:
            lines.insert(choose.below(len(lines)), lines[at])
        case 7:
            other = choose.below(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        case 8:
            lines[at] = choose.of([b" ", b"    ", b"\t", b"> ", b"- ", b"# ", b"::: "]) + lines[at]
        case 9:
            lines[at] = lines[at] + b" " + choose.of(_LINES).encode()
        case 10:
            lines.insert(at, choose.of(_SLOW).encode())
        case 11 if name == "walkthrough.yaml" or choose.below(2):
            field, colon, _ = lines[at].partition(b":")
            value = choose.of(_YAML_VALUES)
            lines[at] = field + colon + b" " + value.encode()
        case 12 | 13 | 14:
            place = choose.below(len(data) + 1)
            match choose.below(4):
                case 0:
                    files[name] = data[:place] + choose.of(_PARTS) + data[place:]
                case 1:
                    files[name] = data[:place] + data[place + choose.below(40) :]
                case 2:
                    files[name] = data[:place]
                case _:
                    files[name] = data[:place] + choose.draw(_bytes) + data[place:]
            return
        case 15:
            recode = choose.of(["utf-16", "utf-16-le", "latin-1", "utf-8-sig", "cp037"])
            files[name] = data.decode(errors="replace").encode(recode, "replace")
            return
        case 16:
            files[choose.of(_NAMES)] = files.pop(name)
            return
        case 17:
            files[choose.of([name, choose.of(_NAMES)])] = choose.of(_OTHERS)
            return
        case 18:
            del files[name]
            return
        case _:
            files[name] = data.replace(b"\n", choose.of([b"\r\n", b"\r", b"\n\n", b"\n\r", b" \n"]))
            return
    files[name] = b"\n".join(lines)
