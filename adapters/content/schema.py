"""The JSON Schemas (draft 2020-12) of `walkthrough.yaml` and of a step's front matter.

They are built from the domain's limits, printed by `cairn schema` for editors, and what the reader asks: which fields
there are, which must be there, and what each may hold. The first words of a field's description, up to its colon, say
what to write; an editor shows them while writing, and a finding afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domain.tenancy import BREAKS_A_LINE, KEY
from domain.walkthrough import MAX_DESCRIPTION_CHARS, MAX_MINUTES, MAX_TITLE_CHARS, Delivery, WalkthroughType

SCHEMA = 1
"""The version of the folder format."""

Schema = Mapping[str, Any]


def _unescaped(pattern: str) -> str:
    """A pattern without characters that cannot be printed: Python's and JavaScript's escapes are the same here."""
    return "".join(each if each.isascii() and each.isprintable() else f"\\u{ord(each):04x}" for each in pattern)


_KEY: Schema = {
    "type": "string",
    # Without the look-ahead, Python's `$` would let a line break pass at the end.
    "pattern": rf"^{KEY.pattern}(?!\n)$",
    "description": "1 to 64 lower-case letters, digits, '.', '_' and '-', beginning with a letter or digit: the name "
    "that stays the same when the title changes.",
}
_TITLE: Schema = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_TITLE_CHARS,
    "pattern": r"\S",
    "not": {"pattern": _unescaped(BREAKS_A_LINE.pattern)},
    "description": f"one line of 1 to {MAX_TITLE_CHARS} characters: what people see.",
}

WALKTHROUGH_SCHEMA: Schema = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "walkthrough.yaml",
    "description": "A walkthrough: what it is called and what it is for. Its steps are the Markdown files beside it.",
    "type": "object",
    "properties": {
        "schema": {"type": "integer", "const": SCHEMA, "description": f"{SCHEMA}: the version of this format."},
        "key": _KEY,
        "title": _TITLE,
        "description": {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_DESCRIPTION_CHARS,
            "pattern": r"\S",
            "description": f"1 to {MAX_DESCRIPTION_CHARS:,} characters: what it is about, for whoever chooses.",
        },
        "type": {
            "type": "string",
            "enum": [each.value for each in WalkthroughType],
            "description": f"one of {', '.join(WalkthroughType)}: what it is for.",
        },
    },
    "required": ["schema", "key", "title", "description", "type"],
    "additionalProperties": False,
}

STEP_SCHEMA: Schema = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "front matter of a step",
    "description": "What stands between the two `---` lines at the top of a step. All of it may be left out.",
    "type": "object",
    "properties": {
        "key": {**_KEY, "description": f"{_KEY['description']} Without it, the file's name says."},
        "title": {**_TITLE, "description": f"{_TITLE['description']} Without it, the first heading says."},
        "minutes": {
            "type": "integer",
            "minimum": 1,
            "maximum": MAX_MINUTES,
            "description": f"a whole number from 1 to {MAX_MINUTES}: how long the step takes.",
        },
        "delivery": {
            "type": "string",
            "enum": [each.value for each in Delivery],
            "default": Delivery.EXPLAIN.value,
            "description": f"one of {', '.join(Delivery)}: how the assistant presents the step.",
        },
    },
    "additionalProperties": False,
}

SCHEMAS: Mapping[str, Schema] = {"walkthrough": WALKTHROUGH_SCHEMA, "step": STEP_SCHEMA}
"""By the names under which `cairn schema` prints them."""
