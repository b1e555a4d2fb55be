"""Anthropic's Messages translated to chats, chats to messages, and both back."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import pytest
from cuts import cut
from hypothesis import given
from hypothesis import strategies as st
from plugin_points import built_in

from nexus_gateway.dialects.base import InvalidAnswer, Request
from nexus_gateway.dialects.body import Body
from nexus_gateway.dialects.chat import CHAT_COMPLETIONS
from nexus_gateway.dialects.messages import COUNT_TOKENS, MESSAGES, usage_as_chat
from nexus_gateway.dialects.messages.request import IMAGE_FOLLOWS
from nexus_gateway.dialects.messages.response import UNSIGNED, MessageEncoder, message, usage
from nexus_gateway.errors import BrokenStream, ErrorEvent, InvalidRequest, TruncatedStream
from nexus_gateway.provider import Account, Call, Translator
from nexus_gateway.secret import Secret
from nexus_gateway.wire import sse
from nexus_gateway.wire.chunks import Answer, Chunk, fold

ANSWER = Answer("chatcmpl-1", 1, "Fake (Key #1)")
CACHED = {"cache_control": {"type": "ephemeral"}}
IMAGE = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
HI = [{"role": "user", "content": "Hi"}]


def parse(**fields: Any) -> Request:
    body = {"model": "m", "max_tokens": 9, "messages": HI, **fields}
    return MESSAGES.parse(json.dumps(body).encode(), {})


def chat(**fields: Any) -> dict[str, Any]:
    body = parse(**fields).chat
    assert body is not None
    return dict(body.fields)


def turns(*messages: Any, **fields: Any) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = chat(messages=list(messages), **fields)["messages"]
    return messages


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def test_a_plain_request_is_translated() -> None:
    request = parse(temperature=0.5, top_p=0.9, stop_sequences=["x"], top_k=5, metadata={}, seed=1)
    assert request.chat is not None
    assert request.chat.fields == {
        "messages": HI,
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["x"],
    }
    assert (request.model, request.stream, request.images) == ("m", False, False)


def test_a_streams_usage_is_requested() -> None:
    assert chat(stream=True)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("system", "content"),
    [
        ("Be short.", "Be short."),
        ([text("Be"), text(""), text("short.")], "Be\n\nshort."),
        (
            [text("Be"), {**text("short."), **CACHED}],
            [text("Be\n\n"), {**text("short."), **CACHED}],
        ),
        ("", None),
    ],
)
def test_the_system_prompt_is_the_first_message(system: Any, content: Any) -> None:
    first = [{"role": "system", "content": content}] if content else []
    assert turns(*HI, system=system) == [*first, *HI]


CALL = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": [1]}}
CALLED = {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": '{"a":[1]}'}}


def result(*content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_1", "content": list(content), **more}


def tool(content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "toolu_1", "content": content}


PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (user(), [{"role": "user", "content": ""}]),
        (user(text("a"), text("b")), [user(text("a"), text("b"))]),
        (user({"type": "image", "source": IMAGE}), [user(PART)]),
        (
            user({"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}),
            [user({"type": "image_url", "image_url": {"url": "https://x/y.png"}})],
        ),
        (
            user({"type": "document", "source": {"type": "text", "data": "D"}}),
            [{"role": "user", "content": "D"}],
        ),
        (
            user(
                {"type": "document", "title": "t.pdf", "source": {**IMAGE, "media_type": "a/pdf"}}
            ),
            [
                user(
                    {
                        "type": "file",
                        "file": {"filename": "t.pdf", "file_data": "data:a/pdf;base64,AAAA"},
                    }
                )
            ],
        ),
        (user(result(text("19"), text("C"))), [tool("19\nC")]),
        (user(result(text("no"), is_error=True)), [tool("Error:\nno")]),
        (user({**result(), "content": "19"}), [tool("19")]),
        (user(result()), [tool("")]),
        (user({"type": "tool_result", "tool_use_id": "toolu_1"}), [tool("")]),
        (
            user(result({"type": "image", "source": IMAGE}), text("?")),
            [tool(IMAGE_FOLLOWS), user(PART, text("?"))],
        ),
        (
            {"role": "assistant", "content": [text("Let me"), CALL]},
            [{"role": "assistant", "content": "Let me", "tool_calls": [CALLED]}],
        ),
        (
            {"role": "assistant", "content": [CALL]},
            [{"role": "assistant", "content": None, "tool_calls": [CALLED]}],
        ),
        (
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, text("a")]},
            [{"role": "assistant", "content": "a", "reasoning_content": "hm"}],
        ),
        (
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "h", "signature": "signed"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "thinking", "thinking": "m"},
                    {**CALL, **CACHED},
                ],
            },
            [
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{**CALLED, **CACHED}],
                    "reasoning_content": "hm",
                }
            ],
        ),
        (
            user(text("a"), {**text("b"), **CACHED}),
            [user(text("a"), {**text("b"), **CACHED})],
        ),
        (user({**text("a"), **CACHED}), [user({**text("a"), **CACHED})]),
        (
            user({"type": "image", "source": IMAGE, **CACHED}),
            [user({**PART, **CACHED})],
        ),
        (
            user({**result(text("19"), text("C")), **CACHED}),
            [{**tool(""), "content": [text("19\n"), {**text("C"), **CACHED}]}],
        ),
        (user({**result(), **CACHED}), [tool("")]),
        ({"role": "assistant", "content": []}, [{"role": "assistant", "content": ""}]),
    ],
)
def test_a_turn_is_translated(message: Any, expected: Any) -> None:
    assert turns(message) == expected


def test_images_are_detected() -> None:
    assert parse(messages=[user({"type": "image", "source": IMAGE})]).images
    assert parse(messages=[user(result({"type": "image", "source": IMAGE}))]).images


SCHEMA = {"type": "object"}


def test_tools_are_translated() -> None:
    tools = [
        {"name": "f", "description": "d", "input_schema": SCHEMA, **CACHED},
        {"type": "custom", "name": "g", "input_schema": SCHEMA, "strict": True},
    ]
    assert chat(tools=tools)["tools"] == [
        {
            "type": "function",
            "function": {"name": "f", "description": "d", "parameters": SCHEMA},
            **CACHED,
        },
        {"type": "function", "function": {"name": "g", "parameters": SCHEMA, "strict": True}},
    ]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        (
            {"type": "tool", "name": "f"},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        ),
        (
            {"type": "auto", "disable_parallel_tool_use": True},
            {"tool_choice": "auto", "parallel_tool_calls": False},
        ),
    ],
)
def test_a_tool_choice_is_translated(choice: Any, expected: Any) -> None:
    assert chat(tool_choice=choice) == {**chat(), **expected}


def test_a_schema_of_the_response_is_translated() -> None:
    form = {"type": "json_schema", "schema": SCHEMA}
    for fields in ({"output_config": {"effort": "high", "format": form}}, {"output_format": form}):
        assert chat(**fields)["response_format"]["json_schema"]["schema"] == SCHEMA
    assert chat(output_config={"effort": "high"})["reasoning_effort"] == "high"


def test_tools_that_anthropic_runs_are_left_out_beside_others() -> None:
    fields = chat(tools=[SEARCH, WEATHER], tool_choice={"type": "any"})
    assert [tool["function"]["name"] for tool in fields["tools"]] == ["get_weather"]
    assert fields["tool_choice"] == "required"


RESULT = {"type": "web_search_result", "title": "T", "url": "https://x", "encrypted_content": "E"}
BLOCKS = {"type": "content", "content": [{"type": "text", "text": "Inside."}]}
PDF = {"type": "base64", "media_type": "application/pdf", "data": "UERG"}


@pytest.mark.parametrize(
    ("block", "told", "hidden"),
    [
        ({"type": "server_tool_use", "id": "s", "name": "web_search"}, ["web_search"], []),
        (
            {"type": "web_search_tool_result", "tool_use_id": "s", "content": [RESULT]},
            ["https://x", '"T"'],
            ['"E"', "encrypted"],
        ),
        (
            {
                "type": "web_fetch_tool_result",
                "content": {"content": {"type": "document", "source": PDF}},
            },
            ["application/pdf"],
            ["UERG"],
        ),
        (
            {
                "type": "search_result",
                "source": "https://x",
                "content": [text("Found.")],
                "citations": {"enabled": True},
            },
            ["Found.", "https://x"],
            ["citations"],
        ),
        ({"type": "tool_reference", "tool_name": "deferred"}, ["deferred"], []),
        ({"type": "document", "source": BLOCKS, "title": "Doc"}, ["Doc", "Inside."], []),
    ],
)
def test_what_anthropic_did_is_told_as_text(block: Any, told: list[str], hidden: list[str]) -> None:
    call = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": [block]}
    assistant = [{"role": "assistant", "content": [text("Hm."), block]}]
    called = [{"role": "assistant", "content": [call]}, user(result)]
    document = block["type"] == "document"  # which no assistant has
    for messages in ([user(block)], called, *([] if document else [assistant])):
        said = json.dumps(turns(*messages)).replace('\\"', '"')
        assert all(word in said for word in told)
        assert not any(word in said for word in hidden)


def test_a_turn_of_thinking_alone_is_left_out() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": UNSIGNED}
    alone = {"role": "assistant", "content": [thought]}
    assert turns(*HI, alone, user(text("Go on."))) == [*HI, {"role": "user", "content": "Go on."}]
    assert native(*HI, alone, *HI) == [*HI, *HI]
    signed = {"role": "assistant", "content": [{**thought, "signature": "s"}]}
    assert native(*HI, signed, *HI) == [*HI, signed, *HI]


def native(*messages: Any) -> Any:
    body = parse(messages=list(messages)).native.encode("m")
    assert isinstance(body, bytes)
    return json.loads(body)["messages"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("id", ["functions.get_weather:0", "a b", "é", "call_1", "x" * 80])
def test_an_id_that_anthropics_clients_refuse_is_replaced_and_restored(
    id: str, stream: bool
) -> None:
    chunks = [ANSWER.call(0, id, "f"), ANSWER.arguments(0, "{}"), ANSWER.finish("tool_calls")]
    if stream:
        (block,) = blocks(encoded(chunks))
    else:
        (block,) = message(fold(chunks), thinking=False)["content"]
    assert re.fullmatch("[a-zA-Z0-9_-]+", block["id"])
    result = user({"type": "tool_result", "tool_use_id": block["id"], "content": "x"})
    asked, told = turns({"role": "assistant", "content": [block]}, result)
    assert (asked["tool_calls"][0]["id"], told["tool_call_id"]) == (id, id)
    for before in (block["id"], id):  # a backend of Anthropic's gets one that could be its own
        use = {"type": "tool_use", "id": before, "name": "f", "input": {}}
        result = {"type": "tool_result", "tool_use_id": before, "content": "x"}
        asked, told = native({"role": "assistant", "content": [use]}, user(result))
        plain = asked["content"][0]["id"]
        assert re.fullmatch("[a-zA-Z0-9_-]+", plain)
        assert told["content"][0]["tool_use_id"] == plain
        assert (plain == id) == bool(re.fullmatch("[a-zA-Z0-9_-]+", id))


@pytest.mark.parametrize("name", ["stop_reason", "matched_stop"])
@pytest.mark.parametrize(
    ("stopped_at", "reason"), [("###", "stop_sequence"), ("odd", "end_turn"), (128009, "end_turn")]
)
def test_a_stop_sequence_that_the_backend_names_is_told(
    name: str, stopped_at: object, reason: str
) -> None:
    chunks = [ANSWER.text("Hi"), ANSWER.finish()]
    chunks[-1]["choices"][0][name] = stopped_at
    sequence = stopped_at if reason == "stop_sequence" else None
    whole = message(fold(chunks), thinking=False, stops=["###"])
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, sequence)
    encoder = MessageEncoder(thinking=False, stops=["###"])
    data = b"".join([*map(encoder.encode, chunks), encoder.finish()])
    (delta,) = [e["delta"] for name, e in events(data) if name == "message_delta"]
    assert delta == {"stop_reason": reason, "stop_sequence": sequence}


SEARCH = {"type": "web_search_20250305", "name": "web_search"}
WEATHER = {"name": "get_weather", "input_schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"mcp_servers": [{"url": "https://x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        (
            {"messages": [user({"type": "image", "source": {"type": "file", "file_id": "f"}})]},
            "messages[0].content[0].source.type",
        ),
        ({"messages": [user({"type": "container_upload"})]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "unheard_of"}]}]},
            "messages[0].content[0].type",
        ),
        ({"thread": {"type": "create"}}, "thread"),
        ({"tools": [WEATHER, {"type": "bash_20250124", "name": "bash"}]}, "tools[1].type"),
        (
            {"tools": [WEATHER, SEARCH], "tool_choice": {"type": "tool", "name": "web_search"}},
            "tools[1].type",
        ),
    ],
)
def test_features_of_anthropic_alone_are_not_translated(fields: Any, where: str) -> None:
    request = parse(**fields)
    assert request.chat is None
    assert request.untranslatable is not None
    assert request.untranslatable.param == where
    assert where in request.untranslatable.message
    assert request.native.encode("x")


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [user({"text": "x"})]}, "messages[0].content[0]"),
        ({"messages": [user({"type": "text"})]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"system": 5}, "system"),
        ({"tools": "x"}, "tools"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "odd"}}, "tool_choice.type"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": [{"type": 5}]}, "tools[0].type"),
        ({"output_format": "json"}, "output_format"),
        ({"output_config": {"effort": 5}}, "output_config.effort"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stream": "yes"}, "stream"),
        ({"model": 5}, "model"),
    ],
)
def test_a_malformed_request_is_rejected_at_once(fields: Any, where: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    assert caught.value.param == where


def test_the_native_body_keeps_every_field() -> None:
    sent = {"messages": HI, "max_tokens": 9, "top_k": 5, "stream": True, "model": "m"}
    encoded = parse(top_k=5, stream=True).native.encode("claude-x")
    assert isinstance(encoded, bytes)
    assert json.loads(encoded) == {**sent, "model": "claude-x"}


EXTRA = {"google": {"thought_signature": "A+/b=" * 99}}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "full"])
def test_an_id_carries_what_a_call_has_besides(stream: bool) -> None:
    first, end = ANSWER.call(0, "c1", "f"), ANSWER.finish("tool_calls")
    first["choices"][0]["delta"]["tool_calls"][0]["extra_content"] = EXTRA
    chunks = [first, ANSWER.arguments(0, "{}"), ANSWER.call(1, "c2", "f"), end]
    whole = message(fold(chunks), thinking=False)["content"]
    content = blocks(encoded(chunks)) if stream else whole
    assert [use["id"] for use in content] == [whole[0]["id"], "c2"]
    results = [{"type": "tool_result", "tool_use_id": use["id"], "content": ""} for use in content]
    request = parse(messages=[{"role": "assistant", "content": content}, user(*results)])
    assert request.chat is not None
    assistant, *tools = request.chat.fields["messages"]
    assert [call.get("extra_content") for call in assistant["tool_calls"]] == [EXTRA, None]
    assert [call["id"] for call in assistant["tool_calls"]] == ["c1", "c2"]
    assert [result["tool_call_id"] for result in tools] == ["c1", "c2"]
    assert isinstance(request.native, Body)
    native = request.native.fields["messages"]
    assert [use["id"] for use in native[0]["content"]] == ["c1", "c2"]
    assert [result["tool_use_id"] for result in native[1]["content"]] == ["c1", "c2"]


def test_thinking_added_by_the_gateway_is_not_sent_to_anthropic() -> None:
    thoughts = [{"type": "thinking", "thinking": "a", "signature": s} for s in (UNSIGNED, "real")]
    encoded = parse(
        messages=[{"role": "assistant", "content": [*thoughts, text("x")]}]
    ).native.encode("m")
    assert isinstance(encoded, bytes)
    assert json.loads(encoded)["messages"][0]["content"] == [thoughts[1], text("x")]


@pytest.mark.proves("S-17")
def test_only_known_headers_are_forwarded() -> None:
    headers = {"anthropic-beta": "a,b", "anthropic-version": "2023\n", "x-api-key": "k"}
    body = json.dumps({"messages": HI}).encode()
    assert MESSAGES.parse(body, headers).headers == {"anthropic-beta": "a,b"}


def events(data: bytes) -> list[tuple[str, dict[str, Any]]]:
    read = [sse.parse_event(event) for event in sse.split(data)]
    return [(event.name, json.loads(event.data)) for event in read]


def encoded(chunks: Iterable[Chunk], *, thinking: bool = True) -> bytes:
    encoder = MessageEncoder(thinking)
    return b"".join([*(encoder.encode(chunk) for chunk in chunks), encoder.finish()])


def test_a_text_has_its_events() -> None:
    chunks = [ANSWER.text("He"), ANSWER.text("llo"), ANSWER.finish(), ANSWER.usage(7, 2, cached=3)]
    names = [name for name, _ in events(encoded(chunks))]
    assert names == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 2,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start, *_, delta, _ = [data for _, data in events(encoded(chunks))]
    assert start["message"]["id"] == "msg_1"
    assert start["message"]["model"] == "Fake (Key #1)"
    assert delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert (delta["usage"]["input_tokens"], delta["usage"]["cache_read_input_tokens"]) == (4, 3)
    assert all(name == data["type"] for name, data in events(encoded(chunks)))


def blocks(data: bytes) -> list[dict[str, Any]]:
    """Join a message's blocks as a client does; no two may be open at once."""
    joined: list[dict[str, Any]] = []
    open_index = None
    for name, event in events(data):
        if name == "content_block_start":
            assert open_index is None
            assert event["index"] == len(joined)
            open_index = event["index"]
            joined.append({**event["content_block"], "json": ""})
        elif name == "content_block_delta":
            assert event["index"] == open_index
            delta = event["delta"]
            kind = delta.pop("type")
            field = "json" if kind == "input_json_delta" else next(iter(delta))
            joined[-1][field] = joined[-1].get(field, "") + next(iter(delta.values()))
        elif name == "content_block_stop":
            assert event["index"] == open_index
            open_index = None
    assert open_index is None
    for block in joined:
        arguments = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(arguments or "{}")
    return joined


def test_interleaved_calls_are_sent_one_after_the_other() -> None:
    chunks = [
        ANSWER.call(0, "a", "f"),
        ANSWER.call(1, "b", "g"),
        ANSWER.arguments(1, '{"y":'),
        ANSWER.arguments(0, '{"x":1}'),
        ANSWER.arguments(1, "2}"),
        ANSWER.finish("tool_calls"),
    ]
    assert blocks(encoded(chunks)) == [
        {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "b", "name": "g", "input": {"y": 2}},
    ]


def test_a_response_with_a_tool_call_stops_for_tool_use() -> None:
    chunks = [ANSWER.call(0, "a", "f"), ANSWER.finish("stop")]
    assert events(encoded(chunks))[-2][1]["delta"]["stop_reason"] == "tool_use"
    assert message(fold(chunks), thinking=False)["stop_reason"] == "tool_use"


def test_text_in_parts_is_translated() -> None:
    thought = {"type": "thinking", "thinking": [text("Hm")]}
    chunk = {**ANSWER.finish(), "choices": [{"delta": {"content": [thought, text("Yes")]}}]}
    assert [b.get("text") or b["thinking"] for b in blocks(encoded([chunk]))] == ["Hm", "Yes"]


def test_thinking_is_sent_only_if_requested() -> None:
    chunks = [ANSWER.reasoning("Hm"), ANSWER.text("Yes"), ANSWER.finish()]
    thought = {"type": "thinking", "thinking": "Hm", "signature": UNSIGNED}
    assert blocks(encoded(chunks)) == [thought, text("Yes")]
    assert blocks(encoded(chunks, thinking=False)) == [text("Yes")]
    assert message(fold(chunks), thinking=True)["content"] == [thought, text("Yes")]
    assert message(fold(chunks), thinking=False)["content"] == [text("Yes")]


pieces = st.lists(st.text(min_size=1, max_size=5), max_size=4)
objects = st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4), max_size=3)
scripts = st.tuples(pieces, pieces, st.lists(objects, max_size=3), st.data())
FINISHES = ["stop", "length", "tool_calls", "content_filter"]


def script(thoughts: Sequence[str], words: Sequence[str], calls: Any, data: Any) -> list[Chunk]:
    chunks = [ANSWER.reasoning(t) for t in thoughts] + [ANSWER.text(t) for t in words]
    for index, arguments in enumerate(calls):
        chunks.append(ANSWER.call(index, f"toolu_{index}", f"f{index}"))
        written = json.dumps(arguments)
        places = data.draw(st.lists(st.integers(0, len(written)), max_size=3))
        chunks += [ANSWER.arguments(index, c.decode()) for c in cut(written.encode(), places)]
    return [*chunks, ANSWER.finish(data.draw(st.sampled_from(FINISHES))), ANSWER.usage(9, 4)]


@given(scripts)
def test_a_stream_equals_the_message_without_a_stream(script_parts: Any) -> None:
    chunks = script(*script_parts)
    full_message = message(fold(chunks), thinking=True)
    assert blocks(encoded(chunks)) == full_message["content"]
    delta = events(encoded(chunks))[-2][1]
    assert (delta["delta"]["stop_reason"], delta["usage"]) == (
        full_message["stop_reason"],
        full_message["usage"],
    )


def anthropic() -> Translator:
    translator = built_in("anthropic")()
    assert isinstance(translator, Translator)
    return translator


async def decoded(data: bytes) -> list[Chunk]:
    async def parsed() -> AsyncIterator[sse.Event]:
        for event in sse.split(data):
            yield sse.parse_event(event)

    return [chunk async for chunk in anthropic().stream(parsed(), ANSWER)]


@given(scripts)
async def test_a_stream_translated_there_and_back_is_the_same(script_parts: Any) -> None:
    chunks = script(*script_parts)
    translated = fold(await decoded(encoded(chunks)))
    original = fold(chunks)
    (choice,) = original["choices"]
    if choice["finish_reason"] == "stop" and choice["message"].get("tool_calls"):
        choice["finish_reason"] = "tool_calls"  # a message's stop reason for tool calls
    for completion in (translated, original):
        for call in completion["choices"][0]["message"].get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        completion["choices"][0]["message"]["content"] = (
            completion["choices"][0]["message"]["content"] or None
        )
    assert translated["choices"] == original["choices"]
    assert translated["usage"] == original["usage"]


def test_a_request_translated_there_and_back_is_the_same() -> None:
    sent: dict[str, Any] = {
        "messages": [
            {"role": "system", "content": "Be short."},
            user(text("What is this?"), PART),
            {"role": "assistant", "content": "Let me see", "tool_calls": [CALLED]},
            tool("19"),
            {"role": "assistant", "content": "A cat"},
            {"role": "user", "content": "Thanks"},
        ],
        "max_tokens": 9,
        "stop": ["x"],
        "tools": [
            {
                "type": "function",
                "function": {"name": "f", "description": "d", "parameters": SCHEMA},
            }
        ],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "stream_options": {"include_usage": True},
    }
    body = CHAT_COMPLETIONS.parse(json.dumps({**sent, "model": "m", "stream": True}).encode(), {})
    assert body.chat is not None
    account = Account(Secret("k"), "https://x")
    http = anthropic().encode(Call(body.chat.with_model("claude", stream=True), account))
    assert isinstance(http.body, bytes)
    assert chat(**{**json.loads(http.body), "stream": True}) == sent


@given(st.data())
def test_a_native_stream_passes_unchanged_however_it_is_cut(data: Any) -> None:
    stream = b'event: ping\ndata: {"type": "ping"}\n\n' + encoded(
        script(["a"], ["b", "c"], [{}], data)
    )
    passthrough = MESSAGES.passthrough(parse(), None)
    places = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
    out = b"".join(passthrough.feed(piece) for piece in cut(stream, places))
    assert out == stream
    assert (passthrough.done, passthrough.broken) == (True, None)
    assert passthrough.used()["completion_tokens"] == 4


def test_nothing_is_sent_before_content() -> None:
    passthrough = MESSAGES.passthrough(parse(), None)
    start = encoded([ANSWER.text("x")]).split(b"event: content_block_delta")[0]
    assert passthrough.feed(start) == b""
    assert not passthrough.started
    with pytest.raises(TruncatedStream):
        passthrough.end()


def test_an_error_event_breaks_a_native_stream() -> None:
    error_object = {"type": "error", "error": {"type": "overloaded_error", "message": "M"}}
    error = sse.json_event(error_object, "error")
    with pytest.raises(ErrorEvent, match="M"):
        MESSAGES.passthrough(parse(), None).feed(error)
    passthrough = MESSAGES.passthrough(parse(), None)
    good = encoded([ANSWER.text("x"), ANSWER.text("y")]).split(b"event: content_block_stop")[0]
    assert (passthrough.feed(good), passthrough.feed(error)) == (good, b"")
    assert isinstance(passthrough.broken, ErrorEvent)
    with pytest.raises(BrokenStream):
        passthrough.end()
    cut_off = MESSAGES.passthrough(parse(), None)
    cut_off.feed(good)
    with pytest.raises(TruncatedStream):
        cut_off.end()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_errors_have_anthropics_types(status: int, kind: str) -> None:
    error_object = MESSAGES.error(status, {"error": {"message": "M", "type": "x", "code": "c"}})
    assert error_object == {"type": "error", "error": {"message": "M", "type": kind, "code": "c"}}
    ((name, data),) = events(MESSAGES.error_event(status, {"error": {"message": "M"}}))
    assert (name, data) == ("error", {"type": "error", "error": {"message": "M", "type": kind}})


def test_a_message_is_distinguished_from_other_bodies() -> None:
    good = json.dumps(message(fold([ANSWER.text("x")]), thinking=False)).encode()
    assert MESSAGES.parse_native(good, "application/json", "L").body == good
    for bad in (b"<html>", b"{}", b"[]"):
        with pytest.raises(InvalidAnswer):
            MESSAGES.parse_native(bad, "application/json", None)
    with pytest.raises(ErrorEvent, match="x"):
        MESSAGES.parse_native(b'{"type":"error","error":{"message":"x"}}', "", None)


def test_a_count_is_passed_on_and_not_translated() -> None:
    request = COUNT_TOKENS.parse(json.dumps({"model": "m", "messages": HI}).encode(), {})
    assert (request.chat, request.stream) == (None, False)
    assert request.untranslatable is not None
    assert COUNT_TOKENS.parse_native(b'{"input_tokens": 5}', "", None).body
    with pytest.raises(InvalidAnswer):
        COUNT_TOKENS.parse_native(b"{}", "", None)


def call_piece(**call: Any) -> Chunk:
    return {**ANSWER.text(""), "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}


def whole(call: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}


def begun_call(*chunks: Chunk) -> dict[str, Any]:
    """Return the block with which a stream begins its only call."""
    started = [data for name, data in events(encoded(chunks)) if name == "content_block_start"]
    (block,) = [data["content_block"] for data in started]
    return dict(block)


def test_a_call_without_an_id_gets_another_one_in_each_turn() -> None:
    bare = {"function": {"name": "f", "arguments": "{}"}}
    ids = [begun_call(call_piece(**bare))["id"] for _ in range(2)]
    ids += [message(whole(bare), thinking=False)["content"][0]["id"] for _ in range(2)]
    ids += [fold([call_piece(**bare)])["choices"][0]["message"]["tool_calls"][0]["id"]]
    assert len(set(ids)) == 5
    assert all(ids)


def test_messages_without_an_id_get_different_ones() -> None:
    ids = {message({"id": None, "choices": []}, thinking=False)["id"] for _ in range(2)}
    assert len(ids) == 2


def test_a_repeated_id_and_name_are_of_one_call() -> None:
    pieces = [
        call_piece(index=0, id="c", function={"name": "ls", "arguments": text})
        for text in ('{"a"', ":", "1}")
    ]
    assert begun_call(*pieces) == {"type": "tool_use", "id": "c", "name": "ls", "input": {}}
    (block,) = message(fold(pieces), thinking=False)["content"]
    assert block == {"type": "tool_use", "id": "c", "name": "ls", "input": {"a": 1}}


def test_arguments_may_be_an_object() -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": {"a": ["é", 1]}}}
    for completion in whole(call), fold([call_piece(**call)]):
        (block,) = message(completion, thinking=False)["content"]
        assert block["input"] == {"a": ["é", 1]}
    written = [data for name, data in events(encoded([call_piece(**call)])) if "delta" in name]
    assert json.loads(written[0]["delta"]["partial_json"]) == {"a": ["é", 1]}


ODD_USAGES = (
    *("many", 5, [1], True),
    {"prompt_tokens": "3", "completion_tokens": None, "input_tokens": "3", "output_tokens": []},
    {"prompt_tokens": 1.5, "completion_tokens": -1, "prompt_tokens_details": [1]},
    {"input_tokens": {}, "cache_read_input_tokens": "1"},
)


@pytest.mark.parametrize("odd", ODD_USAGES, ids=str)
def test_an_odd_usage_is_no_fault_of_the_answer(odd: Any) -> None:
    chunks = [ANSWER.text("x"), {**ANSWER.finish(), "usage": odd}]
    assert message(fold(chunks), thinking=False)["content"] == [{"type": "text", "text": "x"}]
    assert message({**fold(chunks), "usage": odd}, thinking=False)["usage"]["output_tokens"] == 0
    assert events(encoded(chunks))[-1][0] == "message_stop"
    native = {**message(fold(chunks), thinking=False), "usage": odd}
    assert MESSAGES.parse_native(json.dumps(native).encode(), "", None).body
    passthrough = MESSAGES.passthrough(parse(), None)
    passthrough.feed(sse.json_event({"type": "message_start", "message": {"usage": odd}}))
    passthrough.feed(sse.json_event({"type": "message_delta", "delta": {}, "usage": odd}))
    assert passthrough.started


def test_input_tokens_exclude_the_cache() -> None:
    details = {"cached_tokens": 2, "cache_write_tokens": 4}
    used = {"prompt_tokens": 7, "completion_tokens": 8, "prompt_tokens_details": details}
    assert usage(used) == {
        "input_tokens": 1,
        "output_tokens": 8,
        "cache_creation_input_tokens": 4,
        "cache_read_input_tokens": 2,
    }


def test_prompt_tokens_include_the_cache() -> None:
    used = {"input_tokens": 1, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 4}
    assert usage_as_chat({**used, "output_tokens": 8}) == {
        "prompt_tokens": 7,
        "completion_tokens": 8,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 4},
    }
