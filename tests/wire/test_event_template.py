"""Events recognized because they match the template of an examined one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nexus_gateway.wire import sse
from nexus_gateway.wire.chunks import Answer
from nexus_gateway.wire.passthrough import ChatPassthrough, EventTemplate, find_model

ANSWER = Answer("chatcmpl-1", 1, "up")
TEXT = st.text(alphabet='ab"\\\n é:{}', max_size=8)


def encode(chunk: dict[str, Any], **how: Any) -> bytes:
    return json.dumps(chunk, **how).encode()


def template_of(chunk: dict[str, Any], model: bytes | None = b'"Me"') -> EventTemplate:
    data = encode(chunk)
    template = EventTemplate.from_event(data, find_model(data, json.loads(data)), model)
    assert template is not None
    return template


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_matching_events_are_rewritten_as_if_each_had_been_parsed(texts: list[str]) -> None:
    template = template_of(ANSWER.text("first"))
    block = b"".join(sse.frame(encode(ANSWER.text(t))) for t in texts)

    renamed = b"".join(sse.frame(encode({**ANSWER.text(t), "model": "Me"})) for t in texts)
    assert template.apply(block) == (renamed, len(texts), b"")


@given(st.binary(max_size=40))
@example(b'"}, "finish_reason": "stop"}]}')
@example(b'x", "y": "z')
@example(b"\\")
@example(b"a\nb")
@example(b'\\"')
def test_only_the_inside_of_a_string_matches(inside: bytes) -> None:
    data = encode(ANSWER.text("MARK"))
    template = template_of(ANSWER.text("first"))
    event = sse.frame(data.replace(b"MARK", inside))

    rewritten = template.apply(event)
    if rewritten is not None and not rewritten[2]:
        assert b"\n" not in inside
        string = b'"' + inside + b'"'
        json.loads(string.decode("utf-8", "replace"), strict=False)


@pytest.mark.parametrize(
    "other",
    [
        ANSWER.finish(),
        ANSWER.usage(1, 2),
        {**ANSWER.text("x"), "error": {"message": "no"}},
        {**ANSWER.text("x"), "created": 2},
        {"error": {"message": "no"}},
    ],
    ids=["finish", "usage", "error beside", "another head", "error"],
)
def test_an_event_of_another_shape_does_not_match(other: dict[str, Any]) -> None:
    template = template_of(ANSWER.text("first"))
    matching, other_event = sse.frame(encode(ANSWER.text("x"))), sse.frame(encode(other))

    assert template.apply(other_event) is None
    rewritten = template.apply(matching + other_event)
    assert rewritten is None or (rewritten[1], rewritten[2]) == (1, other_event)
    rewritten = template.apply(matching + other_event + matching)
    assert rewritten is None or rewritten[1] == 1


def test_the_rest_after_matching_events_is_returned() -> None:
    matching, finish = sse.frame(encode(ANSWER.text("x"))), sse.frame(encode(ANSWER.finish()))
    rewritten = template_of(ANSWER.text("first")).apply(matching + matching + finish + sse.DONE)
    assert rewritten is not None
    assert rewritten[1:] == (2, finish + sse.DONE)


@pytest.mark.parametrize("model", [b'"Me"', None])
@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": [{"delta": {"content": "x"}}], "model": "up"},
        {"choices": [{"delta": {"content": "x"}}]},
        {"model": "up", "choices": [{"delta": {"role": "assistant", "content": "x"}}]},
    ],
    ids=["the model at the end", "no model", "a role"],
)
def test_the_model_may_be_anywhere(chunk: dict[str, Any], model: bytes | None) -> None:
    event = sse.frame(encode(chunk))
    rewritten = template_of(chunk, model).apply(event)

    assert rewritten is not None
    received = json.loads(rewritten[0].removeprefix(b"data: "))
    assert received == (chunk if model is None else {**chunk, "model": "Me"})


def test_an_event_without_text_makes_no_template() -> None:
    data = encode(ANSWER.text(""))
    assert EventTemplate.from_event(data, find_model(data, json.loads(data)), None) is None


@given(
    st.lists(st.sampled_from(["text", "role", "reasoning", "call", "comment", "null"]), max_size=9),
    st.lists(st.integers(1, 900), max_size=6),
)
def test_a_mixed_stream_is_the_same_with_and_without_templates(
    kinds: list[str], cuts: list[int]
) -> None:
    chunks = {
        "text": ANSWER.text('a "b"\\\n'),
        "role": {**ANSWER.text("x"), "choices": [{"index": 0, "delta": {"content": "y"}}]},
        "reasoning": ANSWER.reasoning("hm"),
        "call": ANSWER.arguments(0, '{"a"'),
        "null": {**ANSWER.text("z"), "usage": None},
    }
    events = [b": hi\n\n" if k == "comment" else sse.frame(encode(chunks[k])) for k in kinds]
    data = b"".join([*events, sse.frame(encode(ANSWER.finish())), sse.DONE])

    out = []
    for templates in (0, 4):
        passthrough = ChatPassthrough("Me", usage_wanted=False)
        passthrough._templates_left = templates
        rest, passed = data, b""
        for size in [*cuts, len(data)]:
            passed += passthrough.feed(rest[:size])
            rest = rest[size:]
        out.append((passed, passthrough.events, passthrough.done))
    assert out[0] == out[1]
