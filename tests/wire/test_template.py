"""Events proved by their likeness to one that was looked into."""

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


def data_of(chunk: dict[str, Any], **how: Any) -> bytes:
    return json.dumps(chunk, **how).encode()


def template_of(chunk: dict[str, Any], model: bytes | None = b'"Me"') -> EventTemplate:
    data = data_of(chunk)
    found = EventTemplate.from_event(data, find_model(data), model)
    assert found is not None
    return found


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_like_events_are_renamed_as_if_each_had_been_parsed(texts: list[str]) -> None:
    template = template_of(ANSWER.text("first"))
    block = b"".join(sse.frame(data_of(ANSWER.text(t))) for t in texts)

    renamed = b"".join(sse.frame(data_of({**ANSWER.text(t), "model": "Me"})) for t in texts)
    assert template.apply(block) == (renamed, len(texts), b"")


@given(st.binary(max_size=40))
@example(b'"}, "finish_reason": "stop"}]}')
@example(b'x", "y": "z')
@example(b"\\")
@example(b"a\nb")
@example(b'\\"')
def test_what_is_not_the_inside_of_a_string_is_not_proved(inside: bytes) -> None:
    data = data_of(ANSWER.text("MARK"))
    template = template_of(ANSWER.text("first"))
    event = sse.frame(data.replace(b"MARK", inside))

    found = template.apply(event)
    if found is not None and not found[2]:
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
def test_an_event_of_another_shape_is_left_for_a_closer_look(other: dict[str, Any]) -> None:
    template = template_of(ANSWER.text("first"))
    like, unlike = sse.frame(data_of(ANSWER.text("x"))), sse.frame(data_of(other))

    assert template.apply(unlike) is None
    found = template.apply(like + unlike)
    assert found is None or (found[1], found[2]) == (1, unlike)
    found = template.apply(like + unlike + like)
    assert found is None or found[1] == 1


def test_what_follows_the_known_events_is_left() -> None:
    like, finish = sse.frame(data_of(ANSWER.text("x"))), sse.frame(data_of(ANSWER.finish()))
    found = template_of(ANSWER.text("first")).apply(like + like + finish + sse.DONE)
    assert found is not None
    assert found[1:] == (2, finish + sse.DONE)


@pytest.mark.parametrize("model", [b'"Me"', None])
@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": [{"delta": {"content": "x"}}], "model": "up"},
        {"choices": [{"delta": {"content": "x"}}]},
        {"model": "up", "choices": [{"delta": {"role": "assistant", "content": "x"}}]},
    ],
    ids=["the model behind", "no model", "a role"],
)
def test_the_model_may_stand_anywhere(chunk: dict[str, Any], model: bytes | None) -> None:
    event = sse.frame(data_of(chunk))
    found = template_of(chunk, model).apply(event)

    assert found is not None
    told = json.loads(found[0].removeprefix(b"data: "))
    assert told == (chunk if model is None else {**chunk, "model": "Me"})


def test_nothing_is_learnt_where_nothing_is_said() -> None:
    data = data_of(ANSWER.text(""))
    assert EventTemplate.from_event(data, find_model(data), None) is None


@given(
    st.lists(st.sampled_from(["text", "role", "reasoning", "call", "comment", "null"]), max_size=9),
    st.lists(st.integers(1, 900), max_size=6),
)
def test_a_mixed_stream_goes_the_same_whether_anything_is_learnt(
    kinds: list[str], cuts: list[int]
) -> None:
    made = {
        "text": ANSWER.text('a "b"\\\n'),
        "role": {**ANSWER.text("x"), "choices": [{"index": 0, "delta": {"content": "y"}}]},
        "reasoning": ANSWER.reasoning("hm"),
        "call": ANSWER.arguments(0, '{"a"'),
        "null": {**ANSWER.text("z"), "usage": None},
    }
    events = [b": hi\n\n" if k == "comment" else sse.frame(data_of(made[k])) for k in kinds]
    data = b"".join([*events, sse.frame(data_of(ANSWER.finish())), sse.DONE])

    out = []
    for lessons in (0, 4):
        passthrough = ChatPassthrough("Me", usage_wanted=False)
        passthrough._templates_left = lessons
        rest, passed = data, b""
        for size in [*cuts, len(data)]:
            passed += passthrough.feed(rest[:size])
            rest = rest[size:]
        out.append((passed, passthrough.events, passthrough.done))
    assert out[0] == out[1]
