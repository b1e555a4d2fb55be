from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from cuts import cut
from hypothesis import given
from hypothesis import strategies as st
from official import openai
from responses_dialect import (
    chat_of,
    events_of,
    full_response_of,
    messages_of,
    official_event,
    parse,
    response_of,
    short,
    stream_of,
    summaries,
)

from nexus_gateway.dialects.base import InvalidAnswer
from nexus_gateway.dialects.responses import RESPONSES
from nexus_gateway.errors import BrokenStream, ErrorEvent, InvalidRequest, TruncatedStream
from nexus_gateway.wire import sse
from nexus_gateway.wire.carried import load_reasoning
from nexus_gateway.wire.chunks import Answer, Chunk, fold

ANSWER = Answer("chatcmpl-7", 5, "m")
USER = {"role": "user", "content": "Hi"}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "9"}
PICTURE = {"type": "input_image", "image_url": "data:image/png;base64,AA"}
CHAT_PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}


def delta(**fields: Any) -> Chunk:
    return {**ANSWER.text(""), "choices": [{"index": 0, "delta": fields}]}


# The request.


def test_a_plain_request_is_translated() -> None:
    request = parse({"model": "m", "input": "Hi"})
    assert (request.model, request.stream, request.images) == ("m", False, False)
    assert request.native is not None
    assert request.chat is not None
    assert json.loads(request.native.encode("n")) == {"model": "n", "stream": False, "input": "Hi"}
    assert json.loads(request.chat.encode("n")) == {
        "model": "n",
        "stream": False,
        "messages": [USER],
    }


def test_a_streamed_request_requests_usage() -> None:
    assert chat_of(stream=True)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in chat_of(stream=False)


@pytest.mark.parametrize(
    ("fields", "chat"),
    [
        ({"max_output_tokens": 9}, {"max_tokens": 9}),
        ({"temperature": 1, "top_p": 0.5}, {"temperature": 1, "top_p": 0.5}),
        ({"user": "u", "safety_identifier": "s"}, {"user": "u"}),
        ({"prompt_cache_key": "k", "client_metadata": {"a": "b"}}, {}),
        ({"service_tier": "flex"}, {"service_tier": "flex"}),
        ({"service_tier": "auto"}, {}),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {"verbosity": "low"}),
        (
            {"text": {"format": {"type": "json_object"}}},
            {"response_format": {"type": "json_object"}},
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"a": 1}}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"a": 1}},
                }
            },
        ),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        ({"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True}),
        ({"top_logprobs": 0, "include": ["reasoning.encrypted_content"]}, {}),
        ({"store": False, "background": False, "truncation": "disabled"}, {}),
        ({"store": None, "background": None, "unknown": None, "prompt": None}, {}),
        ({"metadata": {"a": "b"}, "stream_options": {"include_obfuscation": False}}, {}),
        ({"tool_choice": "auto", "parallel_tool_calls": True, "tools": []}, {}),
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
    ],
)
def test_fields_are_translated(fields: dict[str, Any], chat: dict[str, Any]) -> None:
    assert chat_of(**fields) == {"messages": [USER], **chat}


def test_tools_are_translated() -> None:
    named = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
    chat = chat_of(
        tools=[{"type": "function", **named}, {"type": "function", "name": "g", "strict": None}],
        tool_choice={"type": "function", "name": "f"},
        parallel_tool_calls=False,
    )
    assert chat["tools"] == [
        {"type": "function", "function": named},
        {"type": "function", "function": {"name": "g"}},
    ]
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert chat["parallel_tool_calls"] is False


def test_instructions_come_first() -> None:
    assert chat_of(instructions="Be kind.")["messages"] == [
        {"role": "system", "content": "Be kind."},
        USER,
    ]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (USER, USER),
        ({"type": "message", **USER}, USER),
        ({"role": "developer", "content": "x"}, {"role": "system", "content": "x"}),
        ({"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}, USER),
        (
            {
                "role": "assistant",
                "content": [
                    {"type": "output_text", "text": "No", "annotations": []},
                    {"type": "refusal", "refusal": "!"},
                ],
            },
            {"role": "assistant", "content": "No!"},
        ),
        (
            {"role": "system", "content": [{"type": "input_text", "text": t} for t in "ab"]},
            {"role": "system", "content": "a\nb"},
        ),
        (
            {"role": "user", "content": [PICTURE, {"type": "input_text", "text": "?"}]},
            {"role": "user", "content": [CHAT_PICTURE, {"type": "text", "text": "?"}]},
        ),
        (
            {"role": "user", "content": [{**PICTURE, "detail": "low", "file_id": None}]},
            {
                "role": "user",
                "content": [
                    {
                        "type": "image_url",
                        "image_url": {**CHAT_PICTURE["image_url"], "detail": "low"},
                    }
                ],
            },
        ),
        (
            {
                "role": "user",
                "content": [{"type": "input_file", "file_data": "data:,x", "filename": "a.txt"}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "file", "file": {"file_data": "data:,x", "filename": "a.txt"}}
                ],
            },
        ),
    ],
)
def test_messages_are_translated(item: Any, message: Any) -> None:
    assert messages_of(item) == [message]


def test_one_turn_of_the_assistant_is_one_message() -> None:
    message = {"role": "assistant", "content": "Wait."}
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
    second = {**CALL, "call_id": "c2"}
    items = [USER, reasoning, message, CALL, reasoning, second, OUTPUT, {**OUTPUT, "call_id": "c2"}]
    calls = [CHAT_CALL, {**CHAT_CALL, "id": "c2"}]
    assert messages_of(*items, message, USER) == [
        USER,
        {**message, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "9"},
        {"role": "tool", "tool_call_id": "c2", "content": "9"},
        message,
        USER,
    ]


def open_reasoning(text: str) -> dict[str, Any]:
    return {"type": "reasoning", "content": [{"type": "reasoning_text", "text": text}]}


@pytest.mark.parametrize(
    "item",
    [
        open_reasoning("Hm"),
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]},
        {"type": "reasoning", "summary": [], "encrypted_content": load_reasoning("Hm")},
        {**open_reasoning("Hm"), "encrypted_content": load_reasoning("other"), "summary": None},
    ],
)
def test_reasoning_belongs_to_the_turn_that_follows(item: dict[str, Any]) -> None:
    text = {"role": "assistant", "content": "So."}
    more = open_reasoning(".")
    assert messages_of(USER, item, more, text, CALL, OUTPUT, item, text, USER, item) == [
        USER,
        {**text, "reasoning_content": "Hm.", "tool_calls": [CHAT_CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "9"},
        {**text, "reasoning_content": "Hm"},
        USER,
    ]
    second = {**CALL, "call_id": "c2"}
    assert messages_of(item, CALL, more, second)[0]["reasoning_content"] == "Hm."
    assert messages_of(item, USER, text)[1] == text


def test_reasoning_of_a_backend_stays_with_it() -> None:
    sealed = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}
    assert messages_of(sealed, CALL)[0].keys() == {"role", "content", "tool_calls"}


@pytest.mark.parametrize("id", ["c1", "c1" * 33, "functions.f:0", "é" * 200])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "full"])
def test_reasoning_carries_what_a_call_has_besides(stream: bool, id: str) -> None:
    extra = {"google": {"thought_signature": "A+/b=" * 999}}
    first = ANSWER.call(0, id, "f")
    first["choices"][0]["delta"]["tool_calls"][0]["extra_content"] = extra
    chunks = [ANSWER.reasoning("Hm"), first, ANSWER.call(1, "c2", "f"), ANSWER.finish("tool_calls")]
    response = (response_of if stream else full_response_of)(*chunks)
    thought, sealed, call, other = response["output"]
    assert (thought["type"], sealed["type"], sealed["summary"]) == ("reasoning", "reasoning", [])
    assert "encrypted_content" not in thought
    assert len(call["call_id"]) <= 64
    outputs = [{**OUTPUT, "call_id": made["call_id"]} for made in (call, other)]
    kept = {"type": "reasoning", "encrypted_content": sealed["encrypted_content"]}
    for order in ([kept, call, other, *outputs], [call, other, *outputs, kept]):
        request = parse({"input": [USER, *order]})
        assert request.chat is not None
        _, turn, *results = request.chat.fields["messages"]
        assert [c["id"] for c in turn["tool_calls"]] == [id, "c2"]
        assert [c.get("extra_content") for c in turn["tool_calls"]] == [extra, None]
        assert [result["tool_call_id"] for result in results] == [id, "c2"]
        native = json.loads(request.native.encode("m"))["input"]
        assert native == [USER, call, other, *outputs]
    _, turn, *results = messages_of(USER, call, other, *outputs)  # without what carried it
    ids = [result["tool_call_id"] for result in results]
    assert [c["id"] for c in turn["tool_calls"]] == ids == [call["call_id"], "c2"]


def test_reasoning_is_carried_only_if_wanted() -> None:
    chunks = [ANSWER.reasoning("Hm"), ANSWER.text("So"), ANSWER.finish()]
    reasoning, message = response_of(*chunks)["output"]
    assert "encrypted_content" not in reasoning
    events = events_of(chunks, include=["reasoning.encrypted_content"])
    items = [event["item"] for event in events if "item" in event]
    carried = load_reasoning("Hm")
    assert [item.get("encrypted_content") for item in items] == [None, carried, None, None]
    assert message["type"] == "message"


def test_calls_and_text_after_them_are_one_message() -> None:
    assert messages_of(CALL) == [{"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]}]
    after = {"role": "assistant", "content": "So."}
    assert messages_of(CALL, after, OUTPUT)[0] == {
        "role": "assistant",
        "content": "So.",
        "tool_calls": [CHAT_CALL],
    }


def test_images_of_outputs_follow_all_outputs() -> None:
    text = {"type": "input_text", "text": "a"}
    rich = {**OUTPUT, "output": [text, PICTURE, text]}
    bare = {**OUTPUT, "call_id": "c2", "output": [PICTURE]}
    items = [CALL, {**CALL, "call_id": "c2"}, rich, bare]
    for more in ([], [USER]):
        _, first, second, shown, *rest = messages_of(*items, *more)
        assert first == {"role": "tool", "tool_call_id": "c1", "content": "a\na"}
        assert second["content"] == "The output is in the next message."
        assert shown == {"role": "user", "content": [CHAT_PICTURE, CHAT_PICTURE]}
        assert rest == more
    assert parse({"input": items}).images


OBSTACLES: list[tuple[dict[str, Any], str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": {"id": "conv_1"}}, "conversation"),
    ({"background": True}, "background"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tools[0].type"),
    ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice"),
    ({"tool_choice": {"type": "mcp", "server_label": "s"}}, "tool_choice"),
    ({"tool_choice": {"type": "allowed_tools", "mode": "required", "tools": []}}, "tool_choice"),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
    ({"input": [USER, {"type": "item_reference", "id": "i"}]}, "input[1].type"),
    ({"input": [{"id": "i"}]}, "input[0].type"),
    ({"input": [{"type": "web_search_call", "id": "i"}]}, "input"),
    ({"input": [{"type": "mcp_call", "id": "i"}]}, "input[0].type"),
    ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, "input[0].type"),
    ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
    ({"input": [{"role": "critic", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "system", "content": [PICTURE]}]}, "input[0].content"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
        "input[0].content[0].file_id",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "u"}]}]},
        "input[0].content[0].file_url",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        "input[0].content[0].type",
    ),
]


@pytest.mark.parametrize(("fields", "param"), OBSTACLES, ids=[param for _, param in OBSTACLES])
def test_features_that_chats_lack_are_not_translated(fields: dict[str, Any], param: str) -> None:
    request = parse({"input": "Hi", **fields})
    assert request.chat is None
    assert request.untranslatable is not None
    assert (request.untranslatable.status, request.untranslatable.param) == (400, param)
    assert request.untranslatable.code == "unsupported_parameter"
    assert request.can_pass_through({"responses"})


@pytest.mark.parametrize(
    "fields",
    [
        {"truncation": "auto", "max_tool_calls": 3, "moderation": {"model": "m"}},
        {"context_management": [{"type": "compaction"}], "image": {}, "of_next_year": [1]},
        {"prompt_cache_key": "k", "prompt_cache_options": {}, "client_metadata": {"a": "b"}},
        {"include": ["file_search_call.results", "web_search_call.action.sources", "new"]},
        {"text": {"tone": "x"}, "reasoning": {"mode": "pro", "context": "auto"}},
        {"tools": [{"type": "web_search"}, {"type": "of_next_year", "x": 1}]},
        {"tools": [{"type": "tool_search"}, {"type": "mcp", "server_label": "s"}]},
        {"tools": [{"type": "code_interpreter", "container": "c"}], "tool_choice": "none"},
    ],
)
def test_hints_and_offers_are_ignored(fields: dict[str, Any]) -> None:
    assert chat_of(**fields) == {"messages": [USER]}
    assert json.loads(parse({"input": "Hi", **fields}).native.encode("m")).items() >= fields.items()


def test_fields_that_only_some_backends_of_responses_have_are_kept() -> None:
    fields = {"seed": 1, "stop": ["x"], "frequency_penalty": 0.5}
    assert chat_of(**fields) == {"messages": [USER], **fields}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [3]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [3]}]}, "input[0].content[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].image_url",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input[0].content[0].file_data",
        ),
        ({"input": [{**CALL, "arguments": {}}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "output": ""}]}, "input[0].call_id"),
        ({"input": "Hi", "model": 3}, "model"),
        ({"input": "Hi", "stream": "yes"}, "stream"),
        ({"input": "Hi", "temperature": "hot"}, "temperature"),
        ({"input": "Hi", "max_output_tokens": True}, "max_output_tokens"),
        ({"input": "Hi", "tools": [{"type": "function"}]}, "tools[0].name"),
        ({"input": "Hi", "tools": [3]}, "tools[0]"),
        ({"input": "Hi", "tool_choice": 3}, "tool_choice"),
        ({"input": "Hi", "include": [3]}, "include"),
        ({"input": "Hi", "text": {"format": {"type": "json_schema"}}}, "text.format.name"),
        ({"input": [], "store": True}, "input"),
    ],
)
def test_a_malformed_request_is_rejected(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(fields)
    assert caught.value.param == param


@pytest.mark.parametrize("data", [b"{", b"[]"])
def test_a_body_that_is_no_object_is_rejected(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        RESPONSES.parse(data, {})


def test_reasoning_added_by_the_gateway_is_not_sent_upstream() -> None:
    response = full_response_of(ANSWER.reasoning("Hm"), ANSWER.text("So"), ANSWER.finish())
    sealed = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
    body = {"input": [USER, *response["output"], sealed, USER]}
    request = parse(body)
    assert request.native is not None
    assert request.chat is not None
    sent = json.loads(request.native.encode("m"))["input"]
    assert sent == [USER, response["output"][1], sealed, USER]
    assert request.chat.fields["messages"] == [
        USER,
        {"role": "assistant", "content": "So", "reasoning_content": "Hm"},
        USER,
    ]
    bare = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]}
    assert json.loads(parse({"input": [bare, USER]}).native.encode("m"))["input"] == [USER]
    assert json.loads(parse({"input": "rs_open"}).native.encode("m"))["input"] == "rs_open"


def test_the_callers_fields_are_not_changed() -> None:
    fields = {
        "input": [USER, CALL, OUTPUT, {"role": "user", "content": [PICTURE]}],
        "instructions": "x",
        "tools": [{"type": "function", "name": "f", "parameters": {}}],
        "text": {"format": {"type": "text"}},
    }
    request = parse(fields)
    before = copy.deepcopy(request.native.fields)
    RESPONSES.encode_full(request, fold([ANSWER.text("x"), ANSWER.finish()]))
    assert request.native.fields == before == fields


# The response, event by event.


def test_a_text_has_its_events() -> None:
    chunks = [ANSWER.text(""), ANSWER.text("He"), ANSWER.text("llo"), ANSWER.finish()]
    assert summaries(*chunks, ANSWER.usage(3, 2)) == [
        "created",
        "in_progress",
        "output_item.added 0",
        "content_part.added 0 0",
        "output_text.delta 0 0 He",
        "output_text.delta 0 0 llo",
        "output_text.done 0 0 Hello",
        "content_part.done 0 0",
        "output_item.done 0",
        "completed",
    ]


def test_the_events_of_a_text_are_complete() -> None:
    created, going, added, part, piece, text, part_done, done, completed = events_of(
        [ANSWER.text("Hi"), ANSWER.finish()]
    )
    head = {"id": "resp_7", "object": "response", "created_at": 5, "model": "m"}
    for begun in (created, going):
        assert begun["response"].items() >= {**head, "status": "in_progress", "output": []}.items()
    item = {"type": "message", "id": "msg_7_0", "role": "assistant"}
    blank = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    place = {"item_id": "msg_7_0", "output_index": 0, "content_index": 0}
    assert added["item"] == {**item, "status": "in_progress", "content": []}
    assert part.items() >= {**place, "part": blank}.items()
    assert piece.items() >= {**place, "delta": "Hi", "logprobs": []}.items()
    assert text.items() >= {**place, "text": "Hi", "logprobs": []}.items()
    assert part_done["part"] == {**blank, "text": "Hi"}
    completed_item = {**item, "status": "completed", "content": [{**blank, "text": "Hi"}]}
    assert done["item"] == completed_item
    response = completed["response"]
    assert response.items() >= {**head, "status": "completed", "output": [completed_item]}.items()


def test_a_tool_call_has_its_events() -> None:
    chunks = [
        ANSWER.text("Wait"),
        ANSWER.call(0, "c1", "f"),
        ANSWER.arguments(0, '{"a"'),
        ANSWER.arguments(0, ":1}"),
        ANSWER.finish("tool_calls"),
    ]
    assert summaries(*chunks)[5:] == [
        "output_text.done 0 0 Wait",
        "content_part.done 0 0",
        "output_item.done 0",
        "output_item.added 1",
        'function_call_arguments.delta 1 {"a"',
        "function_call_arguments.delta 1 :1}",
        'function_call_arguments.done 1 {"a":1}',
        "output_item.done 1",
        "completed",
    ]
    added = next(e["item"] for e in events_of(chunks) if short(e) == "output_item.added 1")
    item = {"type": "function_call", "id": "fc_7_1", "call_id": "c1", "name": "f"}
    assert added == {**item, "arguments": "", "status": "in_progress"}
    assert response_of(*chunks)["output"][1] == {
        **item,
        "arguments": '{"a":1}',
        "status": "completed",
    }


def test_interleaved_tool_calls_have_their_events() -> None:
    chunks = [
        ANSWER.call(0, "c1", "f"),
        ANSWER.call(1, "c2", "g"),
        ANSWER.arguments(1, "{"),
        ANSWER.arguments(0, "[]"),
        ANSWER.arguments(1, "}"),
        ANSWER.finish("tool_calls"),
    ]
    assert summaries(*chunks)[2:] == [
        "output_item.added 0",
        "output_item.added 1",
        "function_call_arguments.delta 1 {",
        "function_call_arguments.delta 0 []",
        "function_call_arguments.delta 1 }",
        "function_call_arguments.done 0 []",
        "output_item.done 0",
        "function_call_arguments.done 1 {}",
        "output_item.done 1",
        "completed",
    ]


def test_reasoning_and_text_have_their_events() -> None:
    chunks = [ANSWER.reasoning("Hm"), ANSWER.text("So"), ANSWER.finish()]
    assert summaries(*chunks)[2:] == [
        "output_item.added 0",
        "reasoning_summary_part.added 0 0",
        "reasoning_summary_text.delta 0 0 Hm",
        "reasoning_summary_text.done 0 0 Hm",
        "reasoning_summary_part.done 0 0",
        "output_item.done 0",
        "output_item.added 1",
        "content_part.added 1 0",
        "output_text.delta 1 0 So",
        "output_text.done 1 0 So",
        "content_part.done 1 0",
        "output_item.done 1",
        "completed",
    ]
    assert response_of(*chunks)["output"][0] == {
        "type": "reasoning",
        "id": "rs_open_7_0",
        "summary": [{"type": "summary_text", "text": "Hm"}],
        "status": "completed",
        "content": [{"type": "reasoning_text", "text": "Hm"}],
    }
    assert response_of(delta(reasoning="Hm"), *chunks[1:]) == response_of(*chunks)


def test_a_refusal_after_a_text_has_its_events() -> None:
    chunks = [ANSWER.text("Er"), delta(refusal="No"), ANSWER.finish()]
    assert summaries(*chunks)[5:-2] == [
        "output_text.done 0 0 Er",
        "content_part.done 0 0",
        "content_part.added 0 1",
        "refusal.delta 0 1 No",
        "refusal.done 0 1 No",
        "content_part.done 0 1",
    ]
    assert response_of(*chunks)["output"][0]["content"][1] == {"type": "refusal", "refusal": "No"}
    assert response_of(*chunks) == full_response_of(*chunks, stream=True)


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_a_response_that_is_cut_off_is_incomplete(finish: str, reason: str) -> None:
    chunks = [ANSWER.reasoning("Hm"), ANSWER.text("So"), ANSWER.finish(finish)]
    assert summaries(*chunks)[-1] == "incomplete"
    response = response_of(*chunks)
    assert (response["status"], response["incomplete_details"]) == (
        "incomplete",
        {"reason": reason},
    )
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    assert response == full_response_of(*chunks)


def test_text_after_a_call_is_a_new_item() -> None:
    chunks = [
        ANSWER.text("a"),
        ANSWER.call(0, "c1", "f"),
        ANSWER.text("b"),
        ANSWER.arguments(0, "{}"),
        ANSWER.text("c"),
        ANSWER.finish(),
    ]
    first, call, second = response_of(*chunks)["output"]
    assert (first["content"][0]["text"], second["content"][0]["text"]) == ("a", "bc")
    assert call["arguments"] == "{}"
    assert [item["id"] for item in (first, call, second)] == ["msg_7_0", "fc_7_1", "msg_7_2"]


def test_only_the_first_choice_is_translated() -> None:
    other = {**ANSWER.text("x"), "choices": [{"index": 1, "delta": {"content": "x"}}]}
    assert summaries(ANSWER.text("a"), other, ANSWER.finish()) == summaries(
        ANSWER.text("a"), ANSWER.finish()
    )
    assert any("x" in event for event in summaries(other))


def test_a_chunk_without_choices_begins_nothing() -> None:
    early = {"id": "", "model": "", "choices": [], "prompt_filter_results": []}
    assert response_of(early, ANSWER.text("a"), ANSWER.finish())["id"] == "resp_7"
    assert summaries() == ["created", "in_progress", "completed"]


def test_missing_fields_of_calls_are_added() -> None:
    bare = delta(tool_calls=[{"function": {"name": "f", "arguments": "{}"}}])
    more = delta(tool_calls=[{"function": {"name": "oo"}}])
    (call,) = response_of(bare, more, ANSWER.finish())["output"]
    assert (call["name"], call["arguments"]) == ("foo", "{}")
    (folded,) = full_response_of(bare, more, ANSWER.finish())["output"]
    assert {**folded, "call_id": ""} == {**call, "call_id": ""}


def test_a_call_without_an_id_gets_another_one_in_each_turn() -> None:
    bare = delta(tool_calls=[{"function": {"name": "f", "arguments": "{}"}}])
    for chunk in bare, {**bare, "id": ""}:
        ids = {
            make(chunk, ANSWER.finish())["output"][0]["call_id"]
            for make in (response_of, full_response_of)
            for _ in range(2)
        }
        assert len(ids - {""}) == 4


def test_answers_without_an_id_get_different_ones() -> None:
    unnamed = {**ANSWER.text("x"), "id": None}
    assert response_of(unnamed)["id"] != response_of(unnamed)["id"]


@pytest.mark.parametrize("make", [response_of, full_response_of])
def test_a_repeated_id_and_name_are_of_one_call(make: Callable[..., dict[str, Any]]) -> None:
    pieces = [
        delta(tool_calls=[{"index": 0, "id": "c", "function": {"name": "ls", "arguments": text}}])
        for text in ('{"a"', ":", "1}")
    ]
    (call,) = make(*pieces, ANSWER.finish())["output"]
    assert (call["call_id"], call["name"], call["arguments"]) == ("c", "ls", '{"a":1}')


@pytest.mark.parametrize("make", [response_of, full_response_of])
def test_arguments_may_be_an_object(make: Callable[..., dict[str, Any]]) -> None:
    function = {"name": "f", "arguments": {"a": ["é", 1]}}
    (call,) = make(delta(tool_calls=[{"id": "c", "function": function}]))["output"]
    assert json.loads(call["arguments"]) == {"a": ["é", 1]}


ODD_USAGES = (
    *("many", 5, [1], True),
    {"prompt_tokens": "3", "completion_tokens": None, "total_tokens": [1]},
    {"prompt_tokens": 1.5, "completion_tokens": -1, "prompt_tokens_details": [1]},
    {"prompt_tokens": 10**12, "completion_tokens_details": "x"},
)


@pytest.mark.parametrize("make", [response_of, full_response_of])
@pytest.mark.parametrize("odd", ODD_USAGES, ids=str)
def test_an_odd_usage_is_no_fault_of_the_answer(
    make: Callable[..., dict[str, Any]], odd: object
) -> None:
    response = make(ANSWER.text("x"), {**ANSWER.finish(), "usage": odd})
    assert response["output"][0]["content"][0]["text"] == "x"
    assert not response["usage"] or response["usage"]["total_tokens"] == 0


def test_logprobs_are_sent_with_their_text() -> None:
    probs = [{"token": t, "bytes": [1], "logprob": -1.0, "top_logprobs": []} for t in "ab"]
    chunks = [ANSWER.text("a"), ANSWER.text("b"), ANSWER.finish()]
    for chunk, prob in zip(chunks, probs, strict=False):
        chunk["choices"][0]["logprobs"] = {"content": [prob]}
    events = {short(event): event for event in events_of(chunks)}
    assert events["output_text.delta 0 0 b"]["logprobs"] == probs[1:]
    assert events["output_text.done 0 0 ab"]["logprobs"] == probs
    assert response_of(*chunks)["output"][0]["content"][0]["logprobs"] == probs
    assert response_of(*chunks) == full_response_of(*chunks)


# The response.


def test_the_response_repeats_the_requests_fields() -> None:
    plain = full_response_of(ANSWER.finish())
    assert plain == {
        "id": "resp_7",
        "object": "response",
        "created_at": 5,
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "model": "m",
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "store": False,
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": None,
        "top_p": None,
        "truncation": "disabled",
        "usage": None,
        "user": None,
    }
    fields: dict[str, Any] = {
        "instructions": "Be kind.",
        "metadata": {"a": "b"},
        "max_output_tokens": 9,
        "tools": [{"type": "function", "name": "f"}],
        "tool_choice": {"type": "function", "name": "f"},
        "parallel_tool_calls": False,
        "user": "u",
    }
    response = full_response_of(
        ANSWER.finish(), **fields, text={"verbosity": "low"}, reasoning={"effort": "low"}
    )
    assert response == {
        **plain,
        **fields,
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "reasoning": {"effort": "low", "summary": None},
    }


def test_usage_is_translated() -> None:
    chunks = [ANSWER.finish(), ANSWER.usage(9, 4, cached=3, reasoning=2)]
    assert full_response_of(*chunks)["usage"] == {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 13,
    }
    beside = {**ANSWER.finish(), "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    assert response_of(beside)["usage"]["total_tokens"] == 2


PIECES = st.lists(st.text(max_size=3), max_size=4)


@st.composite
def scripts(draw: st.DrawFn) -> list[Chunk]:
    chunks = [*map(ANSWER.reasoning, draw(PIECES)), *map(ANSWER.text, draw(PIECES))]
    calls = draw(st.integers(0, 3))
    begun = 0
    for index in draw(st.lists(st.integers(0, 2), max_size=9)):
        while begun <= index < calls:
            chunks.append(ANSWER.call(begun, f"c{begun}", "f"))
            begun += 1
        if index < calls:
            chunks.append(ANSWER.arguments(index, draw(st.text(max_size=3))))
    reason = draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter"]))
    chunks.append(ANSWER.finish(reason))
    return chunks + draw(st.lists(st.just(ANSWER.usage(3, 4, cached=1)), max_size=1))


@given(scripts())
def test_a_full_response_equals_the_end_of_its_stream(chunks: list[Chunk]) -> None:
    assert response_of(*chunks, stream=True) == full_response_of(*chunks, stream=True)


# The official client.


def client(body: bytes, kind: str = "text/event-stream") -> openai.OpenAI:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": kind}, content=body)

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    return openai.OpenAI(api_key="k", base_url="http://x/v1", http_client=http, max_retries=0)


def texts(output: list[dict[str, Any]], kind: str) -> str:
    return "".join(p["text"] for item in output if item["type"] == kind for p in item["content"])


@given(st.permutations(range(6)), scripts())
def test_the_official_client_reads_the_stream(order: list[int], chunks: list[Chunk]) -> None:
    mixed = [
        ANSWER.text("a"),
        ANSWER.reasoning("b"),
        ANSWER.call(7, "x", "f"),
        ANSWER.arguments(7, "{}"),
        ANSWER.text("c"),
        ANSWER.call(8, "y", "g"),
    ]
    chunks = [mixed[i] for i in order] + chunks[:-1] + [ANSWER.finish()]
    with (
        client(stream_of(chunks)) as official,
        official.responses.stream(model="m", input="Hi") as stream,
    ):
        final = stream.get_final_response()
    response, chat_message = response_of(*chunks), fold(chunks)["choices"][0]["message"]
    for item, expected in zip(final.output, response["output"], strict=True):
        assert (item.type, item.id) == (expected["type"], expected["id"])
    assert final.output_text == texts(response["output"], "message") == chat_message["content"]
    assert texts(response["output"], "reasoning") == chat_message["reasoning_content"]
    assert [call.arguments for call in final.output if call.type == "function_call"] == [
        item["arguments"] for item in response["output"] if item["type"] == "function_call"
    ]


def test_the_official_client_builds_the_same_from_the_events() -> None:
    chunks = [
        ANSWER.reasoning("Hm"),
        ANSWER.text("Hel"),
        ANSWER.text("lo"),
        ANSWER.call(0, "c1", "f"),
        ANSWER.call(1, "c2", "g"),
        ANSWER.arguments(1, "{}"),
        ANSWER.arguments(0, '{"a":1}'),
        ANSWER.finish("tool_calls"),
    ]
    snapshots: dict[str, str] = {}
    with (
        client(stream_of(chunks)) as official,
        official.responses.stream(model="m", input="Hi") as stream,
    ):
        for event in stream:
            if hasattr(event, "snapshot"):
                snapshots[event.item_id] = event.snapshot
    assert snapshots == {"msg_7_1": "Hello", "fc_7_2": '{"a":1}', "fc_7_3": "{}"}


@given(scripts())
def test_every_event_has_its_official_form(chunks: list[Chunk]) -> None:
    fields = {"tools": [{"type": "function", "name": "f", "parameters": {}, "strict": False}]}
    for event in events_of([*chunks, delta(refusal="No")], **fields):
        official_event().validate_python(event)


def test_the_official_client_reads_a_full_response() -> None:
    response = full_response_of(ANSWER.reasoning("Hm"), ANSWER.text("So"), ANSWER.finish("length"))
    with client(json.dumps(response).encode(), "application/json") as official:
        read = official.responses.create(model="m", input="Hi")
    assert (read.output_text, read.status) == ("So", "incomplete")
    assert read.incomplete_details is not None
    assert read.incomplete_details.reason == "max_output_tokens"


def test_the_official_client_raises_an_error_event() -> None:
    error = {"message": "Gone.", "type": "server_error", "param": None, "code": "gone"}
    event = RESPONSES.error_event(500, {"error": error})
    assert event.startswith(b"event: error\n")
    assert json.loads(sse.parse_event(event.strip()).data) == {
        "type": "error",
        "sequence_number": 0,
        "message": "Gone.",
        "param": None,
        "code": "gone",
        "error": error,
    }
    begun = stream_of([ANSWER.text("a"), ANSWER.finish()]).split(b"event: response.completed")[0]
    with (
        client(begun + event) as official,
        official.responses.create(model="m", input="Hi", stream=True) as stream,
        pytest.raises(openai.APIError, match="Gone"),
    ):
        list(stream)


@pytest.mark.parametrize("native", [False, True], ids=["translated", "native"])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"message": "Gone.", "type": "server_error", "code": "upstream_stream_error"}, None),
        ({"message": "Gone.", "type": "upstream_error", "code": 529}, None),
        ({"message": "Gone.", "type": "x", "code": "rate_limit_exceeded"}, "rate_limit_exceeded"),
    ],
)
def test_a_response_that_breaks_has_failed(
    native: bool, error: dict[str, Any], code: str | None
) -> None:
    encoder = RESPONSES.stream_encoder(parse({"input": "Hi", "stream": True}))
    begun = encoder.encode(ANSWER.text("a")) + encoder.encode(ANSWER.text("b"))
    sent: Any = encoder
    if native:
        sent = RESPONSES.passthrough(parse({"input": "Hi"}), None)
        assert sent.feed(begun + b": a comment\n\n") == begun + b": a comment\n\n"
    ends = RESPONSES.error_event(500, {"error": error}, sent)
    names = [sse.parse_event(event).name for event in sse.split(ends)]
    events = [json.loads(sse.parse_event(event).data) for event in sse.split(begun + ends)]
    assert names == ["response.failed", "error"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events[:-1]:
        official_event().validate_python(event)
    failed = events[-2]["response"]
    assert failed == {
        **events[0]["response"],
        "status": "failed",
        "error": {"code": code or "server_error", "message": "Gone."},
    }
    assert (events[-1]["type"], events[-1]["error"]) == ("error", error)


def test_a_response_that_has_not_begun_has_not_failed() -> None:
    spoiled = RESPONSES.stream_encoder(parse({"input": "Hi"}))
    with pytest.raises(ValueError, match="JSON"):
        spoiled.encode({**ANSWER.text("a"), "model": "\ud83d"})
    for sent in (RESPONSES.stream_encoder(parse({"input": "Hi"})), spoiled, None):
        ends = RESPONSES.error_event(500, {"error": {"message": "x"}}, sent)
        assert [sse.parse_event(event).name for event in sse.split(ends)] == ["error"]


def test_the_events_of_a_backend_that_numbers_none_are_numbered_from_zero() -> None:
    passthrough = RESPONSES.passthrough(parse({"input": "Hi"}), None)
    passthrough.feed(sse.json_event({"type": "response.output_text.delta", "delta": "a"}))
    ends = RESPONSES.error_event(500, {"error": {"message": "x"}}, passthrough)
    assert json.loads(sse.parse_event(ends.strip()).data)["sequence_number"] == 0


def test_a_piece_of_an_answer_is_one_event() -> None:
    """Also if the reasoning is shown as its summary, and a call's name decides its kind."""
    tools = [{"type": "custom", "name": "c"}]
    encoder = RESPONSES.stream_encoder(parse({"input": "Hi", "tools": tools}))
    pieces = [
        (ANSWER.reasoning("a"), ANSWER.reasoning("b")),
        (ANSWER.text("a"), ANSWER.text("b")),
        (ANSWER.call(0, "c1", "f"), ANSWER.arguments(0, "{")),
        (ANSWER.call(1, "c2", "c"), ANSWER.arguments(1, '{"input":"a')),
    ]
    for first, piece in pieces:
        encoder.encode(first)
        encoder.encode(piece)
        assert encoder.encode(piece).count(b"data: ") == 1


def test_an_error_has_openais_form() -> None:
    assert RESPONSES.error(400, {"error": {"message": "x"}}) == {"error": {"message": "x"}}


# A backend with this dialect.


def test_a_native_response_keeps_its_fields_and_its_usage_is_read() -> None:
    chunks = [ANSWER.text("a"), ANSWER.finish(), ANSWER.usage(9, 4, cached=3)]
    body = json.dumps(full_response_of(*chunks)).encode()
    native = RESPONSES.parse_native(body, "application/json", "Me")
    assert json.loads(native.body) == {**full_response_of(*chunks), "model": "Me"}
    assert native.usage == {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


@pytest.mark.parametrize("body", [b"x", b"[]", b"{}", b'{"object":"response","status":"failed"}'])
def test_an_invalid_native_response_is_rejected(body: bytes) -> None:
    with pytest.raises(InvalidAnswer):
        RESPONSES.parse_native(body, "application/json", None)
    with pytest.raises(ErrorEvent):
        RESPONSES.parse_native(b'{"object":"response","error":{"code":"x"}}', "", None)


@given(scripts(), st.lists(st.integers(0, 10_000), max_size=6))
def test_a_native_stream_passes_unchanged(chunks: list[Chunk], places: list[int]) -> None:
    sent = stream_of(chunks)
    passthrough = RESPONSES.passthrough(parse({"input": "Hi"}), "Me")
    assert b"".join(map(passthrough.feed, cut(sent, places))) == sent
    assert passthrough.done
    total = passthrough.used().get("total_tokens")
    assert total == (7 if "usage" in chunks[-1] else None)


@pytest.mark.parametrize(
    "first", [ANSWER.reasoning("a"), ANSWER.text("a"), ANSWER.call(0, "c", "f")]
)
def test_a_native_stream_begins_with_content(first: Chunk) -> None:
    head, rest = stream_of([first, ANSWER.finish()]).split(b"event: response.output_item.added")
    passthrough = RESPONSES.passthrough(parse({"input": "Hi"}), None)
    assert (passthrough.feed(head), passthrough.started) == (b"", False)
    assert passthrough.feed(b"event: response.output_item.added" + rest).startswith(head)
    assert passthrough.started


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"type": "error", "code": "c", "message": "flat", "param": None}, "flat"),
        ({"type": "error", "error": {"message": "nested", "code": "c"}}, "nested"),
        ({"error": {"message": "bare", "code": "c"}}, "bare"),
        (
            {"type": "response.failed", "response": {"error": {"code": "c", "message": "failed"}}},
            "failed",
        ),
    ],
)
def test_an_error_event_breaks_a_native_stream(event: dict[str, Any], message: str) -> None:
    with pytest.raises(ErrorEvent) as caught:
        RESPONSES.passthrough(parse({"input": "Hi"}), None).feed(sse.json_event(event))
    assert (caught.value.error["message"], caught.value.error["code"]) == (message, "c")
    assert caught.value.error["type"] == "upstream_error"
    begun = stream_of([ANSWER.text("a"), ANSWER.finish()]).split(b"event: response.completed")[0]
    passthrough = RESPONSES.passthrough(parse({"input": "Hi"}), None)
    assert [passthrough.feed(begun), passthrough.feed(sse.json_event(event))] == [begun, b""]
    assert isinstance(passthrough.broken, BrokenStream)


def test_a_native_stream_that_is_cut_off_is_an_error() -> None:
    begun = stream_of([ANSWER.text("a"), ANSWER.finish()]).split(b"event: response.completed")[0]
    passthrough = RESPONSES.passthrough(parse({"input": "Hi"}), None)
    assert passthrough.feed(begun) == begun
    with pytest.raises(TruncatedStream):
        passthrough.end()
