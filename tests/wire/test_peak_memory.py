"""No parser of foreign bytes needs much more memory than these bytes."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from array import array
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from nexus_gateway.dialects.base import Dialect, InvalidAnswer, Request
from nexus_gateway.dialects.chat import CHAT_COMPLETIONS, COMPLETIONS
from nexus_gateway.dialects.embeddings import EMBEDDINGS, Embeddings, _in_base64, _in_numbers
from nexus_gateway.dialects.messages import MESSAGES
from nexus_gateway.dialects.responses import RESPONSES
from nexus_gateway.dialects.transcriptions import TRANSCRIPTIONS
from nexus_gateway.settings import Settings
from nexus_gateway.upstream.http1 import ChunkedBody
from nexus_gateway.wire import json_codec, sse
from nexus_gateway.wire.passthrough import LONG_EVENT, EventTemplate, Passthrough
from nexus_gateway.wire.shapes import EventShape

PIECE = 64 * 1024
SPARE = 20 * 1024 * 1024
TEXTS = {
    "plain": b"x",
    "mixed": r"word \n\" é ".encode(),
    "emoji": "🙂".encode(),
    "CJK": "世界".encode(),
}
BODY = Settings().max_body_mb * 1024 * 1024
HEAD, TAIL = b'{"choices":[{"index":0,"delta":{"content":"', b'"}}],"model":"up"}'
SAID = b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"%b"}]}'
REQUESTS: dict[Dialect, bytes] = {
    CHAT_COMPLETIONS: SAID,
    COMPLETIONS: b'{"model":"m","prompt":"%b"}',
    MESSAGES: SAID,
    RESPONSES: b'{"model":"m","input":"%b"}',
    EMBEDDINGS: b'{"model":"m","input":"%b"}',
}
ANSWERS: dict[Dialect, bytes] = {
    CHAT_COMPLETIONS: b'{"choices":[{"index":0,"message":{"content":"%b"}}],"model":"up"}',
    COMPLETIONS: b'{"choices":[{"index":0,"text":"%b"}],"model":"up"}',
    MESSAGES: b'{"type":"message","content":[{"type":"text","text":"%b"}],"model":"up"}',
    RESPONSES: b'{"object":"response","output":[{"text":"%b"}],"model":"up"}',
    TRANSCRIPTIONS: b'{"text":"%b"}',
}
EVENTS: dict[Dialect, bytes] = {
    CHAT_COMPLETIONS: HEAD + b"%b" + TAIL,
    MESSAGES: b'{"type":"content_block_delta","delta":{"type":"text_delta","text":"%b"}}',
    RESPONSES: b'{"type":"response.output_text.delta","delta":"%b"}',
    TRANSCRIPTIONS: b'{"type":"transcript.text.delta","delta":"%b"}',
}


def filled(form: bytes, text: bytes, size: int) -> bytes:
    """Return a form of almost `size` bytes: with a text in it, over and over."""
    return form % (text * ((size - len(form) - 100) // len(text)))


def peak(parse: Callable[[bytes], object], data: bytes) -> int:
    tracemalloc.start()
    try:
        parse(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def pieces(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), PIECE):
        yield data[at : at + PIECE]


def feed_framer(data: bytes) -> None:
    framer = sse.Framer()
    for piece in pieces(sse.frame(data)):
        framer.feed(piece)
    assert framer.rest() == b""


def feed_chunked(data: bytes) -> None:
    body, size = ChunkedBody(), 0
    for piece in pieces(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)):
        size += len(body.feed(piece))
    assert (size, body.ended) == (len(data), True)


def passthrough_of(dialect: Dialect) -> Passthrough:
    if dialect is TRANSCRIPTIONS or dialect is RESPONSES or dialect is MESSAGES:
        return dialect.passthrough(None, "Me")  # type: ignore[arg-type]
    return dialect.passthrough(dialect.parse(SAID % b"x", {}), "Me")


def stream(dialect: Dialect) -> Callable[[bytes], object]:
    def read(data: bytes) -> None:
        passthrough, size = passthrough_of(dialect), 0
        for piece in pieces(sse.frame(data)):
            size += len(passthrough.feed(piece))
        assert size >= len(data)

    return read


def form(data: bytes) -> None:
    """Read an upload and send it on."""
    head = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b\r\n'
    head += b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'

    async def arriving() -> AsyncIterator[bytes]:
        yield head
        for piece in pieces(data):
            yield piece
        yield b"\r\n--b--\r\n"

    async def run() -> None:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        request = await TRANSCRIPTIONS.read(arriving(), headers)
        sent: Any = request.native.encode("m")
        assert sum([len(piece) async for piece in sent]) >= len(data)

    asyncio.run(run())


def parsed(dialect: Dialect) -> Callable[[bytes], Request]:
    return lambda data: dialect.parse(data, {})


def answered(dialect: Dialect) -> Callable[[bytes], object]:
    return lambda data: dialect.parse_native(data, "application/json", "Me")


Case = tuple[Callable[[bytes], object], bytes, int]
CASES: dict[str, Case] = {
    **{f"a request of {d.endpoint}": (parsed(d), form, BODY) for d, form in REQUESTS.items()},
    **{
        f"an answer of {d.endpoint}": (answered(d), form, CHAT_COMPLETIONS.longest_answer)
        for d, form in ANSWERS.items()
    },
    **{f"an event of {d.endpoint}": (stream(d), e, sse.LONGEST_EVENT) for d, e in EVENTS.items()},
    "the framer": (feed_framer, b"%b", sse.LONGEST_EVENT),
    "chunks": (feed_chunked, b"%b", CHAT_COMPLETIONS.longest_answer),
    "a form": (form, b"%b", BODY),
    "a shape": (EventShape.from_event, HEAD + b"%b" + TAIL, sse.LONGEST_EVENT),
}


@pytest.mark.proves("F31", "I-38")
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize(("parse", "form", "longest"), CASES.values(), ids=CASES)
def test_the_largest_input_needs_little_memory(
    parse: Callable[[bytes], object], form: bytes, longest: int, text: bytes
) -> None:
    assert peak(parse, filled(form, text, longest)) <= 4 * longest + SPARE


@pytest.mark.proves("F31", "I-38")
def test_vectors_are_converted_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Embeddings, "longest_answer", 8 * 1024 * 1024)  # else it takes long
    as_base64 = EMBEDDINGS.parse(
        b'{"model":"m","input":"x","encoding_format":"base64"}', {}
    ).dialect
    numbers = b'{"data":[{"embedding":[%b1.5]}]}' % (b"0.12345678," * 500_000)
    assert peak(answered(as_base64), numbers) <= 4 * len(numbers)

    def refused(data: bytes) -> None:
        with pytest.raises(InvalidAnswer, match="too many"):
            answered(EMBEDDINGS)(data)

    longest = EMBEDDINGS.longest_answer
    vectors = filled(b'{"data":[{"embedding":"%b"}]}', b"QUJDPkFC", longest)
    assert peak(refused, vectors) <= 4 * longest


@pytest.mark.parametrize("count", [0, 1, 3, 12_287, 12_288, 12_289, 100_000])
def test_vectors_of_any_length_are_converted(count: int) -> None:
    vector = [n / 8 for n in range(count)]
    numbers = json.dumps({"data": [{"embedding": vector}, {"embedding": vector}]}).encode()
    converted = _in_base64(numbers)
    texts = [item["embedding"] for item in json.loads(converted)["data"]]
    assert [[*array("f", b64decode(text))] for text in texts] == [vector, vector]
    assert json.loads(_in_numbers(converted)) == json.loads(numbers)


def test_a_large_value_is_written_as_a_small_one() -> None:
    texts = ["x" * 70_000, 'é\n"😀' * 30_000, "", "\\"]
    value = {"a": texts, "b": {"": [], "c": {}}, "d": [1, 1.5, None, True, 2**70], 'e"': "\x01"}
    assert json.loads(json_codec.dumps(value, json_codec.LARGE + 1)) == value
    with pytest.raises(json_codec.JSONError):
        json_codec.dumps(["x" * 70_000, "\ud800"], json_codec.LARGE + 1)


def test_a_template_is_made_only_of_an_event_that_is_not_long() -> None:
    short, long = (filled(HEAD + b"%b" + TAIL, b"x", size) for size in (LONG_EVENT, LONG_EVENT * 2))
    assert EventTemplate.from_event(short, None, None) is not None
    assert EventTemplate.from_event(long, None, None) is None


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_template_applies_to_long_texts_in_little_memory(text: bytes) -> None:
    template = EventTemplate.from_event(HEAD + b"x" + TAIL, None, None)
    assert template is not None
    data = sse.frame(filled(HEAD + b"%b" + TAIL, text, sse.LONGEST_EVENT))
    assert peak(template.apply_to_one, data) <= 4 * sse.LONGEST_EVENT + SPARE
    assert peak(template.apply, data) <= 4 * sse.LONGEST_EVENT + SPARE
    assert template.apply(data) is not None
