"""The tool table: schemas, annotations, and how arguments are decoded."""

from __future__ import annotations

from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import InvalidArguments
from domain.progress import MAX_NOTE_CHARS
from domain.walkthrough import MAX_STEPS
from entrypoints.mcp.schema import input_schema, output_schema
from entrypoints.mcp.tools import TOOLS, Tool
from tests.domain.generate import examples

_ALL = pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS.keys())

_RIGHT: dict[str, dict[str, Any]] = {
    "list_walkthroughs": {},
    "select_walkthrough": {"walkthrough": "tour", "restart": True, "version": "latest"},
    "next_walkthrough_step": {"completed_step": "h", "walkthrough": "tour", "outcome": "stuck", "note": "n"},
    "get_walkthrough_status": {"walkthrough": "tour"},
    "review_walkthrough_step": {"walkthrough": "tour", "step_number": 1},
}
_WRONG: list[tuple[str, str, Any]] = [
    ("select_walkthrough", "walkthrough", 5),
    ("select_walkthrough", "walkthrough", ""),
    ("select_walkthrough", "walkthrough", "x" * 301),
    ("select_walkthrough", "walkthrough", ["tour"]),
    ("select_walkthrough", "walkthrough", {"key": "tour"}),
    ("select_walkthrough", "restart", "true"),
    ("select_walkthrough", "restart", 1),
    ("select_walkthrough", "version", "newest"),
    ("select_walkthrough", "version", 2),
    ("next_walkthrough_step", "completed_step", 5),
    ("next_walkthrough_step", "completed_step", "x" * 301),
    ("next_walkthrough_step", "walkthrough", ""),
    ("next_walkthrough_step", "outcome", "failed"),
    ("next_walkthrough_step", "outcome", True),
    ("next_walkthrough_step", "note", "x" * (MAX_NOTE_CHARS + 1)),
    ("next_walkthrough_step", "note", ["x"]),
    ("get_walkthrough_status", "walkthrough", 1.5),
    ("review_walkthrough_step", "walkthrough", False),
    ("review_walkthrough_step", "step_number", "1"),
    ("review_walkthrough_step", "step_number", 0),
    ("review_walkthrough_step", "step_number", -1),
    ("review_walkthrough_step", "step_number", MAX_STEPS + 1),
    ("review_walkthrough_step", "step_number", 10**40),
    ("review_walkthrough_step", "step_number", 1.5),
    ("review_walkthrough_step", "step_number", True),
]


# ------------------------------------------------------------------------------------------------- schemas


@pytest.mark.promise("tools.schema")
@_ALL
def test_both_schemas_are_plain_objects_at_the_root(tool: Tool[Any]) -> None:
    for schema in (input_schema(tool.arguments), output_schema(tool.result)):
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["type"] == "object"
        assert not {"anyOf", "oneOf", "allOf", "$ref", "title"} & set(schema)
        assert isinstance(schema["properties"], dict)
        for definition in schema.get("$defs", {}).values():
            assert "title" not in definition


@pytest.mark.promise("tools.schema")
@_ALL
def test_every_argument_has_one_type_and_a_description(tool: Tool[Any]) -> None:
    schema = input_schema(tool.arguments)
    assert "$defs" not in schema
    for name, argument in schema["properties"].items():
        assert "anyOf" not in argument, name
        assert argument.get("type") in ("string", "boolean", "integer") or "enum" in argument
        assert argument["description"], name


@pytest.mark.promise("tools.schema")
@_ALL
def test_the_arguments_are_those_of_the_contract(tool: Tool[Any]) -> None:
    schema = input_schema(tool.arguments)
    assert set(schema["properties"]) == set(_RIGHT[tool.name])
    assert (
        set(schema.get("required", []))
        == {
            "list_walkthroughs": set(),
            "select_walkthrough": {"walkthrough"},
            "next_walkthrough_step": {"completed_step"},
            "get_walkthrough_status": set(),
            "review_walkthrough_step": {"walkthrough", "step_number"},
        }[tool.name]
    )
    assert (schema.get("additionalProperties") is False) == (not tool.is_read_only)


def test_there_are_five_tools_and_only_the_list_is_open() -> None:
    assert list(TOOLS) == list(_RIGHT)
    assert all(name == tool.name for name, tool in TOOLS.items())
    assert [name for name, tool in TOOLS.items() if tool.is_open] == ["list_walkthroughs"]
    assert [name for name, tool in TOOLS.items() if not tool.is_read_only] == [
        "select_walkthrough",
        "next_walkthrough_step",
    ]


@pytest.mark.promise("tools.schema", "tools.arguments")
@pytest.mark.parametrize(("name", "argument", "value"), _WRONG)
def test_the_schema_and_the_decoder_refuse_the_same_values(name: str, argument: str, value: Any) -> None:
    tool, arguments = TOOLS[name], {**_RIGHT[name], argument: value}
    assert not jsonschema.Draft202012Validator(input_schema(tool.arguments)).is_valid(arguments)
    with pytest.raises(InvalidArguments) as caught:
        tool.decode(arguments)
    assert argument in caught.value.problem
    assert len(caught.value.problem) < 1_000


@pytest.mark.promise("tools.schema", "tools.arguments")
@_ALL
def test_the_schema_and_the_decoder_take_the_same_values(tool: Tool[Any]) -> None:
    validator = jsonschema.Draft202012Validator(input_schema(tool.arguments))
    validator.validate(_RIGHT[tool.name])
    decoded = msgspec.structs.asdict(tool.decode(_RIGHT[tool.name]))
    assert decoded == _RIGHT[tool.name]


@pytest.mark.promise("tools.arguments")
def test_a_note_of_the_greatest_length_is_taken_whatever_its_characters() -> None:
    for letter in ("x", "é", "漢", "😀"):
        decoded = TOOLS["next_walkthrough_step"].decode({"completed_step": "h", "note": letter * MAX_NOTE_CHARS})
        assert len(decoded.note) == MAX_NOTE_CHARS


# ----------------------------------------------------------------------------------------------- decoding


@pytest.mark.promise("tools.null-is-absent")
@_ALL
def test_null_counts_as_absent(tool: Tool[Any]) -> None:
    required = set(input_schema(tool.arguments).get("required", []))
    optional = {name: None for name in _RIGHT[tool.name] if name not in required}
    given_required = {name: value for name, value in _RIGHT[tool.name].items() if name in required}
    assert tool.decode({**given_required, **optional}) == tool.decode(given_required)
    for name in required - {"completed_step"}:
        with pytest.raises(InvalidArguments) as absent:
            tool.decode({key: value for key, value in given_required.items() if key != name})
        with pytest.raises(InvalidArguments) as null:
            tool.decode({**given_required, name: None})
        assert null.value.problem == absent.value.problem
        assert name in null.value.problem
    # An unknown argument that is null is absent, too.
    assert tool.decode({**given_required, "whatever": None}) == tool.decode(given_required)


@pytest.mark.promise("tools.null-is-absent")
def test_a_missing_handle_is_left_to_the_tool_which_can_say_more() -> None:
    for arguments in ({}, {"completed_step": None}, None):
        assert TOOLS["next_walkthrough_step"].decode(arguments).completed_step is None


@pytest.mark.promise("tools.arguments")
@_ALL
def test_an_unknown_argument_is_ignored_by_readers_and_refused_by_name_by_the_others(tool: Tool[Any]) -> None:
    arguments = {**_RIGHT[tool.name], "step": 3}
    if tool.is_read_only:
        assert tool.decode(arguments) == tool.decode(_RIGHT[tool.name])
    else:
        with pytest.raises(InvalidArguments, match="step"):
            tool.decode(arguments)


@pytest.mark.promise("tools.arguments")
def test_a_value_that_is_none_of_the_choices_is_refused_with_the_choices() -> None:
    for name, argument, choices in (
        ("select_walkthrough", "version", ("pinned", "latest")),
        ("next_walkthrough_step", "outcome", ("done", "skipped", "stuck")),
    ):
        with pytest.raises(InvalidArguments) as caught:
            TOOLS[name].decode({**_RIGHT[name], argument: "other"})
        assert all(choice in caught.value.problem for choice in choices)


_HALF_PAIR = "\ud800"


@pytest.mark.promise("tools.arguments")
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("select_walkthrough", "version"),
        ("select_walkthrough", "restart"),
        ("select_walkthrough", "walkthrough"),
        ("select_walkthrough", _HALF_PAIR),
        ("next_walkthrough_step", "outcome"),
        ("review_walkthrough_step", "step_number"),
        ("get_walkthrough_status", _HALF_PAIR),
        ("list_walkthroughs", _HALF_PAIR),
    ],
)
def test_half_of_a_surrogate_pair_is_a_mistake_of_the_caller_s_and_no_failure(name: str, argument: str) -> None:
    problem = ""
    try:
        TOOLS[name].decode({**_RIGHT[name], argument: _HALF_PAIR})
    except InvalidArguments as error:
        problem = error.problem
    assert problem.isascii()


@pytest.mark.promise("tools.arguments", "tools.size-limit")
def test_what_is_said_of_wrong_arguments_is_bounded_however_long_they_are() -> None:
    for name, argument, value in (
        ("select_walkthrough", "version", "x" * 500_000),
        ("next_walkthrough_step", "outcome", "x" * 500_000),
        ("select_walkthrough", "x" * 500_000, 1),
    ):
        with pytest.raises(InvalidArguments) as caught:
            TOOLS[name].decode({**_RIGHT[name], argument: value})
        assert len(caught.value.problem) < 1_000


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.promise("tools.arguments", "tools.schema")
@examples(300)
@given(st.data(), st.sampled_from(sorted(_RIGHT)))
def test_whatever_json_comes_is_taken_or_refused_as_the_schema_says(data: st.DataObject, name: str) -> None:
    tool = TOOLS[name]
    known = {argument: _json | st.just(value) for argument, value in _RIGHT[name].items()}
    arguments = data.draw(st.fixed_dictionaries({}, optional={**known, "other": _json}))
    schema = input_schema(tool.arguments)
    # The two things that are said of arguments beside the schema: null is absent, and a handle may be missing.
    as_seen = {key: value for key, value in arguments.items() if value is not None}
    schema["required"] = [each for each in schema.get("required", []) if each != "completed_step"]
    try:
        tool.decode(arguments)
    except InvalidArguments:
        taken = False
    else:
        taken = True
    # 1.0 is an integer to JSON Schema and none to us: nothing writes it, and it is refused with a word.
    has_whole_float = any(isinstance(value, float) and value.is_integer() for value in as_seen.values())
    assert taken == jsonschema.Draft202012Validator(schema).is_valid(as_seen) or has_whole_float


def test_no_argument_stands_in_a_header_as_well() -> None:
    """So the endpoint gives the SDK no schema to look for such arguments in."""
    assert [name for name, tool in TOOLS.items() if "x-mcp-header" in str(input_schema(tool.arguments))] == []
