"""`cairn serve` with the tools, prompts and resources that the official conformance suite asks for.

They are added to the product's own MCP server, so that whatever is tried passes the product's gate, router, transport
and middleware. The suite sends no token: each request gets that of FIXTURE_TOKEN.

Some of what is added needs a message from the server besides its answer. Cairn's transport offers none, so that these
scenarios are excluded; the tools try nevertheless, and the exclusions would be told if ever they got through.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import mcp_types as types
from litestar.types import Receive, Scope, Send
from mcp.server import ServerRequestContext
from mcp.shared.exceptions import MCPError

from entrypoints.cli import main
from entrypoints.http import app
from entrypoints.http.gate import Gate
from entrypoints.mcp.server import McpEndpoint

_Json = dict[str, Any]
_Context = ServerRequestContext[Any, Any]

_AUTHORIZATION = (b"authorization", f"Bearer {os.environ['FIXTURE_TOKEN']}".encode())
_STATE_KEY = secrets.token_bytes(32)
# One pixel, and one sample.
_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
_WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="

# --------------------------------------------------------------------------------------------------- what it holds

_NO_ARGUMENTS: _Json = {"type": "object", "additionalProperties": False}
_KEYWORDS: _Json = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
_ANYTHING: _Json = {"type": "object"}
_REGION: _Json = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}


def _text(text: str) -> _Json:
    return {"type": "text", "text": text}


def _image() -> _Json:
    return {"type": "image", "data": _PNG, "mimeType": "image/png"}


def _embedded(uri: str, text: str, media_type: str = "text/plain") -> _Json:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": media_type, "text": text}}


def _said(*content: _Json, is_error: bool = False) -> _Json:
    return {"content": list(content), "isError": is_error}


# Tools that answer the same every time.
_ANSWERS: dict[str, _Json] = {
    "test_simple_text": _said(_text("This is a simple text response for testing.")),
    "test_image_content": _said(_image()),
    "test_audio_content": _said({"type": "audio", "data": _WAV, "mimeType": "audio/wav"}),
    "test_embedded_resource": _said(_embedded("test://embedded-resource", "This is an embedded resource content.")),
    "test_multiple_content_types": _said(
        _text("Multiple content types test:"),
        _image(),
        _embedded("test://mixed-content-resource", '{"test":"data","value":123}', "application/json"),
    ),
    "test_error_handling": _said(_text("This tool intentionally returns an error for testing"), is_error=True),
    "test_logging_tool": _said(_text("Nothing is logged to a client that did not ask for it.")),
    "test_region": _said(_text("The region is known.")),
    "json_schema_2020_12_tool": _said(_text("The schema is what matters.")),
}


def _asked(message: str, field: str, kind: str = "string") -> _Json:
    schema = {"type": "object", "properties": {field: {"type": kind}}, "required": [field]}
    return {"method": "elicitation/create", "params": {"mode": "form", "message": message, "requestedSchema": schema}}


def _sampled(prompt: str) -> _Json:
    messages = [{"role": "user", "content": _text(prompt)}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": 100}}


_ROOTS: _Json = {"method": "roots/list", "params": {}}
_CONFIRM = _asked("Please confirm", "ok", "boolean")

# Tools that want to know something first, in rounds: what each asks for, and whether its state goes to and fro.
_ROUNDS: dict[str, tuple[bool, list[_Json]]] = {
    "test_input_required_result_elicitation": (False, [{"user_name": _asked("What is your name?", "name")}]),
    "test_input_required_result_sampling": (
        False,
        [{"capital_question": _sampled("What is the capital of France?")}],
    ),
    "test_input_required_result_list_roots": (False, [{"client_roots": _ROOTS}]),
    "test_input_required_result_request_state": (True, [{"confirm": _CONFIRM}]),
    "test_input_required_result_tampered_state": (True, [{"confirm": _CONFIRM}]),
    "test_input_required_result_multiple_inputs": (
        True,
        [
            {
                "user_name": _asked("What is your name?", "name"),
                "greeting": _sampled("Generate a greeting"),
                "client_roots": _ROOTS,
            }
        ],
    ),
    "test_input_required_result_multi_round": (
        True,
        [
            {"step1": _asked("Step 1: What is your name?", "name")},
            {"step2": _asked("Step 2: What is your favorite color?", "color")},
        ],
    ),
    "test_streaming_elicitation": (False, [{"confirm": _CONFIRM}]),
    "test_input_required_result_capabilities": (False, [{"user_name": _asked("Name?", "name"), "s": _sampled("Hi")}]),
}
_ASKING_PROMPT = (False, [{"user_context": _asked("What context should the prompt use?", "context")}])
_NEEDS = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}

_RESOURCES: dict[str, _Json] = {
    "test://static-text": {"mimeType": "text/plain", "text": "This is the content of the static text resource."},
    "test://static-binary": {"mimeType": "image/png", "blob": _PNG},
}
_TEMPLATE = "test://template/{id}/data"

_PROMPTS: dict[str, tuple[str, ...]] = {
    "test_simple_prompt": (),
    "test_prompt_with_arguments": ("arg1", "arg2"),
    "test_prompt_with_embedded_resource": ("resourceUri",),
    "test_prompt_with_image": (),
    "test_input_required_result_prompt": (),
}

# ---------------------------------------------------------------------------------------------------- how it answers


def _sealed(tool: str, place: int) -> str:
    return f"{place}.{hmac.new(_STATE_KEY, f'{tool}.{place}'.encode(), hashlib.sha256).hexdigest()}"


def _still_to_ask(
    name: str, rounds: tuple[bool, list[_Json]], params: types.InputResponseRequestParams
) -> types.InputRequiredResult | None:
    """What to ask next; None when all has been answered."""
    has_state, questions = rounds
    place = 0
    if has_state and params.request_state is not None:
        place = next((at for at in range(len(questions)) if _sealed(name, at) == params.request_state), -1)
        if place < 0:
            raise MCPError(code=types.INVALID_PARAMS, message="This is no state of this server's.")
    if questions[place].keys() <= (params.input_responses or {}).keys():
        place += 1
    if place == len(questions):
        return None
    asked: _Json = {"resultType": "input_required", "inputRequests": questions[place]}
    if has_state:
        asked["requestState"] = _sealed(name, place)
    return types.InputRequiredResult.model_validate(asked)


def _within(
    capabilities: types.ClientCapabilities | None, rounds: tuple[bool, list[_Json]]
) -> tuple[bool, list[_Json]]:
    """Only the questions that a client has said it can answer."""
    has_state, questions = rounds
    return has_state, [
        {key: asked for key, asked in each.items() if getattr(capabilities, _NEEDS[asked["method"]], None) is not None}
        for each in questions
    ]


async def _report_progress(context: _Context) -> None:
    for progress in (0, 50, 100):
        await context.session.report_progress(progress, 100)


async def _sample(context: _Context) -> None:
    said = types.SamplingMessage.model_validate({"role": "user", "content": _text("Hi")})
    await context.session.create_message([said], max_tokens=100)


async def _elicit(context: _Context) -> None:
    await context.session.elicit_form("Please respond", _CONFIRM["params"]["requestedSchema"])


# Tools that send something else before they answer.
_SENDING: dict[str, Callable[[_Context], Awaitable[None]]] = {
    "test_tool_with_progress": _report_progress,
    "test_sampling": _sample,
    "test_elicitation": _elicit,
}


_SCHEMAS: dict[str, _Json] = {
    **dict.fromkeys([*_ANSWERS, *_ROUNDS, *_SENDING, "test_missing_capability"], _NO_ARGUMENTS),
    "json_schema_2020_12_tool": _KEYWORDS,
    "test_region": _REGION,
    "test_sampling": _ANYTHING,
    "test_elicitation": _ANYTHING,
}


async def _call_tool(context: _Context, params: types.CallToolRequestParams) -> Any:
    if params.name == "test_missing_capability":
        needed: _Json = {"requiredCapabilities": {"sampling": {}}}
        raise MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, "Sampling is needed.", needed)
    if params.name in _SENDING:
        await _SENDING[params.name](context)
        return types.CallToolResult.model_validate(_said(_text("It got through.")))
    if params.name in _ROUNDS:
        rounds = _ROUNDS[params.name]
        if params.name == "test_input_required_result_capabilities":
            rounds = _within(context.session.client_capabilities, rounds)
        if asked := _still_to_ask(params.name, rounds, params):
            return asked
        return types.CallToolResult.model_validate(_said(_text("Hello! state-ok")))
    return types.CallToolResult.model_validate(_ANSWERS[params.name])


async def _list_resources(context: _Context, params: types.PaginatedRequestParams) -> types.ListResourcesResult:
    listed = [{"uri": uri, "name": uri, "mimeType": held["mimeType"]} for uri, held in _RESOURCES.items()]
    return types.ListResourcesResult.model_validate({"resources": listed})


async def _list_templates(context: _Context, params: types.PaginatedRequestParams) -> types.ListResourceTemplatesResult:
    return types.ListResourceTemplatesResult.model_validate(
        {"resourceTemplates": [{"uriTemplate": _TEMPLATE, "name": "data", "mimeType": "application/json"}]}
    )


async def _read_resource(context: _Context, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
    before, after = _TEMPLATE.split("{id}")
    held = _RESOURCES.get(params.uri)
    if held is None and params.uri.startswith(before) and params.uri.endswith(after):
        id = params.uri.removeprefix(before).removesuffix(after)
        held = {
            "mimeType": "application/json",
            "text": f'{{"id":"{id}","templateTest":true,"data":"Data for ID: {id}"}}',
        }
    if held is None:
        raise MCPError(types.INVALID_PARAMS, "There is no such resource.", {"uri": params.uri})
    return types.ReadResourceResult.model_validate({"contents": [{"uri": params.uri, **held}]})


async def _list_prompts(context: _Context, params: types.PaginatedRequestParams) -> types.ListPromptsResult:
    return types.ListPromptsResult.model_validate(
        {
            "prompts": [
                {"name": name, "description": name, "arguments": [{"name": each, "required": True} for each in taken]}
                for name, taken in _PROMPTS.items()
            ]
        }
    )


async def _get_prompt(context: _Context, params: types.GetPromptRequestParams) -> Any:
    given: Mapping[str, str] = params.arguments or {}
    match params.name:
        case "test_simple_prompt":
            content = [_text("This is a simple prompt for testing.")]
        case "test_prompt_with_arguments":
            content = [_text(f"Prompt with arguments: arg1='{given['arg1']}', arg2='{given['arg2']}'")]
        case "test_prompt_with_embedded_resource":
            content = [
                _embedded(given["resourceUri"], "Embedded resource content for testing."),
                _text("Please process the embedded resource above."),
            ]
        case "test_prompt_with_image":
            content = [_image(), _text("Please analyze the image above.")]
        case "test_input_required_result_prompt":
            if asked := _still_to_ask(params.name, _ASKING_PROMPT, params):
                return asked
            content = [_text("The context is known.")]
        case _:
            raise MCPError(types.INVALID_PARAMS, "There is no such prompt.")
    return types.GetPromptResult.model_validate({"messages": [{"role": "user", "content": each} for each in content]})


async def _complete(context: _Context, params: types.CompleteRequestParams) -> types.CompleteResult:
    values = [each for each in ("paris", "park", "party") if each.startswith(params.argument.value)]
    return types.CompleteResult.model_validate({"completion": {"values": values, "hasMore": False}})


# -------------------------------------------------------------------------------------------------- where it is added


class FixtureEndpoint(McpEndpoint):
    """The product's endpoint, and with it everything above."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        server = self._manager.app
        own_schema, own_call = server.get_tool_input_schema, server.get_request_handler("tools/call")
        assert own_schema is not None
        assert own_call is not None

        async def call_tool(context: _Context, params: types.CallToolRequestParams) -> Any:
            handler = _call_tool if params.name in _SCHEMAS else own_call.handler
            return await handler(context, params)

        self._tools += [
            types.Tool(name=name, description=name, input_schema=schema) for name, schema in _SCHEMAS.items()
        ]
        server.get_tool_input_schema = lambda name: _SCHEMAS.get(name) or own_schema(name)
        for method, taken, handler in (
            ("tools/call", types.CallToolRequestParams, call_tool),
            ("resources/list", types.PaginatedRequestParams, _list_resources),
            ("resources/templates/list", types.PaginatedRequestParams, _list_templates),
            ("resources/read", types.ReadResourceRequestParams, _read_resource),
            ("prompts/list", types.PaginatedRequestParams, _list_prompts),
            ("prompts/get", types.GetPromptRequestParams, _get_prompt),
            ("completion/complete", types.CompleteRequestParams, _complete),
        ):
            server.add_request_handler(method, taken, handler)  # type: ignore[arg-type]


class SignedInGate(Gate):
    """The product's gate, and before it a client with a token."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":  # type: ignore[comparison-overlap]  # servers send the plain string
            scope["headers"] = [*scope["headers"], _AUTHORIZATION]
        await super().__call__(scope, receive, send)


if __name__ == "__main__":
    vars(app).update(McpEndpoint=FixtureEndpoint, Gate=SignedInGate)
    main.main(sys.argv[1:])
