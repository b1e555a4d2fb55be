"""Translate a chat's answer into Anthropic's Messages: one message, or a stream of named events.

A message is a row of content blocks, each sent to its end before the next begins. A chat may
interleave its tool calls, so a block waits until those before it are complete.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nexus_gateway.wire import json_codec, sse
from nexus_gateway.wire.carried import load_id
from nexus_gateway.wire.chunks import (
    Chunk,
    ToolCallIndex,
    arguments_text,
    choices,
    extract_reasoning,
    extract_text,
    new_id,
)
from nexus_gateway.wire.usage import count

# The signature of thinking that no Anthropic backend has signed, and that none must receive.
UNSIGNED = "nexus-unsealed"
STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_STOPPED_AT = ("stop_reason", "matched_stop")  # of vLLM, of SGLang
_TEXT: Chunk = {"type": "text", "text": ""}
_THINKING: Chunk = {"type": "thinking", "thinking": "", "signature": ""}
# By a block's type: the type of its deltas, and the field of them that has the piece.
_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


def message(completion: Mapping[str, Any], *, thinking: bool, stops: Collection[str] = ()) -> Chunk:
    """Translate a chat completion.

    Args:
        completion: the backend's.
        thinking: whether the caller asked for that.
        stops: the caller's stop sequences.
    """
    choice = next(iter(choices(completion)), {})
    answer = choice.get("message") or {}
    called = bool(answer.get("tool_calls"))
    return {
        **_head(completion),
        "content": [*_blocks(answer, thinking)],
        **_stop(choice.get("finish_reason"), _stopped_at(choice, stops), called=called),
        "usage": usage(completion.get("usage")),
    }


def _stop(finish: object, sequence: str | None, *, called: bool) -> Chunk:
    """Translate a finish reason; some backends send `stop` although a tool is called."""
    reason = STOP_REASONS.get(str(finish), "end_turn")
    if reason == "end_turn" and called:
        reason = "tool_use"
    elif reason == "end_turn" and sequence is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": sequence}
    return {"stop_reason": reason, "stop_sequence": None}


def _stopped_at(choice: Mapping[str, Any], stops: Collection[str]) -> str | None:
    """Return the stop sequence that ended an answer, if its backend names it."""
    named = (choice.get(name) for name in _STOPPED_AT)
    return next((text for text in named if isinstance(text, str) and text in stops), None)


def _head(chunk: Mapping[str, Any]) -> Chunk:
    id = str(chunk.get("id") or new_id()).removeprefix("chatcmpl-")
    return {
        "id": f"msg_{id}",
        "type": "message",
        "role": "assistant",
        "model": chunk.get("model") or "",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage(None),
    }


def _blocks(answer: Mapping[str, Any], thinking: bool) -> Iterator[Chunk]:
    reasoning = extract_reasoning(answer)
    if reasoning and thinking:
        yield {"type": "thinking", "thinking": reasoning, "signature": UNSIGNED}
    text = extract_text(answer) + (answer.get("refusal") or "")
    if text:
        yield {"type": "text", "text": text}
    for call in answer.get("tool_calls") or []:
        function = call["function"]
        input = _input(arguments_text(function))
        yield {"type": "tool_use", "id": _call_id(call), "name": function["name"], "input": input}


def _call_id(call: Mapping[str, Any]) -> str:
    """Return a call's id; some backends give none, without which no result can be sent.

    It carries what else the call has: the next turn needs it, and all clients return the id.
    """
    return load_id(call.get("id") or f"toolu_{new_id()}", call.get("extra_content"))


def _object_or_none(text: str) -> Chunk | None:
    try:
        value = json_codec.loads(text)
    except json_codec.JSONError:
        return None
    return value if isinstance(value, dict) else None


def _input(arguments: str) -> Chunk:
    """Parse a call's arguments; if they are not an object, the caller gets them as a text."""
    value = _object_or_none(arguments or "{}")
    return {"arguments": arguments} if value is None else value


def usage(chat: object) -> Chunk:
    """Translate a chat's usage; Anthropic's input does not include the tokens of the cache."""
    chat = chat if isinstance(chat, dict) else {}
    details = chat.get("prompt_tokens_details")
    details = details if isinstance(details, dict) else {}
    cached = count(details.get("cached_tokens")) or 0
    written = count(details.get("cache_write_tokens")) or 0
    return {
        "input_tokens": max((count(chat.get("prompt_tokens")) or 0) - cached - written, 0),
        "output_tokens": count(chat.get("completion_tokens")) or 0,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
    }


def event(type: str, **fields: Any) -> bytes:
    """Make a named event."""
    return sse.json_event({"type": type, **fields}, type)


@dataclass(slots=True, eq=False)
class _Block:
    """A content block while it is streamed; `start` is what its first event contains."""

    start: Chunk
    _waiting: list[str] = field(default_factory=list)
    _sent: list[str] = field(default_factory=list)
    _size: int = 0
    _next_check: int = 0
    _complete: bool = False

    @property
    def complete(self) -> bool:
        """Whether nothing more can follow: the arguments of a call are a whole object."""
        if self.start["type"] != "tool_use":
            return True
        # Checked again only when twice as long: else the cost of many pieces would be quadratic.
        if not self._complete and self._size >= self._next_check:
            self._next_check = 2 * self._size
            self._complete = _object_or_none("".join(self._sent + self._waiting)) is not None
        return self._complete

    def add(self, piece: str) -> None:
        if piece:
            self._waiting.append(piece)
            self._size += len(piece)

    def flush(self, index: int) -> bytes:
        """Return the event for the pieces that were not sent yet."""
        if not self._waiting:
            return b""
        pieces, self._waiting = "".join(self._waiting), []
        if self.start["type"] == "tool_use":
            self._sent.append(pieces)
        kind, name = _DELTAS[self.start["type"]]
        return event("content_block_delta", index=index, delta={"type": kind, name: pieces})

    def signature(self, index: int) -> bytes:
        """Return the event that must precede the end of thinking."""
        if self.start["type"] != "thinking":
            return b""
        delta = {"type": "signature_delta", "signature": UNSIGNED}
        return event("content_block_delta", index=index, delta=delta)


@dataclass(eq=False)
class MessageEncoder:
    """Encodes a chat's chunks as events; `thinking` and `stops` are as in `message`."""

    thinking: bool
    stops: Collection[str] = ()
    _begun: bool = False
    _index: int = 0
    _open: bool = False
    _blocks: list[_Block] = field(default_factory=list)  # the first is being sent, the others wait
    _calls: dict[int, _Block] = field(default_factory=dict)
    _numbers: ToolCallIndex = field(default_factory=ToolCallIndex)
    _finish: str = "stop"
    _stopped_at: str | None = None
    _usage: Mapping[str, Any] | None = None

    def encode(self, chunk: Chunk) -> bytes:
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        if not self._begun and not choices(chunk):
            return b""  # Azure's first chunk has no id yet
        out = [] if self._begun else [event("message_start", message=_head(chunk))]
        self._begun = True
        for choice in choices(chunk)[:1]:
            self._finish = choice.get("finish_reason") or self._finish
            if self.stops:
                self._stopped_at = self._stopped_at or _stopped_at(choice, self.stops)
            self._take(choice.get("delta") or {})
        return b"".join([*out, *self._flush()])

    def finish(self) -> bytes:
        delta = _stop(self._finish, self._stopped_at, called=bool(self._calls))
        last = event("message_delta", delta=delta, usage=usage(self._usage))
        return b"".join([*self._flush(ended=True), last, event("message_stop")])

    def _take(self, delta: Mapping[str, Any]) -> None:
        """Add a delta to the blocks."""
        if self.thinking and (reasoning := extract_reasoning(delta)):
            self._add(_THINKING, reasoning)
        for text in (extract_text(delta), delta.get("refusal")):
            if isinstance(text, str) and text:
                self._add(_TEXT, text)
        for call in delta.get("tool_calls") or []:
            function = call.get("function") or {}
            number = self._numbers.number(call)
            block = self._calls.get(number)
            if block is None:
                block = _Block({"type": "tool_use", "id": _call_id(call), "name": "", "input": {}})
                self._calls[number] = block
                self._blocks.append(block)
            block.start["name"] = block.start["name"] or function.get("name") or ""
            block.add(arguments_text(function))

    def _add(self, start: Chunk, piece: str) -> None:
        """Add to the last block, or begin another one if it is of another kind."""
        if not self._blocks or self._blocks[-1].start is not start:
            self._blocks.append(_Block(start))
        self._blocks[-1].add(piece)

    def _flush(self, *, ended: bool = False) -> Iterator[bytes]:
        """Yield the events of the first block, and of those behind it as each is complete."""
        while self._blocks:
            block = self._blocks[0]
            if block.start.get("name") == "" and not ended:
                return  # a call's first event contains its name, which may come late
            if not self._open:
                self._open = True
                yield event("content_block_start", index=self._index, content_block=block.start)
            yield block.flush(self._index)
            if not ended and (len(self._blocks) == 1 or not block.complete):
                return
            yield block.signature(self._index)
            yield event("content_block_stop", index=self._index)
            self._blocks.pop(0)
            self._open = False
            self._index += 1
