"""A chat's answer in the words of Anthropic's Messages: whole, or as named events.

A message is a row of blocks, each told to its end before the next begins. A chat may interleave
its tool calls, so a block that is not at the head of the row waits until those before it are
complete.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nexus_gateway.wire import json_codec, sse
from nexus_gateway.wire.chunks import Chunk, ToolCallIndex, choices, extract_reasoning, extract_text

# The signature of thinking that no Anthropic backend has sealed, and that none must get.
UNSIGNED = "nexus-unsealed"
STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_TEXT: Chunk = {"type": "text", "text": ""}
_THINKING: Chunk = {"type": "thinking", "thinking": "", "signature": ""}


def message(completion: Mapping[str, Any], *, thinking: bool) -> Chunk:
    """Put a whole chat completion into a message.

    Args:
        completion: OpenAI's object.
        thinking: whether the caller asked for the model's thinking.
    """
    choice = next(iter(choices(completion)), {})
    said = choice.get("message") or {}
    called = bool(said.get("tool_calls"))
    return {
        **_head(completion),
        "content": [*_blocks(said, thinking)],
        "stop_reason": stop_reason(choice.get("finish_reason"), called=called),
        "usage": usage(completion.get("usage")),
    }


def stop_reason(finish: object, *, called: bool) -> str:
    """Return why a message ends; some backends say `stop` also where they call a tool."""
    reason = STOP_REASONS.get(str(finish), "end_turn")
    return "tool_use" if called and reason == "end_turn" else reason


def _head(chunk: Mapping[str, Any]) -> Chunk:
    id = str(chunk.get("id") or "nexus").removeprefix("chatcmpl-")
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


def _blocks(said: Mapping[str, Any], thinking: bool) -> Iterator[Chunk]:
    thought = extract_reasoning(said)
    if thought and thinking:
        yield {"type": "thinking", "thinking": thought, "signature": UNSIGNED}
    text = extract_text(said) + (said.get("refusal") or "")
    if text:
        yield {"type": "text", "text": text}
    for number, call in enumerate(said.get("tool_calls") or []):
        function = call["function"]
        id = call.get("id") or f"toolu_{number}"
        input = _input(function.get("arguments") or "")
        yield {"type": "tool_use", "id": id, "name": function["name"], "input": input}


def _input(arguments: str) -> Chunk:
    """Read a call's arguments; what is no object is kept as a text, for the caller to judge."""
    try:
        read = json_codec.loads(arguments or "{}")
    except json_codec.JSONError:
        read = None
    return read if isinstance(read, dict) else {"arguments": arguments}


def usage(used: Mapping[str, Any] | None) -> Chunk:
    """Put a chat's usage into Anthropic's: there the input leaves out what a cache had or got."""
    used = used or {}
    details = used.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") or 0
    written = details.get("cache_write_tokens") or 0
    return {
        "input_tokens": max((used.get("prompt_tokens") or 0) - cached - written, 0),
        "output_tokens": used.get("completion_tokens") or 0,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
    }


def event(type: str, **fields: Any) -> bytes:
    """Make a named event."""
    return sse.json_event({"type": type, **fields}, type)


class _Block:
    """A block on its way: what it begins with, and how its pieces are told."""

    def __init__(self, start: Chunk, kind: str, field: str) -> None:
        self.start = start
        self._kind = kind
        self._field = field
        self._waiting: list[str] = []
        self._told: list[str] = []
        self._size = 0
        self._next_look = 0
        self._complete = False

    @property
    def complete(self) -> bool:
        """Whether nothing more can come, by all one can tell: a call's arguments are whole."""
        if self.start["type"] != "tool_use":
            return True
        # Looked into again only when twice as long: else pieces without end would cost the square.
        if not self._complete and self._size >= self._next_look:
            self._next_look = 2 * self._size
            try:
                said = json_codec.loads("".join(self._told + self._waiting))
            except json_codec.JSONError:
                said = None
            self._complete = isinstance(said, dict)
        return self._complete

    def add(self, piece: str) -> None:
        if piece:
            self._waiting.append(piece)
            self._size += len(piece)

    def tell(self, index: int) -> bytes:
        """Return the event for what has come and was not told."""
        if not self._waiting:
            return b""
        pieces, self._waiting = "".join(self._waiting), []
        if self.start["type"] == "tool_use":
            self._told.append(pieces)
        delta = {"type": self._kind, self._field: pieces}
        return event("content_block_delta", index=index, delta=delta)

    def seal(self, index: int) -> bytes:
        """Return the event that must come before the block's end, if any."""
        if self.start["type"] != "thinking":
            return b""
        delta = {"type": "signature_delta", "signature": UNSIGNED}
        return event("content_block_delta", index=index, delta=delta)


class MessageSpeaker:
    """Tells a chat's chunks as the events of a message.

    Args:
        thinking: whether the caller asked for the model's thinking.
    """

    def __init__(self, thinking: bool) -> None:
        self._thinking = thinking
        self._begun = False
        self._index = 0
        self._open = False
        self._row: list[_Block] = []
        self._calls: dict[int, _Block] = {}
        self._numbers = ToolCallIndex()
        self._finish = "stop"
        self._usage: Mapping[str, Any] | None = None

    def encode(self, chunk: Chunk) -> bytes:
        """Return the events that tell a chunk."""
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        if not self._begun and not choices(chunk):
            return b""  # Azure's first chunk has no id yet
        out = [] if self._begun else [event("message_start", message=_head(chunk))]
        self._begun = True
        for choice in choices(chunk)[:1]:
            self._finish = choice.get("finish_reason") or self._finish
            self._take(choice.get("delta") or {})
        return b"".join([*out, *self._tell()])

    def _take(self, delta: Mapping[str, Any]) -> None:
        """Put what a delta says into the row of blocks."""
        if self._thinking and (thought := extract_reasoning(delta)):
            self._add(_THINKING, "thinking_delta", "thinking", thought)
        for said in (extract_text(delta), delta.get("refusal")):
            if isinstance(said, str) and said:
                self._add(_TEXT, "text_delta", "text", said)
        for call in delta.get("tool_calls") or []:
            function = call.get("function") or {}
            number = self._numbers.number(call)
            if number not in self._calls:
                start = {"type": "tool_use", "id": call.get("id") or f"toolu_{number}"}
                start |= {"name": function.get("name") or "", "input": {}}
                self._calls[number] = _Block(start, "input_json_delta", "partial_json")
                self._row.append(self._calls[number])
            block = self._calls[number]
            block.start["name"] = block.start["name"] or function.get("name") or ""
            block.add(function.get("arguments") or "")

    def _add(self, start: Chunk, kind: str, field: str, piece: str) -> None:
        """Add to the last block, or begin another where it is of another kind."""
        if not self._row or self._row[-1].start is not start:
            self._row.append(_Block(start, kind, field))
        self._row[-1].add(piece)

    def _tell(self, *, ended: bool = False) -> Iterator[bytes]:
        """Give the events of the block at the head, and of those behind it as it completes."""
        while self._row:
            head = self._row[0]
            if head.start.get("name") == "" and not ended:
                return  # a call's beginning has its name, and that may come late
            if not self._open:
                self._open = True
                yield event("content_block_start", index=self._index, content_block=head.start)
            yield head.tell(self._index)
            if not ended and (len(self._row) == 1 or not head.complete):
                return
            yield head.seal(self._index)
            yield event("content_block_stop", index=self._index)
            self._row.pop(0)
            self._open = False
            self._index += 1

    def finish(self) -> bytes:
        """Return the events that end the message."""
        delta = {
            "stop_reason": stop_reason(self._finish, called=bool(self._calls)),
            "stop_sequence": None,
        }
        last = event("message_delta", delta=delta, usage=usage(self._usage))
        return b"".join([*self._tell(ended=True), last, event("message_stop")])
