"""Answers with status 200 that are errors: never a success, in whatever form they say so."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fakes import HELLO, make_instance, serving
from raw import HEAD, Wire, chunked, listening

from nexus_gateway.testing.gateway import Served
from nexus_gateway.testing.reply import Reply
from nexus_gateway.testing.upstream import FakeUpstream
from nexus_gateway.wire import sse
from nexus_gateway.wire.chunks import Answer, Chunk

ANSWER = Answer("chatcmpl-1", 1_700_000_000, "up")
WORDS = [ANSWER.text(word) for word in ("One", " two", " three", " four", " five", " six")]


def chunk(value: Any) -> bytes:
    return sse.frame(json.dumps(value).encode())


def choice_of(chunk: Chunk, **fields: Any) -> Chunk:
    return {**chunk, "choices": [{**chunk["choices"][0], **fields}]}


LIMIT = {"code": 400, "message": "maximum context length is 8192"}
# An event that is an error, and a part of its text that the caller must get.
ERRORS: dict[str, tuple[bytes, str]] = {
    "an error": (chunk({"error": LIMIT}), "8192"),
    "an error beside a choice": (chunk({**ANSWER.text("x"), "error": LIMIT}), "8192"),
    "an error as a text": (chunk({"error": "out of memory"}), "out of memory"),
    "a choice's error": (chunk(choice_of(ANSWER.text("x"), error=LIMIT)), "8192"),
    "a choice's reason": (chunk(ANSWER.finish("error")), "with an error"),
    "an error object": (chunk({"object": "error", **LIMIT}), "8192"),
    "a named event": (b"event: error\n" + chunk(LIMIT), "8192"),
    "a named event with a text": (b"event: error\ndata: out of memory\n\n", "out of memory"),
    "a named event with a chunk": (b"event: error\n" + chunk(ANSWER.text("x")), "no reason"),
    "a detail": (chunk({"detail": "out of memory"}), "out of memory"),
    "details": (chunk({"detail": [{"loc": ["body"], "msg": "out of memory"}]}), "out of memory"),
    "a message": (chunk({"message": "out of memory", "choices": None}), "out of memory"),
    "something else": (chunk({"status": "failed"}), "no reason"),
}
BODIES = {
    "/v1/chat/completions": HELLO,
    "/v1/messages": {**HELLO, "max_tokens": 9},
    "/v1/responses": {"input": "Hi"},
}
EACH_DIALECT = pytest.mark.parametrize("path", BODIES)
# The translations read what the reader of chats has let pass: for them one of each shape suffices.
SHAPES = ("an error", "a choice's reason", "a named event with a text", "something else")
EACH_CASE = pytest.mark.parametrize(
    ("path", "event", "text"),
    [
        pytest.param(path, *case, id=f"{name}-{path}")
        for path in BODIES
        for name, case in ERRORS.items()
        if path == "/v1/chat/completions" or name in SHAPES
    ],
)


def streamed(*events: bytes) -> Reply:
    return Reply(body=b"".join(events), content_type="text/event-stream")


async def ask(served: Served, path: str, *, stream: bool) -> tuple[int, str]:
    status, text, _ = await served.post(path, {**BODIES[path], "stream": stream})
    return status, text


class InTwo(Wire):
    """An upstream that sends the rest of its answer once the caller has the beginning."""

    def __init__(self, first: bytes, rest: bytes) -> None:
        super().__init__(first)
        self._parts = first, rest
        self.received = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        first, rest = self._parts
        writer.write(HEAD + b"\r\n" + chunked(first)[: -len(b"0\r\n\r\n")])
        await self.received.wait()
        writer.write(chunked(rest))
        await writer.drain()


async def ask_in_two(served: Served, path: str, upstream: InTwo) -> str:
    async with (
        asyncio.timeout(30),
        served.session.post(served.url + path, json={**BODIES[path], "stream": True}) as response,
    ):
        assert response.status == 200
        received = b""
        while b" six" not in received:
            received += await response.content.readany()
        upstream.received.set()
        return (received + await response.read()).decode()


@pytest.mark.proves("F18", "F59", "I-31")
@pytest.mark.usefixtures("each_way")
@EACH_CASE
async def test_an_error_in_the_middle_ends_a_stream(path: str, event: bytes, text: str) -> None:
    rest = event + chunk(ANSWER.finish()) + sse.DONE
    upstream = InTwo(b"".join(map(chunk, WORDS)), rest)
    async with listening(upstream) as url, serving(make_instance(url)) as served:
        received = await ask_in_two(served, path, upstream)
        (instance,) = served.instances
    assert text in received.rsplit("data: ", 1)[1]
    for end in ("[DONE]", "message_stop", "end_turn", "response.completed"):
        assert end not in received
    assert instance.health.success_rate() < 1


@pytest.mark.proves("F59")
@pytest.mark.usefixtures("each_way")
@EACH_CASE
async def test_an_error_at_the_beginning_is_never_sent(
    upstream: FakeUpstream, path: str, event: bytes, text: str
) -> None:
    upstream.default = streamed(chunk(ANSWER.text("")), event, sse.DONE)
    async with serving(make_instance(upstream), max_attempts=1) as served:
        status, _ = await ask(served, path, stream=True)
    assert status >= 400


WHOLE: dict[str, bytes] = {
    "an error": json.dumps({"error": LIMIT}).encode(),
    "a choice's error": b'{"choices":[{"message":{"content":"x"},"error":{"message":"m"}}]}',
    "a choice's reason": b'{"choices":[{"message":{"content":"x"},"finish_reason":"error"}]}',
    "an error object": json.dumps({"object": "error", **LIMIT}).encode(),
    "a detail": b'{"detail":"out of memory"}',
    "no choices": b'{"choices":[],"message":"out of memory"}',
}


@EACH_DIALECT
@pytest.mark.proves("F59")
@pytest.mark.parametrize("body", WHOLE.values(), ids=WHOLE)
async def test_a_whole_answer_that_is_an_error_is_no_success(
    upstream: FakeUpstream, path: str, body: bytes
) -> None:
    upstream.default = Reply(body=body)
    async with serving(make_instance(upstream), max_attempts=1) as served:
        status, _ = await ask(served, path, stream=False)
    assert status >= 400


HARMLESS = {
    "a filter's remark": {"id": "", "model": "", "choices": [], "prompt_filter_results": [{}]},
    "a remark with null for choices": {"id": "x", "choices": None, "sla_metrics": {"ttft": 1}},
    "a chunk without choices": {
        "id": "x",
        "object": "chat.completion.chunk",
        "x_groq": {"id": "y"},
    },
    "a usage": {"usage": {"prompt_tokens": 1, "completion_tokens": 6, "total_tokens": 7}},
    "a ping": {"type": "ping"},
    "nothing": {},
    "a filter's remark on a choice": {
        "id": "",
        "choices": [{"index": 0, "finish_reason": None, "content_filter_results": {}}],
    },
}


@pytest.mark.usefixtures("each_way")
@EACH_DIALECT
@pytest.mark.parametrize("harmless", HARMLESS.values(), ids=HARMLESS)
async def test_metadata_is_no_error(
    upstream: FakeUpstream, path: str, harmless: dict[str, Any]
) -> None:
    remark = chunk(harmless)
    good = [remark, *map(chunk, WORDS), remark, chunk(ANSWER.finish()), remark, sse.DONE]
    upstream.default = streamed(*good)
    async with serving(make_instance(upstream)) as served:
        status, received = await ask(served, path, stream=True)
    assert status == 200
    assert " six" in received
    assert any(end in received for end in ("[DONE]", "message_stop", "response.completed"))


CALL = ANSWER.call(0, "c", "f")
HALF = ANSWER.arguments(0, '{"ci')


def two(chunk: Chunk) -> list[Chunk]:
    return [choice_of(chunk, index=index) for index in (0, 1)]


# Streams that end without `[DONE]`, and whether they are complete.
CUT: dict[str, tuple[list[Chunk], bool]] = {
    "an empty reason each": ([choice_of(c, finish_reason="") for c in [CALL, *[HALF] * 9]], False),
    "an empty reason each, and one": (
        [*(choice_of(c, finish_reason="") for c in WORDS), ANSWER.finish()],
        True,
    ),
    "a number for a reason": ([*WORDS, choice_of(WORDS[0], finish_reason=1)], False),
    "one of two choices": ([*two(WORDS[0]), *two(WORDS[1]), two(ANSWER.finish())[1]], False),
    "both choices": ([*two(WORDS[0]), *two(WORDS[1]), *two(ANSWER.finish())], True),
    "the second choice begins late": (
        [WORDS[0], ANSWER.finish(), choice_of(WORDS[1], index=1)],
        False,
    ),
    "a filter's remark after the finish": (
        [*WORDS, ANSWER.finish(), HARMLESS["a filter's remark on a choice"]],
        True,
    ),
}


@pytest.mark.proves("F18", "F60")
@pytest.mark.usefixtures("each_way")
@EACH_DIALECT
@pytest.mark.parametrize(("chunks", "is_complete"), CUT.values(), ids=CUT)
async def test_a_stream_without_done_is_complete_if_each_choice_has_its_finish(
    upstream: FakeUpstream, path: str, chunks: list[Chunk], is_complete: bool
) -> None:
    upstream.default = streamed(*map(chunk, chunks))
    async with serving(make_instance(upstream)) as served:
        _, received = await ask(served, path, stream=True)
    ends = any(end in received for end in ("[DONE]", "message_stop", "response.completed"))
    assert ends is is_complete
