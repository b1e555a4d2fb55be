"""Translate the events of an Anthropic stream into OpenAI chunks.

A message is a series of content blocks, each with a start, deltas and a stop; then come the stop
reason and the usage, which is cumulative. New types of events, blocks and deltas may be introduced
at any time: unknown ones are ignored.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nexus_gateway.provider import Answer, Event

Chunk = dict[str, Any]
Object = Mapping[str, Any]

# Anything else (end_turn, stop_sequence, pause_turn, and future ones) is a stop.
_FINISHES = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


async def chunks(events: AsyncIterator[Event], answer: Answer) -> AsyncIterator[Chunk]:
    """Translate a stream up to its message_stop, or its error as a last `{"error": …}`.

    The chunks of a stream that was cut off have no finish.
    """
    message = _Message(answer)
    async for event in events:
        if event.data:
            for chunk in message.read(_parse(event)):
                yield chunk
        if message.ended:
            return


@dataclass(slots=True)
class _Tool:
    """A tool call; `input` is the one of its start, used if no delta with arguments follows."""

    number: int
    input: str


class _Message:
    """The state of one message while it is streamed."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._numbers = itertools.count()
        self._tools: dict[str, _Tool] = {}
        self._usage: dict[str, Any] = {}
        self._stop_reason: object = None
        self.ended = False

    def read(self, event: Object) -> Iterator[Chunk]:
        match event.get("type"):
            case "message_start":
                self._count(_object(event, "message"))
            case "content_block_start":
                yield from self._start(str(event.get("index")), _object(event, "content_block"))
            case "content_block_delta":
                yield from self._delta(str(event.get("index")), _object(event, "delta"))
            case "content_block_stop":
                yield from self._stop(str(event.get("index")))
            case "message_delta":
                self._count(event)
                self._stop_reason = _object(event, "delta").get("stop_reason") or self._stop_reason
            case "message_stop":
                self.ended = True
                yield self._answer.finish(_FINISHES.get(str(self._stop_reason), "stop"))
                yield from self._usage_chunk()
            case "error":
                self.ended = True
                yield {"error": _error(_object(event, "error"))}

    def _count(self, holder: Object) -> None:
        usage = _object(holder, "usage")
        self._usage.update({name: value for name, value in usage.items() if value is not None})

    def _start(self, index: str, block: Object) -> Iterator[Chunk]:
        if block.get("type") != "tool_use":
            yield from self._content(block)
            return
        tool = _Tool(next(self._numbers), json.dumps(_object(block, "input")))
        self._tools[index] = tool
        yield self._answer.call(tool.number, _text(block, "id"), _text(block, "name"))

    def _delta(self, index: str, delta: Object) -> Iterator[Chunk]:
        if delta.get("type") != "input_json_delta":
            yield from self._content(delta)
            return
        tool, piece = self._tools.get(index), _text(delta, "partial_json")
        if tool and piece:
            tool.input = ""
            yield self._answer.arguments(tool.number, piece)

    def _content(self, piece: Object) -> Iterator[Chunk]:
        match piece.get("type"):
            case "text" | "text_delta" if text := _text(piece, "text"):
                yield self._answer.text(text)
            case "thinking" | "thinking_delta" if text := _text(piece, "thinking"):
                yield self._answer.reasoning(text)

    def _stop(self, index: str) -> Iterator[Chunk]:
        tool = self._tools.pop(index, None)
        if tool and tool.input:
            yield self._answer.arguments(tool.number, tool.input)

    def _usage_chunk(self) -> Iterator[Chunk]:
        if self._usage:
            cached = _number(self._usage, "cache_read_input_tokens")
            uncached = _number(self._usage, "input_tokens")
            written = _number(self._usage, "cache_creation_input_tokens")
            yield self._answer.usage(
                uncached + cached + written,
                _number(self._usage, "output_tokens"),
                cached=cached,
                cache_written=written,
                reasoning=_number(_object(self._usage, "output_tokens_details"), "thinking_tokens"),
            )


def _parse(event: Event) -> Object:
    """Return an event's data, or an error event if that is not a JSON object."""
    try:
        value = json.loads(event.data)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    message = "Anthropic sent an event that is not a JSON object."
    return {"type": "error", "error": {"type": "upstream_error", "message": message}}


def _error(error: Object) -> Chunk:
    kind = _text(error, "type") or "upstream_error"
    message = _text(error, "message") or "Anthropic gave no reason."
    return {"message": message, "type": kind, "param": None, "code": kind}


def _object(holder: Object, name: str) -> Object:
    value = holder.get(name)
    return value if isinstance(value, dict) else {}


def _text(holder: Object, name: str) -> str:
    value = holder.get(name)
    return value if isinstance(value, str) else ""


def _number(holder: Object, name: str) -> int:
    value = holder.get(name)
    return value if isinstance(value, int) else 0
