"""A chat that broke in the midst of its answer, as it can be asked of somebody else.

What was said is read from the bytes that went out, and only then: a stream that does not break
costs nothing but the memory of them. The one who goes on gets the chat, what was said so far as the
assistant's own words, and the wish to go on from there; what he says goes out under the first
one's id, so that it is one answer.

Going on with an answer that broke: a sink that remembers, and one that joins.

Only where the owner sets RESUME: an answer of two models is not always what is wanted, and it
costs the prompt twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from nexus_gateway.dialects.base import FullResponse, Request
from nexus_gateway.dialects.body import Body, validated
from nexus_gateway.dialects.chat import CHAT_COMPLETIONS
from nexus_gateway.errors import BrokenStream
from nexus_gateway.proxy.context import Memory, Said, Sink
from nexus_gateway.proxy.record import RequestState
from nexus_gateway.upstream.streams import RawWriter
from nexus_gateway.wire import json_codec, sse
from nexus_gateway.wire.chunks import Chunk, choices, finished, has_content

GO_ON = (
    "Your last message was cut off by a broken connection. Go on exactly where it stops, in the "
    "middle of a word if need be: repeat nothing, explain nothing, add no preamble."
)
# What makes an answer something else than one plain text, unless it has the value beside it.
_OTHER_THAN_TEXT: Mapping[str, object] = {
    "tools": [],
    "functions": [],
    "n": 1,
    "logprobs": False,
    "response_format": {"type": "text"},
    "modalities": ["text"],
}
_LIMITS = ("max_tokens", "max_completion_tokens")
_NOT_TEXT = frozenset({"tool_calls", "function_call", "refusal", "audio"})


def is_plain_text(request: Request) -> bool:
    """Tell whether a request is a streamed chat whose answer can only be one text."""
    if request.dialect is not CHAT_COMPLETIONS or not request.stream or request.chat is None:
        return False
    fields = request.chat.fields
    return all(fields.get(name) in (None, plain) for name, plain in _OTHER_THAN_TEXT.items())


def read_said(blocks: Iterable[bytes]) -> Said | None:
    """Read what went out of a chat's stream.

    Args:
        blocks: whole events.

    Returns:
        What was said; None where it can't be gone on with: it is more than text, or had its end.
    """
    texts: list[str] = []
    head: dict[str, Any] = {}
    try:
        chunks = _chunks(b"".join(blocks))
    except json_codec.JSONError:
        return None
    for chunk in chunks:
        head = head or {k: chunk[k] for k in ("id", "created", "model") if k in chunk}
        if finished(chunk):
            return None
        for choice in choices(chunk):
            delta = choice.get("delta")
            said = delta if isinstance(delta, dict) else {}
            content = said.get("content")
            if any(said.get(name) for name in _NOT_TEXT) or not isinstance(content, str | None):
                return None
            texts += [content] if content else []
    return Said(head, "".join(texts), len(texts))


def _chunks(block: bytes) -> list[Chunk]:
    data = [sse.parse_event(event).data for event in sse.split(block)]
    values = [json_codec.loads(text) for text in data if text and text != "[DONE]"]
    return [value for value in values if isinstance(value, dict)]


def continued(request: Request, said: Said) -> Request:
    """Return the request by which somebody goes on with what was said.

    Raises:
        InvalidRequest: what was said has no JSON form: half of a character.
    """
    assert request.chat is not None
    fields = dict(request.chat.fields)
    if said.text:
        told = {"role": "assistant", "content": said.text}
        fields["messages"] = [*fields["messages"], told, {"role": "user", "content": GO_ON}]
    for name in _LIMITS:
        if isinstance(fields.get(name), int):
            fields[name] = max(1, fields[name] - said.pieces)
    body = validated(Body(fields, True), request.model)
    return replace(request, native=body, chat=body)


def under_one_head(block: bytes, said: Said) -> bytes:
    """Return events of the one who goes on, as if the first one had said them.

    Raises:
        BrokenStream: one of them is no chunk.
    """
    out: list[bytes] = []
    for event in sse.split(block):
        data = sse.parse_event(event).data
        if not data or data == "[DONE]":
            out.append(event + b"\n\n")
            continue
        try:
            out.append(_headed(json_codec.loads(data), said))
        except json_codec.JSONError as error:
            raise BrokenStream("The upstream sent something that is not an answer.") from error
    return b"".join(out)


def _headed(chunk: object, said: Said) -> bytes:
    """Return a chunk's event under the first one's head; nothing for one that says nothing.

    Raises:
        JSONError: it is no chunk, or cannot be written.
    """
    if not isinstance(chunk, dict):
        raise json_codec.JSONError("no chunk")
    if has_content(chunk) or not choices(chunk):
        return sse.json_event({**chunk, **said.head})
    return b""


# What is longer than this is not gone on with.
MOST_REMEMBERED = 4 * 1024 * 1024


class Remembering:
    """A sink that keeps what went through it (an `errand.Memory`).

    Args:
        sink: where it goes.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._blocks: list[bytes] = []
        self._size = 0
        self.start = sink.start
        self.fail = sink.fail
        self.whole = sink.whole

    def said(self) -> Said | None:
        """Return what went through, None where it can't be gone on with."""
        if self._size > MOST_REMEMBERED:
            return None
        return read_said(self._blocks)

    def remember(self, data: bytes) -> None:
        """Keep whole events."""
        self._size += len(data)
        if self._size > MOST_REMEMBERED:
            self._blocks.clear()
        else:
            self._blocks.append(data)

    async def write(self, data: bytes) -> None:
        """Send whole events."""
        await self._sink.write(data)
        self.remember(data)

    async def end(self, data: bytes = b"") -> None:
        """End the stream."""
        await self._sink.end(data)

    def pipe(self) -> RawWriter | None:
        """Return a way to write without waiting, that remembers as well."""
        pipe = self._sink.pipe()
        return None if pipe is None else _RememberingPipe(pipe, self.remember)


class _RememberingPipe:
    def __init__(self, pipe: RawWriter, remember: Callable[[bytes], None]) -> None:
        self._write = pipe.write
        self._remember = remember
        self.drain = pipe.drain

    def write(self, data: bytes) -> bool:
        self._remember(data)
        return self._write(data)


class Joining:
    """A sink for the one who goes on (an `errand.Sink`).

    Args:
        sink: where the first part went.
        said: the first part.
    """

    def __init__(self, sink: Memory, said: Said) -> None:
        self._sink = sink
        self._said = said

    async def start(self, report: RequestState) -> None:
        """Tell in a comment who goes on."""
        assert report.instance is not None
        name = report.instance.name.replace("\r", " ").replace("\n", " ")
        await self._sink.write(f": resumed by {name}\n\n".encode())

    async def write(self, data: bytes) -> None:
        """Send whole events."""
        if joined := under_one_head(data, self._said):
            await self._sink.write(joined)

    async def end(self, data: bytes = b"") -> None:
        """End the stream."""
        await self._sink.end(under_one_head(data, self._said))

    def pipe(self) -> RawWriter | None:
        """Say that each block has to be looked into."""
        return None

    async def fail(self, status: int, body: dict[str, Any]) -> None:
        """End the stream with an error event."""
        await self._sink.fail(status, body)

    async def whole(self, report: RequestState, answer: FullResponse) -> None:
        """Never asked: what is gone on with is a stream."""
        raise NotImplementedError("a stream is gone on with by a stream")
