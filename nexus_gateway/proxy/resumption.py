"""RESUME: another instance continues a stream that broke, so that the caller sees one answer.

`Resuming` wraps the relay. The sink that it passes on keeps what was sent of a plain chat, and if
the stream breaks, it asks the relay again: the chat, the answer so far as the assistant's own
message, and the wish to continue. What the next instance sends goes out under the first answer's
id.

A stream that does not break costs nothing but the memory of its bytes. It is off by default: an
answer of two models is not always wanted, and the prompt is paid twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nexus_gateway.dialects.base import Request
from nexus_gateway.dialects.body import Body, validated
from nexus_gateway.dialects.chat import CHAT_COMPLETIONS
from nexus_gateway.errors import BrokenStream, EndlessStream, GatewayError
from nexus_gateway.proxy.context import RequestContext, RequestOptions, Sink
from nexus_gateway.proxy.relay import Relay
from nexus_gateway.routing.scheduler import RoutingTarget
from nexus_gateway.upstream.large import apart
from nexus_gateway.upstream.streams import AnswerStream
from nexus_gateway.wire import json_codec, sse
from nexus_gateway.wire.chunks import choices, finished, has_content

MAX_KEPT_BYTES = 4 * 1024 * 1024  # a longer answer is not resumed
CONTINUE = (
    "Your last message was cut off by a broken connection. Continue exactly where it stops, in the "
    "middle of a word if need be: repeat nothing, explain nothing, add no preamble."
)
# Fields that make an answer more than one plain text, unless they have this value.
_PLAIN_VALUES: Mapping[str, object] = {
    "tools": [],
    "functions": [],
    "n": 1,
    "logprobs": False,
    "response_format": {"type": "text"},
    "modalities": ["text"],
}
_NOT_TEXT = frozenset({"tool_calls", "function_call", "refusal", "audio"})
Continue = Callable[["PartialAnswer", Sink], Awaitable[None]]


class Resuming(Relay):
    """A relay that resumes streams that break."""

    async def serve(
        self,
        context: RequestContext,
        request: Request,
        target: RoutingTarget,
        options: RequestOptions,
        sink: Sink,
    ) -> None:
        if not is_plain_text(request):
            return await super().serve(context, request, target, options, sink)
        relay = super().serve

        async def resume(answer: PartialAnswer, kept: Sink) -> None:
            outcome, context.outcome = context.outcome, "cancelled"  # unless it comes to an end
            try:
                # The time starts again: the caller's own limit is kept by the endpoint.
                rest = await apart(request.native.size, continued, request, answer)
                await relay(context, rest, target, replace(options, timeout_s=None), kept)
            except GatewayError:
                context.outcome = outcome
                raise

        await relay(context, request, target, options, KeepingSink(sink, resume))


@dataclass(frozen=True, slots=True)
class PartialAnswer:
    """What was sent of an answer: the fields that all its chunks share, its text, its chunks."""

    head: Mapping[str, Any]
    text: str
    pieces: int


class KeepingSink:
    """Keeps what it sends; if the stream breaks, the rest comes from another instance."""

    def __init__(self, sink: Sink, resume: Continue) -> None:
        self._sink = sink
        self._resume = resume
        self._blocks: list[bytes] = []
        self._size = 0
        self.start = sink.start
        self.end = sink.end
        self.full = sink.full

    async def write(self, data: bytes) -> None:
        await self._sink.write(data)
        self._size += len(data)
        if self._size > MAX_KEPT_BYTES:
            self._blocks.clear()
        else:
            self._blocks.append(data)

    def pipe(self) -> None:
        return None  # each block has to be kept

    async def fail(self, status: int, body: dict[str, Any]) -> None:
        """Let another instance continue; if none can, end the stream with the error."""
        is_over = self._size > MAX_KEPT_BYTES or body["error"].get("code") == EndlessStream.code
        answer = None if is_over else read_answer(self._blocks)
        if answer is not None:
            try:
                return await self._resume(answer, ContinuingSink(self, answer))
            except GatewayError:
                pass  # the first error is the one that the caller gets
        await self._sink.fail(status, body)


class ContinuingSink:
    """The sink of the next instance: its chunks get the first answer's head."""

    def __init__(self, sink: KeepingSink, answer: PartialAnswer) -> None:
        self._sink = sink
        self._answer = answer
        self.fail, self.pipe, self.full = sink.fail, sink.pipe, sink.full

    async def start(self, context: RequestContext, stream: AnswerStream) -> None:
        assert context.history.latest is not None
        name = context.history.latest.instance.name.replace("\r", " ").replace("\n", " ")
        await self._sink.write(f": resumed by {name}\n\n".encode())

    async def write(self, data: bytes) -> None:
        if events := under_head(data, self._answer):
            await self._sink.write(events)

    async def end(self, data: bytes = b"") -> None:
        await self._sink.end(under_head(data, self._answer))


def is_plain_text(request: Request) -> bool:
    """Whether a request is a streamed chat whose answer can only be one text."""
    if request.dialect is not CHAT_COMPLETIONS or not request.stream or request.chat is None:
        return False
    fields = request.chat.fields
    return all(fields.get(name) in (None, plain) for name, plain in _PLAIN_VALUES.items())


def read_answer(blocks: Iterable[bytes]) -> PartialAnswer | None:
    """Read what was sent; None if it cannot be continued: it is more than text, or has ended."""
    texts: list[str] = []
    head: dict[str, Any] = {}
    data = [sse.parse_event(event).data for event in sse.split(b"".join(blocks))]
    try:
        chunks = [json_codec.loads(text) for text in data if text and text != "[DONE]"]
    except json_codec.JSONError:
        return None
    for chunk in (value for value in chunks if isinstance(value, dict)):
        head = head or {k: chunk[k] for k in ("id", "created", "model") if k in chunk}
        if finished(chunk):
            return None
        for choice in choices(chunk):
            delta = choice.get("delta")
            message = delta if isinstance(delta, dict) else {}
            content = message.get("content")
            if any(message.get(name) for name in _NOT_TEXT) or not isinstance(content, str | None):
                return None
            texts += [content] if content else []
    return PartialAnswer(head, "".join(texts), len(texts))


def continued(request: Request, answer: PartialAnswer) -> Request:
    """Return the request for the rest; InvalidRequest if the text ends in half a character."""
    assert request.chat is not None
    fields = dict(request.chat.fields)
    if answer.text:
        so_far = {"role": "assistant", "content": answer.text}
        fields["messages"] = [*fields["messages"], so_far, {"role": "user", "content": CONTINUE}]
    for name in ("max_tokens", "max_completion_tokens"):
        if isinstance(fields.get(name), int):
            fields[name] = max(1, fields[name] - answer.pieces)
    body = validated(Body(fields, True, request.native.size), request.model)
    return replace(request, native=body, chat=body)


def under_head(block: bytes, answer: PartialAnswer) -> bytes:
    """Return the next instance's events with the first head; BrokenStream if one is no chunk."""
    events: list[bytes] = []
    for event in sse.split(block):
        data = sse.parse_event(event).data
        if not data or data == "[DONE]":
            events.append(event + b"\n\n")
            continue
        try:
            chunk = json_codec.loads(data)
            if not isinstance(chunk, dict):
                raise json_codec.JSONError("no chunk")
            if has_content(chunk) or not choices(chunk):  # others say nothing after the first head
                events.append(sse.json_event({**chunk, **answer.head}))
        except json_codec.JSONError as error:
            raise BrokenStream("The upstream sent something that is not an answer.") from error
    return b"".join(events)
