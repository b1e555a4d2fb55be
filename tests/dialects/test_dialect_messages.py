"""Anthropic's Messages put into chats, and chats into messages; there and back again."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from importlib import metadata
from typing import Any

import pytest
from cuts import cut
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.dialects.base import InvalidAnswer, Request
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
    made: list[dict[str, Any]] = chat(messages=list(messages), **fields)["messages"]
    return made


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def test_a_plain_request() -> None:
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


def test_a_streams_usage_is_asked_for() -> None:
    assert chat(stream=True)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("system", "said"),
    [
        ("Be short.", "Be short."),
        ([text("Be"), {**text("short."), "cache_control": {"type": "ephemeral"}}], "Be\n\nshort."),
        ("", None),
    ],
)
def test_the_system_prompt(system: Any, said: str | None) -> None:
    first = [{"role": "system", "content": said}] if said else []
    assert turns(*HI, system=system) == [*first, *HI]


CALL = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": [1]}}
CALLED = {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": '{"a":[1]}'}}


def result(*content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_1", "content": list(content), **more}


def tool(content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "toolu_1", "content": content}


PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize(
    ("message", "made"),
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
            [{"role": "assistant", "content": "a"}],
        ),
        ({"role": "assistant", "content": []}, [{"role": "assistant", "content": ""}]),
    ],
)
def test_a_turn(message: Any, made: Any) -> None:
    assert turns(message) == made


def test_images_are_noticed() -> None:
    assert parse(messages=[user({"type": "image", "source": IMAGE})]).images
    assert parse(messages=[user(result({"type": "image", "source": IMAGE}))]).images


SCHEMA = {"type": "object"}


def test_tools() -> None:
    tools = [
        {"name": "f", "description": "d", "input_schema": SCHEMA, "cache_control": {}},
        {"type": "custom", "name": "g", "input_schema": SCHEMA, "strict": True},
    ]
    assert chat(tools=tools)["tools"] == [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}},
        {"type": "function", "function": {"name": "g", "parameters": SCHEMA, "strict": True}},
    ]


@pytest.mark.parametrize(
    ("choice", "made"),
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
def test_a_tool_choice(choice: Any, made: Any) -> None:
    assert chat(tool_choice=choice) == {**chat(), **made}


def test_a_schema_for_the_answer() -> None:
    made = chat(
        output_config={"effort": "high", "format": {"type": "json_schema", "schema": SCHEMA}}
    )
    assert made["response_format"]["json_schema"]["schema"] == SCHEMA


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
        ({"messages": [user({"type": "search_result"})]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}]},
            "messages[0].content[0].type",
        ),
    ],
)
def test_what_only_anthropic_can_do_is_an_obstacle(fields: Any, where: str) -> None:
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
        ({"stream": "yes"}, "stream"),
        ({"model": 5}, "model"),
    ],
)
def test_what_is_malformed_is_said_at_once(fields: Any, where: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    assert caught.value.param == where


def test_the_own_body_keeps_every_field() -> None:
    sent = {"messages": HI, "max_tokens": 9, "top_k": 5, "stream": True, "model": "m"}
    encoded = parse(top_k=5, stream=True).native.encode("claude-x")
    assert isinstance(encoded, bytes)
    assert json.loads(encoded) == {**sent, "model": "claude-x"}


def test_thinking_of_ours_does_not_go_to_anthropic() -> None:
    thoughts = [{"type": "thinking", "thinking": "a", "signature": s} for s in (UNSIGNED, "real")]
    encoded = parse(
        messages=[{"role": "assistant", "content": [*thoughts, text("x")]}]
    ).native.encode("m")
    assert isinstance(encoded, bytes)
    assert json.loads(encoded)["messages"][0]["content"] == [thoughts[1], text("x")]


@pytest.mark.proves("S-17")
def test_headers_that_go_along() -> None:
    headers = {"anthropic-beta": "a,b", "anthropic-version": "2023\n", "x-api-key": "k"}
    body = json.dumps({"messages": HI}).encode()
    assert MESSAGES.parse(body, headers).headers == {"anthropic-beta": "a,b"}


def events(data: bytes) -> list[tuple[str, dict[str, Any]]]:
    read = [sse.parse_event(event) for event in sse.split(data)]
    return [(event.name, json.loads(event.data)) for event in read]


def spoken(chunks: Iterable[Chunk], *, thinking: bool = True) -> bytes:
    encoder = MessageEncoder(thinking)
    return b"".join([*(encoder.encode(chunk) for chunk in chunks), encoder.finish()])


def test_the_events_of_a_text() -> None:
    chunks = [ANSWER.text("He"), ANSWER.text("llo"), ANSWER.finish(), ANSWER.usage(7, 2, cached=3)]
    names = [name for name, _ in events(spoken(chunks))]
    assert names == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 2,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start, *_, delta, _ = [data for _, data in events(spoken(chunks))]
    assert start["message"]["id"] == "msg_1"
    assert start["message"]["model"] == "Fake (Key #1)"
    assert delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert (delta["usage"]["input_tokens"], delta["usage"]["cache_read_input_tokens"]) == (4, 3)
    assert all(name == data["type"] for name, data in events(spoken(chunks)))


def blocks(data: bytes) -> list[dict[str, Any]]:
    """Put a message's blocks together as a client does; they must come one after the other."""
    made: list[dict[str, Any]] = []
    open_index = None
    for name, told in events(data):
        if name == "content_block_start":
            assert open_index is None
            assert told["index"] == len(made)
            open_index = told["index"]
            made.append({**told["content_block"], "json": ""})
        elif name == "content_block_delta":
            assert told["index"] == open_index
            delta = told["delta"]
            kind = delta.pop("type")
            field = "json" if kind == "input_json_delta" else next(iter(delta))
            made[-1][field] = made[-1].get(field, "") + next(iter(delta.values()))
        elif name == "content_block_stop":
            assert told["index"] == open_index
            open_index = None
    assert open_index is None
    for block in made:
        arguments = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(arguments or "{}")
    return made


def test_calls_that_interleave_are_told_one_after_the_other() -> None:
    chunks = [
        ANSWER.call(0, "a", "f"),
        ANSWER.call(1, "b", "g"),
        ANSWER.arguments(1, '{"y":'),
        ANSWER.arguments(0, '{"x":1}'),
        ANSWER.arguments(1, "2}"),
        ANSWER.finish("tool_calls"),
    ]
    assert blocks(spoken(chunks)) == [
        {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "b", "name": "g", "input": {"y": 2}},
    ]


def test_an_answer_that_calls_a_tool_ends_for_that() -> None:
    chunks = [ANSWER.call(0, "a", "f"), ANSWER.finish("stop")]
    assert events(spoken(chunks))[-2][1]["delta"]["stop_reason"] == "tool_use"
    assert message(fold(chunks), thinking=False)["stop_reason"] == "tool_use"


def test_text_in_parts_is_text() -> None:
    thought = {"type": "thinking", "thinking": [text("Hm")]}
    chunk = {**ANSWER.finish(), "choices": [{"delta": {"content": [thought, text("Yes")]}}]}
    assert [b.get("text") or b["thinking"] for b in blocks(spoken([chunk]))] == ["Hm", "Yes"]


def test_thinking_is_told_to_those_who_ask() -> None:
    chunks = [ANSWER.reasoning("Hm"), ANSWER.text("Yes"), ANSWER.finish()]
    thought = {"type": "thinking", "thinking": "Hm", "signature": UNSIGNED}
    assert blocks(spoken(chunks)) == [thought, text("Yes")]
    assert blocks(spoken(chunks, thinking=False)) == [text("Yes")]
    assert message(fold(chunks), thinking=True)["content"] == [thought, text("Yes")]
    assert message(fold(chunks), thinking=False)["content"] == [text("Yes")]


pieces = st.lists(st.text(min_size=1, max_size=5), max_size=4)
objects = st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4), max_size=3)
scripts = st.tuples(pieces, pieces, st.lists(objects, max_size=3), st.data())
FINISHES = ["stop", "length", "tool_calls", "content_filter"]


def script(thoughts: Sequence[str], said: Sequence[str], calls: Any, data: Any) -> list[Chunk]:
    chunks = [ANSWER.reasoning(t) for t in thoughts] + [ANSWER.text(t) for t in said]
    for index, arguments in enumerate(calls):
        chunks.append(ANSWER.call(index, f"toolu_{index}", f"f{index}"))
        written = json.dumps(arguments)
        places = data.draw(st.lists(st.integers(0, len(written)), max_size=3))
        chunks += [ANSWER.arguments(index, c.decode()) for c in cut(written.encode(), places)]
    return [*chunks, ANSWER.finish(data.draw(st.sampled_from(FINISHES))), ANSWER.usage(9, 4)]


@given(scripts)
def test_a_stream_says_what_a_whole_message_says(made: Any) -> None:
    chunks = script(*made)
    whole = message(fold(chunks), thinking=True)
    assert blocks(spoken(chunks)) == whole["content"]
    delta = events(spoken(chunks))[-2][1]
    assert (delta["delta"]["stop_reason"], delta["usage"]) == (whole["stop_reason"], whole["usage"])


def anthropic() -> Translator:
    (point,) = metadata.entry_points(group="nexus_gateway.providers", name="anthropic")
    made: Translator = point.load()()
    return made


async def understood(data: bytes) -> list[Chunk]:
    async def told() -> AsyncIterator[sse.Event]:
        for event in sse.split(data):
            yield sse.parse_event(event)

    return [chunk async for chunk in anthropic().stream(told(), ANSWER)]


@given(scripts)
async def test_there_and_back_a_stream_says_the_same(made: Any) -> None:
    chunks = script(*made)
    back = fold(await understood(spoken(chunks)))
    there = fold(chunks)
    (choice,) = there["choices"]
    if choice["finish_reason"] == "stop" and choice["message"].get("tool_calls"):
        choice["finish_reason"] = "tool_calls"  # what a message says of an answer that calls
    for whole in (back, there):
        for call in whole["choices"][0]["message"].get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        whole["choices"][0]["message"]["content"] = (
            whole["choices"][0]["message"]["content"] or None
        )
    assert back["choices"] == there["choices"]
    assert back["usage"] == there["usage"]


def test_there_and_back_a_request_asks_the_same() -> None:
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
def test_a_native_stream_passes_byte_for_byte_wherever_it_is_cut(data: Any) -> None:
    stream = b'event: ping\ndata: {"type": "ping"}\n\n' + spoken(
        script(["a"], ["b", "c"], [{}], data)
    )
    passthrough = MESSAGES.passthrough(parse(), None)
    places = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
    out = b"".join(passthrough.feed(piece) for piece in cut(stream, places))
    assert out == stream
    assert (passthrough.done, passthrough.broken) == (True, None)
    assert passthrough.used()["completion_tokens"] == 4


def test_nothing_passes_before_there_is_content() -> None:
    passthrough = MESSAGES.passthrough(parse(), None)
    start = spoken([ANSWER.text("x")]).split(b"event: content_block_delta")[0]
    assert passthrough.feed(start) == b""
    assert not passthrough.started
    with pytest.raises(TruncatedStream):
        passthrough.end()


def test_an_error_event_breaks_a_native_stream() -> None:
    told = {"type": "error", "error": {"type": "overloaded_error", "message": "M"}}
    error = sse.json_event(told, "error")
    with pytest.raises(ErrorEvent, match="M"):
        MESSAGES.passthrough(parse(), None).feed(error)
    passthrough = MESSAGES.passthrough(parse(), None)
    good = spoken([ANSWER.text("x"), ANSWER.text("y")]).split(b"event: content_block_stop")[0]
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
    told = MESSAGES.error(status, {"error": {"message": "M", "type": "x", "code": "c"}})
    assert told == {"type": "error", "error": {"message": "M", "type": kind, "code": "c"}}
    ((name, data),) = events(MESSAGES.error_event(status, {"error": {"message": "M"}}))
    assert (name, data) == ("error", {"type": "error", "error": {"message": "M", "type": kind}})


def test_a_whole_message_is_told_from_other_things() -> None:
    good = json.dumps(message(fold([ANSWER.text("x")]), thinking=False)).encode()
    assert MESSAGES.parse_native(good, "application/json", "L").body == good
    for bad in (b"<html>", b"{}", b"[]", b'{"type":"error","error":{"message":"x"}}'):
        with pytest.raises(InvalidAnswer):
            MESSAGES.parse_native(bad, "application/json", None)


def test_a_count() -> None:
    request = COUNT_TOKENS.parse(json.dumps({"model": "m", "messages": HI}).encode(), {})
    assert (request.chat, request.stream) == (None, False)
    assert request.untranslatable is not None
    assert COUNT_TOKENS.parse_native(b'{"input_tokens": 5}', "", None).body
    with pytest.raises(InvalidAnswer):
        COUNT_TOKENS.parse_native(b"{}", "", None)


def test_usage_that_leaves_out_what_a_cache_had_or_got() -> None:
    details = {"cached_tokens": 2, "cache_write_tokens": 4}
    used = {"prompt_tokens": 7, "completion_tokens": 8, "prompt_tokens_details": details}
    assert usage(used) == {
        "input_tokens": 1,
        "output_tokens": 8,
        "cache_creation_input_tokens": 4,
        "cache_read_input_tokens": 2,
    }


def test_usage_counts_the_cache() -> None:
    used = {"input_tokens": 1, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 4}
    assert usage_as_chat({**used, "output_tokens": 8}) == {
        "prompt_tokens": 7,
        "completion_tokens": 8,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 4},
    }
