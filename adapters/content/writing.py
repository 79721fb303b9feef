"""Writes a walkthrough as the folder that `adapters.content.folder` reads, and never as one that reads otherwise.

    01-install.md       each step is named by its number and its key
    02-connect.md
    walkthrough.yaml

What the format can say in two ways is said in the first that reads back as it was: front matter has no key that the
file's name says, and no title that the first heading says; a value in YAML is quoted where it would be taken for
something else. Some texts cannot be kept in a folder at all, though no check refuses them: those with a line that
begins with `:::`, and those with blank lines at their ends.

    folder as it was ──written beside, read back──▶ .cairn-pull/ ──moved in, file by file──▶ folder as it is to be

While files are moved, `.cairn-pull/journal.json` says how each file was and is to be. Whatever interrupts that, be it
a power cut, the next pull can tell what it finds from what somebody wrote since.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.content.check import markdown_of
from adapters.content.fields import read_fields
from adapters.content.findings import Rule, printable
from adapters.content.folder import WALKTHROUGH_FILE, is_step, read_folder, read_step
from adapters.content.schema import SCHEMA, STEP_SCHEMA, WALKTHROUGH_SCHEMA, Schema
from domain.errors import ContentRejected, InvalidValue, OperatorError
from domain.walkthrough import Delivery, Manuscript, StepText

_LINE_CHARS = 100

# ------------------------------------------------------------------------------------------------ the texts


def folder_of(manuscript: Manuscript) -> Mapping[str, str]:
    """The files of a walkthrough's folder, by name, `walkthrough.yaml` last. `read_folder` makes this manuscript of it.

    Lines end in LF.

    Raises:
        InvalidValue: when a step has a text that cannot be kept in a folder, with the first of them.
    """
    width = max(2, len(str(len(manuscript.steps))))
    files = {}
    for number, step in enumerate(manuscript.steps, start=1):
        name = f"{number:0{width}}-{step.key}.md"
        files[name] = _step_file(name, step)
    values = {"schema": SCHEMA, "key": manuscript.key, "title": manuscript.title}
    values |= {"description": manuscript.description, "type": manuscript.type.value}
    return {**files, WALKTHROUGH_FILE: _yaml(values, WALKTHROUGH_SCHEMA)}


def _step_file(name: str, step: StepText) -> str:
    body = f"{step.content}\n"
    for block, text in markdown_of(step).items():
        if block != "content":
            body += f"\n::: {block.replace('_', '-')}\n{text}\n:::\n"
    rejection = None
    for said in ((), ("title",), ("key",), ("key", "title")):
        text = _front_matter(step, said) + body
        try:
            if read_step(name, text) == step:
                return text
        except ContentRejected as error:
            rejection = error
    raise InvalidValue(
        f"step {step.key!r} cannot be kept in a file: {_obstacle(step, rejection)}; "
        "change that in the draft and publish it, or pull another version"
    )


def _front_matter(step: StepText, said: Collection[str]) -> str:
    values: dict[str, Any] = {name: getattr(step, name) for name in said}
    if step.estimated_minutes is not None:
        values["minutes"] = step.estimated_minutes
    if step.delivery is not Delivery.EXPLAIN:
        values["delivery"] = step.delivery.value
    return f"---\n{_yaml(values, STEP_SCHEMA)}---\n" if values else ""


def _obstacle(step: StepText, rejection: ContentRejected | None) -> str:
    for name, text in markdown_of(step).items():
        lines = text.split("\n")
        if not text.strip(" \t\n"):
            return f"its {name} is blank"
        if not lines[0].strip(" \t") or not lines[-1].strip(" \t"):
            return f"its {name} begins or ends with a blank line"
        if any(line.lstrip(" ").startswith(":::") for line in lines):
            return f"its {name} has a line that begins with ':::', as a block does"
    return rejection.findings[0].remedy if rejection else "it would read otherwise"


def _yaml(values: Mapping[str, Any], schema: Schema) -> str:
    return "".join(_field(name, value, schema) for name, value in values.items())


def _field(name: str, value: Any, schema: Schema) -> str:
    """One field, in the plainest form that is read as this value and nothing else."""
    for form in _forms(str(value)):
        written = f"{name}: {form}\n"
        if _value_in(written, name, schema) == value:
            return written
    raise InvalidValue(f"the {name} {value!r} cannot be kept in {schema['title']}: change it and publish it again")


def _value_in(written: str, name: str, schema: Schema) -> Any:
    """What is read of a field that stands alone; None where it is refused."""
    alone = {"properties": {name: schema["properties"][name]}}
    refused: list[int] = []
    fields = read_fields(written, 1, alone, Rule.FIELD_UNKNOWN, lambda line, rule, remedy: refused.append(line))
    field = fields.get(name)
    return None if refused or field is None else field.value


def _forms(value: str) -> Iterator[str]:
    if "\n" in value:
        yield "|-\n" + textwrap.indent(value, "  ")
    elif len(value) > _LINE_CHARS:
        lines = textwrap.wrap(value, _LINE_CHARS, break_long_words=False, break_on_hyphens=False)
        yield ">-\n" + textwrap.indent("\n".join(lines), "  ")
    yield value
    yield f'"{"".join(map(_quoted, value))}"'


def _quoted(character: str) -> str:
    """A character between double quotes: YAML 1.2 section 5.7."""
    match character:
        case '"' | "\\":
            return f"\\{character}"
        case "\n":
            return "\\n"
        case _ if character.isprintable():
            return character
        case _:
            return f"\\U{ord(character):08X}"


# ------------------------------------------------------------------------------------------------- the disk

_STAGE = ".cairn-pull"
_JOURNAL = "journal.json"
_WHOLE_JOURNAL = f"{_JOURNAL}.new"
_NAMES_SHOWN = 3  # of files, in one sentence


def write_folder(folder: Path, manuscript: Manuscript, *, known: Collection[str], is_forced: bool = False) -> bool:
    """Makes `folder` hold `manuscript`; False where it does already, in whatever files, and nothing is written.

    Where it holds this walkthrough with a content that is `known` (by hashes as of `Manuscript.content_hash`), in the
    very files that `folder_of` makes of that, these are replaced, and steps that it has no more are removed. All other
    files are left alone: those in sub-folders, README.md, names that begin with a dot, images. A link in the folder is
    replaced itself, and never what it leads to. Nothing is touched before all has been written beside, read back, and
    is safe from a power cut.

    Raises:
        OperatorError: when the folder holds changes that are not known, or anything else that could not be pulled
            again (comments, names of files, layout), unless `is_forced`; another walkthrough, or Markdown files that
            are none; or when it cannot be written.
        InvalidValue: as `folder_of`.
    """
    files = folder_of(manuscript)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        root = folder.resolve(strict=True)
        with _alone_in(root, folder):
            ours = [each.name for each in root.iterdir() if each.name == WALKTHROUGH_FILE or is_step(each.name)]
            journal = _journal_in(root)
            found = _read(root) if ours else None
            if found == manuscript:
                _remove(root / _STAGE)
                return False
            if ours and not _is_as_left(root, ours, journal, manuscript.key):
                _require_replaceable(root, folder, ours, found, journal, manuscript.key, known, is_forced=is_forced)
            for name in {*ours, *files}:
                if (root / name).is_dir() and not (root / name).is_symlink():
                    raise OperatorError(f"{folder / name} is a folder where a file belongs: move it away")
            _stage(root, folder, ours, files, manuscript)
            _move_in(root, ours, files)
            _flush(root)
            _remove(root / _STAGE)
    except OSError as error:
        # str() of an OSError would name files that nobody asked about.
        raise OperatorError(
            f"cannot write {folder} ({error.strerror}): name a folder that can be written, and pull again"
        ) from error
    return True


@contextmanager
def _alone_in(root: Path, folder: Path) -> Iterator[None]:
    """No other pull writes there meanwhile. The lock ends with the process."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OperatorError(f"another pull is writing {folder}: wait until it is done") from error
        yield
    finally:
        os.close(descriptor)


def _require_replaceable(
    root: Path,
    folder: Path,
    ours: Collection[str],
    found: Manuscript | None,
    journal: _Journal | None,
    key: str,
    known: Collection[str],
    *,
    is_forced: bool,
) -> None:
    key_found = found.key if found else _key_in(root) or (journal.key if journal else None)
    if key_found not in (None, key):
        raise OperatorError(f"{folder} holds another walkthrough, {key_found!r}: name another folder, --force or not")
    if key_found is None and not (root / WALKTHROUGH_FILE).exists():
        raise OperatorError(f"{folder} holds Markdown files and no {WALKTHROUGH_FILE}: name an empty folder")
    if is_forced:
        return
    if found is None:
        raise OperatorError(
            f"{folder} does not hold a sound walkthrough: see 'cairn lint', or overwrite it with --force"
        )
    if found.content_hash() not in known:
        raise OperatorError(f"{folder} has changes that were never stored: push them, or overwrite them with --force")
    if own := _written_by_hand(root, ours, found):
        more = f" and {len(own) - _NAMES_SHOWN} more" if len(own) > _NAMES_SHOWN else ""
        raise OperatorError(
            f"{folder} has comments, layout or file names of your own, which a pull does not keep "
            f"({', '.join(own[:_NAMES_SHOWN])}{more}): name another folder, or replace these files with --force"
        )


def _written_by_hand(root: Path, ours: Collection[str], found: Manuscript) -> list[str]:
    """The files that a pull of what the folder reads as would not write as they are, by name."""
    pulled: dict[str, str] = {}
    with suppress(InvalidValue):  # what reads well, and that no pull could have written
        pulled = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in folder_of(found).items()}
    return [printable(name) for name in sorted(ours) if _fingerprint(root / name) != pulled.get(name)]


def _read(root: Path) -> Manuscript | None:
    try:
        return read_folder(root)
    except ContentRejected:
        return None


def _key_in(root: Path) -> str | None:
    """The key in a `walkthrough.yaml` that need not be sound."""
    path = root / WALKTHROUGH_FILE
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        start = file.read(4_000)
    found = re.search(r"""^key:[ \t]*["']?([a-z0-9._-]+)""", start, re.MULTILINE)
    return found[1] if found else None


@dataclass(frozen=True, slots=True)
class _Journal:
    """What a pull of `key` does: for each name, how the file there is before and after; "" where there is none."""

    key: str
    files: Mapping[str, Sequence[str]]


def _journal_in(root: Path) -> _Journal | None:
    stage = root / _STAGE
    if stage.is_symlink():
        return None
    try:
        read = json.loads((stage / _JOURNAL).read_bytes())
        return _Journal(read["key"], read["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_as_left(root: Path, ours: Collection[str], journal: _Journal | None, key: str) -> bool:
    """Whether an interrupted pull of this walkthrough left the folder so, and nobody has written in it since."""
    # Its first move takes this file away, and its last one brings it: while there is one, it is judged as any other.
    if journal is None or journal.key != key or WALKTHROUGH_FILE in ours:
        return False
    return all(_fingerprint(root / name) in journal.files.get(name, ()) for name in ours)


def _fingerprint(path: Path) -> str:
    if path.is_symlink():
        return f"link to {str(path.readlink())!a}"
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stage(root: Path, folder: Path, ours: Collection[str], files: Mapping[str, str], manuscript: Manuscript) -> None:
    stage = root / _STAGE
    if os.path.lexists(stage) and not _is_of_pulls(stage):
        raise OperatorError(f"{folder / _STAGE} is in the way of a pull: move it away")
    stage.mkdir(exist_ok=True)
    try:
        _empty(stage)
        for name, text in files.items():
            (stage / name).write_text(text, encoding="utf-8", newline="\n")
        if read_folder(stage) != manuscript:
            raise InvalidValue(f"{manuscript.key} cannot be kept in {folder}: it would read otherwise")
        fingerprints = {name: [_fingerprint(at / name) for at in (root, stage)] for name in sorted({*ours, *files})}
        whole = stage / _WHOLE_JOURNAL
        whole.write_text(json.dumps({"key": manuscript.key, "files": fingerprints}))
        _flush(*(stage / name for name in files), whole)
        whole.replace(stage / _JOURNAL)
        _flush(stage, root)
    except BaseException:
        with suppress(OSError):
            _empty(stage)
            stage.rmdir()
        raise


def _is_of_pulls(stage: Path) -> bool:
    """Whether it is a folder, and holds nothing but what pulls put there."""
    if stage.is_symlink() or not stage.is_dir():
        return False
    names = {WALKTHROUGH_FILE, _JOURNAL, _WHOLE_JOURNAL}
    return all((path.name in names or is_step(path.name)) and path.is_file() for path in stage.iterdir())


def _flush(*paths: Path) -> None:
    """Sees to it that files, and the names in folders, outlast a power cut."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # A file system that cannot do this for a folder, as some in a network, says so: fsync(2).
            if error.errno != errno.EINVAL:
                raise
        finally:
            os.close(descriptor)


def _empty(stage: Path) -> None:
    """Leaves only the journal of an interrupted pull, which is of use until the next one takes its place."""
    for path in stage.iterdir():
        if path.name != _JOURNAL:
            path.unlink()


def _move_in(root: Path, ours: Collection[str], files: Mapping[str, str]) -> None:
    # Without this one, what is half written reads as no walkthrough at all. It comes back last.
    (root / WALKTHROUGH_FILE).unlink(missing_ok=True)
    # Before others come: on some file systems `01-A.md` and `01-a.md` are one file.
    for name in ours:
        if name not in files:
            (root / name).unlink(missing_ok=True)
    for name in files:
        (root / _STAGE / name).replace(root / name)


def _remove(stage: Path) -> None:
    if _is_of_pulls(stage):
        shutil.rmtree(stage)
