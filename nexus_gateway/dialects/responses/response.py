"""Translate a chat's answer into a response: one object, or a stream of events.

Both are the same: a full completion is taken as a single chunk, and the last event contains the
response. The items of a stream are in the order in which they began. A text ends when another
item begins; function calls, whose arguments may be interleaved, stay open to the end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nexus_gateway.wire import sse
from nexus_gateway.wire.carried import load_id, load_reasoning
from nexus_gateway.wire.chunks import (
    Chunk,
    ToolCallIndex,
    arguments_text,
    choices,
    extract_reasoning,
    extract_text,
    joined_name,
    new_id,
)
from nexus_gateway.wire.usage import count

Event = dict[str, Any]
# Emits an event: its type and its fields.
Emit = Callable[..., None]

# Marks, in its id, the reasoning that this gateway made: not encrypted or stored by a backend.
OPEN_REASONING = "rs_open"
_ID_PREFIXES = {"message": "msg", "reasoning": OPEN_REASONING, "function_call": "fc"}
_NO_CHOICE_YET = "none yet"
_ENCRYPTED = "reasoning.encrypted_content"
# Finish reasons of an incomplete answer, and their names here.
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
# The types of text parts, and the field that contains the text.
_TEXT_FIELDS = {"output_text": "text", "refusal": "refusal", "reasoning_text": "text"}
# What a response repeats of its request, and OpenAI's defaults.
_ECHOED: Event = {
    **{"metadata": {}, "parallel_tool_calls": True, "tool_choice": "auto", "tools": []},
    **dict.fromkeys(("instructions", "max_output_tokens", "prompt_cache_key", "user")),
    **dict.fromkeys(("safety_identifier", "temperature", "top_logprobs", "top_p")),
}


def to_response(request: Mapping[str, Any], completion: Chunk) -> Event:
    """Translate a chat completion; `request` are the fields of the Responses request."""
    encoder = ResponseEncoder(request)
    encoder.take({**completion, "choices": [_as_delta(choice) for choice in choices(completion)]})
    return encoder.end()


def _as_delta(choice: Mapping[str, Any]) -> Event:
    message = choice.get("message") or {}
    calls = message.get("tool_calls") or []
    indexed = [{**call, "index": index} for index, call in enumerate(calls)]
    return {**choice, "delta": {**message, "tool_calls": indexed}}


class ResponseEncoder:
    """Encodes a chat's chunks as events; `request` are the fields of the Responses request."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._echo = _echo(request)
        self._carries = _ENCRYPTED in (request.get("include") or ())
        self._events: list[Event] = []
        self._sequence_number = 0
        self._head: Event = {}
        self._key = str(request.get("id") or "")
        self._items: list[_Item] = []
        self._text: _TextItem | None = None
        self._calls: dict[int, _CallItem] = {}
        self._numbers = ToolCallIndex()
        self._choice: object = _NO_CHOICE_YET
        self._finish: str | None = None
        self._usage: Mapping[str, Any] | None = None

    def encode(self, chunk: Chunk) -> bytes:
        self.take(chunk)
        return self._take_events()

    def finish(self) -> bytes:
        self.end()
        return self._take_events()

    def _take_events(self) -> bytes:
        events, self._events = self._events, []
        return b"".join([sse.json_event(event, event["type"]) for event in events])

    def take(self, chunk: Chunk) -> None:
        """Add a chunk. One without choices begins nothing: it may have no id yet."""
        self._usage = chunk["usage"] if isinstance(chunk.get("usage"), dict) else self._usage
        for choice in choices(chunk):
            # One choice was requested, whatever index the backend gives it.
            self._choice = choice.get("index") if self._choice == _NO_CHOICE_YET else self._choice
            if choice.get("index") != self._choice:
                continue
            self._begin(chunk)
            self._finish = choice.get("finish_reason") or self._finish
            self._add_delta(choice.get("delta") or {}, choice.get("logprobs") or {})

    def end(self) -> Event:
        """Close all items; return the response."""
        self._begin({})
        reason = _INCOMPLETE.get(self._finish or "")
        for item in self._items:
            if item.final is None:
                # Backends make one item after the other: the last one was cut off.
                cut = reason and item is self._items[-1]
                item.close("incomplete" if cut else "completed")
        status = "incomplete" if reason else "completed"
        response = self._response(status) | {
            "incomplete_details": {"reason": reason} if reason else None,
            "output": [item.final for item in self._items],
            "usage": to_response_usage(self._usage),
        }
        self._emit(f"response.{status}", response=response)
        return response

    def _emit(self, kind: str, **fields: Any) -> None:
        self._events.append({"type": kind, "sequence_number": self._sequence_number, **fields})
        self._sequence_number += 1

    def _begin(self, chunk: Chunk) -> None:
        if self._head:
            return
        key = self._key or str(chunk.get("id") or new_id())
        self._key = key.removeprefix("chatcmpl-")
        self._head = {
            "id": f"resp_{self._key}",
            "object": "response",
            "created_at": chunk.get("created") or 0,
            "model": chunk.get("model") or "",
        }
        for kind in ("created", "in_progress"):
            self._emit(f"response.{kind}", response=self._response("in_progress"))

    def _response(self, status: str) -> Event:
        blank: Event = {"incomplete_details": None, "output": [], "usage": None}
        return {**self._head, "status": status, **blank, **self._echo}

    def _add_delta(self, delta: Mapping[str, Any], logprobs: Mapping[str, Any]) -> None:
        texts = (
            ("reasoning", "reasoning_text", extract_reasoning(delta), ()),
            ("message", "output_text", extract_text(delta), logprobs.get("content") or ()),
            ("message", "refusal", delta.get("refusal"), ()),
        )
        for kind, part, text, known in texts:
            if text and isinstance(text, str):
                self._add_text(kind, part, text, known)
        for call in delta.get("tool_calls") or []:
            self._add_call(call)

    def _add_text(self, kind: str, part: str, text: str, logprobs: Sequence[Any]) -> None:
        if self._text is None or self._text.kind != kind:
            self._close_text()
            self._text = _TextItem(*self._next_place(kind), self._carries)
            self._open(self._text)
        self._text.add(part, text, logprobs)

    def _add_call(self, call: Mapping[str, Any]) -> None:
        function = call.get("function") or {}
        number = self._numbers.number(call)
        item = self._calls.get(number)
        if item is not None:
            item.name = joined_name(item.name, function.get("name"))
        else:
            self._close_text()
            place = self._next_place("function_call")
            # Some backends give calls no id, without which a caller cannot send the output.
            call_id = load_id(call.get("id") or f"call_{new_id()}", call.get("extra_content"))
            item = _CallItem(*place, call_id, joined_name("", function.get("name")))
            self._calls[number] = item
            self._open(item)
        if arguments := arguments_text(function):
            item.add(arguments)

    def _next_place(self, kind: str) -> tuple[str, str, int, Emit]:
        """Return the kind, the id and the index of the next item, and what emits its events."""
        index = len(self._items)
        return kind, f"{_ID_PREFIXES[kind]}_{self._key}_{index}", index, self._emit

    def _open(self, item: _Item) -> None:
        item.open()
        self._items.append(item)

    def _close_text(self) -> None:
        if self._text is not None:
            self._text.close("completed")
            self._text = None


@dataclass(eq=False)
class _Item(ABC):
    """One item of the output; `final` is what it was when it was closed."""

    kind: str
    id: str
    _index: int
    _emit: Emit
    final: Event | None = field(default=None, init=False)

    def open(self) -> None:
        item = self._as_event("in_progress")
        self._emit("response.output_item.added", output_index=self._index, item=item)

    def close(self, status: str) -> None:
        """End the item: `completed` or `incomplete`."""
        self._close_content()
        self.final = self._as_event(status)
        self._emit("response.output_item.done", output_index=self._index, item=self.final)

    def _emit_content(self, kind: str, **fields: Any) -> None:
        self._emit(kind, item_id=self.id, output_index=self._index, **fields)

    @abstractmethod
    def _as_event(self, status: str) -> Event:
        """Return the item as it is now."""

    @abstractmethod
    def _close_content(self) -> None:
        """Emit the events that end its content."""


@dataclass(eq=False)
class _TextItem(_Item):
    """A `message` or `reasoning`: parts, of which the last one grows."""

    _carries: bool  # whether reasoning is wanted in `encrypted_content`, too
    _parts: list[Event] = field(default_factory=list)
    _part_type: str = ""
    _pieces: list[str] = field(default_factory=list)
    _logprobs: list[Any] = field(default_factory=list)

    def add(self, part_type: str, text: str, logprobs: Sequence[Any]) -> None:
        if part_type != self._part_type:
            self._close_content()
            self._part_type, self._pieces, self._logprobs = part_type, [], []
            self._emit_part("added")
        self._pieces.append(text)
        self._logprobs += logprobs
        more = {"logprobs": list(logprobs)} if part_type == "output_text" else {}
        self._emit_text("delta", delta=text, **more)

    def _close_content(self) -> None:
        if self._part_type:
            part, field = self._part(), _TEXT_FIELDS[self._part_type]
            more = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
            self._emit_text("done", **{field: part[field]}, **more)
            self._emit_part("done")
            self._parts.append(part)
            self._part_type = ""

    def _part(self) -> Event:
        text = "".join(self._pieces)
        part: Event = {"type": self._part_type, _TEXT_FIELDS[self._part_type]: text}
        if self._part_type == "output_text":
            part |= {"annotations": [], "logprobs": self._logprobs}
        return part

    def _emit_part(self, what: str) -> None:
        kind = f"response.content_part.{what}"
        self._emit_content(kind, content_index=len(self._parts), part=self._part())

    def _emit_text(self, what: str, **fields: Any) -> None:
        kind = f"response.{self._part_type}.{what}"
        self._emit_content(kind, content_index=len(self._parts), **fields)

    def _as_event(self, status: str) -> Event:
        fields: Event = {"role": "assistant"} if self.kind == "message" else {"summary": []}
        if self.kind == "reasoning" and self._carries and self._parts:
            # All that some clients send back of it.
            text = "".join(part["text"] for part in self._parts)
            fields["encrypted_content"] = load_reasoning(text)
        head = {"type": self.kind, "id": self.id, **fields}
        return {**head, "status": status, "content": list(self._parts)}


@dataclass(eq=False)
class _CallItem(_Item):
    """A `function_call`; the caller will send the function's output by its `call_id`."""

    call_id: str
    name: str
    _arguments: list[str] = field(default_factory=list)

    def add(self, arguments: str) -> None:
        self._arguments.append(arguments)
        self._emit_content("response.function_call_arguments.delta", delta=arguments)

    def _close_content(self) -> None:
        done = "response.function_call_arguments.done"
        self._emit_content(done, name=self.name, arguments="".join(self._arguments))

    def _as_event(self, status: str) -> Event:
        head = {"type": self.kind, "id": self.id, "status": status, "call_id": self.call_id}
        return {**head, "name": self.name, "arguments": "".join(self._arguments)}


def _echo(request: Mapping[str, Any]) -> Event:
    """Return the fields of a response that do not depend on the answer."""
    return {
        **_ECHOED,
        **{name: request[name] for name in _ECHOED if request.get(name) is not None},
        "background": False,
        "error": None,
        "previous_response_id": request.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None, **(request.get("reasoning") or {})},
        "store": request.get("store") is True,
        "text": {"format": {"type": "text"}, **(request.get("text") or {})},
        "truncation": "disabled",
    }


def to_response_usage(usage: Mapping[str, Any] | None) -> Event | None:
    """Translate a chat's usage; None if there is none."""
    if not usage:
        return None
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    prompt_details = usage.get("prompt_tokens_details")
    details = usage.get("completion_tokens_details")
    return {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": _count(prompt_details, "cached_tokens"),
            "cache_write_tokens": _count(prompt_details, "cache_write_tokens"),
        },
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": _count(details, "reasoning_tokens")},
        "total_tokens": _count(usage, "total_tokens") or prompt + completion,
    }


def to_chat_usage(usage: object) -> dict[str, Any]:
    """Translate a response's usage; empty if there is none."""
    if not isinstance(usage, dict):
        return {}
    return {
        "prompt_tokens": _count(usage, "input_tokens"),
        "completion_tokens": _count(usage, "output_tokens"),
        "total_tokens": _count(usage, "total_tokens"),
        "prompt_tokens_details": usage.get("input_tokens_details") or {},
        "completion_tokens_details": usage.get("output_tokens_details") or {},
    }


def _count(counts: object, name: str) -> int:
    """Return a number of tokens, 0 if it is absent."""
    return count(counts.get(name) if isinstance(counts, dict) else None) or 0
