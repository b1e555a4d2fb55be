"""Translate a chat's answer into a response: one object, or a stream of events.

Both are the same: a full completion is taken as a single chunk, and the last event contains the
response. The items of a stream are in the order in which they began. A text ends when another
item begins; calls, whose arguments may be interleaved, stay open to the end. A call begins once its
name is complete, which decides what kind of item it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nexus_gateway.dialects.responses.tools import (
    CUSTOM_CALL,
    FUNCTION_CALL,
    SEARCH_CALL,
    SHELL_CALL,
    InputReader,
    Tool,
    as_object,
)
from nexus_gateway.wire import sse
from nexus_gateway.wire.carried import load_call, load_reasoning
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
_ID_PREFIXES = {
    **{"message": "msg", "reasoning": OPEN_REASONING, FUNCTION_CALL: "fc", CUSTOM_CALL: "ctc"},
    **{SEARCH_CALL: "tsc", SHELL_CALL: "lsh"},
}
_NO_TOOLS: Mapping[str, Tool] = {}
_NO_CHOICE_YET = "none yet"
_ENCRYPTED = "reasoning.encrypted_content"
# Finish reasons of an incomplete answer, and their names here.
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
# For each type of text part: its own field with the text, the events of the part and of its text,
# and what its index is called. Reasoning is sent as its summary, which all clients show.
_PARTS = {
    "output_text": ("text", "content_part", "output_text", "content_index"),
    "refusal": ("refusal", "content_part", "refusal", "content_index"),
    "summary_text": ("text", "reasoning_summary_part", "reasoning_summary_text", "summary_index"),
}
# What a response repeats of its request, and OpenAI's defaults.
_ECHOED: Event = {
    **{"metadata": {}, "parallel_tool_calls": True, "tool_choice": "auto", "tools": []},
    **dict.fromkeys(("instructions", "max_output_tokens", "prompt_cache_key", "user")),
    **dict.fromkeys(("safety_identifier", "temperature", "top_logprobs", "top_p")),
}


def to_response(
    request: Mapping[str, Any], completion: Chunk, tools: Mapping[str, Tool] = _NO_TOOLS
) -> Event:
    """Translate a chat completion; the other arguments are those of `ResponseEncoder`."""
    encoder = ResponseEncoder(request, tools)
    encoder.take({**completion, "choices": [_as_delta(choice) for choice in choices(completion)]})
    return encoder.end()


def _as_delta(choice: Mapping[str, Any]) -> Event:
    message = choice.get("message") or {}
    calls = message.get("tool_calls") or []
    indexed = [{**call, "index": index} for index, call in enumerate(calls)]
    return {**choice, "delta": {**message, "tool_calls": indexed}}


class ResponseEncoder:
    """Encodes a chat's chunks as events.

    Args:
        request: the fields of the Responses request.
        tools: the request's tools, by their names in the chat.
    """

    def __init__(self, request: Mapping[str, Any], tools: Mapping[str, Tool] = _NO_TOOLS) -> None:
        self._tools = tools
        self._echo = _echo(request)
        self._carries = _ENCRYPTED in (request.get("include") or ())
        self._events: list[Event] = []
        self._sequence_number = 0
        self._head: Event = {}
        self._key = str(request.get("id") or "")
        self._items: list[_Item] = []
        self._text: _TextItem | None = None
        self._calls: dict[int, _Call] = {}
        self._waiting: _Call | None = None  # the one that has no item yet
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
        data = b"".join([sse.json_event(event, event["type"]) for event in self._events])
        self._events = []
        return data

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
        if self._waiting is not None:
            self._open_call(self._waiting)
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

    def progress(self) -> tuple[int, Event | None]:
        """Return the next event's number, and the response as it began, None if it has not."""
        number = self._sequence_number - len(self._events)  # if one was no answer, none was sent
        return number, self._response("in_progress") if number else None

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
            ("reasoning", "summary_text", extract_reasoning(delta), ()),
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
            self._end_item()
            self._text = _TextItem(*self._next_place(kind), self._carries)
            self._open(self._text)
        self._text.add(part, text, logprobs)

    def _add_call(self, call: Mapping[str, Any]) -> None:
        function = call.get("function") or {}
        number = self._numbers.number(call)
        begun = self._calls.get(number)
        if begun is None:
            self._end_item()
            # Some backends give calls no id, without which a caller cannot send the output.
            id = call.get("id") or f"call_{new_id()}"
            id, carried = load_call(id, call.get("extra_content"))
            if carried is not None:  # before the call, as OpenAI's reasoning is
                self._open_sealed(carried)
            self._calls[number] = self._waiting = begun = _Call(id)
        begun.name = joined_name(begun.name, function.get("name"))
        if arguments := arguments_text(function):
            (begun.item or self._open_call(begun)).add(arguments)

    def _open_call(self, call: _Call) -> _CallItem:
        self._waiting = None
        tool = self._tools.get(call.name)
        kind = FUNCTION_CALL if tool is None else tool.call
        call.item = item = _CALL_ITEMS[kind](*self._next_place(kind), call, self._tools)
        self._open(item)
        return item

    def _open_sealed(self, carried: str) -> None:
        item = _Sealed(*self._next_place("reasoning"), carried)
        self._open(item)
        item.close("completed")

    def _next_place(self, kind: str) -> tuple[str, str, int, Emit]:
        """Return the kind, the id and the index of the next item, and what emits its events."""
        index = len(self._items)
        return kind, f"{_ID_PREFIXES[kind]}_{self._key}_{index}", index, self._emit

    def _open(self, item: _Item) -> None:
        item.open()
        self._items.append(item)

    def _end_item(self) -> None:
        """Prepare for another item: nothing is added to the text, or to a waiting call's name."""
        if self._waiting is not None:
            self._open_call(self._waiting)
        if self._text is not None:
            self._text.close("completed")
            self._text = None


@dataclass(slots=True, eq=False)
class _Call:
    """A call of the chat; its item begins once its name is complete."""

    id: str
    name: str = ""
    item: _CallItem | None = None


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
            part, field = self._part(), _PARTS[self._part_type][0]
            more = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
            self._emit_text("done", **{field: part[field]}, **more)
            self._emit_part("done")
            self._parts.append(part)
            self._part_type = ""

    def _part(self) -> Event:
        text = "".join(self._pieces)
        part: Event = {"type": self._part_type, _PARTS[self._part_type][0]: text}
        if self._part_type == "output_text":
            part |= {"annotations": [], "logprobs": self._logprobs}
        return part

    def _emit_part(self, what: str) -> None:
        _, kind, _, index = _PARTS[self._part_type]
        place = {index: len(self._parts)}
        self._emit_content(f"response.{kind}.{what}", **place, part=self._part())

    def _emit_text(self, what: str, **fields: Any) -> None:
        _, _, kind, index = _PARTS[self._part_type]
        fields[index] = len(self._parts)
        self._emit_content(f"response.{kind}.{what}", **fields)

    def _as_event(self, status: str) -> Event:
        head: Event = {"type": self.kind, "id": self.id, "status": status}
        if self.kind == "message":
            return {**head, "role": "assistant", "content": list(self._parts)}
        texts = [part["text"] for part in self._parts]
        if self._carries and texts:  # all that some clients send back of it
            head["encrypted_content"] = load_reasoning("".join(texts))
        content = [{"type": "reasoning_text", "text": text} for text in texts]
        return {**head, "summary": list(self._parts), "content": content}


@dataclass(eq=False)
class _Sealed(_Item):
    """A `reasoning` without text, for what a call's item has no field for."""

    _carried: str

    def _as_event(self, status: str) -> Event:
        head: Event = {"type": self.kind, "id": self.id, "status": status, "summary": []}
        return {**head, "encrypted_content": self._carried}

    def _close_content(self) -> None:
        """It has none that is streamed."""


@dataclass(eq=False)
class _CallItem(_Item):
    """A call; the caller will send the tool's output by its id."""

    _call: _Call
    _tools: Mapping[str, Tool]
    _arguments: list[str] = field(default_factory=list)

    def add(self, arguments: str) -> None:
        self._arguments.append(arguments)

    def _close_content(self) -> None:
        """Nothing by default: its arguments are in the item alone."""

    @property
    def _joined(self) -> str:
        return "".join(self._arguments)

    @property
    def _tool(self) -> Tool:
        return self._tools.get(self._call.name) or Tool(self.kind, self._call.name)

    def _head(self, status: str) -> Event:
        return {"type": self.kind, "id": self.id, "status": status, "call_id": self._call.id}

    def _named_head(self, status: str) -> Event:
        tool = self._tool
        namespace = {"namespace": tool.namespace} if tool.namespace else {}
        return {**self._head(status), "name": tool.name, **namespace}


@dataclass(eq=False)
class _FunctionCall(_CallItem):
    def add(self, arguments: str) -> None:
        self._arguments.append(arguments)
        self._emit_content("response.function_call_arguments.delta", delta=arguments)

    def _close_content(self) -> None:
        done = "response.function_call_arguments.done"
        self._emit_content(done, name=self._tool.name, arguments=self._joined)

    def _as_event(self, status: str) -> Event:
        return {**self._named_head(status), "arguments": self._joined}


@dataclass(eq=False)
class _CustomCall(_CallItem):
    _reader: InputReader = field(default_factory=InputReader)
    _input: str = ""

    def add(self, arguments: str) -> None:
        if text := self._reader.feed(arguments):
            self._emit_content("response.custom_tool_call_input.delta", delta=text)

    def _close_content(self) -> None:
        rest, self._input = self._reader.finish()
        if rest:
            self._emit_content("response.custom_tool_call_input.delta", delta=rest)
        self._emit_content("response.custom_tool_call_input.done", input=self._input)

    def _as_event(self, status: str) -> Event:
        return {**self._named_head(status), "input": self._input}


@dataclass(eq=False)
class _SearchCall(_CallItem):
    def _as_event(self, status: str) -> Event:
        return {**self._head(status), "execution": "client", "arguments": as_object(self._joined)}


@dataclass(eq=False)
class _ShellCall(_CallItem):
    def _as_event(self, status: str) -> Event:
        action = {"command": [], "env": {}, **as_object(self._joined), "type": "exec"}
        return {**self._head(status), "action": action}


_CALL_ITEMS: Mapping[str, type[_CallItem]] = {
    FUNCTION_CALL: _FunctionCall,
    CUSTOM_CALL: _CustomCall,
    SEARCH_CALL: _SearchCall,
    SHELL_CALL: _ShellCall,
}


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
