"""The fields of `walkthrough.yaml` and of front matter: a flat mapping in YAML, judged by its JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from adapters.content.findings import Rule, printable
from adapters.content.schema import Schema

Reject = Callable[[int, Rule, str], None]
"""Takes a line, counted from 1; a rule; and what to do."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field that its schema allows: a text, or a whole number where the schema asks for one."""

    value: Any
    line: int


Fields = Mapping[str, Field | None]
"""By name, those that are there; None for one that was refused, so that nobody misses it as well."""


def read_fields(text: str, first_line: int, schema: Schema, unknown: Rule, reject: Reject) -> Fields:
    """Reads the fields of a schema. Everything wrong with them is told to `reject`, with its line in the file.

    The format has no more than names and texts, so the YAML is read as events and never composed: nothing can be
    nested too deep, no alias multiplies and no tag makes an object.
    """
    written: dict[str, _Written | None] = {}
    try:
        members = _members(text)
    except _BrokenYaml as broken:
        reject(first_line + text.count("\n", 0, broken.index), broken.rule, broken.remedy)
        return dict.fromkeys(schema["properties"])
    for name_node, node in zip(members[::2], members[1::2], strict=True):
        # Lines are counted here, for to YAML U+0085 and U+2028 begin a new line as well.
        line = first_line + text.count("\n", 0, name_node.start_mark.index)
        if not _is_simple(name_node):
            reject(line, Rule.YAML_FEATURE, _SIMPLE_ONLY)
        elif (name := name_node.value) in written:
            reject(line, Rule.FIELD_TWICE, f"keep one `{printable(name)}:` and remove the other")
        else:
            written[name] = None
            if name in schema["properties"]:
                written[name] = _written(name, node, text, first_line, schema, reject)
            else:
                known = ", ".join(schema["properties"])
                reject(line, unknown, f"remove `{printable(name)}:`; the fields here are {known}")
    return _judged(written, schema, reject)


# ---------------------------------------------------------------------------------------------- by the schema


def _judged(written: Mapping[str, _Written | None], schema: Schema, reject: Reject) -> Fields:
    """Those of the fields that their schema allows."""
    fields: dict[str, Field | None] = dict.fromkeys(written)
    for name, field in written.items():
        if field is not None:
            value = _value(name, field, schema["properties"][name], reject)
            fields[name] = None if value is None else Field(value, field.line)
    for name in schema.get("required", ()):
        if name not in written:
            reject(1, Rule.FIELD_MISSING, f"add `{name}:`, which every {schema['title']} has")
    instance = {name: field.value for name, field in fields.items() if field is not None}
    refused: dict[str, ValidationError] = {}
    for error in Draft202012Validator(schema).iter_errors(instance):
        if error.validator == "required":  # told above, but for those that were refused before they came here
            continue
        name = str(error.path[0])
        # A value of the wrong type breaks other rules too; that it has the wrong type is what there is to say.
        if name not in refused or error.validator == "type":
            refused[name] = error
    for name, error in refused.items():
        if (refused_field := fields[name]) is not None:
            rule = Rule.SCHEMA_UNSUPPORTED if error.validator == "const" else Rule.FIELD_INVALID
            reject(refused_field.line, rule, _remedy(name, refused_field.value, error, schema["properties"][name]))
            fields[name] = None
    return fields


def _value(name: str, field: _Written, allowed: Schema, reject: Reject) -> Any:
    """The field's value in the type that its schema asks for, where it is written as one; None where it is refused."""
    if allowed["type"] == "integer":
        # Stricter than YAML, to which 010 is eight and 1:30 is ninety.
        is_number = field.is_plain and re.fullmatch("0|-?[1-9][0-9]{0,8}", field.value)
        return int(field.value) if is_number else field.value
    if field.is_plain and not _is_text_to_yaml(field.value):
        remedy = f'write `{name}: "{printable(field.value[:60])}"`: without the quotes YAML does not read it as text'
        reject(field.line, Rule.YAML_UNQUOTED, remedy)
        return None
    return field.value


def _remedy(name: str, value: Any, error: ValidationError, allowed: Schema) -> str:
    wanted = str(allowed["description"]).partition(":")[0]
    if error.validator == "const":
        return f"write `{name}: {wanted}`: this release reads no other, and here is {value}"
    if error.validator == "type":
        return f"write `{name}:` as {wanted}, in digits alone and without quotes"
    if error.validator == "enum":
        return f"{value[:60]!r} is not known here: write {wanted}"
    return f"write `{name}:` as {wanted}"


# ------------------------------------------------------------------------------------------------------ YAML


@dataclass(frozen=True, slots=True)
class _Written:
    """A field as it stands in the file. `is_plain`: without quotes, so that YAML may see more than text in it."""

    value: str
    line: int
    is_plain: bool


def _written(name: str, node: Any, text: str, first_line: int, schema: Schema, reject: Reject) -> _Written | None:
    line = first_line + text.count("\n", 0, node.start_mark.index)
    if not _is_simple(node):
        reject(line, Rule.YAML_FEATURE, _SIMPLE_ONLY)
        return None
    is_plain = node.style is None
    if is_plain and not node.value:
        reject(line, Rule.FIELD_EMPTY, f"give `{name}:` a value, or remove the line")
    elif is_plain and "maxLength" in schema["properties"][name] and re.match("[ \t]+#", text[node.end_mark.index :]):
        # Only in free text: behind a key, a number or one of a few words nobody means it to be part of them.
        remedy = f"write the text of `{name}:` between quotation marks: YAML drops what is behind ` #`"
        reject(line, Rule.YAML_COMMENT, remedy)
    elif any("\ud800" <= character <= "\udfff" for character in node.value):
        reject(line, Rule.YAML_INVALID, "write the character itself: half of it, as in `\\ud83d`, is no text")
    else:
        # YAML ends a block text with the line break of its last line, which is not part of what was written.
        value = node.value.strip("\n") if node.style in ("|", ">") else node.value
        return _Written(value, line, is_plain)
    return None


# Used for its judgement alone: whether an unquoted value is text to YAML 1.1, or a number, a date, a yes or a no.
_YAML_1_1 = yaml.resolver.Resolver()
# What else is none: to YAML 1.2, which editors read (core schema, section 10.3.2), and the short yes and no of 1.1.
_NO_TEXT = re.compile(
    r"[yYnN]|0o[0-7]+|0x[0-9a-fA-F]+|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)


def _is_text_to_yaml(value: str) -> bool:
    tag = _YAML_1_1.resolve(yaml.ScalarNode, value, (True, False))  # type: ignore[no-untyped-call]  # a gap in the stubs
    return tag == "tag:yaml.org,2002:str" and not _NO_TEXT.fullmatch(value)


_SIMPLE_ONLY = "write `name: text`: lists, mappings, anchors, aliases and tags are not read"


def _is_simple(node: Any) -> bool:
    return isinstance(node, yaml.ScalarEvent) and node.anchor is None and node.tag is None


class _BrokenYaml(Exception):
    """No mapping can be read; `index` is where in the text."""

    def __init__(self, index: int, rule: Rule, remedy: str) -> None:
        super().__init__(remedy)
        self.index = index
        self.rule = rule
        self.remedy = remedy


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
