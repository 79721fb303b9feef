"""The published JSON Schemas: valid, the domain's own limits, and what the reader goes by."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from adapters.content.folder import read_folder
from adapters.content.schema import SCHEMAS, STEP_SCHEMA, WALKTHROUGH_SCHEMA
from domain.errors import ContentRejected, InvalidValue
from domain.tenancy import key
from domain.walkthrough import Delivery, StepText, WalkthroughType, description, minutes, title

JUDGED_BY: Mapping[str, Callable[[Any], object]] = {
    "key": key,
    "title": title,
    "description": description,
    "type": WalkthroughType,
    "minutes": minutes,
    "delivery": Delivery,
}
FIELDS = [(subject, name) for subject, schema in SCHEMAS.items() for name in schema["properties"] if name != "schema"]
texts = st.one_of(
    st.sampled_from(["", " ", "\t", "a\n", "a\u2028b", "-a", "a" * 64, "a" * 65, "a" * 200, "a" * 201, "a" * 1_001]),
    st.sampled_from([*WalkthroughType, *Delivery, "Course", "explain "]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12),
    st.from_regex(r"[a-zA-Z0-9._-]{0,4}", fullmatch=True),
)


def is_allowed_by_the_domain(name: str, value: object) -> bool:
    try:
        JUDGED_BY[name](value)
    except (InvalidValue, ValueError):
        return False
    return True


@pytest.mark.parametrize("subject", SCHEMAS)
def test_a_schema_is_one_of_draft_2020_12_that_can_be_printed(subject: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[subject])
    assert SCHEMAS[subject]["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json.dumps(SCHEMAS[subject], ensure_ascii=False).encode()) == SCHEMAS[subject]
    assert json.dumps(SCHEMAS[subject], ensure_ascii=False).isprintable()
    for name, field in SCHEMAS[subject]["properties"].items():
        assert field["description"].count(":") == 1, name


def test_the_schemas_have_exactly_the_fields_that_there_are() -> None:
    assert set(WALKTHROUGH_SCHEMA["properties"]) == {"schema", "key", "title", "description", "type"}
    assert set(STEP_SCHEMA["properties"]) == {"key", "title", "minutes", "delivery"}
    assert STEP_SCHEMA["properties"]["delivery"]["default"] == StepText("a", "A", "a").delivery.value


@pytest.mark.parametrize(("subject", "name"), [field for field in FIELDS if field[1] != "minutes"])
@settings(max_examples=300, deadline=None)
@given(value=texts)
def test_a_schema_allows_a_text_exactly_where_the_domain_does(subject: str, name: str, value: str) -> None:
    allowed = Draft202012Validator(SCHEMAS[subject]["properties"][name]).is_valid(value)
    assert allowed == is_allowed_by_the_domain(name, value)


@given(value=st.integers(-5, 2_000))
@example(0)
@example(1_440)
@example(1_441)
def test_the_schema_allows_the_minutes_that_the_domain_does(value: int) -> None:
    allowed = Draft202012Validator(STEP_SCHEMA["properties"]["minutes"]).is_valid(value)
    assert allowed == is_allowed_by_the_domain("minutes", value)


@settings(max_examples=150, deadline=None)
@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            **{name: texts.filter(str.isprintable) for name in ("key", "title", "delivery", "colour")},
            "minutes": st.integers(-2, 1_500) | st.just("5"),
        },
    )
)
def test_the_reader_takes_the_front_matter_that_the_schema_allows_and_no_other(fields: dict[str, object]) -> None:
    # JSON is YAML, and with quotes a text is a text.
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]
    front_matter = ["---", *lines, "---"] if fields else []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "walkthrough.yaml").write_text("schema: 1\nkey: a\ntitle: A\ndescription: A.\ntype: course\n")
        (Path(folder) / "a.md").write_text("\n".join([*front_matter, "# T"]))
        try:
            read_folder(Path(folder))
            is_taken = True
        except ContentRejected as refusal:
            # What the characters of a title may be, beyond the schema, is the check's business.
            is_taken = {each.rule.partition("-")[0] for each in refusal.findings} == {"character"}
    assert is_taken == Draft202012Validator(STEP_SCHEMA).is_valid(fields)
