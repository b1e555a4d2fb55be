"""The passthrough of a chat stream: any cut of the bytes gives the same response."""

from __future__ import annotations

import json
from typing import Any
from unittest import mock

import pytest
from cuts import cut
from hypothesis import given
from hypothesis import strategies as st

from nexus_gateway.errors import BrokenStream, ErrorEvent, TruncatedStream
from nexus_gateway.wire import sse
from nexus_gateway.wire.chunks import Answer
from nexus_gateway.wire.passthrough import ChatPassthrough, find_model, set_model

ANSWER = Answer("chatcmpl-1", 1, "up-model")
TEXT = st.text(max_size=12)


def framed(chunk: dict[str, Any], **how: Any) -> bytes:
    return sse.frame(json.dumps(chunk, **how).encode())


def run(pieces: list[bytes], model: str | None = "Me", usage_wanted: bool = False) -> bytes:
    passthrough = ChatPassthrough(model, usage_wanted)
    out = [passthrough.feed(piece) for piece in pieces]
    out += [passthrough.end()] if not passthrough.broken else []
    if passthrough.broken:
        raise passthrough.broken
    return b"".join(out)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, str]:
    """An upstream's stream, in any of the forms that upstreams use, and its text."""
    texts = draw(st.lists(TEXT.filter(bool), min_size=1, max_size=6))
    how = draw(st.sampled_from([{}, {"separators": (",", ":")}, {"ensure_ascii": False}]))
    chunks = [ANSWER.text(""), *(ANSWER.text(t) for t in texts), ANSWER.finish()]
    if draw(st.booleans()):
        chunks.append(ANSWER.usage(1, 2))
    if draw(st.booleans()):
        for chunk in chunks:
            chunk.pop("model")
    if draw(st.booleans()):
        for chunk in chunks:
            chunk["x"] = {"model": "up-model", "error": None, "y": '"model":"up-model"'}
    events = [framed(chunk, **how) for chunk in chunks]
    for noise in (b": hi\n\n", b"id: 1\n\n", b"\n"):
        if draw(st.booleans()):
            events.insert(draw(st.integers(0, len(events))), noise)
    if draw(st.booleans()):
        events.append(sse.DONE)
    data = b"".join(events)
    if draw(st.booleans()):
        data = data.replace(b"data: ", b"event: x\ndata:")
    newline = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    bom = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    return bom + data.replace(b"\n", newline), "".join(texts)


@pytest.mark.proves("F24", "I-32", "I-36")
@given(streams(), st.lists(st.integers(0, 5000), max_size=30))
def test_any_cut_gives_the_same_response(stream: tuple[bytes, str], places: list[int]) -> None:
    data, text = stream
    out = run(cut(data, places))
    assert out == run([data])
    events = list(sse.split(out))
    chunks = [json.loads(e.removeprefix(b"data: ")) for e in events[:-1] if e[:1] != b":"]
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == text
    assert {c["model"] for c in chunks} == {"Me"}
    assert all(c.get("x", {}).get("model", "up-model") == "up-model" for c in chunks)
    assert events[-1] == b"data: [DONE]"
    assert out.count(b"[DONE]") == 1


@given(st.lists(TEXT.filter(bool), min_size=1), st.lists(st.integers(0, 5000), max_size=10))
def test_bytes_pass_unchanged_if_the_model_is_kept(texts: list[str], places: list[int]) -> None:
    chunks = [*map(ANSWER.text, texts), ANSWER.finish()]
    data = b"".join(map(framed, chunks)) + sse.DONE
    assert run(cut(data, places), model=None) == data


@given(streams(), st.integers(0, 5000), st.lists(st.integers(0, 5000), max_size=10))
def test_a_truncated_stream_is_never_complete(
    stream: tuple[bytes, str], place: int, places: list[int]
) -> None:
    data, _ = stream
    head = data[: place % len(data)]
    if b'"finish_reason": "stop"' in head or b'"finish_reason":"stop"' in head:
        return
    with pytest.raises(BrokenStream):
        run(cut(head, places))


@pytest.mark.proves("I-30")
def test_nothing_is_sent_before_content() -> None:
    passthrough = ChatPassthrough("Me", False)
    assert passthrough.feed(framed(ANSWER.text("")) + b": wait\n\n") == b""
    assert not passthrough.started
    out = passthrough.feed(framed(ANSWER.text("Hi")))
    assert passthrough.started
    assert out.startswith(b"data: ")
    assert b": wait\n\n" in out


def test_the_usage_chunk_is_sent_only_if_requested() -> None:
    data = b"".join(map(framed, [ANSWER.text("a"), ANSWER.finish(), ANSWER.usage(3, 4)]))
    assert b"usage" not in run([data])
    assert b"usage" in run([data], usage_wanted=True)


def test_tokens_are_the_upstreams_count_or_the_number_of_events() -> None:
    passthrough = ChatPassthrough("Me", False)
    for _ in range(3):
        passthrough.feed(framed(ANSWER.text("a")))
    assert passthrough.used()["completion_tokens"] == 3
    passthrough.feed(framed({**ANSWER.text("b"), "usage": {"completion_tokens": 9}}))
    assert passthrough.used()["completion_tokens"] == 9


def test_an_error_event_before_content_raises_and_a_later_one_keeps_the_good_part() -> None:
    error = framed({"error": {"message": "no", "code": 429}})
    with pytest.raises(ErrorEvent) as raised:
        run([framed(ANSWER.text("a")) + error])
    assert raised.value.body()["error"]["code"] == "429"
    passthrough = ChatPassthrough("Me", False)
    passthrough.feed(framed(ANSWER.text("a")))
    assert b'"b"' in passthrough.feed(framed(ANSWER.text("b")) + error)
    assert isinstance(passthrough.broken, ErrorEvent)


@pytest.mark.parametrize("data", [b"data: {x\n\n", b"data: 5\n\n", b'data: {"a":1}x\n\n'])
def test_invalid_data_breaks_the_stream(data: bytes) -> None:
    with pytest.raises(BrokenStream):
        run([framed(ANSWER.text("a")), data, framed(ANSWER.finish())])


@pytest.mark.parametrize("before", [0, 1, 9])
def test_the_halves_of_a_character_may_be_in_two_events(before: int) -> None:
    texts = [*["x"] * before, "\ud83d", "\ude00", "y"]
    data = b"".join(framed(chunk) for chunk in [*map(ANSWER.text, texts), ANSWER.finish()])
    assert run([data], model=None) == data + sse.DONE


@pytest.mark.parametrize("longer", [0, 1])
@given(places=st.lists(st.integers(0, 5000), max_size=5))
def test_no_cut_changes_whether_an_event_is_too_large(longer: int, places: list[int]) -> None:
    data = sse.frame(b"x" * (1000 + longer - len(b"data: ")))
    framer = sse.Framer()
    with mock.patch.multiple(sse, LONGEST_EVENT=1000, COPIED=100):
        if longer:
            with pytest.raises(BrokenStream, match="too large"):
                [framer.feed(piece) for piece in cut(data, places)]
        else:
            assert b"".join(map(framer.feed, cut(data, places))) == data


def test_an_event_too_large_breaks_the_stream() -> None:
    with pytest.raises(BrokenStream, match="too large"):
        run([b"data: " + b"x" * (sse.LONGEST_EVENT + 1)])
    with pytest.raises(BrokenStream, match="too much"):
        run([(b": " + b"x" * 1000 + b"\n\n") * (sse.LONGEST_EVENT // 1000 + 1)])


def test_done_without_content_breaks_the_stream() -> None:
    with pytest.raises(TruncatedStream):
        run([sse.DONE])


def test_a_last_event_without_its_blank_line_counts() -> None:
    data = framed(ANSWER.text("a")) + framed(ANSWER.finish())
    assert run([data[:-2]]) == run([data])
    assert run([data + b"data: [DONE]"]) == run([data])


@given(st.dictionaries(st.text(max_size=8), st.recursive(st.none() | TEXT, st.lists, max_leaves=5)))
def test_set_model_changes_only_the_model(value: dict[str, Any]) -> None:
    value = {k: v for k, v in value.items() if k != "model"} | {"in": {"model": "deep"}}
    for chunk in (value, {**value, "model": "old"}, {"model": None, **value}, {}):
        out = json.loads(set_model(json.dumps(chunk).encode(), chunk, b'"new"'))
        assert out == {**chunk, "model": "new"}


def test_find_model_finds_the_top_level() -> None:
    text = b'{"a": {"model": "x"}, "b": "\\"model\\":", "model" : "y"}'
    span = find_model(text, json.loads(text))
    assert span
    assert text[slice(*span)] == b'"y"'
    assert find_model(b'{"a": ["model", "x"]}', {"a": ["model", "x"]}) is None
