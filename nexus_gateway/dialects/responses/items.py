"""The items of a response's output, and the events that tell how each of them grows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

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
