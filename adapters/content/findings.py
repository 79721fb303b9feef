"""What can be wrong with a walkthrough, and how what is found is put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from domain.errors import ContentRejected
from domain.walkthrough import Finding

# Whoever makes one mistake everywhere wants to see where to begin, and how much there is, instead of all of it.
MAX_LISTED_IN_A_FILE = 10
MAX_LISTED_IN_A_FOLDER = 100


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
    YAML_COMMENT = "yaml-comment"

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
    STEP_TOO_LARGE = "step-too-large"

    BLOCK_UNKNOWN = "block-unknown"
    BLOCK_TWICE = "block-twice"
    BLOCK_EMPTY = "block-empty"
    BLOCK_NESTED = "block-nested"
    BLOCK_UNCLOSED = "block-unclosed"
    BLOCK_NOT_OPEN = "block-not-open"
    BLOCK_MISPLACED = "block-misplaced"
    FENCE_UNCLOSED = "fence-unclosed"
    FENCE_INFO = "fence-info"
    NESTING_TOO_DEEP = "nesting-too-deep"

    HTML_RAW = "html-raw"
    LINK_SCHEME = "link-scheme"
    LINK_DEAD = "link-dead"
    LINK_FRAGMENT = "link-fragment"
    LINK_DISGUISED = "link-disguised"
    LINK_UNUSED = "link-unused"
    CHARACTER_CONTROL = "character-control"
    CHARACTER_BIDIRECTIONAL = "character-bidirectional"
    CHARACTER_INVISIBLE = "character-invisible"
    CHARACTER_PRIVATE = "character-private"
    TEXT_ESCAPED_TWICE = "text-escaped-twice"


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault in one text: its line in it, counted from 1; `more` is how many others it stands for."""

    line: int
    rule: Rule
    remedy: str
    more: int = 0


def few(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    """At most `MAX_LISTED_IN_A_FILE` of each rule, each once in its line, the last of them standing for the rest.

    However many there are, no more than these are ever held.
    """
    kept: dict[Rule, dict[tuple[int, str], Fault]] = {}
    more: Counter[Rule] = Counter()
    newest: dict[Rule, tuple[int, str]] = {}
    for fault in faults:
        of_rule = kept.setdefault(fault.rule, {})
        told = fault.line, fault.remedy
        if told in of_rule or told == newest.get(fault.rule):
            continue
        newest[fault.rule] = told
        if len(of_rule) < MAX_LISTED_IN_A_FILE:
            of_rule[told] = fault
        else:
            more[fault.rule] += 1
    listed: list[Fault] = []
    for rule, of_rule in kept.items():
        *others, last = of_rule.values()
        listed += [*others, replace(last, more=more[rule])]
    return tuple(sorted(listed, key=lambda fault: (fault.line, fault.rule)))


class Findings:
    """What is wrong with one walkthrough."""

    def __init__(self) -> None:
        self._listed: dict[tuple[str, Rule], list[Finding]] = {}
        self._more: Counter[tuple[str, Rule]] = Counter()
        self._in_folder: Counter[Rule] = Counter()

    def __bool__(self) -> bool:
        return bool(self._listed)

    def add(self, file: str, fault: Fault) -> None:
        """Takes a fault of a file, or of whatever else `file` names. The same one again changes nothing."""
        finding = Finding(file, fault.line, fault.rule.value, fault.remedy)
        listed = self._listed.setdefault((file, fault.rule), [])
        if finding in listed:
            return
        self._more[file, fault.rule] += fault.more
        # Each file with a fault is named at least once, so that none looks sound.
        is_listed = len(listed) < MAX_LISTED_IN_A_FILE and self._in_folder[fault.rule] < MAX_LISTED_IN_A_FOLDER
        if is_listed or not listed:
            listed.append(finding)
            self._in_folder[fault.rule] += 1
        else:
            self._more[file, fault.rule] += 1

    def rejection(self) -> ContentRejected:
        """The error that tells them, in the order of file and line."""
        findings: list[Finding] = []
        for place, listed in self._listed.items():
            *others, last = sorted(listed, key=_order)
            if more := self._more[place]:
                last = replace(last, remedy=f"{last.remedy} (and {more:,} more like this in the file)")
            findings += [*others, last]
        return ContentRejected(sorted(findings, key=_order), unlisted=self._more.total())


def printable(text: str) -> str:
    """A text as a finding can name it, which is one line."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _order(finding: Finding) -> tuple[str, int, str]:
    return finding.file, finding.line, finding.rule
