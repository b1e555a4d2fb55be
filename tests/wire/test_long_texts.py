"""Long texts are handled in pieces, and JSON with them means the same as parsed in one piece."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cuts import cut
from hypothesis import example, given
from hypothesis import strategies as st
from outcomes import careful, outcome

from nexus_gateway.dialects.messages import MessagesPassthrough
from nexus_gateway.dialects.messages.response import MessageEncoder
from nexus_gateway.dialects.responses import ResponsePassthrough
from nexus_gateway.dialects.responses.response import ResponseEncoder
from nexus_gateway.wire import json_codec, long_texts, sse
from nexus_gateway.wire.chunks import Answer
from nexus_gateway.wire.passthrough import ChatPassthrough, Passthrough

ANSWER = Answer("chatcmpl-1", 1, "up")
SLICE = 32
WORDS = ("a", " ", "é", "世", "\U0001f600", '"', "\\", "\n", "{}", ",", "\ud83d", "\ude00", "0" * 9)
LONG = st.lists(st.sampled_from(WORDS), max_size=60).map("".join)
VALUES = st.recursive(
    LONG | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(LONG, inner, max_size=4),
    max_leaves=8,
)


@contextmanager
def large(slice_size: int = SLICE) -> Iterator[None]:
    """Take all JSON for large, and a text of a few bytes for long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_codec, "LARGE", 0)
        patch.setattr(long_texts, "SLICE", slice_size)
        yield


def odd(text: str) -> Iterator[Any]:
    """Chunks whose long text is not of the answer."""
    yield from ({"detail": text}, {"error": {"message": text}}, {**ANSWER.text("b"), "x": text})
    yield {**ANSWER.text("b"), "model": text}


def written(draw: st.DrawFn, value: Any) -> bytes:
    is_ascii = draw(st.booleans())
    indent = draw(st.sampled_from([None, 3]))
    return json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode("utf-8", "surrogatepass")


def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    at, until = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
    new = st.sampled_from([b"", b'"', b"\\", b"\x00", b"\xff", b"5", b"\\u12", b"\\ud83d"])
    return data[:at] + draw(new) + (data[at:] if draw(st.booleans()) else data[until:])


@st.composite
def texts_of_json(draw: st.DrawFn) -> bytes:
    data = written(draw, draw(VALUES))
    return mutated(draw, data) if draw(st.booleans()) else data


def read(data: bytes) -> Any:
    try:
        return json_codec._decode_exact(data, 20)
    except json_codec.JSONError as error:
        return type(error)


@pytest.mark.proves("F31", "F74")
@given(texts_of_json(), st.integers(12, 40))
@example(b'["%b"5]' % (b"x" * 99), 12)
@example(b'[5"%b"]' % (b"x" * 99), 12)
@example(b'["%b"]' % (rb"\ud83d\ude42" * 9), 19)
def test_json_means_the_same_without_its_long_texts(data: bytes, slice_size: int) -> None:
    expected = read(data)
    with large(slice_size):
        assert read(data) == expected


@pytest.mark.parametrize(
    ("data", "at"),
    [
        (b'{"a": "%b", x}', b"x"),
        (b'{"a": "%b" 5}', b"5"),
        (b'{"a": "%b", "b": "\xff"}', b"\xff"),
        (b'{"a": "%b\xff"}', b"\xff"),
        (b'{"a": "%b\\x"}', b"\\x"),
        (b'{"a": "%b\t"}', b"\t"),
    ],
)
def test_an_error_names_the_byte(data: bytes, at: bytes) -> None:
    data %= "é".encode() * 100
    with large(), pytest.raises(json_codec.JSONError, match=f" at byte {data.index(at)}$"):
        json_codec.loads(data)


@pytest.mark.parametrize(
    "text", [b"x", rb"\"", rb"\\", rb"\\\"", rb"\ud83d\ude42", "世".encode(), b"[0,1"]
)
def test_a_long_text_is_found_whatever_is_in_it(text: bytes) -> None:
    long = b'"%b"' % (text * long_texts.SLICE)
    data = b'{%b:1,"a" : [%b,"b",0,%b]}' % (long, long, long)
    first = data.index(long, len(long) + 1)
    found = [(first, first + len(long)), (data.rindex(long), data.rindex(long) + len(long))]
    assert long_texts.find(data) == found  # but not the name
    assert long_texts.decode(data, found[0]) == json.loads(long)


def agrees(passthrough: Passthrough, again: Passthrough, pieces: list[bytes]) -> None:
    """Compare the outcome of a stream whose events are parsed with and without their texts."""
    expected = outcome(careful(again), pieces)
    with large():
        assert outcome(careful(passthrough), pieces) == expected


@pytest.mark.proves("F31", "I-38")
@given(LONG, st.lists(st.integers(0, 900), max_size=5), st.data())
def test_a_chat_means_the_same_without_its_long_texts(
    text: str, places: list[int], data: st.DataObject
) -> None:
    chunks: list[Any] = [ANSWER.text("a"), ANSWER.reasoning(text), ANSWER.text(text)]
    chunks.insert(data.draw(st.integers(0, 3)), data.draw(st.sampled_from([*odd(text)])))
    events = [sse.frame(written(data.draw, chunk)) for chunk in [*chunks, ANSWER.finish()]]
    stream = b"".join(events) + sse.DONE
    if data.draw(st.booleans()):
        stream = mutated(data.draw, stream)
    agrees(ChatPassthrough("Me", True), ChatPassthrough("Me", True), cut(stream, places))


@pytest.mark.proves("F31", "I-38")
@given(LONG, st.lists(st.integers(0, 900), max_size=5), st.data())
def test_named_events_mean_the_same_without_their_long_texts(
    text: str, places: list[int], data: st.DataObject
) -> None:
    text = text.encode("utf-8", "replace").decode()
    for encoder, passthrough in (
        (MessageEncoder(thinking=False), MessagesPassthrough),
        (ResponseEncoder({"input": "x"}), ResponsePassthrough),
    ):
        stream = encoder.encode(ANSWER.text("a")) + encoder.encode(ANSWER.text(text))
        stream += encoder.finish()
        if data.draw(st.booleans()):
            stream = mutated(data.draw, stream)
        agrees(passthrough(), passthrough(), cut(stream, places))


def test_a_long_event_that_is_held_back_counts_and_is_sent_whole() -> None:
    text = "x" * json_codec.LARGE
    role = {"choices": [{"index": 0, "delta": {"role": "assistant"}}], "note": text}
    passthrough = ChatPassthrough(None, usage_wanted=True)
    assert passthrough.feed(sse.json_event(role)) == b""
    assert passthrough._held_size > len(text)
    assert text.encode() in passthrough.feed(sse.json_event(ANSWER.text("a")))
