"""No parser of an upstream's bytes needs much more memory than these bytes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

from nexus_gateway.dialects.chat import CHAT_COMPLETIONS, labelled
from nexus_gateway.wire import sse
from nexus_gateway.wire.passthrough import EventTemplate, find_model, set_model
from nexus_gateway.wire.shapes import EventShape

PIECE = 64 * 1024
SHARE = 4  # of the longest input: a parser that copies too often shows as well with less
SPARE = 5 * 1024 * 1024
ANSWER, EVENT = CHAT_COMPLETIONS.longest_answer // SHARE, sse.LONGEST_EVENT // SHARE
HEAD, TAIL = b'{"choices":[{"index":0,"delta":{"content":"', b'"}}],"model":"up"}'
TEXTS = {"plain": b"x", "escaped": rb"\n", "quotes": rb"\"", "not ASCII": "é".encode()}


def answer(text: bytes, size: int) -> bytes:
    """Return an answer of about `size` bytes with `model` at its end."""
    return HEAD + text * (size // len(text)) + TAIL


def peak(parse: Callable[[bytes], object], data: bytes) -> int:
    tracemalloc.start()
    try:
        parse(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def feed_pieces(data: bytes) -> None:
    framer, event = sse.Framer(), sse.frame(data)
    for at in range(0, len(event), PIECE):
        framer.feed(event[at : at + PIECE])
    assert framer.rest() == b""


PARSERS: dict[str, tuple[Callable[[bytes], object], int]] = {
    "find_model": (find_model, ANSWER),
    "set_model": (lambda data: set_model(data, b'"Me"'), ANSWER),
    "labelled": (lambda data: labelled(data, "Me"), ANSWER),
    "a template": (lambda data: EventTemplate.from_event(data, None, None), EVENT),
    "a shape": (EventShape.from_event, EVENT),
    "the framer": (feed_pieces, EVENT),
}


@pytest.mark.proves("F31", "I-38")
@pytest.mark.parametrize(("parse", "longest"), PARSERS.values(), ids=PARSERS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_largest_input_needs_little_memory(
    parse: Callable[[bytes], object], longest: int, text: bytes
) -> None:
    data = answer(text, longest - 100)
    assert peak(parse, data) <= 4 * longest + SPARE


def test_a_template_is_made_only_of_an_event_that_is_not_long() -> None:
    short, long = (answer(b"x", size) for size in (sse.LONG_EVENT - 100, sse.LONG_EVENT + 1))
    assert EventTemplate.from_event(short, None, None) is not None
    assert EventTemplate.from_event(long, None, None) is None


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_template_applies_to_long_texts_in_little_memory(text: bytes) -> None:
    template = EventTemplate.from_event(answer(b"x", 9), None, None)
    assert template is not None
    data = sse.frame(answer(text, EVENT - 100))
    assert peak(template.apply_to_one, data) <= 4 * EVENT + SPARE
    assert peak(template.apply, data) <= 4 * EVENT + SPARE
    assert template.apply(data) is not None
