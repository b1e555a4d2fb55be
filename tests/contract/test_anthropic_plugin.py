"""The Anthropic plugin: chats to Messages, and Messages streams to chunks."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Mapping
from functools import cache
from operator import attrgetter
from typing import Any

import pytest
from cuts import cut
from fakes import make_instance, serving
from hypothesis import given
from hypothesis import strategies as st
from nexus_gateway_plugins.anthropic import Anthropic
from nexus_gateway_plugins.anthropic.request import MAX_TOKENS
from official import anthropic
from pydantic import TypeAdapter

from nexus_gateway.provider import Account, Call, CannotServe, Outcome
from nexus_gateway.secret import Secret
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.wire.chunks import Answer, fold
from nexus_gateway.wire.sse import Event

OLD = "claude-sonnet-4-6"
NEW = "claude-sonnet-5-5"
SMALL = "claude-haiku-4-5-20251001"
HELLO = {"role": "user", "content": "Hello!"}
EPHEMERAL = {"type": "ephemeral"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Says it.", "parameters": SCHEMA},
}
WEATHER = {"name": "weather", "description": "Says it.", "input_schema": SCHEMA}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def turn(role: str, *blocks: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": role, "content": list(blocks)}


def called(id: str, arguments: str = "{}") -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"id": id, "type": "function", "function": function}


def use(id: str, **input: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": "weather", "input": input}


def result(id: str, *blocks: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, **({"content": [*blocks]} if blocks else {})}


def call(chat: Mapping[str, Any], base_url: str = "https://api.anthropic.com/v1") -> Call:
    body = {"model": NEW, "stream": True, "messages": [HELLO], **chat}
    return Call(body, Account(Secret("sk-ant-1"), base_url))


def encode(**chat: Any) -> dict[str, Any]:
    request = call(chat)
    before = copy.deepcopy(request.chat)
    body = Anthropic().encode(request).body
    assert request.chat == before
    assert isinstance(body, bytes)
    parsed: dict[str, Any] = json.loads(body)
    check_shape(parsed)
    return parsed


@cache
def official(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(attrgetter(name)(anthropic.types))


def check_shape(body: Mapping[str, Any]) -> None:
    """Check a body against the types of Anthropic's own client, which does not check lists."""
    official("message_create_params.MessageCreateParamsStreaming").validate_python(body)
    for turn in body["messages"]:
        official("MessageParam").validate_python(turn)
        for block in turn["content"]:
            official("ContentBlockParam").validate_python(block)
    for tool in body.get("tools", []):
        official("ToolParam").validate_python(tool)


def refusal(**chat: Any) -> CannotServe:
    with pytest.raises(CannotServe) as caught:
        Anthropic().encode(call(chat))
    assert caught.value.message
    return caught.value


def test_a_minimal_chat_is_translated() -> None:
    request = Anthropic().encode(call({}, "http://127.0.0.1:9/x"))
    assert request.url == "http://127.0.0.1:9/x/messages"
    assert request.headers == {
        "Content-Type": "application/json",
        "x-api-key": "sk-ant-1",
    }
    assert encode() == {
        "model": NEW,
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "messages": [turn("user", text("Hello!"))],
    }


def test_the_default_model_is_offered_first() -> None:
    assert Anthropic.models[0].id == Anthropic.default_model
    assert all(model.images and model.context for model in Anthropic.models)
    assert Anthropic().authorize(Secret("")) == {}


PNG = "data:image/png;base64,aGk="
PARTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (text("Hi"), text("Hi")),
    (text("Hi", cache_control=EPHEMERAL), text("Hi", cache_control=EPHEMERAL)),
    (
        {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}},
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": "aGk="},
        },
    ),
    (
        {"type": "image_url", "image_url": {"url": "data:image/jpg;base64,aGk="}},
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/jpeg", "data": "aGk="},
        },
    ),
    (
        {
            "type": "image_url",
            "image_url": {"url": "https://example.com/a.png"},
            "cache_control": EPHEMERAL,
        },
        {
            "type": "image",
            "source": {"type": "url", "url": "https://example.com/a.png"},
            "cache_control": EPHEMERAL,
        },
    ),
    (
        {
            "type": "file",
            "file": {"file_data": "data:application/pdf;base64,JVBE", "filename": "a.pdf"},
        },
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"},
            "title": "a.pdf",
        },
    ),
]


@pytest.mark.parametrize(("part", "block"), PARTS)
def test_parts_are_translated(part: dict[str, Any], block: dict[str, Any]) -> None:
    body = encode(messages=[{"role": "user", "content": [text(" "), part]}])
    assert body["messages"] == [turn("user", block)]


CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "system prompts from everywhere": (
        [
            {"role": "system", "content": "Be brief."},
            HELLO,
            {"role": "developer", "content": [text("Be kind."), text("")]},
            {"role": "user", "content": "Well?"},
        ],
        {
            "system": [text("Be brief."), text("Be kind.")],
            "messages": [turn("user", text("Hello!"), text("Well?"))],
        },
    ),
    "one system prompt": (
        [{"role": "system", "content": "Be brief."}, HELLO],
        {"system": "Be brief.", "messages": [turn("user", text("Hello!"))]},
    ),
    "a cached system prompt": (
        [{"role": "system", "content": [text("Long.", cache_control=EPHEMERAL)]}, HELLO],
        {
            "system": [text("Long.", cache_control=EPHEMERAL)],
            "messages": [turn("user", text("Hello!"))],
        },
    ),
    "marks on messages, calls and results": (
        [
            {"role": "system", "content": "Long.", "cache_control": EPHEMERAL},
            {**HELLO, "cache_control": EPHEMERAL},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{**called("a", ""), "cache_control": EPHEMERAL}, called("b", "")],
            },
            {
                "role": "tool",
                "tool_call_id": "a",
                "content": [text("Sunny", cache_control=EPHEMERAL)],
            },
            {
                "role": "tool",
                "tool_call_id": "b",
                "content": "Rainy",
                "cache_control": EPHEMERAL,
            },
        ],
        {
            "system": [text("Long.", cache_control=EPHEMERAL)],
            "messages": [
                turn("user", text("Hello!", cache_control=EPHEMERAL)),
                turn("assistant", {**use("a"), "cache_control": EPHEMERAL}, use("b")),
                turn(
                    "user",
                    result("a", text("Sunny", cache_control=EPHEMERAL)),
                    {**result("b", text("Rainy")), "cache_control": EPHEMERAL},
                ),
            ],
        },
    ),
    "tools called and their results": (
        [
            HELLO,
            {
                "role": "assistant",
                "content": "Wait.",
                "tool_calls": [called("a", '{"city": "Rome"}'), called("functions.b:0", " ")],
            },
            {"role": "user", "content": "Hurry!"},
            {"role": "tool", "tool_call_id": "a", "content": "Sunny"},
            {"role": "tool", "tool_call_id": "functions.b:0", "content": ""},
        ],
        {
            "messages": [
                turn("user", text("Hello!")),
                turn("assistant", text("Wait."), use("a", city="Rome"), use("functions.b:0")),
                turn("user", result("a", text("Sunny")), result("functions.b:0"), text("Hurry!")),
            ]
        },
    ),
    "a tool that shows an image": (
        [
            HELLO,
            {"role": "assistant", "content": None, "tool_calls": [called("a")]},
            {"role": "tool", "tool_call_id": "a", "content": [PARTS[2][0]]},
        ],
        {
            "messages": [
                turn("user", text("Hello!")),
                turn("assistant", use("a")),
                turn("user", result("a", PARTS[2][1])),
            ]
        },
    ),
    "blank messages": (
        [HELLO, {"role": "assistant", "content": ""}, {"role": "user", "content": [text("So?")]}],
        {"messages": [turn("user", text("Hello!"), text("So?"))]},
    ),
    "refusals": (
        [
            HELLO,
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "assistant", "content": None, "refusal": "Never."},
            HELLO,
        ],
        {
            "messages": [
                turn("user", text("Hello!")),
                turn("assistant", text("No."), text("Never.")),
                turn("user", text("Hello!")),
            ]
        },
    ),
    "an answer begun": (
        [HELLO, {"role": "assistant", "content": "I say: \n"}],
        {"messages": [turn("user", text("Hello!")), turn("assistant", text("I say:"))]},
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_are_translated(name: str) -> None:
    messages, expected = CONVERSATIONS[name]
    body = encode(messages=messages)
    assert {k: v for k, v in body.items() if k in ("system", "messages")} == expected


FIELDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"max_tokens": 5}, {"max_tokens": 5}),
    ({"max_tokens": 5, "max_completion_tokens": 6}, {"max_tokens": 6}),
    ({"max_tokens": 5, "max_completion_tokens": None}, {"max_tokens": 5}),
    ({"model": OLD, "temperature": 0.5}, {"model": OLD, "temperature": 0.5}),
    ({"model": OLD, "temperature": 1.5, "top_p": 0.9}, {"model": OLD, "temperature": 1}),
    ({"model": OLD, "top_p": 0.9}, {"model": OLD, "top_p": 0.9}),
    ({"temperature": 0.5, "top_p": 0.9}, {}),
    ({"stop": "END"}, {"stop_sequences": ["END"]}),
    ({"stop": ["END", "\n", ""]}, {"stop_sequences": ["END"]}),
    ({"stop": "\n"}, {}),
    ({"user": "u-1"}, {"metadata": {"user_id": "u-1"}}),
    ({"user": "u-1", "safety_identifier": "s-1"}, {"metadata": {"user_id": "s-1"}}),
    ({"user": "me@example.com"}, {}),
    ({"user": "+39 (06) 123-4567"}, {}),
    ({"user": "u" * 257}, {}),
    ({"tools": [TOOL]}, {"tools": [WEATHER]}),
    ({"tools": [{**TOOL, "cache_control": EPHEMERAL}]},
     {"tools": [{**WEATHER, "cache_control": EPHEMERAL}]}),
    (
        {"tools": [{"type": "function", "function": {"name": "now", "strict": True}}]},
        {"tools": [{"name": "now", "strict": True, "input_schema": {"type": "object"}}]},
    ),
    ({"tools": [], "tool_choice": "auto"}, {}),
    ({"response_format": {"type": "text"}}, {}),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "place", "strict": True, "schema": SCHEMA},
            },
            "reasoning_effort": "medium",
        },
        {
            "output_config": {
                "format": {"type": "json_schema", "schema": SCHEMA},
                "effort": "medium",
            }
        },
    ),
    ({"reasoning_effort": "minimal"}, {"output_config": {"effort": "low"}}),
    ({"reasoning_effort": "none"}, {"output_config": {"effort": "low"}}),
    ({"reasoning_effort": "xhigh"}, {"output_config": {"effort": "xhigh"}}),
    ({"reasoning_effort": "enormous"}, {}),
    ({"model": OLD, "reasoning_effort": "xhigh"},
     {"model": OLD, "output_config": {"effort": "high"}}),
    ({"model": SMALL, "reasoning_effort": "low"}, {"model": SMALL}),
    (
        {
            "seed": 1,
            "frequency_penalty": 1,
            "presence_penalty": 1,
            "logit_bias": {"1": 1},
            "service_tier": "auto",
            "store": True,
            "metadata": {"a": "b"},
            "prompt_cache_key": "k",
            "stream_options": {"include_usage": True},
            "verbosity": "low",
            "n": 1,
            "logprobs": False,
            "top_logprobs": 0,
            "modalities": ["text"],
            "functions": None,
        },
        {},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("chat", "expected"), FIELDS)
def test_fields_are_translated(chat: dict[str, Any], expected: dict[str, Any]) -> None:
    assert encode(**chat) == {**encode(), **expected}


@pytest.mark.parametrize(
    ("chat", "choice"),
    [
        ({}, None),
        ({"parallel_tool_calls": True}, None),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        (
            {
                "tool_choice": {"type": "function", "function": {"name": "weather"}},
                "parallel_tool_calls": False,
            },
            {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        ),
    ],
)
def test_a_tool_choice_is_translated(chat: dict[str, Any], choice: dict[str, Any] | None) -> None:
    assert encode(tools=[TOOL], **chat).get("tool_choice") == choice


@pytest.mark.parametrize(
    ("chat", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"functions": [{}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
        ({"stop": 5}, "stop"),
        ({"stop": [5]}, "stop"),
        ({"tools": {}}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    ],
)
def test_fields_that_anthropic_lacks_are_an_error(chat: dict[str, Any], param: str) -> None:
    assert refusal(**chat).param == param


def answer_with(arguments: object) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "a", "function": function}]}


ARGUMENTS = "messages[1].tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "function", "content": "x"}, "messages[1].role"),
        ({"role": "user", "content": 5}, "messages[1].content"),
        ({"role": "user", "content": [5]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"type": "hologram"}]}, "messages[1].content[0]"),
        ({"role": "system", "content": [PARTS[2][0]]}, "messages[1].content"),
        ({"role": "tool", "content": "x"}, "messages[1].tool_call_id"),
        ({"role": "assistant", "audio": {"id": "x"}}, "messages[1].audio"),
        ({"role": "assistant", "function_call": {"name": "x"}}, "messages[1].function_call"),
        ({"role": "assistant", "tool_calls": "x"}, "messages[1].tool_calls"),
        ({"role": "assistant", "tool_calls": [{"type": "custom"}]}, "messages[1].tool_calls[0]"),
        (answer_with("{"), ARGUMENTS),
        (answer_with("[1]"), ARGUMENTS),
        (answer_with('{"a": NaN}'), ARGUMENTS),
        (answer_with('{"a":' * 100_000), ARGUMENTS),
        (answer_with({"a": 1}), ARGUMENTS),
        (answer_with('{"a": "\\ud800"}'), "messages"),
    ],
)
def test_messages_that_anthropic_lacks_are_an_error(message: dict[str, Any], param: str) -> None:
    assert refusal(messages=[HELLO, message]).param == param


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "image_url", "image_url": PNG}, "image_url"),
        ({"type": "image_url", "image_url": {"url": "ftp://x/a.png"}}, "image_url.url"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,hi"}}, "image_url.url"),
        (
            {"type": "image_url", "image_url": {"url": "data:image/bmp;base64,aGk="}},
            "image_url.url",
        ),
        ({"type": "file", "file": {"file_id": "file-1"}}, "file.file_id"),
        ({"type": "file", "file": {}}, "file.file_data"),
        ({"type": "file", "file": {"file_data": PNG}}, "file.file_data"),
    ],
)
def test_unsupported_images_and_files_are_an_error(part: dict[str, Any], param: str) -> None:
    error = refusal(messages=[{"role": "user", "content": [part]}])
    assert error.param == f"messages[0].content[0].{param}"


def test_a_chat_with_only_a_system_prompt_is_an_error() -> None:
    assert refusal(messages=[{"role": "system", "content": "Be brief."}]).param == "messages"


Wire = list[dict[str, Any]]
USAGE = {"input_tokens": 25, "output_tokens": 1}
START = {"type": "message_start", "message": {"id": "msg_1", "content": [], "usage": USAGE}}
PING = {"type": "ping"}
STOP = {"type": "message_stop"}


def end(reason: str, **usage: Any) -> Wire:
    delta = {"stop_reason": reason, "stop_sequence": None}
    return [
        {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 15, **usage}},
        STOP,
    ]


def block(index: int, start: Mapping[str, Any], *deltas: Mapping[str, Any]) -> Wire:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def words(index: int, *pieces: str) -> Wire:
    deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
    return block(index, {"type": "text", "text": ""}, *deltas)


def tool(index: int, id: str, *pieces: str, input: object = None) -> Wire:
    start = {"type": "tool_use", "id": id, "name": "weather", "input": input or {}}
    deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    return block(index, start, *deltas)


async def stream(*wire: Mapping[str, Any] | str) -> list[dict[str, Any]]:
    async def events() -> AsyncIterator[Event]:
        for data in wire:
            if isinstance(data, str):
                yield Event("", data)
            else:
                yield Event(data["type"], json.dumps(data))

    answer = Answer("chatcmpl-1", 1, NEW)
    return [chunk async for chunk in Anthropic().stream(events(), answer)]


async def folded(*wire: Mapping[str, Any]) -> dict[str, Any]:
    return fold(await stream(*wire))


async def test_a_text_is_translated() -> None:
    completion = await folded(START, PING, *words(0, "Hel", "", "lo!"), *end("end_turn"))
    (choice,) = completion["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello!"}
    assert choice["finish_reason"] == "stop"
    assert completion["usage"] == {"prompt_tokens": 25, "completion_tokens": 15, "total_tokens": 40}


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ],
)
async def test_the_stop_reason_is_translated(reason: str, finish: str) -> None:
    completion = await folded(START, *words(0, "Well"), *end(reason))
    assert completion["choices"][0]["finish_reason"] == finish


async def test_parallel_tool_calls_are_translated() -> None:
    chunks = await stream(
        START,
        *words(0, "Let me look."),
        *tool(1, "toolu_1", "", '{"city": ', '"Rome"}'),
        *tool(2, "toolu_2", ""),
        *tool(3, "toolu_3", input={"city": "Oslo"}),
        *end("tool_use"),
    )
    (choice,) = fold(chunks)["choices"]
    calls = choice["message"]["tool_calls"]
    assert [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in calls] == [
        ("toolu_1", "weather", '{"city": "Rome"}'),
        ("toolu_2", "weather", "{}"),
        ("toolu_3", "weather", '{"city": "Oslo"}'),
    ]
    assert choice["finish_reason"] == "tool_calls"
    deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"]]
    numbers = [d["tool_calls"][0]["index"] for d in deltas if "tool_calls" in d]
    assert numbers == sorted(numbers)
    assert set(numbers) == {0, 1, 2}


@given(st.lists(st.integers(0, 100)), st.dictionaries(st.text(), st.text(), max_size=3))
def test_arguments_may_be_split_anywhere(places: list[int], value: dict[str, str]) -> None:
    arguments = json.dumps(value)
    pieces = [piece.decode() for piece in cut(arguments.encode(), places)]
    completion = asyncio.run(folded(START, *tool(0, "toolu_1", *pieces), *end("tool_use")))
    (tool_call,) = completion["choices"][0]["message"]["tool_calls"]
    assert tool_call["function"] == {"name": "weather", "arguments": arguments}


async def test_thinking_is_translated() -> None:
    completion = await folded(
        START,
        *block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "Let me "},
            {"type": "thinking_delta", "thinking": "see."},
            {"type": "signature_delta", "signature": "EqQB"},
        ),
        *block(1, {"type": "redacted_thinking", "data": "EmwK"}),
        *words(2, "27"),
        *end("end_turn", output_tokens=40, output_tokens_details={"thinking_tokens": 30}),
    )
    (choice,) = completion["choices"]
    assert choice["message"]["reasoning_content"] == "Let me see."
    assert choice["message"]["content"] == "27"
    assert completion["usage"]["completion_tokens"] == 40
    assert completion["usage"]["completion_tokens_details"] == {"reasoning_tokens": 30}


async def test_usage_includes_the_cache() -> None:
    start_usage = {
        **USAGE,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 10,
    }
    start = {"type": "message_start", "message": {"usage": start_usage}}
    late = {"input_tokens": 30, "cache_read_input_tokens": None, "output_tokens": 7}
    completion = await folded(start, *words(0, "Hi"), *end("end_turn", **late))
    assert completion["usage"] == {
        "prompt_tokens": 140,
        "completion_tokens": 7,
        "total_tokens": 147,
        "prompt_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 10},
    }


@pytest.mark.parametrize("received_events", range(5))
async def test_a_cut_stream_is_never_finished(received_events: int) -> None:
    wire = [START, *words(0, "Hel"), *end("end_turn")]
    assert len(wire) == 6
    chunks = await stream(*wire[: received_events + 1])
    assert all(choice["finish_reason"] is None for c in chunks for choice in c["choices"])
    assert not any("usage" in chunk for chunk in chunks)


async def test_an_error_event_in_the_stream_is_raised() -> None:
    error = {"type": "overloaded_error", "message": "Overloaded"}
    event = {"type": "error", "error": error, "request_id": "req_1"}
    *_, last = await stream(START, *words(0, "Hel"), event, *end("end_turn"))
    assert last == {"error": {**error, "param": None, "code": "overloaded_error"}}


@pytest.mark.parametrize("data", ["{", "[]", "[" * 100_000, '"x"'])
async def test_an_event_that_is_no_object_is_an_error(data: str) -> None:
    *_, last = await stream(START, *words(0, "Hel"), data)
    assert last["error"]["type"] == "upstream_error"


async def test_an_empty_response_has_no_content() -> None:
    (chunk,) = await stream("", STOP)
    assert chunk["choices"][0]["finish_reason"] == "stop"


async def test_nothing_is_read_after_the_end() -> None:
    chunks = await stream(START, *words(0, "Hi"), *end("end_turn"), "[DONE]")
    assert "usage" in chunks[-1]


async def test_unknown_events_and_blocks_are_skipped() -> None:
    citation = {"type": "citations_delta", "citation": {"type": "char_location"}}
    search = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
    search_result = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}
    completion = await folded(
        {"type": "brand_new", "delta": 5},
        {"type": "message_start"},
        {"type": "message_start", "message": {"usage": {"input_tokens": "many"}}},
        *block(0, search, {"type": "input_json_delta", "partial_json": '{"query": "x"}'}),
        *block(1, search_result),
        *block(2, {"type": "text", "text": "He"}, {"type": "text_delta", "text": "y"}, citation),
        *block(3, {"type": "brand_new"}, {"type": "brand_new_delta"}, {}),
        {"type": "content_block_delta", "index": 4, "delta": None},
        {"type": "content_block_delta", "index": [], "delta": {"type": "text_delta", "text": 5}},
        {"type": "content_block_stop"},
        {"type": "message_delta", "delta": None, "usage": None},
        STOP,
    )
    (choice,) = completion["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hey"}
    assert choice["finish_reason"] == "stop"
    assert completion["usage"]["prompt_tokens"] == 0


def failure(message: object, kind: str = "invalid_request_error", **more: Any) -> bytes:
    error = {"type": kind, "message": message, **more}
    return json.dumps({"type": "error", "error": error, "request_id": "req_1"}).encode()


LOW = "Your credit balance is too low to access the Anthropic API."
LIMIT = "You have reached your specified API usage limits. You will regain access on 2026-04-01."
SPENT = {"error_code": "contract_spend_limit_reached"}


@pytest.mark.parametrize(
    ("status", "body"),
    [(400, failure(LOW)), (400, failure(LIMIT)), (429, failure("Spent.", details=SPENT))],
)
def test_an_account_without_credit_is_a_bad_key(status: int, body: bytes) -> None:
    verdict = Anthropic().read_failure(status, {}, body)
    assert verdict is not None
    assert (verdict.outcome, verdict.status) == (Outcome.BAD_KEY, status)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, failure("max_tokens: Field required")),
        (400, failure(f'messages: Unexpected role "{LOW}".')),
        (400, failure(None, details=[])),
        (400, b"[" * 60_000),
        (400, b"<html>"),
        (400, b'{"error": "x"}'),
        (429, failure("Slow down.", "rate_limit_error", details={"error_code": ["x"]})),
        (529, failure("Overloaded", "overloaded_error")),
    ],
)
def test_other_failures_are_left_to_the_gateway(status: int, body: bytes) -> None:
    assert Anthropic().read_failure(status, {}, body) is None


def sent(*wire: Mapping[str, Any]) -> Reply:
    lines = [f"event: {data['type']}\ndata: {json.dumps(data)}\n\n" for data in wire]
    return Reply(body="".join(lines).encode(), content_type="text/event-stream")


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_chat_is_answered_over_a_socket(upstream: FakeUpstream, streamed: bool) -> None:
    upstream.default = sent(START, *words(0, "Hel", "lo!"), *end("end_turn"))
    async with serving(make_instance(upstream, provider=Anthropic, name="anthropic")) as served:
        status, answer, _ = await served.chat(stream=streamed)
    assert status == 200
    assert "Hel" in answer
    assert answer.endswith("[DONE]\n\n") == streamed
    (received,) = upstream.requests
    assert received.path == "/v1/messages"
    assert received.headers["anthropic-version"] == "2023-06-01"
    assert received.body["messages"] == [turn("user", text("Hello!"))]
