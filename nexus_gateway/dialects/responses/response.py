"""A chat's answer, as a response: whole, or told event by event.

Both are one: a whole completion is told as if it had come in one chunk, and what the last event
holds is the response. In a stream the items stand in the order in which they began. A text ends
where another item begins; function calls, whose arguments may come by turns, all stay open to
the end.

The items of a response's output, and the events that tell how each of them grows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nexus_gateway.wire import sse
from nexus_gateway.wire.chunks import Chunk, ToolCallIndex, choices, extract_reasoning, extract_text

Event = dict[str, Any]
# Takes the type of an event and its fields.
Tell = Callable[..., None]

# The kinds of text, and the field of a part that holds it.
_FIELDS = {"output_text": "text", "refusal": "refusal", "reasoning_text": "text"}


class Item(ABC):
    """One item, from the event that adds it to the one that ends it.

    Args:
        kind: its `type`.
        id: its id.
        index: its place in the output.
        tell: told each event.

    Attributes:
        whole: the item as it is known to have ended, None as long as it is open.
    """

    def __init__(self, kind: str, id: str, index: int, tell: Tell) -> None:
        self.kind = kind
        self.whole: Event | None = None
        self._head: Event = {"type": kind, "id": id}
        self._output_index = index
        self._tell_anything = tell

    def open(self) -> None:
        """Tell that it has begun."""
        item = self._shape("in_progress")
        added = "response.output_item.added"
        self._tell_anything(added, output_index=self._output_index, item=item)

    def close(self, status: str) -> None:
        """Tell that it has ended: `completed` or `incomplete`."""
        self._end()
        self.whole = self._shape(status)
        done = "response.output_item.done"
        self._tell_anything(done, output_index=self._output_index, item=self.whole)

    def _tell(self, kind: str, **fields: Any) -> None:
        place = {"item_id": self._head["id"], "output_index": self._output_index}
        self._tell_anything(kind, **place, **fields)

    @abstractmethod
    def _shape(self, status: str) -> Event:
        """Return the item as far as it has come."""

    @abstractmethod
    def _end(self) -> None:
        """Tell that what is in it has ended."""


class TextItem(Item):
    """A `message` or `reasoning`: parts, of which the last one grows."""

    def __init__(self, kind: str, id: str, index: int, tell: Tell) -> None:
        super().__init__(kind, id, index, tell)
        self._parts: list[Event] = []
        self._growing = ""
        self._pieces: list[str] = []
        self._logprobs: list[Any] = []

    def add(self, growing: str, text: str, logprobs: Sequence[Any]) -> None:
        """Take a piece of text.

        Args:
            growing: its kind: `output_text`, `refusal` or `reasoning_text`.
            text: the piece.
            logprobs: of its tokens; they are kept for `output_text` alone.
        """
        if growing != self._growing:
            self._end()
            self._begin(growing)
        self._pieces.append(text)
        self._logprobs += logprobs
        more = {"logprobs": list(logprobs)} if growing == "output_text" else {}
        self._tell_text("delta", delta=text, **more)

    def _begin(self, growing: str) -> None:
        self._growing, self._pieces, self._logprobs = growing, [], []
        self._tell_part("added")

    def _end(self) -> None:
        if not self._growing:
            return
        field = _FIELDS[self._growing]
        part = self._part()
        more = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
        self._tell_text("done", **{field: part[field]}, **more)
        self._tell_part("done")
        self._parts.append(part)
        self._growing = ""

    def _part(self) -> Event:
        part: Event = {"type": self._growing, _FIELDS[self._growing]: "".join(self._pieces)}
        if self._growing == "output_text":
            part |= {"annotations": [], "logprobs": self._logprobs}
        return part

    def _tell_part(self, what: str) -> None:
        kind = f"response.content_part.{what}"
        self._tell(kind, content_index=len(self._parts), part=self._part())

    def _tell_text(self, what: str, **fields: Any) -> None:
        kind = f"response.{self._growing}.{what}"
        self._tell(kind, content_index=len(self._parts), **fields)

    def _shape(self, status: str) -> Event:
        own: Event = {"role": "assistant"} if self.kind == "message" else {"summary": []}
        return {**self._head, **own, "status": status, "content": list(self._parts)}


class CallItem(Item):
    """A `function_call`.

    Args:
        id: its id.
        index: its place in the output.
        tell: told each event.
        call_id: the id by which the caller will send the function's output.
    """

    def __init__(self, id: str, index: int, tell: Tell, call_id: str) -> None:
        super().__init__("function_call", id, index, tell)
        self._call_id = call_id
        self._name: list[str] = []
        self._arguments: list[str] = []

    def name(self, text: str) -> None:
        """Take a piece of the function's name, mostly all of it."""
        self._name.append(text)

    def arguments(self, text: str) -> None:
        """Take a piece of the arguments."""
        self._arguments.append(text)
        self._tell("response.function_call_arguments.delta", delta=text)

    def _end(self) -> None:
        item = self._shape("")
        done = "response.function_call_arguments.done"
        self._tell(done, name=item["name"], arguments=item["arguments"])

    def _shape(self, status: str) -> Event:
        name, arguments = "".join(self._name), "".join(self._arguments)
        called = {"call_id": self._call_id, "name": name, "arguments": arguments}
        return {**self._head, "status": status, **called}


# Reasoning of ours lies open; by its ids it is told from what a backend has sealed or stored.
OPEN_REASONING = "rs_open"
_PREFIXES = {"message": "msg", "reasoning": OPEN_REASONING, "function_call": "fc"}
_NONE_YET = "none yet"
# Finish reasons that mean that something is missing, and the name they have here.
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def whole(asked: Mapping[str, Any], completion: Chunk) -> Event:
    """Return a chat completion as a response.

    Args:
        asked: the request's fields.
        completion: the completion.
    """
    chunk = {**completion, "choices": [_as_delta(choice) for choice in choices(completion)]}
    telling = ResponseBuilder(asked)
    telling.take(chunk)
    return telling.end()


def _as_delta(choice: Mapping[str, Any]) -> Event:
    message = choice.get("message") or {}
    calls = message.get("tool_calls") or []
    indexed = [{**call, "index": index} for index, call in enumerate(calls)]
    return {**choice, "delta": {**message, "tool_calls": indexed}}


class ResponseEncoder:
    """Tells a chat's chunks as the events of a response.

    Args:
        asked: the request's fields.
    """

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self._telling = ResponseBuilder(asked)

    def encode(self, chunk: Chunk) -> bytes:
        """Return the events that tell a chunk."""
        self._telling.take(chunk)
        return self._said()

    def finish(self) -> bytes:
        """Return the events that end the response."""
        self._telling.end()
        return self._said()

    def _said(self) -> bytes:
        events, self._telling.events = self._telling.events, []
        return b"".join([sse.json_event(event, event["type"]) for event in events])


class ResponseBuilder:
    """A response while it grows.

    Args:
        asked: the request's fields.

    Attributes:
        events: what has happened; whoever reads them takes them out.
    """

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self.events: list[Event] = []
        self._echo = _echo(asked)
        self._head: Event = {}
        self._key = ""
        self._number = 0
        self._items: list[Item] = []
        self._text: TextItem | None = None
        self._calls: dict[int, CallItem] = {}
        self._numbers = ToolCallIndex()
        self._choice: object = _NONE_YET
        self._finish: str | None = None
        self._usage: Mapping[str, Any] | None = None

    def take(self, chunk: Chunk) -> None:
        """Take a chunk. One without choices begins nothing: some have no id yet."""
        self._usage = chunk.get("usage") or self._usage
        for choice in choices(chunk):
            # One choice was asked for, whatever the backend numbers it.
            self._choice = choice.get("index") if self._choice == _NONE_YET else self._choice
            if choice.get("index") != self._choice:
                continue
            self._begin(chunk)
            self._finish = choice.get("finish_reason") or self._finish
            self._grow(choice.get("delta") or {}, choice.get("logprobs") or {})

    def end(self) -> Event:
        """End what is open; return the response."""
        self._begin({})
        reason = _INCOMPLETE.get(self._finish or "")
        for item in self._items:
            if item.whole is None:
                # Backends make one item after the other: what was cut off is the last one.
                cut = reason and item is self._items[-1]
                item.close("incomplete" if cut else "completed")
        status = "incomplete" if reason else "completed"
        response = self._response(status) | {
            "incomplete_details": {"reason": reason} if reason else None,
            "output": [item.whole for item in self._items],
            "usage": to_response_usage(self._usage),
        }
        self._tell(f"response.{status}", response=response)
        return response

    def _tell(self, kind: str, **fields: Any) -> None:
        self.events.append({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1

    def _begin(self, chunk: Chunk) -> None:
        if self._head:
            return
        self._key = str(chunk.get("id") or "").removeprefix("chatcmpl-")
        self._head = {
            "id": f"resp_{self._key}",
            "object": "response",
            "created_at": chunk.get("created") or 0,
            "model": chunk.get("model") or "",
        }
        for kind in ("created", "in_progress"):
            self._tell(f"response.{kind}", response=self._response("in_progress"))

    def _response(self, status: str) -> Event:
        blank: Event = {"incomplete_details": None, "output": [], "usage": None}
        return {**self._head, "status": status, **blank, **self._echo}

    def _grow(self, delta: Mapping[str, Any], logprobs: Mapping[str, Any]) -> None:
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
        item = self._text
        if item is None or item.kind != kind:
            self._end_text()
            item = self._text = TextItem(kind, *self._place(kind), self._tell)
            self._open(item)
        item.add(part, text, logprobs)

    def _add_call(self, call: Mapping[str, Any]) -> None:
        function = call.get("function") or {}
        name, arguments = function.get("name") or "", function.get("arguments") or ""
        number = self._numbers.number(call)
        if number in self._calls:
            self._calls[number].name(name)
        else:
            self._end_text()
            id, place = self._place("function_call")
            # Not every backend names its calls, and without a name nobody could answer one.
            made = CallItem(id, place, self._tell, call.get("id") or f"call_{self._key}_{place}")
            made.name(name)
            self._open(made)
            self._calls[number] = made
        if arguments:
            self._calls[number].arguments(arguments)

    def _place(self, kind: str) -> tuple[str, int]:
        """Return the id and the place of the next item."""
        index = len(self._items)
        return f"{_PREFIXES[kind]}_{self._key}_{index}", index

    def _open(self, item: Item) -> None:
        item.open()
        self._items.append(item)

    def _end_text(self) -> None:
        if self._text is not None:
            self._text.close("completed")
            self._text = None


def _echo(asked: Mapping[str, Any]) -> Event:
    """Return what a response repeats of its request, with OpenAI's defaults for the rest."""
    defaults: Event = {
        "instructions": None,
        "max_output_tokens": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "prompt_cache_key": None,
        "safety_identifier": None,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": None,
        "top_p": None,
        "user": None,
    }
    said = {name: asked[name] for name in defaults if asked.get(name) is not None}
    return {
        **defaults,
        **said,
        "background": False,
        "error": None,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None, **(asked.get("reasoning") or {})},
        "store": False,
        "text": {"format": {"type": "text"}, **(asked.get("text") or {})},
        "truncation": "disabled",
    }


def to_response_usage(usage: Mapping[str, Any] | None) -> Event | None:
    """Return a chat's usage as a response has it, None where there is none."""
    if not usage:
        return None
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    cached = usage.get("prompt_tokens_details")
    spent = usage.get("completion_tokens_details")
    return {
        "input_tokens": prompt,
        "input_tokens_details": {
            "cached_tokens": _count(cached, "cached_tokens"),
            "cache_write_tokens": _count(cached, "cache_write_tokens"),
        },
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": _count(spent, "reasoning_tokens")},
        "total_tokens": _count(usage, "total_tokens") or prompt + completion,
    }


def to_chat_usage(usage: object) -> dict[str, Any]:
    """Return a response's usage as a chat has it, empty where there is none."""
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
    """Return a number of tokens, 0 where it is not told."""
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if isinstance(value, int) else 0
