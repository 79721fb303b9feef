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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import yaml
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.token import Token
from markdown_it.utils import EnvType

from domain.errors import ContentRejected, InvalidValue
from domain.tenancy import key
from domain.walkthrough import (
    MAX_STEPS,
    Delivery,
    Finding,
    Manuscript,
    StepText,
    WalkthroughType,
    description,
    minutes,
    title,
)

WALKTHROUGH_FILE = "walkthrough.yaml"
SCHEMA = 1
# Far above any honest file, and small enough that the slowest input there is takes no more than seconds.
MAX_WALKTHROUGH_BYTES = 64 * 1024
MAX_STEP_BYTES = 256 * 1024
# A heading may carry long links beside its 200 characters; inline parsing is quadratic at worst, so it is bounded.
MAX_HEADING_CHARS = 2_000
# Quotes and list items within each other. The parser skips what is deeper, unseen, so it is refused instead.
MAX_NESTING = 40

_WALKTHROUGH_FIELDS = ("schema", "key", "title", "description", "type")
_FRONT_MATTER_FIELDS = ("key", "title", "minutes", "delivery")
_BLOCKS = ("assistant-notes", "workspace-actions", "done-when")

_A = TypeVar("_A")
_B = TypeVar("_B")
_E = TypeVar("_E", bound=StrEnum)


class Rule(StrEnum):
    """The rules that a finding can name. The values are stable: authors search for them and scripts match them."""

    FOLDER_UNREADABLE = "folder-unreadable"
    WALKTHROUGH_MISSING = "walkthrough-missing"
    WALKTHROUGH_INVALID = "walkthrough-invalid"
    STEP_COUNT = "step-count"

    FILE_OUTSIDE = "file-outside"
    FILE_UNREADABLE = "file-unreadable"
    FILE_TOO_LARGE = "file-too-large"
    TEXT_NOT_UTF8 = "text-not-utf8"
    TEXT_NUL = "text-nul"

    YAML_INVALID = "yaml-invalid"
    YAML_NOT_A_MAPPING = "yaml-not-a-mapping"
    YAML_FEATURE = "yaml-feature"
    YAML_UNQUOTED = "yaml-unquoted"

    SCHEMA_UNSUPPORTED = "schema-unsupported"
    FIELD_UNKNOWN = "field-unknown"
    FIELD_TWICE = "field-twice"
    FIELD_MISSING = "field-missing"
    FIELD_EMPTY = "field-empty"
    FIELD_INVALID = "field-invalid"

    FRONT_MATTER_UNKNOWN = "front-matter-unknown"
    FRONT_MATTER_UNCLOSED = "front-matter-unclosed"
    FRONT_MATTER_EMPTY = "front-matter-empty"

    KEY_FROM_FILE_NAME = "key-from-file-name"
    KEY_TWICE = "key-twice"
    TITLE_MISSING = "title-missing"
    TITLE_FROM_HEADING = "title-from-heading"
    STEP_EMPTY = "step-empty"
    STEP_INVALID = "step-invalid"

    BLOCK_UNKNOWN = "block-unknown"
    BLOCK_TWICE = "block-twice"
    BLOCK_EMPTY = "block-empty"
    BLOCK_NESTED = "block-nested"
    BLOCK_UNCLOSED = "block-unclosed"
    BLOCK_NOT_OPEN = "block-not-open"
    FENCE_UNCLOSED = "fence-unclosed"
    NESTING_TOO_DEEP = "nesting-too-deep"


def read_folder(folder: Path) -> Manuscript:
    """Reads `walkthrough.yaml` and the steps beside it.

    Steps are the files whose name ends in `.md` (or `.MD`), except `README.md` and names that begin with a dot;
    all other files, and what is in sub-folders, are left alone. They come in the order of their names, where a
    run of digits counts as a number: `step2.md` is before `step10.md`. Names that differ only in leading zeros
    or in case (`1-a.md`, `01-a.md`) come in the order of their characters.

    Texts are taken as written, with these exceptions: CRLF and CR become LF, a byte order mark is dropped, and
    so are blank lines around a text. Content that goes on after a block is joined to what was before it by one
    blank line. A step without a title is named by its first heading, which stays in the content.

    Raises:
        ContentRejected: with everything that is wrong, in the order of file and line. Files are named relative
            to the folder; `.` is the folder itself.
    """
    findings: list[Finding] = []
    manuscript = _manuscript(folder, findings)
    if manuscript is None or findings:
        raise ContentRejected(sorted(findings, key=lambda finding: (finding.file, finding.line, finding.rule)))
    return manuscript


@dataclass(frozen=True, slots=True)
class _Source:
    """One file, and the list on which its findings are put."""

    file: str
    findings: list[Finding]

    def reject(self, line: int, rule: Rule, remedy: str) -> None:
        # A file name may hold anything but a slash, and a finding is one line that can be printed.
        self.findings.append(Finding(_shown(self.file), line, rule.value, remedy))

    def checked(self, line: int, rule: Rule, make: Callable[[_A], _B], value: _A, hint: str = "") -> _B | None:
        """What `make` makes of the value; where the domain refuses it, a finding and None."""
        try:
            return make(value)
        except InvalidValue as error:
            self.reject(line, rule, f"{error}{hint}")
            return None


def _manuscript(folder: Path, findings: list[Finding]) -> Manuscript | None:
    whole = _Source(".", findings)
    try:
        root = folder.resolve(strict=True)
        names = [path.name for path in root.iterdir()]
    except (OSError, ValueError, RuntimeError) as error:
        whole.reject(1, Rule.FOLDER_UNREADABLE, f"name a folder that can be read ({_reason(error)})")
        return None

    files = sorted(filter(_is_step, names), key=_natural_order)
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
    fields = _fields(source, text, 1, _WALKTHROUGH_FIELDS, Rule.FIELD_UNKNOWN)
    for name in _WALKTHROUGH_FIELDS:
        if name not in fields:
            source.reject(1, Rule.FIELD_MISSING, f"add `{name}:`, which every {WALKTHROUGH_FILE} has")
    _whole_number(source, fields.get("schema"), _supported, Rule.SCHEMA_UNSUPPORTED)
    own_key = _text(source, fields.get("key"), key)
    own_title = _text(source, fields.get("title"), title)
    about = _text(source, fields.get("description"), description)
    purpose = _text(source, fields.get("type"), _one_of(WalkthroughType))
    if findings or own_key is None or own_title is None or about is None or purpose is None:
        return None
    sound = tuple(step for step in steps if step is not None)
    # Its parts are sound: this is for rules about the whole, should the domain get one that is not checked above.
    return source.checked(
        1, Rule.WALKTHROUGH_INVALID, lambda own_key: Manuscript(own_key, own_title, about, purpose, sound), own_key
    )


def _step(root: Path, source: _Source, keys: dict[str, str]) -> StepText | None:
    """One step. `keys` says which file has which key so far."""
    text = _read(root, source, MAX_STEP_BYTES)
    if text is None:
        return None
    lines = text.split("\n")
    fields = _take_front_matter(source, lines)
    body = _body(source, lines)
    if not body.content:
        source.reject(1, Rule.STEP_EMPTY, "write what the user is to read, outside of any ::: block")

    own_key = _text(source, fields.get("key"), key)
    if "key" not in fields:
        hint = "; or set `key:` in the front matter"
        own_key = source.checked(1, Rule.KEY_FROM_FILE_NAME, key, _key_from(source.file), hint)
    if own_key is not None and (other := keys.setdefault(own_key, source.file)) != source.file:
        field = fields.get("key")
        remedy = f"set another `key:` in the front matter: {_shown(other)} has the key {own_key!r} already"
        source.reject(field.line if field else 1, Rule.KEY_TWICE, remedy)

    own_title = _text(source, fields.get("title"), title)
    if "title" not in fields and body.heading:
        line, heading = body.heading
        hint = "; shorten the heading, or set `title:` in the front matter"
        own_title = source.checked(line, Rule.TITLE_FROM_HEADING, title, heading, hint)
    elif "title" not in fields and body.content:
        remedy = "begin with a heading such as `# Install the client`, or set `title:` in the front matter"
        source.reject(1, Rule.TITLE_MISSING, remedy)

    delivery = _text(source, fields.get("delivery"), _one_of(Delivery))
    estimate = _whole_number(source, fields.get("minutes"), minutes, Rule.FIELD_INVALID)

    def step(content: str) -> StepText:
        return StepText(
            # For a key or title that was refused another stands in, so that the texts are judged all the same.
            key=own_key or "refused",
            title=own_title or "refused",
            content=content,
            assistant_notes=body.blocks.get("assistant-notes"),
            workspace_actions=body.blocks.get("workspace-actions"),
            done_when=body.blocks.get("done-when"),
            delivery=delivery or Delivery.EXPLAIN,
            estimated_minutes=estimate,
        )

    return source.checked(1, Rule.STEP_INVALID, step, body.content) if body.content else None


# ------------------------------------------------------------------------------------------- files and names


def _is_step(name: str) -> bool:
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


def _shown(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]


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


# ------------------------------------------------------------------------------------------------------ YAML


@dataclass(frozen=True, slots=True)
class _Field:
    """A field as it stands in the file. `is_plain`: without quotes, so that YAML may see more than text in it."""

    name: str
    value: str
    line: int
    is_plain: bool


_Fields = Mapping[str, _Field | None]
"""By name, those that the file has; None for one that was refused, so that nobody misses it as well."""

# Used for its judgement alone: whether an unquoted value is text to YAML, or a number, a date, a yes or a no.
_YAML_TYPES = yaml.resolver.Resolver()


def _fields(source: _Source, text: str, first_line: int, known: Sequence[str], unknown: Rule) -> _Fields:
    """Reads a flat mapping of names to texts.

    The format has no more than that, so the YAML is read as events and never composed: nothing can be nested
    too deep, no alias multiplies and no tag makes an object.
    """

    def reject(index: int, rule: Rule, remedy: str) -> None:
        # Lines are counted here, for to YAML U+0085 and U+2028 begin a new line as well.
        source.reject(first_line + text.count("\n", 0, index), rule, remedy)

    unreadable = dict.fromkeys(known)
    try:
        members = _members(text)
    except _BrokenYaml as broken:
        reject(broken.index, broken.rule, broken.remedy)
        return unreadable
    fields: dict[str, _Field | None] = {}
    for name_node, node in zip(members[::2], members[1::2], strict=True):
        at = name_node.start_mark.index
        if not _is_simple(name_node):
            reject(at, Rule.YAML_FEATURE, _SIMPLE_ONLY)
            continue
        name = name_node.value
        if name in fields:
            reject(at, Rule.FIELD_TWICE, f"keep one `{_shown(name)}:` and remove the other")
            continue
        fields[name] = None
        if name not in known:
            reject(at, unknown, f"remove `{_shown(name)}:`; the fields here are {', '.join(known)}")
        elif not _is_simple(node):
            reject(at, Rule.YAML_FEATURE, _SIMPLE_ONLY)
        elif node.style is None and not node.value:
            reject(at, Rule.FIELD_EMPTY, f"give `{name}:` a value, or remove the line")
        elif any("\ud800" <= character <= "\udfff" for character in node.value):
            reject(at, Rule.YAML_INVALID, "write the character itself: half of it, as in `\\ud83d`, is no text")
        else:
            # YAML ends a block text with the line break of its last line, which is not part of what was written.
            value = node.value.strip("\n") if node.style in ("|", ">") else node.value
            line = first_line + text.count("\n", 0, at)
            fields[name] = _Field(name, value, line, is_plain=node.style is None)
    return fields


class _BrokenYaml(Exception):
    """No mapping can be read; `index` is where in the text."""

    def __init__(self, index: int, rule: Rule, remedy: str) -> None:
        super().__init__(remedy)
        self.index = index
        self.rule = rule
        self.remedy = remedy


_SIMPLE_ONLY = "write `name: text`: lists, mappings, anchors, aliases and tags are not read"


def _is_simple(node: Any) -> bool:
    return isinstance(node, yaml.ScalarEvent) and node.anchor is None and node.tag is None


def _members(text: str) -> list[Any]:
    """The events with which the names and values of the mapping begin, in turn; none where there is no mapping.

    Raises:
        _BrokenYaml: where it is no YAML, or no mapping, or nested absurdly.
    """
    members: list[Any] = []
    depth = documents = 0
    try:
        loader = yaml.SafeLoader(text)
        while loader.check_event():
            event = loader.get_event()  # type: ignore[no-untyped-call]  # a gap in the stubs
            at = event.start_mark.index
            documents += isinstance(event, yaml.DocumentStartEvent)
            if documents > 1:
                raise _BrokenYaml(at, Rule.YAML_INVALID, "keep one YAML document and remove the others")
            if depth == 0 and isinstance(event, yaml.NodeEvent) and not isinstance(event, yaml.MappingStartEvent):
                remedy = "write one field in a line, such as `title: Install the client`"
                raise _BrokenYaml(at, Rule.YAML_NOT_A_MAPPING, remedy)
            if depth == 1 and isinstance(event, yaml.NodeEvent):
                members.append(event)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            # Nothing here may nest at all, and PyYAML would take half a minute over 20,000 brackets.
            if depth > 3:
                raise _BrokenYaml(at, Rule.YAML_FEATURE, _SIMPLE_ONLY)
    except yaml.reader.ReaderError as error:
        remedy = f"remove the character U+{error.character:04X}"
        raise _BrokenYaml(error.position, Rule.YAML_INVALID, remedy) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        remedy = f"mend the YAML ({error.problem}); a text with `: ` or ` #` in it needs quotes"
        raise _BrokenYaml(mark.index if mark else 0, Rule.YAML_INVALID, remedy) from None
    except (ValueError, OverflowError):
        # PyYAML lets these out for a number that is too large, as in "\\UFFFFFFFF".
        remedy = "mend the YAML (it has a number that is too large)"
        raise _BrokenYaml(loader.index, Rule.YAML_INVALID, remedy) from None
    return members


def _text(source: _Source, field: _Field | None, make: Callable[[str], _B]) -> _B | None:
    if field is None:
        return None
    tag = _YAML_TYPES.resolve(yaml.ScalarNode, field.value, (field.is_plain, not field.is_plain))  # type: ignore[no-untyped-call]  # too
    if field.is_plain and tag != "tag:yaml.org,2002:str":
        remedy = f'write `{field.name}: "{field.value:.60}"`: without the quotes YAML does not read it as text'
        source.reject(field.line, Rule.YAML_UNQUOTED, remedy)
        return None
    return source.checked(field.line, Rule.FIELD_INVALID, make, field.value)


def _whole_number(source: _Source, field: _Field | None, make: Callable[[int], int], rule: Rule) -> int | None:
    if field is None:
        return None
    # Stricter than YAML, to which 010 is eight and 1:30 is ninety.
    if not field.is_plain or not re.fullmatch("0|-?[1-9][0-9]{0,8}", field.value):
        remedy = f"write `{field.name}:` as a whole number, in digits alone and without quotes"
        source.reject(field.line, Rule.FIELD_INVALID, remedy)
        return None
    return source.checked(field.line, rule, make, int(field.value))


def _one_of(kind: type[_E]) -> Callable[[str], _E]:
    def member(value: str) -> _E:
        try:
            return kind(value)
        except ValueError:
            raise InvalidValue(f"{value[:60]!r} is not known here: write one of {', '.join(kind)}") from None

    return member


def _supported(schema: int) -> int:
    if schema != SCHEMA:
        raise InvalidValue(f"write `schema: {SCHEMA}`: this release reads schema {SCHEMA}, not {schema}")
    return schema


def _take_front_matter(source: _Source, lines: list[str]) -> _Fields:
    """The fields of the front matter, whose lines are made blank: the parser then counts as the author does."""
    rules = (number for number, line in enumerate(lines) if line.rstrip(" \t") == "---")
    first = next((number for number, line in enumerate(lines) if line.strip(" \t")), 0)
    opening = next(rules, None)
    if opening is None or opening != first:
        return {}
    closing = next(rules, None)
    if closing is None:
        remedy = "close the front matter with a line `---`; for a rule across the page, write `***` instead"
        source.reject(opening + 1, Rule.FRONT_MATTER_UNCLOSED, remedy)
        return dict.fromkeys(_FRONT_MATTER_FIELDS)
    text = "".join(f"{line}\n" for line in lines[opening + 1 : closing])
    fields = _fields(source, text, opening + 2, _FRONT_MATTER_FIELDS, Rule.FRONT_MATTER_UNKNOWN)
    if not fields:
        remedy = "remove the two `---` lines, or give a field such as `title:` between them"
        source.reject(opening + 1, Rule.FRONT_MATTER_EMPTY, remedy)
    lines[: closing + 1] = [""] * (closing + 1)
    return fields


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


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"maxNesting": MAX_NESTING})
    can_interrupt = ["paragraph", "reference", "blockquote", "list"]
    parser.block.ruler.before("fence", _MARKER, _block_marker, {"alt": can_interrupt})
    return parser


_MARKDOWN = _parser()


@dataclass(frozen=True, slots=True)
class _Body:
    """What a step file holds after its front matter. `heading`: line and text of the first one for the user."""

    content: str
    blocks: Mapping[str, str]
    heading: tuple[int, str] | None


def _body(source: _Source, lines: Sequence[str]) -> _Body:
    tokens: list[Token] = []
    env: EnvType = {}
    # The blocks alone: parsing all that is within the lines would take ten times as long, and is not needed.
    _MARKDOWN.block.parse("\n".join(lines), _MARKDOWN, env, tokens)

    pieces: list[str] = []
    blocks: dict[str, str] = {}
    heading: tuple[int, str] | None = None
    opener: Token | None = None
    start = 0
    is_swallowed = False
    for number, token in enumerate(tokens):
        line, end = token.map or (0, 0)
        if token.level == MAX_NESTING - 1 and token.nesting == 1:
            source.reject(line + 1, Rule.NESTING_TOO_DEEP, "nest fewer quotes and lists within each other")
            break
        if token.level:
            continue
        if token.type == "heading_open" and not opener and not heading:
            text = _heading_text(tokens[number + 1].content, env)
            heading = (line + 1, text) if text else None
        elif token.type == "fence" and not _is_closed(token.markup, lines[line + 1 : end]):
            remedy = f"close this code fence with a line of {token.markup} and nothing else"
            source.reject(line + 1, Rule.FENCE_UNCLOSED, remedy)
            is_swallowed = True
        elif token.type == _MARKER:
            if opener is None:
                pieces.append(_without_blank_ends(lines[start:line]))
            elif not token.info:
                _keep_block(source, opener, _without_blank_ends(lines[start:line]), blocks)
            start = end
            opener = _opener_after(source, opener, token)
    if opener is None:
        pieces.append(_without_blank_ends(lines[start:]))
    elif not is_swallowed:
        remedy = "close the block with a line `:::`, and leave a blank line before that if HTML stands there"
        source.reject(_line(opener), Rule.BLOCK_UNCLOSED, remedy)
    return _Body("\n\n".join(filter(None, pieces)), blocks, heading)


def _opener_after(source: _Source, opener: Token | None, marker: Token) -> Token | None:
    """The block that is open below the line of `marker`, by its opening line; `opener` is open above it."""
    line, name = _line(marker), marker.info
    if not name:
        if opener is None:
            source.reject(line, Rule.BLOCK_NOT_OPEN, "remove this `:::`, or open a block before it")
        return None
    if opener is not None:
        remedy = f"close the block of line {_line(opener)} with a line `:::` first; blocks do not nest"
        source.reject(line, Rule.BLOCK_NESTED, remedy)
    if name not in _BLOCKS:
        remedy = f"the blocks are {', '.join(_BLOCKS)}; to show the line as it is, put it into a code fence"
        source.reject(line, Rule.BLOCK_UNKNOWN, remedy)
    return marker


def _keep_block(source: _Source, opener: Token, text: str, blocks: dict[str, str]) -> None:
    name = opener.info
    if name not in _BLOCKS:
        return
    if name in blocks:
        source.reject(_line(opener), Rule.BLOCK_TWICE, f"put all of the step's {name} into one block")
    if not text:
        source.reject(_line(opener), Rule.BLOCK_EMPTY, "write something between the `:::` lines, or remove them")
    blocks[name] = text


def _line(token: Token) -> int:
    return token.map[0] + 1 if token.map else 1


def _is_closed(fence: str, lines_below: Sequence[str]) -> bool:
    # CommonMark 0.31 section 4.5; had an earlier line closed it, that would have been its last.
    closing = rf" {{0,3}}{re.escape(fence[0])}{{{len(fence)},}}[ \t]*"
    return bool(lines_below) and re.fullmatch(closing, lines_below[-1]) is not None


def _heading_text(markdown: str, env: EnvType) -> str:
    if len(markdown) > MAX_HEADING_CHARS:
        return markdown  # as it stands it will be refused as a title
    (inline,) = _MARKDOWN.parseInline(markdown, env)
    return " ".join(_plain_text(inline.children or ()).split())


def _plain_text(tokens: Sequence[Token]) -> str:
    def one(token: Token) -> str:
        match token.type:
            case "image":
                return _plain_text(token.children or ())
            case "softbreak" | "hardbreak":
                return " "
            case "html_inline":
                return ""
            case _:
                return token.content

    return "".join(map(one, tokens))


def _without_blank_ends(lines: Sequence[str]) -> str:
    # Blank as in CommonMark 0.31 section 2.1: the indent of a first line that has text is part of the text.
    written = [number for number, line in enumerate(lines) if line.strip(" \t")]
    return "\n".join(lines[written[0] : written[-1] + 1]) if written else ""
