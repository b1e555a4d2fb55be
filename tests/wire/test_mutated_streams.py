"""Streams with faults: the fast paths and the cuts of the network never change what they mean."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from cuts import cut
from hypothesis import example, given
from hypothesis import strategies as st
from outcomes import careful, outcome

from nexus_gateway.dialects.base import StreamEncoder
from nexus_gateway.dialects.messages import MessagesPassthrough
from nexus_gateway.dialects.messages.response import MessageEncoder
from nexus_gateway.dialects.responses import ResponsePassthrough
from nexus_gateway.dialects.responses.response import ResponseEncoder
from nexus_gateway.wire import sse
from nexus_gateway.wire.chunks import Answer, Chunk
from nexus_gateway.wire.passthrough import ChatPassthrough, EventPassthrough, Passthrough

ANSWER = Answer("chatcmpl-1", 1, "up")
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
TEXTS = ("a", " b", "", "é", "你好", "\U0001f600", '"', "\\", "\n", "{}", "data: {", "[DONE]")


def with_choice(chunk: Chunk, **fields: Any) -> Chunk:
    return {**chunk, "choices": [{**choice, **fields} for choice in chunk["choices"]]}


def chunk(number: int, kind: str, text: str) -> Chunk:
    match kind:
        case "padded":
            return {**ANSWER.text(text), "obfuscation": "x" * (number * 5 % 4)}
        case "ticking":
            return {**ANSWER.text(text), "id": f"c{number}", "created": number / 4}
        case "two choices":
            return with_choice(ANSWER.text(text), index=number % 2)
        case "reasoning":
            return ANSWER.reasoning(text)
        case "a call":
            return ANSWER.arguments(0, text) if number else ANSWER.call(0, "c", "f")
        case "empty finishes":
            return with_choice(ANSWER.text(text), finish_reason="")
        case "nested models":
            return {**ANSWER.text(text), "id": f"c{number}", "x": {"model": "up"}}
        case "empty errors":
            return {**ANSWER.text(text), "id": f"c{number}", "error": ""}
        case "usages":
            return {**ANSWER.text(text), "usage": {**USAGE, "completion_tokens": number}}
    return ANSWER.text(text)


KINDS = (
    *("padded", "ticking", "two choices", "reasoning", "a call", "nested models"),
    *("empty finishes", "empty errors", "usages", "of one shape"),
)
ENDS = (
    [ANSWER.finish()],
    [ANSWER.finish("length"), ANSWER.usage(1, 2)],
    [with_choice(ANSWER.finish(), index=1)],
    [with_choice(ANSWER.finish(), index=1), ANSWER.finish()],
    [],
)
# Chunks that some backend sends, or that may stand for a broken one.
CHUNK_FAULTS: tuple[Callable[[Chunk], Any], ...] = (
    lambda c: with_choice(c, finish_reason="error"),
    lambda c: with_choice(c, finish_reason=""),
    lambda c: with_choice(c, finish_reason=None),
    lambda c: with_choice(c, finish_reason="stop"),
    lambda c: with_choice(c, finish_reason=7),
    lambda c: with_choice(c, index=5),
    lambda c: with_choice(c, error={"message": "m", "code": 502}),
    lambda c: with_choice(c, delta=None),
    lambda c: {**c, "usage": USAGE},
    lambda c: {**c, "usage": "many"},
    lambda c: {**c, "usage": None},
    lambda c: {**c, "error": {"message": "m"}},
    lambda c: {**c, "error": ""},
    lambda c: {**c, "choices": None},
    lambda c: {**c, "choices": []},
    lambda c: {**c, "choices": {}},
    lambda c: {**c, "x": {"model": "up", "error": "m", "finish_reason": "stop"}},
    lambda c: {name: value for name, value in c.items() if name != "model"},
    lambda c: {name: value for name, value in c.items() if name != "choices"},
    lambda c: {**{n: v for n, v in c.items() if n != "model"}, "model": 'a "b" \\ é'},
    lambda c: {"model": "other", **c, "id": "up"},
    lambda c: {**c, "id": "c7", "error": "m"},
    lambda c: {"object": "error", "message": "m", "code": 400},
    lambda c: {"detail": "m"},
    lambda c: {"detail": [{"loc": [], "msg": "m"}]},
    lambda c: {"error": "m"},
    lambda c: {"usage": USAGE},
    lambda c: {"type": "ping"},
    lambda c: {},
    lambda c: [c],
    lambda c: None,
)
EVENT_FAULTS: tuple[Callable[[bytes], bytes], ...] = (
    lambda e: e.replace(b'"finish_reason"', b'"finish_reason" '),
    lambda e: e.replace(b"finish_reason", b"finish\\u005freason"),
    lambda e: e.replace(b'"choices"', b'"choices":[],"choices"'),
    lambda e: e.replace(b'"finish_reason"', b'"finish_reason":"stop","finish_reason"'),
    lambda e: e.replace(b'"model"', b'"error":{"message":"m"},"model"'),
    lambda e: e.replace(b'"model"', b'"err\\u006fr":{"message":"m"},"model"'),
    lambda e: e.replace(b'"model"', b'"mod\\u0065l"'),
    lambda e: e.replace(b'"model"', b'"model":"x","model"'),
    lambda e: e.replace(b'"up"', b'"u\\u0070"'),
    lambda e: e.replace(b"\n\n", b"\n"),
    lambda e: e.replace(b"\n\n", b"\n\n\n"),
    lambda e: e.replace(b"\n\n", b"\r\n\r\n"),
    lambda e: e.replace(b"\n\n", b"\r\r"),
    lambda e: e.replace(b"data: ", b"data:"),
    lambda e: e.replace(b"data: ", b"id: 1\ndata: "),
    lambda e: e.replace(b"data: ", b"event: message\ndata: "),
    lambda e: e.replace(b"data: ", b"event: error\ndata: "),
    lambda e: e.replace(b"data: {", b"data: {\ndata: "),
    lambda e: e.replace(b'"}', b'\x00"}'),
    lambda e: e.replace(b'"}', b'\xff"}'),
    lambda e: e.replace(b'"}', b'\xe4\xbd"}'),
    lambda e: e.replace(b'"}', b'\t"}'),
    lambda e: e.replace(b'"}', b'\\ud83d"}'),
    lambda e: e.replace(b'"}', b'\\ud83d\\ude00"}'),
    lambda e: e.replace(b"}", b',"note":"\\\\ud83d"}', 1),
    lambda e: e.replace(b'"}', b'\\x"}'),
    lambda e: e.replace(b'"}', b'\\"}'),
    lambda e: e.replace(b'"}', b'""}'),
    lambda e: e.replace(b":1", b":01"),
    lambda e: e.replace(b": 1", b": 1e999"),
    lambda e: b"event: error\ndata: it failed\n\n",
    lambda e: b": a comment\n\n" + e,
    lambda e: b"data: \n\n" + e,
    lambda e: sse.DONE + e,
    lambda e: b"",
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A stream of real chunks, with up to three faults somewhere."""
    how = draw(st.sampled_from([{}, {"separators": (",", ":")}, {"ensure_ascii": False}]))
    count = draw(st.integers(1, 12))
    kind = draw(st.sampled_from(KINDS))
    chunks: list[Any] = [chunk(n, kind, draw(st.sampled_from(TEXTS))) for n in range(count)]
    chunks += draw(st.sampled_from(ENDS))
    for _ in range(draw(st.integers(0, 1))):
        at = draw(st.integers(0, len(chunks) - 1))
        chunks[at] = draw(st.sampled_from(CHUNK_FAULTS))(chunks[at])
    events = [sse.frame(json.dumps(value, **how).encode()) for value in chunks]
    if draw(st.booleans()):
        events.append(sse.DONE)
    for _ in range(draw(st.integers(0, 1))):
        at = draw(st.integers(0, len(events) - 1))
        events[at] = draw(st.sampled_from(EVENT_FAULTS))(events[at])
    stream = b"".join(events)
    if draw(st.booleans()):
        at = draw(st.integers(0, len(stream) - 1))
        stream = draw(
            st.sampled_from([stream[:at], stream[:at] + stream[at + 1 :]])
            | st.builds(lambda byte: stream[:at] + byte + stream[at + 1 :], st.binary(max_size=2))
        )
    return stream


PLACES = st.lists(st.integers(0, 9000), max_size=30)
TWICE = json.dumps(ANSWER.text("x")).replace('"model"', '"model": "x", "model"').encode()


@pytest.mark.proves("F24", "I-32", "I-36")
@given(
    mutated(),
    PLACES,
    st.sampled_from(["Me", None]),
    st.booleans(),
    st.sampled_from([0, 1, 4]),
)
@example(sse.frame(TWICE) * 3, [], "Me", False, 0)
def test_no_fast_path_and_no_cut_changes_what_a_chat_means(
    data: bytes, places: list[int], model: str | None, usage_wanted: bool, templates: int
) -> None:
    def passthrough() -> ChatPassthrough:
        made = ChatPassthrough(model, usage_wanted)
        made._templates_left = templates
        return made

    agrees(passthrough, data, places)


@pytest.mark.proves("F24", "I-32", "I-36")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("templates", [0, 4])
def test_no_fault_passes_since_the_events_before_it_were_good(kind: str, templates: int) -> None:
    def passthrough() -> ChatPassthrough:
        made = ChatPassthrough("Me", usage_wanted=False)
        made._templates_left = templates
        return made

    good = [chunk(n, kind, text) for n, text in enumerate(TEXTS)]
    for fault in CHUNK_FAULTS:
        changed = [*good[:-3], fault(good[-3]), *good[-2:], ANSWER.finish()]
        events = [sse.frame(json.dumps(value).encode()) for value in changed]
        for end in (sse.DONE, b""):
            stream = b"".join(events) + end
            agrees(passthrough, stream, places_between(events))
    events = [sse.frame(json.dumps(value).encode()) for value in [*good, ANSWER.finish()]]
    for spoil in EVENT_FAULTS:
        changed_events = [*events[:-4], spoil(events[-4]), *events[-3:]]
        for end in (sse.DONE, b""):
            stream = b"".join(changed_events) + end
            agrees(passthrough, stream, places_between(changed_events))


def places_between(events: list[bytes]) -> list[int]:
    return list(itertools.accumulate(map(len, events)))


@pytest.mark.proves("F24", "I-36")
@pytest.mark.parametrize(
    ("encoder", "passthrough"),
    [
        (MessageEncoder(thinking=False), MessagesPassthrough),
        (ResponseEncoder({"input": "x"}), ResponsePassthrough),
    ],
    ids=["messages", "responses"],
)
def test_no_fault_passes_in_a_stream_of_named_events(
    encoder: StreamEncoder, passthrough: type[EventPassthrough]
) -> None:
    blocks = [encoder.encode(ANSWER.text(text)) for text in TEXTS]
    last = encoder.finish()
    for spoil in EVENT_FAULTS:
        for stream in (*blocks[:-3], spoil(blocks[-3]), *blocks[-2:], last), (*blocks, spoil(last)):
            agrees(passthrough, b"".join(stream), places_between(list(stream)))


def agrees(passthrough: Callable[[], Passthrough], data: bytes, places: list[int]) -> None:
    pieces = cut(data, places)
    fast, parsed = passthrough(), careful(passthrough())
    received = outcome(fast, pieces)
    assert received == outcome(parsed, pieces)
    if received.end == "done":
        assert fast.usage == parsed.usage or fast.used() == parsed.used()
    at_once = outcome(passthrough(), [data])
    assert at_once == outcome(careful(passthrough()), [data])
    assert received.end == at_once.end
    # An error in the first bytes with content: nothing was sent, and another instance may answer.
    assert received.sent == at_once.sent or b"" in (received.sent, at_once.sent)
