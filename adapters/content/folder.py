"""Reads a walkthrough from the folder in which its author keeps it.

    connect-your-client/
    ├── walkthrough.yaml      schema: 1, key, title, description and type, all of them required
    ├── 01-install.md         a step; its key is `install` unless its front matter says otherwise
    ├── 02-connect.md         the next step
    └── README.md             for people who browse the folder; not a step

A step is Markdown: what stands outside its blocks is for the user, word for word.

    ---
    title: Install the client      front matter: key, title, minutes, delivery; all of them optional
    ---
    # Install
    Run the installer.
    ::: assistant-notes            also `workspace-actions` and `done-when`, each at most once
    On Windows, ask whether WSL is wanted.
    :::

Which lines open and close a block is decided by a Markdown parser, so that `:::` in a code fence, an indented
code block, HTML, a list item or a quote is content. Everything wrong with a folder is found in one reading.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from markdown_it.rules_block import StateBlock
from markdown_it.token import Token
from markdown_it.utils import EnvType

from adapters.content.check import (
    NOTHING_TO_READ,
    TOO_DEEP,
    faults_of_description,
    faults_of_markdown,
    faults_of_title,
    is_markup,
    shows_nothing,
    unclosed,
)
from adapters.content.fields import Fields, read_fields
from adapters.content.findings import Fault, Findings, Rule, printable
from adapters.content.markdown import (
    BLOCKS,
    MAX_HEADING_CHARS,
    MAX_NESTING,
    Markdown,
    first_line,
    is_closed,
    plain_text,
)
from adapters.content.schema import SCHEMA, STEP_SCHEMA, WALKTHROUGH_SCHEMA
from domain.errors import InvalidValue
from domain.tenancy import key
from domain.walkthrough import MAX_STEPS, Delivery, Manuscript, StepText, WalkthroughType, title

WALKTHROUGH_FILE = "walkthrough.yaml"
# Far above any honest file (a step is delivered twice over, and 40,000 bytes are a result), and small enough that the
# slowest input there is takes about a second.
MAX_WALKTHROUGH_BYTES = 64 * 1024
MAX_STEP_BYTES = 64 * 1024

_A = TypeVar("_A")
_B = TypeVar("_B")


def read_folder(folder: Path) -> Manuscript:
    """Reads `walkthrough.yaml` and the steps beside it, and checks all texts (`adapters.content.check`).

    Steps are the files whose name ends in `.md` (or `.MD`), except `README.md` and names that begin with a dot;
    all other files, and what is in sub-folders, are left alone. They come in the order of their names, where a
    run of digits counts as a number: `step2.md` is before `step10.md`. Names that differ only in leading zeros
    or in case (`1-a.md`, `01-a.md`) come in the order of their characters.

    Texts are taken as written, with these exceptions: CRLF and CR become LF, a byte order mark is dropped, and
    so are blank lines around a text. Content that goes on after a block is joined to what was before it by one
    blank line. A step without a title is named by its first heading, which stays in the content.

    Raises:
        ContentRejected: with everything that is wrong, in the order of file and line; where a rule is broken again
            and again, with some of it. Files are named relative to the folder; `.` is the folder itself.
    """
    findings = Findings()
    manuscript = _manuscript(folder, findings)
    if manuscript is None or findings:
        raise findings.rejection()
    return manuscript


def read_step(file: str, text: str) -> StepText:
    """Reads one step as `read_folder` does, given its file's name and text (lines end in LF, no byte order mark).

    Raises:
        ContentRejected: with everything that is wrong.
    """
    findings = Findings()
    step = _step_of(text, _Source(file, findings), {})
    if step is None or findings:
        raise findings.rejection()
    return step


@dataclass(frozen=True, slots=True)
class _Source:
    """One file, and where its findings are put."""

    file: str
    findings: Findings

    def reject(self, line: int, rule: Rule, remedy: str) -> None:
        # A file name may hold anything but a slash, and a finding is one line that can be printed.
        self.findings.add(printable(self.file), Fault(line, rule, remedy))

    def take(self, faults: Iterable[Fault], lines: Sequence[int]) -> None:
        """Takes the faults of a text; `lines` are the file's lines that its lines come from."""
        for fault in faults:
            self.findings.add(printable(self.file), replace(fault, line=lines[fault.line - 1]))

    def take_at(self, line: int, faults: Iterable[Fault]) -> None:
        """Takes the faults of a field's value, which may go on below its line."""
        for fault in faults:
            self.findings.add(printable(self.file), replace(fault, line=line))

    def checked(self, line: int, rule: Rule, make: Callable[[_A], _B], value: _A, hint: str = "") -> _B | None:
        """What `make` makes of the value; where the domain refuses it, a finding and None."""
        try:
            return make(value)
        except InvalidValue as error:
            self.reject(line, rule, f"{error}{hint}")
            return None


@dataclass(frozen=True, slots=True)
class _Passage:
    """A text, and for each of its lines the line of the file that it comes from."""

    text: str
    lines: Sequence[int]


def _manuscript(folder: Path, findings: Findings) -> Manuscript | None:
    whole = _Source(".", findings)
    try:
        root = folder.resolve(strict=True)
        names = [path.name for path in root.iterdir()]
    except (OSError, ValueError, RuntimeError) as error:
        whole.reject(1, Rule.FOLDER_UNREADABLE, f"name a folder that can be read ({_reason(error)})")
        return None

    files = sorted(filter(is_step, names), key=_natural_order)
    if not 1 <= len(files) <= MAX_STEPS:
        remedy = f"a walkthrough has 1 to {MAX_STEPS} steps, each in a Markdown file (*.md); here are {len(files)}"
        whole.reject(1, Rule.STEP_COUNT, remedy)
        files = []  # 501 files or more are not read only to be refused
    keys: dict[str, str] = {}
    steps = [_step(root, _Source(file, findings), keys) for file in files]

    source = _Source(WALKTHROUGH_FILE, findings)
    if WALKTHROUGH_FILE not in names:
        source.reject(1, Rule.WALKTHROUGH_MISSING, f"add a {WALKTHROUGH_FILE} that begins with `schema: {SCHEMA}`")
        return None
    text = _read(root, source, MAX_WALKTHROUGH_BYTES)
    if text is None:
        return None
    fields = read_fields(text, 1, WALKTHROUGH_SCHEMA, Rule.FIELD_UNKNOWN, source.reject)
    for name, faults_of in (("title", faults_of_title), ("description", faults_of_description)):
        if field := fields.get(name):
            source.take_at(field.line, faults_of(field.value))
    if findings:
        return None
    values = {name: field.value for name, field in fields.items() if field}
    sound = tuple(step for step in steps if step is not None)
    # Its parts are sound: this is for rules about the whole, should the domain get one that is not checked above.
    return source.checked(1, Rule.WALKTHROUGH_INVALID, lambda values: _made_of(values, sound), values)


def _made_of(values: Mapping[str, str], steps: tuple[StepText, ...]) -> Manuscript:
    return Manuscript(values["key"], values["title"], values["description"], WalkthroughType(values["type"]), steps)


def _step(root: Path, source: _Source, keys: dict[str, str]) -> StepText | None:
    """One step. `keys` says which file has which key so far."""
    text = _read(root, source, MAX_STEP_BYTES)
    return None if text is None else _step_of(text, source, keys)


def _step_of(text: str, source: _Source, keys: dict[str, str]) -> StepText | None:
    lines = text.split("\n")
    fields = _take_front_matter(source, lines)
    body = _body(source, lines)
    is_empty = shows_nothing(body.content.text)
    if is_empty:
        source.reject(1, Rule.STEP_EMPTY, NOTHING_TO_READ)

    own_key = _value(fields, "key")
    if "key" not in fields:
        hint = "; or set `key:` in the front matter"
        own_key = source.checked(1, Rule.KEY_FROM_FILE_NAME, key, _key_from(source.file), hint)
    if own_key is not None and (other := keys.setdefault(own_key, source.file)) != source.file:
        field = fields.get("key")
        remedy = f"set another `key:` in the front matter: {printable(other)} has the key {own_key!r} already"
        source.reject(field.line if field else 1, Rule.KEY_TWICE, remedy)

    told: set[tuple[int, Rule]] = set()
    for passage in (body.content, *body.blocks.values()):
        faults = faults_of_markdown(passage.text)
        source.take(faults, passage.lines)
        told |= {(passage.lines[fault.line - 1], fault.rule) for fault in faults}
    own_title = _value(fields, "title")
    title_line = field.line if (field := fields.get("title")) else 1
    if "title" not in fields and body.heading:
        title_line, heading = body.heading
        hint = "; shorten the heading, or set `title:` in the front matter"
        own_title = source.checked(title_line, Rule.TITLE_FROM_HEADING, title, heading, hint)
    elif "title" not in fields and not is_empty:
        remedy = "begin with a heading such as `# Install the client`, or set `title:` in the front matter"
        source.reject(1, Rule.TITLE_MISSING, remedy)
    if own_title is not None:
        # What is wrong with a heading was mostly told already, as content.
        untold = [fault for fault in faults_of_title(own_title) if (title_line, fault.rule) not in told]
        source.take_at(title_line, untold)
    if is_empty:
        return None

    def step(content: str) -> StepText:
        texts = {name: passage.text for name, passage in body.blocks.items()}
        return StepText(
            # For a key or title that was refused another stands in, so that the size is judged all the same.
            key=own_key or "refused",
            title=own_title or "refused",
            content=content,
            assistant_notes=texts.get("assistant-notes"),
            workspace_actions=texts.get("workspace-actions"),
            done_when=texts.get("done-when"),
            delivery=Delivery(_value(fields, "delivery") or Delivery.EXPLAIN),
            estimated_minutes=_value(fields, "minutes"),
        )

    # Everything else in it was checked above.
    return source.checked(1, Rule.STEP_TOO_LARGE, step, body.content.text)


def _value(fields: Fields, name: str) -> Any:
    field = fields.get(name)
    return None if field is None else field.value


# ------------------------------------------------------------------------------------------- files and names


def is_step(name: str) -> bool:
    """Whether a file of this name is a step."""
    lowered = name.lower()
    return lowered.endswith(".md") and not lowered.startswith(".") and lowered != "readme.md"


def _natural_order(name: str) -> tuple[list[str | int], str]:
    # Splitting at digits gives text and numbers in turn, so that like is only ever compared with like.
    parts = re.split("([0-9]+)", Path(name).stem.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name


def _key_from(file: str) -> str:
    """`01-connect-your-client.md` → `connect-your-client`; `step1.md` → `step1`; `My Step.md` → `my-step`."""
    # macOS hands out decomposed letters for the name that Linux stores composed: the key must not depend on it.
    stem = unicodedata.normalize("NFC", Path(file).stem).lower()
    without_number = re.sub(r"^[0-9]+[-_. ]+(?=[^-_. ])", "", stem)
    return re.sub("[^a-z0-9._-]+", "-", without_number).strip("-._")


def _reason(error: Exception) -> str:
    # str() of an OSError would name the whole path.
    return (error.strerror if isinstance(error, OSError) else None) or "it leads nowhere"


def _read(root: Path, source: _Source, max_bytes: int) -> str | None:
    try:
        path = (root / source.file).resolve(strict=True)
        if not path.is_relative_to(root):
            remedy = "put the file itself here instead of a link that leads out of the folder"
            source.reject(1, Rule.FILE_OUTSIDE, remedy)
            return None
        # Asked before opening: opening a named pipe would wait for a writer for ever.
        if not path.is_file():
            source.reject(1, Rule.FILE_UNREADABLE, "make this an ordinary file, or give it another name")
            return None
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself, in Python before 3.13
        source.reject(1, Rule.FILE_UNREADABLE, f"make this a file that can be read ({_reason(error)})")
        return None
    if len(data) > max_bytes:
        source.reject(1, Rule.FILE_TOO_LARGE, f"shorten the file to {max_bytes:,} bytes")
        return None
    try:
        text = _unix_lines(data.decode()).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = _unix_lines(data[: error.start].decode()).count("\n") + 1
        byte = data[error.start]
        source.reject(line, Rule.TEXT_NOT_UTF8, f"save the file as UTF-8; the byte 0x{byte:02X} here is not")
        return None
    if "\x00" in text:
        line = text[: text.index("\x00")].count("\n") + 1
        source.reject(line, Rule.TEXT_NUL, "remove the NUL character")
        return None
    return text


def _unix_lines(text: str) -> str:
    # The line endings of CommonMark 0.31 section 2.1, which are also those that the Markdown parser knows.
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _take_front_matter(source: _Source, lines: list[str]) -> Fields:
    """The fields of the front matter, whose lines are made blank: the parser then counts as the author does."""
    rules = (number for number, line in enumerate(lines) if line.rstrip(" \t") == "---")
    first = next((number for number, line in enumerate(lines) if line.strip(" \t")), 0)
    opening = next(rules, None)
    if opening is None or opening != first:
        _reject_other_front_matter(source, lines)
        return {}
    closing = next(rules, None)
    if closing is None:
        remedy = "close the front matter with a line `---`; for a rule across the page, write `***` instead"
        source.reject(opening + 1, Rule.FRONT_MATTER_UNCLOSED, remedy)
        return dict.fromkeys(STEP_SCHEMA["properties"])
    text = "".join(f"{line}\n" for line in lines[opening + 1 : closing])
    fields = read_fields(text, opening + 2, STEP_SCHEMA, Rule.FRONT_MATTER_UNKNOWN, source.reject)
    if not fields:
        remedy = "remove the two `---` lines, or give a field such as `title:` between them"
        source.reject(opening + 1, Rule.FRONT_MATTER_EMPTY, remedy)
    lines[: closing + 1] = [""] * (closing + 1)
    _reject_other_front_matter(source, lines)
    return fields


def _reject_other_front_matter(source: _Source, lines: Sequence[str]) -> None:
    """One in TOML, or a second one: the user would read it."""
    written = [number for number, line in enumerate(lines) if line.strip(" \t")]
    marks = [lines[number].rstrip(" \t") for number in written]
    remedy = "put the fields into one front matter at the top, in YAML between two lines `---`"
    if marks[:1] == ["+++"]:
        source.reject(written[0] + 1, Rule.FRONT_MATTER_UNKNOWN, remedy)
    if marks[:1] == ["---"] and "---" in marks[2:]:
        within = marks[1 : marks.index("---", 2)]
        # Between two rules across the page there may be prose.
        if all(re.match(r"[A-Za-z_][\w-]*:(?:\s|$)|[ \t]|- |#", line) for line in within):
            source.reject(written[0] + 1, Rule.FRONT_MATTER_UNKNOWN, remedy)


# -------------------------------------------------------------------------------------------------- Markdown

_MARKER = "block_marker"


def _block_marker(state: StateBlock, line: int, _end: int, silent: bool) -> bool:
    """A markdown-it rule: a line of the page itself, not of a quote or list item, that begins with `:::`.

    An opening and a closing line are each a leaf. What is between them is parsed as the Markdown it is, and which
    belong together is seen afterwards: by then a `:::` within anything else has been taken by that.
    """
    start = state.bMarks[line]
    behind_quote_mark = start > 0 and state.src[start - 1] != "\n"
    # A line that is not indented far enough for the list item that is open ends it, and stands outside.
    in_list_item = 0 < state.blkIndent <= state.sCount[line]
    if behind_quote_mark or in_list_item or state.is_code_block(line) or (state.level and not silent):
        return False
    text = state.src[start + state.tShift[line] : state.eMarks[line]]
    if not text.startswith(":::"):
        return False
    if not silent:
        state.line = line + 1
        token = state.push(_MARKER, "", 0)
        token.map = [line, line + 1]
        token.info = text.lstrip(":").strip()
    return True


def _parser() -> Markdown:
    parser = Markdown()
    can_interrupt = ["paragraph", "reference", "blockquote", "list"]
    parser.block.ruler.before("fence", _MARKER, _block_marker, {"alt": can_interrupt})
    return parser


_MARKDOWN = _parser()


@dataclass(frozen=True, slots=True)
class _Body:
    """What a step file holds after its front matter. `heading`: line and text of the first one for the user."""

    content: _Passage
    blocks: Mapping[str, _Passage]
    heading: tuple[int, str] | None


def _body(source: _Source, lines: Sequence[str]) -> _Body:
    # The blocks alone: parsing all that is within the lines would take ten times as long, and is not needed.
    tokens, env = _MARKDOWN.blocks("\n".join(lines))
    pieces: list[_Passage] = []
    blocks: dict[str, _Passage] = {}
    heading: tuple[int, str] | None = None
    opener: Token | None = None
    start = 0
    is_swallowed = False
    for number, token in enumerate(tokens):
        line, end = token.map or (0, 0)
        if token.level == MAX_NESTING - 1 and token.nesting == 1:
            source.reject(line + 1, Rule.NESTING_TOO_DEEP, TOO_DEEP)
            break
        if token.level:
            continue
        if token.type == "heading_open" and not opener and not heading:
            text = _heading_text(tokens[number + 1].content, env)
            heading = (line + 1, text) if text else None
        elif token.type == "fence" and not is_closed(token, lines):
            source.reject(line + 1, Rule.FENCE_UNCLOSED, unclosed(token))
            is_swallowed = True
        elif token.type == _MARKER:
            if opener is None:
                pieces.append(_passage(lines, start, line))
            elif not token.info:
                _keep_block(source, opener, _passage(lines, start, line), blocks)
            start = end
            opener = _opener_after(source, opener, token)
    if opener is None:
        pieces.append(_passage(lines, start, len(lines)))
    elif not is_swallowed:
        remedy = "close the block with a line `:::`, and leave a blank line before that if HTML stands there"
        source.reject(first_line(opener), Rule.BLOCK_UNCLOSED, remedy)
    return _Body(_joined([piece for piece in pieces if piece.text]), blocks, heading)


def _opener_after(source: _Source, opener: Token | None, marker: Token) -> Token | None:
    """The block that is open below the line of `marker`, by its opening line; `opener` is open above it."""
    line, name = first_line(marker), marker.info
    if not name:
        if opener is None:
            source.reject(line, Rule.BLOCK_NOT_OPEN, "remove this `:::`, or open a block before it")
        return None
    if opener is not None:
        remedy = f"close the block of line {first_line(opener)} with a line `:::` first; blocks do not nest"
        source.reject(line, Rule.BLOCK_NESTED, remedy)
    if name not in BLOCKS:
        remedy = f"the blocks are {', '.join(BLOCKS)}; to show the line as it is, put it into a code fence"
        source.reject(line, Rule.BLOCK_UNKNOWN, remedy)
    return marker


def _keep_block(source: _Source, opener: Token, passage: _Passage, blocks: dict[str, _Passage]) -> None:
    name = opener.info
    if name not in BLOCKS:
        return
    if name in blocks:
        source.reject(first_line(opener), Rule.BLOCK_TWICE, f"put all of the step's {name} into one block")
    if not passage.text:
        remedy = "write something between the `:::` lines, or remove them"
        source.reject(first_line(opener), Rule.BLOCK_EMPTY, remedy)
    blocks[name] = passage


def _heading_text(markdown: str, env: EnvType) -> str:
    if len(markdown) > MAX_HEADING_CHARS:
        return markdown  # as it stands it will be refused as a title
    # A title is plain text, where code that looks like HTML or a link is told from them by its backticks.
    tokens = [
        token.copy(content=f"`{token.content}`") if token.type == "code_inline" and is_markup(token.content) else token
        for token in _MARKDOWN.within(markdown, env)
    ]
    return " ".join(plain_text(tokens).split())


def _passage(lines: Sequence[str], start: int, end: int) -> _Passage:
    """The lines from `start` up to `end`, counted from 0, without the blank ones around them."""
    # Blank as in CommonMark 0.31 section 2.1: the indent of a first line that has text is part of the text.
    written = [number for number in range(start, end) if lines[number].strip(" \t")]
    if not written:
        return _Passage("", ())
    first, last = written[0], written[-1]
    return _Passage("\n".join(lines[first : last + 1]), range(first + 1, last + 2))


def _joined(pieces: Sequence[_Passage]) -> _Passage:
    """One text of several, with a blank line between them, which counts as the line that it follows."""
    lines: list[int] = []
    for piece in pieces:
        lines += [*lines[-1:], *piece.lines]
    return _Passage("\n\n".join(piece.text for piece in pieces), lines)
